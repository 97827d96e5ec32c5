//! The memory layout of a ring: every offset, size and constant, and nothing else.
//!
//! One file holds one ring, that is one direction of a channel: a control page and a data area. It is
//! mapped whole, and its data area once more right behind, so every record is one contiguous range.
//!
//! ```text
//!            file                               mapping
//!   0      ┌──────────┐                       ┌──────────┐ base
//!          │ control  │                       │ control  │
//!   data   ├──────────┤                       ├──────────┤ base + data_offset
//!   offset │ data     │ capacity bytes        │ data     │
//!          │          │                       ├──────────┤ base + data_offset + capacity
//!          └──────────┘                       │ data     │ the same pages again
//!                                             └──────────┘
//! ```
//!
//! The control page. Each line below is 128 bytes, so that no two parties store into one line (or into
//! two lines that a prefetcher fetches as a pair). "Stored by" is whose stores the line takes.
//!
//! ```text
//!   0x000  header           what the ring is; constant after creation
//!   0x080  producer         tail cursor, sequences started        stored by the producer (a mirror: the relay)
//!   0x100  released         released cursor                       stored by the consumer, once a message
//!   0x180  head             head cursor                           stored by the consumer, now and then
//!   0x200  receiver_signal  the word a receiver sleeps on, CLOSED stored by a sleeping receiver, a waker, a closer
//!   0x280  sender_signal    the word a sender sleeps on           stored by a sleeping sender, a waker
//!   0x300  seal             where a closed ring ends              stored by whoever closes
//!   0x380  notes            the peer's uuid and head, gaps        stored by the relay
//!   0x400  producer_info    pid, statistics                       stored by the producer, rarely
//!   0x480  consumer_info    pid, statistics                       stored by the consumer, rarely
//!   0x500  (unused, zero, up to data_offset)
//! ```
//!
//! A cursor is a position and the sequence that belongs to it, which must not tear. It is two slots, of
//! which the one with the higher sequence is in force, or with equal ones the one of the sequence's parity. A
//! store goes to the other one, the position first and then the sequence. After a single message that is the slot
//! of the new sequence's parity; after any other step the one not in force is written first:
//!
//! ```text
//!    0               8               16              24              32
//!   ┌───────────────┬───────────────┬───────────────┬───────────────┐
//!   │ position      │ sequence      │ position      │ sequence      │
//!   └───────────────┴───────────────┴───────────────┴───────────────┘
//!    slot 0                          slot 1
//! ```
//!
//! A record, at a position that is a multiple of 8:
//!
//! ```text
//!    0               8       12      16
//!   ┌───────────────┬───────┬───────┬ ─ ─ ─ ─ ─ ─ ─ ┬──────────────┬ ─ ─ ─ ─ ┐
//!   │ commit word   │ length│ flags │ extensions    │ payload      │ padding  │
//!   └───────────────┴───────┴───────┴ ─ ─ ─ ─ ─ ─ ─ ┴──────────────┴ ─ ─ ─ ─ ┘
//!    stored last,    payload bytes   8 B each, in    length bytes   to a multiple of 8
//!    Release                         flag order
//! ```
//!
//! All numbers are little-endian. `docs/layout.md` is this layout for readers without Rust; a test
//! compares its tables with [`FIELDS`] and [`CONSTANTS`].

use crate::sync::{AtomicU32, AtomicU64, Ordering::*};

/// First eight bytes of a ring file: "TBUSRING".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TBUSRING");
/// Layout version: another major is refused, a higher minor is accepted.
pub const LAYOUT_MAJOR: u32 = 2;
/// See [`LAYOUT_MAJOR`].
pub const LAYOUT_MINOR: u32 = 0;

/// Bytes that are read of the control area; the area itself is one page.
pub const CONTROL_SIZE: usize = 0x500;
/// Records start at multiples of this many bytes.
pub const RECORD_ALIGN: usize = 8;
/// Bytes before a record's extensions and payload: commit word, length, flags.
pub const RECORD_HEADER: usize = 16;
/// The smallest capacity, in bytes.
pub const MIN_CAPACITY: u64 = 4096;
/// The largest capacity, in bytes: its largest payload still fits the 32 bits of a length.
pub const MAX_CAPACITY: u64 = 1 << 32;
/// Positions at or above this are damage: at 100 GB/s a ring gets there in two years and eleven months.
pub const MAX_POSITION: u64 = 1 << 63;

