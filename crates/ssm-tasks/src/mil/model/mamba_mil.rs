//! MambaMIL: instances as one long sequence through selective SSMs, then attention pooling.

use burn::{
    module::Module,
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, FloatDType, Tensor, activation},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::{
    init::Init,
    mixers::{AnyMixer, Mixer, MixerConfig, MixerError, SrMambaConfig},
    nn::{AttentionPool, AttentionPoolConfig, compute_in, dropout},
    ops::{layer_norm::layer_norm, linear::linear, pointwise::gelu, recompute::recompute},
};
use ssm_train::config::Issue;

use super::{Output, dropout_issue, embedder::ConvStem, width_issues, xavier};

/// Of every norm, as torch has it.
const EPSILON: f64 = 1e-5;

/// Which initial values the linear layers get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initialisation {
    /// Those of Mamba: the step size starts in `[0.001, 0.1]`.
    #[default]
    Mamba,
    /// Those of the published program, which draws every linear layer anew: the step size starts at
    /// 0.69, so that the state forgets within a few instances.
    #[serde(rename = "mambamil")]
    MambaMil,
}

/// The function after the instance projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Gaussian error linear unit.
    #[default]
    Gelu,
    /// Rectified linear unit.
    Relu,
}

/// `[model.mamba_mil]`. Defaults are those of the published scripts (isyangshu/MambaMIL@9aea39e).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MambaMilConfig {
    /// Width of an instance in the sequence, 1..=65536. Default 512.
    pub d_model: usize,
    /// Number of layers, 1..=1024. Default 2.
    pub n_layer: usize,
    /// Width of the attention network, 1..=65536. Default 128.
    pub d_attention: usize,
    /// Share of projected instances' activations dropped in training, `[0, 1)`. Default 0, as for
    /// subtyping; the published survival scripts use 0.25.
    pub dropout: f64,
    /// After the instance projection. Default `"gelu"`.
    pub activation: Activation,
    /// `"mamba"` (default) or `"mambamil"`, what the published program does.
    pub init: Initialisation,
    /// Side of the square, one-channel images that instances are, 16..=1024; two convolutions come
    /// first then. Default: absent, instances are feature vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_side: Option<usize>,
    /// The mixer of every layer. Default `sr_mamba` with its defaults but `rate = 5`.
    pub mixer: MixerConfig,
}

impl Default for MambaMilConfig {
    fn default() -> Self {
        Self {
            d_model: 512,
            n_layer: 2,
            d_attention: 128,
            dropout: 0.0,
            activation: Activation::Gelu,
            init: Initialisation::Mamba,
            image_side: None,
            mixer: MixerConfig::SrMamba(SrMambaConfig { rate: 5, ..SrMambaConfig::default() }),
        }
    }
}

impl MambaMilConfig {
    /// Everything that is wrong, with paths below `section`.
    #[must_use]
    pub fn validate(&self, section: &str) -> Vec<Issue> {
        let widths = [("d_model", self.d_model), ("d_attention", self.d_attention)];
        let mut issues = width_issues(section, &widths);
        if !(1..=1024).contains(&self.n_layer) {
            issues.push(Issue::range(format!("{section}.n_layer"), "1..=1024", self.n_layer));
        }
        issues.extend(dropout_issue(section, self.dropout));
        if let Some(side) = self.image_side
            && !(16..=1024).contains(&side)
        {
            issues.push(Issue::range(format!("{section}.image_side"), "16..=1024", side));
        }
        if let Err(error) = self.mixer.validate(self.d_model) {
            issues.push(mixer_issue(&format!("{section}.mixer"), &self.mixer, error));
        }
        issues
    }

