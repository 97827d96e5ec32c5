//! A hostile process has the ring mapped and writes there what it likes: nobody panics, crashes, hangs, or reads
//! outside the ring (promise 6).
//!
//! * The sweeps set every word of the control area and of the records to every kind of value, before a ring is
//!   opened and while handles are attached to it.
//! * The race changes words all the time while a ring is used, to catch what is read twice.
//! * The other tests demand the exact error for a chosen damage.
//!
//! Sweeps and race run in child processes (this binary again, see [`job`]) with nothing accessible for 4 GiB on
//! either side of the ring, so that an access outside it is a crash; and every payload must be what the file says
//! at its position. A child notes each case before it tries it; the parent limits its time and tells the note.
//!
//! `TBUS_HOSTILE_SEED` chooses the random values, `TBUS_HOSTILE_CASE` runs one case of each sweep only,
//! `TBUS_HOSTILE_SECONDS` is the length of the race.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tbus::layout::{self, CONTROL_SIZE, Header, RECORD_HEADER, commit_word, record_size};
use tbus::{
    Address, Cursor, Damage, Directory, Error, Extensions, FairReceiver, Kind, Message,
    MirrorWriter, Receiver, Ring, RingSpec, Sender, TryRecvError, TrySendError, Uuid,
};

/// Bytes of the header that are checked, the check included.
const HEADER: usize = 88;
/// A case that takes more calls than this does not end.
const MOST_CALLS: u32 = 10_000;
/// What lies in a buffer behind the message.
const CANARY: u8 = 0xa5;
const TICK: Duration = Duration::from_millis(1);

// ---- Small things -------------------------------------------------------------------------------------------

/// A directory that is removed when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.into()
        } else {
            std::env::temp_dir()
        };
        let path = base.join(format!("tbus-hostile-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// splitmix64 (Sebastiano Vigna, public domain).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is '{text}', not a number")),
    )
}

fn seed() -> u64 {
    setting("TBUS_HOSTILE_SEED").unwrap_or(1)
}

/// Where the field lies in the file.
fn at(field: &str) -> usize {
    layout::FIELDS
        .iter()
        .find(|f| f.0 == field)
        .unwrap_or_else(|| panic!("no field {field}"))
        .1
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Makes the header's check right again: whoever can write a header can do that too.
fn reseal(header: &mut [u8]) {
    let mix = |mut word: u64| {
        word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ word >> 33
    };
    let words = (0..at("check"))
        .step_by(8)
        .map(|offset| word(header, offset));
    let check = words.fold(layout::MAGIC, |sum, word| mix(sum ^ word).wrapping_add(1));
    header[at("check")..][..8].copy_from_slice(&check.to_le_bytes());
}

/// A record as it lies in a ring.
fn record(position: u64, nonce: u64, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = commit_word(position, nonce).to_le_bytes().to_vec();
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(payload);
    bytes.resize(record_size(payload.len()), 0);
    bytes
}

// ---- The ring that is attacked ------------------------------------------------------------------------------

/// A ring with messages of all kinds in it, and its file, which can be changed and put back.
struct Target {
    directory: Directory,
    header: Header,
    path: PathBuf,
    file: File,
    image: Vec<u8>,
    /// Positions of the unread records, and last the tail.
    records: Vec<u64>,
}

impl Target {
    fn new(base: &Path, kind: Kind) -> Target {
        let directory = Directory::create(base.join("rings")).unwrap();
        let mut spec = RingSpec::local(16384, Address(1), Address(2));
        let capacity = Ring::create(&directory, &spec).unwrap().header().capacity; // whole pages
        // The records cross the end of the data area.
        spec.start = Cursor {
            position: 5 * capacity - 4000,
            sequence: 41,
        };
        let local = Ring::create(&directory, &spec).unwrap();
        let records = fill_with_samples(&local);
        let mut target = Target::at(directory, &local, records);
        if kind != Kind::Local {
            spec.kind = kind;
            spec.nonce = Some(target.header.nonce);
            let ring = Ring::create(&target.directory, &spec).unwrap();
            let records = match kind {
                Kind::Source => fill_with_samples(&ring),
                _ => target.mirror_into(&ring),
            };
            target = Target::at(target.directory, &ring, records);
        }
        target
    }

    fn at(directory: Directory, ring: &Ring, records: Vec<u64>) -> Target {
        let path = ring.path().to_path_buf();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let image = fs::read(&path).unwrap();
        let mut sealed = image.clone();
        reseal(&mut sealed);
        assert!(
            sealed == image,
            "the check of the header is not what this test takes it for"
        );
        Target {
            directory,
            header: ring.header().clone(),
            path,
            file,
            image,
            records,
        }
    }

    /// Copies the records to a mirror, as the relay does, and has the first two received there too.
    fn mirror_into(&self, mirror: &Ring) -> Vec<u64> {
        let mut writer = mirror.mirror_writer().unwrap();
        let (start, end) = (writer.tail().position, *self.records.last().unwrap());
        writer
            .write(
                start,
                &self.data(&self.header, start, (end - start) as usize),
            )
            .unwrap();
        writer.publish(end).unwrap();
        let mut receiver = mirror.receiver().unwrap();
        for _ in 0..2 {
            receiver.peek().unwrap().release();
        }
        self.records.clone()
    }

    fn uuid(&self) -> Uuid {
        Uuid(self.header.uuid)
    }

    fn open(&self) -> Result<Ring, Error> {
        Ring::open(&self.directory, self.uuid())
    }

    /// Puts everything back.
    fn restore(&self) {
        self.file.write_all_at(&self.image, 0).unwrap();
    }

    fn poke(&self, offset: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset as u64).unwrap();
    }

    fn poke_field(&self, field: &str, value: u64) {
        self.poke(at(field), &value.to_le_bytes());
    }

    /// Sets both slots of a cursor.
    fn poke_cursor(&self, field: &str, cursor: Cursor) {
        for slot in [0, 16] {
            self.poke(at(field) + slot, &cursor.position.to_le_bytes());
            self.poke(at(field) + slot + 8, &cursor.sequence.to_le_bytes());
        }
    }

    /// Where the byte at `position` lies in the file, by the geometry of `header`.
    fn offset(&self, header: &Header, position: u64) -> usize {
        (header.data_offset + position % header.capacity) as usize
    }

    /// Where the second word, length and flags, of unread record `index` lies in the file.
    fn second_word(&self, index: usize) -> usize {
        self.offset(&self.header, self.records[index] + 8)
    }

    /// Bytes of the ring, read from the file and not by way of a mapping.
    fn data(&self, header: &Header, position: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let before_wrap = length.min((header.capacity - position % header.capacity) as usize);
        let (first, second) = bytes.split_at_mut(before_wrap);
        self.file
            .read_exact_at(first, self.offset(header, position) as u64)
            .unwrap();
        self.file.read_exact_at(second, header.data_offset).unwrap();
        bytes
    }

    /// Bytes that the ring takes of the address space.
    fn mapped_size(&self) -> usize {
        (self.header.data_offset + 2 * self.header.capacity) as usize
    }
}