/// [`Header::role`]: both applications are on this host.
pub const ROLE_LOCAL: u32 = 1;
/// [`Header::role`]: the consumer is the relay.
pub const ROLE_SOURCE: u32 = 2;
/// [`Header::role`]: the producer is the relay, and readers are gated by the published tail.
pub const ROLE_MIRROR: u32 = 3;

/// Bit of `receiver_signal` and `sender_signal`: somebody sleeps on the word.
pub const SIGNAL_SLEEPING: u32 = 1;
/// Bit of `receiver_signal` and `sender_signal`: who sleeps here cannot use membarrier, so the other side
/// must fence before it looks.
pub const SIGNAL_FENCE: u32 = 2;
/// Bit of `receiver_signal`: the ring takes no more messages.
pub const SIGNAL_CLOSED: u32 = 1 << 31;

/// Record flag: an 8-byte extension, the sender's CLOCK_REALTIME in nanoseconds.
pub const FLAG_TIMESTAMP: u32 = 1;
/// Record flag: an 8-byte extension, the sender's trace id.
pub const FLAG_TRACE_ID: u32 = 1 << 1;
/// Record flag: an 8-byte extension, the CRC32C of the payload and 4 zero bytes.
pub const FLAG_CRC32C: u32 = 1 << 2;
/// Record flag: an 8-byte extension, hops 1 and 2 of the way that the message came; the lower half first, 0 for none.
pub const FLAG_HOPS_1: u32 = 1 << 3;
/// Record flag: hops 3 and 4, see [`FLAG_HOPS_1`].
pub const FLAG_HOPS_2: u32 = 1 << 4;
/// Record flag: hops 5 and 6, see [`FLAG_HOPS_1`].
pub const FLAG_HOPS_3: u32 = 1 << 5;
/// Record flag: hops 7 and 8, see [`FLAG_HOPS_1`].
pub const FLAG_HOPS_4: u32 = 1 << 6;
/// The flags that this version knows; a record with any other is damage.
pub const FLAGS_KNOWN: u32 = FLAG_TIMESTAMP
    | FLAG_TRACE_ID
    | FLAG_CRC32C
    | FLAG_HOPS_1
    | FLAG_HOPS_2
    | FLAG_HOPS_3
    | FLAG_HOPS_4;

/// The bit by which `seal.end` says that it is set (positions are multiples of 8, so it is free).
pub const SEALED: u64 = 1;

/// A position and the sequence that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Bytes since the ring was created.
    pub position: u64,
    /// Messages since the ring was created.
    pub sequence: u64,
}

/// One of a cursor's two slots.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Slot {
    pub position: AtomicU64,
    pub sequence: AtomicU64,
}

/// A cursor in shared memory: one writer, any readers.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CursorSlots {
    pub slots: [Slot; 2],
}

/// What the ring is. Constant after creation; read once at attach, see [`Header`].
#[repr(C, align(128))]
pub(crate) struct HeaderLines {
    /// The fields of [`Header`], as words.
    pub words: [AtomicU64; Header::WORDS],
}

#[repr(C, align(128))]
pub(crate) struct ProducerLine {
    pub tail: CursorSlots,
    /// Sequence of the message that is being written, or equal to the tail's sequence when none is.
    pub started: AtomicU64,
}

#[repr(C, align(128))]
pub(crate) struct CursorLine {
    pub cursor: CursorSlots,
}

#[repr(C, align(128))]
pub(crate) struct SignalLine {
    pub word: AtomicU32,
}

#[repr(C, align(128))]
pub(crate) struct SealLine {
    /// Final tail | [`SEALED`], or 0.
    pub end: AtomicU64,
}

#[repr(C, align(128))]
pub(crate) struct NotesLine {
    pub peer_uuid: [AtomicU64; 2],
    pub peer_head: CursorSlots,
    /// The last gap: position and sequence of the first message lost and of the first one after them.
    pub gap: [AtomicU64; 4],
    /// How many gaps there were.
    pub gaps: AtomicU64,
    /// Zeros, or the name of the first of the generations of which each received to its end was followed by the next.
    pub origin: [AtomicU64; 2],
}

