//! `docs/protocol.md` is what others write relays from. Here its tables, numbers and examples are compared with the code.

use std::collections::BTreeSet;
use std::path::Path;
use tbus::{Address, Cursor, Uuid};
use tbus_transport::pairing::{Pairing, SourceView, pair};
use tbus_transport::session::Session;
use tbus_transport::wire::{
    CHUNK_HEADER, Chunk, Control, Data, FRAME_HEADER, Frame, Goodbye, Hello, Open, Refusal, Resume,
    Token,
};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn document() -> String {
    read("../docs/protocol.md")
}

/// The text under a heading, up to the next one.
fn section(heading: &str) -> String {
    let document = document();
    let mut lines = document.lines();
    assert!(lines.any(|line| line == heading), "no section '{heading}'");
    let body = lines.take_while(|line| !line.starts_with('#'));
    body.flat_map(|line| [line, "\n"]).collect()
}

/// The rows of the only table with a heading, as cells.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let count = text.lines().filter(|line| *line == heading).count();
    assert_eq!(count, 1, "tables '{heading}'");
    text.lines()
        .skip_while(|line| *line != heading)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|row| {
            let cells = row.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_string()).collect()
        })
        .collect()
}

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|e| panic!("'{text}': {e}"))
}

// ---- fields ----

