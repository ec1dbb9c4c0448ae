//! Language modelling: laws of the model, the loss, the order of the data, and generation.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use ssm_core::init::Init;
use ssm_tasks::lm::{
    LmTask,
    batch::{Example, IGNORE, LmBatch},
    config::{Bptt, LmConfig, LmOptions, Packing},
    data::DataConfig,
    generate::{GenerateRequest, generate},
    model::{MambaLm, MambaLmConfig},
    sampling::Sampling,
    shards::ShardWriter,
    tokenizer::{Tokenizer, Vocabulary},
};
use ssm_train::{
    config::{Config, Precision, Recompute, Settings},
    task::{Split, Task},
};

use crate::support;

fn small() -> MambaLmConfig {
    let config = toml::from_str(
        "d_model = 12\nn_layer = 2\nmixer.mamba = { d_state = 4, d_conv = 3 }\nmlp.d_hidden = 16",
    );
    config.unwrap()
}

/// A model whose outputs are far from uniform: fresh ones say almost nothing.
fn model(n_vocab: usize, device: &Device) -> MambaLm {
    let mut model = small().init(n_vocab, &mut Init::new(7, device));
    let mut scale = Louder;
    model = model.map(&mut scale);
    model
}

struct Louder;

impl burn::module::ModuleMapper for Louder {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let weight = D == 2 && param.val().dims()[0] > 12;
        if weight { param.map(|tensor| tensor * 3.0) } else { param }
    }
}

fn tokens(ids: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec_as().unwrap()
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance, "{what}, {i}: {got} is not {expected}");
    }
}

const TEXT: [i32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

#[test]
fn prefill_and_steps_equal_the_forward_pass_at_every_split() {
    for device in [support::device()] {
        let model = model(10, &device);
        let whole = values(model.forward(tokens(&TEXT, &device)));
        let n_rows = whole.len() / TEXT.len();
        assert_eq!(n_rows, 16, "10 tokens are padded to 16 rows");
        for split in 0..=TEXT.len() {
            let mut state = model.init_state(1).unwrap();
            let mut got = Vec::new();
            if split > 0 {
                let hidden = model.continued(tokens(&TEXT[..split], &device), None, &mut state);
                got.extend(values(model.head(hidden.flatten::<2>(0, 1))));
            }
            for token in &TEXT[split..] {
                let token =
                    Tensor::<1, Int>::from_data(TensorData::new(vec![*token], [1]), &device);
                got.extend(values(model.step(token, &mut state)));
            }
            assert_close(&got, &whole, 2e-4, &format!("split at {split}"));
        }
    }
}

#[test]
fn the_scale_of_logits_is_exact_in_the_forward_pass_and_in_steps() {
    let device = Device::flex();
    let logits = |logit_scale| {
        let config = MambaLmConfig { logit_scale, ..small() };
        let model = config.init(10, &mut Init::new(7, &device));
        let mut state = model.init_state(1).unwrap();
        let token = Tensor::<1, Int>::from_data(TensorData::new(vec![TEXT[0]], [1]), &device);
        (values(model.forward(tokens(&TEXT, &device))), values(model.step(token, &mut state)))
    };
    let (whole, first) = logits(1.0);
    let (scaled, first_scaled) = logits(0.125);
    let eighth = |values: Vec<f32>| values.iter().map(|value| value / 8.0).collect::<Vec<_>>();
    assert_eq!(scaled, eighth(whole));
    assert_eq!(first_scaled, eighth(first));
}

#[test]
fn padding_at_the_right_changes_no_logit_before_it() {
    let device = Device::flex();
    let model = model(10, &device);
    let alone = values(model.forward(tokens(&TEXT[..4], &device)));
    let padded = values(model.forward(tokens(&[3, 1, 4, 1, 0, 0, 0], &device)));
    assert_close(&padded[..alone.len()], &alone, 1e-6, "padded");
}

/// Gradients of every parameter, one after the other.
struct Gradients<'a>(&'a burn::tensor::Gradients, Vec<f32>);

impl ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.0).expect("every parameter has a gradient");
        self.1.extend(values(gradient));
    }
}

