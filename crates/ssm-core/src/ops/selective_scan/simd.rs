//! The CPU fast path: vectors over channels, threads over (batch, block of channels).
//!
//! The sequence is walked in chunks of [`CHUNK_LEN`] steps. The forward pass saves the state at the
//! start of each chunk; the backward pass walks the chunks from the last to the first and recomputes
//! the states inside one, so memory grows with `seq_len / CHUNK_LEN`, not with `seq_len`.
//!
//! A block writes only its own channels; what is summed over channels or batch (`b`, `c`, `a`, `d`,
//! bias) goes through per-block partial sums that are added in a fixed order. So results are bit-equal
//! from run to run and for any number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::host::{ScanDims, ScanGrads, ScanSlices};
use crate::ops::{
    disjoint::Disjoint,
    simd::{Lanes, Scratch, sum_outer},
};

/// Steps between two saved states. 32 keeps the recomputed states of a block in the second-level
/// cache; 16 to 64 measured within 5% of each other.
pub(crate) const CHUNK_LEN: usize = 32;

/// SIMD registers of channels in a block: enough independent work to hide the latency of the
/// exponential, few enough that their accumulators stay in registers.
const BLOCK_VECTORS: usize = 4;

/// Number of saved states of a sequence.
pub(crate) fn n_chunks(seq_len: usize) -> usize {
    seq_len.div_ceil(CHUNK_LEN)
}

/// What the forward pass leaves.
pub(crate) struct Forward {
    /// `[batch, seq_len, d_inner]`
    pub(crate) y: Vec<f32>,
    /// `[batch, d_inner, d_state]`
    pub(crate) final_state: Vec<f32>,
    /// State at the start of each chunk, `[batch, n_chunks, d_state, d_inner]`; empty if not asked for.
    pub(crate) states: Vec<f32>,
}

/// Runs the scan; `save_states` keeps what [`backward`] needs.
pub(crate) fn forward(dims: ScanDims, x: &ScanSlices<'_, f32>, save_states: bool) -> Forward {
    Arch::new().dispatch(ForwardOp { dims, x, save_states })
}

/// Gradients of `sum(y * grad_y) + sum(final_state * grad_final)`, from the states of [`forward`].
pub(crate) fn backward(
    dims: ScanDims,
    x: &ScanSlices<'_, f32>,
    states: &[f32],
    grad_y: &[f32],
    grad_final: Option<&[f32]>,
) -> ScanGrads<f32> {
    Arch::new().dispatch(BackwardOp { dims, x, states, grad_y, grad_final })
}

/// How channels are cut into blocks: within a group, so that a block reads one row of `b` and `c`.
#[derive(Clone, Copy)]
struct Blocks {
    dims: ScanDims,
    width: usize,
    per_group: usize,
}

/// One block of channels of one batch entry.
#[derive(Clone, Copy)]
struct Block {
    batch: usize,
    group: usize,
    /// Position among the blocks of its group.
    index: usize,
    /// First channel.
    start: usize,
    /// Number of channels.
    width: usize,
}

impl Blocks {
    fn new(dims: ScanDims, lanes: usize) -> Self {
        let width = lanes * BLOCK_VECTORS;
        Self { dims, width, per_group: dims.channels_per_group().div_ceil(width) }
    }

    fn len(&self) -> usize {
        self.dims.batch * self.dims.n_groups * self.per_group
    }

    fn get(&self, unit: usize) -> Block {
        let index = unit % self.per_group;
        let group = unit / self.per_group % self.dims.n_groups;
        let batch = unit / (self.per_group * self.dims.n_groups);
        let in_group = index * self.width;
        let start = group * self.dims.channels_per_group() + in_group;
        let width = self.width.min(self.dims.channels_per_group() - in_group);
        Block { batch, group, index, start, width }
    }
}

impl Block {
    /// Offset of the block's channels at step `t` in a `[batch, seq_len, d_inner]` slice.
    fn at(&self, dims: ScanDims, t: usize) -> usize {
        (self.batch * dims.seq_len + t) * dims.d_inner + self.start
    }

