//! The sending half of a handle.

use crate::codes::{self, Code};
use crate::lines::{ALL, Lines};
use bus::{Bus, Hops, Ring, Sender, TrySendError};
use std::ffi::c_int;

pub struct Sending {
    pub lines: Lines<Sender>,
}

/// What a call sends; it may be sent to several channels.
pub trait Message {
    /// Sends it from `local` by `sender`.
    fn send(&self, local: u32, sender: &mut Sender) -> Result<(), TrySendError>;
}

impl Message for &[u8] {
    #[inline(always)]
    fn send(&self, _: u32, sender: &mut Sender) -> Result<(), TrySendError> {
        sender.try_send(self)
    }
}

/// Several parts, which become one message.
pub struct Parts<'a>(pub &'a [libc::iovec]);

impl Message for Parts<'_> {
    fn send(&self, _: u32, sender: &mut Sender) -> Result<(), TrySendError> {
        let length = |sum: usize, part: &libc::iovec| sum.saturating_add(part.iov_len);
        let mut room = sender.reserve(self.0.iter().fold(0, length))?;
        let mut at = 0;
        for part in self.0.iter().filter(|part| part.iov_len > 0) {
            // SAFETY: not null, by the check of tbus_sendv, and valid for its length by the caller's word. No longer
            // than the ring, since there is room for it.
            let bytes = unsafe { std::slice::from_raw_parts(part.iov_base.cast(), part.iov_len) };
            room.write_at(at, bytes);
            at += bytes.len();
        }
        room.commit();
        Ok(())
    }
}

/// A message that passes on another one.
pub struct Passed<'a> {
    pub payload: &'a [u8],
    /// The way back, without the address that it is sent from.
    pub hops: Hops,
    /// Whether that address belongs to the way back.
    pub forward: bool,
}

impl Message for Passed<'_> {
    fn send(&self, local: u32, sender: &mut Sender) -> Result<(), TrySendError> {
        let mut hops = self.hops;
        if self.forward {
            hops.push(bus::Address(local)); // there is room: tbus_forward has looked
        }
        sender.try_send_with_hops(self.payload, &hops)
    }
}

impl Sending {
    pub fn new(bus: Bus) -> Sending {
        Sending {
            lines: Lines::new(bus),
        }
    }

    /// Sends by the channel of the last call, if this one names it; `None`, and nothing done, for the general case.
    #[inline(always)]
    pub fn send_here(&mut self, src: u32, dst: u32, payload: &[u8]) -> Option<c_int> {
        let sender = self.lines.hit(src, dst)?.end.as_mut()?;
        Some(match sender.try_send_here(payload) {
            Some(true) => 0,
            Some(false) => codes::CHANNEL_FULL.as_int(),
            None => self.send_on(payload),
        })
    }

    /// What more there is to do for the channel of the last call. The call's addresses are the line's, so that nobody has to keep them
    /// until here.
    #[cold]
    #[inline(never)]
    fn send_on(&mut self, payload: &[u8]) -> c_int {
        let ends = self.lines.last_ends();
        crate::call(|| self.send(ends, &payload).map(|_| 0))
    }

    /// Sends from `src` to `dst`; returns them, filled in where they ask for the first that matches.
    pub fn send(
        &mut self,
        (src, dst): (u32, u32),
        message: &impl Message,
    ) -> Result<(u32, u32), Code> {
        if src == ALL || dst == ALL {
            self.send_to_all(src, dst, message)?;
            return Ok((src, dst));
        }
        let at = self.lines.first(src, dst)?;
        self.send_by(at, message)?;
        self.lines.expect(at);
        Ok((self.lines.all[at].local, self.lines.all[at].peer))
    }

    fn send_to_all(&mut self, src: u32, dst: u32, message: &impl Message) -> Result<(), Code> {
        if self.lines.changed() {
            self.lines.refresh()?;
        }
        let (mut sent, mut refused) = (false, None);
        for at in 0..self.lines.all.len() {
            if self.lines.all[at].matches(src, dst) {
                match self.send_by(at, message) {
                    Ok(()) => sent = true,
                    // Deleted a moment ago.
                    Err(codes::NO_CHANNEL) if self.lines.all[at].gone => {}
                    Err(code) => refused = refused.or(Some(code)),
                }
            }
        }
        match refused {
            None if sent => Ok(()),
            None => Err(self.lines.none(src, dst)),
            Some(_) if sent => Err(codes::PARTLY_SENT),
            Some(code) => Err(code),
        }
    }

    fn send_by(&mut self, at: usize, message: &impl Message) -> Result<(), Code> {
        let local = self.lines.all[at].local;
        let mut result = message.send(local, self.lines.open(at, false)?);
        if let Err(TrySendError::Closed) = result {
            result = message.send(local, self.lines.reopen(at)?);
        }
        let failed = matches!(result, Err(TrySendError::Failed(_)));
        let result = result.map_err(codes::told);
        if failed {
            self.lines.all[at].failed = result.err();
        }
        result
    }

    /// The outgoing and the incoming ring of the first channel that matches.
    pub fn rings(&mut self, local: u32, peer: u32) -> Result<&[Ring; 2], Code> {
        let at = self.lines.first(local, peer)?;
        self.lines.rings(at)
    }
}
