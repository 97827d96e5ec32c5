//! Running it: what an operator and a service manager ask of relays, and what these answer. Real processes.

mod hosts;

use hosts::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tbus::{Receiver, Sender, TryRecvError};

const SIZE: u64 = 1 << 16;

/// Two hosts with channels between them; `more` goes to the end of both relays' files.
fn pair(scratch: &Scratch, count: usize, more: &str) -> [Host; 2] {
    let hosts = two_hosts(scratch, &channels(&vec![(SIZE, "delivered"); count]));
    hosts.iter().for_each(|host| configure(host, more));
    hosts
}

fn configure(host: &Host, more: &str) {
    host.write_config("tbusd.toml", host.node, host.port);
    let path = host.place.join("tbusd.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text + more).unwrap();
}

fn start(hosts: &[Host; 2]) -> [Process; 2] {
    let relays = [hosts[0].start(), hosts[1].start()];
    for host in hosts {
        let rings = std::fs::read_to_string(host.place.join("channels.xml")).unwrap();
        host.await_mirrored(2 * rings.matches("<Channels>").count());
    }
    relays
}

/// The ends of the ring from host 1 to host 2 of channel `n`.
fn ends(hosts: &[Host; 2], n: u32) -> (Sender, Receiver) {
    let (from, to) = (address(1, n), address(2, n));
    (hosts[0].sender(from, to), hosts[1].receiver(to, from))
}

fn log(scratch: &Scratch, node: u32) -> String {
    std::fs::read_to_string(scratch.0.join(format!("tbusd{node}.log"))).unwrap_or_default()
}

#[track_caller]
fn await_log(scratch: &Scratch, node: u32, text: &str) {
    let found = within(PATIENCE, || log(scratch, node).contains(text).then_some(()));
    let all = log(scratch, node);
    assert!(found.is_some(), "host {node} does not say '{text}':\n{all}");
}

#[track_caller]
fn await_status(host: &Host, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut last = None;
    let found = within(PATIENCE, || {
        last = host.status();
        last.clone().filter(&is)
    });
    found.unwrap_or_else(|| panic!("host {} never has {what}: {last:#?}", host.node))
}

/// Sends and receives a few messages.
#[track_caller]
fn pass((sender, receiver): &mut (Sender, Receiver), count: u64) {
    for n in 0..count {
        sender.try_send(&n.to_le_bytes()).unwrap();
    }
    for n in 0..count {
        let mut message = [0; 8];
        let came = within(PATIENCE, || match receiver.try_recv(&mut message) {
            Err(TryRecvError::Empty) => None,
            result => Some(result.unwrap()),
        });
        assert_eq!((came, message), (Some(8), n.to_le_bytes()));
    }
}

/// Fills the ring and what the peer can take of it.
fn fill(sender: &mut Sender) -> u64 {
    let mut sent = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        if sender.try_send(&[7; 1000]).is_ok() {
            (sent, last) = (sent + 1, Instant::now());
        }
    }
    sent
}

fn drain(receiver: &mut Receiver, count: u64) {
    let mut buffer = [0; 1000];
    for _ in 0..count {
        let came = within(PATIENCE, || receiver.try_recv(&mut buffer).ok());
        assert_eq!(came, Some(1000));
    }
}

fn hup(relay: &Process, host: &Host) -> Value {
    let number = |status: &Value| status["last_reload"]["number"].clone();
    let before = number(&host.status().unwrap());
    relay.signal(Signal::SIGHUP);
    await_status(host, "a reload", |status| number(status) != before)["last_reload"].clone()
}

/// Key and answer of each item.
fn answers(reload: &Value) -> Vec<[&str; 2]> {
    let items = reload["items"].as_array().unwrap().iter();
    items
        .map(|item| ["key", "answer"].map(|name| item[name].as_str().unwrap()))
        .collect()
}

