//! `trelaymgr` as its user meets it: what it prints, its exit status, and what it leaves.

use snapbox::str;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROUTES: &str = r#"<?xml version="1.0" encoding="GBK" standalone="yes" ?>
<RelayMnger>
  <AddrTemplet>8.8.8.8</AddrTemplet>
  <RelayShmKey>2688</RelayShmKey>
  <Relays>
    <Addr>0.0.3.1</Addr>
    <MConn>tcp://10.1.44.61:1027</MConn>
    <Desc>区服一</Desc>
  </Relays>
  <Relays>
    <Addr>0.0.3.2</Addr>
    <MConn>tcp://10.1.44.62:1027</MConn>
    <MConn>tcp://[2001:db8::62]:1027</MConn>
    <Transports>ucx verbs tcp</Transports>
    <Desc>any text</Desc>
  </Relays>
</RelayMnger>
"#;

/// A place for maps, and the tool in it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let place = Place(base.join(format!("tbus-trelaymgr-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&place.0).unwrap();
        place.write("routes.xml", ROUTES);
        place
    }

    /// In GBK, as these files declare and old ones are.
    fn write(&self, name: &str, text: &str) {
        let (bytes, _, failed) = encoding_rs::GBK.encode(text);
        assert!(!failed);
        std::fs::write(self.0.join(name), bytes).unwrap();
    }

    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trelaymgr"))
            .args(arguments.split_whitespace())
            .env("TBUS_SHM_DIR", &self.0)
            .current_dir(&self.0)
            .output()
            .unwrap()
    }

    /// Exit status, and what was printed to either stream, with the place's own name taken out.
    fn says(&self, arguments: &str) -> (i32, String) {
        let output = self.run(arguments);
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .concat();
        (
            output.status.code().unwrap(),
            text.replace(self.0.to_str().unwrap(), "PLACE"),
        )
    }

    #[track_caller]
    fn check(&self, arguments: &str, status: i32, expected: impl snapbox::IntoData) {
        let (found, text) = self.says(arguments);
        snapbox::assert_data_eq!(&text, expected);
        assert_eq!(found, status, "{text}");
    }

    fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_slice(&self.run(arguments).stdout).unwrap()
    }

    /// The routes as listed: address and creation time.
    fn created(&self) -> Vec<(String, u64)> {
        let map = self.json("-k 2688 --json");
        let routes = map["routes"].as_array().unwrap();
        routes
            .iter()
            .map(|route| {
                (
                    route["address"].as_str().unwrap().to_string(),
                    route["created"].as_u64().unwrap(),
                )
            })
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_walk_from_writing_to_writing_again() {
    let place = Place::new("walk");
    place.check(
        "-C routes.xml --plan",
        0,
        str![[r#"
create  0.0.3.1 → tcp://10.1.44.61:1027  over verbs tcp
create  0.0.3.2 → tcp://10.1.44.62:1027, tcp://[2001:db8::62]:1027  over ucx verbs tcp
to create 2, to update 0, kept 0, to delete 0

"#]],
    );
    assert!(!place.0.join("tbus.2688").exists(), "a plan does nothing");
    place.check(
        "--conf-file=routes.xml --write",
        0,
        str![[r#"
created 0.0.3.1 → tcp://10.1.44.61:1027  over verbs tcp
created 0.0.3.2 → tcp://10.1.44.62:1027, tcp://[2001:db8::62]:1027  over ucx verbs tcp
created 2, updated 0, kept 0, deleted 0

"#]],
    );
    let list = str![[r#"
routes 2688 in PLACE/tbus.2688: 2 route(s), template 8.8.8.8, written 1 time(s), made [..]Z
No  address  endpoint                   transports     created               description
 1  0.0.3.1  tcp://10.1.44.61:1027      verbs tcp      [..]Z  区服一
 2  0.0.3.2  tcp://10.1.44.62:1027      ucx verbs tcp  [..]Z  any text
             tcp://[2001:db8::62]:1027

"#]];
    place.check("-k 2688", 0, list.clone());
    place.check("-C routes.xml", 0, list);
    let first = place.created();
    // One leads elsewhere, one is gone, one is new; now in TOML.
    let toml = r#"
relay_shm_key = 0xA80

[[relays]]
addr = "0.0.4.1"
m_conn = "tcp://zone4.example.net:1027"
transports = "tcp"

[[relays]]
addr = "0.0.3.2"
m_conn = ["tcp://10.1.44.72:1027"]
transports = "ucx verbs tcp"
desc = "moved"
"#;
    std::fs::write(place.0.join("routes.toml"), toml).unwrap();
    place.check(
        "-C routes.toml --plan",
        0,
        str![[r#"
create  0.0.4.1 → tcp://zone4.example.net:1027  over tcp
update  0.0.3.2  endpoints tcp://10.1.44.62:1027, tcp://[2001:db8::62]:1027 → tcp://10.1.44.72:1027; description 'any text' → 'moved'
delete  0.0.3.1 → tcp://10.1.44.61:1027
to create 1, to update 1, kept 0, to delete 1

"#]],
    );
    assert_eq!(place.created(), first, "a plan does nothing");
    let (status, text) = place.says("-C routes.toml -W");
    assert_eq!(status, 0);
    assert!(
        text.ends_with("\ncreated 1, updated 1, kept 0, deleted 1\n"),
        "{text}"
    );
    let second = place.created();
    assert_eq!(second[0], first[1], "an update keeps the creation time");
    assert_eq!(second[1].0, "0.0.4.1");
    place.check(
        "-C routes.toml -W",
        0,
        str![[r#"
created 0, updated 0, kept 2, deleted 0

"#]],
    );
    place.check(
        "-k 0xA80 --delete 1",
        0,
        str![[r#"
deleted route 1, 0.0.3.2 → tcp://10.1.44.72:1027

"#]],
    );
    assert_eq!(place.created(), second[1..], "the later ones move up");
    place.says("-C routes.toml -W");
    let last = place.created();
    assert_eq!(last[0], second[1], "the untouched one");
    assert_eq!(last[1].0, "0.0.3.2", "a re-created one is listed last");
    assert!(last[1].1 > second[0].1);
    place.check(
        "-C routes.toml --delete 2",
        0,
        str![[r#"
deleted route 2, 0.0.3.2 → tcp://10.1.44.72:1027

"#]],
    );
    let empty = "<RelayMnger><RelayShmKey>2688</RelayShmKey></RelayMnger>";
    place.write("empty.xml", empty);
    place.check(
        "-C empty.xml -W",
        0,
        str![[r#"
deleted 0.0.4.1 → tcp://zone4.example.net:1027
created 0, updated 0, kept 0, deleted 1

"#]],
    );
    place.check(
        "-k 2688",
        0,
        str![[r#"
routes 2688 in PLACE/tbus.2688: 0 route(s), template 8.8.8.8, written 6 time(s), made [..]Z

"#]],
    );
}

#[test]
fn a_refused_file_changes_nothing_and_says_where() {
    let place = Place::new("refused");
    place.says("-C routes.xml -W");
    let before = place.created();
    let bad = ROUTES
        .replace("0.0.3.2", "0.0.3.1")
        .replace("10.1.44.61:1027", "10.1.44.61")
        .replace("any text</Desc>", "区服</Desc><Descr/>")
        .replace("ucx verbs", "ucx pigeon");
    place.write("bad.xml", &bad);
    for what in ["-W", "--plan", ""] {
        place.check(
            &format!("-C bad.xml {what}"),
            3,
            str![[r#"
bad.xml:7:5: 'tcp://10.1.44.61' is no endpoint; write tcp://HOST:PORT, for example tcp://10.1.44.61:1027
bad.xml:14:5: 'pigeon' is no transport; name verbs, ucx or tcp, with spaces between
bad.xml:15:20: Descr is not known in Relays; known are Addr, Transports, Desc, MConn
trelaymgr: the file is refused; nothing was changed

"#]],
        );
    }
    place.write("twice.xml", &ROUTES.replace("0.0.3.2", "0.0.3.1"));
    place.check("-C twice.xml -W", 3, str![[r#"
twice.xml:10:3: the route to 0.0.3.1 stands in row 5 already; give one route several MConn, or remove one of the two
trelaymgr: the file is refused; nothing was changed

"#]]);
    let m_conn = "    <MConn>tcp://10.1.44.62:1027</MConn>\n";
    let five: String = (1..=4)
        .map(|n| m_conn.replace("62", &format!("7{n}")))
        .collect();
    place.write("five.xml", &ROUTES.replace(m_conn, &five));
    place.check(
        "-C five.xml -W",
        3,
        str![[r#"
five.xml:16:5: this is endpoint 5 of the route; give at most 4
trelaymgr: the file is refused; nothing was changed

"#]],
    );
    let toml = "relay_shm_key = 2688\n[[relays]]\naddr = '0.0.3'\n  m_con = 'tcp://a:1'\n";
    std::fs::write(place.0.join("bad.toml"), toml).unwrap();
    place.check(
        "-C bad.toml --plan",
        3,
        str![[r#"
bad.toml:2:1: relays has no MConn; add it
bad.toml:3:1: '0.0.3' has 3 number(s) between dots; give four, for example 0.0.3.1
bad.toml:4:3: m_con is not known in Relays; known are Addr, Transports, Desc, MConn
trelaymgr: the file is refused; nothing was changed

"#]],
    );
    place.check("-C missing.xml -W", 3, str![[r#"
missing.xml:1:1: it cannot be read: No such file or directory (os error 2); check the name and its mode
trelaymgr: the file is refused; nothing was changed

"#]]);
    assert_eq!(place.created(), before);
}

#[test]
fn every_failure_has_its_status() {
    let place = Place::new("status");
    for arguments in ["-k 2688", "-C routes.xml", "-k 2688 --delete 1"] {
        let (status, text) = place.says(arguments);
        assert_eq!(status, 4, "no map yet: {text}");
        assert!(text.contains("tbus.2688 does not exist"), "{text}");
    }
    place.says("-C routes.xml -W");
    place.write("other.xml", &ROUTES.replace("8.8.8.8", "6.8.8.10"));
    for (arguments, status, part) in [
        (
            "-k 2688 --delete 3",
            4,
            "there is no route 3: the list has 2, numbered from 1",
        ),
        ("-k 2688 --delete 0", 4, "there is no route 0"),
        ("-C other.xml -W", 7, "has address template 8.8.8.8"),
        ("-C other.xml --plan", 7, "has address template 8.8.8.8"),
        ("-k 2688 -W", 2, "configuration file"),
        ("-k 2688 --plan", 2, "configuration file"),
        ("-C routes.xml -W --delete 1", 2, "cannot be used with"),
        ("-k 2688 --delete two", 2, "invalid value"),
        ("-k many", 2, "32 bits"),
        ("--json", 2, "required"),
        ("", 2, "Examples:"),
        ("--help", 0, "Exit status: 0 done; 2 wrong usage"),
        ("-V", 0, "trelaymgr"),
    ] {
        let (found, text) = place.says(arguments);
        assert_eq!(found, status, "{arguments}: {text}");
        assert!(text.contains(part), "{arguments}: {text}");
    }
    // A directory of channels may have the same key, and no routes.
    let channels = "<TbusGCIM><GCIMShmKey>9</GCIMShmKey></TbusGCIM>";
    let channels = tbus::config::parse_channels(channels.as_bytes(), false, 1 << 30).unwrap();
    let directory = place.0.join("tbus.9");
    let holder = tbus::manage::Manager::create_at(&directory, &channels, Default::default());
    let (status, text) = place.says("-k 9");
    assert_eq!(status, 4, "{text}");
    assert!(text.contains("tbus.9/grm does not exist"), "{text}");
    // Its manager keeps others waiting, here for ever.
    let begun = std::time::Instant::now();
    place.write("nine.xml", &ROUTES.replace("2688", "9"));
    let (status, text) = place.says("-C nine.xml -W");
    assert_eq!(status, 6, "{text}");
    assert!(begun.elapsed() >= tbus_tools::command::PATIENCE);
    drop(holder);
    assert_eq!(place.says("-C nine.xml -W").0, 0);
    // Damage is said, with what to do about it.
    std::fs::write(place.0.join("tbus.2688/grm"), "nothing").unwrap();
    place.check(
        "-k 2688",
        7,
        str![[r#"
trelaymgr: PLACE/tbus.2688/grm is not usable: it has 7 bytes, a map has 167776384; it was changed or cut short by another program: delete it and write it anew with trelaymgr -W

"#]],
    );
}

#[test]
fn json_has_everything_whole() {
    let place = Place::new("json");
    let planned = place.json("-C routes.xml --plan --json");
    let written = place.json("-C routes.xml -W --json");
    assert_eq!(
        (&planned["done"], &written["done"]),
        (&false.into(), &true.into())
    );
    assert_eq!(planned["create"], written["create"]);
    assert_eq!(written["create"][0]["description"], "区服一");
    let list = place.json("-k 2688 --json");
    assert_eq!((&list["key"], &list["version"]), (&2688.into(), &1.into()));
    let second = &list["routes"][1];
    assert_eq!(second["number"], 2);
    assert_eq!(
        second["endpoints"],
        serde_json::json!(["tcp://10.1.44.62:1027", "tcp://[2001:db8::62]:1027"])
    );
    assert_eq!(
        second["transports"],
        serde_json::json!(["ucx", "verbs", "tcp"])
    );
    place.write("moved.xml", &ROUTES.replace("44.61", "44.71"));
    let moved = place.json("-C moved.xml -W --json");
    let [from, to] = ["from", "to"].map(|side| &moved["update"][0][side]);
    assert_eq!(from["endpoints"][0], "tcp://10.1.44.61:1027");
    assert_eq!(to["endpoints"][0], "tcp://10.1.44.71:1027");
    assert_eq!(from["created"], to["created"]);
    assert_eq!(moved["keep"][0]["address"], "0.0.3.2");
    let deleted = place.json("-k 2688 --delete 2 --json");
    assert_eq!(deleted["deleted"], 2);
    assert_eq!(deleted["route"]["address"], "0.0.3.2");
}