    /// The block's row at step `t` of a `[batch, seq_len, n_groups * d_state]` slice.
    fn row(&self, dims: ScanDims, t: usize) -> std::ops::Range<usize> {
        let first = ((self.batch * dims.seq_len + t) * dims.n_groups + self.group) * dims.d_state;
        first..first + dims.d_state
    }

    /// The block's row of a saved state `[batch, n_chunks, d_state, d_inner]`.
    fn saved(&self, dims: ScanDims, chunk: usize, n: usize) -> usize {
        ((self.batch * n_chunks(dims.seq_len) + chunk) * dims.d_state + n) * dims.d_inner
            + self.start
    }

    /// Offset of channel `channel` of the block in a `[batch, d_inner, d_state]` slice.
    fn state(&self, dims: ScanDims, channel: usize) -> usize {
        (self.batch * dims.d_inner + self.start + channel) * dims.d_state
    }

    fn is_reset(&self, dims: ScanDims, x: &ScanSlices<'_, f32>, t: usize) -> bool {
        x.resets.is_some_and(|resets| resets[self.batch * dims.seq_len + t] != 0.0)
    }
}

/// Copies a row of channels into a padded row, zeros behind it.
#[inline(always)]
fn stage(from: &[f32], to: &mut [f32]) {
    to[..from.len()].copy_from_slice(from);
    to[from.len()..].fill(0.0);
}

/// Copies `[channel][n]` into padded rows `[n][channel]`, multiplied by `scale`.
#[inline(always)]
fn stage_transposed(from: &[f32], d_state: usize, scale: f32, to: &mut [f32]) {
    let padded = to.len() / d_state;
    to.fill(0.0);
    for (channel, values) in from.chunks_exact(d_state).enumerate() {
        for (n, value) in values.iter().enumerate() {
            to[n * padded + channel] = value * scale;
        }
    }
}

/// The inverse of [`stage_transposed`].
#[inline(always)]
fn unstage_transposed(from: &[f32], d_state: usize, to: &mut [f32]) {
    let padded = from.len() / d_state;
    for (channel, values) in to.chunks_exact_mut(d_state).enumerate() {
        for (n, value) in values.iter_mut().enumerate() {
            *value = from[n * padded + channel];
        }
    }
}

/// Rows of `J` registers.
#[inline(always)]
fn rows<S: Simd, const J: usize>(values: &[f32]) -> &[[S::f32s; J]] {
    S::as_simd_f32s(values).0.as_chunks().0
}

#[inline(always)]
fn rows_mut<S: Simd, const J: usize>(values: &mut [f32]) -> &mut [[S::f32s; J]] {
    S::as_mut_simd_f32s(values).0.as_chunks_mut().0
}

struct ForwardOp<'a> {
    dims: ScanDims,
    x: &'a ScanSlices<'a, f32>,
    save_states: bool,
}

impl WithSimd for ForwardOp<'_> {
    type Output = Forward;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Forward {
        let Self { dims, x, save_states } = self;
        let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
        let mut y = vec![0.0; batch * seq_len * d_inner];
        let mut final_state = vec![0.0; batch * d_inner * d_state];
        let n_saved = if save_states { n_chunks(seq_len) } else { 0 };
        let mut states = vec![0.0; batch * n_saved * d_state * d_inner];
        let out = ForwardOut {
            y: Disjoint::new(&mut y),
            final_state: Disjoint::new(&mut final_state),
            states: Disjoint::new(&mut states),
        };
        let blocks = Blocks::new(dims, S::F32_LANES);
        let padded = blocks.width;
        (0..blocks.len()).into_par_iter().for_each_init(
            || Scratch::new(2 * d_state * padded + 4 * CHUNK_LEN * padded),
            |scratch, unit| {
                let block = blocks.get(unit);
                simd.vectorize(ForwardBlock { dims, x, block, save_states, scratch, out: &out });
            },
        );
        Forward { y, final_state, states }
    }
}

/// One block's part of the forward pass. A struct and not a closure: a closure is called through a
/// shim that is compiled without the vector instructions, and nothing would be inlined into it.
struct ForwardBlock<'a> {
    dims: ScanDims,
    x: &'a ScanSlices<'a, f32>,
    block: Block,
    save_states: bool,
    scratch: &'a mut Scratch,
    out: &'a ForwardOut<'a>,
}

