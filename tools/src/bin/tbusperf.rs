//! `tbusperf`: shows what tbus does, and measures it.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tbus_tools::perf::{Result, demo, measure, worker};

#[derive(Parser)]
#[command(
    version,
    about = "Shows what tbus does, and measures it",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows it: two processes exchange a million messages each way and are killed in mid-stream; none is lost
    Demo,
    /// Measures the machine's limits: cache-line ping-pong and copies between two processes
    Limit(Measurement),
    /// Measures one-way times of single messages, the limit beside them
    Lat(Measurement),
    /// Measures messages a second in a stream, the limit beside them
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
