//! What a measurement takes, read from the command line and checked before anything is started.

use super::bench::Length;
use super::channel::Way;
use super::limit::COPY_AREA;
use super::measure::SECONDS_AT_RATE;
use super::report::Kind;
use super::worker::usable_cpus;
use super::{Failure, Result};
use std::time::Duration;

/// Messages a second above which a schedule is a mistake: the clock itself takes longer to be read.
const HIGHEST_RATE: f64 = 1e8;
/// Messages of one size above which a count is a mistake: days.
const HIGHEST_COUNT: f64 = 1e13;
/// The longest measurement of one size that is not a mistake.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// What all measurements take.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command line, for the report.
    pub command: Vec<String>,
    /// Payload sizes, bytes.
    pub sizes: Vec<usize>,
    /// How long each size is measured, all rounds together; `None`: by size.
    pub length: Option<Length>,
    /// Messages a second, for an open loop.
    pub rate: Option<f64>,
    /// What connects the two processes.
    pub way: Way,
    /// Rounds.
    pub rounds: usize,
    /// Processors of the first and the second process; `None`: wherever the system puts them.
    pub cpus: Option<[usize; 2]>,
    /// Capacity of each ring, bytes.
    pub capacity: u64,
    /// Whether a bare TCP connection is measured beside a channel to another host.
    pub beside_tcp: bool,
    /// Whether rounds are kept whose limits before and after differ.
    pub keep_all: bool,
}

impl Options {
    /// The share of each round; `None`: by size.
    pub fn length_of_round(&self) -> Option<Length> {
        Some(self.length?.part(self.rounds as u64))
    }

    /// Refuses what cannot be measured, with the reason and the mend.
    pub fn check(&self, kind: Kind) -> Result<()> {
        if self.rounds == 0 {
            return refuse("--rounds: there must be at least one".into());
        }
        self.check_capacity()?;
        self.check_sizes(kind)?;
        self.check_length()?;
        self.check_rate()?;
        self.check_cpus()
    }

    fn check_capacity(&self) -> Result<()> {
        let allowed = tbus::layout::MIN_CAPACITY..=tbus::layout::MAX_CAPACITY;
        if !allowed.contains(&self.capacity) {
            return refuse(format!(
                "--capacity: a ring of {} bytes cannot be made; give {} to {} bytes",
                self.capacity,
                allowed.start(),
                allowed.end()
            ));
        }
        Ok(())
    }

    fn check_sizes(&self, kind: Kind) -> Result<()> {
        for (index, size) in self.sizes.iter().enumerate() {
            if self.sizes[..index].contains(size) {
                return refuse(format!("--size: {size} is named twice"));
            }
            let largest = tbus::layout::max_payload(self.capacity);
            let largest_ever = tbus::layout::max_payload(tbus::layout::MAX_CAPACITY);
            if *size > largest_ever {
                return refuse(format!(
                    "--size: no ring takes a message of {size} bytes; give at most {largest_ever}"
                ));
            }
            if kind != Kind::Limit && *size > largest {
                return refuse(format!(
                    "--size: a message of {size} bytes does not fit into a ring of {} bytes, whose largest message has {largest}; add --capacity {}",
                    self.capacity,
                    (2 * *size as u64).next_multiple_of(4096)
                ));
            }
            if kind == Kind::Limit && !(1..=COPY_AREA / 2).contains(size) {
                return refuse(format!(
                    "--size: copies of {size} bytes cannot be measured; give 1 to {} bytes",
                    COPY_AREA / 2
                ));
            }
        }
        Ok(())
    }

