//! The receiving side of a ring.

use super::memory::Memory;
use super::producer::add;
use super::{Damage, Gate, Shape, check_cursor};
use crate::layout::*;
use crate::sync::{Acquire, Ordering, Relaxed, compiler_barrier, fence};
use crate::wait;

/// Why there is no message to hand out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nothing {
    Empty,
    Closed,
    Forked,
    /// Boxed, so that the common answers fit registers.
    Damaged(Box<Damage>),
}

/// A complete record that was checked: where its parts lie in the data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub offset: usize,
    pub shape: Shape,
}

impl Record {
    /// Where the payload begins in the data area.
    #[inline(always)]
    pub fn payload(&self) -> usize {
        self.offset + RECORD_HEADER + extension_size(self.shape.flags)
    }
}

// A consumer that is faster than its producer catches up with it and then fights it for every single cache line.
// It is told by dry spells of a few polls between the messages of a stream; then the consumer pauses at the
// beginning of each dry spell, longer and longer, until it finds enough messages at a time that the lines of
// one are under way while another is read. A single message after a longer silence is never waited for.

/// Empty polls in a row up to which a dry spell is one in the midst of a stream.
const SHORT_SPELL: u32 = 8;
/// Messages between two dry spells below which the pause grows, and above which it shrinks.
const BURST: core::ops::Range<u64> = 256..2048;
/// The longest pause, in PAUSE instructions (10 to 45 ns each).
const MAX_PAUSE: u32 = 64;
/// The head is published so many times a lap, and when the ring is found empty.
const HEAD_PER_LAP: u64 = 16;
/// Every so many empty polls in a row the consumer looks at the tail cursor, to notice damage and forks.
const LOOK_EVERY: u32 = 1 << 12;

/// Process-local state of the consumer; the shared state is all in the memory.
///
/// Few fields change per message: a store is held up while an earlier one waits for a cache line that the
/// producer has, and the processor's queue of such stores bounds how many lines are under way at once.
pub(crate) struct Consumer<M> {
    memory: M,
    nonce: u64,
    capacity: u64,
    max_payload: usize,
    gate: Gate,
    /// The next record: its offset in the data area, its sequence. Its position is `lap` + `offset`.
    offset: usize,
    lap: u64,
    sequence: u64,
    /// Records below this position may be read: u64::MAX behind a commit word, the tail as last read behind a
    /// tail cursor, 0 once damaged.
    limit: u64,
    /// Up to where the head is published, and from where on it is due again.
    head: u64,
    head_due: u64,
    /// Fence before looking whether a sender sleeps.
    fence: bool,
    /// The sequence at the last empty poll, how many there were at it, and the pause at the first of them.
    dry_at: u64,
    empty_polls: u32,
    pause: u32,
    damage: Option<Box<Damage>>,
}

/// Without the nonce, see `layout::Header`.
impl<M: Memory> core::fmt::Debug for Consumer<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Consumer").field(&self.next()).finish()
    }
}

impl<M: Memory> Consumer<M> {
    /// Takes up the ring where `released` says that the last consumer left it.
    pub fn attach(memory: M, nonce: u64, gate: Gate, fence: bool) -> Result<Self, Damage> {
        let capacity = memory.capacity() as u64;
        let control = memory.control();
        let next = check_cursor("released", control.released.cursor.recover())?;
        // Read after `released`. A producer that was killed before it stored its tail may leave the consumer
        // ahead of it, by at most one batch; no further than a capacity either way.
        let tail = control.producer.tail.furthest();
        if next.position.abs_diff(tail) > capacity {
            return Err(Damage {
                what: "released",
                position: next.position,
                found: tail,
                expected: "a tail at most one capacity away",
            });
        }
        let head = control.head.cursor.recover();
        let offset = (next.position % capacity) as usize;
        let mut consumer = Consumer {
            nonce,
            capacity,
            max_payload: max_payload(capacity),
            gate,
            offset,
            lap: next.position - offset as u64,
            sequence: next.sequence,
            limit: if gate == Gate::CommitWord {
                u64::MAX
            } else {
                next.position
            },
            head: head.position,
            head_due: next.position + capacity / HEAD_PER_LAP,
            fence,
            dry_at: next.sequence,
            empty_polls: 0,
            pause: 0,
            damage: None,
            memory,
        };
        consumer.memory.control().released.cursor.jump(next);
        // The last consumer may have been killed between a release and the head's publication.
        if head != next {
            consumer.publish_head();
        }
        Ok(consumer)
    }

