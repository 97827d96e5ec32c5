//! What can go wrong between two hosts, on machines of their own, joined by a cable: one table, for every transport.
//! `ci/rxe run --both -- cargo test -p tbus-tools --test two_machines -- --ignored --nocapture --test-threads 1` runs this on both hosts
//! at once. What they have to tell each other besides messages lies in a directory that both see.
//!
//! TBUS_SEED draws the flaps, TBUS_FLAPS says how many; TBUS_FAULTS_ONLY names rows of the table.

mod hosts;

use hosts::*;
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use tbus::{Receiver, Sender, TryRecvError, TrySendError};

/// Common to both hosts, for the time of the run.
const COMMON: &str = "/run/rxe";
const PORT: u16 = 1027;
/// RDMA over Ethernet is UDP to this port.
const ROCE_PORT: u16 = 4791;
const SIZE: u64 = 1 << 16;
/// Bytes of a message, at most, besides its head.
const LONGEST: usize = 3000;
/// The channels: what is sent is kept until the other host has it, or until its application has.
const RETENTIONS: [&str; 2] = ["delivered", "consumed"];
/// A host comes up within this time, also where it is emulated.
const COMES_UP: Duration = Duration::from_secs(90);
/// A failure is seen within this time.
const SEEN: Duration = Duration::from_secs(3);
/// Messages move again, over whatever is left, within this time after the last one before.
const MOVES: Duration = Duration::from_secs(5);

/// What is done to two hosts under load.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Both ends of the cable treat packets so (`tc-netem`).
    Packets(&'static str),
    /// Packets of RDMA alone are lost.
    Data,
    /// Those of the control connection alone.
    Control,
    /// `ci/rxe cable`.
    Cable(&'static str),
    /// The relay of host 2.
    Relay(Signal),
    /// Host 2's clock is an hour ahead.
    Clock,
}

/// What must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Messages go on arriving; whether connections last is not said.
    Progress,
    /// Nothing but that all is well afterwards.
    Safe,
    /// The connection is given up in time.
    Seen,
    /// The same, and messages move over TCP.
    FallsBack,
    /// Nothing is given up.
    Unmoved,
}

/// The table. With the word after the fault: among what flaps are drawn from.
const FAULTS: [(&str, Fault, Then, bool); 14] = [
    ("loss-1", Fault::Packets("loss 1%"), Then::Progress, false),
    ("loss-5", Fault::Packets("loss 5%"), Then::Progress, false),
    ("loss-30", Fault::Packets("loss 30%"), Then::Safe, false),
    (
        "delay",
        Fault::Packets("delay 20ms 10ms"),
        Then::Progress,
        false,
    ),
    (
        "duplicates",
        Fault::Packets("duplicate 10%"),
        Then::Progress,
        false,
    ),
    (
        "reordering",
        Fault::Packets("delay 5ms reorder 75% 50%"),
        Then::Progress,
        false,
    ),
    ("data", Fault::Data, Then::FallsBack, true),
    ("control", Fault::Control, Then::Seen, true),
    ("cable", Fault::Cable("down"), Then::Seen, true),
    ("one-way", Fault::Cable("down 1"), Then::Seen, true),
    ("other-way", Fault::Cable("down 2"), Then::Seen, true),
    (
        "killed",
        Fault::Relay(Signal::SIGKILL),
        Then::Progress,
        false,
    ),
    ("stopped", Fault::Relay(Signal::SIGSTOP), Then::Seen, true),
    ("clock", Fault::Clock, Then::Unmoved, false),
];

/// One channel of one of the hosts.
struct Flow {
    sender: Sender,
    receiver: Receiver,
    sent: u64,
    /// The other sender's life, and which message of it is next; `None` on a host that has come up again, for the first one.
    next: Option<(u64, u64)>,
    /// The number of the first one.
    first: Option<u64>,
    received: u64,
}

