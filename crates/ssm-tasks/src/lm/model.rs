//! `MambaLM`: embedding, backbone, final norm, and the embedding once more as the head.
//!
//! Gu & Dao 2023, arXiv:2312.00752; `MambaLMHeadModel`, state-spaces/mamba@e9594ce.

use burn::{
    module::{Module, Param},
    nn::Embedding,
    tensor::{Bool, Device, FloatDType, Int, Tensor},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_core::{
    init::Init,
    mixers::{MambaConfig, MixerConfig, MixerError},
    nn::{Backbone, BackboneConfig, BackboneState, MlpConfig, dropout},
    ops::linear::linear_loose,
};
use ssm_train::config::Issue;

/// `[model]`. Defaults are the sizes of Mamba-130M.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MambaLmConfig {
    /// Residual width, 1..=65536. Default 768.
    pub d_model: usize,
    /// Number of blocks, 1..=1024. Default 24.
    pub n_layer: usize,
    /// The vocabulary is padded to a multiple of this, 1..=1024; the rows of the padding are trained
    /// like all others and never sampled. Default 8 (`pad_vocab_size_multiple`, official code).
    pub pad_vocab_to: usize,
    /// The mixer of every block; a causal one. Default `mamba` with its defaults.
    pub mixer: MixerConfig,
    /// The feed-forward part of every block. Default: absent, as in Mamba.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp: Option<MlpConfig>,
    /// Share of the embedding, and of what each block adds to it, that training sets to zero, `[0, 1)`.
    /// Default 0 (paper): for small corpora that are read many times.
    pub dropout: f64,
    /// What logits are multiplied with, a power of two from 2^-16 to 1. Below 1 margins grow more slowly, so
    /// that sequences that are learned keep a say in what follows. Default 1 (paper).
    pub logit_scale: f64,
}

impl Default for MambaLmConfig {
    fn default() -> Self {
        Self {
            d_model: 768,
            n_layer: 24,
            pad_vocab_to: 8,
            mixer: MixerConfig::Mamba(MambaConfig::default()),
            mlp: None,
            dropout: 0.0,
            logit_scale: 1.0,
        }
    }
}

impl MambaLmConfig {
    /// Everything that is wrong.
    #[must_use]
    pub fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        for (name, value, last) in [
            ("d_model", self.d_model, 65536),
            ("n_layer", self.n_layer, 1024),
            ("pad_vocab_to", self.pad_vocab_to, 1024),
        ] {
            if !(1..=last).contains(&value) {
                issues.push(Issue::range(format!("model.{name}"), &format!("1..={last}"), value));
            }
        }
        if let Some(mlp) = &self.mlp
            && !(1..=65536).contains(&mlp.d_hidden)
        {
            issues.push(Issue::range("model.mlp.d_hidden", "1..=65536", mlp.d_hidden));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let expected = "at least 0 and less than 1";
            issues.push(Issue::range("model.dropout", expected, self.dropout));
        }
        let scales = (0..=16).map(|n| (-f64::from(n)).exp2());
        if !scales.into_iter().any(|scale| scale == self.logit_scale) {
            let expected = "1, 0.5, 0.25 and so on to 2^-16";
            issues.push(Issue::range("model.logit_scale", expected, self.logit_scale));
        }
        if let Err(error) = self.mixer.validate(self.d_model) {
            // A configuration serialises to a table with one key, the name of the mixer.
            let table = toml::Table::try_from(&self.mixer).ok();
            let name = table.and_then(|table| table.keys().next().cloned()).unwrap_or_default();
            issues.push(match error {
                MixerError::Config { field, got, expected } => {
                    Issue::range(format!("model.mixer.{name}.{field}"), &expected, got)
                }
                other => Issue::new(format!("model.mixer.{name}"), other.to_string()),
            });
        }
        issues
    }

    /// Rows of the embedding for a vocabulary.
    #[must_use]
    pub fn n_rows(&self, n_vocab: usize) -> usize {
        n_vocab.next_multiple_of(self.pad_vocab_to)
    }

    /// The model with fresh parameters: embedding normal with deviation 0.02, output projections
    /// divided by the square root of the number of layers, the rest as the mixers draw them
    /// (`_init_weights`, state-spaces/mamba@e9594ce).
    #[must_use]
    pub fn init(&self, n_vocab: usize, init: &mut Init) -> MambaLm {
        let weight = init.normal([self.n_rows(n_vocab), self.d_model], 0.0, 0.02);
        let backbone = BackboneConfig {
            d_model: self.d_model,
            n_layer: self.n_layer,
            mixer: self.mixer.clone(),
            mlp: self.mlp.clone(),
        };
        let mut backbone = backbone.init(init);
        backbone.drop_outputs(self.dropout);
        MambaLm {
            embedding: Embedding { weight: Param::from_tensor(weight) },
            backbone,
            dropout: self.dropout,
            logit_scale: self.logit_scale,
        }
    }
}

