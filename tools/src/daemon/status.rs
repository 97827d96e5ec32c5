//! How a running relay is asked about itself: a socket in the directory of its bus, a question a connection.

use super::reload::{Answer, Item, Reload};
use super::snapshot::{Asker, PATIENCE, Snapshot};
use super::socket_path;
use super::switch::{Wish, Wishes};
use crate::columns::{Align, Columns};
use crate::command::{Failure, Result};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tbus::Template;
use tbus::config::read_relay_identity;
use tbus_transport::relay::Traffic;
use tbus_transport::relay::status::{PeerStatus, RingStatus};

/// Bytes of a question, at most.
const QUESTION: usize = 256;
/// The time that it may take.
const ASKED: Duration = Duration::from_secs(1);

/// Answers at `path`, by a thread that asks the relay's and does what takes time.
pub(super) fn answer(path: &Path, asker: Asker, wishes: Wishes) -> Result<()> {
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
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_write_timeout(Some(PATIENCE));
            if let Some(answer) = reply(&stream, &asker, &wishes) {
                let _ = (&stream).write_all(answer.to_string().as_bytes());
            }
        }
    });
    Ok(())
}

/// A line, which must come soon: others wait to ask.
fn question(mut stream: &UnixStream) -> Option<String> {
    let until = Instant::now() + ASKED;
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\n") && bytes.len() < QUESTION {
        let rest = until.checked_duration_since(Instant::now())?;
        stream
            .set_read_timeout(Some(rest.max(Duration::from_millis(1))))
            .ok()?;
        let mut some = [0; QUESTION];
        match stream.read(&mut some).ok()? {
            0 => break,
            n => bytes.extend_from_slice(&some[..n]),
        }
    }
    String::from_utf8(bytes).ok()
}

/// The answer to one line: "status", or "switch NODE=TRANSPORT".
fn reply(stream: &UnixStream, asker: &Asker, wishes: &Wishes) -> Option<Value> {
    let line = question(stream)?;
    match line.trim_end().split_once(' ') {
        None if line.trim_end() == "status" => {
            asker.ask(true, PATIENCE).map(|snapshot| to_json(&snapshot))
        }
        Some(("switch", wish)) => {
            let outcome = may_switch(stream)
                .and_then(|()| wish.parse())
                .and_then(|wish| wishes.tell(wish));
            Some(match outcome {
                Ok(text) => json!({ "done": text }),
                Err(why) => json!({ "refused": why }),
            })
        }
        _ => Some(json!({ "refused": "no such question" })),
    }
}

/// Everybody who can reach the socket may look; who changes something is the relay's user, or root.
fn may_switch(stream: &UnixStream) -> std::result::Result<(), String> {
    let who = getsockopt(stream, PeerCredentials).map_err(|e| e.to_string())?;
    match who.uid() == 0 || who.uid() == geteuid().as_raw() {
        true => Ok(()),
        false => Err("only the user of the relay, or root, may switch".into()),
    }
}

fn traffic(traffic: &Traffic) -> Value {
    json!({
        "sent_messages": traffic.sent_messages,
        "sent_bytes": traffic.sent_bytes,
        "received_messages": traffic.received_messages,
        "received_bytes": traffic.received_bytes,
    })
}

fn peer_to_json(peer: &PeerStatus) -> Value {
    json!({
        "endpoint": peer.endpoint,
        "node": peer.node,
        "state": peer.state.name(),
        "since_seconds": peer.since as f64 / 1e9,
        "transport": peer.transport,
        "transport_detail": peer.transport_detail,
        "transport_reasons": peer.transport_reasons,
        "transport_failures": peer.transport_failures,
        "security": peer.security,
        "up_seconds": peer.up_for.map(|up| up as f64 / 1e9),
        "ups": peer.ups,
        "downs": peer.downs,
        "trouble": peer.trouble,
        "last_end": peer.last_end,
        "round_trip_seconds": peer.round_trip.map(|time| time as f64 / 1e9),
        "totals": traffic(&peer.traffic),
        "last_second": traffic(&peer.rates),
    })
}

fn ring_to_json(ring: &RingStatus, template: &Template) -> Value {
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
        "capacity": ring.capacity,
        "used": ring.used,
        "lag": ring.lag,
        "oldest_seconds": ring.oldest.map(|age| age as f64 / 1e9),
        "gaps": ring.gaps,
        "lost_messages": ring.lost_messages,
    })
}

fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::command::time(since.as_nanos() as u64)
}

