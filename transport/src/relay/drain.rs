//! The end of a relay in good order: what applications sent before it reaches the other hosts, as far as they are there.

use super::Relay;
use crate::network::Network;

/// Looks at a ring's tail.
const LOOKS: usize = 8;

/// What a ring still has for its peer when a relay ends. It stays in the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remainder {
    /// Both ends of the channel.
    pub channel: String,
    /// Where the peer is reached.
    pub peer: String,
    /// Messages that the peer has not acknowledged, those that came after the drain began among them; `None` if they
    /// cannot be counted.
    pub messages: Option<u64>,
    /// Their bytes with headers.
    pub bytes: u64,
}

impl<N: Network> Relay<N> {
    /// From now on neither peers nor changes of the maps are followed, and only what is in the rings by now is waited for,
    /// see [`Relay::is_drained`].
    pub fn drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        let tails = self.rings.out.iter().map(|ring| {
            let Some(ring) = ring else { return 0 };
            // One that moves all the time may not stand still for a look.
            let looks = (0..LOOKS).filter_map(|_| ring.reader.tail().ok());
            looks.map(|tail| tail.position).max().unwrap_or(0)
        });
        self.draining = Some(tails.collect());
    }

    /// True if the peers that are connected have acknowledged all that was in their rings when the drain began.
    pub fn is_drained(&self) -> bool {
        let Some(tails) = &self.draining else {
            return false;
        };
        self.rings.out.iter().zip(tails).all(|(ring, tail)| {
            ring.as_ref().is_none_or(|ring| {
                // A peer that is away does not come back to this relay, nor does a ring that was given up.
                ring.delivered >= *tail
                    || self.peers[ring.peer].control.is_none()
                    || ring.trouble.is_some()
            })
        })
    }

    /// The rings with bytes that their peers have not acknowledged.
    pub fn remainders(&self) -> Vec<Remainder> {
        let rings = self.rings.out.iter().flatten();
        rings
            .filter_map(|ring| {
                let tail = ring.reader.tail().ok()?;
                let bytes = tail.position.checked_sub(ring.delivered)?;
                let delivered = ring.reader.walk(ring.reader.released(), ring.delivered);
                (bytes > 0).then(|| Remainder {
                    channel: ring.name.clone(),
                    peer: self.peers[ring.peer].name(),
                    messages: delivered
                        .ok()
                        .and_then(|at| tail.sequence.checked_sub(at.sequence)),
                    bytes,
                })
            })
            .collect()
    }
}
