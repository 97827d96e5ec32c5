//! `tbus.Sender`.

use crate::buffer::{Bytes, Payload};
use crate::errors::{HandleClosed, of_send};
use crate::handle::{Handle, Ticket, Waits, duration};
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PySequence;
use std::time::Duration;
use tbus::{Extensions, TrySendError};

/// Messages that are handed to the ring together, with one look at the receiver for all.
const BATCH: usize = 256;

impl Waits for tbus::Sender {
    fn sleep(&mut self, length: usize, timeout: Duration) -> bool {
        // What it is, the next attempt says.
        length > self.max_len() || !matches!(self.wait(length, timeout), Err(TrySendError::Full))
    }
}

/// The sending end of a channel. One exists at a time.
///
/// Made by `Endpoint.sender`. A message that was accepted is in shared memory, and survives this process.
#[pyclass(frozen, module = "tbus", weakref)]
pub struct Sender {
    pub handle: Handle<tbus::Sender>,
}

impl Sender {
    pub fn new(sender: tbus::Sender) -> Sender {
        Sender {
            handle: Handle::new(sender),
        }
    }

    fn ready_for(sender: &mut tbus::Sender, length: usize) -> Option<PyResult<()>> {
        if length > sender.max_len() {
            let max = sender.max_len();
            return Some(Err(of_send(TrySendError::TooLong { length, max })));
        }
        match sender.wait(length, Duration::ZERO) {
            Ok(()) => Some(Ok(())),
            Err(TrySendError::Full) => None,
            Err(error) => Some(Err(of_send(error))),
        }
    }
}

/// The next messages of a sequence, whose code may do anything.
fn gather(messages: &Bound<'_, PySequence>, sent: usize) -> PyResult<Vec<Bytes>> {
    let end = messages.len()?.min(sent + BATCH);
    let batch = sent..end;
    batch
        .map(|index| Bytes::of(&messages.get_item(index)?))
        .collect()
}

/// What `send_many` returns when it meets an error after it sent some. What is no Exception, such as KeyboardInterrupt, is of no
/// message.
fn after(py: Python<'_>, sent: usize, error: PyErr) -> PyResult<usize> {
    match sent > 0 && error.is_instance_of::<PyException>(py) {
        true => Ok(sent),
        false => Err(error),
    }
}

