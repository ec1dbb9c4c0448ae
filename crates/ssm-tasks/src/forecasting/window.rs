//! Sliding windows over a standardised series, and the order in which training visits them.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use ssm_train::task::Split;

use super::{
    data::{Borders, N_MARKS, Series, marks},
    scale::Scaler,
};

/// What a random draw is for; draws for different purposes share no numbers.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The order of the training windows of an epoch.
    Train,
    /// The order of the validation windows under `compat.smamba_validation`.
    Valid,
    /// The order of the training windows of a baseline.
    Baseline,
}

/// A random order of `0..n`, a pure function of its arguments.
///
/// Fisher-Yates with ChaCha8; the purpose and the epoch are part of the key.
#[must_use]
pub fn permutation(n: usize, seed: u64, purpose: Purpose, epoch: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16] = 1 + purpose as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // The high half of a 128-bit product: uniform on 0..=last up to 2^-64 n.
        let draw = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, draw as usize);
    }
    order
}

/// A few windows in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowBatch {
    /// Number of windows.
    pub n_windows: usize,
    /// Look-back values, standardised: `[n_windows, n_variates, lookback_len]`.
    pub x: Vec<f32>,
    /// Calendar features of the look-back rows: `[n_windows, n_marks, lookback_len]`.
    pub marks: Vec<f32>,
    /// Values to predict, standardised: `[n_windows, n_targets, pred_len]`.
    pub y: Vec<f32>,
}

/// What a forecaster reads: see [`WindowBatch`] for the shapes.
#[derive(Clone, Debug)]
pub struct Input {
    /// Look-back values.
    pub x: Tensor<3>,
    /// Calendar features, if there are any.
    pub marks: Option<Tensor<3>>,
}

/// A standardised series, cut into windows on demand.
///
/// Values lie by variate, so that the look-back of one variate, which is one token of an inverted
/// model, is one contiguous copy.
#[derive(Clone, Debug)]
pub struct Windows {
    /// `[n_variates + n_marks, n_rows]`: standardised values, then calendar features.
    tokens: Vec<f32>,
    n_rows: usize,
    n_variates: usize,
    n_marks: usize,
    lookback_len: usize,
    pred_len: usize,
    targets: Range<usize>,
    borders: Borders,
}

impl Windows {
    /// Standardises a series and computes its calendar features.
    ///
    /// `targets` are the variates to predict. `calendar` asks for the features of
    /// [`marks`]; without dates there are none.
    ///
    /// # Errors
    /// A sentence that names the split that is too short for one window.
    pub fn new(
        series: &Series,
        scaler: &Scaler,
        borders: Borders,
        calendar: bool,
        targets: Range<usize>,
        lookback_len: usize,
        pred_len: usize,
    ) -> Result<Self, String> {
        let needed = lookback_len + pred_len;
        for (name, rows) in
            [("training", &borders.train), ("validation", &borders.valid), ("test", &borders.test)]
        {
            if rows.len() < needed {
                return Err(format!(
                    "too few rows: a window needs lookback_len + pred_len = {needed}, the {name} \
                     split has {} of {}",
                    rows.len(),
                    series.n_rows()
                ));
            }
        }
        let n_rows = series.n_rows();
        let n_variates = series.columns.len();
        let dates = series.dates.as_deref().filter(|_| calendar);
        let n_marks = dates.map_or(0, |_| N_MARKS);
        let mut tokens = Vec::with_capacity((n_variates + n_marks) * n_rows);
        for (index, column) in series.values.iter().enumerate() {
            tokens.extend(column.iter().map(|value| scaler.standardise(index, *value) as f32));
        }
        if let Some(dates) = dates {
            for mark in 0..n_marks {
                tokens.extend(dates.iter().map(|date| marks(*date)[mark]));
            }
        }
        Ok(Self { tokens, n_rows, n_variates, n_marks, lookback_len, pred_len, targets, borders })
    }

    /// Number of windows in a split.
    #[must_use]
    pub fn n_windows(&self, split: Split) -> usize {
        // At least one: the constructor has checked.
        self.rows(split).len() + 1 - self.lookback_len - self.pred_len
    }

    /// Number of variates that are read.
    #[must_use]
    pub fn n_variates(&self) -> usize {
        self.n_variates
    }

    /// The variates that are predicted.
    #[must_use]
    pub fn targets(&self) -> Range<usize> {
        self.targets.clone()
    }

    /// Rows to look back on.
    #[must_use]
    pub fn lookback_len(&self) -> usize {
        self.lookback_len
    }

    /// Rows to predict.
    #[must_use]
    pub fn pred_len(&self) -> usize {
        self.pred_len
    }

    /// Row of the series at which window `index` of a split begins.
    #[must_use]
    pub fn first_row(&self, split: Split, index: usize) -> usize {
        self.rows(split).start + index
    }

    /// Copies the windows with these indices, in this order.
    ///
    /// # Panics
    /// If an index is not below [`Windows::n_windows`].
    #[must_use]
    pub fn gather(&self, split: Split, indices: &[usize]) -> WindowBatch {
        let n_windows = self.n_windows(split);
        let mut batch = WindowBatch {
            n_windows: indices.len(),
            x: Vec::with_capacity(indices.len() * self.n_variates * self.lookback_len),
            marks: Vec::with_capacity(indices.len() * self.n_marks * self.lookback_len),
            y: Vec::with_capacity(indices.len() * self.targets.len() * self.pred_len),
        };
        for &index in indices {
            assert!(index < n_windows, "window {index} of {n_windows}");
            let start = self.first_row(split, index);
            let border = start + self.lookback_len;
            for variate in 0..self.n_variates {
                batch.x.extend_from_slice(self.token(variate, start..border));
            }
            for mark in 0..self.n_marks {
                let token = self.token(self.n_variates + mark, start..border);
                batch.marks.extend_from_slice(token);
            }
            for target in self.targets.clone() {
                batch.y.extend_from_slice(self.token(target, border..border + self.pred_len));
            }
        }
        batch
    }

