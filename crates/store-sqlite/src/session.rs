//! Sessions: their rows, their logs, and what the writer does for a command.

use std::time::Duration;

use async_trait::async_trait;
use rollcall_core::error::Seen;
use rollcall_core::id::{ClassId, SessionId, UserId};
use rollcall_core::session::{
    Actor, Command, Counts, Event, LogEntry, Mark, OpenSession, OperationId, Origin, Reason, Refusal, Revision,
    SessionInfo, SessionState, Status,
};
use rollcall_core::store::{
    Absences, Outcome, OwnMark, Page, REPEAT_WINDOW, Receipt, SessionChange, Sessions, Started, StoreError, Target,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::row::{Columns, integer};
use crate::tx::Tx;
use crate::{SqliteStore, class, mail, record};

/// The columns that [`entry`] reads.
macro_rules! log_columns {
    () => {
        "log.revision, log.kind, log.student_id, log.old_status, log.new_status, log.reason, log.present, log.absent, \
         log.late, log.excused, log.by_id, log.at, log.door, log.address, log.op, log.op_client"
    };
}
pub(crate) use log_columns;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, class_id, teacher_id, started_at, first_revision, revision, finished_at, finished_by,
                    present, absent, late, excused
             FROM sessions ",
            $rest
        )
    };
}
pub(crate) use select;

#[async_trait]
impl Sessions for SqliteStore {
    async fn start(
        &self,
        id: SessionId,
        class: ClassId,
        teacher: UserId,
        origin: Origin,
    ) -> Result<Started, StoreError> {
        self.writer.call(move |tx| start(tx, id, class, teacher, origin)).await
    }

    async fn submit(&self, target: Target, command: Command, origin: Origin) -> Result<Receipt<Outcome>, StoreError> {
        let answer = self.writer.submit(move |tx| obey(tx, target, command, origin)).await?;
        Ok(Box::pin(answer.get()))
    }

    async fn open_session(&self, class: ClassId) -> Result<Option<OpenSession>, StoreError> {
        self.readers.read_consistent(move |connection| load_open(connection, class)).await
    }

    async fn open_sessions(&self) -> Result<Vec<OpenSession>, StoreError> {
        self.readers
            .read_consistent(|connection| {
                // The order alone would have SQLite go through all sessions there ever were.
                let mut statement = connection
                    .prepare_cached(select!("INDEXED BY sessions_open WHERE finished_at IS NULL ORDER BY no"))?;
                let found = statement.query_map([], info)?;
                found.map(|info| load(connection, info?)).collect()
            })
            .await
    }

    async fn count_open_sessions(&self) -> Result<u64, StoreError> {
        self.readers.read(count_open).await
    }

    async fn sessions_older_than(&self, age: Duration) -> Result<Vec<SessionId>, StoreError> {
        let before = self.clock.now().before(age);
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(
                        "SELECT id FROM sessions INDEXED BY sessions_open
                         WHERE finished_at IS NULL AND started_at < ?1 ORDER BY no",
                    )?
                    .query_map([before.millis()], |row| Columns::new(row).id())?
                    .collect()
            })
            .await
    }

    async fn own_mark(&self, student: UserId, class: Option<ClassId>) -> Result<OwnMark, StoreError> {
        self.readers.read_consistent(move |connection| own_mark(connection, student, class)).await
    }

    async fn sessions(&self, class: ClassId, page: Page<Revision>) -> Result<Vec<SessionInfo>, StoreError> {
        let before = page.after.map_or(i64::MAX, |revision| integer(revision.0));
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(select!(
                        "WHERE class_id = ?1 AND first_revision < ?2 ORDER BY first_revision DESC LIMIT ?3"
                    ))?
                    .query_map(params![class.bytes(), before, page.limit], info)?
                    .collect()
            })
            .await
    }

    async fn session(&self, class: ClassId, id: SessionId) -> Result<Option<SessionInfo>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(select!("WHERE id = ?1 AND class_id = ?2"))?
                    .query_row([id.bytes(), class.bytes()], info)
                    .optional()
            })
            .await
    }

    async fn log(
        &self,
        id: SessionId,
        student: Option<UserId>,
        page: Page<Revision>,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let after = integer(page.after.unwrap_or_default().0);
        self.readers
            .read(move |connection| {
                let entry = |row: &Row<'_>| entry(&mut Columns::new(row));
                match student {
                    None => connection
                        .prepare_cached(concat!(
                            "SELECT ",
                            log_columns!(),
                            " FROM log WHERE session_id = ?1 AND revision > ?2 ORDER BY revision LIMIT ?3"
                        ))?
                        .query_map(params![id.bytes(), after, page.limit], entry)?
                        .collect(),
                    Some(student) => connection
                        .prepare_cached(concat!(
                            "SELECT ",
                            log_columns!(),
                            " FROM log WHERE session_id = ?1 AND revision > ?2 AND student_id = ?4
                              ORDER BY revision LIMIT ?3"
                        ))?
                        .query_map(params![id.bytes(), after, page.limit, student.bytes()], entry)?
                        .collect(),
                }
            })
            .await
    }

    async fn marks(&self, id: SessionId, student: Option<UserId>) -> Result<Vec<(UserId, Mark)>, StoreError> {
        self.readers
            .read(move |connection| match student {
                None => marks(connection, id),
                Some(student) => Ok(mark(connection, id, student)?.map(|mark| (student, mark)).into_iter().collect()),
            })
            .await
    }
}

