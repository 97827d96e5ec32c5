//! Two hosts whose data goes by RDMA, as real processes: killed under load, short of memory, without a device. Run by
//! `ci/rxe run -- cargo test -p tbus-tools --test rdma -- --ignored --test-threads 1`; without a device nothing can be
//! tried, so these are ignored, which is said. TBUS_SEED gives the moments, TBUS_RDMA_KILLS how many relays are killed.

mod hosts;
mod load;

use hosts::*;
use load::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime};

/// Not a test: what the applications run.
#[test]
fn child_process() {
    application();
}

/// Parts of the world, as in [`PARTS`].
const RELAYS: [usize; 2] = [0, 3];
/// Of the senders: emulated processors are few and slow, and relays that wait for them for long are taken for dead.
const PAUSE: Duration = Duration::from_millis(2);
/// What a dead process had, the kernel has taken back by then.
const TAKEN_BACK: Duration = Duration::from_secs(20);
fn address_of_device() -> String {
    std::env::var("RDMA_ADDRESS").expect("RDMA_ADDRESS: run by ci/rxe")
}

/// Two hosts at the device's address, with certificates; data goes by RDMA, or by TCP where that fails.
fn rdma_hosts(scratch: &Scratch, transports: &str) -> [Host; 2] {
    let ca = scratch.0.join("ca");
    make_ca(&ca, "test");
    let ip = address_of_device();
    let hosts = [1, 2].map(|node| Host::new(scratch, node));
    let routes: Vec<_> = (0..RINGS)
        .map(|ring| {
            let (at, channel) = (ring / CHANNELS, ring % CHANNELS);
            let endpoint = format!("{ip}:{}", hosts[at].port);
            (address(at as u32 + 1, channel as u32 + 1), vec![endpoint])
        })
        .collect();
    for host in &hosts {
        make_node(&ca, host.node, &host.place);
        host.write_secure_config(&format!("{ip}:{}", host.port), "authenticate", "");
        host.write_channels(&channels(&SIZES));
        host.write_routes_over(transports, &routes);
    }
    hosts
}

/// Two hosts under load, after `change`.
fn world_with(name: &str, change: impl FnOnce(&mut [Host; 2])) -> World {
    world_over(name, "verbs tcp", change)
}

fn world_over(name: &str, transports: &str, change: impl FnOnce(&mut [Host; 2])) -> World {
    let scratch = Scratch::new(name);
    let mut hosts = rdma_hosts(&scratch, transports);
    change(&mut hosts);
    World::new(scratch, hosts, PAUSE)
}

/// Two hosts under load, connected over RDMA.
fn rdma_world(name: &str) -> World {
    let mut world = world_with(name, |_| {});
    go_by_rdma(&mut world);
    world.await_progress(5);
    world
}

/// Waits until data goes by RDMA. A machine that has too much to do may have let a connection fail, and RDMA is not offered for a
/// while then: relays that are started anew know nothing of that. Returns how often that was needed.
#[track_caller]
fn go_by_rdma(world: &mut World) -> u64 {
    for restarts in 0..3 {
        let both = || {
            let is = |host| transport(host).as_deref() == Some("verbs");
            world.hosts.iter().all(is).then_some(())
        };
        if within(Duration::from_secs(15), both).is_some() {
            return restarts;
        }
        println!("data does not go by RDMA: both relays are started anew");
        world.kill(&RELAYS);
    }
    world.tell();
    panic!("data does not go by RDMA");
}

/// What a host's relay says that its data goes by.
fn transport(host: &Host) -> Option<String> {
    let status = host.status()?;
    status["peers"][0]["transport"].as_str().map(str::to_owned)
}

/// Waits until both relays say so.
#[track_caller]
fn await_transport(world: &World, wanted: &str) {
    let both = || {
        let is = |host| transport(host).as_deref() == Some(wanted);
        world.hosts.iter().all(is).then_some(())
    };
    if within(PATIENCE, both).is_none() {
        world.tell();
        panic!("data does not go over {wanted}");
    }
}

