//! Several `tbusmgr` at a time, and killed ones: the executable itself.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tbus::{Bus, Directory};

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let base = match std::path::Path::new("/dev/shm") {
            shm if shm.is_dir() => shm.to_path_buf(),
            _ => std::env::temp_dir(),
        };
        let place = Place(base.join(format!("tbus-processes-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&place.0).unwrap();
        place
    }

    /// A file of channels from 0.0.1.1 to `family`.x.x.
    fn write(&self, name: &str, family: u32, count: u32, size: u32) {
        let channels: String = (1..=count)
            .map(|n| {
                format!(
                    "<Channels><Address>0.0.1.1</Address><Address>0.{family}.{}.{}</Address>\
                     <SendSize>{size}</SendSize><RecvSize>{size}</RecvSize><Desc>number {n}</Desc></Channels>\n",
                    n >> 8,
                    n & 255
                )
            })
            .collect();
        let text = format!("<TbusGCIM><GCIMShmKey>7</GCIMShmKey>\n{channels}</TbusGCIM>\n");
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tbusmgr"));
        command
            .args(arguments.split_whitespace())
            .env("TBUS_SHM_DIR", &self.0)
            .current_dir(&self.0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, arguments: &str) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Channels by the second number of their second address; `None` if there is no map.
    fn families(&self) -> Option<Vec<u32>> {
        let bus = Bus::attach_at(self.0.join("tbus.7")).ok()?;
        let channels = bus.gcim().snapshot().unwrap().channels;
        Some(
            channels
                .iter()
                .map(|c| c.addresses[1].0 >> 16 & 0xff)
                .collect(),
        )
    }

    fn rings(&self) -> usize {
        Directory::open(self.0.join("tbus.7"))
            .unwrap()
            .rings()
            .unwrap()
            .len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What two of them write is one or the other, whole, whoever comes second.
#[test]
fn two_at_a_time_take_turns() {
    let place = Place::new("turns");
    place.write("a.xml", 1, 300, 4096);
    place.write("b.xml", 2, 200, 4096);
    let mut last = [0, 0];
    for round in 0..10 {
        let order = if round % 2 == 0 {
            ["a", "b"]
        } else {
            ["b", "a"]
        };
        let children = order.map(|name| place.start(&format!("-C {name}.xml -W")));
        // Meanwhile the map is one of them, or empty in the beginning.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            let families = place.families().unwrap_or_default();
            let whole = [(1, 300), (2, 200)].map(|(family, count)| vec![family; count]);
            assert!(
                families.is_empty() || whole.contains(&families),
                "{families:?}"
            );
        }
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let families = place.families().unwrap();
        let winner = families[0];
        assert_eq!(families, vec![winner; if winner == 1 { 300 } else { 200 }]);
        assert_eq!(place.rings(), 2 * families.len(), "no rings but theirs");
        last[winner as usize - 1] += 1;
    }
    println!("last: {last:?}");
}

/// Who waits too long for another is refused with status 6.
#[test]
fn who_waits_too_long_is_refused() {
    let place = Place::new("busy");
    place.write("a.xml", 1, 1, 4096);
    assert!(place.run("-C a.xml -W").status.success());
    // Stopped where it holds the manager's lock.
    place.write("b.xml", 2, 20_000, 4096);
    let mut holder = place.start("-C b.xml -W");
    let before = place.rings();
    while place.rings() < before + 20 {
        assert!(holder.try_wait().unwrap().is_none(), "it ended too soon");
    }
    let pid = nix::unistd::Pid::from_raw(holder.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let output = place.run("-C a.xml -W");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(begun.elapsed() >= Duration::from_secs(5), "it waited");
    assert!(
        text.contains("manager") && text.contains("held by another process"),
        "{text}"
    );
    assert_eq!(place.families().unwrap(), [1], "nothing changed");
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The kernel has released the killed one's lock, and what it made is removed.
    assert!(place.run("-C a.xml -W").status.success());
    assert_eq!((place.families().unwrap(), place.rings()), (vec![1], 2));
}

/// Killed at any moment, it has written all or nothing, and the next one does the rest.
#[test]
fn killed_ones_leave_a_whole_map() {
    let place = Place::new("killed");
    let count = 150;
    place.write("a.xml", 1, count, 4096);
    place.write("b.xml", 2, count, 4096);
    let whole = [1, 2].map(|family| vec![family; count as usize]);
    assert!(place.run("-C a.xml -W").status.success());
    // How long one takes, in which the kills lie evenly.
    let (mut files, mut longest) = (["b", "a"].iter().cycle(), Duration::ZERO);
    for _ in 0..4 {
        let file = files.next().unwrap();
        let begun = Instant::now();
        assert!(place.run(&format!("-C {file}.xml -W")).status.success());
        longest = longest.max(begun.elapsed());
    }
    let (mut changed, mut unfinished) = (0, 0);
    for kill in 0..40 {
        let before = place.families().unwrap();
        let file = if before == whole[0] { "b" } else { "a" };
        let mut child = place.start(&format!("-C {file}.xml -W"));
        std::thread::sleep(longest * (kill * 17 % 40) / 40);
        child.kill().unwrap();
        child.wait().unwrap();
        let after = place.families().unwrap();
        assert!(whole.contains(&after), "kill {kill}: half a map: {after:?}");
        changed += usize::from(after != before);
        unfinished += usize::from(place.rings() != 2 * count as usize);
        // The next one makes it whatever it says, and clears up.
        let file = if kill % 2 == 0 { "a" } else { "b" };
        let output = place.run(&format!("-C {file}.xml -W"));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(place.families().unwrap(), whole[usize::from(kill % 2 == 1)]);
        assert_eq!(place.rings(), 2 * count as usize, "what was left is gone");
    }
    println!("of 40 killed {changed} had changed the map, {unfinished} left rings to remove");
    assert!(
        changed > 0 && changed < 40 && unfinished > 0,
        "{changed} {unfinished}"
    );
}
