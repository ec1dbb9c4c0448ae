//! The sections `[task.lm]`, `[data]` and `[model]`, and what may be wrong with them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{
    config::Issue,
    task::{TaskConfig, Whole},
};

use super::{data::DataConfig, model::MambaLmConfig};

/// How a corpus becomes training sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Contiguous blocks; what a document leaves in the state reaches the next one, as in the official
    /// training.
    #[default]
    Blocks,
    /// The same blocks, but convolution and state begin anew with every document, and no document
    /// predicts the first token of the next.
    Documents,
}

/// What a training sequence begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bptt {
    /// An empty state; gradients reach back to the beginning of the sequence.
    #[default]
    Reset,
    /// The state that the micro-batch before left: the `train.accumulate` micro-batches of a step are
    /// consecutive parts of the same sequences. Gradients reach back to the beginning of a part, so
    /// memory is that of one part, whatever their number.
    Carry,
}

/// `[task.lm]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LmOptions {
    /// Tokens of a sequence that is cut from a corpus, 1..=16777216. Made-up data has lengths of its
    /// own. Default 1024.
    pub seq_len: usize,
    /// `"blocks"` (default) or `"documents"`.
    pub packing: Packing,
    /// `"reset"` (default) or `"carry"`.
    pub bptt: Bptt,
}

impl Default for LmOptions {
    fn default() -> Self {
        Self { seq_len: 1024, packing: Packing::Blocks, bptt: Bptt::Reset }
    }
}

/// The configuration of the task.
pub struct LmConfig;

impl TaskConfig for LmConfig {
    const NAME: &'static str = "lm";
    type Options = LmOptions;
    type Data = DataConfig;
    type Model = MambaLmConfig;

    fn validate(options: &LmOptions, data: &DataConfig, model: &MambaLmConfig) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(1..=1 << 24).contains(&options.seq_len) {
            issues.push(Issue::range("task.lm.seq_len", "1..=16777216", options.seq_len));
        }
        for issue in data.data_set().validate() {
            issues.push(Issue { path: format!("data.{}.{}", data.section(), issue.path), ..issue });
        }
        issues.extend(model.validate());
        issues
    }

    fn shares_micro_batches(options: &LmOptions) -> bool {
        options.bptt != Bptt::Carry
    }

    fn has_layers(_model: &MambaLmConfig) -> bool {
        true
    }

    fn reduce(
        options: &mut LmOptions,
        data: &mut DataConfig,
        model: &mut MambaLmConfig,
        n_layers: usize,
        n_tokens: usize,
    ) -> Whole {
        use DataConfig::{ShakespeareChar, Shards, Text};
        let mut whole = Whole::keep(&mut model.n_layer, n_layers);
        if matches!(data, ShakespeareChar(_) | Text(_) | Shards(_)) {
            let all = options.seq_len;
            options.seq_len = all.min(n_tokens);
            whole.n_tokens = Some([options.seq_len, all]);
        }
        whole
    }

    fn f32_only(_model: &MambaLmConfig) -> Option<String> {
        None
    }

    fn draws_numbers(model: &MambaLmConfig) -> bool {
        model.dropout > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(options: &str, data: &str, model: &str) -> Vec<String> {
        let issues = LmConfig::validate(
            &toml::from_str(options).unwrap(),
            &toml::from_str(data).unwrap(),
            &toml::from_str(model).unwrap(),
        );
        issues.iter().map(Issue::to_string).collect()
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(toml::from_str::<LmOptions>("").unwrap(), LmOptions::default());
        // Text has to be named, everything else has defaults.
        for data in DataConfig::all()
            .into_iter()
            .filter(|data| !["text", "shards"].contains(&data.section()))
        {
            assert!(data.data_set().validate().is_empty(), "{}", data.section());
        }
        assert!(MambaLmConfig::default().validate().is_empty());
    }

    #[test]
    fn every_value_out_of_range_is_listed() {
        assert_eq!(
            texts(
                "seq_len = 0",
                "[selective_copying]\nseq_len = 8\nn_tokens = 9\nn_vocab = 3",
                "d_model = 0\nn_layer = 0\npad_vocab_to = 0\ndropout = 1.0\nlogit_scale = 0.3\nmixer.mamba = { d_state = 0 }"
            ),
            [
                "`task.lm.seq_len`: expected 1..=16777216, got `0`",
                "`data.selective_copying.n_tokens`: expected 1 to `seq_len` = 8, got `9`",
                "`data.selective_copying.n_vocab`: expected 4..=65536, got `3`",
                "`model.d_model`: expected 1..=65536, got `0`",
                "`model.n_layer`: expected 1..=1024, got `0`",
                "`model.pad_vocab_to`: expected 1..=1024, got `0`",
                "`model.dropout`: expected at least 0 and less than 1, got `1`",
                "`model.logit_scale`: expected 1, 0.5, 0.25 and so on to 2^-16, got `0.3`",
                "`model.mixer.mamba.d_state`: expected 1 to 4096, got `0`",
            ]
        );
    }
}
