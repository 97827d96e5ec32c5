//! `tbusd`: the relay as a daemon.

mod alarms;
pub mod cert;
pub mod cli;
mod http;
mod metrics;
mod reload;
mod snapshot;
pub(crate) mod status;
mod switch;
mod systemd;

use crate::command::{Failure, Result};
use alarms::Limits;
use http::Server;
use reload::Reload;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use snapshot::{Answers, Asker, More};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use switch::Granter;
use systemd::ServiceManager;
use tbus::config::{RelayConfig, Security, read_relay};
use tbus::grm::{Grm, RelayEndpoint};
use tbus::{Bus, Directory};
use tbus_transport::relay::drain::Remainder;
use tbus_transport::relay::run::{Clock, DEFAULT_SPIN, Next};
use tbus_transport::relay::{Relay, Settings};
use tbus_transport::tcp_network::TcpNetwork;
use tbus_transport::tls::{Read, Tls, Trust};
use tracing::{info, warn};

pub use status::{ask, switch};
pub use switch::Wish;

/// What the command line adds to the file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How long to poll after the last thing that happened; `None`: a little.
    pub spin: Option<Duration>,
}

/// Reads the file and opens what it names, without taking anything. Returns what to print.
pub fn check(file: &Path) -> Result<String> {
    let config = read_relay(file)?;
    let tls = tls(file, &config)?;
    let (bus, grm) = open(&config)?;
    let channels = bus.gcim().snapshot()?.channels.len();
    let routes = grm.snapshot()?.routes.len();
    // Whether the port is free shows only now; it is given back at once.
    let port = match std::net::TcpListener::bind(config.listen) {
        Ok(_) => "is free".to_string(),
        Err(e) => format!("is not free now ({e}); a running relay has it, or another program"),
    };
    let certificate = tls.map(|tls| describe(&config, &tls) + "\n");
    Ok(format!(
        "{}: cluster {}, node {}; {channels} channel(s) of bus {}, {routes} route(s) of {}; {} {port}\n{}",
        file.display(),
        config.cluster,
        config.node,
        config.gcim_key,
        config.relay_key,
        config.listen,
        certificate.unwrap_or_default()
    ))
}

fn open(config: &RelayConfig) -> Result<(Bus, Grm)> {
    Ok((
        Bus::attach(config.gcim_key)?,
        Grm::attach(config.relay_key)?,
    ))
}

/// What the file says about security must be able to work: with TLS its files, without it an address of this host alone.
fn security(file: &Path, config: &RelayConfig) -> Result<Option<(Read, Trust)>> {
    let refuse = |what| Failure::Asked(format!("{}: {what}", file.display()));
    if let Some(pem) = config
        .pem
        .as_ref()
        .filter(|_| config.security != Security::None)
    {
        let trust = Trust {
            cluster: config.cluster.clone(),
            security: config.security,
            allow: config.allow.clone(),
        };
        let read = Read::new(pem.clone()).map_err(refuse)?;
        return Ok(Some((read, trust)));
    }
    match config.listen.ip().is_loopback() {
        true => Ok(None),
        false => Err(refuse(format!(
            "listen: {} can be reached from other hosts, and security 'none' must not be; listen on 127.0.0.1, or let security \
             be encrypt",
            config.listen
        ))),
    }
}

fn tls(file: &Path, config: &RelayConfig) -> Result<Option<Arc<Tls>>> {
    let secured = security(file, config)?;
    Ok(secured.map(|(read, trust)| Arc::new(Tls::with(read, trust))))
}

/// What to say about the certificate.
fn describe(config: &RelayConfig, tls: &Tls) -> String {
    let credentials = tls.credentials();
    let names = credentials.names.join(", ");
    let mut text = format!(
        "certificate for {names}, until {}",
        tbus_transport::tls::date(credentials.until)
    );
    let usual = tbus_transport::tls::name_of(config.node, &config.cluster);
    if !credentials.names.contains(&usual.to_lowercase()) {
        text += &format!(
            "; it is not for {usual}, so the other relays need in [[allow]], for node {}: name = \"{}\"",
            config.node, credentials.names[0]
        );
    }
    if let Some(warning) = tls.warning() {
        text += &format!("\nwarning: {warning}");
    }
    text
}

/// Where a relay answers about itself.
fn socket_path(node: u32, gcim_key: u32) -> PathBuf {
    Directory::path_for_key(gcim_key).join(format!("tbusd-{node}"))
}

/// The endpoint that other hosts' routes name: a local route's, or the one listened at.
fn endpoint(address: SocketAddr) -> RelayEndpoint {
    RelayEndpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

/// Signals that have come.
struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> Result<Signals> {
        let flag = |signals: &[i32]| -> Result<_> {
            let flag = Arc::new(AtomicBool::new(false));
            for signal in signals {
                signal_hook::flag::register(*signal, flag.clone())
                    .map_err(|e| Failure::Other(format!("cannot wait for signal {signal}: {e}")))?;
            }
            Ok(flag)
        };
        Ok(Signals {
            stop: flag(&[SIGTERM, SIGINT])?,
            reload: flag(&[SIGHUP])?,
        })
    }

    fn came(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Relaxed)
    }
}

/// A relay's surroundings, while it runs.
struct Running {
    file: PathBuf,
    /// What holds: the file as it was read last, but for what needs a restart.
    config: RelayConfig,
    tls: Option<Arc<Tls>>,
    signals: Signals,
    service: ServiceManager,
    asker: Asker,
    answers: Answers,
    granter: Granter,
    /// Or why they are not served.
    metrics: std::result::Result<Option<Server>, String>,
    last_reload: Option<Reload>,
    /// When it ends at the latest.
    ending: Option<u64>,
}

