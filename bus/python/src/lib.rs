//! The native part of Python's package `tbus`.
//!
//! `handle.rs` is how threads, signals and asyncio share a sender or receiver; `held.rs` a receiver and the message peeked from
//! it; `buffer.rs` the buffer protocol; `fast.rs` the calls of plain loops once more, by a faster convention. Unsafe code is in these
//! four. What Python sees of `sender.rs`, `receiver.rs` and `message.rs` is typed in `python/tbus/_tbus.pyi`.

mod buffer;
mod bus;
mod errors;
mod fast;
mod handle;
mod held;
mod message;
mod receiver;
mod sender;

use pyo3::prelude::*;

#[pymodule]
fn _tbus(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<bus::Bus>()?;
    module.add_class::<bus::Endpoint>()?;
    module.add_class::<sender::Sender>()?;
    module.add_class::<receiver::Receiver>()?;
    module.add_class::<handle::Ticket>()?;
    fast::install(module.py())?;
    module.add_function(wrap_pyfunction!(errors::error_string, module)?)?;
    module.add("codes", errors::codes(module.py())?)?;
    module.add("Message", message::class(module.py())?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