#[test]
fn a_hangup_applies_what_it_can_and_says_what_it_cannot() {
    let _turn = turn();
    let scratch = Scratch::new("hangup");
    let hosts = pair(&scratch, 1, "");
    let mut relays = start(&hosts);
    let mut flow = ends(&hosts, 1);
    let reload = hup(&relays[1], &hosts[1]);
    assert_eq!(
        (answers(&reload), &reload["refused"]),
        (vec![], &Value::Null)
    );

    // Some of each.
    let port = free_port();
    configure(&hosts[1], "drain = 60\nalarm_age = 3\nworkers = 2\n");
    let text = std::fs::read_to_string(hosts[1].place.join("tbusd.toml")).unwrap();
    let text = text.replace(
        "metrics = \"none\"",
        &format!("metrics = \"127.0.0.1:{port}\""),
    );
    std::fs::write(hosts[1].place.join("tbusd.toml"), &text).unwrap();
    let reload = hup(&relays[1], &hosts[1]);
    let (applied, restart) = ("applied", "needs restart");
    let expected = [
        ["workers", restart],
        ["metrics", applied],
        ["drain", applied],
        ["alarm_age", applied],
    ];
    assert_eq!(answers(&reload), expected, "{reload:#}");
    assert!(get(port, "/health").starts_with("HTTP/1.1 200"));
    await_log(
        &scratch,
        2,
        "workers: needs restart: the old value holds until",
    );
    let shown = String::from_utf8(hosts[1].run("tbusd", "-c tbusd.toml --status").stdout).unwrap();
    assert!(
        shown.contains("workers: needs restart, metrics: applied"),
        "{shown}"
    );
    // What needs a restart is said again, what was applied is not.
    let reload = hup(&relays[1], &hosts[1]);
    assert_eq!(answers(&reload), [["workers", restart]]);

    // A problem anywhere, and nothing is taken.
    let bad = text
        .replace("drain = 60", "drain = 0")
        .replace("alarm_age = 3", "alarm_age = 0");
    std::fs::write(hosts[1].place.join("tbusd.toml"), &bad).unwrap();
    let reload = hup(&relays[1], &hosts[1]);
    let why = reload["refused"].as_str().unwrap();
    assert!(
        why.contains("tbusd.toml:9:1: 0 is no value for alarm_age; give 1 at least"),
        "{why}"
    );
    await_log(&scratch, 2, "is refused, and nothing was changed: ");
    std::fs::write(
        hosts[1].place.join("tbusd.toml"),
        text.replace("drain = 60", "drain = 0"),
    )
    .unwrap();
    let reload = hup(&relays[1], &hosts[1]);
    assert_eq!(answers(&reload), [["workers", restart], ["drain", applied]]);

    // A port that somebody else has: all of the file is refused, and the old metrics stay.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = taken.local_addr().unwrap().to_string();
    let wrong = text.replace(&format!("127.0.0.1:{port}\""), &format!("{other}\""));
    std::fs::write(hosts[1].place.join("tbusd.toml"), wrong).unwrap();
    let reload = hup(&relays[1], &hosts[1]);
    let expected = ["workers", "metrics", "drain"].map(|key| [key, "refused"]);
    assert_eq!(answers(&reload), expected, "{reload:#}");
    assert!(
        reload["refused"]
            .as_str()
            .unwrap()
            .contains("Address already in use")
    );
    assert!(get(port, "/health").starts_with("HTTP/1.1 200"));
    pass(&mut flow, 10);
    // At its beginning a relay does without metrics, and says so.
    relays[1].kill();
    relays[1] = hosts[1].start();
    let status = hosts[1].await_mirrored(2);
    let trouble = status["metrics_trouble"].as_str().unwrap();
    assert!(
        trouble.contains("give metrics another IP:PORT"),
        "{trouble}"
    );
    await_log(&scratch, 2, "the relay goes on without");
    pass(&mut flow, 10);
}

#[test]
fn who_is_allowed_changes_while_relays_run() {
    let _turn = turn();
    let scratch = Scratch::new("allowed");
    let hosts = pair(&scratch, 1, "");
    let relays = start(&hosts);
    let mut flow = ends(&hosts, 1);
    pass(&mut flow, 10);
    configure(&hosts[1], "[[allow]]\nnode = 7\n");
    let reload = hup(&relays[1], &hosts[1]);
    assert_eq!(answers(&reload), [["allow", "applied"]]);
    await_log(
        &scratch,
        2,
        "what is said of this node in [[allow]] has changed",
    );
    await_log(&scratch, 1, "node 2 does not allow node 1");
    let status = await_status(&hosts[1], "no peer", |s| {
        s["peers"][0]["state"] == "disconnected"
    });
    assert_eq!(status["alarms"][0]["alarm"], "peer_down", "{status:#}");
    configure(&hosts[1], "[[allow]]\nnode = 1\n");
    hup(&relays[1], &hosts[1]);
    hosts[0].await_mirrored(2);
    let status = hosts[1].await_mirrored(2);
    assert_eq!(status["alarms"], json!([]));
    // The same in other words ends nothing.
    let downs = total(&status, "downs");
    configure(&hosts[1], "");
    assert_eq!(answers(&hup(&relays[1], &hosts[1])), [["allow", "applied"]]);
    pass(&mut flow, 10);
    assert_eq!(total(&hosts[1].status().unwrap(), "downs"), downs);
}

