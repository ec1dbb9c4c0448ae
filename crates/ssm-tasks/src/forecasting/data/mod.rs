//! Data sets of forecasting: one file and one registry line a family.
//!
//! A data set reads a [`Series`] and says where its splits begin and end. It knows nothing of
//! windows, models or devices. To add one, write a file with a configuration that implements
//! [`DataSet`] and name it in the registry below.

mod borders;
mod calendar;
mod csv;
mod electricity;
mod ett;
mod exchange;
mod npz;
mod pems;
mod solar;
mod table;
mod traffic;
mod weather;

use std::path::PathBuf;

use jiff::civil::DateTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

pub(super) use self::table::list;
pub use self::{
    borders::Borders,
    calendar::{N_MARKS, date_step, marks},
    csv::{CsvConfig, Ratio},
    electricity::ElectricityConfig,
    ett::{EttConfig, EttVariant},
    exchange::ExchangeConfig,
    pems::{PemsConfig, PemsVariant},
    solar::SolarConfig,
    table::{TableFormat, parse_table},
    traffic::TrafficConfig,
    weather::WeatherConfig,
};
use crate::data::KnownSet;

/// A multivariate time series as read from a file, in its own units.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name for people: `ETTh1`, or the name of the file.
    pub name: String,
    /// The file that it came from.
    pub path: PathBuf,
    /// SHA-256 of the uncompressed file.
    pub sha256: String,
    /// Names of the variates, all different.
    pub columns: Vec<String>,
    /// One vector a variate, all of the same length, in order of time.
    pub values: Vec<Vec<f64>>,
    /// One date a row, for data that has them.
    pub dates: Option<Vec<DateTime>>,
}

impl Series {
    /// Number of time steps.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }

    /// An error about the file of this series.
    #[must_use]
    pub fn error(&self, message: impl Into<String>, hint: Option<String>) -> Error {
        Error::Data { path: self.path.clone(), message: message.into(), hint }
    }
}

/// What a data set family has to say.
pub trait DataSet {
    /// Everything wrong with the options, before any file is touched; paths are relative to the
    /// section of the family.
    fn validate(&self) -> Vec<Issue> {
        Vec::new()
    }

    /// Column of the dates, `None` for data without: then there are no calendar features.
    fn date_column(&self) -> Option<&str> {
        Some("date")
    }

    /// Reads the whole series; `dirs` are the data directories in order.
    ///
    /// # Errors
    /// A missing or malformed file, with the place and what was expected.
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error>;

    /// Rows of each split, windows of `lookback_len` in mind; 70, 10 and 20 % where a family has no
    /// split of its own, as in the loaders of the benchmarks.
    ///
    /// # Errors
    /// A sentence that says how many rows are needed.
    fn borders(&self, n_rows: usize, lookback_len: usize) -> Result<Borders, String> {
        Ok(Borders::ratio(n_rows, 0.7, 0.2, lookback_len))
    }
}

/// Declares the families: their section in `[data]`, their configuration, the sets they know.
macro_rules! data_sets {
    ($($(#[$doc:meta])* $section:literal => $variant:ident($config:ident), $known:expr;)*) => {
        /// The `[data]` section: which series, and its options.
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
    /// Electricity transformer temperature, four series. Zhou et al. 2021, arXiv:2012.07436.
    "ett" => Ett(EttConfig), &ett::KNOWN;
    /// Daily exchange rates of eight countries. Lai et al. 2018, arXiv:1703.07015.
    "exchange" => Exchange(ExchangeConfig), &exchange::KNOWN;
    /// 21 weather indicators of Jena, every 10 minutes. Wu et al. 2021, arXiv:2106.13008.
    "weather" => Weather(WeatherConfig), &weather::KNOWN;
    /// Hourly electricity consumption of 321 clients. Wu et al. 2021, arXiv:2106.13008.
    "electricity" => Electricity(ElectricityConfig), &electricity::KNOWN;
    /// Hourly occupancy of 862 road sensors. Wu et al. 2021, arXiv:2106.13008.
    "traffic" => Traffic(TrafficConfig), &traffic::KNOWN;
    /// Solar power of 137 plants, every 10 minutes. Lai et al. 2018, arXiv:1703.07015.
    "solar" => Solar(SolarConfig), &solar::KNOWN;
    /// Traffic flow of four districts, every 5 minutes. Liu et al. 2022, arXiv:2106.09305.
    "pems" => Pems(PemsConfig), &pems::KNOWN;
    /// Any CSV file with a header.
    "csv" => Csv(CsvConfig), &csv::KNOWN;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_selects_its_family() {
        let config: DataConfig = toml::from_str("[ett]\nvariant = \"m2\"").unwrap();
        assert_eq!(config, DataConfig::Ett(EttConfig { variant: EttVariant::M2 }));
        assert_eq!(config.section(), "ett");
        let error = toml::from_str::<DataConfig>("[etth1]").unwrap_err();
        assert!(error.message().contains("unknown variant `etth1`, expected one of `ett`"));
        let error = toml::from_str::<DataConfig>("[exchange]\npath = \"x\"").unwrap_err();
        assert!(error.message().contains("unknown field `path`"), "{error}");
    }

    #[test]
    fn known_sets_differ_in_name_and_file_and_select_a_family() {
        let sets = known_sets();
        assert_eq!(sets.len(), 14);
        for (i, set) in sets.iter().enumerate() {
            assert!(sets[..i].iter().all(|other| other.name != set.name && other.file != set.file));
            toml::from_str::<DataConfig>(set.config)
                .unwrap_or_else(|e| panic!("{}: {e}", set.name));
            assert!(set.origin.starts_with("https://"));
            assert!(set.sha256.is_none_or(|hash| hash.len() == 64));
        }
    }
}
