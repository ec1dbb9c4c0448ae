//! One residual layer: `x + mixer(norm(x))`, then `x + mlp(norm2(x))` if there is a feed-forward part.

use burn::{
    module::Module,
    nn::{RmsNorm, RmsNormConfig},
    tensor::{Bool, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mlp, MlpConfig, dropout};
use crate::{
    init::Init,
    mixers::{AnyMixer, Mixer, MixerConfig, MixerError, MixerState},
    ops::rms_norm::rms_norm,
};

/// Epsilon of every RMSNorm (state-spaces/mamba, `MixerModel`).
pub(super) const NORM_EPSILON: f64 = 1e-5;

/// The rows of `x` through `norm`: its parameters in one fused pass ([`rms_norm`]).
pub(super) fn normed(norm: &RmsNorm, x: Tensor<3>) -> Tensor<3> {
    rms_norm(x, norm.gamma.val(), norm.epsilon)
}

/// What a [`Block`] is made of.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// The mixer.
    pub mixer: MixerConfig,
    /// The feed-forward part; absent in Mamba's own language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp: Option<MlpConfig>,
}

impl BlockConfig {
    /// A block with freshly drawn parameters.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Block {
        let norm = |init: &Init| {
            RmsNormConfig::new(d_model).with_epsilon(NORM_EPSILON).init(init.device())
        };
        Block {
            norm: norm(init),
            mixer: self.mixer.init(d_model, init),
            norm2: self.mlp.as_ref().map(|_| norm(init)),
            mlp: self.mlp.as_ref().map(|mlp| mlp.init(d_model, init)),
            dropout: 0.0,
        }
    }
}

/// A pre-norm residual layer around a mixer.
///
/// # Shapes
/// `[batch, seq_len, d_model]` in and out.
#[derive(Module, Debug)]
pub struct Block {
    norm: RmsNorm,
    mixer: AnyMixer,
    norm2: Option<RmsNorm>,
    mlp: Option<Mlp>,
    /// Share of what a part adds to the residual stream that training drops.
    #[module(skip)]
    dropout: f64,
}

impl Block {
    /// From now on training drops this share, `[0, 1)`, of what mixer and feed-forward part add.
    pub fn drop_outputs(&mut self, share: f64) {
        self.dropout = share;
    }

    /// Whole sequences from an empty past.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let mixed = self.mixer.forward(normed(&self.norm, x.clone()));
        self.feed_forward(x + dropout(mixed, self.dropout))
    }

    /// Continues from `state` and leaves the state after the last step in it.
    pub fn prefill(
        &self,
        x: Tensor<3>,
        resets: Option<Tensor<2, Bool>>,
        state: &mut MixerState,
    ) -> Tensor<3> {
        let mixed = self.mixer.prefill(normed(&self.norm, x.clone()), resets, state);
        self.feed_forward(x + dropout(mixed, self.dropout))
    }

    /// The mixer's state before the first step.
    ///
    /// # Errors
    /// If the mixer is not causal.
    pub fn init_state(&self, batch: usize) -> Result<MixerState, MixerError> {
        self.mixer.init_state(batch)
    }

    /// Multiplies every output projection by `factor`.
    pub fn scale_output(mut self, factor: f64) -> Self {
        self.mixer = self.mixer.scale_output(factor);
        self.mlp = self.mlp.map(|mlp| mlp.scale_output(factor));
        self
    }

    /// All that this block is made of, unless it has a feed-forward part.
    pub(super) fn norm_and_mixer(&self) -> Option<(&RmsNorm, &AnyMixer)> {
        self.mlp.is_none().then_some((&self.norm, &self.mixer))
    }

    fn feed_forward(&self, x: Tensor<3>) -> Tensor<3> {
        match (&self.norm2, &self.mlp) {
            (Some(norm), Some(mlp)) => {
                x.clone() + dropout(mlp.forward(normed(norm, x)), self.dropout)
            }
            _ => x,
        }
    }
}
