//! What a relay tells about itself.

use super::peer::Peer;
use super::rings::{Inbound, Outbound};
use super::{Relay, Totals, Traffic};
use crate::link::Link;
use crate::network::{Control, Network};
use crate::session::Nanos;
use tbus::{Address, Uuid};

/// A relay at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its node number.
    pub node: u32,
    /// Its cluster.
    pub cluster: String,
    /// Where others reach it.
    pub endpoint: String,
    /// The maps were read, and what they say was begun.
    pub is_ready: bool,
    /// It takes nobody in any more, and ends when its peers have what is in the rings.
    pub is_draining: bool,
    /// Why rings or maps cannot be served: the last reason, if there is any.
    pub unserved: Option<String>,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
    /// The rings that lead to other hosts.
    pub rings: Vec<RingStatus>,
    /// Totals since it was made.
    pub totals: Totals,
    /// Connections that came to nothing, since it was made.
    pub refused: u64,
    /// What an operator should know about the certificate, if anything.
    pub warning: Option<String>,
}

/// How it is with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Rings are mirrored.
    Connected,
    /// It has said who it is, and the link is being made.
    Connecting,
    /// It is not there, or refuses; it is tried again and again.
    Disconnected,
    /// No channel leads there.
    Unused,
}

impl PeerState {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            PeerState::Connected => "connected",
            PeerState::Connecting => "connecting",
            PeerState::Disconnected => "disconnected",
            PeerState::Unused => "unused",
        }
    }
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Where it is reached.
    pub endpoint: String,
    /// Its node number, if it was ever heard.
    pub node: Option<u32>,
    /// How it is with it.
    pub state: PeerState,
    /// For how long it is connected, or not; nanoseconds.
    pub since: Nanos,
    /// The transport in use, while connected.
    pub transport: Option<&'static str>,
    /// What carries it, where its name does not say that.
    pub transport_detail: Option<String>,
    /// Why no better one is in use, while connected; empty if it is the best.
    pub transport_reasons: String,
    /// What has failed, if the transport in use is in place of one that has.
    pub fallback: Option<String>,
    /// How often a transport has failed, and others took its place.
    pub transport_failures: u64,
    /// "encrypt", "authenticate" or "none", if its number was ever heard.
    pub security: Option<&'static str>,
    /// For how long, nanoseconds.
    pub up_for: Option<Nanos>,
    /// How often it came up.
    pub ups: u64,
    /// How often it went down.
    pub downs: u64,
    /// Why it is not connected now.
    pub trouble: Option<String>,
    /// Why it was disconnected last.
    pub last_end: Option<String>,
    /// How long it is there and back, the shortest of the last minutes; nanoseconds.
    pub round_trip: Option<Nanos>,
    /// What went there and came from there.
    pub traffic: Traffic,
    /// The same of the last second.
    pub rates: Traffic,
}

/// One ring.
#[derive(Clone, Debug)]
pub struct RingStatus {
    /// The sender's and the receiver's address.
    pub ends: [Address; 2],
    /// Its name.
    pub ring: Uuid,
    /// The index of its peer in [`Status::peers`].
    pub peer: usize,
    /// True if the sender is on this host.
    pub outbound: bool,
    /// True while it is mirrored.
    pub running: bool,
    /// Messages that this relay has sent or published.
    pub messages: u64,
    /// Their bytes with headers.
    pub bytes: u64,
    /// Why it is not mirrored, or was not the last time.
    pub trouble: Option<String>,
    /// Its room, bytes.
    pub capacity: u64,
    /// Bytes of it that are taken up.
    pub used: u64,
    /// Of a ring that leads out, bytes that the peer has not acknowledged; of one that comes in, those that the application
    /// has not released.
    pub lag: u64,
    /// For how long the first of them was seen there, nanoseconds.
    pub oldest: Option<Nanos>,
    /// Gaps that could not be healed.
    pub gaps: u64,
    /// Messages in them, as far as known.
    pub lost_messages: u64,
}

/// A status that is being gathered, some rings at a time: all of ten thousand channels at once would keep messages waiting.
#[derive(Debug, Default)]
pub struct Survey {
    rings: Vec<RingStatus>,
    next: usize,
    /// How many rings there were at its beginning, out and in.
    of: (usize, usize),
}

impl<N: Network> Relay<N> {
    /// What there is to tell.
    pub fn status(&self, now: Nanos) -> Status {
        let all = self.rings.out.len() + self.rings.inn.len();
        let done = self.survey(&mut Survey::default(), all, now);
        done.expect("all rings are looked at")
    }