fn reload_to_json(reload: &Reload) -> Value {
    let item =
        |item: &Item| json!({"key": item.key, "answer": item.answer.name(), "text": item.text});
    json!({
        "time": time(reload.at),
        "number": reload.number,
        "items": reload.items.iter().map(item).collect::<Vec<_>>(),
        "refused": reload.refused,
    })
}

fn to_json(snapshot: &Snapshot) -> Value {
    let Snapshot {
        status,
        template,
        more,
    } = snapshot;
    let peers: Vec<_> = status.peers.iter().map(peer_to_json).collect();
    let rings = status.rings.iter();
    let rings: Vec<_> = rings.map(|ring| ring_to_json(ring, template)).collect();
    let alarms = snapshot.alarms();
    let alarms = alarms.iter();
    let alarms: Vec<_> = alarms
        .map(|alarm| json!({"alarm": alarm.kind.name(), "text": alarm.text}))
        .collect();
    let certificates = more.certificates.as_ref().map(|reload| {
        let (answer, text) = match &reload.result {
            Ok(text) => (Answer::Applied, text),
            Err(why) => (Answer::Refused, why),
        };
        json!({"time": time(reload.at), "answer": answer.name(), "text": text})
    });
    let t = &status.totals;
    json!({
        "format": "tbusd-status-1",
        "pid": std::process::id(),
        "node": status.node,
        "cluster": status.cluster,
        "endpoint": status.endpoint,
        "ready": status.is_ready,
        "draining": status.is_draining,
        "metrics": more.metrics.as_ref().ok(),
        "metrics_trouble": more.metrics.as_ref().err(),
        "peers": peers,
        "rings": rings,
        "alarms": alarms,
        "last_reload": more.reload.as_ref().map(reload_to_json),
        "last_certificates": certificates,
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
    let (node, gcim_key) = read_relay_identity(file)?;
    let mend = format!("; start it: tbusd -c {}", file.display());
    let value = ask_at(&socket_path(node, gcim_key), "status", &mend).map_err(Failure::Other)?;
    match as_json {
        true => Ok(format!("{value:#}\n")),
        false => Ok(to_text(&value)),
    }
}

/// Asks the running relay of a file to use another transport with a peer; returns what to print.
pub fn switch(file: &Path, wish: Wish) -> Result<String> {
    let (node, gcim_key) = read_relay_identity(file)?;
    let mend = format!("; start it: tbusd -c {}", file.display());
    let question = format!("switch {wish}");
    let answer = ask_at(&socket_path(node, gcim_key), &question, &mend).map_err(Failure::Other)?;
    match (answer["done"].as_str(), answer["refused"].as_str()) {
        (Some(text), _) => Ok(format!("{text}\n")),
        (None, Some(why)) => Err(Failure::Asked(why.into())),
        (None, None) => Err(Failure::Other(
            "the relay gives no answer that is known".into(),
        )),
    }
}

/// What the relay says that answers at a socket; or why none does, and the mend.
pub fn ask_at(socket: &Path, question: &str, mend: &str) -> std::result::Result<Value, String> {
    let fail = |e: std::io::Error| format!("no relay answers at {}: {e}{mend}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream
        .set_read_timeout(Some(PATIENCE + Duration::from_secs(1)))
        .map_err(fail)?;
    let mut text = String::new();
    // One that closes without an answer is told of by what was read: nothing, or an end in the midst of it. The kernel says so at
    // whichever of these calls comes after the close.
    let _ = stream.write_all(format!("{question}\n").as_bytes());
    let _ = stream.read_to_string(&mut text);
    serde_json::from_str(&text).map_err(|_| {
        format!(
            "the relay at {} does not answer; it may be stopped",
            socket.display()
        )
    })
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
    _ = write!(text, "\n{}", peers_to_text(&all("peers")));
    _ = write!(text, "\n{}", rings_to_text(&all("rings")));
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
    if let Some(why) = status["metrics_trouble"].as_str() {
        _ = writeln!(text, "warning: {why}");
    }
    if status["draining"] == true {
        text += "it ends: it waits for its peers to take what is in the rings\n";
    }
    reload_to_text(status, &mut text);
    let alarms = all("alarms");
    if alarms.is_empty() {
        text += "no alarms\n";
    }
    for alarm in alarms {
        _ = writeln!(text, "alarm: {}", text_of(&alarm["text"]));
    }
    text
}

/// What became of the file and the certificates when they were read anew last.
fn reload_to_text(status: &Value, text: &mut String) {
    let reload = &status["last_reload"];
    if !reload.is_null() {
        let items = reload["items"].as_array();
        let items: Vec<String> = items
            .into_iter()
            .flatten()
            .map(|item| format!("{}: {}", text_of(&item["key"]), text_of(&item["answer"])))
            .collect();
        let what = match reload["refused"].as_str() {
            Some(why) => format!("refused, nothing was changed: {why}"),
            None if items.is_empty() => "nothing in it has changed".into(),
            None => items.join(", "),
        };
        let at = text_of(&reload["time"]);
        _ = writeln!(text, "file read anew at {at}: {what}");
    }
    let certificates = &status["last_certificates"];
    if !certificates.is_null() {
        let [at, answer, what] =
            ["time", "answer", "text"].map(|name| text_of(&certificates[name]));
        _ = writeln!(text, "certificates read anew at {at}: {answer}: {what}");
    }
}

/// A duration for people.
fn span(seconds: &Value) -> String {
    let whole = |seconds| Duration::from_secs(seconds as u64);
    let span = |seconds| humantime::format_duration(whole(seconds)).to_string();
    seconds.as_f64().map_or("-".into(), span)
}

fn peers_to_text(all: &[Value]) -> Columns {
    let mut peers = Columns::new(&[
        ("peer", Align::Left),
        ("node", Align::Right),
        ("state", Align::Left),
        ("for", Align::Right),
        ("over", Align::Left),
        ("security", Align::Left),
        ("times", Align::Right),
        ("round trip", Align::Right),
        ("out/s", Align::Right),
        ("in/s", Align::Right),
        ("trouble", Align::Left),
    ]);
    for peer in all {
        let trip = peer["round_trip_seconds"].as_f64();
        let trip = trip.map_or("-".into(), |s| format!("{:.0} us", s * 1e6));
        let text = |name: &str| peer[name].as_str().filter(|text| !text.is_empty());
        let mut trouble: Vec<String> = text("trouble").map(Into::into).into_iter().collect();
        trouble.extend(text("transport_reasons").map(Into::into));
        let over = text_of(&peer["transport"]);
        let over = match text("transport_detail") {
            Some(detail) => format!("{over}, {detail}"),
            None => over,
        };
        let last = text("last_end").filter(|_| trouble.is_empty());
        trouble.extend(last.map(|last| format!("last: {last}")));
        if trouble.is_empty() {
            trouble.push("-".into());
        }
        peers.row(vec![
            text_of(&peer["endpoint"]),
            text_of(&peer["node"]),
            text_of(&peer["state"]),
            span(&peer["since_seconds"]),
            over,
            text_of(&peer["security"]),
            text_of(&peer["ups"]),
            trip,
            text_of(&peer["last_second"]["sent_messages"]),
            text_of(&peer["last_second"]["received_messages"]),
            trouble.join("; "),
        ]);
    }
    peers
}

fn rings_to_text(all: &[Value]) -> Columns {
    let mut rings = Columns::new(&[
        ("", Align::Left),
        ("from", Align::Left),
        ("to", Align::Left),
        ("state", Align::Left),
        ("messages", Align::Right),
        ("bytes", Align::Right),
        ("lag", Align::Right),
        ("oldest", Align::Right),
        ("full", Align::Right),
        ("trouble", Align::Left),
    ]);
    for ring in all {
        let number = |name: &str| ring[name].as_f64().unwrap_or(0.0);
        rings.row(vec![
            match ring["outbound"] == true {
                true => "out",
                false => "in",
            }
            .into(),
            text_of(&ring["from"]),
            text_of(&ring["to"]),
            match ring["running"] == true {
                true => "mirrored",
                false => "waiting",
            }
            .into(),
            text_of(&ring["messages"]),
            text_of(&ring["bytes"]),
            text_of(&ring["lag"]),
            span(&ring["oldest_seconds"]),
            format!(
                "{:.0} %",
                100.0 * number("used") / number("capacity").max(1.0)
            ),
            text_of(&ring["trouble"]),
        ]);
    }
    rings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_a_peers_data_is_told_where_the_name_does_not_say_it() {
        let peer = |transport: &str, detail: Value| json!({"endpoint": "10.0.0.1:10271", "transport": transport, "transport_detail": detail});
        let over_ucx = peer("ucx", json!("rc_verbs/rxe0:1 (1 rail)"));
        let text = peers_to_text(&[over_ucx, peer("verbs", Value::Null)]).to_string();
        assert!(text.contains(" ucx, rc_verbs/rxe0:1 (1 rail) "), "{text}");
        assert!(text.contains(" verbs "), "{text}");
        assert!(!text.contains("verbs,"), "{text}");
    }
}
