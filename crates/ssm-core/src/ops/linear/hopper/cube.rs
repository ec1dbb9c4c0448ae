//! What the kernel takes, and its launch.

use std::sync::Arc;

use burn::{
    backend::{TensorMetadata, cubecl::dtype_to_elem_type, ops::FloatTensorOps},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::{
    CubeCount, CubeDim,
    client::Client,
    ir::{AddressType, features::Tma},
    prelude::*,
    zspace::metadata::Metadata,
};

use super::{
    kernel::{self, NAME},
    plan::{Plan, Problem},
    program::{Inner, TILE_K, Tile, UNITS, WARP_ROWS},
};
use crate::ops::cube::{elem, empty, empty_f32, independent, is_cuda, take_slow_path, vector_size};

type B = CubeBackend;

/// Bytes that the copy engine counts in.
const UNIT: usize = 16;

/// Whether the device has the chip's units.
fn is_hopper(client: &Client) -> bool {
    let properties = client.properties();
    is_cuda(client)
        && properties.identity.fingerprint == "ptx_sm90"
        && properties.features.tma.contains(Tma::Base)
}

/// The product of two matrices in any order of memory, if the kernel takes them.
pub(in crate::ops::linear) fn product(
    lhs: &CubeTensor,
    rhs: &CubeTensor,
    dtype: DType,
) -> Option<CubeTensor> {
    if !is_meant([lhs, rhs], dtype) {
        return None;
    }
    let call = Call::new(&[lhs], rhs, dtype);
    let call =
        call.inspect_err(|why| take_slow_path("linear", &rhs.client, "CubeK's kernels", why));
    Some(call.ok()?.run())
}

/// The sum of the products of each of `lhs` with its rows of `rhs`, in their order, if the kernel takes
/// them.
pub(in crate::ops::linear) fn sum_of_products(
    lhs: [&CubeTensor; 2],
    rhs: &CubeTensor,
    dtype: DType,
) -> Option<CubeTensor> {
    if !is_meant([lhs[0], rhs], dtype) {
        return None;
    }
    // Otherwise these are two products and their sum.
    Some(Call::new(&lhs, rhs, dtype).ok()?.run())
}

/// Whether the kernel is there for products of such types on this device.
fn is_meant(operands: [&CubeTensor; 2], dtype: DType) -> bool {
    is_hopper(&operands[0].client)
        && operands.iter().all(|operand| operand.dtype == DType::BF16)
        && [DType::BF16, DType::F32].contains(&dtype)
}

/// Whether the copy engine can address the rows of a row-major matrix.
fn takes(matrix: &CubeTensor) -> bool {
    let (strides, shape) = (matrix.meta.strides(), matrix.meta.shape());
    let row_bytes = strides[0] * matrix.dtype.size();
    let offset = matrix.handle.offset_start.unwrap_or(0) as usize;
    strides[1] == 1
        // Rows of their own, not one that is repeated.
        && strides[0] >= shape[1]
        && row_bytes.is_multiple_of(UNIT)
        && offset.is_multiple_of(UNIT)
}

/// An operand's memory, row-major, and which axis is inside.
fn operand(matrix: &CubeTensor, summed: usize) -> Result<(CubeTensor, Inner), &'static str> {
    if matrix.dtype != DType::BF16 || matrix.qparams.is_some() || matrix.meta.is_tiled() {
        return Err("an operand is not a plain matrix in bf16");
    }
    let inside = if matrix.meta.strides()[1] == 1 { 1 } else { 0 };
    let memory = match inside {
        1 => matrix.clone(),
        _ => B::float_swap_dims(matrix.clone(), 0, 1),
    };
    let inner = if inside == summed { Inner::Summed } else { Inner::Kept };
    match takes(&memory) {
        true => Ok((memory, inner)),
        false => Err("an operand has rows that are no multiple of 16 bytes"),
    }
}

/// A product that the kernel takes.
struct Call {
    /// The left operand, and its continuation along the summed axis if it has one.
    lhs: [CubeTensor; 2],
    rhs: CubeTensor,
    /// Pieces of the sum that are in the first left operand.
    pieces_first: usize,
    shape: [usize; 2],
    dtype: DType,
    plan: Plan,
}

