//! [`SourceReader`]: the relay's end of a source ring.

use crate::error::{Error, Result};
use crate::glance::Glance;
use crate::layout::Cursor;
use crate::locks::RoleLock;
use crate::ring::memory::Memory;
use crate::ring::source::Walker;
use crate::ring_file::{Gap, Ring, Uuid, sign};
use crate::shm::{Mapped, Region};
use crate::wait;

/// Reads a source ring by position: learns how far it is filled, walks its records, and releases what the mirror has.
#[derive(Debug)]
pub struct SourceReader {
    walker: Walker<Mapped>,
    ring: Ring,
    _role: RoleLock,
}

impl SourceReader {
    pub(crate) fn attach(ring: Ring, role: RoleLock) -> Result<SourceReader> {
        let fence = wait::register();
        let memory = ring.mapped();
        sign(&memory.control().consumer_info, fence);
        let walker =
            Walker::attach(memory, ring.header().nonce, fence).map_err(|d| ring.damaged(d))?;
        Ok(SourceReader {
            walker,
            ring,
            _role: role,
        })
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Up to where everything is released.
    pub fn released(&self) -> Cursor {
        self.walker.released()
    }

    /// Up to where the sender has come. Its bytes up to there are visible.
    pub fn tail(&self) -> Result<Cursor> {
        self.check_fork()?;
        self.walker.tail().map_err(|d| self.ring.damaged(d))
    }

    /// Walks the records from `from`, a record's beginning at or behind `released`, to `to` at most, which is at
    /// most the tail, checking each header. Returns the end of the last record that ends there or before.
    pub fn walk(&self, from: Cursor, to: u64) -> Result<Cursor> {
        self.walker.walk(from, to).map_err(|d| self.ring.damaged(d))
    }

    /// Releases the records up to `to`, a record's end at most at the tail, so that their room is the sender's again.
    /// A position that is released already changes nothing.
    pub fn release(&mut self, to: u64) -> Result<Cursor> {
        self.check_fork()?;
        self.walker.release(to).map_err(|d| self.ring.damaged(d))
    }

    /// The mirror that this ring was mirrored to last, and up to where its application is known to have released.
    pub fn peer(&self) -> Option<(Uuid, Cursor)> {
        self.walker.peer().map(|(uuid, head)| (Uuid(uuid), head))
    }

    /// Notes the mirror, before the first byte goes there.
    pub fn set_peer(&mut self, mirror: Uuid, head: Cursor) {
        self.walker.set_peer(mirror.0, head);
    }

    /// Notes up to where the mirror's application has released.
    pub fn set_peer_head(&mut self, head: Cursor) {
        self.walker.set_peer_head(head);
    }

    /// Notes for the application that messages are lost, see [`Ring::gap`].
    pub fn note_gap(&mut self, gap: Gap) {
        self.ring.note_gap(gap);
    }

    /// The ring's data area, for a link.
    pub fn region(&self) -> Region {
        self.walker.memory().region()
    }

    /// To see cheaply whether the sender has moved.
    pub fn glance(&self) -> Glance {
        Glance::new(self.ring.mapped(), true)
    }

    fn check_fork(&self) -> Result<()> {
        match self.walker.memory().forked() {
            true => Err(Error::Forked),
            false => Ok(()),
        }
    }
}
