//! The course of a run as arithmetic: which micro-batches a step takes and what happens after it.

use std::ops::Range;

use crate::config::{CheckpointSection, LogSection, TrainSection};

/// Lengths of a run in optimiser steps. Everything it says is a pure function of the step.
///
/// A step takes `accumulate` micro-batches. The last one of an epoch takes those that are left, so
/// an epoch always ends with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Steps of the run.
    pub total_steps: u64,
    /// Steps of one pass over the training split.
    pub steps_per_epoch: u64,
    batches_per_epoch: u64,
    accumulate: u64,
    eval_every: u64,
    save_every: Option<u64>,
    log_every: u64,
}

impl Plan {
    /// The plan for a training split of `batches_per_epoch >= 1` micro-batches.
    #[must_use]
    pub fn new(
        train: &TrainSection,
        checkpoint: &CheckpointSection,
        log: &LogSection,
        batches_per_epoch: u64,
    ) -> Self {
        let accumulate = train.accumulate as u64;
        let steps_per_epoch = batches_per_epoch.div_ceil(accumulate);
        // The configuration holds exactly one of the two.
        let epochs = train.epochs.unwrap_or(1).saturating_mul(steps_per_epoch);
        Self {
            total_steps: train.steps.unwrap_or(epochs),
            steps_per_epoch,
            batches_per_epoch,
            accumulate,
            eval_every: train.eval_every_steps.unwrap_or(steps_per_epoch),
            save_every: checkpoint.every_steps,
            log_every: log.every_steps,
        }
    }

    /// Epoch of `step`; both are counted from 0.
    #[must_use]
    pub fn epoch(&self, step: u64) -> u64 {
        step / self.steps_per_epoch
    }

    /// Micro-batches of `step`, counted from 0 over all epochs.
    #[must_use]
    pub fn micro_batches(&self, step: u64) -> Range<u64> {
        let epoch_start = self.epoch(step) * self.batches_per_epoch;
        let start = epoch_start + step % self.steps_per_epoch * self.accumulate;
        start..(start + self.accumulate).min(epoch_start + self.batches_per_epoch)
    }

    /// Whether a line is logged once `done >= 1` steps are done.
    #[must_use]
    pub fn logs(&self, done: u64) -> bool {
        done.is_multiple_of(self.log_every) || done == self.total_steps
    }

    /// Whether the model is evaluated once `done >= 1` steps are done.
    #[must_use]
    pub fn evaluates(&self, done: u64) -> bool {
        done.is_multiple_of(self.eval_every) || done == self.total_steps
    }

    /// Whether a checkpoint is saved once `done >= 1` steps are done, whatever the evaluation says.
    #[must_use]
    pub fn saves(&self, done: u64) -> bool {
        let due = self.save_every.map_or(self.evaluates(done), |every| done.is_multiple_of(every));
        due || done == self.total_steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(train: TrainSection, every_steps: Option<u64>) -> Plan {
        let checkpoint = CheckpointSection { every_steps, ..CheckpointSection::default() };
        Plan::new(&train, &checkpoint, &LogSection { every_steps: 4 }, 10)
    }

    #[test]
    fn every_micro_batch_is_taken_once_and_in_order() {
        for accumulate in [1, 2, 3, 4, 10, 11] {
            let train = TrainSection { epochs: Some(3), accumulate, ..TrainSection::default() };
            let plan = plan(train, None);
            let taken: Vec<u64> =
                (0..plan.total_steps).flat_map(|s| plan.micro_batches(s)).collect();
            assert_eq!(taken, (0..30).collect::<Vec<u64>>(), "accumulate {accumulate}");
            for step in 0..plan.total_steps {
                let batches = plan.micro_batches(step);
                assert!(!batches.is_empty());
                assert!(batches.clone().all(|batch| batch / 10 == plan.epoch(step)));
            }
        }
    }

    #[test]
    fn epochs_end_with_an_evaluation_that_is_saved() {
        let train = TrainSection { steps: Some(9), accumulate: 3, ..TrainSection::default() };
        let plan = plan(train, None);
        assert_eq!(plan.steps_per_epoch, 4);
        let done = |what: fn(&Plan, u64) -> bool| -> Vec<u64> {
            (1..=9).filter(|&done| what(&plan, done)).collect()
        };
        assert_eq!(done(Plan::evaluates), [4, 8, 9]);
        assert_eq!(done(Plan::saves), [4, 8, 9]);
        assert_eq!(done(Plan::logs), [4, 8, 9]);
    }

    #[test]
    fn checkpoints_have_a_rhythm_of_their_own() {
        let train =
            TrainSection { epochs: Some(1), eval_every_steps: Some(5), ..TrainSection::default() };
        let plan = plan(train, Some(3));
        let saves: Vec<u64> = (1..=10).filter(|&done| plan.saves(done)).collect();
        assert_eq!(saves, [3, 6, 9, 10]);
    }
}
