//! Times of the kernels on a GPU, each checked against the host specification in the same run.
//!
//! `cargo bench --features cuda -p ssm-core --bench gpu -- cuda [WORD]`; devices are `cuda`, `vulkan` and
//! `webgpu`, and a word picks the rows that hold it. A row is timed first and checked afterwards, on the
//! tensors that were timed: a kernel that does not compile fails on the device's own thread, and the
//! clock would show a wonderful number. Rows are JSON, one a line; a time is the median of some
//! batches of runs with one synchronisation each, divided by their number. A row that computes something
//! else than it should is followed by `PARITY FAILED`, and the exit code is 1 in the end.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use burn::tensor::DeviceKind;
use burn::{
    backend::Dispatch,
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Device, Distribution, FloatDType, Gradients, Tensor},
};
use ssm_core::{
    init::Init,
    mixers::{MambaConfig, MixerConfig},
    nn::{Block, BlockConfig},
    ops::{
        causal_conv1d::{
            ConvArgs, causal_conv1d,
            extension::{CausalConv1dOps, ConvPrimitives},
            host::{self as conv_host, ConvDims, ConvSlices},
        },
        linear::extension::{LinearOps, LinearOptions, LinearPrimitives, Parts},
        primitive::Maybe,
        selective_scan::{
            ScanArgs,
            extension::{ScanOptions, ScanPrimitives, SelectiveScanOps},
            host::{self, ScanDims, ScanSlices},
            selective_scan,
        },
    },
};

/// Channels that are checked after each row.
const CHECKED: usize = 24;

/// Median over batches of the time of a run, in milliseconds.
fn median_ms(device: &Device, mut run: impl FnMut()) -> f64 {
    let sync = || device.sync().expect("the device works");
    for _ in 0..3 {
        run();
    }
    sync();
    let start = Instant::now();
    run();
    sync();
    // Batches of some 20 ms, and no more than half a second for all.
    let once = start.elapsed().as_secs_f64();
    let per_batch = (0.02 / once).clamp(1.0, 200.0) as usize;
    let mut times: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..per_batch {
                run();
            }
            sync();
            start.elapsed().as_secs_f64() * 1e3 / per_batch as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn uniform<const D: usize>(shape: [usize; D], low: f64, high: f64, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(low, high), device)
}

fn f64s<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec().expect("f64 data")
}

/// Relative RMS error; infinite for what is not finite.
fn error(got: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(got.len(), truth.len(), "lengths differ");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let gap = square(&mut got.iter().zip(truth).map(|(a, b)| a - b));
    let error = gap / square(&mut truth.iter().copied()).max(1e-30);
    if error.is_finite() { error } else { f64::INFINITY }
}

/// Whether a row so far computed something else than it should.
static FAILED: AtomicBool = AtomicBool::new(false);

fn check(what: &str, error: f64, bound: f64) {
    if error.is_nan() || error > bound {
        println!("  PARITY FAILED: {what}: {error:e}, bound {bound:e}");
        FAILED.store(true, Ordering::Relaxed);
    }
}

/// A scan as in a Mamba block, with skip, gate, bias and softplus.
struct Scan {
    dims: ScanDims,
    dtype: FloatDType,
    args: ScanArgs,
    grad_y: Tensor<3>,
}

impl Scan {
    fn new(dims: ScanDims, dtype: FloatDType, device: &Device) -> Self {
        let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
        let steps = |low, high| uniform([batch, seq_len, d_inner], low, high, device).cast(dtype);
        let rows = || uniform([batch, seq_len, d_state], -1.0, 1.0, device).cast(dtype);
        let channels = |low, high| uniform([d_inner], low, high, device);
        let a = uniform([d_inner, d_state], -2.0, -0.1, device);
        let mut args =
            ScanArgs::new(steps(-1.0, 1.0), steps(-4.0, 0.0), a, rows(), rows()).with_softplus();
        args.d = Some(channels(-1.0, 1.0));
        args.z = Some(steps(-2.0, 2.0));
        args.delta_bias = Some(channels(-0.1, 0.1));
        Self { dims, dtype, args, grad_y: steps(-1.0, 1.0) }
    }

