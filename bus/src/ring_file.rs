//! Ring files: create, open with every check, status, close, remove.

use crate::address::Address;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::files::{FreshFile, reserve_space};
use crate::layout::{self, Cursor, Header, SEALED, SIGNAL_CLOSED};
use crate::locks::{Role, RoleLock};
use crate::mirror::MirrorWriter;
use crate::receiver::Receiver;
use crate::ring::memory::Memory;
use crate::ring::{self, Damage, Gate, check_cursor, producer};
use crate::sender::Sender;
use crate::shm::{Mapped, Mapping, page_size};
use crate::source::SourceReader;
use crate::sync::{Acquire, AtomicU32, AtomicU64, Relaxed, Release, fence};
use nix::fcntl::OFlag;
use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The name of one generation of a ring: 16 random bytes, printed as RFC 9562 does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// No ring.
    pub const NONE: Uuid = Uuid([0; 16]);

    fn random() -> io::Result<Uuid> {
        let mut bytes = [0; 16];
        crate::sys::random(&mut bytes)?;
        bytes[6] = bytes[6] & 0x0f | 0x40; // version 4
        bytes[8] = bytes[8] & 0x3f | 0x80; // variant of RFC 9562
        Ok(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Uuid> {
        let wrong = || Error::Invalid {
            what: "uuid",
            why: format!(
                "'{text}' is not of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hexadecimal"
            ),
        };
        let dashes = text
            .bytes()
            .enumerate()
            .all(|(i, b)| (b == b'-') == [8, 13, 18, 23].contains(&i));
        let plain = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
        if text.len() != 36 || !dashes || !plain {
            return Err(wrong());
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let number = u128::from_str_radix(&digits, 16).map_err(|_| wrong())?;
        Ok(Uuid(number.to_be_bytes()))
    }
}

/// Which sides of a ring are applications; fixed for the ring's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Producer and consumer are applications on this host.
    Local,
    /// The consumer is the relay, which mirrors the ring to another host.
    Source,
    /// The producer is the relay; readers see what it has published.
    Mirror,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Kind::Local => layout::ROLE_LOCAL,
            Kind::Source => layout::ROLE_SOURCE,
            Kind::Mirror => layout::ROLE_MIRROR,
        }
    }

    fn from_number(number: u32) -> Option<Kind> {
        [Kind::Local, Kind::Source, Kind::Mirror]
            .into_iter()
            .find(|k| k.number() == number)
    }

    /// What makes a message be there for this kind's consumer.
    pub(crate) fn gate(self) -> Gate {
        match self {
            Kind::Local => Gate::CommitWord,
            Kind::Source | Kind::Mirror => Gate::Tail,
        }
    }

    /// "local", "source" or "mirror".
    pub fn name(self) -> &'static str {
        match self {
            Kind::Local => "local",
            Kind::Source => "source",
            Kind::Mirror => "mirror",
        }
    }
}

/// What to create.
#[derive(Clone, Debug)]
pub struct RingSpec {
    /// Bytes for records; rounded up to whole pages. From 4096 to 2^32.
    pub capacity: u64,
    /// Which sides are applications.
    pub kind: Kind,
    /// The sending endpoint.
    pub from: Address,
    /// The receiving endpoint.
    pub to: Address,
    /// Which bytes of the file `locks` are the ring's roles. Rings of one directory that are in use at the same
    /// time have different ones.
    pub lock_slot: u32,
    /// Where positions and sequences start: 0 for a new local or source ring, the source's for a mirror.
    pub start: Cursor,
    /// A mirror has its source's nonce; `None`: random.
    pub nonce: Option<u64>,
    /// Mode of the file, whatever the umask is. `None`: 0660, less the umask unless an owner or a group is named.
    pub mode: Option<u32>,
    /// Owner of the file, a user's name or number; `None`: who creates it.
    pub owner: Option<String>,
    /// Group of the file, a group's name or number; `None`: as the system chooses.
    pub group: Option<String>,
}

impl RingSpec {
    /// A local ring of `capacity` bytes from one address to another, mode 0660 less the umask, lock slot 0.
    pub fn local(capacity: u64, from: Address, to: Address) -> RingSpec {
        RingSpec {
            capacity,
            kind: Kind::Local,
            from,
            to,
            lock_slot: 0,
            start: Cursor::default(),
            nonce: None,
            mode: None,
            owner: None,
            group: None,
        }
    }
}