    pub fn memory(&self) -> &M {
        &self.memory
    }

    #[inline(always)]
    fn position(&self) -> u64 {
        self.lap + self.offset as u64
    }

    /// Position and sequence of the next message.
    #[inline(always)]
    pub fn next(&self) -> Cursor {
        Cursor {
            position: self.position(),
            sequence: self.sequence,
        }
    }

    /// The next record, which stays in the ring until [`Self::release`].
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Record, Nothing> {
        let position = self.position();
        if position >= self.limit {
            self.raise_limit()?;
        }
        // Acquire: partner of the commit word's Release in Producer::commit_quietly; behind a tail cursor the
        // Acquire of the tail in raise_limit did it already.
        let word = self.memory.word(self.offset).load(Acquire);
        if word != commit_word(position, self.nonce) {
            return Err(self.nothing());
        }
        // Relaxed: ordered by the Acquire above. Read once: the word may change at any time.
        let second = self.memory.word(self.offset + 8).load(Relaxed);
        match Shape::read(second, position, self.max_payload) {
            Ok(shape) if shape.size as u64 <= self.limit - position => Ok(Record {
                offset: self.offset,
                shape,
            }),
            Ok(shape) => Err(self.poison(Damage {
                what: "record length",
                position,
                found: shape.length as u64,
                expected: "a record that ends at or before the published tail",
            })),
            Err(damage) => Err(self.poison(damage)),
        }
    }

    /// Moves past the record of `size` bytes, the result of the last peek, without telling anyone yet: see
    /// [`Self::release_passed`].
    #[inline(always)]
    pub fn pass(&mut self, size: usize) {
        self.memory.take_lines(self.offset, size);
        self.sequence += 1;
        self.offset += size;
        if self.offset >= self.memory.capacity() {
            self.offset -= self.memory.capacity();
            self.lap += self.capacity;
        }
    }

    /// Moves past the record of `size` bytes, the result of the last peek, and stores the released cursor, after
    /// which no restart shows it again; now and then also the head, from which the producer learns of free space.
    #[inline(always)]
    pub fn release(&mut self, size: usize) {
        self.pass(size);
        let next = self.next();
        self.memory.control().released.cursor.advance(next);
        if next.position >= self.head_due || self.sender_sleeps() {
            self.publish_head();
        }
    }

    /// True if a sender may be asleep for want of room: what was just released might be enough for it.
    #[inline(always)]
    fn sender_sleeps(&self) -> bool {
        compiler_barrier();
        if self.fence {
            fence(Ordering::SeqCst);
        }
        // Relaxed: a sleeping sender orders its raised bit against our released by membarrier, or we by the fence.
        self.memory.control().sender_signal.word.load(Relaxed) != 0
    }

    /// Stores the released cursor after any number of passed records.
    pub fn release_passed(&mut self) {
        self.memory.control().released.cursor.jump(self.next());
        if self.position() >= self.head_due || self.sender_sleeps() {
            self.publish_head();
        }
    }

    /// Forgets what was passed since the last publication: it will be handed out again.
    pub fn take_back(&mut self, to: Cursor) {
        self.offset = (to.position % self.capacity) as usize;
        self.lap = to.position - self.offset as u64;
        self.sequence = to.sequence;
        self.dry_at = self.dry_at.min(to.sequence);
    }

    /// Tells the producer what `released` says.
    #[cold]
    fn publish_head(&mut self) {
        let control = self.memory.control();
        let cursor = control.released.cursor.recover();
        self.head = cursor.position;
        self.head_due = cursor.position.saturating_add(self.capacity / HEAD_PER_LAP);
        control.head.cursor.jump(cursor);
        self.memory.announce();
        if self.sender_sleeps() && wait::wake(&self.memory.control().sender_signal.word) {
            add(&self.memory.control().consumer_info.wakes, 1);
        }
    }

