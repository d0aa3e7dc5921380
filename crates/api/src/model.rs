//! What goes over the wire, in both directions, member by member.

use rollcall_core::class::{Class, ClassChange, ClassName, ClassWithStudents};
use rollcall_core::record::Record;
use rollcall_core::session::{Actor, Counts, Event, LogEntry, Mark, SessionInfo, SessionState};
use rollcall_core::user::{Account, Person};
use rollcall_core::{ClassId, Error, ObjectId, SessionId, Timestamp, UserId};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use utoipa::ToSchema;

/// An id as 24 hex digits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hex(ObjectId);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl From<UserId> for Hex {
    fn from(id: UserId) -> Self {
        Self(id.0)
    }
}

impl From<ClassId> for Hex {
    fn from(id: ClassId) -> Self {
        Self(id.0)
    }
}

impl From<SessionId> for Hex {
    fn from(id: SessionId) -> Self {
        Self(id.0)
    }
}

/// A moment as RFC 3339 in UTC, with milliseconds and `Z`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(Timestamp);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl From<Timestamp> for Moment {
    fn from(moment: Timestamp) -> Self {
        Self(moment)
    }
}

/// The body of every success.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope<T> {
    /// Always `true`.
    #[schema(example = true)]
    pub success: bool,
    /// The answer.
    pub data: T,
    /// Where the next page begins, if a page was asked for and more follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub next_cursor: Option<String>,
}

impl<T> Envelope<T> {
    /// A success with `data`.
    pub(crate) fn of(data: T) -> Self {
        Self { success: true, data, next_cursor: None }
    }
}

/// What somebody who signs up sends.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SignupBody {
    /// The person's name: 1 to 100 characters after trimming, no control characters.
    #[schema(example = "Ada Lovelace", min_length = 1, max_length = 100)]
    pub name: String,
    /// An e-mail address; unique without regard to case.
    #[schema(example = "ada@example.org")]
    pub email: String,
    /// At least 6 characters, at most 72 bytes.
    #[schema(example = "correct horse", format = Password, min_length = 6, max_length = 72)]
    pub password: String,
    /// What the account is to be.
    pub role: SignupRole,
    /// The code that lets teachers sign up, where the operator set one.
    #[schema(required = false)]
    pub signup_code: Option<String>,
}

/// What somebody can sign up as.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub(crate) enum SignupRole {
    /// Owns classes and takes attendance.
    Teacher,
    /// Is enrolled and marked.
    Student,
}

/// By text alone: a derived type would take `{"teacher": null}` too.
impl TryFrom<String> for SignupRole {
    type Error = &'static str;

    fn try_from(role: String) -> Result<Self, Self::Error> {
        match &*role {
            "teacher" => Ok(Self::Teacher),
            "student" => Ok(Self::Student),
            _ => Err("must be teacher or student"),
        }
    }
}

/// What somebody who logs in sends.
#[derive(Deserialize, ToSchema)]
pub(crate) struct LoginBody {
    /// The address, in any case.
    #[schema(example = "ada@example.org")]
    pub email: String,
    /// The password.
    #[schema(example = "correct horse", format = Password)]
    pub password: String,
}

/// A class that is to be made.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClassBody {
    /// 1 to 100 characters after trimming, no control characters.
    #[schema(example = "Algebra I", min_length = 1, max_length = 100)]
    class_name: String,
}

impl ClassBody {
    /// The name, held to its rule.
    pub(crate) fn name(&self) -> Result<ClassName, Error> {
        ClassName::parse(&self.class_name).map_err(|error| Error::Invalid(vec![error]))
    }
}

/// What is to change of a class; at least one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClassPatch {
    /// 1 to 100 characters after trimming, no control characters.
    #[schema(example = "Algebra I", min_length = 1, max_length = 100)]
    class_name: Option<String>,
    /// Whether students are told by e-mail that they were absent.
    absence_notices: Option<bool>,
}

impl ClassPatch {
    /// The change, held to the rules.
    pub(crate) fn change(self) -> Result<ClassChange, Error> {
        let Self { class_name, absence_notices } = self;
        if class_name.is_none() && absence_notices.is_none() {
            return Err(Error::invalid("className", "must be given, or absenceNotices"));
        }
        let name = class_name.map(|name| ClassName::parse(&name)).transpose();
        let name = name.map_err(|error| Error::Invalid(vec![error]))?;
        Ok(ClassChange { name, absence_notices })
    }
}

