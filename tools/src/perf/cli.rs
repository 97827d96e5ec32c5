//! The command line of `tbusperf`.

use super::bench::Length;
use super::channel::Way;
use super::options::{self, Cpus, Options};
use super::report::Kind;
use super::run::Outputs;
use super::{Result, bare_ucx, compare, demo, rdma, remote, status, worker};
use crate::manual::Manual;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tbus::config::Security;
use tbus::grm::Transport;

/// What its man pages have beyond the options.
pub const MANUAL: Manual = Manual {
    command,
    synopsis: &[
        "demo",
        "{lat | rate | limit} [OPTION...]",
        "rdma [OPTION...]",
        "compare A B [--json] [--svg FILE]",
        "help [SUBCOMMAND]",
    ],
    configuration: &[],
    signals: &[],
    exit_status: &[
        ("0", "done"),
        (
            "1",
            "the demonstration lost, repeated or reordered a message",
        ),
        ("2", "wrong usage"),
        ("3", "a file to be compared holds something else"),
        ("7", "the system refused, or no round could be kept"),
    ],
    environment: &[(
        "TMPDIR",
        "where the rings of a run lie if /dev/shm has less than 64 MB free; /tmp if not set",
    )],
    files: &[(
        "/dev/shm/tbus-NAME-PID-N/",
        "the rings of a run, removed at its end; those of a run that was killed, by the next one",
    )],
    examples: &[
        ("tbusperf demo", "see it work"),
        (
            "tbusperf demo --transport verbs",
            "the same by RDMA, where there is a device",
        ),
        ("tbusperf lat", "one-way times, several sizes"),
        (
            "tbusperf lat --size 64 --rate 100k --duration 10s --svg lat.svg",
            "the same under load, corrected for coordinated omission",
        ),
        ("tbusperf rate --json > before.json", "keep a result ..."),
        (
            "tbusperf rate --json > after.json",
            "... change something ...",
        ),
        (
            "tbusperf compare before.json after.json",
            "... and see what differs beyond the spread",
        ),
        ("tbusperf help lat", "all that a measurement takes"),
    ],
    examples_of: &[
        (
            "limit",
            &[
                ("tbusperf limit", "of the first two processors"),
                ("tbusperf limit --cpus 0,8", "of two others: near or far?"),
                (
                    "tbusperf limit --svg limit.svg --hgrm line.hgrm",
                    "a picture, and percentiles for other plotters",
                ),
            ],
        ),
        (
            "lat",
            &[
                (
                    "tbusperf lat --size 8,64,1K --count 1M",
                    "a million messages of each size",
                ),
                ("tbusperf lat --size 64 --duration 10s", "ten seconds"),
                (
                    "tbusperf lat --size 64 --rate 200k --duration 10s",
                    "200,000 messages a second: corrected and raw",
                ),
                (
                    "tbusperf lat --svg lat.svg --hgrm lat/",
                    "a picture, and percentile texts for other plotters",
                ),
                (
                    "tbusperf lat --remote --embedded",
                    "over TCP to another host (both are this machine)",
                ),
                (
                    "tbusperf lat --remote --security encrypt",
                    "the same between two tbusd that speak TLS",
                ),
                (
                    "tbusperf lat --json > lat.json",
                    "everything; for scripts, and for tbusperf compare",
                ),
            ],
        ),
        (
            "rate",
            &[
                ("tbusperf rate --size 8,64,256,1K,4K,64K", "several sizes"),
                ("tbusperf rate --size 64 --duration 10s", "ten seconds"),
                (
                    "tbusperf rate --size 1M --capacity 16M",
                    "large messages need a large ring",
                ),
                (
                    "tbusperf rate --remote --embedded",
                    "over TCP to another host (both are this machine)",
                ),
                ("tbusperf rate --svg rate.svg", "a picture"),
                (
                    "tbusperf rate --json > rate.json",
                    "everything; for scripts, and for tbusperf compare",
                ),
            ],
        ),
        (
            "rdma",
            &[
                ("tbusperf rdma", "at the device of this machine"),
                (
                    "ci/rxe run --timeout 0 -- target/release/tbusperf rdma",
                    "without one",
                ),
            ],
        ),
        (
            "compare",
            &[
                ("tbusperf lat --json > a.json", "the first result"),
                ("tbusperf lat --json > b.json", "the second one, later"),
                (
                    "tbusperf compare a.json b.json --svg both.svg",
                    "the ratios, and a picture of both",
                ),
            ],
        ),
    ],
    see_also: &["tbusmgr(1)", "tbusd(1)"],
};

