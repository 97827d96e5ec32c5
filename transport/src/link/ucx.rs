//! UCX: small appends go in messages, and the receiving relay copies them into the mirror; large ones are written there.
//!
//! A message is what a chunk over TCP is: a [`Chunk`] header and the bytes that it tells of, of one ring, up to [`MAX_CHUNK`]. One of
//! bytes alone has a header of 20, so that a small one fits into the request to the card. UCX
//! promises no order between messages, so bytes count by their position, and only as far as nothing is missing in front of them;
//! of progress the furthest counts. The first message each way is the token that both were given on the control connection.
//!
//! A long piece of a ring is put to its place in the mirror instead, and when UCX says that what was put is written, which is a way
//! there and back more, a message tells of it without the bytes. For that the receiving side gives its mirror's key, in a message too:
//! until it has come, bytes go in messages. Mirrors of less than `LARGE` bytes have none.
//!
//! What the receiver's processor copies cannot land after the receiving link has ended: what still comes is nobody's. What is put
//! cannot after the memory was taken from the device, which the end of the link does.

mod inlet;

use super::{Event, Link, Quiesced, Remote};
use crate::link::verbs::{BUSY_POLLS, DETACHED, Mirrored, STANDSTILL, Standstill};
use crate::session::{ACK_DELAY_RDMA, Nanos};
use crate::slots::Hashed;
use crate::wire::{Chunk, Control, Data, MAX_CHUNK};
pub(crate) use inlet::{Hub, Line};
use inlet::{Mirror, PeerKey, Turn};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::{Duration, Instant};
use tbus::Region;
use tbus_ucx_sys::{Body, How, Memory, Operation, RemoteKey};
use tracing::error;

/// More than this many bytes are not accepted: what waits in the ring instead goes out in larger messages.
const UNDER_WAY: u64 = 2 << 20;
/// More messages than these are not given to UCX, which would keep them in a queue of its own.
const POSTED: usize = 64;
/// Pieces of a ring that are longer are put.
const PUT: u64 = 32 << 10;
/// So many bytes are put at a time, at most: each put takes a flush and a message besides.
const PIECE: u64 = 256 << 10;
/// Mirrors of so many bytes can be put to.
pub(crate) const LARGE: u64 = 1 << 16;
/// Between two looks whether what was sent arrives.
const PROBE: Duration = Duration::from_millis(100);
/// What is to be at the peer within this time.
const UNANSWERED: Duration = Duration::from_millis(2000);
/// Between two looks at deadlines.
const LOOK: Duration = Duration::from_millis(1);
/// Polls between two looks at the clock.
const POLLS: u32 = 64;
/// UCX gets so long to give everything back when a link ends.
const DRAIN: Duration = Duration::from_millis(50);
/// Turns of the worker in one poll.
const TURNS: u32 = 64;

#[derive(Debug)]
struct Source {
    memory: Memory,
    capacity: u64,
    epoch: u64,
    /// The peer's mirror: its key, and where it begins there. None: it was not told, or is not to be written.
    mirror: Option<(RemoteKey, u64)>,
    /// Nothing more is to be sent of it: its memory is given back when what was accepted has gone out.
    detached: bool,
}

/// Bytes of a ring that go together, in a message or by a put.
#[derive(Debug)]
struct Piece {
    data: Data,
    is_put: bool,
}

