//! Gradients; or of a segment what its outputs add to the gradient of the state before it.

#![allow(
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: conditions known then stay apart, arguments are buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

use crate::ops::{
    kernel::sigmoid,
    selective_scan::tiled::kernel::{
        Place, Variant, decays, load_a, load_resets, load_rows, load_state, load_steps, of_lane,
        place, share_rows, step_size, store_state, store_sum, sum_lanes, sum_steps,
    },
};

/// Sums `values` over the channels of a plane, each total in one lane (or some equal ones), and writes it
/// to `totals`, `[2, stride]` behind `offset`: the units of a channel hold `2 * per` values each, for
/// `b`, then for `c`.
///
/// Stages are those of [`sum_steps`], over channels, until a lane is in charge of one value.
#[cube]
fn share_totals(
    values: &mut Array<f32>,
    totals: &mut Shared<[f32]>,
    offset: usize,
    p: &Place,
    #[comptime] k: Variant,
) {
    let all = comptime!(2 * k.per);
    let columns = comptime!(k.columns());
    let stages = comptime!(all.min(columns).ilog2() as usize);
    #[unroll]
    for stage in 0..stages {
        let half = comptime!(all >> (stage + 1));
        let mask = comptime!(k.lanes * (columns >> (stage + 1)));
        let upper = p.unit & mask != 0;
        #[unroll]
        for i in 0..half {
            let low = values[i];
            let high = values[comptime!(i + half)];
            let given = plane_shuffle_xor(select(upper, low, high), comptime!(mask as u32));
            values[i] = select(upper, high, low) + given;
        }
    }
    // More channels than values: the lanes that are left hold parts of the same total.
    #[unroll]
    for stage in stages..comptime!(columns.ilog2() as usize) {
        let mask = comptime!(k.lanes * (columns >> (stage + 1)));
        values[0] += plane_shuffle_xor(values[0], comptime!(mask as u32));
    }
    let column = p.unit % 32 / k.lanes;
    let kept = comptime!((all / columns).max(1));
    let same = comptime!((columns / all).max(1));
    if column % same == 0 {
        #[unroll]
        for r in 0..kept {
            let value = column / same * kept + r;
            let of_c = value / k.per;
            let at = of_c * comptime!(k.stride()) + p.lane * k.per + value % k.per;
            totals[offset + at] = values[r];
        }
    }
}

/// - `states`: `[batch, tiles, d_inner, stride]`
/// - `grad_final`: `[batch, n_segments, d_inner, d_state]`, what reaches the end of each segment
/// - `row_grads`, `param_grads`: see `scan_reduce`; entries are segments
/// - `grad_initial`: `[batch, d_inner, d_state]`
#[cube(launch_unchecked)]
pub(in crate::ops::selective_scan::tiled) fn scan_bwd<
    U: Float,
    T: Float,
    Z: Float,
    R: Float,
    V: Size,