/// How many sessions are open.
pub(crate) fn count_open(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT count(*) FROM sessions WHERE finished_at IS NULL")?
        .query_row([], |row| Columns::new(row).sequence())
}

/// Reads what [`select`] names.
pub(crate) fn info(row: &Row<'_>) -> rusqlite::Result<SessionInfo> {
    let mut columns = Columns::new(row);
    Ok(SessionInfo {
        id: columns.id()?,
        class_id: columns.id()?,
        teacher_id: columns.id()?,
        started_at: columns.time()?,
        first_revision: columns.revision()?,
        revision: columns.revision()?,
        state: match columns.optional_time()? {
            None => SessionState::Open,
            Some(at) => SessionState::Finished {
                at,
                by: columns.optional_id()?.map_or(Actor::System, Actor::User),
                counts: counts(&mut columns)?,
            },
        },
    })
}

fn counts(columns: &mut Columns<'_, '_>) -> rusqlite::Result<Counts> {
    Ok(Counts {
        present: columns.number()?,
        absent: columns.number()?,
        late: columns.number()?,
        excused: columns.number()?,
    })
}

/// Reads [`log_columns`].
pub(crate) fn entry(columns: &mut Columns<'_, '_>) -> rusqlite::Result<LogEntry> {
    let revision = columns.revision()?;
    let kind = columns.text()?;
    let student: Option<UserId> = columns.optional_id()?;
    let (old, new): (Option<Status>, Option<Status>) = (columns.optional_named()?, columns.optional_named()?);
    let reason = columns.optional_text()?.map(Reason::stored);
    let (present, absent) = (columns.optional_number()?, columns.optional_number()?);
    let (late, excused) = (columns.optional_number()?, columns.optional_number()?);
    let counts = match (present, absent, late, excused) {
        (Some(present), Some(absent), Some(late), Some(excused)) => Some(Counts { present, absent, late, excused }),
        _ => None,
    };
    let event = match (&*kind, student, new, counts) {
        ("started", ..) => Event::Started,
        ("enrolled", Some(student_id), ..) => Event::Enrolled { student_id },
        ("removed", Some(student_id), ..) => Event::Removed { student_id },
        ("marked", Some(student_id), Some(new), _) => Event::Marked { student_id, old, new, reason },
        ("summarised", _, _, Some(counts)) => Event::Summarised(counts),
        ("finished", _, _, Some(counts)) => Event::Finished(counts),
        _ => return Err(columns.impossible("an event lacks what belongs to it")),
    };
    let by = columns.optional_id()?.map_or(Actor::System, Actor::User);
    let at = columns.time()?;
    let door = columns.named()?;
    let address = columns.optional_named()?;
    let operation = columns.text()?;
    let operation = if columns.flag()? { OperationId::Client(operation) } else { OperationId::Door(operation) };
    Ok(LogEntry { revision, event, origin: Origin { by, at, door, address, operation } })
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Started => "started",
        Event::Enrolled { .. } => "enrolled",
        Event::Removed { .. } => "removed",
        Event::Marked { .. } => "marked",
        Event::Summarised(_) => "summarised",
        Event::Finished(_) => "finished",
    }
}

pub(crate) fn by(actor: Actor) -> Option<[u8; 12]> {
    match actor {
        Actor::User(id) => Some(id.bytes()),
        Actor::System => None,
    }
}

/// Everything that happened in a session, by revision.
pub(crate) fn whole_log(connection: &Connection, id: SessionId) -> rusqlite::Result<Vec<LogEntry>> {
    connection
        .prepare_cached(concat!("SELECT ", log_columns!(), " FROM log WHERE session_id = ?1 ORDER BY revision"))?
        .query_map([id.bytes()], |row| entry(&mut Columns::new(row)))?
        .collect()
}

