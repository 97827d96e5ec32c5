//! `send`, `try_send` and `recv` as plain loops call them: by METH_FASTCALL, and nothing but a look into the ring.
//!
//! For the stable ABI of CPython 3.9 pyo3 takes the older convention, which makes and frees a tuple for each call: that costs
//! several times what sending does. The newer one is in the stable ABI from 3.10 on, and the same in 3.9. Whatever is unusual goes on to
//! pyo3's method, which does and checks everything anew: so each function here may do a whole thing, or nothing.
//!
//! pyo3's count of who is attached is raised by its own entries only. Here it may be 0; then objects of type `Py` that are dropped, as in
//! errors, go when its next entry begins.

use crate::buffer::{Payload, copy};
use crate::held::Held;
use crate::receiver::Receiver;
use crate::sender::Sender;
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyTuple, PyType};
use std::ffi::{CString, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

/// METH_FASTCALL of CPython.
const FASTCALL: c_int = 0x0080;

type Function = unsafe extern "C" fn(
    *mut PyObject,
    *const *mut PyObject,
    ffi::Py_ssize_t,
    *mut PyObject,
) -> *mut PyObject;

/// pyo3's method.
type Original = PyOnceLock<Py<PyAny>>;

static SEND: Original = PyOnceLock::new();
static TRY_SEND: Original = PyOnceLock::new();
static RECV: Original = PyOnceLock::new();

/// Puts the functions of this file before pyo3's.
pub fn install(py: Python<'_>) -> PyResult<()> {
    replace(&py.get_type::<Sender>(), "send", send, &SEND)?;
    replace(&py.get_type::<Sender>(), "try_send", try_send, &TRY_SEND)?;
    replace(&py.get_type::<Receiver>(), "recv", recv, &RECV)
}

fn replace(
    class: &Bound<'_, PyType>,
    name: &str,
    function: Function,
    original: &Original,
) -> PyResult<()> {
    let py = class.py();
    let method = class.getattr(name)?;
    // As CPython keeps the two in one text.
    let signature: String = method.getattr("__text_signature__")?.extract()?;
    let doc: String = method.getattr("__doc__")?.extract()?;
    let doc = CString::new(format!("{name}{signature}\n--\n\n{doc}"))?;
    // SAFETY: a pointer to a function for another; CPython calls it as its flags say.
    let function =
        unsafe { std::mem::transmute::<Function, ffi::PyCFunctionWithKeywords>(function) };
    // They live as long as the class does, which is for ever.
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: CString::new(name)?.into_raw(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionWithKeywords: function,
        },
        ml_flags: FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: doc.into_raw(),
    }));
    // SAFETY: a class, and a definition that stays, whose function is of the kind that its flags say.
    let fast = unsafe {
        let made = ffi::PyDescr_NewMethod(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(py, made)?
    };
    original.get_or_init(py, || method.unbind());
    class.setattr(name, fast)
}

/// The arguments of a call.
#[derive(Clone, Copy)]
struct Call<'py> {
    py: Python<'py>,
    slf: *mut PyObject,
    args: *const *mut PyObject,
    count: usize,
    names: *mut PyObject,
}

impl<'py> Call<'py> {
    /// The object that the method is of.
    ///
    /// # Safety
    /// It is of the class.
    #[inline(always)]
    unsafe fn object<T>(&self) -> Borrowed<'_, 'py, T> {
        // SAFETY: alive during the call, and of its class by the caller.
        unsafe { Borrowed::from_ptr(self.py, self.slf).cast_unchecked() }
    }

    /// An argument, by its place among all of them; those with names are behind the rest.
    ///
    /// # Safety
    /// There is such a one.
    #[inline(always)]
    unsafe fn arg(&self, index: usize) -> Borrowed<'_, 'py, PyAny> {
        // SAFETY: the caller's; it lives during the call.
        unsafe { Borrowed::from_ptr(self.py, *self.args.add(index)) }
    }

    /// True if all that follows the first `before` arguments is a timeout that needs no looking at, or nothing.
    #[inline(always)]
    fn has_plain_timeout(&self, before: usize) -> bool {
        if self.names.is_null() {
            return self.count == before
                || (self.count == before + 1 && self.is_plain_timeout(before));
        }
        self.count == before && self.has_timeout_by_name(before)
    }

