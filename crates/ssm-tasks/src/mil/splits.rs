//! Which slides a fold trains on, selects on and is scored on.
//!
//! Folds are made of patients, never of slides, and every fold has about the same share of each class.

use std::collections::BTreeMap;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cohort::{Cohort, Part};

/// What random numbers are for; part of their key, so that they do not depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Dealing patients out to folds.
    Folds,
    /// Taking validation patients out of the training ones.
    Validation,
    /// The order of training slides.
    Order,
    /// Initial values of the model.
    Model,
    /// Resampling for confidence intervals.
    Bootstrap,
    /// Data that is made up.
    Synthesis,
    /// The order of instances in a training bag.
    Instances,
    /// The features of a training bag that are dropped.
    Features,
}

/// Random numbers as a pure function of the arguments.
#[must_use]
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> ChaCha8Rng {
    let mut key = *b"ssm-mil\0........................";
    key[8..16].copy_from_slice(&seed.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    key[24] = purpose as u8;
    ChaCha8Rng::from_seed(key)
}

/// Uniform on `0..n`, up to `2^-64 n`.
pub fn below(rng: &mut impl Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Uniform in `[0, 1)`.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Standard normal, by Box and Muller's transform.
pub fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

/// Puts a slice in random order.
pub fn shuffle<T>(items: &mut [T], rng: &mut impl Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

/// `[task.mil.split]`: how folds are made where the data brings none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SplitOptions {
    /// Folds of the cross-validation, 2..=1000, at most as many as there are patients. Default 10.
    pub folds: usize,
    /// How often the cross-validation is repeated with other folds, 1..=1000. Default 1.
    pub repeats: usize,
    /// Share of the training patients that select the checkpoint and stop the run, `[0, 0.9]`; at
    /// least one of each class. 0 means that nothing is selected: the last weights are scored.
    /// Default 0.1. The test fold is never part of it.
    pub valid: f64,
    /// Whether a patient may stand on both sides of a split that comes with the data. Default false:
    /// that is an error. True reproduces published splits, with a warning in the report.
    pub allow_group_overlap: bool,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self { folds: 10, repeats: 1, valid: 0.1, allow_group_overlap: false }
    }
}

/// Slides of each part of a fold, in the order of the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Gradients come from these.
    pub train: Vec<usize>,
    /// Select and stop.
    pub valid: Vec<usize>,
    /// Are scored once.
    pub test: Vec<usize>,
}

/// Fold `index` of a cohort: the one that the data brings, or one made here.
///
/// # Errors
/// A sentence, if there are fewer patients than folds.
pub fn fold(
    cohort: &Cohort,
    options: &SplitOptions,
    seed: u64,
    index: usize,
) -> Result<Fold, String> {
    let mut fold = Fold::default();
    if let Some(parts) = cohort.given.get(index) {
        for (slide, part) in parts.iter().enumerate() {
            match part {
                Part::Train => fold.train.push(slide),
                Part::Valid => fold.valid.push(slide),
                Part::Test => fold.test.push(slide),
                Part::Unused => {}
            }
        }
        if fold.valid.is_empty() {
            hold_out(cohort, options.valid, seed, index, &mut fold);
        }
        return Ok(fold);
    }
    let (repeat, k) = (index / options.folds, index % options.folds);
    let cases = cases(cohort, &(0..cohort.slides.len()).collect::<Vec<_>>());
    if cases.len() < options.folds {
        return Err(format!(
            "expected at least as many patients as folds, got {} patients and {} folds",
            cases.len(),
            options.folds
        ));
    }
    let mut rng = stream(seed, Purpose::Folds, repeat as u64);
    for (case, fold_of_case) in deal(&cases, options.folds, &mut rng) {
        let slides = &cases[case].slides;
        if fold_of_case == k { fold.test.extend(slides) } else { fold.train.extend(slides) }
    }
    fold.train.sort_unstable();
    fold.test.sort_unstable();
    hold_out(cohort, options.valid, seed, index, &mut fold);
    Ok(fold)
}

/// A patient among some slides.
struct Case {
    stratum: usize,
    slides: Vec<usize>,
}

/// The patients of `slides`, in the order of their first slide; the stratum is the highest of theirs.
fn cases(cohort: &Cohort, slides: &[usize]) -> Vec<Case> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut cases: Vec<Case> = Vec::new();
    for &slide in slides {
        let stratum = cohort.stratum(slide);
        let place = *places.entry(&cohort.slides[slide].case).or_insert_with(|| {
            cases.push(Case { stratum, slides: Vec::new() });
            cases.len() - 1
        });
        cases[place].slides.push(slide);
        cases[place].stratum = cases[place].stratum.max(stratum);
    }
    cases
}

/// Positions of the patients of each stratum, in random order.
fn shuffled_strata(cases: &[Case], rng: &mut impl Rng) -> Vec<Vec<usize>> {
    let mut strata: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (position, case) in cases.iter().enumerate() {
        strata.entry(case.stratum).or_default().push(position);
    }
    let mut strata: Vec<Vec<usize>> = strata.into_values().collect();
    strata.iter_mut().for_each(|stratum| shuffle(stratum, rng));
    strata
}

