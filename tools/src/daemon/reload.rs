//! SIGHUP: the file is read anew. What can be applied is applied, all of it or nothing; of the rest it is said that it needs a
//! restart.

use super::http::Server;
use super::{Running, hold_down, security};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;
use tbus::config::{AllowedPeer, RelayConfig, Security, read_relay};
use tbus::grm::RelayEndpoint;
use tbus_transport::relay::Relay;
use tbus_transport::tcp_network::TcpNetwork;
use tracing::{error, info, warn};

/// What became of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Applied,
    NeedsRestart,
    Refused,
}

impl Answer {
    pub fn name(self) -> &'static str {
        match self {
            Answer::Applied => "applied",
            Answer::NeedsRestart => "needs restart",
            Answer::Refused => "refused",
        }
    }
}

/// A key of the file that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub key: String,
    pub answer: Answer,
    /// What follows, or why, and the mend.
    pub text: String,
}

/// What became of a file that was read anew.
#[derive(Clone, Debug)]
pub(super) struct Reload {
    pub at: SystemTime,
    /// How many there were since the relay began.
    pub number: u64,
    pub items: Vec<Item>,
    /// Why nothing was applied, if so.
    pub refused: Option<String>,
}

const RESTART: &str = "the old value holds until the relay is started anew";

/// What holds for a node; `None`: it is refused.
fn entry(config: &RelayConfig, node: u32) -> Option<AllowedPeer> {
    let found = config.allow.iter().find(|peer| peer.node == node);
    let anybody = || AllowedPeer {
        node,
        name: None,
        endpoint: None,
        security: config.security,
    };
    found
        .cloned()
        .or_else(|| config.allow.is_empty().then(anybody))
}

/// The keys whose values differ, and what is to become of them.
fn compare(old: &RelayConfig, new: &RelayConfig, files: [bool; 3]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut add = |key: &str, differs: bool, answer: Answer, text: &str| {
        if differs {
            items.push(Item {
                key: key.into(),
                answer,
                text: text.into(),
            });
        }
    };
    let restart = Answer::NeedsRestart;
    add("cluster", old.cluster != new.cluster, restart, RESTART);
    add("node", old.node != new.node, restart, RESTART);
    add("gcim_key", old.gcim_key != new.gcim_key, restart, RESTART);
    let differs = old.relay_key != new.relay_key;
    add("relay_key", differs, restart, RESTART);
    add("listen", old.listen != new.listen, restart, RESTART);
    add("workers", old.workers != new.workers, restart, RESTART);
    let (trust, text) = match is_clear(old) == is_clear(new) {
        true => (
            Answer::Applied,
            "for the peers that it concerns, which are connected anew",
        ),
        false => (restart, RESTART),
    };
    add("security", old.security != new.security, trust, text);
    add("allow", old.allow != new.allow, trust, text);
    let (trust, text) = match trust {
        Answer::Applied => (trust, "for new connections"),
        _ => (trust, text),
    };
    for (key, differs) in ["certificate", "private_key", "authority"]
        .iter()
        .zip(files)
    {
        add(key, differs, trust, text);
    }
    let applied = Answer::Applied;
    add("metrics", old.metrics != new.metrics, applied, "");
    add("drain", old.drain != new.drain, applied, "");
    let differs = old.alarm_full != new.alarm_full;
    add("alarm_full", differs, applied, "");
    let differs = old.alarm_age != new.alarm_age;
    add("alarm_age", differs, applied, "");
    let differs = old.hold_down != new.hold_down;
    add("hold_down", differs, applied, "");
    let differs = old.hold_down_max != new.hold_down_max;
    add("hold_down_max", differs, applied, "");
    items
}

fn is_clear(config: &RelayConfig) -> bool {
    config.security == Security::None
}

impl Running {
    /// SIGHUP.
    pub(super) fn reload(&mut self, relay: &mut Relay<TcpNetwork>, now: u64) {
        let (items, refused) = match self.take_over(relay, now) {
            Ok(items) => (items, None),
            Err((items, why)) => (items, Some(why)),
        };
        let file = self.file.display();
        for Item { key, answer, text } in &items {
            let line = match text.is_empty() {
                true => format!("{file}: {key}: {}", answer.name()),
                false => format!("{file}: {key}: {}: {text}", answer.name()),
            };
            match answer {
                Answer::Applied => info!("{line}"),
                Answer::NeedsRestart => warn!("{line}"),
                Answer::Refused => error!("{line}"),
            }
        }
        match &refused {
            Some(why) => error!("{file} is refused, and nothing was changed: {why}"),
            None if items.is_empty() => info!("{file} was read anew: nothing in it has changed"),
            None => {}
        }
        self.last_reload = Some(Reload {
            at: SystemTime::now(),
            number: self.last_reload.as_ref().map_or(0, |last| last.number) + 1,
            items,
            refused,
        });
    }

