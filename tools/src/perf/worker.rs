//! The second process of a measurement: does what the first one asks for, a line of standard input at a time.

use super::channel;
use super::limit::Shared;
use super::watch;
use super::{Failure, Result};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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
    /// `count` pieces come over the bare connection and are sent back.
    RawEcho {
        /// Pieces.
        count: u64,
        /// Bytes each.
        size: usize,
    },
    /// `count` pieces come over the bare connection, and a byte acknowledges the last one.
    RawSink {
        /// Pieces.
        count: u64,
        /// Bytes each.
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
            Job::RawEcho { count, size } => format!("raw-echo {count} {size}"),
            Job::RawSink { count, size } => format!("raw-sink {count} {size}"),
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
            "raw-echo" => Some(Job::RawEcho { count, size }),
            "raw-sink" => Some(Job::RawSink { count, size }),
            _ => None,
        }
    }
}

/// Binds this process to one processor.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).map_err(|_| refused_cpu(cpu))?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .map_err(|_| refused_cpu(cpu))?;
    Ok(())
}

/// The processors that this process may use.
pub fn usable_cpus() -> Vec<usize> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok();
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| allowed.is_some_and(|a| a.is_set(*cpu).unwrap_or(false)))
        .collect()
}

fn refused_cpu(cpu: usize) -> Failure {
    Failure::Usage(format!(
        "--cpus: this process may not run on processor {cpu}; it may on {:?}",
        usable_cpus()
    ))
}

/// The other process, seen from the first one. Ends with it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this executable again as the worker. `channel`: what its end of the channel takes to be opened.
    pub fn start(directory: &Path, channel: &[String], cpu: Option<usize>) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").arg(directory).args(channel);
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start the second process: {e}"))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the worker has no pipes".into());
        };
        watch::worker(Some(child.id()));
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
        watch::worker(None);
        // Killed in case it spins in a job that this side has given up.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's main: jobs until standard input ends.
pub fn run(directory: &Path, channel: &[String], cpu: Option<usize>) -> Result<()> {
    // It polls, and would do so for ever if the first process was killed.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if let Some(cpu) = cpu {
        pin(cpu)?;
    }
    let shared = Shared::open(&directory.join("limit"))?;
    let mut end = channel::open_second(directory, channel)?;
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
                end.connect()?;
                let payload = vec![1; size];
                for _ in 0..count {
                    // Of several that have come together the answers go out together.
                    match end.take()? {
                        true => end.send_now(&payload)?,
                        false => end.send(&payload)?,
                    }
                }
                end.settle();
            }
            Job::Sink { count, .. } => {
                end.connect()?;
                for _ in 0..count {
                    end.take()?;
                }
                end.send(&[])?;
                end.settle();
            }
            Job::RawEcho { count, size } => {
                let mut bytes = vec![0; size];
                let raw = end.raw.as_mut().ok_or("there is no bare connection")?;
                for _ in 0..count {
                    raw.take(&mut bytes)?;
                    raw.send(&bytes)?;
                }
            }
            Job::RawSink { count, size } => {
                let mut bytes = vec![0; size];
                let raw = end.raw.as_mut().ok_or("there is no bare connection")?;
                for _ in 0..count {
                    raw.take(&mut bytes)?;
                }
                raw.send(&[1])?;
            }
        }
        say("done")?;
    }
    Ok(())
}