    fn primitives(&self) -> ScanPrimitives<Dispatch> {
        let a = self.args.clone();
        fn maybe<const D: usize>(tensor: Option<Tensor<D>>) -> Maybe<Dispatch> {
            tensor.map(Tensor::into_dispatch).into()
        }
        ScanPrimitives {
            u: a.u.into_dispatch(),
            delta: a.delta.into_dispatch(),
            a: a.a.into_dispatch(),
            b: a.b.into_dispatch(),
            c: a.c.into_dispatch(),
            d: maybe(a.d),
            z: maybe(a.z),
            delta_bias: maybe(a.delta_bias),
            initial_state: Maybe::Absent,
            resets: Maybe::Absent,
        }
    }

    fn forward(&self, save_states: bool) -> [burn::backend::tensor::FloatTensor<Dispatch>; 2] {
        let options = ScanOptions { delta_softplus: true, save_states };
        let (y, _, states) =
            <Dispatch as SelectiveScanOps>::selective_scan_fwd(self.primitives(), options);
        [y, states]
    }

    fn backward(
        &self,
        states: burn::backend::tensor::FloatTensor<Dispatch>,
    ) -> ssm_core::ops::selective_scan::extension::ScanGradPrimitives<Dispatch> {
        let options = ScanOptions { delta_softplus: true, save_states: true };
        <Dispatch as SelectiveScanOps>::selective_scan_bwd(
            self.primitives(),
            states,
            self.grad_y.clone().into_dispatch(),
            Maybe::Absent,
            options,
        )
    }

    /// Largest error of `y` and of the gradients of `u`, `delta`, `z`, of the first channels of the
    /// last batch entry: what depends on no other channel.
    fn check(&self) -> f64 {
        let ScanDims { batch, seq_len, d_inner, d_state, .. } = self.dims;
        let few = d_inner.min(CHECKED);
        let entry = batch - 1;
        let steps = |t: Tensor<3>| f64s(t.narrow(0, entry, 1).narrow(2, 0, few));
        let rows = |t: &Tensor<3>| f64s(t.clone().narrow(0, entry, 1));
        let a = &self.args;
        let [u, delta, z, grad_y] =
            [a.u.clone(), a.delta.clone(), a.z.clone().expect("a gate"), self.grad_y.clone()]
                .map(steps);
        let (b, c) = (rows(&a.b), rows(&a.c));
        let matrix = f64s(a.a.clone().narrow(0, 0, few));
        let channels = |t: &Option<Tensor<1>>| f64s(t.clone().expect("present").narrow(0, 0, few));
        let (d, bias) = (channels(&a.d), channels(&a.delta_bias));
        let dims = ScanDims { batch: 1, seq_len, d_inner: few, d_state, n_groups: 1 };
        let x = ScanSlices {
            u: &u,
            delta: &delta,
            a: &matrix,
            b: &b,
            c: &c,
            d: Some(&d),
            z: Some(&z),
            delta_bias: Some(&bias),
            initial_state: None,
            resets: None,
            delta_softplus: true,
        };
        let truth = host::forward(dims, &x);
        let grads = host::backward(dims, &x, &grad_y, None);
        let [y, states] = self.forward(true);
        let got = self.backward(states);
        let z = match got.z {
            Maybe::Present(z) => z,
            Maybe::Absent => panic!("no gradient of the gate"),
        };
        [(y, &truth.y), (got.u, &grads.u), (got.delta, &grads.delta), (z, &grads.z)]
            .into_iter()
            .map(|(got, truth)| error(&steps(Tensor::from_dispatch(got)), truth))
            .fold(0.0, f64::max)
    }

