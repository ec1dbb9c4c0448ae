//! Layers that read position by position, computed again some positions at a time.

use burn::{module::Module, tensor::Tensor};

use super::{attach, extension::Again, flat, with_gradient};

/// `forward(module, x, other)`, of which the backward pass finds nothing but the inputs and the
/// parameters. It runs the layer again, `len` positions at a time, and never holds what autodiff keeps
/// of more.
///
/// # Shapes
/// `x`, `other` and the output: `[batch, seq_len, channels]`, each of its own width.
///
/// # Gradients
/// Both inputs and every parameter of `module`. Those of parameters are sums over pieces, and so differ
/// from an uncut layer's in rounding where there are several. First order only.
///
/// # Panics
/// If `len` is 0.
pub fn recompute_positions<M: Module + 'static>(
    module: &M,
    [x, other]: [Tensor<3>; 2],
    len: usize,
    forward: fn(&M, [Tensor<3>; 2]) -> Tensor<3>,
) -> Tensor<3> {
    assert!(len > 0, "pieces of 0 positions, expected at least 1");
    if !x.device().is_autodiff() {
        return forward(module, [x, other]);
    }
    let params = flat(module, None);
    let (plain, inner) = (module.valid(), [x.clone().inner(), other.clone().inner()]);
    let y = forward(&plain, inner.clone());
    let again = Again::new(move |grad_y| {
        let (module, grad_y) = (plain.train(), Tensor::<3>::from_dispatch(grad_y));
        let [_, seq_len, _] = grad_y.dims();
        let mut grad_inputs = [Vec::new(), Vec::new()];
        let mut grad_params: Option<Tensor<1>> = None;
        for start in (0..seq_len).step_by(len) {
            let n = len.min(seq_len - start);
            let cut = |x: &Tensor<3>| match n == seq_len {
                true => x.clone(),
                false => x.clone().narrow(1, start, n),
            };
            let inputs = inner.each_ref().map(|x| cut(x).autodiff().require_grad());
            let y = forward(&module, inputs.clone());
            let grads = with_gradient(y, cut(&grad_y)).backward();
            for (pieces, input) in grad_inputs.iter_mut().zip(inputs) {
                pieces.push(input.grad(&grads).unwrap_or_else(|| input.inner().zeros_like()));
            }
            let of_params = flat(&module, Some(&grads));
            grad_params = Some(match grad_params {
                Some(sum) => sum + of_params,
                None => of_params,
            });
        }
        // Before the pieces are copied together.
        drop((inner, grad_y));
        let [grad_x, grad_other] = grad_inputs.map(|mut pieces| match pieces.len() {
            1 => pieces.remove(0),
            _ => Tensor::cat(pieces, 1),
        });
        let grad_params = grad_params.unwrap_or_else(|| flat(&module, None).inner().zeros_like());
        vec![grad_x.into_dispatch(), grad_params.into_dispatch(), grad_other.into_dispatch()]
    });
    attach(x, Some(other), params, y, again)
}
