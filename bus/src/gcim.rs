//! GCIM: the global channel information map, the table of all channels of a host, in shared memory.
//!
//! The file is `gcim`, made and changed as `map.rs` says. Before an area's entries of 256 bytes stand their count, the
//! next lock slot, and the count of removed channels, which are behind the others.

use crate::address::{Address, Template};
use crate::directory::Directory;
use crate::error::Result;
use crate::layout::{uuid_to_words, words_to_uuid};
use crate::map::{AREA_HEADER, Area, Kind, Map, cut, load_bytes, store_bytes};
use crate::ring_file::Uuid;
use std::path::{Path, PathBuf};

/// Channels that a map can hold.
pub const MAX_CHANNELS: usize = 65_536;
/// Words of an entry.
const ENTRY: usize = 32;
/// The longest description that an entry holds, bytes; longer ones are cut.
pub const MAX_DESCRIPTION: usize = (ENTRY - 15) * 8;
/// Words before the entries.
const COUNT: usize = 0;
const NEXT_SLOT: usize = 1;
const REMOVED: usize = 2;

static KIND: Kind = Kind {
    name: "gcim",
    magic: *b"TBUSGCIM",
    major: 1,
    of: "channels",
    also: ", with those that are being deleted,",
    capacity: MAX_CHANNELS,
    entry: ENTRY,
};

/// One channel of the map. Sizes are seen from the first address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelEntry {
    /// The two ends.
    pub addresses: [Address; 2],
    /// When it was created, nanoseconds since 1970.
    pub created: u64,
    /// Its ring from the first to the second address has role locks 2 × slot, the other one 2 × slot + 1.
    pub slot: u32,
    /// Accepted and unused.
    pub priority: u32,
    /// 0 delivered, 1 consumed.
    pub retention: u32,
    /// The rings in force: first to second, second to first.
    pub rings: [Uuid; 2],
    /// Capacities of these rings, bytes.
    pub sizes: [u64; 2],
    /// The generations before these, as long as their applications have not received all that is in them; else
    /// [`Uuid::NONE`].
    pub previous: [Uuid; 2],
    /// Any text.
    pub description: String,
}

impl ChannelEntry {
    /// All rings, the current ones first.
    pub fn all_rings(&self) -> impl Iterator<Item = Uuid> {
        let previous = self.previous.into_iter();
        self.rings
            .into_iter()
            .chain(previous.filter(|uuid| *uuid != Uuid::NONE))
    }

    /// The pair of addresses in ascending order: what makes a channel the same one.
    pub fn pair(&self) -> [Address; 2] {
        let [a, b] = self.addresses;
        [a.min(b), a.max(b)]
    }

    fn to_words(&self) -> [u64; ENTRY] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut words = [0; ENTRY];
        words[0] = pair(self.addresses[0].0, self.addresses[1].0);
        words[1] = self.created;
        words[2] = pair(self.slot, self.priority);
        words[3] = self.retention.into();
        for index in 0..2 {
            words[4 + 2 * index..][..2].copy_from_slice(&uuid_to_words(self.rings[index].0));
            words[10 + 2 * index..][..2].copy_from_slice(&uuid_to_words(self.previous[index].0));
        }
        words[8..10].copy_from_slice(&self.sizes);
        let description = cut(&self.description, MAX_DESCRIPTION);
        words[14] = store_bytes(&mut words[15..], description.as_bytes()) as u64;
        words
    }

    /// Another process may have written anything: each word was read once, and is checked where it could mislead.
    fn from_words(words: &[u64; ENTRY]) -> ChannelEntry {
        let (low, high) = (|w: u64| w as u32, |w: u64| (w >> 32) as u32);
        let uuid = |at: usize| Uuid(words_to_uuid([words[at], words[at + 1]]));
        let length = (words[14] as usize).min(MAX_DESCRIPTION);
        ChannelEntry {
            addresses: [Address(low(words[0])), Address(high(words[0]))],
            created: words[1],
            slot: low(words[2]),
            priority: high(words[2]),
            retention: low(words[3]),
            rings: [uuid(4), uuid(6)],
            sizes: [words[8], words[9]],
            previous: [uuid(10), uuid(12)],
            description: String::from_utf8_lossy(&load_bytes(&words[15..], length)).into_owned(),
        }
    }
}

