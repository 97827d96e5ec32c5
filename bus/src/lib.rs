//! **tbus**: message channels between processes, in shared memory.
//!
//! Two processes that talk share two lock-free rings, one each way. A message that was accepted is in shared
//! memory and survives a `kill -9` of either process at any instruction: nothing is lost, torn, duplicated or
//! reordered in the ring.
//!
//! ```
//! use tbus::{Address, Directory, Ring, RingSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = std::env::temp_dir().join(format!("tbus-doc-{}", std::process::id()));
//! let directory = Directory::create(&scratch)?;
//! let ring = Ring::create(&directory, &RingSpec::local(1 << 20, Address(0x101), Address(0x301)))?;
//!
//! // In one process …
//! let mut sender = ring.sender()?;
//! sender.try_send(b"hello")?;
//!
//! // … and in another, by Ring::open(&directory, uuid).
//! let mut receiver = ring.receiver()?;
//! let mut buffer = [0; 64];
//! let length = receiver.try_recv(&mut buffer)?;
//! assert_eq!(&buffer[..length], b"hello");
//! # std::fs::remove_dir_all(&scratch)?;
//! # Ok(())
//! # }
//! ```
//!
//! Where to look: `layout.rs` is the memory layout, `ring/` the algorithm, `shm.rs` the mappings, `wait.rs`
//! sleeping and waking, `locks.rs` the roles, `ring_file.rs` creation and opening with every check.

#![cfg_attr(loom, allow(dead_code, unused_imports))]
// Writing maps is for those who read configurations; the checks run with that feature on.
#![cfg_attr(not(feature = "config"), allow(dead_code))]

mod address;
#[cfg(feature = "config")]
pub mod config;
mod error;
#[cfg(not(loom))]
mod hops;
pub mod layout;
mod ring;
mod route;
mod sync;
mod wait;

#[cfg(not(loom))]
mod access;
#[cfg(not(loom))]
mod bus;
#[cfg(not(loom))]
pub mod codes;
#[cfg(not(loom))]
mod directory;
#[cfg(not(loom))]
mod fair;
#[cfg(not(loom))]
mod files;
#[cfg(not(loom))]
mod fork;
#[cfg(not(loom))]
pub mod gcim;
#[cfg(all(feature = "config", not(loom)))]
pub mod generation;
#[cfg(not(loom))]
mod glance;
#[cfg(not(loom))]
pub mod grm;
#[cfg(not(loom))]
mod locks;
#[cfg(all(feature = "config", not(loom)))]
pub mod manage;
#[cfg(all(feature = "config", not(loom)))]
pub mod manage_routes;
#[cfg(not(loom))]
mod map;
#[cfg(not(loom))]
mod mirror;
#[cfg(not(loom))]
mod news;
#[cfg(not(loom))]
mod ready_fd;
#[cfg(not(loom))]
mod receiver;
#[cfg(not(loom))]
mod ring_file;
#[cfg(not(loom))]
mod sender;
#[cfg(not(loom))]
mod shm;
#[cfg(not(loom))]
mod source;
#[cfg(not(loom))]
mod sys;

/// Random bits from the kernel, which nobody can guess.
///
/// # Panics
/// If the kernel has none, which Linux does not do after it has booted.
#[cfg(not(loom))]
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    sys::random(&mut bytes).expect("the kernel gives random bits");
    u64::from_le_bytes(bytes)
}

/// How many forks lie between the process that first attached to a bus and this one. A handle is of use only while this is what it
/// was when the handle was made; who must not touch a handle, or a lock around it, in a child compares.
#[cfg(not(loom))]
#[inline]
pub fn forks() -> u32 {
    fork::generation()
}

pub use address::{Address, AddressError, ShownAddress, Template};
pub use layout::Cursor;
pub use ring::Damage;
#[cfg(not(loom))]
pub use {
    bus::{Bus, Endpoint, Incoming},
    directory::{Directory, parse_key},
    error::{Error, Result, TryRecvError, TrySendError},
    fair::{FairReceiver, MESSAGES_PER_TURN, Turn},
    glance::Glance,
    hops::{Hops, MAX_HOPS},
    mirror::MirrorWriter,
    news::NewsReader,
    ready_fd::ReadyFd,
    receiver::{Batch, Message, Receiver},
    ring_file::{Gap, Kind, Ring, RingSpec, SideStatus, Status, Uuid},
    sender::{Extensions, Reservation, Sender},
    shm::Region,
    source::SourceReader,
    wait::LONGEST_SLEEP,
};
