//! C, Python and Rust on the same channels, on one host and across two relays. `ci/test` runs it with the wheel that it has made.

#[path = "../../bus/capi/tests/c/mod.rs"]
mod c;
mod hosts;

use c::{Link, Running, command, compile, have};
use hosts::*;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use std::thread::JoinHandle;
use tbus::{Address, TrySendError};

/// Messages from one process to another.
const COUNT: usize = 1000;

/// What the old program does, by the same arguments.
const PYTHON: &str = r#"
import sys, tbus
way, local, peer, count = sys.argv[1:]
with tbus.Bus("1000").bind(local) as endpoint:
    if way == "send":
        with endpoint.sender(peer) as sender:
            for i in range(int(count)):
                sender.send(b"message %d\0" % i, timeout=30)
    else:
        with endpoint.receiver(peer) as receiver:
            for _ in range(int(count)):
                print(receiver.recv(timeout=30).rstrip(b"\0").decode())
"#;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Language {
    C,
    Python,
    Rust,
}
use Language::*;

/// Programs in all languages.
struct Programs {
    old: PathBuf,
    /// Of an environment that has the wheel.
    python: OsString,
}

/// One that runs: a process, or for Rust a thread of this one.
enum Side {
    Process(Running),
    Thread(JoinHandle<String>),
}

impl Side {
    /// What it prints.
    #[track_caller]
    fn end(self) -> String {
        match self {
            Side::Process(running) => running.end(),
            Side::Thread(thread) => thread.join().unwrap(),
        }
    }
}

impl Programs {
    /// One that sends from `here` to `there`, or receives at `here` from `there`.
    fn start(&self, language: Language, way: &str, host: &Host, ends: [Address; 2]) -> Side {
        let [local, peer] = ends.map(dotted);
        let arguments = [way, &local, &peer, &COUNT.to_string()];
        match language {
            C => Side::Process(Running::start(&mut command(
                &self.old,
                &host.place,
                &arguments,
            ))),
            Python => {
                let mut python = host.inside(self.python.as_ref());
                python.args(["-c", PYTHON]).args(arguments);
                Side::Process(Running::start(&mut python))
            }
            Rust => {
                let endpoint = host.bus().bind(ends[0]).unwrap();
                let sends = way == "send";
                Side::Thread(std::thread::spawn(move || match sends {
                    true => rust_sends(endpoint.sender(ends[1]).unwrap()),
                    false => rust_receives(endpoint.receiver(ends[1]).unwrap()),
                }))
            }
        }
    }

    /// Each sends to each; `hosts` has the ends of the channel.
    fn talk(&self, hosts: [&Host; 2], ends: [Address; 2]) {
        let expected: String = (0..COUNT).map(|n| format!("message {n}\n")).collect();
        for from in [C, Python, Rust] {
            for to in [C, Python, Rust] {
                let receiver = self.start(to, "recv", hosts[1], [ends[1], ends[0]]);
                let sender = self.start(from, "send", hosts[0], ends);
                assert_eq!(sender.end(), "", "{from:?} to {to:?}");
                assert!(
                    receiver.end() == expected,
                    "{from:?} to {to:?}: messages are missing or wrong"
                );
            }
        }
    }
}

fn rust_sends(mut sender: tbus::Sender) -> String {
    for n in 0..COUNT {
        let message = format!("message {n}\0");
        while let Err(error) = sender.try_send(message.as_bytes()) {
            assert!(matches!(error, TrySendError::Full), "{error}");
            sender.wait(message.len(), PATIENCE).unwrap();
        }
    }
    String::new()
}

fn rust_receives(mut receiver: tbus::Receiver) -> String {
    let mut text = String::new();
    let mut buffer = [0; 64];
    for _ in 0..COUNT {
        receiver.wait(PATIENCE).unwrap();
        let length = receiver.try_recv(&mut buffer).unwrap();
        let message = std::str::from_utf8(&buffer[..length]).unwrap();
        writeln!(text, "{}", message.trim_end_matches('\0')).unwrap();
    }
    text
}

#[test]
#[ignore = "needs Python with the wheel, whose program is in TBUS_PYTHON"]
fn c_python_and_rust_talk() {
    let python = std::env::var_os("TBUS_PYTHON");
    let python = python.expect("TBUS_PYTHON: the python of an environment that has the wheel");
    if !have("g++", "g++") {
        return;
    }
    let scratch = Scratch::new("languages");
    let programs = Programs {
        old: compile("old.cpp", Link::Shared, &scratch.0),
        python,
    };
    let channels = channels(&[(65_536, "delivered")]);
    let [one, two] = channels[0].ends;

    let alone = Host::new(&scratch, 3);
    alone.write_channels(&channels);
    programs.talk([&alone, &alone], [one, two]);

    let hosts = two_hosts(&scratch, &channels);
    let _relays = [hosts[0].start(), hosts[1].start()];
    hosts.iter().for_each(|host| _ = host.await_mirrored(2));
    programs.talk([&hosts[0], &hosts[1]], [one, two]);
    programs.talk([&hosts[1], &hosts[0]], [two, one]);
}
