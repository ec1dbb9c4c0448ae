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
    if ABSOLUTE_POS < len {
        let weight = w[ABSOLUTE_POS];
        let g = grad[ABSOLUTE_POS] + weight * Vector::<f32, V>::new(scalars.l2);
        let kept_1 = moment_1[ABSOLUTE_POS] * Vector::<f32, V>::new(scalars.beta_1);
        let kept_2 = moment_2[ABSOLUTE_POS] * Vector::<f32, V>::new(scalars.beta_2);
        let first = kept_1 + g * Vector::<f32, V>::new(scalars.fresh_1);
        let second = kept_2 + g * g * Vector::<f32, V>::new(scalars.fresh_2);
        let root = second.sqrt() * Vector::<f32, V>::new(scalars.correction);
        let step = first / (root + Vector::<f32, V>::new(scalars.eps));
        let kept = weight * Vector::<f32, V>::new(scalars.keep);
        w[ABSOLUTE_POS] = kept - step * Vector::<f32, V>::new(scalars.rate);
        moment_1[ABSOLUTE_POS] = first;
        moment_2[ABSOLUTE_POS] = second;
    }
}
