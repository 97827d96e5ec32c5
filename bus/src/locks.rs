//! Roles: one producer and one consumer a ring, each a byte of the file `locks`.
//!
//! The kernel keeps the ranges of a file that are locked in a list and looks through all of it at each lock, but
//! neighbouring bytes of one holder are one range. So the bytes that one process is likely to take one after the
//! other lie side by side: those of applications by which end of their channels they are; those of relays, which serve
//! all rings of one direction before those of the other, by direction.
//!
//! The locks are open-file-description locks: the kernel releases them when the process dies, threads and
//! PID namespaces do not matter, and one descriptor serves all rings of a directory.

use crate::error::{Error, Result};
use crate::fork::{self, Held};
use crate::ring_file::Kind;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Bytes of an area of the lock file: one for each lock slot.
const AREA: i64 = 1 << 32;
/// The first of the relays' two areas; the two before them are the applications'.
const RELAYS: i64 = 2;
/// The byte of who changes the map: behind all areas.
const MANAGER: i64 = 1 << 40;

/// Who takes part in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Producer = 0,
    Consumer = 1,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Producer => "producer",
            Role::Consumer => "consumer",
        }
    }
}

/// The open lock file of a directory.
#[derive(Debug)]
pub(crate) struct Locks {
    /// Closed by the atfork handler in a child, so never by Drop there.
    file: ManuallyDrop<File>,
    path: PathBuf,
    generation: u32,
    /// One open file description never conflicts with itself, so what this one holds is noted here.
    mine: Mutex<HashSet<i64>>,
}

impl Locks {
    /// Makes the lock file if it does not exist.
    pub fn create(path: &Path) -> Result<()> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o660)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map(drop)
            .map_err(|e| Error::system("create", path, e))
    }

    /// Opens the lock file.
    pub fn open(path: &Path) -> Result<Arc<Locks>> {
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)?;
            let held = Held::Descriptor(file.as_raw_fd());
            Ok((file, held))
        };
        let file = fork::hold_new(open).map_err(|e| Error::system("open", path, e))?;
        Ok(Arc::new(Locks {
            file: ManuallyDrop::new(file),
            path: path.into(),
            generation: fork::generation(),
            mine: Mutex::default(),
        }))
    }

    /// Without its name the file excludes nobody who comes later.
    fn check_name(&self) -> Result<()> {
        let fail = |e| Error::system("inspect", &self.path, e);
        let (mine, named) = (
            self.file.metadata().map_err(fail)?,
            std::fs::symlink_metadata(&self.path).map_err(fail)?,
        );
        if (mine.dev(), mine.ino()) != (named.dev(), named.ino()) {
            let why = "it was removed and made anew while processes had it open".to_string();
            return Err(Error::BadFile {
                path: self.path.clone(),
                why,
            });
        }
        Ok(())
    }

    /// Takes a role of a ring of this kind, or `None` if somebody has it.
    pub fn try_take(
        self: &Arc<Locks>,
        slot: u32,
        role: Role,
        kind: Kind,
    ) -> Result<Option<RoleLock>> {
        let slot = i64::from(slot);
        // The rings of a channel have an even slot and the odd one after it, and lead opposite ways.
        self.try_take_byte(match (kind, role) {
            (Kind::Source, Role::Consumer) | (Kind::Mirror, Role::Producer) => {
                (RELAYS + slot % 2) * AREA + slot / 2
            }
            _ => (slot + role as i64) % 2 * AREA + slot,
        })
    }

    fn try_take_byte(self: &Arc<Locks>, byte: i64) -> Result<Option<RoleLock>> {
        if self.generation != fork::generation() {
            return Err(Error::Forked);
        }
        self.check_name()?;
        let mut mine = self.mine.lock().unwrap_or_else(|e| e.into_inner());
        if mine.contains(&byte) {
            return Ok(None);
        }
        match self.set(byte, libc::F_WRLCK) {
            Ok(()) => {
                mine.insert(byte);
                Ok(Some(RoleLock {
                    locks: self.clone(),
                    byte,
                }))
            }
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(None),
            Err(e) => Err(Error::system("lock", &self.path, e.into())),
        }
    }

    /// Takes the manager's lock, which the whole directory has one of.
    pub fn try_take_manager(self: &Arc<Locks>) -> Result<Option<RoleLock>> {
        self.try_take_byte(MANAGER)
    }

    fn set(&self, byte: i64, kind: i32) -> nix::Result<()> {
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&*self.file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).map(drop)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            fork::let_go(Held::Descriptor(self.file.as_raw_fd()));
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// A role that is held until this is dropped or the process dies.
#[derive(Debug)]
pub(crate) struct RoleLock {
    locks: Arc<Locks>,
    byte: i64,
}

impl Drop for RoleLock {
    fn drop(&mut self) {
        if self.locks.generation != fork::generation() {
            return; // the parent's lock
        }
        let mut mine = self.locks.mine.lock().unwrap_or_else(|e| e.into_inner());
        // It cannot fail for a lock that is held; if it did, the role would stay taken until the process ends.
        let _ = self.locks.set(self.byte, libc::F_UNLCK);
        mine.remove(&self.byte);
    }
}
