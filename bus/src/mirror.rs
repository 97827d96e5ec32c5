//! [`MirrorWriter`]: the relay's end of a mirror ring.

use crate::error::{Error, Result};
use crate::glance::Glance;
use crate::layout::Cursor;
use crate::locks::RoleLock;
use crate::ring::memory::Memory;
use crate::ring::mirror::Publisher;
use crate::ring_file::{Gap, Ring, sign};
use crate::shm::{Mapped, Region};
use crate::wait;

/// Writes a mirror ring by position and publishes what is complete. Its readers see nothing beyond the
/// published tail, whatever the bytes there say.
#[derive(Debug)]
pub struct MirrorWriter {
    publisher: Publisher<Mapped>,
    ring: Ring,
    _role: RoleLock,
}

impl MirrorWriter {
    pub(crate) fn attach(ring: Ring, role: RoleLock) -> Result<MirrorWriter> {
        let fence = wait::register();
        let memory = ring.mapped();
        sign(&memory.control().producer_info, fence);
        let publisher =
            Publisher::attach(memory, ring.header().nonce, fence).map_err(|d| ring.damaged(d))?;
        Ok(MirrorWriter {
            publisher,
            ring,
            _role: role,
        })
    }

    /// Up to where the ring is published.
    pub fn tail(&self) -> Cursor {
        self.publisher.tail()
    }

    /// Puts `bytes` of the source ring at `position`; not visible before [`MirrorWriter::publish`]. Refused
    /// outside [tail, consumer's position + capacity].
    pub fn write(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        self.check_fork()?;
        self.publisher
            .write(position, bytes)
            .map_err(|d| self.ring.damaged(d))
    }

    /// Checks the records in [tail, `to`), whose bytes are all there, and publishes them. `to` is the end of a
    /// record. On an error nothing is published.
    pub fn publish(&mut self, to: u64) -> Result<()> {
        self.check_fork()?;
        self.publisher.publish(to).map_err(|d| self.ring.damaged(d))
    }

    /// Publishes what is complete of the records in [tail, `to`), whose bytes are all there; on damage, what is before
    /// it. Returns the tail.
    pub fn publish_whole(&mut self, to: u64) -> Result<Cursor> {
        self.check_fork()?;
        self.publisher
            .publish_whole(to)
            .map_err(|d| self.ring.damaged(d))
    }

    /// Up to where the application has released.
    pub fn consumed(&mut self) -> Result<Cursor> {
        self.check_fork()?;
        self.publisher.consumed().map_err(|d| self.ring.damaged(d))
    }

    /// Asks the application to announce its next release, which it otherwise does 16 times a lap and when it finds the
    /// ring empty. Look at [`MirrorWriter::consumed`] once more afterwards.
    pub fn want_room(&self) {
        self.publisher.want_room();
    }

    /// Notes for the application that messages are lost, see [`Ring::gap`].
    pub fn note_gap(&mut self, gap: Gap) {
        self.ring.note_gap(gap);
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The ring's data area, for a link.
    pub fn region(&self) -> Region {
        self.publisher.memory().region()
    }

    /// To see cheaply whether the receiver has moved.
    pub fn glance(&self) -> Glance {
        Glance::new(self.ring.mapped(), false)
    }

    fn check_fork(&self) -> Result<()> {
        match self.publisher.memory().forked() {
            true => Err(Error::Forked),
            false => Ok(()),
        }
    }
}