#[derive(Parser)]
#[command(
    name = "tbusperf",
    version,
    about = "Shows what tbus does, and measures it",
    long_about = "\
Shows what tbus does, and measures it.

Begin with `tbusperf demo`: no arguments, a few seconds, nothing is left behind.

Measure with `tbusperf lat` and `tbusperf rate` on a machine that does nothing else. Each prints the limit of the two \
processors beside the figure, since a figure alone says nothing about another machine.",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two processes on two hosts exchange a million messages each way; they and their relays are killed, none is lost
    ///
    /// Both hosts are this machine: each has maps and rings of its own in a scratch directory (under /dev/shm if 64 MB are
    /// free there, else in the temporary directory), and a relay; the relays mirror the rings over TCP on loopback, or by
    /// RDMA at an address of a device. The parent kills each process and each relay with SIGKILL once, starts it again, and accounts for every message. A
    /// message that a process had read but not released when it was killed is read again: that is told as `re-read`,
    /// at most one per kill. The last line is `lost 0 duplicated 0 reordered 0`, or the exit status is 1.
    Demo {
        /// What the relays use; by RDMA they show each other certificates, made for the run
        #[arg(long, default_value = "tcp")]
        transport: TransportName,
        /// Messages each way; a slow machine may need fewer to be done in two minutes
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
        messages: u64,
    },
    /// Measures the machine's limits: cache-line ping-pong and copies between two processes, without any ring
    ///
    /// No channel between two processes can be faster. `near`: the two processors share a last-level cache, and a cache
    /// line takes less than 120 ns one way. `far`: they do not, as on two sockets.
    Limit(LimitArguments),
    /// Measures one-way times of single messages, the limit beside them
    ///
    /// Two pinned processes send one message there and one back. Half a round trip is one way. `t_typical` is the median
    /// over blocks of round trips, free of the clock's resolution; the percentiles are those of single round trips.
    ///
    /// With --rate, messages are sent by a schedule, whatever became of those before them. Each is timed from when it was
    /// due, so that a stall counts for every message that it delayed, not only for the one that was under way:
    /// corrected for coordinated omission. The times from when it was sent are shown as well, as raw. What a
    /// message waited before it was sent counts in full, the rest is half of its round trip.
    ///
    /// Each round measures limit, channel, limit. Rounds whose two limits differ by more than 20 % are dropped, since the
    /// machine changed in between.
    ///
    /// The columns are perftest's, in nanoseconds. docs/performance.md describes the JSON.
    Lat(LatArguments),
    /// Measures messages a second in a stream, the limit beside them
    ///
    /// One process copies messages into the ring as fast as they are accepted, the other reads a byte of each of
    /// their lines in place and releases them. Beside it: the rate at which the same bytes can be copied from one
    /// process to the other with no ring at all, and how many messages pass in the time that a cache line takes.
    Rate(RateArguments),
    /// Measures RDMA: tbus beside perftest and rsocket, in one table
    ///
    /// Each round measures every figure by every program, one after the other: `ib_write_lat` and `ib_write_bw` of perftest,
    /// `rstream` of librdmacm, and tbus over TCP, by RDMA with the relays in the two processes' own loops, and by RDMA between
    /// two tbusd. Both ends are on this machine, at one device. Without a device, `ci/rxe run -- tbusperf rdma` runs it in a
    /// virtual machine with soft-RoCE, where figures mean something by their ratios only.
    ///
    /// `met` and `not met` say whether the ratio of tbus by RDMA to perftest is what tbus promises itself.
    Rdma(RdmaArguments),
    /// Compares two results that `lat`, `rate` or `limit` wrote with --json
    ///
    /// For each figure of each size: the medians of the rounds with the lowest and the highest, their ratio, and whether
    /// all rounds of B lie on one side of all rounds of A. Differences of regime, machine or settings are told first:
    /// then a ratio may not mean what it seems to.
    ///
    /// A machine changes within minutes. To compare two programs, alternate between them and compare several pairs.
    Compare {
        /// The first result
        a: PathBuf,
        /// The second result; ratios are its figures by the first one's
        b: PathBuf,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
        /// Draw both into one picture
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// One of the two processes of the demonstration
    #[command(hide = true)]
    DemoPeer {
        directory: PathBuf,
        side: usize,
        messages: u64,
    },
    /// A relay of the demonstration or of a measurement: what tbusd is
    #[command(hide = true)]
    Relay { file: PathBuf },
    /// A bare connection over UCX; both processes of it
    #[command(hide = true)]
    BareUcx {
        address: SocketAddr,
        bytes: usize,
        #[arg(value_parser = humantime::parse_duration)]
        time: Duration,
        #[arg(long)]
        stream: bool,
        #[arg(long, value_parser = options::parse_cpus)]
        cpus: Option<Cpus>,
    },
    /// The second process of a measurement
    #[command(hide = true)]
    Worker {
        directory: PathBuf,
        channel: Vec<String>,
        #[arg(long)]
        cpu: Option<usize>,
    },
}