/// `embedding -> n_layer x (x + mixer(RMSNorm(x))) -> RMSNorm -> logit_scale * embedding^T`.
///
/// # Shapes
/// Tokens `[batch, seq_len]` to logits `[batch, seq_len, n_rows]`.
///
/// # Source
/// Gu & Dao 2023, arXiv:2312.00752.
#[derive(Module, Debug)]
pub struct MambaLm {
    pub(super) embedding: Embedding,
    pub(super) backbone: Backbone,
    /// Share of the embedding that training drops.
    #[module(skip)]
    dropout: f64,
    /// What hidden states are multiplied with before the head; a power of two, so nothing is rounded.
    #[module(skip)]
    pub(super) logit_scale: f64,
}

impl MambaLm {
    /// From now on the backward pass runs each block again instead of keeping what is in it.
    pub fn recompute_layers(&mut self) {
        self.backbone.recompute_layers();
    }

    /// From now on blocks and head compute in `dtype`: hidden states and logits are in it, while
    /// parameters, embedded tokens and the stream through the blocks stay in f32.
    pub fn compute_in(&mut self, dtype: FloatDType) {
        self.backbone.compute_in(dtype);
    }

    /// What blocks and head compute in.
    #[must_use]
    pub fn activations(&self) -> FloatDType {
        self.backbone.branches().unwrap_or_else(|| self.embedding.weight.dtype().into())
    }

    /// Normed outputs of the last block from an empty past, `[batch, seq_len, d_model]`, in the scale of
    /// the logits.
    #[must_use]
    pub fn hidden(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.scaled(self.backbone.forward(self.embedded(tokens)))
    }

    /// Hidden states, or in their place the rows of the head, in the scale of the logits.
    pub(super) fn scaled<const D: usize>(&self, factor: Tensor<D>) -> Tensor<D> {
        if self.logit_scale == 1.0 { factor } else { factor.mul_scalar(self.logit_scale) }
    }

    /// What the first block reads.
    fn embedded(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        dropout(self.embedding.forward(tokens), self.dropout)
    }

    /// As [`MambaLm::hidden`], from `state` on, which receives the state after the last token. Where
    /// `resets` is set, a document begins.
    #[must_use]
    pub fn continued(
        &self,
        tokens: Tensor<2, Int>,
        resets: Option<Tensor<2, Bool>>,
        state: &mut BackboneState,
    ) -> Tensor<3> {
        self.scaled(self.backbone.prefill(self.embedded(tokens), resets, state))
    }

    /// The states before the first token.
    ///
    /// # Errors
    /// If the mixer is not causal.
    pub fn init_state(&self, batch: usize) -> Result<BackboneState, MixerError> {
        self.backbone.init_state(batch)
    }

    /// Logits of the next token, `[n, d_model]` to `[n, n_rows]`.
    #[must_use]
    pub fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        let dtype = FloatDType::from(hidden.dtype());
        let weight = self.embedding.weight.val().cast(dtype).transpose();
        linear_loose(weight, None, hidden.unsqueeze_dim(0)).squeeze_dim(0)
    }

    /// Logits at every position, `[batch, seq_len]` to `[batch, seq_len, n_rows]`.
    #[must_use]
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, seq_len] = tokens.dims();
        let hidden = self.hidden(tokens).flatten::<2>(0, 1);
        let logits = self.head(hidden);
        let [_, n_rows] = logits.dims();
        logits.reshape([batch, seq_len, n_rows])
    }

    /// One token of every sequence in O(1), `[batch]` to logits `[batch, n_rows]`.
    #[must_use]
    pub fn step(&self, tokens: Tensor<1, Int>, state: &mut BackboneState) -> Tensor<2> {
        let x = self.embedding.forward(tokens.unsqueeze_dim(1)).squeeze_dim(1);
        self.head(self.scaled(self.backbone.step(x, state)))
    }

    /// The device that the parameters are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.embedding.weight.val().device()
    }
}
