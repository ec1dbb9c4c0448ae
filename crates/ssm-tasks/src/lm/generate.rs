//! Text from a trained model: the prompt through the parallel scan, then token by token in O(1).
//!
//! What is kept of the text is the recurrent state, so memory does not grow with its length.

use burn::tensor::{Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use ssm_core::{mixers::State, nn::BackboneState};
use ssm_train::error::Error;

use super::{
    decoder::{Decoder, lost},
    initial,
    model::MambaLm,
    random::{Purpose, stream},
    sampling::Sampling,
    tokenizer::{TextStream, Tokenizer},
};

/// Tokens of a prompt that the scan takes at once.
const CHUNK: usize = 2048;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// Texts to go on from, each by itself; they are generated side by side.
    pub prompts: Vec<String>,
    /// Tokens to generate for each; without, until the end of the text or a stop string.
    pub max_tokens: Option<u64>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Seed of the draws; the prompts of a request have draws of their own, by their places in it.
    pub seed: u64,
    /// Texts that end the generation, and are not part of it.
    pub stop: Vec<String>,
}

/// Takes a piece of the text of a prompt, counted from 0, and says whether to go on.
pub type Emit<'a> = dyn FnMut(usize, &str) -> Result<bool, Error> + 'a;

/// Generates text for every prompt and hands each piece on as soon as it is certain.
///
/// # Errors
/// [`Error::Usage`] for settings out of range, a prompt that the vocabulary cannot write, and an empty
/// prompt where no token stands for the beginning of a text; what `emit` fails with; a device failure,
/// and logits that are not finite numbers.
pub fn generate(
    model: &MambaLm,
    tokenizer: &Tokenizer,
    request: &GenerateRequest,
    emit: &mut Emit<'_>,
) -> Result<(), Error> {
    let usage = |message: String, hint: Option<&str>| Error::Usage {
        message,
        hint: hint.map(str::to_owned),
    };
    request.sampling.validate().map_err(|message| usage(message, None))?;
    if request.stop.iter().any(String::is_empty) {
        return Err(usage("a stop string is empty, which would stop at once".to_owned(), None));
    }
    let mut rows = Vec::new();
    let mut states = Vec::new();
    let mut logits = Vec::new();
    for (index, prompt) in request.prompts.iter().enumerate() {
        let mut tokens = tokenizer.encode(prompt.as_bytes()).map_err(|reason| {
            usage(format!("prompt {}: {reason}", index + 1), Some("use the text of the training"))
        })?;
        if tokens.is_empty() {
            tokens.extend(tokenizer.end_of_text());
        }
        if tokens.is_empty() {
            let message = format!("prompt {} is empty", index + 1);
            let hint = "the vocabulary has no token that begins a text; give a first character";
            return Err(usage(message, Some(hint)));
        }
        let (state, row) = prefill(model, &tokens);
        states.push(state);
        logits.push(row);
        rows.push(Row::new(index, &tokens, tokenizer.n_vocab(), request));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let mut values = read(Tensor::cat(logits, 0))?;
    let mut writer = Writer::new(model, State::stack(states), rows.len(), tokenizer.n_vocab());
    let mut done = 0;
    while request.max_tokens.is_none_or(|most| done < most) {
        let n_rows = values.len() / rows.len();
        let mut going_on = Vec::new();
        for (place, row) in rows.iter_mut().enumerate() {
            let first = place * n_rows;
            // Rows of the padding stand for no token.
            let values = &values[first..first + tokenizer.n_vocab()];
            if !values.iter().all(|value| value.is_finite()) {
                return Err(lost(&model.device(), row.index));
            }
            if row.next(values, request, tokenizer, emit)? {
                going_on.push(place);
            }
        }
        done += 1;
        if going_on.len() < rows.len() {
            if going_on.is_empty() {
                return Ok(());
            }
            writer.select(&going_on);
            let mut place = 0..;
            rows.retain(|_| place.next().is_some_and(|place| going_on.contains(&place)));
        }
        if request.max_tokens.is_none_or(|most| done < most) {
            let last: Vec<u32> = rows.iter().map(|row| row.last).collect();
            values = writer.step(&last)?;
        }
    }
    rows.iter_mut().try_for_each(|row| row.finish(emit))
}

/// The state after a prompt, and the logits of the token after it, `[1, n_rows]`.
fn prefill(model: &MambaLm, tokens: &[u32]) -> (BackboneState, Tensor<2>) {
    let mut state = initial(model, 1);
    let mut last = None;
    for chunk in tokens.chunks(CHUNK) {
        let ids: Vec<i32> = chunk.iter().map(|token| *token as i32).collect();
        let ids = Tensor::from_data(TensorData::new(ids, [1, chunk.len()]), &model.device());
        let hidden = model.continued(ids, None, &mut state);
        last = Some(hidden.narrow(1, chunk.len() - 1, 1).squeeze_dim::<2>(1));
    }
    // A prompt has at least one token.
    let last = last.unwrap_or_else(|| panic!("a prompt without a token"));
    (state, model.head(last))
}

/// What goes on from the prompts.
enum Writer<'a> {
    /// The parallel form with one token at a time.
    Steps { model: &'a MambaLm, state: BackboneState },
    /// Kernels for single tokens. Texts that ended stay in its batch, whose launches are recorded.
    Decoder { decoder: Box<Decoder>, batch: usize, places: Vec<usize> },
}

impl<'a> Writer<'a> {
    fn new(model: &'a MambaLm, state: BackboneState, batch: usize, n_vocab: usize) -> Self {
        // On processors nothing is gained: there a launch is a call.
        if ssm_train::device::is_host(&model.device()) {
            return Self::Steps { model, state };
        }
        let dtype = model.activations();
        let Some(mut decoder) = Decoder::new(model, &state, batch, n_vocab, dtype, 1) else {
            return Self::Steps { model, state };
        };
        decoder.capture();
        Self::Decoder { decoder: Box::new(decoder), batch, places: (0..batch).collect() }
    }

    /// Leaves all texts but these.
    fn select(&mut self, going_on: &[usize]) {
        match self {
            Self::Steps { state, .. } => *state = state.select(going_on),
            Self::Decoder { places, .. } => {
                *places = going_on.iter().map(|place| places[*place]).collect();
            }
        }
    }

    /// Reads a token of every text, and says the logits of the next ones, text after text.
    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        match self {
            Self::Steps { model, state } => {
                let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
                let ids = TensorData::new(ids, [tokens.len()]);
                read(model.step(Tensor::<1, Int>::from_data(ids, &model.device()), state))
            }
            Self::Decoder { decoder, batch, places } => {
                let mut all = vec![0; *batch];
                places.iter().zip(tokens).for_each(|(place, token)| all[*place] = *token);
                decoder.feed(&all);
                let values = read(decoder.step())?;
                if places.len() == *batch {
                    return Ok(values);
                }
                let n_rows = values.len() / *batch;
                let rows = places.iter().map(|place| &values[place * n_rows..][..n_rows]);
                Ok(rows.collect::<Vec<_>>().concat())
            }
        }
    }
}

