//! `tbusperf`: the demonstration and the measurements.
//!
//! A measurement goes [`options`] → [`measure`], with a [`mod@bench`] of two processes and the [`channel`] under test
//! between them → [`report`] → [`text`], [`plot`], percentile texts and JSON ([`output`]); [`compare`] reads two of the
//! last.

pub mod audit;
pub mod bare_ucx;
pub mod bench;
pub mod channel;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod demo;
mod failure;
pub mod limit;
pub mod machine;
pub mod measure;
pub mod options;
pub mod output;
pub mod pictures;
pub mod plot;
pub mod rdma;
pub mod remote;
pub mod report;
pub mod run;
pub mod schedule;
pub mod scratch;
pub mod series;
pub mod text;
pub mod times;
mod watch;
pub mod worker;

pub use failure::{Failure, status};

/// A result whose error is a text for people, with its causes.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
