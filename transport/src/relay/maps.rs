//! What the maps say: which rings are mirrored and to whom; and the next generations that this takes.

use super::ages::Ages;
use super::peer::Peer;
use super::rings::{At, Inbound, Outbound};
use super::{Nanos, Relay};
use crate::network::Network;
use crate::wire::{Goodbye, Open, Refusal};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};
use tbus::gcim::{ChannelEntry, Snapshot};
use tbus::generation::{Change, Next};
use tbus::grm::Route;
use tbus::manage::Manager;
use tbus::{Address, Error, Kind, Ring, Uuid};
use tracing::{info, warn};

/// Until another look at what could not be done.
const AGAIN: Nanos = 50_000_000;
/// The same, while a manager is at work.
const MANAGER: Nanos = 5_000_000;
/// Rings that are opened within this time get their mirrors in one change of the map.
const GATHER: Nanos = 5_000_000;
/// Next generations that are made in one go: meanwhile nobody is answered, and a peer is dead after
/// [`crate::session::SILENCE`].
const AT_ONCE: usize = 512;
/// Between two looks whether files were replaced, and whether old generations are received.
const CHECK: Nanos = 1_000_000_000;

/// What the relay knows of the maps.
#[derive(Debug, Default)]
pub(super) struct Maps {
    gcim: Option<u64>,
    routes: Option<u64>,
    /// Both were read, and what they say was begun.
    was_read: bool,
    /// Something could not be done: look again then.
    again: Option<Nanos>,
    /// What, when it was looked last.
    unserved: Option<String>,
    work: Vec<Work>,
    work_due: Nanos,
    /// Rings whose roles are to change, by `work`.
    changing: HashSet<Uuid>,
    /// Rings that need no look: both their ends are local, and so are they.
    local: HashSet<Uuid>,
    /// Some ring has an older generation that is not received to its end.
    has_previous: bool,
    check_due: Nanos,
    /// When the directory last changed, as far as it was looked at.
    directory_changed: Option<SystemTime>,
}

/// A ring that is to get its next generation.
#[derive(Debug)]
enum Work {
    /// Its role changes.
    Role { ends: [Address; 2], change: Change },
    /// It becomes the mirror that an inbound ring's `wanted` asks for.
    Mirror { index: usize },
}

impl Maps {
    pub fn was_read(&self) -> bool {
        self.was_read
    }

    pub fn unserved(&self) -> Option<&String> {
        self.unserved.as_ref()
    }

    pub fn is_settled(&self) -> bool {
        self.gcim.is_some() && self.again.is_none() && self.work.is_empty()
    }
}

/// Where the ends of a channel are: here, or at a peer.
type Places = HashMap<Address, usize>;

impl<N: Network> Relay<N> {
    /// Looks whether the maps have changed. True if there was anything to do.
    pub(super) fn follow_maps(&mut self, now: Nanos) -> bool {
        let versions = (Some(self.bus.gcim().version()), Some(self.routes.version()));
        let again = self.maps.again.is_some_and(|due| now >= due);
        let mut busy = again || versions != (self.maps.gcim, self.maps.routes);
        if busy {
            (self.maps.gcim, self.maps.routes) = versions;
            (self.maps.again, self.maps.unserved) = (None, None);
            match self.reconcile(now) {
                Ok(()) => self.maps.was_read = true,
                Err(error) => self.try_again(now, "the maps cannot be read", &error),
            }
        }
        if !self.maps.work.is_empty() && now >= self.maps.work_due {
            busy = true;
            self.make_generations(now);
        }
        if now >= self.maps.check_due {
            self.maps.check_due = now + CHECK;
            self.check_files(now);
            if self.maps.has_previous
                && let Ok(manager) = Manager::open(self.bus.directory(), Duration::ZERO)
            {
                let _ = manager.tidy();
            }
        }
        busy
    }

