//! Which variant of the kernels fits a problem, buffers, launches.

use burn::tensor::DType;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::{CubeCount, CubeDim, client::Client, ir::ElemType};

use super::{
    backward::kernel::{scan_bwd, scan_bwd_local},
    forward::kernel::scan_fwd,
    kernel::{Variant, carry},
};
use crate::ops::{
    cube::{
        cast, check_fits, check_len, elem, empty, empty_f32, has_planes, independent, is_cuda,
        lacks_planes, rows, rows_f32, rows_f32_or, rows_or,
    },
    primitive::Maybe,
    selective_scan::{
        cube::reduce,
        extension::{ScanGradPrimitives, ScanOptions, ScanPrimitives},
        host::ScanDims,
    },
};

/// Most states of a channel: 16 lanes with 8 each. Twice as many give the right numbers on Vulkan, but
/// NVRTC took more than a minute over what that unrolls to.
const MAX_STATES: usize = 128;

/// Most planes of a cube.
const PLANES: usize = 4;

/// Multiprocessors of a device that does not say.
const MULTIPROCESSORS: usize = 64;

/// Cubes for each multiprocessor below which a long sequence is cut into segments, and how many there
/// are then.
const CUBES: (usize, usize) = (2, 16);

/// Fewest steps of a segment: each costs a pass over its first state.
const MIN_SEGMENT: usize = 256;

/// How a problem is cut into cubes.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops::selective_scan) struct Plan {
    /// Without the flags of the arguments.
    variant: Variant,
    /// Elements of a row of `b` or `c` that are loaded at once.
    vector: usize,
    /// Cubes of a group's channels.
    slices: usize,
    seg_len: usize,
    n_segments: usize,
    /// Along the first axis of a launch.
    most_cubes: usize,
}

impl Plan {
    /// The error is why the device or the problem is not one for these kernels.
    pub(in crate::ops::selective_scan) fn new(
        client: &Client,
        dims: ScanDims,
    ) -> Result<Self, String> {
        if !has_planes(client) {
            return Err(lacks_planes(client));
        }
        let hardware = &client.properties().hardware;
        let plan = Self::on(
            hardware.num_streaming_multiprocessors.map_or(MULTIPROCESSORS, |n| n as usize),
            hardware.max_shared_memory_size,
            is_cuda(client),
            dims,
        )?;
        let (x, y, _) = hardware.max_cube_count;
        let most = [x, y].map(|most| most as usize);
        let [in_x, in_y] = plan.axes(dims, most[0]);
        if in_x > most[0] || in_y > most[1] {
            let cubes = plan.cubes(dims);
            return Err(format!(
                "it launches at most {most:?} cubes, which {cubes} do not fit into"
            ));
        }
        Ok(Self { most_cubes: most[0], ..plan })
    }

    /// The plan for a device with this many multiprocessors and bytes of shared memory.
    fn on(processors: usize, shared: usize, cuda: bool, dims: ScanDims) -> Result<Self, String> {
        let ScanDims { batch, seq_len, d_state, n_groups, .. } = dims;
        if d_state > MAX_STATES {
            return Err(format!("`d_state` is {d_state}, above {MAX_STATES}"));
        }
        // Registers hold the states of a tile: `steps * per`.
        let (lanes, per, steps) = match d_state.next_power_of_two() {
            padded @ 1..=4 => (1, padded, 8),
            padded @ 8..=32 => (padded / 4, 4, 16),
            padded => (padded / 8, 8, (padded / 8).max(8)),
        };
        let mut variant = Variant {
            lanes,
            per,
            steps,
            planes: PLANES,
            d: false,
            z: false,
            bias: false,
            softplus: false,
            initial: false,
            resets: false,
            save: false,
            grad_final: false,
            cuda,
            local: false,
        };
        while variant.shared_bytes() > shared {
            if variant.planes == 1 {
                let bytes = variant.shared_bytes();
                return Err(format!(
                    "`d_state` {d_state} needs {bytes} bytes of shared memory, it has {shared}"
                ));
            }
            variant.planes /= 2;
        }
        let cubes = |variant: &Variant| {
            batch * n_groups * dims.channels_per_group().div_ceil(variant.channels())
        };
        let mut seg_len = seq_len;
        if cubes(&variant) < CUBES.0 * processors {
            let segments = (CUBES.1 * processors).div_ceil(cubes(&variant));
            seg_len = seq_len.div_ceil(segments).max(MIN_SEGMENT).next_multiple_of(steps);
        }
        // Short sequences: smaller cubes, so that more multiprocessors have one.
        while seg_len >= seq_len && variant.planes > 1 && cubes(&variant) < processors {
            variant.planes /= 2;
        }
        let vector = [4, 2, 1].into_iter().find(|v| d_state.is_multiple_of(*v) && *v <= per);
        Ok(Self {
            slices: dims.channels_per_group().div_ceil(variant.channels()),
            variant,
            vector: vector.unwrap_or(1),
            seg_len,
            n_segments: seq_len.div_ceil(seg_len),
            most_cubes: usize::MAX,
        })
    }

