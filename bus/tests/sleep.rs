//! Ten million sleeps and wake-ups between two processes, and none is lost.
//!
//! A lost wake-up would not hang: every sleep ends after 100 ms. It would show as a sleep that ran to its end
//! although the message was there and nobody had woken the sleeper, which the rings count as `overslept`.
//!
//! `TBUS_SLEEPS=N` sets how many sleeps; debug builds do a fiftieth. On a machine that takes long to wake another
//! processor (some virtual ones take ten times as long as others) the test ends after [`ENOUGH`], and says how many
//! there were.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tbus::{Address, Directory, Receiver, Ring, RingSpec, Sender};

const SLEEPS: &str = "TBUS_SLEEPS";
/// Set in the other process: whether to aim, the two rings, and their directory.
const ECHO: &str = "TBUS_TEST_ECHO";
/// Far longer than any sleep: when it has passed, the other process is gone.
const LONG: Duration = Duration::from_secs(20);
/// No test goes on for longer, however few sleeps there were.
const ENOUGH: Duration = Duration::from_secs(60);
/// How many pairs of processes play at once.
const PAIRS: u64 = 4;
/// The number after which the other process ends.
const STOP: u64 = u64::MAX;

/// The tests of this file would disturb each other.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn no_wake_up_is_lost() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Several pairs keep the processors awake: waking an idle one takes most of the time of a single pair.
    thread::scope(|scope| {
        for _ in 0..PAIRS {
            scope.spawn(|| ping_pong(sleeps_to_do() / PAIRS, false));
        }
    });
}

/// The same where processes cannot register for membarrier and fence for every message. That is settled once
/// per process, so this one starts another.
#[test]
fn no_wake_up_is_lost_with_fences() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let status = this_test("no_wake_up_is_lost")
        .env("TBUS_FENCE", "1")
        .env(SLEEPS, (sleeps_to_do() / 10).to_string())
        .status();
    assert!(status.unwrap().success());
}

/// Few of the messages above meet a receiver that is just going to sleep, which is where a wake-up could be lost.
/// Here every other one is aimed at that moment.
#[test]
fn no_wake_up_is_lost_on_the_way_to_sleep() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sleeps = sleeps_to_do() / 20;
    // A thread of its own, for it will stay on one processor.
    let pinned = thread::spawn(move || ping_pong(sleeps, true));
    pinned.join().unwrap();
}

fn sleeps_to_do() -> u64 {
    let default = if cfg!(debug_assertions) {
        200_000
    } else {
        10_000_000
    };
    std::env::var(SLEEPS).map_or(default, |text| text.parse().expect("a number"))
}

