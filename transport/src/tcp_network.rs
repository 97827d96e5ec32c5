//! The network that is there: TCP connections, in clear within one host, with TLS beyond it; one listening port for control
//! connections and links alike.

use crate::door::{Arrival, Door};
use crate::link::AnyLink;
use crate::link::socket::Socket;
use crate::link::tcp::TcpLink;
use crate::network::{Control, Guard, Network};
use crate::tls::{Credentials, Tls};
use crate::ucx_network::{self, UcxDoor};
use crate::verbs_network::{self, Request, Seeker, VerbsDoor};
use crate::wire::{Hello, TRANSPORT_TCP, TRANSPORT_TLS, TRANSPORT_UCX, TRANSPORT_VERBS, Token};
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tbus::grm::{RelayEndpoint, Transport};
use tracing::{info, warn};

/// Bytes read from a control connection at a time: few, for they are cleared before, and mostly in vain.
const READ: usize = 1 << 10;
/// So many times in a row.
const READS: usize = 16;
/// Links that are turned away are told of as often.
const TOLD: Duration = Duration::from_secs(1);
/// UCX is waited for so long by a relay that has no connection yet; less than those wait that greet it.
const UCX_AT_FIRST: Duration = Duration::from_millis(1500);

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
    /// What it is dialled with; `None`: in clear.
    credentials: Option<Arc<Credentials>>,
}

#[derive(Debug)]
enum State {
    /// The host's name is being looked up.
    Resolving(mpsc::Receiver<io::Result<SocketAddr>>),
    Connected(Socket),
    Failed(String),
}

impl TcpControl {
    fn connect(address: io::Result<SocketAddr>, credentials: Option<&Credentials>) -> State {
        match address.and_then(|address| connect(address, credentials, None)) {
            Ok(socket) => State::Connected(socket),
            Err(e) => State::Failed(e.to_string()),
        }
    }

    fn has_tls(&self) -> bool {
        self.socket().is_some_and(|socket| socket.tls().is_some())
    }

    /// The names in the certificate that the other end has shown.
    fn names(&self) -> &[String] {
        names_of(self.socket())
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
                Ok(address) => {
                    self.state = Self::connect(address, self.credentials.as_deref());
                }
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
        // Some frames at a time are enough: what is not read keeps the peer from sending more.
        let mut bytes = [0; READ];
        for _ in 0..READS {
            match socket.receive(&mut bytes) {
                Ok(n) => {
                    received.extend_from_slice(&bytes[..n]);
                    any = true;
                    if n < READ {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => break,
                // What came before the end is heard first.
                Err(e) if !any => return Err(self.failure.take().unwrap_or_else(|| e.to_string())),
                Err(_) => break,
            }
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

    fn round_trip(&self) -> Option<Duration> {
        self.socket()?.round_trip()
    }
}

/// The names that the other end of a connection has shown.
fn names_of(socket: Option<&Socket>) -> &[String] {
    let tls = socket.and_then(Socket::tls);
    tls.map_or(&[], |tls| tls.names())
}

/// Connections in clear never leave this host.
fn refuse_to_leave(ip: IpAddr) -> io::Result<()> {
    match ip.to_canonical().is_loopback() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{ip} can be reached from other hosts, and security 'none' must not be; give an address of this host alone, \
                 such as 127.0.0.1, or security = \"encrypt\""
            ),
        )),
    }
}

fn connect(
    address: SocketAddr,
    credentials: Option<&Credentials>,
    expected: Option<Vec<String>>,
) -> io::Result<Socket> {
    let Some(credentials) = credentials else {
        refuse_to_leave(address.ip())?;
        return Socket::connect(address);
    };
    let session = credentials
        .client(address.ip(), expected)
        .map_err(io::Error::other)?;
    let mut socket = Socket::connect(address)?;
    socket.secure(session);
    Ok(socket)
}

/// See the module.
#[derive(Debug)]
pub struct TcpNetwork {
    door: Door,
    guard: Guard,
    local: Vec<SocketAddr>,
    controls: VecDeque<TcpControl>,
    links: VecDeque<(Token, TcpLink)>,
    /// None: there is no RDMA, or it is not wanted.
    verbs: Option<VerbsDoor>,
    /// It is wanted, and there is none now.
    seeker: Option<Seeker<verbs_network::Found>>,
    /// None: there is no UCX, or it is not wanted.
    ucx: Option<UcxDoor>,
    /// It is wanted, and there is none now.
    ucx_seeker: Option<Seeker<ucx_network::Found>>,
    /// Opens it.
    ucx_opens: fn(IpAddr) -> Result<ucx_network::Found, String>,
    /// There was no connection yet, so nobody waits for anything.
    is_new: bool,
    /// When it was last said that a link was turned away.
    turned_away: Option<Instant>,
}

