//! Several users of one host: who gets into the bus and its channels, who is kept out, and what they are told.
//!
//! Each user is a child process: this binary again, see [`job`], which gives up root's rights first. Without root
//! the tests say that they were not run; where `CI` or `TBUS_REQUIRE_ROOT` is set that is a failure.

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tbus::config::{ChannelsConfig, parse_channels};
use tbus::manage::{Manager, unknown_owners};
use tbus::{Address, Bus, Directory};

/// User and group.
type Who = (u32, u32);
const OWNER: Who = (61001, 61001);
const MEMBER: Who = (61002, 62002);
const STRANGER: Who = (61003, 61003);
const ROOT: Who = (0, 0);

/// A directory that everybody may enter, removed when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.into()
        } else {
            std::env::temp_dir()
        };
        let path = base.join(format!("tbus-users-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Scratch(path)
    }

    fn bus(&self) -> PathBuf {
        self.0.join("bus")
    }

    /// What a job says as one user, with this umask.
    fn run(&self, job: &str, who: Who, umask: u32) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command
            .args(["--exact", "job", "--nocapture", "--test-threads=1"])
            .env("TBUS_USERS_JOB", job)
            .env("TBUS_USERS_WHO", format!("{} {} {umask}", who.0, who.1))
            .env("TBUS_USERS_DIR", &self.0)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{job} {who:?}: {text}");
        text.replace(self.0.to_str().unwrap(), "PLACE")
    }

    /// Makes the map have these channels of address 1: the other address, and more elements.
    fn write(&self, channels: &[(u32, &str)], umask: u32) {
        fs::write(self.0.join("channels.xml"), xml(channels)).unwrap();
        assert_eq!(self.run("write", ROOT, umask), "written\n");
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.bus().join(name)).unwrap().mode() & 0o7777
    }

    /// Modes of the rings, ascending.
    fn ring_modes(&self) -> Vec<u32> {
        let rings = fs::read_dir(self.bus()).unwrap().map(|e| e.unwrap());
        let mut modes: Vec<_> = rings
            .filter(|e| e.file_name().to_string_lossy().starts_with("ring-"))
            .map(|e| e.metadata().unwrap().mode() & 0o7777)
            .collect();
        modes.sort();
        modes
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn xml(channels: &[(u32, &str)]) -> String {
    let channels: String = channels
        .iter()
        .map(|(other, more)| {
            format!(
                "<Channels><Address>0.0.0.1</Address><Address>0.0.0.{other}</Address><SendSize>4096</SendSize>\
                 <RecvSize>4096</RecvSize>{more}</Channels>"
            )
        })
        .collect();
    format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>{channels}</TbusGCIM>")
}

fn config(text: &str) -> ChannelsConfig {
    parse_channels(text.as_bytes(), false, u64::MAX).unwrap()
}

/// False, and said so past the capturing of output, where the test cannot be run.
fn as_root() -> bool {
    if Uid::effective().is_root() {
        return true;
    }
    let name = std::thread::current().name().unwrap_or("?").to_string();
    let required = ["CI", "TBUS_REQUIRE_ROOT"].map(std::env::var_os);
    assert!(
        required.iter().all(Option::is_none),
        "{name}: needs root, and CI or TBUS_REQUIRE_ROOT is set"
    );
    let text = format!("{name}: not run: needs root, to become other users\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    false
}

const NAMED: &str = "<Owner>61001</Owner><Group>62002</Group>";
const PRIVATE: &str = "<Owner>61001</Owner><Group>62002</Group><Mode>600</Mode>";

#[test]
fn owner_and_group_get_in_and_nobody_else() {
    if !as_root() {
        return;
    }
    // With the umask that most systems have, and with the strictest: what is named is meant.
    for umask in [0o022, 0o077] {
        let scratch = Scratch::new(&format!("named-{umask:o}"));
        scratch.write(&[(2, NAMED), (3, PRIVATE), (4, "")], umask);
        let plain = 0o660 & !umask;
        let mut wanted = [0o600, 0o600, 0o660, 0o660, plain, plain];
        wanted.sort();
        assert_eq!(scratch.ring_modes(), wanted);
        assert_eq!(scratch.mode("") & 0o007, 0, "others stay out");
        for file in ["gcim", "locks"] {
            assert_eq!(scratch.mode(file) & 0o007, 0, "others stay out of {file}");
        }

        let owner = scratch.run("use", OWNER, umask);
        assert!(owner.starts_with("2: works\n3: works\n4: "), "{owner}");
        let refusal = format!(
            ": it belongs to user 0, group 0, and has mode {plain:04o}; run as its owner or as a member of its group, or \
             have one of these named as Owner or Group of the channel\n"
        );
        let told = owner.lines().nth(2).unwrap();
        assert!(
            told.starts_with("4: user 61001 may not open PLACE/bus/ring-"),
            "{told}"
        );
        assert!(owner.contains(&refusal), "{owner}");

        let member = scratch.run("use", MEMBER, umask);
        assert!(member.starts_with("2: works\n3: user 61002"), "{member}");
        assert!(
            member.contains("it belongs to user 61001, group 62002, and has mode 0600; "),
            "{member}"
        );

        let stranger = scratch.run("use", STRANGER, umask);
        assert!(
            stranger.starts_with(
                "bus: user 61003 may not open PLACE/bus/locks: PLACE/bus belongs to user 0, group 0, and has mode 07"
            ),
            "{stranger}"
        );
        // Nothing but what it takes to use the channels.
        assert_eq!(
            scratch.run("overreach", OWNER, umask),
            "list: refused\nmap for writing: refused\nmanage: user 61001 may not make or remove channels in PLACE/bus: \
             it belongs to user 0, group 0, and has mode 0710; run as the directory's owner, or as root\n"
                .replace("0710", if umask == 0o077 { "0710" } else { "0750" })
        );
    }
}

#[test]
fn who_has_no_channel_any_more_is_out() {
    if !as_root() {
        return;
    }
    let scratch = Scratch::new("out");
    scratch.write(&[(2, NAMED), (3, PRIVATE), (4, "")], 0o022);
    // The private channel's owner is still in, its group has no other channel.
    scratch.write(&[(3, PRIVATE), (4, "")], 0o022);
    assert!(scratch.run("use", OWNER, 0).starts_with("3: works\n"));
    assert!(scratch.run("use", MEMBER, 0).starts_with("bus: user 61002"));
    scratch.write(&[(4, "")], 0o022);
    assert!(scratch.run("use", OWNER, 0).starts_with("bus: user 61001"));
    assert_eq!(
        [
            scratch.mode(""),
            scratch.mode("gcim"),
            scratch.mode("locks")
        ],
        [0o750, 0o640, 0o640],
        "as it was before"
    );
}

#[test]
fn the_umask_holds_where_nothing_is_named() {
    if !as_root() {
        return;
    }
    for mask in [0, 0o007, 0o022, 0o027, 0o077] {
        let scratch = Scratch::new(&format!("umask-{mask:o}"));
        scratch.write(&[(2, "")], mask);
        let file = 0o660 & !mask;
        assert_eq!(scratch.mode(""), 0o750 & !mask, "umask {mask:03o}");
        assert_eq!(
            [scratch.mode("gcim"), scratch.mode("locks")],
            [file; 2],
            "umask {mask:03o}"
        );
        assert_eq!(scratch.ring_modes(), [file; 2], "umask {mask:03o}");
        // The group of the directory is the bus's group.
        let group = scratch.run("use", (61004, 0), 0);
        let works = mask & 0o070 == 0;
        assert_eq!(group.starts_with("2: works"), works, "{group}");
    }
}

#[test]
fn only_root_gives_rings_away() {
    if !as_root() {
        return;
    }
    let scratch = Scratch::new("give");
    chown(&scratch.0, Some(OWNER.0), Some(OWNER.1)).unwrap();
    let to = |more| fs::write(scratch.0.join("channels.xml"), xml(&[(2, more)])).unwrap();
    to("<Owner>61002</Owner>");
    let told = scratch.run("write", OWNER, 0o022);
    assert!(
        told.starts_with("user 61001 may not change the owner of PLACE/bus/ring-")
            && told.ends_with(
                "only root gives files to others: run as root, or leave out Owner and Group\n"
            ),
        "{told}"
    );
    assert_eq!(scratch.ring_modes(), [0; 0], "nothing was made");
    // To itself it may.
    to("<Owner>61001</Owner><Mode>600</Mode>");
    assert_eq!(scratch.run("write", OWNER, 0o022), "written\n");
    assert_eq!(scratch.run("use", OWNER, 0), "2: works\n");
}

#[test]
fn unknown_users_are_told_with_the_row() {
    let text = xml(&[(2, "<Owner>no-such-user</Owner>")]).replace("<Channels>", "\n <Channels>");
    let problems = unknown_owners(&config(&text));
    assert_eq!((problems[0].row, problems[0].column), (2, 2));
    assert_eq!(
        problems[0].reason,
        "owner: this host knows no owner 'no-such-user'"
    );
    assert_eq!(problems.len(), 1);
}

/// What the child processes do; as a test of its own, nothing.
#[test]
fn job() {
    let (Ok(job), Ok(who), Some(base)) = (
        std::env::var("TBUS_USERS_JOB"),
        std::env::var("TBUS_USERS_WHO"),
        std::env::var_os("TBUS_USERS_DIR"),
    ) else {
        return;
    };
    nix::unistd::alarm::set(30); // ends a job that hangs
    let numbers: Vec<u32> = who.split(' ').map(|n| n.parse().unwrap()).collect();
    umask(Mode::from_bits_truncate(numbers[2]));
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(numbers[1])).unwrap();
    setuid(Uid::from_raw(numbers[0])).unwrap();
    let base = Path::new(&base);
    match job.as_str() {
        "write" => write_channels(base),
        "use" => use_channels(base),
        "overreach" => overreach(base),
        other => panic!("no job {other}"),
    }
}

fn write_channels(base: &Path) {
    let config = config(&fs::read_to_string(base.join("channels.xml")).unwrap());
    let manager = Manager::create_at(base.join("bus"), &config, Duration::ZERO);
    match manager.and_then(|manager| manager.apply(&config, false)) {
        Ok(_) => eprintln!("written"),
        Err(error) => eprintln!("{error}"),
    }
}

/// A message over each channel of address 1.
fn use_channels(base: &Path) {
    let bus = match Bus::attach_at(base.join("bus")) {
        Ok(bus) => bus,
        Err(error) => return eprintln!("bus: {error}"),
    };
    let here = bus.bind(Address(1)).unwrap();
    for peer in here.peers() {
        let there = bus.bind(peer).unwrap();
        let ends = here
            .sender(peer)
            .and_then(|sender| Ok((sender, there.receiver(Address(1))?)));
        match ends {
            Ok((mut sender, mut receiver)) => {
                sender.try_send(b"a message").unwrap();
                receiver.peek().unwrap().release();
                eprintln!("{}: works", peer.0);
            }
            Err(error) => eprintln!("{}: {error}", peer.0),
        }
    }
}

/// What a channel's owner has no business to do.
fn overreach(base: &Path) {
    let directory = base.join("bus");
    let say = |what, allowed| eprintln!("{what}: {}", if allowed { "allowed" } else { "refused" });
    say("list", fs::read_dir(&directory).is_ok());
    let map = OpenOptions::new().write(true).open(directory.join("gcim"));
    say("map for writing", map.is_ok());
    let directory = Directory::open(&directory).unwrap();
    match Manager::open(&directory, Duration::ZERO) {
        Ok(_) => say("manage", true),
        Err(error) => eprintln!("manage: {error}"),
    }
}
