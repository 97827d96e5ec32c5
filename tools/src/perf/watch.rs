//! Ends a measurement that would otherwise poll for ever or leave something behind: on a signal, and when the second
//! process is gone.

use super::Result;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the watching thread looks at.
struct Watched {
    /// The second process while it should live.
    worker: Option<u32>,
    /// Files and directories to be removed.
    leftovers: Vec<PathBuf>,
}

static WATCHED: Mutex<Watched> = Mutex::new(Watched {
    worker: None,
    leftovers: Vec::new(),
});

fn watched() -> MutexGuard<'static, Watched> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread. It sleeps in a system call, so it does not disturb what is measured; to be called before this
/// process is pinned, so that it may run anywhere.
pub fn start() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD])?;
    std::thread::Builder::new()
        .name("watch".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal != SIGCHLD {
                    stop("stopped by a signal");
                }
                let watched = watched();
                if let Some(worker) = watched.worker
                    && let Some(how) = ended(worker)
                {
                    drop(watched);
                    stop(&format!(
                        "the second process (pid {worker}) ended by itself: {how}; if it told a reason, it stands above"
                    ));
                }
            }
        })?;
    Ok(())
}

/// Says which process must live from now on, or that none must.
pub fn worker(pid: Option<u32>) {
    watched().worker = pid;
}

/// Has a file or directory removed if the measurement is stopped.
pub fn remove_if_stopped(path: &Path) {
    watched().leftovers.push(path.to_path_buf());
}

/// The file is to stay.
pub fn keep(path: &Path) {
    watched().leftovers.retain(|p| p != path);
}

/// How a child ended, if it did; it stays to be waited for.
fn ended(child: u32) -> Option<String> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(Pid::from_raw(child as i32)), flags) {
        Ok(WaitStatus::Exited(_, status)) => Some(format!("exit status {status}")),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("killed by {signal}")),
        _ => None,
    }
}

/// Ends this process, and by the death of its parent the second one.
fn stop(why: &str) -> ! {
    let watched = watched();
    for path in &watched.leftovers {
        let _ = if path.is_dir() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        };
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K"); // over the progress bar
    }
    eprintln!("tbusperf: {why}; nothing is left behind");
    std::process::exit(7)
}
