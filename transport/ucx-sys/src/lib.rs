//! UCP of UCX, which is opened when it is wanted: nothing of it is needed to build, and a program runs where it is not installed.
//!
//! | question | module |
//! |---|---|
//! | Which functions and types are there? | [`bindings`], made by `xtask` from the headers |
//! | Is there UCX on this host, and if not, why? | [`library`] |
//! | What can go wrong, in words? | [`error`] |
//! | What may it use, and which memory may whom? | [`context`] |
//! | Who moves things along, and what has come? | [`worker`] |
//! | How do two hosts find each other? | [`listener`] |
//! | What is sent, and over what? | [`endpoint`] |
//!
//! Whatever is made here keeps what it was made from, so nothing is destroyed while something else needs it, in whatever order the
//! owners are dropped. All of it may be used from any thread; calls on one worker and its endpoints take turns.

#![deny(unsafe_op_in_unsafe_fn)]

/// What bindgen makes.
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    unsafe_op_in_unsafe_fn,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    clippy::undocumented_unsafe_blocks
)]
pub mod bindings {
    pub mod ucp;
}
pub mod context;
pub mod endpoint;
pub mod error;
pub mod library;
pub mod listener;
pub mod worker;

pub use context::{Context, Memory};
pub use endpoint::{Body, Endpoint, How, Key, RemoteKey};
pub use error::{Error, Result, Unavailable};
pub use library::Ucx;
pub use listener::{Listener, Request};
pub use worker::{Announced, Arrival, Operation, Received, Worker};
