//! From logits to the next token.

use rand_chacha::ChaCha8Rng;

use super::random::unit;

/// How the next token is drawn. The steps are taken in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that came before are divided by it where they are positive and multiplied by it
    /// where they are not; 1 changes nothing. Keskar et al. 2019, arXiv:1909.05858.
    pub repetition_penalty: f64,
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f64,
    /// Only so many of the most likely tokens remain. Fan et al. 2018, arXiv:1805.04833.
    pub top_k: Option<usize>,
    /// Only the most likely tokens remain that together have at least this probability.
    /// Holtzman et al. 2019, arXiv:1904.09751.
    pub top_p: Option<f64>,
    /// Only tokens remain that are at least this times as likely as the most likely one.
    /// Nguyen et al. 2024, arXiv:2407.01082.
    pub min_p: Option<f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        let (top_k, top_p, min_p) = (None, None, None);
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k, top_p, min_p }
    }
}

impl Sampling {
    /// The first value that is out of its range: its name, the range, and what was given.
    ///
    /// # Errors
    /// A sentence.
    pub fn validate(&self) -> Result<(), String> {
        let share = |name: &str, value: Option<f64>| match value {
            Some(value) if !(value > 0.0 && value <= 1.0) => {
                Err(format!("{name}: expected a number in (0, 1], got {value}"))
            }
            _ => Ok(()),
        };
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let got = self.repetition_penalty;
            return Err(format!("repetition penalty: expected a number above 0, got {got}"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let got = self.temperature;
            return Err(format!("temperature: expected a number of at least 0, got {got}"));
        }
        if self.top_k == Some(0) {
            return Err("top-k: expected at least 1, got 0".to_owned());
        }
        share("top-p", self.top_p)?;
        share("min-p", self.min_p)
    }

    /// Draws a token; `seen` says which tokens came before.
    ///
    /// One number is drawn from `rng` for each token, whatever the settings.
    pub fn draw(&self, logits: &[f32], seen: &[bool], rng: &mut ChaCha8Rng) -> u32 {
        let draw = unit(rng);
        let kept = self.distribution(logits, seen);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut left = draw * total;
        for (token, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a last bit of the sum; a distribution has at least one token.
        kept.last().map_or(0, |(token, _)| *token)
    }

    /// The tokens that remain with their weights, which need not add up to 1.
    fn distribution(&self, logits: &[f32], seen: &[bool]) -> Vec<(u32, f64)> {
        let penalised = logits.iter().zip(seen).map(|(logit, seen)| {
            let logit = f64::from(*logit);
            match (*seen, logit > 0.0) {
                (false, _) => logit,
                (true, true) => logit / self.repetition_penalty,
                (true, false) => logit * self.repetition_penalty,
            }
        });
        let mut kept: Vec<(u32, f64)> = (0..).zip(penalised).collect();
        let most_likely = |kept: &[(u32, f64)]| {
            // The first of equals, as `argmax` does.
            kept.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best })
        };
        let Some((best, largest)) = most_likely(&kept) else { return Vec::new() };
        if self.temperature == 0.0 {
            return vec![(best, 1.0)];
        }
        for (_, value) in &mut kept {
            *value = ((*value - largest) / self.temperature).exp();
        }
        let descending = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.top_k.filter(|k| *k < kept.len()) {
            kept.select_nth_unstable_by(k - 1, descending);
            kept.truncate(k);
        }
        if self.top_p.is_some() || self.top_k.is_some() {
            kept.sort_unstable_by(descending);
        }
        if let Some(p) = self.top_p {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let mut sum = 0.0;
            let enough = kept.iter().position(|(_, weight)| {
                sum += weight;
                sum >= p * total
            });
            kept.truncate(enough.map_or(kept.len(), |place| place + 1));
        }
        if let Some(p) = self.min_p {
            // The most likely token has the weight 1.
            kept.retain(|(_, weight)| *weight >= p);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::random::{Purpose, stream};

    /// Logits whose probabilities are 0.5, 0.25, 0.15, 0.1.
    fn logits() -> Vec<f32> {
        [0.25_f32, 0.5, 0.1, 0.15].iter().map(|p| p.ln()).collect()
    }

    fn tokens(sampling: &Sampling) -> Vec<u32> {
        let mut tokens: Vec<u32> =
            sampling.distribution(&logits(), &[false; 4]).iter().map(|(token, _)| *token).collect();
        tokens.sort_unstable();
        tokens
    }

    #[test]
    fn every_filter_keeps_what_its_paper_says() {
        let all = Sampling::default();
        assert_eq!(tokens(&all), [0, 1, 2, 3]);
        assert_eq!(tokens(&Sampling { temperature: 0.0, ..all.clone() }), [1]);
        assert_eq!(tokens(&Sampling { top_k: Some(2), ..all.clone() }), [0, 1]);
        assert_eq!(tokens(&Sampling { top_k: Some(9), ..all.clone() }), [0, 1, 2, 3]);
        assert_eq!(tokens(&Sampling { top_p: Some(0.7), ..all.clone() }), [0, 1]);
        assert_eq!(tokens(&Sampling { top_p: Some(0.8), ..all.clone() }), [0, 1, 3]);
        assert_eq!(tokens(&Sampling { min_p: Some(0.25), ..all.clone() }), [0, 1, 3]);
        // The nucleus is that of the tokens that top-k left: 0.5 of 0.75.
        let both = Sampling { top_k: Some(2), top_p: Some(0.6), ..all };
        assert_eq!(tokens(&both), [1]);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let mut rng = stream(3, Purpose::Test, 0);
        let mut counts = [0_u32; 4];
        for _ in 0..10_000 {
            counts[Sampling::default().draw(&logits(), &[false; 4], &mut rng) as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.25, 0.5, 0.1, 0.15]) {
            assert!((f64::from(*count) / 10_000.0 - p).abs() < 0.02, "{counts:?}");
        }
    }

    #[test]
    fn a_penalty_makes_what_came_before_less_likely_whatever_the_sign() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let weights = sampling.distribution(&[1.0, 1.0, -1.0, -1.0], &[true, false, true, false]);
        let logs: Vec<f64> = weights.iter().map(|(_, weight)| weight.ln()).collect();
        assert_eq!(logs, [-0.5, 0.0, -3.0, -2.0]);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let all = Sampling::default();
        for (sampling, reason) in [
            (
                Sampling { temperature: -1.0, ..all.clone() },
                "temperature: expected a number of at least 0, got -1",
            ),
            (Sampling { top_k: Some(0), ..all.clone() }, "top-k: expected at least 1, got 0"),
            (
                Sampling { top_p: Some(1.5), ..all.clone() },
                "top-p: expected a number in (0, 1], got 1.5",
            ),
            (
                Sampling { min_p: Some(0.0), ..all.clone() },
                "min-p: expected a number in (0, 1], got 0",
            ),
            (
                Sampling { repetition_penalty: 0.0, ..all },
                "repetition penalty: expected a number above 0, got 0",
            ),
        ] {
            assert_eq!(sampling.validate().unwrap_err(), reason);
        }
    }
}
