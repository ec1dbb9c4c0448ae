//! The seam between the public function and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::{
    backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor},
    tensor::DType,
};

use crate::ops::primitive::Maybe;

/// Gradients of the arguments.
#[derive(ExtensionType, Clone, Debug)]
pub struct RmsNormGradPrimitives<B: Backend> {
    /// In the shape of `x`.
    pub x: FloatTensor<B>,
    /// `[width]`
    pub weight: FloatTensor<B>,
}

/// Gradients of the arguments of a sum and its norm.
#[derive(ExtensionType, Clone, Debug)]
pub struct AddRmsNormGradPrimitives<B: Backend> {
    /// In the shape and type of `x`.
    pub x: FloatTensor<B>,
    /// The same values in the type of `branch`.
    pub branch: FloatTensor<B>,
    /// `[width]`
    pub weight: FloatTensor<B>,
}

/// RMSNorm of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait RmsNormOps: Backend {
    /// The rows of `x` over their root mean square, times `weight`, in `dtype`.
    fn rms_norm_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// Gradients of `sum(y * grad_y)`.
    fn rms_norm_bwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        epsilon: f32,
    ) -> RmsNormGradPrimitives<Self>;

    /// `x + branch` in the type of `x`, and its norm in the type of `branch`.
    fn add_rms_norm_fwd(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of `sum(y * grad_y)`, and of `sum(sum * grad_sum)` if that is there; `branch_dtype` is
    /// the type of `branch`.
    fn add_rms_norm_bwd(
        sum: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        #[extension_type] grad_sum: Maybe<Self>,
        epsilon: f32,
        branch_dtype: DType,
    ) -> AddRmsNormGradPrimitives<Self>;
}
