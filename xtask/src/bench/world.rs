//! What the measured databases hold, and who is in them.
//!
//! A school of 64 teachers and 5,000 students: every teacher has a class of 50, one teacher beside them lectures to
//! 1,000 students and one to 5,000. Databases with a past have, in addition, finished sessions of a class of 100.
//! They are filled by SQL in the store's own schema, once, and copied for every use.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rollcall_core::{ClassId, Clock, SessionId, Timestamp, UserId};
use rollcall_store_sqlite::{OpenMode, SqliteStore};
use rusqlite::{Connection, params};
use serde_json::json;
use tempfile::TempDir;

/// What the measured servers sign tokens with.
pub(crate) const SECRET: &str = "measured-servers-sign-with-this-and-nobody-else";
/// Everybody's password.
pub(crate) const PASSWORD: &str = "correct horse";
/// Teachers with a class of [`CLASS_SIZE`] each.
pub(crate) const TEACHERS: usize = 64;
/// Students of such a class.
pub(crate) const CLASS_SIZE: usize = 50;
/// All students.
pub(crate) const STUDENTS: usize = 5_000;

/// Students of a class with a past.
const PAST_CLASS_SIZE: usize = 100;
/// Sessions that such a class has had.
const PAST_SESSIONS: usize = 100;
/// The first second of the ids and times in here: 2023-11-14.
const EPOCH: u32 = 1_700_000_000;
/// When everything was made, in milliseconds.
pub(crate) const CREATED: i64 = EPOCH as i64 * 1_000;

/// A class and who teaches it.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    pub id: ClassId,
    pub teacher: Person,
    first_student: usize,
    students: usize,
}

impl Class {
    /// One of the ordinary classes.
    pub(crate) fn ordinary(number: usize) -> Self {
        let first_student = number * CLASS_SIZE;
        Self { id: ClassId::from_bytes(id(2, number)), teacher: teacher(number), first_student, students: CLASS_SIZE }
    }

    /// The class of this many students in the lecture hall.
    pub(crate) fn lecture(students: usize) -> Self {
        let number = 1_000_000 + students;
        Self { id: ClassId::from_bytes(id(2, number)), teacher: teacher(number), first_student: 0, students }
    }

    /// One of the classes with a past. The first has one in every database with records.
    pub(crate) fn past(number: usize) -> Self {
        let first_student = number * PAST_CLASS_SIZE % STUDENTS;
        let teacher = teacher(2_000_000 + number);
        Self { id: ClassId::from_bytes(id(2, 2_000_000 + number)), teacher, first_student, students: PAST_CLASS_SIZE }
    }

    /// The students.
    pub(crate) fn students(self) -> impl Iterator<Item = Person> {
        (self.first_student..self.first_student + self.students).map(student)
    }
}

/// The classes without a past.
pub(crate) fn classes() -> impl Iterator<Item = Class> {
    (0..TEACHERS).map(Class::ordinary).chain([1_000, STUDENTS].into_iter().map(Class::lecture))
}

/// The students, and the teachers of the classes without a past.
pub(crate) fn everybody() -> impl Iterator<Item = Person> {
    (0..STUDENTS).map(student).chain(classes().map(|class| class.teacher))
}

/// Somebody with an account.
#[derive(Clone, Copy)]
pub(crate) struct Person {
    pub id: UserId,
    /// `teacher` or `student`.
    pub role: &'static str,
    number: usize,
}

fn teacher(number: usize) -> Person {
    Person { id: UserId::from_bytes(id(1, number)), number, role: "teacher" }
}

fn student(number: usize) -> Person {
    Person { id: UserId::from_bytes(id(0, number)), number, role: "student" }
}

impl Person {
    /// What the person is called.
    pub(crate) fn name(self) -> String {
        format!("{} {}", self.role, self.number)
    }

    /// The address to log in with.
    pub(crate) fn email(self) -> String {
        format!("{}{}@example.org", self.role, self.number)
    }

    /// A token as the server issues it.
    pub(crate) fn token(self) -> anyhow::Result<String> {
        let now = SystemClock::start().now().millis() / 1000;
        let claims = json!({
            "id": self.id.to_string(), "email": self.email(), "role": self.role,
            "iat": now, "exp": now + 24 * 3600, "jti": self.id.to_string(), "ver": 1,
        });
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).context("a token")
    }
}

fn id(kind: u8, number: usize) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&EPOCH.to_be_bytes());
    bytes[4..].copy_from_slice(&(number as u64).to_be_bytes());
    bytes[4] = kind;
    bytes
}

/// The databases, each made once and kept.
pub(crate) struct Databases {
    folder: PathBuf,
}

/// A copy of a database, in a folder that goes away with it.
pub(crate) struct Database {
    folder: TempDir,
}

impl Database {
    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("rollcall.db")
    }
}

impl Databases {
    /// Databases kept in `folder`.
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// No database: a folder for one.
    pub(crate) fn none(&self) -> anyhow::Result<Database> {
        Ok(Database { folder: super::scratch(&self.folder)? })
    }

