//! What the launchers of the engine's kernels share: from tensors to buffers, and grids.

use burn::tensor::Tensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{
    CubeCount, CubeDim,
    client::Client,
    prelude::{LaunchArg, SequenceArg, TensorArg},
};

/// Units of a cube.
pub(crate) const UNITS: usize = 256;

/// Most cubes along one axis that every device takes.
pub(crate) const MAX_CUBES: usize = 65_535;

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

/// A launch over several groups of tensors: those of a group have one length and are contiguous, and row `i` of
/// the grid serves group `i`.
pub(crate) struct MultiTensorLaunch<'a, const N: usize> {
    groups: &'a [[CubeTensor; N]],
    /// Elements that a unit takes at a time: a divisor of every length.
    pub(crate) vector_size: usize,
}

/// Most groups of a launch.
pub(crate) const MAX_GROUPS: usize = 16;

impl<'a, const N: usize> MultiTensorLaunch<'a, N> {
    /// All groups, in launches that the device of the first one takes. They are sorted by length: in a launch
    /// all get as many cubes as the longest needs.
    pub(crate) fn launches(groups: &'a mut [[CubeTensor; N]]) -> impl Iterator<Item = Self> {
        // A divisor of every length is one of their bits together.
        let bits = |groups: &[[_; N]]| groups.iter().map(len).fold(0, |bits, len| bits | len);
        Self::parts(groups)
            .map(move |groups| Self { groups, vector_size: vector_size(bits(groups)) })
    }

    /// As [`MultiTensorLaunch::launches`], for kernels that take an element at a time.
    pub(crate) fn launches_of_elements(
        groups: &'a mut [[CubeTensor; N]],
    ) -> impl Iterator<Item = Self> {
        Self::parts(groups).map(|groups| Self { groups, vector_size: 1 })
    }

    fn parts(groups: &'a mut [[CubeTensor; N]]) -> impl Iterator<Item = &'a [[CubeTensor; N]]> {
        assert!(groups.iter().all(|group| {
            group
                .iter()
                .all(|tensor| tensor.is_contiguous() && tensor.meta.num_elements() == len(group))
        }));
        groups.sort_by_key(len);
        let bindings = groups.first().map_or(N, |group| bindings(&group[0]));
        groups.chunks(groups_of(N, bindings))
    }

    pub(crate) fn n_groups(&self) -> usize {
        self.groups.len()
    }

    /// Vectors of the longest group.
    pub(crate) fn longest(&self) -> usize {
        self.groups.iter().map(len).max().unwrap_or_default() / self.vector_size
    }

    pub(crate) fn client(&self) -> &Client {
        &self.groups[0][0].client
    }

    /// Cubes and their size for a unit per vector, of which there may be `MAX_CUBES * UNITS`.
    pub(crate) fn grid(&self) -> (CubeCount, CubeDim) {
        let cubes = self.longest().div_ceil(UNITS).max(1);
        assert!(cubes <= MAX_CUBES, "{cubes}");
        let count = CubeCount::Static(cubes as u32, self.groups.len() as u32, 1);
        (count, CubeDim::new_1d(UNITS as u32))
    }

    /// Tensor `n` of every group.
    pub(crate) fn tensors<T: LaunchArg<RuntimeArg = TensorArg>>(&self, n: usize) -> SequenceArg<T> {
        self.groups.iter().map(|group| group[n].clone().into_tensor_arg()).collect()
    }

    /// How many vectors the tensors of each group have.
    pub(crate) fn lens(&self) -> SequenceArg<usize> {
        self.groups.iter().map(|group| len(group) / self.vector_size).collect()
    }
}

fn len<const N: usize>(group: &[CubeTensor; N]) -> usize {
    group[0].meta.num_elements()
}

/// Groups of so many tensors that a launch takes where the device binds so many; a kernel may have one more.
fn groups_of(n_tensors: usize, bindings: usize) -> usize {
    (bindings.saturating_sub(1) / n_tensors).clamp(1, MAX_GROUPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_takes_what_the_device_binds() {
        // Sums of squares, copies, and Adam: in WebGPU, and where kernels get addresses.
        assert_eq!([1, 2, 4].map(|n_tensors| groups_of(n_tensors, 7)), [6, 3, 1]);
        assert_eq!([1, 2, 4].map(|n_tensors| groups_of(n_tensors, 1024)), [MAX_GROUPS; 3]);
    }
}
