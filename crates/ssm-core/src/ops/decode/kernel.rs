//! Products of matrices with single rows, and what stands between them, in few launches.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

use super::FURTHER;
use crate::ops::kernel::{sigmoid, softplus};

/// Units that share a row of a matrix.
pub(super) const LANES: usize = 32;

/// Units of a cube of [`product`].
pub(super) const UNITS: usize = 128;

/// Units of a cube of [`add_norm`] and of [`argmax`].
pub(super) const WIDE: usize = 256;

/// What a [`product`] consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Rows of the matrix that [`LANES`] units take together.
    pub(super) span: usize,
    /// Vectors of a row for each of them.
    pub(super) turns: usize,
    /// Whether `x` is normed.
    pub(super) norm: bool,
    /// Whether something is added to the result, which then has no convolution.
    pub(super) add: bool,
    /// Width of the convolution that follows, 0 for none.
    pub(super) d_conv: usize,
    /// Whether the convolution has a bias.
    pub(super) bias: bool,
    /// Whether planes of 32 units add without shared memory.
    pub(super) planes: bool,
    /// Whether the chip's own instructions are at hand.
    pub(super) cuda: bool,
}

/// The sum of `value` over the [`LANES`] units of a row, the same bits in each.
#[cube]
fn row_sum(value: f32, sums: &mut Shared<[f32]>, #[comptime] planes: bool) -> f32 {
    if comptime!(planes) {
        plane_sum(value)
    } else {
        let unit = UNIT_POS as usize;
        let lane = unit % comptime!(LANES);
        sums[unit] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(LANES.ilog2() as usize) {
            let half = comptime!(LANES >> (step + 1));
            if lane < half {
                let other = sums[unit + half];
                sums[unit] += other;
            }
            sync_cube();
        }
        let sum = sums[unit - lane];
        // The next sum may not begin before all have read this one.
        sync_cube();
        sum
    }
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

/// A step of the convolution of channel `channel` of sequence `entry`, with SiLU; `past` moves on.
#[cube]
fn conv_step(
    x: f32,
    taps: &Tensor<f32>,
    bias: &Tensor<f32>,
    past: &mut Tensor<f32>,
    entry: usize,
    channel: usize,
    channels: usize,
    #[comptime] d_conv: usize,
    #[comptime] has_bias: bool,
    #[comptime] cuda: bool,
) -> f32 {
    let first = channel * d_conv;
    let mut sum = x * taps[first + comptime!(d_conv - 1)];
    if comptime!(has_bias) {
        sum += bias[channel];
    }
    #[unroll]
    for k in 0..comptime!(d_conv - 1) {
        let at = (entry * comptime!(d_conv - 1) + k) * channels + channel;
        let old = past[at];
        sum += old * taps[first + k];
        if comptime!(k > 0) {
            past[at - channels] = old;
        }
    }
    if comptime!(d_conv > 1) {
        past[(entry * comptime!(d_conv - 1) + comptime!(d_conv - 2)) * channels + channel] = x;
    }
    sum * sigmoid(sum, cuda)
}

/// `y = W norm(x) + add`, the first `channels` of it through the convolution.
///
/// `x`: `[batch, stride]` vectors, `weight`: `[d_out, width]` vectors; `added`: `[batch, d_out]`, or the
/// convolution's bias, as WebGPU binds seven tensors. A cube takes `span * UNITS / LANES` rows of the
/// matrix for one sequence.
#[cube(launch_unchecked)]
pub(super) fn product<E: Float, V: Size>(
    x: &Tensor<Vector<f32, V>>,
    norm: &Tensor<Vector<f32, V>>,
    weight: &Tensor<Vector<E, V>>,
    added: &Tensor<f32>,
    taps: &Tensor<f32>,
    past: &mut Tensor<f32>,
    y: &mut Tensor<f32>,
    d_out: usize,
    width: usize,
    stride: usize,
    channels: usize,
    epsilon: f32,
    #[comptime] form: Form,
    #[define(E)] _dtype: ElemType,
) {
    let mut sums = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let entry = CUBE_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let lane = unit % comptime!(LANES);
    let group = CUBE_POS_X as usize * comptime!(UNITS / LANES) + unit / comptime!(LANES);
    let first = group * comptime!(form.span);
    let mut partial = Array::<Vector<f32, V>>::new(form.span);
    #[unroll]
    for s in 0..form.span {
        partial[s] = Vector::new(0.0f32);
    }
    let mut squares = Vector::<f32, V>::new(0.0f32);
    #[unroll]
    for turn in 0..form.turns {
        let at = comptime!(turn * LANES) + lane;
        let inside = at < width;
        // What lies outside is read from the beginning and counts as zero.
        let place = select(inside, at, 0usize);
        let factor = Vector::<f32, V>::new(select(inside, 1.0f32, 0.0f32));
        let mut value = x[entry * stride + place] * factor;
        if comptime!(form.norm) {
            squares += value * value;
            value *= norm[place];
        }
        #[unroll]
        for s in 0..form.span {
            let row = select(first + s < d_out, first + s, 0usize);
            partial[s] += value * Vector::<f32, V>::cast_from(weight[row * width + place]);
        }
    }
    let mut scale = 1.0f32;
    if comptime!(form.norm) {
        let count = f32::cast_from(width * V::value());
        let mean = row_sum(lanes::<V>(squares), &mut sums, form.planes) / count;
        scale = 1.0f32 / (mean + epsilon).sqrt();
    }
    // Unit `s` of a group finishes its row `s`.
    let mut mine = 0.0f32;
    #[unroll]
    for s in 0..form.span {
        let sum = row_sum(lanes::<V>(partial[s]), &mut sums, form.planes);
        mine = select(lane == s, sum, mine);
    }
    let row = first + lane;
    if lane < comptime!(form.span) {
        if row < d_out {
            let at = entry * d_out + row;
            let mut value = mine * scale;
            if comptime!(form.add) {
                value += added[at];
            }
            if comptime!(form.d_conv > 0) {
                if row < channels {
                    value = conv_step(
                        value,
                        taps,
                        added,
                        past,
                        entry,
                        row,
                        channels,
                        form.d_conv,
                        form.bias,
                        form.cuda,
                    );
                }
            }
            y[at] = value;
        }
    }
}

/// A step of the convolution on the first `channels` columns of `x`, one unit for each of them.
#[cube(launch_unchecked)]
pub(super) fn conv<E: Float>(
    x: &Tensor<E>,
    taps: &Tensor<f32>,
    bias: &Tensor<f32>,
    past: &mut Tensor<f32>,
    u: &mut Tensor<E>,
    len: usize,
    stride: usize,
    channels: usize,
    #[comptime] d_conv: usize,
    #[comptime] has_bias: bool,
    #[comptime] cuda: bool,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let entry = ABSOLUTE_POS / channels;
        let channel = ABSOLUTE_POS % channels;
        let value = f32::cast_from(x[entry * stride + channel]);
        let value =
            conv_step(value, taps, bias, past, entry, channel, channels, d_conv, has_bias, cuda);
        u[ABSOLUTE_POS] = E::cast_from(value);
    }
}

