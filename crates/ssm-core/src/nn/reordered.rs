//! Any mixer in any order: there, mix, and back.

use burn::{module::Module, tensor::Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    init::Init,
    mixers::{AnyMixer, Mixer, MixerConfig},
    order::ScanOrder,
};

/// What a [`Reordered`] is made of.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ReorderedConfig {
    /// The mixer, which reads the new order.
    pub mixer: MixerConfig,
    /// The order.
    pub order: ScanOrder,
}

impl ReorderedConfig {
    /// The mixer with freshly drawn parameters in its order.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Reordered {
        Reordered { mixer: self.mixer.init(d_model, init), order: self.order.clone() }
    }
}

/// `undo(mixer(apply(x)))`.
///
/// # Shapes
/// `[batch, seq_len, d_model]` in and out; no norm and no residual.
#[derive(Module, Debug)]
pub struct Reordered {
    /// Reads the new order.
    pub mixer: AnyMixer,
    #[module(skip)]
    order: ScanOrder,
}

impl Reordered {
    /// Mixes whole sequences in the new order.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, seq_len, _] = x.dims();
        self.order.undo(self.mixer.forward(self.order.apply(x)), seq_len)
    }
}
