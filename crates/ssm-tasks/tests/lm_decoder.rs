//! What a decoder writes is what steps of the model write, launched one by one or recorded.

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use burn::tensor::DeviceKind;
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};
use ssm_core::init::Init;
use ssm_tasks::lm::{
    decoder::Decoder,
    generate::{GenerateRequest, generate},
    model::{MambaLm, MambaLmConfig},
    sampling::Sampling,
    tokenizer::{Tokenizer, Vocabulary},
};

const N_VOCAB: usize = 13;

/// The device that `SSM_TEST_DEVICE` names, as in the tests of the operations; else the processor.
fn device() -> Device {
    match std::env::var("SSM_TEST_DEVICE").ok().as_deref() {
        #[cfg(feature = "cuda")]
        Some("cuda") => Device::cuda(0),
        #[cfg(feature = "vulkan")]
        Some("vulkan") => Device::vulkan(DeviceKind::DefaultDevice),
        #[cfg(feature = "webgpu")]
        Some("webgpu") => Device::wgpu(DeviceKind::DefaultDevice),
        #[cfg(feature = "webgpu")]
        Some("webgpu:cpu") => Device::wgpu(DeviceKind::Cpu),
        None => Device::flex(),
        Some(other) => panic!("SSM_TEST_DEVICE is `{other}`: this build has no such device"),
    }
}

/// A model whose outputs are far from uniform: fresh ones say almost nothing.
fn model(options: &str, device: &Device) -> MambaLm {
    struct Louder;
    impl ModuleMapper for Louder {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            // The embedding is the only matrix with 16 rows.
            let embedding = D == 2 && param.val().dims()[0] == 16;
            if embedding { param.map(|tensor| tensor * 40.0) } else { param }
        }
    }
    let text = format!("d_model = 12\nn_layer = 3\n{options}");
    let config: MambaLmConfig = toml::from_str(&text).unwrap();
    config.init(N_VOCAB, &mut Init::new(7, device)).map(&mut Louder)
}

const MIXER: &str = "mixer.mamba = { d_state = 4, d_conv = 3, dt_min = 0.1, dt_max = 1.0 }";

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec_as().unwrap()
}

/// The place of the largest value of each row.
fn largest(logits: &[f32], n_rows: usize) -> Vec<u32> {
    let rows = logits.chunks(n_rows).map(|row| &row[..N_VOCAB]);
    rows.map(|row| (0..N_VOCAB).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32)
        .collect()
}

#[test]
fn a_decoder_writes_what_steps_write() {
    writes_what_steps_write(MIXER);
}

#[test]
fn a_decoder_scales_logits_as_steps_do() {
    writes_what_steps_write(&format!("logit_scale = 0.25\n{MIXER}"));
}

fn writes_what_steps_write(options: &str) {
    let device = device();
    let model = model(options, &device);
    // Few texts and many, which go through other products.
    for batch in [1, 3, 11] {
        let prompt: Vec<i32> = (0..3 * batch as i32).map(|i| i * i % N_VOCAB as i32).collect();
        let prompt = Tensor::from_data(TensorData::new(prompt, [batch, 3]), &device);
        let mut state = model.init_state(batch).unwrap();
        let _ = model.continued(prompt, None, &mut state);
        let first: Vec<u32> = (0..batch as u32).map(|row| row % 5).collect();
        for captured in [false, true] {
            let mut decoder =
                Decoder::new(&model, &state, batch, N_VOCAB, FloatDType::F32, 4).unwrap();
            if captured {
                decoder.capture();
            }
            decoder.feed(&first);
            let (mut state, mut tokens) = (state.clone(), first.clone());
            let mut written = vec![Vec::new(); batch];
            for step in 0..6 {
                let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
                let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [batch]), &device);
                let expected = values(model.step(ids, &mut state));
                let got = values(decoder.step());
                let what = format!("batch {batch}, captured {captured}, step {step}");
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected).abs() < 1e-3, "{what}: {got} is not {expected}");
                }
                tokens = largest(&expected, expected.len() / batch);
                written.iter_mut().zip(&tokens).for_each(|(row, token)| row.push(*token));
                if step == 3 {
                    assert_eq!(decoder.chosen().unwrap(), written, "{what}");
                    // Another token than the likeliest.
                    tokens[0] = 1;
                    decoder.feed(&tokens);
                }
            }
            // Only the last four are kept.
            let last: Vec<Vec<u32>> = written.iter().map(|row| row[2..].to_vec()).collect();
            assert_eq!(decoder.chosen().unwrap(), last, "batch {batch}, captured {captured}");
        }
    }
}

