//! The next generation of a ring, seen by applications that stay attached; and the relay's ends of rings.

use std::path::{Path, PathBuf};
use std::time::Duration;
use tbus::config::{ChannelsConfig, parse_channels};
use tbus::generation::{Change, Next};
use tbus::manage::Manager;
use tbus::{
    Address, Bus, Error, Kind, MirrorWriter, NewsReader, Ring, SourceReader, TryRecvError,
    TrySendError, Uuid,
};

const A: Address = Address(1);
const B: Address = Address(2);

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        Scratch(base.join(format!("tbus-gen-{name}-{}", std::process::id())))
    }

    /// A bus with one channel from 1 to 2.
    fn bus(&self, size: u64) -> (Manager, Bus) {
        let manager = Manager::create_at(&self.0, &config(size), Duration::from_secs(10)).unwrap();
        manager.apply(&config(size), false).unwrap();
        (manager, Bus::attach_at(&self.0).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(size: u64) -> ChannelsConfig {
    let text = format!(
        "<TbusGCIM><GCIMShmKey>1000</GCIMShmKey><Channels><Address>0.0.0.1</Address><Address>0.0.0.2</Address>\
         <SendSize>{size}</SendSize><RecvSize>{size}</RecvSize></Channels></TbusGCIM>"
    );
    parse_channels(text.as_bytes(), false, u64::MAX).unwrap()
}

fn ring(bus: &Bus, direction: usize) -> Uuid {
    bus.gcim().snapshot().unwrap().channels[0].rings[direction]
}

fn renew(manager: &Manager, bus: &Bus, direction: usize, next: Next) -> tbus::Result<Uuid> {
    let change = Change {
        ring: ring(bus, direction),
        next,
    };
    manager.renew(&[change]).unwrap().pop().unwrap()
}

fn open(bus: &Bus, uuid: Uuid) -> Ring {
    Ring::open(bus.directory(), uuid).unwrap()
}

fn files(bus: &Bus) -> usize {
    bus.directory().rings().unwrap().len()
}

/// What the relay would send: the payloads in [released, tail).
fn unread(reader: &SourceReader) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    reader
        .ring()
        .browse(|_, bytes| {
            all.push(bytes.to_vec());
            true
        })
        .unwrap();
    all
}

/// Mirrors everything from one ring to another, as a link would.
fn mirror(source: &SourceReader, writer: &mut MirrorWriter) {
    let (from, to) = (writer.tail(), source.tail().unwrap());
    let end = source.walk(from, to.position).unwrap();
    let length = (end.position - from.position) as usize;
    let (here, there) = (source.region(), writer.region());
    // SAFETY: both ranges lie in their rings, and nobody else touches them meanwhile.
    unsafe {
        std::ptr::copy_nonoverlapping(
            here.at(from.position, length),
            there.at(from.position, length),
            length,
        );
    }
    assert_eq!(writer.publish_whole(end.position).unwrap(), end);
}

#[test]
fn a_sender_goes_on_into_the_next_generation_with_what_was_unread() {
    let scratch = Scratch::new("carry");
    let (manager, bus) = scratch.bus(8192);
    NewsReader::open(bus.directory()).unwrap();
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    // Around the end of the data area, with some received.
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    let mut buffer = [0; 64];
    for round in 0..300u32 {
        sender.try_send(&round.to_le_bytes()).unwrap();
        if round < 290 {
            receiver.try_recv(&mut buffer).unwrap();
        }
    }
    // While an application may read on in the old ring, its messages must not be taken elsewhere.
    let refused = renew(&manager, &bus, 0, Next::Carry(Kind::Source));
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    sender.try_send(b"not closed by that").unwrap();
    drop(receiver);
    let old = ring(&bus, 0);
    let uuid = renew(&manager, &bus, 0, Next::Carry(Kind::Source)).unwrap();
    assert_ne!(old, uuid);
    assert_eq!((ring(&bus, 0), files(&bus)), (uuid, 2));
    sender.try_send(b"after").unwrap();
    assert_eq!(sender.ring().uuid(), uuid);
    assert_eq!(sender.next().sequence, 302, "the sequences go on");
    let reader = open(&bus, uuid).source_reader().unwrap();
    let mut expected: Vec<_> = (290..300u32).map(|n| n.to_le_bytes().to_vec()).collect();
    expected.push(b"not closed by that".to_vec());
    expected.push(b"after".to_vec());
    assert_eq!(unread(&reader), expected);
    assert_eq!(reader.released().sequence, 290);
    // And back again: then an application receives them.
    drop(reader);
    renew(&manager, &bus, 0, Next::Carry(Kind::Local)).unwrap();
    sender.try_send(b"local again").unwrap();
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    for message in expected.iter().map(|m| &m[..]).chain([&b"local again"[..]]) {
        let length = receiver.try_recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], message);
    }
    assert!(matches!(
        receiver.try_recv(&mut buffer),
        Err(TryRecvError::Empty)
    ));
}

