//! The triangle for layer normalisation: host f64 against finite differences, Burn's module and our
//! kernels against host, with gradients.

use burn::{
    module::Param,
    nn::{LayerNorm, LayerNormConfig},
    tensor::{Device, FloatDType, Tensor},
};
use ssm_core::ops::layer_norm::{host, layer_norm, sum_layer_norm};

use crate::support::{
    Draw, any_device, assert_error, devices, dot, finite_difference, half_devices, relative_rms,
    tensor, values,
};

const EPSILON: f64 = 1e-5;

/// Rows and width: two elements, less and more than a vector and a cube of units, pieces and spans
/// that do not divide.
const SHAPES: [[usize; 2]; 8] =
    [[1, 2], [3, 7], [5, 16], [2, 97], [70, 256], [1030, 36], [3, 1025], [9, 4100]];

const NAMES: [&str; 5] =
    ["y", "gradient of x", "gradient of weight", "gradient of bias", "gradient of residual"];

struct Case {
    shape: [usize; 2],
    x: Vec<f64>,
    residual: Option<Vec<f64>>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    grad_y: Vec<f64>,
}

impl Case {
    fn new([rows, width]: [usize; 2], residual: bool) -> Self {
        let mut draw = Draw::new(13);
        Self {
            shape: [rows, width],
            x: draw.uniform(rows * width, -1.0, 3.0),
            residual: residual.then(|| draw.uniform(rows * width, -2.0, 1.0)),
            weight: draw.uniform(width, 0.5, 1.5),
            bias: draw.uniform(width, -1.0, 1.0),
            grad_y: draw.uniform(rows * width, -1.0, 1.0),
        }
    }

    /// What is normalised.
    fn sum(&self) -> Vec<f64> {
        let zeros = vec![0.0; self.x.len()];
        let residual = self.residual.as_ref().unwrap_or(&zeros);
        self.x.iter().zip(residual).map(|(x, residual)| x + residual).collect()
    }

    /// `y` and all gradients in f64.
    fn truth(&self) -> Vec<Vec<f64>> {
        let sum = self.sum();
        let y = host::forward(&sum, &self.weight, &self.bias, EPSILON);
        let grads = host::backward(&sum, &self.weight, &self.grad_y, EPSILON);
        let mut all = vec![y, grads.x.clone(), grads.weight, grads.bias];
        all.extend(self.residual.as_ref().map(|_| grads.x));
        all
    }

    /// The same through Burn's autodiff, `x` and the residual in the given types.
    fn run(
        &self,
        [dtype, residual_dtype]: [FloatDType; 2],
        device: &Device,
        op: impl Fn(&LayerNorm, Tensor<2>, Option<Tensor<2>>) -> Tensor<2>,
    ) -> Vec<Vec<f64>> {
        let device = device.clone().autodiff();
        let x = tensor(&self.x, self.shape, &device).cast(dtype).require_grad();
        let residual = self.residual.as_ref().map(|residual| {
            tensor(residual, self.shape, &device).cast(residual_dtype).require_grad()
        });
        let width = self.shape[1];
        let mut norm = LayerNormConfig::new(width).with_epsilon(EPSILON).init(&device);
        norm.gamma = Param::from_tensor(tensor(&self.weight, [width], &device));
        norm.beta = Some(Param::from_tensor(tensor(&self.bias, [width], &device)));
        let y = op(&norm, x.clone(), residual.clone());
        assert_eq!(FloatDType::from(y.dtype()), dtype);
        let y = y.cast(FloatDType::F32);
        let grads = (y.clone() * tensor(&self.grad_y, self.shape, &device)).sum().backward();
        let beta = norm.beta.as_ref().expect("a bias").val();
        let mut all = vec![
            values(&y),
            values(&x.grad(&grads).expect("a gradient of x")),
            values(&norm.gamma.val().grad(&grads).expect("a gradient of the weight")),
            values(&beta.grad(&grads).expect("a gradient of the bias")),
        ];
        all.extend(residual.map(|residual| {
            let grad = residual.grad(&grads).expect("a gradient of the residual");
            assert_eq!(FloatDType::from(grad.dtype()), residual_dtype);
            values(&grad)
        }));
        all
    }
}

const F32: [FloatDType; 2] = [FloatDType::F32; 2];

fn ours(norm: &LayerNorm, x: Tensor<2>, residual: Option<Tensor<2>>) -> Tensor<2> {
    match residual {
        Some(residual) => sum_layer_norm(norm, x, residual, EPSILON),
        None => layer_norm(norm, x, EPSILON),
    }
}

fn burns(norm: &LayerNorm, x: Tensor<2>, residual: Option<Tensor<2>>) -> Tensor<2> {
    norm.forward(match residual {
        Some(residual) => x + residual,
        None => x,
    })
}

