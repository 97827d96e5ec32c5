//! What the tools of tbus are made of; each executable in `src/bin` is a thin shell around a module here.

pub mod columns;
pub mod command;
pub mod daemon;
pub mod manager;
pub mod manual;
pub mod perf;
pub mod routes;
pub mod terminal;
