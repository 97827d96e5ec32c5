//! Two hosts on this machine for a measurement: a bus for each process, and relays between them, over TCP on loopback or by RDMA;
//! and a bare TCP connection beside them, which is the limit.

use super::Result;
use crate::daemon::cert::{self, Authority, NodeCertificate};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tbus::config::{PemFiles, Security, parse_channels};
use tbus::grm::{RelayEndpoint, Route, Transport};
use tbus::manage::Manager;
use tbus::manage_routes::RouteManager;
use tbus::{Address, Bus, Receiver, Sender};
use tbus_transport::relay::run::Clock;
use tbus_transport::relay::{Relay, Settings};
use tbus_transport::tcp_network::{TcpNetwork, probe_ucx, rdma_address};
use tbus_transport::tls::{Tls, Trust};

/// The ends of the channel, on host 0 and host 1.
const ADDRESSES: [Address; 2] = [Address(0x101), Address(0x201)];
/// Their cluster.
const CLUSTER: &str = "tbusperf";
/// Two relays on one idle machine find each other in milliseconds.
const CONNECT: Duration = Duration::from_secs(20);

/// How the relays of the two hosts meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// Where each listens.
    pub addresses: [SocketAddr; 2],
    /// How they make sure of each other.
    pub security: Security,
    /// What carries the data.
    pub transport: Transport,
}

