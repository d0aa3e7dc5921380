//! What stands after DONE.

use async_trait::async_trait;
use rollcall_core::id::{ClassId, SessionId, UserId};
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
                None => connection
                    .prepare_cached(select!("WHERE records.session_id = ?1 ORDER BY records.student_id"))?
                    .query_map([session.bytes()], record)?
                    .collect(),
                Some(student) => connection
                    .prepare_cached(select!("WHERE records.session_id = ?1 AND records.student_id = ?2"))?
                    .query_map([session.bytes(), student.bytes()], record)?
                    .collect(),
            })
            .await
    }

    async fn last_record(&self, class: ClassId, student: UserId) -> Result<Option<Record>, StoreError> {
        self.readers
            .read(move |connection| {
                // At most one session of the class is open, so that the last finished one is found at once.
                connection
                    .prepare_cached(select!(
                        "WHERE records.student_id = ?2 AND records.session_id =
                             (SELECT id FROM sessions WHERE class_id = ?1 AND finished_at IS NOT NULL
                              ORDER BY first_revision DESC LIMIT 1)"
                    ))?
                    .query_row([class.bytes(), student.bytes()], record)
                    .optional()
            })
            .await
    }
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
