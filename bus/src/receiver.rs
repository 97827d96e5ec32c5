//! [`Receiver`]: the receiving end of a ring.

use crate::bus::{Generation, Place};
use crate::error::{Error, Result, TryRecvError};
use crate::hops::Hops;
use crate::layout::{Cursor, FLAG_CRC32C, FLAG_TIMESTAMP, FLAG_TRACE_ID, RECORD_HEADER};
use crate::locks::RoleLock;
use crate::ring::consumer::{Consumer, Nothing, Record};
use crate::ring::memory::Memory;
use crate::ring_file::{Kind, Ring, sign};
use crate::sender::crc_of;
use crate::shm::Mapped;
use crate::sync::{AtomicU32, Relaxed};
use crate::wait::{self, Waiter};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The receiving end of a ring. One exists at a time; it may move between threads.
///
/// A message counts as received when it is released. A process that is killed before sees it again after its
/// restart.
#[derive(Debug)]
pub struct Receiver {
    consumer: Consumer<Mapped>,
    /// Where a batch began that is not dropped yet, or was forgotten.
    open_batch: Option<Cursor>,
    waiter: Waiter,
    ring: Ring,
    role: Arc<RoleLock>,
    /// The place in the map that it belongs to, if it was taken by address.
    place: Option<Place>,
}

/// A message, read in place. It stays in the ring until [`Message::release`]: dropped without, it is the next
/// message again. A child forked meanwhile has the message too, but reads zeros.
#[derive(Debug)]
pub struct Message<'a> {
    consumer: &'a mut Consumer<Mapped>,
    record: Record,
    cursor: Cursor,
    /// Of a batch, which releases it.
    in_batch: bool,
}

impl Receiver {
    pub(crate) fn attach(ring: Ring, role: Arc<RoleLock>) -> Result<Receiver> {
        let fence = wait::register();
        let memory = ring.mapped_with_news();
        sign(&memory.control().consumer_info, fence);
        let consumer = Consumer::attach(memory, ring.header().nonce, ring.kind().gate(), fence)
            .map_err(|d| ring.damaged(d))?;
        let waiter = Waiter {
            spin: wait::DEFAULT_SPIN,
        };
        Ok(Receiver {
            consumer,
            open_batch: None,
            waiter,
            ring,
            role,
            place: None,
        })
    }

    pub(crate) fn at_place(mut self, place: Place) -> Receiver {
        self.place = Some(place);
        self
    }

    /// The ring that it reads.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Position and sequence of the next message. After a restart: of the first one that was not released.
    pub fn next(&self) -> Cursor {
        self.consumer.next()
    }

    /// How long [`Receiver::wait`] polls before it sleeps; 20 µs unless set.
    pub fn set_spin(&mut self, spin: Duration) {
        self.waiter.spin = spin;
    }

