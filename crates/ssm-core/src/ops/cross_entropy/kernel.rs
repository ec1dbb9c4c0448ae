//! A cube takes the logits of one position at a time; its units stride along them and add through
//! shared memory.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

use crate::ops::kernel::{highest, total};

/// Less than any logit, and no infinity, which WGSL cannot spell.
const LOWEST: f32 = -1e30;

/// Losses of `rows` positions from `first` on, and with `grad` the gradient of their logits in place of
/// the logits: `softmax(z)`, less one at the target, times `scale`. A row has `width` vectors.
///
/// Where a target is negative, loss and gradient are zero.
#[cube(launch_unchecked)]
pub(super) fn softmax_rows<E: Float, V: Size>(
    logits: &mut Tensor<Vector<E, V>>,
    targets: &Tensor<i32>,
    losses: &mut Tensor<f32>,
    rows: usize,
    first: usize,
    width: usize,
    scale: f32,
    #[comptime] units: usize,
    #[comptime] grad: bool,
    #[define(E)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    // The same for all units of a cube.
    if row < rows {
        let unit = UNIT_POS as usize;
        let size = V::value();
        let turns = (width + units - 1) / units;
        let target = targets[first + row];
        let counts = target >= 0;
        let place = select(counts, target, 0) as usize;
        // Of what this unit sees: the maximum, and the sum of exponentials of the distances to it.
        let mut max = f32::new(LOWEST);
        let mut sum = 0.0f32;
        for turn in 0..turns {
            let lane = turn * units + unit;
            if lane < width {
                let value = Vector::<f32, V>::cast_from(logits[row * width + lane]);
                let mut top = max;
                #[unroll]
                for s in 0..size {
                    let z = value.extract(s);
                    top = select(z > top, z, top);
                }
                sum *= (max - top).exp();
                #[unroll]
                for s in 0..size {
                    sum += (value.extract(s) - top).exp();
                }
                max = top;
            }
        }
        let top = highest(max, &mut shared, units);
        let sum = total(sum * (max - top).exp(), &mut shared, units);
        let log_sum = top + sum.ln();
        if comptime!(grad) {
            let scale = select(counts, scale, 0.0f32);
            for turn in 0..turns {
                let lane = turn * units + unit;
                if lane < width {
                    let value = Vector::<f32, V>::cast_from(logits[row * width + lane]);
                    let mut out = Vector::<f32, V>::empty();
                    #[unroll]
                    for s in 0..size {
                        let z = value.extract(s);
                        let mut share = (z - log_sum).exp();
                        if lane * size + s == place {
                            share -= 1.0f32;
                            losses[first + row] = select(counts, log_sum - z, 0.0f32);
                        }
                        out.insert(s, share * scale);
                    }
                    logits[row * width + lane] = Vector::cast_from(out);
                }
            }
        } else {
            if unit == 0 {
                let value = Vector::<f32, V>::cast_from(logits[row * width + place / size]);
                #[unroll]
                for s in 0..size {
                    if place % size == s {
                        losses[first + row] = select(counts, log_sum - value.extract(s), 0.0f32);
                    }
                }
            }
        }
    }
}
