//! Linear maps against Burn's own matrix product and its autodiff.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{DType, Device, Tensor},
};
use ssm_core::ops::linear::{linear, linear_split, linear_wide};

use crate::support::{
    Draw, assert_error, devices, exact, half_devices, relative_rms, tensor, values,
};

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
                let exact = case(index, bias, &exact(&device));
                let case = case(index, bias, &device);
                let truth = run(&exact, used, |x, weight, bias| {
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
        let exact = exact(&device);
        let weight = layer.weight.val().to_device(&exact);
        let truth = x.clone().to_device(&exact).matmul(weight.unsqueeze());
        assert_error(name, &values(&linear(&layer, x.clone())), &values(&truth), 1e-6);

        if half_devices().iter().all(|(half, _)| *half != name) {
            continue; // no bf16 there
        }
        let half =
            Linear { weight: Param::from_tensor(layer.weight.val().cast(DType::BF16)), bias: None };
        let y = linear(&half, x.cast(DType::BF16));
        assert_eq!(y.dtype(), DType::BF16, "{name}");
        assert_error(name, &values(&y), &values(&truth), 2e-2);
    }
}

/// Rows, `d_in` and the widths of the parts, for half precision: matrix units read rows of whole units
/// of 16 bytes, in tiles whose edges lie inside of these sizes.
const HALF_SHAPES: [(usize, usize, &[usize]); 12] = [
    (1, 8, &[8]),
    (7, 5, &[3]),
    (80, 48, &[152]),
    (100, 1000, &[80]),
    (195, 96, &[48, 16, 16]),
    (129, 80, &[64, 136]),
    (300, 72, &[264, 56]),
    (257, 136, &[128, 192]),
    (2048, 24, &[40]),
    (1100, 128, &[256, 128]),
    (640, 64, &[384]),
    (333, 200, &[96, 32]),
];

/// `[m, k] * [k, n]` in f64, each operand with the strides of its rows and columns.
fn host_product(
    [m, n, k]: [usize; 3],
    (a, [a_row, a_col]): (&[f64], [usize; 2]),
    (b, [b_row, b_col]): (&[f64], [usize; 2]),
) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for (i, out) in out.chunks_exact_mut(n).enumerate() {
        for l in 0..k {
            let a = a[i * a_row + l * a_col];
            for (j, out) in out.iter_mut().enumerate() {
                *out += a * b[l * b_row + j * b_col];
            }
        }
    }
    out
}

/// Columns `from..from + len` of rows of `width`.
fn host_columns(values: &[f64], width: usize, from: usize, len: usize) -> Vec<f64> {
    values.chunks_exact(width).flat_map(|row| &row[from..from + len]).copied().collect()
}

/// Sizes that no square of a kernel divides, of few and of many squares.
#[test]
fn products_of_any_size_agree_with_f64() {
    for (name, device) in devices() {
        let device = device.autodiff();
        for (rows, d_in, d_out) in
            [(1, 1, 1), (33, 65, 31), (5, 200, 3), (352, 20, 97), (700, 40, 800), (130, 700, 720)]
        {
            let mut draw = Draw::new(11);
            let [xs, weights, grads] =
                [rows * d_in, d_in * d_out, rows * d_out].map(|len| draw.uniform(len, -1.0, 1.0));
            let x = tensor(&xs, [1, rows, d_in], &device).require_grad();
            let weight = tensor(&weights, [d_in, d_out], &device).require_grad();
            let layer = Linear { weight: Param::from_tensor(weight.clone()), bias: None };
            let y = linear(&layer, x.clone());
            let loss = (y.clone() * tensor(&grads, [1, rows, d_out], &device)).sum();
            let given = loss.backward();
            let grad_of = |grad: Option<Vec<f64>>| grad.expect("a gradient");
            let sizes = [rows, d_out, d_in];
            let truth = host_product(sizes, (&xs, [d_in, 1]), (&weights, [d_out, 1]));
            let sizes = [rows, d_in, d_out];
            let of_x = host_product(sizes, (&grads, [d_out, 1]), (&weights, [1, d_out]));
            let sizes = [d_in, d_out, rows];
            let of_weight = host_product(sizes, (&xs, [1, d_in]), (&grads, [d_out, 1]));
            let what = format!("{rows} x {d_in} x {d_out} on {name}");
            let got_x = grad_of(x.grad(&given).map(|grad| values(&grad)));
            let got_weight = grad_of(layer.weight.val().grad(&given).map(|grad| values(&grad)));
            assert_error(&format!("y, {what}"), &values(&y), &truth, 1e-6);
            assert_error(&format!("gradient of x, {what}"), &got_x, &of_x, 1e-6);
            assert_error(&format!("gradient of the weight, {what}"), &got_weight, &of_weight, 1e-6);
        }
    }
}

