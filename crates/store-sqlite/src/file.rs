//! The database file: where it is, who may read it, how it is opened and brought up to date.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rusqlite_migration::{M, Migrations};

use crate::error::OpenError;

/// Every schema change, oldest first. A released one is never edited; to change the schema, add a file.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("../migrations/001_initial.sql")),
    M::up(include_str!("../migrations/002_copy.sql")),
    M::up(include_str!("../migrations/003_mail.sql")),
];

/// Marks the file as Rollcall's (`application_id` in SQLite's header): "Roll". The first migration writes it.
const APPLICATION_ID: i32 = 0x526f_6c6c;

/// How long to wait for another process that writes. Longer is not worth waiting for: the caller may try again.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The log grows to about this many pages (16 MiB) before it goes into the database file.
const CHECKPOINT_PAGES: i64 = 4_000;

/// After a rush the log shrinks to at most so many bytes.
const LOG_BYTES_KEPT: i64 = 64 << 20;

/// Readers map at most so many bytes of the file into memory.
const MAPPED_BYTES: i64 = 256 << 20;

/// How many prepared statements a connection keeps: more than this crate has.
const STATEMENTS: usize = 128;

/// The newest schema that this program knows.
pub(crate) fn known_schema() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// The file beside `path` with `suffix` added to its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// `path` from the root. SQLite would take a relative name such as `file:x` for an address.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, OpenError> {
    std::path::absolute(path).map_err(|source| OpenError::File { path: path.to_owned(), source })
}

/// The folder that the file at an absolute `path` is in.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes the names in `folder` durable.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What tells one file from another.
pub(crate) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.metadata().map(|file| (file.dev(), file.ino()))
}

/// Makes the folder and the file if they are missing, for their owner alone. SQLite gives its other files the
/// permissions of this one.
pub(crate) fn create(path: &Path) -> Result<(), OpenError> {
    let failed = |path: &Path, source| OpenError::File { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        create_folder(folder).map_err(|source| failed(folder, source))?;
    }
    // A file that is there is left to SQLite alone: closing it here would end the locks that SQLite holds on it for
    // other connections of this process.
    match owner_only(OpenOptions::new().write(true).create_new(true), path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, source)),
        _ if path.is_dir() => Err(failed(path, io::ErrorKind::IsADirectory.into())),
        _ => Ok(()),
    }
}

/// Takes the lock that one server at a time holds. It ends with the process, however that ends.
pub(crate) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
    let failed = |source| OpenError::File { path: lock_path.clone(), source };
    let file = owner_only(OpenOptions::new().write(true).create(true).truncate(false), &lock_path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::AlreadyServed { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn owner_only(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}

/// A connection that writes, to a database that is up to date.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    check_owner(path, &connection)?;
    if !log_ahead(&connection).map_err(sqlite)? {
        return Err(OpenError::NoLog { path: path.to_owned() });
    }
    configure_writer(&connection).map_err(sqlite)?;
    migrate(path, &mut connection)?;
    Ok(connection)
}

/// Refuses a file that another program made, before anything in it is changed.
pub(crate) fn check_owner(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let look = || -> rusqlite::Result<(i32, i64)> {
        // One moment for both: another process may be making the tables.
        let connection = connection.unchecked_transaction()?;
        let id = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((id, tables))
    };
    match look() {
        Ok((APPLICATION_ID, _) | (0, 0)) => Ok(()),
        Ok(_) => Err(OpenError::Foreign { path: path.to_owned() }),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            Err(OpenError::Foreign { path: path.to_owned() })
        }
        Err(source) => Err(OpenError::Sqlite { path: path.to_owned(), source }),
    }
}

/// Turns the write-ahead log on. Answers whether it is on: some network file systems cannot hold one.
fn log_ahead(connection: &Connection) -> rusqlite::Result<bool> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        let mode = connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0))
            .map(|mode| mode == "wal");
        match mode {
            // SQLite itself does not wait here for another process that does the same.
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            mode => return mode,
        }
    }
}

fn configure_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "synchronous", "full")?;
    // On macOS a plain fsync leaves data in the drive's cache; elsewhere these two change nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    // 64 MiB, so that no batch spills pages before its commit.
    connection.pragma_update(None, "cache_size", -65_536)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(())
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let migrations = Migrations::from_slice(MIGRATIONS);
    let failed = |source| OpenError::Migration { path: path.to_owned(), source };
    // Two processes that open a new file at the same time both find it old; the second looks again.
    for attempt in 0.. {
        let found = schema_version(connection).map_err(|error| failed(error.into()))?;
        if found > known_schema() {
            return Err(OpenError::Newer { path: path.to_owned(), found, known: known_schema() });
        }
        if found == known_schema() {
            break;
        }
        connection.set_transaction_behavior(TransactionBehavior::Immediate);
        match migrations.to_latest(connection) {
            Ok(()) => break,
            Err(error) if attempt == 2 => return Err(failed(error)),
            Err(_) => {}
        }
    }
    Ok(())
}

/// The file's schema: how many migrations it has seen.
pub(crate) fn schema_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// A connection that only reads.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "mmap_size", MAPPED_BYTES)?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(connection)
}
