//! `docs/maps.md` is what others read maps by. Here its tables do that with real files.

use scratch::Scratch;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tbus::Bus;
use tbus::config::{parse_channels, parse_routes};
use tbus::grm::{MAX_ROUTES, Transport};
use tbus::manage::Manager;
use tbus::manage_routes::RouteManager;

mod scratch;

/// The rows under a heading, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/maps.md");
    let document = std::fs::read_to_string(path).unwrap();
    let mut lines = document.lines();
    assert!(lines.any(|line| line == heading), "no table '{heading}'");
    lines
        .take_while(|line| line.starts_with('|'))
        .skip(1)
        .map(|row| {
            let cells = row.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_string()).collect()
        })
        .collect()
}

fn number(text: &str) -> usize {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|e| panic!("'{text}': {e}"))
}

/// Fields of a table, which lie side by side in `size` bytes.
fn fields(heading: &str, size: usize) -> BTreeMap<String, (usize, usize)> {
    let mut end = 0;
    let mut found = BTreeMap::new();
    for row in table(heading) {
        assert_eq!(number(&row[0]), end, "{}", row[2]);
        found.insert(row[2].clone(), (end, number(&row[1])));
        end += number(&row[1]);
    }
    assert_eq!(end, size, "{heading}");
    found
}

/// Part of a file, with the names of a table.
struct Part<'a> {
    bytes: &'a [u8],
    fields: BTreeMap<String, (usize, usize)>,
}

impl<'a> Part<'a> {
    fn bytes(&self, field: &str) -> &'a [u8] {
        let (offset, size) = self.fields[field];
        &self.bytes[offset..offset + size]
    }

    fn number(&self, field: &str) -> u64 {
        let bytes = self.bytes(field);
        assert!(matches!(bytes.len(), 4 | 8), "{field} is no number");
        let add = |number, byte: &u8| number << 8 | u64::from(*byte);
        bytes.iter().rev().fold(0, add)
    }

    fn text(&self, field: &str, length: &str) -> &'a str {
        std::str::from_utf8(&self.bytes(field)[..self.number(length) as usize]).unwrap()
    }
}

/// The file's own fields, and its area in force: the 64 bytes, and all entries.
fn file<'a>(name: &str, bytes: &'a [u8]) -> (Part<'a>, &'a [u8], Vec<&'a [u8]>) {
    let kinds = table("| file | magic | entries | bytes of an entry |");
    let kind = kinds.iter().find(|row| row[0] == name).unwrap();
    let (magic, entries, size) = (number(&kind[1]), number(&kind[2]), number(&kind[3]));
    let rows = table("| offset | size | field | meaning |");
    let plain = rows.iter().filter(|row| row[1] != "area");
    let fields = plain.map(|row| (row[2].clone(), (number(&row[0]), number(&row[1]))));
    let part = Part {
        bytes,
        fields: fields.collect(),
    };
    assert_eq!(part.number("magic"), magic as u64);
    assert_eq!(part.number("major"), 1);
    let area = 64 + entries * size;
    let first = rows.iter().find(|row| row[2] == "area 0").unwrap();
    let at = number(&first[0]) + area * (part.number("version") as usize % 2);
    let (header, rest) = bytes[at..at + area].split_at(64);
    (part, header, rest.chunks(size).collect())
}

/// By section 4 of layout.md.
fn check(part: &Part<'_>) -> u64 {
    let names = ["magic", "major", "template", "key", "created"];
    names.iter().fold(part.number("magic"), |sum, name| {
        let mut w = sum ^ part.number(name);
        w ^= w >> 33;
        w = w.wrapping_mul(0xff51_afd7_ed55_8ccd);
        w ^= w >> 33;
        w = w.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (w ^ w >> 33).wrapping_add(1)
    })
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().unwrap())
}