/// Writes an entry at a place of the committed stream.
pub(crate) fn insert_entry(
    connection: &Connection,
    seq: i64,
    session: SessionId,
    LogEntry { revision, event, origin }: &LogEntry,
) -> rusqlite::Result<()> {
    let (student, old, new, reason) = match event {
        Event::Enrolled { student_id } | Event::Removed { student_id } => (Some(student_id), None, None, None),
        Event::Marked { student_id, old, new, reason } => (Some(student_id), *old, Some(*new), reason.as_ref()),
        Event::Started | Event::Summarised(_) | Event::Finished(_) => (None, None, None, None),
    };
    let counts = match event {
        Event::Summarised(counts) | Event::Finished(counts) => Some(counts),
        _ => None,
    };
    connection
        .prepare_cached(
            "INSERT INTO log (seq, session_id, revision, kind, student_id, old_status, new_status, reason,
                 present, absent, late, excused, by_id, at, door, address, op, op_client)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        )?
        .execute(params![
            seq,
            session.bytes(),
            integer(revision.0),
            kind(event),
            student.map(|id| id.bytes()),
            old.map(Status::as_str),
            new.map(Status::as_str),
            reason.map(Reason::as_str),
            counts.map(|counts| counts.present),
            counts.map(|counts| counts.absent),
            counts.map(|counts| counts.late),
            counts.map(|counts| counts.excused),
            by(origin.by),
            origin.at.millis(),
            origin.door.as_str(),
            origin.address.map(|address| address.to_string()),
            origin.operation.as_str(),
            matches!(origin.operation, OperationId::Client(_)),
        ])
        .map(drop)
}

/// The marks of a session, by student.
pub(crate) fn marks(connection: &Connection, id: SessionId) -> rusqlite::Result<Vec<(UserId, Mark)>> {
    connection
        .prepare_cached("SELECT student_id, status, at, revision FROM marks WHERE session_id = ?1 ORDER BY student_id")?
        .query_map([id.bytes()], |row| {
            let mut columns = Columns::new(row);
            let student = columns.id()?;
            Ok((student, Mark { status: columns.named()?, at: columns.time()?, revision: columns.revision()? }))
        })?
        .collect()
}

fn mark(connection: &Connection, id: SessionId, student: UserId) -> rusqlite::Result<Option<Mark>> {
    connection
        .prepare_cached("SELECT status, at, revision FROM marks WHERE session_id = ?1 AND student_id = ?2")?
        .query_row([id.bytes(), student.bytes()], |row| {
            let mut columns = Columns::new(row);
            Ok(Mark { status: columns.named()?, at: columns.time()?, revision: columns.revision()? })
        })
        .optional()
}

fn open_info(connection: &Connection, class: ClassId) -> rusqlite::Result<Option<SessionInfo>> {
    connection
        .prepare_cached(select!("WHERE class_id = ?1 AND finished_at IS NULL"))?
        .query_row([class.bytes()], info)
        .optional()
}

fn load(connection: &Connection, info: SessionInfo) -> rusqlite::Result<OpenSession> {
    let roster = class::student_ids(connection, info.class_id)?;
    let marks = marks(connection, info.id)?;
    Ok(OpenSession::load(info, roster, marks))
}

/// The class's open session as the tables have it.
pub(crate) fn load_open(connection: &Connection, class: ClassId) -> rusqlite::Result<Option<OpenSession>> {
    open_info(connection, class)?.map(|info| load(connection, info)).transpose()
}

/// The class's revision while no session is open, or before the first.
fn last_revision(connection: &Connection, class: ClassId) -> rusqlite::Result<Revision> {
    let last = connection
        .prepare_cached("SELECT revision FROM sessions WHERE class_id = ?1 ORDER BY first_revision DESC LIMIT 1")?
        .query_row([class.bytes()], |row| Columns::new(row).revision())
        .optional()?;
    Ok(last.unwrap_or_default())
}

fn own_mark(connection: &Connection, student: UserId, class: Option<ClassId>) -> rusqlite::Result<OwnMark> {
    let Some(class_id) = class.map_or_else(|| newest_open_of_student(connection, student), |id| Ok(Some(id)))? else {
        return Ok(OwnMark::NoSession { seen: None });
    };
    let Some(session) = open_info(connection, class_id)? else {
        let revision = last_revision(connection, class_id)?;
        return Ok(OwnMark::NoSession { seen: Some(Seen { class_id, revision }) });
    };
    let seen = Seen { class_id, revision: session.revision };
    if !class::is_enrolled(connection, class_id, student)? {
        return Ok(OwnMark::NotEnrolled { seen });
    }
    let status = mark(connection, session.id, student)?.map(|mark| mark.status);
    Ok(OwnMark::Marked { seen, status })
}

