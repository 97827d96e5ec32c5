//! Messages at a given rate: an open loop, whose times are corrected for coordinated omission.
//!
//! Message `i` is due at `start + i / rate`, whatever became of those before it. A sender that was held up, by a full
//! ring or by the scheduler, sends late what was due meanwhile. Timed from the actual sending (*raw*), those
//! messages look fast, and the delay that their users suffered counts once at most. Timed from when they were due
//! (*corrected*), each one counts with what it suffered.

use super::Result;
use super::channel::End;
use super::clock::{Clock, ticks};
use super::times::Times;
use std::collections::VecDeque;

/// What one run gave.
#[derive(Debug, Default)]
pub struct Scheduled {
    /// One-way times from when a message was due.
    pub corrected: Times,
    /// One-way times from when it was sent.
    pub raw: Times,
    /// Messages a second, from when the first was due until the last came back.
    pub achieved: f64,
}

/// Sends `warm_up + count` messages at `rate` a second to one who sends them back, and times the last `count`. One way
/// is half of the round trip; what a message waited before it was sent counts in full.
pub fn run(
    end: &mut End,
    clock: &Clock,
    rate: f64,
    [warm_up, count]: [u64; 2],
    payload: &[u8],
) -> Result<Scheduled> {
    let all = warm_up + count;
    let interval = 1e9 / rate / clock.ns_per_tick;
    let (mut sent, mut received) = (0, 0);
    // Of those under way: when each was sent, and how long after it was due, in ticks.
    let mut under_way = VecDeque::with_capacity(1 << 16);
    let mut times = Scheduled::default();
    let start = ticks();
    let due = |message: u64| start + (message as f64 * interval) as u64;
    let mut next_due = start;
    while received < all {
        if sent < all {
            let now = ticks();
            if now >= next_due && end.try_send(payload)? {
                under_way.push_back((now, now - next_due));
                sent += 1;
                next_due = due(sent);
            }
        }
        if end.try_take()? {
            let now = ticks();
            let (sent_at, late) = under_way
                .pop_front()
                .ok_or("a message came that was not sent")?;
            received += 1;
            if received > warm_up {
                let one_way = clock.ns(now - sent_at) / 2.0;
                times.raw.record(one_way);
                times
                    .corrected
                    .record(one_way + late as f64 * clock.ns_per_tick);
            }
        }
    }
    let seconds = (ticks() - start) as f64 * clock.ns_per_tick / 1e9;
    // The last message is due an interval before the end of its time.
    times.achieved = all as f64 / (seconds + 1.0 / rate);
    Ok(times)
}
