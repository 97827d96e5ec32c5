//! The rings that a relay serves: their handles, who their peer is, and how to find them.

use super::TEND;
use super::ages::Ages;
use crate::session::Nanos;
use crate::wire::Open;
use std::collections::HashMap;
use tbus::{Address, Cursor, Glance, MirrorWriter, NewsReader, Ring, SourceReader, Uuid};

/// So many rings are swept at a time however few there are; or all of them.
const SWEPT_AT_ONCE: usize = 1000;

/// A source ring that is mirrored to a peer.
#[derive(Debug)]
pub(super) struct Outbound {
    pub ends: [Address; 2],
    /// Both, for people.
    pub name: String,
    pub ring: Uuid,
    pub peer: usize,
    /// In the peer's session.
    pub slot: u32,
    pub reader: SourceReader,
    /// Keep records until they are known to be released.
    pub until_consumed: bool,
    /// The link reads nothing below this any more.
    pub done: u64,
    /// The peer needs nothing below this any more.
    pub settled: u64,
    /// The peer has published all below this.
    pub delivered: u64,
    pub ages: Ages,
    pub gaps: u64,
    pub lost_messages: u64,
    /// It is in the peer's list of those that the link did not take.
    pub waiting: bool,
    pub trouble: Option<String>,
    pub messages: u64,
    pub bytes: u64,
}

impl Outbound {
    /// The mirror has come to `delivered`, and its application to `consumed`.
    pub fn set_settled(&mut self, delivered: u64, consumed: Cursor) {
        self.delivered = delivered;
        self.settled = match self.until_consumed {
            true => consumed.position,
            false => delivered,
        };
    }
}

/// A ring that a peer mirrors to this host.
#[derive(Debug)]
pub(super) struct Inbound {
    pub ends: [Address; 2],
    /// Both, for people.
    pub name: String,
    pub ring: Uuid,
    pub peer: usize,
    pub capacity: u64,
    /// None while the ring is not a mirror yet.
    pub writer: Option<MirrorWriter>,
    /// The peer's number for it, while it is open.
    pub slot: Option<u32>,
    /// The application has released all below this, when it was last looked at.
    pub consumed: u64,
    /// The tail when the ring was last looked after.
    pub tended: u64,
    /// It is in [`Untended`].
    pub untended: bool,
    pub ages: Ages,
    /// The tail when `ages` was last told.
    pub noted: u64,
    pub gaps: u64,
    pub lost_messages: u64,
    /// What waits for the next generation.
    pub wanted: Option<Open>,
    pub trouble: Option<String>,
    pub messages: u64,
    pub bytes: u64,
}

impl Inbound {
    /// The peer's messages go into it.
    pub fn is_running(&self) -> bool {
        self.slot.is_some() && self.trouble.is_none()
    }

    /// It has messages that [`Rings::note_age`] was not told of.
    fn has_more(&self) -> bool {
        let mut writer = self.writer.iter();
        writer.any(|writer| writer.tail().position != self.noted)
    }
}

/// Where a ring is in [`Rings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    Out(usize),
    In(usize),
}

/// Inbound rings that have moved and are still to be looked after.
#[derive(Debug, Default)]
pub(super) struct Untended {
    rings: Vec<usize>,
    due: Nanos,
}

impl Untended {
    /// Adds a ring, unless it has been added before (`begins` is false). `at_once`: all of them are due now.
    pub fn add(&mut self, index: usize, begins: bool, at_once: bool, now: Nanos) {
        if begins {
            if self.rings.is_empty() {
                self.due = now + TEND;
            }
            self.rings.push(index);
        }
        if at_once {
            self.due = 0;
        }
    }

    /// True if they are to be looked after now.
    pub fn is_due(&self, now: Nanos) -> bool {
        !self.rings.is_empty() && now >= self.due
    }

    /// Takes one out.
    pub fn next(&mut self) -> Option<usize> {
        self.rings.pop()
    }
}

/// All of them. An index is never used for another ring: sessions remember it.
#[derive(Debug, Default)]
pub(super) struct Rings {
    pub out: Vec<Option<Outbound>>,
    pub inn: Vec<Option<Inbound>>,
    by_ends: HashMap<[Address; 2], At>,
    /// By their slot in the news.
    by_news: Vec<Vec<At>>,
    /// Of each ring in `out`, and of each in `inn` that is a mirror. Beside each other, for the sweep is over all of them.
    out_glances: Vec<Option<Glance>>,
    inn_glances: Vec<Option<Glance>>,
    swept: usize,
    pub sweep_due: Nanos,
}

fn news_of(ring: &Ring) -> usize {
    (ring.header().lock_slot % NewsReader::SLOTS) as usize
}

impl Rings {
    pub fn find(&self, ends: [Address; 2]) -> Option<At> {
        self.by_ends.get(&ends).copied()
    }

