//! The backward passes, registered once for every backend.

use std::fmt;

use burn::backend::{
    Backend,
    autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};

use super::extension::{Dropout, PointwiseOps};

/// How the gradient of an input follows from what was kept and from the gradient of the output.
struct OfInput<B: Backend, S>(fn(S, FloatTensor<B>) -> FloatTensor<B>);

impl<B: Backend, S> fmt::Debug for OfInput<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfInput")
    }
}

impl<B: Backend, S: Clone + Send + fmt::Debug + 'static> Backward<B, 1> for OfInput<B, S> {
    type State = S;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, (self.0)(ops.state, grad));
        }
    }
}

/// The output `y` of an operation on `x`, of which `kept` is what its backward pass needs.
fn tracked<B: Backend, C: CheckpointStrategy, S: Clone + Send + fmt::Debug + 'static>(
    x: FloatTensor<Autodiff<B, C>>,
    y: FloatTensor<B>,
    kept: S,
    backward: fn(S, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match OfInput(backward).prepare::<C>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

impl<B: Backend + PointwiseOps, C: CheckpointStrategy> PointwiseOps for Autodiff<B, C> {
    fn reverse(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::reverse(x.primitive().clone());
        tracked::<B, C, _>(x, y, (), |(), grad| B::reverse(grad))
    }

    fn gelu_fwd(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let kept = x.primitive().clone();
        let y = B::gelu_fwd(kept.clone());
        tracked::<B, C, _>(x, y, kept, B::gelu_bwd)
    }

    fn gelu_bwd(_x: FloatTensor<Self>, _grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
        panic!("gelu has first-order gradients only: its backward has no backward")
    }

    /// The output is its own derivative.
    fn neg_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::neg_exp(x.primitive().clone());
        tracked::<B, C, _>(x, y.clone(), y, |y, grad| B::float_mul(grad, y))
    }

    fn masked(x: FloatTensor<Self>, mask: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        let mask = mask.primitive().clone();
        let y = B::masked(x.primitive().clone(), mask.clone(), scale);
        tracked::<B, C, _>(x, y, (mask, scale), |(mask, scale), grad| B::masked(grad, mask, scale))
    }

    /// What the mask is made of is kept, and not the mask.
    fn dropped(x: FloatTensor<Self>, seed: IntTensor<Self>, options: Dropout) -> FloatTensor<Self> {
        let y = B::dropped(x.primitive().clone(), seed.clone(), options);
        tracked::<B, C, _>(x, y, (seed, options), |(seed, options), grad| {
            B::dropped(grad, seed, options)
        })
    }
}
