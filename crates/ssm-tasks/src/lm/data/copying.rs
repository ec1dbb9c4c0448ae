//! COPY: read a string to its end, then say it again.
//!
//! Ren et al. 2024, arXiv:2410.03810 ("Can Mamba Always Enjoy the Free Lunch?"), section 4. Random tokens,
//! a separator, and the same tokens once more, which are the targets. A state of constant size cannot
//! hold a string of any length. The separator is the last of `n_vocab`.

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
    random::below,
    tokenizer::Vocabulary,
};

/// `[data.copying]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CopyingConfig {
    /// Longest string of the training, 1..=16777216. Default 64.
    pub len: usize,
    /// Shortest string of the training, 1 to `len`. Default 1.
    pub min_len: usize,
    /// How often a length is drawn: `"uniform"` (default), or `"inverse"`, in inverse proportion to it,
    /// so that strings of every length have the same share of the targets.
    pub lengths: Lengths,
    /// Tokens in all, separator included, 3..=65536. Default 27: letters and the separator.
    pub n_vocab: usize,
    /// Lengths of strings to test. Default: the longest of the training.
    pub test_lens: Vec<usize>,
    /// How many sequences there are.
    pub samples: Samples,
}

/// How often a length is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// All as often as each other.
    #[default]
    Uniform,
    /// In inverse proportion to the length.
    Inverse,
}

impl Lengths {
    /// A length from `min` to `max`.
    fn draw(self, min: usize, max: usize, rng: &mut ChaCha8Rng) -> usize {
        match self {
            Self::Uniform => min + below(rng, max - min + 1),
            // Accepts 1 / len of uniform draws, relative to the shortest.
            Self::Inverse => loop {
                let len = min + below(rng, max - min + 1);
                if below(rng, len) < min {
                    return len;
                }
            },
        }
    }
}

impl Default for CopyingConfig {
    fn default() -> Self {
        let (test_lens, samples) = (Vec::new(), Samples::default());
        Self { len: 64, min_len: 1, lengths: Lengths::Uniform, n_vocab: 27, test_lens, samples }
    }
}

impl DataSet for CopyingConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(1..=1 << 24).contains(&self.len) {
            issues.push(Issue::range("len", "1..=16777216", self.len));
        }
        if !(1..=self.len).contains(&self.min_len) {
            issues.push(Issue::range(
                "min_len",
                &format!("1 to `len` = {}", self.len),
                self.min_len,
            ));
        }
        if !(3..=65536).contains(&self.n_vocab) {
            issues.push(Issue::range("n_vocab", "3..=65536", self.n_vocab));
        }
        issues.extend(test_lens_issues(&self.test_lens, 1));
        issues.extend(self.samples.validate());
        issues
    }

    fn load(&self, _options: &LmOptions, _dirs: &[PathBuf]) -> Result<Corpus, Error> {
        Corpus::made_up("copying", self.clone())
    }
}

impl MadeUp for CopyingConfig {
    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::Numbers(self.n_vocab)
    }

    fn samples(&self) -> &Samples {
        &self.samples
    }

    fn len(&self) -> usize {
        self.len
    }

    fn test_lens(&self) -> &[usize] {
        &self.test_lens
    }

    fn example(&self, len: usize, training: bool, rng: &mut ChaCha8Rng) -> Example {
        let len = if training { self.lengths.draw(self.min_len, len, rng) } else { len };
        let separator = self.n_vocab - 1;
        let string: Vec<u32> = (0..len).map(|_| below(rng, separator) as u32).collect();
        let mut inputs = string.clone();
        inputs.push(separator as u32);
        inputs.extend(&string[..len - 1]);
        let mut targets = vec![IGNORE; len];
        targets.extend(string.iter().map(|token| *token as i32));
        Example { inputs, targets, starts: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::random::{Purpose, stream};

    #[test]
    fn the_string_is_said_after_the_separator() {
        let task = CopyingConfig { len: 9, min_len: 2, ..Default::default() };
        let mut lens = std::collections::BTreeSet::new();
        for index in 0..100 {
            let example = task.example(9, true, &mut stream(4, Purpose::Train, index));
            let len = example.inputs.len() / 2;
            lens.insert(len);
            assert_eq!((example.inputs[len], example.targets.len()), (26, 2 * len));
            let said: Vec<u32> = example.targets[len..].iter().map(|t| *t as u32).collect();
            assert_eq!(said, example.inputs[..len]);
            assert_eq!(example.inputs[len + 1..], said[..len - 1]);
        }
        assert_eq!(lens, (2..=9).collect());
        assert_eq!(task.example(5, false, &mut stream(4, Purpose::Test, 0)).inputs.len(), 10);
    }

    #[test]
    fn with_inverse_lengths_every_length_has_the_same_share_of_the_targets() {
        let mut targets = [0; 9];
        let mut rng = stream(4, Purpose::Train, 0);
        for _ in 0..20_000 {
            let len = Lengths::Inverse.draw(2, 8, &mut rng);
            targets[len] += len;
        }
        assert_eq!(targets[..2], [0, 0]);
        let mean = targets.iter().sum::<usize>() / 7;
        assert!(targets[2..].iter().all(|n| n.abs_diff(mean) < mean / 10), "{targets:?}");
    }
}