/// The address of an account.
#[derive(Deserialize, ToSchema)]
pub(crate) struct EmailBody {
    /// The address, in any case.
    #[schema(example = "ada@example.org")]
    pub email: String,
}

/// The token of a mail.
#[derive(Deserialize, ToSchema)]
pub(crate) struct TokenBody {
    /// What is behind the `#` of the link.
    pub token: String,
}

/// The token of a mail, and a new password.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ResetBody {
    /// What is behind the `#` of the link.
    pub token: String,
    /// At least 6 characters, at most 72 bytes.
    #[schema(example = "correct horse", format = Password, min_length = 6, max_length = 72)]
    pub password: String,
}

/// A student who is to be enrolled.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddStudentBody {
    /// The student's id.
    #[schema(example = "6553f1000102030405060708")]
    pub student_id: String,
}

/// The class whose session is to be opened.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StartBody {
    /// The class's id.
    #[schema(example = "6553f1000102030405060708")]
    pub class_id: String,
}

/// An account, for its owner.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserOut {
    #[serde(rename = "_id")]
    #[schema(value_type = String, example = "6553f1000102030405060708")]
    id: Hex,
    name: String,
    email: String,
    /// `teacher`, `student` or `admin`.
    #[schema(example = "teacher")]
    role: &'static str,
    /// Whether the address is known to be the person's.
    email_confirmed: bool,
}

impl From<&Account> for UserOut {
    fn from(account: &Account) -> Self {
        Self {
            id: account.id.into(),
            name: account.name.as_str().to_owned(),
            email: account.email.as_str().to_owned(),
            role: account.role.as_str(),
            email_confirmed: account.email_confirmed,
        }
    }
}

/// No news: it was done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Nothing {}

/// Whether the caller's address is confirmed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfirmationOut {
    /// If not, a mail is under way.
    pub email_confirmed: bool,
}

/// An address that was confirmed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConfirmedOut {
    pub email: String,
}

/// Whether somebody is told of absences by e-mail.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NoticesOut {
    pub absence_notices: bool,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenOut {
    /// A JWT; send it as `Authorization: Bearer …`, or as `token` when opening a WebSocket.
    pub token: String,
    /// Always `bearer`.
    #[serde(rename = "type")]
    #[schema(example = "bearer")]
    pub kind: &'static str,
}

/// Somebody in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PersonOut {
    #[serde(rename = "_id")]
    #[schema(value_type = String, example = "6553f1000102030405060708")]
    id: Hex,
    name: String,
    email: String,
}

impl From<Person> for PersonOut {
    fn from(person: Person) -> Self {
        Self { id: person.id.into(), name: person.name.as_str().to_owned(), email: person.email.as_str().to_owned() }
    }
}

/// A class, for its teacher.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClassOut {
    #[serde(rename = "_id")]
    #[schema(value_type = String, example = "6553f1000102030405060708")]
    id: Hex,
    class_name: String,
    #[schema(value_type = String)]
    teacher_id: Hex,
    /// In the order in which they were enrolled.
    #[schema(value_type = Vec<String>)]
    student_ids: Vec<Hex>,
    archived: bool,
    /// Whether students are told by e-mail that they were absent.
    absence_notices: bool,
}

impl From<ClassWithStudents> for ClassOut {
    fn from(ClassWithStudents { class, student_ids }: ClassWithStudents) -> Self {
        Self {
            id: class.id.into(),
            class_name: class.name.as_str().to_owned(),
            teacher_id: class.teacher_id.into(),
            student_ids: student_ids.into_iter().map(Hex::from).collect(),
            archived: class.archived,
            absence_notices: class.absence_notices,
        }
    }
}

/// A class in a list: for a student, without the others' ids.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClassItem {
    #[serde(rename = "_id")]
    #[schema(value_type = String, example = "6553f1000102030405060708")]
    id: Hex,
    class_name: String,
    #[schema(value_type = String)]
    teacher_id: Hex,
    /// For the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    student_ids: Option<Vec<Hex>>,
    archived: bool,
    /// Whether students are told by e-mail that they were absent; for the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    absence_notices: Option<bool>,
}

impl ClassItem {
    /// As a student sees it.
    pub(crate) fn for_student(class: &Class) -> Self {
        Self {
            id: class.id.into(),
            class_name: class.name.as_str().to_owned(),
            teacher_id: class.teacher_id.into(),
            student_ids: None,
            archived: class.archived,
            absence_notices: None,
        }
    }

