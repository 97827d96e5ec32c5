//! `--see`: cursors, counters and messages of rings.

use crate::columns::{Align, Columns};
use crate::command::Result;
use serde_json::json;
use std::fmt::Write as _;
use tbus::{Address, Bus, Cursor, Error, Ring, Status};

/// A ring of a listing.
struct Seen {
    number: usize,
    from: String,
    to: String,
    size: u64,
    /// Or why it cannot be seen.
    status: std::result::Result<Status, Error>,
    messages: Vec<(Cursor, Vec<u8>)>,
}

/// The rings of one address, or of all.
pub(super) fn see(bus: &Bus, address: Option<Address>, dump: bool, json: bool) -> Result<String> {
    let snapshot = bus.gcim().snapshot()?;
    let template = bus.template();
    let show = |address| template.show(address).to_string();
    let mut seen = Vec::new();
    for (index, channel) in snapshot.channels.iter().enumerate() {
        if address.is_some_and(|address| !channel.addresses.contains(&address)) {
            continue;
        }
        let [a, b] = channel.addresses;
        for (ring, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
            let mut messages = Vec::new();
            // One ring that this user may not open, or that is damaged, hides no other.
            let status = Ring::open(bus.directory(), channel.rings[ring]).and_then(|file| {
                if dump {
                    file.browse(|cursor, bytes| {
                        messages.push((cursor, bytes.to_vec()));
                        true
                    })?;
                }
                Ok(file.status())
            });
            seen.push(Seen {
                number: index + 1,
                from: show(from),
                to: show(to),
                size: channel.sizes[ring],
                status,
                messages,
            });
        }
    }
    if let (Some(address), true) = (address, seen.is_empty()) {
        return Err(Error::NoChannel {
            address: show(address),
            peer: None,
        }
        .into());
    }
    Ok(if json {
        see_json(&seen, dump)
    } else {
        see_text(&seen, dump)
    })
}

fn see_json(seen: &[Seen], dump: bool) -> String {
    let rings: Vec<_> = seen
        .iter()
        .map(|ring| {
            let status = match &ring.status {
                Ok(status) => status,
                Err(error) => {
                    return json!({"number": ring.number, "from": ring.from, "to": ring.to, "Size": ring.size,
                        "error": error.to_string()});
                }
            };
            let mut value = json!({
                "number": ring.number, "from": ring.from, "to": ring.to,
                "MsgNum": status.unread_messages, "Bytes": status.unread_bytes,
                "H": status.released.position, "T": status.tail.position, "Size": ring.size,
                "HSeq": status.released.sequence, "Seq": status.tail.sequence,
                "closed": status.closed,
                "producer": {"pid": status.producer.pid, "attaches": status.producer.attaches,
                    "refused": status.producer.refused, "wakes": status.producer.wakes,
                    "sleeps": status.producer.sleeps, "overslept": status.producer.overslept},
                "consumer": {"pid": status.consumer.pid, "attaches": status.consumer.attaches,
                    "wakes": status.consumer.wakes, "sleeps": status.consumer.sleeps,
                    "overslept": status.consumer.overslept},
            });
            if dump {
                let messages = ring.messages.iter().map(|(cursor, bytes)| {
                    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    json!({"sequence": cursor.sequence, "position": cursor.position, "hex": hex})
                });
                value["messages"] = messages.collect();
            }
            value
        })
        .collect();
    format!("{:#}\n", json!(rings))
}

fn see_text(seen: &[Seen], dump: bool) -> String {
    let names = [
        "No", "from", "to", "MsgNum", "Bytes", "H", "T", "Size", "HSeq", "Seq",
    ];
    let header = names.map(|name| match name {
        "from" | "to" => (name, Align::Left),
        _ => (name, Align::Right),
    });
    let mut table = Columns::new(&header);
    for ring in seen {
        let mut row = vec![ring.number.to_string(), ring.from.clone(), ring.to.clone()];
        let Ok(status) = &ring.status else {
            row.extend(["-", "-", "-", "-"].map(String::from));
            row.extend([ring.size.to_string(), "-".into(), "-".into()]);
            table.row(row);
            continue;
        };
        let numbers = [
            status.unread_messages,
            status.unread_bytes,
            status.released.position % ring.size.max(1),
            status.tail.position % ring.size.max(1),
            ring.size,
            status.released.sequence,
            status.tail.sequence,
        ];
        row.extend(numbers.map(|n| n.to_string()));
        table.row(row);
    }
    let mut text = table.to_string();
    for ring in seen {
        if let Err(error) = &ring.status {
            _ = writeln!(text, "{} → {}: {error}", ring.from, ring.to);
        }
    }
    for ring in seen.iter().filter(|_| dump) {
        for (cursor, bytes) in &ring.messages {
            _ = writeln!(
                text,
                "\n{} → {}, message {}, {} bytes",
                ring.from,
                ring.to,
                cursor.sequence,
                bytes.len()
            );
            text.push_str(&hex_dump(bytes));
        }
    }
    text
}

/// Sixteen bytes a line, in hexadecimal and as text.
fn hex_dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate() {
        let hex: Vec<_> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain: String = chunk
            .iter()
            .map(|byte| {
                if (0x20..0x7f).contains(byte) {
                    *byte as char
                } else {
                    '.'
                }
            })
            .collect();
        _ = writeln!(text, "{:08x}  {:<47}  {plain}", line * 16, hex.join(" "));
    }
    text
}
