//! Development only: the store conformance suite, fixtures and the spawned-server harness.

#[expect(clippy::unwrap_used, reason = "a case that finds nothing there fails, as it should")]
pub mod conformance;
#[cfg(feature = "mongo")]
pub mod mongo;
pub mod server;
