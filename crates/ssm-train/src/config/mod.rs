//! Strict TOML configuration: defaults, then the file, then `--set` overrides.
//!
//! A [`Config`] is complete and checked before any data or device is touched. Whatever is wrong with
//! it becomes [`Diagnostic`]s that show file, line and caret, what was expected and the nearest
//! valid name. Only this folder reads configuration files.

mod annotate;
mod diagnostic;
mod explain;
mod names;
mod overrides;
mod schema;
mod sections;
mod source;
mod tables;
mod validate;

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use toml::de::{DeTable, DeValue};

pub use diagnostic::{Diagnostic, Excerpt};
pub use names::nearest;
pub use schema::{SchemaBuilder, schema};
pub use sections::{
    CheckpointSection, DeviceSection, LogSection, Optim, Precision, Recompute, RunSection,
    TrainSection,
};
use source::Sources;
pub use source::read;

pub use crate::schedule::Schedule;
use crate::{error::Error, task::TaskConfig};

/// One thing that is wrong with a configuration value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Path of the key from the root of the file: `task.forecasting.pred_len`. Shown before the
    /// message, and used to find the line; the path of a table points at its header.
    pub path: String,
    /// What was expected and what is there, without the path: ``expected at least 1, got `0` ``.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Issue {
    /// An issue without a hint.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), hint: None }
    }

    /// The usual issue of a value out of its range: ``expected {expected}, got `{got}` ``.
    pub fn range(path: impl Into<String>, expected: &str, got: impl fmt::Display) -> Self {
        Self::new(path, format!("expected {expected}, got `{got}`"))
    }

    /// The same issue with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}", self.message)
        } else {
            write!(f, "`{}`: {}", self.path, self.message)
        }
    }
}

/// What a task needs to know of the engine's sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `run.seed`.
    pub seed: u64,
    /// `train.batch_size`: samples in a micro-batch.
    pub batch_size: usize,
    /// `train.eval_batch_size`: samples at a time in an evaluation.
    pub eval_batch_size: usize,
    /// `train.accumulate`: micro-batches in an optimiser step.
    pub accumulate: usize,
    /// `train.recompute`: only given to a task that has layers.
    pub recompute: Option<Recompute>,
    /// `train.precision`: only other than f32 for a model that can.
    pub precision: Precision,
    /// `run.fold`, 0 for a task without folds.
    pub fold: usize,
    /// Directories that data files are searched in, in order.
    pub data_dirs: Vec<PathBuf>,
}

/// A resolved and valid configuration of a run of one task.
pub struct Config<T: TaskConfig> {
    /// `[run]`.
    pub run: RunSection,
    /// `[device]`.
    pub device: DeviceSection,
    /// `[task.<NAME>]`.
    pub task: T::Options,
    /// `[data]`.
    pub data: T::Data,
    /// `[model]`.
    pub model: T::Model,
    /// `[optim.<variant>]`.
    pub optim: Optim,
    /// `[schedule.<variant>]`.
    pub schedule: Schedule,
    /// `[train]`.
    pub train: TrainSection,
    /// `[checkpoint]`.
    pub checkpoint: CheckpointSection,
    /// `[log]`.
    pub log: LogSection,
    /// Where the values come from, for what shows only once the data is read.
    sources: Arc<Sources>,
}