#[test]
fn a_receiver_gets_the_old_generation_first() {
    let scratch = Scratch::new("mirror");
    let (manager, bus) = scratch.bus(4096);
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    sender.try_send(b"one").unwrap();
    sender.try_send(b"two").unwrap();
    drop(sender);
    let start = tbus::Cursor {
        position: 8000,
        sequence: 77,
    };
    let source = Uuid([7; 16]);
    let next = Next::Mirror {
        nonce: 99,
        start,
        source,
    };
    let uuid = renew(&manager, &bus, 0, next).unwrap();
    assert_eq!(open(&bus, uuid).peer(), Some(source));
    assert_eq!(files(&bus), 3, "the old one is still being received");
    // A second one before that is done must wait.
    let early = renew(&manager, &bus, 0, next);
    assert!(matches!(early, Err(Error::Busy { .. })), "{early:?}");
    assert!(!manager.tidy().unwrap());
    let mut writer = open(&bus, uuid).mirror_writer().unwrap();
    assert_eq!(writer.tail(), start);
    let mut buffer = [0; 64];
    assert_eq!(receiver.try_recv(&mut buffer).unwrap(), 3);
    // A receiver that starts now begins in the old one, too.
    drop(receiver);
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    let length = receiver.try_recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"two");
    assert!(manager.tidy().unwrap(), "received to the end");
    assert_eq!(files(&bus), 2);
    assert!(matches!(
        receiver.try_recv(&mut buffer),
        Err(TryRecvError::Empty)
    ));
    assert_eq!((receiver.ring().uuid(), receiver.next()), (uuid, start));
    assert_eq!(writer.consumed().unwrap(), start);
    writer.publish_whole(start.position).unwrap();

    // To a sending host it was another ring, for messages were left in the one before; its successors are still this one.
    assert_eq!(open(&bus, uuid).origin(), uuid);
    drop((receiver, writer));
    for next in [Next::Local, next, next] {
        let successor = renew(&manager, &bus, 0, next).unwrap();
        assert_eq!(open(&bus, successor).origin(), uuid, "{next:?}");
    }
    // Unless the source has released what none of them had.
    let start = tbus::Cursor {
        position: start.position + 16,
        sequence: start.sequence + 1,
    };
    let later = Next::Mirror {
        nonce: 99,
        start,
        source,
    };
    let successor = renew(&manager, &bus, 0, later).unwrap();
    assert_eq!(open(&bus, successor).origin(), successor);
}

#[test]
fn what_is_left_of_a_mirror_is_removed_at_once_while_the_relay_fills_the_next() {
    let scratch = Scratch::new("tidy");
    let (manager, bus) = scratch.bus(4096);
    let mirror = |source| Next::Mirror {
        nonce: 7,
        start: Default::default(),
        source: Uuid([source; 16]),
    };
    renew(&manager, &bus, 0, mirror(1)).unwrap();
    let mut writer = open(&bus, ring(&bus, 0)).mirror_writer().unwrap();
    let empty = [tbus::layout::commit_word(0, 7).to_le_bytes(), [0; 8]].concat();
    writer.write(0, &empty).unwrap();
    writer.publish(16).unwrap();
    drop(writer);
    renew(&manager, &bus, 0, mirror(2)).unwrap();
    // Both generations have the same role, so the relay holds that of the one that is to go.
    let _writer = open(&bus, ring(&bus, 0)).mirror_writer().unwrap();
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    assert_eq!(receiver.try_recv(&mut []).unwrap(), 0);
    assert!(matches!(
        receiver.try_recv(&mut []),
        Err(TryRecvError::Empty)
    ));
    let previous = bus.gcim().snapshot().unwrap().channels[0].previous[0];
    assert!(open(&bus, previous).close(Duration::ZERO).is_ok());
    let begun = std::time::Instant::now();
    assert!(manager.tidy().unwrap());
    // The relay does this between two messages. Waiting for a producer takes a second.
    assert!(begun.elapsed() < Duration::from_millis(900));
    assert_eq!(files(&bus), 2);
}

