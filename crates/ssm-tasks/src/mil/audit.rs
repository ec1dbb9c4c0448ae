//! What may be wrong with data and folds, looked for before anything is trained.

use std::collections::{BTreeMap, BTreeSet};

use ssm_train::{config::Issue, error::Error, report::Table};

use super::{
    cohort::{Bags, Cohort, Target},
    config::MilOptions,
    features,
    metrics::quantile,
    splits::{self, Fold},
};

/// Names that a finding lists at most.
const MAX_NAMES: usize = 5;

/// Something that is wrong, or that will leave a score undefined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether training must not begin.
    pub fatal: bool,
    /// Expected, got, and where.
    pub what: String,
}

/// Patients that stand in several parts of a fold.
#[must_use]
pub fn overlap(cohort: &Cohort, fold: &Fold) -> Vec<String> {
    let cases = |slides: &[usize]| -> BTreeSet<&str> {
        slides.iter().map(|slide| cohort.slides[*slide].case.as_str()).collect()
    };
    let [train, valid, test] = [&fold.train, &fold.valid, &fold.test].map(|slides| cases(slides));
    let shared = train.intersection(&valid).chain(train.intersection(&test));
    let shared: BTreeSet<&str> = shared.chain(valid.intersection(&test)).copied().collect();
    shared.into_iter().map(str::to_owned).collect()
}

/// Classes of some slides; of survival whether events and censored times are among them.
fn strata(cohort: &Cohort, slides: &[usize]) -> BTreeSet<usize> {
    slides.iter().map(|slide| cohort.stratum(*slide)).collect()
}

/// What is wrong with a fold.
#[must_use]
pub fn fold_findings(cohort: &Cohort, fold: &Fold, options: &MilOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    let shared = overlap(cohort, fold);
    if !shared.is_empty() {
        findings.push(Finding {
            fatal: !options.split.allow_group_overlap,
            what: format!(
                "expected every patient on one side of the split, got {} on several: {}",
                shared.len(),
                names(&shared)
            ),
        });
    }
    let of_survival = cohort.classes.is_empty();
    let parts = [
        ("training", &fold.train, true),
        ("validation", &fold.valid, false),
        ("test", &fold.test, false),
    ];
    for (part, slides, training) in parts {
        if slides.is_empty() {
            // No validation slides are a choice.
            if part != "validation" {
                findings.push(Finding { fatal: true, what: format!("no {part} slide") });
            }
            continue;
        }
        let strata = strata(cohort, slides);
        if of_survival {
            if !strata.contains(&1) {
                let what = format!("no event among {} {part} slides", slides.len());
                findings.push(Finding { fatal: training, what });
            }
            continue;
        }
        let absent = (0..cohort.classes.len()).filter(|class| !strata.contains(class));
        let absent: Vec<String> = absent.map(|class| cohort.classes[class].clone()).collect();
        if !absent.is_empty() {
            let what = format!(
                "no {part} slide of {}; {}",
                names(&absent),
                if training {
                    "it cannot be learnt"
                } else {
                    "the area under the ROC curve is undefined"
                }
            );
            findings.push(Finding { fatal: training, what });
        }
    }
    findings
}

/// The first fatal finding of a fold as an error.
pub(super) fn refuse(findings: &[Finding]) -> Result<(), Error> {
    let Some(finding) = findings.iter().find(|finding| finding.fatal) else { return Ok(()) };
    let mut issue = Issue::new("task.mil.split", finding.what.clone());
    if finding.what.contains("one side") {
        issue = issue.with_hint(
            "correct the split; `allow_group_overlap = true` takes it as it is, to reproduce \
             published numbers",
        );
    }
    Err(Error::issues("the data", vec![issue]))
}

/// What a pass over all files says.
struct Survey {
    lengths: Vec<f64>,
    findings: Vec<Finding>,
}

