//! The selective scan (S6), the recurrence at the heart of Mamba.
//!
//! Gu & Dao 2023, arXiv:2312.00752. [`selective_scan`] runs the fast kernel of the tensors' device;
//! [`reference::selective_scan`] is the same function written as a loop over tensors, and [`host`]
//! the specification on plain slices. May import Burn's extension traits, nothing of this crate
//! above `ops`.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use ssm_core::ops::selective_scan::{ScanArgs, selective_scan};
//!
//! let device = Device::flex();
//! let (batch, seq_len, d_inner, d_state) = (2, 5, 4, 3);
//! let u = Tensor::<3>::ones([batch, seq_len, d_inner], &device);
//! let delta = Tensor::<3>::zeros([batch, seq_len, d_inner], &device);
//! let a = -Tensor::<2>::ones([d_inner, d_state], &device);
//! let b = Tensor::<3>::ones([batch, seq_len, d_state], &device);
//! let out = selective_scan(ScanArgs::new(u, delta, a, b.clone(), b).with_softplus());
//! assert_eq!(out.y.dims(), [batch, seq_len, d_inner]);
//! assert_eq!(out.final_state.dims(), [batch, d_inner, d_state]);
//! ```

mod autodiff;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod extension;
pub mod host;
#[cfg(feature = "cube")]
mod kernel;
#[cfg(feature = "cube")]
mod portable;
pub mod reference;
mod simd;
#[cfg(feature = "cube")]
mod tiled;

use burn::{
    backend::Dispatch,
    tensor::{Bool, Tensor},
};

use self::{
    extension::{ScanOptions, ScanPrimitives, SelectiveScanOps},
    host::ScanDims,
};
use crate::ops::primitive::{check_shape, maybe};

/// The arguments of [`selective_scan`].
#[derive(Clone, Debug)]
pub struct ScanArgs {
    /// Input, `[batch, seq_len, d_inner]`.
    pub u: Tensor<3>,
    /// Step size before bias and softplus, `[batch, seq_len, d_inner]`.
    pub delta: Tensor<3>,
    /// State matrix (diagonal, real, negative for a state that decays), `[d_inner, d_state]`.
    pub a: Tensor<2>,
    /// Input matrix, `[batch, seq_len, n_groups * d_state]`.
    pub b: Tensor<3>,
    /// Output matrix, `[batch, seq_len, n_groups * d_state]`.
    pub c: Tensor<3>,
    /// Skip weight, `[d_inner]`.
    pub d: Option<Tensor<1>>,
    /// Gate: the output is multiplied by `silu(z)`, `[batch, seq_len, d_inner]`.
    pub z: Option<Tensor<3>>,
    /// Added to `delta` before softplus, `[d_inner]`.
    pub delta_bias: Option<Tensor<1>>,
    /// Whether `delta` passes through `softplus(x) = ln(1 + e^x)`.
    pub delta_softplus: bool,
    /// State before the first step, zero if absent, `[batch, d_inner, d_state]`.
    pub initial_state: Option<Tensor<3>>,
    /// Where the state is cleared before the step (first step of a packed sequence),
    /// `[batch, seq_len]`.
    pub resets: Option<Tensor<2, Bool>>,
}

/// What [`selective_scan`] returns.
#[derive(Clone, Debug)]
pub struct ScanOutput {
    /// `[batch, seq_len, d_inner]`, in the dtype of `u`
    pub y: Tensor<3>,
    /// State after the last step, `[batch, d_inner, d_state]`, f32
    pub final_state: Tensor<3>,
}

impl ScanArgs {
    /// A scan without skip, gate, bias, softplus, initial state and resets.
    pub fn new(u: Tensor<3>, delta: Tensor<3>, a: Tensor<2>, b: Tensor<3>, c: Tensor<3>) -> Self {
        Self {
            u,
            delta,
            a,
            b,
            c,
            d: None,
            z: None,
            delta_bias: None,
            delta_softplus: false,
            initial_state: None,
            resets: None,
        }
    }

    /// Passes `delta` through softplus.
    pub fn with_softplus(mut self) -> Self {
        self.delta_softplus = true;
        self
    }