    /// Looks at `turn` more rings; at the end, what there is to tell.
    pub fn survey(&self, survey: &mut Survey, turn: usize, now: Nanos) -> Option<Status> {
        let of = (self.rings.out.len(), self.rings.inn.len());
        let (outs, all) = (of.0, of.0 + of.1);
        if survey.of != of {
            // Places have shifted, or this is the beginning.
            (survey.of, survey.next) = (of, 0);
            survey.rings.clear();
        }
        let end = survey.next.saturating_add(turn).min(all);
        for index in survey.next..end {
            survey.rings.extend(match index.checked_sub(outs) {
                None => self.rings.out[index]
                    .as_ref()
                    .map(|ring| self.outbound(ring, now)),
                Some(index) => self.rings.inn[index]
                    .as_ref()
                    .map(|ring| inbound(ring, now)),
            });
        }
        survey.next = end;
        (end == all).then(|| Status {
            node: self.settings.node,
            cluster: self.settings.cluster.clone(),
            endpoint: self.settings.endpoint.clone(),
            is_ready: self.is_ready(),
            is_draining: self.draining.is_some(),
            unserved: self.maps.unserved().cloned(),
            peers: self.peers(now),
            rings: std::mem::take(&mut survey.rings),
            totals: self.totals(),
            refused: self.network.refused(),
            warning: self.network.warning(),
        })
    }

    /// What there is to tell of the peers alone.
    pub fn peers(&self, now: Nanos) -> Vec<PeerStatus> {
        let peer = |peer: &Peer<N>| PeerStatus {
            endpoint: peer.name(),
            node: peer.node,
            state: state_of(peer),
            since: now.saturating_sub(peer.up_since.unwrap_or(peer.down_since)),
            transport: has_link(peer).then(|| peer.over()),
            transport_detail: peer.link.as_ref().and_then(Link::detail),
            transport_reasons: match has_link(peer) {
                true => peer.choice.reasons(self.network.transports(), now),
                false => String::new(),
            },
            fallback: peer.choice.trouble().filter(|_| has_link(peer)),
            transport_failures: peer.choice.failures,
            security: peer.node.map(|node| self.network.security_of(node)),
            up_for: peer.up_since.map(|since| now.saturating_sub(since)),
            ups: peer.ups,
            downs: peer.downs,
            trouble: peer.trouble.clone(),
            last_end: peer.last_end.clone(),
            round_trip: peer.control.as_ref().and_then(|stream| {
                let time = stream.control.round_trip()?;
                Some(time.as_nanos() as Nanos)
            }),
            traffic: peer.traffic,
            rates: peer.rates,
        };
        self.peers.iter().map(peer).collect()
    }

    /// How it is with each peer.
    pub fn states(&self) -> Vec<PeerState> {
        self.peers.iter().map(state_of).collect()
    }

    fn outbound(&self, ring: &Outbound, now: Nanos) -> RingStatus {
        let released = ring.reader.released().position;
        let tail = ring.reader.tail().map_or(released, |tail| tail.position);
        let oldest = ring.ages.oldest(ring.delivered);
        RingStatus {
            ends: ring.ends,
            ring: ring.ring,
            peer: ring.peer,
            outbound: true,
            running: self.peers[ring.peer].session.may_send(ring.slot).is_some(),
            messages: ring.messages,
            bytes: ring.bytes,
            trouble: ring.trouble.clone(),
            capacity: ring.reader.ring().header().capacity,
            used: tail - released,
            lag: tail.saturating_sub(ring.delivered),
            oldest: oldest.map(|since| now.saturating_sub(since)),
            gaps: ring.gaps,
            lost_messages: ring.lost_messages,
        }
    }
}

/// One that has ended counts until it is known why: a moment later the connection has ended, too.
fn has_link<N: Network>(peer: &Peer<N>) -> bool {
    peer.link.is_some() || peer.lost.is_some()
}

fn state_of<N: Network>(peer: &Peer<N>) -> PeerState {
    match (has_link(peer), &peer.control) {
        (true, _) => PeerState::Connected,
        (false, Some(_)) => PeerState::Connecting,
        (false, None) if peer.unused => PeerState::Unused,
        (false, None) => PeerState::Disconnected,
    }
}

fn inbound(ring: &Inbound, now: Nanos) -> RingStatus {
    let tail = ring.writer.as_ref().map(|writer| writer.tail().position);
    let unread = tail.map_or(0, |tail| tail.saturating_sub(ring.consumed));
    let oldest = ring.ages.oldest(ring.consumed).filter(|_| unread > 0);
    RingStatus {
        ends: ring.ends,
        ring: ring.ring,
        peer: ring.peer,
        outbound: false,
        running: ring.is_running(),
        messages: ring.messages,
        bytes: ring.bytes,
        trouble: ring.trouble.clone(),
        capacity: ring.capacity,
        used: unread,
        lag: unread,
        oldest: oldest.map(|since| now.saturating_sub(since)),
        gaps: ring.gaps,
        lost_messages: ring.lost_messages,
    }
}