    /// Largest error of all gradients against the host, and of a second run against the first.
    fn check_all(&self) -> [f64; 2] {
        let a = &self.args;
        let (u, delta, m) = (f64s(a.u.clone()), f64s(a.delta.clone()), f64s(a.a.clone()));
        let (b, c, z) = (f64s(a.b.clone()), f64s(a.c.clone()), a.z.clone().map(f64s));
        let (d, bias) = (a.d.clone().map(f64s), a.delta_bias.clone().map(f64s));
        let x = ScanSlices {
            u: &u,
            delta: &delta,
            a: &m,
            b: &b,
            c: &c,
            d: d.as_deref(),
            z: z.as_deref(),
            delta_bias: bias.as_deref(),
            initial_state: None,
            resets: None,
            delta_softplus: true,
        };
        let grads = host::backward(self.dims, &x, &f64s(self.grad_y.clone()), None);
        let run = || {
            let [_, states] = self.forward(true);
            let got = self.backward(states);
            let three = |t| f64s(Tensor::<3>::from_dispatch(t));
            let one = |t: Maybe<Dispatch>| match t {
                Maybe::Present(t) => f64s(Tensor::<1>::from_dispatch(t)),
                Maybe::Absent => panic!("an absent gradient"),
            };
            [
                three(got.b),
                three(got.c),
                f64s(Tensor::<2>::from_dispatch(got.a)),
                one(got.d),
                one(got.delta_bias),
            ]
        };
        let (first, second) = (run(), run());
        let truth = [&grads.b, &grads.c, &grads.a, &grads.d, &grads.delta_bias];
        let errors = first.iter().zip(truth).map(|(got, truth)| error(got, truth));
        let again = first.iter().zip(&second).map(|(a, b)| error(a, b));
        [errors.fold(0.0, f64::max), again.fold(0.0, f64::max)]
    }
}

fn bound(dtype: FloatDType) -> f64 {
    if dtype == FloatDType::F32 { 2e-6 } else { 1e-2 }
}

fn bench_scan(dims: ScanDims, dtype: FloatDType, device: &Device) {
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let small = ScanDims { batch: batch.min(2), d_inner: d_inner.min(160), ..dims };
    let small = ScanDims {
        seq_len: if batch == 1 { seq_len.min(8192) } else { 500.min(seq_len) },
        ..small
    };
    let [of_grads, again] = Scan::new(small, dtype, device).check_all();
    let scan = Scan::new(dims, dtype, device);
    let fwd = median_ms(device, || {
        scan.forward(false);
    });
    let fwd_bwd = median_ms(device, || {
        let [_, states] = scan.forward(true);
        scan.backward(states);
    });
    let tracked = device.clone().autodiff();
    let autodiff = match batch * seq_len * d_inner < 1 << 26 {
        true => {
            let scan = Scan::new(dims, dtype, &tracked);
            median_ms(device, || {
                let args = ScanArgs { u: scan.args.u.clone().require_grad(), ..scan.args.clone() };
                selective_scan(args).y.sum().backward();
            })
        }
        false => f64::NAN,
    };
    let of_steps = scan.check();
    let elements = (batch * seq_len * d_inner) as f64;
    let width = if scan.dtype == FloatDType::F32 { 4.0 } else { 2.0 };
    println!(
        "{{\"op\":\"selective_scan\",\"dtype\":\"{dtype:?}\",\"batch\":{batch},\"seq_len\":{seq_len},\
         \"d_inner\":{d_inner},\"d_state\":{d_state},\"fwd_ms\":{fwd:.4},\"fwd_bwd_ms\":{fwd_bwd:.4},\
         \"autodiff_ms\":{autodiff:.4},\"fwd_gexp_per_s\":{:.0},\"fwd_gb_per_s\":{:.0},\
         \"error\":{of_steps:.1e},\"error_of_sums\":{of_grads:.1e},\"second_run\":{again:.1e}}}",
        elements * d_state as f64 / fwd / 1e6,
        4.0 * width * elements / fwd / 1e6,
    );
    for (what, error, bound) in [
        ("outputs", of_steps, bound(dtype)),
        ("sums", of_grads, bound(dtype)),
        ("a second run", again, 0.0),
    ] {
        check(&format!("{what} of {dims:?} {dtype:?}"), error, bound);
    }
}

