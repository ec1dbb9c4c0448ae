//! Time, memory and distance to the machine's limits of the selective scan and of a Mamba block.
//!
//! `cargo bench -p ssm-core --bench selective_scan [-- --long]`. Every shape is first compared with
//! the host specification; a wrong kernel is not timed. Rows are JSON, one a line.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{hint::black_box, time::Instant};

use burn::tensor::{Device, Tensor};
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

/// Largest relative RMS error of `y` against the specification in f64, on the first batch entry.
fn parity(dims: ScanDims, device: &Device) -> f64 {
    let dims = ScanDims { batch: 1, d_inner: dims.d_inner.min(80), ..dims };
    let args = scan_args(dims, device);
    fn f64s<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
        tensor.clone().into_data().convert::<f64>().try_into_vec().expect("f64 data")
    }
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
    let y = f64s(&selective_scan(args).y);
    let gap: f64 = y.iter().zip(&truth).map(|(a, b)| (a - b).powi(2)).sum();
    let scale: f64 = truth.iter().map(|v| v * v).sum();
    (gap / scale).sqrt()
}

fn bench_scan(dims: ScanDims, runs: usize, device: &Device) {
    let error = parity(dims, device);
    assert!(error < 1e-5, "parity failed for {dims:?}: {error:e}; a wrong kernel is not timed");
    let args = scan_args(dims, device);
    let fwd = median_ms(runs, || {
        black_box(selective_scan(args.clone()).y);
    });
    let tracked = device.clone().autodiff();
    let args = scan_args(dims, &tracked);
    let fwd_bwd = median_ms(runs, || {
        let leaves = ScanArgs {
            u: args.u.clone().detach().require_grad(),
            delta: args.delta.clone().detach().require_grad(),
            a: args.a.clone().detach().require_grad(),
            b: args.b.clone().detach().require_grad(),
            c: args.c.clone().detach().require_grad(),
            ..args.clone()
        };
        let u = leaves.u.clone();
        black_box(u.grad(&selective_scan(leaves).y.sum().backward()));
    });
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let elements = (batch * seq_len * d_inner * d_state) as f64;
    let bytes = (batch * seq_len * (3 * d_inner + 2 * d_state) * 4) as f64;
    println!(
        "{{\"op\":\"selective_scan\",\"batch\":{batch},\"seq_len\":{seq_len},\"d_inner\":{d_inner},\
         \"d_state\":{d_state},\"error\":{error:.1e},\"fwd_ms\":{fwd:.3},\"fwd_bwd_ms\":{fwd_bwd:.3},\
         \"fwd_gexp_per_s\":{:.2},\"fwd_gb_per_s\":{:.2}}}",
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
         \"n_layer\":{n_layer},\"fwd_ms\":{fwd:.3},\"fwd_bwd_ms\":{fwd_bwd:.3}}}"
    );
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
}

fn main() {
    let device = Device::flex();
    let long = std::env::args().any(|arg| arg == "--long");
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
    if long {
        for seq_len in [128, 512, 2048, 8192, 32_768, 65_536] {
            bench_scan(dims(1, seq_len, 256, 16), 3, &device);
        }
    }
}
