//! Crash at every instruction of a manager: what a kill would leave in its directory, and that the next one recovers it.

use crate::stepping::{Scratch, only_test, step_through};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;
use tbus::Directory;

/// The end of the words of header and version; then come two areas of which the first entries are used here.
const VERSION_END: usize = 0x108;
/// Where the first area begins, and the bytes before its entries.
const AREAS: usize = 0x1000;
const AREA_HEADER: usize = 8 * 8;

/// A map's file.
pub struct MapFile {
    /// Its name.
    pub name: &'static str,
    /// Bytes of an entry.
    pub entry: usize,
    /// Entries that it can hold.
    pub capacity: usize,
    /// Entries of an area that the test uses.
    pub used: usize,
}

impl MapFile {
    /// Offset and length of the parts that are used.
    fn parts(&self) -> [(usize, usize); 3] {
        let used = AREA_HEADER + self.used * self.entry;
        let second = AREAS + AREA_HEADER + self.capacity * self.entry;
        [(0, VERSION_END), (AREAS, used), (second, used)]
    }

    /// Everything that a kill would leave, as far as it matters: the names in the directory and the used parts of the
    /// map.
    fn image(&self, path: &Path) -> Result<(Vec<String>, Vec<Vec<u8>>), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(text)? {
            let name = entry.map_err(text)?.file_name();
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        let mut parts = Vec::new();
        if let Ok(map) = File::open(path.join(self.name)) {
            for (offset, length) in self.parts() {
                let mut bytes = vec![0; length];
                map.read_exact_at(&mut bytes, offset as u64).map_err(text)?;
                parts.push(bytes);
            }
        }
        Ok((names, parts))
    }

    /// Copies such an image into `to`, which is empty: other files as they are, the map's used parts.
    fn copy(
        &self,
        from: &Path,
        to: &Path,
        names: &[String],
        parts: &[Vec<u8>],
    ) -> std::io::Result<()> {
        for name in names {
            if name != self.name {
                std::fs::copy(from.join(name), to.join(name))?;
                continue;
            }
            let file = File::create(to.join(name))?;
            file.set_len(std::fs::metadata(from.join(name))?.len())?;
            for ((offset, _), bytes) in self.parts().into_iter().zip(parts) {
                file.write_all_at(bytes, offset as u64)?;
            }
        }
        Ok(())
    }
}

/// The only test of its executable. Steps through `work` on a directory. `recover` gets what a kill would leave at each
/// point, and the state that it found at the point before; it finds this or the next state and returns which. The last
/// one has the number `last`.
pub fn crash_at_every_instruction(
    name: &str,
    file: &MapFile,
    last: usize,
    work: impl FnOnce(&Path),
    mut recover: impl FnMut(&Path, usize) -> Result<usize, String>,
) {
    only_test(name, || {
        let (live, copies) = (
            Scratch::new(&format!("{name}-live")),
            Scratch::new(&format!("{name}-copy")),
        );
        Directory::create(&live.0).map_err(|e| e.to_string())?;
        let begun = Instant::now();
        let (mut before, mut state, mut images) = (None, 0, 0);
        let points = step_through(
            || work(&live.0),
            || {
                let now = file.image(&live.0)?;
                // An unchanged directory recovers as it did one instruction before.
                if before.as_ref() == Some(&now) {
                    return Ok(());
                }
                let _ = std::fs::remove_dir_all(&copies.0);
                std::fs::create_dir(&copies.0)
                    .and_then(|()| file.copy(&live.0, &copies.0, &now.0, &now.1))
                    .map_err(|e| e.to_string())?;
                state = recover(&copies.0, state)?;
                images += 1;
                before = Some(now);
                Ok(())
            },
        )?;
        if state != last {
            return Err(format!("the manager ended in state {state}"));
        }
        Ok(format!(
            "{points} points, {images} different directories recovered, {:.0} s",
            begun.elapsed().as_secs_f64()
        ))
    });
}
