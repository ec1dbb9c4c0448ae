//! The sections `[task.mil]`, `[data]` and `[model]`, and what may be wrong with them.

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{
    config::Issue,
    task::{TaskConfig, Whole},
};

use super::{data::DataConfig, model::BagModelConfig, splits::SplitOptions};

/// The score of the validation patients that selects the checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// The lowest loss.
    #[default]
    Loss,
    /// The highest area under the ROC curve; for classes.
    Auc,
    /// The highest concordance; for survival.
    CIndex,
}

/// `[task.mil]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MilOptions {
    /// The score that selects the checkpoint and drives `train.patience`: `"loss"` (default),
    /// `"auc"` or `"c_index"`.
    pub select: Select,
    /// Whether training slides are drawn with replacement such that classes (for survival, seen and
    /// censored events) come up equally often. Default false: every slide once an epoch.
    pub class_weighted: bool,
    /// Whether every feature is brought to mean 0 and variance 1 over the training instances of the
    /// fold. Default false; true for the classic sets.
    pub standardise: bool,
    /// Whether training reads the instances of a bag in another random order every time, for data
    /// whose instances have none; evaluation keeps that of the file. Default false.
    pub shuffle_instances: bool,
    /// Share of features that training sets to 0, the same ones in all instances of a bag and others
    /// every time, `[0, 1)`; what is left is scaled up by `1 / (1 - share)`. Default 0.
    pub feature_dropout: f64,
    /// Share of the label of a training bag that is spread evenly over all classes, `[0, 1)`; not for
    /// survival. Scores are of the true labels. Default 0.
    pub label_smoothing: f64,
    /// Time bins of survival, 2..=64. Default 4 (published).
    pub n_bins: usize,
    /// Resamples of patients behind each confidence interval, 100..=1000000. Default 1000.
    pub bootstrap: usize,
    /// How folds are made where the data brings none.
    pub split: SplitOptions,
}

impl Default for MilOptions {
    fn default() -> Self {
        Self {
            select: Select::Loss,
            class_weighted: false,
            standardise: false,
            shuffle_instances: false,
            feature_dropout: 0.0,
            label_smoothing: 0.0,
            n_bins: 4,
            bootstrap: 1000,
            split: SplitOptions::default(),
        }
    }
}

/// The configuration sections of the task.
pub struct MilConfig;

impl TaskConfig for MilConfig {
    const NAME: &'static str = "mil";
    type Options = MilOptions;
    type Data = DataConfig;
    type Model = BagModelConfig;

    fn validate(options: &MilOptions, data: &DataConfig, model: &BagModelConfig) -> Vec<Issue> {
        let mut issues = Vec::new();
        let split = &options.split;
        for (name, value, first, last) in [
            ("n_bins", options.n_bins, 2, 64),
            ("bootstrap", options.bootstrap, 100, 1_000_000),
            ("split.folds", split.folds, 2, 1000),
            ("split.repeats", split.repeats, 1, 1000),
        ] {
            if !(first..=last).contains(&value) {
                let expected = format!("{first}..={last}");
                issues.push(Issue::range(format!("task.mil.{name}"), &expected, value));
            }
        }
        for (name, value) in [
            ("feature_dropout", options.feature_dropout),
            ("label_smoothing", options.label_smoothing),
        ] {
            if !(0.0..1.0).contains(&value) {
                let path = format!("task.mil.{name}");
                issues.push(Issue::range(path, "at least 0 and less than 1", value));
            }
        }
        if !(0.0..=0.9).contains(&split.valid) {
            issues.push(Issue::range("task.mil.split.valid", "0 to 0.9", split.valid));
        }
        for issue in data.data_set().validate() {
            issues.push(Issue { path: format!("data.{}.{}", data.section(), issue.path), ..issue });
        }
        issues.extend(model.validate());
        issues
    }

    fn has_layers(model: &BagModelConfig) -> bool {
        matches!(model, BagModelConfig::MambaMil(_))
    }

