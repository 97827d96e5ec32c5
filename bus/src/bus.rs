//! [`Bus`] and [`Endpoint`]: channels found by address, through the map.

use crate::address::{Address, Template};
use crate::directory::Directory;
use crate::error::{Error, Result, TryRecvError};
use crate::fair::FairReceiver;
use crate::gcim::{ChannelEntry, Gcim};
use crate::ready_fd::ReadyFd;
use crate::receiver::{Message, Receiver};
use crate::ring_file::{Ring, Uuid};
use crate::sender::Sender;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a relay may take to make the next generation of a ring while an application attaches.
const RENEWAL: Duration = Duration::from_millis(100);

/// A host's channels, as an application sees them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Directory,
    gcim: Gcim,
}

/// One address of a bus and the channels that it is an end of.
#[derive(Clone, Debug)]
pub struct Endpoint {
    bus: Bus,
    address: Address,
    version: u64,
    channels: Vec<ChannelEntry>,
}

/// Fair receive over all channels of an endpoint, those included that are created while it runs.
#[derive(Debug)]
pub struct Incoming {
    endpoint: Endpoint,
    fair: FairReceiver,
    /// Which channel each receiver is of: the sender's address, and when the channel was created.
    sources: Vec<(Address, u64)>,
}

/// One direction of a channel in the map, whose ring may get a next generation.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    bus: Bus,
    addresses: [Address; 2],
    created: u64,
    direction: usize,
}

/// What comes after a closed ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// The next one, which is taken.
    Next,
    /// The next one, which is being made: the map still names the closed one.
    NotYet,
    /// Nothing: the channel was deleted.
    Last,
}

impl Place {
    /// The ring after `ring`, which is closed and, if it is for `receiving`, received to its end; or why there is none.
    pub fn after(
        &self,
        ring: &Ring,
        receiving: bool,
    ) -> Result<std::result::Result<Ring, Generation>> {
        let (_, channels) = self.bus.gcim().channels_of(self.addresses[0])?;
        let here = |c: &&ChannelEntry| (c.addresses, c.created) == (self.addresses, self.created);
        let Some(channel) = channels.iter().find(here) else {
            return Ok(Err(Generation::Last));
        };
        if channel.rings[self.direction] == ring.uuid() {
            return Ok(Err(Generation::NotYet));
        }
        // There may have been more than one change since the last look: what the generation before holds comes first.
        let previous = channel.previous[self.direction];
        if receiving && previous != Uuid::NONE && previous != ring.uuid() {
            match self.bus.open_ring(channel, previous) {
                Err(Error::NotFound { .. }) => {}
                opened => return opened.map(Ok),
            }
        }
        match self.bus.open_ring(channel, channel.rings[self.direction]) {
            Ok(ring) => Ok(Ok(ring)),
            // Replaced once more since the map was read.
            Err(Error::NotFound { .. }) => Ok(Err(Generation::NotYet)),
            Err(error) => Err(error),
        }
    }
}

impl Bus {
    /// Opens a ring of a channel, for whoever manages or relays.
    pub fn open_ring(&self, channel: &ChannelEntry, uuid: Uuid) -> Result<Ring> {
        let ring = Ring::open(&self.inner.directory, uuid)?;
        let header = ring.header();
        let direction = usize::from(header.from != channel.addresses[0].0);
        // The locks that a ring's own header names could be another channel's.
        let slot = u64::from(channel.slot) * 2 + direction as u64;
        if u64::from(header.lock_slot) != slot {
            let why = format!("it names lock slot {}, the map {slot}", header.lock_slot);
            return Err(Error::BadFile {
                path: ring.path().into(),
                why,
            });
        }
        Ok(ring)
    }

    /// Attaches to the bus `key`, in `${TBUS_SHM_DIR:-/dev/shm}/tbus.<key>`.
    pub fn attach(key: u32) -> Result<Bus> {
        Self::attach_at(Directory::path_for_key(key))
    }

    /// Attaches to the bus in a directory.
    pub fn attach_at(path: impl AsRef<Path>) -> Result<Bus> {
        let directory = Directory::open(path)?;
        let gcim = Gcim::open(&directory, false)?;
        Ok(Bus {
            inner: Arc::new(Inner { directory, gcim }),
        })
    }

    /// The map of channels.
    pub fn gcim(&self) -> &Gcim {
        &self.inner.gcim
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.inner.directory
    }

    /// How addresses are written on this bus.
    pub fn template(&self) -> Template {
        self.inner.gcim.template()
    }

