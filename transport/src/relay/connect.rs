//! Connections: dialling, greeting, the newest one wins, and what is left when one ends.

use super::choice::bit;
use super::peer::{self, GREETING, GREETINGS, Greeting, PROBE, Stream, judge};
use super::{Nanos, Relay};
use crate::network::{Control, Network};
use crate::wire::{self, Frame, Goodbye, Hello, Token};
use tbus::grm::Transport;
use tracing::{debug, info, warn};

impl<N: Network> Relay<N> {
    pub(super) fn hello(&self) -> Frame {
        Frame::Hello(self.me())
    }

    pub(super) fn me(&self) -> Hello {
        Hello {
            protocol: (wire::PROTOCOL_MIN, wire::PROTOCOL_MAX),
            node: self.settings.node,
            lease: self.lease,
            capabilities: self.network.transports(),
            cluster: self.settings.cluster.clone(),
            endpoint: self.settings.endpoint.clone(),
        }
    }

    /// Dials, accepts, and hears who is there.
    pub(super) fn greet(&mut self, now: Nanos) -> bool {
        let mut busy = false;
        if self.draining.is_some() {
            return self.turn_away();
        }
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

    /// A relay that ends takes nobody in.
    fn turn_away(&mut self) -> bool {
        let mut busy = !self.greetings.is_empty();
        self.greetings.clear();
        while let Some(control) = self.network.accept() {
            let text = "the relay ends".into();
            let why = Goodbye::Ending;
            Stream::new(control).send(&[Frame::Bye { why, text }]);
            busy = true;
        }
        busy
    }

    pub(super) fn begin_greeting(
        &mut self,
        control: N::Control,
        dialled: Option<usize>,
        now: Nanos,
    ) {
        let mut stream = Stream::new(control);
        stream.send(&[self.hello()]);
        self.greetings.push(Greeting {
            stream,
            dialled,
            since: now,
        });
    }

    pub(super) fn greeted_badly(
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
    pub(super) fn not_greeted(
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
        if greeting.dialled.is_none() && self.is_new(&format!("{} {text}", them.endpoint)) {
            warn!(peer = %them.endpoint, node = them.node, ?why, "a relay is refused: {text}");
        }
        self.greeted_badly(greeting, (why, text), now);
    }

    /// A peer is there: its connection replaces any older one.
    pub(super) fn greeted(&mut self, greeting: Greeting<N::Control>, them: &Hello, now: Nanos) {
        if !self.allowed.is_empty() && !self.allowed.contains(&them.node) {
            let text = format!(
                "node {} does not allow node {}; add it to [[allow]] there",
                self.settings.node, them.node
            );
            return self.not_greeted(greeting, them, (Goodbye::Node, text), now);
        }
        let transport = match self.network.admit(&greeting.stream.control, them) {
            Ok(transport) => transport,
            Err(text) => return self.not_greeted(greeting, them, (Goodbye::Security, text), now),
        };
        let dialled = greeting.dialled.is_some();
        let found = greeting
            .dialled
            .or_else(|| self.by_endpoint.get(&them.endpoint).copied());
        let Some(p) = found.filter(|p| !self.peers[*p].unused) else {
            let text = format!(
                "node {} has no channel to {} or no route there",
                self.settings.node, them.endpoint
            );
            return self.not_greeted(greeting, them, (Goodbye::NoRoute, text), now);
        };
        // Who is dialled, too, must be the one that is meant: names and addresses lead anywhere.
        let endpoint = match dialled {
            true => greeting.stream.control.name(),
            false => them.endpoint.clone(),
        };
        if let Err(text) = self.network.place(them.node, &endpoint) {
            return self.not_greeted(greeting, them, (Goodbye::Security, text), now);
        }
        let peer = &self.peers[p];
        if let Some(node) = peer
            .node
            .filter(|node| *node != them.node && peer.control.is_some())
        {
            // Two relays of one host must not take the connection from each other.
            let text = format!("node {node} is connected for {}, and lives", them.endpoint);
            return self.not_greeted(greeting, them, (Goodbye::Node, text), now);
        }
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
        let peer = &mut self.peers[p];
        let reborn = (peer.node, peer.lease) != (Some(them.node), them.lease);
        peer.choice.begin(transport, !dialled, reborn);
        (peer.node, peer.lease, peer.dialling) = (Some(them.node), them.lease, false);
        (peer.control, peer.linking) = (Some(greeting.stream), now);
        peer.session.begin(now);
        if !dialled {
            for transport in [Transport::Verbs, Transport::Ucx] {
                if them.capabilities & u64::from(bit(transport, 0)) == 0 {
                    let why = "the peer has none".into();
                    let choice = &mut self.peers[p].choice;
                    choice.declined(transport, why, &self.hold_down, now);
                }
            }
            self.offer(p, now);
        }
    }

    pub(super) fn token(&mut self) -> Token {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.network.random().to_le_bytes());
        bytes[8..].copy_from_slice(&self.network.random().to_le_bytes());
        Token(bytes)
    }

    /// A link that another relay made.
    pub(super) fn link_came(&mut self, token: Token, link: N::Arrival, now: Nanos) {
        if let Some(p) = self.trial_of(token) {
            return self.trial_came(p, link, now);
        }
        let found = (0..self.peers.len()).find(|p| self.peers[*p].session.redeem(token));
        let Some(p) = found else {
            let why = "its token is not, or no longer, one that was given";
            return self.network.turn_away(link, why);
        };
        let peer = &self.peers[p];
        let judged = match &peer.control {
            Some(stream) => {
                let offered = peer.choice.used_bit().unwrap_or_default();
                self.network.belongs(&link, &stream.control, offered)
            }
            None => Err("its control connection is gone".into()),
        };
        match judged {
            Ok(()) => match self.network.welcome(link) {
                Ok(link) => self.link_up(p, link, now),
                Err(why) => self.down(p, Goodbye::Link, why, now),
            },
            Err(why) => {
                // Somebody else knows the token.
                self.network.turn_away(link, &why);
                self.down(p, Goodbye::Security, why, now);
            }
        }
    }

    pub(super) fn link_up(&mut self, p: usize, link: N::Link, now: Nanos) {
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
        let security = peer.node.map(|node| self.network.security_of(node));
        if let Some(used) = peer.choice.used() {
            peer.choice.works(used);
        }
        let over = peer.over();
        match peer.choice.reasons(self.network.transports(), now) {
            why if why.is_empty() => {
                info!(peer = %peer.name(), node = peer.node, security, "connected, over {over}");
            }
            why => {
                info!(peer = %peer.name(), node = peer.node, security, "connected, over {over} ({why})");
            }
        }
        for open in std::mem::take(&mut self.peers[p].held) {
            self.mirror(p, open, now);
        }
    }

    /// Ends what there is with a peer; the rings keep everything, and it is dialled again.
    pub(super) fn down(&mut self, p: usize, why: Goodbye, text: String, now: Nanos) {
        let random = self.network.random();
        let peer = &self.peers[p];
        if peer.control.is_none() && peer.link.is_none() {
            return;
        }
        // Of two that have seen it, each knows its own reason best.
        let text = match (&peer.lost, why) {
            (Some(lost), Goodbye::Link) => lost.why.clone(),
            _ => text,
        };
        if matches!(why, Goodbye::Link | Goodbye::Silence | Goodbye::Control) {
            self.link_ended(p, why == Goodbye::Link, &text, now);
        }
        self.end_trial(p);
        let peer = &mut self.peers[p];
        peer.send(&[Frame::Bye {
            why,
            text: text.clone(),
        }]);
        match why {
            Goodbye::Replaced => {
                info!(peer = %peer.name(), node = peer.node, ?why, "disconnected: {text}");
            }
            _ => warn!(peer = %peer.name(), node = peer.node, ?why, "disconnected: {text}"),
        }
        peer.control = None;
        if let Some(token) = peer.choice.dialled.take() {
            self.network.give_up(token);
        }
        if let Some(token) = peer.session.take_offer() {
            self.network.give_up(token);
        }
        peer.drop_link();
        peer.session.down();
        peer.trouble = Some(format!("{why:?}: {text}"));
        peer.last_end = peer.trouble.clone();
        if peer.up_since.take().is_some() {
            peer.down_since = now;
            peer.downs += 1;
            self.totals.downs += 1;
        }
        peer.held.clear();
        peer.back_off(now, random);
        for index in std::mem::take(&mut peer.waiting) {
            if let Some(ring) = self.rings.out[index].as_mut() {
                ring.waiting = false;
            }
        }
        for (_, index) in std::mem::take(&mut self.peers[p].inn).into_all() {
            if let Some(ring) = self.rings.inn[index].as_mut() {
                ring.slot = None;
            }
        }
        self.forget_opens(p);
    }
}
