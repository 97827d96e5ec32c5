//! A table in shared memory that changes as a whole, at one store: what the map of channels ([`crate::gcim`]) and the
//! map of routes ([`crate::grm`]) have in common.
//!
//! One file with two areas that each hold a whole table. A writer fills the area that is not in force and then
//! stores the next version, whose lowest bit says which area is. So the map changes at one store: a writer that
//! is killed at any instruction before has changed nothing, and after it everything. A reader copies what it needs
//! and looks at the version again; if that has changed, it begins anew.
//!
//! ```text
//!   0x0000  header      magic, major version, address template, key, time of creation, check; constant
//!   0x0100  version     number of writes so far; the area in force is version mod 2
//!   0x1000  area 0      8 words of which the first is the count of entries, then the entries, all of one size
//!   …       area 1      the same, as many entries further as a map can hold
//! ```
//!
//! The file is sparse: an area gets its memory when it is written. Applications map it read-only.

use crate::address::Template;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::files::{FreshFile, reserve_space};
use crate::layout::mix;
use crate::shm::{Words, page_size};
use crate::sync::{Acquire, Relaxed, Release};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

/// Words before an area's entries. The first is the count of entries; what the others mean is the kind's.
pub(crate) const AREA_HEADER: usize = 8;
/// Word indices.
const VERSION: usize = 0x100 / 8;
const AREAS: usize = 0x1000 / 8;
/// Words of the header: magic, major, template, key, created, check.
const HEADER: usize = 6;

/// What makes one map different from another.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The file's name in its directory.
    pub name: &'static str,
    /// The file's first eight bytes.
    pub magic: [u8; 8],
    /// Layout version; others are refused.
    pub major: u32,
    /// What its entries are, for people: "channels".
    pub of: &'static str,
    /// What else counts when they are too many: " and …", or nothing.
    pub also: &'static str,
    /// Entries that it can hold.
    pub capacity: usize,
    /// Words of an entry.
    pub entry: usize,
}

impl Kind {
    /// Words of an area.
    const fn area(&self) -> usize {
        AREA_HEADER + self.capacity * self.entry
    }

    const fn words(&self) -> usize {
        AREAS + 2 * self.area()
    }

    fn path(&self, directory: &Directory) -> PathBuf {
        directory.path().join(self.name)
    }

    /// Finds damage, not malice.
    fn check_of(&self, words: &[u64]) -> u64 {
        words
            .iter()
            .fold(u64::from_le_bytes(self.magic), |sum, word| {
                mix(sum ^ word).wrapping_add(1)
            })
    }
}

/// The map of a directory.
#[derive(Debug)]
pub(crate) struct Map {
    kind: &'static Kind,
    words: Words,
    /// For writing.
    file: File,
    path: PathBuf,
    template: Template,
    key: u32,
    created: u64,
}

impl Map {
    /// Opens the map for writing; if there is none, makes an empty one with this key, template and time of creation.
    /// Refused if the map has another template.
    pub fn open_or_create(
        kind: &'static Kind,
        directory: &Directory,
        key: u32,
        template: Template,
        created: u64,
    ) -> Result<Map> {
        let map = match Self::open(kind, directory, true) {
            Err(Error::NotFound { .. }) => Self::create(kind, directory, key, template, created)?,
            other => other?,
        };
        map.check_template(template)?;
        Ok(map)
    }

