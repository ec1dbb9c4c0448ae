//! Matrix products on devices of CubeCL: our own kernels in f32 and on Hopper chips, which of CubeK's
//! elsewhere, and long sums in parts.
//!
//! The kernel depends on the type and the sizes and on nothing that is measured while the program
//! runs: a product that is tuned by the clock has other bits in the next run, and takes minutes before
//! the first step. `experiments/2026-11-24-gpu-kernels` has the times that the choice rests on.

use burn::{
    backend::{TensorMetadata, cubecl::dtype_to_storage_type, ops::FloatTensorOps},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubek::{
    matmul::{
        definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError},
        launch::launch_ref,
        multi_level::{
            Strategy as Kernel,
            components::tile::TileMatmulKind,
            routines::{
                TileSizeSelection,
                batch::{
                    ordered_double_buffering::OrderedSelectionArgs,
                    simple_unit::SimpleUnitSelectionArgs,
                },
            },
        },
        routine::BlueprintStrategy::Inferred,
        strategy::Strategy,
    },
    std::InputBinding,
};

use super::{hopper, squares};
use crate::ops::cube::{cast, empty, is_cuda, take_slow_path};

type B = CubeBackend;

/// Side of the tiles that a kernel cuts the result into, about.
const TILE: usize = 64;

/// Tiles that keep a large device busy.
const ENOUGH_TILES: usize = 512;

/// Shortest part of a sum.
const MIN_PART: usize = 256;

/// Most parts of a sum.
const MAX_PARTS: usize = 64;

/// Terms of the sum from which a product of a single row is a sum in parts.
const LONG: usize = 4096;

/// `lhs * rhs` of two matrices in any order of memory, added in f32 and written in `dtype`.
pub(in crate::ops) fn product(lhs: CubeTensor, rhs: CubeTensor, dtype: DType) -> CubeTensor {
    if let Some(product) = hopper::product(&lhs, &rhs, dtype) {
        return product;
    }
    match lhs.shape().dims() {
        // A single row has few tiles too.
        [1, len] if len >= LONG => {
            sum_of_rows(B::float_reshape(lhs, Shape::from([len, 1])), rhs, dtype)
        }
        _ => launch(lhs, rhs, dtype),
    }
}

/// `first * rhs[..k] + second * rhs[k..]`, where `first` has `k` columns, if that is one product.
pub(super) fn sum_of_products(
    [first, second]: [&CubeTensor; 2],
    rhs: &CubeTensor,
    dtype: DType,
) -> Option<CubeTensor> {
    hopper::sum_of_products([first, second], rhs, dtype)
}

/// `lhs^T * rhs` of two row-major matrices, a sum over their rows, written in `dtype`.
///
/// There are often many more rows than the result has tiles, so a part of the device would do all the
/// work: the rows are cut into parts, whose products are added in f32 afterwards, always in one order.
pub(in crate::ops) fn sum_of_rows(lhs: CubeTensor, rhs: CubeTensor, dtype: DType) -> CubeTensor {
    let transposed = B::float_swap_dims(lhs.clone(), 0, 1);
    if let Some(sum) = hopper::product(&transposed, &rhs, dtype) {
        return sum;
    }
    let ([rows, m], [_, n]): ([usize; 2], [usize; 2]) = (lhs.shape().dims(), rhs.shape().dims());
    let parts = parts(rows, m.div_ceil(TILE) * n.div_ceil(TILE));
    if parts == 1 {
        return launch(transposed, rhs, dtype);
    }
    let cut = |t: CubeTensor, width| B::float_reshape(t, Shape::from([parts, rows / parts, width]));
    let products = launch(B::float_swap_dims(cut(lhs, m), 1, 2), cut(rhs, n), DType::F32);
    let sum = B::float_sum_dim(products, 0);
    cast(B::float_reshape(sum, Shape::from([m, n])), dtype)
}

/// Into how many equal parts a sum over `rows` is cut whose result has this many tiles: a power of
/// two.
fn parts(rows: usize, tiles: usize) -> usize {
    let mut parts = 1;
    while parts < MAX_PARTS
        && parts * tiles < ENOUGH_TILES
        && rows.is_multiple_of(2 * parts)
        && rows / (2 * parts) >= MIN_PART
    {
        parts *= 2;
    }
    parts
}

