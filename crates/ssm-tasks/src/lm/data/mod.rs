//! Corpora and made-up tasks: one file and one registry line each.
//!
//! A data set loads a [`Corpus`]: tokens in parts, or a rule that makes sequences up. To add one, write a
//! file with a configuration that implements [`DataSet`] and name it in the registry below.

mod copying;
mod induction_heads;
mod mqar;
mod passkey;
mod selective_copying;
mod shakespeare_char;
mod shards;
mod text;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

pub use self::{
    copying::CopyingConfig, induction_heads::InductionHeadsConfig, mqar::MqarConfig,
    passkey::PasskeyConfig, selective_copying::SelectiveCopyingConfig,
    shakespeare_char::ShakespeareCharConfig, shards::ShardsConfig, text::TextConfig,
};
use super::{config::LmOptions, made_up::MadeUp, stream::Stream, tokenizer::Tokenizer};
use crate::data::KnownSet;

/// What a data set gives.
pub struct Corpus {
    /// Name in tables.
    pub name: String,
    /// What tokens are.
    pub tokenizer: Arc<Tokenizer>,
    /// SHA-256 of every file that was read, by its name.
    pub hashes: BTreeMap<String, String>,
    /// Where sequences come from.
    pub parts: Parts,
}

/// Where sequences come from.
pub enum Parts {
    /// Rows of tokens.
    Text {
        /// What is trained on, each with its weight in the mixture.
        train: Vec<(Stream, f64)>,
        /// What selects the checkpoint.
        valid: Stream,
        /// What the reported score is of; the validation part where there is none.
        test: Option<Stream>,
    },
    /// A rule that makes sequences up.
    MadeUp(Arc<dyn MadeUp>),
}

impl Corpus {
    /// The corpus of a made-up task.
    ///
    /// # Errors
    /// [`Error::Usage`] for a vocabulary that is empty.
    pub fn made_up(name: &str, task: impl MadeUp + 'static) -> Result<Self, Error> {
        let tokenizer = Tokenizer::new(task.vocabulary())
            .map_err(|message| Error::Usage { message, hint: None })?;
        Ok(Self {
            name: name.to_owned(),
            tokenizer: Arc::new(tokenizer),
            hashes: BTreeMap::new(),
            parts: Parts::MadeUp(Arc::new(task)),
        })
    }
}

/// What a data set has to say.
pub trait DataSet {
    /// Everything wrong with the options, before any file is touched; paths are relative to the
    /// section of the data set.
    fn validate(&self) -> Vec<Issue> {
        Vec::new()
    }

    /// Reads the data; `dirs` are the data directories in order.
    ///
    /// # Errors
    /// A missing or malformed file, with the place and what was expected.
    fn load(&self, options: &LmOptions, dirs: &[PathBuf]) -> Result<Corpus, Error>;
}

/// Declares the data sets: their section in `[data]`, their configuration, the sets they know.
macro_rules! data_sets {
    ($($(#[$doc:meta])* $section:literal => $variant:ident($config:ident), $known:expr;)*) => {
        /// The `[data]` section: which data set, and its options.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum DataConfig {
            $($(#[$doc])* #[serde(rename = $section)] $variant($config),)*
        }

        impl DataConfig {
            /// Key of the chosen data set below `[data]`.
            #[must_use]
            pub fn section(&self) -> &'static str {
                match self { $(Self::$variant(_) => $section,)* }
            }

            /// The chosen data set.
            #[must_use]
            pub fn data_set(&self) -> &dyn DataSet {
                match self { $(Self::$variant(config) => config,)* }
            }

            /// One default configuration of every data set, in registry order.
            #[must_use]
            pub fn all() -> Vec<Self> {
                vec![$(Self::$variant($config::default()),)*]
            }
        }

        /// Every published set that one of the data sets reads.
        #[must_use]
        pub fn known_sets() -> Vec<KnownSet> {
            let mut sets: Vec<KnownSet> = Vec::new();
            $(sets.extend_from_slice($known);)*
            sets
        }
    };
}

data_sets! {
    /// Plays of Shakespeare by characters.
    "shakespeare_char" => ShakespeareChar(ShakespeareCharConfig), &shakespeare_char::KNOWN;
    /// Text files.
    "text" => Text(TextConfig), &text::KNOWN;
    /// Tokens that `ssm tokenize` wrote.
    "shards" => Shards(ShardsConfig), &[];
    /// Tokens among noise. Gu & Dao 2023, arXiv:2312.00752.
    "selective_copying" => SelectiveCopying(SelectiveCopyingConfig), &[];
    /// What followed the special token. Gu & Dao 2023, arXiv:2312.00752.
    "induction_heads" => InductionHeads(InductionHeadsConfig), &[];
    /// A string once more. Ren et al. 2024, arXiv:2410.03810.
    "copying" => Copying(CopyingConfig), &[];
    /// Many keys and their values. Arora et al. 2023, arXiv:2312.04927.
    "mqar" => Mqar(MqarConfig), &[];
    /// A number in a long text. Mohtashami & Jaggi 2023, arXiv:2305.16300.
    "passkey" => Passkey(PasskeyConfig), &[];
}
