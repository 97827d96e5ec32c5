//! Two hosts on one machine: two buses, a relay for each, and the same channels on both.

#![allow(dead_code)]

pub mod pem;

use pem::Authority;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tbus::config::{ChannelsConfig, PemFiles, Security, parse_channels};
use tbus::grm::{RelayEndpoint, Route, Transport};
use tbus::manage::Manager;
use tbus::{Address, Bus, Receiver, Sender};
use tbus_transport::network::Network as _;
use tbus_transport::relay::run::Clock;
use tbus_transport::relay::{Relay, Settings};
use tbus_transport::tcp_network::TcpNetwork;
use tbus_transport::tls::{Tls, Trust};

pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let path = base.join(format!("tbus-two-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Channels 0.0.1.n – 0.0.2.n.
pub fn channels(count: u32, size: u64, retention: &str) -> ChannelsConfig {
    let channels: String = (1..=count)
        .map(|n| {
            let (high, low) = (n >> 8, n & 255);
            format!(
                "<Channels><Address>1.0.{high}.{low}</Address><Address>2.0.{high}.{low}</Address><SendSize>{size}</SendSize>\
                 <RecvSize>{size}</RecvSize><Retention>{retention}</Retention></Channels>"
            )
        })
        .collect();
    let text = format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>{channels}</TbusGCIM>");
    parse_channels(text.as_bytes(), false, u64::MAX).unwrap()
}

/// Address n of host 1 or 2.
pub fn address(host: u32, n: u32) -> Address {
    Address(host << 24 | n)
}

pub fn endpoint(address: SocketAddr) -> RelayEndpoint {
    RelayEndpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

/// Everything of `host` is reached at `at`.
pub fn routes(host: u32, count: u32, at: SocketAddr, transports: &[Transport]) -> Vec<Route> {
    (1..=count)
        .map(|n| Route {
            address: address(host, n),
            created: 0,
            endpoints: vec![endpoint(at)],
            transports: transports.to_vec(),
            description: String::new(),
        })
        .collect()
}

pub type TcpRelay = Relay<TcpNetwork>;

/// That of the device, as ci/rxe names it.
pub fn rdma_address() -> IpAddr {
    let address = std::env::var("RDMA_ADDRESS").expect("RDMA_ADDRESS: run by ci/rxe");
    address.parse().expect("RDMA_ADDRESS is an IP address")
}

pub struct Hosts {
    pub scratch: Scratch,
    pub buses: Vec<Bus>,
    pub addresses: Vec<SocketAddr>,
    pub relays: Vec<Option<TcpRelay>>,
    pub count: u32,
    pub size: u64,
    pub retention: String,
    pub clock: Clock,
    /// What each host's routes name. With RDMA among them the relays show each other certificates, for its addresses can be
    /// reached from elsewhere.
    pub transports: [Vec<Transport>; 2],
    pub certificates: Option<[PemFiles; 2]>,
}

impl Hosts {
    pub fn new(name: &str, count: u32, size: u64) -> Hosts {
        Hosts::with(name, count, size, "delivered")
    }

    pub fn with(name: &str, count: u32, size: u64, retention: &str) -> Hosts {
        let tcp = || vec![Transport::Tcp];
        Hosts::over(name, count, size, retention, [tcp(), tcp()])
    }

    pub fn over(
        name: &str,
        count: u32,
        size: u64,
        retention: &str,
        transports: [Vec<Transport>; 2],
    ) -> Hosts {
        let scratch = Scratch::new(name);
        let by_rdma = transports.iter().flatten().any(|t| *t != Transport::Tcp);
        let certificates = by_rdma.then(|| {
            let authority = Authority::new(&scratch.0);
            [1, 2].map(|node| authority.files(node))
        });
        let ip = match by_rdma {
            true => rdma_address(),
            false => IpAddr::from([127, 0, 0, 1]),
        };
        let config = channels(count, size, retention);
        let mut buses = Vec::new();
        let mut addresses = Vec::new();
        for host in 1..=2 {
            let path = scratch.0.join(format!("{host}"));
            let manager = Manager::create_at(&path, &config, Duration::from_secs(10)).unwrap();
            manager.apply(&config, false).unwrap();
            buses.push(Bus::attach_at(&path).unwrap());
            // A port that is free now, and stays this host's: relays come and go.
            let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
            addresses.push(listener.local_addr().unwrap());
        }
        let mut hosts = Hosts {
            scratch,
            buses,
            addresses,
            relays: vec![None, None],
            count,
            size,
            retention: retention.into(),
            clock: Clock::default(),
            transports,
            certificates,
        };
        hosts.start(0);
        hosts.start(1);
        hosts
    }

    pub fn settings(&self, host: usize) -> Settings {
        Settings {
            node: host as u32 + 1,
            cluster: "test".into(),
            endpoint: endpoint(self.addresses[host]).to_string(),
        }
    }

    pub fn start(&mut self, host: usize) {
        self.start_with(host, self.settings(host));
    }

    pub fn start_with(&mut self, host: usize, settings: Settings) {
        let mut network = self.network(host);
        if self.transports.concat().contains(&Transport::Ucx) {
            // Where it is emulated it takes longer than a relay waits.
            network.open_ucx().unwrap();
        }
        self.start_on(host, settings, network);
    }

    /// With UCX, of which a relay learns when it has connections already.
    pub fn start_late(&mut self, host: usize) {
        let mut network = self.network(host);
        let _ = network.dial(&endpoint(self.addresses[1 - host]));
        self.start_on(host, self.settings(host), network);
    }

    fn start_on(&mut self, host: usize, settings: Settings, network: TcpNetwork) {
        let routes = routes(
            2 - host as u32,
            self.count,
            self.addresses[1 - host],
            &self.transports[host],
        );
        let relay = Relay::new(settings, self.buses[host].clone(), routes, network);
        self.relays[host] = Some(relay.unwrap());
    }

    fn network(&self, host: usize) -> TcpNetwork {
        let Some(certificates) = &self.certificates else {
            return TcpNetwork::listen(self.addresses[host], &[]).unwrap();
        };
        let trust = Trust {
            cluster: "test".into(),
            security: Security::Authenticate,
            allow: Vec::new(),
        };
        let tls = Tls::new(certificates[host].clone(), trust).unwrap();
        let mut network = TcpNetwork::listen_with(self.addresses[host], &[], tls).unwrap();
        if self.transports.concat().contains(&Transport::Verbs) {
            network.open_verbs().unwrap();
        }
        network
    }

    /// What a reboot does: the host's memory is lost, and its channels are made anew.
    pub fn forget(&mut self, host: usize) {
        let path = self.scratch.0.join(format!("{}", host + 1));
        std::fs::remove_dir_all(&path).unwrap();
        let config = channels(self.count, self.size, &self.retention);
        let manager = Manager::create_at(&path, &config, Duration::from_secs(10)).unwrap();
        manager.apply(&config, false).unwrap();
        self.buses[host] = Bus::attach_at(&path).unwrap();
    }

    /// The receiving end of channel `n` from `host`.
    pub fn receiver(&self, host: usize, n: u32) -> Receiver {
        let (here, there) = (address(host as u32 + 1, n), address(2 - host as u32, n));
        self.buses[1 - host]
            .bind(there)
            .unwrap()
            .receiver(here)
            .unwrap()
    }

    pub fn stop(&mut self, host: usize) {
        self.relays[host] = None;
    }

    /// Relays die and are started again: the first one, the second one or both, by `round`. Dropped as a kill would leave it:
    /// nothing is said to anybody.
    pub fn crash(&mut self, round: u64) {
        for host in 0..2 {
            if round % 3 != 1 - host as u64 {
                self.stop(host);
            }
        }
        for host in 0..2 {
            if self.relays[host].is_none() {
                self.start(host);
            }
        }
    }

    /// One pass of both relays.
    pub fn step(&mut self) {
        let now = self.clock.now();
        for relay in self.relays.iter_mut().flatten() {
            relay.step(now);
        }
    }

    /// Steps until `done`, for a while.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Hosts) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            self.step();
            if begun.elapsed() > Duration::from_secs(20) {
                let now = self.clock.now();
                for relay in self.relays.iter().flatten() {
                    eprintln!("{:#?}", relay.status(now));
                }
                panic!("not within 20 s: {what}");
            }
        }
    }

    pub fn connect(&mut self) {
        self.until("both relays connected", |hosts| {
            hosts
                .relays
                .iter()
                .flatten()
                .all(|relay| relay.is_connected())
        });
    }

    /// Sender and receiver of channel `n` from `host` (0 or 1) to the other one.
    pub fn pair(&self, host: usize, n: u32) -> (Sender, Receiver) {
        let (here, there) = (address(host as u32 + 1, n), address(2 - host as u32, n));
        let sender = self.buses[host].bind(here).unwrap().sender(there).unwrap();
        let receiver = self.buses[1 - host]
            .bind(there)
            .unwrap()
            .receiver(here)
            .unwrap();
        (sender, receiver)
    }
}
