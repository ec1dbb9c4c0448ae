//! Operations on single tokens, which have no gradients and overwrite what they carry.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};

use super::{BOUND, Compared, Draw, Suite, values};
use crate::ops::decode::{
    self, Chosen, Conv, Product, StateStep,
    host::{self, Rows, StateParams},
};

const EPSILON: f64 = 1e-5;

/// Sequences, and the inputs, further columns and outputs of a product; channels and width of a
/// convolution behind it.
const BATCH: usize = 3;
const D_IN: usize = 97;
const FURTHER: usize = 3;
const D_OUT: usize = 130;
const CHANNELS: usize = 65;
const D_CONV: usize = 4;

pub(super) fn add_to(suite: &mut Suite<'_>) {
    let device = suite.device.clone().without_autodiff();
    let on_device = |run: fn(&mut Draw) -> Vec<Compared>| {
        let device = device.clone();
        move |draw: &mut Draw| run(&mut Draw::new(draw.dtype, &device))
    };
    let shape = format!("{BATCH}x{D_IN} by {D_IN}x{D_OUT}");
    // The sums are f32 for any type of the weight.
    suite.typed("decode_product", &shape, [BOUND; 2], on_device(product));
    let with_conv = format!("{shape}, width {D_CONV}");
    suite.typed("decode_product_conv", &with_conv, [BOUND; 2], on_device(product_conv));
    let shape = format!("{BATCH}x{CHANNELS}, width {D_CONV}");
    suite.typed("decode_conv", &shape, [BOUND, 6e-3], on_device(conv));
    suite.typed("decode_state", "3x33, rank 8, state 16", [BOUND, 2e-2], on_device(state));
    suite.typed("decode_add_norm", "3x97", [BOUND, 6e-3], on_device(add_norm));
    suite.typed("decode_copy", "3x5", [0.0, 6e-3], on_device(copy));
    suite.single("decode_argmax", "3 of 257 tokens", 0.0, on_device(argmax));
    suite.single("decode_set", "3", 0.0, on_device(set));
}

/// The arguments of a product, and its truth with the norm and, where asked for, a sum.
fn products(draw: &mut Draw, adds: bool) -> (Product, Vec<f64>) {
    let bound = (D_IN as f32).powf(-0.5);
    let x = draw.constant([BATCH, D_IN + FURTHER], -2.0, 2.0, FloatDType::F32);
    let weight = draw.constant([D_OUT, D_IN], -bound, bound, draw.dtype);
    let norm = draw.constant([D_IN], 0.5, 1.5, FloatDType::F32);
    let add = draw.constant([BATCH, D_OUT], -1.0, 1.0, FloatDType::F32);
    let rows = Rows { values: &x.values, stride: D_IN + FURTHER };
    let of_norm = Some((&norm.values[..], EPSILON));
    let added = adds.then_some(&add.values[..]);
    let truth = host::product(rows, of_norm, &weight.values, added, [BATCH, D_IN]);
    let product = Product {
        x: x.tensor,
        weight: weight.tensor,
        norm: Some((norm.tensor, EPSILON)),
        add: adds.then_some(add.tensor),
    };
    (product, truth)
}

fn product(draw: &mut Draw) -> Vec<Compared> {
    let (product, truth) = products(draw, true);
    vec![("y", values(&decode::product(product)), truth)]
}

/// The arguments of a convolution, and what they are made of.
fn convs(draw: &mut Draw) -> (Conv, [Vec<f64>; 3]) {
    let taps = draw.constant([CHANNELS, D_CONV], -1.0, 1.0, FloatDType::F32);
    let bias = draw.constant([CHANNELS], -1.0, 1.0, FloatDType::F32);
    let past = draw.constant([BATCH, D_CONV - 1, CHANNELS], -1.0, 1.0, FloatDType::F32);
    let conv = Conv { taps: taps.tensor, bias: Some(bias.tensor), past: past.tensor };
    (conv, [taps.values, bias.values, past.values])
}

fn product_conv(draw: &mut Draw) -> Vec<Compared> {
    let (product, mut truth) = products(draw, false);
    let (conv, [taps, bias, mut past]) = convs(draw);
    // The convolution reads what comes of the product.
    let (y, moved) = decode::product_conv(product, conv);
    let rows = Rows { values: &truth, stride: D_OUT };
    let u = host::conv(rows, &taps, Some(&bias), &mut past, [BATCH, CHANNELS]);
    for (row, u) in truth.chunks_exact_mut(D_OUT).zip(u.chunks_exact(CHANNELS)) {
        row[..CHANNELS].copy_from_slice(u);
    }
    vec![("y", values(&y), truth), ("past", values(&moved), past)]
}

fn conv(draw: &mut Draw) -> Vec<Compared> {
    let x = draw.constant([BATCH, CHANNELS + FURTHER], -1.0, 1.0, draw.dtype);
    let (conv, [taps, bias, mut past]) = convs(draw);
    let (u, moved) = decode::conv(x.tensor, conv);
    let rows = Rows { values: &x.values, stride: CHANNELS + FURTHER };
    let truth = host::conv(rows, &taps, Some(&bias), &mut past, [BATCH, CHANNELS]);
    vec![("u", values(&u), truth), ("past", values(&moved), past)]
}

