//! `docs/layout.md` is what others implement from. Here its tables are compared with the code, and its rules
//! decode a real file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tbus::layout::{self, CONSTANTS, FIELDS};
use tbus::{Address, Directory, Extensions, Kind, Ring, RingSpec};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/layout.md");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The rows of every table of `document` whose heading is `heading`, as cells.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut lines = document.lines();
    while lines.any(|line| line == heading) {
        let body = lines
            .by_ref()
            .take_while(|line| line.starts_with('|'))
            .skip(1);
        rows.extend(body.map(cells));
    }
    assert!(!rows.is_empty(), "no table with the heading {heading}");
    rows
}

fn cells(row: &str) -> Vec<String> {
    let inner = row.trim().trim_start_matches('|').trim_end_matches('|');
    inner
        .split('|')
        .map(|cell| cell.trim().to_string())
        .collect()
}

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|e| panic!("'{text}' in docs/layout.md is no number: {e}"))
}

/// What differs between the document and the code, in both directions, one sentence each.
fn differences<T: PartialEq + std::fmt::Debug>(
    documented: &[(String, T)],
    code: &[(String, T)],
) -> Vec<String> {
    let find = |all: &[(String, T)], name: &str| all.iter().position(|(n, _)| n == name);
    let mut found = Vec::new();
    for (index, (name, value)) in documented.iter().enumerate() {
        if find(documented, name) != Some(index) {
            found.push(format!("{name} is twice in the document"));
        }
        match find(code, name).map(|at| &code[at].1) {
            None => found.push(format!("{name} is in the document only")),
            Some(right) if right != value => found.push(format!(
                "{name}: the document has {value:x?}, the code {right:x?}"
            )),
            Some(_) => {}
        }
    }
    let missing = code
        .iter()
        .filter(|(name, _)| find(documented, name).is_none());
    found.extend(missing.map(|(name, _)| format!("{name} is in the code only")));
    found
}

const FIELD_TABLE: &str = "| offset | size | field | stored by | meaning |";

/// Name, (offset, size) of every documented field.
fn documented_fields() -> Vec<(String, (u64, u64))> {
    let rows = table(&document(), FIELD_TABLE);
    rows.iter()
        .map(|row| (row[2].clone(), (number(&row[0]), number(&row[1]))))
        .collect()
}

#[test]
fn control_area_is_as_documented() {
    let code: Vec<_> = FIELDS
        .iter()
        .map(|&(name, offset, size)| (name.to_string(), (offset as u64, size as u64)))
        .collect();
    let found = differences(&documented_fields(), &code);
    assert!(
        found.is_empty(),
        "(offset, size) in hexadecimal:\n{}",
        found.join("\n")
    );
}

#[test]
fn constants_are_as_documented() {
    let rows = table(&document(), "| NAME | value | meaning |");
    let documented: Vec<_> = rows
        .iter()
        .map(|row| (row[0].clone(), number(&row[1])))
        .collect();
    let code: Vec<_> = CONSTANTS
        .iter()
        .map(|&(name, value)| (name.to_string(), value))
        .collect();
    let found = differences(&documented, &code);
    assert!(found.is_empty(), "in hexadecimal:\n{}", found.join("\n"));
}

#[test]
fn fields_lie_apart_and_offsets_are_three_digits() {
    let mut end = 0;
    for row in table(&document(), FIELD_TABLE) {
        assert!(
            row[0].starts_with("0x") && row[0].len() == 5,
            "offset {} of {}",
            row[0],
            row[2]
        );
        assert!(
            number(&row[0]) >= end,
            "{} overlaps the field before it",
            row[2]
        );
        end = number(&row[0]) + number(&row[1]);
    }
    assert!(end <= constant("CONTROL_SIZE"));
}

fn constant(name: &str) -> u64 {
    let rows = table(&document(), "| NAME | value | meaning |");
    let row = rows.iter().find(|row| row[0] == name);
    number(&row.unwrap_or_else(|| panic!("no constant {name} in the document"))[1])
}

