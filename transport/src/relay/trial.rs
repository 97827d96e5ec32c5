//! How transports take each other's place. What is better than the transport in use is tried beside it: a link is made, and a
//! word goes there and back over it, while messages go on over the old one. Then the two relays connect anew, and use it.

use super::choice::{bit, of_bit};
use super::{Nanos, Relay};
use crate::link::{Event, Link};
use crate::network::Network;
use crate::wire::{self, Frame, Goodbye, Token};
use tbus::Cursor;
use tbus::grm::Transport;
use tracing::{debug, info, warn};

/// A trial has come to its end within this time, or has failed.
const TRIAL: Nanos = 10_000_000_000;
/// Bytes that a trial's link may bring at one look: there is one word.
const BUDGET: usize = 1 << 12;
/// No ring has this slot.
const NOBODY: u32 = 0xffff_ffff;

/// A link that is tried beside the one that serves.
#[derive(Debug)]
pub(super) struct Trial<L> {
    transport: Transport,
    token: Token,
    since: Nanos,
    state: State<L>,
}

#[derive(Debug)]
enum State<L> {
    /// The peer is to make it.
    Offered,
    /// It is being made.
    Dialled,
    /// A word is awaited.
    Made(Box<L>),
    /// The peer has said it, and what follows is the peer's to do.
    Heard(#[allow(dead_code, reason = "it lives as long as the connection")] Box<L>),
}

/// What is said over a trial's link, and said again by who hears it.
fn word(token: Token) -> wire::Control {
    let [low, high] = [0, 8].map(|at| {
        let bytes = token.0[at..at + 8]
            .try_into()
            .expect("a token has 16 bytes");
        u64::from_le_bytes(bytes)
    });
    wire::Control {
        slot: NOBODY,
        epoch: low ^ high,
        want: false,
        delivered: 0,
        consumed: Cursor::default(),
    }
}

impl<N: Network> Relay<N> {
    /// Who was dialled offers a link over the best transport, also when the peer has declined another one.
    pub(super) fn offer(&mut self, p: usize, now: Nanos) {
        let have = self.network.transports();
        let Some((transport, bit)) = self.peers[p].choice.best(have, now) else {
            let text = format!(
                "no transport is left for data: {}",
                self.peers[p].choice.reasons(have, now)
            );
            return self.down(p, Goodbye::Transport, text, now);
        };
        let (port, token) = (self.network.port_of(bit), self.token());
        let peer = &mut self.peers[p];
        if let Some(stream) = &peer.control {
            self.network.expect(&stream.control, bit, token);
        }
        peer.choice.uses(transport);
        peer.linking = now;
        let frame = peer.session.offer(bit, port, token);
        peer.send(&[frame]);
    }

