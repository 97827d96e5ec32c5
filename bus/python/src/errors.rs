//! What Rust says, as Python's exceptions. The classes are in `python/tbus/_errors.py`.

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};
use tbus::{AddressError as BadAddress, Error as BusError, TryRecvError, TrySendError};

macro_rules! import_errors {
    ($($name:ident)*) => { $(pyo3::import_exception!(tbus._errors, $name);)* };
}

import_errors!(AddressError BadCrc Busy Closed Damaged Empty Error Forked Full HandleClosed NotFound NotPermitted SystemFailed TooLong);

/// An error of the bus, its maps or its files.
pub fn of_bus(error: &BusError) -> PyErr {
    let text = error.to_string();
    match error {
        BusError::System { source, .. } => match source.raw_os_error() {
            Some(number) => SystemFailed::new_err((number, text)),
            None => SystemFailed::new_err(text),
        },
        BusError::NoSpace { .. } => SystemFailed::new_err((libc::ENOSPC, text)),
        BusError::NotFound { .. } | BusError::NoChannel { .. } => NotFound::new_err(text),
        BusError::NotPermitted { .. } => NotPermitted::new_err(text),
        BusError::Busy { .. } => Busy::new_err(text),
        BusError::Closed { .. } => Closed::new_err(text),
        BusError::NotARing { .. }
        | BusError::Layout { .. }
        | BusError::BadFile { .. }
        | BusError::Damaged { .. } => Damaged::new_err(text),
        BusError::Forked => Forked::new_err(text),
        _ => Error::new_err(text),
    }
}

/// Why a message was not sent.
pub fn of_send(error: TrySendError) -> PyErr {
    let text = error.to_string();
    match error {
        TrySendError::Full => Full::new_err(text),
        TrySendError::Closed => Closed::new_err(text),
        TrySendError::TooLong { .. } => TooLong::new_err(text),
        TrySendError::Failed(error) => of_bus(&error),
    }
}

/// Why a message was not received.
pub fn of_recv(error: TryRecvError) -> PyErr {
    let text = error.to_string();
    match error {
        TryRecvError::Empty => Empty::new_err(text),
        TryRecvError::Closed => Closed::new_err(text),
        TryRecvError::BadCrc { .. } => BadCrc::new_err(text),
        // The buffers here are as long as their messages.
        TryRecvError::TooShort { .. } => Error::new_err(text),
        TryRecvError::Failed(error) => of_bus(&error),
    }
}

/// What the operating system refused.
pub fn of_system(error: &std::io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => SystemFailed::new_err((number, error.to_string())),
        None => SystemFailed::new_err(error.to_string()),
    }
}

/// A text that is no address.
pub fn of_address(error: &BadAddress) -> PyErr {
    AddressError::new_err(error.to_string())
}

/// A handle, bus or endpoint that was closed.
pub fn closed() -> PyErr {
    HandleClosed::new_err("this handle was closed; make a new one")
}

/// A message that is no longer the receiver's.
pub fn released() -> PyErr {
    HandleClosed::new_err(
        "this message was released, or received by another call; peek for the next one",
    )
}

/// A message that has views.
pub fn viewed() -> PyErr {
    PyBufferError::new_err(
        "views of the peeked message exist, whose memory would change under them; release the memoryviews, delete the arrays",
    )
}

/// A handle from before a fork.
pub fn forked() -> PyErr {
    of_bus(&BusError::Forked)
}

/// The text of an error code of C.
#[pyfunction]
pub fn error_string(code: i64) -> String {
    // Old programs have them as unsigned numbers or as negative ones.
    let text = tbus::codes::text(code as i32);
    text.to_string_lossy().into_owned()
}

/// The error codes of C by name, as functions return them.
pub fn codes(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let codes = tbus::codes::ALL
        .iter()
        .map(|(name, code)| (*name, *code as i32));
    codes.into_py_dict(py)
}
