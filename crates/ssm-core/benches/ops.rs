//! The operations around the scan, at the shapes of one Mamba-1 block: batch 2, seq_len 256, d_model 256.
//!
//! `cargo bench --workspace --bench ops [-- NAME]`. Every operation is first compared with its
//! specification or with Burn's own function; a wrong kernel is not timed. Rows are JSON, one a line.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{hint::black_box, time::Instant};

use burn::{
    nn::RmsNormConfig,
    tensor::{Device, Tensor, activation},
};
use ssm_core::{
    init::Init,
    ops::{
        causal_conv1d::{self, ConvArgs, causal_conv1d},
        linear::linear,
        pointwise::{gelu, reverse},
    },
};

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUNS: usize = 101;

/// Median of [`RUNS`] timed runs after one that is not timed, in milliseconds.
fn median_ms(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

/// Relative RMS distance of two tensors.
fn distance<const D: usize>(got: Tensor<D>, truth: Tensor<D>) -> f64 {
    let f64s = |tensor: Tensor<D>| -> Vec<f64> {
        tensor.into_data().convert::<f64>().try_into_vec().expect("f64 data")
    };
    let (got, truth) = (f64s(got), f64s(truth));
    let gap: f64 = got.iter().zip(&truth).map(|(a, b)| (a - b).powi(2)).sum();
    (gap / truth.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

/// Compares `op` with `truth`, outputs and gradients of the input, then times it.
///
/// `elements` are read and written once by an ideal forward pass.
fn bench(
    name: &str,
    x: &Tensor<3>,
    elements: usize,
    op: impl Fn(Tensor<3>) -> Tensor<3>,
    truth: impl Fn(Tensor<3>) -> Tensor<3>,
) {
    let with_gradient = |f: &dyn Fn(Tensor<3>) -> Tensor<3>| {
        let x = x.clone().detach().require_grad();
        let y = f(x.clone());
        // A square makes the gradient depend on the place.
        let grads = (y.clone() * y.clone()).sum().backward();
        (y.inner(), x.grad(&grads).expect("gradient of x"))
    };
    let (got, truth) = (with_gradient(&op), with_gradient(&truth));
    let error = distance(got.0, truth.0).max(distance(got.1, truth.1));
    assert!(error < 1e-5, "parity failed for {name}: {error:e}; a wrong kernel is not timed");
    let inner = x.clone().inner();
    let fwd = median_ms(|| drop(black_box(op(inner.clone()))));
    let fwd_bwd = median_ms(|| {
        let x = x.clone().detach().require_grad();
        black_box(op(x).sum().backward());
    });
    println!(
        "{{\"op\":\"{name}\",\"error\":{error:.1e},\"fwd_ms\":{fwd:.3},\"fwd_bwd_ms\":{fwd_bwd:.3},\
         \"fwd_gb_per_s\":{:.1}}}",
        (elements * size_of::<f32>()) as f64 / fwd / 1e6,
    );
}

fn main() {
    let device = Device::flex().autodiff();
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let wanted = |op: &str| filter.as_ref().is_none_or(|filter| op.contains(filter.as_str()));
    let mut init = Init::new(5, &device);
    let mut x = |width| init.uniform([2, 256, width], -1.0, 1.0);
    let (wide, narrow) = (x(512), x(256));
    let len = wide.shape().num_elements();
    if wanted("causal_conv1d") {
        let mut init = Init::new(6, &device);
        let (weight, bias) = (init.uniform([512, 4], -0.5, 0.5), init.uniform([512], -0.5, 0.5));
        let args = |x| ConvArgs { bias: Some(bias.clone()), ..ConvArgs::new(x, weight.clone()) };
        bench(
            "causal_conv1d",
            &wide,
            2 * len,
            |x| causal_conv1d(args(x).with_silu()),
            |x| causal_conv1d::reference::causal_conv1d(args(x).with_silu()),
        );
    }
    if wanted("gelu") {
        bench("gelu", &wide, 2 * len, gelu, activation::gelu);
    }
    if wanted("reverse") {
        bench("reverse", &wide, 2 * len, reverse, |x| x.flip([1]));
    }
    for (name, x, d_out) in [("linear_in", &narrow, 1024), ("linear_out", &wide, 256)] {
        if wanted(name) {
            let [_, _, d_in] = x.dims();
            let layer = Init::new(7, &device).linear(d_in, d_out, false);
            let elements = x.shape().num_elements() + d_in * d_out + 512 * d_out;
            bench(name, x, elements, |x| linear(&layer, x), |x| layer.forward(x));
        }
    }
    if wanted("rms_norm") {
        let norm = RmsNormConfig::new(256).init(&device);
        let f = |x| norm.forward(x);
        bench("rms_norm", &narrow, len, f, f);
    }
}
