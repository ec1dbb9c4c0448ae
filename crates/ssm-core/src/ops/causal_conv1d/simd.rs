//! The CPU path: vectors over channels, threads over (batch, block of channels).
//!
//! A block walks its sequence in order and writes only its own channels; gradients of the filter are
//! summed per batch entry and then over the batch in order, so results do not depend on threads.

use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::host::{ConvDims, ConvGrads, ConvSlices};
use crate::ops::{
    disjoint::{Disjoint, Unwritten},
    simd::{Lanes, sum_outer, write_lanes},
};

/// SIMD registers of channels in a block. With one, what the backward pass carries from step to step
/// stays in registers: two measured a third slower there.
const BLOCK_VECTORS: usize = 1;

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
        match dims.d_conv {
            2 => run::<S, [Row<S>; 2]>(m, dims, x, block, kernel),
            3 => run::<S, [Row<S>; 3]>(m, dims, x, block, kernel),
            4 => run::<S, [Row<S>; 4]>(m, dims, x, block, kernel),
            _ => run::<S, Vec<Row<S>>>(m, dims, x, block, kernel),
        }
    }
}

#[inline(always)]
fn run<S: Simd, T: PerTap<S>>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    kernel: Kernel<'_>,
) {
    match kernel {
        Kernel::Forward(out) => forward_block::<S, T>(m, dims, x, block, out),
        Kernel::Backward(out) => backward_block::<S, T>(m, dims, x, block, out),
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

/// A row for each tap, that of the current step first. The usual widths are arrays, so that their rows
/// stay in registers.
trait PerTap<S: Simd>: AsRef<[Row<S>]> + AsMut<[Row<S>]> {
    fn filled(row: Row<S>, d_conv: usize) -> Self;

    /// Moves every row one step into the past and puts `row` in front.
    #[inline(always)]
    fn push(&mut self, row: Row<S>) {
        let rows = self.as_mut();
        for lag in (1..rows.len()).rev() {
            rows[lag] = rows[lag - 1];
        }
        rows[0] = row;
    }
}

impl<S: Simd, const K: usize> PerTap<S> for [Row<S>; K] {
    #[inline(always)]
    fn filled(row: Row<S>, _d_conv: usize) -> Self {
        [row; K]
    }
}

impl<S: Simd> PerTap<S> for Vec<Row<S>> {
    #[inline(always)]
    fn filled(row: Row<S>, d_conv: usize) -> Self {
        vec![row; d_conv]
    }
}

/// The filters of the block's channels.
#[inline(always)]
fn taps<S: Simd, T: PerTap<S>>(m: Lanes<S>, dims: ConvDims, weight: &[f32], block: Block) -> T {
    let mut taps = T::filled([m.splat(0.0); BLOCK_VECTORS], dims.d_conv);
    let mut values = vec![0.0; block.width];
    for (lag, tap) in taps.as_mut().iter_mut().enumerate() {
        for (channel, value) in values.iter_mut().enumerate() {
            *value = weight[(block.start + channel + 1) * dims.d_conv - 1 - lag];
        }
        *tap = load(m, &values);
    }
    taps
}

/// What the taps see of the steps before the first one, as if step -1 were the current one.
#[inline(always)]
fn history<S: Simd, T: PerTap<S>>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
) -> T {
    let mut window = T::filled([m.splat(0.0); BLOCK_VECTORS], dims.d_conv);
    if let Some(state) = x.initial_state {
        for row in 0..dims.d_conv - 1 {
            let at = (block.batch * (dims.d_conv - 1) + row) * dims.channels + block.start;
            window.push(load(m, &state[at..][..block.width]));
        }
    }
    window
}

/// Moves the window to step `t`; true if the step does not see earlier ones.
#[inline(always)]
fn advance<S: Simd, T: PerTap<S>>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    t: usize,
    window: &mut T,
) -> bool {
    let step = block.batch * dims.seq_len + t;
    window.push(load(m, &x.x[step * dims.channels + block.start..][..block.width]));
    let reset = x.resets.is_some_and(|resets| resets[step] != 0.0);
    if reset {
        window.as_mut()[1..].fill([m.splat(0.0); BLOCK_VECTORS]);
    }
    reset
}

/// Sum of the taps, before the activation.
#[inline(always)]
fn convolve<S: Simd, T: PerTap<S>>(m: Lanes<S>, window: &T, taps: &T, bias: &Row<S>) -> Row<S> {
    let mut sum = *bias;
    for (row, tap) in window.as_ref().iter().zip(taps.as_ref()) {
        add_product(m, row, tap, &mut sum);
    }
    sum
}

#[inline(always)]
fn bias_of<S: Simd>(m: Lanes<S>, x: &ConvSlices<'_, f32>, block: Block) -> Row<S> {
    load(m, x.bias.map_or(&[][..], |bias| &bias[block.start..][..block.width]))
}