    /// The next message, which stays in the ring: peek again and it is the same one.
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Message<'_>, TryRecvError> {
        if self.open_batch.is_some() {
            self.take_back_forgotten();
        }
        let record = match self.consumer.peek() {
            Ok(record) => record,
            // Polls end here mostly.
            Err(Nothing::Empty) => return Err(TryRecvError::Empty),
            Err(nothing) => self.peek_on(nothing)?,
        };
        Ok(self.message(record))
    }

    /// [`Receiver::peek`] as far as the ring at hand goes: `Some(None)` if nothing is there now, `None` if there is more to say
    /// or to do, which `peek` does. For callers to whom every instruction counts.
    #[inline(always)]
    pub fn peek_here(&mut self) -> Option<Option<Message<'_>>> {
        if self.open_batch.is_some() {
            return None;
        }
        match self.consumer.peek() {
            Ok(record) => Some(Some(self.message(record))),
            Err(Nothing::Empty) => Some(None),
            Err(_) => None,
        }
    }

    #[inline(always)]
    fn message(&mut self, record: Record) -> Message<'_> {
        let cursor = self.consumer.next();
        Message {
            consumer: &mut self.consumer,
            record,
            cursor,
            in_batch: false,
        }
    }

    /// After a peek that found nothing: the next generation of the ring may have something.
    #[cold]
    fn peek_on(&mut self, nothing: Nothing) -> Result<Record, TryRecvError> {
        if nothing != Nothing::Closed {
            return Err(nothing_to_error(&self.ring, nothing));
        }
        match self.follow() {
            Ok(Generation::Next) => match self.consumer.peek() {
                Ok(record) => Ok(record),
                Err(nothing) => self.peek_on(nothing),
            },
            Ok(Generation::NotYet) => Err(TryRecvError::Empty),
            Ok(Generation::Last) => Err(TryRecvError::Closed),
            Err(error) => Err(TryRecvError::Failed(Box::new(error))),
        }
    }

    /// After `Closed`: goes on to the next generation of the ring, if there is one.
    fn follow(&mut self) -> crate::Result<Generation> {
        let Some(place) = self.place.clone() else {
            return Ok(Generation::Last);
        };
        let ring = match place.after(&self.ring, true)? {
            Ok(ring) => ring,
            Err(none) => return Ok(none),
        };
        if ring.kind() == Kind::Source {
            return Err(ring.wrong_role(crate::locks::Role::Consumer));
        }
        let next = Receiver::attach(ring, self.role.clone())?;
        *self = Receiver {
            waiter: self.waiter,
            place: Some(place),
            ..next
        };
        Ok(Generation::Next)
    }

    /// A batch that was leaked instead of dropped has released nothing.
    #[cold]
    fn take_back_forgotten(&mut self) {
        if let Some(begun) = self.open_batch.take() {
            self.consumer.take_back(begun);
        }
    }

    /// Copies the next message into `buffer`, releases it, and returns its length in bytes.
    #[inline(always)]
    pub fn try_recv(&mut self, buffer: &mut [u8]) -> Result<usize, TryRecvError> {
        let message = self.peek()?;
        let length = message.copy_to(buffer)?;
        message.release();
        Ok(length)
    }

    /// Up to `max` messages, released together when the guard goes. On a panic, as on a kill, none of them is.
    pub fn recv_batch(&mut self, max: usize) -> Batch<'_> {
        self.take_back_forgotten();
        let begun = self.consumer.next();
        self.open_batch = Some(begun);
        Batch {
            receiver: self,
            begun,
            left: max,
            panicking: std::thread::panicking(),
        }
    }

    /// Waits until a message is there, polling at first and then sleeping. `Empty` when the timeout has passed.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), TryRecvError> {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            let result = match self.wait_in_ring(left) {
                Some(Nothing::Closed) => self.peek_on(Nothing::Closed).map(drop),
                Some(nothing) => return Err(nothing_to_error(&self.ring, nothing)),
                None => return Ok(()),
            };
            match result {
                // The next generation of the ring is being made, or has nothing yet.
                Err(TryRecvError::Empty) if !left.is_zero() => {
                    std::thread::sleep(left.min(Duration::from_millis(1)));
                }
                result => return result,
            }
        }
    }

    /// Waits in the present generation; says why nothing came.
    fn wait_in_ring(&mut self, timeout: Duration) -> Option<Nothing> {
        let memory = self.ring.mapped();
        let control = memory.control();
        let consumer = &mut self.consumer;
        let found = self.waiter.wait(
            &control.receiver_signal.word,
            &control.consumer_info,
            timeout,
            || match consumer.peek() {
                Ok(_) => Some(None),
                Err(Nothing::Empty) => None,
                Err(other) => Some(Some(other)),
            },
        );
        // Before it says that nothing came: is nothing there, or is the ring unusable?
        found.unwrap_or_else(|| Some(self.consumer.look_closely()))
    }

    /// The word that a sleeper on this ring sleeps on.
    pub(crate) fn with_signal<T>(&self, act: impl FnOnce(&AtomicU32) -> T) -> T {
        act(&self.consumer.memory().control().receiver_signal.word)
    }
}

#[cold]
fn nothing_to_error(ring: &Ring, nothing: Nothing) -> TryRecvError {
    match nothing {
        Nothing::Empty => TryRecvError::Empty,
        Nothing::Closed => TryRecvError::Closed,
        Nothing::Forked => TryRecvError::Failed(Box::new(Error::Forked)),
        Nothing::Damaged(damage) => TryRecvError::Failed(Box::new(ring.damaged(*damage))),
    }
}

