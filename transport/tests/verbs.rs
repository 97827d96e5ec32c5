//! Two relays whose data goes by RDMA, by verbs and over UCX: `ci/rxe run -- cargo test -p tbus-transport --test verbs -- --ignored`. Without a device
//! these tests are not run, which is said, for they are ignored.

mod common;

use common::{Hosts, TcpRelay};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tbus::grm::Transport;
use tbus::{Receiver, Sender, TryRecvError, TrySendError};
use tbus_transport::relay::run::{DEFAULT_SPIN, Next};

/// Message `n`: its number, then bytes that depend on it; of many lengths, some beyond what one notice tells of.
fn message(n: u64, longest: u64) -> Vec<u8> {
    let length = 8 + n * n * 37 % (longest - 8);
    let mut bytes = vec![n as u8; length as usize];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

/// Sends what there is room for, up to `limit` messages in all.
fn send(sender: &mut Sender, sent: &mut u64, limit: u64, longest: u64) {
    while *sent < limit {
        match sender.try_send(&message(*sent, longest)) {
            Ok(()) => *sent += 1,
            Err(TrySendError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Receives what is there, checking each message.
fn receive(receiver: &mut Receiver, received: &mut u64, longest: u64) {
    let mut buffer = vec![0; longest as usize];
    loop {
        match receiver.try_recv(&mut buffer) {
            Ok(length) => {
                let expected = message(*received, longest);
                assert!(buffer[..length] == expected[..], "message {received}");
                *received += 1;
            }
            Err(TryRecvError::Empty) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

fn hosts(transport: Transport, name: &str, count: u32, size: u64) -> Hosts {
    let both = || vec![transport, Transport::Tcp];
    let name = format!("{}-{name}", transport.name());
    Hosts::over(&name, count, size, "delivered", [both(), both()])
}

/// What both relays say that they use.
fn transports(hosts: &Hosts) -> [Option<&'static str>; 2] {
    let now = hosts.clock.now();
    let of = |host: usize| {
        let relay = hosts.relays[host].as_ref().expect("it runs");
        relay.status(now).peers[0].transport
    };
    [of(0), of(1)]
}

/// Why they were disconnected last.
fn last_ends(hosts: &Hosts) -> Vec<Option<String>> {
    let now = hosts.clock.now();
    let peers = |relay: &TcpRelay| relay.status(now).peers;
    let peers = hosts.relays.iter().flatten().flat_map(peers);
    peers.map(|peer| peer.last_end).collect()
}

fn messages_go_both_ways(transport: Transport) {
    for (name, size, longest, count) in
        [("small", 8192, 900, 2000), ("large", 1 << 21, 700_000, 60)]
    {
        let mut hosts = hosts(transport, name, 2, size);
        hosts.connect();
        assert_eq!(transports(&hosts), [Some(transport.name()); 2]);
        for relay in hosts.relays.iter().flatten() {
            let peer = &relay.status(hosts.clock.now()).peers[0];
            let detail = peer.transport_detail.as_deref();
            match transport {
                Transport::Ucx => {
                    let detail = detail.unwrap();
                    let is = detail.starts_with("rc_") && detail.ends_with(" (1 rail)");
                    assert!(is, "{detail}");
                }
                _ => assert_eq!(detail, None),
            }
        }
        let mut flows: Vec<_> = (0..4)
            .map(|n| (hosts.pair(n % 2, 1 + n as u32 / 2), 0, 0))
            .collect();
        hosts.until("all messages", |_| {
            for ((sender, receiver), sent, received) in &mut flows {
                send(sender, sent, count, longest);
                receive(receiver, received, longest);
            }
            flows.iter().all(|(_, _, received)| *received == count)
        });
        for host in 0..2 {
            let totals = hosts.relays[host].as_ref().unwrap().totals();
            assert_eq!(totals.sent_messages, 2 * count, "none went twice");
            assert_eq!((totals.ups, totals.downs), (1, 0));
        }
    }
}

fn killed_relays_lose_and_repeat_nothing(transport: Transport) {
    let mut hosts = hosts(transport, "kills", 1, 8192);
    hosts.connect();
    let (mut sender, mut receiver) = hosts.pair(0, 1);
    let (mut sent, mut received) = (0, 0);
    for round in 0..15 {
        for _ in 0..1 + round * 7 % 40 {
            send(&mut sender, &mut sent, u64::MAX, 900);
            hosts.step();
            receive(&mut receiver, &mut received, 900);
        }
        hosts.crash(round);
        let before = received;
        hosts.until("messages after the restart", |_| {
            send(&mut sender, &mut sent, u64::MAX, 900);
            receive(&mut receiver, &mut received, 900);
            received > before + 20
        });
        assert_eq!(
            transports(&hosts),
            [Some(transport.name()); 2],
            "round {round}: {:?}",
            last_ends(&hosts)
        );
    }
    let limit = sent;
    hosts.until("all of them", |_| {
        receive(&mut receiver, &mut received, 900);
        received == limit
    });
}

/// A relay that sleeps is woken by what the card does, on both sides.
fn what_comes_wakes_a_relay(transport: Transport) {
    let mut hosts = hosts(transport, "wakes", 1, 8192);
    hosts.connect();
    let (mut sender, mut receiver) = hosts.pair(0, 1);
    let clock = hosts.clock;
    let over = AtomicBool::new(false);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        for relay in hosts.relays.iter_mut().flatten() {
            let over = &over;
            scope.spawn(move || {
                relay.run(clock, DEFAULT_SPIN, |_, _| {
                    match over.load(Ordering::Relaxed) {
                        true => Next::End,
                        false => Next::GoOn,
                    }
                });
            });
        }
        for n in 0..40u64 {
            std::thread::sleep(Duration::from_millis(7));
            let begun = Instant::now();
            sender.try_send(&message(n, 900)).unwrap();
            let mut received = n;
            while received == n && begun.elapsed() < Duration::from_secs(5) {
                receive(&mut receiver, &mut received, 900);
                // The relays need the processors, of which a guest has two.
                std::thread::sleep(Duration::from_micros(100));
            }
            times.push(begun.elapsed());
        }
        over.store(true, Ordering::Relaxed);
    });
    times.sort();
    // Without being woken it would be half of 100 ms.
    assert!(times[20] < Duration::from_millis(30), "{times:?}");
    assert_eq!(transports(&hosts), [Some(transport.name()); 2]);
}

/// Nothing that the transport does by itself keeps a relay awake.
fn an_idle_relay_sleeps(transport: Transport) {
    let mut hosts = hosts(transport, "idle", 1, 8192);
    hosts.connect();
    let (clock, mut passes) = (hosts.clock, [0; 2]);
    std::thread::scope(|scope| {
        for (relay, passes) in hosts.relays.iter_mut().flatten().zip(&mut passes) {
            scope.spawn(move || {
                let begun = Instant::now();
                // Who does not sleep attends every millisecond.
                relay.run(clock, DEFAULT_SPIN, |_, _| {
                    *passes += 1;
                    match begun.elapsed() > Duration::from_secs(2) {
                        true => Next::End,
                        false => Next::GoOn,
                    }
                });
            });
        }
    });
    assert!(passes.iter().all(|passes| *passes < 400), "{passes:?}");
    assert_eq!(transports(&hosts), [Some(transport.name()); 2]);
}

fn where_one_side_does_not_want_rdma_tcp_serves(transport: Transport) {
    for host in 0..2 {
        let mut wanted = [0, 1].map(|_| vec![transport, Transport::Tcp]);
        wanted[host] = vec![Transport::Tcp, transport];
        let name = format!("{}-unwanted", transport.name());
        let mut hosts = Hosts::over(&name, 1, 8192, "delivered", wanted);
        hosts.connect();
        assert_eq!(transports(&hosts), [Some("tcp"); 2]);
        let (mut sender, mut receiver) = hosts.pair(0, 1);
        let (mut sent, mut received) = (0, 0);
        hosts.until("all messages", |_| {
            send(&mut sender, &mut sent, 100, 900);
            receive(&mut receiver, &mut received, 900);
            received == 100
        });
    }
}

macro_rules! over {
    ($name:ident, $transport:expr) => {
        over!(@ $name, $transport, messages_go_both_ways, killed_relays_lose_and_repeat_nothing, what_comes_wakes_a_relay, an_idle_relay_sleeps,
            where_one_side_does_not_want_rdma_tcp_serves);
    };
    (@ $name:ident, $transport:expr, $($test:ident),*) => {
        mod $name {
            use tbus::grm::Transport;
            $(
                #[test]
                #[ignore = "needs an RDMA device: ci/rxe run"]
                fn $test() {
                    super::$test($transport);
                }
            )*
        }
    };
}

over!(verbs, Transport::Verbs);
over!(ucx, Transport::Ucx);

/// UCX is opened while data goes over TCP already, and then takes its place.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn ucx_that_is_wanted_later_comes_later() {
    let mut hosts = hosts(Transport::Ucx, "late", 1, 8192);
    for host in 0..2 {
        hosts.stop(host);
    }
    for host in 0..2 {
        hosts.start_late(host);
    }
    hosts.connect();
    let (mut sender, mut receiver) = hosts.pair(0, 1);
    let (mut sent, mut received) = (0, 0);
    hosts.until("UCX", |hosts| {
        send(&mut sender, &mut sent, u64::MAX, 900);
        receive(&mut receiver, &mut received, 900);
        transports(hosts) == [Some("ucx"); 2]
    });
    let limit = sent;
    hosts.until("all messages", |_| {
        receive(&mut receiver, &mut received, 900);
        received == limit
    });
}
