//! Who gets in: relays with certificates, and everybody else. Real processes and real sockets; each refusal is told, in both
//! logs where both can know it, and the pair that is connected does not notice.

mod hosts;

use hosts::*;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tbus::{Receiver, Sender, TryRecvError, TrySendError};
use tbus_tools::daemon::cert::pem;
use tbus_transport::wire::{Frame, Goodbye, Hello, Token};

const CHANNELS: u32 = 2;

/// Two hosts, an authority, and a certificate for each.
struct Cluster {
    hosts: [Host; 2],
    ca: PathBuf,
    scratch: Scratch,
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
        host.write_secure_config(&format!("127.0.0.1:{}", host.port), security, more);
    }

    /// Another certificate for a host, as tbusd cert makes them but for what is `changed`.
    fn sign(&self, host: usize, changed: impl FnOnce(&mut rcgen::CertificateParams)) {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = tbus_transport::tls::read_key(&self.ca.join("ca.key")).unwrap();
        let mut authority = rcgen::CertificateParams::default();
        authority.distinguished_name = rcgen::DistinguishedName::new();
        let common_name = rcgen::DnType::CommonName;
        authority.distinguished_name.push(common_name, "test.tbus");
        let issuer = rcgen::Issuer::new(authority, rcgen::KeyPair::try_from(&der).unwrap());
        let name = format!("node-{}.test.tbus", host + 1);
        let mut certificate = rcgen::CertificateParams::new(vec![name]).unwrap();
        changed(&mut certificate);
        let certificate = certificate.signed_by(&key, &issuer).unwrap();
        let write = |end: &str, text: String| {
            let path = self.hosts[host]
                .place
                .join(format!("node-{}.{end}", host + 1));
            std::fs::write(path, text).unwrap();
        };
        write("pem", pem("CERTIFICATE", certificate.der()));
        write("key", pem("PRIVATE KEY", key.serialized_der()));
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

const SAME: &str = "give both the same security";

/// Both relays say why they are not connected.
#[test]
fn a_pair_that_does_not_fit_says_so_in_both_logs() {
    let _turn = turn();
    let foreign = |cluster: &Cluster| {
        let other = cluster.scratch.0.join("other-ca");
        make_ca(&other, "test");
        let place = &cluster.hosts[1].place;
        std::fs::remove_file(place.join("node-2.key")).unwrap();
        make_node(&other, 2, place);
    };
    let named = |cluster: &Cluster| {
        let place = &cluster.hosts[1].place;
        make_node(&cluster.ca, 3, place);
        for end in ["pem", "key"] {
            let from = place.join(format!("node-3.{end}"));
            std::fs::rename(from, place.join(format!("node-2.{end}"))).unwrap();
        }
    };
    let mode = |security: &'static str| {
        move |cluster: &Cluster| cluster.configure(&cluster.hosts[1], security, "")
    };
    let allow = |entry: &'static str| {
        move |cluster: &Cluster| {
            let more = format!("[[allow]]\n{entry}");
            cluster.configure(&cluster.hosts[1], "authenticate", &more);
        }
    };
    type Change = Box<dyn Fn(&Cluster)>;
    let cases: [(&str, &str, Change, [&str; 2]); 9] = [
        (
            "authority",
            "authenticate",
            Box::new(foreign),
            [
                "signed by none of the authorities here",
                "does not know the authority",
            ],
        ),
        (
            "name",
            "encrypt",
            Box::new(named),
            [
                "has a certificate for node-3.test.tbus, not for node-2.test.tbus",
                "by the peer: who says that it is node 2 has a certificate for node-3.test.tbus",
            ],
        ),
        (
            "weaker",
            "encrypt",
            Box::new(mode("authenticate")),
            [
                "offers data in clear, and here it is to go with TLS; give both relays the same security",
                "by the peer: node 2 offers data in clear, and here it is to go with TLS",
            ],
        ),
        (
            "stronger",
            "authenticate",
            Box::new(mode("encrypt")),
            [
                "offers data with TLS, and here it is to go in clear; give both relays the same security",
                "by the peer: node 2 offers data with TLS, and here it is to go in clear",
            ],
        ),
        (
            "tls-to-clear",
            "encrypt",
            Box::new(mode("none")),
            [
                "it speaks TLS, and this relay has security 'none'; give both the same",
                "it speaks TLS, and this relay has security 'none'; give both the same",
            ],
        ),
        (
            "clear-to-tls",
            "none",
            Box::new(mode("authenticate")),
            [SAME, SAME],
        ),
        (
            "not-allowed",
            "authenticate",
            Box::new(allow("node = 3\n")),
            [
                "node 2 does not allow node 1",
                "node 2 does not allow node 1",
            ],
        ),
        (
            "elsewhere",
            "authenticate",
            Box::new(allow("node = 1\nendpoint = \"tcp://127.0.0.1:9\"\n")),
            [
                "is allowed as tcp://127.0.0.1:9 only",
                "is allowed as tcp://127.0.0.1:9 only",
            ],
        ),
        (
            "in-the-place-of-another",
            "authenticate",
            Box::new(|cluster: &Cluster| {
                // Who is dialled there should be node 3.
                let port = cluster.hosts[1].port;
                let more = format!(
                    "[[allow]]\nnode = 2\n[[allow]]\nnode = 3\nendpoint = \"tcp://127.0.0.1:{port}\"\n"
                );
                cluster.configure(&cluster.hosts[0], "authenticate", &more);
            }),
            [
                "is node 3, says [[allow]] there, and this is node 2",
                "by the peer: tcp://127.0.0.1:",
            ],
        ),
    ];
    for (name, security, change, expected) in cases {
        let cluster = Cluster::new(name, security);
        change(&cluster);
        let _relays = cluster.start();
        cluster.await_logs(expected);
        for host in &cluster.hosts {
            assert_eq!(running(&host.status().unwrap()), 0, "{name}");
        }
    }
}

