//! The bus that the process is attached to, and its handles.
//!
//! A handle is a number: the low bits say which place of the table, the others how often that was used. So a call looks
//! at one place, and a number whose handle was deleted is known as such, until its place was used half a million
//! times more.

use crate::codes::{self, Code};
use crate::receiving::Receiving;
use crate::sending::Sending;
use bus::{Bus, Directory};
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering::*};

const INDEX_BITS: u32 = 12;
const PLACES: usize = 1 << INDEX_BITS;
const USES: u32 = 1 << (31 - INDEX_BITS);

/// A handle's two halves, which two threads may use at the same time.
pub struct Open {
    pub sending: UnsafeCell<Sending>,
    pub receiving: UnsafeCell<Receiving>,
}

struct Place {
    /// Its handle; 0 for a free one, [`LEFT`] or, in place 0, [`NONE`]. What is no handle is found in no place, since its lowest bits name
    /// another one.
    handle: AtomicI32,
    open: AtomicPtr<Open>,
}

/// Of a place whose handle is being freed, or was left behind by a fork: no handle, for it would be one of place 0.
const LEFT: i32 = i32::MIN;

/// What place 0 has for ever: no handle of its own, so that the number 0, which free places have, is none either.
const NONE: i32 = 1;

static TABLE: [Place; PLACES] = {
    let mut table = [const {
        Place {
            handle: AtomicI32::new(0),
            open: AtomicPtr::new(null_mut()),
        }
    }; PLACES];
    table[0].handle = AtomicI32::new(NONE);
    table
};

/// What calls share that are no core calls, behind [`LOCK`].
struct Shared {
    attached: Option<Attached>,
    /// The last place given out, and how often each was.
    last: usize,
    uses: [u32; PLACES],
}

struct Attached {
    bus: Bus,
    key: u32,
    /// True in a forked child: it is the parent's.
    forked: bool,
}

struct Locked(UnsafeCell<Shared>);

// SAFETY: accessed by `with` and `leave_behind` alone, behind LOCK.
unsafe impl Sync for Locked {}

static SHARED: Locked = Locked(UnsafeCell::new(Shared {
    attached: None,
    last: 0,
    uses: [0; PLACES],
}));

/// Like the lock of tbus's own fork handlers: a mutex of the library may not be taken over a fork.
static LOCK: AtomicBool = AtomicBool::new(false);

extern "C" fn lock() {
    // Acquire: partner of the Release in unlock.
    while LOCK.swap(true, Acquire) {
        std::thread::yield_now();
    }
}

extern "C" fn unlock() {
    LOCK.store(false, Release); // partner: Acquire in lock
}

/// A child has its parent's handles no more, so no call of it reaches what it would share with the parent: the event
/// descriptor above all. Stores only, as befits a child.
extern "C" fn leave_behind() {
    // SAFETY: locked by `lock` before the fork, so this is the only reference.
    if let Some(attached) = unsafe { &mut (*SHARED.0.get()).attached } {
        attached.forked = true;
    }
    for place in &TABLE[1..] {
        if place.handle.load(Relaxed) != 0 {
            place.handle.store(LEFT, Relaxed); // the child has one thread
        }
    }
    unlock();
}

fn with<T>(act: impl FnOnce(&mut Shared) -> T) -> T {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        // SAFETY: the functions are what pthread_atfork asks for and touch nothing but the lock and the table.
        unsafe { libc::pthread_atfork(Some(lock), Some(unlock), Some(leave_behind)) };
    });
    struct Unlock;
    impl Drop for Unlock {
        fn drop(&mut self) {
            unlock();
        }
    }
    lock();
    let _unlock = Unlock; // also on a panic
    // SAFETY: locked, so this is the only reference; what is passed in here never calls `with`.
    act(unsafe { &mut *SHARED.0.get() })
}

