//! Passkey: find a number in a long text about nothing.
//!
//! Mohtashami & Jaggi 2023, arXiv:2305.16300, section 4.2. The same sentences are repeated, and among them
//! once stands a number of five digits; at the end it is asked for. The text is read byte by byte; the
//! sentences are our own.

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

const FILLER: &[u8] =
    b"Rain falls on the hills. A river runs to the sea. Clouds rise and move on. ";
const BEFORE: &[u8] = b"The key is ";
const QUESTION: &[u8] = b"What is the key? It is ";
const N_DIGITS: usize = 5;
/// Everything but the filler.
const LEAST: usize = BEFORE.len() + N_DIGITS + 2 + QUESTION.len() + N_DIGITS - 1;

/// `[data.passkey]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PasskeyConfig {
    /// Bytes of a training sequence, 45..=16777216. Default 512.
    pub seq_len: usize,
    /// Lengths to test. Default: the trained one.
    pub test_lens: Vec<usize>,
    /// How many sequences there are.
    pub samples: Samples,
}

impl Default for PasskeyConfig {
    fn default() -> Self {
        Self { seq_len: 512, test_lens: Vec::new(), samples: Samples::default() }
    }
}

impl DataSet for PasskeyConfig {
    fn validate(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !(LEAST..=1 << 24).contains(&self.seq_len) {
            issues.push(Issue::range("seq_len", &format!("{LEAST}..=16777216"), self.seq_len));
        }
        issues.extend(test_lens_issues(&self.test_lens, LEAST));
        issues.extend(self.samples.validate());
        issues
    }

    fn load(&self, _options: &LmOptions, _dirs: &[PathBuf]) -> Result<Corpus, Error> {
        Corpus::made_up("passkey", self.clone())
    }
}

impl MadeUp for PasskeyConfig {
    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::Bytes
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
        let key: Vec<u8> = (0..N_DIGITS).map(|_| b'0' + below(rng, 10) as u8).collect();
        let n_filler = len - LEAST;
        let before = below(rng, n_filler + 1);
        let mut filler = FILLER.iter().copied().cycle();
        let mut text: Vec<u8> = filler.by_ref().take(before).collect();
        text.extend([BEFORE, &key, b". "].concat());
        text.extend(filler.take(n_filler - before));
        text.extend([QUESTION, &key].concat());
        let mut targets = vec![IGNORE; len];
        for (place, digit) in (len - N_DIGITS..).zip(&key) {
            targets[place] = i32::from(*digit);
        }
        // The last digit is only said.
        let inputs = text[..len].iter().map(|byte| u32::from(*byte)).collect();
        Example { inputs, targets, starts: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::random::{Purpose, stream};

    #[test]
    fn the_key_of_the_text_is_asked_for() {
        let task = PasskeyConfig::default();
        assert_eq!(LEAST, 45);
        for (index, len) in [45, 46, 200, 512].into_iter().enumerate() {
            let example = task.example(len, true, &mut stream(6, Purpose::Train, index as u64));
            let text: Vec<u8> = example.inputs.iter().map(|byte| *byte as u8).collect();
            let text = String::from_utf8(text).unwrap();
            assert_eq!((text.len(), example.targets.len()), (len, len));
            let key = &text.split("The key is ").nth(1).unwrap()[..5];
            let said: String =
                example.targets[len - 5..].iter().map(|t| *t as u8 as char).collect();
            assert_eq!(said, key);
            assert!(text.ends_with(&format!("It is {}", &key[..4])), "{text}");
        }
    }
}
