//! The one writer: a thread that makes everything durable that waits, in one transaction.
//!
//! Commands come through a bounded queue and take effect in its order. Each runs in a savepoint of its own, so that
//! one which fails takes nothing of the others with it. After the commit the followers hear first, then the callers
//! get their answers. Refusals wait for the commit too: they may rest on what the same transaction wrote.
//!
//! The thread also proves that the stream is alive: only a writer that can look into the database says so.

use std::any::Any;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rollcall_core::session::Event;
use rollcall_core::store::{Batch, Change, StoreError};
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout_at;

use crate::end::End;
use crate::error::{Gone, OpenError, is_temporary, not_done};
use crate::file::identity;
use crate::session;
use crate::stream::{self, Signal};
use crate::tx::{OpenSessions, Tx};

/// How many commands wait at most; whoever comes then waits for a place.
const QUEUE: usize = 4_096;
/// How many commands one transaction takes at most: what comes later shall not wait for too long.
const BATCH: usize = 1_024;
/// How often the writer looks for what others committed, and says that it is alive.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
/// How long the writer tries to find out what became of a commit that failed half-way.
const HEAL_FOR: Duration = Duration::from_secs(5);
/// How long it waits between two such attempts.
const HEAL_PAUSE: Duration = Duration::from_millis(50);

/// Something to do in the writer's transaction.
pub(crate) trait Job: Send {
    /// Does it. Called once.
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()>;
    /// Tells the caller what came of it, after the commit or its failure.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Call<F, T> {
    work: Option<F>,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Job for Call<F, T>
where
    F: FnOnce(&mut Tx<'_>) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.value = Some(work(tx)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let answer = match (outcome, self.value) {
            (Ok(()), Some(value)) => Ok(value),
            (Ok(()), None) => Err(StoreError::Internal(Gone("the command did not run").into())),
            (Err(error), _) => Err(error),
        };
        // A caller who left does not need the answer; what was done stands.
        let _ = self.reply.send(answer);
    }
}

enum Message {
    Job(Box<dyn Job>),
    Stop,
}

/// The door to the writer.
pub(crate) struct Writer {
    queue: mpsc::Sender<Message>,
    signals: broadcast::WeakSender<Signal>,
    ended: End,
}

/// A command's answer, once it is durable.
pub(crate) struct Answer<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Answer<T> {
    /// Waits for it.
    pub(crate) async fn get(self) -> Result<T, StoreError> {
        match self.0.await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::OutcomeUnknown(Gone("the writer stopped while the command ran").into())),
        }
    }
}

