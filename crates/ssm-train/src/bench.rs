//! What a configuration costs, found out by doing its first steps; nothing is written.

mod reduced;
mod steps;

use std::{path::PathBuf, time::Duration};

use self::steps::Steps;
use crate::{
    allocation,
    config::Config,
    device,
    error::Error,
    machine,
    report::Table,
    task::{Task, Throughput},
};

/// Weights, gradients and both moments of the optimiser, in bytes for each parameter.
const STATE_BYTES: u64 = 4 * 4;

/// Weights and both moments, and the copies that a checkpoint is made of: weights once, moments twice.
const SAVING_BYTES: u64 = (3 + 1 + 2 * 2) * 4;

/// How many steps are measured at most.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Steps after the first, which is not counted: it compiles kernels and fills caches.
    pub steps: u64,
    /// Time for all of them; one is measured in any case.
    pub time: Duration,
    /// Whether a part is measured and scaled, where the whole would take longer than this time.
    pub reduces: bool,
}

/// What a configuration costs.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Backend that computed.
    pub backend: &'static str,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Folds that are trained one after the other.
    pub folds: usize,
    /// Optimiser steps of a fold.
    pub steps: u64,
    /// Passes over the training split.
    pub epochs: f64,
    /// Weights, gradients and optimiser state, in bytes; f32 in every precision.
    pub state: u64,
    /// What matrix products and activations are computed in.
    pub precision: &'static str,
    /// What steps take, or why that is not known.
    pub measured: Result<Measured, String>,
}

