//! Training of a byte-level BPE vocabulary, written as a `tokenizer.json`.
//!
//! Sennrich et al. 2015, arXiv:1508.07909, on bytes as in GPT-2: the most frequent pair of neighbours
//! inside of words becomes a token, until the vocabulary is full; of equally frequent pairs the one with
//! the greater bytes. The trainer of the crate `tokenizers` settles ties otherwise, which is why this one
//! is here: the vocabulary is to be a function of the text and not of the program.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    rc::Rc,
};

use serde_json::json;
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    pre_tokenizers::byte_level::ByteLevel,
};

use super::tokenizer::printable_bytes;

/// Counts the words of a text, piece by piece, then merges.
pub struct BpeTrainer {
    special: Vec<String>,
    words: HashMap<String, u64>,
}

impl BpeTrainer {
    /// Special tokens are never split and never part of a word; they get the first ids.
    #[must_use]
    pub fn new(special: Vec<String>) -> Self {
        Self { special, words: HashMap::new() }
    }

    /// Counts the words of a text.
    ///
    /// # Errors
    /// A sentence, if the text cannot be cut into words.
    pub fn count(&mut self, text: &str) -> Result<(), String> {
        let mut pieces = vec![text];
        for special in self.special.iter().filter(|special| !special.is_empty()) {
            pieces = pieces.into_iter().flat_map(|piece| piece.split(special.as_str())).collect();
        }
        for piece in pieces {
            let mut cut = PreTokenizedString::from(piece);
            ByteLevel::new(false, true, true)
                .pre_tokenize(&mut cut)
                .map_err(|reason| reason.to_string())?;
            for (word, _, _) in cut.get_splits(OffsetReferential::Original, OffsetType::Byte) {
                match self.words.get_mut(word) {
                    Some(count) => *count += 1,
                    None => {
                        self.words.insert(word.to_owned(), 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// The text of a `tokenizer.json` with `n_vocab` tokens, fewer where the text has no more pairs.
    ///
    /// # Errors
    /// A sentence, if the bytes and the special tokens are more than that.
    pub fn train(self, n_vocab: usize) -> Result<String, String> {
        let alphabet = gpt2_order();
        let n_first = self.special.len() + alphabet.len();
        if n_vocab < n_first {
            return Err(format!(
                "expected at least {n_first} tokens, for the bytes and {} special ones, got {n_vocab}",
                self.special.len()
            ));
        }
        let mut tokens: Vec<String> = self.special.clone();
        tokens.extend(alphabet.iter().map(char::to_string));
        let merges = merge(self.words, &mut tokens, n_vocab);
        let vocab: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let added = |(id, content): (usize, &String)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        };
        let added: Vec<serde_json::Value> = self.special.iter().enumerate().map(added).collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            },
        });
        Ok(format!("{file:#}\n"))
    }
}

/// The printable forms of the bytes in GPT-2's order: those that print themselves first.
fn gpt2_order() -> Vec<char> {
    printable_bytes().into_keys().collect()
}

/// A pair of neighbours and how often it was seen when it was put on the heap.
struct Candidate {
    count: i64,
    bytes: [Rc<[u8]>; 2],
    pair: (u32, u32),
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.count.cmp(&other.count).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// Merges until there are `n_vocab` tokens; returns the merges and appends their results to `tokens`.
fn merge(
    words: HashMap<String, u64>,
    tokens: &mut Vec<String>,
    n_vocab: usize,
) -> Vec<[String; 2]> {
    let alphabet = printable_bytes();
    let id_of: BTreeMap<char, u32> = tokens
        .iter()
        .zip(0..)
        .skip(tokens.len() - alphabet.len())
        .filter_map(|(token, id)| Some((token.chars().next()?, id)))
        .collect();
    let mut bytes: Vec<Rc<[u8]>> = tokens
        .iter()
        .map(|token| token.chars().filter_map(|char| alphabet.get(&char).copied()).collect())
        .collect();
    let mut words: Vec<(Vec<u32>, i64)> = words
        .into_iter()
        .map(|(word, count)| (word.chars().map(|char| id_of[&char]).collect(), count as i64))
        .collect();
    let mut counts: HashMap<(u32, u32), i64> = HashMap::new();
    let mut places: HashMap<(u32, u32), BTreeSet<usize>> = HashMap::new();
    for (index, (word, count)) in words.iter().enumerate() {
        for pair in word.windows(2).map(|pair| (pair[0], pair[1])) {
            *counts.entry(pair).or_default() += count;
            places.entry(pair).or_default().insert(index);
        }
    }
    let candidate = |pair: (u32, u32), count: i64, bytes: &[Rc<[u8]>]| Candidate {
        count,
        bytes: [bytes[pair.0 as usize].clone(), bytes[pair.1 as usize].clone()],
        pair,
    };
    let mut heap: BinaryHeap<Candidate> =
        counts.iter().map(|(pair, count)| candidate(*pair, *count, &bytes)).collect();
    let mut merges = Vec::new();
    while tokens.len() < n_vocab {
        let Some(best) = heap.pop() else { break };
        // An entry that is out of date was followed by a newer one.
        if best.count <= 0 || counts.get(&best.pair) != Some(&best.count) {
            continue;
        }
        let (left, right) = best.pair;
        let merged = tokens.len() as u32;
        merges.push([tokens[left as usize].clone(), tokens[right as usize].clone()]);
        tokens.push(merges[merges.len() - 1].concat());
        bytes.push(best.bytes.concat().into());
        let mut changed: BTreeSet<(u32, u32)> = BTreeSet::new();
        for index in places.remove(&best.pair).unwrap_or_default() {
            let (word, count) = &mut words[index];
            for pair in word.windows(2).map(|pair| (pair[0], pair[1])) {
                *counts.entry(pair).or_default() -= *count;
                changed.insert(pair);
            }
            let mut joined: Vec<u32> = Vec::with_capacity(word.len());
            let mut rest = &word[..];
            while let Some((first, others)) = rest.split_first() {
                let is_pair = *first == left && others.first() == Some(&right);
                joined.push(if is_pair { merged } else { *first });
                rest = if is_pair { &others[1..] } else { others };
            }
            *word = joined;
            for pair in word.windows(2).map(|pair| (pair[0], pair[1])) {
                *counts.entry(pair).or_default() += *count;
                places.entry(pair).or_default().insert(index);
                changed.insert(pair);
            }
        }
        counts.remove(&best.pair);
        for pair in changed {
            if let Some(count) = counts.get(&pair).filter(|count| **count > 0) {
                heap.push(candidate(pair, *count, &bytes));
            }
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::tokenizer::{END_OF_TEXT, Tokenizer, Vocabulary};

    #[test]
    fn the_most_frequent_pair_is_merged_and_ties_go_to_the_greater_bytes() {
        let mut trainer = BpeTrainer::new(vec![END_OF_TEXT.to_owned()]);
        trainer.count("low low low low low<|endoftext|>lower lower widest widest widest").unwrap();
        trainer.count("newest newest newest newest newest newest").unwrap();
        let text = trainer.train(257 + 6).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let merges: Vec<String> = json["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect();
        // `st` and `es` are equally frequent, and so are `est` and others later.
        assert_eq!(merges[..3], ["st", "est", "ow"]);
        assert_eq!(merges.len(), 6);
        let tokenizer = Tokenizer::new(Vocabulary::Json(text)).unwrap();
        assert_eq!((tokenizer.n_vocab(), tokenizer.end_of_text()), (263, Some(0)));
        let sample = "lowest<|endoftext|> wïdest";
        assert_eq!(tokenizer.decode(&tokenizer.encode(sample.as_bytes()).unwrap()), sample);
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        assert_eq!(
            BpeTrainer::new(vec!["<s>".to_owned()]).train(200).unwrap_err(),
            "expected at least 257 tokens, for the bytes and 1 special ones, got 200"
        );
    }
}
