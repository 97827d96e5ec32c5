//! The command line of `tbusd`.

use super::cert::{Authority, NodeCertificate, make_authority, make_node};
use super::{Options, Wish, ask, check, run, switch};
use crate::command::finish;
use crate::manual::Manual;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What its man page has beyond the options.
pub const MANUAL: Manual = Manual {
    command,
    synopsis: &[
        "-c FILE [--spin TIME]",
        "-c FILE --check",
        "-c FILE --status [--json]",
        "-c FILE --switch NODE=TRANSPORT",
        "cert ca --cluster NAME --out DIR [--days N]",
        "cert node --ca DIR --node N --out DIR [--days N]",
    ],
    configuration: &[
        (
            "cluster = TEXT",
            "name of the cluster, 1 to 255 bytes. Peers of another cluster are refused",
        ),
        (
            "node = NUMBER",
            "this host's number in the cluster, of 32 bits. Each relay has its own; of two the lower one dials",
        ),
        ("gcim_key = KEY", "the bus, as tbusmgr wrote it"),
        ("relay_key = KEY", "the routes, as trelaymgr wrote them"),
        (
            "listen = IP:PORT",
            "where peers are awaited; 0.0.0.0:1027 if not given, and port 1027 if only an address is. With security none it \
             must be an address of this host alone, such as 127.0.0.1",
        ),
        (
            "security = WORD",
            "encrypt (if not given): TLS 1.3 for everything, both sides with certificates. authenticate: the same for what \
             relays agree on, and data in clear on a connection that this vouches for, without a copy; for networks on which \
             nobody listens. none: nothing, within this host only. Both sides of a connection must have the same",
        ),
        (
            "[[allow]]",
            "a peer that may connect, others are refused; without any, every node with a certificate of the authority may. \
             Keys: node; name, which must stand among the DNS names of its certificate, if not given node-N.CLUSTER.tbus as \
             tbusd cert makes it; endpoint, the tcp://HOST:PORT that it may be, if not given it is believed which one it is; \
             security, if not as above, but none is for all peers or for no one. With security none a peer is believed what \
             it says of itself",
        ),
        (
            "certificate, private_key, authority = PATH",
            "the files of TLS, in PEM, relative to this file, made by tbusd cert or brought along; needed for every security \
             but none. The certificate, with those between it and the authority behind it, must be for server and client. \
             Nobody but its owner may read the key. Changed files are used within seconds, for new connections; if something \
             is wrong with them the log says what, and the old ones stay",
        ),
        (
            "metrics = IP:PORT",
            "where metrics are served over HTTP; 127.0.0.1:9127 if not given, none for nowhere. Paths: /metrics for Prometheus, \
             /metrics?rings=none without the figures of single rings, /health and /ready with status 200 or 503 and the reasons. \
             Who can connect can read the names of all channels; nothing can be changed there. If the port cannot be had at the \
             beginning the relay goes on without, and says so",
        ),
        (
            "drain = SECONDS",
            "how long SIGTERM waits for what is in the rings, 0 to 86400; 5 if not given",
        ),
        (
            "alarm_full = PERCENT",
            "a ring that is so full is an alarm, 1 to 100; 80 if not given",
        ),
        (
            "alarm_age = SECONDS",
            "messages that the other host, or the application here, has not taken for so long are an alarm, 1 to 86400; 10 if \
             not given",
        ),
        (
            "hold_down = SECONDS",
            "a transport that has failed with a peer rests for so long, twice as long each time it fails again, 1 to 86400; 2 if not \
             given. Another one that the routes name serves meanwhile. Then the first is tried beside it, and takes its place when \
             it works",
        ),
        (
            "hold_down_max = SECONDS",
            "the longest time that it rests, 1 to 86400 and not below hold_down; 60 if not given",
        ),
        (
            "workers = NUMBER",
            "threads that move data. It is checked, and has no effect in this version, which has one",
        ),
    ],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "ends the relay, with status 0. It takes no new connections, and goes on until the peers that are connected have \
             acknowledged what was in the rings when the signal came, or the time of drain has passed. The log says what \
             remained; it stays in the rings, and the next relay sends it. A second signal ends the relay at once, with \
             status 0 too",
        ),
        (
            "SIGHUP",
            "reads the file and the certificates anew. Of each key that has changed the log and --status say: applied (allow, \
             security unless from or to none, certificate, private_key, authority, metrics, drain, alarm_full, alarm_age, \
             hold_down, hold_down_max), or \
             needs restart (the others). A file with a problem is refused as a whole, and the old values stay. Peers of which \
             allow or security says something else now are connected anew",
        ),
        (
            "SIGKILL",
            "may come at any moment, and loses nothing: what matters lies in the rings, and the next relay goes on",
        ),
    ],
    exit_status: &[
        (
            "0",
            "done, or ended by a signal, whether or not the peers have taken everything",
        ),
        ("2", "wrong usage"),
        ("3", "bad configuration"),
        ("4", "a map is not there"),
        (
            "6",
            "busy, another relay runs, or another process has the port",
        ),
        ("7", "the system refused, or no relay answers"),
    ],
    environment: &[
        (
            "TBUS_SHM_DIR",
            "where the directories of maps are; /dev/shm if not set",
        ),
        (
            "TBUS_LOG",
            "how much is logged: error, warn, info or debug; info if not set",
        ),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC",
            "set by systemd for units of Type=notify and with WatchdogSec=: it is told when the relay is ready, reloads and ends, \
             how many peers are connected, and that it lives",
        ),
    ],
    files: &[
        (
            "/dev/shm/tbus.KEY/gcim, /dev/shm/tbus.KEY/ring-UUID",
            "the channels of gcim_key and their rings. The relay must be able to write to them and to their directory",
        ),
        ("/dev/shm/tbus.KEY/grm", "the routes of relay_key"),
        (
            "/dev/shm/tbus.KEY/tbusd-NODE",
            "a socket in the directory of gcim_key, at which the running relay answers --status",
        ),
    ],
    examples: &[
        (
            "tbusd -c tbusd.toml --check",
            "read the file and all that it names, look at the port; do nothing",
        ),
        ("tbusd -c tbusd.toml", "run until SIGTERM or SIGINT"),
        (
            "tbusd -c tbusd.toml --status",
            "peers, rings, alarms, and what became of the last SIGHUP; --json for programs",
        ),
        (
            "tbusd -c tbusd.toml --switch 7=tcp",
            "data of node 7 go by TCP from now on; nothing is lost. 7=auto: as its routes say again",
        ),
    ],
    examples_of: &[(
        "cert",
        &[
            (
                "tbusd cert ca --cluster game-eu --out ca",
                "an authority for the cluster: ca/ca.pem, ca/ca.key",
            ),
            (
                "tbusd cert node --ca ca --node 7 --out node7",
                "certificate, key and authority for node 7, in node7",
            ),
        ],
    )],
    see_also: &["tbusmgr(1)", "trelaymgr(1)", "tbusperf(1)"],
};

