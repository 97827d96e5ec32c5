//! What the control connection brings: rings are opened, resumed, refused, lost.

use super::peer::{HELD, LINKED, PROBE};
use super::rings::At;
use super::{Nanos, Relay};
use crate::link::Link;
use crate::network::Network;
use crate::pairing::SourceView;
use crate::session::{Demand, Start};
use crate::wire::{self, Frame, Goodbye, Open, Refusal};
use tbus::Gap;
use tracing::{error, warn};

/// Times that a control connection is read before others have their turn.
const READS: usize = 32;

/// A control connection is listened to for so long after its link has ended: it may say why.
pub(super) const LAST_WORDS: Nanos = 20_000_000;

/// Messages in a gap, as far as known.
fn lost(gap: &Gap) -> u64 {
    gap.to.sequence.saturating_sub(gap.from.sequence)
}

impl<N: Network> Relay<N> {
    /// Reads all that has come, within reason: a sign of life must not wait behind thousands of rings until the next pass,
    /// which may have much else to do.
    pub(super) fn poll_control(&mut self, p: usize, now: Nanos) -> bool {
        (0..READS).take_while(|_| self.read_control(p, now)).count() > 0
    }

    fn read_control(&mut self, p: usize, now: Nanos) -> bool {
        let Some(control) = &mut self.peers[p].control else {
            return false;
        };
        let mut busy = match control.poll() {
            Ok(busy) => busy,
            Err((why, text)) => {
                self.down(p, why, text, now);
                return true;
            }
        };
        // What was left from the greeting is there without new bytes.
        while let Some(control) = &mut self.peers[p].control {
            let handled = match control.next() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    busy = true;
                    self.peers[p].session.frame(now, frame)
                }
                Err(why) => Err(why),
            };
            match handled {
                Ok(demand) => self.demand(p, demand, now),
                Err((why, text)) => self.down(p, why, text, now),
            }
        }
        busy
    }

    pub(super) fn tick(&mut self, p: usize, now: Nanos) {
        let peer = &mut self.peers[p];
        if peer.control.is_none() {
            return;
        }
        if let Some(lost) = &peer.lost
            && now >= lost.since + LAST_WORDS
        {
            let why = lost.why.clone();
            return self.down(p, Goodbye::Link, why, now);
        }
        if !peer.session.is_up() && now > peer.linking + LINKED {
            let why = format!("no link within {} s", LINKED / 1_000_000_000);
            return self.down(p, Goodbye::Link, why, now);
        }
        let mut frames = Vec::new();
        match peer.session.tick(now, &mut frames) {
            Ok(()) => peer.send(&frames),
            Err((why, text)) => return self.down(p, why, text, now),
        }
        while let Some(slot) = self.peers[p].session.next_to_open(now) {
            self.open(p, slot);
        }
    }

    /// Asks the peer to mirror one of our rings.
    pub(super) fn open(&mut self, p: usize, slot: u32) {
        let index = self.peers[p].out[slot as usize];
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let tail = match ring.reader.tail() {
            Ok(tail) => tail,
            Err(error) => return self.give_up(index, &error.to_string()),
        };
        let header = ring.reader.ring().header();
        let peer = &mut self.peers[p];
        let open = Open {
            slot,
            attempt: peer.session.open(slot),
            from: ring.ends[0],
            to: ring.ends[1],
            source: ring.ring,
            nonce: header.nonce,
            capacity: header.capacity,
            head: ring.reader.released(),
            tail,
        };
        peer.send(&[Frame::Open(open)]);
    }

    pub(super) fn demand(&mut self, p: usize, demand: Demand, now: Nanos) {
        match demand {
            Demand::Nothing => {}
            Demand::Connect {
                transport,
                port,
                token,
            } => self.offered(p, transport, port, token, now),
            Demand::Declined { token, text } => self.declined(p, token, &text, now),
            Demand::Mirror(open) => {
                if self.peers[p].session.is_up() {
                    self.mirror(p, open, now);
                } else if self.peers[p].held.len() < HELD {
                    self.peers[p].held.push(open);
                } else {
                    self.down(
                        p,
                        Goodbye::Violation,
                        "too many rings before the link".into(),
                        now,
                    );
                }
            }
            Demand::Resumed(resume) => self.resumed(p, &resume, now),
            Demand::Refused { slot, why, text } => {
                if let Some(ring) = self.rings.out[self.peers[p].out[slot as usize]].as_mut() {
                    if ring.trouble.as_ref() != Some(&text) {
                        warn!(channel = %ring.name, ?why, "not mirrored: {text}; tried again and again");
                    }
                    ring.trouble = Some(text);
                }
            }
            Demand::Rejected {
                slot,
                position,
                text,
            } => {
                let index = self.peers[p].out[slot as usize];
                self.give_up(
                    index,
                    &format!("the peer refuses the record at {position}: {text}"),
                );
            }
            Demand::Closed { slot } => {
                if let Some(index) = self.peers[p].inn.remove(&slot)
                    && let Some(ring) = self.rings.inn[index].as_mut()
                    && ring.slot == Some(slot)
                {
                    ring.slot = None;
                    if let Some(link) = &mut self.peers[p].link {
                        link.detach_mirror(slot);
                    }
                }
            }
            Demand::Lost { slot, gap } => {
                let index = self.peers[p].inn.get(&slot).copied();
                if let Some(ring) = index.and_then(|index| self.rings.inn[index].as_mut()) {
                    if let Some(writer) = &mut ring.writer {
                        writer.note_gap(gap);
                    }
                    ring.gaps += 1;
                    ring.lost_messages = ring.lost_messages.saturating_add(lost(&gap));
                    let name = ring.name.clone();
                    self.report(&name, gap);
                }
            }
            Demand::Bye { why, text } => {
                self.down(p, why, format!("by the peer: {text}"), now);
                if why == Goodbye::NotYours {
                    self.peers[p].dial_due = now + PROBE;
                }
            }
        }
    }

    /// A gap is never silent.
    pub(super) fn report(&mut self, channel: &str, gap: Gap) {
        let messages = lost(&gap);
        self.totals.gaps += 1;
        self.totals.lost_messages = self.totals.lost_messages.saturating_add(messages);
        error!(
            channel,
            from = gap.from.position,
            to = gap.to.position,
            messages,
            "a gap: the receiving host has lost its memory, and with it messages that the source no longer keeps"
        );
    }

    /// The peer has a mirror for one of our rings.
    pub(super) fn resumed(&mut self, p: usize, resume: &wire::Resume, now: Nanos) {
        let index = self.peers[p].out[resume.slot as usize];
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        if resume.source != ring.ring {
            return; // an answer to somebody before us, who counted attempts as we do
        }
        let tail = match ring.reader.tail() {
            Ok(tail) => tail,
            Err(error) => return self.give_up(index, &error.to_string()),
        };
        let source = SourceView {
            capacity: ring.reader.ring().header().capacity,
            released: ring.reader.released(),
            tail,
            stored: ring.reader.peer(),
        };
        let (store, gap) = match self.peers[p].session.start(resume, &source) {
            Start::Stale => return,
            Start::Refuse(why) => {
                // The peer has begun already.
                let (slot, epoch) = (resume.slot, resume.epoch);
                self.peers[p].send(&[Frame::Close { slot, epoch }]);
                return self.give_up(index, &why);
            }
            Start::Go { store, gap } => (store, gap),
        };
        if let Some(gap) = gap {
            ring.reader.note_gap(gap);
            ring.gaps += 1;
            ring.lost_messages = ring.lost_messages.saturating_add(lost(&gap));
            let name = ring.name.clone();
            self.report(&name, gap);
            self.peers[p].send(&[Frame::Gap {
                slot: resume.slot,
                from: gap.from,
                to: gap.to,
            }]);
        }
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        match ring.reader.walk(source.released, resume.tail.position) {
            Ok(end) if end == resume.tail => {}
            Ok(end) => {
                let why = format!(
                    "the mirror's tail is {:?}, the source has {end:?} there",
                    resume.tail
                );
                return self.give_up(index, &why);
            }
            Err(error) => return self.give_up(index, &error.to_string()),
        }
        // Before the first byte: without the stored name a loss of the peer's memory would be silent.
        match store {
            true => ring.reader.set_peer(resume.mirror, resume.head),
            false => ring.reader.set_peer_head(resume.head),
        }
        ring.trouble = None;
        ring.done = resume.tail.position;
        ring.set_settled(resume.tail.position, resume.head);
        let region = ring.reader.region();
        if let Some(link) = &mut self.peers[p].link
            && let Err(why) = link.attach_source(resume.slot, region, resume.epoch, resume.remote)
        {
            return self.no_memory(p, why, now);
        }
        self.settle(index);
        if let Some(control) = self.peers[p].session.take_early(resume.slot) {
            self.remote(p, &control, now);
        }
        self.send_ring(index);
    }

    /// The peer wants one of its rings mirrored here.
    pub(super) fn mirror(&mut self, p: usize, open: Open, now: Nanos) {
        let found = match self.rings.find([open.from, open.to]) {
            Some(At::In(index)) => self.rings.inn[index]
                .as_ref()
                .filter(|ring| ring.peer == p)
                .map(|_| index),
            _ => None,
        };
        let Some(index) = found else {
            let text = format!(
                "node {} has no channel {} whose first end is at {}",
                self.settings.node,
                self.name_of([open.from, open.to]),
                self.peers[p].name()
            );
            return self.refuse(p, &open, Refusal::NoChannel, text);
        };
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        if ring.capacity != open.capacity {
            let text = format!(
                "the ring has {} bytes at node {}, and {} at the sender; give both hosts the same size",
                ring.capacity, self.settings.node, open.capacity
            );
            return self.refuse(p, &open, Refusal::Capacity, text);
        }
        if let Some(old) = ring.slot.take() {
            // The same ring under another number: the older one is over.
            self.peers[p].inn.remove(&old);
            if let Some(link) = &mut self.peers[p].link {
                link.detach_mirror(old);
            }
        }
        let known = ring.writer.as_ref().is_some_and(|writer| {
            writer.ring().peer() == Some(open.source)
                && writer.ring().header().nonce == open.nonce
                && writer.tail().position >= open.head.position
        });
        if known && ring.trouble.is_none() {
            self.resume(p, index, &open, now);
        } else {
            self.next_mirror(index, open, now);
        }
    }

    pub(super) fn refuse(&mut self, p: usize, open: &Open, why: Refusal, text: String) {
        let frame = self.peers[p].session.refuse(open, why, text);
        self.peers[p].send(&[frame]);
    }

    /// The mirror for an OPEN is there.
    pub(super) fn resume(&mut self, p: usize, index: usize, open: &Open, now: Nanos) {
        let epoch = self.network.random();
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let Some(writer) = &mut ring.writer else {
            return;
        };
        let (tail, consumed) = (writer.tail(), writer.consumed());
        let head = match consumed {
            Ok(head) => head,
            Err(error) => {
                ring.trouble = Some(error.to_string());
                return self.refuse(p, open, Refusal::Ring, error.to_string());
            }
        };
        let peer = &mut self.peers[p];
        let Some(link) = &mut peer.link else {
            return;
        };
        if peer.session.is_open(open.slot) {
            // Bytes that are under way for the one ring would be taken for the other's.
            let text = format!("slot {} is opened twice", open.slot);
            return self.down(p, Goodbye::Violation, text, now);
        }
        let room = head.position + ring.capacity;
        let attached = link.attach_mirror(open.slot, writer.region(), epoch, tail.position, room);
        let remote = match attached {
            Ok(remote) => remote,
            Err(why) => return self.no_memory(p, why, now),
        };
        ring.slot = Some(open.slot);
        peer.inn.insert(open.slot, index);
        let frame = peer
            .session
            .resume(open, writer.ring().origin(), tail, head, epoch, remote);
        peer.send(&[frame]);
        self.consumed(index, now);
    }
}
