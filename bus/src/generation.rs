//! The next generation of a ring: what a relay makes when a channel begins or ceases to lead to another host, or
//! when the ring on the other host is another one.
//!
//! Nothing is reset in place: the next generation is a new file; the old one is closed, and one store of the map puts the
//! new one in its place. A manager that is killed before has closed a ring that the map still names: its applications
//! wait, and the next manager makes the next generation again.

use crate::error::{Error, Result};
use crate::gcim::{ChannelEntry, Snapshot};
use crate::layout::Cursor;
use crate::locks::{Role, RoleLock};
use crate::manage::{Manager, discard};
use crate::receiver::Receiver;
use crate::ring_file::{Beginning, Kind, Ring, RingSpec, Uuid};
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How long a closing ring waits for a sender in the midst of a message, before the relay goes on with other work.
const CLOSE_PATIENCE: Duration = Duration::from_millis(20);

/// What a ring is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A ring with another consumer, an application or the relay. What is unread goes along.
    Carry(Kind),
    /// An empty mirror. What is unread stays in the old generation, which the application receives first.
    Mirror {
        /// The source's nonce.
        nonce: u64,
        /// Where it begins.
        start: Cursor,
        /// The source.
        source: Uuid,
    },
    /// An empty local ring; the same as for a mirror.
    Local,
}

/// One change that [`Manager::renew`] is to make.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The ring in force that is to be replaced.
    pub ring: Uuid,
    /// By what.
    pub next: Next,
}

impl Manager {
    /// Makes the next generations of rings and puts all of them in force at once. Each change has its own result: the new
    /// ring, or why it could not be made, which leaves the others alone. `Busy`: a sender is in the midst of a message, or an
    /// application has not received all of the generation before; try again.
    pub fn renew(&self, changes: &[Change]) -> Result<Vec<Result<Uuid>>> {
        let mut snapshot = self.finish_removals()?;
        let places = places_of(changes, &snapshot);
        let mut removed = Vec::new();
        let mut made = Vec::new();
        let mut carried = Vec::new();
        let results: Vec<_> = changes
            .iter()
            .map(|change| {
                let old = Ring::open(&self.directory, change.ring)?;
                let place = places.get(&change.ring);
                let channel = place.map(|(index, side)| (&mut snapshot.channels[*index], *side));
                // A change before may have replaced it.
                let channel = channel.filter(|(channel, side)| channel.rings[*side] == change.ring);
                let channel = channel.ok_or_else(|| Error::NotFound {
                    path: old.path().into(),
                })?;
                let (uuid, consumer) = self.renew_one(&old, channel, change.next, &mut removed)?;
                carried.extend(consumer.map(|role| (old, role)));
                made.push(uuid);
                Ok(uuid)
            })
            .collect();
        if made.is_empty() {
            return Ok(results);
        }
        let published = self
            .gcim
            .publish(&snapshot.channels, &removed, snapshot.next_slot);
        if let Err(error) = published {
            for uuid in made {
                let _ = std::fs::remove_file(self.directory.ring_path(uuid));
            }
            return Err(error);
        }
        // Who opened the old ring before and takes its role only now must not receive again what the new one has.
        for (old, role) in carried {
            if old.kind() == Kind::Local
                && let Ok(mut receiver) = Receiver::attach(old, role.into())
            {
                discard(&mut receiver);
            }
        }
        self.finish_change()?;
        Ok(results)
    }

    /// Removes generations that their applications have received to the end. True if there were any.
    pub fn tidy(&self) -> Result<bool> {
        let mut snapshot = self.finish_removals()?;
        let mut removed = Vec::new();
        for channel in &mut snapshot.channels {
            for direction in 0..2 {
                let previous = channel.previous[direction];
                if previous != Uuid::NONE && self.is_drained(previous)? {
                    channel.previous[direction] = Uuid::NONE;
                    removed.push(entry_of(channel, previous));
                }
            }
        }
        if removed.is_empty() {
            return Ok(false);
        }
        self.gcim
            .publish(&snapshot.channels, &removed, snapshot.next_slot)?;
        self.finish_change()?;
        Ok(true)
    }

