//! A stack of blocks with a final norm: the body of every model that mixes one sequence.

use burn::{
    module::Module,
    nn::{RmsNorm, RmsNormConfig},
    tensor::{Bool, FloatDType, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Block, BlockConfig, MlpConfig, block::NORM_EPSILON, residual::Residual};
use crate::{
    init::Init,
    mixers::{MixerConfig, MixerError, MixerState, State},
    ops::recompute::recompute,
};

/// Sizes of a [`Backbone`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// Residual width, at least 1.
    pub d_model: usize,
    /// Number of blocks, at least 1.
    pub n_layer: usize,
    /// The mixer of every block.
    pub mixer: MixerConfig,
    /// The feed-forward part of every block, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp: Option<MlpConfig>,
}

impl BackboneConfig {
    /// A stack with freshly drawn parameters; output projections start divided by the square root
    /// of the number of residual additions (`_init_weights`, state-spaces/mamba@e9594ce).
    pub fn init(&self, init: &mut Init) -> Backbone {
        let block = BlockConfig { mixer: self.mixer.clone(), mlp: self.mlp.clone() };
        let additions = self.n_layer * if self.mlp.is_some() { 2 } else { 1 };
        let factor = (additions as f64).powf(-0.5);
        let layers = (0..self.n_layer)
            .map(|_| block.init(self.d_model, init).scale_output(factor))
            .collect();
        let norm_f =
            RmsNormConfig::new(self.d_model).with_epsilon(NORM_EPSILON).init(init.device());
        Backbone { layers, norm_f, recompute: false, branches: None }
    }
}

/// `n_layer` blocks and a final RMSNorm.
///
/// # Shapes
/// `[batch, seq_len, d_model]` in and out.
///
/// # Numerics
/// In one type, or mixed ([`Backbone::compute_in`]): stream, norms and parameters in f32, mixers and what
/// comes out in bf16.
#[derive(Module, Debug)]
pub struct Backbone {
    layers: Vec<Block>,
    norm_f: RmsNorm,
    /// Whether the backward pass of [`Backbone::forward`] runs each block again.
    #[module(skip)]
    recompute: bool,
    /// What blocks compute in, if it is not the type of the residual stream.
    #[module(skip)]
    branches: Option<FloatDType>,
}

/// The states of all blocks.
#[derive(Clone, Debug)]
pub struct BackboneState {
    /// One state a block, from the input side.
    pub layers: Vec<MixerState>,
}

impl State for BackboneState {
    fn detach(self) -> Self {
        Self { layers: self.layers.into_iter().map(State::detach).collect() }
    }

    fn stack(states: Vec<Self>) -> Self {
        let n_layer = states.first().map_or(0, |state| state.layers.len());
        let of_layer =
            |layer: usize| State::stack(states.iter().map(|s| s.layers[layer].clone()).collect());
        Self { layers: (0..n_layer).map(of_layer).collect() }
    }

    fn select(&self, rows: &[usize]) -> Self {
        Self { layers: self.layers.iter().map(|state| state.select(rows)).collect() }
    }
}

impl Backbone {
    /// From now on the backward pass of [`Backbone::forward`] runs each block again instead of
    /// keeping what is in it.
    pub fn recompute_layers(&mut self) {
        self.recompute = true;
    }

    /// From now on blocks compute in `dtype` between norms that read the residual stream, and the output
    /// is in `dtype`. Parameters, stream and norms stay what they are.
    pub fn compute_in(&mut self, dtype: FloatDType) {
        self.branches = Some(dtype);
        self.layers.iter_mut().for_each(|block| block.compute_in(dtype));
    }

    /// What blocks compute in, if it is not the type of the residual stream.
    pub fn branches(&self) -> Option<FloatDType> {
        self.branches
    }

    /// From now on training drops this share, `[0, 1)`, of what each block adds to the residual stream.
    ///
    /// Not together with [`Backbone::recompute_layers`]: the second pass would draw other masks.
    pub fn drop_outputs(&mut self, share: f64) {
        self.layers.iter_mut().for_each(|block| block.drop_outputs(share));
    }

    /// Whole sequences from an empty past.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        if self.recompute {
            let again = |x, block: &Block| recompute(block, x, Block::forward);
            let x = self.layers.iter().fold(x, again);
            return Residual::new(x, self.branches).normed(&self.norm_f);
        }
        let mut stream = Residual::new(x, self.branches);
        self.layers.iter().for_each(|block| block.run(&mut stream));
        stream.normed(&self.norm_f)
    }

    /// All that this backbone is made of.
    pub(super) fn layers_and_norm(&self) -> (&[Block], &RmsNorm) {
        (&self.layers, &self.norm_f)
    }

    /// The states before the first step.
    ///
    /// # Errors
    /// If a mixer is not causal.
    pub fn init_state(&self, batch: usize) -> Result<BackboneState, MixerError> {
        let layers = self.layers.iter().map(|block| block.init_state(batch));
        Ok(BackboneState { layers: layers.collect::<Result<_, _>>()? })
    }

    /// Continues from `state` and leaves the states after the last step in it. Where `resets`
    /// (`[batch, seq_len]`) is set, a packed sequence begins.
    pub fn prefill(
        &self,
        x: Tensor<3>,
        resets: Option<Tensor<2, Bool>>,
        state: &mut BackboneState,
    ) -> Tensor<3> {
        let mut stream = Residual::new(x, self.branches);
        for (block, state) in self.layers.iter().zip(&mut state.layers) {
            block.continue_from(&mut stream, resets.clone(), state);
        }
        stream.normed(&self.norm_f)
    }

    /// One step in O(1): `[batch, d_model]` in and out.
    pub fn step(&self, x: Tensor<2>, state: &mut BackboneState) -> Tensor<2> {
        self.prefill(x.unsqueeze_dim(1), None, state).squeeze_dim(1)
    }
}
