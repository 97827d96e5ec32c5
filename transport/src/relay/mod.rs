//! The relay: mirrors rings to its peers and theirs to this host.
//!
//! One pass over everything is [`Relay::step`]; it never blocks. `tbusd` calls it in a loop and sleeps when there is
//! nothing to do ([`run`]); an application may call it in its own loop (*embedded relay*); the simulator calls
//! it with connections and a clock of its own.
//!
//! Everything that matters lies in the rings. A relay may be killed at any instruction: the next one takes the roles,
//! and resumes by comparing positions with its peers.

mod ages;
mod choice;
mod connect;
mod control;
mod data;
pub mod drain;
mod maps;
mod peer;
mod rings;
pub mod run;
pub mod status;
mod trial;

use crate::link::{Event, Link};
use crate::network::Network;
use crate::session::Nanos;
use crate::wire::{Goodbye, Refusal};
use peer::{Greeting, Peer};
use rings::{At, Rings, Untended};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use tbus::grm::{Grm, Route};
use tbus::{Bus, NewsReader, Uuid};

/// Between two looks at everything that is not the data path: some system calls for each peer.
const SLOW: Nanos = 1_000_000;
/// The same if there was something at the last one.
const SOON: Nanos = 100_000;
/// Bytes that one peer may bring before the next one's turn.
const BUDGET: usize = 1 << 18;
/// Bytes of one ring that are appended before the next one's turn.
const TURN: u64 = 1 << 18;
/// A mirror that has moved is looked after within this time, or when it has moved by this part of its capacity.
const TEND: Nanos = 100_000;
const MUCH: u64 = 16;
/// Between two tenths of the slow look at all rings.
const SWEEP: Nanos = 100_000_000;

const SECOND: Nanos = 1_000_000_000;

/// Who this relay is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its number among the relays of the cluster; the lower one dials.
    pub node: u32,
    /// Relays of other clusters are refused.
    pub cluster: String,
    /// "tcp://host:port" as the routes of other hosts name this relay; empty: as its own routes do.
    pub endpoint: String,
}

/// Where the routes come from.
pub trait Routes {
    /// Changes whenever they do. Cheap.
    fn version(&self) -> u64;
    /// All of them.
    fn routes(&self) -> tbus::Result<Vec<Route>>;
}

impl Routes for Grm {
    fn version(&self) -> u64 {
        Grm::version(self)
    }

    fn routes(&self) -> tbus::Result<Vec<Route>> {
        Ok(self.snapshot()?.routes)
    }
}

/// Routes that never change.
impl Routes for Vec<Route> {
    fn version(&self) -> u64 {
        0
    }

    fn routes(&self) -> tbus::Result<Vec<Route>> {
        Ok(self.clone())
    }
}

/// What went to a peer and what came from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages appended to its links; those that went twice count twice.
    pub sent_messages: u64,
    /// Their bytes with headers.
    pub sent_bytes: u64,
    /// Messages published in mirrors.
    pub received_messages: u64,
    /// Their bytes with headers.
    pub received_bytes: u64,
}

/// Totals since the relay was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages appended to links; those that went twice count twice.
    pub sent_messages: u64,
    /// Their bytes with headers.
    pub sent_bytes: u64,
    /// Messages published in mirrors.
    pub received_messages: u64,
    /// Their bytes with headers.
    pub received_bytes: u64,
    /// Sessions that came up.
    pub ups: u64,
    /// Sessions that went down.
    pub downs: u64,
    /// Gaps that could not be healed.
    pub gaps: u64,
    /// Messages in them, as far as known.
    pub lost_messages: u64,
    /// Rings that were given up for bad records.
    pub rejected: u64,
    /// Rings that got a next generation.
    pub generations: u64,
}

