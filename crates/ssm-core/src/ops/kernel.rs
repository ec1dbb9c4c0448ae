//! Functions inside of kernels, and the copies that bring tensors into the form of portable kernels.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

/// `e^x`; `base2` says that `x` is already scaled by `log2 e`, for the chip's own instruction.
#[cube]
pub(super) fn decay(x: f32, #[comptime] base2: bool) -> f32 {
    if comptime!(base2) { exp2_approx(x) } else { x.exp() }
}

/// `2^x` with a relative error of 2^-22; CUDA only.
#[cube]
pub(super) fn exp2_approx(x: f32) -> f32 {
    let out: f32;
    gpu_asm!("ex2.approx.ftz.f32 {}, {};", out(_) out, in(_) x, options(pure, nomem));
    out
}

/// `1 / x` with a relative error of 2^-23; CUDA only.
#[cube]
fn recip_approx(x: f32) -> f32 {
    let out: f32;
    gpu_asm!("rcp.approx.ftz.f32 {}, {};", out(_) out, in(_) x, options(pure, nomem));
    out
}

/// `e^-|x|` and `1 / (1 + e^-|x|)`, of which both functions below are made.
#[cube]
fn logistic(x: f32, #[comptime] cuda: bool) -> (f32, f32) {
    if comptime!(cuda) {
        let e = exp2_approx(x.abs() * -std::f32::consts::LOG2_E);
        (e, recip_approx(1.0 + e))
    } else {
        let e = (-(x.abs())).exp();
        (e, 1.0 / (1.0 + e))
    }
}

/// `1 / (1 + e^-x)` without overflow.
#[cube]
pub(super) fn sigmoid(x: f32, #[comptime] cuda: bool) -> f32 {
    let (e, r) = logistic(x, cuda);
    select(x >= 0.0, r, e * r)
}

/// `2 artanh(s)` for `s` up to a third: `ln(1 + x)` with `s = x / (2 + x)`, a series that loses nothing
/// when `x` is small and needs no logarithm.
#[cube]
fn twice_artanh(s: f32) -> f32 {
    let q = s * s;
    let mut series = q * 0.076_923_08 + 0.090_909_09;
    series = series * q + 0.111_111_11;
    series = series * q + 0.142_857_14;
    series = series * q + 0.2;
    series = series * q + 0.333_333_34;
    series = series * q + 1.0;
    2.0 * s * series
}

/// `ln(1 + x)` for `x` from 0 to 1.
#[cube]
pub(super) fn ln_1p(x: f32) -> f32 {
    twice_artanh(x / (2.0 + x))
}

/// `ln(1 + e^x)` and its derivative.
#[cube]
pub(super) fn softplus(x: f32, #[comptime] cuda: bool) -> (f32, f32) {
    let (e, r) = logistic(x, cuda);
    let s = if comptime!(cuda) { e * recip_approx(2.0 + e) } else { e / (2.0 + e) };
    let positive = select(x > 0.0, x, 0.0);
    (positive + twice_artanh(s), select(x >= 0.0, r, e * r))
}

/// The sum of `value` over the units of a cube, the same bits in each.
#[cube]
pub(super) fn total(value: f32, sums: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
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

/// The largest `value` of the units of a cube.
#[cube]
pub(super) fn highest(value: f32, values: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    values[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = values[unit + half];
            let own = values[unit];
            values[unit] = select(other > own, other, own);
        }
        sync_cube();
    }
    let highest = values[0];
    // As in `total`.
    sync_cube();
    highest
}

/// `scale` times the sum of all elements; one cube.
#[cube(launch_unchecked)]
pub(super) fn sum_all(
    from: &Tensor<f32>,
    to: &mut Tensor<f32>,
    len: usize,
    scale: f32,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    for turn in 0..(len + units - 1) / units {
        let at = turn * units + unit;
        if at < len {
            sum += from[at];
        }
    }
    let sum = total(sum, &mut shared, units);
    if unit == 0 {
        to[0] = sum * scale;
    }
}

/// The sum of a vector's lanes.
#[cube]
pub(super) fn lanes<V: Size>(vector: Vector<f32, V>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for s in 0..V::value() {
        sum += vector.extract(s);
    }
    sum
}

/// The same numbers in another type; `len` vectors.
#[cube(launch_unchecked)]
pub(super) fn converted<E: Float, O: Float, V: Size>(
    from: &Tensor<Vector<E, V>>,
    to: &mut Tensor<Vector<O, V>>,
    len: usize,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS < len {
        to[ABSOLUTE_POS] = Vector::cast_from(from[ABSOLUTE_POS]);
    }
}

