//! What went wrong, to what, and the mend.

use crate::bindings::ucp::ucs_status_t;
use crate::library::{Ucx, text};
use std::fmt;

/// Why there is no UCX here; another transport is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub(crate) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unavailable: {}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    call: &'static str,
    status: i8,
    cause: String,
}

/// What the calls of this crate give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `call` gave a status.
    pub(crate) fn status(ucx: &Ucx, call: &'static str, status: ucs_status_t) -> Error {
        // SAFETY: any number will do; the text is static, or a buffer of this thread.
        let cause = unsafe { text(ucx.ucp.ucs_status_string(status)) };
        Error {
            call,
            status: status.0,
            cause,
        }
    }

    /// `call` is not made, for what it was given is wrong.
    pub(crate) fn invalid(call: &'static str, why: impl Into<String>) -> Error {
        Error {
            call,
            status: ucs_status_t::UCS_ERR_INVALID_PARAM.0,
            cause: why.into(),
        }
    }

    /// UCX's number for it, which is negative.
    pub fn number(&self) -> i8 {
        self.status
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.cause)
    }
}

impl std::error::Error for Error {}

/// For calls that succeed or fail at once.
pub(crate) fn check(ucx: &Ucx, call: &'static str, status: ucs_status_t) -> Result<()> {
    match status {
        ucs_status_t::UCS_OK => Ok(()),
        _ => Err(Error::status(ucx, call, status)),
    }
}
