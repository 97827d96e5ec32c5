//! `tbusperf limit`, `lat` and `rate`: two pinned processes, the limit measured beside every figure.

use super::Result;
use super::clock::{Clock, ticks};
use super::limit::Shared;
use super::scratch::Scratch;
use super::worker::{Job, Worker, pin, send, take};
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tbus::{Address, Receiver, Ring, RingSpec, Sender};

/// Rounds whose limits before and after differ by more than this factor are dropped: the machine changed.
const SAME_REGIME: f64 = 1.2;
/// Round trips that are timed as one where the clock is too coarse for one.
const BLOCK: u64 = 20;
/// One-way time of a cache line, in nanoseconds, below which two cores share a last-level cache.
const NEAR_BELOW: f64 = 120.0;

/// What all measurements take.
#[derive(Clone, Debug)]
pub struct Options {
    /// Payload sizes, bytes.
    pub sizes: Vec<usize>,
    /// Messages a round; `None`: chosen by size.
    pub count: Option<u64>,
    /// Rounds.
    pub rounds: usize,
    /// Processors of the first and the second process; `None`: wherever the system puts them.
    pub cpus: Option<[usize; 2]>,
    /// Capacity of each ring, bytes.
    pub capacity: u64,
}

/// Two processes with two rings between them, and a piece of bare shared memory.
struct Bench {
    worker: Worker,
    sender: Sender,
    receiver: Receiver,
    shared: Shared,
    clock: Clock,
    /// Dropped last: it removes the files.
    _scratch: Scratch,
}

impl Bench {
    fn new(options: &Options) -> Result<Bench> {
        if let Some([cpu, _]) = options.cpus {
            pin(cpu)?;
        }
        let scratch = Scratch::new("perf")?;
        let make = |slot| {
            let spec = RingSpec {
                lock_slot: slot,
                ..RingSpec::local(options.capacity, Address(1), Address(2))
            };
            Ring::create(scratch.directory(), &spec)
        };
        let (there, back) = (make(0)?, make(1)?);
        there.prefault();
        back.prefault();
        let shared = Shared::open(&scratch.join("limit"))?;
        let cpu = options.cpus.map(|c| c[1]);
        let worker = Worker::start(scratch.directory().path(), [there.uuid(), back.uuid()], cpu)?;
        Ok(Bench {
            worker,
            sender: there.sender()?,
            receiver: back.receiver()?,
            shared,
            clock: Clock::get(),
            _scratch: scratch,
        })
    }

    /// Median one-way time of a cache line, ns.
    fn line(&mut self, count: u64) -> Result<f64> {
        self.shared.reset();
        self.worker.start_job(Job::PingPong { count })?;
        self.shared.meet(0);
        let times = self.shared.ping_pong(0, count / BLOCK, BLOCK);
        self.worker.done()?;
        Ok(self.typical(&times, BLOCK))
    }

    /// One-way times of a cache line, in tenths of a nanosecond.
    fn line_times(&mut self, count: u64) -> Result<Histogram<u64>> {
        self.shared.reset();
        self.worker.start_job(Job::PingPong { count })?;
        self.shared.meet(0);
        let times = self.shared.ping_pong(0, count, 1);
        self.worker.done()?;
        self.one_way(&times)
    }

    /// Copies of `size` bytes a second.
    fn copies(&mut self, count: u64, size: usize) -> Result<f64> {
        self.shared.reset();
        self.worker.start_job(Job::Copy { count, size })?;
        self.shared.meet(0);
        let begun = ticks();
        self.shared.copy(0, count, size);
        let time = self.clock.ns(ticks() - begun);
        self.worker.done()?;
        Ok(count as f64 * 1e9 / time)
    }

