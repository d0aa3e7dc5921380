//! The hub and the socket actor, behind a real server on loopback, heard by real clients.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod hub;
mod peers;
mod protocol;
mod support;