fn bench_conv(batch: usize, seq_len: usize, channels: usize, dtype: FloatDType, device: &Device) {
    let shape = [batch, seq_len, channels];
    let x = uniform(shape, -2.0, 2.0, device).cast(dtype);
    let grad_y = uniform(shape, -1.0, 1.0, device).cast(dtype);
    let weight = uniform([channels, 4], -1.0, 1.0, device);
    let bias = uniform([channels], -1.0, 1.0, device);
    let args = || {
        let mut args = ConvArgs::new(x.clone(), weight.clone()).with_silu();
        args.bias = Some(bias.clone());
        args
    };
    let backward = || {
        let input = ConvPrimitives {
            x: x.clone().into_dispatch(),
            weight: weight.clone().into_dispatch(),
            bias: Maybe::Present(bias.clone().into_dispatch()),
            initial_state: Maybe::Absent,
            resets: Maybe::Absent,
        };
        <Dispatch as CausalConv1dOps>::causal_conv1d_bwd(
            input,
            grad_y.clone().into_dispatch(),
            true,
        )
    };
    let fwd = median_ms(device, || {
        causal_conv1d(args());
    });
    let fwd_bwd = median_ms(device, || {
        causal_conv1d(args());
        backward();
    });
    // All steps of the last channels: taps and bias are sums over them.
    let few = channels.min(4);
    let cut = |t: Tensor<3>| f64s(t.narrow(2, channels - few, few));
    let (xs, grads) = (cut(x.clone()), cut(grad_y.clone()));
    let taps = f64s(weight.clone().narrow(0, channels - few, few));
    let biases = f64s(bias.clone().narrow(0, channels - few, few));
    let dims = ConvDims { batch, seq_len, channels: few, d_conv: 4 };
    let slices = ConvSlices {
        x: &xs,
        weight: &taps,
        bias: Some(&biases),
        initial_state: None,
        resets: None,
        silu: true,
    };
    let truth = conv_host::backward(dims, &slices, &grads);
    let got = backward();
    let of_weight = f64s(Tensor::<2>::from_dispatch(got.weight).narrow(0, channels - few, few));
    let error = [
        error(&cut(causal_conv1d(args())), &conv_host::forward(dims, &slices)),
        error(&cut(Tensor::from_dispatch(got.x)), &truth.x),
        error(&of_weight, &truth.weight),
    ]
    .into_iter()
    .fold(0.0, f64::max);
    println!(
        "{{\"op\":\"causal_conv1d\",\"dtype\":\"{dtype:?}\",\"batch\":{batch},\"seq_len\":{seq_len},\
         \"channels\":{channels},\"fwd_ms\":{fwd:.4},\"fwd_bwd_ms\":{fwd_bwd:.4},\"error\":{error:.1e}}}"
    );
    check(&format!("causal_conv1d {dtype:?}"), error, bound(dtype));
}

