//! From text to tokens and back: bytes, characters, and any `tokenizer.json`.
//!
//! Text comes back byte by byte, as a token of a byte-level vocabulary may end inside of a character.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::DecoderWrapper;

/// The token that ends a document in the vocabularies of GPT-2 and GPT-NeoX.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Four times the largest published vocabulary; each number takes memory, however short the file that
/// asks for them.
const MOST_NUMBERS: usize = 1 << 20;
/// Ids that may be left out for each token that there is, and for the vocabulary as a whole.
const GAPS: [usize; 2] = [16, 1 << 16];

/// What a tokenizer is made of; stored with a run, so that a run is complete by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// The 256 bytes.
    Bytes,
    /// These characters, in this order.
    Chars(String),
    /// The text of a `tokenizer.json`.
    Json(String),
    /// Numbers below this one: tasks that are made up have no text.
    Numbers(usize),
}

/// A [`Vocabulary`] ready for use.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    chars: BTreeMap<char, u32>,
    json: Option<tokenizers::Tokenizer>,
    /// The text of every token, empty for tokens without.
    bytes: Vec<Vec<u8>>,
    end_of_text: Option<u32>,
}

impl Tokenizer {
    /// # Errors
    /// A sentence, for a `tokenizer.json` that cannot be understood.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, String> {
        let mut chars = BTreeMap::new();
        let mut json = None;
        let mut end_of_text = None;
        let bytes: Vec<Vec<u8>> = match &vocabulary {
            Vocabulary::Bytes => (0..=u8::MAX).map(|byte| vec![byte]).collect(),
            Vocabulary::Chars(text) => {
                chars = text.chars().zip(0..).collect();
                text.chars().map(|char| char.to_string().into_bytes()).collect()
            }
            Vocabulary::Numbers(n) if *n > MOST_NUMBERS => {
                return Err(format!("expected at most {MOST_NUMBERS} numbers, got {n}"));
            }
            Vocabulary::Numbers(n) => {
                (0..*n).map(|number| format!("{number} ").into_bytes()).collect()
            }
            Vocabulary::Json(text) => {
                let read = read_json(text)
                    .map_err(|reason| format!("not a `tokenizer.json`: {reason}"))?;
                end_of_text = read.token_to_id(END_OF_TEXT);
                let bytes = token_bytes(&read)?;
                json = Some(read);
                bytes
            }
        };
        if bytes.is_empty() {
            return Err("the vocabulary is empty".to_owned());
        }
        Ok(Self { vocabulary, chars, json, bytes, end_of_text })
    }

    /// The characters of a text in the order of their codes, as nanoGPT numbers them.
    #[must_use]
    pub fn chars_of(text: &str) -> Vocabulary {
        let chars: std::collections::BTreeSet<char> = text.chars().collect();
        Vocabulary::Chars(chars.into_iter().collect())
    }

    /// What it is made of.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Number of tokens; ids are below it.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        self.bytes.len()
    }

    /// The token that ends a document, if the vocabulary has one.
    #[must_use]
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// The text of a token; nothing for an id that the vocabulary does not have.
    #[must_use]
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// SHA-256 of what it is made of, in lower-case hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> String {
        let text = serde_json::json!(self.vocabulary).to_string();
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A few words: `bytes`, `65 characters`, `50277 tokens`.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.vocabulary {
            Vocabulary::Bytes => "bytes".to_owned(),
            Vocabulary::Chars(_) => format!("{} characters", self.n_vocab()),
            Vocabulary::Json(_) | Vocabulary::Numbers(_) => format!("{} tokens", self.n_vocab()),
        }
    }

    /// # Errors
    /// A sentence, for text that is not UTF-8 or that the vocabulary cannot write.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>, String> {
        if self.vocabulary == Vocabulary::Bytes {
            return Ok(text.iter().map(|byte| u32::from(*byte)).collect());
        }
        let text = std::str::from_utf8(text).map_err(|reason| {
            format!("expected UTF-8, got other bytes at {}", reason.valid_up_to())
        })?;
        match (&self.vocabulary, &self.json) {
            (_, Some(json)) => {
                let encoding = json.encode_fast(text, false);
                let encoding =
                    encoding.map_err(|reason| format!("cannot be tokenized: {reason}"))?;
                Ok(encoding.get_ids().to_vec())
            }
            (Vocabulary::Numbers(n), _) => text
                .split_whitespace()
                .map(|word| {
                    let number = word.parse().ok().filter(|number| (*number as usize) < *n);
                    number.ok_or_else(|| format!("expected numbers below {n}, got `{word}`"))
                })
                .collect(),
            _ => text
                .char_indices()
                .map(|(place, char)| {
                    let known = self.chars.get(&char).copied();
                    known.ok_or_else(|| {
                        format!(
                            "the character {char:?} at byte {place} is not among the {} of the \
                             vocabulary",
                            self.n_vocab()
                        )
                    })
                })
                .collect(),
        }
    }

    /// The text of tokens; what is no UTF-8 is replaced.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.bytes_of(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The crate that reads these files panics at some that are JSON of another shape.
