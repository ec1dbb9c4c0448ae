//! What Adam carries from step to step.

use burn::{
    optim::{AdaptiveMomentumState, RecordState, StateSink, StateSource},
    tensor::{Device, Tensor},
};

use crate::device;

/// First and second moment of a gradient, and the number of steps that they are of.
///
/// In a checkpoint it is Burn's `AdaptiveMomentumState`. Burn reads that onto the best device that the
/// binary has a backend for, be it CUDA on a machine without such a device, and the step moves it to
/// where the weights are. This one is read onto the processor.
#[derive(Clone)]
pub struct Moments<const D: usize> {
    /// Number of steps.
    pub time: usize,
    /// Moving average of the gradient.
    pub moment_1: Tensor<D>,
    /// Moving average of its square.
    pub moment_2: Tensor<D>,
}

impl<const D: usize> Moments<D> {
    /// From its parts.
    pub fn new(time: usize, moment_1: Tensor<D>, moment_2: Tensor<D>) -> Self {
        Self { time, moment_1, moment_2 }
    }

    /// On another device.
    pub fn to_device(self, device: &Device) -> Self {
        let Self { time, moment_1, moment_2 } = self;
        Self::new(time, moment_1.to_device(device), moment_2.to_device(device))
    }
}

impl<const D: usize> RecordState for Moments<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        let Self { time, moment_1, moment_2 } = self.clone();
        AdaptiveMomentumState::new(time, moment_1, moment_2).state_flatten(prefix, out);
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        // A binary without a backend for processors has a single backend to read onto.
        let processor = device::processor().and_then(|name| device::open(name, 0).ok());
        let device = processor.as_ref().unwrap_or(device);
        let state = AdaptiveMomentumState::state_unflatten(prefix, src, device)?;
        Some(Self::new(state.time, state.moment_1, state.moment_2))
    }
}
