//! The map of channels and who uses it: applied whole or not at all, seen live, consistent while it is written.

use scratch::Scratch;
use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tbus::config::{ChannelsConfig, parse_channels};
use tbus::manage::Manager;
use tbus::{Address, Bus, Directory, Error, TryRecvError, TrySendError};

mod scratch;

/// A configuration of channels between pairs of addresses.
fn config(pairs: &[(u32, u32)], size: u64) -> ChannelsConfig {
    let channels: String = pairs
        .iter()
        .map(|(a, b)| {
            format!(
                "<Channels><Address>0.0.{}.{}</Address><Address>0.0.{}.{}</Address><SendSize>{size}</SendSize>\
                 <RecvSize>{size}</RecvSize></Channels>",
                a >> 8,
                a & 255,
                b >> 8,
                b & 255
            )
        })
        .collect();
    let text = format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>{channels}</TbusGCIM>");
    parse_channels(text.as_bytes(), false, u64::MAX).unwrap()
}

fn manager(scratch: &Scratch) -> Manager {
    Manager::create_at(&scratch.0, &config(&[], 4096), Duration::from_secs(10)).unwrap()
}

fn pairs(bus: &Bus) -> Vec<(u32, u32)> {
    let channels = bus.gcim().snapshot().unwrap().channels;
    channels
        .iter()
        .map(|channel| (channel.addresses[0].0, channel.addresses[1].0))
        .collect()
}

#[test]
fn a_write_creates_keeps_and_deletes() {
    let scratch = Scratch::new("maps-write");
    let manager = manager(&scratch);
    let plan = manager
        .apply(&config(&[(1, 2), (1, 3)], 5000), false)
        .unwrap();
    assert_eq!(
        (plan.create.len(), plan.keep.len(), plan.delete.len()),
        (2, 0, 0)
    );
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let before = bus.gcim().snapshot().unwrap();
    assert_eq!(
        before.channels[0].sizes,
        [8192, 8192],
        "rounded up to pages"
    );
    // The second is written from its other end, which makes it no other channel.
    let plan = manager
        .apply(&config(&[(4, 1), (3, 1)], 5000), false)
        .unwrap();
    assert_eq!(
        (plan.create.len(), plan.keep.len(), plan.delete.len()),
        (1, 1, 1)
    );
    let after = bus.gcim().snapshot().unwrap();
    assert_eq!(pairs(&bus), [(1, 3), (4, 1)], "a new one is listed last");
    assert_eq!(
        after.channels[0], before.channels[1],
        "left alone, creation time and all"
    );
    assert_eq!(
        bus.directory().rings().unwrap().len(),
        4,
        "the deleted one's rings are gone"
    );
    let again = manager
        .apply(&config(&[(4, 1), (3, 1)], 5000), false)
        .unwrap();
    assert_eq!((again.create.len(), again.delete.len()), (0, 0));
    assert_eq!(
        bus.gcim().version(),
        after.version,
        "nothing to write, nothing written"
    );
    let plan = manager.plan(&config(&[(4, 1), (3, 1)], 50_000)).unwrap();
    assert_eq!(plan.other_sizes.len(), 2);
    // Endpoints find each other by address; whoever is on no channel is told so.
    let (a, b) = (bus.bind(Address(1)).unwrap(), bus.bind(Address(3)).unwrap());
    let (mut sender, mut receiver) = (
        a.sender(Address(3)).unwrap(),
        b.receiver(Address(1)).unwrap(),
    );
    sender.try_send(b"there").unwrap();
    b.sender(Address(1)).unwrap().try_send(b"back").unwrap();
    let mut buffer = [0; 8];
    assert_eq!(receiver.try_recv(&mut buffer).unwrap(), 5);
    assert_eq!(
        a.receiver(Address(3))
            .unwrap()
            .try_recv(&mut buffer)
            .unwrap(),
        4
    );
    assert!(matches!(bus.bind(Address(9)), Err(Error::NoChannel { .. })));
    assert!(matches!(a.sender(Address(9)), Err(Error::NoChannel { .. })));
    assert!(matches!(a.sender(Address(3)), Err(Error::Busy { .. })));
}