fn read(logits: Tensor<2>) -> Result<Vec<f32>, Error> {
    let device = logits.device();
    logits.try_into_vec_as().map_err(|reason| Error::Device {
        device: format!("{device:?}"),
        message: reason.to_string(),
        hint: Some("fewer prompts at once need less memory".to_owned()),
    })
}

/// A text that is being generated.
struct Row {
    index: usize,
    rng: ChaCha8Rng,
    /// Which tokens came before.
    seen: Vec<bool>,
    last: u32,
    text: TextStream,
    /// The end of the text that may turn out to be the beginning of a stop string.
    held: String,
}

impl Row {
    fn new(index: usize, prompt: &[u32], n_vocab: usize, request: &GenerateRequest) -> Self {
        let mut seen = vec![false; n_vocab];
        prompt.iter().for_each(|token| seen[*token as usize] = true);
        Self {
            index,
            rng: stream(request.seed, Purpose::Sample, index as u64),
            seen,
            last: 0,
            text: TextStream::default(),
            held: String::new(),
        }
    }

    /// Draws a token and says whether the text goes on.
    fn next(
        &mut self,
        logits: &[f32],
        request: &GenerateRequest,
        tokenizer: &Tokenizer,
        emit: &mut Emit<'_>,
    ) -> Result<bool, Error> {
        self.last = request.sampling.draw(logits, &self.seen, &mut self.rng);
        self.seen[self.last as usize] = true;
        if tokenizer.end_of_text() == Some(self.last) {
            self.finish(emit)?;
            return Ok(false);
        }
        self.held += &self.text.push(tokenizer.bytes_of(self.last));
        let first = request.stop.iter().filter_map(|stop| self.held.find(stop)).min();
        if let Some(first) = first {
            emit(self.index, &self.held[..first])?;
            return Ok(false);
        }
        let keep = request.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let certain = self.held.len() - keep;
        let go_on = certain == 0 || emit(self.index, &self.held[..certain])?;
        self.held.drain(..certain);
        Ok(go_on)
    }

    /// Hands on what was held back.
    fn finish(&mut self, emit: &mut Emit<'_>) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.held) + &self.text.finish();
        if !rest.is_empty() {
            emit(self.index, &rest)?;
        }
        Ok(())
    }
}

/// Bytes of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let mut ends = stop.char_indices().map(|(place, _)| place).skip(1).collect::<Vec<_>>();
    ends.reverse();
    ends.into_iter().find(|len| text.ends_with(&stop[..*len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_string_is_held_back() {
        for (text, stop, held) in
            [("ab", "bc", 1), ("abb", "bbc", 2), ("ab", "x", 0), ("a—", "—b", 3), ("aa", "aa", 1)]
        {
            assert_eq!(overlap(text, stop), held, "{text} {stop}");
        }
    }
}