    /// The peer offers a link, in place of none or for a trial.
    pub(super) fn offered(&mut self, p: usize, bit: u8, port: u16, token: Token, now: Nanos) {
        let is_trial = self.peers[p].session.is_up();
        let peer = &self.peers[p];
        if !is_trial && peer.choice.dialled.is_some() {
            let text = "a second OFFER on one connection".into();
            return self.down(p, Goodbye::Violation, text, now);
        }
        if peer.choice.offers {
            let text = "an OFFER by who dialled".into();
            return self.down(p, Goodbye::Violation, text, now);
        }
        let have = self.network.transports();
        let transport = of_bit(bit);
        if transport == Some(Transport::Tcp) && bit != peer.choice.tcp() {
            let word = |bit| match bit {
                wire::TRANSPORT_TLS => "with TLS",
                _ => "in clear",
            };
            let text = format!(
                "node {} offers data {}, and here it is to go {}; give both relays the same security",
                peer.node.unwrap_or_default(),
                word(bit),
                word(peer.choice.tcp())
            );
            return self.down(p, Goodbye::Security, text, now);
        }
        let judged = match transport {
            None => Err(format!("this relay knows no transport {bit}")),
            Some(_) if is_trial && self.draining.is_some() => Err("the relay ends".into()),
            Some(_) if is_trial && peer.trial.is_some() => Err("another one is being tried".into()),
            Some(transport) if is_trial && Some(transport) == peer.choice.used() => {
                Err("it is what serves".into())
            }
            Some(Transport::Tcp) if is_trial => Err("tcp is not tried, it serves".into()),
            // What rests on both sides does so since moments that differ a little.
            Some(transport) if is_trial => {
                let soon = now.saturating_add(self.hold_down.start);
                peer.choice.judge(transport, have, soon)
            }
            // Where nothing else is left, what rests is better than nothing.
            Some(transport)
                if peer
                    .choice
                    .best(have, now)
                    .is_some_and(|(best, _)| best == transport) =>
            {
                Ok(())
            }
            Some(transport) => peer.choice.judge(transport, have, now),
        };
        let transport = match (transport, judged) {
            (Some(transport), Ok(())) => transport,
            (_, judged) => return self.decline(p, token, judged.err().unwrap_or_default()),
        };
        let Some(stream) = &peer.control else {
            return;
        };
        match self.network.connect_link(&stream.control, bit, port, token) {
            Err(why) if is_trial => self.decline(p, token, why),
            Err(why) if transport == Transport::Tcp => self.down(p, Goodbye::Link, why, now),
            Err(why) => {
                self.rest(p, transport, &why, now);
                self.decline(p, token, why);
            }
            Ok(made) if is_trial => {
                let state = made.map_or(State::Dialled, |link| State::Made(Box::new(link)));
                self.peers[p].trial = Some(Trial {
                    transport,
                    token,
                    since: now,
                    state,
                });
                self.say(p);
            }
            Ok(made) => {
                let peer = &mut self.peers[p];
                peer.choice.uses(transport);
                peer.linking = now;
                match made {
                    Some(link) => self.link_up(p, link, now),
                    None => peer.choice.dialled = Some(token),
                }
            }
        }
    }

    fn decline(&mut self, p: usize, token: Token, text: String) {
        debug!(peer = %self.peers[p].name(), "an offer is declined: {text}");
        self.peers[p].send(&[Frame::Decline { token, text }]);
    }

    /// The peer does not make a link that was offered.
    pub(super) fn declined(&mut self, p: usize, token: Token, text: &str, now: Nanos) {
        let why = format!("the peer says: {text}");
        let peer = &mut self.peers[p];
        if let Some(trial) = peer.trial.take_if(|trial| trial.token == token) {
            let transport = trial.transport;
            peer.choice.declined(transport, why, &self.hold_down, now);
            return self.give_up_trial(trial);
        }
        let Some(transport) = peer.choice.used().filter(|_| peer.session.redeem(token)) else {
            return; // of an offer that is over
        };
        self.network.give_up(token);
        if transport == Transport::Tcp {
            let text = format!("the link over tcp is declined: {text}");
            return self.down(p, Goodbye::Transport, text, now);
        }
        peer.choice.declined(transport, why, &self.hold_down, now);
        self.offer(p, now);
    }

    /// What became of a link that this relay has asked for.
    pub(super) fn dialled_link(&mut self, token: Token, link: Result<N::Link, String>, now: Nanos) {
        // The connection that it was for may have ended.
        let tried = |p: &usize| {
            let trial = self.peers[*p].trial.as_ref();
            trial.is_some_and(|trial| trial.token == token)
        };
        let all = 0..self.peers.len();
        if let Some(p) = all.clone().find(tried) {
            let Some(mut trial) = self.peers[p].trial.take() else {
                return;
            };
            match link {
                Err(why) => {
                    self.decline(p, token, why.clone());
                    self.trial_failed(p, trial, why, now);
                }
                Ok(link) => {
                    trial.state = State::Made(Box::new(link));
                    self.peers[p].trial = Some(trial);
                    self.say(p);
                }
            }
            return;
        }
        let of = |p: &usize| self.peers[*p].choice.dialled == Some(token);
        let Some(p) = all.clone().find(of) else {
            return;
        };
        self.peers[p].choice.dialled = None;
        let used = self.peers[p].choice.used();
        match link {
            Ok(link) => self.link_up(p, link, now),
            Err(why) => {
                if let Some(transport) = used {
                    self.rest(p, transport, &why, now);
                }
                self.decline(p, token, why);
            }
        }
    }

    /// The peer of a trial for which another relay made a link, by the token that it showed, and the transport's bit.
    pub(super) fn trial_of(&self, token: Token) -> Option<usize> {
        (0..self.peers.len()).find(|p| {
            let trial = self.peers[*p].trial.as_ref();
            trial.is_some_and(|trial| trial.token == token && matches!(trial.state, State::Offered))
        })
    }

