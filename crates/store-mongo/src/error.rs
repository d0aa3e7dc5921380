//! What the driver's errors mean to others.

use mongodb::bson::Document;
use mongodb::error::{Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure};
use rollcall_core::store::{Cause, StoreError};

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is none that the driver understands.
    #[error("the address of MongoDB is not valid: {0}")]
    Address(String),
    /// The database does not answer, or does not let Rollcall in.
    #[error("MongoDB cannot be used")]
    Database(#[source] Error),
    /// It does not answer in time.
    #[error("MongoDB does not answer in time")]
    Silent,
    /// A single server has no change streams and no transactions.
    #[error(
        "this MongoDB is a single server; Rollcall needs a replica set, of one member at least. Start mongod with \
         `--replSet rs0`, run `rs.initiate()` once in mongosh, and add `?replicaSet=rs0` to the address"
    )]
    Standalone,
    /// The database was being filled from another, and is not complete.
    #[error(
        "this database is an unfinished copy of another; run the same `rollcall copy` again to finish it, or drop it"
    )]
    UnfinishedCopy,
    /// The database to read does not exist.
    #[error("MongoDB holds no database `{name}`; the path of the address says which one is meant")]
    Nothing {
        /// Its name.
        name: String,
    },
    /// It is not clear which database is meant.
    #[error(
        "the address names no database, and this MongoDB holds one of an earlier attendance server, `{earlier}`. \
         Add `/{earlier}` to the address to go on with it, or `/{usual}` to begin a new one"
    )]
    WhichDatabase {
        /// The database that is there.
        earlier: &'static str,
        /// The one that Rollcall takes when nothing is named.
        usual: &'static str,
    },
}

/// Something that is not there any more, or not in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Gone(pub(crate) &'static str);

/// What became of an attempt that did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The database is away: nothing was sent.
    Away(Cause),
    /// It was not done, and may succeed when it is tried again.
    NotDone(Cause),
    /// It may or may not have been done.
    Unknown(Cause),
    /// The database refuses it: a defect, or a right that is missing.
    Refused(Cause),
}

/// An error that the database tells in its answer to a message.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} (code {code})")]
pub(crate) struct ServerError {
    code: i32,
    message: String,
}

impl ServerError {
    pub(crate) fn read(error: &Document) -> Self {
        let message = error.get_str("errmsg").unwrap_or("an error without a message").to_owned();
        Self { code: error.get_i32("code").unwrap_or_default(), message }
    }

    /// Whether something with the same unique value is there already.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.code == DUPLICATE_KEY
    }
}

impl Failure {
    /// What an error says that the database has with one statement of several.
    pub(crate) fn of_server(error: ServerError) -> Self {
        if is_temporary(error.code) { Self::Unknown(error.into()) } else { Self::Refused(error.into()) }
    }

    /// One failure as what another met with it.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Away(cause) => Self::Away(cause.to_string().into()),
            Self::NotDone(cause) => Self::NotDone(cause.to_string().into()),
            Self::Unknown(cause) => Self::Unknown(cause.to_string().into()),
            Self::Refused(cause) => Self::Refused(cause.to_string().into()),
        }
    }

    /// The time is over.
    pub(crate) fn late() -> Self {
        Self::Unknown(Gone("the database did not answer in time").into())
    }

    /// What a driver's error says of a statement outside of transactions.
    pub(crate) fn of(error: Error) -> Self {
        match &*error.kind {
            ErrorKind::ServerSelection { .. } | ErrorKind::Shutdown | ErrorKind::DnsResolve { .. } => {
                Self::Away(error.into())
            }
            ErrorKind::Command(command) if !is_temporary(command.code) => Self::Refused(error.into()),
            ErrorKind::Write(WriteFailure::WriteError(write)) if !is_temporary(write.code) => {
                Self::Refused(error.into())
            }
            ErrorKind::Io(_)
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::InvalidResponse { .. }
            | ErrorKind::Authentication { .. }
            | ErrorKind::Command(_)
            | ErrorKind::Write(_) => Self::Unknown(error.into()),
            _ => Self::Refused(error.into()),
        }
    }

    /// What it says of a statement in a transaction that has not been committed, and so did nothing for good.
    pub(crate) fn before_commit(error: Error) -> Self {
        // Two that make the same thing at once: one of them finds it made when it tries again.
        let passes = error.contains_label(TRANSIENT_TRANSACTION_ERROR) || is_duplicate(&error);
        match Self::of(error) {
            Self::Away(cause) => Self::Away(cause),
            Self::Refused(cause) if !passes => Self::Refused(cause),
            Self::Refused(cause) | Self::Unknown(cause) | Self::NotDone(cause) => Self::NotDone(cause),
        }
    }

    /// What it says of a commit.
    pub(crate) fn of_commit(error: Error) -> Self {
        if error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) {
            Self::Unknown(error.into())
        } else if error.contains_label(TRANSIENT_TRANSACTION_ERROR) {
            Self::NotDone(error.into())
        } else {
            match Self::of(error) {
                // The commit is the second message at least: what was sent before may have been it, sent again.
                Self::Away(cause) => Self::Unknown(cause),
                failure => failure,
            }
        }
    }

    /// What a caller is told who asked to read, or whose write is known not to have been done if it is not unknown.
    pub(crate) fn told(self) -> StoreError {
        match self {
            Self::Away(cause) | Self::NotDone(cause) => StoreError::Unavailable(cause),
            Self::Unknown(cause) => StoreError::OutcomeUnknown(cause),
            Self::Refused(cause) => internal(cause),
        }
    }

    /// What a caller is told who only asked to read.
    pub(crate) fn told_reader(self) -> StoreError {
        match self {
            Self::Unknown(cause) => StoreError::Unavailable(cause),
            failure => failure.told(),
        }
    }
}

/// A defect, logged here, where it is known in full.
pub(crate) fn internal(cause: Cause) -> StoreError {
    tracing::error!(error = &*cause as &dyn std::error::Error, "the database failed");
    StoreError::Internal(cause)
}

/// The server's code for a unique value that is there already.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// Whether something with the same unique value is there already.
pub(crate) fn is_duplicate(error: &Error) -> bool {
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(write)) => write.code == DUPLICATE_KEY,
        ErrorKind::Command(command) => command.code == DUPLICATE_KEY,
        ErrorKind::InsertMany(many) => many.write_errors.iter().flatten().any(|write| write.code == DUPLICATE_KEY),
        _ => false,
    }
}

/// Server errors that say something of the moment and nothing of the statement.
fn is_temporary(code: i32) -> bool {
    matches!(
        code,
        6 | 7
            | 24
            | 50
            | 64
            | 79
            | 89
            | 91
            | 100
            | 112
            | 133
            | 134
            | 175
            | 189
            | 202
            | 237
            | 246
            | 251
            | 262
            | 290
            | 384
            | 462
            | 9001
            | 10058
            | 10107
            | 11600
            | 11601
            | 11602
            | 13435
            | 13436
            | 14031
    )
}
