//! A cube takes one row at a time; its units stride along it and add through shared memory.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

use crate::ops::kernel::{lanes, total};

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    /// Units of a cube, a power of two.
    pub(super) units: usize,
    /// Turns that they take along a row.
    pub(super) turns: usize,
    /// Whether something is added to `x` first.
    pub(super) residual: bool,
    /// Whether something is added to the product.
    pub(super) bias: bool,
}

/// The vector at `at` of the sum that is normalised.
#[cube]
fn summand<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    residual: &Tensor<Vector<E, V>>,
    at: usize,
    #[comptime] variant: Variant,
) -> Vector<f32, V> {
    let value = Vector::<f32, V>::cast_from(x[at]);
    if comptime!(variant.residual) {
        value + Vector::<f32, V>::cast_from(residual[at])
    } else {
        value
    }
}

/// Mean of a row of `width` vectors and what it is divided by, inverted.
#[cube]
fn statistics<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    residual: &Tensor<Vector<E, V>>,
    row: usize,
    width: usize,
    epsilon: f32,
    sums: &mut Shared<[f32]>,
    #[comptime] variant: Variant,
) -> (f32, f32) {
    let unit = UNIT_POS as usize;
    let units = comptime!(variant.units);
    let count = f32::cast_from(width * V::value());
    let mut sum = Vector::<f32, V>::new(0.0f32);
    for turn in 0..comptime!(variant.turns) {
        let lane = turn * units + unit;
        if lane < width {
            sum += summand::<E, V>(x, residual, row * width + lane, variant);
        }
    }
    let mean = total(lanes::<V>(sum), sums, units) / count;
    let shift = Vector::<f32, V>::new(mean);
    let mut squares = Vector::<f32, V>::new(0.0f32);
    for turn in 0..comptime!(variant.turns) {
        let lane = turn * units + unit;
        if lane < width {
            let centred = summand::<E, V>(x, residual, row * width + lane, variant) - shift;
            squares += centred * centred;
        }
    }
    let var = total(lanes::<V>(squares), sums, units) / count;
    (mean, 1.0f32 / (var + epsilon).sqrt())
}

/// One cube for each row of `width` vectors.
#[cube(launch_unchecked)]
pub(super) fn layer_norm_fwd<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    residual: &Tensor<Vector<E, V>>,
    weight: &Tensor<Vector<f32, V>>,
    bias: &Tensor<Vector<f32, V>>,
    y: &mut Tensor<Vector<E, V>>,
    rows: usize,
    width: usize,
    epsilon: f32,
    #[comptime] variant: Variant,
    #[define(E)] _dtype: ElemType,
) {
    let units = comptime!(variant.units);
    let mut sums = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    // The same for all units of a cube.
    if row < rows {
        let (mean, r) = statistics::<E, V>(x, residual, row, width, epsilon, &mut sums, variant);
        let mean = Vector::<f32, V>::new(mean);
        let r = Vector::<f32, V>::new(r);
        for turn in 0..comptime!(variant.turns) {
            let lane = turn * units + UNIT_POS as usize;
            if lane < width {
                let at = row * width + lane;
                let centred = summand::<E, V>(x, residual, at, variant) - mean;
                let mut value = centred * r * weight[lane];
                if comptime!(variant.bias) {
                    value += bias[lane];
                }
                y[at] = Vector::cast_from(value);
            }
        }
    }
}

/// One cube for `span` rows after each other; it leaves the sums over them of the gradients of weight
/// and bias next to each other in its own row of `partial`.
#[cube(launch_unchecked)]
pub(super) fn layer_norm_bwd<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    residual: &Tensor<Vector<E, V>>,
    weight: &Tensor<Vector<f32, V>>,
    grad_y: &Tensor<Vector<E, V>>,
    grad_x: &mut Tensor<Vector<E, V>>,
    partial: &mut Tensor<Vector<f32, V>>,
    rows: usize,
    width: usize,
    span: usize,
    epsilon: f32,
    #[comptime] variant: Variant,
    #[define(E)] _dtype: ElemType,
) {
    let units = comptime!(variant.units);
    let turns = comptime!(variant.turns);
    let mut sums = Shared::<[f32]>::new_slice(units);
    let cube = CUBE_POS;
    let first = cube * span;
    if first < rows {
        let unit = UNIT_POS as usize;
        let mut grad_weight = Array::<Vector<f32, V>>::new(turns);
        let mut grad_bias = Array::<Vector<f32, V>>::new(turns);
        #[unroll]
        for turn in 0..turns {
            grad_weight[turn] = Vector::<f32, V>::new(0.0f32);
            grad_bias[turn] = Vector::<f32, V>::new(0.0f32);
        }
        let count = f32::cast_from(width * V::value());
        for i in 0..span {
            let row = first + i;
            // The same for all units of a cube.
            if row < rows {
                let (mean, r) =
                    statistics::<E, V>(x, residual, row, width, epsilon, &mut sums, variant);
                let shift = Vector::<f32, V>::new(mean);
                let scale = Vector::<f32, V>::new(r);
                let mut added = Vector::<f32, V>::new(0.0f32);
                let mut products = Vector::<f32, V>::new(0.0f32);
                #[unroll]
                for turn in 0..turns {
                    let lane = turn * units + unit;
                    if lane < width {
                        let at = row * width + lane;
                        let normal = (summand::<E, V>(x, residual, at, variant) - shift) * scale;
                        let grad = Vector::<f32, V>::cast_from(grad_y[at]);
                        let scaled = grad * weight[lane];
                        added += scaled;
                        products += scaled * normal;
                        grad_weight[turn] += grad * normal;
                        grad_bias[turn] += grad;
                    }
                }
                let added = total(lanes::<V>(added), &mut sums, units) / count;
                let product = total(lanes::<V>(products), &mut sums, units) / count;
                let added = Vector::<f32, V>::new(added);
                let product = Vector::<f32, V>::new(product);
                #[unroll]
                for turn in 0..turns {
                    let lane = turn * units + unit;
                    if lane < width {
                        let at = row * width + lane;
                        let normal = (summand::<E, V>(x, residual, at, variant) - shift) * scale;
                        let scaled = Vector::<f32, V>::cast_from(grad_y[at]) * weight[lane];
                        grad_x[at] = Vector::cast_from((scaled - added - normal * product) * scale);
                    }
                }
            }
        }
        #[unroll]
        for turn in 0..turns {
            let lane = turn * units + unit;
            if lane < width {
                partial[cube * 2 * width + lane] = grad_weight[turn];
                partial[cube * 2 * width + width + lane] = grad_bias[turn];
            }
        }
    }
}
