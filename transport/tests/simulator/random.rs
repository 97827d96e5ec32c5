//! Random faults at random times.

use crate::flow::Wrong;
use crate::sim::{MS, SECOND, Shape, Sim};
use crate::trace::note;
use tbus_transport::sim::Random;

/// The scenario of a seed.
pub fn shape(seed: u64) -> Shape {
    let mut random = Random::new(seed ^ 0x5eed);
    let hosts = if random.chance(100) { 3 } else { 2 };
    Shape {
        seed,
        hosts,
        channels: if hosts == 2 && random.chance(300) {
            2
        } else {
            1
        },
        capacity: if random.chance(700) { 4096 } else { 8192 },
        retained: random.chance(400),
        rdma: [0, 500, 1000][random.below(3) as usize],
        tempo: (10 + random.below(30)) * MS,
    }
}

/// How often each fault comes in a scenario, of all that come.
const FAULTS: [(&str, u64); 12] = [
    ("kill", 12),
    ("kill inside", 20),
    ("kill sender", 6),
    ("kill receiver", 6),
    ("break control", 6),
    ("break link", 8),
    ("rdma", 5),
    ("partition", 5),
    ("one-way cut", 5),
    ("loss", 6),
    ("pause", 4),
    ("rare", 8),
];

/// Runs a seed to its end.
pub fn run(sim: &mut Sim) -> Result<(), Wrong> {
    let end = SECOND + sim.random.below(3 * SECOND);
    let begun = sim.random.below(200 * MS);
    sim.world.set(|conditions| conditions.stray = 20);
    sim.run(begun, |_| false)?;
    let rare = sim.random.chance(350);
    let pace = 20 * MS + sim.random.below(250 * MS);
    let mut healing = Vec::new();
    while sim.now() < end {
        fault(sim, rare, &mut healing)?;
        let until = sim.now() + 1 + sim.random.below(2 * pace);
        while sim.now() < until {
            let next = healing
                .iter()
                .map(|(due, _)| *due)
                .min()
                .unwrap_or(until)
                .min(until);
            sim.run(next.max(sim.now() + 1), |_| false)?;
            let now = sim.now();
            for (_, pair) in healing.extract_if(.., |(due, _)| *due <= now) {
                sim.world.set(|conditions| conditions.cut.remove(&pair));
            }
        }
    }
    sim.heal()
}

type Healing = Vec<(u64, (usize, usize))>;

fn fault(sim: &mut Sim, rare: bool, healing: &mut Healing) -> Result<(), Wrong> {
    let total: u64 = FAULTS.iter().map(|fault| fault.1).sum();
    let mut at = sim.random.below(total);
    let found = FAULTS.iter().find(|fault| {
        let is_it = at < fault.1;
        at = at.wrapping_sub(fault.1);
        is_it
    });
    let kind = found.map_or("kill", |fault| fault.0);
    let now = sim.now();
    let host = sim.random.below(sim.hosts.len() as u64) as usize;
    let other =
        (host + 1 + sim.random.below(sim.hosts.len() as u64 - 1) as usize) % sim.hosts.len();
    let flow = sim.random.below(sim.flows.len() as u64) as usize;
    note(|| {
        format!(
            "fault: {kind}, host {}, flow {}",
            host + 1,
            sim.flows[flow].name()
        )
    });
    match kind {
        "kill" => sim.kill(host),
        "kill inside" => {
            let calls = sim.random.skewed(200);
            sim.kill_inside(host, calls);
        }
        "kill sender" => {
            sim.stats.app_kills += 1;
            sim.flows[flow].sender = None;
        }
        "kill receiver" => {
            sim.stats.app_kills += 1;
            if sim.random.chance(500) {
                sim.stats.half_read += 1;
                sim.flows[flow].receive(1, true)?;
            }
            sim.flows[flow].receiver = None;
        }
        "break control" => sim.stats.breaks += u64::from(sim.world.break_control()),
        "break link" => sim.stats.breaks += u64::from(sim.world.break_link()),
        "rdma" if sim.shape.rdma > 0 => {
            let rdma = [0, 1, sim.shape.rdma, sim.shape.rdma][sim.random.below(4) as usize];
            sim.world.set(|conditions| conditions.rdma = rdma);
            if rdma < sim.shape.rdma {
                sim.stats.failures += 1;
                sim.world.break_rdma();
            }
        }
        "partition" | "one-way cut" => {
            let until = now + 10 * MS + sim.random.skewed(5 * SECOND);
            let both = kind == "partition";
            let pairs = [(host, other), (other, host)];
            for pair in &pairs[..1 + usize::from(both)] {
                sim.world.set(|conditions| conditions.cut.insert(*pair));
                healing.push((until, *pair));
            }
            match both {
                true => sim.stats.partitions += 1,
                false => sim.stats.one_way_cuts += 1,
            }
        }
        "loss" => {
            let loss = sim.random.below(301);
            sim.world.set(|conditions| conditions.loss = loss);
        }
        "pause" => {
            let until = now + sim.random.skewed(4 * SECOND);
            sim.pause(host, until);
        }
        _ if rare => return self::rare(sim, host, other),
        _ => {}
    }
    Ok(())
}

fn rare(sim: &mut Sim, host: usize, other: usize) -> Result<(), Wrong> {
    match sim.random.below(8) {
        0 | 1 => sim.lose_host(host),
        2 => sim.recreate(host)?,
        3 => {
            let claims = sim.random.chance(500);
            sim.start_second(host, claims);
        }
        4 => sim.end_second(host),
        5 | 6 => sim.set_routes(host, Some(other)),
        _ => sim.set_routes(host, None),
    }
    Ok(())
}
