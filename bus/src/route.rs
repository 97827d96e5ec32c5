//! What routes are made of: where a relay is reached, and over what.

use core::fmt;

/// Endpoints that a route can have.
pub const MAX_ENDPOINTS: usize = 4;
/// The longest host name of an endpoint, bytes; DNS allows 253.
pub const MAX_HOST: usize = 255;

/// Where a relay is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayEndpoint {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl RelayEndpoint {
    /// True if the port is not 0 and the host has 1 to [`MAX_HOST`] bytes, all of them letters, digits or `-._:%`.
    pub fn is_plausible(&self) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        self.port != 0 && (1..=MAX_HOST).contains(&self.host.len()) && self.host.chars().all(plain)
    }
}

impl fmt::Display for RelayEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "tcp://[{}]:{}", self.host, self.port),
            false => write!(f, "tcp://{}:{}", self.host, self.port),
        }
    }
}

/// A transport that a route may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RDMA writes through libibverbs.
    Verbs,
    /// UCX; only where listed, since it grants peers wider rights.
    Ucx,
    /// TCP.
    Tcp,
}

impl Transport {
    /// All that there are. Their places here are their numbers in the map of routes, less one.
    pub const ALL: [Transport; 3] = [Transport::Verbs, Transport::Ucx, Transport::Tcp];

    /// "verbs", "ucx" or "tcp".
    pub fn name(self) -> &'static str {
        match self {
            Transport::Verbs => "verbs",
            Transport::Ucx => "ucx",
            Transport::Tcp => "tcp",
        }
    }
}
