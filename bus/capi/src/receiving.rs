//! The receiving half of a handle.

use crate::codes::{self, Code};
use crate::lines::{ALL, End, FIRST, Lines};
use bus::{Bus, Hops, MESSAGES_PER_TURN, Message, ReadyFd, Receiver, TryRecvError};
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};

pub struct Receiving {
    pub lines: Lines<Receiver>,
    /// Whose turn it is among all, and how many messages it has left.
    turn: usize,
    left: u32,
    /// The addresses of the channel that was peeked at last.
    peeked: Option<(u32, u32)>,
    /// The last message: between which addresses it came, and the way back that it carried.
    last: Option<(u32, u32)>,
    hops: Hops,
    ready: Option<ReadyFd>,
    /// What the descriptor was armed with: the map's version, and how many ends were taken.
    armed: (u64, u64),
}

/// What a line has.
enum Look {
    Message,
    Nothing,
    /// Somebody else receives there.
    Busy,
    /// The channel was deleted.
    Gone,
}

impl Receiving {
    pub fn new(bus: Bus) -> Receiving {
        Receiving {
            lines: Lines::new(bus),
            turn: 0,
            left: 0,
            peeked: None,
            last: None,
            hops: Hops::default(),
            ready: None,
            armed: (0, 0),
        }
    }

    /// Copies the next message from `src` to `dst`, releases it, and fills in both.
    ///
    /// # Safety
    /// `data` is null or valid for writing `len` bytes.
    #[inline(always)]
    pub unsafe fn receive(
        &mut self,
        src: &mut u32,
        dst: &mut u32,
        data: *mut u8,
        len: &mut usize,
    ) -> Result<(), Code> {
        let Some(receiver) = self.lines.hit(*dst, *src) else {
            // SAFETY: the caller's.
            return unsafe { self.receive_elsewhere(src, dst, data, len) };
        };
        let message = match receiver.peek() {
            Ok(message) => message,
            Err(TryRecvError::Empty) if self.ready.is_none() => return Err(codes::CHANNEL_EMPTY),
            // It is told there, or there is a new ring.
            // SAFETY: the caller's.
            Err(_) => return unsafe { self.receive_elsewhere(src, dst, data, len) },
        };
        // SAFETY: the caller's.
        unsafe { take(message, data, len, &mut self.hops)? };
        self.last = Some((*dst, *src));
        self.lines.end_peek();
        Ok(())
    }

    /// # Safety
    /// `data` is null or valid for writing `len` bytes.
    #[cold]
    unsafe fn receive_elsewhere(
        &mut self,
        src: &mut u32,
        dst: &mut u32,
        data: *mut u8,
        len: &mut usize,
    ) -> Result<(), Code> {
        let at = self.choose(*dst, *src)?;
        let line = &mut self.lines.all[at];
        // SAFETY: the caller's.
        unsafe { take(chosen(&mut line.end)?, data, len, &mut self.hops)? };
        line.peeked = false;
        (*dst, *src) = (line.local, line.peer);
        self.last = Some((*dst, *src));
        self.count(at);
        Ok(())
    }

    /// Where the next message from `src` to `dst` lies, and its length; fills in both addresses.
    pub fn peek(&mut self, src: &mut u32, dst: &mut u32) -> Result<(*const u8, usize), Code> {
        let at = self.choose(*dst, *src)?;
        let line = &mut self.lines.all[at];
        let message = chosen(&mut line.end)?;
        // SAFETY: the slice is not read here, only its address is handed on.
        let data = unsafe { message.as_slice() };
        let place = (data.as_ptr(), data.len());
        message.read_hops(&mut self.hops);
        line.peeked = true;
        (*dst, *src) = (line.local, line.peer);
        self.last = Some((*dst, *src));
        self.peeked = self.last;
        Ok(place)
    }

