//! How links over UCX are made: who listens, who asks and is asked.
//!
//! UCX tells nothing with a connection but where it comes from. So who asks from a host that a link is offered to is let in, and is to
//! show its token with its first message, within [`ESTABLISHED`]; who does not, or sends anything else, is out again, and all others
//! are refused. What strangers can have: [`STRANGERS`] places more than links are offered. When all are taken, whoever is there longest
//! of the host with the most beyond what it was offered makes room: a crowd of one host does not keep another out.

use crate::link::ucx::{Hub, Line, UcxLink};
use crate::verbs_network::devices_at;
use crate::wire::Token;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tbus_ucx_sys::{Context, Endpoint, Error, Listener, Ucx};
use tracing::{debug, info};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// Who is let in or asks to be is heard within this time. A packet of the connection manager that is lost is sent again after 4 s.
const ESTABLISHED: Duration = Duration::from_secs(8);
/// So many more are let in at a time that have not shown a token than were offered a link: each takes memory of the device.
const STRANGERS: usize = 16;
/// Requests that are answered at one look: anybody can make some, and each takes time of who moves data.
const TURN: u32 = 4;
/// Who is offered a link has asked for it within this time, or the relay has given it up.
const OFFERED: Duration = Duration::from_secs(15);

/// Who listens, which UCX it is, and the names of the devices.
pub(crate) type Found = (UcxDoor, String, Vec<String>);

/// Where other relays ask for links over UCX; and what is asked of them.
#[derive(Debug)]
pub(crate) struct UcxDoor {
    // The listener first, for it is to go before its worker.
    listener: Listener,
    port: u16,
    offers: Vec<Offer>,
    /// Who came first is first.
    strangers: Vec<Stranger>,
    /// Requests since the last look that found none, or enough.
    heard: u32,
    dials: Vec<Dial>,
    looked: Cell<Option<Instant>>,
    hub: Arc<Hub>,
}

/// A link that another relay is to ask for.
#[derive(Debug)]
struct Offer {
    to: IpAddr,
    token: Token,
    since: Instant,
}

/// Who was let in and has shown nothing yet.
#[derive(Debug)]
struct Stranger {
    line: Line,
    ip: IpAddr,
    since: Instant,
}

/// A link that another relay asks for. To drop it is to refuse.
#[derive(Debug)]
pub struct Request {
    line: Line,
    ip: IpAddr,
    token: Token,
}

/// A link that is asked for.
#[derive(Debug)]
struct Dial {
    line: Line,
    to: SocketAddr,
    token: Token,
    since: Instant,
}

fn text(error: Error) -> String {
    error.to_string()
}

/// The token that the other end shows, or why it will show none. None: it takes longer.
fn shown(line: &Line, since: Instant) -> Option<Result<Token, String>> {
    line.shown().or_else(|| {
        let is_late = since.elapsed() > ESTABLISHED;
        is_late.then(|| Err(format!("no token within {ESTABLISHED:?}")))
    })
}

/// Who makes room if there is none: of the host with the most beyond what it was offered the one that is there longest. None: nobody
/// has more.
fn of_the_crowd(strangers: &[IpAddr], offers: &[IpAddr]) -> Option<usize> {
    let count = |all: &[IpAddr], ip| all.iter().filter(|other| **other == ip).count();
    let beyond = |ip| count(strangers, ip).saturating_sub(count(offers, ip));
    let most = strangers.iter().map(|ip| beyond(*ip)).max();
    let most = most.filter(|most| *most > 0)?;
    strangers.iter().position(|ip| beyond(*ip) == most)
}

/// A link over a connection that was agreed; says what carries it, or refuses that.
fn link(line: Line) -> Result<UcxLink, String> {
    let over = line.endpoint.transports().map_err(text)?;
    info!(
        over = over.join(", "),
        rails = over.len(),
        "a connection over UCX"
    );
    Ok(UcxLink::new(line, over))
}

impl UcxDoor {
    /// Listens at any port of `ip`. Else why there is no UCX.
    pub fn open(ip: IpAddr) -> Result<Found, String> {
        let ucx = Ucx::load(None).map_err(|why| why.to_string())?;
        let devices = devices_at(ip)?;
        let context = Context::new(ucx).map_err(|why| why.to_string())?;
        let unavailable = |error: Error| format!("unavailable: {error}");
        let hub = Hub::new(context).map_err(unavailable)?;
        let listener = Listener::new(&hub.worker, SocketAddr::new(ip, 0)).map_err(unavailable)?;
        let port = listener.port().map_err(unavailable)?;
        let door = UcxDoor {
            listener,
            port,
            offers: Vec::new(),
            strangers: Vec::new(),
            heard: 0,
            dials: Vec::new(),
            looked: Cell::new(None),
            hub,
        };
        let (major, minor, release) = ucx.version();
        let version = format!("{major}.{minor}.{release}");
        Ok((door, version, devices))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Readable when there is something to look at, once it was [armed](UcxDoor::arm).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.hub.worker.fd()
    }

    /// To be called before each sleep. False if there is something already.
    pub fn arm(&self) -> bool {
        self.hub.arm()
    }

    /// The descriptor may have become readable.
    pub fn look_soon(&self) {
        self.looked.set(None);
    }

