//! Scores: sums over every token with a target, in order.

use burn::tensor::{Int, Tensor};
use ssm_train::{
    error::Error,
    task::{Metrics, Split},
};

use super::{
    LmTask,
    batch::{Example, IGNORE, LmBatch},
    config::Packing,
    data::Parts,
    initial, loss,
    model::MambaLm,
    random::{Purpose, stream},
    stream::Stream,
    tokenizer::Tokenizer,
};

/// Tokens that a model reads at once in an evaluation; longer sequences go through its state.
const CHUNK: usize = 2048;

/// Tokens of a batch of an evaluation, at most: sixteen sequences of a million.
const BATCH_TOKENS: usize = 1 << 24;

/// Sums over the targets of a split.
#[derive(Clone, Debug, Default)]
pub(super) struct Scores {
    /// Cross-entropy in nats.
    nats: f64,
    n_targets: u64,
    /// Targets that the most likely token is.
    n_right: u64,
    n_sequences: u64,
    /// Sequences all of whose targets are right.
    n_exact: u64,
    /// Bytes of text that the targets stand for; 0 for made-up sequences.
    n_bytes: u64,
}

impl Scores {
    /// Nats a target.
    pub(super) fn loss(&self) -> f64 {
        self.nats / self.n_targets as f64
    }

    /// Share of targets that the most likely token is.
    pub(super) fn accuracy(&self) -> f64 {
        self.n_right as f64 / self.n_targets as f64
    }

    /// Share of sequences all of whose targets are right.
    pub(super) fn exact(&self) -> f64 {
        self.n_exact as f64 / self.n_sequences as f64
    }

    pub(super) fn n_sequences(&self) -> u64 {
        self.n_sequences
    }