#[test]
fn models_without_a_form_for_single_tokens_have_no_decoder() {
    let device = device();
    for options in ["mlp.d_hidden = 16", "mixer.mamba = { selective = false }"] {
        let model = model(options, &device);
        let state = model.init_state(2).unwrap();
        let decoder = Decoder::new(&model, &state, 2, N_VOCAB, FloatDType::F32, 1);
        assert!(decoder.is_none(), "{options}");
    }
}

/// Texts that end at different times, so that rows leave the batch.
#[test]
fn every_device_generates_the_texts_of_the_processor() {
    let texts = |device: &Device| {
        let model = model(MIXER, device);
        let tokenizer = Tokenizer::new(Vocabulary::Numbers(N_VOCAB)).unwrap();
        let request = GenerateRequest {
            prompts: ["1 2", "3", "4 5 6"].map(str::to_owned).to_vec(),
            max_tokens: Some(8),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            stop: vec!["7".to_owned()],
            ..GenerateRequest::default()
        };
        let mut texts = vec![String::new(); 3];
        generate(&model, &tokenizer, &request, &mut |row, piece| {
            texts[row] += piece;
            Ok(true)
        })
        .unwrap();
        texts
    };
    assert_eq!(texts(&device()), texts(&Device::flex()));
}

/// Weights that hold what is no number: neither the tokens that were chosen on the device nor a text come
/// out of it.
#[test]
fn what_is_not_a_number_is_no_token() {
    struct Broken;
    impl ModuleMapper for Broken {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let embedding = D == 2 && param.val().dims()[0] == 16;
            // Of the embedding only the last token's row, which is read and is a logit.
            let row = |tensor: Tensor<D>| {
                let shape = tensor.dims();
                let [n_rows, width] = [shape[0], shape[1]];
                let ids = Tensor::<1, Int>::arange(0..n_rows as i64, &tensor.device());
                let last = ids.equal_elem(N_VOCAB as i64 - 1).reshape([n_rows, 1]);
                tensor.mask_fill(last.expand([n_rows, width]).reshape(shape), f32::NAN)
            };
            if embedding { param.map(row) } else { param }
        }
    }
    let device = device();
    let broken = model(MIXER, &device).map(&mut Broken);
    let said = "choosing a token: the logits of text 1 are not finite numbers";
    for captured in [false, true] {
        let state = broken.init_state(2).unwrap();
        let decoder = Decoder::new(&broken, &state, 2, N_VOCAB, FloatDType::F32, 3);
        let mut decoder = decoder.unwrap();
        if captured {
            decoder.capture();
        }
        decoder.feed(&[1, 2]);
        let _ = decoder.step();
        let _ = decoder.step();
        let error = decoder.chosen().unwrap_err();
        assert!(error.to_string().ends_with(said), "{error}");
        assert!(error.hint().unwrap().contains("ssm doctor"));
    }
    let tokenizer = Tokenizer::new(Vocabulary::Numbers(N_VOCAB)).unwrap();
    for temperature in [0.0, 1.0] {
        let request = GenerateRequest {
            prompts: vec!["1 2".to_owned()],
            max_tokens: Some(8),
            sampling: Sampling { temperature, ..Sampling::default() },
            ..GenerateRequest::default()
        };
        let done = generate(&broken, &tokenizer, &request, &mut |_, _| panic!("a text"));
        assert!(done.unwrap_err().to_string().ends_with(said), "{temperature}");
    }
}
