//! The backward pass, registered once for every backend.

use burn::backend::{
    AutodiffBackend, Backend, TensorMetadata,
    autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::extension::{LayerNormGradPrimitives, LayerNormOps, LayerNormPrimitives};
use crate::ops::primitive::Maybe;

#[derive(Debug)]
struct LayerNorm;

/// The arguments, and nothing that was computed from them.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    input: LayerNormPrimitives<B>,
    epsilon: f32,
}

impl<B: Backend + LayerNormOps> Backward<B, 4> for LayerNorm {
    type State = Saved<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let Saved { input, epsilon } = ops.state;
        let residual = match &input.residual {
            Maybe::Present(residual) => Some(residual.dtype()),
            Maybe::Absent => None,
        };
        let grad = B::layer_norm_bwd(input, grad_y, epsilon);
        let grad_residual = residual.map(|dtype| match dtype == grad.x.dtype() {
            true => grad.x.clone(),
            false => B::float_cast(grad.x.clone(), dtype.into()),
        });
        let all = [Some(grad.x), grad_residual, Some(grad.weight), grad.bias.into_option()];
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: Backend + LayerNormOps, C: CheckpointStrategy> LayerNormOps for Autodiff<B, C> {
    fn layer_norm_fwd(input: LayerNormPrimitives<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (residual, bias) = (input.residual.into_option(), input.bias.into_option());
        let inner = |tensor: &Option<FloatTensor<Self>>| -> Maybe<B> {
            tensor.as_ref().map(|tensor| tensor.primitive().clone()).into()
        };
        let primitives: LayerNormPrimitives<B> = LayerNormPrimitives {
            x: input.x.primitive().clone(),
            residual: inner(&residual),
            weight: input.weight.primitive().clone(),
            bias: inner(&bias),
        };
        let none = <Self as AutodiffBackend>::from_inner(primitives.x.clone());
        let (residual, bias) = (residual.as_ref().unwrap_or(&none), bias.as_ref().unwrap_or(&none));
        let parents = [input.x.node(), residual.node(), input.weight.node(), bias.node()];
        let y = B::layer_norm_fwd(primitives.clone(), epsilon);
        match LayerNorm.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { input: primitives, epsilon }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn layer_norm_bwd(
        _input: LayerNormPrimitives<Self>,
        _grad_y: FloatTensor<Self>,
        _epsilon: f32,
    ) -> LayerNormGradPrimitives<Self> {
        panic!("layer_norm has first-order gradients only: its backward has no backward")
    }
}
