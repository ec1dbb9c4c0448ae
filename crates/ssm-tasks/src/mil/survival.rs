//! Survival: discrete hazards and their loss, concordance, Kaplan-Meier curves, the log-rank test.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::metrics::{Score, quantile};

/// Smallest probability that a logarithm is taken of.
const EPSILON: f64 = 1e-7;
/// Risks that differ by no more than this are tied (scikit-survival's default).
const TIED: f64 = 1e-8;

/// Follow-up of one patient, and how soon a model expects the event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FollowUp {
    /// Time until the event or the last contact.
    pub time: f64,
    /// Whether the event was seen.
    pub event: bool,
    /// Predicted risk, higher for an earlier event.
    pub risk: f64,
}

/// Inner edges of the time bins: quantiles of the times at which an event was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimeBins {
    /// Ascending; bin `b` begins with edge `b - 1` and ends before edge `b`.
    pub edges: Vec<f64>,
}

impl TimeBins {
    /// `n_bins` bins with as many seen events each.
    ///
    /// # Errors
    /// A sentence, if the events have too few different times.
    ///
    /// # Source
    /// isyangshu/MambaMIL@9aea39e (`pandas.qcut` of the uncensored times); here of the training
    /// patients only, so that the test patients do not move the edges.
    pub fn fit(times: &[(f64, bool)], n_bins: usize) -> Result<Self, String> {
        let mut seen: Vec<f64> =
            times.iter().filter(|(_, event)| *event).map(|(time, _)| *time).collect();
        seen.sort_by(f64::total_cmp);
        let share = |bin: usize| bin as f64 / n_bins as f64;
        let edges: Vec<f64> = (1..n_bins).map(|bin| quantile(&seen, share(bin))).collect();
        if seen.is_empty() || edges.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(format!(
                "expected events at enough different times for {n_bins} bins, got {} events",
                seen.len()
            ));
        }
        Ok(Self { edges })
    }

    /// The bin of a time.
    #[must_use]
    pub fn bin(&self, time: f64) -> usize {
        self.edges.iter().filter(|edge| **edge <= time).count()
    }
}

/// Negative log-likelihood of one patient under hazards `sigmoid(logits)`, one a bin, shape `[1]`.
///
/// The event in bin `b` has probability `h_b * prod_{k<b} (1 - h_k)`, being censored in it
/// `prod_{k<=b} (1 - h_k)`: until then nothing happened.
///
/// # Numerics
/// Logarithms of sigmoids are taken as such; the published program clamps probabilities at 1e-7
/// instead, which gives the same loss up to there and no gradient beyond.
///
/// # Source
/// Zadeh & Schmid 2020, with weight alpha = 0; isyangshu/MambaMIL@9aea39e.
#[must_use]
pub fn hazard_loss(logits: Tensor<1>, bin: usize, event: bool) -> Tensor<1> {
    // ln(1 - sigmoid(x)) = ln sigmoid(-x)
    let survived = if event { bin } else { bin + 1 };
    let mut likelihood = Tensor::zeros([1], &logits.device());
    if survived > 0 {
        let ln_survival = activation::log_sigmoid(-logits.clone().narrow(0, 0, survived));
        likelihood = likelihood + ln_survival.sum();
    }
    if event {
        likelihood = likelihood + activation::log_sigmoid(logits.narrow(0, bin, 1));
    }
    -likelihood
}

/// The same of plain numbers, clamped at 1e-7 as published.
#[must_use]
pub fn hazard_loss_of(logits: &[f64], bin: usize, event: bool) -> f64 {
    let hazards: Vec<f64> = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    let survival = |bins: usize| hazards[..bins].iter().map(|h| 1.0 - h).product::<f64>();
    let ln = |p: f64| p.max(EPSILON).ln();
    if event { -ln(survival(bin)) - ln(hazards[bin]) } else { -ln(survival(bin + 1)) }
}

/// Risk of a patient: minus the sum of the survival function over all bins.
#[must_use]
pub fn risk(logits: &[f64]) -> f64 {
    let mut survival = 1.0;
    let sum: f64 = logits
        .iter()
        .map(|logit| {
            survival *= 1.0 - 1.0 / (1.0 + (-logit).exp());
            survival
        })
        .sum();
    -sum
}

/// Share of comparable pairs of patients in which the one with the earlier event has the higher risk.
///
/// Two patients are comparable if the earlier time is that of an event; of equal times, if one is an
/// event and the other is censored. Pairs with tied risks count half.
///
/// # Errors
/// If no two patients are comparable.
///
/// # Source
/// Harrell et al. 1982; `sksurv.metrics.concordance_index_censored`.
pub fn concordance(patients: &[FollowUp]) -> Score {
    let (mut concordant, mut pairs) = (0.0, 0.0);
    for (i, first) in patients.iter().enumerate().filter(|(_, patient)| patient.event) {
        for (j, second) in patients.iter().enumerate() {
            let later = second.time > first.time || (second.time == first.time && !second.event);
            if i == j || !later {
                continue;
            }
            pairs += 1.0;
            let difference = first.risk - second.risk;
            if difference.abs() <= TIED {
                concordant += 0.5;
            } else if difference > 0.0 {
                concordant += 1.0;
            }
        }
    }
    if pairs == 0.0 { Err("no two patients are comparable".into()) } else { Ok(concordant / pairs) }
}

