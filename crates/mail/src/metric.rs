//! What this crate counts. `docs/operate.md` lists it for operators.

use metrics::{Counter, Gauge, Histogram, Unit};

/// What became of an attempt, or of a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The mail server accepted the mail.
    Sent,
    /// It is tried again.
    Later,
    /// The mail server refused it for good.
    Refused,
    /// Nobody was to be told any more.
    Dropped,
    /// It was too old.
    Expired,
}

/// How many mails, or attempts, ended in this way.
pub(crate) fn mails(outcome: Outcome) -> Counter {
    let outcome = match outcome {
        Outcome::Sent => "sent",
        Outcome::Later => "later",
        Outcome::Refused => "refused",
        Outcome::Dropped => "dropped",
        Outcome::Expired => "expired",
    };
    metrics::counter!("rollcall_mails_total", "outcome" => outcome)
}

/// How long mails waited until they were sent.
pub(crate) fn mail_seconds() -> Histogram {
    metrics::histogram!("rollcall_mail_seconds")
}

/// Whether the mail server can be reached.
pub(crate) fn server_up() -> Gauge {
    metrics::gauge!("rollcall_mail_server_up")
}

/// Says what the figures are, and shows them from the start.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "rollcall_mails_total",
        Unit::Count,
        "Mails by what became of them; later: attempts that are repeated."
    );
    metrics::describe_histogram!(
        "rollcall_mail_seconds",
        Unit::Seconds,
        "Time from a mail's queueing until the mail server accepted it."
    );
    metrics::describe_gauge!(
        "rollcall_mail_server_up",
        Unit::Count,
        "1 if the mail server took the last connection, with its certificate and the password; else 0."
    );
    for outcome in [Outcome::Sent, Outcome::Later, Outcome::Refused, Outcome::Dropped, Outcome::Expired] {
        mails(outcome).increment(0);
    }
    let _ = (mail_seconds(), server_up());
}
