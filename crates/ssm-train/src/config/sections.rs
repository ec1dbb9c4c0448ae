//! The engine's own sections: their fields, units, ranges and defaults.

use std::path::PathBuf;

use burn::tensor::FloatDType;
use schemars::JsonSchema;

use serde::{Deserialize, Serialize};

/// `[run]`: where the results go and which random numbers are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run; its directory is `<dir>/<name>`. A single path component.
    /// Default: the name of the config file without its extension, so that two configs do not meet.
    pub name: String,
    /// Directory that holds the runs, relative to the working directory. Default `runs`.
    pub dir: PathBuf,
    /// Seed of everything random: initial values, data order, dropout; 0 to 2^63 - 1 (the integers
    /// of TOML). Default 0.
    pub seed: u64,
    /// Which fold of a task with several this run trains, counted from 0. Default: absent, all of
    /// them, each in a directory of its own below that of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fold: Option<usize>,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { name: String::new(), dir: PathBuf::from("runs"), seed: 0, fold: None }
    }
}

impl RunSection {
    /// Directory of the run.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }
}

/// `[device]`: what computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceSection {
    /// `auto`, or a backend that `ssm doctor` lists. Default `auto`: CUDA where there is such a
    /// device, else the processor.
    pub backend: String,
    /// Which of several equal devices, counted from 0; CPU backends have one. Default 0.
    pub index: usize,
    /// Devices that train together, >= 1: `index`, `index + 1` and so on; on a CPU threads of the one
    /// there is. Each holds the whole model and takes its share of the micro-batches of every step,
    /// of which `train.accumulate` says the number: the result is that of a single device. Default 1.
    pub replicas: usize,
    /// Whether the launches of a short step are recorded once and then replayed as one, on devices that
    /// can (CUDA graphs, prepared commands of Vulkan): the same numbers in less time. What a step needs
    /// of the device's memory is then not free for evaluations. Default true.
    pub record_steps: bool,
}

impl Default for DeviceSection {
    fn default() -> Self {
        Self { backend: "auto".into(), index: 0, replicas: 1, record_steps: true }
    }
}

/// `[optim.<variant>]`: how gradients become updates. Required: the choice changes every result.
///
/// Both are Kingma & Ba 2014, arXiv:1412.6980, with bias correction, and differ in the weight decay.
/// Defaults are PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Optim {
    /// Adam; weight decay is added to the gradient (L2), as in `torch.optim.Adam`.
    Adam {
        /// Base learning rate, > 0; the schedule multiplies it. Default 1e-3.
        #[serde(default = "default_lr")]
        lr: f64,
        /// Decay of the first and second moment per step, each in `[0, 1)`. Default `[0.9, 0.999]`.
        #[serde(default = "default_betas")]
        betas: [f64; 2],
        /// Added to the root of the second moment, > 0. Default 1e-8.
        #[serde(default = "default_eps")]
        eps: f64,
        /// Weight decay, >= 0. Default 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// AdamW; weight decay shrinks the weights apart from the gradient, as in `torch.optim.AdamW`.
    /// Loshchilov & Hutter 2017, arXiv:1711.05101.
    AdamW {
        /// Base learning rate, > 0; the schedule multiplies it. Default 1e-3.
        #[serde(default = "default_lr")]
        lr: f64,
        /// Decay of the first and second moment per step, each in `[0, 1)`. Default `[0.9, 0.999]`.
        #[serde(default = "default_betas")]
        betas: [f64; 2],
        /// Added to the root of the second moment, > 0. Default 1e-8.
        #[serde(default = "default_eps")]
        eps: f64,
        /// Weight decay, >= 0; a step shrinks a weight by `lr * weight_decay`. Default 0.01.
        #[serde(default = "default_decoupled_weight_decay")]
        weight_decay: f64,
    },
}

fn default_lr() -> f64 {
    1e-3
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_eps() -> f64 {
    1e-8
}

fn default_decoupled_weight_decay() -> f64 {
    0.01
}

impl Optim {
    /// The key under `[optim]`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
        }
    }

    /// Base learning rate.
    #[must_use]
    pub fn lr(&self) -> f64 {
        match *self {
            Self::Adam { lr, .. } | Self::AdamW { lr, .. } => lr,
        }
    }
}

/// `[train]`: how long, in which portions, and when to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Passes over the training split, >= 1. Exactly one of `epochs` and `steps` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Optimiser steps, >= 1. Exactly one of `epochs` and `steps` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Samples in a micro-batch, >= 1. Default 32 (Bengio 2012, arXiv:1206.5533).
    pub batch_size: usize,
    /// Samples at a time in an evaluation, >= 1; scores do not depend on it. Default `batch_size`,
    /// which fits wherever training fits.
    pub eval_batch_size: usize,
    /// Micro-batches in an optimiser step, >= 1; their gradients are averaged by sample weight, so
    /// a step sees `batch_size * accumulate` samples. Default 1.
    pub accumulate: usize,
    /// Largest global norm of the gradient, > 0; longer ones are scaled down to it.
    /// Default: absent, no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Evaluations in a row without improvement that end the run, >= 1. Default: absent, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Optimiser steps between evaluations, >= 1. Default: absent, at the end of every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every_steps: Option<u64>,
    /// What the backward pass computes again instead of finding it kept; takes a third more time and
    /// much less memory, for the same gradients. Default: absent, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// What matrix products and activations are computed in, `"f32"` or `"bf16"`. With `"bf16"`
    /// parameters, optimiser state, residual streams, norms, recurrent states, softmax and losses stay
    /// in f32: it is faster where a device computes bf16, and takes less memory. Default `"f32"`.
    pub precision: Precision,
}

/// What matrix products and activations are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Precision {
    /// 32-bit floats throughout.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 16-bit floats with the exponents of f32, between parameters and sums in f32.
    #[serde(rename = "bf16")]
    Bf16,
}

impl Precision {
    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of matrix products and activations, where it is not that of the parameters.
    #[must_use]
    pub fn activations(self) -> Option<FloatDType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(FloatDType::BF16),
        }
    }
}

/// What a backward pass may compute again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Everything inside each layer: only the inputs of layers are kept.
    Layer,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            epochs: None,
            steps: None,
            batch_size: 32,
            eval_batch_size: 32,
            accumulate: 1,
            clip_norm: None,
            patience: None,
            eval_every_steps: None,
            recompute: None,
            precision: Precision::F32,
        }
    }
}

/// `[checkpoint]`: what is kept of the run while it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {
    /// Optimiser steps between checkpoints, >= 1. Default: absent, at every evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Newest checkpoints that are kept besides the best, >= 1. Default 2: should the newest be
    /// damaged by the disk, one is left.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every_steps: None, keep: 2 }
    }
}

/// `[log]`: how much is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// Optimiser steps between two lines of progress, >= 1. Default 50.
    pub every_steps: u64,
    /// Whether every line is also written for TensorBoard, into `tensorboard/` of the run. Default
    /// false.
    pub tensorboard: bool,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { every_steps: 50, tensorboard: false }
    }
}