#[repr(C, align(128))]
pub(crate) struct InfoLine {
    pub pid: AtomicU32,
    /// 1: this side fences per message, since it could not register for membarrier.
    pub fences: AtomicU32,
    /// Attaches since creation.
    pub attaches: AtomicU64,
    /// Producer: messages refused as full. Consumer: 0.
    pub refused: AtomicU64,
    /// Wake-ups given to the other side.
    pub wakes: AtomicU64,
    /// Times this side went to sleep.
    pub sleeps: AtomicU64,
    /// Sleeps that ran to their end although there was news: the other side was killed, stopped or lost a wake-up.
    pub overslept: AtomicU64,
}

/// The control area.
#[repr(C, align(128))]
pub(crate) struct Control {
    pub header: HeaderLines,
    pub producer: ProducerLine,
    pub released: CursorLine,
    pub head: CursorLine,
    pub receiver_signal: SignalLine,
    pub sender_signal: SignalLine,
    pub seal: SealLine,
    pub notes: NotesLine,
    pub producer_info: InfoLine,
    pub consumer_info: InfoLine,
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Control>() == CONTROL_SIZE);
    assert!(offset_of!(Control, producer) == 0x080);
    assert!(offset_of!(Control, released) == 0x100);
    assert!(offset_of!(Control, head) == 0x180);
    assert!(offset_of!(Control, receiver_signal) == 0x200);
    assert!(offset_of!(Control, sender_signal) == 0x280);
    assert!(offset_of!(Control, seal) == 0x300);
    assert!(offset_of!(Control, notes) == 0x380);
    assert!(offset_of!(Control, producer_info) == 0x400);
    assert!(offset_of!(Control, consumer_info) == 0x480);
    assert!(size_of::<CursorSlots>() == 32);
    assert!(CONTROL_SIZE as u64 <= MIN_CAPACITY);
};

impl NotesLine {
    /// The ring on the other host, if there is one, and up to where its application is known to have released.
    pub fn peer(&self) -> Option<([u8; 16], Cursor)> {
        // Acquire: partner of the Release in set_peer, of a relay before this one.
        let words = [0, 1].map(|half: usize| self.peer_uuid[half].load(Acquire));
        (words[0] != 0).then(|| (words_to_uuid(words), self.peer_head.recover()))
    }

    /// Constant after creation.
    pub fn origin(&self) -> Option<[u8; 16]> {
        let words = [0, 1].map(|half: usize| self.origin[half].load(Relaxed));
        (words != [0; 2]).then(|| words_to_uuid(words))
    }

    /// Notes another one. Killed in the midst, who looks finds none or a third one.
    pub fn set_peer(&self, uuid: [u8; 16], head: Cursor) {
        self.peer_head.jump(head);
        let words = uuid_to_words(uuid);
        for half in [1, 0] {
            self.peer_uuid[half].store(words[half], Release); // partner: Acquire in peer
        }
    }
}

/// A ring's name as it lies in memory.
pub(crate) fn uuid_to_words(uuid: [u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(uuid);
    [whole as u64, (whole >> 64) as u64]
}

/// The other way.
pub(crate) fn words_to_uuid([first, second]: [u64; 2]) -> [u8; 16] {
    (u128::from(first) | u128::from(second) << 64).to_le_bytes()
}

/// The header, as a private copy.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`LAYOUT_MAJOR`].
    pub major: u32,
    /// [`LAYOUT_MINOR`].
    pub minor: u32,
    /// [`ROLE_LOCAL`], [`ROLE_SOURCE`] or [`ROLE_MIRROR`]; fixed for the ring's life.
    pub role: u32,
    /// Index of the ring's role locks in the file `locks`.
    pub lock_slot: u32,
    /// Where the data area begins in the file, bytes; a multiple of the page size.
    pub data_offset: u64,
    /// Bytes in the data area; a multiple of the page size.
    pub capacity: u64,
    /// When the ring was created, nanoseconds since 1970.
    pub created: u64,
    /// Random; the commit words derive from it.
    pub nonce: u64,
    /// Name of this generation of the ring.
    pub uuid: [u8; 16],
    /// Address of the sending endpoint.
    pub from: u32,
    /// Address of the receiving endpoint.
    pub to: u32,
}

