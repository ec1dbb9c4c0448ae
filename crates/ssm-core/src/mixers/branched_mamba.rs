//! Mamba with two branches that read the sequence in different orders between one in-projection and
//! one out-projection: SR-Mamba, and the bidirectional Mamba of Vision Mamba.
//!
//! Each branch has a convolution, an `x_proj`, a `dt_proj`, an `a_log` and a `d` of its own. The second
//! one is brought back and added to the first, and the sum is gated: published programs gate each branch
//! in its own order, which is the same product, with a re-ordered copy of the gate for it.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Bool, FloatDType, Tensor, activation},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mixer, MixerError, State, require};
use crate::{
    init::{Init, a_log_s4d_real, dt_bias},
    ops::{
        causal_conv1d::{ConvArgs, causal_conv1d},
        linear::{linear, linear_loose, linear_split, linear_wide},
        pointwise::neg_exp,
        recompute::{Segments, recompute, recompute_in_segments, recompute_positions},
        selective_scan::{ScanArgs, ScanOutput, selective_scan},
    },
    order::ScanOrder,
};

/// Sizes and initial ranges of the branches; defaults are Mamba's.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct BranchConfig {
    /// State size N of each channel, at least 1. Default 16.
    pub d_state: usize,
    /// Width of the causal convolution in steps, at least 1. Default 4.
    pub d_conv: usize,
    /// `d_inner / d_model`, at least 1. Default 2.
    pub expand: usize,
    /// Rank of the projection of the step size, 1 to `d_inner`. Default `ceil(d_model / 16)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dt_rank: Option<usize>,
    /// Smallest initial step size, above 0. Default 0.001.
    pub dt_min: f64,
    /// Largest initial step size, above `dt_min`, at most 1000. Default 0.1.
    pub dt_max: f64,
    /// Floor of the initial step size, above 0, at most 1000. Default 1e-4.
    pub dt_init_floor: f64,
}

/// Steps of a segment where branches are computed again piece by piece: what autodiff keeps of so
/// many is small beside a sequence of 100,000, and enough to fill a device.
const SEGMENT_LEN: usize = 8192;

/// Up to so many steps nothing is computed again: what it takes is less than what it costs.
const SHORT: usize = 1024;

/// A state forgets everything in much shorter steps; far above it the bias is no f32 any more.
const DT_LIMIT: f64 = 1000.0;

impl Default for BranchConfig {
    fn default() -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            dt_rank: None,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
        }
    }
}

impl BranchConfig {
    /// The rank in use: given, or `ceil(d_model / 16)`.
    fn dt_rank(&self, d_model: usize) -> usize {
        self.dt_rank.unwrap_or(d_model.div_ceil(16))
    }

    fn validate(&self, d_model: usize) -> Result<(), MixerError> {
        require((1..=4096).contains(&self.d_state), "branch.d_state", self.d_state, "1 to 4096")?;
        require((1..=64).contains(&self.d_conv), "branch.d_conv", self.d_conv, "1 to 64")?;
        require((1..=64).contains(&self.expand), "branch.expand", self.expand, "1 to 64")?;
        let (rank, d_inner) = (self.dt_rank(d_model), self.expand * d_model);
        require((1..=d_inner).contains(&rank), "branch.dt_rank", rank, &format!("1 to {d_inner}"))?;
        require(self.dt_min > 0.0, "branch.dt_min", self.dt_min, "a number above 0")?;
        require(
            self.dt_max > self.dt_min && self.dt_max <= DT_LIMIT,
            "branch.dt_max",
            self.dt_max,
            &format!("a number above `branch.dt_min` = {}, at most {DT_LIMIT}", self.dt_min),
        )?;
        require(
            self.dt_init_floor > 0.0 && self.dt_init_floor <= DT_LIMIT,
            "branch.dt_init_floor",
            self.dt_init_floor,
            &format!("a number above 0, at most {DT_LIMIT}"),
        )
    }

    /// Number of parameters of a mixer with two such branches.
    fn n_params(&self, d_model: usize) -> usize {
        let (d_inner, dt_rank) = (self.expand * d_model, self.dt_rank(d_model));
        let conv1d = d_inner * (self.d_conv + 1);
        let x_proj = d_inner * (dt_rank + 2 * self.d_state);
        let dt_proj = (dt_rank + 1) * d_inner;
        let a_log_and_d = d_inner * (self.d_state + 1);
        3 * d_model * d_inner + 2 * (conv1d + x_proj + dt_proj + a_log_and_d)
    }

