//! Hosts with real rings, the real relay and applications, in simulated time.

use crate::flow::{Flow, Wrong};
use crate::trace::{self, Reported, note};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tbus::config::{ChannelsConfig, parse_channels};
use tbus::grm::{Route, Transport};
use tbus::manage::Manager;
use tbus::{Address, Bus, Uuid};
use tbus_transport::relay::status::PeerStatus;
use tbus_transport::relay::{Relay, Routes, Settings, Totals};
use tbus_transport::session::Nanos;
use tbus_transport::sim::{Conditions, Host, Killed, Process, Random, SimNetwork, World};

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MS;

/// Port at which relays listen.
const PORT: u16 = 7000;

/// A scenario's frame.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    pub hosts: usize,
    /// Between each two hosts.
    pub channels: u32,
    pub capacity: u64,
    /// Retention `consumed`.
    pub retained: bool,
    pub rdma: u64,
    /// Between two acts of an application.
    pub tempo: Nanos,
}

/// What a run went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub kills: u64,
    pub restarts: u64,
    pub partitions: u64,
    pub one_way_cuts: u64,
    pub breaks: u64,
    /// Of RDMA on all hosts.
    pub failures: u64,
    pub pauses: u64,
    pub app_kills: u64,
    pub half_read: u64,
    pub host_losses: u64,
    pub recreations: u64,
    pub route_changes: u64,
    pub second_relays: u64,
    pub messages: u64,
    pub redelivered: u64,
    pub missing: u64,
    pub reported_gaps: u64,
    pub epochs: u64,
    pub generations: u64,
    pub downs: u64,
    pub steps: u64,
}

/// Routes that change.
#[derive(Clone, Default)]
pub struct SimRoutes(Arc<Mutex<(u64, Vec<Route>)>>);

impl SimRoutes {
    pub fn set(&self, routes: Vec<Route>) {
        let mut held = self.0.lock().unwrap();
        *held = (held.0 + 1, routes);
    }
}

impl Routes for SimRoutes {
    fn version(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    fn routes(&self) -> tbus::Result<Vec<Route>> {
        Ok(self.0.lock().unwrap().1.clone())
    }
}

/// A relay's process.
pub struct Live {
    pub relay: Relay<SimNetwork>,
    pub process: Process,
    started: Nanos,
    step_due: Nanos,
    /// The last step had nothing to do.
    idle: bool,
    pub paused_until: Nanos,
    totals: Totals,
}

impl Live {
    /// As an operator does.
    pub fn switch(
        &mut self,
        node: u32,
        transport: Option<Transport>,
        now: Nanos,
    ) -> Result<(), Wrong> {
        let now = now - self.started;
        self.relay.switch(node, transport, now)?;
        Ok(())
    }
}

pub struct SimHost {
    pub path: PathBuf,
    pub live: Option<Live>,
    /// Another one, that somebody started too.
    pub second: Option<Live>,
    /// Killed, and not gone: they still have their roles, and their memory is written.
    pub dying: Vec<(Nanos, Live)>,
    pub routes: SimRoutes,
    /// When a relay is to be started.
    pub start_due: Option<Nanos>,
    /// To look with; takes no roles.
    pub bus: Bus,
}

pub struct Sim {
    pub shape: Shape,
    pub world: World,
    pub random: Random,
    pub hosts: Vec<SimHost>,
    pub flows: Vec<Flow>,
    pub stats: Stats,
    pub gaps: Vec<Reported>,
    /// When each flow's sender and receiver act next.
    pub acts: Vec<[Nanos; 2]>,
    /// Applications start again by themselves.
    pub restarts_apps: bool,
    /// Senders send.
    pub sends: bool,
    pub tails: Vec<(Uuid, u64)>,
    scratch: PathBuf,
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

fn address(host: Host, channel: u32, other: Host) -> Address {
    Address((host as u32 + 1) << 24 | (other as u32 + 1) << 8 | channel)
}

pub fn channels_of(host: Host, shape: &Shape) -> ChannelsConfig {
    let mut text = String::from("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>");
    let retention = if shape.retained {
        "consumed"
    } else {
        "delivered"
    };
    for other in (0..shape.hosts).filter(|other| *other != host) {
        for channel in 1..=shape.channels {
            let size = shape.capacity;
            let [a, b] = [(host + 1, other + 1), (other + 1, host + 1)]
                .map(|(a, b)| format!("<Address>{a}.0.{b}.{channel}</Address>"));
            text += &format!(
                "<Channels>{a}{b}<SendSize>{size}</SendSize><RecvSize>{size}</RecvSize>\
                 <Retention>{retention}</Retention></Channels>"
            );
        }
    }
    text += "</TbusGCIM>";
    parse_channels(text.as_bytes(), false, u64::MAX).unwrap()
}

impl Sim {
    pub fn new(shape: Shape) -> Result<Sim, Wrong> {
        let mut random = Random::new(shape.seed);
        let conditions = Conditions {
            delay: 20_000..20_000 + (100_000 << random.below(7)),
            loss: 0,
            stray: 0,
            rdma: shape.rdma,
            cut: Default::default(),
        };
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let scratch = base.join(format!("tbus-sim-{}-{}", std::process::id(), shape.seed));
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch).map_err(|e| e.to_string())?;
        let mut sim = Sim {
            world: World::new(random.bits(), conditions),
            random,
            hosts: Vec::new(),
            flows: Vec::new(),
            stats: Stats::default(),
            gaps: Vec::new(),
            acts: Vec::new(),
            restarts_apps: true,
            sends: true,
            tails: Vec::new(),
            scratch,
            shape,
        };
        for host in 0..sim.shape.hosts {
            let path = sim.scratch.join(format!("{host}"));
            make_host(&path, &channels_of(host, &sim.shape));
            let routes = SimRoutes::default();
            routes.set(sim.routes_of(host));
            sim.hosts.push(SimHost {
                bus: Bus::attach_at(&path).unwrap(),
                path,
                live: None,
                second: None,
                dying: Vec::new(),
                routes,
                start_due: Some(0),
            });
        }
        sim.make_flows();
        Ok(sim)
    }

