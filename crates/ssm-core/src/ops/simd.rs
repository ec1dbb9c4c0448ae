//! Vector arithmetic shared by the CPU kernels: exponentials and activations on SIMD registers.
//!
//! Written once over [`pulp::Simd`], so that a binary built for plain x86-64 uses AVX2 or AVX-512
//! where the machine has it. Accuracy is that of f32 (relative error below 2e-7), NaN stays NaN.

use std::mem::MaybeUninit;

use pulp::Simd;
use rayon::prelude::*;

/// Lanes of the widest registers.
const MAX_LANES: usize = 16;

/// Scalar constants spread over registers, loaded once per kernel.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S: Simd> {
    pub(crate) simd: S,
}

/// Whether a NaN in the second operand of a vector minimum or maximum survives. x86 is like that, and
/// one instruction is what a clamp should cost; `f32::min` loses it.
const MIN_KEEPS_SECOND: bool = cfg!(target_arch = "x86_64");

/// Minimax coefficients of `2^f` on [-1/2, 1/2], constant term 1: `2^0` is exactly 1, so a state
/// that should not decay does not drift over a million steps.
const EXP2: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_47,
    0.055_503_29,
    0.009_618_489,
    0.001_339_993_1,
    0.000_153_458_12,
];

/// Minimax coefficients of `(atanh(s)/s - 1)/s^2` in `s^2` on [0, 1/9].
const ATANH: [f32; 5] = [0.333_333_34, 0.199_998_48, 0.142_964_06, 0.108_500_21, 0.116_268_91];

/// Abramowitz & Stegun 7.1.26: `erfc(x) = (ERFC . t^k) e^(-x^2)` with `t = 1 / (1 + ERFC_P x)`.
const ERFC: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
const ERFC_P: f32 = 0.327_591_1;

