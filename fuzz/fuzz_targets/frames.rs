//! Text messages of a WebSocket.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rollcall_api::fuzzing::frame(bytes));
