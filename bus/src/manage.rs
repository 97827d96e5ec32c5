//! Creating, deleting and emptying channels: what `tbusmgr` does.
//!
//! One manager at a time works on a directory. The map changes at one store ([`crate::gcim`]); what must exist for
//! the new map is made before it, and what the new map no longer has is closed and removed after it. The map itself
//! says what is still to be removed, so the next manager goes on where one was killed. Rings that one had made for a
//! map that never came into force were never used by anybody, and are removed; other rings that the map does not
//! know are left alone.

use crate::access::Grants;
use crate::config::{ChannelConfig, ChannelsConfig, Problem, Retention};
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::gcim::{ChannelEntry, Gcim, Snapshot};
use crate::locks::RoleLock;
use crate::ring_file::{Kind, Ring, RingSpec, Uuid, group, user};
use crate::shm::page_size;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long a closing ring waits for a sender in the midst of a message.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What a write would do, from comparing a configuration with the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Channels that exist and stay as they are.
    pub keep: Vec<ChannelEntry>,
    /// Of these, the ones whose sizes are other than configured, with the configured ones in pages.
    pub other_sizes: Vec<(ChannelEntry, [u64; 2])>,
    /// Of the kept ones, those that are otherwise than configured in something else, and in what.
    pub other_settings: Vec<(ChannelEntry, String)>,
    /// Channels to be made, in the order of the configuration.
    pub create: Vec<ChannelConfig>,
    /// Channels to be deleted, with the unread messages that would be lost.
    pub delete: Vec<(ChannelEntry, u64)>,
}

/// Holds the manager's lock of a directory.
#[derive(Debug)]
pub struct Manager {
    pub(crate) directory: Directory,
    pub(crate) gcim: Gcim,
    _lock: RoleLock,
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// A size as a ring has it: whole pages.
pub fn rounded(size: u64) -> u64 {
    size.next_multiple_of(page_size() as u64)
}

impl Manager {
    /// Takes the manager's lock; waits for another manager up to `patience`.
    pub fn open(directory: &Directory, patience: Duration) -> Result<Manager> {
        let lock = directory.take_manager(patience)?;
        let gcim = Gcim::open(directory, true)?;
        Ok(Manager {
            directory: directory.clone(),
            gcim,
            _lock: lock,
        })
    }

    /// The same; makes the directory and an empty map if there are none.
    pub fn create(config: &ChannelsConfig, patience: Duration) -> Result<Manager> {
        Self::create_at(Directory::path_for_key(config.key), config, patience)
    }

    /// The same in a directory of another name.
    pub fn create_at(
        path: impl AsRef<Path>,
        config: &ChannelsConfig,
        patience: Duration,
    ) -> Result<Manager> {
        let directory = Directory::create(path)?;
        let lock = directory.take_manager(patience)?;
        let gcim = Gcim::open_or_create(&directory, config.key, config.template, now())?;
        Ok(Manager {
            directory,
            gcim,
            _lock: lock,
        })
    }

    /// The map.
    pub fn gcim(&self) -> &Gcim {
        &self.gcim
    }

    /// Compares a configuration with the map; changes nothing.
    pub fn plan(&self, config: &ChannelsConfig) -> Result<Plan> {
        plan(&self.directory, &self.gcim.snapshot()?, config)
    }

    /// Makes the map what `config` says: creates what is missing, deletes what is surplus, leaves alone what exists.
    /// Without `force`, refused if a surplus channel has unread messages. On an error nothing has changed.
    pub fn apply(&self, config: &ChannelsConfig, force: bool) -> Result<Plan> {
        let snapshot = self.finish_removals()?;
        let plan = plan(&self.directory, &snapshot, config)?;
        self.refuse_unread(&plan.delete, force)?;
        let mut next_slot = snapshot.next_slot;
        let mut made = Made {
            directory: &self.directory,
            rings: Vec::new(),
        };
        let mut channels = plan.keep.clone();
        for channel in &plan.create {
            channels.push(made.channel(channel, next_slot)?);
            next_slot = next_slot
                .checked_add(1)
                .filter(|slot| *slot < u32::MAX / 2)
                .ok_or_else(|| Error::Invalid {
                    what: "channels",
                    why: "this map has used up its lock slots; delete it and write it anew".into(),
                })?;
        }
        let removed: Vec<_> = plan
            .delete
            .iter()
            .map(|(channel, _)| channel.clone())
            .collect();
        Grants::of(&self.directory, made.rings.iter().copied())?.allow(&self.directory)?;
        if channels != snapshot.channels {
            self.gcim.publish(&channels, &removed, next_slot)?;
        }
        made.rings.clear(); // they are the map's now
        self.finish_change()?;
        Ok(plan)
    }

