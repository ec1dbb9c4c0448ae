//! Small operations that a backend does slowly when left to itself.
//!
//! Each stands here because a profile of a training step showed it: on the CPU, Burn's GELU calls a
//! scalar `erf` for every element, forwards and backwards, and its `flip` is a view with a negative
//! stride, which the next operation then reads element by element; on a GPU, what is two operations is two
//! launches, and a launch takes longer than the arithmetic of a small model. [`host`] is the specification,
//! Burn's own functions are the reference. May import Burn.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::ops::pointwise::{gelu, reverse};
//!
//! let x = Tensor::<3>::ones([2, 5, 4], &Device::flex());
//! assert_eq!(gelu(reverse(x)).dims(), [2, 5, 4]);
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
    tensor::{Int, Tensor},
};

use self::extension::{Dropout, PointwiseOps};
use super::primitive::check_shape;

/// The sequence read from its end: `y_t = x_{seq_len - 1 - t}`.
///
/// # Shapes
/// `[batch, seq_len, channels]` in and out.
///
/// # Gradients
/// The input; the gradient is reversed too.
pub fn reverse(x: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as PointwiseOps>::reverse(x.into_dispatch()))
}

/// Gaussian error linear unit, `x * (1 + erf(x / sqrt 2)) / 2`, the exact form and not the tanh one.
///
/// # Shapes
/// Any; same shape out.
///
/// # Numerics
/// On the CPU `erf` comes from a rational polynomial times an exponential, absolute error 1.5e-7.
///
/// # Gradients
/// The input. First order only.
///
/// # Source
/// Hendrycks & Gimpel 2016, arXiv:1606.08415; `erf` by Abramowitz & Stegun, formula 7.1.26.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as PointwiseOps>::gelu_fwd(x.into_dispatch()))
}

/// `-exp(x)`: from the logarithm of a decay rate, which is learned, to the rate.
///
/// # Shapes
/// Any; same shape out.
///
/// # Gradients
/// The input. First order only.
pub fn neg_exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as PointwiseOps>::neg_exp(x.into_dispatch()))
}

/// `x * mask * scale`, element by element.
///
/// # Shapes
/// `x` and `mask` of any one shape; the same shape out.
///
/// # Gradients
/// `x`; the mask is a constant. First order only.
///
/// # Panics
/// If the shapes differ.
pub fn masked<const D: usize>(x: Tensor<D>, mask: Tensor<D>, scale: f64) -> Tensor<D> {
    assert!(
        mask.dims() == x.dims(),
        "masked: `mask` is {:?}, expected the shape of `x` = {:?}",
        mask.dims(),
        x.dims()
    );
    let (x, mask) = (x.into_dispatch(), mask.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PointwiseOps>::masked(x, mask, scale as f32))
}

/// `x / keep` where an element is kept, which it is with the probability `keep`, and 0 elsewhere: dropout
/// without a mask in memory. Which elements are kept is a pure function of the words of `seed`, the `site`
/// and the place of the element, and so the same for every type and device.
///
/// # Shapes
/// `x`: any, the same shape out; `seed`: `[2]`, words of 32 bits.
///
/// # Gradients
/// `x`, in the memory of whose gradient the mask is made again: `seed` must then hold what it held. First
/// order only.
///
/// # Panics
/// If `seed` does not hold two numbers.
///
/// # Source
/// Srivastava et al. 2014, "Dropout"; draws by [`host::draw`].
pub fn dropped<const D: usize>(
    x: Tensor<D>,
    seed: Tensor<1, Int>,
    site: u32,
    keep: f64,
) -> Tensor<D> {
    check_shape("dropout", "seed", seed.dims(), [("words", 2)]);
    let below = host::draws_below(keep);
    let options = Dropout { site, below, scale: (1.0 / keep) as f32 };
    let (x, seed) = (x.into_dispatch(), seed.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PointwiseOps>::dropped(x, seed, options))
}
