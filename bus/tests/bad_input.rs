//! What goes wrong in practice: each gives its own error, whose text names the file and says what to do.
//!
//! What needs another user, a full file system, a killed holder or a fork happens in child processes: this binary
//! again, see [`job`].

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid, mkfifo, setgid, setgroups, setuid};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tbus::layout::{self, MAX_CAPACITY, MAX_POSITION, MIN_CAPACITY};
use tbus::{
    Address, AddressError, Cursor, Directory, Error, Kind, Ring, RingSpec, Template, TryRecvError,
    TrySendError, Uuid,
};

const CAPACITY: u64 = 64 << 10;
/// A user without rights, by convention "nobody".
const NOBODY: u32 = 65534;
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
        let path = base.join(format!("tbus-bad-input-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn spec(kind: Kind) -> RingSpec {
    RingSpec {
        kind,
        ..RingSpec::local(CAPACITY, Address(1), Address(2))
    }
}

/// A directory with one ring.
fn one_ring(scratch: &Scratch) -> (Directory, Ring) {
    let directory = Directory::create(scratch.0.join("bus")).unwrap();
    let ring = Ring::create(&directory, &spec(Kind::Local)).unwrap();
    (directory, ring)
}

/// The error's text, which must name the path and contain the mend.
fn says(error: &Error, path: &Path, mend: &str) {
    let text = error.to_string();
    assert!(
        text.contains(path.to_str().unwrap()),
        "'{text}' does not name {}",
        path.display()
    );
    assert!(text.contains(mend), "'{text}' does not say '{mend}'");
}

/// The reason of the `BadFile` that this must be.
fn bad_file<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path) -> String {
    let error = result.unwrap_err();
    says(&error, path, "delete and re-create the ring");
    match error {
        Error::BadFile { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

/// `path` is the missing file, or the directory of a ring that got no further.
fn not_found<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { path: p } if p.starts_with(path)),
        "{error:?}"
    );
    says(
        &error,
        path,
        "check the name and TBUS_SHM_DIR, or create it first",
    );
}

/// `path` as above.
fn not_permitted<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::NotPermitted { path: p, uid: NOBODY, .. } if p.starts_with(path)),
        "{error:?}"
    );
    says(&error, path, "; run as ");
    says(&error, path, "user 65534");
}

fn busy<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path, role: &str, pid: u32) {
    let error = result.unwrap_err();
    let Error::Busy {
        role: found,
        pid: by,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!((*found, *by), (role, pid));
    says(&error, path, "end that one first");
    says(&error, path, &format!("the {role} role"));
    says(&error, path, &format!("pid {pid}"));
}

fn invalid<T: std::fmt::Debug>(result: Result<T, Error>, option: &str, why: &str) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::Invalid { what, .. } if *what == option),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains(option) && text.contains(why), "{text}");
}

/// Where the field lies in the file.
fn at(field: &str) -> u64 {
    layout::FIELDS
        .iter()
        .find(|f| f.0 == field)
        .unwrap_or_else(|| panic!("no field {field}"))
        .1 as u64
}

/// Changes four bytes of the header, and makes its check right again if asked to.
fn patch_header(path: &Path, field: &str, value: u32, reseal: bool) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    file.write_all_at(&value.to_le_bytes(), at(field)).unwrap();
    if reseal {
        file.write_all_at(&check(&file).to_le_bytes(), at("check"))
            .unwrap();
    }
}

/// The check that the header in `file` should have.
fn check(file: &File) -> u64 {
    let mix = |mut word: u64| {
        word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ word >> 33
    };
    let mut header = vec![0; at("check") as usize];
    file.read_exact_at(&mut header, 0).unwrap();
    let words = header
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
    words.fold(layout::MAGIC, |sum, word| mix(sum ^ word).wrapping_add(1))
}

// ---- Files that are not what they should be -----------------------------------------------------------------

