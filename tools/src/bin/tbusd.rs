//! `tbusd`: the relay daemon.

use clap::Parser;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tbus_tools::command::finish;
use tbus_tools::daemon::{Options, ask, check, run};

#[derive(Parser)]
#[command(
    name = "tbusd",
    version,
    about = "Relays channels to other hosts: mirrors their rings there, and the rings of other hosts here",
    after_help = "\
Examples:
  tbusd -c tbusd.toml --check          read the file, open the maps, look at the port; do nothing
  tbusd -c tbusd.toml                  run until SIGTERM or SIGINT
  tbusd -c tbusd.toml --status         what the running relay is doing; --json for machines

A file that does for two relays on one host, one of them:
  cluster = \"test\"
  node = 1
  gcim_key = 1000                      # channels, written by tbusmgr
  relay_key = 2688                     # routes, written by trelaymgr
  listen = \"127.0.0.1:1027\"
  security = \"none\"                    # this version has no other

A relay may be killed at any moment: what matters lies in the rings, and the next one goes on. Logs go to the
standard error output; TBUS_LOG=debug (error, warn, info, debug) says how much.

Exit status: 0 ended by a signal; 2 wrong usage; 3 bad configuration; 4 a map is not there; 6 busy; 7 the system
refused.",
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

fn main() -> ExitCode {
    let cli = Cli::parse();
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
