//! How links over RDMA are made: who listens, who asks and is asked.

use crate::link::verbs::{ESTABLISHED, VerbsLink};
use crate::wire::Token;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tbus_rdma_sys::{ConnectionId, Device, Error, EventChannel, EventKind, Verbs};
use tracing::debug;

/// Requests that wait in the kernel; anybody can make some.
const BACKLOG: u16 = 64;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// Requests that are heard at one look: anybody can make some, and each takes time of who moves data.
const TURN: u32 = 4;
/// A packet that is not acknowledged within 67 ms is sent again, seven times at most: a dead peer is seen in about a second.
const ACK_TIMEOUT: u8 = 14;
/// Between two looks for a device where there was none.
const SEEK: Duration = Duration::from_secs(5);
/// The first one after a device has gone, doubled each time up to the other.
const GONE: Duration = Duration::from_millis(400);
/// Memory that a link needs for itself at least.
const NEEDED: u64 = 1 << 17;

/// Who listens, and the names of the devices.
pub(crate) type Found = (VerbsDoor, Vec<String>);

/// Where other relays ask for links over RDMA; and what is asked of them.
#[derive(Debug)]
pub(crate) struct VerbsDoor {
    verbs: &'static Verbs,
    listener: ConnectionId,
    channel: EventChannel,
    dials: Vec<Dial>,
    /// Requests since the last look that found none, or enough.
    heard: u32,
    looked: Cell<Option<Instant>>,
    /// The device that has the address goes away, and waits for whatever there is of it here.
    goes: bool,
}

/// A link that another relay asks for. To drop it is to refuse.
#[derive(Debug)]
pub struct Request {
    verbs: &'static Verbs,
    id: ConnectionId,
}

/// A link that is asked for.
#[derive(Debug)]
struct Dial {
    channel: EventChannel,
    to: SocketAddr,
    token: Token,
    since: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its device, or the way, is looked for.
    Searching(ConnectionId),
    Asking(Box<VerbsLink>),
    Over,
}

fn text(error: Error) -> String {
    error.to_string()
}

/// Who can listen at `ip`, which a device has, if it is not all of them.
fn bound(
    verbs: &'static Verbs,
    ip: IpAddr,
    devices: &[String],
) -> Result<(ConnectionId, EventChannel), String> {
    let unavailable = |error: Error| format!("unavailable: {error}");
    let channel = EventChannel::new(verbs).map_err(unavailable)?;
    let id = ConnectionId::new(&channel).map_err(unavailable)?;
    id.bind(SocketAddr::new(ip, 0)).map_err(unavailable)?;
    // Addresses that no device has can be listened at.
    if !ip.is_unspecified() && Device::of(&id).is_err() {
        let name = devices.join(", ");
        return Err(format!(
            "unavailable: {ip} is no address of an interface of {name}; see `rdma link`"
        ));
    }
    Ok((id, channel))
}

/// The names of the devices that there are, if one of them has `ip`; else why there is no RDMA at it.
pub(crate) fn devices_at(ip: IpAddr) -> Result<Vec<String>, String> {
    let verbs = Verbs::load().map_err(|why| why.to_string())?;
    let devices = verbs.probe(NEEDED).map_err(|why| why.to_string())?;
    bound(verbs, ip, &devices)?;
    Ok(devices)
}

impl VerbsDoor {
    /// Listens at any port of `ip`. The names of the devices that there are. Else why there is no RDMA.
    pub fn open(ip: IpAddr) -> Result<Found, String> {
        let verbs = Verbs::load().map_err(|why| why.to_string())?;
        let devices = verbs.probe(NEEDED).map_err(|why| why.to_string())?;
        let (listener, channel) = bound(verbs, ip, &devices)?;
        listener
            .listen(BACKLOG)
            .map_err(|error| format!("unavailable: {error}"))?;
        let door = VerbsDoor {
            verbs,
            listener,
            channel,
            dials: Vec::new(),
            heard: 0,
            looked: Cell::new(None),
            goes: false,
        };
        Ok((door, devices))
    }

    /// The device that has the address; none if all are listened at.
    pub fn device(&self) -> Option<String> {
        Device::of(&self.listener).ok().map(|device| device.name())
    }

    pub fn port(&self) -> u16 {
        self.listener.local_port()
    }

