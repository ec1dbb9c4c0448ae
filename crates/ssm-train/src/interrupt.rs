//! SIGINT and SIGTERM as a flag: the first asks the run to save and stop, the second ends it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::{
    SigId,
    consts::{SIGINT, SIGTERM},
    flag, low_level,
};

/// Listens for signals as long as it lives.
///
/// Signals have one receiver per process: while several live, each of them sees the signal. After
/// the last one is gone, the two signals are ignored, not fatal (`signal-hook` cannot restore that).
pub(crate) struct Interrupt {
    signal: Arc<AtomicUsize>,
    at_once: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Interrupt {
    pub(crate) fn listen() -> io::Result<Self> {
        let mut interrupt = Self {
            signal: Arc::new(AtomicUsize::new(0)),
            at_once: Arc::new(AtomicBool::new(false)),
            ids: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM] {
            let number = signal.unsigned_abs() as usize;
            let Self { signal: seen, at_once, ids } = &mut interrupt;
            // Handlers run in the order of registration, so the first signal arms the second.
            ids.push(flag::register_conditional_default(signal, Arc::clone(at_once))?);
            ids.push(flag::register_usize(signal, Arc::clone(seen), number)?);
            ids.push(flag::register(signal, Arc::clone(at_once))?);
        }
        Ok(interrupt)
    }

    /// Number of the signal that arrived.
    pub(crate) fn signal(&self) -> Option<i32> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }

    /// From here on the first signal ends the process.
    pub(crate) fn end_at_once(&self) {
        self.at_once.store(true, Ordering::SeqCst);
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            low_level::unregister(id);
        }
    }
}