    /// A copy of the database with the school and, from the past, `records` records.
    pub(crate) fn copy(&self, records: usize) -> anyhow::Result<Database> {
        let copy = self.none()?;
        make_schema(&copy.path())?;
        let connection = Connection::open(copy.path())?;
        let schema: String =
            connection.query_row("SELECT group_concat(sql) FROM sqlite_schema", [], |row| row.get(0))?;
        let mut hasher = DefaultHasher::new();
        (schema, include_str!("world.rs")).hash(&mut hasher);
        let kept = self.folder.join(format!("school-{records}-{:016x}.db", hasher.finish()));
        if !kept.exists() {
            eprintln!("  filling a database with {records} records");
            self.forget(&format!("school-{records}-"))?;
            fill(&connection, records)?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            // Under its own name only when it is whole.
            let part = kept.with_extension("part");
            fs::copy(copy.path(), &part)?;
            fs::rename(part, &kept)?;
        }
        drop(connection);
        fs::copy(&kept, copy.path())?;
        // What is to be forced to the disk later shall not wait for this.
        fs::File::open(copy.path())?.sync_all()?;
        Ok(copy)
    }
}

impl Databases {
    /// Removes what was kept under names that begin so: databases of another schema.
    fn forget(&self, prefix: &str) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// An empty database as the store makes it.
fn make_schema(path: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        SqliteStore::open(path, OpenMode::Tool, Arc::new(SystemClock::start()))?.close().await;
        Ok(())
    })
}

fn fill(connection: &Connection, records: usize) -> anyhow::Result<()> {
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; BEGIN")?;
    let sessions = records / PAST_CLASS_SIZE;
    let past = (0..sessions.div_ceil(PAST_SESSIONS)).map(Class::past);
    let hash = bcrypt::non_truncating_hash(PASSWORD, 10)?;
    let mut insert = connection.prepare(
        "INSERT INTO users (id, name, email, email_key, role, password_hash, token_version, disabled, created_at)
         VALUES (?1, ?2, ?3, ?3, ?4, ?5, 1, 0, ?6)",
    )?;
    let mut add_person = |person: Person| {
        insert.execute(params![person.id.bytes(), person.name(), person.email(), person.role, hash, CREATED]).map(drop)
    };
    for person in everybody().chain(past.clone().map(|class| class.teacher)) {
        add_person(person)?;
    }
    for class in classes().chain(past.clone()) {
        connection
            .prepare_cached(
                "INSERT INTO classes (id, name, teacher_id, archived, created_at) VALUES (?1, 'A class', ?2, 0, ?3)",
            )?
            .execute(params![class.id.bytes(), class.teacher.id.bytes(), CREATED])?;
        for student in class.students() {
            connection
                .prepare_cached("INSERT INTO enrolments (class_id, student_id) VALUES (?1, ?2)")?
                .execute([class.id.bytes(), student.id.bytes()])?;
        }
    }
    let mut past_sessions = PastSessions { connection, opened: 0, entries: 0 };
    for (number, class) in past.enumerate() {
        for nth in 0..PAST_SESSIONS.min(sessions - number * PAST_SESSIONS) {
            past_sessions.add(class, nth)?;
        }
    }
    connection.execute_batch("COMMIT; ANALYZE")?;
    Ok(())
}

/// Writes finished sessions in which everybody was marked.
struct PastSessions<'a> {
    connection: &'a Connection,
    opened: usize,
    entries: i64,
}

impl PastSessions<'_> {
    /// The `nth` session of a class.
    fn add(&mut self, class: Class, nth: usize) -> anyhow::Result<()> {
        self.opened += 1;
        let session = SessionId::from_bytes(id(3, self.opened));
        let entries = i64::try_from(PAST_CLASS_SIZE + 2)?;
        let first = i64::try_from(nth)? * entries + 1;
        let at = (i64::from(EPOCH) + i64::try_from(self.opened)? * 60) * 1000;
        let teacher = class.teacher.id.bytes();
        self.connection
            .prepare_cached(
                "INSERT INTO sessions (id, class_id, teacher_id, started_at, first_revision, revision, finished_at,
                     finished_by, present, absent, late, excused)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?4, ?3, ?7, 0, 0, 0)",
            )?
            .execute(params![
                session.bytes(),
                class.id.bytes(),
                teacher,
                at,
                first,
                first + entries - 1,
                i64::try_from(PAST_CLASS_SIZE)?
            ])?;
        self.log(session, first, "started", None, teacher, at)?;
        for (revision, student) in (first + 1..).zip(class.students()) {
            self.log(session, revision, "marked", Some(student.id.bytes()), teacher, at)?;
            self.connection.prepare_cached("INSERT INTO records VALUES (?1, ?2, 'present', ?3)")?.execute(params![
                session.bytes(),
                student.id.bytes(),
                at
            ])?;
        }
        self.log(session, first + entries - 1, "finished", None, teacher, at)
    }

    fn log(
        &mut self,
        session: SessionId,
        revision: i64,
        kind: &str,
        student: Option<[u8; 12]>,
        by: [u8; 12],
        at: i64,
    ) -> anyhow::Result<()> {
        self.entries += 1;
        let present = (kind == "finished").then_some(100_i64);
        let none = present.map(|_| 0);
        self.connection
            .prepare_cached(
                "INSERT INTO log (seq, session_id, revision, kind, student_id, new_status, present, absent, late,
                     excused, by_id, at, door, address, op, op_client)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?8, ?9, ?10, 'websocket', '127.0.0.1', ?11, 0)",
            )?
            .execute(params![
                self.entries,
                session.bytes(),
                revision,
                kind,
                student,
                student.map(|_| "present"),
                present,
                none,
                by,
                at,
                format!("past-{}", self.entries)
            ])?;
        Ok(())
    }
}

/// The clock of this machine.
pub(crate) struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "a clock asks the operating system")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}
