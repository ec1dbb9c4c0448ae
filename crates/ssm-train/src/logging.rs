//! `metrics.jsonl`: one line of JSON for every entry of the log, in full precision.
//!
//! Two runs of one configuration on one machine write the same lines except for the fields
//! `samples_per_sec`, `tokens_per_sec`, `mfu` and `elapsed_secs`, which are measured times.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use crate::{atomic, error::Error, position::MetricsEnd, task::Metrics, tensorboard::EventFile};

/// A line on training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainRow {
    /// Optimiser steps done.
    pub step: u64,
    /// Epoch of the last of them, counted from 0.
    pub epoch: u64,
    /// `train`.
    pub split: &'static str,
    /// Mean over all samples since the line before.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Global norm of the last gradient, before clipping.
    pub grad_norm: f64,
    /// Samples a second since the line before; measured, not reproducible.
    pub samples_per_sec: f64,
    /// Tokens a second, of a task that reads tokens; measured, not reproducible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_sec: Option<f64>,
    /// Model FLOPs utilisation, where the peak of the device is known; measured, not reproducible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Seconds that this process has been training for; measured, not reproducible.
    pub elapsed_secs: f64,
}

/// A line on an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluationRow<'a> {
    /// Optimiser steps done.
    pub step: u64,
    /// Epoch of the last of them, counted from 0.
    pub epoch: u64,
    /// `valid`.
    pub split: &'static str,
    /// The scores, each under its own name.
    #[serde(flatten)]
    pub metrics: &'a Metrics,
    /// Seconds that this process has been training for; measured, not reproducible.
    pub elapsed_secs: f64,
}

/// `metrics.jsonl`, open at its end.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    end: MetricsEnd,
    /// The same lines for TensorBoard, if they are asked for.
    events: Option<EventFile>,
}

impl MetricsLog {
    /// Opens the file and cuts off what comes after `end`.
    ///
    /// A file shorter than `end` (it was edited or lost) keeps its whole lines, with a warning. With
    /// `tensorboard` every line is also written to an event file beside the log.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Save`].
    pub fn open(path: &Path, end: MetricsEnd, tensorboard: bool) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(path).map_err(atomic::save("write", path))?;
        atomic::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        let found = whole_lines(&file, end.bytes).map_err(atomic::read("read", path))?;
        if found != end {
            tracing::warn!(
                "`{}` has {} of the {} lines that the checkpoint knows of; going on with those",
                path.display(),
                found.rows,
                end.rows
            );
        }
        let cut = file.set_len(found.bytes).and_then(|()| file.seek(SeekFrom::End(0)));
        cut.map_err(atomic::save("truncate", path))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let events = tensorboard.then(|| EventFile::open(folder, &rows(path)?)).transpose()?;
        Ok(Self { path: path.to_owned(), file, end: found, events })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn append(&mut self, row: &impl Serialize) -> Result<(), Error> {
        let written = serde_json::to_vec(row).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            // One write a line: a crash may cut the last line, never interleave two.
            self.file.write_all(&line)?;
            self.end.bytes += line.len() as u64;
            self.end.rows += 1;
            Ok(())
        });
        written.map_err(atomic::save("write", &self.path))?;
        if let Some(events) = &mut self.events {
            let row = serde_json::to_value(row).map_err(std::io::Error::from);
            events.append(&row.map_err(atomic::save("write", &self.path))?)?;
        }
        Ok(())
    }

    /// Where the last line ends; whether the disk has it is another matter.
    #[must_use]
    pub fn end(&self) -> MetricsEnd {
        self.end
    }

    /// Waits until the disk has every line, and says where the last one ends.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn sync(&mut self) -> Result<MetricsEnd, Error> {
        self.file.sync_data().map_err(atomic::save("write", &self.path))?;
        Ok(self.end)
    }
}

/// Every line of `metrics.jsonl` that is whole.
///
/// # Errors
/// [`Error::Io`].
pub fn rows(path: &Path) -> Result<Vec<Value>, Error> {
    let text = std::fs::read_to_string(path).map_err(atomic::read("read", path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The lines that end within the first `bytes` bytes.
fn whole_lines(file: &File, bytes: u64) -> std::io::Result<MetricsEnd> {
    let mut reader = BufReader::new(file);
    let mut end = MetricsEnd::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)? as u64;
        if line.last() != Some(&b'\n') || end.bytes + length > bytes {
            return Ok(end);
        }
        end.bytes += length;
        end.rows += 1;
    }
}