/// One of the two hosts, with channels to the other one.
struct End {
    /// 0 or 1.
    number: usize,
    life: u64,
    transport: &'static str,
    host: Host,
    relay: Option<Process>,
    log: PathBuf,
    flows: Vec<Flow>,
    /// When the last message came, by both clocks.
    heard: (SystemTime, Instant),
    /// The longest time between two of them.
    silence: Duration,
    /// It goes on sending.
    sends: bool,
    bytes: [Vec<u8>; 2],
    _scratch: Scratch,
}

/// Where host `number` keeps what it says of `what`.
fn common(number: usize, what: &str) -> PathBuf {
    Path::new(COMMON).join(format!("tbus-{what}-{number}"))
}

/// Says something to the other host, at once or not at all.
fn say(number: usize, what: &str, text: &str) {
    let (place, draft) = (common(number, what), common(number, "draft"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, place).unwrap();
}

/// `ci/rxe` in a process of its own: it takes a while, and data go on meanwhile.
fn cable(words: &str) -> Process {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/rxe");
    let mut command = Command::new(program);
    Process::start("ci/rxe", command.args(words.split_whitespace()))
}

/// Runs tc for the cable's end, line by line, in a process of its own, for the same reason.
fn tc(lines: &str) -> Process {
    let mut command = Command::new("sh");
    Process::start(
        "tc",
        command.args(["-c", &format!("echo '{lines}' | tc -batch -")]),
    )
}

/// Loses what goes out of this host to or from a port.
fn lose(protocol: u8, port: u16) -> Process {
    let to = |side: &str| {
        format!(
            "filter add dev eth0 parent 1: protocol ip u32 match ip protocol {protocol} 0xff match ip {side} {port} 0xffff \
             flowid 1:4\n"
        )
    };
    // Nothing goes into the fourth band but by these.
    tc(&format!(
        "qdisc add dev eth0 root handle 1: prio bands 4\nqdisc add dev eth0 parent 1:4 netem loss 100%\n{}{}",
        to("dport"),
        to("sport")
    ))
}

fn set_clock(hours: i64) {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let time = nix::sys::time::TimeSpec::new(now + 3600 * hours, 0);
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time).unwrap();
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect(name))
}

