//! Weather: 21 indicators of the station in Jena in 2020.
//!
//! The file holds 81 sentinels of -9999, which the benchmark leaves in. Splits are 70, 10 and 20 %.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{DataSet, Series, TableFormat, table::read_table};
use crate::data::KnownSet;

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "Weather",
    task: "forecasting",
    config: "weather = {}",
    file: "timeseries/weather.csv",
    shape: "52696 rows x 21 variates, every 10 minutes",
    licence: "Max Planck Institute for Biogeochemistry, no explicit licence",
    origin: "https://github.com/thuml/Autoformer (its data archive)",
    sha256: None,
}];

/// `[data.weather]`; no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeatherConfig {}

impl DataSet for WeatherConfig {
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        read_table(&KNOWN[0], dirs, TableFormat::Dated("date"))
    }
}
