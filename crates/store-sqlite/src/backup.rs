//! Consistent copies of a database, served or not.
//!
//! A copy is made by `VACUUM INTO` on a connection that reads: it is of one snapshot, and the writer goes on as if
//! nobody looked. SQLite's other way, its backup interface in steps, begins anew whenever somebody else wrote between
//! two of them, and while a school takes attendance that is always. The price of one long read: what is committed
//! meanwhile stays in the log until the copy is whole.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::SqliteStore;
use crate::doctor::free_bytes;
use crate::error::OpenError;
use crate::file;

/// What a file ends in while it is copied.
const PART: &str = ".part";
/// How many of SQLite's instructions run between two looks whether to stop: less than a millisecond.
const INSTRUCTIONS: i32 = 1_000;
/// How much room a backup leaves on its disk at least, which may be the database's too: marks go before backups.
const ROOM_LEFT: u64 = 64 << 20;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something has that name already.
    #[error("{0} exists already; a backup replaces nothing")]
    Exists(PathBuf),
    /// The copy cannot be written.
    #[error("cannot write {path}")]
    File {
        /// What was to be written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The copy would fill its disk.
    #[error("{folder} has {free} bytes free, and the backup needs up to {needed}; make room")]
    NoRoom {
        /// Where the copy was to be.
        folder: PathBuf,
        /// How many bytes are free there.
        free: u64,
        /// How many bytes have to be.
        needed: u64,
    },
    /// The copy is not as it should be, and so neither is its source.
    #[error("{path} is damaged ({problems})")]
    Damaged {
        /// What was copied.
        path: PathBuf,
        /// What SQLite found.
        problems: String,
    },
    /// The database cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was asked to stop before it was done.
    #[error("stopped before it was whole")]
    Stopped,
    /// The database cannot be copied.
    #[error("cannot copy the database")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::Stopped,
            _ => Self::Sqlite(error),
        }
    }
}

impl SqliteStore {
    /// Copies the database at `path` to the new file `target`, readable by its owner alone, and answers with its size
    /// in bytes. The copy is of one moment, whatever a server does meanwhile. It was checked, and stands under its name
    /// only when it is whole and on the disk. Gives up when `stop` says so.
    pub fn backup(
        path: &Path,
        target: &Path,
        stop: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Result<u64, BackupError> {
        let path = file::absolute(path)?;
        let target = file::absolute(target)?;
        let failed = |source| BackupError::File { path: target.clone(), source };
        if target.symlink_metadata().is_ok() {
            return Err(BackupError::Exists(target));
        }
        let folder = file::folder(&target);
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let needed = size(&path) + size(&file::beside(&path, "-wal")) + ROOM_LEFT;
        if let Some(free) = free_bytes(folder)
            && free < needed
        {
            return Err(BackupError::NoRoom { folder: folder.to_owned(), free, needed });
        }
        let copy = copy(&path, &target, stop)?;
        let bytes = size(copy.path());
        copy.persist_noclobber(&target).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(target.clone()),
            _ => failed(error.error),
        })?;
        // The name is durable with its folder.
        file::sync(folder).map_err(failed)?;
        Ok(bytes)
    }

    /// The name that a copy was to get which was cut off by a crash, if `name` is what it left.
    pub fn cut_off(name: &str) -> Option<&str> {
        let (target, _random) = name.strip_prefix('.')?.strip_suffix(PART)?.rsplit_once('.')?;
        Some(target)
    }
}

/// A checked copy of the database at `path` beside `target`, on the disk but not under that name yet. It goes if it is
/// dropped.
pub(crate) fn copy(
    path: &Path,
    target: &Path,
    stop: impl Fn() -> bool + Clone + Send + 'static,
) -> Result<NamedTempFile, BackupError> {
    let failed = |source| BackupError::File { path: target.to_owned(), source };
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".");
    // Its owner's alone from the start.
    let copy =
        tempfile::Builder::new().prefix(&prefix).suffix(PART).tempfile_in(file::folder(target)).map_err(failed)?;
    let schema = {
        let connection = open(path, stop.clone())?;
        file::check_owner(path, &connection)?;
        connection.execute("VACUUM INTO ?1", [path_text(copy.path())?])?;
        file::schema_version(&connection)?
    };
    check(path, copy.path(), schema, stop.clone())?;
    if stop() {
        return Err(BackupError::Stopped);
    }
    copy.as_file().sync_all().map_err(failed)?;
    Ok(copy)
}

/// Reads the whole `copy` of `path`.
fn check(path: &Path, copy: &Path, schema: u32, stop: impl Fn() -> bool + Send + 'static) -> Result<(), BackupError> {
    let connection = open(copy, stop)?;
    let mut problems: Vec<String> = connection
        .prepare("PRAGMA integrity_check(20)")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    problems.retain(|line| line != "ok");
    // A server that starts may bring the source up to date meanwhile.
    if file::schema_version(&connection)? > schema {
        problems.push("its schema is not that of its source".to_owned());
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(BackupError::Damaged { path: path.to_owned(), problems: problems.join("; ") })
}

fn open(path: &Path, stop: impl FnMut() -> bool + Send + 'static) -> Result<rusqlite::Connection, BackupError> {
    let connection = file::open_reader(path).map_err(|source| OpenError::Sqlite { path: path.to_owned(), source })?;
    connection.progress_handler(INSTRUCTIONS, Some(stop))?;
    Ok(connection)
}

fn path_text(path: &Path) -> Result<&str, BackupError> {
    path.to_str().ok_or_else(|| BackupError::File {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidFilename, "the name is not valid UTF-8"),
    })
}