impl<T: TaskConfig> Config<T> {
    /// Reads, resolves and checks a configuration file.
    ///
    /// # Errors
    /// [`Error::Config`], also for a file that cannot be read.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, Error> {
        Self::parse(&read(path)?, &path.display().to_string(), overrides)
    }

    /// Resolves and checks the text of a configuration file.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, Error> {
        let sources = Arc::new(Sources::new(text, origin, overrides));
        Self::resolve(&sources).map_err(|diagnostics| Error::Config { diagnostics })
    }

    fn resolve(sources: &Arc<Sources>) -> Result<Self, Vec<Diagnostic>> {
        let root = merged(sources)?;
        let mut config = Self::read_sections(&root, sources)?;
        if tables::lookup(&root, &["run", "name"]).is_none() {
            let stem = Path::new(sources.origin()).file_stem().unwrap_or_default();
            config.run.name = stem.to_string_lossy().into_owned();
        }
        if tables::lookup(&root, &["train", "eval_batch_size"]).is_none() {
            config.train.eval_batch_size = config.train.batch_size;
        }
        let issues = config.check(&root);
        if issues.is_empty() { Ok(config) } else { Err(place(issues, &root, sources)) }
    }

    /// Every section with the right keys and types, or what is wrong with each of them.
    fn read_sections(root: &DeTable<'_>, sources: &Arc<Sources>) -> Result<Self, Vec<Diagnostic>> {
        let mut wrong: Vec<Diagnostic> = root
            .keys()
            .filter(|key| !SECTIONS.contains(&key.get_ref().as_ref()))
            .map(|key| explain::unknown_section(key, SECTIONS, root, sources))
            .collect();
        let mut reader = Reader { root, sources, wrong: &mut wrong };
        let task = reader.task::<T>();
        let (data, model, optim) =
            (reader.required(&["data"]), reader.required(&["model"]), reader.required(&["optim"]));
        let (run, device) = (reader.optional("run"), reader.optional("device"));
        let (schedule, train) = (reader.optional("schedule"), reader.optional("train"));
        let (checkpoint, log) = (reader.optional("checkpoint"), reader.optional("log"));
        let sections = (|| {
            Some(Self {
                run: run?,
                device: device?,
                task: task?,
                data: data?,
                model: model?,
                optim: optim?,
                schedule: schedule?,
                train: train?,
                checkpoint: checkpoint?,
                log: log?,
                sources: Arc::clone(sources),
            })
        })();
        match sections {
            Some(config) if wrong.is_empty() => Ok(config),
            _ => Err(wrong),
        }
    }

    /// Every value out of its range, and every value of the file that no section took up.
    fn check(&self, root: &DeTable<'_>) -> Vec<Issue> {
        let mut issues = validate::run(&self.run);
        issues.extend(validate::device(&self.device));
        issues.extend(T::validate(&self.task, &self.data, &self.model));
        issues.extend(validate::optim(&self.optim));
        issues.extend(validate::schedule(&self.schedule, &self.train));
        issues.extend(validate::train(&self.train));
        if self.train.recompute.is_some() && !T::has_layers(&self.model) {
            issues.push(Issue::new(
                "train.recompute",
                "the chosen model has no layers that could be computed again",
            ));
        }
        issues.extend(validate::precision(&self.train, &self.device));
        if self.train.precision != Precision::F32
            && let Some(hint) = T::f32_only(&self.model)
        {
            let got = self.train.precision.name();
            let message = format!("the chosen model computes in `f32` only, got `{got}`");
            issues.push(Issue::new("train.precision", message).with_hint(hint));
        }
        issues.extend(validate::checkpoint(&self.checkpoint));
        issues.extend(validate::log(&self.log));
        if let Ok(resolved) = toml::from_str(&self.to_toml()) {
            longer_arrays(root, &resolved, "", &mut issues);
        }
        issues
    }

    /// An error of issues that only show once the data is read, placed in the file all the same.
    pub(crate) fn refuse(&self, issues: Vec<Issue>) -> Error {
        let placed = merged(&self.sources).map(|root| place(issues, &root, &self.sources));
        // The text was parsed before; should it not parse now, that is what is wrong.
        let (Ok(diagnostics) | Err(diagnostics)) = placed;
        Error::Config { diagnostics }
    }

    /// The configuration as TOML with every default written out; it loads to an equal value.
    ///
    /// # Panics
    /// If a section of the task is no TOML (a key that is no string, an absent value in an array):
    /// our bug, which shows when the first configuration of the task is loaded.
    #[must_use]
    pub fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct Resolved<'a, O, D, M> {
            run: &'a RunSection,
            device: &'a DeviceSection,
            task: BTreeMap<&'a str, &'a O>,
            data: &'a D,
            model: &'a M,
            optim: &'a Optim,
            schedule: &'a Schedule,
            train: &'a TrainSection,
            checkpoint: &'a CheckpointSection,
            log: &'a LogSection,
        }
        let resolved = Resolved {
            run: &self.run,
            device: &self.device,
            task: BTreeMap::from([(T::NAME, &self.task)]),
            data: &self.data,
            model: &self.model,
            optim: &self.optim,
            schedule: &self.schedule,
            train: &self.train,
            checkpoint: &self.checkpoint,
            log: &self.log,
        };
        match toml::to_string(&resolved) {
            Ok(text) => text,
            Err(error) => panic!("a section of the task `{}` is no TOML: {error}", T::NAME),
        }
    }

    /// The part of the configuration that the task sees.
    #[must_use]
    pub fn settings(&self, data_dirs: Vec<PathBuf>) -> Settings {
        Settings {
            seed: self.run.seed,
            batch_size: self.train.batch_size,
            eval_batch_size: self.train.eval_batch_size,
            accumulate: self.train.accumulate,
            recompute: self.train.recompute,
            precision: self.train.precision,
            fold: self.run.fold.unwrap_or(0),
            data_dirs,
        }
    }
}

impl<T: TaskConfig> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self {
            run: self.run.clone(),
            device: self.device.clone(),
            task: self.task.clone(),
            data: self.data.clone(),
            model: self.model.clone(),
            optim: self.optim.clone(),
            schedule: self.schedule.clone(),
            train: self.train.clone(),
            checkpoint: self.checkpoint.clone(),
            log: self.log.clone(),
            sources: Arc::clone(&self.sources),
        }
    }
}

impl<T: TaskConfig> fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_toml())
    }
}

/// Two configurations are equal if every key of their resolved form is.
impl<T: TaskConfig> PartialEq for Config<T> {
    fn eq(&self, other: &Self) -> bool {
        self.to_toml() == other.to_toml()
    }
}

