//! Which way of handing ring bytes on over UCX takes how long: two ends in one process, over this host's card. `RDMA_ADDRESS` is the
//! card's address; `ci/rxe run` sets it. Wrong bytes, which only the scheme without a flush may give, are counted. The argument, if
//! there is one, is another libucp than the loader finds.
//!
//! Both ends poll, so on a machine where something else runs the figures mean nothing, and connections may time out.

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;
use tbus_ucx_sys::{
    Announced, Body, Context, Endpoint, How, Listener, Memory, Operation, Received, RemoteKey, Ucx,
    Worker,
};

/// Bytes of a ring.
const RING: usize = 1 << 22;
/// Chunks of a stream that wait for an answer at most.
const WINDOW: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scheme {
    PutFlush,
    PutOnly,
    Eager,
    Announced,
}

const SCHEMES: &[(Scheme, &str)] = &[
    (Scheme::Eager, "message with the bytes"),
    (Scheme::Announced, "message announced, fetched"),
    (Scheme::PutOnly, "put, message (not promised)"),
    (Scheme::PutFlush, "put, flush, message"),
];

#[derive(Clone, Debug)]
struct Ring(Arc<memmap2::MmapRaw>);

impl Ring {
    fn new() -> Ring {
        let file = File::from(memfd_create(c"tbus-ucx-ring", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(RING as u64).unwrap();
        Ring(Arc::new(memmap2::MmapRaw::map_raw(&file).unwrap()))
    }

    fn mapped(&self, context: &Context) -> Memory {
        let address = NonNull::new(self.0.as_mut_ptr()).unwrap();
        // SAFETY: mapped as long as the owner lives, and touched by raw accesses only.
        unsafe { Memory::map(context, address, RING, Box::new(self.clone())).unwrap() }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= RING);
        // SAFETY: within the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_mut_ptr().add(at), bytes.len())
        }
    }

    fn byte(&self, at: usize) -> u8 {
        assert!(at < RING);
        // SAFETY: within the mapping.
        unsafe { self.0.as_ptr().add(at).read_volatile() }
    }
}

/// What one end tells the other out of band, as relays do on the control connection.
type Told = (Vec<u8>, u64);

/// Bytes at `at`, numbered; or with a length of 0 the answer to them.
#[derive(Clone, Copy, Debug)]
struct Notice {
    number: u64,
    at: usize,
    length: usize,
}

impl Notice {
    fn bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (to, word) in
            bytes
                .chunks_exact_mut(8)
                .zip([self.number, self.at as u64, self.length as u64])
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Notice {
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
        Notice {
            number: word(0),
            at: word(1) as usize,
            length: word(2) as usize,
        }
    }
}

struct End {
    endpoint: Endpoint,
    source: Ring,
    source_memory: Memory,
    mirror: Ring,
    mirror_memory: Memory,
    peer: (RemoteKey, u64),
    worker: Worker,
    wrong: u64,
}

impl End {
    fn new(
        context: &Context,
        worker: Worker,
        endpoint: Endpoint,
        ways: (Sender<Told>, Receiver<Told>),
    ) -> End {
        let (source, mirror) = (Ring::new(), Ring::new());
        let (source_memory, mirror_memory) = (source.mapped(context), mirror.mapped(context));
        ways.0
            .send((mirror_memory.key().unwrap(), mirror_memory.address()))
            .unwrap();
        let (key, address) = loop {
            // UCX connects in the course of this.
            worker.progress(&mut |_| panic!("too early"));
            if let Ok(told) = ways.1.try_recv() {
                break told;
            }
        };
        // A first message each way: then both ends are connected.
        let mut hello = endpoint.send(&[], Body::None, How::Eager).unwrap();
        let mut heard = false;
        while !heard || hello.outcome().is_none() {
            worker.progress(&mut |_| heard = true);
            assert_eq!(worker.failures(), []);
        }
        let key = endpoint.remote_key(&key).unwrap();
        End {
            endpoint,
            source,
            source_memory,
            mirror,
            mirror_memory,
            peer: (key, address),
            worker,
            wrong: 0,
        }
    }

    fn finish(&self, mut operation: Operation) {
        while operation.outcome().map(Result::unwrap).is_none() {
            if !self.worker.progress(&mut |_| panic!("out of turn")) {
                std::thread::yield_now();
            }
        }
    }