/// What a host's relays have logged.
fn log(world: &World, host: usize) -> String {
    let name = format!("tbusd{}.log", host + 1);
    std::fs::read_to_string(world.scratch.0.join(name)).unwrap()
}

/// Waits for a line that holds `text`, behind the first `from` bytes of a host's log. Returns it, and when it was written.
#[track_caller]
fn await_line(world: &World, host: usize, from: usize, text: &str) -> (String, SystemTime) {
    let found = within(PATIENCE, || {
        let log = log(world, host);
        let line = log[from..].lines().find(|line| line.contains(text))?;
        Some(line.to_owned())
    });
    let Some(line) = found else {
        world.tell();
        panic!("host {} does not say '{text}'", host + 1);
    };
    let at = line.split_whitespace().next().unwrap_or_default();
    let at = humantime::parse_rfc3339(at).unwrap_or_else(|error| panic!("{error}: {line}"));
    (line, at)
}

/// Waits for a line that holds `text` in a host's log. A slow machine may have kept the relays from trying RDMA at all, as
/// [`go_by_rdma`] says.
#[track_caller]
fn bring_about(world: &mut World, host: usize, text: &str) -> String {
    for _ in 0..3 {
        let found = within(Duration::from_secs(15), || {
            let log = log(world, host);
            log.lines().find(|l| l.contains(text)).map(str::to_owned)
        });
        if let Some(line) = found {
            return line;
        }
        println!("not said yet: both relays are started anew");
        world.kill(&RELAYS);
    }
    world.tell();
    panic!("host {} does not say '{text}'", host + 1);
}

/// What the kernel counts of all devices, and the relays' descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    domains: u64,
    completion_queues: u64,
    queue_pairs: u64,
    regions: u64,
    descriptors: [usize; 2],
}

impl Held {
    fn by(world: &World) -> Held {
        let output = Command::new("rdma")
            .args(["-j", "resource", "show"])
            .output();
        let output = output.expect("rdma of iproute2 runs");
        let devices: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let sum = |what: &str| {
            let devices = devices.as_array().unwrap().iter();
            devices.map(|device| device[what].as_u64().unwrap()).sum()
        };
        let descriptors = RELAYS.map(|part| {
            let directory = format!("/proc/{}/fd", world.processes[part].id());
            std::fs::read_dir(directory).unwrap().count()
        });
        Held {
            domains: sum("pd"),
            completion_queues: sum("cq"),
            queue_pairs: sum("qp"),
            regions: sum("mr"),
            descriptors,
        }
    }

    /// Connected over RDMA with all rings, and nothing is left of an earlier connection.
    #[track_caller]
    fn in_peace(world: &World) -> Held {
        for host in &world.hosts {
            host.await_mirrored(RINGS);
        }
        let mut last = Held::by(world);
        // Of a ring, the memory is registered at once; of what was, it is given back after some seconds.
        let same = within(TAKEN_BACK, || {
            std::thread::sleep(Duration::from_secs(1));
            let now = Held::by(world);
            let same = now == last;
            last = now.clone();
            same.then_some(now)
        });
        same.unwrap_or_else(|| panic!("it changes all the time: {last:?}"))
    }

    /// Waits until there is just this, no more.
    #[track_caller]
    fn check(&self, world: &World) {
        let mut now = Held::by(world);
        let same = within(TAKEN_BACK, || {
            now = Held::by(world);
            (now == *self).then_some(())
        });
        if same.is_none() {
            world.tell();
            panic!("held at first: {self:?}; and now: {now:?}");
        }
    }
}

