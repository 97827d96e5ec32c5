//! The relay's own file, `tbusd.toml`: who it is, where it listens, whom it trusts.
//!
//! ```toml
//! cluster = "game-eu"             # peers of another cluster are refused
//! node = 1                        # this host's number in the cluster; of two nodes the lower one dials
//! gcim_key = 1000                 # the channels, as in TbusGCIM
//! relay_key = 2688                # the routes, as in RelayMnger
//! listen = "0.0.0.0:1027"         # the default; without a port: 1027
//! metrics = "127.0.0.1:9127"      # the default; "none": no metrics
//! drain = 5                       # the default; seconds that the end waits for what is in the rings
//! alarm_full = 80                 # the default; a ring that is so full, in percent, is told
//! alarm_age = 10                  # the default; what nobody has taken for so many seconds is told
//! hold_down = 2                   # the default; a transport that has failed rests for so many seconds, then twice as long
//! hold_down_max = 60              # the default; and so long at most
//! workers = 2                     # default: as many as peers, at most as many as processors
//! security = "encrypt"            # the default; authenticate, none
//! certificate = "node1.pem"       # the next three for all but none; relative to this file
//! private_key = "node1.key"
//! authority = "ca.pem"
//!
//! [[allow]]                       # a peer; others are refused
//! node = 2
//! name = "node2.example.net"      # in its certificate; default: node-2.game-eu.tbus
//! endpoint = "tcp://node2:1027"   # it may only be that one, as routes name it; default: what it says
//! security = "authenticate"       # default: as above; none is for all or for nobody
//! ```

use super::source::{self, At, Node};
use super::{ConfigError, Fields, Problem, Reader, RelayEndpoint};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The port that relays listen on if none is given.
pub const RELAY_PORT: u16 = 1027;
/// The port of the metrics if none is given.
pub const METRICS_PORT: u16 = 9127;
/// The longest name of a cluster, bytes.
pub const MAX_CLUSTER: usize = 255;
/// Seconds that the end of a relay waits for what is in its rings, if no others are given.
pub const DRAIN: u64 = 5;
/// So full is a ring, in percent, that is told, if nothing else is given.
pub const ALARM_FULL: u64 = 80;
/// So old are messages, in seconds, that are told, if nothing else is given.
pub const ALARM_AGE: u64 = 10;
/// Seconds that a transport rests after it has failed, the first time and at most.
const HOLD_DOWN: u64 = 2;
const HOLD_DOWN_MAX: u64 = 60;
/// The most seconds that may be given.
const MAX_SECONDS: u64 = 86_400;
/// The most workers.
const MAX_WORKERS: u64 = 1024;

/// How a peer is made sure of, and its data kept from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Security {
    /// TLS for control and data.
    #[default]
    Encrypt,
    /// TLS for control; data in clear, on a connection that it vouches for: for networks that are trusted.
    Authenticate,
    /// Nothing: for one host, and for tests.
    None,
}

impl Security {
    /// All of them by name.
    pub const ALL: [(&str, Security); 3] = [
        ("encrypt", Security::Encrypt),
        ("authenticate", Security::Authenticate),
        ("none", Security::None),
    ];

    /// "encrypt", "authenticate" or "none".
    pub fn name(self) -> &'static str {
        let (name, _) = Security::ALL[self as usize];
        name
    }

    /// The one of this name.
    pub fn by_name(name: &str) -> Option<Security> {
        let mut all = Security::ALL.into_iter();
        all.find_map(|(known, security)| (known == name).then_some(security))
    }
}

/// A peer that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPeer {
    /// Its number.
    pub node: u32,
    /// The name in its certificate; `None`: that of its node and cluster.
    pub name: Option<String>,
    /// Where it is reached, as routes say; `None`: it is believed what it says.
    pub endpoint: Option<RelayEndpoint>,
    /// How it is made sure of.
    pub security: Security,
}

/// The files of TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFiles {
    /// This relay's certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
    /// The authorities that sign the peers' certificates.
    pub authority: PathBuf,
}

