//! The single seam between the engine and a science.
//!
//! The engine knows steps, gradients, checkpoints and files. A [`Task`] knows data, a model, a loss
//! and a score. Nothing else passes between them, so a new task never edits the engine.

use std::{collections::BTreeMap, path::PathBuf};

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    config::{Issue, Settings},
    error::Error,
    report::{Figure, Table},
    result::RunResult,
};

/// A named part of the data. While it trains the trainer passes [`Split::Valid`] only; the test split
/// is for [`Task::conclude`] and for scoring a finished run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The samples that gradients come from.
    Train,
    /// The samples that select a checkpoint and stop a run.
    Valid,
    /// The samples that the reported score comes from.
    Test,
}

/// Which direction of a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Smaller is better (errors, losses).
    Minimise,
    /// Larger is better (accuracy, AUC).
    Maximise,
}

/// The metric that selects the best checkpoint and drives early stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// A key of the [`Metrics`] that [`Task::evaluate`] returns.
    pub metric: &'static str,
    /// Its better direction.
    pub goal: Goal,
}

/// Scores by name, each a sum over samples divided by a count, in f64.
pub type Metrics = BTreeMap<String, f64>;

/// The mean loss of one micro-batch and how many samples it stands for.
pub struct Loss {
    /// Mean over the micro-batch, shape `[1]`.
    pub mean: Tensor<1>,
    /// Number of samples (or tokens) in the mean: accumulated gradients are averaged by it.
    pub weight: f64,
}

/// What a loss reads of a micro-batch, in the memory of the device that computes it.
///
/// The launches of a small model's step take the host longer to order than the device to do. Where a loss
/// reads tensors and nothing else, the engine records them once, and from then on writes the tensors of
/// each micro-batch into the memory of the first and replays the record.
pub trait Input: Clone {
    /// Whether the loss is a pure function of these tensors and of the model: what else an input holds has
    /// to follow from the shapes of its tensors. By default it does.
    fn is_recordable(&self) -> bool {
        true
    }

    /// Itself, every tensor sent through `mapper`, in an order that depends on shapes only.
    #[must_use]
    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self;
}

/// What [`Input::map_tensors`] sends tensors through; each comes back in its shape and type.
pub trait InputMapper {
    /// Any float type.
    fn float<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D>;

    /// Any integer type.
    fn int<const D: usize>(&mut self, tensor: Tensor<D, Int>) -> Tensor<D, Int>;
}

impl<const D: usize> Input for Tensor<D> {
    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        mapper.float(self)
    }
}

impl<const D: usize> Input for Tensor<D, Int> {
    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        mapper.int(self)
    }
}

impl<T: Input> Input for Option<T> {
    fn is_recordable(&self) -> bool {
        self.as_ref().is_none_or(Input::is_recordable)
    }

    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        self.map(|input| input.map_tensors(mapper))
    }
}

/// A micro-batch that a loss reads in the memory of the host: its steps are not recorded.
#[derive(Clone, Debug)]
pub struct Host<T>(pub T);

impl<T: Clone> Input for Host<T> {
    fn is_recordable(&self) -> bool {
        false
    }

    fn map_tensors<M: InputMapper>(self, _mapper: &mut M) -> Self {
        self
    }
}

/// What a sample, the unit of [`Loss::weight`], is to a model: for throughput that can be compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Tokens that the model reads for a sample.
    pub tokens: f64,
    /// Floating-point operations of a sample's part in a step, forwards and backwards, as the model needs
    /// them: what is computed again to save memory does not count.
    pub flops: f64,
}

/// How fast a model trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    /// Tokens a second.
    pub tokens_per_sec: f64,
    /// Share of the devices' peak that the model's operations are (model FLOPs utilisation), where the
    /// peak is known.
    pub mfu: Option<f64>,
}

impl Work {
    /// Of so many samples a second, on devices that together reach `peak` operations a second.
    #[must_use]
    pub fn throughput(&self, samples_per_sec: f64, peak: Option<f64>) -> Throughput {
        Throughput {
            tokens_per_sec: self.tokens * samples_per_sec,
            mfu: peak.map(|peak| self.flops * samples_per_sec / peak),
        }
    }
}