    fn check_length(&self) -> Result<()> {
        match self.length {
            Some(Length::Count(count)) if count < self.rounds as u64 => refuse(format!(
                "--count: {count} messages are too few for {} rounds; give at least one for each, or fewer --rounds",
                self.rounds
            )),
            Some(Length::Count(count)) if count as f64 > HIGHEST_COUNT => refuse(format!(
                "--count: {count} messages would take days; give fewer, or --duration"
            )),
            Some(Length::Time(time)) if time > LONGEST => {
                refuse("--duration: more than a week for each size; give less".into())
            }
            Some(Length::Time(time)) if time / (self.rounds as u32) < Duration::from_millis(1) => {
                refuse(format!(
                    "--duration: {time:?} leaves less than 1 ms for each of {} rounds; give more, or fewer --rounds",
                    self.rounds
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_rate(&self) -> Result<()> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        if rate > HIGHEST_RATE {
            return refuse(format!(
                "--rate: {rate} messages/s cannot be scheduled one by one; give at most 100M, or use `tbusperf rate` to find what is possible"
            ));
        }
        let seconds = match self.length_of_round() {
            Some(Length::Count(count)) => count as f64 / rate,
            Some(Length::Time(time)) if time.as_secs_f64() * rate < 1.0 => {
                return refuse(format!(
                    "--rate: {rate} messages/s do not make one message in a round of {time:?}; give a longer --duration, fewer --rounds or a higher rate"
                ));
            }
            Some(Length::Time(_)) => return Ok(()),
            None if rate * SECONDS_AT_RATE < 1.0 => {
                return refuse(format!(
                    "--rate: {rate} messages/s do not make one message in a round of {SECONDS_AT_RATE} s; give --duration or --count"
                ));
            }
            None => return Ok(()),
        };
        if seconds * self.rounds as f64 > LONGEST.as_secs_f64() {
            return refuse(format!(
                "--rate: so many messages at {rate} a second take more than a week for each size; give a lower --count or a higher rate"
            ));
        }
        Ok(())
    }

    fn check_cpus(&self) -> Result<()> {
        let usable = usable_cpus();
        match self.cpus {
            Some([a, b]) if a == b => refuse(format!(
                "--cpus: both processes poll, so they cannot share processor {a}; name two"
            )),
            Some(cpus) => match cpus.iter().find(|cpu| !usable.contains(cpu)) {
                Some(cpu) => refuse(format!(
                    "--cpus: this process may not run on processor {cpu}; it may on {usable:?}"
                )),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }
}

fn refuse(why: String) -> Result<()> {
    Err(Failure::Usage(why).into())
}

/// A value of --cpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// The first process on one, the second on the other.
    Pinned([usize; 2]),
    /// Wherever the system puts them.
    None,
}

impl Cpus {
    /// The first two that this process may use.
    pub fn first_two() -> Result<Cpus> {
        match usable_cpus()[..] {
            [a, b, ..] => Ok(Cpus::Pinned([a, b])),
            _ => Err("this process may use one processor only, and a measurement takes two that poll; give it two, or add --cpus none and expect the scheduler's times".into()),
        }
    }

    /// As in [`Options`].
    pub fn pinned(self) -> Option<[usize; 2]> {
        match self {
            Cpus::Pinned(cpus) => Some(cpus),
            Cpus::None => None,
        }
    }
}

/// "0,1" or "none".
pub fn parse_cpus(text: &str) -> std::result::Result<Cpus, String> {
    if text == "none" {
        return Ok(Cpus::None);
    }
    text.split_once(',')
        .and_then(|(a, b)| Some(Cpus::Pinned([a.parse().ok()?, b.parse().ok()?])))
        .ok_or("give two processors, as in 0,1, or none".into())
}

/// "64", "4K", "1M": bytes, with K and M of 1024.
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or("give a number of bytes, as in 64, 4K or 1M".into())
}

/// The same for one message.
pub fn parse_size(text: &str) -> std::result::Result<usize, String> {
    parse_bytes(text).map(|bytes| bytes as usize)
}

/// "50000", "100k", "1.5M": a number above 0, with k and M of 1000.
pub fn parse_number(text: &str) -> std::result::Result<f64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match digits.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * factor),
        _ => Err("give a number above 0, as in 50000, 100k or 1.5M".into()),
    }
}

/// The same for a whole number.
pub fn parse_count(text: &str) -> std::result::Result<u64, String> {
    match parse_number(text) {
        Ok(number) if number.fract() == 0.0 && number < 2f64.powi(53) => Ok(number as u64),
        _ => Err("give a whole number above 0, as in 50000, 100k or 1M".into()),
    }
}