/// Sends messages of all kinds, of which the first two are received (if there is a receiver for applications).
/// Returns the positions of the unread ones, and the tail.
fn fill_with_samples(ring: &Ring) -> Vec<u64> {
    let (mut sender, mut records) = (ring.sender().unwrap(), Vec::new());
    let all = Extensions {
        timestamp: true,
        trace_id: true,
        crc: true,
    };
    let crc = Extensions {
        crc: true,
        ..Extensions::default()
    };
    let none = Extensions::default();
    let largest = sender.max_len();
    let samples = [
        (700, none),
        (9, all),
        (0, none),
        (1, none),
        (8, all),
        (100, crc),
        (3500, none),
        (0, crc),
        (largest, none),
    ];
    for (number, (length, extensions)) in samples.into_iter().enumerate() {
        records.push(sender.next().position);
        sender.set_extensions(extensions);
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + number) as u8).collect();
        sender.try_send(&payload).unwrap();
    }
    records.push(sender.next().position);
    if let Ok(mut receiver) = ring.receiver() {
        for _ in 0..2 {
            receiver.peek().unwrap().release();
        }
    }
    records.split_off(2)
}

/// Keeps 4 GiB inaccessible on either side of where the next mapping of `size` bytes goes.
struct Hole {
    start: usize,
}

impl Hole {
    fn new(size: usize) -> Hole {
        const MARGIN: usize = 1 << 32; // any length that fits a record
        let reserve = |size: usize| {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
            // SAFETY: a fresh reservation, at an address of the kernel's choice.
            unsafe {
                mmap_anonymous(
                    None,
                    NonZeroUsize::new(size).unwrap(),
                    ProtFlags::PROT_NONE,
                    flags,
                )
            }
            .unwrap()
        };
        // SAFETY: inside the reservation, which nobody uses.
        let hole = unsafe { reserve(size + 2 * MARGIN).byte_add(MARGIN) };
        // SAFETY: as above.
        unsafe { munmap(hole, size) }.unwrap();
        // The kernel takes the first gap that is large enough: fill the others until it is this one.
        loop {
            let next = reserve(size);
            if next == hole {
                // SAFETY: just reserved, and nobody uses it.
                unsafe { munmap(next, size) }.unwrap();
                return Hole {
                    start: hole.as_ptr() as usize,
                };
            }
        }
    }

    /// Checks that `path` was mapped here.
    fn must_hold(&self, path: &Path) {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps
            .lines()
            .find(|line| line.ends_with(path.to_str().unwrap()))
            .expect("it is mapped");
        assert!(
            line.starts_with(&format!("{:x}-", self.start)),
            "the ring has no guard around it: {line}"
        );
    }
}

// ---- Using a ring, whatever is in it ------------------------------------------------------------------------

/// What a case met.
#[derive(Debug, Default)]
struct Seen {
    calls: u32,
    delivered: u32,
    /// Errors that say that the ring is not in order.
    clear: u32,
}

impl Seen {
    fn call(&mut self) {
        self.calls += 1;
        assert!(self.calls < MOST_CALLS, "no end after {MOST_CALLS} calls");
    }

    /// An error of open, attach or close: none but these may come of what a ring contains.
    fn error(&mut self, error: &Error) {
        match error {
            Error::NotARing { .. }
            | Error::Layout { .. }
            | Error::BadFile { .. }
            | Error::Damaged { .. } => self.clear += 1,
            Error::Closed { .. } => {}
            other => panic!("not an error for a damaged ring: {other:?}"),
        }
    }

    /// The damage that an error of a handle tells; no other error may come.
    fn damage(&mut self, error: &Error) -> Damage {
        self.error(error);
        match error {
            Error::Damaged { damage, .. } => damage.clone(),
            other => panic!("not an error for an attached handle: {other:?}"),
        }
    }
}

/// The sending side, whichever a ring of this kind has.
enum Writer {
    Application(Sender),
    Relay(MirrorWriter),
}

impl Writer {
    fn attach(ring: &Ring) -> Result<Writer, Error> {
        match ring.kind() {
            Kind::Mirror => ring.mirror_writer().map(Writer::Relay),
            _ => ring.sender().map(Writer::Application),
        }
    }

    /// Sends until it is refused.
    fn fill(&mut self, nonce: u64, seen: &mut Seen) {
        match self {
            Writer::Application(sender) => fill_as_application(sender, seen),
            Writer::Relay(writer) => fill_as_relay(writer, nonce, seen),
        }
    }
}