/// Without the nonce: whoever knows it can make payloads that look like records.
impl core::fmt::Debug for Header {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Header")
            .field("role", &self.role)
            .field("lock_slot", &self.lock_slot)
            .field("capacity", &self.capacity)
            .field("created", &self.created)
            .field(
                "uuid",
                &format_args!("{:032x}", u128::from_be_bytes(self.uuid)),
            )
            .field("from", &self.from)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

impl Header {
    /// Words of a header in memory, the last of them the check.
    pub(crate) const WORDS: usize = 11;
    const CHECK: usize = Self::WORDS - 1;

    pub(crate) fn to_words(&self) -> [u64; Self::WORDS] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [uuid_first, uuid_second] = uuid_to_words(self.uuid);
        let mut words = [
            self.magic,
            pair(self.major, self.minor),
            pair(self.role, self.lock_slot),
            self.data_offset,
            self.capacity,
            self.created,
            self.nonce,
            uuid_first,
            uuid_second,
            pair(self.from, self.to),
            0,
        ];
        words[Self::CHECK] = check(&words[..Self::CHECK]);
        words
    }

    /// The header that `bytes`, the beginning of a ring file, say. The second value is false if the check is wrong.
    pub(crate) fn parse(bytes: &[u8; 8 * Self::WORDS]) -> (Header, bool) {
        let mut words = [0; Self::WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        let (low, high) = (|w: u64| w as u32, |w: u64| (w >> 32) as u32);
        let header = Header {
            magic: words[0],
            major: low(words[1]),
            minor: high(words[1]),
            role: low(words[2]),
            lock_slot: high(words[2]),
            data_offset: words[3],
            capacity: words[4],
            created: words[5],
            nonce: words[6],
            uuid: words_to_uuid([words[7], words[8]]),
            from: low(words[9]),
            to: high(words[9]),
        };
        (header, words[Self::CHECK] == check(&words[..Self::CHECK]))
    }
}

/// Finaliser of MurmurHash3 (Austin Appleby, public domain): a bijection of 64-bit words that spreads every bit.
pub(crate) const fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 33
}

/// Check of the header: finds damage, not malice.
fn check(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(MAGIC, |sum, word| mix(sum ^ word).wrapping_add(1))
}

/// The word that a record at `position` carries when it is complete.
///
/// For one nonce it is a bijection of the position, so no two positions share a word and what an earlier
/// lap left at the same offset never matches. Payload bytes match with probability 2^-64.
#[inline(always)]
pub const fn commit_word(position: u64, nonce: u64) -> u64 {
    let word = (position ^ nonce).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^ word >> 32
}

/// Bytes that a record with `extra` bytes of extensions and payload takes, padding included.
#[inline(always)]
pub const fn record_size(extra: usize) -> usize {
    (RECORD_HEADER + extra + RECORD_ALIGN - 1) & !(RECORD_ALIGN - 1)
}

/// Bytes of the extensions that `flags` announce; `flags` has known bits only.
#[inline(always)]
pub const fn extension_size(flags: u32) -> usize {
    // Apart for 0, almost always the case: counting bits takes a dozen instructions without POPCNT.
    if flags == 0 {
        0
    } else {
        8 * flags.count_ones() as usize
    }
}

/// The largest payload of a ring, bytes: half its capacity.
pub const fn max_payload(capacity: u64) -> usize {
    (capacity / 2) as usize
}

impl CursorSlots {
    /// The slot in force and what it says: the one with the higher sequence; of two with the same, the one of its
    /// parity, since the next store goes to the other. Reads each word once. For the cursor's only writer (a
    /// predecessor that was killed between two stores left them in the slot that is not in force); others use
    /// [`CursorSlots::read`].
    fn current(&self) -> (u64, Cursor) {
        let (slot, sequence) = self.in_force();
        let position = self.slots[slot as usize & 1].position.load(Acquire);
        (slot, Cursor { position, sequence })
    }

    /// The slot in force and its sequence.
    #[inline(always)]
    fn in_force(&self) -> (u64, u64) {
        let [a, b] = [0, 1].map(|s: usize| self.slots[s].sequence.load(Acquire)); // partner: Release in put
        match a.cmp(&b) {
            core::cmp::Ordering::Less => (1, b),
            core::cmp::Ordering::Greater => (0, a),
            core::cmp::Ordering::Equal => (a & 1, a),
        }
    }

    /// What the cursor says, for its only writer.
    pub fn recover(&self) -> Cursor {
        self.current().1
    }