    /// The look-back of a batch as tensors.
    #[must_use]
    pub fn input(&self, batch: &WindowBatch, device: &Device) -> Input {
        let tensor = |values: &[f32], n_tokens: usize| {
            let shape = [batch.n_windows, n_tokens, self.lookback_len];
            Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        Input {
            x: tensor(&batch.x, self.n_variates),
            marks: (self.n_marks > 0).then(|| tensor(&batch.marks, self.n_marks)),
        }
    }

    /// The values to predict as a tensor `[n_windows, n_targets, pred_len]`.
    #[must_use]
    pub fn target(&self, batch: &WindowBatch, device: &Device) -> Tensor<3> {
        let shape = [batch.n_windows, self.targets.len(), self.pred_len];
        Tensor::from_data(TensorData::new(batch.y.clone(), shape), device)
    }

    fn rows(&self, split: Split) -> &Range<usize> {
        match split {
            Split::Train => &self.borders.train,
            Split::Valid => &self.borders.valid,
            Split::Test => &self.borders.test,
        }
    }

    fn token(&self, index: usize, rows: Range<usize>) -> &[f32] {
        &self.tokens[index * self.n_rows..][rows]
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use jiff::{SignedDuration, civil::date};

    use super::*;

    /// Two variates of 100 rows, `row` and `1000 + row`, hourly.
    fn series() -> Series {
        let first = date(2020, 1, 1).at(0, 0, 0, 0);
        Series {
            name: "toy".to_owned(),
            path: PathBuf::from("toy.csv"),
            sha256: String::new(),
            columns: vec!["a".to_owned(), "b".to_owned()],
            values: vec![
                (0..100).map(f64::from).collect(),
                (0..100).map(|row| f64::from(1000 + row)).collect(),
            ],
            dates: Some((0..100).map(|h| first + SignedDuration::from_hours(h)).collect()),
        }
    }

    fn identity() -> Scaler {
        Scaler { mean: vec![0.0; 2], std: vec![1.0; 2] }
    }

    fn windows(targets: Range<usize>, calendar: bool) -> Windows {
        let borders = Borders::ratio(100, 0.7, 0.2, 8);
        Windows::new(&series(), &identity(), borders, calendar, targets, 8, 4).unwrap()
    }

    #[test]
    fn windows_hold_the_rows_before_and_after_their_border() {
        let windows = windows(0..2, true);
        let counts = [Split::Train, Split::Valid, Split::Test].map(|s| windows.n_windows(s));
        assert_eq!(counts, [59, 7, 17]);
        let batch = windows.gather(Split::Valid, &[0, 6]);
        // The first validation window predicts row 70, the first one after the training rows.
        let rows = |start: i32, len: i32| (start..start + len).map(|row| row as f32);
        let x: Vec<f32> =
            [62, 1062, 68, 1068].into_iter().flat_map(|start| rows(start, 8)).collect();
        let y: Vec<f32> =
            [70, 1070, 76, 1076].into_iter().flat_map(|start| rows(start, 4)).collect();
        assert_eq!((batch.x, batch.y), (x, y));
        // Row 62 is 14:00 on a Friday, 3 January.
        let hour = batch.marks[0];
        assert_eq!((batch.marks.len(), hour), (2 * 4 * 8, (14.0 / 23.0 - 0.5) as f32));
        assert_eq!(batch.marks[8], (4.0 / 6.0 - 0.5) as f32);
    }

    #[test]
    fn one_target_is_predicted_from_all_variates() {
        let batch = windows(1..2, false).gather(Split::Train, &[3]);
        assert_eq!(batch.y, [1011.0, 1012.0, 1013.0, 1014.0]);
        assert_eq!((batch.x.len(), batch.marks.len()), (16, 0));
    }

    #[test]
    fn a_split_without_room_for_a_window_is_refused() {
        let borders = Borders::apart(100);
        let error = Windows::new(&series(), &identity(), borders, false, 0..2, 16, 8).unwrap_err();
        assert_eq!(
            error,
            "too few rows: a window needs lookback_len + pred_len = 24, the validation split has \
             20 of 100"
        );
    }

    #[test]
    fn an_order_is_a_pure_function_and_a_permutation() {
        let order = permutation(1000, 7, Purpose::Train, 3);
        assert_eq!(order, permutation(1000, 7, Purpose::Train, 3));
        for other in [
            permutation(1000, 8, Purpose::Train, 3),
            permutation(1000, 7, Purpose::Valid, 3),
            permutation(1000, 7, Purpose::Train, 4),
        ] {
            assert_ne!(order, other);
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
        let fixed = order.iter().enumerate().filter(|(place, window)| place == *window).count();
        assert!(fixed < 10, "{fixed} of 1000 windows keep their place");
        assert_eq!(permutation(1, 7, Purpose::Train, 0), [0]);
        // The published order of runs must not move with a dependency.
        assert_eq!(permutation(8, 2023, Purpose::Train, 0), [7, 1, 0, 4, 3, 2, 5, 6]);
    }
}
