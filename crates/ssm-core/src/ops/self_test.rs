//! Every operation run on a device and compared to its specification: whether this machine computes
//! what it should.
//!
//! Drivers and compilers of kernels have bugs that no test on another machine can find. A self-test is
//! small (a second or so on a CPU, more where kernels are compiled first) and covers forward and
//! backward passes. The parity tests of this crate are the thorough ones.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use burn::{
    module::Param,
    nn::LayerNormConfig,
    tensor::{Bool, Device, Gradients, Tensor, TensorData},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    causal_conv1d::{self, ConvArgs, causal_conv1d},
    cross_entropy, layer_norm,
    linear::linear_loose,
    pointwise,
    recompute::recompute,
    rms_norm,
    selective_scan::{self, ScanArgs, selective_scan},
};

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

/// Runs every operation forwards and backwards on `device` and compares it to its specification.
///
/// The device may be one with or without autodiff. A panic of the backend is part of the result.
#[must_use]
pub fn self_test(device: &Device) -> Vec<SelfTest> {
    let device = if device.is_autodiff() { device.clone() } else { device.clone().autodiff() };
    let device = &device;
    let mut tests = Vec::new();
    // With and without a tail behind the tiles of every kernel.
    for [batch, seq_len, d_inner, d_state] in [[2, 128, 64, 16], [3, 97, 5, 4]] {
        let dims = selective_scan::host::ScanDims { batch, seq_len, d_inner, d_state, n_groups: 1 };
        let shape = format!("{batch}x{seq_len}x{d_inner}, state {d_state}");
        tests.push(measure("selective_scan", shape, BOUND, || scan(dims, device)));
    }
    for [batch, seq_len, channels, d_conv] in [[2, 128, 64, 4], [3, 97, 5, 3]] {
        let dims = causal_conv1d::host::ConvDims { batch, seq_len, channels, d_conv };
        let shape = format!("{batch}x{seq_len}x{channels}, width {d_conv}");
        tests.push(measure("causal_conv1d", shape, BOUND, || conv(dims, device)));
    }
    let [rows, d_in, d_out] = [70, 48, 33];
    let shape = format!("{rows}x{d_in} by {d_in}x{d_out}");
    tests.push(measure("linear", shape, MATRIX_BOUND, || linear(rows, d_in, d_out, device)));
    for [rows, width] in [[70, 256], [3, 97]] {
        let shape = format!("{rows}x{width}");
        tests.push(measure("rms_norm", shape, BOUND, || norm(rows, width, device)));
    }
    let sizes = [3, 13, 7];
    tests.push(measure("gelu", "3x13x7".into(), BOUND, || gelu(sizes, device)));
    tests.push(measure("reverse", "3x13x7".into(), 0.0, || reverse(sizes, device)));
    let [rows, width] = [70, 48];
    let shape = format!("{rows}x{width}");
    tests.push(measure("layer_norm", shape, BOUND, || normed(rows, width, device)));
    let shape = format!("{rows}x{d_in}, {d_out} tokens");
    tests.push(measure("cross_entropy", shape, MATRIX_BOUND, || loss(rows, d_in, d_out, device)));
    tests.push(measure("recompute", "3x13x7".into(), BOUND, || again(sizes, device)));
    tests
}