#[test]
fn host_gradients_match_finite_differences() {
    let Case { x, weight, bias, grad_y, .. } = &Case::new([3, 7], false);
    let grads = host::backward(x, weight, grad_y, EPSILON);
    let loss = |x: &[f64], weight: &[f64], bias: &[f64]| {
        dot(&host::forward(x, weight, bias, EPSILON), grad_y)
    };
    let numeric = finite_difference(x, 1e-6, |x| loss(x, weight, bias));
    assert_error("x", &grads.x, &numeric, 1e-7);
    let numeric = finite_difference(weight, 1e-6, |weight| loss(x, weight, bias));
    assert_error("weight", &grads.weight, &numeric, 1e-7);
    let numeric = finite_difference(bias, 1e-6, |bias| loss(x, weight, bias));
    assert_error("bias", &grads.bias, &numeric, 1e-7);
}

#[test]
fn reference_and_kernels_agree_with_the_host() {
    for (name, device) in devices() {
        for (shape, residual) in SHAPES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
            let case = Case::new(shape, residual);
            let truth = case.truth();
            let kernel = case.run(F32, &device, ours);
            let reference = case.run(F32, &device, burns);
            for (i, truth) in truth.iter().enumerate() {
                let what = format!("{}, {shape:?}, residual {residual} on {name}", NAMES[i]);
                // Of two values only their order is left: the gradient of `x` is what rounding leaves.
                let floor = if shape[1] == 2 && [1, 4].contains(&i) { 5e-1 } else { 3e-7 };
                assert_error(&format!("kernel, {what}"), &kernel[i], truth, 4e-7 + floor);
                let bound = 2.0 * relative_rms(&reference[i], truth) + floor;
                assert_error(&format!("kernel beside Burn's, {what}"), &kernel[i], truth, bound);
            }
            assert_eq!(kernel, case.run(F32, &device, ours), "{shape:?} on {name}");
        }
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    let case = Case::new([70, 256], true);
    let truth = case.truth();
    for (name, device) in half_devices() {
        for dtypes in [[FloatDType::BF16; 2], [FloatDType::F32, FloatDType::BF16]] {
            let kernel = case.run(dtypes, &device, ours);
            for (i, (kernel, truth)) in kernel.iter().zip(&truth).enumerate() {
                assert_error(&format!("{}, {dtypes:?} on {name}", NAMES[i]), kernel, truth, 8e-3);
            }
        }
    }
}

#[test]
fn rows_of_one_value_stay_finite() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let x = Tensor::<2>::full([2, 5], 3.0, &device).require_grad();
        let norm = LayerNormConfig::new(5).init(&device);
        let y = layer_norm(&norm, x.clone(), EPSILON);
        assert_eq!(values(&y), [0.0; 10], "{name}");
        let grads = y.sum().backward();
        let grad = values(&x.grad(&grads).expect("a gradient"));
        assert!(grad.iter().all(|grad| grad.abs() < 1e-3), "{name}: {grad:?}");
    }
}

#[test]
fn views_are_read_in_their_order() {
    for (name, device) in devices() {
        let draw = |seed| Draw::new(seed).uniform(24, -1.0, 1.0);
        let norm = LayerNormConfig::new(4).with_epsilon(EPSILON).init(&device);
        let x = tensor(&draw(1), [2, 4, 3], &device).swap_dims(1, 2); // [2, 3, 4]
        let residual = tensor(&draw(2), [2, 3, 4], &device);
        let y = sum_layer_norm(&norm, x.clone(), residual.clone(), EPSILON);
        assert_error(name, &values(&y), &values(&norm.forward(x + residual)), 1e-6);
    }
}

#[test]
fn nothing_in_nothing_out() {
    let device = any_device();
    let norm = LayerNormConfig::new(5).init(&device);
    let y = layer_norm(&norm, Tensor::<3>::zeros([0, 3, 5], &device), EPSILON);
    assert_eq!(y.dims(), [0, 3, 5]);
}

#[test]
#[should_panic(expected = "layer_norm: axis 0 of `weight` is 4, expected width = 5")]
fn parameters_of_another_width_panic() {
    let device = any_device();
    let norm = LayerNormConfig::new(4).init(&device);
    layer_norm(&norm, Tensor::<2>::zeros([3, 5], &device), EPSILON);
}

#[test]
#[should_panic(expected = "layer_norm: `residual` is [3, 4], expected the shape of `x` = [3, 5]")]
fn a_residual_of_another_shape_panics() {
    let device = any_device();
    let norm = LayerNormConfig::new(5).init(&device);
    let (x, residual) = (Tensor::<2>::zeros([3, 5], &device), Tensor::zeros([3, 4], &device));
    sum_layer_norm(&norm, x, residual, EPSILON);
}
