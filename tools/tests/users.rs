//! Several users of two hosts: who gets into a channel that goes from one to the other, and who is kept out, whoever runs the
//! relays and whichever generation its rings are.
//!
//! Each user is a child process: this binary again, see [`job`], which gives up root's rights first. It needs root, and fails
//! without, unless TBUS_WITHOUT_ROOT is set.

mod hosts;

use hosts::{Host, PATIENCE, Process, Scratch, address, turn, within};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tbus::{Address, Bus, TryRecvError};

/// User and group.
type Who = (u32, u32);
const OWNER: Who = (61001, 61001);
const MEMBER: Who = (61002, 62002);
const STRANGER: Who = (61003, 61003);
/// Hosts number their users each for itself.
const OWNER_THERE: Who = (61005, 61005);
const RELAY: Who = (61010, 62010);

/// False, and said, where it is accepted that the test cannot be run.
fn as_root() -> bool {
    let root = Uid::effective().is_root();
    assert!(
        root || std::env::var_os("TBUS_WITHOUT_ROOT").is_some(),
        "this needs root, to become other users; run it as root, or set TBUS_WITHOUT_ROOT=1 to leave it out"
    );
    root
}

/// Does `job` as a user, in the directory of a host's bus. Returns what it says.
fn run(host: &Host, job: &str, who: Who) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "job", "--nocapture", "--test-threads=1"])
        .env("TBUS_USERS_JOB", job)
        .env("TBUS_USERS_WHO", format!("{} {}", who.0, who.1))
        .env("TBUS_USERS_BUS", host.place.join("tbus.1000"))
        .env("TBUS_USERS_HOST", host.node.to_string())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{job} {who:?}: {text}");
    text
}

/// One line a channel that is there for the user: `n: text`.
#[track_caller]
fn says(host: &Host, job: &str, who: Who, wanted: &[&str]) {
    let said = run(host, job, who);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), wanted.len(), "{job} {who:?}: {said}");
    for (line, wanted) in lines.iter().zip(wanted) {
        assert!(
            line.contains(wanted),
            "{job} {who:?}: {wanted} is not in: {line}"
        );
    }
}

/// Channels n of elements `more`, between address n of both hosts; all routes.
fn write_maps(host: &Host, ports: [u16; 2], more: &[&str], routed: bool) {
    let (mut channels, mut routes) = (String::new(), String::new());
    for (n, more) in (1..).zip(more) {
        channels += &format!(
            "<Channels><Address>1.0.0.{n}</Address><Address>2.0.0.{n}</Address><SendSize>65536</SendSize>\
             <RecvSize>65536</RecvSize>{more}</Channels>\n"
        );
        for (host, port) in (1..).zip(ports).filter(|_| routed) {
            routes += &format!(
                "<Relays><Addr>{host}.0.0.{n}</Addr><MConn>tcp://127.0.0.1:{port}</MConn></Relays>\n"
            );
        }
    }
    let write = |name: &str, text: String| std::fs::write(host.place.join(name), text).unwrap();
    write(
        "channels.xml",
        format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>{channels}</TbusGCIM>"),
    );
    write(
        "routes.xml",
        format!("<RelayMnger><RelayShmKey>2688</RelayShmKey>{routes}</RelayMnger>"),
    );
}

/// Owner, group and mode of the host's rings, sorted.
fn rings(host: &Host) -> Vec<(u32, u32, u32)> {
    let files = std::fs::read_dir(host.place.join("tbus.1000")).unwrap();
    let mut found: Vec<_> = files
        .map(|file| file.unwrap())
        .filter(|file| file.file_name().to_string_lossy().starts_with("ring-"))
        .map(|file| file.metadata().unwrap())
        .map(|info| (info.uid(), info.gid(), info.mode() & 0o7777))
        .collect();
    found.sort();
    found
}

#[test]
fn a_channel_is_its_owners_and_groups_on_both_hosts() {
    let _turn = turn();
    if !as_root() {
        return;
    }
    let scratch = Scratch::new("users");
    let hosts = [Host::new(&scratch, 1), Host::new(&scratch, 2)];
    let ports = [hosts[0].port, hosts[1].port];
    let owners = [OWNER, OWNER_THERE];
    let write = |routed| {
        for (host, owner) in hosts.iter().zip(owners) {
            let named = format!("<Owner>{}</Owner><Group>{}</Group>", owner.0, MEMBER.1);
            let private = format!("{named}<Mode>600</Mode>");
            write_maps(host, ports, &[&named, &private, ""], routed);
            host.must("tbusmgr", "-C channels.xml -W");
            host.must("trelaymgr", "-C routes.xml -W");
        }
    };
    write(true);
    let relays: Vec<Process> = hosts.iter().map(Host::start).collect();
    let mirrored = || {
        for host in &hosts {
            host.await_mirrored(6);
        }
    };
    mirrored();
    let before = rings(&hosts[0]);
    let plain = (0, 0, 0o640);
    let wanted = [
        plain,
        plain,
        (OWNER.0, MEMBER.1, 0o600),
        (OWNER.0, MEMBER.1, 0o600),
        (OWNER.0, MEMBER.1, 0o660),
        (OWNER.0, MEMBER.1, 0o660),
    ];
    assert_eq!(before, wanted);

    // Twice: of the rings that tbusmgr made, and of those that the relays made when the routes had gone and come back.
    for generation in 0..2 {
        let refused = format!("user {} may not open", OWNER.0);
        says(&hosts[0], "send", OWNER, &["sent", "sent", &refused]);
        says(
            &hosts[1],
            "receive",
            OWNER_THERE,
            &["received", "received", "may not open"],
        );
        // A member of the group, the other way.
        let refusals = ["sent", "may not open", "may not open"];
        says(&hosts[1], "send", MEMBER, &refusals);
        let refusals = ["received", "may not open", "may not open"];
        says(&hosts[0], "receive", MEMBER, &refusals);
        for host in &hosts {
            says(host, "send", STRANGER, &["bus: user 61003 may not open"]);
            says(host, "receive", STRANGER, &["bus: user 61003 may not open"]);
        }
        // The owner of the one host is nobody on the other.
        says(&hosts[1], "send", OWNER, &["bus: user 61001 may not open"]);

        if generation == 0 {
            // What is unread goes over into the next generation, and stays its readers' only.
            write(false);
            let local = || {
                hosts
                    .iter()
                    .all(|host| host.status().is_some_and(|s| hosts::running(&s) == 0))
            };
            within(PATIENCE, || local().then_some(())).expect("the routes have gone");
            write(true);
            mirrored();
            let again = within(PATIENCE, || (rings(&hosts[0]) == before).then_some(()));
            assert!(again.is_some(), "{:?}", rings(&hosts[0]));
        }
    }
    drop(relays);
}

