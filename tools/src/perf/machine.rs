//! What a figure was measured on.

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// The machine, as far as it matters for figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's model.
    pub cpu: String,
    /// Processors that are on line.
    pub processors: usize,
    /// Name and release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let kernel = nix::sys::utsname::uname().map_or("unknown".into(), |name| {
            format!(
                "{} {}",
                name.sysname().to_string_lossy(),
                name.release().to_string_lossy()
            )
        });
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Machine {
            cpu: model(&info).unwrap_or(std::env::consts::ARCH).to_string(),
            // Not those that this process may use: it is pinned.
            processors: sysconf(SysconfVar::_NPROCESSORS_ONLN)
                .ok()
                .flatten()
                .map_or(1, |count| count as usize),
            kernel,
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} processors, {}",
            self.cpu, self.processors, self.kernel
        )
    }
}

/// The first "model name" in the text of /proc/cpuinfo; ARM's has none.
fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}
