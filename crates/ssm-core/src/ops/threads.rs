//! Threads that wait for the next operation with their eyes open.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rayon::Yield;

/// How long an idle thread stays awake: longer than what lies between two operations of a training
/// step, shorter than anybody would notice.
const PATIENCE: Duration = Duration::from_micros(300);

static AWAKE: AtomicBool = AtomicBool::new(false);

/// Keeps the other threads of the pool awake until no operation has come for a while.
///
/// A thread of the pool goes to sleep some microseconds after its last work, and waking it takes some
/// fifty: a step of dozens of short operations spends a tenth of its time on that. From outside of the
/// pool nothing happens, since then the caller itself has to be woken for each operation.
pub(super) fn keep_awake() {
    let Some(caller) = rayon::current_thread_index() else { return };
    if rayon::current_num_threads() < 2 || AWAKE.swap(true, Ordering::Relaxed) {
        return;
    }
    rayon::spawn_broadcast(move |context| {
        if context.index() != caller {
            wait();
            AWAKE.store(false, Ordering::Relaxed);
        }
    });
}

fn wait() {
    let mut since = Instant::now();
    while since.elapsed() < PATIENCE {
        match rayon::yield_now() {
            Some(Yield::Executed) => since = Instant::now(),
            _ => thread::yield_now(),
        }
    }
}
