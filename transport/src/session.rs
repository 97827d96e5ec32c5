//! The session with one peer: what was agreed for each ring, what may be sent, what must be told, and when the peer is
//! given up. It outlives links.
//!
//! A pure state machine: frames, positions and the time come in, frames and demands go out. No socket, thread, clock or
//! ring inside, so the simulator runs exactly what ships.

use crate::BySlot;
use crate::link::{Quiesced, Remote};
use crate::pairing::{Pairing, SourceView, pair};
use crate::wire::{Control, Frame, Goodbye, Open, Refusal, Resume, Token};
use std::collections::{BTreeSet, VecDeque};
use tbus::{Cursor, Gap, Uuid};

/// A time, nanoseconds of a clock that never goes back.
pub type Nanos = u64;

/// Between two heartbeats.
pub const HEARTBEAT: Nanos = 500_000_000;
/// A peer that was not heard, or did not hear us, for so long is dead.
pub const SILENCE: Nanos = 2_500_000_000;
/// An acknowledgement waits so long at most for company, unless the link is more patient.
pub const ACK_DELAY: Nanos = 50_000;
/// The same by RDMA, where it never has company, and takes both sides as much time as a message of an application.
pub const ACK_DELAY_RDMA: Nanos = 1_000_000;
/// Rings that are being opened at the same time: more would fill the control connection.
const OPENING: usize = 4096;
/// Slots that a peer may have opened on one connection. They are never used twice and each is remembered, for what comes late.
const SLOTS: usize = 1 << 18;
/// The first and the longest time between two attempts to open a refused ring.
const RETRY: std::ops::Range<Nanos> = 50_000_000..10_000_000_000;

/// What a frame asks of the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Nothing, or something that the session did itself.
    Nothing,
    /// Make the link, to the transport's port of the peer; if there is one, make another beside it, for a trial.
    Connect {
        /// A bit, as in HELLO.
        transport: u8,
        /// 0: the port that was dialled.
        port: u16,
        /// To show there.
        token: Token,
    },
    /// The peer wants a ring mirrored: find or make the mirror, then [`Session::resume`] or [`Session::refuse`].
    Mirror(Open),
    /// There is a mirror for our ring: compare by [`Session::start`].
    Resumed(Resume),
    /// Our ring is not mirrored; it is tried again.
    Refused {
        /// Ours.
        slot: u32,
        /// For machines.
        why: Refusal,
        /// For people.
        text: String,
    },
    /// The peer found a bad record in our ring.
    Rejected {
        /// Ours.
        slot: u32,
        /// Of the record.
        position: u64,
        /// What is wrong.
        text: String,
    },
    /// The peer is done with a ring of its own.
    Closed {
        /// The peer's.
        slot: u32,
    },
    /// Messages of the peer's ring are lost.
    Lost {
        /// The peer's.
        slot: u32,
        /// Which.
        gap: Gap,
    },
    /// The peer does not make the link that was offered with this token.
    Declined {
        /// Of the offer.
        token: Token,
        /// For people.
        text: String,
    },
    /// The connection ends, by the peer.
    Bye {
        /// For machines.
        why: Goodbye,
        /// For people.
        text: String,
    },
}

/// What the peer said about our ring, after all checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The mirror has published up to here.
    pub delivered: u64,
    /// Its application has released up to here.
    pub consumed: Cursor,
}

/// What the peer told over the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing that matters now.
    Nothing,
    /// How far our ring's mirror has come.
    Progress(Progress),
    /// It wants room in the mirror of its ring with this slot.
    RoomWanted(u32),
}

/// How [`Session::start`] goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// As [`Pairing::Continue`] says; appending begins after that.
    Go {
        /// Store the mirror's name.
        store: bool,
        /// Report this first.
        gap: Option<Gap>,
    },
    /// The ring is not mirrored, for this reason, until it has a new generation.
    Refuse(String),
    /// The answer to an attempt that is no longer current.
    Stale,
}

