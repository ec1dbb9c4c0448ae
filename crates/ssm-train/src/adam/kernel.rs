//! One unit for each vector of elements.

#![allow(
    clippy::too_many_arguments,
    reason = "kernels are expanded, not run: arguments are buffers and scalars"
)]

use cubecl::prelude::*;

/// The scalars of one step, by name as in `Factors`; `fresh_1` and `fresh_2` are `1 - beta`.
///
/// They are arguments of the kernel and no part of it: with a new learning rate at every step it would
/// be compiled at every step otherwise.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Scalars {
    pub(super) beta_1: f32,
    pub(super) fresh_1: f32,
    pub(super) beta_2: f32,
    pub(super) fresh_2: f32,
    pub(super) l2: f32,
    pub(super) keep: f32,
    pub(super) rate: f32,
    pub(super) correction: f32,
    pub(super) eps: f32,
}

/// A weight, its moments and its gradient to the weight and the moments one step on.
#[cube]
fn stepped<V: Size>(
    weight: Vector<f32, V>,
    moments: (Vector<f32, V>, Vector<f32, V>),
    grad: Vector<f32, V>,
    scalars: Scalars,
) -> (Vector<f32, V>, Vector<f32, V>, Vector<f32, V>) {
    let g = grad + weight * Vector::<f32, V>::new(scalars.l2);
    let kept_1 = moments.0 * Vector::<f32, V>::new(scalars.beta_1);
    let kept_2 = moments.1 * Vector::<f32, V>::new(scalars.beta_2);
    let first = kept_1 + g * Vector::<f32, V>::new(scalars.fresh_1);
    let second = kept_2 + g * g * Vector::<f32, V>::new(scalars.fresh_2);
    let root = second.sqrt() * Vector::<f32, V>::new(scalars.correction);
    let step = first / (root + Vector::<f32, V>::new(scalars.eps));
    let kept = weight * Vector::<f32, V>::new(scalars.keep);
    (kept - step * Vector::<f32, V>::new(scalars.rate), first, second)
}

/// Weights `w` and their moments one step on, in place; `len` vectors each.
#[cube(launch_unchecked)]
pub(super) fn adam_step<V: Size>(
    w: &mut Tensor<Vector<f32, V>>,
    moment_1: &mut Tensor<Vector<f32, V>>,
    moment_2: &mut Tensor<Vector<f32, V>>,
    grad: &Tensor<Vector<f32, V>>,
    scalars: Scalars,
    len: usize,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let moments = (moment_1[at], moment_2[at]);
        let (weight, first, second) = stepped::<V>(w[at], moments, grad[at], scalars);
        w[at] = weight;
        moment_1[at] = first;
        moment_2[at] = second;
    }
}

/// [`adam_step`] of several parameters, of `lens[i]` vectors: row `i` of the grid is that of parameter `i`.
#[cube(launch_unchecked)]
pub(super) fn adam_steps<V: Size>(
    w: &mut Sequence<OwnedTensor<Vector<f32, V>>>,
    moment_1: &mut Sequence<OwnedTensor<Vector<f32, V>>>,
    moment_2: &mut Sequence<OwnedTensor<Vector<f32, V>>>,
    grad: &Sequence<OwnedTensor<Vector<f32, V>>>,
    lens: &Sequence<usize>,
    scalars: Scalars,
) {
    let at = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    #[unroll]
    for i in 0..grad.len() {
        if CUBE_POS_Y as usize == i && at < lens[i] {
            let moments = (moment_1[i][at], moment_2[i][at]);
            let (weight, first, second) = stepped::<V>(w[i][at], moments, grad[i][at], scalars);
            let stepped_w = w.index_mut(i);
            stepped_w[at] = weight;
            let stepped_1 = moment_1.index_mut(i);
            stepped_1[at] = first;
            let stepped_2 = moment_2.index_mut(i);
            stepped_2[at] = second;
        }
    }
}