/// What a new ring begins with besides its [`RingSpec`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beginning<'a> {
    /// The sequence of the ring before this one, whose unread messages it takes over; it is closed.
    pub unread_of: Option<&'a Ring>,
    /// The ring on the other host, and up to where its application is known to have released.
    pub peer: Option<(Uuid, Cursor)>,
    /// See [`Ring::origin`].
    pub origin: Option<Uuid>,
}

/// A mapped ring. Cheap to clone; attach to it with [`Ring::sender`] and [`Ring::receiver`].
#[derive(Clone, Debug)]
pub struct Ring {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    header: Header,
    kind: Kind,
    path: PathBuf,
    directory: Directory,
    mapping: Arc<Mapping>,
    /// Device and inode of the file that was mapped.
    identity: (u64, u64),
}

/// Cursors and counters of a ring at one moment. Positions in bytes, sequences in messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The producer's cursor: sequence counts all messages sent.
    pub tail: Cursor,
    /// The consumer's durable cursor: sequence counts all messages released.
    pub released: Cursor,
    /// The cursor that the consumer publishes to the producer now and then.
    pub head: Cursor,
    /// Messages sent and not released.
    pub unread_messages: u64,
    /// Bytes that these take in the ring.
    pub unread_bytes: u64,
    /// True once [`Ring::close`] was begun.
    pub closed: bool,
    /// The final tail of a closed ring.
    pub sealed_at: Option<u64>,
    /// What the producer's side counts.
    pub producer: SideStatus,
    /// What the consumer's side counts.
    pub consumer: SideStatus,
}

/// Messages that were in the memory of a receiving host and are lost with it: from the first one to the first one after
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first message lost, as far as known.
    pub from: Cursor,
    /// The first one that is not.
    pub to: Cursor,
}

/// Counters of one side of a ring; diagnostics, since any process with the ring mapped can write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SideStatus {
    /// The process that attached last.
    pub pid: u32,
    /// True if it fences per message, since it could not use membarrier.
    pub fences: bool,
    /// Attaches since creation.
    pub attaches: u64,
    /// Producer: messages refused as full.
    pub refused: u64,
    /// Wake-ups given to the other side.
    pub wakes: u64,
    /// Times this side went to sleep.
    pub sleeps: u64,
    /// Sleeps that ran to their end although there was news: the other side was killed, stopped or lost a wake-up.
    pub overslept: u64,
}

impl Ring {
    /// Makes a ring with all its memory, or nothing: the file gets its name when it is complete.
    pub fn create(directory: &Directory, spec: &RingSpec) -> Result<Ring> {
        Ring::open(directory, Ring::create_file(directory, spec)?)
    }

    /// Makes a ring's file, without mapping it.
    pub(crate) fn create_file(directory: &Directory, spec: &RingSpec) -> Result<Uuid> {
        Ring::create_file_with(directory, spec, Beginning::default())
    }