    /// The endpoint `address`; an error if no channel has it.
    pub fn bind(&self, address: Address) -> Result<Endpoint> {
        let mut endpoint = Endpoint {
            bus: self.clone(),
            address,
            version: u64::MAX,
            channels: Vec::new(),
        };
        endpoint.refresh()?;
        if endpoint.channels.is_empty() {
            return Err(Error::NoChannel {
                address: self.template().show(address).to_string(),
                peer: None,
            });
        }
        Ok(endpoint)
    }
}

impl Endpoint {
    /// Its address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The bus that it is on.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The other ends of its channels, in the order of the map.
    pub fn peers(&self) -> impl Iterator<Item = Address> {
        self.channels.iter().map(|channel| self.peer_of(channel))
    }

    /// Looks whether the map was written since the last look, and learns of channels created and removed.
    /// True if it was.
    pub fn refresh(&mut self) -> Result<bool> {
        let gcim = self.bus.gcim();
        if gcim.version() == self.version {
            return Ok(false);
        }
        (self.version, self.channels) = gcim.channels_of(self.address)?;
        Ok(true)
    }

    /// The rings of the channel to `peer`, the outgoing and the incoming one, to look at: takes no role.
    pub fn rings(&self, peer: Address) -> Result<[Ring; 2]> {
        self.take(peer, RENEWAL, |channel| {
            Ok([self.open(channel, true)?, self.open(channel, false)?])
        })
    }

    /// Takes the sending end of the channel to `peer`. `Busy`, after a tenth of a second, if somebody has it.
    pub fn sender(&self, peer: Address) -> Result<Sender> {
        self.take(peer, RENEWAL, |channel| self.sender_of(channel))
    }

    /// The same, but `Busy` or `NotFound` at once, also when a relay is making the next generation of the ring.
    pub fn try_sender(&self, peer: Address) -> Result<Sender> {
        self.take(peer, Duration::ZERO, |channel| self.sender_of(channel))
    }

    /// Takes the receiving end of the channel from `peer`. `Busy`, after a tenth of a second, if somebody has it.
    pub fn receiver(&self, peer: Address) -> Result<Receiver> {
        self.take(peer, RENEWAL, |channel| self.receiver_of(channel))
    }

    /// The same, but `Busy` or `NotFound` at once, also when a relay is making the next generation of the ring.
    pub fn try_receiver(&self, peer: Address) -> Result<Receiver> {
        self.take(peer, Duration::ZERO, |channel| self.receiver_of(channel))
    }

    /// Takes an end of the channel to `peer`. A relay that makes the next generation of its ring removes the file that the
    /// map named just before, and has roles for a moment; then it is tried again.
    fn take<T>(
        &self,
        peer: Address,
        patience: Duration,
        take: impl Fn(&ChannelEntry) -> Result<T>,
    ) -> Result<T> {
        let mut channel = self.channel(peer)?.clone();
        let begun = Instant::now();
        loop {
            let error = match take(&channel) {
                Err(error @ (Error::NotFound { .. } | Error::Busy { .. })) => error,
                result => return result,
            };
            if begun.elapsed() >= patience {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(1));
            let (_, channels) = self.bus.gcim().channels_of(self.address)?;
            let same =
                |c: &ChannelEntry| (c.addresses, c.created) == (channel.addresses, channel.created);
            match channels.into_iter().find(same) {
                Some(found) => channel = found,
                None => return Err(error),
            }
        }
    }

    fn sender_of(&self, channel: &ChannelEntry) -> Result<Sender> {
        // A closed one has a successor, or will have one, to which the sender goes on.
        let sender = self.open(channel, true)?.sender_though_closed()?;
        Ok(sender.at_place(self.place(channel, true)))
    }