impl Flow {
    /// Sends and receives what there is room for and what has come. True if anything has.
    fn pump(
        &mut self,
        id: u64,
        life: u64,
        sends: bool,
        [message, buffer]: &mut [Vec<u8>; 2],
    ) -> bool {
        for _ in 0..if sends { 8 } else { 0 } {
            compose(id, life, self.sent, message);
            match self.sender.try_send(message) {
                Ok(()) => self.sent += 1,
                Err(TrySendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let mut any = false;
        loop {
            let length = match self.receiver.try_recv(buffer) {
                Ok(length) => length,
                Err(TryRecvError::Empty) => return any,
                Err(error) => panic!("{error}"),
            };
            let number = |at: usize| u64::from_le_bytes(buffer[at..at + 8].try_into().unwrap());
            let (its_life, n) = (number(0), number(8));
            self.first.get_or_insert(n);
            let next = *self.next.get_or_insert((its_life, n));
            // Unless the other host has come up again, and with it a new ring.
            if (its_life, n) != (next.0 + 1, 0) {
                assert_eq!((its_life, n), next, "lost, repeated or reordered");
            }
            compose(id ^ 1, its_life, n, message);
            assert!(buffer[..length] == message[..], "message {n}");
            self.next = Some((its_life, n + 1));
            self.received += 1;
            any = true;
        }
    }
}

/// Message `n` of a flow's sender in its `life`.
fn compose(id: u64, life: u64, n: u64, message: &mut Vec<u8>) {
    payload(scramble(id) ^ life, n, LONGEST, message);
    let head = [life.to_le_bytes(), n.to_le_bytes()].concat();
    message.splice(0..0, head);
}

impl End {
    fn new(transport: &'static str) -> End {
        let of = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name}: ci/rxe run --both"));
        let (own, other, life) = (of("RDMA_ADDRESS"), of("RDMA_PEER"), life());
        let number = usize::from(own > other);
        let scratch = Scratch::new("faults");
        let host = Host::new(&scratch, number as u32 + 1);
        if number == 0 && !common(0, "ready").exists() {
            let ca = scratch.0.join("ca");
            make_ca(&ca, "test");
            for node in [1, 2] {
                make_node(&ca, node, &common(node as usize - 1, "keys"));
            }
            say(0, "ready", "");
        }
        let ready = within(PATIENCE, || common(0, "ready").exists().then_some(()));
        ready.expect("the first host makes certificates");
        for file in std::fs::read_dir(common(number, "keys")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), host.place.join(file.file_name())).unwrap();
        }
        let both = match number {
            0 => [&own, &other],
            _ => [&other, &own],
        };
        // Flaps come faster than a real network's.
        let more = "hold_down = 1\nhold_down_max = 1\n";
        host.write_secure_config(&format!("{own}:{PORT}"), "authenticate", more);
        host.write_channels(&channels(&RETENTIONS.map(|retention| (SIZE, retention))));
        let routes = [1, 2].map(|channel| {
            [0, 1].map(|n| {
                let end = address(n as u32 + 1, channel);
                (end, vec![format!("{}:{PORT}", both[n])])
            })
        });
        let names = match transport {
            "tcp" => "tcp".to_string(),
            better => format!("{better} tcp"),
        };
        host.write_routes_over(&names, &routes.concat());
        let flows = [1, 2].map(|channel| {
            let [here, there] = [number, 1 - number].map(|n| address(n as u32 + 1, channel));
            Flow {
                sender: host.sender(here, there),
                receiver: host.receiver(here, there),
                sent: 0,
                next: (life == 1).then_some((1, 0)),
                first: None,
                received: 0,
            }
        });
        End {
            number,
            life,
            transport,
            relay: Some(host.start()),
            log: scratch.0.join(format!("tbusd{}.log", number + 1)),
            flows: flows.into(),
            host,
            heard: (SystemTime::now(), Instant::now()),
            silence: Duration::ZERO,
            sends: true,
            bytes: [Vec::new(), vec![0; SIZE as usize]],
            _scratch: scratch,
        }
    }

    fn pump(&mut self) {
        for (channel, flow) in self.flows.iter_mut().enumerate() {
            let id = 2 * channel as u64 + self.number as u64;
            if flow.pump(id, self.life, self.sends, &mut self.bytes) {
                self.silence = self.silence.max(self.heard.1.elapsed());
                self.heard = (SystemTime::now(), Instant::now());
            }
        }
        // The relay needs the processors, too.
        std::thread::sleep(Duration::from_millis(2));
    }

    fn received(&self) -> u64 {
        self.flows.iter().map(|flow| flow.received).sum()
    }

