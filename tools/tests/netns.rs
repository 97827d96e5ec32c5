//! Two hosts with networks of their own, over TCP: cables pulled, addresses moved, relays and applications killed and stopped,
//! under load and with certificates. TBUS_SEED gives the moments, and says which host is struck first.

mod faults;
mod hosts;
mod load;

use faults::*;
use hosts::*;

/// Not a test: what the applications run.
#[test]
fn child_process() {
    load::application();
}

fn seed() -> u64 {
    let seed = from_environment("TBUS_SEED", std::process::id().into());
    println!("TBUS_SEED={seed}");
    eprintln!("TBUS_SEED={seed}");
    seed
}

/// Every fault of the table strikes one of the hosts.
fn all_faults(security: &'static str, first: usize) {
    let _turn = turn();
    if !possible() {
        return;
    }
    let seed = seed();
    let setting = Setting {
        transport: "tcp",
        security,
    };
    let mut field = Field::new(security, setting, seed);
    for (row, fault) in FAULTS.iter().enumerate() {
        let host = (seed as usize + row + first) % 2;
        let outcome = field.suffer(fault, host);
        println!("{}", line(fault, host, &outcome));
    }
    field.settle();
}

fn line(fault: &Fault, host: usize, outcome: &Outcome) -> String {
    let [one, two] = outcome
        .seen
        .map(|seen| seen.map_or("-".into(), |after| format!("{:.2} s", after.as_secs_f64())));
    format!(
        "{:<20} {:>4} {one:>8} {two:>8} {:>8}",
        fault.name,
        host + 1,
        format!("{:.2} s", outcome.resumed.as_secs_f64())
    )
}

#[test]
fn faults_with_encryption() {
    all_faults("encrypt", 0);
}

#[test]
fn faults_in_clear() {
    all_faults("authenticate", 1);
}