    fn cubes(&self, dims: ScanDims) -> usize {
        dims.batch * self.n_segments * dims.n_groups * self.slices
    }

    /// Cubes along two axes, of which the first takes `most`: those of a batch entry stay together.
    fn axes(&self, dims: ScanDims, most: usize) -> [usize; 2] {
        let cubes = self.cubes(dims);
        if cubes <= most { [cubes, 1] } else { [cubes / dims.batch, dims.batch] }
    }

    fn grid(&self, dims: ScanDims) -> (CubeCount, CubeDim) {
        let [x, y] = self.axes(dims, self.most_cubes).map(|cubes| cubes as u32);
        let count = CubeCount::Static(x, y, 1);
        (count, CubeDim::new_1d(self.variant.units() as u32))
    }

    /// Tiles of the whole sequence.
    fn tiles(&self, dims: ScanDims) -> usize {
        dims.seq_len.div_ceil(self.variant.steps)
    }
}

/// Inputs in row-major order, and what they ask of the kernels.
struct Inputs {
    u: CubeTensor,
    delta: CubeTensor,
    a: CubeTensor,
    b: CubeTensor,
    c: CubeTensor,
    d: CubeTensor,
    z: CubeTensor,
    bias: CubeTensor,
    initial: CubeTensor,
    resets: CubeTensor,
    variant: Variant,
    dtypes: [ElemType; 4],
}

impl Inputs {
    fn new(input: ScanPrimitives<CubeBackend>, plan: &Plan, options: ScanOptions) -> Self {
        let has = |tensor: &Maybe<CubeBackend>| matches!(tensor, Maybe::Present(_));
        let variant = Variant {
            d: has(&input.d),
            z: has(&input.z),
            bias: has(&input.delta_bias),
            softplus: options.delta_softplus,
            initial: has(&input.initial_state),
            resets: has(&input.resets),
            save: options.save_states,
            ..plan.variant
        };
        let (u, delta, a) = (rows(input.u), rows(input.delta), rows_f32(input.a));
        let (b, c) = match input.b.dtype == input.c.dtype {
            true => (rows(input.b), rows(input.c)),
            false => (rows_f32(input.b), rows_f32(input.c)),
        };
        let z = rows_or(input.z, &u);
        Self {
            dtypes: [elem(&u), elem(&delta), elem(&z), elem(&b)],
            d: rows_f32_or(input.d, &a),
            bias: rows_f32_or(input.delta_bias, &a),
            initial: rows_f32_or(input.initial_state, &a),
            resets: rows_f32_or(input.resets, &a),
            u,
            delta,
            a,
            b,
            c,
            z,
            variant,
        }
    }
}

/// States at the beginning of segments, from what segments add and how they decay.
fn carried(
    a: &CubeTensor,
    sums: CubeTensor,
    local: CubeTensor,
    start: Option<CubeTensor>,
    reverse: bool,
    plan: &Plan,
    dims: ScanDims,
) -> CubeTensor {
    let ScanDims { batch, d_inner, d_state, .. } = dims;
    let out = empty_f32(a, [batch, plan.n_segments, d_inner, d_state]);
    let len = batch * d_inner * d_state;
    let (count, dim) = independent(len);
    let given = start.is_some();
    // SAFETY: the kernel checks the number of states; the buffers have the shapes it documents.
    unsafe {
        carry::launch_unchecked(
            &a.client,
            count,
            dim,
            a.clone().into_tensor_arg(),
            sums.into_tensor_arg(),
            local.into_tensor_arg(),
            start.unwrap_or_else(|| a.clone()).into_tensor_arg(),
            out.clone().into_tensor_arg(),
            len,
            plan.n_segments,
            d_inner,
            d_state,
            given,
            reverse,
        );
    }
    out
}