    /// Pumps until `look` finds something.
    #[track_caller]
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&End) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if begun.elapsed() > COMES_UP {
                eprintln!("{:#}", self.host.status().unwrap_or_default());
                eprintln!("{}", self.written());
                panic!("host {}, not within {COMES_UP:?}: {what}", self.number + 1);
            }
            self.pump();
        }
    }

    fn for_a_while(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.pump();
        }
    }

    /// Both hosts are here. What the other one says.
    fn meet(&mut self, what: &str, text: &str) -> String {
        let what = format!("{}-{what}", self.transport);
        say(self.number, &what, text);
        let place = common(1 - self.number, &what);
        let there = |_: &End| std::fs::read_to_string(&place).ok();
        self.until(&what, there)
    }

    fn written(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn is_over(&self, transport: &str) -> bool {
        let status = self.host.status();
        status.is_some_and(|status| status["peers"][0]["transport"] == transport)
    }

    /// Waits until data go by a transport, and arrive. It is asked only now and then: each time is a process.
    fn flow(&mut self, transport: &str) {
        let mut due = Instant::now();
        self.until(&format!("data over {transport}"), |end| {
            if Instant::now() < due {
                return None;
            }
            due = Instant::now() + Duration::from_millis(200);
            end.is_over(transport).then_some(())
        });
        self.moves(60);
    }

    /// Waits until so many messages have come.
    fn moves(&mut self, count: u64) {
        let due = self.received() + count;
        self.until("messages", |end| (end.received() >= due).then_some(()));
    }

    /// Waits until the relay says that the connection is lost, in time after the last message came.
    fn lost(&mut self, from: usize, what: &str) {
        let line = self.until("the loss is seen", |end| {
            let written = end.written();
            let line = written[from..]
                .lines()
                .find(|l| l.contains("disconnected:"));
            line.map(str::to_owned)
        });
        let at = line.split_whitespace().next().unwrap();
        let at = humantime::parse_rfc3339(at).unwrap();
        let after = at.duration_since(self.heard.0).unwrap_or_default();
        println!("{what}: seen after {after:.2?}: {line}");
        assert!(after < SEEN, "{what}: {after:?}");
    }

    fn inflict(&mut self, fault: Fault) -> Option<Process> {
        let first = self.number == 0;
        match fault {
            Fault::Packets(how) => {
                return Some(tc(&format!("qdisc add dev eth0 root netem {how}")));
            }
            Fault::Data if first => return Some(lose(17, ROCE_PORT)),
            Fault::Control if first => return Some(lose(6, PORT)),
            Fault::Cable(how) if first => return Some(cable(&format!("cable {how}"))),
            Fault::Relay(signal) if !first => {
                let relay = self.relay.as_mut().expect("it runs");
                match signal {
                    Signal::SIGKILL => {
                        relay.kill();
                        self.relay = Some(self.host.start());
                    }
                    other => relay.signal(other),
                }
            }
            Fault::Clock if !first => set_clock(1),
            _ => {}
        }
        None
    }

    fn mend(&mut self, fault: Fault) {
        let first = self.number == 0;
        match fault {
            Fault::Packets(_) => tc("qdisc del dev eth0 root").end(),
            Fault::Data | Fault::Control if first => tc("qdisc del dev eth0 root").end(),
            Fault::Cable(_) if first => cable("cable up").end(),
            Fault::Relay(Signal::SIGSTOP) if !first => {
                self.relay
                    .as_mut()
                    .expect("it runs")
                    .signal(Signal::SIGCONT);
            }
            Fault::Clock if !first => set_clock(-1),
            _ => {}
        }
    }

    /// A row of the table, on both hosts at once; afterwards everything is as before.
    fn suffer(&mut self, name: &str, fault: Fault, then: Then) {
        let transport = self.transport;
        self.flow(transport);
        let from = self.written().len();
        self.meet(&format!("{name}-begins"), "");
        let begun = Instant::now();
        self.silence = Duration::ZERO;
        let mut hand = self.inflict(fault);
        match then {
            Then::Progress => {
                self.for_a_while(Duration::from_secs(2));
                self.moves(40);
            }
            Then::Safe => self.for_a_while(Duration::from_secs(4)),
            Then::Unmoved => {
                self.for_a_while(Duration::from_secs(2));
                self.moves(40);
                let written = self.written();
                assert!(!written[from..].contains("disconnected"), "{written}");
            }
            // Who is stopped sees nothing.
            Then::Seen if matches!(fault, Fault::Relay(_)) && self.number == 1 => {}
            Then::Seen => self.lost(from, name),
            Then::FallsBack => {
                self.lost(from, name);
                // What was on its way counts, too, so more than fits there is waited for.
                self.moves(200);
                println!("{name}: no messages for {:.2?}", self.silence);
                assert!(self.silence < MOVES, "{name}: {:?}", self.silence);
                assert!(self.is_over("tcp"), "{:?}", self.host.status());
            }
        }
        if let Some(hand) = &mut hand {
            hand.end();
        }
        self.meet(&format!("{name}-is-seen"), "");
        self.mend(fault);
        self.flow(transport);
        println!(
            "{name}: over {transport} again after {:.1?}",
            begun.elapsed()
        );
    }

    /// What was sent has arrived, just once.
    fn account(&mut self, name: &str) {
        let sent: Vec<u64> = self.flows.iter().map(|flow| flow.sent).collect();
        let text = to_text(&sent);
        self.sends = false;
        say(self.number, &format!("{}-{name}", self.transport), &text);
        let place = common(1 - self.number, &format!("{}-{name}", self.transport));
        let begun = Instant::now();
        let mut due: Option<Vec<u64>> = None;
        loop {
            assert!(begun.elapsed() < COMES_UP, "{due:?}");
            self.pump();
            let text = std::fs::read_to_string(&place).ok();
            due = text.map(|text| from_text(&text));
            let all = |due: &Vec<u64>| {
                let mut flows = self.flows.iter().zip(due);
                due.len() == 2
                    && flows.all(|(flow, due)| flow.next.is_some_and(|next| next.1 == *due))
            };
            if due.as_ref().is_some_and(all) {
                break;
            }
        }
        println!(
            "host {}, {}: {sent:?} sent, {due:?} received: 0 lost, repeated or reordered",
            self.number + 1,
            self.transport
        );
        self.meet(&format!("{name}-is-right"), "");
    }
}