impl Running {
    /// What is done besides the relay's work, between two passes of it.
    fn attend(&mut self, relay: &mut Relay<TcpNetwork>, now: u64) -> Next {
        self.service.attend(relay, now);
        if Signals::came(&self.signals.reload) && self.ending.is_none() {
            self.service.reloading();
            self.reload(relay, now);
            self.service.reloaded();
        }
        if Signals::came(&self.signals.stop) {
            if self.ending.is_some() {
                warn!("a second signal: the relay ends at once");
                return Next::End;
            }
            self.service.stopping();
            relay.drain();
            self.ending = Some(now + self.config.drain.as_nanos() as u64);
            info!(
                "a signal: the relay ends when its peers have what is in the rings, or after {} s",
                self.config.drain.as_secs()
            );
        }
        if let Some(ending) = self.ending
            && (relay.is_drained() || now >= ending)
        {
            return Next::End;
        }
        self.granter.attend(relay, now);
        let (config, tls, reload, metrics) =
            (&self.config, &self.tls, &self.last_reload, &self.metrics);
        let more = || More {
            limits: Limits {
                full: config.alarm_full,
                age: config.alarm_age,
            },
            reload: reload.clone(),
            certificates: tls.as_ref().and_then(|tls| tls.last_reload()),
            until: tls.as_ref().map(|tls| tls.credentials().until),
            metrics: match metrics {
                Ok(None) => Ok("none".into()),
                Ok(Some(server)) => Ok(format!("http://{}/metrics", server.address())),
                Err(why) => Err(why.clone()),
            },
        };
        match self.answers.attend(relay, now, more) {
            true => Next::Hurry,
            false => Next::GoOn,
        }
    }
}

/// Lines about what is left when a relay ends.
const LINES: usize = 100;

/// Says what the peers have not got.
fn tell_remainders(relay: &Relay<TcpNetwork>) {
    let left = relay.remainders();
    for Remainder {
        channel,
        peer,
        messages,
        bytes,
    } in left.iter().take(LINES)
    {
        let messages = messages.map_or("an unknown number of".into(), |n| n.to_string());
        warn!(
            "{channel}: {messages} messages ({bytes} bytes) are not acknowledged by {peer}; they stay in the ring, and the next \
             relay sends them"
        );
    }
    if left.len() > LINES {
        let more = left.len() - LINES;
        warn!(
            "and {more} more channels have messages that are not acknowledged; tbusmgr --see-all lists the rings"
        );
    }
}

/// Runs the relay until a signal ends it.
pub fn run(file: &Path, options: &Options) -> Result<()> {
    let signals = Signals::register()?;
    let config = read_relay(file)?;
    let tls = tls(file, &config)?;
    let (bus, grm) = open(&config)?;
    if let Some(tls) = &tls {
        info!("{}", describe(&config, tls));
    }
    let mut network = listen(&config, tls.clone())?;
    let listen = network.address();
    let settings = Settings {
        node: config.node,
        cluster: config.cluster.clone(),
        // Who listens everywhere is where its own routes say.
        endpoint: match listen.ip().is_unspecified() {
            true => String::new(),
            false => endpoint(listen).to_string(),
        },
    };
    let (asker, answers) = snapshot::channel();
    let socket = socket_path(config.node, config.gcim_key);
    let (wishes, granter) = switch::channel();
    status::answer(&socket, asker.clone(), wishes)?;
    open_verbs(&mut network);
    let mut relay = Relay::new(settings, bus, grm, network)?;
    relay.allow(config.allow.iter().map(|peer| peer.node).collect());
    relay.hold_down(hold_down(&config));
    info!(
        node = config.node,
        cluster = %config.cluster,
        %listen,
        bus = config.gcim_key,
        routes = config.relay_key,
        security = config.security.name(),
        "tbusd {} begins",
        env!("CARGO_PKG_VERSION")
    );
    let mut running = Running {
        file: file.into(),
        metrics: http::begin(config.metrics, &asker),
        config,
        tls,
        signals,
        service: ServiceManager::new(),
        asker,
        answers,
        granter,
        last_reload: None,
        ending: None,
    };
    let spin = options.spin.unwrap_or(DEFAULT_SPIN);
    relay.run(Clock::default(), spin, |relay, now| {
        running.attend(relay, now)
    });
    tell_remainders(&relay);
    relay.end();
    let _ = std::fs::remove_file(socket);
    info!("ended by a signal; what is in the rings stays there");
    Ok(())
}

/// As the relay wants it.
fn hold_down(config: &RelayConfig) -> std::ops::Range<u64> {
    let [first, longest] = [config.hold_down, config.hold_down_max].map(|d| d.as_nanos() as u64);
    first..longest
}

fn listen(config: &RelayConfig, tls: Option<Arc<Tls>>) -> Result<TcpNetwork> {
    let network = match tls {
        None => TcpNetwork::listen(config.listen, &[]),
        Some(tls) => TcpNetwork::listen_with(config.listen, &[], tls),
    };
    network.map_err(|e| {
        let text = format!(
            "cannot listen at {}: {e}; is a relay running already?",
            config.listen
        );
        match e.kind() {
            ErrorKind::AddrInUse => Failure::Busy(text),
            _ => Failure::Other(text),
        }
    })
}

/// RDMA, if there is any. TCP serves without.
fn open_verbs(network: &mut TcpNetwork) {
    match network.open_verbs() {
        Ok(devices) => info!(devices = devices.join(", "), "RDMA is offered"),
        Err(why) => info!("RDMA is {why}"),
    }
}