    /// As its teacher sees it.
    pub(crate) fn for_teacher(class: &ClassWithStudents) -> Self {
        let student_ids = class.student_ids.iter().copied().map(Hex::from).collect();
        let absence_notices = Some(class.class.absence_notices);
        Self { student_ids: Some(student_ids), absence_notices, ..Self::for_student(&class.class) }
    }
}

/// A class with its students.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClassDetail {
    #[serde(rename = "_id")]
    #[schema(value_type = String, example = "6553f1000102030405060708")]
    id: Hex,
    class_name: String,
    #[schema(value_type = String)]
    teacher_id: Hex,
    /// In the order in which they were enrolled.
    students: Vec<PersonOut>,
}

impl ClassDetail {
    /// `class` with `students`.
    pub(crate) fn new(class: &Class, students: Vec<Person>) -> Self {
        Self {
            id: class.id.into(),
            class_name: class.name.as_str().to_owned(),
            teacher_id: class.teacher_id.into(),
            students: students.into_iter().map(PersonOut::from).collect(),
        }
    }
}

/// A session that was opened, or was open already.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StartedOut {
    #[schema(value_type = String)]
    class_id: Hex,
    /// UTC with milliseconds.
    #[schema(value_type = String, example = "2026-11-22T09:00:00.000Z")]
    started_at: Moment,
    #[schema(value_type = String)]
    session_id: Hex,
    /// The class's revision: what `since` counts in.
    revision: u64,
}

impl From<SessionInfo> for StartedOut {
    fn from(info: SessionInfo) -> Self {
        Self {
            class_id: info.class_id.into(),
            started_at: info.started_at.into(),
            session_id: info.id.into(),
            revision: info.revision.0,
        }
    }
}

/// What stands for the caller in a class.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MyAttendanceOut {
    #[schema(value_type = String)]
    class_id: Hex,
    /// `present`, `absent`, `late` or `excused` in the last finished session, or null.
    #[schema(example = "present")]
    status: Option<&'static str>,
    /// The session that the status is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    session_id: Option<Hex>,
}

impl MyAttendanceOut {
    /// The status of `record` in `class`.
    pub(crate) fn new(class: ClassId, record: Option<&Record>) -> Self {
        Self {
            class_id: class.into(),
            status: record.map(|record| record.status.as_str()),
            session_id: record.map(|record| record.session_id.into()),
        }
    }
}

/// How many have which status. `late` and `excused` are there when they occur.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct CountsOut {
    present: u32,
    absent: u32,
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    late: u32,
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    excused: u32,
    /// All who are marked.
    total: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl From<Counts> for CountsOut {
    fn from(counts: Counts) -> Self {
        let Counts { present, absent, late, excused } = counts;
        Self { present, absent, late, excused, total: counts.total() }
    }
}

/// A session of a class.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionOut {
    #[schema(value_type = String)]
    session_id: Hex,
    #[schema(value_type = String)]
    class_id: Hex,
    /// `open` or `finished`.
    #[schema(example = "finished")]
    state: &'static str,
    #[schema(value_type = String, example = "2026-11-22T09:00:00.000Z")]
    started_at: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    finished_at: Option<Moment>,
    /// Who ended it: an account's id, or `system`.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_by: Option<String>,
    /// The revision of its first event.
    first_revision: u64,
    /// The revision of its last event.
    revision: u64,
    /// What the records add up to, once they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<CountsOut>,
}

impl From<&SessionInfo> for SessionOut {
    fn from(info: &SessionInfo) -> Self {
        let (state, finished_at, finished_by, summary) = match info.state {
            SessionState::Open => ("open", None, None, None),
            SessionState::Finished { at, by, counts } => {
                ("finished", Some(at.into()), Some(actor(by)), Some(counts.into()))
            }
        };
        Self {
            session_id: info.id.into(),
            class_id: info.class_id.into(),
            state,
            started_at: info.started_at.into(),
            finished_at,
            finished_by,
            first_revision: info.first_revision.0,
            revision: info.revision.0,
            summary,
        }
    }
}

fn actor(actor: Actor) -> String {
    match actor {
        Actor::User(id) => id.to_string(),
        Actor::System => "system".to_owned(),
    }
}

/// A mark in an open session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MarkOut {
    #[schema(value_type = String)]
    student_id: Hex,
    /// `present`, `absent`, `late` or `excused`.
    #[schema(example = "present")]
    status: &'static str,
    #[schema(value_type = String, example = "2026-11-22T09:00:00.000Z")]
    marked_at: Moment,
    revision: u64,
}

