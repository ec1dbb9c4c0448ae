//! The CPU path: vectors over channels, threads over (batch, block of channels).
//!
//! A block walks its sequence in order and writes only its own channels; gradients of the filter are
//! summed per batch entry and then over the batch in order, so results do not depend on threads.

use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::host::{ConvDims, ConvGrads, ConvSlices, Source};
use crate::ops::{
    disjoint::{Disjoint, Unwritten},
    simd::{Lanes, sum_outer, write_lanes},
};

/// SIMD registers of channels in a block.
const BLOCK_VECTORS: usize = 4;

/// `[batch, seq_len, channels]`
pub(crate) fn forward(dims: ConvDims, x: &ConvSlices<'_, f32>) -> Vec<f32> {
    forward_on(Arch::new(), dims, x)
}

fn forward_on(arch: Arch, dims: ConvDims, x: &ConvSlices<'_, f32>) -> Vec<f32> {
    let mut y = Unwritten::new(x.x.len());
    arch.dispatch(EachBlock { dims, x, kernel: Kernel::Forward(&y.disjoint()) });
    // SAFETY: every block writes its channels of every step; blocks cover all of them.
    unsafe { y.written() }
}

/// Gradients of `sum(y * grad_y)`.
pub(crate) fn backward(dims: ConvDims, x: &ConvSlices<'_, f32>, grad_y: &[f32]) -> ConvGrads<f32> {
    backward_on(Arch::new(), dims, x, grad_y)
}

fn backward_on(
    arch: Arch,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    grad_y: &[f32],
) -> ConvGrads<f32> {
    let ConvDims { batch, channels, d_conv, .. } = dims;
    let mut grad_x = Unwritten::new(x.x.len());
    let mut weight = Unwritten::new(batch * channels * d_conv);
    let mut bias = Unwritten::new(x.bias.map_or(0, |_| batch * channels));
    let mut initial_state = Unwritten::new(x.initial_state.map_or(0, <[f32]>::len));
    let out = BackwardOut {
        grad_y,
        x: grad_x.disjoint(),
        weight: weight.disjoint(),
        bias: bias.disjoint(),
        initial_state: initial_state.disjoint(),
    };
    arch.dispatch(EachBlock { dims, x, kernel: Kernel::Backward(&out) });
    // SAFETY: every block writes its channels of every step, of the sums, and of the state; blocks
    // cover all channels of all batch entries, and what is absent is empty.
    unsafe {
        ConvGrads {
            x: grad_x.written(),
            weight: sum_outer(weight.written(), batch),
            bias: sum_outer(bias.written(), batch),
            initial_state: initial_state.written(),
        }
    }
}

struct BackwardOut<'a> {
    grad_y: &'a [f32],
    x: Disjoint<'a>,
    /// `[batch, channels, d_conv]`
    weight: Disjoint<'a>,
    /// `[batch, channels]`
    bias: Disjoint<'a>,
    initial_state: Disjoint<'a>,
}

#[derive(Clone, Copy)]
enum Kernel<'a> {
    Forward(&'a Disjoint<'a>),
    Backward(&'a BackwardOut<'a>),
}

/// Channels `start..start + width` of one batch entry.
#[derive(Clone, Copy)]
struct Block {
    batch: usize,
    start: usize,
    width: usize,
}

struct EachBlock<'a> {
    dims: ConvDims,
    x: &'a ConvSlices<'a, f32>,
    kernel: Kernel<'a>,
}

impl WithSimd for EachBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dims, x, kernel } = self;
        let width = S::F32_LANES * BLOCK_VECTORS;
        let per_batch = dims.channels.div_ceil(width);
        (0..dims.batch * per_batch).into_par_iter().for_each(|unit| {
            let start = unit % per_batch * width;
            let width = width.min(dims.channels - start);
            let block = Block { batch: unit / per_batch, start, width };
            simd.vectorize(OneBlock { dims, x, block, kernel });
        });
    }
}

/// One block's part. A struct and not a closure: a closure is called through a shim that is compiled
/// without the vector instructions, and nothing would be inlined into it.
struct OneBlock<'a> {
    dims: ConvDims,
    x: &'a ConvSlices<'a, f32>,
    block: Block,
    kernel: Kernel<'a>,
}

impl WithSimd for OneBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { dims, x, block, kernel } = self;
        let m = Lanes { simd };
        match kernel {
            Kernel::Forward(out) => forward_block(m, dims, x, block, out),
            Kernel::Backward(out) => backward_block(m, dims, x, block, out),
        }
    }
}

