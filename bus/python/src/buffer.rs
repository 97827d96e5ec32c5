//! The buffer protocol, both ways: any object's bytes without a copy, and a message as a buffer.
//!
//! The stable ABI has these functions from Python 3.11 on, so pyo3 leaves them out for older ones. CPython 3.9 and 3.10 export
//! the same functions, with the same structure; it is they that the stable ABI later fixed.

use crate::errors;
use crate::message::Message;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null_mut;

/// `Py_buffer` of CPython.
#[repr(C)]
pub struct BufferView {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: ffi::Py_ssize_t,
    itemsize: ffi::Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut ffi::Py_ssize_t,
    strides: *mut ffi::Py_ssize_t,
    suboffsets: *mut ffi::Py_ssize_t,
    internal: *mut c_void,
}

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut BufferView, flags: c_int)
    -> c_int;
    fn PyBuffer_Release(view: *mut BufferView);
    fn PyBuffer_FillInfo(
        view: *mut BufferView,
        object: *mut ffi::PyObject,
        bytes: *mut c_void,
        length: ffi::Py_ssize_t,
        readonly: c_int,
        flags: c_int,
    ) -> c_int;
}

/// Contiguous bytes, without shape or format.
const SIMPLE: c_int = 0;

/// An object's bytes, which stay where they are while this lives. To be dropped while attached to the interpreter.
pub struct Bytes {
    view: BufferView,
}

// SAFETY: the view's memory is valid whichever thread reads it; Bytes are made and dropped by calls that hold a token.
unsafe impl Send for Bytes {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// The bytes of `object`; TypeError if it has none, BufferError if they do not lie in one piece.
    #[inline]
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
        let mut view = BufferView {
            buf: null_mut(),
            obj: null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: null_mut(),
            shape: null_mut(),
            strides: null_mut(),
            suboffsets: null_mut(),
            internal: null_mut(),
        };
        // SAFETY: a live object and a structure to fill; the interpreter is attached, for `object` is bound.
        match unsafe { PyObject_GetBuffer(object.as_ptr(), &raw mut view, SIMPLE) } {
            0 => Ok(Bytes { view }),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    /// The bytes, to be copied by the caller at once.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        if self.view.len == 0 {
            return &[]; // the pointer may be null
        }
        // SAFETY: the exporter keeps them valid while the view is held. Another thread of Python can write into a bytearray only
        // while it holds the GIL, and one that does not hold it, in numpy, races with its own program.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast(), self.view.len as usize) }
    }
}

impl Drop for Bytes {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: filled by PyObject_GetBuffer, released once.
        unsafe { PyBuffer_Release(&raw mut self.view) };
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// The payload of a call's argument, for as long as the call has the argument.
pub enum Payload<'a> {
    /// Of `bytes` itself, which never change: without the buffer protocol, which costs as much as sending.
    Exact(&'a [u8]),
    View(Bytes),
}

impl<'a> Payload<'a> {
    /// As [`Bytes::of`].
    #[inline]
    pub fn of(object: &'a Bound<'_, PyAny>) -> PyResult<Payload<'a>> {
        match object.cast_exact::<PyBytes>() {
            Ok(bytes) => Ok(Payload::Exact(bytes.as_bytes())),
            Err(_) => Bytes::of(object).map(Payload::View),
        }
    }

    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Exact(bytes) => bytes,
            Payload::View(view) => view.as_slice(),
        }
    }
}

/// A copy of the payload of a message, as `bytes`.
#[inline]
pub fn copy<'py>(py: Python<'py>, message: &tbus::Message<'_>) -> PyResult<Bound<'py, PyBytes>> {
    if message.crc().is_some() {
        return PyBytes::new_with(py, message.len(), |buffer| {
            message.copy_to(buffer).map(drop).map_err(errors::of_recv)
        });
    }
    // SAFETY: no slice is kept, only where it lies; the message is not released before the call returns. Python copies from there as
    // it reads any shared memory.
    unsafe {
        let payload: *const [u8] = message.as_slice();
        let made = ffi::PyBytes_FromStringAndSize(payload.cast(), payload.len() as ffi::Py_ssize_t);
        Ok(Bound::from_owned_ptr_or_err(py, made)?.cast_into_unchecked())
    }
}

/// The class `tbus.Message`: a subclass of [`Message`] whose objects are buffers, and nothing more.
pub fn message_type(py: Python<'_>) -> PyResult<Py<PyAny>> {
    let base = py.get_type::<Message>();
    let doc = CString::new(base.getattr("__doc__")?.extract::<String>()?)?;
    let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
    let mut slots = [
        slot(ffi::Py_bf_getbuffer, get_buffer as *mut c_void),
        slot(ffi::Py_bf_releasebuffer, release_buffer as *mut c_void),
        slot(ffi::Py_tp_doc, doc.as_ptr() as *mut c_void),
        slot(0, null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"tbus.Message".as_ptr(),
        basicsize: 0, // the base's
        itemsize: 0,
        flags: ffi::Py_TPFLAGS_DEFAULT as _,
        slots: slots.as_mut_ptr(),
    };
    let bases = PyTuple::new(py, [base])?;
    // SAFETY: the specification is whole, and copied by the call but for the name, which is static.
    unsafe {
        let made = ffi::PyType_FromSpecWithBases(&raw mut spec, bases.as_ptr());
        Ok(Bound::from_owned_ptr_or_err(py, made)?.unbind())
    }
}

unsafe extern "C" fn get_buffer(
    object: *mut ffi::PyObject,
    view: *mut BufferView,
    flags: c_int,
) -> c_int {
    // SAFETY: the interpreter calls slots attached, with an object of the type, whose base is Message, and a view to fill.
    unsafe {
        let py = Python::assume_attached();
        let message = Bound::from_borrowed_ptr(py, object).cast_into_unchecked::<Message>();
        let error = match message.get().export(py) {
            Ok((at, length)) => {
                let at = at.cast_mut().cast();
                if PyBuffer_FillInfo(view, object, at, length as ffi::Py_ssize_t, 1, flags) == 0 {
                    return 0;
                }
                message.get().take_back(py);
                return -1; // it was to be writable, and the error says so
            }
            Err(error) => error,
        };
        (*view).obj = null_mut();
        error.restore(py);
        -1
    }
}

unsafe extern "C" fn release_buffer(object: *mut ffi::PyObject, _view: *mut BufferView) {
    // SAFETY: as in get_buffer.
    unsafe {
        let py = Python::assume_attached();
        let message = Bound::from_borrowed_ptr(py, object).cast_into_unchecked::<Message>();
        message.get().take_back(py);
    }
}
