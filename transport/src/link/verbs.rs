//! RDMA: the card reads the source ring and writes the mirror ring, and the processors only tell each other that it has.
//!
//! An append is one or two writes (two at the ring's end) to the same place in the mirror, and a notice behind them: a number
//! with the last write, slot and length; or where that does not suffice, a message of [`MESSAGE`] bytes, which is a
//! [`Chunk`] header and the credit. The first notice of a ring always is such a message, so that epoch and position are compared once; after
//! that what is written follows what was written, and the key of the mirror's memory stands for the epoch.
//!
//! # Credit
//!
//! A notice takes one of the receiver's buffers, and a card that finds none gives up after a while. So each side counts: there
//! are [`BUFFERS`] at the beginning, and each message carries how many were posted again. The last one is used for messages of
//! credit alone, which are sent when half of the buffers, or more, are posted again and not told of.
//!
//! That cannot come to a standstill. Say neither side has a buffer left at the other. Then the last thing that each has sent is
//! credit alone, A's at time a and B's at b, and each was told of too late for the other's. Nothing that B sent after b counts, so
//! at b none of the buffers of A's last [`BUFFERS`] notices was posted again; and A could only send them for it knew by a that all
//! before them were. But b's message, which came to A after a, was the first to tell of half of the buffers at least, of those
//! before.

use super::{Event, Link, Quiesced, Remote};
use crate::BySlot;
use crate::session::{ACK_DELAY_RDMA, Nanos};
use crate::wire::{CHUNK_HEADER, Chunk, Control, Data, MAX_CHUNK, Token};
use crate::wire::{VERBS_BUFFERS as BUFFERS, VERBS_MESSAGE as MESSAGE, VERBS_PIECE as PIECE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};
use tbus::Region;
use tbus_rdma_sys::{
    self as rdma, Access, CompletionQueue, ConnectionId, Device, EventChannel, EventKind, Limits,
    Notice, Outcome, ProtectionDomain, QueuePair, Received, Taken, Write,
};
use tracing::{error, warn};

/// Bytes of the credit in a message. One of credit alone has only that.
const CREDIT: usize = MESSAGE - CHUNK_HEADER;
/// More than this many bytes are not accepted: what waits in the ring instead goes out in larger pieces.
const UNDER_WAY: u64 = 2 << 20;
const LIMITS: Limits = Limits {
    sends: 256,
    receives: BUFFERS,
    receive_size: 128,
    inline: INLINE,
};
/// Writes of so many bytes are copied into the queue: a small message saves the card a look at the ring's memory, and is done at once.
const INLINE: u32 = 192;
// Half of them is told of, though as many as are posted with one call wait for that.
const _: () = assert!(4 * QueuePair::REPOSTED <= BUFFERS as usize);

/// If nothing of what is posted is done for so long, nothing will be.
pub(super) const STANDSTILL: Duration = Duration::from_millis(2500);
/// Who is accepted or asks to be is heard within this time.
pub(crate) const ESTABLISHED: Duration = Duration::from_secs(3);
/// The memory of a detached mirror stays so long. By then an honest peer has heard of it, and what it had posted is done; what another
/// one writes there fails its link.
pub(super) const DETACHED: Duration = Duration::from_secs(5);
/// Bytes that a notice counts as at least.
const NOTICE: usize = 512;
/// In so many polls one tells what is read no more, though something came: who waits for what came waits for nothing else.
pub(super) const BUSY_POLLS: u32 = 8;
/// Between two looks at what seldom happens.
const LOOK: Duration = Duration::from_millis(1);
/// Polls between two looks at the clock.
const POLLS: u32 = 64;
/// The device gets so long to give everything back when a link ends.
const DRAIN: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Source {
    region: rdma::Region,
    capacity: u64,
    epoch: u64,
    key: u32,
    /// Where the next range begins.
    next: u64,
    /// Where the next piece begins, from the ring's beginning.
    offset: u64,
    /// Epoch and position were told.
    begun: bool,
    /// Nothing more is to be sent of it: its memory is given back when the device is done with it.
    detached: bool,
}

