//! What a relay needs of the world besides rings: connections. [`crate::tcp_network::TcpNetwork`] is the real one; the
//! simulator has its own.

use crate::link::Link;
use crate::tls::Tls;
use crate::wire::{Hello, TRANSPORT_TCP, Token};
use std::sync::Arc;
use std::time::Duration;
use tbus::grm::{RelayEndpoint, Transport};

/// Who gets in, and how sure it is who that is.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Anybody of this host, in clear.
    Loopback,
    /// Who shows a certificate.
    Tls(Arc<Tls>),
}

/// A reliable stream of bytes to another relay. Never blocks.
pub trait Control {
    /// Sends `bytes`, keeping what the transport does not take at once.
    fn send(&mut self, bytes: &[u8]);

    /// Goes on sending, and appends what has come to `received`. True if anything came. An error is the end.
    fn poll(&mut self, received: &mut Vec<u8>) -> Result<bool, String>;

    /// Bytes that are kept for sending.
    fn unsent(&self) -> usize;

    /// Who is at the other end, for logs.
    fn name(&self) -> String;

    /// How long it is there and back at the least, as far as the transport knows.
    fn round_trip(&self) -> Option<Duration> {
        None
    }
}

/// Makes connections. Never blocks.
pub trait Network {
    /// Control connections.
    type Control: Control;
    /// Links.
    type Link: Link;
    /// What another relay makes, before it is a link.
    type Arrival;

    /// Random bits that nobody can guess.
    fn random(&mut self) -> u64;

    /// A route names it: it is to be had, if it can be.
    fn want(&mut self, _transport: Transport) {}

    /// The transports for HELLO.
    fn transports(&self) -> u64 {
        TRANSPORT_TCP.into()
    }

    /// Whether the relay at the other end of `control` may be who it says, else why not; the transport of its link.
    fn admit(&self, _control: &Self::Control, _hello: &Hello) -> Result<u8, String> {
        Ok(TRANSPORT_TCP)
    }

    /// Whether a node that was admitted may be the relay at `endpoint`, else why not.
    fn place(&self, _node: u32, _endpoint: &str) -> Result<(), String> {
        Ok(())
    }

    /// Whether a link that showed the right token is what was offered over `control`, else why not.
    fn belongs(
        &self,
        _link: &Self::Arrival,
        _control: &Self::Control,
        _transport: u8,
    ) -> Result<(), String> {
        Ok(())
    }

    /// Closes a link that another relay made, and tells why.
    fn turn_away(&mut self, _link: Self::Arrival, _why: &str) {}

    /// Takes a link that another relay made.
    fn welcome(&mut self, link: Self::Arrival) -> Result<Self::Link, String>;

    /// How a node is made sure of, and its data kept from others, in one word.
    fn security_of(&self, _node: u32) -> &'static str {
        "none"
    }

    /// Connections that came to nothing.
    fn refused(&self) -> u64 {
        0
    }

    /// What an operator should know about the certificate, if anything.
    fn warning(&self) -> Option<String> {
        None
    }

    /// True if `endpoint` is where this relay itself listens.
    fn is_local(&self, endpoint: &RelayEndpoint) -> bool;

    /// Begins to connect to another relay. A failure shows at the first poll.
    fn dial(&mut self, endpoint: &RelayEndpoint) -> Self::Control;

    /// A connection that another relay made.
    fn accept(&mut self) -> Option<Self::Control>;

    /// Begins to make a link to the relay at the other end of `control`. `None`: it takes a while, see
    /// [`dialled_link`](Network::dialled_link).
    fn connect_link(
        &mut self,
        control: &Self::Control,
        transport: u8,
        port: u16,
        token: Token,
    ) -> Result<Option<Self::Link>, String>;

    /// What became of a link that [`connect_link`](Network::connect_link) began to make, by its token.
    fn dialled_link(&mut self) -> Option<(Token, Result<Self::Link, String>)> {
        None
    }

    /// At which port a transport is offered; 0: the one that is dialled.
    fn port_of(&self, _transport: u8) -> u16 {
        0
    }

    /// A link is offered over `control`: whoever is to make it comes from there, and shows this token.
    fn expect(&mut self, _control: &Self::Control, _transport: u8, _token: Token) {}

    /// Nobody waits any more for the link that was to be made with this token.
    fn give_up(&mut self, _token: Token) {}

    /// A link that another relay made, and the token that it showed.
    fn accept_link(&mut self) -> Option<(Token, Self::Arrival)>;
}
