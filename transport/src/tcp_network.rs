//! The network that is there: TCP connections, one listening port for control connections and links alike.

use crate::link::socket::Socket;
use crate::link::tcp::TcpLink;
use crate::network::{Control, Network};
use crate::wire::{Frame, Token};
use nix::poll::{PollFd, PollFlags, ppoll};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tbus::grm::RelayEndpoint;

/// A connection that said nothing for so long after it was made is closed.
const FIRST_FRAME: Duration = Duration::from_secs(2);
/// Connections that have not said what they are: more are closed at once.
const UNKNOWN: usize = 256;
/// Bytes read from a control connection at a time.
const READ: usize = 1 << 14;

/// A control connection.
#[derive(Debug)]
pub struct TcpControl {
    state: State,
    name: String,
    unsent: Vec<u8>,
    /// Why sending failed, to be told.
    failure: Option<String>,
    /// Bytes that were read before it was known what the connection is.
    first: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// The host's name is being looked up.
    Resolving(mpsc::Receiver<io::Result<SocketAddr>>),
    Connected(Socket),
    Failed(String),
}

impl TcpControl {
    fn connect(address: io::Result<SocketAddr>) -> State {
        match address.and_then(Socket::connect) {
            Ok(socket) => State::Connected(socket),
            Err(e) => State::Failed(e.to_string()),
        }
    }

