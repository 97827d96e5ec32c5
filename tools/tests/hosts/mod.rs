//! Hosts on one machine, of real processes: a directory of maps and a `tbusd` for each.

#![allow(dead_code)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tbus::{Address, Bus, Receiver, Sender};

/// Whatever is awaited comes within this time, or the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One test at a time: each loads the processors, or measures them.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

pub fn scramble(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

pub fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// Waits for what `look` finds, looking every few milliseconds; `None` after `patience`.
pub fn within<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begun.elapsed() > patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that this test started, and ends.
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    pub fn start(name: &str, command: &mut Command) -> Process {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Process {
            child: child.unwrap(),
            name: name.into(),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// It must not end by itself.
    #[track_caller]
    pub fn is_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!(
                "{} has ended by itself, {status}; its reason stands above",
                self.name
            );
        }
    }

    /// SIGKILL; it must still have been alive.
    #[track_caller]
    pub fn kill(&mut self) {
        self.is_alive();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for its good end.
    #[track_caller]
    pub fn end(&mut self) {
        let status = within(PATIENCE, || self.child.try_wait().unwrap());
        match status {
            Some(status) => assert!(
                status.success(),
                "{}: {status}; its reason stands above",
                self.name
            ),
            None => panic!("{} does not end", self.name),
        }
    }

    /// Resident memory now, bytes.
    pub fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    /// Of the resident memory, what is its own and not mapped from files: rings are those.
    pub fn own_memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    /// Processor time used so far.
    pub fn processor_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // The name in brackets may contain anything.
        let fields: Vec<&str> = text
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // USER_HZ is 100 on all architectures that we have
    }

    /// Its mappings.
    pub fn mappings(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/maps", self.id())).unwrap();
        text.lines().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for all hosts of a test, removed with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Where all of them are.
    fn base() -> PathBuf {
        let shm = Path::new("/dev/shm");
        match shm.is_dir() {
            true => shm.to_path_buf(),
            false => std::env::temp_dir(),
        }
    }

    /// Removes what process `owner` has left, which was killed.
    pub fn remove_all_of(owner: &str) {
        let end = format!("-{owner}");
        for entry in std::fs::read_dir(Self::base())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("tbus-relays-") && name.ends_with(&end) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    pub fn new(name: &str) -> Scratch {
        let path = Self::base().join(format!("tbus-relays-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
            for log in logs.filter(|f| f.path().extension() == Some(OsStr::new("log"))) {
                let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("---- the end of {}:\n{last}", log.path().display());
            }
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that nobody listens at, and that this process was not given before.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(|e| e.into_inner());
    tbus_tools::perf::remote::free_port(&mut given).unwrap()
}

/// `tbusd cert`.
pub fn cert(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tbusd"));
    command.arg("cert").args(arguments).output().unwrap()
}

/// The same, and it must work.
#[track_caller]
pub fn make(arguments: &[&str]) -> String {
    let output = cert(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An authority for `cluster`.
pub fn make_ca(directory: &Path, cluster: &str) {
    let out = directory.to_str().unwrap();
    make(&["ca", "--out", out, "--cluster", cluster]);
}

/// A certificate of the authority in `ca`.
pub fn make_node(ca: &Path, node: u32, out: &Path) {
    let node = node.to_string();
    let (ca, out) = (ca.to_str().unwrap(), out.to_str().unwrap());
    make(&["node", "--ca", ca, "--node", &node, "--out", out]);
}

/// Channels between the hosts `a` and `b`: a.0.h.l – b.0.h.l for n = h * 256 + l.
#[derive(Clone, Debug)]
pub struct Channel {
    pub ends: [Address; 2],
    pub size: u64,
    pub retention: &'static str,
}

/// Address `n` of `host`.
pub fn address(host: u32, n: u32) -> Address {
    Address(host << 24 | n)
}

pub fn dotted(address: Address) -> String {
    let [a, b, c, d] = address.0.to_be_bytes();
    format!("{a}.{b}.{c}.{d}")
}

/// One host: `key`s 1000 and 2688 below its own TBUS_SHM_DIR.
pub struct Host {
    pub place: PathBuf,
    pub node: u32,
    pub port: u16,
    /// What stands before the commands of its relay and applications: how they get into a namespace, or what they are denied.
    pub within: Vec<String>,
}

impl Host {
    /// Makes its directory; the maps come with [`Host::write_channels`] and [`Host::write_routes`].
    pub fn new(scratch: &Scratch, node: u32) -> Host {
        let place = scratch.0.join(format!("host{node}"));
        std::fs::create_dir(&place).unwrap();
        let host = Host {
            place,
            node,
            port: free_port(),
            within: Vec::new(),
        };
        host.write_config("tbusd.toml", node, host.port);
        host
    }

    /// Sets [`within`](Self::within).
    pub fn run_within(&mut self, words: &str) {
        self.within = words.split_whitespace().map(str::to_owned).collect();
    }

    /// A program on this host's network, with its maps.
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = match self.within.split_first() {
            None => Command::new(program),
            Some((first, others)) => {
                let mut command = Command::new(first);
                command.args(others).arg(program);
                command
            }
        };
        command
            .env("TBUS_SHM_DIR", &self.place)
            .current_dir(&self.place);
        command
    }

    pub fn write_config(&self, name: &str, node: u32, port: u16) {
        let text = format!(
            "cluster = \"test\"\nnode = {node}\ngcim_key = 1000\nrelay_key = 2688\nlisten = \"127.0.0.1:{port}\"\n\
             metrics = \"none\"\nsecurity = \"none\"\n"
        );
        std::fs::write(self.place.join(name), text).unwrap();
    }

    /// One of the tools, on this host.
    pub fn command(&self, tool: &str, arguments: &str) -> Command {
        let path = match tool {
            "tbusd" => env!("CARGO_BIN_EXE_tbusd"),
            "tbusmgr" => env!("CARGO_BIN_EXE_tbusmgr"),
            _ => env!("CARGO_BIN_EXE_trelaymgr"),
        };
        let mut command = Command::new(path);
        command
            .args(arguments.split_whitespace())
            .env("TBUS_SHM_DIR", &self.place)
            .current_dir(&self.place);
        command
    }

    /// Writes a file for a relay that shows its certificate; `more` goes to its end. See [`make_node`].
    pub fn write_secure_config(&self, listen: &str, security: &str, more: &str) {
        let node = self.node;
        let text = format!(
            "cluster = \"test\"\nnode = {node}\ngcim_key = 1000\nrelay_key = 2688\nlisten = \"{listen}\"\n\
             metrics = \"none\"\nsecurity = \"{security}\"\ncertificate = \"node-{node}.pem\"\n\
             private_key = \"node-{node}.key\"\nauthority = \"ca.pem\"\n{more}"
        );
        std::fs::write(self.place.join("tbusd.toml"), text).unwrap();
    }

    pub fn run(&self, tool: &str, arguments: &str) -> Output {
        self.command(tool, arguments).output().unwrap()
    }

    #[track_caller]
    pub fn must(&self, tool: &str, arguments: &str) {
        let output = self.run(tool, arguments);
        assert!(output.status.success(), "{tool} {arguments}: {output:?}");
    }

    pub fn write_channels(&self, channels: &[Channel]) {
        let text: String = channels
            .iter()
            .map(|channel| {
                let [a, b] = channel.ends.map(dotted);
                let (size, retention) = (channel.size, channel.retention);
                format!(
                    "<Channels><Address>{a}</Address><Address>{b}</Address><SendSize>{size}</SendSize>\
                     <RecvSize>{size}</RecvSize><Retention>{retention}</Retention></Channels>\n"
                )
            })
            .collect();
        let text = format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>\n{text}</TbusGCIM>\n");
        std::fs::write(self.place.join("channels.xml"), text).unwrap();
        self.must("tbusmgr", "-C channels.xml -W");
    }

    /// Each of `addresses` is at 127.0.0.1, at any of these ports.
    pub fn write_routes(&self, routes: &[(Address, Vec<u16>)]) {
        let local = |ports: &[u16]| ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
        let routes: Vec<_> = routes.iter().map(|(a, ports)| (*a, local(ports))).collect();
        self.write_routes_over("tcp", &routes);
    }

    /// Each of `addresses` is at any of these endpoints, over these transports.
    pub fn write_routes_over(&self, transports: &str, routes: &[(Address, Vec<String>)]) {
        let text: String = routes
            .iter()
            .map(|(address, endpoints)| {
                let endpoints: String = endpoints
                    .iter()
                    .map(|endpoint| format!("<MConn>tcp://{endpoint}</MConn>"))
                    .collect();
                format!(
                    "<Relays><Addr>{}</Addr>{endpoints}<Transports>{transports}</Transports></Relays>\n",
                    dotted(*address)
                )
            })
            .collect();
        let text = format!("<RelayMnger><RelayShmKey>2688</RelayShmKey>\n{text}</RelayMnger>\n");
        std::fs::write(self.place.join("routes.xml"), text).unwrap();
        self.must("trelaymgr", "-C routes.xml -W");
    }

    /// A relay with the configuration file `config`.
    pub fn start_as(&self, config: &str) -> Process {
        let log = self.place.parent().unwrap();
        let log = log.join(format!("tbusd{}.log", self.node));
        let log = std::fs::File::options().create(true).append(true).open(log);
        let mut command = self.inside(Path::new(env!("CARGO_BIN_EXE_tbusd")));
        command.args(["-c", config]).stderr(log.unwrap());
        Process::start(&format!("the relay of host {}", self.node), &mut command)
    }

    pub fn start(&self) -> Process {
        self.start_as("tbusd.toml")
    }

    /// What its relay says of itself; `None` if it does not answer.
    pub fn status_of(&self, config: &str) -> Option<Value> {
        let output = self.run("tbusd", &format!("-c {config} --status --json"));
        match output.status.success() {
            true => Some(serde_json::from_slice(&output.stdout).unwrap()),
            false => None,
        }
    }

    pub fn status(&self) -> Option<Value> {
        self.status_of("tbusd.toml")
    }

    pub fn bus(&self) -> Bus {
        Bus::attach_at(self.place.join("tbus.1000")).unwrap()
    }

    /// The sending end of the channel from `here` to `there`.
    pub fn sender(&self, here: Address, there: Address) -> Sender {
        self.bus().bind(here).unwrap().sender(there).unwrap()
    }

    /// The receiving end at `here` of the channel from `there`.
    pub fn receiver(&self, here: Address, there: Address) -> Receiver {
        self.bus().bind(here).unwrap().receiver(there).unwrap()
    }

    /// Waits until its relay mirrors `rings` rings and no other.
    #[track_caller]
    pub fn await_mirrored(&self, rings: usize) -> Value {
        let mut last = None;
        let found = within(PATIENCE, || {
            last = self.status();
            last.clone()
                .filter(|status| running(status) == rings && rings == all_rings(status).len())
        });
        found.unwrap_or_else(|| {
            let last =
                last.unwrap_or_else(|| panic!("the relay of host {} does not answer", self.node));
            let idle: Vec<_> = all_rings(&last)
                .iter()
                .filter(|ring| ring["running"] != true)
                .collect();
            panic!(
                "host {} mirrors {} of {rings} rings; not these: {idle:#?}\n{last:#}",
                self.node,
                running(&last)
            )
        })
    }
}

pub fn all_rings(status: &Value) -> &[Value] {
    status["rings"].as_array().unwrap()
}

/// How many rings are mirrored.
pub fn running(status: &Value) -> usize {
    let all = all_rings(status);
    all.iter().filter(|ring| ring["running"] == true).count()
}

/// One of the totals.
pub fn total(status: &Value, name: &str) -> u64 {
    status["totals"][name].as_u64().unwrap()
}

/// The entry of the ring from `from` to `to`.
pub fn ring_between(status: &Value, from: Address, to: Address) -> Option<&Value> {
    let (from, to) = (dotted(from), dotted(to));
    all_rings(status)
        .iter()
        .find(|ring| ring["from"] == from.as_str() && ring["to"] == to.as_str())
}

/// Two hosts with these channels between addresses of host 1 and of host 2.
pub fn two_hosts(scratch: &Scratch, channels: &[Channel]) -> [Host; 2] {
    let hosts = [Host::new(scratch, 1), Host::new(scratch, 2)];
    for host in &hosts {
        host.write_channels(channels);
        // Every host has the same routes, its own among them.
        let ends = channels.iter().flat_map(|channel| channel.ends);
        let mut routes: Vec<_> = ends
            .map(|end| (end, vec![hosts[(end.0 >> 24) as usize - 1].port]))
            .collect();
        routes.sort_by_key(|route| route.0.0);
        routes.dedup();
        host.write_routes(&routes);
    }
    hosts
}

/// Channels 1.0.0.n – 2.0.0.n, one for each size and retention.
pub fn channels(sizes: &[(u64, &'static str)]) -> Vec<Channel> {
    let channel = |(n, (size, retention)): (u32, &(u64, &'static str))| Channel {
        ends: [address(1, n), address(2, n)],
        size: *size,
        retention,
    };
    (1..).zip(sizes).map(channel).collect()
}

/// Message `sequence` of ring `ring`: of any length up to `longest`, every byte known. From 12 bytes up it begins with
/// its sequence and a checksum of all that follows.
pub fn payload(ring: u64, sequence: u64, longest: usize, buffer: &mut Vec<u8>) {
    static BYTES: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        (0..1 << 17)
            .flat_map(|n| scramble(n).to_le_bytes())
            .collect()
    });
    let random = scramble(scramble(ring) ^ sequence);
    let size = (random >> 8) as usize;
    let length = match random % 256 {
        0 => longest - size % 16,        // as long as may be
        1..4 => 65_536 - 32 + size % 64, // a chunk, more or less
        4..8 => size % longest,          // anything
        8..64 => size % 4096,
        _ => size % 200,
    }
    .min(longest);
    buffer.clear();
    let begin = (random >> 40) as usize % (BYTES.len() / 2);
    buffer.extend_from_slice(&BYTES[begin..begin + length.min(BYTES.len() / 2)]);
    assert_eq!(buffer.len(), length, "rings of this test are small enough");
    if length >= 12 {
        buffer[..8].copy_from_slice(&sequence.to_le_bytes());
        let sum = crc32c::crc32c(&buffer[12..]);
        buffer[8..12].copy_from_slice(&sum.to_le_bytes());
    }
}
