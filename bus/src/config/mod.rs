//! Configuration files: the channels of a host (GCIM) and the routes to others (GRM), as XML or TOML.
//!
//! Reading checks everything that the file alone can say. Every refusal has row, column, reason and mend; all of
//! them are told at once, and nothing of a refused file is used.

mod relay;
mod source;

pub use relay::*;

use crate::address::{Address, Template};
pub use crate::directory::parse_key;
use crate::layout::{MAX_CAPACITY, MIN_CAPACITY};
use crate::route::{MAX_ENDPOINTS, MAX_HOST};
pub use crate::route::{RelayEndpoint, Transport};
use source::{At, Node};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Row, from 1.
    pub row: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub mend: String,
}

impl Problem {
    fn new(at: At, reason: impl Into<String>, mend: impl Into<String>) -> Problem {
        Problem {
            row: at.0,
            column: at.1,
            reason: reason.into(),
            mend: mend.into(),
        }
    }
}

/// Why a configuration file was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong in it, at least one thing, in the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (
            index,
            Problem {
                row,
                column,
                reason,
                mend,
            },
        ) in self.problems.iter().enumerate()
        {
            let separator = if index == 0 { "" } else { "\n" };
            write!(
                f,
                "{separator}{}:{row}:{column}: {reason}; {mend}",
                self.file.display()
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Until when the source keeps a record of a channel that leads to another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Retention {
    /// Until the mirror has published it.
    #[default]
    Delivered,
    /// Until it is known to be released.
    Consumed,
}

impl Retention {
    /// As the map has it.
    pub fn number(self) -> u32 {
        match self {
            Retention::Delivered => 0,
            Retention::Consumed => 1,
        }
    }

    /// The reverse; whatever else stands there is the default.
    pub fn from_number(number: u32) -> Retention {
        match number {
            1 => Retention::Consumed,
            _ => Retention::Delivered,
        }
    }

    /// "delivered" or "consumed".
    pub fn name(self) -> &'static str {
        match self {
            Retention::Delivered => "delivered",
            Retention::Consumed => "consumed",
        }
    }
}

/// A channel as configured. Sizes are seen from the first address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelConfig {
    /// Accepted and unused; 8 if not given.
    pub priority: u32,
    /// The two ends.
    pub addresses: [Address; 2],
    /// Bytes of the ring from the first to the second.
    pub send_size: u64,
    /// Bytes of the ring from the second to the first.
    pub recv_size: u64,
    /// Any text.
    pub description: String,
    /// When the source may forget.
    pub retention: Retention,
    /// Mode of the ring files, whatever the umask is; `None`: as [`crate::RingSpec::mode`] says.
    pub mode: Option<u32>,
    /// Owner of the ring files, a user's name or number.
    pub owner: Option<String>,
    /// Group of the ring files, a group's name or number.
    pub group: Option<String>,
    /// Row and column where it stands in the file.
    pub at: (u32, u32),
}

/// All channels of a host, `TbusGCIM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelsConfig {
    /// How addresses are written.
    pub template: Template,
    /// Which bus: the directory is `tbus.<key>`.
    pub key: u32,
    /// The channels, in the order of the file.
    pub channels: Vec<ChannelConfig>,
}

/// The way to an address on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The remote address.
    pub address: Address,
    /// Where its relay is reached, in order of preference; 1 to 4.
    pub endpoints: Vec<RelayEndpoint>,
    /// What may be used, in order of preference; verbs and tcp if not given.
    pub transports: Vec<Transport>,
    /// Any text.
    pub description: String,
}

/// All routes of a host, `RelayMnger`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutesConfig {
    /// How addresses are written.
    pub template: Template,
    /// Which map of routes.
    pub key: u32,
    /// The routes, in the order of the file.
    pub routes: Vec<RouteConfig>,
}

/// Reads a file of channels; TOML if its name ends so, else XML. No ring may be larger than `largest` bytes, what
/// the file system has.
pub fn read_channels(file: &Path, largest: u64) -> Result<ChannelsConfig, ConfigError> {
    read(file, |bytes| parse_channels(bytes, is_toml(file), largest))
}

/// Reads a file of routes; TOML if its name ends so, else XML.
pub fn read_routes(file: &Path) -> Result<RoutesConfig, ConfigError> {
    read(file, |bytes| parse_routes(bytes, is_toml(file)))
}

