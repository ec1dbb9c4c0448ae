//! The seam between the public functions and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

use crate::ops::primitive::Maybe;

/// The tensor arguments of a layer norm.
#[derive(ExtensionType, Clone, Debug)]
pub struct LayerNormPrimitives<B: Backend> {
    /// `[.., width]`
    pub x: FloatTensor<B>,
    /// What is added to `x` first, in its shape.
    #[extension_type]
    pub residual: Maybe<B>,
    /// `[width]`
    pub weight: FloatTensor<B>,
    /// `[width]`
    #[extension_type]
    pub bias: Maybe<B>,
}

/// Gradients of the arguments.
#[derive(ExtensionType, Clone, Debug)]
pub struct LayerNormGradPrimitives<B: Backend> {
    /// Of the sum, in the shape and type of `x`.
    pub x: FloatTensor<B>,
    /// `[width]`
    pub weight: FloatTensor<B>,
    /// `[width]`, if there is a bias.
    #[extension_type]
    pub bias: Maybe<B>,
}

/// Layer norm of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait LayerNormOps: Backend {
    /// The rows of the sum with mean 0 and variance 1, times `weight`, plus `bias`.
    fn layer_norm_fwd(
        #[extension_type] input: LayerNormPrimitives<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// Gradients of `sum(y * grad_y)`.
    fn layer_norm_bwd(
        #[extension_type] input: LayerNormPrimitives<Self>,
        grad_y: FloatTensor<Self>,
        epsilon: f32,
    ) -> LayerNormGradPrimitives<Self>;
}
