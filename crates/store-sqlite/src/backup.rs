//! A consistent copy of a database, served or not.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::SqliteStore;
use crate::error::OpenError;
use crate::file;

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
    /// The database cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be copied.
    #[error("cannot copy the database")]
    Sqlite(#[from] rusqlite::Error),
}

impl SqliteStore {
    /// Copies the database at `path` to the new file `target`, readable by its owner alone. The copy is of one moment,
    /// whatever a server does meanwhile, and stands under its name only when it is whole and on the disk.
    pub fn backup(path: &Path, target: &Path) -> Result<(), BackupError> {
        let path = file::absolute(path)?;
        let target = file::absolute(target)?;
        let failed = |source| BackupError::File { path: target.clone(), source };
        if target.symlink_metadata().is_ok() {
            return Err(BackupError::Exists(target));
        }
        let folder = target.parent().unwrap_or(Path::new("."));
        // Made for its owner alone, and gone if anything fails before it has its name.
        let copy = tempfile::Builder::new().prefix(".rollcall-backup-").tempfile_in(folder).map_err(failed)?;
        let connection: Connection =
            file::open_reader(&path).map_err(|source| OpenError::Sqlite { path: path.clone(), source })?;
        file::check_owner(&path, &connection)?;
        connection.execute("VACUUM INTO ?1", [path_text(copy.path())?])?;
        copy.as_file().sync_all().map_err(failed)?;
        copy.persist_noclobber(&target).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(target.clone()),
            _ => failed(error.error),
        })?;
        // The name is durable with its folder.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

fn path_text(path: &Path) -> Result<&str, BackupError> {
    path.to_str().ok_or_else(|| BackupError::File {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidFilename, "the name is not valid UTF-8"),
    })
}
