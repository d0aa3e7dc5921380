//! The file as a whole, to be carried into another store or filled from one.
//!
//! The server's lock is held throughout. A source is also locked for writing, so that not even `rollcall user` changes
//! it; a target takes each page and the word of how far it has come in one transaction.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rollcall_core::class::ClassWithStudents;
use rollcall_core::id::ObjectId;
use rollcall_core::session::{Actor, SessionInfo, SessionState};
use rollcall_core::store::StoreError;
use rollcall_core::transfer::{EarlierRecord, Item, Items, Marker, Part, Progress, State, Transfer, WholeSession};
use rollcall_core::user::Account;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{Gone, OpenError, not_done};
use crate::row::{Columns, integer};
use crate::{class, file, mail, record, session, stream, user};

/// How many items are read at once at most.
const ITEMS: u32 = 1_000;
/// From how many rows on no more items are read with them: those of long sessions and of large classes.
const ROWS: usize = 10_000;

/// A database file as a whole, which nobody else serves meanwhile.
pub struct SqliteTransfer {
    // Dropped before the lock.
    connection: Arc<Mutex<Connection>>,
    held: bool,
    _lock: File,
}

impl SqliteTransfer {
    /// Opens the database at `path`, which must exist, to read it. Nobody can change it until this is dropped.
    pub fn source(path: &Path) -> Result<Self, OpenError> {
        let path = file::absolute(path)?;
        if let Err(source) = path.metadata() {
            return Err(OpenError::File { path, source });
        }
        let lock = file::lock(&path)?;
        let connection = file::open_writer(&path)?;
        let sqlite = |source| OpenError::Sqlite { path: path.clone(), source };
        connection.execute_batch("BEGIN IMMEDIATE").map_err(sqlite)?;
        refuse_unfinished(&path, &connection)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), held: true, _lock: lock })
    }

    /// Opens the database at `path` to fill it, making it and its folder if they are missing.
    pub fn target(path: &Path) -> Result<Self, OpenError> {
        let path = file::absolute(path)?;
        file::create(&path)?;
        let lock = file::lock(&path)?;
        let connection = file::open_writer(&path)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), held: false, _lock: lock })
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || work(&mut connection.lock())).await;
        done.map_err(|_| StoreError::Internal(Gone("a statement did not end").into()))?.map_err(not_done)
    }
}

#[async_trait]
impl Transfer for SqliteTransfer {
    async fn read(&self, part: Part, after: Option<ObjectId>) -> Result<Items, StoreError> {
        // No id comes before this one.
        let after = after.unwrap_or(ObjectId::from_bytes([0; 12]));
        self.work(move |connection| read(connection, part, after)).await
    }

    fn is_held(&self) -> bool {
        self.held
    }

    async fn state(&self) -> Result<State, StoreError> {
        self.work(|connection| state(connection)).await
    }

    async fn begin(&self, marker: &Marker) -> Result<(), StoreError> {
        let Marker { fingerprint, progress } = marker.clone();
        self.work(move |connection| {
            connection
                .execute(
                    "INSERT INTO unfinished_copy (no, fingerprint, part, after_id) VALUES (1, ?1, ?2, ?3)",
                    params![fingerprint, progress.part.as_str(), progress.after.map(ObjectId::bytes)],
                )
                .map(drop)
        })
        .await
    }

    async fn write(&self, items: Vec<Item>, progress: Progress) -> Result<(), StoreError> {
        self.work(move |connection| {
            let transaction = connection.transaction()?;
            for item in &items {
                write(&transaction, item)?;
            }
            let gone_on = transaction
                .prepare_cached("UPDATE unfinished_copy SET part = ?1, after_id = ?2")?
                .execute(params![progress.part.as_str(), progress.after.map(ObjectId::bytes)])?;
            if gone_on != 1 {
                return Err(rusqlite::Error::StatementChangedRows(gone_on));
            }
            transaction.commit()
        })
        .await
    }