    /// Who has news at a lock slot, modulo their number.
    pub fn with_news(&self, slot: u32) -> &[At] {
        self.by_news.get(slot as usize).map_or(&[], |all| all)
    }

    /// All news is of slots below this.
    pub fn news_slots(&self) -> u32 {
        self.by_news.len() as u32
    }

    fn watch(&mut self, ring: &Ring, at: At) {
        let slot = news_of(ring);
        if slot >= self.by_news.len() {
            self.by_news.resize_with(slot + 1, Vec::new);
        }
        let all = &mut self.by_news[slot];
        if !all.contains(&at) {
            all.push(at);
        }
    }

    pub fn add_out(&mut self, ring: Outbound) -> usize {
        let index = self.out.len();
        let at = At::Out(index);
        self.by_ends.insert(ring.ends, at);
        self.watch(ring.reader.ring(), at);
        self.out_glances.push(Some(ring.reader.glance()));
        self.out.push(Some(ring));
        index
    }

    pub fn add_in(&mut self, ring: Inbound) -> usize {
        let index = self.inn.len();
        let at = At::In(index);
        self.by_ends.insert(ring.ends, at);
        self.inn_glances.push(None);
        self.inn.push(Some(ring));
        index
    }

    /// A mirror is there for an inbound ring.
    pub fn set_writer(&mut self, index: usize, mut writer: MirrorWriter) {
        self.watch(writer.ring(), At::In(index));
        self.inn_glances[index] = Some(writer.glance());
        if let Some(ring) = &mut self.inn[index] {
            ring.ring = writer.ring().uuid();
            (ring.ages, ring.noted) = (Ages::default(), u64::MAX);
            ring.consumed = writer.consumed().map_or(0, |consumed| consumed.position);
            ring.writer = Some(writer);
        }
    }

    /// The mirror of an inbound ring is given up, and with it its role.
    pub fn drop_writer(&mut self, index: usize) {
        self.inn_glances[index] = None;
        if let Some(ring) = &mut self.inn[index] {
            ring.writer = None;
        }
    }

    /// Lets a ring go, and with it its role.
    pub fn remove(&mut self, at: At) {
        let (ends, news) = match at {
            At::Out(index) => {
                let Some(ring) = self.out[index].take() else {
                    return;
                };
                self.out_glances[index] = None;
                (ring.ends, Some(news_of(ring.reader.ring())))
            }
            At::In(index) => {
                let Some(ring) = self.inn[index].take() else {
                    return;
                };
                self.inn_glances[index] = None;
                (
                    ring.ends,
                    ring.writer.as_ref().map(|writer| news_of(writer.ring())),
                )
            }
        };
        if let Some(all) = news.and_then(|news| self.by_news.get_mut(news)) {
            all.retain(|other| *other != at);
        }
        if self.by_ends.get(&ends) == Some(&at) {
            self.by_ends.remove(&ends);
        }
    }

    /// How old is what nobody has taken yet? Told after a sweep has found that a ring moved.
    pub fn note_age(&mut self, at: At, now: Nanos) {
        match at {
            At::Out(index) => {
                if let Some(ring) = &mut self.out[index]
                    && let Ok(tail) = ring.reader.tail()
                {
                    ring.ages.note(ring.delivered, tail.position, now);
                }
            }
            At::In(index) => {
                if let Some(ring) = &mut self.inn[index]
                    && let Some(writer) = &mut ring.writer
                    && let Ok(consumed) = writer.consumed()
                {
                    (ring.consumed, ring.noted) = (consumed.position, writer.tail().position);
                    ring.ages.note(ring.consumed, ring.noted, now);
                }
            }
        }
    }

    /// Of the next tenth of all rings, and of [`SWEPT_AT_ONCE`] at least, those that have moved since they were swept last. A
    /// sender may be killed between a message and its news: where there are not many rings, that message
    /// need not wait longer than one whose sender was killed before it woke the relay.
    pub fn next_to_sweep(&mut self) -> Vec<At> {
        let (outs, all) = (self.out.len(), self.out.len() + self.inn.len());
        let mut found = Vec::new();
        for _ in 0..all.div_ceil(10).max(all.min(SWEPT_AT_ONCE)) {
            self.swept += 1;
            if self.swept >= all {
                self.swept = 0;
            }
            let (glance, at) = match self.swept.checked_sub(outs) {
                None => (&mut self.out_glances[self.swept], At::Out(self.swept)),
                Some(index) => (&mut self.inn_glances[index], At::In(index)),
            };
            let has_more = match at {
                At::Out(_) => false,
                At::In(index) => self.inn[index].as_ref().is_some_and(Inbound::has_more),
            };
            if glance.as_mut().is_some_and(Glance::moved) || has_more {
                found.push(at);
            }
        }
        found
    }
}