    /// Sizes, after every shape has been checked against them.
    ///
    /// # Panics
    /// If a shape disagrees; the message names the argument and the axis.
    pub fn dims(&self) -> ScanDims {
        const OP: &str = "selective_scan";
        let [batch, seq_len, d_inner] = self.u.dims();
        let [_, d_state] = self.a.dims();
        let [_, _, grouped] = self.b.dims();
        let dims = ScanDims {
            batch,
            seq_len,
            d_inner,
            d_state,
            n_groups: grouped.checked_div(d_state).unwrap_or(0),
        };
        for (axis, size) in
            [("batch", batch), ("seq_len", seq_len), ("d_inner", d_inner), ("d_state", d_state)]
        {
            assert!(size > 0, "selective_scan: `{axis}` is 0, expected at least 1");
        }
        assert!(
            dims.n_groups > 0 && grouped % d_state == 0 && d_inner % dims.n_groups == 0,
            "selective_scan: axis 2 of `b` is {grouped}, expected n_groups * d_state with d_state = \
             {d_state} and n_groups a divisor of d_inner = {d_inner}"
        );
        let steps = [("batch", batch), ("seq_len", seq_len), ("d_inner", d_inner)];
        let rows = [("batch", batch), ("seq_len", seq_len), ("n_groups * d_state", grouped)];
        let state = [("batch", batch), ("d_inner", d_inner), ("d_state", d_state)];
        check_shape(OP, "delta", self.delta.dims(), steps);
        check_shape(OP, "a", self.a.dims(), [("d_inner", d_inner), ("d_state", d_state)]);
        check_shape(OP, "b", self.b.dims(), rows);
        check_shape(OP, "c", self.c.dims(), rows);
        if let Some(d) = &self.d {
            check_shape(OP, "d", d.dims(), [("d_inner", d_inner)]);
        }
        if let Some(z) = &self.z {
            check_shape(OP, "z", z.dims(), steps);
        }
        if let Some(bias) = &self.delta_bias {
            check_shape(OP, "delta_bias", bias.dims(), [("d_inner", d_inner)]);
        }
        if let Some(initial) = &self.initial_state {
            check_shape(OP, "initial_state", initial.dims(), state);
        }
        if let Some(resets) = &self.resets {
            check_shape(OP, "resets", resets.dims(), [("batch", batch), ("seq_len", seq_len)]);
        }
        dims
    }
}

/// Selective scan (S6): a linear recurrence whose step size and projections depend on the input.
///
/// `h_t = exp(delta_t a) * h_{t-1} + delta_t b_t u_t`,  `y_t = (c_t . h_t + d u_t) * silu(z_t)`
///
/// `a` is discretised by zero-order hold, `b` by Euler, as in the official kernel. With
/// `delta_bias` and softplus, `delta_t` stands for `softplus(delta_t + delta_bias)`. Where `resets`
/// is set, `h_{t-1}` is zero, so packed sequences do not see each other.
///
/// # Shapes
/// Those of [`ScanArgs`] and [`ScanOutput`]. `n_groups` is the last axis of `b` over `d_state`;
/// channel `i` reads group `i / (d_inner / n_groups)`.
///
/// # Numerics
/// The state is f32 for every input dtype. Time O(seq_len); saved for the backward pass are the
/// inputs and the states between chunks (a state every 32 steps on the CPU). On the CPU, results are
/// bit-equal for any number of threads.
///
/// # Gradients
/// Every float input, `initial_state` included, and through `final_state`. First order only.
///
/// # Panics
/// If a shape disagrees with the list above.
///
/// # Source
/// Gu & Dao 2023, arXiv:2312.00752, Alg. 2; `selective_scan_ref`, state-spaces/mamba@e9594ce. There
/// softplus is the identity above 20; here it is exact, which in f32 is the same number.
pub fn selective_scan(args: ScanArgs) -> ScanOutput {
    args.dims();
    let options = ScanOptions { delta_softplus: args.delta_softplus, save_states: false };
    let input = ScanPrimitives {
        u: args.u.into_dispatch(),
        delta: args.delta.into_dispatch(),
        a: args.a.into_dispatch(),
        b: args.b.into_dispatch(),
        c: args.c.into_dispatch(),
        d: maybe(args.d),
        z: maybe(args.z),
        delta_bias: maybe(args.delta_bias),
        initial_state: maybe(args.initial_state),
        resets: maybe(args.resets.map(|resets| resets.float())),
    };
    let (y, final_state, _) = <Dispatch as SelectiveScanOps>::selective_scan_fwd(input, options);
    ScanOutput { y: Tensor::from_dispatch(y), final_state: Tensor::from_dispatch(final_state) }
}
