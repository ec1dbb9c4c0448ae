//! Time and memory of one training step of MambaMIL on one bag: forward and backward, two SR-Mamba
//! layers of width 512, features of width 1024.
//!
//! The peak of memory is that of a process, so each length needs its own:
//! `for n in 1000 10000 100000; do cargo bench --workspace --bench bag -- $n; done`. Words behind the
//! length: `recompute`, the backward pass runs each layer again; `cuda`, on the first GPU, as CubeCL is
//! configured by a `cubecl.toml` in the directory; `cleanup`, free pages of its pools go back to the
//! driver before the backward pass.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

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

/// What CubeCL's pools hold of a device: bytes of tensors, and of pages.
fn held(device: &Device) -> Option<[u64; 2]> {
    device.memory_pool_usage().map(|usage| [usage.bytes_in_use, usage.bytes_reserved])
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Looks at the pools of a device all the time, for the most that they ever held.
struct Watch {
    most: Arc<[AtomicU64; 2]>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(device: &Device) -> Self {
        let most: Arc<[AtomicU64; 2]> = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        let (seen, end, device) = (most.clone(), over.clone(), device.clone());
        let thread = thread::spawn(move || {
            while !end.load(Relaxed) {
                for (most, now) in seen.iter().zip(held(&device).unwrap_or_default()) {
                    most.fetch_max(now, Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { most, over, thread }
    }

    fn end(self) -> [f64; 2] {
        self.over.store(true, Relaxed);
        self.thread.join().expect("the watch ends by itself");
        [0, 1].map(|which| gb(self.most[which].load(Relaxed)))
    }
}

#[expect(clippy::print_stdout, reason = "a bench prints what it measured")]
fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is = |word: &str| words.iter().any(|given| given == word);
    let lengths: Vec<usize> = words.iter().filter_map(|text| text.parse().ok()).collect();
    let lengths = if lengths.is_empty() { vec![1000] } else { lengths };
    let config: BagModelConfig = toml::from_str("[mamba_mil]").expect("the defaults are valid");
    #[cfg(feature = "cuda")]
    let plain = if is("cuda") { Device::cuda(0) } else { Device::flex() };
    #[cfg(not(feature = "cuda"))]
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    let mut model = config.init(D_FEATURE, 2, &mut Init::new(1, &device));
    if let (BagModel::MambaMil(model), true) = (&mut model, is("recompute")) {
        model.recompute_layers();
    }
    for n in lengths {
        let values: Vec<f32> =
            (0..n * D_FEATURE).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        let x: Tensor<2> = Tensor::from_data(TensorData::new(values, [n, D_FEATURE]), &device);
        let mut best = [f64::INFINITY; 2];
        let mut sum = 0.0;
        let on_gpu = held(&plain).is_some();
        // A long bag is measured once on a processor: it is long enough. A GPU compiles kernels first,
        // and is watched in the last step, which is not timed.
        let steps = if on_gpu {
            4
        } else if n > 20_000 {
            1
        } else {
            3
        };
        for step in 0..steps {
            let watch = (on_gpu && step + 1 == steps).then(|| Watch::start(&plain));
            let clock = Instant::now();
            let logits = model.forward(x.clone()).logits;
            let loss = -activation::log_softmax(logits, 0).narrow(0, 1, 1);
            let value = loss.clone().into_scalar::<f32>();
            assert!(value.is_finite(), "a loss of {value}");
            let forward = clock.elapsed().as_secs_f64();
            if is("cleanup") {
                plain.memory_cleanup();
            }
            let kept = held(&plain);
            let grads = loss.backward();
            let mut total = Sum(&grads, 0.0);
            model.visit(&mut total);
            sum = total.1;
            if let Some(watch) = watch {
                let [used, reserved] = watch.end();
                println!(
                    "{n:>7} watched: at most {used:.2} GB of tensors, {reserved:.2} GB of pages"
                );
            } else {
                best[0] = best[0].min(forward);
                best[1] = best[1].min(clock.elapsed().as_secs_f64());
            }
            if let (Some(kept), Some(end)) = (kept, held(&plain)) {
                let [[kept, pages], [left, pages_left]] = [kept, end].map(|held| held.map(gb));
                println!(
                    "{n:>7} step {step}: behind the forward pass {kept:.2} GB of tensors, {pages:.2} GB \
                     of pages; at the end {left:.2}, {pages_left:.2}"
                );
            }
        }
        for pool in plain.memory_pool_report().unwrap_or_default() {
            println!(
                "{n:>7} pool: pages of {:.3} GB, {} now, {} at most; largest tensor {:.3} GB",
                gb(pool.page_size),
                pool.pages,
                pool.pages_peak,
                gb(pool.largest_alloc)
            );
        }
        assert!(sum.is_finite() && sum > 0.0, "gradients of sum {sum}");
        println!(
            "{n:>7} x {D_FEATURE}: forward {:.3} s, forward and backward {:.3} s, {:.1} us an \
             instance, peak {:.0} MiB",
            best[0],
            best[1],
            best[1] / n as f64 * 1e6,
            peak_mib().unwrap_or(f64::NAN)
        );
    }
}
