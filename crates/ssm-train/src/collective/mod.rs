//! What replicas that train one model together say to each other.
//!
//! Every replica holds the whole model. The micro-batches of a step are shared out among them, the
//! sums of gradients are added up, and each applies the same update. Replica 0 leads: it alone
//! evaluates, logs and saves, and tells the others which step comes next.
//!
//! | file | who takes part |
//! |---|---|
//! | `threads.rs` | threads of this process, each with a device of its own |

mod threads;

use std::{ops::Range, sync::MutexGuard};

pub(crate) use self::threads::Threads;
use crate::error::Error;

/// One replica's way to the others. Every replica makes the same calls in the same order.
pub(crate) trait Collective {
    /// Number of this replica, counted from 0.
    fn rank(&self) -> usize;

    /// Number of replicas.
    fn size(&self) -> usize;

    /// Replaces both by the sums over all replicas, with the same bits at each of them.
    ///
    /// `values` may be empty for a replica that has nothing to add; it is as long as those of the
    /// others afterwards.
    ///
    /// # Errors
    /// [`Error::Replica`] if another one is gone.
    fn sum(&self, values: &mut Vec<f32>, numbers: &mut [f64]) -> Result<(), Error>;

    /// What replica 0 says; the others say nothing.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error>;

    /// Tells the others that this one cannot go on.
    fn abort(&self, reason: &str);

    /// Held while a replica computes, where replicas cannot do so at the same time.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }
}

/// A run without replicas.
pub(crate) struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut Vec<f32>, _numbers: &mut [f64]) -> Result<(), Error> {
        Ok(())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(bytes)
    }

    fn abort(&self, _reason: &str) {}
}

/// The micro-batches of replica `rank` of `size`: neighbours, so that with one for each replica they
/// are added up in the order in which a single one adds them.
pub(crate) fn share(batches: &Range<u64>, rank: usize, size: usize) -> Range<u64> {
    let n = batches.end - batches.start;
    let cut = |rank: usize| batches.start + n * rank as u64 / size as u64;
    cut(rank)..cut(rank + 1)
}

/// What replica 0 tells the others to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take part in this step.
    Step(u64),
    /// The run is over, or will be continued by another process.
    End,
}

impl Order {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Step(step) => step.to_le_bytes().to_vec(),
            Self::End => Vec::new(),
        }
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        <[u8; 8]>::try_from(bytes).map_or(Self::End, |bytes| Self::Step(u64::from_le_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_micro_batch_is_taken_by_one_replica() {
        for size in 1..=5 {
            for n in 0..=11 {
                let shares = (0..size).map(|rank| share(&(7..7 + n), rank, size));
                let taken: Vec<u64> = shares.flatten().collect();
                assert_eq!(taken, (7..7 + n).collect::<Vec<_>>(), "{n} over {size}");
            }
        }
    }

    #[test]
    fn orders_are_understood() {
        for order in [Order::Step(0), Order::Step(u64::MAX), Order::End] {
            assert_eq!(Order::of(&order.to_bytes()), order);
        }
    }
}
