//! What is on the pictures: times by percentile, rates by size, each with its limit; of one result or of two.

use super::Result;
use super::plot::{Axis, Curve, LIMIT, Panel, Picture, colour, draw};
use super::report::{Kind, Report, Row, size_text};
use super::series::Series;
use super::times::Times;

/// Percentiles beyond five nines are single messages.
const MOST_NINES: f64 = 5.0;
/// Points of a curve between two nines.
const POINTS_A_NINE: usize = 40;

/// The picture of one result.
pub fn of(report: &Report) -> Result<String> {
    let (title, panels) = match report.kind {
        Kind::Lat => (
            match report.settings.message_rate {
                None => "One-way latency".to_string(),
                Some(rate) => format!("One-way latency at {} messages/s", count_text(rate)),
            },
            vec![latency_panel(&[Shown::alone(report)])],
        ),
        Kind::Rate => (
            "Messages in a stream".to_string(),
            rate_panels(&[Shown::alone(report)], "tbus"),
        ),
        Kind::Limit => ("What two processors can do".to_string(), {
            let mut panels = vec![latency_panel(&[Shown::alone(report)])];
            panels.extend(rate_panels(&[Shown::alone(report)], "copies").pop());
            panels
        }),
    };
    draw(&Picture {
        title,
        subtitle: vec![report.machine.to_string(), conditions(report)],
        panels,
    })
}

/// The picture of two results of the same kind.
pub fn of_two(reports: [&Report; 2], names: [&str; 2]) -> Result<String> {
    let shown = [0, 1].map(|i| Shown {
        report: reports[i],
        prefix: ["A ", "B "][i],
        dashed: i == 1,
    });
    let panels = match reports[0].kind {
        Kind::Lat => vec![latency_panel(&shown)],
        Kind::Rate => rate_panels(&shown, "tbus"),
        Kind::Limit => {
            let mut panels = vec![latency_panel(&shown)];
            panels.extend(rate_panels(&shown, "copies").pop());
            panels
        }
    };
    let line = |i: usize| {
        format!(
            "{}: {}; {}",
            ["A", "B"][i],
            names[i],
            conditions(reports[i])
        )
    };
    let mut subtitle = vec![line(0), line(1)];
    if reports[0].regime != reports[1].regime {
        subtitle.push("The regimes differ: this compares placements, not programs.".into());
    }
    draw(&Picture {
        title: "Two results compared".into(),
        subtitle,
        panels,
    })
}

fn conditions(report: &Report) -> String {
    let settings = &report.settings;
    let cpus = match settings.cpus {
        Some([a, b]) => format!("processors {a} and {b}"),
        None => "not pinned".into(),
    };
    let rings = match report.kind {
        Kind::Limit => String::new(),
        _ => format!(", rings of {}", size_text(settings.ring_bytes as usize)),
    };
    format!(
        "regime {}: a cache line takes {} ns one way, {cpus}{rings}",
        report.regime.name(),
        report.line.spread(1)
    )
}

/// One of the results on a picture.
struct Shown<'a> {
    report: &'a Report,
    prefix: &'static str,
    dashed: bool,
}

impl Shown<'_> {
    fn alone(report: &Report) -> Shown<'_> {
        Shown {
            report,
            prefix: "",
            dashed: false,
        }
    }

    /// Sorted by size.
    fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self.report.sizes.iter().collect();
        rows.sort_by_key(|row| row.bytes);
        rows
    }
}