fn newest_open_of_student(connection: &Connection, student: UserId) -> rusqlite::Result<Option<ClassId>> {
    connection
        .prepare_cached(
            "SELECT sessions.class_id FROM enrolments
             JOIN sessions ON sessions.class_id = enrolments.class_id AND sessions.finished_at IS NULL
             WHERE enrolments.student_id = ?1 ORDER BY sessions.no DESC LIMIT 1",
        )?
        .query_row([student.bytes()], |row| Columns::new(row).id())
        .optional()
}

fn start(
    tx: &mut Tx<'_>,
    id: SessionId,
    class_id: ClassId,
    teacher_id: UserId,
    origin: Origin,
) -> rusqlite::Result<Started> {
    let connection = tx.connection();
    if class::find_active(connection, class_id)?.is_none() {
        return Ok(Started::NoClass);
    }
    if let Some(session) = tx.take_open(class_id)? {
        let info = session.info().clone();
        tx.keep_open(session);
        return Ok(Started::Resumed(info));
    }
    let roster = class::student_ids(connection, class_id)?;
    let last = last_revision(connection, class_id)?;
    let (session, entry) = OpenSession::start(id, class_id, teacher_id, roster, last, origin);
    let info = session.info().clone();
    connection
        .prepare_cached(
            "INSERT INTO sessions (id, class_id, teacher_id, started_at, first_revision, revision)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            id.bytes(),
            class_id.bytes(),
            teacher_id.bytes(),
            info.started_at.millis(),
            integer(info.first_revision.0),
            integer(info.revision.0),
        ])?;
    tx.log(&info, entry)?;
    tx.keep_open(session);
    Ok(Started::New(info))
}

/// Writes what an open session decided: the entry, and the session's revision, which must be the one before it.
pub(crate) fn append(
    tx: &mut Tx<'_>,
    session: &OpenSession,
    entry: LogEntry,
) -> rusqlite::Result<std::sync::Arc<SessionChange>> {
    let revision = integer(entry.revision.0);
    let raised = tx
        .connection()
        .prepare_cached(
            "UPDATE sessions SET revision = ?2 WHERE id = ?1 AND revision = ?2 - 1 AND finished_at IS NULL",
        )?
        .execute(params![session.info().id.bytes(), revision])?;
    if raised != 1 {
        return Err(rusqlite::Error::StatementChangedRows(raised));
    }
    tx.log(session.info(), entry)
}

/// Ends a session: the records stand, the marks go.
pub(crate) fn finish(
    tx: &mut Tx<'_>,
    session: OpenSession,
    origin: Origin,
) -> rusqlite::Result<std::sync::Arc<SessionChange>> {
    let finished = session.finish(origin);
    let (SessionState::Finished { at, by: who, counts }, connection) = (&finished.info.state, tx.connection()) else {
        return Err(rusqlite::Error::InvalidQuery);
    };
    let ended = connection
        .prepare_cached(
            "UPDATE sessions SET revision = ?2, finished_at = ?3, finished_by = ?4, present = ?5, absent = ?6,
                 late = ?7, excused = ?8
             WHERE id = ?1 AND revision = ?2 - 1 AND finished_at IS NULL",
        )?
        .execute(params![
            finished.info.id.bytes(),
            integer(finished.info.revision.0),
            at.millis(),
            by(*who),
            counts.present,
            counts.absent,
            counts.late,
            counts.excused,
        ])?;
    if ended != 1 {
        return Err(rusqlite::Error::StatementChangedRows(ended));
    }
    record::insert(connection, &finished.records)?;
    let (session_id, class_id) = (finished.info.id, finished.info.class_id);
    if class::find(connection, class_id)?.is_some_and(|class| class.absence_notices) {
        mail::note(connection, Absences { session_id, class_id })?;
    }
    connection.prepare_cached("DELETE FROM marks WHERE session_id = ?1")?.execute([finished.info.id.bytes()])?;
    tx.log(&finished.info, finished.entry)
}

