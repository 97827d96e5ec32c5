//! The lock-free ring: one producer, one consumer, records of any length, no lock and no wrap.
//!
//! The algorithm, apart from files and processes. It is generic over [`Memory`]: the doubled mapping of a
//! file in production (`shm.rs`), plain words on the heap under loom, Miri and the oracle (`heap.rs`).
//!
//! Send: write header and payload, store the commit word (Release), store the tail cursor.
//! Receive: load the commit word at the position (Acquire); if it is the one that this position must have,
//! the record is complete; after use store the released cursor. Nothing else is shared per message.

pub(crate) mod consumer;
#[cfg(any(test, loom))]
pub(crate) mod heap;
pub(crate) mod memory;
pub(crate) mod mirror;
pub(crate) mod producer;
pub(crate) mod source;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod oracle_tests;

use crate::layout::{Cursor, FLAGS_KNOWN, extension_size, max_payload, record_size};

/// Where and how a ring breaks its rules: what a hostile or broken process wrote, or a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong, for example "record length".
    pub what: &'static str,
    /// The position in the ring at which it was met, bytes since creation.
    pub position: u64,
    /// The value that was found there.
    pub found: u64,
    /// What would have been right, in words.
    pub expected: &'static str,
}

impl core::fmt::Display for Damage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Damage {
            what,
            position,
            found,
            expected,
        } = self;
        write!(
            f,
            "{what} at position {position} is {found:#x}, expected {expected}"
        )
    }
}

/// What says that a record is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// The commit word: a local ring, whose producer is an application.
    CommitWord,
    /// The tail cursor: a mirror (stores of a NIC land in any order) or a source ring read by the relay. A
    /// wrong commit word below the tail is damage.
    Tail,
}

/// The geometry of one record, from its second header word, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub flags: u32,
    /// Payload bytes.
    pub length: usize,
    /// Header, extensions, payload and padding, bytes.
    pub size: usize,
}

impl Shape {
    /// Checks the word {length, flags} that lies at `position` against the ring's own limits.
    #[inline(always)]
    pub fn read(word: u64, position: u64, max_payload: usize) -> Result<Shape, Damage> {
        let (length, flags) = (word as u32 as usize, (word >> 32) as u32);
        if length > max_payload {
            return Err(Damage {
                what: "record length",
                position,
                found: length as u64,
                expected: "at most half the capacity",
            });
        }
        if flags == 0 {
            // Almost always. Apart, so that the next record's place waits for the length alone.
            return Ok(Shape {
                flags,
                length,
                size: record_size(length),
            });
        }
        if flags & !FLAGS_KNOWN != 0 {
            return Err(Damage {
                what: "record flags",
                position,
                found: flags.into(),
                expected: "no unknown bit",
            });
        }
        let size = record_size(extension_size(flags) + length);
        Ok(Shape {
            flags,
            length,
            size,
        })
    }
}

/// A cursor as found at attach, checked against what any cursor must satisfy.
pub(crate) fn check_cursor(what: &'static str, cursor: Cursor) -> Result<Cursor, Damage> {
    let Cursor { position, sequence } = cursor;
    let limit = crate::layout::MAX_POSITION;
    if position >= limit || !position.is_multiple_of(8) || sequence >= limit {
        return Err(Damage {
            what,
            position,
            found: sequence,
            expected: "a position that is a multiple of 8, and a sequence, both below 2^63",
        });
    }
    Ok(cursor)
}

/// Up to where the consumer is done for good: a producer may write up to a capacity beyond.
///
/// Only the slot in force will do. The position of the other one may be that of a release during which the
/// consumer was killed: its successor goes on below it.
/// `None` if the cursor did not stand still for a moment in very many looks.
fn consumer_position(control: &crate::layout::Control) -> Option<u64> {
    let released = &control.released.cursor;
    let position = (0..PATIENT_LOOKS).find_map(|_| released.read())?.position;
    Some(position.max(control.head.cursor.furthest()))
}