    pub fn routes_of(&self, host: Host) -> Vec<Route> {
        let others = (0..self.shape.hosts).filter(|other| *other != host);
        others
            .flat_map(|other| (1..=self.shape.channels).map(move |channel| (other, channel)))
            .map(|(other, channel)| Route {
                address: address(other, channel, host),
                created: 0,
                endpoints: vec![SimNetwork::endpoint_of(other, PORT)],
                transports: vec![Transport::Verbs, Transport::Tcp],
                description: String::new(),
            })
            .collect()
    }

    fn make_flows(&mut self) {
        for from in 0..self.shape.hosts {
            for to in (0..self.shape.hosts).filter(|to| *to != from) {
                for channel in 1..=self.shape.channels {
                    self.flows.push(Flow {
                        id: self.flows.len() as u32,
                        hosts: [from, to],
                        ends: [address(from, channel, to), address(to, channel, from)],
                        sender: None,
                        receiver: None,
                        sent: Vec::new(),
                        next: 0,
                        again_from: None,
                        last_jump: None,
                        life: 0,
                        longest: self.shape.capacity / 2 - 64,
                        redelivered: 0,
                        lives: Vec::new(),
                    });
                    let due = [0, 1].map(|_| self.random.below(self.shape.tempo));
                    self.acts.push(due);
                }
            }
        }
    }

    pub fn now(&self) -> Nanos {
        self.world.now()
    }

    /// True if all peers of all relays have links over this transport.
    pub fn are_over(&self, name: &str) -> bool {
        self.hosts.iter().all(|host| {
            let peers = host.live.as_ref().map(|live| live.relay.peers(0));
            let mut peers = peers.into_iter().flatten();
            host.live.is_some() && peers.all(|peer| peer.transport == Some(name))
        })
    }

    // ---- relays ----

    /// Starts a relay, unless one runs or one that was killed is not gone.
    pub fn start(&mut self, host: Host) {
        let now = self.now();
        self.hosts[host].start_due = None;
        let live = self.make(host, PORT, PORT);
        match live {
            None => self.hosts[host].start_due = Some(now + 20 * MS),
            live => self.hosts[host].live = live,
        }
    }

    /// Starts another relay on the same host, which may even say that it is the first.
    pub fn start_second(&mut self, host: Host, claims: bool) {
        if self.hosts[host].second.is_none() {
            self.stats.second_relays += 1;
            self.hosts[host].second = self.make(host, if claims { PORT } else { 7001 }, 7001);
        }
    }