/// The tables of the file with the overrides merged into them.
fn merged(sources: &Sources) -> Result<DeTable<'_>, Vec<Diagnostic>> {
    let mut root = explain::parse(sources).map_err(|diagnostic| vec![diagnostic])?;
    let wrong = overrides::apply(&mut root, sources);
    if wrong.is_empty() { Ok(root) } else { Err(wrong) }
}

/// Every section at the root of a file, in the order in which they are written.
const SECTIONS: &[&str] =
    &["run", "device", "task", "data", "model", "optim", "schedule", "train", "checkpoint", "log"];

/// Reads sections one by one, so that a mistake in one does not hide those of the next.
struct Reader<'r, 'i> {
    root: &'r DeTable<'i>,
    sources: &'r Sources,
    wrong: &'r mut Vec<Diagnostic>,
}

impl Reader<'_, '_> {
    fn required<S: DeserializeOwned>(&mut self, path: &[&str]) -> Option<S> {
        explain::section(self.root, path, self.sources)
            .map_err(|diagnostic| self.wrong.push(diagnostic))
            .ok()
    }

    fn optional<S: DeserializeOwned + Default>(&mut self, name: &str) -> Option<S> {
        if self.root.contains_key(name) { self.required(&[name]) } else { Some(S::default()) }
    }

    fn task<T: TaskConfig>(&mut self) -> Option<T::Options> {
        match explain::task_name(self.root, &[T::NAME], self.sources) {
            Ok(_) => self.required(&["task", T::NAME]),
            Err(diagnostic) => {
                self.wrong.push(diagnostic);
                None
            }
        }
    }
}

/// Finds the lines of issues, and puts them in the order of the file.
fn place(issues: Vec<Issue>, root: &DeTable<'_>, sources: &Sources) -> Vec<Diagnostic> {
    let mut placed: Vec<(usize, Diagnostic)> = issues
        .into_iter()
        .map(|issue| match span_of(root, &issue.path) {
            Some(span) => {
                let mut diagnostic = sources.diagnostic(Some(span.clone()), issue.to_string());
                diagnostic.hint = issue.hint;
                (span.start, diagnostic)
            }
            None => {
                let is_value = issue.path.contains('.');
                let mut diagnostic = Diagnostic::unplaced(sources.origin(), issue);
                diagnostic.expected =
                    is_value.then(|| "the value is the default, the key is not set".into());
                (usize::MAX, diagnostic)
            }
        })
        .collect();
    placed.sort_by_key(|(start, _)| *start);
    placed.into_iter().map(|(_, diagnostic)| diagnostic).collect()
}

fn span_of(root: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let path = path.replace('[', ".[");
    let keys: Vec<&str> = path.split('.').collect();
    tables::lookup(root, &keys).map(toml::Spanned::span)
}

/// Arrays that hold more than their section took: serde reads a fixed number and leaves the rest.
fn longer_arrays(given: &DeTable<'_>, taken: &toml::Table, parent: &str, issues: &mut Vec<Issue>) {
    for (key, value) in given {
        let path = format!("{parent}{key}");
        match (value.get_ref(), taken.get(key.get_ref().as_ref())) {
            (DeValue::Table(given), Some(toml::Value::Table(taken))) => {
                longer_arrays(given, taken, &format!("{path}."), issues);
            }
            (DeValue::Array(given), Some(toml::Value::Array(taken)))
                if given.len() > taken.len() =>
            {
                let (wanted, got) = (taken.len(), given.len());
                let message = format!("expected an array of length {wanted}, got length `{got}`");
                issues.push(Issue::new(path, message));
            }
            _ => {}
        }
    }
}

/// Every value of a configuration by its full key, as in `optim.adam.lr`.
pub(crate) fn values(text: &str) -> Result<BTreeMap<String, toml::Value>, toml::de::Error> {
    fn flatten(prefix: &str, table: toml::Table, values: &mut BTreeMap<String, toml::Value>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            match value {
                // An empty table is a value: it names a variant without fields.
                toml::Value::Table(table) if !table.is_empty() => flatten(&key, table, values),
                value => {
                    values.insert(key, value);
                }
            }
        }
    }
    let mut values = BTreeMap::new();
    flatten("", text.parse()?, &mut values);
    Ok(values)
}

/// Name of the one task that a configuration is for: the key under `[task]`.
///
/// `known` are the tasks to choose from; an empty list accepts any name.
///
/// # Errors
/// [`Error::Config`] for text that is no TOML, for none or several tasks, and for an unknown one.
pub fn task_name(text: &str, origin: &str, known: &[&str]) -> Result<String, Error> {
    let sources = Sources::new(text, origin, &[]);
    explain::parse(&sources)
        .and_then(|root| explain::task_name(&root, known, &sources))
        .map_err(|diagnostic| Error::Config { diagnostics: vec![diagnostic] })
}