    /// Times of `count` blocks of `block` messages there and back, in ticks.
    fn round_trips(&mut self, count: u64, block: u64, size: usize) -> Result<Vec<u64>> {
        self.worker.start_job(Job::Echo {
            count: count * block,
            size,
        })?;
        let payload = vec![1; size];
        let mut times = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let begun = ticks();
            for _ in 0..block {
                send(&mut self.sender, &payload)?;
                take(&mut self.receiver)?;
            }
            times.push(ticks() - begun);
        }
        self.worker.done()?;
        Ok(times)
    }

    /// Messages a second, from the first send to the acknowledgement of the last.
    fn rate(&mut self, count: u64, size: usize) -> Result<f64> {
        self.worker.start_job(Job::Sink { count, size })?;
        let payload = vec![1; size];
        let begun = ticks();
        for _ in 0..count {
            send(&mut self.sender, &payload)?;
        }
        take(&mut self.receiver)?;
        let time = self.clock.ns(ticks() - begun);
        self.worker.done()?;
        Ok(count as f64 * 1e9 / time)
    }

    /// Median over blocks of `block` round trips of the one-way time, ns: free of the clock's resolution and cost.
    fn typical(&self, blocks: &[u64], block: u64) -> f64 {
        let times: Vec<f64> = blocks
            .iter()
            .map(|t| self.clock.ns(*t) / (2 * block) as f64)
            .collect();
        median(&times[times.len() / 10..])
    }

    /// Half of each round trip, in tenths of a nanosecond; the first tenth of the run is warm-up.
    fn one_way(&self, times: &[u64]) -> Result<Histogram<u64>> {
        let mut histogram = Histogram::new(3)?;
        for time in &times[times.len() / 10..] {
            histogram.record((self.clock.ns(*time) * 5.0) as u64)?;
        }
        Ok(histogram)
    }
}

/// "near", "far" or what lies between, by the one-way time of a cache line.
fn regime(line: f64) -> &'static str {
    if line < NEAR_BELOW { "near" } else { "far" }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Median with the smallest and the largest: "1.12 (1.08–1.15)".
fn spread(values: &[f64], digits: usize) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() {
        return "–".into();
    }
    format!(
        "{:.digits$} ({low:.digits$}–{high:.digits$})",
        median(values)
    )
}

/// An empty table with right-aligned columns.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn bar(length: usize, what: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len}").expect("a valid template");
    let bar = ProgressBar::new(length as u64).with_style(style);
    bar.set_message(what.to_string());
    bar
}

