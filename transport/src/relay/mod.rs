//! The relay: mirrors rings to its peers and theirs to this host.
//!
//! One pass over everything is [`Relay::step`]; it never blocks. `tbusd` calls it in a loop and sleeps when there is
//! nothing to do ([`run`]); an application may call it in its own loop (*embedded relay*); the simulator calls
//! it with connections and a clock of its own.
//!
//! Everything that matters lies in the rings. A relay may be killed at any instruction: the next one takes the roles,
//! and resumes by comparing positions with its peers.

mod maps;
mod peer;
mod rings;
pub mod run;
pub mod status;

use crate::link::{Event, Link};
use crate::network::{Control, Network};
use crate::pairing::SourceView;
use crate::session::{Demand, Nanos, Start};
use crate::wire::{self, Frame, Goodbye, Hello, Open, Refusal, Token};
use peer::{GREETING, GREETINGS, Greeting, HELD, PROBE, Peer, Stream, judge};
use rings::{At, Rings};
use std::collections::{HashMap, HashSet};
use tbus::grm::{Grm, Route};
use tbus::{Bus, Gap, NewsReader, Uuid};
use tracing::{debug, error, info, warn};

/// Between two looks at everything that is not the data path.
const SLOW: Nanos = 100_000;
/// Bytes that one peer may bring before the next one's turn.
const BUDGET: usize = 1 << 18;
/// Bytes of one ring that are appended before the next one's turn.
const TURN: u64 = 1 << 18;
/// Between two tenths of the slow look at all rings.
const SWEEP: Nanos = 100_000_000;

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
    lease: u64,
    bus: Bus,
    news: NewsReader,
    routes: Box<dyn Routes + Send>,
    network: N,
    peers: Vec<Peer<N>>,
    by_endpoint: HashMap<String, usize>,
    greetings: Vec<Greeting<N::Control>>,
    rings: Rings,
    maps: maps::Maps,
    slow_due: Nanos,
    events: Vec<Event>,
    told: HashSet<String>,
    totals: Totals,
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
            settings,
            bus,
            news,
            routes: Box::new(routes),
            network,
            peers: Vec::new(),
            by_endpoint: HashMap::new(),
            greetings: Vec::new(),
            rings: Rings::default(),
            maps: maps::Maps::default(),
            slow_due: 0,
            events: Vec::new(),
            told: HashSet::new(),
            totals: Totals::default(),
        })
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
        self.totals
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
                .all(|ring| ring.slot.is_some())
    }

    /// One pass over everything that may have something to do; `now` never goes back. True if anything had.
    pub fn step(&mut self, now: Nanos) -> bool {
        // What applications sent goes out before anything else is looked at; what comes is answered with the next
        // pass, which an application that has read it makes at once.
        let mut busy = self.take_news(now);
        for p in 0..self.peers.len() {
            self.flush(p, now);
        }
        for p in 0..self.peers.len() {
            busy |= self.poll_link(p, now);
        }
        if now >= self.slow_due {
            self.slow_due = now + SLOW;
            busy |= self.slow(now);
        }
        busy
    }

    // ---- the data path ----

    fn poll_link(&mut self, p: usize, now: Nanos) -> bool {
        let Some(link) = &mut self.peers[p].link else {
            return false;
        };
        let mut events = std::mem::take(&mut self.events);
        let any = link.poll(BUDGET, &mut events);
        if any {
            self.peers[p].session.alive(now);
        }
        for event in events.drain(..) {
            if self.peers[p].link.is_none() {
                break; // one of the events before was its end
            }
            match event {
                Event::Arrived { slot, to } => self.arrived(p, slot, to, now),
                Event::Remote(control) => self.remote(p, &control, now),
                Event::SourceDone { slot, to } => {
                    if let Some(ring) = self.peers[p]
                        .out
                        .get(slot as usize)
                        .and_then(|i| self.rings.out[*i].as_mut())
                    {
                        ring.done = ring.done.max(to);
                    }
                    self.settle(p, slot);
                }
                Event::Down(why) => self.down(p, Goodbye::Link, why, now),
            }
        }
        self.events = events;
        self.send_waiting(p);
        any
    }

    /// Bytes of an inbound ring are there: publishes what is whole.
    fn arrived(&mut self, p: usize, slot: u32, to: u64, now: Nanos) {
        let Some(&index) = self.peers[p].inn.get(&slot) else {
            return;
        };
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let Some(writer) = &mut ring.writer else {
            return;
        };
        let before = writer.tail();
        match writer.publish_whole(to) {
            Ok(tail) => {
                let (messages, bytes) = (
                    tail.sequence - before.sequence,
                    tail.position - before.position,
                );
                ring.messages += messages;
                ring.bytes += bytes;
                self.totals.received_messages += messages;
                self.totals.received_bytes += bytes;
                self.consumed(index, now);
            }
            Err(error) => self.reject(index, &error),
        }
    }

    /// The application of an inbound ring may have released something: the peer gets the room.
    fn consumed(&mut self, index: usize, now: Nanos) {
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let (Some(writer), Some(slot)) = (&mut ring.writer, ring.slot) else {
            return;
        };
        let peer = &mut self.peers[ring.peer];
        let mut consumed = writer.consumed();
        if peer.session.is_wanted(slot) {
            writer.want_room(); // from now on every release is news, so the last look comes after it
            consumed = writer.consumed();
        }
        match consumed {
            Ok(consumed) => {
                if let Some(link) = &mut peer.link {
                    link.set_room(slot, consumed.position + ring.capacity);
                }
                peer.session
                    .published(now, slot, writer.tail().position, consumed);
            }
            Err(error) => self.reject(index, &error),
        }
    }

    /// An inbound ring is of no use any more, and the peer learns why; the others go on.
    fn reject(&mut self, index: usize, error: &tbus::Error) {
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        error!(channel = %ring.name, "a mirror is given up: {error}");
        self.totals.rejected += 1;
        ring.trouble = Some(error.to_string());
        let position = match error {
            tbus::Error::Damaged { damage, .. } => damage.position,
            _ => ring
                .writer
                .as_ref()
                .map_or(0, |writer| writer.tail().position),
        };
        if let Some(slot) = ring.slot {
            let peer = &mut self.peers[ring.peer];
            if let Some(link) = &mut peer.link {
                link.detach_mirror(slot);
            }
            if let Some(frame) = peer.session.reject(slot, position, error.to_string()) {
                peer.send(&[frame]);
            }
        }
    }

    /// The peer tells how far a mirror has come, or wants room.
    fn remote(&mut self, p: usize, control: &wire::Control, now: Nanos) {
        match self.peers[p].session.control(now, control) {
            Err((why, text)) => self.down(p, why, text, now),
            Ok(Ok(None)) => {}
            Ok(Err(slot)) => {
                if let Some(&index) = self.peers[p].inn.get(&slot) {
                    self.consumed(index, now);
                }
            }
            Ok(Ok(Some(progress))) => {
                let Some(&index) = self.peers[p].out.get(control.slot as usize) else {
                    return;
                };
                let Some(ring) = self.rings.out[index].as_mut() else {
                    return;
                };
                ring.settled = if ring.until_consumed {
                    progress.consumed.position
                } else {
                    progress.delivered
                };
                ring.reader.set_peer_head(progress.consumed);
                self.settle(p, control.slot);
                self.send_ring(index);
            }
        }
    }

    /// Releases what neither the peer nor the link needs any more.
    fn settle(&mut self, p: usize, slot: u32) {
        let Some(&index) = self.peers[p].out.get(slot as usize) else {
            return;
        };
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let to = ring.settled.min(ring.done);
        if to > ring.reader.released().position
            && let Err(error) = ring.reader.release(to)
        {
            self.give_up(index, &error.to_string());
        }
    }

    /// An outbound ring is of no use any more, until it has another generation; the others go on.
    fn give_up(&mut self, index: usize, why: &str) {
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        error!(channel = %ring.name, "a ring is not mirrored any more: {why}");
        self.totals.rejected += 1;
        ring.trouble = Some(why.to_string());
        let mut frames = Vec::new();
        let peer = &mut self.peers[ring.peer];
        peer.session.end(ring.slot, &mut frames);
        peer.send(&frames);
    }

    fn take_news(&mut self, now: Nanos) -> bool {
        let mut slots = Vec::new(); // allocates nothing while there is no news
        self.news
            .take(self.rings.news_slots(), |slot| slots.push(slot));
        for slot in &slots {
            // By index: looking at one may change the list.
            let mut index = 0;
            while let Some(at) = self.rings.with_news(*slot).get(index).copied() {
                index += 1;
                self.look_at(at, now);
            }
        }
        !slots.is_empty()
    }

    fn look_at(&mut self, at: At, now: Nanos) {
        match at {
            At::Out(index) => self.send_ring(index),
            At::In(index) => self.consumed(index, now),
        }
    }

    /// Appends what an outbound ring has, as far as the peer has room and the link takes it.
    fn send_ring(&mut self, index: usize) {
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let peer = &mut self.peers[ring.peer];
        let (Some(link), Some((sent, room))) = (&mut peer.link, peer.session.may_send(ring.slot))
        else {
            return;
        };
        let walked = ring.reader.tail().and_then(|tail| {
            let to = tail
                .position
                .min(room)
                .min(sent.position + TURN.max(ring.reader.region().capacity() / 2 + 64));
            Ok((tail, ring.reader.walk(sent, to)?))
        });
        let (tail, end) = match walked {
            Ok(walked) => walked,
            Err(error) => return self.give_up(index, &error.to_string()),
        };
        if end.position > sent.position {
            if !link.append(ring.slot, sent.position, end.position) {
                if !std::mem::replace(&mut ring.waiting, true) {
                    peer.waiting.push_back(index);
                }
                return;
            }
            peer.session.sent(ring.slot, end);
            let (messages, bytes) = (end.sequence - sent.sequence, end.position - sent.position);
            ring.messages += messages;
            ring.bytes += bytes;
            self.totals.sent_messages += messages;
            self.totals.sent_bytes += bytes;
        }
        if end.position < tail.position {
            if end.position == sent.position {
                // Not even one record has room.
                if let Some(control) = peer.session.want_room(ring.slot) {
                    link.control(control);
                }
            } else if !std::mem::replace(&mut ring.waiting, true) {
                peer.waiting.push_back(index);
            }
        }
    }

    /// Goes on with rings that the link did not take, or that had more than a turn.
    fn send_waiting(&mut self, p: usize) {
        for _ in 0..self.peers[p].waiting.len() {
            let Some(index) = self.peers[p].waiting.pop_front() else {
                break;
            };
            if let Some(ring) = self.rings.out[index].as_mut() {
                ring.waiting = false;
                self.send_ring(index);
            }
        }
    }

    /// Sends what was accepted, and with it the acknowledgements that wait.
    fn flush(&mut self, p: usize, now: Nanos) {
        let Peer {
            link: Some(link),
            session,
            ..
        } = &mut self.peers[p]
        else {
            return;
        };
        if session.has_acks() {
            let company = link.is_busy();
            while let Some(control) = session.next_ack(now, company) {
                link.control(control);
            }
        }
        link.kick();
    }

    // ---- everything else ----

    fn slow(&mut self, now: Nanos) -> bool {
        let mut busy = self.greet(now);
        for p in 0..self.peers.len() {
            busy |= self.poll_control(p, now);
            self.tick(p, now);
        }
        while let Some((token, link)) = self.network.accept_link() {
            match (0..self.peers.len()).find(|p| self.peers[*p].session.redeem(token)) {
                Some(p) => self.link_up(p, link, now),
                None => debug!("a link with a token that is not or no longer known"),
            }
            busy = true;
        }
        busy |= self.follow_maps(now);
        if now >= self.rings.sweep_due && self.rings.out.len() + self.rings.inn.len() > 0 {
            self.rings.sweep_due = now + SWEEP;
            for at in self.rings.next_to_sweep() {
                self.look_at(at, now);
            }
        }
        busy
    }

    fn hello(&self) -> Frame {
        Frame::Hello(self.me())
    }

    fn me(&self) -> Hello {
        Hello {
            protocol: (wire::PROTOCOL_MIN, wire::PROTOCOL_MAX),
            node: self.settings.node,
            lease: self.lease,
            capabilities: 1,
            cluster: self.settings.cluster.clone(),
            endpoint: self.settings.endpoint.clone(),
        }
    }

    /// Dials, accepts, and hears who is there.
    fn greet(&mut self, now: Nanos) -> bool {
        let mut busy = false;
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            if peer.unused || peer.control.is_some() || peer.dialling || now < peer.dial_due {
                continue;
            }
            let endpoint = peer.endpoints[peer.dials % peer.endpoints.len()].clone();
            peer.dials += 1;
            peer.dialling = true;
            let control = self.network.dial(&endpoint);
            self.begin_greeting(control, Some(p), now);
            busy = true;
        }
        while let Some(control) = self.network.accept() {
            busy = true;
            // Who waits longest has said nothing; a flood of such must not take memory.
            if self.greetings.len() < GREETINGS {
                self.begin_greeting(control, None, now);
            }
        }
        for mut greeting in std::mem::take(&mut self.greetings) {
            let heard = greeting.stream.poll().and_then(|_| greeting.stream.next());
            match heard {
                Ok(None) if now < greeting.since + GREETING => self.greetings.push(greeting),
                Ok(None) => self.greeted_badly(
                    greeting,
                    (Goodbye::Silence, "it does not say who it is".into()),
                    now,
                ),
                Ok(Some(Frame::Hello(hello))) => {
                    busy = true;
                    match judge(&self.me(), &hello, greeting.dialled.is_some()) {
                        Ok(()) => self.greeted(greeting, &hello, now),
                        Err(why) => self.not_greeted(greeting, &hello, why, now),
                    }
                }
                Ok(Some(Frame::Bye { why, text })) => {
                    self.greeted_badly(greeting, (why, text), now)
                }
                Ok(Some(other)) => {
                    let text = format!("{} before HELLO", other.name());
                    self.greeted_badly(greeting, (Goodbye::Violation, text), now);
                }
                Err(why) => self.greeted_badly(greeting, why, now),
            }
        }
        busy
    }

    fn begin_greeting(&mut self, control: N::Control, dialled: Option<usize>, now: Nanos) {
        let mut stream = Stream::new(control);
        stream.send(&[self.hello()]);
        self.greetings.push(Greeting {
            stream,
            dialled,
            since: now,
        });
    }

    fn greeted_badly(
        &mut self,
        greeting: Greeting<N::Control>,
        (why, text): (Goodbye, String),
        now: Nanos,
    ) {
        let Some(p) = greeting.dialled else {
            debug!(from = %greeting.stream.control.name(), ?why, "a connection came to nothing: {text}");
            return;
        };
        let random = self.network.random();
        let peer = &mut self.peers[p];
        peer.dialling = false;
        if why == Goodbye::NotYours {
            peer.dial_due = now + PROBE;
            if peer.control.is_none() && peer.trouble.is_none() {
                peer.trouble = Some("waits to be dialled by the lower node".into());
            }
            return;
        }
        peer.back_off(now, random);
        let trouble = format!("{why:?}: {text}");
        if peer.trouble.as_ref() != Some(&trouble) {
            warn!(peer = %peer.name(), "not connected: {trouble}; tried again and again");
            peer.trouble = Some(trouble);
        }
    }

    /// The two relays may not speak, or not over this connection.
    fn not_greeted(
        &mut self,
        mut greeting: Greeting<N::Control>,
        them: &Hello,
        (why, text): (Goodbye, String),
        now: Nanos,
    ) {
        greeting.stream.send(&[Frame::Bye {
            why,
            text: text.clone(),
        }]);
        if why == Goodbye::NotYours && greeting.dialled.is_none() {
            // The higher node is there, and waits to be dialled.
            match self.by_endpoint.get(&them.endpoint) {
                Some(&p) => self.peers[p].dial_due = self.peers[p].dial_due.min(now),
                None => {
                    let text = format!(
                        "node {} has a route here, and no route leads from here to {}: add one",
                        them.node, them.endpoint
                    );
                    if self.is_new(&text) {
                        warn!("{text}");
                    }
                }
            }
            return;
        }
        if greeting.dialled.is_none() {
            warn!(peer = %them.endpoint, node = them.node, ?why, "a relay is refused: {text}");
        }
        self.greeted_badly(greeting, (why, text), now);
    }

    /// A peer is there: its connection replaces any older one.
    fn greeted(&mut self, greeting: Greeting<N::Control>, them: &Hello, now: Nanos) {
        let dialled = greeting.dialled.is_some();
        let found = greeting
            .dialled
            .or_else(|| self.by_endpoint.get(&them.endpoint).copied());
        let Some(p) = found.filter(|p| !self.peers[*p].unused) else {
            let text = format!(
                "node {} has no route to {}",
                self.settings.node, them.endpoint
            );
            return self.not_greeted(greeting, them, (Goodbye::NoRoute, text), now);
        };
        let twin =
            self.peers.iter().enumerate().find(|(q, peer)| {
                *q != p && peer.node == Some(them.node) && peer.control.is_some()
            });
        if let Some((_, twin)) = twin {
            let text = format!(
                "{} and {} both say that they are node {}",
                twin.name(),
                them.endpoint,
                them.node
            );
            return self.not_greeted(greeting, them, (Goodbye::Node, text), now);
        }
        if self.peers[p].control.is_some() {
            self.down(p, Goodbye::Replaced, "the peer connects anew".into(), now);
        }
        let offer = (!dialled).then(|| self.token());
        let peer = &mut self.peers[p];
        (peer.node, peer.lease, peer.dialling) = (Some(them.node), them.lease, false);
        peer.control = Some(greeting.stream);
        let mut frames = Vec::new();
        peer.session.begin(now, offer, &mut frames);
        peer.send(&frames);
    }

    fn token(&mut self) -> Token {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.network.random().to_le_bytes());
        bytes[8..].copy_from_slice(&self.network.random().to_le_bytes());
        Token(bytes)
    }

    fn link_up(&mut self, p: usize, link: N::Link, now: Nanos) {
        let peer = &mut self.peers[p];
        peer.drop_link();
        let proof = peer
            .proof
            .take()
            .expect("there is no link, so its proof is here");
        peer.link = Some(link);
        peer.session.link_up(proof);
        peer.back_off = peer::BACK_OFF.start;
        peer.up_since = Some(now);
        peer.trouble = None;
        peer.ups += 1;
        self.totals.ups += 1;
        info!(peer = %peer.name(), node = peer.node, "connected, over tcp");
        for open in std::mem::take(&mut self.peers[p].held) {
            self.mirror(p, open, now);
        }
    }

    /// Ends what there is with a peer; the rings keep everything, and it is dialled again.
    fn down(&mut self, p: usize, why: Goodbye, text: String, now: Nanos) {
        let random = self.network.random();
        let peer = &mut self.peers[p];
        if peer.control.is_none() && peer.link.is_none() {
            return;
        }
        peer.send(&[Frame::Bye {
            why,
            text: text.clone(),
        }]);
        warn!(peer = %peer.name(), node = peer.node, ?why, "disconnected: {text}");
        peer.control = None;
        peer.drop_link();
        peer.session.down();
        peer.trouble = Some(format!("{why:?}: {text}"));
        peer.up_since = None;
        peer.downs += 1;
        self.totals.downs += 1;
        peer.held.clear();
        peer.back_off(now, random);
        for index in std::mem::take(&mut peer.waiting) {
            if let Some(ring) = self.rings.out[index].as_mut() {
                ring.waiting = false;
            }
        }
        for (_, index) in std::mem::take(&mut self.peers[p].inn) {
            if let Some(ring) = self.rings.inn[index].as_mut() {
                ring.slot = None;
                ring.wanted = None;
            }
        }
    }

    fn poll_control(&mut self, p: usize, now: Nanos) -> bool {
        let Some(control) = &mut self.peers[p].control else {
            return false;
        };
        let mut busy = match control.poll() {
            Ok(busy) => busy,
            Err((why, text)) => {
                self.down(p, why, text, now);
                return true;
            }
        };
        // What was left from the greeting is there without new bytes.
        while let Some(control) = &mut self.peers[p].control {
            let handled = match control.next() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    busy = true;
                    self.peers[p].session.frame(now, frame)
                }
                Err(why) => Err(why),
            };
            match handled {
                Ok(demand) => self.demand(p, demand, now),
                Err((why, text)) => self.down(p, why, text, now),
            }
        }
        busy
    }

    fn tick(&mut self, p: usize, now: Nanos) {
        let peer = &mut self.peers[p];
        if peer.control.is_none() {
            return;
        }
        let mut frames = Vec::new();
        match peer.session.tick(now, &mut frames) {
            Ok(()) => peer.send(&frames),
            Err((why, text)) => return self.down(p, why, text, now),
        }
        while let Some(slot) = self.peers[p].session.next_to_open(now) {
            self.open(p, slot);
        }
    }

    /// Asks the peer to mirror one of our rings.
    fn open(&mut self, p: usize, slot: u32) {
        let index = self.peers[p].out[slot as usize];
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let tail = match ring.reader.tail() {
            Ok(tail) => tail,
            Err(error) => return self.give_up(index, &error.to_string()),
        };
        let header = ring.reader.ring().header();
        let peer = &mut self.peers[p];
        let open = Open {
            slot,
            attempt: peer.session.open(slot),
            from: ring.ends[0],
            to: ring.ends[1],
            source: ring.ring,
            nonce: header.nonce,
            capacity: header.capacity,
            head: ring.reader.released(),
            tail,
        };
        peer.send(&[Frame::Open(open)]);
    }

    fn demand(&mut self, p: usize, demand: Demand, now: Nanos) {
        match demand {
            Demand::Nothing => {}
            Demand::Connect {
                transport,
                port,
                token,
            } => {
                let Some(stream) = &self.peers[p].control else {
                    return;
                };
                match self
                    .network
                    .connect_link(&stream.control, transport, port, token)
                {
                    Ok(link) => self.link_up(p, link, now),
                    Err(why) => self.down(p, Goodbye::Link, why, now),
                }
            }
            Demand::Mirror(open) => {
                if self.peers[p].session.is_up() {
                    self.mirror(p, open, now);
                } else if self.peers[p].held.len() < HELD {
                    self.peers[p].held.push(open);
                } else {
                    self.down(
                        p,
                        Goodbye::Violation,
                        "too many rings before the link".into(),
                        now,
                    );
                }
            }
            Demand::Resumed(resume) => self.resumed(p, &resume, now),
            Demand::Refused { slot, why, text } => {
                if let Some(ring) = self.rings.out[self.peers[p].out[slot as usize]].as_mut() {
                    if ring.trouble.as_ref() != Some(&text) {
                        warn!(channel = %ring.name, ?why, "not mirrored: {text}; tried again and again");
                    }
                    ring.trouble = Some(text);
                }
            }
            Demand::Rejected {
                slot,
                position,
                text,
            } => {
                let index = self.peers[p].out[slot as usize];
                self.give_up(
                    index,
                    &format!("the peer refuses the record at {position}: {text}"),
                );
            }
            Demand::Closed { slot } => {
                if let Some(index) = self.peers[p].inn.remove(&slot)
                    && let Some(ring) = self.rings.inn[index].as_mut()
                    && ring.slot == Some(slot)
                {
                    ring.slot = None;
                    if let Some(link) = &mut self.peers[p].link {
                        link.detach_mirror(slot);
                    }
                }
            }
            Demand::Lost { slot, gap } => {
                let index = self.peers[p].inn.get(&slot).copied();
                if let Some(ring) = index.and_then(|index| self.rings.inn[index].as_mut()) {
                    if let Some(writer) = &mut ring.writer {
                        writer.note_gap(gap);
                    }
                    let name = ring.name.clone();
                    self.report(&name, gap);
                }
            }
            Demand::Bye { why, text } => {
                self.down(p, why, format!("by the peer: {text}"), now);
                if why == Goodbye::NotYours {
                    self.peers[p].dial_due = now + PROBE;
                }
            }
        }
    }

    /// A gap is never silent.
    fn report(&mut self, channel: &str, gap: Gap) {
        let messages = gap.to.sequence.saturating_sub(gap.from.sequence);
        self.totals.gaps += 1;
        self.totals.lost_messages = self.totals.lost_messages.saturating_add(messages);
        error!(
            channel,
            from = gap.from.position,
            to = gap.to.position,
            messages,
            "a gap: the receiving host has lost its memory, and with it messages that the source no longer keeps"
        );
    }

    /// The peer has a mirror for one of our rings.
    fn resumed(&mut self, p: usize, resume: &wire::Resume, now: Nanos) {
        let index = self.peers[p].out[resume.slot as usize];
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        let tail = match ring.reader.tail() {
            Ok(tail) => tail,
            Err(error) => return self.give_up(index, &error.to_string()),
        };
        let source = SourceView {
            capacity: ring.reader.region().capacity(),
            released: ring.reader.released(),
            tail,
            stored: ring.reader.peer(),
        };
        let (store, gap) = match self.peers[p].session.start(resume, &source) {
            Start::Stale => return,
            Start::Refuse(why) => {
                // The peer has begun already.
                let (slot, epoch) = (resume.slot, resume.epoch);
                self.peers[p].send(&[Frame::Close { slot, epoch }]);
                return self.give_up(index, &why);
            }
            Start::Go { store, gap } => (store, gap),
        };
        if let Some(gap) = gap {
            ring.reader.note_gap(gap);
            let name = ring.name.clone();
            self.report(&name, gap);
            self.peers[p].send(&[Frame::Gap {
                slot: resume.slot,
                from: gap.from,
                to: gap.to,
            }]);
        }
        let Some(ring) = self.rings.out[index].as_mut() else {
            return;
        };
        match ring.reader.walk(source.released, resume.tail.position) {
            Ok(end) if end == resume.tail => {}
            Ok(end) => {
                let why = format!(
                    "the mirror's tail is {:?}, the source has {end:?} there",
                    resume.tail
                );
                return self.give_up(index, &why);
            }
            Err(error) => return self.give_up(index, &error.to_string()),
        }
        // Before the first byte: without the stored name a loss of the peer's memory would be silent.
        match store {
            true => ring.reader.set_peer(resume.mirror, resume.head),
            false => ring.reader.set_peer_head(resume.head),
        }
        ring.trouble = None;
        ring.done = resume.tail.position;
        ring.settled = if ring.until_consumed {
            resume.head.position
        } else {
            resume.tail.position
        };
        let region = ring.reader.region();
        let peer = &mut self.peers[p];
        if let Some(link) = &mut peer.link {
            link.attach_source(resume.slot, region, resume.epoch);
        }
        self.settle(p, resume.slot);
        if let Some(control) = self.peers[p].session.take_early(resume.slot) {
            self.remote(p, &control, now);
        }
        self.send_ring(index);
    }

    /// The peer wants one of its rings mirrored here.
    fn mirror(&mut self, p: usize, open: Open, now: Nanos) {
        let found = match self.rings.find([open.from, open.to]) {
            Some(At::In(index)) => self.rings.inn[index]
                .as_ref()
                .filter(|ring| ring.peer == p)
                .map(|_| index),
            _ => None,
        };
        let Some(index) = found else {
            let text = format!(
                "node {} has no channel {} whose first end is at {}",
                self.settings.node,
                self.name_of([open.from, open.to]),
                self.peers[p].name()
            );
            return self.refuse(p, &open, Refusal::NoChannel, text);
        };
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        if ring.capacity != open.capacity {
            let text = format!(
                "the ring has {} bytes at node {}, and {} at the sender; give both hosts the same size",
                ring.capacity, self.settings.node, open.capacity
            );
            return self.refuse(p, &open, Refusal::Capacity, text);
        }
        if let Some(old) = ring.slot.take() {
            // The same ring under another number: the older one is over.
            self.peers[p].inn.remove(&old);
            if let Some(link) = &mut self.peers[p].link {
                link.detach_mirror(old);
            }
        }
        let known = ring.writer.as_ref().is_some_and(|writer| {
            writer.ring().peer() == Some(open.source)
                && writer.ring().header().nonce == open.nonce
                && writer.tail().position >= open.head.position
        });
        if known && ring.trouble.is_none() {
            self.resume(p, index, &open, now);
        } else {
            self.next_mirror(index, open, now);
        }
    }

    fn refuse(&mut self, p: usize, open: &Open, why: Refusal, text: String) {
        let frame = self.peers[p].session.refuse(open, why, text);
        self.peers[p].send(&[frame]);
    }

    /// The mirror for an OPEN is there.
    fn resume(&mut self, p: usize, index: usize, open: &Open, now: Nanos) {
        let epoch = self.network.random();
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let Some(writer) = &mut ring.writer else {
            return;
        };
        let (tail, consumed) = (writer.tail(), writer.consumed());
        let head = match consumed {
            Ok(head) => head,
            Err(error) => {
                ring.trouble = Some(error.to_string());
                return self.refuse(p, open, Refusal::Ring, error.to_string());
            }
        };
        let peer = &mut self.peers[p];
        let Some(link) = &mut peer.link else {
            return;
        };
        ring.slot = Some(open.slot);
        link.attach_mirror(
            open.slot,
            writer.region(),
            epoch,
            tail.position,
            head.position + ring.capacity,
        );
        peer.inn.insert(open.slot, index);
        let frame = peer.session.resume(open, ring.ring, tail, head, epoch);
        peer.send(&[frame]);
        self.consumed(index, now);
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
