//! A handle that threads share: calls take turns, waits let go of the interpreter, and asyncio is told by a descriptor.
//!
//! The lock of a handle is the interpreter's own, which one thread has at a time: a call holds it from its beginning to its end, and pays
//! no locked instruction, which would wait until the ring's cache lines have come. Only while a handle is lent to a thread that does
//! without the interpreter, so that it may sleep, calls take a mutex.
//!
//! While a call uses a handle, no Python code runs: it could call the same handle.

use crate::errors;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::cell::UnsafeCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// The longest wait without a look for signals, which a sleep in the bus does not exceed either.
const SLICE: Duration = tbus::LONGEST_SLEEP;
/// The same for the thread that watches a full ring for asyncio: a call of the event loop's own may have to wait for it.
const WATCH_SLICE: Duration = Duration::from_millis(2);
/// How long a waiting thread stands back for a call.
const STAND_BACK: Duration = Duration::from_micros(50);

/// What a handle can wait for.
pub trait Waits: Send + 'static {
    /// Waits until it is worth to try again, with a message of `length` bytes. False if the time has run out.
    fn sleep(&mut self, length: usize, timeout: Duration) -> bool;
}

/// Something of the bus that Python's threads share.
pub struct Handle<T: Waits> {
    shared: Arc<Shared<T>>,
    /// What [`tbus::forks`] was when it was made.
    forks: u32,
}

struct Shared<T> {
    /// None when closed. Whose it is, [`Shared::lent`] says.
    inner: UnsafeCell<Option<T>>,
    /// How many threads may use it without the interpreter. Raised and lowered by threads that are attached. While it is not 0,
    /// everybody uses `inner` with `turn` locked.
    lent: AtomicU32,
    turn: Mutex<()>,
    /// Calls that wait for the lock; who sleeps with it lets them in first.
    wanted: AtomicU32,
    sleepers: Mutex<Sleepers>,
    /// Another one may sleep now.
    woke: Condvar,
    watch: Arc<Watch>,
}

/// Who waits for the ring. One thread at a time sleeps with the lock; the others wait for that, and for no longer than they want.
#[derive(Default)]
struct Sleepers {
    asleep: bool,
    others: u32,
}

/// Who is to be told by a descriptor, and the thread that does.
#[derive(Default)]
struct Watch {
    state: Mutex<WatchState>,
    change: Condvar,
}

#[derive(Default)]
struct WatchState {
    /// Each with the length of the message that it wants room for.
    tickets: Vec<(usize, Arc<File>)>,
    running: bool,
    stop: bool,
}

// SAFETY: `inner` is used by one thread at a time, see `lent`.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Lent from the beginning where threads need no interpreter's lock.
const LENT: u32 = cfg!(Py_GIL_DISABLED) as u32;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `timeout` of a call: seconds, or None for ever.
pub fn duration(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    match timeout {
        None => Ok(None),
        Some(seconds) if seconds >= 0.0 => Ok(Duration::try_from_secs_f64(seconds).ok()), // else longer than all time
        Some(seconds) => Err(PyValueError::new_err(format!(
            "timeout: {seconds} is no time to wait; give seconds from 0 on, or None to wait for ever"
        ))),
    }
}

impl<T: Waits> Handle<T> {
    pub fn new(inner: T) -> Handle<T> {
        Handle {
            shared: Arc::new(Shared {
                inner: UnsafeCell::new(Some(inner)),
                lent: AtomicU32::new(LENT),
                turn: Mutex::new(()),
                wanted: AtomicU32::new(0),
                sleepers: Mutex::default(),
                woke: Condvar::new(),
                watch: Arc::default(),
            }),
            forks: tbus::forks(),
        }
    }

    /// Before any lock: one that was held while this process was forked stays locked in the child.
    #[inline]
    fn in_own_process(&self) -> PyResult<()> {
        match self.forks == tbus::forks() {
            true => Ok(()),
            false => Err(errors::forked()),
        }
    }

