//! The norm on devices of CubeCL.

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::CubeDim;

use super::{
    extension::{RmsNormGradPrimitives, RmsNormOps},
    kernel, matrix,
};
use crate::ops::cube::{
    cast, check_device, check_len, cubes, elem, empty, empty_f32, rows, rows_f32, vector_size,
};

/// Buffers of the backward kernel, which has the most.
const BUFFERS: usize = 5;

/// Units of a cube, at most.
const UNITS: usize = 256;

/// Cubes of the backward pass, at most: each leaves a row of partial sums.
const CUBES: usize = 1024;

/// How a matrix is cut.
struct Cut {
    rows: usize,
    vector: usize,
    /// Vectors in a row.
    width: usize,
    /// Units of a cube, a power of two.
    units: usize,
}

impl Cut {
    fn new(x: &CubeTensor) -> Self {
        check_device("rms_norm", x, &[x.dtype], BUFFERS);
        let [rows, width] = matrix(&x.shape());
        check_len("rms_norm", "`x`", rows * width);
        let vector = vector_size(width);
        let width = width / vector;
        Self { rows, vector, width, units: width.next_power_of_two().clamp(32, UNITS) }
    }

    fn dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

impl RmsNormOps for CubeBackend {
    fn rms_norm_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let (x, weight) = (rows(x), rows_f32(weight));
        let cut = Cut::new(&x);
        let y = empty(&x, x.shape(), x.dtype);
        let dtype = elem(&x);
        // SAFETY: cubes check their row and units their lane, and `vector` divides the width.
        unsafe {
            kernel::rms_norm_fwd::launch_unchecked(
                &y.client,
                cubes(cut.rows),
                cut.dim(),
                cut.vector,
                x.into_tensor_arg(),
                weight.into_tensor_arg(),
                y.clone().into_tensor_arg(),
                cut.rows,
                cut.width,
                epsilon,
                cut.units,
                dtype,
            );
        }
        y
    }

    fn rms_norm_bwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        epsilon: f32,
    ) -> RmsNormGradPrimitives<Self> {
        let weight_dtype = weight.dtype;
        let (x, weight) = (rows(x), rows_f32(weight));
        let grad_y = rows(cast(grad_y, x.dtype));
        let cut = Cut::new(&x);
        let span = cut.rows.div_ceil(CUBES);
        let count = cut.rows.div_ceil(span);
        let width = cut.width * cut.vector;
        let grad_x = empty(&x, x.shape(), x.dtype);
        let partial = empty_f32(&x, [count, width]);
        let dtype = elem(&x);
        // SAFETY: as in the forward pass; every cube has a row of `partial`.
        unsafe {
            kernel::rms_norm_bwd::launch_unchecked(
                &grad_x.client,
                cubes(count),
                cut.dim(),
                cut.vector,
                x.into_tensor_arg(),
                weight.into_tensor_arg(),
                grad_y.into_tensor_arg(),
                grad_x.clone().into_tensor_arg(),
                partial.clone().into_tensor_arg(),
                cut.rows,
                cut.width,
                span,
                epsilon,
                cut.units,
                cut.width.div_ceil(cut.units),
                dtype,
            );
        }
        let sum = match count {
            1 => partial,
            _ => Self::float_sum_dim(partial, 0),
        };
        let grad_weight = Self::float_reshape(sum, Shape::from([width]));
        debug_assert_eq!(grad_weight.dtype, DType::F32);
        RmsNormGradPrimitives { x: grad_x, weight: cast(grad_weight, weight_dtype) }
    }
}
