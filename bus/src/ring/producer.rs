//! The sending side of a ring.

use super::memory::Memory;
use super::{
    Damage, certain_consumer_position, check_consumer, check_cursor, consumer_position,
    roll_forward,
};
use crate::layout::*;
use crate::sync::{Acquire, Ordering, Relaxed, Release, compiler_barrier, fence};
use crate::wait;

/// Why a message was not accepted. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
    TooLong,
    Forked,
    /// Boxed, so that the common answers fit registers.
    Damaged(Box<Damage>),
}

/// Process-local state of the producer; the shared state is all in the memory.
pub(crate) struct Producer<M> {
    memory: M,
    nonce: u64,
    capacity: u64,
    max_payload: usize,
    /// The next record: its offset in the data area, its sequence. Its position is `lap` + `offset`.
    offset: usize,
    lap: u64,
    sequence: u64,
    /// The tail may grow up to here: the consumer's last known position + capacity. 0 once damaged, so that
    /// every call takes the slow path.
    limit: u64,
    /// The consumer's position as last seen, for the check that it never goes back or past the tail.
    seen_head: u64,
    /// Fence per message, since this process could not register for membarrier.
    fence: bool,
    /// Flags that every record gets, and the bytes of their extensions.
    flags: u32,
    extension: usize,
    damage: Option<Box<Damage>>,
}

/// One reserved record: where it lies. Made by [`Producer::begin`], used up by [`Producer::commit`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// Offset of the record in the data area.
    offset: usize,
    /// Bytes between the record's start and its payload.
    payload_at: usize,
    /// Payload bytes asked for.
    length: usize,
}

impl Begun {
    /// Offset of the payload in the data area.
    pub fn payload(&self) -> usize {
        self.offset + self.payload_at
    }

    /// Payload bytes asked for.
    pub fn len(&self) -> usize {
        self.length
    }
}

/// Without the nonce, see `layout::Header`.
impl<M: Memory> core::fmt::Debug for Producer<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Producer").field(&self.tail()).finish()
    }
}

impl<M: Memory> Producer<M> {
    /// Takes up the ring where the last producer left it: rolls forward over records that were committed but
    /// not yet counted in the tail cursor. `fence`: see [`wait::register`].
    pub fn attach(memory: M, nonce: u64, fence: bool) -> Result<Self, Damage> {
        let capacity = memory.capacity() as u64;
        let control = memory.control();
        let tail = check_cursor("tail", control.producer.tail.recover())?;
        let released = certain_consumer_position(control)?;
        let ahead = released.saturating_sub(tail.position);
        if released >= MAX_POSITION
            || ahead > capacity
            || tail.position.saturating_sub(released) > capacity
        {
            return Err(Damage {
                what: "released",
                position: tail.position,
                found: released,
                expected: "a position at most one capacity away from the tail",
            });
        }
        let limit = released.min(tail.position) + capacity;
        let found = roll_forward(&memory, tail, limit, nonce)?;
        if released > found.position {
            return Err(Damage {
                what: "released",
                position: found.position,
                found: released,
                expected: "a position up to the tail",
            });
        }
        let offset = (found.position % capacity) as usize;
        let producer = Producer {
            nonce,
            capacity,
            max_payload: max_payload(capacity),
            offset,
            lap: found.position - offset as u64,
            sequence: found.sequence,
            limit: released + capacity,
            seen_head: released,
            fence,
            flags: 0,
            extension: 0,
            damage: None,
            memory,
        };
        let control = producer.memory.control();
        control.producer.tail.jump(found);
        // Release: the tail cursor above is visible to a closer that sees no message in the making.
        control.producer.started.store(found.sequence, Release);
        // The last producer may have been killed between a commit and its wake-up.
        producer.wake_receiver();
        Ok(producer)
    }

    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Position and sequence of the next message.
    #[inline(always)]
    pub fn tail(&self) -> Cursor {
        Cursor {
            position: self.position(),
            sequence: self.sequence,
        }
    }

    #[inline(always)]
    fn position(&self) -> u64 {
        self.lap + self.offset as u64
    }

