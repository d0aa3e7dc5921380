//! A backup put in the place of a database.
//!
//! The database's name leads to a whole database at every moment: to what was there, then, by one renaming, to the
//! backup's copy. What was there is kept under another name.

use std::fs::{File, hard_link, metadata, remove_file, rename};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::backup::{BackupError, copy};
use crate::error::{OpenError, is_temporary};
use crate::{SqliteStore, file, transfer};

/// What stands between the database's name and the time in the name of what was kept.
const BEFORE: &str = ".before-";
/// What every SQLite database begins with, and how long its header is.
const MAGIC: &[u8] = b"SQLite format 3\0";
const HEADER: usize = 100;
/// How long to wait for another program to let go of the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing was restored. The database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup is not there, or is the database itself.
    #[error("{path} cannot be restored: {why}")]
    Unfit {
        /// The backup.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Something that is no server has the database open.
    #[error("another program has {path} open; end it first")]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The backup cannot be copied beside the database, or is damaged.
    #[error(transparent)]
    Copy(#[from] BackupError),
    /// The backup cannot be served by this program, or a server has the database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is there cannot be looked at.
    #[error("SQLite cannot finish the log of {path}")]
    Present {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A name cannot be made.
    #[error("cannot put {path} in its place")]
    Name {
        /// What was to be there.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl SqliteStore {
    /// Puts a copy of the database in the file `backup` in the place of the one at `path`, brought up to date, and
    /// answers where what was there is kept: under its name with `.before-` and `time` behind it. No server may have
    /// it. May be killed at any moment: the one or the other is in place then, whole.
    pub fn restore(backup: &Path, path: &Path, time: &str) -> Result<Option<PathBuf>, RestoreError> {
        let (backup, path) = (file::absolute(backup)?, file::absolute(path)?);
        let unfit = |why: String| RestoreError::Unfit { path: backup.clone(), why };
        let given = metadata(&backup).map_err(|error| unfit(error.to_string()))?;
        if !given.is_file() {
            return Err(unfit("it is no file".to_owned()));
        }
        if file::identity(&path).is_ok_and(|place| place == (given.dev(), given.ino())) {
            return Err(unfit("it is the database itself".to_owned()));
        }
        let folder = file::folder(&path);
        let name = |path: &Path, source| RestoreError::Name { path: path.to_owned(), source };
        file::create_folder(folder).map_err(|source| name(folder, source))?;
        let _lock = file::lock(&path)?;
        // A server follows a link to its database too.
        let place = path.canonicalize().unwrap_or_else(|_| path.clone());
        clear(&place);
        let restored = put(&backup, &place, time);
        if restored.is_err() {
            clear(&place);
        }
        // Made here, it would be shut to the server if that is another user.
        if let Ok(owner) = metadata(&place) {
            give(&file::beside(&path, ".lock"), owner.uid(), owner.gid())
                .map_err(|source| name(&file::beside(&path, ".lock"), source))?;
        }
        restored
    }
}

fn put(backup: &Path, path: &Path, time: &str) -> Result<Option<PathBuf>, RestoreError> {
    let folder = file::folder(path);
    let named = |path: &Path, source| RestoreError::Name { path: path.to_owned(), source };
    let copy = copy(backup, path, || false)?;
    up_to_date(backup, copy.path())?;
    copy.as_file().sync_all().map_err(|source| named(path, source))?;
    let owner = metadata(path).or_else(|_| metadata(folder)).map_err(|source| named(path, source))?;
    give(copy.path(), owner.uid(), owner.gid()).map_err(|source| named(path, source))?;

    let kept = file::beside(path, &format!("{BEFORE}{time}"));
    let present = path.symlink_metadata().is_ok();
    if present {
        finish_log(path)?;
        hard_link(path, &kept).map_err(|source| named(&kept, source))?;
    }
    // The log of a database that is too damaged to take it in, or was removed. It must not meet another database.
    for part in ["-wal", "-journal"] {
        match rename(file::beside(path, part), file::beside(&kept, part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(&kept, error)),
            _ => {}
        }
    }
    match remove_file(file::beside(path, "-shm")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(path, error)),
        _ => {}
    }
    file::sync(folder).map_err(|source| named(&kept, source))?;
    copy.persist(path).map_err(|error| named(path, error.error))?;
    file::sync(folder).map_err(|source| named(path, source))?;
    Ok(present.then_some(kept))
}

/// Brings the copy of `backup` up to this program's schema, before anything is given up for it.
fn up_to_date(backup: &Path, copy: &Path) -> Result<(), RestoreError> {
    let sqlite = |source| RestoreError::Open(OpenError::Sqlite { path: backup.to_owned(), source });
    let told = |error| match error {
        // By the name that the operator knows.
        OpenError::Newer { found, known, .. } => OpenError::Newer { path: backup.to_owned(), found, known },
        OpenError::Migration { source, .. } => OpenError::Migration { path: backup.to_owned(), source },
        error => error,
    };
    let found = file::open_reader(copy).and_then(|connection| file::schema_version(&connection)).map_err(sqlite)?;
    if found == 0 {
        // An empty file is an empty database to SQLite.
        let why = "it is empty".to_owned();
        return Err(RestoreError::Unfit { path: backup.to_owned(), why });
    }
    let connection = file::open_writer(copy).map_err(told)?;
    transfer::refuse_unfinished(backup, &connection)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(sqlite)
}

/// Takes what the log of the present database holds into its file, so that the file alone is all of it.
fn finish_log(path: &Path) -> Result<(), RestoreError> {
    let in_use = || RestoreError::InUse { path: path.to_owned() };
    // Beside a file that was cut to nothing SQLite would throw the log away, which may be all that is left.
    if !is_database(path).map_err(|source| RestoreError::Name { path: path.to_owned(), source })? {
        return Ok(());
    }
    let checkpoint = || -> rusqlite::Result<bool> {
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(PATIENCE)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
    };
    match checkpoint() {
        // The last one that has a database open removes the log.
        Ok(busy) if busy || file::beside(path, "-wal").exists() => Err(in_use()),
        Ok(_) => Ok(()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Err(in_use()),
        Err(source) if is_temporary(&source) => Err(RestoreError::Present { path: path.to_owned(), source }),
        // Too damaged for that, which may be why something is restored. It is kept with its log.
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the present database is damaged; it is kept as it is"
            );
            Ok(())
        }
    }
}

fn is_database(path: &Path) -> io::Result<bool> {
    let mut beginning = Vec::new();
    File::open(path)?.take(HEADER as u64).read_to_end(&mut beginning)?;
    Ok(beginning.len() == HEADER && beginning.starts_with(MAGIC))
}

/// Removes what restoring left that was cut off by a crash: copies, and another name for the database as it is now.
pub(crate) fn clear(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let Ok(entries) = file::folder(path).read_dir() else { return };
    let place = file::identity(path).ok();
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(found) = file_name.to_str() else { continue };
        let copy = ["-wal", "-shm", "-journal"].iter().find_map(|part| found.strip_suffix(part)).unwrap_or(found);
        let left = SqliteStore::cut_off(copy) == Some(name);
        let again = found.strip_prefix(name).is_some_and(|rest| rest.starts_with(BEFORE))
            && place.is_some()
            && file::identity(&entry.path()).ok() == place;
        if left || again {
            // What cannot be removed is in nobody's way.
            let _ = remove_file(entry.path());
        }
    }
}

/// Makes a file somebody's, unless it is.
fn give(path: &Path, user: u32, group: u32) -> io::Result<()> {
    if metadata(path)?.uid() == user { Ok(()) } else { chown(path, Some(user), Some(group)) }
}
