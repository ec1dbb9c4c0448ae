//! The next micro-batch, read while the device computes.

use std::{
    panic::resume_unwind,
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
};

use crate::{error::Error, task::Reader};

/// A thread that reads one micro-batch at a time, and never one that nobody asked for.
///
/// It ends with this value, which waits for it.
pub(super) struct Ahead<B> {
    /// `None` only while it is dropped.
    asked: Option<Sender<u64>>,
    read: Receiver<Result<B, Error>>,
    thread: Option<JoinHandle<()>>,
    /// What the thread reads or has read.
    pending: Option<u64>,
}

impl<B: Send + 'static> Ahead<B> {
    /// Starts the thread, which waits.
    pub(super) fn start(mut reader: Reader<B>) -> Result<Self, Error> {
        let (asked, questions) = channel();
        let (answers, read) = channel();
        let work = move || {
            for index in questions {
                if answers.send(reader(index)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(work);
        let thread = thread.map_err(|source| Error::Io {
            path: "reader".into(),
            action: "start".into(),
            source,
        })?;
        Ok(Self { asked: Some(asked), read, thread: Some(thread), pending: None })
    }

    /// Micro-batch `index`; from now on the thread reads `next`. What cannot be read is an error of
    /// the call that asks for it, not of the one before.
    pub(super) fn take(&mut self, index: u64, next: Option<u64>) -> Result<B, Error> {
        if self.pending.is_some_and(|pending| pending != index) {
            // Whoever needed it did not come to it.
            drop(self.receive());
        }
        if self.pending.is_none() {
            self.ask(index);
        }
        let batch = self.receive();
        if let (Ok(_), Some(next)) = (&batch, next) {
            self.ask(next);
        }
        batch
    }

    fn ask(&mut self, index: u64) {
        // A thread that is gone has panicked, which `receive` finds out.
        let _ = self.asked.as_ref().map(|asked| asked.send(index));
        self.pending = Some(index);
    }

    fn receive(&mut self) -> Result<B, Error> {
        self.pending = None;
        if let Ok(batch) = self.read.recv() {
            return batch;
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => resume_unwind(panic),
            // It ends only where it panics, and where nobody can ask any more.
            _ => unreachable!("a reader that ended by itself"),
        }
    }
}

impl<B> Drop for Ahead<B> {
    fn drop(&mut self) {
        self.asked = None;
        if let Some(thread) = self.thread.take() {
            // A panic of a read that nobody asked for is nobody's.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    };

    use super::*;

    fn lost(index: u64) -> Error {
        Error::Data { path: "rows".into(), message: format!("lost at {index}"), hint: None }
    }

    /// Reads ten times the index but fails at 3, and counts.
    fn ahead() -> (Ahead<u64>, Arc<AtomicU64>) {
        let reads = Arc::new(AtomicU64::new(0));
        let counter = reads.clone();
        let read = move |index: u64| {
            counter.fetch_add(1, SeqCst);
            if index == 3 { Err(lost(index)) } else { Ok(10 * index) }
        };
        (Ahead::start(Box::new(read)).unwrap(), reads)
    }

    #[test]
    fn every_micro_batch_is_the_one_that_was_asked_for_and_is_read_once() {
        let (mut ahead, reads) = ahead();
        for index in [0, 1, 2, 4, 5] {
            assert_eq!(ahead.take(index, None).unwrap(), 10 * index);
        }
        assert_eq!(reads.load(SeqCst), 5);
        assert_eq!(ahead.take(6, Some(7)).unwrap(), 60);
        assert_eq!(ahead.take(7, Some(8)).unwrap(), 70);
        // The one that was read ahead is not the one that is needed.
        assert_eq!(ahead.take(20, None).unwrap(), 200);
        assert_eq!(reads.load(SeqCst), 9);
    }

    #[test]
    fn an_error_belongs_to_its_micro_batch_and_is_said_once() {
        let (mut ahead, reads) = ahead();
        assert_eq!(ahead.take(2, Some(3)).unwrap(), 20);
        let error = ahead.take(3, Some(4)).unwrap_err();
        assert_eq!(error.report(), lost(3).report());
        assert_eq!(reads.load(SeqCst), 2, "nothing is read behind an error");
        assert_eq!(ahead.take(4, None).unwrap(), 40);
    }

    #[test]
    fn no_thread_is_left() {
        let (mut ahead, reads) = ahead();
        ahead.take(0, Some(1)).unwrap();
        drop(ahead);
        assert_eq!(Arc::strong_count(&reads), 1, "the thread held the other one");
    }

    #[test]
    #[should_panic(expected = "the disk is on fire")]
    fn a_panic_of_the_reader_is_one_of_who_asked() {
        let reader: Reader<u64> = Box::new(|_| panic!("the disk is on fire"));
        let _ = Ahead::start(reader).unwrap().take(0, None);
    }
}