/// One launch over all cubes: outputs `y`, final states and saved states go where they are told.
fn launch_forward(
    x: &Inputs,
    initial: &CubeTensor,
    variant: Variant,
    [y, final_state, states, sums]: [&CubeTensor; 4],
    plan: &Plan,
    dims: ScanDims,
) {
    let (count, dim) = plan.grid(dims);
    let arg = |tensor: &CubeTensor| tensor.clone().into_tensor_arg();
    // SAFETY: units beyond the channels, states and steps repeat valid indices and store nothing; the
    // buffers have the shapes that the kernel documents, `vector` divides the states.
    unsafe {
        scan_fwd::launch_unchecked(
            &x.u.client,
            count,
            dim,
            plan.vector,
            arg(&x.u),
            arg(&x.delta),
            arg(&x.a),
            arg(&x.b),
            arg(&x.c),
            arg(&x.d),
            arg(&x.z),
            arg(&x.bias),
            arg(initial),
            arg(&x.resets),
            arg(y),
            arg(final_state),
            arg(states),
            arg(sums),
            dims.seq_len,
            plan.seg_len,
            plan.n_segments,
            dims.d_inner,
            dims.d_state,
            dims.n_groups,
            variant,
            x.dtypes,
        );
    }
}

/// `y`, the final state, and the saved states.
pub(in crate::ops::selective_scan) fn forward(
    input: ScanPrimitives<CubeBackend>,
    plan: Plan,
    dims: ScanDims,
    options: ScanOptions,
) -> [CubeTensor; 3] {
    let ScanDims { batch, seq_len, d_inner, d_state, .. } = dims;
    let x = Inputs::new(input, &plan, options);
    check_len("selective_scan", "`u`", batch * seq_len * d_inner);
    let y = empty(&x.u, [batch, seq_len, d_inner], x.u.dtype);
    let final_state = empty_f32(&x.u, [batch, d_inner, d_state]);
    let tiles = if options.save_states { plan.tiles(dims) } else { 0 };
    let shape = [batch, tiles, d_inner, plan.variant.stride()];
    check_fits("selective_scan", "the saved states", shape.iter().product(), &x.u);
    let states = empty_f32(&x.u, shape);
    if plan.n_segments == 1 {
        let out = [&y, &final_state, &states, &final_state];
        launch_forward(&x, &x.initial, x.variant, out, &plan, dims);
        return [y, final_state, states];
    }
    let local = empty_f32(&x.u, [batch, plan.n_segments, d_inner, d_state]);
    let sums = empty_f32(&x.u, [batch, plan.n_segments, d_inner]);
    let variant = Variant { local: true, save: false, initial: false, ..x.variant };
    launch_forward(&x, &x.initial, variant, [&y, &local, &states, &sums], &plan, dims);
    let start = x.variant.initial.then(|| x.initial.clone());
    let initial = carried(&x.a, sums.clone(), local, start, false, &plan, dims);
    let variant = Variant { initial: true, ..x.variant };
    launch_forward(&x, &initial, variant, [&y, &final_state, &states, &sums], &plan, dims);
    [y, final_state, states]
}

/// The gradients that reach the ends of segments.
fn final_gradients(
    x: &Inputs,
    grad_y: &CubeTensor,
    grad_final: Option<CubeTensor>,
    plan: &Plan,
    dims: ScanDims,
) -> CubeTensor {
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let local = empty_f32(&x.u, [batch, plan.n_segments, d_inner, d_state]);
    let sums = empty_f32(&x.u, [batch, plan.n_segments, d_inner]);
    let (count, dim) = plan.grid(dims);
    let arg = |tensor: &CubeTensor| tensor.clone().into_tensor_arg();
    // SAFETY: as in `launch_forward`.
    unsafe {
        scan_bwd_local::launch_unchecked(
            &x.u.client,
            count,
            dim,
            plan.vector,
            arg(&x.delta),
            arg(&x.a),
            arg(&x.c),
            arg(&x.z),
            arg(&x.bias),
            arg(&x.resets),
            arg(grad_y),
            arg(&local),
            arg(&sums),
            seq_len,
            plan.seg_len,
            plan.n_segments,
            d_inner,
            d_state,
            n_groups,
            Variant { save: false, local: true, ..x.variant },
            x.dtypes,
        );
    }
    carried(&x.a, sums, local, grad_final, true, plan, dims)
}

