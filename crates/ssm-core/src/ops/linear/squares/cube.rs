//! Launches of products by squares.

#[cfg(any(feature = "vulkan", feature = "webgpu"))]
use burn::backend::{CubeDevice, WgpuDeviceKind};
use burn::{backend::TensorMetadata, tensor::DType};
use burn_cubecl::tensor::CubeTensor;
use cubecl::{CubeCount, CubeDim};

use super::kernel::{self, Form, LayoutLaunch, OWN, UNITS};
use crate::ops::cube::{MAX_CUBES, elem, take_slow_path};

/// Squares of 64 numbers from which they are taken, and not those of 32: enough for each processor of a large
/// device.
const ENOUGH_SQUARES: usize = 128;

/// And those up to which CubeK's kernels are slower: with more its squares of 128 keep a device busy too.
const MOST_SQUARES: usize = 4096;

/// Most groups of units.
const MOST_GROUPS: usize = 4;

/// A product of one or of several pairs of matrices.
struct Sizes {
    m: usize,
    n: usize,
    terms: usize,
    matrices: usize,
}

impl Sizes {
    fn of(lhs: &CubeTensor, rhs: &CubeTensor) -> Self {
        let (lhs, rhs) = (lhs.shape().to_vec(), rhs.shape().to_vec());
        let axis = |shape: &[usize], back: usize| shape[shape.len() - back];
        let matrices = lhs[..lhs.len() - 2].iter().product();
        Self { m: axis(&lhs, 2), n: axis(&rhs, 1), terms: axis(&lhs, 1), matrices }
    }

    /// Squares across and down, of units that compute so many squares of four by four along a side.
    fn squares(&self, own: usize) -> [usize; 2] {
        let width = Form { own, groups: 1, by_terms: [false; 2] }.tile();
        [self.n.div_ceil(width), self.m.div_ceil(width)]
    }

    /// Large squares of all matrices.
    fn large_squares(&self) -> usize {
        let [across, down] = self.squares(2);
        across.saturating_mul(down).saturating_mul(self.matrices)
    }
}

/// Whether the compiler of the device is known to end: SwiftShader's does not, of SPIR-V (of WGSL it does).
fn compiles(like: &CubeTensor) -> bool {
    #[cfg(any(feature = "vulkan", feature = "webgpu"))]
    if let CubeDevice::Wgpu(device) = &like.device {
        return device.kind != WgpuDeviceKind::Cpu || like.client.name() != "wgpu<spirv>";
    }
    let _ = like;
    true
}

/// Whether a product is one for [`product`].
pub(in crate::ops::linear) fn is_faster(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    let sizes = Sizes::of(lhs, rhs);
    let cubes = sizes.squares(1).into_iter().chain([sizes.matrices]);
    let axes = [lhs, rhs].map(|tensor| tensor.shape().num_dims());
    let is_one = lhs.dtype == DType::F32
        && rhs.dtype == DType::F32
        && axes[0] == axes[1]
        && axes[0] <= 3
        && sizes.terms > 0
        && sizes.large_squares() <= MOST_SQUARES
        && cubes.into_iter().all(|cubes| (1..=MAX_CUBES).contains(&cubes));
    if is_one && !compiles(lhs) {
        let why = "its compiler does not end on those by squares";
        take_slow_path("linear", &lhs.client, "CubeK's kernels", why);
        return false;
    }
    is_one
}

/// Writes `lhs * rhs`, summed in f32, to `out`, which is in row-major order.
pub(in crate::ops::linear) fn product(lhs: CubeTensor, rhs: CubeTensor, out: &CubeTensor) {
    let sizes = Sizes::of(&lhs, &rhs);
    let own = if sizes.large_squares() >= ENOUGH_SQUARES { 2 } else { 1 };
    let (of_lhs, of_rhs) = (layout(&lhs, false), layout(&rhs, true));
    let by_terms = [of_lhs, of_rhs].map(|[_, line, term]| term <= line);
    let alone = Form { own, groups: 1, by_terms };
    let bytes = 2 * alone.staged() * OWN * DType::F32.size();
    let hardware = &out.client.properties().hardware;
    let held = (hardware.max_shared_memory_size / bytes)
        .min(hardware.max_units_per_cube as usize / UNITS)
        .min(sizes.terms.div_ceil(alone.terms()));
    let groups = [MOST_GROUPS, 2].into_iter().find(|groups| *groups <= held).unwrap_or(1);
    let form = Form { groups, ..alone };
    let [across, down] = sizes.squares(own);
    let count = CubeCount::Static(across as u32, down as u32, sizes.matrices as u32);
    let dim = CubeDim::new_1d((UNITS * groups) as u32);
    let dtypes = [elem(&lhs), elem(out)];
    let of = |lines: usize, [matrix, line, term]: [usize; 3]| {
        LayoutLaunch::new(lines, matrix, line, term)
    };
    // SAFETY: what is read and written lies below the sizes, which are those of the tensors, and strides
    // are theirs too.
    unsafe {
        kernel::product::launch_unchecked(
            &out.client,
            count,
            dim,
            OWN,
            lhs.into_tensor_arg(),
            rhs.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            sizes.terms,
            of(sizes.m, of_lhs),
            of(sizes.n, of_rhs),
            form,
            dtypes,
        );
    }
}

/// Elements from a matrix, a line and a term to the next; terms are the rows of the right operand.
fn layout(tensor: &CubeTensor, is_right: bool) -> [usize; 3] {
    let strides = tensor.meta.strides();
    let back = |axis: usize| strides[strides.len() - axis];
    let matrix = if strides.len() > 2 { back(3) } else { 0 };
    if is_right { [matrix, back(1), back(2)] } else { [matrix, back(2), back(1)] }
}