/// Lanes of a row that a cube of [`column_sums`] adds up, and rows that it reads at a time.
pub(super) const COLUMN_LANES: usize = 32;
pub(super) const COLUMN_ROWS: usize = 8;

/// Sums over the rows of `[rows, first + second]`, the first columns to one tensor and the others to
/// another one.
#[cube(launch_unchecked)]
pub(super) fn column_sums(
    from: &Tensor<f32>,
    first: &mut Tensor<f32>,
    second: &mut Tensor<f32>,
    rows: usize,
    n_first: usize,
    n_second: usize,
) {
    let mut sums = Shared::<[f32]>::new_slice(comptime!(COLUMN_LANES * COLUMN_ROWS));
    let unit = UNIT_POS as usize;
    let lane = unit % COLUMN_LANES;
    let turn = unit / COLUMN_LANES;
    let column = CUBE_POS * COLUMN_LANES + lane;
    let width = n_first + n_second;
    let mut sum = 0.0f32;
    if column < width {
        for step in 0..(rows + COLUMN_ROWS - 1) / COLUMN_ROWS {
            let row = step * COLUMN_ROWS + turn;
            if row < rows {
                sum += from[row * width + column];
            }
        }
    }
    sums[unit] = sum;
    sync_cube();
    if turn == 0 && column < width {
        #[unroll]
        for other in 1..COLUMN_ROWS {
            sum += sums[other * COLUMN_LANES + lane];
        }
        if column < n_first {
            first[column] = sum;
        } else {
            second[column - n_first] = sum;
        }
    }
}

/// Cuts the rows of a matrix into three parts of the given widths in vectors, of which the last may be
/// nothing; `len` vectors in all.
#[cube(launch_unchecked)]
pub(super) fn split<E: Float, V: Size>(
    from: &Tensor<Vector<E, V>>,
    first: &mut Tensor<Vector<E, V>>,
    second: &mut Tensor<Vector<E, V>>,
    third: &mut Tensor<Vector<E, V>>,
    len: usize,
    n_first: usize,
    n_second: usize,
    n_third: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let width = n_first + n_second + n_third;
        let row = ABSOLUTE_POS / width;
        let column = ABSOLUTE_POS % width;
        let value = from[ABSOLUTE_POS];
        if column < n_first {
            first[row * n_first + column] = value;
        } else if column < n_first + n_second {
            second[row * n_second + column - n_first] = value;
        } else {
            third[row * n_third + column - n_first - n_second] = value;
        }
    }
}

/// Which parts [`join`] is given; the others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Present {
    pub(super) first: bool,
    pub(super) second: bool,
    pub(super) third: bool,
}

/// The way back from [`split`].
#[cube(launch_unchecked)]
pub(super) fn join<E: Float, V: Size>(
    first: &Tensor<Vector<E, V>>,
    second: &Tensor<Vector<E, V>>,
    third: &Tensor<Vector<E, V>>,
    to: &mut Tensor<Vector<E, V>>,
    len: usize,
    n_first: usize,
    n_second: usize,
    n_third: usize,
    #[comptime] present: Present,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let width = n_first + n_second + n_third;
        let row = ABSOLUTE_POS / width;
        let column = ABSOLUTE_POS % width;
        let mut value = Vector::<E, V>::new(E::from_int(0));
        if column < n_first {
            if comptime!(present.first) {
                value = first[row * n_first + column];
            }
        } else if column < n_first + n_second {
            if comptime!(present.second) {
                value = second[row * n_second + column - n_first];
            }
        } else {
            if comptime!(present.third) {
                value = third[row * n_third + column - n_first - n_second];
            }
        }
        to[ABSOLUTE_POS] = value;
    }
}

/// Writes `from` behind the first `offset` elements of `to`, in f32.
#[cube(launch_unchecked)]
pub(super) fn pack<E: Float>(
    from: &Tensor<E>,
    to: &mut Tensor<f32>,
    len: usize,
    offset: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        to[offset + ABSOLUTE_POS] = f32::cast_from(from[ABSOLUTE_POS]);
    }
}

/// Copies what lies behind the first `offset` elements of `from`.
#[cube(launch_unchecked)]
pub(super) fn unpack<E: Float>(
    from: &Tensor<f32>,
    to: &mut Tensor<E>,
    len: usize,
    offset: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        to[ABSOLUTE_POS] = E::cast_from(from[offset + ABSOLUTE_POS]);
    }
}