    /// The scores by name: of text also those that are usual for text.
    pub(super) fn metrics(&self) -> Metrics {
        let mut metrics = vec![("loss", self.loss()), ("accuracy", self.accuracy())];
        if self.n_bytes > 0 {
            let bits = self.nats / std::f64::consts::LN_2;
            metrics.push(("bits_per_byte", bits / self.n_bytes as f64));
            metrics.push(("perplexity", self.loss().exp()));
        } else {
            metrics.push(("exact", self.exact()));
        }
        metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Adds what a model says of a batch, with so many rows of logits at once.
    fn add(&mut self, model: &MambaLm, batch: &LmBatch, rows_at_once: usize) -> Result<(), Error> {
        let device = model.device();
        let mut state = None;
        let mut wrong = vec![false; batch.batch];
        for start in (0..batch.seq_len).step_by(CHUNK) {
            let part = batch.narrow(start, CHUNK.min(batch.seq_len - start));
            let tokens = part.tokens(&device);
            let hidden = if batch.seq_len <= CHUNK && batch.resets.is_none() {
                model.hidden(tokens)
            } else {
                let state = state.get_or_insert_with(|| initial(model, batch.batch));
                model.continued(tokens, part.resets(&device), state)
            };
            let targets = loss::Targets::of(&part);
            if targets.tokens.is_empty() {
                continue;
            }
            let places = targets.places(part.batch * part.seq_len, &device);
            let hidden = loss::at_targets(hidden, places);
            let parts = targets.tokens.chunks(rows_at_once);
            let parts = parts.zip(targets.places.chunks(rows_at_once)).enumerate();
            for (i, (tokens, places)) in parts {
                let hidden = hidden.clone().narrow(0, i * rows_at_once, tokens.len());
                let (nats, said) = says(model, hidden, tokens)?;
                self.nats += nats.iter().map(|nats| f64::from(*nats)).sum::<f64>();
                self.n_targets += nats.len() as u64;
                for ((said, target), place) in said.iter().zip(tokens).zip(places) {
                    if *said == i64::from(*target) {
                        self.n_right += 1;
                    } else {
                        wrong[*place as usize / part.seq_len] = true;
                    }
                }
            }
        }
        self.n_sequences += batch.batch as u64;
        self.n_exact += wrong.iter().filter(|wrong| !**wrong).count() as u64;
        Ok(())
    }

    fn add_all(
        &mut self,
        model: &MambaLm,
        tokenizer: Option<&Tokenizer>,
        batch_size: usize,
        n: u64,
        example: impl Fn(u64) -> Example,
    ) -> Result<(), Error> {
        for first in (0..n).step_by(batch_size.max(1)) {
            let places = first..n.min(first + batch_size.max(1) as u64);
            let examples: Vec<Example> = places.map(&example).collect();
            if let Some(tokenizer) = tokenizer {
                let targets = examples.iter().flat_map(|example| &example.targets);
                let bytes = targets
                    .filter(|target| **target != IGNORE)
                    .map(|target| tokenizer.bytes_of(*target as u32).len() as u64);
                self.n_bytes += bytes.sum::<u64>();
            }
            self.add(model, &LmBatch::of(&examples), loss::rows_at_once(model))?;
        }
        Ok(())
    }
}

/// What a model says of targets: the loss of each in nats, and the token that it finds most likely. `hidden`:
/// `[n, d_model]`, a row for each of them.
fn says(
    model: &MambaLm,
    hidden: Tensor<2>,
    targets: &[i32],
) -> Result<(Vec<f32>, Vec<i64>), Error> {
    let device = hidden.device();
    let logits = model.head(hidden);
    let said: Tensor<1, Int> = logits.clone().argmax(1).squeeze_dim(1);
    let failed = |reason: String| Error::Device {
        device: format!("{device:?}"),
        message: reason,
        hint: Some("lower `train.eval_batch_size` if memory ran out".to_owned()),
    };
    let nats = loss::cross_entropy(logits, targets).try_into_vec_as();
    let nats = nats.map_err(|reason| failed(reason.to_string()))?;
    let said = said.try_into_vec_as().map_err(|reason| failed(reason.to_string()))?;
    Ok((nats, said))
}

/// Scores a split; of a made-up task at the length that is trained, or at another one.
pub(super) fn score(
    task: &LmTask,
    model: &MambaLm,
    split: Split,
    len: Option<usize>,
) -> Result<Scores, Error> {
    let mut scores = Scores::default();
    let batch_size = task.settings.eval_batch_size;
    let tokenizer = &task.corpus.tokenizer;
    match &task.corpus.parts {
        Parts::MadeUp(made_up) => {
            let trained = if split == Split::Valid { made_up.valid_len() } else { made_up.len() };
            let (seed, len) = (task.settings.seed, len.unwrap_or(trained));
            let samples = made_up.samples();
            let (purpose, n) = match split {
                Split::Train => (Purpose::Train, samples.valid),
                Split::Valid => (Purpose::Valid, samples.valid),
                Split::Test => (Purpose::Test, samples.n_test(len)),
            };
            // The host holds the tokens of a batch; the device only those of a chunk.
            let batch_size = batch_size.min(BATCH_TOKENS / len).max(1);
            scores.add_all(model, None, batch_size, n, |index| {
                made_up.example(len, false, &mut stream(seed, purpose, index))
            })?;
        }
        parts => {
            let packed = task.options.packing == Packing::Documents;
            let len = task.sequence_len();
            for text in task.text_of(parts, split).into_iter().flatten() {
                scores.add_all(
                    model,
                    Some(tokenizer),
                    batch_size,
                    text.n_blocks(len),
                    |block| text.block(block * len as u64, len, packed),
                )?;
            }
        }
    }
    Ok(scores)
}

/// Scores a text from its beginning to its end through the state, without cutting it.
pub(super) fn score_stream(
    model: &MambaLm,
    tokenizer: &Tokenizer,
    text: &Stream,
) -> Result<Scores, Error> {
    let mut scores = Scores::default();
    let len = text.n_tokens() as usize;
    scores.add_all(model, Some(tokenizer), 1, 1, |_| text.block(0, len, false))?;
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use ssm_core::init::Init;

    use super::*;
    use crate::lm::model::MambaLmConfig;

    #[test]
    fn scores_do_not_depend_on_how_many_logits_are_held() {
        let config: MambaLmConfig =
            toml::from_str("d_model = 8\nn_layer = 1\nmixer.mamba = { d_state = 2 }").unwrap();
        let model = config.init(13, &mut Init::new(3, &Device::flex()));
        // What the model says of the second sequence is its target, so that one is exact.
        let example = |first: u32, said: &[i64]| Example {
            inputs: (first..first + 9).map(|token| token % 13).collect(),
            targets: (0..9)
                .map(|i| match (i % 4, said) {
                    (1, _) => IGNORE,
                    (_, []) => (first as i32 + 2 * i) % 13,
                    _ => said[i as usize] as i32,
                })
                .collect(),
            starts: Vec::new(),
        };
        let tokens = LmBatch::of(&[example(5, &[])]).tokens(&Device::flex());
        let logits = model.head(model.hidden(tokens).flatten::<2>(0, 1));
        let said: Vec<i64> = logits.argmax(1).into_data().try_into_vec_as().unwrap();
        let batch = LmBatch::of(&[example(0, &[]), example(5, &said), example(7, &[])]);
        let scores = |rows_at_once: usize| {
            let mut scores = Scores::default();
            scores.add(&model, &batch, rows_at_once).unwrap();
            scores
        };
        let whole = scores(1000);
        assert_eq!((whole.n_targets, whole.n_sequences, whole.n_exact), (21, 3, 1));
        for rows in [1, 4, 21] {
            let parts = scores(rows);
            assert!((parts.nats - whole.nats).abs() < 1e-5 * whole.nats, "{parts:?}, {whole:?}");
            assert_eq!(
                (parts.n_targets, parts.n_right, parts.n_exact),
                (whole.n_targets, whole.n_right, whole.n_exact)
            );
        }
    }
}
