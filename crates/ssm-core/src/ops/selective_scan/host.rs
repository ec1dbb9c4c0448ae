//! The specification: the selective scan and its hand-derived gradient on plain slices.
//!
//! Written for reading, not for speed, and generic over the float type: in f64 it is the truth that
//! the tensor reference and every kernel are measured against, and its own gradients are proved by
//! finite differences. Nothing of Burn is imported here.

use num_traits::Float;

/// Sizes of one scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScanDims {
    /// Batch size B.
    pub batch: usize,
    /// Sequence length L.
    pub seq_len: usize,
    /// Channels D.
    pub d_inner: usize,
    /// State size N of one channel.
    pub d_state: usize,
    /// Groups G of channels that share `b` and `c`; divides `d_inner`.
    pub n_groups: usize,
}

impl ScanDims {
    /// Channels that share one row of `b` and `c`.
    pub fn channels_per_group(&self) -> usize {
        self.d_inner / self.n_groups
    }
}

/// The arguments of [`selective_scan`](super::selective_scan) as row-major slices.
#[derive(Clone, Copy, Debug)]
pub struct ScanSlices<'a, F> {
    /// `[batch, seq_len, d_inner]`
    pub u: &'a [F],
    /// `[batch, seq_len, d_inner]`, before bias and softplus
    pub delta: &'a [F],
    /// `[d_inner, d_state]`
    pub a: &'a [F],
    /// `[batch, seq_len, n_groups * d_state]`
    pub b: &'a [F],
    /// `[batch, seq_len, n_groups * d_state]`
    pub c: &'a [F],
    /// `[d_inner]`
    pub d: Option<&'a [F]>,
    /// `[batch, seq_len, d_inner]`
    pub z: Option<&'a [F]>,
    /// `[d_inner]`
    pub delta_bias: Option<&'a [F]>,
    /// `[batch, d_inner, d_state]`
    pub initial_state: Option<&'a [F]>,
    /// `[batch, seq_len]`; not zero where the state is cleared before the step
    pub resets: Option<&'a [F]>,
    /// Whether `delta` passes through softplus.
    pub delta_softplus: bool,
}

/// What [`forward`] computes.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanOutputs<F> {
    /// `[batch, seq_len, d_inner]`
    pub y: Vec<F>,
    /// `[batch, d_inner, d_state]`
    pub final_state: Vec<F>,
}

/// Gradients in the shapes of the arguments; empty for an argument that was absent.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanGrads<F> {
    /// `[batch, seq_len, d_inner]`
    pub u: Vec<F>,
    /// `[batch, seq_len, d_inner]`
    pub delta: Vec<F>,
    /// `[d_inner, d_state]`
    pub a: Vec<F>,
    /// `[batch, seq_len, n_groups * d_state]`
    pub b: Vec<F>,
    /// `[batch, seq_len, n_groups * d_state]`
    pub c: Vec<F>,
    /// `[d_inner]`
    pub d: Vec<F>,
    /// `[batch, seq_len, d_inner]`
    pub z: Vec<F>,
    /// `[d_inner]`
    pub delta_bias: Vec<F>,
    /// `[batch, d_inner, d_state]`
    pub initial_state: Vec<F>,
}

