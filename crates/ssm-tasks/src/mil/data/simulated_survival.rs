//! Made-up patients whose risk depends on how much of their slide is of one kind.

use std::{path::PathBuf, sync::Arc};

use schemars::JsonSchema;

use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{DataSet, range_issues};
use crate::{
    data::KnownSet,
    mil::{
        cohort::{Bag, Bags, Cohort, Slide, Target},
        splits::{Purpose, below, normal, stream, unit},
    },
};

pub(super) const KNOWN: [KnownSet; 0] = [];

/// `[data.simulated_survival]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatedSurvivalConfig {
    /// Patients, 20..=1000000, one slide each. Default 400.
    pub n_patients: usize,
    /// Mean number of instances in a slide, 2..=100000; between half of it and one and a half.
    /// Default 60.
    pub mean_len: usize,
    /// Width of an instance, 1..=65536. Default 16.
    pub d_feature: usize,
    /// Log-hazard of a slide that is all of the one kind against one without it. Default 5.
    pub effect: f64,
    /// Share of patients who are censored, `[0, 0.95]`. Default 0.3.
    pub censored: f64,
    /// Seed of the patients. Default 0.
    pub seed: u64,
}

impl Default for SimulatedSurvivalConfig {
    fn default() -> Self {
        Self { n_patients: 400, mean_len: 60, d_feature: 16, effect: 5.0, censored: 0.3, seed: 0 }
    }
}

/// Months, so that times look like times.
const SCALE: f64 = 60.0;
/// What an instance of the one kind has more in its first feature.
const STRENGTH: f64 = 2.0;

impl DataSet for SimulatedSurvivalConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = range_issues(&[
            ("n_patients", self.n_patients, 20, 1_000_000),
            ("mean_len", self.mean_len, 2, 100_000),
            ("d_feature", self.d_feature, 1, 65536),
        ]);
        if !self.effect.is_finite() {
            issues.push(Issue::range("effect", "a number", self.effect));
        }
        if !(0.0..=0.95).contains(&self.censored) {
            issues.push(Issue::range("censored", "0 to 0.95", self.censored));
        }
        issues
    }

    fn load(&self, _dirs: &[PathBuf]) -> Result<Cohort, Error> {
        let drawn: Vec<Drawn> = (0..self.n_patients).map(|index| self.draw(index)).collect();
        let horizon = self.horizon(&drawn);
        let slides = drawn.iter().enumerate().map(|(index, drawn)| {
            let last_contact = drawn.contact * horizon;
            let id = format!("patient_{index}");
            let event = drawn.time <= last_contact;
            let time = drawn.time.min(last_contact).max(1e-6);
            Slide { id: id.clone(), case: id, target: Target::Survival { time, event } }
        });
        let slides = slides.collect();
        let oracle = drawn.iter().map(|drawn| drawn.log_hazard).collect();
        let bags = drawn.into_iter().map(|drawn| Arc::new(drawn.bag));
        Ok(Cohort {
            name: "simulated survival".to_owned(),
            slides,
            bags: Bags::Memory(bags.collect()),
            d_feature: self.d_feature,
            oracle,
            ..Cohort::default()
        })
    }
}

/// One patient before censoring.
struct Drawn {
    bag: Bag,
    log_hazard: f64,
    time: f64,
    /// Last contact as a share of the horizon of the study.
    contact: f64,
}

impl SimulatedSurvivalConfig {
    fn draw(&self, index: usize) -> Drawn {
        let mut rng = stream(self.seed, Purpose::Synthesis, index as u64);
        let len = self.mean_len / 2 + below(&mut rng, self.mean_len + 1);
        let share = unit(&mut rng);
        let mut features = Vec::with_capacity(len.max(1) * self.d_feature);
        let mut n_kind = 0;
        for _ in 0..len.max(1) {
            let kind = unit(&mut rng) < share;
            n_kind += usize::from(kind);
            let start = features.len();
            features.extend((0..self.d_feature).map(|_| normal(&mut rng) as f32));
            if kind {
                features[start] += STRENGTH as f32;
            }
        }
        // What the slide shows, not what it was drawn from: an oracle can see it.
        let log_hazard = self.effect * n_kind as f64 / len.max(1) as f64;
        let time = -(1.0 - unit(&mut rng)).ln() * SCALE / log_hazard.exp();
        let bag = Bag { features, d_feature: self.d_feature, ..Bag::default() };
        Drawn { bag, log_hazard, time, contact: unit(&mut rng) }
    }

    /// The length of the study at which the wanted share is censored: uniform last contacts, bisected.
    fn horizon(&self, drawn: &[Drawn]) -> f64 {
        let censored = |horizon: f64| {
            let late = drawn.iter().filter(|drawn| drawn.time > drawn.contact * horizon).count();
            late as f64 / drawn.len() as f64
        };
        let (mut short, mut long) = (1e-9_f64, 1e9_f64);
        for _ in 0..200 {
            let middle = (short * long).sqrt();
            if censored(middle) > self.censored { short = middle } else { long = middle }
        }
        long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_share_is_censored_and_risk_shortens_life() {
        let config = SimulatedSurvivalConfig::default();
        let cohort = config.load(&[]).unwrap();
        let patients: Vec<(f64, bool)> = cohort
            .slides
            .iter()
            .map(|slide| match slide.target {
                Target::Survival { time, event } => (time, event),
                Target::Class(_) => panic!("a class"),
            })
            .collect();
        let censored = patients.iter().filter(|(_, event)| !event).count();
        assert!((110..=122).contains(&censored), "{censored} of 400");
        let follow_ups: Vec<_> = patients
            .iter()
            .zip(&cohort.oracle)
            .map(|(&(time, event), &risk)| crate::mil::survival::FollowUp { time, event, risk })
            .collect();
        let c_index = crate::mil::survival::concordance(&follow_ups).unwrap();
        assert!((0.7..0.95).contains(&c_index), "{c_index}");
    }
}