    fn make(&mut self, host: Host, claimed: u16, port: u16) -> Option<Live> {
        let network = SimNetwork::listen(&self.world, host, port)?;
        let process = network.process();
        let settings = Settings {
            node: host as u32 + 1,
            cluster: "sim".into(),
            endpoint: SimNetwork::endpoint_of(host, claimed).to_string(),
        };
        let bus = Bus::attach_at(&self.hosts[host].path).expect("a bus");
        let routes = self.hosts[host].routes.clone();
        let mut relay = Relay::new(settings, bus, routes, network).expect("a relay");
        relay.hold_down(20 * MS..500 * MS);
        note(|| format!("host {}: a relay starts, process {process}", host + 1));
        self.stats.restarts += 1;
        let now = self.now();
        Some(Live {
            relay,
            process,
            started: now,
            step_due: now,
            idle: false,
            paused_until: 0,
            totals: Totals::default(),
        })
    }

    /// The second relay of a host ends.
    pub fn end_second(&mut self, host: Host) {
        if let Some(live) = self.hosts[host].second.take() {
            note(|| format!("host {}: the second relay ends", host + 1));
            self.world.exit(live.process);
        }
    }

    fn step_second(&mut self, host: Host) {
        let now = self.now();
        if let Some(live) = &mut self.hosts[host].second
            && live.step_due <= now
        {
            trace::at(now, 10 + host);
            live.step_due = match live.relay.step(now - live.started) {
                true => now + self.random.below(100_000),
                false => now + MS + self.random.below(50 * MS),
            };
        }
    }

    /// A host's routes lead to all others but `without`.
    pub fn set_routes(&mut self, host: Host, without: Option<Host>) {
        self.stats.route_changes += 1;
        let mut routes = self.routes_of(host);
        if let Some(other) = without {
            note(|| {
                format!(
                    "host {}: no route leads to host {} any more",
                    host + 1,
                    other + 1
                )
            });
            routes.retain(|route| route.address.0 >> 24 != other as u32 + 1);
        }
        self.hosts[host].routes.set(routes);
    }

    /// Kills a relay between two steps; its process is gone some time later, and another is started after that.
    pub fn kill(&mut self, host: Host) {
        if let Some(live) = self.hosts[host].live.take() {
            note(|| format!("host {}: the relay is killed", host + 1));
            self.world.kill(live.process);
            self.dies(host, live);
        }
    }

    fn dies(&mut self, host: Host, live: Live) {
        self.stats.kills += 1;
        let now = self.now();
        let gone = now + self.random.skewed(100 * MS);
        self.hosts[host].dying.push((gone, live));
        self.hosts[host].start_due = Some(now + self.random.skewed(700 * MS));
    }

    /// Kills a relay inside one of its next calls.
    pub fn kill_inside(&mut self, host: Host, calls: u64) {
        if let Some(live) = &self.hosts[host].live {
            note(|| format!("host {}: the relay is to die in {calls} calls", host + 1));
            self.world.doom(live.process, calls);
        }
    }

    pub fn pause(&mut self, host: Host, until: Nanos) {
        if let Some(live) = &mut self.hosts[host].live {
            note(|| format!("host {}: the relay is stopped until {until}", host + 1));
            self.stats.pauses += 1;
            live.paused_until = until;
            self.world.pause(live.process, true);
        }
    }

