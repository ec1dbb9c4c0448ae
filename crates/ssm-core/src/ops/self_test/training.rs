//! Operations of training, with the gradients of all their inputs.

use burn::{
    module::Param,
    nn::{LayerNormConfig, Linear},
    tensor::{Bool, DType, Device, Int, Tensor, TensorData},
};

use super::{Compared, Draw, Input, values, weighed};
use crate::ops::{
    causal_conv1d::{self, ConvArgs, causal_conv1d},
    cross_entropy as loss, layer_norm as layer, linear as maps, pointwise,
    recompute::recompute as computed_again,
    rms_norm,
    selective_scan::{self, ScanArgs, selective_scan},
};

const EPSILON: f64 = 1e-5;

/// One of the pointwise operations.
const SIZES: [usize; 3] = [3, 13, 7];

/// Where packed sequences begin, as the operations and as their specifications take it.
fn resets(batch: usize, seq_len: usize, device: &Device) -> (Tensor<2, Bool>, Vec<f64>) {
    let resets: Vec<bool> = (0..batch * seq_len).map(|step| step % 41 == 40).collect();
    let numbers = resets.iter().map(|reset| f64::from(u8::from(*reset))).collect();
    (Tensor::from_data(TensorData::new(resets, [batch, seq_len]), device), numbers)
}

pub(super) fn scan(dims: selective_scan::host::ScanDims, draw: &mut Draw) -> Vec<Compared> {
    let selective_scan::host::ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let steps = [batch, seq_len, d_inner];
    let rows = [batch, seq_len, n_groups * d_state];
    let state = [batch, d_inner, d_state];
    let u = draw.input(steps, -1.0, 1.0);
    let delta = draw.input(steps, -4.0, 1.0);
    let a = draw.parameter([d_inner, d_state], -2.0, -0.1);
    let b = draw.input(rows, -1.0, 1.0);
    let c = draw.input(rows, -1.0, 1.0);
    let d = draw.parameter([d_inner], -1.0, 1.0);
    let z = draw.input(steps, -2.0, 2.0);
    let bias = draw.parameter([d_inner], -0.1, 0.1);
    let initial = draw.parameter(state, -1.0, 1.0);
    let (resets, reset_numbers) = resets(batch, seq_len, &draw.device);
    let (grad_y, grad_final) = (draw.cotangent(steps), draw.cotangent(state));

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
        resets: Some(resets),
    });
    let loss = weighed(&out.y, &grad_y) + weighed(&out.final_state, &grad_final);
    let grads = loss.backward();

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
        resets: Some(&reset_numbers),
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