impl Message<'_> {
    /// Releases the message: it is received, its room is free, and no restart shows it again. A message of a
    /// batch is released with its batch.
    #[inline(always)]
    pub fn release(self) {
        if !self.in_batch {
            self.consumer.release(self.record.shape.size);
        }
    }

    #[inline(always)]
    fn memory(&self) -> &Mapped {
        self.consumer.memory()
    }

    /// Payload bytes.
    pub fn len(&self) -> usize {
        self.record.shape.length
    }

    /// True if the payload has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if it carries nothing besides its payload.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.record.shape.flags == 0
    }

    /// Position and sequence. (ring uuid, sequence) is the message's identity.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// When it was sent, nanoseconds since 1970, if its sender stored that.
    pub fn timestamp(&self) -> Option<u64> {
        self.extension(FLAG_TIMESTAMP)
    }

    /// Its trace id, if it has one.
    pub fn trace_id(&self) -> Option<u64> {
        self.extension(FLAG_TRACE_ID)
    }

    /// The CRC32C that its sender stored, if any.
    pub fn crc(&self) -> Option<u32> {
        self.extension(FLAG_CRC32C).map(|word| word as u32)
    }

    /// The way back of a message that was forwarded; empty for any other.
    #[inline]
    pub fn hops(&self) -> Hops {
        let mut hops = Hops::default();
        self.read_hops(&mut hops);
        hops
    }

    /// The same, in the place of what `hops` has: one store where there are none, which is almost always.
    #[inline(always)]
    pub fn read_hops(&self, hops: &mut Hops) {
        hops.clear();
        if self.record.shape.flags != 0 {
            hops.read(|flag| self.extension(flag));
        }
    }

    fn extension(&self, flag: u32) -> Option<u64> {
        let flags = self.record.shape.flags;
        let before = (flags & (flag - 1)).count_ones() as usize;
        let at = self.record.offset + RECORD_HEADER + 8 * before;
        // Relaxed: ordered by the Acquire of the commit word in Consumer::peek.
        (flags & flag != 0).then(|| self.memory().word(at).load(Relaxed))
    }

    /// Copies the payload to the front of `buffer` and returns its length. Checks the CRC, if there is one, on
    /// the copy.
    #[inline(always)]
    pub fn copy_to(&self, buffer: &mut [u8]) -> Result<usize, TryRecvError> {
        let needed = self.len();
        let Some(to) = buffer.get_mut(..needed) else {
            return Err(TryRecvError::TooShort { needed });
        };
        self.memory().read(self.record.payload(), to);
        if self.record.shape.flags & FLAG_CRC32C != 0 && self.crc() != Some(crc32c::crc32c(to)) {
            return Err(TryRecvError::BadCrc {
                sequence: self.cursor.sequence,
            });
        }
        Ok(needed)
    }

    /// Copies payload bytes from `offset` on into `buffer`; returns how many there were, at most its length.
    #[inline(always)]
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let length = self.len().saturating_sub(offset).min(buffer.len());
        if length > 0 {
            self.memory()
                .read(self.record.payload() + offset, &mut buffer[..length]);
        }
        length
    }

    /// True unless the message has a CRC and its payload in the ring does not match it.
    pub fn crc_matches(&self) -> bool {
        self.crc()
            .is_none_or(|crc| crc == crc_of(self.memory(), self.record.payload(), self.len()))
    }

    /// The payload in place.
    ///
    /// # Safety
    /// The ring is shared: the sending process must not change the payload while the slice lives. A sender that
    /// uses this library does not; a hostile one could, and then this is undefined behaviour. [`Message::copy_to`]
    /// and [`Message::read_at`] have no such condition.
    #[inline]
    pub unsafe fn as_slice(&self) -> &[u8] {
        let at = self.memory().at(self.record.payload());
        // SAFETY: a checked record lies inside the mapping; unchanged by the caller's promise.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), self.len()) }
    }
}

/// Messages that are received together, see [`Receiver::recv_batch`].
#[derive(Debug)]
pub struct Batch<'a> {
    receiver: &'a mut Receiver,
    begun: Cursor,
    left: usize,
    /// A panic was under way before the batch, so it is not the batch's.
    panicking: bool,
}

impl Batch<'_> {
    /// The next message of the batch. `None` when it is used up or nothing more is there; why, says the next
    /// [`Receiver::peek`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the messages borrow from the batch"
    )]
    #[inline(always)]
    pub fn next(&mut self) -> Option<Message<'_>> {
        if self.left == 0 {
            return None;
        }
        let consumer = &mut self.receiver.consumer;
        let record = consumer.peek().ok()?;
        self.left -= 1;
        let cursor = consumer.next();
        consumer.pass(record.shape.size);
        Some(Message {
            consumer,
            record,
            cursor,
            in_batch: true,
        })
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.receiver.open_batch = None;
        let consumer = &mut self.receiver.consumer;
        if std::thread::panicking() && !self.panicking {
            consumer.take_back(self.begun);
        } else if consumer.next() != self.begun {
            consumer.release_passed();
        }
    }
}