/// Name and bytes of each field, in the order in which they lie.
type Fields = Vec<(&'static str, Vec<u8>)>;

fn text(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

/// Every field of a frame after its header. Patterns without `..`, so that none can be forgotten.
fn body_fields(frame: &Frame) -> Fields {
    fn le<const N: usize>(bytes: [u8; N]) -> Vec<u8> {
        bytes.to_vec()
    }
    let magic = || ("magic", b"TBUSRLAY".to_vec());
    let cursor = |names: [&'static str; 2], cursor: &Cursor| {
        [
            (names[0], le(cursor.position.to_le_bytes())),
            (names[1], le(cursor.sequence.to_le_bytes())),
        ]
    };
    let head = ["head position", "head sequence"];
    let tail = ["tail position", "tail sequence"];
    match frame {
        Frame::Hello(Hello {
            protocol: (low, high),
            node,
            lease,
            capabilities,
            cluster,
            endpoint,
        }) => vec![
            magic(),
            ("protocol min", le(low.to_le_bytes())),
            ("protocol max", le(high.to_le_bytes())),
            ("node", le(node.to_le_bytes())),
            ("lease", le(lease.to_le_bytes())),
            ("capabilities", le(capabilities.to_le_bytes())),
            ("cluster", text(cluster)),
            ("endpoint", text(endpoint)),
        ],
        Frame::Offer {
            transport,
            port,
            token,
        } => vec![
            ("transport", vec![*transport]),
            ("zero", vec![0]),
            ("port", le(port.to_le_bytes())),
            ("token", le(token.0)),
        ],
        Frame::Attach(token) => vec![magic(), ("token", le(token.0))],
        Frame::Open(Open {
            slot,
            attempt,
            from,
            to,
            source,
            nonce,
            capacity,
            head: head_cursor,
            tail: tail_cursor,
        }) => {
            let mut fields = vec![
                ("slot", le(slot.to_le_bytes())),
                ("attempt", le(attempt.to_le_bytes())),
                ("from", le(from.0.to_le_bytes())),
                ("to", le(to.0.to_le_bytes())),
                ("source", le(source.0)),
                ("nonce", le(nonce.to_le_bytes())),
                ("capacity", le(capacity.to_le_bytes())),
            ];
            fields.extend(cursor(head, head_cursor));
            fields.extend(cursor(tail, tail_cursor));
            fields
        }
        Frame::Resume(Resume {
            slot,
            attempt,
            source,
            mirror,
            tail: tail_cursor,
            head: head_cursor,
            epoch,
            remote: (address, key),
        }) => {
            let mut fields = vec![
                ("slot", le(slot.to_le_bytes())),
                ("attempt", le(attempt.to_le_bytes())),
                ("source", le(source.0)),
                ("mirror", le(mirror.0)),
            ];
            fields.extend(cursor(tail, tail_cursor));
            fields.extend(cursor(head, head_cursor));
            fields.push(("epoch", le(epoch.to_le_bytes())));
            fields.push(("remote address", le(address.to_le_bytes())));
            fields.push(("remote key", le(key.to_le_bytes())));
            fields
        }
        Frame::Refuse {
            slot,
            attempt,
            why,
            text: words,
        } => vec![
            ("slot", le(slot.to_le_bytes())),
            ("attempt", le(attempt.to_le_bytes())),
            ("why", le((*why as u16).to_le_bytes())),
            ("text", text(words)),
        ],
        Frame::Reject {
            slot,
            epoch,
            position,
            text: words,
        } => vec![
            ("slot", le(slot.to_le_bytes())),
            ("epoch", le(epoch.to_le_bytes())),
            ("position", le(position.to_le_bytes())),
            ("text", text(words)),
        ],
        Frame::Close { slot, epoch } => vec![
            ("slot", le(slot.to_le_bytes())),
            ("epoch", le(epoch.to_le_bytes())),
        ],
        Frame::Gap { slot, from, to } => {
            let mut fields = vec![("slot", le(slot.to_le_bytes()))];
            fields.extend(cursor(["from position", "from sequence"], from));
            fields.extend(cursor(["to position", "to sequence"], to));
            fields
        }
        Frame::Heartbeat { number, echo } => vec![
            ("number", le(number.to_le_bytes())),
            ("echo", le(echo.to_le_bytes())),
        ],
        Frame::Bye { why, text: words } => vec![
            ("why", le((*why as u16).to_le_bytes())),
            ("text", text(words)),
        ],
        Frame::Decline { token, text: words } => {
            vec![("token", le(token.0)), ("text", text(words))]
        }
    }
}

/// Two frames of each type, in the order of their numbers: every field of the second differs from the first's.
fn two_of_each() -> Vec<[Frame; 2]> {
    /// Numbers whose neighbouring bytes differ, and that pass for positions and sequences.
    struct Numbers(u8);
    impl Numbers {
        fn of<const N: usize>(&mut self) -> [u8; N] {
            // Below 0x80, as a position's highest byte; begun at 0, multiples of 8, as its lowest.
            std::array::from_fn(|_| {
                self.0 = (self.0 + 8) % 0x78;
                self.0
            })
        }
        fn u16(&mut self) -> u16 {
            u16::from_le_bytes(self.of())
        }
        fn u32(&mut self) -> u32 {
            u32::from_le_bytes(self.of())
        }
        fn u64(&mut self) -> u64 {
            u64::from_le_bytes(self.of())
        }
        fn cursor(&mut self) -> Cursor {
            let (position, sequence) = (self.u64(), self.u64());
            Cursor { position, sequence }
        }
        fn uuid(&mut self) -> Uuid {
            Uuid(self.of())
        }
    }
    let make = |second: bool| {
        let mut n = Numbers(if second { 4 } else { 0 });
        // A text of the same length, so that what follows it stays where it is.
        let words = |text: &str| match second {
            true => text.to_uppercase(),
            false => text.to_string(),
        };
        // Positions are multiples of 8, so both have such; the second has others.
        let mut p = Numbers(if second { 0x40 } else { 0 });
        vec![
            Frame::Hello(Hello {
                protocol: (n.u16(), n.u16()),
                node: n.u32(),
                lease: n.u64(),
                capabilities: n.u64(),
                cluster: words("games"),
                endpoint: words("tcp://host:1027"),
            }),
            Frame::Offer {
                transport: if second { 2 } else { 1 },
                port: n.u16(),
                token: Token(n.of()),
            },
            Frame::Attach(Token(n.of())),
            Frame::Open(Open {
                slot: n.u32(),
                attempt: n.u64(),
                from: Address(n.u32()),
                to: Address(n.u32()),
                source: n.uuid(),
                nonce: n.u64(),
                capacity: n.u64(),
                head: p.cursor(),
                tail: p.cursor(),
            }),
            Frame::Resume(Resume {
                slot: n.u32(),
                attempt: n.u64(),
                source: n.uuid(),
                mirror: n.uuid(),
                tail: p.cursor(),
                head: p.cursor(),
                epoch: n.u64(),
                remote: (n.u64(), n.u32()),
            }),
            Frame::Refuse {
                slot: n.u32(),
                attempt: n.u64(),
                why: if second {
                    Refusal::Ring
                } else {
                    Refusal::Capacity
                },
                text: words("any"),
            },
            Frame::Reject {
                slot: n.u32(),
                epoch: n.u64(),
                position: p.u64(),
                text: words("any"),
            },
            Frame::Close {
                slot: n.u32(),
                epoch: n.u64(),
            },
            Frame::Gap {
                slot: n.u32(),
                from: p.cursor(),
                to: p.cursor(),
            },
            Frame::Heartbeat {
                number: n.u64(),
                echo: n.u64(),
            },
            Frame::Bye {
                why: if second { Goodbye::Link } else { Goodbye::Node },
                text: words("any"),
            },
            Frame::Decline {
                token: Token(n.of()),
                text: words("any"),
            },
        ]
    };
    let pairs: Vec<_> = make(false)
        .into_iter()
        .zip(make(true))
        .map(|(first, second)| [first, second])
        .collect();
    assert_eq!(pairs.len(), Frame::TYPES.len());
    pairs
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// What `bytes` are, if they are one whole frame.
fn decode(bytes: &[u8]) -> Option<Frame> {
    match Frame::decode(bytes) {
        Ok(Some((frame, length))) if length == bytes.len() => Some(frame),
        _ => None,
    }
}

fn frame_header(frame: &Frame) -> Fields {
    let bytes = encode(frame);
    vec![
        ("length", bytes[..4].to_vec()),
        ("type", vec![bytes[4]]),
        ("zero", vec![0; 3]),
    ]
}

const FIELDS: &str = "| offset | size | field | meaning |";

/// Name, offset and size of the fields in the rows of a table, for an encoding with these bytes: the length of a text, and
/// where what follows lies, depend on it.
fn documented(rows: &[Vec<String>], bytes: &[u8]) -> Vec<(String, usize, usize)> {
    let mut lengths: Vec<(String, usize)> = Vec::new();
    let mut found = Vec::new();
    for row in rows {
        let value = |text: &str| match text.split_once(" + ") {
            None => number(text) as usize,
            Some((constant, name)) => {
                let length = lengths.iter().find(|(other, _)| other == name);
                let (_, length) = length.unwrap_or_else(|| panic!("what is '{name}' in {row:?}?"));
                number(constant) as usize + length
            }
        };
        let offset = value(&row[0]);
        if let Some((one, name)) = row[1].split_once(" + ") {
            assert_eq!(one, "1", "{row:?}");
            lengths.push((name.to_string(), usize::from(bytes[offset])));
        }
        let size = match row[1].split_once(" + ") {
            None => number(&row[1]) as usize,
            Some(_) => 1 + usize::from(bytes[offset]),
        };
        found.push((row[2].clone(), offset, size));
    }
    found
}

/// That the fields of a table are these, lie where they do, and fill the bytes.
fn compare(name: &str, rows: &[(String, usize, usize)], fields: &Fields, bytes: &[u8]) {
    let names: Vec<_> = rows.iter().map(|(field, ..)| field.as_str()).collect();
    let right: Vec<_> = fields.iter().map(|(field, _)| *field).collect();
    assert_eq!(names, right, "fields of {name}");
    let mut end = 0;
    for ((field, offset, size), (_, value)) in rows.iter().zip(fields) {
        assert_eq!(
            (*offset, *size),
            (end, value.len()),
            "{name}: where {field} lies, (offset, size)"
        );
        end += size;
        assert_eq!(&bytes[*offset..end], value, "{name}: {field}");
    }
    assert_eq!(end, bytes.len(), "bytes of {name}");
}

#[test]
fn every_table_of_a_frame_has_exactly_its_fields() {
    let header = table(&section("## 2. Frames"), FIELDS);
    for [first, second] in two_of_each() {
        let name = first.name();
        let rows = [
            header.clone(),
            table(&section(&format!("### {name}")), FIELDS),
        ]
        .concat();
        let all = |frame: &Frame| [frame_header(frame), body_fields(frame)].concat();
        let bytes = encode(&first);
        let rows = documented(&rows, &bytes);
        compare(name, &rows, &all(&first), &bytes);

        // The second's bytes where the table says that a field is: that field changes, and no other.
        let others = encode(&second);
        assert_eq!(bytes.len(), others.len());
        for (at, (field, offset, size)) in rows.iter().enumerate() {
            let mut patched = bytes.clone();
            let range = *offset..offset + size;
            patched[range.clone()].copy_from_slice(&others[range]);
            if patched == bytes {
                let constant = ["length", "type", "zero", "magic"].contains(&field.as_str());
                assert!(constant, "{name}: {field} is the same in both examples");
                patched[*offset] ^= 0x20;
                assert_eq!(decode(&patched), None, "{name}: another {field}");
                continue;
            }
            let decoded = decode(&patched).unwrap_or_else(|| panic!("{name} with another {field}"));
            let mut expected = all(&first);
            expected[at].1 = all(&second)[at].1.clone();
            assert_eq!(all(&decoded), expected, "{name} with another {field}");
        }
    }
}

fn chunk_fields(chunk: &Chunk) -> Fields {
    let Chunk { data, control } = *chunk;
    let parts = u32::from(data.is_some())
        | u32::from(control.is_some()) << 1
        | u32::from(control.is_some_and(|c| c.want)) << 2;
    let Data {
        slot,
        epoch,
        position,
        length,
    } = data.unwrap_or(Data {
        slot: 0,
        epoch: 0,
        position: 0,
        length: 0,
    });
    let Control {
        slot: of,
        epoch: in_epoch,
        want: _,
        delivered,
        consumed,
    } = control.unwrap_or(Control {
        slot: 0,
        epoch: 0,
        want: false,
        delivered: 0,
        consumed: Cursor::default(),
    });
    vec![
        ("parts", parts.to_le_bytes().to_vec()),
        ("length", length.to_le_bytes().to_vec()),
        ("data epoch", epoch.to_le_bytes().to_vec()),
        ("data position", position.to_le_bytes().to_vec()),
        ("data slot", slot.to_le_bytes().to_vec()),
        ("control slot", of.to_le_bytes().to_vec()),
        ("control epoch", in_epoch.to_le_bytes().to_vec()),
        ("delivered", delivered.to_le_bytes().to_vec()),
        (
            "consumed position",
            consumed.position.to_le_bytes().to_vec(),
        ),
        (
            "consumed sequence",
            consumed.sequence.to_le_bytes().to_vec(),
        ),
    ]
}

fn chunk(salt: u64, want: bool) -> Chunk {
    let wide = |n: u64| 0x0808_1018_2028_3038 + (n + salt) * 0x0808_0808_0808_0808;
    Chunk {
        data: Some(Data {
            slot: 0x0102_0304 + salt as u32,
            epoch: wide(1),
            position: wide(2),
            length: 0x0203 + salt as u32,
        }),
        control: Some(Control {
            slot: 0x0506_0708 + salt as u32,
            epoch: wide(3),
            want,
            delivered: wide(4),
            consumed: Cursor {
                position: wide(5),
                sequence: wide(6),
            },
        }),
    }
}

#[test]
fn the_table_of_a_chunk_has_exactly_its_fields() {
    let text = section("## 5. Chunks");
    let (first, second) = (chunk(0, false), chunk(1, true));
    let (bytes, others) = (first.encode(), second.encode());
    let rows = documented(&table(&text, FIELDS), &bytes);
    compare("a chunk", &rows, &chunk_fields(&first), &bytes);
    for (at, (field, offset, size)) in rows.iter().enumerate() {
        let mut patched = bytes;
        let range = *offset..offset + size;
        patched[range.clone()].copy_from_slice(&others[range]);
        let mut expected = chunk_fields(&first);
        expected[at].1 = chunk_fields(&second)[at].1.clone();
        let decoded = Chunk::decode(&patched).unwrap_or_else(|e| panic!("{field}: {e}"));
        assert_eq!(
            chunk_fields(&decoded),
            expected,
            "a chunk with another {field}"
        );
        assert_ne!(
            decoded, first,
            "{field} is the same in both, or not looked at"
        );
    }

    let rows = table(&text, "| bit | part | meaning |");
    let parts: Vec<_> = rows
        .iter()
        .map(|row| (number(&row[0]), row[1].clone()))
        .collect();
    let of = |chunk: &Chunk| u64::from(chunk.encode()[0]);
    let (control, data) = (
        Chunk {
            data: None,
            ..first
        },
        Chunk {
            control: None,
            ..first
        },
    );
    let want = of(&second) & !of(&first);
    let right = [
        (of(&data), "data"),
        (of(&control), "control"),
        (want, "want"),
    ];
    assert_eq!(parts, right.map(|(bit, part)| (bit, part.to_string())));
    // All that the document does not allow, with the rest of a chunk as it may be.
    let all = right.iter().fold(0, |sum, (bit, _)| sum | bit);
    for parts in 0..256u64 {
        let length = if parts & of(&data) != 0 { 1 } else { 0 };
        let mut bytes = [0; CHUNK_HEADER];
        bytes[0] = parts as u8;
        bytes[4] = length;
        let allowed =
            parts != 0 && parts & !all == 0 && (parts & want == 0 || parts & of(&control) != 0);
        assert_eq!(Chunk::decode(&bytes).is_ok(), allowed, "parts {parts:#x}");
    }
}

// ---- examples ----

/// Offset, bytes, name and value of each line of each block of bytes.
type Example = Vec<(usize, Vec<u8>, String, String)>;

fn examples(text: &str) -> Vec<Example> {
    let mut found = Vec::new();
    for block in text.split("```text\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block that ends");
        if !block.starts_with("  0  ") {
            continue; // a picture
        }
        let lines = block.lines().map(|line| {
            let (offset, rest) = line.trim_start().split_once("  ").expect("an offset");
            let (bytes, rest) = rest.split_once("  ").expect("bytes");
            let bytes = bytes.split(' ').map(|byte| {
                u8::from_str_radix(byte, 16).unwrap_or_else(|e| panic!("'{byte}' in {line}: {e}"))
            });
            let (field, value) = rest.trim().split_once(" = ").expect("a field's name");
            (
                number(offset) as usize,
                bytes.collect(),
                field.to_string(),
                value.to_string(),
            )
        });
        found.push(lines.collect());
    }
    found
}

/// Whether the value in words is what the bytes say.
fn says(bytes: &[u8], value: &str) -> bool {
    if let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) {
        return bytes == inner.as_bytes() || bytes == text(inner);
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() == 16 {
        return value.replace('-', "") == hex;
    }
    let first = value.split(' ').next().unwrap_or_default();
    let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    number(first) == bytes.iter().rev().fold(0, add)
}

/// The bytes of an example, whose lines have the names of `fields` and values as they say.
fn bytes_of(example: &Example, name: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for (offset, bytes, field, value) in example {
        assert_eq!(*offset, all.len(), "{name}: offset of {field}");
        assert!(says(bytes, value), "{name}: {field} is not {value}");
        all.extend_from_slice(bytes);
    }
    all
}

fn compare_example(name: &str, example: &Example, fields: Fields) {
    let lines = example
        .iter()
        .map(|(_, bytes, field, _)| (field.as_str(), bytes.clone()));
    assert_eq!(lines.collect::<Vec<_>>(), fields, "example of {name}");
}

#[test]
fn every_example_of_a_frame_is_that_frame() {
    for (index, name) in Frame::TYPES.iter().enumerate() {
        let all = examples(&section(&format!("### {name}")));
        assert!(!all.is_empty(), "{name} has no example");
        for example in all {
            let bytes = bytes_of(&example, name);
            let frame = decode(&bytes).unwrap_or_else(|| {
                panic!("{name}: {:?}, its length included", Frame::decode(&bytes))
            });
            assert_eq!(frame.name(), *name);
            assert_eq!(usize::from(bytes[4]), index + 1);
            assert_eq!(encode(&frame), bytes, "{name} does not come back");
            compare_example(
                name,
                &example,
                [frame_header(&frame), body_fields(&frame)].concat(),
            );
        }
    }
}

#[test]
fn every_example_of_a_chunk_is_that_chunk() {
    let mut kinds = BTreeSet::new();
    for example in examples(&section("## 5. Chunks")) {
        let bytes = bytes_of(&example, "a chunk");
        let header: [u8; CHUNK_HEADER] = bytes.try_into().expect("a header and nothing more");
        let chunk = Chunk::decode(&header).unwrap();
        assert_eq!(chunk.encode(), header, "it does not come back");
        compare_example("a chunk", &example, chunk_fields(&chunk));
        kinds.insert(header[0]);
    }
    assert_eq!(kinds, BTreeSet::from([1, 2, 3, 6]), "parts with an example");
}

// ---- numbers ----

/// Number and name in the rows of a table.
fn numbers(text: &str, heading: &str) -> Vec<(u64, String)> {
    let rows = table(text, heading);
    rows.iter()
        .map(|row| (number(&row[0]), row[1].clone()))
        .collect()
}

#[test]
fn types_refusals_and_goodbyes_have_the_numbers_that_are_decoded() {
    let types = numbers(&section("## 2. Frames"), "| type | frame | from | says |");
    let right = Frame::TYPES.iter().zip(1..).map(|(name, n)| (n, *name));
    assert_eq!(
        types,
        right
            .map(|(n, name)| (n, name.to_string()))
            .collect::<Vec<_>>()
    );

    // What the decoder takes of all the numbers that there are.
    let decoded = |frame: Frame, at: usize| {
        let mut bytes = encode(&frame);
        let all = (0..=u16::MAX).filter_map(|number| {
            bytes[at..at + 2].copy_from_slice(&number.to_le_bytes());
            match decode(&bytes)? {
                Frame::Refuse { why, .. } => Some((u64::from(number), format!("{why:?}"))),
                Frame::Bye { why, .. } => Some((u64::from(number), format!("{why:?}"))),
                _ => None,
            }
        });
        all.collect::<Vec<_>>()
    };
    let refuse = Frame::Refuse {
        slot: 0,
        attempt: 0,
        why: Refusal::Ring,
        text: String::new(),
    };
    let heading = "| number | refusal | meaning |";
    assert_eq!(
        numbers(&section("### REFUSE"), heading),
        decoded(refuse, FRAME_HEADER + 12)
    );
    let bye = Frame::Bye {
        why: Goodbye::Link,
        text: String::new(),
    };
    let heading = "| number | goodbye | meaning |";
    assert_eq!(
        numbers(&section("### BYE"), heading),
        decoded(bye, FRAME_HEADER)
    );
}

/// The values of a constant's right side: one, or both ends of a range. Times in nanoseconds.
fn values(expression: &str) -> Vec<u64> {
    if let Some((first, last)) = expression.split_once("..") {
        return [values(first), values(last)].concat();
    }
    if let Some((left, right)) = expression.split_once(" << ") {
        return vec![values(left)[0] << values(right)[0]];
    }
    let inside = |before: &str| expression.strip_prefix(before)?.strip_suffix(')');
    for (before, nanos) in [
        ("Duration::from_secs(", 1_000_000_000),
        ("Duration::from_millis(", 1_000_000),
        ("Duration::from_micros(", 1000),
    ] {
        if let Some(count) = inside(before) {
            return vec![values(count)[0] * nanos];
        }
    }
    if let Some(letters) = inside("u64::from_le_bytes(*b\"") {
        let letters = letters.trim_matches('"').as_bytes();
        return vec![u64::from_le_bytes(
            letters.try_into().expect("eight letters"),
        )];
    }
    vec![number(&expression.replace('_', ""))]
}

/// Every constant of a source file, private ones too: a test from outside sees them no other way.
fn constants(file: &str) -> Vec<(String, Vec<u64>)> {
    let mut found = Vec::new();
    for line in read(&format!("src/{file}")).lines() {
        let Some((before, rest)) = line.split_once("const ") else {
            continue;
        };
        let at_top = before.is_empty() || before.starts_with("pub");
        let Some((name, rest)) = rest.split_once(": ").filter(|_| at_top) else {
            continue;
        };
        let (_, expression) = rest.split_once(" = ").expect("a value on the same line");
        found.push((name.to_string(), values(expression.trim_end_matches(';'))));
    }
    found
}

fn nanos(text: &str) -> u64 {
    let (count, unit) = text.split_once(' ').expect("a number and a unit");
    let unit = match unit {
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "µs" => 1000,
        _ => panic!("what time is '{text}'?"),
    };
    number(count) * unit
}

#[test]
fn constants_are_the_codes() {
    let document = document();
    let mut documented = Vec::new();
    for row in table(&document, "| NAME | value | file | meaning |") {
        documented.push((row[0].clone(), row[2].clone(), vec![number(&row[1])]));
    }
    for row in table(&document, "| NAME | time | file | meaning |") {
        let times = row[1].split(" to ").map(nanos).collect();
        documented.push((row[0].clone(), row[2].clone(), times));
    }
    for (name, file, value) in &documented {
        let all = constants(file);
        let found = all.iter().find(|(other, _)| other == name);
        let (_, right) = found.unwrap_or_else(|| panic!("{file} has no constant {name}"));
        assert_eq!(value, right, "{name} in {file}");
    }
    // What others must know is in these.
    for file in ["wire.rs", "session.rs", "relay/peer.rs"] {
        for (name, value) in constants(file) {
            let is_there = documented
                .iter()
                .any(|(other, of, _)| (other, of.as_str()) == (&name, file));
            assert!(
                is_there,
                "{name} = {value:?} of {file} is not in the document"
            );
        }
    }
}

#[test]
fn an_unanswered_peer_is_down_when_the_document_says() {
    let text = section("## 9. Time");
    let (_, rest) = text.split_once("answered for ").expect("the time");
    let limit = nanos(&rest[..rest.find(" ms").expect("milliseconds") + 3]);
    let survives = |until: u64| {
        let (mut session, mut frames) = (Session::new(0), Vec::new());
        session.begin(0);
        for number in 1.. {
            let now = (number * 100_000_000).min(until);
            // It speaks, but hears nothing.
            session
                .frame(now, Frame::Heartbeat { number, echo: 0 })
                .unwrap();
            if session.tick(now, &mut frames).is_err() {
                return false;
            }
            if now == until {
                break;
            }
        }
        true
    };
    assert!(survives(limit));
    assert!(!survives(limit + 1));
}

#[test]
fn examples_of_resuming_are_right() {
    let heading =
        "| released | tail | stored | stored head | mirror | mirror head | mirror tail | outcome |";
    let at = |text: &str| Cursor {
        position: number(text),
        sequence: number(text) / 16,
    };
    let uuid = |name: &str| Uuid([name.as_bytes()[0]; 16]);
    let rows = table(&section("## 6. Resume"), heading);
    for row in &rows {
        let source = SourceView {
            capacity: 4096,
            released: at(&row[0]),
            tail: at(&row[1]),
            stored: (row[2] != "none").then(|| (uuid(&row[2]), at(&row[3]))),
        };
        let mirror = Resume {
            slot: 0,
            attempt: 0,
            source: uuid("S"),
            mirror: uuid(&row[4]),
            tail: at(&row[6]),
            head: at(&row[5]),
            epoch: 0,
            remote: (0, 0),
        };
        let outcome = match pair(&source, &mirror) {
            Pairing::Refuse(_) => "refuse".to_string(),
            Pairing::Continue { store, gap } => {
                let mut text = "continue".to_string();
                if store {
                    text += ", store";
                }
                if let Some(gap) = gap {
                    text += &format!(", gap {} to {}", gap.from.position, gap.to.position);
                }
                text
            }
        };
        assert_eq!(row[7], outcome, "{row:?}");
    }
    let outcomes: BTreeSet<_> = rows
        .iter()
        .map(|row| row[7].split(" 9").next().unwrap())
        .collect();
    assert_eq!(outcomes.len(), 4, "every outcome has an example");
}