/// Reads channels from the bytes of a file; see [`read_channels`].
pub fn parse_channels(
    bytes: &[u8],
    is_toml: bool,
    largest: u64,
) -> Result<ChannelsConfig, Vec<Problem>> {
    let root = source::read(bytes, is_toml).map_err(|problem| vec![problem])?;
    Reader::default().finish(|reader| reader.channels(&root, is_toml, largest))
}

/// Reads routes from the bytes of a file; see [`read_routes`].
pub fn parse_routes(bytes: &[u8], is_toml: bool) -> Result<RoutesConfig, Vec<Problem>> {
    let root = source::read(bytes, is_toml).map_err(|problem| vec![problem])?;
    Reader::default().finish(|reader| reader.routes(&root, is_toml))
}

fn is_toml(file: &Path) -> bool {
    file.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("toml"))
}

fn read<T>(
    file: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, Vec<Problem>>,
) -> Result<T, ConfigError> {
    let refuse = |problems| ConfigError {
        file: file.into(),
        problems,
    };
    let bytes = std::fs::read(file).map_err(|error| {
        refuse(vec![Problem::new(
            (1, 1),
            format!("it cannot be read: {error}"),
            "check the name and its mode",
        )])
    })?;
    parse(&bytes).map_err(refuse)
}

/// Collects problems while it makes sense of the nodes.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
    /// What parents have already been told about, so that a missing child is not told as well.
    template: Template,
}

impl Reader {
    fn finish<T>(mut self, read: impl FnOnce(&mut Reader) -> Option<T>) -> Result<T, Vec<Problem>> {
        let result = read(&mut self);
        self.problems.sort_by_key(|p| (p.row, p.column));
        match result {
            Some(result) if self.problems.is_empty() => Ok(result),
            _ => Err(self.problems),
        }
    }

    fn refuse(&mut self, at: At, reason: impl Into<String>, mend: impl Into<String>) {
        self.problems.push(Problem::new(at, reason, mend));
    }

    fn channels(&mut self, root: &Node, is_toml: bool, largest: u64) -> Option<ChannelsConfig> {
        let mut fields = Fields::of(
            self,
            root,
            is_toml,
            "TbusGCIM",
            &["AddrTemplet", "GCIMShmKey"],
            &["Channels"],
        )?;
        self.template(&mut fields);
        let key = self.key(&mut fields, root, "GCIMShmKey");
        let mut pairs = HashMap::new();
        let mut channels = Vec::new();
        for node in fields.all("Channels") {
            let Some(channel) = self.channel(node, is_toml, largest) else {
                continue;
            };
            let [a, b] = channel.addresses;
            let shown = [a, b].map(|address| self.template.show(address));
            let [a, b] = [a.min(b), a.max(b)];
            if let Some((row, _)) = pairs.insert((a, b), node.at) {
                let reason = format!(
                    "the channel between {} and {} stands in row {row} already",
                    shown[0], shown[1]
                );
                self.refuse(node.at, reason, "remove one of the two");
            }
            channels.push(channel);
        }
        Some(ChannelsConfig {
            template: self.template,
            key: key?,
            channels,
        })
    }

    fn channel(&mut self, node: &Node, is_toml: bool, largest: u64) -> Option<ChannelConfig> {
        const SINGLE: &[&str] = &[
            "Priority",
            "SendSize",
            "RecvSize",
            "Desc",
            "Retention",
            "Mode",
            "Owner",
            "Group",
            "Memory",
        ];
        let mut fields = Fields::of(self, node, is_toml, "Channels", SINGLE, &["Address"])?;
        let addresses: Vec<_> = fields
            .all("Address")
            .map(|node| self.address(node))
            .collect();
        if addresses.len() != 2 {
            let reason = format!(
                "a channel has two addresses, this one has {}",
                addresses.len()
            );
            self.refuse(node.at, reason, "give two Address elements");
        }
        let sizes =
            ["SendSize", "RecvSize"].map(|name| self.size(&mut fields, node, name, largest));
        let priority = match fields.take("Priority") {
            Some(node) => self.number(node, 10, u32::MAX.into()),
            None => Some(8),
        };
        let retention = match fields.take("Retention") {
            Some(node) => self.choice(
                node,
                &[
                    ("delivered", Retention::Delivered),
                    ("consumed", Retention::Consumed),
                ],
            ),
            None => Some(Retention::Delivered),
        };
        if let Some(node) = fields.take("Memory") {
            self.memory(node);
        }
        let mode = fields.take("Mode").map(|node| self.mode(node));
        let text = |fields: &mut Fields<'_>, name| fields.take(name).map(|node| node.text.clone());
        let (description, owner, group) = (
            text(&mut fields, "Desc"),
            text(&mut fields, "Owner"),
            text(&mut fields, "Group"),
        );
        let addresses: [Address; 2] = addresses
            .into_iter()
            .collect::<Option<Vec<_>>>()?
            .try_into()
            .ok()?;
        if addresses[0] == addresses[1] {
            let shown = self.template.show(addresses[0]);
            self.refuse(
                node.at,
                format!("{shown} is paired with itself"),
                "give two different addresses",
            );
        }
        Some(ChannelConfig {
            priority: priority? as u32,
            addresses,
            send_size: sizes[0]?,
            recv_size: sizes[1]?,
            description: description.unwrap_or_default(),
            retention: retention?,
            mode: mode.map_or(Some(None), |mode| mode.map(Some))?,
            owner,
            group,
            at: node.at,
        })
    }

