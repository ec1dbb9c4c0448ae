//! The triangle for the cross-entropy of a linear head: host f64 against finite differences, tensors and
//! our kernels against host, with gradients.

use burn::tensor::{Device, FloatDType, Tensor};
use ssm_core::ops::cross_entropy::{host, linear_cross_entropy, reference};

use crate::support::{
    Draw, any_device, assert_error, devices, exact, finite_difference, half_devices, relative_rms,
    tensor, values,
};

/// Positions, width and rows of the head: one of each, rows that no vector divides and more than a cube
/// has units for, and the padded vocabulary of the published models cut to a sixteenth.
const SHAPES: [[usize; 3]; 6] =
    [[1, 1, 1], [3, 5, 7], [9, 16, 96], [33, 8, 1027], [70, 24, 65], [40, 12, 3144]];

const NAMES: [&str; 3] = ["loss", "gradient of hidden", "gradient of weight"];

struct Case {
    shape: [usize; 3],
    hidden: Vec<f64>,
    weight: Vec<f64>,
    targets: Vec<i32>,
}

impl Case {
    /// Logits of some size, and a fifth of the targets ignored.
    fn new([n, d_model, n_rows]: [usize; 3]) -> Self {
        let mut draw = Draw::new(17);
        let hidden = draw.uniform(n * d_model, -2.0, 2.0);
        let weight = draw.uniform(n_rows * d_model, -1.5, 1.5);
        let target = |i: usize| if i % 5 == 3 { -1 } else { (i * 37 % n_rows) as i32 };
        Self { shape: [n, d_model, n_rows], hidden, weight, targets: (0..n).map(target).collect() }
    }

    /// Loss and gradients of three times the loss, in f64.
    fn truth(&self) -> [Vec<f64>; 3] {
        let [_, d_model, _] = self.shape;
        let out = host::cross_entropy(&self.hidden, &self.weight, &self.targets, d_model);
        let tripled = |values: Vec<f64>| values.into_iter().map(|value| 3.0 * value).collect();
        [vec![out.loss], tripled(out.hidden), tripled(out.weight)]
    }

    /// The same through Burn's autodiff, hidden states in `dtype`.
    fn run(
        &self,
        dtype: FloatDType,
        device: &Device,
        op: impl Fn(Tensor<2>, Tensor<2>, &[i32]) -> Tensor<1>,
    ) -> [Vec<f64>; 3] {
        let device = device.clone().autodiff();
        let [n, d_model, n_rows] = self.shape;
        let hidden = tensor(&self.hidden, [n, d_model], &device).cast(dtype).require_grad();
        let weight = tensor(&self.weight, [n_rows, d_model], &device).require_grad();
        let loss = op(hidden.clone(), weight.clone(), &self.targets);
        assert_eq!(FloatDType::from(loss.dtype()), FloatDType::F32);
        let grads = (loss.clone() * 3.0).backward();
        let grad_hidden = hidden.grad(&grads).expect("a gradient of the hidden states");
        let grad_weight = weight.grad(&grads).expect("a gradient of the weight");
        assert_eq!(FloatDType::from(grad_weight.dtype()), FloatDType::F32);
        [values(&loss), values(&grad_hidden), values(&grad_weight)]
    }
}

/// With so many logits at a time.
fn ours(max_logits: usize) -> impl Fn(Tensor<2>, Tensor<2>, &[i32]) -> Tensor<1> {
    move |hidden, weight, targets| linear_cross_entropy(hidden, weight, targets, max_logits)
}

#[test]
fn host_gradients_match_finite_differences() {
    let Case { hidden, weight, targets, .. } = &Case::new([5, 3, 7]);
    let loss =
        |hidden: &[f64], weight: &[f64]| host::cross_entropy(hidden, weight, targets, 3).loss;
    let out = host::cross_entropy(hidden, weight, targets, 3);
    let numeric = finite_difference(hidden, 1e-6, |hidden| loss(hidden, weight));
    assert_error("hidden", &out.hidden, &numeric, 1e-7);
    let numeric = finite_difference(weight, 1e-6, |weight| loss(hidden, weight));
    assert_error("weight", &out.weight, &numeric, 1e-7);
}

