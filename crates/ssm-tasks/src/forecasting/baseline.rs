//! Baselines that are scored beside every model: same windows, same scaler, same scores.

use burn::{
    module::Module,
    optim::{AdamConfig, GradientsParams},
    tensor::{Device, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::init::Init;
use ssm_train::{
    device,
    error::Error,
    task::{Split, Task},
};

use super::{
    ForecastingTask,
    model::{DLinear, DLinearConfig},
    score::Scores,
    window::{Input, Purpose, permutation},
};

/// A forecaster to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BaselineKind {
    /// Repeats the last value of each variate; nothing to train.
    #[serde(rename = "last_value")]
    LastValue,
    /// [`DLinear`] with its published kernel, trained when the run concludes.
    #[serde(rename = "dlinear")]
    DLinear,
}

impl BaselineKind {
    /// Number of parameters.
    pub(super) fn n_params(self, task: &ForecastingTask) -> usize {
        let windows = task.windows();
        match self {
            Self::LastValue => 0,
            Self::DLinear => {
                DLinearConfig::default().n_params(windows.lookback_len(), windows.pred_len())
            }
        }
    }

    /// Name in configurations and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LastValue => "last_value",
            Self::DLinear => "dlinear",
        }
    }

    /// Scores of the baseline on a split, trained first if it has parameters.
    pub(super) fn score(self, task: &ForecastingTask, split: Split) -> Result<Scores, Error> {
        match self {
            Self::LastValue => {
                let device = task.device().clone().inner();
                task.score(split, &device, |input| last_value(input, task.windows().pred_len()))
            }
            Self::DLinear => {
                let model = train_dlinear(task)?;
                task.score(split, &model.device(), |input| model.forward(input))
            }
        }
    }
}

/// Repeats the last look-back value of every variate `pred_len` times.
pub(super) fn last_value(input: Input, pred_len: usize) -> Tensor<3> {
    let [_, _, lookback_len] = input.x.dims();
    input.x.narrow(2, lookback_len - 1, 1).repeat_dim(2, pred_len)
}

/// Adam's learning rate in the first two epochs; it halves in every later one.
const LR: f64 = 1e-3;
const MAX_EPOCHS: u64 = 20;
const PATIENCE: u32 = 3;

/// Where a baseline trains: on the processor, whose few milliseconds of arithmetic a step would be as many
/// of launches on a GPU, so that a whole run could wait for it. And a baseline does not differ by device.
fn trains_on(task: &ForecastingTask) -> Result<Device, Error> {
    let device = task.device().clone().inner();
    match device::processor() {
        Some(processor) if !device::is_host(&device) => device::open(processor, 0),
        _ => Ok(device),
    }
}

/// Trains [`DLinear`] on the training windows, the way S-Mamba's protocol trains any model: Adam on
/// the mean squared error, as many batches an epoch as the run has, in an order of their own, the rate
/// halved per epoch, the weights with the best validation error kept, at most 20 epochs.
///
/// # Errors
/// [`Error::Device`] if the device fails, [`Error::Data`] if no epoch has a finite validation error.
fn train_dlinear(task: &ForecastingTask) -> Result<DLinear, Error> {
    let device = trains_on(task)?.autodiff();
    let windows = task.windows();
    let mut init = Init::new(task.settings().seed, &device);
    let config = DLinearConfig::default();
    let mut model = config.init(windows.lookback_len(), windows.pred_len(), &mut init);
    let mut optimizer = AdamConfig::new().with_epsilon(1e-8).init();
    let mut best: Option<(f64, DLinear)> = None;
    let mut waited = 0;
    for epoch in 0..MAX_EPOCHS {
        let lr = LR * 0.5_f64.powi(epoch.saturating_sub(1) as i32);
        let n_windows = windows.n_windows(Split::Train);
        let order = permutation(n_windows, task.settings().seed, Purpose::Baseline, epoch);
        // As many as the run takes: a last batch of one window would decide how an epoch ends.
        let batches =
            order.chunks(task.settings().batch_size).take(task.batches_per_epoch() as usize);
        for indices in batches {
            let batch = windows.gather(Split::Train, indices);
            let predicted = model.forward(windows.input(&batch, &device));
            let error = task.select_targets(predicted) - windows.target(&batch, &device);
            let gradients = GradientsParams::from_grads(error.square().mean().backward(), &model);
            model = optimizer.step(lr, model, gradients);
        }
        let candidate = model.valid();
        let scores =
            task.score(Split::Valid, &candidate.device(), |input| candidate.forward(input))?;
        tracing::info!("baseline dlinear: epoch {}, validation mse {:.4}", epoch + 1, scores.mse());
        let better = best.as_ref().is_none_or(|(mse, _)| scores.mse() < *mse);
        if scores.mse().is_finite() && better {
            best = Some((scores.mse(), candidate));
            waited = 0;
        } else {
            waited += 1;
            if waited >= PATIENCE {
                break;
            }
        }
    }
    best.map(|(_, model)| model).ok_or_else(|| {
        // Weights that were never trained must not pass for a trained baseline.
        let message = "baseline `dlinear`: the validation error of no epoch is finite";
        let hint = "look for extreme values in the data, or leave `dlinear` out of \
                    `task.forecasting.baselines`";
        task.data_error(message, hint)
    })
}
