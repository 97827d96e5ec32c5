//! libtbus as a C programmer has it, and programs that use it.

#![allow(dead_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// This package, whichever package's test asks.
pub fn package() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../bus/capi"))
        .canonicalize()
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into())
}

/// The directory with libtbus.so and libtbus.a, built as this test is: cargo builds neither for it.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // TARGET/PROFILE/deps/TEST
        let test = std::env::current_exe().unwrap();
        let directory = test.ancestors().nth(2).unwrap();
        let profile = match directory.file_name().and_then(OsStr::to_str) {
            Some("debug") => "dev",
            Some(name) => name,
            None => panic!("{} is in no directory of a profile", test.display()),
        };
        let target = directory.parent().unwrap();
        must(
            Command::new(env!("CARGO"))
                .args(["build", "-p", "tbus-capi", "--profile", profile])
                .arg("--target-dir")
                .arg(target)
                .current_dir(package()),
        );
        directory.into()
    })
}

/// True if there is such a command. It may be missing only where whoever runs the tests has said so, as ci/test --no-install does.
#[track_caller]
pub fn have(command: &str, debian_package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(command).exists());
    if !found {
        assert!(
            std::env::var_os("TBUS_SKIP_MISSING").is_some_and(|value| value == "1"),
            "there is no {command}: apt-get install {debian_package}. Who goes on without says TBUS_SKIP_MISSING=1"
        );
        eprintln!(
            "NOT RUN: there is no {command} ({debian_package}), and TBUS_SKIP_MISSING is set"
        );
    }
    found
}

/// Its output, and it must end well.
#[track_caller]
pub fn must(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (text, log) = texts(&output);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}\n{log}",
        output.status
    );
    text
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// How a program has the library.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Shared,
    /// libtbus.a, and the system's libraries shared.
    Archive,
    /// Everything in one file.
    Static,
}

/// Compiles a file of tests/programs, by the compiler of its kind.
#[track_caller]
pub fn compile(name: &str, link: Link, out: &Path) -> PathBuf {
    let source = package().join("tests/programs").join(name);
    compile_file(&source, link, out)
}

#[track_caller]
pub fn compile_file(source: &Path, link: Link, out: &Path) -> PathBuf {
    let library = library();
    let compiler = match source.extension().and_then(OsStr::to_str) {
        Some("cpp") => ["g++", "-std=c++98"],
        _ => ["gcc", "-std=gnu11"],
    };
    let name = source.file_stem().unwrap().to_str().unwrap();
    let program = out.join(format!("{name}-{}", link as u8));
    let mut command = Command::new(compiler[0]);
    command
        .args([
            compiler[1],
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-pthread",
        ])
        .arg("-I")
        .arg(package().join("include"))
        .arg(source)
        .arg("-o")
        .arg(&program);
    match link {
        Link::Shared => command.arg("-L").arg(library).arg("-ltbus"),
        Link::Archive => command.arg(library.join("libtbus.a")).args(["-ldl", "-lm"]),
        Link::Static => command
            .arg("-static")
            .arg(library.join("libtbus.a"))
            .arg("-lm"),
    };
    must(&mut command);
    program
}

/// A command of a program that uses the library, below `shm`.
pub fn command(program: &Path, shm: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("TBUS_SHM_DIR", shm)
        .env("LD_LIBRARY_PATH", library());
    command
}

/// A program that runs beside the test; killed with it.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Running(child.unwrap())
    }

    /// Its output, and it must end well within half a minute.
    #[track_caller]
    pub fn end(mut self) -> String {
        use std::io::Read;
        let begun = std::time::Instant::now();
        let mut text = String::new();
        let mut output = self.0.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let _ = output.read_to_string(&mut text);
            text
        });
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                let text = reader.join().unwrap();
                assert!(status.success(), "{status}:\n{text}");
                return text;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
