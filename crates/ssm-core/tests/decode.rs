//! Single tokens: each operation against the host specification in f64, and a backbone for single tokens
//! against its parallel form.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use ssm_core::{
    init::Init,
    mixers::{MambaConfig, MixerConfig, State},
    nn::{Backbone, BackboneConfig},
    ops::decode::{
        Chosen, Conv, Product, StateStep, add_norm, argmax, conv, copied,
        host::{self, Rows, StateParams},
        overwritten, product, product_conv, set, state, state_params,
    },
};

use crate::support::{
    Draw, any_device, assert_error, devices, exact, half_devices, in_a_row, tensor, values,
};

const EPSILON: f64 = 1e-5;

/// batch, d_in, d_out, d_conv, further columns: single elements, odd widths, less and more than a group of
/// units and a cube, several rows a group.
const SHAPES: [[usize; 5]; 7] = [
    [1, 1, 1, 1, 0],
    [3, 7, 5, 2, 1],
    [2, 16, 40, 4, 16],
    [1, 97, 130, 3, 0],
    [2, 260, 64, 4, 4],
    [1, 64, 1600, 4, 0],
    [1, 36, 3200, 4, 2],
];

/// The arguments of a product with a convolution behind it, all of its own width.
struct Case {
    batch: usize,
    d_in: usize,
    d_out: usize,
    d_conv: usize,
    stride: usize,
    channels: usize,
    x: Vec<f64>,
    norm: Vec<f64>,
    weight: Vec<f64>,
    add: Vec<f64>,
    taps: Vec<f64>,
    bias: Vec<f64>,
    past: Vec<f64>,
}

impl Case {
    fn new([batch, d_in, d_out, d_conv, further]: [usize; 5]) -> Self {
        let mut draw = Draw::new(5);
        let (stride, channels) = (d_in + further, d_out.div_ceil(2));
        let bound = (d_in as f64).powf(-0.5);
        Self {
            batch,
            d_in,
            d_out,
            d_conv,
            stride,
            channels,
            x: draw.uniform(batch * stride, -2.0, 2.0),
            norm: draw.uniform(d_in, 0.5, 1.5),
            weight: draw.uniform(d_out * d_in, -bound, bound),
            add: draw.uniform(batch * d_out, -1.0, 1.0),
            taps: draw.uniform(channels * d_conv, -1.0, 1.0),
            bias: draw.uniform(channels, -1.0, 1.0),
            past: draw.uniform(batch * (d_conv - 1) * channels, -1.0, 1.0),
        }
    }

    fn rows(&self) -> Rows<'_, f64> {
        Rows { values: &self.x, stride: self.stride }
    }

    fn product(&self, device: &Device, norm: bool, add: bool) -> Product {
        let weight = tensor(&self.norm, [self.d_in], device);
        Product {
            x: tensor(&self.x, [self.batch, self.stride], device),
            weight: tensor(&self.weight, [self.d_out, self.d_in], device),
            norm: norm.then_some((weight, EPSILON)),
            add: add.then(|| tensor(&self.add, [self.batch, self.d_out], device)),
        }
    }

    fn conv(&self, device: &Device, bias: bool) -> Conv {
        let past = [self.batch, self.d_conv - 1, self.channels];
        // Burn makes no tensor without elements of an empty list on every device.
        let past = match self.past.is_empty() {
            true => Tensor::zeros(past, device),
            false => in_a_row(&self.past, past, device),
        };
        Conv {
            taps: tensor(&self.taps, [self.channels, self.d_conv], device),
            bias: bias.then(|| tensor(&self.bias, [self.channels], device)),
            past,
        }
    }

    fn truth(&self, norm: bool, add: bool) -> Vec<f64> {
        let norm = norm.then_some((&self.norm[..], EPSILON));
        let add = add.then_some(&self.add[..]);
        host::product(self.rows(), norm, &self.weight, add, [self.batch, self.d_in])
    }
}

#[test]
fn products_agree_with_the_host() {
    for (name, device) in devices() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for (norm, add) in [(false, false), (true, false), (false, true), (true, true)] {
                let y = product(case.product(&device, norm, add));
                let what = format!("{shape:?}, norm {norm}, add {add} on {name}");
                // A sum of two numbers may be much smaller than both.
                let bound = if shape[1] == 1 { 1e-5 } else { 1e-6 };
                assert_error(&what, &values(&y), &case.truth(norm, add), bound);
            }
        }
    }
}

