//! The convolution on host memory: primitives to slices, the SIMD kernel, slices to primitives.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::{TensorMetadata, tensor::FloatTensor};

use super::{
    extension::{CausalConv1dOps, ConvGradPrimitives, ConvPrimitives},
    host::{ConvDims, ConvSlices},
    simd,
};
use crate::ops::primitive::HostBackend;

/// Reads the primitives as slices and calls `f` on them.
fn with_slices<B: HostBackend, R>(
    input: ConvPrimitives<B>,
    silu: bool,
    f: impl FnOnce(ConvDims, &ConvSlices<'_, f32>) -> R,
) -> R {
    let [batch, seq_len, channels] = input.x.shape().dims();
    let [_, d_conv] = input.weight.shape().dims();
    let (x, weight) = (B::values(input.x), B::values(input.weight));
    let bias = B::maybe_values(input.bias);
    let initial_state = B::maybe_values(input.initial_state);
    let resets = B::maybe_values(input.resets);
    let slices = ConvSlices {
        x: x.as_ref(),
        weight: weight.as_ref(),
        bias: bias.as_ref().map(AsRef::as_ref),
        initial_state: initial_state.as_ref().map(AsRef::as_ref),
        resets: resets.as_ref().map(AsRef::as_ref),
        silu,
    };
    f(ConvDims { batch, seq_len, channels, d_conv }, &slices)
}

fn forward<B: HostBackend>(input: ConvPrimitives<B>, silu: bool) -> FloatTensor<B> {
    let like = input.x.clone();
    let shape: [usize; 3] = like.shape().dims();
    B::tensor(with_slices(input, silu, simd::forward), shape, &like)
}

fn backward<B: HostBackend>(
    input: ConvPrimitives<B>,
    grad_y: FloatTensor<B>,
    silu: bool,
) -> ConvGradPrimitives<B> {
    let types = input.clone();
    let grad_y = B::values(grad_y);
    let (dims, grads) =
        with_slices(input, silu, |dims, x| (dims, simd::backward(dims, x, grad_y.as_ref())));
    let ConvDims { batch, seq_len, channels, d_conv } = dims;
    ConvGradPrimitives {
        x: B::tensor(grads.x, [batch, seq_len, channels], &types.x),
        weight: B::tensor(grads.weight, [channels, d_conv], &types.weight),
        bias: types.bias.into_option().map(|like| B::tensor(grads.bias, [channels], &like)).into(),
        initial_state: types
            .initial_state
            .into_option()
            .map(|like| B::tensor(grads.initial_state, [batch, d_conv - 1, channels], &like))
            .into(),
    }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl CausalConv1dOps for $backend {
            fn causal_conv1d_fwd(input: ConvPrimitives<Self>, silu: bool) -> FloatTensor<Self> {
                forward(input, silu)
            }

            fn causal_conv1d_bwd(
                input: ConvPrimitives<Self>,
                grad_y: FloatTensor<Self>,
                silu: bool,
            ) -> ConvGradPrimitives<Self> {
                backward(input, grad_y, silu)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);
