//! Where the training, validation and test rows begin and end.

use std::ops::Range;

/// Rows that the windows of each split may touch.
///
/// Where a benchmark says so, validation and test rows begin `lookback_len` rows before their
/// border: the first window then predicts the first row after the border, and looks back on rows of
/// the split before. The scaler is fitted on `train` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Borders {
    /// Rows of training windows and of the scaler.
    pub train: Range<usize>,
    /// Rows of validation windows.
    pub valid: Range<usize>,
    /// Rows of test windows.
    pub test: Range<usize>,
}

impl Borders {
    /// 12, 4 and 4 months of 30 days; later rows are not used.
    ///
    /// # Errors
    /// If the series is shorter than 20 such months.
    ///
    /// # Source
    /// Informer's loader of ETT, the same in S-Mamba's (S-D-Mamba@e7e8bf0).
    pub fn months(n_rows: usize, rows_per_day: usize, lookback_len: usize) -> Result<Self, String> {
        let month = 30 * rows_per_day;
        let (train, valid, test) = (12 * month, 16 * month, 20 * month);
        if n_rows < test {
            return Err(format!(
                "too few rows: the split of 12, 4 and 4 months needs {test}, the file has {n_rows}"
            ));
        }
        Ok(Self {
            train: 0..train,
            valid: train.saturating_sub(lookback_len)..valid,
            test: valid.saturating_sub(lookback_len)..test,
        })
    }

    /// The first `train` and the last `test` of the rows, validation between them; both counts are
    /// rounded down, as in the loaders of the benchmarks.
    ///
    /// # Source
    /// `Dataset_Custom` of Autoformer, the same in S-Mamba's loader (S-D-Mamba@e7e8bf0).
    #[must_use]
    pub fn ratio(n_rows: usize, train: f64, test: f64, lookback_len: usize) -> Self {
        let n_train = (n_rows as f64 * train) as usize;
        let n_test = (n_rows as f64 * test) as usize;
        let test_start = n_rows - n_test;
        Self {
            train: 0..n_train,
            valid: n_train.saturating_sub(lookback_len)..test_start,
            test: test_start.saturating_sub(lookback_len)..n_rows,
        }
    }

    /// 60, 20 and 20 % of the rows, and no row shared between two splits.
    ///
    /// # Source
    /// `Dataset_PEMS` of SCINet, the same in S-Mamba's loader (S-D-Mamba@e7e8bf0).
    #[must_use]
    pub fn apart(n_rows: usize) -> Self {
        let train = (0.6 * n_rows as f64) as usize;
        let valid = ((0.6 + 0.2) * n_rows as f64) as usize;
        Self { train: 0..train, valid: train..valid, test: valid..n_rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(rows: &Range<usize>, lookback_len: usize, pred_len: usize) -> usize {
        rows.len() + 1 - lookback_len - pred_len
    }

    fn counts(borders: &Borders, lookback_len: usize, pred_len: usize) -> [usize; 3] {
        [&borders.train, &borders.valid, &borders.test].map(|r| windows(r, lookback_len, pred_len))
    }

    #[test]
    fn window_counts_are_the_published_ones() {
        let etth = Borders::months(17420, 24, 96).unwrap();
        assert_eq!(counts(&etth, 96, 96), [8449, 2785, 2785]);
        assert_eq!(etth.valid, 8544..11520);
        let ettm = Borders::months(69680, 96, 96).unwrap();
        assert_eq!(counts(&ettm, 96, 96), [34369, 11425, 11425]);
        assert_eq!(counts(&Borders::ratio(7588, 0.7, 0.2, 96), 96, 96), [5120, 665, 1422]);
        assert_eq!(counts(&Borders::ratio(52696, 0.7, 0.2, 96), 96, 96), [36696, 5175, 10444]);
        assert_eq!(counts(&Borders::ratio(966, 0.7, 0.2, 36), 36, 24), [617, 74, 170]);
    }

    #[test]
    fn splits_of_pems_share_no_row() {
        let borders = Borders::apart(16992);
        assert_eq!(borders, Borders { train: 0..10195, valid: 10195..13593, test: 13593..16992 });
    }

    #[test]
    fn a_short_series_is_refused_with_the_number_of_rows() {
        assert_eq!(
            Borders::months(14399, 24, 96).unwrap_err(),
            "too few rows: the split of 12, 4 and 4 months needs 14400, the file has 14399"
        );
    }
}
