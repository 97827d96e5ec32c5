//! A ring in plain words on the heap, for loom, Miri and the oracle: what the mapping does by addresses, this
//! does by arithmetic. Every word is an atomic, so a value that was not published shows as an old one.

use super::memory::Memory;
use crate::layout::*;
use crate::sync::{AtomicU32, AtomicU64, Relaxed};
use std::sync::Arc;

pub(crate) struct Heap {
    control: Control,
    words: Vec<AtomicU64>,
}

impl Heap {
    /// A ring of `capacity` bytes (any multiple of 8 here) with its cursors at `start`.
    pub fn new(capacity: usize, start: Cursor) -> Arc<Heap> {
        let zero = || AtomicU64::new(0);
        let slots = || CursorSlots {
            slots: [(); 2].map(|()| Slot {
                position: zero(),
                sequence: zero(),
            }),
        };
        let info = || InfoLine {
            pid: AtomicU32::new(0),
            fences: AtomicU32::new(0),
            attaches: zero(),
            refused: zero(),
            wakes: zero(),
            sleeps: zero(),
            overslept: zero(),
        };
        let control = Control {
            header: HeaderLines {
                words: [(); Header::WORDS].map(|()| zero()),
            },
            producer: ProducerLine {
                tail: slots(),
                started: zero(),
            },
            released: CursorLine { cursor: slots() },
            head: CursorLine { cursor: slots() },
            receiver_signal: SignalLine {
                word: AtomicU32::new(0),
            },
            sender_signal: SignalLine {
                word: AtomicU32::new(0),
            },
            seal: SealLine { end: zero() },
            notes: NotesLine {
                gap: std::array::from_fn(|_| AtomicU64::new(0)),
                gaps: AtomicU64::new(0),
                origin: [zero(), zero()],
                peer_uuid: [zero(), zero()],
                peer_head: slots(),
            },
            producer_info: info(),
            consumer_info: info(),
        };
        for cursor in [
            &control.producer.tail,
            &control.released.cursor,
            &control.head.cursor,
        ] {
            for slot in &cursor.slots {
                slot.position.store(start.position, Relaxed); // nobody else has the ring yet
                slot.sequence.store(start.sequence, Relaxed); // as above
            }
        }
        control.producer.started.store(start.sequence, Relaxed); // as above
        Arc::new(Heap {
            control,
            words: (0..capacity / 8).map(|_| zero()).collect(),
        })
    }
}

impl Memory for Arc<Heap> {
    fn control(&self) -> &Control {
        &self.control
    }

    fn capacity(&self) -> usize {
        self.words.len() * 8
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < 2 * self.capacity());
        &self.words[offset / 8 % self.words.len()]
    }

    // Payloads of the ring begin at multiples of 8, so whole words are copied, the last one padded.
    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity());
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(offset + 8 * index)
                .store(u64::from_le_bytes(word), Relaxed); // published by the commit word
        }
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.capacity());
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = self.word(offset + 8 * index).load(Relaxed).to_le_bytes(); // as in write
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
