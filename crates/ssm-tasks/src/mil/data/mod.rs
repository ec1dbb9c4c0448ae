//! Data sets of bags: one file and one registry line a family.
//!
//! A data set reads a [`Cohort`]. It knows nothing of folds that it does not bring itself, of models
//! or of devices. To add one, write a file with a configuration that implements [`DataSet`] and name
//! it in the registry below.

mod classic;
mod mnist_bags;
mod neighbours;
mod simulated_survival;
mod slides;
mod split_file;

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

pub use self::{
    classic::{ClassicConfig, ClassicVariant},
    mnist_bags::MnistBagsConfig,
    neighbours::NeighboursConfig,
    simulated_survival::SimulatedSurvivalConfig,
    slides::SlidesConfig,
};
use super::cohort::{Cohort, Part};
use crate::data::KnownSet;

/// What a family of data sets has to say.
pub trait DataSet {
    /// Everything wrong with the options, before any file is touched; paths are relative to the
    /// section of the family.
    fn validate(&self) -> Vec<Issue> {
        Vec::new()
    }

    /// Name of the set, where the family has several of its own.
    fn set_name(&self) -> Option<&'static str> {
        None
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
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// A table of slides beside a directory of feature files.
    "slides" => Slides(SlidesConfig), &slides::KNOWN;
    /// Bags of handwritten digits, positive with a nine. Ilse et al. 2018, arXiv:1802.04712.
    "mnist_bags" => MnistBags(MnistBagsConfig), &mnist_bags::KNOWN;
    /// Made-up slides: is a marker directly below another one?
    "neighbours" => Neighbours(NeighboursConfig), &neighbours::KNOWN;
    /// Made-up patients whose risk depends on their slide.
    "simulated_survival" => SimulatedSurvival(SimulatedSurvivalConfig), &simulated_survival::KNOWN;
}

/// Issues of numbers that have to be in a range: name, value, first and last valid one.
fn range_issues(values: &[(&str, usize, usize, usize)]) -> Vec<Issue> {
    let wrong = values.iter().filter(|(_, value, first, last)| !(first..=last).contains(&value));
    wrong
        .map(|(name, value, first, last)| Issue::range(*name, &format!("{first}..={last}"), value))
        .collect()
}

/// A split of slides that stand in this order.
fn parts(n_train: usize, n_valid: usize, n_test: usize) -> Vec<Part> {
    [(Part::Train, n_train), (Part::Valid, n_valid), (Part::Test, n_test)]
        .into_iter()
        .flat_map(|(part, n)| std::iter::repeat_n(part, n))
        .collect()
}
