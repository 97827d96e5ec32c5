//! Shared memory: files, the doubled mapping, and the only raw pointers of the crate.

use crate::error::{Error, Result};
use crate::fork::{self, Held};
use crate::layout::Control;
use crate::news::News;
use crate::ring::memory::Memory;
use crate::sync::{AtomicU64, Relaxed};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// The system's page size, bytes.
pub(crate) fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .map_or(4096, |n| n as usize)
}

/// A ring file in memory: [control | data | data again].
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    data_offset: usize,
    capacity: usize,
    generation: u32,
}

// SAFETY: the memory is shared with other processes anyway; it is accessed through atomics and raw copies
// whose order the ring's algorithm provides, from whatever thread.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file`, which is at least data_offset + capacity bytes long, both multiples of the page size.
    pub fn new(file: &File, path: &Path, data_offset: usize, capacity: usize) -> Result<Mapping> {
        let fail = |what: &'static str, e: nix::Error| Error::system(what, path, e.into());
        let total = data_offset + 2 * capacity;
        let length = NonZeroUsize::new(total).expect("a capacity is not zero");
        // SAFETY: a fresh reservation, at an address of the kernel's choice.
        let base = unsafe {
            nix::sys::mman::mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_NONE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }
        .map_err(|e| fail("reserve address space for", e))?
        .cast::<u8>();
        let mapping = Mapping {
            base,
            data_offset,
            capacity,
            generation: fork::generation(),
        };
        let parts = [
            (0, data_offset + capacity, 0),
            (data_offset + capacity, capacity, data_offset),
        ];
        for (at, length, file_offset) in parts {
            let address = NonZeroUsize::new(base.as_ptr() as usize + at);
            let length = NonZeroUsize::new(length).expect("a capacity is not zero");
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            // SAFETY: replaces pages of the reservation above, which nobody uses yet; on failure Drop unmaps.
            unsafe {
                nix::sys::mman::mmap(address, length, protection, flags, file, file_offset as i64)
            }
            .map_err(|e| fail("map", e))?;
        }
        fork::hold(Held::Mapping(base.as_ptr() as usize, total));
        Ok(mapping)
    }

    /// The control area.
    pub fn control(&self) -> &Control {
        // SAFETY: page-aligned, mapped while self lives, at least CONTROL_SIZE bytes; made of atomics only.
        unsafe { self.base.cast().as_ref() }
    }

    /// Touches every page now, so that the first lap takes no page faults.
    pub fn prefault(&self) {
        let length = self.data_offset + 2 * self.capacity;
        // SAFETY: the range is ours; POPULATE_WRITE changes no byte. An old kernel refuses it, which only means
        // that the faults come later.
        let _ = unsafe {
            nix::sys::mman::madvise(self.base.cast(), length, MmapAdvise::MADV_POPULATE_WRITE)
        };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let length = self.data_offset + 2 * self.capacity;
        if self.generation == fork::generation() {
            fork::let_go(Held::Mapping(self.base.as_ptr() as usize, length));
        }
        // SAFETY: our own mapping, and no reference into it outlives self.
        let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), length) };
    }
}

/// A mapping as one handle sees it. It repeats the mapping's numbers, so that the data path loads them from the
/// handle itself and not through another pointer.
#[derive(Debug)]
pub(crate) struct Mapped {
    control: NonNull<Control>,
    data: NonNull<u8>,
    capacity: usize,
    mapping: Arc<Mapping>,
    /// Where a mirrored ring's application tells its relay of news, and the ring's lock slot.
    news: Option<(Arc<News>, u32)>,
}

