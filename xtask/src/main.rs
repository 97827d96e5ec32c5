//! Makes the bindings that are checked in, from the headers of this system.

mod rdma;
mod ucx;

use bindgen::{Builder, EnumVariation, Formatter, RustEdition, RustTarget};
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "Usage: cargo run --manifest-path xtask/Cargo.toml -- bindings [DIRECTORY]

Writes the bindings of libibverbs, librdmacm and libucp to rdma-sys/src/bindings and ucx-sys/src/bindings in DIRECTORY (default:
transport, where they are checked in). Needs the headers (Debian: libibverbs-dev, librdmacm-dev, libucx-dev) and libclang
(libclang-dev).
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bindings"] => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../transport"),
        ["bindings", directory] => PathBuf::from(directory),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match bindings(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bindings(directory: &Path) -> Result<(), Box<dyn Error>> {
    write(&directory.join("rdma-sys/src/bindings"), rdma::bindings()?)?;
    write(&directory.join("ucx-sys/src/bindings"), ucx::bindings()?)
}

/// What all bindings have in common: they begin with `note`, are made from `header`, and have these functions, opened at run time.
fn builder(note: &str, header: &str, functions: &[&str]) -> Result<Builder, Box<dyn Error>> {
    let mut builder = bindgen::builder()
        .rust_target(RustTarget::stable(89, 0).map_err(|error| error.to_string())?)
        .header_contents("listed.h", header)
        .rust_edition(RustEdition::Edition2024)
        .formatter(Formatter::None)
        .disable_header_comment()
        .raw_line(note)
        .generate_comments(false)
        .layout_tests(true)
        .derive_debug(false)
        .prepend_enum_name(false)
        .default_enum_style(EnumVariation::NewType {
            is_bitfield: false,
            is_global: false,
        })
        .dynamic_link_require_all(true)
        // Taken from libc: they differ from one processor's glibc to the next.
        .blocklist_file(".*/(bits|netinet|sys)/.*");
    for function in functions {
        builder = builder.allowlist_function(function);
    }
    Ok(builder)
}

fn write(directory: &Path, files: Vec<(&str, String)>) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(directory)?;
    for (name, text) in files {
        std::fs::write(directory.join(name), formatted(&text)?)?;
    }
    Ok(())
}

/// As `cargo fmt` leaves it, which checks these files too.
fn formatted(text: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut rustfmt = Command::new("rustfmt")
        .args(["--edition", "2024"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = rustfmt.stdin.take().ok_or("rustfmt takes no input")?;
    // It reads to the end before it writes, so this does not block on a full pipe.
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = rustfmt.wait_with_output()?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err("rustfmt failed".into()),
    }
}
