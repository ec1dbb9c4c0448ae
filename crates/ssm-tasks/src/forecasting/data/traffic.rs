//! Traffic: hourly occupancy of 862 road sensors of the San Francisco bay area.
//!
//! Splits are 70, 10 and 20 %.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{DataSet, Series, TableFormat, table::read_table};
use crate::data::KnownSet;

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "Traffic",
    task: "forecasting",
    config: "traffic = {}",
    file: "timeseries/traffic.csv",
    shape: "17544 rows x 862 variates, hourly",
    licence: "California Department of Transportation (PeMS), no explicit licence",
    origin: "https://github.com/thuml/Autoformer (its data archive)",
    sha256: None,
}];

/// `[data.traffic]`; no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrafficConfig {}

impl DataSet for TrafficConfig {
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        read_table(&KNOWN[0], dirs, TableFormat::Dated("date"))
    }
}
