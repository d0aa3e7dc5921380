//! What a service answers when it does not do what was asked.

use std::time::Duration;

use crate::id::ClassId;
use crate::session::Revision;
use crate::store::StoreError;

/// A value that breaks a rule, by the name of the field that carried it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as the client named it.
    pub field: &'static str,
    /// What would be right, as a sentence without a full stop.
    pub message: String,
}

/// The commit after which a refusal was decided: a client hears it after everything up to then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The class whose session was looked at.
    pub class_id: ClassId,
    /// The class's revision at that moment.
    pub revision: Revision,
}

/// Why a service did not do what was asked. The doors turn it into their own words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Values that break rules; never empty.
    #[error("invalid input: {0:?}")]
    Invalid(Vec<FieldError>),
    /// Another account has this address.
    #[error("the e-mail address is taken")]
    EmailExists,
    /// The address is unknown or the password wrong; which of the two is nobody's business.
    #[error("wrong e-mail address or password")]
    InvalidCredentials,
    /// No valid token, or one of an account that is disabled, gone or has revoked it.
    #[error("not signed in")]
    Unauthenticated,
    /// Only teachers may.
    #[error("teacher access required")]
    TeacherRequired,
    /// Only students may.
    #[error("student access required")]
    StudentRequired,
    /// The class is somebody else's.
    #[error("not the class's teacher")]
    NotClassTeacher,
    /// The student is not in the class.
    #[error("not enrolled in the class")]
    NotEnrolled,
    /// New teachers are not let in, or not without the right code.
    #[error("teacher sign-up is closed")]
    SignupClosed,
    /// No such class, or an archived one.
    #[error("class not found")]
    ClassNotFound,
    /// No such account.
    #[error("student not found")]
    StudentNotFound,
    /// No such session of the class.
    #[error("session not found")]
    SessionNotFound,
    /// The account is not a student's.
    #[error("the user is not a student")]
    NotAStudent,
    /// Nothing is open that the command could concern.
    #[error("no active session")]
    NoActiveSession {
        /// What was looked at, where that is known.
        seen: Option<Seen>,
    },
    /// The student named in a mark is not in the session's class.
    #[error("student not enrolled in the class")]
    StudentNotEnrolled {
        /// What was looked at.
        seen: Option<Seen>,
    },
    /// The session's log holds as many entries as a session may have; only DONE still fits.
    #[error("the session's log is full")]
    SessionFull {
        /// What was looked at.
        seen: Option<Seen>,
    },
    /// The operator has not said how mails are sent.
    #[error("e-mail is not set up")]
    MailNotSetUp,
    /// The token of a mail is wrong, expired, used, or replaced by a newer one.
    #[error("the link is invalid or has expired")]
    InvalidLink,
    /// More work waits than can be done soon.
    #[error("busy, try again in {retry_after:?}")]
    Busy {
        /// When it makes sense to try again.
        retry_after: Duration,
    },
    /// The store is away, full or failed. What was asked was not done, unless the store says otherwise.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A broken invariant, for the log and never for a client.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// One broken rule.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field, message: message.into() }])
    }

    /// The commit that the refusal is based on, if any.
    pub fn seen(&self) -> Option<Seen> {
        match self {
            Self::NoActiveSession { seen } | Self::StudentNotEnrolled { seen } | Self::SessionFull { seen } => *seen,
            _ => None,
        }
    }
}
