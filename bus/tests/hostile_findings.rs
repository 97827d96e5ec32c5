//! What fuzzing of hostile images found once, one test each.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use tbus::layout::{self, commit_word};
use tbus::*;

struct Scratch(PathBuf);
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
fn ring(name: &str, kind: Kind) -> (Scratch, Directory, Ring) {
    let path = std::env::temp_dir().join(format!("tbus-finding-{name}-{}", std::process::id()));
    let directory = Directory::create(&path).unwrap();
    let spec = RingSpec {
        kind,
        ..RingSpec::local(16384, Address(1), Address(2))
    };
    let ring = Ring::create(&directory, &spec).unwrap();
    (Scratch(path), directory, ring)
}
fn at(field: &str) -> u64 {
    layout::FIELDS.iter().find(|f| f.0 == field).unwrap().1 as u64
}
fn poke(ring: &Ring, offset: u64, value: u64) {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(ring.path())
        .unwrap();
    file.write_all_at(&value.to_le_bytes(), offset).unwrap();
}
fn poke_cursor(ring: &Ring, field: &str, position: u64, sequence: u64) {
    for slot in [0, 16] {
        poke(ring, at(field) + slot, position);
        poke(ring, at(field) + slot + 8, sequence);
    }
}
fn record(position: u64, nonce: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = commit_word(position, nonce).to_le_bytes().to_vec();
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(payload);
    bytes.resize(layout::record_size(payload.len()), 0);
    bytes
}
/// Exit status of a forked child that runs `act`.
fn in_child(act: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child ends itself; no other thread holds a lock that it needs.
    match unsafe { libc::fork() } {
        // SAFETY: ends the process.
        0 => {
            let code = act();
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: status is valid for writing.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            libc::WEXITSTATUS(status)
        }
    }
}

#[test]
fn a_relay_does_not_overwrite_on_a_wild_released_cursor() {
    let (_s, _d, ring) = ring("1", Kind::Mirror);
    let mut writer = ring.mirror_writer().unwrap();
    poke_cursor(&ring, "released", 1 << 40, 0); // the consumer claims more than was ever published
    let refused = (0..40u8).any(|n| {
        let position = writer.tail().position;
        let bytes = record(position, ring.header().nonce, &[n; 1000]);
        writer
            .write(position, &bytes)
            .and_then(|()| writer.publish(position + bytes.len() as u64))
            .is_err()
    });
    assert!(refused, "40 kB written into 16 kB, nothing of it received");
}

#[test]
fn a_released_sequence_of_max_does_not_overflow() {
    let (_s, _d, ring) = ring("2", Kind::Local);
    let (mut sender, mut receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());
    sender.try_send(b"x").unwrap();
    receiver.try_recv(&mut [0; 8]).unwrap();
    assert!(receiver.peek().is_err()); // publishes the head: sequence 1, slot 1
    sender.try_send(b"x").unwrap();
    receiver.try_recv(&mut [0; 8]).unwrap();
    for slot in [8, 24] {
        poke(&ring, at("released") + slot, u64::MAX);
    }
    // Whatever it says, it says it.
    let _ = receiver.peek().is_err();
}

#[test]
fn damage_after_a_batch_was_taken_back_does_not_underflow() {
    let (_s, _d, ring) = ring("3", Kind::Local);
    let (mut sender, mut receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());
    sender.try_send(b"x").unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut batch = receiver.recv_batch(5);
        while batch.next().is_some() {}
        panic!("the application's own");
    }));
    assert!(panicked.is_err());
    poke(&ring, ring.header().data_offset, 0);
    // Whatever it says, it says it.
    let _ = receiver.peek().is_err();
}

#[test]
fn a_forked_child_is_told_so_when_it_attaches() {
    let (_s, _d, ring) = ring("4", Kind::Local);
    let code = in_child(|| match ring.sender() {
        Err(Error::Forked) => 0,
        Err(Error::Closed { .. }) => 1,
        _ => 2,
    });
    assert_eq!(code, 0, "1 is Closed");
}

