//! The backward pass: chunks from the last to the first, the states inside one computed again.

use std::mem::MaybeUninit;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    super::host::{ScanDims, ScanGrads, ScanSlices},
    Block, Blocks, CHUNK_LEN, channel_row, n_chunks, rows, rows_mut, stage, stage_transposed,
    step_sizes, unstage, unstage_transposed,
};
use crate::ops::{
    disjoint::{Disjoint, Unwritten},
    simd::{Lanes, Scratch, sum_outer, write_lanes},
};

/// The whole backward pass: allocates the gradients, hands blocks to the threads, adds partial sums.
pub(super) struct BackwardOp<'a> {
    pub(super) dims: ScanDims,
    pub(super) x: &'a ScanSlices<'a, f32>,
    pub(super) states: &'a [f32],
    pub(super) grad_y: &'a [f32],
    pub(super) grad_final: Option<&'a [f32]>,
}

/// One block's part of the backward pass.
struct BackwardBlock<'a> {
    op: &'a BackwardOp<'a>,
    block: Block,
    scratch: &'a mut Scratch,
    out: &'a BackwardOut<'a>,
}

impl WithSimd for BackwardBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { op, block, scratch, out } = self;
        let m = Lanes { simd };
        match block.width.div_ceil(S::F32_LANES) {
            1 => backward_block::<S, 1>(m, op, block, scratch, out),
            2 => backward_block::<S, 2>(m, op, block, scratch, out),
            3 => backward_block::<S, 3>(m, op, block, scratch, out),
            _ => backward_block::<S, 4>(m, op, block, scratch, out),
        }
    }
}

struct BackwardOut<'a> {
    u: Disjoint<'a>,
    delta: Disjoint<'a>,
    z: Disjoint<'a>,
    initial_state: Disjoint<'a>,
    /// `[per_group, batch, seq_len, n_groups * d_state]`
    b: Disjoint<'a>,
    c: Disjoint<'a>,
    /// `[batch, d_inner, d_state]`
    a: Disjoint<'a>,
    /// `[batch, d_inner]`
    d: Disjoint<'a>,
    bias: Disjoint<'a>,
}

impl WithSimd for BackwardOp<'_> {
    type Output = ScanGrads<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> ScanGrads<f32> {
        let Self { dims, x, .. } = self;
        let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
        let blocks = Blocks::new(dims, S::F32_LANES);
        let padded = blocks.width;
        let steps = batch * seq_len * d_inner;
        let if_present = |arg: Option<&[f32]>, len| Unwritten::new(arg.map_or(0, |_| len));
        let states = batch * d_inner * d_state;
        let rows = blocks.per_group * batch * seq_len * n_groups * d_state;
        let (mut u, mut delta) = (Unwritten::new(steps), Unwritten::new(steps));
        let mut z = if_present(x.z, steps);
        let mut initial_state = if_present(x.initial_state, states);
        let (mut b, mut c) = (Unwritten::new(rows), Unwritten::new(rows));
        let mut a = Unwritten::new(states);
        let mut d = if_present(x.d, batch * d_inner);
        let mut bias = if_present(x.delta_bias, batch * d_inner);
        let out = BackwardOut {
            u: u.disjoint(),
            delta: delta.disjoint(),
            z: z.disjoint(),
            initial_state: initial_state.disjoint(),
            b: b.disjoint(),
            c: c.disjoint(),
            a: a.disjoint(),
            d: d.disjoint(),
            bias: bias.disjoint(),
        };
        let chunk = CHUNK_LEN.min(seq_len);
        let this = &self;
        (0..blocks.len()).into_par_iter().for_each_init(
            || Scratch::new(padded * (3 * d_state + (2 * chunk + 1) * d_state + 8 * chunk)),
            |scratch, unit| {
                let block = blocks.get(unit);
                simd.vectorize(BackwardBlock { op: this, block, scratch, out: &out });
            },
        );
        // SAFETY: every block writes its channels of every step and of every sum, and its own rows of
        // `b` and `c`; blocks cover all channels of all batch entries, and what is absent is empty.
        unsafe {
            ScanGrads {
                u: u.written(),
                delta: delta.written(),
                z: z.written(),
                initial_state: initial_state.written(),
                b: sum_outer(b.written(), blocks.per_group),
                c: sum_outer(c.written(), blocks.per_group),
                a: sum_outer(a.written(), batch),
                d: sum_outer(d.written(), batch),
                delta_bias: sum_outer(bias.written(), batch),
            }
        }
    }
}

