//! The command line of `trelaymgr`.

use super::{Action, run};
use crate::command::{Target, finish};
use crate::manual::Manual;
use clap::{ArgGroup, CommandFactory, FromArgMatches, Parser};
use std::path::PathBuf;
use std::process::ExitCode;
use tbus::parse_key;

/// What its man page has beyond the options.
pub const MANUAL: Manual = Manual {
    command,
    synopsis: &[
        "{-C FILE | -k KEY} [--json]",
        "-C FILE {--plan | -W} [--json]",
        "{-C FILE | -k KEY} --delete N [--json]",
    ],
    configuration: &[],
    signals: &[],
    exit_status: &[
        ("0", "done"),
        ("2", "wrong usage"),
        ("3", "bad configuration, nothing changed"),
        ("4", "no such map or route"),
        ("6", "busy, another process holds what is needed"),
        ("7", "the system refused"),
    ],
    environment: &[(
        "TBUS_SHM_DIR",
        "where the directories of maps are; /dev/shm if not set",
    )],
    files: &[
        (
            "/dev/shm/tbus.KEY/",
            "the directory of KEY, mode 0750. Who may write to it may change where messages go",
        ),
        (
            "/dev/shm/tbus.KEY/grm",
            "the map of the routes, mode 0660 less the umask; relays read it",
        ),
        (
            "/dev/shm/tbus.KEY/locks",
            "a lock on one of its bytes says who manages",
        ),
    ],
    examples: &[
        ("trelaymgr -C routes.xml --plan", "what would change"),
        (
            "trelaymgr -C routes.xml -W",
            "make the routes what the file says",
        ),
        ("trelaymgr -k 2688", "list them"),
        (
            "trelaymgr -k 2688 --delete 2",
            "delete the second of the list",
        ),
        (
            "trelaymgr -k 2688 --json | jq '.routes[].address'",
            "the list for programs",
        ),
    ],
    examples_of: &[],
    see_also: &["tbusmgr(1)", "tbusd(1)"],
};

#[derive(Parser)]
#[command(
    name = "trelaymgr",
    version,
    about = "Writes, lists and deletes routes: which addresses are on other hosts, and where the relays there are reached",
    long_about = "\
Writes, lists and deletes routes: which addresses are on other hosts, and where the relays there are reached.

Without any of -W, --plan and --delete it lists the routes.

-W leaves a route alone that is as the file says, updates one that leads elsewhere, creates a missing one and deletes a \
surplus one. It happens as a whole or not at all. No message is lost by it: the relay, which notices at once, turns the \
rings concerned into new ones, and what is in the old ones is received first.",
    arg_required_else_help = true,
    group = ArgGroup::new("where").required(true).args(["conf_file", "key"]),
    group = ArgGroup::new("what").args(["write", "plan", "delete"])
)]
struct Cli {
    /// Configuration file of routes, XML or TOML; it also says which key
    #[arg(short = 'C', long, value_name = "FILE")]
    conf_file: Option<PathBuf>,
    /// Key of the routes (RelayShmKey), decimal or hexadecimal with 0x
    #[arg(short = 'k', long, value_parser = |text: &str| parse_key(text).ok_or("give a number of 32 bits, decimal or 0x…"))]
    key: Option<u32>,
    /// Write the file's routes
    #[arg(short = 'W', long, requires = "conf_file")]
    write: bool,
    /// Show what a write would do, and do nothing
    #[arg(long, requires = "conf_file")]
    plan: bool,
    /// Delete route N, as numbered in the list
    #[arg(long, value_name = "N")]
    delete: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The definition, with examples and exit status below the help.
pub fn command() -> clap::Command {
    Cli::command().after_help(MANUAL.after_help())
}

/// What the executable does.
pub fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let action = match cli.delete {
        _ if cli.plan => Action::Plan,
        _ if cli.write => Action::Write,
        Some(number) => Action::Delete(number),
        None => Action::List,
    };
    let target = match (&cli.conf_file, cli.key) {
        (Some(file), _) => Target::File(file),
        (None, key) => Target::Key(key.unwrap_or_default()),
    };
    finish("trelaymgr", run(&target, &action, cli.json))
}
