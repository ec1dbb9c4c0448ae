//! Position-wise linear maps of sequences, with the output cut into parts.
//!
//! Written as operations because of what a training step on the CPU spends outside of its matrix
//! products otherwise: Burn differentiates a product with a batch axis one sequence at a time, and a
//! cut output (`x, z = in_proj(x)`) costs copies forwards and zero-filled buffers backwards. Here the
//! parts are written where they belong, and all gradients are products on views. May import Burn.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::{init::Init, ops::linear::{linear, linear_split}};
//!
//! let device = Device::flex();
//! let layer = Init::new(0, &device).linear(8, 12, true);
//! let x = Tensor::<3>::ones([2, 5, 8], &device);
//! assert_eq!(linear(&layer, x.clone()).dims(), [2, 5, 12]);
//! let [small, large] = linear_split(&layer, x, [4, 8]);
//! assert_eq!((small.dims(), large.dims()), ([2, 5, 4], [2, 5, 8]));
//! ```

mod autodiff;
pub(in crate::ops) mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
#[cfg(feature = "cube")]
mod hopper;
#[cfg(feature = "cube")]
pub(in crate::ops) mod kernel;
#[cfg(feature = "cube")]
mod squares;

use burn::{backend::Dispatch, module::Param, nn::Linear, tensor::Tensor};

use self::extension::{LinearOps, LinearOptions, LinearPrimitives, MAX_PARTS};
use super::primitive::maybe;

/// `x W + bias` for every position.
///
/// # Shapes
/// `x`: `[batch, seq_len, d_in]`; output: `[batch, seq_len, d_out]`
///
/// # Gradients
/// Input, weight and bias; one of them that is not asked for is not computed.
pub fn linear(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    linear_loose(layer.weight.val(), layer.bias.as_ref().map(Param::val), x)
}

/// [`linear`] with loose weight `[d_in, d_out]` and bias `[d_out]`.
pub fn linear_loose(weight: Tensor<2>, bias: Option<Tensor<1>>, x: Tensor<3>) -> Tensor<3> {
    let [_, d_out] = weight.dims();
    let [y] = parts(weight, bias, x, [d_out], false);
    y
}

/// `x W` in f32 whatever the type of `x`: for what is not to be rounded before it is used.
///
/// # Numerics
/// Factors have the type of `x`, gradients too.
pub fn linear_wide(weight: Tensor<2>, x: Tensor<3>) -> Tensor<3> {
    let [_, d_out] = weight.dims();
    let [y] = parts(weight, None, x, [d_out], true);
    y
}

/// [`linear`] with the output cut along its last axis into parts of the given widths.
///
/// # Shapes
/// `x`: `[batch, seq_len, d_in]`; output `i`: `[batch, seq_len, widths[i]]`
///
/// # Gradients
/// Input, weight and bias, from every part that a loss depends on.
///
/// # Panics
/// If a width is 0, or the widths do not add up to `d_out`.
pub fn linear_split<const N: usize>(
    layer: &Linear,
    x: Tensor<3>,
    widths: [usize; N],
) -> [Tensor<3>; N] {
    parts(layer.weight.val(), layer.bias.as_ref().map(Param::val), x, widths, false)
}

fn parts<const N: usize>(
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    x: Tensor<3>,
    widths: [usize; N],
    wide: bool,
) -> [Tensor<3>; N] {
    const { assert!(N >= 1 && N <= MAX_PARTS) };
    let [d_in, d_out] = weight.dims();
    let [_, _, got] = x.dims();
    assert!(got == d_in, "linear: axis 2 of `x` is {got}, expected d_in = {d_in}");
    if let Some(empty) = widths.iter().position(|width| *width == 0) {
        panic!("linear: `widths[{empty}]` is 0, expected at least 1");
    }
    let sum: usize = widths.iter().sum();
    assert!(sum == d_out, "linear: `widths` add up to {sum}, expected d_out = {d_out}");
    if let Some(bias) = &bias {
        let [got] = bias.dims();
        assert!(got == d_out, "linear: axis 0 of `bias` is {got}, expected d_out = {d_out}");
    }
    let mut options =
        LinearOptions { widths: [0; MAX_PARTS], wide, grad_x: true, grad_weight: true };
    options.widths[..N].copy_from_slice(&widths);
    let input = LinearPrimitives {
        x: x.into_dispatch(),
        weight: weight.into_dispatch(),
        bias: maybe(bias),
    };
    let mut outputs = <Dispatch as LinearOps>::linear_fwd(input, options).into_iter();
    // Backends return one output for each width that is not zero, and none of these is.
    widths.map(|_| Tensor::from_dispatch(outputs.next().expect("an output for every width")))
}
