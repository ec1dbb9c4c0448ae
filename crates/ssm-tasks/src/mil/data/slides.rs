//! Slides of a clinic or a consortium: a table of slides beside a directory of feature files.
//!
//! The table is a CSV file with a header. Feature files are read when they are needed, so that memory
//! holds one slide at a time, whatever the size of the cohort.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{
    config::{Issue, nearest},
    error::Error,
};

use super::{DataSet, split_file};
use crate::{
    data::{DataFile, KnownSet, read, read_named},
    mil::{
        cohort::{Bags, Cohort, Part, Slide, Target},
        features,
    },
};

pub(super) const KNOWN: [KnownSet; 0] = [];

/// Names that an error lists at most.
const MAX_NAMES: usize = 5;

/// `[data.slides]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlidesConfig {
    /// CSV file with one row a slide: as it is, or below a data directory; required.
    pub table: String,
    /// Directory of the feature files, as it is, beside the table, or below a data directory;
    /// required. The file of a slide is `<slide_id>.<ending>`, there or in `h5_files/` or
    /// `pt_files/` below it.
    pub features: String,
    /// Column of the slides. Default `"slide_id"`.
    #[serde(default = "slide_id")]
    pub slide_column: String,
    /// Column of the patients. Default `"case_id"`.
    #[serde(default = "case_id")]
    pub case_column: String,
    /// Column of the class. This, or `time_column` and `event_column`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// The classes in order; any other label is an error. Default: all that occur, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Column of the time until the event or the last contact, in any unit, above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_column: Option<String>,
    /// Column that is 1 where the event was seen and 0 where the time is censored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_column: Option<String>,
    /// One column a given split, with `train`, `valid` (or `val`), `test`, or nothing for a slide
    /// that is not used. Default: none, folds are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split_columns: Vec<String>,
    /// One CSV file a given split, as CLAM and MambaMIL publish theirs: columns `train`, `val` (or
    /// `valid`) and `test`, each with slides or patients one below the other. Beside the table, or
    /// below a data directory. What none of them names is not used. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split_files: Vec<String>,
}

fn slide_id() -> String {
    "slide_id".to_owned()
}

fn case_id() -> String {
    "case_id".to_owned()
}

impl DataSet for SlidesConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        for (name, value, what) in
            [("table", &self.table, "a CSV file"), ("features", &self.features, "a directory")]
        {
            if value.is_empty() {
                issues.push(Issue::new(
                    name,
                    format!("expected the path of {what}, got an empty string"),
                ));
            }
        }
        let survival = self.time_column.is_some() && self.event_column.is_some();
        let class = self.label_column.is_some();
        let either = self.time_column.is_some() || self.event_column.is_some();
        if class == survival || (class && either) {
            issues.push(Issue::new(
                "label_column",
                "expected either `label_column`, or `time_column` and `event_column`",
            ));
        }
        if !self.split_columns.is_empty() && !self.split_files.is_empty() {
            let message = "expected either `split_columns` or `split_files`, got both";
            issues.push(Issue::new("split_files", message));
        }
        issues
    }

    fn n_given_splits(&self) -> usize {
        self.split_columns.len() + self.split_files.len()
    }

    fn load(&self, dirs: &[PathBuf]) -> Result<Cohort, Error> {
        let file = read_named(&self.table, dirs)?;
        let table = Table::parse(&file)?;
        let slides = self.slides(&table)?;
        let paths = self.paths(&file, dirs, &slides)?;
        let first = features::read(&paths[0])?;
        let classes = self.classes(&table)?;
        let given = self.split_columns.iter().map(|column| table.parts(column));
        let mut given: Vec<Vec<Part>> = given.collect::<Result<_, Error>>()?;
        let mut hashes = BTreeMap::from([(file.name(), file.sha256.clone())]);
        for name in &self.split_files {
            let file = read_beside(&file, name, dirs)?;
            given.push(split_file::parts(&Table::parse(&file)?, &slides)?);
            hashes.insert(file.name(), file.sha256.clone());
        }
        Ok(Cohort {
            name: file.name(),
            slides,
            bags: Bags::Files(paths),
            d_feature: first.d_feature,
            classes,
            given,
            hashes,
            ..Cohort::default()
        })
    }
}