fn task(options: &LmOptions, data: &str, change: impl Fn(&mut Settings)) -> (LmTask, MambaLm) {
    let data: DataConfig = toml::from_str(data).unwrap();
    let mut settings = support::settings(3);
    settings.batch_size = 2;
    change(&mut settings);
    LmTask::new(options, &data, &small(), &settings, &Device::flex().autodiff()).unwrap()
}

/// Mean loss and gradients of micro-batches, weighted by their targets.
fn differentiated(task: &LmTask, model: &MambaLm, batches: Vec<LmBatch>) -> (f64, Vec<f32>) {
    let (mut nats, mut weights, mut sum) = (0.0, 0.0, Vec::new());
    for batch in batches {
        let loss = task.loss(model, task.input(batch, 0, &model.device()));
        let mean = f64::from(values(loss.mean.clone())[0]);
        nats += mean * loss.weight;
        weights += loss.weight;
        let grads = loss.mean.mul_scalar(loss.weight).backward();
        let mut visitor = Gradients(&grads, Vec::new());
        model.visit(&mut visitor);
        sum.resize(visitor.1.len(), 0.0);
        sum.iter_mut().zip(visitor.1).for_each(|(sum, value)| *sum += value);
    }
    sum.iter_mut().for_each(|value| *value /= weights as f32);
    (nats / weights, sum)
}

#[test]
fn packed_documents_equal_separate_ones_in_values_and_gradients() {
    let packing = Packing::Documents;
    let data = "[induction_heads]\nn_vocab = 16";
    let (task, model) = task(&LmOptions { packing, ..Default::default() }, data, |_| ());
    for lens in [&[9][..], &[4, 5], &[1, 1, 7], &[3, 1, 2, 1, 1, 1], &[1; 9]] {
        let mut starts = Vec::new();
        let mut targets = TEXT[1..].to_vec();
        targets.push(7);
        let mut separate = Vec::new();
        let mut first = 0;
        for len in lens {
            starts.push(first);
            // The last token of a document predicts nothing here, but for one of a single token.
            if *len > 1 {
                targets[first + len - 1] = IGNORE;
            }
            let range = first..first + len;
            separate.push(LmBatch::of(&[Example {
                inputs: TEXT[range.clone()].iter().map(|token| *token as u32).collect(),
                targets: targets[range].to_vec(),
                starts: Vec::new(),
            }]));
            first += len;
        }
        let packed =
            Example { inputs: TEXT.iter().map(|token| *token as u32).collect(), targets, starts };
        let (loss, gradient) = differentiated(&task, &model, vec![LmBatch::of(&[packed])]);
        let (expected, expected_gradient) = differentiated(&task, &model, separate);
        assert!((loss - expected).abs() < 1e-5, "{lens:?}: {loss} is not {expected}");
        assert_close(&gradient, &expected_gradient, 2e-5, &format!("{lens:?}"));
    }
}

/// One file with a text, and its directory.
fn text_file(n: usize) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    let text: String =
        (0..n).map(|i| char::from(b'a' + ((i * 2_654_435_761) >> 16) as u8 % 23)).collect();
    std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
    let data = format!("[text]\ntrain = [\"{}\"]\ntokenizer = \"chars\"", path.display());
    (dir, data)
}

/// What a message calls a sequence is where it lies in the text.
#[test]
fn sequences_are_named_by_their_tokens() {
    let (dir, data) = text_file(400);
    let data = data.replace("chars", "bytes");
    let path = dir.path().join("text.txt");
    let text = std::fs::read(&path).unwrap();
    for (bptt, accumulate) in [(Bptt::Reset, 1), (Bptt::Carry, 2)] {
        let options = LmOptions { seq_len: 8, bptt, ..Default::default() };
        let (task, _) = task(&options, &data, |settings| settings.accumulate = accumulate);
        let index = task.batches_per_epoch() + accumulate as u64;
        let len = 8 * accumulate;
        let names = task.samples(index);
        let batches: Vec<LmBatch> =
            (0..accumulate as u64).map(|part| task.batch(index + part).unwrap()).collect();
        assert_eq!(names.len(), 2);
        for (row, name) in names.iter().enumerate() {
            let file = format!(" of `{}`", path.display());
            let tokens = name.strip_prefix("tokens ").and_then(|name| name.strip_suffix(&file));
            let (first, last) = tokens.and_then(|tokens| tokens.split_once(" to ")).unwrap();
            let [first, last] = [first, last].map(|token| token.parse::<usize>().unwrap());
            assert_eq!(last + 1 - first, len, "{name}");
            let inputs = batches.iter().flat_map(|batch| &batch.inputs[row * 8..][..8]);
            let read: Vec<u8> = inputs.map(|token| *token as u8).collect();
            assert_eq!(read, text[first..=last], "{name}");
        }
    }
}