/// Gradients of all inputs.
pub(in crate::ops::selective_scan) fn backward(
    input: ScanPrimitives<CubeBackend>,
    states: CubeTensor,
    grad_y: CubeTensor,
    grad_final: Maybe<CubeBackend>,
    plan: Plan,
    dims: ScanDims,
    options: ScanOptions,
) -> ScanGradPrimitives<CubeBackend> {
    let types = input.clone();
    let ScanDims { batch, seq_len, d_inner, d_state, n_groups } = dims;
    let x = Inputs::new(input, &plan, options);
    let grad_y = rows(cast(grad_y, x.u.dtype));
    let mut grad_final = grad_final.into_option().map(rows_f32);
    if plan.n_segments > 1 {
        grad_final = Some(final_gradients(&x, &grad_y, grad_final, &plan, dims));
    }
    let variant = Variant { save: false, grad_final: grad_final.is_some(), ..x.variant };
    let (stride, entries) = (variant.stride(), batch * plan.n_segments);
    let n_rows = batch * n_groups * plan.slices * seq_len * 2 * stride;
    check_fits("selective_scan", "the gradient of `b` and `c`", n_rows, &x.u);
    let steps = [batch, seq_len, d_inner];
    let grad_u = empty(&x.u, steps, x.u.dtype);
    let grad_delta = empty(&x.u, steps, x.delta.dtype);
    let unused = |dtype: DType| empty(&x.u, [1], dtype);
    let grad_z = if variant.z { empty(&x.u, steps, x.z.dtype) } else { unused(x.z.dtype) };
    let row_grads = empty_f32(&x.u, [n_rows]);
    let param_grads = empty_f32(&x.u, [entries * d_inner * (d_state + 2)]);
    let grad_initial = match variant.initial {
        true => empty_f32(&x.u, [batch, d_inner, d_state]),
        false => unused(DType::F32),
    };
    let (count, dim) = plan.grid(dims);
    let arg = |tensor: &CubeTensor| tensor.clone().into_tensor_arg();
    // SAFETY: as in `launch_forward`.
    unsafe {
        scan_bwd::launch_unchecked(
            &x.u.client,
            count,
            dim,
            plan.vector,
            arg(&x.u),
            arg(&x.delta),
            arg(&x.a),
            arg(&x.b),
            arg(&x.c),
            arg(&x.d),
            arg(&x.z),
            arg(&x.bias),
            arg(&x.resets),
            states.into_tensor_arg(),
            arg(&grad_y),
            grad_final.unwrap_or_else(|| x.a.clone()).into_tensor_arg(),
            arg(&grad_u),
            arg(&grad_delta),
            arg(&grad_z),
            arg(&row_grads),
            arg(&param_grads),
            arg(&grad_initial),
            batch,
            seq_len,
            plan.seg_len,
            plan.n_segments,
            d_inner,
            d_state,
            n_groups,
            variant,
            x.dtypes,
        );
    }
    let shared = reduce(&row_grads, &param_grads, entries, [plan.slices, stride], dims, &types);
    ScanGradPrimitives {
        u: grad_u,
        delta: grad_delta,
        a: shared.a,
        b: shared.b,
        c: shared.c,
        d: shared.d,
        z: types.z.into_option().map(|_| grad_z).into(),
        delta_bias: shared.delta_bias,
        initial_state: types
            .initial_state
            .into_option()
            .map(|like| cast(grad_initial, like.dtype))
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: ScanDims =
        ScanDims { batch: 8, seq_len: 2048, d_inner: 1536, d_state: 16, n_groups: 1 };

    fn plan(d_state: usize, shared: usize) -> Result<Plan, String> {
        Plan::on(132, shared, true, ScanDims { d_state, ..DIMS })
    }

    #[test]
    fn cubes_have_fewer_planes_where_shared_memory_is_short() {
        let hopper = 232_448;
        for (d_state, shared, planes) in
            [(16, 49_152, 4), (128, hopper, 4), (128, 49_152, 1), (64, 49_152, 4)]
        {
            let plan = plan(d_state, shared).unwrap();
            assert_eq!(plan.variant.planes, planes, "d_state {d_state} in {shared} bytes");
            assert!(plan.variant.shared_bytes() <= shared);
            assert_eq!(plan.slices, 1536_usize.div_ceil(plan.variant.channels()));
        }
    }

    #[test]
    fn what_the_kernels_cannot_do_has_a_reason() {
        assert_eq!(plan(129, 1 << 20).unwrap_err(), "`d_state` is 129, above 128");
        assert_eq!(
            plan(128, 32_768).unwrap_err(),
            "`d_state` 128 needs 49152 bytes of shared memory, it has 32768"
        );
    }

    #[test]
    fn many_cubes_lie_along_two_axes() {
        let plan = plan(16, 49_152).unwrap();
        let cubes = plan.cubes(DIMS);
        assert_eq!(plan.axes(DIMS, cubes), [cubes, 1]);
        assert_eq!(plan.axes(DIMS, cubes - 1), [cubes / 8, 8]);
    }
}