#[test]
fn missing_files() {
    let scratch = Scratch::new("missing");
    let (directory, ring) = one_ring(&scratch);
    let nowhere = scratch.0.join("nowhere");
    not_found(Directory::open(&nowhere), &nowhere);
    not_found(
        Directory::create(nowhere.join("deeper")),
        &nowhere.join("deeper"),
    );
    let other = Uuid([7; 16]);
    not_found(Ring::open(&directory, other), &directory.ring_path(other));
    ring.remove().unwrap();
    not_found(Ring::open(&directory, ring.uuid()), ring.path());
    not_found(ring.remove(), ring.path());
    // The directory goes while it is open.
    fs::remove_dir_all(directory.path()).unwrap();
    not_found(
        Ring::create(&directory, &spec(Kind::Local)),
        directory.path(),
    );
    not_found(directory.rings(), directory.path());
}

#[test]
fn other_things_in_place_of_files() {
    let scratch = Scratch::new("in-place");
    let (directory, ring) = one_ring(&scratch);
    let path = ring.path();
    let open = || Ring::open(&directory, ring.uuid());
    let aside = scratch.0.join("aside");
    fs::rename(path, &aside).unwrap();

    symlink(&aside, path).unwrap();
    not_opened(open(), path);
    fs::remove_file(path).unwrap();

    fs::create_dir(path).unwrap();
    not_opened(open(), path);
    fs::remove_dir(path).unwrap();

    mkfifo(path, Mode::S_IRWXU).unwrap();
    let (directory, uuid) = (directory.clone(), ring.uuid());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(Ring::open(&directory, uuid)));
    let opened = receiver
        .recv_timeout(Duration::from_secs(10))
        .expect("it does not wait for a writer");
    assert_eq!(bad_file(opened, path), "it is not a regular file");

    assert_eq!(
        bad_file(Directory::open(&aside), &aside),
        "it is a file, not a directory"
    );
    assert_eq!(
        bad_file(Directory::create(&aside), &aside),
        "it is a file, not a directory"
    );
    let strange = scratch.0.join("strange");
    fs::create_dir_all(strange.join("locks")).unwrap();
    not_opened(Directory::open(&strange), &strange.join("locks"));
}

/// What the system refuses with a reason of its own.
fn not_opened<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path) {
    let error = result.unwrap_err();
    assert!(
        matches!(
            error,
            Error::System { doing: "open", .. } | Error::BadFile { .. }
        ),
        "{error:?}"
    );
    says(&error, path, "");
}

#[test]
fn foreign_files() {
    let scratch = Scratch::new("foreign");
    let (directory, ring) = one_ring(&scratch);
    let path = ring.path();
    for (text, begins) in [
        (
            "The quick brown fox jumps over the lazy dog. ",
            "\"The quic\"",
        ),
        ("\0", "\\0\\0"),
    ] {
        fs::write(path, text.repeat(10_000)).unwrap();
        let error = Ring::open(&directory, ring.uuid()).unwrap_err();
        assert!(matches!(error, Error::NotARing { .. }), "{error:?}");
        says(&error, path, begins);
        says(&error, path, "is it another program's file?");
    }
    fs::write(path, "a short text").unwrap();
    let why = bad_file(Ring::open(&directory, ring.uuid()), path);
    assert_eq!(why, "it has 12 bytes, less than a header");
    // Files of other names are no rings.
    for name in [
        "ring-",
        "ring-x",
        "notes",
        "ring-00000000-0000-0000-0000-00000000000g",
    ] {
        fs::write(directory.path().join(name), "").unwrap();
    }
    assert_eq!(directory.rings().unwrap(), [ring.uuid()]);
}

#[test]
fn truncated_files() {
    let scratch = Scratch::new("truncated");
    let (directory, ring) = one_ring(&scratch);
    let file = OpenOptions::new().write(true).open(ring.path()).unwrap();
    let full = file.metadata().unwrap().len();
    for length in [
        full - 1,
        full - CAPACITY,
        at("check") + 8,
        at("check") + 7,
        1,
        0,
    ] {
        file.set_len(length).unwrap();
        let why = bad_file(Ring::open(&directory, ring.uuid()), ring.path());
        let expected = if length < at("check") + 8 {
            "less than a header".into()
        } else {
            format!("its header says {full}")
        };
        assert!(
            why.contains(&format!("it has {length} bytes")) && why.contains(&expected),
            "{why}"
        );
        assert!(bad_file(ring.check_file(), ring.path()).contains(&format!("had {full}")));
    }
}

