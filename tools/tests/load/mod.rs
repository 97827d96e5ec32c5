//! Load on two hosts, and its accounts: a `tbusd` and two applications on each, all of them processes of their own.
//!
//! On each host one application sends on all channels and one receives. In a page that all share they note how far they
//! know themselves to be. The next sender must be at least where the last one knew messages accepted; the next receiver
//! must go on with the message after the last one noted, or with that one again if it had not been released. Sequences
//! are those of the rings, so what is lost, repeated or reordered anywhere shows as another number or other bytes.
//!
//! A test that uses this has a test `child_process` that calls [`application`].

#![allow(dead_code)]

use crate::hosts::*;
use memmap2::MmapRaw;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tbus::{Bus, Extensions, FairReceiver, Sender, TryRecvError, TrySendError};

/// Of the channels; each has a ring either way.
pub const SIZES: [(u64, &str); 6] = [
    (8192, "delivered"),
    (8192, "consumed"),
    (1 << 18, "delivered"),
    (1 << 18, "consumed"),
    (1 << 20, "delivered"),
    (1 << 20, "consumed"),
];
pub const CHANNELS: usize = SIZES.len();
pub const RINGS: usize = 2 * CHANNELS;
/// The longest batch that a sender may have committed and not noted.
const BATCH: u64 = 8;

const ROLE: &str = "TBUS_RELAYS_TEST_ROLE";
const PLACE: &str = "TBUS_RELAYS_TEST_PLACE";

/// Microseconds that a sender sleeps after each round over its channels.
const PAUSE: &str = "TBUS_RELAYS_TEST_PAUSE";

/// What each ring has in the shared page.
#[derive(Clone, Copy)]
pub enum Word {
    /// Messages that the sender knows accepted.
    Accepted,
    /// Messages that the receiver has seen.
    Noted,
    /// Messages that a receiver saw again.
    Reread,
    /// Messages that are to be sent in all.
    Limit,
}

pub struct Page(MmapRaw);

impl Page {
    fn open(directory: &Path) -> Page {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(directory.join("page")).unwrap();
        file.set_len(4096).unwrap();
        Page(MmapRaw::map_raw(&file).unwrap())
    }

    /// A word of the ring of `channel` that leads away from `host`.
    pub fn word(&self, host: usize, channel: usize, word: Word) -> &AtomicU64 {
        self.at(8 * (host * CHANNELS + channel) + word as usize)
    }

    /// Senders end when it is not 0, receivers when it is 2.
    pub fn stop(&self) -> &AtomicU64 {
        self.at(511)
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < 512);
        // SAFETY: inside the page, aligned, accessed as an atomic only.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().add(8 * index).cast()) }
    }

    /// How far all rings are.
    pub fn all(&self, word: Word) -> Vec<u64> {
        (0..RINGS)
            .map(|ring| {
                self.word(ring / CHANNELS, ring % CHANNELS, word)
                    .load(SeqCst)
            })
            .collect()
    }
}

/// Sends one message or a few, in one of all ways.
fn send_some(
    sender: &mut Sender,
    ring: u64,
    limit: u64,
    messages: &mut [Vec<u8>],
) -> Result<(), TrySendError> {
    let next = sender.next().sequence;
    let count = match next % 7 {
        0 => BATCH.min(limit - next) as usize,
        _ => 1,
    };
    for (sequence, message) in (next..).zip(&mut messages[..count]) {
        payload(ring, sequence, sender.max_len(), message);
    }
    match next % 7 {
        0 => sender.send_batch(&messages[..count]).map(drop),
        1 => sender.reserve(messages[0].len()).map(|mut room| {
            room.write_at(0, &messages[0]);
            room.commit();
        }),
        _ => sender.try_send(&messages[0]),
    }
}