/// An output or a gradient: name, what the device computed, and the truth.
type Compared = (&'static str, Vec<f64>, Vec<f64>);

fn measure(
    op: &'static str,
    shape: String,
    bound: f64,
    run: impl Fn() -> Vec<Compared>,
) -> SelfTest {
    let once = || {
        run(); // compiles and chooses kernels
        let clock = Instant::now();
        let compared = run();
        let time = clock.elapsed();
        let errors = compared.iter().map(|(name, got, truth)| (relative_rms(got, truth), *name));
        // NaN is the largest of all here.
        let worst = errors.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
        let (error, worst) = worst.unwrap_or((f64::NAN, "nothing"));
        Measured { error, worst, time }
    };
    // Backends report a kernel that does not compile by a panic.
    let outcome = catch_unwind(AssertUnwindSafe(once)).map_err(|panic| message(&*panic));
    SelfTest { op, shape, outcome, bound }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panicked without a message".into())
}

fn scan(dims: selective_scan::host::ScanDims, device: &Device) -> Vec<Compared> {
    let selective_scan::host::ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let mut draw = Draw::new(1);
    let steps = [batch, seq_len, d_inner];
    let rows = [batch, seq_len, d_state];
    let state = [batch, d_inner, d_state];
    let u = draw.input(steps, -1.0, 1.0, device);
    let delta = draw.input(steps, -4.0, 1.0, device);
    let a = draw.input([d_inner, d_state], -2.0, -0.1, device);
    let b = draw.input(rows, -1.0, 1.0, device);
    let c = draw.input(rows, -1.0, 1.0, device);
    let d = draw.input([d_inner], -1.0, 1.0, device);
    let z = draw.input(steps, -2.0, 2.0, device);
    let bias = draw.input([d_inner], -0.1, 0.1, device);
    let initial = draw.input(state, -1.0, 1.0, device);
    let resets: Vec<bool> = (0..batch * seq_len).map(|step| step % 41 == 40).collect();
    let (grad_y, grad_final) = (draw.fixed(steps, device), draw.fixed(state, device));

    let out = selective_scan(ScanArgs {
        u: u.tensor.clone(),
        delta: delta.tensor.clone(),
        a: a.tensor.clone(),
        b: b.tensor.clone(),
        c: c.tensor.clone(),
        d: Some(d.tensor.clone()),
        z: Some(z.tensor.clone()),
        delta_bias: Some(bias.tensor.clone()),
        delta_softplus: true,
        initial_state: Some(initial.tensor.clone()),
        resets: Some(Tensor::<2, Bool>::from_data(
            TensorData::new(resets.clone(), [batch, seq_len]),
            device,
        )),
    });
    let loss =
        (out.y.clone() * grad_y.tensor).sum() + (out.final_state.clone() * grad_final.tensor).sum();
    let grads = loss.backward();

    let resets: Vec<f64> = resets.into_iter().map(|reset| f64::from(u8::from(reset))).collect();
    let slices = selective_scan::host::ScanSlices {
        u: &u.values,
        delta: &delta.values,
        a: &a.values,
        b: &b.values,
        c: &c.values,
        d: Some(&d.values),
        z: Some(&z.values),
        delta_bias: Some(&bias.values),
        initial_state: Some(&initial.values),
        resets: Some(&resets),
        delta_softplus: true,
    };
    let truth = selective_scan::host::forward(dims, &slices);
    let grad =
        selective_scan::host::backward(dims, &slices, &grad_y.values, Some(&grad_final.values));
    vec![
        ("y", values(&out.y), truth.y),
        ("final_state", values(&out.final_state), truth.final_state),
        ("grad_u", u.gradient(&grads), grad.u),
        ("grad_delta", delta.gradient(&grads), grad.delta),
        ("grad_a", a.gradient(&grads), grad.a),
        ("grad_b", b.gradient(&grads), grad.b),
        ("grad_c", c.gradient(&grads), grad.c),
        ("grad_d", d.gradient(&grads), grad.d),
        ("grad_z", z.gradient(&grads), grad.z),
        ("grad_delta_bias", bias.gradient(&grads), grad.delta_bias),
        ("grad_initial_state", initial.gradient(&grads), grad.initial_state),
    ]
}

fn conv(dims: causal_conv1d::host::ConvDims, device: &Device) -> Vec<Compared> {
    let causal_conv1d::host::ConvDims { batch, seq_len, channels, d_conv } = dims;
    let mut draw = Draw::new(2);
    let x = draw.input([batch, seq_len, channels], -1.0, 1.0, device);
    let weight = draw.input([channels, d_conv], -1.0, 1.0, device);
    let bias = draw.input([channels], -1.0, 1.0, device);
    let initial = draw.input([batch, d_conv - 1, channels], -1.0, 1.0, device);
    let grad_y = draw.fixed([batch, seq_len, channels], device);
    let y = causal_conv1d(ConvArgs {
        x: x.tensor.clone(),
        weight: weight.tensor.clone(),
        bias: Some(bias.tensor.clone()),
        silu: true,
        initial_state: Some(initial.tensor.clone()),
        resets: None,
    });
    let grads = (y.clone() * grad_y.tensor).sum().backward();
    let slices = causal_conv1d::host::ConvSlices {
        x: &x.values,
        weight: &weight.values,
        bias: Some(&bias.values),
        initial_state: Some(&initial.values),
        resets: None,
        silu: true,
    };
    let grad = causal_conv1d::host::backward(dims, &slices, &grad_y.values);
    vec![
        ("y", values(&y), causal_conv1d::host::forward(dims, &slices)),
        ("grad_x", x.gradient(&grads), grad.x),
        ("grad_weight", weight.gradient(&grads), grad.weight),
        ("grad_bias", bias.gradient(&grads), grad.bias),
        ("grad_initial_state", initial.gradient(&grads), grad.initial_state),
    ]
}

fn linear(rows: usize, d_in: usize, d_out: usize, device: &Device) -> Vec<Compared> {
    let mut draw = Draw::new(3);
    let x = draw.input([1, rows, d_in], -1.0, 1.0, device);
    let weight = draw.input([d_in, d_out], -1.0, 1.0, device);
    let bias = draw.input([d_out], -1.0, 1.0, device);
    let grad_y = draw.fixed([1, rows, d_out], device);
    let y = linear_loose(weight.tensor.clone(), Some(bias.tensor.clone()), x.tensor.clone());
    let grads = (y.clone() * grad_y.tensor).sum().backward();

    let mut truth = bias.values.repeat(rows);
    let mut grad_x = vec![0.0; rows * d_in];
    let mut grad_weight = vec![0.0; d_in * d_out];
    let mut grad_bias = vec![0.0; d_out];
    for row in 0..rows {
        for j in 0..d_out {
            let grad = grad_y.values[row * d_out + j];
            grad_bias[j] += grad;
            for i in 0..d_in {
                let (x, weight) = (x.values[row * d_in + i], weight.values[i * d_out + j]);
                truth[row * d_out + j] += x * weight;
                grad_x[row * d_in + i] += grad * weight;
                grad_weight[i * d_out + j] += grad * x;
            }
        }
    }
    vec![
        ("y", values(&y), truth),
        ("grad_x", x.gradient(&grads), grad_x),
        ("grad_weight", weight.gradient(&grads), grad_weight),
        ("grad_bias", bias.gradient(&grads), grad_bias),
    ]
}

fn norm(rows: usize, width: usize, device: &Device) -> Vec<Compared> {
    let epsilon = 1e-5;
    let mut draw = Draw::new(8);
    let x = draw.input([rows, width], -2.0, 2.0, device);
    let weight = draw.input([width], 0.5, 1.5, device);
    let grad_y = draw.fixed([rows, width], device);
    let y = rms_norm::rms_norm(x.tensor.clone(), weight.tensor.clone(), epsilon);
    let grads = (y.clone() * grad_y.tensor).sum().backward();
    let (grad_x, grad_weight) =
        rms_norm::host::backward(&x.values, &weight.values, &grad_y.values, epsilon);
    vec![
        ("y", values(&y), rms_norm::host::forward(&x.values, &weight.values, epsilon)),
        ("grad_x", x.gradient(&grads), grad_x),
        ("grad_weight", weight.gradient(&grads), grad_weight),
    ]
}

fn gelu(sizes: [usize; 3], device: &Device) -> Vec<Compared> {
    let mut draw = Draw::new(4);
    let x = draw.input(sizes, -4.0, 4.0, device);
    let grad_y = draw.fixed(sizes, device);
    let y = pointwise::gelu(x.tensor.clone());
    let grads = (y.clone() * grad_y.tensor).sum().backward();
    vec![
        ("y", values(&y), pointwise::host::gelu(&x.values)),
        ("grad_x", x.gradient(&grads), pointwise::host::gelu_backward(&x.values, &grad_y.values)),
    ]
}

fn reverse(sizes: [usize; 3], device: &Device) -> Vec<Compared> {
    let mut draw = Draw::new(5);
    let x = draw.input(sizes, -1.0, 1.0, device);
    let grad_y = draw.fixed(sizes, device);
    let y = pointwise::reverse(x.tensor.clone());
    let grads = (y.clone() * grad_y.tensor).sum().backward();
    vec![
        ("y", values(&y), pointwise::host::reverse(&x.values, sizes)),
        ("grad_x", x.gradient(&grads), pointwise::host::reverse(&grad_y.values, sizes)),
    ]
}

fn normed(rows: usize, width: usize, device: &Device) -> Vec<Compared> {
    const EPSILON: f64 = 1e-5;
    let mut draw = Draw::new(8);
    let x = draw.input([rows, width], -1.0, 2.0, device);
    let residual = draw.input([rows, width], -1.0, 1.0, device);
    let weight = draw.input([width], 0.5, 1.5, device);
    let bias = draw.input([width], -1.0, 1.0, device);
    let grad_y = draw.fixed([rows, width], device);
    let mut norm = LayerNormConfig::new(width).init(device);
    norm.gamma = Param::from_tensor(weight.tensor.clone());
    norm.beta = Some(Param::from_tensor(bias.tensor.clone()));
    let (left, right) = (x.tensor.clone(), residual.tensor.clone());
    let y = layer_norm::sum_layer_norm(&norm, left, right, EPSILON);
    let grads = (y.clone() * grad_y.tensor).sum().backward();
    let sum: Vec<f64> = x.values.iter().zip(&residual.values).map(|(a, b)| a + b).collect();
    let truth = layer_norm::host::forward(&sum, &weight.values, &bias.values, EPSILON);
    let grad = layer_norm::host::backward(&sum, &weight.values, &grad_y.values, EPSILON);
    vec![
        ("y", values(&y), truth),
        ("grad_x", x.gradient(&grads), grad.x.clone()),
        ("grad_residual", residual.gradient(&grads), grad.x),
        ("grad_weight", weight.gradient(&grads), grad.weight),
        ("grad_bias", bias.gradient(&grads), grad.bias),
    ]
}

/// In two chunks, a fifth of the targets ignored.
fn loss(n: usize, d_model: usize, n_rows: usize, device: &Device) -> Vec<Compared> {
    let mut draw = Draw::new(9);
    let hidden = draw.input([n, d_model], -1.0, 1.0, device);
    let weight = draw.input([n_rows, d_model], -1.0, 1.0, device);
    let target = |i: usize| if i % 5 == 3 { -1 } else { (i * 7 % n_rows) as i32 };
    let targets: Vec<i32> = (0..n).map(target).collect();
    let (left, right) = (hidden.tensor.clone(), weight.tensor.clone());
    let loss = cross_entropy::linear_cross_entropy(left, right, &targets, n.div_ceil(2) * n_rows);
    let grads = loss.backward();
    let truth =
        cross_entropy::host::cross_entropy(&hidden.values, &weight.values, &targets, d_model);
    vec![
        ("loss", values(&loss), vec![truth.loss]),
        ("grad_hidden", hidden.gradient(&grads), truth.hidden),
        ("grad_weight", weight.gradient(&grads), truth.weight),
    ]
}

/// Against the same layer whose intermediate results are kept.
fn again(sizes: [usize; 3], device: &Device) -> Vec<Compared> {
    let layer = layer(sizes[2], device);
    let forward = |layer: &burn::nn::Linear, x| pointwise::gelu(super::linear::linear(layer, x));
    let mut draw = Draw::new(6);
    let x = draw.input(sizes, -1.0, 1.0, device);
    let grad_y = draw.fixed(sizes, device);
    let run = |y: Tensor<3>| {
        let grads = (y.clone() * grad_y.tensor.clone()).sum().backward();
        let weight = layer.weight.val().grad(&grads).map_or_else(Vec::new, |grad| values(&grad));
        [values(&y), x.gradient(&grads), weight]
    };
    let [y, grad_x, grad_weight] = run(recompute(&layer, x.tensor.clone(), forward));
    let [kept_y, kept_grad_x, kept_grad_weight] = run(forward(&layer, x.tensor.clone()));
    vec![
        ("y", y, kept_y),
        ("grad_x", grad_x, kept_grad_x),
        ("grad_weight", grad_weight, kept_grad_weight),
    ]
}

fn layer(width: usize, device: &Device) -> burn::nn::Linear {
    let weight = Draw::new(7).fixed([width, width], device).tensor;
    burn::nn::Linear { weight: burn::module::Param::from_tensor(weight), bias: None }
}

/// Values on the host, so that every device sees the same.
struct Draw(ChaCha8Rng);

/// A tensor with its values in f64.
struct Input<const D: usize> {
    values: Vec<f64>,
    tensor: Tensor<D>,
}

impl Draw {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A leaf whose gradient is wanted, uniform in `[low, high)`.
    fn input<const D: usize>(
        &mut self,
        shape: [usize; D],
        low: f32,
        high: f32,
        device: &Device,
    ) -> Input<D> {
        // 24 bits, which f32 holds exactly.
        let unit = |bits: u64| (bits >> 40) as f32 / 16_777_216.0;
        let len = shape.iter().product();
        let drawn: Vec<f32> =
            (0..len).map(|_| low + (high - low) * unit(self.0.next_u64())).collect();
        let values = drawn.iter().copied().map(f64::from).collect();
        let tensor = Tensor::from_data(TensorData::new(drawn, shape), device).require_grad();
        Input { values, tensor }
    }

    /// A constant in `[-1, 1)`.
    fn fixed<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Input<D> {
        let Input { values, tensor } = self.input(shape, -1.0, 1.0, device);
        Input { values, tensor: tensor.detach() }
    }
}

impl<const D: usize> Input<D> {
    /// Empty where there is none, which fails the comparison.
    fn gradient(&self, grads: &Gradients) -> Vec<f64> {
        self.tensor.grad(grads).map_or_else(Vec::new, |grad| values(&grad))
    }
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
            measure("op", String::new(), BOUND, || vec![("y", got.clone(), vec![1.0, 2.0])])
        };
        assert!(test(vec![1.0, 2.0]).passed());
        for wrong in
            [vec![1.0, 2.001], vec![1.0], vec![], vec![f64::NAN, 2.0], vec![f64::INFINITY, 2.0]]
        {
            assert!(!test(wrong.clone()).passed(), "{wrong:?}");
        }
        let both = || vec![("good", vec![1.0], vec![1.0]), ("bad", vec![f64::NAN], vec![1.0])];
        let outcome = measure("op", String::new(), BOUND, both).outcome.unwrap();
        assert_eq!(outcome.worst, "bad");
        let panics = measure("op", String::new(), BOUND, || panic!("no kernel"));
        assert_eq!(panics.outcome, Err("no kernel".into()));
        assert!(!panics.passed());
    }
}
