//! What C pays for a message more than Rust, in instructions, which repeat exactly.

mod c;
mod channels;

use c::{Link, command, compile, have, must};
use channels::{Channels, address};
use std::hint::black_box;
use std::path::Path;

/// What checking arguments and handle, finding the channel and catching panics may cost for a send and a receive together.
const MORE: u64 = 125;

/// What finding the channel whose turn it is may cost more than knowing it.
const ANY: u64 = 130;

/// Instructions of a program, counted by valgrind.
fn count(program: &Path, channels: &Channels, arguments: &[&str], out: &Path) -> u64 {
    let mut valgrind = command(Path::new("valgrind"), &channels.shm, &[]);
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", out.display()))
        .arg(program)
        .args(arguments);
    must(&mut valgrind);
    let log = std::fs::read_to_string(out).unwrap();
    let line = log.lines().find_map(|line| line.split_once("Collected :"));
    line.unwrap().1.trim().parse().unwrap()
}

/// What one message more costs; free of start and end.
fn each(program: &Path, channels: &Channels, arguments: impl Fn(&str) -> Vec<String>) -> u64 {
    let out = channels.shm.join("valgrind.log");
    let [few, many] = ["2000", "12000"].map(|times| {
        let arguments = arguments(times);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        count(program, channels, &arguments, &out)
    });
    (many - few) / 10_000
}

#[test]
fn a_message_costs_c_little_more_than_rust() {
    if cfg!(debug_assertions) {
        println!("not run: without optimisation instructions mean nothing; use --release");
        return;
    }
    if !have("valgrind", "valgrind") {
        return;
    }
    let channels = Channels::new("speed");
    let program = compile("speed.c", Link::Shared, &channels.shm);
    let test = std::env::current_exe().unwrap();
    for size in [8, 64, 256] {
        let [c, any] = ["one", "any"].map(|from| {
            each(&program, &channels, |times| {
                vec![times.into(), size.to_string(), from.into()]
            })
        });
        let rust = each(&test, &channels, |times| {
            // The channel and the size go by the environment of `rust_side`, the count too.
            let side = format!("{} {times} {size}", channels.shm.display());
            std::fs::write(channels.shm.join("rust"), side).unwrap();
            ["rust_side", "--exact", "--ignored", "--test-threads=1"]
                .map(String::from)
                .to_vec()
        });
        println!("{size} bytes: {c} instructions in C, {any} from any, {rust} in Rust");
        assert!(c <= rust + MORE, "{size} bytes: {c} in C, {rust} in Rust");
        assert!(any <= c + ANY, "{size} bytes: {any} from any, {c} from one");
    }
}

/// The same in Rust: run by the test above, in a process of its own.
#[test]
#[ignore = "counted by the other test"]
fn rust_side() {
    let shm = std::env::var("TBUS_SHM_DIR").unwrap();
    let order = std::fs::read_to_string(Path::new(&shm).join("rust")).unwrap();
    let numbers: Vec<usize> = order
        .split(' ')
        .skip(1)
        .map(|n| n.parse().unwrap())
        .collect();
    let bus = bus::Bus::attach(1000).unwrap();
    let (a, b) = (bus.bind(address(1)).unwrap(), bus.bind(address(2)).unwrap());
    let mut sender = a.sender(address(2)).unwrap();
    let mut receiver = b.receiver(address(1)).unwrap();
    let (message, mut buffer) = (vec![0; numbers[1]], vec![0; 4096]);
    for _ in 0..numbers[0] {
        sender.try_send(black_box(&message)).unwrap();
        black_box(receiver.try_recv(black_box(&mut buffer)).unwrap());
    }
}