    /// The model with fresh parameters.
    #[must_use]
    pub fn init(&self, d_feature: usize, n_outputs: usize, init: &mut Init) -> MambaMil {
        let d_model = self.d_model;
        let device = init.device().clone();
        let norm = || LayerNormConfig::new(d_model).with_epsilon(EPSILON).init(&device);
        let images = self.image_side.map(|side| ConvStem::init(side, init));
        let d_in = images.as_ref().map_or(d_feature, ConvStem::d_out);
        let pool = AttentionPoolConfig { d_attention: self.d_attention, gated: false };
        let model = MambaMil {
            images,
            projection: init.linear(d_in, d_model, true),
            layers: (0..self.n_layer)
                .map(|_| Layer {
                    norm: norm(),
                    mixer: self.mixer.init(d_model, init),
                    branches: None,
                })
                .collect(),
            norm: norm(),
            pool: pool.init(d_model, init),
            classifier: init.linear(d_model, n_outputs, true),
            dropout: self.dropout,
            relu: self.activation == Activation::Relu,
            recompute: false,
            branches: None,
        };
        match self.init {
            Initialisation::Mamba => model,
            Initialisation::MambaMil => xavier::reinitialise(model, init),
        }
    }
}

/// Adds where in the configuration a mixer's value stands.
fn mixer_issue(section: &str, mixer: &MixerConfig, error: MixerError) -> Issue {
    // A configuration serialises to a table with one key, the name of the mixer.
    let name = toml::Table::try_from(mixer).ok().and_then(|table| table.keys().next().cloned());
    let section = name.map_or_else(|| section.to_owned(), |name| format!("{section}.{name}"));
    match error {
        MixerError::Config { field, got, expected } => {
            Issue::range(format!("{section}.{field}"), &expected, got)
        }
        other => Issue::new(section, other.to_string()),
    }
}

/// `projection -> n_layer x (x + mixer(LN(x))) -> LN -> attention pooling -> classifier`.
///
/// # Shapes
/// `[n_instances, d_feature]` to `[n_outputs]`.
///
/// # Source
/// Yang et al. 2024, arXiv:2403.06800; isyangshu/MambaMIL@9aea39e.
#[derive(Module, Debug)]
pub struct MambaMil {
    images: Option<ConvStem>,
    projection: Linear,
    layers: Vec<Layer>,
    norm: LayerNorm,
    pool: AttentionPool,
    classifier: Linear,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    relu: bool,
    /// Whether the backward pass runs each layer again.
    #[module(skip)]
    recompute: bool,
    /// What the projection and the mixers compute in, if not in the type of the instances.
    #[module(skip)]
    branches: Option<FloatDType>,
}

#[derive(Module, Debug)]
struct Layer {
    norm: LayerNorm,
    mixer: AnyMixer,
    /// As in [`MambaMil`].
    #[module(skip)]
    branches: Option<FloatDType>,
}

impl Layer {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let normed = layer_norm(&self.norm, x.clone(), EPSILON);
        x + compute_in(self.branches, normed, |x| self.mixer.forward(x))
    }

    /// The same, of which the backward pass keeps as little as it can.
    fn forward_in_segments(&self, x: Tensor<3>) -> Tensor<3> {
        let normed = layer_norm(&self.norm, x.clone(), EPSILON);
        x + compute_in(self.branches, normed, |x| self.mixer.forward_in_segments(x))
    }
}

impl MambaMil {
    /// From now on the backward pass runs each layer again instead of keeping what is in it.
    pub fn recompute_layers(&mut self) {
        self.recompute = true;
    }

    /// From now on the projection of instances and the mixers compute in `dtype`. The sequence that they
    /// add up to, its norms, the attention and the logits stay in f32.
    pub fn compute_in(&mut self, dtype: FloatDType) {
        self.branches = Some(dtype);
        self.layers.iter_mut().for_each(|layer| layer.branches = Some(dtype));
    }

    /// `[n_instances, d_feature]` to logits and attention.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Output {
        let x = match &self.images {
            Some(images) => images.forward(x),
            None => x,
        };
        let x = compute_in(self.branches, x.unsqueeze_dim(0), |x| {
            let x = linear(&self.projection, x); // [1, n_instances, d_model]
            if self.relu { activation::relu(x) } else { gelu(x) }
        });
        let mut x = dropout(x, self.dropout);
        for layer in &self.layers {
            x = if self.recompute {
                recompute(layer, x, Layer::forward_in_segments)
            } else {
                layer.forward(x)
            };
        }
        let (pooled, attention) = self.pool.forward(layer_norm(&self.norm, x, EPSILON));
        Output {
            logits: self.classifier.forward(pooled).squeeze_dim(0),
            attention: Some(attention.squeeze_dim(0)),
        }
    }

    /// The device that the parameters are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.classifier.weight.val().device()
    }
}
