//! The public API, one idea a test.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::IoSlice;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tbus::layout::{Cursor, SIGNAL_SLEEPING, record_size};
use tbus::{
    Address, Directory, Error, Extensions, FairReceiver, Kind, LONGEST_SLEEP, MESSAGES_PER_TURN,
    Receiver, Ring, RingSpec, Sender, TryRecvError, TrySendError,
};

/// Longer than anything here takes; when it has passed, something is broken.
const LONG: Duration = Duration::from_secs(20);

/// A directory of its own, removed when the test ends, however it ends.
struct Place {
    directory: Directory,
    slots: Cell<u32>,
}

impl Place {
    fn new(name: &str) -> Place {
        let name = format!("tbus-test-api-{name}-{}", std::process::id());
        let path = Directory::path_for_key(0).with_file_name(name);
        let directory = Directory::create(path).unwrap();
        Place {
            directory,
            slots: Cell::new(0),
        }
    }

    fn ring(&self, capacity: u64) -> Ring {
        self.create(RingSpec::local(capacity, Address(1), Address(2)))
    }

    /// A ring with a lock slot of its own.
    fn create(&self, spec: RingSpec) -> Ring {
        let lock_slot = self.slots.replace(self.slots.get() + 1);
        Ring::create(&self.directory, &RingSpec { lock_slot, ..spec }).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.directory.path());
    }
}

/// One ring of 4096 bytes with both its ends.
fn attached(name: &str) -> (Place, Ring, Sender, Receiver) {
    let place = Place::new(name);
    let ring = place.ring(4096);
    let (sender, receiver) = attach(&ring);
    (place, ring, sender, receiver)
}

fn attach(ring: &Ring) -> (Sender, Receiver) {
    (ring.sender().unwrap(), ring.receiver().unwrap())
}

/// `length` bytes that depend on `seed`.
fn payload(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| (seed.wrapping_mul(167) + n * 31 + n / 256) as u8)
        .collect()
}

/// The next message, released.
fn receive(receiver: &mut Receiver) -> Vec<u8> {
    let message = receiver.peek().unwrap();
    let mut bytes = vec![0; message.len()];
    assert_eq!(message.copy_to(&mut bytes).unwrap(), bytes.len());
    message.release();
    bytes
}

/// The next message is `payload(seed, length)`; released.
#[track_caller]
fn expect(receiver: &mut Receiver, seed: usize, length: usize) {
    assert!(
        receive(receiver) == payload(seed, length),
        "{length} bytes, seed {seed}"
    );
}

fn send(sender: &mut Sender, seed: usize, length: usize) {
    sender.try_send(&payload(seed, length)).unwrap();
}

#[track_caller]
fn assert_empty(receiver: &mut Receiver) {
    let result = receiver.peek().map(|message| message.cursor());
    assert!(matches!(result, Err(TryRecvError::Empty)), "{result:?}");
}

fn fill(sender: &mut Sender, length: usize) -> u64 {
    let mut count = 0;
    while sender.try_send(&payload(count as usize, length)).is_ok() {
        count += 1;
    }
    count
}

fn file(ring: &Ring) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(ring.path())
        .unwrap()
}

/// Offset in the file of a position.
fn offset(ring: &Ring, position: u64) -> u64 {
    ring.header().data_offset + position % ring.header().capacity
}

/// Linear congruential generator, Knuth's MMIX; enough for orders that nobody chose.
fn random(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) as usize
}

// ---- Sending and receiving ------------------------------------------------------------------------------------

/// Sends fillers until the next record begins `offset` bytes into the data area.
fn go_to(offset: u64, sender: &mut Sender, receiver: &mut Receiver) {
    let capacity = sender.ring().header().capacity;
    let mut left = (offset + capacity - sender.next().position % capacity) % capacity;
    if left == 8 {
        left += capacity; // less than a record
    }
    while left > 0 {
        let mut size = left.min(2048);
        if left - size == 8 {
            size -= 8;
        }
        send(sender, 0, size as usize - 16);
        receiver.peek().unwrap().release();
        left -= size;
    }
}

#[test]
fn every_length_arrives_from_every_offset() {
    let (_place, ring, mut sender, mut receiver) = attached("lengths");
    let noise = payload(1, sender.max_len() + 256);
    let mut buffer = vec![0; sender.max_len()];
    assert_eq!(sender.max_len() as u64, ring.header().capacity / 2);
    for length in 0..=sender.max_len() {
        for offset in (0..ring.header().capacity).step_by(8) {
            go_to(offset, &mut sender, &mut receiver);
            let sent = &noise[(length + offset as usize / 8) % 256..][..length];
            sender.try_send(sent).unwrap();
            assert_eq!(
                receiver.try_recv(&mut buffer).unwrap(),
                length,
                "at offset {offset}"
            );
            assert!(
                buffer[..length] == *sent,
                "{length} bytes at offset {offset}"
            );
        }
    }
    assert_empty(&mut receiver);
}

#[test]
fn a_longer_message_is_refused() {
    let (_place, _, mut sender, mut receiver) = attached("too-long");
    let max = sender.max_len();
    let refused = sender.try_send(&vec![0; max + 1]);
    assert!(
        matches!(refused, Err(TrySendError::TooLong { length, max: m }) if (length, m) == (max + 1, max))
    );
    let refused = sender.reserve(max + 1).map(drop);
    assert!(matches!(refused, Err(TrySendError::TooLong { .. })));
    assert_empty(&mut receiver);
    assert_eq!(sender.next(), Cursor::default());
}

#[test]
fn a_buffer_that_is_too_short_keeps_the_message() {
    let (_place, _, mut sender, mut receiver) = attached("too-short");
    send(&mut sender, 1, 100);
    let short = receiver.try_recv(&mut [0; 99]);
    assert!(matches!(short, Err(TryRecvError::TooShort { needed: 100 })));
    expect(&mut receiver, 1, 100);
}

#[test]
fn a_full_ring_refuses_until_there_is_room() {
    let (_place, _, mut sender, mut receiver) = attached("full");
    let count = fill(&mut sender, 48);
    assert_eq!(count, 4096 / 64, "to the last byte");
    assert!(matches!(sender.try_send(&[]), Err(TrySendError::Full)));
    expect(&mut receiver, 0, 48);
    send(&mut sender, 99, 48);
    assert!(matches!(sender.try_send(&[]), Err(TrySendError::Full)));
    for number in (1..count as usize).chain([99]) {
        expect(&mut receiver, number, 48);
    }
    assert_empty(&mut receiver);
}

