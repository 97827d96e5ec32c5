//! GCIM: the global channel information map, the table of all channels of a host, in shared memory.
//!
//! One file, `gcim`, with two areas that each hold a whole table. A writer fills the area that is not in force and
//! then stores the next version, whose lowest bit says which area is. So the map changes at one store: a writer that
//! is killed at any instruction before has changed nothing, and after it everything. A reader copies what it needs
//! and looks at the version again; if that has changed, it begins anew.
//!
//! ```text
//!   0x0000  header      what the map is; constant
//!   0x0100  version     number of writes so far; the area in force is version mod 2
//!   0x1000  area 0      count, next lock slot, then entries of 256 bytes
//!   …       area 1      the same, 65,536 entries further
//! ```
//!
//! The file is sparse: an area gets its memory when it is written. Applications map it read-only.

use crate::address::{Address, Template};
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::files::{FreshFile, reserve_space};
use crate::layout::mix;
use crate::ring_file::Uuid;
use crate::shm::{Words, page_size};
use crate::sync::{Acquire, Relaxed, Release};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// First eight bytes of the map: "TBUSGCIM".
const MAGIC: u64 = u64::from_le_bytes(*b"TBUSGCIM");
const MAJOR: u64 = 1;
/// Channels that a map can hold.
pub const MAX_CHANNELS: usize = 65_536;
/// Words of an entry.
const ENTRY: usize = 32;
/// The longest description that an entry holds, bytes; longer ones are cut.
pub const MAX_DESCRIPTION: usize = (ENTRY - 15) * 8;
/// Words before an area's entries: count, next lock slot, count of removed channels (behind the others), 5 unused.
const AREA_HEADER: usize = 8;
const AREA: usize = AREA_HEADER + MAX_CHANNELS * ENTRY;
/// Word indices.
const VERSION: usize = 0x100 / 8;
const AREAS: usize = 0x1000 / 8;
const WORDS: usize = AREAS + 2 * AREA;
/// Words of the header: magic, major, template, key, created, check.
const HEADER: usize = 6;

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
        let mut put = |at: usize, uuid: Uuid| {
            let (low, high) = uuid.0.split_at(8);
            words[at] = u64::from_le_bytes(low.try_into().expect("eight bytes"));
            words[at + 1] = u64::from_le_bytes(high.try_into().expect("eight bytes"));
        };
        for index in 0..2 {
            put(4 + 2 * index, self.rings[index]);
            put(10 + 2 * index, self.previous[index]);
        }
        words[8..10].copy_from_slice(&self.sizes);
        let mut cut = self.description.len().min(MAX_DESCRIPTION);
        while !self.description.is_char_boundary(cut) {
            cut -= 1;
        }
        words[14] = cut as u64;
        for (word, chunk) in words[15..]
            .iter_mut()
            .zip(self.description.as_bytes()[..cut].chunks(8))
        {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(bytes);
        }
        words
    }

    /// Another process may have written anything: each word was read once, and is checked where it could mislead.
    fn from_words(words: &[u64; ENTRY]) -> ChannelEntry {
        let (low, high) = (|w: u64| w as u32, |w: u64| (w >> 32) as u32);
        let uuid = |at: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&words[at].to_le_bytes());
            bytes[8..].copy_from_slice(&words[at + 1].to_le_bytes());
            Uuid(bytes)
        };
        let length = (words[14] as usize).min(MAX_DESCRIPTION);
        let bytes: Vec<u8> = words[15..]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .take(length)
            .collect();
        ChannelEntry {
            addresses: [Address(low(words[0])), Address(high(words[0]))],
            created: words[1],
            slot: low(words[2]),
            priority: high(words[2]),
            retention: low(words[3]),
            rings: [uuid(4), uuid(6)],
            sizes: [words[8], words[9]],
            previous: [uuid(10), uuid(12)],
            description: String::from_utf8_lossy(&bytes).into_owned(),
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
    words: Words,
    /// For writing.
    file: File,
    path: PathBuf,
    template: Template,
    key: u32,
    created: u64,
}