    /// The socket, once there is one.
    pub fn socket(&self) -> Option<&Socket> {
        match &self.state {
            State::Connected(socket) => Some(socket),
            _ => None,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let State::Connected(socket) = &mut self.state else {
            return Ok(());
        };
        while !self.unsent.is_empty() {
            match socket.send(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // Still connecting.
                Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Control for TcpControl {
    fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        // Told by the next poll: the kernel says only once why a connection was not made.
        if let Err(error) = self.flush() {
            self.failure.get_or_insert(error.to_string());
        }
    }

    fn poll(&mut self, received: &mut Vec<u8>) -> Result<bool, String> {
        if let State::Resolving(answer) = &self.state {
            match answer.try_recv() {
                Ok(address) => self.state = Self::connect(address),
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
                Err(e) => self.state = State::Failed(e.to_string()),
            }
        }
        // Why sending fails is told after what came: the peer may have said goodbye, and why.
        if let Err(error) = self.flush() {
            self.failure.get_or_insert(error.to_string());
        }
        let socket = match &mut self.state {
            State::Connected(socket) => socket,
            State::Failed(why) => return Err(why.clone()),
            State::Resolving(_) => return Ok(false),
        };
        let mut any = !self.first.is_empty();
        received.append(&mut self.first);
        // A frame at a time is enough: what is not read keeps the peer from sending more.
        let begin = received.len();
        received.resize(begin + READ, 0);
        let result = socket.receive(&mut received[begin..]);
        received.truncate(begin + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(_) => any = true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {}
            // What came before the end is heard first.
            Err(e) if !any => return Err(self.failure.take().unwrap_or_else(|| e.to_string())),
            Err(_) => {}
        }
        match self.failure.take_if(|_| !any) {
            Some(failure) => Err(failure),
            None => Ok(any),
        }
    }

    fn unsent(&self) -> usize {
        self.unsent.len()
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// A connection that another relay made and that has not said what it is.
#[derive(Debug)]
struct Unknown {
    socket: Socket,
    name: String,
    since: Instant,
    bytes: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct TcpNetwork {
    listener: TcpListener,
    local: Vec<SocketAddr>,
    unknown: Vec<Unknown>,
    controls: VecDeque<TcpControl>,
    links: VecDeque<(Token, TcpLink)>,
}

impl TcpNetwork {
    /// Listens at `address`. `local` are further endpoints under which routes name this relay.
    pub fn listen(address: SocketAddr, local: &[RelayEndpoint]) -> io::Result<TcpNetwork> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let mut known = vec![listener.local_addr()?];
        for endpoint in local {
            known.extend((endpoint.host.as_str(), endpoint.port).to_socket_addrs()?);
        }
        Ok(TcpNetwork {
            listener,
            local: known,
            unknown: Vec::new(),
            controls: VecDeque::new(),
            links: VecDeque::new(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.local[0]
    }

    /// Sleeps until one of `readable` can be read, one of `writable` can be written, somebody connects, or the time is up.
    pub fn sleep(
        &self,
        readable: &[BorrowedFd<'_>],
        writable: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> io::Result<()> {
        let mut fds: Vec<_> = readable
            .iter()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        fds.extend(
            writable
                .iter()
                .map(|fd| PollFd::new(*fd, PollFlags::POLLOUT)),
        );
        fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        fds.extend(
            self.unknown
                .iter()
                .map(|u| PollFd::new(u.socket.as_fd(), PollFlags::POLLIN)),
        );
        match ppoll(&mut fds, Some(timeout.into()), None) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes in new connections, and learns what those are that are there.
    fn look(&mut self) {
        while let Ok((socket, address)) = Socket::accept(&self.listener) {
            if self.unknown.len() < UNKNOWN {
                let unknown = Unknown {
                    socket,
                    name: address.to_string(),
                    since: Instant::now(),
                    bytes: Vec::new(),
                };
                self.unknown.push(unknown);
            }
        }
        for mut unknown in std::mem::take(&mut self.unknown) {
            // An ATTACH is the link's first frame, and what follows it is the link's: not a byte more is read.
            let attach = crate::wire::FRAME_HEADER + 8 + 16;
            let mut bytes = [0; 64];
            let wanted = attach - unknown.bytes.len();
            match unknown.socket.receive(&mut bytes[..wanted]) {
                Ok(n) => unknown.bytes.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if unknown.since.elapsed() < FIRST_FRAME {
                        self.unknown.push(unknown);
                    }
                    continue;
                }
                Err(_) => continue,
            }
            match Frame::decode(&unknown.bytes) {
                Ok(Some((Frame::Attach(token), _))) => {
                    self.links
                        .push_back((token, TcpLink::accepted(unknown.socket)));
                }
                // Any other first frame is longer, or wrong: the relay finds out.
                Ok(None) if unknown.bytes.len() < attach => self.unknown.push(unknown),
                _ => self.controls.push_back(TcpControl {
                    state: State::Connected(unknown.socket),
                    name: unknown.name,
                    unsent: Vec::new(),
                    failure: None,
                    first: unknown.bytes,
                }),
            }
        }
    }
}

impl Network for TcpNetwork {
    type Control = TcpControl;
    type Link = TcpLink;

    fn random(&mut self) -> u64 {
        tbus::random()
    }

    fn is_local(&self, endpoint: &RelayEndpoint) -> bool {
        let Ok(ip) = endpoint.host.parse::<IpAddr>() else {
            return false; // a name is one of those given to `listen`, or another host's
        };
        let address = SocketAddr::new(ip, endpoint.port);
        self.local.iter().any(|local| {
            *local == address
                || (local.ip().is_unspecified()
                    && local.port() == endpoint.port
                    && is_of_this_host(ip))
        })
    }

    fn dial(&mut self, endpoint: &RelayEndpoint) -> TcpControl {
        let state = match endpoint.host.parse::<IpAddr>() {
            Ok(ip) => TcpControl::connect(Ok(SocketAddr::new(ip, endpoint.port))),
            Err(_) => {
                // Looking up a name blocks, so a thread does it.
                let (sender, receiver) = mpsc::channel();
                let (host, port) = (endpoint.host.clone(), endpoint.port);
                std::thread::spawn(move || {
                    let found = (host.as_str(), port).to_socket_addrs().and_then(|mut all| {
                        all.next()
                            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host"))
                    });
                    let _ = sender.send(found);
                });
                State::Resolving(receiver)
            }
        };
        TcpControl {
            state,
            name: endpoint.to_string(),
            unsent: Vec::new(),
            failure: None,
            first: Vec::new(),
        }
    }

    fn accept(&mut self) -> Option<TcpControl> {
        self.look();
        self.controls.pop_front()
    }

    fn connect_link(
        &mut self,
        control: &TcpControl,
        transport: u8,
        port: u16,
        token: Token,
    ) -> Result<TcpLink, String> {
        if transport != 1 {
            return Err(format!(
                "the peer offers transport {transport}, which this relay does not have"
            ));
        }
        let connect = || {
            let socket = control.socket().ok_or(io::ErrorKind::NotConnected)?;
            let mut address = socket.peer()?;
            if port != 0 {
                address.set_port(port);
            }
            Socket::connect(address)
        };
        let socket = connect().map_err(|e| format!("the link could not be made: {e}"))?;
        Ok(TcpLink::connecting(socket, token))
    }

    fn accept_link(&mut self) -> Option<(Token, TcpLink)> {
        self.links.pop_front()
    }
}

/// True if a socket can be bound to `ip` here.
fn is_of_this_host(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}
