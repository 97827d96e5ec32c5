//! A result as tables for people.

use super::bench::BLOCK;
use super::report::{FIGURES, Kind, Report, Row};
use super::times::Times;
use crate::columns::{Align, Columns};
use std::fmt::Write as _;

/// A table of figures: every column aligned to the right.
pub fn table(header: &[&str]) -> Columns {
    let header: Vec<_> = header.iter().map(|name| (*name, Align::Right)).collect();
    Columns::new(&header)
}

/// The whole result.
pub fn render(report: &Report) -> String {
    let mut text = heading(report);
    let _ = match report.kind {
        Kind::Lat => write!(text, "{}", latencies(report)),
        Kind::Rate => write!(text, "{}", rates(report)),
        Kind::Limit => write!(text, "{}", limits(report)),
    };
    for row in &report.sizes {
        let kept = row.rounds_kept;
        if kept < row.rounds_run {
            let _ = writeln!(
                text,
                "{}: {kept} of {} rounds kept; in the others the line before and after differed by more than 20 %: the machine changed.",
                row.size(),
                row.rounds_run
            );
        }
    }
    text
}

fn heading(report: &Report) -> String {
    let cpus = match report.settings.cpus {
        Some([a, b]) => format!("on processors {a} and {b}"),
        None => "not pinned".into(),
    };
    format!(
        "{}\n{}; two processes {cpus}; regime {}: a cache line takes {} ns one way\n\n",
        report.machine,
        report.settings.channel,
        report.regime.name(),
        report.line.spread(1)
    )
}

