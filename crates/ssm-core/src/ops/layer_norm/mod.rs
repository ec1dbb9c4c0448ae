//! Layer normalisation, with the sum in front of it, in one pass over memory each way.
//!
//! Burn's module is eight operations forwards and about 25 backwards, each with an intermediate tensor
//! that autodiff keeps and, on a GPU, a launch that takes longer than what it computes; here nothing is
//! kept but the inputs. [`host`] is the specification, Burn's `nn::LayerNorm` the reference. May import
//! Burn.
//!
//! ```
//! use burn::{nn::LayerNormConfig, tensor::{Device, Tensor}};
//! use ssm_core::ops::layer_norm::{layer_norm, sum_layer_norm};
//!
//! let device = Device::flex();
//! let norm = LayerNormConfig::new(2).init(&device);
//! let x = Tensor::<2>::from_floats([[1.0, 3.0]], &device);
//! let y = layer_norm(&norm, x.clone(), 0.0);
//! assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [-1.0, 1.0]);
//! assert_eq!(sum_layer_norm(&norm, x.clone(), x, 1e-5).dims(), [1, 2]);
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
    module::Param,
    nn::LayerNorm,
    tensor::{Shape, Tensor},
};

use self::extension::{LayerNormOps, LayerNormPrimitives};
use crate::ops::primitive::{check_shape, maybe};

/// `y = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias`, mean and biased variance over the last
/// axis.
///
/// The parameters are those of Burn's module, which does not tell its `epsilon`: it is said here.
///
/// # Shapes
/// `x` of any shape whose last axis is as long as the parameters; the same shape out.
///
/// # Numerics
/// Computed in f32 whatever the type of `x`. The gradients of the parameters are sums over rows in an
/// order that depends on their number and nothing else: equal bits for any number of threads.
///
/// # Gradients
/// `x`, `weight` and `bias`. First order only.
///
/// # Panics
/// If the parameters are not as long as the last axis of `x`.
///
/// # Source
/// Ba et al. 2016, arXiv:1607.06450, equation 3.
pub fn layer_norm<const D: usize>(norm: &LayerNorm, x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    normed(norm, x, None, epsilon)
}

/// [`layer_norm`] of `x + residual`, the sum being stored nowhere; both get its gradient.
///
/// # Panics
/// If `residual` has another shape than `x`.
pub fn sum_layer_norm<const D: usize>(
    norm: &LayerNorm,
    x: Tensor<D>,
    residual: Tensor<D>,
    epsilon: f64,
) -> Tensor<D> {
    assert!(
        residual.dims() == x.dims(),
        "layer_norm: `residual` is {:?}, expected the shape of `x` = {:?}",
        residual.dims(),
        x.dims()
    );
    normed(norm, x, Some(residual), epsilon)
}

fn normed<const D: usize>(
    norm: &LayerNorm,
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    epsilon: f64,
) -> Tensor<D> {
    let width = x.dims()[D - 1];
    let (weight, bias) = (norm.gamma.val(), norm.beta.as_ref().map(Param::val));
    check_shape("layer_norm", "weight", weight.dims(), [("width", width)]);
    if x.shape().num_elements() == 0 {
        return x;
    }
    let input = LayerNormPrimitives {
        x: x.into_dispatch(),
        residual: maybe(residual),
        weight: weight.into_dispatch(),
        bias: maybe(bias),
    };
    Tensor::from_dispatch(<Dispatch as LayerNormOps>::layer_norm_fwd(input, epsilon as f32))
}

/// Rows and their width.
fn matrix(shape: &Shape) -> [usize; 2] {
    let width = shape.to_vec().last().copied().unwrap_or(1);
    [shape.num_elements() / width, width]
}
