//! The loss on host memory: products as in `linear`, rows of logits to threads, lanes along a row.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use std::{borrow::Cow, sync::Arc};

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::{TensorMetadata, tensor::IntTensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    count,
    extension::{CrossEntropyOps, CrossEntropyOptions, CrossEntropyPrimitives, CrossEntropyResult},
};
use crate::ops::{
    disjoint::Disjoint,
    linear::cpu::{Product, View, run, transpose},
    primitive::{HostBackend, Maybe},
    simd::Lanes,
    threads::keep_awake,
};

/// Logits that are summed in f32 before the sum goes on in f64.
const PIECE: usize = 1024;

/// The logits of a position; they become their gradient if `scale` says by what it is multiplied.
struct Row<'a> {
    logits: &'a mut [f32],
    /// Negative if the position does not count.
    target: i32,
    scale: Option<f32>,
}

impl WithSimd for Row<'_> {
    type Output = f64;

    /// The loss in nats.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let m = Lanes { simd };
        let lanes = S::F32_LANES;
        let Self { logits, target, scale } = self;
        let Ok(target) = usize::try_from(target) else {
            if scale.is_some() {
                logits.fill(0.0);
            }
            return 0.0;
        };
        let said = logits[target];
        let (whole, rest) = logits.split_at(logits.len() / lanes * lanes);
        let mut max = m.splat(f32::NEG_INFINITY);
        for logits in whole.chunks_exact(lanes) {
            max = simd.max_f32s(max, simd.partial_load_f32s(logits));
        }
        let max = rest.iter().copied().fold(simd.reduce_max_f32s(max), f32::max);
        let (to_base_2, shift) = (m.splat(std::f32::consts::LOG2_E), m.splat(max));
        // The target stays out of the sum, as a one in f32 would hide what is left of the others.
        logits[target] = f32::NEG_INFINITY;
        let mut others = 0.0;
        for logits in logits.chunks_mut(PIECE) {
            let mut piece = m.splat(0.0);
            for logits in logits.chunks_mut(lanes) {
                let distance = m.sub(simd.partial_load_f32s(logits), shift);
                simd.partial_store_f32s(logits, m.exp2(m.mul(distance, to_base_2)));
                // Read again, zero behind the end of the row.
                piece = m.add(piece, simd.partial_load_f32s(logits));
            }
            others += f64::from(simd.reduce_sum_f32s(piece));
        }
        let distance = f64::from(max) - f64::from(said);
        let sum = others + (-distance).exp();
        if let Some(scale) = scale {
            let factor = m.splat((f64::from(scale) / sum) as f32);
            for logits in logits.chunks_mut(lanes) {
                let share = m.mul(simd.partial_load_f32s(logits), factor);
                simd.partial_store_f32s(logits, share);
            }
            logits[target] = (-f64::from(scale) * others / sum) as f32;
        }
        if distance == 0.0 { others.ln_1p() } else { distance + sum.ln() }
    }
}

/// `hidden` with zeros at the positions that do not count and hold something else than finite numbers: in
/// the gradient of the weight they are multiplied by zero, which these survive.
fn counted<'a>(hidden: &'a [f32], targets: &[i32], d_model: usize) -> Cow<'a, [f32]> {
    let mut hidden = Cow::Borrowed(hidden);
    for (i, _) in targets.iter().enumerate().filter(|(_, target)| **target < 0) {
        let row = i * d_model..(i + 1) * d_model;
        if !hidden[row.clone()].iter().all(|value| value.is_finite()) {
            hidden.to_mut()[row].fill(0.0);
        }
    }
    hidden
}

