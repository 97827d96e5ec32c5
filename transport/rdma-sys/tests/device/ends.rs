//! Two ends of a connection in one process.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tbus_rdma_sys::{
    Access, Completion, CompletionQueue, ConnectionId, Error, EventChannel, EventKind, Limits,
    Outcome, ProtectionDomain, QueuePair, Received, Region, Verbs,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The kernel's counts are of all tests, so there is one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the kernel has of each kind, but open devices: the library keeps those.
pub fn resources() -> String {
    let output = Command::new("rdma")
        .args(["resource", "show"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut counts = String::new();
    for pair in words.windows(2) {
        if ["pd", "cq", "qp", "cm_id", "mr"].contains(&pair[0]) {
            counts += &format!("{} {} ", pair[0], pair[1]);
        }
    }
    assert!(counts.contains("mr"), "{text}");
    counts
}

pub fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "it does not come");
    }
}

pub fn readable(fd: BorrowedFd<'_>, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() > 0
}

/// The next event of a channel.
pub fn event(channel: &EventChannel) -> tbus_rdma_sys::Event {
    let begun = Instant::now();
    loop {
        if let Some(event) = channel.next_event().unwrap() {
            return event;
        }
        assert!(begun.elapsed() < PATIENCE, "no event");
        readable(channel.fd(), 1000);
    }
}

fn address(port: u16) -> SocketAddr {
    let address = std::env::var("RDMA_ADDRESS").expect("RDMA_ADDRESS: run by ci/rxe");
    let address: IpAddr = address.parse().expect("RDMA_ADDRESS is an IP address");
    SocketAddr::new(address, port)
}

/// Who listens at a port of its own.
pub fn listen(verbs: &'static Verbs) -> (EventChannel, ConnectionId) {
    let channel = EventChannel::new(verbs).unwrap();
    let listener = ConnectionId::new(&channel).unwrap();
    listener.set_reuse_address().unwrap();
    listener.bind(address(0)).unwrap();
    listener.listen(8).unwrap();
    assert_ne!(listener.local_port(), 0);
    (channel, listener)
}

/// A connection that knows its way.
pub fn dial(channel: &EventChannel, port: u16) -> ConnectionId {
    let id = ConnectionId::new(channel).unwrap();
    let to = address(port);
    id.resolve_address(None, to, Duration::from_secs(2))
        .unwrap();
    let resolved = event(channel);
    assert!(
        matches!(resolved.kind, EventKind::AddressResolved),
        "{:?}",
        resolved.kind
    );
    assert_eq!(resolved.key, id.key());
    id.set_ack_timeout(14).unwrap();
    id.resolve_route(Duration::from_secs(2)).unwrap();
    let resolved = event(channel);
    assert!(
        matches!(resolved.kind, EventKind::RouteResolved),
        "{:?}",
        resolved.kind
    );
    id
}

pub fn pair(
    id: &ConnectionId,
    domain: &ProtectionDomain,
    limits: Limits,
) -> (CompletionQueue, QueuePair) {
    let entries = limits.sends + limits.receives + 2;
    let queue = CompletionQueue::new(id, entries).unwrap();
    let pair = QueuePair::new(id, domain, &queue, &queue, limits).unwrap();
    (queue, pair)
}

#[derive(Debug)]
pub struct End {
    pub channel: EventChannel,
    pub id: ConnectionId,
    pub domain: ProtectionDomain,
    pub queue: CompletionQueue,
    pub pair: QueuePair,
    waiting: VecDeque<Completion>,
}

impl End {
    fn new(channel: EventChannel, id: ConnectionId, limits: Limits) -> End {
        let domain = ProtectionDomain::new(&id).unwrap();
        let (queue, pair) = pair(&id, &domain, limits);
        End {
            channel,
            id,
            domain,
            queue,
            pair,
            waiting: VecDeque::new(),
        }
    }

    /// True if anything came.
    pub fn poll(&mut self) -> bool {
        let (pair, waiting) = (&mut self.pair, &mut self.waiting);
        let name = pair.name();
        let count = self.queue.poll(|completion| {
            assert_eq!(completion.queue_pair, name);
            if let Outcome::Sent(number) = completion.outcome {
                pair.done(number);
            }
            waiting.push_back(completion);
        });
        count.unwrap() > 0
    }

    /// The next, whatever it is.
    pub fn completion(&mut self) -> Completion {
        let begun = Instant::now();
        loop {
            if let Some(completion) = self.waiting.pop_front() {
                return completion;
            }
            self.poll();
            assert!(begun.elapsed() < PATIENCE, "no completion");
        }
    }

