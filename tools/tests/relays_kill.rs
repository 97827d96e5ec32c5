//! Two hosts under load: relays and applications killed and stopped at moments that TBUS_SEED gives, and every message
//! accounted for. TBUS_KILLS is the number of kills.

mod hosts;
mod load;

use hosts::*;
use load::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// Not a test: what the applications run.
#[test]
fn child_process() {
    application();
}

/// Two hosts that reach each other over the loopback interface.
fn world(name: &str) -> World {
    let scratch = Scratch::new(name);
    let hosts = two_hosts(&scratch, &channels(&SIZES));
    World::new(scratch, hosts, Duration::ZERO)
}

/// TLS takes part of a long chunk at a time, so the peer has records of a chunk that the link is not done with. No ring is given up
/// for that.
#[test]
fn load_with_encryption() {
    let _turn = turn();
    let scratch = Scratch::new("encrypted");
    let hosts = two_hosts(&scratch, &channels(&SIZES));
    let ca = scratch.0.join("ca");
    make_ca(&ca, "test");
    for host in &hosts {
        make_node(&ca, host.node, &host.place);
        host.write_secure_config(&format!("127.0.0.1:{}", host.port), "encrypt", "");
    }
    let mut world = World::new(scratch, hosts, Duration::ZERO);
    world.await_progress(1000);
    world.page.stop().store(1, SeqCst);
    world.settle();
    world.check_cursors();
    world.check_counters(100);
}

/// Kills of all that can be killed, alone and together.
#[test]
fn kills_under_load() {
    let _turn = turn();
    let (kills, seed) = (
        from_environment("TBUS_KILLS", 100),
        from_environment("TBUS_SEED", std::process::id().into()),
    );
    println!("TBUS_SEED={seed} TBUS_KILLS={kills}");
    eprintln!("TBUS_SEED={seed} TBUS_KILLS={kills}");
    let mut world = world("kills");
    world.await_progress(1);
    let begun = Instant::now();
    // Which parts each kill hits; relays more often than the others.
    let victims: [&[usize]; 10] = [
        &[0],
        &[3],
        &[0, 3],
        &[0],
        &[3],
        &[1],
        &[2],
        &[4],
        &[5],
        &[0, 1, 2, 3, 4, 5],
    ];
    let mut killed = [0; 6];
    for kill in 0..kills {
        let random = scramble(seed << 32 ^ kill);
        if !random.is_multiple_of(4) {
            // In the midst of the traffic; else while those killed last are starting.
            world.await_progress(random >> 8 & 15);
        }
        std::thread::sleep(Duration::from_micros((random >> 16) % 50_000));
        let parts = victims[(random >> 40) as usize % victims.len()];
        world.kill(parts);
        parts.iter().for_each(|part| killed[*part] += 1);
    }
    world.await_progress(20);
    let took = begun.elapsed();
    world.page.stop().store(1, SeqCst);
    world.settle();
    world.check_cursors();
    world.check_counters(200);
    // Nothing comes after the last one.
    world.page.stop().store(2, SeqCst);
    for receiver in [2, 5] {
        world.processes[receiver].end();
    }
    world.check_cursors();
    let reread: u64 = world.page.all(Word::Reread).iter().sum();
    let messages: u64 = world.page.all(Word::Noted).iter().sum();
    let bytes: u64 = world.cursors().iter().map(|c| c[0].tail.position).sum();
    println!(
        "{kills} kills ({killed:?} of relay, sender, receiver of host 1, host 2) in {took:.1?}: {messages} messages, \
         {} MiB, {reread} read again by a new receiver",
        bytes >> 20
    );
    assert!(
        reread <= killed[2] + killed[5],
        "{reread} messages came twice"
    );
}

/// A stopped relay is noticed in time, a stopped application by nobody; both go on as if nothing had been.
#[test]
fn stops_under_load() {
    let _turn = turn();
    let mut world = world("stops");
    world.await_progress(20);
    for part in [0, 3] {
        let other = &world.hosts[1 - part / 3];
        let connected = |status: &Value| !status["peers"][0]["transport"].is_null();
        assert!(connected(&other.status().unwrap()));
        let downs = total(&other.status().unwrap(), "downs");
        let begun = Instant::now();
        world.processes[part].signal(Signal::SIGSTOP);
        let noticed = within(Duration::from_millis(3000), || {
            other.status().filter(|status| !connected(status))
        });
        let after = begun.elapsed();
        let status =
            noticed.unwrap_or_else(|| panic!("not noticed within 3 s: {:?}", other.status()));
        println!(
            "host {}'s relay stopped: noticed after {after:.2?}, {}",
            part / 3 + 1,
            status["peers"][0]["trouble"]
        );
        assert!(
            after > Duration::from_millis(1500),
            "a slow peer is no dead one"
        );
        assert_eq!(total(&status, "downs"), downs + 1);
        std::thread::sleep(Duration::from_secs(4).saturating_sub(begun.elapsed()));
        world.processes[part].signal(Signal::SIGCONT);
        let begun = Instant::now();
        world.await_progress(20);
        println!("going on {:.2?} after SIGCONT", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(8));
    }
    let downs =
        |world: &World| [0, 1].map(|host| total(&world.hosts[host].status().unwrap(), "downs"));
    let before = downs(&world);
    for part in [1, 2, 4, 5] {
        world.processes[part].signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(1));
        world.processes[part].signal(Signal::SIGCONT);
        world.await_progress(20);
    }
    assert_eq!(
        downs(&world),
        before,
        "no connection is lost for an application"
    );
    world.page.stop().store(1, SeqCst);
    world.settle();
    world.check_cursors();
    world.check_counters(100);
    let reread: u64 = world.page.all(Word::Reread).iter().sum();
    assert_eq!(reread, 0);
}