#[inline(always)]
fn forward_block<S: Simd, T: PerTap<S>>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    out: &Disjoint<'_>,
) {
    let taps: T = taps(m, dims, x.weight, block);
    let bias = bias_of(m, x, block);
    let mut window: T = history(m, dims, x, block);
    for t in 0..dims.seq_len {
        advance(m, dims, x, block, t, &mut window);
        let mut y = convolve(m, &window, &taps, &bias);
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
fn backward_block<S: Simd, T: PerTap<S>>(
    m: Lanes<S>,
    dims: ConvDims,
    x: &ConvSlices<'_, f32>,
    block: Block,
    out: &BackwardOut<'_>,
) {
    let ConvDims { seq_len, channels, d_conv, .. } = dims;
    let zero = [m.splat(0.0); BLOCK_VECTORS];
    let taps: T = taps(m, dims, x.weight, block);
    let bias = bias_of(m, x, block);
    let mut window: T = history(m, dims, x, block);
    let mut grad_taps = T::filled(zero, d_conv);
    let mut grad_bias = zero;
    // Gradients of the inputs that the current step may read, by their distance from it.
    let mut pending = T::filled(zero, d_conv);
    // First input that the current step reads: before step 0 lies the history, if there is one.
    let mut first = if x.initial_state.is_some() { 1 - d_conv as isize } else { 0 };
    for t in 0..seq_len {
        let reset = advance(m, dims, x, block, t, &mut window);
        pending.push(zero);
        if reset {
            for (lag, grad) in pending.as_ref().iter().enumerate().skip(1) {
                finish(m, dims, block, [t, lag], first, grad, out);
            }
            first = t as isize;
        }
        let at = (block.batch * seq_len + t) * channels + block.start;
        let mut grad = load(m, &out.grad_y[at..][..block.width]);
        if x.silu {
            let pre = convolve(m, &window, &taps, &bias);
            for j in 0..BLOCK_VECTORS {
                let gate = m.sigmoid(pre[j]);
                // d silu / dx = gate (1 + x (1 - gate))
                let rest = m.mul(pre[j], m.sub(m.splat(1.0), gate));
                grad[j] = m.mul(grad[j], m.fma(gate, rest, gate));
            }
        }
        for lag in 0..taps.as_ref().len() {
            add_product(m, &grad, &window.as_ref()[lag], &mut grad_taps.as_mut()[lag]);
            add_product(m, &grad, &taps.as_ref()[lag], &mut pending.as_mut()[lag]);
        }
        for j in 0..BLOCK_VECTORS {
            grad_bias[j] = m.add(grad_bias[j], grad[j]);
        }
        finish(m, dims, block, [t, d_conv - 1], first, &pending.as_ref()[d_conv - 1], out);
    }
    for (lag, grad) in pending.as_ref()[..d_conv - 1].iter().enumerate() {
        finish(m, dims, block, [seq_len - 1, lag], first, grad, out);
    }
    let channel = block.batch * channels + block.start;
    // SAFETY: blocks own disjoint channels of a batch entry.
    unsafe {
        let to = out.weight.row(channel * d_conv, block.width * d_conv);
        let mut values = vec![MaybeUninit::uninit(); block.width];
        for (lag, grad) in grad_taps.as_ref().iter().enumerate() {
            store(m, grad, &mut values);
            for (channel, value) in values.iter().enumerate() {
                to[(channel + 1) * d_conv - 1 - lag] = *value;
            }
        }
        if x.bias.is_some() {
            store(m, &grad_bias, out.bias.row(channel, block.width));
        }
    }
}

/// Stores the gradient of the input `lag` steps before step `t`, unless that lies before `first`.
#[inline(always)]
fn finish<S: Simd>(
    m: Lanes<S>,
    dims: ConvDims,
    block: Block,
    [t, lag]: [usize; 2],
    first: isize,
    grad: &Row<S>,
    out: &BackwardOut<'_>,
) {
    let ConvDims { seq_len, channels, d_conv, .. } = dims;
    if (t as isize - lag as isize) < first {
        return;
    }
    let (to, step) = match t.checked_sub(lag) {
        Some(t) => (&out.x, block.batch * seq_len + t),
        None => (&out.initial_state, (block.batch + 1) * (d_conv - 1) + t - lag),
    };
    // SAFETY: blocks own disjoint channels of a batch entry, rows differ in their step.
    store(m, grad, unsafe { to.row(step * channels + block.start, block.width) });
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
        // Channels beyond the widest block, so that masked loads run too; filters beyond the ones with a
        // window of their own, and sequences shorter than the filter.
        for (seq_len, d_conv) in [(9, 3), (2, 4), (1, 6), (12, 6), (5, 1)] {
            for with in [false, true] {
                agree(ConvDims { batch: 2, seq_len, channels: 70, d_conv }, with);
            }
        }
    }

    /// `with` a history and resets. Output buffers start as NaN here.
    fn agree(dims: ConvDims, with: bool) {
        let ConvDims { batch, seq_len, channels, d_conv } = dims;
        let wave = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|at| (at as f32 * step).sin()).collect()
        };
        let (values, weight) =
            (wave(batch * seq_len * channels, 0.7), wave(channels * d_conv, 0.3));
        let (bias, grad_y) = (wave(channels, 0.9), wave(values.len(), 0.4));
        let initial = wave(batch * (d_conv - 1) * channels, 0.6);
        // The first step of the second entry among them, and two in a row.
        let resets: Vec<f32> =
            (0..batch * seq_len).map(|at| f32::from(u8::from(at % 7 < 2 && at > 1))).collect();
        let x = ConvSlices {
            x: &values,
            weight: &weight,
            bias: Some(&bias),
            initial_state: with.then_some(&initial),
            resets: with.then_some(&resets),
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
                ("grad initial_state", &grads.initial_state, &truths.initial_state),
            ] {
                assert_eq!(got.len(), truth.len(), "{arch:?}: {name}");
                for (at, (got, truth)) in got.iter().zip(truth).enumerate() {
                    let close = (got - truth).abs() < 1e-5 * truth.abs().max(1.0);
                    assert!(close, "{arch:?}, {dims:?}: {name}[{at}] is {got}, expected {truth}");
                }
            }
        }
    }
}