    /// One branch as the official code of Mamba initialises its only one.
    fn init_branch(&self, d_model: usize, init: &mut Init) -> Branch {
        let d_inner = self.expand * d_model;
        let dt_rank = self.dt_rank(d_model);
        let conv_bound = (self.d_conv as f64).powf(-0.5);
        let dt_bound = (dt_rank as f64).powf(-0.5);
        let conv_weight = init.uniform([d_inner, 1, self.d_conv], -conv_bound, conv_bound);
        let conv_bias = init.uniform([d_inner], -conv_bound, conv_bound);
        let x_proj = init.linear(d_inner, dt_rank + 2 * self.d_state, false);
        let dt_weight = init.uniform([dt_rank, d_inner], -dt_bound, dt_bound);
        let dt_bias = dt_bias(init, d_inner, self.dt_min, self.dt_max, self.dt_init_floor);
        Branch {
            conv1d: Conv1d {
                weight: Param::from_tensor(conv_weight),
                bias: Param::from_tensor(conv_bias),
            },
            x_proj,
            dt_proj: Linear {
                weight: Param::from_tensor(dt_weight),
                bias: Some(Param::from_tensor(dt_bias)),
            },
            a_log: Param::from_tensor(a_log_s4d_real(d_inner, self.d_state, init.device())),
            d: Param::from_tensor(Tensor::ones([d_inner], init.device())),
        }
    }

    fn init(&self, order: ScanOrder, d_model: usize, init: &mut Init) -> BranchedMamba {
        let in_proj = init.linear(d_model, 2 * self.expand * d_model, false);
        let branch = self.init_branch(d_model, init);
        let branch_b = self.init_branch(d_model, init);
        let out_proj = init.linear(self.expand * d_model, d_model, false);
        BranchedMamba { in_proj, branch, branch_b, out_proj, order }
    }
}

/// SR-Mamba: the second branch reads every `rate`-th position, then every `rate`-th from the next one
/// on, and so on.
///
/// # Source
/// Yang et al. 2024, arXiv:2403.06800, in the form that the published program runs on a GPU
/// (isyangshu/MambaMIL@9aea39e); its path without a GPU kernel flips the sequence instead.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct SrMambaConfig {
    /// Distance of neighbours in the new order, at least 1. Default 10 (official code; its scripts
    /// use 5). The width of a raster makes vertical neighbours adjacent.
    pub rate: usize,
    /// Whether the zeros that fill the sequence up to a multiple of `rate` are left out of the second
    /// branch. Default false, as published: they stand after the in-projection and run through
    /// convolution and scan like instances, so that states decay on them.
    pub masked: bool,
    /// The branches.
    pub branch: BranchConfig,
}

impl Default for SrMambaConfig {
    fn default() -> Self {
        Self { rate: 10, masked: false, branch: BranchConfig::default() }
    }
}

impl SrMambaConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// The first field out of its range.
    pub fn validate(&self, d_model: usize) -> Result<(), MixerError> {
        require((1..=1 << 20).contains(&self.rate), "rate", self.rate, "1 to 1048576")?;
        self.branch.validate(d_model)
    }

    /// Number of parameters of a valid configuration.
    pub fn n_params(&self, d_model: usize) -> usize {
        self.branch.n_params(d_model)
    }

    /// A mixer with freshly drawn parameters.
    pub fn init(&self, d_model: usize, init: &mut Init) -> SrMamba {
        let order = ScanOrder::Strided { rate: self.rate, padded: !self.masked };
        self.branch.init(order, d_model, init)
    }
}

/// Bidirectional Mamba of Vision Mamba ("v2"), as MambaMIL offers it: the second branch reads from
/// the end, and the two are summed.
///
/// # Source
/// Zhu et al. 2024, arXiv:2401.09417, which takes the mean; isyangshu/MambaMIL@9aea39e sums.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct BiMambaConfig {
    /// The branches.
    pub branch: BranchConfig,
}

impl BiMambaConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// The first field out of its range.
    pub fn validate(&self, d_model: usize) -> Result<(), MixerError> {
        self.branch.validate(d_model)
    }

    /// Number of parameters of a valid configuration.
    pub fn n_params(&self, d_model: usize) -> usize {
        self.branch.n_params(d_model)
    }

    /// A mixer with freshly drawn parameters.
    pub fn init(&self, d_model: usize, init: &mut Init) -> BiMamba {
        self.branch.init(ScanOrder::Reversed, d_model, init)
    }
}

