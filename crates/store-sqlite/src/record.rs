//! What stands after DONE.

use async_trait::async_trait;
use rollcall_core::id::{ClassId, ObjectId, SessionId, UserId};
use rollcall_core::record::Record;
use rollcall_core::store::{Records, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::SqliteStore;
use crate::row::Columns;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT records.session_id, sessions.class_id, records.student_id, records.status, records.marked_at
             FROM records JOIN sessions ON sessions.id = records.session_id ",
            $rest
        )
    };
}

#[async_trait]
impl Records for SqliteStore {
    async fn records(&self, session: SessionId, student: Option<UserId>) -> Result<Vec<Record>, StoreError> {
        self.readers
            .read(move |connection| match student {
                None => of_session(connection, session),
                Some(student) => Ok(of_student(connection, session, student)?.into_iter().collect()),
            })
            .await
    }

    async fn last_record(&self, class: ClassId, student: UserId) -> Result<Option<Record>, StoreError> {
        self.readers
            .read_consistent(move |connection| {
                // At most one session of the class is open, so that the last finished one is found at once.
                let last = connection
                    .prepare_cached(
                        "SELECT id FROM sessions WHERE class_id = ?1 AND finished_at IS NOT NULL
                         ORDER BY first_revision DESC LIMIT 1",
                    )?
                    .query_row([class.bytes()], |row| Columns::new(row).id())
                    .optional()?;
                match last {
                    Some(session) => of_student(connection, session, student),
                    None => earlier(connection, class, student),
                }
            })
            .await
    }
}

/// The records of a session, by student.
pub(crate) fn of_session(connection: &Connection, session: SessionId) -> rusqlite::Result<Vec<Record>> {
    connection
        .prepare_cached(select!("WHERE records.session_id = ?1 ORDER BY records.student_id"))?
        .query_map([session.bytes()], record)?
        .collect()
}

fn of_student(connection: &Connection, session: SessionId, student: UserId) -> rusqlite::Result<Option<Record>> {
    connection
        .prepare_cached(select!("WHERE records.session_id = ?1 AND records.student_id = ?2"))?
        .query_row([session.bytes(), student.bytes()], record)
        .optional()
}

/// The newest record of the student in the class that a backend before Rollcall left.
fn earlier(connection: &Connection, class_id: ClassId, student_id: UserId) -> rusqlite::Result<Option<Record>> {
    connection
        .prepare_cached(
            "SELECT id, status FROM earlier_records WHERE class_id = ?1 AND student_id = ?2 ORDER BY id DESC LIMIT 1",
        )?
        .query_row([class_id.bytes(), student_id.bytes()], |row| {
            let mut columns = Columns::new(row);
            let id: ObjectId = columns.id()?;
            let (session_id, marked_at) = (SessionId::NOTHING, Some(id.made_at()));
            Ok(Record { session_id, class_id, student_id, status: columns.named()?, marked_at })
        })
        .optional()
}

pub(crate) fn insert(connection: &Connection, records: &[Record]) -> rusqlite::Result<()> {
    let mut statement = connection
        .prepare_cached("INSERT INTO records (session_id, student_id, status, marked_at) VALUES (?1, ?2, ?3, ?4)")?;
    for record in records {
        statement.execute(params![
            record.session_id.bytes(),
            record.student_id.bytes(),
            record.status.as_str(),
            record.marked_at.map(rollcall_core::Timestamp::millis),
        ])?;
    }
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let mut columns = Columns::new(row);
    Ok(Record {
        session_id: columns.id()?,
        class_id: columns.id()?,
        student_id: columns.id()?,
        status: columns.named()?,
        marked_at: columns.optional_time()?,
    })
}
