//! The database as the nouns use it: its collections, reads with a time limit, writes whose outcome is found out, and
//! transactions that are tried again for a few seconds.

use std::future::IntoFuture;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use mongodb::bson::{Bson, Document, Timestamp, doc, oid};
use mongodb::error::Error;
use mongodb::options::{
    Acknowledgment, ReadConcern, ReadPreference, SelectionCriteria, TransactionOptions, WriteConcern,
};
use mongodb::{Client, ClientSession, Collection, Database};
use rollcall_core::store::{Page, StoreError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::class::CLASSES;
use crate::doc::{self, Key, Problem, healthy};
use crate::error::{Failure, Gone};
use crate::mail::{ABSENCES, MAILS};
use crate::now::{Now, PROOF};
use crate::record::{EARLIER_RECORDS, RECORDS};
use crate::session::SESSIONS;
use crate::user::USERS;

/// How long one message to the database may take, with finding out where to send it.
pub(crate) const CALL: Duration = Duration::from_secs(4);
/// How long a message waits for a connection. One that would be sent with little time left helps nobody, and keeps those
/// behind it waiting when the database is back.
const PLACE: Duration = Duration::from_secs(2);
/// How long the database itself may work on a read, or wait for a majority.
pub(crate) const SERVER: Duration = Duration::from_millis(3_500);
/// How long a write is tried again, or its outcome looked for.
const SETTLE: Duration = Duration::from_millis(4_500);
/// How long to wait before a message is sent again to a database that is away.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// The collections. What is read in them is what a majority holds, which may not be the newest: [`crate::now`] proves
/// that. Field names are in [`crate::doc`].
pub(crate) struct Db {
    pub(crate) client: Client,
    pub(crate) database: Database,
    /// The database over connections that no request takes: what all wait for, the proofs of now and the stream, does
    /// not wait behind them.
    pub(crate) control: Database,
    /// As many as `client` has connections. Who waits waits here, and has left no trace in the driver when it gives up.
    places: Semaphore,
    pub(crate) users: Collection<Document>,
    pub(crate) classes: Collection<Document>,
    pub(crate) sessions: Collection<Document>,
    pub(crate) records: Collection<Document>,
    /// Records of an earlier backend, under the other name that it may have given them.
    pub(crate) earlier_records: Collection<Document>,
    /// One document a teacher, which every start changes: starts of one teacher do not overlap.
    pub(crate) openings: Collection<Document>,
    pub(crate) mails: Collection<Document>,
    /// Finished sessions whose absent students are to be told.
    pub(crate) absences: Collection<Document>,
    /// What is written to prove that a read is of now.
    pub(crate) proof: Collection<Document>,
    pub(crate) now: Now,
    pub(crate) closed: CancellationToken,
}

/// What a database is opened with.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) client: Client,
    /// For [`Db::control`].
    pub(crate) control: Client,
    /// How many connections `client` has at most, if there is a limit.
    pub(crate) connections: Option<NonZeroU32>,
}

/// Why the work in a transaction stops.
pub(crate) enum Halt {
    Driver(Error),
    /// What it was based on is not so any more: from the beginning.
    Again,
    Store(StoreError),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(crate) fn write_concern() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(SERVER).build()
}

