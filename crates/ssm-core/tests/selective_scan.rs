//! The triangle: host f64 against finite differences, tensor reference against host, kernel against
//! host.

mod properties;

use burn::tensor::{Bool, Device, Tensor, TensorData};
use ssm_core::ops::selective_scan::{
    ScanArgs, ScanOutput,
    host::{self, ScanDims, ScanGrads, ScanSlices},
    reference, selective_scan,
};

use crate::support::{
    Draw, assert_error, devices, dot, finite_difference, half_devices, relative_rms, tensor, values,
};

/// Which optional arguments a case has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) d: bool,
    pub(crate) z: bool,
    pub(crate) bias: bool,
    pub(crate) softplus: bool,
    pub(crate) initial: bool,
    pub(crate) resets: bool,
}

pub(crate) const ALL: Options =
    Options { d: true, z: true, bias: true, softplus: true, initial: true, resets: true };
const PLAIN: Options =
    Options { d: false, z: false, bias: false, softplus: false, initial: false, resets: false };
const MAMBA: Options = Options { initial: false, resets: false, ..ALL };

/// Host values of one case, with random cotangents.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) dims: ScanDims,
    options: Options,
    pub(crate) u: Vec<f64>,
    delta: Vec<f64>,
    pub(crate) a: Vec<f64>,
    pub(crate) b: Vec<f64>,
    pub(crate) c: Vec<f64>,
    d: Vec<f64>,
    pub(crate) z: Vec<f64>,
    bias: Vec<f64>,
    initial: Vec<f64>,
    pub(crate) resets: Vec<f64>,
    pub(crate) grad_y: Vec<f64>,
    grad_final: Vec<f64>,
}

pub(crate) fn dims(
    batch: usize,
    seq_len: usize,
    d_inner: usize,
    d_state: usize,
    n_groups: usize,
) -> ScanDims {
    ScanDims { batch, seq_len, d_inner, d_state, n_groups }
}

impl Case {
    pub(crate) fn new(dims: ScanDims, options: Options) -> Self {
        let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
        let mut draw = Draw::new((seq_len * 1000 + d_inner * 10 + d_state) as u64);
        let steps = batch * seq_len * d_inner;
        let rows = batch * seq_len * n_groups * d_state;
        // Without softplus the step size itself must be positive, with it anything goes.
        let (low, high) = if options.softplus { (-4.0, 1.0) } else { (0.01, 0.5) };
        Self {
            dims,
            options,
            u: draw.uniform(steps, -1.0, 1.0),
            delta: draw.uniform(steps, low, high),
            a: draw.uniform(d_inner * d_state, -2.0, -0.1),
            b: draw.uniform(rows, -1.0, 1.0),
            c: draw.uniform(rows, -1.0, 1.0),
            d: draw.uniform(d_inner, -1.0, 1.0),
            z: draw.uniform(steps, -2.0, 2.0),
            bias: draw.uniform(d_inner, -0.005, 0.005),
            initial: draw.uniform(batch * d_inner * d_state, -1.0, 1.0),
            resets: draw
                .uniform(batch * seq_len, 0.0, 1.0)
                .iter()
                .map(|v| f64::from(u8::from(*v < 0.15)))
                .collect(),
            grad_y: draw.uniform(steps, -1.0, 1.0),
            grad_final: draw.uniform(batch * d_inner * d_state, -1.0, 1.0),
        }
    }