    /// Makes an empty map, or opens the one that another process was faster to make.
    fn create(
        kind: &'static Kind,
        directory: &Directory,
        key: u32,
        template: Template,
        created: u64,
    ) -> Result<Map> {
        let path = kind.path(directory);
        let fresh = FreshFile::new(directory.path(), &path, 0o660)?;
        let size = (kind.words() * 8).next_multiple_of(page_size()) as u64;
        fresh
            .file
            .set_len(size)
            .map_err(|e| Error::system("size", &path, e))?;
        reserve_space(&fresh.file, &path, 0, (AREAS * 8) as u64)?;
        let words = Words::map(&fresh.file, &path, kind.words(), true)?;
        let mut header = [
            u64::from_le_bytes(kind.magic),
            kind.major.into(),
            template.to_bits(),
            key.into(),
            created,
            0,
        ];
        header[HEADER - 1] = kind.check_of(&header[..HEADER - 1]);
        for (index, value) in header.into_iter().enumerate() {
            words.at(index).store(value, Relaxed); // nobody else has the file yet
        }
        words.at(VERSION).store(0, Relaxed); // as above
        match fresh.publish(&path) {
            Err(Error::System { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        Self::open(kind, directory, true)
    }

    /// Opens the map.
    pub fn open(kind: &'static Kind, directory: &Directory, writable: bool) -> Result<Map> {
        let path = kind.path(directory);
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
        let size = kind.words() * 8;
        if !info.is_file() || info.len() < size as u64 {
            return bad(format!("it has {} bytes, a map has {size}", info.len()));
        }
        let words = Words::map(&file, &path, kind.words(), writable)?;
        let mut header = [0; HEADER];
        for (index, value) in header.iter_mut().enumerate() {
            *value = words.at(index).load(Acquire); // constant since the file has a name
        }
        let [magic, major, template, key, created, check] = header;
        if magic != u64::from_le_bytes(kind.magic) {
            return bad(format!(
                "it is no map of {}: it does not begin with \"{}\"",
                kind.of,
                kind.magic.escape_ascii()
            ));
        }
        if major != kind.major.into() {
            return Err(Error::Layout {
                path,
                found: major as u32,
                ours: kind.major,
            });
        }
        let template = Template::from_bits(template);
        let (Some(template), Ok(key)) = (template, u32::try_from(key)) else {
            return bad("its header is damaged".into());
        };
        if check != kind.check_of(&header[..HEADER - 1]) {
            return bad("the check of its header is wrong".into());
        }
        Ok(Map {
            kind,
            words,
            file,
            path,
            template,
            key,
            created,
        })
    }

    /// Refuses another address template than the map's: the same numbers would be written otherwise.
    pub fn check_template(&self, template: Template) -> Result<()> {
        if self.template == template {
            return Ok(());
        }
        let of = self.kind.of;
        let why = format!(
            "the map of {of} {} has address template {}, the file has {template}; give it that template, or delete \
             all {of} and {}",
            self.key,
            self.template,
            self.path.display()
        );
        Err(Error::Invalid {
            what: "address template",
            why,
        })
    }

    /// How addresses are written.
    pub fn template(&self) -> Template {
        self.template
    }

    /// The key that the map was made for.
    pub fn key(&self) -> u32 {
        self.key
    }

    /// When the map was made, nanoseconds since 1970.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many times the map was written: whoever remembers it notices changes by one load.
    #[inline]
    pub fn version(&self) -> u64 {
        self.words.at(VERSION).load(Acquire) // partner: Release in publish
    }

    /// Reads from the area in force, again if the map was written meanwhile. `Err` from `read` says what is wrong with
    /// the area; it is damage, unless the map was written meanwhile.
    pub fn consistent<T>(&self, read: impl Fn(&Area<'_>) -> Result<T, String>) -> Result<T> {
        let bad = |why| Error::BadFile {
            path: self.path.clone(),
            why,
        };
        // A writer needs at least microseconds for each version, a reader as many: it gets through.
        for _ in 0..1000 {
            let version = self.version();
            let result = read(&Area {
                map: self,
                version,
                at: self.area_of(version),
            });
            // The reads before this load; partner: the Release fence at the beginning of publish.
            crate::sync::fence(Acquire);
            if self.words.at(VERSION).load(Relaxed) == version {
                return result.map_err(|why| bad(format!("its version {version} {why}")));
            }
        }
        Err(bad("it is being written without end".into()))
    }

    fn area_of(&self, version: u64) -> usize {
        AREAS + (version as usize & 1) * self.kind.area()
    }

    /// Replaces the whole table: the words before the entries, then `count` entries. The caller holds the manager's
    /// lock. On an error nothing has changed.
    pub fn publish<const ENTRY: usize>(
        &self,
        header: [u64; AREA_HEADER],
        count: usize,
        entries: impl Iterator<Item = [u64; ENTRY]>,
    ) -> Result<u64> {
        assert_eq!(ENTRY, self.kind.entry, "words of an entry");
        if count > self.kind.capacity {
            let Kind {
                of, also, capacity, ..
            } = self.kind;
            let why = format!("{count}{also} are too many: a map holds {capacity}; leave some out");
            return Err(Error::Invalid { what: of, why });
        }
        let next = self.version().wrapping_add(1); // whatever the file says
        let area = self.area_of(next);
        let size = 8 * (AREA_HEADER + count * ENTRY) as u64;
        reserve_space(&self.file, &self.path, 8 * area as u64, size)?;
        // Readers of the version before last, whose area this was, see its successor before they see any of the
        // stores below. Partner: the Acquire fence in consistent.
        crate::sync::fence(Release);
        // Relaxed: in force by the Release of the version only.
        let words = header.into_iter().chain(entries.take(count).flatten());
        for (offset, word) in words.enumerate() {
            self.words.at(area + offset).store(word, Relaxed);
        }
        self.words.at(VERSION).store(next, Release); // partner: Acquire in version
        Ok(next)
    }
}

/// A whole table while it is read. Another process may write into it at any time: each word is loaded for itself, and
/// what was made of several counts only after [`Map::consistent`] found the version unchanged.
#[derive(Debug)]
pub(crate) struct Area<'a> {
    map: &'a Map,
    pub version: u64,
    /// Word index.
    at: usize,
}

impl Area<'_> {
    /// Word `index` of those before the entries.
    pub fn header(&self, index: usize) -> u64 {
        self.load(index)
    }

    /// A word before the entries that counts some of them, at most `most`.
    pub fn count(&self, index: usize, most: usize) -> Result<usize, String> {
        usize::try_from(self.header(index))
            .ok()
            .filter(|count| *count <= most)
            .ok_or_else(|| {
                let Kind { of, capacity, .. } = self.map.kind;
                format!("says more than {capacity} {of}")
            })
    }

    /// A word of an entry.
    pub fn word(&self, entry: usize, offset: usize) -> u64 {
        self.load(AREA_HEADER + entry * self.map.kind.entry + offset)
    }

    /// A whole entry; each of its words is read once.
    pub fn entry<const ENTRY: usize>(&self, entry: usize) -> [u64; ENTRY] {
        core::array::from_fn(|offset| self.word(entry, offset))
    }

    fn load(&self, offset: usize) -> u64 {
        self.map.words.at(self.at + offset).load(Relaxed) // ordered by consistent
    }
}

/// `bytes` as little-endian words, as many of them as there are words in `into`; returns how many.
pub(crate) fn store_bytes(into: &mut [u64], bytes: &[u8]) -> usize {
    for (word, chunk) in into.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(padded);
    }
    bytes.len().min(into.len() * 8)
}

/// The first `length` bytes of these words.
pub(crate) fn load_bytes(words: &[u64], length: usize) -> Vec<u8> {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.take(length).collect()
}

/// The beginning of a text, at most `most` bytes of it, cut between two characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
