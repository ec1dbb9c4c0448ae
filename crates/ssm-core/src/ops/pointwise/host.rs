//! The specification: reversal, GELU and its gradient, dropout on plain slices, in f64.
//!
//! Nothing of Burn is imported here.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

/// `y_t = x_{seq_len - 1 - t}` for every batch entry; shape `[batch, seq_len, channels]`.
pub fn reverse(x: &[f64], [batch, seq_len, channels]: [usize; 3]) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for entry in 0..batch {
        for t in (0..seq_len).rev() {
            let row = (entry * seq_len + t) * channels;
            y.extend_from_slice(&x[row..row + channels]);
        }
    }
    y
}

/// `y = x * (1 + erf(x / sqrt 2)) / 2` for every element.
pub fn gelu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| x * normal_cdf(x)).collect()
}

/// The gradient of `sum(gelu(x) * grad_y)`: with `cdf` and `pdf` of the standard normal distribution,
/// `gelu'(x) = cdf(x) + x pdf(x)`.
pub fn gelu_backward(x: &[f64], grad_y: &[f64]) -> Vec<f64> {
    let pdf = |x: f64| (-x * x / 2.0).exp() / (2.0 * PI).sqrt();
    x.iter().zip(grad_y).map(|(&x, &grad)| grad * (normal_cdf(x) + x * pdf(x))).collect()
}

/// `y = -e^x` for every element; the gradient of `sum(y * grad_y)` is `y * grad_y`.
pub fn neg_exp(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| -x.exp()).collect()
}

/// `y = x * mask * scale` for every element; so is the gradient, of `grad_y`.
pub fn masked(x: &[f64], mask: &[f64], scale: f64) -> Vec<f64> {
    x.iter().zip(mask).map(|(x, mask)| x * mask * scale).collect()
}

/// A random number of 32 bits for every `place` of a `site`: a pure function, so that whoever needs a draw
/// again computes it.
///
/// # Source
/// `pcg4d` of Jarzynski & Olano 2020, "Hash Functions for GPU Rendering", JCGT 9(3), of which the last
/// word is taken, as all others went into it.
pub fn draw(place: u32, site: u32, seed: [u32; 2]) -> u32 {
    let congruent = |x: u32| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let mix = |[x, y, z, w]: [u32; 4]| {
        let x = x.wrapping_add(y.wrapping_mul(w));
        let y = y.wrapping_add(z.wrapping_mul(x));
        let z = z.wrapping_add(x.wrapping_mul(y));
        [x, y, z, w.wrapping_add(y.wrapping_mul(z))]
    };
    let words = mix([place, site, seed[0], seed[1]].map(congruent));
    mix(words.map(|word| word ^ (word >> 16)))[3]
}

/// What draws are less than with the probability `keep`.
pub fn draws_below(keep: f64) -> u32 {
    (keep * f64::from(u32::MAX)) as u32
}

/// `y = x * scale` where [`draw`] of the element is less than `below`, else 0; so is the gradient, of
/// `grad_y`.
pub fn dropped(x: &[f64], seed: [u32; 2], site: u32, below: u32, scale: f64) -> Vec<f64> {
    let kept = |(place, x): (usize, &f64)| {
        if draw(place as u32, site, seed) < below { x * scale } else { 0.0 }
    };
    x.iter().enumerate().map(kept).collect()
}

fn normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// `erf(x) = 2 / sqrt(pi) e^{-x^2} sum_n 2^n x^{2n+1} / (1 3 5 .. (2n+1))`: all terms have the sign
/// of `x`, so nothing cancels. From 6 on the result is 1 in f64.
///
/// # Source
/// Abramowitz & Stegun, formula 7.1.6.
pub fn erf(x: f64) -> f64 {
    if x.abs() >= 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    // A NaN compares false and is returned.
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
