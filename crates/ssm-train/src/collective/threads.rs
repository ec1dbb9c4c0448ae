//! Replicas in threads of one process: what each brings is put on a table, the last one adds it up.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor};

use super::{Collective, Part, nccl};
use crate::error::Error;

#[derive(Default)]
struct Table {
    parts: Vec<Option<Part>>,
    /// What all parts came to, of the last meeting that is over.
    result: Arc<Part>,
    meetings: u64,
    /// Who is gone, and why.
    gone: Option<(usize, String)>,
}

/// Where threads meet.
pub(crate) struct Room {
    table: Mutex<Table>,
    changed: Condvar,
    /// Every backend has one generator of random numbers for the whole process.
    turn: Mutex<()>,
    /// Where NCCL adds up what lies on them: those of all threads.
    devices: Vec<Device>,
}

impl Room {
    /// Tells everybody that one is gone; of several the first one counts.
    pub(crate) fn leave(&self, rank: usize, reason: &str) {
        lock(&self.table).gone.get_or_insert((rank, reason.to_owned()));
        self.changed.notify_all();
    }

    /// Who is gone, as an error for the others.
    pub(crate) fn gone(&self, size: usize) -> Option<Error> {
        let gone = lock(&self.table).gone.clone();
        gone.map(|(rank, message)| Error::Replica { rank, size, message, saved: None })
    }
}

/// The place of one thread.
pub(crate) struct Threads {
    room: Arc<Room>,
    rank: usize,
    size: usize,
}

impl Threads {
    /// One place for each of `size` threads. With `devices`, one for each, gradients are added up on
    /// them, without they go through the memory of the host.
    pub(crate) fn places(size: usize, devices: Vec<Device>) -> Vec<Self> {
        let table = Table { parts: vec![None; size], ..Table::default() };
        let room = Arc::new(Room {
            table: Mutex::new(table),
            changed: Condvar::new(),
            turn: Mutex::default(),
            devices,
        });
        (0..size).map(|rank| Self { room: room.clone(), rank, size }).collect()
    }

    /// Where this one meets the others.
    pub(crate) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    /// Puts a part on the table and waits for the others'.
    fn meet(&self, part: Part) -> Result<Arc<Part>, Error> {
        let mut table = lock(&self.room.table);
        let meeting = table.meetings;
        table.parts[self.rank] = Some(part);
        if table.gone.is_none() && table.parts.iter().all(Option::is_some) {
            // In the order of the replicas, whoever came last.
            let parts = table.parts.iter_mut().filter_map(Option::take);
            table.result = Arc::new(parts.reduce(Part::and).unwrap_or_default());
            table.meetings += 1;
            self.room.changed.notify_all();
        }
        while table.meetings == meeting {
            if let Some((rank, reason)) = &table.gone {
                return Err(Error::Replica {
                    rank: *rank,
                    size: self.size,
                    message: reason.clone(),
                    saved: None,
                });
            }
            table = self.room.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(table.result.clone())
    }
}

/// What a panicking thread leaves on the table is whole: nothing in between can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut Vec<f32>, numbers: &mut [f64]) -> Result<(), Error> {
        let part =
            Part { values: std::mem::take(values), numbers: numbers.to_vec(), bytes: vec![] };
        let sum = self.meet(part)?;
        values.clone_from(&sum.values);
        numbers.copy_from_slice(&sum.numbers);
        Ok(())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let bytes = if self.rank == 0 { bytes } else { Vec::new() };
        Ok(self.meet(Part { bytes, ..Part::default() })?.bytes.clone())
    }

    fn abort(&self, reason: &str) {
        self.room.leave(self.rank, reason);
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        Some(lock(&self.room.turn))
    }

    fn route(&self) -> &'static str {
        if self.is_on_devices() { nccl::ROUTE } else { "host memory" }
    }

    fn is_on_devices(&self) -> bool {
        !self.room.devices.is_empty()
    }

    fn sum_on_devices(&self, rows: &mut dyn Iterator<Item = Tensor<1>>) -> Vec<Tensor<1>> {
        nccl::sum(rows, &self.room.devices)
    }
}

impl Drop for Threads {
    /// Whoever leaves without a word, by a panic, is missed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort("it panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_all_in_their_order() {
        let places = Threads::places(3, Vec::new());
        std::thread::scope(|scope| {
            for place in places {
                scope.spawn(move || {
                    for round in 0..100_u32 {
                        let rank = place.rank() as f32;
                        // The second has nothing to add; large and small ones in another order
                        // would give other bits.
                        let mut values =
                            if rank == 1.0 { vec![] } else { vec![1e8 - 1e8 * rank / 2.0, rank] };
                        let mut numbers = [f64::from(round), 1.0];
                        place.sum(&mut values, &mut numbers).unwrap();
                        assert_eq!(values, [1e8, 2.0]);
                        assert_eq!(numbers, [3.0 * f64::from(round), 3.0]);
                        let said = place.broadcast(vec![place.rank() as u8 + 7; 2]).unwrap();
                        assert_eq!(said, [7, 7]);
                    }
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_one_that_panicked() {
        let mut places = Threads::places(2, Vec::new()).into_iter();
        let (first, second) = (places.next().unwrap(), places.next().unwrap());
        let thread = std::thread::spawn(move || {
            let _place = second;
            panic!("as it should");
        });
        let error = first.sum(&mut vec![1.0], &mut [1.0]).unwrap_err();
        assert!(thread.join().is_err());
        assert_eq!(
            error.report(),
            "error: replica 1 of 2 is gone: it panicked\nhint: continue with `--resume`"
        );
        assert!(first.broadcast(vec![1]).is_err(), "and later neither");
    }
}