#[test]
fn other_layout_versions() {
    let scratch = Scratch::new("layout");
    let (directory, ring) = one_ring(&scratch);
    // A newer version may compute its check in another way: the version is looked at first.
    for reseal in [false, true] {
        patch_header(ring.path(), "major", 3, reseal);
        let error = Ring::open(&directory, ring.uuid()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Layout {
                    found: 3,
                    ours: 2,
                    ..
                }
            ),
            "{error:?}"
        );
        says(
            &error,
            ring.path(),
            "use the tbus version that made it, or drain and re-create the ring",
        );
        says(&error, ring.path(), "version 3");
    }
    // An older one takes other bytes of the lock file: two senders could be in one ring.
    patch_header(ring.path(), "major", 1, true);
    let error = Ring::open(&directory, ring.uuid()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Layout {
                found: 1,
                ours: 2,
                ..
            }
        ),
        "{error:?}"
    );
    patch_header(ring.path(), "major", 2, false);
    patch_header(ring.path(), "minor", 9, false);
    assert!(bad_file(Ring::open(&directory, ring.uuid()), ring.path()).contains("check"));
    patch_header(ring.path(), "minor", 9, true);
    let newer = Ring::open(&directory, ring.uuid()).unwrap();
    assert_eq!(newer.header().minor, 9);
    newer.sender().unwrap().try_send(b"hello").unwrap();
    assert_eq!(newer.receiver().unwrap().try_recv(&mut [0; 8]).unwrap(), 5);
}

#[test]
fn another_uuid_inside() {
    let scratch = Scratch::new("uuid");
    let (directory, ring) = one_ring(&scratch);
    let other = Uuid([7; 16]);
    fs::rename(ring.path(), directory.ring_path(other)).unwrap();
    let why = bad_file(Ring::open(&directory, other), &directory.ring_path(other));
    assert_eq!(
        why,
        format!("its header says that it is ring {}", ring.uuid())
    );
    for text in [
        "",
        "07070707",
        "0707070707070707070707070707070707-7",
        "07070707-0707-0707-0707-07070707070g",
    ] {
        invalid(
            text.parse::<Uuid>(),
            "uuid",
            &format!("'{text}' is not of the form"),
        );
    }
    assert_eq!(other.to_string().parse::<Uuid>().unwrap(), other);
}

#[test]
fn a_file_that_goes_under_a_live_handle() {
    let scratch = Scratch::new("live");
    let (directory, ring) = one_ring(&scratch);
    ring.check_file().unwrap();
    let other = Ring::create(&directory, &spec(Kind::Local)).unwrap();
    fs::rename(other.path(), ring.path()).unwrap();
    assert_eq!(
        bad_file(ring.check_file(), ring.path()),
        "it is another file than the one that is mapped"
    );
    not_found(other.check_file(), other.path());
    fs::remove_file(ring.path()).unwrap();
    not_found(ring.check_file(), ring.path());
    // The memory remains for who has it.
    ring.sender().unwrap().try_send(b"hello").unwrap();
    assert_eq!(ring.receiver().unwrap().try_recv(&mut [0; 8]).unwrap(), 5);
}

#[test]
fn options_that_cannot_be() {
    let scratch = Scratch::new("options");
    let directory = Directory::create(&scratch.0).unwrap();
    let create = |change: &dyn Fn(&mut RingSpec)| {
        let mut spec = spec(Kind::Local);
        change(&mut spec);
        Ring::create(&directory, &spec)
    };
    for capacity in [0, MIN_CAPACITY - 1, MAX_CAPACITY + 1, u64::MAX] {
        invalid(
            create(&|spec| spec.capacity = capacity),
            "capacity",
            &format!("{capacity} bytes; give 4096 to 4294967296"),
        );
    }
    for position in [1, 4, MAX_POSITION, u64::MAX - 7] {
        let why =
            format!("position {position}, sequence 0; give a position that is a multiple of 8");
        invalid(
            create(&|spec| {
                spec.start = Cursor {
                    position,
                    sequence: 0,
                }
            }),
            "start",
            &why,
        );
    }
    assert_eq!(directory.rings().unwrap(), []);
    let ring = create(&|spec| spec.capacity = MIN_CAPACITY + 1).unwrap();
    assert!(ring.header().capacity > MIN_CAPACITY && ring.header().capacity.is_multiple_of(4096));
}

