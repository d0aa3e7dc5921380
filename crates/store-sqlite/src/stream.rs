//! The committed stream.
//!
//! Places in it are the `seq` of two tables: `log` has what happened in sessions, `changes` the rest. The writer
//! signals each commit with its changes, and every [`crate::writer::HEARTBEAT`] how far the stream goes. A follower
//! that finds a gap, because it was slow or because another process committed, reads the tables until it is level.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::unfold;
use rollcall_core::id::{ClassId, UserId};
use rollcall_core::store::{Batch, Change, ChangeStream, Cursor, Followed, SessionChange, StoreError};
use rusqlite::{Connection, params};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::reader::Readers;
use crate::row::{Columns, integer};
use crate::session;

/// How many signals a follower may fall behind before it goes to the tables. They are kept for it meanwhile: few, as
/// a batch may be large.
pub(crate) const KEPT_SIGNALS: usize = 256;
/// How far back in the stream a follower can go.
pub(crate) const KEPT_CHANGES: u64 = 100_000;
/// How many places the stream goes on between two times that old changes are deleted.
pub(crate) const TRIM_EVERY: u64 = 1_000;
/// How many places are read from the tables at once.
const PAGE: u64 = 1_000;
/// A sign of life that waited longer says nothing about now.
const FRESH: Duration = Duration::from_millis(100);
/// How long to wait before the tables are read again after a failure.
const RETRY: Duration = Duration::from_millis(100);

/// What the writer tells followers.
#[derive(Clone)]
pub(crate) struct Signal {
    /// The last place of the stream at this moment.
    pub(crate) head: u64,
    /// When this was so.
    pub(crate) at: Instant,
    /// What was just committed up to `head`, and the place of its first change.
    pub(crate) batch: Option<(u64, Arc<Batch>)>,
}

/// A place as others carry it.
pub(crate) fn cursor(seq: u64) -> Cursor {
    Cursor(seq.to_string().into())
}

/// The last place of the stream.
pub(crate) fn head(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "SELECT max(coalesce((SELECT max(seq) FROM log), 0), coalesce((SELECT max(seq) FROM changes), 0))",
        )?
        .query_row([], |row| Columns::new(row).sequence())
}

/// Deletes changes that nobody can ask for any more. The log stays: it is history too.
pub(crate) fn trim(connection: &Connection, head: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM changes WHERE seq <= ?1")?
        .execute([integer(head.saturating_sub(KEPT_CHANGES))])
        .map(drop)
}

