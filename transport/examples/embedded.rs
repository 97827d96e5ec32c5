//! An application with a relay in its own loop: no second process, and nothing between ring and socket.
//!
//! Run it: it makes two hosts on this machine, each with a bus of its own, starts itself again as the second one, and
//! sends messages there and back. On real hosts, `tbusmgr` and `trelaymgr` write the two maps.
//!
//!     cargo run --release -p tbus-transport --example embedded [messages]

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tbus::config::parse_channels;
use tbus::grm::{RelayEndpoint, Route, Transport};
use tbus::manage::Manager;
use tbus::{Address, Bus, Receiver, Sender, TryRecvError};
use tbus_transport::relay::run::Clock;
use tbus_transport::relay::{Relay, Settings};
use tbus_transport::tcp_network::TcpNetwork;

const CHANNELS: &str = "<TbusGCIM><GCIMShmKey>1</GCIMShmKey><Channels><Address>0.0.1.1</Address>\
    <Address>0.0.2.1</Address><SendSize>1048576</SendSize><RecvSize>1048576</RecvSize></Channels></TbusGCIM>";
const ADDRESSES: [Address; 2] = [Address(0x101), Address(0x201)];

/// One host: an application's ends of a channel, and the relay that takes it to the other host.
struct Host {
    sender: Sender,
    receiver: Receiver,
    relay: Relay<TcpNetwork>,
    clock: Clock,
}

impl Host {
    /// `number` is 0 or 1; `ports` are the relays'.
    fn new(directory: &Path, number: usize, ports: [u16; 2]) -> Result<Host, Box<dyn Error>> {
        let bus = Bus::attach_at(directory.join(number.to_string()))?;
        let endpoint = |host: usize| RelayEndpoint {
            host: "127.0.0.1".into(),
            port: ports[host],
        };
        let route = Route {
            address: ADDRESSES[1 - number],
            created: 0,
            endpoints: vec![endpoint(1 - number)],
            transports: vec![Transport::Tcp],
            description: String::new(),
        };
        let settings = Settings {
            node: number as u32 + 1,
            cluster: "example".into(),
            endpoint: endpoint(number).to_string(),
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], ports[number]));
        let relay = Relay::new(
            settings,
            bus.clone(),
            vec![route],
            TcpNetwork::listen(listen, &[])?,
        )?;
        let end = bus.bind(ADDRESSES[number])?;
        let (sender, receiver) = (
            end.sender(ADDRESSES[1 - number])?,
            end.receiver(ADDRESSES[1 - number])?,
        );
        Ok(Host {
            sender,
            receiver,
            relay,
            clock: Clock::default(),
        })
    }

    /// One turn of the application's loop: the relay's work is a part of it.
    fn step(&mut self) {
        let now = self.clock.lately();
        self.relay.step(now);
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Box<dyn Error>> {
        loop {
            match self.receiver.try_recv(buffer) {
                Err(TryRecvError::Empty) => self.step(),
                result => return Ok(result?),
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), Box<dyn Error>> {
        self.sender.try_send(message)?;
        self.step(); // it goes out at once
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let mut buffer = [0; 64];
    if let [_, word, directory, first, second] = &arguments[..]
        && word == "second"
    {
        let mut host = Host::new(Path::new(directory), 1, [first.parse()?, second.parse()?])?;
        loop {
            let length = host.receive(&mut buffer)?;
            host.send(&buffer[..length])?;
            if length == 0 {
                // The last answer must leave this process before it ends.
                let end = Instant::now() + Duration::from_millis(200);
                while Instant::now() < end {
                    host.step();
                }
                return Ok(());
            }
        }
    }
    let messages: usize = arguments.get(1).map_or(Ok(100_000), |text| text.parse())?;
    let directory = std::env::temp_dir().join(format!("tbus-embedded-{}", std::process::id()));
    let config = parse_channels(CHANNELS.as_bytes(), false, u64::MAX)
        .map_err(|problems| format!("{problems:?}"))?;
    std::fs::create_dir(&directory)?;
    for number in ["0", "1"] {
        Manager::create_at(directory.join(number), &config, Duration::ZERO)?
            .apply(&config, false)?;
    }
    // Two ports that are free.
    let free = || -> std::io::Result<_> { std::net::TcpListener::bind("127.0.0.1:0") };
    let (a, b) = (free()?, free()?);
    let ports = [a.local_addr()?.port(), b.local_addr()?.port()];
    drop((a, b));
    let mut child = Command::new(std::env::current_exe()?)
        .arg("second")
        .arg(&directory)
        .args(ports.map(|port| port.to_string()))
        .spawn()?;
    let mut host = Host::new(&directory, 0, ports)?;
    let mut times = Vec::new();
    for number in 0..messages {
        let begun = Instant::now();
        host.send(&(number as u64).to_le_bytes().repeat(8))?;
        host.receive(&mut buffer)?;
        assert_eq!(buffer[..8], (number as u64).to_le_bytes());
        times.push(begun.elapsed());
    }
    host.send(&[])?;
    host.receive(&mut buffer)?;
    times.sort();
    if let (Some(median), Some(rare)) = (
        times.get(times.len() / 2),
        times.get(times.len() * 99 / 100),
    ) {
        println!("{messages} messages of 64 bytes there and back: p50 {median:?}, p99 {rare:?}");
    }
    child.wait()?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