#[test]
fn unread_messages_are_not_deleted_without_force() {
    let scratch = Scratch::new("maps-unread");
    let manager = manager(&scratch);
    manager
        .apply(&config(&[(1, 2), (1, 3)], 4096), false)
        .unwrap();
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let mut sender = bus.bind(Address(2)).unwrap().sender(Address(1)).unwrap();
    sender.try_send(b"unread").unwrap();
    let version = bus.gcim().version();
    for result in [
        manager.delete(1, false).map(drop),
        manager.apply(&config(&[(1, 3)], 4096), false).map(drop),
    ] {
        assert!(
            matches!(result, Err(Error::Unread { messages: 1, .. })),
            "{result:?}"
        );
        assert_eq!(bus.gcim().version(), version, "nothing changed");
    }
    sender.try_send(b"still open").unwrap();
    assert!(matches!(
        manager.delete(3, true),
        Err(Error::NoSuchChannel {
            number: 3,
            count: 2
        })
    ));
    assert!(matches!(
        manager.delete(0, true),
        Err(Error::NoSuchChannel { .. })
    ));
    assert_eq!(manager.clean(1).unwrap(), 2);
    manager.delete(1, false).unwrap();
    assert!(matches!(
        sender.try_send(b"gone"),
        Err(TrySendError::Closed)
    ));
    // Emptying takes the receiver's role.
    let _receiver = bus.bind(Address(1)).unwrap().receiver(Address(3)).unwrap();
    assert!(matches!(manager.clean(1), Err(Error::Busy { .. })));
}

#[test]
fn attached_endpoints_see_channels_come_and_go() {
    let scratch = Scratch::new("maps-live");
    let manager = manager(&scratch);
    manager.apply(&config(&[(1, 2)], 4096), false).unwrap();
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let mut incoming = bus.bind(Address(1)).unwrap().incoming().unwrap();
    let mut old = bus.bind(Address(2)).unwrap().sender(Address(1)).unwrap();
    let mut buffer = [0; 64];
    assert!(matches!(
        incoming.try_recv(&mut buffer),
        Err(TryRecvError::Empty)
    ));
    manager
        .apply(&config(&[(1, 2), (3, 1)], 4096), false)
        .unwrap();
    let mut new = bus.bind(Address(3)).unwrap().sender(Address(1)).unwrap();
    new.try_send(b"from the new one").unwrap();
    let (from, length) = incoming.try_recv(&mut buffer).unwrap();
    assert_eq!(
        (from, &buffer[..length]),
        (Address(3), &b"from the new one"[..])
    );
    // What is under way in a channel when it is deleted still arrives at who is attached.
    old.try_send(b"last words").unwrap();
    manager.apply(&config(&[(3, 1)], 4096), true).unwrap();
    assert!(matches!(old.try_send(b"more"), Err(TrySendError::Closed)));
    let (from, length) = incoming.try_recv(&mut buffer).unwrap();
    assert_eq!((from, &buffer[..length]), (Address(2), &b"last words"[..]));
    assert!(matches!(
        incoming.try_recv(&mut buffer),
        Err(TryRecvError::Empty)
    ));
    assert_eq!(incoming.sources().collect::<Vec<_>>(), [Address(3)]);
    // The same address again is another channel.
    manager
        .apply(&config(&[(3, 1), (1, 2)], 4096), false)
        .unwrap();
    let mut again = bus.bind(Address(2)).unwrap().sender(Address(1)).unwrap();
    again.try_send(b"again").unwrap();
    incoming.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(incoming.try_recv(&mut buffer).unwrap(), (Address(2), 5));
    // All gone: nothing comes, and nothing fails.
    manager.apply(&config(&[], 4096), false).unwrap();
    assert!(matches!(
        incoming.wait(Duration::from_millis(20)),
        Err(TryRecvError::Empty)
    ));
}

