//! Recurrent layers computed again segment by segment, from the last to the first.

use std::ops::Range;

use burn::{module::Module, tensor::Tensor};

use super::{attach, extension::Again, flat, with_gradient};
use crate::order::ScanOrder;

/// How a recurrent layer is cut along its sequence.
#[derive(Clone, Debug)]
pub struct Segments {
    /// The order in which the layer reads.
    pub order: ScanOrder,
    /// Steps of a segment, at least 1 and at least `history`.
    pub len: usize,
    /// Steps before its first one that a segment reads too (`d_conv - 1` of a convolution).
    pub history: usize,
}

impl Segments {
    /// First step and end of each segment.
    fn of(&self, seq_len: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        let starts = (0..seq_len.div_ceil(self.len)).map(|index| index * self.len);
        starts.map(move |start| start..seq_len.min(start + self.len))
    }

    /// A segment with its history, and the length of that: none before the first.
    fn cut(&self, x: &Tensor<3>, steps: &Range<usize>) -> (Tensor<3>, usize) {
        let history = self.history.min(steps.start);
        (x.clone().narrow(1, steps.start - history, steps.len() + history), history)
    }
}

/// One segment of a layer: from its input, how many of the first steps are history, and the state
/// before it (absent at the start) to its output and the state behind it.
type Piece<M> = fn(&M, Tensor<3>, usize, Option<Tensor<3>>) -> (Tensor<3>, Tensor<3>);

/// The whole layer, and the state before each segment.
fn walk<M>(
    module: &M,
    x: &Tensor<3>,
    segments: &Segments,
    piece: Piece<M>,
) -> (Tensor<3>, Vec<Option<Tensor<3>>>) {
    let [_, seq_len, _] = x.dims();
    let (mut ys, mut before, mut state) = (Vec::new(), Vec::new(), None);
    for steps in segments.of(seq_len) {
        let (x, history) = segments.cut(x, &steps);
        let (y, behind) = piece(module, x, history, state.clone());
        ys.push(y);
        before.push(state.replace(behind));
    }
    (Tensor::cat(ys, 1), before)
}

/// A recurrent layer of which the backward pass finds nothing but `x`, the parameters and the state
/// before each segment. It runs the segments again, from the last to the first, and never holds
/// what autodiff keeps of more than one.
///
/// # Shapes
/// `x`: `[batch, seq_len, channels]` in its own order; the output in that of `segments`, which
/// [`ScanOrder::undo`] brings back. States: `[batch, ..]`.
///
/// # Gradients
/// Input and every parameter of `module`. Those of parameters are sums over segments, and so differ
/// from an uncut layer's in rounding. First order only.
///
/// # Panics
/// If a segment would be shorter than its history, or empty.
pub fn recompute_in_segments<M: Module + 'static>(
    module: &M,
    x: Tensor<3>,
    segments: Segments,
    piece: Piece<M>,
) -> Tensor<3> {
    let Segments { len, history, .. } = segments;
    assert!(len >= history.max(1), "segments of {len} steps, expected at least {}", history.max(1));
    if !x.device().is_autodiff() {
        return walk(module, &segments.order.apply(x), &segments, piece).0;
    }
    let params = flat(module, None);
    let (plain, inner) = (module.valid(), x.clone().inner());
    let (y, before) = walk(&plain, &segments.order.apply(inner.clone()), &segments, piece);
    let again = Again::new(move |grad_y| {
        let (module, grad_y) = (plain.train(), Tensor::<3>::from_dispatch(grad_y));
        let [_, seq_len, _] = inner.dims();
        let x = segments.order.apply(inner);
        let [_, ordered_len, _] = x.dims();
        let mut grad_x = Vec::new();
        let mut grad_params: Option<Tensor<1>> = None;
        // What the segment behind says about the last steps of this one, and about its last state.
        let (mut grad_tail, mut grad_state): (Option<Tensor<3>>, Option<Tensor<3>>) = (None, None);
        for (steps, state) in segments.of(ordered_len).rev().zip(before.into_iter().rev()) {
            let (x, history) = segments.cut(&x, &steps);
            let x = x.autodiff().require_grad();
            let state = state.map(|state| state.autodiff().require_grad());
            let (y, behind) = piece(&module, x.clone(), history, state.clone());
            let mut loss = with_gradient(y, grad_y.clone().narrow(1, steps.start, steps.len()));
            if let Some(grad_state) = grad_state.take() {
                loss = loss + with_gradient(behind, grad_state);
            }
            let grads = loss.backward();
            grad_state = state.and_then(|state| state.grad(&grads));
            let of_params = flat(&module, Some(&grads));
            grad_params = Some(match grad_params {
                Some(sum) => sum + of_params,
                None => of_params,
            });
            let grad = x.grad(&grads).unwrap_or_else(|| x.inner().zeros_like());
            let own = grad.clone().narrow(1, history, steps.len());
            match grad_tail.take() {
                Some(tail) => {
                    let [_, n_tail, _] = tail.dims();
                    let n_head = steps.len() - n_tail;
                    // In reverse, like everything here.
                    grad_x.push(own.clone().narrow(1, n_head, n_tail) + tail);
                    if n_head > 0 {
                        grad_x.push(own.narrow(1, 0, n_head));
                    }
                }
                None => grad_x.push(own),
            }
            grad_tail = (history > 0).then(|| grad.narrow(1, 0, history));
        }
        drop(x);
        grad_x.reverse();
        // Every old step stands at one new one: the way back is the gradient of the way there.
        let grad_x = segments.order.undo(Tensor::cat(grad_x, 1), seq_len);
        let grad_params = grad_params.unwrap_or_else(|| flat(&module, None).inner().zeros_like());
        vec![grad_x.into_dispatch(), grad_params.into_dispatch()]
    });
    attach(x, None, params, y, again)
}
