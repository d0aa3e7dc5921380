//! Documents as values of the core, and back.
//!
//! Field names are the public ones, ids are `ObjectId`s, times are dates. What an earlier backend left out is filled
//! in; what cannot be understood is [`Damaged`], which names the document and never hides another.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc, oid};
use rollcall_core::class::{Class, ClassName, ClassWithStudents};
use rollcall_core::id::{ClassId, MailId, SessionId, UserId};
use rollcall_core::mail::{self, Kind, Mail, NewMail, StoredMail, TokenHash};
use rollcall_core::record::Record;
use rollcall_core::session::{
    Actor, Counts, Event, LogEntry, Mark, OpenSession, OperationId, Origin, Reason, Revision, SessionInfo,
    SessionState, Status,
};
use rollcall_core::store::Absences;
use rollcall_core::time::Timestamp;
use rollcall_core::user::{Account, Email, PasswordHash, Person, PersonName};

/// A document that breaks the rules.
#[derive(Debug, thiserror::Error)]
#[error("document {id} in {collection}: {problem}")]
pub(crate) struct Damaged {
    pub(crate) collection: &'static str,
    pub(crate) id: String,
    pub(crate) problem: Problem,
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem(pub(crate) String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

type Read<T> = Result<T, Problem>;

fn missing(field: &str) -> Problem {
    Problem(format!("`{field}` is missing or of another kind than it must be"))
}

/// An id as its 12 bytes.
pub(crate) trait Key: Copy {
    fn of(bytes: [u8; 12]) -> Self;
    fn raw(self) -> [u8; 12];
}

macro_rules! keys {
    ($($name:ident),+) => {$(
        impl Key for $name {
            fn of(bytes: [u8; 12]) -> Self {
                Self::from_bytes(bytes)
            }

            fn raw(self) -> [u8; 12] {
                self.bytes()
            }
        }
    )+};
}

keys!(UserId, ClassId, SessionId, MailId);

/// An id as the database has it.
pub(crate) fn id(id: impl Key) -> Bson {
    Bson::ObjectId(oid::ObjectId::from_bytes(id.raw()))
}

pub(crate) fn ids<T: Key>(list: impl IntoIterator<Item = T>) -> Bson {
    Bson::Array(list.into_iter().map(id).collect())
}

/// The id in `value`, if it is one.
pub(crate) fn as_id<T: Key>(value: Option<&Bson>) -> Option<T> {
    value.and_then(Bson::as_object_id).map(|id| T::of(id.bytes()))
}

/// A number as the database has it. None of ours comes near the limit.
pub(crate) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn time(time: Timestamp) -> Bson {
    Bson::DateTime(DateTime::from_millis(time.millis()))
}

pub(crate) fn get_id<T: Key>(doc: &Document, field: &str) -> Read<T> {
    as_id(doc.get(field)).ok_or_else(|| missing(field))
}

fn get_time(doc: &Document, field: &str) -> Read<Timestamp> {
    optional_time(doc, field).ok_or_else(|| missing(field))
}

fn optional_time(doc: &Document, field: &str) -> Option<Timestamp> {
    doc.get(field).and_then(Bson::as_datetime).map(|time| Timestamp::from_millis(time.timestamp_millis()))
}

fn get_text<'a>(doc: &'a Document, field: &str) -> Read<&'a str> {
    doc.get(field).and_then(Bson::as_str).ok_or_else(|| missing(field))
}

/// A flag, with what it means when it is missing.
fn flag(doc: &Document, field: &str, usual: bool) -> bool {
    doc.get(field).and_then(Bson::as_bool).unwrap_or(usual)
}

/// Finds those whose flag is not `wanted`, where a missing one means `usual`.
pub(crate) fn unless(wanted: bool, usual: bool) -> Bson {
    if wanted == usual { Bson::Boolean(!wanted) } else { doc! { "$ne": wanted }.into() }
}

/// A whole number of whatever width.
pub(crate) fn get_number(doc: &Document, field: &str) -> Option<i64> {
    match doc.get(field)? {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        _ => None,
    }
}

pub(crate) fn get_revision(doc: &Document, field: &str) -> Read<Revision> {
    let number = get_number(doc, field).and_then(|number| u64::try_from(number).ok());
    number.map(Revision).ok_or_else(|| missing(field))
}

fn get_named<T: FromStr>(doc: &Document, field: &str) -> Read<T> {
    get_text(doc, field)?.parse().map_err(|_| Problem(format!("`{field}` has a value that is not known")))
}

