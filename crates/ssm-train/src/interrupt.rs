//! SIGINT and SIGTERM as a flag: the first asks the run to save and stop, the second ends it.

use std::{
    io,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::{
    SigId,
    consts::{SIGINT, SIGTERM},
    flag, low_level,
};

use crate::error::Error;

const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// Signals come to the process, not to a run, so what they do by default is kept once a process.
static PROCESS: LazyLock<Process> = LazyLock::new(Process::default);

#[derive(Default)]
struct Process {
    /// Whether a signal ends the process, as it would without this module.
    at_once: Arc<AtomicBool>,
    /// Runs that listen, `None` until the first one does.
    listeners: Mutex<Option<usize>>,
}

impl Process {
    fn add_listener(&self) -> io::Result<()> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.is_none() {
            for signal in SIGNALS {
                // Handlers run in the order of registration, so the first signal arms the second.
                // They stay: `signal-hook` ignores signals that nobody asks for any more.
                flag::register_conditional_default(signal, Arc::clone(&self.at_once))?;
                flag::register(signal, Arc::clone(&self.at_once))?;
            }
        }
        let others = listeners.unwrap_or(0);
        *listeners = Some(others + 1);
        if others == 0 {
            self.at_once.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn remove_listener(&self) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let others = listeners.unwrap_or(0).saturating_sub(1);
        *listeners = Some(others);
        if others == 0 {
            self.at_once.store(true, Ordering::SeqCst);
        }
    }
}

/// Listens for signals as long as it lives; after the last one a signal ends the process again.
///
/// Signals have one receiver per process: while several live, each of them sees the signal.
pub(crate) struct Interrupt {
    signal: Arc<AtomicUsize>,
    ids: Vec<SigId>,
}

impl Interrupt {
    pub(crate) fn listen() -> Result<Self, Error> {
        Self::register().map_err(|source| Error::Io {
            path: "signals".into(),
            action: "listen to".into(),
            source,
        })
    }

    fn register() -> io::Result<Self> {
        PROCESS.add_listener()?;
        let mut interrupt = Self { signal: Arc::new(AtomicUsize::new(0)), ids: Vec::new() };
        for signal in SIGNALS {
            let number = signal.unsigned_abs() as usize;
            let id = flag::register_usize(signal, Arc::clone(&interrupt.signal), number)?;
            interrupt.ids.push(id);
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
        PROCESS.at_once.store(true, Ordering::SeqCst);
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            low_level::unregister(id);
        }
        PROCESS.remove_listener();
    }
}
