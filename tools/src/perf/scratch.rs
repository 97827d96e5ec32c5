//! A directory for the rings of one run, always removed.

use super::Result;
use std::path::{Path, PathBuf};
use tbus::Directory;

/// Free bytes that /dev/shm must have to be used.
const WANTED: u64 = 64 << 20;

/// Made with a name of its own, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    directory: Directory,
    /// Why it lies where it lies, for people.
    pub why: String,
}

impl Scratch {
    /// Under /dev/shm if 64 MB are free there, else in the temporary directory.
    pub fn new(name: &str) -> Result<Scratch> {
        let shm = Path::new("/dev/shm");
        let (base, why) = match free_bytes(shm) {
            Ok(free) if free >= WANTED => (shm.to_path_buf(), format!("{} MB free", free >> 20)),
            Ok(free) => (
                std::env::temp_dir(),
                format!("/dev/shm has only {} MB free", free >> 20),
            ),
            Err(error) => (
                std::env::temp_dir(),
                format!("/dev/shm is not usable: {error}"),
            ),
        };
        remove_orphans(&base);
        let at = |n: u32| base.join(format!("tbus-{name}-{}-{n}", std::process::id()));
        // A name that is free: another user's run of this pid may have been killed.
        let path = (0..1000)
            .map(at)
            .find(|p| !p.exists())
            .ok_or("no free name for a scratch directory")?;
        Ok(Scratch {
            directory: Directory::create(&path)?,
            why,
        })
    }

    /// The directory as one of rings.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Removes what runs left behind that were killed themselves: directories of our naming whose process is gone.
fn remove_orphans(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|n| {
                n.strip_prefix("tbus-demo-")
                    .or(n.strip_prefix("tbus-perf-"))
            })
            .and_then(|n| n.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
            && Path::new("/proc/self").exists()
        {
            // Another user's cannot be removed, and need not be.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn free_bytes(path: &Path) -> nix::Result<u64> {
    let fs = nix::sys::statvfs::statvfs(path)?;
    Ok(fs.blocks_available() * fs.fragment_size())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path = self.directory.path();
        if let Err(error) = std::fs::remove_dir_all(path) {
            eprintln!(
                "tbusperf: could not remove {}: {error}; remove it by hand",
                path.display()
            );
        }
    }
}
