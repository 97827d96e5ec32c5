//! Steps a child process through a piece of code, one instruction at a time.

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

#[path = "../scratch/mod.rs"]
mod scratch;
pub use scratch::Scratch;

/// A child that is ended with this handle.
struct Reaped(Pid);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Runs `body` in a forked child and calls `look` after each of its instructions, while the child is stopped.
/// Returns the number of instructions. This process must have one thread.
pub fn step_through(
    body: impl FnOnce(),
    mut look: impl FnMut() -> Result<(), String>,
) -> Result<u64, String> {
    // SAFETY: this process has one thread.
    let child = match unsafe { fork() }.map_err(|e| e.to_string())? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            ptrace::traceme().expect("the parent may trace");
            raise(Signal::SIGSTOP).expect("the child stops itself");
            body();
            std::process::abort(); // SIGABRT tells the parent that the body is over
        }
    };
    let _reaped = Reaped(child);
    wait_for_stop(child)?;
    for point in 1.. {
        ptrace::step(child, None).map_err(|e| e.to_string())?;
        match wait_for_stop(child)? {
            Signal::SIGTRAP => look().map_err(|why| format!("at point {point}: {why}"))?,
            Signal::SIGABRT => return Ok(point),
            signal => return Err(format!("the child got {signal}")),
        }
    }
    unreachable!("the loop ends with the child")
}

fn wait_for_stop(child: Pid) -> Result<Signal, String> {
    match waitpid(child, None).map_err(|e| e.to_string())? {
        WaitStatus::Stopped(_, signal) => Ok(signal),
        status => Err(format!("the child ended: {status:?}")),
    }
}

/// Runs `test` as the only test of this executable, with the output that cargo's own tests have: `Ok` says what it
/// did, `Err` what failed and how to reproduce it.
pub fn only_test(name: &str, test: impl FnOnce() -> Result<String, String>) {
    if std::env::args().any(|a| a == "--list") {
        println!("{name}: test"); // what cargo's test runners ask for
        return;
    }
    println!("running 1 test");
    match test() {
        Ok(done) => {
            println!("test {name} ... ok ({done})");
            println!(
                "\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"
            );
        }
        Err(why) => {
            println!("test {name} ... FAILED\n{why}");
            println!(
                "\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"
            );
            std::process::exit(101);
        }
    }
}