/// Carries out a command, unless it was done before or its session refuses.
fn obey(tx: &mut Tx<'_>, target: Target, command: Command, origin: Origin) -> rusqlite::Result<Outcome> {
    if let Some(change) = repeated(tx.connection(), target, &command, &origin)? {
        return Ok(Outcome::Repeated(change.into()));
    }
    let Some(class_id) = class_of(tx.connection(), target)? else {
        return Ok(Outcome::Refused { refusal: Refusal::NoSession, seen: None });
    };
    let session = tx.take_open(class_id)?;
    let (mut session, mine) = match (session, target) {
        (Some(session), Target::Session(id)) if session.info().id != id => (session, false),
        (Some(session), _) => (session, true),
        (None, _) => {
            let seen = Some(Seen { class_id, revision: last_revision(tx.connection(), class_id)? });
            return Ok(Outcome::Refused { refusal: Refusal::NoSession, seen });
        }
    };
    let seen = Some(Seen { class_id, revision: session.info().revision });
    let decided = match command {
        _ if !mine => Err(Refusal::NoSession),
        Command::Finish => return finish(tx, session, origin).map(Outcome::Done),
        Command::Summarise => session.summarise(origin),
        Command::Mark { student_id, status, reason } => session.mark(student_id, status, reason, origin),
    };
    let outcome = match decided {
        Ok(entry) => {
            if let Event::Marked { student_id, new, .. } = &entry.event {
                let mark = Mark { status: *new, at: entry.origin.at, revision: entry.revision };
                write_mark(tx.connection(), session.info().id, *student_id, mark)?;
            }
            Outcome::Done(append(tx, &session, entry)?)
        }
        Err(refusal) => Outcome::Refused { refusal, seen },
    };
    tx.keep_open(session);
    Ok(outcome)
}

pub(crate) fn write_mark(
    connection: &Connection,
    session: SessionId,
    student: UserId,
    mark: Mark,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO marks (session_id, student_id, status, at, revision) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (session_id, student_id)
             DO UPDATE SET status = excluded.status, at = excluded.at, revision = excluded.revision",
        )?
        .execute(params![
            session.bytes(),
            student.bytes(),
            mark.status.as_str(),
            mark.at.millis(),
            integer(mark.revision.0),
        ])
        .map(drop)
}

/// The class whose session the target may be.
fn class_of(connection: &Connection, target: Target) -> rusqlite::Result<Option<ClassId>> {
    let (sql, id) = match target {
        Target::Class(id) => return Ok(Some(id)),
        Target::OpenedBy(teacher) => (
            "SELECT class_id FROM sessions WHERE teacher_id = ?1 AND finished_at IS NULL ORDER BY no DESC LIMIT 1",
            teacher.bytes(),
        ),
        Target::Session(id) => ("SELECT class_id FROM sessions WHERE id = ?1", id.bytes()),
    };
    connection.prepare_cached(sql)?.query_row([id], |row| Columns::new(row).id()).optional()
}

/// What the same command did when it was sent before, if it was, and not too long ago.
fn repeated(
    connection: &Connection,
    target: Target,
    command: &Command,
    origin: &Origin,
) -> rusqlite::Result<Option<SessionChange>> {
    let OperationId::Client(operation) = &origin.operation else { return Ok(None) };
    let (kind, student, status, reason) = match command {
        Command::Mark { student_id, status, reason } => {
            ("marked", Some(student_id.bytes()), Some(status.as_str()), reason.as_ref().map(Reason::as_str))
        }
        Command::Summarise => ("summarised", None, None, None),
        Command::Finish => ("finished", None, None, None),
    };
    let window = i64::try_from(REPEAT_WINDOW.as_millis()).unwrap_or(i64::MAX);
    let at = origin.at.millis();
    let sql = concat!(
        "SELECT ",
        log_columns!(),
        ", sessions.id, sessions.class_id FROM log JOIN sessions ON sessions.id = log.session_id
          WHERE log.op_client = 1 AND log.by_id IS ?1 AND log.op = ?2 AND log.kind = ?3 AND log.student_id IS ?4
            AND log.new_status IS ?5 AND log.reason IS ?6 AND log.at BETWEEN ?7 AND ?8
          ORDER BY log.at DESC"
    );
    let mut statement = connection.prepare_cached(sql)?;
    let sent = params![
        by(origin.by),
        &**operation,
        kind,
        student,
        status,
        reason,
        at.saturating_sub(window),
        at.saturating_add(window)
    ];
    // Few at most: within the window one class takes the same command under the same name only once.
    let mut candidates = statement.query_map(sent, |row| {
        let mut columns = Columns::new(row);
        let entry = entry(&mut columns)?;
        Ok(SessionChange { session_id: columns.id()?, class_id: columns.id()?, entry })
    })?;
    let same = |change: &rusqlite::Result<SessionChange>| {
        change.as_ref().map_or(true, |change| change.is_repeated_by(target, command, origin))
    };
    candidates.find(same).transpose()
}