/// All channels at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The map's version that this is.
    pub version: u64,
    /// The lock slot that the next channel gets; never used again.
    pub next_slot: u32,
    /// The channels, in the order in which they are listed.
    pub channels: Vec<ChannelEntry>,
    /// Channels that are no longer in the map, but whose rings may not be closed and removed yet.
    pub removed: Vec<ChannelEntry>,
}

/// The map of a directory.
#[derive(Debug)]
pub struct Gcim {
    map: Map,
}

impl Gcim {
    /// Where the map of a directory is.
    pub fn path(directory: &Directory) -> PathBuf {
        directory.path().join(KIND.name)
    }

    /// Opens the map for writing, or makes an empty one.
    pub(crate) fn open_or_create(
        directory: &Directory,
        key: u32,
        template: Template,
        created: u64,
    ) -> Result<Gcim> {
        let map = Map::open_or_create(&KIND, directory, key, template, created)?;
        Ok(Gcim { map })
    }

    /// Opens the map.
    pub(crate) fn open(directory: &Directory, writable: bool) -> Result<Gcim> {
        let map = Map::open(&KIND, directory, writable)?;
        Ok(Gcim { map })
    }

    /// How addresses are written.
    pub fn template(&self) -> Template {
        self.map.template()
    }

    /// The bus key that the map was made for.
    pub fn key(&self) -> u32 {
        self.map.key()
    }

    /// When the map was made, nanoseconds since 1970.
    pub fn created(&self) -> u64 {
        self.map.created()
    }

    /// How many times the map was written: whoever remembers it notices changes by one load.
    #[inline]
    pub fn version(&self) -> u64 {
        self.map.version()
    }

    /// All channels.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.map.consistent(|area| {
            let count = area.count(COUNT, MAX_CHANNELS)?;
            let removed = area.count(REMOVED, MAX_CHANNELS - count)?;
            let entries =
                |range: core::ops::Range<usize>| range.map(|index| entry(area, index)).collect();
            Ok(Snapshot {
                version: area.version,
                next_slot: area.header(NEXT_SLOT) as u32,
                channels: entries(0..count),
                removed: entries(count..count + removed),
            })
        })
    }

    /// The channels of one address, and the version at which these were all.
    pub fn channels_of(&self, address: Address) -> Result<(u64, Vec<ChannelEntry>)> {
        self.map.consistent(|area| {
            let mut found = Vec::new();
            for index in 0..area.count(COUNT, MAX_CHANNELS)? {
                // The addresses are the first word: the other channels cost one line each.
                let ends = area.word(index, 0);
                if ends as u32 == address.0 || (ends >> 32) as u32 == address.0 {
                    found.push(entry(area, index));
                }
            }
            Ok((area.version, found))
        })
    }

    /// Replaces the whole table. The caller holds the manager's lock. On an error nothing has changed.
    pub(crate) fn publish(
        &self,
        channels: &[ChannelEntry],
        removed: &[ChannelEntry],
        next_slot: u32,
    ) -> Result<u64> {
        let mut header = [0; AREA_HEADER];
        header[COUNT] = channels.len() as u64;
        header[NEXT_SLOT] = next_slot.into();
        header[REMOVED] = removed.len() as u64;
        let entries = channels.iter().chain(removed).map(ChannelEntry::to_words);
        self.map
            .publish(header, channels.len() + removed.len(), entries)
    }

    /// The file.
    pub fn file_path(&self) -> &Path {
        self.map.path()
    }
}

fn entry(area: &Area<'_>, index: usize) -> ChannelEntry {
    ChannelEntry::from_words(&area.entry(index))
}
