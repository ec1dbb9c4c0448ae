//! The sections `[task.forecasting]`, `[data]` and `[model]`, and what may be wrong with them.

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{
    config::Issue,
    task::{TaskConfig, Whole},
};

use super::{
    baseline::BaselineKind,
    data::DataConfig,
    model::{ForecasterConfig, N_MAX, N_PARAMS_MAX},
};

/// Which variates are read and which are predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Features {
    /// All variates from all variates.
    #[default]
    M,
    /// The target from itself.
    S,
    /// The target from all variates.
    #[serde(rename = "MS")]
    Ms,
}

/// `[task.forecasting]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForecastingOptions {
    /// Rows that a forecast looks back on, 1..=65536. Default 96, as in iTransformer and S-Mamba.
    pub lookback_len: usize,
    /// Rows to predict, 1..=65536. Default 96.
    pub pred_len: usize,
    /// `"M"`: all variates from all (default); `"S"`: the target from itself; `"MS"`: the target
    /// from all.
    pub features: Features,
    /// Column to predict when `features` is `"S"` or `"MS"`, and not to be set otherwise. Default
    /// `"OT"`, the name in the benchmark files.
    pub target: String,
    /// Whether calendar features of the look-back rows are given to the model; needs dates and a
    /// model that reads them. Default true, as in S-Mamba for every set with dates.
    pub calendar: bool,
    /// Whether the last batch of a training epoch is left out when it is not full. Default true,
    /// as in S-Mamba's loader; the order changes every epoch, so no window is left out for good.
    pub train_drop_last: bool,
    /// Forecasters that are scored on the same test windows beside the model: `"last_value"`,
    /// `"dlinear"` (trained when the run concludes). Default `["last_value"]`.
    pub baselines: Vec<BaselineKind>,
    /// Quirks of published code that can be switched on to compare with it.
    pub compat: CompatOptions,
}

/// `[task.forecasting.compat]`: quirks of published code, all off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CompatOptions {
    /// Score validation as S-Mamba does: windows in random order, in batches of the training batch
    /// size, the last batch left out when it is not full. Fewer windows count, which ones depends
    /// on the seed. S-Mamba's loader draws a new order for every evaluation, so that other windows
    /// drop out each time; here the same ones do, so that the evaluations of a run can be compared.
    /// Default false: every window counts.
    pub smamba_validation: bool,
}

impl Default for ForecastingOptions {
    fn default() -> Self {
        Self {
            lookback_len: 96,
            pred_len: 96,
            features: Features::M,
            target: "OT".to_owned(),
            calendar: true,
            train_drop_last: true,
            baselines: vec![BaselineKind::LastValue],
            compat: CompatOptions::default(),
        }
    }
}

/// The configuration sections of the forecasting task.
pub struct ForecastingConfig;

impl TaskConfig for ForecastingConfig {
    const NAME: &'static str = "forecasting";
    type Options = ForecastingOptions;
    type Data = DataConfig;
    type Model = ForecasterConfig;

    fn validate(
        options: &ForecastingOptions,
        data: &DataConfig,
        model: &ForecasterConfig,
    ) -> Vec<Issue> {
        let mut issues = Vec::new();
        for (name, value) in
            [("lookback_len", options.lookback_len), ("pred_len", options.pred_len)]
        {
            if !(1..=N_MAX).contains(&value) {
                let path = format!("task.forecasting.{name}");
                issues.push(Issue::range(path, &format!("1..={N_MAX}"), value));
            }
        }
        if options.features != Features::M && options.target.is_empty() {
            issues.push(Issue::new(
                "task.forecasting.target",
                "expected the name of the column to predict, got an empty string",
            ));
        }
        if options.features == Features::M && options.target != Self::Options::default().target {
            issues.push(
                Issue::new(
                    "task.forecasting.target",
                    format!(
                        "expected no target with `features = \"M\"`, which predicts every column, \
                         got `{}`",
                        options.target
                    ),
                )
                .with_hint("set `features` to `\"S\"` or `\"MS\"`, or leave `target` out"),
            );
        }
        if options.calendar && data.data_set().date_column().is_none() {
            issues.push(
                Issue::new(
                    "task.forecasting.calendar",
                    format!("expected `false`, got `true`: `data.{}` has no dates", data.section()),
                )
                .with_hint("set `calendar = false`"),
            );
        } else if options.calendar && !model.reads_calendar() {
            issues.push(
                Issue::new(
                    "task.forecasting.calendar",
                    format!(
                        "expected `false`, got `true`: `model.{}` reads no calendar features",
                        model.section()
                    ),
                )
                .with_hint("set `calendar = false`"),
            );
        }
        for (index, baseline) in options.baselines.iter().enumerate() {
            if options.baselines[..index].contains(baseline) {
                issues.push(Issue::new(
                    "task.forecasting.baselines",
                    format!("expected every baseline once, got `{}` twice", baseline.name()),
                ));
            }
        }
        for issue in data.data_set().validate() {
            issues.push(Issue { path: format!("data.{}.{}", data.section(), issue.path), ..issue });
        }
        issues.extend(model.validate());
        // Sizes in their ranges cannot overflow the product.
        if issues.is_empty() {
            let n_params = model.n_params(options.lookback_len, options.pred_len);
            if n_params > N_PARAMS_MAX {
                issues.push(Issue::new(
                    format!("model.{}", model.section()),
                    format!("expected at most {N_PARAMS_MAX} parameters, got {n_params}"),
                ));
            }
        }
        issues
    }

