//! The triangle for RMSNorm: host f64 against finite differences, Burn's module and our kernels against
//! host, with gradients.

use burn::{
    nn::RmsNormConfig,
    tensor::{Device, FloatDType, Tensor},
};
use ssm_core::ops::rms_norm::{host, rms_norm};

use crate::support::{
    Draw, assert_error, devices, dot, finite_difference, half_devices, relative_rms, tensor, values,
};

const EPSILON: f64 = 1e-5;

/// Rows and width: one element, less and more than a vector and a cube of units, pieces and spans
/// that do not divide.
const SHAPES: [[usize; 2]; 8] =
    [[1, 1], [3, 7], [5, 16], [2, 97], [70, 256], [1030, 36], [3, 1025], [9, 4100]];

struct Case {
    shape: [usize; 2],
    x: Vec<f64>,
    weight: Vec<f64>,
    grad_y: Vec<f64>,
}

impl Case {
    fn new([rows, width]: [usize; 2]) -> Self {
        let mut draw = Draw::new(11);
        Self {
            shape: [rows, width],
            x: draw.uniform(rows * width, -2.0, 2.0),
            weight: draw.uniform(width, 0.5, 1.5),
            grad_y: draw.uniform(rows * width, -1.0, 1.0),
        }
    }

    /// `y` and the gradients of `x` and `weight` in f64.
    fn truth(&self) -> [Vec<f64>; 3] {
        let y = host::forward(&self.x, &self.weight, EPSILON);
        let (x, weight) = host::backward(&self.x, &self.weight, &self.grad_y, EPSILON);
        [y, x, weight]
    }

    /// The same through Burn's autodiff, `x` in `dtype`.
    fn run(
        &self,
        dtype: FloatDType,
        device: &Device,
        op: impl Fn(Tensor<2>, Tensor<1>) -> Tensor<2>,
    ) -> [Vec<f64>; 3] {
        let device = device.clone().autodiff();
        let x = tensor(&self.x, self.shape, &device).cast(dtype).require_grad();
        let weight = tensor(&self.weight, [self.shape[1]], &device).require_grad();
        let y = op(x.clone(), weight.clone());
        assert_eq!(FloatDType::from(y.dtype()), dtype);
        let y = y.cast(FloatDType::F32);
        let grads = (y.clone() * tensor(&self.grad_y, self.shape, &device)).sum().backward();
        let grad_x = x.grad(&grads).expect("a gradient of x");
        let grad_weight = weight.grad(&grads).expect("a gradient of the weight");
        [values(&y), values(&grad_x), values(&grad_weight)]
    }
}

fn ours(x: Tensor<2>, weight: Tensor<1>) -> Tensor<2> {
    rms_norm(x, weight, EPSILON)
}

fn burns(x: Tensor<2>, weight: Tensor<1>) -> Tensor<2> {
    let mut module = RmsNormConfig::new(weight.dims()[0]).with_epsilon(EPSILON).init(&x.device());
    module.gamma = module.gamma.map(|_| weight.clone());
    module.forward(x)
}

#[test]
fn host_gradients_match_finite_differences() {
    let Case { x, weight, grad_y, .. } = &Case::new([3, 7]);
    let (grad_x, grad_weight) = host::backward(x, weight, grad_y, EPSILON);
    let numeric = finite_difference(x, 1e-6, |x| dot(&host::forward(x, weight, EPSILON), grad_y));
    assert_error("x", &grad_x, &numeric, 1e-7);
    let numeric = finite_difference(weight, 1e-6, |w| dot(&host::forward(x, w, EPSILON), grad_y));
    assert_error("weight", &grad_weight, &numeric, 1e-7);
}

#[test]
fn reference_and_kernels_agree_with_the_host() {
    for (name, device) in devices() {
        for shape in SHAPES {
            let case = Case::new(shape);
            let truth = case.truth();
            let kernel = case.run(FloatDType::F32, &device, ours);
            for (i, what) in ["y", "gradient of x", "gradient of weight"].iter().enumerate() {
                let what = format!("{what}, {shape:?} on {name}");
                // A row of one value is its own norm: what is left of its gradient is rounding.
                let floor = if shape[1] == 1 { 1e-1 } else { 3e-7 };
                assert_error(&format!("kernel, {what}"), &kernel[i], &truth[i], 3e-7 + floor);
            }
            if shape[1] == 1 {
                continue;
            }
            let reference = case.run(FloatDType::F32, &device, burns);
            for (i, what) in ["y", "gradient of x", "gradient of weight"].iter().enumerate() {
                let bound = 2.0 * relative_rms(&reference[i], &truth[i]) + 2e-7;
                let what = format!("{what} beside Burn's, {shape:?} on {name}");
                assert_error(&what, &kernel[i], &truth[i], bound);
            }
            assert_eq!(kernel, case.run(FloatDType::F32, &device, ours), "{shape:?} on {name}");
        }
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    let case = Case::new([70, 256]);
    let truth = case.truth();
    for (name, device) in half_devices() {
        let kernel = case.run(FloatDType::BF16, &device, ours);
        for (kernel, truth) in kernel.iter().zip(&truth) {
            assert_error(&format!("bf16 on {name}"), kernel, truth, 6e-3);
        }
    }
}

#[test]
fn rows_of_zeros_stay_finite() {
    for (_, device) in devices() {
        let device = device.autodiff();
        let x = Tensor::<2>::zeros([2, 5], &device).require_grad();
        let y = ours(x.clone(), Tensor::ones([5], &device));
        assert_eq!(values(&y), [0.0; 10]);
        let grads = y.sum().backward();
        let grad = values(&x.grad(&grads).expect("a gradient"));
        assert!(grad.iter().all(|grad| (grad - 1e5_f64.sqrt()).abs() < 1e-2), "{grad:?}");
    }
}

#[test]
fn nothing_in_nothing_out() {
    let (_, device) = devices().swap_remove(0);
    let y = rms_norm(Tensor::<3>::zeros([0, 3, 5], &device), Tensor::ones([5], &device), EPSILON);
    assert_eq!(y.dims(), [0, 3, 5]);
}

#[test]
#[should_panic(expected = "rms_norm: axis 0 of `weight` is 4, expected width = 5")]
fn a_weight_of_another_width_panics() {
    let (_, device) = devices().swap_remove(0);
    rms_norm(Tensor::<2>::zeros([3, 5], &device), Tensor::ones([4], &device), EPSILON);
}
