//! `tbusd`: the relay as a daemon.

pub mod cert;
pub mod cli;
mod status;

use crate::command::{Failure, Result};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tbus::config::{RelayConfig, Security, read_relay};
use tbus::grm::{Grm, RelayEndpoint};
use tbus::{Bus, Directory};
use tbus_transport::relay::run::{Clock, DEFAULT_SPIN};
use tbus_transport::relay::{Relay, Settings};
use tbus_transport::tcp_network::TcpNetwork;
use tbus_transport::tls::{Tls, Trust};
use tracing::info;

pub use status::ask;

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
fn tls(file: &Path, config: &RelayConfig) -> Result<Option<Tls>> {
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
        return Tls::new(pem.clone(), trust).map(Some).map_err(refuse);
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
fn socket_path(config: &RelayConfig) -> PathBuf {
    Directory::path_for_key(config.gcim_key).join(format!("tbusd-{}", config.node))
}

/// The endpoint that other hosts' routes name: a local route's, or the one listened at.
fn endpoint(address: SocketAddr) -> RelayEndpoint {
    RelayEndpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

/// Runs the relay until a signal ends it.
pub fn run(file: &Path, options: &Options) -> Result<()> {
    let config = read_relay(file)?;
    let tls = tls(file, &config)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|e| Failure::Other(format!("cannot wait for signal {signal}: {e}")))?;
    }
    let (bus, grm) = open(&config)?;
    if let Some(tls) = &tls {
        info!("{}", describe(&config, tls));
    }
    let network = match tls {
        None => TcpNetwork::listen(config.listen, &[]),
        Some(tls) => TcpNetwork::listen_with(config.listen, &[], tls),
    };
    let network = network.map_err(|e| {
        let text = format!(
            "cannot listen at {}: {e}; is a relay running already?",
            config.listen
        );
        match e.kind() {
            ErrorKind::AddrInUse => Failure::Busy(text),
            _ => Failure::Other(text),
        }
    })?;
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
    let questions = status::answer(&socket_path(&config))?;
    let mut relay = Relay::new(settings, bus, grm, network)?;
    relay.allow(config.allow.iter().map(|peer| peer.node).collect());
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
    let spin = options.spin.unwrap_or(DEFAULT_SPIN);
    relay.run(Clock::default(), spin, |relay, now| {
        questions.answer_all(relay, now);
        !stop.load(Ordering::Relaxed)
    });
    relay.end();
    let _ = std::fs::remove_file(socket_path(&config));
    info!("ended by a signal; what is in the rings stays there");
    Ok(())
}
