//! `tbus.Receiver`.

use crate::buffer::copy;
use crate::errors::{self, Empty};
use crate::handle::{Handle, Ticket, duration};
use crate::held::Held;
use crate::message;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::time::{Duration, Instant};
use tbus::{Address, Template};

/// The receiving end of a channel, or of all channels of an endpoint. One exists at a time.
///
/// Made by `Endpoint.receiver`. A message counts as received when it is released: `recv` and its relatives do that before they
/// return, `peek` leaves it to the caller. Iteration waits for messages and ends when the channel was deleted.
#[pyclass(frozen, module = "tbus", weakref)]
pub struct Receiver {
    pub handle: Handle<Held>,
    pub template: Template,
}

/// No record takes fewer bytes besides its payload.
const LEAST_HEADER: u64 = 8;

fn nothing_came() -> PyErr {
    errors::of_recv(tbus::TryRecvError::Empty)
}

impl Receiver {
    pub fn new(held: Held, template: Template) -> Receiver {
        Receiver {
            handle: Handle::new(held),
            template,
        }
    }

    /// The next message and its sender; None if none came in time.
    #[inline]
    fn next<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<Duration>,
    ) -> PyResult<Option<(Address, Bound<'py, PyBytes>)>> {
        let attempt = |held: &mut Held| held.take(|from, m| Ok((from, copy(py, m)?)));
        self.handle.wait_for(py, 0, timeout, attempt)?.transpose()
    }
}

#[pymethods]
impl Receiver {
    /// The next message. Waits up to `timeout` seconds, by default for ever; 0 does not wait. Empty if none came in time.
    #[pyo3(signature = (timeout=None))]
    fn recv<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        let message = self.next(py, duration(timeout)?)?;
        message.map(|(_, data)| data).ok_or_else(nothing_came)
    }

    /// The next message and its sender's address; else as `recv`.
    #[pyo3(signature = (timeout=None))]
    fn recv_from<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<(Bound<'py, PyBytes>, String)> {
        let (from, data) = self
            .next(py, duration(timeout)?)?
            .ok_or_else(nothing_came)?;
        Ok((data, self.template.show(from).to_string()))
    }

    /// The next message if one is there, else None. For loops that poll.
    fn try_recv<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let message = self.next(py, Some(Duration::ZERO))?;
        Ok(message.map(|(_, data)| data))
    }

    /// Up to `count` messages as a list: those that are there, and of those that come meanwhile no more than the ring holds at a
    /// time. Waits for the first as `recv` does, but the list is empty if none came in time.
    #[pyo3(signature = (count, timeout=None))]
    fn recv_many<'py>(
        &self,
        py: Python<'py>,
        count: usize,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let messages = PyList::empty(py);
        let timeout = duration(timeout)?;
        if count == 0 {
            return Ok(messages);
        }
        let attempt = |held: &mut Held| {
            let mut left = u64::MAX;
            while messages.len() < count && left > 0 {
                let one = held.take(|_, message| {
                    messages.append(copy(py, message)?)?;
                    Ok(message.len())
                });
                match one {
                    Some(Ok(length)) => {
                        if messages.len() == 1 {
                            left = held.capacity();
                        }
                        left = left.saturating_sub(length as u64 + LEAST_HEADER);
                    }
                    // The next call meets the error again.
                    Some(Err(_)) if !messages.is_empty() => break,
                    Some(Err(error)) => return Some(Err(error)),
                    None => break,
                }
            }
            (!messages.is_empty()).then_some(Ok(()))
        };
        let outcome = self.handle.wait_for(py, 0, timeout, attempt)?;
        outcome.transpose()?;
        Ok(messages)
    }

    /// The next message in place: a Message, to be released when done. Peeked again before that, it is the same one. Waits
    /// as `recv` does.
    #[pyo3(signature = (timeout=None))]
    fn peek<'py>(slf: &Bound<'py, Self>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let timeout = duration(timeout)?;
        let begun = Instant::now();
        loop {
            let handle = &slf.get().handle;
            let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
            let peeked = handle.wait_for(py, 0, left, |held| held.peek(|_, _, _| ()))?;
            peeked.ok_or_else(nothing_came)??;
            match message::class(py)?.call1((slf,)) {
                // Another thread was faster.
                Err(error) if left != Some(Duration::ZERO) && error.is_instance_of::<Empty>(py) => {
                }
                made => return made,
            }
        }
    }

    /// Waits until a message is there, up to `timeout` seconds, by default for ever. False if none came in time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let attempt = |held: &mut Held| match held.ready() {
            true => Some(held.failure()),
            false => None,
        };
        match self.handle.wait_for(py, 0, duration(timeout)?, attempt)? {
            Some(Some(error)) => Err(error),
            Some(None) => Ok(true),
            None => Ok(false),
        }
    }

    /// The next message, for asyncio.
    fn arecv<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        py.import("tbus._asyncio")?.call_method1("recv", (slf,))
    }

    /// Waits until a message is there, for asyncio.
    fn ready<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        py.import("tbus._asyncio")?.call_method1("ready", (slf, 0))
    }

    #[pyo3(signature = (length))]
    #[expect(unused_variables, reason = "as in Sender")]
    fn _ticket(&self, py: Python<'_>, length: usize) -> PyResult<Option<Ticket>> {
        let event = self.handle.with(py, Held::ticket)??;
        Ok(event.map(Ticket::of))
    }

    /// The sequence of the next message; after a restart, of the first one that was not released. None if it receives from
    /// several channels, which count each for itself.
    #[getter]
    fn sequence(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let next = self.handle.with(py, |held| held.next())?;
        Ok(next.map(|cursor| cursor.sequence))
    }

    /// Frees this end of the channel. BufferError if there are views of a peeked message. Closing twice is no error.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.close(py, Held::may_close)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        match self.next(py, None) {
            Ok(message) => Ok(message.map(|(_, data)| data)),
            Err(error) if error.is_instance_of::<errors::Closed>(py) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        py.import("tbus._asyncio")?
            .call_method1("following", (slf,))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}