/// Built by [`SrMambaConfig::init`].
pub type SrMamba = BranchedMamba;
/// Built by [`BiMambaConfig::init`].
pub type BiMamba = BranchedMamba;

/// `out_proj((branch(x) + undo(branch_b(order(x)))) * silu(z))` with `x, z = in_proj(input)`.
///
/// # Shapes
/// `[batch, seq_len, d_model]` in and out.
#[derive(Module, Debug)]
pub struct BranchedMamba {
    in_proj: Linear,
    /// Reads the order of the sequence.
    pub branch: Branch,
    /// Reads the other order.
    pub branch_b: Branch,
    out_proj: Linear,
    #[module(skip)]
    order: ScanOrder,
}

impl BranchedMamba {
    /// The sum of the branches and the gate, `[batch, seq_len, d_inner]`.
    fn scanned(&self, x: Tensor<3>) -> [Tensor<3>; 2] {
        let [_, seq_len, _] = x.dims();
        let [x, z] = linear_split(&self.in_proj, x, [self.d_inner(); 2]);
        let order = self.order.clone();
        let conv_b = move |conv1d: &Conv1d, x: Tensor<3>| conv1d.forward(order.apply(x), None);
        let u_b = match seq_len <= SHORT {
            true => conv_b(&self.branch_b.conv1d, x.clone()),
            // Run again in the backward pass: cheaper than a second, re-ordered copy of a long sequence.
            false => recompute(&self.branch_b.conv1d, x.clone(), conv_b),
        };
        let y_b = self.branch_b.scan(u_b, None).y;
        let y = self.branch.scan(self.branch.conv1d.forward(x, None), None).y;
        [y + self.order.undo(y_b, seq_len), z]
    }

    /// [`BranchedMamba::scanned`] with branches that are computed again in the backward pass,
    /// `segment_len` steps at a time, from the narrow input of the mixer on.
    fn scanned_in_segments(&self, x: Tensor<3>, segment_len: usize) -> [Tensor<3>; 2] {
        let [_, seq_len, _] = x.dims();
        let branch = |branch: &Branch, order: &ScanOrder| {
            let [_, _, d_conv] = branch.conv1d.weight.dims();
            let segments = Segments { order: order.clone(), len: segment_len, history: d_conv - 1 };
            let reader = Reader { in_proj: self.in_proj.clone(), branch: branch.clone() };
            recompute_in_segments(&reader, x.clone(), segments, Reader::segment)
        };
        let y_b = branch(&self.branch_b, &self.order);
        let y = branch(&self.branch, &ScanOrder::Raster) + self.order.undo(y_b, seq_len);
        [y, half(&self.in_proj, x, self.d_inner())]
    }

    /// What goes into the out-projection, `[batch, seq_len, d_inner]`.
    pub fn merged(&self, x: Tensor<3>) -> Tensor<3> {
        gated(self.scanned(x))
    }

    /// [`BranchedMamba::merged`] with branches that are computed again in the backward pass,
    /// `segment_len` steps at a time.
    ///
    /// # Panics
    /// If `segment_len` is 0, or shorter than the history of the convolution.
    pub fn merged_in_segments(&self, x: Tensor<3>, segment_len: usize) -> Tensor<3> {
        gated(self.scanned_in_segments(x, segment_len))
    }

    /// The out-projection of what was scanned. Its input, and what the gate leaves to autodiff, are as
    /// large as everything that a branch keeps of a long sequence, and cheap to compute again.
    fn project(&self, scanned: [Tensor<3>; 2]) -> Tensor<3> {
        let [_, seq_len, _] = scanned[0].dims();
        if seq_len <= SHORT {
            return linear(&self.out_proj, gated(scanned));
        }
        recompute_positions(&self.out_proj, scanned, SEGMENT_LEN, |out_proj, scanned| {
            linear(out_proj, gated(scanned))
        })
    }

    fn d_inner(&self) -> usize {
        let [_, d_inner_twice] = self.in_proj.weight.dims();
        d_inner_twice / 2
    }
}

/// The branches' sum times `silu` of the gate.
fn gated([y, z]: [Tensor<3>; 2]) -> Tensor<3> {
    y * activation::silu(z)
}

/// One half of the in-projection: the columns from `first` on.
fn half(in_proj: &Linear, x: Tensor<3>, first: usize) -> Tensor<3> {
    let [_, d_inner_twice] = in_proj.weight.dims();
    linear_loose(in_proj.weight.val().narrow(1, first, d_inner_twice / 2), None, x)
}