/// A linear map into parts and its two gradients, which are products with a transposed operand.
fn bench_linear(rows: usize, d_in: usize, widths: [usize; 3], dtype: FloatDType, device: &Device) {
    let d_out: usize = widths.iter().sum();
    let x = uniform([rows, d_in], -1.0, 1.0, device).cast(dtype);
    let weight = uniform([d_in, d_out], -1.0, 1.0, device).cast(dtype);
    let grad_y = uniform([rows, d_out], -1.0, 1.0, device).cast(dtype);
    let input = || LinearPrimitives {
        x: x.clone().into_dispatch(),
        weight: weight.clone().into_dispatch(),
        bias: Maybe::Absent,
    };
    let options = |grad_x, grad_weight| LinearOptions { widths, wide: false, grad_x, grad_weight };
    let columns: Vec<(usize, usize)> = options(true, true).columns().collect();
    let grads: Vec<Tensor<2>> = columns
        .iter()
        // A gradient is a tensor of its own.
        .map(|(from, len)| grad_y.clone().narrow(1, *from, *len).mul_scalar(1.0))
        .collect();
    let backward = |grad_x, grad_weight| {
        let part = |i: usize| Maybe::from(grads.get(i).map(|grad| grad.clone().into_dispatch()));
        let parts = Parts { first: part(0), second: part(1), third: part(2) };
        <Dispatch as LinearOps>::linear_bwd(input(), parts, options(grad_x, grad_weight))
    };
    let forward = || <Dispatch as LinearOps>::linear_fwd(input(), options(true, true));
    let start = Instant::now();
    forward();
    backward(true, true);
    device.sync().expect("the device works");
    let first = start.elapsed().as_secs_f64();
    let times = [
        median_ms(device, || drop(forward())),
        median_ms(device, || drop(backward(true, false))),
        median_ms(device, || drop(backward(false, true))),
    ];
    let tflops = times.map(|ms| 2e-9 * (rows * d_in * d_out) as f64 / ms);
    // Some rows and columns of each result, in f64.
    let few = |t: Tensor<2>| {
        let [m, n] = t.dims();
        t.narrow(0, m - m.min(8), m.min(8)).narrow(1, n - n.min(8), n.min(8))
    };
    let product = |a: Tensor<2>, b: Tensor<2>| {
        let ([m, k], [_, n]) = (a.dims(), b.dims());
        let (a, b) = (f64s(a), f64s(b));
        let at = |i: usize| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum::<f64>();
        (0..m * n).map(at).collect::<Vec<f64>>()
    };
    let last = |t: &Tensor<2>, axis: usize| {
        let size = t.dims()[axis];
        t.clone().narrow(axis, size - size.min(8), size.min(8))
    };
    let y = Tensor::cat(forward().into_iter().map(Tensor::<2>::from_dispatch).collect(), 1);
    let grads = backward(true, true);
    let grad = |grad: Maybe<Dispatch>| match grad {
        Maybe::Present(grad) => f64s(few(Tensor::from_dispatch(grad))),
        Maybe::Absent => panic!("no gradient"),
    };
    let errors = [
        error(&f64s(few(y)), &product(last(&x, 0), last(&weight, 1))),
        error(&grad(grads.x), &product(last(&grad_y, 0), last(&weight, 0).transpose())),
        error(&grad(grads.weight), &product(last(&x, 1).transpose(), last(&grad_y, 1))),
    ];
    println!(
        "{{\"op\":\"linear\",\"dtype\":\"{dtype:?}\",\"rows\":{rows},\"d_in\":{d_in},\"widths\":{widths:?},\
         \"fwd_ms\":{:.4},\"grad_x_ms\":{:.4},\"grad_weight_ms\":{:.4},\"tflop_per_s\":[{:.1},{:.1},{:.1}],\
         \"errors\":[{:.1e},{:.1e},{:.1e}],\"first_s\":{first:.1}}}",
        times[0],
        times[1],
        times[2],
        tflops[0],
        tflops[1],
        tflops[2],
        errors[0],
        errors[1],
        errors[2]
    );
    // Sums of up to 16,384 products in any order.
    let bound = if dtype == FloatDType::F32 { 1e-5 } else { 1e-2 };
    for (what, error) in ["y", "grad_x", "grad_weight"].into_iter().zip(errors) {
        check(&format!("{what} of linear {rows}x{d_in}, {widths:?} {dtype:?}"), error, bound);
    }
}

/// The gradients of all parameters.
struct Collected<'a> {
    grads: &'a Gradients,
    values: Vec<Vec<f64>>,
}

impl ModuleVisitor for Collected<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.values.push(param.val().grad(self.grads).map_or_else(Vec::new, f64s));
    }
}

/// Output of a block, and gradients of its sum with respect to `x` and all parameters.
fn block_values(block: &Block, x: &Tensor<3>) -> Vec<Vec<f64>> {
    let x = x.clone().require_grad();
    let y = block.forward(x.clone());
    let grads = y.clone().sum().backward();
    let of_x = x.grad(&grads).expect("a gradient of `x`");
    let mut collected = Collected { grads: &grads, values: vec![f64s(y.inner()), f64s(of_x)] };
    block.visit(&mut collected);
    collected.values
}

fn bench_block(batch: usize, seq_len: usize, d_model: usize, device: &Device) {
    let tracked = device.clone().autodiff();
    let block = |device: &Device| {
        BlockConfig { mixer: MixerConfig::Mamba(MambaConfig::default()), mlp: None }
            .init(d_model, &mut Init::new(2, device))
    };
    let processor = Device::flex().autodiff();
    let given = uniform([batch, seq_len, d_model], -1.0, 1.0, &Device::flex()).into_data();
    let truth = block_values(&block(&processor), &Tensor::from_data(given.clone(), &processor));
    let (block, x) = (block(&tracked), Tensor::from_data(given, &tracked));
    let ms = median_ms(device, || {
        block.forward(x.clone()).sum().backward();
    });
    let got = block_values(&block, &x);
    assert_eq!(got.len(), truth.len(), "numbers of parameters differ");
    let errors = got.iter().zip(&truth).map(|(got, truth)| error(got, truth));
    let error = errors.fold(0.0, f64::max);
    println!(
        "{{\"op\":\"mamba block\",\"batch\":{batch},\"seq_len\":{seq_len},\"d_model\":{d_model},\
         \"fwd_bwd_ms\":{ms:.4},\"error\":{error:.1e}}}"
    );
    // Against the processor's f32, through a dozen operations and back.
    check("the block, or a gradient of it", error, 1e-4);
}

