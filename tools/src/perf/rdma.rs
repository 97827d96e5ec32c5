//! `tbusperf rdma`: how far tbus is from the device. The same thing is measured by perftest, by rsocket, by
//! bare UCX and by tbus, each in its turn,
//! round after round, and told in one table.

use super::bare_ucx;
use super::machine::Machine;
use super::report::{Report, size_text};
use super::run::print;
use super::series::Series;
use super::{Result, worker};
use crate::columns::{Align, Columns};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};
use tbus_transport::tcp_network::{probe_ucx, rdma_address};

/// Format of the JSON.
const FORMAT: &str = "tbusperf-rdma";
/// A program of others listens after so long. It says nothing of it, so who asks too early asks again.
const LISTENS: Duration = Duration::from_millis(300);
/// So often, and later each time.
const TRIES: u32 = 10;
/// A program that takes so much longer than it was told hangs.
const LONGEST: Duration = Duration::from_secs(60);
/// Round trips of perftest and rsocket.
const LAT_COUNT: &str = "2000";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// One-way times, ns.
    OneWay,
    /// A stream, messages a second.
    Stream,
}

/// Who measures it. All but the first column stand in relation to perftest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum Who {
    /// `ib_write_lat`, `ib_write_bw`: the limit.
    Perftest,
    /// `rstream`; the mean, since it tells no other.
    Rsocket,
    /// tbus over TCP, the relays in the applications' own loops.
    Tcp,
    /// tbus by RDMA, the same way.
    Verbs,
    /// tbus by RDMA, between two `tbusd`.
    Daemons,
    /// A bare connection over UCX, by the ways of tbus's link; each message is answered, so it has no rate of small ones.
    BareUcx,
    /// tbus over UCX, the relays in the applications' own loops.
    Ucx,
}

const ALL: [(Who, &str); 7] = [
    (Who::Perftest, "perftest"),
    (Who::Rsocket, "rsocket"),
    (Who::Tcp, "tbus, TCP"),
    (Who::Verbs, "tbus, verbs"),
    (Who::Daemons, "tbus, verbs, two tbusd"),
    (Who::BareUcx, "UCX, bare"),
    (Who::Ucx, "tbus, UCX"),
];

/// A row of the table, and what it is to be.
struct Task {
    what: What,
    bytes: usize,
    /// tbus by verbs, divided by perftest: at most for times, at least for rates.
    goal: f64,
    /// The same of tbus over UCX, divided by what.
    ucx: Option<(f64, Who)>,
}

const TASKS: [Task; 4] = [
    Task {
        what: What::OneWay,
        bytes: 8,
        goal: 1.3,
        ucx: Some((1.15, Who::BareUcx)),
    },
    Task {
        what: What::OneWay,
        bytes: 64,
        goal: 1.3,
        ucx: Some((1.15, Who::BareUcx)),
    },
    Task {
        what: What::Stream,
        bytes: 64,
        goal: 10.0,
        ucx: None,
    },
    Task {
        what: What::Stream,
        bytes: 1 << 16,
        goal: 0.9,
        ucx: Some((0.9, Who::Verbs)),
    },
];

/// What it takes.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command line, for the report.
    pub command: Vec<String>,
    /// Rounds.
    pub rounds: usize,
    /// Processors of the two processes.
    pub cpus: Option<[usize; 2]>,
    /// How long each figure of each round takes, about.
    pub time: Duration,
    /// Prints JSON instead of a table.
    pub json: bool,
}

#[derive(Serialize)]
struct Figure {
    what: What,
    bytes: usize,
    by: Who,
    /// Nanoseconds, or messages a second.
    value: Series,
    /// By that of perftest in the same round.
    over_perftest: Series,
    /// Of tbus over UCX, by what its goal is by.
    over_other: Series,
}

#[derive(Serialize)]
struct Table {
    format: &'static str,
    tbus: &'static str,
    command: Vec<String>,
    machine: Machine,
    device: String,
    address: String,
    rounds: usize,
    figures: Vec<Figure>,
    /// Programs that are missing, and their packages.
    missing: Vec<String>,
}

/// A measurement in its place.
struct Bench<'a> {
    options: &'a Options,
    device: String,
    address: String,
}

