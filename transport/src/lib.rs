//! Everything between two hosts: the relay protocol as a state machine without I/O, the driver that runs it, and
//! the links over which it mirrors rings (tcp, verbs, ucx, and a simulated one).
//!
//! This package fixes where that code lives and on what it depends; the code itself has not landed yet. What the
//! relay needs of a ring is in `tbus`: [`tbus::MirrorWriter`] writes a mirror ring by position and publishes it.
