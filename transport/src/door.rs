//! Where other relays knock: a thread that takes connections and finds out what they are. The relay's thread, on which data
//! moves, sees them only then; so whatever strangers do, they do it here.
//!
//! What a stranger can have: one of [`UNKNOWN`] places, for [`FIRST_FRAME`], and 64 KiB. When all places are taken, whoever
//! waits longest of the address with the most connections makes room for the next: a crowd from one address does not keep
//! another out.

use crate::link::socket::Socket;
use crate::network::Guard;
use crate::tls::is_record;
use crate::wire::{Frame, Goodbye, Token};
use nix::poll::{PollFd, PollFlags, ppoll};
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// A connection that has not said what it is so long after it was made is closed.
const FIRST_FRAME: Duration = Duration::from_secs(2);
/// Connections that have not said what they are.
const UNKNOWN: usize = 256;
/// Connections that are known and that the relay has not taken yet; more are closed.
const KNOWN: usize = 256;
/// Connections that are taken before those that are there have their turn.
const TURN: usize = 64;
/// Between two looks at the files of TLS.
const LOOK: Duration = Duration::from_secs(1);
/// Reads in a turn from who is refused and goes on sending.
const DISCARDS: usize = 16;
/// No connection is taken for so long after the system had nothing for it.
const PAUSE: Duration = Duration::from_millis(100);
/// Each reason for refusing an address is told once in this time.
const TOLD: Duration = Duration::from_secs(60);
/// And so many of them at most.
const MOST_TOLD: usize = 32;

/// A connection that has said what it is.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// With the bytes that were read.
    Control {
        socket: Socket,
        name: String,
        first: Vec<u8>,
    },
    /// With the token that it showed.
    Link(Token, Socket),
}

/// The relay's side.
#[derive(Debug)]
pub(crate) struct Door {
    arrivals: mpsc::Receiver<Arrival>,
    /// A byte comes for each arrival; it is closed for the thread's end.
    bell: UnixStream,
    refused: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    pub fn open(listener: TcpListener, guard: Guard) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        let (bell, button) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        button.set_nonblocking(true)?;
        let (sender, arrivals) = mpsc::sync_channel(KNOWN);
        let refused = Arc::new(AtomicU64::new(0));
        let porter = Porter {
            listener,
            guard,
            button,
            arrivals: sender,
            strangers: Vec::new(),
            refusals: Refusals::new(refused.clone()),
            paused: None,
        };
        let thread = std::thread::Builder::new()
            .name("tbus-door".into())
            .spawn(move || porter.run())?;
        Ok(Door {
            arrivals,
            bell,
            refused,
            thread: Some(thread),
        })
    }

    pub fn next(&self) -> Option<Arrival> {
        self.arrivals.try_recv().ok()
    }

    /// Can be read when somebody has arrived.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// What rang is heard.
    pub fn heard(&self) {
        while matches!((&self.bell).read(&mut [0; 64]), Ok(1..)) {}
    }

    /// Connections that came to nothing.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.bell.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Counts, and tells each thing once in a while: a flood of connections must not become one of lines.
#[derive(Debug)]
struct Refusals {
    count: Arc<AtomicU64>,
    said: HashSet<String>,
    since: Instant,
    untold: u64,
}

impl Refusals {
    fn new(count: Arc<AtomicU64>) -> Refusals {
        Refusals {
            count,
            said: HashSet::new(),
            since: Instant::now(),
            untold: 0,
        }
    }

    fn refuse(&mut self, address: IpAddr, why: &str) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.turn();
        let text = format!("{address}: {why}");
        if self.said.contains(&text) || self.said.len() >= MOST_TOLD {
            self.untold += 1;
            return;
        }
        warn!(from = %address, "a connection is refused: {why}");
        self.said.insert(text);
    }

    fn turn(&mut self) {
        if self.since.elapsed() < TOLD {
            return;
        }
        if self.untold > 0 {
            info!(
                "{} more connections were refused for reasons like those told",
                self.untold
            );
        }
        (self.since, self.untold) = (Instant::now(), 0);
        self.said.clear();
    }
}

/// A connection that another relay made, or somebody else, and that has not said what it is.
#[derive(Debug)]
struct Stranger {
    socket: Socket,
    address: SocketAddr,
    since: Instant,
    bytes: Vec<u8>,
    /// It is known whether it speaks TLS.
    begun: bool,
    /// It is refused, and only hears why: closed at once it might lose that.
    leaves: bool,
}

