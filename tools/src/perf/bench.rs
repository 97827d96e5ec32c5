//! Two processes with the channel under test between them, and what can be timed with them.

use super::channel::{self, End, Way};
use super::clock::{Clock, ticks};
use super::limit::Shared;
use super::schedule::{self, Scheduled};
use super::scratch::Scratch;
use super::series::median;
use super::times::Times;
use super::worker::{Job, Worker, pin};
use super::{Result, watch};
use std::time::{Duration, Instant};

/// Round trips that are timed as one where the clock is too coarse for one.
pub const BLOCK: u64 = 20;
/// Most messages of one job: bounds the memory that their times take.
const LARGEST_CHUNK: u64 = 1 << 20;

/// How long to go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// So many messages.
    Count(u64),
    /// So long.
    Time(Duration),
}

impl Length {
    /// One of `parts` equal ones.
    pub fn part(self, parts: u64) -> Length {
        match self {
            Length::Count(count) => Length::Count(count.div_ceil(parts)),
            Length::Time(time) => Length::Time(time.div_f64(parts as f64)),
        }
    }
}

/// Cuts a length into jobs, which the two processes agree on by their count of messages.
struct Chunks {
    length: Length,
    begun: Instant,
    done: u64,
    /// The last job, and how long its messages took: jobs grow until they are long enough to tell the speed.
    last: (u64, Duration),
}

/// A job that takes so long tells the speed.
const TELLING: Duration = Duration::from_millis(50);

impl Chunks {
    fn new(length: Length) -> Chunks {
        Chunks {
            length,
            begun: Instant::now(),
            done: 0,
            last: (25, Duration::ZERO),
        }
    }

    /// Messages of the next job.
    fn next(&mut self) -> Option<u64> {
        let next = match self.length {
            Length::Count(count) => (count - self.done).min(LARGEST_CHUNK),
            Length::Time(time) => {
                let left = time.saturating_sub(self.begun.elapsed());
                let (count, took) = self.last;
                match took < TELLING {
                    // Not worth the start of a job.
                    _ if left < time / 20 => 0,
                    true => (4 * count).min(LARGEST_CHUNK),
                    false => {
                        let speed = count as f64 / took.as_secs_f64();
                        (speed * left.as_secs_f64().min(0.1)).clamp(1.0, LARGEST_CHUNK as f64)
                            as u64
                    }
                }
            }
        };
        self.done += next;
        self.last.0 = next;
        (next > 0).then_some(next)
    }

    /// The messages of the last job took so long.
    fn took(&mut self, ns: f64) {
        self.last.1 = Duration::from_nanos(ns as u64);
    }
}

/// This process and the other one, each with its end of the channel, and a piece of bare shared memory.
pub struct Bench {
    worker: Worker,
    end: End,
    shared: Shared,
    clock: Clock,
    /// Dropped last: it removes the files.
    _scratch: Scratch,
}

impl Bench {
    /// Starts the second process. `cpus`: what the two are pinned to; `capacity`: of each ring, bytes.
    pub fn new(cpus: Option<[usize; 2]>, capacity: u64, way: Way) -> Result<Bench> {
        watch::start()?;
        if let Some([cpu, _]) = cpus {
            pin(cpu)?;
        }
        let scratch = Scratch::new("perf")?;
        watch::remove_if_stopped(scratch.directory().path());
        let (end, second) = channel::open_first(&scratch, capacity, way)?;
        let shared = Shared::open(&scratch.join("limit"))?;
        let worker = Worker::start(scratch.directory().path(), &second, cpus.map(|c| c[1]))?;
        Ok(Bench {
            worker,
            end,
            shared,
            clock: Clock::get(),
            _scratch: scratch,
        })
    }

    fn ping_pong(&mut self, count: u64, block: u64) -> Result<Vec<u64>> {
        self.shared.reset();
        self.worker.start_job(Job::PingPong { count })?;
        self.shared.meet(0);
        let times = self.shared.ping_pong(0, count / block, block);
        self.worker.done()?;
        Ok(times)
    }

