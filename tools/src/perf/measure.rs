//! `tbusperf limit`, `lat` and `rate`: rounds of limit, channel, limit.

use super::Result;
use super::bench::{Bench, Length};
use super::channel::Way;
use super::machine::Machine;
use super::options::Options;
use super::report::{FORMAT, Kind, Regime, Report, Row, Settings, VERSION};
use super::series::Series;
use super::times::Times;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::SystemTime;

/// Rounds whose limits before and after differ by more than this factor are dropped: the machine changed.
const SAME_REGIME: f64 = 1.2;
/// Round trips of a cache line before and after each round, and those timed singly.
const LINE_TRIPS: u64 = 100_000;
/// Messages a round of a latency measurement, unless told.
const SINGLE_MESSAGES: u64 = 200_000;
/// The same over TCP.
const REMOTE_MESSAGES: u64 = 20_000;
/// Seconds a round of a measurement at a given rate, unless told.
pub const SECONDS_AT_RATE: f64 = 1.0;
/// The largest slot of the copy limit: enough of them fit into its area to keep both sides busy.
const LARGEST_COPY: usize = 65536;

/// Bytes that a round of a rate moves, unless told; each message counts for more than its payload.
fn messages_by_size(bytes: u64, size: usize) -> u64 {
    bytes / (size as u64 + 256)
}

/// Whether the machine changed between two limits.
fn straddles(before: f64, after: f64) -> bool {
    before.max(after) > before.min(after) * SAME_REGIME
}

/// Runs the rounds and collects what they give.
struct Run<'a> {
    options: &'a Options,
    bench: Bench,
    progress: ProgressBar,
    line: Series,
    line_times: Times,
}

impl Run<'_> {
    fn new(options: &Options) -> Result<Run<'_>> {
        let style =
            ProgressStyle::with_template("{msg:>8} {wide_bar} {pos}/{len} rounds, {eta} left")
                .expect("a valid template");
        // Hidden where standard error is no terminal; drawn between rounds only.
        let progress = ProgressBar::new((options.sizes.len() * options.rounds) as u64);
        Ok(Run {
            options,
            bench: Bench::new(options.cpus, options.capacity, options.way)?,
            progress: progress.with_style(style),
            line: Series::default(),
            line_times: Times::default(),
        })
    }

    /// Runs the rounds of one size. `round` measures, and adds what it found to the row that it is given.
    fn rounds(
        &mut self,
        size: usize,
        mut round: impl FnMut(&mut Bench, &mut Row) -> Result<()>,
    ) -> Result<Row> {
        let mut row = Row::new(size);
        for _ in 0..self.options.rounds {
            self.progress.set_message(row.size());
            // Into a copy, which is given up with the round.
            let mut with_round = row.clone();
            let before = self.bench.line(LINE_TRIPS)?;
            let line_times = self.bench.line_times(LINE_TRIPS)?;
            round(&mut self.bench, &mut with_round)?;
            let after = self.bench.line(LINE_TRIPS)?;
            self.progress.inc(1);
            row.rounds_run += 1;
            if straddles(before, after) && !self.options.keep_all {
                continue;
            }
            let line = (before + after) / 2.0;
            row = Row {
                rounds_run: row.rounds_run,
                rounds_kept: row.rounds_kept + 1,
                ..with_round
            };
            row.push("line", line);
            self.line.push(line);
            self.line_times.add(&line_times);
        }
        row.regime = Regime::of(&row.figure("line"));
        let lines = row.figure("line");
        // What relates a round's figure to the same round's line.
        for (name, of, relate) in RELATIONS {
            let values = row.figure(of);
            for (value, line) in values.rounds().iter().zip(lines.rounds()) {
                row.push(name, relate(*value, *line));
            }
        }
        Ok(row)
    }

    fn report(self, kind: Kind, sizes: Vec<Row>) -> Result<Report> {
        self.progress.finish_and_clear();
        if self.line.rounds().is_empty() {
            return Err(format!(
                "no round was kept: in each of {} the limits before and after differed by more than {:.0} %; measure when nothing else runs, or with --keep-all",
                self.options.rounds * self.options.sizes.len(),
                (SAME_REGIME - 1.0) * 100.0
            )
            .into());
        }
        let options = self.options;
        Ok(Report {
            format: FORMAT.into(),
            format_version: VERSION,
            kind,
            tbus: env!("CARGO_PKG_VERSION").into(),
            command: options.command.clone(),
            time: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)?
                .as_secs(),
            machine: Machine::this(),
            settings: Settings {
                channel: options.way.name(),
                ring_bytes: options.capacity,
                cpus: options.cpus,
                rounds: options.rounds,
                message_rate: options.rate,
            },
            regime: Regime::of(&self.line),
            line: self.line,
            line_times: Some(self.line_times),
            sizes,
        })
    }
}

/// Figure, the figure it is made from, and how, with the line's time in nanoseconds.
type Relation = (&'static str, &'static str, fn(f64, f64) -> f64);

const RELATIONS: [Relation; 2] = [
    ("over_line", "typical", |typical, line| typical / line),
    ("per_line", "per_second", |rate, line| rate * line / 1e9),
];

/// `tbusperf limit`: what the two processors can do without any channel.
pub fn limits(options: &Options) -> Result<Report> {
    let mut run = Run::new(options)?;
    let mut rows = Vec::new();
    for size in &options.sizes {
        let count = (1 << 30) / (*size as u64 + 1024);
        rows.push(run.rounds(*size, |bench, row| {
            let copies = bench.copies(count, *size)?;
            row.iterations += count;
            row.push("copies_per_second", copies);
            row.push("bytes_per_second", copies * *size as f64);
            Ok(())
        })?);
    }
    run.report(Kind::Limit, rows)
}

