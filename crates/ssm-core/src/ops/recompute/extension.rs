//! The seam between the public function and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use burn::backend::{Backend, DispatchTensor, backend_extension, tensor::FloatTensor};

use crate::ops::primitive::Maybe;

/// From the gradient of the output to those of the input, of the parameters, and of the other input
/// if there is one.
type Run = Box<dyn FnOnce(DispatchTensor) -> Vec<DispatchTensor> + Send>;

/// The second pass: runs once, in the backward pass.
#[derive(Clone)]
pub struct Again(Arc<Mutex<Option<Run>>>);

impl Again {
    /// What to do with the gradient of the output.
    pub fn new(run: impl FnOnce(DispatchTensor) -> Vec<DispatchTensor> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(run)))))
    }

    /// Does it; `None` if it was done before.
    pub fn run(self, grad_y: DispatchTensor) -> Option<Vec<DispatchTensor>> {
        // Taken out of the lock first: what runs may take long, and may fail.
        let run = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        run.map(|run| run(grad_y))
    }
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

/// Outputs whose gradients are computed by running something again.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait RecomputeOps: Backend {
    /// `y`, which was computed from `x`, `other` and `params` without autodiff.
    fn recompute(
        x: FloatTensor<Self>,
        #[extension_type] other: Maybe<Self>,
        params: FloatTensor<Self>,
        y: FloatTensor<Self>,
        again: Again,
    ) -> FloatTensor<Self>;
}
