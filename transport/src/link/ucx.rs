//! UCX: ring bytes go in messages, and the receiving relay copies them into the mirror.
//!
//! A message is what a chunk over TCP is: a [`Chunk`] header and the bytes that it tells of, of one ring, up to [`MAX_CHUNK`]. UCX
//! promises no order between messages, so bytes count by their position, and only as far as nothing is missing in front of them;
//! of progress the furthest counts. The first message each way is the token that both were given on the control connection.
//!
//! Because the receiver's processor copies, nothing of the sender's lands after the receiving link has ended: what still comes is
//! nobody's.

mod inlet;

use super::{Event, Link, Quiesced, Remote};
use crate::link::verbs::Standstill;
use crate::session::{ACK_DELAY_RDMA, Nanos};
use crate::wire::{Chunk, Control, Data, MAX_CHUNK};
use inlet::Mirror;
pub(crate) use inlet::{Hub, Line};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::{Duration, Instant};
use tbus::Region;
use tbus_ucx_sys::{Body, How, Memory, Operation};

/// More than this many bytes are not accepted: what waits in the ring instead goes out in larger messages.
const UNDER_WAY: u64 = 2 << 20;
/// More messages than these are not given to UCX, which would keep them in a queue of its own.
const POSTED: usize = 64;
/// If nothing of what UCX was given is done for so long, nothing will be.
const STANDSTILL: Duration = crate::link::verbs::STANDSTILL;
/// Between two looks at deadlines.
const LOOK: Duration = Duration::from_millis(1);
/// Polls between two looks at the clock.
const POLLS: u32 = 64;
/// UCX gets so long to give everything back when a link ends.
const DRAIN: Duration = Duration::from_millis(50);
/// Turns of the worker in one poll: what it brings may be other links'.
const TURNS: u32 = 64;

#[derive(Debug)]
struct Source {
    memory: Memory,
    capacity: u64,
    epoch: u64,
    /// Nothing more is to be sent of it: its memory is given back when what was accepted has gone out.
    detached: bool,
}

/// What is accepted and not given to UCX yet.
#[derive(Clone, Copy, Debug)]
enum Item {
    Data { slot: u32, from: u64, to: u64 },
    Control(Control),
}

/// What UCX has.
#[derive(Debug)]
struct Flying {
    operation: Operation,
    /// Ring bytes that it reads: up to where, how many.
    reads: Option<(u32, u64, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct UcxLink {
    line: Line,
    sources: Vec<Option<Source>>,
    items: VecDeque<Item>,
    /// In the order in which UCX was given them.
    flying: VecDeque<Flying>,
    /// Bytes in both.
    under_way: u64,
    /// Counts of what UCX was given, and of what is done.
    posted: u32,
    done: u32,
    stands: Standstill,
    polls: u32,
    looked: Instant,
    down: Option<String>,
    told: bool,
}

impl UcxLink {
    /// Over a connection whose two ends know each other.
    pub(crate) fn new(line: Line) -> UcxLink {
        UcxLink {
            line,
            sources: Vec::new(),
            items: VecDeque::new(),
            flying: VecDeque::new(),
            under_way: 0,
            posted: 0,
            done: 0,
            stands: Standstill::default(),
            polls: 0,
            looked: Instant::now(),
            down: None,
            told: false,
        }
    }

    /// True if something has come that the worker's descriptor does not tell of any more.
    pub(super) fn has_received(&self) -> bool {
        self.line.has_any()
    }

    /// True if UCX has nothing whose end would wake.
    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.items.is_empty()
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.down.get_or_insert_with(|| why.into());
    }

    fn map(&self, ring: &Region) -> Result<Memory, String> {
        // Once, not as it is mapped, twice in a row: else it would be pinned and counted twice.
        let length = ring.capacity() as usize;
        let address = NonNull::new(ring.at(0, length)).ok_or("a ring without memory")?;
        let owner = Box::new(ring.clone());
        // SAFETY: a ring's data area, mapped as long as its region lives. Rings are only touched by raw accesses.
        unsafe { Memory::map(&self.line.hub.context, address, length, owner) }
            .map_err(|error| error.to_string())
    }

    /// Deadlines.
    #[cold]
    fn look(&mut self, now: Instant) {
        self.looked = now;
        self.line.inlet(|inlet| inlet.look(now));
        if self.stands.for_long(self.posted, self.done, now) {
            self.fail(format!("UCX has done nothing for {STANDSTILL:?}"));
        }
    }

    /// The next item, if it is one.
    fn take_control(&mut self) -> Option<Control> {
        match self.items.front() {
            Some(Item::Control(control)) => {
                let control = *control;
                self.items.pop_front();
                Some(control)
            }
            _ => None,
        }
    }

    /// The next item's bytes, as many as one message takes.
    fn take_data(&mut self) -> Result<Option<Data>, String> {
        let Some(Item::Data { slot, from, to }) = self.items.front_mut() else {
            return Ok(None);
        };
        let (slot, begin) = (*slot, *from);
        let Some(Some(source)) = self.sources.get(slot as usize) else {
            return Err(format!("slot {slot} was detached with bytes under way"));
        };
        // A message ends where the ring does, for the memory is mapped once.
        let length = (*to - begin)
            .min(source.capacity - begin % source.capacity)
            .min(MAX_CHUNK as u64);
        *from += length;
        let data = Data {
            slot,
            epoch: source.epoch,
            position: begin,
            length: length as u32,
        };
        if *from == *to {
            self.items.pop_front();
        }
        Ok(Some(data))
    }

    /// Gives UCX one message of the next items: bytes, or progress, or both.
    fn post(&mut self) -> Result<(), String> {
        let before = self.take_control();
        let data = self.take_data()?;
        let control = match data {
            Some(_) if before.is_none() => self.take_control(),
            _ => before,
        };
        let header = Chunk { data, control }.encode();
        let (body, reads) = match &data {
            None => (Body::None, None),
            Some(data) => {
                let Some(Some(source)) = self.sources.get(data.slot as usize) else {
                    return Err("it was there just now".into());
                };
                let (at, length) = (data.position % source.capacity, u64::from(data.length));
                let range = (at as usize, (at + length) as usize);
                let reads = (data.slot, data.position + length, length);
                (Body::Memory(&source.memory, range), Some(reads))
            }
        };
        let sent = self.line.endpoint.send(&header, body, How::Eager);
        let operation = sent.map_err(|error| error.to_string())?;
        self.posted = self.posted.wrapping_add(1);
        self.flying.push_back(Flying { operation, reads });
        if let Some(data) = data {
            self.give_back(data.slot);
        }
        Ok(())
    }

    /// Tells what is read no more.
    fn finish(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
        while let Some(first) = self.flying.front_mut()
            && let Some(outcome) = first.operation.outcome()
        {
            outcome.map_err(|error| error.to_string())?;
            let reads = first.reads;
            self.flying.pop_front();
            self.done = self.done.wrapping_add(1);
            let Some((slot, to, length)) = reads else {
                continue;
            };
            self.under_way -= length;
            match events.last_mut() {
                Some(Event::SourceDone {
                    slot: last,
                    to: up_to,
                }) if *last == slot => *up_to = to,
                _ => events.push(Event::SourceDone { slot, to }),
            }
        }
        Ok(())
    }

    /// Gives back the memory of a detached source, unless some of it is to go out still; what UCX reads it keeps.
    fn give_back(&mut self, slot: u32) {
        let waits = |item: &Item| matches!(item, Item::Data { slot: other, .. } if *other == slot);
        if let Some(source) = self.sources.get_mut(slot as usize)
            && source.as_ref().is_some_and(|source| source.detached)
            && !self.items.iter().any(waits)
        {
            *source = None;
        }
    }
}

impl Link for UcxLink {
    fn attach_source(
        &mut self,
        slot: u32,
        ring: Region,
        epoch: u64,
        _remote: Remote,
    ) -> Result<(), String> {
        let source = Source {
            memory: self.map(&ring)?,
            capacity: ring.capacity(),
            epoch,
            detached: false,
        };
        let index = slot as usize;
        if index >= self.sources.len() {
            self.sources.resize_with(index + 1, || None);
        }
        self.sources[index] = Some(source);
        Ok(())
    }

