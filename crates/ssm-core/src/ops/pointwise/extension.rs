//! The seam between the public functions and the backends.

#![allow(deprecated, reason = "Burn deprecates its ndarray backend, which stays selectable here")]

use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

/// Which elements are dropped, besides the seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Tells apart what one seed is used for.
    pub site: u32,
    /// Elements with a draw below are kept, of 2^32 possible ones.
    pub below: u32,
    /// What those are multiplied with.
    pub scale: f32,
}

/// Small operations of a backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait PointwiseOps: Backend {
    /// `[batch, seq_len, channels]` with the sequence turned round.
    fn reverse(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// GELU of every element.
    fn gelu_fwd(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `grad_y * gelu'(x)`.
    fn gelu_bwd(x: FloatTensor<Self>, grad_y: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `-exp(x)` of every element.
    fn neg_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_neg(Self::float_exp(x))
    }

    /// `x * mask * scale`, element by element; the mask is a constant.
    fn masked(x: FloatTensor<Self>, mask: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        Self::float_mul_scalar(Self::float_mul(x, mask), scale.into())
    }

    /// `x * scale` where the draw of an element is below the bound, and 0 elsewhere; `seed`: `[2]`.
    fn dropped(x: FloatTensor<Self>, seed: IntTensor<Self>, options: Dropout) -> FloatTensor<Self>;
}