    fn try_again(&mut self, now: Nanos, what: &str, error: &Error) {
        let due = now + AGAIN;
        self.maps.again = Some(self.maps.again.map_or(due, |other| other.min(due)));
        let text = format!("{what}: {error}");
        if self.is_new(&text) {
            warn!("{text}; tried again and again");
        }
        // Who waits for another relay's rings is as it should be.
        if !matches!(error, Error::Busy { .. }) {
            self.maps.unserved = Some(text);
        }
    }

    fn reconcile(&mut self, now: Nanos) -> tbus::Result<()> {
        let snapshot = self.bus.gcim().snapshot()?;
        let places = self.follow_routes(now)?;
        self.maps.has_previous = snapshot
            .channels
            .iter()
            .any(|c| c.previous != [Uuid::NONE; 2]);
        let kept = self.follow_channels(&snapshot, &places, now);
        let all = (0..self.rings.out.len())
            .map(At::Out)
            .chain((0..self.rings.inn.len()).map(At::In));
        let gone: Vec<At> = all
            .filter(|at| self.uuid_at(*at).is_some() && !kept.contains(at))
            .collect();
        for at in gone {
            self.let_go(at, now);
        }
        self.follow_rings(&kept, now);
        Ok(())
    }

    /// Makes and unmakes peers; returns at which one each remote address is.
    fn follow_routes(&mut self, now: Nanos) -> tbus::Result<Places> {
        let routes = self.routes.routes()?;
        let is_local =
            |network: &N, route: &Route| route.endpoints.iter().any(|e| network.is_local(e));
        let mut places = Places::new();
        let mut own = None;
        let mut orders = HashMap::new();
        for route in &routes {
            if is_local(&self.network, route) {
                own.get_or_insert(&route.endpoints[0]);
                continue;
            }
            let known = route
                .endpoints
                .iter()
                .find_map(|e| self.by_endpoint.get(&e.to_string()).copied());
            let p = known.unwrap_or_else(|| {
                self.peers.push(Peer::new(route.endpoints.clone(), now));
                self.peers.len() - 1
            });
            for endpoint in &route.endpoints {
                self.by_endpoint.insert(endpoint.to_string(), p);
                if !self.peers[p].endpoints.contains(endpoint) {
                    self.peers[p].endpoints.push(endpoint.clone());
                }
            }
            places.insert(route.address, p);
            route.transports.iter().for_each(|t| self.network.want(*t));
            // Routes to one peer that differ: the last one's.
            orders.insert(p, &route.transports);
        }
        let have = self.network.transports();
        for (p, order) in orders {
            let choice = &mut self.peers[p].choice;
            if !choice.set_order(order) {
                continue;
            }
            match choice.is_outdated(have, now) {
                true => self.connect_anew(p, "the routes name other transports".into(), now),
                false => self.end_vain_trial(p, now),
            }
        }
        // Each time: this host may have moved, and its peers know it by where their routes lead now.
        if self.is_where_routes_say
            && let Some(own) = own
        {
            self.settings.endpoint = own.to_string();
        }
        Ok(places)
    }

    /// A peer without rings has no connection. So a relay that waits for another one's rings leaves its peers to that one.
    fn follow_rings(&mut self, kept: &HashSet<At>, now: Nanos) {
        let peer_of = |at: &At| match at {
            At::Out(index) => self.rings.out[*index].as_ref().map(|ring| ring.peer),
            At::In(index) => self.rings.inn[*index].as_ref().map(|ring| ring.peer),
        };
        let used: HashSet<usize> = kept.iter().filter_map(peer_of).collect();
        for p in 0..self.peers.len() {
            let unused = !used.contains(&p);
            if unused && !self.peers[p].unused {
                let text = "no channel leads there any more".into();
                self.down(p, Goodbye::NoRoute, text, now);
            }
            let peer = &mut self.peers[p];
            if peer.unused && !unused {
                (peer.down_since, peer.trouble) = (now, None);
            }
            peer.unused = unused;
        }
    }