fn optional_named<T: FromStr>(doc: &Document, field: &str) -> Read<Option<T>> {
    if doc.contains_key(field) { get_named(doc, field).map(Some) } else { Ok(None) }
}

/// The ids in a list; what is no id in it is left out.
pub(crate) fn get_ids<T: Key>(doc: &Document, field: &str) -> Vec<T> {
    let list = doc.get(field).and_then(Bson::as_array);
    list.map(|list| list.iter().filter_map(|value| as_id(Some(value))).collect()).unwrap_or_default()
}

/// Names the document that could not be read.
pub(crate) fn name_damage<T>(collection: &'static str, doc: &Document, read: Read<T>) -> Result<T, Damaged> {
    read.map_err(|problem| damage(collection, doc, problem))
}

/// Names the document that something is wrong with.
pub(crate) fn damage(collection: &'static str, doc: &Document, problem: Problem) -> Damaged {
    let id = match doc.get("_id") {
        None => "without an id".to_owned(),
        Some(Bson::ObjectId(id)) => id.to_hex(),
        Some(other) => other.to_string(),
    };
    Damaged { collection, id, problem }
}

/// The document's value, or `None` and a line in the log: a broken document hides no other.
pub(crate) fn healthy<T>(collection: &'static str, doc: &Document, read: fn(&Document) -> Read<T>) -> Option<T> {
    name_damage(collection, doc, read(doc))
        .inspect_err(|damage| tracing::warn!(%damage, "a document is left out; `rollcall doctor` lists all such"))
        .ok()
}

pub(crate) fn account_doc(account: &Account) -> Document {
    doc! {
        "_id": id(account.id),
        "name": account.name.as_str(),
        "email": account.email.as_str(),
        "emailKey": account.email.key().as_str(),
        "role": account.role.as_str(),
        "password": account.password_hash.expose(),
        "tokenVersion": i64::from(account.token_version),
        "disabled": account.disabled,
        "emailConfirmed": account.email_confirmed,
        "absenceNotices": account.absence_notices,
        "createdAt": time(account.created_at),
    }
}

pub(crate) fn account(doc: &Document) -> Read<Account> {
    let id: UserId = get_id(doc, "_id")?;
    let password = match doc.get("password") {
        Some(Bson::String(hash)) => Some(hash.as_str()),
        // As bcrypt's bytes were once kept without a word about their being text.
        Some(Bson::Binary(Binary { bytes, .. })) => std::str::from_utf8(bytes).ok(),
        _ => None,
    };
    let version = if doc.contains_key("tokenVersion") {
        let version = get_number(doc, "tokenVersion").ok_or_else(|| missing("tokenVersion"))?;
        // It counts up for ever and is compared for being the same: the lower half is enough.
        u32::try_from(version.rem_euclid(1 << 32)).unwrap_or_default()
    } else {
        0
    };
    Ok(Account {
        id,
        name: PersonName::stored(get_text(doc, "name")?),
        email: Email::stored(get_text(doc, "email")?),
        role: get_named(doc, "role")?,
        password_hash: PasswordHash::stored(password.ok_or_else(|| missing("password"))?),
        token_version: version,
        disabled: flag(doc, "disabled", false),
        email_confirmed: flag(doc, "emailConfirmed", false),
        absence_notices: flag(doc, "absenceNotices", true),
        created_at: optional_time(doc, "createdAt").unwrap_or_else(|| id.0.made_at()),
    })
}

pub(crate) fn person(doc: &Document) -> Read<Person> {
    Ok(Person {
        id: get_id(doc, "_id")?,
        name: PersonName::stored(get_text(doc, "name")?),
        email: Email::stored(get_text(doc, "email")?),
    })
}

pub(crate) fn class_doc(class: &Class) -> Document {
    doc! {
        "_id": id(class.id),
        "className": class.name.as_str(),
        "teacherId": id(class.teacher_id),
        "studentIds": [],
        "archived": class.archived,
        "absenceNotices": class.absence_notices,
        "createdAt": time(class.created_at),
    }
}

/// The fields that [`class`] reads.
pub(crate) fn class_fields() -> Document {
    doc! { "className": 1, "teacherId": 1, "archived": 1, "absenceNotices": 1, "createdAt": 1 }
}

pub(crate) fn class(doc: &Document) -> Read<Class> {
    let id: ClassId = get_id(doc, "_id")?;
    Ok(Class {
        id,
        name: ClassName::stored(get_text(doc, "className")?),
        teacher_id: get_id(doc, "teacherId")?,
        archived: flag(doc, "archived", false),
        absence_notices: flag(doc, "absenceNotices", false),
        created_at: optional_time(doc, "createdAt").unwrap_or_else(|| id.0.made_at()),
    })
}

