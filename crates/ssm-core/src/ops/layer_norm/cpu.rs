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
    extension::{LayerNormGradPrimitives, LayerNormOps, LayerNormPrimitives},
    matrix,
};
use crate::ops::{
    disjoint::Unwritten,
    primitive::{HostBackend, Maybe},
    simd::{Lanes, sum_outer, write_lanes},
};

/// Elements of the rows that one thread takes at a time. A constant, since each piece leaves partial
/// gradients of the parameters: how those are added must not depend on the machine.
const PIECE: usize = 1 << 14;

/// Rows that a thread takes at a time.
fn piece_rows(width: usize) -> usize {
    (PIECE / width).max(1)
}

/// Some rows of the sum, which is made again at each look at them.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    width: usize,
    epsilon: f32,
}

impl<'a> Rows<'a> {
    fn len(&self) -> usize {
        self.x.len() / self.width
    }

    /// The rows that thread `piece` takes.
    fn piece(self, piece: usize) -> Self {
        let len = piece_rows(self.width) * self.width;
        let range = piece * len..self.x.len().min((piece + 1) * len);
        let residual = self.residual.map(|residual| &residual[range.clone()]);
        Self { x: &self.x[range], residual, ..self }
    }

    fn row(self, row: usize) -> Self {
        let range = row * self.width..(row + 1) * self.width;
        let residual = self.residual.map(|residual| &residual[range.clone()]);
        Self { x: &self.x[range], residual, ..self }
    }

    /// Elements of a row from `at` on, zeros behind its end.
    #[inline(always)]
    fn lanes<S: Simd>(self, m: Lanes<S>, at: usize) -> S::f32s {
        let end = self.width.min(at + S::F32_LANES);
        let x = m.simd.partial_load_f32s(&self.x[at..end]);
        match self.residual {
            Some(residual) => m.add(x, m.simd.partial_load_f32s(&residual[at..end])),
            None => x,
        }
    }

    /// Mean of a row and what it is divided by, inverted.
    #[inline(always)]
    fn statistics<S: Simd>(self, m: Lanes<S>) -> (f32, f32) {
        let (simd, lanes) = (m.simd, S::F32_LANES);
        let mut sum = m.splat(0.0);
        for at in (0..self.width).step_by(lanes) {
            sum = m.add(sum, self.lanes(m, at));
        }
        let mean = simd.reduce_sum_f32s(sum) / self.width as f32;
        let (mut squares, shift) = (m.splat(0.0), m.splat(mean));
        let whole = self.width / lanes * lanes;
        for at in (0..whole).step_by(lanes) {
            let centred = m.sub(self.lanes(m, at), shift);
            squares = m.fma(centred, centred, squares);
        }
        let mut squares = simd.reduce_sum_f32s(squares);
        for at in whole..self.width {
            let residual = self.residual.map_or(0.0, |residual| residual[at]);
            let centred = self.x[at] + residual - mean;
            squares += centred * centred;
        }
        (mean, (squares / self.width as f32 + self.epsilon).sqrt().recip())
    }
}

/// Some rows forwards.
struct Forward<'a> {
    rows: Rows<'a>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    y: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let m = Lanes { simd };
        let (width, lanes) = (self.rows.width, S::F32_LANES);
        for (i, y) in self.y.chunks_exact_mut(width).enumerate() {
            let row = self.rows.row(i);
            let (mean, r) = row.statistics(m);
            let (mean, r) = (m.splat(mean), m.splat(r));
            for (j, y) in y.chunks_mut(lanes).enumerate() {
                let range = j * lanes..j * lanes + y.len();
                let normal = m.mul(m.sub(row.lanes(m, j * lanes), mean), r);
                let weight = simd.partial_load_f32s(&self.weight[range.clone()]);
                let value = match self.bias {
                    Some(bias) => m.fma(normal, weight, simd.partial_load_f32s(&bias[range])),
                    None => m.mul(normal, weight),
                };
                write_lanes(simd, y, value);
            }
        }
    }
}