impl Stranger {
    fn leave(mut self, answer: &[u8]) -> Option<Stranger> {
        if !answer.is_empty() {
            let _ = self.socket.send(answer);
        }
        self.socket.finish();
        self.leaves = true;
        Some(self)
    }
}

/// The thread's side.
#[derive(Debug)]
struct Porter {
    listener: TcpListener,
    guard: Guard,
    button: UnixStream,
    arrivals: mpsc::SyncSender<Arrival>,
    /// Who came first is first.
    strangers: Vec<Stranger>,
    refusals: Refusals,
    paused: Option<Instant>,
}

impl Porter {
    /// The first frame of a link, which is the shortest first frame: of a longer one it is seen that it is another.
    const ATTACH: usize = crate::wire::FRAME_HEADER + 8 + 16;

    fn run(mut self) {
        let mut look_due = Instant::now();
        let mut warned = None;
        loop {
            let now = Instant::now();
            if let Guard::Tls(tls) = &self.guard
                && now >= look_due
            {
                look_due = now + LOOK;
                match tls.reload() {
                    None => {}
                    Some(Ok(new)) => info!(
                        until = crate::tls::date(new.until),
                        "new certificates are in use for new connections: {}",
                        new.names.join(", ")
                    ),
                    Some(Err(why)) => {
                        warn!("changed certificates are not used, the old ones stay: {why}")
                    }
                }
                let warning = tls.warning();
                if let Some(text) = &warning
                    && warned != warning
                {
                    warn!("{text}");
                }
                warned = warning;
            }
            if self.wait().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The relay's side is gone, and with it the listener goes.
            if matches!((&self.button).read(&mut [0]), Ok(0)) {
                return;
            }
            self.take_in();
            for stranger in std::mem::take(&mut self.strangers) {
                if let Some(stranger) = self.hear(stranger) {
                    self.strangers.push(stranger);
                }
            }
        }
    }

