//! Sequences that are made up on the fly: tasks that ask for one ability each.

use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ssm_train::config::Issue;

use super::{batch::Example, tokenizer::Vocabulary};

/// How many sequences there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Samples {
    /// Training sequences of an epoch, 1..=2^40; every epoch has new ones. Default 65536.
    pub train: u64,
    /// Validation sequences, 1..=2^24. Default 512.
    pub valid: u64,
    /// Test sequences of each length, 1..=2^24. Default 512.
    pub test: u64,
    /// Test tokens of each length at most, but one sequence at least, 1..=2^40. Default 4194304.
    pub test_tokens: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Self { train: 65536, valid: 512, test: 512, test_tokens: 1 << 22 }
    }
}

impl Samples {
    /// Everything that is wrong.
    #[must_use]
    pub fn validate(&self) -> Vec<Issue> {
        let counts = [
            ("train", self.train, 40),
            ("valid", self.valid, 24),
            ("test", self.test, 24),
            ("test_tokens", self.test_tokens, 40),
        ];
        let wrong = counts.into_iter().filter(|(_, n, bits)| !(1..=1 << bits).contains(n));
        wrong
            .map(|(name, n, bits)| {
                Issue::range(format!("samples.{name}"), &format!("1 to 2^{bits}"), n)
            })
            .collect()
    }

    /// Test sequences of a length.
    #[must_use]
    pub fn n_test(&self, len: usize) -> u64 {
        self.test.min(self.test_tokens / len.max(1) as u64).max(1)
    }
}

/// A task that makes up its sequences.
pub trait MadeUp: Send + Sync {
    /// What tokens are.
    fn vocabulary(&self) -> Vocabulary;

    /// How many sequences there are.
    fn samples(&self) -> &Samples;

    /// The length that is trained, in the task's own terms.
    fn len(&self) -> usize;

    /// The length that is validated, and so selects the checkpoint.
    fn valid_len(&self) -> usize {
        self.len()
    }

    /// Whether that is 0, which no valid configuration has.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lengths that are tested; the trained one if none is given.
    fn test_lens(&self) -> &[usize];

    /// A sequence of a length; training may draw a shorter one.
    fn example(&self, len: usize, training: bool, rng: &mut ChaCha8Rng) -> Example;
}

/// Issues of lengths to test.
#[must_use]
pub fn test_lens_issues(test_lens: &[usize], first: usize) -> Vec<Issue> {
    let wrong = test_lens.iter().filter(|len| !(first..=1 << 24).contains(*len));
    wrong.map(|len| Issue::range("test_lens", &format!("{first}..=16777216"), len)).collect()
}