#[test]
fn a_relay_needs_no_root() {
    let _turn = turn();
    if !as_root() {
        return;
    }
    let scratch = Scratch::new("rootless");
    let hosts = [Host::new(&scratch, 1), Host::new(&scratch, 2)];
    let ports = [hosts[0].port, hosts[1].port];
    let mut relays = Vec::new();
    for host in &hosts {
        chown(&host.place, Some(RELAY.0), Some(RELAY.1)).unwrap();
        write_maps(host, ports, &["", "<Mode>600</Mode>"], true);
        // The relay's user makes and relays; who is of its group may use what is not its alone.
        let as_relay = |tool: &str, arguments: &str| {
            let mut command = host.command(tool, arguments);
            command.uid(RELAY.0).gid(RELAY.1);
            command
        };
        for (tool, arguments) in [
            ("tbusmgr", "-C channels.xml -W"),
            ("trelaymgr", "-C routes.xml -W"),
        ] {
            let mut command = as_relay(tool, arguments);
            // SAFETY: umask is async-signal-safe.
            unsafe {
                command.pre_exec(|| {
                    umask(Mode::from_bits_truncate(0o007));
                    Ok(())
                })
            };
            let output = command.output().unwrap();
            assert!(output.status.success(), "{tool}: {output:?}");
        }
        let mut command = as_relay("tbusd", "-c tbusd.toml");
        relays.push(Process::start("a relay without root", &mut command));
    }
    for host in &hosts {
        host.await_mirrored(4);
    }
    let member = (OWNER.0, RELAY.1);
    says(&hosts[0], "send", member, &["sent", "may not open"]);
    says(&hosts[1], "receive", member, &["received", "may not open"]);
    says(&hosts[0], "send", RELAY, &["sent", "sent"]);
    says(&hosts[1], "receive", RELAY, &["received", "received"]);
    says(&hosts[1], "send", STRANGER, &["bus: user 61003"]);
    drop(relays);
}

/// What the child processes do; as a test of its own, nothing.
#[test]
fn job() {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(job), Some(who), Some(bus), Some(host)) = (
        variable("TBUS_USERS_JOB"),
        variable("TBUS_USERS_WHO"),
        variable("TBUS_USERS_BUS"),
        variable("TBUS_USERS_HOST"),
    ) else {
        return;
    };
    nix::unistd::alarm::set(60); // ends a job that hangs
    let numbers: Vec<u32> = who.split(' ').map(|n| n.parse().unwrap()).collect();
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(numbers[1])).unwrap();
    setuid(Uid::from_raw(numbers[0])).unwrap();
    let bus = match Bus::attach_at(Path::new(&bus)) {
        Ok(bus) => bus,
        Err(error) => return eprintln!("bus: {error}"),
    };
    let host: u32 = host.parse().unwrap();
    // All channels of the map, whoever they belong to.
    let all = bus.gcim().snapshot().unwrap().channels.len() as u32;
    for n in 1..=all {
        let (here, there) = (address(host, n), address(3 - host, n));
        match one(&bus, &job, here, there) {
            Ok(done) => eprintln!("{n}: {done}"),
            Err(error) => eprintln!("{n}: {error}"),
        }
    }
}

fn one(bus: &Bus, job: &str, here: Address, there: Address) -> tbus::Result<&'static str> {
    let end = bus.bind(here)?;
    if job == "send" {
        let mut sender = end.sender(there)?;
        sender.try_send(&here.0.to_le_bytes()).unwrap();
        return Ok("sent");
    }
    let mut receiver = end.receiver(there)?;
    let mut bytes = [0; 4];
    let got = within(PATIENCE, || match receiver.try_recv(&mut bytes) {
        Ok(length) => Some(length == 4 && bytes == there.0.to_le_bytes()),
        Err(TryRecvError::Empty) => None,
        Err(error) => panic!("{error}"),
    });
    assert_eq!(got, Some(true), "what was sent arrives");
    Ok("received")
}