    /// The link of a trial is there, made by the peer.
    pub(super) fn trial_came(&mut self, p: usize, arrival: N::Arrival, now: Nanos) {
        let Some(mut trial) = self.peers[p].trial.take() else {
            return;
        };
        let judged = match &self.peers[p].control {
            Some(stream) => {
                let bit = bit(trial.transport, self.peers[p].choice.tcp());
                self.network.belongs(&arrival, &stream.control, bit)
            }
            None => Err("its control connection is gone".into()),
        };
        if let Err(why) = judged {
            self.network.turn_away(arrival, &why);
            return self.trial_failed(p, trial, why, now);
        }
        match self.network.welcome(arrival) {
            Ok(link) => {
                trial.state = State::Made(Box::new(link));
                self.peers[p].trial = Some(trial);
            }
            Err(why) => self.trial_failed(p, trial, why, now),
        }
    }

    /// Who has made the link says the word.
    fn say(&mut self, p: usize) {
        if let Some(Trial {
            state: State::Made(link),
            token,
            ..
        }) = &mut self.peers[p].trial
        {
            link.control(word(*token));
            link.kick();
        }
    }

    /// Begins, follows and ends trials. True if there was anything.
    pub(super) fn follow_trial(&mut self, p: usize, now: Nanos) -> bool {
        if self.draining.is_some() {
            // To connect anew would end it before its time.
            self.end_trial(p);
            return false;
        }
        let peer = &mut self.peers[p];
        let Some(mut trial) = peer.trial.take() else {
            return self.begin_trial(p, now);
        };
        let mut events = Vec::new();
        if let State::Made(link) = &mut trial.state {
            link.poll(BUDGET, &mut events);
        }
        let busy = !events.is_empty();
        for event in events {
            match event {
                Event::Remote(control) if control == word(trial.token) => {
                    return self.trial_succeeded(p, trial, now);
                }
                Event::Down(why) => {
                    if !self.peers[p].choice.offers {
                        self.decline(p, trial.token, why.clone());
                    }
                    self.trial_failed(p, trial, why, now);
                    return true;
                }
                _ => {}
            }
        }
        // Who is heard waits no longer than for the trial: the peer may have heard nothing.
        match now > trial.since + TRIAL {
            true => self.trial_failed(
                p,
                trial,
                format!("nothing came within {} s", TRIAL / 1_000_000_000),
                now,
            ),
            false => self.peers[p].trial = Some(trial),
        }
        busy
    }

    fn begin_trial(&mut self, p: usize, now: Nanos) -> bool {
        let have = self.network.transports();
        let peer = &self.peers[p];
        if !peer.choice.offers || peer.link.is_none() {
            return false;
        }
        let Some((transport, bit)) = peer.choice.better(have, now) else {
            return false;
        };
        let (port, token) = (self.network.port_of(bit), self.token());
        let peer = &mut self.peers[p];
        if let Some(stream) = &peer.control {
            self.network.expect(&stream.control, bit, token);
        }
        peer.trial = Some(Trial {
            transport,
            token,
            since: now,
            state: State::Offered,
        });
        peer.send(&[Frame::Offer {
            transport: bit,
            port,
            token,
        }]);
        true
    }

    fn trial_succeeded(&mut self, p: usize, mut trial: Trial<N::Link>, now: Nanos) -> bool {
        let peer = &mut self.peers[p];
        peer.choice.works(trial.transport);
        if peer.choice.offers {
            if let State::Made(mut link) = trial.state {
                link.control(word(trial.token));
                link.kick();
                trial.state = State::Heard(link);
            }
            peer.trial = Some(trial);
            return true;
        }
        let text = format!(
            "{} works, and takes the place of {}",
            trial.transport.name(),
            peer.choice.used().map_or("none", Transport::name)
        );
        if let State::Made(link) = trial.state {
            link.quiesce();
        }
        self.connect_anew(p, text, now);
        true
    }

    fn trial_failed(&mut self, p: usize, trial: Trial<N::Link>, why: String, now: Nanos) {
        let transport = trial.transport;
        self.give_up_trial(trial);
        let limits = self.hold_down.clone();
        let choice = &mut self.peers[p].choice;
        let seconds = choice.rest(transport, why.clone(), &limits, now) / 1_000_000_000;
        debug!(
            peer = %self.peers[p].name(),
            "{} was tried and does not work, again in {seconds} s: {why}",
            transport.name()
        );
    }