/// The same where there is nothing else to go by: an honest consumer stands still once in so many looks.
fn certain_consumer_position(control: &crate::layout::Control) -> Result<u64, Damage> {
    consumer_position(control).ok_or(Damage {
        what: "released cursor",
        position: control.head.cursor.furthest(),
        found: control.released.cursor.furthest(),
        expected: "one that stands still for a moment",
    })
}

/// Each is up to 16 reads: an honest consumer that releases a message every few nanoseconds wins hardly one of them.
const PATIENT_LOOKS: u32 = 1000;

/// Checks that the consumer is neither ahead of the tail nor more than a capacity behind it.
fn check_consumer(consumer: u64, tail: u64, capacity: u64) -> Result<u64, Damage> {
    if consumer > tail || tail - consumer > capacity {
        return Err(Damage {
            what: "consumer's position",
            position: tail,
            found: consumer,
            expected: "a position at most the tail, and at most one capacity behind it",
        });
    }
    Ok(consumer)
}

/// The shape of the committed record at `position`, if there is one.
pub(crate) fn record_at<M: memory::Memory>(
    memory: &M,
    position: u64,
    nonce: u64,
) -> Result<Option<Shape>, Damage> {
    let capacity = memory.capacity() as u64;
    let offset = (position % capacity) as usize;
    // Acquire: partner of the commit word's Release in Producer::commit_quietly.
    let word = memory.word(offset).load(crate::sync::Acquire);
    if word != crate::layout::commit_word(position, nonce) {
        return Ok(None);
    }
    // Relaxed: ordered by the Acquire above.
    let second = memory.word(offset + 8).load(crate::sync::Relaxed);
    Shape::read(second, position, max_payload(capacity)).map(Some)
}

/// Walks committed records from `from`, at most to `limit`; calls nothing, stores nothing. Returns the first
/// position that has no committed record.
fn roll_forward<M: memory::Memory>(
    memory: &M,
    from: Cursor,
    limit: u64,
    nonce: u64,
) -> Result<Cursor, Damage> {
    let mut cursor = from;
    while cursor.position < limit {
        let Some(shape) = record_at(memory, cursor.position, nonce)? else {
            break;
        };
        let next = cursor.position + shape.size as u64;
        if next > limit {
            return Err(Damage {
                what: "record length",
                position: cursor.position,
                found: shape.length as u64,
                expected: "a record that ends within the free part of the ring",
            });
        }
        cursor = Cursor {
            position: next,
            sequence: cursor.sequence + 1,
        };
    }
    Ok(cursor)
}

/// The end of the last record that begins at or after `from` and ends at or before `to`. There is a record at every
/// position below `to`, says whoever calls this: none is damage.
pub(crate) fn walk_records<M: memory::Memory>(
    memory: &M,
    from: Cursor,
    to: u64,
    nonce: u64,
) -> Result<Cursor, Damage> {
    let mut at = from;
    while at.position < to {
        // Bytes arrive in order of position, but a header may be there in part only.
        if to - at.position < crate::layout::RECORD_HEADER as u64 {
            break;
        }
        let Some(shape) = record_at(memory, at.position, nonce)? else {
            return Err(Damage {
                what: "commit word",
                position: at.position,
                found: 0,
                expected: "a record here, since the tail or the peer says so",
            });
        };
        let end = at.position + shape.size as u64;
        if end > to {
            break;
        }
        at = Cursor {
            position: end,
            sequence: at.sequence + 1,
        };
    }
    Ok(at)
}

/// How far committed records reach from `tail`, at most to `limit`; for those who only look. Damage ends the walk.
pub(crate) fn committed_tail<M: memory::Memory>(
    memory: &M,
    tail: Cursor,
    limit: u64,
    nonce: u64,
) -> Cursor {
    let mut cursor = tail;
    if check_cursor("tail", tail).is_err() {
        return tail;
    }
    while cursor.position < limit.min(crate::layout::MAX_POSITION) {
        let Ok(Some(shape)) = record_at(memory, cursor.position, nonce) else {
            break;
        };
        cursor.position += shape.size as u64;
        cursor.sequence += 1;
    }
    cursor
}