// SAFETY: as for Mapping, which it keeps alive.
unsafe impl Send for Mapped {}
// SAFETY: as for Mapping.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub fn new(mapping: Arc<Mapping>) -> Mapped {
        Mapped {
            control: mapping.base.cast(),
            // SAFETY: within the mapping.
            data: unsafe { mapping.base.add(mapping.data_offset) },
            capacity: mapping.capacity,
            mapping,
            news: None,
        }
    }

    /// The same, with news for the relay.
    pub fn with_news(self, news: Option<Arc<News>>, slot: u32) -> Mapped {
        Mapped {
            news: news.map(|news| (news, slot)),
            ..self
        }
    }

    /// The data area alone.
    pub fn region(&self) -> Region {
        Region {
            data: self.data,
            capacity: self.capacity,
            _mapping: self.mapping.clone(),
        }
    }

    /// A pointer to `offset` of the data area, below 2 × capacity.
    #[inline(always)]
    pub fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < 2 * self.capacity);
        // SAFETY: inside the doubled data area, by the callers' check of every record.
        unsafe { self.data.add(offset) }
    }
}

impl Memory for Mapped {
    #[inline(always)]
    fn control(&self) -> &Control {
        // SAFETY: page-aligned, mapped while `mapping` lives, at least CONTROL_SIZE bytes; made of atomics only.
        unsafe { self.control.as_ref() }
    }

    #[inline(always)]
    fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8));
        // SAFETY: aligned and mapped by the trait's contract; words are only ever accessed atomically while two
        // processes may meet there.
        unsafe { AtomicU64::from_ptr(self.at(offset).as_ptr().cast()) }
    }

    #[inline(always)]
    fn write(&self, offset: usize, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.capacity);
        // SAFETY: part of a record that was reserved, so in the doubled data area, and this producer's until its
        // commit word is stored.
        unsafe { copy(bytes.as_ptr(), self.at(offset).as_ptr(), bytes.len()) };
    }

    #[inline(always)]
    fn read(&self, offset: usize, bytes: &mut [u8]) {
        debug_assert!(bytes.len() <= self.capacity);
        // SAFETY: part of a record that was checked, so in the doubled data area. A hostile producer may change
        // the bytes while they are copied: then the copy is a mixture, as documented; nothing is derived from it.
        unsafe { copy(self.at(offset).as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    }

    #[inline(always)]
    fn take_lines(&self, offset: usize, size: usize) {
        // Each line once: its first byte is in one record only.
        let mut at = (offset + 63) & !63;
        while at < offset + size {
            let byte = self.at(at).as_ptr();
            // SAFETY: inside the record, which is this consumer's until it is released. JUSTIFICATION: a plain
            // store of the same value moves the line here in a state in which the producer's next store takes
            // it in one transfer; measured about twice the rate from 256 bytes up.
            unsafe { byte.write_volatile(byte.read_volatile()) };
            at += 64;
        }
    }

    #[inline(always)]
    fn announce(&self) {
        if let Some((news, slot)) = &self.news {
            news.announce(*slot);
        }
    }

    #[inline(always)]
    fn forked(&self) -> bool {
        self.mapping.generation != fork::generation()
    }
}

/// A ring's data area as raw memory, for links, which give its addresses to the kernel or to a card. Keeps the mapping.
#[derive(Clone, Debug)]
pub struct Region {
    data: NonNull<u8>,
    capacity: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: as for Mapping, which it keeps alive; it hands out addresses and touches nothing.
unsafe impl Send for Region {}
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    /// Bytes in the data area.
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Where the `length` bytes at `position` lie: always one range, since the data area is mapped twice in a row.
    /// Others write there at any time, so nothing but raw accesses will do.
    ///
    /// # Panics
    /// If `length` is more than the capacity.
    #[inline]
    pub fn at(&self, position: u64, length: usize) -> *mut u8 {
        assert!(
            length <= self.capacity,
            "{length} bytes of a ring of {}",
            self.capacity
        );
        // SAFETY: below the capacity, so `length` bytes on is within the doubled area.
        unsafe { self.data.add((position % self.capacity as u64) as usize) }.as_ptr()
    }

    /// True if the `length` bytes at `address` lie in the data area, mapped twice.
    pub fn contains(&self, address: *const u8, length: usize) -> bool {
        let begin = self.data.as_ptr() as usize;
        let at = address as usize;
        at >= begin && length <= self.capacity && at - begin + length <= 2 * self.capacity
    }
}

/// A file in memory as 64-bit words, all accessed as atomics.
#[derive(Debug)]
pub(crate) struct Words {
    base: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the words are accessed as atomics only.
unsafe impl Send for Words {}
// SAFETY: as for Send.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `count` words of `file`, which has as many. A store into words mapped without `writable`
    /// would end the process: only code that asked for it stores.
    pub fn map(file: &File, path: &Path, count: usize, writable: bool) -> Result<Words> {
        let length = NonZeroUsize::new(count * 8).expect("at least one word");
        let protection = match writable {
            true => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            false => ProtFlags::PROT_READ,
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            nix::sys::mman::mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0)
        }
        .map_err(|e| Error::system("map", path, e.into()))?;
        Ok(Words {
            base: base.cast(),
            count,
        })
    }

    /// Word `index`.
    ///
    /// # Panics
    /// If there is no such word.
    #[inline(always)]
    pub fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: inside the mapping by the check above, aligned, an atomic to everybody.
        unsafe { self.base.add(index).as_ref() }
    }

    /// Byte `index`. A word whose bytes are used so is stored by bytes only; loading it whole finds each byte's value
    /// of some moment, on every processor that has such loads.
    ///
    /// # Panics
    /// If there is no such byte.
    #[inline(always)]
    pub fn byte(&self, index: usize) -> &AtomicU8 {
        assert!(index < 8 * self.count, "byte {index} of {}", 8 * self.count);
        // SAFETY: inside the mapping by the check above; accessed as an atomic only.
        unsafe { AtomicU8::from_ptr(self.base.cast::<u8>().add(index).as_ptr()) }
    }

    /// The eight words of a cache line; `line` counts such lines. Relaxed, and each word for itself. JUSTIFICATION: one
    /// check for eight loads; a relay looks through thousands of words in each pass.
    #[inline]
    pub fn line(&self, line: usize) -> [u64; 8] {
        assert!(
            8 * line + 7 < self.count,
            "line {line} of {} words",
            self.count
        );
        // SAFETY: inside the mapping by the check above, aligned, atomics to everybody.
        let words = unsafe { &*self.base.add(8 * line).cast::<[AtomicU64; 8]>().as_ptr() };
        words.each_ref().map(|word| word.load(Relaxed))
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives self.
        let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.count * 8) };
    }
}

