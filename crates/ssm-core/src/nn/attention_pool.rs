//! Attention pooling: a set of instances becomes their mean, weighted by what a small network says of each.
//!
//! Ilse, Tomczak & Welling 2018, arXiv:1802.04712.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Tensor, activation},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    init::Init,
    ops::linear::{linear, linear_loose},
};

/// What an [`AttentionPool`] is made of.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AttentionPoolConfig {
    /// Width of the scoring network, at least 1.
    pub d_attention: usize,
    /// Whether the score is gated (equation 9 of the paper) or plain (equation 8).
    pub gated: bool,
}

impl AttentionPoolConfig {
    /// A pool of instances of width `d_model` with freshly drawn parameters.
    pub fn init(&self, d_model: usize, init: &mut Init) -> AttentionPool {
        AttentionPool {
            value: init.linear(d_model, self.d_attention, true),
            gate: self.gated.then(|| init.linear(d_model, self.d_attention, true)),
            score: init.linear(self.d_attention, 1, true),
        }
    }
}

/// `sum_i a_i x_i` with `a = softmax_i(w . tanh(V x_i))`, or gated
/// `a = softmax_i(w . (tanh(V x_i) * sigmoid(U x_i)))`.
///
/// # Shapes
/// `[batch, n_instances, d_model]` in; `[batch, d_model]` and the weights `[batch, n_instances]` out.
///
/// # Numerics
/// The weights of a bag add up to 1; the largest score is subtracted before the exponential.
#[derive(Module, Debug)]
pub struct AttentionPool {
    value: Linear,
    gate: Option<Linear>,
    score: Linear,
}

impl AttentionPool {
    /// The weighted mean of the instances, and the weights.
    pub fn forward(&self, x: Tensor<3>) -> (Tensor<2>, Tensor<2>) {
        let mut hidden = linear(&self.value, x.clone()).tanh(); // [batch, n_instances, d_attention]
        if let Some(gate) = &self.gate {
            hidden = hidden * activation::sigmoid(linear(gate, x.clone()));
        }
        let scores = linear(&self.score, hidden).swap_dims(1, 2); // [batch, 1, n_instances]
        let weights = activation::softmax(scores, 2);
        // Instances are the matrix that the weights of their bag are multiplied with: Burn's own product of
        // a batch would take TF32 on CUDA.
        let bag = |tensor: &Tensor<3>, i: usize| tensor.clone().narrow(0, i, 1);
        let means = (0..weights.dims()[0]).map(|i| {
            linear_loose(bag(&x, i).squeeze_dim(0), None, bag(&weights, i)).squeeze_dim(1)
        });
        (Tensor::cat(means.collect(), 0), weights.squeeze_dim(1))
    }
}
