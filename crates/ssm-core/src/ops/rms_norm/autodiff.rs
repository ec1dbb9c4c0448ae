//! The backward pass, registered once for every backend.

use burn::{
    backend::{
        AutodiffBackend, Backend, TensorMetadata,
        autodiff::{
            Autodiff,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::DType,
};

use super::extension::{AddRmsNormGradPrimitives, RmsNormGradPrimitives, RmsNormOps};
use crate::ops::{
    autodiff::{Stash, port},
    primitive::Maybe,
};

#[derive(Debug)]
struct RmsNorm;

/// The arguments, and nothing that was computed from them.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f32,
}

impl<B: Backend + RmsNormOps> Backward<B, 2> for RmsNorm {
    type State = Saved<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let Saved { x, weight, epsilon } = ops.state;
        let grad = B::rms_norm_bwd(x, weight, grad_y, epsilon);
        for (parent, grad) in ops.parents.into_iter().zip([grad.x, grad.weight]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct AddRmsNorm;

/// The sum, which goes on in any case, and what the backward pass finds in the stash.
#[derive(Clone, Debug)]
struct SavedSum<B: Backend> {
    sum: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f32,
    /// Of `branch` and of the norm.
    dtype: DType,
    stash: Stash<B>,
}

impl<B: Backend + RmsNormOps> Backward<B, 3> for AddRmsNorm {
    type State = SavedSum<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _wake = grads.consume::<B>(&ops.node);
        let SavedSum { sum, weight, epsilon, dtype, stash } = ops.state;
        let mut outputs = stash.take().into_iter();
        let grad_sum = Maybe::from(outputs.next().flatten());
        let grad_y = outputs
            .next()
            .flatten()
            .unwrap_or_else(|| B::float_zeros(sum.shape(), &sum.device(), dtype.into()));
        let grad = B::add_rms_norm_bwd(sum, weight, grad_y, grad_sum, epsilon, dtype);
        for (parent, grad) in ops.parents.into_iter().zip([grad.x, grad.branch, grad.weight]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: Backend + RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        dtype: DType,
    ) -> FloatTensor<Self> {
        let parents = [x.node(), weight.node()];
        let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
        let y = B::rms_norm_fwd(x.clone(), weight.clone(), epsilon, dtype);
        match RmsNorm.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { x, weight, epsilon }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn rms_norm_bwd(
        _x: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
        _epsilon: f32,
    ) -> RmsNormGradPrimitives<Self> {
        panic!("rms_norm has first-order gradients only: its backward has no backward")
    }

    fn add_rms_norm_fwd(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let parents = [x.node(), branch.node(), weight.node()];
        let (branch, weight) = (branch.primitive().clone(), weight.primitive().clone());
        let dtype = branch.dtype();
        let (sum, y) = B::add_rms_norm_fwd(x.primitive().clone(), branch, weight.clone(), epsilon);
        match AddRmsNorm.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::UnTracked(_) => {
                let from = <Self as AutodiffBackend>::from_inner;
                (from(sum), from(y))
            }
            OpsKind::Tracked(prep) => {
                let stash = Stash::new(2);
                let saved =
                    SavedSum { sum: sum.clone(), weight, epsilon, dtype, stash: stash.clone() };
                // The node's own output is never read: the ports are.
                let node = prep.finish(saved, sum.clone());
                (port::<B, C>(0, &node, &stash, sum), port::<B, C>(1, &node, &stash, y))
            }
        }
    }

    fn add_rms_norm_bwd(
        _sum: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_sum: Maybe<Self>,
        _epsilon: f32,
        _branch_dtype: DType,
    ) -> AddRmsNormGradPrimitives<Self> {
        panic!("rms_norm has first-order gradients only: its backward has no backward")
    }
}
