//! The data path: from ring to link, from link to ring, and who may forget what.

use super::peer::{Lost, Peer};
use super::rings::At;
use super::{BUDGET, MUCH, Nanos, Relay, TURN};
use crate::link::{Event, Link};
use crate::network::Network;
use crate::session::Told;
use crate::wire;
use tracing::error;

impl<N: Network> Relay<N> {
    /// Takes what has come over a link. Messages are published at once; for what else this means there is [`Relay::tend`], and
    /// [`Relay::heed`], after what applications answer has gone out. True if there was anything.
    pub(super) fn poll_link(&mut self, p: usize, now: Nanos) -> bool {
        let peer = &mut self.peers[p];
        let Some(link) = &mut peer.link else {
            return false;
        };
        let mut events = std::mem::take(&mut self.events);
        let any = link.poll(BUDGET, &mut events);
        if any {
            peer.session.alive();
        }
        // That bytes have gone out, or that the link has ended, is also something to do before a sleep.
        let any = any || !events.is_empty();
        for event in &events {
            match *event {
                Event::Arrived { slot, to } => self.publish(p, slot, to, now),
                Event::SourceDone { slot, to } => {
                    if let Some(&index) = self.peers[p].out.get(slot as usize)
                        && let Some(ring) = self.rings.out[index].as_mut()
                    {
                        ring.done = ring.done.max(to);
                        // Else the peer's word is still awaited, which comes later as a rule.
                        if ring.settled > ring.reader.released().position {
                            self.settle(index);
                        }
                    }
                }
                ref event => self.peers[p].later.push(event.clone()),
            }
        }
        events.clear();
        self.events = events; // its room is used again
        any
    }

    /// Does what the last poll asks for besides. True if there was anything.
    pub(super) fn heed(&mut self, p: usize, now: Nanos) -> bool {
        let peer = &self.peers[p];
        if peer.later.is_empty() && peer.waiting.is_empty() {
            return false;
        }
        let mut events = std::mem::take(&mut self.peers[p].later);
        let any = !events.is_empty();
        for event in events.drain(..) {
            if self.peers[p].link.is_none() {
                break; // one of the events before was its end
            }
            match event {
                Event::Remote(control) => self.remote(p, &control, now),
                Event::Down(why) => self.link_lost(p, why, now),
                // Both were taken by the poll.
                Event::Arrived { .. } | Event::SourceDone { .. } => {}
            }
        }
        self.peers[p].later = events; // empty; its room is used again
        self.send_waiting(p);
        any
    }

    /// Looks after the inbound rings that have moved, if it is time for it or `at_once`: the peer hears how far they have come, and has
    /// the room. Not with each message, for then it would take as long as the message itself.
    pub(super) fn tend(&mut self, at_once: bool, now: Nanos) {
        if !self.untended.is_due(now) && !at_once {
            return;
        }
        while let Some(index) = self.untended.next() {
            if let Some(ring) = self.rings.inn[index].as_mut() {
                ring.untended = false;
            }
            self.consumed(index, now);
        }
    }

    /// What must be done before a sleep. When the next acknowledgement is due, if one waits.
    pub fn before_sleep(&mut self, now: Nanos) -> Option<Nanos> {
        self.tend(true, now);
        (0..self.peers.len())
            .filter_map(|p| {
                self.flush(p, now);
                let peer = &self.peers[p];
                let patience = peer.link.as_ref()?.patience();
                peer.session.ack_due(patience)
            })
            .min()
    }

    /// A link has ended. Why is told by the control connection, if the peer ends it or has died: that is heard first.
    fn link_lost(&mut self, p: usize, why: String, now: Nanos) {
        let peer = &mut self.peers[p];
        if let Some(link) = peer.link.take() {
            let since = now;
            peer.lost = Some(Lost { link, why, since });
        }
        self.poll_control(p, now);
    }

