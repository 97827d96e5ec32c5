//! Whichever link a peer has.

use super::socket::Socket;
use super::tcp::TcpLink;
use super::ucx::UcxLink;
use super::verbs::VerbsLink;
use super::{Event, Link, Quiesced, Remote};
use crate::session::Nanos;
use crate::wire::Control;
use std::os::fd::{AsFd, BorrowedFd};
use tbus::Region;

/// A link over one of the transports.
#[derive(Debug)]
pub enum AnyLink {
    /// Over TCP, in clear or with TLS.
    Tcp(Box<TcpLink>),
    /// Over RDMA.
    Verbs(Box<VerbsLink>),
    /// Over UCX.
    Ucx(Box<UcxLink>),
}

/// What a relay that sleeps waits for on behalf of a link.
#[derive(Debug, Default)]
pub struct Waits<'a> {
    /// Wakes when one of them can be read.
    pub readable: Vec<BorrowedFd<'a>>,
    /// Wakes when one of them can be written.
    pub writable: Vec<BorrowedFd<'a>>,
}

impl<'a> Waits<'a> {
    /// Waits for what a socket brings, and if there is something unsent until it takes that.
    pub fn add(&mut self, socket: &'a Socket, has_unsent: bool) {
        self.readable.push(socket.as_fd());
        if socket.waits_to_write(has_unsent) {
            self.writable.push(socket.as_fd());
        }
    }
}

macro_rules! of_either {
    ($self:expr, $link:ident => $does:expr) => {
        match $self {
            AnyLink::Tcp($link) => $does,
            AnyLink::Verbs($link) => $does,
            AnyLink::Ucx($link) => $does,
        }
    };
}

impl AnyLink {
    /// To be called before each sleep. True if a last [`Link::poll`] is to follow.
    pub fn arm(&mut self) -> bool {
        match self {
            AnyLink::Tcp(_) => false,
            // UCX's worker is the network's to arm.
            AnyLink::Ucx(link) => link.look_before_sleep(),
            AnyLink::Verbs(link) => {
                link.arm();
                true
            }
        }
    }

    /// Adds what the link waits for. True if it has something already that no descriptor tells of.
    pub fn wait_for<'a>(&'a self, waits: &mut Waits<'a>) -> bool {
        match self {
            AnyLink::Tcp(link) => {
                waits.add(link.socket(), link.is_busy());
                link.socket().has_received()
            }
            AnyLink::Verbs(link) => {
                waits.readable.extend(link.fds());
                false
            }
            AnyLink::Ucx(link) => link.has_received(),
        }
    }

    /// True if what it did not accept waits for nothing that wakes.
    pub fn is_idle(&self) -> bool {
        match self {
            AnyLink::Tcp(link) => !link.is_busy(),
            AnyLink::Verbs(link) => link.is_idle(),
            AnyLink::Ucx(link) => link.is_idle(),
        }
    }
}

impl Link for AnyLink {
    fn attach_source(
        &mut self,
        slot: u32,
        source: Region,
        epoch: u64,
        remote: Remote,
    ) -> Result<(), String> {
        of_either!(self, link => link.attach_source(slot, source, epoch, remote))
    }

    fn attach_mirror(
        &mut self,
        slot: u32,
        mirror: Region,
        epoch: u64,
        tail: u64,
        room: u64,
    ) -> Result<Remote, String> {
        of_either!(self, link => link.attach_mirror(slot, mirror, epoch, tail, room))
    }

    fn set_room(&mut self, slot: u32, room: u64) {
        of_either!(self, link => link.set_room(slot, room));
    }

    fn detach_source(&mut self, slot: u32) {
        of_either!(self, link => link.detach_source(slot));
    }

    fn detach_mirror(&mut self, slot: u32) {
        of_either!(self, link => link.detach_mirror(slot));
    }

    fn append(&mut self, slot: u32, from: u64, to: u64) -> bool {
        of_either!(self, link => link.append(slot, from, to))
    }

    fn control(&mut self, control: Control) {
        of_either!(self, link => link.control(control));
    }

    fn kick(&mut self) {
        of_either!(self, link => link.kick());
    }

    fn poll(&mut self, budget: usize, events: &mut Vec<Event>) -> bool {
        of_either!(self, link => link.poll(budget, events))
    }

    fn is_busy(&self) -> bool {
        of_either!(self, link => link.is_busy())
    }

    fn patience(&self) -> Nanos {
        of_either!(self, link => link.patience())
    }

    fn detail(&self) -> Option<String> {
        of_either!(self, link => link.detail())
    }

    fn quiesce(self) -> Quiesced {
        of_either!(self, link => (*link).quiesce())
    }
}
