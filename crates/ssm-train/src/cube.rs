//! What the launchers of the engine's kernels share: from tensors to buffers, and grids.

use burn::tensor::Tensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{CubeCount, CubeDim};

/// Units of a cube.
pub(crate) const UNITS: usize = 256;

/// Most cubes along one axis that every device takes.
const MAX_CUBES: usize = 65_535;

/// The tensor in row-major order, as kernels take it; `None` if it is on no device of CubeCL.
pub(crate) fn rows<const D: usize>(tensor: Tensor<D>) -> Option<CubeTensor> {
    tensor.try_into_primitive::<CubeBackend>().ok().map(into_contiguous)
}

/// Tensors that every kernel on the device of `tensor` may have: those that the device binds, but for the
/// one that holds sizes; in most languages kernels get addresses, and a thousand are no limit.
pub(crate) fn bindings(tensor: &CubeTensor) -> usize {
    /// What every implementation of WebGPU binds.
    const FEWEST: usize = 7;
    match tensor.client.name() {
        "wgpu<wgsl>" => FEWEST,
        _ => (tensor.client.properties().hardware.max_bindings as usize).max(FEWEST),
    }
}

/// Cubes and their size for `units` independent units; the last cubes may hold superfluous ones.
pub(crate) fn independent(units: usize) -> (CubeCount, CubeDim) {
    let count = units.div_ceil(UNITS);
    let x = count.clamp(1, MAX_CUBES);
    let count = CubeCount::Static(x as u32, count.div_ceil(x).max(1) as u32, 1);
    (count, CubeDim::new_1d(UNITS as u32))
}

/// Elements that a unit takes at a time: a divisor of `len`.
pub(crate) fn vector_size(len: usize) -> usize {
    [4, 2, 1].into_iter().find(|size| len.is_multiple_of(*size)).unwrap_or(1)
}