    fn slices(&self) -> ScanSlices<'_, f64> {
        let o = self.options;
        fn given(present: bool, values: &[f64]) -> Option<&[f64]> {
            present.then_some(values)
        }
        ScanSlices {
            u: &self.u,
            delta: &self.delta,
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: given(o.d, &self.d),
            z: given(o.z, &self.z),
            delta_bias: given(o.bias, &self.bias),
            initial_state: given(o.initial, &self.initial),
            resets: given(o.resets, &self.resets),
            delta_softplus: o.softplus,
        }
    }

    /// The arguments, leaf tensors on a device with autodiff.
    fn args(&self, device: &Device) -> ScanArgs {
        let args = self.constants(device);
        if device.is_autodiff() { leaves(args) } else { args }
    }

    fn constants(&self, device: &Device) -> ScanArgs {
        let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = self.dims;
        let o = self.options;
        let steps = |v: &[f64]| tensor(v, [batch, seq_len, d_inner], device);
        let rows = |v: &[f64]| tensor(v, [batch, seq_len, n_groups * d_state], device);
        let channels = |v: &[f64]| tensor(v, [d_inner], device);
        let resets: Vec<bool> = self.resets.iter().map(|v| *v != 0.0).collect();
        ScanArgs {
            u: steps(&self.u),
            delta: steps(&self.delta),
            a: tensor(&self.a, [d_inner, d_state], device),
            b: rows(&self.b),
            c: rows(&self.c),
            d: o.d.then(|| channels(&self.d)),
            z: o.z.then(|| steps(&self.z)),
            delta_bias: o.bias.then(|| channels(&self.bias)),
            delta_softplus: o.softplus,
            initial_state: o
                .initial
                .then(|| tensor(&self.initial, [batch, d_inner, d_state], device)),
            resets: o.resets.then(|| {
                let data = TensorData::new(resets, [batch, seq_len]);
                Tensor::<2, Bool>::from_data(data, device)
            }),
        }
    }

    pub(crate) fn truth(&self) -> Results {
        let x = self.slices();
        let out = host::forward(self.dims, &x);
        let grads = host::backward(self.dims, &x, &self.grad_y, Some(&self.grad_final));
        Results { y: out.y, final_state: out.final_state, grads }
    }

    /// Outputs and gradients through Burn's autodiff.
    pub(crate) fn run(&self, device: &Device, scan: fn(ScanArgs) -> ScanOutput) -> Results {
        let ScanDims { batch, seq_len, d_inner, d_state, .. } = self.dims;
        let device = match device.is_autodiff() {
            true => device.clone(),
            false => device.clone().autodiff(),
        };
        let args = self.args(&device);
        let out = scan(args.clone());
        let grad_y = tensor(&self.grad_y, [batch, seq_len, d_inner], &device);
        let grad_final = tensor(&self.grad_final, [batch, d_inner, d_state], &device);
        let loss = (out.y.clone() * grad_y).sum() + (out.final_state.clone() * grad_final).sum();
        let grads = loss.backward();
        fn grad<const D: usize>(tensor: &Tensor<D>, grads: &burn::tensor::Gradients) -> Vec<f64> {
            values(&tensor.grad(grads).expect("a gradient for every input"))
        }
        fn maybe<const D: usize>(
            tensor: &Option<Tensor<D>>,
            grads: &burn::tensor::Gradients,
        ) -> Vec<f64> {
            tensor.as_ref().map_or_else(Vec::new, |tensor| grad(tensor, grads))
        }
        Results {
            y: values(&out.y),
            final_state: values(&out.final_state),
            grads: ScanGrads {
                u: grad(&args.u, &grads),
                delta: grad(&args.delta, &grads),
                a: grad(&args.a, &grads),
                b: grad(&args.b, &grads),
                c: grad(&args.c, &grads),
                d: maybe(&args.d, &grads),
                z: maybe(&args.z, &grads),
                delta_bias: maybe(&args.delta_bias, &grads),
                initial_state: maybe(&args.initial_state, &grads),
            },
        }
    }
}

/// Marks every float argument as a leaf whose gradient is wanted.
fn leaves(args: ScanArgs) -> ScanArgs {
    ScanArgs {
        u: args.u.require_grad(),
        delta: args.delta.require_grad(),
        a: args.a.require_grad(),
        b: args.b.require_grad(),
        c: args.c.require_grad(),
        d: args.d.map(Tensor::require_grad),
        z: args.z.map(Tensor::require_grad),
        delta_bias: args.delta_bias.map(Tensor::require_grad),
        initial_state: args.initial_state.map(Tensor::require_grad),
        ..args
    }
}

pub(crate) struct Results {
    y: Vec<f64>,
    final_state: Vec<f64>,
    grads: ScanGrads<f64>,
}

