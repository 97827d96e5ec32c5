//! Crash at every instruction: a child process is stepped through the library one instruction at a time, and
//! after each of them the memory image that a kill at this point would leave must recover to a legal state.
//!
//! The child creates a ring, attaches, sends in all variants, receives in all variants, attaches again and
//! closes. It says what it is about to do, and what it has done, in a page of its own; so for every image
//!
//! * every message that was accepted is there or was released, whole and in order,
//! * no message is there that was not being sent,
//! * no message is missing that was not being released,
//! * both ends attach, and a message sent after the recovery arrives.
//!
//! `TBUS_CRASH_POINTS` is the number of points (default 800,000), `TBUS_CRASH_SEED` the first scenario; a failure
//! prints the scenario that reproduces it.

use crate::stepping::{Scratch, only_test, step_through};
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tbus::{
    Address, Cursor, Directory, Extensions, Kind, Ring, RingSpec, TryRecvError, TrySendError, Uuid,
};

mod stepping;

const CAPACITY: u64 = 4096;
/// Lives of the child's handles, steps in each, and the most messages that they can send.
const LIVES: u64 = 2;
const STEPS: u64 = 100;
const MOST_MESSAGES: u64 = LIVES * STEPS * 6;

/// What the child says about itself: sequences up to which it …
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// … has begun to send,
    sending: u64,
    /// … knows messages accepted,
    accepted: u64,
    /// … has begun to release,
    releasing: u64,
    /// … knows messages released.
    released: u64,
}

/// [`Progress`] in a file, written by the child and read by the parent while the child is stopped.
struct ProgressFile(File);

impl ProgressFile {
    fn set(&self, progress: Progress) {
        let Progress {
            sending,
            accepted,
            releasing,
            released,
        } = progress;
        let mut bytes = [0; 32];
        for (to, word) in bytes
            .chunks_exact_mut(8)
            .zip([sending, accepted, releasing, released])
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.0.write_all_at(&bytes, 0).expect("progress is written");
    }

    fn get(&self) -> Progress {
        let mut bytes = [0; 32];
        self.0
            .read_exact_at(&mut bytes, 0)
            .expect("progress is read");
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..][..8].try_into().unwrap());
        Progress {
            sending: word(0),
            accepted: word(1),
            releasing: word(2),
            released: word(3),
        }
    }
}

/// One run of the child.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    seed: u64,
}

