//! From instances to embedded instances, one by one: two convolutions for images, then linear layers
//! with ReLU.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{
        Tensor, activation,
        module::{conv2d, max_pool2d},
        ops::{ConvOptions, MaxPoolOptions},
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::{init::Init, nn::dropout};
use ssm_train::config::Issue;

use super::{dropout_issue, width_issues};

/// Layers of an [`Embedder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedderConfig {
    /// Width of each layer from the input side, each 1..=65536; at least one. Default
    /// `[256, 128, 64]` (Ilse et al. 2018, for classic data).
    pub hidden: Vec<usize>,
    /// Share of activations dropped after each layer in training, `[0, 1)`. Default 0.
    pub dropout: f64,
    /// Side of the square, one-channel images that instances are, 16..=1024; two convolutions come
    /// first then. Default: absent, instances are feature vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_side: Option<usize>,
}

impl Default for EmbedderConfig {
    fn default() -> Self {
        Self { hidden: vec![256, 128, 64], dropout: 0.0, image_side: None }
    }
}

impl EmbedderConfig {
    /// Everything that is wrong, with paths below `section`.
    #[must_use]
    pub fn validate(&self, section: &str) -> Vec<Issue> {
        let named: Vec<(&str, usize)> =
            self.hidden.iter().map(|width| ("hidden", *width)).collect();
        let mut issues = width_issues(section, &named);
        if self.hidden.is_empty() {
            let path = format!("{section}.hidden");
            issues.push(Issue::new(path, "expected at least one layer, got an empty array"));
        }
        issues.extend(dropout_issue(section, self.dropout));
        if let Some(side) = self.image_side
            && !(16..=1024).contains(&side)
        {
            issues.push(Issue::range(format!("{section}.image_side"), "16..=1024", side));
        }
        issues
    }

    /// Width of an embedded instance.
    #[must_use]
    pub fn d_out(&self) -> usize {
        self.hidden.last().copied().unwrap_or(0)
    }

    /// The layers with fresh parameters.
    #[must_use]
    pub fn init(&self, d_feature: usize, init: &mut Init) -> Embedder {
        let images = self.image_side.map(|side| ConvStem::init(side, init));
        let mut d_in = images.as_ref().map_or(d_feature, ConvStem::d_out);
        let layers = self.hidden.iter().map(|&d_out| {
            let layer = init.linear(d_in, d_out, true);
            d_in = d_out;
            layer
        });
        let layers = layers.collect();
        Embedder { images, layers, dropout: self.dropout }
    }
}

/// `[n_instances, d_feature]` to `[n_instances, d_out]`.
#[derive(Module, Debug)]
pub struct Embedder {
    images: Option<ConvStem>,
    layers: Vec<Linear>,
    #[module(skip)]
    dropout: f64,
}

impl Embedder {
    /// Embeds every instance.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = match &self.images {
            Some(images) => images.forward(x),
            None => x,
        };
        self.layers
            .iter()
            .fold(x, |x, layer| dropout(activation::relu(layer.forward(x)), self.dropout))
    }
}

/// Two convolutions of width 5, each followed by ReLU and pooling by 2.
///
/// # Source
/// Ilse et al. 2018, arXiv:1802.04712, table 8 (LeNet-5 with 20 and 50 channels).
#[derive(Module, Debug)]
pub(super) struct ConvStem {
    weight1: Param<Tensor<4>>,
    bias1: Param<Tensor<1>>,
    weight2: Param<Tensor<4>>,
    bias2: Param<Tensor<1>>,
    #[module(skip)]
    side: usize,
}

const CHANNELS: [usize; 3] = [1, 20, 50];
const KERNEL: usize = 5;

impl ConvStem {
    pub(super) fn init(side: usize, init: &mut Init) -> Self {
        let mut layer = |d_in: usize, d_out: usize| {
            // As torch: uniform in one over the root of the fan-in.
            let bound = ((d_in * KERNEL * KERNEL) as f64).powf(-0.5);
            let weight = init.uniform([d_out, d_in, KERNEL, KERNEL], -bound, bound);
            let bias = init.uniform([d_out], -bound, bound);
            (Param::from_tensor(weight), Param::from_tensor(bias))
        };
        let (weight1, bias1) = layer(CHANNELS[0], CHANNELS[1]);
        let (weight2, bias2) = layer(CHANNELS[1], CHANNELS[2]);
        Self { weight1, bias1, weight2, bias2, side }
    }

    pub(super) fn d_out(&self) -> usize {
        let pooled = |side: usize| (side + 1 - KERNEL) / 2;
        CHANNELS[2] * pooled(pooled(self.side)).pow(2)
    }

    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [n_instances, _] = x.dims();
        let layer = |x: Tensor<4>, weight: &Param<Tensor<4>>, bias: &Param<Tensor<1>>| {
            let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
            let x = activation::relu(conv2d(x, weight.val(), Some(bias.val()), options));
            max_pool2d(x, MaxPoolOptions::new([2, 2]))
        };
        let x: Tensor<4> = x.reshape([n_instances, 1, self.side, self.side]);
        let x = layer(x, &self.weight1, &self.bias1);
        let x = layer(x, &self.weight2, &self.bias2);
        x.reshape([n_instances, self.d_out()])
    }
}
