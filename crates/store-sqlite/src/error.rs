//! What SQLite's errors mean to others.

use std::path::PathBuf;

use rollcall_core::store::StoreError;
use rusqlite::ErrorCode;

/// Why the database file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its folder cannot be made or opened.
    #[error("cannot open {path}")]
    File {
        /// What was to be opened.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process serves this file.
    #[error("another Rollcall serves {path} already; stop it first, or give this one a database of its own")]
    AlreadyServed {
        /// The database.
        path: PathBuf,
    },
    /// The file was being filled from another database, and is not complete.
    #[error(
        "{path} is an unfinished copy of another database; run the same `rollcall copy` again to finish it, or remove it"
    )]
    UnfinishedCopy {
        /// The database.
        path: PathBuf,
    },
    /// The file was made by a later version of Rollcall.
    #[error(
        "{path} was made by a newer Rollcall (schema {found}, this one knows {known}); start that version or a newer one"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// The file's schema.
        found: u32,
        /// The newest schema that this program knows.
        known: u32,
    },
    /// The file is a database of another program.
    #[error("{path} is a database of another program; give Rollcall a file of its own")]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// The file system cannot hold a write-ahead log, as some network file systems.
    #[error("the file system of {path} cannot hold SQLite's log; put the database on a local disk")]
    NoLog {
        /// The database.
        path: PathBuf,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot bring {path} up to date")]
    Migration {
        /// The database.
        path: PathBuf,
        /// What went wrong.
        source: rusqlite_migration::Error,
    },
    /// SQLite refuses the file.
    #[error("SQLite refuses {path}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Something that went away while it was needed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Gone(pub(crate) &'static str);

/// What `error` means to a caller for whom nothing was done. A defect is logged here, where it is known in full.
pub(crate) fn not_done(error: rusqlite::Error) -> StoreError {
    if is_temporary(&error) {
        StoreError::Unavailable(error.into())
    } else {
        tracing::error!(error = &error as &dyn std::error::Error, "the database failed");
        StoreError::Internal(error.into())
    }
}

/// Whether the world around may change such that the same statement works later.
pub(crate) fn is_temporary(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted
        )
    )
}
