//! Packs tensors into few f32 buffers, launches the portable kernels, sums what units left.

use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::kernel::{Variant, scan_bwd, scan_fwd};
use crate::ops::{
    cube::{cast, check_fits, empty_f32, independent, packed, part},
    primitive::Maybe,
    selective_scan::{
        cube::reduce,
        extension::{ScanGradPrimitives, ScanOptions, ScanPrimitives},
        host::ScanDims,
    },
};

/// Steps between saved states.
const CHUNK: usize = 32;

/// Most states a unit keeps at a time.
const BLOCK: usize = 8;

/// Elements of the partial gradients of `b` and `c` above which units take several channels.
const ROW_GRADS: usize = 1 << 25;

/// The packed inputs, see `kernel.rs`.
struct Packed {
    steps: CubeTensor,
    rows: CubeTensor,
    params: CubeTensor,
    variant: Variant,
}

impl Packed {
    fn new(
        input: ScanPrimitives<CubeBackend>,
        grad_y: Option<CubeTensor>,
        grad_final: Maybe<CubeBackend>,
        dims: ScanDims,
        options: ScanOptions,
    ) -> Self {
        let like = input.u.clone();
        let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
        let (n_steps, n_state) = (batch * seq_len * d_inner, batch * d_inner * d_state);
        let n_rows = batch * seq_len * n_groups * d_state;
        let [d, z, bias, initial, resets, grad_final] =
            [input.d, input.z, input.delta_bias, input.initial_state, input.resets, grad_final]
                .map(Maybe::into_option);
        let variant = Variant {
            block: d_state.next_power_of_two().min(BLOCK),
            chunk: CHUNK,
            d: d.is_some(),
            z: z.is_some(),
            bias: bias.is_some(),
            softplus: options.delta_softplus,
            initial: initial.is_some(),
            resets: resets.is_some(),
            save: options.save_states,
            grad_final: grad_final.is_some(),
        };
        let mut steps = vec![(Some(input.u), n_steps), (Some(input.delta), n_steps)];
        if z.is_some() || grad_y.is_some() {
            steps.push((z, n_steps));
        }
        if grad_y.is_some() {
            steps.push((grad_y, n_steps));
        }
        let rows = vec![(Some(input.b), n_rows), (Some(input.c), n_rows)];
        let params = vec![
            (Some(input.a), d_inner * d_state),
            (d, d_inner),
            (bias, d_inner),
            (initial, n_state),
            (grad_final, n_state),
            (resets, batch * seq_len),
        ];
        Self {
            steps: packed("selective_scan", steps, &like),
            rows: packed("selective_scan", rows, &like),
            params: packed("selective_scan", params, &like),
            variant,
        }
    }
}

/// `y`, the final state, and the saved states.
pub(in crate::ops::selective_scan) fn forward(
    input: ScanPrimitives<CubeBackend>,
    dims: ScanDims,
    options: ScanOptions,
) -> [CubeTensor; 3] {
    let like = input.u.clone();
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let packed = Packed::new(input, None, Maybe::Absent, dims, options);
    let n_chunks = if options.save_states { seq_len.div_ceil(CHUNK) } else { 0 };
    let y = empty_f32(&like, [batch, seq_len, d_inner]);
    let final_state = empty_f32(&like, [batch, d_inner, d_state]);
    // Devices bind no empty buffers; the kernel does not touch the one element.
    let saved = if n_chunks == 0 { [1, 1, 1, 1] } else { [batch, n_chunks, d_state, d_inner] };
    let states = empty_f32(&like, saved);
    let (count, dim) = independent(batch * d_inner);
    // SAFETY: the kernel checks the number of units, and clamps or checks indices of states; the
    // buffers have the sizes listed in `kernel.rs`.
    unsafe {
        scan_fwd::launch_unchecked(
            &like.client,
            count,
            dim,
            packed.steps.into_tensor_arg(),
            packed.rows.into_tensor_arg(),
            packed.params.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            final_state.clone().into_tensor_arg(),
            states.clone().into_tensor_arg(),
            batch,
            seq_len,
            d_inner,
            d_state,
            n_groups,
            packed.variant,
        );
    }
    [cast(y, like.dtype), final_state, states]
}

/// Gradients of all inputs.
pub(in crate::ops::selective_scan) fn backward(
    input: ScanPrimitives<CubeBackend>,
    states: CubeTensor,
    grad_y: CubeTensor,
    grad_final: Maybe<CubeBackend>,
    dims: ScanDims,
    options: ScanOptions,
) -> ScanGradPrimitives<CubeBackend> {
    let types = input.clone();
    let like = input.u.clone();
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let packed = Packed::new(input, Some(grad_y), grad_final, dims, options);
    let per_group = dims.channels_per_group();
    let per_channel = batch * seq_len * 2 * d_state;
    let width = (per_channel * d_inner).div_ceil(ROW_GRADS).clamp(1, per_group);
    let slices = per_group.div_ceil(width);
    let units = batch * n_groups * slices;
    let (n_steps, n_state) = (batch * seq_len * d_inner, batch * d_inner * d_state);
    let n_row_grads = n_groups * slices * per_channel;
    check_fits("selective_scan", "the gradient of `b` and `c`", n_row_grads, &like);
    let grads = empty_f32(&like, [if packed.variant.z { 3 } else { 2 } * n_steps]);
    let row_grads = empty_f32(&like, [n_row_grads]);
    let scratch = CHUNK * packed.variant.block * units;
    let n_param_grads = 2 * (n_state + batch * d_inner) + scratch;
    check_fits("selective_scan", "the gradient of the parameters", n_param_grads, &like);
    let param_grads = empty_f32(&like, [n_param_grads]);
    let (count, dim) = independent(units);
    // SAFETY: as in `forward`.
    unsafe {
        scan_bwd::launch_unchecked(
            &like.client,
            count,
            dim,
            packed.steps.into_tensor_arg(),
            packed.rows.into_tensor_arg(),
            packed.params.into_tensor_arg(),
            states.into_tensor_arg(),
            grads.clone().into_tensor_arg(),
            row_grads.clone().into_tensor_arg(),
            param_grads.clone().into_tensor_arg(),
            batch,
            seq_len,
            d_inner,
            d_state,
            n_groups,
            width,
            packed.variant,
        );
    }
    let steps = [batch, seq_len, d_inner];
    let step = |index: usize, dtype| part(&grads, index * n_steps, steps, dtype);
    let shared = reduce(&row_grads, &param_grads, batch, [slices, d_state], dims, &types);
    ScanGradPrimitives {
        u: step(0, types.u.dtype),
        delta: step(1, types.delta.dtype),
        a: shared.a,
        b: shared.b,
        c: shared.c,
        d: shared.d,
        z: types.z.into_option().map(|like| step(2, like.dtype)).into(),
        delta_bias: shared.delta_bias,
        initial_state: types
            .initial_state
            .into_option()
            .map(|like| {
                let at = n_state + 2 * batch * d_inner;
                let shape = [batch, d_inner, d_state];
                part(&param_grads, at, shape, like.dtype)
            })
            .into(),
    }
}
