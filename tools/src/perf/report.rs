//! The result of a measurement. `--json` writes it, `compare` reads it; docs/performance.md describes it.

use super::machine::Machine;
use super::series::Series;
use super::times::Times;
use super::{Failure, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Says what a file is.
pub const FORMAT: &str = "tbusperf";
/// Raised when readers of the last version could misread a file; a new field alone is no reason.
pub const VERSION: u64 = 1;
/// One-way time of a cache line, in nanoseconds, below which two processors share a last-level cache.
const NEAR_BELOW: f64 = 120.0;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One-way times.
    Lat,
    /// Messages a second.
    Rate,
    /// What the machine can do without a channel.
    Limit,
}

impl Kind {
    /// Its sub-command.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lat => "lat",
            Kind::Rate => "rate",
            Kind::Limit => "limit",
        }
    }
}

/// The placement of the two processors, which changes every figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Regime {
    /// They share a last-level cache.
    Near,
    /// They do not.
    Far,
    /// Some rounds were near, others far.
    Mixed,
    /// No round was kept.
    Unknown,
}

impl Regime {
    /// By the one-way times of a cache line.
    pub fn of(lines: &Series) -> Regime {
        let near = lines.rounds().iter().filter(|l| **l < NEAR_BELOW).count();
        match (near, lines.rounds().len() - near) {
            (0, 0) => Regime::Unknown,
            (_, 0) => Regime::Near,
            (0, _) => Regime::Far,
            _ => Regime::Mixed,
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Regime::Near => "near",
            Regime::Far => "far",
            Regime::Mixed => "mixed",
            Regime::Unknown => "unknown",
        }
    }
}

/// A measurement with all that belongs to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub format_version: u64,
    /// What was measured.
    pub kind: Kind,
    /// The version of tbus.
    pub tbus: String,
    /// The command line.
    pub command: Vec<String>,
    /// Seconds since 1970 when it was done.
    pub time: u64,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// The regime of all rounds that were kept.
    pub regime: Regime,
    /// The limit: one-way time of a cache line, ns.
    pub line: Series,
    /// The distribution of the same, where it was measured.
    pub line_times: Option<Times>,
    /// The figures by payload size.
    pub sizes: Vec<Row>,
}

/// What the figures depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What connects the two processes.
    pub channel: String,
    /// Capacity of each ring, bytes.
    pub ring_bytes: u64,
    /// The processors that the two processes were pinned to.
    pub cpus: Option<[usize; 2]>,
    /// Rounds that were asked for.
    pub rounds: usize,
    /// Messages a second that were asked for.
    pub message_rate: Option<f64>,
}

/// The figures of one payload size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Payload bytes.
    pub bytes: usize,
    /// Messages, or copies, in the rounds that were kept.
    pub iterations: u64,
    /// Rounds that were run.
    pub rounds_run: usize,
    /// Rounds that were kept: those whose limits before and after agree.
    pub rounds_kept: usize,
    /// The regime of those.
    pub regime: Regime,
    /// By the name of [`FIGURES`], a value for each round that was kept.
    pub figures: std::collections::BTreeMap<String, Series>,
    /// One-way times of single messages; at a given rate, from when each was due.
    pub times: Option<Times>,
    /// At a given rate: one-way times from when each was sent.
    pub raw_times: Option<Times>,
}

/// What a figure means.
#[derive(Debug)]
pub struct Figure {
    /// Its name in files.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// What it is divided by to be shown.
    pub unit: f64,
    /// Digits after the point.
    pub digits: usize,
    /// True if more is better.
    pub more_is_better: bool,
}

const fn figure(name: &'static str, title: &'static str, unit: f64, digits: usize) -> Figure {
    Figure {
        name,
        title,
        unit,
        digits,
        more_is_better: false,
    }
}

const fn more(name: &'static str, title: &'static str, unit: f64, digits: usize) -> Figure {
    Figure {
        more_is_better: true,
        ..figure(name, title, unit, digits)
    }
}

