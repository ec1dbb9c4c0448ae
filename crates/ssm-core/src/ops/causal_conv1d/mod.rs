//! Depthwise causal convolution, the short filter in front of the selective scan.
//!
//! Gu & Dao 2023, arXiv:2312.00752, figure 3; `causal_conv1d_fn`, Dao-AILab/causal-conv1d. Rooms and
//! rules are those of [`selective_scan`](super::selective_scan).
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::ops::causal_conv1d::{ConvArgs, causal_conv1d};
//!
//! let device = Device::flex();
//! let x = Tensor::<3>::ones([2, 5, 4], &device);
//! let weight = Tensor::<2>::ones([4, 3], &device);
//! assert_eq!(causal_conv1d(ConvArgs::new(x, weight).with_silu()).dims(), [2, 5, 4]);
//! ```

mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
pub mod host;
#[cfg(feature = "cube")]
mod kernel;
pub mod reference;
mod simd;

use burn::{
    backend::Dispatch,
    tensor::{Bool, Tensor},
};

use self::{
    extension::{CausalConv1dOps, ConvPrimitives},
    host::ConvDims,
};
use crate::ops::primitive::{check_shape, maybe};

const OP: &str = "causal_conv1d";

/// The arguments of [`causal_conv1d`].
#[derive(Clone, Debug)]
pub struct ConvArgs {
    /// Input, `[batch, seq_len, channels]`.
    pub x: Tensor<3>,
    /// One filter a channel, the last tap on the current step, `[channels, d_conv]`.
    pub weight: Tensor<2>,
    /// `[channels]`
    pub bias: Option<Tensor<1>>,
    /// Whether the output passes through SiLU.
    pub silu: bool,
    /// The `d_conv - 1` inputs before the first step, oldest first; zero if absent,
    /// `[batch, d_conv - 1, channels]`.
    pub initial_state: Option<Tensor<3>>,
    /// First steps of packed sequences: they and what follows do not see earlier steps,
    /// `[batch, seq_len]`.
    pub resets: Option<Tensor<2, Bool>>,
}

impl ConvArgs {
    /// A convolution without bias, activation, history and resets.
    pub fn new(x: Tensor<3>, weight: Tensor<2>) -> Self {
        Self { x, weight, bias: None, silu: false, initial_state: None, resets: None }
    }

    /// Passes the output through SiLU.
    pub fn with_silu(mut self) -> Self {
        self.silu = true;
        self
    }

    /// Sizes, after every shape has been checked against them.
    ///
    /// # Panics
    /// If a shape disagrees; the message names the argument and the axis.
    pub fn dims(&self) -> ConvDims {
        let [batch, seq_len, channels] = self.x.dims();
        let [_, d_conv] = self.weight.dims();
        let dims = ConvDims { batch, seq_len, channels, d_conv };
        check_sizes(dims);
        let weight = [("channels", channels), ("d_conv", d_conv)];
        check_shape(OP, "weight", self.weight.dims(), weight);
        if let Some(bias) = &self.bias {
            check_shape(OP, "bias", bias.dims(), [("channels", channels)]);
        }
        check_history(dims, &self.initial_state, &self.resets);
        dims
    }
}

/// Depthwise causal convolution: every channel has its own filter over its own past.
///
/// `y_t = act(bias + sum_k weight_k x_{t - (d_conv - 1) + k})` with `act` the identity or SiLU.
///
/// # Shapes
/// Those of [`ConvArgs`]; the output is `[batch, seq_len, channels]`.
///
/// # Numerics
/// Sums and activation in f32 for every input dtype, the output in the dtype of `x`. On the CPU,
/// results are bit-equal for any number of threads.
///
/// # Gradients
/// Every float input, `initial_state` included. First order only.
///
/// # Panics
/// If a shape disagrees with the list above.
///
/// # Source
/// `causal_conv1d_ref`, Dao-AILab/causal-conv1d.
pub fn causal_conv1d(args: ConvArgs) -> Tensor<3> {
    args.dims();
    let input = ConvPrimitives {
        x: args.x.into_dispatch(),
        weight: args.weight.into_dispatch(),
        bias: maybe(args.bias),
        initial_state: maybe(args.initial_state),
        resets: maybe(args.resets.map(|resets| resets.float())),
    };
    Tensor::from_dispatch(<Dispatch as CausalConv1dOps>::causal_conv1d_fwd(input, args.silu))
}

