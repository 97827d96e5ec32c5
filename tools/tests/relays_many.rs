//! Many peers, many channels. Real processes; alone in its file, for it measures.

mod hosts;

use hosts::*;
use serde_json::Value;
use std::time::{Duration, Instant};
use tbus::{Receiver, Sender, TryRecvError, TrySendError};

/// Passes messages `from..to` of `ring` through, without waiting for ever.
fn pump(
    ring: u64,
    (sender, sent): (&mut Sender, &mut u64),
    (receiver, received): (&mut Receiver, &mut u64),
    to: u64,
) -> bool {
    let longest = sender.max_len().min(1000);
    let (mut expected, mut buffer) = (Vec::new(), [0; 1000]);
    while *sent < to {
        payload(ring, *sent, longest, &mut expected);
        match sender.try_send(&expected) {
            Ok(()) => *sent += 1,
            Err(TrySendError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    loop {
        match receiver.try_recv(&mut buffer) {
            Ok(length) => {
                payload(ring, *received, longest, &mut expected);
                assert!(
                    buffer[..length] == expected,
                    "ring {ring:#x}, message {received}"
                );
                *received += 1;
            }
            Err(TryRecvError::Empty) => return *received == to,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A star: one relay in the middle and 63 around it.
#[test]
fn sixty_four_relays() {
    const LEAVES: u32 = 63;
    let _turn = turn();
    let scratch = Scratch::new("star");
    let nodes: Vec<Host> = (1..=LEAVES + 1)
        .map(|node| Host::new(&scratch, node))
        .collect();
    // The hub has the highest number, or the lowest, or one in the middle: it dials some and is dialled by others.
    let hub = 31;
    let leaf_of = |node: usize| address(node as u32 + 1, 1);
    let hub_for = |node: usize| address(hub as u32 + 1, node as u32 + 1);
    let leaves: Vec<usize> = (0..nodes.len()).filter(|node| *node != hub).collect();
    let channel = |node: usize| Channel {
        ends: [hub_for(node), leaf_of(node)],
        size: 4096,
        retention: "delivered",
    };
    nodes[hub].write_channels(&leaves.iter().map(|n| channel(*n)).collect::<Vec<_>>());
    let routes: Vec<_> = leaves
        .iter()
        .map(|n| (leaf_of(*n), vec![nodes[*n].port]))
        .collect();
    nodes[hub].write_routes(&routes);
    for leaf in &leaves {
        nodes[*leaf].write_channels(&[channel(*leaf)]);
        nodes[*leaf].write_routes(&[(hub_for(*leaf), vec![nodes[hub].port])]);
    }
    let begun = Instant::now();
    let mut relays: Vec<Process> = nodes.iter().map(Host::start).collect();
    let status = nodes[hub].await_mirrored(2 * LEAVES as usize);
    let connected = begun.elapsed();
    let peers = status["peers"].as_array().unwrap();
    let up = |peer: &&Value| !peer["transport"].is_null();
    assert_eq!(
        peers.iter().filter(up).count(),
        LEAVES as usize,
        "{status:#}"
    );

    const MESSAGES: u64 = 200;
    let mut flows: Vec<_> = leaves
        .iter()
        .flat_map(|leaf| [(hub, *leaf), (*leaf, hub)])
        .map(|(from, to)| {
            let leaf = if from == hub { to } else { from };
            let end = |node: usize| match node == hub {
                true => hub_for(leaf),
                false => leaf_of(leaf),
            };
            let sender = nodes[from].sender(end(from), end(to));
            (sender, 0, nodes[to].receiver(end(to), end(from)), 0)
        })
        .collect();
    let mut pass = |to: u64| {
        let begun = Instant::now();
        let done = within(PATIENCE, || {
            let mut all = true;
            for (ring, (sender, sent, receiver, received)) in (0..).zip(&mut flows) {
                all &= pump(ring, (sender, sent), (receiver, received), to);
            }
            all.then_some(())
        });
        assert!(done.is_some(), "not all messages came");
        begun.elapsed()
    };
    let flowed = pass(MESSAGES);
    // The hub is killed with all its connections.
    relays[hub].kill();
    relays[hub] = nodes[hub].start();
    let again = pass(2 * MESSAGES);
    nodes[hub].await_mirrored(2 * LEAVES as usize);
    println!(
        "64 relays: all mirrored after {connected:.2?}; {MESSAGES} messages each on {} rings in {flowed:.2?}; the same with the \
         hub killed before in {again:.2?}; {} KiB of the hub's own memory",
        2 * LEAVES,
        relays[hub].own_memory() >> 10
    );
    relays.iter_mut().for_each(Process::is_alive);
    let begun = Instant::now();
    for relay in &relays {
        relay.signal(nix::sys::signal::Signal::SIGTERM);
    }
    relays.iter_mut().for_each(Process::end);
    println!("all ended within {:.2?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Channels between `side` addresses of host 1 and as many of host 2.
fn square(count: u32, size: u64) -> Vec<Channel> {
    let side = f64::from(count).sqrt().ceil() as u32;
    (0..count)
        .map(|n| Channel {
            ends: [address(1, n / side + 1), address(2, n % side + 1)],
            size,
            retention: "delivered",
        })
        .collect()
}

/// Waits until both relays mirror `rings` rings.
#[track_caller]
fn await_all(hosts: &[Host; 2], rings: usize) {
    let patience = Duration::from_secs(from_environment("TBUS_PATIENCE", 60));
    let all = || {
        std::thread::sleep(Duration::from_millis(300)); // an answer of so many rings is work
        let running = |host: &Host| host.status().is_some_and(|s| running(&s) == rings);
        hosts.iter().all(running).then_some(())
    };
    assert!(within(patience, all).is_some(), "not all are mirrored");
}

/// What a message cost: microseconds of the sending and of the receiving relay's processor time, and of wall time.
#[derive(Clone, Copy, Debug)]
struct Cost {
    relays: [f64; 2],
    wall: f64,
}

impl Cost {
    fn all(&self) -> f64 {
        self.relays[0] + self.relays[1]
    }
}

/// Messages of 64 bytes through `channels`, in rounds of one message in each of the next `window` of them; with one channel
/// all go through that.
fn cost_of(hosts: &[Host; 2], relays: &[Process; 2], channels: &[Channel], window: usize) -> Cost {
    let buses = [0, 1].map(|host: usize| hosts[host].bus());
    let mut flows: Vec<(Sender, Receiver)> = channels
        .iter()
        .map(|channel| {
            let [a, b] = channel.ends;
            let sender = buses[0].bind(a).unwrap().sender(b).unwrap();
            (sender, buses[1].bind(b).unwrap().receiver(a).unwrap())
        })
        .collect();
    let lasts = Duration::from_millis(from_environment("TBUS_COST_MS", 1500));
    let mut next = 0;
    let mut run = |lasts: Duration| {
        let (begun, mut messages) = (Instant::now(), 0u64);
        while begun.elapsed() < lasts {
            let round: Vec<usize> = (0..window).map(|n| (next + n) % flows.len()).collect();
            next = (next + window) % flows.len();
            let waiting = Instant::now();
            for at in &round {
                let message = messages.to_le_bytes().repeat(8);
                while flows[*at].0.try_send(&message).is_err() {
                    assert!(waiting.elapsed() < PATIENCE, "there is no room");
                }
            }
            for at in &round {
                while flows[*at].1.try_recv(&mut [0; 64]).is_err() {
                    assert!(waiting.elapsed() < PATIENCE, "a message does not come");
                    std::hint::spin_loop();
                }
            }
            messages += window as u64;
        }
        messages
    };
    run(lasts / 5); // warms up
    let before = [0, 1].map(|relay: usize| relays[relay].processor_time());
    let begun = Instant::now();
    let messages = run(lasts) as f64;
    let wall = begun.elapsed();
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / messages;
    Cost {
        relays: [0, 1].map(|relay: usize| micros(relays[relay].processor_time() - before[relay])),
        wall: micros(wall),
    }
}

/// What a message costs must not depend on how many channels there are: one that is used among many, and many that are
/// used in turn. TBUS_CHANNELS says how many.
#[test]
fn the_cost_of_a_message_among_many_channels() {
    const WINDOW: u32 = 256;
    let _turn = turn();
    let many = (from_environment("TBUS_CHANNELS", 2_000) as u32).max(2 * WINDOW);
    let measure = |count: u32| {
        let scratch = Scratch::new("cost");
        let channels = square(count, 65_536);
        let hosts = two_hosts(&scratch, &channels);
        let relays = [hosts[0].start(), hosts[1].start()];
        await_all(&hosts, 2 * count as usize);
        let middle = count as usize / 2;
        let one = cost_of(&hosts, &relays, &channels[middle..=middle], WINDOW as usize);
        let all = (count >= WINDOW).then(|| cost_of(&hosts, &relays, &channels, WINDOW as usize));
        for cost in [Some(one), all].into_iter().flatten() {
            println!(
                "{count} channels: {:.2} + {:.2} us of the relays and {:.2} us a message",
                cost.relays[0], cost.relays[1], cost.wall
            );
        }
        (one, all)
    };
    let (alone, _) = measure(1);
    let (_, few) = measure(WINDOW);
    let (among, spread) = measure(many);
    let [idle, used] = [
        among.all() / alone.all(),
        spread.unwrap().all() / few.unwrap().all(),
    ];
    println!(
        "{many} channels: a message costs {idle:.2} times what it costs with one channel, while the others are idle; \
         {used:.2} times what it costs with {WINDOW}, if all are used in turn"
    );
    // The goal is 1.3 for both; machines that do other work besides measure worse.
    assert!(idle < 3.0 && used < 8.0);
}

/// Two relays with many channels, each of two rings on each host. TBUS_CHANNELS says how many.
#[test]
fn many_idle_channels() {
    let _turn = turn();
    let scratch = Scratch::new("many");
    let count = from_environment("TBUS_CHANNELS", 2_000) as u32;
    // Rings of 64 KiB, if both hosts' fit into a half of what is free.
    let free = {
        let info = nix::sys::statvfs::statvfs(&scratch.0).unwrap();
        info.blocks_available() * info.fragment_size()
    };
    let needs = |size: u64| 4 * u64::from(count) * (size + 4096);
    let size = match needs(65_536) < free / 2 {
        true => 65_536,
        false => 4096,
    };
    assert!(
        needs(size) < free,
        "/dev/shm has {free} bytes free, {} are needed",
        needs(size)
    );
    let channels = square(count, size);
    let begun = Instant::now();
    let hosts = two_hosts(&scratch, &channels);
    let made = begun.elapsed();
    let begun = Instant::now();
    let mut relays = [hosts[0].start(), hosts[1].start()];
    let rings = 2 * count as usize;
    let mut slow = Vec::new();
    let mirrored = within(
        Duration::from_secs(from_environment("TBUS_PATIENCE", 60)),
        || {
            std::thread::sleep(Duration::from_millis(1000)); // an answer of so many rings is work
            let statuses = [0, 1].map(|host| {
                let asked = Instant::now();
                let status = hosts[host].status();
                slow.push(asked.elapsed());
                status
            });
            let all = |status: &Option<Value>| status.as_ref().is_some_and(|s| running(s) == rings);
            statuses.iter().all(all).then_some(())
        },
    );
    let took = begun.elapsed();
    let counts = [0, 1].map(|host| hosts[host].status().as_ref().map(running));
    println!(
        "{count} channels of {size} bytes: made in {made:.1?}, mirrored after {took:.1?} {counts:?}; a status took {:.1?} at most; \
         mappings {} and {} of {}",
        slow.iter().max().unwrap(),
        relays[0].mappings(),
        relays[1].mappings(),
        std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .unwrap()
            .trim()
    );
    assert!(mirrored.is_some(), "not within a minute: {counts:?}");

    // Idle: what a relay costs when nobody speaks.
    std::thread::sleep(Duration::from_secs(2));
    let before = [0, 1].map(|relay: usize| relays[relay].processor_time());
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(10));
    let wall = begun.elapsed();
    for relay in 0..2 {
        let used = relays[relay].processor_time() - before[relay];
        let share = 100.0 * used.as_secs_f64() / wall.as_secs_f64();
        println!(
            "relay {}: {share:.2} % of a processor while idle; {} KiB of its own, {} KiB with rings",
            relay + 1,
            relays[relay].own_memory() >> 10,
            relays[relay].memory() >> 10
        );
        assert!(share < 2.0, "relay {}: {share} %", relay + 1);
    }

    // Any of them still works, and at once.
    for n in [0, count / 2, count - 1] {
        let [a, b] = channels[n as usize].ends;
        for (from, to, ends) in [(0, 1, [a, b]), (1, 0, [b, a])] {
            let mut sender = hosts[from].sender(ends[0], ends[1]);
            let mut receiver = hosts[to].receiver(ends[1], ends[0]);
            let (mut sent, mut received, ring) = (0, 0, u64::from(n));
            let begun = Instant::now();
            let first = within(PATIENCE, || {
                pump(
                    ring,
                    (&mut sender, &mut sent),
                    (&mut receiver, &mut received),
                    1,
                )
                .then_some(())
            });
            let delay = begun.elapsed();
            assert!(first.is_some(), "channel {n}");
            let all = within(PATIENCE, || {
                pump(
                    ring,
                    (&mut sender, &mut sent),
                    (&mut receiver, &mut received),
                    1000,
                )
                .then_some(())
            });
            assert!(all.is_some(), "channel {n}");
            println!(
                "channel {n} from host {}: the first message after {delay:.2?}",
                from + 1
            );
            assert!(delay < Duration::from_secs(1));
        }
    }
    // A killed one comes back to all of them.
    let begun = Instant::now();
    relays[0].kill();
    relays[0] = hosts[0].start();
    let back = within(Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(200));
        hosts[0].status().filter(|status| running(status) == rings)
    });
    println!("mirrored {:.1?} after a kill", begun.elapsed());
    assert!(back.is_some());
}