    fn attach_mirror(
        &mut self,
        slot: u32,
        ring: Region,
        epoch: u64,
        tail: u64,
        room: u64,
    ) -> Result<Remote, String> {
        let mirror = Mirror::new(ring, epoch, tail, room);
        self.line.inlet(|inlet| inlet.attach(slot, mirror));
        Ok((0, 0))
    }

    fn set_room(&mut self, slot: u32, room: u64) {
        self.line.inlet(|inlet| inlet.set_room(slot, room));
    }

    fn detach_source(&mut self, slot: u32) {
        if let Some(Some(source)) = self.sources.get_mut(slot as usize) {
            source.detached = true;
            self.give_back(slot);
        }
    }

    fn detach_mirror(&mut self, slot: u32) {
        self.line.inlet(|inlet| inlet.detach(slot));
    }

    fn append(&mut self, slot: u32, from: u64, to: u64) -> bool {
        if self.under_way >= UNDER_WAY || self.down.is_some() {
            return false;
        }
        let Some(Some(source)) = self.sources.get(slot as usize) else {
            return false;
        };
        debug_assert!(!source.detached);
        self.under_way += to - from;
        match self.items.back_mut() {
            Some(Item::Data {
                slot: last,
                to: up_to,
                ..
            }) if *last == slot && *up_to == from => *up_to = to,
            _ => self.items.push_back(Item::Data { slot, from, to }),
        }
        true
    }

    fn control(&mut self, control: Control) {
        self.items.push_back(Item::Control(control));
    }

    fn kick(&mut self) {
        while self.down.is_none() && !self.items.is_empty() && self.flying.len() < POSTED {
            if let Err(why) = self.post() {
                self.fail(why);
            }
        }
    }

    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool {
        let mut taken = 0;
        for _ in 0..TURNS {
            let any = self.line.hub.progress();
            if self.told {
                return false;
            }
            match self.line.take(events) {
                Ok(bytes) => taken += bytes,
                Err(why) => self.fail(why),
            }
            if !any || taken >= budget {
                break;
            }
        }
        if self.down.is_none()
            && let Err(why) = self.finish(events)
        {
            self.fail(why);
        }
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS) && self.down.is_none() {
            let now = Instant::now();
            if now - self.looked > LOOK {
                self.look(now);
            }
        }
        if let Some(why) = &self.down
            && !self.told
        {
            self.told = true;
            events.push(Event::Down(why.clone()));
        }
        taken > 0
    }

    fn is_busy(&self) -> bool {
        self.down.is_none() && !self.items.is_empty()
    }

    fn patience(&self) -> Nanos {
        match self.is_busy() {
            true => 0, // it goes along
            false => ACK_DELAY_RDMA,
        }
    }

    fn quiesce(self) -> Quiesced {
        let hub = self.line.hub.clone();
        // What comes from now on is nobody's, and the endpoint is closed.
        drop((self.line, self.flying));
        // So that the peer need not find out by silence.
        let begun = Instant::now();
        while hub.worker.is_ending() && begun.elapsed() < DRAIN {
            hub.progress();
        }
        Quiesced::ended()
    }
}