    /// Median one-way time of a cache line, ns; `count` round trips.
    pub fn line(&mut self, count: u64) -> Result<f64> {
        let blocks = self.ping_pong(count, BLOCK)?;
        Ok(self.typical(&blocks[blocks.len() / 10..]))
    }

    /// One-way times of a cache line.
    pub fn line_times(&mut self, count: u64) -> Result<Times> {
        let round_trips = self.ping_pong(count, 1)?;
        let mut times = Times::default();
        self.record(&round_trips[round_trips.len() / 10..], &mut times);
        Ok(times)
    }

    /// Copies of `size` bytes a second.
    pub fn copies(&mut self, count: u64, size: usize) -> Result<f64> {
        self.shared.reset();
        self.worker.start_job(Job::Copy { count, size })?;
        self.shared.meet(0);
        let begun = ticks();
        self.shared.copy(0, count, size);
        let time = self.clock.ns(ticks() - begun);
        self.worker.done()?;
        Ok(count as f64 * 1e9 / time)
    }

    /// Ticks of blocks of `block` messages there and back, `messages` in all, after a tenth as warm-up.
    fn round_trips(&mut self, messages: u64, block: u64, size: usize) -> Result<Vec<u64>> {
        let timed = messages.div_ceil(block);
        let warm_up = timed.div_ceil(10);
        let blocks = warm_up + timed;
        self.worker.start_job(Job::Echo {
            count: blocks * block,
            size,
        })?;
        self.end.connect()?;
        let payload = vec![1; size];
        let mut times = Vec::with_capacity(blocks as usize);
        for _ in 0..blocks {
            let begun = ticks();
            for _ in 0..block {
                self.end.send_now(&payload)?;
                self.end.take()?;
            }
            times.push(ticks() - begun);
        }
        self.worker.done()?;
        Ok(times.split_off(warm_up as usize))
    }