    /// Releases the message that [`Self::peek`] showed.
    pub fn delete(&mut self, src: &mut u32, dst: &mut u32) -> Result<(), Code> {
        let wild = |address| address == FIRST || address == ALL;
        let (local, peer) = match wild(*src) || wild(*dst) {
            true => self.peeked.ok_or(codes::NO_MSG_PEEKED)?,
            false => (*dst, *src),
        };
        let Some(at) = self.lines.find(local, peer) else {
            return Err(self.lines.none(local, peer));
        };
        let line = &mut self.lines.all[at];
        if !line.peeked || !line.matches(*dst, *src) {
            return Err(codes::NO_MSG_PEEKED);
        }
        chosen(&mut line.end)?.release();
        line.peeked = false;
        (*dst, *src) = (local, peer);
        self.peeked = self.peeked.filter(|peeked| *peeked != (local, peer));
        self.count(at);
        Ok(())
    }

    /// Between which addresses the last message came: here, there.
    pub fn last(&self) -> Option<(u32, u32)> {
        self.last
    }

    /// The way back of the last message.
    pub fn way_back(&self) -> Hops {
        let mut hops = self.hops;
        if let (true, Some((_, from))) = (hops.addresses().is_empty(), self.last) {
            hops.push(bus::Address(from));
        }
        hops
    }

    /// A message was received by the turn.
    fn count(&mut self, at: usize) {
        self.lines.expect(at);
        if at == self.turn {
            self.left = self.left.saturating_sub(1);
        }
    }

    /// The line that the call means and that has a message.
    fn choose(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        loop {
            let found = match (local, peer) {
                (ALL, _) | (_, ALL) => self.next_in_turn(local, peer),
                (FIRST, _) | (_, FIRST) => self.first_with_message(local, peer),
                _ => self.exactly(local, peer),
            };
            // The map is looked at after the rings: what a newer one adds may have a message.
            match found {
                Err(codes::CHANNEL_EMPTY | codes::NO_CHANNEL | codes::CHANNEL_BUSY)
                    if self.lines.changed() =>
                {
                    self.lines.refresh()?;
                    (self.turn, self.left) = (0, 0);
                }
                Err(code) => {
                    self.rest();
                    return Err(code);
                }
                found => return found,
            }
        }
    }

    fn exactly(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        let at = self.lines.find(local, peer);
        let at = at.ok_or_else(|| self.lines.none(local, peer))?;
        match self.look(at, true)? {
            Look::Message => Ok(at),
            Look::Nothing => Err(codes::CHANNEL_EMPTY),
            Look::Busy => Err(codes::CHANNEL_BUSY),
            Look::Gone => Err(self.lines.none(local, peer)),
        }
    }

    fn first_with_message(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        let mut seen = Seen::default();
        for at in 0..self.lines.all.len() {
            if self.lines.all[at].matches(local, peer) && seen.look(self.look(at, false)?) {
                return Ok(at);
            }
        }
        Err(seen.why_none(|| self.lines.none(local, peer)))
    }

    /// Round robin, so that a busy channel does not keep the others waiting. Without a receive in between it finds the
    /// same one again.
    fn next_in_turn(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        let (count, mut seen) = (self.lines.all.len(), Seen::default());
        for step in 0..=count {
            if count == 0 {
                break;
            }
            // First the one whose turn it is, if it has some left; last the same one again, with a fresh turn.
            if step > 0 || self.left == 0 {
                self.turn = (self.turn + 1) % count;
                self.left = MESSAGES_PER_TURN;
            }
            let line = &self.lines.all[self.turn];
            if !line.matches(local, peer) {
                continue;
            }
            if line.failed.is_some() {
                seen.failed = line.failed; // which was told once
                continue;
            }
            if seen.look(self.look(self.turn, false)?) {
                return Ok(self.turn);
            }
        }
        Err(seen.why_none(|| self.lines.none(local, peer)))
    }

