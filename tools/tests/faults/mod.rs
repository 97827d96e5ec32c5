//! Faults of networks, relays and applications, as real as one machine can make them: one table, for whichever transport.
//!
//! A fault strikes one of two hosts that are under load both ways. Whether those who must see it do so in time is measured;
//! then it is healed, and everything that waited must arrive.

mod lan;

use crate::hosts::*;
use crate::load::*;
pub use lan::{Lan, possible};
use nix::sys::signal::Signal;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime};

/// A failure is seen within this time.
pub const SEEN: Duration = Duration::from_secs(3);
/// After healing, whatever waited has arrived within this time.
pub const RESUMED: Duration = Duration::from_secs(10);
/// Of the senders: a load that leaves the processors some time, or what is measured is how long processes wait for them.
const PAUSE: Duration = Duration::from_millis(1);
/// Where relays listen; each host has its own ports.
const PORT: u16 = 1027;

/// Whose relay must see a fault, that is, must give the connection up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Both.
    Both,
    /// That of the host which it does not strike.
    Other,
    /// The same; that of the host which it strikes is killed.
    Survivor,
    /// Nobody: the connection holds.
    Nobody,
    /// It may be or not.
    Maybe,
}

/// A row of the table.
pub struct Fault {
    pub name: &'static str,
    pub about: &'static str,
    pub seen: Seen,
    /// Makes it, on a host.
    pub begin: fn(&mut Field, usize),
    /// Mends it.
    pub heal: fn(&mut Field, usize),
}

const fn fault(
    name: &'static str,
    about: &'static str,
    seen: Seen,
    begin: fn(&mut Field, usize),
    heal: fn(&mut Field, usize),
) -> Fault {
    Fault {
        name,
        about,
        seen,
        begin,
        heal,
    }
}

