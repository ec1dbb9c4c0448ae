//! Runs as a whole: what each of them came to, and several beside each other.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    checkpoint::Checkpoints,
    config,
    error::Error,
    logging,
    position::Best,
    report::{self, Figure, RunReport, Series, Table, thin},
    result::RunResult,
    resume,
    run_dir::{self, Holder, Session},
};

/// Points that a curve has at most where several runs share a figure.
const MAX_POINTS: usize = 300;

/// What a run directory says of its run, without loading a model or data.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The directory.
    pub path: PathBuf,
    /// From below the directory that was listed: `etth1`, `bags/fold_00`.
    pub name: String,
    /// The key under `[task]`; empty if the configuration cannot be read.
    pub task: String,
    /// Where it stands.
    pub status: Status,
    /// Optimiser steps: those of the newest line of the log or checkpoint, whichever is later.
    pub step: u64,
    /// The best evaluation that a checkpoint knows of, with the name of its metric.
    pub best: Option<(String, Best)>,
    /// Scores on the test split, if it is over.
    pub result: Option<RunResult>,
    /// When its first process started, in UTC.
    pub started: String,
    /// What computed it last.
    pub backend: String,
    /// The processes that worked on it, in order.
    pub sessions: Vec<Session>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A process works on it.
    Running(Option<u32>),
    /// It has a result.
    Done,
    /// It has a checkpoint to go on from.
    Stopped,
    /// It has begun and saved nothing.
    Begun,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running(_) => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Begun => "begun",
        })
    }
}

