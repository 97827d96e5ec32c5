//! TCP: the kernel copies from ring to socket and from socket to ring; nothing is staged in between.
//!
//! What is accepted for sending is a list of chunks, each a header and a range of a ring, and goes out as one gathering
//! write as often as the socket takes it: many messages a system call when there are many, and no delay for a single one.
//! A read puts the rest of the present chunk where it belongs in the mirror and the next header into a buffer.

use super::{Event, Link, Quiesced, Remote};
use crate::BySlot;
use crate::link::socket::{Gather, MAX_GATHER, Scatter, Socket, copy_in, copy_out};
use crate::wire::{CHUNK_HEADER, Chunk, Control, Data, Frame, MAX_CHUNK, Token};
use std::collections::VecDeque;
use std::io;
use tbus::Region;

/// More than this many bytes are not accepted for sending: what waits in the ring instead goes out in larger chunks.
const QUEUE: usize = 1 << 20;
/// The longest chunk that is read in advance.
const MAX_EXPECTED: usize = 4096;

/// A chunk that is to go out.
#[derive(Debug)]
struct Queued {
    chunk: Chunk,
    /// As of the last attempt to send it.
    header: [u8; CHUNK_HEADER],
}

impl Queued {
    fn length(&self) -> usize {
        CHUNK_HEADER + self.chunk.data.map_or(0, |data| data.length as usize)
    }
}

#[derive(Debug)]
struct Source {
    region: Region,
    epoch: u64,
}

#[derive(Debug)]
struct Mirror {
    /// None: what comes is dropped. The link may live on for long, so the memory does not wait for its end.
    region: Option<Region>,
    epoch: u64,
    /// Where the next byte belongs.
    next: u64,
    /// Bytes may land below.
    room: u64,
}

/// The chunk that is being read.
#[derive(Clone, Copy, Debug)]
struct Current {
    slot: u32,
    left: usize,
}

/// See the module.
#[derive(Debug)]
pub struct TcpLink {
    socket: Socket,
    /// The ATTACH of who connected, as far as it is not sent.
    greeting: Vec<u8>,
    /// By slot: our own numbers, which are given out from 0 on.
    sources: Vec<Option<Source>>,
    mirrors: BySlot<Mirror>,
    queue: VecDeque<Queued>,
    queued: usize,
    /// Bytes of the first chunk in the queue that are sent.
    begun: usize,
    done: Vec<(u32, u64)>,
    header: [u8; CHUNK_HEADER],
    header_length: usize,
    current: Option<Current>,
    /// Slot and length of the last chunk; and of the next one, if the last two were alike.
    last: Option<(u32, usize)>,
    expected: Option<(u32, usize)>,
    /// What came behind an expected chunk.
    behind: [u8; CHUNK_HEADER],
    /// Bytes that came in the place of what was expected, or behind it.
    surplus: Vec<u8>,
    /// Where bytes go that nobody wants.
    scrap: Vec<u8>,
    down: Option<String>,
    told: bool,
}

impl TcpLink {
    /// A link over a connection that was greeted.
    pub(crate) fn accepted(socket: Socket) -> TcpLink {
        TcpLink {
            socket,
            greeting: Vec::new(),
            sources: Vec::new(),
            mirrors: BySlot::default(),
            queue: VecDeque::new(),
            queued: 0,
            begun: 0,
            done: Vec::new(),
            header: [0; CHUNK_HEADER],
            header_length: 0,
            current: None,
            last: None,
            expected: None,
            behind: [0; CHUNK_HEADER],
            surplus: Vec::new(),
            scrap: Vec::new(),
            down: None,
            told: false,
        }
    }

    /// A link over a connection that is being made; shows `token` first.
    pub(crate) fn connecting(socket: Socket, token: Token) -> TcpLink {
        let mut link = Self::accepted(socket);
        Frame::Attach(token).encode(&mut link.greeting);
        link
    }