#[derive(Debug)]
struct Mirror {
    /// None: the memory is the device's no more.
    region: Option<rdma::Region>,
    epoch: u64,
    /// Where the next byte belongs.
    next: u64,
    /// Bytes may land below.
    room: u64,
    /// Epoch and position were heard.
    begun: bool,
    /// What comes is dropped.
    detached: bool,
}

/// Bytes of mirrors that the device has.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    attached: u64,
    /// The most that were attached at a time.
    most: u64,
    pub detached: u64,
}

impl Mirrored {
    pub fn attach(&mut self, bytes: u64) {
        self.attached += bytes;
        self.most = self.most.max(self.attached);
    }

    pub fn detach(&mut self, bytes: u64) {
        self.attached -= bytes;
        self.detached += bytes;
    }

    /// A peer that opens its rings over and over has no more memory pinned than twice what they need.
    pub fn is_too_much(&self) -> bool {
        self.detached > self.most
    }
}

/// What is accepted and not posted yet.
#[derive(Clone, Copy, Debug)]
enum Item {
    Data { slot: u32, from: u64, to: u64 },
    Control(Control),
}

/// Ring bytes that the device may still read.
#[derive(Clone, Copy, Debug)]
struct Flying {
    /// They are done with this request. None: they were copied.
    number: Option<u32>,
    slot: u32,
    to: u64,
    length: u64,
}

/// See the module's "Credit". All counts come around.
#[derive(Debug, Default)]
struct Credit {
    /// Notices that were sent.
    used: u32,
    /// How many buffers the peer said it has posted again.
    granted: u32,
    /// The same of ours, and what of that was told.
    reposted: u32,
    told: u32,
}

impl Credit {
    fn available(&self) -> u32 {
        BUFFERS - self.used.wrapping_sub(self.granted)
    }

    fn untold(&self) -> u32 {
        self.reposted.wrapping_sub(self.told)
    }

    /// The peer has posted so many again.
    fn grant(&mut self, granted: u32) -> Result<(), String> {
        let (before, now) = (
            self.used.wrapping_sub(self.granted),
            self.used.wrapping_sub(granted),
        );
        if now > before {
            return Err(format!(
                "the peer has {granted} buffers again, after {} and {} messages",
                self.granted, self.used
            ));
        }
        self.granted = granted;
        Ok(())
    }

    /// A message goes out; what it is to say.
    fn tell(&mut self) -> [u8; CREDIT] {
        self.told = self.reposted;
        self.reposted.to_le_bytes()
    }
}

/// Since when a device stands still: how much was done then, of more.
#[derive(Debug, Default)]
pub(super) struct Standstill(Option<(u32, Instant)>);

impl Standstill {
    /// Of so much that was posted so much is done now. True if it will be no more.
    pub fn for_long(&mut self, posted: u32, done: u32, now: Instant) -> bool {
        match self.0 {
            _ if posted == done => self.0 = None,
            Some((before, since)) if before == done => return now - since > STANDSTILL,
            _ => self.0 = Some((done, now)),
        }
        false
    }
}

/// What posts, and what is counted with it.
#[derive(Debug)]
struct Out {
    pair: QueuePair,
    credit: Credit,
    /// The last request that was posted, and the last that reads a ring.
    posted: u32,
    reads: u32,
    /// The next request tells when it is done, so that a device which stands still is noticed.
    probe: bool,
}

/// See the module.
#[derive(Debug)]
pub struct VerbsLink {
    // First, for the queue pair is to go before what it reads and writes.
    out: Out,
    queue: CompletionQueue,
    sources: Vec<Option<Source>>,
    mirrors: BySlot<Mirror>,
    /// Mirrors that are detached and still have their memory, the oldest first.
    detached: VecDeque<(Instant, u32)>,
    mirrored: Mirrored,
    domain: ProtectionDomain,
    device: Device,
    id: ConnectionId,
    channel: EventChannel,
    has_immediate: bool,
    established: bool,
    items: VecDeque<Item>,
    flying: VecDeque<Flying>,
    /// Bytes in both.
    under_way: u64,
    /// The peer hears at once that data flows.
    greet: bool,
    /// The last request that is done, of those that are signalled.
    done: u32,
    stands: Standstill,
    taken: Taken,
    /// Buffers that are to be posted again: many at a time, and after what goes out, since nothing waits for them. The peer has
    /// that many fewer, which is a small part of [`BUFFERS`].
    emptied: Vec<Received>,
    polls: u32,
    begun: Instant,
    looked: Instant,
    down: Option<String>,
    told: bool,
}