#[test]
fn convolutions_agree_with_the_host_and_move_on() {
    for (name, device) in devices() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for bias in [false, true] {
                let what = format!("{shape:?}, bias {bias} on {name}");
                let mut past = case.past.clone();
                let mut truth = case.truth(true, false);
                let y = truth.clone();
                let rows = Rows { values: &y, stride: case.d_out };
                let biases = bias.then_some(&case.bias[..]);
                let u =
                    host::conv(rows, &case.taps, biases, &mut past, [case.batch, case.channels]);
                for (row, u) in truth.chunks_mut(case.d_out).zip(u.chunks(case.channels)) {
                    row[..case.channels].copy_from_slice(u);
                }
                let (got, moved) =
                    product_conv(case.product(&device, true, false), case.conv(&device, bias));
                assert_error(
                    &format!("product and convolution, {what}"),
                    &values(&got),
                    &truth,
                    2e-6,
                );
                if case.d_conv > 1 {
                    assert_error(&format!("past, {what}"), &values(&moved), &past, 1e-6);
                }
                let x = tensor(&y, [case.batch, case.d_out], &device);
                let (got, moved) = conv(x, case.conv(&device, bias));
                assert_error(&format!("convolution, {what}"), &values(&got), &u, 2e-6);
                if case.d_conv > 1 {
                    assert_error(&format!("past of it, {what}"), &values(&moved), &past, 1e-6);
                }
            }
        }
    }
}

#[test]
fn the_recurrence_agrees_with_the_host_and_moves_on() {
    for (name, device) in devices() {
        for [batch, d_inner, dt_rank, d_state, further] in [
            [1, 1, 1, 1, 0],
            [3, 5, 2, 3, 2],
            [2, 64, 4, 16, 64],
            [1, 97, 3, 8, 0],
            [9, 33, 8, 64, 1],
        ] {
            let mut draw = Draw::new(6);
            let stride = d_inner + further;
            let u = draw.uniform(batch * stride, -1.0, 1.0);
            let z = draw.uniform(batch * stride, -2.0, 2.0);
            let projected = draw.uniform(batch * (dt_rank + 2 * d_state), -1.0, 1.0);
            let dt_weight = draw.uniform(d_inner * dt_rank, -0.5, 0.5);
            let dt_bias = draw.uniform(d_inner, -4.0, 0.0);
            let a_log = draw.uniform(d_inner * d_state, -1.0, 2.0);
            let d = draw.uniform(d_inner, -1.0, 1.0);
            let vector = |values: &[f64]| tensor(values, [d_inner], &device);
            let params = state_params(
                tensor(&a_log, [d_inner, d_state], &device),
                vector(&dt_bias),
                vector(&d),
            );
            let of_host = values(&params);
            let before = draw.uniform(batch * d_inner * d_state, -1.0, 1.0);
            let of_host = StateParams { dt_weight: &dt_weight, params: &of_host };
            let mut after = before.clone();
            let rows = |values| Rows { values, stride };
            let sizes = [batch, d_inner, d_state];
            let truth = host::state(rows(&u), rows(&z), &projected, of_host, &mut after, sizes);
            let (y, moved) = state(StateStep {
                u: tensor(&u, [batch, stride], &device),
                z: tensor(&z, [batch, stride], &device),
                projected: tensor(&projected, [batch, dt_rank + 2 * d_state], &device),
                dt_weight: tensor(&dt_weight, [d_inner, dt_rank], &device),
                params,
                state: in_a_row(&before, [batch, d_inner, d_state], &device),
            });
            let what = format!("{batch} x {d_inner}, rank {dt_rank}, state {d_state} on {name}");
            assert_error(&what, &values(&y), &truth, 2e-6);
            assert_error(&format!("state, {what}"), &values(&moved), &after, 2e-6);
        }
    }
}

#[test]
fn sums_are_normed() {
    for (name, device) in devices() {
        for [batch, width] in [[1, 1], [3, 7], [2, 256], [9, 300]] {
            let mut draw = Draw::new(7);
            let [x, add] = [(); 2].map(|()| draw.uniform(batch * width, -2.0, 2.0));
            let weight = draw.uniform(width, 0.5, 1.5);
            for added in [None, Some(&add[..])] {
                let (sum, truth) = host::add_norm(&x, added, &weight, EPSILON);
                let of = |values: &[f64]| in_a_row::<2>(values, [batch, width], &device);
                let weight = tensor(&weight, [width], &device);
                let (got_sum, got) =
                    add_norm(of(&x), added.map(of), weight, EPSILON, FloatDType::F32);
                let what = format!("{batch} x {width}, added {} on {name}", added.is_some());
                assert_error(&format!("sum, {what}"), &values(&got_sum), &sum, 1e-6);
                assert_error(&what, &values(&got), &truth, 1e-6);
            }
        }
    }
}

fn integers<const D: usize>(values: &[i32], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let row = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::<1, Int>::from_data(row, (device, DType::I32)).reshape(shape)
}