/// Sends on all channels of a host until told to stop, or up to the limits.
fn send(bus: &Bus, host: usize, page: &Page) {
    let mut senders: Vec<Sender> = (0..CHANNELS)
        .map(|channel| {
            let ends = [host, 1 - host].map(|host| address(host as u32 + 1, channel as u32 + 1));
            let mut sender = bus.bind(ends[0]).unwrap().sender(ends[1]).unwrap();
            sender.set_extensions(Extensions {
                crc: channel % 2 == 1,
                ..Extensions::default()
            });
            let known = page.word(host, channel, Word::Accepted).load(SeqCst);
            let begin = sender.next().sequence;
            assert!(
                (known..=known + BATCH).contains(&begin),
                "host {host} channel {channel}: {known} messages were accepted, and the ring has {begin}"
            );
            page.word(host, channel, Word::Accepted).store(begin, SeqCst);
            sender
        })
        .collect();
    let mut messages = vec![Vec::new(); BATCH as usize];
    let pause = Duration::from_micros(from_environment(PAUSE, 0));
    while page.stop().load(SeqCst) == 0 {
        let (mut any, mut done) = (false, true);
        for (channel, sender) in senders.iter_mut().enumerate() {
            let limit = page.word(host, channel, Word::Limit).load(SeqCst);
            if sender.next().sequence >= limit {
                continue;
            }
            done = false;
            match send_some(
                sender,
                (host * CHANNELS + channel) as u64,
                limit,
                &mut messages,
            ) {
                Ok(()) => {
                    any = true;
                    let next = sender.next().sequence;
                    page.word(host, channel, Word::Accepted).store(next, SeqCst);
                }
                Err(TrySendError::Full) => {}
                Err(error) => panic!("host {host} channel {channel}: {error}"),
            }
        }
        if done {
            return;
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        } else if !any {
            let sender = &mut senders[0];
            let length = messages[0].len().min(sender.max_len());
            let _ = sender.wait(length, Duration::from_micros(500));
        }
    }
}

/// Receives on all channels of a host until told to stop.
fn receive(bus: &Bus, host: usize, page: &Page) {
    let other = 1 - host;
    let mut fair = FairReceiver::new();
    let mut sequences = Vec::new();
    for channel in 0..CHANNELS {
        let ends = [host, other].map(|host| address(host as u32 + 1, channel as u32 + 1));
        let receiver = bus.bind(ends[0]).unwrap().receiver(ends[1]).unwrap();
        let noted = page.word(other, channel, Word::Noted).load(SeqCst);
        let begin = receiver.next().sequence;
        assert!(
            begin == noted || begin + 1 == noted,
            "host {host} channel {channel}: the last receiver noted {noted}, this one begins at {begin}"
        );
        page.word(other, channel, Word::Reread)
            .fetch_add(noted - begin, SeqCst);
        fair.add(receiver);
        sequences.push(begin);
    }
    let longest = |channel: usize| fair_longest(SIZES[channel].0);
    let (mut expected, mut bytes) = (Vec::new(), vec![0; 1 << 20]);
    while page.stop().load(SeqCst) != 2 {
        let (channel, message) = match fair.peek() {
            Ok(found) => found,
            Err(TryRecvError::Empty) => {
                let _ = fair.wait(Duration::from_millis(20));
                continue;
            }
            Err(error) => panic!("host {host}: {error}"),
        };
        let sequence = sequences[channel];
        let length = message.copy_to(&mut bytes).unwrap();
        payload(
            (other * CHANNELS + channel) as u64,
            sequence,
            longest(channel),
            &mut expected,
        );
        assert!(
            message.cursor().sequence == sequence && bytes[..length] == expected,
            "host {host} channel {channel}: message {sequence} was due, and message {} of {length} bytes came, which says \
             that it is {:?}; {} bytes were due",
            message.cursor().sequence,
            bytes[..length]
                .first_chunk()
                .map(|b| u64::from_le_bytes(*b)),
            expected.len()
        );
        page.word(other, channel, Word::Noted)
            .store(sequence + 1, SeqCst);
        message.release();
        sequences[channel] += 1;
    }
}

