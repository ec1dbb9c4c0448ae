//! The convolution with one unit for each run of steps of some channels (a vector of `V`).
//!
//! A unit slides a window over its steps. Backwards it also slides the gradients of the window, and
//! reads `d_conv - 1` steps of its right neighbour, so that no two units write to one place.
//!
//! `history` is `initial`, `[batch, d_conv - 1, channels]`, and `resets`, `[batch, seq_len]`: two tensors, or
//! one behind the other in a single one where the device binds no more than seven to a kernel.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

use crate::ops::kernel::sigmoid;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub(super) d_conv: usize,
    pub(super) bias: bool,
    pub(super) initial: bool,
    pub(super) resets: bool,
    /// Which tensor of `history` holds the resets.
    pub(super) resets_in: usize,
    pub(super) silu: bool,
    pub(super) cuda: bool,
    /// Room for the inputs before a step, at least 1.
    pub(super) window: usize,
}

/// The filters of a unit's channels, by lag.
#[cube]
fn load_taps<V: Size>(
    weight: &Tensor<f32>,
    taps: &mut Array<Vector<f32, V>>,
    lane: usize,
    #[comptime] k: Variant,
) {
    let size = V::value();
    #[unroll]
    for lag in 0..k.d_conv {
        let mut tap = Vector::<f32, V>::empty();
        #[unroll]
        for s in 0..size {
            let at = (lane * size + s) * k.d_conv + comptime!(k.d_conv - 1 - lag);
            tap.insert(s, weight[at]);
        }
        taps[lag] = tap;
    }
}

/// Fills the window with the inputs before step `from`, newest first; returns the steps since the last
/// reset, `d_conv` if there is none in the window.
#[cube]
fn load_window<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    history: &Sequence<OwnedTensor<f32>>,
    at_resets: usize,
    window: &mut Array<Vector<f32, V>>,
    entry: usize,
    from: usize,
    seq_len: usize,
    width: usize,
    lane: usize,
    #[comptime] k: Variant,
) -> usize {
    let before = comptime!(k.d_conv - 1);
    let size = V::value();
    let mut since = k.d_conv.runtime();
    #[unroll]
    for i in 0..before {
        // Oldest first, so that the nearest reset is the last to be seen.
        let back = comptime!(before - i);
        let mut value = Vector::<f32, V>::new(0.0f32);
        if from >= back {
            let row = entry * seq_len + from - back;
            value = Vector::cast_from(x[row * width + lane]);
            if comptime!(k.resets) {
                if history[k.resets_in][at_resets + row] != 0.0 {
                    since = comptime!(back - 1).runtime();
                }
            }
        } else {
            if comptime!(k.initial) {
                let at = ((entry * before + from + before - back) * width + lane) * size;
                #[unroll]
                for s in 0..size {
                    value.insert(s, history[0usize][at + s]);
                }
            }
        }
        window[comptime!(back - 1)] = value;
    }
    since
}

/// The value before the activation.
#[cube]
fn filtered<V: Size>(
    now: Vector<f32, V>,
    window: &Array<Vector<f32, V>>,
    taps: &Array<Vector<f32, V>>,
    bias: Vector<f32, V>,
    since: usize,
    #[comptime] k: Variant,
) -> Vector<f32, V> {
    let mut sum = bias + taps[0] * now;
    #[unroll]
    for lag in 1..k.d_conv {
        if comptime!(k.resets) {
            if lag <= since {
                sum += taps[lag] * window[comptime!(lag - 1)];
            }
        } else {
            sum += taps[lag] * window[comptime!(lag - 1)];
        }
    }
    sum
}

/// Steps since the last reset, at step `row` of all.
#[cube]
fn advance(
    since: usize,
    history: &Sequence<OwnedTensor<f32>>,
    at_resets: usize,
    row: usize,
    #[comptime] k: Variant,
) -> usize {
    let mut since = since;
    if comptime!(k.resets) {
        since = select(history[k.resets_in][at_resets + row] != 0.0, 0, since + 1);
    }
    since
}

