//! Scores of a classification. What cannot be computed is not a number with a reason, never a guess.

use super::splits::{Purpose, below, stream};

/// A score, or why there is none.
pub type Score = Result<f64, String>;

/// Predicted probabilities beside the truth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    /// Number of classes.
    pub n_classes: usize,
    /// True class of each sample.
    pub truth: Vec<usize>,
    /// `n_classes` probabilities a sample, one sample after the other.
    pub probabilities: Vec<f64>,
}

impl Predictions {
    /// Probability of `class` for every sample.
    fn of_class(&self, class: usize) -> Vec<f64> {
        self.probabilities.iter().skip(class).step_by(self.n_classes).copied().collect()
    }

    /// The likeliest class of every sample; of equal ones the first.
    #[must_use]
    pub fn labels(&self) -> Vec<usize> {
        let rows = self.probabilities.chunks(self.n_classes);
        rows.map(|row| {
            let best =
                |best: usize, class: usize| if row[class] > row[best] { class } else { best };
            (0..row.len()).fold(0, best)
        })
        .collect()
    }

    /// Rows are true classes, columns predicted ones.
    #[must_use]
    pub fn confusion(&self) -> Vec<Vec<usize>> {
        let mut counts = vec![vec![0; self.n_classes]; self.n_classes];
        for (truth, label) in self.truth.iter().zip(self.labels()) {
            counts[*truth][label] += 1;
        }
        counts
    }

    /// Share of samples whose likeliest class is the true one.
    ///
    /// # Errors
    /// Without a sample.
    pub fn accuracy(&self) -> Score {
        let n = self.truth.len();
        if n == 0 {
            return Err("no sample".into());
        }
        let right = self.truth.iter().zip(self.labels()).filter(|(t, l)| *t == l).count();
        Ok(right as f64 / n as f64)
    }

    /// Mean of the recalls of the classes that occur.
    ///
    /// # Errors
    /// Without a sample.
    ///
    /// # Source
    /// `sklearn.metrics.balanced_accuracy_score`.
    pub fn balanced_accuracy(&self) -> Score {
        let confusion = self.confusion();
        let recalls: Vec<f64> = confusion
            .iter()
            .enumerate()
            .filter(|(_, row)| row.iter().any(|count| *count > 0))
            .map(|(class, row)| row[class] as f64 / row.iter().sum::<usize>() as f64)
            .collect();
        if recalls.is_empty() {
            return Err("no sample".into());
        }
        Ok(recalls.iter().sum::<f64>() / recalls.len() as f64)
    }