    /// Deletes channel `number`, from 1 in the order of the list. Returns it.
    pub fn delete(&self, number: usize, force: bool) -> Result<ChannelEntry> {
        let mut snapshot = self.finish_removals()?;
        let index = check_number(number, snapshot.channels.len())?;
        let channel = snapshot.channels.remove(index);
        let deleted = [(channel.clone(), unread(&self.directory, &channel))];
        self.refuse_unread(&deleted, force)?;
        self.gcim.publish(
            &snapshot.channels,
            std::slice::from_ref(&channel),
            snapshot.next_slot,
        )?;
        self.finish_change()?;
        Ok(channel)
    }

    /// Empties channel `number`, from 1: releases what is unread, in the place of its receivers. Returns the
    /// messages discarded. Refused while a receiver is attached.
    pub fn clean(&self, number: usize) -> Result<u64> {
        let snapshot = self.gcim.snapshot()?;
        let index = check_number(number, snapshot.channels.len())?;
        let channel = &snapshot.channels[index];
        let mut receivers = Vec::new();
        for (current, previous) in channel.rings.into_iter().zip(channel.previous) {
            // All roles before anything is discarded. The two generations of a ring share theirs.
            let receiver = Ring::open(&self.directory, current)?.receiver()?;
            receivers.push(match previous {
                Uuid::NONE => (receiver, None),
                previous => {
                    drop(receiver);
                    let receiver = Ring::open(&self.directory, previous)?.receiver()?;
                    (receiver, Some(current))
                }
            });
        }
        let mut discarded = 0;
        for (mut receiver, next) in receivers {
            discarded += discard(&mut receiver);
            drop(receiver);
            if let Some(next) = next {
                discarded += discard(&mut Ring::open(&self.directory, next)?.receiver()?);
            }
        }
        Ok(discarded)
    }

    fn refuse_unread(&self, deleted: &[(ChannelEntry, u64)], force: bool) -> Result<()> {
        match deleted.iter().find(|(_, unread)| *unread > 0 && !force) {
            Some((channel, unread)) => Err(Error::Unread {
                channel: channel
                    .addresses
                    .map(|address| self.gcim.template().show(address).to_string()),
                messages: *unread,
            }),
            None => Ok(()),
        }
    }

    /// Before a change: finishes what a killed manager began. Closes and removes what the map says is to be removed, and
    /// rings that were made for a map that never came into force. Returns the map.
    pub(crate) fn finish_removals(&self) -> Result<Snapshot> {
        let snapshot = self.gcim.snapshot()?;
        let known: HashSet<Uuid> = all_rings(&snapshot.channels).collect();
        let removed: HashSet<Uuid> = all_rings(&snapshot.removed).collect();
        let mut orphans = self.directory.rings()?;
        orphans.retain(|uuid| {
            !known.contains(uuid) && !removed.contains(uuid) && self.is_unused(*uuid, &snapshot)
        });
        self.remove(snapshot, &orphans)
    }

    /// After a change: closes and removes what the map no longer has. This manager leaves no other rings behind, so nobody
    /// need look for such.
    pub(crate) fn finish_change(&self) -> Result<()> {
        self.remove(self.gcim.snapshot()?, &[]).map(drop)
    }

