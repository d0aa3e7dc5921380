//! A session: the unit of consistency.
//!
//! A session is [`OpenSession`] until [`OpenSession::finish`] consumes it. Every event of it is one [`LogEntry`] and
//! raises the revision by one. The rules stand here and only here: a store loads an `OpenSession`, asks it to decide,
//! and makes the decided entry durable in one atomic step; it throws the value away when that step fails.
//!
//! Revisions count on over the sessions of a class (a session's first is one more than the last of the session
//! before), so that `(class, revision)` names one moment in the life of a class, whatever session it fell into.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::FieldError;
use crate::id::{ClassId, SessionId, UserId};
use crate::record::Record;
use crate::time::Timestamp;
use crate::user::UnknownName;

/// The most entries that the log of one session takes; DONE and changes of the roster always fit.
pub const MAX_LOG_ENTRIES: u64 = 20_000;
/// The most characters of a reason given with a mark.
pub const REASON_MAX_CHARS: usize = 200;
/// The most bytes of a client's operation id.
pub const OPERATION_MAX_BYTES: usize = 64;

/// What a student was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// There.
    Present,
    /// Not there.
    Absent,
    /// There, but not in time.
    Late,
    /// Not there, with leave.
    Excused,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Present, Self::Absent, Self::Late, Self::Excused];

    /// The status's public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Absent => "absent",
            Self::Late => "late",
            Self::Excused => "excused",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|status| status.as_str() == name).ok_or(UnknownName)
    }
}

/// How many students have which status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Marked present.
    pub present: u32,
    /// Marked absent, or unmarked at DONE.
    pub absent: u32,
    /// Marked late.
    pub late: u32,
    /// Marked excused.
    pub excused: u32,
}

impl Counts {
    /// All who have a status.
    pub const fn total(self) -> u32 {
        self.present + self.absent + self.late + self.excused
    }

    /// Counts one more of `status`.
    pub fn add(&mut self, status: Status) {
        *self.of(status) += 1;
    }

    fn of(&mut self, status: Status) -> &mut u32 {
        match status {
            Status::Present => &mut self.present,
            Status::Absent => &mut self.absent,
            Status::Late => &mut self.late,
            Status::Excused => &mut self.excused,
        }
    }

    fn replace(&mut self, old: Option<Status>, new: Status) {
        if let Some(old) = old {
            *self.of(old) -= 1;
        }
        self.add(new);
    }
}

impl FromIterator<Status> for Counts {
    fn from_iter<I: IntoIterator<Item = Status>>(statuses: I) -> Self {
        let mut counts = Self::default();
        statuses.into_iter().for_each(|status| counts.add(status));
        counts
    }
}

/// A moment in the life of a class. 0 is before its first session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of the event after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names one command, so that a command whose outcome got lost can be sent again without being done twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OperationId {
    /// The client chose it (`requestId`) and may send the same command again.
    Client(Arc<str>),
    /// The door made it; it comes only once.
    Door(Arc<str>),
}

impl OperationId {
    /// An id chosen by a client: 1 to [`OPERATION_MAX_BYTES`] bytes without control characters, else `None`.
    pub fn from_client(text: &str) -> Option<Self> {
        let valid = (1..=OPERATION_MAX_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
        valid.then(|| Self::Client(text.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Client(text) | Self::Door(text) => text,
        }
    }
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// Somebody with an account.
    User(UserId),
    /// Rollcall itself, such as when a session grew too old.
    System,
}

/// By which way a command came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// An HTTP call.
    Http,
    /// A WebSocket.
    WebSocket,
    /// Rollcall's own timer.
    System,
}

impl Door {
    /// The door's public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "websocket",
            Self::System => "system",
        }
    }
}

impl FromStr for Door {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        [Self::Http, Self::WebSocket, Self::System].into_iter().find(|door| door.as_str() == name).ok_or(UnknownName)
    }
}

/// Who did what from where: what every log entry says beside the event itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who.
    pub by: Actor,
    /// When, by the clock of the process that took the command.
    pub at: Timestamp,
    /// By which way.
    pub door: Door,
    /// The client's address, where there is one.
    pub address: Option<IpAddr>,
    /// The command's own name.
    pub operation: OperationId,
}

/// Why a student was marked so: at most [`REASON_MAX_CHARS`] characters, no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Arc<str>);

