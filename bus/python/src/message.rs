//! `tbus.Message`: a message in its ring.

use crate::receiver::Receiver;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView, PyWeakrefMethods, PyWeakrefReference};
use std::sync::Mutex;

/// A message, read in place. It stays in its ring until it is released: dropped without, it is the next message again.
///
/// It is a buffer: memoryview(message) and numpy.frombuffer(message) see the payload in the ring, without a copy. While such
/// views exist it cannot be released, nor its receiver closed or used for the next one: BufferError. As a context manager it is
/// released at the end, unless by an exception.
#[pyclass(frozen, subclass, module = "tbus", name = "Message")]
pub struct Message {
    receiver: Py<Receiver>,
    serial: u64,
    source: String,
    length: usize,
    position: u64,
    sequence: u64,
    timestamp: Option<u64>,
    trace_id: Option<u64>,
    /// The memoryview that `data` gave, if it still exists.
    data: Mutex<Option<Py<PyWeakrefReference>>>,
}

/// The class, see [`crate::buffer`].
static TYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The class `tbus.Message`.
pub fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    TYPE.get_or_try_init(py, || crate::buffer::message_type(py))
        .map(|class| class.bind(py))
}

impl Message {
    /// Where the payload lies, for a view.
    pub fn export(&self, py: Python<'_>) -> PyResult<(*const u8, usize)> {
        let receiver = &self.receiver.get().handle;
        receiver.with(py, |held| held.export(self.serial))?
    }

    /// One view less.
    pub fn take_back(&self, py: Python<'_>) {
        // In a forked child the views are of empty pages, and nobody counts them.
        let receiver = &self.receiver.get().handle;
        _ = receiver.with(py, |held| held.take_back(self.serial));
    }

    fn view<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let data = self.data.lock().ok()?;
        data.as_ref()?.bind(py).upgrade()
    }
}

#[pymethods]
impl Message {
    /// The next message of a receiver, as by `receiver.peek(timeout=0)`.
    #[new]
    fn new(py: Python<'_>, receiver: Py<Receiver>) -> PyResult<Message> {
        let template = receiver.get().template;
        let found = receiver.get().handle.with(py, |held| {
            held.peek(|serial, from, message| Message {
                receiver: receiver.clone_ref(py),
                serial,
                source: template.show(from).to_string(),
                length: message.len(),
                position: message.cursor().position,
                sequence: message.cursor().sequence,
                timestamp: message.timestamp(),
                trace_id: message.trace_id(),
                data: Mutex::new(None),
            })
        })?;
        found.unwrap_or_else(|| Err(crate::errors::of_recv(tbus::TryRecvError::Empty)))
    }

    /// The payload in place, as a read-only memoryview. `release` releases this view too.
    #[getter]
    fn data<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let message = slf.get();
        if let Some(view) = message.view(slf.py()) {
            // Released by itself, it is of no more use.
            if view.getattr("nbytes").is_ok() {
                return Ok(view);
            }
        }
        let view = PyMemoryView::from(slf.as_any())?.into_any();
        let reference = PyWeakrefReference::new(&view)?.unbind();
        if let Ok(mut data) = message.data.lock() {
            *data = Some(reference);
        }
        Ok(view)
    }

    /// Releases the message: it is received, its room is free, and no restart shows it again. BufferError if there are views of
    /// it besides `data`, which is released even so if they are slices of it; HandleClosed if it was released before.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let handle = &self.receiver.get().handle;
        if let Some(view) = self.view(py) {
            // Not if that were in vain.
            if handle.with(py, |held| held.views(self.serial))? > 1 {
                return Err(crate::errors::viewed());
            }
            view.call_method0("release")?;
        }
        handle.with(py, |held| held.release(self.serial))?
    }

    /// A copy of the payload, checked against its CRC if it has one.
    fn tobytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.receiver.get().handle.with(py, |held| {
            held.read(self.serial, |m| crate::buffer::copy(py, m))
        })??
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.tobytes(py)
    }

    /// Payload bytes.
    fn __len__(&self) -> usize {
        self.length
    }

    /// A message of no bytes is a message too.
    fn __bool__(&self) -> bool {
        true
    }

    /// The sender's address.
    #[getter]
    fn source(&self) -> &str {
        &self.source
    }

    /// Its number in the ring, from 0.
    #[getter]
    fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Its position in the ring: bytes since the ring was created.
    #[getter]
    fn position(&self) -> u64 {
        self.position
    }

    /// When it was sent, nanoseconds since 1970, if its sender stored that.
    #[getter]
    fn timestamp(&self) -> Option<u64> {
        self.timestamp
    }

    /// Its trace id, if it has one.
    #[getter]
    fn trace_id(&self) -> Option<u64> {
        self.trace_id
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Releases the message unless it was released before, or an exception is under way.
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if !kind.is_none() {
            return Ok(());
        }
        let handle = &self.receiver.get().handle;
        match handle.with(py, |held| held.read(self.serial, |_| ()).is_ok())? {
            true => self.release(py),
            false => Ok(()),
        }
    }

    fn __repr__(&self) -> String {
        format!(
            "<tbus.Message {} from {}, {} bytes>",
            self.sequence, self.source, self.length
        )
    }
}