impl Between {
    /// At addresses where nobody listens: on loopback, or for RDMA of a device.
    pub fn new(security: Security, transport: Transport) -> Result<Between> {
        let ip = match transport {
            Transport::Verbs => rdma_address()?.0,
            Transport::Ucx => {
                let ip = rdma_address()?.0;
                probe_ucx(ip).map_err(|why| format!("UCX is {why}"))?;
                ip
            }
            Transport::Tcp => LOOPBACK,
        };
        Ok(Between {
            addresses: free_ports()?.map(|port| SocketAddr::new(ip, port)),
            security,
            transport,
        })
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Makes both hosts' maps in `scratch`, for rings of `capacity` bytes.
pub fn make_hosts(scratch: &Path, capacity: u64, between: &Between) -> Result<()> {
    let text = format!(
        "<TbusGCIM><GCIMShmKey>1</GCIMShmKey><Channels><Address>0.0.1.1</Address><Address>0.0.2.1</Address>\
         <SendSize>{capacity}</SendSize><RecvSize>{capacity}</RecvSize></Channels></TbusGCIM>"
    );
    let channels =
        parse_channels(text.as_bytes(), false, u64::MAX).map_err(|e| format!("{e:?}"))?;
    let [first, second] = between.addresses;
    let transport = between.transport.name();
    let text = format!(
        "<RelayMnger><RelayShmKey>2</RelayShmKey>\
         <Relays><Addr>0.0.1.1</Addr><MConn>tcp://{first}</MConn><Transports>{transport}</Transports></Relays>\
         <Relays><Addr>0.0.2.1</Addr><MConn>tcp://{second}</MConn><Transports>{transport}</Transports></Relays></RelayMnger>"
    );
    let routes =
        tbus::config::parse_routes(text.as_bytes(), false).map_err(|e| format!("{e:?}"))?;
    for host in 0..2 {
        let base = scratch.join(format!("host{host}"));
        std::fs::create_dir(&base)?;
        Manager::create_at(base.join("tbus.1"), &channels, Duration::ZERO)?
            .apply(&channels, false)?;
        RouteManager::create_at(base.join("tbus.2"), &routes, Duration::ZERO)?.apply(&routes)?;
    }
    Ok(())
}

/// Makes what both hosts' relays need for `security`.
pub fn make_certificates(scratch: &Path, security: Security) -> Result<()> {
    if security == Security::None {
        return Ok(());
    }
    let ca = scratch.join("ca");
    cert::make_authority(&Authority {
        out: ca.clone(),
        cluster: CLUSTER.into(),
        days: 1,
    })
    .map_err(|e| e.to_string())?;
    for host in 0..2 {
        cert::make_node(&NodeCertificate {
            ca: ca.clone(),
            node: host as u32 + 1,
            out: scratch.join(format!("host{host}")),
            days: 1,
        })
        .map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn files_of(scratch: &Path, host: usize) -> PemFiles {
    let directory = scratch.join(format!("host{host}"));
    PemFiles {
        certificate: directory.join(format!("node-{}.pem", host + 1)),
        private_key: directory.join(format!("node-{}.key", host + 1)),
        authority: directory.join("ca.pem"),
    }
}

/// A port that nobody listens at, and that is not among those `given` before. Not of the range that connections take theirs
/// from: it stays free while its relay is dead, and whoever dials it meanwhile cannot meet himself.
pub fn free_port(given: &mut BTreeSet<u16>) -> Result<u16> {
    for _ in 0..1000 {
        let port = 10_000 + (tbus::random() % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && given.insert(port) {
            return Ok(port);
        }
    }
    Err("no free TCP port of 127.0.0.1 among a thousand of 10000 to 29999".into())
}

/// Two of them.
pub fn free_ports() -> Result<[u16; 2]> {
    let mut given = BTreeSet::new();
    Ok([free_port(&mut given)?, free_port(&mut given)?])
}

/// The application's two ends on a host.
pub fn attach(scratch: &Path, host: usize) -> Result<(Bus, Sender, Receiver)> {
    let bus = Bus::attach_at(scratch.join(format!("host{host}/tbus.1")))?;
    let end = bus.bind(ADDRESSES[host])?;
    let peer = ADDRESSES[1 - host];
    let (sender, receiver) = (end.sender(peer)?, end.receiver(peer)?);
    Ok((bus, sender, receiver))
}

/// A relay in this process's own loop.
pub struct Embedded {
    relay: Relay<TcpNetwork>,
    clock: Clock,
    transport: Transport,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Embedded")
    }
}

impl Embedded {
    /// The relay of `host`.
    pub fn new(scratch: &Path, bus: Bus, host: usize, between: &Between) -> Result<Embedded> {
        let endpoint = |host: usize| RelayEndpoint {
            host: between.addresses[host].ip().to_string(),
            port: between.addresses[host].port(),
        };
        let route = Route {
            address: ADDRESSES[1 - host],
            created: 0,
            endpoints: vec![endpoint(1 - host)],
            transports: vec![between.transport],
            description: String::new(),
        };
        let settings = Settings {
            node: host as u32 + 1,
            cluster: CLUSTER.into(),
            endpoint: endpoint(host).to_string(),
        };
        let address = between.addresses[host];
        let mut network = match between.security {
            Security::None => TcpNetwork::listen(address, &[])?,
            _ => {
                let trust = Trust {
                    cluster: CLUSTER.into(),
                    security: between.security,
                    allow: Vec::new(),
                };
                TcpNetwork::listen_with(address, &[], Tls::new(files_of(scratch, host), trust)?)?
            }
        };
        match between.transport {
            Transport::Verbs => drop(network.open_verbs()?),
            Transport::Ucx => drop(network.open_ucx()?),
            Transport::Tcp => {}
        }
        Ok(Embedded {
            relay: Relay::new(settings, bus, vec![route], network)?,
            clock: Clock::default(),
            transport: between.transport,
        })
    }

    /// One pass of the relay.
    #[inline]
    pub fn step(&mut self) {
        let now = self.clock.lately();
        self.relay.step(now);
    }

    /// Runs until both directions are mirrored.
    pub fn connect(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.relay.is_connected() {
            self.step();
            if begun.elapsed() > CONNECT {
                let status = self.relay.status(self.clock.now());
                return Err(
                    format!("the two relays do not find each other: {:?}", status.peers).into(),
                );
            }
        }
        // What is measured must be what is said.
        let status = self.relay.status(self.clock.now());
        match status
            .peers
            .iter()
            .all(|peer| peer.transport == Some(self.transport.name()))
        {
            true => Ok(()),
            false => Err(format!(
                "data does not go by {}: {:?}",
                self.transport.name(),
                status.peers
            )
            .into()),
        }
    }
}

/// The body of a relay process: what `tbusd` does, without its log.
pub fn run_relay(file: &Path) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    crate::daemon::run(file, &crate::daemon::Options::default()).map_err(|e| e.to_string().into())
}

/// A relay process, ended with this.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Where it answers.
    socket: PathBuf,
}

impl Daemon {
    /// Starts a relay for `host`.
    pub fn start(scratch: &Path, host: usize, between: &Between) -> Result<Daemon> {
        let file = scratch.join(format!("host{host}.toml"));
        let mut text = format!(
            "cluster = \"{CLUSTER}\"\nnode = {}\ngcim_key = 1\nrelay_key = 2\nlisten = \"{}\"\n\
             metrics = \"none\"\nsecurity = \"{}\"\n",
            host + 1,
            between.addresses[host],
            between.security.name()
        );
        if between.security != Security::None {
            let files = files_of(scratch, host);
            text += &format!(
                "certificate = {:?}\nprivate_key = {:?}\nauthority = {:?}\n",
                files.certificate, files.private_key, files.authority
            );
        }
        std::fs::write(&file, text)?;
        // This executable knows how to be one, so that it needs no other.
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("relay")
            .arg(&file)
            .env("TBUS_SHM_DIR", scratch.join(format!("host{host}")));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let socket = scratch.join(format!("host{host}/tbus.1/tbusd-{}", host + 1));
        Ok(Daemon { child, socket })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What its data goes by now; `None` while it is not connected.
    pub fn transport(&self) -> Result<Option<String>> {
        let status = crate::daemon::status::ask_at(&self.socket, "status", "")?;
        Ok(status["peers"][0]["transport"].as_str().map(str::to_owned))
    }

    /// Processor time that it has taken so far.
    pub fn processor_time(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.id().cast_signed()))?;
        Ok(clock.now()?.into())
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A bare TCP connection between the two processes, polled as the relays poll theirs.
#[derive(Debug)]
pub enum RawTcp {
    /// The first process's side, before it is needed.
    Listening(TcpListener),
    /// Either side.
    Connected(TcpStream),
}

impl RawTcp {
    /// The first process's side, and where the second one connects.
    pub fn listen() -> Result<(RawTcp, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        Ok((RawTcp::Listening(listener), address))
    }

    /// The second process's side.
    pub fn connect(address: &str) -> Result<RawTcp> {
        Self::ready(TcpStream::connect(address)?)
    }

    fn ready(stream: TcpStream) -> Result<RawTcp> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(RawTcp::Connected(stream))
    }

    fn stream(&mut self) -> Result<&mut TcpStream> {
        if let RawTcp::Listening(listener) = self {
            let (stream, _) = listener.accept()?;
            *self = Self::ready(stream)?;
        }
        match self {
            RawTcp::Connected(stream) => Ok(stream),
            RawTcp::Listening(_) => Err("the bare connection is not there".into()),
        }
    }

    /// Writes all of `bytes`, polling.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        let stream = self.stream()?;
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Fills `bytes`, polling.
    pub fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        let stream = self.stream()?;
        let mut done = 0;
        while done < bytes.len() {
            match stream.read(&mut bytes[done..]) {
                Ok(0) => return Err("the bare connection was closed".into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
