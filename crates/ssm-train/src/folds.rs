//! Several runs that differ in their splits, trained one after the other and reported together.
//!
//! Every fold is a run like any other, in `<run>/fold_00`, `<run>/fold_01` and so on, with its own
//! checkpoints: an interrupted series goes on in the fold and at the step where it stood. Folds may
//! also be trained by several processes, each with its own `run.fold`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    atomic,
    conclusion::Summary,
    config::{Config, Issue},
    error::Error,
    logging, overview,
    report::{self, Figure, RunReport, Table},
    result::RunResult,
    run_dir::{self, RunDir},
    task::{Metrics, Outcome, Task, TaskConfig},
    trainer::{TrainOptions, train_in},
    world::World,
};

/// Curves that a figure over folds shows at most.
const MAX_CURVES: usize = 10;

/// As [`train`](crate::train), for a task with folds all of them, or the one that `run.fold` names.
///
/// Once every fold has a result, `result.json` and `report.html` of the whole are written beside them.
/// Of several processes in `world` every one makes this call; `None` for those that do not lead.
///
/// # Errors
/// Everything of [`Error`].
pub fn train_all<T: Task>(
    config: &Config<T::Config>,
    options: &TrainOptions,
    world: &World,
) -> Result<Option<Summary>, Error> {
    let n_folds = T::n_folds(&config.task, &config.data, &options.data_dirs)?;
    let run = config.run.path();
    let chosen = match config.run.fold {
        Some(fold) if fold >= n_folds => {
            let issue = Issue::range("run.fold", &format!("less than {n_folds}, the folds"), fold);
            return Err(config.refuse(vec![issue]));
        }
        Some(fold) if n_folds > 1 => fold..fold + 1,
        _ if n_folds > 1 => 0..n_folds,
        _ => return train_in::<T>(config, options, world),
    };
    let began = |fold: usize| run.join(name(fold)).join("config.toml").exists();
    if !world.leads() {
        // Files are for the one that does.
    } else if !options.resume {
        // All of them before the first begins, which may take days.
        for fold in chosen.clone() {
            RunDir::check(&run.join(name(fold)), false)?;
        }
    } else if !chosen.clone().any(began) {
        return Err(Error::Usage {
            message: format!("nothing to resume in `{}`", run.display()),
            hint: Some("start the run without `--resume`, or check `run.name`".into()),
        });
    }
    let mut last = None;
    for fold in chosen {
        tracing::info!("fold {fold}, number {} of {n_folds}", fold + 1);
        let mut part = config.clone();
        part.run.dir.clone_from(&run);
        part.run.name = name(fold);
        part.run.fold = Some(fold);
        let resume = options.resume && began(fold);
        last = train_in::<T>(&part, &TrainOptions { resume, ..options.clone() }, world)?;
    }
    if !world.leads() {
        return Ok(None);
    }
    let missing = (0..n_folds).filter(|fold| load(&run, *fold).is_none()).count();
    match last {
        Some(summary) if missing > 0 => {
            tracing::info!("no common report yet: {missing} of {n_folds} folds have no result");
            Ok(Some(summary))
        }
        _ => conclude::<T>(config, &run, n_folds).map(Some),
    }
}

/// Directory of a fold below that of the run.
fn name(fold: usize) -> String {
    format!("fold_{fold:02}")
}

fn load(run: &Path, fold: usize) -> Option<RunResult> {
    RunResult::load(&run.join(name(fold)).join("result.json"))
}

/// Combines the results of all folds; writes the report and the result of the whole.
pub(crate) fn conclude<T: Task>(
    config: &Config<T::Config>,
    run: &Path,
    n_folds: usize,
) -> Result<Summary, Error> {
    let results: Vec<RunResult> = (0..n_folds).filter_map(|fold| load(run, fold)).collect();
    let outcome = T::combine(&config.task, &config.data, &results)?;
    let steps = results.iter().map(|result| result.steps).sum();
    let result = RunResult::new(steps, steps, &Outcome { details: Value::Null, ..outcome.clone() });
    let mut whole = config.clone();
    whole.run.fold = None;
    // Processes that train the last folds may end at the same time.
    let _turn = run_dir::turn(run)?;
    atomic::replace(&run.join("config.toml"), whole.to_toml().as_bytes())?;
    let report = run.join("report.html");
    atomic::replace(&report, page::<T>(config, run, n_folds, outcome)?.as_bytes())?;
    result.save(&run.join("result.json"))?;
    Ok(Summary {
        run_dir: run.to_owned(),
        report,
        metric: String::new(),
        best: None,
        stopped_early: false,
        result,
        changes: None,
    })
}