impl Writer {
    /// Starts the thread. It holds `lock` until it has ended.
    pub(crate) fn start(connection: Connection, lock: Option<File>) -> Result<Self, OpenError> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let (signals, _) = broadcast::channel(stream::KEPT_SIGNALS);
        let (ended, guard) = End::new();
        let writer = Self { queue, signals: signals.downgrade(), ended };
        let waiter = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(OpenError::Thread)?;
        let _: JoinHandle<()> = std::thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || {
                let _guard = guard;
                let _lock = lock;
                let mut jobs = jobs;
                let mut thread = Thread::new(connection, signals);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| thread.run(&waiter, &mut jobs))) {
                    tracing::error!(
                        message = text_of(&*panic),
                        "the writer panicked; the store takes no more commands"
                    );
                }
                // The connection goes first: what a panic left half done is rolled back before anybody is answered.
                drop(thread);
                refuse_the_rest(&mut jobs);
            })
            .map_err(OpenError::Thread)?;
        Ok(writer)
    }

    /// Puts `work` into the queue, waiting while it is full. When this returns, the place in the queue is taken.
    pub(crate) async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Answer<T>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Call { work: Some(work), value: None, reply });
        self.queue.send(Message::Job(job)).await.map_err(|_| stopped())?;
        Ok(Answer(answer))
    }

    /// Does `work` and answers when it is durable.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.submit(work).await?.get().await
    }

    /// Hears what is committed from now on.
    pub(crate) fn signals(&self) -> Result<broadcast::Receiver<Signal>, StoreError> {
        Ok(self.signals.upgrade().ok_or_else(stopped)?.subscribe())
    }

    /// Lets the writer finish what waits and end, and waits until it has.
    pub(crate) async fn stop(&self) {
        // Without a receiver the thread is at its end already.
        let _ = self.queue.send(Message::Stop).await;
        self.ended.wait().await;
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable(Gone("the store is closed").into())
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Answers those whose commands never ran.
fn refuse_the_rest(jobs: &mut mpsc::Receiver<Message>) {
    jobs.close();
    while let Some(message) = jobs.blocking_recv() {
        if let Message::Job(job) = message {
            job.answer(Err(stopped()));
        }
    }
}

/// Why a transaction did not succeed as a whole.
enum Failure {
    /// Proven: nothing of it stands.
    NotDone(rusqlite::Error),
    /// The commit failed where it may have reached the disk.
    Unproven(rusqlite::Error),
}

/// What a transaction did that succeeded.
struct Transaction {
    /// The last place in the committed stream before it.
    head: u64,
    /// What it added to the stream.
    changes: Vec<Change>,
    /// What became of each job: one that failed was rolled back alone.
    outcomes: Vec<Result<(), StoreError>>,
}

/// The database file, and the name under which the next start looks for it. A file that was removed or replaced while
/// it was open takes every commit, and all of them are lost with the process.
struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    fn of(connection: &Connection) -> Option<Self> {
        let path = PathBuf::from(connection.path()?);
        let (device, inode) = identity(&path).ok()?;
        Some(Self { path, device, inode })
    }

    /// An error if the name does not lead to the file any more. A file that is put back is as good as before.
    fn check(&self) -> rusqlite::Result<()> {
        let lost = match identity(&self.path) {
            Ok(found) => found != (self.device, self.inode),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if !lost {
            return Ok(());
        }
        let what = format!(
            "{} was moved, removed or replaced while it was open; put it back, or start again",
            self.path.display()
        );
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(what)))
    }
}

struct Thread {
    connection: Connection,
    place: Option<Place>,
    signals: broadcast::Sender<Signal>,
    open: OpenSessions,
    /// SQLite's word for what other connections have committed, as of the last transaction.
    data_version: Option<i64>,
    /// Whether the last transaction failed, so that a full disk is logged once and not per mark.
    failing: bool,
    /// Whether sessions may have been opened or finished since they were last counted.
    recount: bool,
    trimmed_to: u64,
}

impl Thread {
    fn new(connection: Connection, signals: broadcast::Sender<Signal>) -> Self {
        Self {
            place: Place::of(&connection),
            connection,
            signals,
            open: OpenSessions::new(),
            data_version: None,
            failing: false,
            recount: true,
            trimmed_to: 0,
        }
    }

    fn run(&mut self, waiter: &tokio::runtime::Runtime, jobs: &mut mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(BATCH);
        let mut heartbeat = Instant::now();
        let mut stopping = false;
        loop {
            if Instant::now() >= heartbeat {
                self.prove_alive(jobs.len());
                heartbeat = Instant::now() + HEARTBEAT;
            }
            let received =
                waiter.block_on(async { timeout_at(heartbeat.into(), jobs.recv_many(&mut messages, BATCH)).await });
            match received {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => continue,
            }
            metrics::gauge!("rollcall_store_queue_depth").set((messages.len() + jobs.len()) as f64);
            let mut batch = Vec::with_capacity(messages.len());
            for message in messages.drain(..) {
                match message {
                    Message::Job(job) => batch.push(job),
                    Message::Stop => stopping = true,
                }
            }
            if stopping {
                // Nobody gets in any more; who is in is served, and then the queue ends by itself.
                jobs.close();
            }
            if !batch.is_empty() {
                self.commit(batch);
            }
        }
        self.checkpoint();
    }