/// A whole file, for the help text.
const SAMPLE: &str = "\
A file that does for two relays on one host, one of them:
  cluster = \"test\"
  node = 1
  gcim_key = 1000               # channels, written by tbusmgr
  relay_key = 2688              # routes, written by trelaymgr
  listen = \"127.0.0.1:1027\"
  security = \"none\"             # within one host only

Beyond one host, in place of the last two, with files that tbusd cert has made:
  certificate = \"node-1.pem\"
  private_key = \"node-1.key\"
  authority = \"ca.pem\"

What else may be set, with what holds if it is not:
  metrics = \"127.0.0.1:9127\"    # none: nowhere; a second relay on a host needs another port
  drain = 5                     # seconds that SIGTERM waits for what is in the rings
  alarm_full = 80               # percent of a ring
  alarm_age = 10                # seconds that messages may wait
  hold_down = 2                 # seconds that a transport rests after it has failed, and at most
  hold_down_max = 60";

#[derive(Parser)]
#[command(
    name = "tbusd",
    version,
    about = "Relays channels to other hosts: mirrors their rings there, and the rings of other hosts here",
    long_about = "\
Relays channels to other hosts: mirrors their rings there, and the rings of other hosts here.

A relay serves one bus. It follows the channels that tbusmgr writes and the routes that trelaymgr writes while it runs. It may be \
killed at any moment: what matters lies in the rings, and the next one goes on.