    /// None if the interpreter's lock is enough.
    #[inline(always)]
    fn turn(&self, py: Python<'_>) -> Option<MutexGuard<'_, ()>> {
        // Relaxed, here and wherever it changes: the interpreter's lock orders that.
        match self.shared.lent.load(Relaxed) {
            0 => None,
            _ => Some(self.lock(py)),
        }
    }

    #[cold]
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, ()> {
        match self.shared.turn.try_lock() {
            Ok(turn) => return turn,
            Err(TryLockError::Poisoned(turn)) => return turn.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        // Relaxed, here and below: a hint to stand back; the lock orders everything.
        self.shared.wanted.fetch_add(1, Relaxed);
        let turn = self.shared.turn.lock_py_attached(py);
        self.shared.wanted.fetch_sub(1, Relaxed);
        turn.unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `act`, which must run no Python code.
    #[inline(always)]
    pub fn with<R>(&self, py: Python<'_>, act: impl FnOnce(&mut T) -> R) -> PyResult<R> {
        self.in_own_process()?;
        let _turn = self.turn(py);
        // SAFETY: attached until it returns, and if it is lent with the lock besides.
        match unsafe { &mut *self.shared.inner.get() } {
            Some(inner) => Ok(act(inner)),
            None => Err(errors::closed()),
        }
    }

    /// The same if nothing stands in the way, else None.
    #[inline(always)]
    pub fn now<R>(&self, _: Python<'_>, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.forks != tbus::forks() || self.shared.lent.load(Relaxed) != 0 {
            return None;
        }
        // SAFETY: attached until it returns, and not lent.
        unsafe { &mut *self.shared.inner.get() }.as_mut().map(act)
    }

    /// Calls `attempt` until it gives something; None when the timeout has passed. Signal handlers run meanwhile.
    #[inline(always)]
    pub fn wait_for<R>(
        &self,
        py: Python<'_>,
        length: usize,
        timeout: Option<Duration>,
        mut attempt: impl FnMut(&mut T) -> Option<R>,
    ) -> PyResult<Option<R>> {
        if let Some(found) = self.with(py, &mut attempt)? {
            return Ok(Some(found));
        }
        match timeout == Some(Duration::ZERO) {
            true => Ok(None),
            false => self.sleep_for(py, length, timeout, attempt),
        }
    }

    #[cold]
    fn sleep_for<R>(
        &self,
        py: Python<'_>,
        length: usize,
        timeout: Option<Duration>,
        mut attempt: impl FnMut(&mut T) -> Option<R>,
    ) -> PyResult<Option<R>> {
        let begun = Instant::now();
        loop {
            let slice = match timeout {
                None => SLICE,
                Some(timeout) => SLICE.min(timeout.saturating_sub(begun.elapsed())),
            };
            self.shared.lent.fetch_add(1, Relaxed);
            py.detach(|| self.shared.sleep(length, slice));
            self.shared.lent.fetch_sub(1, Relaxed);
            py.check_signals()?;
            if let Some(found) = self.with(py, &mut attempt)? {
                return Ok(Some(found));
            }
            if timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
                return Ok(None);
            }
        }
    }

    /// Closes it, if `may` says so: its end of the channel is free for others. Nothing if it was closed before.
    pub fn close(&self, py: Python<'_>, may: impl FnOnce(&mut T) -> PyResult<()>) -> PyResult<()> {
        self.in_own_process()?;
        let turn = self.turn(py);
        // SAFETY: as in `with`.
        let inner = unsafe { &mut *self.shared.inner.get() };
        if let Some(inner) = inner {
            may(inner)?;
        }
        let closed = inner.take();
        drop(turn);
        drop(closed);
        self.shared.watch.stop();
        Ok(())
    }

    /// A ticket for the next time that it is worth to try; None if that is now, by `ready`.
    pub fn ticket(
        &self,
        length: usize,
        ready: impl FnOnce(&mut T) -> bool,
    ) -> PyResult<Option<Ticket>> {
        self.in_own_process()?;
        // If another thread sleeps with the lock, there is nothing yet.
        let turn = match self.shared.lent.load(Relaxed) {
            0 => Ok(None),
            _ => match self.shared.turn.try_lock() {
                Err(TryLockError::WouldBlock) => Err(()),
                Ok(turn) => Ok(Some(turn)),
                Err(TryLockError::Poisoned(turn)) => Ok(Some(turn.into_inner())),
            },
        };
        if let Ok(_turn) = &turn {
            // SAFETY: as in `with`.
            let inner = unsafe { &mut *self.shared.inner.get() };
            if ready(inner.as_mut().ok_or_else(errors::closed)?) {
                return Ok(None);
            }
        }
        drop(turn);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags);
        let event = event.map_err(|error| errors::of_system(&error.into()))?;
        let event = Arc::new(File::from(OwnedFd::from(event)));
        let mut state = lock(&self.shared.watch.state);
        if state.stop {
            drop(state);
            return Err(errors::closed());
        }
        if !state.running {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("tbus-watch".into());
            // To the thread, for as long as there is one, which is as long as this.
            self.shared.lent.fetch_add(1, Relaxed);
            let started = without_signals(|| thread.spawn(move || shared.watch()));
            if let Err(error) = started {
                self.shared.lent.fetch_sub(1, Relaxed);
                return Err(errors::of_system(&error));
            }
            state.running = true;
        }
        state.tickets.push((length, event.clone()));
        drop(state);
        self.shared.watch.change.notify_one();
        let watch = self.shared.watch.clone();
        Ok(Some(Ticket {
            event,
            watch: Some(watch),
            forks: self.forks,
        }))
    }
}