fn ids<const D: usize>(tensor: &Tensor<D, Int>) -> Vec<i32> {
    tensor.clone().into_data().convert::<i32>().try_into_vec().expect("i32 data")
}

#[test]
fn the_likeliest_token_is_chosen_and_remembered() {
    for (name, device) in devices() {
        for [batch, n_rows, n_vocab] in [[1, 1, 1], [2, 8, 5], [3, 1000, 999], [1, 257, 257]] {
            let mut chosen = Chosen {
                newest: integers(&vec![7; batch], [batch], &device),
                ring: integers(&vec![-1; 2 * batch], [batch, 2], &device),
                count: integers(&vec![0; batch], [batch], &device),
            };
            let mut ring = vec![-1; 2 * batch];
            for step in 0..3 {
                let mut logits = Draw::new(step as u64).uniform(batch * n_rows, -1.0, 1.0);
                // Equals, the last of them in the padding of the vocabulary.
                for row in logits.chunks_mut(n_rows) {
                    row[n_rows - 1] = 2.0;
                    row[n_vocab / 2] = 2.0;
                    row[n_vocab / 3] = 2.0;
                }
                let best = host::argmax(Rows { values: &logits, stride: n_rows }, n_vocab);
                chosen = argmax(tensor(&logits, [batch, n_rows], &device), chosen, n_vocab);
                let best: Vec<i32> =
                    best.into_iter().map(|token| token.expect("finite logits") as i32).collect();
                assert!(best.iter().all(|token| *token as usize == n_vocab / 3));
                assert_eq!(ids(&chosen.newest), best, "{n_rows} rows on {name}");
                for (row, token) in best.iter().enumerate() {
                    ring[2 * row + step % 2] = *token;
                }
                assert_eq!(ids(&chosen.ring), ring, "{n_rows} rows on {name}");
                assert_eq!(ids(&chosen.count), vec![step as i32 + 1; batch]);
            }
            let set = set(chosen.newest, integers(&vec![3; batch], [batch], &device));
            assert_eq!(ids(&set), vec![3; batch], "{name}");
        }
    }
}

#[test]
fn logits_that_are_no_numbers_are_remembered_as_no_token() {
    const N_ROWS: usize = 700;
    for (name, device) in devices() {
        for lost in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for places in [vec![0], vec![1], vec![698], (0..N_ROWS).collect()] {
                let mut logits = Draw::new(3).uniform(3 * N_ROWS, -1.0, 1.0);
                // The second sequence loses some, the others only what stands for no token.
                places.iter().for_each(|place| logits[N_ROWS + place] = lost);
                (0..3).for_each(|row| logits[row * N_ROWS + N_ROWS - 1] = lost);
                let best = host::argmax(Rows { values: &logits, stride: N_ROWS }, N_ROWS - 1);
                let token = |row: usize| best[row].map_or(-1, |token| token as i32);
                let chosen = Chosen {
                    newest: integers(&[7; 3], [3], &device),
                    ring: integers(&[7; 3], [3, 1], &device),
                    count: integers(&[0; 3], [3], &device),
                };
                let logits = tensor(&logits, [3, N_ROWS], &device);
                let chosen = argmax(logits, chosen, N_ROWS - 1);
                let what = format!("{lost} at {places:?} on {name}");
                assert_eq!(ids(&chosen.ring), [token(0), -1, token(2)], "{what}");
                assert_eq!(ids(&chosen.newest), [token(0), 0, token(2)], "{what}");
                assert!(token(0) >= 0 && token(2) >= 0, "{what}");
            }
        }
    }
}

#[test]
fn copies_are_in_row_major_order_and_their_own() {
    for (name, device) in devices() {
        let x = Draw::new(8).uniform(15, -1.0, 1.0);
        let tensor = tensor::<2>(&x, [3, 5], &device);
        let turned = copied(tensor.clone().transpose(), FloatDType::F32);
        let expected: Vec<f64> = (0..15).map(|i| x[i % 3 * 5 + i / 3]).collect();
        assert_eq!(values(&turned), expected, "{name}");
        let copy = copied(tensor.clone(), FloatDType::F32);
        let over = overwritten(copy, tensor.clone() * 2.0);
        assert_eq!(values(&over), x.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), "{name}");
        assert_eq!(values(&tensor), x, "{name}");
    }
}

fn exact_product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let exact = exact(&a.device());
    a.to_device(&exact).matmul(b.to_device(&exact))
}

/// A backbone whose outputs are far from its inputs: with fresh weights steps are tiny.
fn backbone(config: MambaConfig, d_model: usize, device: &Device) -> Backbone {
    let config =
        BackboneConfig { d_model, n_layer: 3, mixer: MixerConfig::Mamba(config), mlp: None };
    config.init(&mut Init::new(9, device))
}