    fn routes(&mut self, root: &Node, is_toml: bool) -> Option<RoutesConfig> {
        let mut fields = Fields::of(
            self,
            root,
            is_toml,
            "RelayMnger",
            &["AddrTemplet", "RelayShmKey"],
            &["Relays"],
        )?;
        self.template(&mut fields);
        let key = self.key(&mut fields, root, "RelayShmKey");
        let mut seen = HashMap::new();
        let mut routes = Vec::new();
        for node in fields.all("Relays") {
            let Some(route) = self.route(node, is_toml) else {
                continue;
            };
            if let Some((row, _)) = seen.insert(route.address, node.at) {
                let shown = self.template.show(route.address);
                let mend = "give one route several MConn, or remove one of the two";
                self.refuse(
                    node.at,
                    format!("the route to {shown} stands in row {row} already"),
                    mend,
                );
            }
            routes.push(route);
        }
        Some(RoutesConfig {
            template: self.template,
            key: key?,
            routes,
        })
    }

    fn route(&mut self, node: &Node, is_toml: bool) -> Option<RouteConfig> {
        let mut fields = Fields::of(
            self,
            node,
            is_toml,
            "Relays",
            &["Addr", "Transports", "Desc"],
            &["MConn"],
        )?;
        let address = match fields.take("Addr") {
            Some(node) => self.address(node),
            None => self.missing(node, "Addr"),
        };
        let endpoints = self.endpoints(node, &mut fields);
        let transports = match fields.take("Transports") {
            Some(node) => self.transports(node),
            None => Some(vec![Transport::Verbs, Transport::Tcp]),
        };
        Some(RouteConfig {
            address: address?,
            endpoints: endpoints?,
            transports: transports?,
            description: fields
                .take("Desc")
                .map(|node| node.text.clone())
                .unwrap_or_default(),
        })
    }

    fn template(&mut self, fields: &mut Fields<'_>) {
        let Some(node) = fields.take("AddrTemplet") else {
            return;
        };
        match node.text.parse() {
            Ok(template) => self.template = template,
            Err(error) => self.refuse(node.at, error.to_string(), "correct AddrTemplet"),
        }
    }

    fn key(&mut self, fields: &mut Fields<'_>, parent: &Node, name: &str) -> Option<u32> {
        let Some(node) = fields.take(name) else {
            return self.missing(parent, name);
        };
        let key = parse_key(&node.text);
        if key.is_none() {
            let reason = format!("'{}' is no key", node.text);
            self.refuse(
                node.at,
                reason,
                "give a number of 32 bits, decimal or hexadecimal with 0x",
            );
        }
        key
    }

    fn address(&mut self, node: &Node) -> Option<Address> {
        match self.template.parse(&node.text) {
            Ok(address) if address.is_wildcard() => {
                let reason = format!("{} is a wildcard, which names no endpoint", node.text);
                self.refuse(
                    node.at,
                    reason,
                    "give an address that is neither all zeros nor all ones",
                );
                None
            }
            Ok(address) => Some(address),
            Err(error) => {
                // The text has its own mend.
                let text = error.to_string();
                let (reason, mend) = text.split_once("; ").unwrap_or((&text, "correct it"));
                self.refuse(node.at, reason, mend);
                None
            }
        }
    }