pub(super) fn conv(
    dims: causal_conv1d::host::ConvDims,
    with_resets: bool,
    draw: &mut Draw,
) -> Vec<Compared> {
    let causal_conv1d::host::ConvDims { batch, seq_len, channels, d_conv } = dims;
    let x = draw.input([batch, seq_len, channels], -1.0, 1.0);
    let weight = draw.parameter([channels, d_conv], -1.0, 1.0);
    let bias = draw.parameter([channels], -1.0, 1.0);
    let initial = draw.parameter([batch, d_conv - 1, channels], -1.0, 1.0);
    let grad_y = draw.cotangent([batch, seq_len, channels]);
    let (resets, reset_numbers) = resets(batch, seq_len, &draw.device);
    let y = causal_conv1d(ConvArgs {
        x: x.tensor.clone(),
        weight: weight.tensor.clone(),
        bias: Some(bias.tensor.clone()),
        silu: true,
        initial_state: Some(initial.tensor.clone()),
        resets: with_resets.then_some(resets),
    });
    let grads = weighed(&y, &grad_y).backward();
    let slices = causal_conv1d::host::ConvSlices {
        x: &x.values,
        weight: &weight.values,
        bias: Some(&bias.values),
        initial_state: Some(&initial.values),
        resets: with_resets.then_some(&reset_numbers[..]),
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

/// In one part, or in three of which the last has no gradient.
pub(super) fn linear(rows: usize, d_in: usize, widths: &[usize], draw: &mut Draw) -> Vec<Compared> {
    let d_out: usize = widths.iter().sum();
    let x = draw.input([1, rows, d_in], -1.0, 1.0);
    let weight = draw.input([d_in, d_out], -1.0, 1.0);
    let bias = draw.input([d_out], -1.0, 1.0);
    let mut grad_y = draw.cotangent([1, rows, d_out]);
    let layer = Linear {
        weight: Param::from_tensor(weight.tensor.clone()),
        bias: Some(Param::from_tensor(bias.tensor.clone())),
    };
    let (parts, used) = match *widths {
        [a, b, c] => {
            let parts = maps::linear_split(&layer, x.tensor.clone(), [a, b, c]);
            grad_y.values.chunks_exact_mut(d_out).for_each(|row| row[a + b..].fill(0.0));
            (Vec::from(parts), 2)
        }
        _ => (vec![maps::linear(&layer, x.tensor.clone())], 1),
    };
    let mut from = 0;
    let losses = parts.iter().zip(widths).take(used).map(|(part, width)| {
        let tensor = grad_y.tensor.clone().narrow(2, from, *width);
        from += width;
        weighed(part, &Input { values: Vec::new(), tensor })
    });
    let grads = losses.reduce(|a, b| a + b).map(|loss| loss.backward());
    let gradients = |of: &dyn Fn(&_) -> Vec<f64>| grads.as_ref().map_or_else(Vec::new, of);

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
        ("y", values(&Tensor::cat(parts, 2)), truth),
        ("grad_x", gradients(&|grads| x.gradient(grads)), grad_x),
        ("grad_weight", gradients(&|grads| weight.gradient(grads)), grad_weight),
        ("grad_bias", gradients(&|grads| bias.gradient(grads)), grad_bias),
    ]
}

pub(super) fn norm(rows: usize, width: usize, draw: &mut Draw) -> Vec<Compared> {
    let x = draw.input([rows, width], -2.0, 2.0);
    let weight = draw.parameter([width], 0.5, 1.5);
    let grad_y = draw.cotangent([rows, width]);
    let y = rms_norm::rms_norm(x.tensor.clone(), weight.tensor.clone(), EPSILON);
    let grads = weighed(&y, &grad_y).backward();
    let (grad_x, grad_weight) =
        rms_norm::host::backward(&x.values, &weight.values, &grad_y.values, EPSILON);
    vec![
        ("y", values(&y), rms_norm::host::forward(&x.values, &weight.values, EPSILON)),
        ("grad_x", x.gradient(&grads), grad_x),
        ("grad_weight", weight.gradient(&grads), grad_weight),
    ]
}

/// A stream in f32 that takes in a branch.
pub(super) fn add_norm(rows: usize, width: usize, draw: &mut Draw) -> Vec<Compared> {
    let x = draw.parameter([rows, width], -2.0, 2.0);
    let branch = draw.input([rows, width], -1.0, 1.0);
    let weight = draw.parameter([width], 0.5, 1.5);
    let (grad_sum, grad_y) = (draw.cotangent([rows, width]), draw.cotangent([rows, width]));
    let (sum, y) = rms_norm::add_rms_norm(
        x.tensor.clone(),
        branch.tensor.clone(),
        weight.tensor.clone(),
        EPSILON,
    );
    let grads = (weighed(&sum, &grad_sum) + weighed(&y, &grad_y)).backward();
    let added = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
    let truth = added(&x.values, &branch.values);
    let (grad, grad_weight) =
        rms_norm::host::backward(&truth, &weight.values, &grad_y.values, EPSILON);
    let grad = added(&grad, &grad_sum.values);
    vec![
        ("y", values(&y), rms_norm::host::forward(&truth, &weight.values, EPSILON)),
        ("sum", values(&sum), truth),
        ("grad_x", x.gradient(&grads), grad.clone()),
        ("grad_branch", branch.gradient(&grads), grad),
        ("grad_weight", weight.gradient(&grads), grad_weight),
    ]
}

pub(super) fn gelu(draw: &mut Draw) -> Vec<Compared> {
    let x = draw.input(SIZES, -4.0, 4.0);
    let grad_y = draw.cotangent(SIZES);
    let y = pointwise::gelu(x.tensor.clone());
    let grads = weighed(&y, &grad_y).backward();
    vec![
        ("y", values(&y), pointwise::host::gelu(&x.values)),
        ("grad_x", x.gradient(&grads), pointwise::host::gelu_backward(&x.values, &grad_y.values)),
    ]
}

pub(super) fn neg_exp(draw: &mut Draw) -> Vec<Compared> {
    let x = draw.input(SIZES, -3.0, 3.0);
    let grad_y = draw.cotangent(SIZES);
    let y = pointwise::neg_exp(x.tensor.clone());
    let grads = weighed(&y, &grad_y).backward();
    let truth = pointwise::host::neg_exp(&x.values);
    let grad = pointwise::host::masked(&truth, &grad_y.values, 1.0);
    vec![("y", values(&y), truth), ("grad_x", x.gradient(&grads), grad)]
}

pub(super) fn masked(draw: &mut Draw) -> Vec<Compared> {
    const SCALE: f64 = 1.5;
    let x = draw.input(SIZES, -3.0, 3.0);
    let mask = draw.cotangent(SIZES);
    let grad_y = draw.cotangent(SIZES);
    let y = pointwise::masked(x.tensor.clone(), mask.tensor.clone(), SCALE);
    let grads = weighed(&y, &grad_y).backward();
    let [truth, grad] =
        [&x, &grad_y].map(|of| pointwise::host::masked(&of.values, &mask.values, SCALE));
    vec![("y", values(&y), truth), ("grad_x", x.gradient(&grads), grad)]
}

pub(super) fn dropped(draw: &mut Draw) -> Vec<Compared> {
    const SEED: [u32; 2] = [7, 11];
    let (site, keep) = (3, 0.7);
    let x = draw.input(SIZES, -3.0, 3.0);
    let grad_y = draw.cotangent(SIZES);
    let words = TensorData::from(SEED.map(u32::cast_signed));
    let seed = Tensor::<1, Int>::from_data(words, (&draw.device, DType::I32));
    let y = pointwise::dropped(x.tensor.clone(), seed, site, keep);
    let grads = weighed(&y, &grad_y).backward();
    let below = pointwise::host::draws_below(keep);
    let [truth, grad] =
        [&x, &grad_y].map(|of| pointwise::host::dropped(&of.values, SEED, site, below, 1.0 / keep));
    vec![("y", values(&y), truth), ("grad_x", x.gradient(&grads), grad)]
}

pub(super) fn reverse(draw: &mut Draw) -> Vec<Compared> {
    let x = draw.input(SIZES, -1.0, 1.0);
    let grad_y = draw.cotangent(SIZES);
    let y = pointwise::reverse(x.tensor.clone());
    let grads = weighed(&y, &grad_y).backward();
    vec![
        ("y", values(&y), pointwise::host::reverse(&x.values, SIZES)),
        ("grad_x", x.gradient(&grads), pointwise::host::reverse(&grad_y.values, SIZES)),
    ]
}

pub(super) fn layer_norm(rows: usize, width: usize, draw: &mut Draw) -> Vec<Compared> {
    let x = draw.input([rows, width], -1.0, 2.0);
    let residual = draw.input([rows, width], -1.0, 1.0);
    let weight = draw.parameter([width], 0.5, 1.5);
    let bias = draw.parameter([width], -1.0, 1.0);
    let grad_y = draw.cotangent([rows, width]);
    let mut norm = LayerNormConfig::new(width).init(&draw.device);
    norm.gamma = Param::from_tensor(weight.tensor.clone());
    norm.beta = Some(Param::from_tensor(bias.tensor.clone()));
    let (left, right) = (x.tensor.clone(), residual.tensor.clone());
    let y = layer::sum_layer_norm(&norm, left, right, EPSILON);
    let grads = weighed(&y, &grad_y).backward();
    let sum: Vec<f64> = x.values.iter().zip(&residual.values).map(|(a, b)| a + b).collect();
    let truth = layer::host::forward(&sum, &weight.values, &bias.values, EPSILON);
    let grad = layer::host::backward(&sum, &weight.values, &grad_y.values, EPSILON);
    vec![
        ("y", values(&y), truth),
        ("grad_x", x.gradient(&grads), grad.x.clone()),
        ("grad_residual", residual.gradient(&grads), grad.x),
        ("grad_weight", weight.gradient(&grads), grad.weight),
        ("grad_bias", bias.gradient(&grads), grad.bias),
    ]
}

/// In two chunks, a fifth of the targets ignored.
pub(super) fn cross_entropy(
    n: usize,
    d_model: usize,
    n_rows: usize,
    draw: &mut Draw,
) -> Vec<Compared> {
    let hidden = draw.input([n, d_model], -1.0, 1.0);
    let weight = draw.parameter([n_rows, d_model], -1.0, 1.0);
    let target = |i: usize| if i % 5 == 3 { -1 } else { (i * 7 % n_rows) as i32 };
    let targets: Vec<i32> = (0..n).map(target).collect();
    let (left, right) = (hidden.tensor.clone(), weight.tensor.clone());
    let y = loss::linear_cross_entropy(left, right, &targets, n.div_ceil(2) * n_rows);
    let grads = y.backward();
    let truth = loss::host::cross_entropy(&hidden.values, &weight.values, &targets, d_model);
    vec![
        ("loss", values(&y), vec![truth.loss]),
        ("grad_hidden", hidden.gradient(&grads), truth.hidden),
        ("grad_weight", weight.gradient(&grads), truth.weight),
    ]
}

/// Against the same layer whose intermediate results are kept.
pub(super) fn recompute(draw: &mut Draw) -> Vec<Compared> {
    let width = SIZES[2];
    let weight = draw.cotangent([width, width]).tensor;
    let layer = Linear { weight: Param::from_tensor(weight), bias: None };
    let forward = |layer: &Linear, x| pointwise::gelu(maps::linear(layer, x));
    let x = draw.input(SIZES, -1.0, 1.0);
    let grad_y = draw.cotangent(SIZES);
    let run = |y: Tensor<3>| {
        let grads = weighed(&y, &grad_y).backward();
        let weight = layer.weight.val().grad(&grads).map_or_else(Vec::new, |grad| values(&grad));
        [values(&y), x.gradient(&grads), weight]
    };
    let [y, grad_x, grad_weight] = run(computed_again(&layer, x.tensor.clone(), forward));
    let [kept_y, kept_grad_x, kept_grad_weight] = run(forward(&layer, x.tensor.clone()));
    vec![
        ("y", y, kept_y),
        ("grad_x", grad_x, kept_grad_x),
        ("grad_weight", grad_weight, kept_grad_weight),
    ]
}