impl Reason {
    /// Holds `text`, sent as `reason`, to the rule. An empty reason is none.
    pub fn parse(text: &str) -> Result<Option<Self>, FieldError> {
        let text = text.trim();
        if text.chars().count() > REASON_MAX_CHARS || text.chars().any(char::is_control) {
            let message = format!("must have at most {REASON_MAX_CHARS} characters, none of them a control character");
            return Err(FieldError { field: "reason", message });
        }
        Ok((!text.is_empty()).then(|| Self(text.into())))
    }

    /// What a store kept.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The reason.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What happened in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The teacher opened it.
    Started,
    /// A student joined the class while it was open.
    Enrolled {
        /// Who.
        student_id: UserId,
    },
    /// A student left the class while it was open. A mark made before stands.
    Removed {
        /// Who.
        student_id: UserId,
    },
    /// A student was marked.
    Marked {
        /// Who.
        student_id: UserId,
        /// The status before, if there was one.
        old: Option<Status>,
        /// The status from now on.
        new: Status,
        /// Why, where the teacher said so.
        reason: Option<Reason>,
    },
    /// The teacher announced how many have been marked what.
    Summarised(Counts),
    /// The session ended; the records stand.
    Finished(Counts),
}

impl Event {
    /// Whether a command that is sent again asks for what this event did.
    fn is_repeated_by(&self, again: &Command) -> bool {
        match (self, again) {
            (
                Self::Marked { student_id, new, reason, .. },
                Command::Mark { student_id: student, status, reason: why },
            ) => student_id == student && new == status && reason == why,
            (Self::Summarised(_), Command::Summarise) | (Self::Finished(_), Command::Finish) => true,
            _ => false,
        }
    }
}

/// One event of a session with all that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The class's revision from then on.
    pub revision: Revision,
    /// What happened.
    pub event: Event,
    /// Who did it, when and from where.
    pub origin: Origin,
}

impl LogEntry {
    /// Whether a command that comes with this entry's actor and operation id is the same command sent again.
    pub fn is_repeated_by(&self, command: &Command, origin: &Origin) -> bool {
        self.origin.by == origin.by && self.origin.operation == origin.operation && self.event.is_repeated_by(command)
    }
}

/// What can be asked of an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Marks a student, or corrects a mark.
    Mark {
        /// Who.
        student_id: UserId,
        /// What they are.
        status: Status,
        /// Why, optionally.
        reason: Option<Reason>,
    },
    /// Announces the counts.
    Summarise,
    /// Ends the session.
    Finish,
}

/// Why an open session does not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No session is open that the command could concern.
    NoSession,
    /// The student is not in the class.
    NotEnrolled,
    /// The log has [`MAX_LOG_ENTRIES`].
    LogFull,
}

/// What a session is known by, open or finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// The class it is of.
    pub class_id: ClassId,
    /// The teacher who opened it.
    pub teacher_id: UserId,
    /// When it was opened.
    pub started_at: Timestamp,
    /// The revision of its first entry.
    pub first_revision: Revision,
    /// The revision of its last entry.
    pub revision: Revision,
    /// Whether it is still open.
    pub state: SessionState,
}

/// Where a session stands in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It takes marks.
    Open,
    /// The records stand.
    Finished {
        /// When it ended.
        at: Timestamp,
        /// Who ended it.
        by: Actor,
        /// What the records add up to.
        counts: Counts,
    },
}

/// A student's present status in an open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The status.
    pub status: Status,
    /// When it was given.
    pub at: Timestamp,
    /// The revision that gave it.
    pub revision: Revision,
}

/// What [`OpenSession::finish`] leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedSession {
    /// The session in its last state.
    pub info: SessionInfo,
    /// The entry that says so.
    pub entry: LogEntry,
    /// One record per student who is enrolled or was marked, ordered by student.
    pub records: Vec<Record>,
}

/// A session that takes events: the roster, the marks and the revision, without the log behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    info: SessionInfo,
    roster: HashSet<UserId>,
    marks: HashMap<UserId, Mark>,
    counts: Counts,
}

