//! A receiver together with the message that was peeked and is not released yet.

use crate::errors;
use crate::handle::{self, Waits};
use pyo3::prelude::*;
use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::time::Duration;
use tbus::{Address, Bus, Incoming, Message, ReadyFd, Receiver, TryRecvError};

/// Where messages come from.
pub enum Source {
    /// One channel, whose other end is the address.
    One(Receiver, Address),
    /// All channels of an endpoint.
    All(Incoming),
}

type Peeked<'a> = Result<(Address, Message<'a>), TryRecvError>;

impl Source {
    #[inline]
    fn peek(&mut self) -> Peeked<'_> {
        match self {
            Source::One(receiver, peer) => receiver.peek().map(|message| (*peer, message)),
            Source::All(incoming) => incoming.peek(),
        }
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TryRecvError> {
        match self {
            Source::One(receiver, _) => receiver.wait(timeout),
            Source::All(incoming) => incoming.wait(timeout),
        }
    }
}

struct Pending {
    /// Borrows from `Held::source`.
    message: Message<'static>,
    from: Address,
    /// Buffers that Python holds of its payload.
    views: usize,
}

/// A source and the message peeked from it. While Python has views of that message's payload, it is not released, and
/// the source stays as it is.
pub struct Held {
    /// Dropped before the source, from which it borrows.
    pending: Option<Pending>,
    /// Counts peeked messages, so that one that was released is not taken for the next.
    serial: u64,
    /// What a wait met, for the next call: some errors are told once only.
    failed: Option<TryRecvError>,
    /// Tells event loops of messages; made when the first one waits.
    ready: Option<ReadyFd>,
    bus: Bus,
    /// True if it receives from one channel.
    one: bool,
    /// Owned. Not a Box, which would promise that nothing else points into it.
    source: NonNull<Source>,
}

// SAFETY: it owns its source, and `pending` points into nothing else; a Source and its messages may move between threads.
unsafe impl Send for Held where Source: Send {}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(ready) = &self.ready {
            // Who waits finds it closed.
            _ = told_by(ready).map(|event| handle::tell(&event));
        }
        self.pending = None;
        // SAFETY: made from a Box, dropped once, and nothing borrows from it any more.
        drop(unsafe { Box::from_raw(self.source.as_ptr()) });
    }
}

/// The descriptor of `ready`, for one who waits: event loops take each number once.
fn told_by(ready: &ReadyFd) -> std::io::Result<File> {
    ready.as_fd().try_clone_to_owned().map(File::from)
}

impl Held {
    pub fn new(source: Source, bus: Bus) -> Held {
        Held {
            pending: None,
            serial: 0,
            failed: None,
            ready: None,
            bus,
            one: matches!(source, Source::One(..)),
            source: NonNull::from(Box::leak(Box::new(source))),
        }
    }

    /// An error if the peeked message has views.
    #[inline]
    pub fn may_close(&mut self) -> PyResult<()> {
        match &self.pending {
            Some(pending) if pending.views > 0 => Err(errors::viewed()),
            _ => Ok(()),
        }
    }