/// One decimal where it says something.
fn ns(value: f64) -> String {
    if value < 1000.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// perftest's columns, and some more percentiles: all rounds that were kept, in one histogram.
fn perftest(report: &Report, times_of: impl Fn(&Row) -> Option<&Times>) -> Columns {
    let mut table = table(&[
        "#bytes",
        "#iterations",
        "t_min",
        "t_max",
        "t_typical",
        "t_avg",
        "t_stdev",
        "99%",
        "99.9%",
        "99.99%",
    ]);
    for row in &report.sizes {
        let Some(times) = times_of(row) else {
            let mut cells = vec![String::from("–"); 10];
            cells[0] = row.bytes.to_string();
            cells[1] = "0".into();
            table.row(cells);
            continue;
        };
        // By blocks where there are any, else of single messages.
        let typical = match (row.figure("typical").median(), report.settings.message_rate) {
            (Some(typical), None) => typical,
            _ => times.percentile(50.0),
        };
        let mut cells = vec![row.bytes.to_string(), times.count().to_string()];
        cells.extend(
            [
                times.min(),
                times.max(),
                typical,
                times.mean(),
                times.stdev(),
                times.percentile(99.0),
                times.percentile(99.9),
                times.percentile(99.99),
            ]
            .map(ns),
        );
        table.row(cells);
    }
    table
}

/// Figures by round: median, lowest and highest.
/// The figure that only relays with processes of their own have.
const RELAYS: &str = "relays_percent";
const RELAYS_EXPLAINED: &str = "relays' CPU: what both relays took together, in percent of one processor; they share the processors with the two processes.\n";

fn has(report: &Report, name: &str) -> bool {
    let mut rows = report.sizes.iter();
    rows.any(|row| row.figure(name).median().is_some())
}

fn by_round(report: &Report, names: &[&str]) -> Columns {
    let figures: Vec<_> = names
        .iter()
        .filter_map(|name| FIGURES.iter().find(|f| f.name == *name))
        .filter(|figure| figure.name != RELAYS || has(report, RELAYS))
        .collect();
    let mut header = vec!["bytes", "rounds"];
    header.extend(figures.iter().map(|f| f.title));
    header.push("regime");
    let mut table = table(&header);
    for row in &report.sizes {
        let mut cells = vec![
            row.bytes.to_string(),
            format!("{}/{}", row.rounds_kept, row.rounds_run),
        ];
        for figure in &figures {
            let shown = row.figure(figure.name).scaled(1.0 / figure.unit);
            cells.push(shown.spread(figure.digits));
        }
        cells.push(row.regime.name().into());
        table.row(cells);
    }
    table
}

fn latencies(report: &Report) -> String {
    let mut text = String::new();
    match report.settings.message_rate {
        None => {
            let _ = write!(
                text,
                "One way, ns: half of a round trip, one message under way; all rounds that were kept\n{}",
                perftest(report, |row| row.times.as_ref())
            );
        }
        Some(rate) => {
            let _ = write!(
                text,
                "One way at {rate} messages/s, ns, from when each message was due: corrected for coordinated omission\n{}\n\
                 The same messages, from when each was sent: raw, blind to what waited before it was sent\n{}",
                perftest(report, |row| row.times.as_ref()),
                perftest(report, |row| row.raw_times.as_ref())
            );
            text += &not_kept_up(report, rate);
        }
    }
    let remote = has(report, "raw_tcp");
    let names: &[_] = match report.settings.message_rate {
        None if remote => &["typical", "p99", "p99.9", "raw_tcp", "over_raw_tcp", RELAYS],
        None => &["typical", "p99", "p99.9", "line", "over_line"],
        Some(_) => &["typical", "p99", "raw_p99", "line", "over_line"],
    };
    let _ = writeln!(
        text,
        "\nBy round: median (lowest–highest)\n{}",
        by_round(report, names)
    );
    if report.settings.message_rate.is_none() {
        let _ = writeln!(
            text,
            "typical: median over blocks of {BLOCK} round trips, like the line's; the percentiles are of single ones."
        );
    }
    if remote {
        text += "bare TCP: the same bytes over one connection between the two processes, polled alike, before and after: the limit.\n";
        if has(report, RELAYS) {
            text += RELAYS_EXPLAINED;
        }
        return text;
    }
    text + "line: cache-line ping-pong, before and after each round: the limit. ÷ line: typical, in lines.\n"
}

/// Says so if the messages were more than could be sent.
fn not_kept_up(report: &Report, rate: f64) -> String {
    let mut text = String::new();
    for row in &report.sizes {
        if let Some(achieved) = row.figure("per_second").median()
            && achieved < 0.99 * rate
        {
            let _ = writeln!(
                text,
                "{}: only {achieved:.0} messages/s were reached, so those due wait ever longer: the corrected times tell how long the run was. Give a lower --rate.",
                row.size()
            );
        }
    }
    text
}

fn rates(report: &Report) -> String {
    if has(report, "raw_tcp_per_second") {
        let names = [
            "per_second",
            "bytes_per_second",
            "raw_tcp_per_second",
            "over_raw_tcp_rate",
            RELAYS,
        ];
        let explained = match has(report, RELAYS) {
            true => RELAYS_EXPLAINED,
            false => "",
        };
        return format!(
            "A stream of messages, by round: median (lowest–highest)\n{}\n\
             bare TCP: the same bytes over one connection between the two processes, a write and a read for each message.\n{explained}",
            by_round(report, &names)
        );
    }
    let names = [
        "per_second",
        "bytes_per_second",
        "per_line",
        "over_copies",
        "line",
    ];
    format!(
        "A stream of messages, by round: median (lowest–highest)\n{}\n\
         Payload copied in, each of its lines touched in place. per line time: messages in the time that a cache line takes\n\
         one way. copy limit: the same bytes copied between the two processes without a ring, see tbusperf limit.\n",
        by_round(report, &names)
    )
}

fn limits(report: &Report) -> String {
    let mut text = String::new();
    if let Some(times) = &report.line_times {
        let _ = writeln!(
            text,
            "A cache line there and back, one way, ns: 50% {}, 99% {}, 99.9% {}, 99.99% {}, longest {}\n",
            ns(times.percentile(50.0)),
            ns(times.percentile(99.0)),
            ns(times.percentile(99.9)),
            ns(times.percentile(99.99)),
            ns(times.max())
        );
    }
    let names = ["copies_per_second", "bytes_per_second", "line"];
    let _ = writeln!(
        text,
        "Copies, by round: median (lowest–highest)\n{}\n\
         One process copies into rotating slots of 1 MiB in all, the other touches each line.",
        by_round(report, &names)
    );
    text
}
