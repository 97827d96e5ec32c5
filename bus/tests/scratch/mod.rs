//! Directories for tests.

use std::path::{Path, PathBuf};

/// A directory that is removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// A name in shared memory, if there is any, with this process's id.
    pub fn new(name: &str) -> Scratch {
        let shm = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        let base = if shm.is_dir() { shm } else { &temporary };
        Scratch(base.join(format!("tbus-{name}-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