    /// Leaves everything in the database file itself.
    fn checkpoint(&self) {
        let checkpoint = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = checkpoint {
            tracing::warn!(error = &error as &dyn std::error::Error, "the log could not be put into the database file");
        }
    }

    /// Tells followers how far the stream goes, whoever wrote it.
    fn prove_alive(&mut self, waiting: usize) {
        let at = Instant::now();
        match stream::head(&self.connection) {
            Ok(head) => {
                let _ = self.signals.send(Signal { head, at, batch: None });
                self.count_sessions();
            }
            Err(error) => self.note_failure(&error),
        }
        metrics::gauge!("rollcall_store_queue_depth").set(waiting as f64);
    }

    fn count_sessions(&mut self) {
        if let Ok(version) = data_version(&self.connection) {
            self.recount |= self.data_version != Some(version);
        }
        if !self.recount {
            return;
        }
        if let Ok(count) = session::count_open(&self.connection) {
            metrics::gauge!("rollcall_sessions_open").set(count as f64);
            self.recount = false;
        }
    }

    fn note_failure(&mut self, error: &rusqlite::Error) {
        if !is_temporary(error) {
            tracing::error!(error = error as &dyn std::error::Error, "the database failed");
        } else if !self.failing {
            tracing::warn!(error = error as &dyn std::error::Error, "the database refuses");
        }
        self.failing = true;
    }

    fn note_success(&mut self) {
        if self.failing {
            tracing::info!("the database works again");
        }
        self.failing = false;
    }

    /// Makes a batch durable, tells the followers, and answers.
    fn commit(&mut self, mut batch: Vec<Box<dyn Job>>) {
        metrics::histogram!("rollcall_commit_batch_size").record(batch.len() as f64);
        match self.transact(&mut batch) {
            Ok(Transaction { head, changes, outcomes }) => {
                self.note_success();
                self.emit(head, changes);
                for (job, outcome) in batch.into_iter().zip(outcomes) {
                    job.answer(outcome);
                }
            }
            Err(failure) => {
                self.open.clear();
                self.roll_back();
                let (error, proven) = match failure {
                    Failure::NotDone(error) => {
                        self.note_failure(&error);
                        (error, true)
                    }
                    Failure::Unproven(error) => {
                        self.note_failure(&error);
                        (error, self.heal())
                    }
                };
                let error = Arc::new(error);
                for job in batch {
                    job.answer(Err(shared(&error, proven)));
                }
            }
        }
    }

