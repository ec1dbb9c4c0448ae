//! Linear maps against Burn's own matrix product and its autodiff.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{Device, Tensor},
};
use ssm_core::ops::linear::{linear, linear_split};

use crate::support::{Draw, assert_error, devices, half_devices, tensor, values};

/// Rows (as batch and steps), `d_in` and the widths of the parts.
const SHAPES: [([usize; 2], usize, [usize; 3]); 7] = [
    ([1, 1], 1, [1, 1, 1]),
    ([1, 7], 5, [3, 1, 9]),
    ([2, 33], 16, [2, 16, 16]),
    ([3, 65], 97, [70, 1, 33]),
    ([2, 256], 130, [128, 64, 16]),
    ([32, 25], 256, [16, 16, 32]),
    ([1, 4], 1300, [64, 70, 200]),
];

struct Case {
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    /// For each part a random cotangent.
    cotangents: Vec<Tensor<3>>,
}

fn case(index: usize, bias: bool, device: &Device) -> Case {
    let ([batch, steps], d_in, widths) = SHAPES[index];
    let d_out: usize = widths.iter().sum();
    let mut draw = Draw::new(index as u64);
    let mut next = |len: usize| draw.uniform(len, -1.0, 1.0);
    let x = tensor(&next(batch * steps * d_in), [batch, steps, d_in], device);
    let weight = tensor(&next(d_in * d_out), [d_in, d_out], device);
    let bias = bias.then(|| tensor(&next(d_out), [d_out], device).require_grad());
    let cotangents = widths
        .map(|width| tensor(&next(batch * steps * width), [batch, steps, width], device))
        .to_vec();
    Case { x: x.require_grad(), weight: weight.require_grad(), bias, cotangents }
}

/// Outputs, and gradients of x, weight and bias, of the parts in `used`.
fn run(
    case: &Case,
    used: [bool; 3],
    op: impl Fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> [Tensor<3>; 3],
) -> Vec<Vec<f64>> {
    let outputs = op(case.x.clone(), case.weight.clone(), case.bias.clone());
    let mut all: Vec<Vec<f64>> = outputs.iter().map(values).collect();
    let loss = outputs
        .into_iter()
        .zip(&case.cotangents)
        .zip(used)
        .filter(|(_, used)| *used)
        .map(|((y, cotangent), _)| (y * cotangent.clone()).sum())
        .reduce(|a, b| a + b)
        .expect("at least one part is used");
    let grads = loss.backward();
    all.push(values(&case.x.grad(&grads).expect("gradient of x")));
    all.push(values(&case.weight.grad(&grads).expect("gradient of weight")));
    if let Some(bias) = &case.bias {
        all.push(values(&bias.grad(&grads).expect("gradient of bias")));
    }
    all
}

#[test]
fn linear_parts_agree_with_burns_matmul() {
    for (name, device) in devices() {
        let device = device.autodiff();
        for (index, (_, _, widths)) in SHAPES.into_iter().enumerate() {
            for (bias, used) in [(true, [true; 3]), (false, [true, false, true])] {
                let case = case(index, bias, &device);
                let truth = run(&case, used, |x, weight, bias| {
                    let y = x.matmul(weight.unsqueeze());
                    let y = match bias {
                        Some(bias) => y + bias.unsqueeze(),
                        None => y,
                    };
                    let [a, b, _] = widths;
                    let part = |from, len| y.clone().narrow(2, from, len);
                    [part(0, a), part(a, b), part(a + b, widths[2])]
                });
                let got = run(&case, used, |x, weight, bias| {
                    let layer = Linear {
                        weight: Param::from_tensor(weight),
                        bias: bias.map(Param::from_tensor),
                    };
                    linear_split(&layer, x, widths)
                });
                for (what, (got, truth)) in got.iter().zip(&truth).enumerate() {
                    let what = format!("{name}, shape {index}, bias {bias}, tensor {what}");
                    assert_error(&what, got, truth, 2e-6);
                }
            }
        }
    }
}

#[test]
fn a_linear_map_reads_views_and_keeps_the_type() {
    for (name, device) in devices() {
        let values_of = |n: usize| Draw::new(9).uniform(n, -1.0, 1.0);
        let x = tensor(&values_of(24), [2, 4, 3], &device).swap_dims(1, 2); // [2, 3, 4]
        let layer = Linear {
            weight: Param::from_tensor(tensor(&values_of(20), [5, 4], &device).transpose()),
            bias: None,
        };
        let truth = x.clone().matmul(layer.weight.val().unsqueeze());
        assert_error(name, &values(&linear(&layer, x.clone())), &values(&truth), 1e-6);

        if half_devices().iter().all(|(half, _)| *half != name) {
            continue; // no bf16 there
        }
        let half = Linear {
            weight: Param::from_tensor(layer.weight.val().cast(burn::tensor::DType::BF16)),
            bias: None,
        };
        let y = linear(&half, x.cast(burn::tensor::DType::BF16));
        assert_eq!(y.dtype(), burn::tensor::DType::BF16, "{name}");
        assert_error(name, &values(&y), &values(&truth), 2e-2);
    }
}

#[test]
#[should_panic(expected = "linear: `widths` add up to 4, expected d_out = 5")]
fn wrong_widths_are_named() {
    let (_, device) = devices().remove(0);
    let layer = Linear { weight: Param::from_tensor(Tensor::ones([3, 5], &device)), bias: None };
    let _ = linear_split(&layer, Tensor::ones([1, 2, 3], &device), [2, 2]);
}

#[test]
fn linear_is_bit_equal_for_any_number_of_threads() {
    for (name, device) in devices() {
        let device = device.autodiff();
        for (index, (_, _, widths)) in SHAPES.into_iter().enumerate() {
            let case = case(index, true, &device);
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.expect("pool").install(|| {
                    run(&case, [true; 3], |x, weight, bias| {
                        let bias = bias.map(Param::from_tensor);
                        let layer = Linear { weight: Param::from_tensor(weight), bias };
                        linear_split(&layer, x, widths)
                    })
                })
            };
            let one = run(1);
            for threads in [2, 3, 4, 7, 16] {
                assert_eq!(one, run(threads), "{name}, shape {index}, {threads} threads");
            }
        }
    }
}

#[test]
#[should_panic(expected = "linear: `widths[1]` is 0, expected at least 1")]
fn a_part_without_width_is_refused() {
    let (_, device) = devices().swap_remove(0);
    let weight = Tensor::<2>::ones([3, 4], &device);
    let layer = Linear { weight: Param::from_tensor(weight), bias: None };
    linear_split(&layer, Tensor::<3>::ones([1, 2, 3], &device), [4, 0]);
}