    /// The socket, for waiting.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.down.get_or_insert_with(|| why.into());
    }

    fn push(&mut self, chunk: Chunk) {
        let queued = Queued {
            chunk,
            header: [0; CHUNK_HEADER],
        };
        self.queued += queued.length();
        self.queue.push_back(queued);
    }

    /// The last chunk in the queue, if none of it is sent yet.
    fn open_chunk(&mut self) -> Option<&mut Queued> {
        if self.queue.len() == 1 && self.begun > 0 {
            return None;
        }
        self.queue.back_mut()
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.greeting.is_empty() {
            let n = self.socket.send(&self.greeting)?;
            self.greeting.drain(..n);
        }
        while !self.queue.is_empty() {
            let mut gather = Gather::default();
            let mut wanted = 0;
            let mut skip = self.begun;
            for queued in self.queue.iter_mut().take(MAX_GATHER / 2) {
                queued.header = queued.chunk.encode();
                let queued = &*queued;
                let header = &queued.header[skip.min(CHUNK_HEADER)..];
                gather.bytes(header);
                wanted += header.len();
                skip = skip.saturating_sub(CHUNK_HEADER);
                if let Some(data) = queued.chunk.data {
                    let (at, left) = (data.position + skip as u64, data.length as usize - skip);
                    if let Some(source) = self.sources[data.slot as usize].as_ref() {
                        gather.ring(&source.region, at, left);
                    }
                    wanted += left;
                }
                skip = 0;
            }
            let sent = self.socket.send_gather(&gather)?;
            self.account(sent);
            if sent < wanted {
                break;
            }
        }
        Ok(())
    }

    /// Takes `sent` bytes off the queue.
    fn account(&mut self, sent: usize) {
        self.queued -= sent;
        self.begun += sent;
        while let Some(first) = self.queue.front()
            && self.begun >= first.length()
        {
            self.begun -= first.length();
            if let Some(data) = first.chunk.data {
                let end = data.position + u64::from(data.length);
                match self.done.last_mut() {
                    Some((slot, to)) if *slot == data.slot => *to = end,
                    _ => self.done.push((data.slot, end)),
                }
            }
            self.queue.pop_front();
        }
    }

    /// Reads once. True if the socket may have more.
    fn read(&mut self, events: &mut Vec<Event>, taken: &mut usize) -> io::Result<bool> {
        if self.current.is_none() && self.header_length == 0 {
            return self.read_header(events, taken);
        }
        let mut scatter = Scatter::default();
        let mut wanted = CHUNK_HEADER - self.header_length;
        if let Some(current) = self.current {
            let mirror = self.mirrors.get(&current.slot);
            match mirror.and_then(|mirror| Some((mirror.region.as_ref()?, mirror.next))) {
                Some((region, next)) => scatter.ring(region, next, current.left),
                None => {
                    self.scrap.resize(MAX_CHUNK, 0);
                    scatter.bytes(&mut self.scrap[..current.left]);
                }
            }
            wanted += current.left;
        }
        scatter.bytes(&mut self.header[self.header_length..]);
        let got = self.socket.receive_scatter(&scatter)?;
        *taken += got;
        let landed = self.landed(got, events);
        self.header_length += got - landed;
        if self.header_length == CHUNK_HEADER {
            self.chunk(events)?;
            return Ok(true);
        }
        Ok(got == wanted)
    }

    /// Reads a header. When the last chunks were alike, the bytes of another such one are read along with it, to where they
    /// belong if it is: a single message then takes one system call. That there was room for more shows that nothing
    /// more is there, so the message is not kept waiting for another look.
    fn read_header(&mut self, events: &mut Vec<Event>, taken: &mut usize) -> io::Result<bool> {
        let mut scatter = Scatter::default();
        scatter.bytes(&mut self.header);
        let mut wanted = CHUNK_HEADER;
        let expected = self.expected.and_then(|(slot, length)| {
            let mirror = self.mirrors.get(&slot)?;
            let region = mirror.region.as_ref()?;
            let has_room = mirror.room.saturating_sub(mirror.next) >= length as u64;
            has_room.then_some((slot, length, mirror.next, region))
        });
        if let Some((_, length, next, region)) = expected {
            scatter.ring(region, next, length);
            scatter.bytes(&mut self.behind);
            wanted += length + CHUNK_HEADER;
        }
        let got = self.socket.receive_scatter(&scatter)?;
        *taken += got;
        let expected = expected.map(|(slot, length, next, _)| (slot, length, next));
        self.header_length = got.min(CHUNK_HEADER);
        if self.header_length < CHUNK_HEADER {
            return Ok(false);
        }
        self.chunk(events)?;
        let Some((slot, length, position)) = expected else {
            return Ok(true);
        };
        let in_ring = (got - CHUNK_HEADER).min(length);
        let landed = match self.current {
            Some(current) if current.slot == slot => self.landed(in_ring, events),
            _ => 0,
        };
        // The rest is the beginning of what follows.
        let behind = got - CHUNK_HEADER - in_ring;
        if landed < in_ring || behind > 0 {
            self.surplus.resize(in_ring - landed, 0);
            let mirror = self.mirrors.get(&slot);
            if let Some(region) = mirror.and_then(|mirror| mirror.region.as_ref()) {
                copy_out(region, position + landed as u64, &mut self.surplus);
            }
            self.surplus.extend_from_slice(&self.behind[..behind]);
            self.take_surplus(events)?;
        }
        Ok(got == wanted)
    }

    /// Up to `got` bytes of the present chunk are where they belong. Returns how many those were.
    fn landed(&mut self, got: usize, events: &mut Vec<Event>) -> usize {
        let Some(current) = &mut self.current else {
            return 0;
        };
        let landed = got.min(current.left);
        current.left -= landed;
        let slot = current.slot;
        if current.left == 0 {
            self.current = None;
        }
        if landed > 0
            && let Some(mirror) = self.mirrors.get_mut(&slot).filter(|m| m.region.is_some())
        {
            mirror.next += landed as u64;
            let to = mirror.next;
            match events.last_mut() {
                Some(Event::Arrived {
                    slot: last,
                    to: up_to,
                }) if *last == slot => *up_to = to,
                _ => events.push(Event::Arrived { slot, to }),
            }
        }
        landed
    }

    /// Puts bytes where they belong that were read to where something else was expected. A few at the most, and seldom.
    fn take_surplus(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let surplus = std::mem::take(&mut self.surplus);
        let mut rest = &surplus[..];
        while !rest.is_empty() {
            if let Some(current) = self.current {
                let (bytes, after) = rest.split_at(rest.len().min(current.left));
                if let Some(mirror) = self.mirrors.get(&current.slot)
                    && let Some(region) = &mirror.region
                {
                    copy_in(region, mirror.next, bytes);
                }
                self.landed(bytes.len(), events);
                rest = after;
                continue;
            }
            let missing = CHUNK_HEADER - self.header_length;
            let (bytes, after) = rest.split_at(rest.len().min(missing));
            self.header[self.header_length..][..bytes.len()].copy_from_slice(bytes);
            self.header_length += bytes.len();
            rest = after;
            if self.header_length == CHUNK_HEADER {
                self.chunk(events)?;
            }
        }
        self.surplus = surplus;
        Ok(())
    }

    /// A header is complete.
    fn chunk(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        self.header_length = 0;
        let bad = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        let chunk = Chunk::decode(&self.header)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if let Some(control) = chunk.control {
            events.push(Event::Remote(control));
        }
        let Some(data) = chunk.data else {
            return Ok(());
        };
        let Data {
            slot,
            epoch,
            position,
            length,
        } = data;
        let Some(mirror) = self.mirrors.get(&slot) else {
            return bad(format!("bytes for slot {slot}, which is not open"));
        };
        if mirror.epoch != epoch {
            return bad(format!("bytes for slot {slot} in another epoch"));
        }
        let end = position + u64::from(length);
        if mirror.region.is_some() && (position != mirror.next || end > mirror.room) {
            return bad(format!(
                "bytes [{position}, {end}) for slot {slot}, where [{}, {}) is free",
                mirror.next, mirror.room
            ));
        }
        let length = length as usize;
        self.expected = match self.last == Some((slot, length)) && length <= MAX_EXPECTED {
            true => self.last,
            false => None,
        };
        self.last = Some((slot, length));
        self.current = Some(Current { slot, left: length });
        Ok(())
    }
}

