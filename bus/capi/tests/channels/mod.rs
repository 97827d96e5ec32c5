//! A bus for tests: key 1000 below a directory of its own.

use bus::config::parse_channels;
use bus::manage::Manager;
use bus::{Address, Bus};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of each ring.
const SIZE: u32 = 65_536;

/// A TBUS_SHM_DIR with one bus, removed when dropped.
pub struct Channels {
    pub shm: PathBuf,
    manager: Manager,
}

impl Channels {
    /// 0.0.1.1 with 0.0.2.1, 0.0.3.1 and 0.0.4.1, and 0.0.2.1 with 0.0.3.1.
    pub fn new(name: &str) -> Channels {
        let shm = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        let base = if shm.is_dir() { shm } else { &temporary };
        let shm = base.join(format!("tbus-capi-{name}-{}", std::process::id()));
        std::fs::create_dir(&shm).unwrap();
        let patience = Duration::from_secs(10);
        let config = config(&[]);
        let manager = Manager::create_at(shm.join("tbus.1000"), &config, patience).unwrap();
        let channels = Channels { shm, manager };
        channels.write(&[(1, 2), (1, 3), (1, 4), (2, 3)]);
        channels
    }

    /// Writes the map: a channel of 0.0.A.1 and 0.0.B.1 for each pair.
    pub fn write(&self, pairs: &[(u32, u32)]) {
        self.manager.apply(&config(pairs), true).unwrap();
    }

    #[allow(dead_code)] // not in every test
    pub fn bus(&self) -> Bus {
        Bus::attach_at(self.shm.join("tbus.1000")).unwrap()
    }
}

/// 0.0.N.1
pub fn address(n: u32) -> Address {
    Address(n << 8 | 1)
}

fn config(pairs: &[(u32, u32)]) -> bus::config::ChannelsConfig {
    let channels: String = pairs
        .iter()
        .map(|(a, b)| {
            format!(
                "<Channels><Address>0.0.{a}.1</Address><Address>0.0.{b}.1</Address><SendSize>{SIZE}</SendSize>\
                 <RecvSize>{SIZE}</RecvSize></Channels>"
            )
        })
        .collect();
    let text = format!("<TbusGCIM><GCIMShmKey>1000</GCIMShmKey>{channels}</TbusGCIM>");
    parse_channels(text.as_bytes(), false, 1 << 30).unwrap()
}

impl Drop for Channels {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.shm);
    }
}
