//! Language modelling: the next token, from text or from tasks that are made up on the fly.
//!
//! The loss is the mean cross-entropy over all tokens that have a target, in nats. Scores are sums over
//! all such tokens of a split divided by their number. The order of training sequences is a pure function
//! of (seed, epoch, index).
//!
//! ```
//! use ssm_tasks::lm::tokenizer::{Tokenizer, Vocabulary};
//!
//! let tokenizer = Tokenizer::new(Vocabulary::Bytes)?;
//! assert_eq!(tokenizer.encode(b"hi")?, [104, 105]);
//! assert_eq!(tokenizer.decode(&[104, 105]), "hi");
//! # Ok::<(), String>(())
//! ```

pub mod batch;
pub mod bpe;
pub mod config;
pub mod data;
pub mod decoder;
pub mod generate;
mod loss;
pub mod made_up;
pub mod model;
pub mod random;
mod report;
pub mod sampling;
mod score;
pub mod shards;
pub mod stream;
pub mod tokenizer;
pub mod weights;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    module::Module,
    tensor::{Bool, Device, FloatDType, Int, Tensor},
};
use serde::{Deserialize, Serialize};
use ssm_core::{
    init::Init,
    mixers::State,
    nn::{self, BackboneState},
};
use ssm_train::{
    config::{Issue, Recompute, Settings},
    error::Error,
    task::{Goal, Input, InputMapper, Loss, Metrics, Outcome, Selection, Split, Task, Work},
};

use self::{
    batch::{Example, IGNORE, LmBatch},
    config::{Bptt, LmConfig, LmOptions, Packing},
    data::{Corpus, DataConfig, Parts},
    generate::{Emit, GenerateRequest},
    model::{MambaLm, MambaLmConfig},
    random::{Permutation, Purpose, below, stream, unit},
    stream::{InMemory, Stream},
    tokenizer::{Tokenizer, Vocabulary},
};
use crate::{Example as StartingPoint, TaskEntry, data::KnownSet};

/// What a later use of the model needs beside its weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Number of tokens; the embedding has at least as many rows.
    pub n_vocab: usize,
    /// What tokens are.
    pub vocabulary: Vocabulary,
}

/// Language modelling on one corpus.
pub struct LmTask {
    options: LmOptions,
    settings: Settings,
    corpus: Corpus,
    /// Micro-batches that are parts of the same sequences: 1 unless the state is carried.
    n_parts: u64,
    /// The state after the last micro-batch, for the next one.
    carried: Mutex<Option<BackboneState>>,
}

/// What a loss reads.
#[derive(Clone, Debug)]
pub struct LmInput {
    /// What dropout draws from.
    seed: Tensor<1, Int>,
    /// `[batch, seq_len]`
    tokens: Tensor<2, Int>,
    /// Where documents begin, of the same shape.
    resets: Option<Tensor<2, Bool>>,
    targets: loss::OnDevice,
    /// Of a part of sequences, whether it takes the state that the part before left.
    carries: Option<bool>,
    /// Whether documents may begin anywhere, in this batch or in another one.
    packed: bool,
}

impl Input for LmInput {
    /// A carried state is no input, and where documents begin other kernels are launched.
    fn is_recordable(&self) -> bool {
        self.carries.is_none() && !self.packed && self.targets.len() > 0
    }

    fn map_tensors<M: InputMapper>(self, mapper: &mut M) -> Self {
        Self {
            seed: self.seed.map_tensors(mapper),
            tokens: self.tokens.map_tensors(mapper),
            targets: self.targets.map_tensors(mapper),
            ..self
        }
    }
}

impl Task for LmTask {
    type Config = LmConfig;
    type Model = MambaLm;
    type Batch = LmBatch;
    type Input = LmInput;