impl SlidesConfig {
    fn slides(&self, table: &Table<'_>) -> Result<Vec<Slide>, Error> {
        let classes = self.classes(table)?;
        let (ids, cases) = (table.column(&self.slide_column)?, table.column(&self.case_column)?);
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut slides = Vec::new();
        for (row, (&id, &case)) in ids.iter().zip(&cases).enumerate() {
            if id.is_empty() || case.is_empty() {
                return Err(table
                    .refuse(row, "expected a slide and a patient, got an empty cell".to_owned()));
            }
            if let Some(first) = lines.insert(id, row) {
                let message = format!("slide `{id}` stands in line {} already", Table::line(first));
                return Err(table.refuse(row, message));
            }
            let target = self.target(table, row, &classes)?;
            slides.push(Slide { id: id.to_owned(), case: case.to_owned(), target });
        }
        Ok(slides)
    }

    fn target(&self, table: &Table<'_>, row: usize, classes: &[String]) -> Result<Target, Error> {
        if let Some(column) = &self.label_column {
            let label = table.column(column)?[row];
            let class = classes.iter().position(|class| class == label);
            return class.map(Target::Class).ok_or_else(|| {
                let known: Vec<&str> = classes.iter().map(String::as_str).collect();
                let hint = nearest(label, known.iter().copied())
                    .map(|name| format!("did you mean `{name}`?"));
                let message = format!("expected one of `{}`, got `{label}`", known.join("`, `"));
                table.refuse_with(row, column, message, hint)
            });
        }
        let (Some(time_column), Some(event_column)) = (&self.time_column, &self.event_column)
        else {
            // `validate` asks for one or the other.
            return Err(table.file.error("expected a class or a time and an event", None));
        };
        let text = table.column(time_column)?[row];
        let time = text.parse::<f64>().ok().filter(|time| time.is_finite() && *time > 0.0);
        let time = time.ok_or_else(|| {
            table.refuse_with(
                row,
                time_column,
                format!("expected a time above 0, got `{text}`"),
                None,
            )
        })?;
        let event = match table.column(event_column)?[row] {
            "1" | "1.0" => true,
            "0" | "0.0" => false,
            other => {
                let message = format!("expected 1 (seen) or 0 (censored), got `{other}`");
                return Err(table.refuse_with(row, event_column, message, None));
            }
        };
        Ok(Target::Survival { time, event })
    }

    fn classes(&self, table: &Table<'_>) -> Result<Vec<String>, Error> {
        let Some(column) = &self.label_column else { return Ok(Vec::new()) };
        if !self.classes.is_empty() {
            return Ok(self.classes.clone());
        }
        let mut classes: Vec<String> =
            table.column(column)?.iter().map(|label| (*label).to_owned()).collect();
        classes.sort();
        classes.dedup();
        if classes.len() < 2 || classes.iter().any(String::is_empty) {
            let message =
                format!("expected at least two classes in `{column}`, got {}", classes.len());
            return Err(table.file.error(message, None));
        }
        Ok(classes)
    }

