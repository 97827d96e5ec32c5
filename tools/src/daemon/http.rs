//! Metrics and health over HTTP, for programs that watch. Strangers may knock here too: a connection has a thread of its own for a
//! short while, there are few of them, and none ever waits for another or keeps the relay from anything.

use super::metrics;
use super::snapshot::{Asker, Snapshot};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Connections at the same time; more are closed.
const CONNECTIONS: usize = 8;
/// A request is here within this time, or is not answered.
const REQUEST: Duration = Duration::from_secs(2);
/// And an answer is taken within this.
const ANSWER: Duration = Duration::from_secs(10);
/// Bytes of a request.
const LONGEST: usize = 8192;
/// Header lines of a request.
const HEADERS: usize = 64;
/// The relay's thread answers within this time, or it is not healthy.
const RELAY: Duration = Duration::from_secs(2);
/// Lines of reasons in an answer.
const REASONS: usize = 100;
/// No connection is taken for so long after the system had nothing for it.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener, and the thread that takes its connections. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    /// Closed for the thread's end.
    bell: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens; an error says what to do.
    pub fn open(address: SocketAddr, asker: &Asker) -> Result<Server, String> {
        let open = || -> io::Result<Server> {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let (bell, heard) = UnixStream::pair()?;
            let pages = Arc::new(Pages {
                asker: asker.clone(),
                last: Mutex::new(None),
            });
            let thread = std::thread::Builder::new()
                .name("tbus-metrics".into())
                .spawn(move || listen(&listener, &heard, &pages))?;
            Ok(Server {
                address,
                bell,
                thread: Some(thread),
            })
        };
        open().map_err(|e| {
            format!(
                "metrics cannot be served at {address}: {e}; give metrics another IP:PORT, or \"none\" for nowhere"
            )
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.bell.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(listener: &TcpListener, bell: &UnixStream, pages: &Arc<Pages>) {
    let mut told = false;
    loop {
        let mut fds = [listener.as_fd(), bell.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let polled = poll(&mut fds, PollTimeout::NONE);
        if fds[1].any() == Some(true) {
            return;
        }
        let taken = match polled {
            Ok(_) => listener.accept(),
            Err(e) => Err(e.into()),
        };
        match taken {
            // Who comes while all places are taken is not answered: each place is free again soon.
            Ok((stream, _)) if Arc::strong_count(pages) > CONNECTIONS => drop(stream),
            Ok((stream, _)) => {
                let pages = pages.clone();
                let thread = std::thread::Builder::new().name("tbus-scrape".into());
                let _ = thread.spawn(move || converse(stream, &pages));
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    warn!("no connection for metrics can be taken now: {e}; tried again");
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// One request, one answer.
fn converse(mut stream: TcpStream, pages: &Pages) {
    let answer = match hear(&mut stream) {
        Ok(Asked { path, is_head }) => Answer {
            is_head,
            ..pages.answer(&path)
        },
        Err(Some(answer)) => answer,
        Err(None) => return,
    };
    // Who does not read it has it not.
    if say(&mut stream, &answer).is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
        // Closed with bytes unread, a connection may lose what was written; not for long, and not for much.
        let _ = stream.set_read_timeout(Some(PAUSE));
        for _ in 0..16 {
            if !matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                break;
            }
        }
    }
}

struct Asked {
    path: String,
    is_head: bool,
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    body: Arc<String>,
    is_head: bool,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Answer {
        Answer {
            status,
            kind: "text/plain; charset=utf-8",
            body: Arc::new(body.into()),
            is_head: false,
        }
    }
}

fn left(until: Instant) -> io::Result<Option<Duration>> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(Some(left)),
    }
}

/// Reads a request's head. An error is what to answer, if anything.
fn hear(stream: &mut TcpStream) -> Result<Asked, Option<Answer>> {
    let until = Instant::now() + REQUEST;
    let mut bytes = Vec::new();
    loop {
        let mut more = [0; 1024];
        let read = || {
            stream.set_read_timeout(left(until)?)?;
            stream.read(&mut more)
        };
        match { read }() {
            Ok(0) | Err(_) => return Err(None),
            Ok(n) => bytes.extend_from_slice(&more[..n]),
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&bytes) {
            Ok(httparse::Status::Complete(_)) => {
                let is_head = request.method == Some("HEAD");
                if !is_head && request.method != Some("GET") {
                    let text = "only GET and HEAD are answered\n";
                    return Err(Some(Answer::text("405 Method Not Allowed", text)));
                }
                let path = request.path.unwrap_or("/").to_string();
                return Ok(Asked { path, is_head });
            }
            Ok(httparse::Status::Partial) if bytes.len() < LONGEST => {}
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                let text = format!("a request has {LONGEST} bytes and {HEADERS} headers at most\n");
                let status = "431 Request Header Fields Too Large";
                return Err(Some(Answer::text(status, text)));
            }
            Err(e) => {
                let text = format!("this is no request of HTTP: {e}\n");
                return Err(Some(Answer::text("400 Bad Request", text)));
            }
        }
    }
}

fn say(stream: &mut TcpStream, answer: &Answer) -> io::Result<()> {
    let until = Instant::now() + ANSWER;
    let Answer {
        status, kind, body, ..
    } = answer;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let body = if answer.is_head { "" } else { body.as_str() };
    for mut bytes in [head.as_bytes(), body.as_bytes()] {
        while !bytes.is_empty() {
            stream.set_write_timeout(left(until)?)?;
            match stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// What is answered, by path.
struct Pages {
    asker: Asker,
    /// Who asks together shares it.
    last: Mutex<Option<Page>>,
}

/// A page that was made, and of what.
struct Page {
    snapshot: Arc<Snapshot>,
    with_rings: bool,
    text: Arc<String>,
}

impl Pages {
    fn answer(&self, path: &str) -> Answer {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if !matches!(path, "/metrics" | "/health" | "/ready") {
            let text = "there are /metrics, /metrics?rings=none, /health and /ready\n";
            return Answer::text("404 Not Found", text);
        }
        let Some(snapshot) = self.asker.ask(false, RELAY) else {
            let seconds = RELAY.as_secs();
            let text = format!(
                "the relay's thread did not answer within {seconds} s: it is stopped, or busy without end; restart it if that \
                 stays so\n"
            );
            return Answer::text(UNAVAILABLE, text);
        };
        match path {
            "/metrics" => self.metrics(snapshot, query != "rings=none"),
            "/health" => health(&snapshot),
            _ => ready(&snapshot).unwrap_or_else(|| Answer::text("200 OK", "ready\n")),
        }
    }

    fn metrics(&self, snapshot: Arc<Snapshot>, with_rings: bool) -> Answer {
        // Held while the page is made, so that it is made once.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let body = match &*last {
            Some(page)
                if Arc::ptr_eq(&page.snapshot, &snapshot) && page.with_rings == with_rings =>
            {
                page.text.clone()
            }
            _ => match metrics::page(snapshot.clone(), with_rings) {
                Ok(page) => Arc::new(page),
                Err(e) => {
                    let text = format!("the metrics could not be written: {e}\n");
                    return Answer::text("500 Internal Server Error", text);
                }
            },
        };
        *last = Some(Page {
            snapshot,
            with_rings,
            text: body.clone(),
        });
        Answer {
            status: "200 OK",
            kind: metrics::TYPE,
            body,
            is_head: false,
        }
    }
}

const UNAVAILABLE: &str = "503 Service Unavailable";

/// What to answer if it is not ready.
fn ready(snapshot: &Snapshot) -> Option<Answer> {
    let text = match (snapshot.status.is_ready, snapshot.status.is_draining) {
        (_, true) => "the relay ends: it waits for its peers to take what is in the rings\n",
        (false, _) => "the maps are not read yet; the log says why if that stays so\n",
        (true, false) => return None,
    };
    Some(Answer::text(UNAVAILABLE, text))
}

fn health(snapshot: &Snapshot) -> Answer {
    if let Some(answer) = ready(snapshot) {
        return answer;
    }
    let alarms = snapshot.alarms();
    let is_healthy = !alarms.iter().any(|alarm| alarm.kind.is_unhealthy());
    let mut text = String::from(if is_healthy {
        "healthy\n"
    } else {
        "not healthy\n"
    });
    // What makes it so comes first.
    let (bad, other): (Vec<_>, Vec<_>) = alarms.iter().partition(|a| a.kind.is_unhealthy());
    for alarm in bad.into_iter().chain(other).take(REASONS) {
        text += &format!("{}: {}\n", alarm.kind.name(), alarm.text);
    }
    if alarms.len() > REASONS {
        text += &format!("and {} more\n", alarms.len() - REASONS);
    }
    Answer::text(if is_healthy { "200 OK" } else { UNAVAILABLE }, text)
}

/// Metrics at the beginning: a relay does without rather than not at all.
pub(super) fn begin(address: Option<SocketAddr>, asker: &Asker) -> Result<Option<Server>, String> {
    let Some(address) = address else {
        return Ok(None);
    };
    match Server::open(address, asker) {
        Ok(server) => {
            info!("metrics at http://{address}/metrics, health at /health");
            Ok(Some(server))
        }
        Err(why) => {
            warn!("{why}; the relay goes on without");
            Err(why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_does_not_answer_is_not_healthy() {
        let (asker, _answers) = super::super::snapshot::channel();
        let pages = Pages {
            asker,
            last: Mutex::new(None),
        };
        let answer = pages.answer("/health");
        assert_eq!(answer.status, UNAVAILABLE);
        assert!(answer.body.contains("did not answer within 2 s"));
        // No path that is not there is worth a question.
        assert_eq!(pages.answer("/").status, "404 Not Found");
    }
}
