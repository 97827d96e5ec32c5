//! The list of channels. On a terminal it is made to fit, and shows how full the rings are; elsewhere every column is
//! there, whole.

use crate::columns::{Align, Cell, Color, Columns, human};
use crate::command::{Result, time};
use crate::terminal::Terminal;
use serde_json::json;
use std::fmt::Write as _;
use tbus::config::Retention;
use tbus::gcim::{ChannelEntry, Snapshot};
use tbus::{Bus, Error, Ring, Template};

/// Of more channels a terminal shows no fill bars: opening their rings would take longer than all the rest.
const BARS_AT_MOST: usize = 500;

/// The map.
pub(super) fn list(bus: &Bus, json: bool) -> Result<String> {
    let snapshot = bus.gcim().snapshot()?;
    if json {
        return Ok(list_json(bus, &snapshot));
    }
    let terminal = Terminal::of_output();
    let mut text = heading(bus, &snapshot, terminal.map_or(usize::MAX, |t| t.width));
    if !snapshot.channels.is_empty() {
        let table = match &terminal {
            Some(terminal) => fitting(bus, &snapshot, terminal),
            None => table(bus.template(), &snapshot, None, &Shape::FULL),
        };
        _ = write!(text, "{table}");
    }
    Ok(text)
}

/// What the bus is, in lines of at most `width` characters.
fn heading(bus: &Bus, snapshot: &Snapshot, width: usize) -> String {
    let gcim = bus.gcim();
    let path = bus.directory().path().display();
    let parts = [
        format!(
            "bus {} in {path}: {} channel(s)",
            gcim.key(),
            snapshot.channels.len()
        ),
        format!("template {}", bus.template()),
        format!("written {} time(s)", snapshot.version),
        format!("made {}", time(gcim.created())),
    ];
    let (mut text, mut used) = (String::new(), 0);
    for (index, part) in parts.into_iter().enumerate() {
        let length = part.chars().count() + 1; // the comma or the end
        match index {
            0 => {}
            _ if used + length < width => {
                text.push_str(", ");
                used += 1;
            }
            _ => {
                text.push_str(",\n  ");
                used = 2;
            }
        }
        text.push_str(&part);
        used += length;
    }
    text.push('\n');
    text
}

/// Which columns there are, and how wide.
struct Shape {
    retention: bool,
    /// Cells of a fill bar, 0 for none.
    bar: usize,
    /// Characters of the time of creation.
    created: usize,
    /// The description is cut to no fewer than this many cells; 0: there is none.
    description: usize,
}

impl Shape {
    const FULL: Shape = Shape {
        retention: true,
        bar: 8,
        created: 20,
        description: 12,
    };
}