/// Copies between private and shared memory. Up to 64 bytes in line: a call costs as much as the copy.
///
/// # Safety
/// Both ranges valid for `length` bytes, not overlapping.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    /// Copies a `T` at the front and one at the back, which overlap unless `length` is twice the size.
    #[inline(always)]
    unsafe fn ends<T>(from: *const u8, to: *mut u8, length: usize) {
        let back = length - size_of::<T>();
        // SAFETY: size of T <= length <= 2 × size of T, by the caller's branch. Unaligned on purpose.
        unsafe {
            let first = from.cast::<T>().read_unaligned();
            let last = from.add(back).cast::<T>().read_unaligned();
            to.cast::<T>().write_unaligned(first);
            to.add(back).cast::<T>().write_unaligned(last);
        }
    }
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::__m128i as Sixteen;
    #[cfg(not(target_arch = "x86_64"))]
    type Sixteen = u128;
    // SAFETY: the caller's ranges; each branch stays within `length`.
    unsafe {
        // In the order of how often a size is met where nanoseconds count.
        if length > 64 {
            core::ptr::copy_nonoverlapping(from, to, length);
        } else if length >= 32 {
            ends::<Sixteen>(from, to, 32);
            let back = length - 32;
            ends::<Sixteen>(from.add(back), to.add(back), 32);
        } else if length >= 16 {
            ends::<Sixteen>(from, to, length);
        } else if length >= 8 {
            ends::<u64>(from, to, length);
        } else if length >= 4 {
            ends::<u32>(from, to, length);
        } else if length >= 2 {
            ends::<u16>(from, to, length);
        } else if length == 1 {
            to.write(from.read());
        }
    }
}