#[pymethods]
impl Sender {
    /// Sends one message: any object that is a buffer of contiguous bytes, copied once, into the ring. Full if there is no room;
    /// with a `timeout` it waits for room, so many seconds, or for ever with None.
    #[pyo3(signature = (data, timeout=Some(0.0)), text_signature = "($self, data, timeout=0)")]
    fn send(&self, data: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<()> {
        let payload = Payload::of(data)?;
        let payload = payload.as_slice();
        let attempt = |sender: &mut tbus::Sender| match sender.try_send(payload) {
            Ok(()) => Some(Ok(())),
            Err(TrySendError::Full) => None,
            Err(error) => Some(Err(of_send(error))),
        };
        let timeout = duration(timeout)?;
        let sent = self
            .handle
            .wait_for(data.py(), payload.len(), timeout, attempt)?;
        sent.unwrap_or_else(|| Err(of_send(TrySendError::Full)))
    }

    /// Sends one message if there is room for it; False if not. For loops that poll.
    fn try_send(&self, data: &Bound<'_, PyAny>) -> PyResult<bool> {
        let payload = Payload::of(data)?;
        let sent = self
            .handle
            .with(data.py(), |sender| sender.try_send(payload.as_slice()))?;
        match sent {
            Ok(()) => Ok(true),
            Err(TrySendError::Full) => Ok(false),
            Err(error) => Err(of_send(error)),
        }
    }

    /// Sends the messages of a sequence, in order, until one has no room, for which it waits as `send` does. Returns how many
    /// were sent; what cannot be sent is an error only if nothing was, else the next call meets it again. What a signal handler
    /// raises comes through.
    #[pyo3(signature = (messages, timeout=Some(0.0)), text_signature = "($self, messages, timeout=0)")]
    fn send_many(&self, messages: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<usize> {
        let py = messages.py();
        let timeout = duration(timeout)?;
        let messages = messages.cast::<PySequence>().map_err(|_| {
            PyTypeError::new_err(
                "send_many takes a sequence of messages, such as a list: what was not sent must be there afterwards",
            )
        })?;
        let mut sent = 0;
        loop {
            let batch = match gather(messages, sent) {
                Ok(batch) => batch,
                Err(error) => return after(py, sent, error),
            };
            let Some(first) = batch.first() else {
                return Ok(sent);
            };
            let length = first.as_slice().len();
            let attempt = |sender: &mut tbus::Sender| match sender.send_batch(&batch) {
                Ok(accepted) => Some(Ok(accepted)),
                Err(TrySendError::Full) => None,
                Err(error) => Some(Err(of_send(error))),
            };
            match self.handle.wait_for(py, length, timeout, attempt) {
                Ok(Some(Ok(accepted))) => sent += accepted,
                Ok(None) => return Ok(sent),
                Ok(Some(Err(error))) => return after(py, sent, error),
                // It was closed meanwhile, or a signal handler raised something, which would be lost.
                Err(error) if error.is_instance_of::<HandleClosed>(py) => {
                    return after(py, sent, error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a message of `length` bytes has room, up to `timeout` seconds, by default for ever. False if it has none by
    /// then.
    #[pyo3(signature = (length=0, timeout=None))]
    fn wait(&self, py: Python<'_>, length: usize, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = duration(timeout)?;
        let attempt = |sender: &mut tbus::Sender| Self::ready_for(sender, length);
        let room = self.handle.wait_for(py, length, timeout, attempt)?;
        Ok(room.transpose()?.is_some())
    }

    /// Sends one message as soon as it has room, for asyncio.
    fn asend<'py>(slf: &Bound<'py, Self>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let asyncio = slf.py().import("tbus._asyncio")?;
        asyncio.call_method1("send", (slf, data))
    }

    /// Waits until a message of `length` bytes has room, for asyncio.
    #[pyo3(signature = (length=0))]
    fn ready<'py>(slf: &Bound<'py, Self>, length: usize) -> PyResult<Bound<'py, PyAny>> {
        let asyncio = slf.py().import("tbus._asyncio")?;
        asyncio.call_method1("ready", (slf, length))
    }

    fn _ticket(&self, length: usize) -> PyResult<Option<Ticket>> {
        let ready = |sender: &mut tbus::Sender| Self::ready_for(sender, length).is_some();
        self.handle.ticket(length, ready)
    }

    /// The longest message, bytes: half the ring.
    #[getter]
    fn max_len(&self, py: Python<'_>) -> PyResult<usize> {
        self.handle.with(py, |sender| sender.max_len())
    }

    /// The sequence that the next message gets. After a restart: all with a lower one are in the ring or were received.
    #[getter]
    fn sequence(&self, py: Python<'_>) -> PyResult<u64> {
        self.handle.with(py, |sender| sender.next().sequence)
    }

    /// Chooses what the following messages carry besides their payload, 8 bytes each: the time of sending, a CRC that the
    /// receiver checks, a trace id.
    #[pyo3(signature = (*, timestamp=false, crc=false, trace_id=None))]
    fn set_extensions(
        &self,
        py: Python<'_>,
        timestamp: bool,
        crc: bool,
        trace_id: Option<u64>,
    ) -> PyResult<()> {
        self.handle.with(py, |sender| {
            sender.set_trace_id(trace_id.unwrap_or(0));
            sender.set_extensions(Extensions {
                timestamp,
                trace_id: trace_id.is_some(),
                crc,
            });
        })
    }

    /// Frees this end of the channel. Closing twice is no error.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.close(py, |_| Ok(()))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }
}
