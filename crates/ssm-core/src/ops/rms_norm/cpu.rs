//! The norm on host memory: rows to threads, lanes along a row.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use std::mem::MaybeUninit;

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::{TensorMetadata, tensor::FloatTensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    extension::{RmsNormGradPrimitives, RmsNormOps},
    matrix,
};
use crate::ops::{
    disjoint::Unwritten,
    primitive::HostBackend,
    simd::{Lanes, sum_outer, write_lanes},
};

/// Elements of the rows that one thread takes at a time. A constant, since each piece leaves a partial
/// gradient of the weight: how those are added must not depend on the machine.
const PIECE: usize = 1 << 14;

/// Rows that a thread takes at a time.
fn piece_rows(width: usize) -> usize {
    (PIECE / width).max(1)
}

/// `sum(x^2)` and, with `grad`, `sum(x grad weight)` of one row.
#[inline(always)]
fn sums<S: Simd>(m: Lanes<S>, x: &[f32], grad: Option<(&[f32], &[f32])>) -> (f32, f32) {
    let (simd, lanes) = (m.simd, S::F32_LANES);
    let (mut squares, mut products) = (m.splat(0.0), m.splat(0.0));
    for (i, x) in x.chunks(lanes).enumerate() {
        let at = i * lanes..i * lanes + x.len();
        let x = simd.partial_load_f32s(x);
        squares = m.fma(x, x, squares);
        if let Some((grad, weight)) = grad {
            let grad = simd.partial_load_f32s(&grad[at.clone()]);
            let weight = simd.partial_load_f32s(&weight[at]);
            products = m.fma(x, m.mul(grad, weight), products);
        }
    }
    (simd.reduce_sum_f32s(squares), simd.reduce_sum_f32s(products))
}

#[inline(always)]
fn inverse_rms(squares: f32, width: usize, epsilon: f32) -> f32 {
    (squares / width as f32 + epsilon).sqrt().recip()
}

/// Some rows forwards.
struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    y: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let m = Lanes { simd };
        let (width, lanes) = (self.weight.len(), S::F32_LANES);
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let (squares, _) = sums(m, x, None);
            let r = m.splat(inverse_rms(squares, width, self.epsilon));
            let rows = x.chunks(lanes).zip(self.weight.chunks(lanes)).zip(y.chunks_mut(lanes));
            for ((x, weight), y) in rows {
                let (x, weight) = (simd.partial_load_f32s(x), simd.partial_load_f32s(weight));
                write_lanes(simd, y, m.mul(m.mul(x, r), weight));
            }
        }
    }
}

/// Some rows backwards; `grad_weight` starts at zero.
struct Gradient<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    grad_y: &'a [f32],
    epsilon: f32,
    grad_x: &'a mut [MaybeUninit<f32>],
    grad_weight: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let m = Lanes { simd };
        let (width, lanes) = (self.weight.len(), S::F32_LANES);
        let rows = self.x.chunks_exact(width).zip(self.grad_y.chunks_exact(width));
        for ((x, grad_y), grad_x) in rows.zip(self.grad_x.chunks_exact_mut(width)) {
            let (squares, products) = sums(m, x, Some((grad_y, self.weight)));
            let r = inverse_rms(squares, width, self.epsilon);
            let (scale, shift) = (m.splat(r), m.splat(-r * r * r * products / width as f32));
            let lanes_of = x.chunks(lanes).zip(grad_y.chunks(lanes)).zip(self.weight.chunks(lanes));
            let outputs = grad_x.chunks_mut(lanes).zip(self.grad_weight.chunks_mut(lanes));
            for (((x, grad_y), weight), (grad_x, grad_weight)) in lanes_of.zip(outputs) {
                let x = simd.partial_load_f32s(x);
                let scaled = m.mul(simd.partial_load_f32s(grad_y), scale);
                let weight = simd.partial_load_f32s(weight);
                write_lanes(simd, grad_x, m.fma(x, shift, m.mul(scaled, weight)));
                let sum = simd.partial_load_f32s(grad_weight);
                simd.partial_store_f32s(grad_weight, m.fma(x, scaled, sum));
            }
        }
    }
}

fn forward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f32,
) -> FloatTensor<B> {
    let like = x.clone();
    let [rows, width] = matrix(&x.shape());
    let (x, weight) = (B::values(x), B::values(weight));
    let (x, weight) = (x.as_ref(), weight.as_ref());
    let piece = piece_rows(width) * width;
    let mut y = Unwritten::new(rows * width);
    y.as_mut_slice().par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
        Arch::new().dispatch(Forward { x, weight, epsilon, y });
    });
    // SAFETY: pieces cover all rows, and `Forward` writes every element of its rows.
    let y = unsafe { y.written() };
    B::tensor_like(y, &like)
}

fn backward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad_y: FloatTensor<B>,
    epsilon: f32,
) -> RmsNormGradPrimitives<B> {
    let (like_x, like_weight) = (x.clone(), weight.clone());
    let [rows, width] = matrix(&x.shape());
    let (x, weight, grad_y) = (B::values(x), B::values(weight), B::values(grad_y));
    let (x, weight, grad_y) = (x.as_ref(), weight.as_ref(), grad_y.as_ref());
    let piece = piece_rows(width);
    let pieces = rows.div_ceil(piece);
    let mut partial = vec![0.0; pieces * width];
    let mut grad_x = Unwritten::new(rows * width);
    let inputs = x.par_chunks(piece * width).zip(grad_y.par_chunks(piece * width));
    let outputs =
        grad_x.as_mut_slice().par_chunks_mut(piece * width).zip(partial.par_chunks_mut(width));
    inputs.zip(outputs).for_each(|((x, grad_y), (grad_x, grad_weight))| {
        let rows = Gradient { x, weight, grad_y, epsilon, grad_x, grad_weight };
        Arch::new().dispatch(rows);
    });
    // SAFETY: as in `forward`.
    let grad_x = unsafe { grad_x.written() };
    RmsNormGradPrimitives {
        x: B::tensor_like(grad_x, &like_x),
        weight: B::tensor_like(sum_outer(partial, pieces), &like_weight),
    }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl RmsNormOps for $backend {
            fn rms_norm_fwd(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                epsilon: f32,
            ) -> FloatTensor<Self> {
                forward::<Self>(x, weight, epsilon)
            }

            fn rms_norm_bwd(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                grad_y: FloatTensor<Self>,
                epsilon: f32,
            ) -> RmsNormGradPrimitives<Self> {
                backward::<Self>(x, weight, grad_y, epsilon)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);
