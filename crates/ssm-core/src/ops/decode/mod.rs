//! One token of every sequence: what a recurrent model does when it writes text, in few launches.
//!
//! A token of one sequence is products of matrices with single rows: nothing is computed twice with what
//! is read once, so time is what the memory needs for the weights, and what launches cost. So weights lie
//! by rows of their result (`[d_out, d_in]`), a norm is computed in the product that reads it, and
//! convolution, residual and gate are parts of the kernels around them. What is carried is overwritten,
//! so that a graph of these launches can be captured once and replayed for every token. [`host`] is the
//! specification, the parallel form of the mixer the reference. May import Burn.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::ops::decode::{Product, product};
//!
//! let device = Device::flex();
//! let y = product(Product {
//!     x: Tensor::ones([1, 3], &device),
//!     weight: Tensor::ones([2, 3], &device),
//!     norm: None,
//!     add: None,
//! });
//! assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [3.0; 2]);
//! ```

mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
pub mod host;
#[cfg(feature = "cube")]
mod kernel;

use burn::{
    backend::Dispatch,
    tensor::{FloatDType, Int, Tensor},
};

use self::extension::{
    ChosenPrimitives, ConvPrimitives, DecodeOps, ProductPrimitives, StatePrimitives,
};
use super::primitive::{Maybe, check_shape, maybe};

/// A product of a matrix with a row of every sequence.
#[derive(Clone, Debug)]
pub struct Product {
    /// `[batch, >= d_in]`, of which the first columns are read
    pub x: Tensor<2>,
    /// `[d_out, d_in]`, in any float type
    pub weight: Tensor<2>,
    /// Weight of an RMSNorm that `x` goes through before, `[d_in]`, and its epsilon
    pub norm: Option<(Tensor<1>, f64)>,
    /// What is added to the result, `[batch, d_out]`
    pub add: Option<Tensor<2>>,
}

impl Product {
    fn into_primitives(self) -> (ProductPrimitives<Dispatch>, f32) {
        let ([batch, stride], [d_out, d_in]) = (self.x.dims(), self.weight.dims());
        assert!(stride >= d_in, "decode: axis 1 of `x` is {stride}, expected at least {d_in}");
        let (norm, epsilon) = self.norm.unzip();
        if let Some(norm) = &norm {
            check_shape("decode", "norm", norm.dims(), [("d_in", d_in)]);
        }
        if let Some(add) = &self.add {
            check_shape("decode", "add", add.dims(), [("batch", batch), ("d_out", d_out)]);
        }
        let primitives = ProductPrimitives {
            x: self.x.into_dispatch(),
            weight: self.weight.into_dispatch(),
            norm: maybe(norm),
            add: maybe(self.add),
        };
        (primitives, epsilon.unwrap_or_default() as f32)
    }
}

/// A depthwise causal convolution with SiLU, and the inputs that it has seen.
#[derive(Clone, Debug)]
pub struct Conv {
    /// `[channels, d_conv]`
    pub taps: Tensor<2>,
    /// `[channels]`
    pub bias: Option<Tensor<1>>,
    /// `[batch, d_conv - 1, channels]`, oldest first, f32; overwritten
    pub past: Tensor<3>,
}

impl Conv {
    fn into_primitives(self, batch: usize, most: usize) -> ConvPrimitives<Dispatch> {
        let [channels, d_conv] = self.taps.dims();
        assert!(
            channels <= most,
            "decode: axis 0 of `taps` is {channels}, expected at most {most}"
        );
        let expected = [("batch", batch), ("d_conv - 1", d_conv - 1), ("channels", channels)];
        check_shape("decode", "past", self.past.dims(), expected);
        if let Some(bias) = &self.bias {
            check_shape("decode", "bias", bias.dims(), [("channels", channels)]);
        }
        ConvPrimitives {
            taps: self.taps.into_dispatch(),
            bias: maybe(self.bias),
            past: self.past.into_dispatch(),
        }
    }
}

/// `y = W norm(x) + add` in f32.
///
/// # Shapes
/// As the fields say; `[batch, d_out]` out.
///
/// # Numerics
/// Sums are f32 for any type of the weight.
///
/// # Gradients
/// None.
///
/// # Panics
/// If a shape disagrees.
pub fn product(product: Product) -> Tensor<2> {
    let (input, epsilon) = product.into_primitives();
    Tensor::from_dispatch(<Dispatch as DecodeOps>::decode_product(input, epsilon))
}