/// Attaches the process to the bus with this key.
pub fn attach(text: &str) -> Result<(), Code> {
    let key = bus::parse_key(text).ok_or(codes::BAD_KEY)?;
    let known = with(|shared| {
        let attached = shared.attached.as_ref()?;
        Some((!attached.forked, attached.key == key))
    });
    match known {
        Some((true, true)) => return Ok(()),
        Some((true, false)) => return Err(codes::ALREADY_INITIALIZED),
        // What a forked child has of its parent's is of no use to it.
        Some((false, _)) => detach(),
        None => {}
    }
    let bus = Bus::attach_at(Directory::path_for_key(key)).map_err(codes::told)?;
    let attached = Attached {
        bus,
        key,
        forked: false,
    };
    with(|shared| shared.attached = Some(attached));
    Ok(())
}

/// Ends all handles and the attachment.
pub fn detach() {
    for place in &TABLE[1..] {
        // Acquire: partner of the Release in open. No other thread is in a call, by the thread rules, so LEFT is of a fork.
        if place.handle.load(Acquire) != 0 {
            place.free();
        }
    }
    // Dropped outside the lock.
    drop(with(|shared| shared.attached.take()));
}

/// The bus.
pub fn bus() -> Result<Bus, Code> {
    with(|shared| match &shared.attached {
        None => Err(codes::NOT_INITIALIZED),
        Some(attached) if attached.forked => Err(codes::FORKED),
        Some(attached) => Ok(attached.bus.clone()),
    })
}

/// A new handle.
pub fn open() -> Result<c_int, Code> {
    let bus = bus()?;
    let open = Box::new(Open {
        sending: UnsafeCell::new(Sending::new(bus.clone())),
        receiving: UnsafeCell::new(Receiving::new(bus)),
    });
    with(|shared| {
        // From place to place, so that a number comes again as late as can be. Place 0 would give handle 0.
        let after = |n: usize| (shared.last + n - 1) % (PLACES - 1) + 1;
        let free = |at: &usize| TABLE[*at].handle.load(Relaxed) == 0;
        let at = (1..PLACES).map(after).find(free);
        let at = at.ok_or(codes::TOO_MANY_HANDLES)?;
        shared.last = at;
        shared.uses[at] = (shared.uses[at] + 1) % USES;
        let handle = (shared.uses[at] << INDEX_BITS) as c_int | at as c_int;
        TABLE[at].open.store(Box::into_raw(open), Relaxed); // published by the handle
        TABLE[at].handle.store(handle, Release); // partner: Acquire in find
        Ok(handle)
    })
}

/// What a handle stands for, if there is such a one.
#[inline(always)]
pub fn known(handle: c_int) -> Option<*const Open> {
    let place = &TABLE[handle as usize % PLACES];
    // Acquire: partner of the Release in open.
    let is_it = place.handle.load(Acquire) == handle;
    is_it.then(|| place.open.load(Relaxed).cast_const())
}

/// The same, or why there is none.
pub fn find(handle: c_int) -> Result<*const Open, Code> {
    known(handle).ok_or_else(no_handle)
}

#[cold]
fn no_handle() -> Code {
    bus().err().unwrap_or(codes::BAD_HANDLE)
}

/// Ends a handle; false if there is no such.
pub fn close(handle: c_int) -> bool {
    let place = &TABLE[handle as usize % PLACES];
    // AcqRel: as in open and find. Of two who end it one does.
    let taken = place.handle.compare_exchange(handle, LEFT, AcqRel, Relaxed);
    if taken.is_ok() {
        place.free();
    }
    taken.is_ok()
}

impl Place {
    /// Of one whose handle is LEFT by the caller, or by a fork.
    fn free(&self) {
        let open = self.open.swap(null_mut(), Relaxed);
        // Null if a thread was here when the process forked.
        if !open.is_null() {
            // SAFETY: made by Box::into_raw in `open`; nobody else has taken it, and no call of this handle is under
            // way, by the thread rules.
            drop(unsafe { Box::from_raw(open) });
        }
        self.handle.store(0, Release); // free: partner is Relaxed in open, behind the lock
    }
}