fn this_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// Sends a number, waits for its echo, and so on, until both sides together have slept `sleeps` times.
fn ping_pong(sleeps: u64, aim: bool) {
    let scratch = Scratch::new();
    let directory = Directory::create(&scratch.0).unwrap();
    let [ping, pong] = [0, 1].map(|lock_slot| {
        let spec = RingSpec::local(4096, Address(1), Address(2));
        Ring::create(&directory, &RingSpec { lock_slot, ..spec }).unwrap()
    });
    let (ping_id, pong_id, path) = (ping.uuid(), pong.uuid(), scratch.0.display());
    let text = format!("{aim} {ping_id} {pong_id} {path}");
    let mut echo = Running(this_test("echo").env(ECHO, text).spawn().unwrap());
    let mut side = Side::new(&ping, &pong, aim.then(|| Aim::from(|all| all.min())));

    let begun = Instant::now();
    let slept = || ping.status().consumer.sleeps + pong.status().consumer.sleeps;
    let mut rounds = 0;
    while slept() < sleeps && begun.elapsed() < ENOUGH {
        for _ in 0..256 {
            side.say(rounds);
            assert_eq!(side.hear(), rounds, "the echo of round {rounds}");
            rounds += 1;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    side.say(STOP);
    assert!(echo.0.wait().unwrap().success());

    let fences = std::env::var("TBUS_FENCE").is_ok_and(|value| value == "1");
    let slept = slept();
    println!("{slept} sleeps, {rounds} rounds, {seconds:.1} s; aimed: {aim}, fences: {fences}");
    for (name, ring) in [("ping", &ping), ("pong", &pong)] {
        let status = ring.status();
        assert_eq!(status.tail, status.released, "{name}: what was received");
        assert_eq!(status.consumer.overslept, 0, "{name}: lost wake-ups");
        assert_eq!(status.producer.fences, fences, "{name}");
        assert_eq!(status.consumer.fences, fences, "{name}");
    }
}

/// The other process; as a test of its own it does nothing.
#[test]
fn echo() {
    let Ok(text) = std::env::var(ECHO) else {
        return;
    };
    let words: Vec<_> = text.splitn(4, ' ').collect();
    let directory = Directory::open(words[3]).unwrap();
    let open = |uuid: &str| Ring::open(&directory, uuid.parse().unwrap()).unwrap();
    let aim = (words[0] == "true").then(|| Aim::from(|all| all.max()));
    let mut side = Side::new(&open(words[2]), &open(words[1]), aim);
    loop {
        match side.hear() {
            STOP => break,
            number => side.say(number),
        }
    }
}

/// One process's ends of the two rings. It goes to sleep as soon as it can.
struct Side {
    sender: Sender,
    receiver: Receiver,
    aim: Option<Aim>,
}

impl Side {
    fn new(to: &Ring, from: &Ring, aim: Option<Aim>) -> Side {
        let (sender, mut receiver) = (to.sender().unwrap(), from.receiver().unwrap());
        receiver.set_spin(Duration::ZERO);
        Side {
            sender,
            receiver,
            aim,
        }
    }

    /// Sends `number`; with an aim twice: the first message wakes the receiver, the second one is to come when it
    /// goes to sleep again.
    fn say(&mut self, number: u64) {
        self.sender.try_send(&number.to_le_bytes()).unwrap();
        if let Some(aim) = &mut self.aim {
            let (begun, pause) = (Instant::now(), aim.next(&self.sender));
            while begun.elapsed() < pause {}
            self.sender.try_send(&number.to_le_bytes()).unwrap();
        }
    }

    /// Receives what the other side said.
    fn hear(&mut self) -> u64 {
        let number = receive(&mut self.receiver);
        if self.aim.is_some() {
            assert_eq!(receive(&mut self.receiver), number);
        }
        number
    }
}

fn receive(receiver: &mut Receiver) -> u64 {
    receiver.wait(LONG).expect("the other process sends");
    let mut bytes = [0; 8];
    assert_eq!(receiver.try_recv(&mut bytes).unwrap(), 8);
    u64::from_le_bytes(bytes)
}

/// Finds the pause after which the receiver has just gone to sleep again, whatever the machine, by watching
/// whether it did.
struct Aim {
    nanoseconds: u64,
    slept: u64,
    random: u64,
}

impl Aim {
    /// Keeps this thread on the one processor that `choose` picks. The two processes have to run at once.
    fn from(choose: impl FnOnce(&mut dyn Iterator<Item = usize>) -> Option<usize>) -> Aim {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mut all = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap());
        let mut one = CpuSet::new();
        one.set(choose(&mut all).unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        Aim {
            nanoseconds: 5_000,
            slept: 0,
            random: 1,
        }
    }

    fn next(&mut self, sender: &Sender) -> Duration {
        let slept = sender.ring().status().consumer.sleeps;
        // Two sleeps since the last time: the last pause was too long.
        if slept - self.slept < 2 {
            // A limit, for on a busy machine the receiver may come late however long this waits.
            self.nanoseconds = (self.nanoseconds + 50).min(20_000);
        } else {
            self.nanoseconds = self.nanoseconds.saturating_sub(50);
        }
        self.slept = slept;
        // Knuth's generator of MMIX; up to a microsecond.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Duration::from_nanos(self.nanoseconds + (self.random >> 54))
    }
}

/// Removes the directory when the test ends, however it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("tbus-test-sleep-{process}-{number}");
        Scratch(Directory::path_for_key(0).with_file_name(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ends the process when the test ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
