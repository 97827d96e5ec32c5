//! The C library with the tools: old programs on two hosts, and what ci/install installs, used as docs/c-api.md says.

#[path = "../../bus/capi/tests/c/mod.rs"]
mod c;
mod hosts;

use c::{Link, Running, command, compile, have, library, must, package};
use hosts::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use tbus::Address;

/// One end is the old program, the other a Rust process on another host, and then the old program on both.
#[test]
fn old_programs_talk_across_two_relays() {
    let _turn = turn();
    if !have("g++", "g++") {
        return;
    }
    let scratch = Scratch::new("c-programs");
    let hosts = two_hosts(&scratch, &channels(&[(65_536, "delivered")]));
    let _relays = [hosts[0].start(), hosts[1].start()];
    hosts.iter().for_each(|host| _ = host.await_mirrored(2));
    let program = compile("old.cpp", Link::Shared, &scratch.0);
    let run = |host: usize, arguments: &[&str]| {
        Running::start(&mut command(&program, &hosts[host].place, arguments))
    };
    let expected: String = (0..3000).map(|n| format!("message {n}\n")).collect();
    for (here, there) in [(0, 1), (1, 0)] {
        let [from, to] = [here, there].map(|host| format!("{}.0.0.1", host + 1));
        let nothing = run(there, &["poll", &to, &from]).end();
        assert_eq!(nothing, "No msg in tbus channel.\n");
        let receiver = run(there, &["recv", &to, &from, "3000"]);
        assert_eq!(run(here, &["send", &from, &to, "3000"]).end(), "");
        assert!(receiver.end() == expected, "messages are missing or wrong");
    }
    let [one, two]: [Address; 2] = [address(1, 1), address(2, 1)];
    assert_eq!(run(0, &["send", "1.0.0.1", "2.0.0.1", "2"]).end(), "");
    let mut receiver = hosts[1].receiver(two, one);
    let mut buffer = [0; 64];
    for expected in [b"message 0\0", b"message 1\0"] {
        let length = within(PATIENCE, || receiver.try_recv(&mut buffer).ok());
        assert_eq!(&buffer[..length.expect("it comes")], expected);
    }
    hosts[1].sender(two, one).try_send(b"from Rust\0").unwrap();
    let text = run(0, &["recv", "1.0.0.1", "2.0.0.1", "1"]).end();
    assert_eq!(text, "from Rust\n");
}

fn root() -> PathBuf {
    package().join("../..").canonicalize().unwrap()
}

/// ci/install, of what is built already.
fn install(more: &[(&str, &Path)], prefix: &Path) -> String {
    let mut command = Command::new(root().join("ci/install"));
    command.arg("--prefix").arg(prefix);
    command.arg("--build-dir").arg(library());
    command
        .envs(more.iter().copied())
        .env_remove("CARGO_TARGET_DIR");
    must(&mut command)
}