#[test]
fn addresses_outside_the_template() {
    let usual = Template::default();
    let short: Template = "4.4.4.4".parse().unwrap();
    assert_eq!(short.parse("15.0.0.1"), Ok(Address(0xf001)));
    assert!(short.contains(Address(0xffff)) && !short.contains(Address(0x1_0000)));
    assert!(usual.contains(Address(u32::MAX)));
    let says = |error: AddressError, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    for (text, index) in [
        ("16.0.0.1", "1"),
        ("0.0.0.16", "4"),
        ("0.99999999999999999999.0.0", "2"),
    ] {
        let error = short.parse(text).unwrap_err();
        assert!(
            matches!(error, AddressError::TooLarge { max: 15, .. }),
            "{error:?}"
        );
        says(
            error,
            &[
                text,
                &format!("number {index}"),
                "above 15",
                "template 4.4.4.4",
                "use a smaller number",
            ],
        );
    }
    let error = usual.parse("1.2.3").unwrap_err();
    assert!(matches!(error, AddressError::Segments { found: 3, .. }));
    says(error, &["'1.2.3'", "give four"]);
    let error = usual.parse("1.2.x.4").unwrap_err();
    assert!(matches!(error, AddressError::NotDecimal { .. }));
    says(error, &["'x' in '1.2.x.4'", "use the digits 0 to 9 only"]);
    for text in ["8.8.8.9", "0.8.8.8"] {
        let error = text.parse::<Template>().unwrap_err();
        assert!(matches!(error, AddressError::TemplateBits { .. }));
        says(error, &[text, "at most 32 bits", "8.8.8.8"]);
    }
}

// ---- Messages, roles, closing -------------------------------------------------------------------------------

#[test]
fn message_lengths() {
    let scratch = Scratch::new("lengths");
    let (_directory, ring) = one_ring(&scratch);
    let (mut sender, mut receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());
    let most = ring.header().capacity as usize / 2;
    assert_eq!(sender.max_len(), most);
    let long = vec![1; most + 1];
    for refused in [
        sender.try_send(&long),
        sender.try_send_vectored(&[IoSlice::new(&long[..most]), IoSlice::new(b"x")]),
        sender.reserve(most + 1).map(drop),
        sender.send_batch([&long]).map(drop),
        sender.wait(most + 1, TICK),
    ] {
        let error = refused.unwrap_err();
        assert!(
            matches!(error, TrySendError::TooLong { length, max } if (length, max) == (most + 1, most)),
            "{error:?}"
        );
        let text = error.to_string();
        let numbers = [most + 1, most].map(|n| format!("{n} bytes"));
        assert!(numbers.iter().all(|n| text.contains(n)), "{text}");
        assert!(text.contains("split it or make the ring larger"), "{text}");
    }
    assert!(matches!(
        sender.reserve(usize::MAX),
        Err(TrySendError::TooLong {
            length: usize::MAX,
            ..
        })
    ));
    assert_eq!(ring.status().tail, Cursor::default());

    let mut buffer = vec![0; most];
    sender.try_send(&long[..most]).unwrap();
    sender.try_send(&[]).unwrap();
    // One longer than the buffer stays, and the error says how long the buffer must be.
    let error = receiver.try_recv(&mut buffer[1..]).unwrap_err();
    assert!(
        matches!(error, TryRecvError::TooShort { needed } if needed == most),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("call again with a longer buffer")
    );
    assert_eq!(receiver.try_recv(&mut buffer).unwrap(), most);
    assert!(buffer == long[..most]);
    assert_eq!(receiver.try_recv(&mut []).unwrap(), 0);
    assert!(matches!(
        receiver.try_recv(&mut buffer),
        Err(TryRecvError::Empty)
    ));
}

