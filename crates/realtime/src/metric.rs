//! What this crate counts.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::close;

/// Handles are looked up once: counting is one atomic addition.
pub(crate) struct Metrics {
    pub(crate) sockets: Gauge,
    pub(crate) frames_sent: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        describe_gauge!("rollcall_sockets", "WebSocket connections that are open or being opened.");
        describe_counter!("rollcall_frames_sent_total", "Text frames written to sockets.");
        describe_counter!(
            "rollcall_sockets_closed_total",
            "WebSocket connections that ended, by close code (1006: without one; 1005: the peer named none)."
        );
        // Shown from the start, so that the first of a kind is an increase and not a new series.
        for code in
            [1000, 1001, close::PROTOCOL.code, 1005, 1006, close::NOT_UTF8.code, close::POLICY.code].into_iter().chain(
                [close::TOO_BIG, close::RESTART, close::EXPIRED, close::ACCOUNT_CHANGED, close::TOO_SLOW]
                    .map(|close| close.code),
            )
        {
            closes(code).increment(0);
        }
        Self { sockets: gauge!("rollcall_sockets"), frames_sent: counter!("rollcall_frames_sent_total") }
    }
}

/// Counts a connection that ended.
pub(crate) fn closed(code: u16) {
    closes(code).increment(1);
}

fn closes(code: u16) -> Counter {
    // A peer may name any number; each would be a series of its own.
    let label = match code {
        1000..=1015 | 4001 | 4003 | 4008 => code.to_string(),
        _ => "other".to_owned(),
    };
    counter!("rollcall_sockets_closed_total", "code" => label)
}