/// The product of the last two axes.
fn launch(lhs: CubeTensor, rhs: CubeTensor, out_dtype: DType) -> CubeTensor {
    let mut shape = lhs.shape().to_vec();
    if let (Some(to), Some(from)) = (shape.last_mut(), rhs.shape().to_vec().last()) {
        *to = *from;
    }
    let out = empty(&lhs, Shape::from(shape), out_dtype);
    if squares::is_faster(&lhs, &rhs) {
        squares::product(lhs, rhs, &out);
        return out;
    }
    let run = |kernel: &Strategy| -> Result<(), MatmulSetupError> {
        let [lhs_type, rhs_type, out_type] =
            [lhs.dtype, rhs.dtype, out_dtype].map(dtype_to_storage_type);
        let mut types = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: lhs_type,
            rhs: rhs_type,
            out: out_type,
        });
        launch_ref(
            kernel,
            &out.client,
            InputBinding::new(lhs.clone().binding(), lhs_type),
            InputBinding::new(rhs.clone().binding(), rhs_type),
            out.clone().binding(),
            &mut types,
        )
    };
    let mut reasons: Vec<String> = Vec::new();
    for kernel in kernels(&lhs) {
        match run(&kernel) {
            Ok(()) => {
                if let Some(first) = reasons.first() {
                    take_slow_path(
                        "linear",
                        &out.client,
                        "others of CubeK's kernels",
                        first.trim(),
                    );
                }
                return out;
            }
            Err(reason) => reasons.push(reason.to_string()),
        }
    }
    let device = &out.client.properties().identity.name;
    panic!("{}", no_kernel([&lhs.shape(), &rhs.shape()], lhs.dtype, device, &reasons))
}

/// Each reason is that of a kernel; CubeK ends them with an empty line.
fn no_kernel([lhs, rhs]: [&Shape; 2], dtype: DType, device: &str, reasons: &[String]) -> String {
    let dtype = format!("{dtype:?}").to_lowercase();
    let reasons: Vec<&str> = reasons.iter().map(|reason| reason.trim()).collect();
    let reasons = reasons.join("; ");
    format!(
        "linear: `{device}` has no kernel for a product of {lhs:?} and {rhs:?} in {dtype}; use another \
         device, or f32: {reasons}"
    )
}

/// Kernels by preference; the last one runs everywhere.
///
/// f32 is multiplied as f32: tensor cores would round the inputs to TF32, 2.7e-4 instead of 4e-7 away.
fn kernels(lhs: &CubeTensor) -> Vec<Strategy> {
    let unit = Kernel::SimpleUnit(Inferred(SimpleUnitSelectionArgs {
        tile_size: TileSizeSelection::MaxTileSize,
    }));
    if lhs.dtype == DType::F32 || !is_cuda(&lhs.client) {
        return vec![unit.into()];
    }
    let tensor_cores = Kernel::OrderedDoubleMma(Inferred(OrderedSelectionArgs {
        partition_k: Some(2),
        row_count: Some(8),
        rows_per_plane: Some(2),
        tile_matmul: TileMatmulKind::Mma,
    }));
    vec![tensor_cores.into(), Strategy::Auto, unit.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_without_a_kernel_names_the_device_and_every_reason() {
        let (lhs, rhs) = (Shape::from([2, 3]), Shape::from([3, 5]));
        let reasons = ["first reason\n\n".to_owned(), "second\n".to_owned()];
        let text = no_kernel([&lhs, &rhs], DType::BF16, "Card", &reasons);
        let expected = format!(
            "linear: `Card` has no kernel for a product of {lhs:?} and {rhs:?} in bf16; use another \
             device, or f32: first reason; second"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn long_sums_of_small_results_are_cut() {
        assert_eq!(parts(16_384, 24 * 2), 16);
        assert_eq!(parts(16_384, 12 * 48), 1);
        assert_eq!(parts(512, 4 * 16), 2);
        assert_eq!(parts(352, 16), 1);
        assert_eq!(parts(3 * 1024, 1), 8);
        assert_eq!(parts(1 << 20, 1), MAX_PARTS);
    }
}