#[test]
fn reference_and_kernels_agree_with_the_host() {
    for (name, device) in devices() {
        for shape in SHAPES {
            let case = Case::new(shape);
            let truth = case.truth();
            let reference = case.run(FloatDType::F32, &device, reference);
            let [n, _, n_rows] = shape;
            // All at once, pieces that do not divide, one by one, and less than one.
            for max_logits in [n * n_rows, (n / 2 + 1) * n_rows, 7 * n_rows + 3, 1] {
                let kernel = case.run(FloatDType::F32, &device, ours(max_logits));
                for (i, truth) in truth.iter().enumerate() {
                    let what = format!("{}, {shape:?} by {max_logits} on {name}", NAMES[i]);
                    if n_rows == 1 {
                        // Of one token there is nothing to say.
                        assert!(kernel[i].iter().all(|value| value.abs() < 1e-6), "{what}");
                        continue;
                    }
                    assert_error(&format!("kernel, {what}"), &kernel[i], truth, 3e-6);
                    // The floor is what the order of sums over all rows of the head makes out.
                    let bound = 3.0 * relative_rms(&reference[i], truth) + 1e-6;
                    assert_error(&format!("beside tensors, {what}"), &kernel[i], truth, bound);
                }
                let again = case.run(FloatDType::F32, &device, ours(max_logits));
                assert_eq!(kernel, again, "{shape:?} by {max_logits} on {name}");
            }
        }
    }
}

/// What the others weigh beside a target of which a model is sure is less than f32 tells from nothing, and
/// yet is the whole loss and, with its sign changed, the gradient at the target.
#[test]
fn a_loss_far_below_the_rounding_of_one_is_exact() {
    for (name, device) in devices() {
        for margin in [12.0, 25.0, 60.0] {
            let n_rows = 40;
            // One row a token: the first is the target, the others differ a little.
            let hidden = vec![1.0, 0.5];
            let weight: Vec<f64> = (0..n_rows)
                .flat_map(|row| if row == 0 { [margin, 0.0] } else { [0.0, 0.01 * row as f64] })
                .collect();
            let case = Case { shape: [1, 2, n_rows], hidden, weight, targets: vec![0] };
            let truth = case.truth();
            assert!(truth[0][0] > 0.0 && truth[0][0] < 1e-3, "{truth:?}");
            let kernel = case.run(FloatDType::F32, &device, ours(1 << 20));
            for (i, truth) in truth.iter().enumerate() {
                let what = format!("{} at a margin of {margin} on {name}", NAMES[i]);
                assert_error(&what, &kernel[i], truth, 1e-5);
            }
        }
    }
}

#[test]
fn half_precision_is_summed_in_f32() {
    let case = Case::new([70, 24, 640]);
    let truth = case.truth();
    for (name, device) in half_devices() {
        let reference = case.run(FloatDType::BF16, &device, reference);
        for max_logits in [1 << 20, 9 * 640] {
            let kernel = case.run(FloatDType::BF16, &device, ours(max_logits));
            for (i, truth) in truth.iter().enumerate() {
                let what = format!("{} in bf16 by {max_logits} on {name}", NAMES[i]);
                assert_error(&what, &kernel[i], truth, 1.5e-2);
                let bound = 3.0 * relative_rms(&reference[i], truth) + 3e-3;
                assert_error(&format!("{what} beside tensors"), &kernel[i], truth, bound);
            }
        }
    }
}

#[test]
fn a_factor_that_bf16_does_not_have_scales_both_gradients() {
    // Three times that lies in the middle between two numbers of bf16, 0.4 % from both.
    const FACTOR: f64 = 2056.0 / 3.0;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let case = Case::new([70, 24, 640]);
    for (name, device) in half_devices() {
        let by = |factor: f64| {
            let op = |hidden: Tensor<2>, weight: Tensor<2>, targets: &[i32]| {
                linear_cross_entropy(hidden, weight, targets, 1 << 20) * factor
            };
            case.run(FloatDType::BF16, &device, op)
        };
        let (once, scaled) = (by(1.0), by(FACTOR));
        for i in [1, 2] {
            let ratio = dot(&scaled[i], &once[i]) / dot(&once[i], &once[i]) / FACTOR;
            // Products of two numbers of eight bits are rounded too, here up by 0.18 % on average; a
            // rounded factor would make 0.39 % of it.
            assert!((ratio - 1.0).abs() < 2.5e-3, "{} on {name}: {ratio}", NAMES[i]);
        }
    }
}

#[test]
fn without_autodiff_there_is_the_loss_alone() {
    for (name, device) in devices() {
        let case = Case::new([33, 8, 1027]);
        let [n, d_model, n_rows] = case.shape;
        let hidden = tensor(&case.hidden, [n, d_model], &device);
        let weight = tensor(&case.weight, [n_rows, d_model], &device);
        let loss = linear_cross_entropy(hidden, weight, &case.targets, 5 * n_rows);
        assert_error(name, &values(&loss), &case.truth()[0], 1e-6);
    }
}