/// A step of the recurrence, one unit for each channel of a sequence.
///
/// `dt_weight`: `[d_inner, dt_turns]` vectors, `state`: `[.., turns]` vectors; `params`: for each channel
/// `turns` vectors of `a_log`, then [`FURTHER`] numbers, of which the bias of the step size and `D` are the
/// first.
#[cube(launch_unchecked)]
pub(super) fn state<E: Float, W: Float, R: Size, V: Size>(
    u: &Tensor<E>,
    z: &Tensor<E>,
    projected: &Tensor<E>,
    dt_weight: &Tensor<Vector<W, R>>,
    params: &Tensor<Vector<f32, V>>,
    state: &mut Tensor<Vector<f32, V>>,
    y: &mut Tensor<E>,
    len: usize,
    d_inner: usize,
    stride_u: usize,
    stride_z: usize,
    #[comptime] dt_turns: usize,
    #[comptime] turns: usize,
    #[comptime] cuda: bool,
    #[define(E, W)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS < len {
        let entry = ABSOLUTE_POS / d_inner;
        let channel = ABSOLUTE_POS % d_inner;
        let rank_size = R::value();
        let size = V::value();
        let rank = comptime!(dt_turns * rank_size);
        let d_state = comptime!(turns * size);
        let row = entry * comptime!(rank + 2 * d_state);
        let own = channel * comptime!(turns + FURTHER / size);
        let further = own + turns;
        // Vectors may hold both numbers, or one each.
        let mut dt = params[further].extract(0usize);
        #[unroll]
        for turn in 0..dt_turns {
            let weight = Vector::<f32, R>::cast_from(dt_weight[channel * dt_turns + turn]);
            #[unroll]
            for s in 0..rank_size {
                let value = f32::cast_from(projected[row + comptime!(turn * rank_size + s)]);
                dt += value * weight.extract(s);
            }
        }
        let (delta, _slope) = softplus(dt, cuda);
        let u = f32::cast_from(u[entry * stride_u + channel]);
        let z = f32::cast_from(z[(entry + 1) * stride_z - d_inner + channel]);
        let input = delta * u;
        let mut sum = params[further + comptime!(1 / size)].extract(comptime!(1 % size)) * u;
        #[unroll]
        for turn in 0..turns {
            let at = ABSOLUTE_POS * turns + turn;
            let old = state[at];
            let exponent = params[own + turn];
            let mut new = Vector::<f32, V>::empty();
            #[unroll]
            for s in 0..size {
                let n = comptime!(turn * size + s);
                let decay = (-(delta * exponent.extract(s).exp())).exp();
                let b = f32::cast_from(projected[row + comptime!(rank + n)]);
                let c = f32::cast_from(projected[row + comptime!(rank + d_state + n)]);
                let h = decay * old.extract(s) + input * b;
                sum += c * h;
                new.insert(s, h);
            }
            state[at] = new;
        }
        y[ABSOLUTE_POS] = E::cast_from(sum * z * sigmoid(z, cuda));
    }
}

