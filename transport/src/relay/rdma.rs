//! When data goes by RDMA: both relays have it, the route prefers it, it need not be encrypted, and it has not just failed.

use super::{Nanos, Relay};
use crate::network::Network;
use crate::wire::{Goodbye, TRANSPORT_TCP, TRANSPORT_VERBS, Token};
use tbus::grm::Transport;
use tracing::warn;

/// After a failure TCP is offered for so long: first, and at most.
const PAUSE: std::ops::Range<Nanos> = 10_000_000_000..60_000_000_000;

/// A link that ends sooner has not served.
const SERVED: Nanos = 10_000_000_000;
/// So many of them in a row, and RDMA has failed: a greeting may pass where data do not.
const SHORT: u32 = 3;

/// RDMA with one peer.
#[derive(Debug)]
pub(super) struct Rdma {
    /// The route prefers it.
    pub wanted: bool,
    /// The link was offered by RDMA.
    used: bool,
    /// A link that is being made.
    pub dialled: Option<Token>,
    /// Something has come over the link.
    pub proved: bool,
    /// Links in a row that did not serve.
    short: u32,
    /// Not offered before then, and how long it is the next time.
    until: Nanos,
    pause: Nanos,
}

impl Default for Rdma {
    fn default() -> Rdma {
        Rdma {
            wanted: false,
            used: false,
            dialled: None,
            proved: false,
            short: 0,
            until: 0,
            pause: PAUSE.start,
        }
    }
}

impl Rdma {
    /// A link over this transport was offered.
    pub fn offered(&mut self, transport: u8) {
        (self.used, self.proved) = (transport == TRANSPORT_VERBS, false);
    }

    /// The connection has ended. What was being made for it, if anything.
    pub fn ended(&mut self) -> Option<Token> {
        self.used = false;
        self.dialled.take()
    }

    /// A link has ended that was up for so long. True if RDMA is to be taken as failed.
    fn has_failed(&mut self, up: Option<Nanos>) -> bool {
        if up.is_some_and(|up| up > SERVED) {
            (self.short, self.pause) = (0, PAUSE.start);
            return false;
        }
        self.short += 1;
        !self.proved || self.short >= SHORT
    }

    /// The link's transport, where data of TCP goes by `tcp`.
    pub fn transport(&self, tcp: u8) -> u8 {
        if self.used { TRANSPORT_VERBS } else { tcp }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        if self.used { "verbs" } else { "tcp" }
    }
}

/// True if a route names RDMA before TCP.
pub(super) fn is_preferred(transports: &[Transport]) -> bool {
    let at = |wanted| transports.iter().position(|t| *t == wanted);
    at(Transport::Verbs).is_some_and(|verbs| at(Transport::Tcp).is_none_or(|tcp| verbs < tcp))
}

impl<N: Network> Relay<N> {
    pub(super) fn may_use_verbs(&self, p: usize, now: Nanos) -> bool {
        let peer = &self.peers[p];
        let have = self.network.transports() & u64::from(TRANSPORT_VERBS) != 0;
        // What is to be encrypted goes with TLS.
        have && peer.rdma.wanted && peer.transport == TRANSPORT_TCP && now >= peer.rdma.until
    }

    /// The transport to offer, where data of TCP is to go by `tcp`.
    pub(super) fn offer(&mut self, p: usize, tcp: u8, capabilities: u64, now: Nanos) -> u8 {
        self.peers[p].transport = tcp;
        match capabilities & u64::from(TRANSPORT_VERBS) != 0 && self.may_use_verbs(p, now) {
            true => TRANSPORT_VERBS,
            false => tcp,
        }
    }

    /// A connection ends for a reason of the network, by whichever side's judgement.
    pub(super) fn link_failed(&mut self, p: usize, why: &str, now: Nanos) {
        let peer = &mut self.peers[p];
        let up = peer.up_since.map(|since| now - since);
        if peer.rdma.used && peer.rdma.has_failed(up) {
            self.verbs_failed(p, why, now);
        }
    }

    /// RDMA with a peer does not work, if it was used: TCP serves for a while.
    pub(super) fn verbs_failed(&mut self, p: usize, why: &str, now: Nanos) {
        let peer = &mut self.peers[p];
        if !peer.rdma.used || now < peer.rdma.until {
            return;
        }
        let pause = peer.rdma.pause;
        peer.rdma.until = now + pause;
        peer.rdma.pause = (2 * pause).min(PAUSE.end);
        peer.rdma.short = 0;
        let seconds = pause / 1_000_000_000;
        warn!(peer = %peer.name(), node = peer.node, "no RDMA for {seconds} s at least, but tcp: {why}");
    }

    /// What became of a link that this relay has asked for.
    pub(super) fn dialled_link(&mut self, token: Token, link: Result<N::Link, String>, now: Nanos) {
        // The connection that it was for may have ended.
        let of = |p: &usize| self.peers[*p].rdma.dialled == Some(token);
        let Some(p) = (0..self.peers.len()).find(of) else {
            return;
        };
        self.peers[p].rdma.dialled = None;
        match link {
            Ok(link) => self.link_up(p, link, now),
            Err(why) => self.down(p, Goodbye::Link, why, now),
        }
    }

    /// A ring's memory cannot be given to the card. TCP needs none, so it serves.
    pub(super) fn no_memory(&mut self, p: usize, why: String, now: Nanos) {
        self.verbs_failed(p, &why, now);
        self.down(p, Goodbye::Link, why, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_do_not_serve() {
        let mut rdma = Rdma::default();
        rdma.offered(TRANSPORT_VERBS);
        assert!(rdma.has_failed(None), "nothing has come");
        // A greeting has come each time, and then it ended.
        let mut rdma = Rdma::default();
        let mut greet = |up| {
            rdma.offered(TRANSPORT_VERBS);
            rdma.proved = true;
            rdma.has_failed(Some(up))
        };
        assert_eq!([1, 2].map(&mut greet), [false; 2]);
        assert!(!greet(SERVED + 1), "it has served");
        assert_eq!([1, 2, 3].map(&mut greet), [false, false, true]);
    }

    #[test]
    fn what_a_route_prefers() {
        use Transport::{Tcp, Ucx, Verbs};
        assert!(is_preferred(&[Verbs, Tcp]));
        assert!(is_preferred(&[Ucx, Verbs]));
        assert!(!is_preferred(&[Tcp, Verbs]));
        assert!(!is_preferred(&[Tcp]));
        assert!(!is_preferred(&[]));
    }
}
