//! `tbusd`: the relay daemon.

fn main() -> std::process::ExitCode {
    tbus_tools::daemon::cli::main()
}