    /// Begins to ask for a link. What becomes of it is told by [`dialled`](Self::dialled).
    pub fn dial(&mut self, to: SocketAddr, token: Token) -> Result<(), String> {
        let endpoint = Endpoint::connect(&self.hub.worker, to).map_err(text)?;
        let line = Line::new(&self.hub, endpoint);
        // It goes out when the other side has agreed.
        line.show(token).map_err(text)?;
        self.dials.push(Dial {
            line,
            to,
            token,
            since: Instant::now(),
        });
        Ok(())
    }

    /// What became of a link that was asked for.
    pub fn dialled(&mut self) -> Option<(Token, Result<UcxLink, String>)> {
        if !self.dials.is_empty() {
            self.hub.progress();
        }
        let (index, shown) = self
            .dials
            .iter()
            .enumerate()
            .find_map(|(index, dial)| Some((index, shown(&dial.line, dial.since)?)))?;
        let dial = self.dials.swap_remove(index);
        let result = shown
            .and_then(|token| match token == dial.token {
                true => link(dial.line),
                false => Err("the other side shows another token".into()),
            })
            .map_err(|why| format!("UCX to {}: {why}", dial.to));
        Some((dial.token, result))
    }

    /// The next request, and the token that it shows.
    pub fn request(&mut self) -> Option<(Token, Request)> {
        let now = Instant::now();
        if self.looked.get().is_some_and(|last| now - last < LOOK) {
            return None;
        }
        self.hub.progress();
        self.let_in(now);
        let decided = |(index, stranger): (usize, &Stranger)| {
            Some((index, shown(&stranger.line, stranger.since)?))
        };
        while let Some((index, shown)) = self.strangers.iter().enumerate().find_map(decided) {
            let Stranger { line, ip, .. } = self.strangers.remove(index);
            match shown {
                Ok(token) => {
                    self.offers.retain(|offer| offer.token != token);
                    return Some((token, Request { line, ip, token }));
                }
                // Anybody can make such, so it is no matter for the log.
                Err(why) => debug!(%ip, "a connection over UCX came to nothing: {why}"),
            }
        }
        (self.heard, self.looked) = (0, Cell::new(Some(now)));
        None
    }

    /// Another relay, whose control connection comes from there, is offered a link, for which it is to show this token.
    pub fn expect(&mut self, from: IpAddr, token: Token) {
        self.offers.push(Offer {
            to: from.to_canonical(),
            token,
            since: Instant::now(),
        });
    }

    /// Lets in who has asked and may.
    fn let_in(&mut self, now: Instant) {
        self.offers
            .retain(|offer| now.saturating_duration_since(offer.since) < OFFERED);
        let offered: Vec<_> = self.offers.iter().map(|offer| offer.to).collect();
        let is_offered = |ip: &IpAddr| offered.contains(ip);
        while self.heard < TURN
            && let Some(request) = self
                .listener
                .request_first(|ip| ip.is_some_and(|ip| is_offered(&ip.to_canonical())))
        {
            self.heard += 1;
            let ip = request.peer_ip().map(|ip| ip.to_canonical());
            let Some(ip) = ip.filter(is_offered) else {
                debug!(
                    ?ip,
                    "a connection over UCX is refused: nothing is offered there"
                );
                continue; // it is refused by being dropped
            };
            if self.strangers.len() >= STRANGERS + offered.len() {
                let ips: Vec<_> = self.strangers.iter().map(|stranger| stranger.ip).collect();
                if let Some(gone) = of_the_crowd(&ips, &offered) {
                    self.strangers.remove(gone);
                }
            }
            match request.accept() {
                Ok(endpoint) => self.strangers.push(Stranger {
                    line: Line::new(&self.hub, endpoint),
                    ip,
                    since: now,
                }),
                Err(error) => debug!(%ip, "a connection over UCX came to nothing: {error}"),
            }
        }
    }

    /// Nobody waits any more for the link of this token.
    pub fn give_up(&mut self, token: Token) {
        self.dials.retain(|dial| dial.token != token);
        self.offers.retain(|offer| offer.token != token);
    }
}

impl Request {
    /// Whose host asks.
    pub fn peer_ip(&self) -> IpAddr {
        self.ip
    }

    /// Agrees, which the other side hears by the token.
    pub(crate) fn accept(self) -> Result<UcxLink, String> {
        let Request { line, token, .. } = self;
        line.show(token).map_err(text)?;
        link(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crowd_makes_room_and_who_was_offered_stays() {
        let of = |strangers: &[u8], offers: &[u8]| {
            let ip = |n: &u8| IpAddr::from([10, 0, 0, *n]);
            let [strangers, offers] = [strangers, offers].map(|all| {
                let all: Vec<_> = all.iter().map(ip).collect();
                all
            });
            of_the_crowd(&strangers, &offers)
        };
        assert_eq!(of(&[], &[1]), None);
        // The oldest of those that are too many.
        assert_eq!(of(&[1, 2, 3, 2], &[1, 2, 3]), Some(1));
        assert_eq!(of(&[1, 2, 2, 3], &[]), Some(1));
        assert_eq!(of(&[1, 2, 3], &[]), Some(0));
        // Many relays of one host come at a time, and somebody else's crowd.
        assert_eq!(of(&[1, 1, 1, 1, 2, 2, 2], &[1, 1, 1, 1, 2]), Some(4));
        assert_eq!(of(&[1, 1, 2], &[1, 1, 2]), None);
    }
}