    fn new(
        options: &LmOptions,
        data: &DataConfig,
        model: &MambaLmConfig,
        settings: &Settings,
        device: &Device,
    ) -> Result<(Self, MambaLm), Error> {
        let corpus = data.data_set().load(options, &settings.data_dirs)?;
        let refuse = |path: &str, message: String, hint: &str| {
            let issue = Issue::new(path, message).with_hint(hint);
            Error::issues("configuration", vec![issue])
        };
        let stateful = options.bptt == Bptt::Carry || options.packing == Packing::Documents;
        let mut lm = fresh(model, corpus.tokenizer.n_vocab(), settings, device);
        lm.init_state(1).map_err(|reason| {
            refuse("model.mixer", reason.to_string(), "a language model needs a causal mixer")
        })?;
        match settings.recompute {
            Some(Recompute::Layer) if stateful => {
                let message = "layers with a state are not computed again".to_owned();
                let hint = "leave out `train.recompute`; shorter sequences need less memory too";
                return Err(refuse("train.recompute", message, hint));
            }
            Some(Recompute::Layer) if model.dropout > 0.0 => {
                let message = "layers with dropout are not computed again".to_owned();
                let hint = "leave out `train.recompute` or `model.dropout`";
                return Err(refuse("train.recompute", message, hint));
            }
            Some(Recompute::Layer) => lm.recompute_layers(),
            None => {}
        }
        if let Parts::Text { train, valid, .. } = &corpus.parts {
            let tokens = train.iter().map(|(stream, _)| stream).chain([valid]);
            if let Some(short) = tokens.map(Stream::n_tokens).find(|n| *n < 2) {
                let message =
                    format!("a part of `{}` has {short} tokens, expected 2 or more", corpus.name);
                let hint = "give more text, or another share for validation";
                return Err(refuse("data", message, hint));
            }
        }
        let n_parts = if options.bptt == Bptt::Carry { settings.accumulate as u64 } else { 1 };
        let task = Self {
            options: options.clone(),
            settings: settings.clone(),
            corpus,
            n_parts,
            carried: Mutex::new(None),
        };
        Ok((task, lm))
    }

    fn describe(&self) -> String {
        let Corpus { name, tokenizer, parts, .. } = &self.corpus;
        let tokenizer = tokenizer.describe();
        match parts {
            Parts::Text { train, valid, test } => {
                let n_train: u64 = train.iter().map(|(stream, _)| stream.n_tokens()).sum();
                let n_test = match test {
                    Some(test) => format!("{} test", test.n_tokens()),
                    None => "no test".to_owned(),
                };
                format!(
                    "{name} as {tokenizer}: {n_train} training, {} validation, {n_test} tokens",
                    valid.n_tokens()
                )
            }
            Parts::MadeUp(task) => {
                let samples = task.samples();
                format!(
                    "{name}, length {}, {tokenizer}: {} training sequences an epoch, {} \
                     validation, {} test",
                    task.len(),
                    samples.train,
                    samples.valid,
                    samples.test
                )
            }
        }
    }

    fn data_hashes(&self) -> BTreeMap<String, String> {
        self.corpus.hashes.clone()
    }

    fn artifacts(&self) -> serde_json::Value {
        let tokenizer = &self.corpus.tokenizer;
        serde_json::json!(Artifacts {
            n_vocab: tokenizer.n_vocab(),
            vocabulary: tokenizer.vocabulary().clone(),
        })
    }

    fn batches_per_epoch(&self) -> u64 {
        self.n_sequences().div_ceil(self.settings.batch_size as u64) * self.n_parts
    }

    fn batch(&self, index: u64) -> Result<LmBatch, Error> {
        let (epoch, sequences) = self.sequences_of(index);
        let examples: Vec<Example> =
            sequences.map(|sequence| self.training_example(epoch, sequence)).collect();
        let whole = LmBatch::of(&examples);
        let part = index % self.n_parts;
        if self.n_parts == 1 {
            return Ok(whole);
        }
        let edge = |part: u64| (whole.seq_len as u64 * part / self.n_parts) as usize;
        let (start, end) = (edge(part), edge(part + 1));
        if start == end {
            let message = format!(
                "a sequence of {} tokens has no {} parts to carry a state through",
                whole.seq_len, self.n_parts
            );
            let hint = Some("lower `train.accumulate`".to_owned());
            return Err(Error::Usage { message, hint });
        }
        Ok(whole.narrow(start, end - start))
    }

    fn samples(&self, index: u64) -> Vec<String> {
        let (epoch, sequences) = self.sequences_of(index);
        let name = |sequence| match &self.corpus.parts {
            Parts::MadeUp(_) => format!("sequence {} of epoch {}", sequence + 1, epoch + 1),
            Parts::Text { train, .. } => {
                let (corpus, first) = self.place(train, epoch, sequence);
                let last = first + self.sequence_len() as u64 - 1;
                match train.len() {
                    1 => format!("tokens {first} to {last} of `{}`", self.corpus.name),
                    _ => format!("tokens {first} to {last} of training corpus {}", corpus + 1),
                }
            }
        };
        sequences.map(name).collect()
    }

    fn input(&self, batch: LmBatch, seed: u64, device: &Device) -> LmInput {
        let targets = loss::Targets::of(&batch);
        LmInput {
            seed: nn::seed_on(seed, device),
            tokens: batch.tokens(device),
            resets: batch.resets(device),
            targets: targets.to_device(batch.batch * batch.seq_len, device),
            carries: (self.n_parts > 1).then_some(batch.continues),
            packed: self.options.packing == Packing::Documents,
        }
    }