/// As [`Sender::max_len`] says of a ring of this capacity.
fn fair_longest(capacity: u64) -> usize {
    capacity as usize / 2
}

/// What the process of an application does; any other returns at once.
pub fn application() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let page = Page::open(place.parent().unwrap());
    let bus = Bus::attach_at(place.join("tbus.1000")).unwrap();
    let host = usize::from(place.ends_with("host2"));
    match role.as_str() {
        "send" => send(&bus, host, &page),
        _ => receive(&bus, host, &page),
    }
}

/// Who can be killed: on host 1, then on host 2.
pub const PARTS: [&str; 3] = ["relay", "send", "receive"];

pub struct World {
    pub page: Page,
    /// As in [`PARTS`], for host 1 and host 2.
    pub processes: Vec<Process>,
    pub hosts: [Host; 2],
    /// Of the senders after each round; none loads the processors as much as they bear.
    pub pause: Duration,
    pub scratch: Scratch,
}

impl World {
    /// Starts everything on two hosts that have the channels of [`SIZES`] and routes to each other.
    pub fn new(scratch: Scratch, hosts: [Host; 2], pause: Duration) -> World {
        let page = Page::open(&scratch.0);
        for ring in 0..RINGS {
            page.word(ring / CHANNELS, ring % CHANNELS, Word::Limit)
                .store(u64::MAX, SeqCst);
        }
        let mut world = World {
            page,
            processes: Vec::new(),
            hosts,
            pause,
            scratch,
        };
        world.processes = (0..6).map(|part| world.start(part)).collect();
        world
    }

    pub fn start(&self, part: usize) -> Process {
        let host = &self.hosts[part / 3];
        let role = PARTS[part % 3];
        if role == "relay" {
            return host.start();
        }
        let mut command = host.inside(&std::env::current_exe().unwrap());
        command
            .args(["--exact", "child_process", "--nocapture"])
            .env(ROLE, role)
            .env(PAUSE, self.pause.as_micros().to_string())
            .env(PLACE, &host.place);
        Process::start(&format!("{role} of host {}", host.node), &mut command)
    }

    pub fn kill(&mut self, parts: &[usize]) {
        for part in parts {
            self.processes[*part].kill();
        }
        for part in parts {
            self.processes[*part] = self.start(*part);
        }
    }

    /// Waits until every ring has brought `more` messages.
    #[track_caller]
    pub fn await_progress(&mut self, more: u64) {
        let before = self.page.all(Word::Noted);
        let due: Vec<u64> = before.iter().map(|noted| noted + more).collect();
        self.await_noted(&due);
    }