    /// The feature file of every slide.
    fn paths(
        &self,
        file: &DataFile,
        dirs: &[PathBuf],
        slides: &[Slide],
    ) -> Result<Vec<PathBuf>, Error> {
        let named = Path::new(&self.features);
        let beside = file.path.parent().unwrap_or(Path::new(".")).join(named);
        let mut places = vec![named.to_owned(), beside];
        places.extend(dirs.iter().map(|dir| dir.join(named)));
        let Some(dir) = places.iter().find(|place| place.is_dir()) else {
            let places: Vec<String> = places.iter().map(|p| format!("`{}`", p.display())).collect();
            return Err(Error::Data {
                path: named.to_owned(),
                message: format!("no such directory of features; searched {}", places.join(", ")),
                hint: Some("name it by `data.slides.features`".to_owned()),
            });
        };
        let found: Vec<Option<PathBuf>> =
            slides.iter().map(|slide| features::find(dir, &slide.id)).collect();
        let missing: Vec<&str> = slides
            .iter()
            .zip(&found)
            .filter(|(_, path)| path.is_none())
            .map(|(slide, _)| slide.id.as_str())
            .collect();
        if let Some(first) = missing.first() {
            let names = missing[..missing.len().min(MAX_NAMES)].join("`, `");
            let more = if missing.len() > MAX_NAMES { ", ..." } else { "" };
            return Err(Error::Data {
                path: dir.clone(),
                message: format!(
                    "{} of {} slides have no file of features: `{names}`{more}",
                    missing.len(),
                    slides.len()
                ),
                hint: Some(format!(
                    "expected `{first}.h5` or another ending of {}, or drop the rows of the table",
                    features::ENDINGS.join(", ")
                )),
            });
        }
        if slides.is_empty() {
            return Err(file.error("expected at least one slide, got an empty table", None));
        }
        Ok(found.into_iter().flatten().collect())
    }
}

/// A file beside the table, or wherever a user's file is looked for.
fn read_beside(table: &DataFile, name: &str, dirs: &[PathBuf]) -> Result<DataFile, Error> {
    let beside = table.path.parent().unwrap_or(Path::new(".")).join(name);
    if beside.is_file() { read(&beside) } else { read_named(name, dirs) }
}

/// A CSV file in memory.
pub(super) struct Table<'a> {
    file: &'a DataFile,
    pub(super) header: Vec<String>,
    rows: Vec<csv::StringRecord>,
}

impl<'a> Table<'a> {
    fn parse(file: &'a DataFile) -> Result<Self, Error> {
        let broken = |reason: csv::Error| file.error(format!("not CSV: {reason}"), None);
        let mut reader =
            csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(&file.bytes[..]);
        let header = reader.headers().map_err(broken)?.iter().map(str::to_owned).collect();
        let rows = reader.records().collect::<Result<_, _>>().map_err(broken)?;
        Ok(Self { file, header, rows })
    }

    /// Line of the file that a row stands in; the header is line 1.
    fn line(row: usize) -> usize {
        row + 2
    }

    pub(super) fn column(&self, name: &str) -> Result<Vec<&str>, Error> {
        let place = self.header.iter().position(|head| head == name).ok_or_else(|| {
            let message = format!("expected a column `{name}`, got `{}`", self.header.join("`, `"));
            self.file.error(message, None)
        })?;
        Ok(self.rows.iter().map(|row| row.get(place).unwrap_or_default()).collect())
    }

    fn parts(&self, column: &str) -> Result<Vec<Part>, Error> {
        let part = |(row, text): (usize, &str)| match text {
            "train" | "training" => Ok(Part::Train),
            "valid" | "val" | "validation" => Ok(Part::Valid),
            "test" => Ok(Part::Test),
            "" => Ok(Part::Unused),
            other => {
                let message =
                    format!("expected `train`, `valid`, `test` or nothing, got `{other}`");
                Err(self.refuse_with(row, column, message, None))
            }
        };
        self.column(column)?.into_iter().enumerate().map(part).collect()
    }

    fn refuse(&self, row: usize, message: String) -> Error {
        self.file.error(format!("line {}: {message}", Self::line(row)), None)
    }

    pub(super) fn refuse_with(
        &self,
        row: usize,
        column: &str,
        message: String,
        hint: Option<String>,
    ) -> Error {
        let message = format!("line {}, column `{column}`: {message}", Self::line(row));
        self.file.error(message, hint.as_deref())
    }
}