#[test]
fn a_carried_state_sees_the_whole_sequence() {
    let (_dir, data) = text_file(400);
    let whole = LmOptions { seq_len: 24, ..Default::default() };
    let parts = LmOptions { seq_len: 8, bptt: Bptt::Carry, ..Default::default() };
    let (whole, model) = task(&whole, &data, |_| ());
    let (parts, _) = task(&parts, &data, |settings| settings.accumulate = 3);
    assert_eq!(parts.batches_per_epoch(), 3 * whole.batches_per_epoch());
    for step in 0..4 {
        let one = whole.batch(step).unwrap();
        let three: Vec<LmBatch> =
            (0..3).map(|part| parts.batch(3 * step + part).unwrap()).collect();
        assert_eq!(
            three.iter().map(|part| part.continues).collect::<Vec<_>>(),
            [false, true, true]
        );
        let row = |batch: &LmBatch| batch.inputs[..batch.seq_len].to_vec();
        assert_eq!(three.iter().flat_map(row).collect::<Vec<_>>(), row(&one));
        let (loss, gradient) = differentiated(&parts, &model, three);
        let (expected, whole_gradient) = differentiated(&whole, &model, vec![one]);
        // The same loss; of the gradient, what reaches back beyond a part is missing.
        assert!((loss - expected).abs() < 1e-5, "{loss} is not {expected}");
        assert!(gradient != whole_gradient && gradient.iter().all(|value| value.is_finite()));
    }
    let all = |task: &LmTask| task.evaluate(&model.clone().valid(), Split::Valid).unwrap()["loss"];
    assert!((all(&parts) - all(&whole)).abs() < 1e-6);
}

#[test]
fn layers_that_are_computed_again_give_the_same_gradients() {
    let (_dir, data) = text_file(200);
    let options = LmOptions { seq_len: 16, ..Default::default() };
    let (task, kept) = task(&options, &data, |_| ());
    let (_, again) = self::task(&options, &data, |settings| {
        settings.recompute = Some(Recompute::Layer);
    });
    let batch = || vec![task.batch(0).unwrap()];
    assert_eq!(differentiated(&task, &again, batch()), differentiated(&task, &kept, batch()));
}

/// Gradients arrive in the type of the parameters, and are those of f32 but for eight bits of mantissa.
#[test]
fn a_step_in_bf16_has_the_gradients_of_f32_within_its_rounding() {
    struct AllF32<'a>(&'a burn::tensor::Gradients);
    impl ModuleVisitor for AllF32<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(self.0).expect("every parameter has a gradient");
            assert_eq!([param.val().dtype(), gradient.dtype()], [DType::F32; 2]);
        }
    }
    let (_dir, data) = text_file(200);
    for (bptt, accumulate) in [(Bptt::Reset, 1), (Bptt::Carry, 2)] {
        let options = LmOptions { seq_len: 16, bptt, ..Default::default() };
        let with = |precision: Precision| {
            let (task, model) = task(&options, &data, |settings| {
                (settings.precision, settings.accumulate) = (precision, accumulate);
            });
            let batches: Vec<LmBatch> =
                (0..accumulate as u64).map(|index| task.batch(index).unwrap()).collect();
            (differentiated(&task, &model, batches), task, model)
        };
        let ((truth, gradient), ..) = with(Precision::F32);
        let ((loss, rounded), task, model) = with(Precision::Bf16);
        assert!(loss != truth && (loss - truth).abs() < 1e-2, "{loss} is not {truth}");
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        let error = square(&mut rounded.iter().zip(&gradient).map(|(got, truth)| got - truth));
        let error = (error / square(&mut gradient.iter().copied())).sqrt();
        // Rounding the parameters alone moves the gradient by 0.9 %; there are some sixty roundings.
        assert!(error > 0.0 && error < 8e-2, "{bptt:?}: relative error {error}");
        let loss = task.loss(&model, task.input(task.batch(0).unwrap(), 0, &model.device())).mean;
        assert_eq!(loss.dtype(), DType::F32);
        model.visit(&mut AllF32(&loss.backward()));
        // Layers that are computed again round where the others do.
        if bptt == Bptt::Reset {
            let mut again = model.clone();
            again.recompute_layers();
            let batches = vec![task.batch(0).unwrap()];
            assert_eq!(differentiated(&task, &again, batches).1, rounded);
        }
    }
}

