//! How much memory of the allocator is in use: what a step needs, whatever the allocator keeps back of
//! what others needed before.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed},
};

/// Smaller pieces are not counted: tensors are larger, and all others together are next to nothing.
const LARGE: usize = 4096;

static COUNTS: AtomicBool = AtomicBool::new(false);
static IN_USE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

/// An allocator whose memory is counted once [`count`] was called; before that it costs a look at a flag.
#[derive(Debug)]
pub struct Counted<A>(pub A);

// SAFETY: every call goes to the other allocator with the arguments that came.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counted<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        changed(layout.size(), true);
        // SAFETY: as the caller's.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        changed(layout.size(), true);
        // SAFETY: as the caller's.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        changed(layout.size(), false);
        // SAFETY: as the caller's.
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        changed(layout.size(), false);
        changed(new_size, true);
        // SAFETY: as the caller's.
        unsafe { self.0.realloc(pointer, layout, new_size) }
    }
}

fn changed(size: usize, taken: bool) {
    if size < LARGE || !COUNTS.load(Relaxed) {
        return;
    }
    let size = size.cast_signed();
    if taken {
        PEAK.fetch_max(IN_USE.fetch_add(size, Relaxed) + size, Relaxed);
    } else {
        IN_USE.fetch_sub(size, Relaxed);
    }
}

/// Counts from now on, and has [`peak`] begin anew.
pub fn count() {
    COUNTS.store(true, Relaxed);
    PEAK.store(IN_USE.load(Relaxed), Relaxed);
}

/// Bytes in use beyond those at the first [`count`]; `None` if there are no more, and if the program's
/// allocator is not counted.
#[must_use]
pub fn in_use() -> Option<u64> {
    counted(&IN_USE)
}

/// The most that [`in_use`] was since the last [`count`].
#[must_use]
pub fn peak() -> Option<u64> {
    counted(&PEAK)
}

fn counted(bytes: &AtomicIsize) -> Option<u64> {
    // Whoever asks has a model, and so something that is in use.
    u64::try_from(bytes.load(Relaxed)).ok().filter(|bytes| *bytes > 0)
}
