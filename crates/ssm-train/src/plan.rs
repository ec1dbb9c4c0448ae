//! The course of a run as arithmetic: which micro-batches a step takes and what happens after it.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    config::{CheckpointSection, Config, Issue, LogSection, TrainSection},
    error::Error,
    task::TaskConfig,
};

/// Stream of the generator that seeds steps; tasks draw from others.
const STEP_STREAM: u64 = u64::from_be_bytes(*b"ssm-step");

/// Seed of the random numbers of a step, counted from 0.
#[must_use]
pub fn step_seed(seed: u64, step: u64) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(STEP_STREAM);
    rng.set_word_pos(2 * u128::from(step));
    rng.next_u64()
}

/// Seed of the random numbers of a micro-batch of a step, both counted from 0: who computes it, and
/// after what, makes no difference. The first of a step has the seed of the step.
#[must_use]
pub fn micro_batch_seed(seed: u64, step: u64, place: u64) -> u64 {
    step_seed(seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15)), step)
}

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
    /// The plan of a configuration for a training split of so many micro-batches.
    ///
    /// # Errors
    /// [`Error::Config`] for a split without a micro-batch, and for a schedule that does not fit
    /// into the run.
    pub fn of<T: TaskConfig>(config: &Config<T>, batches_per_epoch: u64) -> Result<Self, Error> {
        let Config { train, checkpoint, log, schedule, .. } = config;
        let refuse =
            |path: &str, message: String| Err(config.refuse(vec![Issue::new(path, message)]));
        if batches_per_epoch == 0 {
            let message = format!("the training split has no batch of {}", train.batch_size);
            return refuse("train.batch_size", message);
        }
        let plan = Self::new(train, checkpoint, log, batches_per_epoch);
        let (needed, steps) = (schedule.min_steps(), plan.total_steps);
        if needed > steps {
            let message = format!("warm-up and decay take {needed} steps, the run has {steps}");
            return refuse(&format!("schedule.{}", schedule.name()), message);
        }
        Ok(plan)
    }

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
        Self {
            total_steps: total_steps(train, steps_per_epoch),
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

    /// Whether a line is logged once `done >= 1` steps are done, however long the run is.
    #[must_use]
    pub fn logs(&self, done: u64) -> bool {
        done.is_multiple_of(self.log_every)
    }

    /// Whether the model is evaluated once `done >= 1` steps are done, however long the run is.
    #[must_use]
    pub fn evaluates(&self, done: u64) -> bool {
        done.is_multiple_of(self.eval_every)
    }

    /// Whether a checkpoint is saved once `done >= 1` steps are done, whatever the evaluation says
    /// and however long the run is.
    #[must_use]
    pub fn saves(&self, done: u64) -> bool {
        self.save_every.map_or(self.evaluates(done), |every| done.is_multiple_of(every))
    }

    /// Whether the run ends once `done` steps are done: then it logs, evaluates and saves in any
    /// case.
    #[must_use]
    pub fn ends(&self, done: u64) -> bool {
        done >= self.total_steps
    }
}

/// Steps of a run whose epochs have so many.
pub(crate) fn total_steps(train: &TrainSection, steps_per_epoch: u64) -> u64 {
    // The configuration holds exactly one of the two.
    let epochs = train.epochs.unwrap_or(1).saturating_mul(steps_per_epoch);
    train.steps.unwrap_or(epochs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(train: TrainSection, every_steps: Option<u64>) -> Plan {
        let checkpoint = CheckpointSection { every_steps, ..CheckpointSection::default() };
        Plan::new(&train, &checkpoint, &LogSection { every_steps: 4, tensorboard: false }, 10)
    }

    #[test]
    fn steps_have_seeds_of_their_own() {
        let seeds: Vec<u64> =
            (0..3).flat_map(|seed| (0..100).map(move |step| step_seed(seed, step))).collect();
        let distinct: std::collections::BTreeSet<&u64> = seeds.iter().collect();
        assert_eq!(distinct.len(), seeds.len());
        assert_eq!(step_seed(1, 7), seeds[107], "a function of seed and step alone");
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
        assert_eq!(done(Plan::evaluates), [4, 8]);
        assert_eq!(done(Plan::saves), [4, 8]);
        assert_eq!(done(Plan::logs), [4, 8]);
        assert_eq!(done(Plan::ends), [9], "where all three happen too");
    }

    #[test]
    fn checkpoints_have_a_rhythm_of_their_own() {
        let train =
            TrainSection { epochs: Some(1), eval_every_steps: Some(5), ..TrainSection::default() };
        let plan = plan(train, Some(3));
        let saves: Vec<u64> = (1..=10).filter(|&done| plan.saves(done)).collect();
        assert_eq!(saves, [3, 6, 9]);
    }
}
