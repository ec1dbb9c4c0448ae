//! What a fold, and all folds together, have to show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use ssm_train::{
    error::Error,
    folds,
    report::{Figure, Series, Table},
    result::RunResult,
    task::{Outcome, Split},
};

use super::{
    MilTask,
    config::MilOptions,
    metrics::{Predictions, Score, bootstrap},
    model::BagModel,
    score::{Scored, score},
    survival::{FollowUp, concordance, kaplan_meier, log_rank},
};

/// What a fold leaves for the common report.
#[derive(Debug, Serialize, Deserialize)]
struct Details {
    classes: Vec<String>,
    samples: Vec<Sample>,
    /// Why scores are missing.
    undefined: Vec<(String, String)>,
    /// What the audit found and let pass.
    #[serde(default)]
    warnings: Vec<String>,
}

/// One scored slide.
#[derive(Debug, Serialize, Deserialize)]
struct Sample {
    slide: String,
    case: String,
    #[serde(flatten)]
    result: Prediction,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Prediction {
    Class { class: usize, probabilities: Vec<f64> },
    Survival { time: f64, event: bool, risk: f64 },
}

/// Scores one fold on its test slides.
pub(super) fn conclude(task: &MilTask, model: &BagModel) -> Result<Outcome, Error> {
    let scored = score(task, model, Split::Test)?;
    let scores = scored.scores();
    let undefined = scores.iter().filter_map(|(name, score)| {
        score.as_ref().err().map(|reason| ((*name).to_owned(), reason.clone()))
    });
    let details = Details {
        classes: task.artifacts.classes.clone(),
        samples: samples(task, &scored),
        undefined: undefined.collect(),
        warnings: task.warnings.clone(),
    };
    let fold = task.settings.fold;
    let title = format!("Test scores of {} on {}, fold {fold}", task.model, task.cohort.name);
    let patients = by_patient(details.samples.iter());
    let rows = intervals(&scored, scores, &patients, task.options.bootstrap, task.settings.seed);
    let mut tables = vec![score_table(title, rows)];
    let mut metrics = scored.metrics();
    if let Some(value) = oracle(task, &scored) {
        metrics.insert("oracle_c_index".to_owned(), value);
        let row = ["c_index of the true risks".to_owned(), format!("{value:.4}"), String::new()];
        tables[0].rows.push(row.to_vec());
    }
    if !task.warnings.is_empty() {
        tables.push(warning_table(task.warnings.clone()));
    }
    let mut figures = Vec::new();
    match &scored {
        Scored::Classes { predictions, .. } => {
            tables.push(confusion_table(predictions, &task.artifacts.classes));
            figures.extend(roc_figure(
                vec![("test".to_owned(), predictions.clone())],
                &details.classes,
            ));
        }
        Scored::Survival { patients, .. } => {
            let groups = by_median_risk(std::slice::from_ref(patients));
            figures.push(survival_figure(&groups));
        }
    }
    Ok(Outcome { metrics, tables, figures, details: serde_json::json!(details) })
}

/// Concordance of the true risks, where they are known.
fn oracle(task: &MilTask, scored: &Scored) -> Option<f64> {
    let (Scored::Survival { slides, patients, .. }, false) =
        (scored, task.cohort.oracle.is_empty())
    else {
        return None;
    };
    let patients = patients.iter().zip(slides);
    let patients: Vec<FollowUp> = patients
        .map(|(patient, slide)| FollowUp { risk: task.cohort.oracle[*slide], ..*patient })
        .collect();
    concordance(&patients).ok()
}

fn warning_table(warnings: Vec<String>) -> Table {
    Table {
        title: "Warnings".to_owned(),
        columns: vec!["found before training".to_owned()],
        names: 1,
        rows: warnings.into_iter().map(|warning| vec![warning]).collect(),
        note: String::new(),
    }
}

fn samples(task: &MilTask, scored: &Scored) -> Vec<Sample> {
    let sample = |slide: usize, result: Prediction| {
        let slide = &task.cohort.slides[slide];
        Sample { slide: slide.id.clone(), case: slide.case.clone(), result }
    };
    match scored {
        Scored::Classes { slides, predictions, .. } => {
            let rows = predictions.probabilities.chunks(predictions.n_classes);
            let rows = rows.zip(&predictions.truth).zip(slides);
            rows.map(|((row, &class), &slide)| {
                sample(slide, Prediction::Class { class, probabilities: row.to_vec() })
            })
            .collect()
        }
        Scored::Survival { slides, patients, .. } => {
            let rows = slides.iter().zip(patients);
            rows.map(|(&slide, &FollowUp { time, event, risk })| {
                sample(slide, Prediction::Survival { time, event, risk })
            })
            .collect()
        }
    }
}

/// Positions of the samples of each patient.
fn by_patient<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<Vec<usize>> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut patients: Vec<Vec<usize>> = Vec::new();
    for (position, sample) in samples.enumerate() {
        let place = *places.entry(&sample.case).or_insert_with(|| {
            patients.push(Vec::new());
            patients.len() - 1
        });
        patients[place].push(position);
    }
    patients
}