/// Of a ring that we mirror to the peer.
#[derive(Debug)]
struct Outgoing {
    state: State,
    attempt: u64,
    epoch: u64,
    capacity: u64,
    /// Up to where it was appended.
    sent: Cursor,
    delivered: u64,
    consumed: Cursor,
    /// Room was asked for and not given since.
    wants: bool,
    /// How long the next refusal waits.
    retry: Nanos,
    /// What the peer told over the link before its RESUME came over the control connection.
    early: Option<Control>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not asked for yet.
    Idle,
    /// OPEN went out.
    Opening,
    /// Appending.
    Running,
    /// Refused, to be tried again.
    Refused,
    /// Of no use any more, in this generation.
    Ended,
}

/// Of a ring that the peer mirrors to us.
#[derive(Debug)]
struct Incoming {
    epoch: u64,
    delivered: u64,
    consumed: Cursor,
    told_delivered: u64,
    told_consumed: u64,
    capacity: u64,
    /// In the queue of acknowledgements.
    pending: bool,
    /// The peer waits for room.
    wanted: bool,
    /// Nothing more is published or told.
    ended: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    outgoing: Vec<Outgoing>,
    incoming: BySlot<Incoming>,
    up: bool,
    attempts: u64,
    opening: usize,
    to_open: VecDeque<u32>,
    retries: BTreeSet<(Nanos, u32)>,
    /// Acknowledgements that wait, and since when.
    acks: VecDeque<(Nanos, u32)>,
    token: Option<Token>,
    heard: Nanos,
    /// When the peer last showed that it hears us.
    answered: Nanos,
    /// The same has happened over the link since the last tick: on the data path no time is noted.
    just_heard: bool,
    just_answered: bool,
    beat_due: Nanos,
    beats: u64,
    echo: u64,
    peer_beat: u64,
}

/// Ends a session: why, for machines and people.
pub type End = (Goodbye, String);

fn violation<T>(text: impl Into<String>) -> Result<T, End> {
    Err((Goodbye::Violation, text.into()))
}

impl Session {
    /// A session without rings or link.
    pub fn new(now: Nanos) -> Session {
        Session {
            outgoing: Vec::new(),
            incoming: BySlot::default(),
            up: false,
            attempts: 0,
            opening: 0,
            to_open: VecDeque::new(),
            retries: BTreeSet::new(),
            acks: VecDeque::new(),
            token: None,
            heard: now,
            answered: now,
            just_heard: false,
            just_answered: false,
            beat_due: now,
            beats: 0,
            echo: 0,
            peer_beat: 0,
        }
    }

    /// The control connection is there and greeted.
    pub fn begin(&mut self, now: Nanos) {
        self.down();
        (self.heard, self.answered, self.beat_due) = (now, now, now);
        (self.just_heard, self.just_answered) = (false, false);
        (self.beats, self.echo, self.peer_beat) = (0, 0, 0);
    }

    /// Who was dialled offers the link, in place of what was offered before: its transport, the port of that, and a fresh random
    /// token.
    pub fn offer(&mut self, transport: u8, port: u16, token: Token) -> Frame {
        self.token = Some(token);
        Frame::Offer {
            transport,
            port,
            token,
        }
    }

    /// True if `token` is the one that was offered; it is used up by that.
    pub fn redeem(&mut self, token: Token) -> bool {
        self.token.take_if(|offered| *offered == token).is_some()
    }

    /// The token of a link that is offered and was not made, which is not offered any more.
    pub fn take_offer(&mut self) -> Option<Token> {
        self.token.take()
    }

    /// There is a link, and no older one can do anything any more. Opens all rings.
    pub fn link_up(&mut self, _proof: Quiesced) {
        self.up = true;
        self.to_open.clear();
        for (slot, ring) in self.outgoing.iter_mut().enumerate() {
            if ring.state != State::Ended {
                ring.state = State::Idle;
                self.to_open.push_back(slot as u32);
            }
        }
    }

    /// Link or connection are gone: nothing is agreed any more. Everything that matters lies in the rings.
    pub fn down(&mut self) {
        self.up = false;
        self.opening = 0;
        self.token = None;
        self.to_open.clear();
        self.retries.clear();
        self.acks.clear();
        self.incoming.clear();
        for ring in &mut self.outgoing {
            if ring.state != State::Ended {
                ring.state = State::Idle;
            }
        }
    }

