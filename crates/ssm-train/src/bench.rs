//! What a configuration costs, found out by doing its first steps; nothing is written.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use burn::module::Module;

use crate::{
    config::Config,
    device,
    error::Error,
    gradients::Accumulation,
    machine, optim,
    plan::{Plan, step_seed},
    report::Table,
    task::{Task, Throughput},
};

/// Weights, gradients and both moments of the optimiser, in bytes for each parameter.
const STATE_BYTES: u64 = 4 * 4;

/// How many steps are measured at most.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Steps after the first, which is not counted: it compiles kernels and fills caches. With 0 no
    /// step is done at all.
    pub steps: u64,
    /// Time for all of them; one is measured in any case.
    pub time: Duration,
    /// No step is done with a larger model.
    pub parameters: Option<usize>,
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
    /// What steps took, if any were done.
    pub measured: Option<Measured>,
}

/// What steps took.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Number of steps.
    pub steps: u64,
    /// Median time of a step.
    pub step: Duration,
    /// Median time of each part of a step. On a GPU the time to hand over the work; `norm` waits for
    /// it to be done.
    pub parts: [(&'static str, Duration); 5],
    /// Samples a second.
    pub samples_per_sec: f64,
    /// The same in tokens, of a task that reads tokens.
    pub throughput: Option<Throughput>,
    /// Memory that the device or the process holds after the steps, in bytes, where it is known.
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
    let device = device::open_for(backend, config.device.index, config.train.precision)?.autodiff();
    let folds = T::n_folds(&config.task, &config.data, data_dirs)?;
    let settings = config.settings(data_dirs.to_vec());
    let (task, mut model) = T::new(&config.task, &config.data, &config.model, &settings, &device)?;
    let plan = Plan::of(config, task.batches_per_epoch())?;
    let parameters = model.num_params();
    let mut cost = Cost {
        backend,
        parameters,
        folds: if config.run.fold.is_some() { 1 } else { folds },
        steps: plan.total_steps,
        epochs: plan.total_steps as f64 / plan.steps_per_epoch as f64,
        state: parameters as u64 * STATE_BYTES,
        precision: config.train.precision.name(),
        measured: None,
    };
    if limit.steps == 0 || limit.parameters.is_some_and(|most| parameters > most) {
        return Ok(cost);
    }
    let mut optimizer = optim::build(&config.optim, &model, &device);
    let on_host = device::is_host(&device);
    let failed = |message: String| Error::Device {
        device: backend.to_owned(),
        message,
        hint: Some("a smaller `train.batch_size` with `train.accumulate` needs less memory".into()),
    };
    let started = Instant::now();
    let mut laps: Vec<[Duration; 5]> = Vec::new();
    let mut samples = Vec::new();
    for step in 0..=limit.steps.min(plan.total_steps) {
        let mut lap = [Duration::ZERO; 5];
        let mut clock = Instant::now();
        let mut end = |part: usize, lap: &mut [Duration; 5]| {
            lap[part] += clock.elapsed();
            clock = Instant::now();
        };
        device.seed(step_seed(config.run.seed, step));
        let batches = plan.micro_batches(step);
        let mut sum = Accumulation::new(batches.end - batches.start);
        for index in batches {
            let batch = task.batch(index)?;
            end(0, &mut lap);
            let loss = task.loss(&model, batch);
            end(1, &mut lap);
            sum.add(&model, loss);
            end(2, &mut lap);
        }
        let gradient = sum.finish(&model, config.train.clip_norm, on_host);
        let gradient = gradient.map_err(|error| failed(error.to_string()))?;
        end(3, &mut lap);
        samples.push(gradient.weight);
        model = optim::step(&mut optimizer, config.optim.lr(), model, gradient.params);
        device.sync().map_err(|error| failed(error.to_string()))?;
        end(4, &mut lap);
        laps.push(lap);
        if step > 0 && started.elapsed() > limit.time {
            break;
        }
    }
    let (laps, samples) = (&laps[1..], &samples[1..]);
    let total: Duration = laps.iter().flatten().sum();
    let part = |part: usize| median(laps.iter().map(|lap| lap[part]).collect());
    let names = ["data", "forward", "backward", "norm", "optimizer"];
    let mut parts = names.map(|name| (name, Duration::ZERO));
    for (index, (_, time)) in parts.iter_mut().enumerate() {
        *time = part(index);
    }
    let pools = device.memory_pool_usage();
    let samples_per_sec = samples.iter().sum::<f64>() / total.as_secs_f64();
    let peak = device::peak_flops(&device, config.train.precision);
    cost.measured = Some(Measured {
        steps: laps.len() as u64,
        step: median(laps.iter().map(|lap| lap.iter().sum()).collect()),
        parts,
        samples_per_sec,
        throughput: task.work(&model).map(|work| work.throughput(samples_per_sec, peak)),
        memory: pools.map(|pools| pools.bytes_reserved).or_else(machine::resident),
    });
    Ok(cost)
}

/// Zero for no times at all.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

impl Cost {
    /// Time of all steps of all folds, if any were measured; evaluations come on top.
    #[must_use]
    pub fn time(&self) -> Option<Duration> {
        let steps = self.steps.saturating_mul(self.folds as u64);
        let step = self.measured.as_ref()?.step.as_secs_f64();
        Duration::try_from_secs_f64(step * steps as f64).ok()
    }

    /// What the run will take, as a table.
    #[must_use]
    pub fn estimate(&self) -> Table {
        let mut rows = vec![
            ("parameters", self.parameters.to_string()),
            ("precision", self.precision.to_owned()),
            ("optimiser steps", self.steps.to_string()),
            ("epochs", format!("{:.2}", self.epochs)),
        ];
        if self.folds > 1 {
            rows.push(("folds", self.folds.to_string()));
        }
        rows.push(("memory, weights to optimiser", machine::readable(self.state)));
        if let Some(measured) = &self.measured {
            let memory = measured.memory.map_or_else(|| "-".to_owned(), machine::readable);
            rows.push(("memory, all, measured", memory));
            rows.push(("milliseconds a step", millis(measured.step)));
            rows.push(("samples a second", format!("{:.0}", measured.samples_per_sec)));
            if let Some(Throughput { tokens_per_sec, mfu }) = measured.throughput {
                rows.push(("tokens a second", format!("{tokens_per_sec:.0}")));
                rows.extend(mfu.map(|mfu| ("model FLOPs utilisation", format!("{mfu:.3}"))));
            }
            rows.push(("time of the steps", self.time().map_or("-".into(), readable)));
        }
        let note = match &self.measured {
            Some(measured) => format!(
                "Measured in {} steps on `{}`; evaluations take time on top.",
                measured.steps, self.backend
            ),
            None => "No step was measured: name a device by --device to do so.".to_owned(),
        };
        table("Estimate", ["what", "value"], rows, note)
    }

    /// Where the time of a step goes; no rows if no step was measured.
    #[must_use]
    pub fn parts(&self) -> Table {
        let parts = self.measured.as_ref().map(|measured| measured.parts.to_vec());
        let rows = parts.unwrap_or_default().into_iter().map(|(name, time)| (name, millis(time)));
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
            measured: Some(measured),
        };
        assert_eq!(cost.time(), Some(Duration::from_secs(250)));
        assert!(cost.estimate().rows.contains(&vec!["folds".to_owned(), "5".to_owned()]));
        assert_eq!(Cost { measured: None, ..cost }.time(), None);
    }
}
