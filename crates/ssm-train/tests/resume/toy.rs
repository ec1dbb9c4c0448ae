//! A task small enough to train in milliseconds: a perceptron with dropout on synthetic rows.

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig},
    optim::GradientsParams,
    tensor::{Device, Tensor, activation::relu},
};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ssm_train::{
    Config, Error, Summary, Task, TrainOptions,
    checkpoint::Checkpoints,
    config::{Issue, Settings},
    logging, optim,
    progress::Show,
    report::Table,
    task::{Goal, Host, Loss, Metrics, Outcome, Reader, Selection, Split, TaskConfig},
    train,
};

pub(crate) const N_TRAIN: usize = 50;
const N_VALID: usize = 13;
const INPUTS: usize = 4;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToyOptions {
    /// Scores that evaluations return, in order, instead of the model's.
    #[serde(default)]
    pub(crate) scores: Vec<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToyData {}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToyModel {
    pub(crate) width: usize,
    pub(crate) dropout: f64,
}

pub(crate) struct ToyConfig;

impl TaskConfig for ToyConfig {
    const NAME: &'static str = "toy";
    type Options = ToyOptions;
    type Data = ToyData;
    type Model = ToyModel;

    fn validate(_: &ToyOptions, _: &ToyData, _: &ToyModel) -> Vec<Issue> {
        Vec::new()
    }
}

#[derive(Module, Debug)]
pub(crate) struct Perceptron {
    hidden: Linear,
    norm: LayerNorm,
    dropout: Dropout,
    out: Linear,
}

impl Perceptron {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.out.forward(self.dropout.forward(relu(self.norm.forward(self.hidden.forward(x)))))
    }
}

pub(crate) struct Toy {
    rows: Rows,
    scores: Vec<f64>,
    evaluations: Cell<usize>,
    /// The micro-batch that was computed with last.
    in_training: Cell<Option<u64>>,
}

/// What micro-batches are made of, by whatever thread.
#[derive(Clone)]
struct Rows {
    settings: Settings,
    /// What goes wrong, passed as `<what>=<micro-batch>` among the data directories, which unlike
    /// the configuration may differ between the sessions of a run.
    faults: BTreeMap<String, u64>,
    /// Passed as `run_dir:<path>` among the data directories.
    run_dir: Option<PathBuf>,
}

impl Rows {
    fn batches_per_epoch(&self) -> u64 {
        N_TRAIN.div_ceil(self.settings.batch_size) as u64
    }

    fn row(&self, index: usize) -> ([f32; INPUTS], f32) {
        let mut rng = ChaCha8Rng::seed_from_u64(index as u64);
        let x: [f32; INPUTS] = std::array::from_fn(|_| (rng.next_u32() >> 8) as f32 / 16777216.0);
        (x, (x[0] * 3.0).sin() + x[1] * x[2] - x[3])
    }

    fn rows(&self, indices: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let rows: Vec<_> = indices.iter().map(|index| self.row(*index)).collect();
        (rows.iter().flat_map(|(x, _)| *x).collect(), rows.iter().map(|(_, y)| *y).collect())
    }

    /// The rows of a micro-batch.
    fn order(&self, index: u64) -> Vec<usize> {
        let (epoch, place) = (index / self.batches_per_epoch(), index % self.batches_per_epoch());
        let mut order: Vec<usize> = (0..N_TRAIN).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(self.settings.seed);
        rng.set_stream(epoch);
        order.shuffle(&mut rng);
        let start = place as usize * self.settings.batch_size;
        order[start..(start + self.settings.batch_size).min(N_TRAIN)].to_vec()
    }

    fn is_hit(&self, fault: &str, index: u64) -> bool {
        self.faults.get(fault) == Some(&index)
    }

    fn signal_if(&self, fault: &str, index: u64) {
        if self.is_hit(fault, index) {
            signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
        }
    }

