//! Multi-query associative recall: say the value that a key was paired with, for many keys.
//!
//! Arora et al. 2023, arXiv:2312.04927 (Zoology), section 3.2. `n_pairs` keys, each followed by its value,
//! then every key once more among filler; after a key its value is to be said. How far a key is asked
//! after its pair follows a power law: recall in text is mostly of what came lately. The first half of
//! the vocabulary are keys (0 is filler), the second half are values.

use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::{config::Issue, error::Error};

use super::{Corpus, DataSet};
use crate::lm::{
    batch::{Example, IGNORE},
    config::LmOptions,
    made_up::{MadeUp, Samples, test_lens_issues},
    random::{below, distinct_below, shuffle, unit},
    tokenizer::Vocabulary,
};

/// `[data.mqar]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MqarConfig {
    /// Length of a sequence, a multiple of 2 of at least `4 * n_pairs`, up to 16777216. Default 256.
    pub seq_len: usize,
    /// Pairs of a key and a value, at least 1, less than half of `n_vocab / 2`. Default 16.
    pub n_pairs: usize,
    /// Tokens in all, 8..=65536. Default 8192 (paper).
    pub n_vocab: usize,
    /// Exponent of the power law, `(0, 1]`: 1 is uniform, smaller asks sooner. Default 0.01 (the
    /// program of the paper).
    pub power: f64,
    /// Lengths to test. Default: the trained one.
    pub test_lens: Vec<usize>,
    /// How many sequences there are.
    pub samples: Samples,
}

impl Default for MqarConfig {
    fn default() -> Self {
        let (test_lens, samples) = (Vec::new(), Samples::default());
        Self { seq_len: 256, n_pairs: 16, n_vocab: 8192, power: 0.01, test_lens, samples }
    }
}

impl DataSet for MqarConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(8..=65536).contains(&self.n_vocab) {
            issues.push(Issue::range("n_vocab", "8..=65536", self.n_vocab));
        }
        let most = (self.n_vocab / 2).saturating_sub(1).min(1 << 20);
        if !(1..=most).contains(&self.n_pairs) {
            issues.push(Issue::range("n_pairs", &format!("1..={most}"), self.n_pairs));
        }
        let least = self.n_pairs.saturating_mul(4);
        if !self.seq_len.is_multiple_of(2) || !(least..=1 << 24).contains(&self.seq_len) {
            let expected = format!("an even number from 4 * `n_pairs` = {least} to 16777216");
            issues.push(Issue::range("seq_len", &expected, self.seq_len));
        }
        if !(self.power > 0.0 && self.power <= 1.0) {
            issues.push(Issue::range("power", "a number in (0, 1]", self.power));
        }
        issues.extend(test_lens_issues(&self.test_lens, least));
        issues.extend(self.samples.validate());
        issues
    }

    fn load(&self, _options: &LmOptions, _dirs: &[PathBuf]) -> Result<Corpus, Error> {
        Corpus::made_up("multi-query associative recall", self.clone())
    }
}

impl MadeUp for MqarConfig {
    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::Numbers(self.n_vocab)
    }

    fn samples(&self) -> &Samples {
        &self.samples
    }

    fn len(&self) -> usize {
        self.seq_len
    }

    fn test_lens(&self) -> &[usize] {
        &self.test_lens
    }

    fn example(&self, len: usize, _training: bool, rng: &mut ChaCha8Rng) -> Example {
        let half = self.n_vocab / 2;
        let mut keys = distinct_below(rng, half - 1, self.n_pairs);
        shuffle(&mut keys, rng);
        let mut inputs = vec![0; len];
        let mut targets = vec![IGNORE; len];
        let first = 2 * self.n_pairs;
        // Questions stand at every second place, so that what is said after one is never a key.
        let mut free: Vec<usize> = (0..(len - first) / 2).collect();
        for (pair, key) in keys.into_iter().enumerate() {
            let (key, value) = (1 + key as u32, (half + below(rng, half)) as u32);
            inputs[2 * pair] = key;
            inputs[2 * pair + 1] = value;
            // The inverse of the distribution function x^power, on the places that are left.
            let drawn = (free.len() as f64 * unit(rng).powf(1.0 / self.power)) as usize;
            let place = first + 2 * free.remove(drawn.min(free.len() - 1));
            inputs[place] = key;
            targets[place] = value as i32;
        }
        Example { inputs, targets, starts: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::random::{Purpose, stream};

    #[test]
    fn every_key_is_asked_once_for_its_value() {
        let task = MqarConfig { seq_len: 64, n_pairs: 8, n_vocab: 64, ..Default::default() };
        assert!(task.validate().is_empty());
        let mut sum = [0.0; 2];
        for index in 0..200 {
            for (power, sum) in [0.01, 1.0].into_iter().zip(&mut sum) {
                let task = MqarConfig { power, ..task.clone() };
                let example = task.example(64, true, &mut stream(5, Purpose::Train, index));
                let pairs: std::collections::BTreeMap<u32, u32> =
                    example.inputs[..16].chunks(2).map(|pair| (pair[0], pair[1])).collect();
                assert_eq!(pairs.len(), 8);
                let asked: Vec<usize> = (16..64).filter(|i| example.inputs[*i] != 0).collect();
                assert_eq!(asked.len(), 8);
                for place in asked {
                    assert_eq!(example.targets[place] as u32, pairs[&example.inputs[place]]);
                    assert!(pairs[&example.inputs[place]] >= 32 && example.inputs[place] < 32);
                    *sum += place as f64;
                }
                assert_eq!(example.targets.iter().filter(|t| **t != IGNORE).count(), 8);
            }
        }
        // A small exponent asks sooner.
        assert!(sum[0] < 0.8 * sum[1], "{sum:?}");
    }
}
