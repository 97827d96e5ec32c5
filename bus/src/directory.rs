//! The directory that holds a bus: `locks` and one `ring-<uuid>` a ring.

use crate::error::{Error, Result};
use crate::locks::Locks;
use crate::ring_file::Uuid;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory of rings. Cheap to clone; the clones share one lock file descriptor.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    pub(crate) locks: Arc<Locks>,
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
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(Error::system("create", path, e))
            }
            _ => Self::open(path),
        }
    }

    /// Opens a directory that exists.
    pub fn open(path: impl AsRef<Path>) -> Result<Directory> {
        let path = path.as_ref();
        let info = fs::metadata(path).map_err(|e| Error::system("open", path, e))?;
        if !info.is_dir() {
            return Err(Error::BadFile {
                path: path.into(),
                why: "it is a file, not a directory".into(),
            });
        }
        Ok(Directory {
            path: path.into(),
            locks: Locks::open(&path.join("locks"))?,
        })
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
}
