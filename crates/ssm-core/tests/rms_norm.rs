//! The triangle for RMSNorm: host f64 against finite differences, Burn's module and our kernels against
//! host, with gradients.

use burn::{
    nn::RmsNormConfig,
    tensor::{Device, FloatDType, Tensor},
};
use ssm_core::ops::rms_norm::{add_rms_norm, host, rms_norm, rms_norm_as};

use crate::support::{
    Draw, any_device, assert_error, devices, dot, finite_difference, half_devices, relative_rms,
    tensor, values,
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
fn an_output_in_another_type_is_rounded_once_and_gives_gradients_in_the_type_of_the_input() {
    for (name, device) in half_devices() {
        for shape in [[70, 256], [5, 7]] {
            let case = Case::new(shape);
            let x = tensor(&case.x, shape, &device);
            let weight = tensor(&case.weight, [shape[1]], &device);
            let whole = rms_norm(x.clone(), weight.clone(), EPSILON);
            let half = rms_norm_as(x, weight, EPSILON, FloatDType::BF16);
            assert_eq!(FloatDType::from(half.dtype()), FloatDType::BF16);
            assert_eq!(values(&half), values(&whole.cast(FloatDType::BF16)), "{shape:?} on {name}");

            let device = device.clone().autodiff();
            let x = tensor(&case.x, shape, &device).require_grad();
            let weight = tensor(&case.weight, [shape[1]], &device).require_grad();
            let y = rms_norm_as(x.clone(), weight.clone(), EPSILON, FloatDType::BF16);
            let grad_y = tensor(&case.grad_y, shape, &device).cast(FloatDType::BF16);
            // The gradient that arrives is all that was rounded.
            let case = Case { grad_y: values(&grad_y), ..case };
            let grads = (y.cast(FloatDType::F32) * grad_y.cast(FloatDType::F32)).sum().backward();
            let [_, truth_x, truth_weight] = case.truth();
            for (what, grad, truth) in [
                ("x", x.grad(&grads).map(|grad| (grad.dtype(), values(&grad))), truth_x),
                ("weight", weight.grad(&grads).map(|g| (g.dtype(), values(&g))), truth_weight),
            ] {
                let (dtype, grad) = grad.expect("a gradient");
                assert_eq!(FloatDType::from(dtype), FloatDType::F32, "{what} on {name}");
                assert_error(
                    &format!("gradient of {what}, {shape:?} on {name}"),
                    &grad,
                    &truth,
                    1e-6,
                );
            }
        }
    }
}

/// Sum, norm, and the gradients of `x`, the branch and the weight, with the types of the gradients.
fn with_branch(
    case: &Case,
    branch: &[f64],
    dtype: FloatDType,
    device: &Device,
    through: [bool; 2],
    op: impl Fn(Tensor<2>, Tensor<2>, Tensor<1>) -> (Tensor<2>, Tensor<2>),
) -> ([Vec<f64>; 5], [FloatDType; 5]) {
    let device = device.clone().autodiff();
    let x = tensor(&case.x, case.shape, &device).require_grad();
    let branch = tensor(branch, case.shape, &device).cast(dtype).require_grad();
    let weight = tensor(&case.weight, [case.shape[1]], &device).require_grad();
    let (sum, y) = op(x.clone(), branch.clone(), weight.clone());
    let f32 = FloatDType::F32;
    let mut loss = Tensor::zeros([1], &device);
    if through[0] {
        loss = loss
            + (sum.clone().cast(f32) * tensor(&case.weight, [1, case.shape[1]], &device)).sum();
    }
    if through[1] {
        let grad_y = tensor(&case.grad_y, case.shape, &device);
        loss = loss + (y.clone().cast(f32) * grad_y).sum();
    }
    let grads = loss.backward();
    let [grad_x, grad_branch] = [&x, &branch].map(|of| of.grad(&grads).expect("a gradient"));
    let grad_weight = weight.grad(&grads);
    let grad_weight = grad_weight.unwrap_or_else(|| weight.clone().inner().zeros_like());
    let types = [sum.dtype(), y.dtype(), grad_x.dtype(), grad_branch.dtype(), grad_weight.dtype()];
    let all = [sum, y].map(|tensor| values(&tensor));
    let [sum, y] = all;
    let grads = [values(&grad_x), values(&grad_branch), values(&grad_weight)];
    let [grad_x, grad_branch, grad_weight] = grads;
    ([sum, y, grad_x, grad_branch, grad_weight], types.map(FloatDType::from))
}

#[test]
fn a_sum_and_its_norm_are_what_they_are_one_after_the_other() {
    for (name, device) in devices() {
        for shape in SHAPES {
            let case = Case::new(shape);
            let branch = Draw::new(12).uniform(case.x.len(), -1.0, 1.0);
            for through in [[true, true], [false, true], [true, false]] {
                let run =
                    |op: &dyn Fn(Tensor<2>, Tensor<2>, Tensor<1>) -> (Tensor<2>, Tensor<2>)| {
                        with_branch(&case, &branch, FloatDType::F32, &device, through, op).0
                    };
                let apart = run(&|x, branch, weight| {
                    let sum = x + branch;
                    (sum.clone(), rms_norm(sum, weight, EPSILON))
                });
                let together = run(&|x, branch, weight| add_rms_norm(x, branch, weight, EPSILON));
                let what = format!("{shape:?} through {through:?} on {name}");
                if ["flex", "ndarray"].contains(&name) {
                    assert_eq!(together, apart, "{what}");
                }
                for (together, apart) in together.iter().zip(&apart) {
                    // Compilers of kernels may fuse the last addition with a product.
                    assert_error(&what, together, apart, 1e-6);
                }
            }
        }
    }
}

#[test]
fn a_stream_in_f32_takes_in_a_branch_in_bf16() {
    for (name, device) in half_devices() {
        for shape in [[70, 256], [5, 7]] {
            let case = Case::new(shape);
            let branch = Draw::new(12).uniform(case.x.len(), -1.0, 1.0);
            for through in [[true, true], [false, true], [true, false]] {
                let run = |dtype: FloatDType, op: &dyn Fn(Tensor<2>, Tensor<2>, Tensor<1>) -> _| {
                    with_branch(&case, &branch, dtype, &device, through, op)
                };
                let (f32, bf16) = (FloatDType::F32, FloatDType::BF16);
                let (got, types) =
                    run(bf16, &|x, branch, weight| add_rms_norm(x, branch, weight, EPSILON));
                assert_eq!(types, [f32, bf16, f32, bf16, f32], "{name}");
                let (truth, _) = run(bf16, &|x, branch: Tensor<2>, weight| {
                    let sum = x + branch.cast(f32);
                    (sum.clone(), rms_norm_as(sum, weight, EPSILON, bf16))
                });
                for (got, truth) in got.iter().zip(&truth) {
                    assert_error(&format!("{shape:?}, {through:?} on {name}"), got, truth, 1e-6);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "add_rms_norm: axis 0 of `branch` is 2, expected that of `x` = 3")]
fn a_branch_of_another_shape_panics() {
    let device = any_device();
    let (x, branch) = (Tensor::<2>::zeros([3, 5], &device), Tensor::zeros([2, 5], &device));
    add_rms_norm(x, branch, Tensor::ones([5], &device), EPSILON);
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
