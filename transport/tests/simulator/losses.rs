//! Which rings there are, what must always hold of them, and what may be lost with a memory.

use crate::flow::{Excuse, Sent, Wrong};
use crate::sim::{Live, SECOND, Sim, channels_of, make_host};
use crate::trace::note;
use std::time::Duration;
use tbus::manage::Manager;
use tbus::{Bus, Kind, Ring, Uuid};
use tbus_transport::sim::Host;

impl Sim {
    /// The rings of a flow on one of its hosts: in force, and before it.
    pub fn rings(&self, index: usize, side: usize) -> [Option<Ring>; 2] {
        let flow = &self.flows[index];
        let directory = self.hosts[flow.hosts[side]].bus.directory();
        let found = self.hosts[flow.hosts[side]]
            .bus
            .gcim()
            .snapshot()
            .ok()
            .and_then(|snapshot| {
                snapshot.channels.into_iter().find_map(|channel| {
                    let at = (0..2).find(|at| {
                        let mut ends = channel.addresses;
                        ends.rotate_left(*at);
                        ends == flow.ends
                    })?;
                    Some([channel.rings[at], channel.previous[at]])
                })
            });
        found.map_or([None, None], |uuids| {
            uuids.map(|uuid| (uuid != Uuid::NONE).then(|| Ring::open(directory, uuid).ok())?)
        })
    }

    /// Notes which source rings are of which lives.
    pub fn see_sources(&mut self) {
        for index in 0..self.flows.len() {
            if let [Some(ring), _] = self.rings(index, 0) {
                self.flows[index].saw_source(ring.uuid());
            }
        }
    }

    /// Now and then: what must always hold of a flow's rings.
    pub fn check_some(&mut self) -> Result<(), Wrong> {
        if !self.random.chance(30) {
            return Ok(());
        }
        let index = self.random.below(self.flows.len() as u64) as usize;
        let ([Some(source), _], [Some(mirror), _]) = (self.rings(index, 0), self.rings(index, 1))
        else {
            return Ok(());
        };
        if source.kind() != Kind::Source || mirror.kind() != Kind::Mirror {
            return Ok(());
        }
        let name = self.flows[index].name();
        let (s, m) = (source.status(), mirror.status());
        let last = match self
            .tails
            .iter_mut()
            .find(|(uuid, _)| *uuid == mirror.uuid())
        {
            Some((_, tail)) => std::mem::replace(tail, m.tail.position),
            None => {
                self.tails.push((mirror.uuid(), m.tail.position));
                0
            }
        };
        if m.tail.position < last {
            return Err(format!(
                "{name}: the mirror's tail went back from {last} to {}",
                m.tail.position
            ));
        }
        let paired = mirror.peer() == Some(source.uuid()) && source.peer() == Some(mirror.uuid());
        let bound = if self.shape.retained {
            m.released
        } else {
            m.tail
        };
        if paired && (s.released.position > bound.position || m.tail.position > s.tail.position) {
            return Err(format!(
                "{name}: the source is at {s:#?}, its mirror at {m:#?}"
            ));
        }
        Ok(())
    }

    /// What a receiving memory held is lost: which messages need not come, and which may come again.
    fn excuse_receiver(&mut self, index: usize) {
        let rings = self.rings(index, 1);
        let released = match self.rings(index, 0) {
            [Some(source), _] => source.status().released.sequence,
            _ => 0,
        };
        let retained = self.shape.retained;
        let flow = &mut self.flows[index];
        for ring in rings.iter().flatten() {
            let Some(life) = ring.peer().and_then(|peer| flow.life_of(peer)) else {
                continue;
            };
            for earlier in 0..life {
                flow.excuse(earlier, 0..u64::MAX, Excuse::Sender);
            }
            let tail = ring.status().tail.sequence;
            if life < flow.life {
                flow.excuse(life, 0..tail, Excuse::Sender);
            } else if !retained {
                flow.excuse(life, 0..tail, Excuse::Receiver);
            }
        }
        let life = flow.life;
        // Also under `delivered`: what was published and not yet acknowledged comes again, into another memory.
        flow.again_from = flow
            .sent
            .iter()
            .position(|m| m.life == life && m.sequence >= released)
            .map(|from| (from, Vec::new()));
    }

