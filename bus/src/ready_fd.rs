//! [`ReadyFd`]: a descriptor to wait for messages with, beside sockets and timers.
//!
//! Senders wake by a futex, which no poll knows. So a thread sleeps on the futexes of all rings, and makes an eventfd
//! readable. It only looks at the rings: which record is next they say themselves. While the descriptor is
//! readable the thread sleeps on a word of its own, so a stream of messages costs its senders no wake-ups.

use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::fork;
use crate::ring_file::Ring;
use crate::sync::{Acquire, AtomicU32, Ordering::*, Release};
use crate::sys;
use crate::wait::{self, LONGEST_SLEEP};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A descriptor that is readable while rings have messages, or the map was written: for `epoll` and the like.
///
/// Whoever receives calls [`ReadyFd::arm`] each time that it found nothing; until then the descriptor stays readable. It is
/// closed on exec, and of no use in a forked child.
#[derive(Debug)]
pub struct ReadyFd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    generation: u32,
}

#[derive(Debug)]
struct Shared {
    event: File,
    /// Changes with every order to the thread, which sleeps on it.
    orders: AtomicU32,
    /// True from making the descriptor readable to the next order.
    raised: AtomicBool,
    watch: Mutex<Watch>,
}

/// What the thread is to do.
#[derive(Debug, Default)]
struct Watch {
    rings: Arc<[Ring]>,
    /// The map, and the version that is no news.
    map: Option<(Bus, u64)>,
    /// When it is to be readable all the same.
    again: Option<Instant>,
    /// True until the descriptor is readable.
    armed: bool,
    ended: bool,
}

impl ReadyFd {
    /// A descriptor that is not readable yet, and its thread.
    pub fn new() -> Result<ReadyFd> {
        let fail = |doing, e| Error::system(doing, Path::new("an event descriptor"), e);
        let shared = Arc::new(Shared {
            event: sys::eventfd().map_err(|e| fail("make", e))?,
            orders: AtomicU32::new(0),
            raised: AtomicBool::new(false),
            watch: Mutex::default(),
        });
        let watcher = shared.clone();
        let thread = std::thread::Builder::new().name("tbus-ready".into());
        // Signals are the application's, on its own threads.
        let thread = sys::without_signals(|| thread.spawn(move || watcher.run()));
        Ok(ReadyFd {
            shared,
            thread: Some(thread.map_err(|e| fail("start the thread of", e))?),
            generation: fork::generation(),
        })
    }

    /// True if it is readable: then [`ReadyFd::arm`] is due after a look that found nothing.
    #[inline]
    pub fn is_raised(&self) -> bool {
        self.shared.raised.load(Acquire) // partner: Release in raise
    }

    /// Makes it unreadable until one of `rings` has a message, or the map of `bus` another version than `version`, which
    /// was read before the look at the rings that found nothing.
    pub fn arm<'a>(&self, rings: impl Iterator<Item = &'a Ring>, bus: &Bus, version: u64) {
        if self.forked() {
            return;
        }
        let mut watch = self.shared.lock();
        watch.rings = rings.cloned().collect();
        watch.map = Some((bus.clone(), version));
        self.order_watch(watch, None);
    }

    /// [`ReadyFd::arm`] with the rings, the map and the version of the last time, which costs less. `again`: when it is to
    /// be readable though nothing came, for whoever has to try something anew.
    pub fn arm_again(&self, again: Option<Instant>) {
        if self.forked() {
            return;
        }
        self.order_watch(self.shared.lock(), again);
    }

    fn order_watch(&self, mut watch: MutexGuard<'_, Watch>, again: Option<Instant>) {
        // What was received to its end is followed by another ring once the map says so, and by nothing before.
        if watch.rings.iter().any(Ring::is_finished) {
            let rings = watch.rings.iter().filter(|ring| !ring.is_finished());
            watch.rings = rings.cloned().collect();
        }
        let mut count = [0; 8];
        let _ = (&self.shared.event).read(&mut count); // it was not readable: just as well
        self.shared.raised.store(false, Relaxed); // under the lock
        watch.again = again;
        watch.armed = true;
        self.shared.order(watch);
    }

    /// True in a forked child, which shares the descriptor with its parent and has no thread for it. The lock may be held
    /// there for ever.
    fn forked(&self) -> bool {
        self.generation != fork::generation()
    }
}

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for ReadyFd {
    fn drop(&mut self) {
        if self.forked() {
            std::mem::forget(self.thread.take());
            // SAFETY: nobody else closes it here: the share of the thread, which is not here, keeps `shared` for ever.
            unsafe { libc::close(self.shared.event.as_raw_fd()) };
            return;
        }
        let mut watch = self.shared.lock();
        watch.ended = true;
        self.shared.order(watch);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has nothing to tell
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells the thread that there is an order in `watch`.
    fn order(&self, watch: MutexGuard<'_, Watch>) {
        self.orders.fetch_add(1, Release); // partner: Acquire in run
        drop(watch);
        sys::futex_wake(&self.orders);
    }

    fn run(&self) {
        const LONG: Duration = Duration::from_secs(3600);
        loop {
            let watch = self.lock();
            let order = self.orders.load(Acquire); // partner: Release in order
            if watch.ended {
                return;
            }
            let Some((bus, version)) = watch.map.clone().filter(|_| watch.armed) else {
                drop(watch);
                sys::futex_wait(&self.orders, order, LONG);
                continue;
            };
            let (rings, again) = (watch.rings.clone(), watch.again);
            drop(watch);
            let mut words = vec![(&self.orders, order)];
            words.extend(wait::announce_all(rings.iter().map(Ring::receiver_signal)));
            let left = again.map(|again| again.saturating_duration_since(Instant::now()));
            let news = || {
                bus.gcim().version() != version
                    || left.is_some_and(|left| left.is_zero())
                    || rings
                        .iter()
                        .any(|ring| ring.has_unread() || ring.is_finished())
            };
            if news() {
                self.raise(order);
            } else {
                sleep(&words, left.unwrap_or(LONGEST_SLEEP));
            }
            rings
                .iter()
                .for_each(|ring| _ = wait::renounce(ring.receiver_signal()));
        }
    }

    /// Makes the descriptor readable, unless there was another order meanwhile.
    fn raise(&self, order: u32) {
        let mut watch = self.lock();
        if self.orders.load(Relaxed) == order {
            watch.armed = false;
            // First, so that nobody meets a readable descriptor that is not due to be armed. Partner: Acquire in is_raised.
            self.raised.store(true, Release);
            let _ = (&self.event).write(&1u64.to_ne_bytes()); // cannot fail: the count was 0
        }
    }
}

/// Sleeps until a word changes. More rings than the kernel takes at a time, or an old kernel, mean steps of a millisecond.
fn sleep(words: &[(&AtomicU32, u32)], at_most: Duration) {
    const STEP: Duration = Duration::from_millis(1);
    let time = match words.len() > sys::FUTEX_WAIT_ANY_MAX {
        true => STEP,
        false => at_most.min(LONGEST_SLEEP),
    };
    if !sys::futex_wait_any(words, time) {
        std::thread::sleep(STEP);
    }
}
