//! The map of routes and who uses it: applied whole or not at all, consistent while it is written, and whatever stands
//! in its file.

use scratch::Scratch;
use std::collections::HashSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tbus::config::{RouteConfig, RoutesConfig, parse_channels, parse_routes};
use tbus::grm::{
    Grm, MAX_DESCRIPTION, MAX_HOST, MAX_ROUTES, RelayEndpoint, Route, Snapshot, Transport,
};
use tbus::manage::Manager;
use tbus::manage_routes::{RouteManager, plan};
use tbus::{Address, Directory, Error, Template};

mod scratch;

/// Bytes of an entry, and where the areas begin.
const ENTRY: usize = 1280;
const AREAS: [usize; 2] = [4096, 4096 + 64 + MAX_ROUTES * ENTRY];

fn endpoint(host: impl Into<String>, port: u16) -> RelayEndpoint {
    RelayEndpoint {
        host: host.into(),
        port,
    }
}

/// Routes to addresses, each over a host with a number.
fn config(ways: &[(u32, u32)]) -> RoutesConfig {
    let route = |(address, host): &(u32, u32)| RouteConfig {
        address: Address(*address),
        endpoints: vec![endpoint(format!("relay-{host}.example.net"), 1027)],
        transports: vec![Transport::Verbs, Transport::Tcp],
        description: format!("to {address}"),
    };
    RoutesConfig {
        template: Template::default(),
        key: 2688,
        routes: ways.iter().map(route).collect(),
    }
}

fn manager(scratch: &Scratch) -> RouteManager {
    RouteManager::create_at(&scratch.0, &config(&[]), Duration::from_secs(10)).unwrap()
}

fn grm(scratch: &Scratch) -> Grm {
    Grm::open(&Directory::open(&scratch.0).unwrap()).unwrap()
}

fn way(route: &Route) -> (u32, u32) {
    let host = route.endpoints[0].host.strip_prefix("relay-").unwrap();
    let number = host.strip_suffix(".example.net").unwrap();
    (route.address.0, number.parse().unwrap())
}

fn ways(snapshot: &Snapshot) -> Vec<(u32, u32)> {
    snapshot.routes.iter().map(way).collect()
}

#[test]
fn a_write_creates_updates_keeps_and_deletes() {
    let scratch = Scratch::new("routes-write");
    let manager = manager(&scratch);
    let made = manager.apply(&config(&[(1, 1), (2, 1), (3, 1)])).unwrap();
    assert_eq!(made.create.len(), 3);
    let grm = grm(&scratch);
    let before = grm.snapshot().unwrap();
    assert_eq!((before.version, grm.key()), (1, 2688));
    assert_eq!(before.routes[2].description, "to 3");
    let next = config(&[(4, 1), (3, 1), (2, 9)]);
    let planned = plan(&grm, &next).unwrap();
    assert_eq!(grm.snapshot().unwrap(), before, "a plan changes nothing");
    let plan = manager.apply(&next).unwrap();
    assert_eq!(plan, planned);
    let [(old, new)] = &plan.update[..] else {
        panic!("{plan:?}")
    };
    assert_eq!((way(old), way(new)), ((2, 1), (2, 9)));
    assert_eq!(
        (plan.create.len(), plan.keep.len(), plan.delete.len()),
        (1, 1, 1)
    );
    let after = grm.snapshot().unwrap();
    assert_eq!(
        ways(&after),
        [(2, 9), (3, 1), (4, 1)],
        "a new one is listed last"
    );
    assert_eq!(
        after.routes[1], before.routes[2],
        "left alone, creation time and all"
    );
    assert_eq!(
        after.routes[0].created, before.routes[1].created,
        "an update is no creation"
    );
    assert!(after.routes[2].created > before.routes[2].created);
    manager.apply(&next).unwrap();
    assert_eq!(
        grm.version(),
        after.version,
        "nothing to write, nothing written"
    );
    let found = grm.route_of(Address(2)).unwrap();
    assert_eq!(found.as_ref(), Some(&after.routes[0]));
    assert_eq!(grm.route_of(Address(1)).unwrap(), None);
    assert_eq!(way(&manager.delete(2).unwrap()), (3, 1));
    assert_eq!(ways(&grm.snapshot().unwrap()), [(2, 9), (4, 1)]);
    for number in [0, 3] {
        let refused = manager.delete(number);
        assert!(matches!(refused, Err(Error::NoSuchRoute { count: 2, .. })));
    }
    let other = RoutesConfig {
        template: "6.8.8.10".parse().unwrap(),
        ..next
    };
    drop(manager);
    for refused in [
        RouteManager::create_at(&scratch.0, &other, Duration::ZERO).map(drop),
        tbus::manage_routes::plan(&grm, &other).map(drop),
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("has address template 8.8.8.8, the file has 6.8.8.10"));
    }
}

