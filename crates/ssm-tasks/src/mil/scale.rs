//! Standardisation of instances: every feature to mean 0 and variance 1 on the training instances.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ssm_train::error::Error;

use super::cohort::{Bag, Cohort};

/// Mean and standard deviation of every feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureScaler {
    mean: Vec<f64>,
    /// 1 for a constant feature.
    std: Vec<f64>,
}

impl FeatureScaler {
    /// Statistics of all instances of `slides`, population variance, in one pass over the files.
    ///
    /// # Errors
    /// Slides that cannot be read.
    pub fn fit(cohort: &Cohort, slides: &[usize]) -> Result<Self, Error> {
        let width = cohort.d_feature;
        // Welford: means and squared deviations are updated, never subtracted from each other.
        let (mut mean, mut squares, mut n) = (vec![0.0; width], vec![0.0; width], 0.0);
        for &slide in slides {
            for row in cohort.bag(slide)?.features.chunks(width) {
                n += 1.0;
                for ((mean, squares), value) in mean.iter_mut().zip(&mut squares).zip(row) {
                    let before = f64::from(*value) - *mean;
                    *mean += before / n;
                    *squares += before * (f64::from(*value) - *mean);
                }
            }
        }
        let std = squares.iter().zip(&mean).map(|(squares, mean): (&f64, &f64)| {
            let deviation = (squares / n).sqrt();
            // Rounding alone gives a constant feature a deviation of this size.
            if deviation <= 1e-12 * mean.abs().max(1e-12) { 1.0 } else { deviation }
        });
        let std = std.collect();
        Ok(Self { mean, std })
    }

    /// The bag in standard deviations from the mean.
    #[must_use]
    pub fn apply(&self, bag: Arc<Bag>) -> Arc<Bag> {
        let mut bag = Arc::unwrap_or_clone(bag);
        for row in bag.features.chunks_mut(bag.d_feature) {
            for ((value, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
                *value = ((f64::from(*value) - mean) / std) as f32;
            }
        }
        Arc::new(bag)
    }
}
