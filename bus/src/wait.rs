//! Waiting and waking: spin, then sleep on a word in shared memory.
//!
//! The sleeper raises [`SIGNAL_SLEEPING`] and looks once more; the other side stores its news and looks at
//! the bit. One of the two must see the other's store, which takes a full barrier on both sides. The side
//! that is on the fast path pays none: the sleeper issues `membarrier(GLOBAL_EXPEDITED)`, which makes every
//! processor that runs a registered process execute one. Whoever could not register fences per message; a
//! sleeper that cannot issue it raises [`SIGNAL_FENCE`], and the others fence when they meet it.
//!
//! Every sleep ends after at most [`LONGEST_SLEEP`]: the other side may be killed between its news and its
//! wake-up. Model: a store buffer in front of two words (Dekker's); checked by `loom_tests.rs` with fences.

use crate::layout::{SIGNAL_FENCE, SIGNAL_SLEEPING};
use crate::sync::{AtomicU32, Ordering::*, fence};
use core::time::Duration;

/// Upper bound of one sleep.
pub const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// Prepares this process for others' barriers. True if it could not be registered and must fence per message.
#[cfg(not(loom))]
pub(crate) fn register() -> bool {
    use std::sync::OnceLock;
    static FENCE: OnceLock<bool> = OnceLock::new();
    *FENCE.get_or_init(|| {
        std::env::var_os("TBUS_FENCE").is_some_and(|v| v == "1")
            || !crate::sys::membarrier_register()
    })
}

/// Orders this thread's earlier stores before its later loads, and the same for every thread of every process
/// that registered. False if the kernel cannot: then others may still be between a store and a load.
pub(crate) fn barrier() -> bool {
    fence(SeqCst);
    #[cfg(not(loom))]
    {
        crate::sys::membarrier()
    }
    #[cfg(loom)]
    {
        true
    }
}

/// Announces a sleep on `word`; the caller must look for news once more before [`sleep`]. Returns the value
/// to sleep on.
pub(crate) fn announce(word: &AtomicU32) -> u32 {
    // AcqRel: partner of the load in wake; the barrier does the ordering against the news.
    let mut value = word.fetch_or(SIGNAL_SLEEPING, AcqRel) | SIGNAL_SLEEPING;
    if !barrier() && value & SIGNAL_FENCE == 0 {
        value = word.fetch_or(SIGNAL_FENCE, AcqRel) | SIGNAL_FENCE; // as above
    }
    value
}

/// [`announce`] on several words, with one barrier for all.
#[cfg(not(loom))]
pub(crate) fn announce_all<'a>(
    words: impl Iterator<Item = &'a AtomicU32>,
) -> Vec<(&'a AtomicU32, u32)> {
    let raise = |word: &AtomicU32, bits| word.fetch_or(bits, AcqRel) | bits; // as in announce
    let mut all: Vec<_> = words
        .map(|word| (word, raise(word, SIGNAL_SLEEPING)))
        .collect();
    if !barrier() {
        for (word, value) in &mut all {
            if *value & SIGNAL_FENCE == 0 {
                *value = raise(word, SIGNAL_FENCE);
            }
        }
    }
    all
}

/// Takes the announcement back; true if nobody had taken it to wake the sleeper.
pub(crate) fn renounce(word: &AtomicU32) -> bool {
    word.fetch_and(!SIGNAL_SLEEPING, AcqRel) & SIGNAL_SLEEPING != 0 // as in announce
}

/// Sleeps until `word` is no longer `value`, at most `timeout` and at most [`LONGEST_SLEEP`]. May return early;
/// true if the time ran out.
#[cfg(not(loom))]
pub(crate) fn sleep(word: &AtomicU32, value: u32, timeout: Duration) -> bool {
    crate::sys::futex_wait(word, value, timeout.min(LONGEST_SLEEP))
}

/// Under loom time does not pass, so a missed wake-up is a loop without an end, which loom reports.
#[cfg(loom)]
pub(crate) fn sleep(word: &AtomicU32, value: u32, _timeout: Duration) -> bool {
    while word.load(Acquire) == value {
        loom::thread::yield_now();
    }
    false
}

/// How one side waits: which word it sleeps on, and how long it polls before it does.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    /// How long to poll before sleeping.
    pub spin: Duration,
}

#[cfg(not(loom))]
impl Waiter {
    /// Calls `look` until it gives something or `timeout` has passed: polling at first, then sleeping on `word`,
    /// which the other side wakes. Counts sleeps in `info`.
    pub fn wait<T>(
        &self,
        word: &AtomicU32,
        info: &crate::layout::InfoLine,
        timeout: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let begun = std::time::Instant::now();
        loop {
            // No PAUSE: the next single message should be seen at once. The clock is read now and then.
            for _ in 0..POLLS_PER_CLOCK_READ {
                if let Some(found) = look() {
                    return Some(found);
                }
            }
            if begun.elapsed() >= self.spin.min(timeout) {
                break;
            }
        }
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return None;
            }
            let value = announce(word);
            if let Some(found) = look() {
                renounce(word);
                return Some(found);
            }
            crate::ring::producer::add(&info.sleeps, 1);
            let time_ran_out = sleep(word, value, left);
            let found = look();
            // After the look: who sends when the time has just run out is late, but wakes.
            let nobody_woke = time_ran_out && renounce(word);
            if found.is_some() {
                if nobody_woke && left >= LONGEST_SLEEP {
                    crate::ring::producer::add(&info.overslept, 1);
                }
                return found;
            }
        }
    }
}

/// Polls between two looks at the clock while waiting.
#[cfg(not(loom))]
const POLLS_PER_CLOCK_READ: u32 = 64;
/// How long a handle polls before it sleeps, unless told otherwise.
#[cfg(not(loom))]
pub(crate) const DEFAULT_SPIN: Duration = Duration::from_micros(20);

/// Wakes who sleeps on `word`, if anybody does; true if so. Costs a load when nobody does.
pub(crate) fn wake(word: &AtomicU32) -> bool {
    let mut value = word.load(Acquire); // partner: fetch_or in announce
    if value & (SIGNAL_FENCE | SIGNAL_SLEEPING) == SIGNAL_FENCE {
        fence(SeqCst);
        value = word.load(Acquire); // as above
    }
    if value & SIGNAL_SLEEPING == 0 {
        return false;
    }
    word.fetch_and(!SIGNAL_SLEEPING, AcqRel); // as above
    #[cfg(not(loom))]
    crate::sys::futex_wake(word);
    true
}