/// Deals patients to `n_folds` like cards, one stratum after the other: neither sizes nor the
/// counts of any class differ by more than one.
fn deal(cases: &[Case], n_folds: usize, rng: &mut impl Rng) -> Vec<(usize, usize)> {
    let strata = shuffled_strata(cases, rng);
    strata.into_iter().flatten().zip((0..n_folds).cycle()).collect()
}

/// Moves a share of the training patients of each stratum to validation.
fn hold_out(cohort: &Cohort, share: f64, seed: u64, index: usize, fold: &mut Fold) {
    if share == 0.0 {
        return;
    }
    let cases = cases(cohort, &fold.train);
    let mut rng = stream(seed, Purpose::Validation, index as u64);
    for stratum in shuffled_strata(&cases, &mut rng) {
        let wanted = (share * stratum.len() as f64).round().max(1.0) as usize;
        // A class must not disappear from the training slides.
        let taken = wanted.min(stratum.len() - 1);
        for position in &stratum[..taken] {
            fold.valid.extend(&cases[*position].slides);
        }
    }
    fold.train.retain(|slide| !fold.valid.contains(slide));
    fold.valid.sort_unstable();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mil::cohort::{Bag, Bags, Slide, Target};

    /// `n` slides of `n / 2` patients, every third of class 1.
    fn cohort(n: usize) -> Cohort {
        let slides = (0..n).map(|i| Slide {
            id: format!("s{i}"),
            case: format!("p{}", i / 2),
            target: Target::Class(usize::from(i / 2 % 3 == 0)),
        });
        Cohort {
            name: "toy".into(),
            slides: slides.collect(),
            bags: Bags::Memory((0..n).map(|_| Arc::new(Bag::default())).collect()),
            d_feature: 1,
            classes: vec!["0".into(), "1".into()],
            ..Cohort::default()
        }
    }

    fn options(folds: usize, valid: f64) -> SplitOptions {
        SplitOptions { folds, valid, ..SplitOptions::default() }
    }

    #[test]
    fn every_slide_is_tested_once_a_repeat_and_patients_stay_together() {
        let cohort = cohort(62);
        let options = options(5, 0.2);
        let mut tested = vec![0; 62];
        for index in 0..10 {
            let fold = fold(&cohort, &options, 7, index).unwrap();
            let mut all = [fold.train.clone(), fold.valid.clone(), fold.test.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, (0..62).collect::<Vec<_>>());
            let patients = |slides: &[usize]| -> std::collections::BTreeSet<usize> {
                slides.iter().map(|slide| slide / 2).collect()
            };
            let (train, valid, test) =
                (patients(&fold.train), patients(&fold.valid), patients(&fold.test));
            assert!(train.is_disjoint(&valid) && train.is_disjoint(&test));
            assert!(valid.is_disjoint(&test));
            let positive = test.iter().filter(|case| *case % 3 == 0).count();
            // 31 patients, 11 of them positive, in 5 folds.
            assert!((6..=7).contains(&test.len()) && (2..=3).contains(&positive));
            fold.test.iter().for_each(|slide| tested[*slide] += 1);
        }
        assert!(tested.iter().all(|times| *times == 2), "{tested:?}");
    }

    #[test]
    fn folds_follow_from_seed_and_repeat_alone() {
        let cohort = cohort(40);
        let test = |seed, index| fold(&cohort, &options(4, 0.0), seed, index).unwrap().test;
        assert_eq!(test(1, 2), test(1, 2));
        assert_ne!(test(1, 2), test(2, 2));
        assert_ne!(test(1, 2), test(1, 6), "the same fold of another repeat");
    }

    #[test]
    fn validation_takes_its_share_of_every_class_or_nothing() {
        let cohort = cohort(60);
        let fold_of = |valid| fold(&cohort, &options(5, valid), 3, 0).unwrap();
        assert!(fold_of(0.0).valid.is_empty());
        let valid = fold_of(0.25).valid;
        let positive = valid.iter().filter(|slide| *slide / 2 % 3 == 0).count();
        assert_eq!((valid.len(), positive), (12, 4));
    }

    #[test]
    fn splits_of_the_data_are_taken_as_they_are() {
        let mut cohort = cohort(6);
        use Part::{Test, Train, Unused, Valid};
        cohort.given = vec![vec![Train, Train, Valid, Unused, Test, Test]];
        let fold = fold(&cohort, &options(5, 0.5), 0, 0).unwrap();
        assert_eq!((fold.train, fold.valid, fold.test), (vec![0, 1], vec![2], vec![4, 5]));
    }

    #[test]
    fn more_folds_than_patients_are_refused() {
        assert_eq!(
            fold(&cohort(6), &options(5, 0.0), 0, 0).unwrap_err(),
            "expected at least as many patients as folds, got 3 patients and 5 folds"
        );
    }
}
