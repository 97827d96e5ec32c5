//! The machine's limits, measured with nothing but two cores and shared memory: no message channel between two
//! processes can be faster.

use super::Result;
use super::clock::ticks;
use memmap2::MmapRaw;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::*};

/// Bytes of the slots that the copy limit rotates through.
pub const COPY_AREA: usize = 1 << 20;
/// Where they begin: after the words.
const AREA_AT: usize = 4096;

/// Two words and a data area that two processes share.
#[derive(Debug)]
pub struct Shared {
    map: MmapRaw,
}

impl Shared {
    /// Maps the file, making it if need be.
    pub fn open(path: &Path) -> Result<Shared> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.set_len((AREA_AT + COPY_AREA) as u64)?;
        Ok(Shared {
            map: MmapRaw::map_raw(&file)?,
        })
    }

    /// Word `index`; each on lines of its own.
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < 8);
        // SAFETY: aligned, inside the mapping, accessed as an atomic only.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(index * 256).cast()) }
    }

    /// Puts all words to 0; before the two sides begin.
    pub fn reset(&self) {
        for index in 0..8 {
            self.word(index).store(0, SeqCst);
        }
    }

    /// Waits until both processes are here.
    pub fn meet(&self, side: usize) {
        self.word(4 + side).fetch_add(1, SeqCst);
        while self.word(4 + (side ^ 1)).load(SeqCst) == 0 {
            std::thread::yield_now();
        }
    }

    /// Cache-line ping-pong, the caller's side (0 begins): the ticks of each of `count` blocks of `block` round
    /// trips.
    pub fn ping_pong(&self, side: usize, count: u64, block: u64) -> Vec<u64> {
        let mut times = Vec::with_capacity(if side == 0 { count as usize } else { 0 });
        let (mine, theirs) = (self.word(side), self.word(side ^ 1));
        let mut round = 0;
        for _ in 0..count {
            let begun = ticks();
            for _ in 0..block {
                round += 1;
                if side == 0 {
                    mine.store(round, Release);
                    while theirs.load(Acquire) != round {}
                } else {
                    while theirs.load(Acquire) != round {}
                    mine.store(round, Release);
                }
            }
            if side == 0 {
                times.push(ticks() - begun);
            }
        }
        times
    }

    /// The copy limit: side 0 copies `size` bytes into rotating slots, side 1 touches each line of them.
    pub fn copy(&self, side: usize, count: u64, size: usize) -> u64 {
        let slots = (COPY_AREA / size) as u64;
        let (produced, consumed) = (self.word(0), self.word(1));
        let source = vec![0x5au8; size];
        let slot = |n: u64| {
            // SAFETY: the area has `slots` slots of `size` bytes.
            unsafe {
                self.map
                    .as_mut_ptr()
                    .add(AREA_AT + (n % slots) as usize * size)
            }
        };
        let mut sum = 0u64;
        let mut seen = 0;
        for n in 0..count {
            if side == 0 {
                while n >= seen + slots {
                    seen = consumed.load(Acquire);
                }
                // SAFETY: the slot is this side's until `produced` says otherwise; both ranges have `size` bytes.
                unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), slot(n), size) };
                produced.store(n + 1, Release);
            } else {
                while n >= seen {
                    seen = produced.load(Acquire);
                }
                for at in (0..size).step_by(64) {
                    // SAFETY: inside the slot, which is this side's until `consumed` says otherwise.
                    sum = sum.wrapping_add(u64::from(unsafe { slot(n).add(at).read_volatile() }));
                }
                consumed.store(n + 1, Release);
            }
        }
        if side == 0 {
            while consumed.load(Acquire) != count {}
        }
        std::hint::black_box(sum)
    }
}