/// `tbusperf limit`: what the two cores can do without any channel.
pub fn limits(options: &Options) -> Result<()> {
    let mut bench = Bench::new(options)?;
    let progress = bar(options.rounds, "limit");
    let sizes = [64, 256, 1024, 4096, 65536];
    let (mut typical, mut p999) = (Vec::new(), Vec::new());
    let mut copies = vec![Vec::new(); sizes.len()];
    for _ in 0..options.rounds {
        let times = bench.line_times(200_000)?;
        typical.push(bench.line(100_000)?);
        p999.push(times.value_at_quantile(0.999) as f64 / 10.0);
        for (size, rates) in sizes.iter().zip(&mut copies) {
            rates.push(bench.copies((1 << 30) / (*size as u64 + 1024), *size)? / 1e6);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    println!(
        "cache line, one way: {} ns, p99.9 {} ns ({})",
        spread(&typical, 1),
        spread(&p999, 1),
        regime(median(&typical))
    );
    let mut table = table(&["bytes", "M copies/s", "GB/s"]);
    for (size, rates) in sizes.iter().zip(&copies) {
        let gigabytes: Vec<f64> = rates.iter().map(|r| r * *size as f64 / 1e3).collect();
        table.add_row([size.to_string(), spread(rates, 2), spread(&gigabytes, 2)]);
    }
    println!(
        "{table}\ncopies: one process copies into rotating slots of 1 MiB, the other touches each line"
    );
    Ok(())
}

/// `tbusperf lat`: one-way times of single messages.
pub fn latencies(options: &Options) -> Result<()> {
    let mut bench = Bench::new(options)?;
    let mut table = table(&[
        "bytes",
        "rounds",
        "typical ns",
        "p99 ns",
        "p99.9 ns",
        "line ns",
        "÷ line",
        "regime",
    ]);
    for size in &options.sizes {
        let count = options.count.unwrap_or(200_000);
        let progress = bar(options.rounds, &format!("{size} B"));
        let mut figures = [const { Vec::new() }; 5];
        for _ in 0..options.rounds {
            let before = bench.line(100_000)?;
            let typical = bench.round_trips(count / BLOCK, BLOCK, *size)?;
            let typical = bench.typical(&typical, BLOCK);
            let times = bench.round_trips(count, 1, *size)?;
            let times = bench.one_way(&times)?;
            let after = bench.line(100_000)?;
            progress.inc(1);
            if before.max(after) > before.min(after) * SAME_REGIME {
                continue;
            }
            let line = (before + after) / 2.0;
            let at = |quantile| times.value_at_quantile(quantile) as f64 / 10.0;
            let row = [typical, at(0.99), at(0.999), line, typical / line];
            figures
                .iter_mut()
                .zip(row)
                .for_each(|(all, one)| all.push(one));
        }
        progress.finish_and_clear();
        let [typical, p99, p999, line, ratio] = &figures;
        table.add_row([
            size.to_string(),
            format!("{}/{}", typical.len(), options.rounds),
            spread(typical, 1),
            format!("{:.0}", median(p99)),
            format!("{:.0}", median(p999)),
            format!("{:.1}", median(line)),
            spread(ratio, 2),
            regime(median(line)).into(),
        ]);
    }
    println!("{table}");
    println!(
        "one way: half of a round trip between two pinned processes; median of the rounds (lowest–highest)."
    );
    println!(
        "typical: median over blocks of {BLOCK} round trips, like the line's; the percentiles are of single ones."
    );
    println!(
        "line: cache-line ping-pong before and after each round; rounds in which the two differ by more than 20 % are dropped."
    );
    Ok(())
}

/// `tbusperf rate`: messages a second in a stream.
pub fn rates(options: &Options) -> Result<()> {
    let mut bench = Bench::new(options)?;
    let mut table = table(&[
        "bytes",
        "rounds",
        "M messages/s",
        "GB/s",
        "per line time",
        "÷ copy limit",
        "line ns",
        "regime",
    ]);
    for size in &options.sizes {
        let count = options.count.unwrap_or((1 << 30) / (*size as u64 + 256));
        let progress = bar(options.rounds, &format!("{size} B"));
        let mut figures = [const { Vec::new() }; 5];
        for _ in 0..options.rounds {
            let before = bench.line(50_000)?;
            let copy_size = (*size).clamp(64, 65536);
            let copies_before = bench.copies(count, copy_size)?;
            let rate = bench.rate(count, *size)?;
            let copies = (copies_before + bench.copies(count, copy_size)?) / 2.0;
            let after = bench.line(50_000)?;
            progress.inc(1);
            if before.max(after) > before.min(after) * SAME_REGIME {
                continue;
            }
            let line = (before + after) / 2.0;
            let row = [
                rate / 1e6,
                rate * *size as f64 / 1e9,
                rate * line / 1e9,
                rate / copies,
                line,
            ];
            figures
                .iter_mut()
                .zip(row)
                .for_each(|(all, one)| all.push(one));
        }
        progress.finish_and_clear();
        let [rate, bytes, per_line, of_copies, line] = &figures;
        table.add_row([
            size.to_string(),
            format!("{}/{}", rate.len(), options.rounds),
            spread(rate, 2),
            format!("{:.2}", median(bytes)),
            spread(per_line, 1),
            spread(of_copies, 2),
            format!("{:.1}", median(line)),
            regime(median(line)).into(),
        ]);
    }
    println!("{table}");
    println!(
        "payload copied in, each of its lines touched in place; median of the rounds (lowest–highest)."
    );
    println!(
        "per line time: messages in the time that a cache line takes one way. copy limit: see tbusperf limit."
    );
    Ok(())
}
