//! One unit for each vector of elements.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

/// `y[entry, t] = x[entry, seq_len - 1 - t]`; `width` vectors a step.
#[cube(launch_unchecked)]
pub(super) fn reverse<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    y: &mut Tensor<Vector<E, V>>,
    len: usize,
    seq_len: usize,
    width: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let lane = ABSOLUTE_POS % width;
        let t = ABSOLUTE_POS / width % seq_len;
        let entry = ABSOLUTE_POS / width / seq_len;
        y[ABSOLUTE_POS] = x[(entry * seq_len + seq_len - 1 - t) * width + lane];
    }
}

/// Standard normal distribution at `x`: its integral up to there, and its density.
///
/// `erf` by Abramowitz & Stegun, formula 7.1.26, absolute error 1.5e-7.
#[cube]
fn normal(x: f32) -> (f32, f32) {
    let pdf = (x * x * -0.5f32).exp();
    let t = 1.0f32 / (x.abs() * 0.231_641_88 + 1.0);
    let mut series = t * 1.061_405_4 - 1.453_152_1;
    series = series * t + 1.421_413_8;
    series = series * t - 0.284_496_72;
    series = series * t + 0.254_829_6;
    // Half of `1 - erf(|x| / sqrt 2)`.
    let tail = series * t * pdf * 0.5;
    let cdf = select(x >= 0.0, 1.0f32 - tail, tail);
    (cdf, pdf * 0.398_942_3f32)
}

/// GELU of every element, or with `grad` its derivative times `grad_y`.
#[cube(launch_unchecked)]
pub(super) fn gelu<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    grad_y: &Tensor<Vector<E, V>>,
    out: &mut Tensor<Vector<E, V>>,
    len: usize,
    #[comptime] grad: bool,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let size = V::value();
        let value = Vector::<f32, V>::cast_from(x[ABSOLUTE_POS]);
        let mut result = Vector::<f32, V>::empty();
        #[unroll]
        for s in 0..size {
            let x = value.extract(s);
            let (cdf, pdf) = normal(x);
            if comptime!(grad) {
                let dy = f32::cast_from(grad_y[ABSOLUTE_POS].extract(s));
                result.insert(s, dy * (cdf + x * pdf));
            } else {
                result.insert(s, x * cdf);
            }
        }
        out[ABSOLUTE_POS] = Vector::cast_from(result);
    }
}

/// `-e^x` of every element.
#[cube(launch_unchecked)]
pub(super) fn neg_exp<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    y: &mut Tensor<Vector<E, V>>,
    len: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let value = Vector::<f32, V>::cast_from(x[ABSOLUTE_POS]);
        y[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, V>::new(0.0f32) - value.exp());
    }
}

/// `x * mask * scale` of every element.
#[cube(launch_unchecked)]
pub(super) fn masked<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    mask: &Tensor<Vector<E, V>>,
    y: &mut Tensor<Vector<E, V>>,
    len: usize,
    scale: f32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let value = Vector::<f32, V>::cast_from(x[ABSOLUTE_POS]);
        let kept = value * Vector::<f32, V>::cast_from(mask[ABSOLUTE_POS]);
        y[ABSOLUTE_POS] = Vector::cast_from(kept * Vector::<f32, V>::new(scale));
    }
}

/// A random number for every `place` of a `site`: `host::draw`.
#[cube]
fn draw(place: u32, site: u32, seed_0: u32, seed_1: u32) -> u32 {
    let mut x = place * 1_664_525u32 + 1_013_904_223u32;
    let mut y = site * 1_664_525u32 + 1_013_904_223u32;
    let mut z = seed_0 * 1_664_525u32 + 1_013_904_223u32;
    let mut w = seed_1 * 1_664_525u32 + 1_013_904_223u32;
    x += y * w;
    y += z * x;
    z += x * y;
    w += y * z;
    x ^= x >> 16u32;
    y ^= y >> 16u32;
    z ^= z >> 16u32;
    w ^= w >> 16u32;
    x += y * w;
    y += z * x;
    z += x * y;
    w + y * z
}

/// `x * scale` where the draw of an element is less than `below`, else 0.
#[cube(launch_unchecked)]
pub(super) fn dropped<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    seed: &Tensor<u32>,
    y: &mut Tensor<Vector<E, V>>,
    len: usize,
    site: u32,
    below: u32,
    scale: f32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let size = V::value();
        let value = Vector::<f32, V>::cast_from(x[ABSOLUTE_POS]);
        let (seed_0, seed_1) = (seed[0], seed[1]);
        let first = (ABSOLUTE_POS * size) as u32;
        let mut result = Vector::<f32, V>::empty();
        #[unroll]
        for s in 0..size {
            let draw = draw(first + s as u32, site, seed_0, seed_1);
            result.insert(s, select(draw < below, value.extract(s) * scale, 0.0f32));
        }
        y[ABSOLUTE_POS] = Vector::cast_from(result);
    }
}