/// A sample is a target, and a token where every token has one.
#[test]
fn work_counts_tokens_and_operations() {
    let (_dir, data) = text_file(200);
    let options = LmOptions { seq_len: 16, ..Default::default() };
    let (task, model) = task(&options, &data, |_| ());
    let work = task.work(&model).unwrap();
    assert_eq!((work.tokens, work.flops), (1.0, 6.0 * model.num_params() as f64));
    let pace = work.throughput(100.0, Some(1e9));
    assert_eq!((pace.tokens_per_sec, pace.mfu), (100.0, Some(work.flops * 100.0 / 1e9)));
    let data = "[induction_heads]\nseq_len = 16\nn_vocab = 8";
    let (task, model) = self::task(&LmOptions::default(), data, |_| ());
    // One target at the end of each sequence.
    assert_eq!(task.work(&model).unwrap().tokens, task.batch(0).unwrap().seq_len as f64);
}

/// A mixture draws each corpus as often as its weight says, in an order of the seed and the index.
#[test]
fn corpora_are_mixed_by_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::new(Vocabulary::Bytes).unwrap();
    let mut parts = Vec::new();
    for (name, byte, weight) in [("a", 97, 1), ("b", 98, 3)] {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let file = std::fs::File::create(folder.join("part_00000.tokens")).unwrap();
        let mut shard = ShardWriter::new(file, &tokenizer).unwrap();
        shard.begin_document();
        shard.write(&[byte; 900]).unwrap();
        shard.finish().unwrap();
        let mut file = std::fs::File::create(folder.join("vocabulary.json")).unwrap();
        std::io::Write::write_all(&mut file, b"\"bytes\"").unwrap();
        parts.push(format!("{{ dir = \"{}\", weight = {weight} }}", folder.display()));
    }
    let valid = dir.path().join("a");
    let data = format!("[shards]\ntrain = [{}]\nvalid = \"{}\"", parts.join(", "), valid.display());
    let options = LmOptions { seq_len: 4, ..Default::default() };
    let (task, _) = task(&options, &data, |settings| settings.batch_size = 1);
    let n = task.batches_per_epoch();
    assert_eq!(n, 2 * 223);
    let firsts = (0..4 * n).map(|index| task.batch(index).unwrap().inputs[0]);
    let share = firsts.filter(|token| *token == 98).count() as f64 / (4 * n) as f64;
    assert!((share - 0.75).abs() < 0.04, "{share}");
}

#[test]
fn the_order_of_batches_is_a_pure_function_of_seed_and_index() {
    let (_dir, data) = text_file(500);
    let options = LmOptions { seq_len: 16, ..Default::default() };
    let (first, _) = task(&options, &data, |_| ());
    let (again, _) = task(&options, &data, |_| ());
    let (other, _) = task(&options, &data, |settings| settings.seed += 1);
    let per_epoch = first.batches_per_epoch();
    let mut starts = std::collections::BTreeSet::new();
    for index in (0..2 * per_epoch).rev() {
        let batch = first.batch(index).unwrap();
        assert_eq!(batch, again.batch(index).unwrap());
        if index < per_epoch {
            starts.extend(batch.inputs.chunks(16).map(<[i32]>::to_vec));
        }
    }
    assert_ne!(first.batch(0).unwrap(), other.batch(0).unwrap());
    assert_ne!(first.batch(0).unwrap(), first.batch(per_epoch).unwrap());
    // 449 targets are 28 blocks, one of which is given up.
    assert_eq!((starts.len(), per_epoch), (27, 14));
}

