//! Time, memory and distance to the machine's limits of the selective scan and of a Mamba block.
//!
//! `cargo bench --workspace --bench selective_scan [-- limits|scan|block|layers|growth]`; `growth` only
//! runs when it is named. Every shape is first compared with another way to the same numbers; what is
//! wrong is not timed. Rows are JSON, one a line, times are medians.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{f32::consts::LN_2, hint::black_box, time::Instant};

use burn::tensor::{Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use ssm_core::{
    init::Init,
    mixers::{MambaConfig, MixerConfig},
    nn::{Backbone, BackboneConfig, Block, BlockConfig},
    ops::selective_scan::{
        ScanArgs,
        host::{self, ScanDims, ScanSlices},
        selective_scan,
    },
};

/// The allocator of the binary: tensors of some megabytes are made and dropped all the time, and the
/// system's allocator returns each to the kernel and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Median of `n` timed runs after one that is not timed, in milliseconds.
fn median_ms(n: usize, mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..n)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[n / 2]
}

fn scan_args(dims: ScanDims, device: &Device) -> ScanArgs {
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let mut init = Init::new(1, device);
    let steps = [batch, seq_len, d_inner];
    let u = init.uniform(steps, -1.0, 1.0);
    let delta = init.uniform(steps, -4.0, 0.0);
    let a = init.uniform([d_inner, d_state], -2.0, -0.1);
    let b = init.uniform([batch, seq_len, d_state], -1.0, 1.0);
    let c = init.uniform([batch, seq_len, d_state], -1.0, 1.0);
    ScanArgs::new(u, delta, a, b, c).with_softplus()
}

fn f64s<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().into_data().convert::<f64>().try_into_vec().expect("f64 data")
}

