//! Mamba: in-projection, short causal convolution, selective scan, gate, out-projection.
//!
//! Gu & Dao 2023, arXiv:2312.00752, figure 3. Parameter names are the keys of the published
//! checkpoints, lower-cased (state-spaces/mamba@e9594ce, `modules/mamba_simple.py`).

mod decoder;

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Bool, DType, FloatDType, Int, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::decoder::MambaDecoder;
use super::{Decoder, Mixer, MixerError, Norm, State, require};
use crate::{
    init::{Init, a_log_s4d_real, dt_bias},
    ops::{
        causal_conv1d::{self, ConvArgs, causal_conv1d},
        linear::{linear, linear_split, linear_wide},
        pointwise::neg_exp,
        selective_scan::{ScanArgs, selective_scan},
    },
};

/// Sizes and initial ranges of [`Mamba`]; defaults are those of the official code.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct MambaConfig {
    /// State size N of each channel, at least 1. Default 16 (paper, section 3.5).
    pub d_state: usize,
    /// Width of the causal convolution in steps, at least 1. Default 4 (official code).
    pub d_conv: usize,
    /// `d_inner / d_model`, at least 1. Default 2 (paper, section 3.4).
    pub expand: usize,
    /// Rank of the projection of the step size, 1 to `d_inner`. Default `ceil(d_model / 16)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dt_rank: Option<usize>,
    /// Smallest initial step size, above 0. Default 0.001 (paper, section 3.6).
    pub dt_min: f64,
    /// Largest initial step size, above `dt_min`, at most 1000. Default 0.1 (paper, section 3.6).
    pub dt_max: f64,
    /// Floor of the initial step size, above 0, at most 1000. Default 1e-4 (official code).
    pub dt_init_floor: f64,
    /// Whether the convolution has a bias. Default true (official code).
    pub conv_bias: bool,
    /// Whether the in- and out-projections have biases. Default false (official code).
    pub bias: bool,
    /// Whether step size, B and C depend on the input. Without, they are the same learned numbers at
    /// every step, and the layer is linear and time-invariant: the ablation of the paper, section
    /// 4.6.2. Default true.
    pub selective: bool,
}

/// A state forgets everything in much shorter steps; far above it the bias is no f32 any more.
const DT_LIMIT: f64 = 1000.0;

impl Default for MambaConfig {
    fn default() -> Self {
        Self {
            d_state: 16,
            d_conv: 4,
            expand: 2,
            dt_rank: None,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_init_floor: 1e-4,
            conv_bias: true,
            bias: false,
            selective: true,
        }
    }
}