#[test]
fn vectored_equals_single() {
    let (_place, _, mut sender, mut receiver) = attached("vectored");
    for length in [0, 1, 7, 8, 63, 64, 65, 300] {
        let whole = payload(length, length);
        for first in 0..=length {
            let (a, rest) = whole.split_at(first);
            let (b, c) = rest.split_at(rest.len() / 2);
            let parts = [a, &[], b, c].map(IoSlice::new);
            sender.try_send_vectored(&parts).unwrap();
            assert_eq!(
                receive(&mut receiver),
                whole,
                "{length} bytes split at {first}"
            );
        }
    }
    sender.try_send_vectored(&[]).unwrap();
    assert_eq!(receive(&mut receiver), []);
}

#[test]
fn a_reservation_is_written_in_any_order() {
    let (_place, _, mut sender, mut receiver) = attached("reserve");
    let whole = payload(3, 500);
    let mut reservation = sender.reserve(500).unwrap();
    assert_eq!(reservation.len(), 500);
    for (number, part) in whole.chunks(7).enumerate().rev() {
        reservation.write_at(7 * number, part);
    }
    reservation.commit();
    assert_eq!(receive(&mut receiver), whole);
}

#[test]
fn the_first_bytes_of_a_reservation_can_be_sent() {
    let (_place, _, mut sender, mut receiver) = attached("commit-first");
    for length in [0, 1, 99, 100] {
        let mut reservation = sender.reserve(100).unwrap();
        reservation.write_at(0, &payload(length, length));
        reservation.commit_first(length);
        expect(&mut receiver, length, length);
        assert_eq!(sender.next(), receiver.next());
    }
}

#[test]
fn an_aborted_reservation_leaves_nothing() {
    let (_place, ring, mut sender, mut receiver) = attached("abort");
    sender.try_send(b"before").unwrap();
    let before = sender.next();
    let mut reservation = sender.reserve(1000).unwrap();
    reservation.write_at(0, &[255; 1000]);
    drop(reservation);

    assert_eq!((sender.next(), ring.status().tail), (before, before));
    assert_eq!(receive(&mut receiver), b"before");
    assert_empty(&mut receiver);
    sender.try_send(b"after").unwrap();
    assert_eq!(receiver.peek().unwrap().cursor(), before);
    assert_eq!(receive(&mut receiver), b"after");
    // Nor does it look like a message in the making, for which a closer would wait.
    drop(sender.reserve(1000).unwrap());
    ring.close(Duration::ZERO).unwrap();
}

#[test]
fn a_reservation_is_written_within_its_bounds_only() {
    let (_place, _, mut sender, _receiver) = attached("bounds");
    let mut reservation = sender.reserve(10).unwrap();
    for (at, length) in [(0, 11), (10, 1), (11, 0), (usize::MAX, 1)] {
        let write = || reservation.write_at(at, &vec![0; length]);
        assert!(
            catch_unwind(AssertUnwindSafe(write)).is_err(),
            "{length} bytes at {at}"
        );
    }
    let too_many = AssertUnwindSafe(|| reservation.commit_first(11));
    assert!(catch_unwind(too_many).is_err());
}

#[test]
fn messages_are_written_and_read_in_place() {
    let (_place, _, mut sender, mut receiver) = attached("in-place");
    // Also over the end of the data area, where the slice must be contiguous.
    for number in 0..10 {
        let mut reservation = sender.reserve(1500).unwrap();
        // SAFETY: nobody else has the ring.
        unsafe { reservation.as_mut_slice() }.copy_from_slice(&payload(number, 1500));
        reservation.commit();
        let message = receiver.peek().unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { message.as_slice() }, payload(number, 1500));
        message.release();
    }
}

#[test]
fn parts_of_a_message_can_be_read() {
    let (_place, _, mut sender, mut receiver) = attached("read-at");
    let whole = payload(5, 100);
    sender.try_send(&whole).unwrap();
    let message = receiver.peek().unwrap();
    for (at, room, expected) in [
        (0, 10, 10),
        (90, 10, 10),
        (90, 20, 10),
        (100, 5, 0),
        (500, 5, 0),
    ] {
        let mut buffer = [0; 20];
        assert_eq!(
            message.read_at(at, &mut buffer[..room]),
            expected,
            "{room} bytes at {at}"
        );
        assert_eq!(buffer[..expected], whole[at.min(100)..][..expected]);
    }
}

// ---- Batches --------------------------------------------------------------------------------------------------

#[test]
fn a_batch_is_accepted_as_far_as_there_is_room() {
    let (_place, ring, mut sender, mut receiver) = attached("partial");
    let messages: Vec<_> = (0..100).map(|number| payload(number, 48)).collect();
    let accepted = sender.send_batch(&messages).unwrap();
    assert_eq!(accepted, 4096 / 64);
    assert_eq!(ring.status().tail, sender.next());
    assert!(matches!(
        sender.send_batch(&messages),
        Err(TrySendError::Full)
    ));
    for message in &messages[..accepted] {
        assert_eq!(receive(&mut receiver), *message);
    }
    assert_eq!(
        sender.send_batch(&messages[accepted..]).unwrap(),
        100 - accepted
    );
    for message in &messages[accepted..] {
        assert_eq!(receive(&mut receiver), *message);
    }
    assert_empty(&mut receiver);
}

#[test]
fn a_batch_stops_at_a_message_that_is_too_long() {
    let (_place, _, mut sender, mut receiver) = attached("batch-long");
    let long = vec![0; 2049];
    assert_eq!(
        sender
            .send_batch([&b"one"[..], b"two", &long, b"four"])
            .unwrap(),
        2
    );
    assert!(matches!(
        sender.send_batch([&long]),
        Err(TrySendError::TooLong { .. })
    ));
    assert_eq!(sender.send_batch([[0; 0]; 0]).unwrap(), 0);
    assert_eq!(
        (receive(&mut receiver), receive(&mut receiver)),
        (b"one".into(), b"two".into())
    );
    assert_empty(&mut receiver);
}