#[test]
fn roles_that_are_taken() {
    let scratch = Scratch::new("busy");
    let (directory, ring) = one_ring(&scratch);
    let me = std::process::id();
    let (sender, receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());
    // By the same handle, by another one, and by another handle of the directory.
    let second = Ring::open(&directory, ring.uuid()).unwrap();
    let third = Ring::open(&Directory::open(directory.path()).unwrap(), ring.uuid()).unwrap();
    for ring in [&ring, &second, &third] {
        busy(ring.sender(), ring.path(), "producer", me);
        busy(ring.receiver(), ring.path(), "consumer", me);
    }
    // One role ends with its holder, and not the other.
    drop(sender);
    let sender = third.sender().unwrap();
    busy(ring.receiver(), ring.path(), "consumer", me);
    drop((sender, receiver));
    drop((second.sender().unwrap(), second.receiver().unwrap()));
}

#[test]
fn roles_of_another_process_end_with_it() {
    let scratch = Scratch::new("killed");
    let (_directory, ring) = one_ring(&scratch);
    for _ in 0..3 {
        let mut holder = Child::start("holder", &scratch);
        let pid = holder.number();
        busy(ring.sender(), ring.path(), "producer", pid);
        busy(ring.receiver(), ring.path(), "consumer", pid);
        holder.kill();
        drop((ring.sender().unwrap(), ring.receiver().unwrap()));
    }
}

#[test]
fn roles_that_a_kind_does_not_have() {
    let scratch = Scratch::new("kinds");
    let directory = Directory::create(&scratch.0).unwrap();
    let create = |lock_slot, kind| {
        let spec = RingSpec {
            lock_slot,
            ..spec(kind)
        };
        Ring::create(&directory, &spec).unwrap()
    };
    let local = create(0, Kind::Local);
    let source = create(1, Kind::Source);
    let mirror = create(2, Kind::Mirror);
    let wrong = |error: Error, ring: &Ring, side: &str| {
        let expected = (side, ring.kind().name());
        assert!(
            matches!(error, Error::WrongRole { role, kind, .. } if (role, kind) == expected),
            "{error:?}"
        );
        says(
            &error,
            ring.path(),
            &format!("a {} ring, whose {side} is the relay", ring.kind().name()),
        );
    };
    wrong(mirror.sender().unwrap_err(), &mirror, "producer");
    wrong(source.receiver().unwrap_err(), &source, "consumer");
    for ring in [&local, &source] {
        let error = ring.mirror_writer().unwrap_err();
        says(&error, ring.path(), "only a mirror is written by position");
        invalid(Err::<(), _>(error), "mirror writer", ring.kind().name());
    }
    drop((
        source.sender().unwrap(),
        mirror.receiver().unwrap(),
        mirror.mirror_writer().unwrap(),
    ));
}

#[test]
fn closed_rings() {
    let scratch = Scratch::new("closed");
    let (directory, ring) = one_ring(&scratch);
    let (mut sender, mut receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());
    for text in [b"one", b"two"] {
        sender.try_send(text).unwrap();
    }
    let end = ring.close(TICK).unwrap();
    assert_eq!(
        (end, ring.status().sealed_at),
        (sender.next().position, Some(end))
    );
    for refused in [
        sender.try_send(b"no"),
        sender.try_send_vectored(&[]),
        sender.reserve(1).map(drop),
        sender.send_batch([b"no"]).map(drop),
        sender.wait(1, TICK),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, TrySendError::Closed), "{error:?}");
        assert_eq!(
            error.to_string(),
            "the ring is closed and takes no more messages"
        );
    }
    drop(sender);
    for ring in [&ring, &Ring::open(&directory, ring.uuid()).unwrap()] {
        let error = ring.sender().unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        says(&error, ring.path(), "attach to its successor");
    }
    let mut buffer = [0; 8];
    assert_eq!(receiver.try_recv(&mut buffer).unwrap(), 3);
    drop(receiver); // what is left is there for the next one too
    let mut receiver = ring.receiver().unwrap();
    assert_eq!(receiver.try_recv(&mut buffer).unwrap(), 3);
    assert_eq!(&buffer[..3], b"two");
    for refused in [
        receiver.try_recv(&mut buffer).map(drop),
        receiver.peek().map(drop),
        receiver.wait(TICK),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, TryRecvError::Closed), "{error:?}");
        assert_eq!(error.to_string(), "the ring is closed and empty");
    }
    assert_eq!(ring.close(TICK).unwrap(), end); // closed is closed
}

