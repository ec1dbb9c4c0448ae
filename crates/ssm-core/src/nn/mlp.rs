//! Position-wise feed-forward layers.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Tensor, activation},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    init::Init,
    ops::{linear::linear, pointwise::gelu},
};

/// Width and form of an [`Mlp`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Hidden width, at least 1.
    pub d_hidden: usize,
    /// `silu(gate) * value` (gated) instead of `gelu(value)` (plain). Default true, as in
    /// `GatedMLP` of state-spaces/mamba.
    #[serde(default = "gated")]
    pub gated: bool,
}

fn gated() -> bool {
    true
}

impl MlpConfig {
    /// A layer with freshly drawn parameters.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Mlp {
        let d_in = if self.gated { 2 * self.d_hidden } else { self.d_hidden };
        Mlp {
            fc1: init.linear(d_model, d_in, !self.gated),
            fc2: init.linear(self.d_hidden, d_model, !self.gated),
        }
    }
}

/// Feed-forward layer: `fc2(gelu(fc1(x)))`, or gated `fc2(value * silu(gate))`.
///
/// # Shapes
/// `[batch, seq_len, d_model]` in and out.
#[derive(Module, Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// Applies the layer to every position.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [d_hidden, _] = self.fc2.weight.dims();
        let hidden = linear(&self.fc1, x);
        let hidden = if hidden.dims()[2] == d_hidden {
            gelu(hidden)
        } else {
            let value = hidden.clone().narrow(2, 0, d_hidden);
            value * activation::silu(hidden.narrow(2, d_hidden, d_hidden))
        };
        linear(&self.fc2, hidden)
    }

    /// Multiplies the output projection by `factor`.
    pub fn scale_output(mut self, factor: f64) -> Self {
        // Detached: a scaled leaf must stay a leaf.
        self.fc2.weight = Param::from_tensor((self.fc2.weight.val() * factor).detach());
        self
    }
}
