//! What both directions share: who does what, the way of a tile into a cube, sums over lanes, and the
//! states between segments.
//!
//! A cube is some channels of one batch entry and one segment of the sequence. `lanes` neighbouring
//! units of a plane share a channel, `per` states each; every unit also loads and finishes its share
//! of a channel's steps, so that softplus, gate and their like are computed once. What a lane has
//! computed for its step reaches the others by shuffles, and the lanes' sums for `lanes` steps come
//! back in one transposing butterfly, after which lane `i` holds the sum of step `i`. Rows of `b` and
//! `c` are read by all channels and go through shared memory.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::prelude::*;

use crate::ops::kernel::{decay, softplus};

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::ops::selective_scan) struct Variant {
    /// Units that share a channel, a power of two.
    pub(super) lanes: usize,
    /// States of a unit, a power of two; what lies beyond `d_state` stays zero.
    pub(super) per: usize,
    /// Steps of a tile, a multiple of `lanes`; states are saved at the start of each.
    pub(super) steps: usize,
    /// Planes of a cube.
    pub(super) planes: usize,
    pub(super) d: bool,
    pub(super) z: bool,
    pub(super) bias: bool,
    pub(super) softplus: bool,
    pub(super) initial: bool,
    pub(super) resets: bool,
    pub(super) save: bool,
    pub(super) grad_final: bool,
    /// Whether the chip's own exponential may be used.
    pub(super) cuda: bool,
    /// Whether only the segment's own contribution to its last state is computed.
    pub(super) local: bool,
}

impl Variant {
    /// States of a channel with those that stay zero.
    pub(super) fn stride(&self) -> usize {
        self.lanes * self.per
    }

    /// Channels of a plane.
    pub(super) fn columns(&self) -> usize {
        32 / self.lanes
    }

    /// Channels of a cube.
    pub(super) fn channels(&self) -> usize {
        self.columns() * self.planes
    }

    /// Steps of a tile that one unit loads.
    pub(super) fn rounds(&self) -> usize {
        self.steps / self.lanes
    }

    /// Units of a cube.
    pub(super) fn units(&self) -> usize {
        32 * self.planes
    }

    /// Shared memory of the backward pass, the larger one: a tile's rows, and totals of each plane.
    pub(super) fn shared_bytes(&self) -> usize {
        2 * self.steps * self.stride() * (2 + self.planes) * size_of::<f32>()
    }

    /// Rows of a tile as vectors of `size`, `b` and `c` together.
    pub(super) fn tile_vectors(&self, size: usize) -> usize {
        2 * self.steps * self.stride() / size
    }
}

/// The sum over a segment of `delta` that stands for a reset inside of it: nothing of the state before
/// the segment is left behind it.
const CLEARED: f32 = 1e38;

/// What a unit works on.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) entry: usize,
    pub(super) segment: usize,
    pub(super) group: usize,
    /// Number of the cube among those of the group.
    pub(super) slice: usize,
    pub(super) slices: usize,
    pub(super) channel: usize,
    /// Whether the channel is this unit's; units without one repeat the last and store nothing.
    pub(super) inside: bool,
    /// Number of the unit in the cube, and among those that share its channel.
    pub(super) unit: usize,
    pub(super) lane: usize,
    /// First step, and the one behind the last.
    pub(super) from: usize,
    pub(super) stop: usize,
}

#[cube]
pub(super) fn place(
    seq_len: usize,
    seg_len: usize,
    n_segments: usize,
    d_inner: usize,
    n_groups: usize,
    #[comptime] k: Variant,
) -> Place {
    let channels = comptime!(k.channels());
    let per_group = d_inner / n_groups;
    let slices = (per_group + channels - 1) / channels;
    let slice = CUBE_POS % slices;
    let group = CUBE_POS / slices % n_groups;
    let segment = CUBE_POS / (slices * n_groups) % n_segments;
    let entry = CUBE_POS / (slices * n_groups * n_segments);
    let unit = UNIT_POS as usize;
    let offset = slice * channels + unit / k.lanes;
    let inside = offset < per_group;
    let from = segment * seg_len;
    Place {
        entry,
        segment,
        group,
        slice,
        slices,
        channel: group * per_group + select(inside, offset, per_group - 1),
        inside,
        unit,
        lane: unit % k.lanes,
        from,
        stop: select(from + seg_len < seq_len, from + seg_len, seq_len),
    }
}

