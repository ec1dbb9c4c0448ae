//! ETT: load and oil temperature of two transformers in China, hourly and every 15 minutes.
//!
//! Splits are 12, 4 and 4 months of 30 days; the rows after them are not used.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::{Borders, DataSet, Series, TableFormat, table::read_table};
use crate::data::KnownSet;

const ORIGIN: &str = "https://github.com/zhouhaoyi/ETDataset (folder ETT-small)";
const LICENCE: &str = "CC BY-ND 4.0: pass on unmodified, with attribution";
const HOURLY: &str = "17420 rows x 7 variates, hourly";
const QUARTERLY: &str = "69680 rows x 7 variates, every 15 minutes";

pub(super) const KNOWN: [KnownSet; 4] = [
    KnownSet {
        name: "ETTh1",
        task: "forecasting",
        config: "ett = { variant = \"h1\" }",
        file: "timeseries/ETTh1.csv",
        shape: HOURLY,
        licence: LICENCE,
        origin: ORIGIN,
        sha256: Some("f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    },
    KnownSet {
        name: "ETTh2",
        task: "forecasting",
        config: "ett = { variant = \"h2\" }",
        file: "timeseries/ETTh2.csv",
        shape: HOURLY,
        licence: LICENCE,
        origin: ORIGIN,
        sha256: Some("a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    },
    KnownSet {
        name: "ETTm1",
        task: "forecasting",
        config: "ett = { variant = \"m1\" }",
        file: "timeseries/ETTm1.csv",
        shape: QUARTERLY,
        licence: LICENCE,
        origin: ORIGIN,
        sha256: Some("6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    },
    KnownSet {
        name: "ETTm2",
        task: "forecasting",
        config: "ett = { variant = \"m2\" }",
        file: "timeseries/ETTm2.csv",
        shape: QUARTERLY,
        licence: LICENCE,
        origin: ORIGIN,
        sha256: None,
    },
];

/// Which of the four series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EttVariant {
    /// First transformer, hourly.
    H1,
    /// Second transformer, hourly.
    H2,
    /// First transformer, every 15 minutes.
    M1,
    /// Second transformer, every 15 minutes.
    M2,
}

/// `[data.ett]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EttConfig {
    /// `"h1"`, `"h2"`, `"m1"` or `"m2"`; required.
    pub variant: EttVariant,
}

impl DataSet for EttConfig {
    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        read_table(&KNOWN[self.variant as usize], dirs, TableFormat::Dated("date"))
    }

    fn borders(&self, n_rows: usize, lookback_len: usize) -> Result<Borders, String> {
        let rows_per_day = match self.variant {
            EttVariant::H1 | EttVariant::H2 => 24,
            EttVariant::M1 | EttVariant::M2 => 96,
        };
        Borders::months(n_rows, rows_per_day, lookback_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_and_known_sets_are_in_the_same_order() {
        for (variant, name) in [
            (EttVariant::H1, "ETTh1"),
            (EttVariant::H2, "ETTh2"),
            (EttVariant::M1, "ETTm1"),
            (EttVariant::M2, "ETTm2"),
        ] {
            assert_eq!(KNOWN[variant as usize].name, name);
        }
    }
}
