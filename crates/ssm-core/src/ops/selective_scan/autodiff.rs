//! The backward pass, registered once for every backend.
//!
//! The scan has two outputs: see `ops/autodiff.rs`.

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

use super::extension::{ScanGradPrimitives, ScanOptions, ScanPrimitives, SelectiveScanOps};
use crate::ops::{
    autodiff::{Stash, port},
    primitive::Maybe,
};

#[derive(Debug)]
struct Scan;

/// What the scan's backward needs.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    input: ScanPrimitives<B>,
    states: FloatTensor<B>,
    options: ScanOptions,
    stash: Stash<B>,
}

impl<B: Backend + SelectiveScanOps> Backward<B, 9> for Scan {
    type State = Saved<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 9>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let _wake = grads.consume::<B>(&ops.node);
        let Saved { input, states, options, stash } = ops.state;
        let mut outputs = stash.take().into_iter();
        let grad_y = outputs.next().flatten().unwrap_or_else(|| {
            B::float_zeros(input.u.shape(), &input.u.device(), input.u.dtype().into())
        });
        let grad_final = outputs.next().flatten().into();
        let grad = B::selective_scan_bwd(input, states, grad_y, grad_final, options);
        let ScanGradPrimitives { u, delta, a, b, c, d, z, delta_bias, initial_state } = grad;
        let all = [
            Some(u),
            Some(delta),
            Some(a),
            Some(b),
            Some(c),
            d.into_option(),
            z.into_option(),
            delta_bias.into_option(),
            initial_state.into_option(),
        ];
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// The inner tensors of all arguments.
fn inner<B: Backend, C: CheckpointStrategy>(
    input: &ScanPrimitives<Autodiff<B, C>>,
) -> ScanPrimitives<B> {
    let maybe = |tensor: &Maybe<Autodiff<B, C>>| match tensor {
        Maybe::Absent => Maybe::Absent,
        Maybe::Present(tensor) => Maybe::Present(tensor.primitive().clone()),
    };
    ScanPrimitives {
        u: input.u.primitive().clone(),
        delta: input.delta.primitive().clone(),
        a: input.a.primitive().clone(),
        b: input.b.primitive().clone(),
        c: input.c.primitive().clone(),
        d: maybe(&input.d),
        z: maybe(&input.z),
        delta_bias: maybe(&input.delta_bias),
        initial_state: maybe(&input.initial_state),
        resets: maybe(&input.resets),
    }
}

impl<B: Backend + SelectiveScanOps, C: CheckpointStrategy> SelectiveScanOps for Autodiff<B, C> {
    fn selective_scan_fwd(
        input: ScanPrimitives<Self>,
        options: ScanOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let primitives = inner(&input);
        let none = <Self as AutodiffBackend>::from_inner(primitives.u.clone());
        let or_none = |tensor: Maybe<Self>| tensor.into_option().unwrap_or_else(|| none.clone());
        let optional = [
            or_none(input.d),
            or_none(input.z),
            or_none(input.delta_bias),
            or_none(input.initial_state),
        ];
        let [d, z, delta_bias, initial_state] = &optional;
        let parents = [
            input.u.node(),
            input.delta.node(),
            input.a.node(),
            input.b.node(),
            input.c.node(),
            d.node(),
            z.node(),
            delta_bias.node(),
            initial_state.node(),
        ];
        match Scan.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::UnTracked(prep) => {
                let options = ScanOptions { save_states: false, ..options };
                let (y, final_state, states) = B::selective_scan_fwd(primitives, options);
                let from = <Self as AutodiffBackend>::from_inner;
                (prep.finish(y), from(final_state), from(states))
            }
            OpsKind::Tracked(prep) => {
                let options = ScanOptions { save_states: true, ..options };
                let (y, final_state, states) = B::selective_scan_fwd(primitives.clone(), options);
                let stash = Stash::new(2);
                let saved = Saved {
                    input: primitives,
                    states: states.clone(),
                    options,
                    stash: stash.clone(),
                };
                let scan = prep.finish(saved, y.clone());
                let y = port::<B, C>(0, &scan, &stash, y);
                let final_state = port::<B, C>(1, &scan, &stash, final_state);
                (y, final_state, <Self as AutodiffBackend>::from_inner(states))
            }
        }
    }

    fn selective_scan_bwd(
        _input: ScanPrimitives<Self>,
        _states: FloatTensor<Self>,
        _grad_y: FloatTensor<Self>,
        _grad_final: Maybe<Self>,
        _options: ScanOptions,
    ) -> ScanGradPrimitives<Self> {
        panic!("selective_scan has first-order gradients only: its backward has no backward")
    }
}
