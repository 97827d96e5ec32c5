//! Over a card, real or by software: `ci/rxe run`. Both ends are driven by one thread, in turns.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tbus_ucx_sys::{
    Announced, Body, Context, Endpoint, Error, How, Key, Listener, Memory, Operation, Received,
    Ucx, Worker,
};

const LENGTH: usize = 1 << 18;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Ring(Arc<memmap2::MmapRaw>);

impl Ring {
    fn new() -> Ring {
        let file = File::from(memfd_create(c"tbus-ucx-test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(LENGTH as u64).unwrap();
        Ring(Arc::new(memmap2::MmapRaw::map_raw(&file).unwrap()))
    }

    fn map(&self, context: &Context) -> Memory {
        let address = NonNull::new(self.0.as_mut_ptr()).unwrap();
        // SAFETY: mapped as long as the owner lives, and touched by raw accesses only.
        unsafe { Memory::map(context, address, LENGTH, Box::new(self.clone())).unwrap() }
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < LENGTH);
        // SAFETY: within the mapping.
        unsafe { self.0.as_ptr().add(at).read_volatile() }
    }

    fn set(&self, at: usize, value: u8) {
        assert!(at < LENGTH);
        // SAFETY: within the mapping.
        unsafe { self.0.as_mut_ptr().add(at).write_volatile(value) }
    }
}

/// What has come: header, bytes if they came with it, else what is to be fetched.
type Come = (Key, Vec<u8>, Result<Vec<u8>, Announced>);

/// Two connected ends.
struct Ends {
    endpoints: [Option<Endpoint>; 2],
    come: [Vec<Come>; 2],
    failures: [Vec<(Key, Error)>; 2],
    workers: [Worker; 2],
    context: Context,
}

fn address(port: u16) -> SocketAddr {
    let address = std::env::var("RDMA_ADDRESS").expect("RDMA_ADDRESS: run by ci/rxe");
    let address: IpAddr = address.parse().expect("RDMA_ADDRESS is an IP address");
    SocketAddr::new(address, port)
}

impl Ends {
    fn apart() -> Ends {
        let context = Context::new(Ucx::load(None).unwrap()).unwrap();
        Ends {
            endpoints: [None, None],
            come: Default::default(),
            failures: Default::default(),
            workers: [(); 2].map(|()| Worker::new(&context).unwrap()),
            context,
        }
    }

    /// Another connection between the two.
    fn pair(&mut self) -> [Endpoint; 2] {
        let listener = Listener::new(&self.workers[0], address(0)).unwrap();
        let to = address(listener.port().unwrap());
        let asking = Endpoint::connect(&self.workers[1], to).unwrap();
        let mut request = None;
        self.until(|_| {
            request = listener.request();
            request.is_some()
        });
        [request.unwrap().accept().unwrap(), asking]
    }

    fn connected() -> Ends {
        let mut ends = Ends::apart();
        ends.endpoints = ends.pair().map(Some);
        for end in [0, 1] {
            let hello = ends.end(end).send(b"hello", Body::None, How::Eager);
            ends.done(hello.unwrap()).unwrap();
            let (from, header, data) = ends.next(1 - end);
            assert_eq!(from, ends.end(1 - end).key());
            assert_eq!((header, data.unwrap()), (b"hello".to_vec(), Vec::new()));
        }
        ends
    }

    fn end(&self, end: usize) -> &Endpoint {
        self.endpoints[end].as_ref().unwrap()
    }

    fn turn(&mut self) {
        for end in [0, 1] {
            let come = &mut self.come[end];
            self.workers[end].progress(&mut |arrival| {
                let data = match arrival.data {
                    Received::Bytes(bytes) => Ok(bytes.to_vec()),
                    Received::Announced(announced) => Err(announced),
                };
                come.push((arrival.from, arrival.header.to_vec(), data));
            });
            self.failures[end].extend(self.workers[end].failures());
        }
        std::thread::yield_now();
    }

    fn until(&mut self, mut is: impl FnMut(&mut Ends) -> bool) {
        let begun = Instant::now();
        while !is(self) {
            self.turn();
            assert!(
                begun.elapsed() < PATIENCE,
                "it does not come: {:?}",
                self.failures
            );
        }
    }

    fn done(&mut self, mut operation: Operation) -> Result<(), Error> {
        let mut outcome = None;
        self.until(|_| {
            outcome = operation.outcome();
            outcome.is_some()
        });
        outcome.unwrap()
    }

