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

/// A launch over several rows of tensors: what is in a row has one length, and row `i` of the grid serves row
/// `i`.
pub(crate) struct Several<'a, const N: usize> {
    rows: &'a [[CubeTensor; N]],
    /// Elements that a unit takes at a time: a divisor of every length.
    pub(crate) vector: usize,
}

/// Most rows of a launch.
const MAX_ROWS: usize = 16;

impl<'a, const N: usize> Several<'a, N> {
    /// All rows, in launches that the device of the first one takes. They are sorted by length: in a launch
    /// all get as many cubes as the longest needs.
    pub(crate) fn launches(rows: &'a mut [[CubeTensor; N]]) -> impl Iterator<Item = Self> {
        // A divisor of every length is one of their bits together.
        let bits = |rows: &[[_; N]]| rows.iter().map(len).fold(0, |bits, len| bits | len);
        Self::parts(rows).map(move |rows| Self { rows, vector: vector_size(bits(rows)) })
    }

    /// As [`Several::launches`], for kernels that take an element at a time.
    pub(crate) fn of_elements(rows: &'a mut [[CubeTensor; N]]) -> impl Iterator<Item = Self> {
        Self::parts(rows).map(|rows| Self { rows, vector: 1 })
    }

    fn parts(rows: &'a mut [[CubeTensor; N]]) -> impl Iterator<Item = &'a [[CubeTensor; N]]> {
        rows.sort_by_key(len);
        // A kernel may have one more tensor.
        let most = rows.first().map_or(1, |row| (bindings(&row[0]) - 1) / N);
        rows.chunks(most.clamp(1, MAX_ROWS))
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// Vectors of the longest row.
    pub(crate) fn longest(&self) -> usize {
        self.rows.iter().map(len).max().unwrap_or_default() / self.vector
    }

    pub(crate) fn client(&self) -> &Client {
        &self.rows[0][0].client
    }

    /// Cubes and their size for a unit per vector.
    pub(crate) fn grid(&self) -> (CubeCount, CubeDim) {
        let cubes = self.longest().div_ceil(UNITS).max(1) as u32;
        let count = CubeCount::Static(cubes, self.rows.len() as u32, 1);
        (count, CubeDim::new_1d(UNITS as u32))
    }

    /// Tensor `n` of every row.
    pub(crate) fn tensors<T: LaunchArg<RuntimeArg = TensorArg>>(&self, n: usize) -> SequenceArg<T> {
        self.rows.iter().map(|row| row[n].clone().into_tensor_arg()).collect()
    }

    /// How many vectors each row has.
    pub(crate) fn lens(&self) -> SequenceArg<usize> {
        self.rows.iter().map(|row| len(row) / self.vector).collect()
    }
}

fn len<const N: usize>(row: &[CubeTensor; N]) -> usize {
    row[0].meta.num_elements()
}
