//! The port for a database taken as a whole, to be carried into another store.
//!
//! It is apart from [`crate::store::Store`]: nobody serves a database that is being carried. A source is read in pages;
//! a target takes the same pages, knows how far it has come, and is served by nobody until it is complete. Both sides
//! say what they hold as [rows](Item::rows) of bytes that are the same on every store, so that two databases can be
//! compared without either knowing the other.
//!
//! To carry something new: a field in the item it belongs to, or a [`Part`] and an [`Item`] of its own; in either case
//! its bytes in [`Item::rows`], and both adapters.

use async_trait::async_trait;

use crate::class::{Class, ClassWithStudents};
use crate::id::{ClassId, ObjectId, UserId};
use crate::mail::{Reason as MailReason, StoredMail, TokenHash};
use crate::record::Record;
use crate::session::{Actor, Counts, Event, LogEntry, Mark, OperationId, Reason, SessionInfo, SessionState, Status};
use crate::store::{Absences, StoreError};
use crate::time::Timestamp;
use crate::user::{Account, UnknownName};

/// What a database is made of, in the order in which it is carried: what others point to comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Accounts, by id.
    Accounts,
    /// Classes with their students, by id.
    Classes,
    /// Sessions that are over, by id.
    FinishedSessions,
    /// Sessions that are open, in the order in which they were opened: commands without a class go by it.
    OpenSessions,
    /// What an earlier backend left, by id.
    EarlierRecords,
    /// Mails, by id.
    Mails,
    /// Sessions whose absent students are to be told, by id.
    Absences,
}

impl Part {
    /// Every part, in order.
    pub const ALL: [Self; 7] = [
        Self::Accounts,
        Self::Classes,
        Self::FinishedSessions,
        Self::OpenSessions,
        Self::EarlierRecords,
        Self::Mails,
        Self::Absences,
    ];

    /// The part's name, as a target keeps it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::Classes => "classes",
            Self::FinishedSessions => "finished sessions",
            Self::OpenSessions => "open sessions",
            Self::EarlierRecords => "earlier records",
            Self::Mails => "mails",
            Self::Absences => "absences",
        }
    }
}

impl std::str::FromStr for Part {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|part| part.as_str() == name).ok_or(UnknownName)
    }
}

/// A session with all that belongs to it. The roster of an open one is its class's list of students: the two never
/// differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeSession {
    /// What it is known by.
    pub info: SessionInfo,
    /// Everything that happened in it, by revision.
    pub log: Vec<LogEntry>,
    /// The marks of an open session, by student.
    pub marks: Vec<(UserId, Mark)>,
    /// The records of a finished session, by student.
    pub records: Vec<Record>,
}

/// A record that an earlier backend left: of no session, dated by its own id. It counts as long as no session of the
/// class has been finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlierRecord {
    /// Its own id.
    pub id: ObjectId,
    /// The class.
    pub class_id: ClassId,
    /// The student.
    pub student_id: UserId,
    /// What stands.
    pub status: Status,
}

/// One thing that is carried whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An account.
    Account(Account),
    /// A class and its students, in the order in which they were enrolled.
    Class(ClassWithStudents),
    /// A session.
    Session(WholeSession),
    /// What an earlier backend left.
    EarlierRecord(EarlierRecord),
    /// A mail.
    Mail(StoredMail),
    /// A session whose absent students are to be told.
    Absences(Absences),
}

/// What is counted and compared by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Accounts.
    Account,
    /// Classes.
    Class,
    /// Who is in which class.
    Enrolment,
    /// Sessions, open ones after the others.
    Session,
    /// What happened in sessions.
    LogEntry,
    /// Marks in open sessions.
    Mark,
    /// Records of finished sessions.
    Record,
    /// What an earlier backend left.
    EarlierRecord,
    /// Mails.
    Mail,
    /// Sessions whose absent students are to be told.
    Absences,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Account,
        Self::Class,
        Self::Enrolment,
        Self::Session,
        Self::LogEntry,
        Self::Mark,
        Self::Record,
        Self::EarlierRecord,
        Self::Mail,
        Self::Absences,
    ];

    /// What many of them are called.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Account => "accounts",
            Self::Class => "classes",
            Self::Enrolment => "enrolments",
            Self::Session => "sessions",
            Self::LogEntry => "log entries",
            Self::Mark => "open marks",
            Self::Record => "records",
            Self::EarlierRecord => "earlier records",
            Self::Mail => "mails",
            Self::Absences => "sessions with absences to tell",
        }
    }
}

