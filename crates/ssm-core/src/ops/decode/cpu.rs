//! Single steps on host memory: the specification in f32.

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
    tensor::{DType, FloatDType, Shape, TensorData, read_sync},
};

use super::{
    extension::{ChosenPrimitives, ConvPrimitives, DecodeOps, ProductPrimitives, StatePrimitives},
    host::{self, Rows, StateParams},
};
use crate::ops::primitive::{HostBackend, Maybe};

/// Rows and their length.
fn matrix(shape: &Shape) -> [usize; 2] {
    let stride = shape.to_vec().last().copied().unwrap_or(1);
    [shape.num_elements() / stride, stride]
}

fn rows<'a>(values: &'a [f32], shape: &Shape) -> Rows<'a, f32> {
    Rows { values, stride: matrix(shape)[1] }
}

fn product<B: HostBackend>(input: ProductPrimitives<B>, epsilon: f32) -> FloatTensor<B> {
    let ProductPrimitives { x, weight, norm, add } = input;
    let (like, shape) = (x.clone(), x.shape());
    let [batch, _] = matrix(&shape);
    let [d_out, d_in] = matrix(&weight.shape());
    let (x, weight) = (B::values(x), B::values(weight));
    let (norm, add) = (B::maybe_values(norm), B::maybe_values(add));
    let norm = norm.as_ref().map(|norm| (norm.as_ref(), epsilon));
    let add = add.as_ref().map(AsRef::as_ref);
    let y = host::product(rows(x.as_ref(), &shape), norm, weight.as_ref(), add, [batch, d_in]);
    B::tensor_f32(y, [batch, d_out], &like)
}

fn conv<B: HostBackend>(
    x: FloatTensor<B>,
    conv: ConvPrimitives<B>,
) -> (Vec<f32>, [usize; 2], FloatTensor<B>) {
    let shape = x.shape();
    let [batch, _] = matrix(&shape);
    let [channels, _] = matrix(&conv.taps.shape());
    let like = conv.past.clone();
    let (x, taps, bias) = (B::values(x), B::values(conv.taps), B::maybe_values(conv.bias));
    let mut past = B::values(conv.past).as_ref().to_vec();
    let bias = bias.as_ref().map(AsRef::as_ref);
    let x = rows(x.as_ref(), &shape);
    let u = host::conv(x, taps.as_ref(), bias, &mut past, [batch, channels]);
    (u, [batch, channels], B::tensor_like(past, &like))
}

fn product_conv<B: HostBackend>(
    input: ProductPrimitives<B>,
    convolution: ConvPrimitives<B>,
    epsilon: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let y = product::<B>(input, epsilon);
    let shape = y.shape();
    let [batch, d_out] = matrix(&shape);
    let (u, [_, channels], past) = conv::<B>(y.clone(), convolution);
    let mut values = B::values(y.clone()).as_ref().to_vec();
    for (row, u) in values.chunks_exact_mut(d_out).zip(u.chunks_exact(channels)) {
        row[..channels].copy_from_slice(u);
    }
    (B::tensor_f32(values, [batch, d_out], &y), past)
}

fn state<B: HostBackend>(input: StatePrimitives<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let StatePrimitives { u, z, projected, dt_weight, params, state } = input;
    let (like, like_state) = (u.clone(), state.clone());
    let (shape_u, shape_z) = (u.shape(), z.shape());
    let [batch, _] = matrix(&shape_u);
    let [u, z, projected, dt_weight, params] = [u, z, projected, dt_weight, params].map(B::values);
    let mut state = B::values(state).as_ref().to_vec();
    let params = StateParams { dt_weight: dt_weight.as_ref(), params: params.as_ref() };
    let (u, z) = (rows(u.as_ref(), &shape_u), rows(z.as_ref(), &shape_z));
    let [_, d_inner, d_state]: [usize; 3] = like_state.shape().dims();
    let sizes = [batch, d_inner, d_state];
    let y = host::state(u, z, projected.as_ref(), params, &mut state, sizes);
    (B::tensor(y, [batch, d_inner], &like), B::tensor_like(state, &like_state))
}