#[test]
fn closing_waits_for_a_message_in_the_making() {
    let scratch = Scratch::new("closing");
    let directory = Directory::create(&scratch.0).unwrap();
    for sent in [false, true] {
        let ring = Ring::create(&directory, &spec(Kind::Local)).unwrap();
        let mut sender = ring.sender().unwrap();
        let mut reservation = sender.reserve(5).unwrap();
        reservation.write_at(0, b"hello");
        for _ in 0..2 {
            busy(
                ring.close(5 * TICK),
                ring.path(),
                "producer",
                std::process::id(),
            );
        }
        let status = ring.status();
        assert_eq!((status.closed, status.sealed_at), (true, None));
        if sent {
            reservation.commit();
        } else {
            drop(reservation);
        }
        assert!(matches!(sender.try_send(b"no"), Err(TrySendError::Closed)));
        let end = ring.close(TICK).unwrap();
        assert_eq!(end > 0, sent);
        let mut receiver = ring.receiver().unwrap();
        if sent {
            assert_eq!(receiver.try_recv(&mut [0; 8]).unwrap(), 5);
        }
        assert!(matches!(receiver.wait(TICK), Err(TryRecvError::Closed)));
    }
}

// ---- What needs a process of its own ------------------------------------------------------------------------

#[test]
fn a_full_file_system() {
    if as_root() {
        let scratch = Scratch::new("full");
        Child::start("full", &scratch).done();
    }
}

/// In a mount namespace of its own, with 1 MiB.
fn full(base: &Path) {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(
        Some("tmpfs"),
        base,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=1m"),
    )
    .unwrap();
    let directory = Directory::create(base.join("bus")).unwrap();
    let create = |capacity| {
        Ring::create(
            &directory,
            &RingSpec {
                capacity,
                ..spec(Kind::Local)
            },
        )
    };
    let no_room = |result: Result<Ring, Error>, path: &Path, least: u64| {
        let error = result.unwrap_err();
        let Error::NoSpace {
            path: named,
            needed,
        } = &error
        else {
            panic!("{error:?}")
        };
        assert!(named.starts_with(path) && *needed > least, "{error:?}");
        says(
            &error,
            path,
            "free space there, make the ring smaller, or set TBUS_SHM_DIR",
        );
        says(&error, path, &format!("{needed} bytes"));
    };
    no_room(create(4 << 20), directory.path(), 4 << 20);
    let left: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["locks"]);
    // Nor is the room gone that it had taken.
    let ring = create(512 << 10).unwrap();
    ring.prefault();

    // A ring whose memory somebody took away does not open where there is no room to give it back.
    let file = OpenOptions::new().write(true).open(ring.path()).unwrap();
    let full = file.metadata().unwrap().len();
    drop(ring.clone());
    file.set_len(at("check") + 8).unwrap();
    file.set_len(full).unwrap();
    create(640 << 10).unwrap();
    no_room(Ring::open(&directory, ring.uuid()), ring.path(), 512 << 10);
}

#[test]
fn another_user() {
    if as_root() {
        let scratch = Scratch::new("user");
        let (directory, ring) = one_ring(&scratch);
        let mode =
            |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode(&scratch.0, 0o755);
        // The directory is open to all, the ring is not.
        mode(directory.path(), 0o755);
        mode(&directory.path().join("locks"), 0o666);
        mode(ring.path(), 0o600);
        // As they are made.
        Directory::create(scratch.0.join("private")).unwrap();
        Child::start("another-user", &scratch).done();
    }
}

