//! The simulator: the real relay and session over real rings, under every fault of the network and of processes, in
//! simulated time.
//!
//! Each seed is a scenario: two or three hosts, applications that send and receive, and faults at random moments. Then
//! everything heals, and everything that was accepted must arrive, once, in order, whole; what cannot arrive since
//! memory was lost must be reported, exactly as far as it is known.
//!
//! `TBUS_SIM_SEEDS` is the number of seeds (default 10,000), `TBUS_SIM_SEED` the one seed to run; `TBUS_SIM_TRACE=1`
//! shows everything that happens. Named scenarios run first; an argument chooses those whose names contain it.

mod flow;
mod random;
mod sim;
mod trace;

use sim::{Sim, Stats};
use std::time::Instant;
use tbus_transport::sim::Counts;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

fn seed(seed: u64, sum: &mut Sum) -> Result<(), String> {
    trace::take_gaps();
    let mut sim = Sim::new(random::shape(seed))?;
    let result = random::run(&mut sim);
    sum.add(&sim.stats, &sim.world.counts());
    result
}

/// Totals of all seeds.
#[derive(Default)]
struct Sum(Vec<(&'static str, u64)>);

impl Sum {
    fn add(&mut self, s: &Stats, c: &Counts) {
        let all = [
            ("relays killed", s.kills),
            ("inside a step", c.kills_inside),
            ("relays started", s.restarts),
            ("relays stopped", s.pauses),
            ("applications killed", s.app_kills),
            ("between reading and releasing", s.half_read),
            ("partitions", s.partitions),
            ("one-way cuts", s.one_way_cuts),
            ("connections broken", s.breaks),
            ("losses", c.losses),
            ("replays", c.replays),
            ("reordered", c.reordered),
            ("late writes", c.late_writes),
            ("late writes fenced off", c.fenced_writes),
            ("tcp-like links", c.tcp_links),
            ("rdma-like links", c.rdma_links),
            ("sessions up", s.epochs),
            ("sessions down", s.downs),
            ("generations", s.generations),
            ("hosts lost", s.host_losses),
            ("channels made anew", s.recreations),
            ("changes of routes", s.route_changes),
            ("second relays", s.second_relays),
            ("gaps reported", s.reported_gaps),
            ("messages sent", s.messages),
            ("messages missing, accounted for", s.missing),
            ("messages seen again", s.redelivered),
            ("steps", s.steps),
        ];
        match self.0.is_empty() {
            true => self.0 = all.to_vec(),
            false => self
                .0
                .iter_mut()
                .zip(all)
                .for_each(|(sum, more)| sum.1 += more.1),
        }
    }
}

fn main() {
    if std::env::args().any(|a| a == "--list") {
        println!("simulator: test");
        return;
    }
    trace::install();
    let loud = number("TBUS_SIM_TRACE").is_some_and(|n| n > 0);
    trace::set_loud(loud);
    let one = number("TBUS_SIM_SEED");
    let first = one.unwrap_or(0);
    let count = if one.is_some() {
        1
    } else {
        number("TBUS_SIM_SEEDS").unwrap_or(10_000)
    };
    let most = number("TBUS_SIM_FAILURES").unwrap_or(1);
    println!("running 1 test");
    let begun = Instant::now();
    let mut sum = Sum::default();
    let mut failed = 0;
    for n in first..first + count {
        if let Err(why) = seed(n, &mut sum) {
            failed += 1;
            println!("seed {n}: {why}");
            println!(
                "TBUS_SIM_SEED={n} TBUS_SIM_TRACE=1 cargo test --release -p tbus-transport --test simulator\n"
            );
            if failed >= most {
                break;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds in {seconds:.1} s, {:.1} ms each",
        seconds * 1e3 / count as f64
    );
    for (name, count) in &sum.0 {
        println!("{count:>12} {name}");
        if *count == 0
            && one.is_none()
            && first + 1000 <= first + self::number("TBUS_SIM_SEEDS").unwrap_or(10_000)
        {
            println!("no {name}: the simulator has not tried that");
            failed += 1;
        }
    }
    match failed {
        0 => {
            println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out")
        }
        _ => {
            println!(
                "\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"
            );
            std::process::exit(101);
        }
    }
}
