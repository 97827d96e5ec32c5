//! What an operator should look at. An alarm is there as long as what it tells of; nothing keeps it afterwards but the gap,
//! which stays as long as the relay has that generation of the ring, for what is lost stays lost.

use std::time::Duration;
use tbus::Template;
use tbus_transport::relay::status::{PeerState, PeerStatus, RingStatus, Status};

/// From when on something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Percent of a ring.
    pub full: u64,
    /// Of the oldest message that nobody has taken.
    pub age: Duration,
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    PeerDown,
    RingGivenUp,
    RingUnserved,
    RingFull,
    MessageOld,
    Gap,
    Certificate,
    Transport,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::PeerDown,
        Kind::RingGivenUp,
        Kind::RingUnserved,
        Kind::RingFull,
        Kind::MessageOld,
        Kind::Gap,
        Kind::Certificate,
        Kind::Transport,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::PeerDown => "peer_down",
            Kind::RingGivenUp => "ring_given_up",
            Kind::RingUnserved => "ring_unserved",
            Kind::RingFull => "ring_full",
            Kind::MessageOld => "message_old",
            Kind::Gap => "gap",
            Kind::Certificate => "certificate",
            Kind::Transport => "transport",
        }
    }

    /// Messages do not go where they should. The others tell what applications do, or of the past, or of the future.
    pub fn is_unhealthy(self) -> bool {
        matches!(
            self,
            Kind::PeerDown | Kind::RingGivenUp | Kind::RingUnserved
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    pub kind: Kind,
    pub text: String,
}

pub(super) fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

/// All that there are now.
pub(super) fn alarms(status: &Status, template: &Template, limits: &Limits) -> Vec<Alarm> {
    let mut all: Vec<Alarm> = status.peers.iter().filter_map(of_peer).collect();
    for ring in &status.rings {
        of_ring(ring, status, template, limits, &mut all);
    }
    all.extend(status.unserved.iter().map(|text| Alarm {
        kind: Kind::RingUnserved,
        text: text.clone(),
    }));
    all.extend(status.warning.iter().map(|text| Alarm {
        kind: Kind::Certificate,
        text: text.clone(),
    }));
    all
}

fn of_peer(peer: &PeerStatus) -> Option<Alarm> {
    if let Some(text) = &peer.fallback {
        return Some(Alarm {
            kind: Kind::Transport,
            text: format!("peer {} is {text}", peer.endpoint),
        });
    }
    if !matches!(peer.state, PeerState::Disconnected | PeerState::Connecting) {
        return None;
    }
    let why = peer.trouble.as_deref().unwrap_or("nobody has answered yet");
    Some(Alarm {
        kind: Kind::PeerDown,
        text: format!(
            "peer {} is not connected for {} s: {why}",
            peer.endpoint,
            seconds(peer.since)
        ),
    })
}

fn of_ring(
    ring: &RingStatus,
    status: &Status,
    template: &Template,
    limits: &Limits,
    all: &mut Vec<Alarm>,
) {
    let name = || {
        let [from, to] = ring.ends.map(|end| template.show(end).to_string());
        format!("ring {from} to {to}")
    };
    let mut tell = |kind, text: String| {
        all.push(Alarm {
            kind,
            text: format!("{} {text}", name()),
        });
    };
    let is_connected = status.peers[ring.peer].state == PeerState::Connected;
    if let Some(trouble) = &ring.trouble
        && !ring.running
        && is_connected
    {
        tell(Kind::RingGivenUp, format!("is not mirrored: {trouble}"));
    }
    // Of what comes in it is the application that does not read; of what goes out, the peer.
    let whose = match ring.outbound {
        true => "the other host does not take it",
        false => "the application here does not read it",
    };
    let percent = 100 * u128::from(ring.used) / u128::from(ring.capacity.max(1));
    if percent >= u128::from(limits.full) {
        tell(Kind::RingFull, format!("is {percent} % full: {whose}"));
    }
    if let Some(age) = ring.oldest.map(Duration::from_nanos)
        && age >= limits.age
    {
        let (bytes, age) = (ring.lag, age.as_secs());
        let text = format!("has {bytes} bytes, the first for {age} s: {whose}");
        tell(Kind::MessageOld, text);
    }
    if ring.gaps > 0 {
        let (gaps, lost) = (ring.gaps, ring.lost_messages);
        let text = format!(
            "has lost {lost} messages in {gaps} gap(s) since this relay began; the log has the positions"
        );
        tell(Kind::Gap, text);
    }
}