    /// Sleeps until there may be something to do.
    fn wait(&self) -> io::Result<()> {
        let mut timeout = LOOK;
        let mut fds = vec![PollFd::new(self.button.as_fd(), PollFlags::POLLIN)];
        match self.paused {
            Some(since) => timeout = PAUSE.saturating_sub(since.elapsed()),
            None => fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)),
        }
        for stranger in &self.strangers {
            timeout = timeout.min(FIRST_FRAME.saturating_sub(stranger.since.elapsed()));
            let write = stranger.socket.waits_to_write(false) && !stranger.leaves;
            let flags = if write {
                PollFlags::POLLOUT
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(
                stranger.socket.as_fd(),
                PollFlags::POLLIN | flags,
            ));
        }
        match ppoll(&mut fds, Some(timeout.into()), None) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take_in(&mut self) {
        if self.paused.is_some_and(|since| since.elapsed() < PAUSE) {
            return;
        }
        self.paused = None;
        for _ in 0..TURN {
            let (socket, address) = match Socket::accept(&self.listener) {
                Ok(new) => new,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR)) => {
                    continue;
                }
                Err(e) => {
                    warn!("no connection can be taken now: {e}; tried again");
                    self.paused = Some(Instant::now());
                    return;
                }
            };
            if self.strangers.len() >= UNKNOWN {
                self.make_room();
            }
            self.strangers.push(Stranger {
                socket,
                address,
                since: Instant::now(),
                bytes: Vec::new(),
                begun: false,
                leaves: false,
            });
        }
    }

    fn make_room(&mut self) {
        let mut counts = HashMap::new();
        for stranger in &self.strangers {
            *counts.entry(stranger.address.ip()).or_insert(0) += 1;
        }
        let Some((&most, _)) = counts.iter().max_by_key(|(_, count)| **count) else {
            return;
        };
        let first = self.strangers.iter().position(|s| s.address.ip() == most);
        let gone = self.strangers.remove(first.unwrap_or(0));
        if !gone.leaves {
            let why = format!("more than {UNKNOWN} connections that have not said what they are");
            self.refusals.refuse(most, &why);
        }
    }

    /// Hears a stranger; gives it back if it is still one.
    fn hear(&mut self, mut stranger: Stranger) -> Option<Stranger> {
        let late = stranger.since.elapsed() >= FIRST_FRAME;
        if stranger.leaves {
            // A few reads a turn: it may send as fast as this reads.
            let mut gone = late;
            for _ in 0..DISCARDS {
                match stranger.socket.discard() {
                    Ok(1..) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    _ => {
                        gone = true;
                        break;
                    }
                }
            }
            return (!gone).then_some(stranger);
        }
        let heard = self.read(&mut stranger);
        match heard {
            Ok(true) => self.arrive(stranger),
            Ok(false) if !late => Some(stranger),
            Ok(false) => {
                let tls = stranger
                    .socket
                    .tls()
                    .is_some_and(|tls| !tls.is_established());
                let what = if tls {
                    "TLS was not agreed"
                } else {
                    "it did not say what it is"
                };
                let why = format!("{what} within {} s", FIRST_FRAME.as_secs());
                self.refuse(stranger, &why, &[])
            }
            Err(Refusal { why, answer }) => self.refuse(stranger, &why, &answer),
        }
    }

    fn refuse(&mut self, stranger: Stranger, why: &str, answer: &[u8]) -> Option<Stranger> {
        self.refusals.refuse(stranger.address.ip(), why);
        stranger.leave(answer)
    }

    /// Reads the first frame as far as it has come. True if it is known what the connection is.
    fn read(&mut self, stranger: &mut Stranger) -> Result<bool, Refusal> {
        if !stranger.begun && !self.begin(stranger)? {
            return Ok(false);
        }
        loop {
            // An ATTACH is the link's first frame, and what follows it is the link's: not a byte more is read.
            let mut bytes = [0; Self::ATTACH];
            let wanted = Self::ATTACH - stranger.bytes.len();
            match stranger.socket.receive(&mut bytes[..wanted]) {
                Ok(n) => stranger.bytes.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(Refusal::silent(e.to_string())),
            }
            match Frame::decode(&stranger.bytes) {
                Ok(None) if stranger.bytes.len() < Self::ATTACH => {}
                _ => return Ok(true),
            }
        }
    }

    /// Learns from the first bytes whether it speaks TLS, and whether it should.
    fn begin(&mut self, stranger: &mut Stranger) -> Result<bool, Refusal> {
        // One byte decides: in clear only a HELLO with 242 to 245 bytes of names has such a length.
        let mut first = [0; 1];
        match stranger.socket.peek(&mut first) {
            Ok(0) => return Err(Refusal::silent("it was closed without a word".into())),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(Refusal::silent(e.to_string())),
        };
        match (&self.guard, is_record(&first)) {
            (Guard::Loopback, false) => {}
            (Guard::Loopback, true) => {
                return Err(Refusal::said(
                    "it speaks TLS, and this relay has security 'none'; give both the same",
                ));
            }
            (Guard::Tls(tls), true) => {
                let session = tls.credentials().server().map_err(Refusal::silent)?;
                stranger.socket.secure(session);
            }
            // Data in clear is for the relay to judge: it knows the token.
            (Guard::Tls(_), false) => {}
        }
        stranger.begun = true;
        Ok(true)
    }

    fn takes_clear(&self) -> bool {
        match &self.guard {
            Guard::Loopback => true,
            Guard::Tls(tls) => tls.trust().takes_clear(),
        }
    }

    /// It has said what it is.
    fn arrive(&mut self, stranger: Stranger) -> Option<Stranger> {
        let clear = stranger.socket.tls().is_none();
        let arrival = match Frame::decode(&stranger.bytes) {
            Ok(Some((Frame::Attach(token), _))) if !clear || self.takes_clear() => {
                Arrival::Link(token, stranger.socket)
            }
            _ if clear && matches!(self.guard, Guard::Tls(_)) => {
                let Refusal { why, answer } = Refusal::said(
                    "it speaks in clear, and this relay speaks TLS; give both the same security",
                );
                return self.refuse(stranger, &why, &answer);
            }
            // Any other first frame is longer, or wrong: the relay finds out.
            _ => Arrival::Control {
                socket: stranger.socket,
                name: stranger.address.to_string(),
                first: stranger.bytes,
            },
        };
        match self.arrivals.try_send(arrival) {
            Ok(()) => drop((&self.button).write(&[1])),
            Err(_) => {
                let why = format!("{KNOWN} connections wait for the relay already");
                self.refusals.refuse(stranger.address.ip(), &why);
            }
        }
        None
    }
}

/// Why a connection is refused, and what it is told in clear.
struct Refusal {
    why: String,
    answer: Vec<u8>,
}

impl Refusal {
    /// It hears nothing, or has heard it by TLS.
    fn silent(why: String) -> Refusal {
        Refusal {
            why,
            answer: Vec::new(),
        }
    }

    fn said(why: &str) -> Refusal {
        let mut answer = Vec::new();
        let bye = Frame::Bye {
            why: Goodbye::Security,
            text: format!("a connection is refused: {why}"),
        };
        bye.encode(&mut answer);
        Refusal {
            why: why.into(),
            answer,
        }
    }
}