/// The history after the last step: what the next call takes as `initial_state`.
///
/// Steps before the last reset read as zero, whatever they hold.
///
/// # Shapes
/// `x`, `initial_state` and `resets` are those of [`ConvArgs`]; the history is
/// `[batch, d_conv - 1, channels]`, without elements for a filter of one tap.
///
/// # Numerics
/// A copy of inputs, and so in the dtype of `x`.
///
/// # Gradients
/// `x` and `initial_state`.
///
/// # Panics
/// If a shape disagrees with the list above; the message names the argument and the axis.
pub fn final_state(
    x: Tensor<3>,
    initial_state: Option<Tensor<3>>,
    resets: Option<Tensor<2, Bool>>,
    d_conv: usize,
) -> Tensor<3> {
    let [batch, seq_len, channels] = x.dims();
    check_sizes(ConvDims { batch, seq_len, channels, d_conv });
    check_history(ConvDims { batch, seq_len, channels, d_conv }, &initial_state, &resets);
    let before = d_conv - 1;
    if before == 0 {
        return Tensor::zeros([batch, 0, channels], (&x.device(), x.dtype()));
    }
    let state = with_history(x, initial_state, before).narrow(1, seq_len, before);
    let Some(resets) = resets else { return state };
    // Whether a reset lies behind a step, from the last step to earlier ones.
    let mut hidden: Option<Tensor<2, Bool>> = None; // [batch, 1]
    let mut rows = Vec::with_capacity(before);
    for back in 0..before {
        let row = state.clone().narrow(1, before - 1 - back, 1);
        rows.push(hide(row, hidden.clone()));
        if back < seq_len {
            let reset = resets.clone().narrow(1, seq_len - 1 - back, 1);
            hidden = Some(hidden.map_or(reset.clone(), |hidden| hidden.bool_or(reset)));
        }
    }
    rows.reverse();
    Tensor::cat(rows, 1)
}

/// `x` with zeros in the hidden steps: a product with 0 would let NaN and infinity through.
fn hide(x: Tensor<3>, hidden: Option<Tensor<2, Bool>>) -> Tensor<3> {
    match hidden {
        Some(hidden) => {
            let shape = x.dims();
            x.mask_fill(hidden.unsqueeze_dim::<3>(2).expand(shape), 0.0)
        }
        None => x,
    }
}

fn check_sizes(dims: ConvDims) {
    let ConvDims { batch, seq_len, channels, d_conv } = dims;
    for (axis, size) in
        [("batch", batch), ("seq_len", seq_len), ("channels", channels), ("d_conv", d_conv)]
    {
        assert!(size > 0, "{OP}: `{axis}` is 0, expected at least 1");
    }
}

fn check_history(
    dims: ConvDims,
    initial_state: &Option<Tensor<3>>,
    resets: &Option<Tensor<2, Bool>>,
) {
    let ConvDims { batch, seq_len, channels, d_conv } = dims;
    if let Some(initial) = initial_state {
        let axes = [("batch", batch), ("d_conv - 1", d_conv - 1), ("channels", channels)];
        check_shape(OP, "initial_state", initial.dims(), axes);
    }
    if let Some(resets) = resets {
        check_shape(OP, "resets", resets.dims(), [("batch", batch), ("seq_len", seq_len)]);
    }
}

/// `x` with `before` earlier steps of its dtype in front, zeros if there is no history.
fn with_history(x: Tensor<3>, initial_state: Option<Tensor<3>>, before: usize) -> Tensor<3> {
    let [batch, _, channels] = x.dims();
    if before == 0 {
        return x;
    }
    let history = match initial_state {
        Some(state) => state.cast(x.dtype()),
        None => Tensor::zeros([batch, before, channels], (&x.device(), x.dtype())),
    };
    Tensor::cat(vec![history, x], 1)
}
