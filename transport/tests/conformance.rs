//! The contract of links, as `link/mod.rs` states it, tried over every link: TCP over loopback, in clear and with TLS, and both
//! characters of the simulated one. A link is added by a [`Fixture`] and a line at the end.

#[path = "common/pem.rs"]
mod pem;

use pem::Authority;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tbus::config::Security;
use tbus::grm::RelayEndpoint;
use tbus::{Address, Directory, Kind, MirrorWriter, Region, Ring, RingSpec, SourceReader};
use tbus_transport::link::{AnyLink, Event, Link};
use tbus_transport::network::{Control as _, Network};
use tbus_transport::sim::{Conditions, Random, SimNetwork, World};
use tbus_transport::tcp_network::{TcpControl, TcpNetwork};
use tbus_transport::tls::{Tls, Trust};
use tbus_transport::wire::{
    CHUNK_HEADER, Chunk, Control, Data, Frame, MAX_CHUNK, TRANSPORT_TCP, TRANSPORT_TLS,
    TRANSPORT_UCX, TRANSPORT_VERBS, Token,
};

const CAPACITY: u64 = 8192;
const EPOCH: u64 = 0x1234_5678_9abc;
const TOKEN: Token = Token([7; 16]);

/// Makes two ends of a link.
trait Fixture: Sized {
    type Link: Link;
    /// What was sent lands wherever the mirror's memory is: a card does not know of the room.
    const LANDS_ANYWHERE: bool;
    fn new() -> Self;
    fn pair(&mut self) -> [Self::Link; 2];
    /// Time passes.
    fn pass(&mut self);
}

/// Real TCP.
struct Tcp([TcpNetwork; 2]);

fn hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    let beat = Frame::Heartbeat { number: 1, echo: 0 };
    // Longer than an ATTACH, so that it is taken for a control connection.
    (0..4).for_each(|_| beat.encode(&mut bytes));
    bytes
}

fn endpoint(address: SocketAddr) -> RelayEndpoint {
    RelayEndpoint {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        std::thread::yield_now();
    }
}

impl Fixture for Tcp {
    type Link = AnyLink;
    const LANDS_ANYWHERE: bool = false;

    fn new() -> Tcp {
        let listen = |_| TcpNetwork::listen("127.0.0.1:0".parse().unwrap(), &[]).unwrap();
        Tcp([0, 1].map(listen))
    }

    fn pair(&mut self) -> [Self::Link; 2] {
        let [one, other] = &mut self.0;
        let mut control = one.dial(&endpoint(other.address()));
        control.send(&hello());
        let _accepted = until("a control connection", || {
            control.poll(&mut Vec::new()).unwrap();
            other.accept()
        });
        let made = one.connect_link(&control, 1, 0, TOKEN).unwrap();
        let mut link = made.expect("at once, over TCP");
        let (token, accepted) = until("a link", || {
            link.kick();
            let _ = other.accept();
            other.accept_link()
        });
        assert_eq!(token, TOKEN);
        [link, other.welcome(accepted).unwrap()]
    }

