//! `tbusperf demo`: two processes on two hosts exchange a million messages each way. Both hosts are this machine: each
//! has maps and rings of its own, and a relay that mirrors them to the other over TCP or by RDMA. Processes and relays are killed in
//! mid-stream and started again, and the parent accounts for every message.

use super::Result;
use super::audit::{Account, Audit};
use super::clock::{Clock, ticks};
use super::remote::{Between, Daemon, attach, make_certificates, make_hosts};
use super::scratch::Scratch;
use super::text::table;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tbus::grm::Transport;
use tbus::{Receiver, Sender, TryRecvError, TrySendError};

/// Messages each way after the stream, one at a time, for the latency.
const SINGLE: u64 = 1_000;
const CAPACITY: u64 = 1 << 20;
/// Bytes of a message before its filling: index, length of the filling, checksum.
const HEAD: usize = 16;
const LARGEST: usize = 16 << 10;
/// Messages sent or received in a row before the other direction's turn.
const TURN: usize = 32;
/// The whole demonstration takes less, or has failed.
const PATIENCE: Duration = Duration::from_secs(120);
const NAMES: [&str; 4] = ["process A", "the relay of B", "process B", "the relay of A"];

/// Steps of a splitmix64 generator (Sebastiano Vigna, public domain): sizes and bytes from an index.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// How many messages there are each way before the single ones.
#[derive(Clone, Copy, Debug)]
struct Stream(u64);

impl Stream {
    fn all(self) -> u64 {
        self.0 + SINGLE
    }

    /// Bytes of filling of message `index`: half are below 128, one in twenty is up to 16 KiB.
    fn filling_size(self, side: usize, index: u64) -> usize {
        if index >= self.0 {
            return 48;
        }
        let random = scramble(index ^ (side as u64) << 56);
        let up_to = match random % 20 {
            0..10 => 128,
            10..16 => 1 << 10,
            16..19 => 4 << 10,
            _ => LARGEST,
        };
        (random >> 32) as usize % up_to
    }

    /// Writes message `index` into `buffer`; returns its length.
    fn compose(self, side: usize, index: u64, buffer: &mut [u8]) -> usize {
        let size = self.filling_size(side, index);
        let (head, filling) = buffer[..HEAD + size].split_at_mut(HEAD);
        let mut state = scramble(index);
        for chunk in filling.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15).rotate_left(23);
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        head[..8].copy_from_slice(&index.to_le_bytes());
        head[8..12].copy_from_slice(&(size as u32).to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), filling);
        head[12..].copy_from_slice(&sum.to_le_bytes());
        HEAD + size
    }

    /// The index of a message from `side`, if it is whole: length, checksum and filling are those of that index.
    fn index_of(self, side: usize, message: &[u8]) -> Option<u64> {
        let (head, filling) = message.split_at_checked(HEAD)?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), filling);
        let index = u64::from_le_bytes(head[..8].try_into().ok()?);
        let size = self.filling_size(side, index);
        let sound = head[8..12] == (size as u32).to_le_bytes()
            && filling.len() == size
            && head[12..] == sum.to_le_bytes();
        sound.then_some(index)
    }
}

/// One of the two processes: attaches, goes on where its predecessor was killed, and ends when all is done.
struct Peer {
    side: usize,
    stream: Stream,
    sender: Sender,
    receiver: Receiver,
    audit: Audit,
    buffer: Vec<u8>,
    /// The sequence that the next message must have.
    expected: u64,
}

/// The body of a child process: the application on host `side`.
pub fn run_peer(directory: &Path, side: usize, messages: u64) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let stream = Stream(messages);
    let audit = Audit::open(&directory.join("audit"), stream.all() as usize)?;
    let (_bus, sender, receiver) = attach(directory, side)?;
    let expected = receiver.next().sequence;
    audit.begin_life(1 - side, expected);
    audit.sends(side, sender.next().sequence);
    let mut peer = Peer {
        side,
        stream,
        sender,
        receiver,
        audit,
        buffer: vec![0; HEAD + LARGEST],
        expected,
    };
    peer.send_stream()?;
    peer.one_at_a_time()
}