#[test]
fn a_batch_whose_iterator_panics_keeps_what_it_sent() {
    let (_place, ring, mut sender, mut receiver) = attached("batch-panic");
    let messages = (0..).map(|number| {
        assert!(number < 3, "on purpose");
        payload(number, 10)
    });
    assert!(catch_unwind(AssertUnwindSafe(|| sender.send_batch(messages))).is_err());
    assert_eq!(ring.status().tail.sequence, 3);
    send(&mut sender, 3, 10);
    for number in 0..4 {
        expect(&mut receiver, number, 10);
    }
}

#[test]
fn a_batch_larger_than_the_ring_is_sent_while_it_is_drained() {
    const MESSAGES: usize = 50_000;
    let place = Place::new("batch-large");
    let (mut sender, mut receiver) = attach(&place.ring(8192));
    let drain = thread::spawn(move || {
        for number in 0..MESSAGES {
            receiver.wait(LONG).unwrap();
            assert_eq!(
                receive(&mut receiver),
                payload(number, number % 500),
                "message {number}"
            );
        }
        assert_empty(&mut receiver);
    });
    let mut sent = 0;
    while sent < MESSAGES {
        match sender.send_batch((sent..MESSAGES).map(|number| payload(number, number % 500))) {
            Ok(accepted) => sent += accepted,
            Err(TrySendError::Full) => sender.wait(sent % 500, LONG).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    drain.join().unwrap();
}

#[test]
fn a_batch_is_released_together_when_its_guard_goes() {
    let (_place, ring, mut sender, mut receiver) = attached("release-batch");
    for number in 0..5 {
        send(&mut sender, number, 20);
    }
    let mut batch = receiver.recv_batch(3);
    for number in 0..3 {
        let message = batch.next().unwrap();
        assert_eq!(message.cursor().sequence, number as u64);
        let mut buffer = [0; 20];
        message.copy_to(&mut buffer).unwrap();
        assert_eq!(buffer[..], payload(number, 20));
        message.release(); // says nothing: the batch does it
        assert_eq!(ring.status().released, Cursor::default());
    }
    assert!(batch.next().is_none(), "not more than asked for");
    drop(batch);
    assert_eq!(ring.status().released.sequence, 3);
    expect(&mut receiver, 3, 20);

    let mut batch = receiver.recv_batch(100);
    assert!(batch.next().is_some());
    assert!(batch.next().is_none(), "nothing more is there");
    drop(batch);
    assert_eq!(ring.status().unread_messages, 0);
    drop(receiver.recv_batch(100));
    assert_eq!(ring.status().released, sender.next());
}

#[test]
fn a_panic_in_a_batch_releases_none_of_it() {
    let (_place, ring, mut sender, mut receiver) = attached("batch-unwind");
    for number in 0..5 {
        send(&mut sender, number, 20);
    }
    expect(&mut receiver, 0, 20);
    let panicking = catch_unwind(AssertUnwindSafe(|| {
        let mut batch = receiver.recv_batch(3);
        while batch.next().is_some() {}
        panic!("on purpose");
    }));
    assert!(panicking.is_err());
    assert_eq!(ring.status().released.sequence, 1);
    for number in 1..5 {
        expect(&mut receiver, number, 20);
    }
    assert_empty(&mut receiver);
}

// ---- Release and attach ---------------------------------------------------------------------------------------

#[test]
fn a_message_that_is_not_released_is_the_next_one_again() {
    let (_place, _, mut sender, mut receiver) = attached("peek");
    sender.try_send(b"first").unwrap();
    sender.try_send(b"second").unwrap();
    let cursors: Vec<_> = (0..3).map(|_| receiver.peek().unwrap().cursor()).collect();
    assert_eq!(cursors, [Cursor::default(); 3]);
    assert_eq!(
        (receive(&mut receiver), receive(&mut receiver)),
        (b"first".into(), b"second".into())
    );
}

#[test]
fn a_new_receiver_sees_what_the_last_one_did_not_release() {
    let (_place, ring, mut sender, mut receiver) = attached("again");
    for number in 0..3 {
        send(&mut sender, number, 30);
    }
    for number in 0..3 {
        assert_eq!(receiver.peek().unwrap().cursor().sequence, number as u64);
        drop(receiver);
        receiver = ring.receiver().unwrap();
        expect(&mut receiver, number, 30);
        drop(receiver);
        receiver = ring.receiver().unwrap();
    }
    assert_empty(&mut receiver);
}

#[test]
fn positions_and_sequences_go_on_when_both_sides_attach_again() {
    let place = Place::new("attach");
    let ring = place.ring(4096);
    let mut expected = Cursor::default();
    let mut state = 1;
    for round in 0..500 {
        let (mut sender, mut receiver) = attach(&ring);
        assert_eq!(
            (sender.next(), receiver.next()),
            (expected, expected),
            "round {round}"
        );
        for _ in 0..random(&mut state) % 4 {
            let length = random(&mut state) % 500;
            send(&mut sender, round, length);
            assert_eq!(receiver.peek().unwrap().cursor(), expected);
            expect(&mut receiver, round, length);
            expected.position += record_size(length) as u64;
            expected.sequence += 1;
        }
    }
    assert!(expected.position > 10 * ring.header().capacity, "many laps");
}

#[test]
fn one_process_has_each_role_once() {
    let place = Place::new("roles");
    let ring = place.ring(4096);
    let (sender, receiver) = attach(&ring);
    let again = Ring::open(
        &Directory::open(place.directory.path()).unwrap(),
        ring.uuid(),
    )
    .unwrap();
    for ring in [&ring, &again] {
        assert!(matches!(
            ring.sender(),
            Err(Error::Busy {
                role: "producer",
                ..
            })
        ));
        assert!(matches!(
            ring.receiver(),
            Err(Error::Busy {
                role: "consumer",
                ..
            })
        ));
    }
    drop((sender, receiver));
    attach(&again);
}

#[test]
fn capacities_are_rounded_up_to_pages() {
    let place = Place::new("capacity");
    let page = place.ring(4096).header().data_offset;
    for (asked, given) in [
        (4096, page),
        (page, page),
        (page + 1, 2 * page),
        (3 * page - 1, 3 * page),
    ] {
        let ring = place.ring(asked);
        assert_eq!(ring.header().capacity, given, "for {asked}");
        assert_eq!(file(&ring).metadata().unwrap().len(), page + given);
        let (mut sender, _receiver) = attach(&ring);
        assert_eq!(fill(&mut sender, 0), given / 16, "all of it can be used");
    }
    for asked in [0, 4095, (1 << 32) + 1, u64::MAX] {
        let spec = RingSpec::local(asked, Address(1), Address(2));
        let refused = Ring::create(&place.directory, &spec);
        assert!(
            matches!(
                refused,
                Err(Error::Invalid {
                    what: "capacity",
                    ..
                })
            ),
            "{asked}"
        );
    }
}

// ---- Several rings --------------------------------------------------------------------------------------------

#[test]
fn a_busy_ring_gets_its_turn_and_no_more() {
    let place = Place::new("fair");
    let mut left = [1000, 47, 300];
    let mut fair = FairReceiver::new();
    let mut senders = Vec::new();
    for (index, count) in left.into_iter().enumerate() {
        let (mut sender, receiver) = attach(&place.ring(1 << 16));
        assert_eq!(fair.add(receiver), index);
        for number in 0..count {
            send(&mut sender, number + index, 16);
        }
        senders.push(sender);
    }
    let (mut last, mut in_a_row, mut seen) = (usize::MAX, 0, [0; 3]);
    for _ in 0..left.iter().sum() {
        let mut buffer = [0; 16];
        let (index, length) = fair.try_recv(&mut buffer).unwrap();
        assert_eq!(
            buffer[..length],
            payload(seen[index] + index, 16),
            "in order"
        );
        seen[index] += 1;
        left[index] -= 1;
        in_a_row = if index == last { in_a_row + 1 } else { 1 };
        last = index;
        let others_have = (0..3).any(|other| other != index && left[other] > 0);
        assert!(
            in_a_row <= MESSAGES_PER_TURN || !others_have,
            "ring {index}: {in_a_row} in a row"
        );
    }
    assert_eq!(left, [0; 3]);
    assert!(matches!(fair.peek(), Err(TryRecvError::Empty)));
}

#[test]
fn closed_rings_of_a_set_are_drained_and_passed_over() {
    let place = Place::new("fair-closed");
    let rings = [0, 1, 2].map(|_| place.ring(4096));
    let mut fair = FairReceiver::new();
    for ring in &rings {
        fair.add(ring.receiver().unwrap());
    }
    rings[0].sender().unwrap().try_send(b"last words").unwrap();
    rings[0].close(LONG).unwrap();
    rings[1].close(LONG).unwrap();
    assert_eq!(fair.try_recv(&mut [0; 10]).unwrap(), (0, 10));
    assert!(
        matches!(fair.peek(), Err(TryRecvError::Empty)),
        "ring 2 is open"
    );
    rings[2].sender().unwrap().try_send(b"still here").unwrap();
    assert_eq!(fair.try_recv(&mut [0; 10]).unwrap(), (2, 10));
    rings[2].close(LONG).unwrap();
    assert!(matches!(fair.peek(), Err(TryRecvError::Closed)));
    assert!(
        matches!(fair.wait(LONG), Err(TryRecvError::Closed)),
        "at once"
    );
    assert!(fair.remove(1).is_some());
    assert!(fair.remove(2).is_none());
    assert_eq!(fair.receivers().len(), 2);
}

/// Offsets of the signal words, see docs/layout.md.
const RECEIVER_SIGNAL: u64 = 0x200;
const SENDER_SIGNAL: u64 = 0x280;

/// Waits until somebody sleeps on the signal word at `offset` of the ring's file.
fn until_asleep(ring: &Ring, offset: u64) {
    let (file, mut word, begun) = (file(ring), [0; 4], Instant::now());
    while u32::from_le_bytes(word) & SIGNAL_SLEEPING == 0 {
        assert!(begun.elapsed() < LONG, "nobody went to sleep");
        file.read_exact_at(&mut word, offset).unwrap();
    }
    // The bit is raised before the last look; only then comes the sleep that is to be ended.
    thread::sleep(Duration::from_millis(1));
}

/// How long `wait` usually goes on after `wake`, which is called meanwhile: the median of some times. Wake-ups
/// that do not come show as a good part of 100 ms each, a busy machine hardly every other time.
fn usual_wake_up(mut wait: impl FnMut(), mut wake: impl FnMut(usize) + Send) -> Duration {
    let (go, gone) = mpsc::channel();
    let (woke, when) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in gone {
                wake(number);
                woke.send(Instant::now()).unwrap();
            }
        });
        let mut times: Vec<_> = (0..TIMES)
            .map(|number| {
                go.send(number).unwrap();
                wait();
                let woken = Instant::now();
                woken.saturating_duration_since(when.recv().unwrap())
            })
            .collect();
        drop(go);
        times.sort();
        times[TIMES / 2]
    })
}

