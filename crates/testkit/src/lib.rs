//! Development only: the store conformance suite, fixtures and the spawned-server harness.

pub mod cluster;
#[expect(clippy::unwrap_used, reason = "a case that finds nothing there fails, as it should")]
pub mod conformance;
pub mod history;
#[cfg(feature = "mongo")]
pub mod mongo;
mod python;
pub mod server;
pub mod smtp;
