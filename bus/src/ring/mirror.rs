//! The relay's side of a mirror ring: bytes arrive, are checked, and are published.
//!
//! The relay never believes commit words before its link says that the bytes are visible, since the stores of
//! a NIC land in any order; so it neither rolls a mirror forward nor lets readers go past the published tail.

use super::memory::Memory;
use super::producer::add;
use super::{Damage, certain_consumer_position, check_consumer, check_cursor, record_at};
use crate::layout::*;
use crate::sync::{Ordering, Relaxed, compiler_barrier, fence};
use crate::wait;

/// Process-local state of a mirror's producer.
pub(crate) struct Publisher<M> {
    memory: M,
    nonce: u64,
    tail: Cursor,
    fence: bool,
}

/// Without the nonce, see `layout::Header`.
impl<M: Memory> core::fmt::Debug for Publisher<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Publisher").field(&self.tail).finish()
    }
}

impl<M: Memory> Publisher<M> {
    pub fn attach(memory: M, nonce: u64, fence: bool) -> Result<Self, Damage> {
        let control = memory.control();
        let tail = check_cursor("tail", control.producer.tail.recover())?;
        check_consumer(
            certain_consumer_position(control)?,
            tail.position,
            memory.capacity() as u64,
        )?;
        control.producer.tail.jump(tail);
        Ok(Publisher {
            memory,
            nonce,
            tail,
            fence,
        })
    }

    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Up to where the ring is published.
    pub fn tail(&self) -> Cursor {
        self.tail
    }

    /// Puts `bytes` at `position`, at or past the tail and within one capacity of the consumer. Readers do not
    /// see them before [`Self::publish`].
    pub fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Damage> {
        let capacity = self.memory.capacity() as u64;
        let head = certain_consumer_position(self.memory.control())?;
        let head = check_consumer(head, self.tail.position, capacity)?;
        let end = position.saturating_add(bytes.len() as u64);
        if position < self.tail.position || end > head + capacity {
            return Err(Damage {
                what: "write into the mirror",
                position,
                found: end,
                expected: "a range between the tail and the consumer's position + capacity",
            });
        }
        self.memory.write((position % capacity) as usize, bytes);
        Ok(())
    }

    /// Publishes the records in [tail, to), all of whose bytes are visible, after checking each header: `to`
    /// must be a record's end. On damage nothing is published.
    pub fn publish(&mut self, to: u64) -> Result<(), Damage> {
        let capacity = self.memory.capacity() as u64;
        let mut cursor = self.tail;
        if to < cursor.position || to - cursor.position > capacity {
            return Err(Damage {
                what: "tail",
                position: cursor.position,
                found: to,
                expected: "a position at most one capacity ahead",
            });
        }
        while cursor.position < to {
            // The link says that the bytes are visible.
            let Some(shape) = record_at(&self.memory, cursor.position, self.nonce)? else {
                return Err(Damage {
                    what: "commit word",
                    position: cursor.position,
                    found: 0,
                    expected: "the record that the peer announced",
                });
            };
            cursor.position += shape.size as u64;
            cursor.sequence += 1;
        }
        if cursor.position != to {
            return Err(Damage {
                what: "tail",
                position: cursor.position,
                found: to,
                expected: "the end of a record",
            });
        }
        self.tail = cursor;
        let control = self.memory.control();
        control.producer.tail.jump(cursor);
        compiler_barrier();
        if self.fence {
            fence(Ordering::SeqCst);
        }
        // Relaxed: as in Producer::finish.
        if control.receiver_signal.word.load(Relaxed) != 0
            && wait::wake(&control.receiver_signal.word)
        {
            add(&control.producer_info.wakes, 1);
        }
        Ok(())
    }
}
