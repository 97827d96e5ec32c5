//! `tbusperf compare`: two results, size by size.

use super::output::Output;
use super::report::{FIGURES, Figure, Kind, Regime, Report, Row};
use super::run::print;
use super::series::Series;
use super::{Failure, Result, pictures};
use crate::columns::{Align, Columns};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// Rounds below which nothing can be said of their spread.
const ENOUGH_ROUNDS: usize = 3;

/// Whether two figures differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// B is better, and all its rounds are.
    Better,
    /// B is worse, and all its rounds are.
    Worse,
    /// Some rounds of one lie among those of the other.
    WithinSpread,
    /// One of them has fewer than three rounds.
    TooFewRounds,
}

impl Verdict {
    fn of(figure: &Figure, a: &Series, b: &Series) -> Verdict {
        if a.rounds().len().min(b.rounds().len()) < ENOUGH_ROUNDS {
            return Verdict::TooFewRounds;
        }
        let (b_is_less, b_is_more) = (b.high() < a.low(), b.low() > a.high());
        match (b_is_less, b_is_more) {
            (false, false) => Verdict::WithinSpread,
            _ if b_is_more == figure.more_is_better => Verdict::Better,
            _ => Verdict::Worse,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Verdict::Better => "B better",
            Verdict::Worse => "B worse",
            Verdict::WithinSpread => "within the spread",
            Verdict::TooFewRounds => "too few rounds",
        }
    }
}

/// A figure of both.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Payload bytes.
    pub bytes: usize,
    /// Its name, one of [`FIGURES`].
    pub figure: &'static str,
    /// Of the first result.
    pub a: Series,
    /// Of the second one.
    pub b: Series,
    /// Median of B by that of A.
    pub ratio: Option<f64>,
    /// Whether they differ.
    pub verdict: Verdict,
}

/// All that there is to say of two results.
#[derive(Debug, Serialize)]
pub struct Comparison {
    format: &'static str,
    format_version: u64,
    kind: Kind,
    a: String,
    b: String,
    /// Why the ratios may not mean what they seem to; the graver first.
    warnings: Vec<String>,
    /// By size, then by figure.
    lines: Vec<Line>,
}

/// Which figures are compared.
fn figures(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Lat => &[
            "typical",
            "p99",
            "p99.9",
            "p99.99",
            "raw_p99",
            "raw_p99.9",
            "line",
            "over_line",
        ],
        Kind::Rate => &["per_second", "line", "per_line", "over_copies"],
        Kind::Limit => &["line", "copies_per_second"],
    }
}

impl Comparison {
    /// Compares; refuses results that have nothing in common. `names`: the files'.
    pub fn new([a, b]: [&Report; 2], names: [&str; 2]) -> Result<Comparison> {
        if a.kind != b.kind {
            return Err(Failure::File(format!(
                "{} is a result of `tbusperf {}`, {} one of `tbusperf {}`; give two of the same kind",
                names[0],
                a.kind.name(),
                names[1],
                b.kind.name()
            ))
            .into());
        }
        let mut lines = Vec::new();
        for row_a in &a.sizes {
            if let Some(row_b) = b.sizes.iter().find(|row| row.bytes == row_a.bytes) {
                lines.extend(compare_rows(a.kind, row_a, row_b));
            }
        }
        if lines.is_empty() {
            let sizes = |r: &Report| r.sizes.iter().map(|row| row.bytes).collect::<Vec<_>>();
            return Err(Failure::File(format!(
                "{} has figures for sizes {:?}, {} for {:?}: none in common; measure both with the same --size",
                names[0],
                sizes(a),
                names[1],
                sizes(b)
            ))
            .into());
        }
        Ok(Comparison {
            format: "tbusperf-compare",
            format_version: 1,
            kind: a.kind,
            a: names[0].into(),
            b: names[1].into(),
            warnings: warnings(a, b),
            lines,
        })
    }