    pub fn step(&mut self, host: Host) -> Result<(), Wrong> {
        let now = self.now();
        let Some(live) = &mut self.hosts[host].live else {
            return Ok(());
        };
        if live.paused_until != 0 {
            if now < live.paused_until {
                live.step_due = live.paused_until;
                return Ok(());
            }
            live.paused_until = 0;
            self.world.pause(live.process, false);
        }
        trace::at(now, host);
        self.stats.steps += 1;
        let time = now - live.started;
        let is_idle = live.idle;
        let step = || match live.relay.step(time) {
            true => Ok(()),
            // As it does before it sleeps: acknowledgements go out when they are due.
            false if !is_idle => Err(live.relay.before_sleep(time)),
            false => Err(None),
        };
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(Ok(())) => {
                live.idle = false;
                live.step_due = now + 1_000 + self.random.below(150_000);
            }
            Ok(Err(due)) if !std::mem::replace(&mut live.idle, true) => {
                live.step_due = now + due.map_or(0, |due| due.saturating_sub(time)).max(101_000);
            }
            Ok(Err(_)) => live.step_due = now + MS + self.random.below(99 * MS),
            Err(payload) if payload.is::<Killed>() => {
                note(|| format!("host {}: the relay dies inside a step", host + 1));
                if let Some(live) = self.hosts[host].live.take() {
                    self.dies(host, live);
                }
                return Ok(());
            }
            Err(payload) => {
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or(payload.downcast_ref::<&str>().map(|text| text.to_string()));
                return Err(format!("host {}: the relay panics: {text:?}", host + 1));
            }
        }
        let totals = live.relay.totals();
        let before = std::mem::replace(&mut live.totals, totals);
        self.stats.generations += totals.generations - before.generations;
        self.stats.epochs += totals.ups - before.ups;
        self.stats.downs += totals.downs - before.downs;
        if totals.rejected > before.rejected {
            let status = live.relay.status(time);
            return Err(format!(
                "host {}: a ring was given up: {status:#?}",
                host + 1
            ));
        }
        if totals.downs > before.downs {
            let status = live.relay.status(time);
            let accused = |peer: &PeerStatus| {
                peer.trouble
                    .as_ref()
                    .is_some_and(|why| why.contains("Violation"))
            };
            if let Some(peer) = status.peers.iter().find(|peer| accused(peer)) {
                return Err(format!(
                    "host {}: an honest peer is accused: {peer:?}",
                    host + 1
                ));
            }
        }
        if totals.generations > before.generations {
            self.see_sources();
        }
        self.gaps.extend(trace::take_gaps());
        Ok(())
    }

    /// Lets what is killed be gone, and starts what is to be started.
    fn lives_and_deaths(&mut self) {
        let now = self.now();
        for host in 0..self.hosts.len() {
            while let Some(at) = self.hosts[host].dying.iter().position(|d| d.0 <= now) {
                let (_, live) = self.hosts[host].dying.swap_remove(at);
                self.world.exit(live.process);
            }
            if self.hosts[host].start_due.is_some_and(|due| due <= now) {
                self.start(host);
            }
        }
    }

    // ---- time ----

    fn next_time(&self, until: Nanos) -> Nanos {
        let mut next = until;
        let mut see = |due: Nanos| next = next.min(due);
        self.world.due().into_iter().for_each(&mut see);
        for host in &self.hosts {
            let relays = host.live.iter().chain(&host.second);
            relays.for_each(|live| see(live.step_due));
            host.dying.iter().for_each(|dying| see(dying.0));
            host.start_due.into_iter().for_each(&mut see);
        }
        self.acts.iter().flatten().for_each(|due| see(*due));
        next.max(self.now())
    }

    /// Goes on until `until`, or until `done` says so.
    pub fn run(
        &mut self,
        until: Nanos,
        mut done: impl FnMut(&mut Sim) -> bool,
    ) -> Result<bool, Wrong> {
        while self.now() < until {
            if done(self) {
                return Ok(true);
            }
            let next = self.next_time(until);
            self.world.advance(next);
            trace::at(next, usize::MAX - 1);
            self.lives_and_deaths();
            let woken = self.world.take_woken();
            for host in 0..self.hosts.len() {
                if let Some(live) = &mut self.hosts[host].live
                    && woken.contains(&live.process)
                {
                    let due = next + self.random.below(50_000);
                    live.step_due = live.step_due.min(due);
                }
                if let Some(live) = &self.hosts[host].live
                    && live.step_due <= next
                {
                    self.step(host)?;
                    self.check_some()?;
                }
                self.step_second(host);
            }
            self.act()?;
        }
        Ok(done(self))
    }

    // ---- applications ----

    fn act(&mut self) -> Result<(), Wrong> {
        let now = self.now();
        for index in 0..self.flows.len() {
            for side in 0..2 {
                if self.acts[index][side] > now {
                    continue;
                }
                let pause = self.random.below(2 * self.shape.tempo) + 1000;
                self.acts[index][side] = now + pause;
                let host = self.flows[index].hosts[side];
                let did = match side {
                    0 => self.act_sender(index)?,
                    _ => self.act_receiver(index)?,
                };
                if did
                    && self.random.chance(900)
                    && let Some(live) = &mut self.hosts[host].live
                {
                    live.step_due = live.step_due.min(now + self.random.below(100_000));
                    live.idle = false;
                }
            }
        }
        Ok(())
    }

