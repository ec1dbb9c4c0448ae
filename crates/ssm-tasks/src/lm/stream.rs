//! A long row of tokens, cut into blocks.

use std::{ops::Range, sync::Arc};

use super::batch::{Example, IGNORE};

/// Tokens of a corpus, in memory or in files.
pub trait Tokens: Send + Sync {
    /// Number of tokens.
    fn len(&self) -> u64;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them; the range is within them.
    fn read(&self, range: Range<u64>) -> Vec<u32>;

    /// Where documents begin in a range, ascending.
    fn starts(&self, range: Range<u64>) -> Vec<u64>;
}

/// Tokens in memory.
#[derive(Clone, Debug, Default)]
pub struct InMemory {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Where documents begin, ascending.
    pub starts: Vec<u64>,
}

impl Tokens for InMemory {
    fn len(&self) -> u64 {
        self.tokens.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Vec<u32> {
        self.tokens[range.start as usize..range.end as usize].to_vec()
    }

    fn starts(&self, range: Range<u64>) -> Vec<u64> {
        within(&self.starts, range).to_vec()
    }
}

/// The part of ascending numbers that lies in a range.
#[must_use]
pub fn within(starts: &[u64], range: Range<u64>) -> &[u64] {
    let first = starts.partition_point(|start| *start < range.start);
    let last = starts.partition_point(|start| *start < range.end);
    &starts[first..last.max(first)]
}

/// A part of a corpus.
#[derive(Clone)]
pub struct Stream {
    tokens: Arc<dyn Tokens>,
    range: Range<u64>,
}

impl Stream {
    /// All of these tokens.
    #[must_use]
    pub fn new(tokens: Arc<dyn Tokens>) -> Self {
        let range = 0..tokens.len();
        Self { tokens, range }
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Cut in two, the first with this share of the tokens.
    #[must_use]
    pub fn split(&self, share: f64) -> [Self; 2] {
        let middle = self.range.start + (self.n_tokens() as f64 * share) as u64;
        [self.range.start..middle, middle..self.range.end]
            .map(|range| Self { tokens: self.tokens.clone(), range })
    }

    /// Blocks of `len` tokens, each followed by one more as the last target; the last block is
    /// shorter where it must be.
    #[must_use]
    pub fn n_blocks(&self, len: usize) -> u64 {
        self.n_tokens().saturating_sub(1).div_ceil(len as u64)
    }

    /// Tokens `start..start + len` as inputs and those one further as targets.
    ///
    /// With `packed`, documents are kept apart: each begins with an empty state, and the last token of
    /// one has no target.
    #[must_use]
    pub fn block(&self, start: u64, len: usize, packed: bool) -> Example {
        let first = self.range.start + start;
        let end = self.range.end.min(first + len as u64 + 1);
        let tokens = self.tokens.read(first..end);
        let n = tokens.len().saturating_sub(1);
        let mut example = Example {
            inputs: tokens[..n].to_vec(),
            targets: tokens[1..].iter().map(|token| *token as i32).collect(),
            starts: Vec::new(),
        };
        if packed {
            for place in self.tokens.starts(first..end) {
                let place = (place - first) as usize;
                if place > 0 {
                    example.targets[place - 1] = IGNORE;
                }
                if place < n {
                    example.starts.push(place);
                }
            }
        }
        example
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        let tokens = InMemory { tokens: (10..20).collect(), starts: vec![0, 3, 4, 9] };
        Stream::new(Arc::new(tokens))
    }

    #[test]
    fn blocks_cover_every_token_but_the_first_once_as_a_target() {
        let stream = stream();
        assert_eq!(stream.n_blocks(4), 3);
        let blocks = (0..3).map(|block| stream.block(block * 4, 4, false));
        let targets: Vec<i32> = blocks.flat_map(|block| block.targets).collect();
        assert_eq!(targets, (11..20).collect::<Vec<_>>());
        let last = stream.block(8, 4, false);
        assert_eq!((last.inputs, last.targets), (vec![18], vec![19]));
    }

    #[test]
    fn packed_documents_do_not_predict_each_other() {
        let block = stream().block(1, 8, true);
        assert_eq!(block.inputs, [11, 12, 13, 14, 15, 16, 17, 18]);
        assert_eq!(block.targets, [12, IGNORE, IGNORE, 15, 16, 17, 18, IGNORE]);
        assert_eq!(block.starts, [2, 3]);
    }

    #[test]
    fn parts_lie_one_after_the_other() {
        let [first, second] = stream().split(0.7);
        assert_eq!((first.n_tokens(), second.n_tokens()), (7, 3));
        assert_eq!(first.block(4, 8, false).targets, [15, 16]);
        let block = second.block(0, 8, true);
        assert_eq!((block.inputs, block.targets), (vec![17, 18], vec![18, IGNORE]));
    }
}
