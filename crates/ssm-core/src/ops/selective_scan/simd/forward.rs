//! The forward pass: one block of channels of one batch entry at a time.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    super::host::{ScanDims, ScanSlices},
    Block, Blocks, CHUNK_LEN, Forward, channel_row, n_chunks, rows, rows_mut, stage,
    stage_transposed, step_sizes, unstage, unstage_transposed,
};
use crate::ops::{
    disjoint::{Disjoint, Unwritten},
    simd::{Lanes, Scratch},
};

/// The whole forward pass: allocates what it leaves, and hands blocks to the threads.
pub(super) struct ForwardOp<'a> {
    pub(super) dims: ScanDims,
    pub(super) x: &'a ScanSlices<'a, f32>,
    pub(super) save_states: bool,
}

impl WithSimd for ForwardOp<'_> {
    type Output = Forward;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Forward {
        let Self { dims, x, save_states } = self;
        let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
        let mut y = Unwritten::new(batch * seq_len * d_inner);
        let mut final_state = Unwritten::new(batch * d_inner * d_state);
        let n_saved = if save_states { n_chunks(seq_len) } else { 0 };
        let mut states = Unwritten::new(batch * n_saved * d_state * d_inner);
        let out = ForwardOut {
            y: y.disjoint(),
            final_state: final_state.disjoint(),
            states: states.disjoint(),
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
        // SAFETY: every block writes its channels of every step, of the last state, and of the saved
        // ones if there are any; blocks cover all channels of all batch entries.
        unsafe {
            Forward { y: y.written(), final_state: final_state.written(), states: states.written() }
        }
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
                let saved = unsafe { out.states.row(block.saved(dims, chunk, n), block.width) };
                unstage::<S, J>(&h[n * padded..][..padded], saved);
            }
        }
        for t in 0..len {
            let at = block.at(dims, first + t)..block.at(dims, first + t) + block.width;
            stage::<S, J>(&x.u[at.clone()], &mut u[t * padded..][..padded]);
            stage::<S, J>(&x.delta[at.clone()], &mut dt[t * padded..][..padded]);
            if let Some(from) = x.z {
                stage::<S, J>(&from[at], &mut z[t * padded..][..padded]);
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
            let to = unsafe { out.y.row(block.at(dims, first + t), block.width) };
            unstage::<S, J>(&y[t * padded..][..padded], to);
        }
    }
    // SAFETY: blocks own disjoint channels of a batch entry.
    let to = unsafe { out.final_state.row(block.state(dims, 0), block.width * d_state) };
    unstage_transposed(h, d_state, to);
}