/// The table.
#[rustfmt::skip]
pub const FAULTS: &[Fault] = &[
    fault("cut", "the cable is pulled", Seen::Both,
        |f, h| f.lan.set(h, "down"),
        |f, h| f.lan.set(h, "up")),
    // Of a busy connection the kernel counts the time without acknowledgements from the loss before, so that two short cuts can end it.
    fault("short-cut", "the cable is pulled for 0.8 s", Seen::Maybe,
        |f, h| { f.lan.set(h, "down"); wait(800) },
        |f, h| f.lan.set(h, "up")),
    fault("flaps", "the cable is pulled and put back 20 times in a few seconds", Seen::Maybe,
        flap,
        |f, h| f.lan.set(h, "up")),
    fault("one-way", "what the host sends is lost, what the other one sends arrives", Seen::Both,
        |f, h| f.lan.mute(h),
        |f, h| f.lan.unmute(h)),
    fault("no-route", "the host's route to the other one leads nowhere", Seen::Both,
        |f, h| f.lan.route(h, "add blackhole"),
        |f, h| f.lan.route(h, "del blackhole")),
    fault("unreachable", "the host's route to the other one says that it cannot be reached", Seen::Both,
        |f, h| f.lan.route(h, "add unreachable"),
        |f, h| f.lan.route(h, "del unreachable")),
    fault("no-address", "the host loses its address and gets it back", Seen::Both,
        |f, h| f.lan.change_address(h, "del"),
        |f, h| f.lan.change_address(h, "add")),
    fault("other-address", "the host gets another address, then both hosts get new routes", Seen::Both,
        |f, h| f.lan.move_address(h),
        |f, _| f.write_routes()),
    fault("mtu", "the MTU falls to 600 and rises to 9000 at both ends", Seen::Nobody,
        |f, _| { f.set_both("mtu 600"); f.pass(); f.set_both("mtu 9000"); f.pass() },
        |f, _| f.set_both("mtu 1500")),
    fault(BLACK_HOLE, "the host does not take packets of more than 600 bytes, and the other one sends longer ones", Seen::Both,
        |f, h| { f.set_both("gso_max_segs 1"); f.lan.set(h, "mtu 600") },
        |f, h| { f.lan.set(h, "mtu 1500"); f.set_both("gso_max_segs 65535"); f.has_short_packets = true }),
    fault("relay-killed", "the host's relay is killed and started again", Seen::Survivor,
        |f, h| f.kill(h, RELAY),
        |f, h| f.start(h, RELAY)),
    fault("relay-stopped", "the host's relay is stopped and goes on", Seen::Other,
        |f, h| f.signal(h, RELAY, Signal::SIGSTOP),
        |f, h| f.signal(h, RELAY, Signal::SIGCONT)),
    fault("relay-paused", "the host's relay is stopped for a second, and goes on", Seen::Nobody,
        |f, h| { f.signal(h, RELAY, Signal::SIGSTOP); wait(1000) },
        |f, h| f.signal(h, RELAY, Signal::SIGCONT)),
    fault("cut-and-killed", "the cable is pulled, and the host's relay killed and started again meanwhile", Seen::Survivor,
        |f, h| { f.lan.set(h, "down"); f.kill(h, RELAY); f.start(h, RELAY) },
        |f, h| f.lan.set(h, "up")),
    fault("sender-killed", "the host's sending application is killed and started again", Seen::Nobody,
        |f, h| f.kill(h, SENDER),
        |f, h| f.start(h, SENDER)),
    fault("receiver-killed", "the host's receiving application is killed and started again", Seen::Nobody,
        |f, h| f.kill(h, RECEIVER),
        |f, h| f.start(h, RECEIVER)),
    fault("sender-stopped", "the host's sending application is stopped for a second or more, and goes on", Seen::Nobody,
        |f, h| { f.signal(h, SENDER, Signal::SIGSTOP); wait(1000) },
        |f, h| f.signal(h, SENDER, Signal::SIGCONT)),
    fault("receiver-stopped", "the host's receiving application is stopped for a second or more, and goes on", Seen::Nobody,
        |f, h| { f.signal(h, RECEIVER, Signal::SIGSTOP); wait(1000) },
        |f, h| f.signal(h, RECEIVER, Signal::SIGCONT)),
    fault("host-killed", "the host's relay and applications are killed and started again", Seen::Survivor,
        |f, h| { f.kill(h, RELAY); f.kill(h, SENDER); f.kill(h, RECEIVER) },
        |f, h| { f.start(h, RECEIVER); f.start(h, SENDER); f.start(h, RELAY) }),
];

const BLACK_HOLE: &str = "black-hole";

/// Parts of a host, as in [`PARTS`].
const RELAY: usize = 0;
const SENDER: usize = 1;
const RECEIVER: usize = 2;

fn wait(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn flap(field: &mut Field, host: usize) {
    for _ in 0..20 {
        field.lan.set(host, "down");
        field.pause(100);
        field.lan.set(host, "up");
        field.pause(100);
    }
}

/// Numbers that a seed gives.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(scramble(seed))
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = scramble(self.0);
        (self.0 >> 11) % limit
    }
}

/// What a fault's row says of how two hosts are connected.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub transport: &'static str,
    pub security: &'static str,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// When each host saw it, if it had to.
    pub seen: [Option<Duration>; 2],
    /// From healing until everything that waited had arrived.
    pub resumed: Duration,
}

impl Outcome {
    /// What took too long.
    pub fn late(&self) -> bool {
        self.resumed > RESUMED || self.seen.iter().flatten().any(|after| *after > SEEN)
    }
}

/// What a relay holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    /// Bytes of its own, without rings.
    pub memory: u64,
}

/// Two hosts under load, and the network between them.
pub struct Field {
    pub world: World,
    pub lan: Lan,
    pub random: Random,
    pub setting: Setting,
    /// Milliseconds for which a fault may go on at most when it was seen.
    pub hold: u64,
    /// The connection was made while long packets were lost: it has none for good.
    has_short_packets: bool,
    /// Receivers that were killed: each may have seen one message a ring that the next one sees again.
    pub receivers_killed: u64,
}

