//! The triangle for the causal convolution, and its carried history.

use burn::tensor::{Bool, Device, FloatDType, Tensor, TensorData};
use ssm_core::ops::causal_conv1d::{
    ConvArgs, causal_conv1d, final_state,
    host::{self, ConvDims, ConvGrads, ConvSlices},
    reference,
};

use crate::support::{
    Draw, View, any_device, assert_error, devices, dot, finite_difference, half_devices, panic_of,
    relative_rms, tensor, values,
};

/// Which optional arguments a case has.
#[derive(Clone, Copy, Debug)]
struct Options {
    bias: bool,
    silu: bool,
    initial: bool,
    resets: bool,
}

const ALL: Options = Options { bias: true, silu: true, initial: true, resets: true };
const NONE: Options = Options { bias: false, silu: false, initial: false, resets: false };

#[derive(Clone)]
struct Case {
    dims: ConvDims,
    options: Options,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    initial: Vec<f64>,
    resets: Vec<f64>,
    grad_y: Vec<f64>,
}

impl Case {
    fn new(batch: usize, seq_len: usize, channels: usize, d_conv: usize, options: Options) -> Self {
        let mut draw = Draw::new((seq_len * 100 + channels) as u64);
        let steps = batch * seq_len * channels;
        Self {
            dims: ConvDims { batch, seq_len, channels, d_conv },
            options,
            x: draw.uniform(steps, -2.0, 2.0),
            weight: draw.uniform(channels * d_conv, -1.0, 1.0),
            bias: draw.uniform(channels, -1.0, 1.0),
            initial: draw.uniform(batch * (d_conv - 1) * channels, -2.0, 2.0),
            resets: draw
                .uniform(batch * seq_len, 0.0, 1.0)
                .iter()
                .map(|v| f64::from(u8::from(*v < 0.2)))
                .collect(),
            grad_y: draw.uniform(steps, -1.0, 1.0),
        }
    }

    fn slices(&self) -> ConvSlices<'_, f64> {
        ConvSlices {
            x: &self.x,
            weight: &self.weight,
            bias: self.options.bias.then_some(&self.bias),
            initial_state: self.options.initial.then_some(&self.initial),
            resets: self.options.resets.then_some(&self.resets),
            silu: self.options.silu,
        }
    }

    fn resets(&self, device: &Device) -> Option<Tensor<2, Bool>> {
        let resets: Vec<bool> = self.resets.iter().map(|v| *v != 0.0).collect();
        let shape = [self.dims.batch, self.dims.seq_len];
        self.options.resets.then(|| Tensor::from_data(TensorData::new(resets, shape), device))
    }

    fn args(&self, device: &Device) -> ConvArgs {
        let ConvDims { batch, seq_len, channels, d_conv } = self.dims;
        ConvArgs {
            x: tensor(&self.x, [batch, seq_len, channels], device),
            weight: tensor(&self.weight, [channels, d_conv], device),
            bias: self.options.bias.then(|| tensor(&self.bias, [channels], device)),
            silu: self.options.silu,
            initial_state: self
                .options
                .initial
                .then(|| tensor(&self.initial, [batch, d_conv - 1, channels], device)),
            resets: self.resets(device),
        }
    }

    fn run(&self, device: &Device, conv: fn(ConvArgs) -> Tensor<3>) -> (Vec<f64>, ConvGrads<f64>) {
        self.run_in(FloatDType::F32, device, conv)
    }

    /// With every argument in `dtype`, except for the history, which `Mamba` starts in any.
    fn run_in(
        &self,
        dtype: FloatDType,
        device: &Device,
        conv: fn(ConvArgs) -> Tensor<3>,
    ) -> (Vec<f64>, ConvGrads<f64>) {
        let device = device.clone().autodiff();
        let args = self.args(&device);
        let args = ConvArgs {
            x: args.x.cast(dtype).require_grad(),
            weight: args.weight.cast(dtype).require_grad(),
            bias: args.bias.map(|bias| bias.cast(dtype).require_grad()),
            initial_state: args.initial_state.map(Tensor::require_grad),
            ..args
        };
        let y = conv(args.clone());
        assert_eq!(FloatDType::from(y.dtype()), dtype);
        let y = y.cast(FloatDType::F32);
        let loss = (y.clone() * tensor(&self.grad_y, y.dims(), &device)).sum();
        let grads = loss.backward();
        let grads = ConvGrads {
            x: values(&args.x.grad(&grads).expect("gradient of x")),
            weight: values(&args.weight.grad(&grads).expect("gradient of weight")),
            bias: args.bias.map_or_else(Vec::new, |bias| {
                values(&bias.grad(&grads).expect("gradient of bias"))
            }),
            initial_state: args.initial_state.map_or_else(Vec::new, |state| {
                state.grad(&grads).map_or_else(|| vec![0.0; self.initial.len()], |g| values(&g))
            }),
        };
        (values(&y), grads)
    }
}

