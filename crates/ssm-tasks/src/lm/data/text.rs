//! Text files of the user, tokenized when they are read.
//!
//! Each file is a document. For more text than fits into memory there is `ssm tokenize` and
//! `[data.shards]`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{Corpus, DataSet, Parts};
use crate::{
    data::{DataFile, KnownSet, read_named},
    lm::{
        config::LmOptions,
        stream::{InMemory, Stream},
        tokenizer::{Tokenizer, Vocabulary},
    },
};

const fn known(
    name: &'static str,
    file: &'static str,
    shape: &'static str,
    [licence, origin, sha256]: [&'static str; 3],
) -> KnownSet {
    let (task, config) = ("lm", "text = { train = [FILE] }");
    KnownSet { name, task, config, file, shape, licence, origin, sha256: Some(sha256) }
}

pub(super) const KNOWN: [KnownSet; 4] = [
    known(
        "War and Peace",
        "lm/warpeace_input.txt",
        "3266296 bytes",
        [
            "public domain",
            "https://github.com/ZihanDai2005/PSTAT_160B_Final_Project (data)",
            "cea8ccb6e581165e7b0988ab7e28cccc9447af1e0b1278ac8baeb8f359d9ce62",
        ],
    ),
    known(
        "TinyStories (opening)",
        "lm/tiny_stories_first.txt",
        "944426 bytes",
        [
            "CDLA-Sharing-1.0",
            "https://github.com/s-ajaykumar/smallGPT (data)",
            "c56cfd24fb1c542b141a396184b822a4db3672abdb4c49c6aa843171c5e822a5",
        ],
    ),
    known(
        "WikiText-2 (valid)",
        "lm/wikitext-2_valid.txt",
        "217646 words",
        [
            "CC BY-SA 3.0",
            "https://github.com/pytorch/examples (word_language_model/data/wikitext-2/valid.txt)",
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        ],
    ),
    known(
        "WikiText-2 (test)",
        "lm/wikitext-2_test.txt",
        "245569 words",
        [
            "CC BY-SA 3.0",
            "https://github.com/pytorch/examples (word_language_model/data/wikitext-2/test.txt)",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ],
    ),
];

/// `[data.text]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// Files to train on, at least one.
    pub train: Vec<String>,
    /// Files to validate on. Default: none, the last `valid_share` of the training text.
    pub valid: Vec<String>,
    /// Files to test on. Default: none, the validation text is scored.
    pub test: Vec<String>,
    /// Share of the training text that validates where `valid` names no file, `(0, 0.9]`. Default 0.1.
    pub valid_share: f64,
    /// `"bytes"` (default), `"chars"` for the characters of the training files, or the path of a
    /// `tokenizer.json`.
    pub tokenizer: String,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            valid: Vec::new(),
            test: Vec::new(),
            valid_share: 0.1,
            tokenizer: "bytes".to_owned(),
        }
    }
}

impl DataSet for TextConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if self.train.is_empty() {
            issues.push(
                Issue::new("train", "expected at least one file, got none")
                    .with_hint("name text files, as `train = [\"mine.txt\"]`"),
            );
        }
        if !(self.valid_share > 0.0 && self.valid_share <= 0.9) {
            issues.push(Issue::range("valid_share", "a number in (0, 0.9]", self.valid_share));
        }
        issues
    }

    fn load(&self, _options: &LmOptions, dirs: &[PathBuf]) -> Result<Corpus, Error> {
        let read = |names: &[String]| -> Result<Vec<DataFile>, Error> {
            names.iter().map(|name| read_named(name, dirs)).collect()
        };
        let (train, valid, test) = (read(&self.train)?, read(&self.valid)?, read(&self.test)?);
        let mut hashes: BTreeMap<String, String> = [&train, &valid, &test]
            .into_iter()
            .flatten()
            .map(|file| (file.name(), file.sha256.clone()))
            .collect();
        let tokenizer = match self.tokenizer.as_str() {
            "bytes" => Tokenizer::new(Vocabulary::Bytes),
            "chars" => {
                let texts: Vec<_> =
                    train.iter().map(|file| String::from_utf8_lossy(&file.bytes)).collect();
                Tokenizer::new(Tokenizer::chars_of(&texts.concat()))
            }
            path => {
                let file = read_named(path, dirs)?;
                hashes.insert(file.name(), file.sha256.clone());
                let text = String::from_utf8_lossy(&file.bytes).into_owned();
                Tokenizer::new(Vocabulary::Json(text))
            }
        };
        let tokenizer = tokenizer.map_err(|message| Error::Data {
            path: PathBuf::from(&self.tokenizer),
            message,
            hint: Some("`tokenizer` is `bytes`, `chars` or the path of a `tokenizer.json`".into()),
        })?;
        let stream = |files: &[DataFile]| -> Result<Stream, Error> {
            let mut all = InMemory::default();
            for file in files {
                all.starts.push(all.tokens.len() as u64);
                let tokens =
                    tokenizer.encode(&file.bytes).map_err(|reason| file.error(reason, None))?;
                all.tokens.extend(tokens);
            }
            Ok(Stream::new(Arc::new(all)))
        };
        let (train, valid) = if valid.is_empty() {
            let [train, valid] = stream(&train)?.split(1.0 - self.valid_share);
            (train, valid)
        } else {
            (stream(&train)?, stream(&valid)?)
        };
        let test = if test.is_empty() { None } else { Some(stream(&test)?) };
        Ok(Corpus {
            name: self.train.join(", "),
            tokenizer: Arc::new(tokenizer),
            hashes,
            parts: Parts::Text { train: vec![(train, 1.0)], valid, test },
        })
    }
}
