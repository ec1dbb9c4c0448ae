//! A mixer run forwards and another one run backwards, merged.
//!
//! S-Mamba (Wang et al. 2024, arXiv:2403.11144) sums two separate mixers; Vision Mamba (Zhu et al.
//! 2024, arXiv:2401.09417) and its followers average.

use burn::{module::Module, tensor::Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    init::Init,
    mixers::{AnyMixer, Mixer, MixerConfig},
    ops::pointwise::reverse,
};

/// How the two directions become one.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    /// Their sum (S-Mamba).
    #[default]
    Sum,
    /// Their mean (Vision Mamba).
    Mean,
}

/// What a [`Bidirectional`] is made of.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BidirectionalConfig {
    /// The mixer of each direction; they share no parameters.
    pub mixer: MixerConfig,
    /// How the directions are merged. Default sum.
    #[serde(default)]
    pub merge: Merge,
}

impl BidirectionalConfig {
    /// Two mixers with freshly drawn parameters, the forward one first.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Bidirectional {
        Bidirectional {
            forward: self.mixer.init(d_model, init),
            backward: self.mixer.init(d_model, init),
            merge: match self.merge {
                Merge::Sum => 1.0,
                Merge::Mean => 0.5,
            },
        }
    }
}

/// `merge(forward(x), flip(backward(flip(x))))`, flipped along the sequence.
///
/// # Shapes
/// `[batch, seq_len, d_model]` in and out; no norm and no residual.
#[derive(Module, Debug)]
pub struct Bidirectional {
    /// Reads the sequence from its start.
    pub forward: AnyMixer,
    /// Reads the sequence from its end.
    pub backward: AnyMixer,
    #[module(skip)]
    merge: f64,
}

impl Bidirectional {
    /// Mixes whole sequences in both directions.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let backward = reverse(self.backward.forward(reverse(x.clone())));
        let sum = self.forward.forward(x) + backward;
        if self.merge == 1.0 { sum } else { sum * self.merge }
    }
}