    /// A position and its sequence that belong together, while the writer goes on. `None` if the writer was
    /// faster several times over, which says only: try again.
    pub fn read(&self) -> Option<Cursor> {
        for _ in 0..16 {
            let (slot, cursor) = self.current();
            // The writer touches a slot only while the other one is in force. If the position was of such a
            // later store, its Acquire also shows what put the other slot in force (partner: Release in put).
            if self.in_force() == (slot, cursor.sequence) {
                return Some(cursor);
            }
        }
        None
    }

    /// The furthest position that either slot says, which may be about to come into force. Enough where every
    /// position that was ever stored was true before it was stored: the head (a copy of `released`) and the tail
    /// of a ring with commit words. Not for `released` and a mirror's tail.
    #[inline]
    pub fn furthest(&self) -> u64 {
        let [a, b] = [0, 1].map(|s: usize| self.slots[s].position.load(Acquire)); // partner: Release in put
        a.max(b)
    }

    /// A number that is another one whenever the cursor is: each store that brings a slot in force makes that slot's
    /// sequence higher, and none makes one lower.
    #[inline]
    pub fn stamp(&self) -> u64 {
        // Relaxed: who finds another number than before looks by `read`, which does the ordering.
        let [a, b] = &self.slots;
        let [a, b] = [a.sequence.load(Relaxed), b.sequence.load(Relaxed)];
        a.wrapping_add(b)
    }

    /// Writes one slot, chosen by the parity of `parity`. A kill between the two stores leaves the other slot in
    /// force, if that one was.
    #[inline(always)]
    fn put(&self, parity: u64, cursor: Cursor) {
        // Both Release. The position: whoever reads it also sees the other slot's sequence (partner: read).
        // The sequence: whoever reads it also sees the position (partner: current).
        let slot = &self.slots[(parity & 1) as usize];
        slot.position.store(cursor.position, Release);
        slot.sequence.store(cursor.sequence, Release);
    }

    /// Makes `next`, one message after the last one stored, current. Its slot is the parity of its sequence,
    /// which then is never the slot in force.
    #[inline(always)]
    pub fn advance(&self, next: Cursor) {
        self.put(next.sequence, next);
    }

    /// Makes `to` current, any number of messages after the last one stored, none included. If its slot is
    /// the one in force, the other one takes it first.
    pub fn jump(&self, to: Cursor) {
        if self.current().0 == to.sequence & 1 {
            self.put(to.sequence.wrapping_add(1), to);
        }
        self.put(to.sequence, to);
    }
}