/// What every measurement takes.
#[derive(Args)]
struct Common {
    /// Rounds; figures are medians of them, with the lowest and the highest
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,
    /// The two processors to run on, as in 0,1; `none`: do not pin [default: the first two that may be used]
    #[arg(long, value_name = "A,B", value_parser = options::parse_cpus)]
    cpus: Option<Cpus>,
    /// Keep rounds whose limits before and after differ by more than 20 % as well
    #[arg(long)]
    keep_all: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Draw a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What every measurement of a channel takes.
#[derive(Args)]
struct Channel {
    /// Payload bytes; several with commas
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', value_parser = options::parse_size,
        default_values = ["8", "64", "256", "1K", "4K"])]
    size: Vec<usize>,
    /// Messages of each size, all rounds together [default: by size]
    #[arg(long, value_name = "N", value_parser = options::parse_count, conflicts_with = "duration")]
    count: Option<u64>,
    /// Time for each size, all rounds together, as in 10s or 500ms; the limits' time comes on top
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Capacity of each ring, bytes
    #[arg(long, value_name = "BYTES", value_parser = options::parse_bytes, default_value = "1M")]
    capacity: u64,
    /// Put the two processes on two hosts, both on this machine, with relays between them; a bare TCP connection is
    /// the limit then
    #[arg(long)]
    remote: bool,
    /// What the relays use
    #[arg(long, requires = "remote", default_value = "tcp")]
    transport: TransportName,
    /// Run the relays in the two processes' own loops, not as two tbusd
    #[arg(long, requires = "remote")]
    embedded: bool,
    /// Measure no bare TCP connection beside it
    #[arg(long, requires = "remote", hide = true)]
    alone: bool,
    /// How the relays make sure of each other; data has TLS with `encrypt` only. The limit is in clear. If not given, `none`,
    /// and `authenticate` for verbs and ucx, which have no other
    #[arg(long, requires = "remote", value_name = "MODE",
        value_parser = PossibleValuesParser::new(Security::ALL.map(|(name, _)| name))
            .map(|name| Security::by_name(&name).unwrap_or_default()))]
    security: Option<Security>,
}

/// A transport that this version has.
#[derive(Clone, Copy, clap::ValueEnum)]
enum TransportName {
    /// TCP, on loopback
    Tcp,
    /// RDMA, at an address of a device
    Verbs,
    /// The same by UCX
    Ucx,
}

impl TransportName {
    /// With how relays make sure of each other if nothing is said.
    fn usual(self) -> (Transport, Security) {
        match self {
            TransportName::Tcp => (Transport::Tcp, Security::None),
            TransportName::Verbs => (Transport::Verbs, Security::Authenticate),
            TransportName::Ucx => (Transport::Ucx, Security::Authenticate),
        }
    }
}

impl Channel {
    fn way(&self) -> Result<Way> {
        let (transport, usual) = self.transport.usual();
        let security = self.security.unwrap_or(usual);
        if transport != Transport::Tcp && security != usual {
            let name = transport.name();
            return Err(format!("--transport {name} goes with --security authenticate: RDMA is never encrypted, and its addresses can be reached from other hosts").into());
        }
        Ok(match (self.remote, self.embedded) {
            (false, _) => Way::Local,
            (true, true) => Way::Embedded(security, transport),
            (true, false) => Way::Daemons(security, transport),
        })
    }
}