/// Readers always see a table that was written as a whole: here, all channels of one generation.
#[test]
fn readers_are_consistent_while_the_map_is_written() {
    let scratch = Scratch::new("maps-readers");
    let manager = manager(&scratch);
    let generation =
        |n: u32| -> Vec<(u32, u32)> { (0..30).map(|i| (256 * (1 + n % 200) + i, 1)).collect() };
    manager.apply(&config(&generation(0), 4096), false).unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let bus = Bus::attach_at(&scratch.0).unwrap();
            std::thread::spawn(move || {
                let (begun, mut versions) = (Instant::now(), HashSet::new());
                while begun.elapsed() < Duration::from_secs(2) {
                    let snapshot = bus.gcim().snapshot().unwrap();
                    let first = snapshot.channels[0].addresses[0].0 >> 8;
                    assert_eq!(snapshot.channels.len(), 30);
                    assert!(
                        snapshot
                            .channels
                            .iter()
                            .all(|channel| channel.addresses[0].0 >> 8 == first)
                    );
                    versions.insert(snapshot.version);
                }
                versions.len()
            })
        })
        .collect();
    let mut n = 0;
    while readers.iter().any(|reader| !reader.is_finished()) {
        n += 1;
        manager.apply(&config(&generation(n), 4096), false).unwrap();
    }
    for reader in readers {
        assert!(reader.join().unwrap() > 10, "it saw the map change");
    }
}

#[test]
fn two_managers_take_turns() {
    let scratch = Scratch::new("maps-turns");
    let first = manager(&scratch);
    let directory = Directory::open(&scratch.0).unwrap();
    assert!(matches!(
        Manager::open(&directory, Duration::ZERO),
        Err(Error::Busy {
            role: "manager",
            ..
        })
    ));
    let waiting =
        std::thread::spawn(move || Manager::open(&directory, Duration::from_secs(10)).map(drop));
    std::thread::sleep(Duration::from_millis(50));
    drop(first);
    waiting.join().unwrap().unwrap();
}

const PLACE: &str = "TBUS_MAPS_TEST_PLACE";

/// Not a test: applies one of two configurations for ever, until it is killed.
#[test]
fn child_process() {
    let Ok(place) = std::env::var(PLACE) else {
        return;
    };
    let directory = Directory::open(place).unwrap();
    let manager = Manager::open(&directory, Duration::from_secs(10)).unwrap();
    for n in 0u32.. {
        manager.apply(&states()[n as usize % 2], false).unwrap();
    }
}

/// Two maps that share one channel.
fn states() -> [ChannelsConfig; 2] {
    [
        config(&[(1, 2), (1, 3)], 4096),
        config(&[(1, 2), (1, 4), (1, 5), (1, 6)], 4096),
    ]
}

/// A manager killed at any moment leaves one map or the other, whole and usable, and the next one clears up.
#[test]
fn a_killed_manager_leaves_a_whole_map() {
    let scratch = Scratch::new("maps-kill");
    manager(&scratch).apply(&states()[0], false).unwrap();
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let first = bus.gcim().snapshot().unwrap().channels[0].clone();
    let wanted = states().map(|state| {
        state
            .channels
            .iter()
            .map(|c| (c.addresses[0].0, c.addresses[1].0))
            .collect::<Vec<_>>()
    });
    let mut seen = [0, 0];
    for kill in 0..60u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture"])
            .env(PLACE, &scratch.0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (version, begun) = (bus.gcim().version(), Instant::now());
        while bus.gcim().version() == version && begun.elapsed() < Duration::from_secs(10) {}
        std::thread::sleep(Duration::from_micros(kill * 37 % 900));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = pairs(&bus);
        let state = wanted.iter().position(|wanted| *wanted == found);
        seen[state.unwrap_or_else(|| panic!("neither map: {found:?}"))] += 1;
        for channel in bus.gcim().snapshot().unwrap().channels {
            let [a, b] = channel.addresses;
            let (mut sender, mut receiver) = (
                bus.bind(a).unwrap().sender(b).unwrap(),
                bus.bind(b).unwrap().receiver(a).unwrap(),
            );
            sender.try_send(b"works").unwrap();
            receiver.peek().unwrap().release();
        }
    }
    assert_eq!(
        bus.gcim().snapshot().unwrap().channels[0],
        first,
        "the channel of both maps was never touched"
    );
    assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
    manager(&scratch).apply(&states()[0], false).unwrap();
    assert_eq!(
        bus.directory().rings().unwrap().len(),
        4,
        "what killed managers left is removed"
    );
}

