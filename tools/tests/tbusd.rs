//! `tbusd` as its user meets it, without a peer: what it checks, refuses and says, and its exit status.

use snapbox::str;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const CHANNELS: &str = r#"
gcim_shm_key = 1000
[[channels]]
address = ["0.0.1.1", "0.0.3.1"]
send_size = 65536
recv_size = 65536
"#;

const ROUTES: &str = r#"
relay_shm_key = 2688
[[relays]]
addr = "0.0.3.1"
mconn = "tcp://127.0.0.1:10272"
"#;

/// A place for maps and files, with an address of its own, where no other test listens.
struct Place {
    directory: PathBuf,
    ip: String,
}

const PORT: u16 = 10271;

impl Place {
    fn new(name: &str) -> Place {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let directory = base.join(format!("tbus-tbusd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        static PLACES: AtomicU8 = AtomicU8::new(1);
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let place_number = PLACES.fetch_add(1, Ordering::Relaxed);
        let ip = format!("127.{high}.{low}.{place_number}");
        let place = Place { directory, ip };
        place.write("good.toml", &place.good());
        place
    }

    /// The same, with a channel and a route.
    fn with_maps(name: &str) -> Place {
        let place = Place::new(name);
        place.write("channels.toml", CHANNELS);
        place.write("routes.toml", ROUTES);
        for (tool, file) in [
            (env!("CARGO_BIN_EXE_tbusmgr"), "channels.toml"),
            (env!("CARGO_BIN_EXE_trelaymgr"), "routes.toml"),
        ] {
            let output = place.command(tool, &format!("-C {file} -W")).output();
            assert!(output.unwrap().status.success());
        }
        place
    }

    fn good(&self) -> String {
        format!(
            "cluster = \"test\"\nnode = 1\ngcim_key = 1000\nrelay_key = 2688\nlisten = \"{}:{PORT}\"\nsecurity = \"none\"\n",
            self.ip
        )
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.join(name), text).unwrap();
    }

    fn command(&self, tool: &str, arguments: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .args(arguments.split_whitespace())
            .env("TBUS_SHM_DIR", &self.directory)
            .env_remove("TBUS_LOG")
            .current_dir(&self.directory);
        command
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_tbusd"), arguments);
        command.output().unwrap()
    }

    /// Exit status, and what was printed to either stream, with what is this run's own taken out.
    fn says(&self, arguments: &str) -> (i32, String) {
        let output = self.run(arguments);
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .concat()
            .replace(self.directory.to_str().unwrap(), "PLACE")
            .replace(&self.ip, "IP");
        (output.status.code().unwrap(), text)
    }

    #[track_caller]
    fn check(&self, arguments: &str, status: i32, expected: impl snapbox::IntoData) {
        let (found, text) = self.says(arguments);
        snapbox::assert_data_eq!(&text, expected);
        assert_eq!(found, status, "{text}");
    }

    /// What --check says of the good file with one thing changed.
    #[track_caller]
    fn check_changed(&self, old: &str, new: &str, status: i32, expected: impl snapbox::IntoData) {
        let good = self.good();
        assert!(good.contains(old));
        self.write("bad.toml", &good.replace(old, new));
        self.check("-c bad.toml --check", status, expected);
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.run("-c good.toml --status --json").stdout).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("tbus.1000/tbusd-1")
    }

