//! Crash at every instruction of a manager: while it applies configurations and deletes a channel, the directory that
//! a kill at this point would leave has one map or the next, whole, with rings that work; and the next manager
//! finishes the work and removes what was left.
//!
//! A failure prints the point; the run is the same every time.

use crate::stepping::{Scratch, only_test, step_through};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tbus::config::{ChannelsConfig, parse_channels};
use tbus::manage::Manager;
use tbus::{Bus, Directory};

mod stepping;

/// The map's file: words of header and version, then two areas of which the first entries are used here.
const VERSION_END: usize = 0x108;
const AREAS: [usize; 2] = [4096, 4096 + (8 + 65_536 * 32) * 8];
const USED: usize = (8 + 4 * 32) * 8;

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

/// Everything that a kill would leave, as far as it matters: the names in the directory and the used parts of the map.
fn image(path: &Path) -> Result<(Vec<String>, Vec<u8>), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(text)? {
        names.push(
            entry
                .map_err(text)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    let mut bytes = vec![0; VERSION_END + 2 * USED];
    if let Ok(map) = File::open(path.join("gcim")) {
        map.read_exact_at(&mut bytes[..VERSION_END], 0)
            .map_err(text)?;
        for (index, area) in AREAS.into_iter().enumerate() {
            map.read_exact_at(
                &mut bytes[VERSION_END + index * USED..][..USED],
                area as u64,
            )
            .map_err(text)?;
        }
    }
    Ok((names, bytes))
}

/// Copies such an image into `to`, which is empty: rings as they are, the map's used parts.
fn copy(from: &Path, to: &Path, names: &[String], map: &[u8]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    for name in names {
        if name != "gcim" {
            std::fs::copy(from.join(name), to.join(name)).map_err(text)?;
            continue;
        }
        let file = File::create(to.join(name)).map_err(text)?;
        file.set_len(
            File::open(from.join(name))
                .and_then(|f| f.metadata())
                .map_err(text)?
                .len(),
        )
        .map_err(text)?;
        file.write_all_at(&map[..VERSION_END], 0).map_err(text)?;
        for (index, area) in AREAS.into_iter().enumerate() {
            file.write_all_at(&map[VERSION_END + index * USED..][..USED], area as u64)
                .map_err(text)?;
        }
    }
    Ok(())
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
    only_test("crash_at_every_instruction_of_a_manager", || {
        let (live, copies) = (
            Scratch::new("crash-maps-live"),
            Scratch::new("crash-maps-copy"),
        );
        Directory::create(&live.0).map_err(|e| e.to_string())?;
        let begun = Instant::now();
        let (mut last, mut state, mut images) = (None, 0, 0);
        let points = step_through(
            || work(&live.0),
            || {
                let now = image(&live.0)?;
                // An unchanged directory recovers as it did one instruction before.
                if last.as_ref() == Some(&now) {
                    return Ok(());
                }
                let _ = std::fs::remove_dir_all(&copies.0);
                std::fs::create_dir(&copies.0).map_err(|e| e.to_string())?;
                copy(&live.0, &copies.0, &now.0, &now.1)?;
                state = recover(&copies.0, state)?;
                images += 1;
                last = Some(now);
                Ok(())
            },
        )?;
        if state != STATES.len() - 1 {
            return Err(format!("the manager ended in state {state}"));
        }
        Ok(format!(
            "{points} points, {images} different directories recovered, {:.0} s",
            begun.elapsed().as_secs_f64()
        ))
    });
}