fn another_user_tries(base: &Path) {
    let uuid = Directory::open(base.join("bus")).unwrap().rings().unwrap()[0];
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(NOBODY)).unwrap();
    setuid(Uid::from_raw(NOBODY)).unwrap();
    let directory = Directory::open(base.join("bus")).unwrap();
    not_permitted(Ring::open(&directory, uuid), &directory.ring_path(uuid));
    not_permitted(
        Ring::create(&directory, &spec(Kind::Local)),
        directory.path(),
    );
    not_permitted(Directory::open(base.join("private")), &base.join("private"));
    not_permitted(
        Directory::create(base.join("bus/mine")),
        &base.join("bus/mine"),
    );
    not_permitted(
        Directory::open(base.join("private/bus")),
        &base.join("private/bus"),
    );
}

#[test]
fn a_forked_child_has_no_part_in_the_ring() {
    let scratch = Scratch::new("fork");
    one_ring(&scratch);
    Child::start("fork", &scratch).done();
}

fn fork_and_try(base: &Path) {
    let (directory, ring) = the_ring(base);
    let (mut sender, mut receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());
    sender.try_send(b"before").unwrap();
    let mut buffer = [0; 8];
    // SAFETY: the other threads of this process wait for this one and hold no lock that the child needs.
    match unsafe { libc::fork() } {
        -1 => panic!("no fork"),
        0 => {
            let send = |result| matches!(result, Err(TrySendError::Failed(error)) if matches!(*error, Error::Forked));
            let receive = |result| matches!(result, Err(TryRecvError::Failed(error)) if matches!(*error, Error::Forked));
            let other = |result| matches!(result, Err(Error::Forked));
            let mut wrong = Vec::new();
            let mut check = |what, right: bool| {
                if !right {
                    wrong.push(what);
                }
            };
            for _ in 0..2 {
                check("try_send", send(sender.try_send(b"child")));
                check("reserve", send(sender.reserve(5).map(drop)));
                check("send_batch", send(sender.send_batch([b"child"]).map(drop)));
                check("wait for room", send(sender.wait(5, TICK)));
                check(
                    "try_recv",
                    receive(receiver.try_recv(&mut buffer).map(drop)),
                );
                check("peek", receive(receiver.peek().map(drop)));
                check("recv_batch", receiver.recv_batch(2).next().is_none());
                check("wait", receive(receiver.wait(TICK)));
                check("receiver", other(ring.receiver().map(drop)));
                check("close", other(ring.close(TICK).map(drop)));
            }
            let text = Error::Forked.to_string();
            check(
                "text",
                text.contains("opened before a fork") && text.contains("attach anew in the child"),
            );
            // Anew, it is a process like any other.
            let anew =
                Ring::open(&Directory::open(directory.path()).unwrap(), ring.uuid()).unwrap();
            check(
                "anew",
                matches!(
                    anew.sender(),
                    Err(Error::Busy {
                        role: "producer",
                        ..
                    })
                ),
            );
            check("status", anew.status().tail.sequence == 1);
            drop((sender, receiver, ring, directory, anew));
            if !wrong.is_empty() {
                eprintln!("in the child: {wrong:?}");
            }
            // SAFETY: ends the process, without the parent's destructors.
            unsafe { libc::_exit(wrong.len() as i32) };
        }
        child => {
            let mut status = 0;
            // SAFETY: status is valid for writing.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    sender.try_send(b"after").unwrap();
    for text in ["before", "after"] {
        let length = receiver.try_recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], text.as_bytes());
    }
    assert!(matches!(receiver.wait(TICK), Err(TryRecvError::Empty)));
    busy(ring.sender(), ring.path(), "producer", std::process::id());
    assert_eq!(
        (ring.status().tail.sequence, ring.status().released.sequence),
        (2, 2)
    );
}

