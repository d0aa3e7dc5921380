//! What this crate counts. `docs/operate.md` lists it for operators.

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};
use rollcall_core::Error;
use rollcall_core::store::StoreError;

/// Why a call or a command failed though its sender did nothing wrong.
#[derive(Clone, Copy)]
pub(crate) enum Failure {
    /// The store proved that nothing was done.
    Unavailable,
    /// Whether it was done is not known.
    Unknown,
    /// A defect, or a damaged database.
    Internal,
}

impl Failure {
    /// What `error` is, unless it is the client's business.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Store(error) => Some(Self::of_store(error)),
            Error::Internal(_) => Some(Self::Internal),
            _ => None,
        }
    }

    /// What an error of the store is.
    pub(crate) fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable,
            StoreError::OutcomeUnknown(_) => Self::Unknown,
            StoreError::Internal(_) => Self::Internal,
        }
    }

    /// What it is called.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::Internal => "internal",
        }
    }
}

/// How often something failed in this way.
pub(crate) fn failures(kind: Failure) -> Counter {
    counter!("rollcall_failures_total", "kind" => kind.as_str())
}

/// How often logins were refused for this reason.
pub(crate) fn logins_refused(why: &'static str) -> Counter {
    counter!("rollcall_logins_refused_total", "why" => why)
}

/// How often what was missed was loaded again: of one `session`, or `everything`.
pub(crate) fn stream_reloads(what: &'static str) -> Counter {
    counter!("rollcall_stream_reloads_total", "what" => what)
}

/// How long commands take from the socket to the disk.
pub(crate) fn command_seconds() -> Histogram {
    histogram!("rollcall_command_seconds")
}

/// Says what the figures are, and shows from the start those that may not change for long: the first of a kind is then
/// an increase and not a new series.
pub(crate) fn describe() {
    describe_counter!("rollcall_http_requests_total", Unit::Count, "Requests answered.");
    describe_histogram!("rollcall_http_request_seconds", Unit::Seconds, "Time to the answer.");
    describe_histogram!(
        "rollcall_command_seconds",
        Unit::Seconds,
        "Time from a command's arrival on a socket until it was durable or refused."
    );
    describe_gauge!(
        "rollcall_ready",
        Unit::Count,
        "1 if the server can do its work, as /health/ready says it; else 0."
    );
    describe_gauge!(
        "rollcall_stream_alive_timestamp_seconds",
        Unit::Seconds,
        "When the committed stream last proved that all before was told, in seconds since 1970."
    );
    describe_counter!(
        "rollcall_stream_reloads_total",
        Unit::Count,
        "Times that changes were missed and their session, or everything, was loaded again."
    );
    describe_counter!(
        "rollcall_failures_total",
        Unit::Count,
        "Calls and commands that failed by the store or a defect; unknown: whether they were done."
    );
    describe_counter!("rollcall_panics_total", Unit::Count, "Panics: defects.");
    describe_counter!("rollcall_logins_refused_total", Unit::Count, "Logins refused, by wrong credentials or a limit.");
    describe_counter!("rollcall_signups_refused_total", Unit::Count, "Sign-ups over the limit.");
    describe_counter!("rollcall_mail_requests_refused_total", Unit::Count, "Mails asked for over the limit.");
    describe_counter!("rollcall_messages_refused_total", Unit::Count, "Messages on sockets over the limit.");
    describe_counter!(
        "rollcall_sockets_refused_total",
        Unit::Count,
        "WebSockets not opened because their account has too many."
    );
    for kind in [Failure::Unavailable, Failure::Unknown, Failure::Internal] {
        failures(kind).increment(0);
    }
    for why in ["credentials", "limit"] {
        logins_refused(why).increment(0);
    }
    for what in ["session", "everything"] {
        stream_reloads(what).increment(0);
    }
    for name in [
        "rollcall_panics_total",
        "rollcall_signups_refused_total",
        "rollcall_mail_requests_refused_total",
        "rollcall_messages_refused_total",
        "rollcall_sockets_refused_total",
    ] {
        counter!(name).increment(0);
    }
}
