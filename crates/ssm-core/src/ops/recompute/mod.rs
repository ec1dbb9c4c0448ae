//! Layers whose intermediate results are computed again in the backward pass instead of being kept.
//!
//! What a layer saves for its backward pass is many times its input. Here only the input is saved, and
//! the backward pass runs the layer once more, in a graph of its own: a third more work, and the
//! memory of one layer instead of all. A layer can be cut along the sequence as well, a recurrent one
//! ([`recompute_in_segments`]) and one that reads position by position ([`recompute_positions`]): then
//! it is the memory of one segment. May import Burn.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::{init::Init, ops::{linear::linear, recompute::recompute}};
//!
//! let device = Device::flex().autodiff();
//! let layer = Init::new(0, &device).linear(8, 8, true);
//! let x = Tensor::<3>::ones([2, 5, 8], &device);
//! let y = recompute(&layer, x, |layer, x| linear(layer, x).tanh());
//! assert_eq!(y.dims(), [2, 5, 8]);
//! ```

mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
mod positions;
mod segments;

use burn::{
    backend::Dispatch,
    module::{Module, ModuleVisitor, Param},
    tensor::{FloatDType, Gradients, Tensor},
};

use self::extension::{Again, RecomputeOps};
pub use self::{
    positions::recompute_positions,
    segments::{Segments, recompute_in_segments},
};
use crate::ops::primitive::maybe;

/// `forward(module, x)`, of which the backward pass finds nothing but `x` and the parameters.
///
/// `forward` has to give the same values when it is called again: no dropout inside. Without autodiff
/// it is called as it is.
///
/// # Shapes
/// `x`: `[batch, seq_len, channels]`; output: whatever `forward` makes of it.
///
/// # Gradients
/// Input and every parameter of `module`, as `forward` itself has them. First order only.
///
/// # Source
/// Chen et al. 2016, arXiv:1604.06174 ("gradient checkpointing").
pub fn recompute<M: Module + 'static>(
    module: &M,
    x: Tensor<3>,
    forward: impl Fn(&M, Tensor<3>) -> Tensor<3> + Send + 'static,
) -> Tensor<3> {
    if !x.device().is_autodiff() {
        return forward(module, x);
    }
    // One parent in the graph for all parameters: autodiff's nodes have a fixed number of them.
    let params = flat(module, None);
    // Neither knows the graph around it: the second pass must not grow the one that is going back.
    let (plain, inner) = (module.valid(), x.clone().inner());
    let y = forward(&plain, inner.clone());
    let again = Again::new(move |grad_y| {
        let module = plain.train();
        let x = inner.autodiff().require_grad();
        let y = forward(&module, x.clone());
        let grads = with_gradient(y, Tensor::from_dispatch(grad_y)).backward();
        let grad_x = x.grad(&grads).unwrap_or_else(|| x.inner().zeros_like());
        vec![grad_x.into_dispatch(), flat(&module, Some(&grads)).into_dispatch()]
    });
    attach(x, None, params, y, again)
}

/// `y` with a place in the graph: behind `x`, `other` and `params`, with `again` as its backward pass.
fn attach<const D: usize>(
    x: Tensor<3>,
    other: Option<Tensor<3>>,
    params: Tensor<1>,
    y: Tensor<D>,
    again: Again,
) -> Tensor<D> {
    let y = match x.gradient_checkpointing_strategy() {
        // Tensors of one operation share it, and `autodiff` alone means none.
        Some(strategy) => y.autodiff().with_gradient_checkpointing_strategy(strategy),
        None => y,
    };
    let (x, params, y) = (x.into_dispatch(), params.into_dispatch(), y.into_dispatch());
    Tensor::from_dispatch(<Dispatch as RecomputeOps>::recompute(x, maybe(other), params, y, again))
}

/// A loss whose gradient with respect to `y` is `grad_y`; several add up.
///
/// As `sum(y * grad_y)`, without the product, and without `y`.
fn with_gradient(y: Tensor<3>, grad_y: Tensor<3>) -> Tensor<1> {
    let none: Tensor<1> = Tensor::zeros([1], &grad_y.device());
    let again = {
        let none = none.clone();
        Again::new(move |_| vec![grad_y.into_dispatch(), none.into_dispatch()])
    };
    attach(y, None, none.clone().autodiff(), none, again)
}

/// The parameters of a module one after the other, or their gradients.
fn flat<M: Module>(module: &M, grads: Option<&Gradients>) -> Tensor<1> {
    let mut flatten = Flatten { grads, pieces: Vec::new() };
    module.visit(&mut flatten);
    Tensor::cat(flatten.pieces, 0)
}

struct Flatten<'a> {
    grads: Option<&'a Gradients>,
    pieces: Vec<Tensor<1>>,
}

impl ModuleVisitor for Flatten<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let piece = match self.grads {
            None => value,
            // A parameter that the output does not depend on.
            Some(grads) => value.grad(grads).unwrap_or_else(|| value.inner().zeros_like()),
        };
        // Parameters of several dtypes fit into one vector; autodiff casts the gradients back.
        self.pieces.push(piece.flatten(0, D - 1).cast(FloatDType::F32));
    }
}