/// What steps take.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Number of steps that were done.
    pub steps: u64,
    /// What they were steps of, where they were not whole and the numbers are scaled.
    pub scaled_from: Option<String>,
    /// Median time of a step.
    pub step: Duration,
    /// Median time of each part of a step. On a GPU the time to hand over the work; `norm` waits for
    /// it to be done. Of replayed steps the second part is the third too, which is then zero.
    pub parts: [(&'static str, Duration); 5],
    /// Samples a second.
    pub samples_per_sec: f64,
    /// The same in tokens, of a task that reads tokens.
    pub throughput: Option<Throughput>,
    /// The most that the process needs at a time, or what the device holds after the steps, in bytes,
    /// where it is known.
    pub memory: Option<u64>,
}

/// Builds data and model, and does a few steps.
///
/// # Errors
/// Everything that is wrong with data, sizes or device.
pub fn cost<T: Task>(
    config: &Config<T::Config>,
    data_dirs: &[PathBuf],
    limit: Limit,
) -> Result<Cost, Error> {
    let backend = device::resolve(&config.device.backend, config.device.index)?;
    let folds = T::n_folds(&config.task, &config.data, data_dirs)?;
    allocation::count();
    let whole = Steps::<T>::prepare(config, data_dirs)?;
    let (parameters, plan) = (whole.parameters(), whole.plan);
    let measured = if limit.reduces {
        reduced::measure(config, data_dirs, limit, whole)?
    } else {
        Ok(whole.measure(limit)?.measured())
    };
    Ok(Cost {
        backend,
        parameters,
        folds: if config.run.fold.is_some() { 1 } else { folds },
        steps: plan.total_steps,
        epochs: plan.total_steps as f64 / plan.steps_per_epoch as f64,
        state: parameters as u64 * STATE_BYTES,
        precision: config.train.precision.name(),
        measured,
    })
}

impl Cost {
    /// Time of all steps of all folds, if any were measured; evaluations come on top.
    #[must_use]
    pub fn time(&self) -> Option<Duration> {
        let steps = self.steps.saturating_mul(self.folds as u64);
        let step = self.measured.as_ref().ok()?.step.as_secs_f64();
        Duration::try_from_secs_f64(step * steps as f64).ok()
    }

    /// What the run will take, as a table: for people, or for programs, which get bytes and seconds.
    #[must_use]
    pub fn estimate(&self, for_people: bool) -> Table {
        let bytes = |bytes: u64| match for_people {
            true => machine::readable(bytes),
            false => bytes.to_string(),
        };
        let time = |time: Duration| match for_people {
            true => readable(time),
            false => time.as_secs_f64().to_string(),
        };
        let mut rows = vec![
            ("parameters", self.parameters.to_string()),
            ("precision", self.precision.to_owned()),
            ("optimiser steps", self.steps.to_string()),
            ("epochs", format!("{:.2}", self.epochs)),
        ];
        if self.folds > 1 {
            rows.push(("folds", self.folds.to_string()));
        }
        rows.push(("memory, weights to optimiser", bytes(self.state)));
        if let Ok(measured) = &self.measured {
            let memory = measured.memory.map_or_else(|| "-".to_owned(), bytes);
            rows.push(("memory, all", memory));
            rows.push(("milliseconds a step", millis(measured.step)));
            rows.push(("samples a second", rate(measured.samples_per_sec)));
            if let Some(Throughput { tokens_per_sec, mfu }) = measured.throughput {
                rows.push(("tokens a second", rate(tokens_per_sec)));
                rows.extend(mfu.map(|mfu| ("model FLOPs utilisation", format!("{mfu:.3}"))));
            }
            rows.push(("time of the steps", self.time().map_or("-".into(), time)));
            if let (Some(part), false) = (&measured.scaled_from, for_people) {
                rows.push(("scaled from", part.clone()));
            }
        }
        let note = match &self.measured {
            Ok(Measured { scaled_from: Some(part), .. }) => format!(
                "Scaled in a straight line from steps of {part}, measured on `{}`. Evaluations take time \
                 on top, and the allocator keeps up to half of the memory on top.",
                self.backend
            ),
            Ok(Measured { steps, .. }) => format!(
                "Measured in {steps} steps on `{}`; evaluations take time on top.",
                self.backend
            ),
            Err(reason) => {
                format!("No step was measured: {reason}. Name a device by --device to do so.")
            }
        };
        table("Estimate", ["what", "value"], rows, note)
    }

    /// Where the time of a step goes; no rows if no step was measured.
    #[must_use]
    pub fn parts(&self) -> Table {
        let parts = self.measured.as_ref().map(|measured| measured.parts.to_vec());
        // A replayed step has no backward pass of its own.
        let parts = parts.unwrap_or_default().into_iter().filter(|(_, time)| !time.is_zero());
        let rows = parts.map(|(name, time)| (name, millis(time)));
        let note = "Median of each part.".to_owned();
        table("A step", ["part", "ms"], rows.collect(), note)
    }
}

fn table(title: &str, columns: [&str; 2], rows: Vec<(&str, String)>, note: String) -> Table {
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    Table {
        title: title.to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        names: 1,
        rows: rows.collect(),
        note,
    }
}

/// With at least two digits.
fn rate(per_sec: f64) -> String {
    let digits = if per_sec < 10.0 { 2 } else { 0 };
    format!("{per_sec:.digits$}")
}

fn millis(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

/// Time for people: `3 min 20 s`.
fn readable(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    match (days, hours, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0) => "less than 1 s".to_owned(),
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        for (seconds, text) in
            [(0, "less than 1 s"), (200, "3 min 20 s"), (7260, "2 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(readable(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_time_of_a_run_is_that_of_all_its_folds() {
        let measured = Measured {
            steps: 3,
            scaled_from: None,
            step: Duration::from_millis(500),
            parts: [("data", Duration::ZERO); 5],
            samples_per_sec: 64.0,
            throughput: None,
            memory: None,
        };
        let cost = Cost {
            backend: "flex",
            parameters: 10,
            folds: 5,
            steps: 100,
            epochs: 2.0,
            state: 160,
            precision: "f32",
            measured: Ok(measured),
        };
        assert_eq!(cost.time(), Some(Duration::from_secs(250)));
        let row = |what: &str, value: &str| vec![what.to_owned(), value.to_owned()];
        let people = cost.estimate(true).rows;
        let programs = cost.estimate(false).rows;
        assert!(people.contains(&row("folds", "5")));
        assert!(people.contains(&row("time of the steps", "4 min 10 s")));
        assert!(programs.contains(&row("time of the steps", "250")));
        assert!(programs.contains(&row("memory, weights to optimiser", "160")));
        let unknown = Cost { measured: Err("one layer is too large".to_owned()), ..cost };
        assert_eq!(unknown.time(), None);
        assert_eq!(
            unknown.estimate(true).note,
            "No step was measured: one layer is too large. Name a device by --device to do so."
        );
    }
}
