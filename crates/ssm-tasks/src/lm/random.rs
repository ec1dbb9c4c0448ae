//! Randomness as a pure function of (seed, purpose, index), and orders that need no memory.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What random numbers are drawn for; each purpose has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The order of the training samples of an epoch.
    Order,
    /// Where the blocks of an epoch begin.
    Offset,
    /// Which corpus of a mixture a sample is of, and which block of it.
    Mixture,
    /// A made-up training sequence.
    Train,
    /// A made-up validation sequence.
    Valid,
    /// A made-up test sequence.
    Test,
    /// The tokens of a generated text.
    Sample,
}

/// Random numbers as a pure function of the arguments.
#[must_use]
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> ChaCha8Rng {
    let mut key = *b"ssm-lm\0\0........................";
    key[8..16].copy_from_slice(&seed.to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    key[24] = purpose as u8;
    ChaCha8Rng::from_seed(key)
}

/// Uniform on `0..n`, up to `2^-64 n`.
pub fn below(rng: &mut impl Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Uniform in `[0, 1)`.
pub fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// `count` different numbers below `n`, in ascending order.
///
/// Floyd's algorithm; `count` is at most `n`.
pub fn distinct_below(rng: &mut impl Rng, n: usize, count: usize) -> Vec<usize> {
    let mut chosen = std::collections::BTreeSet::new();
    for last in n - count..n {
        let candidate = below(rng, last + 1);
        if !chosen.insert(candidate) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

/// Puts a slice in random order.
pub fn shuffle<T>(items: &mut [T], rng: &mut impl Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

/// A random order of `0..n` that is computed place by place, so that its length costs nothing.
///
/// A Feistel network of four rounds permutes the numbers of `2 * half` bits; those that are not below
/// `n` are sent through it again until they are.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    n: u64,
    half: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The order of `0..n` of a seed and an epoch.
    #[must_use]
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let mut rng = stream(seed, Purpose::Order, epoch);
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { n, half: bits.div_ceil(2).max(1), keys: [0; 4].map(|_: u64| rng.next_u64()) }
    }

    /// What stands at a place; `place` is below `n`.
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.n);
        let mut value = place;
        loop {
            value = self.round_trip(value);
            if value < self.n {
                return value;
            }
        }
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (scramble(right ^ key) & mask));
        }
        (left << self.half) | right
    }
}

/// The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input reaches every bit.
fn scramble(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_number_once_for_every_length() {
        for n in [1, 2, 3, 5, 64, 97, 1000, 4097] {
            let order = Permutation::new(n, 7, 3);
            let mut numbers: Vec<u64> = (0..n).map(|place| order.at(place)).collect();
            if n > 60 {
                assert_ne!(numbers, (0..n).collect::<Vec<_>>(), "{n}");
            }
            numbers.sort_unstable();
            assert_eq!(numbers, (0..n).collect::<Vec<_>>(), "{n}");
        }
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let order = |seed, epoch| {
            let order = Permutation::new(500, seed, epoch);
            (0..500).map(|place| order.at(place)).collect::<Vec<_>>()
        };
        assert_eq!(order(1, 2), order(1, 2));
        assert_ne!(order(1, 2), order(1, 3));
        assert_ne!(order(1, 2), order(2, 2));
        // Neighbours do not stay neighbours.
        let stays = order(1, 2).windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
        assert!(stays < 10, "{stays}");
    }

    #[test]
    fn distinct_numbers_are_distinct_and_uniform() {
        let mut rng = stream(0, Purpose::Train, 0);
        let mut counts = [0; 10];
        for _ in 0..2000 {
            let drawn = distinct_below(&mut rng, 10, 3);
            assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn.len() == 3);
            drawn.iter().for_each(|number| counts[*number] += 1);
        }
        assert!(counts.iter().all(|count| (500..700).contains(count)), "{counts:?}");
        assert_eq!(distinct_below(&mut rng, 4, 4), [0, 1, 2, 3]);
    }
}