    pub fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Sets the extensions that every following record carries.
    pub fn set_flags(&mut self, flags: u32) {
        debug_assert!(flags & !FLAGS_KNOWN == 0);
        self.flags = flags;
        self.extension = extension_size(flags);
    }

    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Room for one record: checks length, space and that the ring is open, and notes in shared memory that a
    /// message is in the making. Either `commit` or `abort` must follow before the next `begin`.
    #[inline(always)]
    pub fn begin(&mut self, length: usize) -> Result<Begun, Refusal> {
        if length > self.max_payload {
            return Err(Refusal::TooLong);
        }
        let size = record_size(self.extension + length);
        if self.position() + size as u64 > self.limit
            && let Err(refusal) = self.make_room(size as u64)
        {
            if refusal == Refusal::Full {
                add(&self.memory.control().producer_info.refused, 1);
            }
            return Err(refusal);
        }
        let control = self.memory.control();
        // Relaxed: a closer orders this store before the load below by membarrier, or we by the fence.
        control.producer.started.store(self.sequence + 1, Relaxed);
        self.order_stores_before_loads();
        // Relaxed: only the bit matters; nothing is read through it.
        if control.receiver_signal.word.load(Relaxed) & SIGNAL_CLOSED != 0 {
            return Err(self.closed());
        }
        Ok(Begun {
            offset: self.offset,
            payload_at: RECORD_HEADER + self.extension,
            length,
        })
    }

    /// Stores extension number `index`, in flag order.
    #[inline(always)]
    pub fn extend(&self, begun: Begun, index: usize, value: u64) {
        // Relaxed: published by the commit word.
        self.memory
            .word(begun.offset + RECORD_HEADER + 8 * index)
            .store(value, Relaxed);
    }

    /// Publishes the record with the first `length` payload bytes, which are in place.
    #[inline(always)]
    pub fn commit(&mut self, begun: Begun, length: usize) {
        self.commit_quietly(begun, length);
        self.memory.control().producer.tail.advance(self.tail());
        self.look_at_receiver();
    }

    /// Publishes the record to the consumer, but leaves the tail cursor and the wake-up to [`Self::finish_batch`].
    /// A batch does so: its commit words still go out in the order of their positions, without which a
    /// restarted producer would meet phantoms.
    #[inline(always)]
    pub fn commit_quietly(&mut self, begun: Begun, length: usize) {
        debug_assert!(length <= begun.length && begun.offset == self.offset);
        let size = record_size(self.extension + length);
        let second = length as u64 | u64::from(self.flags) << 32;
        // Relaxed: published by the commit word.
        self.memory.word(begun.offset + 8).store(second, Relaxed);
        let word = commit_word(self.position(), self.nonce);
        // Release: header, extensions and payload before it. Partner: Acquire in Consumer::peek, roll_forward.
        self.memory.word(begun.offset).store(word, Release);
        self.sequence += 1;
        self.offset += size;
        if self.offset >= self.memory.capacity() {
            self.offset -= self.memory.capacity();
            self.lap += self.capacity;
        }
    }

    /// Stores the tail cursor and wakes a sleeping receiver, after any number of quiet commits.
    pub fn finish_batch(&mut self) {
        self.memory.control().producer.tail.jump(self.tail());
        self.look_at_receiver();
    }

    #[inline(always)]
    fn look_at_receiver(&self) {
        self.memory.announce();
        self.order_stores_before_loads();
        let control = self.memory.control();
        // Relaxed: a sleeper orders its raised bit against our commit by membarrier, or we by the fence.
        if control.receiver_signal.word.load(Relaxed) != 0 {
            self.wake_receiver();
        }
    }

    /// Gives the record up; nothing was written that anybody believes.
    pub fn abort(&mut self, _begun: Begun) {
        // Release: so that a closer that sees it also sees the tail cursor.
        self.memory
            .control()
            .producer
            .started
            .store(self.sequence, Release);
    }

    #[inline(always)]
    fn order_stores_before_loads(&self) {
        compiler_barrier();
        if self.fence {
            fence(Ordering::SeqCst);
        }
    }

    /// The slow path of `begin`: what the consumer has freed meanwhile. Reads `released`, the durable cursor:
    /// the lazy head may lag for ever behind a consumer that stopped just short of the next publication.
    #[cold]
    fn make_room(&mut self, size: u64) -> Result<(), Refusal> {
        if let Some(damage) = &self.damage {
            return Err(Refusal::Damaged(damage.clone()));
        }
        if self.memory.forked() {
            return Err(Refusal::Forked);
        }
        // In the midst of a batch the tail cursor lags. It must not lag by more than what the old limit
        // allowed, or a successor would roll forward from records that have been overwritten since.
        let control = self.memory.control();
        control.producer.tail.jump(self.tail());
        let wanted = self.position() + size;
        let mut head = control.head.cursor.furthest();
        if wanted > head.saturating_add(self.capacity) {
            // A consumer too fast to be read has at least not gone back.
            head = consumer_position(control).unwrap_or(head.max(self.seen_head));
        }
        if head < self.seen_head || head > self.position() {
            return Err(Refusal::Damaged(self.poison(Damage {
                what: "consumer's position",
                position: self.position(),
                found: head,
                expected: "a position that never goes back and is at most the tail",
            })));
        }
        self.seen_head = head;
        self.limit = head + self.capacity;
        if wanted > self.limit {
            // The consumer may sit on a closed ring and will never free anything.
            if control.receiver_signal.word.load(Relaxed) & SIGNAL_CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            return Err(Refusal::Full);
        }
        Ok(())
    }