    /// Mean of the F1 scores of all classes that occur or are predicted.
    ///
    /// # Errors
    /// Without a sample.
    ///
    /// # Source
    /// `sklearn.metrics.f1_score(average="macro")`.
    pub fn f1(&self) -> Score {
        let confusion = self.confusion();
        let scores: Vec<f64> = (0..self.n_classes)
            .filter_map(|class| {
                let actual: usize = confusion[class].iter().sum();
                let predicted: usize = confusion.iter().map(|row| row[class]).sum();
                let sum = actual + predicted;
                (sum > 0).then(|| 2.0 * confusion[class][class] as f64 / sum as f64)
            })
            .collect();
        if scores.is_empty() {
            return Err("no sample".into());
        }
        Ok(scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// Area under the ROC curve: of the second class for two, else the mean of one class against
    /// the rest.
    ///
    /// # Errors
    /// If a class has no sample, or all of them.
    ///
    /// # Source
    /// `sklearn.metrics.roc_auc_score(multi_class="ovr", average="macro")`.
    pub fn auc(&self) -> Score {
        let against_rest = |class: usize| {
            let positive: Vec<bool> = self.truth.iter().map(|truth| *truth == class).collect();
            auc(&self.of_class(class), &positive)
                .map_err(|reason| format!("class {class}: {reason}"))
        };
        if self.n_classes == 2 {
            return against_rest(1);
        }
        let scores = (0..self.n_classes).map(against_rest).collect::<Result<Vec<f64>, _>>()?;
        Ok(scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// ROC curve of `class` against the rest: false positive rate, true positive rate.
    #[must_use]
    pub fn roc(&self, class: usize) -> Vec<(f64, f64)> {
        let scores = self.of_class(class);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let n_positive = self.truth.iter().filter(|truth| **truth == class).count();
        let n_negative = self.truth.len() - n_positive;
        if n_positive == 0 || n_negative == 0 {
            return Vec::new();
        }
        let (mut hits, mut false_alarms) = (0, 0);
        let mut points = vec![(0.0, 0.0)];
        for (place, &sample) in order.iter().enumerate() {
            if self.truth[sample] == class {
                hits += 1
            } else {
                false_alarms += 1
            }
            let tied = order.get(place + 1).is_some_and(|next| scores[*next] == scores[sample]);
            if !tied {
                points.push((
                    f64::from(false_alarms) / n_negative as f64,
                    f64::from(hits) / n_positive as f64,
                ));
            }
        }
        points
    }

    /// These samples only, in this order, with repetitions.
    #[must_use]
    pub fn select(&self, samples: &[usize]) -> Self {
        let row = |sample: usize| &self.probabilities[sample * self.n_classes..][..self.n_classes];
        Self {
            n_classes: self.n_classes,
            truth: samples.iter().map(|sample| self.truth[*sample]).collect(),
            probabilities: samples.iter().flat_map(|sample| row(*sample).to_vec()).collect(),
        }
    }

    /// The samples of both, one after the other.
    pub fn extend(&mut self, other: &Self) {
        self.n_classes = other.n_classes;
        self.truth.extend(&other.truth);
        self.probabilities.extend(&other.probabilities);
    }
}

/// Probability that a positive sample has a higher score than a negative one, ties counted half.
///
/// # Errors
/// Without a positive or without a negative sample.
pub fn auc(scores: &[f64], positive: &[bool]) -> Score {
    let n_positive = positive.iter().filter(|positive| **positive).count();
    let n_negative = positive.len() - n_positive;
    if n_positive == 0 {
        return Err("no positive sample".into());
    }
    if n_negative == 0 {
        return Err("no negative sample".into());
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    // Mann and Whitney: the sum of the ranks of the positive samples, ties at their mean rank.
    let mut rank_sum = 0.0;
    let mut start = 0;
    while start < order.len() {
        let tied =
            order[start..].iter().take_while(|i| scores[**i] == scores[order[start]]).count();
        let mean_rank = start as f64 + (tied as f64 + 1.0) / 2.0;
        let hits = order[start..start + tied].iter().filter(|i| positive[**i]).count();
        rank_sum += hits as f64 * mean_rank;
        start += tied;
    }
    let (p, n) = (n_positive as f64, n_negative as f64);
    Ok((rank_sum - p * (p + 1.0) / 2.0) / (p * n))
}

/// Percentile bootstrap interval of 95% for a score: groups of samples are drawn with replacement, as
/// many as there are.
///
/// Slides of one patient resemble each other, so they are a group: drawn one by one they would make
/// the interval too narrow. Resamples for which the score is undefined are left out.
///
/// # Errors
/// If the score is undefined for more than half of the resamples.
///
/// # Source
/// Efron 1979; quantiles with linear interpolation, as numpy's default.
pub fn bootstrap(
    groups: &[Vec<usize>],
    n_resamples: usize,
    seed: u64,
    mut score: impl FnMut(&[usize]) -> Score,
) -> Result<(f64, f64), String> {
    let mut rng = stream(seed, Purpose::Bootstrap, 0);
    let mut scores: Vec<f64> = (0..n_resamples)
        .filter_map(|_| {
            let drawn = groups.iter().map(|_| &groups[below(&mut rng, groups.len())]);
            score(&drawn.flatten().copied().collect::<Vec<_>>()).ok()
        })
        .collect();
    if scores.len() * 2 < n_resamples || scores.is_empty() {
        return Err(format!("defined for {} of {n_resamples} resamples", scores.len()));
    }
    scores.sort_by(f64::total_cmp);
    Ok((quantile(&scores, 0.025), quantile(&scores, 0.975)))
}

/// Quantile of sorted values, interpolated linearly between the two nearest; 0 of none.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn singly(n: usize) -> Vec<Vec<usize>> {
        (0..n).map(|sample| vec![sample]).collect()
    }

    #[test]
    fn ties_count_half() {
        assert_eq!(auc(&[0.1, 0.5, 0.5, 0.9], &[false, true, false, true]), Ok(0.875));
        assert_eq!(auc(&[1.0; 4], &[false, true, false, true]), Ok(0.5));
    }

    #[test]
    fn scores_of_one_class_are_undefined_with_a_reason() {
        let one = Predictions {
            n_classes: 2,
            truth: vec![1, 1],
            probabilities: vec![0.4, 0.6, 0.7, 0.3],
        };
        assert_eq!(one.auc(), Err("class 1: no negative sample".into()));
        assert_eq!(one.balanced_accuracy(), Ok(0.5));
        assert_eq!(one.roc(1), []);
        let none = Predictions { n_classes: 3, ..Predictions::default() };
        assert_eq!(none.accuracy(), Err("no sample".into()));
        assert_eq!(none.auc(), Err("class 0: no positive sample".into()));
        assert!(bootstrap(&singly(2), 100, 1, |samples| one.select(samples).auc()).is_err());
    }

    #[test]
    fn intervals_hold_the_score_and_follow_from_the_seed() {
        let truth: Vec<usize> = (0..200).map(|i| i % 2).collect();
        let probabilities = truth.iter().enumerate().flat_map(|(i, truth)| {
            let p = 0.5 + 0.3 * (*truth as f64 - 0.5) + 0.5 * ((i * 37 % 101) as f64 / 101.0 - 0.5);
            [1.0 - p, p]
        });
        let all = Predictions { n_classes: 2, probabilities: probabilities.collect(), truth };
        let interval =
            |seed| bootstrap(&singly(200), 500, seed, |samples| all.select(samples).auc()).unwrap();
        let ((low, high), auc) = (interval(1), all.auc().unwrap());
        assert!(low < auc && auc < high && high - low < 0.2, "{low} {auc} {high}");
        assert_eq!(interval(1), interval(1));
        assert_ne!(interval(1), interval(2));
    }

    #[test]
    fn samples_of_a_group_are_drawn_together() {
        let groups = [vec![0, 1, 2], vec![3], vec![4, 5]];
        let mut sizes = std::collections::BTreeSet::new();
        let count = |samples: &[usize]| {
            let of = |group: &[usize]| samples.iter().filter(|s| group.contains(s)).count();
            assert!(groups.iter().all(|group| of(group) % group.len() == 0), "{samples:?}");
            sizes.insert(samples.len());
            Ok(samples.len() as f64)
        };
        let (low, high) = bootstrap(&groups, 1000, 1, count).unwrap();
        assert_eq!(sizes, (3..=9).collect());
        assert_eq!((low, high), (3.0, 9.0));
        // As wide as the spread of twenty patients with ten equal slides each, not of 200 slides.
        let truth: Vec<usize> = (0..200).map(|slide| slide / 10 % 3 / 2).collect();
        let right = |samples: &[usize]| {
            let n = samples.iter().filter(|slide| truth[**slide] == 1).count();
            Ok(n as f64 / samples.len() as f64)
        };
        let patients: Vec<Vec<usize>> =
            (0..20).map(|patient| (patient * 10..patient * 10 + 10).collect()).collect();
        let width = |(low, high): (f64, f64)| high - low;
        let by_patient = width(bootstrap(&patients, 2000, 1, right).unwrap());
        let by_slide = width(bootstrap(&singly(200), 2000, 1, right).unwrap());
        let ratio = by_patient / by_slide;
        assert!((2.5..4.0).contains(&ratio), "{ratio}, expected about the root of 10");
    }

    #[test]
    fn the_roc_curve_ends_in_the_corner() {
        let predictions = Predictions {
            n_classes: 2,
            truth: vec![0, 1, 0, 1],
            probabilities: vec![0.9, 0.1, 0.5, 0.5, 0.5, 0.5, 0.1, 0.9],
        };
        assert_eq!(predictions.roc(1), [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]);
        assert_eq!(predictions.confusion(), [[2, 0], [1, 1]]);
    }
}