impl Source {
    /// What goes first of [from, to).
    fn piece(&self, slot: u32, from: u64, to: u64, put_from: u64) -> Piece {
        // Either ends where the ring does, for the memory is mapped once.
        let length = (to - from).min(self.capacity - from % self.capacity);
        let is_put = self.mirror.is_some() && length > put_from;
        let most = if is_put { PIECE } else { MAX_CHUNK as u64 };
        Piece {
            data: Data {
                slot,
                epoch: self.epoch,
                position: from,
                length: length.min(most) as u32,
            },
            is_put,
        }
    }
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

/// A wait until all that was given to UCX before is at the peer.
#[derive(Debug)]
struct Flush {
    operation: Operation,
    /// What was put, and is told of then.
    put: Vec<Data>,
    begun: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct UcxLink {
    line: Line,
    /// What carries it: transport, device and port of each rail.
    over: Vec<String>,
    sources: Vec<Option<Source>>,
    /// Of mirrors that the peer writes.
    memories: Hashed<Memory>,
    /// Mirrors that are detached and still have their memory, the oldest first.
    detached: VecDeque<(Instant, u32)>,
    mirrored: Mirrored,
    items: VecDeque<Item>,
    /// In the order in which UCX was given them.
    flying: VecDeque<Flying>,
    /// What was put since the last flush was begun, and what is told when one is done.
    put: Vec<Data>,
    flushes: VecDeque<Flush>,
    /// Bytes in both.
    under_way: u64,
    /// As [`PUT`] and [`LARGE`].
    put_from: u64,
    large: u64,
    /// Counts of what UCX was given, and of what is done.
    posted: u32,
    done: u32,
    stands: Standstill,
    /// Something was sent since the last flush that was begun to see whether the way is there, and when that was.
    unproved: bool,
    probed: Instant,
    /// The last poll has brought something.
    took: bool,
    polls: u32,
    looked: Instant,
    down: Option<String>,
    told: bool,
}

impl UcxLink {
    /// Over a connection whose two ends know each other.
    pub(crate) fn new(line: Line, over: Vec<String>) -> UcxLink {
        UcxLink {
            line,
            over,
            sources: Vec::new(),
            memories: Hashed::default(),
            detached: VecDeque::new(),
            mirrored: Mirrored::default(),
            items: VecDeque::new(),
            flying: VecDeque::new(),
            put: Vec::new(),
            flushes: VecDeque::new(),
            under_way: 0,
            put_from: PUT,
            large: LARGE,
            posted: 0,
            done: 0,
            stands: Standstill::default(),
            unproved: false,
            probed: Instant::now(),
            took: false,
            polls: 0,
            looked: Instant::now(),
            down: None,
            told: false,
        }
    }

    /// From now on everything is put, into mirrors of any size.
    #[cfg(any(test, feature = "sim"))]
    pub fn put_all(&mut self) {
        (self.put_from, self.large) = (0, 0);
    }

    /// How many keys of the peer's mirrors UCX has, for all links of the relay; and how many are kept that nobody has asked for.
    #[cfg(any(test, feature = "sim"))]
    pub fn keys(&self) -> (usize, usize) {
        let kept = self.line.inlet(|inlet| inlet.keys());
        (self.line.hub.worker.remote_keys(), kept)
    }

    /// True if something has come, or is done or could be sent, that the worker's descriptor does not tell of any more: another
    /// link's poll may have brought it.
    pub(super) fn has_received(&self) -> bool {
        let is_done = |operation: Option<&Operation>| operation.is_some_and(Operation::is_done);
        self.line.has_any()
            || is_done(self.flying.front().map(|flying| &flying.operation))
            || is_done(self.flushes.front().map(|flush| &flush.operation))
            || (self.is_busy() && self.flying.len() < POSTED)
    }

    /// True if UCX has nothing whose end would wake.
    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.flushes.is_empty() && self.items.is_empty()
    }

    /// Who sleeps polls seldom. True if there is something to tell.
    pub(super) fn look_before_sleep(&mut self) -> bool {
        self.look(Instant::now());
        self.down.is_some() && !self.told
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
        // UCX is done with a small message as soon as it has copied it. That the way is there is known when a flush is done.
        if self.unproved && self.flushes.is_empty() && now - self.probed > PROBE {
            (self.unproved, self.probed) = (false, now);
            if let Err(why) = self.begin_flush() {
                self.fail(why);
            }
        }
        // Messages that UCX only copies make it look as if something were done.
        let first = self
            .flushes
            .front()
            .filter(|flush| !flush.operation.is_done());
        let unanswered = first.is_some_and(|flush| now - flush.begun > UNANSWERED);
        if unanswered || self.stands.for_long(self.posted, self.done, now) {
            let time = if unanswered { UNANSWERED } else { STANDSTILL };
            self.fail(format!("over UCX nothing has been done for {time:?}"));
        }
        while self
            .detached
            .front()
            .is_some_and(|(since, _)| now - *since > DETACHED)
        {
            self.forget_detached();
        }
    }