/// Adding and subtracting 1.5 * 2^23 rounds to an integer; with the exponent bias of f32 added, the
/// low bits of the sum are the exponent field of the power of two.
const ROUND: f32 = 12_582_912.0;

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    pub(crate) fn splat(self, value: f32) -> S::f32s {
        self.simd.splat_f32s(value)
    }

    /// `a * b + c`, fused where the machine can.
    #[inline(always)]
    pub(crate) fn fma(self, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        self.simd.mul_add_e_f32s(a, b, c)
    }

    #[inline(always)]
    pub(crate) fn mul(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.simd.mul_f32s(a, b)
    }

    #[inline(always)]
    pub(crate) fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.simd.add_f32s(a, b)
    }

    #[inline(always)]
    pub(crate) fn sub(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.simd.sub_f32s(a, b)
    }

    /// `x`, or `bound` where that is smaller; NaN stays NaN.
    #[inline(always)]
    fn at_most(self, x: S::f32s, bound: f32) -> S::f32s {
        let bound = self.splat(bound);
        if MIN_KEEPS_SECOND && S::F32_LANES > 1 {
            return self.simd.min_f32s(bound, x);
        }
        self.simd.select_f32s(self.simd.greater_than_f32s(x, bound), bound, x)
    }

    /// `x`, or `bound` where that is larger; NaN stays NaN.
    #[inline(always)]
    fn at_least(self, x: S::f32s, bound: f32) -> S::f32s {
        let bound = self.splat(bound);
        if MIN_KEEPS_SECOND && S::F32_LANES > 1 {
            return self.simd.max_f32s(bound, x);
        }
        self.simd.select_f32s(self.simd.less_than_f32s(x, bound), bound, x)
    }

    /// `2^x`, not below the smallest normal number of f32.
    #[inline(always)]
    pub(crate) fn exp2(self, x: S::f32s) -> S::f32s {
        let simd = self.simd;
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = (&simd as &dyn std::any::Any).downcast_ref::<pulp::x86::V4>() {
            // `S` is V4, so the two casts are between equal types.
            return same(exp2_avx512(*simd, same(x)));
        }
        let x = self.at_most(self.at_least(x, -126.0), 127.0);
        let biased = self.add(x, self.splat(ROUND + 127.0));
        let f = self.sub(x, self.sub(biased, self.splat(ROUND + 127.0)));
        let mut p = self.splat(EXP2[5]);
        for k in (0..5).rev() {
            p = self.fma(p, f, self.splat(EXP2[k]));
        }
        p = self.fma(p, f, self.splat(1.0));
        let bits = simd.transmute_u32s_f32s(biased);
        let power = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
        self.mul(p, simd.transmute_f32s_u32s(power))
    }

    /// `e^-|x|`, in (0, 1].
    #[inline(always)]
    fn exp_neg_abs(self, x: S::f32s) -> S::f32s {
        // Beyond the bound the power is the smallest normal number anyway, and infinity would become NaN
        // in the second step.
        let x = self.at_most(self.simd.abs_f32s(x), 90.0);
        // Two steps keep the rounding error of x * log2(e) out of the result.
        let hi = self.mul(x, self.splat(-std::f32::consts::LOG2_E));
        let rest = self.fma(x, self.splat(-std::f32::consts::LOG2_E), self.simd.neg_f32s(hi));
        // log2(e) - f32(log2(e))
        let low = self.fma(x, self.splat(-1.925_963e-8), rest);
        let e = self.exp2(hi);
        self.fma(self.mul(e, self.splat(std::f32::consts::LN_2)), low, e)
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    pub(crate) fn sigmoid(self, x: S::f32s) -> S::f32s {
        let e = self.exp_neg_abs(x);
        let one = self.splat(1.0);
        let positive = self.simd.greater_than_or_equal_f32s(x, self.splat(0.0));
        let numerator = self.simd.select_f32s(positive, one, e);
        self.simd.div_f32s(numerator, self.add(one, e))
    }

    /// Integral and density of the standard normal distribution at `x`.
    #[inline(always)]
    pub(crate) fn normal(self, x: S::f32s) -> (S::f32s, S::f32s) {
        let one = self.splat(1.0);
        let half = self.splat(0.5);
        let magnitude = self.simd.abs_f32s(x);
        // e^(-x^2 / 2) with the exponent clamped where its power is zero in f32 anyway.
        let e = self.exp2(self.mul(self.mul(x, x), self.splat(-0.5 * std::f32::consts::LOG2_E)));
        // erfc(|x| / sqrt 2) = poly(t) e^(-x^2 / 2), t = 1 / (1 + p |x| / sqrt 2)
        let scaled = self.mul(magnitude, self.splat(ERFC_P * std::f32::consts::FRAC_1_SQRT_2));
        let t = self.simd.div_f32s(one, self.add(one, scaled));
        let mut p = self.splat(ERFC[4]);
        for k in (0..4).rev() {
            p = self.fma(p, t, self.splat(ERFC[k]));
        }
        let tail = self.mul(self.mul(self.mul(p, t), e), half);
        let positive = self.simd.greater_than_or_equal_f32s(x, self.splat(0.0));
        let cdf = self.simd.select_f32s(positive, self.sub(one, tail), tail);
        // 1 / sqrt(2 pi)
        (cdf, self.mul(e, self.splat(0.398_942_3)))
    }

    /// `(softplus(x), sigmoid(x))`: the step size and its derivative share an exponential.
    #[inline(always)]
    pub(crate) fn softplus_sigmoid(self, x: S::f32s) -> (S::f32s, S::f32s) {
        let e = self.exp_neg_abs(x);
        let one = self.splat(1.0);
        let zero = self.splat(0.0);
        let positive = self.simd.greater_than_or_equal_f32s(x, zero);
        let numerator = self.simd.select_f32s(positive, one, e);
        let sigmoid = self.simd.div_f32s(numerator, self.add(one, e));
        // ln(1 + e) = 2 atanh(e / (2 + e)): no cancellation for small e.
        let s = self.simd.div_f32s(e, self.add(self.splat(2.0), e));
        let q = self.mul(s, s);
        let mut p = self.splat(ATANH[4]);
        for k in (0..4).rev() {
            p = self.fma(p, q, self.splat(ATANH[k]));
        }
        let s2 = self.add(s, s);
        let log = self.fma(self.mul(s2, q), p, s2);
        (self.add(self.simd.max_f32s(zero, x), log), sigmoid)
    }
}

