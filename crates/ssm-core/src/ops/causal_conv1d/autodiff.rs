//! The backward pass, registered once for every backend.

use burn::backend::{
    AutodiffBackend, Backend,
    autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::extension::{CausalConv1dOps, ConvGradPrimitives, ConvPrimitives};
use crate::ops::primitive::Maybe;

#[derive(Debug)]
struct Conv;

impl<B: Backend + CausalConv1dOps> Backward<B, 4> for Conv {
    type State = (ConvPrimitives<B>, bool);

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad_y = grads.consume::<B>(&ops.node);
        let (input, silu) = ops.state;
        let ConvGradPrimitives { x, weight, bias, initial_state } =
            B::causal_conv1d_bwd(input, grad_y, silu);
        let all = [Some(x), Some(weight), bias.into_option(), initial_state.into_option()];
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: Backend + CausalConv1dOps, C: CheckpointStrategy> CausalConv1dOps for Autodiff<B, C> {
    fn causal_conv1d_fwd(input: ConvPrimitives<Self>, silu: bool) -> FloatTensor<Self> {
        let maybe = |tensor: &Maybe<Self>| match tensor {
            Maybe::Absent => Maybe::Absent,
            Maybe::Present(tensor) => Maybe::Present(tensor.primitive().clone()),
        };
        let primitives = ConvPrimitives::<B> {
            x: input.x.primitive().clone(),
            weight: input.weight.primitive().clone(),
            bias: maybe(&input.bias),
            initial_state: maybe(&input.initial_state),
            resets: maybe(&input.resets),
        };
        let none = <Self as AutodiffBackend>::from_inner(primitives.x.clone());
        let or_none = |tensor: Maybe<Self>| tensor.into_option().unwrap_or_else(|| none.clone());
        let (bias, initial_state) = (or_none(input.bias), or_none(input.initial_state));
        let parents = [input.x.node(), input.weight.node(), bias.node(), initial_state.node()];
        match Conv.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::causal_conv1d_fwd(primitives.clone(), silu);
                prep.finish((primitives, silu), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::causal_conv1d_fwd(primitives, silu)),
        }
    }

    fn causal_conv1d_bwd(
        _input: ConvPrimitives<Self>,
        _grad_y: FloatTensor<Self>,
        _silu: bool,
    ) -> ConvGradPrimitives<Self> {
        panic!("causal_conv1d has first-order gradients only: its backward has no backward")
    }
}