fn config() -> MambaConfig {
    MambaConfig { d_state: 8, dt_min: 0.01, dt_max: 1.0, ..MambaConfig::default() }
}

#[test]
fn single_tokens_are_what_the_parallel_form_says() {
    for (name, device) in devices() {
        // Few sequences and many, which go through other products.
        for (batch, config) in [
            (1, config()),
            (3, MambaConfig { d_conv: 1, ..config() }),
            (9, config()),
            (10, MambaConfig { d_conv: 1, conv_bias: false, ..config() }),
        ] {
            let d_model = 20;
            let backbone = backbone(config, d_model, &device);
            let (prompt, steps) = (3, 4);
            let x = Draw::new(10).uniform(batch * (prompt + steps) * d_model, -1.0, 1.0);
            let x: Tensor<3> = tensor(&x, [batch, prompt + steps, d_model], &device);
            let mut state = backbone.init_state(batch).unwrap();
            backbone.prefill(x.clone().narrow(1, 0, prompt), None, &mut state);
            let mut decoder = backbone.decoder(&state, FloatDType::F32).expect("a decoder");
            let weight = Init::new(11, &device).uniform([30, d_model], -1.0, 1.0);
            let saved = decoder.save();
            for repeated in [false, true] {
                let mut state = state.clone();
                decoder.restore(&saved);
                for step in prompt..prompt + steps {
                    let token: Tensor<2> = x.clone().narrow(1, step, 1).squeeze_dim(1);
                    let truth = backbone.step(token.clone(), &mut state);
                    let truth = exact_product(truth, weight.clone().transpose());
                    let stream = decoder.step(copied(token, FloatDType::F32));
                    let got = decoder.head(stream, weight.clone());
                    let what = format!("batch {batch}, step {step}, again {repeated} on {name}");
                    assert_error(&what, &values(&got), &values(&truth), 5e-6);
                }
            }
        }
    }
}

#[test]
fn matrices_in_half_precision_are_read_as_what_they_are() {
    for (name, device) in half_devices() {
        for (batch, bound) in [(2, 5e-6), (12, 2e-2)] {
            let backbone = backbone(config(), 24, &device);
            let state = backbone.init_state(batch).unwrap();
            let rounded = burn::module::Module::map(backbone.clone(), &mut Rounded);
            let x = tensor(&Draw::new(12).uniform(batch * 24, -1.0, 1.0), [batch, 24], &device);
            let weight = tensor(&Draw::new(13).uniform(30 * 24, -1.0, 1.0), [30, 24], &device);
            let half = weight.clone().cast(FloatDType::BF16);
            let mut decoder = backbone.decoder(&state, FloatDType::BF16).expect("a decoder");
            let stream = decoder.step(copied(x.clone(), FloatDType::F32));
            let got = decoder.head(stream, half.clone());
            let truth = rounded.step(x, &mut state.clone());
            let truth = exact_product(truth, half.cast(FloatDType::F32).transpose());
            let got = values(&got.cast(FloatDType::F32));
            assert_error(&format!("batch {batch} on {name}"), &got, &values(&truth), bound);
        }
    }
}

/// Rounds the matrices that a decoder keeps in half precision.
struct Rounded;

impl burn::module::ModuleMapper for Rounded {
    fn map_float<const D: usize>(
        &mut self,
        param: burn::module::Param<Tensor<D>>,
    ) -> burn::module::Param<Tensor<D>> {
        // All matrices but `a_log`, which is the only one with `d_state` columns.
        let round = D == 2 && param.val().dims()[1] != config().d_state;
        match round {
            true => param.map(|t| t.cast(FloatDType::BF16).cast(FloatDType::F32)),
            false => param,
        }
    }
}

#[test]
fn what_has_no_form_for_single_tokens_says_so() {
    let device = any_device();
    for config in
        [MambaConfig { bias: true, ..config() }, MambaConfig { selective: false, ..config() }]
    {
        let backbone = backbone(config, 8, &device);
        let state = backbone.init_state(1).unwrap();
        assert!(backbone.decoder(&state, FloatDType::F32).is_none());
        assert_eq!(state.select(&[0]).layers.len(), 3);
    }
}

#[test]
#[should_panic(expected = "decode: axis 0 of `norm` is 4, expected d_in = 3")]
fn a_norm_of_another_width_panics() {
    let device = any_device();
    product(Product {
        x: Tensor::ones([1, 3], &device),
        weight: Tensor::ones([2, 3], &device),
        norm: Some((Tensor::ones([4], &device), EPSILON)),
        add: None,
    });
}