/// Copy speed, and the cost of one small operation.
fn bench_limits(device: &Device) {
    let x = uniform([1 << 28], 0.0, 1.0, device);
    let ms = median_ms(device, || {
        let _ = x.clone().mul_scalar(2.0);
    });
    println!("{{\"op\":\"scale\",\"gb_per_s\":{:.0}}}", 8.0 * f64::from(1 << 28) / ms / 1e6);
    let small = uniform([1024], 0.0, 1.0, device);
    let ms = median_ms(device, || {
        let _ = small.clone().mul_scalar(2.0);
    });
    println!("{{\"op\":\"small operation\",\"ms\":{ms:.4}}}");
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let device = match words.next().as_deref() {
        #[cfg(feature = "cuda")]
        Some("cuda") => Device::cuda(0),
        #[cfg(feature = "vulkan")]
        Some("vulkan") => Device::vulkan(DeviceKind::DefaultDevice),
        #[cfg(feature = "webgpu")]
        Some("webgpu") => Device::wgpu(DeviceKind::DefaultDevice),
        #[cfg(feature = "webgpu")]
        Some("webgpu:cpu") => Device::wgpu(DeviceKind::Cpu),
        _ => {
            println!(
                "no device named: `-- cuda`, `-- vulkan` or `-- webgpu`, as far as compiled in"
            );
            return ExitCode::FAILURE;
        }
    };
    let filter = words.next();
    let wanted = |row: &str| filter.as_ref().is_none_or(|filter| row.contains(filter.as_str()));
    let has_bf16 = device.supports_dtype(DType::BF16);
    let types = [FloatDType::F32, FloatDType::BF16].into_iter().take(1 + usize::from(has_bf16));
    if wanted("limits") {
        bench_limits(&device);
    }
    for dtype in types {
        for (name, batch, seq_len, d_inner, d_state) in [
            ("scan middle", 8, 2048, 1536, 16),
            ("scan tiny", 32, 7, 256, 2),
            ("scan variates", 32, 862, 512, 16),
            ("scan short", 8, 512, 1536, 16),
            ("scan wide state", 8, 2048, 1536, 64),
            ("scan long", 1, 65_536, 1536, 16),
            ("scan longest", 1, 262_144, 1536, 16),
            ("scan large", 8, 8192, 1536, 16),
        ] {
            if wanted(name) {
                let dims = ScanDims { batch, seq_len, d_inner, d_state, n_groups: 1 };
                bench_scan(dims, dtype, &device);
            }
        }
        if wanted("conv") {
            bench_conv(8, 2048, 1536, dtype, &device);
        }
    }
    for dtype in [FloatDType::F32, FloatDType::BF16].into_iter().take(1 + usize::from(has_bf16)) {
        for (rows, d_in, widths) in [
            (16_384, 768, [3072, 0, 0]),
            (16_384, 768, [1536, 1536, 0]),
            (16_384, 1536, [768, 0, 0]),
            (16_384, 1536, [48, 16, 16]),
            (16_384, 48, [1536, 0, 0]),
            (512, 256, [1024, 0, 0]),
            (352, 256, [256, 0, 0]),
            (8192, 8192, [8192, 0, 0]),
        ] {
            // f32 takes a second for the largest.
            if wanted("linear") && (dtype == FloatDType::BF16 || d_in < 8192) {
                bench_linear(rows, d_in, widths, dtype, &device);
            }
        }
    }
    if wanted("block") {
        bench_block(2, 256, 256, &device);
    }
    if FAILED.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