    fn batch(&self, index: u64) -> Result<<Toy as Task>::Batch, Error> {
        if self.is_hit("fail", index) {
            return Err(Error::Data {
                path: "rows".into(),
                message: format!("lost at {index}"),
                hint: None,
            });
        }
        self.signal_if("signal", index);
        for _ in 0..2 {
            self.signal_if("two_signals", index);
        }
        if self.is_hit("panic", index) {
            std::thread::scope(|scope| {
                scope.spawn(|| panic!("a worker fell over")).join().unwrap();
            });
        }
        if self.is_hit("vanish", index) {
            std::fs::remove_dir_all(self.run_dir.as_ref().unwrap()).unwrap();
        }
        let (x, mut y) = self.rows(&self.order(index));
        if self.is_hit("nan", index) {
            y[0] = f32::NAN;
        }
        Ok((index, x, y))
    }
}

impl Toy {
    fn error(&self, model: &Perceptron, x: &[f32], y: &[f32]) -> Tensor<2> {
        let device = model.out.weight.val().device();
        let x = Tensor::<1>::from_floats(x, &device).reshape([y.len(), INPUTS]);
        let y = Tensor::<1>::from_floats(y, &device).reshape([y.len(), 1]);
        (model.forward(x) - y).square()
    }
}

impl Task for Toy {
    type Config = ToyConfig;
    type Model = Perceptron;
    type Batch = (u64, Vec<f32>, Vec<f32>);
    type Input = Host<Self::Batch>;

    fn new(
        options: &ToyOptions,
        _data: &ToyData,
        model: &ToyModel,
        settings: &Settings,
        device: &Device,
    ) -> Result<(Self, Perceptron), Error> {
        device.seed(settings.seed);
        let network = Perceptron {
            hidden: LinearConfig::new(INPUTS, model.width).init(device),
            norm: LayerNormConfig::new(model.width).init(device),
            dropout: DropoutConfig::new(model.dropout).init(),
            out: LinearConfig::new(model.width, 1).init(device),
        };
        let faults = settings.data_dirs.iter().filter_map(|dir| {
            let (fault, index) = dir.to_str()?.split_once('=')?;
            Some((fault.to_owned(), index.parse().ok()?))
        });
        let rows = Rows {
            settings: settings.clone(),
            faults: faults.collect(),
            run_dir: settings
                .data_dirs
                .iter()
                .find_map(|dir| Some(dir.to_str()?.strip_prefix("run_dir:")?.into())),
        };
        let task = Self {
            rows,
            scores: options.scores.clone(),
            evaluations: Cell::new(0),
            in_training: Cell::new(None),
        };
        if task.rows.faults.contains_key("signal_at_start") {
            signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
        }
        if task.rows.faults.contains_key("device_at_start") {
            fail(device);
        }
        Ok((task, network))
    }

    fn describe(&self) -> String {
        format!("{N_TRAIN} synthetic rows")
    }

    fn data_hashes(&self) -> BTreeMap<String, String> {
        let hash = if self.rows.faults.contains_key("other_data") { "11" } else { "00" };
        BTreeMap::from([("rows".to_owned(), hash.to_owned())])
    }

    fn artifacts(&self) -> Value {
        serde_json::json!({ "rows": N_TRAIN })
    }

    fn batches_per_epoch(&self) -> u64 {
        self.rows.batches_per_epoch()
    }

    fn batch(&self, index: u64) -> Result<Self::Batch, Error> {
        self.rows.batch(index)
    }

    fn samples(&self, index: u64) -> Vec<String> {
        self.rows.order(index).iter().map(|row| format!("row {row}")).collect()
    }

    fn reader(&self) -> Option<Reader<Self::Batch>> {
        let rows = self.rows.clone();
        let ahead = rows.faults.contains_key("ahead");
        ahead.then(|| Box::new(move |index| rows.batch(index)) as Reader<Self::Batch>)
    }

