//! What a relay tells about itself.

use super::rings::{Inbound, Outbound};
use super::{Relay, Totals};
use crate::network::Network;
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

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Where it is reached.
    pub endpoint: String,
    /// Its node number, if it was ever heard.
    pub node: Option<u32>,
    /// The transport in use, while connected.
    pub transport: Option<&'static str>,
    /// "encrypt", "authenticate" or "none", if its number was ever heard.
    pub security: Option<&'static str>,
    /// For how long, nanoseconds.
    pub up_for: Option<Nanos>,
    /// How often it came up.
    pub ups: u64,
    /// How often it went down.
    pub downs: u64,
    /// Why it is not connected, or was not the last time.
    pub trouble: Option<String>,
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
}

impl<N: Network> Relay<N> {
    /// What there is to tell.
    pub fn status(&self, now: Nanos) -> Status {
        let peers = self.peers.iter().map(|peer| PeerStatus {
            endpoint: peer.name(),
            node: peer.node,
            transport: peer.link.is_some().then_some("tcp"),
            security: peer.node.map(|node| self.network.security_of(node)),
            up_for: peer.up_since.map(|since| now.saturating_sub(since)),
            ups: peer.ups,
            downs: peer.downs,
            trouble: peer.trouble.clone(),
        });
        let out = |ring: &Outbound| RingStatus {
            ends: ring.ends,
            ring: ring.ring,
            peer: ring.peer,
            outbound: true,
            running: self.peers[ring.peer].session.may_send(ring.slot).is_some(),
            messages: ring.messages,
            bytes: ring.bytes,
            trouble: ring.trouble.clone(),
        };
        let inn = |ring: &Inbound| RingStatus {
            ends: ring.ends,
            ring: ring.ring,
            peer: ring.peer,
            outbound: false,
            running: ring.slot.is_some(),
            messages: ring.messages,
            bytes: ring.bytes,
            trouble: ring.trouble.clone(),
        };
        Status {
            node: self.settings.node,
            cluster: self.settings.cluster.clone(),
            endpoint: self.settings.endpoint.clone(),
            peers: peers.collect(),
            rings: self
                .rings
                .out
                .iter()
                .flatten()
                .map(out)
                .chain(self.rings.inn.iter().flatten().map(inn))
                .collect(),
            totals: self.totals,
            refused: self.network.refused(),
            warning: self.network.warning(),
        }
    }
}
