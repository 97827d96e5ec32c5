//! A measurement from its options to its files.

use super::options::Options;
use super::output::{Output, Texts};
use super::report::{Kind, Report, Row};
use super::times::Times;
use super::{Result, measure, pictures, text};
use std::io::Write;
use std::path::PathBuf;

/// Where the result goes, besides standard output.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// Prints JSON instead of tables.
    pub json: bool,
    /// A picture.
    pub svg: Option<PathBuf>,
    /// Percentile texts: a file or a directory.
    pub hgrm: Option<PathBuf>,
}

/// Checks everything, measures, and writes the result.
pub fn run(kind: Kind, options: &Options, outputs: &Outputs) -> Result<()> {
    options.check(kind)?;
    let svg = outputs.svg.as_deref().map(Output::open).transpose()?;
    let sizes = match kind {
        Kind::Lat => options.sizes.len(),
        Kind::Rate | Kind::Limit => 1,
    };
    let hgrm = outputs
        .hgrm
        .as_deref()
        .map(|path| Texts::open(path, sizes, text_names(kind, options)))
        .transpose()?;
    let report = match kind {
        Kind::Lat => measure::latencies(options),
        Kind::Rate => measure::rates(options),
        Kind::Limit => measure::limits(options),
    }?;
    if let Some(svg) = svg {
        svg.write(&pictures::of(&report)?)?;
    }
    match hgrm {
        None => {}
        Some(Texts::One(file)) => {
            if let Some(times) = main_times(&report) {
                file.write(&times.percentile_text())?;
            }
        }
        Some(Texts::Directory(files)) => {
            for (name, file) in files {
                if let Some((_, times)) = texts(&report).into_iter().find(|(n, _)| *n == name) {
                    file.write(&times.percentile_text())?;
                }
            }
        }
    }
    print(&match outputs.json {
        true => report.to_json()?,
        false => text::render(&report),
    })
}

/// Prints to standard output; a reader that went away, as `head` does, is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}

/// What a single percentile text is about.
fn main_times(report: &Report) -> Option<&Times> {
    match report.kind {
        Kind::Limit => report.line_times.as_ref(),
        _ => report.sizes.first()?.times.as_ref(),
    }
}

const LINE_TEXT: &str = "line.hgrm";

fn text_name(bytes: usize, raw: bool) -> String {
    format!("{bytes}{}.hgrm", if raw { "-raw" } else { "" })
}

/// The names of [`texts`], known before.
fn text_names(kind: Kind, options: &Options) -> Vec<String> {
    let mut names = vec![LINE_TEXT.to_string()];
    if kind == Kind::Lat {
        for size in &options.sizes {
            names.push(text_name(*size, false));
            if options.rate.is_some() {
                names.push(text_name(*size, true));
            }
        }
    }
    names
}

/// All distributions of a result, with names for their files.
fn texts(report: &Report) -> Vec<(String, &Times)> {
    let line = report.line_times.as_ref();
    let of_row = |row: &'_ Row| [text_name(row.bytes, false), text_name(row.bytes, true)];
    let mut texts: Vec<_> = line
        .map(|t| (LINE_TEXT.to_string(), t))
        .into_iter()
        .collect();
    for row in &report.sizes {
        let times = [row.times.as_ref(), row.raw_times.as_ref()];
        let named = of_row(row).into_iter().zip(times);
        texts.extend(named.filter_map(|(name, times)| Some((name, times?))));
    }
    texts
}