impl std::fmt::Display for Throughput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} tokens/s", self.tokens_per_sec)?;
        self.mfu.map_or(Ok(()), |mfu| write!(f, "  mfu {:.1} %", 100.0 * mfu))
    }
}

/// What a finished run has to show: scores on the test split, tables and figures for the report.
#[derive(Clone, Default)]
pub struct Outcome {
    /// Scores on the test split.
    pub metrics: Metrics,
    /// Tables for the terminal and the report; the first one sums the run up.
    pub tables: Vec<Table>,
    /// Figures for the report.
    pub figures: Vec<Figure>,
    /// What [`Task::combine`] needs of a fold besides its scores; written to `result.json`.
    pub details: serde_json::Value,
}

/// The task's own sections of a configuration file: `[task.<NAME>]`, `[data]` and `[model]`.
pub trait TaskConfig: Sized + 'static {
    /// Key under `[task]`.
    const NAME: &'static str;
    /// Fields of `[task.<NAME>]`.
    type Options: Serialize + DeserializeOwned + JsonSchema + Clone + Send + 'static;
    /// Fields of `[data]`; usually an externally tagged registry (`[data.ett]`).
    type Data: Serialize + DeserializeOwned + JsonSchema + Clone + Send + 'static;
    /// Fields of `[model]`; usually an externally tagged registry (`[model.NAME]`).
    type Model: Serialize + DeserializeOwned + JsonSchema + Clone + Send + 'static;

    /// Everything that is wrong with the values, before any file or device is touched.
    fn validate(options: &Self::Options, data: &Self::Data, model: &Self::Model) -> Vec<Issue>;

    /// Whether the micro-batches of a step can be computed by different devices. By default they can.
    fn shares_micro_batches(options: &Self::Options) -> bool {
        let _ = options;
        true
    }

    /// Whether the loss draws random numbers on the device, as dropout does: replicas in threads then
    /// compute their forward passes one after the other. By default it may.
    fn draws_numbers(model: &Self::Model) -> bool {
        let _ = model;
        true
    }

    /// Whether the model has layers for `train.recompute = "layer"` to act on. By default it has not,
    /// and the setting is refused.
    fn has_layers(model: &Self::Model) -> bool {
        let _ = model;
        false
    }

    /// Leaves out all layers but the first `n_layers`, and of each sequence what comes after `n_tokens`
    /// where these options say how long it is: what is measured of a model that takes too long as a
    /// whole. By default there is nothing to leave out.
    fn reduce(
        options: &mut Self::Options,
        data: &mut Self::Data,
        model: &mut Self::Model,
        n_layers: usize,
        n_tokens: usize,
    ) -> Whole {
        let _ = (options, data, model, n_layers, n_tokens);
        Whole { n_layers: 1, n_tokens: None }
    }

    /// What to do instead of `train.precision = "bf16"`, if the model computes in f32 only; `None` if it
    /// heeds the setting. By default it does not, and the setting is refused.
    fn f32_only(model: &Self::Model) -> Option<String> {
        let _ = model;
        Some("leave `train.precision` at `f32`".to_owned())
    }
}

/// What [`TaskConfig::reduce`] made less of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Layers that there were.
    pub n_layers: usize,
    /// Tokens that are left of a sequence and that there were, where its length is a choice.
    pub n_tokens: Option<[usize; 2]>,
}

impl Whole {
    /// Keeps the first of the layers; a sequence is as long as it was.
    pub fn keep(layers: &mut usize, n_layers: usize) -> Self {
        let whole = *layers;
        *layers = whole.min(n_layers);
        Self { n_layers: whole, n_tokens: None }
    }
}

/// Makes the micro-batches of a [`Task`] on a thread of its own.
pub type Reader<B> = Box<dyn FnMut(u64) -> Result<B, Error> + Send>;

