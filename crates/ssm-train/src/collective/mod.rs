//! What replicas that train one model together say to each other.
//!
//! Every replica holds the whole model. The micro-batches of a step are shared out among them, the
//! sums of gradients are added up, and each applies the same update. Replica 0 leads: it alone
//! evaluates, logs and saves, and tells the others which step comes next.
//!
//! | file | who takes part | how gradients are added up |
//! |---|---|---|
//! | `threads.rs` | threads of this process, each with a device of its own | in the memory of the host |
//! | `nccl.rs` | the same on CUDA | by NCCL, on the devices |
//! | `mpi.rs` | processes that `mpirun` started, on one machine or several | in the memory of the first |

#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod threads;

use std::{ops::Range, sync::MutexGuard};

use burn::tensor::Tensor;

#[cfg(feature = "mpi")]
pub(crate) use self::mpi::{Mpi, Processes};
pub(crate) use self::threads::{Room, Threads};
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

    /// Held while a replica draws random numbers, where all have one generator.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }

    /// A signal that asked another replica to stop, where they are processes of their own.
    fn signal(&self) -> Option<i32> {
        None
    }

    /// How gradients are added up; empty where nothing is.
    fn route(&self) -> &'static str {
        ""
    }

    /// Whether gradients are added up by [`Collective::sum_on_devices`], without the host.
    fn is_on_devices(&self) -> bool {
        false
    }

    /// The sums over all replicas of rows that lie on their devices, equally many and equally long,
    /// with the same bits at each of them. A row is under way while the next one is made.
    ///
    /// What a device cannot do shows when a sum is read. A replica that is gone without [`abort`]
    /// is waited for without end.
    ///
    /// [`abort`]: Collective::abort
    fn sum_on_devices(&self, rows: &mut dyn Iterator<Item = Tensor<1>>) -> Vec<Tensor<1>> {
        rows.collect()
    }
}

/// What a replica brings to a meeting, and what all of them came to.
#[derive(Clone, Default)]
struct Part {
    values: Vec<f32>,
    numbers: Vec<f64>,
    bytes: Vec<u8>,
}

impl Part {
    /// With that of the next replica. Numbers are added up, bytes are those of the first to have any.
    fn and(mut self, next: Self) -> Self {
        if self.values.is_empty() {
            self.values = next.values;
        } else {
            self.values.iter_mut().zip(&next.values).for_each(|(sum, value)| *sum += value);
        }
        self.numbers.iter_mut().zip(&next.numbers).for_each(|(sum, number)| *sum += number);
        Self { bytes: if self.bytes.is_empty() { next.bytes } else { self.bytes }, ..self }
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