/// All that a route can hold comes back as it was given; what it cannot hold is refused and changes nothing.
#[test]
fn a_route_holds_its_limits_and_no_more() {
    let scratch = Scratch::new("routes-limits");
    let manager = manager(&scratch);
    let full = RouteConfig {
        address: Address(u32::MAX - 1),
        endpoints: (1..=4)
            .map(|n| endpoint("x".repeat(MAX_HOST - 4 + n), u16::MAX - n as u16))
            .collect(),
        transports: vec![Transport::Tcp, Transport::Ucx, Transport::Verbs],
        description: "通".repeat(MAX_DESCRIPTION),
    };
    let with = |change: &dyn Fn(&mut RouteConfig)| {
        let mut config = config(&[(1, 1)]);
        config.routes.push(full.clone());
        change(&mut config.routes[1]);
        config
    };
    manager.apply(&with(&|_| ())).unwrap();
    let held = manager.grm().route_of(full.address).unwrap().unwrap();
    assert_eq!(
        (&held.endpoints, &held.transports),
        (&full.endpoints, &full.transports)
    );
    assert_eq!(
        held.description,
        "通".repeat(MAX_DESCRIPTION / 3),
        "cut between characters"
    );
    let again = manager.apply(&with(&|_| ())).unwrap();
    assert_eq!(again.keep.len(), 2, "cut once, the same for ever");
    let before = manager.grm().snapshot().unwrap();
    let changes: [&dyn Fn(&mut RouteConfig); 8] = [
        &|route| route.endpoints.push(endpoint("one.more", 1)),
        &|route| route.endpoints.clear(),
        &|route| route.endpoints[3].host.push('x'),
        &|route| route.endpoints[0].host.clear(),
        &|route| route.endpoints[0].host = "a b".into(),
        &|route| route.endpoints[0].port = 0,
        &|route| route.transports.push(Transport::Tcp),
        &|route| route.transports.clear(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let error = manager.apply(&with(change)).unwrap_err();
        assert!(
            matches!(error, Error::Invalid { .. }),
            "change {index}: {error}"
        );
        assert!(
            error.to_string().contains("255.255.255.254"),
            "change {index}: {error}"
        );
    }
    assert_eq!(manager.grm().snapshot().unwrap(), before);
}

/// The same limits, with row and column, where a person meets them.
#[test]
fn configurations_beyond_the_limits_are_refused_where_they_are() {
    let problem = |m_conns: &[String]| {
        let elements: String = m_conns
            .iter()
            .map(|m| format!("<MConn>{m}</MConn>\n"))
            .collect();
        let text = format!(
            "<RelayMnger><RelayShmKey>1</RelayShmKey><Relays><Addr>0.0.0.1</Addr>\n{elements}</Relays></RelayMnger>"
        );
        let problems = parse_routes(text.as_bytes(), false).unwrap_err();
        let [problem] = &problems[..] else {
            panic!("{problems:?}")
        };
        (problem.row, problem.column, problem.reason.clone())
    };
    let hosts =
        |count: usize| -> Vec<String> { (0..count).map(|n| format!("tcp://h{n}:1")).collect() };
    assert_eq!(
        problem(&hosts(6)),
        (6, 1, "this is endpoint 5 of the route".into())
    );
    let long = format!("tcp://{}:1", "h".repeat(MAX_HOST + 1));
    assert_eq!(
        problem(&["tcp://a:1".into(), long]),
        (3, 1, "the host has 256 bytes".into())
    );
    let twice = ["tcp://a:1", "tcp://b:1", "tcp://a:1"].map(String::from);
    assert_eq!(
        problem(&twice),
        (4, 1, "'tcp://a:1' stands twice in one route".into())
    );
}

/// Readers always see a table that was written as a whole: here, all routes over one host.
#[test]
fn readers_are_consistent_while_the_map_is_written() {
    let scratch = Scratch::new("routes-readers");
    let manager = manager(&scratch);
    let generation = |n: u32| -> Vec<(u32, u32)> { (1..=20).map(|i| (i, n)).collect() };
    manager.apply(&config(&generation(0))).unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let grm = grm(&scratch);
            std::thread::spawn(move || {
                let (begun, mut versions) = (Instant::now(), HashSet::new());
                while begun.elapsed() < Duration::from_secs(2) {
                    let snapshot = grm.snapshot().unwrap();
                    let host = way(&snapshot.routes[0]).1;
                    let whole: Vec<_> = (1..=20).map(|i| (i, host)).collect();
                    assert_eq!(ways(&snapshot), whole);
                    let later = grm.route_of(Address(20)).unwrap().unwrap();
                    assert!(
                        way(&later).1 >= host,
                        "a newer table, and then an older route"
                    );
                    versions.insert(snapshot.version);
                }
                versions.len()
            })
        })
        .collect();
    let mut n = 0;
    while readers.iter().any(|reader| !reader.is_finished()) {
        n += 1;
        manager.apply(&config(&generation(n))).unwrap();
    }
    for reader in readers {
        assert!(reader.join().unwrap() > 10, "it saw the map change");
    }
}

