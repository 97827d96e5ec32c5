//! The command line of `tbusmgr`.

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
        "-C FILE {--plan | -W} [--force] [--json]",
        "{-C FILE | -k KEY} {--see ADDR | --see-all} [--dump-binary] [--json]",
        "{-C FILE | -k KEY} -T --src ADDR --dst ADDR [--data-len N] [--json]",
        "{-C FILE | -k KEY} {--clean N | --delete N [--force]} [--json]",
    ],
    configuration: &[],
    signals: &[],
    examples: &[
        ("tbusmgr -C channels.xml --plan", "what would change"),
        (
            "tbusmgr -C channels.xml -W",
            "make the channels what the file says",
        ),
        ("tbusmgr -k 1000", "list them"),
        (
            "tbusmgr -k 1000 --see 0.0.1.1",
            "how many messages wait in the rings of an address",
        ),
        (
            "tbusmgr -k 1000 -T --src=0.0.1.1 --dst=0.0.3.1",
            "send a test message",
        ),
        (
            "tbusmgr -k 1000 --json | jq '.channels[].addresses'",
            "the list for programs",
        ),
    ],
    exit_status: &[
        ("0", "done"),
        ("2", "wrong usage"),
        ("3", "bad configuration, nothing changed"),
        ("4", "no such bus, channel or address"),
        ("5", "refused, since unread messages would be lost"),
        ("6", "busy, another process holds what is needed"),
        ("7", "the system refused"),
    ],
    environment: &[
        (
            "TBUS_SHM_DIR",
            "where the directories of buses are; /dev/shm if not set",
        ),
        ("NO_COLOR", "no colours, if it is set and not empty"),
    ],
    files: &[
        (
            "/dev/shm/tbus.KEY/",
            "the bus KEY, mode 0750. Who may write to it may change its channels",
        ),
        (
            "/dev/shm/tbus.KEY/gcim",
            "the map of its channels, mode 0660 less the umask; applications read it",
        ),
        (
            "/dev/shm/tbus.KEY/ring-UUID",
            "one direction of a channel, mode 0660 less the umask. With the elements Owner, Group or Mode of the channel it \
             belongs to these, with exactly this mode (0660 if not given), and an access list lets them into the directory",
        ),
        (
            "/dev/shm/tbus.KEY/locks",
            "locks on its bytes say who sends, receives and manages",
        ),
    ],
    examples_of: &[],
    see_also: &["trelaymgr(1)", "tbusd(1)", "tbusperf(1)", "acl(5)"],
};

#[derive(Parser)]
#[command(
    name = "tbusmgr",
    version,
    about = "Makes, lists, shows, empties and deletes channels",
    long_about = "\
Makes, lists, shows, empties and deletes channels.

Without any of -W, --plan, --see, --see-all, -T, --clean and --delete it lists the channels of the bus. On a terminal the \
list is made to fit and shows how full the rings are; elsewhere it is whole.

-W makes the channels of the bus what the file says: one that exists is left alone, a missing one is created, a surplus \
one is deleted, but not with unread messages unless --force. It happens as a whole or not at all.",
    arg_required_else_help = true,
    group = ArgGroup::new("where").required(true).args(["conf_file", "key"]),
    group = ArgGroup::new("what").args(["write", "plan", "see", "see_all", "test", "clean", "delete"]),
    group = ArgGroup::new("seeing").args(["see", "see_all"]),
    group = ArgGroup::new("forcible").args(["write", "plan", "delete"])
)]
struct Cli {
    /// Configuration file of channels, XML or TOML; it also says which bus
    #[arg(short = 'C', long, value_name = "FILE")]
    conf_file: Option<PathBuf>,
    /// Key of the bus, decimal or hexadecimal with 0x
    #[arg(short = 'k', long, value_parser = |text: &str| parse_key(text).ok_or("give a number of 32 bits, decimal or 0x…"))]
    key: Option<u32>,
    /// Write the file's channels
    #[arg(short = 'W', long, requires = "conf_file")]
    write: bool,
    /// Show what a write would do, and do nothing
    #[arg(long, requires = "conf_file")]
    plan: bool,
    /// Show the rings of an address
    #[arg(long, value_name = "ADDR")]
    see: Option<String>,
    /// Show all rings
    #[arg(long)]
    see_all: bool,
    /// With --see or --see-all: the messages' bytes as well
    #[arg(long, requires = "seeing")]
    dump_binary: bool,
    /// Write a test message
    #[arg(short = 'T', long, requires_all = ["src", "dst"])]
    test: bool,
    /// Address that a test message comes from
    #[arg(long, value_name = "ADDR", requires = "test")]
    src: Option<String>,
    /// Address that a test message goes to
    #[arg(long, value_name = "ADDR", requires = "test")]
    dst: Option<String>,
    /// Bytes of a test message
    #[arg(long, value_name = "N", default_value_t = 14, requires = "test")]
    data_len: usize,
    /// Empty channel N, as numbered in the list
    #[arg(long, value_name = "N")]
    clean: Option<usize>,
    /// Delete channel N, as numbered in the list
    #[arg(long, value_name = "N")]
    delete: Option<usize>,
    /// Lose unread messages where a write or delete would be refused
    #[arg(long, requires = "forcible")]
    force: bool,
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
    let action = cli.action();
    let target = match (&cli.conf_file, cli.key) {
        (Some(file), _) => Target::File(file),
        (None, key) => Target::Key(key.unwrap_or_default()),
    };
    finish("tbusmgr", run(&target, &action, cli.json))
}

impl Cli {
    fn action(&self) -> Action {
        let force = self.force;
        match (self.test, self.clean, self.delete) {
            _ if self.plan => Action::Plan,
            _ if self.write => Action::Write { force },
            (true, ..) => Action::Test {
                from: self.src.clone().unwrap_or_default(),
                to: self.dst.clone().unwrap_or_default(),
                length: self.data_len,
            },
            (_, Some(number), _) => Action::Clean(number),
            (_, _, Some(number)) => Action::Delete { number, force },
            _ if self.see.is_some() || self.see_all => Action::See {
                address: self.see.clone(),
                dump: self.dump_binary,
            },
            _ => Action::List,
        }
    }
}
