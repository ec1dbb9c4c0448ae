//! Every operation run on a device and compared to its specification: whether this machine computes
//! what it should.
//!
//! Drivers and compilers of kernels have bugs that no test on another machine can find. A self-test is
//! small (a second or so on a CPU, more where kernels are compiled first) and covers forward and
//! backward passes. The parity tests of this crate are the thorough ones.

mod decoding;
mod training;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use burn::tensor::{DType, Device, FloatDType, Gradients, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{causal_conv1d::host::ConvDims, selective_scan::host::ScanDims};

/// How one operation did on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfTest {
    /// Name of the operation.
    pub op: &'static str,
    /// The sizes that it was run with.
    pub shape: String,
    /// What came out, or the message of the panic that came instead.
    pub outcome: Result<Measured, String>,
    /// Largest error that passes.
    pub bound: f64,
}

/// The result of a self-test that ran to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Largest error of all outputs and gradients: RMS of the difference over RMS of the truth.
    pub error: f64,
    /// The output or gradient that has it.
    pub worst: &'static str,
    /// Forward and backward pass with the copies to the host, kernels being compiled already.
    pub time: Duration,
}

impl SelfTest {
    /// Runs an operation twice and compares what it computes the second time: kernels are compiled and chosen
    /// in the first. A panic of the backend is part of the result.
    pub fn of(
        op: &'static str,
        shape: impl Into<String>,
        bound: f64,
        run: impl Fn() -> Vec<Compared>,
    ) -> Self {
        let once = || {
            run();
            let clock = Instant::now();
            let compared = run();
            let time = clock.elapsed();
            let errors =
                compared.iter().map(|(name, got, truth)| (relative_rms(got, truth), *name));
            // NaN is the largest of all here.
            let worst = errors.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
            let (error, worst) = worst.unwrap_or((f64::NAN, "nothing"));
            Measured { error, worst, time }
        };
        // Backends report a kernel that does not compile by a panic.
        let outcome = catch_unwind(AssertUnwindSafe(once)).map_err(|panic| message(&*panic));
        Self { op, shape: shape.into(), outcome, bound }
    }

    /// Whether the operation computes what it should; an error that is not a number does not pass.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|measured| measured.error <= self.bound)
    }
}

/// f32 sums of some hundred terms in any order, twice nested for gradients.
const BOUND: f64 = 1e-5;
/// Matrix units of GPUs may round the factors of a product to ten bits (TF32).
const MATRIX_BOUND: f64 = 2e-3;