type Row<S> = [<S as Simd>::f32s; BLOCK_VECTORS];

#[inline(always)]
fn load<S: Simd>(m: Lanes<S>, values: &[f32]) -> Row<S> {
    // A block at the edge takes masked loads, which cost several times a plain one.
    if let Ok(row) = S::as_simd_f32s(values).0.try_into()
        && values.len() == BLOCK_VECTORS * S::F32_LANES
    {
        return row;
    }
    let mut row = [m.splat(0.0); BLOCK_VECTORS];
    for (row, lanes) in row.iter_mut().zip(values.chunks(S::F32_LANES)) {
        *row = m.simd.partial_load_f32s(lanes);
    }
    row
}

#[inline(always)]
fn store<S: Simd>(m: Lanes<S>, row: &Row<S>, to: &mut [MaybeUninit<f32>]) {
    for (row, lanes) in row.iter().zip(to.chunks_mut(S::F32_LANES)) {
        write_lanes(m.simd, lanes, *row);
    }
}

/// Tap `k` of every channel of the block.
#[inline(always)]
fn taps<S: Simd>(m: Lanes<S>, dims: ConvDims, weight: &[f32], block: Block) -> Vec<Row<S>> {
    let mut values = vec![0.0; block.width];
    (0..dims.d_conv)
        .map(|k| {
            for (channel, value) in values.iter_mut().enumerate() {
                *value = weight[(block.start + channel) * dims.d_conv + k];
            }
            load(m, &values)
        })
        .collect()
}

/// The rows that each tap reads at step `t`, newest first; `None` where the past is hidden.
#[inline(always)]
fn source<'a>(
    dims: ConvDims,
    x: &ConvSlices<'a, f32>,
    block: Block,
    t: usize,
    lag: usize,
) -> Option<&'a [f32]> {
    let row = match dims.source(x, block.batch, t, lag)? {
        Source::Input(row) => &x.x[row..],
        Source::Initial(row) => &x.initial_state?[row..],
    };
    Some(&row[block.start..][..block.width])
}

/// Sum of the taps at step `t`, before the activation.
#[inline(always)]
fn convolve<S: Simd>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    t: usize,
    taps: &[Row<S>],
    bias: &Row<S>,
) -> Row<S> {
    let mut sum = *bias;
    for (lag, tap) in taps.iter().rev().enumerate() {
        let Some(row) = source(dims, x, block, t, lag) else { continue };
        let row = load(m, row);
        for j in 0..BLOCK_VECTORS {
            sum[j] = m.fma(tap[j], row[j], sum[j]);
        }
    }
    sum
}

#[inline(always)]
fn forward_block<S: Simd>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    out: &Disjoint<'_>,
) {
    let taps = taps(m, dims, x.weight, block);
    let bias = x.bias.map_or(&[][..], |bias| &bias[block.start..][..block.width]);
    let bias = load(m, bias);
    for t in 0..dims.seq_len {
        let mut y = convolve(m, dims, x, block, t, &taps, &bias);
        if x.silu {
            for y in &mut y {
                *y = m.mul(*y, m.sigmoid(*y));
            }
        }
        let at = (block.batch * dims.seq_len + t) * dims.channels + block.start;
        // SAFETY: blocks own disjoint channels of a batch entry, rows differ in t.
        store(m, &y, unsafe { out.row(at, block.width) });
    }
}

