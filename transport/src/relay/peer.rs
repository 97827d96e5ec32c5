//! One peer as the relay sees it, and connections that are not a peer's yet.

use super::Traffic;
use super::choice::Choice;
use super::trial::Trial;
use crate::BySlot;
use crate::link::{Event, Link, Quiesced};
use crate::network::{Control, Network};
use crate::session::{Nanos, Session};
use crate::wire::{Frame, Goodbye, Hello, Open, PROTOCOL_MAX, PROTOCOL_MIN};
use std::collections::VecDeque;
use tbus::grm::{RelayEndpoint, Transport};

/// A dialled or accepted connection says who is there within this time, or is closed.
pub(super) const GREETING: Nanos = 2_000_000_000;
/// More connections are not listened to at the same time.
pub(super) const GREETINGS: usize = 256;
/// The first and the longest time between two dials; a quarter of it is random.
pub(super) const BACK_OFF: std::ops::Range<Nanos> = 20_000_000..2_000_000_000;
/// A link is there within this time after it was offered, or the next transport is; what makes it has deadlines of its own.
pub(super) const LINKED: Nanos = 15_000_000_000;
/// A higher node dials so seldom, to tell a lower one that it is there.
pub(super) const PROBE: Nanos = 5_000_000_000;
/// Rings that wait for the link before they are looked at: an honest peer has fewer under way.
pub(super) const HELD: usize = 8192;
/// Bytes that may wait for a control connection: a peer that does not read them is given up.
pub(super) const UNSENT: usize = 4 << 20;

/// The relay of another host.
#[derive(Debug)]
pub(super) struct Peer<N: Network> {
    /// How routes name it; the first is its identity here.
    pub endpoints: Vec<RelayEndpoint>,
    /// No ring of this relay leads there or comes from there.
    pub unused: bool,
    pub node: Option<u32>,
    pub lease: u64,
    pub choice: Choice,
    /// Since when a link is being made.
    pub linking: Nanos,
    pub trial: Option<Trial<N::Link>>,
    pub session: Session,
    pub control: Option<Stream<N::Control>>,
    pub link: Option<N::Link>,
    /// A link that has ended, while the control connection may still say why.
    pub lost: Option<Lost<N::Link>>,
    /// What came over it and is still to be heeded.
    pub later: Vec<Event>,
    /// Of the last link; held while there is none.
    pub proof: Option<Quiesced>,
    pub dial_due: Nanos,
    pub dialling: bool,
    pub dials: usize,
    pub back_off: Nanos,
    /// Outbound rings by slot.
    pub out: Vec<usize>,
    /// Inbound rings by the peer's slot.
    pub inn: BySlot<usize>,
    /// Outbound rings that the link did not take yet.
    pub waiting: VecDeque<usize>,
    /// Opened by the peer before its link was here.
    pub held: Vec<Open>,
    pub trouble: Option<String>,
    pub up_since: Option<Nanos>,
    pub down_since: Nanos,
    /// Why it was disconnected last.
    pub last_end: Option<String>,
    pub ups: u64,
    pub downs: u64,
    pub traffic: Traffic,
    /// Of the last second.
    pub rates: Traffic,
    counted: Traffic,
}

impl<N: Network> Peer<N> {
    pub fn new(endpoints: Vec<RelayEndpoint>, now: Nanos) -> Peer<N> {
        Peer {
            endpoints,
            unused: false,
            node: None,
            lease: 0,
            choice: Choice::default(),
            linking: now,
            trial: None,
            session: Session::new(now),
            control: None,
            link: None,
            lost: None,
            later: Vec::new(),
            // The relay holds the roles of its rings, so the one before it is dead, and its links with it.
            proof: Some(Quiesced::never_linked()),
            dial_due: now,
            dialling: false,
            dials: 0,
            back_off: BACK_OFF.start,
            out: Vec::new(),
            inn: BySlot::default(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            trouble: None,
            up_since: None,
            down_since: now,
            last_end: None,
            ups: 0,
            downs: 0,
            traffic: Traffic::default(),
            rates: Traffic::default(),
            counted: Traffic::default(),
        }
    }

    pub fn name(&self) -> String {
        self.endpoints[0].to_string()
    }

    /// The transport of its link, in a word.
    pub fn over(&self) -> &'static str {
        self.choice.used().map_or("none", Transport::name)
    }

    /// Counts anew, a second after the last time.
    pub fn take_rates(&mut self) {
        let (now, before) = (self.traffic, self.counted);
        self.rates = Traffic {
            sent_messages: now.sent_messages - before.sent_messages,
            sent_bytes: now.sent_bytes - before.sent_bytes,
            received_messages: now.received_messages - before.received_messages,
            received_bytes: now.received_bytes - before.received_bytes,
        };
        self.counted = now;
    }

    /// Sends frames, if there is a connection.
    pub fn send(&mut self, frames: &[Frame]) {
        if let Some(control) = &mut self.control {
            control.send(frames);
        }
    }

    /// Ends the link; nothing of it can happen any more.
    pub fn drop_link(&mut self) {
        let lost = self.lost.take().map(|lost| lost.link);
        if let Some(link) = self.link.take().or(lost) {
            self.later.clear();
            self.proof = Some(link.quiesce());
        }
    }