    /// Waits until every ring has brought as many messages as `due` says of it.
    #[track_caller]
    pub fn await_noted(&mut self, due: &[u64]) {
        let before = self.page.all(Word::Noted);
        let begun = Instant::now();
        loop {
            let now = self.page.all(Word::Noted);
            if now.iter().zip(due).all(|(now, due)| now >= due) {
                return;
            }
            self.processes.iter_mut().for_each(Process::is_alive);
            if begun.elapsed() > PATIENCE {
                self.tell();
                panic!("no progress: from {before:?} to {now:?}, and not to {due:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the relays say, for whoever looks at a failure.
    pub fn tell(&self) {
        for host in &self.hosts {
            eprintln!(
                "host {}: {:#}",
                host.node,
                host.status().unwrap_or_default()
            );
        }
    }

    /// Lets the senders send up to their limits or stop, and waits until all is received.
    pub fn settle(&mut self) {
        for sender in [1, 4] {
            self.processes[sender].end();
        }
        let accepted = self.page.all(Word::Accepted);
        let begun = Instant::now();
        while self.page.all(Word::Noted) != accepted {
            self.processes[2].is_alive();
            self.processes[5].is_alive();
            if begun.elapsed() > PATIENCE {
                self.tell();
                panic!(
                    "accepted {accepted:?}, received {:?}",
                    self.page.all(Word::Noted)
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Every ring's status on the host where it begins and where it ends.
    pub fn cursors(&self) -> Vec<[tbus::Status; 2]> {
        let buses = [self.hosts[0].bus(), self.hosts[1].bus()];
        let ring = |ring: usize| {
            let (from, channel) = (ring / CHANNELS, ring % CHANNELS);
            [from, 1 - from].map(|host| {
                let snapshot = buses[host].gcim().snapshot().unwrap();
                let entry = &snapshot.channels[channel];
                let direction =
                    usize::from(entry.addresses[0] != address(from as u32 + 1, channel as u32 + 1));
                buses[host]
                    .open_ring(entry, entry.rings[direction])
                    .unwrap()
                    .status()
            })
        };
        (0..RINGS).map(ring).collect()
    }

    /// Waits until the sources know that everything is received, and that nothing else is in any ring.
    pub fn check_cursors(&self) {
        let accepted = self.page.all(Word::Accepted);
        let mut last = String::new();
        let settled = within(PATIENCE, || {
            let all = self.cursors();
            last = format!("{all:?}");
            all.iter()
                .zip(&accepted)
                .all(|([source, mirror], accepted)| {
                    let tails = [source.tail, mirror.tail, mirror.released];
                    tails == [source.tail; 3]
                        && source.tail.sequence == *accepted
                        && source.unread_messages == 0
                })
                .then_some(())
        });
        if settled.is_none() {
            self.tell();
            panic!("the rings do not come to rest at {accepted:?}: {last}");
        }
    }

    /// With nobody killed any more: each message is counted once everywhere.
    pub fn check_counters(&mut self, more: u64) {
        let statuses = |world: &World| [0, 1].map(|host| world.hosts[host].await_mirrored(RINGS));
        let before = statuses(self);
        for ring in 0..RINGS {
            let (host, channel) = (ring / CHANNELS, ring % CHANNELS);
            let accepted = self.page.word(host, channel, Word::Accepted).load(SeqCst);
            self.page
                .word(host, channel, Word::Limit)
                .store(accepted + more, SeqCst);
        }
        let bytes_before: Vec<u64> = self.cursors().iter().map(|c| c[0].tail.position).collect();
        self.page.stop().store(0, SeqCst);
        for sender in [1, 4] {
            self.processes[sender] = self.start(sender);
        }
        self.settle();
        self.check_cursors();
        let bytes: Vec<u64> = self.cursors().iter().map(|c| c[0].tail.position).collect();
        let after = statuses(self);
        for host in 0..2 {
            let gained = |name: &str| total(&after[host], name) - total(&before[host], name);
            let expected = more * CHANNELS as u64;
            assert_eq!(
                (gained("sent_messages"), gained("received_messages")),
                (expected, expected),
                "{:#}",
                after[host]
            );
            for name in ["ups", "downs", "generations"] {
                assert_eq!(gained(name), 0, "{name}");
            }
            for name in ["gaps", "lost_messages", "rejected"] {
                assert_eq!(total(&after[host], name), 0, "{name}: {:#}", after[host]);
            }
            for ring in 0..RINGS {
                let ends = [ring / CHANNELS, 1 - ring / CHANNELS];
                let ends = ends.map(|host| address(host as u32 + 1, (ring % CHANNELS) as u32 + 1));
                let of = |status: &Value, name: &str| {
                    ring_between(status, ends[0], ends[1]).unwrap()[name]
                        .as_u64()
                        .unwrap()
                };
                let gained = |name| of(&after[host], name) - of(&before[host], name);
                assert_eq!(
                    (gained("messages"), gained("bytes")),
                    (more, bytes[ring] - bytes_before[ring]),
                    "ring {ring} at host {}",
                    host + 1
                );
            }
        }
    }
}