fn rms_error(got: &[f64], truth: &[f64]) -> f64 {
    let gap: f64 = got.iter().zip(truth).map(|(a, b)| (a - b).powi(2)).sum();
    (gap / truth.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

/// Largest relative RMS error of `y` and of all gradients against the specification in f64.
///
/// The specification takes its time, so at most two batch entries, 1,024 steps and 80 channels.
fn parity(dims: ScanDims, device: &Device) -> f64 {
    let dims = ScanDims {
        batch: dims.batch.min(2),
        seq_len: dims.seq_len.min(1024),
        d_inner: dims.d_inner.min(80),
        ..dims
    };
    let args = leaves(&scan_args(dims, device));
    let (u, delta, a) = (f64s(&args.u), f64s(&args.delta), f64s(&args.a));
    let (b, c) = (f64s(&args.b), f64s(&args.c));
    let x = ScanSlices {
        u: &u,
        delta: &delta,
        a: &a,
        b: &b,
        c: &c,
        d: None,
        z: None,
        delta_bias: None,
        initial_state: None,
        resets: None,
        delta_softplus: true,
    };
    let truth = host::forward(dims, &x).y;
    // The loss is the sum of squares, so the gradient of `y` depends on the place.
    let grad_y: Vec<f64> = truth.iter().map(|y| 2.0 * y).collect();
    let truths = host::backward(dims, &x, &grad_y, None);
    let y = selective_scan(args.clone()).y;
    let grads = y.clone().square().sum().backward();
    let grad = |tensor: &Tensor<3>| f64s(&tensor.grad(&grads).expect("a gradient"));
    [
        (f64s(&y), truth),
        (grad(&args.u), truths.u),
        (grad(&args.delta), truths.delta),
        (f64s(&args.a.grad(&grads).expect("gradient of a")), truths.a),
        (grad(&args.b), truths.b),
        (grad(&args.c), truths.c),
    ]
    .iter()
    .map(|(got, truth)| rms_error(got, truth))
    .fold(0.0, f64::max)
}

/// The arguments as leaves of a new graph.
fn leaves(args: &ScanArgs) -> ScanArgs {
    ScanArgs {
        u: args.u.clone().detach().require_grad(),
        delta: args.delta.clone().detach().require_grad(),
        a: args.a.clone().detach().require_grad(),
        b: args.b.clone().detach().require_grad(),
        c: args.c.clone().detach().require_grad(),
        ..args.clone()
    }
}

/// Forgets the highest memory use of this process so far, where the system can.
#[allow(clippy::disallowed_methods, reason = "a switch of the kernel, no file")]
fn reset_peak_memory() {
    // Linux 4.0 and later; elsewhere the number below covers the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Highest memory use since the last reset in MiB, where the system tells it.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

fn bench_scan(dims: ScanDims, runs: usize, device: &Device) {
    let tracked = device.clone().autodiff();
    let error = parity(dims, &tracked);
    assert!(error < 1e-5, "parity failed for {dims:?}: {error:e}; a wrong kernel is not timed");
    reset_peak_memory();
    let args = scan_args(dims, device);
    let fwd = median_ms(runs, || {
        black_box(selective_scan(args.clone()).y);
    });
    let args = scan_args(dims, &tracked);
    let fwd_bwd = median_ms(runs, || {
        let leaves = leaves(&args);
        let u = leaves.u.clone();
        black_box(u.grad(&selective_scan(leaves).y.sum().backward()));
    });
    let peak = peak_memory_mib().map_or("null".to_owned(), |mib| format!("{mib:.0}"));
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let elements = (batch * seq_len * d_inner * d_state) as f64;
    let bytes = (batch * seq_len * (3 * d_inner + 2 * d_state) * 4) as f64;
    println!(
        "{{\"op\":\"selective_scan\",\"batch\":{batch},\"seq_len\":{seq_len},\"d_inner\":{d_inner},\
         \"d_state\":{d_state},\"error\":{error:.1e},\"fwd_ms\":{fwd:.3},\"fwd_bwd_ms\":{fwd_bwd:.3},\
         \"fwd_gexp_per_s\":{:.2},\"fwd_gb_per_s\":{:.2},\"peak_mib\":{peak}}}",
        elements / fwd / 1e6,
        bytes / fwd / 1e6,
    );
}

fn bench_block(batch: usize, seq_len: usize, d_model: usize, n_layer: usize, device: &Device) {
    let shape = [batch, seq_len, d_model];
    let build = |device: &Device| {
        let mut init = Init::new(2, device);
        let config = BackboneConfig {
            d_model,
            n_layer,
            mixer: MixerConfig::Mamba(MambaConfig::default()),
            mlp: None,
        };
        let block = BlockConfig { mixer: config.mixer.clone(), mlp: None };
        (block.init(d_model, &mut init), config.init(&mut init))
    };
    let x = |device: &Device| Init::new(3, device).uniform(shape, -1.0, 1.0);
    let (block, backbone) = build(device);
    let input = x(device);
    let run = |input: Tensor<3>, block: &Block, backbone: &Backbone| {
        if n_layer == 1 { block.forward(input) } else { backbone.forward(input) }
    };
    // The recurrent form is another way to the same numbers.
    let truth = {
        let mut state = block.init_state(batch).expect("a causal mixer");
        let steps = (0..seq_len.min(32))
            .map(|t| block.prefill(input.clone().narrow(1, t, 1), None, &mut state));
        Tensor::cat(steps.collect(), 1)
    };
    let got = block.forward(input.clone().narrow(1, 0, truth.dims()[1]));
    let error = rms_error(&f64s(&got), &f64s(&truth));
    assert!(error < 1e-5, "parity failed for the block: {error:e}; a wrong block is not timed");
    let fwd = median_ms(if n_layer == 1 { 61 } else { 7 }, || {
        black_box(run(input.clone(), &block, &backbone));
    });
    let tracked = device.clone().autodiff();
    let (block, backbone) = build(&tracked);
    let input = x(&tracked);
    let fwd_bwd = median_ms(if n_layer == 1 { 61 } else { 7 }, || {
        black_box(run(input.clone(), &block, &backbone).sum().backward());
    });
    println!(
        "{{\"op\":\"mamba\",\"batch\":{batch},\"seq_len\":{seq_len},\"d_model\":{d_model},\
         \"n_layer\":{n_layer},\"error\":{error:.1e},\"fwd_ms\":{fwd:.3},\"fwd_bwd_ms\":{fwd_bwd:.3}}}"
    );
}

/// Powers of two of numbers that stay in the first cache, and nothing else: the scan's forward pass
/// takes one for every state and step.
struct Exponentials {
    rounds: usize,
}

impl Exponentials {
    const LEN: usize = 1024;
}

impl WithSimd for Exponentials {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let values: [f32; Self::LEN] = std::array::from_fn(|i| -(i as f32) / 64.0);
        let (vectors, _) = S::as_simd_f32s(&values);
        // The Taylor series costs what a minimax polynomial of its degree does.
        let taylor = [1.0, LN_2, 0.240_226_5, 0.055_504_1, 0.009_618_1, 0.001_333_4, 0.000_154];
        let taylor = taylor.map(|c| simd.splat_f32s(c));
        // 1.5 * 2^23 leaves the nearest integer in the low bits, 127 more the bias of an exponent.
        let round = simd.splat_f32s(12_582_912.0 + 127.0);
        let mut sum = [simd.splat_f32s(0.0); 4];
        for _ in 0..self.rounds {
            for four in black_box(vectors).chunks_exact(4) {
                for (sum, x) in sum.iter_mut().zip(four) {
                    let biased = simd.add_f32s(*x, round);
                    let f = simd.sub_f32s(*x, simd.sub_f32s(biased, round));
                    let mut p = taylor[6];
                    for c in taylor[..6].iter().rev() {
                        p = simd.mul_add_e_f32s(p, f, *c);
                    }
                    let bits = simd.transmute_u32s_f32s(biased);
                    let power = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
                    *sum = simd.mul_add_e_f32s(p, simd.transmute_f32s_u32s(power), *sum);
                }
            }
        }
        let [a, b, c, d] = sum;
        simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
    }
}

/// What this machine can do: multiply, copy, and take exponentials.
fn bench_limits(device: &Device) {
    for n in [512, 1024] {
        let a = Init::new(4, device).uniform([n, n], -1.0, 1.0);
        let ms = median_ms(9, || {
            black_box(a.clone().matmul(a.clone()).into_data());
        });
        let gflops = 2.0 * (n as f64).powi(3) / ms / 1e6;
        println!("{{\"op\":\"matmul\",\"n\":{n},\"ms\":{ms:.3},\"gflop_per_s\":{gflops:.1}}}");
    }
    let from = vec![1.0_f32; 1 << 26];
    let mut to = vec![0.0_f32; 1 << 26];
    let ms = median_ms(5, || to.copy_from_slice(black_box(&from)));
    println!("{{\"op\":\"copy\",\"gb_per_s\":{:.1}}}", 2.0 * f64::from(1 << 28) / ms / 1e6);
    let rounds = 1 << 14;
    let threads = rayon::current_num_threads();
    let ms = median_ms(9, || {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(Arch::new().dispatch(Exponentials { rounds }));
        });
    });
    let count = (threads * rounds * Exponentials::LEN) as f64;
    println!("{{\"op\":\"exp2 alone\",\"gexp_per_s\":{:.2}}}", count / ms / 1e6);
}

fn main() {
    // In the pool, as the training loop.
    rayon::scope(|_| run());
}

fn run() {
    let device = Device::flex();
    let dims = |batch, seq_len, d_inner, d_state| ScanDims {
        batch,
        seq_len,
        d_inner,
        d_state,
        n_groups: 1,
    };
    // A word on the command line picks the rows that hold it, as with cargo's own benches.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let wanted = |op: &str| filter.as_ref().is_none_or(|filter| op.contains(filter.as_str()));
    if wanted("limits") {
        bench_limits(&device);
    }
    if wanted("scan") {
        bench_scan(dims(8, 512, 512, 16), 9, &device);
        bench_scan(dims(32, 11, 256, 2), 21, &device);
    }
    if wanted("block") {
        bench_block(2, 256, 256, 1, &device);
    }
    if wanted("layers") {
        bench_block(8, 256, 256, 4, &device);
    }
    if filter.as_deref() == Some("growth") {
        for seq_len in [128, 512, 2048, 8192, 32_768, 65_536] {
            bench_scan(dims(1, seq_len, 256, 16), 3, &device);
        }
    }
}
