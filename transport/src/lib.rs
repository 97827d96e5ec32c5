//! Everything between two hosts: the relay protocol as a state machine without I/O, the driver that runs it, and
//! the links over which it mirrors rings.
//!
//! Source ring and mirror ring have equal capacity and the same positions, so to append is to make a range equal over
//! there, to resume is to compare integers, and to send again changes nothing.
//!
//! | question | module |
//! |---|---|
//! | What do relays say to each other, byte by byte? | [`wire`] |
//! | What was agreed with a peer, what may be sent, when is it given up? | [`session`] |
//! | How does a source ring meet a mirror? | [`pairing`] |
//! | How do bytes get from ring to ring? | [`link`] |
//! | Who polls, who sleeps, who makes next generations? | [`relay`] |
//! | Who is let in, and how is it made sure who that is? | `door`, [`tls`] |
//! | How is all that tried under every fault? | `sim`, a feature for tests |

mod door;
pub mod link;
pub mod network;
pub mod pairing;
pub mod relay;
pub mod session;
#[cfg(feature = "sim")]
pub mod sim;
mod slots;
pub mod tcp_network;
pub mod tls;
mod ucx_network;
mod verbs_network;
pub mod wire;

pub(crate) use slots::BySlot;