/// Runs every operation forwards and backwards on `device` and compares it to its specification, also in
/// the types of half precision that the device computes in.
///
/// The device may be one with or without autodiff. A panic of the backend is part of the result. `ended` hears
/// of each test at its end: all of them take minutes where kernels are compiled first.
#[must_use]
pub fn self_test(device: &Device, mut ended: impl FnMut(&SelfTest)) -> Vec<SelfTest> {
    let mut suite = Suite::new(device, &mut ended);
    // With and without a tail behind the tiles of every kernel, one sequence that is cut, and more states than
    // planes of units hold.
    for [batch, seq_len, d_inner, d_state, n_groups] in
        [[2, 128, 64, 16, 1], [3, 97, 5, 4, 1], [1, 600, 32, 16, 2], [2, 9, 3, 130, 1]]
    {
        let dims = ScanDims { batch, seq_len, d_inner, d_state, n_groups };
        let shape = format!("{batch}x{seq_len}x{d_inner}, state {d_state}, groups {n_groups}");
        suite.typed("selective_scan", &shape, [BOUND, 2e-2], |draw| training::scan(dims, draw));
    }
    for [batch, seq_len, channels, d_conv] in [[2, 128, 64, 4], [3, 97, 5, 3]] {
        let dims = ConvDims { batch, seq_len, channels, d_conv };
        let shape = format!("{batch}x{seq_len}x{channels}, width {d_conv}");
        for (shape, resets) in [(shape.clone(), false), (shape + ", resets", true)] {
            suite.typed("causal_conv1d", &shape, [BOUND, 6e-3], |draw| {
                training::conv(dims, resets, draw)
            });
        }
    }
    let [rows, d_in] = [70, 48];
    // The second is one that matrix units of Hopper chips read in half precision.
    for widths in [&[33][..], &[40], &[16, 8, 16]] {
        let shape = format!("{rows}x{d_in} by {d_in}x{widths:?}");
        suite.typed("linear", &shape, [MATRIX_BOUND, 5e-3], |draw| {
            training::linear(rows, d_in, widths, draw)
        });
    }
    for [rows, width] in [[70, 256], [3, 97]] {
        let shape = format!("{rows}x{width}");
        suite.typed("rms_norm", &shape, [BOUND, 6e-3], |draw| training::norm(rows, width, draw));
    }
    for [rows, width] in [[70, 256], [3, 97]] {
        let shape = format!("{rows}x{width}");
        suite.typed("add_rms_norm", &shape, [BOUND, 6e-3], |draw| {
            training::add_norm(rows, width, draw)
        });
    }
    suite.typed("gelu", "3x13x7", [BOUND, 6e-3], training::gelu);
    suite.typed("neg_exp", "3x13x7", [BOUND, 1.2e-2], training::neg_exp);
    suite.typed("masked", "3x13x7", [BOUND, 6e-3], training::masked);
    suite.typed("dropped", "3x13x7", [BOUND, 6e-3], training::dropped);
    suite.typed("reverse", "3x13x7", [0.0, 0.0], training::reverse);
    let shape = format!("{rows}x{d_in}");
    suite.typed("layer_norm", &shape, [BOUND, 8e-3], |draw| training::layer_norm(rows, d_in, draw));
    let shape = format!("{rows}x{d_in}, 33 tokens");
    suite.typed("cross_entropy", &shape, [MATRIX_BOUND, 1.5e-2], |draw| {
        training::cross_entropy(rows, d_in, 33, draw)
    });
    suite.single("recompute", "3x13x7", BOUND, training::recompute);
    decoding::add_to(&mut suite);
    suite.tests
}

/// What was tested so far on a device.
struct Suite<'a> {
    /// With autodiff.
    device: Device,
    dtypes: Vec<FloatDType>,
    tests: Vec<SelfTest>,
    ended: &'a mut dyn FnMut(&SelfTest),
}

impl<'a> Suite<'a> {
    fn new(device: &Device, ended: &'a mut dyn FnMut(&SelfTest)) -> Self {
        let device = if device.is_autodiff() { device.clone() } else { device.clone().autodiff() };
        let half = [FloatDType::BF16, FloatDType::F16];
        let half = half.into_iter().filter(|dtype| device.supports_dtype(*dtype));
        let dtypes = [FloatDType::F32].into_iter().chain(half).collect();
        Self { device, dtypes, tests: Vec::new(), ended }
    }

    /// Tests an operation in every type that the device computes in: bounds are those of f32 and of half
    /// precision.
    fn typed(
        &mut self,
        op: &'static str,
        shape: &str,
        [whole, half]: [f64; 2],
        run: impl Fn(&mut Draw) -> Vec<Compared>,
    ) {
        for dtype in self.dtypes.clone() {
            let (shape, bound) = match dtype {
                FloatDType::F32 => (shape.to_owned(), whole),
                _ => (format!("{shape}, {}", format!("{dtype:?}").to_lowercase()), half),
            };
            let run = || run(&mut Draw::new(dtype, &self.device));
            let test = SelfTest::of(op, shape, bound, run);
            self.add(test);
        }
    }

    fn add(&mut self, test: SelfTest) {
        (self.ended)(&test);
        self.tests.push(test);
    }

    /// Tests an operation in f32 alone.
    fn single(
        &mut self,
        op: &'static str,
        shape: &str,
        bound: f64,
        run: impl Fn(&mut Draw) -> Vec<Compared>,
    ) {
        let run = || run(&mut Draw::new(FloatDType::F32, &self.device));
        let test = SelfTest::of(op, shape, bound, run);
        self.add(test);
    }
}

/// An output or a gradient: name, what the device computed, and the truth.
pub type Compared = (&'static str, Vec<f64>, Vec<f64>);

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panicked without a message".into())
}

/// Values on the host, so that every device sees the same.
struct Draw {
    rng: ChaCha8Rng,
    /// The type of what an operation takes in several types.
    dtype: FloatDType,
    device: Device,
}