    /// Bytes of an inbound ring are there: publishes what is whole.
    fn publish(&mut self, p: usize, slot: u32, to: u64, now: Nanos) {
        let Some(&index) = self.peers[p].inn.get(&slot) else {
            return;
        };
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let Some(writer) = &mut ring.writer else {
            return;
        };
        let before = writer.tail();
        match writer.publish_whole(to) {
            Ok(tail) => {
                let (messages, bytes) = (
                    tail.sequence - before.sequence,
                    tail.position - before.position,
                );
                ring.messages += messages;
                ring.bytes += bytes;
                let traffic = &mut self.peers[p].traffic;
                traffic.received_messages += messages;
                traffic.received_bytes += bytes;
                let much = tail.position.saturating_sub(ring.tended) >= ring.capacity / MUCH;
                let begins = !std::mem::replace(&mut ring.untended, true);
                self.untended.add(index, begins, much, now);
            }
            Err(error) => self.reject(index, &error),
        }
    }

    /// The application of an inbound ring may have released something: the peer gets the room.
    pub(super) fn consumed(&mut self, index: usize, now: Nanos) {
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let (Some(writer), Some(slot)) = (&mut ring.writer, ring.slot) else {
            return;
        };
        ring.tended = writer.tail().position;
        let peer = &mut self.peers[ring.peer];
        let mut consumed = writer.consumed();
        if peer.session.is_wanted(slot) {
            writer.want_room(); // from now on every release is news, so the last look comes after it
            consumed = writer.consumed();
        }
        match consumed {
            Ok(consumed) => {
                ring.consumed = consumed.position;
                if let Some(link) = &mut peer.link {
                    link.set_room(slot, consumed.position + ring.capacity);
                }
                peer.session
                    .published(now, slot, writer.tail().position, consumed);
            }
            Err(error) => self.reject(index, &error),
        }
    }

    /// An inbound ring is of no use any more, and the peer learns why; the others go on.
    pub(super) fn reject(&mut self, index: usize, error: &tbus::Error) {
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        if ring.trouble.is_some() {
            return; // said before; an application that scribbles on may come here without end
        }
        error!(channel = %ring.name, "a mirror is given up: {error}");
        self.totals.rejected += 1;
        ring.trouble = Some(error.to_string());
        let position = match error {
            tbus::Error::Damaged { damage, .. } => damage.position,
            _ => ring
                .writer
                .as_ref()
                .map_or(0, |writer| writer.tail().position),
        };
        if let Some(slot) = ring.slot {
            let peer = &mut self.peers[ring.peer];
            if let Some(link) = &mut peer.link {
                link.detach_mirror(slot);
            }
            if let Some(frame) = peer.session.reject(slot, position, error.to_string()) {
                peer.send(&[frame]);
            }
        }
    }

    /// The peer tells how far a mirror has come, or wants room.
    pub(super) fn remote(&mut self, p: usize, control: &wire::Control, now: Nanos) {
        match self.peers[p].session.control(control) {
            Err((why, text)) => self.down(p, why, text, now),
            Ok(Told::Nothing) => {}
            Ok(Told::RoomWanted(slot)) => {
                if let Some(&index) = self.peers[p].inn.get(&slot) {
                    self.consumed(index, now);
                }
            }
            Ok(Told::Progress(progress)) => {
                let Some(&index) = self.peers[p].out.get(control.slot as usize) else {
                    return;
                };
                let Some(ring) = self.rings.out[index].as_mut() else {
                    return;
                };
                ring.set_settled(progress.delivered, progress.consumed);
                ring.reader.set_peer_head(progress.consumed);
                self.settle(index);
                self.send_ring(index);
            }
        }
    }

    /// Releases what neither the peer nor the link needs any more.
    pub(super) fn settle(&mut self, index: usize) {
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let released = ring.reader.released();
        if ring.settled.min(ring.done) <= released.position {
            return;
        }
        // The link sends in chunks, so what it is done with ends anywhere; what the peer tells must be a record's end.
        let to = match ring.done < ring.settled {
            true => ring
                .reader
                .walk(released, ring.done)
                .map(|end| end.position),
            false => Ok(ring.settled),
        };
        if let Err(error) = to.and_then(|to| ring.reader.release(to)) {
            self.give_up(index, &error.to_string());
        }
    }

    /// An outbound ring is of no use any more, until it has another generation; the others go on.
    pub(super) fn give_up(&mut self, index: usize, why: &str) {
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        error!(channel = %ring.name, "a ring is not mirrored any more: {why}");
        self.totals.rejected += 1;
        ring.trouble = Some(why.to_string());
        let mut frames = Vec::new();
        let peer = &mut self.peers[ring.peer];
        peer.session.end(ring.slot, &mut frames);
        if let Some(link) = &mut peer.link {
            link.detach_source(ring.slot);
        }
        peer.send(&frames);
    }