    fn input(&self, batch: Self::Batch, _seed: u64, _device: &Device) -> Host<Self::Batch> {
        Host(batch)
    }

    fn loss(&self, model: &Perceptron, Host((index, x, y)): Host<Self::Batch>) -> Loss {
        self.in_training.set(Some(index));
        self.rows.signal_if("signal_in_loss", index);
        let mean = self.error(model, &x, &y).mean();
        if self.rows.is_hit("device_in_loss", index) {
            fail(&mean.device());
        }
        Loss { mean, weight: y.len() as f64 }
    }

    fn selection(&self) -> Selection {
        Selection { metric: "mse", goal: Goal::Minimise }
    }

    fn evaluate(&self, model: &Perceptron, split: Split) -> Result<Metrics, Error> {
        let first = match split {
            Split::Test if self.in_training.get().is_some() => {
                panic!("the trainer looks at the test split")
            }
            Split::Test => 2000,
            Split::Train | Split::Valid => 1000,
        };
        if let Some(index) = self.in_training.get() {
            self.rows.signal_if("signal_in_evaluation", index);
            if self.rows.is_hit("device_in_evaluation", index) {
                fail(&model.out.weight.val().device());
            }
        }
        let rows: Vec<usize> = (first..first + N_VALID).collect();
        let (x, y) = self.rows.rows(&rows);
        let errors = self.error(model, &x, &y).into_data();
        let evaluation = self.evaluations.replace(self.evaluations.get() + 1);
        let mse = errors.iter::<f64>().sum::<f64>() / N_VALID as f64;
        let mse = self.scores.get(evaluation).copied().unwrap_or(mse);
        Ok(Metrics::from([("mse".to_owned(), mse)]))
    }

    fn conclude(&self, model: &Perceptron) -> Result<Outcome, Error> {
        let rows: Vec<usize> = (2000..2000 + N_VALID).collect();
        let (x, y) = self.rows.rows(&rows);
        let errors = self.error(model, &x, &y).into_data();
        let mse = errors.iter::<f64>().sum::<f64>() / N_VALID as f64;
        if self.rows.faults.contains_key("device_in_conclusion") {
            fail(&model.out.weight.val().device());
        }
        if self.rows.faults.contains_key("conclude") {
            return Err(Error::Data {
                path: "rows".into(),
                message: "the test split is sealed".into(),
                hint: None,
            });
        }
        let table = Table {
            title: "Test".to_owned(),
            columns: vec!["model".to_owned(), "mse".to_owned()],
            rows: vec![vec!["perceptron".to_owned(), format!("{mse:.6}")]],
            ..Table::default()
        };
        let metrics = Metrics::from([("mse".to_owned(), mse)]);
        Ok(Outcome { metrics, tables: vec![table], ..Outcome::default() })
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        let rank = self.rows.faults.get("panic_at_the_end").map(|rank| format!("replica {rank}"));
        if rank.is_some() && rank.as_deref() == std::thread::current().name() {
            panic!("the last thing that a replica does");
        }
    }
}

/// Makes Burn panic.
fn fail(device: &Device) {
    let _ = Tensor::<2>::zeros([2, 3], device).matmul(Tensor::zeros([2, 3], device));
}

/// Four epochs of seven micro-batches, the last one smaller, in `dir/name`.
pub(crate) fn config(dir: &Path, name: &str, overrides: &[&str]) -> Config<ToyConfig> {
    let text = format!(
        "[run]\nname = \"{name}\"\ndir = {:?}\nseed = 5\n\
         [device]\nbackend = \"flex\"\n\
         [task.toy]\n\
         [data]\n\
         [model]\nwidth = 16\ndropout = 0.3\n\
         [optim.adamw]\nlr = 0.01\nweight_decay = 0.1\n\
         [schedule.epoch_decay]\n\
         [train]\nepochs = 4\nbatch_size = 8\n\
         [log]\nevery_steps = 3\n",
        dir.to_str().unwrap()
    );
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    match Config::parse(&text, "toy.toml", &overrides) {
        Ok(config) => config,
        Err(error) => panic!("{}", error.report()),
    }
}

