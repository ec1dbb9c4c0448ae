//! The norm on host memory: rows to threads, lanes along a row.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use std::mem::MaybeUninit;

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    extension::{AddRmsNormGradPrimitives, RmsNormGradPrimitives, RmsNormOps},
    matrix,
};
use crate::ops::{
    disjoint::Unwritten,
    primitive::{HostBackend, Maybe},
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
    /// Added to the gradient of `x`: what comes through the sum that `x` is.
    grad_sum: Option<&'a [f32]>,
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
        let rows = rows.zip(self.grad_x.chunks_exact_mut(width)).enumerate();
        for (row, ((x, grad_y), grad_x)) in rows {
            let grad_sum = self.grad_sum.map(|grad| &grad[row * width..(row + 1) * width]);
            let (squares, products) = sums(m, x, Some((grad_y, self.weight)));
            let r = inverse_rms(squares, width, self.epsilon);
            let (scale, shift) = (m.splat(r), m.splat(-r * r * r * products / width as f32));
            let lanes_of = x.chunks(lanes).zip(grad_y.chunks(lanes)).zip(self.weight.chunks(lanes));
            let outputs = grad_x.chunks_mut(lanes).zip(self.grad_weight.chunks_mut(lanes));
            let vectors = lanes_of.zip(outputs).enumerate();
            for (i, (((x, grad_y), weight), (grad_x, grad_weight))) in vectors {
                let at = i * lanes..i * lanes + x.len();
                let x = simd.partial_load_f32s(x);
                let scaled = m.mul(simd.partial_load_f32s(grad_y), scale);
                let weight = simd.partial_load_f32s(weight);
                let of_norm = m.fma(x, shift, m.mul(scaled, weight));
                let all = match grad_sum {
                    Some(grad) => m.add(of_norm, simd.partial_load_f32s(&grad[at])),
                    None => of_norm,
                };
                write_lanes(simd, grad_x, all);
                let sum = simd.partial_load_f32s(grad_weight);
                simd.partial_store_f32s(grad_weight, m.fma(x, scaled, sum));
            }
        }
    }
}

/// The norm of some rows, whatever type they are to be in.
fn normed(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let piece = piece_rows(weight.len()) * weight.len();
    let mut y = Unwritten::new(x.len());
    y.as_mut_slice().par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
        Arch::new().dispatch(Forward { x, weight, epsilon, y });
    });
    // SAFETY: pieces cover all rows, and `Forward` writes every element of its rows.
    unsafe { y.written() }
}

fn forward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f32,
    dtype: DType,
) -> FloatTensor<B> {
    let like = x.clone();
    let (x, weight) = (B::values(x), B::values(weight));
    B::tensor_as(normed(x.as_ref(), weight.as_ref(), epsilon), like.shape(), dtype, &like)
}

fn add_forward<B: HostBackend>(
    x: FloatTensor<B>,
    branch: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (like, like_branch) = (x.clone(), branch.clone());
    let (x, branch, weight) = (B::values(x), B::values(branch), B::values(weight));
    let (x, branch) = (x.as_ref(), branch.as_ref());
    let mut sum = Unwritten::new(x.len());
    let inputs = x.par_chunks(PIECE).zip(branch.par_chunks(PIECE));
    sum.as_mut_slice().par_chunks_mut(PIECE).zip(inputs).for_each(|(sum, (x, branch))| {
        for (sum, (x, branch)) in sum.iter_mut().zip(x.iter().zip(branch)) {
            sum.write(x + branch);
        }
    });
    // SAFETY: pieces cover all elements, and both inputs have as many.
    let sum = B::tensor_like(unsafe { sum.written() }, &like);
    // Of the sum as it goes on, should its type be a narrow one.
    let values = B::values(sum.clone());
    let y = normed(values.as_ref(), weight.as_ref(), epsilon);
    (sum, B::tensor_like(y, &like_branch))
}

/// Gradients of `x`, without a type yet, and of `weight`.
fn backward<B: HostBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad_y: FloatTensor<B>,
    grad_sum: Maybe<B>,
    epsilon: f32,
) -> (Vec<f32>, FloatTensor<B>) {
    let like_weight = weight.clone();
    let [rows, width] = matrix(&x.shape());
    let (x, weight, grad_y) = (B::values(x), B::values(weight), B::values(grad_y));
    let (x, weight, grad_y) = (x.as_ref(), weight.as_ref(), grad_y.as_ref());
    let grad_sum = B::maybe_values(grad_sum);
    let grad_sum = grad_sum.as_ref().map(AsRef::as_ref);
    let piece = piece_rows(width);
    let pieces = rows.div_ceil(piece);
    let mut partial = vec![0.0; pieces * width];
    let mut grad_x = Unwritten::new(rows * width);
    let inputs = x.par_chunks(piece * width).zip(grad_y.par_chunks(piece * width));
    let outputs =
        grad_x.as_mut_slice().par_chunks_mut(piece * width).zip(partial.par_chunks_mut(width));
    inputs.zip(outputs).enumerate().for_each(|(index, ((x, grad_y), (grad_x, grad_weight)))| {
        let first = index * piece * width;
        let grad_sum = grad_sum.map(|grad: &[f32]| &grad[first..first + x.len()]);
        let rows = Gradient { x, weight, grad_y, grad_sum, epsilon, grad_x, grad_weight };
        Arch::new().dispatch(rows);
    });
    // SAFETY: as in `normed`.
    let grad_x = unsafe { grad_x.written() };
    (grad_x, B::tensor_like(sum_outer(partial, pieces), &like_weight))
}

fn add_backward<B: HostBackend>(
    sum: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad_y: FloatTensor<B>,
    grad_sum: Maybe<B>,
    epsilon: f32,
    branch_dtype: DType,
) -> AddRmsNormGradPrimitives<B> {
    let like = sum.clone();
    let (grad, weight) = backward::<B>(sum, weight, grad_y, grad_sum, epsilon);
    if like.dtype() == branch_dtype {
        let grad = B::tensor_like(grad, &like);
        return AddRmsNormGradPrimitives { x: grad.clone(), branch: grad, weight };
    }
    AddRmsNormGradPrimitives {
        branch: B::tensor_as(grad.clone(), like.shape(), branch_dtype, &like),
        x: B::tensor_like(grad, &like),
        weight,
    }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl RmsNormOps for $backend {
            fn rms_norm_fwd(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                epsilon: f32,
                dtype: DType,
            ) -> FloatTensor<Self> {
                forward::<Self>(x, weight, epsilon, dtype)
            }

            fn rms_norm_bwd(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                grad_y: FloatTensor<Self>,
                epsilon: f32,
            ) -> RmsNormGradPrimitives<Self> {
                let like = x.clone();
                let (x, weight) = backward::<Self>(x, weight, grad_y, Maybe::Absent, epsilon);
                RmsNormGradPrimitives { x: Self::tensor_like(x, &like), weight }
            }

            fn add_rms_norm_fwd(
                x: FloatTensor<Self>,
                branch: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                epsilon: f32,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                add_forward::<Self>(x, branch, weight, epsilon)
            }

            fn add_rms_norm_bwd(
                sum: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                grad_y: FloatTensor<Self>,
                grad_sum: Maybe<Self>,
                epsilon: f32,
                branch_dtype: DType,
            ) -> AddRmsNormGradPrimitives<Self> {
                add_backward::<Self>(sum, weight, grad_y, grad_sum, epsilon, branch_dtype)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);
