//! The scan on devices of CubeCL: which kernels run, and the sum that ends both backward passes.

use burn::{
    backend::{TensorMetadata, cubecl::dtype_to_elem_type, tensor::FloatTensor},
    tensor::DType,
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::{
    extension::{ScanGradPrimitives, ScanOptions, ScanPrimitives, SelectiveScanOps},
    host::ScanDims,
    kernel::scan_reduce,
    portable, tiled,
};
use crate::ops::{
    cube::{cast, check_device, dtypes_of, empty, empty_f32, independent, take_slow_path},
    primitive::Maybe,
};

/// Buffers of the portable kernels; the others run only where there is no limit.
const BUFFERS: usize = 7;

fn check(input: &ScanPrimitives<CubeBackend>) {
    let all = [&input.u, &input.delta, &input.a, &input.b, &input.c].map(|tensor| tensor.dtype);
    let given = dtypes_of([&input.d, &input.z, &input.delta_bias, &input.initial_state]);
    check_device("selective_scan", &input.u, all.into_iter().chain(given), BUFFERS);
}

fn dims(input: &ScanPrimitives<CubeBackend>) -> ScanDims {
    let [batch, seq_len, d_inner] = input.u.shape().dims();
    let [_, d_state] = input.a.shape().dims();
    let [_, _, grouped] = input.b.shape().dims();
    ScanDims { batch, seq_len, d_inner, d_state, n_groups: grouped / d_state }
}

/// How the tiled kernels would do it, if they can.
fn plan(input: &ScanPrimitives<CubeBackend>, dims: ScanDims) -> Option<tiled::Plan> {
    let client = &input.u.client;
    let plan = tiled::Plan::new(client, dims);
    plan.inspect_err(|why| take_slow_path("selective_scan", client, "the portable kernels", why))
        .ok()
}

/// Gradients that all batch entries, or all channels of a group, add to.
pub(super) struct SharedGrads {
    pub(super) a: CubeTensor,
    pub(super) b: CubeTensor,
    pub(super) c: CubeTensor,
    pub(super) d: Maybe<CubeBackend>,
    pub(super) delta_bias: Maybe<CubeBackend>,
}

/// Sums the partial gradients of [`scan_reduce`]; `[slices, stride]` is their layout there.
pub(super) fn reduce(
    row_grads: &CubeTensor,
    param_grads: &CubeTensor,
    entries: usize,
    [slices, stride]: [usize; 2],
    dims: ScanDims,
    types: &ScanPrimitives<CubeBackend>,
) -> SharedGrads {
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let n_rows = batch * seq_len * n_groups * d_state;
    let rows = [batch, seq_len, n_groups * d_state];
    // One type for both: f32 where they differ.
    let dtype = if types.b.dtype == types.c.dtype { types.b.dtype } else { DType::F32 };
    let b = empty(&types.b, rows, dtype);
    let c = empty(&types.b, rows, dtype);
    let a = empty_f32(&types.a, [d_inner, d_state]);
    let present = |tensor: &Maybe<CubeBackend>| match tensor {
        Maybe::Present(like) => Some(like.dtype),
        Maybe::Absent => None,
    };
    let (d_type, bias_type) = (present(&types.d), present(&types.delta_bias));
    let channels = |dtype: Option<DType>| empty_f32(&a, [dtype.map_or(1, |_| d_inner)]);
    let (d, delta_bias) = (channels(d_type), channels(bias_type));
    let (count, dim) = independent(n_rows + d_inner * d_state);
    // SAFETY: the kernel checks its unit against the numbers of rows and parameters, whose buffers have
    // the shapes it documents.
    unsafe {
        scan_reduce::launch_unchecked(
            &a.client,
            count,
            dim,
            row_grads.clone().into_tensor_arg(),
            param_grads.clone().into_tensor_arg(),
            b.clone().into_tensor_arg(),
            c.clone().into_tensor_arg(),
            a.clone().into_tensor_arg(),
            d.clone().into_tensor_arg(),
            delta_bias.clone().into_tensor_arg(),
            n_rows,
            entries,
            seq_len,
            d_inner,
            d_state,
            n_groups,
            slices,
            stride,
            d_type.is_some(),
            bias_type.is_some(),
            dtype_to_elem_type(dtype),
        );
    }
    SharedGrads {
        a: cast(a, types.a.dtype),
        b: cast(b, types.b.dtype),
        c: cast(c, types.c.dtype),
        d: d_type.map(|dtype| cast(d, dtype)).into(),
        delta_bias: bias_type.map(|dtype| cast(delta_bias, dtype)).into(),
    }
}

impl SelectiveScanOps for CubeBackend {
    fn selective_scan_fwd(
        input: ScanPrimitives<Self>,
        options: ScanOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        check(&input);
        let dims = dims(&input);
        let [y, final_state, states] = match plan(&input, dims) {
            Some(plan) => tiled::forward(input, plan, dims, options),
            None => portable::forward(input, dims, options),
        };
        (y, final_state, states)
    }

    fn selective_scan_bwd(
        input: ScanPrimitives<Self>,
        states: FloatTensor<Self>,
        grad_y: FloatTensor<Self>,
        grad_final: Maybe<Self>,
        options: ScanOptions,
    ) -> ScanGradPrimitives<Self> {
        let dims = dims(&input);
        match plan(&input, dims) {
            Some(plan) => tiled::backward(input, states, grad_y, grad_final, plan, dims, options),
            None => portable::backward(input, states, grad_y, grad_final, dims, options),
        }
    }
}
