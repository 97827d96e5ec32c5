//! [`Lines`]: one half of a handle, all channels of its addresses in one direction.

use crate::codes::{self, Code};
use bus::{Address, Bus, Endpoint, Error, Receiver, Ring, Sender};
use std::time::{Duration, Instant};

/// As address of a call: the first that matches.
pub const FIRST: u32 = 0;
/// As address of a call: all that match.
pub const ALL: u32 = u32::MAX;

/// The index of no line.
const NO_LINE: usize = usize::MAX;

/// How long an end that somebody else has is not asked for again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// One end of a ring: a sender or a receiver.
pub trait End: Sized {
    /// True if it may hold something after its channel has left the map.
    const OUTLIVES: bool;
    /// Takes it; waits for a relay that is replacing the ring if `patient`.
    fn take(endpoint: &Endpoint, peer: Address, patient: bool) -> bus::Result<Self>;
    /// Its ring.
    fn ring(&self) -> &Ring;
}

impl End for Sender {
    const OUTLIVES: bool = false;

    fn take(endpoint: &Endpoint, peer: Address, patient: bool) -> bus::Result<Self> {
        match patient {
            true => endpoint.sender(peer),
            false => endpoint.try_sender(peer),
        }
    }

    fn ring(&self) -> &Ring {
        self.ring()
    }
}

impl End for Receiver {
    const OUTLIVES: bool = true;

    fn take(endpoint: &Endpoint, peer: Address, patient: bool) -> bus::Result<Self> {
        match patient {
            true => endpoint.receiver(peer),
            false => endpoint.try_receiver(peer),
        }
    }

    fn ring(&self) -> &Ring {
        self.ring()
    }
}

/// One direction of a channel.
pub struct Line<T> {
    pub local: u32,
    pub peer: u32,
    /// Taken when it is first used.
    pub end: Option<T>,
    /// True after an error that the ring does not recover from.
    pub failed: Option<Code>,
    /// True between a peek and what ends it.
    pub peeked: bool,
    /// No longer in the map.
    pub gone: bool,
    /// When an end that was busy is worth another try.
    pub retry_at: Option<Instant>,
    endpoint: usize,
    /// Both rings as they were looked at last, and the version of the map then.
    seen: Option<(u64, [Ring; 2])>,
}

impl<T> Line<T> {
    fn key(&self) -> u64 {
        key(self.local, self.peer)
    }

    /// Gives the end back, and with it what was peeked at.
    fn leave(&mut self) {
        (self.end, self.peeked) = (None, false);
    }

    /// True if a call with these addresses, wildcards included, means this line.
    #[inline]
    pub fn matches(&self, local: u32, peer: u32) -> bool {
        let one = |asked, mine| asked == mine || asked == FIRST || asked == ALL;
        one(local, self.local) && one(peer, self.peer)
    }
}

fn key(local: u32, peer: u32) -> u64 {
    u64::from(local) << 32 | u64::from(peer)
}

/// The lines of a handle in one direction, in the order of binding and of the map.
pub struct Lines<T> {
    pub bus: Bus,
    pub all: Vec<Line<T>>,
    /// The map's version that the lines are of.
    pub version: u64,
    /// How many ends were taken so far.
    pub taken: u64,
    endpoints: Vec<Endpoint>,
    /// Keys of the lines, in ascending order, and where they are.
    index: Vec<(u64, usize)>,
    /// The line of the last call, most often that of the next one; [`NO_LINE`] if it is not known.
    last: usize,
}

impl<T: End> Lines<T> {
    pub fn new(bus: Bus) -> Lines<T> {
        Lines {
            bus,
            all: Vec::new(),
            version: 0,
            taken: 0,
            endpoints: Vec::new(),
            index: Vec::new(),
            last: NO_LINE,
        }
    }

    /// Adds the channels of an address.
    pub fn bind(&mut self, endpoint: Endpoint) -> Result<(), Code> {
        let bound = self.endpoints.iter().map(Endpoint::address);
        if !bound
            .into_iter()
            .any(|address| address == endpoint.address())
        {
            self.endpoints.push(endpoint);
        }
        self.refresh()
    }

    /// True if the map was written since [`Self::refresh`].
    #[inline]
    pub fn changed(&self) -> bool {
        self.version != self.bus.gcim().version()
    }

    /// Learns which channels there are.
    #[cold]
    pub fn refresh(&mut self) -> Result<(), Code> {
        let version = self.bus.gcim().version();
        for endpoint in &mut self.endpoints {
            endpoint.refresh().map_err(codes::told)?;
        }
        let mut old: Vec<_> = self.all.drain(..).map(Some).collect();
        for (number, endpoint) in self.endpoints.iter().enumerate() {
            let local = endpoint.address().0;
            for peer in endpoint.peers() {
                let known = find(&self.index, key(local, peer.0));
                let line = known.and_then(|at| old[at].take());
                let line = line.map(|line| Line {
                    gone: false,
                    ..line
                });
                self.all.push(line.unwrap_or(Line {
                    local,
                    peer: peer.0,
                    end: None,
                    failed: None,
                    peeked: false,
                    gone: false,
                    retry_at: None,
                    endpoint: number,
                    seen: None,
                }));
            }
        }
        // What is unread in a deleted channel is still to be had.
        let rest = old.into_iter().flatten();
        let rest = rest.filter(|line| T::OUTLIVES && line.end.is_some());
        self.all
            .extend(rest.map(|line| Line { gone: true, ..line }));
        let keys = self
            .all
            .iter()
            .enumerate()
            .map(|(at, line)| (line.key(), at));
        self.index = keys.collect();
        self.index.sort_unstable();
        self.last = NO_LINE;
        self.version = version;
        Ok(())
    }

