//! Root mean square layer normalisation in one pass over memory each way.
//!
//! Burn's module is five operations forwards and about fifteen backwards, each with an intermediate
//! tensor that autodiff keeps; here nothing is kept but the input. [`host`] is the specification, Burn's
//! `nn::RmsNorm` the reference. May import Burn.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::ops::rms_norm::rms_norm;
//!
//! let device = Device::flex();
//! let y = rms_norm(Tensor::<2>::full([2, 4], 3.0, &device), Tensor::ones([4], &device), 0.0);
//! assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [1.0; 8]);
//! ```

mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
pub mod host;
#[cfg(feature = "cube")]
mod kernel;

use burn::{
    backend::Dispatch,
    tensor::{FloatDType, Shape, Tensor},
};

use self::extension::RmsNormOps;
use crate::ops::primitive::check_shape;

/// `y = x / sqrt(mean(x^2) + epsilon) * weight`, the mean over the last axis.
///
/// # Shapes
/// `x` of any shape with last axis `width`, `weight` of `[width]`; the shape of `x` out.
///
/// # Numerics
/// Computed in f32 whatever the type of `x`. The gradient of `weight` is a sum over rows in an order
/// that depends on their number and nothing else: equal bits for any number of threads.
///
/// # Gradients
/// `x` and `weight`. First order only.
///
/// # Panics
/// If `weight` is not as long as the last axis of `x`.
///
/// # Source
/// Zhang & Sennrich 2019, arXiv:1910.07467, equation 4.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    rms_norm_as(x, weight, epsilon, dtype)
}

/// [`rms_norm`] with an output in `dtype`, rounded once at the end; the gradient of `x` is in the type of
/// `x`.
///
/// # Panics
/// As [`rms_norm`].
pub fn rms_norm_as<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f64,
    dtype: FloatDType,
) -> Tensor<D> {
    let width = x.dims()[D - 1];
    check_shape("rms_norm", "weight", weight.dims(), [("width", width)]);
    if x.shape().num_elements() == 0 {
        return x.cast(dtype);
    }
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let y = <Dispatch as RmsNormOps>::rms_norm_fwd(x, weight, epsilon as f32, dtype.into());
    Tensor::from_dispatch(y)
}

/// `sum = x + branch` and [`rms_norm`] of it, as a residual stream passes from one block to the next: one
/// pass over memory each way.
///
/// # Shapes
/// `x` and `branch` of one shape with last axis `width`, `weight` of `[width]`; the shape of `x` out, twice.
///
/// # Numerics
/// Computed in f32. The sum is in the type of `x`, its norm in that of `branch`: a stream in f32 takes in
/// branches in bf16 and is read by them.
///
/// # Gradients
/// `x`, `branch` and `weight`, each in its own type and through both outputs. First order only.
///
/// # Panics
/// If `branch` has another shape than `x`, or `weight` is not as long as the last axis of `x`.
pub fn add_rms_norm<const D: usize>(
    x: Tensor<D>,
    branch: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f64,
) -> (Tensor<D>, Tensor<D>) {
    let dims = x.dims();
    check_shape("add_rms_norm", "branch", branch.dims(), dims.map(|size| ("that of `x`", size)));
    check_shape("add_rms_norm", "weight", weight.dims(), [("width", dims[D - 1])]);
    if x.shape().num_elements() == 0 {
        return (x, branch);
    }
    let (x, branch) = (x.into_dispatch(), branch.into_dispatch());
    let weight = weight.into_dispatch();
    let (sum, y) = <Dispatch as RmsNormOps>::add_rms_norm_fwd(x, branch, weight, epsilon as f32);
    (Tensor::from_dispatch(sum), Tensor::from_dispatch(y))
}

/// Rows and their width.
fn matrix(shape: &Shape) -> [usize; 2] {
    let width = shape.to_vec().last().copied().unwrap_or(1);
    [shape.num_elements() / width, width]
}
