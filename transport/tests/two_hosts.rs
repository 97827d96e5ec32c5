//! Two relays over TCP on loopback, real rings, real sockets; both stepped by the test, so that each moment is known.

mod common;

use common::Hosts;
use std::time::{Duration, Instant};
use tbus::generation::{Change, Next};
use tbus::manage::Manager;
use tbus::{Bus, Cursor, Error, Kind, Receiver, Ring, Sender, TryRecvError, TrySendError, Uuid};
use tbus_transport::link::Link as _;
use tbus_transport::network::{Control as _, Network as _};
use tbus_transport::relay::status::PeerStatus;
use tbus_transport::tcp_network::{TcpControl, TcpNetwork};
use tbus_transport::wire::{Frame, Goodbye, Hello, Open, PROTOCOL_MAX, PROTOCOL_MIN};

/// Message `n`: its number, then bytes that depend on it; of many lengths.
fn message(n: u64) -> Vec<u8> {
    let length = 8 + (n * 37 % 900) as usize;
    let mut bytes = vec![n as u8; length];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

/// Sends what there is room for, up to `limit` messages in all.
fn send(sender: &mut Sender, sent: &mut u64, limit: u64) {
    while *sent < limit {
        match sender.try_send(&message(*sent)) {
            Ok(()) => *sent += 1,
            Err(TrySendError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Receives what is there, checking each message.
fn receive(receiver: &mut Receiver, received: &mut u64) {
    let mut buffer = [0; 1024];
    loop {
        match receiver.try_recv(&mut buffer) {
            Ok(length) => {
                assert_eq!(
                    buffer[..length],
                    message(*received)[..],
                    "message {received}"
                );
                *received += 1;
            }
            Err(TryRecvError::Empty) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn messages_go_both_ways() {
    let mut hosts = Hosts::new("both", 3, 8192);
    hosts.connect();
    for n in 1..=3 {
        for host in 0..2 {
            let (mut sender, mut receiver) = hosts.pair(host, n);
            let (mut sent, mut received) = (0, 0);
            hosts.until("all messages", |_| {
                send(&mut sender, &mut sent, 1000);
                receive(&mut receiver, &mut received);
                received == 1000
            });
        }
    }
    let totals = hosts.relays[0].as_ref().unwrap().totals();
    assert_eq!(
        (totals.sent_messages, totals.received_messages),
        (3000, 3000),
        "none went twice"
    );
}

#[test]
fn messages_sent_before_the_relay_runs_are_delivered() {
    let mut hosts = Hosts::new("before", 1, 8192);
    let (mut sender, _) = hosts.pair(0, 1);
    let (mut sent, mut received) = (0, 0);
    send(&mut sender, &mut sent, u64::MAX);
    assert!(sent > 5);
    let waiting = sent;
    hosts.connect();
    assert_eq!(sender.ring().kind(), Kind::Local, "it has not looked since");
    let mut receiver = hosts.receiver(0, 1);
    hosts.until("what waited", |_| {
        receive(&mut receiver, &mut received);
        received == waiting
    });
    hosts.until("the rest", |_| {
        send(&mut sender, &mut sent, waiting + 3);
        receive(&mut receiver, &mut received);
        received == waiting + 3
    });
    assert_eq!(sender.ring().kind(), Kind::Source, "it follows");
}

#[test]
fn killed_relays_lose_and_repeat_nothing() {
    for retention in ["delivered", "consumed"] {
        let mut hosts = Hosts::with(&format!("kills-{retention}"), 1, 8192, retention);
        hosts.connect();
        let (mut sender, mut receiver) = hosts.pair(0, 1);
        let (mut sent, mut received) = (0, 0);
        for round in 0..60 {
            let steps = 1 + round * 7 % 40;
            for _ in 0..steps {
                send(&mut sender, &mut sent, u64::MAX);
                hosts.step();
                receive(&mut receiver, &mut received);
            }
            hosts.crash(round);
            let before = received;
            hosts.until("messages after the restart", |_| {
                send(&mut sender, &mut sent, u64::MAX);
                receive(&mut receiver, &mut received);
                received > before + 20
            });
        }
        let limit = sent;
        hosts.until("all of them", |_| {
            receive(&mut receiver, &mut received);
            received == limit
        });
    }
}

#[test]
fn a_receiver_that_does_not_read_holds_up_nobody_else() {
    let mut hosts = Hosts::new("stalled", 2, 8192);
    hosts.connect();
    let (mut stalled, mut stalled_receiver) = hosts.pair(0, 1);
    let (mut sender, mut receiver) = hosts.pair(0, 2);
    let (mut stalled_sent, mut stalled_received) = (0, 0);
    let (mut sent, mut received) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        send(&mut stalled, &mut stalled_sent, u64::MAX);
        send(&mut sender, &mut sent, u64::MAX);
        hosts.step();
        receive(&mut receiver, &mut received);
    }
    let mirror = stalled_receiver.ring().status();
    assert!(mirror.unread_bytes <= 8192 && mirror.unread_bytes > 8192 - 1000);
    assert!(
        received > 100 * stalled_sent,
        "{received} beside {stalled_sent}"
    );
    let waiting = stalled_sent;
    hosts.until("what was held up", |_| {
        receive(&mut stalled_receiver, &mut stalled_received);
        stalled_received == waiting
    });
}

/// The file of news belongs to everybody who may send: what one of them takes out of it, or could not put in, is found by
/// the relay's own look over all rings, on both sides.
#[test]
fn what_nobody_tells_is_found_at_the_next_sweep() {
    let mut hosts = Hosts::new("untold", 3, 8192);
    hosts.connect();
    for host in ["1", "2"] {
        std::fs::remove_file(hosts.scratch.0.join(host).join("news")).unwrap();
    }
    let (mut sender, mut receiver) = hosts.pair(0, 2);
    let (mut sent, mut received) = (0, 0);
    for limit in 1..=3 {
        let begun = Instant::now();
        send(&mut sender, &mut sent, limit);
        hosts.until("a message that nobody told of", |_| {
            receive(&mut receiver, &mut received);
            received == limit
        });
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    // Both rings are filled; then the receiver goes on, and nobody tells of that either.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        send(&mut sender, &mut sent, u64::MAX);
        hosts.step();
    }
    let waiting = sent;
    assert!(receiver.ring().status().unread_bytes > 8192 - 1000);
    hosts.until("what came after it", |_| {
        receive(&mut receiver, &mut received);
        send(&mut sender, &mut sent, waiting + 20);
        received == waiting + 20
    });
}

/// Bytes that are under way for the one ring would land by the room of the other.
#[test]
fn a_slot_that_is_opened_twice_ends_the_session() {
    let mut hosts = Hosts::new("twice", 2, 8192);
    let settings = hosts.settings(0);
    hosts.stop(0);
    let mut network = TcpNetwork::listen(hosts.addresses[0], &[]).unwrap();
    let mut control = network.dial(&common::endpoint(hosts.addresses[1]));
    let hello = Frame::Hello(Hello {
        protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
        node: settings.node,
        lease: 1,
        capabilities: 1,
        cluster: settings.cluster,
        endpoint: settings.endpoint,
    });
    let open = |n: u32| {
        Frame::Open(Open {
            slot: 5,
            attempt: 1,
            from: common::address(1, n),
            to: common::address(2, n),
            source: Uuid([n as u8; 16]),
            nonce: 7,
            capacity: 8192,
            head: Cursor::default(),
            tail: Cursor::default(),
        })
    };
    let say = |control: &mut TcpControl, frame: Frame| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        control.send(&bytes);
    };
    say(&mut control, hello);
    let (mut received, mut link, mut resumed, mut end) = (Vec::new(), None, 0, None);
    hosts.until("the end of the session", |_| {
        let _ = control.poll(&mut received); // its end comes after what it said
        while let Some((frame, length)) = Frame::decode(&received).unwrap() {
            received.drain(..length);
            match frame {
                Frame::Offer {
                    transport,
                    port,
                    token,
                } => {
                    let made = network.connect_link(&control, transport, port, token);
                    link = made.unwrap();
                    say(&mut control, open(1));
                }
                Frame::Resume(_) => {
                    resumed += 1;
                    say(&mut control, open(2));
                }
                Frame::Bye { why, text } => end = Some((why, text)),
                _ => {}
            }
        }
        if let Some(link) = &mut link {
            link.kick();
        }
        end.is_some()
    });
    let text = "slot 5 is opened twice".to_string();
    assert_eq!((resumed, end.unwrap()), (1, (Goodbye::Violation, text)));
}

#[test]
fn a_second_relay_is_refused_until_the_first_ends() {
    let mut hosts = Hosts::new("second", 1, 8192);
    hosts.connect();
    let first = hosts.relays[0].take();
    let port = hosts.addresses[0];
    hosts.addresses[0] = "127.0.0.1:0".parse().unwrap();
    hosts.start(0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(200) {
        hosts.step();
    }
    assert!(!hosts.relays[0].as_ref().unwrap().is_connected());
    let source = hosts.buses[0].gcim().snapshot().unwrap().channels[0].rings[0];
    let source = Ring::open(hosts.buses[0].directory(), source).unwrap();
    assert!(matches!(source.source_reader(), Err(Error::Busy { .. })));
    // The first one ends; who comes then serves.
    drop(first);
    hosts.stop(0);
    hosts.addresses[0] = port;
    hosts.start(0);
    hosts.connect();
}

#[test]
fn a_replaced_ring_file_is_noticed() {
    let mut hosts = Hosts::new("replaced", 1, 8192);
    hosts.connect();
    let (mut sender, mut receiver) = hosts.pair(0, 1);
    sender.try_send(b"before").unwrap();
    hosts.until("a message", |_| {
        receiver.peek().map(|m| m.release()).is_ok()
    });
    let path = sender.ring().path().to_path_buf();
    let copy = path.with_extension("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    hosts.until("the relay says so", |hosts| {
        let status = hosts.relays[0].as_ref().unwrap().status(0);
        status.rings.iter().any(|ring| {
            ring.trouble
                .as_ref()
                .is_some_and(|why| why.contains("another file"))
        })
    });
}

#[test]
fn a_bad_record_poisons_its_own_channel_alone() {
    let mut hosts = Hosts::new("poison", 2, 8192);
    hosts.connect();
    let (mut bad, _) = hosts.pair(0, 1);
    let (mut sender, mut receiver) = hosts.pair(0, 2);
    let (mut sent, mut received) = (0, 0);
    bad.try_send(&[1; 100]).unwrap();
    // A broken application: it writes over its own record before the relay has seen it.
    let reader = Ring::open(hosts.buses[0].directory(), bad.ring().uuid()).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(reader.path())
        .unwrap();
    use std::os::unix::fs::FileExt;
    let record = reader.header().data_offset;
    file.write_all_at(&u32::MAX.to_le_bytes(), record + 8)
        .unwrap();
    hosts.until("it is given up", |hosts| {
        let status = hosts.relays[0].as_ref().unwrap().status(0);
        status.rings.iter().any(|ring| {
            ring.trouble
                .as_ref()
                .is_some_and(|why| why.contains("record length"))
        })
    });
    hosts.until("the other channel goes on", |_| {
        send(&mut sender, &mut sent, 500);
        receive(&mut receiver, &mut received);
        received == 500
    });
    assert_eq!(hosts.relays[0].as_ref().unwrap().totals().downs, 0);
}

#[test]
fn other_capacities_are_refused_on_both_sides_and_lose_nothing() {
    let mut hosts = Hosts::new("capacity", 1, 8192);
    hosts.connect();
    // The sender's host gets a channel with larger rings.
    hosts.stop(0);
    let config = common::channels(1, 16384, "delivered");
    let path = hosts.scratch.0.join("1");
    let manager = tbus::manage::Manager::open(
        &tbus::Directory::open(&path).unwrap(),
        Duration::from_secs(5),
    )
    .unwrap();
    manager.delete(1, true).unwrap();
    manager.apply(&config, false).unwrap();
    drop(manager); // the relay needs its lock
    hosts.start(0);
    let (mut sender, _receiver) = hosts.pair(0, 1);
    sender.try_send(b"kept").unwrap();
    hosts.until("the refusal", |hosts| {
        let status = hosts.relays[0].as_ref().unwrap().status(0);
        status.rings.iter().any(|ring| {
            ring.outbound
                && ring
                    .trouble
                    .as_ref()
                    .is_some_and(|why| why.contains("8192") && why.contains("16384"))
        })
    });
    // It is in the generation that the relay has made.
    let bus = Bus::attach_at(&path).unwrap();
    let channel = &bus.gcim().snapshot().unwrap().channels[0];
    let ring = Ring::open(bus.directory(), channel.rings[0]).unwrap();
    assert_ne!(ring.uuid(), sender.ring().uuid());
    assert_eq!(ring.status().unread_messages, 1);
}

#[test]
fn other_clusters_and_node_numbers_are_refused_with_the_reason() {
    for (change, word) in [(0, "cluster"), (1, "both relays say")] {
        let mut hosts = Hosts::new(&format!("greeting{change}"), 1, 8192);
        let mut settings = hosts.settings(1);
        match change {
            0 => settings.cluster = "another".into(),
            _ => settings.node = 1,
        }
        hosts.stop(1);
        hosts.start_with(1, settings);
        hosts.until("a refusal", |hosts| {
            hosts.relays.iter().flatten().any(|relay| {
                let status = relay.status(0);
                status
                    .peers
                    .iter()
                    .any(|peer| peer.trouble.as_ref().is_some_and(|why| why.contains(word)))
            })
        });
        assert!(
            hosts
                .relays
                .iter()
                .flatten()
                .all(|relay| relay.totals().ups == 0)
        );
    }
}

#[test]
fn a_gap_is_told_to_both_applications() {
    let mut hosts = Hosts::new("gap", 1, 8192);
    hosts.connect();
    let (mut sender, mut receiver) = hosts.pair(0, 1);
    let (mut sent, mut received) = (0, 0);
    hosts.until("some messages", |_| {
        send(&mut sender, &mut sent, 5);
        receive(&mut receiver, &mut received);
        received == 5
    });
    // These arrive, and are not received.
    send(&mut sender, &mut sent, 8);
    hosts.until("delivery", |_| sender.ring().status().unread_messages == 0);
    drop(receiver);
    // The receiving host loses its memory.
    hosts.stop(1);
    hosts.forget(1);
    hosts.start(1);
    hosts.until("the gap", |_| sender.ring().gap().is_some());
    send(&mut sender, &mut sent, 10);
    let mut receiver = hosts.receiver(0, 1);
    let mut first = None;
    hosts.until("what came after", |_| {
        first = receiver
            .peek()
            .ok()
            .map(|message| message.cursor().sequence);
        first.is_some()
    });
    assert_eq!(
        first,
        Some(8),
        "the sequence of the first message that is not lost"
    );
    let (count, gap) = sender.ring().gap().unwrap();
    assert_eq!((count, gap.from.sequence, gap.to.sequence), (1, 5, 8));
    // It comes over the control connection, which the data may overtake.
    hosts.until("the gap there", |_| receiver.ring().gap().is_some());
    assert_eq!(
        receiver.ring().gap(),
        Some((1, gap)),
        "the receiver finds the same"
    );
    let totals = hosts.relays[0].as_ref().unwrap().totals();
    assert_eq!((totals.gaps, totals.lost_messages), (1, 3));
    // Both relays tell which ring it is, and of no other.
    for relay in hosts.relays.iter().flatten() {
        let rings = relay.status(0).rings;
        let ends = [common::address(1, 1), common::address(2, 1)];
        for ring in &rings {
            let expected = if ring.ends == ends { (1, 3) } else { (0, 0) };
            assert_eq!((ring.gaps, ring.lost_messages), expected, "{rings:#?}");
        }
        assert_eq!(rings.len(), 2);
    }
}

/// A relay closes a mirror before the map names the next generation; killed in between, it leaves a closed one.
#[test]
fn a_mirror_that_a_killed_relay_left_closed_gets_a_successor() {
    let mut hosts = Hosts::new("left", 1, 8192);
    hosts.connect();
    let (mut sender, mut receiver) = hosts.pair(0, 1);
    let (mut sent, mut received) = (0, 0);
    hosts.until("the first messages", |_| {
        send(&mut sender, &mut sent, 100);
        receive(&mut receiver, &mut received);
        received == 100
    });
    let mirror = |hosts: &Hosts| {
        let bus = &hosts.buses[1];
        let uuid = bus.gcim().snapshot().unwrap().channels[0].rings[0];
        Ring::open(bus.directory(), uuid).unwrap()
    };
    // A living relay's mirror is not touched.
    let refused = mirror(&hosts).close(Duration::ZERO);
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert!(!mirror(&hosts).status().closed);
    hosts.until("all acknowledged", |_| {
        sender.ring().status().unread_messages == 0
    });
    // The source gets a next generation, which asks for another mirror; host 2's relay dies when it has closed the old one.
    hosts.stop(0);
    hosts.stop(1);
    let change = Change {
        ring: sender.ring().uuid(),
        next: Next::Carry(Kind::Source),
    };
    let manager = Manager::open(hosts.buses[0].directory(), Duration::ZERO).unwrap();
    manager.renew(&[change]).unwrap().pop().unwrap().unwrap();
    drop(manager);
    let left = mirror(&hosts);
    left.close(Duration::ZERO).unwrap();
    hosts.start(0);
    hosts.start(1);
    hosts.until("messages by the next generation", |_| {
        send(&mut sender, &mut sent, 300);
        receive(&mut receiver, &mut received);
        received == 300
    });
    assert_ne!(mirror(&hosts).uuid(), left.uuid());
    let totals = hosts.relays[0].as_ref().unwrap().totals();
    assert_eq!(totals.gaps, 0, "nothing was lost");
}

#[test]
fn nodes_that_are_not_allowed_are_refused_with_the_reason() {
    let mut hosts = Hosts::new("allow", 1, 8192);
    hosts.relays[1].as_mut().unwrap().allow(vec![3]);
    hosts.until("the refusal", |hosts| {
        let status = hosts.relays[0].as_ref().unwrap().status(0);
        let said = |peer: &PeerStatus| {
            let trouble = peer.trouble.as_deref().unwrap_or_default();
            trouble.contains("does not allow node 1")
        };
        status.peers.iter().any(said)
    });
    hosts.relays[1].as_mut().unwrap().allow(vec![3, 1]);
    hosts.connect();
}

#[test]
fn a_peer_that_does_not_run_is_said_to_refuse_connections() {
    let mut hosts = Hosts::new("norun", 1, 8192);
    hosts.stop(1);
    hosts.until("the reason", |hosts| {
        let status = hosts.relays[0].as_ref().unwrap().status(0);
        let said = |peer: &PeerStatus| {
            let trouble = peer.trouble.as_deref().unwrap_or_default();
            trouble.contains("Connection refused")
        };
        status.peers.iter().any(said)
    });
}
