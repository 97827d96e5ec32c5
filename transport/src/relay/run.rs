//! A relay over TCP in a loop: it polls as long as there is something to do, and sleeps when there is not.

use super::Relay;
use super::peer::Stream;
use crate::link::Waits;
use crate::link::socket::Socket;
use crate::network::Control;
use crate::session::Nanos;
use crate::tcp_network::{TcpControl, TcpNetwork};
use std::time::{Duration, Instant};

/// How long a relay polls after the last thing that happened, unless told otherwise.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(50);

/// Between two looks at what no descriptor tells of.
const SOON: Nanos = 1_000_000;

/// Time since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begun: Instant,
    /// What it was read as last, and for how many calls that still does.
    last: Nanos,
    left: u32,
}

/// A pass that finds nothing takes about as long as reading the clock.
const PASSES: u32 = 8;

impl Default for Clock {
    fn default() -> Clock {
        Clock {
            begun: Instant::now(),
            last: 0,
            left: 0,
        }
    }
}

impl Clock {
    /// The time now.
    #[inline]
    pub fn now(&self) -> Nanos {
        self.begun.elapsed().as_nanos() as Nanos
    }

    /// The time now, or of one of the last few calls: for each pass of a loop that polls. Who has slept, or done something else for long,
    /// says so by [`Clock::expire`].
    #[inline]
    pub fn lately(&mut self) -> Nanos {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => (self.last, self.left) = (self.now(), PASSES - 1),
        }
        self.last
    }

    /// Time has passed: the next call of [`Clock::lately`] reads the clock.
    pub fn expire(&mut self) {
        self.left = 0;
    }
}

/// What a loop that runs a relay is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on, and sleep when there is nothing to do.
    GoOn,
    /// The same, but come back after one pass: there is more to attend to.
    Hurry,
    /// End.
    End,
}

impl Relay<TcpNetwork> {
    /// Runs until `attend` says so. It is called every 100 ms at least, and not much more often than every
    /// millisecond unless it is in a hurry. `spin`: how long to poll after the last thing that happened before sleeping.
    pub fn run(
        &mut self,
        mut clock: Clock,
        spin: Duration,
        mut attend: impl FnMut(&mut Self, Nanos) -> Next,
    ) {
        let spin = spin.as_nanos() as Nanos;
        clock.expire();
        let mut last = clock.lately();
        let mut attend_due = 0;
        loop {
            let now = clock.lately();
            if now >= attend_due {
                match attend(self, now) {
                    Next::GoOn => attend_due = now + 1_000_000,
                    // Not asleep before the rest, then.
                    Next::Hurry => (attend_due, last) = (now, now),
                    Next::End => return,
                }
                clock.expire();
            }
            if self.step(now) {
                // With many peers a pass that brings much takes milliseconds.
                clock.expire();
                last = now;
            } else if now - last > spin {
                self.sleep(clock.now());
                clock.expire();
            }
        }
    }

    /// Waits until something may have happened, at most 100 ms.
    pub fn sleep(&mut self, now: Nanos) {
        let mut until = now + tbus::LONGEST_SLEEP.as_nanos() as Nanos;
        until = until.min(self.before_sleep(now).unwrap_or(until));
        if !self.news.announce_sleep(self.rings.news_slots()) {
            return;
        }
        for p in 0..self.peers.len() {
            // What came before it was armed does not wake.
            if let Some(link) = &mut self.peers[p].link
                && link.arm()
                && self.poll_link(p, now)
            {
                until = now;
            }
        }
        let mut waits = Waits::default();
        waits.readable.push(self.news.doorbell());
        for peer in &self.peers {
            if let Some(link) = &peer.link {
                // A ring that the link does not take waits for nothing else, nor do bytes that TLS has already.
                if link.wait_for(&mut waits) || (!peer.waiting.is_empty() && link.is_idle()) {
                    until = now;
                }
            }
            if let Some(stream) = &peer.control {
                add_stream(&mut waits, stream);
                until = until.min(peer.session.due());
                if peer.lost.is_some() || peer.trial.is_some() {
                    until = until.min(now + SOON);
                }
                if stream.control.socket().is_some_and(Socket::has_received) {
                    until = now;
                }
            } else if !peer.dialling && !peer.unused && self.draining.is_none() {
                until = until.min(peer.dial_due);
            }
        }
        for greeting in &self.greetings {
            add_stream(&mut waits, &greeting.stream);
            until = until.min(now + 5_000_000);
        }
        if !self.maps.is_settled() {
            until = until.min(now + 5_000_000);
        }
        let timeout = Duration::from_nanos(until.saturating_sub(now));
        // A failure to wait is a short sleep.
        let slept = self
            .network
            .sleep(&waits.readable, &waits.writable, timeout);
        if slept.is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.news.awake();
        self.slow_due = 0;
    }
}

fn add_stream<'a>(waits: &mut Waits<'a>, stream: &'a Stream<TcpControl>) {
    if let Some(socket) = stream.control.socket() {
        waits.add(socket, stream.control.unsent() > 0);
    }
}