    fn reduce(
        _options: &mut ForecastingOptions,
        _data: &mut DataConfig,
        model: &mut ForecasterConfig,
        n_layers: usize,
        _n_tokens: usize,
    ) -> Whole {
        match model {
            ForecasterConfig::SMamba(config) => Whole::keep(&mut config.n_layer, n_layers),
            _ => Whole { n_layers: 1, n_tokens: None },
        }
    }

    fn f32_only(model: &ForecasterConfig) -> Option<String> {
        let mixed = matches!(model, ForecasterConfig::SMamba(_));
        (!mixed).then(|| "of the forecasters `s_mamba` computes in bf16 as well".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(options: &str, data: &str, model: &str) -> Vec<String> {
        let issues = ForecastingConfig::validate(
            &toml::from_str(options).unwrap(),
            &toml::from_str(data).unwrap(),
            &toml::from_str(model).unwrap(),
        );
        issues.iter().map(Issue::to_string).collect()
    }

    #[test]
    fn the_defaults_are_the_benchmark_and_valid() {
        assert_eq!(
            toml::from_str::<ForecastingOptions>("").unwrap(),
            ForecastingOptions::default()
        );
        let unmarked = "calendar = false";
        assert!(texts(unmarked, "[ett]\nvariant = \"h1\"", "[dlinear]").is_empty());
        assert!(texts("", "[ett]\nvariant = \"h1\"", "[s_mamba]").is_empty());
    }

    #[test]
    fn every_value_out_of_range_is_listed() {
        let options = "lookback_len = 0\npred_len = 65537\nfeatures = \"MS\"\ntarget = \"\"\n\
                       baselines = [\"dlinear\", \"last_value\", \"dlinear\"]";
        assert_eq!(
            texts(options, "[solar]", "[dlinear]\nkernel_len = 4"),
            [
                "`task.forecasting.lookback_len`: expected 1..=65536, got `0`",
                "`task.forecasting.pred_len`: expected 1..=65536, got `65537`",
                "`task.forecasting.target`: expected the name of the column to predict, got an \
                 empty string",
                "`task.forecasting.calendar`: expected `false`, got `true`: `data.solar` has no \
                 dates",
                "`task.forecasting.baselines`: expected every baseline once, got `dlinear` twice",
                "`model.dlinear.kernel_len`: expected an odd number, 1..=65535, got `4`",
            ]
        );
        assert_eq!(
            texts(
                "",
                "[exchange]",
                "[s_mamba]\nd_model = 0\nd_ff = 65537\nn_layer = 1025\ndropout = 1.0\n\
                 mixer.mamba = { d_state = 0 }"
            ),
            [
                "`model.s_mamba.d_model`: expected 1..=65536, got `0`",
                "`model.s_mamba.d_ff`: expected 1..=65536, got `65537`",
                "`model.s_mamba.n_layer`: expected 1..=1024, got `1025`",
                "`model.s_mamba.dropout`: expected at least 0 and less than 1, got `1`",
                "`model.s_mamba.mixer.mamba.d_state`: expected 1 to 4096, got `0`",
            ]
        );
        assert_eq!(
            texts("calendar = false", "[csv]\npath = \"\"\ndate_column = \"\"", "[dlinear]"),
            ["`data.csv.path`: expected the path of a CSV file, got an empty string"]
        );
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        assert_eq!(
            texts("target = \"HUFL\"", "[ett]\nvariant = \"h1\"", "[dlinear]"),
            [
                "`task.forecasting.target`: expected no target with `features = \"M\"`, which \
                 predicts every column, got `HUFL`",
                "`task.forecasting.calendar`: expected `false`, got `true`: `model.dlinear` reads \
                 no calendar features",
            ]
        );
    }

    #[test]
    fn sizes_that_multiply_beyond_any_memory_are_refused() {
        let model = "[s_mamba]\nd_model = 65536\nn_layer = 1024\nmixer.mamba.expand = 64";
        let issues = texts("", "[exchange]", model);
        let expected = "`model.s_mamba`: expected at most 10000000000 parameters, got ";
        assert!(issues.len() == 1 && issues[0].starts_with(expected), "{issues:?}");
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = toml::from_str::<ForecastingOptions>("features = \"SM\"").unwrap_err();
        assert!(error.message().contains("expected one of `M`, `S`, `MS`"), "{error}");
        let error = toml::from_str::<ForecastingOptions>("baselines = [\"arima\"]").unwrap_err();
        assert!(error.message().contains("expected `last_value` or `dlinear`"), "{error}");
        let error = toml::from_str::<ForecasterConfig>("[last_value]").unwrap_err();
        assert!(error.message().contains("expected `s_mamba` or `dlinear`"), "{error}");
    }

    #[test]
    fn options_survive_a_round_trip() {
        let text = "features = \"MS\"\nbaselines = []\n[compat]\nsmamba_validation = true";
        let options: ForecastingOptions = toml::from_str(text).unwrap();
        let again = toml::from_str(&toml::to_string(&options).unwrap()).unwrap();
        assert_eq!(options, again);
    }
}
