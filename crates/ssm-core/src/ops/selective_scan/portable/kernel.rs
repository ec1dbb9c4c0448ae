//! The recurrence with one unit for each channel (forward) or some channels (backward).
//!
//! A unit runs over the sequence once for every `block` states; what the blocks add up to is kept in
//! the output. Buffers, all f32 and row-major:
//! - `steps`: `u`, `delta`, `z`, `grad_y` one behind the other, each `[batch, seq_len, d_inner]`
//! - `rows`: `b`, `c`, each `[batch, seq_len, n_groups, d_state]`
//! - `params`: `a [d_inner, d_state]`, `d [d_inner]`, `bias [d_inner]`, then `initial` and
//!   `grad_final`, each `[batch, d_inner, d_state]`, then `resets [batch, seq_len]`
//! - `states`: `[batch, n_chunks, d_state, d_inner]`, the state before the first step of each chunk

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::prelude::*;

use crate::ops::kernel::{sigmoid, softplus};

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    /// States that a unit keeps at a time.
    pub(super) block: usize,
    /// Steps of a chunk.
    pub(super) chunk: usize,
    pub(super) d: bool,
    pub(super) z: bool,
    pub(super) bias: bool,
    pub(super) softplus: bool,
    pub(super) initial: bool,
    pub(super) resets: bool,
    pub(super) save: bool,
    pub(super) grad_final: bool,
}

/// Sizes, and offsets into the packed buffers.
#[derive(CubeType, Clone, Copy)]
struct Sizes {
    per_group: usize,
    n_chunks: usize,
    n_blocks: usize,
    /// Length of one tensor in `steps`.
    n_steps: usize,
    /// Length of one tensor in `rows`.
    n_rows: usize,
    at_d: usize,
    at_bias: usize,
    at_initial: usize,
    at_final: usize,
    at_resets: usize,
}

#[cube]
fn sizes(
    batch: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
    #[comptime] k: Variant,
) -> Sizes {
    let at_d = d_inner * d_state;
    let at_initial = at_d + 2 * d_inner;
    let n_state = batch * d_inner * d_state;
    Sizes {
        per_group: d_inner / n_groups,
        n_chunks: (seq_len + comptime!(k.chunk - 1)) / k.chunk,
        n_blocks: (d_state + comptime!(k.block - 1)) / k.block,
        n_steps: batch * seq_len * d_inner,
        n_rows: batch * seq_len * n_groups * d_state,
        at_d,
        at_bias: at_d + d_inner,
        at_initial,
        at_final: at_initial + n_state,
        at_resets: at_initial + 2 * n_state,
    }
}

/// Step size and its slope.
#[cube]
fn step_size(raw: f32, #[comptime] k: Variant) -> (f32, f32) {
    if comptime!(k.softplus) { softplus(raw, false) } else { (raw, 1.0f32.runtime()) }
}

#[cube(launch_unchecked)]
pub(super) fn scan_fwd(
    steps: &Tensor<f32>,
    rows: &Tensor<f32>,
    params: &Tensor<f32>,
    y: &mut Tensor<f32>,
    final_state: &mut Tensor<f32>,
    states: &mut Tensor<f32>,
    batch: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
    #[comptime] k: Variant,
) {
    let s = sizes(batch, seq_len, d_inner, d_state, n_groups, k);
    if ABSOLUTE_POS < batch * d_inner {
        let channel = ABSOLUTE_POS % d_inner;
        let entry = ABSOLUTE_POS / d_inner;
        let group = channel / s.per_group;
        let mut bias = 0.0f32;
        if comptime!(k.bias) {
            bias = params[s.at_bias + channel];
        }
        let mut a = Array::<f32>::new(k.block);
        let mut h = Array::<f32>::new(k.block);
        for block in 0..s.n_blocks {
            let first = block * k.block;
            #[unroll]
            for i in 0..k.block {
                let n = select(first + i < d_state, first + i, 0);
                a[i] = params[channel * d_state + n];
                h[i] = 0.0f32;
                if comptime!(k.initial) {
                    let initial = params[s.at_initial + ABSOLUTE_POS * d_state + n];
                    h[i] = select(first + i < d_state, initial, 0.0);
                }
            }
            for t in 0..seq_len {
                let row = entry * seq_len + t;
                let at = row * d_inner + channel;
                if comptime!(k.save) {
                    if t % k.chunk == 0 {
                        let chunk = entry * s.n_chunks + t / k.chunk;
                        #[unroll]
                        for i in 0..k.block {
                            if first + i < d_state {
                                states[(chunk * d_state + first + i) * d_inner + channel] = h[i];
                            }
                        }
                    }
                }
                if comptime!(k.resets) {
                    if params[s.at_resets + row] != 0.0 {
                        #[unroll]
                        for i in 0..k.block {
                            h[i] = 0.0f32;
                        }
                    }
                }
                let u = steps[at];
                let (dt, _slope) = step_size(steps[s.n_steps + at] + bias, k);
                let mut sum = 0.0f32;
                if block > 0 {
                    sum = y[at];
                } else {
                    if comptime!(k.d) {
                        sum = params[s.at_d + channel] * u;
                    }
                }
                #[unroll]
                for i in 0..k.block {
                    let inside = first + i < d_state;
                    let n = (row * n_groups + group) * d_state + select(inside, first + i, 0);
                    // Beyond the last state everything stays zero.
                    let b = select(inside, rows[n], 0.0);
                    h[i] = (dt * a[i]).exp() * h[i] + dt * b * u;
                    sum += select(inside, rows[s.n_rows + n] * h[i], 0.0);
                }
                if comptime!(k.z) {
                    if block + 1 == s.n_blocks {
                        let z = steps[2 * s.n_steps + at];
                        sum *= z * sigmoid(z, false);
                    }
                }
                y[at] = sum;
            }
            #[unroll]
            for i in 0..k.block {
                if first + i < d_state {
                    final_state[ABSOLUTE_POS * d_state + first + i] = h[i];
                }
            }
        }
    }
}