#[test]
fn scores_do_not_depend_on_the_size_of_a_batch() {
    let (_dir, data) = text_file(300);
    let options = LmOptions { seq_len: 7, ..Default::default() };
    let score = |size: usize| {
        let (task, model) = task(&options, &data, |settings| settings.eval_batch_size = size);
        task.evaluate(&model.valid(), Split::Valid).unwrap()
    };
    let one = score(1);
    for size in [2, 5, 100] {
        for (name, value) in score(size) {
            assert!((value - one[&name]).abs() < 1e-6, "{name} {value} {}", one[&name]);
        }
    }
    assert!((one["loss"].exp() - one["perplexity"]).abs() < 1e-9);
    // Characters of one byte each.
    assert!((one["loss"] / std::f64::consts::LN_2 - one["bits_per_byte"]).abs() < 1e-9);
}

/// The text of every prompt.
fn generated(model: &MambaLm, request: &GenerateRequest) -> Vec<String> {
    let tokenizer = Tokenizer::new(Vocabulary::Chars("abcdefghij".to_owned())).unwrap();
    let mut texts = vec![String::new(); request.prompts.len()];
    generate(model, &tokenizer, request, &mut |index, text| {
        texts[index] += text;
        Ok(true)
    })
    .unwrap();
    texts
}

#[test]
fn generation_goes_on_as_the_whole_text_would() {
    let device = Device::flex();
    let model = model(10, &device);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let request = GenerateRequest {
        prompts: vec!["dbeb".to_owned(), "a".to_owned(), "jjjjjjja".to_owned()],
        max_tokens: Some(12),
        sampling: greedy,
        ..Default::default()
    };
    let texts = generated(&model, &request);
    for (prompt, text) in request.prompts.iter().zip(&texts) {
        let mut ids: Vec<i32> = prompt.bytes().map(|byte| i32::from(byte - b'a')).collect();
        for _ in 0..12 {
            let logits = values(model.forward(tokens(&ids, &device)));
            let last = &logits[logits.len() - 16..][..10];
            let best = (0..10).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            ids.push(best as i32);
        }
        let expected: String = ids.iter().map(|id| char::from(b'a' + *id as u8)).collect();
        assert_eq!(prompt.clone() + text, expected);
    }
}

#[test]
fn stop_strings_end_a_text_and_are_not_part_of_it() {
    let model = model(10, &Device::flex());
    let request = GenerateRequest {
        prompts: vec!["abc".to_owned(), "fade".to_owned()],
        max_tokens: Some(60),
        seed: 5,
        ..Default::default()
    };
    let free = generated(&model, &request);
    assert!(free.iter().all(|text| text.len() == 60), "{free:?}");
    assert_eq!(free, generated(&model, &request));
    let stop = free[0][20..23].to_owned();
    let expected: Vec<String> =
        free.iter().map(|text| text.split(&stop).next().unwrap().to_owned()).collect();
    let stopped = generated(&model, &GenerateRequest { stop: vec![stop], ..request });
    assert_eq!(stopped, expected);
}

#[test]
fn every_file_is_valid_and_named_after_its_run() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/lm");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = Config::<LmConfig>::load(&path, &[])
            .unwrap_or_else(|error| panic!("{}\n{error}", path.display()));
        assert_eq!(path.file_stem().unwrap().to_str(), Some(config.run.name.as_str()));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{}: the first line says what it is", path.display());
        assert!(text.contains("ublished"), "{}: no published number", path.display());
    }
}

/// The scores of a report come out again, for `ssm eval` on another device.
#[test]
fn a_made_up_task_is_scored_at_every_length_of_its_report() {
    let data = "[induction_heads]\nseq_len = 16\nn_vocab = 8\ntest_lens = [16, 40]";
    let (task, model) = task(&LmOptions::default(), data, |_| {});
    let model = model.valid();
    let scores = task.evaluate(&model, Split::Test).unwrap();
    assert!(["accuracy_16", "accuracy_40"].iter().all(|name| scores.contains_key(*name)));
    assert_eq!(scores, task.conclude(&model).unwrap().metrics);
    assert!(task.evaluate(&model, Split::Valid).unwrap().contains_key("loss"));
}
