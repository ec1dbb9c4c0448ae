//! Standardisation: every variate to mean 0 and variance 1 on the training rows.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Mean and standard deviation of every variate.
///
/// # Source
/// scikit-learn's `StandardScaler`, which the benchmarks use: population variance, and constant
/// variates are only shifted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    /// One mean a variate, in its units.
    pub mean: Vec<f64>,
    /// One standard deviation a variate, in its units; 1 for a constant variate.
    pub std: Vec<f64>,
}

impl Scaler {
    /// Statistics of the given rows of every column.
    ///
    /// # Panics
    /// If `rows` is empty or outside the columns.
    #[must_use]
    pub fn fit(columns: &[Vec<f64>], rows: Range<usize>) -> Self {
        assert!(!rows.is_empty(), "a scaler needs at least one row");
        let (mean, std) = columns
            .iter()
            .map(|column| {
                let values = &column[rows.clone()];
                let n = values.len() as f64;
                let mean = values.iter().sum::<f64>() / n;
                let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
                // Rounding alone gives a constant variate a variance of this size.
                let rounding = n * f64::EPSILON * variance + (n * mean * f64::EPSILON).powi(2);
                (mean, if variance <= rounding { 1.0 } else { variance.sqrt() })
            })
            .unzip();
        Self { mean, std }
    }

    /// A value of variate `index` in standard deviations from the mean.
    #[must_use]
    pub fn standardise(&self, index: usize, value: f64) -> f64 {
        (value - self.mean[index]) / self.std[index]
    }

    /// The inverse of [`Scaler::standardise`].
    #[must_use]
    pub fn restore(&self, index: usize, value: f64) -> f64 {
        value * self.std[index] + self.mean[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_from_the_given_rows_alone() {
        let scaler = Scaler::fit(&[vec![1.0, 3.0, 100.0], vec![-2.0, 2.0, 7.0]], 0..2);
        assert_eq!(scaler, Scaler { mean: vec![2.0, 0.0], std: vec![1.0, 2.0] });
        assert_eq!(scaler.standardise(1, 7.0), 3.5);
        assert_eq!(scaler.restore(1, 3.5), 7.0);
    }

    #[test]
    fn a_constant_variate_is_only_shifted() {
        let scaler = Scaler::fit(&[vec![0.1; 1000], vec![0.0; 1000]], 0..1000);
        assert_eq!(scaler.std, [1.0, 1.0]);
        assert!(scaler.standardise(0, 0.1).abs() < 1e-12);
    }
}