/// `tbusperf lat`: one-way times of single messages.
pub fn latencies(options: &Options) -> Result<Report> {
    let mut run = Run::new(options)?;
    let mut rows = Vec::new();
    for size in &options.sizes {
        rows.push(run.rounds(*size, |bench, row| match options.rate {
            Some(rate) => at_rate(bench, row, options, rate),
            None => one_at_a_time(bench, row, options),
        })?);
    }
    run.report(Kind::Lat, rows)
}

fn one_at_a_time(bench: &mut Bench, row: &mut Row, options: &Options) -> Result<()> {
    let length = options.length_of_round();
    let remote = options.way != Way::Local;
    let usual = if remote {
        REMOTE_MESSAGES
    } else {
        SINGLE_MESSAGES
    };
    let length = length.unwrap_or(Length::Count(usual));
    let beside_tcp = remote && options.beside_tcp;
    let raw = match beside_tcp {
        true => bench.raw_latency(REMOTE_MESSAGES, row.bytes.max(1))?,
        false => 0.0,
    };
    let ((times, typical), relays) =
        bench.with_relays_share(|bench| bench.latency(length, row.bytes))?;
    if let Some(percent) = relays {
        row.push("relays_percent", percent);
    }
    if beside_tcp {
        let raw = (raw + bench.raw_latency(REMOTE_MESSAGES, row.bytes.max(1))?) / 2.0;
        row.push("raw_tcp", raw);
        row.push("over_raw_tcp", typical / raw);
    }
    row.push("typical", typical);
    push_percentiles(row, &times);
    row.iterations += times.count();
    row.times.get_or_insert_default().add(&times);
    Ok(())
}

fn at_rate(bench: &mut Bench, row: &mut Row, options: &Options, rate: f64) -> Result<()> {
    let length = options.length_of_round();
    let length = length.unwrap_or(Length::Count((rate * SECONDS_AT_RATE).ceil() as u64));
    let found = bench.scheduled(length, rate, row.bytes)?;
    row.push("typical", found.corrected.percentile(50.0));
    push_percentiles(row, &found.corrected);
    row.push("raw_p99", found.raw.percentile(99.0));
    row.push("raw_p99.9", found.raw.percentile(99.9));
    row.push("per_second", found.achieved);
    row.iterations += found.corrected.count();
    row.times.get_or_insert_default().add(&found.corrected);
    row.raw_times.get_or_insert_default().add(&found.raw);
    Ok(())
}

fn push_percentiles(row: &mut Row, times: &Times) {
    for (name, percent) in [
        ("p50", 50.0),
        ("p99", 99.0),
        ("p99.9", 99.9),
        ("p99.99", 99.99),
    ] {
        row.push(name, times.percentile(percent));
    }
}

/// `tbusperf rate`: messages a second in a stream.
pub fn rates(options: &Options) -> Result<Report> {
    let mut run = Run::new(options)?;
    let mut rows = Vec::new();
    for size in &options.sizes {
        let length = options.length_of_round();
        let length = length.unwrap_or(Length::Count(messages_by_size(1 << 30, *size)));
        let copies = messages_by_size(1 << 29, *size);
        let copy_size = (*size).clamp(64, LARGEST_COPY);
        if options.way != Way::Local {
            rows.push(run.rounds(*size, |bench, row| {
                remote_stream(bench, row, length, options.beside_tcp)
            })?);
            continue;
        }
        rows.push(run.rounds(*size, |bench, row| {
            let before = bench.copies(copies, copy_size)?;
            let (messages, rate) = bench.stream(length, *size)?;
            let copies = (before + bench.copies(copies, copy_size)?) / 2.0;
            row.iterations += messages;
            row.push("per_second", rate);
            row.push("bytes_per_second", rate * *size as f64);
            row.push("copies_per_second", copies);
            row.push("over_copies", rate / copies);
            Ok(())
        })?);
    }
    run.report(Kind::Rate, rows)
}

/// A stream to another host, the bare connection beside it.
fn remote_stream(bench: &mut Bench, row: &mut Row, length: Length, beside_tcp: bool) -> Result<()> {
    let size = row.bytes.max(1);
    // Long enough that what fits into the socket's buffers does not count; each message is a system call.
    let pieces = (1 << 30) / (size as u64 + 4096);
    let mut raw = 0.0;
    if beside_tcp {
        raw = bench.raw_stream(pieces, size)?;
    }
    let ((messages, rate), relays) =
        bench.with_relays_share(|bench| bench.stream(length, row.bytes))?;
    if let Some(percent) = relays {
        row.push("relays_percent", percent);
    }
    row.iterations += messages;
    row.push("per_second", rate);
    row.push("bytes_per_second", rate * row.bytes as f64);
    if beside_tcp {
        let raw = (raw + bench.raw_stream(pieces, size)?) / 2.0;
        row.push("raw_tcp_per_second", raw);
        row.push("over_raw_tcp_rate", rate / raw);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_straddle_when_either_limit_is_a_fifth_above_the_other() {
        assert!(!straddles(55.0, 65.0) && !straddles(65.0, 55.0));
        assert!(straddles(55.0, 67.0) && straddles(67.0, 55.0));
    }
}
