//! `result.json`: what a finished run came to.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    atomic,
    error::Error,
    report::Table,
    task::{Metrics, Outcome},
};

/// The scores of a run on the test split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct RunResult {
    /// Optimiser steps of the run.
    pub steps: u64,
    /// Step of the weights that the scores belong to.
    pub scored_step: u64,
    /// Scores on the test split.
    pub metrics: Metrics,
    /// Tables of the task; the first one sums the run up.
    pub tables: Vec<Table>,
    /// What the task keeps of its samples, `null` for most.
    pub details: serde_json::Value,
}

/// As written; a score that is not finite is `null`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    steps: u64,
    scored_step: u64,
    metrics: std::collections::BTreeMap<String, Option<f64>>,
    tables: Vec<WrittenTable>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    details: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTable {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    note: String,
}

impl RunResult {
    pub(crate) fn new(steps: u64, scored_step: u64, outcome: &Outcome) -> Self {
        let Outcome { metrics, tables, details, .. } = outcome;
        let (metrics, tables, details) = (metrics.clone(), tables.clone(), details.clone());
        Self { steps, scored_step, metrics, tables, details }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        atomic::replace(path, (text.map_err(atomic::save("write", path))? + "\n").as_bytes())
    }

    /// Reads the file, `None` if there is none that can be understood.
    #[must_use]
    pub fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

impl From<RunResult> for Written {
    fn from(RunResult { steps, scored_step, metrics, tables, details }: RunResult) -> Self {
        Self {
            steps,
            scored_step,
            metrics: metrics.into_iter().map(|(name, score)| (name, Some(score))).collect(),
            tables: tables.into_iter().map(WrittenTable::from).collect(),
            details,
        }
    }
}

impl From<Written> for RunResult {
    fn from(Written { steps, scored_step, metrics, tables, details }: Written) -> Self {
        let metrics = metrics.into_iter();
        Self {
            steps,
            scored_step,
            metrics: metrics.map(|(name, score)| (name, score.unwrap_or(f64::NAN))).collect(),
            tables: tables.into_iter().map(Table::from).collect(),
            details,
        }
    }
}

impl From<Table> for WrittenTable {
    fn from(Table { title, columns, rows, note, .. }: Table) -> Self {
        Self { title, columns, rows, note }
    }
}

impl From<WrittenTable> for Table {
    fn from(WrittenTable { title, columns, rows, note }: WrittenTable) -> Self {
        Self { title, columns, rows, note, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        assert_eq!(RunResult::load(&path), None);
        let table = Table {
            title: "Test".into(),
            columns: vec!["model".into(), "mse".into()],
            rows: vec![vec!["x".into(), "0.25".into()]],
            note: "a note".into(),
            ..Table::default()
        };
        let result = RunResult {
            steps: 10,
            scored_step: 5,
            metrics: Metrics::from([("mse".into(), 0.25)]),
            tables: vec![table],
            details: serde_json::json!({ "samples": [1, 2.5] }),
        };
        result.save(&path).unwrap();
        assert_eq!(RunResult::load(&path), Some(result));
    }
}