impl WithSimd for ForwardBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dims, x, block, save_states, scratch, out } = self;
        let m = Lanes { simd };
        match block.width.div_ceil(S::F32_LANES) {
            1 => forward_block::<S, 1>(m, dims, x, block, save_states, scratch, out),
            2 => forward_block::<S, 2>(m, dims, x, block, save_states, scratch, out),
            3 => forward_block::<S, 3>(m, dims, x, block, save_states, scratch, out),
            _ => forward_block::<S, 4>(m, dims, x, block, save_states, scratch, out),
        }
    }
}

struct ForwardOut<'a> {
    y: Disjoint<'a>,
    final_state: Disjoint<'a>,
    states: Disjoint<'a>,
}

/// Step sizes of one padded row: `dt`, and its derivative with respect to `delta`.
#[inline(always)]
fn step_sizes<S: Simd, const J: usize>(
    m: Lanes<S>,
    softplus: bool,
    bias: &[S::f32s; J],
    dt: &mut [S::f32s; J],
    slope: Option<&mut [S::f32s; J]>,
) {
    let mut slopes = [m.splat(1.0); J];
    for j in 0..J {
        let raw = m.add(dt[j], bias[j]);
        (dt[j], slopes[j]) = if softplus { m.softplus_sigmoid(raw) } else { (raw, slopes[j]) };
    }
    if let Some(slope) = slope {
        *slope = slopes;
    }
}

/// A row of per-channel values, zero if absent.
#[inline(always)]
fn channel_row<S: Simd, const J: usize>(
    m: Lanes<S>,
    values: Option<&[f32]>,
    block: Block,
) -> [S::f32s; J] {
    let mut row = [m.splat(0.0); J];
    if let Some(values) = values {
        let values = &values[block.start..][..block.width];
        for (lanes, row) in values.chunks(S::F32_LANES).zip(&mut row) {
            *row = m.simd.partial_load_f32s(lanes);
        }
    }
    row
}

#[inline(always)]
fn forward_block<S: Simd, const J: usize>(
    m: Lanes<S>,
    dims: ScanDims,
    x: &ScanSlices<'_, f32>,
    block: Block,
    save_states: bool,
    scratch: &mut Scratch,
    out: &ForwardOut<'_>,
) {
    let ScanDims { seq_len, d_inner, d_state, .. } = dims;
    let padded = J * S::F32_LANES;
    let [a, h, u, dt, z, y] = scratch.split([
        d_state * padded,
        d_state * padded,
        CHUNK_LEN * padded,
        CHUNK_LEN * padded,
        CHUNK_LEN * padded,
        CHUNK_LEN * padded,
    ]);
    let a_block = &x.a[block.start * d_state..][..block.width * d_state];
    stage_transposed(a_block, d_state, std::f32::consts::LOG2_E, a);
    match x.initial_state {
        Some(state) => {
            let state = &state[block.state(dims, 0)..][..block.width * d_state];
            stage_transposed(state, d_state, 1.0, h);
        }
        None => h.fill(0.0),
    }
    let bias = channel_row::<S, J>(m, x.delta_bias, block);
    let skip = channel_row::<S, J>(m, x.d, block);
    debug_assert!(block.start + block.width <= d_inner);

    for chunk in 0..n_chunks(seq_len) {
        let first = chunk * CHUNK_LEN;
        let len = CHUNK_LEN.min(seq_len - first);
        if save_states {
            for n in 0..d_state {
                // SAFETY: blocks own disjoint channels of a batch entry, rows differ in chunk and n.
                let saved = unsafe { out.states.slice(block.saved(dims, chunk, n), block.width) };
                saved.copy_from_slice(&h[n * padded..][..block.width]);
            }
        }
        for t in 0..len {
            let at = block.at(dims, first + t)..block.at(dims, first + t) + block.width;
            stage(&x.u[at.clone()], &mut u[t * padded..][..padded]);
            stage(&x.delta[at.clone()], &mut dt[t * padded..][..padded]);
            if let Some(from) = x.z {
                stage(&from[at], &mut z[t * padded..][..padded]);
            }
        }
        for t in 0..len {
            let u = rows::<S, J>(u)[t];
            let dt = {
                let dt = &mut rows_mut::<S, J>(dt)[t];
                step_sizes::<S, J>(m, x.delta_softplus, &bias, dt, None);
                *dt
            };
            if block.is_reset(dims, x, first + t) {
                h.fill(0.0);
            }
            let (mut dtu, mut sum) = (u, u);
            for j in 0..J {
                dtu[j] = m.mul(dt[j], u[j]);
                sum[j] = m.mul(skip[j], u[j]);
            }
            let row = block.row(dims, first + t);
            let (b, c) = (&x.b[row.clone()], &x.c[row]);
            let states = rows_mut::<S, J>(h).iter_mut().zip(rows::<S, J>(a));
            for ((h, a), (b, c)) in states.zip(b.iter().zip(c)) {
                let (b, c) = (m.splat(*b), m.splat(*c));
                for j in 0..J {
                    let decay = m.exp2(m.mul(dt[j], a[j]));
                    h[j] = m.fma(decay, h[j], m.mul(dtu[j], b));
                    sum[j] = m.fma(c, h[j], sum[j]);
                }
            }
            if x.z.is_some() {
                let z = rows::<S, J>(z)[t];
                for j in 0..J {
                    sum[j] = m.mul(sum[j], m.mul(z[j], m.sigmoid(z[j])));
                }
            }
            rows_mut::<S, J>(y)[t] = sum;
        }
        for t in 0..len {
            // SAFETY: blocks own disjoint channels, rows differ in t.
            let to = unsafe { out.y.slice(block.at(dims, first + t), block.width) };
            to.copy_from_slice(&y[t * padded..][..block.width]);
        }
    }
    // SAFETY: blocks own disjoint channels of a batch entry.
    let to = unsafe { out.final_state.slice(block.state(dims, 0), block.width * d_state) };
    unstage_transposed(h, d_state, to);
}