    /// Serves what leads to a peer; returns which rings are served.
    fn follow_channels(&mut self, snapshot: &Snapshot, places: &Places, now: Nanos) -> HashSet<At> {
        let mut kept = HashSet::new();
        for channel in &snapshot.channels {
            for direction in 0..2 {
                let mut ends = channel.addresses;
                ends.rotate_left(direction);
                let uuid = channel.rings[direction];
                let at = ends.map(|address| places.get(&address).copied());
                let served = match at {
                    [None, None] => self.keep_local(channel, ends, uuid).map(|()| None),
                    [None, Some(p)] => self.keep_out(channel, ends, uuid, p, now),
                    [Some(p), None] => self.keep_in(channel, direction, ends, uuid, p, now),
                    [Some(_), Some(_)] => {
                        self.refuse_transit(ends);
                        Ok(None)
                    }
                };
                match served {
                    Ok(at) => kept.extend(at),
                    // Replaced meanwhile: the map has another version by now.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => self.try_again(now, "a ring cannot be served", &error),
                }
            }
        }
        kept
    }

    pub(super) fn name_of(&self, ends: [Address; 2]) -> String {
        let [from, to] = ends.map(|end| self.bus.template().show(end).to_string());
        format!("{from} to {to}")
    }

    fn refuse_transit(&mut self, ends: [Address; 2]) {
        let [a, b] = ends.map(|end| self.bus.template().show(end).to_string());
        let text =
            format!("the channel {a} - {b} has both ends on other hosts; a relay is no transit");
        if self.is_new(&text) {
            warn!("{text}; remove it here, or one of the routes");
        }
    }

    fn change(&mut self, ends: [Address; 2], ring: Uuid, next: Next) {
        if self.maps.changing.insert(ring) {
            self.maps.work.push(Work::Role {
                ends,
                change: Change { ring, next },
            });
        }
    }

    /// Both ends are here.
    fn keep_local(
        &mut self,
        channel: &ChannelEntry,
        ends: [Address; 2],
        uuid: Uuid,
    ) -> tbus::Result<()> {
        if self.maps.local.contains(&uuid) || self.maps.changing.contains(&uuid) {
            return Ok(());
        }
        match self.bus.open_ring(channel, uuid)?.kind() {
            Kind::Local => {
                self.maps.local.insert(uuid);
            }
            Kind::Source => self.change(ends, uuid, Next::Carry(Kind::Local)),
            Kind::Mirror => self.change(ends, uuid, Next::Local),
        }
        Ok(())
    }

    /// The sender is here, the receiver at a peer.
    fn keep_out(
        &mut self,
        channel: &ChannelEntry,
        ends: [Address; 2],
        uuid: Uuid,
        p: usize,
        now: Nanos,
    ) -> tbus::Result<Option<At>> {
        if let Some(at) = self.rings.find(ends) {
            if let At::Out(index) = at
                && self.rings.out[index]
                    .as_ref()
                    .is_some_and(|ring| ring.ring == uuid && ring.peer == p)
            {
                return Ok(Some(at));
            }
            self.let_go(at, now);
        }
        if self.maps.changing.contains(&uuid) {
            return Ok(None);
        }
        let ring = self.bus.open_ring(channel, uuid)?;
        match ring.kind() {
            Kind::Local => self.change(ends, uuid, Next::Carry(Kind::Source)),
            // The receiver was here. It may still read what has come.
            Kind::Mirror => self.change(ends, uuid, Next::Local),
            Kind::Source => {
                let reader = ring.source_reader()?;
                let slot = self.peers[p].session.add(ring.header().capacity);
                let delivered = reader.released().position;
                let index = self.rings.add_out(Outbound {
                    ends,
                    name: self.name_of(ends),
                    ring: uuid,
                    peer: p,
                    slot,
                    reader,
                    until_consumed: channel.retention == 1,
                    done: 0,
                    settled: 0,
                    delivered,
                    ages: Ages::default(),
                    gaps: 0,
                    lost_messages: 0,
                    waiting: false,
                    trouble: None,
                    messages: 0,
                    bytes: 0,
                });
                self.peers[p].out.push(index);
                return Ok(Some(At::Out(index)));
            }
        }
        Ok(None)
    }

