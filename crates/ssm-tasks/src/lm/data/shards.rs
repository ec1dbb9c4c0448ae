//! Tokens that `ssm tokenize` wrote, one corpus or a mixture of several.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{Corpus, DataSet, Parts};
use crate::lm::{config::LmOptions, shards, stream::Stream, tokenizer::Tokenizer};

/// A corpus of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Directory that `ssm tokenize` wrote.
    pub dir: PathBuf,
    /// How often a sequence is of it, relative to the others, above 0. Default 1.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// `[data.shards]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShardsConfig {
    /// What to train on, at least one: `train = [{ dir = "tokens" }]`. All have the same vocabulary.
    pub train: Vec<Part>,
    /// Directory to validate on. Default: none, the last `valid_share` of the training tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Directory to test on. Default: none, the validation tokens are scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Share of the training tokens that validates where `valid` is absent, `(0, 0.9]`. Default 0.1.
    pub valid_share: f64,
}

impl Default for ShardsConfig {
    fn default() -> Self {
        Self { train: Vec::new(), valid: None, test: None, valid_share: 0.1 }
    }
}

impl DataSet for ShardsConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if self.train.is_empty() {
            issues.push(
                Issue::new("train", "expected at least one directory, got none").with_hint(
                    "name one that `ssm tokenize` wrote: `train = [{ dir = \"tokens\" }]`",
                ),
            );
        }
        for (i, part) in self.train.iter().enumerate() {
            if !(part.weight > 0.0 && part.weight.is_finite()) {
                let path = format!("train[{i}].weight");
                issues.push(Issue::range(path, "a number above 0", part.weight));
            }
        }
        if !(self.valid_share > 0.0 && self.valid_share <= 0.9) {
            issues.push(Issue::range("valid_share", "a number in (0, 0.9]", self.valid_share));
        }
        if self.train.len() > 1 && self.valid.is_none() {
            issues.push(Issue::new(
                "valid",
                "expected a directory, as several corpora are trained on, got none",
            ));
        }
        issues
    }

    fn load(&self, _options: &LmOptions, _dirs: &[PathBuf]) -> Result<Corpus, Error> {
        let mut known: Option<Tokenizer> = None;
        let mut hashes = BTreeMap::new();
        let mut open = |dir: &PathBuf| -> Result<Stream, Error> {
            let (tokens, tokenizer, files) = shards::open(dir)?;
            if known.as_ref().is_some_and(|known| known.vocabulary() != tokenizer.vocabulary()) {
                return Err(Error::Data {
                    path: dir.clone(),
                    message: "has another vocabulary than the directory before it".to_owned(),
                    hint: Some("tokenize all text with the same tokenizer".to_owned()),
                });
            }
            known = Some(tokenizer);
            hashes.extend(
                files.into_iter().map(|(name, hash)| (format!("{}/{name}", dir.display()), hash)),
            );
            Ok(Stream::new(Arc::new(tokens)))
        };
        let mut train = Vec::new();
        for part in &self.train {
            train.push((open(&part.dir)?, part.weight));
        }
        let test = self.test.as_ref().map(&mut open).transpose()?;
        let valid = match &self.valid {
            Some(dir) => open(dir)?,
            None => {
                let [first, last] = train[0].0.split(1.0 - self.valid_share);
                train[0].0 = first;
                last
            }
        };
        let names: Vec<String> =
            self.train.iter().map(|part| part.dir.display().to_string()).collect();
        // At least one directory was opened: `validate` refuses an empty list.
        let tokenizer = known.unwrap_or_else(|| panic!("no directory was opened"));
        Ok(Corpus {
            name: names.join(", "),
            tokenizer: Arc::new(tokenizer),
            hashes,
            parts: Parts::Text { train, valid, test },
        })
    }
}