pub(crate) fn class_with_students(doc: &Document) -> Read<ClassWithStudents> {
    Ok(ClassWithStudents { class: class(doc)?, student_ids: students(doc) })
}

/// The students of a class, each once, in the order of enrolment.
pub(crate) fn students(doc: &Document) -> Vec<UserId> {
    let mut seen = std::collections::HashSet::new();
    get_ids(doc, "studentIds").into_iter().filter(|id| seen.insert(*id)).collect()
}

fn counts_doc(counts: &Counts) -> Document {
    doc! {
        "present": i64::from(counts.present),
        "absent": i64::from(counts.absent),
        "late": i64::from(counts.late),
        "excused": i64::from(counts.excused),
    }
}

fn counts(doc: &Document) -> Read<Counts> {
    let counts = doc.get("counts").and_then(Bson::as_document).ok_or_else(|| missing("counts"))?;
    let number = |field| {
        let number = get_number(counts, field).and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| missing(field))
    };
    Ok(Counts {
        present: number("present")?,
        absent: number("absent")?,
        late: number("late")?,
        excused: number("excused")?,
    })
}

fn actor(doc: &Document, field: &str) -> Read<Actor> {
    if doc.contains_key(field) { get_id(doc, field).map(Actor::User) } else { Ok(Actor::System) }
}

pub(crate) fn mark_doc(mark: &Mark) -> Document {
    doc! { "status": mark.status.as_str(), "at": time(mark.at), "rev": integer(mark.revision.0) }
}

fn mark(doc: &Document) -> Read<Mark> {
    Ok(Mark { status: get_named(doc, "status")?, at: get_time(doc, "at")?, revision: get_revision(doc, "rev")? })
}

/// The marks of a session, by student.
pub(crate) fn marks(doc: &Document) -> Read<Vec<(UserId, Mark)>> {
    let Some(marks) = doc.get("marks").and_then(Bson::as_document) else { return Ok(Vec::new()) };
    let mut found = Vec::with_capacity(marks.len());
    for (student, value) in marks {
        let student = UserId::parse(student).ok_or_else(|| missing("marks"))?;
        found.push((student, mark(value.as_document().ok_or_else(|| missing("marks"))?)?));
    }
    found.sort_unstable_by_key(|(student, _)| *student);
    Ok(found)
}

/// An entry as it stands in the session's `log`.
pub(crate) fn entry_doc(entry: &LogEntry) -> Document {
    let LogEntry { revision, event, origin } = entry;
    let mut doc = doc! { "rev": integer(revision.0) };
    let kind = match event {
        Event::Started => "started",
        Event::Enrolled { student_id } => {
            doc.insert("student", id(*student_id));
            "enrolled"
        }
        Event::Removed { student_id } => {
            doc.insert("student", id(*student_id));
            "removed"
        }
        Event::Marked { student_id, old, new, reason } => {
            doc.insert("student", id(*student_id));
            if let Some(old) = old {
                doc.insert("old", old.as_str());
            }
            doc.insert("new", new.as_str());
            if let Some(reason) = reason {
                doc.insert("reason", reason.as_str());
            }
            "marked"
        }
        Event::Summarised(counts) => {
            doc.insert("counts", counts_doc(counts));
            "summarised"
        }
        Event::Finished(counts) => {
            doc.insert("counts", counts_doc(counts));
            "finished"
        }
    };
    doc.insert("event", kind);
    if let Actor::User(by) = origin.by {
        doc.insert("by", id(by));
    }
    doc.insert("at", time(origin.at));
    doc.insert("door", origin.door.as_str());
    if let Some(address) = origin.address {
        doc.insert("address", address.to_string());
    }
    doc.insert("op", origin.operation.as_str());
    if let OperationId::Client(_) = origin.operation {
        doc.insert("named", true);
    }
    doc
}