impl Results {
    /// Outputs first, then gradients.
    pub(crate) fn named(&self) -> [(&'static str, &[f64]); 11] {
        let g = &self.grads;
        [
            ("y", &self.y),
            ("final_state", &self.final_state),
            ("grad_u", &g.u),
            ("grad_delta", &g.delta),
            ("grad_a", &g.a),
            ("grad_b", &g.b),
            ("grad_c", &g.c),
            ("grad_d", &g.d),
            ("grad_z", &g.z),
            ("grad_delta_bias", &g.delta_bias),
            ("grad_initial_state", &g.initial_state),
        ]
    }
}

#[test]
fn host_gradients_match_finite_differences() {
    for (dims, options) in [
        (dims(2, 5, 3, 2, 1), ALL),
        (dims(1, 7, 4, 3, 2), ALL),
        (dims(2, 4, 2, 1, 1), PLAIN),
        (dims(1, 4, 2, 3, 1), MAMBA),
    ] {
        let case = Case::new(dims, options);
        let truth = case.truth();
        let objective = |case: &Case| {
            let out = host::forward(case.dims, &case.slices());
            dot(&out.y, &case.grad_y) + dot(&out.final_state, &case.grad_final)
        };
        type Field = fn(&mut Case) -> &mut Vec<f64>;
        let fields: [Field; 9] = [
            |c| &mut c.u,
            |c| &mut c.delta,
            |c| &mut c.a,
            |c| &mut c.b,
            |c| &mut c.c,
            |c| &mut c.d,
            |c| &mut c.z,
            |c| &mut c.bias,
            |c| &mut c.initial,
        ];
        for (field, (name, grad)) in fields.into_iter().zip(&truth.named()[2..]) {
            if grad.is_empty() {
                continue;
            }
            let mut moved = case.clone();
            let at = field(&mut moved).clone();
            let numeric = finite_difference(&at, 1e-6, |x| {
                field(&mut moved).copy_from_slice(x);
                objective(&moved)
            });
            assert_error(&format!("{name} of {dims:?} {options:?}"), grad, &numeric, 1e-7);
        }
    }
}

/// Shapes of the parity grid: lengths around chunk borders, odd channel counts, d_state 1 to 64,
/// groups; the long ones with few channels because the reference is a loop of tensor operations.
fn grid() -> Vec<(ScanDims, Options)> {
    vec![
        (dims(3, 1, 5, 1, 1), ALL),
        (dims(2, 2, 7, 16, 1), ALL),
        (dims(1, 2, 64, 4, 1), PLAIN),
        (dims(2, 11, 33, 2, 1), MAMBA),
        (dims(1, 63, 17, 16, 1), ALL),
        (dims(3, 64, 19, 16, 1), MAMBA),
        (dims(1, 64, 70, 64, 1), MAMBA),
        (dims(2, 97, 12, 3, 4), ALL),
        (dims(1, 97, 130, 8, 2), MAMBA),
        (dims(1, 33, 67, 1, 1), PLAIN),
        (dims(1, 1025, 5, 4, 1), ALL),
        (dims(2, 97, 9, 16, 1), Options { initial: true, ..MAMBA }),
        (dims(1, 65, 16, 5, 1), Options { z: false, ..ALL }),
        (dims(1, 40, 21, 2, 1), Options { softplus: false, bias: false, ..ALL }),
    ]
}

#[test]
fn reference_and_kernels_agree_with_the_host() {
    for (dims, options) in grid() {
        let case = Case::new(dims, options);
        let truth = case.truth();
        for (device_name, device) in devices() {
            let reference = case.run(&device, reference::selective_scan);
            let kernel = case.run(&device, selective_scan);
            let all = truth.named().into_iter().zip(reference.named()).zip(kernel.named());
            for (i, (((name, truth), (_, reference)), (_, kernel))) in all.enumerate() {
                let what = format!("{name} of {dims:?} {options:?} on {device_name}");
                assert_error(&format!("reference {what}"), reference, truth, 1e-5);
                // The kernel may round differently than the reference, not worse than it.
                let factor = if i < 2 { 2.0 } else { 3.0 };
                let bound = factor * relative_rms(reference, truth) + 5e-7;
                assert_error(&format!("kernel {what}"), kernel, truth, bound);
            }
        }
    }
}

#[test]
fn gradients_hold_under_gradient_checkpointing() {
    let case = Case::new(dims(2, 37, 9, 4, 1), ALL);
    let truth = case.truth();
    for (name, device) in devices() {
        let got = case.run(&device.autodiff().gradient_checkpointing(), selective_scan);
        for ((tensor, truth), (_, got)) in truth.named().into_iter().zip(got.named()) {
            assert_error(&format!("{tensor} on {name}"), got, truth, 1e-5);
        }
    }
}

#[test]
fn a_loss_on_one_output_only_has_the_right_gradients() {
    for (use_y, use_final) in [(true, false), (false, true)] {
        let mut case = Case::new(dims(2, 35, 6, 3, 1), ALL);
        if !use_y {
            case.grad_y.fill(0.0);
        }
        if !use_final {
            case.grad_final.fill(0.0);
        }
        let truth = case.truth();
        for (name, device) in devices() {
            let device = device.autodiff();
            let args = case.args(&device);
            let out = selective_scan(args.clone());
            let [batch, seq_len, d_inner] = out.y.dims();
            let loss = if use_y {
                (out.y * tensor(&case.grad_y, [batch, seq_len, d_inner], &device)).sum()
            } else {
                let shape = out.final_state.dims();
                (out.final_state * tensor(&case.grad_final, shape, &device)).sum()
            };
            let grads = loss.backward();
            let grad_u = values(&args.u.grad(&grads).expect("gradient of u"));
            let grad_a = values(&args.a.grad(&grads).expect("gradient of a"));
            assert_error(&format!("grad_u on {name}"), &grad_u, &truth.grads.u, 1e-5);
            assert_error(&format!("grad_a on {name}"), &grad_a, &truth.grads.a, 1e-5);
        }
    }
}

#[test]
fn half_precision_inputs_keep_an_f32_state() {
    use burn::tensor::FloatDType;
    let cases = [dims(2, 60, 10, 8, 1), dims(2, 1, 24, 16, 1), dims(2, 4, 24, 16, 1)]
        .map(|dims| Case::new(dims, MAMBA));
    for (case, (name, device)) in
        cases.iter().flat_map(|case| half_devices().into_iter().map(move |device| (case, device)))
    {
        let truth = case.truth();
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            for scan in [selective_scan, reference::selective_scan as fn(ScanArgs) -> ScanOutput] {
                let device = device.clone().autodiff();
                let args = case.constants(&device);
                let half = leaves(ScanArgs {
                    u: args.u.cast(dtype),
                    delta: args.delta.cast(dtype),
                    b: args.b.cast(dtype),
                    c: args.c.cast(dtype),
                    z: args.z.map(|z| z.cast(dtype)),
                    ..args
                });
                let out = scan(half.clone());
                assert_eq!(out.final_state.dtype(), burn::tensor::DType::F32);
                assert_eq!(FloatDType::from(out.y.dtype()), dtype);
                assert_error(name, &values(&out.y), &truth.y, 2e-2);
                let y = out.y.cast(FloatDType::F32);
                let loss = y * tensor(&case.grad_y, half.u.dims(), &device);
                let state = tensor(&case.grad_final, out.final_state.dims(), &device);
                let grads = (loss.sum() + (out.final_state * state).sum()).backward();
                for (input, half, truth) in [
                    ("u", &half.u, &truth.grads.u),
                    ("delta", &half.delta, &truth.grads.delta),
                    ("b", &half.b, &truth.grads.b),
                    ("c", &half.c, &truth.grads.c),
                ] {
                    let grad = half.grad(&grads).expect("a gradient for every input");
                    let what = format!("gradient of {input} in {dtype:?} on {name}");
                    assert_eq!(FloatDType::from(grad.dtype()), dtype, "{what}");
                    assert_error(&what, &values(&grad), truth, 2e-2);
                }
                let grad_a = half.a.grad(&grads).expect("a gradient for every input");
                assert_error(name, &values(&grad_a), &truth.grads.a, 2e-2);
            }
        }
    }
}
