//! `tbusd` as its operator meets it: a second one, rings that are replaced or deleted under it, receivers that do not
//! read, routes that come and go. Real processes; the test itself is the applications.

mod hosts;

use hosts::*;
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tbus::{Address, Kind, Receiver, Sender, TryRecvError, TrySendError};

/// One direction of a channel, both ends in this process.
struct Flow {
    ring: u64,
    sender: Sender,
    receiver: Receiver,
    sent: u64,
    received: u64,
    buffer: Vec<u8>,
    expected: Vec<u8>,
}

impl Flow {
    fn new(hosts: &[Host; 2], from: Address, to: Address) -> Flow {
        let of = |address: Address| &hosts[(address.0 >> 24) as usize - 1];
        Flow::of(of(from).sender(from, to), of(to).receiver(to, from))
    }

    fn of(sender: Sender, receiver: Receiver) -> Flow {
        Flow {
            ring: sender.ring().header().from.into(),
            sent: sender.next().sequence,
            received: receiver.next().sequence,
            sender,
            receiver,
            buffer: vec![0; 1 << 20],
            expected: Vec::new(),
        }
    }

    fn longest(&self) -> usize {
        self.sender.max_len().min(4000)
    }

    /// Sends what there is room for, up to `limit` messages in all; tells how many.
    fn send(&mut self, limit: u64) -> u64 {
        let before = self.sent;
        while self.sent < limit {
            payload(self.ring, self.sent, self.longest(), &mut self.expected);
            match self.sender.try_send(&self.expected) {
                Ok(()) => self.sent += 1,
                Err(TrySendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.sent - before
    }

    fn send_more(&mut self, count: u64) -> u64 {
        self.send(self.sent + count)
    }

    /// Receives and checks what is there; tells how many.
    fn receive(&mut self) -> u64 {
        let before = self.received;
        loop {
            match self.receiver.try_recv(&mut self.buffer) {
                Ok(length) => {
                    payload(self.ring, self.received, self.longest(), &mut self.expected);
                    assert!(
                        self.buffer[..length] == self.expected,
                        "message {} of {} bytes was due, {length} bytes came",
                        self.received,
                        self.expected.len()
                    );
                    self.received += 1;
                }
                Err(TryRecvError::Empty) => return self.received - before,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Brings `count` more messages to the other side.
    #[track_caller]
    fn pass(&mut self, count: u64) {
        let limit = self.sent + count;
        let done = within(PATIENCE, || {
            self.send(limit);
            self.receive();
            (self.received == limit).then_some(())
        });
        assert!(
            done.is_some(),
            "of {limit} messages {} were sent and {} received; {:?}",
            self.sent,
            self.received,
            self.sender.ring().status()
        );
    }
}

fn flows(hosts: &[Host; 2], count: u32) -> Vec<Flow> {
    (1..=count)
        .flat_map(|n| [(1, 2), (2, 1)].map(|(a, b)| (address(a, n), address(b, n))))
        .map(|(from, to)| Flow::new(hosts, from, to))
        .collect()
}

const SMALL: (u64, &str) = (8192, "delivered");

fn text_of(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// With the same file, or the same node number, a second one is refused and says why; the first does not notice.
#[test]
fn a_second_relay_of_the_same_node_is_refused() {
    let _turn = turn();
    let scratch = Scratch::new("second");
    let hosts = two_hosts(&scratch, &channels(&[SMALL; 2]));
    let mut first = hosts[0].start();
    let _other = hosts[1].start();
    hosts[0].await_mirrored(4);
    let mut flows = flows(&hosts, 2);
    flows.iter_mut().for_each(|flow| flow.pass(100));
    let before = hosts[0].status().unwrap();

    let output = hosts[0].run("tbusd", "-c tbusd.toml");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("is a relay running already?"), "{text}");

    hosts[0].write_config("twin.toml", 1, free_port());
    let output = hosts[0].run("tbusd", "-c twin.toml");
    let text = text_of(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(
        text.contains("another relay with this node number runs already"),
        "{text}"
    );

    flows.iter_mut().for_each(|flow| flow.pass(100));
    let after = hosts[0].status().unwrap();
    assert_eq!(after["pid"], before["pid"]);
    assert_eq!(total(&after, "downs"), total(&before, "downs"));
    // The one after a killed one serves.
    first.kill();
    let mut second = hosts[0].start();
    flows.iter_mut().for_each(|flow| flow.pass(100));
    assert_eq!(hosts[0].status().unwrap()["pid"], second.id());
    second.is_alive();
}

/// One with another number and port finds the rings taken: it waits, says so, does not disturb, and takes over.
fn standby(nodes: [u32; 3]) {
    let _turn = turn();
    let scratch = Scratch::new("standby");
    let hosts = two_hosts(&scratch, &channels(&[SMALL; 2]));
    let standby_port = free_port();
    hosts[0].write_config("tbusd.toml", nodes[0], hosts[0].port);
    hosts[0].write_config("standby.toml", nodes[1], standby_port);
    hosts[1].write_config("tbusd.toml", nodes[2], hosts[1].port);
    for host in &hosts {
        let here = (1..=2).map(|n| (address(1, n), vec![hosts[0].port, standby_port]));
        let there = (1..=2).map(|n| (address(2, n), vec![hosts[1].port]));
        host.write_routes(&here.chain(there).collect::<Vec<_>>());
    }
    let mut first = hosts[0].start();
    let _other = hosts[1].start();
    hosts[0].await_mirrored(4);
    hosts[1].await_mirrored(4);
    let mut flows = flows(&hosts, 2);
    flows.iter_mut().for_each(|flow| flow.pass(100));
    let downs = || [0, 1].map(|host| total(&hosts[host].status().unwrap(), "downs"));
    let before = downs();
    let mut second = hosts[0].start_as("standby.toml");
    let log = scratch.0.join("tbusd1.log");
    let told = within(PATIENCE, || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("is held by another process").then_some(())
    });
    assert!(told.is_some(), "{}", std::fs::read_to_string(&log).unwrap());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        flows.iter_mut().for_each(|flow| flow.pass(50));
    }
    assert_eq!(downs(), before, "the second one disturbs the first");
    // Nor does it take the place of one that lives and was not heard for a while.
    if nodes[1] < nodes[0] {
        first.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(5));
        first.signal(Signal::SIGCONT);
        flows.iter_mut().for_each(|flow| flow.pass(50));
    }
    first.kill();
    let begun = Instant::now();
    flows.iter_mut().for_each(|flow| flow.pass(100));
    println!(
        "{nodes:?}: the second relay serves after {:.2?}",
        begun.elapsed()
    );
    let status = hosts[0].status_of("standby.toml").unwrap();
    assert_eq!(
        (running(&status), status["pid"].as_u64()),
        (4, Some(second.id().into()))
    );
    second.is_alive();
}

#[test]
fn a_standby_of_a_higher_node_waits_and_takes_over() {
    standby([1, 3, 2]);
}

#[test]
fn a_standby_of_a_lower_node_waits_and_takes_over() {
    standby([2, 1, 3]);
}

/// The file of the ring from `from` on this host.
fn file_of(host: &Host, from: Address) -> PathBuf {
    let bus = host.bus();
    let snapshot = bus.gcim().snapshot().unwrap();
    let channel = snapshot
        .channels
        .iter()
        .find(|channel| channel.addresses.contains(&from))
        .unwrap();
    let direction = usize::from(channel.addresses[0] != from);
    bus.directory().ring_path(channel.rings[direction])
}

/// What `cp` and `mv` do.
fn replace(file: &PathBuf) {
    let copy = file.with_extension("copy");
    std::fs::copy(file, &copy).unwrap();
    std::fs::rename(&copy, file).unwrap();
}

#[test]
fn a_replaced_ring_file_is_noticed_and_the_others_go_on() {
    let _turn = turn();
    let scratch = Scratch::new("replaced");
    let hosts = two_hosts(&scratch, &channels(&[SMALL; 3]));
    let _relays = [hosts[0].start(), hosts[1].start()];
    hosts[0].await_mirrored(6);
    let mut flows = flows(&hosts, 3);
    flows.iter_mut().for_each(|flow| flow.pass(50));
    // Channel 1's source at host 1; channel 2's mirror of the same direction at host 2.
    for (host, n) in [(0, 1), (1, 2)] {
        replace(&file_of(&hosts[host], address(1, n)));
        let begun = Instant::now();
        let ends = [address(1, n), address(2, n)];
        let noticed = within(Duration::from_secs(5), || {
            let status = hosts[host].status()?;
            let ring = ring_between(&status, ends[0], ends[1])?;
            let trouble = ring["trouble"].as_str()?;
            assert!(
                trouble.contains("it is another file than the one that is mapped"),
                "{trouble}"
            );
            Some(total(&status, "rejected"))
        });
        assert_eq!(noticed, Some(1), "{:#}", hosts[host].status().unwrap());
        println!("noticed after {:.2?}", begun.elapsed());
        // The sender's relay mirrors it no more, knows why, and refuses nobody else.
        let status = within(Duration::from_secs(5), || {
            let status = hosts[0].status()?;
            let ring = ring_between(&status, ends[0], ends[1])?;
            (ring["running"] == false && ring["trouble"].is_string()).then_some(())
        });
        assert!(status.is_some(), "{:#}", hosts[0].status().unwrap());
        // The operators learn of it, where it was found and where it is sent.
        for host in [host, 0] {
            let status = hosts[host].status().unwrap();
            let alarm = &status["alarms"][0];
            assert_eq!(alarm["alarm"], "ring_given_up", "{status:#}");
        }
        let stuck = 2 * (n as usize - 1);
        flows[stuck].send(u64::MAX);
        assert!(
            flows[stuck].sent > flows[stuck].received,
            "its sender is refused when it is full"
        );
        for (index, flow) in flows.iter_mut().enumerate() {
            if index != 0 && (n == 1 || index != 2) {
                flow.pass(50);
            }
        }
        assert_eq!(
            flows[stuck].receive(),
            0,
            "nothing comes by the replaced ring"
        );
    }
    for host in &hosts {
        assert_eq!(
            total(&host.status().unwrap(), "downs"),
            0,
            "no connection was lost for it"
        );
    }
}

#[test]
fn a_deleted_channel_is_closed_and_the_others_go_on() {
    let _turn = turn();
    let scratch = Scratch::new("deleted");
    let hosts = two_hosts(&scratch, &channels(&[SMALL; 3]));
    let _relays = [hosts[0].start(), hosts[1].start()];
    hosts[0].await_mirrored(6);
    let mut flows = flows(&hosts, 3);
    flows.iter_mut().for_each(|flow| flow.pass(50));
    // Unread messages are refused first, with the relay at work as without.
    let output = within(PATIENCE, || {
        let status = flows[0].receiver.ring().status();
        (status.unread_messages == 0).then_some(())
    });
    assert!(output.is_some());
    flows[1].send_more(5);
    let arrived = within(PATIENCE, || {
        (flows[1].receiver.ring().status().unread_messages == 5).then_some(())
    });
    assert!(arrived.is_some());
    let output = hosts[0].run("tbusmgr", "-C channels.xml --delete 1");
    assert_eq!(output.status.code(), Some(5), "{}", text_of(&output));
    flows[1].receive();
    hosts[0].must("tbusmgr", "-C channels.xml --delete 1");
    // At host 1 both applications learn of it, at host 2 nobody is told but by the relay's status.
    assert!(matches!(
        flows[0].sender.try_send(b"x"),
        Err(TrySendError::Closed)
    ));
    let closed = within(PATIENCE, || {
        matches!(flows[1].receiver.peek(), Err(TryRecvError::Closed)).then_some(())
    });
    assert!(closed.is_some());
    for flow in &mut flows[2..] {
        flow.pass(200);
    }
    hosts[0].await_mirrored(4);
    let refused = within(PATIENCE, || {
        let status = hosts[1].status()?;
        let ring = ring_between(&status, address(2, 1), address(1, 1))?;
        let trouble = ring["trouble"].as_str().unwrap_or_default();
        trouble.contains("has no channel").then_some(status.clone())
    });
    let status = refused.unwrap_or_else(|| panic!("{:#}", hosts[1].status().unwrap()));
    assert_eq!(running(&status), 4, "{status:#}");
    // Made again, it begins anew, and what host 2's sender had not got rid of comes first.
    flows[1].send_more(5);
    let (old, rest) = flows.split_at_mut(2);
    hosts[0].must("tbusmgr", "-C channels.xml -W");
    hosts[0].await_mirrored(6);
    for flow in rest {
        flow.pass(50);
    }
    let [a, b] = [address(1, 1), address(2, 1)];
    old[1].receiver = hosts[0].receiver(a, b);
    old[1].pass(50);
    drop(std::mem::replace(&mut old[0].sender, hosts[0].sender(a, b)));
    // Host 2's receiver goes on from the mirror of the old source to that of the new one.
    (old[0].sent, old[0].received) = (0, 0);
    old[0].pass(50);
}

#[test]
fn a_receiver_that_does_not_read_costs_nobody_else() {
    let _turn = turn();
    let scratch = Scratch::new("stall");
    let stall = Duration::from_secs(from_environment("TBUS_STALL", 60));
    let sizes = [
        (1 << 18, "delivered"),
        (1 << 18, "consumed"),
        (1 << 16, "delivered"),
        (1 << 16, "consumed"),
    ];
    let hosts = two_hosts(&scratch, &channels(&sizes));
    let relays = [hosts[0].start(), hosts[1].start()];
    hosts[0].await_mirrored(8);
    let mut flows = flows(&hosts, 4);
    flows.iter_mut().for_each(|flow| flow.pass(2000));
    let memory = || [0, 1].map(|relay: usize| relays[relay].own_memory());
    let (before, all_before) = (memory(), [0, 1].map(|relay: usize| relays[relay].memory()));
    // Both directions of channel 1 and of channel 2 are not read; their senders send whenever they can.
    let begun = Instant::now();
    let (mut passed, mut most) = (0, before);
    let mut longest = Duration::ZERO;
    let mut looked = Instant::now();
    while begun.elapsed() < stall {
        for flow in &mut flows[..4] {
            flow.send(u64::MAX);
        }
        for flow in &mut flows[4..] {
            let turn = Instant::now();
            flow.pass(50);
            longest = longest.max(turn.elapsed());
            passed += 50;
        }
        if looked.elapsed() > Duration::from_millis(100) {
            looked = Instant::now();
            for (most, now) in most.iter_mut().zip(memory()) {
                *most = now.max(*most);
            }
        }
    }
    let all_after = [0, 1].map(|relay: usize| relays[relay].memory());
    let held: Vec<u64> = flows[..4]
        .iter()
        .map(|flow| flow.sent - flow.received)
        .collect();
    println!(
        "{stall:?} without reading: {held:?} messages held, {passed} messages passed by, 50 within {longest:.2?} at the most; \
         memory of the relays {} and {} KiB, at most {} and {} ({all_before:?} {all_after:?} bytes with rings)",
        before[0] >> 10,
        before[1] >> 10,
        most[0] >> 10,
        most[1] >> 10
    );
    for relay in 0..2 {
        assert!(
            most[relay] < before[relay] + (1 << 20),
            "{before:?} {most:?}"
        );
        assert!(
            all_after[relay] < all_before[relay] + (2 << 20),
            "{all_before:?} {all_after:?}"
        );
    }
    assert!(
        longest < Duration::from_secs(2),
        "the others were held up for {longest:?}"
    );
    for flow in &mut flows[..4] {
        // Full on both hosts where the source is free to release; once where it keeps all until it is read.
        assert!(flow.sent - flow.received > 100);
        assert_eq!(
            flow.send(u64::MAX),
            0,
            "there is room again without a receive"
        );
        let limit = flow.sent;
        flow.pass(0);
        assert_eq!(flow.received, limit);
        flow.pass(2000);
    }
    for host in &hosts {
        let status = host.status().unwrap();
        assert_eq!(
            (total(&status, "downs"), total(&status, "rejected")),
            (0, 0),
            "{status:#}"
        );
    }
}

#[test]
fn routes_come_and_go_under_a_running_relay() {
    let _turn = turn();
    let scratch = Scratch::new("routes");
    let hosts = two_hosts(&scratch, &channels(&[SMALL; 2]));
    let [a, b] = [address(1, 1), address(2, 1)];
    let route = |n: u32| {
        let hosts = &hosts;
        [1, 2].map(|host: u32| (address(host, n), vec![hosts[host as usize - 1].port]))
    };
    let (all, none) = ([route(1), route(2)].concat(), route(2).to_vec());
    for host in &hosts {
        host.write_routes(&none);
    }
    let mut relays = [hosts[0].start(), hosts[1].start()];
    hosts[0].await_mirrored(2);
    let mut bystander = Flow::new(&hosts, address(1, 2), address(2, 2));
    bystander.pass(50);

    // Without a route the channel is one within host 1, even with the relay running; some of it is left unread.
    let mut flow = Flow::of(hosts[0].sender(a, b), hosts[0].receiver(b, a));
    flow.pass(10);
    flow.send(25);
    for host in &hosts {
        host.write_routes(&all);
    }
    // While an application receives here what belongs to the other host, the ring is its.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(flow.sender.ring().kind(), Kind::Local);
    assert_eq!(flow.receiver.next().sequence, 10);
    flow.receiver = hosts[1].receiver(b, a);
    for host in &hosts {
        host.await_mirrored(4);
    }
    // What was sent before is delivered there, from the first that was not received here.
    let begun = within(PATIENCE, || {
        let _ = flow.receiver.peek();
        (flow.receiver.next().sequence == 10).then_some(())
    });
    assert!(begun.is_some(), "it begins with {:?}", flow.receiver.next());
    flow.pass(100);
    assert_eq!(flow.sender.ring().kind(), Kind::Source, "it follows");
    bystander.pass(50);

    // The other relay is away; what it has not got goes back into a local ring.
    let settled = within(PATIENCE, || {
        (flow.sender.ring().status().unread_messages == 0).then_some(())
    });
    assert!(settled.is_some());
    relays[1].kill();
    flow.send_more(20);
    let limit = flow.sent;
    assert!(limit > flow.received);
    hosts[0].write_routes(&none);
    let local = within(PATIENCE, || {
        hosts[0].bus().bind(b).unwrap().receiver(a).ok()
    });
    let remote = std::mem::replace(&mut flow.receiver, local.expect("the ring is local again"));
    assert_eq!(flow.receiver.next().sequence, flow.received);
    flow.pass(30);
    assert_eq!(flow.received, limit + 30);
    assert_eq!(flow.sender.ring().kind(), Kind::Local, "it follows back");

    // And to the other host again: a mirror of another source, so the old one is received to its end first.
    flow.send_more(7);
    drop(std::mem::replace(&mut flow.receiver, remote));
    hosts[0].write_routes(&all);
    relays[1] = hosts[1].start();
    flow.pass(100);
    bystander.pass(50);
    for host in &hosts {
        let status = host.await_mirrored(4);
        assert_eq!(total(&status, "rejected"), 0, "{status:#}");
    }
    // Host 1's own receiver took messages while the route was away. Host 2 cannot know that it was that, so it is told of
    // a gap; when nobody took any, of none.
    let gaps = |host: &Host| total(&host.status().unwrap(), "gaps");
    let before = [gaps(&hosts[0]), gaps(&hosts[1])];
    assert!(before.iter().all(|gaps| *gaps <= 1), "{before:?}");
    hosts[0].write_routes(&none);
    let local = within(PATIENCE, || {
        hosts[0].bus().bind(b).unwrap().receiver(a).ok()
    });
    drop(local.expect("the ring is local again"));
    flow.send_more(5);
    hosts[0].write_routes(&all);
    flow.pass(100);
    assert_eq!(flow.sender.ring().kind(), Kind::Source);
    assert_eq!([gaps(&hosts[0]), gaps(&hosts[1])], before);
    relays.iter_mut().for_each(Process::is_alive);
}