impl MambaConfig {
    /// Width of the scan.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.expand * d_model
    }

    /// The rank in use: given, or `ceil(d_model / 16)`.
    pub fn dt_rank(&self, d_model: usize) -> usize {
        self.dt_rank.unwrap_or(d_model.div_ceil(16))
    }

    /// Number of parameters of a valid configuration.
    pub fn n_params(&self, d_model: usize) -> usize {
        let (d_inner, dt_rank) = (self.d_inner(d_model), self.dt_rank(d_model));
        let in_proj = (d_model + usize::from(self.bias)) * 2 * d_inner;
        let conv1d = d_inner * (self.d_conv + usize::from(self.conv_bias));
        let x_proj = d_inner * (dt_rank + 2 * self.d_state);
        let dt_proj = (dt_rank + 1) * d_inner;
        let a_log_and_d = d_inner * (self.d_state + 1);
        let out_proj = (d_inner + usize::from(self.bias)) * d_model;
        in_proj + conv1d + x_proj + dt_proj + a_log_and_d + out_proj
    }

    /// Checks the values.
    ///
    /// # Errors
    /// The first field out of its range.
    pub fn validate(&self, d_model: usize) -> Result<(), MixerError> {
        require((1..=4096).contains(&self.d_state), "d_state", self.d_state, "1 to 4096")?;
        require((1..=64).contains(&self.d_conv), "d_conv", self.d_conv, "1 to 64")?;
        require((1..=64).contains(&self.expand), "expand", self.expand, "1 to 64")?;
        let (rank, d_inner) = (self.dt_rank(d_model), self.d_inner(d_model));
        require((1..=d_inner).contains(&rank), "dt_rank", rank, &format!("1 to {d_inner}"))?;
        require(self.dt_min > 0.0, "dt_min", self.dt_min, "a number above 0")?;
        require(
            self.dt_max > self.dt_min && self.dt_max <= DT_LIMIT,
            "dt_max",
            self.dt_max,
            &format!("a number above `dt_min` = {}, at most {DT_LIMIT}", self.dt_min),
        )?;
        require(
            self.dt_init_floor > 0.0 && self.dt_init_floor <= DT_LIMIT,
            "dt_init_floor",
            self.dt_init_floor,
            &format!("a number above 0, at most {DT_LIMIT}"),
        )
    }

    /// A mixer with freshly drawn parameters, as the official code initialises them: linear layers
    /// and convolution as PyTorch does, `dt_proj.weight` uniform in `+-dt_rank^-0.5`, its bias such
    /// that the step size is log-uniform in `[dt_min, dt_max]`, `a` = S4D-Real, `d` = 1.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Mamba {
        let (d_inner, dt_rank) = (self.d_inner(d_model), self.dt_rank(d_model));
        let conv_bound = (self.d_conv as f64).powf(-0.5);
        let dt_bound = (dt_rank as f64).powf(-0.5);
        let in_proj = init.linear(d_model, 2 * d_inner, self.bias);
        let conv1d = Conv1d {
            weight: Param::from_tensor(init.uniform(
                [d_inner, 1, self.d_conv],
                -conv_bound,
                conv_bound,
            )),
            bias: self
                .conv_bias
                .then(|| Param::from_tensor(init.uniform([d_inner], -conv_bound, conv_bound))),
        };
        let x_proj = init.linear(d_inner, dt_rank + 2 * self.d_state, false);
        let dt_weight = init.uniform([dt_rank, d_inner], -dt_bound, dt_bound);
        let dt_bias = dt_bias(init, d_inner, self.dt_min, self.dt_max, self.dt_init_floor);
        let dt_proj = Linear {
            weight: Param::from_tensor(dt_weight),
            bias: Some(Param::from_tensor(dt_bias)),
        };
        let a_log = a_log_s4d_real(d_inner, self.d_state, init.device());
        let d = Tensor::ones([d_inner], init.device());
        let out_proj = init.linear(d_inner, d_model, self.bias);
        Mamba {
            in_proj,
            conv1d,
            x_proj,
            dt_proj,
            a_log: Param::from_tensor(a_log),
            d: Param::from_tensor(d),
            out_proj,
            selective: self.selective,
        }
    }
}

/// The depthwise filter's parameters, named as in the published checkpoints.
#[derive(Module, Debug)]
struct Conv1d {
    /// `[d_inner, 1, d_conv]`
    weight: Param<Tensor<3>>,
    /// `[d_inner]`
    bias: Option<Param<Tensor<1>>>,
}

/// Mamba's mixer, built by [`MambaConfig::init`].
#[derive(Module, Debug)]
pub struct Mamba {
    in_proj: Linear,
    conv1d: Conv1d,
    x_proj: Linear,
    dt_proj: Linear,
    /// `[d_inner, d_state]`
    a_log: Param<Tensor<2>>,
    /// `[d_inner]`
    d: Param<Tensor<1>>,
    out_proj: Linear,
    #[module(skip)]
    selective: bool,
}

/// What [`Mamba`] carries from step to step.
#[derive(Clone, Debug)]
pub struct MambaState {
    /// Last `d_conv - 1` inputs of the convolution, oldest first, `[batch, d_conv - 1, d_inner]`,
    /// in the dtype of the activations; before the first step in that of the parameters.
    pub conv: Tensor<3>,
    /// `[batch, d_inner, d_state]`, f32
    pub ssm: Tensor<3>,
}

impl State for MambaState {
    fn detach(self) -> Self {
        Self { conv: self.conv.detach(), ssm: self.ssm.detach() }
    }