    fn act_sender(&mut self, index: usize) -> Result<bool, Wrong> {
        let flow = &mut self.flows[index];
        if flow.sender.is_none() {
            if self.restarts_apps {
                flow.start_sender(&self.hosts[flow.hosts[0]].path)?;
                self.see_sources();
            }
            return Ok(false);
        }
        if !self.sends {
            return Ok(false);
        }
        let count = 1 + self.random.skewed(12);
        let before = flow.sender.as_ref().map(|sender| sender.ring().uuid());
        let any = flow.send(count, &mut self.random)?;
        if flow.sender.as_ref().map(|sender| sender.ring().uuid()) != before {
            self.see_sources();
        }
        Ok(any)
    }

    fn act_receiver(&mut self, index: usize) -> Result<bool, Wrong> {
        let flow = &mut self.flows[index];
        if flow.receiver.is_none() {
            if self.restarts_apps {
                flow.start_receiver(&self.hosts[flow.hosts[1]].path)?;
            }
            return Ok(false);
        }
        let count = self.random.skewed(20);
        flow.receive(count, false)
    }

    // ---- the end ----

    /// All faults end; everything must arrive within a bound.
    pub fn heal(&mut self) -> Result<(), Wrong> {
        note(|| "everything heals".into());
        let now = self.now();
        self.world.set(|conditions| {
            conditions.loss = 0;
            conditions.stray = 0;
            conditions.cut.clear();
        });
        for host in 0..self.hosts.len() {
            self.end_second(host);
            let routes = self.routes_of(host);
            let here = &mut self.hosts[host];
            if here.routes.routes().unwrap() != routes {
                here.routes.set(routes);
            }
            match &mut here.live {
                Some(live) => live.paused_until = live.paused_until.min(now + 1),
                None => here.start_due = Some(here.start_due.unwrap_or(now).min(now + SECOND)),
            }
        }
        self.restarts_apps = true;
        let rdma = self.shape.rdma;
        self.world.set(|conditions| conditions.rdma = rdma);
        let before: Vec<usize> = self.flows.iter().map(|flow| flow.sent.len()).collect();
        let enough = |sim: &mut Sim| {
            let sent = sim
                .flows
                .iter()
                .zip(&before)
                .all(|(f, before)| f.sent.len() > *before);
            sim.sends = !sent;
            sent && sim.flows.iter().all(Flow::is_done)
        };
        if !self.run(now + 40 * SECOND, enough)? {
            return Err(self.stuck());
        }
        self.finish()
    }

    fn stuck(&mut self) -> Wrong {
        let mut text = String::from("not everything has arrived 40 s after all faults ended:\n");
        for index in 0..self.flows.len() {
            let flow = &self.flows[index];
            if flow.is_done() {
                continue;
            }
            let rings = [0, 1].map(|side| {
                self.rings(index, side)
                    .map(|ring| ring.map(|r| (r.uuid(), r.kind(), r.peer(), r.status())))
            });
            text += &format!(
                "{}: next {} of {}; its applications are at {:?}; {rings:#?}\n",
                flow.name(),
                flow.next,
                flow.sent.len(),
                [
                    flow.sender.as_ref().map(|s| s.ring().uuid()),
                    flow.receiver.as_ref().map(|r| r.ring().uuid())
                ],
            );
        }
        for host in &self.hosts {
            if let Some(live) = &host.live {
                text += &format!(
                    "{:#?}\n",
                    live.relay.status(self.world.now() - live.started)
                );
            }
        }
        text
    }

    fn finish(&mut self) -> Result<(), Wrong> {
        self.gaps.extend(trace::take_gaps());
        self.stats.reported_gaps = self.gaps.len() as u64;
        for flow in &mut self.flows {
            flow.check_gaps(&self.gaps)?;
            self.stats.messages += flow.sent.len() as u64;
            self.stats.redelivered += flow.redelivered;
            self.stats.missing += flow.sent.iter().filter(|m| !m.seen).count() as u64;
        }
        Ok(())
    }
}

pub fn make_host(path: &Path, config: &ChannelsConfig) {
    let manager = Manager::create_at(path, config, Duration::from_secs(1)).expect("a manager");
    manager.apply(config, false).expect("channels");
}
