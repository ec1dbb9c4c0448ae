//! A task small enough to see, with every shape of section that real tasks have.

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{
    config::{Config, Issue},
    error::Error,
    task::TaskConfig,
};

pub(crate) struct Toy;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    pub(crate) width: usize,
    pub(crate) features: Features,
    pub(crate) rates: [f64; 2],
}

impl Default for Options {
    fn default() -> Self {
        Self { width: 8, features: Features::M, rates: [0.1, 0.2] }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Features {
    M,
    S,
    MS,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Data {
    Csv {
        path: String,
    },
    Ett {
        #[serde(default)]
        variant: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Model {
    Stack(Stack),
    Linear {},
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stack {
    pub(crate) n_layer: u32,
    pub(crate) mixer: Mixer,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Mixer {
    Scan(Scan),
    Mean {},
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Scan {
    pub(crate) d_state: usize,
    pub(crate) d_conv: usize,
    pub(crate) expand: usize,
}

impl Default for Scan {
    fn default() -> Self {
        Self { d_state: 16, d_conv: 4, expand: 2 }
    }
}

impl TaskConfig for Toy {
    const NAME: &'static str = "toy";
    type Options = Options;
    type Data = Data;
    type Model = Model;

    fn validate(options: &Options, _: &Data, model: &Model) -> Vec<Issue> {
        let mut issues = Vec::new();
        if options.width == 0 {
            issues.push(
                Issue::range("task.toy.width", "at least 1", options.width)
                    .with_hint("a width of 1 is the smallest"),
            );
        }
        match model {
            Model::Stack(Stack { mixer: Mixer::Scan(scan), .. }) if scan.d_conv > 4 => {
                let path = "model.stack.mixer.scan.d_conv";
                issues.push(Issue::range(path, "1 to 4", scan.d_conv));
            }
            Model::Stack(Stack { mixer: Mixer::Mean {}, n_layer: 2 }) if options.width == 8 => {
                let message = "`mean` needs a width other than 8";
                issues.push(Issue::new("task.toy.width", message));
            }
            _ => {}
        }
        issues
    }
}

pub(crate) const FILE: &str = r#"# A run.
[run]
seed = 7

[task.toy]
width = 4

[data.csv]
path = "series.csv"

[model.stack]
n_layer = 2
[model.stack.mixer.scan]
d_state = 2

[optim.adam]
lr = 7e-5

[schedule.cosine]
warmup_steps = 10

[train]
epochs = 3
batch_size = 16
"#;

/// The file with a part of it replaced.
pub(crate) fn edited(from: &str, to: &str) -> String {
    assert_eq!(FILE.matches(from).count(), 1, "`{from}` must be in the file once");
    FILE.replace(from, to)
}

pub(crate) fn parse(text: &str, overrides: &[&str]) -> Result<Config<Toy>, Error> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Config::parse(text, "configs/x.toml", &overrides)
}

pub(crate) fn with(overrides: &[&str]) -> Config<Toy> {
    parse(FILE, overrides).unwrap_or_else(|error| panic!("{}", error.report()))
}

#[track_caller]
pub(crate) fn rejects(text: &str, overrides: &[&str], expected: &str) {
    let error = parse(text, overrides).expect_err("the configuration has a mistake");
    assert_eq!(error.exit_code(), 2);
    assert_report(&error, expected);
}

#[track_caller]
pub(crate) fn assert_report(error: &Error, expected: &str) {
    let got = error.report();
    assert!(got == expected.trim(), "got\n{got}\n\nexpected\n{}", expected.trim());
}
