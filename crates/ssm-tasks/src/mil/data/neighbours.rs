//! Made-up slides on which order is everything: a marker directly below another one, or elsewhere.
//!
//! Every slide is a raster of noise with as many markers A as B. In a positive slide some B lie directly
//! below an A; in a negative one none does. No instance, and no count, tells the two apart. Read row by
//! row, the two markers are a whole row apart; read column by column, they are neighbours.

use std::{path::PathBuf, sync::Arc};

use rand_chacha::rand_core::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{DataSet, parts, range_issues};
use crate::{
    data::KnownSet,
    mil::{
        cohort::{Bag, Bags, Cohort, Slide, Target},
        splits::{Purpose, below, normal, stream},
    },
};

pub(super) const KNOWN: [KnownSet; 0] = [];

/// `[data.neighbours]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NeighboursConfig {
    /// Patches in a row, 4..=4096. Default 32.
    pub width: usize,
    /// Rows, 4..=4096. Default 32.
    pub height: usize,
    /// Markers of each kind, 1..=64, few enough to lie apart. Default 8.
    pub n_markers: usize,
    /// Pairs of a positive slide, 1..=`n_markers`. Default 4.
    pub n_pairs: usize,
    /// Width of an instance, 2..=65536. Default 8.
    pub d_feature: usize,
    /// Standard deviation of the noise on every feature; a marker adds 2 to one of the first two
    /// features. Default 0.3.
    pub noise: f64,
    /// Training slides, 2..=1000000. Default 200.
    pub n_train: usize,
    /// Validation slides. Default 100.
    pub n_valid: usize,
    /// Test slides. Default 200.
    pub n_test: usize,
    /// Seed of the slides. Default 0.
    pub seed: u64,
}

impl Default for NeighboursConfig {
    fn default() -> Self {
        Self {
            width: 32,
            height: 32,
            n_markers: 8,
            n_pairs: 4,
            d_feature: 8,
            noise: 0.3,
            n_train: 200,
            n_valid: 100,
            n_test: 200,
            seed: 0,
        }
    }
}

/// What a marker adds to its feature.
const STRENGTH: f64 = 2.0;

impl DataSet for NeighboursConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = range_issues(&[
            ("width", self.width, 4, 4096),
            ("height", self.height, 4, 4096),
            ("n_markers", self.n_markers, 1, 64),
            ("n_pairs", self.n_pairs, 1, self.n_markers.max(1)),
            ("d_feature", self.d_feature, 2, 65536),
            ("n_train", self.n_train, 2, 1_000_000),
            ("n_valid", self.n_valid, 2, 1_000_000),
            ("n_test", self.n_test, 2, 1_000_000),
        ]);
        // Rejection needs room: a marker and its eight neighbours, four times over.
        if self.width * self.height < 2 * self.n_markers * 9 * 4 {
            let message = format!("expected a raster of at least {} patches", 72 * self.n_markers);
            issues.push(Issue::new("n_markers", message));
        }
        if !(self.noise >= 0.0 && self.noise.is_finite()) {
            issues.push(Issue::range("noise", "a number of at least 0", self.noise));
        }
        issues
    }

    fn n_given_splits(&self) -> usize {
        1
    }

    fn load(&self, _dirs: &[PathBuf]) -> Result<Cohort, Error> {
        let n = self.n_train + self.n_valid + self.n_test;
        let slides = (0..n).map(|index| Slide {
            id: format!("slide_{index}"),
            case: format!("slide_{index}"),
            target: Target::Class(index % 2),
        });
        let bags = (0..n).map(|index| Arc::new(self.bag(index)));
        Ok(Cohort {
            name: format!("neighbours {} x {}", self.width, self.height),
            slides: slides.collect(),
            bags: Bags::Memory(bags.collect()),
            d_feature: self.d_feature,
            classes: vec!["apart".to_owned(), "adjacent".to_owned()],
            given: vec![parts(self.n_train, self.n_valid, self.n_test)],
            ..Cohort::default()
        })
    }
}

impl NeighboursConfig {
    /// Slide `index`, positive if it is odd.
    fn bag(&self, index: usize) -> Bag {
        let mut rng = stream(self.seed, Purpose::Synthesis, index as u64);
        let n_pairs = if index % 2 == 1 { self.n_pairs } else { 0 };
        let markers = self.markers(n_pairs, &mut rng);
        let n = self.width * self.height;
        let mut features: Vec<f32> =
            (0..n * self.d_feature).map(|_| (self.noise * normal(&mut rng)) as f32).collect();
        for (kind, places) in markers.iter().enumerate() {
            for place in places {
                features[place * self.d_feature + kind] += STRENGTH as f32;
            }
        }
        let place = |at: usize| [(at % self.width) as f64, (at / self.width) as f64];
        Bag {
            features,
            d_feature: self.d_feature,
            coords: Some((0..n).map(place).collect()),
            patch_size: Some(1.0),
        }
    }

    /// Places of the markers A and B. Apart from the pairs, none touches another, not even at a
    /// corner, so that nothing but the pairs is near anything.
    fn markers(&self, n_pairs: usize, rng: &mut impl Rng) -> [Vec<usize>; 2] {
        let mut taken: Vec<usize> = Vec::new();
        let touches = |a: usize, b: usize| {
            let (dx, dy) = (
                (a % self.width).abs_diff(b % self.width),
                (a / self.width).abs_diff(b / self.width),
            );
            dx <= 1 && dy <= 1
        };
        let mut markers = [Vec::new(), Vec::new()];
        while markers[0].len() < self.n_markers {
            let pair = markers[0].len() < n_pairs;
            let above = below(rng, self.width * (self.height - 1));
            let other =
                if pair { above + self.width } else { below(rng, self.width * self.height) };
            let free = |place: usize| taken.iter().all(|taken| !touches(*taken, place));
            if free(above) && free(other) && (pair || !touches(above, other)) {
                taken.extend([above, other]);
                markers[0].push(above);
                markers[1].push(other);
            }
        }
        markers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positive_slides_hold_a_marker_below_another_and_counts_are_equal() {
        let config = NeighboursConfig { noise: 0.0, ..NeighboursConfig::default() };
        for index in 0..40 {
            let bag = config.bag(index);
            let is = |place: usize, kind: usize| bag.features[place * 8 + kind] > 1.0;
            let places =
                |kind: usize| (0..1024).filter(|place| is(*place, kind)).collect::<Vec<_>>();
            let (a, b) = (places(0), places(1));
            assert_eq!((a.len(), b.len()), (8, 8));
            let pairs = a.iter().filter(|place| b.contains(&(**place + 32))).count();
            assert_eq!(pairs, if index % 2 == 1 { 4 } else { 0 });
            let beside = a.iter().filter(|place| b.contains(&(**place + 1))).count();
            assert_eq!(beside, 0);
        }
        assert_eq!(config.bag(3), config.bag(3));
        assert_ne!(config.bag(3), config.bag(5));
    }
}
