//! Without autodiff there is nothing to compute again, on devices of CubeCL neither.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;

use super::extension::{Again, RecomputeOps};
use crate::ops::primitive::Maybe;

impl RecomputeOps for CubeBackend {
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