    /// As a file.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The limit is the machine's: where a program is measured, it is no merit of the program.
    fn verdict_text(&self, line: &Line) -> &'static str {
        match line.verdict {
            Verdict::Better | Verdict::Worse
                if line.figure == "line" && self.kind != Kind::Limit =>
            {
                "the limit differs"
            }
            verdict => verdict.text(),
        }
    }

    /// As a table for people.
    pub fn render(&self) -> String {
        let mut text = format!("A: {}\nB: {}\n\n", self.a, self.b);
        for warning in &self.warnings {
            let _ = writeln!(text, "{warning}");
        }
        if !self.warnings.is_empty() {
            text.push('\n');
        }
        let mut table = Columns::new(&[
            ("bytes", Align::Right),
            ("figure", Align::Left),
            ("A", Align::Right),
            ("B", Align::Right),
            ("B ÷ A", Align::Right),
            ("", Align::Left),
        ]);
        for line in &self.lines {
            let Some(figure) = FIGURES.iter().find(|f| f.name == line.figure) else {
                continue;
            };
            let shown = |series: &Series| series.scaled(1.0 / figure.unit).spread(figure.digits);
            table.row(vec![
                line.bytes.to_string(),
                figure.title.into(),
                shown(&line.a),
                shown(&line.b),
                line.ratio.map_or("–".into(), |r| format!("{r:.2}")),
                self.verdict_text(line).into(),
            ]);
        }
        let _ = writeln!(
            text,
            "{table}\nMedian of the rounds (lowest–highest). better, worse: all rounds of B lie on one side of all rounds of A."
        );
        text
    }
}

fn compare_rows(kind: Kind, a: &Row, b: &Row) -> Vec<Line> {
    let mut lines = Vec::new();
    for figure in FIGURES.iter().filter(|f| figures(kind).contains(&f.name)) {
        let (of_a, of_b) = (a.figure(figure.name), b.figure(figure.name));
        let (Some(median_a), Some(median_b)) = (of_a.median(), of_b.median()) else {
            continue;
        };
        lines.push(Line {
            bytes: a.bytes,
            figure: figure.name,
            ratio: Some(median_b / median_a).filter(|r| r.is_finite()),
            verdict: Verdict::of(figure, &of_a, &of_b),
            a: of_a,
            b: of_b,
        });
    }
    lines
}

fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    if a.regime != b.regime {
        warnings.push(format!(
            "*** THE REGIMES DIFFER: A is {}, B is {}. These ratios compare placements of processors, not programs.\n*** Only figures by line or by copy limit mean something; better measure again, both in one regime.",
            a.regime.name(),
            b.regime.name()
        ));
    }
    if [a.regime, b.regime] == [Regime::Mixed; 2] {
        warnings.push("*** BOTH REGIMES ARE MIXED: some rounds were near, others far. The medians compare placements of processors, not programs.".into());
    }
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            warnings.push(format!("The {what} differs: A {a}, B {b}."));
        }
    };
    differ("processor", a.machine.cpu.clone(), b.machine.cpu.clone());
    differ("kernel", a.machine.kernel.clone(), b.machine.kernel.clone());
    let [of_a, of_b] = [&a.settings, &b.settings];
    differ("channel", of_a.channel.clone(), of_b.channel.clone());
    differ(
        "ring's capacity",
        of_a.ring_bytes.to_string(),
        of_b.ring_bytes.to_string(),
    );
    let rate = |rate: Option<f64>| rate.map_or("none given".into(), |r| format!("{r}/s"));
    differ(
        "message rate",
        rate(of_a.message_rate),
        rate(of_b.message_rate),
    );
    let pinned = |cpus: Option<[usize; 2]>| {
        if cpus.is_some() {
            "pinned"
        } else {
            "not pinned"
        }
    };
    differ(
        "pinning",
        pinned(of_a.cpus).into(),
        pinned(of_b.cpus).into(),
    );
    warnings
}

/// Reads two results, compares them, and prints and draws what it found.
pub fn run(files: [&Path; 2], json: bool, svg: Option<&Path>) -> Result<()> {
    let [a, b] = [Report::read(files[0])?, Report::read(files[1])?];
    let shown = files.map(|f| f.display().to_string());
    let names = [shown[0].as_str(), shown[1].as_str()];
    let comparison = Comparison::new([&a, &b], names)?;
    if let Some(svg) = svg {
        Output::open(svg)?.write(&pictures::of_two([&a, &b], names)?)?;
    }
    print(&match json {
        true => comparison.to_json()?,
        false => comparison.render(),
    })
}
