//! Without autodiff there is nothing to compute again.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::tensor::FloatTensor;

use super::extension::{Again, RecomputeOps};
use crate::ops::primitive::Maybe;

macro_rules! without_autodiff {
    ($backend:ty) => {
        impl RecomputeOps for $backend {
            fn recompute(
                _x: FloatTensor<Self>,
                _other: Maybe<Self>,
                _params: FloatTensor<Self>,
                y: FloatTensor<Self>,
                _again: Again,
            ) -> FloatTensor<Self> {
                y
            }
        }
    };
}

#[cfg(feature = "flex")]
without_autodiff!(Flex);
#[cfg(feature = "ndarray")]
without_autodiff!(NdArray);
