//! Readers: a few threads with a connection each, which serve one queue. A read sees every commit that was answered
//! before it was asked for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rollcall_core::store::StoreError;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::end::End;
use crate::error::{Gone, OpenError, not_done};

/// How many reads wait at most; whoever comes then waits for a place.
const QUEUE: usize = 1_024;
/// The most threads. Reads are short: more would only fight over the processors.
const MOST: usize = 8;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The door to the readers.
pub(crate) struct Readers {
    queue: mpsc::Sender<Option<Read>>,
    ended: End,
}

impl Readers {
    /// Starts the threads on the database at `path`.
    pub(crate) fn start(path: &Path) -> Result<Self, OpenError> {
        let (queue, reads) = mpsc::channel(QUEUE);
        let reads = Arc::new(Mutex::new(reads));
        let (ended, guard) = End::new();
        let guard = Arc::new(guard);
        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST);
        for number in 0..threads {
            let connection =
                crate::file::open_reader(path).map_err(|source| OpenError::Sqlite { path: path.to_owned(), source })?;
            let (reads, guard) = (Arc::clone(&reads), Arc::clone(&guard));
            let _: JoinHandle<()> = std::thread::Builder::new()
                .name(format!("sqlite-reader-{number}"))
                .spawn(move || {
                    let _guard = guard;
                    let connection = connection;
                    serve(&connection, &reads);
                })
                .map_err(OpenError::Thread)?;
        }
        Ok(Self { queue, ended })
    }

    /// Reads by one statement.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let read: Read = Box::new(move |connection| {
            // A caller who left does not need the answer.
            let _ = reply.send(work(connection));
        });
        self.queue.send(Some(read)).await.map_err(|_| StoreError::Unavailable(Gone("the store is closed").into()))?;
        match answer.await {
            Ok(answer) => answer.map_err(not_done),
            Err(_) => Err(StoreError::Internal(Gone("a read did not end").into())),
        }
    }

    /// Reads by several statements that see the same moment.
    pub(crate) async fn read_consistent<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read(move |connection| {
            let transaction = connection.unchecked_transaction()?;
            work(&transaction)
        })
        .await
    }

    /// Whether they take no more reads.
    pub(crate) fn stopped(&self) -> bool {
        self.queue.is_closed()
    }

    /// Lets the readers finish what waits and end.
    pub(crate) async fn stop(&self) {
        // Without a receiver they are ending already.
        let _ = self.queue.send(None).await;
        self.ended.wait().await;
    }
}

fn serve(connection: &Connection, reads: &Mutex<mpsc::Receiver<Option<Read>>>) {
    loop {
        let read = {
            let mut reads = reads.lock();
            let read = reads.blocking_recv();
            if let Some(None) = read {
                // The others find the queue closed, and end when it is empty.
                reads.close();
            }
            read
        };
        match read {
            Some(Some(read)) => {
                if catch_unwind(AssertUnwindSafe(|| read(connection))).is_err() {
                    tracing::error!("a read panicked");
                }
            }
            Some(None) => {}
            None => return,
        }
    }
}
