//! The end of a run: the test split, `result.json` and `report.html`.

use std::path::{Path, PathBuf};

use crate::{
    atomic,
    checkpoint::Checkpoints,
    config::{Config, DeviceSection},
    error::Error,
    folds,
    loading::{self, load_model},
    logging,
    plan::Plan,
    position::{Best, Position},
    report::{self, RunReport, Table},
    result::RunResult,
    resume,
    run_dir::{self, Holder, RunDir},
    task::{Outcome, Task, TaskConfig},
};

/// What a run came to, for the terminal.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Its `report.html`.
    pub report: PathBuf,
    /// Name of the metric that selected the weights.
    pub metric: String,
    /// The best evaluation on the validation split, if one was finite.
    pub best: Option<Best>,
    /// Whether patience ended the run before its last step.
    pub stopped_early: bool,
    /// Scores on the test split, with tables.
    pub result: RunResult,
    /// What the configuration was before, if the run was resumed with another one.
    pub changes: Option<Table>,
}

impl Summary {
    /// Tables for the terminal; the first one sums the run up.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        self.result.tables.iter().chain(&self.changes).cloned().collect()
    }
}

/// Scores the best weights on the test split, unless that was done before.
///
/// `model` lends its structure: its weights are replaced.
pub(crate) fn conclude<T: Task>(
    config: &Config<T::Config>,
    run: &RunDir,
    task: &T,
    model: &T::Model,
    plan: &Plan,
    position: &Position,
) -> Result<Summary, Error> {
    let written = RunResult::load(&run.result()).filter(|result| result.steps == position.step);
    let result = match written {
        Some(result) => result,
        None => {
            if position.best.is_none() {
                tracing::warn!(
                    "no evaluation was finite, or the best is lost: scoring the last weights"
                );
            }
            let checkpoint = run.checkpoints().load(position.best_or_last())?;
            let model = checkpoint.model(model.clone())?;
            tracing::info!("scoring step {} on the test split", position.best_or_last());
            let outcome = tracing::trace_span!("conclude").in_scope(|| task.conclude(&model))?;
            let result = RunResult::new(position.step, position.best_or_last(), &outcome);
            let page = page(config, run.path(), task, position, outcome)?;
            atomic::replace(&run.report(), page.as_bytes())?;
            // Last: where it is, the run is concluded.
            result.save(&run.result())?;
            result
        }
    };
    Ok(Summary {
        run_dir: run.path().to_owned(),
        report: run.report(),
        metric: task.selection().metric.to_owned(),
        best: position.best,
        stopped_early: position.out_of_patience(config.train.patience) && !plan.ends(position.step),
        result,
        changes: resume::history(&run_dir::info(run.path())?.sessions),
    })
}

/// Makes the report of a run, or of its folds, again from what the run left; returns where it is.
///
/// A run that is over is scored once more, for its figures: its data has to be there. One that is not
/// gets a page of its training so far, also while another process trains it.
///
/// # Errors
/// As [`load_model`], [`Error::RunInUse`] for a run that another process takes up at that moment, and
/// [`Error::Save`].
pub fn rebuild<T: Task>(
    run_dir: &Path,
    device: Option<&DeviceSection>,
    data_dirs: Vec<PathBuf>,
) -> Result<PathBuf, Error> {
    let config = loading::config_of::<T::Config>(run_dir)?;
    let n_folds = T::n_folds(&config.task, &config.data, &data_dirs)?;
    if n_folds > 1 && config.run.fold.is_none() {
        return Ok(folds::conclude::<T>(&config, run_dir, n_folds)?.report);
    }
    // A run that is in training belongs to the process that trains it.
    let held = match run_dir::holder(run_dir) {
        Holder::Process(_) => None,
        Holder::Nobody => Some(RunDir::open(run_dir, true)?),
    };
    let newest = Checkpoints::of_run(run_dir).load_newest()?.ok_or_else(|| Error::Checkpoint {
        path: run_dir.to_owned(),
        message: "there is none yet".into(),
        hint: Some("train the run first".into()),
    })?;
    let is_over = || RunResult::load(&run_dir.join(run_dir::RESULT)).is_some();
    let (config, task, model) = load_model::<T>(run_dir, device, data_dirs)?;
    let outcome =
        if held.is_some() && is_over() { task.conclude(&model)? } else { Outcome::default() };
    let page = page(&config, run_dir, &task, newest.position(), outcome)?;
    let report = run_dir.join(run_dir::REPORT);
    atomic::sweep(run_dir)?;
    // One that is over by now has written a page that holds more.
    if held.is_some() || !is_over() {
        atomic::replace(&report, page.as_bytes())?;
    }
    Ok(report)
}

/// The report of the run in a directory.
fn page<T: Task>(
    config: &Config<T::Config>,
    run_dir: &Path,
    task: &T,
    position: &Position,
    outcome: Outcome,
) -> Result<String, Error> {
    let rows = logging::rows(&run_dir.join(run_dir::METRICS))?;
    let mut figures = outcome.figures;
    figures.extend(report::training_figures(&rows));
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("task", <T::Config as TaskConfig>::NAME.to_owned()),
        fact("seed", config.run.seed.to_string()),
        fact("steps", position.step.to_string()),
        fact("scored step", position.best_or_last().to_string()),
    ];
    if let Some(best) = position.best {
        facts.push(fact(
            &format!("best validation {}", task.selection().metric),
            format!("{:.6}", best.value),
        ));
    }
    let info = run_dir::info(run_dir)?;
    facts.push(fact("parameters", info.parameters.to_string()));
    if let Some(session) = info.sessions.last() {
        facts.push(fact("backend", session.backend.clone()));
        facts.push(fact("instructions", session.simd.clone()));
        facts.push(fact("processors", session.cpus.to_string()));
        facts.push(fact("version", format!("{} on Burn {}", session.version, session.burn)));
        facts.extend(session.build_commit.clone().map(|commit| fact("built from commit", commit)));
    }
    let mut tables = outcome.tables;
    tables.extend(resume::history(&info.sessions));
    Ok(report::html(&RunReport {
        name: config.run.name.clone(),
        subtitle: vec![task.describe()],
        facts,
        tables,
        figures,
    }))
}
