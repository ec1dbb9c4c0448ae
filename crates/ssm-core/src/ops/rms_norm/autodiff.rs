//! The backward pass, registered once for every backend.

use burn::backend::{
    Backend,
    autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::extension::{RmsNormGradPrimitives, RmsNormOps};

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

impl<B: Backend + RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm_fwd(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let parents = [x.node(), weight.node()];
        let (x, weight) = (x.primitive().clone(), weight.primitive().clone());
        let y = B::rms_norm_fwd(x.clone(), weight.clone(), epsilon);
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
}
