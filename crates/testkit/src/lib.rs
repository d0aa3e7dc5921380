//! Development only: the store conformance suite, fixtures, the spawned-server harness, and real servers of others.

pub mod cluster;
#[expect(clippy::unwrap_used, reason = "a case that finds nothing there fails, as it should")]
pub mod conformance;
pub mod history;
#[cfg(feature = "mongo")]
pub mod mongo;
mod obtain;
mod python;
pub mod redis;
pub mod server;
pub mod smtp;
mod watched;
