//! Traffic: hourly occupancy of 862 road sensors of the San Francisco bay area.
//!
//! Splits are 70, 10 and 20 %.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{Borders, DataSet, Series, TableFormat, parse_table};
use crate::data::{KnownSet, read_known};

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficConfig {}

impl DataSet for TrafficConfig {
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        let set = &KNOWN[0];
        parse_table(set.name, &read_known(set, dirs)?, TableFormat::Dated("date"))
    }

    fn borders(&self, n_rows: usize, lookback_len: usize) -> Result<Borders, String> {
        Ok(Borders::ratio(n_rows, 0.7, 0.2, lookback_len))
    }
}
