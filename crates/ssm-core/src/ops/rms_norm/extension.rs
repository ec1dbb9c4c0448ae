//! The seam between the public function and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

/// Gradients of the arguments.
#[derive(ExtensionType, Clone, Debug)]
pub struct RmsNormGradPrimitives<B: Backend> {
    /// In the shape of `x`.
    pub x: FloatTensor<B>,
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
    /// The rows of `x` over their root mean square, times `weight`.
    fn rms_norm_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// Gradients of `sum(y * grad_y)`.
    fn rms_norm_bwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        epsilon: f32,
    ) -> RmsNormGradPrimitives<Self>;
}