    fn poison(&mut self, damage: Damage) -> Box<Damage> {
        let damage = Box::new(damage);
        self.limit = 0;
        self.damage = Some(damage.clone());
        damage
    }

    #[cold]
    fn closed(&mut self) -> Refusal {
        // As in abort.
        self.memory
            .control()
            .producer
            .started
            .store(self.sequence, Release);
        if self.memory.forked() {
            Refusal::Forked
        } else {
            Refusal::Closed
        }
    }

    #[cold]
    fn wake_receiver(&self) {
        let control = self.memory.control();
        if wait::wake(&control.receiver_signal.word) {
            add(&control.producer_info.wakes, 1);
        }
    }

    /// True if a record with `length` payload bytes would be accepted now, or refused for another reason than
    /// space: whoever waits for space need wait no longer.
    pub fn has_room(&mut self, length: usize) -> bool {
        let size = record_size(self.extension + length) as u64;
        length > self.max_payload
            || self.position() + size <= self.limit
            || !matches!(self.make_room(size), Err(Refusal::Full))
    }
}

/// Adds to a statistic that only the caller's side writes: load and store, no locked instruction.
pub(crate) fn add(counter: &crate::sync::AtomicU64, n: u64) {
    // Relaxed: a count, nothing is read through it.
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Ends a ring: makes senders refuse, waits until no message is in the making, and seals the final tail.
/// `rolls_forward`: what a dead producer committed after its last tail counts; not so on a mirror.
/// `producer_is_gone` must return true only if the caller holds the producer's role, so that nobody else
/// writes. Returns the final tail, or `None` if a sender is still in the midst of a message, or a mirror's relay there.
pub(crate) fn close<M: Memory>(
    memory: &M,
    nonce: u64,
    rolls_forward: bool,
    mut producer_is_gone: impl FnMut() -> bool,
) -> Result<Option<u64>, Damage> {
    let control = memory.control();
    // Acquire: partner of the Release below. Whoever holds the role of a ring that is sealed fills the next generation.
    let is_sealed = control.seal.end.load(Acquire) & SEALED != 0;
    if !rolls_forward && !is_sealed && !producer_is_gone() {
        // A living relay's mirror, which it goes on filling: it lets go of the mirror, and then closes it.
        return Ok(None);
    }
    // AcqRel: partner of the sender's load in begin by way of the barrier that follows.
    control
        .receiver_signal
        .word
        .fetch_or(SIGNAL_CLOSED, Ordering::AcqRel);
    if !wait::barrier() {
        // No membarrier here. A store leaves its processor's buffer within microseconds.
        #[cfg(not(loom))]
        std::thread::sleep(core::time::Duration::from_millis(10));
    }
    let capacity = memory.capacity() as u64;
    let sealed = control.seal.end.load(Acquire); // partner: Release below
    if sealed & SEALED != 0 {
        // The tail was brought to the seal before it was sealed, and does not move any more.
        let tail = control.producer.tail.recover().position;
        let end = sealed & !SEALED;
        return match end == tail {
            true => Ok(Some(end)),
            false => Err(Damage {
                what: "seal",
                position: tail,
                found: end,
                expected: "the tail",
            }),
        };
    }
    let end = if producer_is_gone() {
        let tail = check_cursor("tail", control.producer.tail.recover())?;
        let mut end = tail;
        if rolls_forward {
            let room_to = certain_consumer_position(control)?.min(tail.position);
            end = roll_forward(memory, tail, room_to + capacity, nonce)?;
        }
        check_consumer(certain_consumer_position(control)?, end.position, capacity)?;
        control.producer.tail.jump(end);
        end.position
    } else {
        let Some(tail) = control.producer.tail.read() else {
            return Ok(None);
        };
        // Acquire: partner of the Release stores of `started` in abort and closed. The tail was read first:
        // a send that begins in between shows here, one that began after the barrier saw CLOSED.
        if control.producer.started.load(Acquire) != tail.sequence {
            return Ok(None);
        }
        check_cursor("tail", tail)?;
        check_consumer(certain_consumer_position(control)?, tail.position, capacity)?;
        tail.position
    };
    control.seal.end.store(end | SEALED, Release); // partner: Acquire in Consumer::nothing and above
    // The seal before the looks at who sleeps. Partner: the sleepers' barrier in wait::announce.
    fence(Ordering::SeqCst);
    wait::wake(&control.receiver_signal.word);
    wait::wake(&control.sender_signal.word);
    Ok(Some(end))
}