    fn loss(&self, model: &MambaLm, input: LmInput) -> Loss {
        let LmInput { seed, tokens, resets, targets, carries, .. } = input;
        let hidden = nn::seeded(seed, || self.hidden(model, tokens, resets, carries));
        let weight = targets.len() as f64;
        if targets.len() == 0 {
            // A part of a sequence may have nothing to say; its gradient is zero.
            return Loss { mean: hidden.mean().cast(FloatDType::F32) * 0.0, weight };
        }
        Loss { mean: loss::mean(model, hidden, targets), weight }
    }

    fn work(&self, model: &MambaLm) -> Option<Work> {
        // A sample is a target. Sequences of a corpus are all targets; of one that is made up, the first
        // stands for all.
        let tokens = match &self.corpus.parts {
            Parts::Text { .. } => 1.0,
            Parts::MadeUp(_) => {
                let Example { inputs, targets, .. } = self.training_example(0, 0);
                let n_targets = targets.iter().filter(|target| **target != IGNORE).count();
                inputs.len() as f64 / n_targets.max(1) as f64
            }
        };
        // Every parameter multiplies once a token, the embedding as the head: two operations forwards,
        // four backwards. The recurrence itself is left out: 1.6 % at 130 million parameters.
        Some(Work { tokens, flops: 6.0 * model.num_params() as f64 * tokens })
    }

    fn selection(&self) -> Selection {
        Selection { metric: "loss", goal: Goal::Minimise }
    }

    fn evaluate(&self, model: &MambaLm, split: Split) -> Result<Metrics, Error> {
        match split {
            // Of a task that is made up at several lengths, all of them: what the report has.
            Split::Test => Ok(report::conclude(self, model)?.metrics),
            Split::Train | Split::Valid => Ok(score::score(self, model, split, None)?.metrics()),
        }
    }

    fn conclude(&self, model: &MambaLm) -> Result<Outcome, Error> {
        report::conclude(self, model)
    }
}

impl LmTask {
    /// Hidden states of training sequences, or of parts of them; those carry the state of the part before.
    fn hidden(
        &self,
        model: &MambaLm,
        tokens: Tensor<2, Int>,
        resets: Option<Tensor<2, Bool>>,
        carries: Option<bool>,
    ) -> Tensor<3> {
        if carries.is_none() && resets.is_none() {
            return model.hidden(tokens);
        }
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let before = carried.take().filter(|_| carries == Some(true));
        let [batch, _] = tokens.dims();
        let mut state = before.unwrap_or_else(|| initial(model, batch));
        let hidden = model.continued(tokens, resets, &mut state);
        if carries.is_some() {
            *carried = Some(state.detach());
        }
        hidden
    }

    /// Tokens of a training sequence that is cut from a corpus.
    fn sequence_len(&self) -> usize {
        self.options.seq_len * self.n_parts as usize
    }

    /// Blocks of a training stream that may begin anywhere within the length of a block.
    fn n_blocks(&self, stream: &Stream) -> u64 {
        let whole = (stream.n_tokens() - 1) / self.sequence_len() as u64;
        // One is given up for the freedom where the blocks begin.
        whole.saturating_sub(1).max(1)
    }

    /// Training sequences of an epoch.
    fn n_sequences(&self) -> u64 {
        match &self.corpus.parts {
            Parts::Text { train, .. } => {
                train.iter().map(|(stream, _)| self.n_blocks(stream)).sum()
            }
            Parts::MadeUp(task) => task.samples().train,
        }
    }

    /// Epoch and training sequences of a micro-batch.
    fn sequences_of(&self, index: u64) -> (u64, impl Iterator<Item = u64>) {
        let index = index / self.n_parts;
        let per_epoch = self.batches_per_epoch() / self.n_parts;
        let (epoch, place) = (index / per_epoch, index % per_epoch);
        let (n, size) = (self.n_sequences(), self.settings.batch_size as u64);
        let order = Permutation::new(n, self.settings.seed, epoch);
        (epoch, (place * size..n.min((place + 1) * size)).map(move |place| order.at(place)))
    }

    /// A training sequence, a pure function of the seed and the arguments.
    fn training_example(&self, epoch: u64, index: u64) -> Example {
        let seed = self.settings.seed;
        match &self.corpus.parts {
            Parts::MadeUp(task) => {
                let index = epoch * task.samples().train + index;
                task.example(task.len(), true, &mut stream(seed, Purpose::Train, index))
            }
            Parts::Text { train, .. } => {
                let (corpus, first) = self.place(train, epoch, index);
                let packed = self.options.packing == Packing::Documents;
                train[corpus].0.block(first, self.sequence_len(), packed)
            }
        }
    }

