//! Nodes with several outputs, for the backward passes of the operations beside this file.
//!
//! A node of Burn's autodiff has one output. An operation with several is a node whose parents are
//! its inputs, and each output is a small node ("port") behind it. A port's backward puts its gradient
//! into a stash and wakes the operation's node; steps run from the outputs inwards, so all ports have
//! run when the operation takes the stash and computes its gradients at once.

use std::sync::{Arc, Mutex, PoisonError};

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

/// Gradients of an operation's outputs, as far as they have arrived.
#[derive(Clone, Debug)]
pub(super) struct Stash<B: Backend>(Arc<Mutex<Vec<Option<FloatTensor<B>>>>>);

impl<B: Backend> Stash<B> {
    /// Room for the gradients of `n` outputs.
    pub(super) fn new(n: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![None; n])))
    }

    /// The gradients, `None` for an output that no loss depends on.
    pub(super) fn take(&self) -> Vec<Option<FloatTensor<B>>> {
        let mut grads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grads.iter_mut().map(Option::take).collect()
    }

    /// Stores a gradient; true for the first.
    fn put(&self, index: usize, grad: FloatTensor<B>) -> bool {
        let mut grads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = grads.iter().all(Option::is_none);
        grads[index] = Some(grad);
        first
    }
}

/// The output of this number.
#[derive(Clone, Copy, Debug)]
struct Port(usize);

impl<B: Backend> Backward<B, 1> for Port {
    type State = Stash<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let first = ops.state.put(self.0, grad.clone());
        // What is registered only wakes the operation's node; twice would add two shapes.
        if let ([Some(node)], true) = (ops.parents, first) {
            grads.register::<B>(node.id, grad);
        }
    }
}

/// Output number `index` of the operation whose tracked node is behind `node`.
pub(super) fn port<B: Backend, C: CheckpointStrategy>(
    index: usize,
    node: &FloatTensor<Autodiff<B, C>>,
    stash: &Stash<B>,
    output: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Backward::<B, 1>::prepare::<C>(Port(index), [node.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(stash.clone(), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
