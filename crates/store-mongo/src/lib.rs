//! The store for several replicas: MongoDB, with its change streams as the committed stream.
//!
//! * [`MongoStore`] is the adapter: [`user`], [`class`], [`session`], [`record`] and [`mail`] hold the statements of
//!   one noun each, reads and writes beside each other.
//! * [`doc`] turns documents into the core's values and back. It alone knows field names' meaning.
//! * [`db`] sends: with a time limit, and until the outcome is known. [`now`] reads what is proven to be the newest.
//! * [`queue`] orders the commands to open sessions and writes many at once, with the help of [`memory`];
//!   [`updates`] sends those of many sessions together.
//! * [`stream`] tells what was committed.
//! * [`open`] opens a database and adds what it lacks; [`survey`] names what is wrong in it.
//! * [`transfer`] is the database as a whole, for `rollcall copy`.
//!
//! To add a method of the port, put its statement into the noun's file. One document is changed by one update through
//! `Db::settle`, which must be a statement that may be repeated; several by `Db::transact`. What is asked about a session
//! is read by `Db::find_one_now`. Whatever others must hear of has to be seen from the change alone: an entry in a
//! session's log, or `lastChange` of a class.

mod class;
mod db;
mod doc;
mod error;
mod mail;
mod memory;
mod now;
mod open;
mod queue;
mod record;
mod session;
mod stream;
mod survey;
mod transfer;
mod updates;
mod user;

use std::sync::Arc;

use async_trait::async_trait;
use metrics::Unit;
use rollcall_core::store::{ChangeStream, Cursor, Store, StoreError};
use rollcall_core::time::Clock;
use secrecy::{ExposeSecret, SecretString};

pub use error::OpenError;
pub use survey::{Finding, Survey};
pub use transfer::MongoTransfer;

use crate::db::Db;
use crate::error::Failure;
use crate::queue::Queue;

/// A database on a MongoDB replica set.
pub struct MongoStore {
    db: Arc<Db>,
    queue: Queue,
    clock: Arc<dyn Clock>,
}

impl MongoStore {
    /// Opens the database that `url` (`mongodb://…` or `mongodb+srv://…`) names by its path, `rollcall` if it names
    /// none, and adds the indexes that it lacks. `clock` tells the age of sessions.
    ///
    /// Fails within seconds if the database is away or cannot be used.
    pub async fn connect(url: &SecretString, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        describe_metrics();
        let db = Arc::new(open::open(url.expose_secret(), true).await?);
        Ok(Arc::new(Self { queue: Queue::new(Arc::clone(&db)), db, clock }))
    }

    /// Finishes what was asked for so far, refuses the rest, and lets go of the database. Followers' streams end.
    pub async fn close(&self) {
        self.queue.close().await;
        self.db.shut_down().await;
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn follow(&self, from: Option<Cursor>) -> Result<ChangeStream, StoreError> {
        Ok(Box::pin(stream::follow(Arc::clone(&self.db), from).await?))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.db.in_time(self.db.now()).await.map(drop).map_err(Failure::told_reader)
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
        "Time that a commit took, which is the database's and the network's."
    );
    metrics::describe_gauge!("rollcall_store_queue_depth", Unit::Count, "Commands that wait for their answer.");
    metrics::describe_counter!("rollcall_marks_total", Unit::Count, "Marks that were made durable.");
    metrics::describe_gauge!("rollcall_sessions_open", Unit::Count, "Sessions that are open.");
    // Shown from the start, before there is anything to tell.
    let _ = metrics::histogram!("rollcall_commit_batch_size");
    let _ = metrics::histogram!("rollcall_commit_seconds");
    let _ = metrics::gauge!("rollcall_store_queue_depth");
    let _ = metrics::counter!("rollcall_marks_total");
}
