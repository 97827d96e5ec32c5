//! What `tbusmgr` shows on a terminal: it fits, whatever the width.

use nix::pty::{Winsize, openpty};
use snapbox::str;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

struct Place(PathBuf);

impl Place {
    /// Three channels, of which one is full to a third and one to nine tenths.
    fn new(name: &str) -> Place {
        let base = match std::path::Path::new("/dev/shm") {
            shm if shm.is_dir() => shm.to_path_buf(),
            _ => std::env::temp_dir(),
        };
        let place = Place(base.join(format!("tbus-terminal-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&place.0).unwrap();
        let channel = |to: &str, description: &str| {
            format!(
                "<Channels><Address>0.0.1.1</Address><Address>{to}</Address><SendSize>65536</SendSize>\
                 <RecvSize>1048576</RecvSize><Desc>{description}</Desc></Channels>"
            )
        };
        let text = format!(
            "<TbusGCIM><GCIMShmKey>7</GCIMShmKey>{}{}{}</TbusGCIM>",
            channel("0.0.3.1", "login to zone"),
            channel(
                "0.0.3.2",
                "网关到世界服务器的通道，描述很长很长很长很长很长很长很长"
            ),
            channel("0.0.3.200", "")
        );
        std::fs::write(place.0.join("channels.xml"), text).unwrap();
        place.run("-C channels.xml -W");
        place.run("-k 7 -T --src=0.0.1.1 --dst=0.0.3.1 --data-len=20000");
        for _ in 0..2 {
            place.run("-k 7 -T --src=0.0.1.1 --dst=0.0.3.2 --data-len=29000");
        }
        place
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tbusmgr"));
        command
            .args(arguments.split_whitespace())
            .env("TBUS_SHM_DIR", &self.0)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .current_dir(&self.0);
        command
    }

    fn run(&self, arguments: &str) {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The list on a terminal of this width, without the lines above it, whose path has a random length; with digits
    /// of times as 0.
    fn list(&self, columns: u16, environment: &[(&str, &str)]) -> String {
        let size = Winsize {
            ws_row: 50,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(&size, None).unwrap();
        let mut command = self.command("-k 7");
        command
            .envs(environment.iter().copied())
            .stdin(Stdio::null());
        let mut child = command.stdout(terminal.slave).spawn().unwrap();
        drop(command); // its copy of the terminal's other end
        let mut bytes = Vec::new();
        // At the end a terminal fails instead of saying that nothing more comes.
        let _ = std::fs::File::from(terminal.master).read_to_end(&mut bytes);
        assert!(child.wait().unwrap().success());
        let text = String::from_utf8(bytes).unwrap().replace("\r\n", "\n");
        let (heading, table) = text.split_once("Z\n").unwrap();
        assert!(heading.starts_with("bus 7 in "), "{text}");
        for line in heading.lines().skip(1) {
            assert!(line.len() < columns.into(), "{heading}");
        }
        let year = &heading[heading.rfind("made ").unwrap() + 5..][..4];
        let mut shown = String::new();
        for line in table.lines() {
            match line.find(year) {
                Some(at) => {
                    let end = line[at..].find("  ").map_or(line.len(), |n| at + n);
                    let time = line[at..end].replace(|c: char| c.is_ascii_digit(), "0");
                    shown += &format!("{}{time}{}\n", &line[..at], &line[end..]);
                }
                None => shown += &format!("{line}\n"),
            }
        }
        shown
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PLAIN: &[(&str, &str)] = &[("NO_COLOR", "1")];

#[test]
fn the_list_fits_every_width() {
    let place = Place::new("fits");
    snapbox::assert_data_eq!(
        place.list(200, PLAIN),
        str![[r#"
No  address  address       send  receive  →         ←         retention  created               description
 1  0.0.1.1  0.0.3.1    65.5 kB   1.0 MB  ██░░░░░░  ░░░░░░░░  delivered  0000-00-00 00:00:00Z  login to zone
 2  0.0.1.1  0.0.3.2    65.5 kB   1.0 MB  ███████░  ░░░░░░░░  delivered  0000-00-00 00:00:00Z  网关到世界服务器的通道，描述很长很长很长很长很长很长很长
 3  0.0.1.1  0.0.3.200  65.5 kB   1.0 MB  ░░░░░░░░  ░░░░░░░░  delivered  0000-00-00 00:00:00Z

"#]]
    );
    snapbox::assert_data_eq!(
        place.list(120, PLAIN),
        str![[r#"
No  address  address       send  receive  →         ←         retention  created               description
 1  0.0.1.1  0.0.3.1    65.5 kB   1.0 MB  ██░░░░░░  ░░░░░░░░  delivered  0000-00-00 00:00:00Z  login to zone
 2  0.0.1.1  0.0.3.2    65.5 kB   1.0 MB  ███████░  ░░░░░░░░  delivered  0000-00-00 00:00:00Z  网关到世界服务器的通道，…
 3  0.0.1.1  0.0.3.200  65.5 kB   1.0 MB  ░░░░░░░░  ░░░░░░░░  delivered  0000-00-00 00:00:00Z

"#]]
    );
    snapbox::assert_data_eq!(
        place.list(100, PLAIN),
        str![[r#"
No  address  address       send  receive  →         ←         created               description
 1  0.0.1.1  0.0.3.1    65.5 kB   1.0 MB  ██░░░░░░  ░░░░░░░░  0000-00-00 00:00:00Z  login to zone
 2  0.0.1.1  0.0.3.2    65.5 kB   1.0 MB  ███████░  ░░░░░░░░  0000-00-00 00:00:00Z  网关到世界服务…
 3  0.0.1.1  0.0.3.200  65.5 kB   1.0 MB  ░░░░░░░░  ░░░░░░░░  0000-00-00 00:00:00Z

"#]]
    );
    snapbox::assert_data_eq!(
        place.list(80, PLAIN),
        str![[r#"
No  address  address       send  receive  →     ←     created     description
 1  0.0.1.1  0.0.3.1    65.5 kB   1.0 MB  █░░░  ░░░░  0000-00-00  login to zone
 2  0.0.1.1  0.0.3.2    65.5 kB   1.0 MB  ███░  ░░░░  0000-00-00  网关到世界服…
 3  0.0.1.1  0.0.3.200  65.5 kB   1.0 MB  ░░░░  ░░░░  0000-00-00

"#]]
    );
    snapbox::assert_data_eq!(
        place.list(60, PLAIN),
        str![[r#"
No  address  address       send  receive  →     ←
 1  0.0.1.1  0.0.3.1    65.5 kB   1.0 MB  █░░░  ░░░░
 2  0.0.1.1  0.0.3.2    65.5 kB   1.0 MB  ███░  ░░░░
 3  0.0.1.1  0.0.3.200  65.5 kB   1.0 MB  ░░░░  ░░░░

"#]]
    );
    use unicode_width::UnicodeWidthStr;
    for width in 53..210 {
        let list = place.list(width, PLAIN);
        let longest = list.lines().map(|line| line.width()).max().unwrap();
        assert!(longest <= width.into(), "{width}:\n{list}");
    }
}

#[test]
fn colors_only_where_they_are_welcome() {
    let place = Place::new("colors");
    let colored = place.list(120, &[]);
    assert!(
        colored.contains("\x1b[33m█"),
        "a third full is nothing: {colored:?}"
    );
    for environment in [PLAIN, &[("TERM", "dumb")]] {
        let plain = place.list(120, environment);
        assert!(plain.contains('█') && !plain.contains('\x1b'), "{plain:?}");
    }
    let piped = place.command("-k 7").output().unwrap().stdout;
    let piped = String::from_utf8(piped).unwrap();
    assert!(!piped.contains(['█', '░', '…', '\x1b']), "{piped:?}");
}