    /// Runs the batch in one transaction.
    fn transact(&mut self, batch: &mut [Box<dyn Job>]) -> Result<Transaction, Failure> {
        let connection = &self.connection;
        self.place.as_ref().map_or(Ok(()), Place::check).map_err(Failure::NotDone)?;
        execute(connection, "BEGIN IMMEDIATE").map_err(Failure::NotDone)?;
        let version = data_version(connection).map_err(Failure::NotDone)?;
        if self.data_version != Some(version) {
            self.open.clear();
            self.data_version = Some(version);
            self.recount = true;
        }
        let head = stream::head(connection).map_err(Failure::NotDone)?;
        let mut tx = Tx::new(connection, &mut self.open, head);
        let mut outcomes = Vec::with_capacity(batch.len());
        for job in batch {
            outcomes.push(in_savepoint(&mut tx, job.as_mut()).map_err(Failure::NotDone)?);
        }
        let (head, changes) = tx.into_changes();
        let last = head + changes.len() as u64;
        if last >= self.trimmed_to + stream::TRIM_EVERY {
            stream::trim(connection, last).map_err(Failure::NotDone)?;
            self.trimmed_to = last;
        }
        let started = Instant::now();
        execute(connection, "COMMIT").map_err(|error| match error.sqlite_error_code() {
            // Refused before the page that makes the commit valid is written.
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::ConstraintViolation) => {
                Failure::NotDone(error)
            }
            _ => Failure::Unproven(error),
        })?;
        if !changes.is_empty() {
            metrics::histogram!("rollcall_commit_seconds").record(started.elapsed().as_secs_f64());
        }
        Ok(Transaction { head, changes, outcomes })
    }

    fn emit(&mut self, head: u64, changes: Vec<Change>) {
        let marks = changes.iter().filter(|change| is_event(change, |event| matches!(event, Event::Marked { .. })));
        metrics::counter!("rollcall_marks_total").increment(marks.count() as u64);
        self.recount |=
            changes.iter().any(|change| is_event(change, |event| matches!(event, Event::Started | Event::Finished(_))));
        if changes.is_empty() {
            return;
        }
        let last = head + changes.len() as u64;
        let batch = Arc::new(Batch { changes, cursor: stream::cursor(last) });
        // Without followers there is nobody to tell.
        let _ = self.signals.send(Signal { head: last, at: Instant::now(), batch: Some((head + 1, batch)) });
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = execute(&self.connection, "ROLLBACK")
        {
            tracing::error!(error = &error as &dyn std::error::Error, "a failed transaction cannot be rolled back");
        }
    }

    /// After a commit that failed half-way: its pages may lie in the log with a valid end, where a crash would find
    /// them. The next commit goes over the same place; once one has, the failed one is gone for good. Answers
    /// whether that is so.
    fn heal(&mut self) -> bool {
        let deadline = Instant::now() + HEAL_FOR;
        loop {
            let healed = execute(&self.connection, "BEGIN IMMEDIATE")
                .and_then(|()| touch(&self.connection))
                .and_then(|()| execute(&self.connection, "COMMIT"));
            match healed {
                Ok(()) => return true,
                Err(_) if Instant::now() < deadline => {
                    self.roll_back();
                    std::thread::sleep(HEAL_PAUSE);
                }
                Err(error) => {
                    self.roll_back();
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a commit failed half-way, and none since has shown that it is gone"
                    );
                    return false;
                }
            }
        }
    }
}

/// Runs one job in a savepoint. `Err`: the whole transaction is gone.
fn in_savepoint(tx: &mut Tx<'_>, job: &mut dyn Job) -> rusqlite::Result<Result<(), StoreError>> {
    let connection = tx.connection();
    let made = tx.changes_made();
    execute(connection, "SAVEPOINT job")?;
    match job.run(tx) {
        Ok(()) => {
            execute(connection, "RELEASE job")?;
            Ok(Ok(()))
        }
        // SQLite itself rolled everything back.
        Err(error) if connection.is_autocommit() => Err(error),
        Err(error) => {
            execute(connection, "ROLLBACK TO job")?;
            execute(connection, "RELEASE job")?;
            tx.forget_after(made);
            Ok(Err(not_done(error)))
        }
    }
}

fn is_event(change: &Change, wanted: impl Fn(&Event) -> bool) -> bool {
    matches!(change, Change::Session(change) if wanted(&change.entry.event))
}

fn execute(connection: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

/// Changes one page.
fn touch(connection: &Connection) -> rusqlite::Result<()> {
    execute(connection, "UPDATE probe SET n = n + 1")
}

/// Finds out whether writing works: changes a page, and asks for the room that marks may need.
pub(crate) fn probe(tx: &mut Tx<'_>) -> rusqlite::Result<()> {
    let connection = tx.connection();
    touch(connection)?;
    execute(connection, "UPDATE probe SET room = zeroblob(16384)")?;
    execute(connection, "UPDATE probe SET room = NULL")
}

/// One failure as the answer to one of the many whom it hit.
fn shared(error: &Arc<rusqlite::Error>, proven: bool) -> StoreError {
    let cause = Box::new(Shared(Arc::clone(error)));
    if !proven {
        StoreError::OutcomeUnknown(cause)
    } else if is_temporary(error) {
        StoreError::Unavailable(cause)
    } else {
        StoreError::Internal(cause)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Shared(Arc<rusqlite::Error>);
