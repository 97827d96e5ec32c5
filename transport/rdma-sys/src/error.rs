//! What went wrong, to what, and the mend.

use crate::library::Verbs;
use std::fmt;
use std::io;

/// Why there is no RDMA here; another transport is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub(crate) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unavailable: {}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A call that failed.
#[derive(Debug)]
pub struct Error {
    call: &'static str,
    cause: io::Error,
    mend: String,
}

/// What the calls of this crate give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `call` gave an error number.
    pub(crate) fn number(call: &'static str, number: i32) -> Error {
        Error {
            call,
            cause: io::Error::from_raw_os_error(number),
            mend: String::new(),
        }
    }

    /// `call` left its error in errno.
    pub(crate) fn last(call: &'static str) -> Error {
        Error {
            call,
            cause: io::Error::last_os_error(),
            mend: String::new(),
        }
    }

    /// `call` is not made, for what it was given is wrong.
    pub(crate) fn invalid(call: &'static str, why: impl Into<String>) -> Error {
        Error {
            call,
            cause: io::Error::new(io::ErrorKind::InvalidInput, why.into()),
            mend: String::new(),
        }
    }

    /// What to do about it.
    pub(crate) fn mend(mut self, mend: impl Into<String>) -> Error {
        self.mend = mend.into();
        self
    }

    /// The error number, if it came from a call.
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.cause)?;
        match self.mend.is_empty() {
            true => Ok(()),
            false => write!(f, "; {}", self.mend),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// For functions that return 0, or -1 and errno. librdmacm's.
pub(crate) fn check(call: &'static str, result: i32) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(Error::last(call)),
    }
}

/// For functions that return 0 or an error number, some versions of which returned -1 and errno. libibverbs's.
pub(crate) fn check_number(call: &'static str, result: i32) -> Result<()> {
    match result {
        0 => Ok(()),
        1.. => Err(Error::number(call, result)),
        _ => Err(Error::last(call)),
    }
}

/// For drops, which cannot hand an error on: destroys what `call` is for, unless it is another process's. Nothing may be left
/// in silence, for what was not destroyed is still in the kernel.
pub(crate) fn drop_it(verbs: &Verbs, call: &'static str, destroy: impl FnOnce() -> Result<()>) {
    if verbs.own(call).is_err() {
        return;
    }
    if let Err(error) = destroy() {
        tracing::error!("left in the kernel until this process ends: {error}");
    }
}
