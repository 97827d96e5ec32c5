//! Fair receive over several rings.

use crate::error::TryRecvError;
use crate::receiver::{Message, Receiver};
use crate::wait::{self, DEFAULT_SPIN, LONGEST_SLEEP};
use std::time::{Duration, Instant};

/// Messages that one ring may deliver before the next one's turn.
pub const MESSAGES_PER_TURN: u32 = 10;

/// Whose turn it is among several, round robin.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    at: usize,
    /// How many messages it has left.
    left: u32,
}

impl Turn {
    /// Turns to the next one of `count` that has a message, by `has`: the same one as before, if it has some left. None if none has;
    /// ends with the first error.
    #[inline]
    pub fn find<E>(
        &mut self,
        count: usize,
        mut has: impl FnMut(usize) -> Result<bool, E>,
    ) -> Result<Option<usize>, E> {
        for step in 0..=count {
            if count == 0 {
                break;
            }
            // First the one whose turn it is, if it has some left; last the same one again, with a fresh turn.
            if step > 0 || self.left == 0 {
                self.at = (self.at + 1) % count;
                self.left = MESSAGES_PER_TURN;
            }
            if has(self.at)? {
                return Ok(Some(self.at));
            }
        }
        Ok(None)
    }

    /// Whose it is, if that one has messages left.
    #[inline(always)]
    pub fn whose(&self) -> Option<usize> {
        (self.left > 0).then_some(self.at)
    }

    /// A message of that one was received.
    #[inline(always)]
    pub fn took(&mut self, at: usize) {
        if at == self.at {
            self.left = self.left.saturating_sub(1);
        }
    }
}

/// Several receivers as one: round robin, [`MESSAGES_PER_TURN`] messages a turn, so that a busy ring does not
/// keep the others waiting.
#[derive(Debug, Default)]
pub struct FairReceiver {
    receivers: Vec<Receiver>,
    turn: Turn,
    /// True where the last error was already told.
    out: Vec<bool>,
}

impl FairReceiver {
    /// No receivers yet.
    pub fn new() -> FairReceiver {
        FairReceiver::default()
    }

    /// Adds a receiver; returns its index.
    pub fn add(&mut self, receiver: Receiver) -> usize {
        self.receivers.push(receiver);
        self.out.push(false);
        self.receivers.len() - 1
    }

    /// Takes a receiver out; later ones move up by one.
    pub fn remove(&mut self, index: usize) -> Option<Receiver> {
        if index >= self.receivers.len() {
            return None;
        }
        self.out.remove(index);
        self.turn = Turn::default();
        Some(self.receivers.remove(index))
    }

    /// The receivers.
    pub fn receivers(&self) -> &[Receiver] {
        &self.receivers
    }

    /// The next message and the index of its receiver; it stays in its ring until
    /// [`Message::release`]. Peeked again instead, it may be another ring's turn.
    ///
    /// `Empty` if no ring has one; `Closed` if all rings are closed and empty. A ring that cannot be used is
    /// told once, with its path in the error, and passed over from then on.
    pub fn peek(&mut self) -> Result<(usize, Message<'_>), TryRecvError> {
        let index = self.find()?;
        self.peek_at(index)
    }

    /// The next message of one receiver, after [`Self::find`] said that it has one.
    pub(crate) fn peek_at(&mut self, index: usize) -> Result<(usize, Message<'_>), TryRecvError> {
        self.turn.took(index);
        Ok((index, self.receivers[index].peek()?))
    }

    /// True if a receiver will never have a message again.
    pub(crate) fn is_done(&mut self, index: usize) -> bool {
        !matches!(
            self.receivers[index].peek(),
            Ok(_) | Err(TryRecvError::Empty)
        )
    }

    /// Copies the next message into `buffer`, releases it; returns its receiver's index and its length.
    pub fn try_recv(&mut self, buffer: &mut [u8]) -> Result<(usize, usize), TryRecvError> {
        let (index, message) = self.peek()?;
        let length = message.copy_to(buffer)?;
        message.release();
        Ok((index, length))
    }

    /// Turns to the next ring that has a message.
    pub(crate) fn find(&mut self) -> Result<usize, TryRecvError> {
        let count = self.receivers.len();
        let mut open = false;
        let found = self.turn.find(count, |at| {
            if self.out[at] {
                return Ok(false);
            }
            match self.receivers[at].peek() {
                Ok(_) => return Ok(true),
                Err(TryRecvError::Empty) => open = true,
                Err(TryRecvError::Closed) => {}
                Err(error) => {
                    self.out[at] = true;
                    return Err(error);
                }
            }
            Ok(false)
        })?;
        if let Some(at) = found {
            return Ok(at);
        }
        if let (false, Some(broken)) = (open, self.out.iter().position(|out| *out)) {
            // Nothing but rings that cannot be used, or are closed: that is told again.
            return self.receivers[broken].peek().map(|_| broken);
        }
        if open || count == 0 {
            Err(TryRecvError::Empty)
        } else {
            Err(TryRecvError::Closed)
        }
    }

    /// Waits until any ring has a message, polling at first and then sleeping. `Empty` when the timeout has
    /// passed. A set of more than 128 rings, or a kernel before 5.16, sleeps in steps of a millisecond.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), TryRecvError> {
        let begun = Instant::now();
        let found = |result: Result<usize, TryRecvError>| match result {
            Err(TryRecvError::Empty) => None,
            other => Some(other.map(drop)),
        };
        loop {
            if let Some(result) = found(self.find()) {
                return result;
            }
            if begun.elapsed() >= DEFAULT_SPIN.min(timeout) {
                break;
            }
        }
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(TryRecvError::Empty);
            }
            let values: Vec<u32> = self
                .usable()
                .map(|r| r.with_signal(wait::announce))
                .collect();
            let result = found(self.find());
            if result.is_none() {
                self.sleep(&values, left.min(LONGEST_SLEEP));
            }
            self.usable()
                .for_each(|r| _ = r.with_signal(wait::renounce));
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Those that have not failed: a damaged ring's word may be changed for ever, and must not keep the rest awake.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Receiver> {
        let all = self.receivers.iter().zip(&self.out);
        all.filter(|(_, out)| !**out).map(|(receiver, _)| receiver)
    }

    fn sleep(&self, values: &[u32], timeout: Duration) {
        const STEP: Duration = Duration::from_millis(1);
        let memories: Vec<_> = self.usable().map(|r| r.ring().mapped()).collect();
        let words: Vec<_> = memories
            .iter()
            .zip(values)
            .map(|(m, value)| {
                (
                    &crate::ring::memory::Memory::control(m).receiver_signal.word,
                    *value,
                )
            })
            .collect();
        let too_many = words.len() > crate::sys::FUTEX_WAIT_ANY_MAX;
        let time = if too_many { timeout.min(STEP) } else { timeout };
        for memory in &memories {
            crate::ring::producer::add(
                &crate::ring::memory::Memory::control(memory)
                    .consumer_info
                    .sleeps,
                1,
            );
        }
        if words.is_empty() || !crate::sys::futex_wait_any(&words, time) {
            std::thread::sleep(timeout.min(STEP));
        }
    }
}
