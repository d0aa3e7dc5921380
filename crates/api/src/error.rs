//! What a client is told when something is refused or fails: the one place for statuses and texts.

use std::time::{Duration, Instant};

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use rollcall_core::store::StoreError;
use rollcall_core::{Error, FieldError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::metric;
use crate::middleware::in_request;

/// After how many seconds a client may try again when nothing better is known.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// Everything that an HTTP call can end with but success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// A service refused or failed.
    #[error(transparent)]
    Service(#[from] Error),
    /// The body is not what the call takes.
    #[error("invalid request schema")]
    Schema(Vec<Detail>),
    /// No such path.
    #[error("not found")]
    NotFound,
    /// The path exists, the method does not.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// The body is larger than [`crate::extract::MAX_BODY_BYTES`].
    #[error("request too large")]
    TooLarge,
    /// The server was told to end: asked for on purpose, and no news in the log.
    #[error("shutting down")]
    ShuttingDown,
    /// Plain HTTP where there is only HTTPS.
    #[error("plain HTTP where HTTPS is served")]
    NotHttps,
    /// The request is for a host that this server is not.
    #[error("misdirected request")]
    Misdirected,
    /// A limit is used up.
    #[error("too many requests")]
    TooManyRequests {
        /// When there is room again.
        retry_after: Duration,
    },
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Service(error.into())
    }
}

/// What is wrong with one member of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Detail {
    /// The member's name, with dots where it lies deeper; empty for the body as a whole.
    pub field: String,
    /// What is wrong, or what would be right.
    pub message: String,
}

impl From<FieldError> for Detail {
    fn from(error: FieldError) -> Self {
        Self { field: error.field.to_owned(), message: error.message }
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// Always `false`.
    #[schema(example = false)]
    pub success: bool,
    /// What is wrong; the texts are part of the contract.
    #[schema(example = "Unauthorized, token missing or invalid")]
    pub error: &'static str,
    /// Which members are wrong, where that helps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub details: Vec<Detail>,
}

/// The status and text of a service's error.
fn public(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::Invalid(_) => (StatusCode::BAD_REQUEST, "Invalid request schema"),
        Error::EmailExists => (StatusCode::BAD_REQUEST, "Email already exists"),
        Error::InvalidCredentials => (StatusCode::BAD_REQUEST, "Invalid email or password"),
        Error::NotAStudent => (StatusCode::BAD_REQUEST, "User is not a student"),
        Error::Unauthenticated => (StatusCode::UNAUTHORIZED, "Unauthorized, token missing or invalid"),
        Error::TeacherRequired => (StatusCode::FORBIDDEN, "Forbidden, teacher access required"),
        Error::StudentRequired => (StatusCode::FORBIDDEN, "Forbidden, student access required"),
        Error::NotClassTeacher => (StatusCode::FORBIDDEN, "Forbidden, not class teacher"),
        Error::NotEnrolled => (StatusCode::FORBIDDEN, "Forbidden, not enrolled in class"),
        Error::SignupClosed => (StatusCode::FORBIDDEN, "Forbidden, teacher sign-up is closed"),
        Error::ClassNotFound => (StatusCode::NOT_FOUND, "Class not found"),
        Error::StudentNotFound => (StatusCode::NOT_FOUND, "Student not found"),
        Error::SessionNotFound => (StatusCode::NOT_FOUND, "Not found"),
        Error::NoActiveSession { .. } => (StatusCode::BAD_REQUEST, "No active attendance session"),
        Error::StudentNotEnrolled { .. } => (StatusCode::BAD_REQUEST, "Student not enrolled in class"),
        Error::InvalidLink => (StatusCode::BAD_REQUEST, "Invalid or expired link"),
        Error::MailNotSetUp => (StatusCode::NOT_IMPLEMENTED, "E-mail is not set up"),
        Error::SessionFull { .. } => (StatusCode::BAD_REQUEST, "Session is full, finish it"),
        Error::Busy { .. } | Error::Store(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable")
        }
        Error::Store(StoreError::Internal(_)) | Error::Internal(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
        }
    }
}

