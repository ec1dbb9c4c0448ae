//! Where a run stands between two optimiser steps: all that a checkpoint holds besides tensors.

use serde::{Deserialize, Serialize};

use crate::task::Goal;

/// Format of `state.json`; raised when an old file can no longer be read.
pub(crate) const FORMAT: u32 = 1;

/// What `state.json` of a checkpoint says.
///
/// Data order and random numbers are functions of the seed and the step, so no loader or generator
/// state is part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Version of this format.
    pub format: u32,
    /// `run.seed`.
    pub seed: u64,
    /// Optimiser steps done.
    pub step: u64,
    /// Micro-batch that the next step begins with, counted from 0 over all epochs.
    pub next_micro_batch: u64,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_since_best: u64,
    /// Losses since the last line of the log.
    pub losses: Tally,
    /// End of `metrics.jsonl`.
    pub metrics: MetricsEnd,
    /// Where the run stood before it logged and evaluated only because it ended here: a longer run
    /// goes on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_end: Option<BeforeEnd>,
}

/// What the last line of the log and the last evaluation of a run change of its [`Position`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeforeEnd {
    /// The best evaluation before the last one; its checkpoint is kept.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_since_best: u64,
    /// Losses since the last line of the log.
    pub losses: Tally,
    /// End of `metrics.jsonl`.
    pub metrics: MetricsEnd,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Optimiser steps before it; a checkpoint of that step exists.
    pub step: u64,
    /// Value of the metric that selects.
    #[serde(with = "exact")]
    pub value: f64,
}

/// A weighted sum of losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Sum of the mean loss of each step times its samples.
    #[serde(with = "exact")]
    pub sum: f64,
    /// Samples.
    #[serde(with = "exact")]
    pub weight: f64,
}

/// A length of `metrics.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsEnd {
    /// Bytes.
    pub bytes: u64,
    /// Lines.
    pub rows: u64,
}

impl Position {
    /// Before the first step.
    #[must_use]
    pub fn start(seed: u64) -> Self {
        Self {
            format: FORMAT,
            seed,
            step: 0,
            next_micro_batch: 0,
            best: None,
            evaluations_since_best: 0,
            losses: Tally::default(),
            metrics: MetricsEnd::default(),
            before_end: None,
        }
    }

    /// Takes an evaluation into account and says whether it is the best so far.
    ///
    /// Equal is not better, and a value that is not finite never is.
    pub fn observe(&mut self, value: f64, goal: Goal) -> bool {
        let better = |best: Best| match goal {
            Goal::Minimise => value < best.value,
            Goal::Maximise => value > best.value,
        };
        let improved = value.is_finite() && self.best.is_none_or(better);
        if improved {
            self.best = Some(Best { step: self.step, value });
            self.evaluations_since_best = 0;
        } else {
            self.evaluations_since_best += 1;
        }
        improved
    }

    /// Step of the best evaluation, or of the last weights if none was finite.
    #[must_use]
    pub fn best_or_last(&self) -> u64 {
        self.best.map_or(self.step, |best| best.step)
    }

    /// Remembers the position as the one from which a longer run goes on; `metrics` is the end of
    /// the log so far.
    pub(crate) fn mark_end(&mut self, metrics: MetricsEnd) {
        let Self { best, evaluations_since_best, losses, .. } = *self;
        self.before_end = Some(BeforeEnd { best, evaluations_since_best, losses, metrics });
    }

    /// Takes back what happened only because the run ended here, and says whether there was such.
    pub(crate) fn take_back_end(&mut self) -> bool {
        let Some(before) = self.before_end.take() else { return false };
        let BeforeEnd { best, evaluations_since_best, losses, metrics } = before;
        *self = Self { best, evaluations_since_best, losses, metrics, ..*self };
        true
    }

    /// Without its checkpoint the best evaluation is worth nothing: the search for it starts again.
    pub(crate) fn forget_best(&mut self) {
        self.best = None;
        self.evaluations_since_best = 0;
    }

    /// Steps whose checkpoints the run needs wherever it goes on from here.
    pub(crate) fn needed_steps(&self) -> impl Iterator<Item = u64> {
        let best = [self.best, self.before_end.and_then(|before| before.best)];
        [self.step].into_iter().chain(best.into_iter().flatten().map(|best| best.step))
    }

    /// Whether `patience` evaluations went by without improvement.
    #[must_use]
    pub fn out_of_patience(&self, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| self.evaluations_since_best >= patience)
    }
}

impl Tally {
    /// Adds the mean loss of a step.
    pub fn add(&mut self, loss: f64, weight: f64) {
        self.sum += loss * weight;
        self.weight += weight;
    }

    /// Mean over the samples.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}

/// Floating point numbers as strings: the shortest that reads back to the same bits. JSON readers
/// may miss the last bit of a number, and JSON has no infinity.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format!("`{text}` is no number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_every_bit() {
        let mut position = Position::start(u64::MAX);
        position.losses.add(0.1 + 0.2, 1.0 / 3.0);
        position.best = Some(Best { step: 7, value: 2.0f64.sqrt() / 1e9 });
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
    }

    #[test]
    fn only_a_strictly_better_finite_value_is_an_improvement() {
        let mut position = Position::start(0);
        let mut observe = |value, goal| {
            position.step += 1;
            (position.observe(value, goal), position.evaluations_since_best)
        };
        assert_eq!(observe(f64::NAN, Goal::Minimise), (false, 1));
        assert_eq!(observe(3.0, Goal::Minimise), (true, 0));
        assert_eq!(observe(3.0, Goal::Minimise), (false, 1));
        assert_eq!(observe(f64::NEG_INFINITY, Goal::Minimise), (false, 2));
        assert_eq!(observe(2.0, Goal::Minimise), (true, 0));
        assert_eq!(observe(2.5, Goal::Maximise), (true, 0));
        assert_eq!(observe(2.5, Goal::Maximise), (false, 1));
        assert!(position.out_of_patience(Some(1)));
        assert!(!position.out_of_patience(Some(2)));
        assert!(!position.out_of_patience(None));
    }
}