/// Draws who is killed next.
struct Dice {
    seed: u64,
    throws: u64,
}

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice { seed, throws: 0 }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.throws += 1;
        (scramble(self.seed << 32 ^ self.throws) >> 11) % limit
    }

    fn victims(&mut self) -> &'static [usize] {
        const ALL: [&[usize]; 10] = [
            &[0],
            &[3],
            &[0],
            &[3],
            &[0, 3],
            &[1],
            &[2],
            &[4],
            &[5],
            &[0, 1, 2, 3, 4, 5],
        ];
        ALL[self.below(ALL.len() as u64) as usize]
    }
}

/// Ends the load, and compares all accounts. Returns how many messages were received.
fn settle(world: &mut World, receivers_killed: u64) -> u64 {
    world.page.stop().store(1, SeqCst);
    world.settle();
    world.check_cursors();
    world.check_counters(100);
    world.page.stop().store(2, SeqCst);
    for receiver in [2, 5] {
        world.processes[receiver].end();
    }
    world.check_cursors();
    let reread: u64 = world.page.all(Word::Reread).iter().sum();
    assert!(
        reread <= receivers_killed,
        "{reread} messages came twice, and {receivers_killed} receivers were killed"
    );
    world.page.all(Word::Noted).iter().sum()
}

/// Kills under load until `over` so many relays were: each while data goes by RDMA, and after a few all that the kernel
/// holds is counted.
fn kills(name: &str, over: impl Fn(u64, Duration) -> bool) {
    let _turn = turn();
    let seed = from_environment("TBUS_SEED", std::process::id().into());
    println!("TBUS_SEED={seed}");
    eprintln!("TBUS_SEED={seed}");
    let mut world = rdma_world(name);
    let held = Held::in_peace(&world);
    println!("held: {held:?}");
    let (mut dice, mut killed, mut rounds) = (Dice::new(seed), [0; 6], 0);
    let begun = Instant::now();
    let mut restarts = 0;
    while !over(killed[0] + killed[3], begun.elapsed()) {
        restarts += go_by_rdma(&mut world);
        if dice.below(4) > 0 {
            // In the midst of the traffic; else while what was killed last has just connected.
            let more = dice.below(10);
            world.await_progress(more);
        }
        std::thread::sleep(Duration::from_millis(dice.below(50)));
        let parts = dice.victims();
        world.kill(parts);
        parts.iter().for_each(|part| killed[*part] += 1);
        rounds += 1;
        println!("{:>5.1} s  killed {parts:?}", begun.elapsed().as_secs_f64());
        if rounds % 8 == 0 {
            restarts += go_by_rdma(&mut world);
            held.check(&world);
        }
    }
    restarts += go_by_rdma(&mut world);
    world.await_progress(5);
    held.check(&world);
    let took = begun.elapsed();
    let messages = settle(&mut world, killed[2] + killed[5]);
    println!(
        "{rounds} rounds, {killed:?} of relay, sender, receiver of host 1, host 2 killed in {took:.1?}: {messages} messages, \
         0 lost, repeated or reordered; held before and after: {held:?}"
    );
    // Else it is not the machine.
    assert!(
        restarts <= 1 + rounds / 10,
        "{restarts} times data did not go by RDMA"
    );
}

#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn kills_under_load_by_rdma() {
    let relays = from_environment("TBUS_RDMA_KILLS", 20);
    kills("rdma-kills", |killed, _| killed >= relays);
}

#[test]
#[ignore = "takes as long as it is told to: ci/soak rdma"]
fn soak() {
    let time = Duration::from_secs(from_environment("TBUS_SOAK_SECONDS", 600));
    kills("rdma-soak", |_, passed| passed >= time);
}