/// `kind, id, user_id, flag` of a row of `changes`.
type ChangeColumns = (&'static str, [u8; 12], Option<[u8; 12]>, Option<bool>);

/// A change as a row of `changes`; what happened in a session has its row in `log`.
pub(crate) fn columns(change: &Change) -> Option<ChangeColumns> {
    match change {
        Change::Account(id) => Some(("account", id.bytes(), None, None)),
        Change::Class { class_id, teacher_id } => Some(("class", class_id.bytes(), Some(teacher_id.bytes()), None)),
        Change::Enrolment { class_id, student_id, enrolled } => {
            Some(("enrolment", class_id.bytes(), Some(student_id.bytes()), Some(*enrolled)))
        }
        Change::Session(_) => None,
    }
}

/// What the tables tell behind a place.
enum Told {
    /// The changes up to a place.
    Changes(u64, Vec<(u64, Change)>),
    /// The place lies too far back, or ahead: the stream goes to here.
    Unknown(u64),
}

fn read(connection: &Connection, after: u64) -> rusqlite::Result<Told> {
    let head = head(connection)?;
    if after > head || head - after > KEPT_CHANGES {
        return Ok(Told::Unknown(head));
    }
    let last = head.min(after + PAGE);
    let mut changes = Vec::new();
    let range = params![integer(after), integer(last)];
    let mut statement =
        connection.prepare_cached("SELECT seq, kind, id, user_id, flag FROM changes WHERE seq > ?1 AND seq <= ?2")?;
    let rows = statement.query_map(range, |row| {
        let mut columns = Columns::new(row);
        let seq = columns.sequence()?;
        let change = match &*columns.text()? {
            "account" => Change::Account(columns.id()?),
            "class" => Change::Class { class_id: columns.id()?, teacher_id: columns.id()? },
            "enrolment" => {
                let (class_id, student_id): (ClassId, UserId) = (columns.id()?, columns.id()?);
                Change::Enrolment { class_id, student_id, enrolled: columns.flag()? }
            }
            _ => return Err(columns.impossible("unknown kind of change")),
        };
        Ok((seq, change))
    })?;
    for change in rows {
        changes.push(change?);
    }
    let sql = concat!(
        "SELECT ",
        session::log_columns!(),
        ", log.seq, sessions.id, sessions.class_id FROM log JOIN sessions ON sessions.id = log.session_id",
        " WHERE log.seq > ?1 AND log.seq <= ?2"
    );
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(range, |row| {
        let mut columns = Columns::new(row);
        let entry = session::entry(&mut columns)?;
        let seq = columns.sequence()?;
        let change = SessionChange { session_id: columns.id()?, class_id: columns.id()?, entry };
        Ok((seq, Change::Session(Arc::new(change))))
    })?;
    for change in rows {
        changes.push(change?);
    }
    changes.sort_unstable_by_key(|(seq, _)| *seq);
    Ok(Told::Changes(last, changes))
}

/// Follows from `from`, or from now on. `signals` was subscribed to before this call.
pub(crate) async fn follow(
    readers: Arc<Readers>,
    signals: broadcast::Receiver<Signal>,
    from: Option<Cursor>,
) -> Result<ChangeStream, StoreError> {
    let head = readers.read(head).await?;
    let given = match from {
        None => Some(head),
        Some(cursor) => cursor.0.parse().ok(),
    };
    // A place that is no number was not given by this store: what came after it is not known.
    let (given, lost) = given.map_or((head, true), |given| (given, false));
    let follower = Follower { readers, signals, given, known: head, lost };
    Ok(Box::pin(unfold(follower, async |mut follower| follower.next().await.map(|item| (item, follower)))))
}

/// The store was closed.
struct Ended;

struct Follower {
    readers: Arc<Readers>,
    signals: broadcast::Receiver<Signal>,
    /// The last place that was given.
    given: u64,
    /// The last place that is known to exist; while it lies ahead the tables are read.
    known: u64,
    lost: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Followed> {
        if std::mem::take(&mut self.lost) {
            return Some(Followed::Lost);
        }
        loop {
            if self.given != self.known {
                match self.catch_up().await {
                    Ok(Some(item)) => return Some(item),
                    Ok(None) => continue,
                    Err(Ended) => return None,
                }
            }
            match self.signals.recv().await {
                Ok(signal) => {
                    if let Some(item) = self.hear(signal) {
                        return Some(item);
                    }
                }
                // What was missed lies behind the next signal, and so is read from the tables.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Takes a signal while level with everything known before.
    fn hear(&mut self, signal: Signal) -> Option<Followed> {
        if signal.head < self.given {
            // Given from the tables already.
            return None;
        }
        self.known = signal.head;
        match signal.batch {
            Some((first, batch)) if first == self.given + 1 => {
                self.given = signal.head;
                Some(Followed::Batch(batch))
            }
            None if self.given == self.known && signal.at.elapsed() <= FRESH => Some(Followed::Alive),
            Some(_) | None => None,
        }
    }

    /// Gives the next part of what lies between here and the known end.
    async fn catch_up(&mut self) -> Result<Option<Followed>, Ended> {
        let after = self.given;
        match self.readers.read_consistent(move |connection| read(connection, after)).await {
            Ok(Told::Changes(last, changes)) => {
                self.given = last;
                self.known = self.known.max(last);
                let changes: Vec<_> = changes.into_iter().map(|(_, change)| change).collect();
                let batch = (!changes.is_empty()).then(|| Arc::new(Batch { changes, cursor: cursor(last) }));
                Ok(batch.map(Followed::Batch))
            }
            Ok(Told::Unknown(head)) => {
                (self.given, self.known) = (head, head);
                Ok(Some(Followed::Lost))
            }
            Err(_) if self.readers.stopped() => Err(Ended),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the committed stream cannot be read yet");
                tokio::time::sleep(RETRY).await;
                Ok(None)
            }
        }
    }
}
