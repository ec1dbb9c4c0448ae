//! The backward pass, registered once for every backend: the gradients of the forward pass times one
//! number.

use std::sync::Arc;

use burn::{
    backend::{
        Backend, TensorMetadata,
        autodiff::{
            Autodiff,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{FloatDType, Shape},
};

use super::extension::{
    CrossEntropyOps, CrossEntropyOptions, CrossEntropyPrimitives, CrossEntropyResult,
};
use crate::ops::primitive::Maybe;

#[derive(Debug)]
struct CrossEntropy;

impl<B: Backend + CrossEntropyOps> Backward<B, 2> for CrossEntropy {
    /// Gradients of hidden states and weight.
    type State = [Option<FloatTensor<B>>; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let factor = B::float_reshape(grads.consume::<B>(&ops.node), Shape::from([1, 1]));
        for (parent, grad) in ops.parents.into_iter().zip(ops.state) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                // In f32: the factor may be a number of targets, which bf16 cannot count.
                let dtype = grad.dtype().into();
                let product = B::float_mul(B::float_cast(grad, FloatDType::F32), factor.clone());
                grads.register::<B>(parent.id, B::float_cast(product, dtype));
            }
        }
    }
}

impl<B: Backend + CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn cross_entropy(
        input: CrossEntropyPrimitives<Self>,
        targets: Arc<[i32]>,
        on_device: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> CrossEntropyResult<Self> {
        let parents = [input.hidden.node(), input.weight.node()];
        let primitives = CrossEntropyPrimitives {
            hidden: input.hidden.primitive().clone(),
            weight: input.weight.primitive().clone(),
        };
        let compute = |gradients: bool| {
            let options = CrossEntropyOptions { gradients, ..options };
            B::cross_entropy(primitives.clone(), targets.clone(), on_device.clone(), options)
        };
        let loss = match CrossEntropy.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::UnTracked(prep) => prep.finish(compute(false).loss),
            OpsKind::Tracked(prep) => {
                let CrossEntropyResult { loss, hidden, weight } = compute(true);
                prep.finish([hidden.into_option(), weight.into_option()], loss)
            }
        };
        CrossEntropyResult { loss, hidden: Maybe::Absent, weight: Maybe::Absent }
    }
}
