//! Bag models: one file and one registry line each. Every one maps the instances of a bag to logits,
//! of classes or of hazards, and most say how much each instance counts.

mod abmil;
mod embedder;
mod mamba_mil;
mod pooling;
mod xavier;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::init::Init;
use ssm_train::config::Issue;

pub use self::{
    abmil::{Abmil, AbmilConfig},
    embedder::{Embedder, EmbedderConfig},
    mamba_mil::{Initialisation, MambaMil, MambaMilConfig},
    pooling::{MaxPool, MaxPoolConfig, MeanPool, MeanPoolConfig},
};

/// Upper bound of every width in a configuration: larger values are typing errors.
const N_MAX: usize = 65536;

/// What a model says of one bag.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[n_outputs]`: one logit a class, or one a time bin.
    pub logits: Tensor<1>,
    /// `[n_instances]`, adding up to 1, for models that attend.
    pub attention: Option<Tensor<1>>,
}

/// Declares the bag models: their section in `[model]`, configuration and module.
macro_rules! bag_models {
    ($($(#[$doc:meta])* $section:literal => $variant:ident($config:ident);)*) => {
        /// The `[model]` section: which bag model, and its sizes.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum BagModelConfig {
            $($(#[$doc])* #[serde(rename = $section)] $variant($config),)*
        }

        impl BagModelConfig {
            /// Key of the chosen model below `[model]`.
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

            /// The model with fresh parameters, drawn from `init`.
            #[must_use]
            pub fn init(&self, d_feature: usize, n_outputs: usize, init: &mut Init) -> BagModel {
                match self {
                    $(Self::$variant(config) => {
                        BagModel::$variant(config.init(d_feature, n_outputs, init))
                    })*
                }
            }
        }

        /// A bag model: `[n_instances, d_feature]` to logits.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant)]
        pub enum BagModel {
            $($(#[$doc])* $variant($variant),)*
        }

        impl BagModel {
            /// Logits of one bag, `x`: `[n_instances, d_feature]`, at least one instance.
            #[must_use]
            pub fn forward(&self, x: Tensor<2>) -> Output {
                match self { $(Self::$variant(model) => model.forward(x),)* }
            }

            /// The device that the parameters are on.
            #[must_use]
            pub fn device(&self) -> Device {
                match self { $(Self::$variant(model) => model.device(),)* }
            }
        }
    };
}

bag_models! {
    /// The mean of embedded instances.
    "mean_pool" => MeanPool(MeanPoolConfig);
    /// The largest value of every embedded feature.
    "max_pool" => MaxPool(MaxPoolConfig);
    /// Attention-based pooling. Ilse et al. 2018, arXiv:1802.04712.
    "abmil" => Abmil(AbmilConfig);
    /// Selective SSMs over the instances, then attention pooling. Yang et al. 2024, arXiv:2403.06800.
    "mamba_mil" => MambaMil(MambaMilConfig);
}

/// Issues of widths that have to be 1..=65536.
fn width_issues(section: &str, widths: &[(&str, usize)]) -> Vec<Issue> {
    let wrong = widths.iter().filter(|(_, width)| !(1..=N_MAX).contains(width));
    let issue = |(name, width): &(&str, usize)| {
        Issue::range(format!("{section}.{name}"), &format!("1..={N_MAX}"), width)
    };
    wrong.map(issue).collect()
}

/// Issue of a dropout that has to be in `[0, 1)`.
fn dropout_issue(section: &str, dropout: f64) -> Option<Issue> {
    let path = format!("{section}.dropout");
    let wrong = !(0.0..1.0).contains(&dropout);
    wrong.then(|| Issue::range(path, "at least 0 and less than 1", dropout))
}