/// The unit's part of `a`, zero beyond the last state; with the chip's exponential in units of `ln 2`.
#[cube]
pub(super) fn load_a(
    a: &Tensor<f32>,
    to: &mut Array<f32>,
    d_state: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    #[unroll]
    for i in 0..k.per {
        let n = p.lane * k.per + i;
        let inside = n < d_state;
        let value = a[p.channel * d_state + select(inside, n, 0)];
        let scaled = if comptime!(k.cuda) { value * std::f32::consts::LOG2_E } else { value };
        to[i] = select(inside, scaled, 0.0);
    }
}

/// The unit's part of states `[.., d_inner, d_state]`, zero beyond the last; `owner` counts channels.
#[cube]
pub(super) fn load_state(
    from: &Tensor<f32>,
    to: &mut Array<f32>,
    owner: usize,
    d_state: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    #[unroll]
    for i in 0..k.per {
        let n = p.lane * k.per + i;
        let inside = n < d_state && p.inside;
        to[i] = select(inside, from[owner * d_state + select(inside, n, 0)], 0.0);
    }
}

#[cube]
pub(super) fn store_state(
    from: &Array<f32>,
    to: &mut Tensor<f32>,
    owner: usize,
    d_state: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    #[unroll]
    for i in 0..k.per {
        let n = p.lane * k.per + i;
        if p.inside && n < d_state {
            to[owner * d_state + n] = from[i];
        }
    }
}

/// The unit's steps of a tile, unconverted: a conversion would wait for the load. Behind the last step
/// it is repeated.
#[cube]
pub(super) fn load_steps<E: Float>(
    from: &Tensor<E>,
    to: &mut Array<E>,
    first: usize,
    seq_len: usize,
    d_inner: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    #[unroll]
    for j in 0..comptime!(k.rounds()) {
        let t = first + comptime!(j * k.lanes) + p.lane;
        let row = p.entry * seq_len + select(t < p.stop, t, p.stop - 1);
        to[j] = from[row * d_inner + p.channel];
    }
}

/// The unit's flags of a tile.
#[cube]
pub(super) fn load_resets(
    from: &Tensor<f32>,
    to: &mut Array<f32>,
    first: usize,
    seq_len: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    if comptime!(k.resets) {
        #[unroll]
        for j in 0..comptime!(k.rounds()) {
            let t = first + comptime!(j * k.lanes) + p.lane;
            let value = from[p.entry * seq_len + select(t < p.stop, t, p.stop - 1)];
            to[j] = select(t < p.stop, value, 0.0);
        }
    }
}

/// The unit's share of a tile's rows, unconverted; `width` vectors a row.
#[cube]
pub(super) fn load_rows<R: Float, V: Size>(
    b: &Tensor<Vector<R, V>>,
    c: &Tensor<Vector<R, V>>,
    to: &mut Array<Vector<R, V>>,
    first: usize,
    seq_len: usize,
    n_groups: usize,
    width: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    let size = V::value();
    let slots = comptime!(k.stride() / size);
    let half = comptime!(k.steps * k.stride() / size);
    let units = comptime!(k.units());
    #[unroll]
    for i in 0..comptime!(k.tile_vectors(size).div_ceil(k.units())) {
        let at = i * units + p.unit;
        let of_b = at < half;
        let rest = at % half;
        let t = first + rest / slots;
        let slot = rest % slots;
        let row = (p.entry * seq_len + select(t < p.stop, t, p.stop - 1)) * n_groups + p.group;
        let from = row * width + select(slot < width, slot, 0);
        to[i] = if of_b { b[from] } else { c[from] };
    }
}

/// Brings what [`load_rows`] has read into shared memory, `offset` vectors behind its beginning: rows of
/// `b`, then rows of `c`, zero where there is no state or no step.
#[cube]
pub(super) fn share_rows<R: Float, V: Size>(
    rows: &Array<Vector<R, V>>,
    to: &mut Shared<[Vector<f32, V>]>,
    offset: usize,
    first: usize,
    width: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    let size = V::value();
    let slots = comptime!(k.stride() / size);
    let half = comptime!(k.steps * k.stride() / size);
    let units = comptime!(k.units());
    let all = comptime!(k.tile_vectors(size));
    #[unroll]
    for i in 0..comptime!(k.tile_vectors(size).div_ceil(k.units())) {
        let at = i * units + p.unit;
        let t = first + at % half / slots;
        let mut value = Vector::<f32, V>::cast_from(rows[i]);
        if t >= p.stop || at % slots >= width {
            value = Vector::new(0.0f32);
        }
        if comptime!((i + 1) * units <= all) {
            to[offset + at] = value;
        } else {
            if at < all {
                to[offset + at] = value;
            }
        }
    }
}

