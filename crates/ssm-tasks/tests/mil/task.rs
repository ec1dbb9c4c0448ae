//! The task on classic data: models, losses, order of bags, scores.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor, TensorData},
};
use ssm_core::init::Init;
use ssm_tasks::mil::{
    MilTask,
    config::MilOptions,
    data::DataConfig,
    model::{BagModel, BagModelConfig},
};
use ssm_train::{
    config::Settings,
    error::Error,
    task::{Host, Split, Task},
};

use crate::support::{data_dirs, settings};

fn options(text: &str) -> MilOptions {
    toml::from_str(text).unwrap()
}

fn model(text: &str) -> BagModelConfig {
    toml::from_str(text).unwrap()
}

const MODELS: [&str; 8] = [
    "[mean_pool.embedder]\nhidden = [8]",
    "[max_pool.embedder]\nhidden = [8]",
    "[abmil]\nd_attention = 4\nembedder = { hidden = [8, 6] }",
    "[abmil]\nd_attention = 4\ngated = true\nembedder = { hidden = [8] }",
    "[mamba_mil]\nd_model = 8\nd_attention = 4\nmixer.mamba = { d_state = 4 }",
    "[mamba_mil]\nd_model = 8\nd_attention = 4\nmixer.bi_mamba.branch = { d_state = 4 }",
    "[mamba_mil]\nd_model = 8\nd_attention = 4\nmixer.sr_mamba = { rate = 3, branch.d_state = 4 }",
    "[mamba_mil]\nd_model = 8\nd_attention = 4\ninit = \"mambamil\"\n\
     mixer.sr_mamba = { rate = 3, masked = true, branch.d_state = 4 }",
];

fn bag(n: usize, width: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..n * width).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [n, width]), device)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().unwrap()
}

#[test]
fn every_model_reads_bags_of_any_length() {
    let device = Device::flex();
    for text in MODELS {
        let built = model(text).init(5, 3, &mut Init::new(1, &device));
        for n in [1, 2, 3, 4, 7, 50] {
            let output = built.forward(bag(n, 5, &device));
            let logits = values(output.logits);
            assert!(logits.len() == 3 && logits.iter().all(|value| value.is_finite()), "{text}");
            if let Some(attention) = output.attention {
                let attention = values(attention);
                assert_eq!(attention.len(), n, "{text}");
                assert!((attention.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{text}");
            }
        }
    }
}

/// Counts parameters and those without a gradient that is finite and somewhere not zero.
struct Gradients<'a> {
    path: Vec<String>,
    grads: &'a burn::tensor::Gradients,
    dead: Vec<String>,
}

impl ModuleVisitor for Gradients<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.grads).map(values).unwrap_or_default();
        if !grad.iter().all(|g| g.is_finite()) || grad.iter().all(|g| *g == 0.0) {
            self.dead.push(self.path.join("."));
        }
    }
}

#[test]
fn every_parameter_of_every_model_learns() {
    let device = Device::flex().autodiff();
    for text in MODELS {
        let built = model(text).init(5, 3, &mut Init::new(1, &device));
        let logits = built.forward(bag(11, 5, &device)).logits;
        let weights: Tensor<1> = Tensor::from_floats([0.3, -1.0, 2.0], &device);
        let grads = (logits.tanh() * weights).sum().backward();
        let mut found = Gradients { path: Vec::new(), grads: &grads, dead: Vec::new() };
        built.visit(&mut found);
        // A constant added to every attention score changes nothing, so its gradient is zero up to
        // rounding, and may be exactly zero.
        found.dead.retain(|path| !path.ends_with("pool.score.bias"));
        assert!(found.dead.is_empty(), "{text}: {:?}", found.dead);
    }
}

/// Gradients of all parameters by path.
struct All<'a> {
    path: Vec<String>,
    grads: &'a burn::tensor::Gradients,
    found: Vec<(String, Vec<f32>)>,
}

impl ModuleVisitor for All<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.grads).map(values).unwrap_or_default();
        self.found.push((self.path.join("."), grad));
    }
}

#[test]
fn layers_that_are_computed_again_have_the_same_gradients() {
    let plain = Device::flex();
    for device in [plain.clone().autodiff(), plain.autodiff().gradient_checkpointing()] {
        for text in &MODELS[4..] {
            let mut built = model(text).init(5, 3, &mut Init::new(1, &device));
            let step = |built: &BagModel| {
                let logits = built.forward(bag(11, 5, &device)).logits;
                let said = values(logits.clone());
                let weights: Tensor<1> = Tensor::from_floats([0.3, -1.0, 2.0], &device);
                let grads = (logits.tanh() * weights).sum().backward();
                let mut all = All { path: Vec::new(), grads: &grads, found: Vec::new() };
                built.visit(&mut all);
                (said, all.found)
            };
            let kept = step(&built);
            let BagModel::MambaMil(mamba_mil) = &mut built else { panic!("{text}") };
            mamba_mil.recompute_layers();
            // Bit for bit: the same operations in the same order.
            assert_eq!(step(&built), kept, "{text}");
        }
    }
}