impl Gcim {
    /// Where the map of a directory is.
    pub fn path(directory: &Directory) -> PathBuf {
        directory.path().join("gcim")
    }

    /// Makes an empty map, or opens the one that another process was faster to make.
    pub(crate) fn create(
        directory: &Directory,
        key: u32,
        template: Template,
        created: u64,
    ) -> Result<Gcim> {
        let path = Self::path(directory);
        let fresh = FreshFile::new(directory.path(), &path, 0o660)?;
        let size = (WORDS * 8).next_multiple_of(page_size()) as u64;
        fresh
            .file
            .set_len(size)
            .map_err(|e| Error::system("size", &path, e))?;
        reserve_space(&fresh.file, &path, 0, (AREAS * 8) as u64)?;
        let words = Words::map(&fresh.file, &path, WORDS, true)?;
        let header = header_words(template, key, created);
        for (index, value) in header.into_iter().enumerate() {
            words.at(index).store(value, Relaxed); // nobody else has the file yet
        }
        words.at(VERSION).store(0, Relaxed); // as above
        match fresh.publish(&path) {
            Err(Error::System { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        Self::open(directory, true)
    }

    /// Opens the map.
    pub(crate) fn open(directory: &Directory, writable: bool) -> Result<Gcim> {
        let path = Self::path(directory);
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(&path)
            .map_err(|e| Error::system("open", &path, e))?;
        let info = file
            .metadata()
            .map_err(|e| Error::system("inspect", &path, e))?;
        let bad = |why: String| {
            Err(Error::BadFile {
                path: path.clone(),
                why,
            })
        };
        if !info.is_file() || info.len() < (WORDS * 8) as u64 {
            return bad(format!(
                "it has {} bytes, a map has {}",
                info.len(),
                WORDS * 8
            ));
        }
        let words = Words::map(&file, &path, WORDS, writable)?;
        let mut header = [0; HEADER];
        for (index, value) in header.iter_mut().enumerate() {
            *value = words.at(index).load(Acquire); // constant since the file has a name
        }
        let [magic, major, template, key, created, check] = header;
        if magic != MAGIC {
            return bad("it is no map of channels: it does not begin with \"TBUSGCIM\"".into());
        }
        if major != MAJOR {
            return Err(Error::Layout {
                path,
                found: major as u32,
                ours: MAJOR as u32,
            });
        }
        let template = Template::from_bits(template);
        let (Some(template), Ok(key)) = (template, u32::try_from(key)) else {
            return bad("its header is damaged".into());
        };
        if check != check_of(&header[..HEADER - 1]) {
            return bad("the check of its header is wrong".into());
        }
        Ok(Gcim {
            words,
            file,
            path,
            template,
            key,
            created,
        })
    }

    /// How addresses are written.
    pub fn template(&self) -> Template {
        self.template
    }

    /// The bus key that the map was made for.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// When the map was made, nanoseconds since 1970.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// How many times the map was written: whoever remembers it notices changes by one load.
    #[inline]
    pub fn version(&self) -> u64 {
        self.words.at(VERSION).load(Acquire) // partner: Release in publish
    }

    /// All channels.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.consistent(|area, version| {
            let count = self.count(area)?;
            let next_slot = self.words.at(area + 1).load(Relaxed) as u32; // ordered by consistent
            let removed = self.words.at(area + 2).load(Relaxed); // as above
            let removed = usize::try_from(removed)
                .ok()
                .filter(|n| *n <= MAX_CHANNELS - count)?;
            let entries = |range: core::ops::Range<usize>| {
                range.map(|index| self.entry(area, index)).collect()
            };
            Some(Snapshot {
                version,
                next_slot,
                channels: entries(0..count),
                removed: entries(count..count + removed),
            })
        })
    }

