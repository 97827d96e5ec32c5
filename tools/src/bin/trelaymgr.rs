//! `trelaymgr`: writes, lists and deletes routes to other hosts.

use clap::{ArgGroup, Parser};
use std::path::PathBuf;
use std::process::ExitCode;
use tbus::config::parse_key;
use tbus_tools::command::{Target, finish};
use tbus_tools::routes::{Action, run};

#[derive(Parser)]
#[command(
    name = "trelaymgr",
    version,
    about = "Writes, lists and deletes routes: which addresses are on other hosts, and where the relays there are reached",
    after_help = "\
Examples:
  trelaymgr -C routes.xml --plan       what would change
  trelaymgr -C routes.xml -W           make the routes what the file says
  trelaymgr -k 2688                    list them
  trelaymgr -k 2688 --delete 2         delete the second of the list

-W leaves a route alone that is as the file says, updates one that leads elsewhere, and deletes a surplus one. No
message is lost by that: the relay, which notices at once, turns the rings concerned into new ones, and what is in
the old ones is received first. Routes lie in ${TBUS_SHM_DIR:-/dev/shm}/tbus.KEY/grm.

Exit status: 0 done; 2 wrong usage; 3 bad configuration, nothing changed; 4 not found; 6 busy, another process
holds what is needed; 7 the system refused.",
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

fn main() -> ExitCode {
    let cli = Cli::parse();
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
