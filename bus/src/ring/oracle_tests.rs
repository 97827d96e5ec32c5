//! The ring against a `VecDeque`: any operations, any start position, any capacity, on the heap (also under Miri)
//! and on the real mapping.

use super::Gate;
use super::consumer::{Consumer, Nothing};
use super::heap::Heap;
use super::memory::Memory;
use super::producer::{Producer, Refusal};
use crate::layout::{Cursor, max_payload, record_size};
use proptest::prelude::*;
use std::collections::VecDeque;

const NONCE: u64 = 0xfeed_beef_dead_cafe;

#[derive(Clone, Debug)]
enum Step {
    /// Send a message of this length.
    Send(usize),
    /// Reserve, write, and give up.
    Abort(usize),
    /// Send so many messages with one tail cursor at the end.
    Batch(Vec<usize>),
    /// Receive one.
    Receive,
    /// Receive up to so many, releasing them together; or give them back.
    ReceiveBatch(usize, bool),
    /// The sender's process is killed and started again.
    RestartProducer,
    /// The same between the commit words of a batch and its tail cursor.
    KillInBatch(Vec<usize>),
    /// The receiver's process is killed and started again.
    RestartConsumer,
}

fn steps(capacity: usize) -> impl Strategy<Value = Vec<Step>> {
    let length = || prop_oneof![4 => 0..40usize, 1 => 0..=capacity / 2 + 1];
    let lengths = || proptest::collection::vec(length(), 0..6);
    let step = prop_oneof![
        6 => length().prop_map(Step::Send),
        1 => length().prop_map(Step::Abort),
        2 => lengths().prop_map(Step::Batch),
        6 => Just(Step::Receive),
        2 => (0..6usize, any::<bool>()).prop_map(|(n, keep)| Step::ReceiveBatch(n, keep)),
        1 => Just(Step::RestartProducer),
        1 => lengths().prop_map(Step::KillInBatch),
        1 => Just(Step::RestartConsumer),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The ring and what it must hold.
struct Harness<M> {
    memory: M,
    producer: Producer<M>,
    consumer: Consumer<M>,
    model: VecDeque<Vec<u8>>,
    sent: u64,
}

impl<M: Memory + Clone> Harness<M> {
    fn new(memory: M, start: Cursor) -> Self {
        let producer = Producer::attach(memory.clone(), NONCE, false).unwrap();
        let consumer = Consumer::attach(memory.clone(), NONCE, Gate::CommitWord, false).unwrap();
        assert_eq!((producer.tail(), consumer.next()), (start, start));
        Harness {
            memory,
            producer,
            consumer,
            model: VecDeque::new(),
            sent: 0,
        }
    }

    fn payload(&mut self, length: usize) -> Vec<u8> {
        self.sent += 1;
        (0..length)
            .map(|i| (self.sent as usize * 31 + i) as u8)
            .collect()
    }

    /// Bytes that the model's messages take in the ring.
    fn used(&self) -> usize {
        self.model.iter().map(|m| record_size(m.len())).sum()
    }

    /// Sends without the tail cursor; says what the model says.
    fn commit_quietly(&mut self, length: usize) {
        let payload = self.payload(length);
        let fits = self.used() + record_size(length) <= self.memory.capacity();
        match self.producer.begin(length) {
            Ok(begun) => {
                assert!(
                    fits && length <= max_payload(self.memory.capacity() as u64),
                    "accepted {length}"
                );
                self.memory.write(begun.payload(), &payload);
                self.producer.commit_quietly(begun, length);
                self.model.push_back(payload);
            }
            Err(Refusal::Full) => assert!(
                !fits,
                "full at {} of {}",
                self.used(),
                self.memory.capacity()
            ),
            Err(Refusal::TooLong) => assert!(length > max_payload(self.memory.capacity() as u64)),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn peek(&mut self) -> Option<(Vec<u8>, usize)> {
        match self.consumer.peek() {
            Ok(record) => {
                let mut payload = vec![0; record.shape.length];
                self.memory.read(record.payload(), &mut payload);
                Some((payload, record.shape.size))
            }
            Err(Nothing::Empty) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send(length) => {
                self.commit_quietly(*length);
                self.producer.finish_batch();
            }
            Step::Abort(length) => {
                if let Ok(begun) = self.producer.begin(*length) {
                    self.memory.write(begun.payload(), &vec![0xff; *length]);
                    self.producer.abort(begun);
                }
            }
            Step::Batch(lengths) => {
                lengths
                    .iter()
                    .for_each(|length| self.commit_quietly(*length));
                self.producer.finish_batch();
            }
            Step::KillInBatch(lengths) => {
                lengths
                    .iter()
                    .for_each(|length| self.commit_quietly(*length));
                self.producer = Producer::attach(self.memory.clone(), NONCE, false).unwrap();
            }
            Step::Receive => match (self.peek(), self.model.pop_front()) {
                (Some((payload, size)), Some(expected)) => {
                    assert_eq!(payload, expected);
                    self.consumer.release(size);
                }
                (None, None) => {}
                (found, expected) => panic!("found {found:?}, expected {expected:?}"),
            },
            Step::ReceiveBatch(count, keep) => {
                let begun = self.consumer.next();
                for index in 0..*count {
                    let found = self.peek();
                    assert_eq!(found.as_ref().map(|f| &f.0), self.model.get(index));
                    let Some((_, size)) = found else { break };
                    self.consumer.pass(size);
                }
                if *keep {
                    self.consumer.take_back(begun);
                } else {
                    self.consumer.release_passed();
                    self.model.drain(..(*count).min(self.model.len()));
                }
            }
            Step::RestartProducer => {
                self.producer = Producer::attach(self.memory.clone(), NONCE, false).unwrap();
            }
            Step::RestartConsumer => {
                self.consumer =
                    Consumer::attach(self.memory.clone(), NONCE, Gate::CommitWord, false).unwrap();
            }
        }
    }
}

fn start() -> impl Strategy<Value = Cursor> {
    let position = prop_oneof![
        0..1000u64,
        (1u64 << 40)..(1 << 41),
        (1u64 << 62)..(1 << 62) + 10_000
    ];
    (position, 0..7u64).prop_map(|(eighth, sequence)| Cursor {
        position: eighth / 8 * 8,
        sequence,
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        // 60 steps a case at the most: 10^5 operations and more; Miri is a thousand times slower.
        cases: if cfg!(miri) { 8 } else { 4000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn oracle_on_the_heap(
        start in start(),
        (capacity, steps) in (8..40usize).prop_flat_map(|words| (Just(words * 8), steps(words * 8))),
    ) {
        let mut harness = Harness::new(Heap::new(capacity, start), start);
        steps.iter().for_each(|step| harness.step(step));
    }
}

#[cfg(not(miri))]
proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn oracle_on_the_mapping(start in start(), steps in steps(4096)) {
        use crate::{Address, Directory, Ring, RingSpec};
        let path = std::env::temp_dir().join(format!("tbus-oracle-{}", std::process::id()));
        let directory = Directory::create(&path).unwrap();
        let spec = RingSpec { start, nonce: Some(NONCE), ..RingSpec::local(4096, Address(1), Address(2)) };
        let ring = Ring::create(&directory, &spec).unwrap();
        ring.remove().unwrap();
        let mut harness = Harness::new(std::sync::Arc::new(ring.mapped()), start);
        steps.iter().for_each(|step| harness.step(step));
        std::fs::remove_dir_all(&path).unwrap();
    }
}

#[cfg(not(miri))]
impl Memory for std::sync::Arc<crate::shm::Mapped> {
    fn control(&self) -> &crate::layout::Control {
        (**self).control()
    }

    fn capacity(&self) -> usize {
        (**self).capacity()
    }

    fn word(&self, offset: usize) -> &crate::sync::AtomicU64 {
        (**self).word(offset)
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        (**self).write(offset, bytes);
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        (**self).read(offset, bytes);
    }

    fn take_lines(&self, offset: usize, size: usize) {
        (**self).take_lines(offset, size);
    }
}