    /// Closes and removes the rings that the map says are to be removed, and `orphans`. Senders and receivers that are attached
    /// are told `Closed`, the receivers after what is there. Returns the map as it is then.
    fn remove(&self, snapshot: Snapshot, orphans: &[Uuid]) -> Result<Snapshot> {
        let gone = || all_rings(&snapshot.removed).chain(orphans.iter().copied());
        // Before the rings are removed: they say whose they were.
        let former = Grants::of(&self.directory, gone())?;
        if !former.is_empty() {
            let present = Grants::of(&self.directory, all_rings(&snapshot.channels))?;
            former.without(&present).revoke(&self.directory)?;
        }
        for uuid in gone() {
            close_and_remove(&self.directory, uuid)?;
        }
        if snapshot.removed.is_empty() {
            return Ok(snapshot);
        }
        self.gcim
            .publish(&snapshot.channels, &[], snapshot.next_slot)?;
        self.gcim.snapshot()
    }

    /// True for a ring to which nobody ever attached, with a lock slot that no map has given out yet, or that of the
    /// channel for which it was to be the next generation.
    fn is_unused(&self, uuid: Uuid, snapshot: &Snapshot) -> bool {
        Ring::open(&self.directory, uuid).is_ok_and(|ring| {
            let (status, header) = (ring.status(), ring.header());
            let next_of = |channel: &ChannelEntry| {
                let mut ends = channel.addresses.map(|address| address.0);
                ends.rotate_left(header.lock_slot as usize % 2);
                channel.slot == header.lock_slot / 2 && ends == [header.from, header.to]
            };
            status.producer.attaches + status.consumer.attaches == 0
                && (header.lock_slot / 2 >= snapshot.next_slot
                    || snapshot.channels.iter().any(next_of))
        })
    }
}

/// Releases all that is there; returns how many messages that were.
pub(crate) fn discard(receiver: &mut crate::Receiver) -> u64 {
    let mut discarded = 0;
    while let Ok(message) = receiver.peek() {
        message.release();
        discarded += 1;
    }
    discarded
}

fn all_rings(channels: &[ChannelEntry]) -> impl Iterator<Item = Uuid> {
    channels.iter().flat_map(ChannelEntry::all_rings)
}

fn close_and_remove(directory: &Directory, uuid: Uuid) -> Result<()> {
    match Ring::open(directory, uuid) {
        Ok(ring) => {
            // A sender that is stopped in the midst of a message, or damage, must not keep the file.
            let _ = ring.close(CLOSE_PATIENCE);
            ring.remove()
        }
        Err(Error::NotFound { .. }) => Ok(()),
        Err(_) => {
            let path = directory.ring_path(uuid);
            std::fs::remove_file(&path).map_err(|e| Error::system("remove", &path, e))
        }
    }
}

fn check_number(number: usize, count: usize) -> Result<usize> {
    number
        .checked_sub(1)
        .filter(|index| *index < count)
        .ok_or(Error::NoSuchChannel { number, count })
}

/// Messages that are not released in all rings of a channel; 0 for a ring that is gone, 1 for one that cannot be
/// read and so may have any number.
fn unread(directory: &Directory, channel: &ChannelEntry) -> u64 {
    let unread = |uuid| match Ring::open(directory, uuid) {
        Ok(ring) => ring.status().unread_messages,
        Err(Error::NotFound { .. }) => 0,
        Err(_) => 1,
    };
    channel.all_rings().map(unread).sum()
}

/// Compares a configuration with a map.
pub fn plan(directory: &Directory, snapshot: &Snapshot, config: &ChannelsConfig) -> Result<Plan> {
    let wanted: HashMap<_, _> = config
        .channels
        .iter()
        .map(|channel| {
            let [a, b] = channel.addresses;
            ([a.min(b), a.max(b)], channel)
        })
        .collect();
    let mut plan = Plan::default();
    let mut existing = HashSet::new();
    for channel in &snapshot.channels {
        let Some(config) = wanted.get(&channel.pair()) else {
            plan.delete
                .push((channel.clone(), unread(directory, channel)));
            continue;
        };
        existing.insert(channel.pair());
        let mut sizes = [config.send_size, config.recv_size].map(rounded);
        if config.addresses != channel.addresses {
            sizes.reverse(); // written from the other end
        }
        if sizes != channel.sizes {
            plan.other_sizes.push((channel.clone(), sizes));
        }
        let others = other_settings(directory, channel, config)?;
        if !others.is_empty() {
            plan.other_settings.push((channel.clone(), others));
        }
        plan.keep.push(channel.clone());
    }
    let is_new = |channel: &&ChannelConfig| {
        let [a, b] = channel.addresses;
        !existing.contains(&[a.min(b), a.max(b)])
    };
    plan.create = config.channels.iter().filter(is_new).cloned().collect();
    Ok(plan)
}

/// In what an existing channel is otherwise than configured, sizes apart; empty if in nothing. What the
/// configuration does not say may be anything.
fn other_settings(
    directory: &Directory,
    channel: &ChannelEntry,
    config: &ChannelConfig,
) -> Result<String> {
    let mut others = Vec::new();
    let retention = Retention::from_number(channel.retention);
    if retention != config.retention {
        let (is, wanted) = (retention.name(), config.retention.name());
        others.push(format!("retention {is}, the file says {wanted}"));
    }
    if config.owner.is_some() || config.group.is_some() || config.mode.is_some() {
        let path = directory.ring_path(channel.rings[0]);
        let Ok(ring) = std::fs::symlink_metadata(path) else {
            return Ok(others.join("; ")); // gone, which is told elsewhere
        };
        let mut compare = |what, is: u32, wanted: Option<u32>| {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != is) {
                others.push(format!("{what} {is}, the file says {wanted}"));
            }
        };
        compare("owner", ring.uid(), user(config.owner.as_deref())?);
        compare("group", ring.gid(), group(config.group.as_deref())?);
        let is = ring.mode() & 0o777;
        if let Some(wanted) = config.mode.filter(|wanted| *wanted != is) {
            others.push(format!("mode {is:03o}, the file says {wanted:03o}"));
        }
    }
    Ok(others.join("; "))
}