fn scramble(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl Scenario {
    /// Where positions and sequences start: every offset in the ring, near the end of the first lap or of a later one.
    fn start(&self) -> Cursor {
        let position =
            scramble(self.seed + 2) % (CAPACITY / 8) * 8 + (scramble(self.seed) % 3) * CAPACITY;
        Cursor {
            position,
            sequence: scramble(self.seed + 1) % 5,
        }
    }

    /// The payload of the message with this sequence; any length, small ones most often.
    fn payload(&self, sequence: u64) -> Vec<u8> {
        let random = scramble(self.seed << 20 ^ sequence);
        let length = match random % 16 {
            0..12 => (random >> 8) % 100,
            12..15 => (random >> 8) % 600,
            _ => (random >> 8) % (CAPACITY / 2 + 1),
        };
        (0..length)
            .map(|i| scramble(random ^ i) as u8 | 1)
            .collect()
    }

    /// What the child does. Every call that stores into the ring is between two notes of progress. `payloads`
    /// are those of the first messages: made before, so that few points lie outside the library.
    fn run(&self, directory: &Path, payloads: &[Vec<u8>], note: impl Fn(Progress)) {
        let mut buffer = [0; CAPACITY as usize];
        let payloads = |from: u64, count: u64| {
            let from = (from - self.start().sequence) as usize;
            &payloads[from..from + count as usize]
        };
        let directory = Directory::open(directory).unwrap();
        let start = self.start();
        let ring = Ring::create(
            &directory,
            &RingSpec {
                start,
                ..RingSpec::local(CAPACITY, Address(1), Address(2))
            },
        );
        let uuid = ring.unwrap().uuid();
        let mut at = Progress {
            sending: start.sequence,
            accepted: start.sequence,
            releasing: start.sequence,
            released: start.sequence,
        };
        for life in 0..LIVES {
            let ring = Ring::open(&directory, uuid).unwrap();
            let mut sender = ring.sender().unwrap();
            let mut receiver = ring.receiver().unwrap();
            assert_eq!(
                (sender.next().sequence, receiver.next().sequence),
                (at.accepted, at.released)
            );
            for step in 0..STEPS {
                let random = scramble(self.seed ^ life << 32 ^ step << 40);
                sender.set_extensions(Extensions {
                    timestamp: random & 8 != 0,
                    trace_id: false,
                    crc: random & 24 == 24,
                });
                let count = if random % 8 == 7 {
                    1 + (random >> 8) % 6
                } else {
                    1
                };
                let messages = payloads(at.accepted, count);
                let payload = &messages[0];
                at.sending = at.accepted + count;
                note(at);
                let result = match random % 8 {
                    0 | 1 => sender.try_send(payload).map(|()| 1),
                    2 => {
                        let (a, b) = payload.split_at(payload.len() / 3);
                        sender
                            .try_send_vectored(&[
                                IoSlice::new(a),
                                IoSlice::new(&[]),
                                IoSlice::new(b),
                            ])
                            .map(|()| 1)
                    }
                    3 => sender.reserve(payload.len()).map(|mut room| {
                        room.write_at(0, payload);
                        room.commit();
                        1
                    }),
                    4 => sender
                        .reserve((payload.len() + 9).min(CAPACITY as usize / 2))
                        .map(|mut room| {
                            room.write_at(0, payload);
                            room.commit_first(payload.len());
                            1
                        }),
                    5 => sender.reserve(payload.len()).map(|mut room| {
                        room.write_at(0, payload); // and given up
                        0
                    }),
                    _ => sender.send_batch(messages),
                };
                at.accepted += match result {
                    Ok(accepted) => accepted as u64,
                    Err(TrySendError::Full) => 0,
                    Err(error) => panic!("{error}"),
                };
                at.sending = at.accepted;
                note(at);
                if random >> 16 & 3 == 0 {
                    continue; // lets messages pile up
                }
                let available = at.accepted - at.released;
                let count = match random >> 20 & 3 {
                    0 => available.min(3),
                    _ => available.min(1),
                };
                at.releasing = at.released + count;
                note(at);
                match random >> 22 & 3 {
                    _ if count > 1 => {
                        let mut batch = receiver.recv_batch(count as usize);
                        for sequence in at.released..at.releasing {
                            assert_eq!(batch.next().unwrap().cursor().sequence, sequence);
                        }
                    }
                    0 | 1 if count == 1 => {
                        let length = receiver.try_recv(&mut buffer).unwrap();
                        assert_eq!(buffer[..length], payloads(at.released, 1)[0]);
                    }
                    _ if count == 1 => receiver.peek().unwrap().release(),
                    _ => assert!(matches!(
                        receiver.try_recv(&mut buffer),
                        Err(TryRecvError::Empty)
                    )),
                }
                at.released = at.releasing;
                note(at);
            }
        }
        let ring = Ring::open(&directory, uuid).unwrap();
        ring.close(Duration::ZERO).unwrap();
    }
}

/// Recovers an image in a directory of its own and checks it. `sender_first`: the order of the attaches.
struct Checker {
    directory: Directory,
    uuid: Option<Uuid>,
    images: u64,
}

impl Checker {
    fn check(
        &mut self,
        scenario: Scenario,
        uuid: Uuid,
        image: &[u8],
        progress: Progress,
    ) -> Result<(), String> {
        let path = self.directory.ring_path(uuid);
        if let Some(old) = self.uuid.replace(uuid).filter(|old| *old != uuid) {
            std::fs::remove_file(self.directory.ring_path(old)).map_err(|e| e.to_string())?;
        }
        for sender_first in [false, true] {
            std::fs::write(&path, image).map_err(|e| e.to_string())?;
            self.recover(scenario, uuid, progress, sender_first)
                .map_err(|why| format!("{why} (sender first: {sender_first}, {progress:?})"))?;
        }
        self.images += 1;
        Ok(())
    }

    fn recover(
        &self,
        scenario: Scenario,
        uuid: Uuid,
        progress: Progress,
        sender_first: bool,
    ) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let ring = Ring::open(&self.directory, uuid).map_err(|e| text(&e))?;
        if ring.kind() != Kind::Local {
            return Err(format!("kind {:?}", ring.kind()));
        }
        let closed = ring.status().closed;
        let mut sender = None;
        let attach = || match ring.sender() {
            Ok(sender) => Ok(Some(sender)),
            Err(tbus::Error::Closed { .. }) if closed => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        // A sender that comes back first fills the ring to the brim: what was not released must not be overwritten.
        let mut fillers = u64::MAX..u64::MAX;
        if sender_first {
            sender = attach()?;
            if let Some(sender) = &mut sender {
                fillers = sender.next().sequence..u64::MAX;
                loop {
                    fillers.end = sender.next().sequence;
                    match sender.try_send(&fillers.end.to_le_bytes()) {
                        Ok(()) => {}
                        Err(TrySendError::Full) => break,
                        Err(error) => return Err(text(&error)),
                    }
                }
            }
        }
        let mut receiver = ring.receiver().map_err(|e| text(&e))?;
        let first = receiver.next().sequence;
        if !(progress.released..=progress.releasing).contains(&first) {
            return Err(format!("the first message is {first}"));
        }
        let mut buffer = [0; CAPACITY as usize];
        let mut receive = |receiver: &mut tbus::Receiver| match receiver.try_recv(&mut buffer) {
            Ok(length) => Ok(Some(buffer[..length].to_vec())),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Closed) if closed => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        while let Some(payload) = receive(&mut receiver)? {
            let sequence = receiver.next().sequence - 1;
            let expected = match fillers.contains(&sequence) {
                true => sequence.to_le_bytes().to_vec(),
                false => scenario.payload(sequence),
            };
            if payload != expected {
                return Err(format!(
                    "message {sequence} has {} other bytes",
                    payload.len()
                ));
            }
        }
        if sender.is_some() && receiver.next().sequence != fillers.end {
            return Err(format!(
                "messages {fillers:?} were sent after it, {:?} is next",
                receiver.next()
            ));
        }
        let end = receiver.next().sequence.min(fillers.start);
        if !(progress.accepted..=progress.sending).contains(&end) {
            return Err(format!("the last message is {end}"));
        }
        if !sender_first {
            sender = attach()?;
        }
        if let Some(sender) = &mut sender {
            if sender.next() != receiver.next() {
                return Err(format!(
                    "the sender is at {:?}, the receiver at {:?}",
                    sender.next(),
                    receiver.next()
                ));
            }
            let probe = scenario.payload(end + 1000);
            sender.try_send(&probe).map_err(|e| text(&e))?;
            match receive(&mut receiver)? {
                Some(payload) if payload == probe => {}
                other => {
                    return Err(format!(
                        "a message sent after the recovery came as {other:?}"
                    ));
                }
            }
        } else {
            ring.close(Duration::ZERO).map_err(|e| text(&e))?;
            if !matches!(receiver.peek(), Err(TryRecvError::Closed)) {
                return Err("a closed and drained ring does not say Closed".into());
            }
        }
        Ok(())
    }
}

/// Steps one child through its scenario. Returns the number of points.
fn trace(scenario: Scenario, checker: &mut Checker, base: &Path) -> Result<u64, String> {
    let scratch = Scratch(base.join(format!("run-{}", scenario.seed)));
    let directory = Directory::create(&scratch.0).map_err(|e| e.to_string())?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(scratch.0.join("progress"));
    let progress = ProgressFile(file.map_err(|e| e.to_string())?);
    progress.set(Progress::default());
    let start = scenario.start().sequence;
    let payloads: Vec<_> = (start..start + MOST_MESSAGES)
        .map(|sequence| scenario.payload(sequence))
        .collect();
    let mut ring: Option<(Uuid, File)> = None;
    let mut image = Vec::new();
    let mut last = None;
    let points = step_through(
        || scenario.run(&scratch.0, &payloads, |at| progress.set(at)),
        || {
            if ring.is_none() {
                // Being created: either nothing is there, or a ring that works.
                let Some(uuid) = directory.rings().map_err(|e| e.to_string())?.pop() else {
                    return Ok(());
                };
                let file = File::open(directory.ring_path(uuid)).map_err(|e| e.to_string())?;
                image = vec![0; file.metadata().map_err(|e| e.to_string())?.len() as usize];
                ring = Some((uuid, file));
            }
            let Some((uuid, file)) = &ring else {
                return Ok(());
            };
            let mut now = progress.get();
            if now == Progress::default() {
                now = Progress {
                    sending: start,
                    accepted: start,
                    releasing: start,
                    released: start,
                };
            }
            // Unchanged memory recovers as it did one instruction before.
            let mut bytes = vec![0; image.len()];
            file.read_exact_at(&mut bytes, 0)
                .map_err(|e| e.to_string())?;
            if last.replace(now) != Some(now) || bytes != image {
                image = bytes;
                checker.check(scenario, *uuid, &image, now)?;
            }
            Ok(())
        },
    )?;
    if ring.is_none() {
        return Err("the child made no ring".into());
    }
    Ok(points)
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}

fn main() {
    only_test("crash_at_every_instruction", || {
        let wanted = from_environment("TBUS_CRASH_POINTS").unwrap_or(800_000);
        let first = from_environment("TBUS_CRASH_SEED").unwrap_or(0);
        let scratch = Scratch::new("crash-points");
        let mut checker = Checker {
            directory: Directory::create(&scratch.0).map_err(|e| e.to_string())?,
            uuid: None,
            images: 0,
        };
        let begun = Instant::now();
        let (mut points, mut seed) = (0, first);
        while points < wanted {
            points += trace(Scenario { seed }, &mut checker, &scratch.0).map_err(|why| {
                format!("{why}\nreproduce: TBUS_CRASH_SEED={seed} TBUS_CRASH_POINTS=1 cargo test --release -p tbus --test crash_points")
            })?;
            seed += 1;
        }
        Ok(format!(
            "{points} points in {} scenarios, {} different images recovered twice each, {:.0} s",
            seed - first,
            checker.images,
            begun.elapsed().as_secs_f64()
        ))
    });
}