const TIMES: usize = 20;

#[test]
fn a_sender_wakes_who_waits_on_a_set() {
    let place = Place::new("fair-wait");
    let rings = [0, 1, 2].map(|_| place.ring(4096));
    let mut senders = rings.each_ref().map(|ring| ring.sender().unwrap());
    let mut fair = FairReceiver::new();
    for ring in &rings {
        fair.add(ring.receiver().unwrap());
    }
    let mut number = 0;
    let wait = || {
        fair.wait(LONG).unwrap();
        assert_eq!(fair.try_recv(&mut [0; 8]).unwrap(), (number % 3, 5));
        number += 1;
    };
    let wake = |number: usize| {
        until_asleep(&rings[number % 3], RECEIVER_SIGNAL);
        senders[number % 3].try_send(b"hello").unwrap();
    };
    assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4);
    assert!(rings.iter().all(|ring| ring.status().producer.wakes > 3));
}

#[test]
fn waiting_on_a_set_ends_with_the_timeout() {
    let place = Place::new("fair-timeout");
    let mut fair = FairReceiver::new();
    assert!(
        matches!(
            fair.wait(Duration::from_millis(5)),
            Err(TryRecvError::Empty)
        ),
        "no rings"
    );
    fair.add(place.ring(4096).receiver().unwrap());
    let begun = Instant::now();
    assert!(matches!(
        fair.wait(Duration::from_millis(5)),
        Err(TryRecvError::Empty)
    ));
    assert!(begun.elapsed() >= Duration::from_millis(5));
}