    /// Which corpus a training sequence is cut from, and its first token in it.
    fn place(&self, train: &[(Stream, f64)], epoch: u64, index: u64) -> (usize, u64) {
        let (corpus, block) = self.block(train, epoch, index);
        let len = self.sequence_len() as u64;
        // Every epoch cuts the text elsewhere.
        let spare =
            (train[corpus].0.n_tokens() - 1).saturating_sub(self.n_blocks(&train[corpus].0) * len);
        let mut rng = stream(self.settings.seed, Purpose::Offset, epoch);
        let offset = below(&mut rng, spare.min(len - 1) as usize + 1) as u64;
        (corpus, offset + block * len)
    }

    /// Which block of which corpus a place of the epoch holds.
    ///
    /// One corpus has every block once an epoch; of several, blocks are drawn with replacement, as
    /// often as the weights say.
    fn block(&self, train: &[(Stream, f64)], epoch: u64, index: u64) -> (usize, u64) {
        if train.len() == 1 {
            return (0, index);
        }
        let total: f64 = train.iter().map(|(_, weight)| weight).sum();
        let mut rng =
            stream(self.settings.seed, Purpose::Mixture, epoch * self.n_sequences() + index);
        let mut left = unit(&mut rng) * total;
        let chosen = train.iter().position(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        let corpus = chosen.unwrap_or(train.len() - 1);
        (corpus, below(&mut rng, self.n_blocks(&train[corpus].0) as usize) as u64)
    }

    /// The text of a split; that of validation where there is no test part.
    fn text_of<'a>(&self, parts: &'a Parts, split: Split) -> Option<Vec<&'a Stream>> {
        let Parts::Text { train, valid, test } = parts else { return None };
        Some(match split {
            Split::Train => train.iter().map(|(stream, _)| stream).collect(),
            Split::Valid => vec![valid],
            Split::Test => vec![test.as_ref().unwrap_or(valid)],
        })
    }
}

/// The model with fresh parameters, in the precision of the run.
fn fresh(model: &MambaLmConfig, n_vocab: usize, settings: &Settings, device: &Device) -> MambaLm {
    let mut lm = model.init(n_vocab, &mut Init::new(settings.seed, device));
    if let Some(dtype) = settings.precision.activations() {
        lm.compute_in(dtype);
    }
    lm
}

/// The state before the first token.
fn initial(model: &MambaLm, batch: usize) -> BackboneState {
    // `new` refuses mixers without a state.
    model.init_state(batch).unwrap_or_else(|error| panic!("{error}"))
}

fn artifacts_of(artifacts: &serde_json::Value) -> Result<Artifacts, Error> {
    Artifacts::deserialize(artifacts).map_err(|reason| Error::Usage {
        message: format!("the artifacts of the run are not those of a language model: {reason}"),
        hint: Some("name the run directory of an `lm` run".to_owned()),
    })
}

fn tokenizer_of(artifacts: &Artifacts) -> Result<Tokenizer, Error> {
    Tokenizer::new(artifacts.vocabulary.clone()).map_err(|reason| Error::Usage {
        message: format!("the tokenizer of the run cannot be used: {reason}"),
        hint: None,
    })
}

impl TaskEntry for LmTask {
    fn known_sets() -> Vec<KnownSet> {
        data::known_sets()
    }

    fn example() -> Option<StartingPoint> {
        // Its data is made up when it is read.
        Some(StartingPoint {
            config: include_str!("../../../../configs/lm/debug.toml"),
            data: None,
        })
    }

    fn restore(
        _options: &LmOptions,
        model: &MambaLmConfig,
        artifacts: &serde_json::Value,
        settings: &Settings,
        device: &Device,
    ) -> Result<MambaLm, Error> {
        Ok(fresh(model, artifacts_of(artifacts)?.n_vocab, settings, device))
    }

    fn generate(
        artifacts: &serde_json::Value,
        model: &MambaLm,
        request: &GenerateRequest,
        emit: &mut Emit<'_>,
    ) -> Result<(), Error> {
        let tokenizer = tokenizer_of(&artifacts_of(artifacts)?)?;
        generate::generate(model, &tokenizer, request, emit)
    }

    fn predict(
        _options: &LmOptions,
        artifacts: &serde_json::Value,
        model: &MambaLm,
        input: &Path,
    ) -> Result<String, Error> {
        let tokenizer = tokenizer_of(&artifacts_of(artifacts)?)?;
        let file = crate::data::read(input)?;
        let tokens = tokenizer.encode(&file.bytes).map_err(|reason| file.error(reason, None))?;
        if tokens.len() < 2 {
            let message = format!("expected at least 2 tokens, got {}", tokens.len());
            return Err(file.error(message, None));
        }
        let stream = Stream::new(Arc::new(InMemory { tokens, starts: vec![0] }));
        let scored = score::score_stream(model, &tokenizer, &stream)?;
        Ok(format!("{}\n", serde_json::json!(scored.metrics())))
    }
}
