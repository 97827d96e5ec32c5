//! `trelaymgr`: writes, lists and deletes routes to other hosts.

fn main() -> std::process::ExitCode {
    tbus_tools::routes::cli::main()
}
