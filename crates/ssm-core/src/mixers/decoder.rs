//! Mixers for single tokens: what a model becomes when it writes.

use std::fmt::Debug;

use burn::tensor::{FloatDType, Tensor};

use crate::ops::decode::{copied, overwritten};

/// The residual stream of the newest token of every sequence.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The sum so far, `[batch, d_model]` in f32.
    pub x: Tensor<2>,
    /// The last layer's part, where the next one is to add it.
    pub add: Option<Tensor<2>>,
}

/// An RMSNorm: its weight, `[d_model]`, and its epsilon.
pub type Norm = (Tensor<1>, f64);

/// `x + mixer(norm(x))` for single tokens, with weights in the order in which it reads them, and with the
/// state.
///
/// The state is overwritten on devices of CubeCL, so that a captured graph of launches can be replayed.
pub trait Decoder: Debug {
    /// The newest token of every sequence.
    fn step(&mut self, stream: Stream) -> Stream;

    /// What is carried from step to step.
    fn carried(&mut self) -> Vec<&mut Tensor<3>>;

    /// A copy of what is carried.
    fn save(&mut self) -> Vec<Tensor<3>> {
        let carried = self.carried().into_iter();
        carried.map(|tensor| copied(tensor.clone(), FloatDType::F32)).collect()
    }

    /// Goes on from what was saved, in the same buffers.
    fn restore(&mut self, saved: &[Tensor<3>]) {
        for (tensor, saved) in self.carried().into_iter().zip(saved) {
            *tensor = overwritten(tensor.clone(), saved.clone());
        }
    }
}