    fn receiver_of(&self, channel: &ChannelEntry) -> Result<Receiver> {
        let place = self.place(channel, false);
        // The generation before comes first.
        let previous = channel.previous[place.direction];
        if previous != Uuid::NONE {
            match self.bus.open_ring(channel, previous) {
                Ok(ring) => return Ok(ring.receiver()?.at_place(place)),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.open(channel, false)?.receiver()?.at_place(place))
    }

    fn place(&self, channel: &ChannelEntry, outgoing: bool) -> Place {
        Place {
            bus: self.bus.clone(),
            addresses: channel.addresses,
            created: channel.created,
            direction: self.direction(channel, outgoing),
        }
    }

    fn direction(&self, channel: &ChannelEntry, outgoing: bool) -> usize {
        usize::from((channel.addresses[0] == self.address) != outgoing)
    }

    /// Takes the receiving ends of all channels.
    pub fn incoming(self) -> Result<Incoming> {
        let mut incoming = Incoming {
            fair: FairReceiver::new(),
            sources: Vec::new(),
            endpoint: self,
        };
        incoming.add_new()?;
        Ok(incoming)
    }

    fn peer_of(&self, channel: &ChannelEntry) -> Address {
        let [a, b] = channel.addresses;
        if a == self.address { b } else { a }
    }

    fn channel(&self, peer: Address) -> Result<&ChannelEntry> {
        let channel = self
            .channels
            .iter()
            .find(|channel| self.peer_of(channel) == peer);
        let show = |address| self.bus.template().show(address).to_string();
        channel.ok_or_else(|| Error::NoChannel {
            address: show(self.address),
            peer: Some(show(peer)),
        })
    }

    fn open(&self, channel: &ChannelEntry, outgoing: bool) -> Result<Ring> {
        let direction = self.direction(channel, outgoing);
        self.bus.open_ring(channel, channel.rings[direction])
    }
}

impl Incoming {
    /// The next message and who sent it; it stays in its ring until [`Message::release`]. `Empty` if none is
    /// there. Never `Closed`: a channel may be created at any time.
    pub fn peek(&mut self) -> std::result::Result<(Address, Message<'_>), TryRecvError> {
        let index = self.find()?;
        let source = self.sources[index].0;
        let (_, message) = self.fair.peek_at(index)?;
        Ok((source, message))
    }

    /// Copies the next message into `buffer`, releases it; returns who sent it and its length in bytes.
    pub fn try_recv(
        &mut self,
        buffer: &mut [u8],
    ) -> std::result::Result<(Address, usize), TryRecvError> {
        let (source, message) = self.peek()?;
        let length = message.copy_to(buffer)?;
        message.release();
        Ok((source, length))
    }

    /// Waits until a message is there. `Empty` when the timeout has passed. A channel created while it sleeps is
    /// seen within 100 ms.
    pub fn wait(&mut self, timeout: Duration) -> std::result::Result<(), TryRecvError> {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            match self.fair.wait(left.min(crate::wait::LONGEST_SLEEP)) {
                Ok(()) => return Ok(()),
                Err(TryRecvError::Empty | TryRecvError::Closed) if self.renew()? => {}
                Err(TryRecvError::Closed) => std::thread::sleep(left.min(Duration::from_millis(1))),
                Err(TryRecvError::Empty) => {}
                Err(error) => return Err(error),
            }
            if left.is_zero() {
                return Err(TryRecvError::Empty);
            }
        }
    }

    /// After a look that found nothing: makes `ready` unreadable until there is a message, or another map.
    pub fn arm(&self, ready: &ReadyFd) {
        let rings = self.fair.usable().map(Receiver::ring);
        ready.arm(rings, &self.endpoint.bus, self.endpoint.version);
    }

    /// The bytes that all its rings hold.
    pub fn capacity(&self) -> u64 {
        let rings = self.fair.receivers().iter().map(Receiver::ring);
        rings.map(|ring| ring.header().capacity).sum()
    }

    /// The senders' addresses, in no order.
    pub fn sources(&self) -> impl Iterator<Item = Address> {
        self.sources.iter().map(|(address, _)| *address)
    }

    fn find(&mut self) -> std::result::Result<usize, TryRecvError> {
        loop {
            match self.fair.find() {
                Err(TryRecvError::Empty | TryRecvError::Closed) if self.renew()? => {}
                Err(TryRecvError::Closed) => return Err(TryRecvError::Empty),
                result => return result,
            }
        }
    }

    /// True if the map was written and the receivers are renewed.
    fn renew(&mut self) -> std::result::Result<bool, TryRecvError> {
        let failed = |error| TryRecvError::Failed(Box::new(error));
        if !self.endpoint.refresh().map_err(failed)? {
            return Ok(false);
        }
        // Removed channels are closed; what was still in their rings has been received by now.
        for index in (0..self.sources.len()).rev() {
            let known = |channel: &ChannelEntry| {
                (self.endpoint.peer_of(channel), channel.created) == self.sources[index]
            };
            if !self.endpoint.channels.iter().any(known) && self.fair.is_done(index) {
                self.sources.remove(index);
                self.fair.remove(index);
            }
        }
        self.add_new().map_err(failed)?;
        Ok(true)
    }

    fn add_new(&mut self) -> Result<()> {
        for channel in &self.endpoint.channels {
            let source = (self.endpoint.peer_of(channel), channel.created);
            if self.sources.contains(&source) {
                continue;
            }
            let receiver = match self.endpoint.receiver_of(channel) {
                Ok(receiver) => receiver,
                // Deleted since the map was read; the next look finds it gone.
                Err(Error::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            self.fair.add(receiver);
            self.sources.push(source);
        }
        Ok(())
    }
}
