//! Squared and absolute errors of forecasts, added up in f64.

use std::collections::BTreeMap;

use ssm_train::task::Metrics;

/// Errors of every window seen so far, by target variate and horizon step.
///
/// Windows are added one by one and in order, so a score does not depend on the batch size.
#[derive(Clone, Debug)]
pub struct Scores {
    n_targets: usize,
    pred_len: usize,
    n_windows: u64,
    /// `[n_targets, pred_len]`
    squared: Vec<f64>,
    /// `[n_targets, pred_len]`
    absolute: Vec<f64>,
}

impl Scores {
    /// No window yet.
    #[must_use]
    pub fn new(n_targets: usize, pred_len: usize) -> Self {
        let zeros = vec![0.0; n_targets * pred_len];
        Self { n_targets, pred_len, n_windows: 0, squared: zeros.clone(), absolute: zeros }
    }

    /// Adds windows: `predicted` and `truth` are `[n_windows, n_targets, pred_len]`.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of a window.
    pub fn add(&mut self, predicted: &[f32], truth: &[f32]) {
        assert_eq!(predicted.len(), truth.len(), "one prediction a value");
        let window_len = self.squared.len();
        assert_eq!(predicted.len() % window_len, 0, "whole windows");
        for (predicted, truth) in predicted.chunks(window_len).zip(truth.chunks(window_len)) {
            for (cell, (predicted, truth)) in predicted.iter().zip(truth).enumerate() {
                let error = f64::from(*predicted) - f64::from(*truth);
                self.squared[cell] += error * error;
                self.absolute[cell] += error.abs();
            }
            self.n_windows += 1;
        }
    }

    /// Number of windows added.
    #[must_use]
    pub fn n_windows(&self) -> u64 {
        self.n_windows
    }

    /// Mean squared error over windows, targets and steps; NaN without windows.
    #[must_use]
    pub fn mse(&self) -> f64 {
        self.squared.iter().sum::<f64>() / self.n_values()
    }

    /// Mean absolute error over windows, targets and steps; NaN without windows.
    #[must_use]
    pub fn mae(&self) -> f64 {
        self.absolute.iter().sum::<f64>() / self.n_values()
    }

    /// Mean squared error of every horizon step.
    #[must_use]
    pub fn mse_by_step(&self) -> Vec<f64> {
        let count = self.n_windows as f64 * self.n_targets as f64;
        let step = |step| self.squared.iter().skip(step).step_by(self.pred_len).sum::<f64>();
        (0..self.pred_len).map(|index| step(index) / count).collect()
    }

    /// Mean squared error of every target variate.
    #[must_use]
    pub fn mse_by_variate(&self) -> Vec<f64> {
        let count = self.n_windows as f64 * self.pred_len as f64;
        self.squared.chunks(self.pred_len).map(|cells| cells.iter().sum::<f64>() / count).collect()
    }

    /// `mse` and `mae`, as an evaluation returns them.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        BTreeMap::from([("mse".to_owned(), self.mse()), ("mae".to_owned(), self.mae())])
    }

    fn n_values(&self) -> f64 {
        self.n_windows as f64 * self.squared.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_windows_targets_and_steps() {
        let mut scores = Scores::new(2, 2);
        // Errors of the two windows: [1, 0 | 0, -2] and [3, 0 | 0, 0].
        scores.add(&[1.0, 5.0, 0.0, 0.0], &[0.0, 5.0, 0.0, 2.0]);
        scores.add(&[3.0, 5.0, 0.0, 2.0], &[0.0, 5.0, 0.0, 2.0]);
        assert_eq!((scores.mse(), scores.mae()), (14.0 / 8.0, 6.0 / 8.0));
        assert_eq!(scores.mse_by_step(), [10.0 / 4.0, 4.0 / 4.0]);
        assert_eq!(scores.mse_by_variate(), [10.0 / 4.0, 4.0 / 4.0]);
        assert_eq!(scores.n_windows(), 2);
    }

    #[test]
    fn a_score_does_not_depend_on_the_batch_size() {
        let value = |i: usize| ((i * 7919) % 1009) as f32 / 37.0;
        let predicted: Vec<f32> = (0..300 * 6).map(value).collect();
        let truth: Vec<f32> = (0..300 * 6).map(|i| value(i + 13)).collect();
        let score = |n_windows: usize| {
            let mut scores = Scores::new(3, 2);
            for (predicted, truth) in
                predicted.chunks(n_windows * 6).zip(truth.chunks(n_windows * 6))
            {
                scores.add(predicted, truth);
            }
            scores.metrics()
        };
        assert_eq!(score(1), score(7));
        assert_eq!(score(1), score(64));
    }
}