/// A score with its 95% interval, as text.
type Row = [String; 3];

fn intervals(
    scored: &Scored,
    scores: Vec<(&'static str, Score)>,
    patients: &[Vec<usize>],
    n_resamples: usize,
    seed: u64,
) -> Vec<Row> {
    let interval = |name: &str| match scored {
        Scored::Classes { predictions, losses, .. } => {
            bootstrap(patients, n_resamples, seed, |samples| {
                let drawn = predictions.select(samples);
                match name {
                    "accuracy" => drawn.accuracy(),
                    "auc" => drawn.auc(),
                    "balanced_accuracy" => drawn.balanced_accuracy(),
                    "f1" => drawn.f1(),
                    _ => Ok(samples.iter().map(|i| losses[*i]).sum::<f64>() / samples.len() as f64),
                }
            })
        }
        Scored::Survival { patients: followed, losses, .. } => {
            bootstrap(patients, n_resamples, seed, |samples| match name {
                "c_index" => concordance(&samples.iter().map(|i| followed[*i]).collect::<Vec<_>>()),
                _ => Ok(samples.iter().map(|i| losses[*i]).sum::<f64>() / samples.len() as f64),
            })
        }
    };
    let row = |(name, score): (&'static str, Score)| match score {
        Ok(value) => {
            let interval = interval(name).map_or_else(
                |reason| format!("undefined: {reason}"),
                |(low, high)| format!("{low:.4} to {high:.4}"),
            );
            [name.to_owned(), format!("{value:.4}"), interval]
        }
        Err(reason) => [name.to_owned(), format!("undefined: {reason}"), String::new()],
    };
    scores.into_iter().map(row).collect()
}

fn score_table(title: String, rows: Vec<Row>) -> Table {
    Table {
        title,
        columns: ["score", "value", "95% interval"].map(str::to_owned).to_vec(),
        names: 1,
        rows: rows.into_iter().map(Vec::from).collect(),
        note:
            "Intervals: bootstrap over patients, percentiles. f1: mean over classes. auc: of the \
               second class, or the mean of one class against the rest."
                .to_owned(),
    }
}

fn confusion_table(predictions: &Predictions, classes: &[String]) -> Table {
    let rows = predictions.confusion().into_iter().zip(classes).map(|(counts, class)| {
        let counts = counts.iter().map(ToString::to_string);
        std::iter::once(class.clone()).chain(counts).collect()
    });
    Table {
        title: "Confusion matrix".to_owned(),
        columns: std::iter::once("true, predicted:".to_owned())
            .chain(classes.iter().cloned())
            .collect(),
        names: 1,
        rows: rows.collect(),
        note: "Slides; the predicted class is the likeliest one.".to_owned(),
    }
}

/// One curve for each named set of predictions; of several classes one figure each.
fn roc_figure(sets: Vec<(String, Predictions)>, classes: &[String]) -> Option<Figure> {
    let first = if classes.len() == 2 { 1 } else { 0 };
    let panels = (first..classes.len()).map(|class| {
        let curves = sets.iter().map(|(name, predictions)| Series {
            name: name.clone(),
            points: predictions.roc(class),
        });
        let curves: Vec<Series> = curves.filter(|curve| !curve.points.is_empty()).collect();
        Figure::Lines {
            title: format!("ROC of `{}`", classes[class]),
            x_label: "false positive rate".to_owned(),
            y_label: "true positive rate".to_owned(),
            series: curves,
            note: String::new(),
        }
    });
    let panels: Vec<Figure> = panels
        .filter(|panel| matches!(panel, Figure::Lines { series, .. } if !series.is_empty()))
        .collect();
    let title = "Receiver operating characteristic".to_owned();
    (!panels.is_empty()).then_some(Figure::Panels { title, panels, note: String::new() })
}

/// Patients of higher and of lower risk than the median of their fold.
struct Groups {
    high: Vec<FollowUp>,
    low: Vec<FollowUp>,
}

/// Risks of different folds come from different models, so each fold is halved by its own median.
fn by_median_risk(folds: &[Vec<FollowUp>]) -> Groups {
    let mut groups = Groups { high: Vec::new(), low: Vec::new() };
    for patients in folds {
        let mut risks: Vec<f64> = patients.iter().map(|patient| patient.risk).collect();
        risks.sort_by(f64::total_cmp);
        let median = super::metrics::quantile(&risks, 0.5);
        for &patient in patients {
            let group = if patient.risk > median { &mut groups.high } else { &mut groups.low };
            group.push(patient);
        }
    }
    groups
}

fn survival_figure(groups: &Groups) -> Figure {
    // A step function: every level is drawn up to the time at which it ends.
    let steps = |patients: &[FollowUp]| {
        let mut points = Vec::new();
        let mut level = 1.0;
        for (time, survival) in kaplan_meier(patients) {
            points.extend([(time, level), (time, survival)]);
            level = survival;
        }
        let last = patients.iter().map(|patient| patient.time).fold(0.0, f64::max);
        points.push((last, level));
        points
    };
    let note = match log_rank(&groups.high, &groups.low) {
        Ok((statistic, p)) => format!("Log-rank test: chi-squared {statistic:.3}, p = {p:.3e}."),
        Err(reason) => format!("Log-rank test undefined: {reason}."),
    };
    let curve = |name: &str, patients: &[FollowUp]| Series {
        name: format!("{name} ({})", patients.len()),
        points: steps(patients),
    };
    Figure::Lines {
        title: "Kaplan-Meier curves by predicted risk".to_owned(),
        x_label: "time".to_owned(),
        y_label: "share without event".to_owned(),
        series: vec![curve("low risk", &groups.low), curve("high risk", &groups.high)],
        note: format!("Halves by the median risk of each fold. {note}"),
    }
}

/// All folds together: every score of every fold, and figures of all test predictions.
pub(super) fn combine(
    options: &MilOptions,
    name: &str,
    folds: &[RunResult],
) -> Result<Outcome, Error> {
    let details = folds.iter().map(|fold| Details::deserialize(&fold.details));
    let details: Vec<Details> =
        details.collect::<Result<_, _>>().map_err(|reason| Error::Usage {
            message: format!("the details of a fold cannot be understood: {reason}"),
            hint: Some("train the folds with one version of the program".to_owned()),
        })?;
    let mut outcome = folds::scores(folds);
    if let Some(table) = outcome.tables.first_mut() {
        table.title = format!("Test scores on {name}, {} folds", folds.len());
        let reasons = details.iter().enumerate().flat_map(|(fold, details)| {
            let reason = move |(score, reason): &(String, String)| {
                format!(" Fold {fold}, {score}: {reason}.")
            };
            details.undefined.iter().map(reason).collect::<Vec<_>>()
        });
        table.note.extend(reasons);
    }
    let warnings: Vec<String> = details
        .iter()
        .enumerate()
        .flat_map(|(fold, details)| {
            details.warnings.iter().map(move |warning| format!("fold {fold}: {warning}"))
        })
        .collect();
    if !warnings.is_empty() {
        outcome.tables.push(warning_table(warnings));
    }
    let per_repeat = if folds.len() == options.split.folds * options.split.repeats {
        options.split.folds
    } else {
        folds.len()
    };
    let repeats: Vec<&[Details]> = details.chunks(per_repeat.max(1)).collect();
    let classes = details.first().map_or(Vec::new(), |details| details.classes.clone());
    if classes.is_empty() {
        let patients: Vec<Vec<FollowUp>> = details.iter().map(patients).collect();
        outcome.figures.push(survival_figure(&by_median_risk(&patients)));
        return Ok(outcome);
    }
    let sets: Vec<(String, Predictions)> = repeats
        .iter()
        .enumerate()
        .map(|(repeat, details)| (format!("repeat {}", repeat + 1), pooled(details, classes.len())))
        .collect();
    if sets.len() > 1 {
        outcome.tables.push(repeat_table(&sets, &mut outcome.metrics));
    }
    if let Some((_, first)) = sets.first() {
        outcome.tables.push(confusion_table(first, &classes));
        let scores = Scored::Classes {
            slides: Vec::new(),
            losses: losses(first),
            predictions: first.clone(),
        };
        let samples = repeats[0].iter().flat_map(|details| &details.samples);
        let rows = intervals(&scores, scores.scores(), &by_patient(samples), options.bootstrap, 0);
        let title = "All test predictions of the first repeat together".to_owned();
        outcome.tables.push(score_table(title, rows));
    }
    outcome.figures.extend(roc_figure(sets, &classes));
    Ok(outcome)
}

/// Accuracy and area of every repeat, with what Ilse et al. 2018 report: mean and standard error.
fn repeat_table(sets: &[(String, Predictions)], metrics: &mut ssm_train::task::Metrics) -> Table {
    let cell = |score: &Score| match score {
        Ok(value) => format!("{value:.4}"),
        Err(reason) => format!("undefined: {reason}"),
    };
    let mut rows = Vec::new();
    let (mut accuracies, mut areas) = (Vec::new(), Vec::new());
    for (name, predictions) in sets {
        let (accuracy, auc) = (predictions.accuracy(), predictions.auc());
        rows.push(vec![name.clone(), cell(&accuracy), cell(&auc)]);
        accuracies.extend(accuracy);
        areas.extend(auc);
    }
    let mut summary = vec!["mean ± standard error".to_owned()];
    for (name, values) in [("accuracy", &accuracies), ("auc", &areas)] {
        let (mean, deviation) = folds::mean_and_deviation(values);
        let error = deviation / (values.len() as f64).sqrt();
        summary.push(format!("{mean:.4} ± {error:.4}"));
        metrics.insert(format!("repeat_{name}"), mean);
        metrics.insert(format!("repeat_{name}_se"), error);
    }
    rows.push(summary);
    Table {
        title: "Repeats of the cross-validation, each with all its test predictions".to_owned(),
        columns: ["repeat", "accuracy", "auc"].map(str::to_owned).to_vec(),
        rows,
        note: "auc: predictions of several models in one ranking.".to_owned(),
        ..Table::default()
    }
}

fn pooled(details: &[Details], n_classes: usize) -> Predictions {
    let mut all = Predictions { n_classes, ..Predictions::default() };
    for sample in details.iter().flat_map(|details| &details.samples) {
        if let Prediction::Class { class, probabilities } = &sample.result {
            all.truth.push(*class);
            all.probabilities.extend(probabilities);
        }
    }
    all
}

fn losses(predictions: &Predictions) -> Vec<f64> {
    let rows = predictions.probabilities.chunks(predictions.n_classes).zip(&predictions.truth);
    rows.map(|(row, &class)| -row[class].max(f64::MIN_POSITIVE).ln()).collect()
}

fn patients(details: &Details) -> Vec<FollowUp> {
    let samples = details.samples.iter().filter_map(|sample| match sample.result {
        Prediction::Survival { time, event, risk } => Some(FollowUp { time, event, risk }),
        Prediction::Class { .. } => None,
    });
    samples.collect()
}