/// Estimated survival function: `(time, share that survives it)` at every event, from `(0, 1)`.
///
/// # Source
/// Kaplan & Meier 1958.
#[must_use]
pub fn kaplan_meier(patients: &[FollowUp]) -> Vec<(f64, f64)> {
    let mut survival = 1.0;
    let mut points = vec![(0.0, 1.0)];
    for time in event_times(patients) {
        let at_risk = patients.iter().filter(|patient| patient.time >= time).count();
        let events =
            patients.iter().filter(|patient| patient.event && patient.time == time).count();
        survival *= 1.0 - events as f64 / at_risk as f64;
        points.push((time, survival));
    }
    points
}

/// Test of equal survival of two groups: the statistic and its p-value.
///
/// # Errors
/// If there is no event while both groups are at risk.
///
/// # Source
/// Mantel 1966; chi-squared with one degree of freedom, without continuity correction, as lifelines'
/// `logrank_test`.
pub fn log_rank(first: &[FollowUp], second: &[FollowUp]) -> Result<(f64, f64), String> {
    let both = [first, second].concat();
    let at_risk = |group: &[FollowUp], time: f64| {
        group.iter().filter(|patient| patient.time >= time).count() as f64
    };
    let events = |group: &[FollowUp], time: f64| {
        group.iter().filter(|patient| patient.event && patient.time == time).count() as f64
    };
    let (mut difference, mut variance) = (0.0, 0.0);
    for time in event_times(&both) {
        let (n, n_first) = (at_risk(&both, time), at_risk(first, time));
        let d = events(&both, time);
        difference += events(first, time) - d * n_first / n;
        if n > 1.0 {
            let share = n_first / n;
            variance += d * share * (1.0 - share) * (n - d) / (n - 1.0);
        }
    }
    if variance <= 0.0 {
        return Err("no event while both groups are at risk".into());
    }
    let statistic = difference * difference / variance;
    Ok((statistic, erfc((statistic / 2.0).sqrt())))
}

/// Times of events, ascending, each once.
fn event_times(patients: &[FollowUp]) -> Vec<f64> {
    let mut times: Vec<f64> =
        patients.iter().filter(|patient| patient.event).map(|patient| patient.time).collect();
    times.sort_by(f64::total_cmp);
    times.dedup();
    times
}

/// Complementary error function of `x >= 0`, to about 1e-15 relative.
///
/// A power series near zero, Lentz's continued fraction elsewhere.
fn erfc(x: f64) -> f64 {
    let scale = 2.0 / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return 1.0 - scale * sum;
    }
    let mut fraction = x;
    for k in (1..=60).rev() {
        fraction = x + f64::from(k) / 2.0 / fraction;
    }
    (-x * x).exp() / fraction / std::f64::consts::PI.sqrt()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn patient(time: f64, event: bool, risk: f64) -> FollowUp {
        FollowUp { time, event, risk }
    }

    #[test]
    fn bins_hold_equal_numbers_of_events() {
        let times: Vec<(f64, bool)> = (0..9).map(|t| (f64::from(t), true)).collect();
        let bins = TimeBins::fit(&times, 4).unwrap();
        assert_eq!(bins.edges, [2.0, 4.0, 6.0]);
        assert_eq!([-1.0, 1.9, 2.0, 5.9, 6.0, 99.0].map(|time| bins.bin(time)), [0, 0, 1, 2, 3, 3]);
        let error = TimeBins::fit(&[(1.0, true), (2.0, false)], 4).unwrap_err();
        assert_eq!(error, "expected events at enough different times for 4 bins, got 1 events");
    }

    #[test]
    fn the_loss_of_tensors_is_the_loss_of_numbers() {
        let logits = [0.3_f32, -1.2, 2.0, -0.4];
        let device = Device::flex();
        let numbers = logits.map(f64::from);
        for bin in 0..4 {
            for event in [false, true] {
                let data = TensorData::new(logits.to_vec(), [4]);
                let loss = hazard_loss(Tensor::from_data(data, &device), bin, event);
                let loss = f64::from(loss.into_scalar::<f32>());
                let expected = hazard_loss_of(&numbers, bin, event);
                assert!((loss - expected).abs() < 1e-5, "{bin} {event}: {loss} {expected}");
            }
        }
    }

    #[test]
    fn probabilities_of_all_that_may_happen_add_up_to_one() {
        let logits = [0.3, -1.2, 2.0, -0.4];
        let events: f64 = (0..4).map(|bin| (-hazard_loss_of(&logits, bin, true)).exp()).sum();
        let survives = (-hazard_loss_of(&logits, 3, false)).exp();
        assert!((events + survives - 1.0).abs() < 1e-12);
    }

    #[test]
    fn concordance_counts_comparable_pairs() {
        let high_risk_dies_first =
            [patient(1.0, true, 3.0), patient(2.0, true, 2.0), patient(3.0, false, 1.0)];
        assert_eq!(concordance(&high_risk_dies_first), Ok(1.0));
        // An event is comparable to a censored patient of the same time; tied risks count half.
        let tied = [patient(1.0, true, 1.0), patient(1.0, false, 1.0)];
        assert_eq!(concordance(&tied), Ok(0.5));
        let censored = [patient(1.0, false, 1.0), patient(2.0, false, 2.0)];
        assert_eq!(concordance(&censored), Err("no two patients are comparable".into()));
        let same_time = [patient(1.0, true, 1.0), patient(1.0, true, 2.0)];
        assert!(concordance(&same_time).is_err());
    }

    #[test]
    fn the_complementary_error_function_is_exact() {
        // C's `erfc`.
        for (x, value) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (1.999, 4.698_443_348_629_488e-3),
            (2.0, 4.677_734_981_047_266e-3),
            (5.0, 1.537_459_794_428_034_8e-12),
        ] {
            assert!((erfc(x) - value).abs() <= 1e-12 * value, "{x}: {}", erfc(x));
        }
    }
}
