//! `config.json` of state-spaces/mamba and of Hugging Face.

use serde_json::{Map, Value, json};
use ssm_core::mixers::{MambaConfig, MixerConfig};

use super::Layout;
use crate::lm::model::MambaLmConfig;

/// What a `config.json` says of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelJson {
    /// Sizes; the padding of the vocabulary is in `n_rows`.
    pub config: MambaLmConfig,
    /// Whose file it is.
    pub layout: Layout,
    /// Rows of the embedding.
    pub n_rows: usize,
}

/// Fields of one object, read with the sentences of what is wrong with them.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn size(&self, key: &str) -> Result<usize, String> {
        let value = self.0.get(key).ok_or_else(|| format!("`{key}` is missing"))?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.filter(|size| *size > 0)
            .ok_or_else(|| format!("`{key}`: expected a number of at least 1, got `{value}`"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, String> {
        if self.0.contains_key(key) { self.size(key) } else { Ok(default) }
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool, String> {
        let Some(value) = self.0.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| format!("`{key}`: expected true or false, got `{value}`"))
    }

    /// Fails unless a field is absent or one of these values.
    fn only(&self, key: &str, values: &[Value]) -> Result<(), String> {
        match self.0.get(key) {
            Some(value) if !values.contains(value) => {
                let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                Err(format!("`{key}`: expected {}, got `{value}`", values.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    fn dt_rank(&self, key: &str) -> Result<Option<usize>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) if value == "auto" => Ok(None),
            Some(_) => self.size(key).map(Some),
        }
    }
}

impl ModelJson {
    /// # Errors
    /// A sentence, for what is no configuration of a Mamba model that can be computed here.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(text).map_err(|reason| format!("no JSON: {reason}"))?;
        let object = value.as_object().ok_or("expected an object")?;
        let fields = Fields(object);
        if object.contains_key("d_model") {
            return Self::of_state_spaces(&fields);
        }
        fields.only("model_type", &[json!("mamba")])?;
        fields.only("hidden_act", &[json!("silu")])?;
        fields.only("layer_norm_epsilon", &[json!(1e-5)])?;
        fields.only("tie_word_embeddings", &[json!(true)])?;
        let d_model = fields.size("hidden_size")?;
        let expand = fields.size_or("expand", 2)?;
        fields.only("intermediate_size", &[json!(expand.saturating_mul(d_model))])?;
        let mamba = MambaConfig {
            d_state: fields.size_or("state_size", 16)?,
            d_conv: fields.size_or("conv_kernel", 4)?,
            expand,
            dt_rank: fields.dt_rank("time_step_rank")?,
            bias: fields.flag_or("use_bias", false)?,
            conv_bias: fields.flag_or("use_conv_bias", true)?,
            ..MambaConfig::default()
        };
        let n_rows = fields.size("vocab_size")?;
        let n_layer = fields.size("num_hidden_layers")?;
        Self::checked(d_model, n_layer, mamba, Layout::HuggingFace, n_rows)
    }

    fn of_state_spaces(fields: &Fields<'_>) -> Result<Self, String> {
        fields.only("rms_norm", &[json!(true)])?;
        fields.only("tie_embeddings", &[json!(true)])?;
        fields.only("d_intermediate", &[json!(0)])?;
        fields.only("attn_layer_idx", &[json!([])])?;
        let none = Map::new();
        let ssm = fields.0.get("ssm_cfg").and_then(Value::as_object).unwrap_or(&none);
        let ssm = Fields(ssm);
        ssm.only("layer", &[json!("Mamba1")])?;
        let mamba = MambaConfig {
            d_state: ssm.size_or("d_state", 16)?,
            d_conv: ssm.size_or("d_conv", 4)?,
            expand: ssm.size_or("expand", 2)?,
            dt_rank: ssm.dt_rank("dt_rank")?,
            bias: ssm.flag_or("bias", false)?,
            conv_bias: ssm.flag_or("conv_bias", true)?,
            ..MambaConfig::default()
        };
        let multiple = fields.size_or("pad_vocab_size_multiple", 8)?;
        let n_vocab = fields.size("vocab_size")?;
        let n_rows = n_vocab.checked_next_multiple_of(multiple);
        let n_rows = n_rows.ok_or_else(|| format!("`vocab_size`: {n_vocab} is too large"))?;
        let (d_model, n_layer) = (fields.size("d_model")?, fields.size("n_layer")?);
        Self::checked(d_model, n_layer, mamba, Layout::StateSpaces, n_rows)
    }

    fn checked(
        d_model: usize,
        n_layer: usize,
        mamba: MambaConfig,
        layout: Layout,
        n_rows: usize,
    ) -> Result<Self, String> {
        // The rank in use is what the file says; where it says the default, nothing need be said.
        let default = MambaConfig { dt_rank: None, ..mamba.clone() }.dt_rank(d_model);
        let dt_rank = mamba.dt_rank.filter(|rank| *rank != default);
        let mixer = MixerConfig::Mamba(MambaConfig { dt_rank, ..mamba });
        let config =
            MambaLmConfig { d_model, n_layer, pad_vocab_to: 1, mixer, ..MambaLmConfig::default() };
        match config.validate().first() {
            Some(issue) => Err(issue.to_string()),
            None => Ok(Self { config, layout, n_rows }),
        }
    }

    /// Numbers that a file of such weights holds at least: the matrices of the projections, and the
    /// embedding.
    pub(super) fn least_parameters(&self) -> u128 {
        let MambaLmConfig { d_model, n_layer, mixer, .. } = &self.config;
        let [d_model, n_layer, n_rows] = [*d_model, *n_layer, self.n_rows].map(|n| n as u128);
        let MixerConfig::Mamba(mamba) = mixer else { return 0 };
        let [expand, d_state, d_conv] =
            [mamba.expand, mamba.d_state, mamba.d_conv].map(|n| n as u128);
        let rank = mamba.dt_rank(self.config.d_model) as u128;
        let channel = 3 * d_model + 2 * rank + 3 * d_state + d_conv;
        n_rows * d_model + n_layer * expand * d_model * channel
    }

    /// The text of the file.
    ///
    /// # Errors
    /// A sentence, for a model that the other program does not have.
    pub fn write(&self) -> Result<Vec<u8>, String> {
        let MambaLmConfig { d_model, n_layer, mixer, mlp, .. } = &self.config;
        let MixerConfig::Mamba(mamba) = mixer else {
            return Err("only models of `mamba` mixers have another layout".to_owned());
        };
        if mlp.is_some() || !mamba.selective {
            return Err("models with `mlp` or without `selective` have no other layout".to_owned());
        }
        let dt_rank = mamba.dt_rank(*d_model);
        let value = match self.layout {
            Layout::StateSpaces => json!({
                "d_model": d_model,
                "n_layer": n_layer,
                "vocab_size": self.n_rows,
                "ssm_cfg": {
                    "d_state": mamba.d_state, "d_conv": mamba.d_conv, "expand": mamba.expand,
                    "dt_rank": dt_rank, "bias": mamba.bias, "conv_bias": mamba.conv_bias,
                },
                "rms_norm": true,
                "residual_in_fp32": true,
                "fused_add_norm": true,
                "pad_vocab_size_multiple": 1,
                "tie_embeddings": true,
            }),
            Layout::HuggingFace => json!({
                "architectures": ["MambaForCausalLM"],
                "model_type": "mamba",
                "hidden_size": d_model,
                "num_hidden_layers": n_layer,
                "vocab_size": self.n_rows,
                "state_size": mamba.d_state,
                "conv_kernel": mamba.d_conv,
                "expand": mamba.expand,
                "intermediate_size": mamba.expand * d_model,
                "time_step_rank": dt_rank,
                "use_bias": mamba.bias,
                "use_conv_bias": mamba.conv_bias,
                "hidden_act": "silu",
                "layer_norm_epsilon": 1e-5,
                "residual_in_fp32": true,
                "tie_word_embeddings": true,
                "torch_dtype": "float32",
            }),
        };
        Ok(format!("{value:#}\n").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_come_back() {
        let model: MambaLmConfig = toml::from_str(
            "d_model = 32\nn_layer = 3\npad_vocab_to = 1\n\
             mixer.mamba = { d_state = 8, d_conv = 3, dt_rank = 5, bias = true, conv_bias = false }",
        )
        .unwrap();
        for layout in [Layout::StateSpaces, Layout::HuggingFace] {
            let written = ModelJson { config: model.clone(), layout, n_rows: 40 };
            assert_eq!(ModelJson::read(&written.write().unwrap()).unwrap(), written);
        }
    }

    #[test]
    fn the_published_configuration_is_understood() {
        let published = br#"{"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {},
            "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
            "pad_vocab_size_multiple": 8}"#;
        let json = ModelJson::read(published).unwrap();
        assert_eq!((json.n_rows, json.layout), (50280, Layout::StateSpaces));
        assert_eq!(json.config, MambaLmConfig { pad_vocab_to: 1, ..MambaLmConfig::default() });
    }

    #[test]
    fn models_of_another_kind_are_refused() {
        for (text, reason) in [
            ("[]", "expected an object"),
            ("{\"model_type\": \"llama\"}", "`model_type`: expected `\"mamba\"`, got `\"llama\"`"),
            (
                "{\"d_model\": 8, \"ssm_cfg\": {\"layer\": \"Mamba2\"}}",
                "`layer`: expected `\"Mamba1\"`, got `\"Mamba2\"`",
            ),
            ("{\"d_model\": 8}", "`vocab_size` is missing"),
            (
                "{\"d_model\": 8, \"vocab_size\": 8, \"n_layer\": 0}",
                "`n_layer`: expected a number of at least 1, got `0`",
            ),
            (
                "{\"hidden_size\": 8, \"tie_word_embeddings\": false}",
                "`tie_word_embeddings`: expected `true`, got `false`",
            ),
        ] {
            assert_eq!(ModelJson::read(text.as_bytes()).unwrap_err(), reason);
        }
    }
}
