//! What docs/operations.md tells an operator to type does what it says there, on two machines: network namespaces, each with
//! processes, a /dev/shm, /etc, /var/log and /usr/local/bin of its own.

#[path = "faults/lan.rs"]
#[allow(dead_code)]
mod lan;

mod hosts;

use hosts::Scratch;
use lan::{Lan, possible};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const MANUAL: &str = "docs/operations.md";

/// Where the repository's files are.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// A host's mounts live as long as its first process.
struct Machine {
    first: Child,
    /// The first one within.
    id: String,
    place: PathBuf,
}

/// Where a machine is made; below $1, files of its own. Its first process then waits for the end of its input.
const MACHINE: &str = r#"
mount --make-rprivate /
cp -a /etc "$1/etc"
for place in /etc /var/log /usr/local/bin; do
    mkdir -p "$1/$place"
    mount --bind "$1/$place" "$place"
done
mount -t tmpfs -o size=256m,mode=1777 tmpfs /dev/shm
echo ready
exec cat
"#;

impl Machine {
    fn new(namespace: &str, place: PathBuf) -> Machine {
        use std::io::{BufRead, BufReader};
        let tools = place.join("build/target/release");
        std::fs::create_dir_all(&tools).unwrap();
        for tool in ["tbusd", "tbusmgr", "trelaymgr", "tbusperf"] {
            let built = Path::new(env!("CARGO_BIN_EXE_tbusd")).with_file_name(tool);
            std::fs::copy(built, tools.join(tool)).unwrap();
        }
        let mut first = Command::new("ip")
            .args(["netns", "exec", namespace])
            .args("unshare --mount --pid --fork --kill-child --mount-proc".split(' '))
            .args(["bash", "-euc", MACHINE, "machine"])
            .arg(&place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let said = first.stdout.as_mut().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "its mounts are made");
        let outer = first.id();
        let id = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        let id = id.trim().to_string();
        Machine { first, id, place }
    }