// ---- Waiting --------------------------------------------------------------------------------------------------

#[test]
fn waiting_ends_with_the_timeout_and_not_much_later() {
    let place = Place::new("timeout");
    let (full, empty) = (place.ring(4096), place.ring(4096));
    let (mut sender, mut receiver) = (full.sender().unwrap(), empty.receiver().unwrap());
    fill(&mut sender, 0);
    for timeout in [0, 1, 20, 150].map(Duration::from_millis) {
        let check = |wait: &mut dyn FnMut()| {
            let times = [(); 5].map(|()| {
                let begun = Instant::now();
                wait();
                begun.elapsed()
            });
            // A busy machine may be late now and then, but not every time.
            let shortest = *times.iter().min().unwrap();
            assert!(shortest >= timeout, "{shortest:?} for {timeout:?}");
            assert!(
                shortest < timeout + LONGEST_SLEEP / 2,
                "{shortest:?} for {timeout:?}"
            );
        };
        check(&mut || assert!(matches!(receiver.wait(timeout), Err(TryRecvError::Empty))));
        check(&mut || assert!(matches!(sender.wait(0, timeout), Err(TrySendError::Full))));
    }
}

#[test]
fn waiting_for_what_is_there_does_not_wait() {
    let (_place, ring, mut sender, mut receiver) = attached("no-wait");
    sender.wait(sender.max_len(), Duration::ZERO).unwrap();
    sender.try_send(b"here").unwrap();
    receiver.wait(Duration::ZERO).unwrap();
    receiver.wait(LONG).unwrap();
    assert_eq!(receive(&mut receiver), b"here");
    let too_long = sender.wait(sender.max_len() + 1, LONG);
    assert!(matches!(too_long, Err(TrySendError::TooLong { .. })));
    ring.close(LONG).unwrap();
    assert!(matches!(sender.wait(1, LONG), Err(TrySendError::Closed)));
    assert!(matches!(receiver.wait(LONG), Err(TryRecvError::Closed)));
    assert_eq!(
        (ring.status().producer.sleeps, ring.status().consumer.sleeps),
        (0, 0)
    );
}

#[test]
fn a_message_wakes_the_receiver_however_it_is_sent() {
    type Send = fn(&mut Sender);
    let ways: [Send; 4] = [
        |sender| sender.try_send(b"wake up").unwrap(),
        |sender| {
            let parts = [&b"wake"[..], b" up"].map(IoSlice::new);
            sender.try_send_vectored(&parts).unwrap();
        },
        |sender| assert_eq!(sender.send_batch(["wake up"]).unwrap(), 1),
        |sender| {
            let mut reservation = sender.reserve(7).unwrap();
            reservation.write_at(0, b"wake up");
            reservation.commit();
        },
    ];
    for (way, send) in ways.into_iter().enumerate() {
        let (_place, ring, mut sender, mut receiver) = attached("wake-receiver");
        let wait = || {
            receiver.wait(LONG).unwrap();
            assert_eq!(receive(&mut receiver), b"wake up");
        };
        let wake = |_| {
            until_asleep(&ring, RECEIVER_SIGNAL);
            send(&mut sender);
        };
        assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4, "way {way}");
        let status = ring.status();
        assert!(
            status.consumer.sleeps > 10 && status.producer.wakes > 10,
            "way {way}: {status:?}"
        );
    }
}

#[test]
fn room_wakes_the_sender() {
    let (_place, ring, mut sender, mut receiver) = attached("wake-sender");
    fill(&mut sender, 1008);
    let wait = || {
        sender.wait(1008, LONG).unwrap();
        send(&mut sender, 0, 1008);
    };
    let wake = |_| {
        until_asleep(&ring, SENDER_SIGNAL);
        receive(&mut receiver);
    };
    assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4);
    assert!(ring.status().consumer.wakes > 10);
}

#[test]
fn closing_wakes_both_sides() {
    let place = Place::new("wake-close");
    let rings: Vec<_> = (0..TIMES).map(|_| place.ring(4096)).collect();
    let mut waiting = rings.iter();
    let wait = || {
        let mut receiver = waiting.next().unwrap().receiver().unwrap();
        assert!(matches!(receiver.wait(LONG), Err(TryRecvError::Closed)));
    };
    let wake = |number: usize| {
        until_asleep(&rings[number], RECEIVER_SIGNAL);
        rings[number].close(LONG).unwrap();
    };
    assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4);

    let rings: Vec<_> = (0..TIMES).map(|_| place.ring(4096)).collect();
    let mut waiting = rings.iter();
    let wait = || {
        let mut sender = waiting.next().unwrap().sender().unwrap();
        fill(&mut sender, 0);
        assert!(matches!(sender.wait(0, LONG), Err(TrySendError::Closed)));
    };
    let wake = |number: usize| {
        until_asleep(&rings[number], SENDER_SIGNAL);
        rings[number].close(LONG).unwrap();
    };
    assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4);
}

/// Set in another process that runs one test of this file: the directory and the ring.
const CHILD: &str = "TBUS_TEST_API_CHILD";

/// This test binary again, to run the test `name` on `ring`.
fn child(name: &str, ring: &Ring) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let directory = ring.path().parent().unwrap().display();
    command
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, format!("{} {directory}", ring.uuid()));
    command
}

/// In the other process, the ring; else `None`.
fn ring_of_parent() -> Option<Ring> {
    let text = std::env::var(CHILD).ok()?;
    let (uuid, directory) = text.split_once(' ').unwrap();
    Some(Ring::open(&Directory::open(directory).unwrap(), uuid.parse().unwrap()).unwrap())
}

const FROM_ANOTHER_PROCESS: u64 = 20;