/// Measures all, and prints the table.
pub fn run(options: &Options) -> Result<()> {
    let (address, device) = rdma_address()?;
    let bench = Bench {
        options,
        device,
        address: address.to_string(),
    };
    let mut missing = Vec::new();
    let ucx = probe_ucx(address);
    missing.extend(ucx.as_ref().err().map(|why| format!("UCX: {why}")));
    let mut figures: Vec<Figure> = Vec::new();
    for task in &TASKS {
        for (by, _) in ALL {
            match by.program(task.what) {
                // It has no rate of messages, and sends a stream as it likes.
                None if by == Who::Rsocket => continue,
                None if by == Who::BareUcx && task.ucx.is_none() => continue,
                None if ucx.is_err() && matches!(by, Who::BareUcx | Who::Ucx) => continue,
                Some((program, package)) if !is_installed(program) => {
                    let text = format!("{program}: not installed (Debian: {package})");
                    if !missing.contains(&text) {
                        missing.push(text);
                    }
                }
                _ => figures.push(Figure {
                    what: task.what,
                    bytes: task.bytes,
                    by,
                    value: Series::default(),
                    over_perftest: Series::default(),
                    over_other: Series::default(),
                }),
            }
        }
    }
    let progress = ProgressBar::new((options.rounds * figures.len()) as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    for _ in 0..options.rounds {
        let mut limit = None;
        let mut others = HashMap::new();
        for figure in &mut figures {
            progress.set_message(format!("{:?}, {}", figure.by, size_text(figure.bytes)));
            let value = bench.measure(figure.by, figure.what, figure.bytes)?;
            figure.value.push(value);
            others.insert((figure.what, figure.bytes, figure.by), value);
            let task = TASKS
                .iter()
                .find(|task| (task.what, task.bytes) == (figure.what, figure.bytes));
            if figure.by == Who::Ucx
                && let Some((_, by)) = task.and_then(|task| task.ucx)
                && let Some(other) = others.get(&(figure.what, figure.bytes, by))
            {
                figure.over_other.push(value / other);
            }
            if figure.by == Who::Perftest {
                limit = Some(value);
            } else if let Some(limit) = limit {
                figure.over_perftest.push(value / limit);
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let table = Table {
        format: FORMAT,
        tbus: env!("CARGO_PKG_VERSION"),
        command: options.command.clone(),
        machine: Machine::this(),
        device: bench.device,
        address: bench.address,
        rounds: options.rounds,
        figures,
        missing,
    };
    print(&match options.json {
        true => serde_json::to_string_pretty(&table)? + "\n",
        false => table.render(),
    })
}

impl Who {
    fn name(self) -> &'static str {
        let found = ALL.iter().find(|(who, _)| *who == self);
        found.map_or("", |(_, name)| name)
    }

    /// What is run, and the package that has it. None: this executable, or nothing.
    fn program(self, what: What) -> Option<(&'static str, &'static str)> {
        match (self, what) {
            (Who::Perftest, What::OneWay) => Some(("ib_write_lat", "perftest")),
            (Who::Perftest, What::Stream) => Some(("ib_write_bw", "perftest")),
            (Who::Rsocket, What::OneWay) => Some(("rstream", "rdmacm-utils")),
            _ => None,
        }
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

impl Bench<'_> {
    fn measure(&self, by: Who, what: What, bytes: usize) -> Result<f64> {
        match (by, what) {
            (Who::Perftest, What::OneWay) => {
                let size = bytes.to_string();
                let count = ["-d", &self.device, "-F", "-s", &size, "-n", LAT_COUNT];
                let line = self.others("ib_write_lat", &count, &[&self.address], &size)?;
                // #bytes #iterations t_min t_max t_typical
                Ok(column(&line, 4)? * 1e3)
            }
            (Who::Perftest, What::Stream) => {
                let size = bytes.to_string();
                let seconds = self.options.time.as_secs().max(2).to_string();
                let all = ["-d", &self.device, "-F", "-s", &size, "-D", &seconds];
                let line = self.others("ib_write_bw", &all, &[&self.address], &size)?;
                // #bytes #iterations BW_peak BW_average MsgRate, in millions; more digits than the average has
                Ok(column(&line, 4)? * 1e6)
            }
            (Who::Rsocket, _) => {
                let size = bytes.to_string();
                let all = ["-S", &size, "-C", "1", "-I", LAT_COUNT];
                let line = self.others("rstream", &all, &["-s", &self.address], "custom")?;
                // name bytes xfers iters total time Gb/sec usec/xfer
                Ok(column(&line, 7)? * 1e3)
            }
            (Who::Tcp, _) => self.tbus(what, bytes, &["--transport", "tcp", "--embedded"]),
            (Who::Verbs, _) => self.tbus(what, bytes, &["--transport", "verbs", "--embedded"]),
            (Who::Daemons, _) => self.tbus(what, bytes, &["--transport", "verbs"]),
            (Who::Ucx, _) => self.tbus(what, bytes, &["--transport", "ucx", "--embedded"]),
            (Who::BareUcx, _) => self.bare_ucx(what, bytes),
        }
    }

    /// One round of another `tbusperf`.
    fn tbus(&self, what: What, bytes: usize, how: &[&str]) -> Result<f64> {
        let (kind, name) = match what {
            What::OneWay => ("lat", "p50"),
            What::Stream => ("rate", "per_second"),
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            kind,
            "--remote",
            "--json",
            "--rounds",
            "1",
            "--keep-all",
            "--alone",
        ]);
        command.args(how).args(["--size", &bytes.to_string()]);
        command.arg(format!("--duration={}ms", self.options.time.as_millis()));
        if let Some([a, b]) = self.options.cpus {
            command.arg(format!("--cpus={a},{b}"));
        }
        let text = self.output(Ended::new(&mut command)?, kind)?;
        let report: Report = serde_json::from_str(&text)?;
        let value = report
            .sizes
            .first()
            .and_then(|row| row.figure(name).median());
        value.ok_or_else(|| format!("tbusperf {kind} has no {name}").into())
    }

    /// One round of a bare connection over UCX.
    fn bare_ucx(&self, what: What, bytes: usize) -> Result<f64> {
        let address = SocketAddr::new(self.address.parse()?, 0);
        let task = bare_ucx::Task {
            address,
            stream: what == What::Stream,
            bytes,
            time: self.options.time,
            cpus: self.options.cpus,
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare-ucx").args(task.arguments(address));
        let text = self.output(Ended::new(&mut command)?, "tbusperf bare-ucx")?;
        Ok(text.trim().parse()?)
    }

    /// Runs a server and a client that asks it. The client's line that begins with `key`.
    fn others(&self, program: &str, both: &[&str], client: &[&str], key: &str) -> Result<String> {
        let on = |n: usize, more: &[&str]| {
            let mut command = Command::new(program);
            command.args(both).args(more);
            let cpu = self.options.cpus.map(|cpus| cpus[n]);
            // SAFETY: between fork and exec there is one system call, on a set of this stack.
            unsafe {
                command.pre_exec(move || {
                    cpu.map_or(Ok(()), |cpu| {
                        worker::pin(cpu).map_err(|_| std::io::Error::last_os_error())
                    })
                });
            }
            Ended::new(&mut command)
        };
        let mut why = String::new();
        for tries in 1..=TRIES {
            let _server = on(0, &[])?;
            sleep(tries * LISTENS);
            let text = match self.output(on(1, client)?, program) {
                Ok(text) => text,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            let line = text
                .lines()
                .find(|line| line.split_whitespace().next() == Some(key));
            if let Some(line) = line {
                return Ok(line.to_owned());
            }
            why = format!("{program} printed no line of figures:\n{text}");
        }
        Err(why.into())
    }

    fn output(&self, mut child: Ended, name: &str) -> Result<String> {
        // While it runs, for a pipe holds less than it may write.
        let text = read_all(child.0.stdout.take());
        let error = read_all(child.0.stderr.take());
        let deadline = Instant::now() + LONGEST + 10 * self.options.time;
        while child.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(format!("{name} does not end; was it stopped?").into());
            }
            sleep(Duration::from_millis(20));
        }
        let (text, error) = (
            text.join().unwrap_or_default(),
            error.join().unwrap_or_default(),
        );
        match child.0.wait()? {
            status if status.success() => Ok(text),
            status => Err(format!("{name}: {status}\n{text}{error}").trim_end().into()),
        }
    }
}

/// A process that is ended with this.
struct Ended(Child);

impl Ended {
    fn new(command: &mut Command) -> Result<Ended> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|e| format!("{name}: {e}"))?;
        Ok(Ended(child))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is all there is.
        let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn column(line: &str, index: usize) -> Result<f64> {
    let number = line.split_whitespace().nth(index);
    let number = number.and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("not understood: {line}").into())
}

impl Table {
    fn render(&self) -> String {
        let mut text = format!(
            "{}\n{} at {}; relays in the two processes' own loops unless said otherwise; median of {} rounds (lowest–highest)\n\n",
            self.machine, self.device, self.address, self.rounds
        );
        let mut table = Columns::new(&[
            ("what", Align::Left),
            ("by", Align::Left),
            ("figure", Align::Right),
            ("÷ perftest", Align::Right),
            ("goal", Align::Left),
        ]);
        for task in &TASKS {
            let rows =
                (self.figures.iter()).filter(|f| (f.what, f.bytes) == (task.what, task.bytes));
            for figure in rows {
                let goal = match (figure.by, task.ucx) {
                    (Who::Verbs, _) => task.verdict(&figure.over_perftest, task.goal),
                    (Who::Ucx, Some((goal, by))) => format!(
                        "{} (÷ {}: {})",
                        task.verdict(&figure.over_other, goal),
                        by.name(),
                        figure.over_other.spread(2)
                    ),
                    _ => String::new(),
                };
                table.row([
                    task.name(),
                    figure.by.name().into(),
                    task.shown(&figure.value),
                    figure.over_perftest.spread(2),
                    goal,
                ]);
            }
        }
        text += &table.to_string();
        for program in &self.missing {
            text += &format!("\n{program}");
        }
        text += "\nperftest: ib_write_lat (t_typical), ib_write_bw. rsocket: rstream, which tells the mean. tbus, UCX: 50 % of single messages.\n";
        text
    }
}

impl Task {
    fn name(&self) -> String {
        let size = size_text(self.bytes);
        match self.what {
            What::OneWay => format!("{size} one way, µs"),
            What::Stream if self.bytes < 4096 => format!("{size} stream, thousand/s"),
            What::Stream => format!("{size} stream, MB/s"),
        }
    }

    fn shown(&self, value: &Series) -> String {
        match self.what {
            What::OneWay => value.scaled(1e-3).spread(1),
            What::Stream if self.bytes < 4096 => value.scaled(1e-3).spread(0),
            What::Stream => value.scaled(self.bytes as f64 / 1e6).spread(1),
        }
    }

    fn verdict(&self, ratio: &Series, goal: f64) -> String {
        let Some(ratio) = ratio.median() else {
            return String::new();
        };
        let (sign, met) = match self.what {
            What::OneWay => ("≤", ratio <= goal),
            What::Stream => ("≥", ratio >= goal),
        };
        let met = if met { "met" } else { "not met" };
        format!("{sign} {goal} {met}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_others_are_read() {
        let line = " 64      2000          13.87          872.92       16.87    \t       24.89";
        assert_eq!(column(line, 4).unwrap(), 16.87);
        assert!(column(line, 9).is_err() && column("64 x", 1).is_err());
    }

    #[test]
    fn a_goal_is_met_or_not() {
        let of = |values: &[f64]| {
            let mut series = Series::default();
            values.iter().for_each(|value| series.push(*value));
            series
        };
        assert_eq!(TASKS[0].verdict(&of(&[1.2, 1.3, 9.0]), 1.3), "≤ 1.3 met");
        assert_eq!(TASKS[0].verdict(&of(&[1.31]), 1.3), "≤ 1.3 not met");
        assert_eq!(TASKS[3].verdict(&of(&[0.89]), 0.9), "≥ 0.9 not met");
        assert_eq!(TASKS[3].verdict(&of(&[]), 0.9), "");
    }
}