#[test]
fn a_map_of_channels_is_read_by_the_document_alone() {
    let scratch = Scratch::new("maps-doc-gcim");
    let text = "<TbusGCIM><AddrTemplet>6.8.8.10</AddrTemplet><GCIMShmKey>1000</GCIMShmKey><Channels>\
        <Priority>5</Priority><Address>0.0.1.1</Address><Address>0.0.3.1</Address><SendSize>8192</SendSize>\
        <RecvSize>65536</RecvSize><Desc>any text</Desc><Retention>consumed</Retention></Channels></TbusGCIM>";
    let config = parse_channels(text.as_bytes(), false, u64::MAX).unwrap();
    let manager = Manager::create_at(&scratch.0, &config, Duration::ZERO).unwrap();
    manager.apply(&config, false).unwrap();
    let bytes = std::fs::read(scratch.0.join("gcim")).unwrap();
    let (map, header, entries) = file("gcim", &bytes);
    assert_eq!((map.number("version"), map.number("key")), (1, 1000));
    assert_eq!(map.bytes("template"), [6, 8, 8, 10, 0, 0, 0, 0]);
    assert_eq!(map.number("check"), check(&map));
    let bus = Bus::attach_at(&scratch.0).unwrap();
    assert_eq!(map.number("created"), bus.gcim().created());
    let snapshot = bus.gcim().snapshot().unwrap();
    let counts = [0, 1, 2].map(|index| word(header, index));
    assert_eq!(counts, [1, snapshot.next_slot.into(), 0]);
    let heading = "| offset in the channel | size | field | meaning |";
    let channel = Part {
        bytes: entries[0],
        fields: fields(heading, entries[0].len()),
    };
    let entry = &snapshot.channels[0];
    let ends = ["first", "second"].map(|field| channel.number(field) as u32);
    assert_eq!(ends, entry.addresses.map(|address| address.0));
    assert_eq!(channel.number("created"), entry.created);
    assert_eq!(channel.number("slot"), u64::from(entry.slot));
    assert_eq!(
        (channel.number("priority"), channel.number("retention")),
        (5, 1)
    );
    for index in 0..2 {
        assert_eq!(
            channel.bytes(&format!("ring {index}")),
            entry.rings[index].0
        );
        assert_eq!(channel.number(&format!("size {index}")), entry.sizes[index]);
        assert_eq!(channel.bytes(&format!("previous {index}")), [0; 16]);
    }
    assert_eq!(channel.text("description", "length"), "any text");
}

#[test]
fn a_map_of_routes_is_read_by_the_document_alone() {
    let scratch = Scratch::new("maps-doc-grm");
    let text = "<RelayMnger><RelayShmKey>2688</RelayShmKey><Relays><Addr>0.0.3.1</Addr>\
        <MConn>tcp://10.1.44.61:1027</MConn><MConn>tcp://[fe80::1]:1028</MConn><Transports>ucx tcp</Transports>\
        <Desc>any text</Desc></Relays></RelayMnger>";
    let config = parse_routes(text.as_bytes(), false).unwrap();
    let manager = RouteManager::create_at(&scratch.0, &config, Duration::ZERO).unwrap();
    manager.apply(&config).unwrap();
    let bytes = std::fs::read(scratch.0.join("grm")).unwrap();
    let (map, header, entries) = file("grm", &bytes);
    assert_eq!((map.number("version"), map.number("key")), (1, 2688));
    assert_eq!(map.number("check"), check(&map));
    assert_eq!(entries.len(), MAX_ROUTES);
    assert_eq!([0, 1, 2].map(|index| word(header, index)), [1, 0, 0]);
    let heading = "| offset in the route | size | field | meaning |";
    let route = Part {
        bytes: entries[0],
        fields: fields(heading, entries[0].len()),
    };
    let entry = &manager.grm().snapshot().unwrap().routes[0];
    assert_eq!(route.number("address"), 0x301);
    assert_eq!(route.number("created"), entry.created);
    assert_eq!(entry.transports, [Transport::Ucx, Transport::Tcp]);
    assert_eq!(route.bytes("transports"), [2, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(route.number("endpoints"), 2);
    for (index, expected) in [("10.1.44.61", 1027), ("fe80::1", 1028)].iter().enumerate() {
        let bytes = route.bytes(&format!("endpoint {index}"));
        let heading = "| offset in the endpoint | size | field | meaning |";
        let endpoint = Part {
            bytes,
            fields: fields(heading, bytes.len()),
        };
        let found = (
            endpoint.text("host", "host length"),
            endpoint.number("port"),
        );
        assert_eq!(found, *expected);
    }
    assert_eq!(route.text("description", "length"), "any text");
}
