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

use super::extension::{LinearGradPrimitives, LinearOps, LinearOptions, LinearPrimitives, Parts};
use crate::ops::{
    autodiff::{Stash, port},
    primitive::Maybe,
};

#[derive(Debug)]
struct Linear;

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    input: LinearPrimitives<B>,
    options: LinearOptions,
    stash: Stash<B>,
}

impl<B: Backend + LinearOps> Backward<B, 3> for Linear {
    type State = Saved<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _wake = grads.consume::<B>(&ops.node);
        let Saved { input, options, stash } = ops.state;
        let mut parts = stash.take().into_iter().map(Maybe::from);
        let mut next = || parts.next().unwrap_or(Maybe::Absent);
        let grad_y = Parts { first: next(), second: next(), third: next() };
        let [x, weight, bias] = ops.parents;
        let options =
            LinearOptions { grad_x: x.is_some(), grad_weight: weight.is_some(), ..options };
        let grad = B::linear_bwd(input, grad_y, options);
        let LinearGradPrimitives { x: grad_x, weight: grad_weight, bias: grad_bias } = grad;
        for (parent, grad) in [(x, grad_x), (weight, grad_weight), (bias, grad_bias)] {
            if let (Some(parent), Maybe::Present(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

impl<B: Backend + LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear_fwd(input: LinearPrimitives<Self>, options: LinearOptions) -> Vec<FloatTensor<Self>> {
        let bias = input.bias.into_option();
        let primitives: LinearPrimitives<B> = LinearPrimitives {
            x: input.x.primitive().clone(),
            weight: input.weight.primitive().clone(),
            bias: bias.as_ref().map(|bias| bias.primitive().clone()).into(),
        };
        let bias =
            bias.unwrap_or_else(|| <Self as AutodiffBackend>::from_inner(primitives.x.clone()));
        let parents = [input.x.node(), input.weight.node(), bias.node()];
        let outputs = B::linear_fwd(primitives.clone(), options);
        match Linear.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::UnTracked(_) => {
                outputs.into_iter().map(<Self as AutodiffBackend>::from_inner).collect()
            }
            OpsKind::Tracked(prep) => {
                let stash = Stash::new(outputs.len());
                let saved = Saved { input: primitives, options, stash: stash.clone() };
                // The node's own output is never read: the ports are.
                let node = prep.finish(saved, outputs[0].clone());
                let outputs = outputs.into_iter().enumerate();
                outputs.map(|(index, y)| port::<B, C>(index, &node, &stash, y)).collect()
            }
        }
    }

    fn linear_bwd(
        _input: LinearPrimitives<Self>,
        _grad_y: Parts<Self>,
        _options: LinearOptions,
    ) -> LinearGradPrimitives<Self> {
        panic!("linear has first-order gradients only: its backward has no backward")
    }
}
