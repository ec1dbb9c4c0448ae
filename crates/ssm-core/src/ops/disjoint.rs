//! Output buffers that several threads fill, each its own parts.

use std::{
    marker::PhantomData,
    mem::{ManuallyDrop, MaybeUninit},
};

/// A buffer whose elements are all written before any is read: zeros that are overwritten at once cost
/// a pass over memory on one thread, and its page faults.
pub(crate) struct Unwritten(Vec<MaybeUninit<f32>>);

impl Unwritten {
    /// In unit tests and builds with debug assertions every element starts as NaN, so that one which is
    /// never written is found.
    pub(crate) fn new(len: usize) -> Self {
        if cfg!(any(test, debug_assertions)) {
            return Self(vec![MaybeUninit::new(f32::NAN); len]);
        }
        let mut values = Vec::with_capacity(len);
        // SAFETY: `MaybeUninit` needs no initial value, and the capacity is that of the line above.
        unsafe { values.set_len(len) };
        Self(values)
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [MaybeUninit<f32>] {
        &mut self.0
    }

    /// The buffer for threads.
    pub(crate) fn disjoint(&mut self) -> Disjoint<'_> {
        Disjoint { start: self.0.as_mut_ptr().cast(), len: self.0.len(), owner: PhantomData }
    }

    /// The values.
    ///
    /// # Safety
    /// Every element must have been written.
    pub(crate) unsafe fn written(self) -> Vec<f32> {
        let mut values = ManuallyDrop::new(self.0);
        // SAFETY: the memory has one owner, `MaybeUninit<f32>` has the layout of `f32`, and the
        // elements are initialised by the caller's promise.
        unsafe { Vec::from_raw_parts(values.as_mut_ptr().cast(), values.len(), values.capacity()) }
    }
}

/// A slice that threads may write at the same time as long as their parts do not overlap.
pub(crate) struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only accesses are `row` and `tile`, whose callers promise that parts do not overlap.
unsafe impl Send for Disjoint<'_> {}
// SAFETY: as above.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), owner: PhantomData }
    }

    /// The part `start..start + len`, to be written and not read.
    ///
    /// # Safety
    /// No two parts that overlap may be alive at the same time.
    ///
    /// # Panics
    /// If the part does not lie inside the slice.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub(crate) unsafe fn row(&self, start: usize, len: usize) -> &mut [MaybeUninit<f32>] {
        assert!(start <= self.len && len <= self.len - start, "part outside of the buffer");
        // SAFETY: inside the buffer by the assertion, unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start).cast(), len) }
    }

    /// Start of a tile of `[rows, cols]` at `start`, rows `stride` apart.
    ///
    /// # Safety
    /// As for [`row`](Self::row), for the tile's elements.
    ///
    /// # Panics
    /// If the tile does not lie inside the slice.
    pub(crate) unsafe fn tile(
        &self,
        start: usize,
        [rows, cols]: [usize; 2],
        stride: usize,
    ) -> *mut f32 {
        assert!(rows > 0 && cols <= stride, "tile without rows, or wider than its rows are apart");
        assert!(start + (rows - 1) * stride + cols <= self.len, "tile outside of the buffer");
        // SAFETY: inside the buffer by the assertion.
        unsafe { self.start.add(start) }
    }
}
