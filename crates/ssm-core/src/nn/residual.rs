//! The residual stream of a stack of blocks, and the edges between its type and that of the branches.

use burn::{
    nn::RmsNorm,
    tensor::{FloatDType, Tensor},
};

use crate::ops::rms_norm::{add_rms_norm, rms_norm_as};

/// What blocks read through their norms and add to.
///
/// The last addition waits for the next norm, which does both in one pass over memory. In mixed precision
/// the stream stays in f32 and what is read from it is in the type of the branches.
pub(super) struct Residual {
    x: Tensor<3>,
    /// Belongs to the stream, but is not added yet.
    branch: Option<Tensor<3>>,
    dtype: FloatDType,
}

impl Residual {
    /// The stream at its beginning; its branches compute in `dtype`, by default in its own type.
    pub(super) fn new(x: Tensor<3>, dtype: Option<FloatDType>) -> Self {
        let dtype = dtype.unwrap_or_else(|| x.dtype().into());
        Self { x, branch: None, dtype }
    }

    /// The stream through a norm.
    pub(super) fn normed(&mut self, norm: &RmsNorm) -> Tensor<3> {
        let (weight, epsilon) = (norm.gamma.val(), norm.epsilon);
        let Some(branch) = self.branch.take() else {
            return rms_norm_as(self.x.clone(), weight, epsilon, self.dtype);
        };
        let (sum, y) = add_rms_norm(self.x.clone(), branch, weight, epsilon);
        self.x = sum;
        y
    }

    /// Adds the output of a branch.
    pub(super) fn add(&mut self, branch: Tensor<3>) {
        if let Some(before) = self.branch.replace(branch) {
            self.x = sum(self.x.clone(), before);
        }
    }

    /// The stream with everything that was added to it.
    pub(super) fn into_inner(self) -> Tensor<3> {
        match self.branch {
            Some(branch) => sum(self.x, branch),
            None => self.x,
        }
    }
}

fn sum(x: Tensor<3>, branch: Tensor<3>) -> Tensor<3> {
    let dtype = FloatDType::from(x.dtype());
    x + branch.cast(dtype)
}

/// `f(x)` computed in `dtype`, from and to the type of `x`; without a `dtype` just that.
pub fn compute_in<const D: usize>(
    dtype: Option<FloatDType>,
    x: Tensor<D>,
    f: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let Some(dtype) = dtype else { return f(x) };
    let outside = FloatDType::from(x.dtype());
    f(x.cast(dtype)).cast(outside)
}
