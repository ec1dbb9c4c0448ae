//! The seam between the public function and the backends: one trait, one implementation each.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

use crate::ops::primitive::Maybe;

/// The tensor arguments of a scan.
#[derive(ExtensionType, Clone, Debug)]
pub struct ScanPrimitives<B: Backend> {
    /// `[batch, seq_len, d_inner]`
    pub u: FloatTensor<B>,
    /// `[batch, seq_len, d_inner]`
    pub delta: FloatTensor<B>,
    /// `[d_inner, d_state]`
    pub a: FloatTensor<B>,
    /// `[batch, seq_len, n_groups * d_state]`
    pub b: FloatTensor<B>,
    /// `[batch, seq_len, n_groups * d_state]`
    pub c: FloatTensor<B>,
    /// `[d_inner]`
    #[extension_type]
    pub d: Maybe<B>,
    /// `[batch, seq_len, d_inner]`
    #[extension_type]
    pub z: Maybe<B>,
    /// `[d_inner]`
    #[extension_type]
    pub delta_bias: Maybe<B>,
    /// `[batch, d_inner, d_state]`
    #[extension_type]
    pub initial_state: Maybe<B>,
    /// `[batch, seq_len]`, not zero where the state is cleared; has no gradient
    #[extension_type]
    pub resets: Maybe<B>,
}

/// Gradients in the shapes of [`ScanPrimitives`].
#[derive(ExtensionType, Clone, Debug)]
pub struct ScanGradPrimitives<B: Backend> {
    /// Gradient of `u`.
    pub u: FloatTensor<B>,
    /// Gradient of `delta`.
    pub delta: FloatTensor<B>,
    /// Gradient of `a`.
    pub a: FloatTensor<B>,
    /// Gradient of `b`.
    pub b: FloatTensor<B>,
    /// Gradient of `c`.
    pub c: FloatTensor<B>,
    /// Gradient of `d`.
    #[extension_type]
    pub d: Maybe<B>,
    /// Gradient of `z`.
    #[extension_type]
    pub z: Maybe<B>,
    /// Gradient of `delta_bias`.
    #[extension_type]
    pub delta_bias: Maybe<B>,
    /// Gradient of `initial_state`.
    #[extension_type]
    pub initial_state: Maybe<B>,
}

/// What changes the kernel without being a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScanOptions {
    /// Whether `delta` passes through softplus.
    pub delta_softplus: bool,
    /// Whether the forward pass keeps what the backward pass needs.
    pub save_states: bool,
}

/// The selective scan of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait SelectiveScanOps: Backend {
    /// Returns `y`, the final state `[batch, d_inner, d_state]`, and the saved states in a layout of
    /// the backend's choice (with no elements unless `options.save_states`).
    fn selective_scan_fwd(
        #[extension_type] input: ScanPrimitives<Self>,
        options: ScanOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of `sum(y * grad_y) + sum(final_state * grad_final)`.
    fn selective_scan_bwd(
        #[extension_type] input: ScanPrimitives<Self>,
        states: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        #[extension_type] grad_final: Maybe<Self>,
        options: ScanOptions,
    ) -> ScanGradPrimitives<Self>;
}