    fn reduce(
        _options: &mut MilOptions,
        _data: &mut DataConfig,
        model: &mut BagModelConfig,
        n_layers: usize,
        _n_tokens: usize,
    ) -> Whole {
        match model {
            BagModelConfig::MambaMil(config) => Whole::keep(&mut config.n_layer, n_layers),
            _ => Whole { n_layers: 1, n_tokens: None },
        }
    }

    fn f32_only(model: &BagModelConfig) -> Option<String> {
        let mixed = matches!(model, BagModelConfig::MambaMil(_));
        (!mixed).then(|| "of the models of bags `mamba_mil` computes in bf16 as well".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(options: &str, data: &str, model: &str) -> Vec<String> {
        let issues = MilConfig::validate(
            &toml::from_str(options).unwrap(),
            &toml::from_str(data).unwrap(),
            &toml::from_str(model).unwrap(),
        );
        issues.iter().map(Issue::to_string).collect()
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(toml::from_str::<MilOptions>("").unwrap(), MilOptions::default());
        for model in ["[mean_pool]", "[max_pool]", "[abmil]", "[mamba_mil]"] {
            assert!(texts("", "[classic]\nvariant = \"musk1\"", model).is_empty());
        }
    }

    #[test]
    fn every_value_out_of_range_is_listed() {
        let options = "n_bins = 1\nbootstrap = 7\nfeature_dropout = 1.0\nlabel_smoothing = -0.1\n\
                       [split]\nfolds = 1\nrepeats = 0\nvalid = 0.95";
        let data = "[classic]\nvariant = \"musk1\"";
        assert_eq!(
            texts(
                options,
                data,
                "[mamba_mil]\nd_model = 0\nn_layer = 0\ndropout = 1.0\n\
                   image_side = 8\nmixer.sr_mamba = { rate = 0 }"
            ),
            [
                "`task.mil.n_bins`: expected 2..=64, got `1`",
                "`task.mil.bootstrap`: expected 100..=1000000, got `7`",
                "`task.mil.split.folds`: expected 2..=1000, got `1`",
                "`task.mil.split.repeats`: expected 1..=1000, got `0`",
                "`task.mil.feature_dropout`: expected at least 0 and less than 1, got `1`",
                "`task.mil.label_smoothing`: expected at least 0 and less than 1, got `-0.1`",
                "`task.mil.split.valid`: expected 0 to 0.9, got `0.95`",
                "`model.mamba_mil.d_model`: expected 1..=65536, got `0`",
                "`model.mamba_mil.n_layer`: expected 1..=1024, got `0`",
                "`model.mamba_mil.dropout`: expected at least 0 and less than 1, got `1`",
                "`model.mamba_mil.image_side`: expected 16..=1024, got `8`",
                "`model.mamba_mil.mixer.sr_mamba.rate`: expected 1 to 1048576, got `0`",
            ]
        );
        assert_eq!(
            texts("", data, "[abmil]\nd_attention = 0\nembedder = { hidden = [], dropout = -1 }"),
            [
                "`model.abmil.embedder.hidden`: expected at least one layer, got an empty array",
                "`model.abmil.embedder.dropout`: expected at least 0 and less than 1, got `-1`",
                "`model.abmil.d_attention`: expected 1..=65536, got `0`",
            ]
        );
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = toml::from_str::<BagModelConfig>("[transmil]").unwrap_err();
        assert!(error.message().contains("expected one of `mean_pool`"), "{error}");
        let error = toml::from_str::<DataConfig>("[classic]\nvariant = \"musk3\"").unwrap_err();
        assert!(error.message().contains("expected one of `musk1`, `musk2`"), "{error}");
        let error =
            toml::from_str::<BagModelConfig>("[mamba_mil]\ninit = \"official\"").unwrap_err();
        assert!(error.message().contains("expected `mamba` or `mambamil`"), "{error}");
    }
}