    /// True between [`Session::link_up`] and [`Session::down`].
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Takes in a ring that is to be mirrored to the peer; returns its slot.
    pub fn add(&mut self, capacity: u64) -> u32 {
        let slot = self.outgoing.len() as u32;
        self.outgoing.push(Outgoing {
            state: State::Idle,
            attempt: 0,
            epoch: 0,
            capacity,
            sent: Cursor::default(),
            delivered: 0,
            consumed: Cursor::default(),
            wants: false,
            retry: RETRY.start,
            early: None,
        });
        if self.up {
            self.to_open.push_back(slot);
        }
        slot
    }

    /// Ends one of our rings: it is closed, replaced or poisoned.
    pub fn end(&mut self, slot: u32, frames: &mut Vec<Frame>) {
        let ring = &mut self.outgoing[slot as usize];
        match ring.state {
            State::Opening => self.opening -= 1,
            State::Running => frames.push(Frame::Close {
                slot,
                epoch: ring.epoch,
            }),
            _ => {}
        }
        ring.state = State::Ended;
    }

    /// The next ring to send an OPEN for, if it is time for one: the relay looks at its ring and calls
    /// [`Session::open`].
    pub fn next_to_open(&mut self, now: Nanos) -> Option<u32> {
        while let Some(&(due, slot)) = self.retries.first()
            && due <= now
        {
            self.retries.pop_first();
            if self.outgoing[slot as usize].state == State::Refused {
                self.outgoing[slot as usize].state = State::Idle;
                self.to_open.push_back(slot);
            }
        }
        if !self.up || self.opening >= OPENING {
            return None;
        }
        let outgoing = &self.outgoing;
        while let Some(slot) = self.to_open.pop_front() {
            if outgoing[slot as usize].state == State::Idle {
                return Some(slot);
            }
        }
        None
    }

    /// The number of the attempt that an OPEN for `slot` now is; it goes out.
    pub fn open(&mut self, slot: u32) -> u64 {
        self.attempts += 1;
        self.opening += 1;
        let ring = &mut self.outgoing[slot as usize];
        (ring.state, ring.attempt, ring.early) = (State::Opening, self.attempts, None);
        self.attempts
    }

    /// A frame has come.
    pub fn frame(&mut self, now: Nanos, frame: Frame) -> Result<Demand, End> {
        self.heard = now;
        match frame {
            Frame::Hello(_) => violation("a second HELLO"),
            Frame::Attach(_) => violation("an ATTACH on the control connection"),
            Frame::Offer {
                transport,
                port,
                token,
            } => Ok(Demand::Connect {
                transport,
                port,
                token,
            }),
            Frame::Open(_) if self.incoming.len() >= SLOTS => {
                violation(format!("more than {SLOTS} rings opened on one connection"))
            }
            // Slots are never used twice, and a ring's memory is a slot's until the link ends.
            Frame::Open(open) if self.incoming.contains_key(&open.slot) => {
                violation(format!("slot {} is opened twice", open.slot))
            }
            Frame::Open(open) => Ok(Demand::Mirror(open)),
            Frame::Resume(resume) => match self.current(resume.slot, resume.attempt)? {
                true => Ok(Demand::Resumed(resume)),
                false => Ok(Demand::Nothing),
            },
            Frame::Refuse {
                slot,
                attempt,
                why,
                text,
            } => match self.current(slot, attempt)? {
                true => {
                    self.opening -= 1;
                    self.try_later(now, slot);
                    Ok(Demand::Refused { slot, why, text })
                }
                false => Ok(Demand::Nothing),
            },
            Frame::Reject {
                slot,
                epoch,
                position,
                text,
            } => {
                let Some(ring) = self.outgoing.get_mut(slot as usize) else {
                    return violation(format!("a REJECT for slot {slot}, which does not exist"));
                };
                if ring.state != State::Running || ring.epoch != epoch {
                    return Ok(Demand::Nothing); // it was ended meanwhile
                }
                ring.state = State::Ended;
                Ok(Demand::Rejected {
                    slot,
                    position,
                    text,
                })
            }
            Frame::Close { slot, epoch } => match self.incoming.get_mut(&slot) {
                Some(ring) if ring.epoch == epoch => {
                    ring.ended = true;
                    Ok(Demand::Closed { slot })
                }
                _ => Ok(Demand::Nothing),
            },
            Frame::Gap { slot, from, to } => match self.incoming.contains_key(&slot) {
                _ if from.position > to.position || from.sequence > to.sequence => {
                    violation(format!("a gap from {from:?} to {to:?}"))
                }
                false => Ok(Demand::Nothing),
                true => Ok(Demand::Lost {
                    slot,
                    gap: Gap { from, to },
                }),
            },
            Frame::Heartbeat { number, echo } => {
                self.peer_beat = number;
                if echo > self.beats {
                    return violation(format!("an echo of heartbeat {echo}, after {}", self.beats));
                }
                if echo > self.echo {
                    self.echo = echo;
                    self.answered = now;
                }
                Ok(Demand::Nothing)
            }
            Frame::Decline { token, text } => Ok(Demand::Declined { token, text }),
            Frame::Bye { why, text } => Ok(Demand::Bye { why, text }),
        }
    }