/// A damaged ring must go on saying the same.
fn fill_as_application(sender: &mut Sender, seen: &mut Seen) {
    let payload = [0x5a; 1000];
    let refusal = loop {
        seen.call();
        if let Err(refusal) = sender.try_send(&payload) {
            break refusal;
        }
    };
    match refusal {
        TrySendError::Full => match sender.wait(payload.len(), Duration::ZERO) {
            Ok(()) | Err(TrySendError::Full | TrySendError::Closed) => {}
            Err(TrySendError::Failed(error)) => {
                seen.damage(&error);
            }
            Err(other) => panic!("{other:?}"),
        },
        TrySendError::Closed => {}
        TrySendError::Failed(error) => {
            let first = seen.damage(&error);
            for again in [
                sender.try_send(&[]),
                sender.reserve(1).map(drop),
                sender.send_batch([b"x"]).map(drop),
                sender.wait(1, TICK),
            ] {
                let Err(TrySendError::Failed(error)) = again else {
                    panic!("{again:?} after {first}")
                };
                assert_eq!(seen.damage(&error), first);
            }
        }
        TrySendError::TooLong { .. } => panic!("not half the smallest capacity"),
    }
}

/// A relay is told its credit by its peer; here it is refused where its own ring has no room, and after a few laps
/// it stops by itself.
fn fill_as_relay(writer: &mut MirrorWriter, nonce: u64, seen: &mut Seen) {
    for _ in 0..64 {
        seen.call();
        let position = writer.tail().position;
        let bytes = record(position, nonce, 0, &[0x5a; 1000]);
        let sent = writer
            .write(position, &bytes)
            .and_then(|()| writer.publish(position + bytes.len() as u64));
        match sent {
            Ok(()) => {}
            // It is full, which a relay takes care to prevent.
            Err(Error::Damaged { damage, .. }) if damage.what == "write into the mirror" => return,
            Err(error) => {
                seen.damage(&error);
                return;
            }
        }
    }
}

