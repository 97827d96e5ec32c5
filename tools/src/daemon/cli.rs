//! The command line of `tbusd`.

use super::{Options, ask, check, run};
use crate::command::finish;
use crate::manual::Manual;
use clap::{CommandFactory, FromArgMatches, Parser};
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
            "where peers are awaited; 0.0.0.0:1027 if not given, and port 1027 if only an address is. With the security \
             that this version has it must be an address of this host alone, such as 127.0.0.1",
        ),
        (
            "security = WORD",
            "how peers are made sure of: encrypt (if not given), authenticate or none. This version has only none",
        ),
        (
            "[[allow]]",
            "a peer that may connect, with the keys node, name (in its certificate) and security; without any, all may. \
             With security none a peer is believed what it says of itself",
        ),
        (
            "certificate, private_key, authority = PATH",
            "the files of TLS, in PEM, relative to this file; needed for every security but none",
        ),
        (
            "metrics = IP:PORT",
            "where metrics are served; 127.0.0.1:9127 if not given, none for nowhere. It is checked, and has no effect in \
             this version",
        ),
        (
            "workers = NUMBER",
            "threads that move data. It is checked, and has no effect in this version, which has one",
        ),
    ],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "ends the relay, with status 0. Connections are closed; what is in the rings stays there",
        ),
        (
            "SIGKILL",
            "may come at any moment, and loses nothing: what matters lies in the rings, and the next relay goes on",
        ),
    ],
    exit_status: &[
        ("0", "done, or ended by a signal"),
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
            "read the file, open the maps, look at the port; do nothing",
        ),
        ("tbusd -c tbusd.toml", "run until SIGTERM or SIGINT"),
        (
            "tbusd -c tbusd.toml --status",
            "what the running relay is doing; --json for programs",
        ),
    ],
    examples_of: &[],
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
  security = \"none\"             # this version has no other";

#[derive(Parser)]
#[command(
    name = "tbusd",
    version,
    about = "Relays channels to other hosts: mirrors their rings there, and the rings of other hosts here",
    long_about = "\
Relays channels to other hosts: mirrors their rings there, and the rings of other hosts here.

A relay serves one bus. It follows the channels that tbusmgr writes and the routes that trelaymgr writes while it runs. It may be \
killed at any moment: what matters lies in the rings, and the next one goes on.

It stays in the foreground, for a supervisor such as systemd, and logs to the standard error output.",
    arg_required_else_help = true
)]
struct Cli {
    /// The relay's file
    #[arg(short = 'c', long, value_name = "FILE")]
    conf_file: PathBuf,
    /// Check the file and what it names, and do nothing
    #[arg(long, conflicts_with = "status")]
    check: bool,
    /// Ask the running relay of this file
    #[arg(long)]
    status: bool,
    /// Print JSON
    #[arg(long, requires = "status")]
    json: bool,
    /// Poll so long after the last message before sleeping, for example 50us or 1h; longer is faster and takes a processor
    #[arg(long, value_name = "TIME", value_parser = |text: &str| humantime::parse_duration(text))]
    spin: Option<Duration>,
}

/// The definition, with examples and exit status below the help.
pub fn command() -> clap::Command {
    Cli::command().after_help(format!("{SAMPLE}\n\n{}", MANUAL.after_help()))
}

/// What the executable does.
pub fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if cli.check {
        return finish("tbusd", check(&cli.conf_file));
    }
    if cli.status {
        return finish("tbusd", ask(&cli.conf_file, cli.json));
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
    finish(
        "tbusd",
        run(&cli.conf_file, &options).map(|()| String::new()),
    )
}