impl MarkOut {
    /// `mark` of `student`.
    pub(crate) fn new(student: UserId, mark: Mark) -> Self {
        Self {
            student_id: student.into(),
            status: mark.status.as_str(),
            marked_at: mark.at.into(),
            revision: mark.revision.0,
        }
    }
}

/// The open session of a class.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenSessionOut {
    /// The session.
    #[serde(flatten)]
    pub session: SessionOut,
    /// What the marks add up to; for the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<CountsOut>,
    /// Who can be marked; for the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roster: Option<Vec<PersonOut>>,
    /// Who is marked what, by student; for the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marks: Option<Vec<MarkOut>>,
    /// The caller's own status, or `not yet updated`; for a student alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "present")]
    pub status: Option<&'static str>,
}

/// What stands for one student after a session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecordOut {
    #[schema(value_type = String)]
    student_id: Hex,
    /// `present`, `absent`, `late` or `excused`.
    #[schema(example = "present")]
    status: &'static str,
    /// When the student was last marked; absent for one who never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    marked_at: Option<Moment>,
}

impl From<Record> for RecordOut {
    fn from(record: Record) -> Self {
        Self {
            student_id: record.student_id.into(),
            status: record.status.as_str(),
            marked_at: record.marked_at.map(Moment::from),
        }
    }
}

/// One event of a session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogOut {
    revision: u64,
    /// `START`, `ENROLLED`, `REMOVED`, `ATTENDANCE_MARKED`, `TODAY_SUMMARY` or `DONE`.
    #[schema(example = "ATTENDANCE_MARKED")]
    event: &'static str,
    #[schema(value_type = String, example = "2026-11-22T09:00:00.000Z")]
    at: Moment,
    /// Who did it: an account's id, or `system`.
    by: String,
    /// `http`, `websocket` or `system`.
    #[schema(example = "websocket")]
    door: &'static str,
    /// Where it came from; for the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// The command's own id; for the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    student_id: Option<Hex>,
    /// The status before; null for a first mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    old: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    counts: LogCounts,
}

/// The counts that were announced, or that the records add up to: members of `TODAY_SUMMARY` and `DONE` alone.
#[derive(Debug, Default, Serialize, ToSchema)]
struct LogCounts {
    #[serde(skip_serializing_if = "Option::is_none")]
    present: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    excused: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u32>,
}

impl From<Counts> for LogCounts {
    fn from(counts: Counts) -> Self {
        let CountsOut { present, absent, late, excused, total } = counts.into();
        let when_there = |count: u32| (count > 0).then_some(count);
        Self {
            present: Some(present),
            absent: Some(absent),
            late: when_there(late),
            excused: when_there(excused),
            total: Some(total),
        }
    }
}

impl LogOut {
    /// The entry; where the command came from is for the teacher alone.
    pub(crate) fn new(entry: LogEntry, for_teacher: bool) -> Self {
        let LogEntry { revision, event, origin } = entry;
        let mut out = Self {
            revision: revision.0,
            event: "",
            at: origin.at.into(),
            by: actor(origin.by),
            door: origin.door.as_str(),
            address: origin.address.filter(|_| for_teacher).map(|address| address.to_string()),
            operation_id: for_teacher.then(|| origin.operation.as_str().to_owned()),
            student_id: None,
            old: None,
            new: None,
            reason: None,
            counts: LogCounts::default(),
        };
        match event {
            Event::Started => out.event = "START",
            Event::Enrolled { student_id } => (out.event, out.student_id) = ("ENROLLED", Some(student_id.into())),
            Event::Removed { student_id } => (out.event, out.student_id) = ("REMOVED", Some(student_id.into())),
            Event::Marked { student_id, old, new, reason } => {
                out.event = "ATTENDANCE_MARKED";
                out.student_id = Some(student_id.into());
                out.old = Some(old.map_or(Value::Null, |old| old.as_str().into()));
                out.new = Some(new.as_str());
                out.reason = reason.map(|reason| reason.as_str().to_owned());
            }
            Event::Summarised(counts) => (out.event, out.counts) = ("TODAY_SUMMARY", counts.into()),
            Event::Finished(counts) => (out.event, out.counts) = ("DONE", counts.into()),
        }
        out
    }
}

/// A session with what stands and what happened; for a student, the own part.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HistoryOut {
    /// The session.
    #[serde(flatten)]
    pub session: SessionOut,
    /// What stands, by student; empty while the session is open. On the first page only.
    pub records: Vec<RecordOut>,
    /// What happened, by revision.
    pub log: Vec<LogOut>,
}
