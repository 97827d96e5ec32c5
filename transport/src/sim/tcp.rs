//! The wire between two real TCP links: their bytes are held back, cut anywhere, or lost with the connection.

use super::{Host, Pipe, Process, State};
use crate::link::socket::Socket;
use crate::link::tcp::TcpLink;
use crate::session::Nanos;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// See the module.
#[derive(Debug)]
pub(super) struct TcpWire {
    /// The world's ends of both links' sockets; none once it is closed.
    sockets: [Option<UnixStream>; 2],
    /// From end 0, from end 1.
    pipes: [Pipe; 2],
    /// End 1, until it is accepted.
    waiting: Option<TcpLink>,
}

fn pair() -> (UnixStream, Socket) {
    let (outside, inside) = UnixStream::pair().expect("a socket pair");
    for socket in [&outside, &inside] {
        socket
            .set_nonblocking(true)
            .expect("sockets that do not block");
    }
    (outside, Socket::of(inside))
}

impl TcpWire {
    pub fn new() -> (TcpWire, TcpLink) {
        let ((first, one), (second, other)) = (pair(), pair());
        let wire = TcpWire {
            sockets: [Some(first), Some(second)],
            pipes: Default::default(),
            waiting: Some(TcpLink::accepted(other)),
        };
        (wire, TcpLink::accepted(one))
    }

    pub fn accepted(&mut self) -> Option<TcpLink> {
        self.waiting.take()
    }

    /// Takes what a link has sent.
    pub fn collect(&mut self, end: usize, state: &mut State) {
        let mut bytes = [0; 1 << 14];
        while let Some(socket) = &mut self.sockets[end] {
            match socket.read(&mut bytes) {
                Ok(0) => return self.pipes[end].end(state.arrival()),
                Ok(n) => self.send(end, &bytes[..n], state),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.pipes[end].end(state.arrival()),
            }
        }
    }

    /// In pieces of any size, so that a cut may come anywhere.
    fn send(&mut self, end: usize, mut bytes: &[u8], state: &mut State) {
        while !bytes.is_empty() {
            let most = bytes.len() as u64;
            let length = match state.random.chance(300) {
                true => 1 + state.random.below(most),
                false => most,
            };
            let (piece, rest) = bytes.split_at(length as usize);
            self.pipes[end].send(state.arrival(), piece);
            bytes = rest;
        }
    }

    pub fn due(&self) -> Option<Nanos> {
        self.pipes.iter().filter_map(Pipe::due).min()
    }

    /// True if nothing is left of it.
    pub fn advance(
        &mut self,
        hosts: [Host; 2],
        processes: [Option<Process>; 2],
        state: &mut State,
    ) -> bool {
        for end in 0..2 {
            let to = 1 - end;
            let (cut, again) = (state.is_cut(hosts[end], hosts[to]), state.again());
            let pipe = &mut self.pipes[end];
            if pipe.advance(state.now, cut, again) {
                state.wake(processes[to]);
            }
            let Some(socket) = &mut self.sockets[to] else {
                pipe.arrived.clear();
                continue;
            };
            while !pipe.arrived.is_empty() {
                match socket.write(&pipe.arrived) {
                    Ok(n) => drop(pipe.arrived.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => pipe.arrived.clear(),
                }
            }
            if pipe.ended && pipe.arrived.is_empty() {
                let _ = socket.shutdown(Shutdown::Write); // that it was closed already is as good
            }
        }
        processes == [None; 2] && self.due().is_none()
    }

    /// The link at `end` is gone; what it had sent may still arrive.
    pub fn close(&mut self, end: usize, state: &mut State) {
        self.collect(end, state);
        self.pipes[end].end(state.arrival());
        self.sockets[end] = None;
        if end == 1 {
            self.waiting = None;
        }
    }

    /// The connection fails at `end`; the other end may not learn of it.
    pub fn reset(&mut self, end: usize) {
        self.sockets[end] = None;
    }
}