#[inline(always)]
fn backward_block<S: Simd, const J: usize>(
    m: Lanes<S>,
    op: &BackwardOp<'_>,
    block: Block,
    scratch: &mut Scratch,
    out: &BackwardOut<'_>,
) {
    let BackwardOp { dims, x, .. } = *op;
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let padded = J * S::F32_LANES;
    let rows_len = CHUNK_LEN.min(seq_len) * padded;
    let [a, g, grad_a, u, dt, slope, dtu, z, dy, y, grad_delta, h, decay] = scratch.split([
        d_state * padded,
        d_state * padded,
        d_state * padded,
        rows_len,
        rows_len,
        rows_len,
        rows_len,
        rows_len,
        rows_len,
        rows_len,
        rows_len,
        // States before each step, and behind the last one.
        (rows_len + padded) * d_state,
        rows_len * d_state,
    ]);
    let zero = m.splat(0.0);
    let a_block = &x.a[block.start * d_state..][..block.width * d_state];
    stage_transposed(a_block, d_state, std::f32::consts::LOG2_E, a);
    match op.grad_final {
        Some(grad) => {
            let grad = &grad[block.state(dims, 0)..][..block.width * d_state];
            stage_transposed(grad, d_state, 1.0, g);
        }
        None => g.fill(0.0),
    }
    grad_a.fill(0.0);
    let bias = channel_row::<S, J>(m, x.delta_bias, block);
    let skip = channel_row::<S, J>(m, x.d, block);
    let (mut grad_skip, mut grad_bias) = ([zero; J], [zero; J]);

    for chunk in (0..n_chunks(seq_len)).rev() {
        let first = chunk * CHUNK_LEN;
        let len = CHUNK_LEN.min(seq_len - first);
        for n in 0..d_state {
            let saved = &op.states[block.saved(dims, chunk, n)..][..block.width];
            stage::<S, J>(saved, &mut h[n * padded..][..padded]);
        }
        for t in 0..len {
            let at = block.at(dims, first + t)..block.at(dims, first + t) + block.width;
            stage::<S, J>(&x.u[at.clone()], &mut u[t * padded..][..padded]);
            stage::<S, J>(&x.delta[at.clone()], &mut dt[t * padded..][..padded]);
            stage::<S, J>(&op.grad_y[at.clone()], &mut dy[t * padded..][..padded]);
            if let Some(from) = x.z {
                stage::<S, J>(&from[at], &mut z[t * padded..][..padded]);
            }
        }
        // Forward again: states before each step, decays, and y where the gate needs it.
        for t in 0..len {
            let u = rows::<S, J>(u)[t];
            let dt_row = {
                let dt = &mut rows_mut::<S, J>(dt)[t];
                let slope = &mut rows_mut::<S, J>(slope)[t];
                step_sizes::<S, J>(m, x.delta_softplus, &bias, dt, Some(slope));
                *dt
            };
            let (before, after) = h[t * d_state * padded..].split_at_mut(d_state * padded);
            if block.is_reset(dims, x, first + t) {
                before.fill(0.0);
            }
            let (mut dtu_row, mut sum) = (u, u);
            for j in 0..J {
                dtu_row[j] = m.mul(dt_row[j], u[j]);
                sum[j] = m.mul(skip[j], u[j]);
            }
            rows_mut::<S, J>(dtu)[t] = dtu_row;
            let row = block.row(dims, first + t);
            let (b, c) = (&x.b[row.clone()], &x.c[row]);
            let states = rows::<S, J>(before).iter().zip(rows_mut::<S, J>(after));
            let decays = rows_mut::<S, J>(&mut decay[t * d_state * padded..])
                .iter_mut()
                .zip(rows::<S, J>(a));
            for (((before, after), (decay, a)), (b, c)) in states.zip(decays).zip(b.iter().zip(c)) {
                let (b, c) = (m.splat(*b), m.splat(*c));
                for j in 0..J {
                    decay[j] = m.exp2(m.mul(dt_row[j], a[j]));
                    after[j] = m.fma(decay[j], before[j], m.mul(dtu_row[j], b));
                    sum[j] = m.fma(c, after[j], sum[j]);
                }
            }
            if x.z.is_some() {
                let z = &mut rows_mut::<S, J>(z)[t];
                let dy = &mut rows_mut::<S, J>(dy)[t];
                for j in 0..J {
                    let gate = m.sigmoid(z[j]);
                    let silu = m.mul(z[j], gate);
                    // d silu / dz = gate (1 + z (1 - gate)) = gate + silu (1 - gate)
                    let slope = m.fma(silu, m.sub(m.splat(1.0), gate), gate);
                    z[j] = m.mul(m.mul(dy[j], sum[j]), slope);
                    dy[j] = m.mul(dy[j], silu);
                }
            }
        }
        for t in (0..len).rev() {
            let (u, dt) = (rows::<S, J>(u)[t], rows::<S, J>(dt)[t]);
            let (dtu, dy) = (rows::<S, J>(dtu)[t], rows::<S, J>(dy)[t]);
            let row = block.row(dims, first + t);
            let part = block.index * batch * seq_len * n_groups * d_state + row.start;
            // SAFETY: blocks of one group write different parts, of different groups different rows.
            let (grad_b, grad_c) = unsafe { (out.b.row(part, d_state), out.c.row(part, d_state)) };
            let (b, c) = (&x.b[row.clone()], &x.c[row]);
            let reset = block.is_reset(dims, x, first + t);
            let (mut from_a, mut from_b) = ([zero; J], [zero; J]);
            let states = rows_mut::<S, J>(g)
                .iter_mut()
                .zip(rows_mut::<S, J>(grad_a))
                .zip(rows::<S, J>(a))
                .zip(rows::<S, J>(&h[t * d_state * padded..]))
                .zip(rows::<S, J>(&decay[t * d_state * padded..]));
            let inputs = b.iter().zip(c).zip(grad_b.iter_mut().zip(grad_c));
            for (((((g, grad_a), a), before), decay), ((b, c), (grad_b, grad_c))) in
                states.zip(inputs)
            {
                let (b, c) = (m.splat(*b), m.splat(*c));
                let (mut sum_b, mut sum_c) = (zero, zero);
                for j in 0..J {
                    let carried = m.mul(decay[j], before[j]);
                    let after = m.fma(dtu[j], b, carried);
                    let grad = m.fma(c, dy[j], g[j]);
                    sum_c = m.fma(dy[j], after, sum_c);
                    sum_b = m.fma(grad, dtu[j], sum_b);
                    let through = m.mul(grad, carried);
                    grad_a[j] = m.fma(dt[j], through, grad_a[j]);
                    from_a[j] = m.fma(a[j], through, from_a[j]);
                    from_b[j] = m.fma(grad, b, from_b[j]);
                    g[j] = m.mul(grad, decay[j]);
                }
                grad_b.write(m.simd.reduce_sum_f32s(sum_b));
                grad_c.write(m.simd.reduce_sum_f32s(sum_c));
            }
            if reset {
                g.fill(0.0);
            }
            let slope = rows::<S, J>(slope)[t];
            let grad_u = &mut rows_mut::<S, J>(y)[t];
            let grad_delta = &mut rows_mut::<S, J>(grad_delta)[t];
            for j in 0..J {
                grad_u[j] = m.fma(dt[j], from_b[j], m.mul(skip[j], dy[j]));
                // `a` is held times log2(e); the factor comes off here, once.
                let from_a = m.mul(from_a[j], m.splat(std::f32::consts::LN_2));
                grad_delta[j] = m.mul(m.fma(u[j], from_b[j], from_a), slope[j]);
                grad_bias[j] = m.add(grad_bias[j], grad_delta[j]);
                grad_skip[j] = m.fma(dy[j], u[j], grad_skip[j]);
            }
        }
        for t in 0..len {
            let at = block.at(dims, first + t);
            let from = t * padded..(t + 1) * padded;
            // SAFETY: blocks own disjoint channels, rows differ in t.
            unsafe {
                unstage::<S, J>(&y[from.clone()], out.u.row(at, block.width));
                unstage::<S, J>(&grad_delta[from.clone()], out.delta.row(at, block.width));
                if x.z.is_some() {
                    unstage::<S, J>(&z[from], out.z.row(at, block.width));
                }
            }
        }
    }
    let channel = block.batch * d_inner + block.start;
    let state = block.state(dims, 0);
    // SAFETY: blocks own disjoint channels of a batch entry.
    unsafe {
        unstage_transposed(grad_a, d_state, out.a.row(state, block.width * d_state));
        if x.initial_state.is_some() {
            let to = out.initial_state.row(state, block.width * d_state);
            unstage_transposed(g, d_state, to);
        }
        if x.d.is_some() {
            store_row(m, &grad_skip, out.d.row(channel, block.width));
        }
        if x.delta_bias.is_some() {
            store_row(m, &grad_bias, out.bias.row(channel, block.width));
        }
    }
}

/// The inverse of [`channel_row`].
#[inline(always)]
fn store_row<S: Simd, const J: usize>(
    m: Lanes<S>,
    row: &[S::f32s; J],
    to: &mut [MaybeUninit<f32>],
) {
    for (lanes, row) in to.chunks_mut(S::F32_LANES).zip(row) {
        write_lanes(m.simd, lanes, *row);
    }
}
