//! The specification: one token of every sequence, on plain slices.
//!
//! Nothing of Burn is imported here.

use num_traits::Float;

/// A row of numbers for every sequence, of which a part is read.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// All values, row after row.
    pub values: &'a [T],
    /// Length of a row.
    pub stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// The first `width` values of row `row`.
    fn first(&self, row: usize, width: usize) -> &'a [T] {
        &self.values[row * self.stride..][..width]
    }

    /// The last `width` values of row `row`.
    fn last(&self, row: usize, width: usize) -> &'a [T] {
        &self.values[(row + 1) * self.stride - width..(row + 1) * self.stride]
    }
}

/// The factor that makes the mean square of a row 1.
fn inverse_rms<T: Float>(row: &[T], epsilon: T) -> T {
    let squares = row.iter().fold(T::zero(), |sum, x| sum + *x * *x);
    // A width is far below 2^24.
    let width = T::from(row.len()).unwrap_or_else(T::one);
    (squares / width + epsilon).sqrt().recip()
}

/// `x` over its root mean square, times `weight`.
fn normed<T: Float>(x: &[T], weight: &[T], epsilon: T) -> Vec<T> {
    let r = inverse_rms(x, epsilon);
    x.iter().zip(weight).map(|(x, weight)| *x * r * *weight).collect()
}

fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::zero(), |sum, (a, b)| sum + *a * *b)
}

fn silu<T: Float>(x: T) -> T {
    x / (T::one() + (-x).exp())
}

fn softplus<T: Float>(x: T) -> T {
    x.max(T::zero()) + (-x.abs()).exp().ln_1p()
}

/// `y = W norm(x) + add`: `weight` is `[d_out, d_in]`, `norm` the weight of an RMSNorm of width `d_in`.
pub fn product<T: Float>(
    x: Rows<'_, T>,
    norm: Option<(&[T], T)>,
    weight: &[T],
    add: Option<&[T]>,
    [batch, d_in]: [usize; 2],
) -> Vec<T> {
    let mut y = Vec::with_capacity(batch * weight.len() / d_in);
    for row in 0..batch {
        let x = x.first(row, d_in);
        let x = norm.map_or_else(|| x.to_vec(), |(weight, epsilon)| normed(x, weight, epsilon));
        y.extend(weight.chunks_exact(d_in).map(|weight| dot(&x, weight)));
    }
    if let Some(add) = add {
        y.iter_mut().zip(add).for_each(|(y, add)| *y = *y + *add);
    }
    y
}

/// `x + add`, and that over its root mean square times `weight`.
pub fn add_norm<T: Float>(
    x: &[T],
    add: Option<&[T]>,
    weight: &[T],
    epsilon: T,
) -> (Vec<T>, Vec<T>) {
    let x: Vec<T> = match add {
        Some(add) => x.iter().zip(add).map(|(x, add)| *x + *add).collect(),
        None => x.to_vec(),
    };
    let y = x.chunks_exact(weight.len()).flat_map(|row| normed(row, weight, epsilon)).collect();
    (x, y)
}

/// A step of the causal convolution with SiLU on the first columns of `x`: `taps` is `[channels,
/// d_conv]`, and `past`, `[batch, d_conv - 1, channels]`, moves on by one.
pub fn conv<T: Float>(
    x: Rows<'_, T>,
    taps: &[T],
    bias: Option<&[T]>,
    past: &mut [T],
    [batch, channels]: [usize; 2],
) -> Vec<T> {
    let d_conv = taps.len() / channels;
    let mut u = Vec::with_capacity(batch * channels);
    for row in 0..batch {
        let x = x.first(row, channels);
        let past = &mut past[row * (d_conv - 1) * channels..][..(d_conv - 1) * channels];
        for (c, x) in x.iter().enumerate() {
            let taps = &taps[c * d_conv..][..d_conv];
            let mut sum = bias.map_or_else(T::zero, |bias| bias[c]) + taps[d_conv - 1] * *x;
            for k in 0..d_conv - 1 {
                sum = sum + taps[k] * past[k * channels + c];
            }
            u.push(silu(sum));
        }
        past.rotate_left(channels.min(past.len()));
        let len = past.len();
        past[len - channels.min(len)..].copy_from_slice(&x[..channels.min(len)]);
    }
    u
}

/// What a step of the selective state space is made of, beside its input.
#[derive(Clone, Copy, Debug)]
pub struct StateParams<'a, T> {
    /// `[d_inner, dt_rank]`
    pub dt_weight: &'a [T],
    /// `a_log`, then bias of the step size, `D` and what is not read, `[d_inner, d_state + ..]`
    pub params: &'a [T],
}

/// A step of the recurrence: `u` are the first columns of their rows, `z` the last, `projected` is `[batch,
/// dt_rank + 2 d_state]`, and `state`, `[batch, d_inner, d_state]`, moves on by one.
///
/// `delta = softplus(W_dt dt + bias)`, `h = exp(-delta e^a_log) h + delta b u`,
/// `y = (c . h + d u) silu(z)`.
pub fn state<T: Float>(
    u: Rows<'_, T>,
    z: Rows<'_, T>,
    projected: &[T],
    params: StateParams<'_, T>,
    state: &mut [T],
    [batch, d_inner, d_state]: [usize; 3],
) -> Vec<T> {
    let StateParams { dt_weight, params } = params;
    let (dt_rank, stride) = (dt_weight.len() / d_inner, params.len() / d_inner);
    let mut y = Vec::with_capacity(batch * d_inner);
    for row in 0..batch {
        let (u, z) = (u.first(row, d_inner), z.last(row, d_inner));
        let projected = &projected[row * (dt_rank + 2 * d_state)..];
        let (b, c) = (&projected[dt_rank..][..d_state], &projected[dt_rank + d_state..][..d_state]);
        for channel in 0..d_inner {
            let weight = &dt_weight[channel * dt_rank..][..dt_rank];
            let (a_log, further) = params[channel * stride..][..stride].split_at(d_state);
            let delta = softplus(dot(&projected[..dt_rank], weight) + further[0]);
            let mut sum = further[1] * u[channel];
            let h = &mut state[(row * d_inner + channel) * d_state..][..d_state];
            for (n, h) in h.iter_mut().enumerate() {
                let decay = (-delta * a_log[n].exp()).exp();
                *h = decay * *h + delta * b[n] * u[channel];
                sum = sum + c[n] * *h;
            }
            y.push(sum * silu(z[channel]));
        }
    }
    y
}

/// The place of the largest of the first `n_vocab` values of every row; the first of equals. `None` for
/// a row that holds something else than finite numbers.
pub fn argmax<T: Float>(logits: Rows<'_, T>, n_vocab: usize) -> Vec<Option<usize>> {
    let rows = logits.values.len() / logits.stride;
    (0..rows)
        .map(|row| {
            let values = logits.first(row, n_vocab);
            let best =
                (1..n_vocab).fold(0, |best, at| if values[at] > values[best] { at } else { best });
            values.iter().all(|value| value.is_finite()).then_some(best)
        })
        .collect()
}