#[inline(always)]
fn backward_block<S: Simd>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    out: &BackwardOut<'_>,
) {
    let ConvDims { seq_len, channels, d_conv, .. } = dims;
    let zero = [m.splat(0.0); BLOCK_VECTORS];
    let taps = taps(m, dims, x.weight, block);
    let bias = x.bias.map_or(&[][..], |bias| &bias[block.start..][..block.width]);
    let bias = load(m, bias);
    let mut grad_taps = vec![zero; d_conv];
    let mut grad_bias = zero;
    // Gradients before the activation of the last `d_conv` steps that were visited, step `t` at
    // `t % d_conv`: backwards in time, the gradient of an input is complete when its step comes.
    let mut recent = vec![zero; d_conv];
    for t in (0..seq_len).rev() {
        let at = (block.batch * seq_len + t) * channels + block.start;
        let mut grad = load(m, &out.grad_y[at..][..block.width]);
        if x.silu {
            let pre = convolve(m, dims, x, block, t, &taps, &bias);
            for j in 0..BLOCK_VECTORS {
                let gate = m.sigmoid(pre[j]);
                // d silu / dx = gate (1 + x (1 - gate))
                let rest = m.mul(pre[j], m.sub(m.splat(1.0), gate));
                grad[j] = m.mul(grad[j], m.fma(gate, rest, gate));
            }
        }
        recent[t % d_conv] = grad;
        let mut sum = zero;
        for lag in 0..d_conv {
            let tap = d_conv - 1 - lag;
            if let Some(row) = source(dims, x, block, t, lag) {
                let row = load(m, row);
                for j in 0..BLOCK_VECTORS {
                    grad_taps[tap][j] = m.fma(grad[j], row[j], grad_taps[tap][j]);
                }
            }
            if t + lag < seq_len && dims.source(x, block.batch, t + lag, lag).is_some() {
                add_product(m, &recent[(t + lag) % d_conv], &taps[tap], &mut sum);
            }
        }
        for j in 0..BLOCK_VECTORS {
            grad_bias[j] = m.add(grad_bias[j], grad[j]);
        }
        // SAFETY: blocks own disjoint channels of a batch entry, rows differ in t.
        store(m, &sum, unsafe { out.x.row(at, block.width) });
    }
    if x.initial_state.is_some() {
        for row in 0..d_conv - 1 {
            let mut sum = zero;
            for t in 0..seq_len.min(row + 1) {
                let lag = t + d_conv - 1 - row;
                if dims.source(x, block.batch, t, lag).is_some() {
                    add_product(m, &recent[t % d_conv], &taps[d_conv - 1 - lag], &mut sum);
                }
            }
            let at = (block.batch * (d_conv - 1) + row) * channels + block.start;
            // SAFETY: blocks own disjoint channels of a batch entry.
            store(m, &sum, unsafe { out.initial_state.row(at, block.width) });
        }
    }
    let channel = block.batch * channels + block.start;
    // SAFETY: blocks own disjoint channels of a batch entry.
    unsafe {
        let to = out.weight.row(channel * d_conv, block.width * d_conv);
        let mut values = vec![MaybeUninit::uninit(); block.width];
        for (k, grad) in grad_taps.iter().enumerate() {
            store(m, grad, &mut values);
            for (channel, value) in values.iter().enumerate() {
                to[channel * d_conv + k] = *value;
            }
        }
        if x.bias.is_some() {
            store(m, &grad_bias, out.bias.row(channel, block.width));
        }
    }
}

/// `sum += a * b`
#[inline(always)]
fn add_product<S: Simd>(m: Lanes<S>, a: &Row<S>, b: &Row<S>, sum: &mut Row<S>) {
    for j in 0..BLOCK_VECTORS {
        sum[j] = m.fma(a[j], b[j], sum[j]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{causal_conv1d::host, simd::routes};

    #[test]
    fn every_instruction_set_agrees_with_the_specification() {
        // Channels beyond the widest block, so that masked loads run too.
        let dims = ConvDims { batch: 2, seq_len: 9, channels: 70, d_conv: 3 };
        let wave = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|at| (at as f32 * step).sin()).collect()
        };
        let (values, weight) = (wave(2 * 9 * 70, 0.7), wave(70 * 3, 0.3));
        let (bias, grad_y) = (wave(70, 0.9), wave(2 * 9 * 70, 0.4));
        let x = ConvSlices {
            x: &values,
            weight: &weight,
            bias: Some(&bias),
            initial_state: None,
            resets: None,
            silu: true,
        };
        let (truth, truths) = (host::forward(dims, &x), host::backward(dims, &x, &grad_y));
        for arch in routes() {
            let y = forward_on(arch, dims, &x);
            let grads = backward_on(arch, dims, &x, &grad_y);
            for (name, got, truth) in [
                ("y", &y, &truth),
                ("grad x", &grads.x, &truths.x),
                ("grad weight", &grads.weight, &truths.weight),
                ("grad bias", &grads.bias, &truths.bias),
            ] {
                for (at, (got, truth)) in got.iter().zip(truth).enumerate() {
                    let close = (got - truth).abs() < 1e-5 * truth.abs().max(1.0);
                    assert!(close, "{arch:?}: {name}[{at}] is {got}, expected {truth}");
                }
            }
        }
    }
}