/// A tensor with its values in f64.
struct Input<const D: usize> {
    values: Vec<f64>,
    tensor: Tensor<D>,
}

impl Draw {
    fn new(dtype: FloatDType, device: &Device) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(1), dtype, device: device.clone() }
    }

    /// A leaf whose gradient is wanted, in the type that is tested, uniform in `[low, high)`.
    fn input<const D: usize>(&mut self, shape: [usize; D], low: f32, high: f32) -> Input<D> {
        let Input { values, tensor } = self.constant(shape, low, high, self.dtype);
        Input { values, tensor: tensor.require_grad() }
    }

    /// As [`Draw::input`], in f32 always.
    fn parameter<const D: usize>(&mut self, shape: [usize; D], low: f32, high: f32) -> Input<D> {
        let Input { values, tensor } = self.constant(shape, low, high, FloatDType::F32);
        Input { values, tensor: tensor.require_grad() }
    }

    /// What an output is multiplied by to make a loss, in the type of the output.
    fn cotangent<const D: usize>(&mut self, shape: [usize; D]) -> Input<D> {
        self.constant(shape, -1.0, 1.0, self.dtype)
    }

    /// In one row of memory: a device may put space behind the rows of what comes in another shape.
    fn constant<const D: usize>(
        &mut self,
        shape: [usize; D],
        low: f32,
        high: f32,
        dtype: FloatDType,
    ) -> Input<D> {
        // 24 bits, which f32 holds exactly.
        let unit = |bits: u64| (bits >> 40) as f32 / 16_777_216.0;
        let len = shape.iter().product();
        let drawn: Vec<f32> =
            (0..len).map(|_| low + (high - low) * unit(self.rng.next_u64())).collect();
        let data = TensorData::new(drawn, [len]).convert_dtype(dtype.into());
        let values = data.iter::<f64>().collect();
        let tensor =
            Tensor::<1>::from_data(data, (&self.device, DType::from(dtype))).reshape(shape);
        Input { values, tensor }
    }
}

impl<const D: usize> Input<D> {
    /// Empty where there is none, which fails the comparison.
    fn gradient(&self, grads: &Gradients) -> Vec<f64> {
        self.tensor.grad(grads).map_or_else(Vec::new, |grad| values(&grad))
    }
}

/// The loss that gives `y` the gradient `grad_y`.
fn weighed<const D: usize>(y: &Tensor<D>, grad_y: &Input<D>) -> Tensor<1> {
    (y.clone().cast(FloatDType::F32) * grad_y.tensor.clone().cast(FloatDType::F32)).sum()
}

/// In row-major order.
fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().into_data().iter::<f64>().collect()
}

/// RMS of the difference over RMS of the truth; NaN where a value is missing or not finite.
fn relative_rms(got: &[f64], truth: &[f64]) -> f64 {
    if got.len() != truth.len() || !got.iter().all(|value| value.is_finite()) {
        return f64::NAN;
    }
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut got.iter().zip(truth).map(|(got, truth)| got - truth));
    if difference == 0.0 { 0.0 } else { difference / square(&mut truth.iter().copied()).max(1e-30) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_missing_and_infinite_values_and_panics_do_not_pass() {
        let test = |got: Vec<f64>| {
            SelfTest::of("op", "", BOUND, || vec![("y", got.clone(), vec![1.0, 2.0])])
        };
        assert!(test(vec![1.0, 2.0]).passed());
        for wrong in
            [vec![1.0, 2.001], vec![1.0], vec![], vec![f64::NAN, 2.0], vec![f64::INFINITY, 2.0]]
        {
            assert!(!test(wrong.clone()).passed(), "{wrong:?}");
        }
        let both = || vec![("good", vec![1.0], vec![1.0]), ("bad", vec![f64::NAN], vec![1.0])];
        let outcome = SelfTest::of("op", "", BOUND, both).outcome.unwrap();
        assert_eq!(outcome.worst, "bad");
        let panics = SelfTest::of("op", "", BOUND, || panic!("no kernel"));
        assert_eq!(panics.outcome, Err("no kernel".into()));
        assert!(!panics.passed());
    }
}
