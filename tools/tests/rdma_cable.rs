//! Two hosts of their own, joined by a cable that is pulled: `ci/rxe run --both -- cargo test -p tbus-tools --test rdma_cable --
//! --ignored --nocapture` runs this test on both at once. What they have to tell each other besides messages lies in a
//! directory that both see.

mod hosts;

use hosts::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use tbus::{Receiver, Sender, TryRecvError, TrySendError};

/// Common to both hosts, for the time of the run.
const COMMON: &str = "/run/rxe";
const PORT: u16 = 1027;
const SIZE: u64 = 1 << 16;
/// Bytes of a message.
const LONGEST: usize = 3000;
/// A failure is seen within this time.
const SEEN: Duration = Duration::from_secs(3);

/// One of the two hosts, with a channel to the other one.
struct End {
    /// 0 or 1.
    number: usize,
    host: Host,
    _relay: Process,
    log: PathBuf,
    sender: Sender,
    receiver: Receiver,
    sent: u64,
    received: u64,
    /// When the last message came.
    heard: SystemTime,
    bytes: [Vec<u8>; 2],
    _scratch: Scratch,
}

/// Where host `number` keeps what it says of `what`.
fn common(number: usize, what: &str) -> PathBuf {
    Path::new(COMMON).join(format!("tbus-{what}-{number}"))
}

/// Says something to the other host, at once or not at all.
fn say(number: usize, what: &str, text: &str) {
    let (place, draft) = (common(number, what), common(number, "draft"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, place).unwrap();
}

/// `ci/rxe` in a process of its own: it takes a while, and data go on meanwhile.
fn cable(words: &str) -> Process {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/rxe");
    let mut command = Command::new(program);
    Process::start("ci/rxe", command.args(words.split_whitespace()))
}

impl End {
    fn new() -> End {
        let of = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name}: ci/rxe run --both"));
        let (own, other) = (of("RDMA_ADDRESS"), of("RDMA_PEER"));
        let number = usize::from(own > other);
        let scratch = Scratch::new("cable");
        let host = Host::new(&scratch, number as u32 + 1);
        if number == 0 {
            let ca = scratch.0.join("ca");
            make_ca(&ca, "test");
            for node in [1, 2] {
                make_node(&ca, node, &common(node as usize - 1, "keys"));
            }
            say(0, "ready", "");
        } else {
            let ready = within(PATIENCE, || common(0, "ready").exists().then_some(()));
            ready.expect("the other host makes certificates");
        }
        for file in std::fs::read_dir(common(number, "keys")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), host.place.join(file.file_name())).unwrap();
        }
        let ends = [address(1, 1), address(2, 1)];
        let both = match number {
            0 => [&own, &other],
            _ => [&other, &own],
        };
        host.write_secure_config(&format!("{own}:{PORT}"), "authenticate", "");
        host.write_channels(&channels(&[(SIZE, "delivered")]));
        let routes = [0, 1].map(|n| (ends[n], vec![format!("{}:{PORT}", both[n])]));
        host.write_routes_over("verbs tcp", &routes);
        let (here, there) = (ends[number], ends[1 - number]);
        End {
            number,
            _relay: host.start(),
            log: scratch.0.join(format!("tbusd{}.log", number + 1)),
            sender: host.sender(here, there),
            receiver: host.receiver(here, there),
            host,
            sent: 0,
            received: 0,
            heard: SystemTime::now(),
            bytes: [Vec::new(), vec![0; SIZE as usize]],
            _scratch: scratch,
        }
    }

    /// Sends and receives what there is room for and what has come.
    fn pump(&mut self) {
        let message = &mut self.bytes[0];
        for _ in 0..8 {
            payload(self.number as u64, self.sent, LONGEST, message);
            match self.sender.try_send(message) {
                Ok(()) => self.sent += 1,
                Err(TrySendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.receive();
        // The relay needs the processors, too.
        std::thread::sleep(Duration::from_millis(2));
    }

    fn receive(&mut self) {
        let [message, buffer] = &mut self.bytes;
        loop {
            match self.receiver.try_recv(buffer) {
                Ok(length) => {
                    payload(1 - self.number as u64, self.received, LONGEST, message);
                    assert!(buffer[..length] == message[..], "message {}", self.received);
                    self.received += 1;
                    self.heard = SystemTime::now();
                }
                Err(TryRecvError::Empty) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Pumps until `look` finds something.
    #[track_caller]
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&End) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if begun.elapsed() > PATIENCE {
                eprintln!("{:#}", self.host.status().unwrap_or_default());
                panic!("host {}, not within {PATIENCE:?}: {what}", self.number + 1);
            }
            self.pump();
        }
    }

    /// Both hosts are here. What the other one says.
    fn meet(&mut self, what: &str, text: &str) -> String {
        say(self.number, what, text);
        let place = common(1 - self.number, what);
        let there = |_: &End| std::fs::read_to_string(&place).ok();
        self.until(what, there)
    }

    fn written(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Data goes by RDMA, and arrives.
    fn flow(&mut self) {
        self.until("data by RDMA", |end| {
            let status = end.host.status()?;
            (status["peers"][0]["transport"] == "verbs").then_some(())
        });
        let due = self.received + 100;
        self.until("messages", |end| (end.received >= due).then_some(()));
    }

    /// Waits until the relay says that the connection is lost, in time after the last message came.
    fn lost(&mut self, from: usize, what: &str) {
        let line = self.until("the loss is seen", |end| {
            let written = end.written();
            let line = written[from..]
                .lines()
                .find(|l| l.contains("disconnected:"));
            line.map(str::to_owned)
        });
        let at = line.split_whitespace().next().unwrap();
        let at = humantime::parse_rfc3339(at).unwrap();
        let after = at.duration_since(self.heard).unwrap_or_default();
        println!("{what}, seen after {after:.2?}: {line}");
        assert!(after < SEEN, "{what}: {after:?}");
    }

    /// Host 1 pulls the cable; both relays must see it; and everything goes on when it is put back.
    fn cut(&mut self, name: &str, pull: &str) {
        self.flow();
        let from = self.written().len();
        self.meet(&format!("{name}-begins"), "");
        let mut hand = (self.number == 0).then(|| cable(pull));
        self.lost(from, pull);
        if let Some(hand) = &mut hand {
            hand.end();
        }
        self.meet(&format!("{name}-is-seen"), "");
        if self.number == 0 {
            cable("cable up").end();
        }
        self.flow();
    }
}

#[test]
#[ignore = "needs two hosts: ci/rxe run --both"]
fn a_cable_is_pulled_and_a_host_dies() {
    let mut end = End::new();
    end.cut("both", "cable down");
    end.cut("one", "cable down 1");
    // What was sent is received, just once.
    end.flow();
    let sent = end.sent;
    let due: u64 = end.meet("sent", &sent.to_string()).parse().unwrap();
    let begun = Instant::now();
    while end.received < due {
        assert!(begun.elapsed() < PATIENCE, "{} of {due}", end.received);
        end.receive();
    }
    println!("host {}: {sent} sent, {due} received", end.number + 1);
    end.meet("received", "");
    end.flow();
    end.meet("dying", "");
    if end.number == 1 {
        // Until this host is switched off.
        end.until("the end", |_| None::<()>);
    }
    let from = end.written().len();
    let _hand = cable("power-off 2");
    end.lost(from, "power-off 2");
}