fn cert(arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tbusd"));
    let output = command.arg("cert").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn make_node(ca: &Path, host: &Host, directory: &str) {
    let out = host.place.join(directory);
    let (ca, out) = (ca.to_str().unwrap(), out.to_str().unwrap());
    cert(&[
        "node",
        "--ca",
        ca,
        "--node",
        &host.node.to_string(),
        "--out",
        out,
    ]);
}

fn configure_tls(host: &Host, directory: &str, more: &str) {
    configure(host, "");
    let path = host.place.join("tbusd.toml");
    let node = host.node;
    let tls = format!(
        "security = \"encrypt\"\ncertificate = \"{directory}/node-{node}.pem\"\n\
         private_key = \"{directory}/node-{node}.key\"\nauthority = \"{directory}/ca.pem\"\n{more}"
    );
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.replace("security = \"none\"\n", &tls)).unwrap();
}

#[test]
fn certificates_change_as_a_whole() {
    let _turn = turn();
    let scratch = Scratch::new("certificates");
    let hosts = pair(&scratch, 1, "");
    let ca = scratch.0.join("ca");
    cert(&["ca", "--out", ca.to_str().unwrap(), "--cluster", "test"]);
    for host in &hosts {
        make_node(&ca, host, "a");
        configure_tls(host, "a", "");
    }
    let mut relays = start(&hosts);
    let mut flow = ends(&hosts, 1);
    // Of a new certificate without its key nothing is taken, nor what else the file says.
    make_node(&ca, &hosts[1], "b");
    let key = hosts[1].place.join("b/node-2.key");
    std::fs::rename(&key, key.with_extension("away")).unwrap();
    std::fs::copy(hosts[1].place.join("a/node-2.key"), &key).unwrap();
    configure_tls(&hosts[1], "b", "drain = 7\n");
    let reload = hup(&relays[1], &hosts[1]);
    assert!(
        reload["refused"]
            .as_str()
            .unwrap()
            .contains("do not belong together"),
        "{reload:#}"
    );
    assert!(
        answers(&reload)
            .iter()
            .all(|[_, answer]| *answer == "refused"),
        "{reload:#}"
    );
    std::fs::rename(key.with_extension("away"), &key).unwrap();
    let reload = hup(&relays[1], &hosts[1]);
    let expected = ["certificate", "private_key", "authority", "drain"].map(|key| [key, "applied"]);
    assert_eq!(answers(&reload), expected);
    pass(&mut flow, 10);
    relays[0].kill();
    relays[0] = hosts[0].start();
    pass(&mut flow, 10);
    // Without a signal, the content of a file is looked at besides.
    std::fs::write(hosts[1].place.join("b/node-2.pem"), "").unwrap();
    let last = |status: &Value| status["last_certificates"].clone();
    let status = await_status(&hosts[1], "refused certificates", |s| {
        last(s)["answer"] == "refused"
    });
    assert!(
        last(&status)["text"]
            .as_str()
            .unwrap()
            .contains("there is no certificate in it")
    );
    pass(&mut flow, 10);
    // From and to no security a relay must be started anew; what else the file says is applied.
    configure(&hosts[1], "drain = 8\n");
    let reload = hup(&relays[1], &hosts[1]);
    let expected = ["security", "certificate", "private_key", "authority"];
    let expected = expected.map(|key| [key, "needs restart"]);
    assert_eq!(answers(&reload)[..4], expected, "{reload:#}");
    assert_eq!(answers(&reload)[4..], [["drain", "applied"]]);
    pass(&mut flow, 10);
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let _turn = turn();
    let scratch = Scratch::new("drain");
    let hosts = pair(&scratch, 1, "drain = 20\n");
    let mut relays = start(&hosts);
    let mut flow = ends(&hosts, 1);
    pass(&mut flow, 1);
    // The peer takes nothing for a while.
    relays[1].signal(Signal::SIGSTOP);
    for n in 0..50u64 {
        flow.0.try_send(&n.to_le_bytes()).unwrap();
    }
    relays[0].signal(Signal::SIGTERM);
    await_log(
        &scratch,
        1,
        "ends when its peers have what is in the rings, or after 20 s",
    );
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    relays[0].is_alive();
    assert_eq!(hosts[0].status().unwrap()["draining"], true);
    relays[1].signal(Signal::SIGCONT);
    relays[0].end();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it does not wait longer than it must"
    );
    assert!(
        !log(&scratch, 1).contains("not acknowledged"),
        "{}",
        log(&scratch, 1)
    );
    let mut message = [0; 8];
    for n in 0..50u64 {
        assert_eq!(
            flow.1.try_recv(&mut message).unwrap(),
            8,
            "all are there by now"
        );
        assert_eq!(message, n.to_le_bytes());
    }
}