    /// What an operator types at it; whatever fails ends it.
    fn run(&self, script: &str) -> Output {
        let script = format!("cd {}\n{script}", self.place.join("build").display());
        let log = self.place.join("typed");
        let output = std::fs::File::create(&log).unwrap();
        let status = Command::new("nsenter")
            .args(["--target", &self.id, "--net", "--mount", "--pid", "--"])
            .args(["timeout", "60", "bash", "-euo", "pipefail", "-c", &script])
            .env_remove("TBUS_SHM_DIR")
            // What it leaves in the background keeps it, so it is no pipe.
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        Output {
            status,
            stdout: std::fs::read(log).unwrap(),
            stderr: Vec::new(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All its processes end with the first one.
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

/// The blocks of commands: on which hosts, and what.
fn blocks(text: &str) -> Vec<(Vec<usize>, String)> {
    let blocks = text.split("\n```sh on ").skip(1);
    let block = |block: &str| {
        let (place, rest) = block.split_once('\n').unwrap();
        let hosts = match place {
            "host 1" => vec![0],
            "host 2" => vec![1],
            "both hosts" => vec![0, 1],
            other => panic!("commands on {other}"),
        };
        (hosts, rest.split("\n```").next().unwrap().to_string())
    };
    blocks.map(block).collect()
}

#[test]
fn the_commands_of_the_manual_work() {
    if !possible() {
        return;
    }
    let text = read(MANUAL);
    let lan = Lan::new();
    // Not in /dev/shm, which is to be another one for each machine.
    let name = format!("operations-{}", std::process::id());
    let scratch = Scratch(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    let machines: Vec<_> = (0..2)
        .map(|host| {
            Machine::new(
                &lan.names[host],
                scratch.0.join(format!("machine{}", host + 1)),
            )
        })
        .collect();
    let mut said = [String::new(), String::new()];
    for (hosts, script) in blocks(&text) {
        // Built already.
        let script = script.replace("cargo build --release\n", "");
        for host in hosts {
            let output = machines[host].run(&script);
            let heard = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success(),
                "host {}:\n{script}\n{heard}",
                host + 1
            );
            said[host] += &heard;
        }
        // Carried over.
        let [from, to] = [0, 1].map(|host: usize| machines[host].place.join("build/node2"));
        if from.exists() && !to.exists() {
            let copied = Command::new("cp").arg("-a").args([&from, &to]).status();
            assert!(copied.unwrap().success());
        }
    }
    drop(machines);
    drop(lan);
    for heard in &said {
        assert!(heard.contains("healthy\n"), "{heard}");
        assert!(heard.contains("\nno alarms\n"), "{heard}");
    }
    assert!(
        said[0].contains("tbusd.toml: drain: applied"),
        "{}",
        said[0]
    );
    // The first message, and the one that was sent while no relay ran.
    let waiting = said[1]
        .lines()
        .filter_map(|line| line.strip_prefix(" 1  0.0.1.1  0.0.2.1 "))
        .filter_map(|line| line.split_whitespace().next());
    assert_eq!(waiting.collect::<Vec<_>>(), ["1", "1", "2"], "{}", said[1]);
}

/// All Rust files below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The longest string literal among the arguments that `code` begins with: what a line of the log says.
fn told(code: &str) -> String {
    let (mut longest, mut literal) = (String::new(), None::<String>);
    let mut depth = 1;
    let mut characters = code.chars().peekable();
    while let Some(c) = characters.next() {
        match (&mut literal, c) {
            (None, '"') => literal = Some(String::new()),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, _) => {}
            (Some(text), '"') => {
                if depth == 1 && text.len() > longest.len() {
                    longest = std::mem::take(text);
                }
                literal = None;
            }
            (Some(_), '\\') if characters.peek() == Some(&'\n') => {
                while characters.next_if(|c| c.is_whitespace()).is_some() {}
            }
            (Some(text), '\\') => text.extend(characters.next()),
            (Some(text), c) => text.push(c),
        }
        if depth == 0 {
            break;
        }
    }
    longest
}

#[test]
fn every_line_of_the_log_is_in_the_manual() {
    let (root, manual) = (root(), read(MANUAL));
    let (mut files, mut lines, mut missing) = (Vec::new(), 0, Vec::new());
    for directory in ["transport/src", "tools/src/daemon"] {
        sources(&root.join(directory), &mut files);
    }
    for file in files {
        let code = std::fs::read_to_string(&file).unwrap();
        for call in ["info!(", "warn!(", "error!("] {
            for (at, _) in code.match_indices(call) {
                let line = told(&code[at + call.len()..]);
                // Between what is filled in. A line of which nothing is left passes on what is told elsewhere.
                let mut parts = line.split(['{', '}']).step_by(2).map(str::trim);
                let longest = parts
                    .by_ref()
                    .max_by_key(|part| part.len())
                    .unwrap_or_default();
                if longest.len() < 10 {
                    continue;
                }
                lines += 1;
                // The manual may stop before what is said besides.
                let part = longest
                    .split([';', '.'])
                    .next()
                    .unwrap()
                    .trim_matches([':', ' ', ',']);
                if !manual.contains(part) {
                    missing.push(format!("{}: {line}", file.display()));
                }
            }
        }
    }
    assert!(
        lines >= 15,
        "only {lines} lines were found: do they look otherwise now?"
    );
    assert!(
        missing.is_empty(),
        "not in docs/operations.md:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_reason_for_an_end_is_in_the_manual() {
    let (manual, wire) = (read(MANUAL), read("transport/src/wire.rs"));
    for (name, variants) in [("Goodbye", 11), ("Refusal", 3)] {
        let (_, code) = wire.split_once(&format!("pub enum {name} {{")).unwrap();
        let code = code.split("\n}").next().unwrap();
        let words: Vec<_> = code
            .lines()
            .filter_map(|line| line.trim().split_once(" = "))
            .map(|(word, _)| word)
            .collect();
        assert!(words.len() >= variants, "{words:?}");
        for word in words {
            let (row, list) = (format!("| `{word}` |"), format!("({word})"));
            assert!(
                manual.contains(&row) || manual.contains(&list),
                "{name}::{word}"
            );
        }
    }
}

#[test]
fn every_alarm_and_metric_is_in_the_manual() {
    let (manual, alarms) = (read(MANUAL), read("tools/src/daemon/alarms.rs"));
    let names: Vec<_> = alarms
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Kind::")?.split_once("=> \""))
        .map(|(_, rest)| rest.trim_end_matches("\","))
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        assert!(manual.contains(&format!("| `{name}` |")), "alarm {name}");
    }
    let metrics = read("tools/src/daemon/metrics.rs");
    let names: Vec<_> = metrics
        .split("\"tbus_")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .filter(|name| name.contains('_'))
        .collect();
    assert!(names.len() >= 25, "{names:?}");
    for name in names {
        // In a row of several the ends stand alone.
        let end = name.split_once('_').unwrap().1;
        let found = [format!("`tbus_{name}`"), format!("`tbus_{name}_total`")]
            .into_iter()
            .chain([format!("`_{end}`"), format!("`_{end}_total`")])
            .any(|name| manual.contains(&name));
        assert!(found, "metric tbus_{name}");
    }
}