    fn has_timeout_by_name(&self, before: usize) -> bool {
        // SAFETY: a tuple, as long as it says.
        let name = unsafe {
            match ffi::PyTuple_Size(self.names) {
                1 => ffi::PyTuple_GetItem(self.names, 0),
                _ => return false,
            }
        };
        // Names in programs are interned. One with a name follows those without.
        name == intern!(self.py, "timeout").as_ptr() && self.is_plain_timeout(before)
    }

    fn is_plain_timeout(&self, index: usize) -> bool {
        // SAFETY: one of the arguments, which live during the call; of the classes they are asked for, so nothing fails.
        unsafe {
            let timeout = self.arg(index);
            let mut overflow = 0;
            timeout.is_none()
                || (timeout.is_exact_instance_of::<PyFloat>()
                    && ffi::PyFloat_AsDouble(timeout.as_ptr()) >= 0.0)
                || (timeout.is_exact_instance_of::<PyInt>()
                    && ffi::PyLong_AsLongAndOverflow(timeout.as_ptr(), &raw mut overflow) >= 0)
        }
    }

    /// By pyo3's method.
    #[cold]
    fn on(&self, original: &Original) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let original = original.get(py).expect("set before this function was");
        // SAFETY: the object and the arguments, as many as there are.
        unsafe {
            let places = (0..self.count + 1).map(|place| match place {
                0 => Borrowed::from_ptr(py, self.slf),
                after => self.arg(after - 1),
            });
            let places = PyTuple::new(py, places)?;
            if self.names.is_null() {
                return original.bind(py).call1(places);
            }
            let names = Borrowed::from_ptr(py, self.names).cast_unchecked::<PyTuple>();
            let keywords = PyDict::new(py);
            for (index, name) in names.iter().enumerate() {
                keywords.set_item(name, self.arg(self.count + index))?;
            }
            original.bind(py).call(places, Some(&keywords))
        }
    }
}

/// Runs a call: `act`, and pyo3's method if that gave nothing.
///
/// # Safety
/// The arguments are those of a call by CPython.
#[inline(always)]
unsafe fn run<'py>(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
    original: &Original,
    act: impl FnOnce(&Call<'py>) -> Option<PyResult<*mut PyObject>>,
) -> *mut PyObject {
    // SAFETY: CPython calls while attached.
    let py = unsafe { Python::assume_attached() };
    let call = Call {
        py,
        slf,
        args,
        count: count as usize,
        names,
    };
    let done = catch_unwind(AssertUnwindSafe(|| match act(&call) {
        Some(done) => done,
        None => call.on(original).map(Bound::into_ptr),
    }));
    match done {
        Ok(Ok(made)) => made,
        Ok(Err(error)) => raise(error),
        Err(_) => raise(PanicException::new_err("panic from Rust code")),
    }
}

#[cold]
fn raise(error: PyErr) -> *mut PyObject {
    Python::attach(|py| error.restore(py));
    null_mut()
}

/// Sends its first argument if the ring has room: whether it had; None if there is more to do.
///
/// # Safety
/// It is a call of a method of Sender, and has an argument.
#[inline(always)]
unsafe fn sent(call: &Call<'_>) -> Option<bool> {
    // SAFETY: the caller's.
    let (sender, data) = unsafe { (call.object::<Sender>(), call.arg(0)) };
    let payload = Payload::of(&data).ok()?; // pyo3's method meets the error again
    let handle = &sender.get().handle;
    handle.now(call.py, |sender| sender.try_send_here(payload.as_slice()))?
}

unsafe extern "C" fn send(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: CPython calls it as a method of Sender.
    unsafe {
        run(slf, args, count, names, &SEND, |call| {
            let sent = call.has_plain_timeout(1) && sent(call) == Some(true);
            sent.then(|| Ok(call.py.None().into_ptr()))
        })
    }
}

unsafe extern "C" fn try_send(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: CPython calls it as a method of Sender.
    unsafe {
        run(slf, args, count, names, &TRY_SEND, |call| {
            if call.count != 1 || !call.names.is_null() {
                return None;
            }
            let sent = sent(call)?;
            Some(Ok(PyBool::new(call.py, sent).to_owned().into_ptr()))
        })
    }
}

unsafe extern "C" fn recv(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: CPython calls it as a method of Receiver.
    unsafe {
        run(slf, args, count, names, &RECV, |call| {
            if !call.has_plain_timeout(0) {
                return None;
            }
            let receiver = call.object::<Receiver>();
            let take = |held: &mut Held| held.take(|_, message| copy(call.py, message));
            let data = receiver.get().handle.now(call.py, take)??;
            Some(data.map(Bound::into_ptr))
        })
    }
}
