//! Sequence mixers behind one trait, and the registry that names them in a configuration.
//!
//! A new mixer is a file here and one line in the registry at the foot of this one; the laws of
//! `tests/mixer_laws.rs` then run on it. May import `ops`, `init` and Burn; never `nn`, never another mixer.

mod branched_mamba;
mod decoder;
mod mamba;

use burn::{
    module::Module,
    tensor::{Bool, FloatDType, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    branched_mamba::{
        BiMamba, BiMambaConfig, Branch, BranchConfig, BranchedMamba, NoState, SrMamba,
        SrMambaConfig,
    },
    decoder::{Decoder, Norm, Stream},
    mamba::{Mamba, MambaConfig, MambaState},
};
use crate::init::Init;

/// A layer that lets the steps of a sequence see each other.
pub trait Mixer: Module {
    /// What a recurrent step carries; an empty enum for mixers that are not causal, so that a step
    /// without a state cannot be written.
    type State: State;

    /// Mixes whole sequences from an empty past: `[batch, seq_len, d_model]`, same shape out.
    fn forward(&self, x: Tensor<3>) -> Tensor<3>;

    /// As [`Mixer::forward`], with a backward pass that computes long sequences again piece by piece
    /// if the mixer can be cut, for memory's sake.
    fn forward_in_segments(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward(x)
    }

    /// The state before the first step.
    ///
    /// # Errors
    /// [`MixerError::NotCausal`] if the mixer has no recurrent form.
    fn init_state(&self, batch: usize) -> Result<Self::State, MixerError>;

    /// As [`Mixer::forward`], but continues from `state` and leaves the state after the last step
    /// in it. Where `resets` (`[batch, seq_len]`) is set, a packed sequence begins.
    fn prefill(
        &self,
        x: Tensor<3>,
        resets: Option<Tensor<2, Bool>>,
        state: &mut Self::State,
    ) -> Tensor<3>;

    /// One step in O(1): `[batch, d_model]`, same shape out.
    fn step(&self, x: Tensor<2>, state: &mut Self::State) -> Tensor<2> {
        self.prefill(x.unsqueeze_dim(1), None, state).squeeze_dim(1)
    }

    /// The block of this mixer behind an RMSNorm for single tokens after `state`, its matrices in
    /// `dtype`. `None` if there is no form that is faster than [`Mixer::step`].
    fn decoder(
        &self,
        norm: Norm,
        state: &Self::State,
        dtype: FloatDType,
    ) -> Option<Box<dyn Decoder>> {
        let _ = (norm, state, dtype);
        None
    }

    /// Multiplies the output projection by `factor`; deep residual stacks start with `1/sqrt(n_layer)`.
    fn scale_output(self, factor: f64) -> Self;
}

/// What a recurrent step carries, one row a sequence of the batch.
pub trait State: Clone {
    /// The same values, outside of the graph of autodiff: no gradient flows to what came before.
    #[must_use]
    fn detach(self) -> Self;

    /// The states of several batches as one.
    ///
    /// # Panics
    /// Without any state, or with states of different mixers.
    #[must_use]
    fn stack(states: Vec<Self>) -> Self;

    /// The states of these sequences of the batch.
    #[must_use]
    fn select(&self, rows: &[usize]) -> Self;
}

/// Why a mixer could not be built or stepped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MixerError {
    /// A step was asked of a mixer that sees the whole sequence.
    #[error("mixer `{mixer}` is not causal, so it has no recurrent step")]
    NotCausal {
        /// Name in the configuration.
        mixer: &'static str,
    },
    /// A configuration value out of its range.
    #[error("`{field}` is {got}, expected {expected}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// Value in the configuration.
        got: String,
        /// Range or set of valid values.
        expected: String,
    },
}

/// Fails unless `ok`.
pub(crate) fn require(
    ok: bool,
    field: &'static str,
    got: impl ToString,
    expected: &str,
) -> Result<(), MixerError> {
    if ok {
        return Ok(());
    }
    Err(MixerError::Config { field, got: got.to_string(), expected: expected.to_owned() })
}