/// Writes the first lanes of `values`, as many as `to` has.
#[inline(always)]
pub(crate) fn write_lanes<S: Simd>(simd: S, to: &mut [MaybeUninit<f32>], values: S::f32s) {
    if to.len() == S::F32_LANES {
        // SAFETY: a register is that many f32, and this memory is as long.
        unsafe { to.as_mut_ptr().cast::<S::f32s>().write_unaligned(values) };
        return;
    }
    let mut lanes = [0.0; MAX_LANES];
    simd.partial_store_f32s(&mut lanes[..to.len()], values);
    for (to, value) in to.iter_mut().zip(lanes) {
        to.write(value);
    }
}

/// A value of a type that generic code cannot see to be the other type.
///
/// # Panics
/// If the types differ; compiled away where they are equal.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn same<T: Copy + 'static, U: Copy + 'static>(value: T) -> U {
    use std::any::TypeId;
    assert_eq!(TypeId::of::<T>(), TypeId::of::<U>());
    // SAFETY: it is one type.
    unsafe { std::mem::transmute_copy(&value) }
}

/// `2^(k / 16)`.
#[cfg(target_arch = "x86_64")]
const SIXTEENTHS: [f32; 16] = [
    1.0,
    1.044_273_7,
    1.090_507_7,
    1.138_788_6,
    1.189_207_1,
    1.241_857_8,
    1.296_839_6,
    1.354_255_6,
    std::f32::consts::SQRT_2,
    1.476_826_2,
    1.542_210_8,
    1.610_490_3,
    1.681_792_9,
    1.756_252_2,
    1.834_008_1,
    1.915_206_6,
];

/// Minimax coefficients of `(2^f - 1) / f` on [-1/32, 1/32].
#[cfg(target_arch = "x86_64")]
const EXP2_NEAR_ZERO: [f32; 3] = [std::f32::consts::LN_2, 0.240_226_5, 0.055_503_3];

/// [`Lanes::exp2`] where a register holds a table and the processor scales by powers of two: sixteenths
/// from the table leave half the polynomial.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn exp2_avx512(simd: pulp::x86::V4, x: pulp::f32x16) -> pulp::f32x16 {
    let m = Lanes { simd };
    // The same lower end as elsewhere. There is no upper one, which would cost a tenth of a scan's forward
    // pass: scaling ends in infinity.
    let x = m.at_least(x, -126.0);
    // 1.5 * 2^19 rounds to sixteenths and leaves their number in the low bits, of which the table takes
    // the last four.
    let round = m.splat(786_432.0);
    let shifted = m.add(x, round);
    let nearest = m.sub(shifted, round);
    let f = m.sub(x, nearest);
    let table: pulp::f32x16 = pulp::cast(SIXTEENTHS);
    let near: pulp::f32x16 =
        pulp::cast(simd.avx512f._mm512_permutexvar_ps(pulp::cast(shifted), pulp::cast(table)));
    let [c1, c2, c3] = EXP2_NEAR_ZERO.map(|c| m.splat(c));
    let p = m.mul(m.fma(m.fma(c3, f, c2), f, c1), f);
    // 2^0 is exactly 1: p is zero there.
    let power = m.fma(near, p, near);
    pulp::cast(simd.avx512f._mm512_scalef_ps(pulp::cast(power), pulp::cast(nearest)))
}

/// f32 values in a cache line.
const LINE: usize = 16;

/// Values between two parts of a [`Scratch`]. Parts of some thousand values would begin at addresses that
/// differ by multiples of 4096, where a load has to wait for an older store to another part.
const GAP: usize = 5 * LINE;

/// Most parts of a [`Scratch`].
const MAX_PARTS: usize = 16;

/// Working memory of one thread, aligned to cache lines so that no register load splits one.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    first: usize,
}

impl Scratch {
    /// Room for `len` values.
    pub(crate) fn new(len: usize) -> Self {
        let buffer = vec![0.0; len + LINE + MAX_PARTS * GAP];
        let first = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Self { buffer, first }
    }

