//! The seam between the public function and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use std::sync::Arc;

use burn::backend::{
    Backend, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

use crate::ops::primitive::Maybe;

/// The tensor arguments of the loss.
#[derive(ExtensionType, Clone, Debug)]
pub struct CrossEntropyPrimitives<B: Backend> {
    /// `[n, d_model]`
    pub hidden: FloatTensor<B>,
    /// `[n_rows, d_model]`
    pub weight: FloatTensor<B>,
}

/// The loss, and its gradients if they were asked for.
#[derive(ExtensionType, Clone, Debug)]
pub struct CrossEntropyResult<B: Backend> {
    /// `[1]`, f32
    pub loss: FloatTensor<B>,
    /// In the shape and type of `hidden`.
    #[extension_type]
    pub hidden: Maybe<B>,
    /// In the shape and type of `weight`.
    #[extension_type]
    pub weight: Maybe<B>,
}

/// What is not a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CrossEntropyOptions {
    /// Positions whose logits are there at a time, at least 1.
    pub chunk: usize,
    /// Whether gradients are computed.
    pub gradients: bool,
}

/// The loss of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CrossEntropyOps: Backend {
    /// Mean cross-entropy over the targets that are not negative. Accelerators read them from their own
    /// memory, `[n]` in i32, and take from `targets` only how many count.
    fn cross_entropy(
        #[extension_type] input: CrossEntropyPrimitives<Self>,
        targets: Arc<[i32]>,
        on_device: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> CrossEntropyResult<Self>;
}