#[test]
fn the_end_waits_within_a_limit_and_tells_what_remains() {
    let _turn = turn();
    let scratch = Scratch::new("limit");
    let hosts = pair(&scratch, 2, "drain = 1\n");
    let mut relays = start(&hosts);
    let mut flow = ends(&hosts, 1);
    pass(&mut ends(&hosts, 2), 3);
    let sent = fill(&mut flow.0);
    let status = hosts[0].status().unwrap();
    let lag = ring_between(&status, address(1, 1), address(2, 1)).unwrap()["lag"].clone();
    assert!(lag.as_u64().unwrap() > SIZE / 2, "{status:#}");
    let begun = Instant::now();
    relays[0].signal(Signal::SIGTERM);
    relays[0].end();
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(4),
        "{took:?}"
    );
    let log = log(&scratch, 1);
    let line = format!(
        "({lag} bytes) are not acknowledged by tcp://127.0.0.1:{}",
        hosts[1].port
    );
    assert!(log.contains(&line), "{line} in {log}");
    assert_eq!(
        log.matches("not acknowledged").count(),
        1,
        "the other channel has nothing left: {log}"
    );
    // Nothing is lost.
    relays[0] = hosts[0].start();
    drain(&mut flow.1, sent);
    // And who is in a hurry asks twice.
    configure(&hosts[0], "drain = 600\n");
    hup(&relays[0], &hosts[0]);
    fill(&mut flow.0);
    let begun = Instant::now();
    relays[0].signal(Signal::SIGTERM);
    await_log(&scratch, 1, "or after 600 s");
    relays[0].signal(Signal::SIGINT);
    relays[0].end();
    assert!(begun.elapsed() < Duration::from_secs(5));
    await_log(&scratch, 1, "a second signal: the relay ends at once");
}

#[test]
fn a_peer_that_is_away_is_not_waited_for() {
    let _turn = turn();
    let scratch = Scratch::new("away");
    let hosts = pair(&scratch, 1, "drain = 600\n");
    let mut relays = start(&hosts);
    let (mut sender, _receiver) = ends(&hosts, 1);
    relays[1].kill();
    sender.try_send(b"later").unwrap();
    await_status(&hosts[0], "no peer", |s| {
        s["peers"][0]["state"] == "disconnected"
    });
    relays[0].signal(Signal::SIGTERM);
    relays[0].end();
    await_log(&scratch, 1, "1 messages (24 bytes) are not acknowledged");
}

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager(socket)
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).expect("it says something");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// The next thing that has `word` in it.
    fn await_word(&self, word: &str) -> String {
        let begun = Instant::now();
        loop {
            let heard = self.hear();
            if heard.contains(word) {
                return heard;
            }
            assert!(begun.elapsed() < PATIENCE, "never {word}");
        }
    }
}