    /// True if the answer to `attempt` is awaited.
    fn current(&self, slot: u32, attempt: u64) -> Result<bool, End> {
        match self.outgoing.get(slot as usize) {
            None => violation(format!("an answer for slot {slot}, which does not exist")),
            Some(ring) => Ok(ring.state == State::Opening && ring.attempt == attempt),
        }
    }

    fn try_later(&mut self, now: Nanos, slot: u32) {
        let ring = &mut self.outgoing[slot as usize];
        ring.state = State::Refused;
        self.retries.insert((now + ring.retry, slot));
        ring.retry = (ring.retry * 2).min(RETRY.end);
    }

    /// Compares our ring with the mirror that the peer has for it. On `Go` it runs from the mirror's tail.
    pub fn start(&mut self, resume: &Resume, source: &SourceView) -> Start {
        if self.current(resume.slot, resume.attempt) != Ok(true) {
            return Start::Stale;
        }
        self.opening -= 1;
        let ring = &mut self.outgoing[resume.slot as usize];
        match pair(source, resume) {
            Pairing::Continue { store, gap } => {
                ring.state = State::Running;
                ring.epoch = resume.epoch;
                ring.sent = resume.tail;
                ring.delivered = resume.tail.position;
                ring.consumed = resume.head;
                ring.wants = false;
                ring.retry = RETRY.start;
                Start::Go { store, gap }
            }
            Pairing::Refuse(text) => {
                ring.state = State::Ended;
                Start::Refuse(text)
            }
        }
    }

    /// What the peer told of a ring before [`Session::start`]: two connections keep no common order. It is to be given to
    /// [`Session::control`] again.
    pub fn take_early(&mut self, slot: u32) -> Option<Control> {
        let ring = &mut self.outgoing[slot as usize];
        ring.early.take_if(|_| ring.state == State::Running)
    }

    /// Up to where [`Session::sent`] may go on, if the ring runs.
    pub fn may_send(&self, slot: u32) -> Option<(Cursor, u64)> {
        let ring = self.outgoing.get(slot as usize)?;
        (ring.state == State::Running).then(|| (ring.sent, ring.consumed.position + ring.capacity))
    }

    /// What the epoch of a running ring is.
    pub fn epoch(&self, slot: u32) -> Option<u64> {
        let ring = self.outgoing.get(slot as usize)?;
        (ring.state == State::Running).then_some(ring.epoch)
    }

    /// The link has taken our ring up to `to`, the end of a record.
    pub fn sent(&mut self, slot: u32, to: Cursor) {
        self.outgoing[slot as usize].sent = to;
    }

    /// There is more to send than room: what to tell the peer, once each time.
    pub fn want_room(&mut self, slot: u32) -> Option<Control> {
        let ring = &mut self.outgoing[slot as usize];
        if ring.wants {
            return None;
        }
        ring.wants = true;
        Some(Control {
            slot,
            epoch: ring.epoch,
            want: true,
            delivered: 0,
            consumed: Cursor::default(),
        })
    }

