//! A forked child must neither send nor receive nor hold a role: it would share the parent's cursors and locks.
//!
//! An atfork handler gives the child private empty pages in place of every ring, whose signal word says
//! CLOSED, so that its next call takes the slow path and learns of the fork; and it closes the child's copy of
//! the lock files, so that the roles end with the parent. `vfork` and `posix_spawn` share the parent's memory
//! and run no handler: there the child calls exec at once, and all descriptors are close-on-exec. A child made
//! by the bare `clone` system call is not covered.

use crate::layout::{Control, SIGNAL_CLOSED};
use core::mem::offset_of;
use std::cell::UnsafeCell;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What the child must lose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// A mapped ring: base address and length in bytes.
    Mapping(usize, usize),
    /// A descriptor.
    Descriptor(i32),
}

/// Guarded by a spin lock: a mutex of the library may not be taken over a fork.
struct Registry {
    locked: AtomicBool,
    held: UnsafeCell<Vec<Held>>,
}

// SAFETY: `held` is touched only between lock() and unlock().
unsafe impl Sync for Registry {}

static REGISTRY: Registry = Registry {
    locked: AtomicBool::new(false),
    held: UnsafeCell::new(Vec::new()),
};
static GENERATION: AtomicU32 = AtomicU32::new(0);

impl Registry {
    fn lock(&self) {
        // Acquire: partner of the Release in unlock.
        while self.locked.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release); // partner: Acquire in lock
    }

    fn with<T>(&self, act: impl FnOnce(&mut Vec<Held>) -> T) -> T {
        self.lock();
        // SAFETY: locked, so this is the only reference; the closures below cannot re-enter.
        let result = act(unsafe { &mut *self.held.get() });
        self.unlock();
        result
    }
}

/// How many forks lie between the first process and this one; a handle compares it with its own.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed) // changes only while the process has one thread
}

/// Registers something that a child must lose.
pub(crate) fn hold(held: Held) {
    prepare();
    REGISTRY.with(|all| all.push(held));
}

/// Makes something and registers it, with no fork in between.
pub(crate) fn hold_new<T, E>(make: impl FnOnce() -> Result<(T, Held), E>) -> Result<T, E> {
    prepare();
    REGISTRY.with(|all| {
        let (made, held) = make()?;
        all.push(held);
        Ok(made)
    })
}

fn prepare() {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        // SAFETY: the three functions are what pthread_atfork asks for and touch only this module's state.
        unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    });
}

/// Takes back what [`hold`] registered.
pub(crate) fn let_go(held: Held) {
    REGISTRY.with(|all| {
        if let Some(at) = all.iter().rposition(|h| *h == held) {
            all.swap_remove(at);
        }
    });
}

extern "C" fn before() {
    REGISTRY.lock();
}

extern "C" fn after_in_parent() {
    REGISTRY.unlock();
}

/// Async-signal-safe: system calls and stores only.
extern "C" fn after_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed); // the child has one thread
    // SAFETY: locked by `before` in the parent, whose lock the child inherited.
    let all = unsafe { &mut *REGISTRY.held.get() };
    for held in all.iter() {
        match *held {
            Held::Descriptor(fd) => {
                // SAFETY: the child's copy of a descriptor that its owner no longer touches after a fork.
                unsafe { libc::close(fd) };
            }
            Held::Mapping(base, length) => {
                let flags =
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: replaces, in the child only, pages that this crate mapped and still owns.
                let at = unsafe { libc::mmap(base as *mut _, length, protection, flags, -1, 0) };
                if at == libc::MAP_FAILED {
                    // Going on would mean sharing the parent's cursors.
                    // SAFETY: ends the process.
                    unsafe { libc::_exit(127) };
                }
                let signal = base + offset_of!(Control, receiver_signal);
                // SAFETY: inside the page just mapped, aligned; the child has one thread.
                unsafe { (signal as *mut u32).write(SIGNAL_CLOSED) };
            }
        }
    }
    // None of it is this process's: its own forks must not touch what these numbers mean by then.
    all.clear();
    REGISTRY.unlock();
}