pub(crate) fn entry(doc: &Document) -> Read<LogEntry> {
    let student = || get_id(doc, "student");
    let event = match get_text(doc, "event")? {
        "started" => Event::Started,
        "enrolled" => Event::Enrolled { student_id: student()? },
        "removed" => Event::Removed { student_id: student()? },
        "marked" => Event::Marked {
            student_id: student()?,
            old: optional_named::<Status>(doc, "old")?,
            new: get_named(doc, "new")?,
            reason: doc.get("reason").and_then(Bson::as_str).map(Reason::stored),
        },
        "summarised" => Event::Summarised(counts(doc)?),
        "finished" => Event::Finished(counts(doc)?),
        _ => return Err(Problem("an event of unknown kind".to_owned())),
    };
    let operation = get_text(doc, "op")?.into();
    let named = doc.get("named").and_then(Bson::as_bool).unwrap_or(false);
    let origin = Origin {
        by: actor(doc, "by")?,
        at: get_time(doc, "at")?,
        door: get_named(doc, "door")?,
        address: optional_named(doc, "address")?,
        operation: if named { OperationId::Client(operation) } else { OperationId::Door(operation) },
    };
    Ok(LogEntry { revision: get_revision(doc, "rev")?, event, origin })
}

/// The entries that a document has under `log`.
pub(crate) fn log(doc: &Document) -> Read<Vec<LogEntry>> {
    let log = doc.get("log").and_then(Bson::as_array).ok_or_else(|| missing("log"))?;
    log.iter().map(|value| entry(value.as_document().ok_or_else(|| missing("log"))?)).collect()
}

/// A session that was just opened.
pub(crate) fn session_doc(session: &OpenSession, first: &LogEntry) -> Document {
    let mut document = session_fields(session.info(), session.roster().iter().copied().collect());
    document.extend(doc! { "actors": [], "marks": {}, "log": [entry_doc(first)] });
    document
}

/// What every session has from its start on, beside its log and marks.
pub(crate) fn session_fields(info: &SessionInfo, mut roster: Vec<UserId>) -> Document {
    roster.sort_unstable();
    doc! {
        "_id": id(info.id),
        "classId": id(info.class_id),
        "teacherId": id(info.teacher_id),
        "state": "open",
        "startedAt": time(info.started_at),
        // The database puts its own time in, which no two sessions share.
        "opened": Bson::Timestamp(mongodb::bson::Timestamp { time: 0, increment: 0 }),
        "epoch": 0_i64,
        "firstRev": integer(info.first_revision.0),
        "rev": integer(info.revision.0),
        "roster": ids(roster),
    }
}

/// The fields that [`info`] reads.
pub(crate) fn info_fields() -> Document {
    doc! {
        "classId": 1, "teacherId": 1, "state": 1, "startedAt": 1, "firstRev": 1, "rev": 1, "finishedAt": 1,
        "finishedBy": 1, "counts": 1,
    }
}

pub(crate) fn info(doc: &Document) -> Read<SessionInfo> {
    let state = match get_text(doc, "state")? {
        "open" => SessionState::Open,
        "finished" => SessionState::Finished {
            at: get_time(doc, "finishedAt")?,
            by: actor(doc, "finishedBy")?,
            counts: counts(doc)?,
        },
        _ => return Err(missing("state")),
    };
    let info = SessionInfo {
        id: get_id(doc, "_id")?,
        class_id: get_id(doc, "classId")?,
        teacher_id: get_id(doc, "teacherId")?,
        started_at: get_time(doc, "startedAt")?,
        first_revision: get_revision(doc, "firstRev")?,
        revision: get_revision(doc, "rev")?,
        state,
    };
    if info.first_revision > info.revision {
        return Err(Problem("`rev` is less than `firstRev`".to_owned()));
    }
    Ok(info)
}

/// What DONE sets in a session.
pub(crate) fn finish_fields(info: &SessionInfo) -> Document {
    let mut fields = doc! { "rev": integer(info.revision.0) };
    if let SessionState::Finished { at, by, counts } = &info.state {
        fields.insert("state", "finished");
        fields.insert("finishedAt", time(*at));
        fields.insert("counts", counts_doc(counts));
        if let Actor::User(by) = by {
            fields.insert("finishedBy", id(*by));
        }
    }
    fields
}

/// The fields that [`open_session`] reads, and a few for the writer of marks.
pub(crate) fn open_fields() -> Document {
    let mut fields = info_fields();
    fields.extend(doc! { "roster": 1, "marks": 1, "epoch": 1, "actors": 1, "bytes": { "$bsonSize": "$$ROOT" } });
    fields
}

pub(crate) fn open_session(doc: &Document) -> Read<OpenSession> {
    let info = info(doc)?;
    if info.state != SessionState::Open {
        return Err(Problem("it is not open".to_owned()));
    }
    let marks: HashMap<_, _> = marks(doc)?.into_iter().collect();
    Ok(OpenSession::load(info, get_ids::<UserId>(doc, "roster"), marks))
}