    async fn finish(&self) -> Result<(), StoreError> {
        self.work(|connection| {
            connection.execute("DELETE FROM unfinished_copy", [])?;
            // The copy stands; that its log goes into the file itself now and not later is for those who look.
            let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            Ok(())
        })
        .await
    }

    async fn close(&self) {}
}

/// Refuses to serve a file, or to carry it on, that is an unfinished copy itself.
pub(crate) fn refuse_unfinished(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    match marker(connection) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(OpenError::UnfinishedCopy { path: path.to_owned() }),
        Err(source) => Err(OpenError::Sqlite { path: path.to_owned(), source }),
    }
}

/// What an unfinished copy says of itself.
pub(crate) fn marker(connection: &Connection) -> rusqlite::Result<Option<Marker>> {
    connection
        .query_row("SELECT fingerprint, part, after_id FROM unfinished_copy", [], |row| {
            let mut columns = Columns::new(row);
            let fingerprint = columns.text()?.as_ref().to_owned();
            Ok(Marker { fingerprint, progress: Progress { part: columns.named()?, after: columns.optional_id()? } })
        })
        .optional()
}

fn state(connection: &Connection) -> rusqlite::Result<State> {
    if let Some(marker) = marker(connection)? {
        return Ok(State::Unfinished(marker));
    }
    let filled = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM users) OR EXISTS (SELECT 1 FROM classes) OR EXISTS (SELECT 1 FROM sessions)
             OR EXISTS (SELECT 1 FROM earlier_records) OR EXISTS (SELECT 1 FROM changes)
             OR EXISTS (SELECT 1 FROM mails) OR EXISTS (SELECT 1 FROM absences)",
        [],
        |row| Columns::new(row).flag(),
    )?;
    Ok(if filled { State::Filled } else { State::Empty })
}

fn read(connection: &Connection, part: Part, after: ObjectId) -> rusqlite::Result<Items> {
    match part {
        Part::Accounts => page(
            connection,
            user::select!("WHERE id > ?1 ORDER BY id LIMIT ?2"),
            after,
            user::account,
            |account: Account| Ok((account.id.0, 1, Item::Account(account))),
        ),
        Part::Classes => {
            page(connection, class::select!("WHERE id > ?1 ORDER BY id LIMIT ?2"), after, class::class, |class| {
                let class = class::with_students(connection, class)?;
                Ok((class.class.id.0, 1 + class.student_ids.len(), Item::Class(class)))
            })
        }
        Part::FinishedSessions => page(
            connection,
            session::select!("WHERE finished_at IS NOT NULL AND id > ?1 ORDER BY id LIMIT ?2"),
            after,
            session::info,
            |info| whole(connection, info),
        ),
        Part::OpenSessions => page(
            connection,
            session::select!(
                "INDEXED BY sessions_open
                 WHERE finished_at IS NULL AND no > coalesce((SELECT no FROM sessions WHERE id = ?1), 0)
                 ORDER BY no LIMIT ?2"
            ),
            after,
            session::info,
            |info| whole(connection, info),
        ),
        Part::EarlierRecords => page(
            connection,
            "SELECT id, class_id, student_id, status FROM earlier_records WHERE id > ?1 ORDER BY id LIMIT ?2",
            after,
            earlier_record,
            |record| Ok((record.id, 1, Item::EarlierRecord(record))),
        ),
        Part::Mails => {
            page(connection, mail::select!("WHERE id > ?1 ORDER BY id LIMIT ?2"), after, mail::stored, |mail| {
                Ok((mail.id.0, 1, Item::Mail(mail)))
            })
        }
        Part::Absences => page(
            connection,
            "SELECT session_id, class_id FROM absences WHERE session_id > ?1 ORDER BY session_id LIMIT ?2",
            after,
            mail::absences,
            |absences| Ok((absences.session_id.0, 1, Item::Absences(absences))),
        ),
    }
}