/// Receives until nothing is there, and waits for more for `patience`. A damaged ring must go on saying the same.
fn drain(target: &Target, receiver: &mut Receiver, patience: Duration, seen: &mut Seen) {
    loop {
        seen.call();
        let header = receiver.ring().header().clone();
        match receiver.peek() {
            Ok(message) => take(target, &header, message, seen),
            Err(TryRecvError::Empty | TryRecvError::Closed) => match receiver.wait(patience) {
                Ok(()) => {}
                Err(TryRecvError::Failed(error)) => return keeps_failing(receiver, &error, seen),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
                Err(other) => panic!("{other:?}"),
            },
            Err(TryRecvError::Failed(error)) => return keeps_failing(receiver, &error, seen),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn keeps_failing(receiver: &mut Receiver, error: &Error, seen: &mut Seen) {
    let first = seen.damage(error);
    let next = receiver.next();
    for _ in 0..3 {
        for again in [
            receiver.peek().map(drop),
            receiver.try_recv(&mut []).map(drop),
            receiver.wait(TICK),
        ] {
            let Err(TryRecvError::Failed(error)) = again else {
                panic!("{again:?} after {first}")
            };
            assert_eq!(seen.damage(&error), first);
        }
        assert!(receiver.recv_batch(2).next().is_none());
        assert_eq!(receiver.next(), next);
    }
}

/// Copies a message, which must be within bounds and what the file says at its position, and releases it.
fn take(target: &Target, header: &Header, message: Message<'_>, seen: &mut Seen) {
    seen.delivered += 1;
    let length = message.len();
    assert!(
        length as u64 <= header.capacity / 2,
        "a message of {length} bytes"
    );
    let mut buffer = vec![CANARY; length + 64];
    match message.copy_to(&mut buffer) {
        Ok(copied) => assert_eq!(copied, length),
        Err(TryRecvError::BadCrc { .. }) => assert!(!message.crc_matches()),
        Err(other) => panic!("{other:?}"),
    }
    assert!(
        buffer[length..].iter().all(|byte| *byte == CANARY),
        "written behind the message"
    );
    // By the message's own account: the flags in the ring may have changed since they were checked.
    let extensions = [
        message.timestamp().is_some(),
        message.trace_id().is_some(),
        message.crc().is_some(),
    ];
    let before = RECORD_HEADER + 8 * extensions.iter().filter(|there| **there).count();
    // Up to four more are of hops, which may say nothing and be there all the same.
    let begin = message.cursor().position + before as u64;
    let expected = (0..=4)
        .map(|hops| target.data(header, begin + 8 * hops, length))
        .find(|expected| buffer[..length] == *expected)
        .expect("other bytes than the ring's");
    let (half, middle) = (length / 2, &mut [CANARY; 32]);
    let copied = message.read_at(half, middle);
    assert_eq!(
        (copied, &middle[..copied]),
        ((length - half).min(32), &expected[half..][..copied])
    );
    assert_eq!(message.read_at(length + 1, middle), 0);
    assert_eq!(message.len(), length);
    message.release();
}

/// Does with a ring what applications do, and checks all that comes back.
fn use_ring(
    target: &Target,
    ring: &Ring,
    mut writer: Option<Writer>,
    mut receiver: Option<Receiver>,
    seen: &mut Seen,
) {
    let nonce = ring.header().nonce;
    for patience in [Duration::ZERO, TICK] {
        if let Some(writer) = &mut writer {
            writer.fill(nonce, seen);
        }
        if let Some(receiver) = &mut receiver {
            drain(target, receiver, patience, seen);
        }
        ring.status();
    }
    ring.check_file().unwrap();
    // With the sender attached, and once more without.
    for patience in [TICK, 5 * TICK] {
        seen.call();
        match ring.close(patience) {
            Ok(_)
            | Err(Error::Busy {
                role: "producer", ..
            }) => {}
            Err(error) => seen.error(&error),
        }
        if let Some(receiver) = &mut receiver {
            drain(target, receiver, Duration::ZERO, seen);
        }
        drop(writer.take());
    }
    if let Err(error) = ring.sender()
        && ring.kind() != Kind::Mirror
    {
        seen.error(&error);
    }
}

fn attach_and_use(target: &Target, ring: &Ring, seen: &mut Seen) {
    let receiver = match ring.receiver() {
        Ok(receiver) => Some(receiver),
        Err(Error::WrongRole { .. }) if ring.kind() == Kind::Source => None,
        Err(error) => {
            seen.error(&error);
            None
        }
    };
    let writer = Writer::attach(ring)
        .map_err(|error| seen.error(&error))
        .ok();
    use_ring(target, ring, writer, receiver, seen);
}

// ---- The sweeps ---------------------------------------------------------------------------------------------

/// One change of the file.
#[derive(Clone, Debug)]
struct Case {
    offset: usize,
    bytes: Vec<u8>,
    /// The header's check is made right again.
    resealed: bool,
    moment: Moment,
}

/// When the change happens to attached handles.
#[derive(Clone, Copy, Debug)]
enum Moment {
    BetweenCalls,
    WithAMessageInHand,
    WithinABatch,
    WithAReservation,
}

const MOMENTS: [Moment; 4] = [
    Moment::BetweenCalls,
    Moment::WithAMessageInHand,
    Moment::WithinABatch,
    Moment::WithAReservation,
];

/// All places, each with all values.
fn cases(target: &Target, seed: u64) -> Vec<Case> {
    let mut words: Vec<usize> = (0..CONTROL_SIZE).step_by(8).collect();
    for position in &target.records {
        // Commit word, length and flags, extensions, the beginning of the payload.
        words.extend((0..7).map(|word| target.offset(&target.header, position + 8 * word)));
    }
    let mut cases = Vec::new();
    for place in words {
        for (offset, width) in [(place, 8), (place, 4), (place + 4, 4)] {
            let mut old = [0; 8];
            old[..width].copy_from_slice(&target.image[offset..offset + width]);
            let old = u64::from_le_bytes(old);
            let mut rng = Rng(seed ^ cases.len() as u64);
            let bits = rng.below(16);
            let near = 8 * rng.below(1 << bits);
            let values = [
                0,
                1,
                u64::MAX,
                rng.next(),
                rng.next(),
                old ^ 1 << rng.below(8 * width as u64),
                old.wrapping_add(near),
                old.wrapping_sub(near),
            ];
            for value in values {
                let case = Case {
                    offset,
                    bytes: value.to_le_bytes()[..width].into(),
                    resealed: false,
                    moment: MOMENTS[rng.below(4) as usize],
                };
                if offset < HEADER {
                    cases.push(Case {
                        resealed: true,
                        ..case.clone()
                    });
                }
                cases.push(case);
            }
        }
    }
    cases
}

impl Case {
    fn apply(&self, target: &Target) {
        target.poke(self.offset, &self.bytes);
        if self.resealed {
            let mut header = vec![0; HEADER];
            target.file.read_exact_at(&mut header, 0).unwrap();
            reseal(&mut header);
            target.poke(0, &header);
        }
    }

    /// Opens the changed ring and uses it.
    fn before(&self, target: &Target, hole: &Hole, seen: &mut Seen) {
        self.apply(target);
        let mut image = target.image.clone();
        image[self.offset..][..self.bytes.len()].copy_from_slice(&self.bytes);
        let changed = |field: &str, size: usize| {
            image[at(field)..][..size] != target.image[at(field)..][..size]
        };
        let result = target.open();
        match &result {
            Err(Error::NotARing { found, .. }) => {
                assert!(changed("magic", 8) && *found == word(&image, 0))
            }
            Err(Error::Layout { found, .. }) => {
                assert!(
                    !changed("magic", 8) && changed("major", 4) && *found == word(&image, 8) as u32
                );
            }
            Err(Error::BadFile { .. }) => {
                assert!(
                    !changed("magic", 8)
                        && !changed("major", 4)
                        && image[..HEADER] != target.image[..HEADER]
                );
            }
            // A right check may make another value a legal one.
            Ok(_) => assert!(image[..HEADER] == target.image[..HEADER] || self.resealed),
            Err(other) => panic!("{other:?}"),
        }
        match result {
            Ok(ring) => {
                if ring.header().capacity == target.header.capacity
                    && ring.header().data_offset == target.header.data_offset
                {
                    hole.must_hold(&target.path);
                }
                attach_and_use(target, &ring, seen);
            }
            Err(error) => seen.error(&error),
        }
    }

    /// Changes the ring while handles are attached, and uses them; then attaches anew.
    fn during(&self, target: &Target, ring: &Ring, seen: &mut Seen) {
        let mut receiver = ring.receiver().ok();
        let mut writer = Writer::attach(ring).unwrap();
        match (self.moment, &mut receiver, &mut writer) {
            (Moment::WithAMessageInHand, Some(receiver), _) => {
                // The third one has all extensions.
                for _ in 0..2 {
                    receiver.peek().unwrap().release();
                }
                let header = ring.header();
                let message = receiver.peek().unwrap();
                let length = message.len();
                self.apply(target);
                assert_eq!(message.len(), length);
                take(target, header, message, seen);
            }
            (Moment::WithinABatch, Some(receiver), _) => {
                let mut batch = receiver.recv_batch(5);
                assert!(batch.next().is_some());
                self.apply(target);
                while let Some(message) = batch.next() {
                    take(target, ring.header(), message, seen);
                }
            }
            (Moment::WithAReservation, _, Writer::Application(sender)) => {
                let mut reservation = sender.reserve(300).unwrap();
                reservation.write_at(0, &[0x5a; 200]);
                self.apply(target);
                reservation.commit_first(200);
            }
            _ => self.apply(target),
        }
        use_ring(target, ring, Some(writer), receiver, seen);
        attach_and_use(target, ring, seen);
    }
}

/// Tries all cases on a ring of `kind`, `attached` or not.
fn sweep(base: &Path, kind: Kind, attached: bool) {
    let target = Target::new(base, kind);
    let hole = Hole::new(target.mapped_size());
    let ring = attached.then(|| target.open().unwrap());
    if attached {
        hole.must_hold(&target.path);
    }
    let only = setting("TBUS_HOSTILE_CASE");
    let mut cases: Vec<(usize, Case)> = cases(&target, seed()).into_iter().enumerate().collect();
    if kind == Kind::Mirror {
        // For time's sake; of 8 values a place, every third case meets all.
        cases.retain(|(number, _)| number % 3 == (seed() % 3) as usize);
    }
    let (mut delivered, mut clear) = (0, 0);
    for (number, case) in &cases {
        if only.is_some_and(|only| only != *number as u64) {
            continue;
        }
        note(base, &format!("case {number}: {case:x?}"));
        target.restore();
        let mut seen = Seen::default();
        match &ring {
            Some(ring) => case.during(&target, ring, &mut seen),
            None => case.before(&target, &hole, &mut seen),
        }
        delivered += seen.delivered;
        clear += usize::from(seen.clear > 0);
    }
    if only.is_none() {
        println!(
            "{kind:?}, attached {attached}: {} cases, {clear} clear errors, {delivered} messages",
            cases.len()
        );
        // Most words are unused or statistics, or stored anew by the handles that are attached.
        let messages = if kind == Kind::Source {
            0
        } else {
            10 * cases.len() as u32
        };
        assert!(
            clear > cases.len() / 20,
            "{clear} clear errors only, in {} cases",
            cases.len()
        );
        assert!(
            delivered >= messages,
            "{delivered} messages only, in {} cases",
            cases.len()
        );
    }
}

// ---- The race -----------------------------------------------------------------------------------------------

/// How long it lasts.
fn race_time() -> Duration {
    Duration::from_secs(setting("TBUS_HOSTILE_SECONDS").unwrap_or(3))
}

/// Changes a ring as fast as it can.
fn mutate(base: &Path) {
    let (header, path) = the_ring(base);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let size = NonZeroUsize::new((header.data_offset + header.capacity) as usize).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping, at an address of the kernel's choice.
    let memory = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    // SAFETY: mapped above and never unmapped, aligned, and accessed atomically only.
    let words =
        unsafe { std::slice::from_raw_parts(memory.cast::<AtomicU64>().as_ptr(), size.get() / 8) };
    let data =
        |position: u64| &words[((header.data_offset + position % header.capacity) / 8) as usize];
    let mut rng = Rng(seed() ^ 0xace);
    let begun = Instant::now();
    while begun.elapsed() < race_time() + Duration::from_secs(1) {
        let mood = rng.below(8);
        for _ in 0..rng.below(10_000) {
            match mood {
                // The record that the receiver reads now is complete, and its length right or wrong in turn.
                0..4 => {
                    let slot = at("released") / 8 + 2 * rng.below(2) as usize;
                    let position = words[slot].load(Relaxed) & !7;
                    data(position).store(commit_word(position, header.nonce), Relaxed);
                    let (length, flags) = (rng.below(header.capacity / 2), rng.below(8) << 32);
                    let wrong = [
                        rng.next(),
                        u64::from(u32::MAX),
                        header.capacity,
                        header.capacity / 2 + 1,
                    ];
                    for _ in 0..rng.below(16) {
                        data(position + 8).store(length | flags, Relaxed);
                        data(position + 8).store(wrong[rng.below(4) as usize], Relaxed);
                    }
                    data(position + 8).store(length | flags, Relaxed);
                }
                4 => data(8 * rng.below(1 << 20)).store(rng.next(), Relaxed),
                5 => {
                    let position = 8 * rng.below(1 << 20);
                    data(position).store(commit_word(position, header.nonce), Relaxed);
                    data(position + 8).store(rng.below(1 << 20), Relaxed);
                }
                6 => words[rng.below(CONTROL_SIZE as u64 / 8) as usize]
                    .store(rng.next() >> rng.below(64), Relaxed),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// Uses the ring that [`mutate`] changes.
fn race(base: &Path) {
    let target = Target::new(base, Kind::Local);
    let hole = Hole::new(target.mapped_size());
    let mut ring = target.open().unwrap();
    hole.must_hold(&target.path);
    fs::write(base.join("the-ring"), target.uuid().to_string()).unwrap();
    let _mutator = Child::start("mutate", base);
    let mut buffer = vec![0; target.header.capacity as usize];
    let (mut delivered, mut damaged, mut refused, mut bad_crc, mut sent) =
        (0u64, 0u64, 0u64, 0u64, 0u64);
    let begun = Instant::now();
    let mut round = 0u64;
    while begun.elapsed() < race_time() {
        round += 1;
        note(base, &format!("round {round}"));
        target.restore();
        if round.is_multiple_of(16) {
            drop(ring);
            // The header may be caught in the midst of a change: never here, but it must be a clear error then.
            ring = loop {
                match target.open() {
                    Ok(ring) => break ring,
                    Err(error) => Seen::default().error(&error),
                }
                target.restore();
            };
        }
        let mut sender = ring
            .sender()
            .map_err(|error| Seen::default().error(&error))
            .ok();
        let mut receiver = ring
            .receiver()
            .map_err(|error| Seen::default().error(&error))
            .ok();
        refused += u64::from(sender.is_none()) + u64::from(receiver.is_none());
        for call in 0..200 {
            let mut broken = true;
            // More often the mutator makes the records.
            if let Some(sender) = &mut sender
                && call % 4 == 0
            {
                match sender.try_send(&buffer[..call * 7]) {
                    Ok(()) => (broken, sent) = (false, sent + 1),
                    Err(TrySendError::Full | TrySendError::Closed) => broken = false,
                    Err(TrySendError::Failed(error)) => {
                        Seen::default().damage(&error);
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            if let Some(receiver) = &mut receiver {
                match receive(&target, receiver, &mut buffer) {
                    Ok(()) => (broken, delivered) = (false, delivered + 1),
                    Err(TryRecvError::BadCrc { .. }) => (broken, bad_crc) = (false, bad_crc + 1),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => broken = false,
                    Err(TryRecvError::Failed(error)) => {
                        Seen::default().damage(&error);
                        damaged += 1;
                        break;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            if broken {
                break;
            }
        }
        ring.status();
        if let Err(error) = ring.close(Duration::ZERO)
            && !matches!(error, Error::Busy { .. })
        {
            Seen::default().error(&error);
        }
    }
    println!(
        "{round} rounds, {sent} sent, {delivered} delivered, {bad_crc} bad, {damaged} damaged, {refused} refused"
    );
    assert!(
        delivered > 100 && damaged > 10 && refused > 0,
        "the mutator hardly met the reader"
    );
}

/// Receives by copy or in place, and checks the length that was handed out.
fn receive(
    target: &Target,
    receiver: &mut Receiver,
    buffer: &mut [u8],
) -> Result<(), TryRecvError> {
    let most = (target.header.capacity / 2) as usize;
    let message = receiver.peek()?;
    let length = message.len();
    assert!(length <= most, "a message of {length} bytes");
    buffer[length..].fill(CANARY);
    let copied = message.copy_to(buffer);
    if matches!(copied, Err(TryRecvError::BadCrc { .. })) {
        assert_eq!(message.read_at(0, buffer), length);
    }
    assert!(
        buffer[length..].iter().all(|byte| *byte == CANARY),
        "written behind the message"
    );
    assert_eq!(message.len(), length);
    message.release();
    copied.map(|copied| assert_eq!(copied, length))
}

/// The ring that [`race`] made.
fn the_ring(base: &Path) -> (Header, PathBuf) {
    let uuid: Uuid = fs::read_to_string(base.join("the-ring"))
        .unwrap()
        .parse()
        .unwrap();
    let directory = Directory::open(base.join("rings")).unwrap();
    // The race does not touch the header, so this opens.
    (
        Ring::open(&directory, uuid).unwrap().header().clone(),
        directory.ring_path(uuid),
    )
}

// ---- Child processes ----------------------------------------------------------------------------------------

const DONE: &str = "done";

fn note(base: &Path, text: &str) {
    fs::write(base.join("note"), text).unwrap();
}

/// This binary again, as [`job`]; killed when dropped.
struct Child(std::process::Child);

impl Child {
    fn start(job: &str, base: &Path) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "job", "--nocapture", "--test-threads=1"]);
        command
            .env("TBUS_HOSTILE_JOB", job)
            .env("TBUS_HOSTILE_DIR", base);
        if setting("TBUS_HOSTILE_VERBOSE").is_none() {
            command.stdout(Stdio::null());
        }
        Child(command.spawn().unwrap())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a job in a child and waits for it, at most `limit`.
fn run(job: &str, limit: Duration) {
    let scratch = Scratch::new(job);
    let mut child = Child::start(job, &scratch.0);
    let begun = Instant::now();
    let end = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break status.to_string(),
            None if begun.elapsed() > limit => break format!("no end after {limit:?}"),
            None => std::thread::sleep(10 * TICK),
        }
    };
    let note = fs::read_to_string(scratch.0.join("note")).unwrap_or_default();
    assert!(
        note == DONE,
        "{job}: {end}, in {note} of TBUS_HOSTILE_SEED={}",
        seed()
    );
}

/// What the child processes do; as a test of its own, nothing.
#[test]
fn job() {
    let (Ok(job), Some(base)) = (
        std::env::var("TBUS_HOSTILE_JOB"),
        std::env::var_os("TBUS_HOSTILE_DIR"),
    ) else {
        return;
    };
    let base = Path::new(&base);
    match job.as_str() {
        "before-local" => sweep(base, Kind::Local, false),
        "before-source" => sweep(base, Kind::Source, false),
        "before-mirror" => sweep(base, Kind::Mirror, false),
        "during-local" => sweep(base, Kind::Local, true),
        "during-mirror" => sweep(base, Kind::Mirror, true),
        "race" => race(base),
        "mutate" => return mutate(base),
        other => panic!("no job {other}"),
    }
    note(base, DONE);
}

const SWEEP_LIMIT: Duration = Duration::from_secs(120);

#[test]
fn any_word_changed_before_a_local_ring_is_opened() {
    run("before-local", SWEEP_LIMIT);
}

#[test]
fn any_word_changed_before_a_source_ring_is_opened() {
    run("before-source", SWEEP_LIMIT);
}

#[test]
fn any_word_changed_before_a_mirror_ring_is_opened() {
    run("before-mirror", SWEEP_LIMIT);
}

#[test]
fn any_word_changed_under_handles_on_a_local_ring() {
    run("during-local", SWEEP_LIMIT);
}

#[test]
fn any_word_changed_under_handles_on_a_mirror_ring() {
    run("during-mirror", SWEEP_LIMIT);
}

#[test]
fn words_that_change_while_they_are_read() {
    run("race", race_time() + Duration::from_secs(60));
}

// ---- Chosen damage, and its exact error ---------------------------------------------------------------------

fn attach_error<T>(result: Result<T, Error>) -> Damage {
    match result {
        Err(Error::Damaged { damage, .. }) => damage,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it attached"),
    }
}

fn receive_error<T: std::fmt::Debug>(result: Result<T, TryRecvError>) -> Damage {
    match result {
        Err(TryRecvError::Failed(error)) => attach_error::<()>(Err(*error)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_changed_header_is_refused_by_what_changed() {
    let scratch = Scratch::new("header");
    let target = Target::new(&scratch.0, Kind::Local);
    target.poke_field("magic", 0x1122_3344_5566_7788);
    assert!(matches!(
        target.open(),
        Err(Error::NotARing {
            found: 0x1122_3344_5566_7788,
            ..
        })
    ));
    for major in [0, 1, 3, u32::MAX] {
        target.restore();
        target.poke(at("major"), &major.to_le_bytes());
        assert!(
            matches!(target.open(), Err(Error::Layout { found, ours: 2, .. }) if found == major)
        );
    }
    for offset in (0x0c..HEADER).step_by(4) {
        target.restore();
        target.poke(offset, &[!target.image[offset]]);
        let Err(Error::BadFile { why, .. }) = target.open() else {
            panic!("byte {offset}")
        };
        assert!(why.contains("check"), "{why}");
    }
}

#[test]
fn a_header_with_a_right_check_must_still_make_sense() {
    let scratch = Scratch::new("resealed");
    let target = Target::new(&scratch.0, Kind::Local);
    let (page, capacity) = (target.header.data_offset, target.header.capacity);
    let cases: [(&str, u64, &str); 16] = [
        ("role", 0, "role"),
        ("role", 4, "role"),
        ("data_offset", 0, "data offset"),
        ("data_offset", page + 8, "data offset"),
        ("data_offset", (1 << 20) + page, "data offset"),
        ("data_offset", u64::MAX - page + 1, "data offset"),
        ("data_offset", 2 * page, "bytes"),
        ("capacity", 0, "capacity"),
        ("capacity", capacity + 8, "capacity"),
        ("capacity", capacity + page, "bytes"),
        ("capacity", layout::MAX_CAPACITY, "bytes"),
        ("capacity", layout::MAX_CAPACITY + page, "capacity"),
        ("capacity", u64::MAX, "capacity"),
        ("capacity", u64::MAX - page + 1, "capacity"),
        ("uuid", 0, "says that it is ring"),
        ("uuid", u64::MAX, "says that it is ring"),
    ];
    for (field, value, words) in cases {
        target.restore();
        let mut header = target.image[..HEADER].to_vec();
        let size = if field == "role" { 4 } else { 8 };
        header[at(field)..][..size].copy_from_slice(&value.to_le_bytes()[..size]);
        reseal(&mut header);
        target.poke(0, &header);
        let Err(Error::BadFile { why, .. }) = target.open() else {
            panic!("{field} = {value}")
        };
        assert!(why.contains(words), "{field} = {value}: {why}");
    }
}

#[test]
fn a_wrong_record_is_damage_and_stays_it() {
    let scratch = Scratch::new("record");
    for kind in [Kind::Local, Kind::Mirror] {
        let target = Target::new(&scratch.0, kind);
        let ring = target.open().unwrap();
        let position = target.records[0];
        let most = target.header.capacity / 2;
        let tail = *target.records.last().unwrap();
        let (commit, second) = (
            target.offset(&target.header, position),
            target.second_word(0),
        );
        for (offset, value, what, found) in [
            (second, most + 1, "record length", most + 1),
            (
                second,
                u64::from(u32::MAX),
                "record length",
                u32::MAX.into(),
            ),
            (second, 1 << 39, "record flags", 1 << 7),
            (second, 1 << 63, "record flags", 1 << 31),
            (commit, 0, "commit word", 0),
            (
                commit,
                commit_word(position, target.header.nonce) ^ 1,
                "commit word",
                1,
            ),
            (
                commit,
                commit_word(position - target.header.capacity, target.header.nonce),
                "commit word",
                1,
            ),
            (
                commit,
                commit_word(tail, target.header.nonce),
                "commit word",
                1,
            ),
        ] {
            target.restore();
            target.poke(offset, &value.to_le_bytes());
            let mut receiver = ring.receiver().unwrap();
            // A commit word that is not there is at first no more than a message that is not there.
            let damage = receive_error(receiver.wait(TICK));
            assert_eq!(
                (damage.what, damage.position, damage.found),
                (what, position, found)
            );
            keeps_failing(
                &mut receiver,
                &Error::Damaged {
                    path: target.path.clone(),
                    damage,
                },
                &mut Seen::default(),
            );
        }
        // Half the capacity is legal, and within the ring.
        target.restore();
        target.poke(second, &most.to_le_bytes());
        take(
            &target,
            ring.header(),
            ring.receiver().unwrap().peek().unwrap(),
            &mut Seen::default(),
        );
    }
}

#[test]
fn many_polls_find_a_broken_commit_word_too() {
    let scratch = Scratch::new("polls");
    let target = Target::new(&scratch.0, Kind::Local);
    let mut receiver = target.open().unwrap().receiver().unwrap();
    target.poke(target.offset(&target.header, target.records[0]), &[0; 8]);
    let found = (0..MOST_CALLS).find_map(|_| match receiver.peek() {
        Err(TryRecvError::Empty) => None,
        other => Some(receive_error(other)),
    });
    assert_eq!(found.expect("it was found").what, "commit word");
}

#[test]
fn wild_cursors_are_damage_at_attach() {
    let scratch = Scratch::new("cursors");
    let target = Target::new(&scratch.0, Kind::Local);
    let ring = target.open().unwrap();
    let (first, tail) = (target.records[0], *target.records.last().unwrap());
    let capacity = target.header.capacity;
    let sequence = 50;
    for position in [
        u64::MAX,
        1 << 63,
        tail + 4,
        tail + 2 * capacity,
        tail - 2 * capacity,
    ] {
        target.restore();
        target.poke_cursor("producer.tail", Cursor { position, sequence });
        if position == tail + 4 {
            assert_eq!(attach_error(ring.sender()).what, "tail");
            continue; // no business of the consumer, who looks for a record
        }
        assert!(
            ["tail", "released"].contains(&attach_error(ring.sender()).what),
            "{position}"
        );
        assert_eq!(attach_error(ring.receiver()).what, "released", "{position}");
    }
    for position in [u64::MAX, 1 << 63, tail + 2 * capacity, first - 2 * capacity] {
        target.restore();
        target.poke_cursor("released", Cursor { position, sequence });
        target.poke_cursor("head", Cursor { position, sequence });
        assert_eq!(attach_error(ring.sender()).what, "released", "{position}");
        assert_eq!(attach_error(ring.receiver()).what, "released", "{position}");
    }
    target.restore();
    target.poke_cursor(
        "released",
        Cursor {
            position: first + 1,
            sequence,
        },
    );
    assert_eq!(attach_error(ring.receiver()).what, "released");
    // Released up to where no record was ever sent.
    target.restore();
    target.poke_cursor(
        "released",
        Cursor {
            position: tail + 8,
            sequence,
        },
    );
    assert_eq!(attach_error(ring.sender()).what, "released");
}

#[test]
fn a_false_record_past_the_tail_stops_the_next_sender() {
    let scratch = Scratch::new("phantom");
    let target = Target::new(&scratch.0, Kind::Local);
    let ring = target.open().unwrap();
    let tail = *target.records.last().unwrap();
    let word = commit_word(tail, target.header.nonce);
    for (second, what) in [
        (u64::from(u32::MAX), "record length"),
        (1 << 40, "record flags"),
        (8192, "record length"),
    ] {
        target.restore();
        target.poke(target.offset(&target.header, tail), &word.to_le_bytes());
        target.poke(
            target.offset(&target.header, tail + 8),
            &second.to_le_bytes(),
        );
        let damage = attach_error(ring.sender());
        assert_eq!((damage.what, damage.position), (what, tail));
        // Nor is it counted as sent by who closes the ring.
        assert_eq!(attach_error(ring.close(TICK)), damage);
    }
}

#[test]
fn a_consumer_that_leaps_is_damage_to_the_sender() {
    let scratch = Scratch::new("leap");
    let target = Target::new(&scratch.0, Kind::Local);
    let ring = target.open().unwrap();
    for position in [*target.records.last().unwrap() + (1 << 20), u64::MAX] {
        target.restore();
        let mut sender = ring.sender().unwrap();
        target.poke_cursor(
            "head",
            Cursor {
                position,
                sequence: 1 << 20,
            },
        );
        let refusal = loop {
            if let Err(refusal) = sender.try_send(&[0; 1000]) {
                break refusal;
            }
        };
        let TrySendError::Failed(error) = refusal else {
            panic!("{refusal:?}")
        };
        assert_eq!(attach_error::<()>(Err(*error)).what, "consumer's position");
    }
}

#[test]
fn a_mirror_reader_does_not_follow_a_wild_tail() {
    let scratch = Scratch::new("mirror");
    let target = Target::new(&scratch.0, Kind::Mirror);
    let ring = target.open().unwrap();
    let first = target.records[0];
    for position in [
        first - 8,
        first + 4,
        first + target.header.capacity + 8,
        u64::MAX,
    ] {
        target.restore();
        let mut receiver = ring.receiver().unwrap();
        target.poke_cursor(
            "producer.tail",
            Cursor {
                position,
                sequence: 50,
            },
        );
        let damage = receive_error(receiver.peek());
        assert_eq!(
            (damage.what, damage.position, damage.found),
            ("tail", first, position)
        );
    }
    // Nor past a record that ends behind the tail.
    target.restore();
    target.poke_cursor(
        "producer.tail",
        Cursor {
            position: first + 8,
            sequence: 50,
        },
    );
    assert_eq!(
        receive_error(ring.receiver().unwrap().peek()).what,
        "record length"
    );
}

#[test]
fn a_damaged_ring_does_not_disturb_the_others() {
    let scratch = Scratch::new("fair");
    let (damaged, sound) = (
        Target::new(&scratch.0, Kind::Local),
        Target::new(&scratch.0, Kind::Local),
    );
    damaged.poke(damaged.second_word(2), &[0xff; 8]);
    let mut spec = RingSpec::local(16384, Address(1), Address(3));
    spec.lock_slot = 1;
    let other = Ring::create(&sound.directory, &spec).unwrap();
    let mut sender = other.sender().unwrap();
    let mut fair = FairReceiver::new();
    let first = fair.add(damaged.open().unwrap().receiver().unwrap());
    let second = fair.add(other.receiver().unwrap());
    let (mut from_damaged, mut errors, mut buffer) = (0, 0, vec![0; 8192]);
    for round in 0..1000u32 {
        sender.try_send(&round.to_le_bytes()).unwrap();
        loop {
            match fair.try_recv(&mut buffer) {
                Ok((index, _)) if index == first => from_damaged += 1,
                Ok((index, length)) => {
                    assert_eq!(
                        (index, &buffer[..length]),
                        (second, &round.to_le_bytes()[..])
                    );
                    break;
                }
                Err(error) => {
                    assert_eq!(receive_error::<()>(Err(error)).what, "record length");
                    errors += 1;
                }
            }
        }
    }
    assert_eq!((from_damaged, errors), (2, 1));
}
