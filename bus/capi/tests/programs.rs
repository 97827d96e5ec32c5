//! Programs in C and C++, compiled as their authors would, and run.

mod c;
mod channels;

use c::{Link, Running, command, compile, have, library, must};
use channels::{Channels, address};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::process::Command;

/// Runs one check of programs/use.c.
fn check(name: &str) {
    let channels = Channels::new(name);
    let program = compile("use.c", Link::Shared, &channels.shm);
    let text = Running::start(&mut command(&program, &channels.shm, &[name])).end();
    assert_eq!(text, "done\n");
}

#[test]
fn peek_shows_until_delete() {
    check("peek");
}

#[test]
fn parts_become_one_message() {
    check("iovec");
}

#[test]
fn sending_to_all_and_to_the_first() {
    check("broadcast");
}

#[test]
fn receiving_from_any_is_fair() {
    check("any");
}

#[test]
fn what_was_forwarded_finds_its_way_back() {
    check("hops");
}

#[test]
fn a_full_channel_refuses_and_a_short_buffer_loses_nothing() {
    check("full");
}

#[test]
fn the_descriptor_wakes_an_epoll_loop() {
    check("events");
}

#[test]
fn the_descriptor_knows_what_was_bound_or_taken_later() {
    check("later");
}

#[test]
fn the_descriptor_knows_what_was_added_while_another_address_is_received_from() {
    let channels = Channels::new("added");
    let program = compile("use.c", Link::Shared, &channels.shm);
    let mut running = Running::start(&mut command(&program, &channels.shm, &["added"]));
    let mut output = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "ready");
    channels.write(&[(1, 2), (1, 9)]);
    running.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(output.next().unwrap().unwrap(), "done");
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn no_call_waits_for_an_end_that_another_has() {
    check("busy");
}

#[test]
fn a_damaged_channel_stops_no_other() {
    let channels = Channels::new("damaged");
    let endpoint = channels.bus().bind(address(1)).unwrap();
    let [_, from_two] = endpoint.rings(address(2)).unwrap();
    let file = OpenOptions::new().write(true).open(from_two.path());
    file.unwrap().write_all(b"no ring ").unwrap();
    let program = compile("use.c", Link::Shared, &channels.shm);
    let text = Running::start(&mut command(&program, &channels.shm, &["damaged"])).end();
    assert_eq!(text, "done\n");
}

#[test]
fn threads_that_keep_the_rules() {
    check("threads");
}

#[test]
fn channels_come_and_go_while_a_program_runs() {
    let channels = Channels::new("live");
    let program = compile("use.c", Link::Shared, &channels.shm);
    let mut running = Running::start(&mut command(&program, &channels.shm, &["live"]));
    let mut output = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let mut input = running.0.stdin.take().unwrap();
    let (without, with) = (&[(1, 2)][..], &[(1, 2), (1, 9)][..]);
    for (line, map) in [
        ("no channel yet", with),
        ("there is one", without),
        ("deleted", with),
        ("done", with),
    ] {
        assert_eq!(output.next().unwrap().unwrap(), line);
        channels.write(map);
        let _ = input.write_all(b"\n"); // the last one is not read
    }
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn wrong_use_is_an_error_and_no_crash() {
    for link in [Link::Shared, Link::Static] {
        let channels = Channels::new(&format!("misuse{}", link as u8));
        let program = compile("misuse.c", link, &channels.shm);
        let text = Running::start(&mut command(&program, &channels.shm, &[])).end();
        assert_eq!(text, "done\n");
    }
}

/// Old programs, linked in every way, with each other and with a Rust process.
#[test]
fn old_programs_talk() {
    if !have("g++", "g++") {
        return;
    }
    let channels = Channels::new("old");
    let links = [Link::Shared, Link::Archive, Link::Static];
    let programs = links.map(|link| compile("old.cpp", link, &channels.shm));
    let run = |n: usize, arguments: &[&str]| {
        Running::start(&mut command(&programs[n], &channels.shm, arguments))
    };
    let expected: String = (0..5000).map(|n| format!("message {n}\n")).collect();
    for n in 0..3 {
        let nothing = run(n, &["poll", "0.0.2.1", "0.0.1.1"]).end();
        assert_eq!(nothing, "No msg in tbus channel.\n");
        let receiver = run(n, &["recv", "0.0.2.1", "0.0.1.1", "5000"]);
        let sender = run((n + 1) % 3, &["send", "0.0.1.1", "0.0.2.1", "5000"]);
        assert_eq!(sender.end(), "");
        assert!(receiver.end() == expected, "messages are missing or wrong");
    }
    // A Rust process at the other end.
    let endpoint = channels.bus().bind(address(2)).unwrap();
    let mut sender = endpoint.sender(address(1)).unwrap();
    sender.try_send(b"from Rust\0").unwrap();
    let text = run(0, &["recv", "0.0.1.1", "0.0.2.1", "1"]).end();
    assert_eq!(text, "from Rust\n");
    assert_eq!(run(0, &["send", "0.0.1.1", "0.0.2.1", "1"]).end(), "");
    let mut buffer = [0; 64];
    let mut receiver = endpoint.receiver(address(1)).unwrap();
    let length = receiver.try_recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"message 0\0");
}

#[test]
fn the_library_exports_its_functions_and_no_other() {
    let library = library().join("libtbus.so");
    let symbols = must(
        Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(&library),
    );
    let names: Vec<_> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    assert!(names.len() > 20, "{symbols}");
    assert!(
        names.iter().all(|name| name.starts_with("tbus_")),
        "{symbols}"
    );
    let dynamic = must(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("soname: [libtbus.so.1]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}