impl TcpNetwork {
    /// Listens at `address`, in clear and without making sure of anybody: an address of this host alone. `local` are further
    /// endpoints under which routes name this relay.
    pub fn listen(address: SocketAddr, local: &[RelayEndpoint]) -> io::Result<TcpNetwork> {
        refuse_to_leave(address.ip())?;
        Self::guarded(address, local, Guard::Loopback)
    }

    /// Listens at `address`, and dials, with TLS.
    pub fn listen_with(
        address: SocketAddr,
        local: &[RelayEndpoint],
        tls: impl Into<Arc<Tls>>,
    ) -> io::Result<TcpNetwork> {
        Self::guarded(address, local, Guard::Tls(tls.into()))
    }

    fn guarded(
        address: SocketAddr,
        local: &[RelayEndpoint],
        guard: Guard,
    ) -> io::Result<TcpNetwork> {
        let listener = TcpListener::bind(address)?;
        let mut known = vec![listener.local_addr()?];
        for endpoint in local {
            known.extend((endpoint.host.as_str(), endpoint.port).to_socket_addrs()?);
        }
        Ok(TcpNetwork {
            door: Door::open(listener, guard.clone())?,
            guard,
            local: known,
            controls: VecDeque::new(),
            links: VecDeque::new(),
            verbs: None,
            seeker: None,
            ucx: None,
            ucx_seeker: None,
            ucx_opens: UcxDoor::open,
            is_new: true,
            turned_away: None,
        })
    }

    /// Offers RDMA from now on, and takes it where it is offered. Else why there is none; TCP serves all the same, and RDMA as
    /// soon as there is some. The names of the devices.
    pub fn open_verbs(&mut self) -> Result<Vec<String>, String> {
        let ip = self.local[0].ip();
        let found = VerbsDoor::open(ip);
        let (door, devices) =
            found.inspect_err(|_| self.seeker = Some(Seeker::new(ip, VerbsDoor::open)))?;
        self.verbs = Some(door);
        Ok(devices)
    }

    /// The same with UCX: its version, and the names of the devices. A relay does so by itself where a route names UCX, and without
    /// waiting for it.
    pub fn open_ucx(&mut self) -> Result<(String, Vec<String>), String> {
        let ip = self.local[0].ip();
        let found = (self.ucx_opens)(ip);
        let (door, version, devices) =
            found.inspect_err(|_| self.ucx_seeker = Some(Seeker::new(ip, self.ucx_opens)))?;
        self.ucx = Some(door);
        Ok((version, devices))
    }

    /// UCX was looked for.
    fn take_ucx(&mut self, found: Result<ucx_network::Found, String>) {
        match found {
            Ok((door, version, devices)) => {
                let devices = devices.join(", ");
                info!(version, devices, "UCX is offered from now on");
                (self.ucx, self.ucx_seeker) = (Some(door), None);
            }
            Err(why) => info!("UCX is {why}"),
        }
    }