/// The formula of section 6, written down again.
fn documented_commit_word(position: u64, nonce: u64) -> u64 {
    let x = (position ^ nonce).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 32)
}

/// The algorithm of section 4, written down again.
fn documented_check(words: &[u64]) -> u64 {
    fn mix(mut w: u64) -> u64 {
        w ^= w >> 33;
        w = w.wrapping_mul(0xff51_afd7_ed55_8ccd);
        w ^= w >> 33;
        w = w.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        w ^ (w >> 33)
    }
    words.iter().fold(constant("MAGIC"), |sum, word| {
        mix(sum ^ word).wrapping_add(1)
    })
}

#[test]
fn commit_word_examples_are_right() {
    let rows = table(&document(), "| position | nonce | commit word |");
    for row in &rows {
        let [position, nonce, word] = [0, 1, 2].map(|column| number(&row[column]));
        let right = layout::commit_word(position, nonce);
        assert_eq!(
            word, right,
            "position {position:#x}: the code gives {right:#x}"
        );
        assert_eq!(
            word,
            documented_commit_word(position, nonce),
            "position {position:#x}"
        );
    }
    assert!(rows.len() >= 3);
}

#[test]
fn formulas_have_the_constants_that_this_test_uses() {
    let text = document();
    for factor in [
        "0x9e3779b97f4a7c15",
        "0xff51afd7ed558ccd",
        "0xc4ceb9fe1a85ec53",
    ] {
        assert_eq!(text.matches(factor).count(), 1, "{factor}");
    }
}

/// Removes the directory when the test ends, however it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("tbus-test-layout-{name}-{}", std::process::id());
        Scratch(Directory::path_for_key(0).with_file_name(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A ring file as a reader without this library has it: its bytes, and the page.
struct Image {
    bytes: Vec<u8>,
    fields: BTreeMap<String, (u64, u64)>,
}

impl Image {
    fn of(ring: &Ring) -> Image {
        let bytes = fs::read(ring.path()).unwrap();
        Image {
            bytes,
            fields: documented_fields().into_iter().collect(),
        }
    }

    fn bytes(&self, field: &str) -> &[u8] {
        let (offset, size) = self.fields[field];
        &self.bytes[offset as usize..][..size as usize]
    }

    fn number(&self, field: &str) -> u64 {
        let bytes = self.bytes(field);
        assert!(matches!(bytes.len(), 4 | 8), "{field} is no number");
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes[offset..offset + 8].try_into().unwrap())
    }

    /// Position and sequence, by section 5.
    fn cursor(&self, field: &str) -> (u64, u64) {
        let (offset, size) = self.fields[field];
        assert_eq!(size, 32, "{field} is no cursor");
        let at = offset as usize;
        let [zero, one] = [0, 16].map(|s| (self.word(at + s), self.word(at + s + 8)));
        match zero.1.cmp(&one.1) {
            std::cmp::Ordering::Greater => zero,
            std::cmp::Ordering::Less => one,
            std::cmp::Ordering::Equal => [zero, one][(zero.1 % 2) as usize],
        }
    }

    /// `length` bytes from a position on, by section 1: over the end of the data area to its beginning.
    fn data(&self, position: u64, length: u64) -> Vec<u8> {
        let (begin, capacity) = (self.number("data_offset"), self.number("capacity"));
        (position..position + length)
            .map(|p| self.bytes[(begin + p % capacity) as usize])
            .collect()
    }
}

struct Record {
    flags: u64,
    extensions: Vec<u64>,
    payload: Vec<u8>,
    size: u64,
}

/// The record at `position`, by section 6.
fn decode(image: &Image, position: u64) -> Record {
    let word = |at| u64::from_le_bytes(image.data(at, 8).try_into().unwrap());
    assert_eq!(
        word(position),
        documented_commit_word(position, image.number("nonce"))
    );
    let (length, flags) = (word(position + 8) & 0xffff_ffff, word(position + 8) >> 32);
    let count = u64::from(flags.count_ones());
    let first = position + constant("RECORD_HEADER");
    let extensions = (0..count).map(|e| word(first + 8 * e)).collect();
    let payload = image.data(first + 8 * count, length);
    let size =
        (constant("RECORD_HEADER") + 8 * count + length).next_multiple_of(constant("RECORD_ALIGN"));
    Record {
        flags,
        extensions,
        payload,
        size,
    }
}

/// Bit by bit, as section 6 describes it.
fn documented_crc32c(bytes: &[u8]) -> u64 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        let step = |crc: u32| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        };
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    });
    u64::from(!crc)
}

