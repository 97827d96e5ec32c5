use super::*;

const FILE: &str = r#"cluster = "game-eu"
node = 1
gcim_key = 1000
relay_key = 0xA80
listen = "10.1.44.61"
metrics = "[::1]:9200"
workers = 3
hold_down = 3
hold_down_max = 4
security = "encrypt"
certificate = "node1.pem"
private_key = "/etc/tbus/node1.key"
authority = "ca.pem"

[[allow]]
node = 2
name = "node2.example.net"

[[allow]]
node = 3
name = "node3.example.net"
security = "authenticate"
endpoint = "tcp://node3:1028"
"#;

fn parse(text: &str) -> Result<RelayConfig, Vec<Problem>> {
    parse_relay(text.as_bytes(), None)
}

#[test]
fn reads_every_key() {
    let config = parse(FILE).unwrap();
    let peer = |node: u32, security| AllowedPeer {
        node,
        name: Some(format!("node{node}.example.net")),
        endpoint: (node == 3).then(|| RelayEndpoint {
            host: "node3".into(),
            port: 1028,
        }),
        security,
    };
    assert_eq!(
        config,
        RelayConfig {
            cluster: "game-eu".into(),
            node: 1,
            gcim_key: 1000,
            relay_key: 2688,
            listen: "10.1.44.61:1027".parse().unwrap(),
            metrics: Some("[::1]:9200".parse().unwrap()),
            drain: Duration::from_secs(DRAIN),
            alarm_full: ALARM_FULL,
            alarm_age: Duration::from_secs(ALARM_AGE),
            hold_down: Duration::from_secs(3),
            hold_down_max: Duration::from_secs(4),
            workers: Some(3),
            security: Security::Encrypt,
            pem: Some(PemFiles {
                certificate: "node1.pem".into(),
                private_key: "/etc/tbus/node1.key".into(),
                authority: "ca.pem".into(),
            }),
            allow: vec![peer(2, Security::Encrypt), peer(3, Security::Authenticate)],
        }
    );
}

#[test]
fn a_relay_is_found_whatever_else_its_file_says() {
    let file = std::env::temp_dir().join(format!("tbus-identity-{}.toml", std::process::id()));
    let identity = |text: String| {
        std::fs::write(&file, text).unwrap();
        read_relay_identity(&file)
    };
    let bad = FILE.replace("workers = 3", "workers = 0\nnonsense = 1");
    assert_eq!(identity(bad.clone()), Ok((1, 1000)));
    let refused = identity(bad.replace("node = 1\n", "node = -1\n")).unwrap_err();
    assert_eq!(refused.problems.len(), 1, "{refused}");
    assert!(identity(bad.replace("gcim_key = 1000", "")).is_err());
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn has_defaults() {
    let least =
        "cluster='c'\nnode=0\ngcim_key=1\nrelay_key=2\nsecurity='none'\n[[allow]]\nnode=7\n";
    let config = parse(least).unwrap();
    assert_eq!(config.listen, "0.0.0.0:1027".parse().unwrap());
    assert_eq!(config.metrics, Some("127.0.0.1:9127".parse().unwrap()));
    assert_eq!((config.workers, &config.pem), (None, &None));
    let rests = |config: &RelayConfig| (config.hold_down.as_secs(), config.hold_down_max.as_secs());
    assert_eq!(rests(&config), (HOLD_DOWN, HOLD_DOWN_MAX));
    let long = parse(&least.replace("node=0", "node=0\nhold_down=70")).unwrap();
    assert_eq!(rests(&long), (70, 70));
    assert_eq!(config.allow[0].name, None);
    let silent = parse(&least.replace("node=0", "node=0\nmetrics='none'")).unwrap();
    assert_eq!(silent.metrics, None);
    // Encrypting is what is done unless something else is asked for by name.
    let problems = parse(&least.replace("security='none'\n", "")).unwrap_err();
    let reasons: Vec<_> = problems.iter().map(|p| p.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "certificate is missing, which TLS needs",
            "private_key is missing, which TLS needs",
            "authority is missing, which TLS needs",
        ]
    );
}