/// `tbusd.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// Peers of another cluster are refused.
    pub cluster: String,
    /// This host's number in the cluster.
    pub node: u32,
    /// Key of the map of channels.
    pub gcim_key: u32,
    /// Key of the map of routes.
    pub relay_key: u32,
    /// Where peers are awaited.
    pub listen: SocketAddr,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// How long the end waits for what is in the rings.
    pub drain: Duration,
    /// A ring that is so full, in percent, is told.
    pub alarm_full: u64,
    /// What nobody has taken for so long is told.
    pub alarm_age: Duration,
    /// What has failed rests for so long the first time.
    pub hold_down: Duration,
    /// And at most for so long.
    pub hold_down_max: Duration,
    /// Threads that move data; `None`: as many as peers, at most as many as processors.
    pub workers: Option<usize>,
    /// For peers that `allow` says nothing else about.
    pub security: Security,
    /// Given unless all security is none.
    pub pem: Option<PemFiles>,
    /// Who may connect, each node once.
    pub allow: Vec<AllowedPeer>,
}

/// Reads `tbusd.toml`. Relative paths in it are taken from its own directory, and the files that it names must be there.
pub fn read_relay(file: &Path) -> Result<RelayConfig, ConfigError> {
    super::read(file, |bytes| {
        parse_relay(bytes, Some(file.parent().unwrap_or(Path::new(""))))
    })
}

/// Reads `node` and `gcim_key` alone, whatever else may be wrong: by these two a running relay is found, whose file may have got
/// problems meanwhile.
pub fn read_relay_identity(file: &Path) -> Result<(u32, u32), ConfigError> {
    super::read(file, |bytes| {
        let mut root = source::read(bytes, true).map_err(|problem| vec![problem])?;
        root.children
            .retain(|child| matches!(&*child.name.replace('_', ""), "node" | "gcimkey"));
        Reader::default().finish(|reader| {
            let known = ["node", "gcim_key"];
            let mut fields = Fields::of(reader, &root, true, "the relay's file", &known, &[])?;
            let node = reader.node(&mut fields, &root);
            let key = reader.key(&mut fields, &root, "gcim_key");
            Some((node?, key?))
        })
    })
}

/// Reads the bytes of such a file. With a directory, relative paths are taken from there and the files are opened once;
/// without, paths are left as they are.
pub fn parse_relay(bytes: &[u8], directory: Option<&Path>) -> Result<RelayConfig, Vec<Problem>> {
    let root = source::read(bytes, true).map_err(|problem| vec![problem])?;
    Reader::default().finish(|reader| reader.relay(&root, directory))
}

impl Reader {
    fn relay(&mut self, root: &Node, directory: Option<&Path>) -> Option<RelayConfig> {
        const SINGLE: &[&str] = &[
            "cluster",
            "node",
            "gcim_key",
            "relay_key",
            "listen",
            "metrics",
            "drain",
            "alarm_full",
            "alarm_age",
            "hold_down",
            "hold_down_max",
            "workers",
            "security",
            "certificate",
            "private_key",
            "authority",
        ];
        let mut fields = Fields::of(self, root, true, "the relay's file", SINGLE, &["allow"])?;
        let cluster = self.cluster(&mut fields, root);
        let node = self.node(&mut fields, root);
        let gcim_key = self.key(&mut fields, root, "gcim_key");
        let relay_key = self.key(&mut fields, root, "relay_key");
        let listening = fields.take("listen");
        let listen = match listening {
            Some(node) => self.socket(node, RELAY_PORT),
            None => Some((Ipv4Addr::UNSPECIFIED, RELAY_PORT).into()),
        };
        let (measured, metrics) = match fields.take("metrics") {
            Some(node) if node.text == "none" => (None, Some(None)),
            Some(node) => (Some(node), self.socket(node, METRICS_PORT).map(Some)),
            None => (None, Some(Some((Ipv4Addr::LOCALHOST, METRICS_PORT).into()))),
        };
        if let (Some(listen), Some(Some(metrics)), Some(at)) =
            (listen, metrics, measured.or(listening))
        {
            self.refuse_same_socket(at.at, listen, metrics);
        }
        let drain = self.up_to(&mut fields, "drain", 0..=MAX_SECONDS, DRAIN);
        let alarm_full = self.up_to(&mut fields, "alarm_full", 1..=100, ALARM_FULL);
        let alarm_age = self.up_to(&mut fields, "alarm_age", 1..=MAX_SECONDS, ALARM_AGE);
        let hold_down = self.up_to(&mut fields, "hold_down", 1..=MAX_SECONDS, HOLD_DOWN);
        let least = hold_down.unwrap_or(HOLD_DOWN);
        let longest = HOLD_DOWN_MAX.max(least);
        let hold_down_max = self.up_to(&mut fields, "hold_down_max", least..=MAX_SECONDS, longest);
        let workers = match fields.take("workers") {
            Some(node) => self.workers(node).map(Some),
            None => Some(None),
        };
        let secured = fields.take("security");
        let security = match secured {
            Some(node) => self.choice(node, &Security::ALL),
            None => Some(Security::default()),
        };
        let allow = self.allow(&mut fields, node, security);
        let tls = security? != Security::None
            || allow.iter().flatten().any(|p| p.security != Security::None);
        let pem = self.pem(
            &mut fields,
            secured.map_or(root.at, |s| s.at),
            tls,
            directory,
        );
        Some(RelayConfig {
            cluster: cluster?,
            node: node?,
            gcim_key: gcim_key?,
            relay_key: relay_key?,
            listen: listen?,
            metrics: metrics?,
            drain: Duration::from_secs(drain?),
            alarm_full: alarm_full?,
            alarm_age: Duration::from_secs(alarm_age?),
            hold_down: Duration::from_secs(hold_down?),
            hold_down_max: Duration::from_secs(hold_down_max?),
            workers: workers?,
            security: security?,
            pem: pem?,
            allow: allow?,
        })
    }

