//! The relay's side of a mirror ring: bytes arrive, are checked, and are published.
//!
//! The relay never believes commit words before its link says that the bytes are visible, since the stores of
//! a NIC land in any order; so it neither rolls a mirror forward nor lets readers go past the published tail.

use super::memory::Memory;
use super::producer::add;
use super::{Damage, certain_consumer_position, check_consumer, check_cursor, walk_records};
use crate::layout::*;
use crate::sync::{Ordering, Relaxed, compiler_barrier, fence};
use crate::wait;

/// Process-local state of a mirror's producer.
pub(crate) struct Publisher<M> {
    memory: M,
    nonce: u64,
    tail: Cursor,
    consumed: Cursor,
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
        let consumed = check_cursor("released", control.released.cursor.recover())?;
        // The last relay may have been killed between a publication and its wake-up.
        wait::wake(&control.receiver_signal.word);
        Ok(Publisher {
            memory,
            nonce,
            tail,
            consumed,
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
        let end = self.walk(to)?;
        if end.position != to {
            return Err(Damage {
                what: "tail",
                position: end.position,
                found: to,
                expected: "the end of a record",
            });
        }
        self.set_tail(end);
        Ok(())
    }

    /// The same, but for a record that is there in part only: that one is left for later. On damage the records
    /// before it are published.
    pub fn publish_whole(&mut self, to: u64) -> Result<Cursor, Damage> {
        let (end, damage) = match self.walk(to) {
            Ok(end) => (end, None),
            // What lies before a bad record is good.
            Err(damage) if (self.tail.position..to).contains(&damage.position) => {
                (self.walk(damage.position)?, Some(damage))
            }
            Err(damage) => return Err(damage),
        };
        if end != self.tail {
            self.set_tail(end);
        }
        damage.map_or(Ok(end), Err)
    }

    fn walk(&self, to: u64) -> Result<Cursor, Damage> {
        let tail = self.tail.position;
        if to < tail || to - tail > self.memory.capacity() as u64 {
            return Err(Damage {
                what: "tail",
                position: tail,
                found: to,
                expected: "a position at most one capacity ahead",
            });
        }
        // The link says that the bytes are visible.
        walk_records(&self.memory, self.tail, to, self.nonce)
    }

    fn set_tail(&mut self, tail: Cursor) {
        let is_next = tail.sequence == self.tail.sequence + 1;
        self.tail = tail;
        let control = self.memory.control();
        match is_next {
            true => control.producer.tail.advance(tail),
            false => control.producer.tail.jump(tail),
        }
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
    }

    /// Up to where the application has released, as far as it can be read just now: never further than the tail,
    /// never back. Its own stores may say anything: the room that they give is that application's.
    pub fn consumed(&mut self) -> Result<Cursor, Damage> {
        let Some(now) = self.memory.control().released.cursor.read() else {
            return Ok(self.consumed);
        };
        let last = self.consumed;
        if now == last {
            return Ok(now);
        }
        let now = check_cursor("released", now)?;
        if now.position < last.position || now.position > self.tail.position {
            return Err(Damage {
                what: "released",
                position: self.tail.position,
                found: now.position,
                expected: "a position that never goes back and is at most the tail",
            });
        }
        self.consumed = now;
        Ok(now)
    }

    /// Asks the application to announce its next release, as a sender does that waits for room.
    pub fn want_room(&self) {
        wait::announce(&self.memory.control().sender_signal.word);
    }
}
