//! `tbusperf`: shows what tbus does, and measures it.

fn main() -> std::process::ExitCode {
    tbus_tools::perf::cli::main()
}