/// Burn's CPU random numbers have one state per process, so whatever draws them, be it only for the
/// initial values of a model, does so alone.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a file of a test.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a test makes its own input")]
    std::fs::write(path, bytes)
}

/// Trains with faults such as `fail=9`.
pub(crate) fn run(
    config: &Config<ToyConfig>,
    resume: bool,
    faults: &[&str],
) -> Result<Summary, Error> {
    let _guard = alone();
    let data_dirs = faults.iter().map(PathBuf::from).collect();
    train::<Toy>(
        config,
        &TrainOptions { resume, show: Show::Quiet, data_dirs, ..TrainOptions::default() },
    )
}

pub(crate) fn checkpoints(config: &Config<ToyConfig>) -> Checkpoints {
    Checkpoints::of_run(&config.run.path())
}

/// Everything that two equal runs have in common: log lines without times, results, and for every
/// checkpoint its position, its weights by path and the weights after one more optimiser step,
/// which depend on every number of the optimiser's state.
#[derive(Debug, PartialEq)]
pub(crate) struct Trace {
    pub(crate) rows: Vec<Value>,
    pub(crate) result: String,
    pub(crate) checkpoints: Vec<(u64, String, Weights, Weights)>,
}

pub(crate) type Weights = BTreeMap<String, Vec<u32>>;

pub(crate) fn trace(config: &Config<ToyConfig>) -> Trace {
    let _guard = alone();
    let dir = config.run.path();
    let mut rows = logging::rows(&dir.join("metrics.jsonl")).unwrap();
    for row in rows.iter_mut().map(|row| row.as_object_mut().unwrap()) {
        row.remove("elapsed_secs").unwrap();
        row.remove("samples_per_sec");
    }
    let all = checkpoints(config);
    let checkpoints = all.steps().unwrap().into_iter().map(|step| {
        let checkpoint = all.load(step).unwrap();
        let device = ssm_train::device::open("flex", 0).unwrap().autodiff();
        let settings = config.settings(Vec::new());
        let (_, model) =
            Toy::new(&config.task, &config.data, &config.model, &settings, &device).unwrap();
        let model = checkpoint.model(model).unwrap();
        let optimizer = optim::build(&config.optim, &model, &device);
        let mut optimizer = checkpoint.optimizer(optimizer).unwrap();
        let weights = weights(&model);
        let mut position = serde_json::to_value(checkpoint.position()).unwrap();
        // Lines hold times, and those have different lengths.
        for metrics in ["/metrics", "/before_end/metrics"] {
            if let Some(metrics) = position.pointer_mut(metrics) {
                metrics.as_object_mut().unwrap().remove("bytes").unwrap();
            }
        }
        let mut grads = Constant { grads: GradientsParams::new() };
        model.visit(&mut grads);
        let next = optimizer.step(0.5, model, grads.grads);
        (step, position.to_string(), weights, self::weights(&next))
    });
    let checkpoints = checkpoints.collect();
    let result = std::fs::read_to_string(dir.join("result.json")).unwrap();
    Trace { rows, result, checkpoints }
}

/// Bits of every parameter by path.
pub(crate) fn weights(model: &Perceptron) -> Weights {
    #[derive(Default)]
    struct Collect {
        path: Vec<String>,
        weights: Weights,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let bits = param.val().into_data().iter::<f32>().map(f32::to_bits).collect();
            self.weights.insert(self.path.join("."), bits);
        }
    }
    let mut collect = Collect::default();
    model.visit(&mut collect);
    collect.weights
}

struct Constant {
    grads: GradientsParams,
}

impl ModuleVisitor for Constant {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let id: ParamId = param.id;
        self.grads.register(id, param.val().inner().zeros_like().add_scalar(0.25));
    }
}