/// A certificate that ends while its relay runs is warned about, and is of no use for the next connection.
#[test]
fn an_expired_certificate_is_refused_and_said_before() {
    let _turn = turn();
    let cluster = Cluster::new("expired", "encrypt");
    let place = &cluster.hosts[1].place;
    let end = std::time::SystemTime::now() + Duration::from_secs(8);
    cluster.sign(1, |certificate| {
        certificate.not_before = (end - Duration::from_secs(3600)).into();
        certificate.not_after = end.into();
    });

    let [mut one, _other] = cluster.start();
    cluster.connect();
    cluster.await_log(2, "in 0 days; make another one and put it in its place");
    let status = cluster.hosts[1].status().unwrap();
    assert!(status["warning"].as_str().unwrap().contains("node-2.pem"));
    let mut flow = cluster.flow(1);
    flow.pass(100);
    let left = end.duration_since(std::time::SystemTime::now());
    std::thread::sleep(left.unwrap_or_default() + Duration::from_secs(1));
    flow.pass(100); // the connection that is there lives on
    one.kill();
    let _one = cluster.hosts[0].start();
    cluster.await_logs([
        "the certificate has expired",
        "this host's certificate has expired",
    ]);
    // Such a relay does not even start.
    let checked = cluster.hosts[1].run("tbusd", "-c tbusd.toml --check");
    let text = String::from_utf8_lossy(&checked.stderr);
    assert!(text.contains("the certificate ended on"), "{text}");
    // A new one heals it without a new start.
    make_node(&cluster.ca, 2, place);
    flow.pass(100);
}

/// New files are used by the next connection; bad ones are not, and the old ones stay.
#[test]
fn certificates_are_exchanged_while_a_relay_runs() {
    let _turn = turn();
    let cluster = Cluster::new("exchange", "authenticate");
    let [mut one, mut other] = cluster.start();
    cluster.connect();
    let mut flow = cluster.flow(1);
    let place = &cluster.hosts[1].place;
    let good = std::fs::read(place.join("node-2.pem")).unwrap();
    for (bad, reason) in [
        ("nothing", "there is no certificate in it"),
        ("node-3.pem", "do not belong together"),
    ] {
        make_node(&cluster.ca, 3, place);
        let bytes = std::fs::read(place.join(bad)).unwrap_or_default();
        std::fs::write(place.join("node-2.pem"), bytes).unwrap();
        cluster.await_log(2, reason);
        one.kill();
        one = cluster.hosts[0].start();
        flow.pass(100);
    }
    assert!(cluster.log(2).contains("the old ones stay"));
    std::fs::write(place.join("node-2.pem"), &good).unwrap();
    cluster.await_log(
        2,
        "new certificates are in use for new connections: node-2.test.tbus",
    );
    // Another authority, on both hosts: the connection lives on, and the next one is by the new files.
    let ca = cluster.scratch.0.join("new-ca");
    make_ca(&ca, "test");
    for host in &cluster.hosts {
        make_node(&ca, host.node, &host.place);
    }
    flow.pass(100);
    let before = "new certificates are in use";
    let count = |node| cluster.log(node).matches(before).count();
    assert!(within(PATIENCE, || (count(1) > 0 && count(2) > 1).then_some(())).is_some());
    one.kill();
    let _one = cluster.hosts[0].start();
    flow.pass(100);
    other.is_alive();
}