/// What the kernel counts of all devices, and the relay's descriptors.
fn held(end: &End) -> (String, usize) {
    let output = Command::new("rdma").args(["resource", "show"]).output();
    let mut devices = String::from_utf8(output.expect("rdma of iproute2 runs").stdout).unwrap();
    if end.transport == "ucx" {
        // UCX keeps the queue pairs of endpoints that have failed until its worker goes: docs/rdma.md says so.
        let begin = devices.find(" qp ").unwrap();
        let length = devices[begin + 4..].find(' ').unwrap();
        devices.replace_range(begin..begin + 4 + length, "");
    }
    let relay = end.relay.as_ref().expect("it runs");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", relay.id())).unwrap();
    (devices, descriptors.count())
}

/// What there is in peace: what connections that came to nothing had is given back after some seconds.
fn held_in_peace(end: &mut End) -> (String, usize) {
    let mut last = held(end);
    loop {
        end.for_a_while(Duration::from_secs(1));
        let now = held(end);
        if std::mem::replace(&mut last, now.clone()) == now {
            return now;
        }
    }
}

/// What there is now is what there was.
fn check_held(end: &mut End, before: &(String, usize)) {
    let begun = Instant::now();
    loop {
        let now = held_in_peace(end);
        if now == *before {
            break;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "held at first: {before:?}; and now: {now:?}"
        );
    }
    println!("held before and after: {before:?}");
}

/// How often this host was switched on.
fn life() -> u64 {
    from_environment("RDMA_LIFE", 1)
}

fn all_faults(transport: &'static str) {
    if life() > 1 {
        return; // that was before
    }
    let mut end = End::new(transport);
    end.flow(transport);
    let before = held_in_peace(&mut end);
    let only = std::env::var("TBUS_FAULTS_ONLY").ok();
    let applies = |fault: Fault| match fault {
        // They are one over TCP.
        Fault::Data | Fault::Control => transport != "tcp",
        _ => true,
    };
    for (name, fault, then, _) in FAULTS {
        if applies(fault)
            && only
                .as_ref()
                .is_none_or(|only| only.split(' ').any(|one| one == name))
        {
            end.suffer(name, fault, then);
        }
    }
    let seed = from_environment("TBUS_SEED", 1);
    let few = if transport == "tcp" { 1 } else { 3 };
    let flaps = from_environment("TBUS_FLAPS", few);
    let rows = FAULTS.iter().filter(|row| row.3 && applies(row.1));
    let rows: Vec<_> = rows.collect();
    for n in 0..if only.is_some() { 0 } else { flaps } {
        let (name, fault, then, _) = rows[scramble(seed << 32 ^ n) as usize % rows.len()];
        end.suffer(&format!("flap-{n}-{name}"), *fault, *then);
    }
    check_held(&mut end, &before);
    end.account("all");
}