    fn size(
        &mut self,
        fields: &mut Fields<'_>,
        parent: &Node,
        name: &str,
        largest: u64,
    ) -> Option<u64> {
        let Some(node) = fields.take(name) else {
            return self.missing(parent, name);
        };
        let size = self.number(node, 10, u64::MAX)?;
        if size == 0 {
            self.refuse(
                node.at,
                format!("{name} is 0"),
                format!("give at least {MIN_CAPACITY} bytes"),
            );
        } else if size > MAX_CAPACITY {
            self.refuse(
                node.at,
                format!("{name} is {size} bytes"),
                format!("give at most {MAX_CAPACITY} bytes"),
            );
        } else if size > largest {
            let reason = format!("{name} is {size} bytes, the file system has {largest}");
            self.refuse(
                node.at,
                reason,
                "make it smaller, or set TBUS_SHM_DIR to a larger file system",
            );
        }
        // A ring has at least a page; smaller sizes of old files are rounded up to it, as all are to pages.
        Some(size.max(MIN_CAPACITY))
    }

    fn number(&mut self, node: &Node, radix: u32, max: u64) -> Option<u64> {
        let plain = !node.text.is_empty() && node.text.chars().all(|c| c.is_digit(radix));
        let number = plain
            .then(|| u64::from_str_radix(&node.text, radix).ok())
            .flatten()
            .filter(|n| *n <= max);
        if number.is_none() {
            let kind = if radix == 8 { "an octal" } else { "a decimal" };
            let mend = match radix {
                8 => format!("give {kind} number of at most {max:o}"),
                _ => format!("give {kind} number of at most {max}, without sign, unit or space"),
            };
            self.refuse(
                node.at,
                format!("'{}' is no value for {}", node.text, node.name),
                mend,
            );
        }
        number
    }

    /// Named files are all that there is so far; the others are refused rather than taken for them.
    fn memory(&mut self, node: &Node) {
        let (reason, mend) = match node.text.as_str() {
            "shm" => return,
            known @ ("hugetlb" | "memfd") => (
                format!("Memory {known} is not there yet"),
                "give shm, or leave the element out",
            ),
            other => (
                format!("'{other}' is no value for Memory"),
                "give shm (hugetlb and memfd are to come)",
            ),
        };
        self.refuse(node.at, reason, mend);
    }

    /// Who uses a ring writes it, and nobody but owner and group ever may.
    fn mode(&mut self, node: &Node) -> Option<u32> {
        let mode = self.number(node, 8, 0o777)? as u32;
        if mode & 0o600 == 0o600 && mode & !0o660 == 0 {
            return Some(mode);
        }
        let reason = match mode & 0o007 {
            0 => format!("Mode {mode:03o} is not for reading and writing"),
            _ => format!("Mode {mode:03o} lets everybody in"),
        };
        let mend = "give 660 for owner and group, or 600 for the owner alone; Owner and Group say who they are";
        self.refuse(node.at, reason, mend);
        None
    }

