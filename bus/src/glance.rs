//! [`Glance`]: whether a ring has moved, at the price of one cache line.

use crate::ring::memory::Memory;
use crate::shm::Mapped;

/// For a relay that looks over a great many rings, of which hardly any has moved: a look touches one line of the ring and
/// none of its handle, and looks do not wait for each other, so the processor fetches several rings at a time.
#[derive(Debug)]
pub struct Glance {
    memory: Mapped,
    /// Of a source ring the sender's side is looked at, of a mirror the receiver's.
    is_source: bool,
    seen: u64,
}

impl Glance {
    pub(crate) fn new(memory: Mapped, is_source: bool) -> Glance {
        Glance {
            memory,
            is_source,
            seen: u64::MAX, // no honest stamp
        }
    }

    /// True if the application's cursor has moved since the last call, and with the first one.
    #[inline]
    pub fn moved(&mut self) -> bool {
        let control = self.memory.control();
        let stamp = match self.is_source {
            true => control.producer.tail.stamp(),
            false => control.released.cursor.stamp(),
        };
        std::mem::replace(&mut self.seen, stamp) != stamp
    }
}