#[test]
fn the_published_sizes_have_the_published_number_of_parameters() {
    let device = Device::flex();
    let built = model("[mamba_mil]").init(1024, 2, &mut Init::new(1, &device));
    assert_eq!(built.num_params(), 4_227_843);
}

#[test]
fn the_published_initialisation_sets_the_step_size_to_softplus_of_zero() {
    struct Biases(Vec<String>, Vec<f32>);
    impl ModuleVisitor for Biases {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.0.join(".").ends_with("dt_proj.bias") {
                self.1.extend(values(param.val()));
            }
        }
    }
    let device = Device::flex();
    let biases = |init: &str| {
        let text = format!("[mamba_mil]\nd_model = 8\ninit = \"{init}\"");
        let mut biases = Biases(Vec::new(), Vec::new());
        model(&text).init(5, 2, &mut Init::new(1, &device)).visit(&mut biases);
        biases.1
    };
    // Two layers of two branches of width 16.
    assert_eq!(biases("mambamil"), [0.0; 64]);
    let steps = biases("mamba").into_iter().map(|bias| bias.exp().ln_1p());
    assert!(steps.into_iter().all(|step| (0.9e-3..0.11).contains(&step)));
}

fn musk1(
    options: &MilOptions,
    fold: usize,
    batch_size: usize,
) -> Result<(MilTask, BagModel), Error> {
    let data: DataConfig = toml::from_str("[classic]\nvariant = \"musk1\"").unwrap();
    let settings = Settings { batch_size, eval_batch_size: 1, fold, ..settings(1) };
    MilTask::new(options, &data, &model(MODELS[6]), &settings, &Device::flex())
}

/// Public data that is not part of the repository.
fn data_is_here() -> bool {
    data_dirs().iter().any(|dir| dir.join("mil/musk1.csv.gz").is_file())
}

#[test]
fn every_classic_set_is_read() {
    if !data_is_here() {
        return;
    }
    let sets = [
        ("musk1", 92, 476, 166),
        ("musk2", 102, 6598, 166),
        ("elephant", 200, 1391, 230),
        ("fox", 200, 1320, 230),
        ("tiger", 200, 1220, 230),
        ("ucsb_breast_cancer", 58, 2002, 708),
    ];
    for (variant, n_bags, n_instances, d_feature) in sets {
        let data: DataConfig =
            toml::from_str(&format!("[classic]\nvariant = \"{variant}\"")).unwrap();
        let cohort = data.data_set().load(&data_dirs()).unwrap();
        let bags = (0..cohort.slides.len()).map(|slide| cohort.bag(slide).unwrap().n_instances());
        let counts = (cohort.slides.len(), bags.sum(), cohort.d_feature);
        assert_eq!(counts, (n_bags, n_instances, d_feature), "{variant}");
    }
}

#[test]
fn an_epoch_visits_every_training_bag_once_and_folds_differ() {
    if !data_is_here() {
        return;
    }
    let options = options("standardise = true\nsplit = { folds = 10, repeats = 2, valid = 0.2 }");
    let data: DataConfig = toml::from_str("[classic]\nvariant = \"musk1\"").unwrap();
    assert_eq!(MilTask::n_folds(&options, &data, &[]).unwrap(), 20);
    let (task, model) = musk1(&options, 4, 4).unwrap();
    let fold = task.fold();
    assert_eq!(task.cohort().slides.len(), 92);
    assert_eq!(fold.train.len() + fold.valid.len() + fold.test.len(), 92);
    assert_eq!(task.batches_per_epoch(), fold.train.len().div_ceil(4) as u64);
    // The losses of the batches of an epoch, weighted, are those of all bags, in any order.
    let mean = |epoch: u64, task: &MilTask| {
        let n = task.batches_per_epoch();
        let losses = (epoch * n..(epoch + 1) * n).map(|index| {
            let loss = task.loss(&model, Host(task.batch(index).unwrap()));
            (f64::from(values(loss.mean)[0]) * loss.weight, loss.weight)
        });
        let (sum, weight) = losses.fold((0.0, 0.0), |sum, loss| (sum.0 + loss.0, sum.1 + loss.1));
        assert_eq!(weight, fold.train.len() as f64);
        sum / weight
    };
    let whole = task.evaluate(&model, Split::Train).unwrap()["loss"];
    for epoch in [0, 3] {
        assert!((mean(epoch, &task) - whole).abs() < 1e-5);
    }
    let (one_by_one, _) = musk1(&options, 4, 1).unwrap();
    assert!((mean(0, &one_by_one) - whole).abs() < 1e-5);
    assert_ne!(musk1(&options, 5, 4).unwrap().0.fold().test, fold.test);
    for split in [Split::Valid, Split::Test] {
        let metrics = task.evaluate(&model, split).unwrap();
        for name in ["accuracy", "auc", "balanced_accuracy", "f1", "loss"] {
            assert!(metrics[name].is_finite(), "{name}");
        }
    }
    let outcome = task.conclude(&model).unwrap();
    assert_eq!(outcome.details["samples"].as_array().unwrap().len(), fold.test.len());
}

