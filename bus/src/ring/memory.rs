//! What the ring's algorithm needs of the memory that it lies in.

use crate::layout::Control;
use crate::sync::AtomicU64;

/// A control area and a data area whose offsets wrap: bytes [capacity, 2 × capacity) are bytes [0, capacity)
/// again, so every range that starts below the capacity and is no longer than it is valid.
///
/// The ring guarantees what the methods require; an implementation checks it with `debug_assert`.
pub(crate) trait Memory {
    /// The control area.
    fn control(&self) -> &Control;

    /// Bytes in the data area, at least [`crate::layout::MIN_CAPACITY`], a multiple of 8.
    fn capacity(&self) -> usize;

    /// The word at `offset`, a multiple of 8 below 2 × capacity.
    fn word(&self, offset: usize) -> &AtomicU64;

    /// Copies `bytes` to `offset`, which is below 2 × capacity; at most capacity bytes.
    fn write(&self, offset: usize, bytes: &[u8]);

    /// Copies from `offset`, which is below 2 × capacity; at most capacity bytes.
    fn read(&self, offset: usize, bytes: &mut [u8]);

    /// Takes the cache lines of [offset, offset + size) for writing without changing a byte, so that the
    /// producer's next store to them finds them in one cache only. Memory without caches need do nothing.
    fn take_lines(&self, _offset: usize, _size: usize) {}

    /// Tells the relay, if the ring is mirrored, that a cursor of this side moved.
    #[inline(always)]
    fn announce(&self) {}

    /// True in a process that is a fork of the one that attached; such a process must not touch the ring.
    fn forked(&self) -> bool {
        false
    }
}
