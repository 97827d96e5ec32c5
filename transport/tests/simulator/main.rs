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
mod liar;
mod losses;
mod named;
mod random;
mod sim;
mod trace;

use sim::{Sim, Stats};
use std::process::{Command, Stdio};
use std::time::Instant;
use tbus_transport::sim::Counts;

/// Set in processes that run a part of the seeds.
const PART: &str = "TBUS_SIM_PART";

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
struct Sum(Vec<(String, u64)>);

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
            ("failures of RDMA", s.failures),
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
        self.merge(all.map(|(name, count)| (name.to_string(), count)).into());
    }

    fn merge(&mut self, more: Vec<(String, u64)>) {
        match self.0.is_empty() {
            true => self.0 = more,
            false => (self.0.iter_mut().zip(more)).for_each(|(sum, more)| sum.1 += more.1),
        }
    }

    /// As it is printed, a line each.
    fn parse(text: &str) -> Option<Vec<(String, u64)>> {
        let line = |line: &str| {
            let (count, name) = line.trim().split_once(' ')?;
            Some((name.to_string(), count.parse().ok()?))
        };
        let all: Option<Vec<_>> = text.trim().lines().map(line).collect();
        all.filter(|all| !all.is_empty())
    }
}

fn main() {
    if std::env::args().any(|a| a == "--list") {
        for (name, _) in named::ALL {
            println!("{name}: test");
        }
        println!("a_lying_peer: test\nrandom_seeds: test");
        return;
    }
    trace::install();
    let loud = number("TBUS_SIM_TRACE").is_some_and(|n| n > 0);
    trace::set_loud(loud);
    if let Ok(bounds) = std::env::var(PART) {
        return run_part(&bounds);
    }
    let one = number("TBUS_SIM_SEED");
    let first = one.unwrap_or(0);
    let count = if one.is_some() {
        1
    } else {
        number("TBUS_SIM_SEEDS").unwrap_or(10_000)
    };
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| {
        only.as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let mut results = Results::default();
    let mut sum = Sum::default();
    if one.is_none() {
        for (name, scenario) in named::ALL {
            if wanted(name) {
                results.add(name, named(name, scenario));
            }
        }
    }
    if wanted("a_lying_peer") && one.is_none() {
        results.add("a_lying_peer", lies());
    }
    if wanted("random_seeds") {
        let begun = Instant::now();
        let done = seeds(first, count, &mut sum);
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{count} seeds in {seconds:.1} s, {:.1} ms each",
            seconds * 1e3 / count as f64
        );
        for (name, count) in &sum.0 {
            println!("{count:>12} {name}");
        }
        let untried = sum.0.iter().find(|(_, n)| *n == 0);
        let untried = untried.filter(|_| count >= 1000);
        let untried = untried.map(|(name, _)| format!("no {name}: that was not tried"));
        results.add("random_seeds", done.and(untried.map_or(Ok(()), Err)));
    }
    results.end();
}

/// Runs a named scenario in all its variants.
fn named(name: &str, scenario: fn(&mut Sim) -> Result<(), String>) -> Result<(), String> {
    for shape in named::shapes(1) {
        trace::take_gaps();
        let kind = format!("{name}, rdma {}, retained {}", shape.rdma, shape.retained);
        let mut sim = Sim::new(shape)?;
        let result = scenario(&mut sim).and_then(|()| sim.heal());
        result.map_err(|why| {
            format!("{kind}: {why}\nTBUS_SIM_TRACE=1 cargo test --release -p tbus-transport --test simulator -- {name}")
        })?;
    }
    Ok(())
}

/// A peer that lies, in many ways.
fn lies() -> Result<(), String> {
    for seed in 0..10 {
        for shape in named::shapes(seed) {
            let mut sim = Sim::new(shape)?;
            liar::run(&mut sim).map_err(|why| format!("lies of seed {seed}: {why}"))?;
        }
    }
    Ok(())
}

/// Runs seeds, a part of them in a process for each processor: threads would wait for each other to map and unmap rings.
fn seeds(first: u64, count: u64, sum: &mut Sum) -> Result<(), String> {
    let parts = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    if count < 10 * parts {
        return part(first, 1, first + count, sum);
    }
    let start = |n: u64| {
        let bounds = format!("{} {parts} {}", first + n, first + count);
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.env(PART, bounds).stdout(Stdio::piped()).spawn()
    };
    let running: Result<Vec<_>, _> = (0..parts).map(start).collect();
    let mut failed = 0;
    let running = running.map_err(|e| format!("the simulator does not start itself: {e}"))?;
    for (n, child) in (0..).zip(running) {
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (told, totals) = text.rsplit_once(PART).unwrap_or((&text, ""));
        print!("{told}");
        match Sum::parse(totals) {
            Some(totals) if output.status.success() => sum.merge(totals),
            _ => {
                println!(
                    "each {parts}th seed from {} on: {}",
                    first + n,
                    output.status
                );
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(format!("{n} of {parts} processes have seeds that failed")),
    }
}

/// Each `step`th seed; the first failures are told.
fn part(first: u64, step: u64, end: u64, sum: &mut Sum) -> Result<(), String> {
    let most = number("TBUS_SIM_FAILURES").unwrap_or(1);
    let mut failed = 0;
    for n in (first..end).step_by(step as usize) {
        if let Err(why) = seed(n, sum) {
            failed += 1;
            println!(
                "seed {n}: {why}\nTBUS_SIM_SEED={n} TBUS_SIM_TRACE=1 cargo test --release -p tbus-transport --test simulator\n"
            );
            if failed >= most {
                break;
            }
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(format!("{n} seeds failed")),
    }
}

/// The part that a process of [`seeds`] is to run: its first seed, step and end. Ends with the totals, behind the same word.
fn run_part(bounds: &str) {
    let bounds: Vec<u64> = bounds.split(' ').flat_map(str::parse).collect();
    let mut sum = Sum::default();
    let done = part(bounds[0], bounds[1], bounds[2], &mut sum);
    println!("{PART}");
    sum.0
        .iter()
        .for_each(|(name, count)| println!("{count} {name}"));
    std::process::exit(done.is_err().into());
}

/// Results as cargo's test runners print them.
#[derive(Default)]
struct Results {
    passed: u64,
    failed: u64,
}

impl Results {
    fn add(&mut self, name: &str, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Err(why) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n{why}\n");
            }
        }
    }

    fn end(&self) {
        let verdict = if self.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
            self.passed, self.failed
        );
        if self.failed > 0 {
            std::process::exit(101);
        }
    }
}
