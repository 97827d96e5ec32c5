//! What the two processes of the demonstration have received, in memory that outlives them, so that the parent
//! can account for every message.

use super::Result;
use memmap2::MmapRaw;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::*};

/// Lives of a process that are noted.
const MAX_LIVES: usize = 8;
/// Words a direction: received, out of order, corrupt, lives, the first sequence of each life, latencies, and what
/// the sender knows accepted.
const WORDS: usize = 16;
const ACCEPTED: usize = 15;
const FIRSTS: usize = 4;
const HEADER: usize = 4096;

/// A shared file: a few words and, for each direction, a count for each message.
#[derive(Debug)]
pub struct Audit {
    map: MmapRaw,
    messages: usize,
}

/// What became of the messages of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Never received.
    pub lost: u64,
    /// Received again by the next life of a process that was killed between reading and releasing.
    pub reread: u64,
    /// Received again without such a reason.
    pub duplicated: u64,
    /// Received in another order than they were sent.
    pub reordered: u64,
    /// Received with a wrong checksum, length or index; or accepted, and sent again by the sender's next life.
    pub corrupt: u64,
}

impl std::ops::Add for Account {
    type Output = Account;

    fn add(self, other: Account) -> Account {
        Account {
            lost: self.lost + other.lost,
            reread: self.reread + other.reread,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            corrupt: self.corrupt + other.corrupt,
        }
    }
}

impl Audit {
    /// Maps the file for `messages` messages each way, making it if need be.
    pub fn open(path: &Path, messages: usize) -> Result<Audit> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        nix::fcntl::posix_fallocate(&file, 0, (HEADER + 2 * messages) as i64)
            .map_err(|e| format!("no room for {}: {e}", path.display()))?;
        Ok(Audit {
            map: MmapRaw::map_raw(&file)?,
            messages,
        })
    }

    fn word(&self, direction: usize, index: usize) -> &AtomicU64 {
        assert!(direction < 2 && index < WORDS);
        // SAFETY: within the header page, aligned, accessed as an atomic only.
        unsafe {
            AtomicU64::from_ptr(
                self.map
                    .as_mut_ptr()
                    .add((direction * WORDS + index) * 8)
                    .cast(),
            )
        }
    }

    fn count(&self, direction: usize, sequence: u64) -> Option<&AtomicU8> {
        let index = usize::try_from(sequence)
            .ok()
            .filter(|s| direction < 2 && *s < self.messages)?;
        // SAFETY: within the mapping by the check above, accessed as an atomic only.
        Some(unsafe {
            AtomicU8::from_ptr(
                self.map
                    .as_mut_ptr()
                    .add(HEADER + direction * self.messages + index),
            )
        })
    }

    /// A process begins to receive at `sequence`.
    pub fn begin_life(&self, direction: usize, sequence: u64) {
        let life = self.word(direction, 3).fetch_add(1, Relaxed) as usize;
        self.word(direction, FIRSTS + life.min(MAX_LIVES - 1))
            .store(sequence, Relaxed);
    }

    /// A process begins to send with message `next`, or has had all before it accepted. What an earlier life had
    /// accepted and this one would send again has been lost in between.
    pub fn sends(&self, direction: usize, next: u64) {
        let known = self.word(direction, ACCEPTED).swap(next, Relaxed);
        self.word(direction, 2)
            .fetch_add(known.saturating_sub(next), Relaxed);
    }

    /// Message `index` was read, u64::MAX if it was not whole; `next` is the sequence of the one after it. Noted
    /// before it is released: a kill in between shows it again and is told as such.
    pub fn received(&self, direction: usize, index: u64, in_order: bool, next: u64) {
        match self.count(direction, index) {
            Some(count) => {
                count.fetch_add(1, Relaxed);
            }
            None => {
                self.word(direction, 2).fetch_add(1, Relaxed);
            }
        }
        if !in_order {
            self.word(direction, 1).fetch_add(1, Relaxed);
        }
        self.word(direction, 0).store(next, Relaxed);
    }

    /// How far a direction has come, in messages.
    pub fn progress(&self, direction: usize) -> u64 {
        self.word(direction, 0).load(Relaxed)
    }

    /// Adds up one direction, when all is over.
    pub fn account(&self, direction: usize) -> Account {
        let lives = self.word(direction, 3).load(Relaxed) as usize;
        // The first life reads nothing again.
        let mut allowed: HashMap<u64, u64> = HashMap::new();
        for life in 1..lives.min(MAX_LIVES) {
            *allowed
                .entry(self.word(direction, FIRSTS + life).load(Relaxed))
                .or_default() += 1;
        }
        let mut account = Account {
            reordered: self.word(direction, 1).load(Relaxed),
            corrupt: self.word(direction, 2).load(Relaxed),
            ..Account::default()
        };
        for sequence in 0..self.messages as u64 {
            let count = self
                .count(direction, sequence)
                .map_or(0, |c| u64::from(c.load(Relaxed)));
            let again = count.saturating_sub(1);
            let reread = again.min(allowed.get(&sequence).copied().unwrap_or(0));
            account.lost += u64::from(count == 0);
            account.reread += reread;
            account.duplicated += again - reread;
        }
        account
    }

    /// Latencies that a process measured: p50, p99, p99.9 in tenths of a nanosecond.
    pub fn set_latencies(&self, values: [u64; 3]) {
        for (index, value) in values.into_iter().enumerate() {
            self.word(0, FIRSTS + MAX_LIVES + index)
                .store(value, Relaxed);
        }
    }

    /// See [`Audit::set_latencies`].
    pub fn latencies(&self) -> [u64; 3] {
        [0, 1, 2].map(|index| self.word(0, FIRSTS + MAX_LIVES + index).load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of mishap is told as what it is, so that the last line of the demonstration can fail.
    #[test]
    fn every_mishap_is_counted() {
        let path = std::env::temp_dir().join(format!("tbus-audit-{}", std::process::id()));
        let audit = Audit::open(&path, 10).unwrap();
        std::fs::remove_file(&path).unwrap();
        audit.begin_life(0, 0);
        for index in [0, 1, 2, 3] {
            audit.received(0, index, true, index + 1);
        }
        audit.begin_life(0, 3); // killed between reading and releasing 3
        for index in [3, 4, 5, 5] {
            audit.received(0, index, true, index + 1);
        }
        audit.received(0, 7, false, 7);
        audit.received(0, 8, true, 8);
        audit.received(0, u64::MAX, false, 9); // not whole
        audit.received(0, 10, true, 10); // no such message
        audit.sends(0, 0);
        audit.sends(0, 4);
        audit.sends(0, 3); // the next life would send 3 again
        let account = audit.account(0);
        // 6 and 9 never came, 3 came again after a restart, 5 came twice in one life.
        assert_eq!(
            account,
            Account {
                lost: 2,
                reread: 1,
                duplicated: 1,
                reordered: 2,
                corrupt: 3
            }
        );
        assert_eq!(audit.account(1).lost, 10);
    }
}