/// Sizes that all results have, sorted.
fn sizes(shown: &[Shown<'_>]) -> Vec<usize> {
    let has = |one: &Shown<'_>, bytes| one.report.sizes.iter().any(|row| row.bytes == bytes);
    let first = shown.first().map(|one| one.report.sizes.as_slice());
    let mut sizes: Vec<_> = first
        .unwrap_or_default()
        .iter()
        .map(|row| row.bytes)
        .collect();
    sizes.retain(|bytes| shown.iter().all(|one| has(one, *bytes)));
    sizes.sort_unstable();
    sizes
}

// ---- Times by percentile ----

fn latency_panel(shown: &[Shown<'_>]) -> Panel {
    let curves = latency_curves(shown);
    let ys = || curves.iter().flat_map(|c| c.points.iter().map(|p| p.1));
    let low = ys().fold(f64::INFINITY, f64::min).min(10.0);
    let high = ys().fold(low + 0.5, f64::max);
    let last = curves.iter().filter_map(|c| Some(c.points.last()?.0));
    let nines = last.fold(1.0, f64::max).ceil();
    Panel {
        x: Axis {
            title: "percentile of messages".into(),
            range: [0.0, nines],
            ticks: nine_ticks(nines),
        },
        y: Axis {
            title: "one-way time".into(),
            range: [low - 0.08, high + 0.08],
            ticks: decade_ticks(low - 0.08, high + 0.08, time_text),
        },
        curves,
    }
}

fn latency_curves(shown: &[Shown<'_>]) -> Vec<Curve> {
    let alone = shown.len() == 1;
    let mut curves = Vec::new();
    let mut add = |one: &Shown<'_>, name: &str, colour, dashed, times: &Option<Times>| {
        if let Some(times) = times {
            curves.push(Curve {
                name: format!("{}{name}", one.prefix),
                colour,
                dashed,
                points: by_nines(times),
                spreads: Vec::new(),
            });
        }
    };
    for one in shown {
        let dashed = alone || one.dashed;
        add(
            one,
            "limit: cache line",
            LIMIT,
            dashed,
            &one.report.line_times,
        );
    }
    let sizes = sizes(shown);
    for (index, size) in sizes.iter().enumerate() {
        let colour = colour(index, sizes.len());
        for one in shown {
            let Some(row) = one.report.sizes.iter().find(|row| row.bytes == *size) else {
                continue;
            };
            let name = size_text(*size);
            // Beside another result, two dashed curves of a colour would be one too many.
            if alone {
                add(one, &format!("{name}, raw"), colour, true, &row.raw_times);
            }
            add(one, &name, colour, one.dashed, &row.times);
        }
    }
    curves
}

/// Points (nines, logarithm of ns); of those in a row at one height, the first and the last.
fn by_nines(times: &Times) -> Vec<(f64, f64)> {
    let nines = (times.count().max(1) as f64).log10().min(MOST_NINES);
    let steps = (nines * POINTS_A_NINE as f64) as usize;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in 0..=steps {
        let x = step as f64 / POINTS_A_NINE as f64;
        let ns = times.percentile(100.0 * (1.0 - 10f64.powf(-x)));
        let point = (x, ns.max(0.1).log10());
        if let [.., before, last] = points[..]
            && before.1 == point.1
            && last.1 == point.1
        {
            points.pop();
        }
        points.push(point);
    }
    points
}

fn nine_ticks(nines: f64) -> Vec<(f64, String)> {
    let mut ticks = vec![(2f64.log10(), "50%".to_string())];
    for nine in 1..=nines as usize {
        let label = match nine {
            1 => "90%".into(),
            2 => "99%".into(),
            _ => format!("99.{}%", "9".repeat(nine - 2)),
        };
        ticks.push((nine as f64, label));
    }
    ticks
}

/// "50 ns", "2 µs", "10 ms".
fn time_text(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{value} {unit}")
}

/// Labels at 1, 2 and 5 of each decade, fewer if there are many decades.
fn decade_ticks(low: f64, high: f64, text: impl Fn(f64) -> String) -> Vec<(f64, String)> {
    let steps: &[f64] = match high - low {
        span if span > 4.0 => &[1.0],
        span if span > 1.2 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    };
    let mut ticks = Vec::new();
    for decade in low.floor() as i32..=high.ceil() as i32 {
        for step in steps {
            // Multiplied or divided by a whole number: exact, and so a short text.
            let value = match decade {
                0.. => step * 10f64.powi(decade),
                _ => step / 10f64.powi(-decade),
            };
            if (low..=high).contains(&value.log10()) {
                ticks.push((value.log10(), text(value)));
            }
        }
    }
    ticks
}

// ---- Rates by size ----

/// Messages a second, and bytes a second.
fn rate_panels(shown: &[Shown<'_>], what: &str) -> Vec<Panel> {
    let sizes = sizes(shown);
    let (mut messages, mut bytes) = (Vec::new(), Vec::new());
    for (index, one) in shown.iter().enumerate() {
        let (own, limit) = match one.report.kind {
            Kind::Limit => ("copies_per_second", None),
            _ => ("per_second", Some("copies_per_second")),
        };
        let mut add = |name: &str, colour, dashed, figure: &str| {
            let values: Vec<_> = one
                .rows()
                .into_iter()
                .filter_map(|row| {
                    let at = sizes.binary_search(&row.bytes).ok()? as f64;
                    Some((at, row.figure(figure), row.bytes as f64))
                })
                .collect();
            let name = format!("{}{name}", one.prefix);
            let logs = values
                .iter()
                .map(|(at, rate, _)| (*at, mapped(rate, f64::log10)));
            messages.push(curve(&name, colour, dashed, logs));
            let gigabytes = values
                .iter()
                .map(|(at, rate, bytes)| (*at, rate.scaled(bytes / 1e9)));
            bytes.push(curve(&name, colour, dashed, gigabytes));
        };
        if let Some(limit) = limit {
            add("copy limit", LIMIT, shown.len() == 1 || one.dashed, limit);
        }
        add(what, colour(index, 2), one.dashed, own);
    }
    vec![
        rate_panel(&sizes, messages, true),
        rate_panel(&sizes, bytes, false),
    ]
}

fn mapped(series: &Series, map: impl Fn(f64) -> f64) -> Series {
    let mut result = Series::default();
    series
        .rounds()
        .iter()
        .for_each(|value| result.push(map(*value)));
    result
}

fn curve(
    name: &str,
    colour: plotters::style::RGBColor,
    dashed: bool,
    values: impl Iterator<Item = (f64, Series)>,
) -> Curve {
    let (mut points, mut spreads) = (Vec::new(), Vec::new());
    for (at, series) in values {
        if let (Some(median), Some(low), Some(high)) =
            (series.median(), series.low(), series.high())
        {
            points.push((at, median));
            spreads.push((at, low, high));
        }
    }
    Curve {
        name: name.into(),
        colour,
        dashed,
        points,
        spreads,
    }
}

fn rate_panel(sizes: &[usize], mut curves: Vec<Curve>, logarithmic: bool) -> Panel {
    // Side by side, or the spreads would hide each other.
    let middle = (curves.len() as f64 - 1.0) / 2.0;
    for (index, curve) in curves.iter_mut().enumerate() {
        let shift = (index as f64 - middle) * 0.08;
        curve.points.iter_mut().for_each(|point| point.0 += shift);
        curve
            .spreads
            .iter_mut()
            .for_each(|spread| spread.0 += shift);
    }
    let all = || curves.iter().flat_map(|c| c.spreads.iter());
    let low = all().map(|s| s.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|s| s.2).fold(f64::NEG_INFINITY, f64::max);
    let labels = sizes.iter().enumerate();
    let x = Axis {
        title: "payload, bytes".into(),
        range: [-0.4, sizes.len() as f64 - 0.6],
        ticks: labels
            .map(|(i, size)| (i as f64, short_size(*size)))
            .collect(),
    };
    let y = if logarithmic {
        let range = [low - 0.15, high + 0.15];
        Axis {
            title: "messages a second".into(),
            range,
            ticks: decade_ticks(range[0], range[1], count_text),
        }
    } else {
        let top = high * 1.08;
        Axis {
            title: "GB/s".into(),
            range: [0.0, top],
            ticks: even_ticks(top),
        }
    };
    Panel { x, y, curves }
}

/// "64", "4 Ki".
fn short_size(bytes: usize) -> String {
    let text = size_text(bytes);
    text.trim_end_matches('B').trim().to_string()
}

/// "200 k", "5 M".
fn count_text(count: f64) -> String {
    match count {
        c if c < 1e3 => format!("{c}"),
        c if c < 1e6 => format!("{} k", c / 1e3),
        c if c < 1e9 => format!("{} M", c / 1e6),
        c => format!("{} G", c / 1e9),
    }
}

/// Four to eight labels from 0, at steps of 1, 2 or 5.
fn even_ticks(top: f64) -> Vec<(f64, String)> {
    let decade = 10f64.powf((top / 8.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|s| s * decade)
        .into_iter()
        .find(|s| top / s <= 8.0)
        .unwrap_or(top);
    let digits = (-step.log10()).ceil().max(0.0) as usize;
    (0..)
        .map(|n| f64::from(n) * step)
        .take_while(|at| *at <= top)
        .map(|at| (at, format!("{at:.digits$}")))
        .collect()
}