/// The text of a service's error on a socket.
pub(crate) fn socket_text(error: &Error) -> &'static str {
    match error {
        // Proven by the store: a client may say so and try again.
        Error::Store(StoreError::Unavailable(_)) => "Not recorded, try again",
        Error::Store(StoreError::OutcomeUnknown(_)) => "Outcome unknown, still checking",
        Error::Invalid(_) => "Invalid message format",
        other => public(other).1,
    }
}

/// How often at most is logged that the store did not answer: a full disk refuses every mark of a school.
const STORE_LINES: Duration = Duration::from_secs(10);

/// When the last such line was written, and how many were left out since.
static STORE_FAILURES: Mutex<Bounded> = Mutex::new(Bounded { last: None, left_out: 0 });

/// Lets one line pass in [`STORE_LINES`], and counts the others.
struct Bounded {
    last: Option<Instant>,
    left_out: u64,
}

impl Bounded {
    /// How many were left out before this one, if it may pass.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < STORE_LINES) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Logs and counts an error that is Rollcall's own fault, or the database's, with its cause; others are the client's
/// business.
pub(crate) fn log_failure(error: &Error) {
    if let Some(kind) = metric::Failure::of(error) {
        metric::failures(kind).increment(1);
    }
    match error {
        Error::Store(failure @ StoreError::Internal(cause)) => {
            tracing::error!(error = %failure, cause = %chain(cause.as_ref()), "a call failed");
        }
        Error::Store(failure @ (StoreError::Unavailable(cause) | StoreError::OutcomeUnknown(cause))) => {
            let passed = STORE_FAILURES.lock().pass(Instant::now());
            if let Some(left_out) = passed {
                let cause = chain(cause.as_ref());
                tracing::warn!(error = %failure, cause, left_out, "the store did not answer as it should");
            }
        }
        Error::Internal(why) => tracing::error!(error = %why, "a call failed"),
        // One line for each would be a flood in the flood; the figures say how many.
        Error::Busy { retry_after } => tracing::debug!(?retry_after, "password hashing is overloaded"),
        _ => {}
    }
}

/// An error and all that caused it, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ((status, error), details, retry_after) = match self {
            Self::Service(error) => {
                in_request(|| log_failure(&error));
                let public = public(&error);
                let retry_after = match &error {
                    Error::Busy { retry_after } => Some(*retry_after),
                    _ => (public.0 == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_SOON),
                };
                let details = match error {
                    Error::Invalid(fields) => fields.into_iter().map(Detail::from).collect(),
                    _ => Vec::new(),
                };
                (public, details, retry_after)
            }
            Self::Schema(details) => ((StatusCode::BAD_REQUEST, "Invalid request schema"), details, None),
            Self::NotFound => ((StatusCode::NOT_FOUND, "Not found"), Vec::new(), None),
            Self::MethodNotAllowed => ((StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"), Vec::new(), None),
            Self::TooLarge => ((StatusCode::PAYLOAD_TOO_LARGE, "Request too large"), Vec::new(), None),
            Self::ShuttingDown => {
                ((StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"), Vec::new(), Some(RETRY_SOON))
            }
            Self::NotHttps => ((StatusCode::BAD_REQUEST, "HTTPS required"), Vec::new(), None),
            Self::Misdirected => ((StatusCode::MISDIRECTED_REQUEST, "Misdirected request"), Vec::new(), None),
            Self::TooManyRequests { retry_after } => {
                ((StatusCode::TOO_MANY_REQUESTS, "Too many requests"), Vec::new(), Some(retry_after))
            }
        };
        let mut response = (status, Json(ErrorBody { success: false, error, details })).into_response();
        if let Some(wait) = retry_after {
            // Whole seconds, rounded up: RFC 9110, section 10.2.3.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_a_line_now_and_then() {
        let mut bounded = Bounded { last: None, left_out: 0 };
        let start = Instant::now();
        assert_eq!(bounded.pass(start), Some(0));
        assert!((1..1_000).all(|n| bounded.pass(start + STORE_LINES * n / 1_000).is_none()));
        assert_eq!(bounded.pass(start + STORE_LINES), Some(999));
        assert_eq!(bounded.pass(start + 3 * STORE_LINES), Some(0));
    }
}