/// Every run below a directory, folds included, in the order of their names.
///
/// # Errors
/// [`Error::Usage`] for a directory that is not there, [`Error::Io`] for one that cannot be listed.
pub fn runs(dir: &Path) -> Result<Vec<Overview>, Error> {
    let mut found = Vec::new();
    for path in run_dir::below(dir)? {
        for fold in run_dir::below(&path)? {
            found.extend(Overview::of(&fold, dir));
        }
        found.extend(Overview::of(&path, dir));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Overview {
    /// Of the run in `path`, named from below `dir`; `None` if there is no run.
    fn of(path: &Path, dir: &Path) -> Option<Self> {
        let text = run_dir::config_text(path).ok()?;
        let task = config::task_name(&text, "", &[]).unwrap_or_default();
        let rows = logging::rows(&path.join(run_dir::METRICS)).unwrap_or_default();
        let checkpoints = Checkpoints::of_run(path);
        let saved = checkpoints.steps().unwrap_or_default().pop();
        let logged = rows.iter().filter_map(|row| row["step"].as_u64()).max();
        let best = saved.and_then(|step| checkpoints.peek(step)?.best);
        let result = RunResult::load(&path.join(run_dir::RESULT));
        let info = run_dir::info(path).ok();
        let sessions = info.map(|info| info.sessions).unwrap_or_default();
        let known = saved.into_iter().chain(logged).chain(result.iter().map(|r| r.steps)).max();
        // One that has begun and logged nothing yet is listed; a configuration alone is no run.
        let step = known.or((!sessions.is_empty()).then_some(0))?;
        let status = match (run_dir::holder(path), &result, saved) {
            (Holder::Process(pid), ..) => Status::Running(pid),
            (Holder::Nobody, Some(_), _) => Status::Done,
            (Holder::Nobody, None, Some(_)) => Status::Stopped,
            (Holder::Nobody, None, None) => Status::Begun,
        };
        Some(Self {
            path: path.to_owned(),
            name: path.strip_prefix(dir).unwrap_or(path).display().to_string(),
            task,
            status,
            step,
            best: best.and_then(|best| Some((metric_of(&rows, best)?, best))),
            result,
            started: sessions.first().map(|first| first.started.clone()).unwrap_or_default(),
            backend: sessions.last().map(|last| last.backend.clone()).unwrap_or_default(),
            sessions,
        })
    }
}

/// The metric that selects is not written down by name: it is the score of the best evaluation that
/// has the best value.
fn metric_of(rows: &[Value], best: Best) -> Option<String> {
    let is_best = |row: &&Value| row["split"] == "valid" && row["step"] == best.step;
    let scores = rows.iter().rev().find(is_best)?.as_object()?;
    let close = |value: &Value| {
        // JSON may miss the last bit.
        value.as_f64().is_some_and(|value| (value - best.value).abs() <= 1e-12 * value.abs())
    };
    let not_scores = ["step", "epoch", "elapsed_secs"];
    let mut named =
        scores.iter().filter(|(key, value)| !not_scores.contains(&key.as_str()) && close(value));
    named.next().map(|(key, _)| key.clone())
}

/// The runs as a table.
#[must_use]
pub fn table(runs: &[Overview]) -> Table {
    let row = |run: &Overview| {
        let (metric, value, at) = match &run.best {
            Some((metric, best)) => {
                (metric.clone(), format!("{:.4}", best.value), best.step.to_string())
            }
            None => ("-".into(), "-".into(), "-".into()),
        };
        let started = run.started.split('.').next().unwrap_or_default().replace('T', " ");
        vec![
            run.name.clone(),
            run.task.clone(),
            run.status.to_string(),
            run.step.to_string(),
            metric,
            value,
            at,
            run.backend.clone(),
            started.trim_end_matches('Z').to_owned(),
        ]
    };
    let columns =
        ["run", "task", "status", "step", "metric", "best", "at step", "backend", "started"];
    Table {
        title: "Runs".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        names: 3,
        rows: runs.iter().map(row).collect(),
        note: String::new(),
    }
}

/// Several runs on one page: scores, what their configurations differ in, and their curves.
///
/// Returns the page as HTML and its tables.
///
/// # Errors
/// [`Error::Usage`] for a directory without a run, [`Error::Io`] for files that cannot be read.
pub fn compare(paths: &[PathBuf]) -> Result<(String, Vec<Table>), Error> {
    let names = names(paths);
    let mut runs = Vec::new();
    let mut logs = Vec::new();
    let mut configs = Vec::new();
    for (path, name) in paths.iter().zip(&names) {
        configs.push(run_dir::config_text(path)?);
        let run = Overview::of(path, path).filter(|run| run.step > 0);
        let run = run.ok_or_else(|| Error::Usage {
            message: format!("the run `{}` has not logged anything yet", path.display()),
            hint: Some("compare runs that have trained for a while".into()),
        })?;
        runs.push(Overview { name: name.clone(), ..run });
        let log = path.join(run_dir::METRICS);
        logs.push(if log.exists() { logging::rows(&log)? } else { Vec::new() });
    }
    let curves: Vec<(String, &[Value])> =
        names.iter().cloned().zip(logs.iter().map(Vec::as_slice)).collect();
    let mut tables = vec![table(&runs)];
    tables.extend(scores(&runs));
    tables.extend(differences(&names, &configs));
    tables.extend(changes(&runs));
    let page = report::html(&RunReport {
        name: "Comparison of runs".to_owned(),
        subtitle: vec![names.join(", ")],
        facts: Vec::new(),
        tables: tables.clone(),
        figures: panels(&curves),
    });
    Ok((page, tables))
}

/// The last part of each path, or as many as it takes to tell them apart.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = paths
        .iter()
        .map(|path| path.components().map(|c| c.as_os_str().to_string_lossy().into()).collect())
        .collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    let named = |n: usize| -> Vec<String> {
        parts.iter().map(|parts| parts[parts.len().saturating_sub(n)..].join("/")).collect()
    };
    let distinct = |names: &[String]| {
        names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len()
    };
    (1..longest).map(named).find(|names| distinct(names)).unwrap_or_else(|| named(longest))
}

/// Scores on the test split, one row a run; `None` if no run is over.
fn scores(runs: &[Overview]) -> Option<Table> {
    let results = || runs.iter().filter_map(|run| run.result.as_ref());
    let mut metrics: Vec<&String> = results().flat_map(|result| result.metrics.keys()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    if metrics.is_empty() {
        return None;
    }
    let row = |run: &Overview| {
        let score = |metric: &&String| {
            let score = run.result.as_ref().and_then(|result| result.metrics.get(*metric));
            score.map_or_else(|| "-".to_owned(), |score| format!("{score:.4}"))
        };
        std::iter::once(run.name.clone()).chain(metrics.iter().map(score)).collect()
    };
    Some(Table {
        title: "Test scores".to_owned(),
        columns: std::iter::once("run".to_owned())
            .chain(metrics.iter().copied().cloned())
            .collect(),
        names: 1,
        rows: runs.iter().map(row).collect(),
        note: String::new(),
    })
}

/// Keys that not all configurations have the same value of; `None` if there are none.
fn differences(names: &[String], configs: &[String]) -> Option<Table> {
    let values: Vec<_> =
        configs.iter().map(|text| config::values(text).unwrap_or_default()).collect();
    let mut keys: Vec<&String> = values.iter().flat_map(|values| values.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let differs = |key: &&String| {
        let mut all = values.iter().map(|values| values.get(*key));
        let first = all.next();
        *key != "run.name" && all.any(|value| Some(value) != first)
    };
    let row = |key: &String| {
        let cell = |values: &std::collections::BTreeMap<String, toml::Value>| {
            values.get(key).map_or_else(|| "-".to_owned(), toml::Value::to_string)
        };
        std::iter::once(key.clone()).chain(values.iter().map(cell)).collect()
    };
    let rows: Vec<Vec<String>> = keys.into_iter().filter(differs).map(row).collect();
    (!rows.is_empty()).then(|| Table {
        title: "Differences of the configurations".to_owned(),
        columns: std::iter::once("key".to_owned()).chain(names.iter().cloned()).collect(),
        names: 1,
        rows,
        note: String::new(),
    })
}

/// What runs were resumed with: two that have the same configuration in the end may have come to it on
/// different ways. `None` if none was resumed with another one.
fn changes(runs: &[Overview]) -> Option<Table> {
    let of_run = |run: &Overview| Some((run.name.clone(), resume::history(&run.sessions)?));
    let mut histories = runs.iter().filter_map(of_run).peekable();
    let (_, Table { title, columns, .. }) = histories.peek()?.clone();
    let rows = histories.flat_map(|(name, table)| {
        table.rows.into_iter().map(move |row| std::iter::once(name.clone()).chain(row).collect())
    });
    Some(Table {
        title,
        columns: std::iter::once("run".to_owned()).chain(columns).collect(),
        names: 1,
        rows: rows.collect(),
        note: String::new(),
    })
}

/// Training curves and validation scores of several logs, one panel a quantity, one curve a log.
pub(crate) fn panels(logs: &[(String, &[Value])]) -> Vec<Figure> {
    let mut by_title: Vec<(String, Vec<Series>)> = Vec::new();
    for (name, rows) in logs {
        for figure in report::training_figures(rows) {
            let panels = match figure {
                Figure::Panels { panels, .. } => panels,
                other => vec![other],
            };
            for panel in panels {
                let Figure::Lines { title, y_label, series, .. } = panel else { continue };
                for Series { name: curve, points } in series {
                    // Of the figures of a run only that of the loss has a second curve.
                    let title = match curve.as_str() {
                        "validation" => format!("Validation {y_label}"),
                        _ => title.clone(),
                    };
                    let series = Series { name: name.clone(), points: thin(&points, MAX_POINTS) };
                    match by_title.iter_mut().find(|(known, _)| *known == title) {
                        Some((_, all)) => all.push(series),
                        None => by_title.push((title, vec![series])),
                    }
                }
            }
        }
    }
    by_title.retain(|(title, _)| title != "Learning rate");
    // A run has one colour in all panels, also beside panels that it has no curve in.
    for (_, all) in &mut by_title {
        let mut curves = std::mem::take(all).into_iter().peekable();
        *all = logs
            .iter()
            .map(|(name, _)| {
                let found = curves.next_if(|curve| curve.name == *name);
                found.unwrap_or_else(|| Series { name: name.clone(), points: Vec::new() })
            })
            .collect();
        // The second colour is a grey, for what something is compared with; here all are equals.
        all.insert(1, Series::default());
    }
    if by_title.is_empty() {
        return Vec::new();
    }
    let panels = by_title.into_iter().map(|(title, series)| Figure::Lines {
        title,
        x_label: "optimiser steps".to_owned(),
        y_label: String::new(),
        series,
        note: String::new(),
    });
    vec![Figure::Panels {
        title: "Training".to_owned(),
        panels: panels.collect(),
        note: String::new(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_long_as_they_have_to_be() {
        let paths = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(paths(&["runs/a", "runs/b"]), ["a", "b"]);
        assert_eq!(paths(&["x/a/fold_00", "x/b/fold_00"]), ["a/fold_00", "b/fold_00"]);
        assert_eq!(paths(&["runs/a", "runs/a"]), ["runs/a", "runs/a"]);
    }

    #[test]
    fn a_run_has_one_place_in_every_panel() {
        let log = |metric: &str| {
            let row = |step: u64| serde_json::json!({"step": step, "split": "valid", metric: 0.5});
            vec![row(1), row(2)]
        };
        let logs = [("a".to_owned(), log("mse")), ("b".to_owned(), log("auc"))];
        let logs: Vec<(String, &[Value])> =
            logs.iter().map(|(name, rows)| (name.clone(), rows.as_slice())).collect();
        let [Figure::Panels { panels, .. }] = &panels(&logs)[..] else { panic!("one group") };
        let drawn = |panel: &Figure| match panel {
            Figure::Lines { series, .. } => {
                series.iter().map(|one| (one.name.clone(), one.points.len())).collect::<Vec<_>>()
            }
            _ => panic!("curves"),
        };
        let curves: Vec<_> = panels.iter().map(drawn).collect();
        let of = |name: &str, points: usize| (name.to_owned(), points);
        assert_eq!(
            curves,
            [[of("a", 2), of("", 0), of("b", 0)], [of("a", 0), of("", 0), of("b", 2)]]
        );
    }

    #[test]
    fn configurations_differ_by_key() {
        let configs =
            ["[run]\nname = 'a'\n[optim.adam]\nlr = 1", "[run]\nname = 'b'\n[optim.adam]\nlr = 2"];
        let names = ["a".to_owned(), "b".to_owned()];
        let table = differences(&names, &configs.map(str::to_owned)).unwrap();
        assert_eq!(table.rows, [["optim.adam.lr", "1", "2"]]);
        assert_eq!(differences(&names, &[configs[0].into(), configs[0].into()]), None);
    }
}
