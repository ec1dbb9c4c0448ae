//! Selective copying: repeat the tokens that are scattered among noise.
//!
//! Gu & Dao 2023, arXiv:2312.00752, section 4.1.1 and appendix E.1, after Jing et al. 2019,
//! arXiv:1706.02761. `n_tokens` tokens stand at random places among `seq_len`, the others are noise;
//! `n_tokens` markers follow, at which the tokens are to be said in their order. A layer that is
//! time-invariant cannot, as it cannot pass over the noise. Of `n_vocab` tokens the first is noise
//! and the last is the marker.

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
    random::{below, distinct_below},
    tokenizer::Vocabulary,
};

/// `[data.selective_copying]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelectiveCopyingConfig {
    /// Places that tokens are scattered over, 1..=16777216. Default 4096 (paper).
    pub seq_len: usize,
    /// Tokens to copy, 1 to `seq_len`. Default 16 (paper).
    pub n_tokens: usize,
    /// Tokens in all, noise and marker included, 4..=65536. Default 16 (paper).
    pub n_vocab: usize,
    /// Values of `seq_len` to test. Default: the trained one.
    pub test_lens: Vec<usize>,
    /// How many sequences there are.
    pub samples: Samples,
}

impl Default for SelectiveCopyingConfig {
    fn default() -> Self {
        let (test_lens, samples) = (Vec::new(), Samples::default());
        Self { seq_len: 4096, n_tokens: 16, n_vocab: 16, test_lens, samples }
    }
}

impl DataSet for SelectiveCopyingConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(1..=1 << 24).contains(&self.seq_len) {
            issues.push(Issue::range("seq_len", "1..=16777216", self.seq_len));
        }
        if !(1..=self.seq_len).contains(&self.n_tokens) {
            let expected = format!("1 to `seq_len` = {}", self.seq_len);
            issues.push(Issue::range("n_tokens", &expected, self.n_tokens));
        }
        if !(4..=65536).contains(&self.n_vocab) {
            issues.push(Issue::range("n_vocab", "4..=65536", self.n_vocab));
        }
        issues.extend(test_lens_issues(&self.test_lens, self.n_tokens));
        issues.extend(self.samples.validate());
        issues
    }

    fn load(&self, _options: &LmOptions, _dirs: &[PathBuf]) -> Result<Corpus, Error> {
        Corpus::made_up("selective copying", self.clone())
    }
}

impl MadeUp for SelectiveCopyingConfig {
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
        let marker = self.n_vocab as u32 - 1;
        let mut inputs = vec![0; len + self.n_tokens];
        inputs[len..].fill(marker);
        let mut targets = vec![IGNORE; inputs.len()];
        for (i, place) in distinct_below(rng, len, self.n_tokens).into_iter().enumerate() {
            let token = 1 + below(rng, self.n_vocab - 2) as u32;
            inputs[place] = token;
            targets[len + i] = token as i32;
        }
        Example { inputs, targets, starts: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::random::{Purpose, stream};

    #[test]
    fn the_tokens_among_the_noise_are_the_targets_at_the_markers() {
        let task = SelectiveCopyingConfig { seq_len: 30, n_tokens: 5, ..Default::default() };
        for index in 0..50 {
            let example = task.example(30, true, &mut stream(1, Purpose::Train, index));
            let kept: Vec<i32> =
                example.inputs[..30].iter().filter(|t| **t != 0).map(|t| *t as i32).collect();
            assert_eq!(example.targets[30..], kept);
            assert!(kept.len() == 5 && kept.iter().all(|token| (1..15).contains(token)));
            assert!(example.targets[..30].iter().all(|target| *target == IGNORE));
            assert!(example.inputs[30..].iter().all(|token| *token == 15));
        }
    }
}