#[test]
fn a_receiver_that_did_not_look_for_two_generations_leaves_none_out() {
    let scratch = Scratch::new("two");
    let (manager, bus) = scratch.bus(4096);
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    // It has all of its ring, so the generation after that is followed by another at once.
    let first = renew(&manager, &bus, 0, Next::Local).unwrap();
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    sender.try_send(b"one").unwrap();
    let second = renew(&manager, &bus, 0, Next::Local).unwrap();
    sender.try_send(b"two").unwrap();
    assert_eq!((ring(&bus, 0), sender.ring().uuid()), (second, second));
    let mut buffer = [0; 64];
    for (expected, from) in [(b"one", first), (b"two", second)] {
        let length = receiver.try_recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], expected);
        assert_eq!(receiver.ring().uuid(), from);
    }
}

#[test]
fn a_closed_ring_that_the_map_still_names_is_waited_for() {
    let scratch = Scratch::new("notyet");
    let (manager, bus) = scratch.bus(4096);
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    // A manager that was killed before it put the next generation in force.
    open(&bus, ring(&bus, 0))
        .close(Duration::from_secs(1))
        .unwrap();
    assert!(matches!(sender.try_send(b"x"), Err(TrySendError::Full)));
    let short = Duration::from_millis(5);
    assert!(matches!(sender.wait(1, short), Err(TrySendError::Full)));
    assert!(matches!(receiver.peek(), Err(TryRecvError::Empty)));
    assert!(matches!(receiver.wait(short), Err(TryRecvError::Empty)));
    drop(receiver);
    let long = Duration::from_secs(20);
    let waiting = std::thread::spawn(move || {
        sender.wait(1, long).unwrap();
        sender.try_send(b"x").unwrap();
    });
    renew(&manager, &bus, 0, Next::Carry(Kind::Local)).unwrap();
    waiting.join().unwrap();
    let mut receiver = bus.bind(B).unwrap().receiver(A).unwrap();
    receiver.wait(long).unwrap();
    // And one that is deleted is closed.
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    manager.delete(1, true).unwrap();
    assert!(matches!(sender.try_send(b"x"), Err(TrySendError::Closed)));
    receiver.peek().unwrap().release();
    assert!(matches!(receiver.peek(), Err(TryRecvError::Closed)));
    assert_eq!(files(&bus), 0);
}

/// Whoever attaches while the next generation is made meets no error: not with the ring closed, nor with its file gone.
#[test]
fn a_sender_may_attach_while_the_next_generation_is_made() {
    let scratch = Scratch::new("attach");
    let (manager, bus) = scratch.bus(4096);
    let [a, b] = [A, B].map(|address| bus.bind(address).unwrap());
    let mut sender = a.sender(B).unwrap();
    sender.try_send(b"one").unwrap();
    drop(sender);
    // As a relay leaves it that is killed between the two.
    open(&bus, ring(&bus, 0)).close(Duration::ZERO).unwrap();
    let mut sender = a.sender(B).unwrap();
    assert_eq!(sender.next().sequence, 1);
    assert!(matches!(sender.try_send(b"two"), Err(TrySendError::Full)));
    let mut receiver = b.receiver(A).unwrap();
    receiver.try_recv(&mut [0; 8]).unwrap();
    assert!(matches!(receiver.peek(), Err(TryRecvError::Empty)));
    drop(receiver);
    // The next one: what these endpoints have seen of the map names a file that is gone.
    renew(&manager, &bus, 0, Next::Carry(Kind::Local)).unwrap();
    sender.try_send(b"two").unwrap();
    drop(sender);
    a.sender(B).unwrap().try_send(b"three").unwrap();
    let mut receiver = b.receiver(A).unwrap();
    for expected in [&b"two"[..], b"three"] {
        let mut buffer = [0; 8];
        let length = receiver.try_recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], expected);
    }
    // A channel that is gone stays gone, and who has an end keeps it.
    let other = b.receiver(A);
    assert!(matches!(other, Err(Error::Busy { .. })), "{other:?}");
    drop(receiver);
    manager.delete(1, true).unwrap();
    assert!(matches!(b.receiver(A), Err(Error::NotFound { .. })));
    assert!(matches!(a.sender(B), Err(Error::NotFound { .. })));
}

