//! [`Sender`]: the sending end of a ring.

use crate::bus::{Generation, Place};
use crate::error::{Error, Result, TrySendError};
use crate::hops::Hops;
use crate::layout::{Cursor, FLAG_CRC32C, FLAG_TIMESTAMP, FLAG_TRACE_ID};
use crate::locks::RoleLock;
use crate::ring::memory::Memory;
use crate::ring::producer::{Begun, Producer, Refusal};
use crate::ring_file::{Kind, Ring, sign};
use crate::shm::Mapped;
use crate::wait::{self, Waiter};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The sending end of a ring. One exists at a time; it may move between threads.
///
/// A message that a call accepted is in shared memory: it survives this process. The calls do not block, make
/// no system call unless the receiver sleeps, and allocate nothing.
#[derive(Debug)]
pub struct Sender {
    producer: Producer<Mapped>,
    trace_id: u64,
    waiter: Waiter,
    ring: Ring,
    role: Arc<RoleLock>,
    /// The place in the map that it belongs to, if it was taken by address.
    place: Option<Place>,
}

/// What every message of a sender carries besides its payload; 8 bytes each in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The time of sending, CLOCK_REALTIME in nanoseconds.
    pub timestamp: bool,
    /// The trace id set by [`Sender::set_trace_id`].
    pub trace_id: bool,
    /// The payload's CRC32C, which the receiver's copying calls check.
    pub crc: bool,
}

impl Sender {
    pub(crate) fn attach(ring: Ring, role: Arc<RoleLock>) -> Result<Sender> {
        let fence = wait::register();
        let memory = ring.mapped_with_news();
        sign(&memory.control().producer_info, fence);
        let producer =
            Producer::attach(memory, ring.header().nonce, fence).map_err(|d| ring.damaged(d))?;
        let waiter = Waiter {
            spin: wait::DEFAULT_SPIN,
        };
        Ok(Sender {
            producer,
            trace_id: 0,
            waiter,
            ring,
            role,
            place: None,
        })
    }

    pub(crate) fn at_place(mut self, place: Place) -> Sender {
        self.place = Some(place);
        self
    }

    /// The ring that it sends into.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Position and sequence that the next message gets. After a restart they tell how far the last sender came:
    /// all messages with a lower sequence are in the ring or were received.
    pub fn next(&self) -> Cursor {
        self.producer.tail()
    }

    /// The longest payload, bytes: half the ring's capacity.
    pub fn max_len(&self) -> usize {
        self.producer.max_payload()
    }

    /// Chooses what the following messages carry. All off at attach.
    pub fn set_extensions(&mut self, extensions: Extensions) {
        let flag = |on, flag| if on { flag } else { 0 };
        self.producer.set_flags(
            flag(extensions.timestamp, FLAG_TIMESTAMP)
                | flag(extensions.trace_id, FLAG_TRACE_ID)
                | flag(extensions.crc, FLAG_CRC32C),
        );
    }

    /// The trace id of the following messages, if [`Extensions::trace_id`] is on.
    pub fn set_trace_id(&mut self, trace_id: u64) {
        self.trace_id = trace_id;
    }

    /// How long [`Sender::wait`] polls before it sleeps; 20 µs unless set.
    pub fn set_spin(&mut self, spin: Duration) {
        self.waiter.spin = spin;
    }

    /// Sends one message; a length of 0 is legal.
    #[inline(always)]
    pub fn try_send(&mut self, payload: &[u8]) -> Result<(), TrySendError> {
        let begun = self.begin(payload.len())?;
        self.put(begun, payload);
        Ok(())
    }

    /// [`Sender::try_send`] as far as the ring at hand goes: true if it took the message, false if it is full, `None` if there is
    /// more to say or to do, which `try_send` does. For callers to whom every instruction counts.
    #[inline(always)]
    pub fn try_send_here(&mut self, payload: &[u8]) -> Option<bool> {
        let begun = match self.producer.begin(payload.len()) {
            Ok(begun) => begun,
            Err(Refusal::Full) => return Some(false),
            Err(_) => return None,
        };
        self.put(begun, payload);
        Some(true)
    }

    #[inline(always)]
    fn put(&mut self, begun: Begun, payload: &[u8]) {
        self.producer.memory().write(begun.payload(), payload);
        self.extend(begun, payload.len());
        self.producer.commit(begun, payload.len());
    }

