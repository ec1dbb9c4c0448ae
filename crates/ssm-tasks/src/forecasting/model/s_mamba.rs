//! S-Mamba: every variate is a token, and two mixers read the tokens in both directions.

use burn::{
    module::Module,
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, FloatDType, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use ssm_core::{
    init::Init,
    mixers::{MambaConfig, MixerConfig, MixerError},
    nn::{Bidirectional, BidirectionalConfig, Merge, compute_in, dropout},
    ops::{
        layer_norm::{layer_norm, sum_layer_norm},
        linear::linear,
        pointwise::gelu,
    },
};
use ssm_train::config::Issue;

use super::N_MAX;
use crate::{forecasting::window::Input, given};

/// `[model.s_mamba]`. Defaults are those of the published program (S-D-Mamba@e7e8bf0, `run.py`),
/// but for `d_ff`, which every published script sets to `d_model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SMambaConfig {
    /// Width of a token, 1..=65536. Default 512.
    pub d_model: usize,
    /// Width inside the feed-forward network, 1..=65536. Default 512.
    pub d_ff: usize,
    /// Number of layers, 1..=1024. Default 2.
    pub n_layer: usize,
    /// Share of activations dropped in training, `[0, 1)`. Default 0.1.
    pub dropout: f64,
    /// Whether each look-back is brought to mean 0 and variance 1, and the forecast back. Default
    /// true; the published scripts of PEMS04 and PEMS07 switch it off.
    pub use_norm: bool,
    /// How the two directions are merged. Default `"sum"`.
    pub merge: Merge,
    /// The mixer of each direction. Default `mamba`; sizes that `[model.s_mamba.mixer.mamba]` leaves
    /// out are `d_state = 32`, `d_conv = 2`, `expand = 1`, and not those of a Mamba by itself.
    #[serde(deserialize_with = "mixer")]
    #[schemars(with = "MixerConfig")]
    pub mixer: MixerConfig,
}

/// Epsilon of every layer norm, the default of torch.
const EPSILON: f64 = 1e-5;

/// Mamba in the sizes of the published program.
fn default_mamba() -> MambaConfig {
    MambaConfig { d_state: 32, d_conv: 2, expand: 1, ..MambaConfig::default() }
}

/// Reads the mixer; what a table of Mamba leaves out is S-Mamba's default.
fn mixer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MixerConfig, D::Error> {
    let (mut mixer, given) = given::deserialize(deserializer)?;
    #[allow(irrefutable_let_patterns, reason = "refutable from the second mixer on")]
    if let MixerConfig::Mamba(mamba) = &mut mixer {
        let sizes = default_mamba();
        for (name, size, default) in [
            ("d_state", &mut mamba.d_state, sizes.d_state),
            ("d_conv", &mut mamba.d_conv, sizes.d_conv),
            ("expand", &mut mamba.expand, sizes.expand),
        ] {
            if !given.iter().any(|key| key == name) {
                *size = default;
            }
        }
    }
    Ok(mixer)
}

impl Default for SMambaConfig {
    fn default() -> Self {
        Self {
            d_model: 512,
            d_ff: 512,
            n_layer: 2,
            dropout: 0.1,
            use_norm: true,
            merge: Merge::Sum,
            mixer: MixerConfig::Mamba(default_mamba()),
        }
    }
}