#[test]
fn large_logits_do_not_overflow_and_lost_ones_are_seen() {
    for (name, device) in devices() {
        let hidden = Tensor::<2>::from_floats([[300.0], [-300.0]], &device);
        let weight = Tensor::<2>::from_floats([[1.0], [-1.0], [0.5]], &device);
        // Positions are sure of rows 0 and 1; the loss is how far the targets are from that.
        let loss = |targets: &[i32]| {
            let (hidden, weight) = (hidden.clone(), weight.clone());
            values(&linear_cross_entropy(hidden, weight, targets, 100))[0]
        };
        assert!((0.0..1e-30).contains(&loss(&[0, 1])), "{name}");
        assert!((loss(&[1, -1]) - 600.0).abs() < 1e-3, "{name}");
        for lost in [f32::NAN, f32::INFINITY] {
            let hidden = Tensor::<2>::from_floats([[lost], [1.0]], &device);
            let loss = linear_cross_entropy(hidden, weight.clone(), &[0, 1], 100);
            let loss: f32 = loss.into_scalar();
            assert!(!loss.is_finite(), "{name}: {lost} gives {loss}");
        }
    }
}

#[test]
fn what_is_no_number_at_an_ignored_position_reaches_nothing() {
    let shape @ [_, d_model, n_rows] = [9, 16, 96];
    let truth = Case::new(shape).truth();
    for lost in [f64::NAN, f64::INFINITY] {
        let mut case = Case::new(shape);
        let ignored = [3, 8];
        assert!(ignored.iter().all(|at| case.targets[*at] < 0));
        case.hidden[3 * d_model..4 * d_model].fill(lost);
        case.hidden[8 * d_model + 2] = lost;
        assert_eq!(case.truth(), truth, "host, {lost}");
        for (name, device) in devices() {
            let check = |what: &str, got: [Vec<f64>; 3]| {
                for (i, (got, truth)) in got.iter().zip(&truth).enumerate() {
                    let what = format!("{what}, {}, {lost} on {name}", NAMES[i]);
                    assert_error(&what, got, truth, 3e-6);
                }
                for at in ignored {
                    let grad = &got[1][at * d_model..][..d_model];
                    assert_eq!(grad, vec![0.0; d_model], "{what}, position {at} on {name}");
                }
            };
            check("reference", case.run(FloatDType::F32, &exact(&device), reference));
            for max_logits in [1 << 20, 4 * n_rows, 1] {
                check("kernel", case.run(FloatDType::F32, &device, ours(max_logits)));
            }
            // Without gradients, as in evaluation.
            let [hidden, weight] = [(&case.hidden, 9), (&case.weight, n_rows)]
                .map(|(values, rows)| tensor::<2>(values, [rows, d_model], &device));
            let loss = linear_cross_entropy(hidden, weight, &case.targets, 1 << 20);
            assert_error(&format!("loss alone on {name}"), &values(&loss), &truth[0], 3e-6);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (name, device) = devices().remove(0);
    let case = Case::new([70, 24, 1027]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| case.run(FloatDType::F32, &device, ours(33 * 1027)))
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert_eq!(one, run(threads), "{threads} threads on {name}");
    }
}

fn refused(hidden: [usize; 2], weight: [usize; 2], targets: &[i32]) {
    let device = any_device();
    linear_cross_entropy(
        Tensor::ones(hidden, &device),
        Tensor::ones(weight, &device),
        targets,
        100,
    );
}

#[test]
#[should_panic(expected = "cross_entropy: axis 1 of `weight` is 4, expected d_model = 3")]
fn a_weight_of_another_width_panics() {
    refused([2, 3], [5, 4], &[0, 1]);
}

#[test]
#[should_panic(expected = "cross_entropy: 1 targets for n = 2 positions")]
fn a_missing_target_panics() {
    refused([2, 3], [5, 3], &[0]);
}

#[test]
#[should_panic(expected = "cross_entropy: target 5 is no row of `weight`, which has 5")]
fn a_target_beyond_the_vocabulary_panics() {
    refused([2, 3], [5, 3], &[0, 5]);
}

#[test]
#[should_panic(expected = "cross_entropy: no target counts")]
fn a_loss_of_nothing_panics() {
    refused([2, 3], [5, 3], &[-1, -1]);
}