/// `x + add`, in the place of `x`, and its RMSNorm; a cube takes one row of `width` elements.
#[cube(launch_unchecked)]
pub(super) fn add_norm<A: Float, E: Float>(
    x: &mut Tensor<f32>,
    add: &Tensor<A>,
    weight: &Tensor<f32>,
    y: &mut Tensor<E>,
    width: usize,
    epsilon: f32,
    #[comptime] has_add: bool,
    #[define(A, E)] _dtypes: [ElemType; 2],
) {
    let mut sums = Shared::<[f32]>::new_slice(comptime!(WIDE));
    let unit = UNIT_POS as usize;
    let first = CUBE_POS_X as usize * width;
    let turns = (width + comptime!(WIDE - 1)) / comptime!(WIDE);
    let mut squares = 0.0f32;
    for turn in 0..turns {
        let at = turn * comptime!(WIDE) + unit;
        if at < width {
            let mut value = x[first + at];
            if comptime!(has_add) {
                value += f32::cast_from(add[first + at]);
                x[first + at] = value;
            }
            squares += value * value;
        }
    }
    sums[unit] = squares;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(WIDE.ilog2() as usize) {
        let half = comptime!(WIDE >> (step + 1));
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
    }
    let r = 1.0f32 / (sums[0] / f32::cast_from(width) + epsilon).sqrt();
    for turn in 0..turns {
        let at = turn * comptime!(WIDE) + unit;
        if at < width {
            y[first + at] = E::cast_from(x[first + at] * r * weight[at]);
        }
    }
}

/// Above any logit, and below; what is not between them is infinite or no number.
const HIGHEST: f32 = 3.4e38;
const LOWEST: f32 = -3.4e38;

/// What is remembered where no token can be chosen.
const NO_TOKEN: i64 = -1;

/// The place of the largest of the first `n_vocab` values of a row, one cube for each row. Of a row that
/// holds something else than finite numbers -1 is remembered; the newest is a token in any case, as an
/// embedding is read there.
#[cube(launch_unchecked)]
pub(super) fn argmax<E: Float>(
    logits: &Tensor<E>,
    newest: &mut Tensor<i32>,
    ring: &mut Tensor<i32>,
    count: &mut Tensor<i32>,
    n_vocab: usize,
    stride: usize,
    capacity: usize,
    #[define(E)] _dtype: ElemType,
) {
    let mut values = Shared::<[f32]>::new_slice(comptime!(WIDE));
    let mut places = Shared::<[i32]>::new_slice(comptime!(WIDE));
    let unit = UNIT_POS as usize;
    let row = CUBE_POS_X as usize;
    let turns = (n_vocab + comptime!(WIDE - 1)) / comptime!(WIDE);
    // Superfluous units hold less than any value.
    let mut best = f32::new(LOWEST);
    let mut place = 0usize;
    for turn in 0..turns {
        let at = turn * comptime!(WIDE) + unit;
        if at < n_vocab {
            let value = f32::cast_from(logits[row * stride + at]);
            if value.abs() < HIGHEST {
                if value > best {
                    best = value;
                    place = at;
                }
            } else {
                best = f32::new(HIGHEST);
            }
        }
    }
    values[unit] = best;
    places[unit] = i32::cast_from(place);
    sync_cube();
    #[unroll]
    for step in 0..comptime!(WIDE.ilog2() as usize) {
        let half = comptime!(WIDE >> (step + 1));
        if unit < half {
            let value = values[unit + half];
            let at = places[unit + half];
            let own = values[unit];
            let own_at = places[unit];
            // The first of equals.
            if value > own || (value == own && at < own_at) {
                values[unit] = value;
                places[unit] = at;
            }
        }
        sync_cube();
    }
    if unit == 0 {
        let lost = values[0] >= HIGHEST;
        let token = places[0];
        let n = count[row];
        newest[row] = select(lost, 0i32, token);
        ring[row * capacity + usize::cast_from(n) % capacity] =
            select(lost, i32::new(NO_TOKEN), token);
        count[row] = n + 1;
    }
}

/// Copies `len` integers.
#[cube(launch_unchecked)]
pub(super) fn set(from: &Tensor<i32>, to: &mut Tensor<i32>, len: usize) {
    if ABSOLUTE_POS < len {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}
