//! The learning rate over the run: a pure function of the step.

use std::f64::consts::PI;

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};

/// Factor on the base learning rate, step by step. TOML: `[schedule.<variant>]`.
///
/// Steps are optimiser steps counted from 0; step `t` is the one that turns the weights after `t`
/// updates into those after `t + 1`. Without this section the rate is constant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// `1` at every step.
    Constant {},
    /// Linear warm-up, then half a cosine down to `min_factor` at the end of the run.
    ///
    /// Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts; warm-up as in nanoGPT.
    Cosine {
        /// Steps of warm-up, `>= 0`; step `t` of them has the factor `(t + 1) / (warmup_steps + 1)`.
        /// Default 0 (PyTorch's `CosineAnnealingLR` has none).
        #[serde(default)]
        warmup_steps: u64,
        /// Factor reached right after the last step, in `[0, 1]`. Default 0 (PyTorch's `eta_min`).
        #[serde(default)]
        min_factor: f64,
    },
    /// Warm-up, stable, decay: linear warm-up, `1`, then linearly down to `min_factor`.
    ///
    /// Hu et al. 2024, arXiv:2404.06395; the linear decay of Hägele et al. 2024, arXiv:2405.18392.
    Wsd {
        /// Steps of warm-up, as in `cosine`. Default 0.
        #[serde(default)]
        warmup_steps: u64,
        /// Steps of decay at the end of the run, `>= 1`. No default: the papers use 10 % to 20 %
        /// of the run.
        decay_steps: u64,
        /// Factor reached right after the last step, in `[0, 1]`. Default 0 (Hägele et al.).
        #[serde(default)]
        min_factor: f64,
    },
    /// `gamma^max(0, epoch + 1 - hold_epochs)`, the epoch counted from 0.
    ///
    /// The defaults are `type1` of the Time-Series-Library, used by arXiv:2403.11144:
    /// epochs 1 and 2 at the base rate, then half of it for every further epoch.
    EpochDecay {
        /// Factor for one epoch, in `(0, 1]`. Default 0.5 (`type1`).
        #[serde(default = "type1_gamma")]
        gamma: f64,
        /// Epochs at the base rate, `>= 1`. Default 2 (`type1`).
        #[serde(default = "type1_hold_epochs")]
        hold_epochs: u64,
    },
}

fn type1_gamma() -> f64 {
    0.5
}

fn type1_hold_epochs() -> u64 {
    2
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Constant {}
    }
}

impl Schedule {
    /// The key under `[schedule]`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant {} => "constant",
            Self::Cosine { .. } => "cosine",
            Self::Wsd { .. } => "wsd",
            Self::EpochDecay { .. } => "epoch_decay",
        }
    }

    /// Factor on the base learning rate at `step`.
    ///
    /// `total_steps` is the length of the run and `steps_per_epoch` that of one pass over the
    /// training split, both in optimiser steps. Steps beyond the run keep the final factor
    /// (`epoch_decay`, which knows no end, goes on). Zero lengths count as one.
    #[must_use]
    pub fn factor(&self, step: u64, total_steps: u64, steps_per_epoch: u64) -> f64 {
        match *self {
            Self::Constant {} => 1.0,
            Self::Cosine { warmup_steps, min_factor } => {
                if step < warmup_steps {
                    return warm_up(step, warmup_steps);
                }
                let decay_steps = total_steps.saturating_sub(warmup_steps);
                let done = fraction(step - warmup_steps, decay_steps);
                min_factor + (1.0 - min_factor) * 0.5 * (1.0 + (PI * done).cos())
            }
            Self::Wsd { warmup_steps, decay_steps, min_factor } => {
                if step < warmup_steps {
                    return warm_up(step, warmup_steps);
                }
                let decay_start = total_steps.saturating_sub(decay_steps);
                let done = fraction(step.saturating_sub(decay_start), decay_steps);
                1.0 - (1.0 - min_factor) * done
            }
            Self::EpochDecay { gamma, hold_epochs } => {
                let epoch = step / steps_per_epoch.max(1);
                let decays = (epoch + 1).saturating_sub(hold_epochs);
                gamma.powi(i32::try_from(decays).unwrap_or(i32::MAX))
            }
        }
    }

    /// Steps that a run must at least have for warm-up and decay to fit into it.
    #[must_use]
    pub fn min_steps(&self) -> u64 {
        match *self {
            Self::Constant {} | Self::EpochDecay { .. } => 0,
            Self::Cosine { warmup_steps, .. } => warmup_steps,
            Self::Wsd { warmup_steps, decay_steps, .. } => warmup_steps.saturating_add(decay_steps),
        }
    }
}

