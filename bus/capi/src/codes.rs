//! What the functions return: 0, or one of the codes, and for tbus_last_error why.

pub use bus::codes::*;

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::fmt::Display;

thread_local! {
    static DETAIL: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// `code`, and for tbus_last_error why: the text goes with the thread.
#[cold]
pub fn because(code: Code, why: &dyn Display) -> Code {
    let text = why.to_string().replace('\0', "");
    // A thread that is ending may have no place for it any more.
    let _ = DETAIL.try_with(|detail| *detail.borrow_mut() = CString::new(text).ok());
    code
}

/// The code of an error of the Rust API, whose text tbus_last_error tells.
#[cold]
pub fn told<E: Display>(error: E) -> Code
where
    for<'e> Code: From<&'e E>,
{
    match Code::from(&error) {
        // They come with every poll, and have no more to say.
        code @ (CHANNEL_EMPTY | CHANNEL_FULL | BUFFER_TOO_SHORT) => code,
        code => because(code, &error),
    }
}

/// What [`because`] stored last in this thread; valid until it stores again.
pub fn detail() -> &'static CStr {
    let text = DETAIL.try_with(|detail| {
        let detail = detail.borrow();
        // SAFETY: the string lives on the heap until the thread ends or stores another one, as the header says.
        let text = detail
            .as_ref()
            .map(|text| unsafe { CStr::from_ptr(text.as_ptr()) });
        text.unwrap_or_default()
    });
    text.unwrap_or_default()
}
