//! The rows of the design's crash matrix, one scenario each, over both characters of links and under both retentions.

use crate::flow::Wrong;
use crate::sim::{MS, SECOND, Shape, Sim};
use tbus::grm::Transport;
use tbus_transport::session::{HEARTBEAT, SILENCE};

/// A scenario's name, and what it does to a fresh pair of hosts with traffic.
type Scenario = (&'static str, fn(&mut Sim) -> Result<(), Wrong>);

/// All of them.
pub const ALL: [Scenario; 18] = [
    ("sender_dies_in_the_midst_of_a_message", sender_dies),
    ("sender_dies_before_it_wakes_the_relay", no_wake_up),
    ("receiver_dies_between_reading_and_releasing", receiver_dies),
    ("sending_relay_dies_at_every_call", |sim| every_call(sim, 0)),
    ("receiving_relay_dies_at_every_call", |sim| {
        every_call(sim, 1)
    }),
    ("both_relays_die", both_die),
    (
        "a_second_relay_is_refused_until_the_first_dies",
        second_relay,
    ),
    ("acknowledged_before_a_sleep", acknowledged),
    ("receiving_host_is_lost", receiving_host),
    ("sending_host_is_lost", sending_host),
    ("cut_and_healed", |sim| cut(sim, &[(0, 1), (1, 0)])),
    ("cut_one_way", |sim| cut(sim, &[(0, 1)])),
    ("cut_the_other_way", |sim| cut(sim, &[(1, 0)])),
    ("links_flap", flap),
    ("late_writes_of_old_links", late_writes),
    ("rdma_fails_and_returns", fallback),
    ("switched_by_hand", switched),
    ("ring_deleted_and_made_anew", deleted),
];

/// The variants of a scenario.
pub fn shapes(seed: u64) -> impl Iterator<Item = Shape> {
    [(0, false), (0, true), (1000, false), (1000, true)]
        .into_iter()
        .map(move |(rdma, retained)| Shape {
            seed,
            hosts: 2,
            channels: 1,
            capacity: 4096,
            retained,
            rdma,
            tempo: 4 * MS,
        })
}

/// Lets it run for a while without faults.
fn calm(sim: &mut Sim, time: u64) -> Result<(), Wrong> {
    let until = sim.now() + time;
    sim.run(until, |_| false).map(drop)
}

/// Runs until both relays are connected.
fn connect(sim: &mut Sim) -> Result<(), Wrong> {
    let until = sim.now() + 10 * SECOND;
    let connected = |sim: &mut Sim| {
        sim.hosts.iter().all(|host| {
            host.live
                .as_ref()
                .is_some_and(|live| live.relay.is_connected())
        })
    };
    match sim.run(until, connected)? {
        true => Ok(()),
        false => Err("the relays are not connected within 10 s".into()),
    }
}

/// Runs until everything sent has come, without new messages; returns how long that took.
fn settle(sim: &mut Sim) -> Result<u64, Wrong> {
    let begun = sim.now();
    sim.sends = false;
    let all = |sim: &mut Sim| sim.flows.iter().all(|flow| flow.next == flow.sent.len());
    let done = sim.run(begun + 10 * SECOND, all)?;
    sim.sends = true;
    match done {
        true => Ok(sim.now() - begun),
        false => Err("not everything has come within 10 s without a fault".into()),
    }
}

fn sender_dies(sim: &mut Sim) -> Result<(), Wrong> {
    for _ in 0..20 {
        calm(sim, 20 * MS)?;
        if let Some(sender) = &mut sim.flows[0].sender
            && let Ok(mut reservation) = sender.reserve(100)
        {
            reservation.write_at(0, &[7; 50]);
            std::mem::forget(reservation);
        }
        sim.flows[0].sender = None;
    }
    Ok(())
}

fn no_wake_up(sim: &mut Sim) -> Result<(), Wrong> {
    connect(sim)?;
    calm(sim, 100 * MS)?;
    for _ in 0..20 {
        settle(sim)?;
        sim.sends = false;
        let mut random = sim.random.clone();
        sim.flows[0].send(1, &mut random)?;
        sim.flows[0].sender = None; // it rang no doorbell
        let (begun, count) = (sim.now(), sim.flows[0].sent.len());
        if !sim.run(begun + 130 * MS, |sim| sim.flows[0].next == count)? {
            return Err("a message without a wake-up takes more than 130 ms".into());
        }
        sim.sends = true;
        calm(sim, 20 * MS)?;
    }
    Ok(())
}

fn receiver_dies(sim: &mut Sim) -> Result<(), Wrong> {
    for _ in 0..40 {
        calm(sim, 10 * MS)?;
        sim.flows[0].receive(3, true)?;
        sim.flows[0].receiver = None;
    }
    Ok(())
}

/// Bytes that the peers of a host have not acknowledged.
fn unacknowledged(sim: &Sim, host: usize) -> u64 {
    let live = sim.hosts[host].live.iter();
    let rings = live.flat_map(|live| live.relay.status(sim.now()).rings);
    let out = rings.filter(|ring| ring.outbound);
    out.map(|ring| ring.lag).sum()
}

/// A message alone is acknowledged though nothing follows it and both relays go to sleep.
fn acknowledged(sim: &mut Sim) -> Result<(), Wrong> {
    connect(sim)?;
    for _ in 0..20 {
        settle(sim)?;
        sim.sends = false;
        calm(sim, 20 * MS)?;
        sim.sends = true;
        let count = sim.flows[0].sent.len();
        let until = sim.now() + SECOND;
        sim.run(until, |sim| sim.flows[0].sent.len() > count)?;
        settle(sim)?;
        sim.sends = false;
        let until = sim.now() + 10 * MS;
        if !sim.run(until, |sim| unacknowledged(sim, 0) == 0)? {
            return Err("what has come is not acknowledged within 10 ms".into());
        }
        sim.sends = true;
    }
    Ok(())
}

fn every_call(sim: &mut Sim, host: usize) -> Result<(), Wrong> {
    for call in 0..60 {
        connect(sim)?;
        calm(sim, 5 * MS)?;
        sim.kill_inside(host, call);
        let kills = sim.stats.kills;
        let until = sim.now() + SECOND;
        if !sim.run(until, |sim| sim.stats.kills > kills)? {
            return Err(format!("call {call} does not come"));
        }
    }
    // From the first call of a relay on.
    for call in 0..60 {
        let kills = sim.stats.kills;
        let until = sim.now() + 5 * SECOND;
        sim.run(until, |sim| sim.hosts[host].live.is_some())?;
        sim.kill_inside(host, call);
        sim.run(until, |sim| sim.stats.kills > kills)?;
    }
    Ok(())
}

fn both_die(sim: &mut Sim) -> Result<(), Wrong> {
    for _ in 0..20 {
        connect(sim)?;
        calm(sim, 15 * MS)?;
        sim.kill(0);
        sim.kill(1);
    }
    Ok(())
}

fn second_relay(sim: &mut Sim) -> Result<(), Wrong> {
    for claims in [false, true] {
        connect(sim)?;
        sim.start_second(0, claims);
        calm(sim, SECOND)?;
        let served = |sim: &Sim| {
            sim.hosts[0]
                .second
                .as_ref()
                .map(|live| live.relay.status(0).rings.len())
        };
        if served(sim) != Some(0) {
            return Err(format!("the second relay serves {:?} rings", served(sim)));
        }
        if !claims {
            connect(sim)?;
            settle(sim)?;
        }
        // The first one dies and stays so: the second takes the roles.
        sim.kill(0);
        sim.hosts[0].start_due = None;
        calm(sim, SECOND)?;
        if served(sim) != Some(2) {
            return Err(format!("the second relay serves {:?} rings", served(sim)));
        }
        sim.end_second(0);
        sim.start(0);
    }
    Ok(())
}

fn receiving_host(sim: &mut Sim) -> Result<(), Wrong> {
    for round in 0..6 {
        connect(sim)?;
        calm(sim, 60 * MS)?;
        if round % 2 == 0 {
            sim.flows[0].receiver = None; // so that there is something to lose
            sim.restarts_apps = false;
            calm(sim, 40 * MS)?;
            sim.restarts_apps = true;
        }
        let before = sim.flows[0].next;
        sim.flows[0].last_jump = None;
        sim.lose_host(1);
        let until = sim.now() + 10 * SECOND;
        let resumed = |sim: &mut Sim| {
            let flow = &sim.flows[0];
            flow.receiver.is_some() && flow.again_from.is_none()
        };
        if !sim.run(until, resumed)? {
            return Err("nothing comes after the receiving host was lost".into());
        }
        // What was released and not yet told lies within a sixteenth of the ring, the messages at its ends, and the one
        // that the relay published in its last pass.
        let flow = &sim.flows[0];
        let end = |number: usize| number.checked_sub(1).map_or(0, |n| flow.sent[n].end);
        let first = flow.last_jump.filter(|jump| *jump < before);
        let again = first.map_or(0, |first| end(before) - end(first));
        if sim.shape.retained && again > sim.shape.capacity / 16 + 3 * 1024 {
            return Err(format!("{again} bytes of messages came again"));
        }
    }
    Ok(())
}

fn sending_host(sim: &mut Sim) -> Result<(), Wrong> {
    for _ in 0..6 {
        connect(sim)?;
        calm(sim, 60 * MS)?;
        sim.flows[0].receiver = None;
        sim.restarts_apps = false;
        calm(sim, 40 * MS)?;
        sim.lose_host(0);
        calm(sim, 2 * SECOND)?;
        sim.restarts_apps = true;
        calm(sim, 100 * MS)?;
    }
    Ok(())
}

fn cut(sim: &mut Sim, pairs: &[(usize, usize)]) -> Result<(), Wrong> {
    for _ in 0..3 {
        connect(sim)?;
        calm(sim, 30 * MS)?;
        sim.stats.partitions += 1;
        sim.world.set(|conditions| conditions.cut.extend(pairs));
        let (begun, steps) = (sim.now(), sim.stats.steps);
        let apart = |sim: &mut Sim| {
            let is_up = |host: &crate::sim::SimHost| {
                let live = host.live.as_ref().expect("nobody was killed");
                live.relay
                    .status(0)
                    .peers
                    .iter()
                    .any(|peer| peer.transport.is_some())
            };
            !sim.hosts.iter().any(is_up)
        };
        if !sim.run(begun + SILENCE + HEARTBEAT, apart)? {
            return Err("a cut is not noticed by both sides within 3 s".into());
        }
        calm(sim, 4 * SECOND)?;
        let steps = (sim.stats.steps - steps) * SECOND / (sim.now() - begun);
        if steps > 5_000 {
            return Err(format!("{steps} steps a second while the line is cut"));
        }
        sim.world.set(|conditions| conditions.cut.clear());
    }
    connect(sim)
}

fn flap(sim: &mut Sim) -> Result<(), Wrong> {
    for round in 0..60 {
        let time = 5 * MS + sim.random.below(40 * MS);
        calm(sim, time)?;
        let broken = match round % 3 {
            0 => sim.world.break_control(),
            _ => sim.world.break_link(),
        };
        sim.stats.breaks += u64::from(broken);
    }
    connect(sim)
}

/// Runs until messages have gone both ways over links of this transport, on both hosts.
fn until_over(sim: &mut Sim, name: &str) -> Result<(), Wrong> {
    let until = sim.now() + 5 * SECOND;
    if !sim.run(until, |sim| sim.are_over(name))? {
        return Err(format!("the links are not over {name} within 5 s"));
    }
    let before: Vec<usize> = sim.flows.iter().map(|flow| flow.next).collect();
    let moves = |sim: &mut Sim| {
        let mut flows = sim.flows.iter().zip(&before);
        flows.all(|(flow, before)| flow.next > before + 2)
    };
    let until = sim.now() + 5 * SECOND;
    match sim.run(until, moves)? {
        true => Ok(()),
        false => Err(format!("no messages over {name} within 5 s")),
    }
}

fn fallback(sim: &mut Sim) -> Result<(), Wrong> {
    if sim.shape.rdma == 0 {
        return until_over(sim, "tcp");
    }
    for round in 0..12 {
        until_over(sim, "verbs")?;
        // With the device, and with the way alone.
        sim.world.set(|conditions| conditions.rdma = round % 2);
        sim.world.break_rdma();
        sim.stats.failures += 1;
        until_over(sim, "tcp")?;
        sim.world.set(|conditions| conditions.rdma = 1000);
    }
    until_over(sim, "verbs")
}

fn switched(sim: &mut Sim) -> Result<(), Wrong> {
    connect(sim)?;
    let may = [Some(Transport::Tcp), Some(Transport::Verbs), None];
    for _ in 0..60 {
        let host = sim.random.below(2) as usize;
        let wanted = may[sim.random.below(3) as usize];
        let now = sim.now();
        if let Some(live) = &mut sim.hosts[host].live {
            live.switch(2 - host as u32, wanted, now)?;
        }
        let time = sim.random.below(60 * MS);
        calm(sim, time)?;
    }
    for host in 0..2 {
        let now = sim.now();
        if let Some(live) = &mut sim.hosts[host].live {
            live.switch(2 - host as u32, None, now)?;
        }
    }
    until_over(sim, if sim.shape.rdma == 0 { "tcp" } else { "verbs" })
}

fn late_writes(sim: &mut Sim) -> Result<(), Wrong> {
    sim.world
        .set(|conditions| (conditions.loss, conditions.stray) = (200, 100));
    for round in 0..60 {
        let time = 20 * MS + sim.random.below(60 * MS);
        calm(sim, time)?;
        match round % 3 {
            0 => sim.kill(1),
            1 => sim.kill(0),
            _ => sim.stats.breaks += u64::from(sim.world.break_link()),
        }
    }
    Ok(())
}

fn deleted(sim: &mut Sim) -> Result<(), Wrong> {
    for host in [0, 1, 0, 1] {
        connect(sim)?;
        calm(sim, 50 * MS)?;
        sim.recreate(host)?;
    }
    Ok(())
}