#[cube(launch_unchecked)]
pub(super) fn conv_fwd<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    weight: &Tensor<f32>,
    bias: &Tensor<Vector<f32, V>>,
    history: Sequence<OwnedTensor<f32>>,
    y: &mut Tensor<Vector<E, V>>,
    batch: usize,
    seq_len: usize,
    width: usize,
    span: usize,
    at_resets: usize,
    #[comptime] k: Variant,
    #[define(E)] _dtype: ElemType,
) {
    let spans = (seq_len + span - 1) / span;
    if ABSOLUTE_POS < batch * spans * width {
        let lane = ABSOLUTE_POS % width;
        let from = ABSOLUTE_POS / width % spans * span;
        let entry = ABSOLUTE_POS / width / spans;
        let to = select(from + span < seq_len, from + span, seq_len);
        let size = V::value();
        let mut taps = Array::<Vector<f32, V>>::new(k.d_conv);
        load_taps::<V>(weight, &mut taps, lane, k);
        let mut window = Array::<Vector<f32, V>>::new(k.window);
        let mut since = load_window::<E, V>(
            x,
            &history,
            at_resets,
            &mut window,
            entry,
            from,
            seq_len,
            width,
            lane,
            k,
        );
        let mut constant = Vector::<f32, V>::new(0.0f32);
        if comptime!(k.bias) {
            constant = bias[lane];
        }
        for t in from..to {
            let row = entry * seq_len + t;
            since = advance(since, &history, at_resets, row, k);
            let now = Vector::<f32, V>::cast_from(x[row * width + lane]);
            let pre = filtered::<V>(now, &window, &taps, constant, since, k);
            let mut out = pre;
            if comptime!(k.silu) {
                #[unroll]
                for s in 0..size {
                    let value = pre.extract(s);
                    out.insert(s, value * sigmoid(value, k.cuda));
                }
            }
            y[row * width + lane] = Vector::cast_from(out);
            #[unroll]
            for i in 0..comptime!(k.window - 1) {
                window[comptime!(k.window - 1 - i)] = window[comptime!(k.window - 2 - i)];
            }
            window[0] = now;
        }
    }
}