/// Also with a manager of channels, where both maps lie in one directory.
#[test]
fn two_managers_take_turns() {
    let scratch = Scratch::new("routes-turns");
    let channels = parse_channels(
        b"<TbusGCIM><GCIMShmKey>2688</GCIMShmKey></TbusGCIM>",
        false,
        1 << 30,
    )
    .unwrap();
    let first = Manager::create_at(&scratch.0, &channels, Duration::ZERO).unwrap();
    let open = |patience| RouteManager::create_at(&scratch.0, &config(&[(1, 1)]), patience);
    let refused = open(Duration::ZERO);
    assert!(matches!(
        refused,
        Err(Error::Busy {
            role: "manager",
            ..
        })
    ));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| open(Duration::from_secs(10)).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
        waiting.join().unwrap().unwrap();
    });
}

const PLACE: &str = "TBUS_ROUTES_TEST_PLACE";

/// Not a test: applies one of two configurations for ever, until it is killed.
#[test]
fn child_process() {
    let Ok(place) = std::env::var(PLACE) else {
        return;
    };
    let directory = Directory::open(place).unwrap();
    let manager = RouteManager::open(&directory, Duration::from_secs(10)).unwrap();
    for n in 0u32.. {
        manager.apply(&config(STATES[n as usize % 2])).unwrap();
    }
}

/// Two maps that share one route, and one address.
const STATES: [&[(u32, u32)]; 2] = [&[(1, 1), (2, 1)], &[(1, 1), (2, 2), (3, 1)]];