fn page<T: Task>(
    config: &Config<T::Config>,
    run: &Path,
    n_folds: usize,
    outcome: Outcome,
) -> Result<String, Error> {
    let info = run_dir::info(&run.join(name(0)))?;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("task", <T::Config as TaskConfig>::NAME.to_owned()),
        fact("folds", n_folds.to_string()),
        fact("seed", config.run.seed.to_string()),
        fact("parameters", info.parameters.to_string()),
    ];
    let subtitle = vec![format!("{} (first fold)", info.data)];
    if let Some(session) = info.sessions.last() {
        facts.push(fact("backend", session.backend.clone()));
        facts.push(fact("processors", session.cpus.to_string()));
        facts.extend(session.build_commit.clone().map(|commit| fact("built from commit", commit)));
    }
    let mut figures = outcome.figures;
    figures.extend(training_curves(run, n_folds)?);
    Ok(report::html(&RunReport {
        name: config.run.name.clone(),
        subtitle,
        facts,
        tables: outcome.tables,
        figures,
    }))
}

/// Training loss and validation scores, one curve a fold.
fn training_curves(run: &Path, n_folds: usize) -> Result<Vec<Figure>, Error> {
    let mut logs = Vec::new();
    for fold in 0..n_folds.min(MAX_CURVES) {
        let path: PathBuf = run.join(name(fold)).join(run_dir::METRICS);
        logs.push((name(fold), logging::rows(&path)?));
    }
    let logs: Vec<_> = logs.iter().map(|(name, rows)| (name.clone(), rows.as_slice())).collect();
    let mut figures = overview::panels(&logs);
    if let [Figure::Panels { note, .. }] = &mut figures[..]
        && n_folds > MAX_CURVES
    {
        *note = format!("The first {MAX_CURVES} of {n_folds} folds.");
    }
    Ok(figures)
}

/// Every score of every fold, with mean and standard deviation.
///
/// A score that is not finite in a fold is shown as `undefined` and left out of the mean, which then
/// says how many folds it is of.
pub fn scores(folds: &[RunResult]) -> Outcome {
    let mut names: Vec<&String> = folds.iter().flat_map(|fold| fold.metrics.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let mut metrics = Metrics::new();
    let mut summary = vec!["mean ± sd".to_owned()];
    for name in &names {
        let values: Vec<f64> = folds
            .iter()
            .filter_map(|fold| fold.metrics.get(*name).copied())
            .filter(|value| value.is_finite())
            .collect();
        let (mean, deviation) = mean_and_deviation(&values);
        metrics.insert((*name).clone(), mean);
        metrics.insert(format!("{name}_sd"), deviation);
        summary.push(match values.len() {
            0 => "undefined".to_owned(),
            n if n == folds.len() => format!("{mean:.4} ± {deviation:.4}"),
            n => format!("{mean:.4} ± {deviation:.4} ({n} folds)"),
        });
    }
    let mut rows: Vec<Vec<String>> = folds
        .iter()
        .enumerate()
        .map(|(fold, result)| {
            let cell = |name: &&String| match result.metrics.get(*name) {
                Some(value) if value.is_finite() => format!("{value:.4}"),
                _ => "undefined".to_owned(),
            };
            std::iter::once(fold.to_string()).chain(names.iter().map(cell)).collect()
        })
        .collect();
    rows.push(summary);
    let columns = std::iter::once("fold".to_owned()).chain(names.into_iter().cloned());
    let table = Table {
        title: format!("Test scores of {} folds", folds.len()),
        columns: columns.collect(),
        rows,
        note: "sd: standard deviation over folds, with n - 1.".to_owned(),
        ..Table::default()
    };
    Outcome { metrics, tables: vec![table], ..Outcome::default() }
}

/// Mean, and standard deviation with `n - 1`; not a number where there are too few values.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { f64::NAN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_folds_are_averaged_where_they_are_defined() {
        let fold = |auc: f64, loss: f64| RunResult {
            metrics: Metrics::from([("auc".into(), auc), ("loss".into(), loss)]),
            ..RunResult::default()
        };
        let outcome = scores(&[fold(0.5, 1.0), fold(f64::NAN, 2.0), fold(1.0, 3.0)]);
        assert_eq!(outcome.metrics["auc"], 0.75);
        assert_eq!(outcome.metrics["loss"], 2.0);
        assert_eq!(outcome.metrics["loss_sd"], 1.0);
        let table = &outcome.tables[0];
        assert_eq!(table.columns, ["fold", "auc", "loss"]);
        assert_eq!(table.rows[1], ["1", "undefined", "2.0000"]);
        assert_eq!(table.rows[3], ["mean ± sd", "0.7500 ± 0.3536 (2 folds)", "2.0000 ± 1.0000"]);
    }
}