/// See the module.
pub struct Relay<N: Network> {
    settings: Settings,
    /// It was given no endpoint of its own.
    is_where_routes_say: bool,
    lease: u64,
    /// Empty: all.
    allowed: Vec<u32>,
    /// How long a transport rests that has failed: the first time, and at most.
    hold_down: Range<Nanos>,
    bus: Bus,
    news: NewsReader,
    /// Whose news were taken last.
    with_news: Vec<u32>,
    /// Of the poll that is being done.
    events: Vec<Event>,
    untended: Untended,
    routes: Box<dyn Routes + Send>,
    network: N,
    peers: Vec<Peer<N>>,
    by_endpoint: HashMap<String, usize>,
    greetings: Vec<Greeting<N::Control>>,
    rings: Rings,
    maps: maps::Maps,
    slow_due: Nanos,
    told: HashSet<String>,
    /// Without what the peers count, see [`Relay::totals`].
    totals: Totals,
    rates_due: Nanos,
    /// It ends as soon as the outbound rings are acknowledged up to here.
    draining: Option<Vec<u64>>,
}

impl<N: Network> Relay<N> {
    /// A relay for the channels of `bus`. Takes the rings' roles with the first [`Relay::step`].
    pub fn new(
        settings: Settings,
        bus: Bus,
        routes: impl Routes + Send + 'static,
        mut network: N,
    ) -> tbus::Result<Relay<N>> {
        let news = NewsReader::open(bus.directory())?;
        Ok(Relay {
            lease: network.random(),
            is_where_routes_say: settings.endpoint.is_empty(),
            settings,
            allowed: Vec::new(),
            hold_down: choice::HOLD_DOWN,
            bus,
            news,
            with_news: Vec::new(),
            events: Vec::new(),
            untended: Untended::default(),
            routes: Box::new(routes),
            network,
            peers: Vec::new(),
            by_endpoint: HashMap::new(),
            greetings: Vec::new(),
            rings: Rings::default(),
            maps: maps::Maps::default(),
            slow_due: 0,
            told: HashSet::new(),
            totals: Totals::default(),
            rates_due: 0,
            draining: None,
        })
    }

    /// Refuses all nodes but these, if there are any.
    pub fn allow(&mut self, nodes: Vec<u32>) {
        self.allowed = nodes;
    }

    /// A transport that has failed rests for so long: the first time, and at most, nanoseconds.
    pub fn hold_down(&mut self, limits: Range<Nanos>) {
        self.hold_down = limits;
    }

    /// Ends the connections of nodes of which other things hold now. Who may come again does so at once.
    pub fn judge_anew(&mut self, changed: impl Fn(u32) -> bool, now: Nanos) {
        for p in 0..self.peers.len() {
            let peer = &self.peers[p];
            if peer.control.is_some() && peer.node.is_some_and(&changed) {
                let text = "what is said of this node in [[allow]] has changed".into();
                self.down(p, Goodbye::Security, text, now);
                self.peers[p].dial_due = now;
            }
        }
    }

    /// What it connects by.
    pub fn network(&mut self) -> &mut N {
        &mut self.network
    }

    /// The bus that it serves.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Says goodbye to all peers, which need not find out by silence. It may be dropped without, as a kill does.
    pub fn end(&mut self) {
        for p in 0..self.peers.len() {
            self.down(p, Goodbye::Ending, "the relay ends".into(), 0);
        }
    }

    /// Totals since it was made.
    pub fn totals(&self) -> Totals {
        let mut totals = self.totals;
        for Traffic {
            sent_messages,
            sent_bytes,
            received_messages,
            received_bytes,
        } in self.peers.iter().map(|peer| peer.traffic)
        {
            totals.sent_messages += sent_messages;
            totals.sent_bytes += sent_bytes;
            totals.received_messages += received_messages;
            totals.received_bytes += received_bytes;
        }
        totals
    }

    /// True once the maps were read and what they say was begun.
    pub fn is_ready(&self) -> bool {
        self.maps.was_read()
    }

