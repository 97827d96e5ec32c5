//! Over a real device, or one in software: `ci/rxe run -- cargo test -p tbus-rdma-sys --test device -- --ignored`. There the address of
//! the device is in RDMA_ADDRESS. Without a device these tests are not run, which is said, for they are ignored.

mod ends;

use ends::{End, Memory, connect, event, listen, resources, until};
use std::time::Duration;

use tbus_rdma_sys::{
    Access, ConnectionId, Device, EventChannel, EventKind, Limits, Notice, Outcome, Region, Verbs,
    Write,
};

const LIMITS: Limits = Limits {
    sends: 32,
    receives: 16,
    receive_size: 128,
    inline: 64,
};

fn write<'a>(source: &'a Region, offset: u64, length: u32, mirror: &Region) -> Write<'a> {
    Write {
        source,
        offset,
        length,
        remote_offset: offset,
        remote_key: mirror.remote_key(),
    }
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn written_bytes_are_there_when_the_notice_is() {
    let _alone = ends::alone();
    const LENGTH: usize = 1 << 20;
    const ROUNDS: u64 = 200;
    let before = resources();
    let (mut sender, mut receiver) = connect(LIMITS, [7; 16]);
    let (source, mirror) = (Memory::tmpfs(LENGTH), Memory::tmpfs(LENGTH));
    let source_region = source.register(&sender.domain, Access::Source);
    let mirror_region = mirror.register(&receiver.domain, Access::Mirror);
    assert_ne!(resources(), before, "what is there is not seen");

    // Ranges of all sizes that go around, each in two writes at the wrap.
    let range = |round: u64| {
        let from = round.wrapping_mul(round).wrapping_mul(7919) % LENGTH as u64;
        (from, 1 + (round * 2099) % 60_000)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                let (from, length) = range(round);
                let before_wrap = length.min(LENGTH as u64 - from);
                for i in 0..length {
                    source.set((from + i) as usize % LENGTH, (round + i) as u8);
                }
                let mut writes = vec![write(
                    &source_region,
                    from,
                    before_wrap as u32,
                    &mirror_region,
                )];
                if before_wrap < length {
                    let rest = (length - before_wrap) as u32;
                    writes.push(write(&source_region, 0, rest, &mirror_region));
                }
                let number = round.to_le_bytes();
                let notice = match round % 3 {
                    0 => Notice::Immediate(round as u32),
                    _ => Notice::Send(&number),
                };
                let posted = sender.pair.post(&writes, notice, round % 5 == 0).unwrap();
                assert!(posted.is_some(), "no room");
                // The receiver's answer, before bytes of the next round may overwrite this one's.
                assert_eq!(sender.message(), round.to_le_bytes());
            }
        });
        scope.spawn(|| {
            for round in 0..ROUNDS {
                let message = receiver.receive();
                match round % 3 {
                    0 => assert_eq!(message.immediate, Some(round as u32)),
                    _ => assert_eq!(receiver.pair.bytes(&message), round.to_le_bytes()),
                }
                receiver.pair.repost(message).unwrap();
                let (from, length) = range(round);
                for i in 0..length {
                    let at = (from + i) as usize % LENGTH;
                    assert_eq!(mirror.get(at), (round + i) as u8, "round {round}, byte {i}");
                }
                let answer = round.to_le_bytes();
                let posted = receiver
                    .pair
                    .post(&[], Notice::Send(&answer), false)
                    .unwrap();
                assert!(posted.is_some(), "no room");
            }
        });
    });

    for (mut end, region) in [(sender, source_region), (receiver, mirror_region)] {
        assert!(end.pair.drain(Duration::from_secs(5), |_| {}).unwrap());
        end.pair.destroy().unwrap();
        region.deregister().unwrap();
    }
    assert_eq!(resources(), before);
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn nothing_lands_after_deregistration() {
    let _alone = ends::alone();
    let (mut sender, receiver) = connect(LIMITS, [1; 16]);
    let (source, mirror) = (Memory::tmpfs(4096), Memory::tmpfs(4096));
    let source_region = source.register(&sender.domain, Access::Source);
    let old = mirror.register(&receiver.domain, Access::Mirror);
    source.set(0, 1);
    let late = write(&source_region, 0, 8, &old);
    sender.pair.post(&[late], Notice::None, true).unwrap();
    until(|| matches!(sender.completion().outcome, Outcome::Sent(1)));
    assert_eq!(mirror.get(0), 1);

    old.deregister().unwrap();
    let _new = mirror.register(&receiver.domain, Access::Mirror);
    source.set(0, 2);
    sender.pair.post(&[late], Notice::None, true).unwrap();
    match sender.completion().outcome {
        Outcome::Failed(status) => assert!(!status.is_flush(), "{status}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(mirror.get(0), 1);
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn a_region_ends_where_it_ends_and_sources_are_not_written() {
    let _alone = ends::alone();
    for (access, offset) in [
        (Access::Mirror, 4090),
        (Access::Source, 0),
        (Access::Receive, 0),
    ] {
        let (mut sender, receiver) = connect(LIMITS, [1; 16]);
        // More is mapped than registered.
        let (source, memory) = (Memory::tmpfs(8192), Memory::tmpfs(8192));
        let source_region = source.register(&sender.domain, Access::Source);
        let target = memory.register_part(&receiver.domain, access, 4096);
        for i in 0..8192 {
            source.set(i, 9);
        }
        let bad = write(&source_region, offset, 8, &target);
        sender
            .pair
            .post(&[bad], Notice::Send(b"lie"), true)
            .unwrap();
        match sender.completion().outcome {
            Outcome::Failed(status) => {
                assert!(!status.is_flush() && !status.is_silence(), "{status}")
            }
            other => panic!("{access:?}: {other:?}"),
        }
        assert!((0..8192).all(|i| memory.get(i) == 0), "{access:?}");
    }
    // What lies outside this end's own region is not even posted.
    let (mut sender, receiver) = connect(LIMITS, [1; 16]);
    let memory = Memory::tmpfs(4096);
    let source = memory.register(&sender.domain, Access::Source);
    let mirror = memory.register(&receiver.domain, Access::Mirror);
    for (offset, length) in [(4096, 1), (0, 4097), (u64::MAX, 1)] {
        let error = sender
            .pair
            .post(
                &[write(&source, offset, length, &mirror)],
                Notice::None,
                true,
            )
            .unwrap_err();
        assert!(
            error.to_string().contains("are not in a region of 4096"),
            "{error}"
        );
    }
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn a_full_queue_is_said_and_signals_make_room() {
    let _alone = ends::alone();
    let (mut sender, mut receiver) = connect(LIMITS, [1; 16]);
    let error = sender
        .pair
        .post(&[], Notice::Send(&[0; 65]), false)
        .unwrap_err();
    assert!(error.to_string().contains("at most 64 bytes"), "{error}");
    let memory = Memory::tmpfs(4096);
    let source = memory.register(&sender.domain, Access::Source);
    let mirror = memory.register(&receiver.domain, Access::Mirror);
    // Never signalled by us; after thousands of them, more than the queue holds by far, there must still be room.
    let mut posted = 0u32;
    while posted < 3000 {
        let one = write(&source, 0, 8, &mirror);
        match sender.pair.post(&[one, one], Notice::None, false).unwrap() {
            Some(number) => posted = number,
            None => {
                assert!(sender.pair.room() < 2);
                assert!(matches!(sender.completion().outcome, Outcome::Sent(_)));
            }
        }
    }
    // All of it is done before the message.
    sender.pair.post(&[], Notice::Send(b"end"), true).unwrap();
    assert_eq!(receiver.message(), b"end");
    until(|| {
        sender.poll();
        sender.pair.room() == LIMITS.sends
    });
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn an_armed_queue_wakes() {
    let _alone = ends::alone();
    let (mut sender, mut receiver) = connect(LIMITS, [1; 16]);
    assert!(!receiver.queue.take_wakeups().unwrap());
    sender.pair.post(&[], Notice::Send(b"1"), true).unwrap();
    assert_eq!(receiver.message(), b"1");
    // It was not armed.
    assert!(!ends::readable(receiver.queue.fd(), 200));
    receiver.queue.arm().unwrap();
    assert!(!receiver.poll());
    assert!(!ends::readable(receiver.queue.fd(), 200));
    sender.pair.post(&[], Notice::Send(b"2"), true).unwrap();
    assert!(ends::readable(receiver.queue.fd(), 5000));
    assert!(receiver.queue.take_wakeups().unwrap());
    assert!(!receiver.queue.take_wakeups().unwrap());
    assert_eq!(receiver.message(), b"2");
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn the_end_of_one_side_is_told_to_the_other() {
    let _alone = ends::alone();
    let before = resources();
    let (mut sender, receiver) = connect(LIMITS, [1; 16]);
    sender.id.disconnect().unwrap();
    assert!(matches!(
        event(&receiver.channel).kind,
        EventKind::Disconnected
    ));
    let mut flushed = 0;
    let drained = sender.pair.drain(Duration::from_secs(5), |completion| {
        if let Outcome::Failed(status) = completion.outcome {
            assert!(status.is_flush(), "{status}");
            flushed += 1;
        }
    });
    assert!(drained.unwrap());
    assert_eq!(flushed, LIMITS.receives);
    assert!(sender.pair.post(&[], Notice::Send(b"x"), true).is_err());

    // In any order: what is needed stays until it is not.
    let End {
        channel,
        id,
        domain,
        queue,
        pair,
        ..
    } = sender;
    drop((channel, id));
    drop((domain, queue));
    assert_ne!(resources(), before);
    drop(pair);
    drop(receiver);
    assert_eq!(resources(), before);
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn a_forked_child_destroys_nothing_of_its_parent() {
    let _alone = ends::alone();
    let (mut sender, mut receiver) = connect(LIMITS, [1; 16]);
    let memory = Memory::tmpfs(4096);
    let source = memory.register(&sender.domain, Access::Source);
    let mirror = memory.register(&receiver.domain, Access::Mirror);
    let counts = resources();
    // SAFETY: the child does no more than drop what it has got, and ends.
    match unsafe { libc::fork() } {
        0 => {
            let refused = Verbs::load().is_err()
                && source.deregister().is_err()
                && sender.pair.destroy().is_err();
            drop((mirror, sender.id, sender.domain, sender.queue, receiver));
            // SAFETY: ends the process.
            unsafe { libc::_exit(if refused { 7 } else { 1 }) }
        }
        child => {
            let mut status = 0;
            // SAFETY: status is valid for writing.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(libc::WEXITSTATUS(status), 7);
        }
    }
    assert_eq!(resources(), counts);
    let all = write(&source, 0, 4096, &mirror);
    sender
        .pair
        .post(&[all], Notice::Send(b"still there"), true)
        .unwrap();
    assert_eq!(receiver.message(), b"still there");
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn who_is_not_wanted_is_told() {
    let _alone = ends::alone();
    let verbs = Verbs::load().unwrap();
    let (doors, listener) = listen(verbs);
    for drop_it in [false, true] {
        let channel = EventChannel::new(verbs).unwrap();
        let id = ends::dial(&channel, listener.local_port());
        let domain = tbus_rdma_sys::ProtectionDomain::new(&id).unwrap();
        let (_queue, _pair) = ends::pair(&id, &domain, LIMITS);
        id.connect(b"a token of 16 by").unwrap();
        let request = event(&doors);
        assert_eq!(request.key, listener.key());
        assert_eq!(request.private_data[..16], *b"a token of 16 by");
        let EventKind::ConnectRequest(asking) = request.kind else {
            panic!("{:?}", request.kind)
        };
        match drop_it {
            true => drop(asking),
            false => asking.reject(b"no").unwrap(),
        }
        let answer = event(&channel);
        assert_eq!(answer.key, id.key());
        assert!(
            matches!(answer.kind, EventKind::Rejected),
            "{:?}",
            answer.kind
        );
        assert!(drop_it || answer.private_data.starts_with(b"no"));
    }
    // Where nobody listens.
    let port = listener.local_port();
    drop(listener);
    let channel = EventChannel::new(verbs).unwrap();
    let id = ends::dial(&channel, port);
    let domain = tbus_rdma_sys::ProtectionDomain::new(&id).unwrap();
    let (_queue, _pair) = ends::pair(&id, &domain, LIMITS);
    id.connect(&[]).unwrap();
    assert!(matches!(event(&channel).kind, EventKind::Rejected));
    assert!(
        id.connect(&[0; 57])
            .unwrap_err()
            .to_string()
            .contains("at most 56 bytes")
    );
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn another_thread_goes_on_with_a_connection() {
    let _alone = ends::alone();
    let (sender, receiver) = connect(LIMITS, [1; 16]);
    let channel = EventChannel::new(Verbs::load().unwrap()).unwrap();
    receiver.id.migrate(&channel).unwrap();
    sender.id.disconnect().unwrap();
    let told = event(&channel);
    assert!(
        matches!(told.kind, EventKind::Disconnected),
        "{:?}",
        told.kind
    );
    assert_eq!(told.key, receiver.id.key());
    assert!(receiver.channel.next_event().unwrap().is_none());
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn what_the_device_says_of_itself() {
    let _alone = ends::alone();
    let verbs = Verbs::load().unwrap();
    let names = verbs.probe(4096).unwrap();
    let (sender, _receiver) = connect(LIMITS, [1; 16]);
    let device = Device::of(&sender.id).unwrap();
    assert!(names.contains(&device.name()), "{names:?}");
    let limits = device.limits().unwrap();
    assert!(limits.queue >= 64 && limits.region >= 1 << 20, "{limits:?}");
    let port = device.port().unwrap();
    assert!(port.active, "{port:?}");
    assert!([256, 512, 1024, 2048, 4096].contains(&port.mtu), "{port:?}");
    assert!(port.message >= 1 << 20, "{port:?}");
    assert_eq!(device.next_async_event().unwrap(), None);

    // More than it can do is an error, not a wish.
    let channel = EventChannel::new(verbs).unwrap();
    let fresh = ConnectionId::new(&channel).unwrap();
    assert!(
        Device::of(&fresh)
            .unwrap_err()
            .to_string()
            .contains("resolve its address")
    );
    assert!(tbus_rdma_sys::CompletionQueue::new(&sender.id, u32::MAX).is_err());
    let small = tbus_rdma_sys::CompletionQueue::new(&sender.id, 8).unwrap();
    let error = tbus_rdma_sys::QueuePair::new(&sender.id, &sender.domain, &small, &small, LIMITS);
    assert!(error.unwrap_err().to_string().contains("can come at once"));
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn memory_that_may_not_be_locked_is_said_with_the_mend() {
    let _alone = ends::alone();
    let (sender, _receiver) = connect(LIMITS, [1; 16]);
    let memory = Memory::tmpfs(1 << 20);
    let _limit = ends::limited(256 << 10);
    let unavailable = Verbs::load().unwrap().probe(1 << 20).unwrap_err();
    for text in [
        memory
            .try_register(&sender.domain, Access::Mirror)
            .unwrap_err()
            .to_string(),
        unavailable.to_string(),
    ] {
        assert!(
            text.contains("1048576 bytes are to be registered"),
            "{text}"
        );
        assert!(text.contains("LimitMEMLOCK=infinity"), "{text}");
    }
}
