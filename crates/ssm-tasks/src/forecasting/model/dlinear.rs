//! DLinear: a moving average and what it leaves, each mapped to the horizon by one linear map.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor, module::avg_pool1d, ops::AvgPoolOptions},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::init::Init;
use ssm_train::config::Issue;

use super::N_MAX;
use crate::forecasting::window::Input;

/// `[model.dlinear]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DLinearConfig {
    /// Rows of the moving average, odd, 1..=65535. Default 25, as published.
    pub kernel_len: usize,
}

impl Default for DLinearConfig {
    fn default() -> Self {
        Self { kernel_len: 25 }
    }
}

impl DLinearConfig {
    /// Everything that is wrong, with paths below `section`.
    #[must_use]
    pub fn validate(&self, section: &str) -> Vec<Issue> {
        if self.kernel_len.is_multiple_of(2) || self.kernel_len >= N_MAX {
            let path = format!("{section}.kernel_len");
            return vec![Issue::range(path, "an odd number, 1..=65535", self.kernel_len)];
        }
        Vec::new()
    }

    /// Number of parameters: two maps with biases.
    #[must_use]
    pub fn n_params(&self, lookback_len: usize, pred_len: usize) -> usize {
        2 * (lookback_len + 1) * pred_len
    }

    /// The model with fresh parameters: both maps as `torch.nn.Linear` starts.
    #[must_use]
    pub fn init(&self, lookback_len: usize, pred_len: usize, init: &mut Init) -> DLinear {
        DLinear {
            seasonal: init.linear(lookback_len, pred_len, true),
            trend: init.linear(lookback_len, pred_len, true),
            kernel_len: self.kernel_len,
        }
    }
}

/// `y = W_s (x - m) + b_s + W_t m + b_t`, where `m` is the moving average of `x` over time.
///
/// The maps are shared by all variates. The ends of the series are repeated, so that `m` is as long
/// as `x`. Calendar features are not read.
///
/// # Source
/// Zeng et al. 2022, arXiv:2205.13504, and its repository LTSF-Linear.
#[derive(Module, Debug)]
pub struct DLinear {
    seasonal: Linear,
    trend: Linear,
    kernel_len: usize,
}

impl DLinear {
    pub(super) const READS_CALENDAR: bool = false;

    /// `[batch, n_variates, lookback_len]` to `[batch, n_variates, pred_len]`.
    #[must_use]
    pub fn forward(&self, input: Input) -> Tensor<3> {
        let trend = self.moving_average(input.x.clone());
        self.seasonal.forward(input.x - trend.clone()) + self.trend.forward(trend)
    }

    /// The device that the parameters are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.trend.weight.val().device()
    }

    /// Mean of the `kernel_len` rows around each row.
    fn moving_average(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, _, lookback_len] = x.dims();
        let margin = self.kernel_len / 2;
        if margin == 0 {
            return x;
        }
        let first = x.clone().narrow(2, 0, 1).repeat_dim(2, margin);
        let last = x.clone().narrow(2, lookback_len - 1, 1).repeat_dim(2, margin);
        let padded = Tensor::cat(vec![first, x, last], 2);
        avg_pool1d(padded, AvgPoolOptions::new([self.kernel_len]).with_stride([1]))
    }
}