    fn give_up_trial(&mut self, trial: Trial<N::Link>) {
        match trial.state {
            State::Made(link) | State::Heard(link) => drop(link.quiesce()),
            State::Offered | State::Dialled => self.network.give_up(trial.token),
        }
    }

    /// Nobody waits for a trial any more.
    pub(super) fn end_trial(&mut self, p: usize) {
        if let Some(trial) = self.peers[p].trial.take() {
            self.give_up_trial(trial);
        }
    }

    /// The same, if what is tried is not wanted any more.
    pub(super) fn end_vain_trial(&mut self, p: usize, now: Nanos) {
        let have = self.network.transports();
        let peer = &self.peers[p];
        let better = peer.choice.better(have, now).map(|(better, _)| better);
        if peer.trial.as_ref().map(|trial| trial.transport) != better {
            self.end_trial(p);
        }
    }

    /// Ends the connection in good order and makes another one at once.
    pub(super) fn connect_anew(&mut self, p: usize, text: String, now: Nanos) {
        info!(peer = %self.peers[p].name(), node = self.peers[p].node, "connecting anew: {text}");
        self.down(p, Goodbye::Replaced, text, now);
        self.peers[p].dial_due = now;
    }

    /// Data go to a node by this transport from now on, if that works; or as its routes say again.
    pub fn switch(
        &mut self,
        node: u32,
        transport: Option<Transport>,
        now: Nanos,
    ) -> Result<String, String> {
        if self.draining.is_some() {
            return Err("the relay ends".into());
        }
        // A node may have been elsewhere before.
        let all = 0..self.peers.len();
        let found = all
            .filter(|p| self.peers[*p].node == Some(node))
            .max_by_key(|p| (self.peers[*p].control.is_some(), !self.peers[*p].unused));
        let Some(p) = found else {
            let known: Vec<_> = self.peers.iter().filter_map(|peer| peer.node).collect();
            return Err(format!("no peer is node {node}; known are {known:?}"));
        };
        let have = self.network.transports();
        let choice = &mut self.peers[p].choice;
        choice.set_by_hand(transport)?;
        self.end_vain_trial(p, now);
        let choice = &self.peers[p].choice;
        let name = transport.map_or("auto", Transport::name);
        let Some((best, _)) = choice.best(have, now) else {
            return Ok(format!("node {node}: {name} from the next connection on"));
        };
        if choice.used() == Some(best) || choice.used().is_none() {
            let why = choice.reasons(have, now);
            return Ok(match (transport, why.is_empty()) {
                (Some(wanted), _) if wanted != best => {
                    format!("node {node}: still {}: {why}", best.name())
                }
                _ => format!("node {node}: {}, as it is", best.name()),
            });
        }
        let text = format!("switched to {name} by hand");
        self.connect_anew(p, text, now);
        Ok(format!("node {node}: {name}; connecting anew"))
    }

    /// The link or the connection with a peer ends; `blame`: by the link's own fault, on whichever side.
    pub(super) fn link_ended(&mut self, p: usize, blame: bool, why: &str, now: Nanos) {
        let peer = &mut self.peers[p];
        let up = peer.up_since.map(|since| now.saturating_sub(since));
        if let Some(failed) = peer.choice.ended(blame, up) {
            self.rest(p, failed, why, now);
        }
    }

    /// Lets a transport rest that has failed.
    fn rest(&mut self, p: usize, transport: Transport, why: &str, now: Nanos) {
        let limits = self.hold_down.clone();
        let peer = &mut self.peers[p];
        let pause = peer.choice.rest(transport, why.into(), &limits, now);
        peer.choice.failures += 1;
        let seconds = pause.div_ceil(1_000_000_000);
        warn!(
            peer = %peer.name(),
            node = peer.node,
            "{} has failed and rests for {seconds} s: {why}",
            transport.name()
        );
    }

    /// A ring's memory cannot be given to the card. TCP needs none, so it serves.
    pub(super) fn no_memory(&mut self, p: usize, why: String, now: Nanos) {
        self.peers[p].choice.lasts();
        self.down(p, Goodbye::Link, why, now);
    }
}