/// Declares every mixer once: its configuration, its module and its state.
macro_rules! mixers {
    ($($(#[$doc:meta])* $name:ident($config:ident, $state:ident),)+) => {
        /// The configuration of a mixer, tagged by its name: `[model.mixer.mamba]`.
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
        #[serde(rename_all = "snake_case")]
        pub enum MixerConfig {
            $($(#[$doc])* $name($config),)+
        }

        /// Any registered mixer.
        #[derive(Module, Debug)]
        pub enum AnyMixer {
            $($(#[$doc])* $name($name),)+
        }

        /// The state of any registered mixer.
        #[derive(Clone, Debug)]
        #[allow(clippy::large_enum_variant, reason = "mixers without a state need no room")]
        pub enum MixerState {
            $($(#[$doc])* $name($state),)+
        }

        impl MixerConfig {
            /// One default configuration of every registered mixer, in registry order.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$name($config::default()),)+]
            }

            /// Checks the values against `d_model`.
            ///
            /// # Errors
            /// The first field out of its range.
            pub fn validate(&self, d_model: usize) -> Result<(), MixerError> {
                match self { $(Self::$name(config) => config.validate(d_model),)+ }
            }

            /// Number of parameters of a valid configuration.
            pub fn n_params(&self, d_model: usize) -> usize {
                match self { $(Self::$name(config) => config.n_params(d_model),)+ }
            }

            /// A mixer with freshly drawn parameters.
            pub fn init(&self, d_model: usize, init: &mut Init) -> AnyMixer {
                match self { $(Self::$name(config) => AnyMixer::$name(config.init(d_model, init)),)+ }
            }
        }

        #[allow(unreachable_code, reason = "the state of a mixer without one cannot be made")]
        impl State for MixerState {
            fn detach(self) -> Self {
                match self { $(Self::$name(state) => Self::$name(state.detach()),)+ }
            }

            fn stack(states: Vec<Self>) -> Self {
                match states.first() {
                    $(Some(Self::$name(_)) => {
                        let states = states.into_iter().map(|state| match state {
                            Self::$name(state) => state,
                            #[allow(unreachable_patterns, reason = "reachable from the second mixer on")]
                            other => panic!("the state {other:?} is of another mixer"),
                        });
                        Self::$name(State::stack(states.collect()))
                    })+
                    None => panic!("a stack of no states"),
                }
            }

            fn select(&self, rows: &[usize]) -> Self {
                match self { $(Self::$name(state) => Self::$name(state.select(rows)),)+ }
            }
        }

        impl Mixer for AnyMixer {
            type State = MixerState;

            fn forward(&self, x: Tensor<3>) -> Tensor<3> {
                match self { $(Self::$name(mixer) => mixer.forward(x),)+ }
            }

            fn forward_in_segments(&self, x: Tensor<3>) -> Tensor<3> {
                match self { $(Self::$name(mixer) => mixer.forward_in_segments(x),)+ }
            }

            fn init_state(&self, batch: usize) -> Result<MixerState, MixerError> {
                match self { $(Self::$name(mixer) => mixer.init_state(batch).map(MixerState::$name),)+ }
            }

            fn prefill(
                &self,
                x: Tensor<3>,
                resets: Option<Tensor<2, Bool>>,
                state: &mut MixerState,
            ) -> Tensor<3> {
                match (self, state) {
                    $((Self::$name(mixer), MixerState::$name(state)) => {
                        mixer.prefill(x, resets, state)
                    })+
                    #[allow(unreachable_patterns, reason = "reachable from the second mixer on")]
                    (mixer, state) => panic!("state {state:?} does not belong to mixer {mixer:?}"),
                }
            }

            fn decoder(
                &self,
                norm: Norm,
                state: &MixerState,
                dtype: FloatDType,
            ) -> Option<Box<dyn Decoder>> {
                match (self, state) {
                    $((Self::$name(mixer), MixerState::$name(state)) => {
                        mixer.decoder(norm, state, dtype)
                    })+
                    #[allow(unreachable_patterns, reason = "reachable from the second mixer on")]
                    (mixer, state) => panic!("state {state:?} does not belong to mixer {mixer:?}"),
                }
            }

            fn scale_output(self, factor: f64) -> Self {
                match self { $(Self::$name(mixer) => Self::$name(mixer.scale_output(factor)),)+ }
            }
        }
    };
}

mixers! {
    /// Selective SSM (S6). Gu & Dao 2023, arXiv:2312.00752.
    Mamba(MambaConfig, MambaState),
    /// Mamba with a second, re-ordered branch. Yang et al. 2024, arXiv:2403.06800.
    SrMamba(SrMambaConfig, NoState),
    /// Mamba with a second branch from the end. Zhu et al. 2024, arXiv:2401.09417.
    BiMamba(BiMambaConfig, NoState),
}
