//! The embedded store: one SQLite file, one writer with group commit, a few readers.
//!
//! * [`SqliteStore`] is the adapter: `user`, `class`, `session`, `record` and `mail` hold the statements of one noun
//!   each, reads and writes beside each other.
//! * `writer` is the one thread that writes, `tx` what a command finds there.
//! * `reader` are the threads that read.
//! * `stream` tells what was committed.
//! * `transfer` is the file as a whole, for `rollcall copy`.
//! * `backup` and `restore` are copies of the file, and the way back.
//! * `file` opens the file and brings its schema up to date; a schema change is a new file in `migrations/`.
//!
//! To add a method of the port, put its statements into the noun's file: a read goes to `self.readers`, a write is a
//! function of `tx::Tx` given to `self.writer`. Whatever is committed must be told: through `Tx::log` if it
//! happened in a session, else through `Tx::tell`.

mod backup;
mod class;
mod doctor;
mod end;
mod error;
mod file;
mod mail;
mod reader;
mod record;
mod restore;
mod row;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod transfer;
mod tx;
mod user;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metrics::Unit;
use rollcall_core::store::{ChangeStream, Cursor, Store, StoreError};
use rollcall_core::time::Clock;

pub use backup::BackupError;
pub use doctor::Report;
pub use error::OpenError;
pub use restore::RestoreError;
pub use transfer::SqliteTransfer;

use crate::error::Gone;
use crate::reader::Readers;
use crate::writer::Writer;

/// How long [`Store::ping`] waits for the writer.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What the file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To serve it: one process at a time.
    Serve,
    /// To change it beside a server, which hears of the changes, or without one.
    Tool,
}

/// A database in one file.
pub struct SqliteStore {
    writer: Writer,
    readers: Arc<Readers>,
    clock: Arc<dyn Clock>,
}

impl SqliteStore {
    /// Opens the database at `path`, making it and its folder if they are missing, and brings it up to date. `clock`
    /// tells the age of sessions.
    pub fn open(path: &Path, mode: OpenMode, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        describe_metrics();
        let path = file::absolute(path)?;
        file::create(&path)?;
        let lock = match mode {
            OpenMode::Serve => {
                let lock = file::lock(&path)?;
                restore::clear(&path.canonicalize().unwrap_or_else(|_| path.clone()));
                Some(lock)
            }
            OpenMode::Tool => None,
        };
        let connection = file::open_writer(&path)?;
        transfer::refuse_unfinished(&path, &connection)?;
        let readers = Arc::new(Readers::start(&path)?);
        let writer = Writer::start(connection, lock)?;
        Ok(Arc::new(Self { writer, readers, clock }))
    }

    /// Finishes what was asked for so far, refuses the rest, puts everything into the database file, and lets go of
    /// it. Followers' streams end.
    pub async fn close(&self) {
        self.readers.stop().await;
        self.writer.stop().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn follow(&self, from: Option<Cursor>) -> Result<ChangeStream, StoreError> {
        let signals = self.writer.signals()?;
        stream::follow(Arc::clone(&self.readers), signals, from).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let check = async {
            self.writer.call(writer::probe).await?;
            self.readers.read(session::count_open).await.map(drop)
        };
        tokio::time::timeout(PING_TIMEOUT, check)
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(Gone("the database does not answer in time").into())))
    }
}

fn describe_metrics() {
    metrics::describe_histogram!(
        "rollcall_commit_batch_size",
        Unit::Count,
        "Commands that were made durable by one commit."
    );
    metrics::describe_histogram!(
        "rollcall_commit_seconds",
        Unit::Seconds,
        "Time that a commit took, which is mostly the disk's."
    );
    metrics::describe_gauge!("rollcall_store_queue_depth", Unit::Count, "Commands that wait for the writer.");
    metrics::describe_counter!("rollcall_marks_total", Unit::Count, "Marks that were made durable.");
    metrics::describe_gauge!("rollcall_sessions_open", Unit::Count, "Sessions that are open.");
    // Shown from the start, before there is anything to tell.
    let _ = metrics::histogram!("rollcall_commit_batch_size");
    let _ = metrics::histogram!("rollcall_commit_seconds");
    let _ = metrics::gauge!("rollcall_store_queue_depth");
    let _ = metrics::counter!("rollcall_marks_total");
}