#[test]
fn header_of_a_real_file_is_where_the_document_says() {
    let scratch = Scratch::new("header");
    let directory = Directory::create(&scratch.0).unwrap();
    let spec = RingSpec {
        lock_slot: 7,
        ..RingSpec::local(10_000, Address(0x101), Address(0x301))
    };
    let ring = Ring::create(&directory, &spec).unwrap();
    let image = Image::of(&ring);

    assert_eq!(image.bytes("magic"), b"TBUSRING");
    assert_eq!(image.number("magic"), constant("MAGIC"));
    assert_eq!(image.number("major"), constant("LAYOUT_MAJOR"));
    assert_eq!(image.number("minor"), constant("LAYOUT_MINOR"));
    assert_eq!(image.number("role"), constant("ROLE_LOCAL"));
    assert_eq!(image.number("lock_slot"), 7);
    assert_eq!(image.number("nonce"), ring.header().nonce);
    assert_eq!(image.number("created"), ring.header().created);
    assert_eq!((image.number("from"), image.number("to")), (0x101, 0x301));

    let uuid = ring.uuid();
    assert_eq!(image.bytes("uuid"), uuid.0);
    let name = format!("ring-{uuid}");
    assert_eq!(ring.path().file_name().unwrap().to_str(), Some(&*name));
    let digits: String = image
        .bytes("uuid")
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(name.replace('-', ""), format!("ring{digits}"));

    let (data_offset, capacity) = (image.number("data_offset"), image.number("capacity"));
    assert!(
        capacity >= 10_000 && capacity.is_multiple_of(data_offset),
        "whole pages"
    );
    assert_eq!(image.bytes.len() as u64, data_offset + capacity);

    let words: Vec<_> = (0..10).map(|index| image.word(8 * index)).collect();
    assert_eq!(image.number("check"), documented_check(&words));
    let unused = &image.bytes[constant("CONTROL_SIZE") as usize..data_offset as usize];
    assert!(unused.iter().all(|byte| *byte == 0));
}

