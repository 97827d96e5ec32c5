//! `tbusperf`: the demonstration and the measurements.

pub mod audit;
pub mod clock;
pub mod demo;
pub mod limit;
pub mod measure;
pub mod scratch;
pub mod worker;

/// A result whose error is a text for people, with its causes.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