>(
    u: &Tensor<U>,
    delta: &Tensor<T>,
    a: &Tensor<f32>,
    b: &Tensor<Vector<R, V>>,
    c: &Tensor<Vector<R, V>>,
    d: &Tensor<f32>,
    z: &Tensor<Z>,
    bias: &Tensor<f32>,
    resets: &Tensor<f32>,
    states: &Tensor<Vector<f32, V>>,
    grad_y: &Tensor<U>,
    grad_final: &Tensor<f32>,
    grad_u: &mut Tensor<U>,
    grad_delta: &mut Tensor<T>,
    grad_z: &mut Tensor<Z>,
    row_grads: &mut Tensor<f32>,
    param_grads: &mut Tensor<f32>,
    grad_initial: &mut Tensor<f32>,
    batch: usize,
    seq_len: usize,
    seg_len: usize,
    n_segments: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
    #[comptime] k: Variant,
    #[define(U, T, Z, R)] _dtypes: [ElemType; 4],
) {
    let size = V::value();
    let rounds = comptime!(k.rounds());
    let stride = comptime!(k.stride());
    let slots = comptime!(k.stride() / size);
    let own = comptime!(k.per / size);
    let half = comptime!(k.steps * k.stride() / size);
    let width = d_state / size;
    let p = place(seq_len, seg_len, n_segments, d_inner, n_groups, k);
    let tiles = (seq_len + comptime!(k.steps - 1)) / k.steps;

    let mut a_own = Array::<f32>::new(k.per);
    load_a(a, &mut a_own, d_state, &p, k);
    let mut g = Array::<f32>::new(k.per);
    let mut grad_a = Array::<f32>::new(k.per);
    #[unroll]
    for i in 0..k.per {
        g[i] = 0.0f32;
        grad_a[i] = 0.0f32;
    }
    let segment = p.entry * n_segments + p.segment;
    let segment_owner = segment * d_inner + p.channel;
    if comptime!(k.grad_final) {
        load_state(grad_final, &mut g, segment_owner, d_state, &p, k);
    }
    let mut skip = 0.0f32;
    if comptime!(k.d) {
        skip = d[p.channel];
    }
    let mut shift = 0.0f32;
    if comptime!(k.bias) {
        shift = bias[p.channel];
    }
    let mut grad_skip = 0.0f32;
    let mut grad_shift = 0.0f32;

    let n_tiles = (p.stop - p.from + comptime!(k.steps - 1)) / k.steps;
    let last = p.from + (n_tiles - 1) * k.steps;
    let mut next_u = Array::<U>::new(rounds);
    let mut next_delta = Array::<T>::new(rounds);
    let mut next_z = Array::<Z>::new(rounds);
    let mut next_grad = Array::<U>::new(rounds);
    let mut next_resets = Array::<f32>::new(rounds);
    let mut next_state = Array::<Vector<f32, V>>::new(own);
    let mut next_rows =
        Array::<Vector<R, V>>::new(comptime!(k.tile_vectors(size).div_ceil(k.units())));
    load_steps::<U>(u, &mut next_u, last, seq_len, d_inner, &p, k);
    load_steps::<T>(delta, &mut next_delta, last, seq_len, d_inner, &p, k);
    load_steps::<U>(grad_y, &mut next_grad, last, seq_len, d_inner, &p, k);
    if comptime!(k.z) {
        load_steps::<Z>(z, &mut next_z, last, seq_len, d_inner, &p, k);
    }
    load_resets(resets, &mut next_resets, last, seq_len, &p, k);
    load_rows::<R, V>(b, c, &mut next_rows, last, seq_len, n_groups, width, &p, k);
    let saved = (p.entry * tiles + last / k.steps) * d_inner + p.channel;
    #[unroll]
    for q in 0..own {
        next_state[q] = states[saved * slots + p.lane * own + q];
    }

    let mut rows = Shared::<[Vector<f32, V>]>::new_slice(comptime!(k.tile_vectors(size)));
    let mut totals = Shared::<[f32]>::new_slice(comptime!(k.steps * k.planes * 2 * k.stride()));
    let mut us = Array::<f32>::new(rounds);
    let mut dts = Array::<f32>::new(rounds);
    let mut dtus = Array::<f32>::new(rounds);
    let mut slopes = Array::<f32>::new(rounds);
    let mut dys = Array::<f32>::new(rounds);
    // `grad_y silu'(z)`, then the gradient of `z`.
    let mut dzs = Array::<f32>::new(rounds);
    let mut flags = Array::<f32>::new(rounds);
    let mut start = Array::<f32>::new(k.per);
    // States after each step of the tile.
    let mut after = Array::<f32>::new(comptime!(k.steps * k.per));

    for back in 0..n_tiles {
        let first = last - back * k.steps;
        #[unroll]
        for j in 0..rounds {
            let live = p.inside && first + comptime!(j * k.lanes) + p.lane < p.stop;
            us[j] = f32::cast_from(next_u[j]);
            let (dt, slope) = step_size(f32::cast_from(next_delta[j]) + shift, k);
            dts[j] = select(live, dt, 0.0);
            dtus[j] = select(live, dt * us[j], 0.0);
            slopes[j] = slope;
            let dy = f32::cast_from(next_grad[j]);
            if comptime!(k.z) {
                let value = f32::cast_from(next_z[j]);
                let gate = sigmoid(value, k.cuda);
                dys[j] = select(live, dy * value * gate, 0.0);
                dzs[j] = dy * gate * (1.0 + value * (1.0 - gate));
            } else {
                dys[j] = select(live, dy, 0.0);
            }
            if comptime!(k.resets) {
                flags[j] = next_resets[j];
            }
        }
        #[unroll]
        for q in 0..own {
            #[unroll]
            for v in 0..size {
                start[comptime!(q * size + v)] = next_state[q].extract(v);
            }
        }
        share_rows::<R, V>(&next_rows, &mut rows, 0, first, width, &p, k);
        sync_cube();

        let ahead = select(back + 1 < n_tiles, first - k.steps, first);
        load_steps::<U>(u, &mut next_u, ahead, seq_len, d_inner, &p, k);
        load_steps::<T>(delta, &mut next_delta, ahead, seq_len, d_inner, &p, k);
        load_steps::<U>(grad_y, &mut next_grad, ahead, seq_len, d_inner, &p, k);
        if comptime!(k.z) {
            load_steps::<Z>(z, &mut next_z, ahead, seq_len, d_inner, &p, k);
        }
        load_resets(resets, &mut next_resets, ahead, seq_len, &p, k);
        load_rows::<R, V>(b, c, &mut next_rows, ahead, seq_len, n_groups, width, &p, k);
        let saved = (p.entry * tiles + ahead / k.steps) * d_inner + p.channel;
        #[unroll]
        for q in 0..own {
            next_state[q] = states[saved * slots + p.lane * own + q];
        }

        // The states of the tile once more.
        #[unroll]
        for j in 0..rounds {
            let mut sums_c = Array::<f32>::new(k.lanes);
            #[unroll]
            for s in 0..k.lanes {
                let step = comptime!(j * k.lanes + s);
                let dt = of_lane(dts[j], s, &p, k);
                let dtu = of_lane(dtus[j], s, &p, k);
                let mut reset = false.runtime();
                if comptime!(k.resets) {
                    reset = of_lane(flags[j], s, &p, k) != 0.0;
                }
                let row = comptime!(step * slots) + p.lane * own;
                let mut sum = 0.0f32;
                #[unroll]
                for q in 0..own {
                    let b_row = rows[row + q];
                    #[unroll]
                    for v in 0..size {
                        let i = comptime!(q * size + v);
                        let before = if comptime!(step == 0) {
                            start[i]
                        } else {
                            after[comptime!((step - 1) * k.per + i)]
                        };
                        let mut kept = decays(dt, a_own[i], k) * before;
                        if comptime!(k.resets) {
                            kept = select(reset, 0.0, kept);
                        }
                        after[comptime!(step * k.per + i)] = kept + dtu * b_row.extract(v);
                    }
                    if comptime!(k.z) {
                        let c_row = rows[row + half + q];
                        #[unroll]
                        for v in 0..size {
                            sum += c_row.extract(v) * after[comptime!(step * k.per + q * size + v)];
                        }
                    }
                }
                sums_c[s] = sum;
            }
            if comptime!(k.z) {
                dzs[j] *= sum_steps(&mut sums_c, &p, k) + skip * us[j];
            }
        }

        #[unroll]
        for round in 0..rounds {
            let j = comptime!(rounds - 1 - round);
            // Sums over states of `g b` and `a e h g`.
            let mut sums_b = Array::<f32>::new(k.lanes);
            let mut sums_a = Array::<f32>::new(k.lanes);
            #[unroll]
            for back_s in 0..k.lanes {
                let s = comptime!(k.lanes - 1 - back_s);
                let step = comptime!(j * k.lanes + s);
                let dt = of_lane(dts[j], s, &p, k);
                let dtu = of_lane(dtus[j], s, &p, k);
                let dy = of_lane(dys[j], s, &p, k);
                let mut reset = false.runtime();
                if comptime!(k.resets) {
                    reset = of_lane(flags[j], s, &p, k) != 0.0;
                }
                let row = comptime!(step * slots) + p.lane * own;
                let mut values = Array::<f32>::new(comptime!(2 * k.per));
                let mut sum_b = 0.0f32;
                let mut sum_a = 0.0f32;
                #[unroll]
                for q in 0..own {
                    let b_row = rows[row + q];
                    let c_row = rows[row + half + q];
                    #[unroll]
                    for v in 0..size {
                        let i = comptime!(q * size + v);
                        let before = if comptime!(step == 0) {
                            start[i]
                        } else {
                            after[comptime!((step - 1) * k.per + i)]
                        };
                        let e = decays(dt, a_own[i], k);
                        let mut carried = e * before;
                        let grad = g[i] + c_row.extract(v) * dy;
                        let mut passed = grad * e;
                        if comptime!(k.resets) {
                            carried = select(reset, 0.0, carried);
                            passed = select(reset, 0.0, passed);
                        }
                        let moved = grad * carried;
                        sum_b += grad * b_row.extract(v);
                        sum_a += moved * a_own[i];
                        grad_a[i] += moved * dt;
                        values[i] = grad * dtu;
                        values[comptime!(k.per + i)] = dy * after[comptime!(step * k.per + i)];
                        g[i] = passed;
                    }
                }
                sums_b[s] = sum_b;
                sums_a[s] = sum_a;
                let plane = p.unit / 32;
                let offset = (comptime!(step * k.planes) + plane) * comptime!(2 * k.stride());
                share_totals(&mut values, &mut totals, offset, &p, k);
            }
            let by_b = sum_steps(&mut sums_b, &p, k);
            let mut by_a = sum_steps(&mut sums_a, &p, k);
            if comptime!(k.cuda) {
                by_a *= std::f32::consts::LN_2;
            }
            let t = first + comptime!(j * k.lanes) + p.lane;
            if p.inside && t < p.stop {
                let at = (p.entry * seq_len + t) * d_inner + p.channel;
                let raw = (by_a + us[j] * by_b) * slopes[j];
                grad_u[at] = U::cast_from(dts[j] * by_b + skip * dys[j]);
                grad_delta[at] = T::cast_from(raw);
                if comptime!(k.z) {
                    grad_z[at] = Z::cast_from(dzs[j]);
                }
                grad_skip += dys[j] * us[j];
                grad_shift += raw;
            }
        }

        // Totals of the planes to totals of the cube.
        sync_cube();
        let words = comptime!(k.steps * 2 * k.stride());
        let units = comptime!(k.units());
        let cube = (p.entry * n_groups + p.group) * p.slices + p.slice;
        #[unroll]
        for i in 0..comptime!(words.div_ceil(units)) {
            let at = i * units + p.unit;
            let step = at / comptime!(2 * stride);
            let word = at % comptime!(2 * stride);
            if at < words && first + step < p.stop {
                let mut sum = 0.0f32;
                #[unroll]
                for plane in 0..k.planes {
                    sum += totals[(step * k.planes + plane) * comptime!(2 * stride) + word];
                }
                let row = cube * seq_len + first + step;
                row_grads[row * comptime!(2 * stride) + word] = sum;
            }
        }
    }

    let entries = batch * n_segments;
    store_state(&grad_a, param_grads, segment_owner, d_state, &p, k);
    let grad_skip = sum_lanes(grad_skip, k);
    let grad_shift = sum_lanes(grad_shift, k);
    if p.inside && p.lane == 0 {
        let at = entries * d_inner * d_state + segment_owner;
        param_grads[at] = grad_skip;
        param_grads[at + entries * d_inner] = grad_shift;
    }
    if comptime!(k.initial) {
        if p.segment == 0 {
            store_state(&g, grad_initial, p.entry * d_inner + p.channel, d_state, &p, k);
        }
    }
}

