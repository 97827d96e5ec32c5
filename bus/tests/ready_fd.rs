//! The descriptor that is readable while messages wait.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use tbus::config::parse_channels;
use tbus::manage::Manager;
use tbus::{Address, Bus, Endpoint, Hops, MAX_HOPS, ReadyFd, Receiver, TryRecvError};

mod scratch;

use scratch::Scratch;

fn manager(scratch: &Scratch, peers: u32) -> Manager {
    let manager = Manager::create_at(&scratch.0, &config(0), Duration::from_secs(10)).unwrap();
    manager.apply(&config(peers), false).unwrap();
    manager
}

/// 0.0.0.1 with 0.0.0.2, 0.0.0.3 and so on.
fn config(peers: u32) -> tbus::config::ChannelsConfig {
    let channels: String = (0..peers)
        .map(|n| {
            format!(
                "<Channels><Address>0.0.0.1</Address><Address>0.0.0.{}</Address><SendSize>4096</SendSize>\
                 <RecvSize>4096</RecvSize></Channels>",
                n + 2
            )
        })
        .collect();
    let text = format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>{channels}</TbusGCIM>");
    parse_channels(text.as_bytes(), false, 1 << 30).unwrap()
}

/// True if it is readable within so many milliseconds.
fn readable(ready: &ReadyFd, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: ready.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid element.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

fn receivers(endpoint: &Endpoint) -> Vec<Receiver> {
    let peers: Vec<_> = endpoint.peers().collect();
    peers
        .into_iter()
        .map(|peer| endpoint.receiver(peer).unwrap())
        .collect()
}

/// Few rings, and more than the kernel watches at a time.
#[test]
fn it_is_readable_while_messages_wait() {
    for peers in [3, 140] {
        let scratch = Scratch::new(&format!("ready-{peers}"));
        let manager = manager(&scratch, peers);
        let bus = Bus::attach_at(&scratch.0).unwrap();
        let endpoint = bus.bind(Address(1)).unwrap();
        let mut receivers = receivers(&endpoint);
        let version = bus.gcim().version();
        let ready = ReadyFd::new().unwrap();
        let arm = |receivers: &[Receiver], version| {
            ready.arm(receivers.iter().map(Receiver::ring), &bus, version);
        };
        assert!(!readable(&ready, 0));
        arm(&receivers, version);
        assert!(!readable(&ready, 150) && !ready.is_raised());
        let last = Address(peers + 1);
        let mut sender = bus.bind(last).unwrap().sender(Address(1)).unwrap();
        for _ in 0..50 {
            sender.try_send(b"x").unwrap();
            let begun = Instant::now();
            assert!(readable(&ready, 5000));
            assert!(
                begun.elapsed() < Duration::from_secs(4),
                "woken, and not by the time"
            );
            let receiver = receivers.last_mut().unwrap();
            receiver.peek().unwrap().release();
            assert!(matches!(receiver.peek(), Err(TryRecvError::Empty)));
            assert!(readable(&ready, 0), "until it is armed");
            arm(&receivers, version);
            assert!(!readable(&ready, 0));
        }
        // A message that was there before.
        sender.try_send(b"y").unwrap();
        assert!(readable(&ready, 5000));
        arm(&receivers, version);
        assert!(readable(&ready, 5000));
        receivers.last_mut().unwrap().peek().unwrap().release();
        // The map.
        arm(&receivers, version);
        assert!(!readable(&ready, 150));
        manager.apply(&config(peers - 1), true).unwrap();
        assert!(readable(&ready, 5000));
        // The deleted channel's ring is closed and at its end: no reason to wake for ever.
        arm(&receivers, bus.gcim().version());
        assert!(!readable(&ready, 150));
    }
}

/// It is armed anew with the rings of before, and may be readable after a time though nothing came.
#[test]
fn it_is_armed_again() {
    let scratch = Scratch::new("ready-again");
    let _manager = manager(&scratch, 3);
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let mut receivers = receivers(&bus.bind(Address(1)).unwrap());
    let version = bus.gcim().version();
    let ready = ReadyFd::new().unwrap();
    ready.arm(receivers.iter().map(Receiver::ring), &bus, version);
    let mut sender = bus.bind(Address(3)).unwrap().sender(Address(1)).unwrap();
    for _ in 0..20 {
        sender.try_send(b"x").unwrap();
        assert!(readable(&ready, 5000));
        receivers[1].peek().unwrap().release();
        ready.arm_again(None);
        assert!(!readable(&ready, 0));
    }
    assert!(!readable(&ready, 150));
    let begun = Instant::now();
    ready.arm_again(Some(begun + Duration::from_millis(250)));
    assert!(readable(&ready, 5000) && ready.is_raised());
    assert!(begun.elapsed() >= Duration::from_millis(250));
    // A time that has passed, and one that is forgotten.
    ready.arm_again(Some(begun));
    assert!(readable(&ready, 5000));
    ready.arm_again(None);
    assert!(!readable(&ready, 250));
}

#[test]
fn hops_come_with_the_message() {
    let scratch = Scratch::new("hops");
    let _manager = manager(&scratch, 1);
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let (a, b) = (bus.bind(Address(1)).unwrap(), bus.bind(Address(2)).unwrap());
    let mut sender = a.sender(Address(2)).unwrap();
    let mut receiver = b.receiver(Address(1)).unwrap();
    let mut hops = Hops::default();
    assert!(!hops.push(Address(0)) && !hops.push(Address(u32::MAX)));
    for count in 0..=MAX_HOPS {
        for extensions in [false, true] {
            sender.set_extensions(tbus::Extensions {
                timestamp: extensions,
                trace_id: false,
                crc: extensions,
            });
            sender.try_send_with_hops(b"payload", &hops).unwrap();
            sender.try_send(b"without").unwrap();
            for (payload, expected) in [(b"payload", hops), (b"without", Hops::default())] {
                let mut buffer = [0; 16];
                let message = receiver.peek().unwrap();
                assert_eq!(message.hops(), expected);
                assert_eq!(message.timestamp().is_some(), extensions);
                assert_eq!(message.crc().is_some(), extensions);
                let length = message.copy_to(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], payload);
                message.release();
            }
        }
        assert_eq!(hops.push(Address(100 + count as u32)), count < MAX_HOPS);
    }
    for count in (0..MAX_HOPS).rev() {
        assert_eq!(hops.pop(), Some(Address(100 + count as u32)));
        sender.try_send_with_hops(b"", &hops).unwrap();
        assert_eq!(receiver.peek().unwrap().hops(), hops);
        receiver.peek().unwrap().release();
    }
    assert_eq!(hops.pop(), None);
}

