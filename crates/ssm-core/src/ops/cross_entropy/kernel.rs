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

use crate::ops::kernel::{highest, ln_1p, total};

/// Less than any logit, and no infinity, which WGSL cannot spell.
const LOWEST: f32 = -1e30;

/// Losses of `rows` positions from `first` on, and with `grad` the gradient of their logits in place of
/// the logits: `softmax(z)`, less one at the target, times `scale`. A row has `width` vectors.
///
/// Where a target is negative, loss and gradient are zero. The target stays out of the sum: next to it,
/// what is left of the others may be less than f32 tells from nothing.
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
        let mut said = 0.0f32;
        let at_target = Vector::<f32, V>::cast_from(logits[row * width + place / size]);
        #[unroll]
        for s in 0..size {
            said = select(place % size == s, at_target.extract(s), said);
        }
        // Of what this unit sees: the maximum, and the sum of exponentials of the distances to it, but
        // for the target's.
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
                    let share = (value.extract(s) - top).exp();
                    sum += select(lane * size + s == place, 0.0f32, share);
                }
                max = top;
            }
        }
        let top = highest(max, &mut shared, units);
        // All units have read the target's logit when this returns.
        let others = total(sum * (max - top).exp(), &mut shared, units);
        let distance = top - said;
        let sum = others + (-distance).exp();
        if unit == 0 {
            let sure = select(others < 1.0, ln_1p(others), sum.ln());
            let loss = distance + select(distance == 0.0, sure, sum.ln());
            losses[first + row] = select(counts, loss, 0.0f32);
        }
        if comptime!(grad) {
            let factor = scale / sum;
            for turn in 0..turns {
                let lane = turn * units + unit;
                if lane < width {
                    let value = Vector::<f32, V>::cast_from(logits[row * width + lane]);
                    let mut out = Vector::<f32, V>::empty();
                    #[unroll]
                    for s in 0..size {
                        let share = (value.extract(s) - top).exp();
                        let rest = select(lane * size + s == place, -others, share);
                        // Chosen last: logits that do not count may be no numbers, and so all of this.
                        out.insert(s, select(counts, rest * factor, 0.0f32));
                    }
                    logits[row * width + lane] = Vector::cast_from(out);
                }
            }
        }
    }
}

/// `from` with zeros in the rows whose target is negative; `len` vectors in rows of `width`.
#[cube(launch_unchecked)]
pub(super) fn counted_rows<E: Float, V: Size>(
    from: &Tensor<Vector<E, V>>,
    targets: &Tensor<i32>,
    to: &mut Tensor<Vector<E, V>>,
    len: usize,
    width: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let mut value = Vector::<E, V>::new(E::from_int(0));
        if targets[ABSOLUTE_POS / width] >= 0 {
            value = from[ABSOLUTE_POS];
        }
        to[ABSOLUTE_POS] = value;
    }
}