    /// The receiver is here, the sender at a peer.
    fn keep_in(
        &mut self,
        channel: &ChannelEntry,
        direction: usize,
        ends: [Address; 2],
        uuid: Uuid,
        p: usize,
        now: Nanos,
    ) -> tbus::Result<Option<At>> {
        if let Some(at) = self.rings.find(ends) {
            if let At::In(index) = at
                && self.rings.inn[index]
                    .as_ref()
                    .is_some_and(|ring| ring.ring == uuid && ring.peer == p)
            {
                return Ok(Some(at));
            }
            self.let_go(at, now);
        }
        if self.maps.changing.contains(&uuid) {
            return Ok(None);
        }
        let ring = self.bus.open_ring(channel, uuid)?;
        let writer = match ring.kind() {
            Kind::Local => None,
            Kind::Mirror => match ring.mirror_writer() {
                // A relay was killed before the next generation was in force; the peer's OPEN makes it again.
                Err(Error::Closed { .. }) => None,
                writer => Some(writer?),
            },
            Kind::Source => {
                // The sender was here: what it sent is for the receiver, which now is.
                self.change(ends, uuid, Next::Carry(Kind::Local));
                return Ok(None);
            }
        };
        let index = self.rings.add_in(Inbound {
            ends,
            name: self.name_of(ends),
            ring: uuid,
            peer: p,
            capacity: channel.sizes[direction],
            writer: None,
            slot: None,
            consumed: 0,
            tended: 0,
            untended: false,
            ages: Ages::default(),
            noted: u64::MAX,
            gaps: 0,
            lost_messages: 0,
            wanted: None,
            trouble: None,
            messages: 0,
            bytes: 0,
        });
        if let Some(writer) = writer {
            self.rings.set_writer(index, writer);
        }
        Ok(Some(At::In(index)))
    }

    /// An inbound ring becomes the mirror that `open` asks for, as soon as may be.
    pub(super) fn next_mirror(&mut self, index: usize, open: Open, now: Nanos) {
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let begun = ring.wanted.replace(open).is_some();
        self.rings.drop_writer(index); // its role is needed to close the generation before
        if !begun {
            if self.maps.work.is_empty() {
                // Others follow: a change of the map takes as long for one as for all.
                self.maps.work_due = now + GATHER;
            }
            self.maps.work.push(Work::Mirror { index });
        }
    }

    /// The connection is gone on which peer `p` asked for mirrors: its next one has other numbers, and asks again.
    pub(super) fn forget_opens(&mut self, p: usize) {
        let rings = &mut self.rings.inn;
        for ring in rings.iter_mut().flatten().filter(|ring| ring.peer == p) {
            ring.wanted = None;
        }
        let waits = |index: usize| rings[index].as_ref().is_some_and(|r| r.wanted.is_some());
        self.maps.work.retain(|work| match work {
            Work::Role { .. } => true,
            Work::Mirror { index } => waits(*index),
        });
    }