impl Link for TcpLink {
    fn attach_source(
        &mut self,
        slot: u32,
        region: Region,
        epoch: u64,
        _remote: Remote,
    ) -> Result<(), String> {
        let index = slot as usize;
        if index >= self.sources.len() {
            self.sources.resize_with(index + 1, || None);
        }
        self.sources[index] = Some(Source { region, epoch });
        Ok(())
    }

    fn attach_mirror(
        &mut self,
        slot: u32,
        region: Region,
        epoch: u64,
        tail: u64,
        room: u64,
    ) -> Result<Remote, String> {
        let mirror = Mirror {
            region: Some(region),
            epoch,
            next: tail,
            room,
        };
        self.mirrors.insert(slot, mirror);
        Ok((0, 0))
    }

    fn set_room(&mut self, slot: u32, room: u64) {
        if let Some(mirror) = self.mirrors.get_mut(&slot) {
            mirror.room = mirror.room.max(room);
        }
    }

    fn detach_source(&mut self, slot: u32) {
        // Chunks of it may be in the queue: then it stays until the link ends. Slots are never used twice.
        let is_of = |queued: &Queued| queued.chunk.data.is_some_and(|data| data.slot == slot);
        if !self.queue.iter().any(is_of)
            && let Some(source) = self.sources.get_mut(slot as usize)
        {
            *source = None;
        }
    }