    /// Sends one message made of several parts.
    pub fn try_send_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<(), TrySendError> {
        let length = parts
            .iter()
            .fold(0usize, |sum, part| sum.saturating_add(part.len()));
        let begun = self.begin(length)?;
        let mut at = begun.payload();
        for part in parts {
            self.producer.memory().write(at, part);
            at += part.len();
        }
        self.extend(begun, length);
        self.producer.commit(begun, length);
        Ok(())
    }

    /// Sends one message that carries `hops`, see there.
    pub fn try_send_with_hops(&mut self, payload: &[u8], hops: &Hops) -> Result<(), TrySendError> {
        let flags = self.producer.flags();
        self.producer.set_flags(flags | hops.flags());
        let begun = self.begin(payload.len());
        if let Ok(begun) = begun {
            self.producer.memory().write(begun.payload(), payload);
            self.extend(begun, payload.len());
            let before = flags.count_ones() as usize; // theirs are the highest flags
            for (index, word) in hops.words().enumerate() {
                self.producer.extend(begun, before + index, word);
            }
            self.producer.commit(begun, payload.len());
        }
        self.producer.set_flags(flags);
        begun.map(drop)
    }

    /// Room for one message of up to `length` bytes, to be written in place. Dropping it gives it up. A child
    /// forked meanwhile has the reservation too, but its commit reaches no ring. While one is
    /// held, or after one was leaked, [`Ring::close`] says `Busy`.
    #[inline]
    pub fn reserve(&mut self, length: usize) -> Result<Reservation<'_>, TrySendError> {
        let begun = self.begin(length)?;
        Ok(Reservation {
            sender: self,
            begun: Some(begun),
        })
    }

    /// Sends messages until one is refused, with one look at the receiver for all. Returns how many were
    /// accepted; an error only if the first one was refused. Receivers see them one by one, in order.
    pub fn send_batch<T: AsRef<[u8]>>(
        &mut self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<usize, TrySendError> {
        let mut accepted = 0;
        let mut refused = None;
        // Finishes also if the iterator panics, so that what was committed is counted and woken for.
        let batch = Batch { sender: self };
        for message in messages {
            let payload = message.as_ref();
            match batch.sender.begin(payload.len()) {
                Ok(begun) => {
                    batch
                        .sender
                        .producer
                        .memory()
                        .write(begun.payload(), payload);
                    batch.sender.extend(begun, payload.len());
                    batch.sender.producer.commit_quietly(begun, payload.len());
                    accepted += 1;
                }
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        drop(batch);
        match refused {
            Some(error) if accepted == 0 => Err(error),
            _ => Ok(accepted),
        }
    }

    /// Waits until a message of `length` bytes has room, polling at first and then sleeping. `Full` when the
    /// timeout has passed.
    pub fn wait(&mut self, length: usize, timeout: Duration) -> Result<(), TrySendError> {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            if !self.wait_for_room(length, left) {
                return Err(TrySendError::Full);
            }
            match self.begin(length) {
                Ok(begun) => {
                    self.producer.abort(begun);
                    return Ok(());
                }
                // The next generation of the ring is being made.
                Err(TrySendError::Full) if !left.is_zero() => {
                    std::thread::sleep(left.min(Duration::from_millis(1)));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_for_room(&mut self, length: usize, timeout: Duration) -> bool {
        let Sender {
            producer,
            waiter,
            ring,
            ..
        } = self;
        let memory = ring.mapped();
        let control = memory.control();
        let room = waiter.wait(
            &control.sender_signal.word,
            &control.producer_info,
            timeout,
            || producer.has_room(length).then_some(()),
        );
        room.is_some()
    }

    #[inline(always)]
    fn begin(&mut self, length: usize) -> Result<Begun, TrySendError> {
        match self.producer.begin(length) {
            Ok(begun) => Ok(begun),
            Err(refusal) => self.refused(refusal, length),
        }
    }

    #[cold]
    fn refused(&mut self, refusal: Refusal, length: usize) -> Result<Begun, TrySendError> {
        if refusal == Refusal::Closed && self.place.is_some() {
            return match self.follow() {
                Ok(Generation::Next) => self.begin(length),
                Ok(Generation::NotYet) => Err(TrySendError::Full),
                Ok(Generation::Last) => Err(TrySendError::Closed),
                Err(error) => Err(TrySendError::Failed(Box::new(error))),
            };
        }
        Err(match refusal {
            Refusal::Full => TrySendError::Full,
            Refusal::Closed => TrySendError::Closed,
            Refusal::TooLong => TrySendError::TooLong {
                length,
                max: self.max_len(),
            },
            Refusal::Forked => TrySendError::Failed(Box::new(Error::Forked)),
            Refusal::Damaged(damage) => TrySendError::Failed(Box::new(self.ring.damaged(*damage))),
        })
    }

    /// After `Closed`: goes on to the next generation of the ring, if there is one.
    fn follow(&mut self) -> Result<Generation> {
        let Some(place) = self.place.clone() else {
            return Ok(Generation::Last);
        };
        // The closer waits for a batch that is under way.
        self.producer.finish_batch();
        let ring = match place.after(&self.ring, false)? {
            Ok(ring) => ring,
            Err(none) => return Ok(none),
        };
        if ring.kind() == Kind::Mirror {
            return Err(ring.wrong_role(crate::locks::Role::Producer));
        }
        let next = Sender::attach(ring, self.role.clone())?;
        let flags = self.producer.flags();
        *self = Sender {
            trace_id: self.trace_id,
            waiter: self.waiter,
            place: Some(place),
            ..next
        };
        self.producer.set_flags(flags);
        Ok(Generation::Next)
    }

    /// Stores the extensions, if there are any, of a record whose payload is in place.
    #[inline(always)]
    fn extend(&self, begun: Begun, length: usize) {
        if self.producer.flags() != 0 {
            self.store_extensions(begun, length);
        }
    }

    #[cold]
    fn store_extensions(&self, begun: Begun, length: usize) {
        let flags = self.producer.flags();
        let mut index = 0;
        for flag in [FLAG_TIMESTAMP, FLAG_TRACE_ID, FLAG_CRC32C] {
            if flags & flag == 0 {
                continue;
            }
            let value = match flag {
                FLAG_TIMESTAMP => SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |since| since.as_nanos() as u64),
                FLAG_TRACE_ID => self.trace_id,
                _ => crc_of(self.producer.memory(), begun.payload(), length).into(),
            };
            self.producer.extend(begun, index, value);
            index += 1;
        }
    }
}

/// CRC32C of bytes in the ring, by way of a private copy, since others could change them under a slice.
pub(crate) fn crc_of(memory: &Mapped, offset: usize, length: usize) -> u32 {
    let mut chunk = [0; 1024];
    let mut crc = 0;
    let mut done = 0;
    while done < length {
        let part = &mut chunk[..(length - done).min(1024)];
        memory.read(offset + done, part);
        crc = crc32c::crc32c_append(crc, part);
        done += part.len();
    }
    crc
}

struct Batch<'a> {
    sender: &'a mut Sender,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.sender.producer.finish_batch();
    }
}

/// Room for one message in the ring, see [`Sender::reserve`].
#[derive(Debug)]
#[must_use = "dropping a reservation gives it up"]
pub struct Reservation<'a> {
    sender: &'a mut Sender,
    begun: Option<Begun>,
}

impl Reservation<'_> {
    fn begun(&self) -> Begun {
        self.begun
            .expect("taken by commit only, which ends the reservation")
    }

    /// Bytes reserved.
    pub fn len(&self) -> usize {
        self.begun().len()
    }

    /// True if no bytes are reserved.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    /// If they do not lie within the reservation.
    #[inline]
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{} bytes at {offset} do not fit a reservation of {}",
            bytes.len(),
            self.len()
        );
        self.sender
            .producer
            .memory()
            .write(self.begun().payload() + offset, bytes);
    }

    /// The reserved bytes in place. They hold what an older message left there.
    ///
    /// # Safety
    /// The ring is shared: no other process may write into this part of it while the slice lives. Cooperating
    /// processes do not; a hostile one could.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        let at = self.sender.producer.memory().at(self.begun().payload());
        // SAFETY: the range is reserved, so inside the mapping; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.len()) }
    }

    /// Sends the message.
    #[inline]
    pub fn commit(self) {
        let length = self.len();
        self.commit_first(length);
    }

    /// Sends the first `length` bytes as the message.
    ///
    /// # Panics
    /// If `length` is more than was reserved.
    #[inline]
    pub fn commit_first(mut self, length: usize) {
        assert!(
            length <= self.len(),
            "{length} bytes of a reservation of {}",
            self.len()
        );
        let begun = self.begun.take().expect("taken here only");
        self.sender.extend(begun, length);
        self.sender.producer.commit(begun, length);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.sender.producer.abort(begun);
        }
    }
}