/// The gradient that a segment's own outputs add to the state before it, `[batch, n_segments, d_inner,
/// d_state]`, and the sums of its step sizes, `[batch, n_segments, d_inner]`.
#[cube(launch_unchecked)]
pub(in crate::ops::selective_scan::tiled) fn scan_bwd_local<
    U: Float,
    T: Float,
    Z: Float,
    R: Float,
    V: Size,
>(
    delta: &Tensor<T>,
    a: &Tensor<f32>,
    c: &Tensor<Vector<R, V>>,
    z: &Tensor<Z>,
    bias: &Tensor<f32>,
    resets: &Tensor<f32>,
    grad_y: &Tensor<U>,
    local: &mut Tensor<f32>,
    sums: &mut Tensor<f32>,
    seq_len: usize,
    seg_len: usize,
    n_segments: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
    #[comptime] k: Variant,
    #[define(U, T, Z, R)] _dtypes: [ElemType; 4],
) {
    let size = V::value();
    let rounds = comptime!(k.rounds());
    let slots = comptime!(k.stride() / size);
    let own = comptime!(k.per / size);
    let width = d_state / size;
    let p = place(seq_len, seg_len, n_segments, d_inner, n_groups, k);
    let mut a_own = Array::<f32>::new(k.per);
    load_a(a, &mut a_own, d_state, &p, k);
    let mut g = Array::<f32>::new(k.per);
    #[unroll]
    for i in 0..k.per {
        g[i] = 0.0f32;
    }
    let mut shift = 0.0f32;
    if comptime!(k.bias) {
        shift = bias[p.channel];
    }
    let n_tiles = (p.stop - p.from + comptime!(k.steps - 1)) / k.steps;
    let last = p.from + (n_tiles - 1) * k.steps;
    let mut next_delta = Array::<T>::new(rounds);
    let mut next_z = Array::<Z>::new(rounds);
    let mut next_grad = Array::<U>::new(rounds);
    let mut next_resets = Array::<f32>::new(rounds);
    let mut next_rows =
        Array::<Vector<R, V>>::new(comptime!(k.tile_vectors(size).div_ceil(k.units())));
    load_steps::<T>(delta, &mut next_delta, last, seq_len, d_inner, &p, k);
    load_steps::<U>(grad_y, &mut next_grad, last, seq_len, d_inner, &p, k);
    if comptime!(k.z) {
        load_steps::<Z>(z, &mut next_z, last, seq_len, d_inner, &p, k);
    }
    load_resets(resets, &mut next_resets, last, seq_len, &p, k);
    load_rows::<R, V>(c, c, &mut next_rows, last, seq_len, n_groups, width, &p, k);
    let mut rows = Shared::<[Vector<f32, V>]>::new_slice(comptime!(2 * k.tile_vectors(size)));
    let mut dts = Array::<f32>::new(rounds);
    let mut dys = Array::<f32>::new(rounds);
    let mut flags = Array::<f32>::new(rounds);
    let mut sum_dt = 0.0f32;
    let mut cleared = 0.0f32;
    for back in 0..n_tiles {
        let first = last - back * k.steps;
        #[unroll]
        for j in 0..rounds {
            let live = first + comptime!(j * k.lanes) + p.lane < p.stop;
            let (dt, _slope) = step_size(f32::cast_from(next_delta[j]) + shift, k);
            dts[j] = select(live, dt, 0.0);
            sum_dt += dts[j];
            let mut dy = f32::cast_from(next_grad[j]);
            if comptime!(k.z) {
                let value = f32::cast_from(next_z[j]);
                dy *= value * sigmoid(value, k.cuda);
            }
            dys[j] = select(live, dy, 0.0);
            if comptime!(k.resets) {
                flags[j] = next_resets[j];
                cleared += flags[j];
            }
        }
        let buffer = back % 2 * comptime!(k.tile_vectors(size));
        share_rows::<R, V>(&next_rows, &mut rows, buffer, first, width, &p, k);
        sync_cube();

        let ahead = select(back + 1 < n_tiles, first - k.steps, first);
        load_steps::<T>(delta, &mut next_delta, ahead, seq_len, d_inner, &p, k);
        load_steps::<U>(grad_y, &mut next_grad, ahead, seq_len, d_inner, &p, k);
        if comptime!(k.z) {
            load_steps::<Z>(z, &mut next_z, ahead, seq_len, d_inner, &p, k);
        }
        load_resets(resets, &mut next_resets, ahead, seq_len, &p, k);
        load_rows::<R, V>(c, c, &mut next_rows, ahead, seq_len, n_groups, width, &p, k);
        #[unroll]
        for round in 0..rounds {
            let j = comptime!(rounds - 1 - round);
            #[unroll]
            for back_s in 0..k.lanes {
                let s = comptime!(k.lanes - 1 - back_s);
                let dt = of_lane(dts[j], s, &p, k);
                let dy = of_lane(dys[j], s, &p, k);
                let row = buffer + comptime!((j * k.lanes + s) * slots) + p.lane * own;
                let mut reset = false.runtime();
                if comptime!(k.resets) {
                    reset = of_lane(flags[j], s, &p, k) != 0.0;
                }
                #[unroll]
                for q in 0..own {
                    let c_row = rows[row + q];
                    #[unroll]
                    for v in 0..size {
                        let i = comptime!(q * size + v);
                        let passed = (g[i] + c_row.extract(v) * dy) * decays(dt, a_own[i], k);
                        g[i] = passed;
                        if comptime!(k.resets) {
                            g[i] = select(reset, 0.0, passed);
                        }
                    }
                }
            }
        }
    }
    let owner = (p.entry * n_segments + p.segment) * d_inner + p.channel;
    store_state(&g, local, owner, d_state, &p, k);
    store_sum(sum_dt, cleared, sums, n_segments, d_inner, &p, k);
}