/// All files below a directory, by their names there, and what they hold.
fn files(below: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut left = vec![below.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let name = path.strip_prefix(below).unwrap().to_path_buf();
                    all.push((name, std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    all.sort();
    all
}

/// In a shell with the installed tools and libraries.
#[track_caller]
fn shell(script: &str, prefix: &Path, directory: &Path) -> String {
    let tools = prefix.join("bin");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    must(
        Command::new("timeout")
            .args(["120", "bash", "-e", "-c", script])
            .current_dir(directory)
            .env("PATH", path)
            .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
            .env("CMAKE_PREFIX_PATH", prefix)
            .env("LD_LIBRARY_PATH", prefix.join("lib"))
            .env("TBUS_SHM_DIR", directory)
            .env("GOCACHE", directory.join("go-cache"))
            .env("GOFLAGS", "-mod=mod"),
    )
}

const PRINTED: &str = "0.0.1.1: one\n0.0.1.1: two\n0.0.1.1: three\n";

/// A fenced block of the page, with its language.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let parts = page.split("\n```").skip(1).step_by(2);
    parts.map(|part| part.split_once('\n').unwrap()).collect()
}

#[test]
fn what_is_installed_works_as_the_page_says() {
    let _turn = turn();
    let needed = [
        ("pkg-config", "pkg-config"),
        ("cmake", "cmake"),
        ("go", "golang-go"),
        ("luajit", "luajit"),
    ];
    let have = needed.map(|(command, package)| have(command, package));
    let scratch = Scratch::new("c-install");
    let prefix = scratch.0.join("prefix");
    install(&[], &prefix);
    let first = files(&prefix);
    for name in [
        "bin/tbusd",
        "include/tbus/tbus.h",
        "include/pal/pal.h",
        "lib/libtbus.a",
        "lib/libtbus.so",
        "lib/libtbus.so.1",
        "lib/pkgconfig/tbus.pc",
        "lib/cmake/tbus/tbusConfig.cmake",
        "share/man/man1/tbusd.1",
    ] {
        assert!(
            first.iter().any(|(path, _)| path == Path::new(name)),
            "{name}"
        );
    }
    // Again, and below another root for the same place: the same files.
    install(&[], &prefix);
    assert!(files(&prefix) == first, "a second run changes something");
    let stage = scratch.0.join("stage");
    install(&[("DESTDIR", &stage)], &prefix);
    let staged = stage.join(prefix.strip_prefix("/").unwrap());
    assert!(files(&staged) == first, "with DESTDIR it is something else");

    // A name that sed would take for something else, and the build's directory by its name where the caller is.
    let strange = scratch.0.join(r"a&b|c\d");
    let mut command = Command::new(root().join("ci/install"));
    command.arg("--prefix").arg(&strange);
    command.args(["--build-dir", "./."]).current_dir(library());
    must(&mut command);
    let described = std::fs::read_to_string(strange.join("lib/pkgconfig/tbus.pc")).unwrap();
    assert!(described.contains(strange.to_str().unwrap()), "{described}");

    // The page's files, then its commands, in the page's order.
    let page = std::fs::read_to_string(root().join("docs/c-api.md")).unwrap();
    let blocks = blocks(&page);
    let mut names = Vec::new();
    for (language, text) in &blocks {
        if ["c", "go", "lua"].contains(language) {
            let name = text.split_whitespace().nth(1).unwrap();
            std::fs::write(scratch.0.join(name), text).unwrap();
            names.push(name);
        }
    }
    assert_eq!(names, ["send.c", "receive.c", "receive.go", "receive.lua"]);
    let commands = blocks.iter().filter(|(language, _)| *language == "sh");
    let commands: Vec<_> = commands.map(|(_, text)| *text).collect();
    let [channels, c, go, lua] = commands[..] else {
        panic!("{} blocks of commands", commands.len());
    };
    assert!(page.contains(&format!("```text\n{PRINTED}```")));
    shell(channels, &prefix, &scratch.0);
    let [pkg_config, cmake, with_go, with_lua] = have;
    if pkg_config {
        assert_eq!(shell(c, &prefix, &scratch.0), PRINTED);
    }
    if pkg_config && with_go {
        assert_eq!(shell(go, &prefix, &scratch.0), PRINTED);
    }
    if pkg_config && with_lua {
        assert_eq!(shell(lua, &prefix, &scratch.0), PRINTED);
    }
    if cmake {
        let lists = "cmake_minimum_required(VERSION 3.13)\nproject(try C)\nfind_package(tbus 0.1 REQUIRED)\n\
                     foreach(kind tbus static)\nadd_executable(send-${kind} send.c)\n\
                     target_link_libraries(send-${kind} tbus::${kind})\n\
                     add_executable(receive-${kind} receive.c)\ntarget_link_libraries(receive-${kind} tbus::${kind})\n\
                     endforeach()\n";
        std::fs::write(scratch.0.join("CMakeLists.txt"), lists).unwrap();
        shell(
            "cmake -S . -B made && cmake --build made",
            &prefix,
            &scratch.0,
        );
        for (from, to) in [("tbus", "static"), ("static", "tbus")] {
            let script = format!("made/send-{from} && made/receive-{to}");
            assert_eq!(shell(&script, &prefix, &scratch.0), PRINTED);
        }
        let wrong = lists.replace("tbus 0.1", "tbus 99.0");
        std::fs::write(scratch.0.join("CMakeLists.txt"), wrong).unwrap();
        shell("! cmake -S . -B other", &prefix, &scratch.0);
    }
}

#[test]
fn wrong_use_of_ci_install_is_told() {
    for (arguments, status, says) in [
        (&[][..], 2, "--prefix is missing"),
        (&["--prefix"], 2, "needs a directory"),
        (&["--prefix", "here"], 2, "no absolute path"),
        (&["--what"], 2, "unknown argument"),
        (&["--help"], 0, "Usage"),
        (
            &["--prefix", "/nowhere", "--build-dir", "/nowhere"],
            1,
            "cargo build --release",
        ),
    ] {
        let output = Command::new(root().join("ci/install"))
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(text.contains(says), "{text}");
    }
}
