//! `tbusperf`: shows what tbus does, and measures it.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tbus_tools::perf::{Result, demo, measure, worker};

#[derive(Parser)]
#[command(
    name = "tbusperf",
    version,
    about = "Shows what tbus does, and measures it",
    after_help = "\
Begin with `tbusperf demo`: no arguments, a few seconds, nothing is left behind.

Measure with `tbusperf lat` and `tbusperf rate` on a machine that does nothing else. Each prints the limit of the two \
processors beside the figure, since a figure alone says nothing about another machine.

Exit status: 0 done; 1 the demonstration lost, repeated or reordered a message; 2 wrong usage; 7 the system refused.",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two processes exchange a million messages each way and are killed in mid-stream; none is lost
    ///
    /// The parent starts two processes on two rings in a scratch directory (under /dev/shm if 64 MB are free there, else in
    /// the temporary directory), kills each with SIGKILL once and starts it again, and accounts for every message. A
    /// message that a process had read but not released when it was killed is read again: that is told as `re-read`,
    /// at most one per kill. The last line is `lost 0 duplicated 0 reordered 0`, or the exit status is 1.
    Demo,
    /// Measures the machine's limits: cache-line ping-pong and copies between two processes, without any ring
    Limit(Measurement),
    /// Measures one-way times of single messages, the limit beside them
    ///
    /// Two pinned processes send one message there and one back. `typical` is the median over blocks of round trips,
    /// free of the clock's resolution; the percentiles are those of single round trips. Half a round trip is one way.
    Lat(Measurement),
    /// Measures messages a second in a stream, the limit beside them
    ///
    /// One process copies messages into the ring as fast as they are accepted, the other reads a byte of each of
    /// their lines in place and releases them. Beside it: the rate at which the same bytes can be copied from one
    /// process to the other with no ring at all.
    Rate(Measurement),
    /// One of the two processes of the demonstration
    #[command(hide = true)]
    DemoPeer {
        directory: PathBuf,
        there: String,
        back: String,
        side: usize,
        #[arg(long)]
        cpu: Option<usize>,
    },
    /// The second process of a measurement
    #[command(hide = true)]
    Worker {
        directory: PathBuf,
        incoming: String,
        outgoing: String,
        #[arg(long)]
        cpu: Option<usize>,
    },
}

#[derive(Args)]
struct Measurement {
    /// Payload bytes; several with commas
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 256, 1024, 4096])]
    size: Vec<usize>,
    /// Messages a round [default: by size]
    #[arg(long)]
    count: Option<u64>,
    /// Rounds; the median is shown, with the lowest and the highest
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// The two processors to run on
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0, 1])]
    cpus: Vec<usize>,
    /// Capacity of each ring, bytes
    #[arg(long, default_value_t = 1 << 20)]
    capacity: u64,
}

impl Measurement {
    fn options(self) -> measure::Options {
        let cpus = self.cpus.try_into().ok();
        measure::Options {
            sizes: self.size,
            count: self.count,
            rounds: self.rounds,
            cpus,
            capacity: self.capacity,
        }
    }
}

/// True if what was to be shown could be shown.
fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Demo => return demo::run(),
        Command::DemoPeer {
            directory,
            there,
            back,
            side,
            cpu,
        } => demo::run_peer(
            &directory,
            [there.parse()?, back.parse()?],
            side.min(1),
            cpu,
        ),
        Command::Limit(m) => measure::limits(&m.options()),
        Command::Lat(m) => measure::latencies(&m.options()),
        Command::Rate(m) => measure::rates(&m.options()),
        Command::Worker {
            directory,
            incoming,
            outgoing,
            cpu,
        } => worker::run(&directory, incoming.parse()?, outgoing.parse()?, cpu),
    }?;
    Ok(true)
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tbusperf: {error}");
            ExitCode::from(7)
        }
    }
}
