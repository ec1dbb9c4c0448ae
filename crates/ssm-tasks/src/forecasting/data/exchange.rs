//! Exchange: rates of eight currencies to the US dollar, 1990 to 2010.
//!
//! The dates of the file are made up: daily without gaps. Splits are 70, 10 and 20 %.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{DataSet, Series, TableFormat, table::read_table};
use crate::data::KnownSet;

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "Exchange",
    task: "forecasting",
    config: "exchange = {}",
    file: "timeseries/exchange_rate.csv",
    shape: "7588 rows x 8 variates, daily",
    licence: "public exchange rates, no explicit licence",
    origin: "https://github.com/thuml/Autoformer (its data archive)",
    sha256: Some("d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97"),
}];

/// `[data.exchange]`; no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeConfig {}

impl DataSet for ExchangeConfig {
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        read_table(&KNOWN[0], dirs, TableFormat::Dated("date"))
    }
}
