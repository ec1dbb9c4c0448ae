//! Sequences with their targets, padded into a batch.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// The target of a position that no loss is taken of.
pub const IGNORE: i32 = -1;

/// A sequence and what is to be predicted at its positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Tokens that are read.
    pub inputs: Vec<u32>,
    /// The token to predict after each of them, or [`IGNORE`].
    pub targets: Vec<i32>,
    /// Positions at which a packed document begins; what comes before is forgotten there.
    pub starts: Vec<usize>,
}

/// Examples of equal length in host memory, `[batch, seq_len]` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LmBatch {
    /// Number of sequences.
    pub batch: usize,
    /// Length of each.
    pub seq_len: usize,
    /// Tokens; padding at the right is token 0.
    pub inputs: Vec<i32>,
    /// Targets; those of padding are [`IGNORE`].
    pub targets: Vec<i32>,
    /// Where documents begin, if one begins anywhere.
    pub resets: Option<Vec<bool>>,
    /// Whether the state of the batch before this one is carried into it.
    pub continues: bool,
}

impl LmBatch {
    /// Examples side by side, shorter ones padded at the right.
    ///
    /// Nothing that is to the right of a position reaches it, so padding changes no loss. Padding at the
    /// left would run through the state, and is not made.
    ///
    /// # Panics
    /// Without an example, or with an example of unequal inputs and targets.
    #[must_use]
    pub fn of(examples: &[Example]) -> Self {
        let seq_len = examples.iter().map(|example| example.inputs.len()).max();
        let seq_len = seq_len.unwrap_or_else(|| panic!("a batch without an example"));
        let batch = examples.len();
        let mut inputs = vec![0; batch * seq_len];
        let mut targets = vec![IGNORE; batch * seq_len];
        let packed = examples.iter().any(|example| !example.starts.is_empty());
        let mut resets = packed.then(|| vec![false; batch * seq_len]);
        for (row, example) in examples.iter().enumerate() {
            assert_eq!(example.inputs.len(), example.targets.len(), "a target for every input");
            let first = row * seq_len;
            for (place, token) in example.inputs.iter().enumerate() {
                inputs[first + place] = *token as i32;
            }
            targets[first..first + example.targets.len()].copy_from_slice(&example.targets);
            if let Some(resets) = &mut resets {
                example.starts.iter().for_each(|start| resets[first + start] = true);
            }
        }
        Self { batch, seq_len, inputs, targets, resets, continues: false }
    }

    /// Number of positions that a loss is taken of.
    #[must_use]
    pub fn n_targets(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE).count()
    }

    /// `[batch, seq_len]` on a device.
    #[must_use]
    pub fn tokens(&self, device: &Device) -> Tensor<2, Int> {
        let shape = [self.batch, self.seq_len];
        Tensor::from_data(TensorData::new(self.inputs.clone(), shape), device)
    }

    /// `[batch, seq_len]` on a device, if a document begins anywhere.
    #[must_use]
    pub fn resets(&self, device: &Device) -> Option<Tensor<2, Bool>> {
        let shape = [self.batch, self.seq_len];
        let resets = self.resets.clone()?;
        Some(Tensor::from_data(TensorData::new(resets, shape), device))
    }

    /// Steps `start..start + len` of every sequence.
    #[must_use]
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        fn cut<T: Copy>(values: &[T], seq_len: usize, start: usize, len: usize) -> Vec<T> {
            values.chunks(seq_len).flat_map(|row| &row[start..start + len]).copied().collect()
        }
        Self {
            batch: self.batch,
            seq_len: len,
            inputs: cut(&self.inputs, self.seq_len, start, len),
            targets: cut(&self.targets, self.seq_len, start, len),
            resets: self.resets.as_ref().map(|resets| cut(resets, self.seq_len, start, len)),
            continues: self.continues || start > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_examples_are_padded_at_the_right_without_targets() {
        let example = |inputs: &[u32], targets: &[i32], starts: &[usize]| Example {
            inputs: inputs.to_vec(),
            targets: targets.to_vec(),
            starts: starts.to_vec(),
        };
        let batch =
            LmBatch::of(&[example(&[5, 6, 7], &[6, 7, IGNORE], &[0, 2]), example(&[8], &[9], &[])]);
        assert_eq!((batch.batch, batch.seq_len, batch.n_targets()), (2, 3, 3));
        assert_eq!(batch.inputs, [5, 6, 7, 8, 0, 0]);
        assert_eq!(batch.targets, [6, 7, IGNORE, 9, IGNORE, IGNORE]);
        assert_eq!(batch.resets, Some(vec![true, false, true, false, false, false]));
        let last = batch.narrow(1, 2);
        assert_eq!((last.inputs, last.targets), (vec![6, 7, 0, 0], vec![7, -1, -1, -1]));
        assert!(last.continues);
    }
}
