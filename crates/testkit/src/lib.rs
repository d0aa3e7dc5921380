//! Development only: the store conformance suite, fixtures and the spawned-server harness.