    /// Gives back the memory of the mirror that was detached first.
    fn forget_detached(&mut self) {
        if let Some((_, slot)) = self.detached.pop_front()
            && let Some(memory) = self.memories.remove(&slot)
        {
            let length = memory.length() as u64;
            self.mirrored.detached = self.mirrored.detached.saturating_sub(length);
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

    /// The next item's bytes, if it is some: as many as are sent or put at a time.
    fn next_piece(&self) -> Result<Option<Piece>, String> {
        let Some(Item::Data { slot, from, to }) = self.items.front() else {
            return Ok(None);
        };
        match self.sources.get(*slot as usize) {
            Some(Some(source)) => Ok(Some(source.piece(*slot, *from, *to, self.put_from))),
            _ => Err(format!("slot {slot} was detached with bytes under way")),
        }
    }

    /// So many bytes of the next item are not waiting any more.
    fn advance(&mut self, length: u32) {
        if let Some(Item::Data { from, to, .. }) = self.items.front_mut() {
            *from += u64::from(length);
            if *from >= *to {
                self.items.pop_front();
            }
        }
    }

    /// Gives UCX one piece of the next items: bytes, or progress, or both.
    fn post(&mut self) -> Result<(), String> {
        let before = self.take_control();
        let piece = match self.next_piece()? {
            // A put has no room for it.
            Some(piece) if !(piece.is_put && before.is_some()) => piece,
            _ => {
                return self.tell(&Chunk {
                    data: None,
                    control: before,
                });
            }
        };
        let data = piece.data;
        self.advance(data.length);
        if piece.is_put {
            self.write(data)?;
        } else {
            let control = before.or_else(|| self.take_control());
            self.send(data, control)?;
        }
        self.give_back(data.slot);
        Ok(())
    }

    /// Sends bytes of a ring in a message, and progress with them.
    fn send(&mut self, data: Data, control: Option<Control>) -> Result<(), String> {
        let source = self.source(data.slot)?;
        let at = (data.position % source.capacity) as usize;
        let body = Body::Memory(&source.memory, (at, at + data.length as usize));
        let endpoint = &self.line.endpoint;
        let sent = match control {
            None => endpoint.send(&inlet::header(&data), body, How::Eager),
            Some(_) => {
                let data = Some(data);
                endpoint.send(&Chunk { data, control }.encode(), body, How::Eager)
            }
        };
        self.posted(sent, Some(&data))
    }

    /// Puts bytes of a ring where they belong in the mirror. The peer is told when they are there.
    fn write(&mut self, data: Data) -> Result<(), String> {
        let source = self.source(data.slot)?;
        let Some((key, address)) = &source.mirror else {
            return Err(format!("the mirror of slot {} cannot be put to", data.slot));
        };
        let at = data.position % source.capacity;
        let range = at as usize..at as usize + data.length as usize;
        let to = address.wrapping_add(at);
        let put = self.line.endpoint.put(&source.memory, range, key, to);
        self.posted(put, Some(&data))?;
        self.put.push(data);
        Ok(())
    }

    fn source(&self, slot: u32) -> Result<&Source, String> {
        let source = self.sources.get(slot as usize).and_then(Option::as_ref);
        source.ok_or_else(|| format!("slot {slot} is gone"))
    }

    /// Sends what goes in one message and has nothing to wait for: the queue, though short, takes longer than this. Returns up to where.
    fn send_now(&mut self, slot: u32, from: u64, to: u64) -> u64 {
        if !self.items.is_empty() || self.flying.len() >= POSTED {
            return from;
        }
        let Ok(source) = self.source(slot) else {
            return from;
        };
        let piece = source.piece(slot, from, to, self.put_from);
        if piece.is_put {
            return from;
        }
        match self.send(piece.data, None) {
            Ok(()) => from + u64::from(piece.data.length),
            Err(why) => {
                self.fail(why);
                from
            }
        }
    }

    /// Sends a message without bytes.
    fn tell(&mut self, chunk: &Chunk) -> Result<(), String> {
        let header = chunk.encode();
        let sent = self.line.endpoint.send(&header, Body::None, How::Eager);
        self.posted(sent, None)
    }

    /// UCX was given something, that reads these bytes of a ring if any.
    fn posted(
        &mut self,
        operation: tbus_ucx_sys::Result<Operation>,
        reads: Option<&Data>,
    ) -> Result<(), String> {
        let operation = operation.map_err(|error| error.to_string())?;
        let reads = reads.map(|data| {
            let length = u64::from(data.length);
            (data.slot, data.position + length, length)
        });
        self.posted = self.posted.wrapping_add(1);
        self.unproved = true;
        self.flying.push_back(Flying { operation, reads });
        Ok(())
    }

    /// Has UCX say when what was put so far is written.
    fn flush(&mut self) -> Result<(), String> {
        match self.put.is_empty() {
            true => Ok(()),
            false => self.begin_flush(),
        }
    }

    fn begin_flush(&mut self) -> Result<(), String> {
        let flush = self.line.endpoint.flush();
        let flush = flush.map_err(|error| error.to_string())?;
        self.posted = self.posted.wrapping_add(1);
        self.flushes.push_back(Flush {
            operation: flush,
            put: std::mem::take(&mut self.put),
            begun: Instant::now(),
        });
        Ok(())
    }

    /// Tells the peer what is written.
    fn tell_put(&mut self) -> Result<(), String> {
        while let Some(flush) = self.flushes.front_mut()
            && let Some(outcome) = flush.operation.outcome()
        {
            outcome.map_err(|error| error.to_string())?;
            self.done = self.done.wrapping_add(1);
            let put = self.flushes.pop_front().map(|flush| flush.put);
            for data in put.into_iter().flatten() {
                let header = inlet::put_header(&data);
                let endpoint = &self.line.endpoint;
                let told = endpoint.send(&header, Body::None, How::Eager);
                self.posted(told, None)?;
            }
        }
        Ok(())
    }

    /// Tells the relay what is read no more.
    fn tell_done(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
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

    /// Looks whether the peer has told by what its mirror can be written.
    fn look_for_key(&mut self, slot: u32) {
        if let Some(Some(source)) = self.sources.get_mut(slot as usize)
            && source.mirror.is_none()
            && source.capacity >= self.large
            && let Some(key) = self.line.inlet(|inlet| inlet.take_key(slot))
            && key.epoch == source.epoch
        {
            match self.line.endpoint.remote_key(&key.packed) {
                Ok(remote) => source.mirror = Some((remote, key.address)),
                Err(error) => self.fail(format!("the key of slot {slot}: {error}")),
            }
        }
    }

    /// Gives back the memory of a detached source, and the key of its mirror, unless some of it is to go out still; what UCX has been
    /// given keeps both until it is done.
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
            mirror: None,
            detached: false,
        };
        let index = slot as usize;
        if index >= self.sources.len() {
            self.sources.resize_with(index + 1, || None);
        }
        self.sources[index] = Some(source);
        self.look_for_key(slot);
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
        let is_written = ring.capacity() >= self.large;
        if is_written {
            let text = |error: tbus_ucx_sys::Error| error.to_string();
            let memory = self.map(&ring)?;
            let key = PeerKey {
                epoch,
                address: memory.address(),
                packed: memory.key().map_err(text)?,
            };
            self.posted(self.line.tell(slot, &key), None)?;
            self.memories.insert(slot, memory);
            self.mirrored.attach(ring.capacity());
        }
        let mirror = Mirror::new(ring, epoch, tail, room, is_written);
        self.line.inlet(|inlet| inlet.attach(slot, mirror));
        Ok((0, 0))
    }

    fn set_room(&mut self, slot: u32, room: u64) {
        self.line.inlet(|inlet| inlet.set_room(slot, room));
    }

    fn detach_source(&mut self, slot: u32) {
        // One that was never attached may have a key all the same.
        self.line.inlet(|inlet| inlet.end_keys(slot));
        if let Some(Some(source)) = self.sources.get_mut(slot as usize) {
            source.detached = true;
            self.give_back(slot);
        }
    }

    fn detach_mirror(&mut self, slot: u32) {
        // What is being put must find its memory, or the link fails and with it all other rings.
        if self.line.inlet(|inlet| inlet.detach(slot))
            && let Some(memory) = self.memories.get(&slot)
        {
            self.mirrored.detach(memory.length() as u64);
            self.detached.push_back((Instant::now(), slot));
        }
        while self.mirrored.is_too_much() && !self.detached.is_empty() {
            self.forget_detached();
        }
    }

    fn append(&mut self, slot: u32, from: u64, to: u64) -> bool {
        if self.under_way >= UNDER_WAY || self.down.is_some() {
            return false;
        }
        let Some(Some(source)) = self.sources.get(slot as usize) else {
            return false;
        };
        debug_assert!(!source.detached);
        if to - from > self.put_from && source.mirror.is_none() {
            self.look_for_key(slot);
        }
        self.under_way += to - from;
        let from = self.send_now(slot, from, to);
        if from == to {
            return true;
        }
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
        if self.down.is_none()
            && let Err(why) = self.flush()
        {
            self.fail(why);
        }
    }

    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool {
        if self.told {
            self.line.hub.progress();
            return false;
        }
        // What comes alone waits for nothing more, for another turn takes as long as a message. In a stream it is the other way about;
        // and only a turn that brings nothing looks for what is done.
        let waits = std::mem::take(&mut self.took)
            || !self.flushes.is_empty()
            || (self.flying.front()).is_some_and(|flying| !flying.operation.is_done());
        let mut taken = 0;
        for _ in 0..TURNS {
            let (turn, came) = self.line.turn(events);
            match came {
                Ok(bytes) => taken += bytes,
                Err(why) => self.fail(why),
            }
            let is_enough = match turn {
                Turn::Idle => true,
                Turn::Done => false,
                // Another link's waits for that link's poll.
                Turn::Brought if taken == 0 => true,
                Turn::Brought => taken >= budget || !waits,
            };
            if is_enough {
                break;
            }
        }
        self.took = taken > 0;
        self.polls = self.polls.wrapping_add(1);
        if self.down.is_none() {
            let mut told = self.tell_put();
            let tells = taken == 0
                || self.polls.is_multiple_of(BUSY_POLLS)
                || self.flying.len() >= POSTED / 2
                || self.under_way >= UNDER_WAY / 2;
            if tells {
                told = told.and_then(|()| self.tell_done(events));
            }
            if let Err(why) = told {
                self.fail(why);
            }
        }
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
        ACK_DELAY_RDMA // with it a message of bytes is longer than what goes at once
    }

    fn detail(&self) -> Option<String> {
        let rails = match self.over.len() {
            1 => "rail",
            _ => "rails",
        };
        let over = self.over.join(", ");
        Some(format!("{over} ({} {rails})", self.over.len()))
    }

    fn quiesce(self) -> Quiesced {
        let (hub, own) = (self.line.hub.clone(), self.line.endpoint.key());
        // What comes from now on is nobody's, and the endpoint is closed.
        drop((self.line, self.flying, self.flushes));
        for (slot, memory) in self.memories {
            if let Err((_, error)) = memory.unmap() {
                // The peer may go on writing, whatever is resumed: rings would be damaged in silence.
                error!(
                    slot,
                    "a mirror's memory cannot be taken from UCX, so this process ends: {error}"
                );
                std::process::abort();
            }
        }
        // So that the peer need not find out by silence. What is left of other links ends when it does: they are no matter here.
        let begun = Instant::now();
        while hub.worker.is_ending(own) && begun.elapsed() < DRAIN {
            hub.progress();
        }
        Quiesced::ended()
    }
}
