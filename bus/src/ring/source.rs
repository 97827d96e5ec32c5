//! The relay's side of a source ring: it reads records where they lie and releases what its peer has.
//!
//! It is gated by the tail cursor alone, and walks every header before a byte goes out: a record that a broken
//! application wrote must not reach a peer, which would take it for the relay's fault.

use super::memory::Memory;
use super::{Damage, check_cursor, walk_records};
use crate::layout::*;
use crate::sync::{Ordering, Relaxed, compiler_barrier, fence};
use crate::wait;

/// Process-local state of a source ring's consumer.
pub(crate) struct Walker<M> {
    memory: M,
    nonce: u64,
    released: Cursor,
    fence: bool,
}

/// Without the nonce, see `layout::Header`.
impl<M: Memory> core::fmt::Debug for Walker<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Walker").field(&self.released).finish()
    }
}

impl<M: Memory> Walker<M> {
    pub fn attach(memory: M, nonce: u64, fence: bool) -> Result<Self, Damage> {
        let control = memory.control();
        let released = check_cursor("released", control.released.cursor.recover())?;
        control.released.cursor.jump(released);
        let walker = Walker {
            memory,
            nonce,
            released,
            fence,
        };
        walker.tail()?;
        // The last relay may have been killed between a release and what follows it.
        walker.publish_head();
        Ok(walker)
    }

    pub fn memory(&self) -> &M {
        &self.memory
    }

    pub fn released(&self) -> Cursor {
        self.released
    }

    /// The tail cursor, checked against what was released.
    pub fn tail(&self) -> Result<Cursor, Damage> {
        // A sender too fast to be read has at least come as far as we are.
        let Some(tail) = self.memory.control().producer.tail.read() else {
            return Ok(self.released);
        };
        let tail = check_cursor("tail", tail)?;
        let (at, capacity) = (self.released.position, self.memory.capacity() as u64);
        if tail.position < at || tail.position - at > capacity {
            return Err(Damage {
                what: "tail",
                position: at,
                found: tail.position,
                expected: "a position at most one capacity ahead of what is released",
            });
        }
        Ok(tail)
    }

    /// The end of the last record that begins at or after `from` and ends at or before `to`.
    pub fn walk(&self, from: Cursor, to: u64) -> Result<Cursor, Damage> {
        walk_records(&self.memory, from, to, self.nonce)
    }

    /// Releases the records up to `to`, which must be the end of one.
    pub fn release(&mut self, to: u64) -> Result<Cursor, Damage> {
        if to <= self.released.position {
            return Ok(self.released);
        }
        let end = self.walk(self.released, to)?;
        if end.position != to {
            return Err(Damage {
                what: "peer's position",
                position: end.position,
                found: to,
                expected: "the end of a record",
            });
        }
        self.released = end;
        self.memory.control().released.cursor.jump(end);
        self.publish_head();
        Ok(end)
    }

    /// Tells the sender at once: a relay releases many messages at a time.
    fn publish_head(&self) {
        let control = self.memory.control();
        control.head.cursor.jump(self.released);
        compiler_barrier();
        if self.fence {
            fence(Ordering::SeqCst);
        }
        // Relaxed: a sleeping sender orders its raised bit against our head by membarrier, or we by the fence.
        if control.sender_signal.word.load(Relaxed) != 0 && wait::wake(&control.sender_signal.word)
        {
            super::producer::add(&control.consumer_info.wakes, 1);
        }
    }

    /// The mirror noted, if any, and its head.
    pub fn peer(&self) -> Option<([u8; 16], Cursor)> {
        self.memory.control().notes.peer()
    }

    /// Notes another mirror; a gap that this means has been reported before. Killed in the midst, the next relay finds
    /// no mirror or a third one, and does the same again with nothing missing from the new head on.
    pub fn set_peer(&mut self, uuid: [u8; 16], head: Cursor) {
        self.memory.control().notes.set_peer(uuid, head);
    }

    pub fn set_peer_head(&mut self, head: Cursor) {
        self.memory.control().notes.peer_head.jump(head);
    }
}
