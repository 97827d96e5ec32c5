//! `tbusmgr` as its user meets it: what it prints, its exit status, and what it leaves.

use snapbox::str;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CHANNELS: &str = r#"<?xml version="1.0" encoding="GBK" standalone="yes" ?>
<TbusGCIM>
  <AddrTemplet>8.8.8.8</AddrTemplet>
  <GCIMShmKey>1000</GCIMShmKey>
  <Channels>
    <Priority>8</Priority>
    <Address>0.0.1.1</Address>
    <Address>0.0.3.1</Address>
    <SendSize>20480000</SendSize>
    <RecvSize>20480000</RecvSize>
    <Desc>any text</Desc>
  </Channels>
  <Channels>
    <Priority>8</Priority>
    <Address>0.0.1.1</Address>
    <Address>0.0.3.2</Address>
    <SendSize>100000</SendSize>
    <RecvSize>65536</RecvSize>
    <Desc>smaller</Desc>
  </Channels>
</TbusGCIM>
"#;

/// A place for buses, and the tool in it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let place = Place(base.join(format!("tbus-tbusmgr-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&place.0).unwrap();
        std::fs::write(place.0.join("channels.xml"), CHANNELS).unwrap();
        place
    }

    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tbusmgr"))
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

    /// Creation times of the channels, by their second address.
    fn created(&self) -> Vec<(String, u64)> {
        let map: serde_json::Value =
            serde_json::from_slice(&self.run("-k 1000 --json").stdout).unwrap();
        let channels = map["channels"].as_array().unwrap();
        channels
            .iter()
            .map(|c| {
                (
                    c["addresses"][1].as_str().unwrap().to_string(),
                    c["created"].as_u64().unwrap(),
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
        "-C channels.xml --plan",
        0,
        str![[r#"
create  0.0.1.1 – 0.0.3.1  send 20480000 bytes, receive 20480000 bytes
create  0.0.1.1 – 0.0.3.2  send 102400 (rounded up to pages from 100000) bytes, receive 65536 bytes
to create 2, kept 0, to delete 0

"#]],
    );
    place.check(
        "--conf-file=channels.xml --write",
        0,
        str![[r#"
created 0.0.1.1 – 0.0.3.1  send 20480000 bytes, receive 20480000 bytes
created 0.0.1.1 – 0.0.3.2  send 102400 (rounded up to pages from 100000) bytes, receive 65536 bytes
created 2, kept 0, deleted 0

"#]],
    );
    place.check(
        "-k 1000",
        0,
        str![[r#"
bus 1000 in PLACE/tbus.1000: 2 channel(s), template 8.8.8.8, written 1 time(s), made [..]Z
No  address  address      send  receive  retention  created               description
 1  0.0.1.1  0.0.3.1   20.5 MB  20.5 MB  delivered  [..]Z  any text
 2  0.0.1.1  0.0.3.2  102.4 kB  65.5 kB  delivered  [..]Z  smaller

"#]],
    );
    let first = place.created();
    place.check(
        "-C channels.xml -T --src=0.0.1.1 --dst=0.0.3.1 --data-len=14",
        0,
        str![[r#"
sent a test message of 14 bytes from 0.0.1.1 to 0.0.3.1, sequence 0

"#]],
    );
    place.check(
        "-k 1000 --see 0.0.3.1",
        0,
        str![[r#"
No  from     to       MsgNum  Bytes  H   T      Size  HSeq  Seq
 1  0.0.1.1  0.0.3.1       1     32  0  32  20480000     0    1
 1  0.0.3.1  0.0.1.1       0      0  0   0  20480000     0    0

"#]],
    );
    place.check(
        "-k 0x3E8 --see-all --dump-binary",
        0,
        str![[r#"
No  from     to       MsgNum  Bytes  H   T      Size  HSeq  Seq
 1  0.0.1.1  0.0.3.1       1     32  0  32  20480000     0    1
 1  0.0.3.1  0.0.1.1       0      0  0   0  20480000     0    0
 2  0.0.1.1  0.0.3.2       0      0  0   0    102400     0    0
 2  0.0.3.2  0.0.1.1       0      0  0   0     65536     0    0

0.0.1.1 → 0.0.3.1, message 0, 14 bytes
00000000  74 62 75 73 20 74 65 73 74 20 6d 65 73 73        tbus test mess

"#]],
    );
    let refused = str![[r#"
tbusmgr: the channel between 0.0.1.1 and 0.0.3.1 has 1 unread message(s), which deleting it would lose; let its receiver read them, or use --force

"#]];
    place.check("-k 1000 --delete 1", 5, refused);
    assert_eq!(place.created(), first, "refused: nothing changed");
    place.check(
        "-k 1000 --delete 1 --force",
        0,
        str![[r#"
deleted channel 1, 0.0.1.1 – 0.0.3.1

"#]],
    );
    assert_eq!(
        place.created(),
        first[1..],
        "gone; the other one is untouched"
    );
    place.check(
        "-C channels.xml -W",
        0,
        str![[r#"
created 0.0.1.1 – 0.0.3.1  send 20480000 bytes, receive 20480000 bytes
created 1, kept 1, deleted 0

"#]],
    );
    let last = place.created();
    assert_eq!(
        last[0], first[1],
        "the untouched channel's creation time is unchanged"
    );
    assert_eq!(
        last[1].0, "0.0.3.1",
        "the one that was written again is listed last"
    );
    assert!(last[1].1 > first[0].1);
    place.check(
        "-k 1000 --clean 2",
        0,
        str![[r#"
channel 2 is empty; 0 message(s) discarded

"#]],
    );
    // Without a channel in the file the surplus ones go.
    let empty = "<TbusGCIM><GCIMShmKey>1000</GCIMShmKey></TbusGCIM>";
    std::fs::write(place.0.join("empty.xml"), empty).unwrap();
    place.check(
        "-C empty.xml -W",
        0,
        str![[r#"
deleted 0.0.1.1 – 0.0.3.2
deleted 0.0.1.1 – 0.0.3.1
created 0, kept 0, deleted 2

"#]],
    );
    let left: Vec<_> = std::fs::read_dir(place.0.join("tbus.1000"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "the map and the locks, no rings: {left:?}");
}

#[test]
fn a_refused_file_changes_nothing_and_says_where() {
    let place = Place::new("refused");
    place.says("-C channels.xml -W");
    let before = place.created();
    let bad = CHANNELS.replace("<Address>0.0.3.2</Address>", "<Address>0.0.3.256</Address>");
    std::fs::write(
        place.0.join("bad.xml"),
        bad.replace("65536", "0")
            .replace("smaller</Desc>", "</Desc><Descr/>"),
    )
    .unwrap();
    for what in ["-W", "--plan", ""] {
        place.check(
            &format!("-C bad.xml {what}"),
            3,
            str![[r#"
bad.xml:16:5: number 4 of '0.0.3.256' is above 255, the most that template 8.8.8.8 allows there; use a smaller number or a template with more bits in that place
bad.xml:18:5: RecvSize is 0; give at least 4096 bytes
bad.xml:19:18: Descr is not known in Channels; known are Priority, SendSize, RecvSize, Desc, Retention, Mode, Owner, Group, Memory, Address
tbusmgr: the file is refused; nothing was changed

"#]],
        );
    }
    place.check("-C missing.xml -W", 3, str![[r#"
missing.xml:1:1: it cannot be read: No such file or directory (os error 2); check the name and its mode
tbusmgr: the file is refused; nothing was changed

"#]]);
    let large = CHANNELS
        .replace("20480000", "4294967296")
        .replace("100000", "4294967296");
    std::fs::write(place.0.join("large.xml"), large).unwrap();
    assert_eq!(place.created(), before);
}

#[test]
fn every_failure_has_its_status() {
    let place = Place::new("status");
    assert_eq!(place.says("-k 7").0, 4, "no such bus");
    place.says("-C channels.xml -W");
    for (arguments, status, part) in [
        (
            "-k 1000 --delete 3",
            4,
            "there is no channel 3: the list has 2",
        ),
        ("-k 1000 --clean 0", 4, "there is no channel 0"),
        (
            "-k 1000 --see 0.0.9.9",
            4,
            "no channel with the address 0.0.9.9",
        ),
        (
            "-k 1000 -T --src=0.0.3.1 --dst=0.0.3.2",
            4,
            "no channel between 0.0.3.1 and 0.0.3.2",
        ),
        ("-k 1000 --see 0.0.9", 2, "has 3 number(s) between dots"),
        (
            "-k 1000 -T --src=0.0.1.1 --dst=0.0.3.2 --data-len=60000",
            2,
            "half its capacity",
        ),
        ("-k 1000 -W", 2, "configuration file"),
        ("-k 1000 --see-all --delete 1", 2, "cannot be used with"),
        (
            "-k 1000 -T --src=0.0.1.1 --dst=0.0.3.2 --data-len=99999999999999",
            2,
            "half its capacity",
        ),
        ("-k 1000 --force", 2, "required"),
        ("-k 1000 --dump-binary", 2, "required"),
        ("-k 1000 --data-len=3", 2, "required"),
        ("-k many", 2, "32 bits"),
        ("--see-all", 2, "required"),
        ("--help", 0, "Exit status: 0 done; 2 wrong usage; 3"),
        ("-V", 0, "tbusmgr"),
    ] {
        let (found, text) = place.says(arguments);
        assert_eq!(found, status, "{arguments}: {text}");
        assert!(text.contains(part), "{arguments}: {text}");
    }
    // A test message takes the sender's role, emptying the receiver's: both are somebody's here.
    let directory = tbus::Directory::open(place.0.join("tbus.1000")).unwrap();
    let bus = tbus::Bus::attach_at(directory.path()).unwrap();
    let template = bus.template();
    let endpoint = bus.bind(template.parse("0.0.1.1").unwrap()).unwrap();
    let peer = template.parse("0.0.3.1").unwrap();
    let _ends = (
        endpoint.sender(peer).unwrap(),
        endpoint.receiver(peer).unwrap(),
    );
    for arguments in [
        "-k 1000 -T --src=0.0.1.1 --dst=0.0.3.1",
        "-k 1000 --clean 1",
    ] {
        let (status, text) = place.says(arguments);
        assert_eq!(status, 6, "{arguments}: {text}");
        assert!(
            text.contains(&format!("pid {}", std::process::id())),
            "{text}"
        );
    }
}

#[test]
fn json_has_everything_whole() {
    let place = Place::new("json");
    let written: serde_json::Value =
        serde_json::from_slice(&place.run("-C channels.xml -W --json").stdout).unwrap();
    assert_eq!(written["create"][1]["sizes"][0], 102400);
    assert_eq!(written["create"][1]["configured"][0], 100000);
    place.says("-k 1000 -T --src=0.0.1.1 --dst=0.0.3.1 --data-len=3");
    let seen: serde_json::Value = serde_json::from_slice(
        &place
            .run("-k 1000 --see 0.0.3.1 --dump-binary --json")
            .stdout,
    )
    .unwrap();
    assert_eq!(
        (&seen[0]["MsgNum"], &seen[0]["T"], &seen[0]["Seq"]),
        (&1.into(), &24.into(), &1.into())
    );
    assert_eq!(seen[0]["messages"][0]["hex"], "746275");
}

/// What a channel keeps its messages for, and whose it is: told in the list, and when the file says something else.
#[test]
fn settings_go_round() {
    let place = Place::new("settings");
    let write = |second: &str| {
        let text = CHANNELS.replace(
            "<Desc>smaller</Desc>",
            &format!("<Desc>smaller</Desc>{second}"),
        );
        std::fs::write(place.0.join("channels.xml"), text).unwrap();
    };
    write("<Retention>consumed</Retention>");
    assert_eq!(place.says("-C channels.xml -W").0, 0);
    place.check(
        "-k 1000",
        0,
        str![[r#"
bus 1000 in PLACE/tbus.1000: 2 channel(s), template 8.8.8.8, written 1 time(s), made [..]Z
No  address  address      send  receive  retention  created               description
 1  0.0.1.1  0.0.3.1   20.5 MB  20.5 MB  delivered  [..]Z  any text
 2  0.0.1.1  0.0.3.2  102.4 kB  65.5 kB  consumed   [..]Z  smaller

"#]],
    );
    let map: serde_json::Value =
        serde_json::from_slice(&place.run("-k 1000 --json").stdout).unwrap();
    assert_eq!(map["channels"][0]["retention"], "delivered");
    assert_eq!(map["channels"][1]["retention"], "consumed");
    write("<Retention>delivered</Retention><Mode>600</Mode>");
    for what in ["--plan", "-W"] {
        let (status, text) = place.says(&format!("-C channels.xml {what}"));
        assert_eq!(status, 0);
        let told = "kept    0.0.1.1 – 0.0.3.2 as it is, with retention consumed, the file says delivered; mode 6";
        assert!(text.contains(told), "{text}");
        assert!(
            text.contains(", the file says 600; delete it first to change it"),
            "{text}"
        );
    }
    write("<Retention>for ever</Retention>\n<Memory>hugetlb</Memory>\n<Mode>666</Mode>");
    place.check(
        "-C channels.xml -W",
        3,
        str![[r#"
channels.xml:19:25: 'for ever' is no value for Retention; give delivered or consumed
channels.xml:20:1: Memory hugetlb is not there yet; give shm, or leave the element out
channels.xml:21:1: Mode 666 lets everybody in; give 660 for owner and group, or 600 for the owner alone; Owner and Group say who they are
tbusmgr: the file is refused; nothing was changed

"#]],
    );
    write("<Owner>nobody-of-this-name</Owner>");
    for what in ["--plan", "-W"] {
        place.check(
            &format!("-C channels.xml {what}"),
            3,
            str![[r#"
channels.xml:13:3: owner: this host knows no owner 'nobody-of-this-name'; give one that exists, or its number
tbusmgr: the file is refused; nothing was changed

"#]],
        );
    }
}

/// A ring that cannot be opened hides no other one.
#[test]
fn damaged_rings_are_shown_as_such() {
    let place = Place::new("damaged");
    place.says("-C channels.xml -W");
    let map: serde_json::Value =
        serde_json::from_slice(&place.run("-k 1000 --json").stdout).unwrap();
    let ring = map["channels"][0]["rings"][1].as_str().unwrap();
    std::fs::write(
        place.0.join(format!("tbus.1000/ring-{ring}")),
        "rubbish ".repeat(100),
    )
    .unwrap();
    place.check(
        "-k 1000 --see-all",
        0,
        str![[r#"
No  from     to       MsgNum  Bytes  H  T      Size  HSeq  Seq
 1  0.0.1.1  0.0.3.1       0      0  0  0  20480000     0    0
 1  0.0.3.1  0.0.1.1       -      -  -  -  20480000     -    -
 2  0.0.1.1  0.0.3.2       0      0  0  0    102400     0    0
 2  0.0.3.2  0.0.1.1       0      0  0  0     65536     0    0
0.0.3.1 → 0.0.1.1: PLACE/tbus.1000/ring-[..] is no tbus ring: it begins with "rubbish ", not with "TBUSRING"; is it another program's file?

"#]],
    );
}