    fn fill(&self, notice: Notice) {
        self.source.write(notice.at, &[notice.number as u8]);
        self.source
            .write(notice.at + notice.length - 1, &[notice.number as u8]);
    }

    fn put(&self, notice: Notice) -> Operation {
        let range = notice.at..notice.at + notice.length;
        let to = self.peer.1 + notice.at as u64;
        self.endpoint
            .put(&self.source_memory, range, &self.peer.0, to)
            .unwrap()
    }

    fn message(&self, notice: Notice, scheme: Scheme) -> Operation {
        let range = (notice.at, notice.at + notice.length);
        let body = Body::Memory(&self.source_memory, range);
        let (body, how) = match scheme {
            Scheme::PutFlush | Scheme::PutOnly => (Body::None, How::Eager),
            Scheme::Eager => (body, How::Eager),
            Scheme::Announced => (body, How::Announced),
        };
        self.endpoint.send(&notice.bytes(), body, how).unwrap()
    }

    fn send(&self, notice: Notice, scheme: Scheme) -> Vec<Operation> {
        self.fill(notice);
        let mut operations = Vec::new();
        if matches!(scheme, Scheme::PutFlush | Scheme::PutOnly) {
            operations.push(self.put(notice));
        }
        if scheme == Scheme::PutFlush {
            self.finish(self.endpoint.flush().unwrap());
        }
        operations.push(self.message(notice, scheme));
        operations
    }

    /// The next notice, when its bytes are in the mirror.
    fn receive(&mut self) -> Notice {
        loop {
            let (mirror, mut came, mut announced) = (&self.mirror, None, None::<Announced>);
            self.worker.progress(&mut |arrival| {
                assert!(came.is_none(), "more than one in flight");
                came = Some(Notice::of(arrival.header));
                let at = came.unwrap().at;
                match arrival.data {
                    Received::Bytes(bytes) => mirror.write(at, bytes),
                    Received::Announced(data) => announced = Some(data),
                }
            });
            if came.is_none() {
                std::thread::yield_now();
            }
            if let (Some(notice), Some(data)) = (came, announced) {
                let range = notice.at..notice.at + notice.length;
                self.finish(data.fetch(&self.mirror_memory, range).unwrap());
            }
            if let Some(notice) = came {
                if notice.length > 0 {
                    let ends = [notice.at, notice.at + notice.length - 1];
                    self.wrong +=
                        u64::from(ends.map(|at| self.mirror.byte(at)) != [notice.number as u8; 2]);
                }
                return notice;
            }
        }
    }

    /// Microseconds one way, at the median.
    fn ping(&mut self, scheme: Scheme, length: usize, count: u64) -> f64 {
        let mut times = Vec::new();
        for number in 0..count + count / 10 {
            let begun = Instant::now();
            let _operations = self.send(place(number, length), scheme);
            self.receive();
            times.push(begun.elapsed());
        }
        let mut times = times.split_off(times.len() - count as usize);
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6 / 2.0
    }

    fn pong(&mut self, scheme: Scheme, length: usize, count: u64) {
        for number in 0..count + count / 10 {
            self.receive();
            let _operations = self.send(place(number, length), scheme);
        }
    }

    /// Megabytes a second, one way, until the last is answered.
    fn stream(&mut self, scheme: Scheme, length: usize, count: u64) -> f64 {
        let (mut sent, mut answered) = (0, 0);
        let mut flushing = std::collections::VecDeque::new();
        let mut under_way = std::collections::VecDeque::new();
        let begun = Instant::now();
        while answered < count {
            while sent < count && sent - answered < WINDOW {
                let notice = place(sent, length);
                self.fill(notice);
                if matches!(scheme, Scheme::PutFlush | Scheme::PutOnly) {
                    under_way.push_back(self.put(notice));
                }
                if scheme == Scheme::PutFlush {
                    flushing.push_back((notice, self.endpoint.flush().unwrap()));
                } else {
                    under_way.push_back(self.message(notice, scheme));
                }
                sent += 1;
            }
            self.worker.progress(&mut |_| answered += 1);
            while let Some((notice, flush)) = flushing.front_mut()
                && flush.outcome().map(Result::unwrap).is_some()
            {
                under_way.push_back(self.message(*notice, scheme));
                flushing.pop_front();
            }
            while under_way
                .front_mut()
                .is_some_and(|one| one.outcome().map(Result::unwrap).is_some())
            {
                under_way.pop_front();
            }
        }
        (count as usize * length) as f64 / 1e6 / begun.elapsed().as_secs_f64()
    }