#[test]
fn the_ends_of_the_relay_move_bytes_and_tell_news() {
    let scratch = Scratch::new("ends");
    let (manager, bus) = scratch.bus(4096);
    let news = NewsReader::open(bus.directory()).unwrap();
    let source = renew(&manager, &bus, 0, Next::Carry(Kind::Source)).unwrap();
    let source = open(&bus, source);
    let mut reader = source.source_reader().unwrap();
    assert!(
        matches!(source.source_reader(), Err(Error::Busy { .. })),
        "one relay a ring"
    );
    let start = reader.released();
    // The other direction of the same channel stands for the other host.
    let next = Next::Mirror {
        nonce: source.header().nonce,
        start,
        source: source.uuid(),
    };
    let mirrored = open(&bus, renew(&manager, &bus, 1, next).unwrap());
    let mut writer = mirrored.mirror_writer().unwrap();
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    let mut receiver = bus.bind(A).unwrap().receiver(B).unwrap();
    assert!(!news.any(NewsReader::SLOTS));
    let mut sent = 0u32;
    let mut received = 0u32;
    let mut buffer = [0; 600];
    for lap in 0..200 {
        let size = 4 + lap * 37 % 500;
        let mut told = Vec::new();
        while sender.try_send(&vec![sent as u8; size]).is_ok() {
            sent += 1;
        }
        assert!(news.announce_sleep(NewsReader::SLOTS) || news.any(NewsReader::SLOTS));
        news.take(NewsReader::SLOTS, |slot| told.push(slot));
        assert_eq!(
            told,
            [source.header().lock_slot],
            "its news and nobody else's"
        );
        mirror(&reader, &mut writer);
        while let Ok(length) = receiver.try_recv(&mut buffer) {
            assert_eq!((length, buffer[0]), (size, received as u8));
            received += 1;
        }
        assert_eq!(sent, received);
        let consumed = writer.consumed().unwrap();
        assert_eq!(consumed, writer.tail());
        let mut told = Vec::new();
        news.take(NewsReader::SLOTS, |slot| told.push(slot));
        assert_eq!(
            told,
            [mirrored.header().lock_slot],
            "the receiver found it empty"
        );
        assert_eq!(reader.release(consumed.position).unwrap(), consumed);
        reader.set_peer(mirrored.uuid(), consumed);
        assert_eq!(reader.peer(), Some((mirrored.uuid(), consumed)));
    }
    assert!(
        reader.release(reader.released().position + 8).is_err(),
        "past the tail"
    );
}

#[test]
fn a_record_that_is_there_in_part_is_published_when_it_is_whole() {
    let scratch = Scratch::new("part");
    let (manager, bus) = scratch.bus(4096);
    NewsReader::open(bus.directory()).unwrap();
    let source = open(
        &bus,
        renew(&manager, &bus, 0, Next::Carry(Kind::Source)).unwrap(),
    );
    let reader = source.source_reader().unwrap();
    let start = reader.released();
    let next = Next::Mirror {
        nonce: source.header().nonce,
        start,
        source: source.uuid(),
    };
    let mut writer = open(&bus, renew(&manager, &bus, 1, next).unwrap())
        .mirror_writer()
        .unwrap();
    let mut sender = bus.bind(A).unwrap().sender(B).unwrap();
    sender.try_send(&[1; 100]).unwrap();
    sender.try_send(&[2; 200]).unwrap();
    let tail = reader.tail().unwrap();
    let (here, there) = (reader.region(), writer.region());
    let first = reader.walk(start, start.position + 150).unwrap();
    for to in start.position..=tail.position {
        if to > start.position {
            // SAFETY: a byte of each ring.
            unsafe { there.at(to - 1, 1).write(here.at(to - 1, 1).read()) };
        }
        let published = writer.publish_whole(to).unwrap();
        let whole = [start, first, tail]
            .into_iter()
            .rfind(|end| end.position <= to)
            .unwrap();
        assert_eq!(published, whole, "with the bytes below {to}");
    }
    assert!(writer.publish_whole(tail.position + 4096 * 2).is_err());
    assert!(
        writer.publish_whole(tail.position + 64).is_err(),
        "no record there"
    );
}
