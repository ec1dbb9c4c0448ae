//! The operations on host memory.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::read_sync,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    extension::{Dropout, PointwiseOps},
    host::draw,
};
use crate::ops::{primitive::HostBackend, simd::Lanes};

/// Elements that one thread takes at a time; below it threads cost more than they bring.
const PIECE: usize = 1 << 14;

fn reverse<B: HostBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let like = x.clone();
    let [batch, seq_len, channels]: [usize; 3] = x.shape().dims();
    let x = B::values(x);
    let mut y = Vec::with_capacity(batch * seq_len * channels);
    for sequence in x.as_ref().chunks_exact(seq_len * channels) {
        for row in sequence.chunks_exact(channels).rev() {
            y.extend_from_slice(row);
        }
    }
    B::tensor(y, [batch, seq_len, channels], &like)
}

/// GELU, or its derivative times a gradient.
struct GeluPiece<'a> {
    x: &'a [f32],
    grad: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl WithSimd for GeluPiece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let m = Lanes { simd };
        let lanes = S::F32_LANES;
        for (i, (x, out)) in self.x.chunks(lanes).zip(self.out.chunks_mut(lanes)).enumerate() {
            let x = simd.partial_load_f32s(x);
            // Standard normal distribution: `cdf` its integral, `pdf` its density.
            let (cdf, pdf) = m.normal(x);
            let y = match self.grad {
                None => m.mul(x, cdf),
                Some(grad) => {
                    let grad = &grad[i * lanes..];
                    let grad = simd.partial_load_f32s(&grad[..lanes.min(grad.len())]);
                    m.mul(grad, m.fma(x, pdf, cdf))
                }
            };
            simd.partial_store_f32s(out, y);
        }
    }
}

fn gelu<B: HostBackend>(x: FloatTensor<B>, grad: Option<FloatTensor<B>>) -> FloatTensor<B> {
    let like = x.clone();
    let len = x.shape().num_elements();
    let x = B::values(x);
    let grad = grad.map(B::values);
    let mut out = vec![0.0; len];
    out.par_chunks_mut(PIECE).enumerate().for_each(|(i, out)| {
        let piece = i * PIECE..i * PIECE + out.len();
        let grad = grad.as_ref().map(|grad| &grad.as_ref()[piece.clone()]);
        Arch::new().dispatch(GeluPiece { x: &x.as_ref()[piece], grad, out });
    });
    B::tensor_like(out, &like)
}

fn dropped<B: HostBackend>(
    x: FloatTensor<B>,
    seed: IntTensor<B>,
    options: Dropout,
) -> FloatTensor<B> {
    let like = x.clone();
    // What a processor holds is at hand.
    let seed = read_sync(B::int_into_data(seed)).expect("host data");
    let mut words = seed.iter::<i64>().map(|word| word as u32);
    let seed = [(); 2].map(|()| words.next().unwrap_or_default());
    let values = B::values(x);
    let kept = |(place, x): (usize, &f32)| {
        let is_kept = draw(place as u32, options.site, seed) < options.below;
        if is_kept { x * options.scale } else { 0.0 }
    };
    B::tensor_like(values.as_ref().iter().enumerate().map(kept).collect(), &like)
}

macro_rules! on_host {
    ($backend:ty) => {
        impl PointwiseOps for $backend {
            fn reverse(x: FloatTensor<Self>) -> FloatTensor<Self> {
                reverse::<Self>(x)
            }

            fn gelu_fwd(x: FloatTensor<Self>) -> FloatTensor<Self> {
                gelu::<Self>(x, None)
            }

            fn gelu_bwd(x: FloatTensor<Self>, grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
                gelu::<Self>(x, Some(grad_y))
            }

            fn dropped(
                x: FloatTensor<Self>,
                seed: IntTensor<Self>,
                options: Dropout,
            ) -> FloatTensor<Self> {
                dropped::<Self>(x, seed, options)
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);