#[test]
fn a_forked_child_cannot_write_a_mirror() {
    let (_s, _d, ring) = ring("5", Kind::Mirror);
    let mut writer = ring.mirror_writer().unwrap();
    let code = in_child(|| {
        let bytes = record(0, ring.header().nonce, b"hello");
        match writer
            .write(0, &bytes)
            .and_then(|()| writer.publish(bytes.len() as u64))
        {
            Err(Error::Forked) => 0,
            Ok(()) => 1,
            Err(_) => 2,
        }
    });
    assert_eq!(code, 0, "1 is Ok");
}

#[test]
fn close_checks_the_tail_that_it_seals() {
    for position in [u64::MAX, 1 << 63, 24 + 4, 24 + (1 << 30)] {
        let (_s, _d, ring) = ring("6", Kind::Local);
        let mut sender = ring.sender().unwrap();
        sender.try_send(b"hello").unwrap();
        poke_cursor(&ring, "producer.tail", position, 1);
        let end = ring.close(Duration::from_millis(5));
        assert!(
            matches!(end, Err(Error::Damaged { .. })),
            "{position:#x}: {end:?}"
        );
    }
}

#[test]
fn a_wild_seal_is_not_believed() {
    for end in [u64::MAX, 24 + 4 + 1, (24 + (1 << 30)) | 1] {
        let (_s, _d, ring) = ring("7", Kind::Local);
        let mut sender = ring.sender().unwrap();
        sender.try_send(b"hello").unwrap();
        poke(&ring, at("seal.end"), end);
        let closed = ring.close(Duration::from_millis(5));
        let then = sender.try_send(b"hello");
        assert!(
            closed.is_err() || then.is_err(),
            "{end:#x}: close {closed:?}, and then a message is accepted: {then:?}"
        );
    }
}

#[test]
fn create_refuses_a_start_that_no_sender_accepts() {
    let (_s, directory, _ring) = ring("8", Kind::Local);
    let mut spec = RingSpec::local(16384, Address(1), Address(2));
    (spec.start, spec.lock_slot) = (
        Cursor {
            position: 0,
            sequence: u64::MAX,
        },
        1,
    );
    let made = Ring::create(&directory, &spec);
    assert!(
        matches!(made, Err(Error::Invalid { what: "start", .. })),
        "created, then {:?}",
        made.unwrap().sender().err()
    );
}

#[test]
fn a_uuid_has_no_sign() {
    assert!(
        "+2345678-1234-1234-1234-123456789abc"
            .parse::<Uuid>()
            .is_err()
    );
}

#[test]
fn what_is_no_ring_file_is_told_with_a_mend() {
    let (_s, directory, ring) = ring("10", Kind::Mirror);
    let mut texts = vec![ring.sender().unwrap_err().to_string()];
    let path = ring.path();
    std::fs::remove_file(path).unwrap();
    std::fs::create_dir(path).unwrap();
    texts.push(Ring::open(&directory, ring.uuid()).unwrap_err().to_string());
    std::fs::remove_dir(path).unwrap();
    std::os::unix::fs::symlink("/dev/null", path).unwrap();
    texts.push(Ring::open(&directory, ring.uuid()).unwrap_err().to_string());
    let without: Vec<_> = texts.iter().filter(|text| !text.contains(';')).collect();
    assert!(without.is_empty(), "{without:#?}");
}

#[test]
fn a_fair_receiver_does_not_say_closed_of_a_damaged_ring() {
    let (_s, _d, ring) = ring("11", Kind::Local);
    ring.sender().unwrap().try_send(b"hello").unwrap();
    let mut fair = FairReceiver::new();
    fair.add(ring.receiver().unwrap());
    poke(&ring, ring.header().data_offset + 8, u64::MAX);
    assert!(matches!(
        fair.try_recv(&mut [0; 8]),
        Err(TryRecvError::Failed(_))
    ));
    let second = fair.try_recv(&mut [0; 8]);
    assert!(!matches!(second, Err(TryRecvError::Closed)), "{second:?}");
}