/// What a branch reads the input of its mixer through, and the branch.
#[derive(Module, Debug)]
struct Reader {
    in_proj: Linear,
    branch: Branch,
}

impl Reader {
    /// Steps of a longer sequence, `[batch, history + seq_len, d_model]`, from `state`.
    ///
    /// The zeros that fill a sequence up stand before the in-projection here, which has no bias: behind
    /// it they are zeros, too.
    fn segment(
        &self,
        x: Tensor<3>,
        history: usize,
        state: Option<Tensor<3>>,
    ) -> (Tensor<3>, Tensor<3>) {
        let [_, len, _] = x.dims();
        let x = half(&self.in_proj, x, 0);
        let before = (history > 0).then(|| x.clone().narrow(1, 0, history));
        let u = self.branch.conv1d.forward(x.narrow(1, history, len - history), before);
        let ScanOutput { y, final_state } = self.branch.scan(u, state);
        (y, final_state)
    }
}

/// The depthwise filter's parameters.
#[derive(Module, Debug)]
struct Conv1d {
    /// `[d_inner, 1, d_conv]`
    weight: Param<Tensor<3>>,
    /// `[d_inner]`
    bias: Param<Tensor<1>>,
}

impl Conv1d {
    /// `silu(conv(x))` behind the steps of `history`, zeros if absent.
    fn forward(&self, x: Tensor<3>, history: Option<Tensor<3>>) -> Tensor<3> {
        causal_conv1d(ConvArgs {
            x,
            weight: self.weight.val().squeeze_dim(1),
            bias: Some(self.bias.val()),
            silu: true,
            initial_state: history,
            resets: None,
        })
    }
}

/// What lies between the projections of Mamba, but for the gate: convolution and selective scan.
#[derive(Module, Debug)]
pub struct Branch {
    conv1d: Conv1d,
    x_proj: Linear,
    dt_proj: Linear,
    /// `[d_inner, d_state]`
    a_log: Param<Tensor<2>>,
    /// `[d_inner]`
    d: Param<Tensor<1>>,
}

impl Branch {
    /// From the convolution's output `u`, `[batch, seq_len, d_inner]`.
    fn scan(&self, u: Tensor<3>, state: Option<Tensor<3>>) -> ScanOutput {
        let [_, d_state] = self.a_log.dims();
        let [dt_rank, _] = self.dt_proj.weight.dims();
        let [dt, b, c] = linear_split(&self.x_proj, u.clone(), [dt_rank, d_state, d_state]);
        selective_scan(ScanArgs {
            u,
            delta: linear_wide(self.dt_proj.weight.val(), dt),
            // In f32 for any dtype of the weights, as in `mamba.rs`.
            a: neg_exp(self.a_log.val().cast(FloatDType::F32)),
            b,
            c,
            d: Some(self.d.val()),
            z: None,
            // Added inside the scan, before softplus.
            delta_bias: self.dt_proj.bias.as_ref().map(Param::val),
            delta_softplus: true,
            initial_state: state,
            resets: None,
        })
    }
}

/// The state of a mixer that sees the whole sequence: there is none.
#[derive(Clone, Debug)]
pub enum NoState {}

impl State for NoState {
    fn detach(self) -> Self {
        match self {}
    }

    fn stack(states: Vec<Self>) -> Self {
        match states.into_iter().next() {
            Some(state) => match state {},
            None => panic!("a stack of no states"),
        }
    }

    fn select(&self, _rows: &[usize]) -> Self {
        match *self {}
    }
}

impl Mixer for BranchedMamba {
    type State = NoState;

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.project(self.scanned(x))
    }

    fn forward_in_segments(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, seq_len, _] = x.dims();
        if seq_len <= SEGMENT_LEN {
            return self.forward(x);
        }
        self.project(self.scanned_in_segments(x, SEGMENT_LEN))
    }

    fn init_state(&self, _batch: usize) -> Result<NoState, MixerError> {
        let mixer = if self.order == ScanOrder::Reversed { "bi_mamba" } else { "sr_mamba" };
        Err(MixerError::NotCausal { mixer })
    }

    fn prefill(
        &self,
        _x: Tensor<3>,
        _resets: Option<Tensor<2, Bool>>,
        state: &mut NoState,
    ) -> Tensor<3> {
        match *state {}
    }

    fn scale_output(mut self, factor: f64) -> Self {
        // Detached: a scaled leaf must stay a leaf.
        self.out_proj.weight = Param::from_tensor((self.out_proj.weight.val() * factor).detach());
        self
    }
}