    /// True if every ring with a remote end is mirrored just now.
    pub fn is_connected(&self) -> bool {
        let running =
            |at: &rings::Outbound| self.peers[at.peer].session.may_send(at.slot).is_some();
        self.maps.is_settled()
            && self.rings.out.iter().flatten().all(running)
            && self
                .rings
                .inn
                .iter()
                .flatten()
                .all(rings::Inbound::is_running)
    }

    /// One pass over everything that may have something to do; `now` never goes back, and may be the time of a few passes before.
    /// True if anything had.
    pub fn step(&mut self, now: Nanos) -> bool {
        // What applications sent goes out before anything else is looked at; what comes is published and then answered
        // with the next pass, which an application that has read it makes at once. So what can wait is done before that.
        let mut busy = self.take_news(now);
        self.tend(false, now);
        for p in 0..self.peers.len() {
            self.flush(p, now);
        }
        for p in 0..self.peers.len() {
            busy |= self.heed(p, now);
        }
        for p in 0..self.peers.len() {
            busy |= self.poll_link(p, now);
        }
        if now >= self.slow_due {
            let any = self.slow(now);
            self.slow_due = now + if any { SOON } else { SLOW };
            busy |= any;
        }
        busy
    }

    fn slow(&mut self, now: Nanos) -> bool {
        // First: who is greeted before the routes are known is refused.
        let mut busy = self.draining.is_none() && self.follow_maps(now);
        busy |= self.greet(now);
        for p in 0..self.peers.len() {
            busy |= self.poll_control(p, now);
            self.tick(p, now);
            busy |= self.follow_trial(p, now);
        }
        while let Some((token, link)) = self.network.dialled_link() {
            self.dialled_link(token, link, now);
            busy = true;
        }
        while let Some((token, link)) = self.network.accept_link() {
            self.link_came(token, link, now);
            busy = true;
        }
        if now >= self.rings.sweep_due && self.rings.out.len() + self.rings.inn.len() > 0 {
            self.rings.sweep_due = now + SWEEP;
            for at in self.rings.next_to_sweep() {
                self.look_at(at, now);
                self.rings.note_age(at, now);
            }
        }
        if now >= self.rates_due {
            self.rates_due = now + SECOND;
            self.peers.iter_mut().for_each(Peer::take_rates);
        }
        busy
    }

    /// True if this was not said before.
    fn is_new(&mut self, what: &str) -> bool {
        self.told.len() < 10_000 && self.told.insert(what.to_string())
    }

    /// What a ring that was replaced or removed held is let go.
    fn let_go(&mut self, at: At, now: Nanos) {
        match at {
            At::Out(index) => {
                let Some(ring) = self.rings.out[index].as_ref() else {
                    return;
                };
                let (p, slot) = (ring.peer, ring.slot);
                let mut frames = Vec::new();
                let peer = &mut self.peers[p];
                peer.session.end(slot, &mut frames);
                peer.waiting.retain(|waiting| *waiting != index);
                peer.send(&frames);
                if let Some(link) = &mut peer.link {
                    link.detach_source(slot);
                }
            }
            At::In(index) => {
                let waiting = self.rings.inn[index]
                    .as_mut()
                    .and_then(|ring| Some((ring.peer, ring.wanted.take()?)));
                if let Some((p, open)) = waiting {
                    let text = "the ring has just been replaced".into();
                    self.refuse(p, &open, Refusal::Ring, text);
                }
                let running = self.rings.inn[index]
                    .as_ref()
                    .filter(|ring| ring.slot.is_some());
                if let Some(p) = running.map(|ring| ring.peer) {
                    // The peer must ask for a mirror anew. Rings are replaced too rarely for a frame of its own.
                    self.down(
                        p,
                        Goodbye::Replaced,
                        "a mirror was replaced or removed".into(),
                        now,
                    );
                }
            }
        }
        self.rings.remove(at);
    }

    fn uuid_at(&self, at: At) -> Option<Uuid> {
        match at {
            At::Out(index) => self.rings.out[index].as_ref().map(|ring| ring.ring),
            At::In(index) => self.rings.inn[index].as_ref().map(|ring| ring.ring),
        }
    }
}