/// Reads items by `sql`, makes them whole, and stops where they have become many. `complete` answers with the item's
/// id, how many rows it has, and the item.
fn page<T>(
    connection: &Connection,
    sql: &'static str,
    after: ObjectId,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
    complete: impl Fn(T) -> rusqlite::Result<(ObjectId, usize, Item)>,
) -> rusqlite::Result<Items> {
    let mut found = Items::default();
    let mut rows = 0;
    let mut statement = connection.prepare_cached(sql)?;
    for part in statement.query_map(params![after.bytes(), ITEMS], read)? {
        let (id, own, item) = complete(part?)?;
        found.items.push(item);
        found.last = Some(id);
        rows += own;
        if rows >= ROWS {
            break;
        }
    }
    Ok(found)
}

fn whole(connection: &Connection, info: SessionInfo) -> rusqlite::Result<(ObjectId, usize, Item)> {
    let id = info.id;
    let session = WholeSession {
        log: session::whole_log(connection, id)?,
        marks: session::marks(connection, id)?,
        records: record::of_session(connection, id)?,
        info,
    };
    let rows = 1 + session.log.len() + session.marks.len() + session.records.len();
    Ok((id.0, rows, Item::Session(session)))
}

pub(crate) fn earlier_record(row: &Row<'_>) -> rusqlite::Result<EarlierRecord> {
    let mut columns = Columns::new(row);
    Ok(EarlierRecord {
        id: columns.id()?,
        class_id: columns.id()?,
        student_id: columns.id()?,
        status: columns.named()?,
    })
}

fn write(connection: &Connection, item: &Item) -> rusqlite::Result<()> {
    match item {
        Item::Account(account) => {
            let there = user::find(connection, account.id)?.is_some();
            if there || user::insert_row(connection, account)? {
                return Ok(());
            }
            let taken = format!("account {}: another one has its e-mail address", account.id);
            Err(rusqlite::Error::ToSqlConversionFailure(taken.into()))
        }
        Item::Class(ClassWithStudents { class, student_ids }) => {
            if class::find(connection, class.id)?.is_none() {
                class::insert_row(connection, class)?;
            }
            student_ids.iter().try_for_each(|id| class::insert_enrolment(connection, class.id, *id).map(drop))
        }
        Item::Session(session) => write_session(connection, session),
        Item::EarlierRecord(EarlierRecord { id, class_id, student_id, status }) => connection
            .prepare_cached(
                "INSERT INTO earlier_records (id, class_id, student_id, status) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![id.bytes(), class_id.bytes(), student_id.bytes(), status.as_str()])
            .map(drop),
        Item::Mail(mail) => mail::insert_row(connection, mail),
        Item::Absences(absences) => mail::note(connection, *absences),
    }
}

fn write_session(connection: &Connection, session: &WholeSession) -> rusqlite::Result<()> {
    let WholeSession { info, log, marks, records } = session;
    let (at, by, counts) = match &info.state {
        SessionState::Open => (None, Actor::System, None),
        SessionState::Finished { at, by, counts } => (Some(at.millis()), *by, Some(counts)),
    };
    let added = connection
        .prepare_cached(
            "INSERT INTO sessions (id, class_id, teacher_id, started_at, first_revision, revision, finished_at,
                 finished_by, present, absent, late, excused)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            info.id.bytes(),
            info.class_id.bytes(),
            info.teacher_id.bytes(),
            info.started_at.millis(),
            integer(info.first_revision.0),
            integer(info.revision.0),
            at,
            session::by(by),
            counts.map(|counts| counts.present),
            counts.map(|counts| counts.absent),
            counts.map(|counts| counts.late),
            counts.map(|counts| counts.excused),
        ])?;
    if added == 0 {
        // It came with all that belongs to it.
        return Ok(());
    }
    let mut seq = integer(stream::head(connection)?);
    for entry in log {
        seq += 1;
        session::insert_entry(connection, seq, info.id, entry)?;
    }
    for (student, mark) in marks {
        session::write_mark(connection, info.id, *student, *mark)?;
    }
    record::insert(connection, records)
}