/// Reads every slide: shape, width, numbers that are none.
fn survey(cohort: &Cohort) -> Survey {
    let mut survey = Survey { lengths: Vec::new(), findings: Vec::new() };
    for (index, slide) in cohort.slides.iter().enumerate() {
        let found = match &cohort.bags {
            Bags::Memory(bags) => Ok(bags[index].clone()),
            Bags::Files(paths) => features::read(&paths[index]).map(std::sync::Arc::new),
        };
        let bag = match found {
            Ok(bag) => bag,
            Err(error) => {
                survey.findings.push(Finding { fatal: true, what: error.to_string() });
                continue;
            }
        };
        survey.lengths.push(bag.n_instances() as f64);
        let mut find = |what: String| {
            let what = format!("slide `{}`: {what}", slide.id);
            survey.findings.push(Finding { fatal: true, what });
        };
        if bag.d_feature != cohort.d_feature {
            find(format!("expected features of width {}, got {}", cohort.d_feature, bag.d_feature));
        }
        if bag.n_instances() == 0 {
            find("no instance".to_owned());
        }
        let broken = bag.features.iter().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            find(format!("{broken} features are not finite"));
        }
    }
    survey
}

/// Everything about the data and all folds: tables, and how many findings are fatal.
///
/// # Errors
/// Data that cannot be read at all, and folds that cannot be made.
pub fn audit(
    cohort: &Cohort,
    options: &MilOptions,
    seed: u64,
    n_folds: usize,
) -> Result<(Vec<Table>, usize), Error> {
    let Survey { mut lengths, mut findings } = survey(cohort);
    let mut folds = Vec::new();
    for index in 0..n_folds {
        let fold = splits::fold(cohort, &options.split, seed, index).map_err(|message| {
            Error::issues("the data", vec![Issue::new("task.mil.split.folds", message)])
        })?;
        let of_fold = fold_findings(cohort, &fold, options);
        findings.extend(
            of_fold.into_iter().map(|finding| Finding {
                what: format!("fold {index}: {}", finding.what),
                ..finding
            }),
        );
        let sizes = [&fold.train, &fold.valid, &fold.test].map(|slides| slides.len().to_string());
        folds.push(std::iter::once(index.to_string()).chain(sizes).collect());
    }
    lengths.sort_by(f64::total_cmp);
    let n_fatal = findings.iter().filter(|finding| finding.fatal).count();
    let rows = findings.into_iter().map(|finding| {
        vec![if finding.fatal { "error" } else { "warning" }.to_owned(), finding.what]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let note = if rows.is_empty() { "Nothing was found." } else { "" };
    let findings = Table {
        title: "Findings".to_owned(),
        columns: ["kind", "finding"].map(str::to_owned).to_vec(),
        names: 2,
        rows,
        note: note.to_owned(),
    };
    let folds = Table {
        title: "Slides of each fold".to_owned(),
        columns: ["fold", "training", "validation", "test"].map(str::to_owned).to_vec(),
        rows: folds,
        ..Table::default()
    };
    Ok((vec![summary(cohort, &lengths), folds, findings], n_fatal))
}

fn summary(cohort: &Cohort, lengths: &[f64]) -> Table {
    let cases: BTreeSet<&str> = cohort.slides.iter().map(|slide| slide.case.as_str()).collect();
    let mut rows = vec![
        ("slides".to_owned(), cohort.slides.len().to_string()),
        ("patients".to_owned(), cases.len().to_string()),
        ("features".to_owned(), cohort.d_feature.to_string()),
    ];
    for (name, share) in [("shortest bag", 0.0), ("median bag", 0.5), ("longest bag", 1.0)] {
        rows.push((name.to_owned(), format!("{:.0}", quantile(lengths, share))));
    }
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for slide in 0..cohort.slides.len() {
        *counts.entry(cohort.stratum(slide)).or_default() += 1;
    }
    for (stratum, count) in counts {
        let name = match (cohort.slides.first().map(|slide| slide.target), stratum) {
            (Some(Target::Survival { .. }), 0) => "censored".to_owned(),
            (Some(Target::Survival { .. }), _) => "events".to_owned(),
            _ => format!("slides of `{}`", cohort.classes[stratum]),
        };
        rows.push((name, count.to_string()));
    }
    Table {
        title: cohort.name.clone(),
        columns: ["what", "count"].map(str::to_owned).to_vec(),
        names: 1,
        rows: rows.into_iter().map(|(name, value)| vec![name, value]).collect(),
        note: String::new(),
    }
}

fn names(names: &[String]) -> String {
    let shown = names[..names.len().min(MAX_NAMES)].join("`, `");
    format!("`{shown}`{}", if names.len() > MAX_NAMES { ", ..." } else { "" })
}