/// A manager killed at any moment leaves one map or the other, and the next one can go on.
#[test]
fn a_killed_manager_leaves_a_whole_map() {
    let scratch = Scratch::new("routes-kill");
    manager(&scratch).apply(&config(STATES[0])).unwrap();
    let grm = grm(&scratch);
    let first = grm.snapshot().unwrap().routes[0].clone();
    let mut seen = [0, 0];
    for kill in 0..60u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture"])
            .env(PLACE, &scratch.0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (version, begun) = (grm.version(), Instant::now());
        while grm.version() == version && begun.elapsed() < Duration::from_secs(10) {}
        std::thread::sleep(Duration::from_micros(kill * 37 % 900));
        child.kill().unwrap();
        child.wait().unwrap();
        let snapshot = grm.snapshot().unwrap();
        let found = ways(&snapshot);
        let state = STATES.iter().position(|state| found == *state);
        seen[state.unwrap_or_else(|| panic!("neither map: {found:?}"))] += 1;
        assert_eq!(
            snapshot.routes[0], first,
            "the route of both maps was never touched"
        );
    }
    assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
    manager(&scratch).apply(&config(&[])).unwrap();
    assert!(grm.snapshot().unwrap().routes.is_empty());
}

#[test]
fn damaged_maps_are_refused() {
    let scratch = Scratch::new("routes-damaged");
    manager(&scratch).apply(&config(&[(1, 1)])).unwrap();
    let grm = grm(&scratch);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(scratch.0.join("grm"))
        .unwrap();
    let look = || {
        let directory = Directory::open(&scratch.0)?;
        let snapshot = Grm::open(&directory)?.snapshot();
        let route = grm.route_of(Address(1));
        snapshot.and_then(|s| route.map(|r| (s, r)))
    };
    let good = look().unwrap();
    // One word is something else while it is looked at.
    let with = |at: usize, value: u64| {
        let mut before = [0; 8];
        file.read_exact_at(&mut before, at as u64).unwrap();
        file.write_all_at(&value.to_le_bytes(), at as u64).unwrap();
        let result = look();
        file.write_all_at(&before, at as u64).unwrap();
        result
    };
    for word in [0, 16, 24, 32, 40] {
        let result = with(word, 0x5555);
        assert!(
            matches!(result, Err(Error::BadFile { .. })),
            "word at {word}"
        );
    }
    assert!(matches!(with(8, 2), Err(Error::Layout { found: 2, .. })));
    let area = AREAS[1]; // the map was written once
    let entry = area + 64;
    let (ends, transports, place) = (entry, entry + 16, entry + 32);
    let port = |port: u64, length: u64| port | length << 32;
    for (at, value, reason) in [
        (area, u64::MAX, "says more than 65536 routes"),
        (area, 65_537, "says more than 65536 routes"),
        (area, 2, "route 2 has 0 endpoints"),
        (ends, 1, "route 1 has 0 endpoints; a route has 1 to 4"),
        (ends, 1 | 5 << 32, "route 1 has 5 endpoints"),
        (ends, 1 | 2 << 32, "has an endpoint that cannot be"),
        (transports, 0, "does not name one or more transports"),
        (transports, 0x04, "has a transport number 4"),
        (transports, 0x0303, "does not name one or more transports"),
        (place, port(0, 5), "has an endpoint that cannot be"),
        (place, port(65_536, 5), "has an endpoint that cannot be"),
        (place, port(1027, 0), "has an endpoint that cannot be"),
        (place, port(1027, 256), "has an endpoint that cannot be"),
        (place + 8, u64::MAX, "has an endpoint that cannot be"),
        (place + 8, 0x2020, "has an endpoint that cannot be"),
    ] {
        let text = match with(at, value) {
            Err(error @ Error::BadFile { .. }) => error.to_string(),
            other => panic!("{value:#x} at {at}: {other:?}"),
        };
        assert!(text.contains(reason), "{value:#x} at {at}: {text}");
        assert!(text.contains("write it anew with trelaymgr -W"), "{text}");
    }
    // Whatever else is in an entry: an error or another route.
    for word in 0..ENTRY / 8 {
        for value in [0, 1, 0xff, 1 << 32, 1 << 63, u64::MAX] {
            let _ = with(entry + 8 * word, value);
        }
    }
    let (version, _) = (with(0x100, u64::MAX).unwrap(), with(0x100, 2).unwrap());
    assert_eq!(version.0.routes.len(), 1, "of the other area");
    assert_eq!(look().unwrap(), good);
    // Not even the next manager minds a version at its end.
    file.write_all_at(&u64::MAX.to_le_bytes(), 0x100).unwrap();
    manager(&scratch).apply(&config(&[(2, 2)])).unwrap();
    assert_eq!(
        (grm.version(), ways(&grm.snapshot().unwrap())),
        (0, vec![(2, 2)])
    );
    file.set_len(5000).unwrap();
    assert!(matches!(look(), Err(Error::BadFile { .. })));
}