    /// Readable when there is something to look at.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let dials = self.dials.iter().map(|dial| dial.channel.fd());
        dials.chain([self.channel.fd()])
    }

    /// One of the descriptors may have become readable.
    pub fn look_soon(&self) {
        self.looked.set(None);
    }

    /// Begins to ask for a link. What becomes of it is told by [`dialled`](Self::dialled).
    pub fn dial(&mut self, to: SocketAddr, token: Token) -> Result<(), String> {
        let channel = EventChannel::new(self.verbs).map_err(text)?;
        let id = ConnectionId::new(&channel).map_err(text)?;
        id.resolve_address(None, to, ESTABLISHED)
            .map_err(|error| format!("no RDMA device leads to {to}: {error}"))?;
        self.dials.push(Dial {
            channel,
            to,
            token,
            since: Instant::now(),
            state: State::Searching(id),
        });
        Ok(())
    }

    /// What became of a link that was asked for.
    pub fn dialled(&mut self) -> Option<(Token, Result<VerbsLink, String>)> {
        for index in 0..self.dials.len() {
            if let Some(result) = self.dials[index].advance() {
                let dial = self.dials.swap_remove(index);
                let result = result.map_err(|why| format!("RDMA to {}: {why}", dial.to));
                return Some((dial.token, result));
            }
        }
        None
    }

    /// The next request, and the token that it shows.
    pub fn request(&mut self) -> Option<(Token, Request)> {
        let now = Instant::now();
        if self.looked.get().is_some_and(|last| now - last < LOOK) {
            return None;
        }
        // What cannot be a token is refused by being dropped.
        while self.heard < TURN
            && let Ok(Some(event)) = self.channel.next_event()
        {
            self.heard += 1;
            match (event.kind, event.private_data.first_chunk::<16>()) {
                (EventKind::ConnectRequest(id), Some(token)) => {
                    let verbs = self.verbs;
                    return Some((Token(*token), Request { verbs, id }));
                }
                (EventKind::DeviceRemoved, _) => self.goes = true,
                _ => {}
            }
        }
        self.heard = 0;
        self.looked.set(Some(now));
        None
    }

    /// True if nothing can come any more: it is to be dropped, and looked for anew. What was asked for is told of before.
    pub fn is_over(&self) -> bool {
        self.goes && self.dials.is_empty()
    }

    /// Nobody waits any more for the link of this token.
    pub fn give_up(&mut self, token: Token) {
        self.dials.retain(|dial| dial.token != token);
    }
}

/// Looks for RDMA where there is none yet, or none any more: drivers are loaded late, and devices come and go.
#[derive(Debug)]
pub(crate) struct Seeker<T> {
    ip: IpAddr,
    open: fn(IpAddr) -> Result<T, String>,
    /// Until the look after the next one.
    pause: Duration,
    next: Instant,
    /// Why there is none is still to be told.
    untold: bool,
    answer: Option<mpsc::Receiver<Result<T, String>>>,
}

impl<T: Send + 'static> Seeker<T> {
    /// For what `open` opens at `ip`.
    pub fn new(ip: IpAddr, open: fn(IpAddr) -> Result<T, String>) -> Seeker<T> {
        Seeker {
            ip,
            open,
            pause: SEEK,
            next: Instant::now() + SEEK,
            untold: false,
            answer: None,
        }
    }

    /// The same, of what nobody has looked for yet: it begins at once, and tells why there is none, if so.
    pub fn at_once(ip: IpAddr, open: fn(IpAddr) -> Result<T, String>) -> Seeker<T> {
        let mut seeker = Seeker::new(ip, open);
        (seeker.next, seeker.untold) = (Instant::now(), true);
        seeker.begin();
        seeker
    }

    /// The same, of a device that has just gone. It is looked for soon, for one that came back before librdmacm has seen that it was
    /// away is taken for the old one for ever.
    pub fn of_gone(ip: IpAddr, open: fn(IpAddr) -> Result<T, String>) -> Seeker<T> {
        Seeker {
            pause: GONE,
            next: Instant::now() + GONE,
            ..Seeker::new(ip, open)
        }
    }

    fn look_later(&mut self) {
        self.pause = (2 * self.pause).min(SEEK);
        (self.next, self.answer) = (Instant::now() + self.pause, None);
    }

    fn begin(&mut self) {
        // Libraries are loaded and devices listed: that takes longer than data can wait.
        let (sender, receiver) = mpsc::channel();
        let (ip, open) = (self.ip, self.open);
        std::thread::spawn(move || {
            if let Ok(verbs) = Verbs::load() {
                verbs.forget_gone_devices();
            }
            sender.send(open(ip))
        });
        self.answer = Some(receiver);
    }

    /// What there is now, if there is; or why there is none, the first time.
    pub fn look(&mut self) -> Option<Result<T, String>> {
        self.wait(Duration::ZERO)
    }

    /// The same, waiting for it, if it is being looked for.
    pub fn wait(&mut self, patience: Duration) -> Option<Result<T, String>> {
        let Some(answer) = &self.answer else {
            if Instant::now() >= self.next {
                self.begin();
            }
            return None;
        };
        match answer.recv_timeout(patience) {
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Ok(Ok(found)) => Some(Ok(found)),
            Ok(Err(why)) => {
                self.look_later();
                if std::mem::take(&mut self.untold) {
                    return Some(Err(why));
                }
                debug!("what was looked for is still {why}");
                None
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                self.look_later();
                None
            }
        }
    }
}

