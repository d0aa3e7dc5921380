//! Sessions, marks and history.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::classes::active;
use crate::directory::Directory;
use crate::error::{Error, Seen};
use crate::id::{ClassId, Ids, SessionId, UserId};
use crate::policy::{ClassAccess, OwnClass, Student, Teacher};
use crate::record::Record;
use crate::session::{
    Actor, Command, Door, LogEntry, Mark, OpenSession, OperationId, Origin, Refusal, Revision, SessionInfo,
    SessionState, Status,
};
use crate::store::{Outcome, OwnMark, Page, SessionChange, Started, Store, StoreError, Target};
use crate::time::Clock;
use crate::user::Person;

/// What a command to a session did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The event, which is durable.
    pub change: Arc<SessionChange>,
    /// Whether an earlier sending of the same command did it: nobody but the sender hears of it again.
    pub repeated: bool,
}

/// The answer to a command that has its place in the session's queue.
pub type Pending = BoxFuture<'static, Result<Committed, Error>>;

/// An open session as one of the class's people sees it.
#[derive(Clone, Debug)]
pub enum OpenView {
    /// The teacher sees all of it.
    Full {
        /// The session.
        session: Box<OpenSession>,
        /// The class's students, in the order in which they were enrolled.
        students: Vec<Person>,
    },
    /// A student sees the own mark.
    Own {
        /// The session.
        info: SessionInfo,
        /// The mark, if there is one yet.
        mark: Option<Mark>,
    },
}

/// A session of the past, or the open one, as one of the class's people sees it.
#[derive(Clone, Debug)]
pub struct History {
    /// The session.
    pub info: SessionInfo,
    /// What stands: empty while the session is open; a student's own alone.
    pub records: Vec<Record>,
    /// What happened, by revision; what concerns a student alone.
    pub log: Vec<LogEntry>,
}

/// Attendance.
pub struct Attendance {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<Ids>,
    pub(super) directory: Arc<Directory>,
}

impl Attendance {
    /// Opens a session of the class, or answers with the one that is open.
    pub async fn start(&self, class: &OwnClass, origin: Origin) -> Result<SessionInfo, Error> {
        let id = SessionId(self.ids.next(self.clock.now()));
        match self.store.start(id, class.id(), class.class().teacher_id, origin).await? {
            Started::New(info) | Started::Resumed(info) => Ok(info),
            Started::NoClass => Err(Error::ClassNotFound),
        }
    }

    /// Gives a command to the open session of the class, or, without a class, to the one that the teacher opened
    /// last and that is still open. When this returns the command has its place in the queue; the rest is waiting.
    pub async fn submit(
        &self,
        teacher: Teacher,
        class: Option<ClassId>,
        command: Command,
        origin: Origin,
    ) -> Result<Pending, Error> {
        let target = match class {
            Some(id) => {
                self.directory.class(id, |class| teacher.own(active(class)?).map(drop)).await?;
                Target::Class(id)
            }
            None => Target::OpenedBy(teacher.id()),
        };
        let receipt = self.store.submit(target, command, origin).await?;
        Ok(Box::pin(async move {
            match receipt.await? {
                Outcome::Done(change) => Ok(Committed { change, repeated: false }),
                Outcome::Repeated(change) => Ok(Committed { change, repeated: true }),
                Outcome::Refused { refusal, seen } => Err(refused(refusal, seen)),
            }
        }))
    }

    /// The student's own mark in the class's open session or, without a class, in the session opened last and still
    /// open among the student's classes; with the commit after which this holds.
    pub async fn own_mark(&self, student: Student, class: Option<ClassId>) -> Result<(Seen, Option<Status>), Error> {
        if let Some(id) = class {
            self.directory.class(id, active).await?;
        }
        match self.store.own_mark(student.id(), class).await? {
            OwnMark::Marked { seen, status } => Ok((seen, status)),
            OwnMark::NoSession { seen } => Err(refused(Refusal::NoSession, seen)),
            OwnMark::NotEnrolled { seen } => Err(refused(Refusal::NotEnrolled, Some(seen))),
        }
    }

    /// What stands for the student after the class's last finished session.
    pub async fn last_record(&self, student: Student, class: ClassId) -> Result<Option<Record>, Error> {
        Ok(self.store.last_record(class, student.id()).await?)
    }

    /// The class's open session.
    pub async fn open(&self, access: &ClassAccess) -> Result<Option<OpenView>, Error> {
        Ok(match access {
            ClassAccess::Owner(class) => match self.store.open_session(class.id()).await? {
                Some(session) => {
                    let students = self.store.class_students(class.id()).await?;
                    Some(OpenView::Full { session: Box::new(session), students })
                }
                None => None,
            },
            ClassAccess::Enrolled(student, class) => self.store.open_session(class.id).await?.map(|session| {
                OpenView::Own { info: session.info().clone(), mark: session.marks().get(&student.id()).copied() }
            }),
        })
    }