/// Somebody writes anything into both tables while they are read: errors or routes, and every call returns.
#[test]
fn a_map_that_is_scribbled_over_misleads_nobody_into_the_void() {
    let scratch = Scratch::new("routes-scribble");
    manager(&scratch)
        .apply(&config(&[(1, 1), (2, 2), (3, 3)]))
        .unwrap();
    let grm = grm(&scratch);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(scratch.0.join("grm"))
        .unwrap();
    let scribbler = std::thread::spawn(move || {
        let mut seed = 88172645463325252u64;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            // xorshift64 (Marsaglia)
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let words = (64 + 3 * ENTRY) as u64 / 8;
            let at = AREAS[(seed >> 20 & 1) as usize] as u64 + 8 * (seed >> 21) % (8 * words);
            let value = [seed, seed & 0xff, 3 << 32 | 1, 0x0301][(seed >> 40 & 3) as usize];
            file.write_all_at(&value.to_le_bytes(), at & !7).unwrap();
            if seed & 15 == 0 {
                file.write_all_at(&seed.to_le_bytes(), 0x100).unwrap();
            }
        }
    });
    let (mut good, mut bad) = (0, 0);
    while !scribbler.is_finished() {
        match grm.snapshot() {
            Ok(snapshot) => {
                let full = |route: &Route| (1..=4).contains(&route.endpoints.len());
                assert!(snapshot.routes.iter().all(full));
                good += 1;
            }
            Err(Error::BadFile { .. }) => bad += 1,
            Err(other) => panic!("{other}"),
        }
        let _ = grm.route_of(Address(2));
    }
    scribbler.join().unwrap();
    assert!(good + bad > 100, "{good} read, {bad} refused");
}

/// 65,536 routes and not one more; a map with few takes little memory.
#[test]
fn the_map_holds_what_it_promises() {
    let scratch = Scratch::new("routes-many");
    let manager = manager(&scratch);
    manager.apply(&config(&[(1, 1)])).unwrap();
    let file = scratch.0.join("grm");
    let taken = std::fs::metadata(&file).unwrap().blocks() * 512;
    assert!(taken < 100_000, "{taken} bytes for one route");
    let all: Vec<_> = (1..=MAX_ROUTES as u32).map(|n| (n, n % 100)).collect();
    let begun = Instant::now();
    match manager.apply(&config(&all)) {
        Err(Error::NoSpace { .. }) => {
            return println!("not run: 84 MB of shared memory are not free");
        }
        result => drop(result.unwrap()),
    }
    let written = begun.elapsed();
    let grm = grm(&scratch);
    let begun = Instant::now();
    let snapshot = grm.snapshot().unwrap();
    let read = begun.elapsed();
    assert_eq!(ways(&snapshot), all);
    let begun = Instant::now();
    let last = grm.route_of(Address(MAX_ROUTES as u32)).unwrap().unwrap();
    println!(
        "65,536 routes: written in {written:?}, read in {read:?}, the last one found in {:?}",
        begun.elapsed()
    );
    assert_eq!(way(&last), all[MAX_ROUTES - 1]);
    let mut more = all.clone();
    more.push((0x10_0000, 1));
    let text = manager.apply(&config(&more)).unwrap_err().to_string();
    assert_eq!(
        text,
        "routes: 65537 are too many: a map holds 65536; leave some out"
    );
    assert_eq!(grm.snapshot().unwrap(), snapshot, "nothing changed");
}
