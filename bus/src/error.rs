//! Errors: what happened, to what, and the mend. `Full`, `Empty` and `Closed` are values of
//! [`TrySendError`] and [`TryRecvError`], not errors to log.

use crate::ring::Damage;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A result whose error is [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with a ring and its files.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    System {
        /// What was being done, as a verb: "map".
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file system has no room for the ring.
    NoSpace {
        /// The file that was to be made.
        path: PathBuf,
        /// Bytes that it needs.
        needed: u64,
    },
    /// There is no such ring or directory.
    NotFound {
        /// The file that is missing.
        path: PathBuf,
    },
    /// This user may not do that to the file.
    NotPermitted {
        /// What was being done, as a verb: "open".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The numeric user id that was refused.
        uid: u32,
        /// Whose the file is, or the directory that keeps this user from it, and its mode.
        owner: String,
    },
    /// The file is no ring of ours.
    NotARing {
        /// The file.
        path: PathBuf,
        /// The first eight bytes, which should be "TBUSRING".
        found: u64,
    },
    /// The ring has a layout that this version does not read.
    Layout {
        /// The file.
        path: PathBuf,
        /// Its major layout version.
        found: u32,
        /// The major layout version of this library.
        ours: u32,
    },
    /// The file is a ring, but its header or its size is wrong.
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the numbers.
        why: String,
    },
    /// Somebody else has this role.
    Busy {
        /// The ring's file.
        path: PathBuf,
        /// "producer", "consumer" or "manager".
        role: &'static str,
        /// The process that last said it had the role, 0 if unknown. Diagnostic only.
        pid: u32,
    },
    /// The ring's kind does not have this side for applications: a mirror's producer is the relay.
    WrongRole {
        /// The ring's file.
        path: PathBuf,
        /// What was asked for.
        role: &'static str,
        /// The ring's kind: "local", "source" or "mirror".
        kind: &'static str,
    },
    /// The ring is closed: it takes no more messages.
    Closed {
        /// The ring's file.
        path: PathBuf,
    },
    /// An option has a value that cannot be.
    Invalid {
        /// Which option.
        what: &'static str,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// Deleting a channel would lose messages.
    Unread {
        /// Its two addresses.
        channel: [String; 2],
        /// Messages that nobody has released.
        messages: u64,
    },
    /// No channel has this number.
    NoSuchChannel {
        /// The number asked for, from 1.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// No route has this number.
    NoSuchRoute {
        /// The number asked for, from 1.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The map has no channel between these addresses, or none at all for the first.
    NoChannel {
        /// The address bound.
        address: String,
        /// The other end asked for.
        peer: Option<String>,
    },
    /// Another process wrote into the ring what the rules forbid. The handle is of no further use.
    Damaged {
        /// The ring's file.
        path: PathBuf,
        /// Where and what.
        damage: Damage,
    },
    /// The handle was opened before a fork and is used in the child.
    Forked,
}

impl Error {
    pub(crate) fn system(doing: &'static str, path: &Path, source: io::Error) -> Error {
        // A symbolic link, a directory, or a socket or pipe without a reader, where a file was to be opened.
        if let Some(libc::ELOOP | libc::EISDIR | libc::ENXIO) = source.raw_os_error() {
            let why = format!("it is no regular file ({source})");
            return Error::BadFile {
                path: path.into(),
                why,
            };
        }
        match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path: path.into() },
            io::ErrorKind::PermissionDenied => Error::NotPermitted {
                doing,
                path: path.into(),
                uid: nix::unistd::geteuid().as_raw(),
                owner: owner(path),
            },
            _ => Error::System {
                doing,
                path: path.into(),
                source,
            },
        }
    }
}

/// Whose `path` is; if this user may not even learn that, then whose the directory is that keeps it secret.
fn owner(path: &Path) -> String {
    let mut seen = path
        .ancestors()
        .filter_map(|path| Some((path, std::fs::symlink_metadata(path).ok()?)));
    match seen.next() {
        Some((seen, info)) => format!(
            "{} belongs to user {}, group {}, and has mode {:04o}",
            if seen == path {
                "it".into()
            } else {
                seen.display().to_string()
            },
            info.uid(),
            info.gid(),
            info.mode() & 0o7777
        ),
        None => "the system refused it".into(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::System {
                doing,
                path,
                source,
            } => {
                write!(f, "cannot {doing} {}: {source}", path.display())?;
                match source.kind() {
                    // Most often no inodes: missing room for data has an error of its own.
                    io::ErrorKind::StorageFull => {
                        write!(f, "; its file system is full: free space or inodes there")
                    }
                    _ => Ok(()),
                }
            }
            Error::NoSpace { path, needed } => write!(
                f,
                "no room for {} ({needed} bytes): its file system is full; free space there, make the ring smaller, or set TBUS_SHM_DIR to a directory with room",
                path.display()
            ),
            Error::NotFound { path } => write!(
                f,
                "{} does not exist; check the name and TBUS_SHM_DIR, or create it first",
                path.display()
            ),
            Error::NotPermitted {
                doing,
                path,
                uid,
                owner,
            } => {
                let mend = match *doing {
                    "open" => {
                        "run as its owner or as a member of its group, or have one of these named as Owner or Group of the channel"
                    }
                    "change the owner of" => {
                        "only root gives files to others: run as root, or leave out Owner and Group"
                    }
                    _ => "run as the directory's owner, or as root",
                };
                write!(
                    f,
                    "user {uid} may not {doing} {}: {owner}; {mend}",
                    path.display()
                )
            }
            Error::NotARing { path, found } => write!(
                f,
                "{} is no tbus ring: it begins with {:?}, not with \"TBUSRING\"; is it another program's file?",
                path.display(),
                String::from_utf8_lossy(&found.to_le_bytes())
            ),
            Error::Layout { path, found, ours } => write!(
                f,
                "{} has layout version {found}, this library reads version {ours}; use the tbus version that made it, or drain and re-create the ring",
                path.display()
            ),
            Error::BadFile { path, why } => {
                // A map of routes has nothing that its configuration has not.
                let mend = match path.ends_with("grm") {
                    true => "delete it and write it anew with trelaymgr -W",
                    false => "delete and re-create the ring",
                };
                write!(
                    f,
                    "{} is not usable: {why}; it was changed or cut short by another program: {mend}",
                    path.display()
                )
            }
            Error::Busy { path, role, pid } => {
                let holder = match *pid == std::process::id() {
                    true => "this process itself",
                    false => "another process",
                };
                write!(
                    f,
                    "the {role} role of {} is held by {holder}",
                    path.display()
                )?;
                if *pid != 0 {
                    write!(f, " (by its own account pid {pid})")?;
                }
                write!(f, "; end that one first: a ring has one {role} at a time")
            }
            Error::WrongRole { path, role, kind } => write!(
                f,
                "{} is a {kind} ring, whose {role} is the relay, not an application; attach to its other end",
                path.display()
            ),
            Error::Closed { path } => {
                write!(
                    f,
                    "{} is closed and takes no more messages; attach to its successor",
                    path.display()
                )
            }
            Error::Invalid { what, why } => write!(f, "{what}: {why}"),
            Error::Unread {
                channel: [a, b],
                messages,
            } => write!(
                f,
                "the channel between {a} and {b} has {messages} unread message(s), which deleting it would lose; let its receiver read them, or use --force"
            ),
            Error::NoSuchChannel { number, count } => write!(
                f,
                "there is no channel {number}: the list has {count}, numbered from 1; list them to see their numbers"
            ),
            Error::NoSuchRoute { number, count } => write!(
                f,
                "there is no route {number}: the list has {count}, numbered from 1; list them to see their numbers"
            ),
            Error::NoChannel {
                address,
                peer: Some(peer),
            } => write!(
                f,
                "the map has no channel between {address} and {peer}; add it to the configuration and write that with tbusmgr -W"
            ),
            Error::NoChannel {
                address,
                peer: None,
            } => write!(
                f,
                "the map has no channel with the address {address}; add one to the configuration and write that with tbusmgr -W"
            ),
            Error::Damaged { path, damage } => write!(
                f,
                "{} is damaged: {damage}; another process wrote into it against the rules: close this handle, and re-create the ring if it happens on attach",
                path.display()
            ),
            Error::Forked => write!(
                f,
                "this handle was opened before a fork: the ring stays with the parent; attach anew in the child, to other rings or after the parent has let go"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why a message was not accepted; nothing was written.
#[derive(Debug)]
pub enum TrySendError {
    /// The ring has no room now.
    Full,
    /// The ring takes no more messages.
    Closed,
    /// The message is longer than half the ring.
    TooLong {
        /// Bytes that were to be sent.
        length: usize,
        /// The ring's largest message, bytes.
        max: usize,
    },
    /// The ring cannot be used.
    Failed(Box<Error>),
}

impl fmt::Display for TrySendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrySendError::Full => write!(f, "the ring is full; wait for room and try again"),
            TrySendError::Closed => write!(f, "the ring is closed and takes no more messages"),
            TrySendError::TooLong { length, max } => write!(
                f,
                "a message of {length} bytes is longer than the ring's largest, {max} bytes (half its capacity); split it or make the ring larger"
            ),
            TrySendError::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TrySendError {}

/// Why no message was received; nothing was released.
#[derive(Debug)]
pub enum TryRecvError {
    /// No message is there now.
    Empty,
    /// No message is there, and none will come.
    Closed,
    /// The buffer is too short; the message stays in the ring.
    TooShort {
        /// Bytes that the message has.
        needed: usize,
    },
    /// The payload does not have the CRC that its sender stored; the message stays in the ring.
    BadCrc {
        /// The message's sequence.
        sequence: u64,
    },
    /// The ring cannot be used.
    Failed(Box<Error>),
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TryRecvError::Empty => write!(f, "no message is there"),
            TryRecvError::Closed => write!(f, "the ring is closed and empty"),
            TryRecvError::TooShort { needed } => {
                write!(
                    f,
                    "the next message has {needed} bytes, more than the buffer; it stays in the ring: call again with a longer buffer"
                )
            }
            TryRecvError::BadCrc { sequence } => write!(
                f,
                "message {sequence} does not have the CRC that was sent with it: its payload was changed after sending; release it to go on without it"
            ),
            TryRecvError::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TryRecvError {}
