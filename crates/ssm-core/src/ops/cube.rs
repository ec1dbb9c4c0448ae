//! What the launchers of all kernels share: buffers, layouts, and what a device can do.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use burn::{
    backend::cubecl::dtype_to_elem_type,
    tensor::{DType, Shape},
};
use burn_cubecl::{
    kernel::{self, into_contiguous},
    ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use cubecl::{
    CubeCount, CubeDim,
    client::Client,
    ir::{ElemType, features::Plane},
};

use super::{
    kernel::{self as kernels, COLUMN_LANES, COLUMN_ROWS, Present, pack, unpack},
    primitive::Maybe,
};

/// Units of a cube whose units work for themselves.
const UNITS: usize = 64;

/// Units of the one cube that adds up a whole tensor.
const SUM_UNITS: usize = 256;

/// Most cubes along one axis that every device takes.
pub(super) const MAX_CUBES: usize = 65_535;

/// A contiguous tensor that nothing has written yet, on the device of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// A contiguous f32 tensor that nothing has written yet.
pub(super) fn empty_f32(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty(like, shape, DType::F32)
}

/// The tensor in row-major order.
pub(super) fn rows(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// The tensor in row-major order and f32.
pub(super) fn rows_f32(tensor: CubeTensor) -> CubeTensor {
    cast(into_contiguous(tensor), DType::F32)
}

/// The tensor in another float type and then in row-major order, itself if it has that type.
///
/// Burn's own conversion may leave space behind the rows of its result, which nothing that reads rows one
/// after the other would survive.
pub(super) fn cast(tensor: CubeTensor, dtype: DType) -> CubeTensor {
    if tensor.dtype == dtype {
        return tensor;
    }
    if !tensor.dtype.is_float() {
        return rows(kernel::cast(tensor, dtype));
    }
    let from = rows(tensor);
    let to = empty(&from, from.meta.shape().clone(), dtype);
    convert(from, &to);
    to
}

/// Writes the numbers of `from` to `to`, both in row-major order and of as many elements, each in its own
/// float type.
pub(super) fn convert(from: CubeTensor, to: &CubeTensor) {
    let len = from.meta.num_elements();
    // Buffers without elements cannot be bound everywhere: the past of a convolution of width one.
    if len == 0 {
        return;
    }
    let vector = vector_size(len);
    let (count, dim) = independent(len / vector);
    let dtypes = [elem(&from), elem(to)];
    // SAFETY: the kernel checks the number of vectors, and `vector` divides the length of both.
    unsafe {
        kernels::converted::launch_unchecked(
            &to.client,
            count,
            dim,
            vector,
            from.into_tensor_arg(),
            to.clone().into_tensor_arg(),
            len / vector,
            dtypes,
        );
    }
}

/// The element type a kernel is compiled for.
pub(super) fn elem(tensor: &CubeTensor) -> ElemType {
    dtype_to_elem_type(tensor.dtype)
}

/// The tensor in row-major order; `dummy`, which a kernel does not read, if it is absent.
pub(super) fn rows_or(tensor: Maybe<burn_cubecl::CubeBackend>, dummy: &CubeTensor) -> CubeTensor {
    tensor.into_option().map_or_else(|| dummy.clone(), rows)
}

/// As [`rows_or`], in f32.
pub(super) fn rows_f32_or(
    tensor: Maybe<burn_cubecl::CubeBackend>,
    dummy: &CubeTensor,
) -> CubeTensor {
    tensor.into_option().map_or_else(|| dummy.clone(), rows_f32)
}

/// Cubes and their size for `units` independent units; the last cubes may hold superfluous ones.
pub(super) fn independent(units: usize) -> (CubeCount, CubeDim) {
    (cubes(units.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32))
}

/// At least `count` cubes in a grid that every device takes.
pub(super) fn cubes(count: usize) -> CubeCount {
    let x = count.clamp(1, MAX_CUBES);
    CubeCount::Static(x as u32, count.div_ceil(x).max(1) as u32, 1)
}

/// Whether the kernels that exchange values inside of planes of 32 units can run.
pub(super) fn has_planes(client: &Client) -> bool {
    let properties = client.properties();
    let hardware = &properties.hardware;
    properties.features.plane.contains(Plane::Ops)
        && hardware.plane_size_min == 32
        && hardware.plane_size_max == 32
        && hardware.max_units_per_cube >= 256
        && (is_cuda(client) || client.name().contains("spirv"))
}

/// Whether kernels are compiled as CUDA C++, which takes instructions of the chip.
pub(super) fn is_cuda(client: &Client) -> bool {
    client.name().contains("cuda")
}

/// Panics if the device of `like` lacks one of the types, or binds fewer than `n_buffers` to a kernel.
pub(super) fn check_device(
    op: &str,
    like: &CubeTensor,
    dtypes: impl IntoIterator<Item = DType>,
    n_buffers: usize,
) {
    let properties = like.client.properties();
    let device = &properties.identity.name;
    for dtype in dtypes.into_iter().filter(|dtype| *dtype != DType::F32) {
        let held = properties.supports_type(dtype_to_elem_type(dtype));
        assert!(held, "{}", lacks_type(op, device, dtype));
    }
    if !binds_any(&like.client) {
        let most = properties.hardware.max_bindings as usize;
        assert!(n_buffers <= most, "{}", lacks_buffers(op, device, n_buffers, most));
    }
}

/// The types of tensors that may be absent.
pub(super) fn dtypes_of<const N: usize>(
    tensors: [&Maybe<burn_cubecl::CubeBackend>; N],
) -> impl Iterator<Item = DType> {
    tensors.into_iter().filter_map(|tensor| match tensor {
        Maybe::Present(tensor) => Some(tensor.dtype),
        Maybe::Absent => None,
    })
}

/// Whether kernels get addresses and so any number of tensors: in all languages but one.
pub(super) fn binds_any(client: &Client) -> bool {
    !is_wgsl(client)
}

fn lacks_type(op: &str, device: &str, dtype: DType) -> String {
    let dtype = format!("{dtype:?}").to_lowercase();
    format!("{op}: `{device}` does not compute in {dtype}; use f32, or another device")
}

fn lacks_buffers(op: &str, device: &str, n_buffers: usize, most: usize) -> String {
    format!(
        "{op}: a kernel needs {n_buffers} buffers and `{device}` binds at most {most}; use another \
         device"
    )
}

fn is_wgsl(client: &Client) -> bool {
    client.name() == "wgpu<wgsl>"
}

/// Why [`has_planes`] says no.
pub(super) fn lacks_planes(client: &Client) -> String {
    let why = match is_wgsl(client) {
        true => "its kernels are compiled to WGSL",
        false => "it has no planes of 32 units",
    };
    why.to_owned()
}

/// What [`slow_paths`] returns.
static SLOW_PATHS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Operations that ran kernels so far which are slower than those for other devices or other sizes, a
/// line for each device and reason. Each is logged when it first happens.
#[must_use]
pub fn slow_paths() -> Vec<String> {
    let lines = SLOW_PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().cloned().collect()
}

/// Says once that an operation runs `kernels`, which are slower than others, and why.
pub(super) fn take_slow_path(op: &str, client: &Client, kernels: &str, why: &str) {
    let device = &client.properties().identity.name;
    let line = format!("{op}: `{device}` runs {kernels}, which are slower: {why}");
    let mut lines = SLOW_PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    if !lines.contains(&line) {
        tracing::info!("{line}");
        lines.insert(line);
    }
}

/// Panics if a kernel's 32-bit indices do not reach the end of a buffer of `len` elements.
pub(super) fn check_len(op: &str, what: &str, len: usize) {
    assert!(
        u32::try_from(len).is_ok(),
        "{op}: {what} needs {len} elements, kernels index at most 2^32 - 1; use a smaller batch"
    );
}

/// As [`check_len`] for f32 values that are about to be allocated on the device of `like`.
pub(super) fn check_fits(op: &str, what: &str, len: usize, like: &CubeTensor) {
    check_len(op, what, len);
    let properties = like.client.properties();
    let (bytes, most) = (4 * len as u64, properties.memory.max_page_size);
    assert!(bytes <= most, "{}", lacks_bytes(op, &properties.identity.name, what, bytes, most));
}

fn lacks_bytes(op: &str, device: &str, what: &str, bytes: u64, most: u64) -> String {
    format!(
        "{op}: {what} needs {bytes} bytes and `{device}` allocates at most {most} at a time; use a \
         smaller batch"
    )
}

/// Tensors, each followed by room up to its reserved length, in one f32 buffer on the device of `like`.
pub(super) fn packed(
    op: &str,
    parts: Vec<(Option<CubeTensor>, usize)>,
    like: &CubeTensor,
) -> CubeTensor {
    let len = parts.iter().map(|(_, len)| len).sum();
    check_fits(op, "a packed buffer", len, like);
    let to = empty_f32(like, [len]);
    let mut offset = 0;
    for (tensor, reserved) in parts {
        if let Some(tensor) = tensor {
            let tensor = rows(tensor);
            let len = tensor.meta.num_elements();
            let (count, dim) = independent(len);
            let dtype = elem(&tensor);
            // SAFETY: the kernel checks `len`, the length of what it reads; what it writes ends where
            // the next part begins.
            unsafe {
                pack::launch_unchecked(
                    &to.client.clone(),
                    count,
                    dim,
                    tensor.into_tensor_arg(),
                    to.clone().into_tensor_arg(),
                    len,
                    offset,
                    dtype,
                );
            }
        }
        offset += reserved;
    }
    to
}

/// A tensor of a packed f32 buffer, `offset` elements behind its beginning.
pub(super) fn part(
    from: &CubeTensor,
    offset: usize,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor {
    let to = empty(from, shape, dtype);
    let len = to.meta.num_elements();
    let (count, dim) = independent(len);
    // SAFETY: the kernel checks the number of elements, and callers name parts of `from`.
    unsafe {
        unpack::launch_unchecked(
            &from.client,
            count,
            dim,
            from.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            len,
            offset,
            elem(&to),
        );
    }
    to
}

/// Sums over the rows of an f32 `[rows, widths[0] + widths[1]]`, its columns in two tensors, of which the
/// second may be of no use.
pub(super) fn column_sums(from: &CubeTensor, rows: usize, widths: [usize; 2]) -> [CubeTensor; 2] {
    // Nothing binds a buffer without elements.
    let [first, second] = widths.map(|width| empty_f32(from, [width.max(1)]));
    let count = cubes((widths[0] + widths[1]).div_ceil(COLUMN_LANES));
    // SAFETY: the kernel checks its column and its row, whose numbers are those of the buffers.
    unsafe {
        kernels::column_sums::launch_unchecked(
            &from.client,
            count,
            CubeDim::new_1d((COLUMN_LANES * COLUMN_ROWS) as u32),
            from.clone().into_tensor_arg(),
            first.clone().into_tensor_arg(),
            second.clone().into_tensor_arg(),
            rows,
            widths[0],
            widths[1],
        );
    }
    [first, second]
}

/// `scale` times the sum of all elements of a contiguous f32 tensor, `[1]`.
pub(super) fn sum_all(from: &CubeTensor, scale: f32) -> CubeTensor {
    let to = empty_f32(from, [1]);
    // SAFETY: the kernel checks its place against the number of elements.
    unsafe {
        kernels::sum_all::launch_unchecked(
            &from.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(SUM_UNITS as u32),
            from.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            from.meta.num_elements(),
            scale,
            SUM_UNITS,
        );
    }
    to
}

/// The rows of a matrix cut into parts of the given widths, the last of which may be 0, in one launch;
/// a part without width comes as a tensor that holds nothing of use.
pub(super) fn split(from: &CubeTensor, n_rows: usize, widths: [usize; 3]) -> [CubeTensor; 3] {
    let (len, vector) = vectors(n_rows, widths);
    // WebGPU binds no buffer that is smaller than a vector, not even for a part that nothing is written to.
    let [first, second, third] =
        widths.map(|width| empty(from, [n_rows, width.max(vector)], from.dtype));
    let (count, dim) = independent(len);
    let [n_first, n_second, n_third] = widths.map(|width| width / vector);
    // SAFETY: the kernel checks the number of vectors, and `vector` divides all widths.
    unsafe {
        kernels::split::launch_unchecked(
            &from.client,
            count,
            dim,
            vector,
            from.clone().into_tensor_arg(),
            first.clone().into_tensor_arg(),
            second.clone().into_tensor_arg(),
            third.clone().into_tensor_arg(),
            len,
            n_first,
            n_second,
            n_third,
            elem(from),
        );
    }
    [first, second, third]
}

/// The way back from [`split`]: parts in row-major order beside each other, zeros for an absent one.
///
/// # Panics
/// If all are absent.
pub(super) fn join(
    parts: [Option<CubeTensor>; 3],
    n_rows: usize,
    widths: [usize; 3],
) -> CubeTensor {
    let present = Present {
        first: parts[0].is_some(),
        second: parts[1].is_some(),
        third: parts[2].is_some(),
    };
    let like = parts.iter().flatten().next().cloned();
    // The backward pass of an operation runs because one of its outputs has a gradient.
    let like = like.expect("a part to join");
    let to = empty(&like, [n_rows, widths.iter().sum()], like.dtype);
    let (len, vector) = vectors(n_rows, widths);
    let (count, dim) = independent(len);
    let [first, second, third] = parts.map(|part| part.unwrap_or_else(|| like.clone()));
    let [n_first, n_second, n_third] = widths.map(|width| width / vector);
    // SAFETY: as in `split`; of an absent part nothing is read.
    unsafe {
        kernels::join::launch_unchecked(
            &to.client,
            count,
            dim,
            vector,
            first.into_tensor_arg(),
            second.into_tensor_arg(),
            third.into_tensor_arg(),
            to.clone().into_tensor_arg(),
            len,
            n_first,
            n_second,
            n_third,
            present,
            elem(&to),
        );
    }
    to
}

/// Number and size of the vectors of a matrix whose columns are cut.
fn vectors(n_rows: usize, widths: [usize; 3]) -> (usize, usize) {
    // What divides all widths divides their bits together.
    let vector = vector_size(widths.iter().fold(0, |bits, width| bits | width));
    (n_rows * widths.iter().sum::<usize>() / vector, vector)
}

/// Elements that a unit takes at a time: a divisor of `len`.
pub(super) fn vector_size(len: usize) -> usize {
    [4, 2, 1].into_iter().find(|size| len.is_multiple_of(*size)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_lacks_is_named_with_the_way_out() {
        assert_eq!(
            lacks_type("selective_scan", "Card", DType::BF16),
            "selective_scan: `Card` does not compute in bf16; use f32, or another device"
        );
        assert_eq!(
            lacks_buffers("causal_conv1d", "Card", 8, 7),
            "causal_conv1d: a kernel needs 8 buffers and `Card` binds at most 7; use another device"
        );
        assert_eq!(
            lacks_bytes("selective_scan", "Card", "a buffer", 1 << 31, 1 << 30),
            "selective_scan: a buffer needs 2147483648 bytes and `Card` allocates at most 1073741824 at a \
             time; use a smaller batch"
        );
    }
}