    fn pass(&mut self) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The same with TLS.
struct TcpTls([TcpNetwork; 2], #[allow(dead_code)] Scratch);

impl TcpTls {
    fn at(ip: IpAddr, security: Security) -> TcpTls {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = format!("tbus-link-pem-{}-{number}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(path));
        std::fs::create_dir_all(&scratch.0).unwrap();
        // Node 1 plays both sides.
        let files = Authority::new(&scratch.0).files(1);
        let listen = |_| {
            let trust = Trust {
                cluster: "test".into(),
                security,
                allow: Vec::new(),
            };
            let tls = Tls::new(files.clone(), trust).unwrap();
            TcpNetwork::listen_with(SocketAddr::new(ip, 0), &[], tls).unwrap()
        };
        TcpTls([0, 1].map(listen), scratch)
    }

    fn controls(&mut self) -> [TcpControl; 2] {
        let [one, other] = &mut self.0;
        let mut control = one.dial(&endpoint(other.address()));
        control.send(&hello());
        let accepted = until("a control connection", || {
            control.poll(&mut Vec::new()).unwrap();
            other.accept()
        });
        [control, accepted]
    }
}

impl Fixture for TcpTls {
    type Link = AnyLink;
    const LANDS_ANYWHERE: bool = false;

    fn new() -> TcpTls {
        TcpTls::at(IpAddr::from([127, 0, 0, 1]), Security::Encrypt)
    }

    fn pair(&mut self) -> [Self::Link; 2] {
        let [control, accepted] = self.controls();
        let [one, other] = &mut self.0;
        let made = one.connect_link(&control, TRANSPORT_TLS, 0, TOKEN).unwrap();
        let mut link = made.expect("at once, over TCP");
        let (token, taken) = until("a link", || {
            link.kick();
            let mut events = Vec::new();
            link.poll(1, &mut events);
            assert_eq!(events, []);
            let _ = other.accept();
            other.accept_link()
        });
        assert_eq!(token, TOKEN);
        other.belongs(&taken, &accepted, TRANSPORT_TLS).unwrap();
        assert!(other.belongs(&taken, &accepted, TRANSPORT_TCP).is_err());
        assert!(other.belongs(&taken, &accepted, TRANSPORT_VERBS).is_err());
        assert!(other.belongs(&taken, &accepted, TRANSPORT_UCX).is_err());
        [link, other.welcome(taken).unwrap()]
    }

    fn pass(&mut self) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// By RDMA, at the address that ci/rxe names.
struct Rdma<const TRANSPORT: u8>(TcpTls);

type Verbs = Rdma<TRANSPORT_VERBS>;
type Ucx = Rdma<TRANSPORT_UCX>;

impl<const TRANSPORT: u8> Fixture for Rdma<TRANSPORT> {
    type Link = AnyLink;
    const LANDS_ANYWHERE: bool = true;

    fn new() -> Self {
        let address = std::env::var("RDMA_ADDRESS").expect("RDMA_ADDRESS: run by ci/rxe");
        let ip = address.parse().expect("RDMA_ADDRESS is an IP address");
        let mut networks = TcpTls::at(ip, Security::Authenticate);
        for network in &mut networks.0 {
            match TRANSPORT {
                TRANSPORT_UCX => drop(network.open_ucx().unwrap()),
                _ => drop(network.open_verbs().unwrap()),
            }
        }
        Rdma(networks)
    }

    fn pair(&mut self) -> [Self::Link; 2] {
        let [control, accepted] = self.0.controls();
        let [one, other] = &mut self.0.0;
        let port = other.port_of(TRANSPORT);
        assert_ne!(port, 0);
        other.expect(&accepted, TRANSPORT, TOKEN);
        let made = one.connect_link(&control, TRANSPORT, port, TOKEN);
        assert!(made.unwrap().is_none());
        let (token, request) = until("a request", || {
            let made = one.dialled_link();
            assert!(made.is_none(), "before it was agreed: {made:?}");
            other.accept_link()
        });
        assert_eq!(token, TOKEN);
        for offered in [TRANSPORT_TCP, TRANSPORT_VERBS, TRANSPORT_UCX] {
            let belongs = other.belongs(&request, &accepted, offered);
            assert_eq!(belongs.is_ok(), offered == TRANSPORT);
        }
        let welcome = other.welcome(request).unwrap();
        let (token, link) = until("a link", || one.dialled_link());
        assert_eq!(token, TOKEN);
        [link.unwrap(), welcome]
    }

    fn pass(&mut self) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The same over a device without immediate data, as iWARP's are: messages instead of numbers.
struct VerbsMessages(Verbs);

impl Fixture for VerbsMessages {
    type Link = AnyLink;
    const LANDS_ANYWHERE: bool = true;

    fn new() -> VerbsMessages {
        VerbsMessages(Verbs::new())
    }

    fn pair(&mut self) -> [Self::Link; 2] {
        let mut links = self.0.pair();
        for link in &mut links {
            match link {
                AnyLink::Verbs(link) => link.send_messages_only(),
                other => panic!("{other:?}"),
            }
        }
        links
    }

    fn pass(&mut self) {
        self.0.pass();
    }
}

/// The same over UCX, where all bytes are put, as those of long appends are.
struct UcxPuts(Ucx);

impl Fixture for UcxPuts {
    type Link = AnyLink;
    const LANDS_ANYWHERE: bool = true;

    fn new() -> UcxPuts {
        UcxPuts(Ucx::new())
    }

    fn pair(&mut self) -> [Self::Link; 2] {
        let mut links = self.0.pair();
        for link in &mut links {
            match link {
                AnyLink::Ucx(link) => link.put_all(),
                other => panic!("{other:?}"),
            }
        }
        links
    }

    fn pass(&mut self) {
        self.0.pass();
    }
}

/// The simulated one.
struct Sim<const RDMA: u64> {
    world: World,
    networks: [SimNetwork; 2],
}

impl<const RDMA: u64> Fixture for Sim<RDMA> {
    type Link = tbus_transport::sim::SimLink;
    const LANDS_ANYWHERE: bool = RDMA > 0;

    fn new() -> Self {
        let conditions = Conditions {
            delay: 10_000..500_000,
            loss: 100,
            stray: 50,
            rdma: RDMA,
            cut: Default::default(),
        };
        let world = World::new(1, conditions);
        let networks = [0, 1].map(|host| SimNetwork::listen(&world, host, 1).unwrap());
        Sim { world, networks }
    }

    fn pair(&mut self) -> [Self::Link; 2] {
        let control = self.networks[0].dial(&SimNetwork::endpoint_of(1, 1));
        let link = self.networks[0]
            .connect_link(&control, 1, 0, TOKEN)
            .unwrap()
            .expect("at once");
        let (token, accepted) = until("a link", || {
            self.pass();
            self.networks[1].accept_link()
        });
        assert_eq!(token, TOKEN);
        [link, accepted]
    }

    fn pass(&mut self) {
        self.world.advance(self.world.now() + 1_000_000);
    }
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Two ends of a link, and some rings on either side of it.
struct Bench<F: Fixture> {
    fixture: F,
    links: [Option<F::Link>; 2],
    sources: Vec<SourceReader>,
    mirrors: Vec<MirrorWriter>,
    events: [Vec<Event>; 2],
    _scratch: Scratch,
}

fn read(region: &Region, position: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    // SAFETY: that many bytes lie there while the region lives, and nobody writes them during the call.
    unsafe {
        let from = region.at(position, bytes.len());
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
    }
    bytes
}

fn write(region: &Region, position: u64, bytes: &[u8]) {
    // SAFETY: that many bytes lie there while the region lives, and nobody else uses them during the call.
    unsafe {
        let to = region.at(position, bytes.len());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
    }
}

/// What belongs at `position` of ring `slot`.
fn content(slot: u32, position: u64, length: u64) -> Vec<u8> {
    let byte = |at: u64| Random::new(u64::from(slot) << 50 ^ at).bits() as u8;
    (position..position + length).map(byte).collect()
}

impl<F: Fixture> Bench<F> {
    fn new(name: &str) -> Self {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let path = base.join(format!("tbus-link-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let directory = Directory::create(&path).unwrap();
        let ring = |kind, lock_slot| {
            let spec = RingSpec {
                kind,
                lock_slot,
                ..RingSpec::local(CAPACITY, Address(1), Address(2))
            };
            Ring::create(&directory, &spec).unwrap()
        };
        let sources = (0..3).map(|slot| ring(Kind::Source, slot).source_reader().unwrap());
        let mirrors = (3..6).map(|slot| ring(Kind::Mirror, slot).mirror_writer().unwrap());
        let (sources, mirrors) = (sources.collect(), mirrors.collect());
        let mut fixture = F::new();
        Bench {
            links: fixture.pair().map(Some),
            fixture,
            sources,
            mirrors,
            events: Default::default(),
            _scratch: Scratch(path),
        }
    }

    fn link(&mut self, end: usize) -> &mut F::Link {
        self.links[end].as_mut().expect("not quiesced")
    }

    fn source(&self, slot: u32) -> Region {
        self.sources[slot as usize].region()
    }

    fn mirror(&self, slot: u32) -> Region {
        self.mirrors[slot as usize].region()
    }

    /// Ring `slot` goes from end 0 to end 1, from position 0, with all its room.
    fn attach(&mut self, slot: u32, epochs: [u64; 2]) {
        self.attach_with(slot, epochs, CAPACITY);
    }

    fn attach_with(&mut self, slot: u32, epochs: [u64; 2], room: u64) {
        let (source, mirror) = (self.source(slot), self.mirror(slot));
        let attached = self.link(1).attach_mirror(slot, mirror, epochs[1], 0, room);
        let remote = attached.unwrap();
        self.link(0)
            .attach_source(slot, source, epochs[0], remote)
            .unwrap();
    }

    fn fill(&self, slot: u32, from: u64, to: u64) {
        write(&self.source(slot), from, &content(slot, from, to - from));
    }

    /// Both ends send and look; returns what end 1 has heard.
    fn go(&mut self) -> Vec<Event> {
        self.fixture.pass();
        for end in 0..2 {
            if let Some(link) = &mut self.links[end] {
                link.kick();
                link.poll(1 << 16, &mut self.events[end]);
            }
        }
        std::mem::take(&mut self.events[1])
    }

    /// Until end `end` hears that the link is down; no more comes after that. Returns what came before, and why.
    fn down(&mut self, end: usize) -> (Vec<Event>, String) {
        let begun = Instant::now();
        let mut heard = Vec::new();
        loop {
            let at_one = self.go();
            heard.extend(if end == 1 {
                at_one
            } else {
                std::mem::take(&mut self.events[0])
            });
            if let Some(at) = heard
                .iter()
                .position(|event| matches!(event, Event::Down(_)))
            {
                let mut after = heard.split_off(at);
                for _ in 0..100 {
                    let at_one = self.go();
                    after.extend(if end == 1 {
                        at_one
                    } else {
                        std::mem::take(&mut self.events[0])
                    });
                }
                let Some(Event::Down(why)) = after.first().cloned() else {
                    unreachable!("found above")
                };
                assert_eq!(after.len(), 1, "nothing after the end: {after:?}");
                return (heard, why);
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the link does not go down"
            );
        }
    }
}

fn everything_arrives_in_order<F: Fixture>(name: &str) {
    let mut bench = Bench::<F>::new(name);
    let mut random = Random::new(5);
    for slot in 0..3 {
        bench.attach(slot, [EPOCH + u64::from(slot); 2]);
    }
    let (mut sent, mut arrived, mut done) = ([0u64; 3], [0u64; 3], [0u64; 3]);
    let begun = Instant::now();
    while arrived.iter().any(|at| *at < 10 * CAPACITY) {
        let slot = random.below(3) as u32;
        let at = slot as usize;
        // The source keeps what is not done, the mirror what has not arrived; nobody reads it there.
        let room = done[at].min(arrived[at]) + CAPACITY;
        let to = (sent[at] + 8 + 8 * random.below(200)).min(room);
        if to > sent[at] {
            bench.fill(slot, sent[at], to);
            if bench.link(0).append(slot, sent[at], to) {
                sent[at] = to;
            }
        }
        for event in bench.go() {
            let Event::Arrived { slot, to } = event else {
                panic!("{event:?}");
            };
            let at = slot as usize;
            assert!(
                to > arrived[at] && to <= sent[at],
                "{to} after {}",
                arrived[at]
            );
            let (from, length) = (arrived[at], to - arrived[at]);
            assert!(read(&bench.mirror(slot), from, length) == content(slot, from, length));
            arrived[at] = to;
            bench.link(1).set_room(slot, to + CAPACITY);
        }
        for event in std::mem::take(&mut bench.events[0]) {
            let Event::SourceDone { slot, to } = event else {
                panic!("{event:?}");
            };
            let at = slot as usize;
            assert!(to >= done[at] && to <= sent[at]);
            // From now on it may be anything.
            write(
                &bench.source(slot),
                done[at],
                &vec![0xee; (to - done[at]) as usize],
            );
            done[at] = to;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{sent:?} {arrived:?} {done:?}"
        );
    }
}

fn control_records_pass_both_ways<F: Fixture>(name: &str) {
    let mut bench = Bench::<F>::new(name);
    let record = |n: u64| Control {
        slot: n as u32,
        epoch: EPOCH,
        want: n.is_multiple_of(3),
        delivered: if n.is_multiple_of(3) { 0 } else { 64 * n },
        consumed: tbus::Cursor {
            position: if n.is_multiple_of(3) { 0 } else { 32 * n },
            sequence: if n.is_multiple_of(3) { 0 } else { n },
        },
    };
    let mut heard = [Vec::new(), Vec::new()];
    for n in 0..50 {
        for end in 0..2 {
            bench.link(end).control(record(n));
        }
        heard[1].extend(bench.go());
        heard[0].append(&mut bench.events[0]);
    }
    until("all records", || {
        heard[1].extend(bench.go());
        heard[0].append(&mut bench.events[0]);
        heard.iter().all(|heard| heard.len() == 50).then_some(())
    });
    for heard in heard {
        let expected: Vec<_> = (0..50).map(|n| Event::Remote(record(n))).collect();
        assert_eq!(heard, expected);
    }
}

fn a_detached_mirror_is_left_alone<F: Fixture>(name: &str) {
    let mut bench = Bench::<F>::new(name);
    bench.attach(0, [EPOCH; 2]);
    bench.attach(1, [EPOCH; 2]);
    bench.link(1).detach_mirror(0);
    for slot in 0..2 {
        bench.fill(slot, 0, 512);
        assert!(bench.link(0).append(slot, 0, 512));
    }
    let heard = until("the other ring", || {
        let heard = bench.go();
        (!heard.is_empty()).then_some(heard)
    });
    assert!(
        heard
            .iter()
            .all(|e| matches!(e, Event::Arrived { slot: 1, .. })),
        "{heard:?}"
    );
    // A card has no order to let them fall.
    if !F::LANDS_ANYWHERE {
        assert!(read(&bench.mirror(0), 0, 512) == [0; 512]);
    }
}

/// The memory of a mirror goes with it, not only with the link: else a peer that opens one generation after the other fills
/// this host.
#[test]
fn tcp_a_detached_mirror_is_unmapped() {
    let mut bench = Bench::<Tcp>::new("unmapped");
    let directory = Directory::open(&bench._scratch.0).unwrap();
    let spec = RingSpec {
        kind: Kind::Mirror,
        lock_slot: 6,
        ..RingSpec::local(CAPACITY, Address(1), Address(2))
    };
    let ring = Ring::create(&directory, &spec).unwrap();
    let path = directory.ring_path(ring.uuid()).display().to_string();
    let is_mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(&path)
    };
    let region = ring.mirror_writer().unwrap().region();
    let attached = bench.link(1).attach_mirror(0, region, EPOCH, 0, CAPACITY);
    attached.unwrap();
    drop(ring);
    assert!(is_mapped());
    bench.link(1).detach_mirror(0);
    assert!(!is_mapped());
}

/// What the peer does wrong: the link goes down with a reason, and what is not its is as it was.
fn wrong<F: Fixture>(name: &str, expected: &str, act: impl FnOnce(&mut Bench<F>)) {
    let mut bench = Bench::<F>::new(name);
    bench.fill(0, 0, CAPACITY);
    act(&mut bench);
    let (before, why) = bench.down(1);
    assert!(before.is_empty(), "{before:?}");
    if !F::LANDS_ANYWHERE {
        assert!(why.contains(expected), "{why}");
        assert!(read(&bench.mirror(0), 0, CAPACITY) == [0; CAPACITY as usize]);
    }
    assert!(read(&bench.mirror(1), 0, CAPACITY) == [0; CAPACITY as usize]);
}

fn another_epoch_is_refused<F: Fixture>(name: &str) {
    wrong::<F>(name, "epoch", |bench| {
        bench.attach(0, [EPOCH, EPOCH + 1]);
        assert!(bench.link(0).append(0, 0, 512));
    });
}

fn an_unknown_slot_is_refused<F: Fixture>(name: &str) {
    wrong::<F>(name, "not open", |bench| {
        let source = bench.source(0);
        let attached = bench.link(0).attach_source(2, source, EPOCH, (0, 0));
        attached.unwrap();
        assert!(bench.link(0).append(2, 0, 512));
    });
}

fn bytes_beyond_the_room_are_refused<F: Fixture>(name: &str) {
    wrong::<F>(name, "is free", |bench| {
        bench.attach_with(0, [EPOCH; 2], 256);
        assert!(bench.link(0).append(0, 0, 264));
    });
}

fn bytes_out_of_order_are_refused<F: Fixture>(name: &str) {
    wrong::<F>(name, "is free", |bench| {
        bench.attach(0, [EPOCH; 2]);
        assert!(bench.link(0).append(0, 64, 512));
    });
}

fn nothing_lands_after_quiesce<F: Fixture>(name: &str) {
    for round in 0..20 {
        let mut bench = Bench::<F>::new(name);
        bench.attach(0, [EPOCH; 2]);
        bench.fill(0, 0, CAPACITY);
        let half = CAPACITY / 2;
        assert!(bench.link(0).append(0, 0, half));
        bench.link(0).kick();
        for _ in 0..round {
            bench.go();
        }
        let _proof = bench.links[1].take().expect("it is there").quiesce();
        let then = read(&bench.mirror(0), 0, CAPACITY);
        // The sender's end lives on, and goes on sending under the dead epoch as long as it hears nothing.
        bench.link(0).append(0, half, CAPACITY);
        bench.link(0).kick();
        for _ in 0..50 {
            bench.go();
        }
        assert!(read(&bench.mirror(0), 0, CAPACITY) == then);
    }
}

fn the_other_end_hears_of_the_end_once<F: Fixture>(name: &str) {
    let mut bench = Bench::<F>::new(name);
    bench.attach(0, [EPOCH; 2]);
    bench.fill(0, 0, 512);
    let _proof = bench.links[1].take().expect("it is there").quiesce();
    bench.link(0).append(0, 0, 512);
    let (_, why) = bench.down(0);
    assert!(!why.is_empty());
    assert!(
        !bench.link(0).append(0, 512, 1024),
        "nothing is accepted any more"
    );
}

macro_rules! conform {
    ($name:ident, $fixture:ty $(, $attribute:meta)?) => {
        mod $name {
            use super::*;
            conform!(@ $name, $fixture, ($($attribute)?), everything_arrives_in_order, control_records_pass_both_ways,
                a_detached_mirror_is_left_alone, another_epoch_is_refused, an_unknown_slot_is_refused,
                bytes_beyond_the_room_are_refused, bytes_out_of_order_are_refused,
                nothing_lands_after_quiesce, the_other_end_hears_of_the_end_once);
        }
    };
    (@ $name:ident, $fixture:ty, $attribute:tt, $($test:ident),*) => {$(
        conform!(# $attribute, $name, $fixture, $test);
    )*};
    (# ($($attribute:meta)?), $name:ident, $fixture:ty, $test:ident) => {
        #[test]
        $(#[$attribute])?
        fn $test() {
            super::$test::<$fixture>(concat!(stringify!($name), "-", stringify!($test)));
        }
    };
}

conform!(tcp, Tcp);
conform!(tcp_tls, TcpTls);
conform!(verbs, Verbs, ignore = "needs an RDMA device: ci/rxe run");
conform!(ucx, Ucx, ignore = "needs an RDMA device: ci/rxe run");
conform!(
    ucx_puts,
    UcxPuts,
    ignore = "needs an RDMA device: ci/rxe run"
);
conform!(
    verbs_messages,
    VerbsMessages,
    ignore = "needs an RDMA device: ci/rxe run"
);
conform!(sim_tcp, Sim<0>);
conform!(sim_rdma, Sim<1000>);

/// A number has 16 bits for the slot. Rings beyond are told of by messages.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn verbs_more_slots_than_a_number_can_tell() {
    let mut bench = Bench::<Verbs>::new("slots");
    let slot = 1 << 16;
    let (source, mirror) = (bench.source(0), bench.mirror(0));
    let attached = bench
        .link(1)
        .attach_mirror(slot, mirror, EPOCH, 0, CAPACITY);
    let remote = attached.unwrap();
    bench
        .link(0)
        .attach_source(slot, source, EPOCH, remote)
        .unwrap();
    for from in (0..CAPACITY).step_by(512) {
        let to = from + 512;
        bench.fill(0, from, to);
        assert!(bench.link(0).append(slot, from, to));
        let heard = until("the bytes", || {
            let heard = bench.go();
            (!heard.is_empty()).then_some(heard)
        });
        assert_eq!(heard, [Event::Arrived { slot, to }]);
    }
    assert!(read(&bench.mirror(0), 0, CAPACITY) == content(0, 0, CAPACITY));
}

/// Bytes of this process that devices have.
fn pinned() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmPin:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

fn memory_of_a_closed_mirror_is_given_back_after_its_time<F: Fixture>(name: &str) {
    let mut bench = Bench::<F>::new(name);
    let before = pinned();
    bench.attach(0, [EPOCH; 2]);
    bench.attach(1, [EPOCH; 2]);
    assert_eq!(pinned(), before + 4 * CAPACITY);
    bench.link(0).detach_source(0);
    bench.link(1).detach_mirror(0);
    let begun = Instant::now();
    until("the end of a mirror's time", || {
        let heard = bench.go();
        assert_eq!(heard, []);
        (pinned() == before + 2 * CAPACITY).then_some(())
    });
    // Until then the peer may not have heard, and what it writes must find its memory.
    let after = begun.elapsed();
    assert!(
        after > Duration::from_secs(4) && after < Duration::from_secs(10),
        "{after:?}"
    );
    bench.fill(1, 0, 512);
    assert!(bench.link(0).append(1, 0, 512));
    let heard = until("the other ring", || {
        let heard = bench.go();
        (!heard.is_empty()).then_some(heard)
    });
    assert_eq!(heard, [Event::Arrived { slot: 1, to: 512 }]);
}

fn a_ring_that_is_opened_over_and_over_is_not_pinned_as_often<F: Fixture>(name: &str) {
    let mut bench = Bench::<F>::new(name);
    let before = pinned();
    for slot in 0..100 {
        let mirror = bench.mirror(0);
        let attached = bench
            .link(1)
            .attach_mirror(slot, mirror, EPOCH, 0, CAPACITY);
        attached.unwrap();
        assert!(pinned() <= before + 2 * CAPACITY, "slot {slot}");
        bench.link(1).detach_mirror(slot);
    }
    assert_eq!(bench.go(), []);
}

macro_rules! give_back {
    ($name:ident, $fixture:ty) => {
        mod $name {
            use super::*;
            conform!(@ $name, $fixture, (ignore = "needs an RDMA device: ci/rxe run"),
                memory_of_a_closed_mirror_is_given_back_after_its_time,
                a_ring_that_is_opened_over_and_over_is_not_pinned_as_often);
        }
    };
}

give_back!(verbs_memory, Verbs);
give_back!(ucx_memory, UcxPuts);

/// Rings are replaced one by the other, under one link.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn ucx_keys_of_rings_that_are_replaced_are_given_back() {
    let mut bench = Bench::<UcxPuts>::new("keys");
    let keys = |bench: &mut Bench<UcxPuts>| match bench.link(0) {
        AnyLink::Ucx(link) => link.keys(),
        other => panic!("{other:?}"),
    };
    bench.fill(0, 0, 512);
    for slot in 0..50 {
        let (source, mirror) = (bench.source(0), bench.mirror(0));
        let attached = bench
            .link(1)
            .attach_mirror(slot, mirror, EPOCH, 0, CAPACITY);
        let remote = attached.unwrap();
        until("the key", || {
            assert_eq!(bench.go(), []);
            (keys(&mut bench) == (0, 1)).then_some(())
        });
        let attached = bench.link(0).attach_source(slot, source, EPOCH, remote);
        attached.unwrap();
        assert_eq!(keys(&mut bench), (1, 0));
        if slot % 2 == 0 {
            assert!(bench.link(0).append(slot, 0, 512));
            let heard = until("the bytes", || {
                let heard = bench.go();
                (!heard.is_empty()).then_some(heard)
            });
            assert_eq!(heard, [Event::Arrived { slot, to: 512 }]);
        }
        bench.link(0).detach_source(slot);
        bench.link(1).detach_mirror(slot);
        until("the end of the key", || {
            assert_eq!(bench.go(), []);
            (keys(&mut bench) == (0, 0)).then_some(())
        });
    }
    // A ring that is over before its key is there.
    bench.link(0).detach_source(50);
    for slot in 50..52 {
        let mirror = bench.mirror(0);
        let attached = bench
            .link(1)
            .attach_mirror(slot, mirror, EPOCH, 0, CAPACITY);
        attached.unwrap();
    }
    until("the other key", || {
        assert_eq!(bench.go(), []);
        (keys(&mut bench).1 > 0).then_some(())
    });
    (0..100).for_each(|_| drop(bench.go()));
    assert_eq!(keys(&mut bench), (0, 1));
}

/// Who knows a token, and asks from another host than the one that it was given to.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn verbs_a_request_from_elsewhere_is_refused() {
    use tbus_rdma_sys::{
        CompletionQueue, ConnectionId, EventChannel, Limits, ProtectionDomain, QueuePair,
    };
    let Rdma(mut networks) = Verbs::new();
    let [_control, accepted] = networks.controls();
    let other = &mut networks.0[1];
    let here = other.address().ip();
    let IpAddr::V4(v4) = here else {
        panic!("{here} is no IPv4 address");
    };
    // Another one of this host, as ci/rxe gives it.
    let elsewhere = IpAddr::from((u32::from(v4) ^ 3).to_be_bytes());
    let to = SocketAddr::new(here, other.port_of(TRANSPORT_VERBS));
    let within = Duration::from_secs(3);
    let channel = EventChannel::new(tbus_rdma_sys::Verbs::load().unwrap()).unwrap();
    let id = ConnectionId::new(&channel).unwrap();
    let next = || until("an event", || channel.next_event().unwrap());
    id.resolve_address(Some(SocketAddr::new(elsewhere, 0)), to, within)
        .unwrap();
    next();
    id.resolve_route(within).unwrap();
    next();
    let limits = Limits {
        sends: 4,
        receives: 4,
        receive_size: 64,
        inline: 0,
    };
    let domain = ProtectionDomain::new(&id).unwrap();
    let queue = CompletionQueue::new(&id, 10).unwrap();
    let _pair = QueuePair::new(&id, &domain, &queue, &queue, limits).unwrap();
    id.connect(&TOKEN.0).unwrap();
    let (token, request) = until("a request", || other.accept_link());
    assert_eq!(token, TOKEN);
    let why = other.belongs(&request, &accepted, TRANSPORT_VERBS);
    let expected =
        format!("the link comes from {elsewhere}, and the control connection from {here}");
    assert_eq!(why, Err(expected));
}

/// Connections over UCX that show nothing, and what became of those that were refused or put out.
struct Crowd {
    worker: tbus_ucx_sys::Worker,
    to: SocketAddr,
    /// With the number of the call that asked for them, for keys of those that are out come again.
    there: Vec<(usize, tbus_ucx_sys::Endpoint)>,
    asked: usize,
    out: usize,
}

impl Crowd {
    fn new(to: SocketAddr) -> Crowd {
        let ucx = tbus_ucx_sys::Ucx::load(None).unwrap();
        let context = tbus_ucx_sys::Context::new(ucx).unwrap();
        let worker = tbus_ucx_sys::Worker::new(&context).unwrap();
        Crowd {
            worker,
            to,
            there: Vec::new(),
            asked: 0,
            out: 0,
        }
    }

    /// The number of this call, from 1 on.
    fn ask(&mut self, count: usize) -> usize {
        self.asked += 1;
        for _ in 0..count {
            let endpoint = tbus_ucx_sys::Endpoint::connect(&self.worker, self.to).unwrap();
            self.there.push((self.asked, endpoint));
        }
        self.asked
    }

    /// How many are there of those that a call asked for.
    fn of(&self, call: usize) -> usize {
        self.there.iter().filter(|(by, _)| *by == call).count()
    }

    fn turn(&mut self) {
        self.worker.progress(&mut |_| {});
        for (key, _) in self.worker.failures() {
            self.there.retain(|(_, endpoint)| endpoint.key() != key);
            self.out += 1;
        }
    }
}

/// Who is not offered anything is refused at once, and who is is not kept waiting by others of its host that show no token. Those
/// are put out after a time.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn ucx_strangers_are_kept_out_and_keep_nobody_out() {
    let mut fixture = Ucx::new();
    let other = &mut fixture.0.0[1];
    let to = SocketAddr::new(other.address().ip(), other.port_of(TRANSPORT_UCX));
    let mut crowd = Crowd::new(to);
    crowd.ask(40);
    let begun = Instant::now();
    until("the refusal of who was offered nothing", || {
        crowd.turn();
        assert!(other.accept_link().is_none());
        (crowd.out == 40).then_some(())
    });
    let refused = begun.elapsed();
    assert!(refused < Duration::from_secs(6), "{refused:?}");

    // Of a peer's host, while the peer is to come: its request is the last of a crowd.
    let [_control, accepted] = fixture.0.controls();
    let other = &mut fixture.0.0[1];
    other.expect(&accepted, TRANSPORT_UCX, Token([9; 16]));
    crowd.out = 0;
    let begun = Instant::now();
    // In two halves, since UCX 1.22 keeps no order of those that it asks for together.
    let halves = [20, 40].map(|all| {
        let call = crowd.ask(20);
        until("room by who is there longest", || {
            crowd.turn();
            assert!(other.accept_link().is_none());
            // 16 beyond the offer stay for a time.
            (crowd.out == all - 17).then_some(())
        });
        call
    });
    let made = begun.elapsed();
    assert!(made < Duration::from_secs(6), "{made:?}");
    let [first, last] = halves.map(|call| crowd.of(call));
    assert_eq!((first, last), (0, 17));
    crowd.ask(5);
    let begun = Instant::now();
    let _links = fixture.pair();
    let made = begun.elapsed();
    assert!(made < Duration::from_secs(4), "{made:?}");
    let other = &mut fixture.0.0[1];
    until("the end of the strangers' time", || {
        crowd.turn();
        assert!(other.accept_link().is_none());
        crowd.there.is_empty().then_some(())
    });
}

/// A peer that writes what it likes to the real link.
fn liar() -> (Tcp, TcpStream, AnyLink) {
    let mut fixture = Tcp::new();
    let mut stream = TcpStream::connect(fixture.0[1].address()).unwrap();
    let mut attach = Vec::new();
    Frame::Attach(TOKEN).encode(&mut attach);
    stream.write_all(&attach).unwrap();
    let (_, link) = until("a link", || {
        let _ = fixture.0[1].accept();
        fixture.0[1].accept_link()
    });
    let link = fixture.0[1].welcome(link).unwrap();
    (fixture, stream, link)
}

fn ends(link: &mut impl Link) -> String {
    let mut events = Vec::new();
    until("the end", || {
        link.poll(1 << 20, &mut events);
        match events.pop() {
            Some(Event::Down(why)) => Some(why),
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    })
}

#[test]
fn bytes_that_are_no_chunk_end_a_tcp_link() {
    let mut random = Random::new(11);
    for _ in 0..50 {
        let (_fixture, mut stream, mut link) = liar();
        let noise: Vec<u8> = (0..CHUNK_HEADER).map(|_| random.bits() as u8).collect();
        stream.write_all(&noise).unwrap();
        assert!(!ends(&mut link).is_empty());
        drop(link);
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert!(!matches!(stream.read(&mut [0; 8]), Ok(n) if n > 0));
    }
}

#[test]
fn an_oversized_chunk_ends_a_tcp_link() {
    let (_fixture, mut stream, mut link) = liar();
    let honest = Chunk {
        data: Some(Data {
            slot: 0,
            epoch: EPOCH,
            position: 0,
            length: MAX_CHUNK as u32,
        }),
        control: None,
    };
    let mut bytes = honest.encode();
    let wrong = (MAX_CHUNK as u32 + 1).to_le_bytes();
    let at = (0..bytes.len() - 3)
        .find(|at| bytes[*at..at + 4] == (MAX_CHUNK as u32).to_le_bytes())
        .expect("the length is in the header");
    bytes[at..at + 4].copy_from_slice(&wrong);
    stream.write_all(&bytes).unwrap();
    let why = ends(&mut link);
    assert!(why.contains("65537") || why.contains("bytes"), "{why}");
}