#[test]
fn another_process_wakes_the_receiver() {
    let place = Place::new("wake-process");
    let ring = place.ring(4096);
    let mut receiver = ring.receiver().unwrap();
    let mut sender = child("child_that_sends", &ring).spawn().unwrap();
    for number in 0..FROM_ANOTHER_PROCESS {
        receiver.wait(LONG).unwrap();
        assert_eq!(receive(&mut receiver), number.to_le_bytes());
    }
    assert!(sender.wait().unwrap().success());
    let status = ring.status();
    assert_eq!(status.producer.pid, sender.id());
    // A sleep may just have ended by itself when the message came, but hardly half of them.
    assert!(
        status.producer.wakes > FROM_ANOTHER_PROCESS / 2,
        "{status:?}"
    );
    assert!(
        status.consumer.overslept < FROM_ANOTHER_PROCESS / 2,
        "{status:?}"
    );
}

#[test]
fn child_that_sends() {
    let Some(ring) = ring_of_parent() else { return };
    let mut sender = ring.sender().unwrap();
    for number in 0..FROM_ANOTHER_PROCESS {
        until_asleep(&ring, RECEIVER_SIGNAL);
        sender.try_send(&number.to_le_bytes()).unwrap();
    }
}

#[test]
fn without_membarrier_both_sides_fence() {
    let place = Place::new("fence");
    let ring = place.ring(4096);
    // It is read once per process.
    let status = child("child_that_fences", &ring)
        .env("TBUS_FENCE", "1")
        .status();
    assert!(status.unwrap().success());
    let status = ring.status();
    assert!(
        status.producer.fences && status.consumer.fences,
        "{status:?}"
    );
    assert_eq!(status.released.sequence, 2020);
}

#[test]
fn child_that_fences() {
    let Some(ring) = ring_of_parent() else { return };
    let (mut sender, mut receiver) = attach(&ring);
    for number in 0..2000 {
        send(&mut sender, number, number);
        expect(&mut receiver, number, number);
    }
    let wait = || {
        receiver.wait(LONG).unwrap();
        receive(&mut receiver);
    };
    let wake = |_| {
        until_asleep(&ring, RECEIVER_SIGNAL);
        sender.try_send(b"wake up").unwrap();
    };
    assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4);
}

// ---- Extensions -----------------------------------------------------------------------------------------------

#[test]
fn messages_carry_every_combination_of_extensions() {
    let (_place, _, mut sender, mut receiver) = attached("extensions");
    let now = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64
    };
    for number in 0..64 {
        let [timestamp, trace_id, crc] = [1, 2, 4].map(|bit| number & bit != 0);
        let whole = payload(number, 31 * number);
        let before = now();
        sender.set_extensions(Extensions {
            timestamp,
            trace_id,
            crc,
        });
        sender.set_trace_id(number as u64 + 1000);
        match number / 8 % 3 {
            0 => sender.try_send(&whole).unwrap(),
            1 => assert_eq!(sender.send_batch([&whole]).unwrap(), 1),
            _ => {
                // The CRC is of the bytes that are sent, not of those that were reserved.
                let mut reservation = sender.reserve(whole.len() + 9).unwrap();
                reservation.write_at(0, &whole);
                reservation.commit_first(whole.len());
            }
        }
        let message = receiver.peek().unwrap();
        let sent_at = message.timestamp();
        assert_eq!(sent_at.is_some(), timestamp);
        assert!(
            sent_at.is_none_or(|at| (before..=now()).contains(&at)),
            "{sent_at:?}"
        );
        assert_eq!(message.trace_id(), trace_id.then_some(number as u64 + 1000));
        assert_eq!(message.crc(), crc.then(|| crc32c::crc32c(&whole)));
        assert!(message.crc_matches());
        let taken = 8 * [timestamp, trace_id, crc].iter().filter(|on| **on).count() + whole.len();
        let end = message.cursor().position + record_size(taken) as u64;
        assert_eq!(receive(&mut receiver), whole);
        assert_eq!(receiver.next().position, end);
    }
}

#[test]
fn the_longest_message_carries_all_extensions() {
    let (_place, _, mut sender, mut receiver) = attached("long-extended");
    sender.set_extensions(Extensions {
        timestamp: true,
        trace_id: true,
        crc: true,
    });
    let whole = payload(1, sender.max_len());
    for _ in 0..10 {
        sender.try_send(&whole).unwrap();
        assert_eq!(receive(&mut receiver), whole);
    }
}

#[test]
fn a_payload_that_was_changed_does_not_pass_its_crc() {
    let (_place, ring, mut sender, mut receiver) = attached("bad-crc");
    sender.set_extensions(Extensions {
        crc: true,
        ..Extensions::default()
    });
    for _ in 0..3 {
        send(&mut sender, 1, 100);
    }
    expect(&mut receiver, 1, 100);
    let last_byte = offset(&ring, receiver.next().position + 16 + 8 + 99);
    file(&ring)
        .write_all_at(&[!payload(1, 100)[99]], last_byte)
        .unwrap();

    let mut buffer = [0; 100];
    for _ in 0..2 {
        let result = receiver.try_recv(&mut buffer);
        assert!(
            matches!(result, Err(TryRecvError::BadCrc { sequence: 1 })),
            "{result:?}"
        );
    }
    assert_eq!(ring.status().released.sequence, 1, "it stays");
    let message = receiver.peek().unwrap();
    assert!(!message.crc_matches());
    assert_eq!(
        message.read_at(0, &mut buffer),
        100,
        "who wants it nevertheless can have it"
    );
    message.release();
    expect(&mut receiver, 1, 100);
}

// ---- Status ---------------------------------------------------------------------------------------------------