fn state(draw: &mut Draw) -> Vec<Compared> {
    let [d_inner, dt_rank, d_state] = [33, 8, 16];
    let stride = d_inner + FURTHER;
    let u = draw.constant([BATCH, stride], -1.0, 1.0, draw.dtype);
    let z = draw.constant([BATCH, stride], -2.0, 2.0, draw.dtype);
    let projected = draw.constant([BATCH, dt_rank + 2 * d_state], -1.0, 1.0, draw.dtype);
    let dt_weight = draw.constant([d_inner, dt_rank], -0.5, 0.5, draw.dtype);
    let params = draw.constant([d_inner, d_state + 4], -1.0, 1.0, FloatDType::F32);
    let before = draw.constant([BATCH, d_inner, d_state], -1.0, 1.0, FloatDType::F32);
    let of_host = StateParams { dt_weight: &dt_weight.values, params: &params.values };
    let mut after = before.values;

    let [of_u, of_z] = [&u.values, &z.values].map(|values| Rows { values, stride });
    let sizes = [BATCH, d_inner, d_state];
    let truth = host::state(of_u, of_z, &projected.values, of_host, &mut after, sizes);
    let (y, moved) = decode::state(StateStep {
        u: u.tensor,
        z: z.tensor,
        projected: projected.tensor,
        dt_weight: dt_weight.tensor,
        params: params.tensor,
        state: before.tensor,
    });
    vec![("y", values(&y), truth), ("state", values(&moved), after)]
}

fn add_norm(draw: &mut Draw) -> Vec<Compared> {
    let x = draw.constant([BATCH, D_IN], -2.0, 2.0, FloatDType::F32);
    let add = draw.constant([BATCH, D_IN], -2.0, 2.0, FloatDType::F32);
    let weight = draw.constant([D_IN], 0.5, 1.5, FloatDType::F32);
    let (truth, normed) = host::add_norm(&x.values, Some(&add.values), &weight.values, EPSILON);
    let (sum, y) = decode::add_norm(x.tensor, Some(add.tensor), weight.tensor, EPSILON, draw.dtype);
    vec![("sum", values(&sum), truth), ("y", values(&y), normed)]
}

/// A copy in another order and type, and one into a buffer that is there.
fn copy(draw: &mut Draw) -> Vec<Compared> {
    let x = draw.constant([BATCH, 5], -1.0, 1.0, FloatDType::F32);
    let turned = decode::copied(x.tensor.clone().transpose(), draw.dtype);
    let truth = (0..5).flat_map(|j| (0..BATCH).map(move |i| (i, j)));
    let truth = truth.map(|(i, j)| x.values[i * 5 + j]).collect();
    let to = draw.constant([BATCH, 5], -1.0, 1.0, FloatDType::F32);
    let over = decode::overwritten(to.tensor, x.tensor);
    vec![("turned", values(&turned), truth), ("overwritten", values(&over), x.values)]
}

fn integers<const D: usize>(integers: &[i32], shape: [usize; D], draw: &Draw) -> Tensor<D, Int> {
    let row = TensorData::new(integers.to_vec(), [integers.len()]);
    Tensor::<1, Int>::from_data(row, (&draw.device, DType::I32)).reshape(shape)
}

fn ids<const D: usize>(tensor: Tensor<D, Int>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn argmax(draw: &mut Draw) -> Vec<Compared> {
    let [n_rows, n_vocab] = [259, 257];
    let logits = draw.constant([BATCH, n_rows], -1.0, 1.0, FloatDType::F32);
    let rows = Rows { values: &logits.values, stride: n_rows };
    // What was drawn is finite.
    let best =
        host::argmax(rows, n_vocab).into_iter().map(|best| best.map_or(-1.0, |at| at as f64));
    let best: Vec<f64> = best.collect();
    let chosen = Chosen {
        newest: integers(&[7; BATCH], [BATCH], draw),
        ring: integers(&[-1; 2 * BATCH], [BATCH, 2], draw),
        count: integers(&[1; BATCH], [BATCH], draw),
    };
    let chosen = decode::argmax(logits.tensor, chosen, n_vocab);
    // The second token goes to the second place of the ring.
    let ring = best.iter().flat_map(|best| [-1.0, *best]).collect();
    vec![
        ("newest", ids(chosen.newest), best),
        ("ring", ids(chosen.ring), ring),
        ("count", ids(chosen.count), vec![2.0; BATCH]),
    ]
}

fn set(draw: &mut Draw) -> Vec<Compared> {
    let (to, from) = (integers(&[0; 3], [3], draw), integers(&[5, -1, 8], [3], draw));
    vec![("to", ids(decode::set(to, from)), vec![5.0, -1.0, 8.0])]
}
