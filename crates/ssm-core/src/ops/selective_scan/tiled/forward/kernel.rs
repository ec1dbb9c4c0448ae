//! `y`, the final state and the saved states; or of a segment what it adds to its last state.

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
        Variant, decays, load_a, load_resets, load_rows, load_state, load_steps, of_lane, place,
        share_rows, step_size, store_state, store_sum, sum_steps,
    },
};

/// - `initial`: `[batch, n_segments, d_inner, d_state]`
/// - `final_state`: `[batch, d_inner, d_state]`, if `local` as `initial`
/// - `states`: `[batch, tiles, d_inner, stride]`
/// - `sums`: `[batch, n_segments, d_inner]`, of the step sizes, written if `local`
#[cube(launch_unchecked)]
pub(in crate::ops::selective_scan::tiled) fn scan_fwd<
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
    initial: &Tensor<f32>,
    resets: &Tensor<f32>,
    y: &mut Tensor<U>,
    final_state: &mut Tensor<f32>,
    states: &mut Tensor<Vector<f32, V>>,
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
    let half = comptime!(k.steps * k.stride() / size);
    let width = d_state / size;
    let p = place(seq_len, seg_len, n_segments, d_inner, n_groups, k);
    let tiles = (seq_len + comptime!(k.steps - 1)) / k.steps;

    let mut a_own = Array::<f32>::new(k.per);
    load_a(a, &mut a_own, d_state, &p, k);
    let mut h = Array::<f32>::new(k.per);
    #[unroll]
    for i in 0..k.per {
        h[i] = 0.0f32;
    }
    let segment_owner = (p.entry * n_segments + p.segment) * d_inner + p.channel;
    if comptime!(k.initial) {
        load_state(initial, &mut h, segment_owner, d_state, &p, k);
    }
    let mut skip = 0.0f32;
    if comptime!(k.d) {
        skip = d[p.channel];
    }
    let mut shift = 0.0f32;
    if comptime!(k.bias) {
        shift = bias[p.channel];
    }

    // The next tile, loaded while this one is computed.
    let mut next_u = Array::<U>::new(rounds);
    let mut next_delta = Array::<T>::new(rounds);
    let mut next_z = Array::<Z>::new(rounds);
    let mut next_resets = Array::<f32>::new(rounds);
    let mut next_rows =
        Array::<Vector<R, V>>::new(comptime!(k.tile_vectors(size).div_ceil(k.units())));
    let gated = comptime!(k.z && !k.local);
    load_steps::<U>(u, &mut next_u, p.from, seq_len, d_inner, &p, k);
    load_steps::<T>(delta, &mut next_delta, p.from, seq_len, d_inner, &p, k);
    if comptime!(gated) {
        load_steps::<Z>(z, &mut next_z, p.from, seq_len, d_inner, &p, k);
    }
    load_resets(resets, &mut next_resets, p.from, seq_len, &p, k);
    load_rows::<R, V>(b, c, &mut next_rows, p.from, seq_len, n_groups, width, &p, k);

    // Two tiles of rows: while one is read, the next is written.
    let mut rows = Shared::<[Vector<f32, V>]>::new_slice(comptime!(2 * k.tile_vectors(size)));
    let mut us = Array::<f32>::new(rounds);
    let mut dts = Array::<f32>::new(rounds);
    let mut dtus = Array::<f32>::new(rounds);
    let mut gates = Array::<f32>::new(rounds);
    let mut flags = Array::<f32>::new(rounds);
    let mut sum_dt = 0.0f32;
    let mut cleared = 0.0f32;

    let n_tiles = (p.stop - p.from + comptime!(k.steps - 1)) / k.steps;
    for tile in 0..n_tiles {
        let first = p.from + tile * k.steps;
        #[unroll]
        for j in 0..rounds {
            let live = first + comptime!(j * k.lanes) + p.lane < p.stop;
            us[j] = f32::cast_from(next_u[j]);
            let (dt, _slope) = step_size(f32::cast_from(next_delta[j]) + shift, k);
            dts[j] = select(live, dt, 0.0);
            dtus[j] = select(live, dt * us[j], 0.0);
            if comptime!(k.resets) {
                flags[j] = next_resets[j];
                cleared += flags[j];
            }
            if comptime!(gated) {
                let value = f32::cast_from(next_z[j]);
                gates[j] = value * sigmoid(value, k.cuda);
            }
            sum_dt += dts[j];
        }
        let buffer = tile % 2 * comptime!(k.tile_vectors(size));
        share_rows::<R, V>(&next_rows, &mut rows, buffer, first, width, &p, k);
        sync_cube();

        let ahead = first + k.steps;
        load_steps::<U>(u, &mut next_u, ahead, seq_len, d_inner, &p, k);
        load_steps::<T>(delta, &mut next_delta, ahead, seq_len, d_inner, &p, k);
        if comptime!(gated) {
            load_steps::<Z>(z, &mut next_z, ahead, seq_len, d_inner, &p, k);
        }
        load_resets(resets, &mut next_resets, ahead, seq_len, &p, k);
        load_rows::<R, V>(b, c, &mut next_rows, ahead, seq_len, n_groups, width, &p, k);

        if comptime!(k.save) {
            let saved = (p.entry * tiles + first / k.steps) * d_inner + p.channel;
            #[unroll]
            for q in 0..own {
                let mut value = Vector::<f32, V>::empty();
                #[unroll]
                for s in 0..size {
                    value.insert(s, h[comptime!(q * size + s)]);
                }
                if p.inside {
                    states[saved * slots + p.lane * own + q] = value;
                }
            }
        }

        #[unroll]
        for j in 0..rounds {
            let mut sums_c = Array::<f32>::new(k.lanes);
            #[unroll]
            for s in 0..k.lanes {
                let dt = of_lane(dts[j], s, &p, k);
                let dtu = of_lane(dtus[j], s, &p, k);
                if comptime!(k.resets) {
                    let reset = of_lane(flags[j], s, &p, k) != 0.0;
                    #[unroll]
                    for i in 0..k.per {
                        h[i] = select(reset, 0.0, h[i]);
                    }
                }
                let row = buffer + comptime!((j * k.lanes + s) * slots) + p.lane * own;
                let mut sum = 0.0f32;
                #[unroll]
                for q in 0..own {
                    let b_row = rows[row + q];
                    #[unroll]
                    for v in 0..size {
                        let i = comptime!(q * size + v);
                        h[i] = decays(dt, a_own[i], k) * h[i] + dtu * b_row.extract(v);
                    }
                    if comptime!(!k.local) {
                        let c_row = rows[row + half + q];
                        #[unroll]
                        for v in 0..size {
                            sum += c_row.extract(v) * h[comptime!(q * size + v)];
                        }
                    }
                }
                sums_c[s] = sum;
            }
            if comptime!(!k.local) {
                let mut out = sum_steps(&mut sums_c, &p, k);
                if comptime!(k.d) {
                    out += skip * us[j];
                }
                if comptime!(gated) {
                    out *= gates[j];
                }
                let t = first + comptime!(j * k.lanes) + p.lane;
                if p.inside && t < p.stop {
                    y[(p.entry * seq_len + t) * d_inner + p.channel] = U::cast_from(out);
                }
            }
        }
    }
    if comptime!(k.local) {
        store_state(&h, final_state, segment_owner, d_state, &p, k);
        store_sum(sum_dt, cleared, sums, n_segments, d_inner, &p, k);
    } else {
        if p.segment + 1 == n_segments {
            store_state(&h, final_state, p.entry * d_inner + p.channel, d_state, &p, k);
        }
    }
}