/// By hand, from either side, there and back under load.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn an_operator_switches_transports() {
    let _turn = turn();
    let mut world = rdma_world("rdma-switch");
    let switch = |world: &World, host: usize, wish: &str| {
        let output = world.hosts[host].run("tbusd", &format!("-c tbusd.toml --switch {wish}"));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for host in [0, 1, 0, 1] {
        let other = 2 - host;
        let said = switch(&world, host, &format!("{other}=tcp"));
        assert_eq!(said, format!("node {other}: tcp; connecting anew\n"));
        await_transport(&world, "tcp");
        world.await_progress(5);
        let said = switch(&world, host, &format!("{other}=auto"));
        assert_eq!(said, format!("node {other}: auto; connecting anew\n"));
        await_transport(&world, "verbs");
        world.await_progress(5);
        let said = switch(&world, host, &format!("{other}=verbs"));
        assert_eq!(said, format!("node {other}: verbs, as it is\n"));
    }
    for (wish, text) in [
        ("2=ucx", "the routes there name verbs tcp, not ucx"),
        ("9=tcp", "no peer is node 9; known are [2]"),
    ] {
        let output = world.hosts[0].run("tbusd", &format!("-c tbusd.toml --switch {wish}"));
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(text), "{said}");
    }
    settle(&mut world, 0);
}

/// Transports replace one another under load, in any order and by the wish of either side.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn random_switches_lose_and_repeat_nothing() {
    let _turn = turn();
    let seed = from_environment("TBUS_SEED", std::process::id().into());
    let switches = from_environment("TBUS_SWITCHES", 100);
    println!("TBUS_SEED={seed}");
    let mut world = world_over("rdma-switches", "verbs ucx tcp", |_| {});
    go_by_rdma(&mut world);
    let mut dice = Dice::new(seed);
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..switches {
        let host = dice.below(2) as usize;
        let wish = ["verbs", "ucx", "tcp", "auto"][dice.below(4) as usize];
        let arguments = format!("-c tbusd.toml --switch {}={wish}", 2 - host);
        let output = world.hosts[host].run("tbusd", &arguments);
        assert!(output.status.success(), "{output:?}");
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        if n % 10 == 9 {
            world.await_progress(1);
            let over = transport(&world.hosts[0]).unwrap_or_default();
            *seen.entry(over).or_insert(0) += 1;
        }
    }
    for host in 0..2 {
        let arguments = format!("-c tbusd.toml --switch {}=auto", 2 - host);
        let output = world.hosts[host].run("tbusd", &arguments);
        assert!(output.status.success(), "{output:?}");
    }
    await_transport(&world, "verbs");
    world.await_progress(5);
    let ups = world.hosts[0].status().unwrap()["peers"][0]["ups"].clone();
    let messages = settle(&mut world, 0);
    println!(
        "{switches} switches, {ups} connections, seen now and then over {seen:?}: {messages} messages, 0 lost, repeated or \
         reordered"
    );
}

/// A relay that is stopped: its card goes on, and says nothing.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn a_stopped_relay_is_noticed_in_time() {
    let _turn = turn();
    let mut world = rdma_world("rdma-stop");
    for (host, relay) in RELAYS.into_iter().enumerate() {
        go_by_rdma(&mut world);
        world.await_progress(5);
        let from = log(&world, 1 - host).len();
        let begun = SystemTime::now();
        world.processes[relay].signal(Signal::SIGSTOP);
        let (line, at) = await_line(&world, 1 - host, from, "disconnected:");
        let after = at.duration_since(begun).unwrap();
        println!("host {} stopped, after {after:.2?}: {line}", host + 1);
        assert!(line.contains("nothing was "), "{line}");
        assert!(
            after > Duration::from_millis(1500) && after < Duration::from_secs(3),
            "{after:?}"
        );
        world.processes[relay].signal(Signal::SIGCONT);
        world.await_progress(5);
    }
    settle(&mut world, 0);
}

