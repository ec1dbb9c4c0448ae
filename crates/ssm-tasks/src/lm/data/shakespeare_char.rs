//! Tiny Shakespeare by characters: 1.1 million characters of plays, 65 different ones.
//!
//! The first 90 % train, the rest validates, as in nanoGPT; there is no test part, so the validation
//! part is scored.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{Corpus, DataSet, Parts};
use crate::{
    data::{KnownSet, read_known},
    lm::{
        config::LmOptions,
        stream::{InMemory, Stream},
        tokenizer::Tokenizer,
    },
};

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "tinyshakespeare",
    task: "lm",
    config: "shakespeare_char = {}",
    file: "lm/tinyshakespeare_input.txt",
    shape: "1115394 characters",
    licence: "public-domain text; the repository states no licence",
    origin: "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)",
    sha256: Some("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
}];

/// `[data.shakespeare_char]`; no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShakespeareCharConfig {}

impl DataSet for ShakespeareCharConfig {
    fn load(&self, _options: &LmOptions, dirs: &[PathBuf]) -> Result<Corpus, Error> {
        let file = read_known(&KNOWN[0], dirs)?;
        let refuse = |reason: String| file.error(reason, None);
        let text = std::str::from_utf8(&file.bytes).map_err(|reason| refuse(reason.to_string()))?;
        let tokenizer = Tokenizer::new(Tokenizer::chars_of(text)).map_err(refuse)?;
        let tokens = tokenizer.encode(&file.bytes).map_err(refuse)?;
        let stream = Stream::new(Arc::new(InMemory { tokens, starts: vec![0] }));
        let [train, valid] = stream.split(0.9);
        Ok(Corpus {
            name: "tinyshakespeare".to_owned(),
            tokenizer: Arc::new(tokenizer),
            hashes: BTreeMap::from([(file.name(), file.sha256.clone())]),
            parts: Parts::Text { train: vec![(train, 1.0)], valid, test: None },
        })
    }
}