    /// What a sending memory held is lost, as far as the receiver has not published it.
    fn excuse_sender(&mut self, index: usize) {
        let rings = self.rings(index, 1);
        let flow = &mut self.flows[index];
        let published = rings
            .iter()
            .flatten()
            .filter(|ring| ring.peer().and_then(|peer| flow.life_of(peer)) == Some(flow.life))
            .map(|ring| ring.status().tail.sequence)
            .max();
        flow.excuse(flow.life, published.unwrap_or(0)..u64::MAX, Excuse::Sender);
        // What the receiver lost before can be reported no more.
        let lost = |m: &&mut Sent| m.excuse == Some(Excuse::Receiver) && !m.seen;
        for message in flow.sent.iter_mut().filter(lost) {
            message.excuse = Some(Excuse::Sender);
        }
        flow.life += 1;
    }

    /// A host loses its memory, and with it everything that ran there.
    pub fn lose_host(&mut self, host: Host) {
        note(|| format!("host {} is lost", host + 1));
        self.stats.host_losses += 1;
        self.see_sources();
        for index in 0..self.flows.len() {
            match self.flows[index].hosts.iter().position(|h| *h == host) {
                Some(0) => self.excuse_sender(index),
                Some(_) => self.excuse_receiver(index),
                None => {}
            }
        }
        for flow in &mut self.flows {
            if flow.hosts[0] == host {
                flow.sender = None;
            }
            if flow.hosts[1] == host {
                flow.receiver = None;
            }
        }
        let here = &mut self.hosts[host];
        let dying = std::mem::take(&mut here.dying)
            .into_iter()
            .map(|dying| dying.1);
        let all = here.live.take().into_iter().chain(here.second.take());
        for live in all.chain(dying) {
            self.world.exit(live.process);
        }
        let _ = std::fs::remove_dir_all(&here.path);
        make_host(&here.path, &channels_of(host, &self.shape));
        here.bus = Bus::attach_at(&here.path).expect("a bus");
        here.start_due = Some(self.world.now() + self.random.skewed(SECOND));
        self.see_sources();
    }

    /// Deletes the first channel of a host with everything in it, and makes it again.
    pub fn recreate(&mut self, host: Host) -> Result<(), Wrong> {
        // One that is stopped keeps its rings, and their receivers then do not learn of the end.
        let is_stopped = |live: &Live| live.paused_until != 0;
        self.end_second(host);
        if !self.hosts[host].dying.is_empty()
            || self.hosts[host].live.as_ref().is_some_and(is_stopped)
        {
            return Ok(());
        }
        self.world.spare();
        note(|| format!("host {}: a channel is deleted and made again", host + 1));
        self.stats.recreations += 1;
        self.see_sources();
        let manager =
            Manager::open(self.hosts[host].bus.directory(), Duration::ZERO).expect("a manager");
        let channel = manager.gcim().snapshot().expect("a map").channels[0].addresses;
        for index in 0..self.flows.len() {
            let flow = &self.flows[index];
            if flow.ends != channel && flow.ends != [channel[1], channel[0]] {
                continue;
            }
            match flow.hosts.iter().position(|h| *h == host) {
                Some(0) => self.excuse_sender(index),
                Some(_) => {
                    self.excuse_receiver(index);
                    // A receiver that is attached goes on to the end of the old rings, and then has the new one.
                    let mut old: Vec<Uuid> = self
                        .rings(index, 1)
                        .iter()
                        .flatten()
                        .map(Ring::uuid)
                        .collect();
                    let flow = &mut self.flows[index];
                    old.extend(
                        flow.receiver
                            .as_ref()
                            .map(|receiver| receiver.ring().uuid()),
                    );
                    flow.again_from = flow.again_from.take().map(|(from, _)| (from, old));
                }
                None => {}
            }
        }
        self.delete_first(host, manager)?;
        let manager =
            Manager::open(self.hosts[host].bus.directory(), Duration::ZERO).expect("a manager");
        manager
            .apply(&channels_of(host, &self.shape), true)
            .expect("made again");
        drop(manager);
        self.see_sources();
        Ok(())
    }

    /// A manager that removes rings waits until the relay has let go of them.
    fn delete_first(&mut self, host: Host, manager: Manager) -> Result<(), Wrong> {
        let version = self.hosts[host].bus.gcim().version();
        std::thread::scope(|scope| {
            let deleting = scope.spawn(move || manager.delete(1, true).map(drop));
            while self.hosts[host].bus.gcim().version() == version {
                std::thread::yield_now();
            }
            self.world.advance(self.now() + 2_000_000);
            self.step(host)?;
            let deleted = deleting.join().expect("a manager");
            deleted.map_err(|e| format!("deleting: {e}"))
        })
    }
}
