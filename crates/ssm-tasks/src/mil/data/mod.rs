//! Data sets of bags: one file and one registry line a family.
//!
//! A data set reads a [`Cohort`]. It knows nothing of folds that it does not bring itself, of models
//! or of devices. To add one, write a file with a configuration that implements [`DataSet`] and name
//! it in the registry below.

mod classic;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

pub use self::classic::{ClassicConfig, ClassicVariant};
use super::cohort::Cohort;
use crate::data::KnownSet;

/// What a family of data sets has to say.
pub trait DataSet {
    /// Everything wrong with the options, before any file is touched; paths are relative to the
    /// section of the family.
    fn validate(&self) -> Vec<Issue> {
        Vec::new()
    }

    /// Splits that the data brings; 0 if folds are to be made.
    fn n_given_splits(&self) -> usize {
        0
    }

    /// Reads slides and targets, and the instances if they fit into memory; `dirs` are the data
    /// directories in order.
    ///
    /// # Errors
    /// A missing or malformed file, with the place and what was expected.
    fn load(&self, dirs: &[PathBuf]) -> Result<Cohort, Error>;
}

/// Declares the families: their section in `[data]`, their configuration, the sets they know.
macro_rules! data_sets {
    ($($(#[$doc:meta])* $section:literal => $variant:ident($config:ident), $known:expr;)*) => {
        /// The `[data]` section: which data set, and its options.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum DataConfig {
            $($(#[$doc])* #[serde(rename = $section)] $variant($config),)*
        }

        impl DataConfig {
            /// Key of the chosen family below `[data]`.
            #[must_use]
            pub fn section(&self) -> &'static str {
                match self { $(Self::$variant(_) => $section,)* }
            }

            /// The chosen family.
            #[must_use]
            pub fn data_set(&self) -> &dyn DataSet {
                match self { $(Self::$variant(config) => config,)* }
            }
        }

        /// Every published set that one of the families reads.
        #[must_use]
        pub fn known_sets() -> Vec<KnownSet> {
            let mut sets: Vec<KnownSet> = Vec::new();
            $(sets.extend_from_slice($known);)*
            sets
        }
    };
}

data_sets! {
    /// Classic sets: MUSK, ELEPHANT, FOX, TIGER, UCSB breast cancer.
    "classic" => Classic(ClassicConfig), &classic::KNOWN;
}
