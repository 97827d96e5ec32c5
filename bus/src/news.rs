//! News: how a relay learns, in time proportional to the rings that have some, which rings to look at.
//!
//! File `news`: one byte a ring, at the ring's lock slot. Who made news (a sender of a source ring after its tail, a
//! receiver of a mirror ring after its head) stores 1 there, unconditionally: "store if it is not set" without a
//! fence loses news. The relay exchanges the byte for 0 and then reads the ring. Rings whose slots are
//! equal modulo the number of bytes share one, which costs a look.
//!
//! A relay that is about to sleep raises the word `sleeping`, makes everybody's stores visible by membarrier
//! (see `wait.rs`) and looks once more. Who makes news looks at the word, which is almost always in its cache,
//! and rings the doorbell: the named pipe `doorbell`, which a relay can wait for together with its sockets. Every
//! sleep is bounded, since who made news may be killed before it rings. Model: `wake.pml` of the design.

use crate::access;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::files::{FreshFile, reserve_space};
use crate::shm::Words;
use crate::sync::{Ordering, Relaxed, Release, compiler_barrier, fence};
use crate::wait;
use nix::sys::stat::Mode;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// Bytes for rings: two for each of the channels that a map can hold.
const BYTES: usize = 2 * 65_536;
/// Index of the first of them; a page before it is the relay's.
const FIRST: usize = 4096;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Word index of `sleeping`, in the relay's page.
const SLEEPING: usize = 0;

/// The news of a directory, mapped.
#[derive(Debug)]
pub(crate) struct News {
    words: Words,
    doorbell: File,
    fence: bool,
}

impl News {
    fn paths(directory: &Directory) -> (PathBuf, PathBuf) {
        let of = |name| directory.path().join(name);
        (of("news"), of("doorbell"))
    }

    /// Makes both files, if they do not exist. The relay does so before it makes the first ring.
    fn create(directory: &Directory) -> Result<()> {
        let (path, doorbell) = Self::paths(directory);
        if !path.exists() {
            let fresh = FreshFile::new(directory.path(), &path, 0o660)?;
            reserve_space(&fresh.file, &path, 0, (FIRST + BYTES) as u64)?;
            ignore_existing(fresh.publish(&path))?;
        }
        let made = nix::unistd::mkfifo(&doorbell, Mode::from_bits_truncate(0o660));
        ignore_existing(made.map_err(|e| Error::system("create", &doorbell, e.into())))?;
        for file in [path, doorbell] {
            // Who may not write them is found by the slow look.
            let _ = access::share_like_locks(directory, &file);
        }
        Ok(())
    }

    /// Opens both.
    pub fn open(directory: &Directory) -> Result<Arc<News>> {
        let (path, doorbell_path) = Self::paths(directory);
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true) // a pipe opened for writing alone would fail while nobody reads it
                .write(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)
                .map_err(|e| Error::system("open", path, e))
        };
        let file = open(&path)?;
        let info = file
            .metadata()
            .map_err(|e| Error::system("inspect", &path, e))?;
        if !info.is_file() || info.len() < (FIRST + BYTES) as u64 {
            let why = format!(
                "it has {} bytes, the news has {}",
                info.len(),
                FIRST + BYTES
            );
            return Err(Error::BadFile { path, why });
        }
        let doorbell = open(&doorbell_path)?;
        use std::os::unix::fs::FileTypeExt;
        let info = doorbell
            .metadata()
            .map_err(|e| Error::system("inspect", &doorbell_path, e))?;
        if !info.file_type().is_fifo() {
            let why = "it is no named pipe; remove it, the relay makes it again".into();
            return Err(Error::BadFile {
                path: doorbell_path,
                why,
            });
        }
        Ok(Arc::new(News {
            words: Words::map(&file, &path, (FIRST + BYTES) / 8, true)?,
            doorbell,
            fence: wait::register(),
        }))
    }

    #[inline(always)]
    fn byte(&self, slot: u32) -> &AtomicU8 {
        self.words.byte(FIRST + slot as usize % BYTES)
    }

    /// Says that the ring with lock slot `slot` has news; its cursor was stored before.
    #[inline(always)]
    pub fn announce(&self, slot: u32) {
        self.byte(slot).store(1, Release); // partner: the swap in NewsReader::take
        compiler_barrier();
        if self.fence {
            fence(Ordering::SeqCst);
        }
        // Relaxed: a relay orders its raised word against our byte by membarrier, or we by the fence.
        if self.words.at(SLEEPING).load(Relaxed) != 0 {
            self.ring_doorbell();
        }
    }

    #[cold]
    fn ring_doorbell(&self) {
        // Only one of those who see it raised rings. Partner: Release in NewsReader::announce_sleep.
        if self.words.at(SLEEPING).swap(0, Ordering::AcqRel) != 0 {
            // A full pipe has a ring in it already; any other failure costs the rest of a bounded sleep.
            let _ = (&self.doorbell).write(&[1]);
        }
    }
}