impl Peer {
    fn send_next(&mut self) -> Result<bool> {
        let index = self.sender.next().sequence;
        let length = self.stream.compose(self.side, index, &mut self.buffer);
        match self.sender.try_send(&self.buffer[..length]) {
            Ok(()) => {
                self.audit.sends(self.side, index + 1);
                Ok(true)
            }
            Err(TrySendError::Full) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive_next(&mut self) -> Result<bool> {
        let message = match self.receiver.peek() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let sequence = message.cursor().sequence;
        let copied = message.copy_to(&mut self.buffer).is_ok();
        let bytes = &self.buffer[..message.len().min(self.buffer.len())];
        // Accounted for by the index that its sender wrote into it: the ring's own count proves nothing.
        let index = self
            .stream
            .index_of(1 - self.side, bytes)
            .filter(|_| copied);
        let in_order = index == Some(self.expected) && sequence == self.expected;
        self.audit.received(
            1 - self.side,
            index.unwrap_or(u64::MAX),
            in_order,
            sequence + 1,
        );
        self.expected = sequence + 1;
        message.release();
        Ok(true)
    }

    fn sent(&self) -> u64 {
        self.sender.next().sequence
    }

    /// Both directions at once, as fast as they go.
    fn send_stream(&mut self) -> Result<()> {
        let end = self.stream.0;
        while self.sent() < end || self.expected < end {
            let mut idle = true;
            for _ in 0..TURN {
                if self.sent() >= end || !self.send_next()? {
                    break;
                }
                idle = false;
            }
            for _ in 0..TURN {
                if self.expected >= end || !self.receive_next()? {
                    break;
                }
                idle = false;
            }
            if idle {
                self.pause()?;
            }
        }
        Ok(())
    }

    /// Nothing to read and no room to write: sleeps until a message comes, or for a moment.
    fn pause(&mut self) -> Result<()> {
        match self.receiver.wait(Duration::from_millis(1)) {
            Ok(()) | Err(TryRecvError::Empty) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A sends one message, B answers it: nothing else is under way.
    fn one_at_a_time(&mut self) -> Result<()> {
        let (clock, all) = (Clock::get(), self.stream.all());
        let mut times = Histogram::<u64>::new(3)?;
        let begins = self.side == 0;
        while self.sent() < all || self.expected < all {
            let begun = ticks();
            // The one that begins owes nothing; the other one owes an answer to each message received.
            if self.sent() < all
                && (if begins {
                    self.sent() == self.expected
                } else {
                    self.sent() < self.expected
                })
            {
                while !self.send_next()? {}
            }
            let waiting_since = Instant::now();
            while self.expected < all
                && (if begins {
                    self.expected < self.sent()
                } else {
                    self.expected == self.sent()
                })
            {
                if !self.receive_next()? && waiting_since.elapsed() > Duration::from_millis(1) {
                    self.pause()?;
                }
            }
            if begins {
                times.record((clock.ns(ticks() - begun) * 5.0) as u64)?; // half a round trip, in tenths
            }
        }
        if begins {
            self.audit
                .set_latencies([0.5, 0.99, 0.999].map(|q| times.value_at_quantile(q)));
        }
        Ok(())
    }
}

/// A child process that is ended with this handle.
struct Process {
    child: Child,
}

impl Process {
    fn start(scratch: &Scratch, side: usize, stream: Stream) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo-peer").arg(scratch.directory().path());
        command.args([side.to_string(), stream.0.to_string()]);
        Ok(Process {
            child: command.stdin(Stdio::null()).spawn()?,
        })
    }

    fn kill(&mut self) -> Result<()> {
        use std::os::unix::process::ExitStatusExt;
        self.child.kill()?; // SIGKILL
        match self.child.wait()? {
            status if status.signal() == Some(9) => Ok(()),
            status => {
                Err(format!("a process ended by itself: {status}; its reason stands above").into())
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone in the usual case, when both calls do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Progress for people: a bar on a terminal, else a line a second.
struct Progress {
    bar: Option<ProgressBar>,
    /// Of both directions.
    all: u64,
    said: Instant,
    begun: Instant,
}

impl Progress {
    fn new(stream: Stream) -> Progress {
        let all = 2 * stream.all();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {percent:>3} %")
                .expect("a valid template");
            ProgressBar::new(all).with_style(style)
        });
        Progress {
            bar,
            all,
            said: Instant::now(),
            begun: Instant::now(),
        }
    }

    fn set(&mut self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.said.elapsed() >= Duration::from_secs(1) => {
                self.said = Instant::now();
                say(&format!(
                    "{:4.0} s  {:3} %",
                    self.begun.elapsed().as_secs_f64(),
                    done * 100 / self.all
                ));
            }
            None => {}
        }
    }

    /// Prints a line that stays.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A closed pipe is no reason to leave the scratch directory behind.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The demonstration. False if a message was lost, duplicated, reordered or corrupted.
pub fn run(between: &Between, messages: u64) -> Result<bool> {
    let stream = Stream(messages);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let scratch = Scratch::new("demo")?;
    say(&format!(
        "scratch directory {} ({}); removed at the end",
        scratch.directory().path().display(),
        scratch.why
    ));
    let way = match between.transport {
        Transport::Verbs => format!("RDMA between them at {}", between.addresses[0].ip()),
        Transport::Ucx => format!("UCX between them at {}", between.addresses[0].ip()),
        Transport::Tcp => "TCP between them".into(),
    };
    say(&format!(
        "two hosts, both this machine, with a relay each, {way}: process A → ring → relay → relay → ring → process B, and back"
    ));
    say(&format!(
        "{messages} messages each way, {HEAD} to {} bytes; each process and each relay is killed once and started again",
        HEAD + LARGEST - 1
    ));
    let path = scratch.directory().path().to_path_buf();
    make_hosts(&path, CAPACITY, between)?;
    make_certificates(&path, between.security)?;
    let audit = Audit::open(&scratch.join("audit"), stream.all() as usize)?;
    let begun = Instant::now();
    let relay = |host: usize| Daemon::start(&path, host, between);
    let mut relays = [relay(0)?, relay(1)?];
    let start = |side: usize| Process::start(&scratch, side, stream);
    let mut processes = [start(0)?, start(1)?];
    // Where each is killed: somewhere in the stream, elsewhere in each run.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)?
        .as_nanos() as u64;
    let kill_at = [0, 1, 2, 3].map(|n| messages * (n + 1) / 6 + scramble(now + n) % (messages / 7));
    let mut progress = Progress::new(stream);
    let mut killed = 0;
    let mut stream_time = None;
    let mut ended = [false; 2];
    while ended != [true; 2] {
        let done = [0, 1].map(|direction| audit.progress(direction));
        progress.set(done[0] + done[1]);
        if killed < NAMES.len() && done[0].min(done[1]) >= kill_at[killed] {
            let (old, new) = match killed {
                0 | 2 => {
                    let (side, process) = (killed / 2, &mut processes[killed / 2]);
                    let old = process.child.id();
                    process.kill()?;
                    *process = start(side)?;
                    (old, process.child.id())
                }
                _ => {
                    let host = usize::from(killed == 1);
                    let old = relays[host].id();
                    relays[host].kill();
                    relays[host] = relay(host)?;
                    (old, relays[host].id())
                }
            };
            let [there, back] = [0, 1].map(|direction| audit.progress(direction));
            progress.line(&format!(
                "killed {} (pid {old}) with SIGKILL at message {there} from A to B, {back} from B to A; started again as pid {new}",
                NAMES[killed]
            ));
            killed += 1;
        }
        if stream_time.is_none() && done.iter().all(|d| *d >= messages) {
            stream_time = Some(begun.elapsed());
        }
        for side in 0..2 {
            if !ended[side]
                && let Some(status) = processes[side].child.try_wait()?
            {
                if !status.success() {
                    return Err(format!(
                        "{} ended by itself: {status}; its reason stands above",
                        NAMES[2 * side]
                    )
                    .into());
                }
                ended[side] = true;
            }
        }
        if stop.load(Relaxed) {
            return Err("stopped by a signal; everything is removed".into());
        }
        if begun.elapsed() > PATIENCE {
            let why = format!(
                "no end after {} s, at messages {done:?}",
                PATIENCE.as_secs()
            );
            return Err(format!("{why}; {}", rings(&path)?).into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    if let Some(bar) = &progress.bar {
        bar.finish_and_clear();
    }
    if killed < NAMES.len() {
        return Err(
            "not all were killed in mid-stream; the machine was too busy: run it again".into(),
        );
    }
    check_transport(&relays, between)?;
    report(
        &audit,
        stream,
        stream_time.unwrap_or_else(|| begun.elapsed()),
    );
    let account = audit.account(0) + audit.account(1);
    Ok(conclude(account))
}

/// What is shown must be what is said: where RDMA fails, TCP serves.
fn check_transport(relays: &[Daemon; 2], between: &Between) -> Result<()> {
    let wanted = between.transport.name();
    for relay in relays {
        let used = relay.transport()?;
        if used.as_deref() != Some(wanted) {
            let used = used.unwrap_or("nothing".into());
            return Err(format!(
                "all messages were received, but at the end data went by {used}, not {wanted}: see what the relays say above"
            )
            .into());
        }
    }
    Ok(())
}

/// All rings of both hosts, for a report of what went wrong.
fn rings(path: &Path) -> Result<String> {
    let mut all = Vec::new();
    for host in 0..2 {
        let bus = tbus::Bus::attach_at(path.join(format!("host{host}/tbus.1")))?;
        for channel in bus.gcim().snapshot()?.channels {
            for uuid in channel.rings {
                let ring = bus.open_ring(&channel, uuid)?;
                all.push(format!(
                    "host {host}, {}: {:?}",
                    ring.kind().name(),
                    ring.status()
                ));
            }
        }
    }
    Ok(all.join("; "))
}

/// The table.
fn report(audit: &Audit, stream: Stream, time: Duration) {
    let seconds = time.as_secs_f64();
    let bytes = |side: usize| {
        (0..stream.0)
            .map(|i| (HEAD + stream.filling_size(side, i)) as u64)
            .sum::<u64>()
    };
    let mut table = table(&["stream", "messages", "messages/s", "GB/s"]);
    for (side, way) in ["A to B", "B to A"].into_iter().enumerate() {
        table.row(vec![
            way.to_string(),
            stream.0.to_string(),
            format!("{:.0}", stream.0 as f64 / seconds),
            format!("{:.2}", bytes(side) as f64 / seconds / 1e9),
        ]);
    }
    say(table.to_string().trim_end());
    let [p50, p99, p999] = audit.latencies().map(|tenths| tenths as f64 / 10.0);
    say(&format!(
        "one at a time, {} bytes, {SINGLE} there and back: one-way p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs",
        HEAD + stream.filling_size(0, stream.0),
        p50 / 1e3,
        p99 / 1e3,
        p999 / 1e3
    ));
    say(
        "(each message is composed, checksummed, sent, mirrored, copied out, and checked; the relays sleep when idle)",
    );
}

/// The last lines. True if the promises were kept.
fn conclude(account: Account) -> bool {
    let Account {
        lost,
        reread,
        duplicated,
        reordered,
        corrupt,
    } = account;
    if corrupt != 0 {
        say(&format!("corrupt {corrupt}"));
    }
    say(&format!("re-read {reread}"));
    say(&format!(
        "lost {lost} duplicated {duplicated} reordered {reordered}"
    ));
    Account {
        reread: 0,
        ..account
    } == Account::default()
        && reread <= 2
}