    fn cluster(&mut self, fields: &mut Fields<'_>, parent: &Node) -> Option<String> {
        let Some(node) = fields.take("cluster") else {
            return self.missing(parent, "cluster");
        };
        let text = &node.text;
        if text.is_empty() || text.len() > MAX_CLUSTER || text.chars().any(char::is_control) {
            let reason = format!("{text:?} is no name of a cluster");
            let mend =
                format!("give a text of 1 to {MAX_CLUSTER} bytes, the same on all its hosts");
            self.refuse(node.at, reason, mend);
            return None;
        }
        Some(text.clone())
    }

    fn node(&mut self, fields: &mut Fields<'_>, parent: &Node) -> Option<u32> {
        let Some(node) = fields.take("node") else {
            return self.missing(parent, "node");
        };
        self.number(node, 10, u32::MAX.into()).map(|n| n as u32)
    }

    fn workers(&mut self, node: &Node) -> Option<usize> {
        let workers = self.number(node, 10, MAX_WORKERS)?;
        if workers == 0 {
            let mend = "give at least 1, or leave it out for as many as there are peers";
            self.refuse(node.at, "0 workers would move nothing", mend);
            return None;
        }
        Some(workers as usize)
    }

    /// A number between two, or the one that holds if none is given.
    fn up_to(
        &mut self,
        fields: &mut Fields<'_>,
        name: &str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Option<u64> {
        let Some(node) = fields.take(name) else {
            return Some(default);
        };
        let number = self.number(node, 10, *range.end())?;
        if !range.contains(&number) {
            let mend = format!(
                "give {} at least, or leave it out for {default}",
                range.start()
            );
            self.refuse(node.at, format!("{number} is no value for {name}"), mend);
            return None;
        }
        Some(number)
    }

    /// An IP address, with or without a port.
    fn socket(&mut self, node: &Node, port: u16) -> Option<SocketAddr> {
        let ip = |text: &str| text.parse::<IpAddr>().ok();
        let bare = node
            .text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'));
        let alone = ip(bare.unwrap_or(&node.text)).map(|ip| SocketAddr::new(ip, port));
        let socket = alone.or(node.text.parse().ok());
        match socket {
            Some(socket) if socket.port() == 0 => {
                let reason = format!("{} with port 0 would be found by nobody", node.name);
                self.refuse(node.at, reason, format!("give a port, for example {port}"));
                None
            }
            None => {
                let reason = format!("'{}' is no address to listen on", node.text);
                let mend = format!("give IP:PORT, for example 127.0.0.1:{port} or [::1]:{port}");
                self.refuse(node.at, reason, mend);
                None
            }
            socket => socket,
        }
    }

    fn refuse_same_socket(&mut self, at: At, listen: SocketAddr, metrics: SocketAddr) {
        let same_ip = listen.ip() == metrics.ip()
            || listen.ip().is_unspecified()
            || metrics.ip().is_unspecified();
        if same_ip && listen.port() == metrics.port() {
            let reason = format!("listen and metrics both have port {}", listen.port());
            self.refuse(at, reason, "give them different ports");
        }
    }

    fn allow(
        &mut self,
        fields: &mut Fields<'_>,
        own: Option<u32>,
        default: Option<Security>,
    ) -> Option<Vec<AllowedPeer>> {
        let mut seen = HashMap::new();
        let mut names = HashMap::new();
        let mut peers = Vec::new();
        let mut good = true;
        for entry in fields.all("allow") {
            let Some(peer) = self.peer(entry, default) else {
                good = false;
                continue;
            };
            let AllowedPeer { node, name, .. } = &peer;
            if Some(*node) == own {
                let mend =
                    "name the others only; this relay's own number is the key 'node' at the top";
                self.refuse(entry.at, format!("node {node} is this relay itself"), mend);
            } else if let Some((row, _)) = seen.insert(*node, entry.at) {
                let reason = format!("node {node} stands in row {row} already");
                self.refuse(entry.at, reason, "remove one of the two");
            } else if let Some(name) = name
                && let Some((row, _)) = names.insert(name.to_lowercase(), entry.at)
            {
                // Whoever has that certificate could pass for the other one.
                let reason = format!("the name '{name}' stands in row {row} already");
                self.refuse(entry.at, reason, "give each node a certificate of its own");
            }
            peers.push(peer);
        }
        good.then_some(peers)
    }

    fn peer(&mut self, entry: &Node, default: Option<Security>) -> Option<AllowedPeer> {
        let known = ["node", "name", "endpoint", "security"];
        let mut fields = Fields::of(self, entry, true, "allow", &known, &[])?;
        let node = self.node(&mut fields, entry);
        let name = fields.take("name");
        let endpoint = match fields.take("endpoint") {
            Some(node) => Some(self.endpoint(node)?),
            None => None,
        };
        let asked = fields.take("security");
        let security = match asked {
            Some(node) => self.choice(node, &Security::ALL),
            None => default,
        };
        if let Some(name) = name.filter(|name| name.text.is_empty()) {
            let mend = "give the name that stands in the peer's certificate, or leave it out";
            self.refuse(name.at, "the name is empty", mend);
            return None;
        }
        // Who dials does not know yet which node will answer, so it must know without whether to speak TLS.
        let is_none = |security| security == Security::None;
        if let (Some(asked), Some(security), Some(default)) = (asked, security, default)
            && is_none(security) != is_none(default)
        {
            let mend = "give all peers none, or none of them";
            let reason = "security 'none' for some peers and another one for others";
            self.refuse(asked.at, reason, mend);
            return None;
        }
        Some(AllowedPeer {
            node: node?,
            name: name.map(|name| name.text.clone()),
            endpoint,
            security: security?,
        })
    }

    /// The files of TLS: all of them if it is used, and not only some of them in any case.
    fn pem(
        &mut self,
        fields: &mut Fields<'_>,
        at: At,
        tls: bool,
        directory: Option<&Path>,
    ) -> Option<Option<PemFiles>> {
        let names = ["certificate", "private_key", "authority"];
        let nodes = names.map(|name| fields.take(name));
        if !tls && nodes.iter().all(Option::is_none) {
            return Some(None);
        }
        let mut paths = Vec::new();
        for (name, node) in names.into_iter().zip(nodes) {
            match node {
                Some(node) => paths.push(self.pem_file(node, directory)),
                None => {
                    let reason = format!("{name} is missing, which TLS needs");
                    let mend = format!(
                        "add {name}, the path of a PEM file; or ask for security = \"none\", on one host only"
                    );
                    self.refuse(at, reason, mend);
                    paths.push(None);
                }
            }
        }
        let paths: Vec<PathBuf> = paths.into_iter().collect::<Option<_>>()?;
        let [certificate, private_key, authority] = paths.try_into().ok()?;
        Some(Some(PemFiles {
            certificate,
            private_key,
            authority,
        }))
    }

    fn pem_file(&mut self, node: &Node, directory: Option<&Path>) -> Option<PathBuf> {
        let name = &node.name;
        if node.text.is_empty() {
            self.refuse(
                node.at,
                format!("{name} is empty"),
                "give the path of a PEM file",
            );
            return None;
        }
        let Some(directory) = directory else {
            return Some(node.text.clone().into());
        };
        let path = directory.join(&node.text);
        let readable = std::fs::File::open(&path).and_then(|file| file.metadata());
        let why = match readable {
            Ok(info) if info.is_file() => return Some(path),
            Ok(_) => "it is no file".to_string(),
            Err(error) => error.to_string(),
        };
        let reason = format!("{name} '{}' cannot be read: {why}", path.display());
        self.refuse(node.at, reason, "check the path, and who may read it");
        None
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