impl Out {
    /// Writes a piece of a ring where it belongs in the mirror, and tells of it. False if there is no room.
    fn piece(
        &mut self,
        source: &Source,
        data: Data,
        by_number: bool,
        last: bool,
    ) -> Result<bool, String> {
        debug_assert_eq!(source.offset, data.position % source.capacity);
        let write = |offset, length: u64| Write {
            source: &source.region,
            offset,
            length: length as u32,
            remote_offset: offset,
            remote_key: source.key,
        };
        let length = u64::from(data.length);
        let first = source.capacity - source.offset;
        if length <= first {
            let writes = [write(source.offset, length)];
            return self.written(&writes, data, by_number, last);
        }
        let writes = [write(source.offset, first), write(0, length - first)];
        self.written(&writes, data, by_number, last)
    }

    fn written(
        &mut self,
        writes: &[Write<'_>],
        data: Data,
        by_number: bool,
        last: bool,
    ) -> Result<bool, String> {
        if by_number {
            let number = (data.slot << 16) | (data.length / 8);
            return self.post(writes, Notice::Immediate(number), last);
        }
        let chunk = Chunk {
            data: Some(data),
            control: None,
        };
        self.message(writes, Some(&chunk), last)
    }

    /// Without a chunk: credit alone.
    fn message(
        &mut self,
        writes: &[Write<'_>],
        chunk: Option<&Chunk>,
        last: bool,
    ) -> Result<bool, String> {
        if writes.len() + 1 > self.pair.room() as usize {
            return Ok(false);
        }
        let credit = self.credit.tell();
        let mut message = [0; MESSAGE];
        message[..CREDIT].copy_from_slice(&credit);
        let mut length = CREDIT;
        if let Some(chunk) = chunk {
            message[CREDIT..].copy_from_slice(&chunk.encode());
            length = MESSAGE;
        }
        self.post(writes, Notice::Send(&message[..length]), last)
    }

    fn repost(&mut self, emptied: &mut Vec<Received>) -> Result<(), String> {
        let count = emptied.len() as u32;
        (self.pair.repost_all(emptied)).map_err(|error| error.to_string())?;
        self.credit.reposted = self.credit.reposted.wrapping_add(count);
        Ok(())
    }

    fn post(
        &mut self,
        writes: &[Write<'_>],
        notice: Notice<'_>,
        last: bool,
    ) -> Result<bool, String> {
        let reads = !writes.is_empty() && !self.pair.copies(writes);
        // What only copies has nothing to give back.
        let owed = reads || self.reads.wrapping_sub(self.pair.signalled()).cast_signed() > 0;
        if !owed {
            self.reads = self.pair.signalled(); // so that it never lags by half of all numbers
        }
        let signalled = (last && owed) || std::mem::take(&mut self.probe);
        match self.pair.post(writes, notice, signalled) {
            Ok(Some(number)) => {
                self.posted = number;
                if reads {
                    self.reads = number;
                }
                self.credit.used = self.credit.used.wrapping_add(1);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl VerbsLink {
    /// What a connection needs before it is established. Its events come from `channel`, and no others do.
    pub(crate) fn prepare(channel: EventChannel, id: ConnectionId) -> rdma::error::Result<Self> {
        let device = Device::of(&id)?;
        let domain = ProtectionDomain::new(&id)?;
        let queue = CompletionQueue::new(&id, LIMITS.sends + LIMITS.receives + 2)?;
        let make = |limits| QueuePair::new(&id, &domain, &queue, &queue, limits);
        let pair = make(LIMITS).or_else(|error| match error.errno() {
            // Some devices copy less.
            Some(libc::EINVAL | libc::ENOMEM) => make(Limits {
                inline: MESSAGE as u32,
                ..LIMITS
            }),
            _ => Err(error),
        })?;
        let now = Instant::now();
        Ok(VerbsLink {
            out: Out {
                pair,
                credit: Credit::default(),
                posted: 0,
                reads: 0,
                probe: true,
            },
            queue,
            sources: Vec::new(),
            mirrors: BySlot::default(),
            detached: VecDeque::new(),
            mirrored: Mirrored::default(),
            domain,
            has_immediate: device.has_immediate(),
            device,
            id,
            channel,
            established: false,
            items: VecDeque::new(),
            flying: VecDeque::new(),
            under_way: 0,
            greet: true,
            done: 0,
            stands: Standstill::default(),
            taken: Taken::default(),
            emptied: Vec::new(),
            polls: 0,
            begun: now,
            looked: now,
            down: None,
            told: false,
        })
    }

    /// Asks the other side, and shows it `token`.
    pub(crate) fn connect(&self, token: Token) -> rdma::error::Result<()> {
        self.id.connect(&token.0)
    }

    /// Agrees to what the other side asked.
    pub(crate) fn accept(&self) -> rdma::error::Result<()> {
        self.id.accept(&[])
    }

    /// Looks whether data can flow. None: not yet.
    pub(crate) fn is_established(&mut self) -> Option<Result<(), String>> {
        self.look(Instant::now());
        match (&self.down, self.established) {
            (Some(why), _) => Some(Err(why.clone())),
            (None, true) => Some(Ok(())),
            (None, false) => None,
        }
    }

    /// From now on as over a device without immediate data.
    #[cfg(any(test, feature = "sim"))]
    pub fn send_messages_only(&mut self) {
        self.has_immediate = false;
    }

    /// Has whatever comes next wake who waits for the [`fds`](Self::fds). To be followed by a poll, since what came before does not.
    pub(super) fn arm(&mut self) {
        let armed = self.queue.take_wakeups().and_then(|_| self.queue.arm());
        if let Err(error) = armed {
            self.fail(error.to_string());
        }
        self.look(Instant::now());
    }

    /// Readable when there is something to poll for.
    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.queue.fd(), self.channel.fd(), self.device.async_fd()]
    }

    /// True if nothing is posted whose end would wake.
    pub(super) fn is_idle(&self) -> bool {
        self.out.pair.signalled() == self.done && self.items.is_empty()
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.down.get_or_insert_with(|| why.into());
    }

    fn register(&self, ring: &Region, access: Access) -> Result<rdma::Region, String> {
        // Once, not as it is mapped, twice in a row: else it would be pinned and counted twice.
        let length = ring.capacity() as usize;
        let address = NonNull::new(ring.at(0, length)).ok_or("a ring without memory")?;
        let owner = Box::new(ring.clone());
        // SAFETY: a ring's data area, mapped as long as its region lives. Rings are only touched by raw accesses.
        unsafe { rdma::Region::register(&self.domain, address, length, access, owner) }
            .map_err(|error| error.to_string())
    }

    /// The events that come once in a connection's life, and deadlines.
    #[cold]
    fn look(&mut self, now: Instant) {
        self.looked = now;
        let mut fds = [self.channel.fd(), self.device.async_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let any = poll(&mut fds, PollTimeout::ZERO);
        let [events, asyncs] = fds.map(|fd| any.is_err() || fd.any().unwrap_or(true));
        let taken = match events {
            true => self.take_events(),
            false => Ok(()),
        };
        let taken = taken.and_then(|()| match asyncs {
            true => self.take_async_events(),
            false => Ok(()),
        });
        if let Err(error) = taken {
            self.fail(error.to_string());
        }
        // Whichever link was told.
        if let Some(failure) = self.device.failure() {
            self.fail(format!("the RDMA device says: {failure}"));
        }
        self.look_at_deadlines(now);
    }

    fn take_events(&mut self) -> rdma::error::Result<()> {
        while let Some(event) = self.channel.next_event()? {
            self.happened(event.kind);
        }
        Ok(())
    }

    fn take_async_events(&mut self) -> rdma::error::Result<()> {
        while let Some(event) = self.device.next_async_event()? {
            // Another link's queue pair fails what was posted there, so that one learns of it.
            if event.fatal && event.queue_pair == Some(self.out.pair.number()) {
                self.fail(format!("the RDMA device says: {}", event.text));
            }
        }
        Ok(())
    }

    fn look_at_deadlines(&mut self, now: Instant) {
        if !self.established && now - self.begun > ESTABLISHED {
            self.fail("the RDMA connection was not established in time");
        }
        self.out.probe = true;
        if self
            .stands
            .for_long(self.out.pair.signalled(), self.done, now)
        {
            self.fail(format!(
                "the RDMA device has done nothing for {STANDSTILL:?}"
            ));
        }
        while self
            .detached
            .front()
            .is_some_and(|(since, _)| now - *since > DETACHED)
        {
            self.forget_detached();
        }
    }

    fn happened(&mut self, event: EventKind) {
        match event {
            EventKind::Established => self.established = true,
            EventKind::Rejected => self.fail("the peer refuses the RDMA connection"),
            EventKind::Disconnected => self.fail("the peer has ended the RDMA connection"),
            EventKind::DeviceRemoved => self.fail("the RDMA device goes away"),
            EventKind::Failed(why) => self.fail(format!("the RDMA connection failed: {why}")),
            EventKind::AddressResolved
            | EventKind::RouteResolved
            | EventKind::ConnectRequest(_)
            | EventKind::TimewaitExit => {}
        }
    }

    /// Posts the next piece of the first item. False if there is none, or no room for it.
    fn post_item(&mut self) -> Result<bool, String> {
        let last = self.items.len() == 1;
        let (slot, from, to) = match self.items.front() {
            Some(&Item::Data { slot, from, to }) => (slot, from, to),
            Some(Item::Control(control)) => {
                let chunk = Chunk {
                    data: None,
                    control: Some(*control),
                };
                let posted = self.out.message(&[], Some(&chunk), last)?;
                if posted {
                    self.items.pop_front();
                }
                return Ok(posted);
            }
            None => return Ok(false),
        };
        let to_here = self.post_piece(slot, from, to, last)?;
        match self.items.front_mut() {
            Some(Item::Data { from, to, .. }) if to_here < *to => *from = to_here,
            _ => drop(self.items.pop_front()),
        }
        Ok(to_here > from)
    }

    /// Posts [from, to) of a ring, or the first piece of it: up to where. To nowhere, if there is no room.
    #[inline]
    fn post_piece(&mut self, slot: u32, from: u64, to: u64, last: bool) -> Result<u64, String> {
        let Some(Some(source)) = self.sources.get_mut(slot as usize) else {
            return Err(format!("slot {slot} was detached with bytes under way"));
        };
        if !source.begun {
            source.offset = from % source.capacity;
        }
        let by_number = self.has_immediate
            && source.begun
            && slot <= u32::from(u16::MAX)
            && (to - from).is_multiple_of(8);
        let longest = if by_number { PIECE } else { MAX_CHUNK };
        let length = (to - from).min(longest as u64);
        let data = Data {
            slot,
            epoch: source.epoch,
            position: from,
            length: length as u32,
        };
        let to_here = from + length;
        if !(self.out).piece(source, data, by_number, last && to_here == to)? {
            return Ok(from);
        }
        source.begun = true;
        source.offset += length;
        if source.offset >= source.capacity {
            source.offset -= source.capacity;
        }
        self.flying.push_back(Flying {
            number: (self.out.reads == self.out.posted).then_some(self.out.posted),
            slot,
            to: to_here,
            length,
        });
        Ok(to_here)
    }

    /// Posts at once what was accepted while nothing else waits. Up to where.
    #[inline]
    fn post_now(&mut self, slot: u32, from: u64, to: u64) -> u64 {
        if self.greet || !self.items.is_empty() || self.out.credit.available() <= 1 {
            return from; // the greeting is the first, and waits for the connection
        }
        self.post_piece(slot, from, to, true).unwrap_or_else(|why| {
            self.fail(why);
            from
        })
    }

    /// Posts what there is credit and room for.
    fn post_all(&mut self) -> Result<(), String> {
        if self.greet && self.out.credit.available() > 0 && self.out.message(&[], None, true)? {
            self.greet = false;
        }
        while self.out.credit.available() > 1 && self.post_item()? {}
        if self.emptied.len() >= QueuePair::REPOSTED {
            self.out.repost(&mut self.emptied)?;
        }
        if self.out.credit.untold() >= BUFFERS / 2 && self.out.credit.available() > 0 {
            self.out.message(&[], None, true)?;
        }
        Ok(())
    }

    /// Requests up to `number` are done.
    fn sent(&mut self, number: u32) {
        self.out.pair.done(number);
        self.done = number;
    }

    /// Tells what is read no more.
    fn tell_done(&mut self, events: &mut Vec<Event>) {
        let done = self.done;
        let is_done = |number: u32| done.wrapping_sub(number).cast_signed() >= 0;
        while let Some(first) = self.flying.front()
            && first.number.is_none_or(is_done)
        {
            let Flying {
                slot, to, length, ..
            } = *first;
            self.flying.pop_front();
            self.under_way -= length;
            let source = self.sources.get(slot as usize).and_then(Option::as_ref);
            if source.is_some_and(|source| source.detached) {
                self.give_back(slot);
            }
            match events.last_mut() {
                Some(Event::SourceDone {
                    slot: last,
                    to: up_to,
                }) if *last == slot => *up_to = to,
                _ => events.push(Event::SourceDone { slot, to }),
            }
        }
    }

    /// A notice has come. Returns of how many bytes.
    fn received(&mut self, received: Received, events: &mut Vec<Event>) -> Result<usize, String> {
        // The other side's RTU may be late, or lost.
        self.established = true;
        let taken = match received.immediate {
            Some(number) => {
                let (slot, length) = (number >> 16, u64::from(number as u16) * 8);
                self.arrived(slot, None, length, events)
                    .map(|()| length as usize)
            }
            None => self.message(&received, events),
        };
        self.emptied.push(received);
        taken
    }

    /// The same for a message.
    fn message(&mut self, received: &Received, events: &mut Vec<Event>) -> Result<usize, String> {
        let mut message = [0; MESSAGE];
        let bytes = self.out.pair.bytes(received);
        let length = bytes.len();
        message[..length.min(MESSAGE)].copy_from_slice(&bytes[..length.min(MESSAGE)]);
        let (credit, header) = message.split_at(CREDIT);
        let credit = credit.try_into().expect("it is so long");
        if length == CREDIT || length == MESSAGE {
            self.out.credit.grant(u32::from_le_bytes(credit))?;
        }
        match length {
            CREDIT => Ok(length),
            MESSAGE => {
                let header = header.try_into().expect("it is so long");
                let chunk = Chunk::decode(header).map_err(|e| e.to_string())?;
                if let Some(data) = &chunk.data {
                    let length = u64::from(data.length);
                    self.arrived(data.slot, Some(data), length, events)?;
                }
                events.extend(chunk.control.map(Event::Remote));
                Ok(length + chunk.data.map_or(0, |data| data.length as usize))
            }
            _ => Err(format!("a message of {length} bytes")),
        }
    }

    /// Bytes were written to a mirror: behind the ones before, or where a message says.
    fn arrived(
        &mut self,
        slot: u32,
        told: Option<&Data>,
        length: u64,
        events: &mut Vec<Event>,
    ) -> Result<(), String> {
        let Some(mirror) = self.mirrors.get_mut(&slot) else {
            return Err(format!("bytes for slot {slot}, which is not open"));
        };
        if told.is_some_and(|data| data.epoch != mirror.epoch) {
            return Err(format!("bytes for slot {slot} in another epoch"));
        }
        if told.is_none() && !mirror.begun {
            return Err(format!(
                "bytes for slot {slot}, without saying in what epoch"
            ));
        }
        mirror.begun = true;
        if mirror.detached {
            return Ok(());
        }
        let from = told.map_or(mirror.next, |data| data.position);
        let to = from.saturating_add(length);
        if from != mirror.next || to > mirror.room || length == 0 {
            return Err(format!(
                "bytes [{from}, {to}) for slot {slot}, where [{}, {}) is free",
                mirror.next, mirror.room
            ));
        }
        mirror.next = to;
        match events.last_mut() {
            Some(Event::Arrived {
                slot: last,
                to: up_to,
            }) if *last == slot => *up_to = to,
            _ => events.push(Event::Arrived { slot, to }),
        }
        Ok(())
    }

    /// Gives back the memory of the mirror that was detached first.
    fn forget_detached(&mut self) {
        if let Some((_, slot)) = self.detached.pop_front()
            && let Some(region) = self.mirrors.get_mut(&slot).and_then(|m| m.region.take())
        {
            let length = region.length() as u64;
            self.mirrored.detached = self.mirrored.detached.saturating_sub(length);
        }
    }

    /// Gives back the memory of a detached source, unless the device may still read it. Slots are never used twice.
    fn give_back(&mut self, slot: u32) {
        let waits = |item: &Item| matches!(item, Item::Data { slot: other, .. } if *other == slot);
        let is_read =
            self.flying.iter().any(|flying| flying.slot == slot) || self.items.iter().any(waits);
        if let Some(source) = self.sources.get_mut(slot as usize)
            && !is_read
            && source.as_ref().is_some_and(|source| source.detached)
        {
            *source = None;
        }
    }

    /// Why nothing that is posted will be done any more.
    fn failed(&mut self, status: &rdma::Status) {
        // Who ended it says why, if it was not this side; a flush does not.
        self.look(Instant::now());
        self.fail(match status.is_flush() {
            true => "the RDMA connection has ended".to_owned(),
            false => format!("the RDMA device: {status}"),
        });
    }
}

impl Link for VerbsLink {
    fn attach_source(
        &mut self,
        slot: u32,
        ring: Region,
        epoch: u64,
        remote: Remote,
    ) -> Result<(), String> {
        let source = Source {
            region: self.register(&ring, Access::Source)?,
            capacity: ring.capacity(),
            epoch,
            key: remote.1,
            next: 0,
            offset: 0,
            begun: false,
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
        let region = self.register(&ring, Access::Mirror)?;
        let remote = (0, region.remote_key());
        let mirror = Mirror {
            region: Some(region),
            epoch,
            next: tail,
            room,
            begun: false,
            detached: false,
        };
        self.mirrors.insert(slot, mirror);
        self.mirrored.attach(ring.capacity());
        Ok(remote)
    }

    fn set_room(&mut self, slot: u32, room: u64) {
        if let Some(mirror) = self.mirrors.get_mut(&slot) {
            mirror.room = mirror.room.max(room);
        }
    }

    fn detach_source(&mut self, slot: u32) {
        if let Some(Some(source)) = self.sources.get_mut(slot as usize) {
            source.detached = true;
            self.give_back(slot);
        }
    }

    fn detach_mirror(&mut self, slot: u32) {
        // What is under way must find its memory, or the link fails and with it all other rings.
        if let Some(mirror) = self.mirrors.get_mut(&slot)
            && !std::mem::replace(&mut mirror.detached, true)
            && let Some(region) = &mirror.region
        {
            self.mirrored.detach(region.length() as u64);
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
        let Some(Some(source)) = self.sources.get_mut(slot as usize) else {
            return false;
        };
        // By order alone is known where bytes belong.
        debug_assert!(!source.begun || source.next == from);
        debug_assert!(!source.detached);
        source.next = to;
        self.under_way += to - from;
        let from = self.post_now(slot, from, to);
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
        if self.down.is_none()
            && self.established
            && let Err(why) = self.post_all()
        {
            self.fail(why);
        }
    }

    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool {
        let mut taken = 0;
        while self.down.is_none() && taken < budget {
            let polled = self.queue.take(&mut self.taken);
            while let Some(done) = self.queue.next(&mut self.taken) {
                match done.outcome {
                    _ if self.down.is_some() => {}
                    Outcome::Sent(number) => self.sent(number),
                    Outcome::Received(received) => match self.received(received, events) {
                        // Each costs time, however little it brings.
                        Ok(bytes) => taken += bytes.max(NOTICE),
                        Err(why) => self.fail(why),
                    },
                    Outcome::Failed(status) => self.failed(&status),
                    Outcome::SendsDrained | Outcome::ReceivesDrained => {}
                }
            }
            match polled {
                Ok(CompletionQueue::AT_ONCE) => {}
                Ok(_) => break,
                Err(error) => self.fail(error.to_string()),
            }
        }
        self.polls = self.polls.wrapping_add(1);
        let tells =
            taken == 0 || self.polls.is_multiple_of(BUSY_POLLS) || self.under_way >= UNDER_WAY / 2;
        if self.down.is_none() && tells {
            self.tell_done(events);
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
        ACK_DELAY_RDMA // it is a message of its own, always
    }

    fn quiesce(mut self) -> Quiesced {
        // So that the peer need not find out by silence. It also fails what is posted.
        if self.established
            && let Err(error) = self.id.disconnect()
        {
            warn!("the peer is not told that an RDMA connection ends: {error}");
        }
        match self.out.pair.drain(DRAIN, |_| {}) {
            Ok(true) => {}
            Ok(false) => warn!("the RDMA device has not given everything back within {DRAIN:?}"),
            Err(error) => warn!("an RDMA queue pair is not drained: {error}"),
        }
        if let Err(error) = self.out.pair.destroy()
            && !is_gone(&error)
        {
            // Its peer may go on writing, whatever is resumed: rings would be damaged in silence.
            error!("an RDMA queue pair cannot be destroyed, so this process ends: {error}");
            std::process::abort();
        }
        for (slot, mirror) in self.mirrors.into_all() {
            let ended = mirror.region.map(rdma::Region::deregister);
            if let Some(Err(error)) = ended
                && !is_gone(&error)
            {
                warn!(slot, "a mirror's memory stays registered: {error}");
            }
        }
        Quiesced::ended()
    }
}

/// True if the device is, and with it all that it had.
fn is_gone(error: &rdma::Error) -> bool {
    matches!(error.errno(), Some(libc::EIO | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_that_cannot_be() {
        let mut credit = Credit {
            used: 10,
            granted: 4,
            ..Credit::default()
        };
        assert_eq!(credit.available(), BUFFERS - 6);
        assert!(credit.grant(3).is_err(), "less than before");
        assert!(credit.grant(11).is_err(), "more than was used");
        credit.grant(10).unwrap();
        assert_eq!(credit.available(), BUFFERS);
    }

    #[test]
    fn a_device_that_stands_still() {
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let mut stands = Standstill::default();
        // Nothing to do for a long time is none.
        assert!(!stands.for_long(7, 7, at(0)));
        assert!(!stands.for_long(7, 7, at(9000)));
        assert!(!stands.for_long(9, 7, at(9001)));
        assert!(!stands.for_long(9, 7, at(11_000)));
        // Slow is not still.
        assert!(!stands.for_long(9, 8, at(11_400)));
        assert!(!stands.for_long(12, 8, at(13_900)));
        assert!(stands.for_long(12, 8, at(13_901)));
        assert!(!stands.for_long(12, 12, at(13_902)));
    }

    #[test]
    fn credit_comes_around() {
        let mut credit = Credit {
            used: 5,
            granted: u32::MAX - 2,
            reposted: 1,
            told: u32::MAX,
        };
        assert_eq!((credit.available(), credit.untold()), (BUFFERS - 8, 2));
        credit.grant(3).unwrap();
        assert_eq!(credit.available(), BUFFERS - 2);
        assert_eq!(credit.tell(), 1u32.to_le_bytes());
        assert_eq!(credit.untold(), 0);
    }
}