    /// The same with messages in it or a peer noted.
    pub(crate) fn create_file_with(
        directory: &Directory,
        spec: &RingSpec,
        beginning: Beginning<'_>,
    ) -> Result<Uuid> {
        let page = page_size() as u64;
        let invalid = |what, why| Err(Error::Invalid { what, why });
        if !(layout::MIN_CAPACITY..=layout::MAX_CAPACITY).contains(&spec.capacity) {
            return invalid(
                "capacity",
                format!(
                    "{} bytes; give {} to {}",
                    spec.capacity,
                    layout::MIN_CAPACITY,
                    layout::MAX_CAPACITY
                ),
            );
        }
        if check_cursor("start", spec.start).is_err() {
            return invalid(
                "start",
                format!(
                    "position {}, sequence {}; give a position that is a multiple of 8, and both below 2^63",
                    spec.start.position, spec.start.sequence
                ),
            );
        }
        let random = |path: &Path, e| Error::system("get random bytes for", path, e);
        let uuid = Uuid::random().map_err(|e| random(directory.path(), e))?;
        let path = directory.ring_path(uuid);
        let mut nonce = [0; 8];
        crate::sys::random(&mut nonce).map_err(|e| random(&path, e))?;
        let header = Header {
            magic: layout::MAGIC,
            major: layout::LAYOUT_MAJOR,
            minor: layout::LAYOUT_MINOR,
            role: spec.kind.number(),
            lock_slot: spec.lock_slot,
            data_offset: page,
            capacity: spec.capacity.next_multiple_of(page),
            created: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos() as u64),
            nonce: spec.nonce.unwrap_or(u64::from_le_bytes(nonce)),
            uuid: uuid.0,
            from: spec.from.0,
            to: spec.to.0,
        };
        let fresh = FreshFile::new(directory.path(), &path, spec.mode.unwrap_or(0o660))?;
        reserve_space(&fresh.file, &path, 0, header.data_offset + header.capacity)?;
        let write = |bytes: &[u8], at| {
            fresh
                .file
                .write_all_at(bytes, at)
                .map_err(|e| Error::system("write", &path, e))
        };
        let mut cursors = [spec.start; 2];
        if let Some(ring) = beginning.unread_of {
            cursors =
                ring.copy_unread(|bytes, offset| write(bytes, header.data_offset + offset))?;
        }
        let (peer, head) = beginning.peer.unwrap_or((Uuid::NONE, Cursor::default()));
        write(
            &layout::initial_control(
                &header,
                cursors,
                (peer.0, head),
                beginning.origin.unwrap_or(Uuid::NONE).0,
            ),
            0,
        )?;
        set_rights(&fresh.file, &path, spec)?;
        fresh.publish(&path)?;
        Ok(uuid)
    }

    /// Opens the ring `uuid` of `directory`.
    pub fn open(directory: &Directory, uuid: Uuid) -> Result<Ring> {
        let path = directory.ring_path(uuid);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
            .open(&path)
            .map_err(|e| Error::system("open", &path, e))?;
        let info = file
            .metadata()
            .map_err(|e| Error::system("inspect", &path, e))?;
        let (header, kind) = read_header(&file, &path, &info, uuid)?;
        if info.blocks() * 512 < header.data_offset + header.capacity {
            // Holes: without memory behind them a store would end the process when the file system is full.
            reserve_space(&file, &path, 0, header.data_offset + header.capacity)?;
        }
        let mapping = Mapping::new(
            &file,
            &path,
            header.data_offset as usize,
            header.capacity as usize,
        )?;
        Ok(Ring {
            inner: Arc::new(Inner {
                header,
                kind,
                path,
                directory: directory.clone(),
                mapping: Arc::new(mapping),
                identity: (info.dev(), info.ino()),
            }),
        })
    }

    /// What the ring is.
    pub fn header(&self) -> &Header {
        &self.inner.header
    }

    /// The ring's name.
    pub fn uuid(&self) -> Uuid {
        Uuid(self.inner.header.uuid)
    }

    /// Which sides are applications.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The ring's file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Touches every page now, so that the first messages take no page faults. About 0.25 µs a page.
    pub fn prefault(&self) {
        self.inner.mapping.prefault();
    }

    /// Takes the producer role and attaches.
    pub fn sender(&self) -> Result<Sender> {
        let lock = self.take_producer()?;
        self.refuse_closed()?;
        Sender::attach(self.clone(), lock.into())
    }

    /// The same for who looks for a successor when the ring is closed.
    pub(crate) fn sender_though_closed(&self) -> Result<Sender> {
        Sender::attach(self.clone(), self.take_producer()?.into())
    }

    /// Before the look at CLOSED, which a forked child sees set.
    fn take_producer(&self) -> Result<RoleLock> {
        match self.kind() {
            Kind::Mirror => Err(self.wrong_role(Role::Producer)),
            Kind::Local | Kind::Source => self.take(Role::Producer),
        }
    }

    /// Takes the consumer role and attaches.
    pub fn receiver(&self) -> Result<Receiver> {
        if self.kind() == Kind::Source {
            return Err(self.wrong_role(Role::Consumer));
        }
        let lock = self.take(Role::Consumer)?;
        Receiver::attach(self.clone(), lock.into())
    }

    /// The relay's end of a source ring; takes the consumer role.
    pub fn source_reader(&self) -> Result<SourceReader> {
        self.check_kind(Kind::Source, "source reader", "read")?;
        let lock = self.take(Role::Consumer)?;
        SourceReader::attach(self.clone(), lock)
    }

    /// The ring on the other host that this one was paired with, if it was: a mirror's source, a source's mirror.
    pub fn peer(&self) -> Option<Uuid> {
        self.peer_and_head().map(|(peer, _)| peer)
    }

    /// The first generation of a line in which each was received to its end before the next one was made, and so lost nothing:
    /// to a sending host the ring is as good as that one. Another origin means that memory was lost.
    pub fn origin(&self) -> Uuid {
        self.control(|c| c.notes.origin()).map_or(self.uuid(), Uuid)
    }

    /// The same with up to where the other ring's application is known to have released.
    pub(crate) fn peer_and_head(&self) -> Option<(Uuid, Cursor)> {
        let noted = self.control(|c| c.notes.peer());
        noted.map(|(peer, head)| (Uuid(peer), head))
    }

    /// How many gaps the relay has noted in this generation, and the last one: the receiving host lost its memory, and the
    /// source no longer had the messages. Both applications find it here.
    pub fn gap(&self) -> Option<(u64, Gap)> {
        self.control(|c| {
            let gaps = c.notes.gaps.load(Acquire); // partner: Release in note_gap
            // Relaxed: a relay that notes another one meanwhile gives a mixture; it is a report for people.
            let [a, b, d, e] = [0, 1, 2, 3].map(|word: usize| c.notes.gap[word].load(Relaxed));
            let cursor = |position, sequence| Cursor { position, sequence };
            (gaps > 0).then_some((
                gaps,
                Gap {
                    from: cursor(a, b),
                    to: cursor(d, e),
                },
            ))
        })
    }

    pub(crate) fn note_gap(&self, gap: Gap) {
        self.control(|c| {
            let words = [
                gap.from.position,
                gap.from.sequence,
                gap.to.position,
                gap.to.sequence,
            ];
            for (word, value) in c.notes.gap.iter().zip(words) {
                word.store(value, Relaxed); // published by the count
            }
            let gaps = c.notes.gaps.load(Relaxed); // only the relay stores it
            c.notes.gaps.store(gaps + 1, Release); // partner: Acquire in gap
        });
    }

    /// Copies the bytes between `released` and the tail of this closed ring, whose roles the caller holds: calls `write` with
    /// pieces and their offsets in the data area. Returns both cursors.
    fn copy_unread(&self, mut write: impl FnMut(&[u8], u64) -> Result<()>) -> Result<[Cursor; 2]> {
        let status = self.status();
        let (released, tail) = (status.released, status.tail);
        let capacity = self.inner.header.capacity;
        if status.sealed_at != Some(tail.position)
            || tail.position.wrapping_sub(released.position) > capacity
        {
            return Err(self.damaged(Damage {
                what: "tail",
                position: released.position,
                found: tail.position,
                expected: "the end of a closed ring, at most one capacity ahead of what is released",
            }));
        }
        let mut at = released.position;
        let mut bytes = vec![0; 1 << 16];
        while at < tail.position {
            let offset = at % capacity;
            let length = (tail.position - at).min(1 << 16).min(capacity - offset);
            let piece = &mut bytes[..length as usize];
            self.mapped().read(offset as usize, piece);
            write(piece, offset)?;
            at += length;
        }
        Ok([released, tail])
    }

    /// The relay's end of a mirror ring; takes the producer role.
    pub fn mirror_writer(&self) -> Result<MirrorWriter> {
        self.check_kind(Kind::Mirror, "mirror writer", "written")?;
        let lock = self.take(Role::Producer)?;
        self.refuse_closed()?;
        MirrorWriter::attach(self.clone(), lock)
    }

    /// The relay's ends are of one kind of ring each.
    fn check_kind(&self, kind: Kind, what: &'static str, done: &str) -> Result<()> {
        if self.kind() == kind {
            return Ok(());
        }
        let why = format!(
            "{} is a {} ring; only a {} is {done} by position",
            self.path().display(),
            self.kind().name(),
            kind.name()
        );
        Err(Error::Invalid { what, why })
    }

    fn refuse_closed(&self) -> Result<()> {
        let word = self.control(|c| c.receiver_signal.word.load(Relaxed)); // one bit matters, nothing is read through it
        match word & SIGNAL_CLOSED {
            0 => Ok(()),
            _ => Err(Error::Closed {
                path: self.path().into(),
            }),
        }
    }

    pub(crate) fn wrong_role(&self, role: Role) -> Error {
        Error::WrongRole {
            path: self.path().into(),
            role: role.name(),
            kind: self.kind().name(),
        }
    }

    /// Takes a role, or `None` if somebody has it.
    fn try_take(&self, role: Role) -> Result<Option<RoleLock>> {
        let Inner {
            header,
            kind,
            directory,
            ..
        } = &*self.inner;
        directory.locks.try_take(header.lock_slot, role, *kind)
    }

    pub(crate) fn take(&self, role: Role) -> Result<RoleLock> {
        self.try_take(role)?.ok_or_else(|| {
            let pid = self.control(|c| match role {
                Role::Consumer => c.consumer_info.pid.load(Relaxed), // a diagnostic
                _ => c.producer_info.pid.load(Relaxed),
            });
            Error::Busy {
                path: self.path().into(),
                role: role.name(),
                pid,
            }
        })
    }

    pub(crate) fn mapped(&self) -> Mapped {
        Mapped::new(self.inner.mapping.clone())
    }

    /// The same for an application's end of a mirrored ring: it tells the relay of news. Where that cannot be, for
    /// want of the file or of the right to write it, the relay's slow look over all rings finds it.
    pub(crate) fn mapped_with_news(&self) -> Mapped {
        let news = match self.kind() {
            Kind::Local => None,
            _ => self.inner.directory.news(),
        };
        self.mapped().with_news(news, self.inner.header.lock_slot)
    }

    fn control<T>(&self, look: impl FnOnce(&layout::Control) -> T) -> T {
        look(self.mapped().control())
    }

    /// The word that a sleeper on this ring's messages sleeps on.
    pub(crate) fn receiver_signal(&self) -> &AtomicU32 {
        &self.inner.mapping.control().receiver_signal.word
    }

    /// True if the consumer has something to read or to learn, as far as one can tell who only looks.
    pub(crate) fn has_unread(&self) -> bool {
        let (memory, nonce) = (self.mapped(), self.inner.header.nonce);
        let control = memory.control();
        let Some(Cursor { position, .. }) = control.released.cursor.read() else {
            return true; // it is receiving at this moment
        };
        match self.kind().gate() {
            Gate::CommitWord => {
                let offset = (position % self.inner.header.capacity) as usize & !7;
                // Acquire: as in Consumer::peek.
                memory.word(offset).load(Acquire) == layout::commit_word(position, nonce)
            }
            // Whatever else it is than equal, the consumer will want to say so.
            Gate::Tail => control
                .producer
                .tail
                .read()
                .is_some_and(|tail| tail.position != position),
        }
    }

    /// True if it is closed and received to its end.
    pub(crate) fn is_finished(&self) -> bool {
        self.control(|c| {
            let seal = c.seal.end.load(Acquire); // partner: Release in producer::close
            let released = c.released.cursor.read();
            released.is_some_and(|released| seal == released.position | SEALED)
        })
    }

    pub(crate) fn damaged(&self, damage: Damage) -> Error {
        Error::Damaged {
            path: self.path().into(),
            damage,
        }
    }

    /// Ends the ring: senders are refused from now on, receivers get what is there and then `Closed`. Waits up
    /// to `patience` for a sender that is in the midst of a message; `Busy` then, and a later call goes on. So it
    /// must after a closer was killed: until then senders are refused, but receivers do not learn of the end.
    /// Returns the final tail.
    pub fn close(&self, patience: Duration) -> Result<u64> {
        let begun = Instant::now();
        let memory = self.mapped();
        loop {
            let lock = self.try_take(Role::Producer)?;
            let rolls_forward = self.kind() != Kind::Mirror;
            let nonce = self.inner.header.nonce;
            let end = producer::close(&memory, nonce, rolls_forward, || lock.is_some());
            match end.map_err(|d| self.damaged(d))? {
                Some(end) => return Ok(end),
                None if begun.elapsed() >= patience => {
                    let pid = memory.control().producer_info.pid.load(Relaxed); // a diagnostic
                    return Err(Error::Busy {
                        path: self.path().into(),
                        role: "producer",
                        pid,
                    });
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Unlinks the file. Processes that have it mapped keep their memory; [`Ring::close`] it first.
    pub fn remove(&self) -> Result<()> {
        std::fs::remove_file(self.path()).map_err(|e| Error::system("remove", self.path(), e))
    }

    /// Checks that the ring's name still means the file that is mapped, and that it was not cut short: a plain
    /// `rm` and another program's truncation show here. Costs a system call.
    pub fn check_file(&self) -> Result<()> {
        let info = std::fs::symlink_metadata(self.path())
            .map_err(|e| Error::system("inspect", self.path(), e))?;
        let size = self.inner.header.data_offset + self.inner.header.capacity;
        let why = if (info.dev(), info.ino()) != self.inner.identity {
            "it is another file than the one that is mapped".to_string()
        } else if info.len() < size {
            format!("it has {} bytes now, and had {size}", info.len())
        } else {
            return Ok(());
        };
        Err(Error::BadFile {
            path: self.path().into(),
            why,
        })
    }

    /// Calls `see` with each message that is not released, oldest first, without receiving any; until it returns
    /// false. Messages that are received meanwhile may be missing or be seen all the same, but never mixed up.
    pub fn browse(&self, mut see: impl FnMut(Cursor, &[u8]) -> bool) -> Result<()> {
        let memory = self.mapped();
        let control = memory.control();
        let released = &control.released.cursor;
        let Some(at) = released.read() else {
            return Ok(());
        };
        let mut at = check_cursor("released", at).map_err(|d| self.damaged(d))?;
        let mut end = at.position + self.inner.header.capacity;
        if self.kind() != Kind::Local {
            end = end.min(
                control
                    .producer
                    .tail
                    .read()
                    .map_or(at.position, |t| t.position),
            );
        }
        let mut bytes = Vec::new();
        while at.position < end {
            let nonce = self.inner.header.nonce;
            let Some(shape) =
                ring::record_at(&memory, at.position, nonce).map_err(|d| self.damaged(d))?
            else {
                break;
            };
            let capacity = self.inner.header.capacity;
            let offset = (at.position % capacity) as usize
                + layout::RECORD_HEADER
                + layout::extension_size(shape.flags);
            bytes.resize(shape.length, 0);
            memory.read(offset, &mut bytes);
            // Released meanwhile: the room may have been written anew. Partner of the reads: as in CursorSlots.
            fence(Acquire);
            if released
                .read()
                .is_none_or(|released| released.position > at.position)
            {
                break;
            }
            if !see(at, &bytes) {
                break;
            }
            at = Cursor {
                position: at.position + shape.size as u64,
                sequence: at.sequence + 1,
            };
        }
        Ok(())
    }

    /// Cursors and counters now.
    pub fn status(&self) -> Status {
        self.control(|c| {
            // Each cursor is consistent in itself; a writer that is too fast gives the last value that was.
            let read =
                |slots: &layout::CursorSlots| slots.read().unwrap_or_else(|| slots.recover());
            let (released, head) = (read(&c.released.cursor), read(&c.head.cursor));
            let mut tail = read(&c.producer.tail);
            if self.kind() != Kind::Mirror {
                // What a killed sender committed and did not count is there all the same.
                let end = released.position.saturating_add(self.inner.header.capacity);
                tail = ring::committed_tail(&self.mapped(), tail, end, self.inner.header.nonce);
            }
            let side = |info: &layout::InfoLine| {
                // Relaxed: diagnostics, each on its own.
                let (small, large) = (
                    |n: &AtomicU32| n.load(Relaxed),
                    |n: &AtomicU64| n.load(Relaxed),
                );
                SideStatus {
                    pid: small(&info.pid),
                    fences: small(&info.fences) != 0,
                    attaches: large(&info.attaches),
                    refused: large(&info.refused),
                    wakes: large(&info.wakes),
                    sleeps: large(&info.sleeps),
                    overslept: large(&info.overslept),
                }
            };
            let seal = c.seal.end.load(Acquire); // partner: Release in producer::close
            Status {
                tail,
                released,
                head,
                unread_messages: tail.sequence.saturating_sub(released.sequence),
                unread_bytes: tail.position.saturating_sub(released.position),
                closed: c.receiver_signal.word.load(Relaxed) & SIGNAL_CLOSED != 0,
                sealed_at: (seal & SEALED != 0).then_some(seal & !SEALED),
                producer: side(&c.producer_info),
                consumer: side(&c.consumer_info),
            }
        })
    }
}

/// Whoever names an owner, a group or a mode means it: the umask, made for files that nobody thought about, often
/// forbids a group to write, and a ring that one cannot write one cannot attach to.
fn set_rights(file: &File, path: &Path, spec: &RingSpec) -> Result<()> {
    if spec.owner.is_none() && spec.group.is_none() && spec.mode.is_none() {
        return Ok(());
    }
    let (uid, gid) = (user(spec.owner.as_deref())?, group(spec.group.as_deref())?);
    // The mode first, as long as the file is surely this user's.
    file.set_permissions(Permissions::from_mode(spec.mode.unwrap_or(0o660)))
        .map_err(|e| Error::system("change the mode of", path, e))?;
    std::os::unix::fs::fchown(file, uid, gid)
        .map_err(|e| Error::system("change the owner of", path, e))
}

/// The number of a user by name or number.
pub(crate) fn user(name: Option<&str>) -> Result<Option<u32>> {
    let by_name = |name: &str| {
        nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .map(|user| user.uid.as_raw())
    };
    resolve("owner", name, by_name)
}

/// The number of a group by name or number.
pub(crate) fn group(name: Option<&str>) -> Result<Option<u32>> {
    let by_name = |name: &str| {
        nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    };
    resolve("group", name, by_name)
}

fn resolve(
    what: &'static str,
    name: Option<&str>,
    by_name: impl Fn(&str) -> Option<u32>,
) -> Result<Option<u32>> {
    let Some(name) = name else { return Ok(None) };
    let number = name.parse().ok().or_else(|| by_name(name));
    let why = || format!("this host knows no {what} '{name}'; give one that exists, or its number");
    number
        .map(Some)
        .ok_or_else(|| Error::Invalid { what, why: why() })
}

/// Notes in the ring who attached.
pub(crate) fn sign(info: &layout::InfoLine, fences: bool) {
    info.pid.store(std::process::id(), Relaxed); // diagnostics, all three
    info.fences.store(fences.into(), Relaxed);
    producer::add(&info.attaches, 1);
}

/// Reads and checks a ring file's header. Nothing of it is read again later.
fn read_header(
    file: &File,
    path: &Path,
    info: &std::fs::Metadata,
    uuid: Uuid,
) -> Result<(Header, Kind)> {
    let bad = |why: String| {
        Err(Error::BadFile {
            path: path.into(),
            why,
        })
    };
    if !info.is_file() {
        return bad("it is not a regular file".into());
    }
    let mut bytes = [0; 8 * Header::WORDS];
    if info.len() < bytes.len() as u64 {
        return bad(format!("it has {} bytes, less than a header", info.len()));
    }
    file.read_exact_at(&mut bytes, 0)
        .map_err(|e| Error::system("read", path, e))?;
    let (header, sound) = Header::parse(&bytes);
    if header.magic != layout::MAGIC {
        return Err(Error::NotARing {
            path: path.into(),
            found: header.magic,
        });
    }
    if header.major != layout::LAYOUT_MAJOR {
        return Err(Error::Layout {
            path: path.into(),
            found: header.major,
            ours: layout::LAYOUT_MAJOR,
        });
    }
    if !sound {
        return bad("the check of its header is wrong".into());
    }
    let Some(kind) = Kind::from_number(header.role) else {
        return bad(format!(
            "its role is {}, which is none of 1, 2 and 3",
            header.role
        ));
    };
    let page = page_size() as u64;
    let Header {
        data_offset,
        capacity,
        ..
    } = header;
    if data_offset < layout::CONTROL_SIZE as u64
        || data_offset > 1 << 20
        || !data_offset.is_multiple_of(page)
    {
        return bad(format!(
            "its data offset is {data_offset}, not a multiple of the page size {page}"
        ));
    }
    if !(layout::MIN_CAPACITY..=layout::MAX_CAPACITY).contains(&capacity)
        || !capacity.is_multiple_of(page)
    {
        return bad(format!(
            "its capacity is {capacity}, not a multiple of the page size {page}"
        ));
    }
    if info.len() < data_offset + capacity {
        return bad(format!(
            "it has {} bytes, its header says {}",
            info.len(),
            data_offset + capacity
        ));
    }
    if header.uuid != uuid.0 {
        return bad(format!(
            "its header says that it is ring {}",
            Uuid(header.uuid)
        ));
    }
    Ok((header, kind))
}