    /// What can fail comes first, so that all is applied or nothing.
    fn take_over(
        &mut self,
        relay: &mut Relay<TcpNetwork>,
        now: u64,
    ) -> Result<Vec<Item>, (Vec<Item>, String)> {
        let new = read_relay(&self.file).map_err(|e| (Vec::new(), e.to_string()))?;
        let old = self.config.clone();
        let secured = security(&self.file, &new);
        let files = match (&secured, &self.tls) {
            (Ok(Some((read, _))), Some(tls)) => tls.differs(read),
            _ => paths(&old, &new),
        };
        let mut items = compare(&old, &new, files);
        let refuse = |why: String| {
            let mut items = items.clone();
            for item in &mut items {
                (item.answer, item.text) = (Answer::Refused, String::new());
            }
            Err((items, why))
        };
        let secured = match secured {
            Ok(secured) => secured,
            Err(failure) => return refuse(failure.to_string()),
        };
        let metrics = match new.metrics {
            Some(address) if !self.serves(address) => match self.open(address) {
                Ok(server) => Some(server),
                // What could not be had before either is no reason to refuse what is new.
                Err(_) if new.metrics == old.metrics => None,
                Err(why) => return refuse(why),
            },
            _ => None,
        };
        if metrics.is_some() && new.metrics == old.metrics {
            items.push(Item {
                key: "metrics".into(),
                answer: Answer::Applied,
                text: "its port is free by now".into(),
            });
        }
        // From here on nothing fails.
        let trusts = is_clear(&old) == is_clear(&new);
        if trusts {
            if let (Some((read, mut trust)), Some(tls)) = (secured, &self.tls) {
                trust.cluster = old.cluster.clone();
                tls.replace(read, trust);
            }
            self.config.security = new.security;
            self.config.allow = new.allow.clone();
            self.config.pem = new.pem.clone();
            relay.allow(new.allow.iter().map(|peer| peer.node).collect());
            // Who is tied to an endpoint is there in another's place.
            let tied = ties(&old) != ties(&new);
            relay.judge_anew(|node| tied || entry(&old, node) != entry(&new, node), now);
        }
        if metrics.is_some() || new.metrics.is_none() {
            self.metrics = Ok(metrics);
        }
        self.config.metrics = new.metrics;
        self.config.drain = new.drain;
        self.config.alarm_full = new.alarm_full;
        self.config.alarm_age = new.alarm_age;
        self.config.hold_down = new.hold_down;
        self.config.hold_down_max = new.hold_down_max;
        relay.hold_down(hold_down(&self.config));
        Ok(items)
    }

    /// A port can be had once only, so the server that has it makes room; it is back if there is no other.
    fn open(&mut self, address: SocketAddr) -> Result<Server, String> {
        let server = self.metrics.as_mut().ok().and_then(Option::as_mut);
        let Some(before) = server
            .map(|server| server.address())
            .filter(|before| before.port() == address.port())
        else {
            return Server::open(address, &self.asker);
        };
        self.metrics = Ok(None);
        let opened = Server::open(address, &self.asker);
        if opened.is_err() {
            self.metrics = Server::open(before, &self.asker).map(Some);
        }
        opened
    }

    fn serves(&self, address: SocketAddr) -> bool {
        let server = self.metrics.as_ref().ok().and_then(Option::as_ref);
        server.is_some_and(|server| server.address() == address)
    }
}

/// Which nodes are tied to which endpoints.
fn ties(config: &RelayConfig) -> HashMap<u32, &RelayEndpoint> {
    let all = config.allow.iter();
    all.filter_map(|peer| Some((peer.node, peer.endpoint.as_ref()?)))
        .collect()
}

/// Which of the paths differ, for a relay that does not use the files.
fn paths(old: &RelayConfig, new: &RelayConfig) -> [bool; 3] {
    let of = |config: &RelayConfig| {
        let pem = config.pem.clone();
        pem.map_or([None, None, None], |pem| {
            [pem.certificate, pem.private_key, pem.authority].map(Some)
        })
    };
    let (old, new) = (of(old), of(new));
    std::array::from_fn(|n| old[n] != new[n])
}
