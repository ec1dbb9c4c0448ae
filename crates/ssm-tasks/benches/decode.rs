//! Tokens a second of a language model that writes, checked against its parallel form in the same run.
//!
//! `cargo bench --features cuda --workspace --bench decode -- cuda [D_MODEL N_LAYER N_VOCAB]`; other devices
//! are `webgpu`, `webgpu:cpu` and `flex`. A prompt of 128 tokens, then greedy tokens that stay on the device
//! and are read once at the end, as a benchmark of the authors' program with its graphs does. Afterwards the
//! parallel form reads what was written, with the same rounded weights in f32, and has to give the logits of
//! the last token; its head is computed on the processor, as Burn's products on CUDA round their factors to
//! ten bits. Rows are JSON, one a line; a time is the median of five runs.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::Instant;

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use burn::tensor::DeviceKind;
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};
use ssm_core::{init::Init, mixers::MambaConfig};
use ssm_tasks::lm::{
    decoder::Decoder,
    model::{MambaLm, MambaLmConfig},
};

/// Tokens of the prompt, and of what is written in one run.
const PROMPT: usize = 128;
const WRITTEN: usize = 128;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds matrices as a decoder does.
struct Rounded(FloatDType);

impl ModuleMapper for Rounded {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // `a_log` is the only matrix that a decoder leaves in f32; its columns are the states.
        let round = D == 2 && param.val().dims()[1] != MambaConfig::default().d_state;
        if round { param.map(|t| t.cast(self.0).cast(FloatDType::F32)) } else { param }
    }
}

