//! `tbusmgr`: makes, lists, shows, empties and deletes channels.

pub mod cli;
mod list;
mod plan;
mod see;

use crate::columns::human;
use crate::command::{Failure, PATIENCE, Result, Target};
use std::path::Path;
use tbus::config::{self, ChannelsConfig, ConfigError};
use tbus::manage::{self, Manager, Plan, rounded};
use tbus::{Bus, Directory, Error, TrySendError};

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
        Target::File(file) => Some(read(file)?),
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
        return Ok(plan::show(&plan, config.template, json, true));
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
        return Ok(plan::show(&plan, config.template, json, false));
    }
    let bus = Bus::attach_at(&path)?;
    match action {
        Action::Write { .. } | Action::Plan => Err(Failure::Usage(
            "name the configuration file with -C FILE".into(),
        )),
        Action::List => list::list(&bus, json),
        Action::See { address, dump } => {
            let address = address
                .as_ref()
                .map(|text| bus.template().parse(text))
                .transpose()?;
            see::see(&bus, address, *dump, json)
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

/// Reads a file, and checks what only this host can say.
fn read(file: &Path) -> Result<ChannelsConfig> {
    let config = config::read_channels(file, largest())?;
    let problems = manage::unknown_owners(&config);
    if problems.is_empty() {
        return Ok(config);
    }
    Err(Failure::Config(ConfigError {
        file: file.into(),
        problems,
    }))
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

fn test(bus: &Bus, from: &str, to: &str, length: usize) -> Result<String> {
    let [from, to] = [bus.template().parse(from)?, bus.template().parse(to)?];
    let mut sender = bus.bind(from)?.sender(to)?;
    // Not made first: any number may have been given.
    let max = sender.max_len();
    if length > max {
        let error = TrySendError::TooLong { length, max };
        return Err(Failure::Usage(error.to_string()));
    }
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
        Err(error) => Err(Failure::Other(error.to_string())),
    }
}
