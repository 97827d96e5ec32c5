//! The receiving half of a handle.

use crate::codes::{self, Code};
use crate::lines::{ALL, End, FIRST, Lines};
use bus::{Bus, Hops, Message, ReadyFd, Receiver, TryRecvError, Turn};
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};

/// src and dst of a call, or of a message.
type Ends = (u32, u32);

pub struct Receiving {
    /// Dropped before the rings that its thread watches.
    ready: Option<ReadyFd>,
    /// What the descriptor was armed with: the map's version, and how many ends were taken.
    armed: Option<(u64, u64)>,
    pub lines: Lines<Receiver>,
    /// Among all lines.
    turn: Turn,
    /// The addresses of the channel that was peeked at last.
    peeked: Option<(u32, u32)>,
    /// The last message: between which addresses it came, and the way back that it carried. The line that `lines` expects,
    /// if it does, is that of these addresses.
    last: Option<(u32, u32)>,
    hops: Hops,
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
            ready: None,
            armed: None,
            lines: Lines::new(bus),
            turn: Turn::default(),
            peeked: None,
            last: None,
            hops: Hops::default(),
        }
    }

    /// Receives from the channel of the last call, if this one names it; `None`, and nothing done, for the general case.
    ///
    /// # Safety
    /// `data` is null or valid for writing `len` bytes.
    #[inline(always)]
    pub unsafe fn receive_here(
        &mut self,
        src: u32,
        dst: u32,
        data: *mut u8,
        len: &mut usize,
    ) -> Option<c_int> {
        let line = self.lines.hit(dst, src)?;
        let found = line.end.as_mut()?.peek_here();
        // If nothing is there, the descriptor is to be told.
        if let (Some(None), true) = (&found, self.ready.is_none()) {
            return Some(codes::CHANNEL_EMPTY.as_int());
        }
        if let Some(Some(message)) = found
            // SAFETY: the caller's.
            && unsafe { take_plain(message, data, len) }.is_some()
        {
            line.peeked = false;
            self.hops.clear();
            return Some(0); // and `last` is of this line, since it was expected
        }
        // SAFETY: the caller's.
        Some(unsafe { self.receive_on(data, len) })
    }

    /// What more there is to do for the channel of the last call. The call's addresses are the line's, so that nobody has to keep them
    /// until here.
    ///
    /// # Safety
    /// `data` is null or valid for writing `len` bytes.
    #[cold]
    #[inline(never)]
    unsafe fn receive_on(&mut self, data: *mut u8, len: &mut usize) -> c_int {
        let (local, peer) = self.lines.last_ends();
        // SAFETY: the caller's.
        crate::call(|| unsafe { self.receive((peer, local), data, len) }.map(|_| 0))
    }

    /// Receives from the channel whose turn it is, if it is one of several and has some left; `None` for the general case.
    ///
    /// # Safety
    /// `data` is null or valid for writing `len` bytes.
    #[inline(always)]
    pub unsafe fn receive_in_turn(
        &mut self,
        (src, dst): Ends,
        data: *mut u8,
        len: &mut usize,
    ) -> Option<Ends> {
        if src != ALL && dst != ALL {
            return None;
        }
        let at = self.turn.whose()?;
        let line = self.lines.all.get_mut(at)?;
        if !line.matches(dst, src) {
            return None;
        }
        let message = line.end.as_mut()?.peek_here()??;
        // SAFETY: the caller's.
        unsafe { take_plain(message, data, len)? };
        line.peeked = false;
        self.hops.clear();
        let (local, peer) = (line.local, line.peer);
        self.last = Some((local, peer));
        self.lines.expect(at);
        self.turn.took(at);
        Some((peer, local))
    }

    /// Copies the next message from `src` to `dst` and releases it; returns between which addresses it came.
    ///
    /// # Safety
    /// `data` is null or valid for writing `len` bytes.
    pub unsafe fn receive(
        &mut self,
        (src, dst): Ends,
        data: *mut u8,
        len: &mut usize,
    ) -> Result<Ends, Code> {
        let at = self.choose(dst, src)?;
        let line = &mut self.lines.all[at];
        // SAFETY: the caller's.
        unsafe { take(chosen(&mut line.end)?, data, len, &mut self.hops)? };
        line.peeked = false;
        let (local, peer) = (line.local, line.peer);
        self.last = Some((local, peer));
        self.lines.expect(at);
        self.turn.took(at);
        Ok((peer, local))
    }

    /// Where the next message from `src` to `dst` lies, and its length; and its addresses.
    pub fn peek(&mut self, (src, dst): Ends) -> Result<(Ends, (*const u8, usize)), Code> {
        let at = self.choose(dst, src)?;
        let line = &mut self.lines.all[at];
        let message = chosen(&mut line.end)?;
        // SAFETY: the slice is not read here, only its address is handed on.
        let data = unsafe { message.as_slice() };
        let place = (data.as_ptr(), data.len());
        message.read_hops(&mut self.hops);
        line.peeked = true;
        let (local, peer) = (line.local, line.peer);
        self.last = Some((local, peer));
        self.lines.expect(at);
        self.peeked = self.last;
        Ok(((peer, local), place))
    }

    /// Releases the message that [`Self::peek`] showed; returns its addresses.
    pub fn delete(&mut self, (src, dst): Ends) -> Result<Ends, Code> {
        let wild = |address| address == FIRST || address == ALL;
        let (local, peer) = match wild(src) || wild(dst) {
            true => self.peeked.ok_or(codes::NO_MSG_PEEKED)?,
            false => (dst, src),
        };
        let Some(at) = self.lines.find(local, peer) else {
            return Err(self.lines.none(local, peer));
        };
        let line = &mut self.lines.all[at];
        if !line.peeked || !line.matches(dst, src) {
            return Err(codes::NO_MSG_PEEKED);
        }
        chosen(&mut line.end)?.release();
        line.peeked = false;
        self.peeked = self.peeked.filter(|peeked| *peeked != (local, peer));
        self.turn.took(at);
        Ok((peer, local))
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

    /// The line that the call means and that has a message.
    #[cold]
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
                    self.turn = Turn::default();
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
        match self.look(at)? {
            Look::Message => Ok(at),
            Look::Nothing => Err(codes::CHANNEL_EMPTY),
            Look::Busy => Err(codes::CHANNEL_BUSY),
            Look::Gone => Err(self.lines.none(local, peer)),
        }
    }

    fn first_with_message(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        let mut seen = Seen::default();
        for at in 0..self.lines.all.len() {
            if self.has_message(at, local, peer, &mut seen)? {
                return Ok(at);
            }
        }
        Err(seen.why_none(|| self.lines.none(local, peer)))
    }

    /// Round robin, so that a busy channel does not keep the others waiting. Without a receive in between it finds the
    /// same one again.
    fn next_in_turn(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        let (mut turn, mut seen) = (self.turn, Seen::default());
        let found = turn.find(self.lines.all.len(), |at| {
            self.has_message(at, local, peer, &mut seen)
        });
        self.turn = turn;
        found?.ok_or_else(|| seen.why_none(|| self.lines.none(local, peer)))
    }

    /// True if a line is meant and has a message. Tells once that it failed, and then passes over it.
    fn has_message(
        &mut self,
        at: usize,
        local: u32,
        peer: u32,
        seen: &mut Seen,
    ) -> Result<bool, Code> {
        let line = &self.lines.all[at];
        if !line.matches(local, peer) {
            return Ok(false);
        }
        if line.failed.is_some() {
            seen.failed = line.failed;
            return Ok(false);
        }
        let look = self.look(at)?;
        Ok(seen.look(look))
    }

    fn look(&mut self, at: usize) -> Result<Look, Code> {
        let looked = self.look_into(at);
        if let Err(code) = looked {
            self.lines.all[at].failed = Some(code);
            self.armed = None; // it is not to be watched any more
        }
        looked
    }

    fn look_into(&mut self, at: usize) -> Result<Look, Code> {
        let receiver = match self.lines.open(at, false) {
            Ok(receiver) => receiver,
            Err(code) => return why_closed(code),
        };
        // No borrow of it may live on to where another one takes its place.
        let mut found = receiver.peek().map(drop);
        if let Err(TryRecvError::Closed) = found {
            found = match self.lines.reopen(at) {
                Ok(receiver) => receiver.peek().map(drop),
                Err(code) => return why_closed(code),
            };
        }
        match found {
            Ok(()) => Ok(Look::Message),
            Err(TryRecvError::Empty) => Ok(Look::Nothing),
            Err(TryRecvError::Closed) => Ok(Look::Gone), // deleted since it was taken
            Err(error) => Err(codes::told(error)),
        }
    }

    /// A descriptor that is readable while there may be messages. Takes all ends that nobody else has.
    pub fn event_fd(&mut self) -> Result<c_int, Code> {
        if self.lines.all.is_empty() {
            return Err(codes::NOT_BOUND);
        }
        if self.ready.is_none() {
            self.ready = Some(ReadyFd::new().map_err(codes::told)?);
            self.watch();
        }
        let ready = self.ready.as_ref().expect("made above");
        Ok(ready.as_fd().as_raw_fd())
    }

    /// After lines have come, or are to be tried anew: the descriptor, if there is one, is of all of them.
    pub fn watch(&mut self) {
        self.armed = None;
        self.rest();
    }

    /// After a look that found nothing: the descriptor is readable again when there is news.
    fn rest(&mut self) {
        let armed = Some((self.lines.version, self.lines.taken));
        match &self.ready {
            None => return,
            Some(ready) if !ready.is_raised() && self.armed == armed => return,
            Some(_) => {}
        }
        // What the call did not look at: lines that are new or were busy, and after a change of the map next generations
        // of rings.
        let anew = self
            .armed
            .is_none_or(|(version, _)| version != self.lines.version);
        for at in 0..self.lines.all.len() {
            let line = &self.lines.all[at];
            let look = line.failed.is_none() && (anew || (line.end.is_none() && !line.gone));
            if look && self.look(at).is_err() {
                self.lines.all[at].failed = None; // which is for a receiving call to tell
            }
        }
        let all = &self.lines.all;
        let again = all.iter().filter(|line| line.end.is_none() && !line.gone);
        let again = again.filter_map(|line| line.retry_at).min();
        let now = Some((self.lines.version, self.lines.taken));
        let Some(ready) = &self.ready else { return };
        if self.armed == now {
            ready.arm_again(again);
        } else {
            let lines = all.iter().filter(|line| line.failed.is_none());
            let rings = lines.filter_map(|line| line.end.as_ref().map(End::ring));
            ready.arm(rings, &self.lines.bus, self.lines.version);
            self.armed = now;
            if again.is_some() {
                ready.arm_again(again);
            }
        }
    }
}

/// Why there is no end to look into.
fn why_closed(code: Code) -> Result<Look, Code> {
    match code {
        codes::CHANNEL_BUSY => Ok(Look::Busy),
        codes::NO_CHANNEL => Ok(Look::Gone),
        code => Err(code),
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
    receiver.peek().map_err(codes::told)
}

/// Copies a message that has nothing but its payload and releases it; `None`, and nothing done, unless it fits.
///
/// # Safety
/// `data` is null or valid for writing `len` bytes.
#[inline(always)]
unsafe fn take_plain(message: Message<'_>, data: *mut u8, len: &mut usize) -> Option<()> {
    let length = message.len();
    if length > *len || data.is_null() || !message.is_plain() {
        return None;
    }
    // SAFETY: not null, and valid for more by the caller's word.
    let to = unsafe { std::slice::from_raw_parts_mut(data, length) };
    message.read_at(0, to); // a plain one has no checksum
    *len = length;
    message.release();
    Some(())
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
    message.copy_to(to).map_err(codes::told)?;
    message.read_hops(hops);
    message.release();
    Ok(())
}