    fn choice<T: Copy>(&mut self, node: &Node, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(name, _)| *name == node.text);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.refuse(
                node.at,
                format!("'{}' is no value for {}", node.text, node.name),
                format!("give {}", names.join(" or ")),
            );
        }
        found.map(|(_, value)| *value)
    }

    fn transports(&mut self, node: &Node) -> Option<Vec<Transport>> {
        let mut transports = Vec::new();
        for word in node.text.split_whitespace() {
            let known = Transport::ALL.into_iter().find(|t| t.name() == word);
            match known {
                Some(transport) if !transports.contains(&transport) => transports.push(transport),
                Some(_) => self.refuse(
                    node.at,
                    format!("'{word}' stands twice"),
                    "name each transport once",
                ),
                None => self.refuse(
                    node.at,
                    format!("'{word}' is no transport"),
                    "name verbs, ucx or tcp, with spaces between",
                ),
            }
        }
        if transports.is_empty() && node.text.is_empty() {
            self.refuse(
                node.at,
                "Transports is empty",
                "name verbs, ucx or tcp, or leave the element out",
            );
        }
        (!transports.is_empty()).then_some(transports)
    }

    fn endpoints(&mut self, parent: &Node, fields: &mut Fields<'_>) -> Option<Vec<RelayEndpoint>> {
        let nodes: Vec<_> = fields.all("MConn").collect();
        if nodes.is_empty() {
            return self.missing(parent, "MConn");
        }
        if let Some(surplus) = nodes.get(MAX_ENDPOINTS) {
            let reason = format!("this is endpoint {} of the route", MAX_ENDPOINTS + 1);
            let mend = format!("give at most {MAX_ENDPOINTS}");
            self.refuse(surplus.at, reason, mend);
        }
        let mut endpoints = Vec::new();
        let mut good = true;
        for node in nodes {
            match self.endpoint(node) {
                Some(endpoint) if endpoints.contains(&endpoint) => {
                    let reason = format!("'{endpoint}' stands twice in one route");
                    self.refuse(node.at, reason, "remove one of the two");
                }
                Some(endpoint) => endpoints.push(endpoint),
                None => good = false,
            }
        }
        good.then_some(endpoints)
    }

    fn endpoint(&mut self, node: &Node) -> Option<RelayEndpoint> {
        let split = node
            .text
            .strip_prefix("tcp://")
            .and_then(|rest| rest.rsplit_once(':'));
        let parts = split.and_then(|(host, port)| {
            // An IPv6 address stands in brackets.
            let host = match host.strip_prefix('[') {
                Some(inner) => inner.strip_suffix(']')?,
                None => Some(host).filter(|host| !host.contains(':'))?,
            };
            let plain = port.chars().all(|c| c.is_ascii_digit());
            Some((host, port.parse().ok().filter(|_| plain)?))
        });
        if let Some((host, _)) = parts.filter(|(host, _)| host.len() > MAX_HOST) {
            let reason = format!("the host has {} bytes", host.len());
            self.refuse(node.at, reason, format!("give at most {MAX_HOST}"));
            return None;
        }
        let endpoint = parts
            .map(|(host, port)| RelayEndpoint {
                host: host.to_string(),
                port,
            })
            .filter(RelayEndpoint::is_plausible);
        if endpoint.is_none() {
            let reason = format!("'{}' is no endpoint", node.text);
            self.refuse(
                node.at,
                reason,
                "write tcp://HOST:PORT, for example tcp://10.1.44.61:1027",
            );
        }
        endpoint
    }

    fn missing<T>(&mut self, parent: &Node, name: &str) -> Option<T> {
        let of = if parent.name.is_empty() {
            "the file".to_string()
        } else {
            parent.name.clone()
        };
        self.refuse(parent.at, format!("{of} has no {name}"), "add it");
        None
    }
}

/// The children of a node, by name; unknown and repeated ones are refused when it is made.
struct Fields<'a> {
    single: HashMap<&'static str, &'a Node>,
    several: HashMap<&'static str, Vec<&'a Node>>,
}

impl<'a> Fields<'a> {
    fn of(
        reader: &mut Reader,
        parent: &'a Node,
        is_toml: bool,
        expected_name: &str,
        single: &[&'static str],
        several: &[&'static str],
    ) -> Option<Fields<'a>> {
        if parent.name != expected_name && !is_toml {
            let reason = format!("the root element is {}", parent.name);
            reader.refuse(
                parent.at,
                reason,
                format!("a file of this kind has {expected_name}"),
            );
            return None;
        }
        // TOML has the same names in snake_case.
        let is = |name: &str, child: &str| match is_toml {
            true => child.replace('_', "") == name.to_lowercase().replace('_', ""),
            false => child == name,
        };
        let mut fields = Fields {
            single: HashMap::new(),
            several: HashMap::new(),
        };
        for child in &parent.children {
            if let Some(name) = several.iter().find(|name| is(name, &child.name)) {
                fields.several.entry(name).or_default().push(child);
            } else if let Some(name) = single.iter().find(|name| is(name, &child.name)) {
                if let Some(first) = fields.single.insert(name, child) {
                    let reason = format!("{} stands in row {} already", child.name, first.at.0);
                    reader.refuse(child.at, reason, "remove one of the two");
                }
            } else {
                let known: Vec<_> = single.iter().chain(several).copied().collect();
                let reason = format!("{} is not known in {expected_name}", child.name);
                reader.refuse(child.at, reason, format!("known are {}", known.join(", ")));
            }
        }
        Some(fields)
    }

    fn take(&mut self, name: &str) -> Option<&'a Node> {
        self.single.remove(name)
    }

    fn all(&mut self, name: &str) -> impl Iterator<Item = &'a Node> + use<'a> {
        self.several.remove(name).unwrap_or_default().into_iter()
    }
}

#[cfg(test)]
mod tests;
