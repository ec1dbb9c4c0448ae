//! ABMIL: embedded instances, pooled by attention.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::{
    init::Init,
    nn::{AttentionPool, AttentionPoolConfig},
};
use ssm_train::config::Issue;

use super::{Embedder, EmbedderConfig, Output, width_issues};

/// `[model.abmil]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AbmilConfig {
    /// From instances to what is pooled.
    pub embedder: EmbedderConfig,
    /// Width of the attention network, 1..=65536. Default 64 (classic data of the paper).
    pub d_attention: usize,
    /// Whether attention is gated. Default false.
    pub gated: bool,
}

impl Default for AbmilConfig {
    fn default() -> Self {
        Self { embedder: EmbedderConfig::default(), d_attention: 64, gated: false }
    }
}

impl AbmilConfig {
    /// Everything that is wrong, with paths below `section`.
    #[must_use]
    pub fn validate(&self, section: &str) -> Vec<Issue> {
        let mut issues = self.embedder.validate(&format!("{section}.embedder"));
        issues.extend(width_issues(section, &[("d_attention", self.d_attention)]));
        issues
    }

    /// The model with fresh parameters.
    #[must_use]
    pub fn init(&self, d_feature: usize, n_outputs: usize, init: &mut Init) -> Abmil {
        let d_model = self.embedder.d_out();
        let pool = AttentionPoolConfig { d_attention: self.d_attention, gated: self.gated };
        Abmil {
            embedder: self.embedder.init(d_feature, init),
            pool: pool.init(d_model, init),
            classifier: init.linear(d_model, n_outputs, true),
        }
    }
}

/// Attention-based deep multiple instance learning.
///
/// # Source
/// Ilse, Tomczak & Welling 2018, arXiv:1802.04712; logits of all classes instead of the one of the
/// positive class, so that it serves any number of classes.
#[derive(Module, Debug)]
pub struct Abmil {
    embedder: Embedder,
    pool: AttentionPool,
    classifier: Linear,
}

impl Abmil {
    /// `[n_instances, d_feature]` to logits and attention.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Output {
        let (pooled, attention) = self.pool.forward(self.embedder.forward(x).unsqueeze_dim(0));
        Output {
            logits: self.classifier.forward(pooled).squeeze_dim(0),
            attention: Some(attention.squeeze_dim(0)),
        }
    }

    /// The device that the parameters are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.classifier.weight.val().device()
    }
}
