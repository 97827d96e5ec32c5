//! How a running relay is asked about itself: a socket in the directory of its bus, a question a connection.

use super::socket_path;
use crate::columns::{Align, Columns};
use crate::command::{Failure, Result};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use tbus::Bus;
use tbus::config::read_relay;
use tbus_transport::network::Network;
use tbus_transport::relay::Relay;
use tbus_transport::relay::status::Status;

/// A relay that does not answer for so long is stopped or busy without end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions that wait for the relay's thread.
pub(super) struct Questions(mpsc::Receiver<mpsc::Sender<Value>>);

/// Answers at `path`, by a thread that asks the relay's.
pub(super) fn answer(path: &Path) -> Result<Questions> {
    let fail = |e| Failure::Other(format!("cannot answer at {}: {e}", path.display()));
    if UnixStream::connect(path).is_ok() {
        return Err(Failure::Busy(format!(
            "another relay with this node number runs already: it answers at {}",
            path.display()
        )));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    let (sender, questions) = mpsc::channel::<mpsc::Sender<Value>>();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, awaited) = mpsc::channel();
            if sender.send(answer).is_err() {
                return;
            }
            let _ = stream.set_write_timeout(Some(PATIENCE));
            if let Ok(value) = awaited.recv_timeout(PATIENCE) {
                let _ = (&stream).write_all(value.to_string().as_bytes());
            }
        }
    });
    Ok(Questions(questions))
}

impl Questions {
    pub fn answer_all<N: Network>(&self, relay: &Relay<N>, now: u64) {
        while let Ok(question) = self.0.try_recv() {
            let _ = question.send(to_json(&relay.status(now), relay.bus()));
        }
    }
}

fn to_json(status: &Status, bus: &Bus) -> Value {
    let template = bus.template();
    let peers: Vec<_> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "endpoint": peer.endpoint,
                "node": peer.node,
                "transport": peer.transport,
                "security": peer.security,
                "up_seconds": peer.up_for.map(|up| up as f64 / 1e9),
                "ups": peer.ups,
                "downs": peer.downs,
                "trouble": peer.trouble,
            })
        })
        .collect();
    let rings: Vec<_> = status
        .rings
        .iter()
        .map(|ring| {
            let [from, to] = ring.ends.map(|end| template.show(end).to_string());
            json!({
                "from": from,
                "to": to,
                "ring": ring.ring.to_string(),
                "peer": ring.peer,
                "outbound": ring.outbound,
                "running": ring.running,
                "messages": ring.messages,
                "bytes": ring.bytes,
                "trouble": ring.trouble,
            })
        })
        .collect();
    let t = &status.totals;
    json!({
        "format": "tbusd-status-1",
        "pid": std::process::id(),
        "node": status.node,
        "cluster": status.cluster,
        "endpoint": status.endpoint,
        "peers": peers,
        "rings": rings,
        "warning": status.warning,
        "refused_connections": status.refused,
        "totals": {
            "sent_messages": t.sent_messages,
            "sent_bytes": t.sent_bytes,
            "received_messages": t.received_messages,
            "received_bytes": t.received_bytes,
            "ups": t.ups,
            "downs": t.downs,
            "gaps": t.gaps,
            "lost_messages": t.lost_messages,
            "rejected": t.rejected,
            "generations": t.generations,
        },
    })
}

/// Asks the running relay of a file; returns what to print.
pub fn ask(file: &Path, as_json: bool) -> Result<String> {
    let config = read_relay(file)?;
    let path = socket_path(&config);
    let fail = |e: std::io::Error| {
        Failure::Other(format!(
            "no relay answers at {}: {e}; start it: tbusd -c {}",
            path.display(),
            file.display()
        ))
    };
    let mut stream = UnixStream::connect(&path).map_err(fail)?;
    stream
        .set_read_timeout(Some(PATIENCE + Duration::from_secs(1)))
        .map_err(fail)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(fail)?;
    let value: Value = serde_json::from_str(&text).map_err(|_| {
        Failure::Other(format!(
            "the relay at {} does not answer; it may be stopped",
            path.display()
        ))
    })?;
    match as_json {
        true => Ok(format!("{value:#}\n")),
        false => Ok(to_text(&value)),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn to_text(status: &Value) -> String {
    let mut text = String::new();
    let of = |name: &str| text_of(&status[name]);
    _ = writeln!(
        text,
        "node {} of cluster {}, at {}, process {}",
        of("node"),
        of("cluster"),
        of("endpoint"),
        of("pid")
    );
    let empty = Vec::new();
    let all = |name: &str| status[name].as_array().unwrap_or(&empty).clone();
    let mut peers = Columns::new(&[
        ("peer", Align::Left),
        ("node", Align::Right),
        ("over", Align::Left),
        ("security", Align::Left),
        ("connected for", Align::Right),
        ("times", Align::Right),
        ("trouble", Align::Left),
    ]);
    for peer in all("peers") {
        let up = peer["up_seconds"].as_f64().map_or("-".into(), |seconds| {
            humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
        });
        peers.row(vec![
            text_of(&peer["endpoint"]),
            text_of(&peer["node"]),
            text_of(&peer["transport"]),
            text_of(&peer["security"]),
            up,
            text_of(&peer["ups"]),
            text_of(&peer["trouble"]),
        ]);
    }
    _ = write!(text, "\n{peers}");
    let mut rings = Columns::new(&[
        ("", Align::Left),
        ("from", Align::Left),
        ("to", Align::Left),
        ("state", Align::Left),
        ("messages", Align::Right),
        ("bytes", Align::Right),
        ("trouble", Align::Left),
    ]);
    for ring in all("rings") {
        let outbound = ring["outbound"] == true;
        rings.row(vec![
            if outbound { "out" } else { "in" }.into(),
            text_of(&ring["from"]),
            text_of(&ring["to"]),
            if ring["running"] == true {
                "mirrored"
            } else {
                "waiting"
            }
            .into(),
            text_of(&ring["messages"]),
            text_of(&ring["bytes"]),
            text_of(&ring["trouble"]),
        ]);
    }
    _ = write!(text, "\n{rings}");
    let totals = &status["totals"];
    _ = writeln!(
        text,
        "\nsent {} messages, received {}; connections lost {}, connections refused {}, gaps {} ({} messages), rings given up {}",
        totals["sent_messages"],
        totals["received_messages"],
        totals["downs"],
        status["refused_connections"],
        totals["gaps"],
        totals["lost_messages"],
        totals["rejected"]
    );
    if let Some(warning) = status["warning"].as_str() {
        _ = writeln!(text, "warning: {warning}");
    }
    text
}
