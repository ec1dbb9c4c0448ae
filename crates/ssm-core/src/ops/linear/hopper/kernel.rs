//! The kernels: the product, whose body is a program in PTX, and the sum of its parts.

#![allow(
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: arguments are registers and buffers"
)]

use cubecl::{ir::ElemType, prelude::*};

use super::program::{ALIGNMENT, Tile, program};

/// Name of the kernel, by which the program finds its parameters.
pub(super) const NAME: &str = "hopper_product";

/// The product, from four tensor maps that are parameters of the kernel.
#[cube]
pub(super) fn product(
    tiles_m: u32,
    tiles_n: u32,
    tiles: u32,
    pieces: u32,
    pieces_first: u32,
    pieces_part: u32,
    band: u32,
    #[comptime] tile: Tile,
) {
    let words = comptime!(tile.shared_bytes() / 4);
    let memory = Shared::<[u32]>::new_aligned_slice(words, ALIGNMENT);
    let first = &memory[0];
    gpu_asm!(
        "{{",
        ".reg .b64 shared;",
        ".reg .b32 tiles_m, tiles_n, tiles, pieces, pieces_first, pieces_part, band;",
        "mov.b64 shared, {};",
        "mov.b32 tiles_m, {};",
        "mov.b32 tiles_n, {};",
        "mov.b32 tiles, {};",
        "mov.b32 pieces, {};",
        "mov.b32 pieces_first, {};",
        "mov.b32 pieces_part, {};",
        "mov.b32 band, {};",
        "{}",
        "}}",
        in(_) first,
        in(_) tiles_m,
        in(_) tiles_n,
        in(_) tiles,
        in(_) pieces,
        in(_) pieces_first,
        in(_) pieces_part,
        in(_) band,
        const program(NAME, tile),
    );
}

/// Adds `n_parts` results that lie behind each other, in this order.
#[cube(launch_unchecked)]
pub(super) fn add_parts<E: Float, V: Size>(
    parts: &Tensor<Vector<f32, V>>,
    sum: &mut Tensor<Vector<E, V>>,
    len: usize,
    #[comptime] n_parts: usize,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        let mut total = parts[ABSOLUTE_POS];
        #[unroll]
        for part in 1..n_parts {
            total += parts[part * len + ABSOLUTE_POS];
        }
        sum[ABSOLUTE_POS] = Vector::cast_from(total);
    }
}