/// Owners and groups that this host does not know, which no file alone can tell.
pub fn unknown_owners(config: &ChannelsConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    for channel in &config.channels {
        let checks = [
            user(channel.owner.as_deref()),
            group(channel.group.as_deref()),
        ];
        for error in checks.into_iter().filter_map(|check| check.err()) {
            // The text has its own mend.
            let text = error.to_string();
            let (reason, mend) = text.split_once("; ").unwrap_or((&text, "correct it"));
            problems.push(Problem {
                row: channel.at.0,
                column: channel.at.1,
                reason: reason.into(),
                mend: mend.into(),
            });
        }
    }
    problems
}

/// Ring files made for a map that is not in force yet; removed again if it never is.
struct Made<'a> {
    directory: &'a Directory,
    rings: Vec<Uuid>,
}

impl Made<'_> {
    fn channel(&mut self, config: &ChannelConfig, slot: u32) -> Result<ChannelEntry> {
        let [a, b] = config.addresses;
        let sizes = [config.send_size, config.recv_size].map(rounded);
        let mut rings = [Uuid::NONE; 2];
        for (index, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
            let spec = RingSpec {
                kind: Kind::Local,
                lock_slot: 2 * slot + index as u32,
                mode: config.mode,
                owner: config.owner.clone(),
                group: config.group.clone(),
                ..RingSpec::local(sizes[index], from, to)
            };
            rings[index] = Ring::create_file(self.directory, &spec)?;
            self.rings.push(rings[index]);
        }
        Ok(ChannelEntry {
            addresses: [a, b],
            created: now(),
            slot,
            priority: config.priority,
            retention: config.retention.number(),
            rings,
            sizes,
            previous: [Uuid::NONE; 2],
            description: config.description.clone(),
        })
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for uuid in &self.rings {
            let _ = std::fs::remove_file(self.directory.ring_path(*uuid));
        }
    }
}