    /// Forgets what failed, so that the next call tries anew, and tries now what was busy. Here alone a relay is waited
    /// for that is replacing a ring, and for all of them together not much longer than for one.
    pub fn forgive(&mut self) -> Result<(), Code> {
        for line in &mut self.all {
            if line.failed.take().is_some() {
                line.leave();
            }
        }
        self.refresh()?;
        let begun = Instant::now();
        for at in 0..self.all.len() {
            if self.all[at].retry_at.take().is_some() {
                let _ = self.open(at, begun.elapsed() < BUSY_PAUSE); // the next call tells
            }
        }
        Ok(())
    }

    /// The last call's line, if it is the one that this call names.
    #[inline(always)]
    pub fn hit(&mut self, local: u32, peer: u32) -> Option<&mut Line<T>> {
        let line = self.all.get_mut(self.last)?;
        (line.local == local && line.peer == peer).then_some(line)
    }

    /// The addresses of the last call's line, after a hit: here, there.
    pub fn last_ends(&self) -> (u32, u32) {
        let line = &self.all[self.last];
        (line.local, line.peer)
    }

    /// The next call probably means this one.
    pub fn expect(&mut self, at: usize) {
        self.last = at;
    }

    /// The line between two addresses that are no wildcards.
    pub fn find(&self, local: u32, peer: u32) -> Option<usize> {
        find(&self.index, key(local, peer))
    }

    /// The first line that a call means, after a look at the map if there seems to be none.
    pub fn first(&mut self, local: u32, peer: u32) -> Result<usize, Code> {
        loop {
            let exact = self.find(local, peer);
            if let Some(at) = exact.filter(|at| !self.all[*at].gone) {
                return Ok(at);
            }
            let mut all = self.all.iter();
            if let Some(at) = all.position(|line| !line.gone && line.matches(local, peer)) {
                return Ok(at);
            }
            if !self.changed() {
                return Err(self.none(local, peer));
            }
            self.refresh()?;
        }
    }

    /// Why no line matches.
    #[cold]
    pub fn none(&self, local: u32, peer: u32) -> Code {
        if self.endpoints.is_empty() {
            return codes::NOT_BOUND;
        }
        let show = |address| self.bus.template().show(Address(address)).to_string();
        let error = Error::NoChannel {
            address: show(local),
            peer: Some(show(peer)),
        };
        codes::because(codes::NO_CHANNEL, &error)
    }

    /// The end of a line, which is taken if need be.
    pub fn open(&mut self, at: usize, patient: bool) -> Result<&mut T, Code> {
        let line = &mut self.all[at];
        if line.end.is_none() {
            if line.gone {
                return Err(self.none(self.all[at].local, self.all[at].peer));
            }
            if line.retry_at.is_some_and(|at| Instant::now() < at) {
                return Err(codes::CHANNEL_BUSY);
            }
            match T::take(&self.endpoints[line.endpoint], Address(line.peer), patient) {
                Ok(end) => {
                    (line.end, line.retry_at) = (Some(end), None);
                    self.taken += 1;
                }
                Err(error @ (Error::Busy { .. } | Error::NotFound { .. })) => {
                    line.retry_at = Some(Instant::now() + BUSY_PAUSE);
                    return Err(codes::because(codes::CHANNEL_BUSY, &error));
                }
                Err(error) => return Err(codes::told(error)),
            }
        }
        Ok(self.all[at].end.as_mut().expect("taken above"))
    }

    /// After `Closed`: the channel was deleted. Takes the end of the one that has its place, if there is one.
    #[cold]
    pub fn reopen(&mut self, at: usize) -> Result<&mut T, Code> {
        let line = &mut self.all[at];
        line.leave();
        let endpoint = &mut self.endpoints[line.endpoint];
        endpoint.refresh().map_err(codes::told)?;
        line.gone = !endpoint.peers().any(|peer| peer.0 == line.peer);
        self.open(at, false)
    }

    /// The rings of the channel of a line: outgoing and incoming.
    pub fn rings(&mut self, at: usize) -> Result<&[Ring; 2], Code> {
        let line = &mut self.all[at];
        let version = self.bus.gcim().version();
        // Another ring in the place of one of them makes another version.
        if line.seen.as_ref().is_none_or(|(of, _)| *of != version) {
            let endpoint = &mut self.endpoints[line.endpoint];
            endpoint.refresh().map_err(codes::told)?;
            let rings = endpoint.rings(Address(line.peer)).map_err(codes::told)?;
            line.seen = Some((version, rings));
        }
        Ok(&line.seen.as_ref().expect("looked at above").1)
    }
}

fn find(index: &[(u64, usize)], key: u64) -> Option<usize> {
    let at = index.binary_search_by_key(&key, |(key, _)| *key).ok()?;
    Some(index[at].1)
}