fn read_json(text: &str) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|reason| reason.to_string())?;
    std::panic::catch_unwind(|| tokenizers::Tokenizer::from_str(text))
        .map_err(|_| "its parts are not those of a tokenizer".to_owned())?
        .map_err(|reason| reason.to_string())
}

/// The text of every token of a `tokenizer.json`; ids may have gaps.
fn token_bytes(json: &tokenizers::Tokenizer) -> Result<Vec<Vec<u8>>, String> {
    let vocabulary = json.get_vocab(true);
    let n = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
    if n > GAPS[0] * vocabulary.len() + GAPS[1] {
        return Err(format!("has {} tokens and an id of {}", vocabulary.len(), n - 1));
    }
    let mut bytes = vec![Vec::new(); n];
    let added = json.get_added_tokens_decoder();
    let alphabet = printable_bytes();
    let byte_level = matches!(json.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    for (token, id) in vocabulary {
        let text = if added.contains_key(&id) {
            Some(token.clone().into_bytes())
        } else if byte_level {
            token.chars().map(|char| alphabet.get(&char).copied()).collect()
        } else {
            None
        };
        // Other decoders know the text of a token; what they join it with is theirs.
        let text = text.or_else(|| json.decode(&[id], false).ok().map(String::into_bytes));
        bytes[id as usize] = text.unwrap_or_default();
    }
    Ok(bytes)
}

/// GPT-2's way to write a byte as one printable character: itself where it is printable in Latin-1,
/// else the next character from U+0100 on.
pub(super) fn printable_bytes() -> BTreeMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let char = if printable(byte) { Some(char::from(byte)) } else { others.next() };
            Some((char?, byte))
        })
        .collect()
}

/// Puts the bytes of tokens together to text, character by character.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl TextStream {
    /// Takes bytes and gives the characters that are complete; what can be no character is replaced.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = self.pending.drain(..error.valid_up_to()).collect::<Vec<u8>>();
                    text.push_str(&String::from_utf8_lossy(&valid));
                    let Some(wrong) = error.error_len() else { return text };
                    self.pending.drain(..wrong);
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vocabulary_gives_its_text_back() {
        let text = "Zu viel Wärme?\n 12 — ok";
        for vocabulary in [Vocabulary::Bytes, Tokenizer::chars_of(text)] {
            let tokenizer = Tokenizer::new(vocabulary).unwrap();
            let ids = tokenizer.encode(text.as_bytes()).unwrap();
            assert_eq!(tokenizer.decode(&ids), text);
        }
        let numbers = Tokenizer::new(Vocabulary::Numbers(16)).unwrap();
        assert_eq!(numbers.encode(b"3 0 15").unwrap(), [3, 0, 15]);
    }

    #[test]
    fn text_that_cannot_be_written_is_refused_with_its_place() {
        let tokenizer = Tokenizer::new(Tokenizer::chars_of("abc")).unwrap();
        assert_eq!(
            tokenizer.encode("abé".as_bytes()).unwrap_err(),
            "the character 'é' at byte 2 is not among the 3 of the vocabulary"
        );
        assert_eq!(
            tokenizer.encode(b"ab\xff").unwrap_err(),
            "expected UTF-8, got other bytes at 2"
        );
        let numbers = Tokenizer::new(Vocabulary::Numbers(16)).unwrap();
        assert_eq!(numbers.encode(b"3 16").unwrap_err(), "expected numbers below 16, got `16`");
    }

    #[test]
    fn characters_are_numbered_by_their_codes() {
        let Vocabulary::Chars(chars) = Tokenizer::chars_of("hello\nA") else { panic!() };
        assert_eq!(chars, "\nAehlo");
    }

    #[test]
    fn bytes_have_the_printable_forms_of_gpt_2() {
        let alphabet = printable_bytes();
        assert_eq!(alphabet.len(), 256);
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'a']), (b' ', b'\n', b'a'));
    }

    #[test]
    fn characters_come_when_they_are_complete() {
        let mut stream = TextStream::default();
        let texts = [&b"a\xe2"[..], b"\x80", b"\x94b", b"\xff\xc3"].map(|b| stream.push(b));
        assert_eq!(texts, ["a", "", "—b", "\u{fffd}"]);
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
