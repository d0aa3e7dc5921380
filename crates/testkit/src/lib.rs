//! Development only: the store conformance suite, fixtures and the spawned-server harness.

pub mod server;