fn add_norm<B: HostBackend>(
    x: FloatTensor<B>,
    add: Maybe<B>,
    weight: FloatTensor<B>,
    epsilon: f32,
    dtype: FloatDType,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let like = x.clone();
    let (x, add, weight) = (B::values(x), B::maybe_values(add), B::values(weight));
    let add = add.as_ref().map(AsRef::as_ref);
    let (x, y) = host::add_norm(x.as_ref(), add, weight.as_ref(), epsilon);
    let shape = matrix(&like.shape());
    let y = B::float_cast(B::tensor_f32(y, shape, &like), dtype);
    (B::tensor_f32(x, shape, &like), y)
}

/// The values of a tensor of integers.
fn integers<B: HostBackend>(tensor: IntTensor<B>) -> Vec<i32> {
    // Host memory is always readable, and `convert` makes the element type i32.
    let data = read_sync(B::int_into_data(tensor)).expect("host data");
    data.convert::<i32>().try_into_vec().expect("i32 data")
}

fn argmax<B: HostBackend>(
    logits: FloatTensor<B>,
    chosen: ChosenPrimitives<B>,
    n_vocab: usize,
) -> ChosenPrimitives<B> {
    let (shape, device) = (logits.shape(), logits.device());
    let logits = B::values(logits);
    let best = host::argmax(rows(logits.as_ref(), &shape), n_vocab);
    let dtype = chosen.ring.dtype();
    let [batch, capacity] = matrix(&chosen.ring.shape());
    let (mut ring, mut count) = (integers::<B>(chosen.ring), integers::<B>(chosen.count));
    for (row, token) in best.iter().enumerate() {
        ring[row * capacity + count[row] as usize % capacity] =
            token.map_or(-1, |token| token as i32);
        count[row] += 1;
    }
    let newest = best.into_iter().map(|token| token.unwrap_or(0) as i32).collect();
    let tensor = |values: Vec<i32>, shape: Shape| {
        B::int_from_data(TensorData::new(values, shape).convert_dtype(dtype), &device)
    };
    ChosenPrimitives {
        newest: tensor(newest, Shape::from([batch])),
        ring: tensor(ring, Shape::from([batch, capacity])),
        count: tensor(count, Shape::from([batch])),
    }
}

fn copy<B: HostBackend>(from: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    let like = from.clone();
    let values = B::values(from).as_ref().to_vec();
    let copy = B::tensor_like(values, &like);
    if like.dtype() == DType::from(dtype) { copy } else { B::float_cast(copy, dtype) }
}

macro_rules! on_host {
    ($backend:ty) => {
        impl DecodeOps for $backend {
            fn decode_product(input: ProductPrimitives<Self>, epsilon: f32) -> FloatTensor<Self> {
                product::<Self>(input, epsilon)
            }

            fn decode_product_conv(
                input: ProductPrimitives<Self>,
                conv: ConvPrimitives<Self>,
                epsilon: f32,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                product_conv::<Self>(input, conv, epsilon)
            }

            fn decode_conv(
                x: FloatTensor<Self>,
                convolution: ConvPrimitives<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                let like = x.clone();
                let (u, shape, past) = conv::<Self>(x, convolution);
                (<Self as HostBackend>::tensor(u, shape, &like), past)
            }

            fn decode_state(
                input: StatePrimitives<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                state::<Self>(input)
            }

            fn decode_add_norm(
                x: FloatTensor<Self>,
                add: Maybe<Self>,
                weight: FloatTensor<Self>,
                epsilon: f32,
                dtype: FloatDType,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                add_norm::<Self>(x, add, weight, epsilon, dtype)
            }

            fn decode_argmax(
                logits: FloatTensor<Self>,
                chosen: ChosenPrimitives<Self>,
                n_vocab: usize,
            ) -> ChosenPrimitives<Self> {
                argmax::<Self>(logits, chosen, n_vocab)
            }

            fn decode_copy(
                from: FloatTensor<Self>,
                _to: Maybe<Self>,
                dtype: FloatDType,
            ) -> FloatTensor<Self> {
                copy::<Self>(from, dtype)
            }

            fn decode_set(_to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self> {
                from
            }
        }
    };
}

#[cfg(feature = "flex")]
on_host!(Flex);
#[cfg(feature = "ndarray")]
on_host!(NdArray);