    /// When to dial again after a failure: later each time, and not all at once.
    pub fn back_off(&mut self, now: Nanos, random: u64) {
        self.dial_due = now + self.back_off - random % (self.back_off / 4);
        self.back_off = (self.back_off * 2).min(BACK_OFF.end);
    }
}

/// A link that has ended. It is kept as it is: a peer that sees it go would look for its own reason.
#[derive(Debug)]
pub(super) struct Lost<L> {
    pub link: L,
    pub why: String,
    pub since: Nanos,
}

/// A control connection that sends and receives frames.
#[derive(Debug)]
pub(super) struct Stream<C> {
    pub control: C,
    received: Vec<u8>,
    begin: usize,
}

impl<C: Control> Stream<C> {
    pub fn new(control: C) -> Stream<C> {
        Stream {
            control,
            received: Vec::new(),
            begin: 0,
        }
    }

    pub fn send(&mut self, frames: &[Frame]) {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes);
        }
        if !bytes.is_empty() {
            self.control.send(&bytes);
        }
    }

    /// Reads what has come. True if anything did.
    pub fn poll(&mut self) -> Result<bool, (Goodbye, String)> {
        self.received.drain(..self.begin);
        self.begin = 0;
        // What has come before the connection ended is heard first: it may say why.
        if let Ok(Some(_)) = Frame::decode(&self.received) {
            return Ok(true);
        }
        let any = self
            .control
            .poll(&mut self.received)
            .map_err(|e| (Goodbye::Control, e))?;
        match self.control.unsent() > UNSENT {
            true => Err((
                Goodbye::Control,
                "the peer does not read its control connection".into(),
            )),
            false => Ok(any),
        }
    }

    /// The next frame of what was read.
    pub fn next(&mut self) -> Result<Option<Frame>, (Goodbye, String)> {
        let decoded = Frame::decode(&self.received[self.begin..]);
        match decoded.map_err(|e| (Goodbye::Violation, e.to_string()))? {
            None => Ok(None),
            Some((frame, length)) => {
                self.begin += length;
                Ok(Some(frame))
            }
        }
    }
}

/// A connection on which nobody has said yet who is there.
#[derive(Debug)]
pub(super) struct Greeting<C> {
    pub stream: Stream<C>,
    /// The peer that was dialled.
    pub dialled: Option<usize>,
    pub since: Nanos,
}

/// Whether two relays may speak; else why not.
pub(super) fn judge(me: &Hello, them: &Hello, dialled: bool) -> Result<(), (Goodbye, String)> {
    let (low, high) = them.protocol;
    if low > PROTOCOL_MAX || high < PROTOCOL_MIN || low > high {
        let text = format!(
            "node {} speaks protocol {low} to {high}, node {} {PROTOCOL_MIN} to {PROTOCOL_MAX}; update the older one",
            them.node, me.node
        );
        return Err((Goodbye::Protocol, text));
    }
    if them.cluster != me.cluster {
        let text = format!(
            "node {} is of cluster '{}', node {} of '{}'",
            them.node, them.cluster, me.node, me.cluster
        );
        return Err((Goodbye::Cluster, text));
    }
    if them.node == me.node {
        let text = format!(
            "both relays say that they are node {}; give {} and {} different numbers",
            me.node, me.endpoint, them.endpoint
        );
        return Err((Goodbye::Node, text));
    }
    if (them.node < me.node) == dialled {
        let (low, high) = (me.node.min(them.node), me.node.max(them.node));
        return Err((
            Goodbye::NotYours,
            format!("node {low} dials node {high}, not the other way"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node: u32) -> Hello {
        Hello {
            protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
            node,
            lease: 1,
            capabilities: 1,
            cluster: "a".into(),
            endpoint: "h:1".into(),
        }
    }

    #[test]
    fn who_may_speak() {
        let why = |them: Hello, dialled| judge(&hello(5), &them, dialled).map_err(|(why, _)| why);
        assert_eq!(why(hello(6), true), Ok(()));
        assert_eq!(why(hello(6), false), Err(Goodbye::NotYours));
        assert_eq!(why(hello(4), false), Ok(()));
        assert_eq!(why(hello(4), true), Err(Goodbye::NotYours));
        assert_eq!(why(hello(5), true), Err(Goodbye::Node));
        assert_eq!(
            why(
                Hello {
                    cluster: "b".into(),
                    ..hello(6)
                },
                true
            ),
            Err(Goodbye::Cluster)
        );
        assert_eq!(
            why(
                Hello {
                    protocol: (2, 3),
                    ..hello(6)
                },
                true
            ),
            Err(Goodbye::Protocol)
        );
        assert_eq!(
            why(
                Hello {
                    protocol: (1, 9),
                    ..hello(6)
                },
                true
            ),
            Ok(())
        );
        assert_eq!(
            why(
                Hello {
                    protocol: (1, 0),
                    ..hello(6)
                },
                true
            ),
            Err(Goodbye::Protocol)
        );
    }
}
