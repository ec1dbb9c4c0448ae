//! The norm on devices of CubeCL.

use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::CubeDim;

use super::{
    extension::{LayerNormGradPrimitives, LayerNormOps, LayerNormPrimitives},
    kernel::{Variant, layer_norm_bwd, layer_norm_fwd},
    matrix,
};
use crate::ops::{
    cube::{
        cast, check_device, check_len, column_sums, cubes, dtypes_of, elem, empty, empty_f32, rows,
        rows_f32, rows_f32_or, vector_size,
    },
    primitive::Maybe,
};

/// Buffers of the backward kernel, which has the most.
const BUFFERS: usize = 6;

/// Units of a cube, at most.
const UNITS: usize = 256;

/// Cubes of the backward pass, at most: each leaves a row of partial sums.
const CUBES: usize = 256;

/// Inputs in row-major order, and how the matrix is cut.
struct Launch {
    x: CubeTensor,
    residual: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    rows: usize,
    vector: usize,
    /// Vectors in a row.
    width: usize,
    variant: Variant,
}

impl Launch {
    fn new(input: LayerNormPrimitives<CubeBackend>) -> Self {
        let given = dtypes_of([&input.bias]);
        let dtypes = [input.x.dtype, input.weight.dtype].into_iter().chain(given);
        check_device("layer_norm", &input.x, dtypes, BUFFERS);
        let [n_rows, width] = matrix(&input.x.shape());
        check_len("layer_norm", "`x`", n_rows * width);
        let vector = vector_size(width);
        let width = width / vector;
        let units = width.next_power_of_two().clamp(32, UNITS);
        let x = rows(input.x);
        let weight = rows_f32(input.weight);
        let residual = input.residual.into_option();
        let variant = Variant {
            units,
            turns: width.div_ceil(units),
            residual: residual.is_some(),
            bias: matches!(input.bias, Maybe::Present(_)),
        };
        Self {
            residual: residual.map_or_else(|| x.clone(), |residual| rows(cast(residual, x.dtype))),
            bias: rows_f32_or(input.bias, &weight),
            x,
            weight,
            rows: n_rows,
            vector,
            width,
            variant,
        }
    }

    fn dim(&self) -> CubeDim {
        CubeDim::new_1d(self.variant.units as u32)
    }
}

impl LayerNormOps for CubeBackend {
    fn layer_norm_fwd(input: LayerNormPrimitives<Self>, epsilon: f32) -> FloatTensor<Self> {
        let launch = Launch::new(input);
        let y = empty(&launch.x, launch.x.shape(), launch.x.dtype);
        let (dim, dtype) = (launch.dim(), elem(&launch.x));
        // SAFETY: cubes check their row and units their lane, and `vector` divides the width.
        unsafe {
            layer_norm_fwd::launch_unchecked(
                &y.client,
                cubes(launch.rows),
                dim,
                launch.vector,
                launch.x.into_tensor_arg(),
                launch.residual.into_tensor_arg(),
                launch.weight.into_tensor_arg(),
                launch.bias.into_tensor_arg(),
                y.clone().into_tensor_arg(),
                launch.rows,
                launch.width,
                epsilon,
                launch.variant,
                dtype,
            );
        }
        y
    }

    fn layer_norm_bwd(
        input: LayerNormPrimitives<Self>,
        grad_y: FloatTensor<Self>,
        epsilon: f32,
    ) -> LayerNormGradPrimitives<Self> {
        let weight_dtype = input.weight.dtype;
        let bias_dtype = match &input.bias {
            Maybe::Present(bias) => Some(bias.dtype),
            Maybe::Absent => None,
        };
        let launch = Launch::new(input);
        let grad_y = rows(cast(grad_y, launch.x.dtype));
        let span = launch.rows.div_ceil(CUBES);
        let count = launch.rows.div_ceil(span);
        let width = launch.width * launch.vector;
        let grad_x = empty(&launch.x, launch.x.shape(), launch.x.dtype);
        let partial = empty_f32(&launch.x, [count, 2 * width]);
        let (dim, dtype) = (launch.dim(), elem(&launch.x));
        // SAFETY: as in the forward pass; every cube has a row of `partial`.
        unsafe {
            layer_norm_bwd::launch_unchecked(
                &grad_x.client,
                cubes(count),
                dim,
                launch.vector,
                launch.x.into_tensor_arg(),
                launch.residual.into_tensor_arg(),
                launch.weight.into_tensor_arg(),
                grad_y.into_tensor_arg(),
                grad_x.clone().into_tensor_arg(),
                partial.clone().into_tensor_arg(),
                launch.rows,
                launch.width,
                span,
                epsilon,
                launch.variant,
                dtype,
            );
        }
        let [weight, bias] = column_sums(&partial, count, [width; 2]);
        debug_assert_eq!(weight.dtype, DType::F32);
        LayerNormGradPrimitives {
            x: grad_x,
            weight: cast(weight, weight_dtype),
            bias: bias_dtype.map(|dtype| cast(bias, dtype)).into(),
        }
    }
}
