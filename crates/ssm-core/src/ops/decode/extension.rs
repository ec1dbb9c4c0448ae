//! The seam between the public functions and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::{
    backend::{
        Backend, ExtensionType, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::FloatDType,
};

use crate::ops::primitive::Maybe;

/// `W norm(x) + add` for each of a few sequences.
#[derive(ExtensionType, Clone, Debug)]
pub struct ProductPrimitives<B: Backend> {
    /// `[batch, >= d_in]`, of which the first columns are read
    pub x: FloatTensor<B>,
    /// `[d_out, d_in]`
    pub weight: FloatTensor<B>,
    /// Weight of an RMSNorm of `x`, `[d_in]`
    #[extension_type]
    pub norm: Maybe<B>,
    /// `[batch, d_out]`
    #[extension_type]
    pub add: Maybe<B>,
}

/// A depthwise causal convolution and the inputs that it has seen.
#[derive(ExtensionType, Clone, Debug)]
pub struct ConvPrimitives<B: Backend> {
    /// `[channels, d_conv]`
    pub taps: FloatTensor<B>,
    /// `[channels]`
    #[extension_type]
    pub bias: Maybe<B>,
    /// `[batch, d_conv - 1, channels]`, oldest first, f32
    pub past: FloatTensor<B>,
}

/// A step of the recurrence.
#[derive(ExtensionType, Clone, Debug)]
pub struct StatePrimitives<B: Backend> {
    /// `[batch, >= d_inner]`, of which the first columns are read
    pub u: FloatTensor<B>,
    /// `[batch, >= d_inner]`, of which the last columns are read
    pub z: FloatTensor<B>,
    /// `[batch, dt_rank + 2 d_state]`
    pub projected: FloatTensor<B>,
    /// `[d_inner, dt_rank]`
    pub dt_weight: FloatTensor<B>,
    /// `a_log`, bias of the step size and `D`, `[d_inner, d_state + FURTHER]`
    pub params: FloatTensor<B>,
    /// `[batch, d_inner, d_state]`, f32
    pub state: FloatTensor<B>,
}

/// The tokens that greedy decoding chose.
#[derive(ExtensionType, Clone, Debug)]
pub struct ChosenPrimitives<B: Backend> {
    /// The newest of every sequence, `[batch]`, i32
    pub newest: IntTensor<B>,
    /// A ring of the last ones, `[batch, capacity]`, i32
    pub ring: IntTensor<B>,
    /// How many were chosen so far, `[batch]`, i32
    pub count: IntTensor<B>,
}

/// Single steps of a backend.
///
/// What is carried from step to step (`past`, `state`, `to`, the chosen tokens) is *overwritten* on
/// devices of CubeCL and returned as the same buffer, so that a captured graph of launches goes on where
/// it stopped; host backends return new tensors. The caller owns these buffers alone.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait DecodeOps: Backend {
    /// `[batch, d_out]` in f32.
    fn decode_product(
        #[extension_type] input: ProductPrimitives<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// [`DecodeOps::decode_product`], whose first columns then go through the convolution and SiLU; also
    /// returns `past`.
    fn decode_product_conv(
        #[extension_type] input: ProductPrimitives<Self>,
        #[extension_type] conv: ConvPrimitives<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Convolution and SiLU of the first columns of `x`, `[batch, channels]` in the dtype of `x`; also
    /// returns `past`.
    fn decode_conv(
        x: FloatTensor<Self>,
        #[extension_type] conv: ConvPrimitives<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `[batch, d_inner]` in the dtype of `u`; also returns `state`.
    fn decode_state(
        #[extension_type] input: StatePrimitives<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `x + add` in f32, which may take the buffer of `x`, and its RMSNorm in `dtype`.
    fn decode_add_norm(
        x: FloatTensor<Self>,
        #[extension_type] add: Maybe<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The most likely of the first `n_vocab` tokens, `logits`: `[batch, >= n_vocab]`.
    fn decode_argmax(
        logits: FloatTensor<Self>,
        #[extension_type] chosen: ChosenPrimitives<Self>,
        n_vocab: usize,
    ) -> ChosenPrimitives<Self>;

    /// A copy of `from` in row-major order and in `dtype`, in the buffer of `to` if there is one.
    fn decode_copy(
        from: FloatTensor<Self>,
        #[extension_type] to: Maybe<Self>,
        dtype: FloatDType,
    ) -> FloatTensor<Self>;

    /// The integers of `from`, `[n]`, in the buffer of `to`, both i32.
    fn decode_set(to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self>;
}