#[test]
fn a_record_is_decoded_by_the_document_alone() {
    let scratch = Scratch::new("record");
    let directory = Directory::create(&scratch.0).unwrap();
    let spec = RingSpec::local(4096, Address(1), Address(2));
    let ring = Ring::create(&directory, &spec).unwrap();
    let (mut sender, mut receiver) = (ring.sender().unwrap(), ring.receiver().unwrap());

    // The message that is decoded runs over the end of the data area.
    for _ in 0..2 {
        sender.try_send(&[7; 2000]).unwrap();
        receiver.try_recv(&mut [0; 2000]).unwrap();
    }
    sender.set_extensions(Extensions {
        timestamp: true,
        trace_id: true,
        crc: true,
    });
    sender.set_trace_id(0x1122_3344_5566_7788);
    let payload: Vec<u8> = (0..301).map(|n| (n * 7) as u8).collect();
    sender.try_send(&payload).unwrap();

    let image = Image::of(&ring);
    let ((position, sequence), tail) = (image.cursor("released"), image.cursor("producer.tail"));
    assert_eq!((position, sequence), (2 * 2016, 2));
    assert!(position < image.number("capacity") && tail.0 > image.number("capacity"));
    let record = decode(&image, position);
    let all = ["FLAG_TIMESTAMP", "FLAG_TRACE_ID", "FLAG_CRC32C"].map(constant);
    assert_eq!(record.flags, all.iter().sum::<u64>());
    assert_eq!(record.payload, payload);
    assert_eq!(tail, (position + record.size, sequence + 1));
    assert_eq!(image.number("producer.started"), tail.1);

    let message = receiver.peek().unwrap();
    assert_eq!(Some(record.extensions[0]), message.timestamp());
    assert_eq!(record.extensions[1], 0x1122_3344_5566_7788);
    assert_eq!(record.extensions[2], documented_crc32c(&payload));
    assert_eq!(documented_crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn closing_is_in_the_file_as_documented() {
    let scratch = Scratch::new("seal");
    let directory = Directory::create(&scratch.0).unwrap();
    let ring = Ring::create(&directory, &RingSpec::local(4096, Address(1), Address(2))).unwrap();
    ring.sender().unwrap().try_send(b"the only one").unwrap();
    assert_eq!(Image::of(&ring).number("seal.end"), 0);

    ring.close(std::time::Duration::ZERO).unwrap();
    let image = Image::of(&ring);
    let closed = constant("SIGNAL_CLOSED");
    assert_eq!(image.number("receiver_signal") & closed, closed);
    assert_eq!(
        image.number("seal.end"),
        image.cursor("producer.tail").0 | constant("SEALED")
    );
}

#[test]
fn roles_are_the_documented_bytes() {
    use std::os::fd::AsRawFd;
    let scratch = Scratch::new("locks");
    let directory = Directory::create(&scratch.0).unwrap();
    let rows = table(&document(), "| who | lock_slot even | lock_slot odd |");
    // What the document says of who takes part in a ring with this lock slot.
    let documented = |slot: u32, who: &str| {
        let row = rows.iter().find(|row| row[0].contains(who)).unwrap();
        let slot = i64::from(slot);
        match &*row[1 + slot as usize % 2] {
            "lock_slot" => slot,
            "2^32 + lock_slot" => (1 << 32) + slot,
            "2 × 2^32 + lock_slot / 2" => (2 << 32) + slot / 2,
            "3 × 2^32 + (lock_slot - 1) / 2" => (3 << 32) + (slot - 1) / 2,
            other => panic!("{other}"),
        }
    };
    let file = fs::OpenOptions::new()
        .write(true)
        .open(scratch.0.join("locks"))
        .unwrap();
    // Whether another description, which is ours, finds the byte locked.
    let taken = |byte: i64| {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: `lock` is valid for reading and writing, and `file` is open.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
        assert_eq!(result, 0);
        lock.l_type != libc::F_UNLCK as libc::c_short
    };
    let whos = ["producer of a local", "consumer of a local", "relay:"];
    let slots = [4, 5, u32::MAX - 1, u32::MAX];
    let all: BTreeSet<i64> = slots
        .iter()
        .flat_map(|slot| whos.map(|who| documented(*slot, who)))
        .collect();
    assert_eq!(all.len(), slots.len() * whos.len(), "each has its own");
    let bytes = || {
        let taken = all.iter().copied().filter(|byte| taken(*byte));
        taken.collect::<Vec<_>>()
    };

    for slot in slots {
        let ring = |kind| {
            let spec = RingSpec {
                kind,
                lock_slot: slot,
                ..RingSpec::local(4096, Address(1), Address(2))
            };
            Ring::create(&directory, &spec).unwrap()
        };
        let [producer, consumer, relay] = whos.map(|who| documented(slot, who));
        assert_eq!(bytes(), []);
        let [local, source, mirror] = [Kind::Local, Kind::Source, Kind::Mirror].map(ring);
        for ring in [&local, &source] {
            let sender = ring.sender().unwrap();
            assert_eq!(bytes(), [producer]);
            drop(sender);
        }
        for ring in [&local, &mirror] {
            let receiver = ring.receiver().unwrap();
            assert_eq!(bytes(), [consumer]);
            drop(receiver);
        }
        let reader = source.source_reader().unwrap();
        assert_eq!(bytes(), [relay]);
        drop(reader);
        let writer = mirror.mirror_writer().unwrap();
        assert_eq!(bytes(), [relay]);
        drop(writer);
        assert_eq!(bytes(), []);
    }
}