    fn stack(states: Vec<Self>) -> Self {
        let (conv, ssm) = states.into_iter().map(|state| (state.conv, state.ssm)).unzip();
        Self { conv: Tensor::cat(conv, 0), ssm: Tensor::cat(ssm, 0) }
    }

    fn select(&self, rows: &[usize]) -> Self {
        let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let rows: Tensor<1, Int> = Tensor::from_data(&*rows, &self.ssm.device());
        Self {
            conv: self.conv.clone().select(0, rows.clone()),
            ssm: self.ssm.clone().select(0, rows),
        }
    }
}

impl Mamba {
    fn d_conv(&self) -> usize {
        self.conv1d.weight.dims()[2]
    }

    /// The whole layer; `state` is the past and receives the future.
    fn mix(
        &self,
        x: Tensor<3>,
        resets: Option<Tensor<2, Bool>>,
        state: Option<&mut MambaState>,
    ) -> Tensor<3> {
        let [d_inner, d_state] = self.a_log.dims();
        let [dt_rank, _] = self.dt_proj.weight.dims();

        let [x, z] = linear_split(&self.in_proj, x, [d_inner; 2]); // [batch, seq_len, d_inner]

        let u = causal_conv1d(ConvArgs {
            x: x.clone(),
            weight: self.conv1d.weight.val().squeeze_dim(1),
            bias: self.conv1d.bias.as_ref().map(Param::val),
            silu: true,
            initial_state: state.as_ref().map(|state| state.conv.clone()),
            resets: resets.clone(),
        }); // [batch, seq_len, d_inner]

        // What does not depend on the input is what a constant input gives.
        let seen = if self.selective { u.clone() } else { u.ones_like() };
        let [dt, b, c] = linear_split(&self.x_proj, seen, [dt_rank, d_state, d_state]);
        // The bias of `dt_proj` is added inside the scan, before softplus.
        let delta = linear_wide(self.dt_proj.weight.val(), dt); // [batch, seq_len, d_inner], f32

        let out = selective_scan(ScanArgs {
            u,
            delta,
            // In f32 for any dtype of the weights: a decay close to 1 has no room for rounding.
            a: neg_exp(self.a_log.val().cast(FloatDType::F32)),
            b,
            c,
            d: Some(self.d.val()),
            z: Some(z),
            delta_bias: self.dt_proj.bias.as_ref().map(Param::val),
            delta_softplus: true,
            initial_state: state.as_ref().map(|state| state.ssm.clone()),
            resets: resets.clone(),
        });
        if let Some(state) = state {
            let before = Some(state.conv.clone());
            state.conv = causal_conv1d::final_state(x, before, resets, self.d_conv());
            state.ssm = out.final_state;
        }
        linear(&self.out_proj, out.y)
    }
}

impl Mixer for Mamba {
    type State = MambaState;

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.mix(x, None, None)
    }

    fn init_state(&self, batch: usize) -> Result<MambaState, MixerError> {
        let [d_inner, d_state] = self.a_log.dims();
        let in_proj = self.in_proj.weight.val();
        let (device, dtype) = (in_proj.device(), in_proj.dtype());
        Ok(MambaState {
            conv: Tensor::zeros([batch, self.d_conv() - 1, d_inner], (&device, dtype)),
            ssm: Tensor::zeros([batch, d_inner, d_state], (&device, DType::F32)),
        })
    }

    fn prefill(
        &self,
        x: Tensor<3>,
        resets: Option<Tensor<2, Bool>>,
        state: &mut MambaState,
    ) -> Tensor<3> {
        self.mix(x, resets, Some(state))
    }

    fn decoder(
        &self,
        norm: Norm,
        state: &MambaState,
        dtype: FloatDType,
    ) -> Option<Box<dyn Decoder>> {
        let decoder = MambaDecoder::new(self, norm, state, dtype)?;
        Some(Box::new(decoder))
    }

    fn scale_output(mut self, factor: f64) -> Self {
        // Detached: a scaled leaf must stay a leaf.
        self.out_proj.weight = Param::from_tensor((self.out_proj.weight.val() * factor).detach());
        self
    }
}
