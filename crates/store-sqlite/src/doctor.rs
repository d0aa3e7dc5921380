//! What can be said about a database file without serving it.

use std::path::Path;

use crate::SqliteStore;
use crate::error::OpenError;
use crate::{file, transfer};

/// The state of a database file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The file's schema.
    pub schema: u32,
    /// The newest schema that this program knows.
    pub known_schema: u32,
    /// The size of the database file in bytes.
    pub file_bytes: u64,
    /// The size of the log that is not in the database file yet, in bytes.
    pub log_bytes: u64,
    /// What SQLite's quick check found wrong; empty when nothing is.
    pub damage: Vec<String>,
    /// Whether it is an unfinished copy of another database, which cannot be served.
    pub unfinished_copy: bool,
    /// How much room its folder has left in bytes, where the system says so.
    pub free_bytes: Option<u64>,
}

impl SqliteStore {
    /// Looks at the database file at `path`, which must exist. Reads all of it, and changes nothing.
    pub fn examine(path: &Path) -> Result<Report, OpenError> {
        let path = &file::absolute(path)?;
        let size = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
        let file_bytes = size(path).map_err(|source| OpenError::File { path: path.clone(), source })?;
        let sqlite = |source| OpenError::Sqlite { path: path.clone(), source };
        let connection = file::open_reader(path).map_err(sqlite)?;
        file::check_owner(path, &connection)?;
        let check = || -> rusqlite::Result<Vec<String>> {
            connection.prepare("PRAGMA quick_check(20)")?.query_map([], |row| row.get(0))?.collect()
        };
        let mut damage = check().map_err(sqlite)?;
        damage.retain(|line| line != "ok");
        let schema = file::schema_version(&connection).map_err(sqlite)?;
        // Older files, and those of newer programs, may have no place where it would be said.
        let known = schema == file::known_schema();
        Ok(Report {
            schema,
            known_schema: file::known_schema(),
            file_bytes,
            log_bytes: size(&file::beside(path, "-wal")).unwrap_or(0),
            damage,
            unfinished_copy: known && transfer::marker(&connection).map_err(sqlite)?.is_some(),
            free_bytes: free_bytes(path),
        })
    }
}

#[cfg(unix)]
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}

#[cfg(not(unix))]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}
