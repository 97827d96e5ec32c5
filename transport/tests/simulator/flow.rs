//! One direction of a channel: the application that sends, the one that receives, and what must have come.

use crate::trace::{Reported, note};
use std::path::Path;
use tbus::{Address, Bus, Receiver, Sender, TryRecvError, TrySendError, Uuid};
use tbus_transport::sim::{Host, Random};

/// Bytes before the filling: flow, number, check.
const HEADER: usize = 20;

/// Why a message need not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// The receiving host lost its memory: a gap is reported.
    Receiver,
    /// The sending host lost its memory.
    Sender,
}

/// A message that a sender accepted.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Which memory of the sending host it was in.
    pub life: u32,
    pub sequence: u64,
    /// Where its record ends.
    pub end: u64,
    pub excuse: Option<Excuse>,
    pub seen: bool,
}

/// See the module.
pub struct Flow {
    pub id: u32,
    pub hosts: [Host; 2],
    pub ends: [Address; 2],
    pub sender: Option<Sender>,
    pub receiver: Option<Receiver>,
    pub sent: Vec<Sent>,
    /// The number of the message that must come next.
    pub next: usize,
    /// The next message that is not of these rings may be one from this one on, which came before.
    pub again_from: Option<(usize, Vec<Uuid>)>,
    /// The last message that came again, or the one that came after others were left out.
    pub last_jump: Option<usize>,
    pub life: u32,
    pub longest: u64,

    pub redelivered: u64,
    /// Source rings, and which life of the sending host's memory they are of.
    pub lives: Vec<(Uuid, u32)>,
}

/// What went wrong.
pub type Wrong = String;