/// Some rows backwards; `params`, the gradients of weight and bias, starts at zero.
struct Gradient<'a> {
    rows: Rows<'a>,
    weight: &'a [f32],
    grad_y: &'a [f32],
    grad_x: &'a mut [MaybeUninit<f32>],
    params: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let m = Lanes { simd };
        let (width, lanes) = (self.rows.width, S::F32_LANES);
        let (grad_weight, grad_bias) = self.params.split_at_mut(width);
        let outputs = self.grad_x.chunks_exact_mut(width);
        for (i, (grad_x, grad_y)) in outputs.zip(self.grad_y.chunks_exact(width)).enumerate() {
            let row = self.rows.row(i);
            let (mean, r) = row.statistics(m);
            let (mean, scale) = (m.splat(mean), m.splat(r));
            let (mut sum, mut product) = (m.splat(0.0), m.splat(0.0));
            for (j, grad_y) in grad_y.chunks(lanes).enumerate() {
                let range = j * lanes..j * lanes + grad_y.len();
                // Zero behind the end of a row, so what `normal` is there does not matter.
                let grad = simd.partial_load_f32s(grad_y);
                let scaled = m.mul(grad, simd.partial_load_f32s(&self.weight[range]));
                let normal = m.mul(m.sub(row.lanes(m, j * lanes), mean), scale);
                sum = m.add(sum, scaled);
                product = m.fma(scaled, normal, product);
            }
            let sum = m.splat(simd.reduce_sum_f32s(sum) / width as f32);
            let product = m.splat(simd.reduce_sum_f32s(product) / width as f32);
            let params = grad_weight.chunks_mut(lanes).zip(grad_bias.chunks_mut(lanes));
            let inputs = grad_y.chunks(lanes).zip(self.weight.chunks(lanes));
            for (j, ((grad_x, (grad_weight, grad_bias)), (grad_y, weight))) in
                grad_x.chunks_mut(lanes).zip(params).zip(inputs).enumerate()
            {
                let grad = simd.partial_load_f32s(grad_y);
                let scaled = m.mul(grad, simd.partial_load_f32s(weight));
                let normal = m.mul(m.sub(row.lanes(m, j * lanes), mean), scale);
                let shift = m.fma(normal, product, sum);
                write_lanes(simd, grad_x, m.mul(m.sub(scaled, shift), scale));
                let before = simd.partial_load_f32s(grad_weight);
                simd.partial_store_f32s(grad_weight, m.fma(grad, normal, before));
                let before = simd.partial_load_f32s(grad_bias);
                simd.partial_store_f32s(grad_bias, m.add(grad, before));
            }
        }
    }
}

/// Host values of the arguments.
struct Values<B: HostBackend> {
    x: B::Values,
    residual: Option<B::Values>,
    weight: B::Values,
    bias: Option<B::Values>,
    width: usize,
}

impl<B: HostBackend> Values<B> {
    fn new(input: LayerNormPrimitives<B>) -> Self {
        let [_, width] = matrix(&input.x.shape());
        Self {
            x: B::values(input.x),
            residual: B::maybe_values(input.residual),
            weight: B::values(input.weight),
            bias: B::maybe_values(input.bias),
            width,
        }
    }

    fn rows(&self, epsilon: f32) -> Rows<'_> {
        let residual = self.residual.as_ref().map(AsRef::as_ref);
        Rows { x: self.x.as_ref(), residual, width: self.width, epsilon }
    }
}

fn forward<B: HostBackend>(input: LayerNormPrimitives<B>, epsilon: f32) -> FloatTensor<B> {
    let like = input.x.clone();
    let values = Values::<B>::new(input);
    let (rows, weight) = (values.rows(epsilon), values.weight.as_ref());
    let bias = values.bias.as_ref().map(AsRef::as_ref);
    let piece = piece_rows(rows.width) * rows.width;
    let mut y = Unwritten::new(rows.x.len());
    y.as_mut_slice().par_chunks_mut(piece).enumerate().for_each(|(i, y)| {
        Arch::new().dispatch(Forward { rows: rows.piece(i), weight, bias, y });
    });
    // SAFETY: pieces cover all rows, and `Forward` writes every element of its rows.
    let y = unsafe { y.written() };
    B::tensor_like(y, &like)
}

fn backward<B: HostBackend>(
    input: LayerNormPrimitives<B>,
    grad_y: FloatTensor<B>,
    epsilon: f32,
) -> LayerNormGradPrimitives<B> {
    let like = input.clone();
    let (values, grad_y) = (Values::<B>::new(input), B::values(grad_y));
    let (rows, weight, grad_y) = (values.rows(epsilon), values.weight.as_ref(), grad_y.as_ref());
    let width = rows.width;
    let piece = piece_rows(width);
    let pieces = rows.len().div_ceil(piece);
    let mut partial = vec![0.0; pieces * 2 * width];
    let mut grad_x = Unwritten::new(rows.x.len());
    let outputs =
        grad_x.as_mut_slice().par_chunks_mut(piece * width).zip(partial.par_chunks_mut(2 * width));
    let inputs = grad_y.par_chunks(piece * width);
    outputs.zip(inputs).enumerate().for_each(|(i, ((grad_x, params), grad_y))| {
        let rows = rows.piece(i);
        Arch::new().dispatch(Gradient { rows, weight, grad_y, grad_x, params });
    });
    // SAFETY: as in `forward`.
    let grad_x = unsafe { grad_x.written() };
    let mut params = sum_outer(partial, pieces);
    let bias = params.split_off(width);
    LayerNormGradPrimitives {
        x: B::tensor_like(grad_x, &like.x),
        weight: B::tensor_like(params, &like.weight),
        bias: match like.bias {
            Maybe::Present(like) => Maybe::Present(B::tensor_like(bias, &like)),
            Maybe::Absent => Maybe::Absent,
        },
    }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl LayerNormOps for $backend {
            fn layer_norm_fwd(input: LayerNormPrimitives<Self>, epsilon: f32) -> FloatTensor<Self> {
                forward::<Self>(input, epsilon)
            }

            fn layer_norm_bwd(
                input: LayerNormPrimitives<Self>,
                grad_y: FloatTensor<Self>,
                epsilon: f32,
            ) -> LayerNormGradPrimitives<Self> {
                backward::<Self>(input, grad_y, epsilon)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);
