//! The specification: depthwise causal convolution and its gradient on plain slices.
//!
//! Nothing of Burn is imported here; in f64 it is the truth that the other writings are measured
//! against.

use num_traits::Float;

/// Sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvDims {
    /// Batch size.
    pub batch: usize,
    /// Sequence length.
    pub seq_len: usize,
    /// Channels; each has its own filter.
    pub channels: usize,
    /// Width of the filter.
    pub d_conv: usize,
}

/// The arguments of [`causal_conv1d`](super::causal_conv1d) as row-major slices.
#[derive(Clone, Copy, Debug)]
pub struct ConvSlices<'a, F> {
    /// `[batch, seq_len, channels]`
    pub x: &'a [F],
    /// `[channels, d_conv]`, the last tap on the current step
    pub weight: &'a [F],
    /// `[channels]`
    pub bias: Option<&'a [F]>,
    /// `[batch, d_conv - 1, channels]`, the inputs before the first step, oldest first
    pub initial_state: Option<&'a [F]>,
    /// `[batch, seq_len]`; not zero where the step must not see earlier ones
    pub resets: Option<&'a [F]>,
    /// Whether the output passes through `silu(x) = x / (1 + e^-x)`.
    pub silu: bool,
}

/// Gradients in the shapes of the arguments; empty for an argument that was absent.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvGrads<F> {
    /// `[batch, seq_len, channels]`
    pub x: Vec<F>,
    /// `[channels, d_conv]`
    pub weight: Vec<F>,
    /// `[channels]`
    pub bias: Vec<F>,
    /// `[batch, d_conv - 1, channels]`
    pub initial_state: Vec<F>,
}

/// Where a tap reads.
pub(crate) enum Source {
    /// Offset of a row of `x`.
    Input(usize),
    /// Offset of a row of `initial_state`.
    Initial(usize),
}

impl ConvDims {
    /// Row that a tap `lag` steps back from step `t` reads, if it may and there is one.
    pub(crate) fn source<F: Float>(
        &self,
        x: &ConvSlices<'_, F>,
        batch: usize,
        t: usize,
        lag: usize,
    ) -> Option<Source> {
        let from = (t + 1).saturating_sub(lag); // first step whose reset would hide the source
        let steps = batch * self.seq_len;
        if x.resets.is_some_and(|r| (from..=t).any(|s| !r[steps + s].is_zero())) {
            return None;
        }
        if lag <= t {
            return Some(Source::Input((steps + t - lag) * self.channels));
        }
        let row = batch * (self.d_conv - 1) + self.d_conv - 1 + t - lag;
        x.initial_state.map(|_| Source::Initial(row * self.channels))
    }
}

/// `y_t = act(bias + sum_k weight_k x_{t - (d_conv - 1) + k})`.
pub fn forward<F: Float>(dims: ConvDims, x: &ConvSlices<'_, F>) -> Vec<F> {
    let mut y = vec![F::zero(); x.x.len()];
    each(dims, x, |at, _, _, pre| {
        y[at] = if x.silu { pre / (F::one() + (-pre).exp()) } else { pre };
    });
    y
}

/// The gradient of `sum(y * grad_y)`.
pub fn backward<F: Float>(dims: ConvDims, x: &ConvSlices<'_, F>, grad_y: &[F]) -> ConvGrads<F> {
    let zeros = |arg: Option<&[F]>| vec![F::zero(); arg.map_or(0, <[F]>::len)];
    let mut grads = ConvGrads {
        x: zeros(Some(x.x)),
        weight: zeros(Some(x.weight)),
        bias: zeros(x.bias),
        initial_state: zeros(x.initial_state),
    };
    each(dims, x, |at, (batch, t), channel, pre| {
        let mut grad = grad_y[at];
        if x.silu {
            let gate = F::one() / (F::one() + (-pre).exp());
            grad = grad * gate * (F::one() + pre * (F::one() - gate));
        }
        if x.bias.is_some() {
            grads.bias[channel] = grads.bias[channel] + grad;
        }
        for lag in 0..dims.d_conv {
            let tap = channel * dims.d_conv + dims.d_conv - 1 - lag;
            let (value, to) = match dims.source(x, batch, t, lag) {
                Some(Source::Input(row)) => (x.x[row + channel], &mut grads.x[row + channel]),
                Some(Source::Initial(row)) => {
                    // `source` names the initial state only when there is one.
                    let initial = x.initial_state.map_or(F::zero(), |s| s[row + channel]);
                    (initial, &mut grads.initial_state[row + channel])
                }
                None => continue,
            };
            *to = *to + grad * x.weight[tap];
            grads.weight[tap] = grads.weight[tap] + grad * value;
        }
    });
    grads
}

/// Calls `visit(offset, (batch, step), channel, value before the activation)` for every output.
fn each<F: Float>(
    dims: ConvDims,
    x: &ConvSlices<'_, F>,
    mut visit: impl FnMut(usize, (usize, usize), usize, F),
) {
    for batch in 0..dims.batch {
        for t in 0..dims.seq_len {
            for channel in 0..dims.channels {
                let mut sum = x.bias.map_or(F::zero(), |bias| bias[channel]);
                for lag in 0..dims.d_conv {
                    let value = match dims.source(x, batch, t, lag) {
                        Some(Source::Input(row)) => x.x[row + channel],
                        Some(Source::Initial(row)) => {
                            x.initial_state.map_or(F::zero(), |s| s[row + channel])
                        }
                        None => continue,
                    };
                    sum = sum + x.weight[channel * dims.d_conv + dims.d_conv - 1 - lag] * value;
                }
                let at = (batch * dims.seq_len + t) * dims.channels + channel;
                visit(at, (batch, t), channel, sum);
            }
        }
    }
}