fn hello(cluster: &Cluster) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        protocol: (1, 1),
        node: 1,
        lease: 1,
        capabilities: 1,
        cluster: "test".into(),
        endpoint: format!("tcp://{}", cluster.address(0)),
    };
    Frame::Hello(hello).encode(&mut bytes);
    bytes
}

/// All that comes until the end, which must come in time.
#[track_caller]
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// What a client of TLS 1.2 says first: two suites of that time, and nothing about a later version.
fn client_hello_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // no session
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]);
    body.extend([1, 0]); // no compression
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    body.extend([0, (groups.len() + signatures.len()) as u8]);
    body.extend(groups);
    body.extend(signatures);
    let length = body.len() as u8;
    let mut bytes = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    bytes.extend(body);
    bytes
}

/// Strangers of every kind, while a pair is connected and does not notice.
#[test]
fn strangers_are_refused_and_the_pair_does_not_notice() {
    let _turn = turn();
    let cluster = Cluster::new("strangers", "authenticate");
    let [mut one, mut other] = cluster.start();
    cluster.connect();
    let mut flow = cluster.flow(1);
    flow.pass(1000);
    let connect = || TcpStream::connect(cluster.address(1)).unwrap();

    let mut stream = connect();
    stream.write_all(&hello(&cluster)).unwrap();
    match Frame::decode(&rest(&mut stream)) {
        Ok(Some((Frame::Bye { why, text }, _))) => {
            assert_eq!(why, Goodbye::Security);
            assert!(text.contains(SAME), "{text}");
        }
        other => panic!("{other:?}"),
    }
    cluster.await_log(2, "it speaks in clear, and this relay speaks TLS");

    let mut stream = connect();
    stream.write_all(&client_hello_1_2()).unwrap();
    // A fatal alert: protocol version.
    assert_eq!(rest(&mut stream)[5..], [2, 70]);
    cluster.await_log(2, "it does not speak TLS 1.3");

    let mut stream = connect();
    stream.write_all(&[22, 3, 1, 0, 5, 1, 2, 3, 4, 5]).unwrap();
    rest(&mut stream);
    let mut stream = connect();
    let junk: Vec<u8> = (0..1 << 17).map(|n| scramble(n) as u8).collect();
    let _ = stream.write_all(&[&[22, 3, 1][..], &junk].concat());
    rest(&mut stream);
    cluster.await_log(2, "what comes is not TLS");

    let mut stream = connect();
    let mut attach = Vec::new();
    Frame::Attach(Token([9; 16])).encode(&mut attach);
    stream.write_all(&attach).unwrap();
    assert!(rest(&mut stream).is_empty());
    cluster.await_log(2, "its token is not, or no longer, one that was given");

    // Slow ones: each byte in time, and all of them never.
    for first in [client_hello_1_2(), attach] {
        let mut stream = connect();
        let begun = Instant::now();
        let mut fed = 0;
        while begun.elapsed() < Duration::from_secs(10) {
            let byte = &first[fed..=fed];
            if stream.write_all(byte).is_err() {
                break;
            }
            fed = (fed + 1).min(first.len() - 2);
            stream
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            if matches!(stream.read(&mut [0; 1]), Ok(0)) {
                break;
            }
        }
        let lasted = begun.elapsed();
        assert!(lasted < Duration::from_secs(6), "it had {lasted:?}");
    }
    cluster.await_log(2, "TLS was not agreed within 2 s");
    cluster.await_log(2, "it did not say what it is within 2 s");

    flow.pass(1000);
    let status = cluster.hosts[1].status().unwrap();
    assert!(
        status["refused_connections"].as_u64().unwrap() >= 7,
        "{status:#}"
    );
    assert_eq!(total(&status, "downs"), 0);
    one.is_alive();
    other.is_alive();
}

/// Passes connections on, and keeps what each said first.
fn tap(to: SocketAddr, said: mpsc::Sender<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for from in listener.incoming().flatten() {
            let Ok(to) = TcpStream::connect(to) else {
                continue;
            };
            for stream in [&from, &to] {
                stream.set_nodelay(true).unwrap();
            }
            let pipes = [
                (
                    from.try_clone().unwrap(),
                    to.try_clone().unwrap(),
                    Some(said.clone()),
                ),
                (to, from, None),
            ];
            for (mut from, mut to, mut said) in pipes {
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = from.read(&mut bytes) {
                        if let Some(said) = said.take() {
                            let _ = said.send(bytes[..n].to_vec());
                        }
                        if to.write_all(&bytes[..n]).is_err() {
                            break;
                        }
                    }
                    for stream in [&from, &to] {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                });
            }
        }
    });
    port
}