/// [`product`], whose first columns, as many as `conv` has channels, then take a step of the convolution
/// with SiLU; also returns its past.
///
/// # Panics
/// If a shape disagrees, or something is to be added to the product: WebGPU binds too few tensors for
/// that and a convolution.
pub fn product_conv(product: Product, conv: Conv) -> (Tensor<2>, Tensor<3>) {
    assert!(product.add.is_none(), "decode: `add` is given with a convolution, expected none");
    let ([batch, _], [d_out, _]) = (product.x.dims(), product.weight.dims());
    let conv = conv.into_primitives(batch, d_out);
    let (input, epsilon) = product.into_primitives();
    let (y, past) = <Dispatch as DecodeOps>::decode_product_conv(input, conv, epsilon);
    (Tensor::from_dispatch(y), Tensor::from_dispatch(past))
}

/// A step of the convolution with SiLU on the first columns of `x`, in its dtype; also returns its past.
///
/// # Panics
/// If a shape disagrees.
pub fn conv(x: Tensor<2>, conv: Conv) -> (Tensor<2>, Tensor<3>) {
    let [batch, stride] = x.dims();
    let conv = conv.into_primitives(batch, stride);
    let (u, past) = <Dispatch as DecodeOps>::decode_conv(x.into_dispatch(), conv);
    (Tensor::from_dispatch(u), Tensor::from_dispatch(past))
}

/// A step of the selective state space with what its step size is made of.
#[derive(Clone, Debug)]
pub struct StateStep {
    /// Input, `[batch, >= d_inner]`, of which the first columns are read
    pub u: Tensor<2>,
    /// Gate, `[batch, >= d_inner]`, of which the last columns are read
    pub z: Tensor<2>,
    /// What the input is projected to: `dt`, `b` and `c`, `[batch, dt_rank + 2 d_state]`
    pub projected: Tensor<2>,
    /// `[d_inner, dt_rank]`
    pub dt_weight: Tensor<2>,
    /// What [`state_params`] makes, `[d_inner, d_state + FURTHER]`
    pub params: Tensor<2>,
    /// `[batch, d_inner, d_state]`, f32; overwritten
    pub state: Tensor<3>,
}

/// Numbers of a channel behind its `a_log`, a multiple of the vectors that kernels read.
const FURTHER: usize = 4;

/// `a_log`, `[d_inner, d_state]`, the bias of the step size and the skip `D`, `[d_inner]`, in one tensor, as
/// WebGPU binds few.
///
/// # Panics
/// If a shape disagrees.
pub fn state_params(a_log: Tensor<2>, dt_bias: Tensor<1>, d: Tensor<1>) -> Tensor<2> {
    let [d_inner, _] = a_log.dims();
    check_shape("decode", "dt_bias", dt_bias.dims(), [("d_inner", d_inner)]);
    check_shape("decode", "d", d.dims(), [("d_inner", d_inner)]);
    let column = |values: Tensor<1>| values.unsqueeze_dim(1);
    let rest = Tensor::zeros([d_inner, FURTHER - 2], &a_log.device());
    Tensor::cat(vec![a_log, column(dt_bias), column(d), rest], 1)
}

/// `delta = softplus(W_dt dt + bias)`, `h = exp(-delta e^a_log) h + delta b u`,
/// `y = (c . h + d u) silu(z)`: `y`, `[batch, d_inner]` in the dtype of `u`, and the state.
///
/// # Panics
/// If a shape disagrees.
///
/// # Source
/// Gu & Dao 2023, arXiv:2312.00752, Alg. 2; `Mamba.step`, state-spaces/mamba@e9594ce.
pub fn state(step: StateStep) -> (Tensor<2>, Tensor<3>) {
    let [batch, d_inner, d_state] = step.state.dims();
    let [_, dt_rank] = step.dt_weight.dims();
    for (name, [got, stride]) in [("u", step.u.dims()), ("z", step.z.dims())] {
        check_shape("decode", name, [got], [("batch", batch)]);
        assert!(stride >= d_inner, "decode: axis 1 of `{name}` is {stride}, expected {d_inner}");
    }
    let projected = [("batch", batch), ("dt_rank + 2 d_state", dt_rank + 2 * d_state)];
    check_shape("decode", "projected", step.projected.dims(), projected);
    check_shape(
        "decode",
        "dt_weight",
        step.dt_weight.dims(),
        [("d_inner", d_inner), ("", dt_rank)],
    );
    let params = [("d_inner", d_inner), ("d_state + 4", d_state + FURTHER)];
    check_shape("decode", "params", step.params.dims(), params);
    let (y, state) = <Dispatch as DecodeOps>::decode_state(StatePrimitives {
        u: step.u.into_dispatch(),
        z: step.z.into_dispatch(),
        projected: step.projected.into_dispatch(),
        dt_weight: step.dt_weight.into_dispatch(),
        params: step.params.into_dispatch(),
        state: step.state.into_dispatch(),
    });
    (Tensor::from_dispatch(y), Tensor::from_dispatch(state))
}

