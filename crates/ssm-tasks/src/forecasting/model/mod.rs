//! Forecasters: one file and one registry line each.

mod dlinear;
mod s_mamba;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::init::Init;
use ssm_train::config::Issue;

pub use self::{
    dlinear::{DLinear, DLinearConfig},
    s_mamba::{SMamba, SMambaConfig, SMambaLayer},
};
use super::window::Input;

/// Upper bound of every length and width in a configuration: larger values are typing errors.
pub(super) const N_MAX: usize = 65536;

/// Upper bound of the number of parameters, three times the largest published selective SSM: sizes that
/// are valid one by one may multiply to more than any memory holds.
pub(super) const N_PARAMS_MAX: usize = 10_000_000_000;

/// Declares the forecasters: their section in `[model]`, configuration and module.
macro_rules! forecasters {
    ($($(#[$doc:meta])* $section:literal => $variant:ident($config:ident);)*) => {
        /// The `[model]` section: which forecaster, and its sizes.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum ForecasterConfig {
            $($(#[$doc])* #[serde(rename = $section)] $variant($config),)*
        }

        impl ForecasterConfig {
            /// Key of the chosen forecaster below `[model]`.
            #[must_use]
            pub fn section(&self) -> &'static str {
                match self { $(Self::$variant(_) => $section,)* }
            }

            /// Everything that is wrong with the sizes.
            #[must_use]
            pub fn validate(&self) -> Vec<Issue> {
                match self {
                    $(Self::$variant(config) => config.validate(concat!("model.", $section)),)*
                }
            }

            /// The forecaster with fresh parameters, drawn from `init`.
            #[must_use]
            pub fn init(
                &self,
                lookback_len: usize,
                pred_len: usize,
                init: &mut Init,
            ) -> Forecaster {
                match self {
                    $(Self::$variant(config) => {
                        Forecaster::$variant(config.init(lookback_len, pred_len, init))
                    })*
                }
            }

            /// Number of parameters of a valid configuration.
            #[must_use]
            pub fn n_params(&self, lookback_len: usize, pred_len: usize) -> usize {
                match self { $(Self::$variant(config) => config.n_params(lookback_len, pred_len),)* }
            }

            /// Whether the forecaster reads calendar features.
            #[must_use]
            pub fn reads_calendar(&self) -> bool {
                match self { $(Self::$variant(_) => $variant::READS_CALENDAR,)* }
            }
        }

        /// A forecaster: `[batch, n_variates, lookback_len]` to `[batch, n_variates, pred_len]`.
        ///
        /// The number of variates is no part of the parameters.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant)]
        pub enum Forecaster {
            $($(#[$doc])* $variant($variant),)*
        }

        impl Forecaster {
            /// Predicts every variate; values are standardised on both sides.
            #[must_use]
            pub fn forward(&self, input: Input) -> Tensor<3> {
                match self { $(Self::$variant(model) => model.forward(input),)* }
            }

            /// The device that the parameters are on.
            #[must_use]
            pub fn device(&self) -> Device {
                match self { $(Self::$variant(model) => model.device(),)* }
            }
        }
    };
}

forecasters! {
    /// Two selective SSMs over the variates. Wang et al. 2024, arXiv:2403.11144.
    "s_mamba" => SMamba(SMambaConfig);
    /// Trend and remainder, one linear map each. Zeng et al. 2022, arXiv:2205.13504.
    "dlinear" => DLinear(DLinearConfig);
}
