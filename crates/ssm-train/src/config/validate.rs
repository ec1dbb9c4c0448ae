//! Ranges of the engine's own values, and rules between them.

use super::{
    CheckpointSection, DeviceSection, Issue, LogSection, Optim, RunSection, Schedule, TrainSection,
};
use crate::{device, error::Error};

pub(super) fn run(run: &RunSection) -> Vec<Issue> {
    let mut issues = Vec::new();
    let name = run.name.as_str();
    let is_component = !matches!(name, "" | "." | "..") && !name.contains(['/', '\\']);
    if !is_component || name.chars().any(char::is_control) {
        issues.push(
            Issue::range("run.name", "the name of a directory", name)
                .with_hint("the place of the run is `run.dir`; the name is one part of a path"),
        );
    }
    if run.dir.as_os_str().is_empty() {
        issues.push(
            Issue::range("run.dir", "a directory", "").with_hint("`.` is the working directory"),
        );
    }
    if i64::try_from(run.seed).is_err() {
        issues.push(Issue::range("run.seed", "at most 9223372036854775807", run.seed));
    }
    issues
}

pub(super) fn device(device: &DeviceSection) -> Vec<Issue> {
    let issue = |path: &str, error| match error {
        Error::Device { message, hint, .. } => Issue { path: path.into(), message, hint },
        other => Issue::new(path, other.to_string()),
    };
    if let Err(error) = device::resolve(&device.backend, 0) {
        return vec![issue("device.backend", error)];
    }
    if let Some(issue) = at_least_one("device.replicas", device.replicas as u64) {
        return vec![issue];
    }
    match device::resolve(&device.backend, device.index) {
        Ok(backend) if device.replicas > 1 && !device::is_processor(backend) => {
            let last = device.index + device.replicas - 1;
            let found = device::resolve(backend, last);
            found.err().map(|error| issue("device.replicas", error)).into_iter().collect()
        }
        Ok(_) => Vec::new(),
        Err(error) => vec![issue("device.index", error)],
    }
}

pub(super) fn precision(train: &TrainSection, device: &DeviceSection) -> Option<Issue> {
    // A backend that cannot be used has its own issue.
    let backend = device::resolve(&device.backend, device.index).ok()?;
    let (message, hint) = device::cannot_compute(backend, train.precision)?;
    Some(Issue::new("train.precision", message).with_hint(hint))
}

pub(super) fn optim(optim: &Optim) -> Vec<Issue> {
    let path = |key: &str| format!("optim.{}.{key}", optim.name());
    let (Optim::Adam { lr, betas, eps, weight_decay }
    | Optim::AdamW { lr, betas, eps, weight_decay }) = optim;
    let mut issues = Vec::new();
    issues.extend(positive(path("lr"), *lr));
    if !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
        let got = format!("[{}, {}]", betas[0], betas[1]);
        issues.push(Issue::range(path("betas"), "two numbers in [0, 1)", got));
    }
    issues.extend(positive(path("eps"), *eps));
    if !(weight_decay.is_finite() && *weight_decay >= 0.0) {
        issues.push(Issue::range(path("weight_decay"), "a number of at least 0", weight_decay));
    }
    issues
}

pub(super) fn schedule(schedule: &Schedule, train: &TrainSection) -> Vec<Issue> {
    let mut issues = Vec::new();
    match *schedule {
        Schedule::Constant {} => {}
        Schedule::Cosine { min_factor, .. } => {
            issues.extend(unit("schedule.cosine.min_factor", min_factor));
        }
        Schedule::Wsd { decay_steps, min_factor, .. } => {
            issues.extend(unit("schedule.wsd.min_factor", min_factor));
            issues.extend(at_least_one("schedule.wsd.decay_steps", decay_steps));
        }
        Schedule::EpochDecay { gamma, hold_epochs } => {
            if !(gamma > 0.0 && gamma <= 1.0) {
                let path = "schedule.epoch_decay.gamma";
                issues.push(Issue::range(path, "a number in (0, 1]", gamma));
            }
            issues.extend(at_least_one("schedule.epoch_decay.hold_epochs", hold_epochs));
        }
    }
    // The length of a run in epochs is known only with its data; the trainer looks again then.
    if let Some(steps) = train.steps.filter(|steps| *steps < schedule.min_steps()) {
        let needed = schedule.min_steps();
        issues.push(Issue::new(
            format!("schedule.{}", schedule.name()),
            format!("warm-up and decay take {needed} steps, `train.steps` is `{steps}`"),
        ));
    }
    issues
}

pub(super) fn train(train: &TrainSection) -> Vec<Issue> {
    let mut issues = Vec::new();
    match (train.epochs, train.steps) {
        (None, None) => {
            issues.push(
                Issue::new("train", "expected one of `epochs` and `steps`, got neither")
                    .with_hint("say how long to train, as `epochs = 10` or `steps = 2000`"),
            );
        }
        (Some(_), Some(_)) => {
            issues.push(
                Issue::new("train.steps", "expected one of `epochs` and `steps`, got both")
                    .with_hint("remove one of the two"),
            );
        }
        _ => {}
    }
    // Where it is not set it equals the batch size, which has its own issue.
    let eval_batch_size = Some(train.eval_batch_size as u64);
    let eval_batch_size = eval_batch_size.filter(|size| *size != train.batch_size as u64);
    let counts = [
        ("train.epochs", train.epochs),
        ("train.steps", train.steps),
        ("train.batch_size", Some(train.batch_size as u64)),
        ("train.eval_batch_size", eval_batch_size),
        ("train.accumulate", Some(train.accumulate as u64)),
        ("train.patience", train.patience),
        ("train.eval_every_steps", train.eval_every_steps),
    ];
    for (path, count) in counts {
        issues.extend(count.and_then(|count| at_least_one(path, count)));
    }
    issues.extend(train.clip_norm.and_then(|norm| positive("train.clip_norm", norm)));
    issues
}

pub(super) fn checkpoint(checkpoint: &CheckpointSection) -> Vec<Issue> {
    let every = checkpoint.every_steps;
    let every = every.and_then(|steps| at_least_one("checkpoint.every_steps", steps));
    every.into_iter().chain(at_least_one("checkpoint.keep", checkpoint.keep as u64)).collect()
}

pub(super) fn log(log: &LogSection) -> Vec<Issue> {
    at_least_one("log.every_steps", log.every_steps).into_iter().collect()
}

fn at_least_one(path: &str, count: u64) -> Option<Issue> {
    (count == 0).then(|| Issue::range(path, "at least 1", count))
}

fn positive(path: impl Into<String>, value: f64) -> Option<Issue> {
    let ok = value.is_finite() && value > 0.0;
    (!ok).then(|| Issue::range(path, "a number above 0", value))
}

fn unit(path: &str, value: f64) -> Option<Issue> {
    (!(0.0..=1.0).contains(&value)).then(|| Issue::range(path, "a number in [0, 1]", value))
}
