//! `tbusmgr`: makes, lists, shows, empties and deletes channels.

fn main() -> std::process::ExitCode {
    tbus_tools::manager::cli::main()
}
