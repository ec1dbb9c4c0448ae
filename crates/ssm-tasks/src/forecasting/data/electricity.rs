//! Electricity (ECL): hourly consumption of 321 clients.
//!
//! Splits are 70, 10 and 20 %.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{DataSet, Series, TableFormat, table::read_table};
use crate::data::KnownSet;

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "Electricity",
    task: "forecasting",
    config: "electricity = {}",
    file: "timeseries/electricity.csv",
    shape: "26304 rows x 321 variates, hourly",
    licence: "CC BY 4.0 (UCI ElectricityLoadDiagrams20112014)",
    origin: "https://github.com/thuml/Autoformer (its data archive)",
    sha256: None,
}];

/// `[data.electricity]`; no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ElectricityConfig {}

impl DataSet for ElectricityConfig {
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        read_table(&KNOWN[0], dirs, TableFormat::Dated("date"))
    }
}