struct BackwardOp<'a> {
    dims: ScanDims,
    x: &'a ScanSlices<'a, f32>,
    states: &'a [f32],
    grad_y: &'a [f32],
    grad_final: Option<&'a [f32]>,
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
        let zeros = |len: usize| vec![0.0_f32; len];
        let mut grads = ScanGrads {
            u: zeros(steps),
            delta: zeros(steps),
            z: zeros(x.z.map_or(0, |_| steps)),
            initial_state: zeros(x.initial_state.map_or(0, |_| batch * d_inner * d_state)),
            b: zeros(blocks.per_group * batch * seq_len * n_groups * d_state),
            c: zeros(blocks.per_group * batch * seq_len * n_groups * d_state),
            a: zeros(batch * d_inner * d_state),
            d: zeros(x.d.map_or(0, |_| batch * d_inner)),
            delta_bias: zeros(x.delta_bias.map_or(0, |_| batch * d_inner)),
        };
        let out = BackwardOut {
            u: Disjoint::new(&mut grads.u),
            delta: Disjoint::new(&mut grads.delta),
            z: Disjoint::new(&mut grads.z),
            initial_state: Disjoint::new(&mut grads.initial_state),
            b: Disjoint::new(&mut grads.b),
            c: Disjoint::new(&mut grads.c),
            a: Disjoint::new(&mut grads.a),
            d: Disjoint::new(&mut grads.d),
            bias: Disjoint::new(&mut grads.delta_bias),
        };
        let chunk = CHUNK_LEN.min(seq_len);
        let this = &self;
        (0..blocks.len()).into_par_iter().for_each_init(
            || Scratch::new(padded * (4 * d_state + 2 * chunk * d_state + 8 * chunk)),
            |scratch, unit| {
                let block = blocks.get(unit);
                simd.vectorize(BackwardBlock { op: this, block, scratch, out: &out });
            },
        );
        grads.b = sum_outer(grads.b, blocks.per_group);
        grads.c = sum_outer(grads.c, blocks.per_group);
        grads.a = sum_outer(grads.a, batch);
        grads.d = sum_outer(grads.d, batch);
        grads.delta_bias = sum_outer(grads.delta_bias, batch);
        grads
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
    let [a, g, grad_a, h, u, dt, slope, dtu, z, dy, y, grad_delta, before, decay] =
        scratch.split([
            d_state * padded,
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
            rows_len * d_state,
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
            stage(saved, &mut h[n * padded..][..padded]);
        }
        for t in 0..len {
            let at = block.at(dims, first + t)..block.at(dims, first + t) + block.width;
            stage(&x.u[at.clone()], &mut u[t * padded..][..padded]);
            stage(&x.delta[at.clone()], &mut dt[t * padded..][..padded]);
            stage(&op.grad_y[at.clone()], &mut dy[t * padded..][..padded]);
            if let Some(from) = x.z {
                stage(&from[at], &mut z[t * padded..][..padded]);
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
            if block.is_reset(dims, x, first + t) {
                h.fill(0.0);
            }
            let (mut dtu_row, mut sum) = (u, u);
            for j in 0..J {
                dtu_row[j] = m.mul(dt_row[j], u[j]);
                sum[j] = m.mul(skip[j], u[j]);
            }
            rows_mut::<S, J>(dtu)[t] = dtu_row;
            let row = block.row(dims, first + t);
            let (b, c) = (&x.b[row.clone()], &x.c[row]);
            let saved = rows_mut::<S, J>(&mut before[t * d_state * padded..])
                .iter_mut()
                .zip(rows_mut::<S, J>(&mut decay[t * d_state * padded..]));
            let states = rows_mut::<S, J>(h).iter_mut().zip(rows::<S, J>(a));
            for (((h, a), (before, decay)), (b, c)) in states.zip(saved).zip(b.iter().zip(c)) {
                let (b, c) = (m.splat(*b), m.splat(*c));
                *before = *h;
                for j in 0..J {
                    decay[j] = m.exp2(m.mul(dt_row[j], a[j]));
                    h[j] = m.fma(decay[j], h[j], m.mul(dtu_row[j], b));
                    sum[j] = m.fma(c, h[j], sum[j]);
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
            let (grad_b, grad_c) =
                unsafe { (out.b.slice(part, d_state), out.c.slice(part, d_state)) };
            let (b, c) = (&x.b[row.clone()], &x.c[row]);
            let reset = block.is_reset(dims, x, first + t);
            let (mut from_a, mut from_b) = ([zero; J], [zero; J]);
            let states = rows_mut::<S, J>(g)
                .iter_mut()
                .zip(rows_mut::<S, J>(grad_a))
                .zip(rows::<S, J>(a))
                .zip(rows::<S, J>(&before[t * d_state * padded..]))
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
                *grad_b = m.simd.reduce_sum_f32s(sum_b);
                *grad_c = m.simd.reduce_sum_f32s(sum_c);
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
            let from = t * padded..t * padded + block.width;
            // SAFETY: blocks own disjoint channels, rows differ in t.
            unsafe {
                out.u.slice(at, block.width).copy_from_slice(&y[from.clone()]);
                out.delta.slice(at, block.width).copy_from_slice(&grad_delta[from.clone()]);
                if x.z.is_some() {
                    out.z.slice(at, block.width).copy_from_slice(&z[from]);
                }
            }
        }
    }
    let channel = block.batch * d_inner + block.start;
    let state = block.state(dims, 0);
    // SAFETY: blocks own disjoint channels of a batch entry.
    unsafe {
        unstage_transposed(grad_a, d_state, out.a.slice(state, block.width * d_state));
        if x.initial_state.is_some() {
            let to = out.initial_state.slice(state, block.width * d_state);
            unstage_transposed(g, d_state, to);
        }
        if x.d.is_some() {
            store_row(m, &grad_skip, out.d.slice(channel, block.width));
        }
        if x.delta_bias.is_some() {
            store_row(m, &grad_bias, out.bias.slice(channel, block.width));
        }
    }
}

/// The inverse of [`channel_row`].
#[inline(always)]
fn store_row<S: Simd, const J: usize>(m: Lanes<S>, row: &[S::f32s; J], to: &mut [f32]) {
    for (lanes, row) in to.chunks_mut(S::F32_LANES).zip(row) {
        m.simd.partial_store_f32s(lanes, *row);
    }
}
