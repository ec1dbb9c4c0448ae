//! Solar: power of 137 photovoltaic plants in Alabama in 2006.
//!
//! The file has no header and no dates, so there are no calendar features. Splits are 70, 10 and
//! 20 %.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{DataSet, Series, TableFormat, table::read_table};
use crate::data::KnownSet;

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "Solar",
    task: "forecasting",
    config: "solar = {}",
    file: "timeseries/solar_AL.txt",
    shape: "52560 rows x 137 variates, every 10 minutes, no dates",
    licence: "National Renewable Energy Laboratory, no explicit licence",
    origin: "https://github.com/thuml/iTransformer (its data archive)",
    sha256: None,
}];

/// `[data.solar]`; no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SolarConfig {}

impl DataSet for SolarConfig {
    fn date_column(&self) -> Option<&str> {
        None
    }

    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        read_table(&KNOWN[0], dirs, TableFormat::Headless)
    }
}