#[test]
fn roles_end_with_the_parent_of_a_forked_child() {
    let scratch = Scratch::new("orphan");
    let (_directory, ring) = one_ring(&scratch);
    let mut holder = Child::start("fork-holder", &scratch);
    let orphan = Pid::from_raw(holder.number() as i32);
    busy(ring.sender(), ring.path(), "producer", holder.0.id());
    busy(ring.receiver(), ring.path(), "consumer", holder.0.id());
    let standard_input = holder.kill();
    kill(orphan, None).expect("the forked child lives");
    drop((ring.sender().unwrap(), ring.receiver().unwrap()));
    kill(orphan, None).expect("the forked child still lives");
    drop(standard_input); // ends it
}

/// Takes both roles and leaves a forked child behind that ends with its standard input.
fn fork_holder(base: &Path) {
    let (_directory, ring) = the_ring(base);
    let _roles = (ring.sender().unwrap(), ring.receiver().unwrap());
    // SAFETY: the other threads of this process wait for this one and hold no lock that the child needs.
    match unsafe { libc::fork() } {
        -1 => panic!("no fork"),
        0 => {
            // Not said by the parent: the child has let go once it runs.
            eprintln!("{}", std::process::id());
            wait_for_end();
            // SAFETY: ends the process, without the parent's destructors.
            unsafe { libc::_exit(0) };
        }
        _ => wait_for_end(),
    }
}

/// Takes both roles until it is killed.
fn holder(base: &Path) {
    let (_directory, ring) = the_ring(base);
    let _roles = (ring.sender().unwrap(), ring.receiver().unwrap());
    eprintln!("{}", std::process::id());
    wait_for_end();
}

fn wait_for_end() {
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The ring that [`one_ring`] made.
fn the_ring(base: &Path) -> (Directory, Ring) {
    let directory = Directory::open(base.join("bus")).unwrap();
    let uuid = directory.rings().unwrap()[0];
    let ring = Ring::open(&directory, uuid).unwrap();
    (directory, ring)
}

/// False, and said so past the capturing of output, where the test cannot be run.
fn as_root() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        let name = std::thread::current()
            .name()
            .unwrap_or_default()
            .to_string();
        let text = format!("{name}: not run: needs root\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    root
}

/// This binary again, as [`job`].
struct Child(std::process::Child);

impl Child {
    fn start(job: &str, scratch: &Scratch) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "job", "--nocapture", "--test-threads=1"]);
        command
            .env("TBUS_BAD_INPUT_JOB", job)
            .env("TBUS_BAD_INPUT_DIR", &scratch.0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Child(command.spawn().unwrap())
    }

    /// The number that it says when it is ready.
    fn number(&mut self) -> u32 {
        let mut line = String::new();
        // Of a buffer of its own, since it says one line and then waits.
        let mut reader = BufReader::new(self.0.stderr.as_mut().unwrap());
        reader.read_line(&mut line).unwrap();
        let number = line.trim().parse();
        number.unwrap_or_else(|_| panic!("not a number: {line}"))
    }

    /// Waits until it has done its job.
    fn done(self) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.ends_with("done\n"),
            "{}: {text}",
            output.status
        );
    }

    /// Kills it; returns its standard input, which its own children have too.
    fn kill(mut self) -> std::process::ChildStdin {
        let standard_input = self.0.stdin.take().unwrap();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        standard_input
    }
}

/// What the child processes do; as a test of its own, nothing.
#[test]
fn job() {
    let (Ok(job), Some(base)) = (
        std::env::var("TBUS_BAD_INPUT_JOB"),
        std::env::var_os("TBUS_BAD_INPUT_DIR"),
    ) else {
        return;
    };
    nix::unistd::alarm::set(30); // ends a job that hangs
    let base = Path::new(&base);
    match job.as_str() {
        "full" => full(base),
        "another-user" => another_user_tries(base),
        "fork" => fork_and_try(base),
        "fork-holder" => fork_holder(base),
        "holder" => holder(base),
        other => panic!("no job {other}"),
    }
    eprintln!("done");
}