impl SMambaConfig {
    /// Everything that is wrong, with paths below `section`.
    #[must_use]
    pub fn validate(&self, section: &str) -> Vec<Issue> {
        let mut issues = Vec::new();
        for (name, value, last) in [
            ("d_model", self.d_model, N_MAX),
            ("d_ff", self.d_ff, N_MAX),
            ("n_layer", self.n_layer, 1024),
        ] {
            if !(1..=last).contains(&value) {
                issues.push(Issue::range(
                    format!("{section}.{name}"),
                    &format!("1..={last}"),
                    value,
                ));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let path = format!("{section}.dropout");
            issues.push(Issue::range(path, "at least 0 and less than 1", self.dropout));
        }
        if let Err(error) = self.mixer.validate(self.d_model) {
            issues.push(mixer_issue(&format!("{section}.mixer"), &self.mixer, error));
        }
        issues
    }

    /// Number of parameters of a valid configuration.
    #[must_use]
    pub fn n_params(&self, lookback_len: usize, pred_len: usize) -> usize {
        let (d_model, d_ff) = (self.d_model, self.d_ff);
        let norm = 2 * d_model;
        let feed_forward = (d_model + 1) * d_ff + (d_ff + 1) * d_model;
        let layer = 2 * self.mixer.n_params(d_model) + feed_forward + 2 * norm;
        (lookback_len + 1) * d_model + self.n_layer * layer + norm + (d_model + 1) * pred_len
    }

    /// The model with fresh parameters: linear maps as in torch, mixers by their own rule.
    #[must_use]
    pub fn init(&self, lookback_len: usize, pred_len: usize, init: &mut Init) -> SMamba {
        let d_model = self.d_model;
        let device = init.device().clone();
        let bidirectional = BidirectionalConfig { mixer: self.mixer.clone(), merge: self.merge };
        let norm = || LayerNormConfig::new(d_model).with_epsilon(EPSILON).init(&device);
        SMamba {
            embedding: init.linear(lookback_len, d_model, true),
            layers: (0..self.n_layer)
                .map(|_| SMambaLayer {
                    mixer: bidirectional.init(d_model, init),
                    norm1: norm(),
                    linear1: init.linear(d_model, self.d_ff, true),
                    linear2: init.linear(self.d_ff, d_model, true),
                    norm2: norm(),
                    dropout: self.dropout,
                    branches: None,
                })
                .collect(),
            norm_f: norm(),
            projector: init.linear(d_model, pred_len, true),
            dropout: self.dropout,
            use_norm: self.use_norm,
        }
    }
}

/// The error of a mixer as an issue at its field: `model.s_mamba.mixer.mamba.d_state`.
fn mixer_issue(section: &str, mixer: &MixerConfig, error: MixerError) -> Issue {
    let tag = toml::Table::try_from(mixer).ok().and_then(|table| table.keys().next().cloned());
    match (error, tag) {
        (MixerError::Config { field, got, expected }, Some(tag)) => {
            Issue::range(format!("{section}.{tag}.{field}"), &expected, got)
        }
        (error, _) => Issue::new(section, error.to_string()),
    }
}

/// S-Mamba: instance normalisation, inverted embedding, layers over the variates, projection.
///
/// 1. Each variate of a window is shifted and scaled to mean 0, variance 1 over its look-back.
/// 2. The look-back of a variate, and each calendar feature of it, becomes one token by a shared
///    linear map; no positions are added.
/// 3. `n_layer` times [`SMambaLayer`], then a layer norm.
/// 4. A shared linear map takes each variate's token to the horizon; calendar tokens are dropped.
/// 5. Step 1 is undone.
///
/// # Source
/// Wang et al. 2024, arXiv:2403.11144; S-D-Mamba@e7e8bf0, without the modules that it builds and
/// never calls.
#[derive(Module, Debug)]
pub struct SMamba {
    embedding: Linear,
    layers: Vec<SMambaLayer>,
    norm_f: LayerNorm,
    projector: Linear,
    dropout: f64,
    use_norm: bool,
}

impl SMamba {
    pub(super) const READS_CALENDAR: bool = true;

    /// From now on mixers and feed-forward networks compute in `dtype`. What they add up to, its norms,
    /// the embedding and the forecast stay in f32.
    pub fn compute_in(&mut self, dtype: FloatDType) {
        self.layers.iter_mut().for_each(|layer| layer.branches = Some(dtype));
    }

    /// `[batch, n_variates, lookback_len]` to `[batch, n_variates, pred_len]`.
    #[must_use]
    pub fn forward(&self, input: Input) -> Tensor<3> {
        let [_, n_variates, _] = input.x.dims();
        let (x, statistics) = if self.use_norm {
            let (x, mean, std) = normalise(input.x);
            (x, Some((mean, std)))
        } else {
            (input.x, None)
        };
        let tokens = match input.marks {
            Some(marks) => Tensor::cat(vec![x, marks], 1),
            None => x,
        };
        let mut tokens = dropout(linear(&self.embedding, tokens), self.dropout);
        for layer in &self.layers {
            tokens = layer.forward(tokens); // [batch, n_variates + n_marks, d_model]
        }
        // The rest works token by token, so calendar tokens can go now.
        let tokens = layer_norm(&self.norm_f, tokens.narrow(1, 0, n_variates), EPSILON);
        let y = linear(&self.projector, tokens); // [batch, n_variates, pred_len]
        match statistics {
            Some((mean, std)) => y * std + mean,
            None => y,
        }
    }

