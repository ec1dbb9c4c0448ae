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

/// The sum of `value` over the units of a cube, the same bits in each.
#[cube]
fn total(value: f32, sums: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sums[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
    }
    let sum = sums[0];
    // The next sum may not begin before all have read this one.
    sync_cube();
    sum
}

/// The sum of a vector's lanes.
#[cube]
fn lanes<V: Size>(vector: Vector<f32, V>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for s in 0..V::value() {
        sum += vector.extract(s);
    }
    sum
}

/// One cube for each row of `width` vectors of `x`, or of `x + branch`, which then goes into `sum` as well.
#[cube(launch_unchecked)]
pub(super) fn rms_norm_fwd<E: Float, F: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    branch: &Tensor<Vector<F, V>>,
    weight: &Tensor<Vector<f32, V>>,
    sum: &mut Tensor<Vector<E, V>>,
    y: &mut Tensor<Vector<F, V>>,
    rows: usize,
    width: usize,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] adds: bool,
    #[define(E)] _dtype: ElemType,
    #[define(F)] _y_dtype: ElemType,
) {
    let mut sums = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    // The same for all units of a cube.
    if row < rows {
        let unit = UNIT_POS as usize;
        let turns = (width + units - 1) / units;
        let mut squares = Vector::<f32, V>::new(0.0f32);
        for turn in 0..turns {
            let lane = turn * units + unit;
            if lane < width {
                let at = row * width + lane;
                let mut value = Vector::<f32, V>::cast_from(x[at]);
                if comptime!(adds) {
                    // Of the sum as it goes on, should its type be a narrow one.
                    let whole =
                        Vector::<E, V>::cast_from(value + Vector::<f32, V>::cast_from(branch[at]));
                    sum[at] = whole;
                    value = Vector::<f32, V>::cast_from(whole);
                }
                squares += value * value;
            }
        }
        let count = f32::cast_from(width * V::value());
        let mean = total(lanes::<V>(squares), &mut sums, units) / count;
        let r = Vector::<f32, V>::new(1.0f32 / (mean + epsilon).sqrt());
        for turn in 0..turns {
            let lane = turn * units + unit;
            if lane < width {
                let at = row * width + lane;
                let mut value = Vector::<f32, V>::cast_from(x[at]);
                if comptime!(adds) {
                    // A unit finds again what it wrote itself.
                    value = Vector::<f32, V>::cast_from(sum[at]);
                }
                y[at] = Vector::cast_from(value * r * weight[lane]);
            }
        }
    }
}

/// What a backward pass adds to the gradient of a norm, and what it writes beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Around {
    /// Whether `grad_sum` is added to the gradient.
    pub(super) sum: bool,
    /// Whether the gradient is written a second time, into `grad_branch`.
    pub(super) branch: bool,
}

/// One cube for `span` rows after each other; it leaves the sum over them of the weight's gradient in
/// its own row of `partial`.
#[cube(launch_unchecked)]
pub(super) fn rms_norm_bwd<E: Float, F: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    weight: &Tensor<Vector<f32, V>>,
    grad_y: &Tensor<Vector<F, V>>,
    grad_sum: &Tensor<Vector<E, V>>,
    grad_x: &mut Tensor<Vector<E, V>>,
    grad_branch: &mut Tensor<Vector<F, V>>,
    partial: &mut Tensor<Vector<f32, V>>,
    rows: usize,
    width: usize,
    span: usize,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] turns: usize,
    #[comptime] around: Around,
    #[define(E)] _dtype: ElemType,
    #[define(F)] _y_dtype: ElemType,
) {
    let mut sums = Shared::<[f32]>::new_slice(units);
    let cube = CUBE_POS;
    let first = cube * span;
    if first < rows {
        let unit = UNIT_POS as usize;
        let mut grads = Array::<Vector<f32, V>>::new(turns);
        #[unroll]
        for turn in 0..turns {
            grads[turn] = Vector::new(0.0f32);
        }
        let count = f32::cast_from(width * V::value());
        for i in 0..span {
            let row = first + i;
            // The same for all units of a cube.
            if row < rows {
                let mut squares = Vector::<f32, V>::new(0.0f32);
                let mut products = Vector::<f32, V>::new(0.0f32);
                #[unroll]
                for turn in 0..turns {
                    let lane = turn * units + unit;
                    if lane < width {
                        let value = Vector::<f32, V>::cast_from(x[row * width + lane]);
                        let grad = Vector::<f32, V>::cast_from(grad_y[row * width + lane]);
                        squares += value * value;
                        products += value * grad * weight[lane];
                    }
                }
                let mean = total(lanes::<V>(squares), &mut sums, units) / count;
                let product = total(lanes::<V>(products), &mut sums, units) / count;
                let r = 1.0f32 / (mean + epsilon).sqrt();
                let scale = Vector::<f32, V>::new(r);
                let shift = Vector::<f32, V>::new(-(r * r * r * product));
                #[unroll]
                for turn in 0..turns {
                    let lane = turn * units + unit;
                    if lane < width {
                        let at = row * width + lane;
                        let value = Vector::<f32, V>::cast_from(x[at]);
                        let grad = Vector::<f32, V>::cast_from(grad_y[at]) * scale;
                        let mut all = value * shift + grad * weight[lane];
                        if comptime!(around.sum) {
                            all += Vector::<f32, V>::cast_from(grad_sum[at]);
                        }
                        grad_x[at] = Vector::cast_from(all);
                        if comptime!(around.branch) {
                            grad_branch[at] = Vector::cast_from(all);
                        }
                        grads[turn] += value * grad;
                    }
                }
            }
        }
        #[unroll]
        for turn in 0..turns {
            let lane = turn * units + unit;
            if lane < width {
                partial[cube * width + lane] = grads[turn];
            }
        }
    }
}