    fn look(&mut self, at: usize, patient: bool) -> Result<Look, Code> {
        let mut receiver = self.lines.open(at, patient);
        if let Ok(open) = &mut receiver
            && let Err(TryRecvError::Closed) = open.peek()
        {
            receiver = self.lines.reopen(at);
        }
        let receiver = match receiver {
            Ok(receiver) => receiver,
            Err(codes::CHANNEL_BUSY) => return Ok(Look::Busy),
            Err(codes::NO_CHANNEL) => return Ok(Look::Gone),
            Err(code) => {
                self.lines.all[at].failed = Some(code);
                return Err(code);
            }
        };
        match receiver.peek() {
            Ok(_) => Ok(Look::Message),
            Err(TryRecvError::Empty) => Ok(Look::Nothing),
            Err(TryRecvError::Closed) => Ok(Look::Gone), // deleted since it was taken
            Err(error) => {
                let code = error.into();
                self.lines.all[at].failed = Some(code);
                Err(code)
            }
        }
    }

    /// A descriptor that is readable while there may be messages. Takes all ends that nobody else has.
    pub fn event_fd(&mut self) -> Result<c_int, Code> {
        if self.lines.all.is_empty() {
            return Err(codes::NOT_BOUND);
        }
        if self.ready.is_none() {
            self.ready = Some(ReadyFd::new()?);
            self.armed = (0, 0);
            for at in 0..self.lines.all.len() {
                self.look(at, false)?;
            }
            self.rest();
        }
        let ready = self.ready.as_ref().expect("made above");
        Ok(ready.as_fd().as_raw_fd())
    }

    /// After a look that found nothing: the descriptor is readable again when there is news.
    fn rest(&mut self) {
        let now = (self.lines.version, self.lines.taken);
        if let Some(ready) = &self.ready
            && (ready.is_raised() || self.armed != now)
        {
            let lines = self.lines.all.iter().filter(|line| line.failed.is_none());
            let rings = lines.filter_map(|line| line.end.as_ref().map(End::ring));
            ready.arm(rings, &self.lines.bus, self.lines.version);
            self.armed = now;
        }
    }
}

/// What was seen on the way to a message.
#[derive(Default)]
struct Seen {
    open: bool,
    busy: bool,
    failed: Option<Code>,
}

impl Seen {
    /// True if it is a message.
    fn look(&mut self, look: Look) -> bool {
        match look {
            Look::Message => return true,
            Look::Nothing => self.open = true,
            Look::Busy => self.busy = true,
            Look::Gone => {}
        }
        false
    }

    fn why_none(&self, no_channel: impl FnOnce() -> Code) -> Code {
        match (self.open, self.busy) {
            (true, _) => codes::CHANNEL_EMPTY,
            (false, true) => codes::CHANNEL_BUSY,
            (false, false) => self.failed.unwrap_or_else(no_channel),
        }
    }
}

/// The message that was found a moment ago.
#[inline(always)]
fn chosen(end: &mut Option<Receiver>) -> Result<Message<'_>, Code> {
    let receiver = end.as_mut().ok_or(codes::INTERNAL)?;
    Ok(receiver.peek()?)
}

/// Copies the message and releases it, or says how long it is.
///
/// # Safety
/// `data` is null or valid for writing `len` bytes.
#[inline(always)]
unsafe fn take(
    message: Message<'_>,
    data: *mut u8,
    len: &mut usize,
    hops: &mut Hops,
) -> Result<(), Code> {
    let room = std::mem::replace(len, message.len());
    if message.len() > room {
        return Err(codes::BUFFER_TOO_SHORT);
    }
    let to = match (message.is_empty(), data.is_null()) {
        (true, _) => &mut [],
        (false, true) => return Err(codes::BAD_ARGUMENT),
        // SAFETY: not null, and valid for more by the caller's word.
        (false, false) => unsafe { std::slice::from_raw_parts_mut(data, message.len()) },
    };
    message.copy_to(to)?;
    message.read_hops(hops);
    message.release();
    Ok(())
}