    fn sink(&mut self, count: u64) {
        let mut came = 0;
        let mut fetching = std::collections::VecDeque::new();
        let mut under_way = std::collections::VecDeque::new();
        while came < count {
            let (mirror, mut answers, mut announced) = (&self.mirror, 0, Vec::new());
            self.worker.progress(&mut |arrival| {
                let notice = Notice::of(arrival.header);
                match arrival.data {
                    Received::Bytes(bytes) => {
                        mirror.write(notice.at, bytes);
                        answers += 1;
                    }
                    Received::Announced(data) => announced.push((notice, data)),
                }
            });
            for (notice, data) in announced {
                let range = notice.at..notice.at + notice.length;
                fetching.push_back(data.fetch(&self.mirror_memory, range).unwrap());
            }
            while fetching
                .front_mut()
                .is_some_and(|one: &mut Operation| one.outcome().map(Result::unwrap).is_some())
            {
                fetching.pop_front();
                answers += 1;
            }
            for _ in 0..answers {
                let answer = Notice {
                    number: came,
                    at: 0,
                    length: 0,
                };
                under_way.push_back(self.message(answer, Scheme::PutOnly));
                came += 1;
            }
            while under_way
                .front_mut()
                .is_some_and(|one: &mut Operation| one.outcome().map(Result::unwrap).is_some())
            {
                under_way.pop_front();
            }
        }
        while let Some(one) = under_way.pop_front() {
            self.finish(one);
        }
    }
}

fn place(number: u64, length: usize) -> Notice {
    let places = (RING / length.next_multiple_of(64)) as u64;
    Notice {
        number,
        at: (number % places) as usize * length.next_multiple_of(64),
        length,
    }
}

fn main() {
    let path = std::env::args().nth(1).map(PathBuf::from);
    let ucx = Ucx::load(path.as_deref()).unwrap_or_else(|why| panic!("UCX is {why}"));
    let context = Context::new(ucx).unwrap_or_else(|why| panic!("UCX is {why}"));
    let address = std::env::var("RDMA_ADDRESS").expect("RDMA_ADDRESS: run by ci/rxe");
    let address: IpAddr = address.parse().expect("RDMA_ADDRESS is an IP address");
    let worker = Worker::new(&context).unwrap();
    let listener = Listener::new(&worker, SocketAddr::new(address, 0)).unwrap();
    let to = SocketAddr::new(address, listener.port().unwrap());
    let ((to_there, from_here), (to_here, from_there)) = (channel(), channel());
    let (lengths, small, large, chunks) = ([8, 64, 65_536], 3000, 300, 600);

    std::thread::scope(|scope| {
        let other = context.clone();
        scope.spawn(move || {
            let worker = Worker::new(&other).unwrap();
            let endpoint = Endpoint::connect(&worker, to).unwrap();
            let mut end = End::new(&other, worker, endpoint, (to_here, from_here));
            for (scheme, _) in SCHEMES {
                for length in lengths {
                    end.pong(*scheme, length, if length > 4096 { large } else { small });
                }
                end.sink(chunks);
            }
            println!("{} wrong at the answering end", end.wrong);
        });
        let request = loop {
            worker.progress(&mut |_| {});
            if let Some(request) = listener.request() {
                break request;
            }
        };
        let endpoint = request.accept().unwrap();
        let mut end = End::new(&context, worker, endpoint, (to_there, from_there));
        println!("over {}", end.endpoint.transports().unwrap().join(", "));
        println!("{ucx:?}; one way, median, µs; stream in MB/s");
        println!(
            "{:30} {:>8} {:>8} {:>8} {:>14} {:>6}",
            "scheme", "8 B", "64 B", "64 KiB", "64 KiB stream", "wrong"
        );
        for (scheme, name) in SCHEMES {
            let [a, b, c] = lengths
                .map(|length| end.ping(*scheme, length, if length > 4096 { large } else { small }));
            let stream = end.stream(*scheme, 65_536, chunks);
            println!(
                "{name:30} {a:8.1} {b:8.1} {c:8.1} {stream:14.1} {:6}",
                std::mem::take(&mut end.wrong)
            );
        }
    });
}