    /// Devices come and go.
    fn look_for_devices(&mut self) {
        let ip = self.local[0].ip();
        if self.verbs.as_ref().is_some_and(VerbsDoor::is_over) {
            warn!("the RDMA device has gone; TCP serves until there is one again");
            self.verbs = None;
            self.seeker = Some(Seeker::of_gone(ip, VerbsDoor::open));
            // It knows the devices of its beginning, and keeps them.
            if self.ucx.take().is_some() {
                self.ucx_seeker = Some(Seeker::of_gone(ip, self.ucx_opens));
            }
        }
        if let Some(Ok((door, devices))) = self.seeker.as_mut().and_then(Seeker::look) {
            info!(devices = devices.join(", "), "RDMA is offered from now on");
            (self.verbs, self.seeker) = (Some(door), None);
        }
        if let Some(found) = self.ucx_seeker.as_mut().and_then(Seeker::look) {
            self.take_ucx(found);
        }
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
        fds.push(PollFd::new(self.door.bell(), PollFlags::POLLIN));
        let verbs = self.verbs.iter().flat_map(VerbsDoor::fds);
        fds.extend(verbs.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let mut timeout = timeout;
        if let Some(ucx) = &self.ucx {
            fds.push(PollFd::new(ucx.fd(), PollFlags::POLLIN));
            if !ucx.arm() {
                timeout = Duration::ZERO;
            }
        }
        let polled = ppoll(&mut fds, Some(timeout.into()), None);
        self.door.heard();
        if let Some(verbs) = &self.verbs {
            verbs.look_soon();
        }
        if let Some(ucx) = &self.ucx {
            ucx.look_soon();
        }
        match polled {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes in whoever has said what it is.
    fn look(&mut self) {
        while let Some(arrival) = self.door.next() {
            match arrival {
                Arrival::Link(token, socket) => {
                    self.links.push_back((token, TcpLink::accepted(socket)));
                }
                Arrival::Control {
                    socket,
                    name,
                    first,
                } => self.controls.push_back(TcpControl {
                    state: State::Connected(socket),
                    name,
                    unsent: Vec::new(),
                    failure: None,
                    first,
                    credentials: None,
                }),
            }
        }
    }

    fn credentials(&self) -> Option<Arc<Credentials>> {
        match &self.guard {
            Guard::Loopback => None,
            Guard::Tls(tls) => Some(tls.credentials()),
        }
    }
}

/// An address of this host at which relays can offer RDMA, and the device that has it.
pub fn rdma_address() -> Result<(IpAddr, String), String> {
    let mut why = String::from("this host has no address");
    for interface in getifaddrs().map_err(|e| format!("getifaddrs: {e}"))? {
        let Some(address) = interface.address else {
            continue;
        };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            // What needs a scope besides is no endpoint.
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        match VerbsDoor::open(ip) {
            Ok((door, _)) => return Ok((ip, door.device().unwrap_or_default())),
            Err(other) => why = format!("{ip}: {other}"),
        }
    }
    Err(format!(
        "no address of this host leads to an RDMA device; {why}"
    ))
}

/// Whether UCX can be offered at an address of this host; else why not.
pub fn probe_ucx(ip: IpAddr) -> Result<(), String> {
    UcxDoor::open(ip).map(drop)
}

/// What another relay makes: a link, or over RDMA a request for one.
#[derive(Debug)]
pub enum Arrived {
    /// A link over TCP.
    Tcp(Box<TcpLink>),
    /// A request, which is to be answered.
    Verbs(Request),
    /// The same over UCX.
    Ucx(ucx_network::Request),
}

/// "over TCP" and so on.
pub(crate) fn word(transport: u8) -> &'static str {
    match transport {
        TRANSPORT_TLS => "with TLS",
        TRANSPORT_VERBS => "by RDMA",
        TRANSPORT_UCX => "over UCX",
        _ => "in clear",
    }
}

fn tcp_belongs(link: &TcpLink, control: &TcpControl, transport: u8) -> Result<(), String> {
    if matches!(transport, TRANSPORT_VERBS | TRANSPORT_UCX) {
        return Err(format!(
            "the link is over TCP, and was offered {}",
            word(transport)
        ));
    }
    let tls = link.socket().tls();
    match (transport == TRANSPORT_TLS, tls) {
        (true, None) => Err("the link is in clear, and was offered with TLS".into()),
        (false, Some(_)) => Err("the link has TLS, and was offered in clear".into()),
        (true, Some(tls)) if tls.names() != control.names() => Err(format!(
            "the link's certificate is for {}, and that of the control connection for {}",
            tls.names().join(", "),
            control.names().join(", ")
        )),
        _ => Ok(()),
    }
}

impl Network for TcpNetwork {
    type Control = TcpControl;
    type Link = AnyLink;
    type Arrival = Arrived;

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

    fn want(&mut self, transport: Transport) {
        // It takes memory and threads of its own accord, so only where it is asked for.
        if transport == Transport::Ucx && self.ucx.is_none() && self.ucx_seeker.is_none() {
            let ip = self.local[0].ip();
            let seeker = self.ucx_seeker.insert(Seeker::at_once(ip, self.ucx_opens));
            // What comes late is tried beside what serves, and then the relays connect anew: a relay that begins spares itself that.
            if self.is_new
                && let Some(found) = seeker.wait(UCX_AT_FIRST)
            {
                self.take_ucx(found);
            }
        }
    }

    fn transports(&self) -> u64 {
        let tls = match self.guard {
            Guard::Loopback => 0,
            Guard::Tls(_) => TRANSPORT_TLS,
        };
        let verbs = self.verbs.as_ref().map_or(0, |_| TRANSPORT_VERBS);
        let ucx = self.ucx.as_ref().map_or(0, |_| TRANSPORT_UCX);
        (TRANSPORT_TCP | tls | verbs | ucx).into()
    }

    fn admit(&self, control: &TcpControl, hello: &Hello) -> Result<u8, String> {
        match &self.guard {
            Guard::Loopback => Ok(TRANSPORT_TCP),
            Guard::Tls(tls) => tls.trust().admit(control.names(), hello),
        }
    }

    fn place(&self, node: u32, endpoint: &str) -> Result<(), String> {
        match &self.guard {
            Guard::Loopback => Ok(()),
            Guard::Tls(tls) => tls.trust().place(node, endpoint),
        }
    }

    fn belongs(&self, link: &Arrived, control: &TcpControl, transport: u8) -> Result<(), String> {
        let (is, ip) = match link {
            Arrived::Tcp(link) => return tcp_belongs(link, control, transport),
            Arrived::Verbs(request) => (TRANSPORT_VERBS, request.peer_ip()),
            Arrived::Ucx(request) => (TRANSPORT_UCX, Some(request.peer_ip())),
        };
        if is != transport {
            return Err(format!("the link is {}, which was not offered", word(is)));
        }
        // It comes without a name of its own: the token is all that it shows, and from where.
        let peer = control.socket().and_then(|socket| socket.peer().ok());
        let peer = peer.map(|address| address.ip().to_canonical());
        let ip = ip.map(|ip| ip.to_canonical());
        match ip == peer {
            true => Ok(()),
            false => Err(format!(
                "the link comes from {}, and the control connection from {}",
                ip.map_or("nowhere".into(), |ip| ip.to_string()),
                peer.map_or("nowhere".into(), |ip| ip.to_string()),
            )),
        }
    }

    fn turn_away(&mut self, link: Arrived, why: &str) {
        self.door.count_refusal();
        // Anybody can make such links, so they must not make a flood of lines in the thread that moves data.
        if self.turned_away.is_some_and(|last| last.elapsed() < TOLD) {
            return;
        }
        self.turned_away = Some(Instant::now());
        let from = match &link {
            Arrived::Tcp(link) => link.socket().peer().map(|address| address.to_string()),
            Arrived::Verbs(_) => Ok("RDMA".into()),
            Arrived::Ucx(_) => Ok("UCX".into()),
        };
        warn!(from = from.unwrap_or_default(), "a link is refused: {why}");
    }

    fn security_of(&self, node: u32) -> &'static str {
        match &self.guard {
            Guard::Loopback => "none",
            Guard::Tls(tls) => tls.trust().security_of(node).name(),
        }
    }

    fn refused(&self) -> u64 {
        self.door.refused()
    }

    fn warning(&self) -> Option<String> {
        match &self.guard {
            Guard::Loopback => None,
            Guard::Tls(tls) => tls.warning(),
        }
    }

    fn dial(&mut self, endpoint: &RelayEndpoint) -> TcpControl {
        self.is_new = false;
        let credentials = self.credentials();
        let state = match endpoint.host.parse::<IpAddr>() {
            Ok(ip) => {
                let address = SocketAddr::new(ip, endpoint.port);
                TcpControl::connect(Ok(address), credentials.as_deref())
            }
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
            credentials,
        }
    }

    fn accept(&mut self) -> Option<TcpControl> {
        self.look();
        let control = self.controls.pop_front()?;
        self.is_new = false;
        Some(control)
    }

    fn connect_link(
        &mut self,
        control: &TcpControl,
        transport: u8,
        port: u16,
        token: Token,
    ) -> Result<Option<AnyLink>, String> {
        let at_peer = || {
            let socket = control.socket().ok_or("the control connection is gone")?;
            let mut address = socket.peer().map_err(|e| e.to_string())?;
            address.set_port(port);
            Ok::<_, String>(address)
        };
        let tls = match (transport, &mut self.verbs, &mut self.ucx) {
            (TRANSPORT_TCP, ..) => None,
            (TRANSPORT_TLS, ..) if control.has_tls() => self.credentials(),
            (TRANSPORT_VERBS, Some(verbs), _) => {
                return verbs.dial(at_peer()?, token).map(|()| None);
            }
            (TRANSPORT_UCX, _, Some(ucx)) => {
                return ucx.dial(at_peer()?, token).map(|()| None);
            }
            _ => {
                return Err(format!(
                    "the peer offers transport {transport}, which this relay does not have"
                ));
            }
        };
        let connect_to = || {
            let socket = control.socket().ok_or(io::ErrorKind::NotConnected)?;
            let mut address = socket.peer()?;
            if port != 0 {
                address.set_port(port);
            }
            match &tls {
                // Where the control connection leads, its data may go in clear.
                None => Socket::connect(address),
                Some(tls) => connect(address, Some(tls), Some(control.names().to_vec())),
            }
        };
        let socket = connect_to().map_err(|e| format!("the link could not be made: {e}"))?;
        let link = TcpLink::connecting(socket, token);
        Ok(Some(AnyLink::Tcp(Box::new(link))))
    }

    fn dialled_link(&mut self) -> Option<(Token, Result<AnyLink, String>)> {
        if let Some((token, link)) = self.verbs.as_mut().and_then(VerbsDoor::dialled) {
            return Some((token, link.map(|link| AnyLink::Verbs(Box::new(link)))));
        }
        let (token, link) = self.ucx.as_mut()?.dialled()?;
        Some((token, link.map(|link| AnyLink::Ucx(Box::new(link)))))
    }

    fn port_of(&self, transport: u8) -> u16 {
        match (&self.verbs, &self.ucx, transport) {
            (Some(verbs), _, TRANSPORT_VERBS) => verbs.port(),
            (_, Some(ucx), TRANSPORT_UCX) => ucx.port(),
            _ => 0,
        }
    }

    fn expect(&mut self, control: &TcpControl, transport: u8, token: Token) {
        if transport == TRANSPORT_UCX
            && let Some(ucx) = &mut self.ucx
            && let Some(peer) = control.socket().and_then(|socket| socket.peer().ok())
        {
            ucx.expect(peer.ip(), token);
        }
    }

    fn accept_link(&mut self) -> Option<(Token, Arrived)> {
        if let Some((token, link)) = self.links.pop_front() {
            return Some((token, Arrived::Tcp(Box::new(link))));
        }
        self.look_for_devices();
        if let Some((token, request)) = self.verbs.as_mut().and_then(VerbsDoor::request) {
            return Some((token, Arrived::Verbs(request)));
        }
        let (token, request) = self.ucx.as_mut()?.request()?;
        Some((token, Arrived::Ucx(request)))
    }

    fn give_up(&mut self, token: Token) {
        if let Some(verbs) = &mut self.verbs {
            verbs.give_up(token);
        }
        if let Some(ucx) = &mut self.ucx {
            ucx.give_up(token);
        }
    }

    fn welcome(&mut self, link: Arrived) -> Result<AnyLink, String> {
        match link {
            Arrived::Tcp(link) => Ok(AnyLink::Tcp(link)),
            Arrived::Verbs(request) => {
                let link = request.accept()?;
                Ok(AnyLink::Verbs(Box::new(link)))
            }
            Arrived::Ucx(request) => {
                let link = request.accept()?;
                Ok(AnyLink::Ucx(Box::new(link)))
            }
        }
    }
}

/// True if a socket can be bound to `ip` here.
fn is_of_this_host(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(_: IpAddr) -> Result<ucx_network::Found, String> {
        std::thread::sleep(3 * UCX_AT_FIRST);
        Err("unavailable: it was only looked for".into())
    }

    #[test]
    fn ucx_is_not_waited_for_but_at_first_and_not_for_long() {
        let listen = || {
            let mut network = TcpNetwork::listen("127.0.0.1:0".parse().unwrap(), &[]).unwrap();
            network.ucx_opens = slow;
            network
        };
        let want = |network: &mut TcpNetwork| {
            let begun = Instant::now();
            network.want(Transport::Ucx);
            assert_eq!(network.transports(), u64::from(TRANSPORT_TCP));
            assert!(network.ucx_seeker.is_some());
            begun.elapsed()
        };
        let mut network = listen();
        let first = want(&mut network);
        assert!(
            first >= UCX_AT_FIRST && first < 2 * UCX_AT_FIRST,
            "{first:?}"
        );
        // Each route that names it wants it.
        let again = want(&mut network);
        assert!(again < UCX_AT_FIRST / 2, "{again:?}");

        // With a peer, whose messages are not to wait.
        let (mut network, other) = (listen(), listen());
        let address = other.address();
        let endpoint = RelayEndpoint {
            host: address.ip().to_string(),
            port: address.port(),
        };
        let _control = network.dial(&endpoint);
        let time = want(&mut network);
        assert!(time < UCX_AT_FIRST / 2, "{time:?}");
        // And not given up.
        network.look_for_devices();
        assert!(network.ucx_seeker.is_some());
    }
}
