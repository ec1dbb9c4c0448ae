//! The seam between the public function and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

use crate::ops::primitive::Maybe;

/// The tensor arguments of a convolution.
#[derive(ExtensionType, Clone, Debug)]
pub struct ConvPrimitives<B: Backend> {
    /// `[batch, seq_len, channels]`
    pub x: FloatTensor<B>,
    /// `[channels, d_conv]`
    pub weight: FloatTensor<B>,
    /// `[channels]`
    #[extension_type]
    pub bias: Maybe<B>,
    /// `[batch, d_conv - 1, channels]`
    #[extension_type]
    pub initial_state: Maybe<B>,
    /// `[batch, seq_len]`, not zero where the past is hidden; has no gradient
    #[extension_type]
    pub resets: Maybe<B>,
}

/// Gradients in the shapes of [`ConvPrimitives`].
#[derive(ExtensionType, Clone, Debug)]
pub struct ConvGradPrimitives<B: Backend> {
    /// Gradient of `x`.
    pub x: FloatTensor<B>,
    /// Gradient of `weight`.
    pub weight: FloatTensor<B>,
    /// Gradient of `bias`.
    #[extension_type]
    pub bias: Maybe<B>,
    /// Gradient of `initial_state`.
    #[extension_type]
    pub initial_state: Maybe<B>,
}

/// The causal convolution of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CausalConv1dOps: Backend {
    /// Returns `y`, `[batch, seq_len, channels]`.
    fn causal_conv1d_fwd(
        #[extension_type] input: ConvPrimitives<Self>,
        silu: bool,
    ) -> FloatTensor<Self>;

    /// Gradients of `sum(y * grad_y)`.
    fn causal_conv1d_bwd(
        #[extension_type] input: ConvPrimitives<Self>,
        grad_y: FloatTensor<Self>,
        silu: bool,
    ) -> ConvGradPrimitives<Self>;
}