/// The control area of a new ring, with the two cursors `released` and tail, and the ring on the other host or zeros.
#[cfg(not(loom))]
pub(crate) fn initial_control(
    header: &Header,
    [released, tail]: [Cursor; 2],
    (peer, peer_head): ([u8; 16], Cursor),
    origin: [u8; 16],
) -> [u8; CONTROL_SIZE] {
    let mut words = [0u64; CONTROL_SIZE / 8];
    words[..Header::WORDS].copy_from_slice(&header.to_words());
    words[offset_of!(Control, notes.peer_uuid) / 8..][..2].copy_from_slice(&uuid_to_words(peer));
    words[offset_of!(Control, notes.origin) / 8..][..2].copy_from_slice(&uuid_to_words(origin));
    for (cursor, start) in [
        (offset_of!(Control, producer.tail), tail),
        (offset_of!(Control, released.cursor), released),
        (offset_of!(Control, head.cursor), released),
        (offset_of!(Control, notes.peer_head), peer_head),
    ] {
        let slots = [
            start.position,
            start.sequence,
            start.position,
            start.sequence,
        ];
        words[cursor / 8..][..4].copy_from_slice(&slots);
    }
    words[offset_of!(Control, producer.started) / 8] = tail.sequence;
    let mut bytes = [0; CONTROL_SIZE];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A field of the control area: its name, its offset in bytes, its size in bytes.
pub type Field = (&'static str, usize, usize);

#[cfg(not(loom))]
macro_rules! fields {
    ($($name:literal = $offset:expr, $size:expr;)*) => {
        /// Every field of the control area, for the test that compares `docs/layout.md` with the code.
        pub const FIELDS: &[Field] = &[$(($name, $offset, $size)),*];
    };
}

#[cfg(not(loom))]
use core::mem::offset_of;

#[cfg(not(loom))]
fields! {
    "magic" = 0, 8;
    "major" = 0x08, 4;
    "minor" = 0x0c, 4;
    "role" = 0x10, 4;
    "lock_slot" = 0x14, 4;
    "data_offset" = 0x18, 8;
    "capacity" = 0x20, 8;
    "created" = 0x28, 8;
    "nonce" = 0x30, 8;
    "uuid" = 0x38, 16;
    "from" = 0x48, 4;
    "to" = 0x4c, 4;
    "check" = 8 * Header::CHECK, 8;
    "producer.tail" = offset_of!(Control, producer.tail), size_of::<CursorSlots>();
    "producer.started" = offset_of!(Control, producer.started), 8;
    "released" = offset_of!(Control, released.cursor), size_of::<CursorSlots>();
    "head" = offset_of!(Control, head.cursor), size_of::<CursorSlots>();
    "receiver_signal" = offset_of!(Control, receiver_signal.word), 4;
    "sender_signal" = offset_of!(Control, sender_signal.word), 4;
    "seal.end" = offset_of!(Control, seal.end), 8;
    "notes.peer_uuid" = offset_of!(Control, notes.peer_uuid), 16;
    "notes.peer_head" = offset_of!(Control, notes.peer_head), size_of::<CursorSlots>();
    "notes.gap" = offset_of!(Control, notes.gap), 32;
    "notes.gaps" = offset_of!(Control, notes.gaps), 8;
    "notes.origin" = offset_of!(Control, notes.origin), 16;
    "producer_info.pid" = offset_of!(Control, producer_info.pid), 4;
    "producer_info.fences" = offset_of!(Control, producer_info.fences), 4;
    "producer_info.attaches" = offset_of!(Control, producer_info.attaches), 8;
    "producer_info.refused" = offset_of!(Control, producer_info.refused), 8;
    "producer_info.wakes" = offset_of!(Control, producer_info.wakes), 8;
    "producer_info.sleeps" = offset_of!(Control, producer_info.sleeps), 8;
    "producer_info.overslept" = offset_of!(Control, producer_info.overslept), 8;
    "consumer_info.pid" = offset_of!(Control, consumer_info.pid), 4;
    "consumer_info.fences" = offset_of!(Control, consumer_info.fences), 4;
    "consumer_info.attaches" = offset_of!(Control, consumer_info.attaches), 8;
    "consumer_info.refused" = offset_of!(Control, consumer_info.refused), 8;
    "consumer_info.wakes" = offset_of!(Control, consumer_info.wakes), 8;
    "consumer_info.sleeps" = offset_of!(Control, consumer_info.sleeps), 8;
    "consumer_info.overslept" = offset_of!(Control, consumer_info.overslept), 8;
}

/// Every number of the layout, for the same test.
pub const CONSTANTS: &[(&str, u64)] = &[
    ("MAGIC", MAGIC),
    ("LAYOUT_MAJOR", LAYOUT_MAJOR as u64),
    ("LAYOUT_MINOR", LAYOUT_MINOR as u64),
    ("CONTROL_SIZE", CONTROL_SIZE as u64),
    ("RECORD_ALIGN", RECORD_ALIGN as u64),
    ("RECORD_HEADER", RECORD_HEADER as u64),
    ("MIN_CAPACITY", MIN_CAPACITY),
    ("MAX_CAPACITY", MAX_CAPACITY),
    ("MAX_POSITION", MAX_POSITION),
    ("ROLE_LOCAL", ROLE_LOCAL as u64),
    ("ROLE_SOURCE", ROLE_SOURCE as u64),
    ("ROLE_MIRROR", ROLE_MIRROR as u64),
    ("SIGNAL_SLEEPING", SIGNAL_SLEEPING as u64),
    ("SIGNAL_FENCE", SIGNAL_FENCE as u64),
    ("SIGNAL_CLOSED", SIGNAL_CLOSED as u64),
    ("FLAG_TIMESTAMP", FLAG_TIMESTAMP as u64),
    ("FLAG_TRACE_ID", FLAG_TRACE_ID as u64),
    ("FLAG_CRC32C", FLAG_CRC32C as u64),
    ("FLAG_HOPS_1", FLAG_HOPS_1 as u64),
    ("FLAG_HOPS_2", FLAG_HOPS_2 as u64),
    ("FLAG_HOPS_3", FLAG_HOPS_3 as u64),
    ("FLAG_HOPS_4", FLAG_HOPS_4 as u64),
    ("SEALED", SEALED),
];
