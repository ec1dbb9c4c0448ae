//! One residual layer: `x + mixer(norm(x))`, then `x + mlp(norm2(x))` if there is a feed-forward part.

use burn::{
    module::Module,
    nn::{RmsNorm, RmsNormConfig},
    tensor::{Bool, FloatDType, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mlp, MlpConfig, dropout, residual::Residual};
use crate::{
    init::Init,
    mixers::{AnyMixer, Mixer, MixerConfig, MixerError, MixerState},
};

/// Epsilon of every RMSNorm (state-spaces/mamba, `MixerModel`).
pub(super) const NORM_EPSILON: f64 = 1e-5;

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
            branches: None,
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
    /// What mixer and feed-forward part compute in, if it is not the type of the residual stream.
    #[module(skip)]
    branches: Option<FloatDType>,
    /// Share of what a part adds to the residual stream that training drops.
    #[module(skip)]
    dropout: f64,
}

impl Block {
    /// From now on mixer and feed-forward part compute in `dtype`, whatever the residual stream is in.
    pub fn compute_in(&mut self, dtype: FloatDType) {
        self.branches = Some(dtype);
    }

    /// From now on training drops this share, `[0, 1)`, of what mixer and feed-forward part add.
    pub fn drop_outputs(&mut self, share: f64) {
        self.dropout = share;
    }

    /// Whole sequences from an empty past.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let mut stream = Residual::new(x, self.branches);
        self.run(&mut stream);
        stream.into_inner()
    }

    /// Continues from `state` and leaves the state after the last step in it.
    pub fn prefill(
        &self,
        x: Tensor<3>,
        resets: Option<Tensor<2, Bool>>,
        state: &mut MixerState,
    ) -> Tensor<3> {
        let mut stream = Residual::new(x, self.branches);
        self.continue_from(&mut stream, resets, state);
        stream.into_inner()
    }

    /// [`Block::forward`] on a stream that goes on.
    pub(super) fn run(&self, stream: &mut Residual) {
        let mixed = self.mixer.forward(stream.normed(&self.norm));
        self.feed_forward(stream, mixed);
    }

    /// [`Block::prefill`] on a stream that goes on.
    pub(super) fn continue_from(
        &self,
        stream: &mut Residual,
        resets: Option<Tensor<2, Bool>>,
        state: &mut MixerState,
    ) {
        let mixed = self.mixer.prefill(stream.normed(&self.norm), resets, state);
        self.feed_forward(stream, mixed);
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

    fn feed_forward(&self, stream: &mut Residual, mixed: Tensor<3>) {
        stream.add(dropout(mixed, self.dropout));
        if let (Some(norm), Some(mlp)) = (&self.norm2, &self.mlp) {
            let y = mlp.forward(stream.normed(norm));
            stream.add(dropout(y, self.dropout));
        }
    }
}
