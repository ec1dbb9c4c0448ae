//! The node whose backward pass runs a layer again, for every backend.

use burn::backend::{
    AutodiffBackend, Backend, BackendTensor, DispatchKindConversion, DispatchTensor,
    autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::extension::{Again, RecomputeOps};
use crate::ops::primitive::Maybe;

#[derive(Debug)]
struct Recompute;

impl<B: Backend + RecomputeOps> Backward<B, 3> for Recompute
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Again;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = BackendTensor::Float(grads.consume::<B>(&ops.node));
        let again =
            ops.state.run(<DispatchTensor as DispatchKindConversion<B>>::from_backend(grad));
        // Autodiff visits a node once.
        let computed = again.into_iter().flatten();
        for (parent, grad) in ops.parents.into_iter().zip(computed) {
            let Some(parent) = parent else { continue };
            match <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(grad) {
                Ok(grad) => grads.register::<B>(parent.id, grad.float()),
                Err(reason) => panic!("recompute: {reason}"),
            }
        }
    }
}

impl<B: Backend + RecomputeOps, C: CheckpointStrategy> RecomputeOps for Autodiff<B, C>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    fn recompute(
        x: FloatTensor<Self>,
        other: Maybe<Self>,
        params: FloatTensor<Self>,
        y: FloatTensor<Self>,
        again: Again,
    ) -> FloatTensor<Self> {
        let y = y.primitive().clone();
        let none = || <Self as AutodiffBackend>::from_inner(y.clone());
        let other = other.into_option().unwrap_or_else(none);
        let parents = [x.node(), params.node(), other.node()];
        match Recompute.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(again, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
