//! Two hosts on one machine that have networks of their own: namespaces, and a cable between them.

use crate::hosts::Scratch;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the cable's end is called on either host.
const CABLE: &str = "cable";
/// All namespaces of these tests begin so; the process that made them comes next.
const PREFIX: &str = "tbus-test-";

/// The namespaces go with it.
pub struct Lan {
    pub names: [String; 2],
    /// The last part of each host's address.
    numbers: [u8; 2],
}

/// Why there can be no namespaces here.
fn hindrance() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root makes network namespaces: run as root".into());
    }
    match Command::new("ip").arg("-V").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("'ip -V' says {output:?}: install iproute2")),
        Err(e) => Some(format!("'ip' cannot be run, {e}: install iproute2")),
    }
}

/// True if there can be namespaces here. If not, that is a failure, unless somebody has said that it is known.
#[track_caller]
pub fn possible() -> bool {
    let Some(why) = hindrance() else {
        return true;
    };
    assert!(
        std::env::var("TBUS_NO_NETNS").is_ok_and(|value| value == "1"),
        "NOT RUN: {why}; or accept with TBUS_NO_NETNS=1 that these faults are not tested here"
    );
    eprintln!("NOT RUN, as TBUS_NO_NETNS=1 accepts: {why}");
    false
}

#[track_caller]
fn ip(arguments: &str) -> String {
    let mut command = Command::new("ip");
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Namespaces whose test was killed, and what runs in them.
fn clean() {
    for line in ip("netns list").lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.filter(|pid| !Path::new("/proc").join(pid).exists()) else {
            continue;
        };
        // Another test may be cleaning, too.
        let run = |arguments: &[&str]| Command::new("ip").args(arguments).output();
        let pids = run(&["netns", "pids", name]).map(|output| output.stdout);
        for pid in String::from_utf8_lossy(&pids.unwrap_or_default()).split_whitespace() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = run(&["netns", "del", name]);
        Scratch::remove_all_of(owner);
        eprintln!("removed {name}, left by process {owner}");
    }
}

impl Lan {
    pub fn new() -> Lan {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        clean();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |host| format!("{PREFIX}{}-{count}-{host}", std::process::id());
        let lan = Lan {
            names: [name(1), name(2)],
            numbers: [1, 2],
        };
        for name in &lan.names {
            ip(&format!("netns add {name}"));
        }
        let [a, b] = &lan.names;
        ip(&format!(
            "link add {CABLE} netns {a} type veth peer name {CABLE} netns {b}"
        ));
        for host in 0..2 {
            lan.ip(host, "link set lo up");
            lan.ip(
                host,
                &format!("addr add {}/24 dev {CABLE}", lan.address(host)),
            );
            lan.ip(host, &format!("link set {CABLE} up"));
        }
        lan
    }

    /// `ip` on a host.
    #[track_caller]
    pub fn ip(&self, host: usize, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.names[host]));
    }

    pub fn address(&self, host: usize) -> String {
        format!("10.77.0.{}", self.numbers[host])
    }

    /// Sets something of a host's end of the cable.
    #[track_caller]
    pub fn set(&self, host: usize, what: &str) {
        self.ip(host, &format!("link set {CABLE} {what}"));
    }

    /// Takes a host's address away, or puts it back: `del` or `add`.
    #[track_caller]
    pub fn change_address(&self, host: usize, what: &str) {
        let address = self.address(host);
        self.ip(host, &format!("addr {what} {address}/24 dev {CABLE}"));
    }

    /// Gives a host another address, one of eight.
    pub fn move_address(&mut self, host: usize) {
        self.change_address(host, "del");
        self.numbers[host] = (self.numbers[host] + 2) % 16;
        if self.numbers[host] == 0 {
            self.numbers[host] = 16;
        }
        self.change_address(host, "add");
    }

    /// `ip route` of a kind of its own to the other host's address.
    pub fn route(&self, host: usize, what: &str) {
        self.ip(host, &format!("route {what} {}/32", self.address(1 - host)));
    }

    /// What a host sends to the other one goes to a card that is not there; what the other one sends arrives.
    pub fn mute(&self, host: usize) {
        let other = self.address(1 - host);
        let nobody = "02:00:00:00:00:01";
        self.ip(
            host,
            &format!("neigh replace {other} lladdr {nobody} nud permanent dev {CABLE}"),
        );
    }

    pub fn unmute(&self, host: usize) {
        let other = self.address(1 - host);
        self.ip(host, &format!("neigh del {other} dev {CABLE}"));
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}