impl OpenSession {
    /// Opens a session for `roster`, after everything that happened in the class up to `last`.
    pub fn start(
        id: SessionId,
        class_id: ClassId,
        teacher_id: UserId,
        roster: impl IntoIterator<Item = UserId>,
        last: Revision,
        origin: Origin,
    ) -> (Self, LogEntry) {
        let info = SessionInfo {
            id,
            class_id,
            teacher_id,
            started_at: origin.at,
            first_revision: last.next(),
            revision: last,
            state: SessionState::Open,
        };
        let mut session = Self::load(info, roster, []);
        let entry = session.append(Event::Started, origin);
        (session, entry)
    }

    /// A session as a store kept it. `info.state` must be [`SessionState::Open`].
    pub fn load(
        info: SessionInfo,
        roster: impl IntoIterator<Item = UserId>,
        marks: impl IntoIterator<Item = (UserId, Mark)>,
    ) -> Self {
        debug_assert_eq!(info.state, SessionState::Open);
        let marks: HashMap<_, _> = marks.into_iter().collect();
        let counts = marks.values().map(|mark| mark.status).collect();
        Self { info, roster: roster.into_iter().collect(), marks, counts }
    }

    /// What the session is known by.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Who can be marked.
    pub fn roster(&self) -> &HashSet<UserId> {
        &self.roster
    }

    /// Who has been marked what; this may include students who have left the class since.
    pub fn marks(&self) -> &HashMap<UserId, Mark> {
        &self.marks
    }

    /// What the marks add up to.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds a student to the roster. One who is on it already changes nothing: `None`.
    pub fn enrol(&mut self, student_id: UserId, origin: Origin) -> Option<LogEntry> {
        self.roster.insert(student_id).then(|| self.append(Event::Enrolled { student_id }, origin))
    }

    /// Takes a student off the roster. One who is not on it changes nothing: `None`.
    pub fn remove(&mut self, student_id: UserId, origin: Origin) -> Option<LogEntry> {
        self.roster.remove(&student_id).then(|| self.append(Event::Removed { student_id }, origin))
    }

    /// Marks a student who is on the roster; marking again corrects.
    pub fn mark(
        &mut self,
        student_id: UserId,
        status: Status,
        reason: Option<Reason>,
        origin: Origin,
    ) -> Result<LogEntry, Refusal> {
        if !self.roster.contains(&student_id) {
            return Err(Refusal::NotEnrolled);
        }
        self.check_room()?;
        let mark = Mark { status, at: origin.at, revision: self.info.revision.next() };
        let old = self.marks.insert(student_id, mark).map(|mark| mark.status);
        self.counts.replace(old, status);
        Ok(self.append(Event::Marked { student_id, old, new: status, reason }, origin))
    }

    /// Puts the counts of this moment into the log.
    pub fn summarise(&mut self, origin: Origin) -> Result<LogEntry, Refusal> {
        self.check_room()?;
        Ok(self.append(Event::Summarised(self.counts), origin))
    }

    /// Ends the session: who is on the roster and unmarked becomes absent, and the records stand.
    pub fn finish(mut self, origin: Origin) -> FinishedSession {
        let unmarked: Vec<_> = self.roster.iter().copied().filter(|id| !self.marks.contains_key(id)).collect();
        let record = |student_id, status, marked_at| Record {
            session_id: self.info.id,
            class_id: self.info.class_id,
            student_id,
            status,
            marked_at,
        };
        let mut records: Vec<_> = self.marks.iter().map(|(id, mark)| record(*id, mark.status, Some(mark.at))).collect();
        records.extend(unmarked.into_iter().map(|id| record(id, Status::Absent, None)));
        records.sort_unstable_by_key(|record| record.student_id);
        let counts: Counts = records.iter().map(|record| record.status).collect();
        let (at, by) = (origin.at, origin.by);
        let entry = self.append(Event::Finished(counts), origin);
        self.info.state = SessionState::Finished { at, by, counts };
        FinishedSession { info: self.info, entry, records }
    }

    fn check_room(&self) -> Result<(), Refusal> {
        let entries = self.info.revision.0 - self.info.first_revision.0 + 1;
        // The last place is DONE's.
        if entries + 1 >= MAX_LOG_ENTRIES { Err(Refusal::LogFull) } else { Ok(()) }
    }

    fn append(&mut self, event: Event, origin: Origin) -> LogEntry {
        self.info.revision = self.info.revision.next();
        LogEntry { revision: self.info.revision, event, origin }
    }
}