/// Something in a source that breaks the rules, so that it cannot be carried as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands, such as a collection and an id.
    pub place: String,
    /// What is wrong, and what is left out for it.
    pub what: String,
}

/// Some of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    /// The items, in the part's order.
    pub items: Vec<Item>,
    /// What was met among them and left out.
    pub problems: Vec<Problem>,
    /// Where to go on; `None` at the end of the part.
    pub last: Option<ObjectId>,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being carried.
    pub part: Part,
    /// All of the part up to this id is there.
    pub after: Option<ObjectId>,
}

/// What an unfinished copy says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Names the content of the source, whatever it is kept in.
    pub fingerprint: String,
    /// How far it has come.
    pub progress: Progress,
}

/// What a target holds before anything is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Empty,
    /// A copy that has to go on.
    Unfinished(Marker),
    /// Something else, or a copy that is complete.
    Filled,
}

/// A database that nobody serves, as a whole.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// The items of `part` behind the one with id `after`, as many as are handled well at once.
    async fn read(&self, part: Part, after: Option<ObjectId>) -> Result<Items, StoreError>;

    /// Whether nothing else can change the database as long as this value lives.
    fn is_held(&self) -> bool;

    /// What is there.
    async fn state(&self) -> Result<State, StoreError>;
    /// Makes an empty database an unfinished copy, which no server takes.
    async fn begin(&self, marker: &Marker) -> Result<(), StoreError>;
    /// Adds items to an unfinished copy, which has then come as far as `progress`. Items that are there already are
    /// left as they are: the same call again changes nothing.
    async fn write(&self, items: Vec<Item>, progress: Progress) -> Result<(), StoreError>;
    /// Ends the copy: from now on the database is one like any other.
    async fn finish(&self) -> Result<(), StoreError>;

    /// Lets go of the database.
    async fn close(&self);
}

impl Item {
    /// Tells `visit` everything that the item holds, a row at a time: what it is one of, and its bytes, which are the
    /// same for the same content on every store and differ for any other.
    pub fn rows(&self, mut visit: impl FnMut(Kind, &[u8])) {
        let mut row = Row::default();
        match self {
            Self::Account(account) => visit(Kind::Account, row.account(account)),
            Self::Class(ClassWithStudents { class, student_ids }) => {
                visit(Kind::Class, row.class(class));
                for student in student_ids {
                    visit(Kind::Enrolment, row.start().id(class.id.0).id(student.0).end());
                }
            }
            Self::Session(WholeSession { info, log, marks, records }) => {
                visit(Kind::Session, row.session(info));
                for entry in log {
                    visit(Kind::LogEntry, row.entry(info, entry));
                }
                for (student, mark) in marks {
                    visit(Kind::Mark, row.mark(info, *student, mark));
                }
                for record in records {
                    visit(Kind::Record, row.record(record));
                }
            }
            Self::EarlierRecord(EarlierRecord { id, class_id, student_id, status }) => {
                let row = row.start().id(*id).id(class_id.0).id(student_id.0).text(status.as_str());
                visit(Kind::EarlierRecord, row.end());
            }
            Self::Mail(mail) => visit(Kind::Mail, row.mail(mail)),
            Self::Absences(Absences { session_id, class_id }) => {
                visit(Kind::Absences, row.start().id(session_id.0).id(class_id.0).end());
            }
        }
    }
}

/// Builds the bytes of one row after another. Every value carries its length or has a fixed one, so that no two rows
/// of one kind have the same bytes. Changing this makes copies that were begun before start anew.
#[derive(Default)]
struct Row(Vec<u8>);

impl Row {
    fn start(&mut self) -> &mut Self {
        self.0.clear();
        self
    }

    fn end(&self) -> &[u8] {
        &self.0
    }