fn ignore_existing(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::System { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            Ok(())
        }
        other => other,
    }
}

fn is_set(words: &[u64; LINE / 8]) -> bool {
    words.iter().fold(0, |any, word| any | word) != 0
}

/// The relay's end of a directory's news.
#[derive(Debug)]
pub struct NewsReader {
    news: Arc<News>,
}

impl NewsReader {
    /// Makes the files if they do not exist, and opens them.
    pub fn open(directory: &Directory) -> Result<NewsReader> {
        News::create(directory)?;
        let news = News::open(directory)?;
        Ok(NewsReader { news })
    }

    /// How many bytes can be news at most; slots are told modulo it.
    pub const SLOTS: u32 = BYTES as u32;

    /// The cache lines that hold the bytes of slots below `slots`.
    fn lines(slots: u32) -> std::ops::Range<usize> {
        FIRST / LINE..FIRST / LINE + (slots.min(Self::SLOTS) as usize).div_ceil(LINE)
    }

    /// Takes the news of lock slots below `slots`: calls `see` with those of the rings to look at, each modulo
    /// [`NewsReader::SLOTS`]. Looks at eight rings with one load, and tests once for 64.
    #[inline]
    pub fn take(&self, slots: u32, mut see: impl FnMut(u32)) {
        let words = &self.news.words;
        for line in Self::lines(slots) {
            let all = words.line(line); // Relaxed: the swap below does the ordering
            if !is_set(&all) {
                continue;
            }
            for (index, word) in all.iter().enumerate() {
                let mut set = *word;
                while set != 0 {
                    let byte = set.trailing_zeros() as usize / 8;
                    set &= !(0xff << (8 * byte));
                    let byte = LINE * line + 8 * index + byte;
                    // AcqRel: the cursor was stored before the byte (partner: Release in News::announce).
                    if words.byte(byte).swap(0, Ordering::AcqRel) != 0 {
                        see((byte - FIRST) as u32);
                    }
                }
            }
        }
    }

    /// True if there is news of a slot below `slots`.
    pub fn any(&self, slots: u32) -> bool {
        Self::lines(slots).any(|line| is_set(&self.news.words.line(line)))
    }

    /// Announces a sleep: from now on who makes news rings the doorbell. True if there is none yet of slots below
    /// `slots`, so that the caller may wait for the doorbell (at most 100 ms); else the announcement is taken back.
    pub fn announce_sleep(&self, slots: u32) -> bool {
        self.news.words.at(SLEEPING).store(1, Release); // partner: the swap in ring_doorbell
        // Without membarrier who makes news may be between its store and its load: then the sleep is bounded.
        let _ = wait::barrier();
        if self.any(slots) {
            self.awake();
            return false;
        }
        true
    }

    /// Takes the announcement back and the rings out of the doorbell.
    pub fn awake(&self) {
        self.news.words.at(SLEEPING).store(0, Relaxed); // a ring too many costs nothing
        let mut rings = [0; 64];
        while matches!((&self.news.doorbell).read(&mut rings), Ok(n) if n == rings.len()) {}
    }

    /// Becomes readable when somebody rings.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.news.doorbell.as_fd()
    }
}