    /// True if nothing of a closed ring is unread, or there is none.
    fn is_drained(&self, uuid: Uuid) -> Result<bool> {
        match Ring::open(&self.directory, uuid) {
            Err(Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
            Ok(ring) => {
                let status = ring.status();
                Ok(status.sealed_at == Some(status.released.position))
            }
        }
    }

    /// Returns the next generation, and the consumer's role of the old one if what is unread went along.
    fn renew_one(
        &self,
        old: &Ring,
        (channel, direction): (&mut ChannelEntry, usize),
        next: Next,
        removed: &mut Vec<ChannelEntry>,
    ) -> Result<(Uuid, Option<RoleLock>)> {
        let busy = |role| Error::Busy {
            path: old.path().into(),
            role,
            pid: 0,
        };
        let previous = channel.previous[direction];
        if previous != Uuid::NONE {
            if !self.is_drained(previous)? {
                return Err(busy("consumer"));
            }
            channel.previous[direction] = Uuid::NONE;
            removed.push(entry_of(channel, previous));
        }
        // A receiver that goes on reading the old ring would have twice what is carried over.
        let consumer = match next {
            Next::Carry(_) => Some(old.take(Role::Consumer)?),
            Next::Mirror { .. } | Next::Local => None,
        };
        old.close(CLOSE_PATIENCE)?;
        let uuid = self.make(old, next)?;
        channel.rings[direction] = uuid;
        let status = old.status();
        if consumer.is_some() || status.sealed_at == Some(status.released.position) {
            removed.push(entry_of(channel, old.uuid()));
        } else {
            channel.previous[direction] = old.uuid();
        }
        Ok((uuid, consumer))
    }

    fn make(&self, old: &Ring, next: Next) -> Result<Uuid> {
        let header = old.header();
        let fail = |e| Error::system("inspect", old.path(), e);
        let info = std::fs::metadata(old.path()).map_err(fail)?;
        let mut spec = RingSpec {
            lock_slot: header.lock_slot,
            mode: Some(info.mode() & 0o777),
            owner: Some(info.uid().to_string()),
            group: Some(info.gid().to_string()),
            ..RingSpec::local(
                header.capacity,
                crate::Address(header.from),
                crate::Address(header.to),
            )
        };
        let mut beginning = Beginning::default();
        let status = old.status();
        let end = status.tail;
        // A local ring whose records are not the source's.
        let sent_here = old.kind() != Kind::Mirror && status.producer.attaches > 0;
        let drained = status.sealed_at == Some(status.released.position);
        match next {
            // Begins where the mirror ended, in case that its route comes back.
            Next::Local if old.kind() == Kind::Mirror => {
                (spec.nonce, spec.start) = (Some(header.nonce), end);
                beginning.origin = drained.then(|| old.origin());
            }
            Next::Local => {}
            Next::Carry(kind) => {
                spec.kind = kind;
                spec.nonce = Some(header.nonce); // the records carried over have its commit words
                beginning.unread_of = Some(old);
                // Else the loss of what its mirror holds would be silent.
                beginning.peer = old.peer_and_head();
            }
            Next::Mirror {
                nonce,
                start,
                source,
            } => {
                // The same records, though the source has another name or the route was gone for a while: what was received
                // here does not come again.
                let whole = drained && end.position >= start.position;
                let goes_on = header.nonce == nonce && end.position > start.position && !sent_here;
                let start = if goes_on { end } else { start };
                (spec.kind, spec.nonce, spec.start) = (Kind::Mirror, Some(nonce), start);
                beginning.peer = Some((source, Cursor::default()));
                // Memory that went back in time, a copy or a snapshot, lacks what the source has released since.
                beginning.origin = whole.then(|| old.origin());
            }
        }
        Ring::create_file_with(&self.directory, &spec, beginning)
    }
}

/// Where the rings to be changed are: which channel, and which of its two.
fn places_of(changes: &[Change], snapshot: &Snapshot) -> HashMap<Uuid, (usize, usize)> {
    let wanted: HashSet<Uuid> = changes.iter().map(|change| change.ring).collect();
    let mut places = HashMap::new();
    for (index, channel) in snapshot.channels.iter().enumerate() {
        for (direction, ring) in channel.rings.iter().enumerate() {
            if wanted.contains(ring) {
                places.insert(*ring, (index, direction));
            }
        }
    }
    places
}

/// How the map names a ring that is to be closed and removed.
fn entry_of(channel: &ChannelEntry, ring: Uuid) -> ChannelEntry {
    ChannelEntry {
        rings: [ring, Uuid::NONE],
        previous: [Uuid::NONE; 2],
        ..channel.clone()
    }
}
