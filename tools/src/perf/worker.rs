//! The second process of a measurement: does what the first one asks for, a line of standard input at a time.

use super::Result;
use super::limit::Shared;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tbus::{Directory, Receiver, Ring, Sender, TryRecvError, TrySendError, Uuid};

/// One part of a measurement, which both processes run, each its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Cache-line ping-pong of `count` rounds.
    PingPong {
        /// Rounds.
        count: u64,
    },
    /// Copies of `size` bytes.
    Copy {
        /// Copies.
        count: u64,
        /// Bytes each.
        size: usize,
    },
    /// `count` messages come and are sent back.
    Echo {
        /// Messages.
        count: u64,
        /// Payload bytes each.
        size: usize,
    },
    /// `count` messages come, are read, and the last one is acknowledged.
    Sink {
        /// Messages.
        count: u64,
        /// Payload bytes each.
        size: usize,
    },
}

impl Job {
    fn to_line(self) -> String {
        match self {
            Job::PingPong { count } => format!("ping-pong {count} 0"),
            Job::Copy { count, size } => format!("copy {count} {size}"),
            Job::Echo { count, size } => format!("echo {count} {size}"),
            Job::Sink { count, size } => format!("sink {count} {size}"),
        }
    }

    fn from_line(line: &str) -> Option<Job> {
        let mut words = line.split_whitespace();
        let (name, count, size) = (
            words.next()?,
            words.next()?.parse().ok()?,
            words.next()?.parse().ok()?,
        );
        match name {
            "ping-pong" => Some(Job::PingPong { count }),
            "copy" => Some(Job::Copy { count, size }),
            "echo" => Some(Job::Echo { count, size }),
            "sink" => Some(Job::Sink { count, size }),
            _ => None,
        }
    }
}

/// Binds this process to one processor.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .map_err(|e| format!("cannot run on processor {cpu}: {e}; name another with --cpus"))?;
    Ok(())
}

/// The other process, seen from the first one. Ends with it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this executable again as the worker. `uuids`: the ring to it, the ring from it.
    pub fn start(directory: &Path, uuids: [Uuid; 2], cpu: Option<usize>) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("worker")
            .arg(directory)
            .args(uuids.map(|u| u.to_string()));
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the worker has no pipes".into());
        };
        let mut worker = Worker {
            child,
            to,
            from: BufReader::new(from),
        };
        worker.expect("ready")?;
        Ok(worker)
    }

    /// Starts a job on the other side; run this side of it, then [`Worker::done`].
    pub fn start_job(&mut self, job: Job) -> Result<()> {
        writeln!(self.to, "{}", job.to_line())?;
        self.expect("go")
    }

    /// Waits until the other side has finished.
    pub fn done(&mut self) -> Result<()> {
        self.expect("done")
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        match line.trim() {
            word if word == wanted => Ok(()),
            "" => Err("the worker process ended early; its reason stands above".into()),
            other => Err(format!("the worker said '{other}', not '{wanted}'").into()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Killed in case it spins in a job that this side has given up.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's main: jobs until standard input ends.
pub fn run(directory: &Path, incoming: Uuid, outgoing: Uuid, cpu: Option<usize>) -> Result<()> {
    if let Some(cpu) = cpu {
        pin(cpu)?;
    }
    let shared = Shared::open(&PathBuf::from(directory).join("limit"))?;
    let directory = Directory::open(directory)?;
    let incoming = Ring::open(&directory, incoming)?;
    let outgoing = Ring::open(&directory, outgoing)?;
    incoming.prefault();
    outgoing.prefault();
    let (mut receiver, mut sender) = (incoming.receiver()?, outgoing.sender()?);
    let say = |word: &str| -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{word}")?;
        Ok(out.flush()?)
    };
    say("ready")?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let job = Job::from_line(&line).ok_or_else(|| format!("unknown job '{line}'"))?;
        say("go")?;
        match job {
            Job::PingPong { count } => {
                shared.meet(1);
                shared.ping_pong(1, 1, count);
            }
            Job::Copy { count, size } => {
                shared.meet(1);
                shared.copy(1, count, size);
            }
            Job::Echo { count, size } => {
                let payload = vec![1; size];
                for _ in 0..count {
                    take(&mut receiver)?;
                    send(&mut sender, &payload)?;
                }
            }
            Job::Sink { count, .. } => {
                for _ in 0..count {
                    take(&mut receiver)?;
                }
                send(&mut sender, &[])?;
            }
        }
        say("done")?;
    }
    Ok(())
}

/// Waits for one message by polling, reads a byte of each of its lines in place, and releases it.
#[inline(always)]
pub fn take(receiver: &mut Receiver) -> Result<u64> {
    loop {
        match receiver.peek() {
            Ok(message) => {
                // SAFETY: the sender is our own process, which does not change what it sent.
                let bytes = unsafe { message.as_slice() };
                let sum = bytes
                    .chunks(64)
                    .fold(0u64, |sum, line| sum.wrapping_add(u64::from(line[0])));
                std::hint::black_box(sum);
                message.release();
                return Ok(sum);
            }
            Err(TryRecvError::Empty) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends one message, polling while the ring is full.
#[inline(always)]
pub fn send(sender: &mut Sender, payload: &[u8]) -> Result<()> {
    loop {
        match sender.try_send(payload) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full) => {
                for _ in 0..16 {
                    std::hint::spin_loop();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
