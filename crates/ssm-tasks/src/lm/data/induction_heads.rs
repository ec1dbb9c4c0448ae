//! Induction heads: what followed the special token the first time follows it again.
//!
//! Gu & Dao 2023, arXiv:2312.00752, section 4.1.2 and appendix E.1, after Olsson et al. 2022,
//! arXiv:2209.11895. Random tokens, among them once the special one; it comes again at the end, and the
//! token after its first appearance is to be said. The special token is the last of `n_vocab`.

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

/// `[data.induction_heads]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InductionHeadsConfig {
    /// Length of a training sequence, 3..=16777216. Default 256 (paper).
    pub seq_len: usize,
    /// Tokens in all, the special one included, 3..=65536. Default 16 (paper).
    pub n_vocab: usize,
    /// Length of validation sequences, 3..=16777216; a longer one selects the weights that keep what they
    /// read for longer. Default: the trained one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_len: Option<usize>,
    /// Lengths to test. Default: the trained one.
    pub test_lens: Vec<usize>,
    /// How many sequences there are.
    pub samples: Samples,
}

impl Default for InductionHeadsConfig {
    fn default() -> Self {
        let (test_lens, samples) = (Vec::new(), Samples::default());
        Self { seq_len: 256, n_vocab: 16, valid_len: None, test_lens, samples }
    }
}

impl DataSet for InductionHeadsConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(3..=1 << 24).contains(&self.seq_len) {
            issues.push(Issue::range("seq_len", "3..=16777216", self.seq_len));
        }
        if let Some(len) = self.valid_len.filter(|len| !(3..=1 << 24).contains(len)) {
            issues.push(Issue::range("valid_len", "3..=16777216", len));
        }
        if !(3..=65536).contains(&self.n_vocab) {
            issues.push(Issue::range("n_vocab", "3..=65536", self.n_vocab));
        }
        issues.extend(test_lens_issues(&self.test_lens, 3));
        issues.extend(self.samples.validate());
        issues
    }

    fn load(&self, _options: &LmOptions, _dirs: &[PathBuf]) -> Result<Corpus, Error> {
        Corpus::made_up("induction heads", self.clone())
    }
}

impl MadeUp for InductionHeadsConfig {
    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::Numbers(self.n_vocab)
    }

    fn samples(&self) -> &Samples {
        &self.samples
    }

    fn len(&self) -> usize {
        self.seq_len
    }

    fn valid_len(&self) -> usize {
        self.valid_len.unwrap_or(self.seq_len)
    }

    fn test_lens(&self) -> &[usize] {
        &self.test_lens
    }

    fn example(&self, len: usize, _training: bool, rng: &mut ChaCha8Rng) -> Example {
        let special = self.n_vocab - 1;
        let mut inputs: Vec<u32> = (0..len).map(|_| below(rng, special) as u32).collect();
        // Neither the last place nor the one before it: a token has to follow that is not the end.
        let place = below(rng, len - 2);
        inputs[place] = special as u32;
        inputs[len - 1] = special as u32;
        let mut targets = vec![IGNORE; len];
        targets[len - 1] = inputs[place + 1] as i32;
        Example { inputs, targets, starts: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::random::{Purpose, stream};

    #[test]
    fn the_target_follows_the_special_token() {
        let task = InductionHeadsConfig::default();
        for (index, len) in [3, 4, 256, 1000].into_iter().cycle().take(60).enumerate() {
            let example = task.example(len, true, &mut stream(2, Purpose::Train, index as u64));
            let places: Vec<usize> =
                (0..len).filter(|place| example.inputs[*place] == 15).collect();
            assert_eq!((places.len(), places[1]), (2, len - 1));
            assert_eq!(example.targets[len - 1], example.inputs[places[0] + 1] as i32);
            assert_eq!(example.targets.iter().filter(|target| **target != IGNORE).count(), 1);
        }
    }
}