/// A single step of a recurrence has as many rows as sequences, and few terms in some of its sums.
#[test]
fn few_rows_in_half_precision_agree_with_f64_products() {
    for (name, device) in half_devices() {
        let mut wrong = Vec::new();
        for rows in [1, 2, 3, 5, 8, 18] {
            for (d_in, d_out) in [(1, 24), (1, 5), (2, 24), (12, 48), (24, 33), (24, 12), (40, 16)]
            {
                let mut draw = Draw::new(7);
                let mut half = |shape: [usize; 3]| {
                    let len = shape.iter().product();
                    tensor(&draw.uniform(len, -1.0, 1.0), shape, &device).cast(DType::BF16)
                };
                // Rows next to each other, and every third step of a sequence.
                let long = half([rows, 3, d_in]);
                let weight = half([1, d_in, d_out]).squeeze_dim::<2>(0);
                for (what, x) in [
                    ("rows", long.clone().slice([0..rows, 0..1]).squeeze_dim::<2>(1) * 1.0),
                    ("steps", long.narrow(1, 1, 1).squeeze_dim::<2>(1)),
                ] {
                    let sizes = [rows, d_out, d_in];
                    let (xs, weights) = (values(&x), values(&weight));
                    let truth = host_product(sizes, (&xs, [d_in, 1]), (&weights, [d_out, 1]));
                    let layer = Linear { weight: Param::from_tensor(weight.clone()), bias: None };
                    let y = values(&linear(&layer, x.unsqueeze_dim::<3>(1)));
                    let error = relative_rms(&y, &truth);
                    if error.is_nan() || error > 4e-3 {
                        wrong.push(format!("{rows} {what} of {d_in} to {d_out}: {error:.1e}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("; "));
    }
}

#[test]
fn linear_in_half_precision_agrees_with_f64_products() {
    for (name, device) in half_devices() {
        let device = device.autodiff();
        for (index, (rows, d_in, widths)) in HALF_SHAPES.into_iter().enumerate() {
            let d_out: usize = widths.iter().sum();
            let mut draw = Draw::new(100 + index as u64);
            // Values of bf16, so that all that differs is the result.
            let mut half = |m: usize, n: usize| {
                tensor(&draw.uniform(m * n, -1.0, 1.0), [m, n], &device).cast(DType::BF16)
            };
            let x = half(rows, d_in);
            let (weight, cotangent) = (half(d_in, d_out), half(rows, d_out));
            let (xs, weights, grads) = (values(&x), values(&weight), values(&cotangent));
            let sizes = [rows, d_out, d_in];
            let y = host_product(sizes, (&xs, [d_in, 1]), (&weights, [d_out, 1]));
            let sizes = [rows, d_in, d_out];
            let grad_x = host_product(sizes, (&grads, [d_out, 1]), (&weights, [1, d_out]));
            let sizes = [d_in, d_out, rows];
            let grad_weight = host_product(sizes, (&xs, [1, d_in]), (&grads, [d_out, 1]));
            for dtype in [DType::F32, DType::BF16] {
                let what = format!("{name}, shape {index}, weight {dtype:?}");
                let x = x.clone().unsqueeze::<3>().require_grad();
                let weight = weight.clone().cast(dtype).require_grad();
                let layer = Linear { weight: Param::from_tensor(weight.clone()), bias: None };
                let run = || {
                    let parts: Vec<Tensor<3>> = match *widths {
                        [_] => vec![linear(&layer, x.clone())],
                        [a, b] => linear_split(&layer, x.clone(), [a, b]).into(),
                        [a, b, c] => linear_split(&layer, x.clone(), [a, b, c]).into(),
                        _ => panic!("up to three parts"),
                    };
                    let mut results: Vec<Vec<f64>> = parts.iter().map(values).collect();
                    let mut from = 0;
                    let losses = parts.into_iter().zip(widths).map(|(part, len)| {
                        let of = cotangent.clone().narrow(1, from, *len).cast(DType::F32);
                        from += len;
                        (part.cast(DType::F32) * of.unsqueeze::<3>()).sum()
                    });
                    let loss = losses.reduce(|a, b| a + b).expect("a part");
                    let grads = loss.backward();
                    let of_x = x.grad(&grads).expect("gradient of x");
                    let of_weight = layer.weight.val().grad(&grads).expect("gradient of weight");
                    assert_eq!((of_x.dtype(), of_weight.dtype()), (DType::BF16, dtype), "{what}");
                    results.extend([values(&of_x), values(&of_weight)]);
                    results
                };
                let got = run();
                let mut from = 0;
                let mut truth = Vec::new();
                for len in widths {
                    truth.push(host_columns(&y, d_out, from, *len));
                    from += len;
                }
                truth.extend([grad_x.clone(), grad_weight.clone()]);
                for (tensor, (got, truth)) in got.iter().zip(&truth).enumerate() {
                    // A rounding to bf16 is 1.7e-3; a sum of products is rounded up to three times.
                    assert_error(&format!("{what}, tensor {tensor}"), got, truth, 5e-3);
                }
                assert!(got == run(), "{what}: a second run has other bits");
            }
        }
    }
}

#[test]
fn a_wide_product_of_half_precision_is_not_rounded() {
    for (name, device) in half_devices() {
        let device = device.autodiff();
        for (rows, d_in, d_out) in [(7, 5, 3), (70, 48, 152), (300, 16, 64)] {
            let mut draw = Draw::new(7);
            let mut half = |m: usize, n: usize| {
                tensor(&draw.uniform(m * n, -1.0, 1.0), [m, n], &device).cast(DType::BF16)
            };
            let (x, weight) = (half(rows, d_in), half(d_in, d_out).require_grad());
            // The gradient of what is f32 is f32: of bf16 only so that the truth is exact.
            let grad_y = half(rows, d_out).cast(DType::F32);
            let x = x.unsqueeze::<3>().require_grad();
            let y = linear_wide(weight.clone(), x.clone());
            assert_eq!(y.dtype(), DType::F32, "{name}");
            let (xs, weights, cotangents) = (values(&x), values(&weight), values(&grad_y));
            let truth = host_product([rows, d_out, d_in], (&xs, [d_in, 1]), (&weights, [d_out, 1]));
            let what = format!("{rows}x{d_in} by {d_out} on {name}");
            assert_error(&what, &values(&y), &truth, 1e-5);
            let grads = (y * grad_y.unsqueeze::<3>()).sum().backward();
            let of_x = x.grad(&grads).expect("gradient of x");
            let of_weight = weight.grad(&grads).expect("gradient of weight");
            assert_eq!((of_x.dtype(), of_weight.dtype()), (DType::BF16, DType::BF16), "{what}");
            let sizes = [rows, d_in, d_out];
            let grad_x = host_product(sizes, (&cotangents, [d_out, 1]), (&weights, [1, d_out]));
            let sizes = [d_in, d_out, rows];
            let grad_weight = host_product(sizes, (&xs, [1, d_in]), (&cotangents, [d_out, 1]));
            // A rounding to bf16 is 1.7e-3.
            assert_error(&what, &values(&of_x), &grad_x, 5e-3);
            assert_error(&what, &values(&of_weight), &grad_weight, 5e-3);
        }
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
