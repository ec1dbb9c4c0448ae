//! Time and memory of one training step of MambaMIL on one bag: forward and backward, two SR-Mamba
//! layers of width 512, features of width 1024.
//!
//! The peak of memory is that of a process, so each length needs its own:
//! `for n in 1000 10000 100000; do cargo bench --workspace --bench bag -- $n; done`; with `recompute`
//! after the length, the backward pass runs each layer again.

use std::time::Instant;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor, TensorData, activation},
};
use ssm_core::init::Init;
use ssm_tasks::mil::model::{BagModel, BagModelConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const D_FEATURE: usize = 1024;

/// Adds up all gradients, so that none is left out.
struct Sum<'a>(&'a burn::tensor::Gradients, f64);

impl ModuleVisitor for Sum<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = param.val().grad(self.0) {
            self.1 += f64::from(grad.abs().sum().into_scalar::<f32>());
        }
    }
}

/// Peak resident memory of this process in MiB, where Linux tells.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn main() {
    let lengths: Vec<usize> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let lengths = if lengths.is_empty() { vec![1000] } else { lengths };
    let config: BagModelConfig = toml::from_str("[mamba_mil]").expect("the defaults are valid");
    let device = Device::flex().autodiff();
    let mut model = config.init(D_FEATURE, 2, &mut Init::new(1, &device));
    if let (BagModel::MambaMil(model), true) =
        (&mut model, std::env::args().any(|text| text == "recompute"))
    {
        model.recompute_layers();
    }
    for n in lengths {
        let values: Vec<f32> =
            (0..n * D_FEATURE).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        let x: Tensor<2> = Tensor::from_data(TensorData::new(values, [n, D_FEATURE]), &device);
        let mut best = [f64::INFINITY; 2];
        let mut sum = 0.0;
        // A long bag is measured once: it is long enough.
        for _ in 0..if n > 20_000 { 1 } else { 3 } {
            let clock = Instant::now();
            let logits = model.forward(x.clone()).logits;
            let loss = -activation::log_softmax(logits, 0).narrow(0, 1, 1);
            let value = loss.clone().into_scalar::<f32>();
            assert!(value.is_finite(), "a loss of {value}");
            best[0] = best[0].min(clock.elapsed().as_secs_f64());
            let grads = loss.backward();
            let mut total = Sum(&grads, 0.0);
            model.visit(&mut total);
            best[1] = best[1].min(clock.elapsed().as_secs_f64());
            sum = total.1;
        }
        assert!(sum.is_finite() && sum > 0.0, "gradients of sum {sum}");
        #[expect(clippy::print_stdout, reason = "a bench prints what it measured")]
        {
            println!(
                "{n:>7} x {D_FEATURE}: forward {:.2} s, forward and backward {:.2} s, {:.1} us an \
                 instance, peak {:.0} MiB",
                best[0],
                best[1],
                best[1] / n as f64 * 1e6,
                peak_mib().unwrap_or(f64::NAN)
            );
        }
    }
}
