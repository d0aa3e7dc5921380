//! Classes and who is in them.

use async_trait::async_trait;
use rollcall_core::class::{Class, ClassChange, ClassName, ClassWithStudents};
use rollcall_core::id::{ClassId, UserId};
use rollcall_core::session::Origin;
use rollcall_core::store::{Change, ClassChanged, Classes, Page, StoreError};
use rollcall_core::user::Person;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::SqliteStore;
use crate::row::Columns;
use crate::session;
use crate::tx::Tx;
use crate::user::person;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT classes.id, classes.name, classes.teacher_id, classes.archived, classes.absence_notices,
                    classes.created_at
             FROM classes ",
            $rest
        )
    };
}
pub(crate) use select;

#[async_trait]
impl Classes for SqliteStore {
    async fn insert_class(&self, class: Class) -> Result<(), StoreError> {
        self.writer.call(move |tx| insert(tx, &class)).await
    }

    async fn class(&self, id: ClassId) -> Result<Option<Class>, StoreError> {
        self.readers.read(move |connection| find(connection, id)).await
    }

    async fn student_ids(&self, id: ClassId) -> Result<Vec<UserId>, StoreError> {
        self.readers.read(move |connection| student_ids(connection, id)).await
    }

    async fn class_students(&self, id: ClassId) -> Result<Vec<Person>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(
                        "SELECT users.id, users.name, users.email
                         FROM enrolments JOIN users ON users.id = enrolments.student_id
                         WHERE enrolments.class_id = ?1 ORDER BY enrolments.no",
                    )?
                    .query_map([id.bytes()], person)?
                    .collect()
            })
            .await
    }

    async fn is_enrolled(&self, class: ClassId, student: UserId) -> Result<bool, StoreError> {
        self.readers.read(move |connection| is_enrolled(connection, class, student)).await
    }

    async fn classes_of_teacher(
        &self,
        teacher: UserId,
        archived: bool,
        page: Page<ClassId>,
    ) -> Result<Vec<ClassWithStudents>, StoreError> {
        self.readers
            .read_consistent(move |connection| {
                let mut statement = connection.prepare_cached(select!(
                    "WHERE teacher_id = ?1 AND archived = ?2 AND id > ?3 ORDER BY id LIMIT ?4"
                ))?;
                let found = statement.query_map(params![teacher.bytes(), archived, after(page), page.limit], class)?;
                found.map(|class| with_students(connection, class?)).collect()
            })
            .await
    }

    async fn classes_of_student(&self, student: UserId, page: Page<ClassId>) -> Result<Vec<Class>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(select!(
                        "JOIN enrolments ON enrolments.class_id = classes.id
                         WHERE enrolments.student_id = ?1 AND classes.archived = 0 AND enrolments.class_id > ?2
                         ORDER BY enrolments.class_id LIMIT ?3"
                    ))?
                    .query_map(params![student.bytes(), after(page), page.limit], class)?
                    .collect()
            })
            .await
    }

    async fn class_ids_of(&self, user: UserId) -> Result<Vec<ClassId>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(
                        "SELECT id FROM classes WHERE teacher_id = ?1 AND archived = 0
                         UNION
                         SELECT classes.id FROM enrolments JOIN classes ON classes.id = enrolments.class_id
                         WHERE enrolments.student_id = ?1 AND classes.archived = 0",
                    )?
                    .query_map([user.bytes()], |row| Columns::new(row).id())?
                    .collect()
            })
            .await
    }

    async fn change_class(&self, id: ClassId, change: ClassChange) -> Result<ClassChanged, StoreError> {
        self.writer.call(move |tx| apply(tx, id, change)).await
    }

    async fn archive_class(&self, id: ClassId, origin: Origin) -> Result<ClassChanged, StoreError> {
        self.writer.call(move |tx| archive(tx, id, origin)).await
    }

    async fn enrol(&self, class: ClassId, student: UserId, origin: Origin) -> Result<ClassChanged, StoreError> {
        self.writer.call(move |tx| enrol(tx, class, student, origin)).await
    }

    async fn remove_student(
        &self,
        class: ClassId,
        student: UserId,
        origin: Origin,
    ) -> Result<ClassChanged, StoreError> {
        self.writer.call(move |tx| remove_student(tx, class, student, origin)).await
    }
}

/// No id comes before the one that names nothing.
fn after(page: Page<ClassId>) -> [u8; 12] {
    page.after.unwrap_or(ClassId::NOTHING).bytes()
}

pub(crate) fn find(connection: &Connection, id: ClassId) -> rusqlite::Result<Option<Class>> {
    connection.prepare_cached(select!("WHERE id = ?1"))?.query_row([id.bytes()], class).optional()
}

/// The class, if it takes changes.
pub(crate) fn find_active(connection: &Connection, id: ClassId) -> rusqlite::Result<Option<Class>> {
    Ok(find(connection, id)?.filter(|class| !class.archived))
}

