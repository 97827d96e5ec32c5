//! What README.md tells a stranger to type does what it says there.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// The commands of a section.
fn commands(readme: &str, section: &str) -> String {
    let title = format!("\n## {section}\n");
    let (_, text) = readme.split_once(&title).expect("the section is there");
    let text = text.split("\n## ").next().unwrap_or_default();
    let blocks = text.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap_or_default())
        .collect()
}

#[test]
fn the_commands_of_the_readme_work() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let both = commands(&readme, "A first channel") + &commands(&readme, "Two hosts");
    // Built already; in a directory and at ports that are nobody else's.
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, second) = (free(), free());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port().to_string();
    let tools = Path::new(env!("CARGO_BIN_EXE_tbusd")).parent().unwrap();
    let base = match Path::new("/dev/shm") {
        shm if shm.is_dir() => shm.to_path_buf(),
        _ => std::env::temp_dir(),
    };
    let scratch = base.join(format!("tbus-readme-{}", std::process::id()));
    let mut script = both;
    for (from, to) in [
        ("cargo build --release", ""),
        ("$PWD/target/release", tools.to_str().unwrap()),
        ("/dev/shm/try", scratch.to_str().unwrap()),
        ("10271", &port(&first)),
        ("10272", &port(&second)),
    ] {
        assert!(script.contains(from), "{from}");
        script = script.replace(from, to);
    }
    drop((first, second));
    // Whatever fails ends it, and its relays with it.
    let output = Command::new("timeout")
        .args([
            "60",
            "bash",
            "-e",
            "-c",
            &format!("trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n{script}"),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    let left = scratch.exists();
    let _ = std::fs::remove_dir_all(&scratch);
    assert!(output.status.success(), "{text}\n{log}");
    // Once at one host, then at the other of the two, then both messages there.
    let waiting: Vec<_> = text
        .lines()
        .filter(|line| line.contains("0.0.1.1  0.0.3.1 ") && line.trim_start().starts_with("1 "))
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert_eq!(waiting, ["1.0", "1", "1", "2"], "{text}\n{log}");
    assert!(text.contains("mirrored"), "{text}\n{log}");
    assert!(!left, "{text}\n{log}");
}
