//! The triangle for the causal convolution, and its carried history.

use burn::tensor::{Bool, Device, FloatDType, Tensor, TensorData};
use ssm_core::ops::causal_conv1d::{
    ConvArgs, causal_conv1d, final_state,
    host::{self, ConvDims, ConvGrads, ConvSlices},
    reference,
};

use crate::support::{
    Draw, assert_error, devices, dot, finite_difference, half_devices, relative_rms, tensor, values,
};

#[derive(Clone)]
struct Case {
    dims: ConvDims,
    silu: bool,
    optional: bool,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    initial: Vec<f64>,
    resets: Vec<f64>,
    grad_y: Vec<f64>,
}

impl Case {
    fn new(batch: usize, seq_len: usize, channels: usize, d_conv: usize, optional: bool) -> Self {
        let mut draw = Draw::new((seq_len * 100 + channels) as u64);
        let steps = batch * seq_len * channels;
        Self {
            dims: ConvDims { batch, seq_len, channels, d_conv },
            silu: optional,
            optional,
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
            bias: self.optional.then_some(&self.bias),
            initial_state: self.optional.then_some(&self.initial),
            resets: self.optional.then_some(&self.resets),
            silu: self.silu,
        }
    }

    fn resets(&self, device: &Device) -> Option<Tensor<2, Bool>> {
        let resets: Vec<bool> = self.resets.iter().map(|v| *v != 0.0).collect();
        let shape = [self.dims.batch, self.dims.seq_len];
        self.optional.then(|| Tensor::from_data(TensorData::new(resets, shape), device))
    }

    fn args(&self, device: &Device) -> ConvArgs {
        let ConvDims { batch, seq_len, channels, d_conv } = self.dims;
        ConvArgs {
            x: tensor(&self.x, [batch, seq_len, channels], device),
            weight: tensor(&self.weight, [channels, d_conv], device),
            bias: self.optional.then(|| tensor(&self.bias, [channels], device)),
            silu: self.silu,
            initial_state: self
                .optional
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
    for case in [Case::new(2, 6, 3, 4, true), Case::new(1, 5, 2, 2, false)] {
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
    for (batch, seq_len, channels, d_conv, optional) in [
        (1, 1, 1, 1, false),
        (2, 5, 6, 1, true),
        (3, 1, 5, 4, true),
        (2, 2, 64, 4, true),
        (2, 11, 33, 2, true),
        (1, 63, 70, 4, true),
        (3, 64, 130, 3, false),
        (1, 1025, 7, 4, true),
    ] {
        let case = Case::new(batch, seq_len, channels, d_conv, optional);
        let y = host::forward(case.dims, &case.slices());
        let truth = host::backward(case.dims, &case.slices(), &case.grad_y);
        for (name, device) in devices() {
            let (reference_y, reference) = case.run(&device, reference::causal_conv1d);
            let (kernel_y, kernel) = case.run(&device, causal_conv1d);
            let what = format!("{:?} on {name}", case.dims);
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
    for (batch, seq_len, channels, d_conv) in [(2, 11, 33, 4), (1, 6, 5, 1)] {
        let case = Case::new(batch, seq_len, channels, d_conv, true);
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
        let case = Case::new(2, 9, 5, 4, true);
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
        let case = Case::new(2, 9, 5, 1, true);
        let args = case.args(&device);
        let state = final_state(args.x, args.initial_state, args.resets, 1);
        assert_eq!(state.dims(), [2, 0, 5], "{name}");
    }
}

#[test]
fn a_split_sequence_with_carried_history_equals_the_whole() {
    let case = Case::new(2, 23, 5, 4, true);
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
#[should_panic(expected = "causal_conv1d: axis 0 of `weight` is 3, expected channels = 4")]
fn a_wrong_filter_names_the_axis() {
    let device = &devices()[0].1;
    causal_conv1d(ConvArgs::new(Tensor::ones([1, 5, 4], device), Tensor::ones([3, 2], device)));
}