impl Field {
    pub fn new(name: &str, setting: Setting, seed: u64) -> Field {
        let scratch = Scratch::new(name);
        let lan = Lan::new();
        let ca = scratch.0.join("ca");
        make_ca(&ca, "test");
        let hosts = [1, 2].map(|node| {
            let mut host = Host::new(&scratch, node);
            host.run_within(&format!("ip netns exec {}", lan.names[node as usize - 1]));
            make_node(&ca, node, &host.place);
            host.write_secure_config(&format!("0.0.0.0:{PORT}"), setting.security, "");
            host.write_channels(&channels(&SIZES));
            write_routes(&host, &lan, setting);
            host
        });
        let mut field = Field {
            world: World::new(scratch, hosts, PAUSE),
            lan,
            random: Random::new(seed),
            setting,
            hold: 500,
            has_short_packets: false,
            receivers_killed: 0,
        };
        field.world.await_progress(20);
        field.check_relays();
        field
    }

    /// False if the connection as it is now would not suffer from the fault.
    pub fn would_feel(&self, fault: &Fault) -> bool {
        fault.name != BLACK_HOLE || !self.has_short_packets
    }

    /// Lets a fault strike `host`, and heals it.
    pub fn suffer(&mut self, fault: &Fault, host: usize) -> Outcome {
        self.pause(300);
        let downs = [0, 1].map(|host| self.downs(host).unwrap());
        let logs = [0, 1].map(|host| self.log(host).len());
        let begun = SystemTime::now();
        (fault.begin)(self, host);
        let seen = self.await_seen(fault, host, logs, begun);
        for other in (0..2).filter(|host| seen[*host].is_some()) {
            assert!(
                self.downs(other) > Some(downs[other]),
                "{}: --status does not know",
                fault.name
            );
        }
        if seen != [None; 2] {
            self.has_short_packets = false;
        }
        self.pause(self.hold);
        let healed = Instant::now();
        (fault.heal)(self, host);
        let waiting = self.world.page.all(Word::Accepted);
        let due: Vec<u64> = waiting.iter().map(|accepted| accepted + 1).collect();
        self.world.await_noted(&due);
        let resumed = healed.elapsed();
        if fault.seen == Seen::Nobody {
            let now = [0, 1].map(|host| self.downs(host).unwrap());
            assert_eq!(now, downs, "{}: a connection was lost for it", fault.name);
        }
        self.check_relays();
        Outcome { seen, resumed }
    }

    fn kill(&mut self, host: usize, part: usize) {
        self.world.processes[3 * host + part].kill();
        if part == RECEIVER {
            self.receivers_killed += 1;
        }
    }

    fn start(&mut self, host: usize, part: usize) {
        let part = 3 * host + part;
        self.world.processes[part] = self.world.start(part);
    }

    fn signal(&mut self, host: usize, part: usize, signal: Signal) {
        self.world.processes[3 * host + part].signal(signal);
    }

    fn set_both(&self, what: &str) {
        for host in 0..2 {
            self.lan.set(host, what);
        }
    }

    fn write_routes(&self) {
        for host in &self.world.hosts {
            write_routes(host, &self.lan, self.setting);
        }
    }

    /// Messages pass on all channels.
    fn pass(&mut self) {
        self.world.await_progress(20);
    }

    /// How often a relay has lost the connection.
    fn downs(&self, host: usize) -> Option<u64> {
        let status = self.world.hosts[host].status()?;
        Some(total(&status, "downs"))
    }

    /// What a host's relays have logged.
    fn log(&self, host: usize) -> String {
        let name = format!("tbusd{}.log", host + 1);
        std::fs::read_to_string(self.world.scratch.0.join(name)).unwrap()
    }