/// `ln(1 + e^x)` without overflow, exact for small `e^x`.
fn softplus<F: Float>(x: F) -> F {
    x.max(F::zero()) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)` without overflow.
fn sigmoid<F: Float>(x: F) -> F {
    let e = (-x.abs()).exp();
    if x >= F::zero() { F::one() / (F::one() + e) } else { e / (F::one() + e) }
}

/// One step of one channel, with everything that both directions need.
struct Step<F> {
    /// Index of the step in a `[batch, seq_len, d_inner]` slice.
    at: usize,
    /// Offset of its row in a `[batch, seq_len, n_groups * d_state]` slice.
    row: usize,
    /// Whether the state is cleared first.
    reset: bool,
    /// `delta` after bias and softplus.
    dt: F,
    /// Derivative of `dt` with respect to `delta`.
    slope: F,
}

impl<F: Float> ScanSlices<'_, F> {
    fn step(&self, dims: ScanDims, batch: usize, t: usize, channel: usize) -> Step<F> {
        let at = (batch * dims.seq_len + t) * dims.d_inner + channel;
        let group = channel / dims.channels_per_group();
        let row = ((batch * dims.seq_len + t) * dims.n_groups + group) * dims.d_state;
        let raw = self.delta[at] + self.delta_bias.map_or(F::zero(), |bias| bias[channel]);
        let (dt, slope) =
            if self.delta_softplus { (softplus(raw), sigmoid(raw)) } else { (raw, F::one()) };
        let reset = self.resets.is_some_and(|resets| !resets[batch * dims.seq_len + t].is_zero());
        Step { at, row, reset, dt, slope }
    }
}

/// The recurrence, one channel after the other.
pub fn forward<F: Float>(dims: ScanDims, x: &ScanSlices<'_, F>) -> ScanOutputs<F> {
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let mut y = vec![F::zero(); batch * seq_len * d_inner];
    let mut final_state = match x.initial_state {
        Some(state) => state.to_vec(),
        None => vec![F::zero(); batch * d_inner * d_state],
    };
    for i in 0..batch {
        for channel in 0..d_inner {
            let a = &x.a[channel * d_state..][..d_state];
            let state = &mut final_state[(i * d_inner + channel) * d_state..][..d_state];
            for t in 0..seq_len {
                let Step { at, row, reset, dt, .. } = x.step(dims, i, t, channel);
                let mut sum = x.d.map_or(F::zero(), |d| d[channel] * x.u[at]);
                for n in 0..d_state {
                    let previous = if reset { F::zero() } else { state[n] };
                    state[n] = (dt * a[n]).exp() * previous + dt * x.b[row + n] * x.u[at];
                    sum = sum + x.c[row + n] * state[n];
                }
                y[at] = x.z.map_or(sum, |z| sum * z[at] * sigmoid(z[at]));
            }
        }
    }
    ScanOutputs { y, final_state }
}

/// The gradient of `sum(y * grad_y) + sum(final_state * grad_final)`.
///
/// With `g_t` the gradient that reaches `h_t`, `g_t = c_t dy_t + e_{t+1} g_{t+1}` where
/// `e_t = exp(dt_t a)` (zero where the state is reset), and
/// - `dc_t = dy_t h_t`, `db_t = dt_t u_t g_t`, `du_t = dt_t (g_t . b_t) + d dy_t`
/// - `da = sum_t dt_t e_t h_{t-1} g_t`, `ddt_t = sum_n (a e_t h_{t-1} + b_t u_t) g_t`
pub fn backward<F: Float>(
    dims: ScanDims,
    x: &ScanSlices<'_, F>,
    grad_y: &[F],
    grad_final: Option<&[F]>,
) -> ScanGrads<F> {
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let zeros = |len: usize| vec![F::zero(); len];
    let if_present = |arg: Option<&[F]>| zeros(arg.map_or(0, <[F]>::len));
    let mut grads = ScanGrads {
        u: zeros(x.u.len()),
        delta: zeros(x.delta.len()),
        a: zeros(x.a.len()),
        b: zeros(x.b.len()),
        c: zeros(x.c.len()),
        d: if_present(x.d),
        z: if_present(x.z),
        delta_bias: if_present(x.delta_bias),
        initial_state: if_present(x.initial_state),
    };
    // States of one channel: what each step starts from (zero after a reset) and what it leaves.
    let mut before = zeros(seq_len * d_state);
    let mut after = zeros(seq_len * d_state);
    let mut g = zeros(d_state);
    for i in 0..batch {
        for channel in 0..d_inner {
            let a = &x.a[channel * d_state..][..d_state];
            let first = (i * d_inner + channel) * d_state;
            for t in 0..seq_len {
                let Step { at, row, reset, dt, .. } = x.step(dims, i, t, channel);
                for n in 0..d_state {
                    let here = t * d_state + n;
                    before[here] = match (reset, t, x.initial_state) {
                        (true, ..) | (_, 0, None) => F::zero(),
                        (_, 0, Some(initial)) => initial[first + n],
                        _ => after[here - d_state],
                    };
                    after[here] = (dt * a[n]).exp() * before[here] + dt * x.b[row + n] * x.u[at];
                }
            }
            g.fill(F::zero());
            if let Some(grad_final) = grad_final {
                g.copy_from_slice(&grad_final[first..][..d_state]);
            }
            for t in (0..seq_len).rev() {
                let Step { at, row, reset, dt, slope } = x.step(dims, i, t, channel);
                let before = &before[t * d_state..][..d_state];
                let after = &after[t * d_state..][..d_state];
                let mut dy = grad_y[at];
                if let Some(z) = x.z {
                    let gate = sigmoid(z[at]);
                    let skip = x.d.map_or(F::zero(), |d| d[channel] * x.u[at]);
                    let y = (0..d_state).fold(skip, |sum, n| sum + x.c[row + n] * after[n]);
                    grads.z[at] = dy * y * gate * (F::one() + z[at] * (F::one() - gate));
                    dy = dy * z[at] * gate;
                }
                let mut du = F::zero();
                let mut ddt = F::zero();
                if let Some(d) = x.d {
                    grads.d[channel] = grads.d[channel] + dy * x.u[at];
                    du = dy * d[channel];
                }
                for n in 0..d_state {
                    let decay = (dt * a[n]).exp();
                    let b = x.b[row + n];
                    g[n] = g[n] + x.c[row + n] * dy;
                    grads.c[row + n] = grads.c[row + n] + dy * after[n];
                    grads.b[row + n] = grads.b[row + n] + g[n] * dt * x.u[at];
                    du = du + g[n] * dt * b;
                    ddt = ddt + g[n] * (a[n] * decay * before[n] + b * x.u[at]);
                    let da = &mut grads.a[channel * d_state + n];
                    *da = *da + g[n] * dt * decay * before[n];
                    g[n] = if reset { F::zero() } else { g[n] * decay };
                }
                grads.u[at] = du;
                grads.delta[at] = ddt * slope;
                if x.delta_bias.is_some() {
                    grads.delta_bias[channel] = grads.delta_bias[channel] + ddt * slope;
                }
            }
            if x.initial_state.is_some() {
                grads.initial_state[first..][..d_state].copy_from_slice(&g);
            }
        }
    }
    grads
}
