//! `tbusmgr`: makes, lists, shows, empties and deletes channels.

use clap::{ArgGroup, Parser};
use std::path::PathBuf;
use std::process::ExitCode;
use tbus::config::parse_key;
use tbus_tools::command::{Target, finish};
use tbus_tools::manager::{Action, run};

#[derive(Parser)]
#[command(
    name = "tbusmgr",
    version,
    about = "Makes, lists, shows, empties and deletes channels",
    after_help = "\
Examples:
  tbusmgr -C channels.xml --plan       what would change
  tbusmgr -C channels.xml -W           make the channels what the file says
  tbusmgr -k 1000                      list them
  tbusmgr -k 1000 --see 0.0.1.1        how many messages wait in the rings of an address
  tbusmgr -k 1000 -T --src=0.0.1.1 --dst=0.0.3.1 --data-len=14

A channel that exists is left alone by -W; a surplus one is deleted, but not with unread messages unless --force.
Channels lie in ${TBUS_SHM_DIR:-/dev/shm}/tbus.KEY.

Exit status: 0 done; 2 wrong usage; 3 bad configuration, nothing changed; 4 not found; 5 refused, since unread
messages would be lost; 6 busy, another process holds what is needed; 7 the system refused.",
    arg_required_else_help = true,
    group = ArgGroup::new("where").required(true).args(["conf_file", "key"]),
    group = ArgGroup::new("what").args(["write", "plan", "see", "see_all", "test", "clean", "delete"])
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
    #[arg(long)]
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
    #[arg(long, value_name = "N", default_value_t = 14)]
    data_len: usize,
    /// Empty channel N, as numbered in the list
    #[arg(long, value_name = "N")]
    clean: Option<usize>,
    /// Delete channel N, as numbered in the list
    #[arg(long, value_name = "N")]
    delete: Option<usize>,
    /// Lose unread messages where a write or delete would be refused
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let action = match (cli.test, cli.clean, cli.delete) {
        _ if cli.plan => Action::Plan,
        _ if cli.write => Action::Write { force: cli.force },
        (true, ..) => Action::Test {
            from: cli.src.unwrap_or_default(),
            to: cli.dst.unwrap_or_default(),
            length: cli.data_len,
        },
        (_, Some(number), _) => Action::Clean(number),
        (_, _, Some(number)) => Action::Delete {
            number,
            force: cli.force,
        },
        _ if cli.see.is_some() || cli.see_all => Action::See {
            address: cli.see,
            dump: cli.dump_binary,
        },
        _ => Action::List,
    };
    let target = match (&cli.conf_file, cli.key) {
        (Some(file), _) => Target::File(file),
        (None, key) => Target::Key(key.unwrap_or_default()),
    };
    finish("tbusmgr", run(&target, &action, cli.json))
}