pub(crate) fn student_ids(connection: &Connection, id: ClassId) -> rusqlite::Result<Vec<UserId>> {
    connection
        .prepare_cached("SELECT student_id FROM enrolments WHERE class_id = ?1 ORDER BY no")?
        .query_map([id.bytes()], |row| Columns::new(row).id())?
        .collect()
}

pub(crate) fn is_enrolled(connection: &Connection, class: ClassId, student: UserId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM enrolments WHERE class_id = ?1 AND student_id = ?2")?
        .exists([class.bytes(), student.bytes()])
}

pub(crate) fn with_students(connection: &Connection, class: Class) -> rusqlite::Result<ClassWithStudents> {
    Ok(ClassWithStudents { student_ids: student_ids(connection, class.id)?, class })
}

fn now(tx: &Tx<'_>, class: Class) -> rusqlite::Result<ClassChanged> {
    with_students(tx.connection(), class).map(ClassChanged::Now)
}

fn told(class: &Class) -> Change {
    Change::Class { class_id: class.id, teacher_id: class.teacher_id }
}

fn insert(tx: &mut Tx<'_>, class: &Class) -> rusqlite::Result<()> {
    insert_row(tx.connection(), class)?;
    tx.tell(told(class))
}

pub(crate) fn insert_row(connection: &Connection, class: &Class) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO classes (id, name, teacher_id, archived, absence_notices, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            class.id.bytes(),
            class.name.as_str(),
            class.teacher_id.bytes(),
            class.archived,
            class.absence_notices,
            class.created_at.millis(),
        ])
        .map(drop)
}

fn apply(tx: &mut Tx<'_>, id: ClassId, change: ClassChange) -> rusqlite::Result<ClassChanged> {
    let Some(before) = find_active(tx.connection(), id)? else { return Ok(ClassChanged::NoClass) };
    let class = before.clone().changed(change);
    if class != before {
        tx.connection()
            .prepare_cached("UPDATE classes SET name = ?2, absence_notices = ?3 WHERE id = ?1")?
            .execute(params![id.bytes(), class.name.as_str(), class.absence_notices])?;
        tx.tell(told(&class))?;
    }
    now(tx, class)
}

fn archive(tx: &mut Tx<'_>, id: ClassId, origin: Origin) -> rusqlite::Result<ClassChanged> {
    let Some(mut class) = find_active(tx.connection(), id)? else { return Ok(ClassChanged::NoClass) };
    if let Some(session) = tx.take_open(id)? {
        session::finish(tx, session, origin)?;
    }
    tx.connection().prepare_cached("UPDATE classes SET archived = 1 WHERE id = ?1")?.execute([id.bytes()])?;
    class.archived = true;
    tx.tell(told(&class))?;
    now(tx, class)
}

fn enrol(tx: &mut Tx<'_>, id: ClassId, student_id: UserId, origin: Origin) -> rusqlite::Result<ClassChanged> {
    let Some(class) = find_active(tx.connection(), id)? else { return Ok(ClassChanged::NoClass) };
    // The session's roster is read from the same table: it must be known before that changes.
    let session = tx.take_open(id)?;
    if insert_enrolment(tx.connection(), id, student_id)? {
        tx.tell(Change::Enrolment { class_id: id, student_id, enrolled: true })?;
    }
    if let Some(mut session) = session {
        if let Some(entry) = session.enrol(student_id, origin) {
            session::append(tx, &session, entry)?;
        }
        tx.keep_open(session);
    }
    now(tx, class)
}

/// Writes the student behind those who are in the class, unless already in it: `false`.
pub(crate) fn insert_enrolment(connection: &Connection, class: ClassId, student: UserId) -> rusqlite::Result<bool> {
    let enrolled = connection
        .prepare_cached("INSERT INTO enrolments (class_id, student_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute([class.bytes(), student.bytes()])?;
    Ok(enrolled > 0)
}

fn remove_student(tx: &mut Tx<'_>, id: ClassId, student_id: UserId, origin: Origin) -> rusqlite::Result<ClassChanged> {
    let Some(class) = find_active(tx.connection(), id)? else { return Ok(ClassChanged::NoClass) };
    let session = tx.take_open(id)?;
    let removed = tx
        .connection()
        .prepare_cached("DELETE FROM enrolments WHERE class_id = ?1 AND student_id = ?2")?
        .execute([id.bytes(), student_id.bytes()])?;
    if removed > 0 {
        tx.tell(Change::Enrolment { class_id: id, student_id, enrolled: false })?;
    }
    if let Some(mut session) = session {
        if let Some(entry) = session.remove(student_id, origin) {
            session::append(tx, &session, entry)?;
        }
        tx.keep_open(session);
    }
    now(tx, class)
}

/// Reads what [`select`] names.
pub(crate) fn class(row: &Row<'_>) -> rusqlite::Result<Class> {
    let mut columns = Columns::new(row);
    Ok(Class {
        id: columns.id()?,
        name: ClassName::stored(columns.text()?),
        teacher_id: columns.id()?,
        archived: columns.flag()?,
        absence_notices: columns.flag()?,
        created_at: columns.time()?,
    })
}
