//! Crash at every instruction of a manager: while it applies configurations and deletes a channel, the directory that
//! a kill at this point would leave has one map or the next, whole, with rings that work; and the next manager
//! finishes the work and removes what was left.
//!
//! A failure prints the point; the run is the same every time.

use crate::directory::{MapFile, crash_at_every_instruction};
use std::path::Path;
use std::time::Duration;
use tbus::Bus;
use tbus::config::{ChannelsConfig, parse_channels};
use tbus::manage::Manager;

#[path = "stepping/directory.rs"]
mod directory;
mod stepping;

const MAP: MapFile = MapFile {
    name: "gcim",
    entry: 256,
    capacity: 65_536,
    used: 4,
};

fn config(others: &[u32]) -> ChannelsConfig {
    let channels: String = others
        .iter()
        .map(|n| {
            format!(
                "<Channels><Address>0.0.1.1</Address><Address>0.0.2.{n}</Address><SendSize>4096</SendSize>\
                 <RecvSize>4096</RecvSize></Channels>"
            )
        })
        .collect();
    let text = format!("<TbusGCIM><GCIMShmKey>1</GCIMShmKey>{channels}</TbusGCIM>");
    parse_channels(text.as_bytes(), false, u64::MAX).expect("a good configuration")
}

/// The other ends of all channels, in the order of the map.
fn ends(bus: &Bus) -> Result<Vec<u32>, String> {
    let snapshot = bus.gcim().snapshot().map_err(|e| e.to_string())?;
    Ok(snapshot
        .channels
        .iter()
        .map(|channel| channel.addresses[1].0 & 0xff)
        .collect())
}

/// What the manager makes of the directory, one after the other; before the first there is no map.
const STATES: [&[u32]; 5] = [&[], &[1, 2], &[2, 3, 4], &[2, 4], &[]];

/// The manager's work: states 0 to 2 by writing, 3 by deleting the second channel, 4 by writing.
fn work(path: &Path) {
    let manager = Manager::create_at(path, &config(STATES[0]), Duration::ZERO).expect("a manager");
    manager.apply(&config(STATES[1]), false).expect("state 1");
    manager.apply(&config(STATES[2]), false).expect("state 2");
    manager.delete(2, false).expect("state 3");
    manager.apply(&config(STATES[4]), false).expect("state 4");
}

/// What was left must be state `at` or the next one; returns which. Then the next manager makes a state of its own.
fn recover(copy: &Path, at: usize) -> Result<usize, String> {
    let text = |error: tbus::Error| error.to_string();
    let mut now = at;
    match Bus::attach_at(copy) {
        Err(tbus::Error::NotFound { .. }) if at == 0 => {}
        Err(error) => return Err(error.to_string()),
        Ok(bus) => {
            let found = ends(&bus)?;
            now = (at..(at + 2).min(STATES.len()))
                .find(|state| found == STATES[*state])
                .ok_or_else(|| format!("after state {at} the map has {found:?}"))?;
            for channel in bus.gcim().snapshot().map_err(text)?.channels {
                for [from, to] in
                    [[0, 1], [1, 0]].map(|ends| ends.map(|end: usize| channel.addresses[end]))
                {
                    let mut sender = bus.bind(from).and_then(|e| e.sender(to)).map_err(text)?;
                    let mut receiver = bus.bind(to).and_then(|e| e.receiver(from)).map_err(text)?;
                    sender.try_send(b"works").map_err(|e| e.to_string())?;
                    receiver.peek().map_err(|e| e.to_string())?.release();
                }
            }
        }
    }
    let manager = Manager::create_at(copy, &config(&[]), Duration::ZERO).map_err(text)?;
    manager.apply(&config(&[2, 9]), false).map_err(text)?;
    let bus = Bus::attach_at(copy).map_err(text)?;
    let rings = bus.directory().rings().map_err(text)?.len();
    let mut found = ends(&bus)?;
    found.sort();
    if (found.as_slice(), rings) != (&[2, 9], 4) {
        return Err(format!(
            "the next manager left channels to {found:?} and {rings} rings"
        ));
    }
    Ok(now)
}

fn main() {
    crash_at_every_instruction(
        "crash_at_every_instruction_of_a_manager",
        &MAP,
        STATES.len() - 1,
        work,
        recover,
    );
}