#[test]
fn damaged_maps_are_refused() {
    let scratch = Scratch::new("maps-damaged");
    manager(&scratch).apply(&states()[0], false).unwrap();
    let path = scratch.0.join("gcim");
    let good = std::fs::read(&path).unwrap();
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        Bus::attach_at(&scratch.0).and_then(|bus| {
            bus.gcim()
                .snapshot()
                .map(drop)
                .and_then(|()| bus.bind(Address(1)).map(drop))
        })
    };
    for word in [0, 16, 24, 32, 40] {
        assert!(
            matches!(with(word, 0x5555), Err(Error::BadFile { .. })),
            "word at {word}"
        );
    }
    assert!(matches!(with(8, 2), Err(Error::Layout { found: 2, .. })));
    // Entries and counts that lie: an error or other channels, no crash.
    let area = 4096 + (8 + 65_536 * 32) * 8; // area 1: the map was written once
    assert!(matches!(with(area, u64::MAX), Err(Error::BadFile { .. })));
    for word in 0..32 {
        for value in [0, 1, u64::MAX] {
            let _ = with(area + 64 + 8 * word, value);
        }
    }
    std::fs::write(&path, &good[..5000]).unwrap();
    assert!(matches!(
        Bus::attach_at(&scratch.0),
        Err(Error::BadFile { .. })
    ));
}

/// 10,000 channels: written in under 2 s, read in under 0.2 s, attached to in under 1 ms.
#[test]
fn ten_thousand_channels() {
    let scratch = Scratch::new("maps-many");
    let manager = manager(&scratch);
    let all: Vec<_> = (0..10_000).map(|n| (n / 100 + 1, 0x1_0000 + n)).collect();
    let text: Vec<(u32, u32)> = all.iter().map(|(a, b)| (*a, b & 0xffff | 0x4000)).collect();
    let config = config(&text, 65_536);
    let begun = Instant::now();
    match manager.apply(&config, false) {
        Err(Error::NoSpace { .. }) => {
            return println!("not run: 1.4 GB of shared memory are not free");
        }
        result => drop(result.unwrap()),
    }
    let written = begun.elapsed();
    let mut attached: Vec<Duration> = (0..50)
        .map(|_| {
            let begun = Instant::now();
            let bus = Bus::attach_at(&scratch.0).unwrap();
            let endpoint = bus.bind(Address(77)).unwrap();
            let peer = endpoint.peers().next().unwrap();
            let ends = (
                endpoint.sender(peer).unwrap(),
                endpoint.receiver(peer).unwrap(),
            );
            let time = begun.elapsed();
            drop(ends);
            time
        })
        .collect();
    attached.sort();
    let begun = Instant::now();
    assert_eq!(
        Bus::attach_at(&scratch.0)
            .unwrap()
            .gcim()
            .snapshot()
            .unwrap()
            .channels
            .len(),
        10_000
    );
    let read = begun.elapsed();
    println!(
        "10,000 channels: written in {written:?}, read in {read:?}, attached in {:?}",
        attached[25]
    );
    if !cfg!(debug_assertions) {
        // Generous against noise; the figures themselves are printed.
        assert!(written < Duration::from_secs(4) && attached[25] < Duration::from_millis(1));
        assert!(read < Duration::from_millis(200));
    }
}