impl<T: Waits> Drop for Handle<T> {
    fn drop(&mut self) {
        // In a child there is no thread, and what was under the lock is as another thread left it: never to be dropped.
        if self.forks != tbus::forks() {
            std::mem::forget(self.shared.clone());
            return;
        }
        let running = lock(&self.shared.watch.state).running;
        if running {
            // The thread shares it, and goes a little later: the end of the channel is to be free now.
            self.shared.watch.stop();
            let _turn = lock(&self.shared.turn);
            // SAFETY: lent to the thread, and locked.
            drop(unsafe { &mut *self.shared.inner.get() }.take());
        }
    }
}

impl<T: Waits> Shared<T> {
    /// Waits up to `slice` until it is worth to try again.
    fn sleep(&self, length: usize, slice: Duration) -> bool {
        let end = Instant::now() + slice;
        let mut sleepers = lock(&self.sleepers);
        if sleepers.asleep {
            sleepers.others += 1;
            let woken = self.woke.wait_timeout_while(sleepers, slice, |s| s.asleep);
            sleepers = woken.unwrap_or_else(PoisonError::into_inner).0;
            sleepers.others -= 1;
            if sleepers.asleep {
                return false;
            }
        }
        sleepers.asleep = true;
        drop(sleepers);
        let worth = self.sleep_alone(length, end);
        let mut sleepers = lock(&self.sleepers);
        sleepers.asleep = false;
        if sleepers.others > 0 {
            self.woke.notify_one(); // a system call
        }
        worth
    }

    /// Waits with the lock, after those who want it for a call.
    fn sleep_alone(&self, length: usize, end: Instant) -> bool {
        while self.wanted.load(Relaxed) > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(STAND_BACK);
        }
        let _turn = lock(&self.turn);
        // SAFETY: lent to this thread before it was let go of the interpreter, or to the one that watches; and locked.
        match unsafe { &mut *self.inner.get() } {
            Some(inner) => inner.sleep(length, end.saturating_duration_since(Instant::now())),
            None => true, // closed: the caller finds that out
        }
    }

    /// What the thread does. It never touches the interpreter, which may end before it.
    fn watch(&self) {
        let watch = &self.watch;
        loop {
            let mut state = lock(&watch.state);
            let length = loop {
                if state.stop {
                    return;
                }
                match state.tickets.iter().map(|(length, _)| *length).min() {
                    Some(length) => break length,
                    None => {
                        state = watch
                            .change
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            drop(state);
            if self.sleep(length, WATCH_SLICE) {
                lock(&watch.state).tell();
            }
        }
    }
}

/// Runs `start` with all signals blocked, as the thread that it starts inherits: signals are for the program's own threads.
fn without_signals<R>(start: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = start();
    before.thread_set_mask()?;
    started
}

/// Makes an eventfd readable.
pub fn tell(mut event: &File) {
    _ = event.write(&1u64.to_ne_bytes()); // fails only if it would overflow, so was told
}

impl WatchState {
    fn tell(&mut self) {
        self.tickets.drain(..).for_each(|(_, event)| tell(&event));
    }
}

impl Watch {
    fn stop(&self) {
        let mut state = lock(&self.state);
        state.stop = true;
        state.tell();
        drop(state);
        self.change.notify_one();
    }
}

/// A descriptor that becomes readable when it is worth to try again.
#[pyclass(frozen, module = "tbus._tbus")]
pub struct Ticket {
    event: Arc<File>,
    /// Who is to be told that nobody waits for it any more.
    watch: Option<Arc<Watch>>,
    /// As [`Handle::forks`].
    forks: u32,
}

impl Ticket {
    /// Of a descriptor that somebody else looks after.
    pub fn of(event: File) -> Ticket {
        Ticket {
            event: Arc::new(event),
            watch: None,
            forks: tbus::forks(),
        }
    }
}

#[pymethods]
impl Ticket {
    fn fileno(&self) -> i32 {
        self.event.as_raw_fd()
    }

    fn close(&self) {
        // In a forked child the lock may be held for ever.
        if let Some(watch) = self.watch.as_ref().filter(|_| self.forks == tbus::forks()) {
            let mut state = lock(&watch.state);
            state
                .tickets
                .retain(|(_, event)| !Arc::ptr_eq(event, &self.event));
        }
    }
}
