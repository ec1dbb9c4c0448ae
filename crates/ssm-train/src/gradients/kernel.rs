//! Sums of squares of several tensors in one launch, and their products with a number.

#![allow(
    clippy::manual_div_ceil,
    reason = "kernels are expanded, not run: what is not of the language cannot be called"
)]

use cubecl::prelude::*;

/// Row `i` of the grid adds up the squares of tensor `i`, of `lens[i]` vectors; each of its cubes takes
/// every `CUBE_COUNT_X`-th piece and leaves its sum at `offset + i * CUBE_COUNT_X` and behind.
#[cube(launch_unchecked)]
pub(super) fn squares<V: Size>(
    tensors: Sequence<OwnedTensor<Vector<f32, V>>>,
    lens: Sequence<usize>,
    sums: &mut Tensor<f32>,
    offset: usize,
    #[comptime] units: usize,
) {
    let unit = UNIT_POS as usize;
    let cubes = CUBE_COUNT_X as usize;
    let mut square = 0.0f32;
    #[unroll]
    for i in 0..tensors.len() {
        // The same for all units of a cube.
        if CUBE_POS_Y as usize == i {
            let len = lens[i];
            let turns = (len + cubes * units - 1) / (cubes * units);
            for turn in 0..turns {
                let at = (turn * cubes + CUBE_POS_X as usize) * units + unit;
                if at < len {
                    let value = tensors[i][at];
                    let value = value * value;
                    #[unroll]
                    for s in 0..V::value() {
                        square += value.extract(s);
                    }
                }
            }
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(units);
    shared[unit] = square;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
    }
    if unit == 0 {
        sums[offset + CUBE_POS_Y as usize * cubes + CUBE_POS_X as usize] = shared[0];
    }
}

/// Row `i` of the grid writes `factor` times the `lens[i]` vectors of tensor `i`.
#[cube(launch_unchecked)]
pub(super) fn scaled<V: Size>(
    from: &Sequence<OwnedTensor<Vector<f32, V>>>,
    to: &mut Sequence<OwnedTensor<Vector<f32, V>>>,
    lens: &Sequence<usize>,
    factor: f32,
) {
    let at = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    #[unroll]
    for i in 0..from.len() {
        if CUBE_POS_Y as usize == i && at < lens[i] {
            let product = from[i][at] * Vector::<f32, V>::new(factor);
            let target = to.index_mut(i);
            target[at] = product;
        }
    }
}