/// Gradients. Further buffers, written and read again by the unit that owns the place:
/// - `grads`: gradients of `u`, `delta`, `z`, each `[batch, seq_len, d_inner]`
/// - `row_grads`: `[batch, n_groups * slices, seq_len, 2, d_state]`, to be summed over slices of
///   `width` channels, the units
/// - `param_grads`: of `a [batch, d_inner, d_state]`, `d` and `bias` `[batch, d_inner]`, to be summed
///   over the batch, of `initial [batch, d_inner, d_state]`, and behind them as scratch the states inside
///   of a chunk, `[chunk * block, units]`: WebGPU binds seven tensors
#[cube(launch_unchecked)]
pub(super) fn scan_bwd(
    steps: &Tensor<f32>,
    rows: &Tensor<f32>,
    params: &Tensor<f32>,
    states: &Tensor<f32>,
    grads: &mut Tensor<f32>,
    row_grads: &mut Tensor<f32>,
    param_grads: &mut Tensor<f32>,
    batch: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
    width: usize,
    #[comptime] k: Variant,
) {
    let s = sizes(batch, seq_len, d_inner, d_state, n_groups, k);
    let slices = (s.per_group + width - 1) / width;
    let units = batch * n_groups * slices;
    let unit = ABSOLUTE_POS;
    if unit < units {
        let entry = unit / (n_groups * slices);
        let group = unit / slices % n_groups;
        let start = unit % slices * width;
        let stop = select(start + width < s.per_group, start + width, s.per_group);
        let n_state = batch * d_inner * d_state;
        let scratch = 2 * (n_state + batch * d_inner) + unit;
        for inside_group in start..stop {
            let channel = group * s.per_group + inside_group;
            let owner = entry * d_inner + channel;
            let mut bias = 0.0f32;
            let mut d = 0.0f32;
            if comptime!(k.bias) {
                bias = params[s.at_bias + channel];
            }
            if comptime!(k.d) {
                d = params[s.at_d + channel];
            }
            let mut grad_d = 0.0f32;
            let mut grad_bias = 0.0f32;
            let mut a = Array::<f32>::new(k.block);
            let mut h = Array::<f32>::new(k.block);
            let mut g = Array::<f32>::new(k.block);
            let mut grad_a = Array::<f32>::new(k.block);
            for block in 0..s.n_blocks {
                let first = block * k.block;
                let last_block = block + 1 == s.n_blocks;
                #[unroll]
                for i in 0..k.block {
                    let inside = first + i < d_state;
                    let n = select(inside, first + i, 0);
                    a[i] = params[channel * d_state + n];
                    g[i] = 0.0f32;
                    grad_a[i] = 0.0f32;
                    if comptime!(k.grad_final) {
                        g[i] = select(inside, params[s.at_final + owner * d_state + n], 0.0);
                    }
                }
                for back in 0..s.n_chunks {
                    let chunk = s.n_chunks - 1 - back;
                    let from = chunk * k.chunk;
                    let to = select(from + k.chunk < seq_len, from + k.chunk, seq_len);
                    let saved = (entry * s.n_chunks + chunk) * d_state * d_inner + channel;
                    #[unroll]
                    for i in 0..k.block {
                        let inside = first + i < d_state;
                        let n = select(inside, first + i, 0);
                        h[i] = select(inside, states[saved + n * d_inner], 0.0);
                    }
                    for t in from..to {
                        let row = entry * seq_len + t;
                        let at = row * d_inner + channel;
                        if comptime!(k.resets) {
                            if params[s.at_resets + row] != 0.0 {
                                #[unroll]
                                for i in 0..k.block {
                                    h[i] = 0.0f32;
                                }
                            }
                        }
                        let u = steps[at];
                        let (dt, _slope) = step_size(steps[s.n_steps + at] + bias, k);
                        #[unroll]
                        for i in 0..k.block {
                            let inside = first + i < d_state;
                            let n =
                                (row * n_groups + group) * d_state + select(inside, first + i, 0);
                            let b = select(inside, rows[n], 0.0);
                            h[i] = (dt * a[i]).exp() * h[i] + dt * b * u;
                            param_grads[scratch + ((t - from) * k.block + i) * units] = h[i];
                        }
                    }
                    // `h` is the state after step `t` throughout.
                    for behind in 0..to - from {
                        let t = to - 1 - behind;
                        let row = entry * seq_len + t;
                        let at = row * d_inner + channel;
                        let mut reset = false;
                        if comptime!(k.resets) {
                            reset = params[s.at_resets + row] != 0.0;
                        }
                        let u = steps[at];
                        let (dt, slope) = step_size(steps[s.n_steps + at] + bias, k);
                        let grad_y = steps[3 * s.n_steps + at];
                        let mut dy = grad_y;
                        let mut z = 0.0f32;
                        let mut gate = 0.0f32;
                        if comptime!(k.z) {
                            z = steps[2 * s.n_steps + at];
                            gate = sigmoid(z, false);
                            dy = grad_y * z * gate;
                        }
                        // Sums over states of `g b`, `a e h g` and `c h`.
                        let mut sum_b = 0.0f32;
                        let mut sum_a = 0.0f32;
                        let mut sum_c = 0.0f32;
                        if block > 0 {
                            sum_b = grads[at];
                            sum_a = grads[s.n_steps + at];
                            if comptime!(k.z) {
                                sum_c = grads[2 * s.n_steps + at];
                            }
                        }
                        let slot = (unit / slices * slices + unit % slices) * seq_len + t;
                        #[unroll]
                        for i in 0..k.block {
                            if first + i < d_state {
                                let n = (row * n_groups + group) * d_state + first + i;
                                let b = rows[n];
                                let c = rows[s.n_rows + n];
                                let before = if t > from {
                                    param_grads[scratch + ((t - 1 - from) * k.block + i) * units]
                                } else {
                                    states[saved + (first + i) * d_inner]
                                };
                                let decay = (dt * a[i]).exp();
                                let carried = select(reset, 0.0, decay * before);
                                g[i] += c * dy;
                                sum_b += g[i] * b;
                                sum_a += g[i] * carried * a[i];
                                sum_c += c * h[i];
                                grad_a[i] += g[i] * carried * dt;
                                let mut grad_b = g[i] * dt * u;
                                let mut grad_c = dy * h[i];
                                let place = slot * 2 * d_state + first + i;
                                if inside_group > start {
                                    grad_b += row_grads[place];
                                    grad_c += row_grads[place + d_state];
                                }
                                row_grads[place] = grad_b;
                                row_grads[place + d_state] = grad_c;
                                g[i] = select(reset, 0.0, g[i] * decay);
                                h[i] = before;
                            }
                        }
                        if last_block {
                            let grad_raw = (sum_a + u * sum_b) * slope;
                            if comptime!(k.z) {
                                let gated = grad_y * gate * (1.0 + z * (1.0 - gate));
                                grads[2 * s.n_steps + at] = gated * (sum_c + d * u);
                            }
                            grads[at] = dt * sum_b + d * dy;
                            grads[s.n_steps + at] = grad_raw;
                            grad_d += dy * u;
                            grad_bias += grad_raw;
                        } else {
                            grads[at] = sum_b;
                            grads[s.n_steps + at] = sum_a;
                            if comptime!(k.z) {
                                grads[2 * s.n_steps + at] = sum_c;
                            }
                        }
                    }
                }
                #[unroll]
                for i in 0..k.block {
                    if first + i < d_state {
                        let at = owner * d_state + first + i;
                        param_grads[at] = grad_a[i];
                        param_grads[n_state + 2 * batch * d_inner + at] = g[i];
                    }
                }
            }
            param_grads[n_state + owner] = grad_d;
            param_grads[n_state + batch * d_inner + owner] = grad_bias;
        }
    }
}