    /// Behind a tail cursor: reads how far it has come.
    #[cold]
    fn raise_limit(&mut self) -> Result<(), Nothing> {
        if let Some(damage) = &self.damage {
            return Err(Nothing::Damaged(damage.clone()));
        }
        // Only the slot in force: a relay that was killed while it published goes on below the other one.
        let Some(Cursor { position: tail, .. }) = self.memory.control().producer.tail.read() else {
            return Err(Nothing::Empty);
        };
        let position = self.position();
        if tail == position {
            return Err(self.nothing());
        }
        if tail < position || tail - position > self.capacity || !tail.is_multiple_of(8) {
            return Err(self.poison(Damage {
                what: "tail",
                position: self.position(),
                found: tail,
                expected: "a multiple of 8, at most one capacity ahead of the consumer",
            }));
        }
        self.limit = tail;
        Ok(())
    }

    /// No record at the position: the rare things that must be looked at sooner or later.
    #[cold]
    fn nothing(&mut self) -> Nothing {
        if self.head != self.position() {
            self.publish_head();
        }
        if self.sequence == self.dry_at {
            self.empty_polls = self.empty_polls.wrapping_add(1);
        } else {
            self.begin_dry_spell();
        }
        let promised = self.gate == Gate::Tail && self.position() < self.limit;
        if !promised && !self.empty_polls.is_multiple_of(LOOK_EVERY) {
            // Relaxed: the Acquire of `seal` follows where it matters.
            if self.memory.control().receiver_signal.word.load(Relaxed) & SIGNAL_CLOSED == 0 {
                return Nothing::Empty;
            }
        }
        self.look_closely()
    }

    /// The first empty poll after a message: learns from the last dry spell, and pauses if in a stream.
    fn begin_dry_spell(&mut self) {
        let burst = self.sequence - self.dry_at;
        // Fewer messages than pauses can have brought: this is no stream.
        if self.empty_polls > SHORT_SPELL || burst < 2 || burst < u64::from(self.pause) / 2 {
            self.pause = 0;
        } else if burst < BURST.start {
            self.pause = (2 * self.pause + 1).min(MAX_PAUSE);
        } else if burst >= BURST.end {
            self.pause /= 2;
        }
        self.dry_at = self.sequence;
        self.empty_polls = 1;
        for _ in 0..self.pause {
            core::hint::spin_loop();
        }
    }

    /// Why nothing is there: closed, forked, damaged, or simply empty.
    #[cold]
    pub fn look_closely(&mut self) -> Nothing {
        if self.memory.forked() {
            return Nothing::Forked;
        }
        let control = self.memory.control();
        // Acquire: partner of the Release in close; the sealed tail is final, and so are the records below it.
        let seal = control.seal.end.load(Acquire);
        let end = (seal & SEALED != 0).then_some(seal & !SEALED);
        if end == Some(self.position()) {
            return Nothing::Closed;
        }
        let expected = match self.gate {
            // A tail past our position promises a record here, since its commit word was stored before the tail;
            // and a seal anywhere else does.
            Gate::CommitWord
                if end.is_some() || control.producer.tail.furthest() > self.position() =>
            {
                // Acquire: as in peek.
                let word = self.memory.word(self.offset).load(Acquire);
                if word == commit_word(self.position(), self.nonce) {
                    return Nothing::Empty; // it has just come; the next peek finds it
                }
                "a record here, since the tail or the seal is elsewhere"
            }
            Gate::Tail if self.position() < self.limit => {
                "a record here, since the published tail is past it"
            }
            // A mirror is sealed at its published tail, which is where we are.
            Gate::Tail
                if end.is_some()
                    && control
                        .producer
                        .tail
                        .read()
                        .is_some_and(|t| t.position == self.position()) =>
            {
                "a record here, since the seal is elsewhere"
            }
            _ => return Nothing::Empty,
        };
        let found = self.memory.word(self.offset).load(Relaxed); // for the report only
        self.poison(Damage {
            what: "commit word",
            position: self.position(),
            found: found.min(1),
            expected,
        })
    }

    #[cold]
    fn poison(&mut self, damage: Damage) -> Nothing {
        self.limit = 0;
        let damage = Box::new(damage);
        self.damage = Some(damage.clone());
        Nothing::Damaged(damage)
    }
}
