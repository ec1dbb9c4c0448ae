//! Small operations against what Burn makes of them, with gradients.

use burn::tensor::{Device, Tensor, activation};
use ssm_core::ops::pointwise::{gelu, reverse};

use crate::support::{Draw, assert_error, devices, tensor, values};

fn gradient(
    device: &Device,
    op: impl Fn(Tensor<3>) -> Tensor<3>,
    scale: f64,
) -> (Vec<f64>, Vec<f64>) {
    let device = device.clone().autodiff();
    let mut draw = Draw::new(5);
    let shape = [3, 13, 7];
    let x = tensor(&draw.uniform(273, -scale, scale), shape, &device).require_grad();
    let y = op(x.clone());
    let cotangent = tensor(&draw.uniform(273, -1.0, 1.0), shape, &device);
    let grads = (y.clone() * cotangent).sum().backward();
    (values(&y), values(&x.grad(&grads).expect("a gradient of the input")))
}

#[test]
fn gelu_and_its_gradient_equal_burns() {
    // The truth is Burn's on its first device: on ndarray Burn differentiates the tanh form (3e-4 off).
    let truth_device = devices().swap_remove(0).1;
    for (name, device) in devices() {
        for scale in [1.0, 8.0] {
            let (truth, truth_grad) = gradient(&truth_device, activation::gelu, scale);
            let (y, grad) = gradient(&device, gelu, scale);
            assert_error(&format!("gelu on {name}"), &y, &truth, 5e-7);
            assert_error(&format!("gelu gradient on {name}"), &grad, &truth_grad, 5e-7);
        }
    }
}

#[test]
fn gelu_gradient_matches_finite_differences() {
    let device = devices().swap_remove(0).1;
    let tracked = device.clone().autodiff();
    for x in [-6.0, -1.5, -0.1, 0.0, 0.3, 2.0, 9.0] {
        let at = |x: f64| values(&gelu(tensor(&[x], [1], &device)))[0];
        let numeric = (at(x + 1e-3) - at(x - 1e-3)) / 2e-3;
        let leaf = tensor(&[x], [1], &tracked).require_grad();
        let grads = gelu(leaf.clone()).sum().backward();
        let grad = values(&leaf.grad(&grads).expect("a gradient"))[0];
        assert!((grad - numeric).abs() < 3e-3, "{grad} and {numeric} at {x}");
    }
}

#[test]
fn reverse_and_its_gradient_equal_burns_flip() {
    for (name, device) in devices() {
        let truth = gradient(&device, |x| x.flip([1]), 1.0);
        assert_eq!(gradient(&device, reverse, 1.0), truth, "{name}");
    }
}