#[test]
fn a_service_manager_is_told() {
    let _turn = turn();
    let scratch = Scratch::new("systemd");
    let hosts = pair(&scratch, 1, "drain = 600\n");
    let path = scratch.0.join("notify");
    let manager = Manager::new(&path);
    let mut command = hosts[0].command("tbusd", "-c tbusd.toml");
    let log = std::fs::File::create(scratch.0.join("tbusd1.log")).unwrap();
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .stderr(log);
    let mut relay = Process::start("the relay of host 1", &mut command);
    manager.await_word("READY=1");
    // By then it listens and answers.
    assert_eq!(hosts[0].status().unwrap()["ready"], true);
    manager.await_word("STATUS=0 of 1 peers connected");
    let _other = hosts[1].start();
    manager.await_word("STATUS=1 of 1 peers connected");
    // A sign of life at least twice in the time that is allowed, and none of a loop that stands.
    let begun = Instant::now();
    (0..5).for_each(|_| _ = manager.await_word("WATCHDOG=1"));
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(700) && took < Duration::from_secs(2),
        "{took:?}"
    );
    relay.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(50));
    manager.0.set_nonblocking(true).unwrap();
    while manager.0.recv(&mut [0; 4096]).is_ok() {}
    std::thread::sleep(Duration::from_millis(800));
    assert!(
        manager.0.recv(&mut [0; 4096]).is_err(),
        "who is stopped is silent"
    );
    manager.0.set_nonblocking(false).unwrap();
    relay.signal(Signal::SIGCONT);
    manager.await_word("WATCHDOG=1");
    relay.signal(Signal::SIGHUP);
    let heard = manager.await_word("RELOADING=1");
    assert!(heard.contains("MONOTONIC_USEC="), "{heard}");
    manager.await_word("READY=1");
    // It lives while it waits for its end.
    let (mut sender, _receiver) = ends(&hosts, 1);
    fill(&mut sender);
    relay.signal(Signal::SIGTERM);
    manager.await_word("STOPPING=1");
    manager.await_word("WATCHDOG=1");
    relay.signal(Signal::SIGTERM);
    relay.end();
}