fn named(grads: &ConvGrads<f64>) -> [(&'static str, &[f64]); 4] {
    [
        ("grad_x", &grads.x),
        ("grad_weight", &grads.weight),
        ("grad_bias", &grads.bias),
        ("grad_initial_state", &grads.initial_state),
    ]
}

#[test]
fn host_gradients_match_finite_differences() {
    for case in [Case::new(2, 6, 3, 4, ALL), Case::new(1, 5, 2, 2, NONE)] {
        let grads = host::backward(case.dims, &case.slices(), &case.grad_y);
        type Field = fn(&mut Case) -> &mut Vec<f64>;
        let fields: [Field; 4] =
            [|c| &mut c.x, |c| &mut c.weight, |c| &mut c.bias, |c| &mut c.initial];
        for (field, (name, grad)) in fields.into_iter().zip(named(&grads)) {
            if grad.is_empty() {
                continue;
            }
            let mut moved = case.clone();
            let at = field(&mut moved).clone();
            let numeric = finite_difference(&at, 1e-6, |x| {
                field(&mut moved).copy_from_slice(x);
                dot(&host::forward(moved.dims, &moved.slices()), &moved.grad_y)
            });
            assert_error(name, grad, &numeric, 1e-7);
        }
    }
}

#[test]
fn reference_and_kernels_agree_with_the_host() {
    for (batch, seq_len, channels, d_conv, options) in [
        (1, 1, 1, 1, NONE),
        (2, 5, 6, 1, ALL),
        (3, 1, 5, 4, ALL),
        (2, 2, 64, 4, ALL),
        (2, 11, 33, 2, ALL),
        (1, 63, 70, 4, ALL),
        (3, 64, 130, 3, NONE),
        (2, 97, 19, 4, ALL),
        (2, 97, 19, 4, Options { silu: false, ..ALL }),
        (2, 97, 19, 3, Options { bias: false, ..ALL }),
        (1, 97, 19, 2, Options { initial: false, ..ALL }),
        (1, 97, 19, 5, Options { resets: false, ..ALL }),
        (2, 97, 19, 4, Options { bias: true, ..NONE }),
        (2, 97, 19, 4, Options { silu: true, ..NONE }),
        (2, 3, 19, 6, Options { initial: true, ..NONE }),
        (2, 97, 19, 6, Options { resets: true, ..NONE }),
        (1, 1025, 7, 4, ALL),
    ] {
        let case = Case::new(batch, seq_len, channels, d_conv, options);
        let y = host::forward(case.dims, &case.slices());
        let truth = host::backward(case.dims, &case.slices(), &case.grad_y);
        for (name, device) in devices() {
            let (reference_y, reference) = case.run(&device, reference::causal_conv1d);
            let (kernel_y, kernel) = case.run(&device, causal_conv1d);
            let what = format!("{:?} {options:?} on {name}", case.dims);
            assert_error(&format!("reference y {what}"), &reference_y, &y, 1e-5);
            let bound = 2.0 * relative_rms(&reference_y, &y) + 3e-7;
            assert_error(&format!("kernel y {what}"), &kernel_y, &y, bound);
            for ((tensor, truth), ((_, reference), (_, kernel))) in
                named(&truth).into_iter().zip(named(&reference).into_iter().zip(named(&kernel)))
            {
                assert_error(&format!("reference {tensor} {what}"), reference, truth, 1e-5);
                let bound = 3.0 * relative_rms(reference, truth) + 3e-7;
                assert_error(&format!("kernel {tensor} {what}"), kernel, truth, bound);
            }
        }
    }
}

#[test]
fn half_precision_is_summed_in_f32() {
    for (batch, seq_len, channels, d_conv) in
        [(2, 11, 33, 4), (1, 6, 5, 1), (2, 1, 24, 4), (2, 4, 24, 4)]
    {
        let case = Case::new(batch, seq_len, channels, d_conv, ALL);
        let y = host::forward(case.dims, &case.slices());
        let truth = host::backward(case.dims, &case.slices(), &case.grad_y);
        for (name, device) in half_devices() {
            for (dtype, bound) in [(FloatDType::BF16, 6e-3), (FloatDType::F16, 8e-4)] {
                for (path, conv) in [
                    ("reference", reference::causal_conv1d as fn(ConvArgs) -> Tensor<3>),
                    ("kernel", causal_conv1d),
                ] {
                    let what = format!("{path} in {dtype:?} on {name}, {:?}", case.dims);
                    // The bounds are about two roundings: one of the arguments, one of the result.
                    let (got, grads) = case.run_in(dtype, &device, conv);
                    assert_error(&format!("y of {what}"), &got, &y, bound);
                    for ((tensor, truth), (_, got)) in named(&truth).into_iter().zip(named(&grads))
                    {
                        assert_error(&format!("{tensor} of {what}"), got, truth, 2.0 * bound);
                    }
                }
            }
        }
    }
}

#[test]
fn the_history_has_the_dtype_of_the_input() {
    for (name, device) in half_devices() {
        let case = Case::new(2, 9, 5, 4, ALL);
        let args = case.args(&device);
        let exact = args.x.clone().cast(FloatDType::BF16);
        let state = |x: Tensor<3>| {
            final_state(x, args.initial_state.clone(), args.resets.clone(), case.dims.d_conv)
        };
        let half = state(exact.clone());
        assert_eq!(FloatDType::from(half.dtype()), FloatDType::BF16, "{name}");
        // A history is copied, so nothing is rounded again.
        assert_eq!(values(&half), values(&state(exact.cast(FloatDType::F32))), "{name}");
    }
}

#[test]
fn a_filter_of_one_tap_has_an_empty_history() {
    for (name, device) in devices() {
        let case = Case::new(2, 9, 5, 1, ALL);
        let args = case.args(&device);
        let state = final_state(args.x, args.initial_state, args.resets, 1);
        assert_eq!(state.dims(), [2, 0, 5], "{name}");
    }
}

#[test]
fn a_split_sequence_with_carried_history_equals_the_whole() {
    let case = Case::new(2, 23, 5, 4, ALL);
    for (name, device) in devices() {
        let args = case.args(&device);
        let whole = values(&causal_conv1d(args.clone()));
        for split in [1, 2, 3, 11, 22] {
            let part = |from: usize, len: usize, initial: Option<Tensor<3>>| ConvArgs {
                x: args.x.clone().narrow(1, from, len),
                resets: args.resets.clone().map(|r| r.narrow(1, from, len)),
                initial_state: initial,
                ..args.clone()
            };
            let head = part(0, split, args.initial_state.clone());
            let carried = final_state(
                head.x.clone(),
                head.initial_state.clone(),
                head.resets.clone(),
                case.dims.d_conv,
            );
            let tail = causal_conv1d(part(split, 23 - split, Some(carried)));
            let y = values(&Tensor::cat(vec![causal_conv1d(head), tail], 1));
            assert_error(&format!("split at {split} on {name}"), &y, &whole, 1e-6);
        }
    }
}

#[test]
fn convolution_is_bit_equal_for_any_number_of_threads() {
    let case = Case::new(3, 200, 150, 4, ALL);
    for (name, device) in devices() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| case.run(&device, causal_conv1d))
        };
        let (one, two, five) = (run(1), run(2), run(5));
        assert!(one.0 == two.0 && one.0 == five.0, "y differs on {name}");
        for ((tensor, a), ((_, b), (_, c))) in
            named(&one.1).into_iter().zip(named(&two.1).into_iter().zip(named(&five.1)))
        {
            assert!(a == b && a == c, "{tensor} differs between thread counts on {name}");
        }
    }
}