pub(crate) fn record_doc(record: &Record) -> Document {
    let mut doc = doc! {
        "classId": id(record.class_id),
        "studentId": id(record.student_id),
        "status": record.status.as_str(),
        "sessionId": id(record.session_id),
    };
    if let Some(at) = record.marked_at {
        doc.insert("markedAt", time(at));
    }
    doc
}

pub(crate) fn record(doc: &Document) -> Read<Record> {
    Ok(Record {
        session_id: get_id(doc, "sessionId")?,
        class_id: get_id(doc, "classId")?,
        student_id: get_id(doc, "studentId")?,
        status: get_named(doc, "status")?,
        marked_at: optional_time(doc, "markedAt"),
    })
}

/// A record of an earlier backend: of no session, dated by its own id.
pub(crate) fn earlier_record(doc: &Document) -> Read<Record> {
    let own: SessionId = get_id(doc, "_id")?;
    Ok(Record {
        session_id: SessionId::NOTHING,
        class_id: get_id(doc, "classId")?,
        student_id: get_id(doc, "studentId")?,
        status: get_named(doc, "status")?,
        marked_at: Some(own.0.made_at()),
    })
}

/// A mail that is to be sent.
pub(crate) fn mail_doc(mail: &NewMail) -> Document {
    let NewMail { id, to, reason, token, queued_at, .. } = *mail;
    stored_mail_doc(&StoredMail { id, to, reason, token, queued_at, due_at: Some(queued_at), attempts: 0 })
}

/// A mail. Its `_id` is what it is queued only once for, so that one takes another's place by one write; what the mail
/// itself is known by is beside it.
pub(crate) fn stored_mail_doc(mail: &StoredMail) -> Document {
    let StoredMail { id: mail_id, to, reason, token: hash, queued_at, due_at, attempts } = *mail;
    let kind = reason.kind();
    let mut doc = doc! {
        "_id": reason.key(to),
        "mailId": id(mail_id),
        "to": id(to),
        "kind": kind.as_str(),
        "queuedAt": time(queued_at),
        "expiresAt": time(kind.expires_at(queued_at)),
        "attempts": i64::from(attempts),
    };
    if let mail::Reason::Absence { class_id, session_id } = reason {
        doc.insert("classId", id(class_id));
        doc.insert("sessionId", id(session_id));
    }
    if let Some(hash) = hash {
        doc.insert("token", token(hash));
    }
    if let Some(at) = due_at {
        doc.insert("dueAt", time(at));
    }
    doc
}

pub(crate) fn stored_mail(doc: &Document) -> Read<StoredMail> {
    let reason = match get_named(doc, "kind")? {
        Kind::ConfirmEmail => mail::Reason::ConfirmEmail,
        Kind::ResetPassword => mail::Reason::ResetPassword,
        Kind::Absence => {
            mail::Reason::Absence { class_id: get_id(doc, "classId")?, session_id: get_id(doc, "sessionId")? }
        }
    };
    let token = match doc.get("token") {
        None => None,
        Some(Bson::Binary(Binary { bytes, .. })) => {
            let bytes = bytes.as_slice().try_into().map_err(|_| missing("token"))?;
            Some(TokenHash::from_bytes(bytes))
        }
        Some(_) => return Err(missing("token")),
    };
    let attempts = get_number(doc, "attempts").and_then(|number| u32::try_from(number).ok());
    Ok(StoredMail {
        id: get_id(doc, "mailId")?,
        to: get_id(doc, "to")?,
        reason,
        token,
        queued_at: get_time(doc, "queuedAt")?,
        due_at: optional_time(doc, "dueAt"),
        attempts: attempts.ok_or_else(|| missing("attempts"))?,
    })
}

/// A mail that was just taken.
pub(crate) fn mail(doc: &Document) -> Read<Mail> {
    let StoredMail { id, to, reason, queued_at, attempts, .. } = stored_mail(doc)?;
    Ok(Mail { id, to, reason, queued_at, attempt: attempts })
}

pub(crate) fn token(hash: TokenHash) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: hash.bytes().to_vec() })
}

pub(crate) fn absences_doc(absences: &Absences) -> Document {
    doc! { "_id": id(absences.session_id), "classId": id(absences.class_id) }
}

pub(crate) fn absences(doc: &Document) -> Read<Absences> {
    Ok(Absences { session_id: get_id(doc, "_id")?, class_id: get_id(doc, "classId")? })
}