/// Every figure there is. Times are in nanoseconds.
pub const FIGURES: [Figure; 19] = [
    figure("typical", "typical, ns", 1.0, 1),
    figure("p50", "50%, ns", 1.0, 1),
    figure("p99", "99%, ns", 1.0, 1),
    figure("p99.9", "99.9%, ns", 1.0, 1),
    figure("p99.99", "99.99%, ns", 1.0, 1),
    figure("raw_p99", "raw 99%, ns", 1.0, 1),
    figure("raw_p99.9", "raw 99.9%, ns", 1.0, 1),
    figure("line", "line, ns", 1.0, 1),
    figure("over_line", "÷ line", 1.0, 2),
    more("per_second", "M/s", 1e6, 2),
    more("bytes_per_second", "GB/s", 1e9, 2),
    more("per_line", "per line time", 1.0, 1),
    more("copies_per_second", "M copies/s", 1e6, 2),
    more("over_copies", "÷ copy limit", 1.0, 2),
    figure("raw_tcp", "bare TCP, ns", 1.0, 1),
    figure("over_raw_tcp", "÷ bare TCP", 1.0, 2),
    more("raw_tcp_per_second", "bare TCP, M/s", 1e6, 3),
    more("over_raw_tcp_rate", "÷ bare TCP", 1.0, 2),
    figure("relays_percent", "relays' CPU, %", 1.0, 0),
];

impl Row {
    /// A size without any round yet.
    pub fn new(bytes: usize) -> Row {
        Row {
            bytes,
            iterations: 0,
            rounds_run: 0,
            rounds_kept: 0,
            regime: Regime::Unknown,
            figures: Default::default(),
            times: None,
            raw_times: None,
        }
    }

    /// Adds a round's value of a figure.
    pub fn push(&mut self, name: &'static str, value: f64) {
        debug_assert!(FIGURES.iter().any(|f| f.name == name), "{name}");
        self.figures.entry(name.into()).or_default().push(value);
    }

    /// All rounds' values of a figure; none if it was not measured.
    pub fn figure(&self, name: &str) -> Series {
        self.figures.get(name).cloned().unwrap_or_default()
    }

    /// "64 B", "4 KiB".
    pub fn size(&self) -> String {
        size_text(self.bytes)
    }
}

/// Bytes for people.
pub fn size_text(bytes: usize) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

impl Report {
    /// As a file.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// From a file of [`Report::to_json`].
    pub fn read(path: &Path) -> Result<Report> {
        let shown = path.display();
        let text = std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let refuse = |why: String| {
            Failure::File(format!(
                "{shown}: {why}; give a file that `tbusperf lat`, `rate` or `limit` wrote with --json"
            ))
        };
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("not JSON: {e}")))?;
        if value["format"] != FORMAT {
            return Err(refuse("not a result of tbusperf".into()).into());
        }
        match value["format_version"].as_u64() {
            Some(VERSION) => {}
            Some(other) => {
                return Err(Failure::File(format!(
                    "{shown}: its format has version {other}, this tbusperf reads {VERSION}; compare with the tbusperf that wrote it, or measure again"
                ))
                .into());
            }
            None => return Err(refuse("no format_version".into()).into()),
        }
        // From the text again, for its errors have line and column.
        let report = serde_json::from_slice(&text).map_err(|e| refuse(format!("damaged: {e}")))?;
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regime_is_named_by_all_rounds() {
        let of = |lines: &[f64]| {
            let mut series = Series::default();
            lines.iter().for_each(|line| series.push(*line));
            Regime::of(&series)
        };
        assert_eq!(of(&[]), Regime::Unknown);
        assert_eq!(of(&[55.0, 119.0]), Regime::Near);
        assert_eq!(of(&[120.0, 250.0]), Regime::Far);
        assert_eq!(of(&[55.0, 250.0]), Regime::Mixed);
    }
}
