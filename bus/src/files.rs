//! Making files so that they are complete when they get their names.

use crate::error::{Error, Result};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Gives the file all its memory in [from, from + size), so that a full file system is an error now and not a SIGBUS later.
pub(crate) fn reserve_space(file: &File, path: &Path, from: u64, size: u64) -> Result<()> {
    loop {
        return match nix::fcntl::posix_fallocate(file, from as i64, size as i64) {
            Ok(()) => Ok(()),
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::ENOSPC | nix::Error::EFBIG) => Err(Error::NoSpace {
                path: path.into(),
                needed: size,
            }),
            Err(e) => Err(Error::system("allocate", path, e.into())),
        };
    }
}

/// A file without a name, so that a process killed while making it leaves nothing behind. Where the file
/// system has no such files, one with a passing name.
pub(crate) struct FreshFile {
    pub file: File,
    passing_name: Option<PathBuf>,
}

impl FreshFile {
    pub fn new(directory: &Path, path: &Path, mode: u32) -> Result<FreshFile> {
        let mode_bits = Mode::from_bits_truncate(mode);
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        // It gets its name through /proc, which a bare root may lack.
        if Path::new("/proc/self/fd").exists()
            && let Ok(fd) = nix::fcntl::open(directory, flags, mode_bits)
        {
            return Ok(FreshFile {
                file: fd.into(),
                passing_name: None,
            });
        }
        let passing = directory.join(format!(
            ".{}.new",
            path.file_name().unwrap_or_default().display()
        ));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&passing)
            .map_err(|e| Error::system("create", path, e))?;
        Ok(FreshFile {
            file,
            passing_name: Some(passing),
        })
    }

    /// Gives the file its name.
    pub fn publish(mut self, path: &Path) -> Result<()> {
        match &self.passing_name {
            Some(passing) => {
                std::fs::rename(passing, path).map_err(|e| Error::system("name", path, e))?;
                self.passing_name = None;
            }
            None => {
                let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let cwd = nix::fcntl::AT_FDCWD;
                nix::unistd::linkat(cwd, from.as_str(), cwd, path, AtFlags::AT_SYMLINK_FOLLOW)
                    .map_err(|e| Error::system("name", path, e.into()))?;
            }
        }
        Ok(())
    }
}

impl Drop for FreshFile {
    fn drop(&mut self) {
        if let Some(passing) = &self.passing_name {
            let _ = std::fs::remove_file(passing);
        }
    }
}