#[test]
fn instances_are_shuffled_in_training_alone_and_anew_in_every_epoch() {
    if !data_is_here() {
        return;
    }
    let (plain, model) = musk1(&options(""), 4, 1).unwrap();
    let (shuffled, _) = musk1(&options("shuffle_instances = true"), 4, 1).unwrap();
    let n = plain.batches_per_epoch();
    let losses = |task: &MilTask, epoch: u64| -> Vec<f32> {
        let batches = (epoch * n..(epoch + 1) * n).map(|index| task.batch(index).unwrap());
        batches.flat_map(|batch| values(task.loss(&model, Host(batch)).mean)).collect()
    };
    // The model reads in order. Bags come in the same order with and without; most have two to five
    // instances, which now and then come as they were.
    let differing = losses(&plain, 0).into_iter().zip(losses(&shuffled, 0)).filter(|(a, b)| a != b);
    let n_differing = differing.count();
    assert!(n_differing as f64 > 0.5 * n as f64, "{n_differing} of {n} bags");
    assert_eq!(losses(&shuffled, 1), losses(&shuffled, 1));
    let sum = |losses: Vec<f32>| losses.into_iter().map(f64::from).sum::<f64>();
    assert_ne!(sum(losses(&shuffled, 0)), sum(losses(&shuffled, 1)));
    for split in [Split::Train, Split::Valid, Split::Test] {
        let [plain, shuffled] =
            [&plain, &shuffled].map(|task| task.evaluate(&model, split).unwrap());
        assert_eq!(plain, shuffled);
    }
}

#[test]
fn features_are_dropped_in_training_alone_and_others_for_every_bag() {
    if !data_is_here() {
        return;
    }
    let (plain, model) = musk1(&options(""), 4, 1).unwrap();
    let (dropped, _) = musk1(&options("feature_dropout = 0.3"), 4, 1).unwrap();
    let losses = |task: &MilTask, epoch: u64| -> Vec<f32> {
        let n = task.batches_per_epoch();
        let batches = (epoch * n..(epoch + 1) * n).map(|index| task.batch(index).unwrap());
        batches.flat_map(|batch| values(task.loss(&model, Host(batch)).mean)).collect()
    };
    let both = losses(&plain, 0).into_iter().zip(losses(&dropped, 0));
    assert!(both.into_iter().all(|(plain, dropped)| plain != dropped));
    assert_eq!(losses(&dropped, 1), losses(&dropped, 1));
    let sum = |losses: Vec<f32>| losses.into_iter().map(f64::from).sum::<f64>();
    assert_ne!(sum(losses(&dropped, 0)), sum(losses(&dropped, 1)));
    for split in [Split::Train, Split::Valid, Split::Test] {
        let [plain, dropped] = [&plain, &dropped].map(|task| task.evaluate(&model, split).unwrap());
        assert_eq!(plain, dropped);
    }
}

#[test]
fn a_smoothed_label_mixes_the_losses_of_both_classes_in_training_alone() {
    if !data_is_here() {
        return;
    }
    let losses = |share: f64| -> Vec<f64> {
        let text = format!("label_smoothing = {share}");
        let (task, model) = musk1(&options(&text), 4, 1).unwrap();
        let batches = (0..task.batches_per_epoch()).map(|index| task.batch(index).unwrap());
        batches.map(|batch| f64::from(values(task.loss(&model, Host(batch)).mean)[0])).collect()
    };
    // With two classes, the loss `a` of one is `-ln(1 - exp(-a))` of the other.
    for (plain, smoothed) in losses(0.0).into_iter().zip(losses(0.2)) {
        let other = -(-(-plain).exp()).ln_1p();
        let expected = 0.9 * plain + 0.1 * other;
        assert!((smoothed - expected).abs() < 1e-5, "{smoothed} and {expected}");
    }
    let [plain, smoothed] = ["", "label_smoothing = 0.2"].map(|text| {
        let (task, model) = musk1(&options(text), 4, 1).unwrap();
        task.evaluate(&model, Split::Test).unwrap()
    });
    assert_eq!(plain, smoothed);
}

#[test]
fn labels_of_survival_are_not_smoothed() {
    let data: DataConfig = toml::from_str("[simulated_survival]").unwrap();
    let settings = settings(1);
    let options = options("label_smoothing = 0.1");
    let made = MilTask::new(&options, &data, &model(MODELS[6]), &settings, &Device::flex());
    let Err(error) = made else { panic!("accepted") };
    assert_eq!(
        error.report(),
        "error: `task.mil.label_smoothing`: expected 0 for survival, got `0.1`\n \
         --> configuration"
    );
}

#[test]
fn a_score_that_a_data_set_cannot_have_does_not_select() {
    if !data_is_here() {
        return;
    }
    let Err(error) = musk1(&options("select = \"c_index\""), 0, 1) else { panic!("accepted") };
    assert_eq!(
        error.report(),
        "error: `task.mil.select`: expected `loss` or `auc` for classes, got `c_index`\n \
         --> configuration"
    );
}