impl Db {
    pub(crate) fn new(Clients { client, control, connections }: Clients, name: &str) -> Self {
        let (database, control) = (client.database(name), control.database(name));
        let places = connections.and_then(|count| usize::try_from(count.get()).ok());
        Self {
            users: database.collection(USERS),
            classes: database.collection(CLASSES),
            sessions: database.collection(SESSIONS),
            records: database.collection(RECORDS),
            earlier_records: database.collection(EARLIER_RECORDS),
            openings: database.collection("openings"),
            mails: database.collection(MAILS),
            absences: database.collection(ABSENCES),
            proof: control.collection(PROOF),
            now: Now::default(),
            closed: CancellationToken::new(),
            places: Semaphore::new(places.unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS)),
            client,
            database,
            control,
        }
    }

    /// Ends all use of the database.
    pub(crate) async fn shut_down(&self) {
        self.closed.cancel();
        self.places.close();
        self.client.clone().shutdown().immediate(true).await;
        self.control.client().clone().shutdown().immediate(true).await;
    }

    /// What takes no longer than one message may.
    pub(crate) async fn in_time<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        if self.closed.is_cancelled() {
            return Err(Failure::Away(Gone("the store is closed").into()));
        }
        tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| Err(Failure::late()))
    }

    /// A connection's place. Who has one asks for no other.
    pub(crate) async fn place(&self) -> Result<SemaphorePermit<'_>, Failure> {
        match tokio::time::timeout(PLACE, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(Failure::Away(Gone("the store is closed").into())),
            Err(_) => Err(Failure::Away(Gone("too many wait for the database").into())),
        }
    }

    /// One message, in its time.
    pub(crate) async fn send<T>(&self, message: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, Failure> {
        self.in_time(async {
            let _place = self.place().await?;
            message.await.map_err(Failure::of)
        })
        .await
    }

    /// One message of [`Self::control`], in its time.
    pub(crate) async fn send_control<T>(
        &self,
        message: impl IntoFuture<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        self.in_time(async { message.await.map_err(Failure::of) }).await
    }

    /// Reads.
    pub(crate) async fn read<T>(&self, message: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, StoreError> {
        self.send(message).await.map_err(Failure::told_reader)
    }

    /// Reads one document.
    pub(crate) async fn find_one(
        &self,
        collection: &Collection<Document>,
        filter: Document,
        fields: Document,
    ) -> Result<Option<Document>, StoreError> {
        self.read(collection.find_one(filter).projection(fields).max_time(SERVER)).await
    }

    /// Reads a list. `limit` documents at most, none if it is 0.
    pub(crate) async fn list(
        &self,
        collection: &Collection<Document>,
        filter: Document,
        fields: Document,
        order: Document,
        limit: u32,
    ) -> Result<Vec<Document>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let find = collection.find(filter).projection(fields).sort(order).limit(i64::from(limit)).max_time(SERVER);
        self.read(async { find.await?.try_collect().await }).await
    }

    /// Reads a page by id. It ends with the list only: documents that cannot be read do not count.
    pub(crate) async fn page<K: Key, T>(
        &self,
        name: &'static str,
        collection: &Collection<Document>,
        mut filter: Document,
        page: Page<K>,
        fields: Document,
        read: fn(&Document) -> Result<T, Problem>,
    ) -> Result<Vec<T>, StoreError> {
        let mut after = page.after.map_or(Bson::MinKey, doc::id);
        let mut found = Vec::new();
        loop {
            let wanted = page.limit - u32::try_from(found.len()).unwrap_or(page.limit);
            filter.insert("_id", doc! { "$gt": after });
            let documents = self.list(collection, filter.clone(), fields.clone(), doc! { "_id": 1 }, wanted).await?;
            found.extend(documents.iter().filter_map(|document| healthy(name, document, read)));
            match documents.last().and_then(|last| last.get("_id")) {
                Some(last) if documents.len() == wanted as usize && found.len() < page.limit as usize => {
                    after = last.clone();
                }
                _ => return Ok(found),
            }
        }
    }

    /// A write that may be repeated, until it is known what came of it.
    pub(crate) async fn settle<T, F>(&self, write: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: IntoFuture<Output = Result<T, Error>>,
    {
        self.settle_with(|| self.send(write())).await
    }

    /// The same for a write that reads its answer by itself.
    pub(crate) async fn settle_with<T, F>(&self, write: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let started = Instant::now();
        let mut sent = false;
        loop {
            let failure = match write().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let failure = match failure {
                Failure::Away(cause) if sent => Failure::Unknown(cause),
                failure @ (Failure::Away(_) | Failure::Refused(_)) => return Err(failure.told()),
                failure @ Failure::NotDone(_) => failure,
                failure @ Failure::Unknown(_) => {
                    sent = true;
                    failure
                }
            };
            if started.elapsed() + PAUSE > SETTLE {
                return Err(failure.told());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Does `work` in one transaction, tried again for a while when others were faster or the primary changed.
    pub(crate) async fn transact<T>(
        &self,
        work: impl for<'a> Fn(&'a mut ClientSession) -> BoxFuture<'a, Result<T, Halt>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        for attempt in 0_u32.. {
            let failure = match self.transact_once(&work).await {
                Ok(value) => return Ok(value),
                Err(Ok(error)) => return Err(error),
                Err(Err(failure @ Failure::NotDone(_))) => failure,
                Err(Err(failure)) => return Err(failure.told()),
            };
            if started.elapsed() > SETTLE {
                return Err(failure.told());
            }
            // At first at once: most often somebody marked a student meanwhile.
            tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)))).await;
        }
        Err(StoreError::Unavailable(Gone("a transaction did not come through").into()))
    }

    /// One attempt. The inner error is the work's own.
    async fn transact_once<T>(
        &self,
        work: impl for<'a> Fn(&'a mut ClientSession) -> BoxFuture<'a, Result<T, Halt>>,
    ) -> Result<T, Result<StoreError, Failure>> {
        let options = TransactionOptions::builder()
            .read_concern(ReadConcern::snapshot())
            .write_concern(write_concern())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .max_commit_time(SERVER)
            .build();
        let begun = self.in_time(async {
            // One for all its messages, which are sent one after the other.
            let place = self.place().await?;
            let mut session = self.client.start_session().await.map_err(Failure::of)?;
            session.start_transaction().with_options(options).await.map_err(Failure::of)?;
            Ok((place, session))
        });
        let (_place, mut session) = begun.await.map_err(Err)?;
        // What is dropped half-way is aborted by the driver.
        let Ok(done) = tokio::time::timeout(SETTLE, work(&mut session)).await else {
            return Err(Err(Failure::NotDone(Gone("the database did not answer in time").into())));
        };
        let value = match done {
            Ok(value) => value,
            Err(halt) => {
                let _ = tokio::time::timeout(PAUSE, session.abort_transaction()).await;
                return Err(match halt {
                    Halt::Store(error) => Ok(error),
                    Halt::Again => Err(Failure::NotDone(Gone("somebody else was faster").into())),
                    Halt::Driver(error) => Err(Failure::before_commit(error)),
                });
            }
        };
        let started = Instant::now();
        loop {
            // A commit may be repeated: it is done once. Read-only ones wait for what they saw to be a majority's.
            let failure = match tokio::time::timeout(CALL, session.commit_transaction()).await {
                Ok(Ok(())) => return Ok(value),
                Ok(Err(error)) => Failure::of_commit(error),
                Err(_) => Failure::late(),
            };
            match failure {
                Failure::Unknown(_) if started.elapsed() + PAUSE < SETTLE && !self.closed.is_cancelled() => {
                    tokio::time::sleep(PAUSE).await;
                }
                failure => return Err(Err(failure)),
            }
        }
    }

    /// One attempt of a transaction whose failure the caller deals with.
    pub(crate) async fn attempt<T>(
        &self,
        work: impl for<'a> Fn(&'a mut ClientSession) -> BoxFuture<'a, Result<T, Halt>>,
    ) -> Result<T, Failure> {
        self.transact_once(work).await.map_err(|error| match error {
            Ok(StoreError::Unavailable(cause)) => Failure::Away(cause),
            Ok(StoreError::OutcomeUnknown(cause) | StoreError::Internal(cause)) => Failure::Refused(cause),
            Err(failure) => failure,
        })
    }

    /// The time up to which a majority holds everything; every write that was acknowledged before lies before it.
    pub(crate) async fn majority_time(&self) -> Result<Timestamp, Failure> {
        let command = doc! {
            "find": SESSIONS,
            "filter": { "_id": oid::ObjectId::from_bytes([0; 12]) },
            "limit": 1,
            "readConcern": { "level": "majority" },
            "maxTimeMS": millis(SERVER),
        };
        let answer = self.send_control(self.control.run_command(command)).await?;
        match answer.get("operationTime") {
            Some(Bson::Timestamp(time)) => Ok(*time),
            _ => Err(Failure::Refused(Gone("the database does not tell its time").into())),
        }
    }
}

pub(crate) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