impl Call {
    /// The error is why the kernel does not take it.
    fn new(lhs: &[&CubeTensor], rhs: &CubeTensor, dtype: DType) -> Result<Self, &'static str> {
        let client = &rhs.client;
        let terms: Vec<usize> = lhs.iter().map(|lhs| lhs.shape()[1]).collect();
        let (first, lhs_inner) = operand(lhs[0], 1)?;
        let (rhs, rhs_inner) = operand(rhs, 0)?;
        let next = match lhs.get(1) {
            None => first.clone(),
            Some(next) => {
                let (next, inner) = operand(next, 1)?;
                // The next operand begins with a piece.
                if inner != lhs_inner || !terms[0].is_multiple_of(TILE_K) {
                    return Err("the operands of a sum do not continue each other");
                }
                next
            }
        };
        let [m, n, k] = [lhs[0].shape()[0], rhs_columns(&rhs, rhs_inner), terms.iter().sum()];
        // Sizes that the copy engine can count, and rows that it can write.
        if [m, n, k].into_iter().any(|size| size == 0 || i32::try_from(size).is_err()) {
            return Err("a matrix is empty or has an axis of 2^31");
        }
        if !(n * dtype.size()).is_multiple_of(UNIT) {
            return Err("the result has rows that are no multiple of 16 bytes");
        }
        let wide = dtype == DType::F32;
        let problem = Problem { m, n, k, lhs: lhs_inner, rhs: rhs_inner, wide };
        let processors = client.properties().hardware.num_streaming_multiprocessors;
        let processors = processors.ok_or("the device does not say how many processors it has")?;
        let plan = Plan::new(problem, processors as usize);
        let pieces_first = terms[0].div_ceil(TILE_K);
        let lhs = [first, next];
        Ok(Self { lhs, rhs, pieces_first, shape: [m, n], dtype, plan })
    }

    fn run(self) -> CubeTensor {
        let (parts, dtype) = (self.plan.parts, self.dtype);
        let [m, n] = self.shape;
        let out = empty(&self.rhs, Shape::from([m, n]), dtype);
        if parts == 1 {
            self.launch(&out);
            return out;
        }
        let each = empty_f32(&out, Shape::from([parts, m, n]));
        self.launch(&each);
        let vector = vector_size(m * n);
        let len = m * n / vector;
        let (count, dim) = independent(len);
        // SAFETY: the kernel checks the number of vectors, and `vector` divides the length of a part.
        unsafe {
            kernel::add_parts::launch_unchecked(
                &out.client,
                count,
                dim,
                vector,
                each.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                len,
                parts,
                elem(&out),
            );
        }
        out
    }

    /// Launches the product; `out` has an axis for the parts, or there is one part.
    fn launch(self, out: &CubeTensor) {
        let Self { lhs: [lhs, next], rhs, pieces_first, plan, .. } = self;
        let client = out.client.clone();
        let tile = plan.tile;
        let kernel = Product::new(tile, &client);
        let mut launcher = KernelLauncher::new(kernel.settings.clone());
        let (lhs_box, rhs_box) = (tile.lhs_box(), tile.rhs_box());
        let out_box = [1, WARP_ROWS, tile.write_columns()];
        for (tensor, piece) in [
            (lhs, &lhs_box[..]),
            (next, &lhs_box),
            (rhs, &rhs_box),
            (with_parts(out.clone()), &out_box),
        ] {
            let size = tensor.dtype.size();
            launcher.register_tensor_map(map(tensor, piece), size);
        }
        for size in [
            plan.tiles_m,
            plan.tiles_n,
            plan.tiles(),
            plan.pieces,
            pieces_first,
            plan.pieces_part,
            plan.band,
        ] {
            // Sizes are below 2^31, and there are not more tiles than elements.
            launcher.register_scalar(size as u32);
        }
        launcher.launch(CubeCount::Static(plan.cubes as u32, 1, 1), kernel, &client);
    }
}

/// Columns of a right operand with this memory.
fn rhs_columns(memory: &CubeTensor, inner: Inner) -> usize {
    match inner {
        Inner::Summed => memory.shape()[0],
        Inner::Kept => memory.shape()[1],
    }
}

/// A matrix with an axis for its only part.
fn with_parts(mut out: CubeTensor) -> CubeTensor {
    if let &[rows, columns] = out.shape().as_slice() {
        let stride = out.meta.strides()[0];
        let meta = Metadata::new(Shape::from([1, rows, columns]), [rows * stride, stride, 1]);
        *out.meta = meta;
    }
    out
}

/// A tensor map for pieces of this size, each row of which is 128 bytes.
fn map(tensor: CubeTensor, piece: &[usize]) -> TensorMapArg<Tiled> {
    let elem = dtype_to_elem_type(tensor.dtype);
    let args = TiledArgs { tile_size: Shape::from(piece.to_vec()) };
    TensorMapArg::new(args, tensor.into_tensor_arg(), elem)
        .with_swizzle(TensorMapSwizzle::B128)
        .with_prefetch(TensorMapPrefetch::B256)
}

/// The kernel for one kind of tile.
///
/// Written out and not by the attribute of other kernels, because the program needs the kernel's name,
/// to which the attribute adds a number.
struct Product {
    tile: Tile,
    settings: KernelSettings,
    device: Arc<DeviceProperties>,
    target: Arc<TargetProperties>,
}

impl Product {
    fn new(tile: Tile, client: &Client) -> Self {
        let dim = CubeDim::new_1d(UNITS as u32);
        let settings = KernelSettings::new(dim.into(), ExecutionMode::Unchecked, AddressType::U64)
            .kernel_name(NAME);
        Self {
            tile,
            settings,
            device: client.properties_shared(),
            target: client.target_properties_shared(),
        }
    }
}

impl KernelMetadata for Product {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .address_type(self.settings.address_type)
            .cube_dim(self.settings.cube_dim)
            .mode(self.settings.execution_mode)
            .info(self.tile)
    }

    fn address_type(&self) -> ElemType {
        self.settings.address_type.unsigned_type()
    }
}

impl CubeKernel for Product {
    fn define(&self) -> KernelDefinition {
        let mut builder = KernelBuilder::new(self.settings.clone());
        builder.runtime_properties(self.target.as_ref().clone());
        builder.device_properties(&self.device);
        for _ in 0..4 {
            builder.tensor_map();
        }
        let mut scalar = || <u32 as LaunchArg>::expand(&(), &mut builder);
        let [a, b, c, d, e, f, g] = [(); 7].map(|()| scalar());
        kernel::product::expand(&builder.scope, a, b, c, d, e, f, g, self.tile);
        builder.build()
    }
}
