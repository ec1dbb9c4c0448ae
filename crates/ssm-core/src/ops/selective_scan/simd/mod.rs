//! The CPU fast path: vectors over channels, threads over (batch, block of channels).
//!
//! The sequence is walked in chunks of [`CHUNK_LEN`] steps. The forward pass saves the state at the
//! start of each chunk; the backward pass walks the chunks from the last to the first and recomputes
//! the states inside one, so states take memory for `seq_len / CHUNK_LEN` steps, not for `seq_len`.
//!
//! A block writes only its own channels; what is summed over channels or batch (`b`, `c`, `a`, `d`,
//! bias) goes through per-block partial sums that are added in a fixed order. So results are bit-equal
//! from run to run and for any number of threads. While the backward pass runs, those of `b` and `c`
//! take `2 * d_state / w` times the memory of `u`, with blocks of `w` channels (64 with AVX-512, 32 with
//! AVX2): half of it for a `d_state` of 16 and AVX-512.

mod backward;
mod forward;

use std::mem::MaybeUninit;

use pulp::{Arch, Simd};

use self::{backward::BackwardOp, forward::ForwardOp};
use super::host::{ScanDims, ScanGrads, ScanSlices};
use crate::ops::simd::Lanes;

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
fn stage<S: Simd, const J: usize>(from: &[f32], to: &mut [f32]) {
    // A full row in registers: a call of `memcpy` for each took a third of the forward pass.
    if let ([from, ..], [to, ..]) = (rows::<S, J>(from), rows_mut::<S, J>(to)) {
        *to = *from;
    } else {
        to[..from.len()].copy_from_slice(from);
        to[from.len()..].fill(0.0);
    }
}

/// Copies the beginning of a padded row into a row of channels.
#[inline(always)]
fn unstage<S: Simd, const J: usize>(from: &[f32], to: &mut [MaybeUninit<f32>]) {
    if let ([from, ..], true) = (rows::<S, J>(from), to.len() >= J * S::F32_LANES) {
        // SAFETY: a row of registers is that many f32, and this memory is as long.
        unsafe { to.as_mut_ptr().cast::<[S::f32s; J]>().write_unaligned(*from) };
    } else {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(*from);
        }
    }
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
fn unstage_transposed(from: &[f32], d_state: usize, to: &mut [MaybeUninit<f32>]) {
    let padded = from.len() / d_state;
    for (channel, values) in to.chunks_exact_mut(d_state).enumerate() {
        for (n, value) in values.iter_mut().enumerate() {
            value.write(from[n * padded + channel]);
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

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ops::{selective_scan::host, simd::routes};

    #[test]
    fn every_instruction_set_agrees_with_the_specification() {
        let dims = ScanDims { batch: 2, seq_len: 70, d_inner: 46, d_state: 5, n_groups: 2 };
        let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = |len: usize, low: f64, high: f64| -> Vec<f64> {
            // Rounded, so that both precisions read the same numbers.
            (0..len).map(|_| f64::from(rng.random_range(low..high) as f32)).collect()
        };
        let steps = batch * seq_len * d_inner;
        let rows = batch * seq_len * n_groups * d_state;
        let (u, delta, z) =
            (draw(steps, -1.0, 1.0), draw(steps, -4.0, 1.0), draw(steps, -2.0, 2.0));
        let (a, b, c) =
            (draw(d_inner * d_state, -2.0, -0.1), draw(rows, -1.0, 1.0), draw(rows, -1.0, 1.0));
        let (d, bias) = (draw(d_inner, -1.0, 1.0), draw(d_inner, -1.0, 1.0));
        let initial = draw(batch * d_inner * d_state, -1.0, 1.0);
        let (grad_y, grad_final) = (draw(steps, -1.0, 1.0), draw(initial.len(), -1.0, 1.0));
        let resets: Vec<f64> =
            (0..batch * seq_len).map(|at| if at % 31 == 30 { 1.0 } else { 0.0 }).collect();
        let all = [&u, &delta, &a, &b, &c, &d, &z, &bias, &initial, &resets];
        let f32s = all.map(|values| values.iter().map(|v| *v as f32).collect::<Vec<f32>>());
        fn slices<F>(all: [&[F]; 10]) -> ScanSlices<'_, F> {
            let [u, delta, a, b, c, d, z, delta_bias, initial_state, resets] = all;
            ScanSlices {
                u,
                delta,
                a,
                b,
                c,
                d: Some(d),
                z: Some(z),
                delta_bias: Some(delta_bias),
                initial_state: Some(initial_state),
                resets: Some(resets),
                delta_softplus: true,
            }
        }
        let spec = slices(all.map(|values| &values[..]));
        let x = slices(f32s.each_ref().map(|values| &values[..]));
        let (grad_y32, grad_final32): (Vec<f32>, Vec<f32>) = (
            grad_y.iter().map(|v| *v as f32).collect(),
            grad_final.iter().map(|v| *v as f32).collect(),
        );
        let truth = host::forward(dims, &spec);
        let truths = host::backward(dims, &spec, &grad_y, Some(&grad_final));
        for arch in routes() {
            let got = arch.dispatch(ForwardOp { dims, x: &x, save_states: true });
            let grads = arch.dispatch(BackwardOp {
                dims,
                x: &x,
                states: &got.states,
                grad_y: &grad_y32,
                grad_final: Some(&grad_final32),
            });
            for (name, got, truth) in [
                ("y", &got.y, &truth.y),
                ("final_state", &got.final_state, &truth.final_state),
                ("grad u", &grads.u, &truths.u),
                ("grad delta", &grads.delta, &truths.delta),
                ("grad a", &grads.a, &truths.a),
                ("grad b", &grads.b, &truths.b),
                ("grad c", &grads.c, &truths.c),
                ("grad d", &grads.d, &truths.d),
                ("grad z", &grads.z, &truths.z),
                ("grad delta_bias", &grads.delta_bias, &truths.delta_bias),
                ("grad initial_state", &grads.initial_state, &truths.initial_state),
            ] {
                let scale = truth.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
                for (at, (got, truth)) in got.iter().zip(truth).enumerate() {
                    let error = (f64::from(*got) - truth).abs() / scale;
                    assert!(
                        error < 5e-6,
                        "{arch:?}: {name}[{at}] is off by {error:e} of its maximum"
                    );
                }
            }
        }
    }
}