    /// Runs `job`; if there are relays with processes of their own, also says how much of a processor they took together, in
    /// percent.
    pub fn with_relays_share<T>(
        &mut self,
        job: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(T, Option<f64>)> {
        let (before, begun) = (self.end.relays_time()?, Instant::now());
        let result = job(self)?;
        let (after, wall) = (self.end.relays_time()?, begun.elapsed());
        let share = |(before, after): (Duration, Duration)| {
            100.0 * (after - before).as_secs_f64() / wall.as_secs_f64()
        };
        Ok((result, before.zip(after).map(share)))
    }

    /// One-way times of single messages, one under way at a time; and their median by blocks, see [`BLOCK`]. Each for
    /// half of the time, or each with the whole count.
    pub fn latency(&mut self, length: Length, size: usize) -> Result<(Times, f64)> {
        let length = match length {
            Length::Count(_) => length,
            Length::Time(_) => length.part(2),
        };
        self.meet(size)?;
        let mut blocks = Vec::new();
        let mut chunks = Chunks::new(length);
        while let Some(count) = chunks.next() {
            let some = self.round_trips(count, BLOCK, size)?;
            chunks.took(self.clock.ns(some.iter().sum()));
            blocks.extend(some);
        }
        let mut times = Times::default();
        let mut chunks = Chunks::new(length);
        while let Some(count) = chunks.next() {
            let single = self.round_trips(count, 1, size)?;
            chunks.took(self.clock.ns(single.iter().sum()));
            self.record(&single, &mut times);
        }
        Ok((times, self.typical(&blocks)))
    }

    /// One-way times of messages that are sent `rate` times a second, after a tenth as warm-up.
    pub fn scheduled(&mut self, length: Length, rate: f64, size: usize) -> Result<Scheduled> {
        let count = match length {
            Length::Count(count) => count,
            Length::Time(time) => (time.as_secs_f64() * rate).ceil() as u64,
        };
        let parts = [count.div_ceil(10), count];
        self.worker.start_job(Job::Echo {
            count: parts.iter().sum(),
            size,
        })?;
        self.end.connect()?;
        let times = schedule::run(&mut self.end, &self.clock, rate, parts, &vec![1; size])?;
        self.worker.done()?;
        Ok(times)
    }

    /// Messages that were sent, and how many a second, from the first send to the acknowledgement of the last.
    pub fn stream(&mut self, length: Length, size: usize) -> Result<(u64, f64)> {
        self.meet(size)?;
        let payload = vec![1; size];
        let (mut messages, mut ns) = (0, 0.0);
        let mut chunks = Chunks::new(length);
        while let Some(count) = chunks.next() {
            self.worker.start_job(Job::Sink { count, size })?;
            self.end.connect()?;
            let begun = ticks();
            for _ in 0..count {
                self.end.send(&payload)?;
            }
            self.end.take()?;
            let took = self.clock.ns(ticks() - begun);
            chunks.took(took);
            ns += took;
            messages += count;
            self.worker.done()?;
        }
        Ok((messages, messages as f64 * 1e9 / ns))
    }

    /// Lets the relays find each other, which takes a while and is not what is measured.
    fn meet(&mut self, size: usize) -> Result<()> {
        match self.end.raw {
            Some(_) => self.round_trips(1, 1, size).map(drop),
            None => Ok(()),
        }
    }

    /// Median one-way time of `size` bytes over the bare connection, ns, after a tenth as warm-up.
    pub fn raw_latency(&mut self, count: u64, size: usize) -> Result<f64> {
        let blocks = count.div_ceil(BLOCK);
        self.worker.start_job(Job::RawEcho {
            count: blocks * BLOCK,
            size,
        })?;
        let raw = self.end.raw.as_mut().ok_or("there is no bare connection")?;
        let mut bytes = vec![1; size];
        let mut times = Vec::new();
        for _ in 0..blocks {
            let begun = ticks();
            for _ in 0..BLOCK {
                raw.send(&bytes)?;
                raw.take(&mut bytes)?;
            }
            times.push(ticks() - begun);
        }
        self.worker.done()?;
        Ok(self.typical(&times[times.len() / 10..]))
    }

    /// Pieces of `size` bytes a second over the bare connection, one write and one read each.
    pub fn raw_stream(&mut self, count: u64, size: usize) -> Result<f64> {
        self.worker.start_job(Job::RawSink { count, size })?;
        let raw = self.end.raw.as_mut().ok_or("there is no bare connection")?;
        let bytes = vec![1; size];
        let begun = ticks();
        for _ in 0..count {
            raw.send(&bytes)?;
        }
        raw.take(&mut [0])?;
        let ns = self.clock.ns(ticks() - begun);
        self.worker.done()?;
        Ok(count as f64 * 1e9 / ns)
    }

    /// Median of the one-way times of blocks of [`BLOCK`] round trips, ns: free of the clock's resolution and cost.
    fn typical(&self, blocks: &[u64]) -> f64 {
        let one_way = |block: &u64| self.clock.ns(*block) / (2 * BLOCK) as f64;
        median(&blocks.iter().map(one_way).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    }

    /// Counts half of each round trip.
    fn record(&self, round_trips: &[u64], times: &mut Times) {
        for time in round_trips {
            times.record(self.clock.ns(*time) / 2.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_add_up_to_the_count() {
        for count in [1, 2, LARGEST_CHUNK, 3 * LARGEST_CHUNK + 7] {
            let mut chunks = Chunks::new(Length::Count(count));
            let jobs: Vec<_> = std::iter::from_fn(|| chunks.next()).collect();
            assert_eq!(jobs.iter().sum::<u64>(), count);
            assert!(jobs.iter().all(|job| *job <= LARGEST_CHUNK));
        }
    }

    #[test]
    fn jobs_end_with_their_time() {
        let begun = Instant::now();
        let mut chunks = Chunks::new(Length::Time(Duration::from_millis(150)));
        let mut jobs = Vec::new();
        while let Some(job) = chunks.next() {
            std::thread::sleep(Duration::from_micros(10 * job));
            chunks.took(10_000.0 * job as f64);
            jobs.push(job);
        }
        assert!(begun.elapsed() >= Duration::from_millis(140));
        // They grow until one takes 50 ms, and then take 100 ms, or what is left.
        assert_eq!(jobs[..4], [100, 400, 1600, 6400]);
        assert!(jobs[4..].iter().all(|job| *job <= 10_000), "{jobs:?}");
    }
}