#[test]
fn status_is_exact() {
    let place = Place::new("status");
    let ring = place.ring(4096);
    let new = ring.status();
    assert_eq!([new.tail, new.released, new.head], [Cursor::default(); 3]);
    assert_eq!(
        (
            new.producer.attaches,
            new.consumer.attaches,
            new.producer.pid
        ),
        (0, 0, 0)
    );

    let (mut sender, mut receiver) = attach(&ring);
    drop((sender, receiver));
    (sender, receiver) = attach(&ring);
    // 64 bytes each in the ring, which so takes 64 of them.
    assert_eq!(fill(&mut sender, 48), 64);
    for _ in 0..4 {
        assert!(matches!(sender.try_send(&[0; 48]), Err(TrySendError::Full)));
    }
    // Waiting is asking, not sending: it is not refused.
    assert!(matches!(
        sender.wait(48, Duration::from_millis(1)),
        Err(TrySendError::Full)
    ));
    for _ in 0..3 {
        receive(&mut receiver);
    }
    let status = ring.status();
    let cursor = |messages| Cursor {
        position: 64 * messages,
        sequence: messages,
    };
    assert_eq!((status.tail, status.released), (cursor(64), cursor(3)));
    assert_eq!((status.unread_messages, status.unread_bytes), (61, 61 * 64));
    assert!(
        status.head.position <= status.released.position,
        "{:?}",
        status.head
    );
    assert_eq!((status.closed, status.sealed_at), (false, None));
    let own = std::process::id();
    let (producer, consumer) = (status.producer, status.consumer);
    assert_eq!(
        (producer.pid, producer.attaches, producer.refused),
        (own, 2, 1 + 4)
    );
    assert_eq!(
        (consumer.pid, consumer.attaches, consumer.refused),
        (own, 2, 0)
    );
    assert_eq!((producer.wakes, producer.overslept), (0, 0));
    assert_eq!(
        (consumer.wakes, consumer.sleeps, consumer.overslept),
        (0, 0, 0)
    );

    while receiver.peek().map(|message| message.release()).is_ok() {}
    let status = ring.status();
    assert_eq!(
        [status.released, status.head],
        [cursor(64); 2],
        "an empty ring has told all"
    );
    assert_eq!((status.unread_messages, status.unread_bytes), (0, 0));

    sender.try_send(&[0; 48]).unwrap();
    assert_eq!(ring.close(LONG).unwrap(), 65 * 64);
    let status = ring.status();
    assert_eq!((status.closed, status.sealed_at), (true, Some(65 * 64)));
    assert_eq!(status.unread_messages, 1);
}

// ---- Mirrors --------------------------------------------------------------------------------------------------

/// A source ring and its mirror, which both begin at `start`.
fn mirrored(place: &Place, start: Cursor) -> (Ring, Ring) {
    let spec = RingSpec {
        kind: Kind::Source,
        start,
        ..RingSpec::local(4096, Address(1), Address(2))
    };
    let source = place.create(spec.clone());
    let nonce = Some(source.header().nonce);
    let mirror = place.create(RingSpec {
        kind: Kind::Mirror,
        nonce,
        ..spec
    });
    (source, mirror)
}

/// What a relay would carry: the bytes of positions [from, to) of the source ring's file.
fn carried(source: &Ring, from: u64, to: u64) -> Vec<u8> {
    let file = file(source);
    let mut bytes = vec![0; (to - from) as usize];
    for (position, byte) in (from..to).zip(&mut bytes) {
        file.read_exact_at(std::slice::from_mut(byte), offset(source, position))
            .unwrap();
    }
    bytes
}

#[test]
fn a_mirror_shows_what_was_published_and_nothing_else() {
    let place = Place::new("mirror");
    // An odd sequence, and a position in the midst of a lap.
    let start = Cursor {
        position: 123_456,
        sequence: 77,
    };
    let spec = RingSpec {
        start,
        ..RingSpec::local(4096, Address(1), Address(2))
    };
    // A local ring for a source, so that it can be drained here and goes on for many laps.
    let source = place.create(spec.clone());
    let nonce = Some(source.header().nonce);
    let mirror = place.create(RingSpec {
        kind: Kind::Mirror,
        nonce,
        ..spec
    });
    let (mut sender, mut at_source) = attach(&source);
    let (mut writer, mut receiver) = (mirror.mirror_writer().unwrap(), mirror.receiver().unwrap());
    assert_eq!([sender.next(), writer.tail(), receiver.next()], [start; 3]);
    let mut state = 3;
    for _ in 0..500 {
        let from = writer.tail().position;
        let lengths: Vec<_> = (0..1 + random(&mut state) % 4)
            .map(|_| random(&mut state) % 300)
            .collect();
        for length in &lengths {
            sender.set_extensions(Extensions {
                crc: length % 2 == 0,
                ..Extensions::default()
            });
            send(&mut sender, from as usize, *length);
        }
        let to = sender.next();
        let bytes = carried(&source, from, to.position);
        for chunk in chunks_in_any_order(bytes.len(), &mut state) {
            writer
                .write(from + chunk.start as u64, &bytes[chunk])
                .unwrap();
            assert_empty(&mut receiver);
        }
        writer.publish(to.position).unwrap();
        for length in &lengths {
            assert_eq!(
                receiver.peek().unwrap().cursor(),
                at_source.peek().unwrap().cursor()
            );
            expect(&mut receiver, from as usize, *length);
            assert_eq!(receive(&mut at_source).len(), *length);
        }
        assert_empty(&mut receiver);
        assert_eq!(
            [writer.tail(), receiver.next(), mirror.status().released],
            [to; 3]
        );
    }
    assert!(
        sender.next().position - start.position > 10 * source.header().capacity,
        "many laps"
    );
}

/// 0..length in up to nine pieces.
fn chunks_in_any_order(length: usize, state: &mut u64) -> Vec<Range<usize>> {
    let mut cuts: Vec<_> = (0..random(state) % 9)
        .map(|_| random(state) % length)
        .collect();
    cuts.extend([0, length]);
    cuts.sort();
    let mut chunks: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    for last in (1..chunks.len()).rev() {
        chunks.swap(last, random(state) % (last + 1));
    }
    chunks
}

#[test]
fn only_whole_records_are_published() {
    let place = Place::new("mirror-end");
    let (source, mirror) = mirrored(&place, Cursor::default());
    let mut sender = source.sender().unwrap();
    sender
        .send_batch([payload(0, 100), payload(1, 200)])
        .unwrap();
    let end = sender.next();
    let (mut writer, mut receiver) = (mirror.mirror_writer().unwrap(), mirror.receiver().unwrap());
    writer.write(0, &carried(&source, 0, end.position)).unwrap();
    let first = record_size(100) as u64;
    for wrong in [
        8,
        first - 8,
        first + 1,
        first + 8,
        end.position - 8,
        end.position + 8,
        u64::MAX,
    ] {
        let refused = writer.publish(wrong);
        assert!(
            matches!(refused, Err(Error::Damaged { .. })),
            "{wrong}: {refused:?}"
        );
        assert_eq!(writer.tail(), Cursor::default());
        assert_empty(&mut receiver);
    }
    writer.publish(0).unwrap();
    assert_empty(&mut receiver);
    writer.publish(end.position).unwrap();
    assert_eq!((writer.tail(), mirror.status().tail), (end, end));
    assert!(
        matches!(writer.publish(first), Err(Error::Damaged { .. })),
        "never back"
    );
    expect(&mut receiver, 0, 100);
    expect(&mut receiver, 1, 200);
}