/// How full the two rings of each channel are, 0 to 1, or a word why that is not known.
type Fills = Vec<[std::result::Result<f64, &'static str>; 2]>;

/// The table in the first of several shapes that fits.
fn fitting(bus: &Bus, snapshot: &Snapshot, terminal: &Terminal) -> Columns {
    let fills = (snapshot.channels.len() <= BARS_AT_MOST).then(|| fills(bus, snapshot));
    let shapes = [
        Shape::FULL,
        Shape {
            retention: snapshot.channels.iter().any(|c| c.retention != 0),
            ..Shape::FULL
        },
        Shape {
            retention: false,
            bar: 4,
            created: 16,
            ..Shape::FULL
        },
        Shape {
            retention: false,
            bar: 4,
            created: 10,
            description: 8,
        },
        Shape {
            retention: false,
            bar: 4,
            created: 10,
            description: 0,
        },
        Shape {
            retention: false,
            bar: 4,
            created: 0,
            description: 0,
        },
    ];
    let mut fitting = None;
    for shape in &shapes {
        let mut table = table(bus.template(), snapshot, fills.as_ref(), shape);
        table.set_color(terminal.color);
        let least = match shape.description {
            0 => usize::MAX, // whatever is last then is no text to cut
            least => least,
        };
        let fits = table.fit(terminal.width, least);
        fitting = Some(table);
        if fits {
            break;
        }
    }
    fitting.expect("there are shapes") // the narrowest, if none fits
}

fn fills(bus: &Bus, snapshot: &Snapshot) -> Fills {
    let fill = |channel: &ChannelEntry, index: usize| match Ring::open(
        bus.directory(),
        channel.rings[index],
    ) {
        Ok(ring) => Ok(ring.status().unread_bytes as f64 / channel.sizes[index].max(1) as f64),
        Err(Error::NotFound { .. }) => Err("gone"),
        Err(Error::NotPermitted { .. }) => Err("shut"),
        Err(_) => Err("bad"),
    };
    let channels = snapshot.channels.iter();
    channels
        .map(|channel| [0, 1].map(|index| fill(channel, index)))
        .collect()
}

/// ███░░░░░: a full bar is a full ring, an empty one an empty ring.
fn bar(fill: &std::result::Result<f64, &'static str>, cells: usize) -> Cell {
    let fill = match fill {
        Ok(fill) => fill.clamp(0.0, 1.0),
        Err(word) => return Cell::colored(*word, Color::Red),
    };
    let mut full = (fill * cells as f64).round() as usize;
    if fill > 0.0 {
        full = full.clamp(1, if fill < 0.99 { cells - 1 } else { cells });
    }
    let color = match fill {
        _ if fill >= 0.9 => Color::Red,
        _ if fill >= 0.5 => Color::Yellow,
        _ if fill > 0.0 => Color::Green,
        _ => Color::Dim,
    };
    let text = format!("{}{}", "█".repeat(full), "░".repeat(cells - full));
    Cell::colored(text, color)
}

fn table(template: Template, snapshot: &Snapshot, fills: Option<&Fills>, shape: &Shape) -> Columns {
    let mut header = vec![
        ("No", Align::Right),
        ("address", Align::Left),
        ("address", Align::Left),
        ("send", Align::Right),
        ("receive", Align::Right),
    ];
    let optional = [
        (fills.is_some(), "→"),
        (fills.is_some(), "←"),
        (shape.retention, "retention"),
        (shape.created > 0, "created"),
        (shape.description > 0, "description"),
    ];
    header.extend(
        optional
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, name)| (*name, Align::Left)),
    );
    let mut table = Columns::new(&header);
    for (index, channel) in snapshot.channels.iter().enumerate() {
        let [a, b] = channel
            .addresses
            .map(|address| template.show(address).to_string());
        let mut row: Vec<Cell> = vec![
            (index + 1).to_string().into(),
            a.into(),
            b.into(),
            human(channel.sizes[0]).into(),
            human(channel.sizes[1]).into(),
        ];
        if let Some(fills) = fills {
            row.extend(fills[index].iter().map(|fill| bar(fill, shape.bar)));
        }
        if shape.retention {
            row.push(Retention::from_number(channel.retention).name().into());
        }
        if shape.created > 0 {
            let text: String = time(channel.created).chars().take(shape.created).collect();
            row.push(text.into());
        }
        if shape.description > 0 {
            row.push(channel.description.clone().into());
        }
        table.row(row);
    }
    table
}

fn list_json(bus: &Bus, snapshot: &Snapshot) -> String {
    let channels: Vec<_> = snapshot
        .channels
        .iter()
        .enumerate()
        .map(|(i, c)| entry_json(i, c, bus.template()))
        .collect();
    let map = json!({
        "key": bus.gcim().key(),
        "template": bus.template().to_string(),
        "created": bus.gcim().created(),
        "version": snapshot.version,
        "channels": channels,
    });
    format!("{map:#}\n")
}

fn entry_json(index: usize, channel: &ChannelEntry, template: Template) -> serde_json::Value {
    json!({
        "number": index + 1,
        "addresses": channel.addresses.map(|address| template.show(address).to_string()),
        "sizes": channel.sizes,
        "created": channel.created,
        "priority": channel.priority,
        "retention": Retention::from_number(channel.retention).name(),
        "rings": channel.rings.map(|uuid| uuid.to_string()),
        "description": channel.description,
    })
}
