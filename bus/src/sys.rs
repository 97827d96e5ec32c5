//! System calls that no library in use wraps: futexes between processes and membarrier.

use crate::sync::AtomicU32;
use core::time::Duration;

/// Sleeps while `*word == value`, at most `timeout`. Returns on wake-up, time-out, signal or a changed value;
/// true on time-out.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) -> bool {
    let time = timespec(timeout);
    // SAFETY: word and time are valid for the call; the kernel reads the word atomically. Not FUTEX_PRIVATE:
    // the other side is another process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const time,
        )
    };
    result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT)
}

/// Wakes everybody who sleeps on `word`.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE uses the address as a name only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// The most words that [`futex_wait_any`] takes.
pub(crate) const FUTEX_WAIT_ANY_MAX: usize = 128;

/// Sleeps while every word still has its value, at most `timeout`. False if the kernel (before 5.16) cannot.
pub(crate) fn futex_wait_any(words: &[(&AtomicU32, u32)], timeout: Duration) -> bool {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    const FUTEX2_SIZE_U32: u32 = 2;
    let mut waiters = [Waiter {
        value: 0,
        address: 0,
        flags: FUTEX2_SIZE_U32,
        reserved: 0,
    }; FUTEX_WAIT_ANY_MAX];
    let count = words.len().min(FUTEX_WAIT_ANY_MAX);
    for (waiter, (word, value)) in waiters.iter_mut().zip(words) {
        waiter.value = u64::from(*value);
        waiter.address = word.as_ptr() as u64;
    }
    let mut now = timespec(Duration::ZERO);
    // SAFETY: now is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let end = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + timeout;
    let end = timespec(end);
    // SAFETY: waiters has at least `count` entries whose addresses are live words; end is valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            count,
            0,
            &raw const end,
            libc::CLOCK_MONOTONIC,
        )
    };
    result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(duration.subsec_nanos() as i32),
    }
}

/// Registers this process for [`membarrier`]s of others. False if the kernel refuses.
pub(crate) fn membarrier_register() -> bool {
    // SAFETY: takes no pointers.
    unsafe {
        libc::syscall(
            libc::SYS_membarrier,
            libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,
            0,
            0,
        ) == 0
    }
}

/// A full barrier on every processor that runs a registered process. False if the kernel refuses.
pub(crate) fn membarrier() -> bool {
    // SAFETY: takes no pointers.
    unsafe {
        libc::syscall(
            libc::SYS_membarrier,
            libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED,
            0,
            0,
        ) == 0
    }
}

/// A new eventfd with count 0, closed on exec; reading does not block.
pub(crate) fn eventfd() -> std::io::Result<std::fs::File> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    use std::os::fd::FromRawFd;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// Runs `act` with all signals blocked, which a thread started meanwhile inherits.
pub(crate) fn without_signals<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: a set of signals is plain numbers; both are valid for the calls.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = act();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}

/// Fills `bytes` with random bytes from the kernel.
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        // SAFETY: the range is valid for writing.
        let n =
            unsafe { libc::getrandom(bytes[done..].as_mut_ptr().cast(), bytes.len() - done, 0) };
        match n {
            n if n > 0 => done += n as usize,
            _ => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