    /// Makes next generations that are due, in one change of the map.
    fn make_generations(&mut self, now: Nanos) {
        let manager = match Manager::open(self.bus.directory(), Duration::ZERO) {
            Ok(manager) => manager,
            Err(Error::Busy { .. }) => {
                self.maps.work_due = now + MANAGER;
                return;
            }
            Err(error) => {
                self.maps.work_due = now + AGAIN;
                return self.try_again(now, "the map cannot be changed", &error);
            }
        };
        let count = self.maps.work.len().min(AT_ONCE);
        let mut work: Vec<Work> = self.maps.work.drain(..count).collect();
        let mut changes = Vec::new();
        work.retain(|work| {
            let change = match work {
                Work::Role { change, .. } => Some(*change),
                Work::Mirror { index } => self.rings.inn[*index].as_ref().and_then(|ring| {
                    let open = ring.wanted.as_ref()?;
                    let next = Next::Mirror {
                        nonce: open.nonce,
                        start: open.head,
                        source: open.source,
                    };
                    Some(Change {
                        ring: ring.ring,
                        next,
                    })
                }),
            };
            changes.extend(change);
            change.is_some()
        });
        let results = match manager.renew(&changes) {
            Ok(results) => results,
            Err(error) => {
                self.maps.work.splice(..0, work);
                self.maps.work_due = now + AGAIN;
                return self.try_again(now, "the map cannot be changed", &error);
            }
        };
        drop(manager);
        for (work, result) in work.into_iter().zip(results) {
            self.totals.generations += u64::from(result.is_ok());
            match work {
                Work::Role { ends, change } => {
                    self.maps.changing.remove(&change.ring);
                    match result {
                        Ok(uuid) => {
                            info!(channel = %self.name_of(ends), ring = %uuid, "the ring's next generation is made")
                        }
                        Err(Error::NotFound { .. }) => {}
                        Err(error) => {
                            let what = "a ring's next generation cannot be made yet";
                            self.try_again(now, what, &error)
                        }
                    }
                }
                Work::Mirror { index } => self.mirror_made(index, result, now),
            }
        }
    }

    fn mirror_made(&mut self, index: usize, result: tbus::Result<Uuid>, now: Nanos) {
        let Some(ring) = self.rings.inn[index].as_mut() else {
            return;
        };
        let Some(open) = ring.wanted.take() else {
            return;
        };
        let p = ring.peer;
        let attached =
            result.and_then(|uuid| Ring::open(self.bus.directory(), uuid)?.mirror_writer());
        match attached {
            Ok(writer) => {
                info!(channel = %ring.name, ring = %writer.ring().uuid(), "a mirror is made");
                ring.trouble = None;
                self.rings.set_writer(index, writer);
                self.resume(p, index, &open, now);
            }
            Err(error) => {
                let (why, text) = match &error {
                    Error::Busy { .. } => (
                        Refusal::NotDrained,
                        format!(
                            "the receiver has not received all of the ring's generation before: {error}"
                        ),
                    ),
                    _ => (Refusal::Ring, error.to_string()),
                };
                ring.trouble = Some(text.clone());
                self.refuse(p, &open, why, text);
            }
        }
    }

    /// Looks whether the files of rings are still the ones that are mapped, if the directory has changed.
    fn check_files(&mut self, now: Nanos) {
        let changed = std::fs::metadata(self.bus.directory().path())
            .and_then(|info| info.modified())
            .ok();
        if changed == self.maps.directory_changed {
            return;
        }
        self.maps.directory_changed = changed;
        let all = (0..self.rings.out.len())
            .map(At::Out)
            .chain((0..self.rings.inn.len()).map(At::In));
        for at in all.collect::<Vec<_>>() {
            let (ring, in_trouble) = match at {
                At::Out(index) => match &self.rings.out[index] {
                    Some(ring) => (ring.reader.ring(), ring.trouble.is_some()),
                    None => continue,
                },
                At::In(index) => match &self.rings.inn[index] {
                    Some(Inbound {
                        writer: Some(writer),
                        trouble,
                        ..
                    }) => (writer.ring(), trouble.is_some()),
                    _ => continue,
                },
            };
            let Err(error) = ring.check_file() else {
                continue;
            };
            // The map may just have got another generation in its place.
            if in_trouble || Some(self.bus.gcim().version()) != self.maps.gcim {
                continue;
            }
            match at {
                At::Out(index) => self.give_up(index, &error.to_string()),
                At::In(index) => self.reject(index, &error),
            }
        }
        let _ = now;
    }
}
