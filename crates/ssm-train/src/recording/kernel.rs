//! Copies of several tensors in one launch.

use cubecl::prelude::*;

/// Row `i` of the grid copies the `lens[i]` words of tensor `i`.
#[cube(launch_unchecked)]
pub(super) fn copy_words(
    from: &Sequence<OwnedTensor<u32>>,
    to: &mut Sequence<OwnedTensor<u32>>,
    lens: &Sequence<usize>,
) {
    let at = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    #[unroll]
    for i in 0..from.len() {
        if CUBE_POS_Y as usize == i && at < lens[i] {
            let target = to.index_mut(i);
            target[at] = from[i][at];
        }
    }
}