    /// The link brought what the peer tells.
    pub fn control(&mut self, control: &Control) -> Result<Told, End> {
        self.just_heard = true;
        if control.want {
            return match self.incoming.get_mut(&control.slot) {
                Some(ring) if ring.epoch == control.epoch => {
                    ring.wanted = true;
                    Ok(Told::RoomWanted(control.slot))
                }
                _ => violation(format!(
                    "room wanted in slot {} of another epoch",
                    control.slot
                )),
            };
        }
        let Some(ring) = self.outgoing.get_mut(control.slot as usize) else {
            return violation(format!(
                "progress of slot {}, which does not exist",
                control.slot
            ));
        };
        if ring.state == State::Ended {
            return Ok(Told::Nothing);
        }
        if ring.state == State::Opening {
            ring.early = Some(*control);
            return Ok(Told::Nothing);
        }
        if ring.state != State::Running || ring.epoch != control.epoch {
            return violation(format!(
                "progress of slot {} in another epoch",
                control.slot
            ));
        }
        let Control {
            delivered,
            consumed,
            ..
        } = *control;
        let messages = consumed.sequence.wrapping_sub(ring.consumed.sequence);
        let bytes = consumed.position.wrapping_sub(ring.consumed.position);
        if delivered < ring.delivered
            || delivered > ring.sent.position
            || consumed.position < ring.consumed.position
            || consumed.position > delivered
            || messages > bytes / 16
            || (messages == 0) != (bytes == 0)
        {
            return violation(format!(
                "slot {} has come to {delivered} and {consumed:?} at the peer, after {} and {:?}; {} was sent",
                control.slot, ring.delivered, ring.consumed, ring.sent.position
            ));
        }
        if delivered > ring.delivered {
            self.just_answered = true;
        }
        if bytes > 0 {
            ring.wants = false;
        }
        (ring.delivered, ring.consumed) = (delivered, consumed);
        Ok(Told::Progress(Progress {
            delivered,
            consumed,
        }))
    }

    /// The mirror for an OPEN is there: what to answer. `epoch` is fresh and random.
    #[allow(clippy::too_many_arguments)]
    pub fn resume(
        &mut self,
        open: &Open,
        mirror: Uuid,
        tail: Cursor,
        head: Cursor,
        epoch: u64,
        remote: Remote,
    ) -> Frame {
        self.incoming.insert(
            open.slot,
            Incoming {
                epoch,
                delivered: tail.position,
                consumed: head,
                told_delivered: tail.position,
                told_consumed: head.position,
                capacity: open.capacity,
                pending: false,
                wanted: false,
                ended: false,
            },
        );
        Frame::Resume(Resume {
            slot: open.slot,
            attempt: open.attempt,
            source: open.source,
            mirror,
            tail,
            head,
            epoch,
            remote,
        })
    }

    /// True if a ring of the peer has this slot, or had it on this connection.
    pub fn is_open(&self, slot: u32) -> bool {
        self.incoming.contains_key(&slot)
    }

    /// There is no mirror for an OPEN: what to answer.
    pub fn refuse(&mut self, open: &Open, why: Refusal, text: String) -> Frame {
        self.incoming.remove(&open.slot);
        Frame::Refuse {
            slot: open.slot,
            attempt: open.attempt,
            why,
            text,
        }
    }

    /// A mirror of ours met a bad record: what to tell the peer. Nothing more comes of that ring.
    pub fn reject(&mut self, slot: u32, position: u64, text: String) -> Option<Frame> {
        let ring = self.incoming.get_mut(&slot).filter(|ring| !ring.ended)?;
        ring.ended = true;
        Some(Frame::Reject {
            slot,
            epoch: ring.epoch,
            position,
            text,
        })
    }

    /// A mirror of ours was published up to `delivered`, and its application has released up to `consumed`. Sooner or
    /// later the peer is told; at once, if much has come or the peer waits.
    pub fn published(&mut self, now: Nanos, slot: u32, delivered: u64, consumed: Cursor) {
        let Some(ring) = self.incoming.get_mut(&slot).filter(|ring| !ring.ended) else {
            return;
        };
        (ring.delivered, ring.consumed) = (delivered, consumed);
        let new = (delivered.saturating_sub(ring.told_delivered))
            .max(consumed.position.saturating_sub(ring.told_consumed));
        if new == 0 {
            return;
        }
        let at_once =
            new >= ring.capacity / 4 || (ring.wanted && consumed.position > ring.told_consumed);
        if at_once {
            ring.pending = true;
            self.acks.push_front((0, slot));
        } else if !ring.pending {
            ring.pending = true;
            self.acks.push_back((now, slot));
        }
    }

