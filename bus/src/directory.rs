//! The directory that holds a bus: `locks` and one `ring-<uuid>` a ring.

use crate::error::{Error, Result};
use crate::locks::{Locks, RoleLock};
use crate::news::News;
use crate::ring_file::Uuid;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// A bus key: a 32-bit number, decimal or hexadecimal with 0x.
pub fn parse_key(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    plain
        .then(|| u32::from_str_radix(digits, radix).ok())
        .flatten()
}

/// A directory of rings. Cheap to clone; the clones share one lock file descriptor.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    pub(crate) locks: Arc<Locks>,
    /// Opened when the first mirrored ring needs it.
    news: Arc<Mutex<Weak<News>>>,
}

impl Directory {
    /// `${TBUS_SHM_DIR:-/dev/shm}/tbus.<key>`.
    pub fn path_for_key(key: u32) -> PathBuf {
        let base = std::env::var_os("TBUS_SHM_DIR")
            .filter(|d| !d.is_empty())
            .unwrap_or_else(|| "/dev/shm".into());
        PathBuf::from(base).join(format!("tbus.{key}"))
    }

    /// Makes the directory (mode 0750 less the umask) and its lock file, if they do not exist, and opens it.
    pub fn create(path: impl AsRef<Path>) -> Result<Directory> {
        let path = path.as_ref();
        match fs::DirBuilder::new().mode(0o750).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => refuse_strangers(path)?,
            Err(e) => return Err(Error::system("create", path, e)),
        }
        Locks::create(&path.join("locks"))?;
        Self::open(path)
    }

    /// Opens a directory that exists.
    pub fn open(path: impl AsRef<Path>) -> Result<Directory> {
        let path = path.as_ref();
        let info = fs::metadata(path).map_err(|e| Error::system("open", path, e))?;
        if !info.is_dir() {
            return Err(not_a_directory(path));
        }
        if info.mode() & 0o002 != 0 {
            let why = "everybody may write to it".to_string();
            return Err(Error::BadFile {
                path: path.into(),
                why,
            });
        }
        Ok(Directory {
            path: path.into(),
            locks: Locks::open(&path.join("locks"))?,
            news: Arc::default(),
        })
    }

    /// The news of this directory, if there is any; one mapping for all rings that are in use.
    pub(crate) fn news(&self) -> Option<Arc<News>> {
        let mut known = self.news.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(news) = known.upgrade() {
            return Some(news);
        }
        let news = News::open(self).ok()?;
        *known = Arc::downgrade(&news);
        Some(news)
    }

    /// Refuses who may not make and remove files here, before anything is changed.
    fn check_writable(&self) -> Result<()> {
        use nix::unistd::{AccessFlags, faccessat};
        let (at, flags) = (nix::fcntl::AT_FDCWD, nix::fcntl::AtFlags::AT_EACCESS);
        faccessat(at, &self.path, AccessFlags::W_OK | AccessFlags::X_OK, flags)
            .map_err(|e| Error::system("make or remove channels in", &self.path, e.into()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a ring of this directory is or would be.
    pub fn ring_path(&self, uuid: Uuid) -> PathBuf {
        self.path.join(format!("ring-{uuid}"))
    }

    /// The rings that are there, in no order. Files of other names are passed over.
    pub fn rings(&self) -> Result<Vec<Uuid>> {
        let fail = |e| Error::system("list", &self.path, e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if let Some(uuid) = name
                .to_str()
                .and_then(|n| n.strip_prefix("ring-"))
                .and_then(|u| u.parse().ok())
            {
                found.push(uuid);
            }
        }
        Ok(found)
    }

    /// Takes the lock of who changes maps; waits for another manager up to `patience`.
    pub(crate) fn take_manager(&self, patience: Duration) -> Result<RoleLock> {
        self.check_writable()?;
        let begun = Instant::now();
        loop {
            match self.locks.try_take_manager()? {
                Some(lock) => return Ok(lock),
                None if begun.elapsed() >= patience => {
                    return Err(Error::Busy {
                        path: self.path.clone(),
                        role: "manager",
                        pid: 0,
                    });
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Whoever makes a directory first could read and replace what others put there: only this user or root may have.
fn refuse_strangers(path: &Path) -> Result<()> {
    let info = fs::symlink_metadata(path).map_err(|e| Error::system("inspect", path, e))?;
    if !info.is_dir() {
        return Err(not_a_directory(path));
    }
    let (owner, me) = (info.uid(), nix::unistd::geteuid().as_raw());
    if owner != me && owner != 0 {
        let why = format!(
            "it belongs to user {owner}, and this is user {me}; run as that user, or have it removed"
        );
        return Err(Error::Invalid {
            what: "directory",
            why: format!("{}: {why}", path.display()),
        });
    }
    Ok(())
}

fn not_a_directory(path: &Path) -> Error {
    let why = "it is a file, not a directory".to_string();
    Error::BadFile {
        path: path.into(),
        why,
    }
}