#[test]
fn convolution_reads_views_that_are_not_contiguous() {
    let case = Case::new(2, 20, 9, 4, ALL);
    for (name, device) in devices() {
        let (y, grads) = case.run(&device, causal_conv1d);
        let device = device.autodiff();
        let args = case.args(&device);
        let (x, weight) = (View::new(&args.x), View::new(&args.weight));
        let initial = View::new(&args.initial_state.expect("the case has a history"));
        let viewed = causal_conv1d(ConvArgs {
            x: x.tensor(),
            weight: weight.tensor(),
            initial_state: Some(initial.tensor()),
            ..case.args(&device)
        });
        assert_eq!(values(&viewed), y, "{name}");
        let loss = viewed * View::new(&tensor(&case.grad_y, [2, 20, 9], &device)).tensor();
        let of = loss.sum().backward();
        assert_eq!(x.grad(&of), grads.x, "{name}");
        assert_eq!(weight.grad(&of), grads.weight, "{name}");
        assert_eq!(initial.grad(&of), grads.initial_state, "{name}");
    }
}

/// A loss that reads nothing but the history, whose gradient is the cotangent where an input is seen.
#[test]
fn the_history_alone_has_the_right_values_and_gradients() {
    for (seq_len, d_conv) in [(9, 4), (2, 4), (1, 6), (3, 2)] {
        for options in [ALL, Options { resets: false, ..ALL }] {
            let case = Case::new(3, seq_len, 5, d_conv, options);
            let before = d_conv - 1;
            let cotangent = Draw::new(7).uniform(3 * before * 5, -1.0, 1.0);
            let mut state = vec![0.0; cotangent.len()];
            let mut grad_x = vec![0.0; case.x.len()];
            let mut grad_initial = vec![0.0; case.initial.len()];
            for (at, value) in state.iter_mut().enumerate() {
                let (entry, row, channel) = (at / (before * 5), at / 5 % before, at % 5);
                // Rows of the history and the sequence, one after the other.
                let source = seq_len + row;
                let behind = (source + 1).saturating_sub(before)..seq_len;
                if options.resets && behind.clone().any(|t| case.resets[entry * seq_len + t] != 0.0)
                {
                    continue;
                }
                if source < before {
                    let from = (entry * before + source) * 5 + channel;
                    (*value, grad_initial[from]) = (case.initial[from], cotangent[at]);
                } else {
                    let from = (entry * seq_len + source - before) * 5 + channel;
                    (*value, grad_x[from]) = (case.x[from], cotangent[at]);
                }
            }
            for (name, device) in devices() {
                let device = device.autodiff();
                let args = case.args(&device);
                let x = args.x.require_grad();
                let initial = args.initial_state.expect("the case has a history").require_grad();
                let got = final_state(x.clone(), Some(initial.clone()), args.resets, d_conv);
                assert_eq!(values(&got), state, "{seq_len}, {d_conv}, {options:?} on {name}");
                let loss = got * tensor(&cotangent, [3, before, 5], &device);
                let grads = loss.sum().backward();
                let grad = |leaf: &Tensor<3>| {
                    leaf.grad(&grads).map_or_else(Vec::new, |grad| values(&grad))
                };
                assert_eq!(grad(&x), grad_x, "{seq_len}, {d_conv}, {options:?} on {name}");
                assert_eq!(grad(&initial), grad_initial, "{seq_len}, {d_conv} on {name}");
            }
        }
    }
}