    fn next(&mut self, end: usize) -> Come {
        self.until(|ends| !ends.come[end].is_empty());
        self.come[end].remove(0)
    }
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn bytes_come_whole_by_each_way() {
    let mut ends = Ends::connected();
    for end in [0, 1] {
        let over = ends.end(end).transports().unwrap();
        assert!(over.len() == 1 && over[0].starts_with("rc_"), "{over:?}");
    }
    let (source, mirror) = (Ring::new(), Ring::new());
    let (source_memory, mirror_memory) = (source.map(&ends.context), mirror.map(&ends.context));
    let key = mirror_memory.key().unwrap();
    let key = ends.end(0).remote_key(&key).unwrap();
    for (round, length) in [1usize, 8, 80, 8192, 65_536, 200_001]
        .into_iter()
        .enumerate()
    {
        for way in 0..3 {
            let (at, seed) = (round * 977, (round * 3 + way + 1) as u8);
            let value = |i: usize| (i as u8).wrapping_mul(31).wrapping_add(seed);
            (0..length).for_each(|i| source.set(at + i, value(i)));
            let body = Body::Memory(&source_memory, (at, at + length));
            let sent = match way {
                0 => {
                    let to = mirror_memory.address() + at as u64;
                    let put = ends.end(0).put(&source_memory, at..at + length, &key, to);
                    let flush = ends.end(0).flush().unwrap();
                    ends.done(flush).unwrap();
                    ends.done(put.unwrap()).unwrap();
                    ends.end(0).send(&[seed], Body::None, How::Eager)
                }
                1 => ends.end(0).send(&[seed], body, How::Eager),
                _ => ends.end(0).send(&[seed], body, How::Announced),
            };
            let (_, header, data) = ends.next(1);
            assert_eq!(header, [seed]);
            match (way, data) {
                (0, Ok(bytes)) => assert!(bytes.is_empty()),
                (1, Ok(bytes)) => {
                    assert_eq!(bytes.len(), length);
                    (0..length).for_each(|i| mirror.set(at + i, bytes[i]));
                }
                (2, Err(announced)) => {
                    assert_eq!(announced.length(), length);
                    let fetch = announced.fetch(&mirror_memory, at..at + length);
                    ends.done(fetch.unwrap()).unwrap();
                }
                other => panic!("{other:?}"),
            }
            ends.done(sent.unwrap()).unwrap();
            let wrong = (0..length).find(|i| mirror.get(at + i) != value(*i));
            assert_eq!(wrong, None, "of {length} bytes by way {way}");
        }
    }
    // In any order, and what nobody wants is given back.
    let body = Body::Memory(&source_memory, (0, LENGTH));
    let unseen = ends.end(0).send(b"unseen", body, How::Announced).unwrap();
    drop(ends.next(1));
    drop(unseen);
    drop((source_memory, mirror_memory));
    drop(ends);
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn nothing_lands_after_memory_is_unmapped() {
    let mut ends = Ends::connected();
    let (source, mirror) = (Ring::new(), Ring::new());
    let (source_memory, mirror_memory) = (source.map(&ends.context), mirror.map(&ends.context));
    let packed = mirror_memory.key().unwrap();
    let key = ends.end(0).remote_key(&packed).unwrap();
    let to = mirror_memory.address();
    source.set(0, 1);
    let put = |ends: &mut Ends| {
        let put = ends.end(0).put(&source_memory, 0..8, &key, to);
        let flush = ends.end(0).flush();
        match put {
            Ok(put) => ends.done(put).and_then(|()| ends.done(flush?)),
            Err(error) => Err(error),
        }
    };
    put(&mut ends).unwrap();
    assert_eq!(mirror.get(0), 1);

    // Somebody else has it still.
    let (kept, error) = mirror_memory.clone().unmap().unwrap_err();
    assert!(error.to_string().contains("under way"), "{error}");
    drop(kept);
    mirror_memory.unmap().unwrap();
    let _again = mirror.map(&ends.context);
    source.set(0, 2);
    let refused = put(&mut ends);
    assert!(refused.is_err(), "the old key is still good for something");
    ends.until(|ends| !ends.failures[0].is_empty());
    assert_eq!(ends.failures[0][0].0, ends.end(0).key());
    assert_eq!(mirror.get(0), 1);
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn what_cannot_be_meant_is_refused() {
    let ends = Ends::connected();
    let ring = Ring::new();
    let memory = ring.map(&ends.context);
    let packed = memory.key().unwrap();
    let of_another = ends.end(1).remote_key(&packed).unwrap();
    let put = ends
        .end(0)
        .put(&memory, 0..8, &of_another, memory.address());
    assert!(put.unwrap_err().to_string().contains("another endpoint's"));
    let key = ends.end(0).remote_key(&packed).unwrap();
    let outside = ends
        .end(0)
        .put(&memory, LENGTH..LENGTH + 1, &key, memory.address());
    assert!(
        outside
            .unwrap_err()
            .to_string()
            .contains("is not in memory of")
    );
    let outside = ends
        .end(0)
        .send(b"", Body::Memory(&memory, (8, 4)), How::Eager);
    assert!(outside.is_err());
    assert!(ends.end(0).remote_key(&[]).is_err());
    assert!(ends.end(0).remote_key(&vec![0; 1 << 16]).is_err());
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn an_armed_worker_wakes() {
    let mut ends = Ends::connected();
    let readable = |ends: &Ends, milliseconds: u16| {
        let mut fds = [PollFd::new(ends.workers[1].fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() > 0
    };
    // What is left of the beginning.
    ends.until(|ends| ends.workers[1].arm().unwrap() && !readable(ends, 100));
    let sent = ends.end(0).send(b"wake", Body::None, How::Eager).unwrap();
    assert!(readable(&ends, 5000));
    assert_eq!(ends.next(1).1, b"wake");
    ends.done(sent).unwrap();
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn the_end_of_one_side_and_a_refusal_are_told() {
    let mut ends = Ends::connected();
    let key = ends.end(0).key();
    drop(ends.endpoints[1].take());
    ends.until(|ends| !ends.failures[0].is_empty());
    assert_eq!(ends.failures[0][0].0, key);

    let mut ends = Ends::apart();
    let listener = Listener::new(&ends.workers[0], address(0)).unwrap();
    let to = address(listener.port().unwrap());
    let asking = Endpoint::connect(&ends.workers[1], to).unwrap();
    ends.until(|_| listener.request().is_some());
    ends.until(|ends| !ends.failures[1].is_empty());
    assert_eq!(ends.failures[1][0].0, asking.key());

    // Where nobody listens.
    drop((listener, asking));
    ends.failures[1].clear();
    let asking = Endpoint::connect(&ends.workers[1], to).unwrap();
    ends.until(|ends| !ends.failures[1].is_empty());
    assert_eq!(ends.failures[1][0].0, asking.key());
}

/// Of two connections of one worker the one ends while UCX cannot be done with the other.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn an_end_is_told_from_another_connections() {
    let mut ends = Ends::connected();
    let lasting = ends.end(0).key();
    let source = Ring::new().map(&ends.context);
    // Nobody fetches it.
    let body = Body::Memory(&source, (0, LENGTH));
    let sent = ends.end(0).send(b"long", body, How::Announced).unwrap();
    let (_, _, announced) = ends.next(1);
    assert!(!sent.is_done());
    drop(sent);
    assert!(ends.workers[0].is_ending(lasting));

    let [one, other] = ends.pair();
    let ending = one.key();
    assert!(!ends.workers[0].is_ending(ending));
    drop((one, other));
    assert!(ends.workers[0].is_ending(ending));
    ends.until(|ends| !ends.workers[0].is_ending(ending));
    assert!(ends.workers[0].is_ending(lasting));
    drop(announced);
    ends.until(|ends| !ends.workers[0].is_ending(lasting));
}

/// Not before what was put by them is done, and not only with their endpoint.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn keys_are_given_back() {
    let mut ends = Ends::connected();
    let (source, mirror) = (Ring::new(), Ring::new());
    let (source_memory, mirror_memory) = (source.map(&ends.context), mirror.map(&ends.context));
    let packed = mirror_memory.key().unwrap();
    for _ in 0..100 {
        drop(ends.end(0).remote_key(&packed).unwrap());
        ends.turn();
        assert_eq!(ends.workers[0].remote_keys(), 0);
    }
    for seen in [true, false] {
        (0..LENGTH).for_each(|i| source.set(i, i as u8 ^ u8::from(seen)));
        let key = ends.end(0).remote_key(&packed).unwrap();
        assert_eq!(ends.workers[0].remote_keys(), 1);
        let to = mirror_memory.address();
        let mut puts: Vec<_> = (0..20)
            .map(|_| {
                ends.end(0)
                    .put(&source_memory, 0..LENGTH, &key, to)
                    .unwrap()
            })
            .collect();
        drop(key);
        ends.turn();
        assert!(puts.iter().any(|put| !put.is_done()));
        assert_eq!(ends.workers[0].remote_keys(), 1);
        let flush = ends.end(0).flush().unwrap();
        match seen {
            true => puts.drain(..).for_each(|put| ends.done(put).unwrap()),
            false => drop(puts),
        }
        ends.done(flush).unwrap();
        ends.until(|ends| ends.workers[0].remote_keys() == 0);
        let wrong = (0..LENGTH).find(|i| mirror.get(*i) != source.get(*i));
        assert_eq!(wrong, None);
    }
    // One that outlives its endpoint.
    let key = ends.end(0).remote_key(&packed).unwrap();
    drop(ends.endpoints[0].take());
    ends.turn();
    assert_eq!(ends.workers[0].remote_keys(), 1);
    drop(key);
    ends.turn();
    assert_eq!(ends.workers[0].remote_keys(), 0);
}

/// Requests that nobody takes are bounded: the first ones make room.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn requests_that_wait_are_bounded() {
    let mut ends = Ends::apart();
    let listener = Listener::new(&ends.workers[0], address(0)).unwrap();
    let to = address(listener.port().unwrap());
    let asking: Vec<_> = (0..70)
        .map(|_| Endpoint::connect(&ends.workers[1], to).unwrap())
        .collect();
    ends.until(|ends| ends.failures[1].len() >= 6);
    (0..1000).for_each(|_| ends.turn());
    assert_eq!(ends.failures[1].len(), 6, "{:?}", ends.failures);
    let waiting: Vec<_> = std::iter::from_fn(|| listener.request()).collect();
    assert_eq!(waiting.len(), 64);
    drop((waiting, listener));
    ends.until(|ends| ends.failures[1].len() == 70);
    drop(asking);
}
