//! `tbusmgr`: makes, lists, shows, empties and deletes channels.

use crate::columns::{Align, Columns};
use crate::command::{Failure, PATIENCE, Result, Target, time};
use serde_json::json;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use tbus::config::{self, ChannelConfig, ChannelsConfig};
use tbus::gcim::{ChannelEntry, Gcim};
use tbus::manage::{self, Manager, Plan, rounded};
use tbus::{Address, Bus, Cursor, Directory, Error, Ring, Status, Template, TrySendError};

/// Cells of a fill bar.
const BAR: usize = 8;

/// What is to be done, from the command line.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make the map what the file says.
    Write {
        /// Lose unread messages of surplus channels.
        force: bool,
    },
    /// Show what a write would do.
    Plan,
    /// List the map.
    List,
    /// Show the rings of one address, or of all.
    See {
        /// `None`: all.
        address: Option<String>,
        /// The messages' bytes as well.
        dump: bool,
    },
    /// Send a test message.
    Test {
        /// Sending address.
        from: String,
        /// Receiving address.
        to: String,
        /// Bytes.
        length: usize,
    },
    /// Empty channel N.
    Clean(usize),
    /// Delete channel N.
    Delete {
        /// From 1, as listed.
        number: usize,
        /// Lose unread messages.
        force: bool,
    },
}

/// Does it; returns what is to be printed.
pub fn run(target: &Target<'_>, action: &Action, json: bool) -> Result<String> {
    let config = match target {
        Target::File(file) => Some(config::read_channels(file, largest())?),
        Target::Key(_) => None,
    };
    let key = match (target, &config) {
        (_, Some(config)) => config.key,
        (Target::Key(key), _) => *key,
        (Target::File(_), None) => unreachable!("a file was read or refused"),
    };
    if let (Action::Write { force }, Some(config)) = (action, &config) {
        enough_room(config)?;
        let manager = Manager::create(config, PATIENCE)?;
        let plan = manager.apply(config, *force)?;
        return Ok(show_plan(&plan, config.template, json, true));
    }
    let path = Directory::path_for_key(key);
    if let (Action::Plan, Some(config)) = (action, &config) {
        let plan = match Bus::attach_at(&path) {
            Ok(bus) => manage::plan(bus.directory(), &bus.gcim().snapshot()?, config)?,
            // Everything would be new.
            Err(Error::NotFound { .. }) => Plan {
                create: config.channels.clone(),
                ..Plan::default()
            },
            Err(error) => return Err(error.into()),
        };
        return Ok(show_plan(&plan, config.template, json, false));
    }
    let bus = Bus::attach_at(&path)?;
    match action {
        Action::Write { .. } | Action::Plan => Err(Failure::Usage(
            "name the configuration file with -C FILE".into(),
        )),
        Action::List => list(&bus, json),
        Action::See { address, dump } => {
            let address = address
                .as_ref()
                .map(|text| bus.template().parse(text))
                .transpose()?;
            see(&bus, address, *dump, json)
        }
        Action::Test { from, to, length } => test(&bus, from, to, *length),
        Action::Clean(number) => {
            let discarded = Manager::open(bus.directory(), PATIENCE)?.clean(*number)?;
            Ok(format!(
                "channel {number} is empty; {discarded} message(s) discarded\n"
            ))
        }
        Action::Delete { number, force } => {
            let channel = Manager::open(bus.directory(), PATIENCE)?.delete(*number, *force)?;
            let [a, b] = channel
                .addresses
                .map(|address| bus.template().show(address));
            Ok(format!("deleted channel {number}, {a} – {b}\n"))
        }
    }
}

fn base() -> std::path::PathBuf {
    Directory::path_for_key(0)
        .parent()
        .map_or_else(|| "/".into(), Path::to_path_buf)
}

/// All bytes of the file system that rings lie in; no limit if it cannot be asked.
fn largest() -> u64 {
    nix::sys::statvfs::statvfs(&base()).map_or(u64::MAX, |fs| fs.blocks() * fs.fragment_size())
}