    /// When those relays that must see a fault have said so in their logs, which were so long before.
    fn await_seen(
        &self,
        fault: &Fault,
        host: usize,
        logs: [usize; 2],
        begun: SystemTime,
    ) -> [Option<Duration>; 2] {
        let must = |other: usize| match fault.seen {
            Seen::Both => true,
            Seen::Other | Seen::Survivor => other != host,
            Seen::Nobody | Seen::Maybe => false,
        };
        let mut seen = [None; 2];
        let all = within(PATIENCE, || {
            for host in (0..2).filter(|host| must(*host)) {
                let log = self.log(host);
                let line = log[logs[host]..]
                    .lines()
                    .find(|l| l.contains("disconnected:"));
                let at = line.and_then(|line| line.split_whitespace().next());
                let at = at.map(|at| humantime::parse_rfc3339(at).unwrap());
                seen[host] = at.map(|at| at.duration_since(begun).unwrap());
            }
            (0..2)
                .all(|host| seen[host].is_some() || !must(host))
                .then_some(())
        });
        if all.is_none() {
            self.world.tell();
            panic!(
                "'{}' of host {} is seen by host 1 and 2 after {seen:.2?}, and not within {PATIENCE:?}",
                fault.name,
                host + 1
            );
        }
        seen
    }

    /// The relays are connected as they should be, and have lost nothing.
    fn check_relays(&self) {
        for host in &self.world.hosts {
            let status = host.await_mirrored(RINGS);
            let peers = status["peers"].as_array().unwrap();
            let connected: Vec<_> = peers.iter().filter(|p| !p["transport"].is_null()).collect();
            assert_eq!(connected.len(), 1, "{status:#}");
            assert_eq!(connected[0]["transport"], self.setting.transport);
            assert_eq!(connected[0]["security"], self.setting.security);
            for name in ["gaps", "lost_messages", "rejected"] {
                assert_eq!(total(&status, name), 0, "{name}: {status:#}");
            }
        }
    }

    /// What the relay of `host` holds now.
    pub fn held(&self, host: usize) -> Held {
        let relay = &self.world.processes[3 * host + RELAY];
        let count = |what| {
            std::fs::read_dir(format!("/proc/{}/{what}", relay.id()))
                .unwrap()
                .count()
        };
        Held {
            descriptors: count("fd"),
            threads: count("task"),
            memory: relay.own_memory(),
        }
    }

    /// The same, when nothing that belongs to a fault can be left: connections that say nothing are closed after 2 s.
    pub fn held_in_peace(&self, host: usize) -> Held {
        wait(3000);
        self.held(host)
    }

    /// Ends the load and compares all accounts. Returns what was received, and what was received again.
    pub fn settle(&mut self) -> (u64, u64) {
        self.world.page.stop().store(1, SeqCst);
        self.world.settle();
        self.world.check_cursors();
        self.world.check_counters(200);
        self.world.page.stop().store(2, SeqCst);
        for receiver in [2, 5] {
            self.world.processes[receiver].end();
        }
        self.world.check_cursors();
        let reread: u64 = self.world.page.all(Word::Reread).iter().sum();
        assert!(
            reread <= self.receivers_killed,
            "{reread} messages came twice, and {} receivers were killed",
            self.receivers_killed
        );
        (self.world.page.all(Word::Noted).iter().sum(), reread)
    }

    /// A moment that the seed gives.
    fn pause(&mut self, most: u64) {
        wait(self.random.below(most));
    }
}

/// Tells a host where all addresses are.
fn write_routes(host: &Host, lan: &Lan, setting: Setting) {
    let routes: Vec<_> = (0..RINGS)
        .map(|ring| {
            let (at, channel) = (ring / CHANNELS, ring % CHANNELS);
            let endpoint = format!("{}:{PORT}", lan.address(at));
            (address(at as u32 + 1, channel as u32 + 1), vec![endpoint])
        })
        .collect();
    host.write_routes_over(setting.transport, &routes);
}