    /// The class's sessions, newest first.
    pub async fn sessions(&self, access: &ClassAccess, page: Page<Revision>) -> Result<Vec<SessionInfo>, Error> {
        Ok(self.store.sessions(access_class(access), page).await?)
    }

    /// One session of the class with its records and a page of its log; a student's own part alone.
    pub async fn history(&self, access: &ClassAccess, id: SessionId, page: Page<Revision>) -> Result<History, Error> {
        let class = access_class(access);
        let info = self.store.session(class, id).await?.ok_or(Error::SessionNotFound)?;
        let student = match access {
            ClassAccess::Owner(_) => None,
            ClassAccess::Enrolled(student, _) => Some(student.id()),
        };
        // An open session goes on between these reads: what is shown is how it stood at `info.revision`.
        let records = match info.state {
            SessionState::Open => Vec::new(),
            SessionState::Finished { .. } => self.store.records(id, student).await?,
        };
        let mut log = self.store.log(id, student, page).await?;
        log.retain(|entry| entry.revision <= info.revision);
        Ok(History { info, records, log })
    }

    /// What happened in a class after `since`, for somebody who hears of the class: the rest of the session that
    /// `since` fell into, if it ended meanwhile only its end, and all of the class's last session.
    pub async fn missed(&self, class: ClassId, since: Revision) -> Result<Vec<Arc<SessionChange>>, Error> {
        let Some(last) = self.newest_session(class, None).await? else { return Ok(Vec::new()) };
        let mut missed = Vec::new();
        if since >= last.revision {
            return Ok(missed);
        }
        if since.0 > 0
            && since < last.first_revision
            && let Some(cut_short) = self.newest_session(class, Some(since.next())).await?
            && since < cut_short.revision
        {
            let end = Page { after: Some(Revision(cut_short.revision.0 - 1)), limit: 1 };
            missed.extend(changes(&cut_short, self.store.log(cut_short.id, None, end).await?));
        }
        let mut page = Page { after: Some(since), limit: 1_000 };
        // Each page is a question to the database: what came after `last` was read comes to the socket by itself.
        while page.after < Some(last.revision) {
            let entries = self.store.log(last.id, None, page).await?;
            let Some(entry) = entries.last() else { break };
            page.after = Some(entry.revision);
            missed.extend(changes(&last, entries));
        }
        Ok(missed)
    }

    /// The class's revision at present.
    pub async fn revision(&self, class: ClassId) -> Result<Revision, Error> {
        Ok(self.newest_session(class, None).await?.map_or(Revision(0), |last| last.revision))
    }

    /// The class's last session, of those that began before `before` if that is given.
    async fn newest_session(&self, class: ClassId, before: Option<Revision>) -> Result<Option<SessionInfo>, Error> {
        Ok(self.store.sessions(class, Page { after: before, limit: 1 }).await?.into_iter().next())
    }

    /// Ends every session that is older than `age`, as DONE would. Answers with how many it ended. One that cannot
    /// be ended does not keep the others open.
    pub async fn finish_older_than(&self, age: Duration) -> Result<usize, Error> {
        let mut finished = 0;
        for id in self.store.sessions_older_than(age).await? {
            let origin = Origin {
                by: Actor::System,
                at: self.clock.now(),
                door: Door::System,
                address: None,
                operation: OperationId::Door(self.ids.next(self.clock.now()).to_string().into()),
            };
            let receipt = self.store.submit(Target::Session(id), Command::Finish, origin).await?;
            match receipt.await {
                Ok(Outcome::Done(_)) => finished += 1,
                Ok(Outcome::Repeated(_) | Outcome::Refused { .. }) => {}
                Err(StoreError::Internal(cause)) => tracing::error!(session = %id, cause, "cannot end an old session"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(finished)
    }

    /// Who `origin` says did something, for a command of this account by this way.
    pub fn origin(
        &self,
        by: UserId,
        door: Door,
        address: Option<std::net::IpAddr>,
        request: Option<OperationId>,
    ) -> Origin {
        let at = self.clock.now();
        let operation = request.unwrap_or_else(|| OperationId::Door(self.ids.next(at).to_string().into()));
        Origin { by: Actor::User(by), at, door, address, operation }
    }
}

fn changes(session: &SessionInfo, log: Vec<LogEntry>) -> impl Iterator<Item = Arc<SessionChange>> {
    let (session_id, class_id) = (session.id, session.class_id);
    log.into_iter().map(move |entry| Arc::new(SessionChange { session_id, class_id, entry }))
}

fn access_class(access: &ClassAccess) -> ClassId {
    match access {
        ClassAccess::Owner(class) => class.id(),
        ClassAccess::Enrolled(_, class) => class.id,
    }
}

fn refused(refusal: Refusal, seen: Option<Seen>) -> Error {
    match refusal {
        Refusal::NoSession => Error::NoActiveSession { seen },
        Refusal::NotEnrolled => Error::StudentNotEnrolled { seen },
        Refusal::LogFull => Error::SessionFull { seen },
    }
}