    /// A relay that answers.
    fn start(&self) -> Relay {
        let mut command = self.command(env!("CARGO_BIN_EXE_tbusd"), "-c good.toml");
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let relay = Relay(child);
        let begun = Instant::now();
        while self.says("-c good.toml --status").0 != 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "it does not answer"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        relay
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

struct Relay(Child);

impl Relay {
    /// Its exit status, and its log.
    fn end(mut self, signal: nix::sys::signal::Signal) -> (Option<i32>, String) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
        let mut log = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut log).unwrap();
        (self.0.wait().unwrap().code(), log)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_help_teaches() {
    let place = Place::new("help");
    place.check(
        "--help",
        0,
        str![[r#"
Relays channels to other hosts: mirrors their rings there, and the rings of other hosts here.

A relay serves one bus. It follows the channels that tbusmgr writes and the routes that trelaymgr
writes while it runs. It may be killed at any moment: what matters lies in the rings, and the next
one goes on.

It stays in the foreground, for a supervisor such as systemd, and logs to the standard error output.
SIGHUP reads its file anew, SIGTERM ends it when its peers have what is in the rings.

Usage: tbusd [OPTIONS] --conf-file <FILE>
       tbusd <COMMAND>

Commands:
  cert  Make certificates for a cluster's relays

Options:
  -c, --conf-file <FILE>
          The relay's file

      --check
          Check the file and what it names, and do nothing

      --status
          Ask the running relay of this file

      --switch <NODE=TRANSPORT>
          Have the running relay of this file use a transport with a peer: verbs, ucx, tcp, or auto
          for what the routes say; it must be one that the routes name, and if it fails others
          serve. It holds until the relay ends

      --json
          Print JSON

      --spin <TIME>
          Poll so long after the last message before sleeping, for example 50us or 1h; longer is
          faster and takes a processor

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

A file that does for two relays on one host, one of them:
  cluster = "test"
  node = 1
  gcim_key = 1000               # channels, written by tbusmgr
  relay_key = 2688              # routes, written by trelaymgr
  listen = "127.0.0.1:1027"
  security = "none"             # within one host only

Beyond one host, in place of the last two, with files that tbusd cert has made:
  certificate = "node-1.pem"
  private_key = "node-1.key"
  authority = "ca.pem"

What else may be set, with what holds if it is not:
  metrics = "127.0.0.1:9127"    # none: nowhere; a second relay on a host needs another port
  drain = 5                     # seconds that SIGTERM waits for what is in the rings
  alarm_full = 80               # percent of a ring
  alarm_age = 10                # seconds that messages may wait
  hold_down = 2                 # seconds that a transport rests after it has failed, and at most
  hold_down_max = 60

Examples:
  tbusd -c tbusd.toml --check         read the file and all that it names, look at the port; do
  nothing
  tbusd -c tbusd.toml                 run until SIGTERM or SIGINT
  tbusd -c tbusd.toml --status        peers, rings, alarms, and what became of the last SIGHUP;
  --json for programs
  tbusd -c tbusd.toml --switch 7=tcp  data of node 7 go by TCP from now on; nothing is lost. 7=auto:
  as its routes say again

Environment:
  TBUS_SHM_DIR                  where the directories of maps are; /dev/shm if not set
  TBUS_LOG                      how much is logged: error, warn, info or debug; info if not set
  NOTIFY_SOCKET, WATCHDOG_USEC  set by systemd for units of Type=notify and with WatchdogSec=: it is
  told when the relay is ready, reloads and ends, how many peers are connected, and that it lives

Exit status: 0 done, or ended by a signal, whether or not the peers have taken everything; 2 wrong
usage; 3 bad configuration; 4 a map is not there; 6 busy, another relay runs, or another process has
the port; 7 the system refused, or no relay answers.

"#]],
    );
    place.check(
        "-V",
        0,
        str![[r#"
tbusd 0.1.0

"#]],
    );
    let (status, text) = place.says("");
    assert_eq!(status, 2, "no arguments are wrong usage, with the help");
    assert!(text.contains("Usage: tbusd"), "{text}");
}

#[test]
fn wrong_usage_is_2() {
    let place = Place::new("usage");
    for (arguments, part) in [
        ("--check", "--conf-file <FILE>"),
        ("-c good.toml --check --status", "cannot be used with"),
        ("-c good.toml --json", "--status"),
        ("-c good.toml --spin soon", "--spin"),
        ("-c good.toml more", "cannot be used with"),
    ] {
        let (status, text) = place.says(arguments);
        assert_eq!(status, 2, "{arguments}: {text}");
        assert!(text.contains(part), "{arguments}: {text}");
    }
}

#[test]
fn a_good_file_is_good() {
    let place = Place::with_maps("good");
    place.check(
        "-c good.toml --check",
        0,
        str![[r#"
good.toml: cluster test, node 1; 1 channel(s) of bus 1000, 1 route(s) of 2688; IP:10271 is free

"#]],
    );
    assert!(!place.socket().exists(), "a check takes nothing");
    // A port that is taken is told; the check of a file that a relay runs by is no failure.
    let _listener = TcpListener::bind((&*place.ip, PORT)).unwrap();
    place.check("-c good.toml --check", 0, str![[r#"
good.toml: cluster test, node 1; 1 channel(s) of bus 1000, 1 route(s) of 2688; IP:10271 is not free now (Address already in use (os error 98)); a running relay has it, or another program

"#]]);
}

#[test]
fn bad_files_are_3_with_row_and_mend() {
    let place = Place::with_maps("bad");
    place.check("-c none.toml --check", 3, str![[r#"
none.toml:1:1: it cannot be read: No such file or directory (os error 2); check the name and its mode
tbusd: the file is refused; nothing was changed

"#]]);
    place.check_changed("node = 1", "nod = 1", 3, str![[r#"
bad.toml:1:1: the file has no node; add it
bad.toml:2:1: nod is not known in the relay's file; known are cluster, node, gcim_key, relay_key, listen, metrics, drain, alarm_full, alarm_age, hold_down, hold_down_max, workers, security, certificate, private_key, authority, allow
tbusd: the file is refused; nothing was changed

"#]]);
    place.check_changed("node = 1", "node = -1", 3, str![[r#"
bad.toml:2:1: '-1' is no value for node; give a decimal number of at most 4294967295, without sign, unit or space
tbusd: the file is refused; nothing was changed

"#]]);
    place.check_changed(
        "gcim_key = 1000",
        "gcim_key = 4294967296",
        3,
        str![[r#"
bad.toml:3:1: '4294967296' is no key; give a number of 32 bits, decimal or hexadecimal with 0x
tbusd: the file is refused; nothing was changed

"#]],
    );
    place.check_changed(
        "cluster = \"test\"",
        "cluster = \"\"",
        3,
        str![[r#"
bad.toml:1:1: "" is no name of a cluster; give a text of 1 to 255 bytes, the same on all its hosts
tbusd: the file is refused; nothing was changed

"#]],
    );
    place.check_changed(&place.ip, "localhost", 3, str![[r#"
bad.toml:5:1: 'localhost:10271' is no address to listen on; give IP:PORT, for example 127.0.0.1:1027 or [::1]:1027
tbusd: the file is refused; nothing was changed

"#]]);
    place.check_changed(
        "\"none\"",
        "\"some\"",
        3,
        str![[r#"
bad.toml:6:1: 'some' is no value for security; give encrypt or authenticate or none
tbusd: the file is refused; nothing was changed

"#]],
    );
    place.check_changed(
        "cluster = ",
        "cluster ",
        3,
        str![[r#"
bad.toml:1:9: this is not TOML: key with no value, expected `=`; correct it
tbusd: the file is refused; nothing was changed

"#]],
    );
    // What --check refuses is refused without it.
    let (status, text) = place.says("-c bad.toml");
    assert_eq!(status, 3, "{text}");
}

#[test]
fn what_is_not_safe_is_refused() {
    let place = Place::with_maps("unsafe");
    place.check_changed("security = \"none\"\n", "", 3, str![[r#"
bad.toml:1:1: certificate is missing, which TLS needs; add certificate, the path of a PEM file; or ask for security = "none", on one host only
bad.toml:1:1: private_key is missing, which TLS needs; add private_key, the path of a PEM file; or ask for security = "none", on one host only
bad.toml:1:1: authority is missing, which TLS needs; add authority, the path of a PEM file; or ask for security = "none", on one host only
tbusd: the file is refused; nothing was changed

"#]]);
    for name in ["certificate", "private_key", "authority"] {
        place.write(&format!("{name}.pem"), "");
    }
    let pem = "certificate = \"certificate.pem\"\nprivate_key = \"private_key.pem\"\nauthority = \"authority.pem\"\n";
    for security in ["encrypt", "authenticate"] {
        let with = format!("security = \"{security}\"\n{pem}");
        place.check_changed("security = \"none\"\n", &with, 3, str![[r#"
tbusd: bad.toml: authority.pem: there is no certificate in it (PEM begins with -----BEGIN CERTIFICATE-----)

"#]]);
    }
    for security in ["encrypt", "authenticate"] {
        let with = format!(
            "security = \"none\"\n{pem}[[allow]]\nnode = 2\nname = \"two\"\nsecurity = \"{security}\"\n"
        );
        place.check_changed("security = \"none\"\n", &with, 3, str![[r#"
bad.toml:13:1: security 'none' for some peers and another one for others; give all peers none, or none of them
tbusd: the file is refused; nothing was changed

"#]]);
    }
    place.check_changed(&place.ip, "0.0.0.0", 3, str![[r#"
tbusd: bad.toml: listen: 0.0.0.0:10271 can be reached from other hosts, and security 'none' must not be; listen on 127.0.0.1, or let security be encrypt

"#]]);
    place.check_changed(&place.ip, "192.0.2.1", 3, str![[r#"
tbusd: bad.toml: listen: 192.0.2.1:10271 can be reached from other hosts, and security 'none' must not be; listen on 127.0.0.1, or let security be encrypt

"#]]);
    let line = format!("listen = \"{}:{PORT}\"\n", place.ip);
    place.check_changed(&line, "", 3, str![[r#"
tbusd: bad.toml: listen: 0.0.0.0:1027 can be reached from other hosts, and security 'none' must not be; listen on 127.0.0.1, or let security be encrypt

"#]]);
    // And nothing runs.
    let (status, text) = place.says("-c bad.toml");
    assert_eq!(status, 3, "{text}");
    assert!(!place.socket().exists());
}

#[test]
fn a_map_that_is_not_there_is_4() {
    let place = Place::new("maps");
    place.check(
        "-c good.toml --check",
        4,
        str![[r#"
tbusd: PLACE/tbus.1000 does not exist; check the name and TBUS_SHM_DIR, or create it first

"#]],
    );
    place.check(
        "-c good.toml",
        4,
        str![[r#"
tbusd: PLACE/tbus.1000 does not exist; check the name and TBUS_SHM_DIR, or create it first

"#]],
    );
    let place = Place::with_maps("map");
    place.check_changed(
        "relay_key = 2688",
        "relay_key = 2689",
        4,
        str![[r#"
tbusd: PLACE/tbus.2689 does not exist; check the name and TBUS_SHM_DIR, or create it first

"#]],
    );
    place.check_changed(
        "gcim_key = 1000",
        "gcim_key = 0x10",
        4,
        str![[r#"
tbusd: PLACE/tbus.16 does not exist; check the name and TBUS_SHM_DIR, or create it first

"#]],
    );
    place.check_changed(
        "gcim_key = 1000",
        "gcim_key = \"0x10\"",
        4,
        str![[r#"
tbusd: PLACE/tbus.16 does not exist; check the name and TBUS_SHM_DIR, or create it first

"#]],
    );
}

#[test]
fn without_a_relay_status_is_7_and_says_what_to_do() {
    let place = Place::new("status");
    place.check("-c good.toml --status", 7, str![[r#"
tbusd: no relay answers at PLACE/tbus.1000/tbusd-1: No such file or directory (os error 2); start it: tbusd -c good.toml

"#]]);
    let place = Place::with_maps("status-maps");
    place.check("-c good.toml --status", 7, str![[r#"
tbusd: no relay answers at PLACE/tbus.1000/tbusd-1: No such file or directory (os error 2); start it: tbusd -c good.toml

"#]]);
    place.check("-c good.toml --status --json", 7, str![[r#"
tbusd: no relay answers at PLACE/tbus.1000/tbusd-1: No such file or directory (os error 2); start it: tbusd -c good.toml

"#]]);
    // A relay that was killed leaves its socket.
    drop(UnixListener::bind(place.socket()).unwrap());
    place.check("-c good.toml --status", 7, str![[r#"
tbusd: no relay answers at PLACE/tbus.1000/tbusd-1: Connection refused (os error 111); start it: tbusd -c good.toml

"#]]);
    // One that is stuck says nothing.
    std::fs::remove_file(place.socket()).unwrap();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let stuck = std::thread::spawn(move || drop(listener.accept()));
    place.check(
        "-c good.toml --status",
        7,
        str![[r#"
tbusd: the relay at PLACE/tbus.1000/tbusd-1 does not answer; it may be stopped

"#]],
    );
    stuck.join().unwrap();
}

#[test]
fn a_port_that_is_taken_is_6() {
    let place = Place::with_maps("port");
    let _listener = TcpListener::bind((&*place.ip, PORT)).unwrap();
    place.check(
        "-c good.toml",
        6,
        str![[r#"
tbusd: cannot listen at IP:10271: Address already in use (os error 98); is a relay running already?

"#]],
    );
    assert!(!place.socket().exists());
}

#[test]
fn a_relay_runs_until_a_signal_and_answers() {
    let place = Place::with_maps("run");
    for signal in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGINT,
    ] {
        let relay = place.start();
        // It answers before it has looked at the maps.
        let status = (0..1000)
            .map(|_| place.status())
            .find(|status| status["rings"] != serde_json::json!([]))
            .expect("it has rings to serve");
        assert_eq!(status["format"], "tbusd-status-1");
        assert_eq!(status["pid"], relay.0.id());
        assert_eq!(status["node"], 1);
        assert_eq!(status["cluster"], "test");
        assert_eq!(status["rings"][0]["running"], false, "{status:#}");
        assert_eq!(status["totals"]["gaps"], 0);
        // Another one in its place.
        let (second, text) = place.says("-c good.toml");
        assert_eq!(second, 6, "{text}");
        let (code, log) = relay.end(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("tbusd 0.1.0 begins node=1"), "{log}");
        assert!(log.contains("ended by a signal"), "{log}");
        assert!(!log.contains('\u{1b}'), "no colours in a file: {log}");
        assert!(!place.socket().exists());
    }
    // Killed, it leaves its socket, which the next one does not mind.
    let (code, _) = place.start().end(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(code, None);
    assert!(place.socket().exists());
    let (code, _) = place.start().end(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(code, Some(0));
}

#[test]
fn a_second_relay_of_a_node_is_refused_even_on_another_port() {
    let place = Place::with_maps("second");
    let _relay = place.start();
    let other = place.good().replace(":10271", ":10272");
    place.write("other.toml", &other);
    place.check(
        "-c other.toml",
        6,
        str![[r#"
tbusd: another relay with this node number runs already: it answers at PLACE/tbus.1000/tbusd-1

"#]],
    );
    // The refused one takes nothing from the one that runs.
    assert_eq!(place.says("-c good.toml --status").0, 0);
}