/// Who may lock less memory than the link itself needs has no RDMA; who may lock less than the rings need finds out later.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn with_too_little_locked_memory_tcp_serves() {
    let _turn = turn();
    let cases = [
        (
            0,
            1 << 16,
            "RDMA is unavailable: 131072 bytes are to be registered, and this process may lock 65536 bytes",
        ),
        (
            0,
            1 << 20,
            "verbs has failed and rests for 60 s: ibv_reg_mr_iova: ",
        ),
        (
            1,
            1 << 20,
            "verbs has failed and rests for 60 s: ibv_reg_mr_iova: ",
        ),
    ];
    for (limited, bytes, text) in cases {
        let mut world = world_with("rdma-memory", |hosts| {
            hosts[limited].run_within(&format!(
                "prlimit --memlock={bytes} setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock"
            ));
        });
        let line = bring_about(&mut world, limited, text);
        println!("{line}");
        for part in [
            " too few. Allow more: LimitMEMLOCK=infinity",
            &format!("may lock {bytes} "),
        ] {
            assert!(line.contains(part), "{line}");
        }
        await_transport(&world, "tcp");
        world.await_progress(20);
        settle(&mut world, 0);
    }
}

/// A device in software, which can be taken away; it is put back.
struct SoftDevice {
    name: String,
    interface: String,
}

/// Another device, at the cable's other end: librdmacm closes one that has gone only where it finds any.
const SPARE: &str = "rxespare";

impl SoftDevice {
    fn new() -> SoftDevice {
        let name = std::env::var("RDMA_DEVICE").expect("RDMA_DEVICE: run by ci/rxe");
        let output = Command::new("rdma").args(["-j", "link", "show"]).output();
        let links: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        let links = links.as_array().unwrap();
        let link = links.iter().find(|link| link["ifname"] == name.as_str());
        let interface = link.unwrap()["netdev"].as_str().unwrap().to_owned();
        let output = Command::new("ip")
            .args(["-j", "link", "show", "dev", &interface])
            .output();
        let links: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        let spare = links[0]["link"].as_str().unwrap().to_owned();
        let device = SoftDevice { name, interface };
        assert!(device.make(SPARE, &spare), "{SPARE} is not made");
        device
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("rdma");
        command.args(words.split_whitespace());
        command
    }

    fn remove(&self) -> Command {
        self.command(&format!("link del {}", self.name))
    }

    fn make(&self, name: &str, interface: &str) -> bool {
        let mut command = self.command(&format!("link add {name} type rxe netdev {interface}"));
        command.status().unwrap().success()
    }

    fn add(&self) -> bool {
        self.make(&self.name, &self.interface)
    }
}

impl Drop for SoftDevice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // It fails where it is there, as it should be.
            self.add();
        }
        let _ = self.command(&format!("link del {SPARE}")).status();
    }
}

/// The kernel tells everybody that the device goes, and waits until nobody has anything of it.
#[test]
#[ignore = "needs an RDMA device: ci/rxe run"]
fn a_device_may_come_and_go() {
    let _turn = turn();
    let device = SoftDevice::new();
    let mut world = rdma_world("rdma-device");
    for _ in 0..2 {
        let from = [0, 1].map(|host| log(&world, host).len());
        let mut removal = Process::start("rdma link del", &mut device.remove());
        for (host, from) in from.into_iter().enumerate() {
            let (line, _) = await_line(&world, host, from, "disconnected:");
            println!("{line}");
            await_line(&world, host, from, "the RDMA device has gone");
        }
        removal.end();
        await_transport(&world, "tcp");
        world.await_progress(20);
        // As a driver that is loaded anew: the library must see that it was away.
        std::thread::sleep(Duration::from_secs(1));
        assert!(device.add(), "{} is not made again", device.name);
        for (host, from) in from.into_iter().enumerate() {
            let offered = within(Duration::from_secs(12), || {
                log(&world, host)[from..]
                    .contains("RDMA is offered from now on")
                    .then_some(())
            });
            if offered.is_none() {
                // docs/rdma.md: librdmacm does not always see that a device with the same name is another one.
                println!("host {} does not find the device: started anew", host + 1);
                world.kill(&[RELAYS[host]]);
            }
        }
        await_transport(&world, "verbs");
        world.await_progress(5);
    }
    settle(&mut world, 0);
}
