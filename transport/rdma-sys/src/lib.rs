//! RDMA by libibverbs and librdmacm, which are opened when they are wanted: nothing of them is needed to build, and a program
//! runs where they are not installed.
//!
//! | question | module |
//! |---|---|
//! | Which functions and types are there? | [`bindings`], made by `xtask` from the headers |
//! | What do the headers' inline functions and macros do? | [`inline`] |
//! | Is there RDMA on this host, and if not, why? | [`library`] |
//! | What can go wrong, in words? | [`error`] |
//! | How do two hosts find each other? | [`connection`]: connection manager, its events |
//! | Which memory may whom? | [`memory`]: protection domains, registered regions |
//! | How is work posted? | [`queue_pair`] |
//! | How is it known to be done? | [`completion`] |
//! | What can the device do? | [`device`] |
//!
//! Whatever is made here keeps what it was made from: a queue pair its completion queues and its protection domain, and everything
//! its [`ConnectionId`], which keeps the device open. So nothing is destroyed while something else needs it, in whatever order
//! the owners are dropped. What cannot be destroyed all the same is reported: by `destroy` and `deregister` to the caller, by a
//! drop to the log.

#![deny(unsafe_op_in_unsafe_fn)]

/// What bindgen makes.
#[allow(
    missing_docs,
    non_camel_case_types,
    unsafe_op_in_unsafe_fn,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    clippy::undocumented_unsafe_blocks
)]
pub mod bindings {
    pub mod rdmacm;
    pub mod verbs;
}
pub mod completion;
pub mod connection;
pub mod device;
pub mod error;
pub mod inline;
pub mod library;
pub mod memory;
pub mod queue_pair;

pub use completion::{Completion, CompletionQueue, Outcome, Received, Status, Taken};
pub use connection::{ConnectionId, Event, EventChannel, EventKind};
pub use device::Device;
pub use error::{Error, Unavailable};
pub use library::Verbs;
pub use memory::{Access, ProtectionDomain, Region};
pub use queue_pair::{Limits, Notice, QueuePair, Write};
