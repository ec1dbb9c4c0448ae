//! The sum that ends both backward kernels.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

/// Sums what cubes (or units) left of the gradients that they share, always in the same order.
///
/// - `row_grads`: `[batch, n_groups * slices, seq_len, 2, stride]`, to `[batch, seq_len, n_groups,
///   d_state]`; `stride >= d_state`
/// - `param_grads`: of `a [entries, d_inner, d_state]`, then `d` and `bias [entries, d_inner]`
#[cube(launch_unchecked)]
pub(super) fn scan_reduce<E: Float>(
    row_grads: &Tensor<f32>,
    param_grads: &Tensor<f32>,
    grad_b: &mut Tensor<E>,
    grad_c: &mut Tensor<E>,
    grad_a: &mut Tensor<f32>,
    grad_d: &mut Tensor<f32>,
    grad_bias: &mut Tensor<f32>,
    n_rows: usize,
    entries: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
    slices: usize,
    stride: usize,
    #[comptime] d: bool,
    #[comptime] bias: bool,
    #[define(E)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS;
    let n_params = d_inner * d_state;
    if unit < n_rows {
        let n = unit % d_state;
        let row = unit / d_state;
        let group = row % n_groups;
        let step = row / n_groups;
        let t = step % seq_len;
        let entry = step / seq_len;
        let mut at = ((entry * n_groups + group) * slices * seq_len + t) * 2 * stride + n;
        let mut b = 0.0f32;
        let mut c = 0.0f32;
        for _ in 0..slices {
            b += row_grads[at];
            c += row_grads[at + stride];
            at += seq_len * 2 * stride;
        }
        grad_b[unit] = E::cast_from(b);
        grad_c[unit] = E::cast_from(c);
    } else {
        let param = unit - n_rows;
        if param < n_params {
            let mut sum = 0.0f32;
            for entry in 0..entries {
                sum += param_grads[entry * n_params + param];
            }
            grad_a[param] = sum;
        }
        // The first units do the vectors too.
        if param < d_inner {
            let at_d = entries * n_params + param;
            if comptime!(d) {
                let mut sum = 0.0f32;
                for entry in 0..entries {
                    sum += param_grads[at_d + entry * d_inner];
                }
                grad_d[param] = sum;
            }
            if comptime!(bias) {
                let mut sum = 0.0f32;
                for entry in 0..entries {
                    sum += param_grads[at_d + (entries + entry) * d_inner];
                }
                grad_bias[param] = sum;
            }
        }
    }
}
