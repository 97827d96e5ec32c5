//! What the managing tools have in common: where they work, how they fail, print and end.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};
use tbus::config::ConfigError;
use tbus::{AddressError, Error};

/// How long another manager is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What went wrong, by exit status.
#[derive(Debug)]
pub enum Failure {
    /// 2: the command line makes no sense.
    Usage(String),
    /// 3: a configuration file was refused.
    Config(ConfigError),
    /// 3: a configuration file asks for what cannot be had.
    Asked(String),
    /// 4 to 7: by the error.
    Bus(Error),
    /// 6: another process has what is needed.
    Busy(String),
    /// 7: the system, while printing or sending.
    Other(String),
}

impl Failure {
    /// The exit status: 2 usage, 3 bad configuration, 4 not found, 5 refused for unread messages, 6 busy, 7 system.
    pub fn status(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Config(_) | Failure::Asked(_) => 3,
            Failure::Bus(error) => match error {
                Error::NotFound { .. }
                | Error::NoChannel { .. }
                | Error::NoSuchChannel { .. }
                | Error::NoSuchRoute { .. } => 4,
                Error::Unread { .. } => 5,
                Error::Busy { .. } => 6,
                _ => 7,
            },
            Failure::Busy(_) => 6,
            Failure::Other(_) => 7,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Usage(text)
            | Failure::Asked(text)
            | Failure::Busy(text)
            | Failure::Other(text) => f.write_str(text),
            Failure::Config(error) => error.fmt(f),
            Failure::Bus(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Bus(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Config(error)
    }
}

impl From<AddressError> for Failure {
    fn from(error: AddressError) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// A result whose error has an exit status.
pub type Result<T> = std::result::Result<T, Failure>;

/// Where: a configuration file, or a key.
#[derive(Clone, Debug)]
pub enum Target<'a> {
    /// The file says which map.
    File(&'a Path),
    /// The key of a map.
    Key(u32),
}

/// Prints what was done, or what failed; the status to exit with. `tool` is its name.
pub fn finish(tool: &str, result: Result<String>) -> ExitCode {
    let Err(failure) = result.and_then(|text| print(&text)) else {
        return ExitCode::SUCCESS;
    };
    match &failure {
        // Its lines begin with file, row and column, as editors like them.
        Failure::Config(error) => {
            eprintln!("{error}\n{tool}: the file is refused; nothing was changed")
        }
        other => eprintln!("{tool}: {other}"),
    }
    ExitCode::from(failure.status())
}

/// Prints; a reader that went away, as `head` does, is no failure.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Nanoseconds since 1970 as 2026-11-21 13:03:55Z.
pub fn time(nanoseconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanoseconds))
        .to_string()
        .replace('T', " ")
}