/// By a receiver of all channels of an endpoint, those included that come later.
#[test]
fn all_channels_of_an_endpoint_arm_it() {
    let scratch = Scratch::new("ready-incoming");
    let manager = manager(&scratch, 2);
    let bus = Bus::attach_at(&scratch.0).unwrap();
    let endpoint = bus.bind(Address(1)).unwrap();
    let one = endpoint.rings(Address(2)).unwrap()[1].header().capacity;
    let mut incoming = endpoint.incoming().unwrap();
    assert_eq!(incoming.capacity(), 2 * one);
    let ready = ReadyFd::new().unwrap();
    let rest = |incoming: &mut tbus::Incoming| {
        assert!(matches!(
            incoming.try_recv(&mut [0; 8]),
            Err(TryRecvError::Empty)
        ));
        incoming.arm(&ready);
        assert!(!readable(&ready, 150));
    };
    rest(&mut incoming);
    for (peers, sender) in [(2, 3), (3, 4)] {
        if peers > 2 {
            manager.apply(&config(peers), false).unwrap();
            assert!(readable(&ready, 5000), "there is another map");
            rest(&mut incoming);
            assert_eq!(incoming.capacity(), 3 * one);
        }
        let sender = bus.bind(Address(sender)).unwrap().sender(Address(1));
        sender.unwrap().try_send(b"x").unwrap();
        assert!(readable(&ready, 5000));
        assert_eq!(incoming.try_recv(&mut [0; 8]).unwrap().1, 1);
        rest(&mut incoming);
    }
}