#[derive(Args)]
struct LatArguments {
    #[command(flatten)]
    channel: Channel,
    /// Send so many messages a second by a schedule, as in 50000, 100k or 1.5M, instead of one at a time
    #[arg(long, value_name = "PER_SECOND", value_parser = options::parse_number)]
    rate: Option<f64>,
    #[command(flatten)]
    common: Common,
    /// Write HdrHistogram's percentile text: of the only size into a FILE, or of all and the limit into a DIR/
    #[arg(long, value_name = "FILE|DIR/")]
    hgrm: Option<PathBuf>,
}

#[derive(Args)]
struct RateArguments {
    #[command(flatten)]
    channel: Channel,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct LimitArguments {
    /// Bytes of a copy; several with commas
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', value_parser = options::parse_size,
        default_values = ["64", "256", "1K", "4K", "64K"])]
    size: Vec<usize>,
    #[command(flatten)]
    common: Common,
    /// Write HdrHistogram's percentile text of the cache line's times
    #[arg(long, value_name = "FILE|DIR/")]
    hgrm: Option<PathBuf>,
}

#[derive(Args)]
struct RdmaArguments {
    /// Rounds; figures are medians of them, with the lowest and the highest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The two processors to run on, as in 0,1; `none`: do not pin [default: the first two that may be used]
    #[arg(long, value_name = "A,B", value_parser = options::parse_cpus)]
    cpus: Option<Cpus>,
    /// Time for each figure in each round, about
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "2s")]
    time: Duration,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs one measurement. The parts are those of the three kinds' arguments.
fn measure(
    kind: Kind,
    channel: Channel,
    rate: Option<f64>,
    common: Common,
    hgrm: Option<PathBuf>,
) -> Result<()> {
    let way = channel.way()?;
    let count = channel.count.map(Length::Count);
    let options = Options {
        command: std::env::args().collect(),
        sizes: channel.size,
        length: count.or(channel.duration.map(Length::Time)),
        rate,
        way,
        rounds: common.rounds,
        cpus: common.cpus.map_or_else(Cpus::first_two, Ok)?.pinned(),
        capacity: channel.capacity,
        beside_tcp: !channel.alone,
        keep_all: common.keep_all,
    };
    let outputs = Outputs {
        json: common.json,
        svg: common.svg,
        hgrm,
    };
    super::run::run(kind, &options, &outputs)
}

/// True if what was to be shown could be shown.
fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Demo {
            transport,
            messages,
        } => {
            let (transport, security) = transport.usual();
            return demo::run(&remote::Between::new(security, transport)?, messages);
        }
        Command::DemoPeer {
            directory,
            side,
            messages,
        } => demo::run_peer(&directory, side.min(1), messages),
        Command::Relay { file } => remote::run_relay(&file),
        Command::Limit(a) => {
            let channel = Channel {
                size: a.size,
                count: None,
                duration: None,
                // There are rings, but no message goes through them.
                capacity: 1 << 16,
                remote: false,
                transport: TransportName::Tcp,
                embedded: false,
                alone: false,
                security: None,
            };
            measure(Kind::Limit, channel, None, a.common, a.hgrm)
        }
        Command::Lat(a) => measure(Kind::Lat, a.channel, a.rate, a.common, a.hgrm),
        Command::Rate(a) => measure(Kind::Rate, a.channel, None, a.common, None),
        Command::Rdma(a) => rdma::run(&rdma::Options {
            command: std::env::args().collect(),
            rounds: a.rounds.into(),
            cpus: a.cpus.map_or_else(Cpus::first_two, Ok)?.pinned(),
            time: a.time,
            json: a.json,
        }),
        Command::Compare { a, b, json, svg } => compare::run([&a, &b], json, svg.as_deref()),
        Command::BareUcx {
            address,
            bytes,
            time,
            stream,
            cpus,
        } => bare_ucx::run(&bare_ucx::Task {
            address,
            stream,
            bytes,
            time,
            cpus: cpus.and_then(Cpus::pinned),
        }),
        Command::Worker {
            directory,
            channel,
            cpu,
        } => worker::run(&directory, &channel, cpu),
    }?;
    Ok(true)
}

/// The definition, with examples and exit status below the help.
pub fn command() -> clap::Command {
    MANUAL.with_examples(Cli::command().after_help(MANUAL.after_help()))
}

/// What the executable does.
pub fn main() -> ExitCode {
    let result = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => run(cli),
        Err(error) => error.exit(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tbusperf: {error}");
            ExitCode::from(status(error.as_ref()))
        }
    }
}