/// Gradients of `x`, and in `param_grads` (as vectors) what is to be summed over `entries = batch *
/// spans`, `[entries, d_conv + 1, width]` (taps by lag, then bias), followed by the gradient of
/// `initial`, `[batch, d_conv - 1, width]`.
#[cube(launch_unchecked)]
pub(super) fn conv_bwd<E: Float, V: Size>(
    x: &Tensor<Vector<E, V>>,
    weight: &Tensor<f32>,
    bias: &Tensor<Vector<f32, V>>,
    history: Sequence<OwnedTensor<f32>>,
    grad_y: &Tensor<Vector<E, V>>,
    grad_x: &mut Tensor<Vector<E, V>>,
    param_grads: &mut Tensor<Vector<f32, V>>,
    batch: usize,
    seq_len: usize,
    width: usize,
    span: usize,
    at_resets: usize,
    #[comptime] k: Variant,
    #[define(E)] _dtype: ElemType,
) {
    let spans = (seq_len + span - 1) / span;
    if ABSOLUTE_POS < batch * spans * width {
        let before = comptime!(k.d_conv - 1);
        let lane = ABSOLUTE_POS % width;
        let owner = ABSOLUTE_POS / width;
        let from = owner % spans * span;
        let entry = owner / spans;
        let to = select(from + span < seq_len, from + span, seq_len);
        let stop = select(to + before < seq_len, to + before, seq_len);
        let at_initial = batch * spans * comptime!(k.d_conv + 1) * width;
        let size = V::value();
        let mut taps = Array::<Vector<f32, V>>::new(k.d_conv);
        load_taps::<V>(weight, &mut taps, lane, k);
        let mut window = Array::<Vector<f32, V>>::new(k.window);
        let mut since = load_window::<E, V>(
            x,
            &history,
            at_resets,
            &mut window,
            entry,
            from,
            seq_len,
            width,
            lane,
            k,
        );
        let mut constant = Vector::<f32, V>::new(0.0f32);
        if comptime!(k.bias) {
            constant = bias[lane];
        }
        // By lag: gradients of the inputs in reach of step `t`, and of the taps.
        let mut grads = Array::<Vector<f32, V>>::new(k.d_conv);
        let mut grad_taps = Array::<Vector<f32, V>>::new(k.d_conv);
        let mut grad_bias = Vector::<f32, V>::new(0.0f32);
        #[unroll]
        for lag in 0..k.d_conv {
            grads[lag] = Vector::new(0.0f32);
            grad_taps[lag] = Vector::new(0.0f32);
        }
        for t in from..stop {
            let row = entry * seq_len + t;
            since = advance(since, &history, at_resets, row, k);
            let now = Vector::<f32, V>::cast_from(x[row * width + lane]);
            let mut grad = Vector::<f32, V>::cast_from(grad_y[row * width + lane]);
            if comptime!(k.silu) {
                let pre = filtered::<V>(now, &window, &taps, constant, since, k);
                #[unroll]
                for s in 0..size {
                    let value = pre.extract(s);
                    let gate = sigmoid(value, k.cuda);
                    grad.insert(s, grad.extract(s) * gate * (1.0 + value * (1.0 - gate)));
                }
            }
            let own = t < to;
            if own {
                grad_bias += grad;
                grad_taps[0] += grad * now;
            }
            grads[0] += grad * taps[0];
            #[unroll]
            for lag in 1..k.d_conv {
                let mut seen = true.runtime();
                if comptime!(k.resets) {
                    seen = lag <= since;
                }
                if seen {
                    grads[lag] += grad * taps[lag];
                    if own {
                        grad_taps[lag] += grad * window[comptime!(lag - 1)];
                    }
                }
            }
            // The oldest input of the window is out of reach of later steps.
            if t >= from + before {
                grad_x[(row - before) * width + lane] = Vector::cast_from(grads[before]);
            } else {
                if comptime!(k.initial) {
                    if from == 0 {
                        param_grads[at_initial + (entry * before + t) * width + lane] =
                            grads[before];
                    }
                }
            }
            #[unroll]
            for i in 0..before {
                grads[comptime!(before - i)] = grads[comptime!(before - i - 1)];
            }
            grads[0] = Vector::new(0.0f32);
            #[unroll]
            for i in 0..comptime!(k.window - 1) {
                window[comptime!(k.window - 1 - i)] = window[comptime!(k.window - 2 - i)];
            }
            window[0] = now;
        }
        // At the end of the sequence some inputs still wait, `lag` steps before `stop`.
        #[unroll]
        for i in 0..before {
            let lag = comptime!(before - i);
            if stop >= from + lag {
                if stop - lag < to {
                    let row = entry * seq_len + stop - lag;
                    grad_x[row * width + lane] = Vector::cast_from(grads[lag]);
                }
            } else {
                if comptime!(k.initial) {
                    if from == 0 {
                        let row = entry * before + stop + comptime!(before - lag);
                        param_grads[at_initial + row * width + lane] = grads[lag];
                    }
                }
            }
        }
        let at = owner * comptime!(k.d_conv + 1) * width + lane;
        #[unroll]
        for lag in 0..k.d_conv {
            param_grads[at + lag * width] = grad_taps[lag];
        }
        param_grads[at + k.d_conv * width] = grad_bias;
    }
}

/// Sums the gradients of taps and bias over `entries`, eight at a time and always in the same order.
#[cube(launch_unchecked)]
pub(super) fn conv_reduce(
    param_grads: &Tensor<f32>,
    grad_weight: &mut Tensor<f32>,
    grad_bias: &mut Tensor<f32>,
    entries: usize,
    channels: usize,
    #[comptime] d_conv: usize,
    #[comptime] bias: bool,
) {
    let rows = comptime!(d_conv + 1);
    if ABSOLUTE_POS < rows * channels {
        let channel = ABSOLUTE_POS % channels;
        let lag = ABSOLUTE_POS / channels;
        let mut sums = Array::<f32>::new(8usize);
        #[unroll]
        for i in 0..8usize {
            sums[i] = 0.0f32;
        }
        for first in 0..(entries + 7) / 8 {
            #[unroll]
            for i in 0..8usize {
                let entry = first * 8 + i;
                let inside = entry < entries;
                let at = select(inside, entry, 0) * rows * channels + ABSOLUTE_POS;
                sums[i] += select(inside, param_grads[at], 0.0);
            }
        }
        let sum = ((sums[0] + sums[1]) + (sums[2] + sums[3]))
            + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
        if lag < d_conv {
            grad_weight[channel * d_conv + (d_conv - 1 - lag)] = sum;
        } else {
            if comptime!(bias) {
                grad_bias[channel] = sum;
            }
        }
    }
}
