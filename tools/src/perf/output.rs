//! Files that a measurement writes at its end, found unwritable before it begins.

use super::{Failure, Result, watch};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file that is open for writing. What it held stays until it is written.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: File,
    /// Made here and not yet written: removed if nothing comes of it.
    fresh: bool,
}

impl Output {
    /// Opens it, or says why it cannot be written.
    pub fn open(path: &Path) -> Result<Output> {
        let fresh = !path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| {
                format!(
                    "cannot write {}: {e}; nothing was measured. Name a file in a directory that you may write to",
                    path.display()
                )
            })?;
        if fresh {
            watch::remove_if_stopped(path);
        }
        Ok(Output {
            path: path.to_path_buf(),
            file,
            fresh,
        })
    }

    /// Writes all of it.
    pub fn write(mut self, text: &str) -> Result<()> {
        self.write_all(text.as_bytes())
            .map_err(|e| format!("cannot write {}: {e}", self.path.display()))?;
        self.fresh = false;
        watch::keep(&self.path);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        // A device or a pipe has no length, and needs none.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(bytes)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.fresh {
            let _ = std::fs::remove_file(&self.path);
            watch::keep(&self.path);
        }
    }
}

/// Where percentile texts go: one file, or files of given names in a directory.
#[derive(Debug)]
pub enum Texts {
    /// The one of the only size.
    One(Output),
    /// Each under its name.
    Directory(Vec<(String, Output)>),
}

impl Texts {
    /// `path` is a directory if it exists as one or ends with a slash; then `names` are the files in it. A single file
    /// holds one size only.
    pub fn open(path: &Path, sizes: usize, names: Vec<String>) -> Result<Texts> {
        let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if !slash && !path.is_dir() {
            if sizes > 1 {
                return Err(Failure::Usage(format!(
                    "--hgrm: {sizes} sizes need a directory, a file has one; write {}/ to have it made, or give one --size",
                    path.display()
                ))
                .into());
            }
            return Ok(Texts::One(Output::open(path)?));
        }
        std::fs::create_dir_all(path).map_err(|e| {
            format!(
                "cannot make the directory {}: {e}; nothing was measured",
                path.display()
            )
        })?;
        let open = |name: String| {
            let output = Output::open(&path.join(&name))?;
            Ok((name, output))
        };
        let files = names.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Texts::Directory(files))
    }
}