/// Step size after bias and softplus, and its slope.
#[cube]
pub(super) fn step_size(raw: f32, #[comptime] k: Variant) -> (f32, f32) {
    if comptime!(k.softplus) { softplus(raw, k.cuda) } else { (raw, 1.0f32.runtime()) }
}

/// The value of lane `lane` of the unit's channel.
#[cube]
pub(super) fn of_lane(
    value: f32,
    #[comptime] lane: usize,
    p: &Place,
    #[comptime] k: Variant,
) -> f32 {
    if comptime!(k.lanes == 1) {
        value
    } else {
        let source = (p.unit - p.lane) % 32 + lane;
        plane_shuffle(value, source as u32)
    }
}

/// The sum over the lanes of a channel, in all of them.
#[cube]
pub(super) fn sum_lanes(value: f32, #[comptime] k: Variant) -> f32 {
    let mut sum = value;
    #[unroll]
    for stage in 0..comptime!(k.lanes.ilog2() as usize) {
        sum += plane_shuffle_xor(sum, comptime!((k.lanes >> (stage + 1)) as u32));
    }
    sum
}

/// `values[i]` is a lane's part of the sum of step `i`; returns the sum of the step of the unit's lane.
///
/// Each stage halves what a lane is in charge of, and hands the other half to the lane that is.
#[cube]
pub(super) fn sum_steps(values: &mut Array<f32>, p: &Place, #[comptime] k: Variant) -> f32 {
    #[unroll]
    for stage in 0..comptime!(k.lanes.ilog2() as usize) {
        let half = comptime!(k.lanes >> (stage + 1));
        let upper = p.lane & half != 0;
        #[unroll]
        for i in 0..half {
            let low = values[i];
            let high = values[comptime!(i + half)];
            let given = plane_shuffle_xor(select(upper, low, high), comptime!(half as u32));
            values[i] = select(upper, high, low) + given;
        }
    }
    values[0]
}

/// The states that segments start from (or, in reverse, the gradients that reach their ends): between
/// segments a state decays by `exp(a * sum of delta)` and gains the segment's own contribution.
///
/// `local`, `out`: `[batch, n_segments, d_inner, d_state]`; `sums`: `[batch, n_segments, d_inner]`;
/// `start`: `[batch, d_inner, d_state]`; `len` states.
#[cube(launch_unchecked)]
pub(super) fn carry(
    a: &Tensor<f32>,
    sums: &Tensor<f32>,
    local: &Tensor<f32>,
    start: &Tensor<f32>,
    out: &mut Tensor<f32>,
    len: usize,
    n_segments: usize,
    d_inner: usize,
    d_state: usize,
    #[comptime] given: bool,
    #[comptime] reverse: bool,
) {
    if ABSOLUTE_POS < len {
        let inner = d_inner * d_state;
        let entry = ABSOLUTE_POS / inner;
        let rest = ABSOLUTE_POS % inner;
        let a = a[rest];
        let mut state = 0.0f32;
        if comptime!(given) {
            state = start[ABSOLUTE_POS];
        }
        for i in 0..n_segments {
            let segment = if comptime!(reverse) { n_segments - 1 - i } else { i };
            let owner = entry * n_segments + segment;
            let at = owner * inner + rest;
            out[at] = state;
            let sum = sums[owner * d_inner + rest / d_state];
            state = select(sum >= CLEARED, 0.0, (a * sum).exp() * state) + local[at];
        }
    }
}

/// The sum of the step sizes of a segment from the parts of the lanes.
#[cube]
pub(super) fn store_sum(
    sum: f32,
    cleared: f32,
    to: &mut Tensor<f32>,
    n_segments: usize,
    d_inner: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    let mut total = sum_lanes(sum, k);
    if comptime!(k.resets) {
        total = select(sum_lanes(cleared, k) > 0.0, CLEARED, total);
    }
    if p.inside && p.lane == 0 {
        to[(p.entry * n_segments + p.segment) * d_inner + p.channel] = total;
    }
}

/// `exp(dt a)` with `a` from [`load_a`].
#[cube]
pub(super) fn decays(dt: f32, a: f32, #[comptime] k: Variant) -> f32 {
    decay(dt * a, k.cuda)
}
