//! Who gets in: relays with certificates, and everybody else. Real processes and real sockets; each refusal is told, in both
//! logs where both can know it, and the pair that is connected does not notice.

mod hosts;

use hosts::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tbus::{Receiver, Sender, TryRecvError, TrySendError};
use tbus_transport::wire::{Frame, Hello, Token};

const CHANNELS: u32 = 2;

/// Two hosts, an authority, and a certificate for each.
struct Cluster {
    hosts: [Host; 2],
    ca: PathBuf,
    scratch: Scratch,
}

fn cert(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tbusd"));
    command.arg("cert").args(arguments).output().unwrap()
}

#[track_caller]
fn make(arguments: &[&str]) -> String {
    let output = cert(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn make_ca(directory: &Path, cluster: &str) {
    let out = directory.to_str().unwrap();
    make(&["ca", "--out", out, "--cluster", cluster]);
}

fn make_node(ca: &Path, node: u32, out: &Path) {
    let (ca, out) = (ca.to_str().unwrap(), out.to_str().unwrap());
    make(&[
        "node",
        "--ca",
        ca,
        "--node",
        &node.to_string(),
        "--out",
        out,
    ]);
}

impl Cluster {
    fn new(name: &str, security: &str) -> Cluster {
        let scratch = Scratch::new(name);
        let channels: Vec<_> = (1..=CHANNELS)
            .map(|n| Channel {
                ends: [address(1, n), address(2, n)],
                size: 1 << 16,
                retention: "delivered",
            })
            .collect();
        let hosts = two_hosts(&scratch, &channels);
        let ca = scratch.0.join("ca");
        make_ca(&ca, "test");
        let cluster = Cluster { hosts, ca, scratch };
        for host in &cluster.hosts {
            make_node(&cluster.ca, host.node, &host.place);
            cluster.configure(host, security, "");
        }
        cluster
    }

    /// Writes a host's file; `more` goes to its end.
    fn configure(&self, host: &Host, security: &str, more: &str) {
        let Host { node, port, .. } = host;
        let text = format!(
            "cluster = \"test\"\nnode = {node}\ngcim_key = 1000\nrelay_key = 2688\nlisten = \"127.0.0.1:{port}\"\n\
             metrics = \"none\"\nsecurity = \"{security}\"\ncertificate = \"node-{node}.pem\"\n\
             private_key = \"node-{node}.key\"\nauthority = \"ca.pem\"\n{more}"
        );
        std::fs::write(host.place.join("tbusd.toml"), text).unwrap();
    }

    fn start(&self) -> [Process; 2] {
        [self.hosts[0].start(), self.hosts[1].start()]
    }

    fn connect(&self) {
        for host in &self.hosts {
            host.await_mirrored(2 * CHANNELS as usize);
        }
    }

    fn flow(&self, n: u32) -> Flow {
        let [one, other] = &self.hosts;
        let (from, to) = (address(1, n), address(2, n));
        Flow {
            sender: one.sender(from, to),
            receiver: other.receiver(to, from),
            passed: 0,
        }
    }

    fn log(&self, node: u32) -> String {
        let path = self.scratch.0.join(format!("tbusd{node}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Waits for lines in the logs of both.
    #[track_caller]
    fn await_logs(&self, expected: [&str; 2]) {
        for (node, text) in (1..).zip(expected) {
            self.await_log(node, text);
        }
    }

    #[track_caller]
    fn await_log(&self, node: u32, text: &str) {
        let found = within(PATIENCE, || self.log(node).contains(text).then_some(()));
        assert!(
            found.is_some(),
            "the log of host {node} does not have '{text}':\n{}",
            self.log(node)
        );
    }

    fn address(&self, host: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.hosts[host].port))
    }
}

struct Flow {
    sender: Sender,
    receiver: Receiver,
    passed: u64,
}

impl Flow {
    /// Sends messages through, and tells how long that took.
    #[track_caller]
    fn pass(&mut self, count: u64) -> Duration {
        let begun = Instant::now();
        let mut buffer = [0; 4096];
        let limit = self.passed + count;
        let mut sent = self.passed;
        while self.passed < limit {
            while sent < limit {
                let mut message = sent.to_le_bytes().to_vec();
                message.resize(8 + sent as usize % 4000, sent as u8);
                match self.sender.try_send(&message) {
                    Ok(()) => sent += 1,
                    Err(TrySendError::Full) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            match self.receiver.try_recv(&mut buffer) {
                Ok(length) => {
                    let number = u64::from_le_bytes(buffer[..8].try_into().unwrap());
                    assert_eq!(number, self.passed);
                    assert_eq!(length, 8 + number as usize % 4000);
                    assert!(buffer[8..length].iter().all(|byte| *byte == number as u8));
                    self.passed += 1;
                }
                Err(TryRecvError::Empty) => {
                    assert!(begun.elapsed() < PATIENCE, "{} of {limit}", self.passed);
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
        begun.elapsed()
    }
}

fn peer(host: &Host) -> serde_json::Value {
    host.status().unwrap()["peers"][0].clone()
}

/// The three modes carry messages both before and after a relay was killed, and say which they are.
#[test]
fn every_mode_carries_messages() {
    let _turn = turn();
    for security in ["authenticate", "encrypt", "none"] {
        let cluster = Cluster::new(security, security);
        let [_one, mut other] = cluster.start();
        cluster.connect();
        let mut flow = cluster.flow(1);
        flow.pass(3000);
        assert_eq!(peer(&cluster.hosts[0])["security"], security);
        assert_eq!(peer(&cluster.hosts[1])["security"], security);
        other.kill();
        let _other = cluster.hosts[1].start();
        flow.pass(3000);
    }
}