    /// True if the peer waits for room in a mirror of ours.
    pub fn is_wanted(&self, slot: u32) -> bool {
        self.incoming
            .get(&slot)
            .is_some_and(|ring| ring.wanted && !ring.ended)
    }

    /// The next acknowledgement that has waited for `patience` at `now`, or that must not wait.
    pub fn next_ack(&mut self, now: Nanos, patience: Nanos) -> Option<Control> {
        loop {
            let &(since, slot) = self.acks.front()?;
            if since != 0 && now < since + patience {
                return None;
            }
            self.acks.pop_front();
            let Some(ring) = self
                .incoming
                .get_mut(&slot)
                .filter(|ring| ring.pending && !ring.ended)
            else {
                continue;
            };
            ring.pending = false;
            if ring.consumed.position > ring.told_consumed {
                ring.wanted = false;
            }
            ring.told_delivered = ring.delivered;
            ring.told_consumed = ring.consumed.position;
            return Some(Control {
                slot,
                epoch: ring.epoch,
                want: false,
                delivered: ring.delivered,
                consumed: ring.consumed,
            });
        }
    }

    /// When the next acknowledgement will have waited for `patience`.
    #[inline]
    pub fn ack_due(&self, patience: Nanos) -> Option<Nanos> {
        let &(since, _) = self.acks.front()?;
        Some(if since == 0 { 0 } else { since + patience })
    }

    /// Bytes came over the link: a sign of life, whatever they are.
    pub fn alive(&mut self) {
        self.just_heard = true;
    }

    /// What the time brings: heartbeats, or the end.
    pub fn tick(&mut self, now: Nanos, frames: &mut Vec<Frame>) -> Result<(), End> {
        if std::mem::take(&mut self.just_heard) {
            self.heard = now;
        }
        if std::mem::take(&mut self.just_answered) {
            self.answered = now;
        }
        let seconds = |since: Nanos| (now - since) as f64 / 1e9;
        if now.saturating_sub(self.heard) > SILENCE {
            return Err((
                Goodbye::Silence,
                format!("nothing was heard for {:.1} s", seconds(self.heard)),
            ));
        }
        if now.saturating_sub(self.answered) > SILENCE + HEARTBEAT / 2 {
            let text = format!(
                "nothing was answered for {:.1} s, though the peer is heard",
                seconds(self.answered)
            );
            return Err((Goodbye::Silence, text));
        }
        if now >= self.beat_due {
            self.beat_due = now + HEARTBEAT;
            self.beats += 1;
            frames.push(Frame::Heartbeat {
                number: self.beats,
                echo: self.peer_beat,
            });
        }
        Ok(())
    }

    /// When [`Session::tick`] or [`Session::next_to_open`] next have something to do.
    pub fn due(&self) -> Nanos {
        let retry = self.retries.first().map_or(Nanos::MAX, |(due, _)| *due);
        self.beat_due.min(retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tbus::Address;

    #[test]
    fn a_peer_cannot_open_without_end() {
        let mut session = Session::new(0);
        let mut opened = 0;
        let end = loop {
            let open = Open {
                slot: opened,
                attempt: 1,
                from: Address(1),
                to: Address(2),
                source: Uuid([1; 16]),
                nonce: 1,
                capacity: 4096,
                head: Cursor::default(),
                tail: Cursor::default(),
            };
            match session.frame(0, Frame::Open(open)) {
                Ok(Demand::Mirror(open)) => {
                    let zero = Cursor::default();
                    session.resume(&open, Uuid([2; 16]), zero, zero, 1, (0, 0));
                }
                Ok(other) => panic!("{other:?}"),
                Err(end) => break end,
            }
            opened += 1;
        };
        assert_eq!((opened as usize, end.0), (SLOTS, Goodbye::Violation));
        session.down();
        assert!(session.incoming.len() == 0);
    }
}