impl Request {
    /// Whose host asks.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.id.peer_ip()
    }

    /// Agrees. The link carries data as soon as the other side has heard so.
    pub(crate) fn accept(self) -> Result<VerbsLink, String> {
        let accepted = || {
            let channel = EventChannel::new(self.verbs)?;
            self.id.migrate(&channel)?;
            let link = VerbsLink::prepare(channel, self.id)?;
            link.accept()?;
            Ok(link)
        };
        accepted().map_err(|error: Error| format!("RDMA: {error}"))
    }
}

impl Dial {
    /// None: it takes longer.
    fn advance(&mut self) -> Option<Result<VerbsLink, String>> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Searching(id) => match self.search(id) {
                Ok(state) => self.state = state,
                Err(why) => return Some(Err(why)),
            },
            State::Asking(mut link) => match link.is_established() {
                Some(result) => return Some(result.map(|()| *link)),
                None => self.state = State::Asking(link),
            },
            State::Over => {}
        }
        match self.since.elapsed() > ESTABLISHED {
            true => Some(Err(format!("no answer within {ESTABLISHED:?}"))),
            false => None,
        }
    }

    fn search(&self, id: ConnectionId) -> Result<State, String> {
        let Some(event) = self.channel.next_event().map_err(text)? else {
            return Ok(State::Searching(id));
        };
        match event.kind {
            EventKind::AddressResolved => {
                id.set_ack_timeout(ACK_TIMEOUT).map_err(text)?;
                id.resolve_route(ESTABLISHED).map_err(text)?;
                Ok(State::Searching(id))
            }
            EventKind::RouteResolved => {
                let link = VerbsLink::prepare(self.channel.clone(), id).map_err(text)?;
                link.connect(self.token).map_err(text)?;
                Ok(State::Asking(Box::new(link)))
            }
            EventKind::Failed(why) => Err(why),
            other => Err(format!("{other:?} before there was a connection")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(300);

    fn slow(ip: IpAddr) -> Result<IpAddr, String> {
        std::thread::sleep(SLOW);
        match ip.is_loopback() {
            true => Ok(ip),
            false => Err("unavailable: it is elsewhere".into()),
        }
    }

    /// Looks until there is an answer, which is never waited for.
    fn look(seeker: &mut Seeker<IpAddr>, patience: Duration) -> Option<Result<IpAddr, String>> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            let looked = Instant::now();
            let found = seeker.look();
            assert!(looked.elapsed() < SLOW / 2, "{:?}", looked.elapsed());
            if found.is_some() {
                return found;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    #[test]
    fn what_takes_long_to_open_keeps_nobody_waiting() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let begun = Instant::now();
        let mut seeker = Seeker::at_once(here, slow);
        assert!(begun.elapsed() < SLOW / 2, "{:?}", begun.elapsed());
        assert_eq!(look(&mut seeker, 20 * SLOW), Some(Ok(here)));
        let mut seeker = Seeker::at_once(here, slow);
        assert_eq!(seeker.wait(20 * SLOW), Some(Ok(here)));
    }

    #[test]
    fn why_there_is_none_is_told_once_and_it_is_looked_for_again() {
        let elsewhere = IpAddr::from([10, 0, 0, 1]);
        let mut seeker = Seeker::at_once(elsewhere, slow);
        let why = look(&mut seeker, 20 * SLOW);
        assert_eq!(why, Some(Err("unavailable: it is elsewhere".into())));
        assert_eq!(look(&mut seeker, SLOW), None);
        assert!(seeker.next > Instant::now());
        seeker.next = Instant::now();
        seeker.look();
        assert!(seeker.answer.is_some());
        assert_eq!(look(&mut seeker, 3 * SLOW), None);
    }
}
