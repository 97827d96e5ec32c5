//! What the functions return: 0, or one of these codes.

use bus::{Error, TryRecvError, TrySendError};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int};
use std::fmt::Display;

/// An error as C sees it: bit 31, the level, module 1, and 1024 + its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(u32);

impl Code {
    pub const fn as_int(self) -> c_int {
        self.0 as c_int
    }
}

macro_rules! codes {
    ($($name:ident = $level:literal, $number:literal, $text:literal;)*) => {
        $(pub const $name: Code = Code(0x8000_0000 | $level << 24 | 1 << 16 | (1024 + $number));)*

        /// All of them, with the names that they have in C.
        #[cfg(test)]
        pub const ALL: &[(&str, u32)] = &[$((concat!("TBUS_ERR_", stringify!($name)), $name.0)),*];

        /// The text of a code.
        pub fn text(code: c_int) -> &'static CStr {
            match Code(code as u32) {
                Code(0) => c"no error",
                $($name => $text,)*
                _ => c"no error code of libtbus",
            }
        }
    };
}

// Level 1: nothing is wrong; 2: the call is wrong; 3: the system, or another process.
codes! {
    CHANNEL_EMPTY = 1, 1, c"no message is there now";
    CHANNEL_FULL = 1, 2, c"the channel has no room now; try again when the receiver has read";
    BUFFER_TOO_SHORT = 1, 3, c"the buffer is too short; the message stays, and the length is what it needs";
    CHANNEL_BUSY = 1, 4, c"another process or handle has this end of the channel; end that one first";
    PARTLY_SENT = 1, 5, c"some of the channels took the message; do not send it to all again";
    NOT_INITIALIZED = 2, 6, c"call tbus_init_ex first";
    ALREADY_INITIALIZED = 2, 7, c"tbus_init_ex was called with another key; call tbus_fini first";
    BAD_ARGUMENT = 2, 8, c"an argument is a null pointer or a number that cannot be";
    BAD_HANDLE = 2, 9, c"there is no such handle, or it was deleted";
    TOO_MANY_HANDLES = 2, 10, c"all 4095 handles are in use; delete some";
    BAD_KEY = 2, 11, c"the key is no number of 32 bits, decimal or hexadecimal with 0x";
    BAD_ADDRESS = 2, 12, c"the text is no address of this bus: four decimal numbers with dots, each within its bits";
    NOT_BOUND = 2, 13, c"the handle has no address; call tbus_bind first";
    NO_CHANNEL = 2, 14, c"the map has no such channel; add it to the configuration and write that with tbusmgr -W";
    MSG_TOO_LONG = 2, 15, c"the message is longer than half the ring; split it or make the ring larger";
    NO_MSG_PEEKED = 2, 16, c"tbus_delete_msg deletes what tbus_peek_msg showed, and it showed nothing";
    NO_HOP = 2, 17, c"no message was received whose way back could be gone";
    TOO_MANY_HOPS = 2, 18, c"the message was forwarded 8 times already";
    FORKED = 2, 19, c"the bus was attached before a fork and stays with the parent; call tbus_fini and tbus_init_ex";
    NO_BUS = 3, 20, c"there is no bus of this key; write one with tbusmgr -W, and look at TBUS_SHM_DIR";
    NOT_PERMITTED = 3, 21, c"this user may not use the bus or the channel; see Owner, Group and Mode of the channel";
    CHANNEL_DAMAGED = 3, 22, c"another process wrote into the channel against the rules; delete and create it anew";
    BAD_CRC = 3, 23, c"the message was changed after sending; peek and delete it to go on without it";
    WRONG_LAYOUT = 3, 24, c"the channel was made by another version of tbus; use that, or create it anew";
    SYSTEM = 3, 25, c"a system call failed";
    INTERNAL = 3, 26, c"a bug in libtbus; its message is on the standard error output";
}

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

impl From<Error> for Code {
    #[cold]
    fn from(error: Error) -> Code {
        let code = match error {
            Error::NotFound { .. } => NO_BUS,
            Error::NotPermitted { .. } => NOT_PERMITTED,
            Error::Layout { .. } => WRONG_LAYOUT,
            Error::NotARing { .. } | Error::BadFile { .. } | Error::Damaged { .. } => {
                CHANNEL_DAMAGED
            }
            Error::Busy { .. } => CHANNEL_BUSY,
            Error::NoChannel { .. } | Error::Closed { .. } | Error::WrongRole { .. } => NO_CHANNEL,
            Error::Forked => FORKED,
            _ => SYSTEM,
        };
        because(code, &error)
    }
}

impl From<TrySendError> for Code {
    fn from(error: TrySendError) -> Code {
        match error {
            TrySendError::Full => CHANNEL_FULL,
            TrySendError::Closed => because(NO_CHANNEL, &error),
            TrySendError::TooLong { .. } => because(MSG_TOO_LONG, &error),
            TrySendError::Failed(error) => (*error).into(),
        }
    }
}

impl From<TryRecvError> for Code {
    fn from(error: TryRecvError) -> Code {
        match error {
            TryRecvError::Empty => CHANNEL_EMPTY,
            TryRecvError::Closed => because(NO_CHANNEL, &error),
            TryRecvError::TooShort { .. } => BUFFER_TOO_SHORT,
            TryRecvError::BadCrc { .. } => because(BAD_CRC, &error),
            TryRecvError::Failed(error) => (*error).into(),
        }
    }
}