#[test]
fn a_corrupted_record_is_not_published() {
    let place = Place::new("mirror-corrupt");
    let (source, mirror) = mirrored(&place, Cursor::default());
    let mut sender = source.sender().unwrap();
    sender
        .send_batch([payload(0, 100), payload(1, 200)])
        .unwrap();
    let end = sender.next().position;
    let right = carried(&source, 0, end);
    let (mut writer, mut receiver) = (mirror.mirror_writer().unwrap(), mirror.receiver().unwrap());
    // Commit word, length and flags of either record, each byte.
    let second = record_size(100);
    for at in (0..16).chain(second..second + 16) {
        let mut wrong = right.clone();
        wrong[at] ^= 0x80;
        writer.write(0, &wrong).unwrap();
        assert!(
            matches!(writer.publish(end), Err(Error::Damaged { .. })),
            "byte {at}"
        );
        assert_empty(&mut receiver);
    }
    writer.write(0, &right).unwrap();
    writer.publish(end).unwrap();
    expect(&mut receiver, 0, 100);
    expect(&mut receiver, 1, 200);
}

#[test]
fn a_mirror_is_written_only_where_there_is_room() {
    let place = Place::new("mirror-room");
    let (source, mirror) = mirrored(&place, Cursor::default());
    let mut sender = source.sender().unwrap();
    send(&mut sender, 0, 100);
    let end = sender.next().position;
    let (mut writer, mut receiver) = (mirror.mirror_writer().unwrap(), mirror.receiver().unwrap());
    let capacity = mirror.header().capacity;
    writer.write(capacity - 8, &[0; 8]).unwrap();
    assert!(
        writer.write(capacity - 8, &[0; 9]).is_err(),
        "over what is not consumed"
    );
    assert!(writer.write(0, &vec![0; capacity as usize + 1]).is_err());
    assert!(writer.write(u64::MAX, &[0; 8]).is_err());
    writer.write(0, &carried(&source, 0, end)).unwrap();
    writer.publish(end).unwrap();
    assert!(
        writer.write(end - 1, &[0]).is_err(),
        "what is published does not change"
    );
    assert!(writer.write(capacity, &[0; 8]).is_err(), "not released");
    receive(&mut receiver);
    writer.write(capacity, &vec![0; end as usize]).unwrap();
    assert!(writer.write(capacity, &vec![0; end as usize + 1]).is_err());
}

#[test]
fn a_mirror_goes_on_with_a_new_writer_and_a_new_receiver() {
    let place = Place::new("mirror-again");
    let (source, mirror) = mirrored(&place, Cursor::default());
    let mut sender = source.sender().unwrap();
    for number in 0..10 {
        let from = sender.next();
        send(&mut sender, number, 50);
        let mut writer = mirror.mirror_writer().unwrap();
        assert_eq!(writer.tail(), from);
        writer
            .write(
                from.position,
                &carried(&source, from.position, sender.next().position),
            )
            .unwrap();
        drop(writer);
        assert_empty(&mut mirror.receiver().unwrap());
        mirror
            .mirror_writer()
            .unwrap()
            .publish(sender.next().position)
            .unwrap();
        assert_eq!(
            receive(&mut mirror.receiver().unwrap()),
            payload(number, 50)
        );
    }
}

#[test]
fn publishing_wakes_the_receiver() {
    let place = Place::new("mirror-wake");
    let (source, mirror) = mirrored(&place, Cursor::default());
    let mut sender = source.sender().unwrap();
    let (mut writer, mut receiver) = (mirror.mirror_writer().unwrap(), mirror.receiver().unwrap());
    let wait = || {
        receiver.wait(LONG).unwrap();
        assert_eq!(receive(&mut receiver), b"wake up");
    };
    let wake = |_| {
        let from = sender.next().position;
        sender.try_send(b"wake up").unwrap();
        let to = sender.next().position;
        writer.write(from, &carried(&source, from, to)).unwrap();
        until_asleep(&mirror, RECEIVER_SIGNAL);
        writer.publish(to).unwrap();
    };
    assert!(usual_wake_up(wait, wake) < LONGEST_SLEEP / 4);
}

#[test]
fn the_relays_roles_are_not_for_applications() {
    let place = Place::new("mirror-roles");
    let (source, mirror) = mirrored(&place, Cursor::default());
    assert!(matches!(
        source.receiver(),
        Err(Error::WrongRole {
            role: "consumer",
            kind: "source",
            ..
        })
    ));
    assert!(matches!(
        mirror.sender(),
        Err(Error::WrongRole {
            role: "producer",
            kind: "mirror",
            ..
        })
    ));
    for ring in [&source, &place.ring(4096)] {
        assert!(matches!(ring.mirror_writer(), Err(Error::Invalid { .. })));
    }
}

/// A release too small to be published on its own still wakes a sender that sleeps for want of room.
#[test]
fn a_small_release_wakes_the_sender() {
    let place = Place::new("small");
    let ring = place.ring(65536);
    let (mut sender, mut receiver) = attach(&ring);
    fill(&mut sender, 48);
    let waiting = thread::spawn(move || sender.wait(48, LONG).unwrap());
    while ring.status().producer.sleeps == 0 {
        thread::yield_now();
    }
    receiver.peek().unwrap().release();
    waiting.join().unwrap();
    assert_eq!(ring.status().producer.overslept, 0);
}

#[test]
fn sleeps_of_a_fair_set_are_counted() {
    let place = Place::new("fair-count");
    let ring = place.ring(65536);
    let (sender, receiver) = attach(&ring);
    drop(sender);
    let mut fair = FairReceiver::new();
    fair.add(receiver);
    assert!(fair.wait(Duration::from_millis(20)).is_err());
    assert!(ring.status().consumer.sleeps > 0);
}
