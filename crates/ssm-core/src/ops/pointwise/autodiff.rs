//! The backward passes, registered once for every backend.

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

#[derive(Debug)]
struct Reverse;

impl<B: Backend + PointwiseOps> Backward<B, 1> for Reverse {
    type State = ();

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::reverse(grad));
        }
    }
}

#[derive(Debug)]
struct Gelu;

impl<B: Backend + PointwiseOps> Backward<B, 1> for Gelu {
    type State = FloatTensor<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::gelu_bwd(ops.state, grad));
        }
    }
}

#[derive(Debug)]
struct NegExp;

impl<B: Backend + PointwiseOps> Backward<B, 1> for NegExp {
    /// The output, which is its own derivative.
    type State = FloatTensor<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::float_mul(grad, ops.state));
        }
    }
}

#[derive(Debug)]
struct Masked;

impl<B: Backend + PointwiseOps> Backward<B, 1> for Masked {
    /// Mask and scale.
    type State = (FloatTensor<B>, f32);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (mask, scale) = ops.state;
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::masked(grad, mask, scale));
        }
    }
}

#[derive(Debug)]
struct Dropped;

impl<B: Backend + PointwiseOps> Backward<B, 1> for Dropped {
    /// What the mask is made of, again.
    type State = (IntTensor<B>, Dropout);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (seed, options) = ops.state;
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::dropped(grad, seed, options));
        }
    }
}

impl<B: Backend + PointwiseOps, C: CheckpointStrategy> PointwiseOps for Autodiff<B, C> {
    fn reverse(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = x.node();
        let y = B::reverse(x.primitive().clone());
        match Backward::<B, 1>::prepare::<C>(Reverse, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn gelu_fwd(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = x.node();
        let x = x.primitive().clone();
        let y = B::gelu_fwd(x.clone());
        match Backward::<B, 1>::prepare::<C>(Gelu, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn gelu_bwd(_x: FloatTensor<Self>, _grad_y: FloatTensor<Self>) -> FloatTensor<Self> {
        panic!("gelu has first-order gradients only: its backward has no backward")
    }

    fn neg_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let node = x.node();
        let y = B::neg_exp(x.primitive().clone());
        match Backward::<B, 1>::prepare::<C>(NegExp, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(y.clone(), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn masked(x: FloatTensor<Self>, mask: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        let node = x.node();
        let mask = mask.primitive().clone();
        let y = B::masked(x.primitive().clone(), mask.clone(), scale);
        match Backward::<B, 1>::prepare::<C>(Masked, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((mask, scale), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn dropped(x: FloatTensor<Self>, seed: IntTensor<Self>, options: Dropout) -> FloatTensor<Self> {
        let node = x.node();
        let y = B::dropped(x.primitive().clone(), seed.clone(), options);
        match Backward::<B, 1>::prepare::<C>(Dropped, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((seed, options), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