    /// Gives the next message to `act` and releases it if that succeeds. None if no message is there.
    #[inline]
    pub fn take<R>(
        &mut self,
        act: impl FnOnce(Address, &Message<'_>) -> PyResult<R>,
    ) -> Option<PyResult<R>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(errors::of_recv(error)));
        }
        if self.pending.is_some() {
            return Some(self.take_pending(act));
        }
        // SAFETY: owned, and no message borrows from it.
        match unsafe { self.source.as_mut() }.peek() {
            Ok((from, message)) => Some(act(from, &message).inspect(|_| message.release())),
            Err(TryRecvError::Empty) => None,
            Err(error) => Some(Err(errors::of_recv(error))),
        }
    }

    /// The peeked message is the next one: with all channels of an endpoint it may not be their turn's any more.
    #[cold]
    fn take_pending<R>(
        &mut self,
        act: impl FnOnce(Address, &Message<'_>) -> PyResult<R>,
    ) -> PyResult<R> {
        self.may_close()?;
        let Pending { message, from, .. } = self.pending.take().ok_or_else(errors::released)?;
        act(from, &message).inspect(|_| message.release())
    }

    /// Peeks; `act` learns of the message, the sender's address and the serial. None if no message is there.
    pub fn peek<R>(
        &mut self,
        act: impl FnOnce(u64, Address, &Message<'_>) -> R,
    ) -> Option<PyResult<R>> {
        if self.pending.is_none() {
            if let Some(error) = self.failed.take() {
                return Some(Err(errors::of_recv(error)));
            }
            // SAFETY: owned. The borrow that the message keeps ends before any other: none is peeked while there is one.
            match unsafe { &mut *self.source.as_ptr() }.peek() {
                Ok((from, message)) => {
                    self.serial += 1;
                    self.pending = Some(Pending {
                        message,
                        from,
                        views: 0,
                    });
                }
                Err(TryRecvError::Empty) => return None,
                Err(error) => return Some(Err(errors::of_recv(error))),
            }
        }
        let pending = self.pending.as_ref()?;
        Some(Ok(act(self.serial, pending.from, &pending.message)))
    }

    /// The peeked message, if it is the one with this serial.
    fn pending(&mut self, serial: u64) -> PyResult<&mut Pending> {
        match self.pending.as_mut() {
            Some(pending) if self.serial == serial => Ok(pending),
            _ => Err(errors::released()),
        }
    }

    /// Reads the peeked message.
    pub fn read<R>(&mut self, serial: u64, act: impl FnOnce(&Message<'_>) -> R) -> PyResult<R> {
        self.pending(serial).map(|pending| act(&pending.message))
    }

    /// Releases the peeked message.
    pub fn release(&mut self, serial: u64) -> PyResult<()> {
        self.pending(serial)?;
        self.may_close()?;
        if let Some(pending) = self.pending.take() {
            pending.message.release();
        }
        Ok(())
    }

    /// Where the payload of the peeked message lies, which stays there until [`Held::take_back`].
    pub fn export(&mut self, serial: u64) -> PyResult<(*const u8, usize)> {
        let pending = self.pending(serial)?;
        pending.views += 1;
        // SAFETY: no slice is kept, only where it lies. Python reads there as it reads any shared memory.
        let payload = unsafe { pending.message.as_slice() };
        Ok((payload.as_ptr(), payload.len()))
    }

    /// One view less.
    pub fn take_back(&mut self, serial: u64) {
        if let Ok(pending) = self.pending(serial) {
            pending.views -= 1;
        }
    }

    /// True if a call would not find the source empty.
    pub fn ready(&mut self) -> bool {
        self.pending.is_some() || self.sleep(0, Duration::ZERO)
    }

    /// A descriptor that becomes readable when there may be a message; None if a call would not find the source empty.
    pub fn ticket(&mut self) -> PyResult<Option<File>> {
        // Before the look: what the map gets afterwards is news.
        let version = self.bus.gcim().version();
        if self.ready() {
            return Ok(None);
        }
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => ReadyFd::new().map_err(|error| errors::of_bus(&error))?,
        };
        let ready = self.ready.insert(ready);
        // SAFETY: owned, and no message borrows from it: then it would be ready.
        match unsafe { self.source.as_ref() } {
            Source::One(receiver, _) => {
                ready.arm(std::iter::once(receiver.ring()), &self.bus, version);
            }
            Source::All(incoming) => incoming.arm(ready),
        }
        let event = told_by(ready).map_err(|error| errors::of_system(&error))?;
        Ok(Some(event))
    }

    /// The bytes that its rings hold.
    pub fn capacity(&self) -> u64 {
        debug_assert!(self.pending.is_none(), "asked between messages only");
        // SAFETY: owned, and no message borrows from it.
        match unsafe { self.source.as_ref() } {
            Source::One(receiver, _) => receiver.ring().header().capacity,
            Source::All(incoming) => incoming.capacity(),
        }
    }

    /// What waits were told: closed, or unusable.
    pub fn failure(&mut self) -> Option<PyErr> {
        self.failed.take().map(errors::of_recv)
    }

    /// Position and sequence of the next message; None with all channels of an endpoint, which count each for itself.
    pub fn next(&self) -> Option<tbus::Cursor> {
        if !self.one {
            return None;
        }
        if let Some(pending) = &self.pending {
            return Some(pending.message.cursor());
        }
        // SAFETY: owned, and no message borrows from it.
        match unsafe { self.source.as_ref() } {
            Source::One(receiver, _) => Some(receiver.next()),
            Source::All(_) => None,
        }
    }

    /// How many views of the peeked message there are; 0 if it is not the one with this serial.
    pub fn views(&self, serial: u64) -> usize {
        let pending = self.pending.as_ref().filter(|_| self.serial == serial);
        pending.map_or(0, |pending| pending.views)
    }
}

impl Waits for Held {
    fn sleep(&mut self, _length: usize, timeout: Duration) -> bool {
        if self.pending.is_some() || self.failed.is_some() {
            return true;
        }
        // SAFETY: owned, and no message borrows from it.
        match unsafe { self.source.as_mut() }.wait(timeout) {
            Ok(()) => true,
            Err(TryRecvError::Empty) => false,
            Err(error) => {
                self.failed = Some(error);
                true
            }
        }
    }
}