    /// Consecutive parts of the given lengths.
    ///
    /// # Panics
    /// If they need more room than there is, or are more than 16.
    #[inline(always)]
    pub(crate) fn split<const K: usize>(&mut self, lens: [usize; K]) -> [&mut [f32]; K] {
        let mut rest = &mut self.buffer[self.first..];
        lens.map(|len| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = &mut tail[GAP..];
            part
        })
    }
}

/// Sums a row-major `[outer, inner]` buffer over its first axis, in order.
pub(crate) fn sum_outer(mut values: Vec<f32>, outer: usize) -> Vec<f32> {
    const PIECE: usize = 4096;
    if outer <= 1 || values.is_empty() {
        return values;
    }
    let inner = values.len() / outer;
    let (sum, rest) = values.split_at_mut(inner);
    sum.par_chunks_mut(PIECE).enumerate().for_each(|(piece, sum)| {
        for row in rest.chunks_exact(inner) {
            for (sum, value) in sum.iter_mut().zip(&row[piece * PIECE..]) {
                *sum += value;
            }
        }
    });
    values.truncate(inner);
    values
}

/// Every instruction set that kernels are compiled for and that this machine has: a test on the widest
/// alone would never run what other machines do.
#[cfg(test)]
pub(crate) fn routes() -> Vec<pulp::Arch> {
    let mut routes = vec![pulp::Arch::new(), pulp::Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    routes.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    struct Run<'a> {
        op: usize,
        x: &'a [f32],
        out: Vec<f32>,
    }

    impl WithSimd for Run<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, simd: S) -> Vec<f32> {
            let m = Lanes { simd };
            for (x, out) in self.x.chunks(S::F32_LANES).zip(self.out.chunks_mut(S::F32_LANES)) {
                let x = simd.partial_load_f32s(x);
                let y = match self.op {
                    0 => m.exp2(x),
                    1 => m.sigmoid(x),
                    2 => m.softplus_sigmoid(x).0,
                    _ => m.softplus_sigmoid(x).1,
                };
                simd.partial_store_f32s(out, y);
            }
            self.out
        }
    }

    fn run(arch: Arch, op: usize, x: &[f32]) -> Vec<f32> {
        arch.dispatch(Run { op, x, out: vec![0.0; x.len()] })
    }

    #[test]
    fn activations_are_accurate_to_f32() {
        let x: Vec<f32> = (-2000..=2000).map(|i| i as f32 * 0.02).collect();
        let truths: [fn(f64) -> f64; 4] = [
            f64::exp2,
            |x| 1.0 / (1.0 + (-x).exp()),
            |x| if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() },
            |x| 1.0 / (1.0 + (-x).exp()),
        ];
        for arch in routes() {
            // Without a fused multiply-add the second step of `exp_neg_abs` finds no remainder.
            let bound = if matches!(arch, Arch::Scalar) { 2e-6 } else { 2.5e-7 };
            for (op, truth) in truths.into_iter().enumerate() {
                for (x, y) in x.iter().zip(run(arch, op, &x)) {
                    let truth = truth(f64::from(*x));
                    let error = (f64::from(y) - truth).abs() / truth;
                    assert!(
                        error < bound,
                        "{arch:?}, op {op} at {x}: {y} and {truth}, relative error {error:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn exp2_is_exact_at_zero_and_keeps_nan() {
        for arch in routes() {
            assert_eq!(run(arch, 0, &[0.0, -0.0]), [1.0, 1.0]);
            for op in 0..4 {
                let y = run(arch, op, &[f32::NAN; 17]);
                assert!(y.iter().all(|y| y.is_nan()), "{arch:?}, op {op}");
            }
        }
    }

    #[test]
    fn activations_of_infinity_are_their_limits() {
        let limits = [(f32::INFINITY, [1.0, f32::INFINITY, 1.0]), (f32::NEG_INFINITY, [0.0; 3])];
        for arch in routes() {
            for (x, limits) in limits {
                for (op, limit) in (1..).zip(limits) {
                    for y in run(arch, op, &[x; 17]) {
                        let close = y == limit || (y - limit).abs() < 1e-37;
                        assert!(close, "{arch:?}, op {op} at {x}: {y}");
                    }
                }
            }
        }
    }
}
