//! Baselines without attention: embedded instances, pooled by their mean or their maximum.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::init::Init;
use ssm_train::config::Issue;

use super::{Embedder, EmbedderConfig, Output};

/// Declares a baseline that differs from the other one in how it pools.
macro_rules! pooled {
    ($(#[$doc:meta])* $config:ident, $name:ident, $pool:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $config {
            /// From instances to what is pooled.
            pub embedder: EmbedderConfig,
        }

        impl $config {
            /// Everything that is wrong, with paths below `section`.
            #[must_use]
            pub fn validate(&self, section: &str) -> Vec<Issue> {
                self.embedder.validate(&format!("{section}.embedder"))
            }

            /// The model with fresh parameters.
            #[must_use]
            pub fn init(&self, d_feature: usize, n_outputs: usize, init: &mut Init) -> $name {
                $name {
                    embedder: self.embedder.init(d_feature, init),
                    classifier: init.linear(self.embedder.d_out(), n_outputs, true),
                }
            }
        }

        $(#[$doc])*
        #[derive(Module, Debug)]
        pub struct $name {
            embedder: Embedder,
            classifier: Linear,
        }

        impl $name {
            /// `[n_instances, d_feature]` to logits.
            #[must_use]
            pub fn forward(&self, x: Tensor<2>) -> Output {
                let pool: fn(Tensor<2>) -> Tensor<2> = $pool;
                let pooled = pool(self.embedder.forward(x)); // [1, d_out]
                Output { logits: self.classifier.forward(pooled).squeeze_dim(0), attention: None }
            }

            /// The device that the parameters are on.
            #[must_use]
            pub fn device(&self) -> Device {
                self.classifier.weight.val().device()
            }
        }
    };
}

pooled! {
    /// The mean of embedded instances: every instance counts the same.
    MeanPoolConfig, MeanPool, |x| x.mean_dim(0)
}

pooled! {
    /// The largest value of every embedded feature: one instance is enough.
    MaxPoolConfig, MaxPool, |x| x.max_dim(0)
}
