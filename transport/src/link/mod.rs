//! Links: live connections to a peer, each over one transport, that carry ring bytes straight from ring to ring.
//!
//! One trait, [`Link`], and one file a transport. The contract, which one conformance suite tests over every link:
//!
//! - [`Event::Arrived`] comes only when all bytes below are visible to this processor, in order for each slot;
//! - source bytes are read until [`Event::SourceDone`] passes them, so they stay put until then;
//! - bytes land only in the part of a mirror that [`Link::set_room`] gave, whatever the peer says, and count only in order
//!   and under the epoch of [`Link::attach_mirror`]; anything else takes the link down;
//! - there is exactly one [`Event::Down`], and nothing after it;
//! - after [`Link::quiesce`] nothing that was sent over the link can land any more. The [`Quiesced`] that it gives is what a
//!   session needs to resume, so forgetting it is no longer possible.

mod any;
pub mod socket;
pub mod tcp;
pub mod ucx;
pub mod verbs;

pub use any::{AnyLink, Waits};

use crate::session::{ACK_DELAY, Nanos};
use crate::wire::Control;
use tbus::Region;

/// Proof that no older link can change the rings any more: there never was one, or it was ended.
#[derive(Debug)]
pub struct Quiesced(());

impl Quiesced {
    /// For a link that has ended, by the link.
    pub(crate) fn ended() -> Quiesced {
        Quiesced(())
    }

    /// For a relay that has just taken the roles of its rings: a relay before it has died, and with it its connections.
    pub(crate) fn never_linked() -> Quiesced {
        Quiesced(())
    }
}

/// What a link tells its relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All bytes of the mirror `slot` below `to` are there. `to` need not be the end of a record.
    Arrived {
        /// The peer's slot.
        slot: u32,
        /// Position.
        to: u64,
    },
    /// How far the peer's mirror of our slot has come; or, with `want`, the peer wants room in ours.
    Remote(Control),
    /// The link reads nothing below `to` of our source `slot` any more. `to` need not be the end of a record.
    SourceDone {
        /// Our slot.
        slot: u32,
        /// Position.
        to: u64,
    },
    /// The link is of no further use, and why.
    Down(String),
}

/// What a peer names a mirror's memory by: address and key, as in [`Resume::remote`](crate::wire::Resume::remote). Zeros where
/// the link does not need it.
pub type Remote = (u64, u32);

/// A live connection to a peer. Our source rings have our slots, its source rings have its slots.
pub trait Link {
    /// Gets a source ring ready to be appended from, under the epoch that the peer chose, to the memory that the peer named.
    fn attach_source(
        &mut self,
        slot: u32,
        source: Region,
        epoch: u64,
        remote: Remote,
    ) -> Result<(), String>;

    /// Gets a mirror ring ready to receive: the next byte belongs at `tail`, and bytes may land below `room`. Returns what the
    /// peer is to name its memory by.
    fn attach_mirror(
        &mut self,
        slot: u32,
        mirror: Region,
        epoch: u64,
        tail: u64,
        room: u64,
    ) -> Result<Remote, String>;

    /// Bytes of a mirror may land below `room`, which never goes back.
    fn set_room(&mut self, slot: u32, room: u64);

    /// Nothing more is to be sent of a source; what was accepted may still go out.
    fn detach_source(&mut self, slot: u32);

    /// Whatever comes for a mirror from now on is dropped.
    fn detach_mirror(&mut self, slot: u32);

    /// Makes [from, to), whole records, of a source equal in the mirror; `from` is where the last range accepted ended.
    /// False if it is not accepted now: try again after a poll.
    fn append(&mut self, slot: u32, from: u64, to: u64) -> bool;

    /// Tells the peer how far a mirror has come, or that room is wanted.
    fn control(&mut self, control: Control);

    /// Sends what was accepted, as far as the transport takes it now.
    fn kick(&mut self);

    /// Looks for what has come, for about `budget` bytes at most. True if there was anything.
    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool;

    /// True if something accepted is not sent yet.
    fn is_busy(&self) -> bool;

    /// How long an acknowledgement is to wait for others: not at all if it goes along with what is sent anyway.
    fn patience(&self) -> Nanos {
        match self.is_busy() {
            true => 0,
            false => ACK_DELAY,
        }
    }

    /// What carries it, where the transport's name does not say that.
    fn detail(&self) -> Option<String> {
        None
    }

    /// Ends the link.
    fn quiesce(self) -> Quiesced;
}
