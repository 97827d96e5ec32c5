//! The host that is lied to: a bus, an application's ends of its channel, and the relay.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tbus::config::parse_channels;
use tbus::grm::{RelayEndpoint, Route, Transport};
use tbus::manage::Manager;
use tbus::{Address, Bus, Receiver, Sender, TryRecvError, TrySendError};
use tbus_transport::link::AnyLink;
use tbus_transport::network::Network;
use tbus_transport::relay::{Relay, Settings};
use tbus_transport::tcp_network::{Arrived, TcpControl, TcpNetwork};
use tbus_transport::wire::Token;

/// Of both directions. The smallest, so that rings get full.
pub const CAPACITY: u64 = 4096;
/// The channel: the liar's end and the application's.
pub const ENDS: [Address; 2] = [Address(0x101), Address(0x201)];
pub const CLUSTER: &str = "fuzz";
/// Where the routes say that the liar is. Nobody answers there: he is the one who dials.
pub const LIAR: &str = "tcp://127.0.0.1:1";

const CHANNELS: &str = "<TbusGCIM><GCIMShmKey>1</GCIMShmKey><Channels><Address>0.0.1.1</Address>\
    <Address>0.0.2.1</Address><SendSize>4096</SendSize><RecvSize>4096</RecvSize></Channels></TbusGCIM>";
/// A mirror in each direction, and what is left of the generation before.
const MAX_RINGS: usize = 8;
const MILLISECOND: u64 = 1_000_000;

/// TCP as it is, but for two things: an OFFER leads to no other port than the liar's, since those are other people's; and what
/// is random is the same for each program, so that an input does the same again.
pub struct Loopback {
    tcp: TcpNetwork,
    liar: u16,
    random: u64,
}

impl Network for Loopback {
    type Control = TcpControl;
    type Link = AnyLink;
    type Arrival = Arrived;

    fn random(&mut self) -> u64 {
        // Any two are different, which is all that honest relays need of it.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random ^ self.random >> 29
    }

    fn is_local(&self, endpoint: &RelayEndpoint) -> bool {
        self.tcp.is_local(endpoint)
    }

    fn dial(&mut self, endpoint: &RelayEndpoint) -> TcpControl {
        self.tcp.dial(endpoint)
    }

    fn accept(&mut self) -> Option<TcpControl> {
        self.tcp.accept()
    }

    fn connect_link(
        &mut self,
        control: &TcpControl,
        transport: u8,
        _port: u16,
        token: Token,
    ) -> Result<Option<AnyLink>, String> {
        self.tcp.connect_link(control, transport, self.liar, token)
    }

    fn welcome(&mut self, link: Arrived) -> Result<AnyLink, String> {
        self.tcp.welcome(link)
    }

    fn accept_link(&mut self) -> Option<(Token, Arrived)> {
        self.tcp.accept_link()
    }
}

pub struct Host {
    bus: Bus,
    sender: Sender,
    receiver: Receiver,
    pub relay: Relay<Loopback>,
    /// Where links that the relay makes arrive.
    pub listener: TcpListener,
    now: u64,
}

/// A directory that goes when this process has ended, however it does: a fuzzer ends without unwinding.
fn scratch() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let path = base.join(format!("tbus-fuzz-{}", std::process::id()));
    let mut remover = Command::new("sh");
    remover
        .args(["-c", "trap '' INT TERM; cat; rm -rf \"$0\""])
        .arg(&path);
    // Its end of the pipe is never closed by hand: the kernel does that.
    let pipe = (Stdio::piped(), Stdio::null(), Stdio::null());
    let child = remover.stdin(pipe.0).stdout(pipe.1).stderr(pipe.2).spawn();
    std::mem::forget(child.expect("there is a shell"));
    path
}

