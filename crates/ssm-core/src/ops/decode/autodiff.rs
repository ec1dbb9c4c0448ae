//! Decoding has no gradients: what is trained runs whole sequences.

use burn::{
    backend::{
        Backend,
        autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
        tensor::{FloatTensor, IntTensor},
    },
    tensor::FloatDType,
};

use super::extension::{
    ChosenPrimitives, ConvPrimitives, DecodeOps, ProductPrimitives, StatePrimitives,
};
use crate::ops::primitive::Maybe;

fn refuse() -> ! {
    panic!("decode has no gradients: decode with `Module::valid` of the model")
}

impl<B: Backend + DecodeOps, C: CheckpointStrategy> DecodeOps for Autodiff<B, C> {
    fn decode_product(_input: ProductPrimitives<Self>, _epsilon: f32) -> FloatTensor<Self> {
        refuse()
    }

    fn decode_product_conv(
        _input: ProductPrimitives<Self>,
        _conv: ConvPrimitives<Self>,
        _epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        refuse()
    }

    fn decode_conv(
        _x: FloatTensor<Self>,
        _conv: ConvPrimitives<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        refuse()
    }

    fn decode_state(_input: StatePrimitives<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        refuse()
    }

    fn decode_add_norm(
        _x: FloatTensor<Self>,
        _add: Maybe<Self>,
        _weight: FloatTensor<Self>,
        _epsilon: f32,
        _dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        refuse()
    }

    fn decode_argmax(
        _logits: FloatTensor<Self>,
        _chosen: ChosenPrimitives<Self>,
        _n_vocab: usize,
    ) -> ChosenPrimitives<Self> {
        refuse()
    }

    fn decode_copy(
        _from: FloatTensor<Self>,
        _to: Maybe<Self>,
        _dtype: FloatDType,
    ) -> FloatTensor<Self> {
        refuse()
    }

    fn decode_set(_to: IntTensor<Self>, _from: IntTensor<Self>) -> IntTensor<Self> {
        refuse()
    }
}