/// Each refusal stands where the mistake is, says it, and has a mend.
#[test]
fn refuses_with_row_column_and_reason() {
    let cases = [
        (
            "\"game-eu\"",
            "\"\"",
            (1, 1),
            "\"\" is no name of a cluster",
        ),
        (
            "cluster = \"game-eu\"",
            "",
            (1, 1),
            "the file has no cluster",
        ),
        ("node = 1", "node = -1", (2, 1), "'-1' is no value for node"),
        (
            "node = 1",
            "node = 4294967296",
            (2, 1),
            "is no value for node",
        ),
        ("node = 1\n", "\n", (1, 1), "the file has no node"),
        ("node = 1", "node = true", (2, 1), "node is a boolean"),
        ("gcim_key = 1000", "gcim_key = 'x'", (3, 1), "'x' is no key"),
        (
            "relay_key = 0xA80\n",
            "",
            (1, 1),
            "the file has no relay_key",
        ),
        (
            "relay_key",
            "  relay_kee",
            (4, 3),
            "relay_kee is not known in the relay's file",
        ),
        (
            "10.1.44.61",
            "localhost",
            (5, 1),
            "'localhost' is no address to listen on",
        ),
        ("10.1.44.61", "10.1.44.61:0", (5, 1), "listen with port 0"),
        ("9200", "99999", (6, 1), "is no address to listen on"),
        (
            "[::1]:9200",
            "0.0.0.0:1027",
            (6, 1),
            "listen and metrics both have port 1027",
        ),
        ("workers = 3", "workers = 0", (7, 1), "0 workers"),
        (
            "workers = 3",
            "alarm_full = 0",
            (7, 1),
            "0 is no value for alarm_full",
        ),
        (
            "workers = 3",
            "alarm_full = 101",
            (7, 1),
            "'101' is no value for alarm_full",
        ),
        (
            "workers = 3",
            "alarm_age = 0",
            (7, 1),
            "0 is no value for alarm_age",
        ),
        (
            "hold_down = 3",
            "hold_down = 0",
            (8, 1),
            "0 is no value for hold_down",
        ),
        (
            "hold_down_max = 4",
            "hold_down_max = 2",
            (9, 1),
            "2 is no value for hold_down_max",
        ),
        (
            "workers = 3",
            "drain = 86401",
            (7, 1),
            "'86401' is no value for drain",
        ),
        (
            "workers = 3",
            "drain = \"5s\"",
            (7, 1),
            "'5s' is no value for drain",
        ),
        (
            "workers = 3",
            "workers = 2000",
            (7, 1),
            "'2000' is no value for workers",
        ),
        (
            "\"encrypt\"",
            "\"rot13\"",
            (10, 1),
            "'rot13' is no value for security",
        ),
        (
            "certificate = \"node1.pem\"",
            "",
            (10, 1),
            "certificate is missing, which TLS needs",
        ),
        ("\"ca.pem\"", "\"\"", (13, 1), "authority is empty"),
        (
            "node = 2",
            "node = 1",
            (15, 1),
            "node 1 is this relay itself",
        ),
        (
            "node = 3",
            "node = 2",
            (19, 1),
            "node 2 stands in row 15 already",
        ),
        (
            "node3.example",
            "node2.example",
            (19, 1),
            "the name 'node2.example.net' stands in row 15 already",
        ),
        (
            "tcp://node3:1028",
            "node3",
            (23, 1),
            "'node3' is no endpoint",
        ),
        (
            "\"authenticate\"",
            "\"none\"",
            (22, 1),
            "security 'none' for some peers and another one for others",
        ),
        (
            "\"node2.example.net\"",
            "\"\"",
            (17, 1),
            "the name is empty",
        ),
        ("node = 2", "note = 2", (15, 1), "allow has no node"),
        (
            "\"authenticate\"",
            "\"none at all\"",
            (22, 1),
            "'none at all' is no value",
        ),
        ("[[allow]]", "[[allow]", (15, 9), "this is not TOML"),
    ];
    for (from, to, at, expected) in cases {
        let text = FILE.replacen(from, to, 1);
        assert_ne!(text, FILE, "{from}");
        let problems = parse(&text).unwrap_err();
        let found = problems.iter().find(|p| p.reason.contains(expected));
        let problem = found.unwrap_or_else(|| panic!("{to}: {problems:?}"));
        assert_eq!(
            (problem.row, problem.column),
            at,
            "{to}: {}",
            problem.reason
        );
        assert!(!problem.mend.is_empty(), "{to}");
    }
}

#[test]
fn tells_every_problem_at_once() {
    let text = FILE
        .replace("game-eu", "")
        .replace("listen", "lisen")
        .replace("workers = 3", "workers = 0")
        .replace("node = 3", "node = 'three'");
    let rows: Vec<_> = parse(&text).unwrap_err().iter().map(|p| p.row).collect();
    assert_eq!(rows, [1, 5, 7, 20]);
}

#[test]
fn a_file_names_others_from_where_it_lies() {
    let directory = std::env::temp_dir().join(format!("tbus-relay-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("tbusd.toml");
    std::fs::write(&file, FILE.replace("/etc/tbus/", "")).unwrap();
    std::fs::write(directory.join("node1.pem"), "").unwrap();
    std::fs::create_dir_all(directory.join("ca.pem")).unwrap();
    let error = read_relay(&file).unwrap_err().to_string();
    std::fs::write(directory.join("node1.key"), "").unwrap();
    std::fs::remove_dir(directory.join("ca.pem")).unwrap();
    std::fs::write(directory.join("ca.pem"), "").unwrap();
    let read = read_relay(&file);
    std::fs::remove_dir_all(&directory).unwrap();
    let lines: Vec<_> = error.lines().collect();
    let at = |row: u32| format!("{}:{row}:1: ", file.display());
    assert!(
        lines[0].starts_with(&at(12))
            && lines[0].contains("private_key")
            && lines[0].contains("No such file"),
        "{error}"
    );
    assert!(
        lines[1].starts_with(&at(13)) && lines[1].contains("it is no file"),
        "{error}"
    );
    let pem = read.unwrap().pem.unwrap();
    assert_eq!(pem.private_key, directory.join("node1.key"));
}
