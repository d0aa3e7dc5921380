//! Rollcall, a real-time attendance server: configuration, command line, telemetry, lifecycle.