fn fill(flow: u32, number: u64, length: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(&flow.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    let mut random = Random::new(u64::from(flow) << 40 ^ number);
    let check = random.bits();
    bytes.extend_from_slice(&check.to_le_bytes());
    while bytes.len() < length {
        bytes.extend_from_slice(&random.bits().to_le_bytes());
    }
    bytes.truncate(length.max(HEADER));
}

impl Flow {
    /// "1.0.0.1 to 2.0.0.1", as relays name it.
    pub fn name(&self) -> String {
        let [from, to] = self.ends.map(|a| {
            let [a, b, c, d] = a.0.to_be_bytes();
            format!("{a}.{b}.{c}.{d}")
        });
        format!("{from} to {to}")
    }

    /// The sending process starts.
    pub fn start_sender(&mut self, path: &Path) -> Result<(), Wrong> {
        let attach = || {
            Bus::attach_at(path)?
                .bind(self.ends[0])?
                .sender(self.ends[1])
        };
        match attach() {
            Ok(sender) => self.sender = Some(sender),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(format!("{}: no sender: {error}", self.name())),
        }
        Ok(())
    }

    /// The receiving process starts.
    pub fn start_receiver(&mut self, path: &Path) -> Result<(), Wrong> {
        let attach = || {
            Bus::attach_at(path)?
                .bind(self.ends[1])?
                .receiver(self.ends[0])
        };
        match attach() {
            Ok(receiver) => self.receiver = Some(receiver),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(format!("{}: no receiver: {error}", self.name())),
        }
        Ok(())
    }

    /// Sends up to `count` messages. True if any were accepted.
    pub fn send(&mut self, count: u64, random: &mut Random) -> Result<bool, Wrong> {
        let mut bytes = Vec::new();
        let mut any = false;
        for _ in 0..count {
            let Some(sender) = &mut self.sender else {
                break;
            };
            let number = self.sent.len() as u64;
            let most = match random.chance(50) {
                true => self.longest,
                false => 200,
            };
            fill(self.id, number, random.below(most) as usize, &mut bytes);
            match sender.try_send(&bytes) {
                Ok(()) => {}
                Err(TrySendError::Full) => break,
                Err(TrySendError::Closed) => {
                    note(|| format!("{}: the sender is told Closed", self.name()));
                    self.sender = None;
                    break;
                }
                Err(error) => return Err(format!("{}: sending: {error}", self.name())),
            }
            // After, since it may have gone on to the ring's next generation.
            let after = sender.next();
            any = true;
            self.sent.push(Sent {
                life: self.life,
                sequence: after.sequence - 1,
                end: after.position,
                excuse: None,
                seen: false,
            });
        }
        Ok(any)
    }

    /// Receives up to `count` messages; at last only looks at one, if `looks`. True if any were released.
    pub fn receive(&mut self, count: u64, looks: bool) -> Result<bool, Wrong> {
        let mut any = false;
        let mut buffer = [0; 1 << 14];
        for left in (0..count).rev() {
            let Some(mut receiver) = self.receiver.take() else {
                break;
            };
            let message = match receiver.peek() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => {
                    self.receiver = Some(receiver);
                    break;
                }
                Err(TryRecvError::Closed) => {
                    note(|| format!("{}: the receiver is told Closed", self.name()));
                    break;
                }
                Err(error) => return Err(format!("{}: receiving: {error}", self.name())),
            };
            let length = message
                .copy_to(&mut buffer)
                .map_err(|e| format!("{}: copying: {e}", self.name()))?;
            let number = self.check(&buffer[..length])?;
            if looks && left == 0 {
                break; // killed between reading and releasing
            }
            message.release();
            any = true;
            self.took(number, receiver.ring().uuid())?;
            self.receiver = Some(receiver);
        }
        Ok(any)
    }

    /// The bytes are those of some message.
    fn check(&self, bytes: &[u8]) -> Result<usize, Wrong> {
        let wrong = |what: &str| {
            Err(format!(
                "{}: after message {}: {what}",
                self.name(),
                self.next
            ))
        };
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
            return wrong("a message of too few bytes");
        };
        let flow = u32::from_le_bytes(header[..4].try_into().expect("four"));
        let number = u64::from_le_bytes(header[4..12].try_into().expect("eight"));
        if flow != self.id || number >= self.sent.len() as u64 {
            return wrong(&format!(
                "message {number} of flow {flow}, which was never sent"
            ));
        }
        let mut should = Vec::new();
        fill(flow, number, bytes.len(), &mut should);
        match should == bytes {
            true => Ok(number as usize),
            false => wrong(&format!("message {number} has other bytes than were sent")),
        }
    }

    /// A message was received.
    fn took(&mut self, number: usize, ring: Uuid) -> Result<(), Wrong> {
        if number < self.next {
            if self
                .again_from
                .as_ref()
                .is_none_or(|(from, _)| number < *from)
            {
                return Err(format!(
                    "{}: message {number} came again, {} was to be next; may come again: from {:?} on",
                    self.name(),
                    self.next,
                    self.again_from.as_ref().map(|(from, _)| from)
                ));
            }
            self.redelivered += 1;
        }
        for skipped in self.next..number {
            let message = &self.sent[skipped];
            if message.excuse.is_none() && !message.seen {
                return Err(format!(
                    "{}: message {skipped} ({message:?}) was left out, {number} came",
                    self.name()
                ));
            }
        }
        if number != self.next {
            self.last_jump = Some(number);
        }
        self.again_from.take_if(|(_, old)| !old.contains(&ring));
        self.sent[number].seen = true;
        self.next = number + 1;
        Ok(())
    }

    /// True if nothing more is to come.
    pub fn is_done(&self) -> bool {
        self.sent[self.next..]
            .iter()
            .all(|message| message.excuse.is_some())
    }

    /// Messages of this life and earlier ones that are not in `published` (the sequences below it) may be lost.
    pub fn excuse(&mut self, life: u32, sequences: std::ops::Range<u64>, excuse: Excuse) {
        for message in &mut self.sent {
            if message.life == life && sequences.contains(&message.sequence) && !message.seen {
                message.excuse.get_or_insert(excuse);
            }
        }
    }

    /// Which life a source ring is of.
    pub fn life_of(&self, source: Uuid) -> Option<u32> {
        self.lives
            .iter()
            .find(|(uuid, _)| *uuid == source)
            .map(|(_, life)| *life)
    }

    /// Notes the source ring that is in force.
    pub fn saw_source(&mut self, ring: Uuid) {
        if self.life_of(ring).is_none() {
            self.lives.push((ring, self.life));
        }
    }

    /// Every message that is missing for want of the receiver's memory lies in a gap that was reported, and each gap counts
    /// the messages that were sent there.
    pub fn check_gaps(&mut self, reported: &[Reported]) -> Result<(), Wrong> {
        let name = self.name();
        let mine: Vec<_> = reported.iter().filter(|gap| gap.channel == name).collect();
        for message in &self.sent {
            if message.seen || message.excuse != Some(Excuse::Receiver) {
                continue;
            }
            let covers = |gap: &&&Reported| gap.from < message.end && message.end <= gap.to;
            if !mine.iter().any(|gap| covers(&gap)) {
                return Err(format!(
                    "{name}: message {message:?} is missing, and no gap was reported: {mine:?}"
                ));
            }
        }
        for gap in mine {
            let counts: Vec<u64> = (0..=self.life)
                .map(|life| {
                    let inside = |m: &&Sent| m.life == life && gap.from < m.end && m.end <= gap.to;
                    self.sent.iter().filter(inside).count() as u64
                })
                .collect();
            if !counts.contains(&gap.messages) {
                return Err(format!(
                    "{name}: {gap:?} counts wrongly, {counts:?} were sent there"
                ));
            }
        }
        Ok(())
    }
}

/// Errors that go by while rings are replaced or the process before is not gone.
fn is_passing(error: &tbus::Error) -> bool {
    use tbus::Error::*;
    match error {
        Busy { .. } | NotFound { .. } | Closed { .. } => true,
        // The ring was just going to change.
        WrongRole { .. } => true,
        NoChannel { .. } => true,
        _ => false,
    }
}