    fn id(&mut self, id: ObjectId) -> &mut Self {
        self.0.extend(id.bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn time(&mut self, time: Timestamp) -> &mut Self {
        self.0.extend(time.millis().to_be_bytes());
        self
    }

    fn flag(&mut self, flag: bool) -> &mut Self {
        self.0.push(u8::from(flag));
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T) -> &mut Self) -> &mut Self {
        self.flag(value.is_some());
        match value {
            Some(value) => write(self, value),
            None => self,
        }
    }

    fn actor(&mut self, actor: Actor) -> &mut Self {
        let id = match actor {
            Actor::User(id) => Some(id.0),
            Actor::System => None,
        };
        self.optional(id, Self::id)
    }

    fn counts(&mut self, Counts { present, absent, late, excused }: Counts) -> &mut Self {
        for count in [present, absent, late, excused] {
            self.number(u64::from(count));
        }
        self
    }

    fn account(&mut self, account: &Account) -> &[u8] {
        let Account {
            id,
            name,
            email,
            role,
            password_hash,
            token_version,
            disabled,
            email_confirmed,
            absence_notices,
            created_at,
        } = account;
        self.start().id(id.0).text(name.as_str()).text(email.as_str()).text(role.as_str());
        self.text(password_hash.expose()).number(u64::from(*token_version)).flag(*disabled);
        self.flag(*email_confirmed).flag(*absence_notices).time(*created_at).end()
    }

    fn class(&mut self, class: &Class) -> &[u8] {
        let Class { id, name, teacher_id, archived, absence_notices, created_at } = class;
        self.start().id(id.0).text(name.as_str()).id(teacher_id.0).flag(*archived).flag(*absence_notices);
        self.time(*created_at).end()
    }

    fn session(&mut self, info: &SessionInfo) -> &[u8] {
        let SessionInfo { id, class_id, teacher_id, started_at, first_revision, revision, state } = info;
        self.start().id(id.0).id(class_id.0).id(teacher_id.0).time(*started_at);
        self.number(first_revision.0).number(revision.0);
        match state {
            SessionState::Open => self.text("open"),
            SessionState::Finished { at, by, counts } => self.text("finished").time(*at).actor(*by).counts(*counts),
        };
        self.end()
    }

    fn entry(&mut self, session: &SessionInfo, LogEntry { revision, event, origin }: &LogEntry) -> &[u8] {
        self.start().id(session.id.0).number(revision.0);
        match event {
            Event::Started => self.text("started"),
            Event::Enrolled { student_id } => self.text("enrolled").id(student_id.0),
            Event::Removed { student_id } => self.text("removed").id(student_id.0),
            Event::Marked { student_id, old, new, reason } => {
                self.text("marked").id(student_id.0).optional(old.map(Status::as_str), Self::text);
                self.text(new.as_str()).optional(reason.as_ref().map(Reason::as_str), Self::text)
            }
            Event::Summarised(counts) => self.text("summarised").counts(*counts),
            Event::Finished(counts) => self.text("finished").counts(*counts),
        };
        self.actor(origin.by).time(origin.at).text(origin.door.as_str());
        self.optional(origin.address.map(|address| address.to_string()), |row, address| row.text(&address));
        self.flag(matches!(origin.operation, OperationId::Client(_))).text(origin.operation.as_str()).end()
    }

    fn mark(&mut self, session: &SessionInfo, student: UserId, Mark { status, at, revision }: &Mark) -> &[u8] {
        self.start().id(session.id.0).id(student.0).text(status.as_str()).time(*at).number(revision.0).end()
    }

    fn mail(&mut self, mail: &StoredMail) -> &[u8] {
        let StoredMail { id, to, reason, token, queued_at, due_at, attempts } = mail;
        self.start().id(id.0).id(to.0).text(reason.kind().as_str());
        match reason {
            MailReason::ConfirmEmail | MailReason::ResetPassword => {}
            MailReason::Absence { class_id, session_id } => {
                self.id(class_id.0).id(session_id.0);
            }
        }
        self.optional(token.as_ref().map(TokenHash::bytes), |row, token| {
            row.0.extend(token);
            row
        });
        self.time(*queued_at).optional(*due_at, Self::time).number(u64::from(*attempts)).end()
    }

    fn record(&mut self, record: &Record) -> &[u8] {
        let Record { session_id, class_id, student_id, status, marked_at } = record;
        self.start().id(session_id.0).id(class_id.0).id(student_id.0).text(status.as_str());
        self.optional(*marked_at, Self::time).end()
    }
}