fn relay(bus: &Bus, liar: u16) -> Relay<Loopback> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let tcp = TcpNetwork::listen(any, &[]).expect("loopback has a free port");
    let route = Route {
        address: ENDS[0],
        created: 0,
        endpoints: vec![RelayEndpoint {
            host: "127.0.0.1".into(),
            port: 1,
        }],
        transports: vec![Transport::Tcp],
        description: String::new(),
    };
    let settings = Settings {
        node: 2,
        cluster: CLUSTER.into(),
        endpoint: format!("tcp://{}", tcp.address()),
    };
    let network = Loopback {
        tcp,
        liar,
        random: 1,
    };
    Relay::new(settings, bus.clone(), vec![route], network).expect("the bus can be served")
}

impl Host {
    pub fn new() -> Host {
        let directory = scratch();
        let config = parse_channels(CHANNELS.as_bytes(), false, u64::MAX).expect("channels");
        let manager = Manager::create_at(&directory, &config, Duration::ZERO).expect("a new bus");
        manager.apply(&config, false).expect("room for two rings");
        drop(manager);
        let bus = Bus::attach_at(&directory).expect("just made");
        let end = bus.bind(ENDS[1]).expect("an address of the channel");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        listener.set_nonblocking(true).expect("it is a socket");
        let liar = listener.local_addr().expect("it is bound").port();
        let mut host = Host {
            relay: relay(&bus, liar),
            sender: end.sender(ENDS[0]).expect("nobody else sends"),
            receiver: end.receiver(ENDS[0]).expect("nobody else receives"),
            bus,
            listener,
            now: 0,
        };
        for _ in 0..10 {
            host.pass(100 * MILLISECOND); // the rings become a source and, later, a mirror
            host.drain();
        }
        host
    }

    /// Another relay takes over, as after a restart: one that has given a ring up does not take it up again.
    pub fn restart(&mut self) {
        let liar = self.listener.local_addr().expect("it is bound").port();
        self.relay = relay(&self.bus, liar); // takes the roles of the rings with its first step
        self.pass(100 * MILLISECOND);
    }

    /// A program begins: what it does is not to depend on how many were before.
    pub fn begin(&mut self) {
        self.relay.network().random = 1;
    }

    pub fn address(&mut self) -> SocketAddr {
        self.relay.network().tcp.address()
    }

    /// One pass of the relay, long enough after the last one for it to look at everything.
    pub fn step(&mut self) {
        self.pass(MILLISECOND / 10);
    }

    /// One pass of the relay, some time later.
    pub fn pass(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        self.relay.step(self.now);
    }

    /// The application sends a message.
    pub fn send(&mut self, length: usize, byte: u8) {
        match self.sender.try_send(&vec![byte; length]) {
            Ok(()) | Err(TrySendError::Full | TrySendError::TooLong { .. }) => {}
            Err(error) => panic!("the application cannot send: {error}"),
        }
    }

    /// The application receives a message. The relay has looked at the records before: whatever the payload is, this is a
    /// message. True if there was one.
    pub fn receive(&mut self) -> bool {
        let mut buffer = [0; CAPACITY as usize / 2];
        match self.receiver.try_recv(&mut buffer) {
            Ok(_) => true,
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::BadCrc { .. }) => {
                self.receiver.peek().expect("it is still there").release();
                true
            }
            Err(error) => panic!("the application cannot receive: {error}"),
        }
    }

    /// It receives all there is.
    pub fn drain(&mut self) {
        while self.receive() {}
    }

    /// Nothing is left of a program but what is bounded.
    pub fn check(&mut self) {
        self.drain();
        self.pass(1_100 * MILLISECOND); // generations that are received are removed once a second
        self.step();
        let status = self.relay.status(self.now);
        let files = self
            .bus
            .directory()
            .rings()
            .expect("the bus is there")
            .len();
        assert!(
            status.peers.len() == 1 && status.rings.len() <= 2 && files <= MAX_RINGS,
            "{files} files of rings, and {status:#?}"
        );
    }
}