    fn detach_mirror(&mut self, slot: u32) {
        if let Some(mirror) = self.mirrors.get_mut(&slot) {
            mirror.region = None;
        }
    }

    fn append(&mut self, slot: u32, from: u64, to: u64) -> bool {
        if self.queued >= QUEUE || self.down.is_some() {
            return false;
        }
        let Some(Some(source)) = self.sources.get(slot as usize) else {
            return false;
        };
        let epoch = source.epoch;
        let mut at = from;
        if let Some(Queued {
            chunk: Chunk {
                data: Some(data), ..
            },
            ..
        }) = self.open_chunk()
            && data.slot == slot
            && data.position + u64::from(data.length) == from
        {
            let more = (to - from).min((MAX_CHUNK - data.length as usize) as u64);
            data.length += more as u32;
            self.queued += more as usize;
            at += more;
        }
        while at < to {
            let length = (to - at).min(MAX_CHUNK as u64) as u32;
            self.push(Chunk {
                data: Some(Data {
                    slot,
                    epoch,
                    position: at,
                    length,
                }),
                control: None,
            });
            at += u64::from(length);
        }
        true
    }

    fn control(&mut self, control: Control) {
        // It rides on data that goes out anyway, if there is some without a rider.
        if let Some(Queued { chunk, .. }) = self.open_chunk()
            && chunk.control.is_none()
        {
            chunk.control = Some(control);
            return;
        }
        self.push(Chunk {
            data: None,
            control: Some(control),
        });
    }

    fn kick(&mut self) {
        if self.down.is_some() || (self.queue.is_empty() && self.greeting.is_empty()) {
            return;
        }
        match self.write() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => self.fail(format!("sending failed: {e}")),
            Ok(()) => {}
        }
    }

    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool {
        let mut taken = 0;
        while self.down.is_none() && taken < budget {
            match self.read(events, &mut taken) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => self.fail(e.to_string()),
            }
        }
        for (slot, to) in self.done.drain(..) {
            events.push(Event::SourceDone { slot, to });
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
        self.down.is_none() && !(self.queue.is_empty() && self.greeting.is_empty())
    }

    fn quiesce(self) -> Quiesced {
        // Bytes land in a mirror only while this object reads them there.
        drop(self);
        Quiesced::ended()
    }
}