fn tokens(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    let ids: Vec<i32> = rows.concat().into_iter().map(|token| token as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}

fn values(logits: Tensor<2>) -> Vec<f64> {
    logits.into_data().convert::<f64>().try_into_vec().expect("f64 data")
}

/// Relative RMS error, and the share of rows whose largest value is at the same place.
fn compare(got: &[f64], truth: &[f64], batch: usize) -> [f64; 2] {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let gap = norm(&mut got.iter().zip(truth).map(|(a, b)| a - b));
    let error = gap / norm(&mut truth.iter().copied());
    let n = truth.len() / batch;
    let place = |row: &[f64]| (0..n).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let rows = got.chunks(n).zip(truth.chunks(n));
    let same = rows.filter(|(got, truth)| place(got) == place(truth)).count();
    [if error.is_finite() { error } else { f64::INFINITY }, same as f64 / batch as f64]
}

fn bench(model: &MambaLm, n_vocab: usize, batch: usize, dtype: FloatDType, device: &Device) {
    let prompt: Vec<Vec<u32>> = (0..batch)
        .map(|row| (0..PROMPT).map(|i| ((row * 7919 + i * 104_729) % n_vocab) as u32).collect())
        .collect();
    // What the decoder has, to the last bit, for the parallel form.
    let rounded = model.clone().map(&mut Rounded(dtype));
    let exact = Device::flex();
    let rounded_on_host = rounded.clone().to_device(&exact);
    let mut state = rounded.init_state(batch).expect("a causal mixer");
    let ids = tokens(&prompt, device);
    let _ = rounded.continued(ids.clone().narrow(1, 0, PROMPT - 1), None, &mut state);
    let last: Vec<u32> = prompt.iter().map(|row| row[PROMPT - 1]).collect();
    for captured in [false, true] {
        let decoder = Decoder::new(model, &state, batch, n_vocab, dtype, WRITTEN);
        let mut decoder = decoder.expect("a mixer with a form for single tokens");
        let started = Instant::now();
        let captured = captured && decoder.capture();
        let capture_s = started.elapsed().as_secs_f64();
        decoder.feed(&last);
        let mut logits = None;
        for _ in 0..WRITTEN {
            logits = Some(decoder.step());
        }
        let logits = values(logits.expect("a token").cast(FloatDType::F32));
        let written = decoder.chosen().expect("the device works");
        let mut times: Vec<f64> = (0..5)
            .map(|_| {
                let started = Instant::now();
                for _ in 0..WRITTEN {
                    decoder.step();
                }
                decoder.chosen().expect("the device works");
                started.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        // The prompt and all but the last of what was written after it.
        let rows = prompt.iter().zip(&written);
        let read: Vec<Vec<u32>> =
            rows.map(|(prompt, written)| [prompt, &written[..WRITTEN - 1]].concat()).collect();
        let hidden = rounded.hidden(tokens(&read, device));
        let [_, len, _] = hidden.dims();
        let last = hidden.narrow(1, len - 1, 1).squeeze_dim(1).to_device(&exact);
        let truth = rounded_on_host.head(last);
        let [error, same] = compare(&logits, &values(truth), batch);
        // In half precision what flows between matrix products is rounded too.
        let bound = if dtype == FloatDType::F32 || batch == 1 { 1e-4 } else { 5e-2 };
        println!(
            "{{\"op\":\"decode\",\"dtype\":\"{dtype:?}\",\"batch\":{batch},\"graph\":{captured},\
             \"tokens_per_s\":{:.0},\"ms_a_token\":{:.4},\"capture_s\":{capture_s:.2},\
             \"error\":{error:.1e},\"same_choice\":{same:.3}}}",
            (batch * WRITTEN) as f64 / times[2],
            1e3 * times[2] / WRITTEN as f64,
        );
        if error.is_nan() || error > bound {
            println!("  PARITY FAILED: {error:e}, bound {bound:e}");
        }
    }
}

/// The parallel form with one token at a time, in f32: what there is without kernels for single tokens.
fn bench_steps(model: &MambaLm, batch: usize, device: &Device) {
    let mut state = model.init_state(batch).expect("a causal mixer");
    let ids = Tensor::<1, Int>::from_data(TensorData::new(vec![1_i32; batch], [batch]), device);
    let mut run = |n: usize| {
        let started = Instant::now();
        for _ in 0..n {
            let _ = model.step(ids.clone(), &mut state);
        }
        device.sync().expect("the device works");
        started.elapsed().as_secs_f64()
    };
    run(3);
    let time = run(WRITTEN / 4);
    println!(
        "{{\"op\":\"steps\",\"dtype\":\"F32\",\"batch\":{batch},\"tokens_per_s\":{:.0}}}",
        (batch * WRITTEN / 4) as f64 / time
    );
}

fn main() {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let device = match words.first().map(String::as_str) {
        #[cfg(feature = "cuda")]
        Some("cuda") => Device::cuda(0),
        #[cfg(feature = "webgpu")]
        Some("webgpu") => Device::wgpu(DeviceKind::DefaultDevice),
        #[cfg(feature = "webgpu")]
        Some("webgpu:cpu") => Device::wgpu(DeviceKind::Cpu),
        #[cfg(feature = "vulkan")]
        Some("vulkan") => Device::vulkan(DeviceKind::DefaultDevice),
        Some("flex") => Device::flex(),
        _ => {
            println!("no device named: `-- cuda`, `-- webgpu` or `-- flex`, as far as compiled in");
            return;
        }
    };
    let sizes: Vec<usize> = words[1..].iter().filter_map(|word| word.parse().ok()).collect();
    let [d_model, n_layer, n_vocab] =
        [(0, 768), (1, 24), (2, 50_280)].map(|(i, size)| sizes.get(i).copied().unwrap_or(size));
    let config = MambaLmConfig { d_model, n_layer, ..MambaLmConfig::default() };
    let model = config.init(n_vocab, &mut Init::new(0, &device));
    println!("{{\"parameters\":{}}}", model.num_params());
    for batch in [1, 64] {
        bench_steps(&model, batch, &device);
    }
    let has_bf16 = device.supports_dtype(DType::BF16);
    let types = [FloatDType::BF16, FloatDType::F32].into_iter().skip(usize::from(!has_bf16));
    for dtype in types {
        for batch in [1, 8, 64] {
            bench(&model, n_vocab, batch, dtype, &device);
        }
    }
}