/// `x + add` in f32, in the buffer of `x` where there is one to reuse, and its RMSNorm in `dtype`.
///
/// # Shapes
/// `x`, `add` and both outputs: `[batch, width]`; `weight`: `[width]`
///
/// # Panics
/// If a shape disagrees.
pub fn add_norm(
    x: Tensor<2>,
    add: Option<Tensor<2>>,
    weight: Tensor<1>,
    epsilon: f64,
    dtype: FloatDType,
) -> (Tensor<2>, Tensor<2>) {
    let [batch, width] = x.dims();
    check_shape("decode", "weight", weight.dims(), [("width", width)]);
    if let Some(add) = &add {
        check_shape("decode", "add", add.dims(), [("batch", batch), ("width", width)]);
    }
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let (x, y) =
        <Dispatch as DecodeOps>::decode_add_norm(x, maybe(add), weight, epsilon as f32, dtype);
    (Tensor::from_dispatch(x), Tensor::from_dispatch(y))
}

/// The tokens that greedy decoding chose, on the device, so that nothing is read in between.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The newest of every sequence, `[batch]`, i32
    pub newest: Tensor<1, Int>,
    /// A ring of the last ones, `[batch, capacity]`, i32; -1 where logits were not finite numbers
    pub ring: Tensor<2, Int>,
    /// How many were chosen so far, `[batch]`, i32
    pub count: Tensor<1, Int>,
}

/// The most likely of the first `n_vocab` tokens of every sequence, the first of equals, added to those
/// that were `chosen` before, which are overwritten. Where a logit is infinite or no number, -1 is added
/// and the newest is token 0: nothing is read in between, and whoever reads at the end sees it.
///
/// # Shapes
/// `logits`: `[batch, >= n_vocab]`
///
/// # Panics
/// If a shape disagrees.
pub fn argmax(logits: Tensor<2>, chosen: Chosen, n_vocab: usize) -> Chosen {
    let [batch, n_rows] = logits.dims();
    assert!(
        (1..=n_rows).contains(&n_vocab),
        "decode: axis 1 of `logits` is {n_rows}, expected at least {n_vocab}"
    );
    check_shape("decode", "newest", chosen.newest.dims(), [("batch", batch)]);
    check_shape("decode", "count", chosen.count.dims(), [("batch", batch)]);
    let [_, capacity] = chosen.ring.dims();
    assert!(capacity > 0, "decode: axis 1 of `ring` is 0, expected at least 1");
    check_shape("decode", "ring", chosen.ring.dims(), [("batch", batch), ("capacity", capacity)]);
    let chosen = ChosenPrimitives {
        newest: chosen.newest.into_dispatch(),
        ring: chosen.ring.into_dispatch(),
        count: chosen.count.into_dispatch(),
    };
    let chosen = <Dispatch as DecodeOps>::decode_argmax(logits.into_dispatch(), chosen, n_vocab);
    Chosen {
        newest: Tensor::from_dispatch(chosen.newest),
        ring: Tensor::from_dispatch(chosen.ring),
        count: Tensor::from_dispatch(chosen.count),
    }
}

/// A copy in row-major order, in a buffer of its own.
pub fn copied<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let x = x.into_dispatch();
    Tensor::from_dispatch(<Dispatch as DecodeOps>::decode_copy(x, Maybe::Absent, dtype))
}

/// `to` with the values of `from`: in its own buffer on devices of CubeCL.
pub fn overwritten<const D: usize>(to: Tensor<D>, from: Tensor<D>) -> Tensor<D> {
    let dtype = FloatDType::from(to.dtype());
    let (to, from) = (Maybe::Present(to.into_dispatch()), from.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DecodeOps>::decode_copy(from, to, dtype))
}

/// `to` with the integers of `from`, both i32: in its own buffer on devices of CubeCL.
///
/// # Panics
/// If the lengths differ.
pub fn set(to: Tensor<1, Int>, from: Tensor<1, Int>) -> Tensor<1, Int> {
    check_shape("decode", "from", from.dims(), [("len", to.dims()[0])]);
    let (to, from) = (to.into_dispatch(), from.into_dispatch());
    Tensor::from_dispatch(<Dispatch as DecodeOps>::decode_set(to, from))
}
