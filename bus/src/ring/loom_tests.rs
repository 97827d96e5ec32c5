//! loom: every interleaving, and every value that a weak memory may show, for two or three threads and a few
//! messages. `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test --release -p tbus --lib loom`
//!
//! loom has no membarrier; a fence stands on both sides in its place (`sync::compiler_barrier`).

use super::Gate;
use super::consumer::{Consumer, Nothing};
use super::heap::Heap;
use super::memory::Memory;
use super::producer::{Producer, Refusal, close};
use crate::layout::{Cursor, CursorSlots, Slot};
use crate::sync::{AtomicU32, AtomicU64, Ordering::*};
use crate::wait;
use loom::thread;
use std::sync::Arc;

const NONCE: u64 = 0x0123_4567_89ab_cdef;
/// Three records of 24 bytes: the fourth message overwrites the first.
const CAPACITY: usize = 72;

fn ring() -> Arc<Heap> {
    Heap::new(CAPACITY, Cursor::default())
}

fn send(producer: &mut Producer<Arc<Heap>>, value: u64) -> Result<(), Refusal> {
    let begun = producer.begin(8)?;
    producer
        .memory()
        .write(begun.payload(), &value.to_le_bytes());
    producer.commit(begun, 8);
    Ok(())
}

fn receive(consumer: &mut Consumer<Arc<Heap>>) -> Result<u64, Nothing> {
    let record = consumer.peek()?;
    assert_eq!(record.shape.length, 8, "a complete header");
    let mut bytes = [0; 8];
    consumer.memory().read(record.payload(), &mut bytes);
    consumer.release(record.shape.size);
    Ok(u64::from_le_bytes(bytes))
}

fn ends(ring: &Arc<Heap>) -> (Producer<Arc<Heap>>, Consumer<Arc<Heap>>) {
    let producer = Producer::attach(ring.clone(), NONCE, false).unwrap();
    let consumer = Consumer::attach(ring.clone(), NONCE, Gate::CommitWord, false).unwrap();
    (producer, consumer)
}

/// Whoever sees a record sees it whole; room that was freed is written again; order is kept.
#[test]
fn loom_publish_consume_and_reuse() {
    const MESSAGES: u64 = 5;
    loom::model(|| {
        let ring = ring();
        let (mut producer, mut consumer) = ends(&ring);
        let sender = thread::spawn(move || {
            for value in 0..MESSAGES {
                loop {
                    match send(&mut producer, value * 3 + 1) {
                        Ok(()) => break,
                        Err(Refusal::Full) => thread::yield_now(),
                        Err(other) => panic!("{other:?}"),
                    }
                }
            }
        });
        let mut next = 0;
        while next < MESSAGES {
            match receive(&mut consumer) {
                Ok(value) => {
                    assert_eq!(value, next * 3 + 1);
                    next += 1;
                }
                Err(Nothing::Empty) => thread::yield_now(),
                Err(other) => panic!("{other:?}"),
            }
        }
        sender.join().unwrap();
    });
}

/// A batch: the tail cursor lags behind its commit words, and a closer or a tool never sees it torn.
#[test]
fn loom_cursor_is_never_torn() {
    loom::model(|| {
        let zero = || AtomicU64::new(0);
        let cursor = Arc::new(CursorSlots {
            slots: [(); 2].map(|()| Slot {
                position: zero(),
                sequence: zero(),
            }),
        });
        let writer = {
            let cursor = cursor.clone();
            thread::spawn(move || {
                cursor.advance(Cursor {
                    position: 8,
                    sequence: 1,
                });
                cursor.jump(Cursor {
                    position: 24,
                    sequence: 3,
                });
                cursor.advance(Cursor {
                    position: 32,
                    sequence: 4,
                });
            })
        };
        if let Some(seen) = cursor.read() {
            assert_eq!(seen.position, seen.sequence * 8, "{seen:?}");
        }
        writer.join().unwrap();
        assert_eq!(
            cursor.recover(),
            Cursor {
                position: 32,
                sequence: 4
            }
        );
    });
}

/// What was accepted before or while the ring was closed is received, and then `Closed` is said; nothing that is
/// accepted lies behind the seal.
#[test]
fn loom_close() {
    loom::model(|| {
        let ring = ring();
        let (mut producer, mut consumer) = ends(&ring);
        let sender = thread::spawn(move || {
            let mut accepted = 0;
            while accepted < 2 {
                match send(&mut producer, accepted) {
                    Ok(()) => accepted += 1,
                    Err(Refusal::Closed) => break,
                    Err(other) => panic!("{other:?}"),
                }
            }
            accepted
        });
        // The sender lives, so the closer must not take its role.
        let end = loop {
            match close(&ring, NONCE, true, || false).unwrap() {
                Some(end) => break end,
                None => thread::yield_now(),
            }
        };
        let mut received = 0;
        while let Ok(value) = receive(&mut consumer) {
            assert_eq!(value, received);
            received += 1;
        }
        assert_eq!(consumer.look_closely(), Nothing::Closed);
        assert_eq!((sender.join().unwrap(), end), (received, received * 24));
    });
}

/// Sleeps until `look` finds something, as `Waiter::wait` does. A missed wake-up is an endless loop, which loom
/// reports.
fn sleep_until<T>(word: &AtomicU32, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let value = wait::announce(word);
        if let Some(found) = look() {
            wait::renounce(word);
            return found;
        }
        wait::sleep(word, value, std::time::Duration::MAX);
        if let Some(found) = look() {
            return found;
        }
    }
}

/// A receiver that goes to sleep while a message is sent is woken.
#[test]
fn loom_receiver_misses_no_wake_up() {
    loom::model(|| {
        let ring = ring();
        let (mut producer, mut consumer) = ends(&ring);
        let sender = thread::spawn(move || {
            send(&mut producer, 7).unwrap();
        });
        let control = ring.clone();
        let value = sleep_until(&control.control().receiver_signal.word, || {
            receive(&mut consumer).ok()
        });
        assert_eq!(value, 7);
        sender.join().unwrap();
    });
}

/// A sender that goes to sleep on a full ring while the receiver frees room is woken.
#[test]
fn loom_sender_misses_no_wake_up() {
    loom::model(|| {
        let ring = ring();
        let (mut producer, mut consumer) = ends(&ring);
        for value in 0..3 {
            send(&mut producer, value).unwrap();
        }
        let receiver = thread::spawn(move || {
            assert_eq!(receive(&mut consumer), Ok(0));
        });
        let control = ring.clone();
        sleep_until(&control.control().sender_signal.word, || {
            producer.has_room(8).then_some(())
        });
        send(&mut producer, 3).unwrap();
        receiver.join().unwrap();
    });
}

/// A receiver that sleeps while the ring is closed is woken and told.
#[test]
fn loom_close_wakes_the_receiver() {
    loom::model(|| {
        let ring = ring();
        let (mut producer, mut consumer) = ends(&ring);
        send(&mut producer, 0).unwrap();
        drop(producer);
        let closer = {
            let ring = ring.clone();
            thread::spawn(move || assert_eq!(close(&ring, NONCE, true, || true), Ok(Some(24))))
        };
        let control = ring.clone();
        sleep_until(&control.control().receiver_signal.word, || {
            loop {
                match receive(&mut consumer) {
                    Ok(value) => assert_eq!(value, 0),
                    Err(Nothing::Closed) => return Some(()),
                    Err(Nothing::Empty) => return None,
                    Err(other) => panic!("{other:?}"),
                }
            }
        });
        assert_ne!(ring.control().seal.end.load(Acquire), 0);
        closer.join().unwrap();
    });
}