/// Data, model, loss and score of one science.
///
/// Randomness and data order are pure functions of the seed and the step, so a checkpoint needs no
/// loader state and a resumed run sees what an uninterrupted run would have seen.
pub trait Task: Sized + 'static {
    /// The configuration sections that this task reads.
    type Config: TaskConfig;
    /// What is trained.
    type Model: Module;
    /// Host data of one micro-batch.
    type Batch: Send + 'static;
    /// What [`Task::loss`] reads of it: a struct of tensors, or [`Host`] of the batch.
    type Input: Input;

    /// Number of folds: runs that differ in their splits and are reported together. One by default.
    ///
    /// With more than one, [`Task::new`] is told by `settings.fold` which splits to make.
    ///
    /// # Errors
    /// Data that has to be read to know the number, and cannot be.
    fn n_folds(
        options: &<Self::Config as TaskConfig>::Options,
        data: &<Self::Config as TaskConfig>::Data,
        data_dirs: &[PathBuf],
    ) -> Result<usize, Error> {
        let _ = (options, data, data_dirs);
        Ok(1)
    }

    /// What all folds came to, in their order. By default every score of every fold, with mean and
    /// standard deviation.
    ///
    /// # Errors
    /// Details of a fold that cannot be understood.
    fn combine(
        options: &<Self::Config as TaskConfig>::Options,
        data: &<Self::Config as TaskConfig>::Data,
        folds: &[RunResult],
    ) -> Result<Outcome, Error> {
        let _ = (options, data);
        Ok(crate::folds::scores(folds))
    }

    /// Reads the data and builds the model, its initial values drawn from `settings.seed`.
    ///
    /// # Errors
    /// Missing or malformed data, and sizes that do not fit the data.
    fn new(
        options: &<Self::Config as TaskConfig>::Options,
        data: &<Self::Config as TaskConfig>::Data,
        model: &<Self::Config as TaskConfig>::Model,
        settings: &Settings,
        device: &Device,
    ) -> Result<(Self, Self::Model), Error>;

    /// One line on the data for the run header: source, rows, windows, splits.
    fn describe(&self) -> String;

    /// SHA-256 of every data file that was read, by file name.
    fn data_hashes(&self) -> BTreeMap<String, String>;

    /// What a later use of the model needs beside its weights (scalers, column names, vocabularies);
    /// stored with the run. Nothing by default.
    fn artifacts(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Number of micro-batches in one pass over the training split.
    fn batches_per_epoch(&self) -> u64;

    /// Micro-batch number `index` of a run, counted from 0 over all epochs; pure in (settings, index).
    ///
    /// # Errors
    /// Data that cannot be read.
    fn batch(&self, index: u64) -> Result<Self::Batch, Error>;

    /// What the samples of micro-batch `index` are called, for a message that has to name them: a file
    /// with its rows, a slide. By default they have no names.
    fn samples(&self, index: u64) -> Vec<String> {
        let _ = index;
        Vec::new()
    }

    /// The same as [`Task::batch`], for another thread: the engine then makes the next micro-batch while
    /// the device computes with the last one, and holds one more of them. For tasks that read files as
    /// they train; by default there is none.
    fn reader(&self) -> Option<Reader<Self::Batch>> {
        None
    }

    /// Brings a micro-batch to the device. What the loss draws at random, it draws from `seed`, or from
    /// the generator of the device, which was seeded with it.
    fn input(&self, batch: Self::Batch, seed: u64, device: &Device) -> Self::Input;

    /// Mean loss of a micro-batch; gradients flow to every parameter of `model`.
    fn loss(&self, model: &Self::Model, input: Self::Input) -> Loss;

    /// What a sample takes, for a task whose samples are made of tokens. By default it is not said.
    fn work(&self, model: &Self::Model) -> Option<Work> {
        let _ = model;
        None
    }

    /// The metric of the validation split that selects checkpoints.
    fn selection(&self) -> Selection;

    /// Scores on a split, over every sample in order, equal for any batch size.
    ///
    /// `model` holds no autodiff graph.
    ///
    /// # Errors
    /// Data that cannot be read, or a device failure.
    fn evaluate(&self, model: &Self::Model, split: Split) -> Result<Metrics, Error>;

    /// Scores on the test split with the tables and figures of the report; called once a run.
    ///
    /// # Errors
    /// As [`Task::evaluate`].
    fn conclude(&self, model: &Self::Model) -> Result<Outcome, Error>;
}