/// Refuses a configuration that cannot fit at all before anything is made. Rings that exist already are counted
/// when they are missing only, which needs the map; the making itself fails cleanly in between.
fn enough_room(config: &ChannelsConfig) -> Result<()> {
    let needed: u64 = config
        .channels
        .iter()
        .map(|c| rounded(c.send_size) + rounded(c.recv_size))
        .sum();
    let has = largest();
    if needed > has {
        let path = base();
        let text = format!(
            "the channels need {} together, {} has {}; make them smaller, or set TBUS_SHM_DIR to a larger file system",
            human(needed),
            path.display(),
            human(has)
        );
        return Err(Failure::Other(text));
    }
    Ok(())
}

/// 20.5 MB, in powers of 1000.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// ▆▆▆▁▁▁▁▁ of `part` in `whole`.
fn bar(part: u64, whole: u64) -> String {
    let full = (part as f64 / whole.max(1) as f64 * BAR as f64)
        .ceil()
        .min(BAR as f64) as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

fn show_plan(plan: &Plan, template: Template, json: bool, done: bool) -> String {
    let pair =
        |addresses: [Address; 2]| addresses.map(|address| template.show(address).to_string());
    let size = |channel: &ChannelConfig| [channel.send_size, channel.recv_size];
    if json {
        let created: Vec<_> = plan
            .create
            .iter()
            .map(|c| json!({"addresses": pair(c.addresses), "sizes": size(c).map(rounded), "configured": size(c)}))
            .collect();
        let kept: Vec<_> = plan
            .keep
            .iter()
            .map(|c| json!({"addresses": pair(c.addresses), "sizes": c.sizes}))
            .collect();
        let deleted: Vec<_> = plan
            .delete
            .iter()
            .map(|(c, n)| json!({"addresses": pair(c.addresses), "unread": n}))
            .collect();
        let text = json!({"done": done, "create": created, "keep": kept, "delete": deleted});
        return format!("{text:#}\n");
    }
    let mut text = String::new();
    let verb = |past: &'static str, future: &'static str| if done { past } else { future };
    for channel in &plan.create {
        let [a, b] = pair(channel.addresses);
        let sizes = size(channel).map(|size| match rounded(size) {
            same if same == size => format!("{size}"),
            pages => format!("{pages} (rounded up to pages from {size})"),
        });
        _ = writeln!(
            text,
            "{} {a} – {b}  send {} bytes, receive {} bytes",
            verb("created", "create "),
            sizes[0],
            sizes[1]
        );
    }
    for (channel, unread) in &plan.delete {
        let [a, b] = pair(channel.addresses);
        let lost = match (unread, done) {
            (0, _) => String::new(),
            (n, true) => format!("  with {n} unread message(s)"),
            (n, false) => format!("  has {n} unread message(s): refused without --force"),
        };
        _ = writeln!(text, "{} {a} – {b}{lost}", verb("deleted", "delete "));
    }
    for (channel, sizes) in &plan.other_sizes {
        let [a, b] = pair(channel.addresses);
        _ = writeln!(
            text,
            "kept    {a} – {b} as it is, with {} and {} bytes: the file says {} and {}; delete it first to resize it",
            channel.sizes[0], channel.sizes[1], sizes[0], sizes[1]
        );
    }
    _ = writeln!(
        text,
        "{} {}, kept {}, {} {}",
        verb("created", "to create"),
        plan.create.len(),
        plan.keep.len(),
        verb("deleted", "to delete"),
        plan.delete.len()
    );
    text
}

fn list(bus: &Bus, json: bool) -> Result<String> {
    let snapshot = bus.gcim().snapshot()?;
    let template = bus.template();
    if json {
        let channels: Vec<_> = snapshot
            .channels
            .iter()
            .enumerate()
            .map(|(i, c)| entry_json(i, c, template))
            .collect();
        let map = json!({
            "key": bus.gcim().key(),
            "template": template.to_string(),
            "created": bus.gcim().created(),
            "version": snapshot.version,
            "channels": channels,
        });
        return Ok(format!("{map:#}\n"));
    }
    let gcim: &Gcim = bus.gcim();
    let mut text = format!(
        "bus {} in {}: {} channel(s), template {template}, written {} time(s), made {}\n",
        gcim.key(),
        bus.directory().path().display(),
        snapshot.channels.len(),
        snapshot.version,
        time(gcim.created())
    );
    // How full each ring is, for who looks at a screen and has few enough of them to look at.
    let bars = std::io::stdout().is_terminal() && snapshot.channels.len() <= 500;
    let mut header = vec![
        ("No", Align::Right),
        ("address", Align::Left),
        ("address", Align::Left),
        ("send", Align::Right),
        ("receive", Align::Right),
    ];
    if bars {
        header.extend([("→", Align::Left), ("←", Align::Left)]);
    }
    header.extend([("created", Align::Left), ("description", Align::Left)]);
    let mut table = Columns::new(&header);
    for (index, channel) in snapshot.channels.iter().enumerate() {
        let [a, b] = channel
            .addresses
            .map(|address| template.show(address).to_string());
        let mut row = vec![
            (index + 1).to_string(),
            a,
            b,
            human(channel.sizes[0]),
            human(channel.sizes[1]),
        ];
        if bars {
            for (uuid, size) in channel.rings.iter().zip(channel.sizes) {
                let used =
                    Ring::open(bus.directory(), *uuid).map(|ring| ring.status().unread_bytes);
                row.push(used.map_or("gone".into(), |used| bar(used, size)));
            }
        }
        row.extend([time(channel.created), channel.description.clone()]);
        table.row(row);
    }
    if !snapshot.channels.is_empty() {
        _ = write!(text, "{table}");
    }
    Ok(text)
}

fn entry_json(index: usize, channel: &ChannelEntry, template: Template) -> serde_json::Value {
    json!({
        "number": index + 1,
        "addresses": channel.addresses.map(|address| template.show(address).to_string()),
        "sizes": channel.sizes,
        "created": channel.created,
        "priority": channel.priority,
        "retention": if channel.retention == 1 { "consumed" } else { "delivered" },
        "rings": channel.rings.map(|uuid| uuid.to_string()),
        "description": channel.description,
    })
}

/// A ring of a listing.
struct Seen {
    number: usize,
    from: String,
    to: String,
    size: u64,
    status: Status,
    messages: Vec<(Cursor, Vec<u8>)>,
}

fn see(bus: &Bus, address: Option<Address>, dump: bool, json: bool) -> Result<String> {
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
            let file = Ring::open(bus.directory(), channel.rings[ring])?;
            let mut messages = Vec::new();
            if dump {
                file.browse(|cursor, bytes| {
                    messages.push((cursor, bytes.to_vec()));
                    true
                })?;
            }
            seen.push(Seen {
                number: index + 1,
                from: show(from),
                to: show(to),
                size: channel.sizes[ring],
                status: file.status(),
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
            let status = &ring.status;
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
    let header: Vec<_> = names
        .into_iter()
        .map(|n| {
            (
                n,
                if n == "from" || n == "to" {
                    Align::Left
                } else {
                    Align::Right
                },
            )
        })
        .collect();
    let mut table = Columns::new(&header);
    for ring in seen {
        let status = &ring.status;
        let mut row = vec![ring.number.to_string(), ring.from.clone(), ring.to.clone()];
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

fn test(bus: &Bus, from: &str, to: &str, length: usize) -> Result<String> {
    let [from, to] = [bus.template().parse(from)?, bus.template().parse(to)?];
    let mut sender = bus.bind(from)?.sender(to)?;
    let message: Vec<u8> = b"tbus test message "
        .iter()
        .copied()
        .cycle()
        .take(length)
        .collect();
    match sender.try_send(&message) {
        Ok(()) => {
            let [from, to] = [from, to].map(|address| bus.template().show(address));
            let sequence = sender.next().sequence - 1;
            Ok(format!(
                "sent a test message of {length} bytes from {from} to {to}, sequence {sequence}\n"
            ))
        }
        Err(TrySendError::Failed(error)) => Err(Failure::Bus(*error)),
        Err(error @ TrySendError::TooLong { .. }) => Err(Failure::Usage(error.to_string())),
        Err(error) => Err(Failure::Other(error.to_string())),
    }
}