    /// The next that is received.
    pub fn receive(&mut self) -> Received {
        loop {
            match self.completion().outcome {
                Outcome::Received(received) => return received,
                Outcome::Sent(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// What is received next.
    pub fn message(&mut self) -> Vec<u8> {
        let received = self.receive();
        let bytes = self.pair.bytes(&received).to_vec();
        self.pair.repost(received).unwrap();
        bytes
    }
}

/// Two connected ends: who dialled, and who listened. They part as everywhere: a token in the private data.
pub fn connect(limits: Limits, token: [u8; 16]) -> (End, End) {
    let verbs = Verbs::load().unwrap();
    let (doors, listener) = listen(verbs);
    let channel = EventChannel::new(verbs).unwrap();
    let id = dial(&channel, listener.local_port());
    let dialler = End::new(channel, id, limits);
    dialler.id.connect(&token).unwrap();
    let request = event(&doors);
    assert_eq!(request.private_data[..16], token);
    assert!(request.private_data[16..].iter().all(|byte| *byte == 0));
    let EventKind::ConnectRequest(id) = request.kind else {
        panic!("{:?}", request.kind)
    };
    let answerer = End::new(doors, id, limits);
    answerer.id.accept(b"welcome").unwrap();
    let established = event(&dialler.channel);
    assert!(
        matches!(established.kind, EventKind::Established),
        "{:?}",
        established.kind
    );
    assert_eq!(established.private_data[..7], *b"welcome");
    let established = event(&answerer.channel);
    assert!(
        matches!(established.kind, EventKind::Established),
        "{:?}",
        established.kind
    );
    assert_eq!(established.key, answerer.id.key());
    (dialler, answerer)
}

/// Memory that is shared as rings are.
#[derive(Clone, Debug)]
pub struct Memory(Arc<memmap2::MmapRaw>);

impl Memory {
    pub fn tmpfs(length: usize) -> Memory {
        let file = File::from(memfd_create(c"tbus-rdma-test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(length as u64).unwrap();
        Memory(Arc::new(memmap2::MmapRaw::map_raw(&file).unwrap()))
    }

    pub fn register(&self, domain: &ProtectionDomain, access: Access) -> Region {
        self.try_register(domain, access).unwrap()
    }

    pub fn try_register(&self, domain: &ProtectionDomain, access: Access) -> Result<Region, Error> {
        self.part(domain, access, self.0.len())
    }

    pub fn register_part(
        &self,
        domain: &ProtectionDomain,
        access: Access,
        length: usize,
    ) -> Region {
        self.part(domain, access, length).unwrap()
    }

    fn part(
        &self,
        domain: &ProtectionDomain,
        access: Access,
        length: usize,
    ) -> Result<Region, Error> {
        assert!(length <= self.0.len());
        let address = NonNull::new(self.0.as_mut_ptr()).unwrap();
        // SAFETY: mapped as long as the owner lives, and touched by raw accesses only.
        unsafe { Region::register(domain, address, length, access, Box::new(self.clone())) }
    }

    pub fn get(&self, at: usize) -> u8 {
        assert!(at < self.0.len());
        // SAFETY: within the mapping.
        unsafe { self.0.as_ptr().add(at).read_volatile() }
    }

    pub fn set(&self, at: usize, value: u8) {
        assert!(at < self.0.len());
        // SAFETY: within the mapping.
        unsafe { self.0.as_mut_ptr().add(at).write_volatile(value) }
    }
}

/// For as long as it is there, this process may lock so much, and this thread has no leave to go beyond.
#[derive(Debug)]
pub struct Limited {
    before: (u64, u64),
    capabilities: [u32; 6],
}

pub fn limited(bytes: u64) -> Limited {
    const IPC_LOCK: u32 = 1 << 14;
    let before = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
    setrlimit(Resource::RLIMIT_MEMLOCK, bytes, before.1).unwrap();
    let capabilities = capabilities(libc::SYS_capget, [0; 6]);
    let mut fewer = capabilities;
    fewer[0] &= !IPC_LOCK;
    self::capabilities(libc::SYS_capset, fewer);
    Limited {
        before,
        capabilities,
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        capabilities(libc::SYS_capset, self.capabilities);
        setrlimit(Resource::RLIMIT_MEMLOCK, self.before.0, self.before.1).unwrap();
    }
}

/// capget and capset of this thread: effective, permitted, inheritable, twice.
fn capabilities(call: libc::c_long, mut data: [u32; 6]) -> [u32; 6] {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // SAFETY: header and data are as long as version 3 has them.
    let result = unsafe { libc::syscall(call, header.as_mut_ptr(), data.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    data
}