/// Who overheard the token of a link has nothing of it: not beside the link, and not after it.
#[test]
fn an_overheard_token_is_of_no_use() {
    let _turn = turn();
    let cluster = Cluster::new("overheard", "authenticate");
    let (sender, said) = mpsc::channel();
    let port = tap(cluster.address(1), sender);
    let [one, _] = &cluster.hosts;
    let routes: Vec<_> = (1..=CHANNELS)
        .flat_map(|n| [(address(1, n), vec![one.port]), (address(2, n), vec![port])])
        .collect();
    one.write_routes(&routes);
    let [_one, mut other] = cluster.start();
    cluster.connect();
    let mut flow = cluster.flow(1);
    flow.pass(100);
    let mut all = said.try_iter();
    let attach = all.find(|first| matches!(Frame::decode(first), Ok(Some((Frame::Attach(_), 32)))));
    let attach = attach.expect("the link of this mode is in clear");
    let replay = || {
        let mut stream = TcpStream::connect(cluster.address(1)).unwrap();
        stream.write_all(&attach[..32]).unwrap();
        assert!(rest(&mut stream).is_empty());
    };
    replay();
    flow.pass(100);
    let status = cluster.hosts[1].status().unwrap();
    assert_eq!(total(&status, "downs"), 0, "the pair did not notice");
    cluster.await_log(2, "its token is not, or no longer, one that was given");
    other.kill();
    let _other = cluster.hosts[1].start();
    cluster.connect();
    replay();
    flow.pass(100);
}

/// Ten thousand connections that say nothing cost a bounded number of files and bounded memory, and neither the pair nor
/// a relay that comes anew notices.
#[test]
fn ten_thousand_half_open_connections() {
    let _turn = turn();
    let cluster = Cluster::new("flood", "encrypt");
    let [mut one, other] = cluster.start();
    cluster.connect();
    let mut flow = cluster.flow(1);
    flow.pass(1000);
    let before = other.own_memory();
    let files = |process: &Process| {
        let all = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
        all.count()
    };
    let few = files(&other);
    let mut held = Vec::new();
    let mut made = 0;
    for batch in 0..100 {
        for n in 0..100 {
            let Ok(mut stream) = TcpStream::connect(cluster.address(1)) else {
                continue;
            };
            // Half of them begin with TLS.
            if n % 2 == 0 {
                let _ = stream.write_all(&client_hello_1_2()[..20]);
            }
            made += 1;
            held.push(stream);
        }
        // As many as the limit of files of this process allows.
        if held.len() > 500 {
            held.drain(..100);
        }
        if batch % 10 == 0 {
            flow.pass(200);
            assert!(files(&other) < few + 300, "{} files", files(&other));
        }
        if batch == 50 {
            one.kill();
            one = cluster.hosts[0].start();
            flow.pass(200);
        }
    }
    assert!(made > 9900, "{made}");
    let more = other.own_memory().saturating_sub(before);
    assert!(more < 64 << 20, "{more} bytes more");
    flow.pass(1000);
    let status = cluster.hosts[1].status().unwrap();
    assert!(status["refused_connections"].as_u64().unwrap() > 9000);
    let log = cluster.log(2);
    let lines = log
        .lines()
        .filter(|line| line.contains("a connection is refused"));
    assert!(
        lines.count() < 40,
        "a flood of connections is not one of lines"
    );
}

/// In clear nothing leaves the host, whoever asks for it.
#[test]
fn none_does_not_leave_the_host() {
    let _turn = turn();
    let cluster = Cluster::new("leave", "none");
    let [one, _] = &cluster.hosts;
    let routes = "<RelayMnger><RelayShmKey>2688</RelayShmKey><Relays><Addr>1.0.0.1</Addr><MConn>tcp://127.0.0.1:PORT</MConn>\
                  </Relays><Relays><Addr>2.0.0.1</Addr><MConn>tcp://192.0.2.1:1027</MConn></Relays></RelayMnger>";
    let routes = routes.replace("PORT", &one.port.to_string());
    std::fs::write(one.place.join("routes.xml"), routes).unwrap();
    one.must("trelaymgr", "-C routes.xml -W");
    let _relay = one.start();
    cluster.await_log(
        1,
        "192.0.2.1 can be reached from other hosts, and security 'none' must not be",
    );
    let config = std::fs::read_to_string(one.place.join("tbusd.toml")).unwrap();
    let config = config.replace("127.0.0.1", "0.0.0.0");
    std::fs::write(one.place.join("open.toml"), config).unwrap();
    let output = one.run("tbusd", "-c open.toml --check");
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("security 'none' must not be"), "{text}");
}