    /// Appends what applications have sent, and notes what they have released. True if there was any news.
    pub(super) fn take_news(&mut self, now: Nanos) -> bool {
        let slots = &mut self.with_news;
        slots.clear();
        self.news
            .take(self.rings.news_slots(), |slot| slots.push(slot));
        if slots.is_empty() {
            return false;
        }
        let slots = std::mem::take(slots);
        for slot in &slots {
            // By index: looking at one may change the list.
            let mut index = 0;
            while let Some(at) = self.rings.with_news(*slot).get(index).copied() {
                index += 1;
                match at {
                    At::Out(index) => self.send_ring(index),
                    At::In(index) => self.note_release(index, now),
                }
            }
        }
        self.with_news = slots; // its room is used again
        true
    }

    /// There is news of an inbound ring: its peer hears of it in time, or at once if it waits for that or may well do so.
    fn note_release(&mut self, index: usize, now: Nanos) {
        if let Some(ring) = self.rings.inn[index].as_mut() {
            let session = &self.peers[ring.peer].session;
            let wanted = ring.slot.is_some_and(|slot| session.is_wanted(slot));
            let tail = ring
                .writer
                .as_ref()
                .map_or(0, |writer| writer.tail().position);
            let much = tail.saturating_sub(ring.consumed) >= ring.capacity / 4;
            let begins = !std::mem::replace(&mut ring.untended, true);
            self.untended.add(index, begins, wanted || much, now);
        }
    }

    pub(super) fn look_at(&mut self, at: At, now: Nanos) {
        match at {
            At::Out(index) => self.send_ring(index),
            At::In(index) => self.consumed(index, now),
        }
    }

    /// Appends what an outbound ring has, as far as the peer has room and the link takes it.
    pub(super) fn send_ring(&mut self, index: usize) {
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let peer = &mut self.peers[ring.peer];
        let (Some(link), Some((sent, room))) = (&mut peer.link, peer.session.may_send(ring.slot))
        else {
            return;
        };
        let walked = ring.reader.tail().and_then(|tail| {
            let to = tail
                .position
                .min(room)
                .min(sent.position + TURN.max(ring.reader.ring().header().capacity / 2 + 64));
            Ok((tail, ring.reader.walk(sent, to)?))
        });
        let (tail, end) = match walked {
            Ok(walked) => walked,
            Err(error) => return self.give_up(index, &error.to_string()),
        };
        if end.position > sent.position {
            if !link.append(ring.slot, sent.position, end.position) {
                if !std::mem::replace(&mut ring.waiting, true) {
                    peer.waiting.push_back(index);
                }
                return;
            }
            peer.session.sent(ring.slot, end);
            let (messages, bytes) = (end.sequence - sent.sequence, end.position - sent.position);
            ring.messages += messages;
            ring.bytes += bytes;
            peer.traffic.sent_messages += messages;
            peer.traffic.sent_bytes += bytes;
        }
        if end.position < tail.position {
            if end.position == sent.position {
                // Not even one record has room.
                if let Some(control) = peer.session.want_room(ring.slot) {
                    link.control(control);
                }
            } else if !std::mem::replace(&mut ring.waiting, true) {
                peer.waiting.push_back(index);
            }
        }
    }

    /// Goes on with rings that the link did not take, or that had more than a turn.
    pub(super) fn send_waiting(&mut self, p: usize) {
        for _ in 0..self.peers[p].waiting.len() {
            let Some(index) = self.peers[p].waiting.pop_front() else {
                break;
            };
            if let Some(ring) = self.rings.out[index].as_mut() {
                ring.waiting = false;
                self.send_ring(index);
            }
        }
    }

    /// Sends what was accepted, and with it the acknowledgements that wait.
    pub(super) fn flush(&mut self, p: usize, now: Nanos) {
        let Peer {
            link: Some(link),
            session,
            ..
        } = &mut self.peers[p]
        else {
            return;
        };
        let patience = link.patience();
        if session.ack_due(patience).is_some_and(|due| due <= now) {
            while let Some(control) = session.next_ack(now, patience) {
                link.control(control);
            }
        }
        link.kick();
    }
}
