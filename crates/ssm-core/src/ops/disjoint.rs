//! Output buffers that several threads fill, each its own parts.

use std::{marker::PhantomData, mem::MaybeUninit};

/// A slice that threads may write at the same time as long as their parts do not overlap.
pub(crate) struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `slice`, whose callers promise that parts do not overlap.
unsafe impl Send for Disjoint<'_> {}
// SAFETY: as above.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), owner: PhantomData }
    }

    /// Memory that is not written yet; only [`tile`](Self::tile) may be used on it.
    pub(crate) fn unwritten(values: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { start: values.as_mut_ptr().cast(), len: values.len(), owner: PhantomData }
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No two parts that overlap may be alive at the same time.
    ///
    /// # Panics
    /// If the part does not lie inside the slice.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "part outside of the buffer");
        // SAFETY: inside the buffer by the assertion, unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Start of a tile of `[rows, cols]` at `start`, rows `stride` apart.
    ///
    /// # Safety
    /// As for [`slice`](Self::slice), for the tile's elements.
    ///
    /// # Panics
    /// If the tile does not lie inside the slice.
    pub(crate) unsafe fn tile(
        &self,
        start: usize,
        [rows, cols]: [usize; 2],
        stride: usize,
    ) -> *mut f32 {
        let end = start + (rows - 1) * stride + cols;
        assert!(cols <= stride && end <= self.len, "tile outside of the buffer");
        // SAFETY: inside the buffer by the assertion.
        unsafe { self.start.add(start) }
    }
}