/// Loss and gradients of `hidden` and `weight`.
fn chunked(
    hidden: &[f32],
    weight: &[f32],
    targets: &[i32],
    d_model: usize,
    options: CrossEntropyOptions,
) -> (f64, Option<[Vec<f32>; 2]>) {
    let (n, n_rows) = (targets.len(), weight.len() / d_model);
    let hidden = counted(hidden, targets, d_model);
    let count = count(targets);
    let scale = options.gradients.then(|| (1.0 / count as f64) as f32);
    let chunk = options.chunk.min(n);
    let columns = transpose(weight, d_model); // [d_model, n_rows]
    let mut logits = vec![0.0; chunk * n_rows];
    let mut grads = scale.map(|_| [vec![0.0; hidden.len()], vec![0.0; weight.len()]]);
    let mut loss = 0.0;
    for first in (0..n).step_by(chunk) {
        let rows = chunk.min(n - first);
        let (targets, logits) = (&targets[first..first + rows], &mut logits[..rows * n_rows]);
        let part = first * d_model..(first + rows) * d_model;
        let hidden = View::rows(&hidden[part.clone()], d_model);
        let product = Product {
            lhs: hidden,
            rhs: View::rows(&columns, n_rows),
            first: 0,
            n: n_rows,
            k: d_model,
            add: false,
        };
        run(rows, &Disjoint::new(logits), n_rows, &[product]);
        let nats: Vec<f64> = logits
            .par_chunks_exact_mut(n_rows)
            .zip(targets)
            .map(|(logits, &target)| Arch::new().dispatch(Row { logits, target, scale }))
            .collect();
        loss += nats.iter().sum::<f64>();
        let Some([grad_hidden, grad_weight]) = &mut grads else { continue };
        let grad = View::rows(logits, n_rows);
        let of_hidden = Product {
            lhs: grad,
            rhs: View::rows(weight, d_model),
            first: 0,
            n: d_model,
            k: n_rows,
            add: false,
        };
        let of_weight = Product {
            lhs: grad.transposed(),
            rhs: hidden,
            first: 0,
            n: d_model,
            k: rows,
            add: first > 0,
        };
        run(rows, &Disjoint::new(&mut grad_hidden[part]), d_model, &[of_hidden]);
        run(n_rows, &Disjoint::new(grad_weight), d_model, &[of_weight]);
    }
    (loss / count as f64, grads)
}

fn cross_entropy<B: HostBackend>(
    input: CrossEntropyPrimitives<B>,
    targets: &[i32],
    options: CrossEntropyOptions,
) -> CrossEntropyResult<B> {
    keep_awake();
    let like = input.clone();
    let [_, d_model]: [usize; 2] = input.hidden.shape().dims();
    let (hidden, weight) = (B::values(input.hidden), B::values(input.weight));
    let (loss, grads) = chunked(hidden.as_ref(), weight.as_ref(), targets, d_model, options);
    let (hidden, weight) = match grads {
        Some([hidden, weight]) => (
            Maybe::Present(B::tensor_like(hidden, &like.hidden)),
            Maybe::Present(B::tensor_like(weight, &like.weight)),
        ),
        None => (Maybe::Absent, Maybe::Absent),
    };
    let loss = B::tensor_f32(vec![loss as f32], [1], &like.hidden);
    CrossEntropyResult { loss, hidden, weight }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl CrossEntropyOps for $backend {
            fn cross_entropy(
                input: CrossEntropyPrimitives<Self>,
                targets: Arc<[i32]>,
                _on_device: IntTensor<Self>,
                options: CrossEntropyOptions,
            ) -> CrossEntropyResult<Self> {
                cross_entropy::<Self>(input, &targets, options)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cross_entropy::host;

    /// On slices, so also where no backend for host memory is compiled in.
    #[test]
    fn what_is_no_number_at_an_ignored_position_reaches_nothing() {
        let (d_model, n_rows) = (3, 5);
        let targets = [2, -1, 0, -1];
        let number = |i: usize| (i * 7 % 11) as f32 / 5.0 - 1.0;
        let mut hidden: Vec<f32> = (0..4 * d_model).map(number).collect();
        let weight: Vec<f32> = (0..n_rows * d_model).map(|i| number(i + 3)).collect();
        hidden[3..6].fill(f32::NAN);
        hidden[10] = f32::INFINITY;
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let truth = host::cross_entropy(&wide(&hidden), &wide(&weight), &targets, d_model);
        for chunk in [1, 3, 4] {
            let options = CrossEntropyOptions { chunk, gradients: true };
            let (loss, grads) = chunked(&hidden, &weight, &targets, d_model, options);
            let [of_hidden, of_weight] = grads.unwrap();
            assert!((loss - truth.loss).abs() < 1e-6, "{loss}, expected {}", truth.loss);
            for (got, truth) in [(&of_hidden, &truth.hidden), (&of_weight, &truth.weight)] {
                let close = |(got, truth): (&f64, &f64)| (got - truth).abs() < 1e-6;
                assert!(wide(got).iter().zip(truth).all(close), "{got:?}, expected {truth:?}");
            }
            assert_eq!([&of_hidden[3..6], &of_hidden[9..]], [[0.0; 3]; 2]);
        }
    }
}