It stays in the foreground, for a supervisor such as systemd, and logs to the standard error output. SIGHUP reads its file anew, \
SIGTERM ends it when its peers have what is in the rings.",
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
    /// The relay's file
    #[arg(short = 'c', long, value_name = "FILE", required = true)]
    conf_file: Option<PathBuf>,
    /// Check the file and what it names, and do nothing
    #[arg(long, conflicts_with_all = ["status", "switch"])]
    check: bool,
    /// Ask the running relay of this file
    #[arg(long)]
    status: bool,
    /// Have the running relay of this file use a transport with a peer: verbs, ucx, tcp, or auto for what the routes say; it
    /// must be one that the routes name, and if it fails others serve. It holds until the relay ends
    #[arg(long, value_name = "NODE=TRANSPORT", conflicts_with = "status")]
    switch: Option<Wish>,
    /// Print JSON
    #[arg(long, requires = "status")]
    json: bool,
    /// Poll so long after the last message before sleeping, for example 50us or 1h; longer is faster and takes a processor
    #[arg(long, value_name = "TIME", value_parser = |text: &str| humantime::parse_duration(text))]
    spin: Option<Duration>,
}

#[derive(Subcommand)]
enum Task {
    /// Make certificates for a cluster's relays
    #[command(
        long_about = "\
Makes certificates for a cluster's relays: one authority, and with it a certificate for each node.

Keep the authority's directory on one host, which need not be a node. Carry to each node what was made for it. To make a \
certificate anew before it ends, make it again to the same place: the key is kept, and a running relay takes the new certificate \
by itself.",
        subcommand_required = true,
        arg_required_else_help = true,
        disable_help_subcommand = true
    )]
    Cert {
        #[command(subcommand)]
        what: Cert,
    },
}

#[derive(Subcommand)]
enum Cert {
    /// Make the authority of a cluster: ca.pem and ca.key
    Ca {
        /// The cluster, as in the relays' files
        #[arg(long, value_name = "NAME")]
        cluster: String,
        /// The directory for the files, made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it is good
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = days())]
        days: u32,
    },
    /// Make the certificate of a node: node-N.pem, node-N.key, and a copy of ca.pem
    Node {
        /// The directory of the authority
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The node's number, as in its relay's file
        #[arg(long, value_name = "N")]
        node: u32,
        /// The directory for the files, made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it is good
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = days())]
        days: u32,
    },
}

/// A hundred years are enough.
fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

fn make(what: Cert) -> crate::command::Result<String> {
    match what {
        Cert::Ca { cluster, out, days } => make_authority(&Authority { out, cluster, days }),
        Cert::Node {
            ca,
            node,
            out,
            days,
        } => make_node(&NodeCertificate {
            ca,
            node,
            out,
            days,
        }),
    }
}

/// The definition, with examples and exit status below the help.
pub fn command() -> clap::Command {
    MANUAL.with_examples(Cli::command().after_help(format!("{SAMPLE}\n\n{}", MANUAL.after_help())))
}

/// What the executable does.
pub fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Some(Task::Cert { what }) = cli.task {
        return finish("tbusd", make(what));
    }
    // clap asks for it unless there is a task.
    let conf_file = cli.conf_file.unwrap_or_default();
    if cli.check {
        return finish("tbusd", check(&conf_file));
    }
    if let Some(wish) = cli.switch {
        return finish("tbusd", switch(&conf_file, wish));
    }
    if cli.status {
        return finish("tbusd", ask(&conf_file, cli.json));
    }
    let level = std::env::var("TBUS_LOG")
        .ok()
        .and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing::Level::INFO))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let options = Options { spin: cli.spin };
    finish("tbusd", run(&conf_file, &options).map(|()| String::new()))
}