#[test]
#[ignore = "needs two hosts: ci/rxe run --both"]
fn faults_over_tcp() {
    all_faults("tcp");
}

#[test]
#[ignore = "needs two hosts: ci/rxe run --both"]
fn faults_over_verbs() {
    all_faults("verbs");
}

#[test]
#[ignore = "needs two hosts: ci/rxe run --both"]
fn faults_over_ucx() {
    all_faults("ucx");
}

/// Messages that this host's relay says are lost, of each channel.
fn lost_messages(end: &End) -> Vec<u64> {
    let status = end.host.status().unwrap_or_default();
    let rings = status["rings"].as_array().unwrap().iter();
    let mut out: Vec<_> = rings.filter(|ring| ring["outbound"] == true).collect();
    out.sort_by_key(|ring| ring["from"].as_str().unwrap().to_string());
    out.iter()
        .map(|ring| ring["lost_messages"].as_u64().unwrap())
        .collect()
}

fn to_text(numbers: &[u64]) -> String {
    numbers.iter().map(|n| format!("{n} ")).collect()
}

fn from_text(text: &str) -> Vec<u64> {
    text.split(' ').filter_map(|n| n.parse().ok()).collect()
}

impl End {
    /// Ends the other host, whose application sends nothing any more, and waits until the relay has seen that.
    fn strike(&mut self, how: &str) {
        let from = self.written().len();
        cable(how).end();
        self.heard = (SystemTime::now(), Instant::now());
        self.lost(from, how);
    }
}

/// Host 2 dies and comes up again with empty memory; and in the end it dies for good. Under retention `consumed` nothing of what its
/// application had not released is lost; under `delivered`, what it had not read is, and its number is told.
#[test]
#[ignore = "needs two hosts: ci/rxe run --both"]
fn hosts_die_and_come_again() {
    let mut end = End::new("verbs");
    if end.life == 1 {
        end.flow("verbs");
        if end.number == 0 {
            say(0, "flows", "");
        } else {
            let place = common(0, "flows");
            end.until("host 1 has messages too", |_| place.exists().then_some(()));
            // From here on it reads no more, and sends nothing.
            let read: Vec<u64> = end.flows.iter().map(|flow| flow.next.unwrap().1).collect();
            say(1, "read", &to_text(&read));
            std::thread::sleep(Duration::MAX); // until this host dies
        }
        let place = common(1, "read");
        end.until("host 2 reads no more", |_| place.exists().then_some(()));
        // Rings fill meanwhile.
        end.for_a_while(Duration::from_secs(2));
        end.strike("reboot 2");
    }
    end.flow("verbs");
    if end.number == 0 {
        // What host 2 had sent before has come, and what it sends now.
        end.until("messages of host 2's second life", |end| {
            let mut flows = end.flows.iter();
            flows.all(|flow| flow.next.unwrap().0 == 2).then_some(())
        });
        say(0, "lost", &to_text(&lost_messages(&end)));
    } else {
        let (told, before) = (common(0, "lost"), common(1, "read"));
        let lost = end.until("what is lost", |_| std::fs::read_to_string(&told).ok());
        let (lost, read) = (
            from_text(&lost),
            from_text(&std::fs::read_to_string(before).unwrap()),
        );
        let first: Vec<u64> = end.flows.iter().map(|flow| flow.first.unwrap()).collect();
        println!("read {read:?} before; {first:?} is the first one after; told lost: {lost:?}");
        assert_eq!(RETENTIONS, ["delivered", "consumed"]);
        assert!(first[0] > read[0] && first[0] - read[0] <= lost[0]);
        assert!(first[1] <= read[1] && lost[1] == 0);
    }
    end.flow("verbs");
    say(end.number, "well", "");
    let place = common(1 - end.number, "well");
    end.until("the other host is well", |_| place.exists().then_some(()));
    if end.number == 1 {
        std::thread::sleep(Duration::MAX);
    }
    end.strike("power-off 2");
}