/// A request's answer, whole.
fn ask(port: u16, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn get(port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    ask(port, request.as_bytes())
}

/// The value of a metric whose line has all of `labels`.
#[track_caller]
fn value(page: &str, name: &str, labels: &[&str]) -> f64 {
    let mut lines = page.lines().filter(|line| {
        let rest = line.strip_prefix(name).unwrap_or("x");
        rest.starts_with(['{', ' ']) && labels.iter().all(|label| line.contains(label))
    });
    let line = lines.next();
    let line = line.unwrap_or_else(|| panic!("no {name} {labels:?} in\n{page}"));
    assert!(lines.next().is_none(), "{name} {labels:?} is not one");
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

fn with_metrics(host: &Host, more: &str) -> u16 {
    let port = free_port();
    configure(host, more);
    let path = host.place.join("tbusd.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace(
        "metrics = \"none\"",
        &format!("metrics = \"127.0.0.1:{port}\""),
    );
    std::fs::write(path, text).unwrap();
    port
}

#[test]
fn metrics_are_what_happened() {
    let _turn = turn();
    let scratch = Scratch::new("metrics");
    let hosts = pair(&scratch, 2, "");
    let ports = [0, 1].map(|host: usize| with_metrics(&hosts[host], ""));
    let mut relays = start(&hosts);
    pass(&mut ends(&hosts, 1), 50);
    pass(&mut ends(&hosts, 2), 7);
    std::thread::sleep(Duration::from_millis(250)); // a page may be so old
    let pages = ports.map(|port| get(port, "/metrics"));
    assert!(pages[0].starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"));
    assert!(pages[0].ends_with("# EOF\n"));
    for (page, direction) in [
        (&pages[0], "direction=\"out\""),
        (&pages[1], "direction=\"in\""),
    ] {
        let ring = ["from=\"1.0.0.1\"", "to=\"2.0.0.1\"", direction];
        assert_eq!(value(page, "tbus_ring_messages_total", &ring), 50.0);
        assert_eq!(value(page, "tbus_ring_bytes_total", &ring), 50.0 * 24.0);
        assert_eq!(value(page, "tbus_ring_lag_bytes", &ring), 0.0);
        assert_eq!(value(page, "tbus_ring_oldest_seconds", &ring), 0.0);
        assert_eq!(value(page, "tbus_ring_capacity_bytes", &ring), SIZE as f64);
        assert_eq!(value(page, "tbus_ring_mirrored", &ring), 1.0);
        assert_eq!(
            value(page, "tbus_alarm_count", &["alarm=\"peer_down\""]),
            0.0
        );
        assert_eq!(value(page, "tbus_relay_ready", &[]), 1.0);
        assert!(value(page, "tbus_process_open_fds", &[]) > 3.0);
        assert!(value(page, "tbus_process_resident_bytes", &[]) > 1e6);
        assert!(value(page, "tbus_process_cpu_seconds_total", &[]) >= 0.0);
        let trip = value(page, "tbus_peer_round_trip_seconds", &[]);
        assert!(trip > 0.0 && trip < 0.1, "{trip}");
    }
    let other = [
        "node=\"2\"",
        &format!("peer=\"tcp://127.0.0.1:{}\"", hosts[1].port),
    ];
    assert_eq!(value(&pages[0], "tbus_peer_up", &other), 1.0);
    assert_eq!(
        value(&pages[0], "tbus_peer_sent_messages_total", &other),
        57.0
    );
    assert_eq!(
        value(
            &pages[1],
            "tbus_peer_received_messages_total",
            &["node=\"1\""]
        ),
        57.0
    );
    assert_eq!(value(&pages[0], "tbus_peer_connects_total", &other), 1.0);
    let short = get(ports[0], "/metrics?rings=none");
    assert!(
        short.contains("tbus_peer_up{") && !short.contains("tbus_ring_messages"),
        "{short}"
    );

    // Health follows the peers; readiness does not.
    assert!(get(ports[0], "/health").ends_with("\r\n\r\nhealthy\n"));
    relays[1].kill();
    let sick = within(PATIENCE, || {
        let answer = get(ports[0], "/health");
        answer.starts_with("HTTP/1.1 503").then_some(answer)
    });
    let reason = format!(
        "peer_down: peer tcp://127.0.0.1:{} is not connected for",
        hosts[1].port
    );
    assert!(
        sick.as_ref().is_some_and(|text| text.contains(&reason)),
        "{sick:?}"
    );
    assert!(get(ports[0], "/ready").starts_with("HTTP/1.1 200"));
    let page = get(ports[0], "/metrics");
    assert_eq!(value(&page, "tbus_peer_up", &other), 0.0);
    assert_eq!(value(&page, "tbus_peer_disconnects_total", &other), 1.0);
    assert_eq!(
        value(&page, "tbus_alarm_count", &["alarm=\"peer_down\""]),
        1.0
    );
    relays[1] = hosts[1].start();
    let well = within(PATIENCE, || {
        get(ports[0], "/health")
            .starts_with("HTTP/1.1 200")
            .then_some(())
    });
    assert!(well.is_some());
}

#[test]
fn strangers_get_little_of_the_metrics_port() {
    let _turn = turn();
    let scratch = Scratch::new("strangers");
    let hosts = pair(&scratch, 1, "");
    let port = with_metrics(&hosts[0], "");
    let mut relays = start(&hosts);
    let mut flow = ends(&hosts, 1);
    for (request, status) in [
        (&b"GET /other HTTP/1.1\r\n\r\n"[..], "404 Not Found"),
        (
            b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405 Method",
        ),
        (b"\x16\x03\x01\x00\xff\x01\x00\r\n\r\n", "400 Bad Request"),
        (
            b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n",
            "400 Bad Request",
        ),
    ] {
        let answer = ask(port, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(9000));
    assert!(ask(port, long.as_bytes()).starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(100));
    assert!(ask(port, many.as_bytes()).starts_with("HTTP/1.1 431"));
    let head = ask(port, b"HEAD /health HTTP/1.1\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    // Byte by byte, as a slow network brings it.
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    for byte in b"GET /ready HTTP/1.1\r\n\r\n" {
        slow.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ready\n"), "{answer}");

    // Silent ones take all places, for a while.
    let silent: Vec<_> = (0..30)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    pass(&mut flow, 20);
    let begun = Instant::now();
    let back = within(PATIENCE, || {
        get(port, "/ready")
            .starts_with("HTTP/1.1 200")
            .then_some(())
    });
    assert!(back.is_some());
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    let threads = format!("/proc/{}/task", relays[0].id());
    assert!(std::fs::read_dir(threads).unwrap().count() < 16);
    drop(silent);
    pass(&mut flow, 20);
    relays[0].is_alive();
}

#[test]
fn alarms_come_and_go() {
    let _turn = turn();
    let scratch = Scratch::new("alarms");
    let hosts = pair(&scratch, 1, "alarm_age = 1\nalarm_full = 60\n");
    let _relays = start(&hosts);
    let (mut sender, mut receiver) = ends(&hosts, 1);
    let kinds = |status: &Value| -> Vec<String> {
        let alarms = status["alarms"].as_array().unwrap().iter();
        alarms
            .map(|alarm| alarm["alarm"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(hosts[0].status().unwrap()["alarms"], json!([]));
    let sent = fill(&mut sender);
    for host in &hosts {
        let is = |status: &Value| kinds(status) == ["ring_full", "message_old"];
        let status = await_status(host, "both alarms", is);
        let whose = match host.node {
            1 => "the other host does not take it",
            _ => "the application here does not read it",
        };
        let text = status["alarms"][0]["text"].as_str().unwrap();
        assert!(
            text.starts_with("ring 1.0.0.1 to 2.0.0.1 is ") && text.ends_with(whose),
            "{text}"
        );
        let ring = ring_between(&status, address(1, 1), address(2, 1)).unwrap();
        let age = ring["oldest_seconds"].as_f64().unwrap();
        assert!((1.0..20.0).contains(&age), "{age}");
        let shown = String::from_utf8(host.run("tbusd", "-c tbusd.toml --status").stdout).unwrap();
        assert!(shown.contains(&format!("alarm: {text}")[..40]), "{shown}");
    }
    drain(&mut receiver, sent);
    for host in &hosts {
        let status = await_status(host, "no alarm", |status| kinds(status).is_empty());
        assert_eq!(all_rings(&status)[0]["used"], 0, "{status:#}");
        let shown = String::from_utf8(host.run("tbusd", "-c tbusd.toml --status").stdout).unwrap();
        assert!(shown.contains("no alarms"), "{shown}");
    }
}

#[test]
fn a_ring_that_cannot_be_served_is_an_alarm() {
    let _turn = turn();
    let scratch = Scratch::new("unserved");
    let hosts = pair(&scratch, 1, "");
    let mut rings = std::fs::read_dir(hosts[0].place.join("tbus.1000")).unwrap();
    let ring = rings
        .find_map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("ring-").then_some(path)
        })
        .unwrap();
    let (hidden, cut) = (ring.with_extension("hidden"), b"no ring");
    std::fs::rename(&ring, &hidden).unwrap();
    std::fs::write(&ring, cut).unwrap();
    let _relay = hosts[0].start();
    let alarms = |status: &Value| status["alarms"].to_string();
    let status = await_status(&hosts[0], "the alarm", |status| {
        alarms(status).contains("ring_unserved")
    });
    let name = ring.file_name().unwrap().to_str().unwrap();
    assert!(alarms(&status).contains(name), "{status:#}");
    std::fs::rename(&hidden, &ring).unwrap();
    await_status(&hosts[0], "its end", |status| {
        !alarms(status).contains("ring_unserved")
    });
}

#[test]
fn the_status_tells_of_peers() {
    let _turn = turn();
    let scratch = Scratch::new("peers");
    let hosts = pair(&scratch, 1, "");
    let mut relays = start(&hosts);
    relays[1].kill();
    let status = await_status(&hosts[0], "no peer", |s| {
        s["peers"][0]["state"] == "disconnected"
    });
    let peer = &status["peers"][0];
    assert!(
        peer["trouble"].is_string() && peer["transport"].is_null(),
        "{peer:#}"
    );
    relays[1] = hosts[1].start();
    let status = hosts[0].await_mirrored(2);
    let peer = &status["peers"][0];
    assert_eq!(
        (&peer["state"], &peer["transport"]),
        (&json!("connected"), &json!("tcp"))
    );
    assert_eq!((&peer["ups"], &peer["downs"]), (&json!(2), &json!(1)));
    assert!(
        peer["trouble"].is_null() && peer["last_end"].is_string(),
        "{peer:#}"
    );
    assert!(peer["since_seconds"].as_f64().unwrap() < 20.0);
    assert!(peer["round_trip_seconds"].as_f64().unwrap() > 0.0);
    let mut flow = ends(&hosts, 1);
    let seen = within(PATIENCE, || {
        pass(&mut flow, 10);
        let status = hosts[0].status().unwrap();
        let rate = status["peers"][0]["last_second"]["sent_messages"]
            .as_u64()
            .unwrap();
        (rate > 0).then_some(rate)
    });
    assert!(seen.is_some());
    let shown = String::from_utf8(hosts[0].run("tbusd", "-c tbusd.toml --status").stdout).unwrap();
    assert!(
        shown.contains("connected") && shown.contains("last: "),
        "{shown}"
    );
}