    /// The channels of one address, and the version at which these were all.
    pub fn channels_of(&self, address: Address) -> Result<(u64, Vec<ChannelEntry>)> {
        self.consistent(|area, version| {
            let mut found = Vec::new();
            for index in 0..self.count(area)? {
                // The addresses are the first word: the other channels cost one line each.
                let ends = self
                    .words
                    .at(area + AREA_HEADER + index * ENTRY)
                    .load(Relaxed);
                if ends as u32 == address.0 || (ends >> 32) as u32 == address.0 {
                    found.push(self.entry(area, index));
                }
            }
            Some((version, found))
        })
    }

    /// Reads from the area in force, again if the map was written meanwhile. `None` from `read`: damage, unless
    /// the map was written meanwhile.
    fn consistent<T>(&self, read: impl Fn(usize, u64) -> Option<T>) -> Result<T> {
        // A writer needs at least microseconds for each version, a reader as many: it gets through.
        for _ in 0..1000 {
            let version = self.version();
            let result = read(AREAS + (version as usize & 1) * AREA, version);
            // The reads before this load; partner: the Release fence at the beginning of publish.
            crate::sync::fence(Acquire);
            if self.words.at(VERSION).load(Relaxed) == version {
                let why =
                    || format!("its version {version} says more than {MAX_CHANNELS} channels");
                return result.ok_or_else(|| Error::BadFile {
                    path: self.path.clone(),
                    why: why(),
                });
            }
        }
        Err(Error::BadFile {
            path: self.path.clone(),
            why: "it is being written without end".into(),
        })
    }

    fn count(&self, area: usize) -> Option<usize> {
        let count = self.words.at(area).load(Relaxed); // ordered by consistent
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_CHANNELS)
    }

    fn entry(&self, area: usize, index: usize) -> ChannelEntry {
        let mut words = [0; ENTRY];
        for (offset, word) in words.iter_mut().enumerate() {
            *word = self
                .words
                .at(area + AREA_HEADER + index * ENTRY + offset)
                .load(Relaxed); // as above
        }
        ChannelEntry::from_words(&words)
    }

    /// Replaces the whole table. The caller holds the writer's lock. On an error nothing has changed.
    pub(crate) fn publish(
        &self,
        channels: &[ChannelEntry],
        removed: &[ChannelEntry],
        next_slot: u32,
    ) -> Result<u64> {
        let count = channels.len() + removed.len();
        if count > MAX_CHANNELS {
            let why = format!(
                "{count} channels, those included that are being deleted; a map holds {MAX_CHANNELS}"
            );
            return Err(Error::Invalid {
                what: "channels",
                why,
            });
        }
        let next = self.version() + 1;
        let area = AREAS + (next as usize & 1) * AREA;
        let size = 8 * (AREA_HEADER + count * ENTRY) as u64;
        reserve_space(&self.file, &self.path, 8 * area as u64, size)?;
        // Readers of the version before last, whose area this was, see its successor before they see any of the
        // stores below. Partner: the Acquire fence in consistent.
        crate::sync::fence(Release);
        // Relaxed: in force by the Release of the version only.
        self.words.at(area).store(channels.len() as u64, Relaxed);
        self.words.at(area + 1).store(next_slot.into(), Relaxed);
        self.words.at(area + 2).store(removed.len() as u64, Relaxed);
        for (index, channel) in channels.iter().chain(removed).enumerate() {
            for (offset, word) in channel.to_words().into_iter().enumerate() {
                self.words
                    .at(area + AREA_HEADER + index * ENTRY + offset)
                    .store(word, Relaxed);
            }
        }
        self.words.at(VERSION).store(next, Release); // partner: Acquire in version
        Ok(next)
    }

    /// The file.
    pub fn file_path(&self) -> &Path {
        &self.path
    }
}

fn header_words(template: Template, key: u32, created: u64) -> [u64; HEADER] {
    let mut words = [MAGIC, MAJOR, template.to_bits(), key.into(), created, 0];
    words[HEADER - 1] = check_of(&words[..HEADER - 1]);
    words
}

fn check_of(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(MAGIC, |sum, word| mix(sum ^ word).wrapping_add(1))
}