    /// The device that the parameters are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.projector.weight.val().device()
    }
}

/// The series of each variate with mean 0 and variance 1, its mean, and its standard deviation.
///
/// Variance is biased, and 1e-5 is added to it.
fn normalise(x: Tensor<3>) -> (Tensor<3>, Tensor<3>, Tensor<3>) {
    let mean = x.clone().mean_dim(2);
    let x = x - mean.clone();
    let std = (x.clone().square().mean_dim(2) + 1e-5).sqrt();
    (x / std.clone(), mean, std)
}

/// One layer: `x = LN(x + mix(x))`, then `x = LN(x + FFN(x))`, where `mix` runs one mixer over the
/// tokens forwards, another one backwards, and merges the two.
#[derive(Module, Debug)]
pub struct SMambaLayer {
    mixer: Bidirectional,
    norm1: LayerNorm,
    linear1: Linear,
    linear2: Linear,
    norm2: LayerNorm,
    dropout: f64,
    /// What mixer and feed-forward network compute in, if not in the type of the tokens.
    #[module(skip)]
    branches: Option<FloatDType>,
}

impl SMambaLayer {
    /// `[batch, n_tokens, d_model]` to the same shape.
    #[must_use]
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let mixed = compute_in(self.branches, x.clone(), |x| self.mixer.forward(x));
        let x = sum_layer_norm(&self.norm1, x, mixed, EPSILON);
        let y = compute_in(self.branches, x.clone(), |x| {
            let hidden = dropout(gelu(linear(&self.linear1, x)), self.dropout);
            dropout(linear(&self.linear2, hidden), self.dropout)
        });
        sum_layer_norm(&self.norm2, x, y, EPSILON)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn a_partial_mixer_table_keeps_the_other_sizes_of_s_mamba() {
        let sizes = |text: &str| {
            let config: SMambaConfig = toml::from_str(text).unwrap();
            let table = toml::Table::try_from(&config).unwrap();
            let mamba = &table["mixer"]["mamba"];
            // The resolved configuration says all of it.
            assert_eq!(toml::from_str::<SMambaConfig>(&table.to_string()).unwrap(), config);
            ["d_state", "d_conv", "expand"].map(|name| mamba[name].as_integer().unwrap())
        };
        assert_eq!(sizes(""), [32, 2, 1]);
        assert_eq!(sizes("[mixer.mamba]"), [32, 2, 1]);
        assert_eq!(sizes("[mixer.mamba]\nd_state = 16"), [16, 2, 1]);
        assert_eq!(sizes("mixer.mamba = { d_conv = 4, expand = 2 }"), [32, 4, 2]);
    }

    #[test]
    fn mistakes_in_a_mixer_keep_their_place() {
        for (text, message, place) in [
            ("[mixer.mamba]\nd_sate = 8", "unknown field `d_sate`", "d_sate"),
            ("[mixer.mamba]\nd_state = \"8\"", "invalid type: string \"8\"", "\"8\""),
            ("[mixer.mamba9]\nd_state = 8", "unknown variant `mamba9`", "mamba9"),
        ] {
            let error = toml::from_str::<SMambaConfig>(text).unwrap_err();
            assert!(error.message().starts_with(message), "{error}");
            assert_eq!(&text[error.span().unwrap()], place, "{error}");
        }
    }

    #[test]
    fn swapping_the_directions_and_reversing_the_variates_changes_nothing() {
        let device = Device::flex();
        let config = SMambaConfig { d_model: 16, d_ff: 24, ..SMambaConfig::default() };
        let mut model = config.init(12, 5, &mut Init::new(3, &device));
        let values: Vec<f32> = (0..2 * 7 * 12).map(|i| ((i * 37) % 101) as f32 / 50.0).collect();
        let x: Tensor<3> = Tensor::from_data(TensorData::new(values, [2, 7, 12]), &device);

        let y = model.forward(Input { x: x.clone(), marks: None });
        for layer in &mut model.layers {
            let mixer = &mut layer.mixer;
            std::mem::swap(&mut mixer.forward, &mut mixer.backward);
        }
        let swapped = model.forward(Input { x: x.clone().flip([1]), marks: None }).flip([1]);
        assert_eq!(y.to_data(), swapped.to_data());
        let unswapped = model.forward(Input { x, marks: None });
        assert_ne!(y.to_data(), unswapped.to_data());
    }
}