fn warm_up(step: u64, warmup_steps: u64) -> f64 {
    (step + 1) as f64 / (warmup_steps + 1) as f64
}

/// `part / whole`, at most 1; an empty whole is done.
fn fraction(part: u64, whole: u64) -> f64 {
    if part >= whole { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() <= 1e-12, "got {got}, expected {expected}");
    }

    #[test]
    fn constant_is_one_everywhere() {
        for step in [0, 1, 99, 100, u64::MAX] {
            assert_eq!(Schedule::Constant {}.factor(step, 100, 10), 1.0);
        }
    }

    #[test]
    fn cosine_warms_up_falls_and_stays() {
        let cosine = Schedule::Cosine { warmup_steps: 10, min_factor: 0.1 };
        let factor = |step| cosine.factor(step, 110, 1);
        assert_near(factor(0), 1.0 / 11.0);
        assert_near(factor(9), 10.0 / 11.0);
        assert_near(factor(10), 1.0);
        assert_near(factor(60), 0.55);
        assert!(factor(109) > 0.1 && factor(109) < 0.101);
        assert_near(factor(110), 0.1);
        assert_near(factor(u64::MAX), 0.1);
    }

    #[test]
    fn cosine_without_warm_up_starts_at_one() {
        let cosine = Schedule::Cosine { warmup_steps: 0, min_factor: 0.0 };
        assert_near(cosine.factor(0, 100, 1), 1.0);
        assert!(cosine.factor(99, 100, 1) > 0.0);
        assert_near(cosine.factor(100, 100, 1), 0.0);
    }

    #[test]
    fn cosine_survives_a_run_that_is_all_warm_up() {
        let cosine = Schedule::Cosine { warmup_steps: 10, min_factor: 0.5 };
        assert_near(cosine.factor(4, 5, 1), 5.0 / 11.0);
        assert_near(cosine.factor(10, 5, 1), 0.5);
        assert_near(cosine.factor(0, 0, 0), 1.0 / 11.0);
    }

    #[test]
    fn wsd_warms_up_holds_decays_and_stays() {
        let wsd = Schedule::Wsd { warmup_steps: 4, decay_steps: 10, min_factor: 0.2 };
        let factor = |step| wsd.factor(step, 100, 1);
        assert_near(factor(0), 0.2);
        assert_near(factor(3), 0.8);
        assert_near(factor(4), 1.0);
        assert_near(factor(90), 1.0);
        assert_near(factor(95), 0.6);
        assert_near(factor(99), 0.28);
        assert_near(factor(100), 0.2);
        assert_near(factor(1000), 0.2);
    }

    #[test]
    fn epoch_decay_is_type1_by_default() {
        let decay = Schedule::EpochDecay { gamma: 0.5, hold_epochs: 2 };
        let factor = |step| decay.factor(step, 50, 10);
        let epochs: Vec<f64> = (0..5).map(|epoch| factor(epoch * 10)).collect();
        assert_eq!(epochs, [1.0, 1.0, 0.5, 0.25, 0.125]);
        assert_eq!(factor(19), 1.0);
        assert_eq!(factor(29), 0.5);
        assert_eq!(factor(49), 0.125);
        assert_eq!(factor(u64::MAX), 0.0);
        assert_eq!(decay.factor(3, 0, 0), 0.25);
    }

    #[test]
    fn factors_never_leave_the_unit_interval() {
        let schedules = [
            Schedule::Constant {},
            Schedule::Cosine { warmup_steps: 7, min_factor: 0.0 },
            Schedule::Wsd { warmup_steps: 7, decay_steps: 5, min_factor: 0.0 },
            Schedule::EpochDecay { gamma: 0.9, hold_epochs: 1 },
        ];
        for schedule in schedules {
            for (step, total) in (0..40).flat_map(|step| (0..30).map(move |total| (step, total))) {
                let factor = schedule.factor(step, total, 3);
                assert!((0.0..=1.0).contains(&factor), "{schedule:?} {step}/{total}: {factor}");
            }
        }
    }
}