#[test]
fn nothing_crosses_a_reset() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut case = Case::new(1, 12, 5, 4, ALL);
        case.resets.fill(0.0);
        (case.resets[0], case.resets[10]) = (1.0, 1.0);
        let mut broken = case.clone();
        broken.initial.fill(bad);
        broken.x[9 * 5..][..5].fill(bad);
        for (name, device) in devices() {
            for conv in [causal_conv1d, reference::causal_conv1d as fn(ConvArgs) -> Tensor<3>] {
                let whole = values(&conv(case.args(&device)));
                let got = values(&conv(broken.args(&device)));
                for seen in [0..9 * 5, 10 * 5..12 * 5] {
                    assert_eq!(got[seen.clone()], whole[seen], "{bad} on {name}");
                }
            }
            let history = |case: &Case| {
                let args = case.args(&device);
                values(&final_state(args.x, args.initial_state, args.resets, 4))
            };
            assert_eq!(history(&broken), history(&case), "{bad} on {name}");
        }
    }
}

#[test]
fn a_wrong_shape_names_the_argument_and_the_axis() {
    let device = any_device();
    type Change = fn(&mut ConvArgs, &Device);
    let changes: [(Change, &str); 9] = [
        (|a, d| a.x = Tensor::zeros([0, 5, 4], d), "`batch` is 0, expected at least 1"),
        (|a, d| a.x = Tensor::zeros([2, 0, 4], d), "`seq_len` is 0, expected at least 1"),
        (|a, d| a.x = Tensor::zeros([2, 5, 0], d), "`channels` is 0, expected at least 1"),
        (|a, d| a.weight = Tensor::zeros([4, 0], d), "`d_conv` is 0, expected at least 1"),
        (
            |a, d| a.weight = Tensor::zeros([3, 4], d),
            "axis 0 of `weight` is 3, expected channels = 4",
        ),
        (
            |a, d| a.bias = Some(Tensor::zeros([3], d)),
            "axis 0 of `bias` is 3, expected channels = 4",
        ),
        (
            |a, d| a.initial_state = Some(Tensor::zeros([2, 4, 4], d)),
            "axis 1 of `initial_state` is 4, expected d_conv - 1 = 3",
        ),
        (
            |a, d| a.initial_state = Some(Tensor::zeros([2, 3, 5], d)),
            "axis 2 of `initial_state` is 5, expected channels = 4",
        ),
        (
            |a, d| a.resets = Some(Tensor::<2>::zeros([2, 6], d).bool()),
            "axis 1 of `resets` is 6, expected seq_len = 5",
        ),
    ];
    for (change, expected) in changes {
        let mut args = Case::new(2, 5, 4, 4, ALL).args(&device);
        change(&mut args, &device);
        let expected = format!("causal_conv1d: {expected}");
        assert_eq!(panic_of(|| causal_conv1d(args.clone())), expected);
        assert_eq!(panic_of(|| reference::causal_conv1d(args.clone())), expected);
        if !expected.contains("weight") && !expected.contains("bias") {
            let [_, d_conv] = args.weight.dims();
            let history = || final_state(args.x, args.initial_state, args.resets, d_conv);
            assert_eq!(panic_of(history), expected);
        }
    }
}
