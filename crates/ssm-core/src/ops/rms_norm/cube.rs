//! The norm on devices of CubeCL.

use burn::{
    backend::{
        TensorMetadata, cubecl::dtype_to_elem_type, ops::FloatTensorOps, tensor::FloatTensor,
    },
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::CubeDim;

use super::{
    extension::{AddRmsNormGradPrimitives, RmsNormGradPrimitives, RmsNormOps},
    kernel::{self, Around},
    matrix,
};
use crate::ops::{
    cube::{
        cast, check_device, check_len, cubes, elem, empty, empty_f32, rows, rows_f32, vector_size,
    },
    primitive::Maybe,
};

/// Buffers of the backward kernel, which has the most.
const BUFFERS: usize = 7;

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
    fn new(x: &CubeTensor, weight: &CubeTensor) -> Self {
        check_device("rms_norm", x, [x.dtype, weight.dtype], BUFFERS);
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

/// The norm of `x` in `dtype`, or of `x + branch`, and that sum.
fn forward(
    x: CubeTensor,
    branch: Option<CubeTensor>,
    weight: CubeTensor,
    epsilon: f32,
    dtype: DType,
) -> (Option<CubeTensor>, CubeTensor) {
    let cut = Cut::new(&x, &weight);
    let (x, weight) = (rows(x), rows_f32(weight));
    let y = empty(&x, x.shape(), dtype);
    let adds = branch.is_some();
    // What is absent is not touched, but no kernel takes a buffer twice that it may write.
    let sum = if adds { empty(&x, x.shape(), x.dtype) } else { empty(&x, [cut.vector], x.dtype) };
    let branch = branch.map_or_else(|| x.clone(), |branch| rows(cast(branch, dtype)));
    let dtypes = [elem(&x), dtype_to_elem_type(dtype)];
    // SAFETY: cubes check their row and units their lane, and `vector` divides the width.
    unsafe {
        kernel::rms_norm_fwd::launch_unchecked(
            &y.client,
            cubes(cut.rows),
            cut.dim(),
            cut.vector,
            x.into_tensor_arg(),
            branch.into_tensor_arg(),
            weight.into_tensor_arg(),
            sum.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            cut.rows,
            cut.width,
            epsilon,
            cut.units,
            adds,
            dtypes[0],
            dtypes[1],
        );
    }
    (adds.then_some(sum), y)
}

/// Gradients of `x`, of a branch of type `branch` if that is another one, and of `weight`.
fn backward(
    x: CubeTensor,
    weight: CubeTensor,
    grad_y: CubeTensor,
    grad_sum: Maybe<CubeBackend>,
    epsilon: f32,
    branch: Option<DType>,
) -> (CubeTensor, Option<CubeTensor>, CubeTensor) {
    let weight_dtype = weight.dtype;
    let cut = Cut::new(&x, &weight);
    let (x, weight) = (rows(x), rows_f32(weight));
    let grad_y = rows(grad_y);
    let branch = branch.filter(|dtype| *dtype != x.dtype);
    // The second copy is of the type of `grad_y`, as a branch is of that of the norm it feeds.
    let grad_y = branch.map_or_else(|| grad_y.clone(), |dtype| cast(grad_y.clone(), dtype));
    let around = Around { sum: matches!(grad_sum, Maybe::Present(_)), branch: branch.is_some() };
    let grad_sum =
        grad_sum.into_option().map_or_else(|| x.clone(), |grad_sum| rows(cast(grad_sum, x.dtype)));
    let span = cut.rows.div_ceil(CUBES);
    let count = cut.rows.div_ceil(span);
    let width = cut.width * cut.vector;
    let grad_x = empty(&x, x.shape(), x.dtype);
    let grad_branch = match branch {
        Some(dtype) => empty(&x, x.shape(), dtype),
        None => empty(&x, [cut.vector], grad_y.dtype),
    };
    let partial = empty_f32(&x, [count, width]);
    let dtypes = [elem(&x), elem(&grad_y)];
    // SAFETY: as in `forward`; every cube has a row of `partial`.
    unsafe {
        kernel::rms_norm_bwd::launch_unchecked(
            &grad_x.client,
            cubes(count),
            cut.dim(),
            cut.vector,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            grad_y.into_tensor_arg(),
            grad_sum.into_tensor_arg(),
            grad_x.clone().into_tensor_arg(),
            grad_branch.clone().into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            cut.rows,
            cut.width,
            span,
            epsilon,
            cut.units,
            cut.width.div_ceil(cut.units),
            around,
            dtypes[0],
            dtypes[1],
        );
    }
    let sum = match count {
        1 => partial,
        _ => CubeBackend::float_sum_dim(partial, 0),
    };
    let grad_weight = CubeBackend::float_reshape(sum, Shape::from([width]));
    debug_assert_eq!(grad_weight.dtype, DType::F32);
    (grad_x, branch.map(|_| grad_branch), cast(grad_weight, weight_dtype))
}

impl RmsNormOps for CubeBackend {
    fn rms_norm_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        dtype: DType,
    ) -> FloatTensor<Self> {
        forward(x, None, weight, epsilon, dtype).1
    }

    fn rms_norm_bwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        epsilon: f32,
    ) -> RmsNormGradPrimitives<Self> {
        let (x, _, weight) = backward(x, weight, grad_y, Maybe::Absent, epsilon, None);
        RmsNormGradPrimitives { x, weight }
    }

    fn add_rms_norm_fwd(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let dtype = branch.dtype;
        match forward(x, Some(branch), weight, epsilon, dtype) {
            (Some(sum), y) => (sum, y),
            (None, _) => unreachable!("a branch was added"),
        }
    }

    fn add_rms_norm_bwd(
        sum: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        grad_sum: Maybe<Self>,
        epsilon: f32,
        branch_dtype: DType,
    ) -> AddRmsNormGradPrimitives<Self> {
        let (x, branch, weight) =
            backward(sum, weight, grad_y, grad_sum, epsilon, Some(branch_dtype));
        AddRmsNormGradPrimitives { branch: branch.unwrap_or_else(|| x.clone()), x, weight }
    }
}