/// What `tbusd cert` makes, what it does not, and what `--check` says of it.
#[test]
fn certificates_are_made_and_checked() {
    let _turn = turn();
    let cluster = Cluster::new("made", "encrypt");
    let host = &cluster.hosts[0];
    let ca = cluster.ca.to_str().unwrap();
    let mode = |path: PathBuf| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(cluster.ca.join("ca.key")), 0o600);
    assert_eq!(mode(host.place.join("node-1.key")), 0o600);
    let check = || {
        let output = host.run("tbusd", "-c tbusd.toml --check");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap(), text)
    };
    let (status, text) = check();
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("certificate for node-1.test.tbus, until 2"),
        "{text}"
    );

    // Made again the key stays, so that only one file changes.
    let key = std::fs::read(host.place.join("node-1.key")).unwrap();
    let out = host.place.to_str().unwrap();
    let said = make(&[
        "node", "--ca", ca, "--node", "1", "--out", out, "--days", "3",
    ]);
    assert!(
        said.contains("which was there already and is kept"),
        "{said}"
    );
    assert_eq!(std::fs::read(host.place.join("node-1.key")).unwrap(), key);
    let (status, text) = check();
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("warning:") && text.contains("in 2 days"),
        "{text}"
    );

    for (arguments, status, part) in [
        (
            &["ca", "--out", ca, "--cluster", "test"][..],
            2,
            "is there already",
        ),
        (
            &["ca", "--out", out, "--cluster", "a b"],
            2,
            "cannot stand in a certificate",
        ),
        (
            &["node", "--ca", out, "--node", "1", "--out", out],
            7,
            "ca.key",
        ),
        (
            &["node", "--ca", "/nowhere", "--node", "1", "--out", out],
            7,
            "tbusd cert ca",
        ),
        (
            &[
                "node", "--ca", ca, "--node", "1", "--out", out, "--days", "0",
            ],
            2,
            "--days",
        ),
        (&["node", "--ca", ca], 2, "--node"),
    ] {
        let output = cert(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }

    // A relay dials and is dialled.
    let certificate = std::fs::read(host.place.join("node-1.pem")).unwrap();
    for usage in [
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ] {
        cluster.sign(0, |certificate| {
            certificate.extended_key_usages = vec![usage];
        });
        let (status, text) = check();
        assert_eq!(status, 3, "{text}");
        assert!(text.contains("is not for both sides of TLS"), "{text}");
    }
    std::fs::write(host.place.join("node-1.pem"), certificate).unwrap();
    std::fs::write(host.place.join("node-1.key"), &key).unwrap();

    // Names of others are said with what the others need.
    make_node(&cluster.ca, 9, &host.place);
    let config = std::fs::read_to_string(host.place.join("tbusd.toml")).unwrap();
    std::fs::write(
        host.place.join("tbusd.toml"),
        config.replace("node-1.", "node-9."),
    )
    .unwrap();
    let (status, text) = check();
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("need in [[allow]], for node 1: name = \"node-9.test.tbus\""),
        "{text}"
    );
    std::fs::write(host.place.join("tbusd.toml"), &config).unwrap();

    // What is wrong with the files is said, and which.
    use std::os::unix::fs::PermissionsExt;
    let path = host.place.join("node-1.key");
    let open = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(&path, open).unwrap();
    let (status, text) = check();
    assert_eq!(status, 3, "{text}");
    assert!(
        text.contains("node-1.key") && text.contains("chmod 600"),
        "{text}"
    );
    let closed = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, closed).unwrap();
    std::fs::copy(host.place.join("node-9.key"), &path).unwrap();
    let (status, text) = check();
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("do not belong together"), "{text}");
    std::fs::write(&path, &key).unwrap();
    let other = cluster.scratch.0.join("other");
    make_ca(&other, "test");
    std::fs::copy(other.join("ca.pem"), host.place.join("ca.pem")).unwrap();
    let (status, text) = check();
    assert_eq!(status, 3, "{text}");
    assert!(
        text.contains("signed by none of the authorities here"),
        "{text}"
    );
}
