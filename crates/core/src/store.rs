//! The port to the database.
//!
//! One trait per aggregate, joined as [`Store`]. One method is one atomic intention: there is no "begin" and no
//! "commit" that only one kind of database could keep. Not found is `Ok(None)`, a conflict is a variant, and what a
//! driver says is opaque to everybody but the log.
//!
//! Every adapter passes the conformance suite in `rollcall-testkit`. To add a method: put it here, into the suite,
//! and into each adapter.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use futures_util::future::BoxFuture;

use crate::class::{Class, ClassChange, ClassWithStudents};
use crate::error::Seen;
use crate::id::{ClassId, SessionId, UserId};
use crate::mail::{Fate, Kind, Mail, NewMail, TokenHash};
use crate::record::Record;
use crate::session::{Command, LogEntry, Mark, OpenSession, Origin, Refusal, Revision, SessionInfo, Status};
use crate::time::Timestamp;
use crate::user::{Account, AccountChange, EmailKey, Person};

/// How long after a command the same command with the same operation id counts as sent again. Later it is a new one,
/// so that a client which numbers its requests from 1 on every day loses nothing.
pub const REPEAT_WINDOW: Duration = Duration::from_mins(10);

/// What went wrong inside a database driver.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is away, full or refuses for now. Proven: nothing of what was asked was done.
    #[error("the store is unavailable")]
    Unavailable(#[source] Cause),
    /// It may or may not have been done; an adapter answers so only after it tried to find out.
    #[error("the outcome is unknown")]
    OutcomeUnknown(#[source] Cause),
    /// A defect: data that cannot be, or a statement that must not fail. Nothing was done.
    #[error("the store failed")]
    Internal(#[source] Cause),
}

/// The answer to a command that is in the session's queue already, and so keeps its place.
pub type Receipt<T> = BoxFuture<'static, Result<T, StoreError>>;

/// A part of a list in ascending order of its key.
#[derive(Clone, Copy, Debug)]
pub struct Page<K> {
    /// Only what comes after this key.
    pub after: Option<K>,
    /// At most so many.
    pub limit: u32,
}

/// What became of an account that was to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It stands.
    Created,
    /// Its address is another account's.
    EmailExists,
}

/// What became of a session that was to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It is open from now on.
    New(SessionInfo),
    /// One was open already: this one.
    Resumed(SessionInfo),
    /// The class is not there any more, or archived.
    NoClass,
}

/// What became of a change to a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassChanged {
    /// The class as it is now.
    Now(ClassWithStudents),
    /// The class is not there any more, or archived.
    NoClass,
}

/// Which session a command concerns. The store resolves it in the same atomic step that carries out the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The open session of this class.
    Class(ClassId),
    /// The session that this teacher opened last and that is still open.
    OpenedBy(UserId),
    /// This session, if it is still open.
    Session(SessionId),
}

/// One committed event of a session, with what is needed to tell others of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionChange {
    /// The session.
    pub session_id: SessionId,
    /// Its class.
    pub class_id: ClassId,
    /// The event.
    pub entry: LogEntry,
}

impl SessionChange {
    /// Whether `command`, given for `target` with `origin`, is the command that made this change, sent again within
    /// [`REPEAT_WINDOW`].
    ///
    /// A class or a session that is named must be this change's: who runs two classes may number the requests of
    /// each from 1. Where none is named any session counts, since DONE may have moved the target meanwhile.
    pub fn is_repeated_by(&self, target: Target, command: &Command, origin: &Origin) -> bool {
        let concerned = match target {
            Target::Class(class) => class == self.class_id,
            Target::Session(session) => session == self.session_id,
            Target::OpenedBy(_) => true,
        };
        // The clock may have been set back meanwhile.
        let age = Duration::from_millis(origin.at.millis().abs_diff(self.entry.origin.at.millis()));
        concerned && age < REPEAT_WINDOW && self.entry.is_repeated_by(command, origin)
    }
}

/// What became of a command to an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done and is durable.
    Done(Arc<SessionChange>),
    /// It had been done before, within [`REPEAT_WINDOW`]; this is what it did then.
    Repeated(Arc<SessionChange>),
    /// It was not done.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The commit after which this was decided, where a class is known.
        seen: Option<Seen>,
    },
}

/// What a student is told of the own mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnMark {
    /// No session is open.
    NoSession {
        /// The commit after which this was seen, where a class is known.
        seen: Option<Seen>,
    },
    /// The student is not in the class.
    NotEnrolled {
        /// The commit after which this was seen.
        seen: Seen,
    },
    /// The mark in the open session, if there is one yet.
    Marked {
        /// The open session's class, and the commit after which this was seen.
        seen: Seen,
        /// The status, if any.
        status: Option<Status>,
    },
}

/// Accounts.
#[async_trait]
pub trait Users {
    /// Adds an account unless its address is taken, and in the same step queues `welcome`, a mail to it.
    async fn insert_user(&self, account: Account, welcome: Option<NewMail>) -> Result<Inserted, StoreError>;
    /// The account with this id.
    async fn user(&self, id: UserId) -> Result<Option<Account>, StoreError>;
    /// The account with this address.
    async fn user_by_email(&self, email: &EmailKey) -> Result<Option<Account>, StoreError>;
    /// Changes an account; answers with the account as it is now. What ends its tokens ends a link to reset its password
    /// too.
    async fn change_user(&self, id: UserId, change: AccountChange) -> Result<Option<Account>, StoreError>;
    /// All accounts, by id.
    async fn users(&self, page: Page<UserId>) -> Result<Vec<Account>, StoreError>;
    /// All enabled students, by id.
    async fn students(&self, page: Page<UserId>) -> Result<Vec<Person>, StoreError>;
}

/// Classes and who is in them.
#[async_trait]
pub trait Classes {
    /// Adds a class.
    async fn insert_class(&self, class: Class) -> Result<(), StoreError>;
    /// The class with this id, archived or not.
    async fn class(&self, id: ClassId) -> Result<Option<Class>, StoreError>;
    /// The ids of a class's students, in the order in which they were enrolled.
    async fn student_ids(&self, id: ClassId) -> Result<Vec<UserId>, StoreError>;
    /// A class's students, in the order in which they were enrolled.
    async fn class_students(&self, id: ClassId) -> Result<Vec<Person>, StoreError>;
    /// Whether the student is in the class.
    async fn is_enrolled(&self, class: ClassId, student: UserId) -> Result<bool, StoreError>;
    /// The classes of a teacher by id; archived ones only if `archived`, others only if not.
    async fn classes_of_teacher(
        &self,
        teacher: UserId,
        archived: bool,
        page: Page<ClassId>,
    ) -> Result<Vec<ClassWithStudents>, StoreError>;
    /// The classes that a student is in, by id, without archived ones.
    async fn classes_of_student(&self, student: UserId, page: Page<ClassId>) -> Result<Vec<Class>, StoreError>;
    /// The ids of all classes that `user` teaches or is in, without archived ones: what a socket of `user` hears of.
    async fn class_ids_of(&self, user: UserId) -> Result<Vec<ClassId>, StoreError>;
    /// Changes a class.
    async fn change_class(&self, id: ClassId, change: ClassChange) -> Result<ClassChanged, StoreError>;
    /// Archives a class. An open session of it is finished in the same step, as DONE would.
    async fn archive_class(&self, id: ClassId, origin: Origin) -> Result<ClassChanged, StoreError>;
    /// Enrols a student, in the open session too. One who is in the class already changes nothing.
    async fn enrol(&self, class: ClassId, student: UserId, origin: Origin) -> Result<ClassChanged, StoreError>;
    /// Takes a student out of a class and its open session. One who is not in it changes nothing.
    async fn remove_student(&self, class: ClassId, student: UserId, origin: Origin)
    -> Result<ClassChanged, StoreError>;
}

/// Sessions. Rules are [`OpenSession`]'s; a store keeps what it decides.
#[async_trait]
pub trait Sessions {
    /// Opens a session of the class, unless one is open.
    async fn start(
        &self,
        id: SessionId,
        class: ClassId,
        teacher: UserId,
        origin: Origin,
    ) -> Result<Started, StoreError>;

    /// Puts a command into the session's queue and answers with its receipt. Commands take effect in the order in
    /// which these calls returned. Waits while the queue is full.
    ///
    /// A command with a [`crate::session::OperationId::Client`] for which a committed change of the same actor answers
    /// [`SessionChange::is_repeated_by`], be its session open or finished, is not done again.
    async fn submit(&self, target: Target, command: Command, origin: Origin) -> Result<Receipt<Outcome>, StoreError>;

    /// The open session of a class with its roster and marks.
    async fn open_session(&self, class: ClassId) -> Result<Option<OpenSession>, StoreError>;
    /// All open sessions with their rosters and marks.
    async fn open_sessions(&self) -> Result<Vec<OpenSession>, StoreError>;
    /// How many sessions are open.
    async fn count_open_sessions(&self) -> Result<u64, StoreError>;
    /// Open sessions that are older than `age` by the database's clock.
    async fn sessions_older_than(&self, age: Duration) -> Result<Vec<SessionId>, StoreError>;
    /// The student's mark in the class's open session; without a class, in the session opened last and still open
    /// among those of the student's classes.
    async fn own_mark(&self, student: UserId, class: Option<ClassId>) -> Result<OwnMark, StoreError>;

    /// The class's sessions, newest first: only those whose first revision is less than `page.after`.
    async fn sessions(&self, class: ClassId, page: Page<Revision>) -> Result<Vec<SessionInfo>, StoreError>;
    /// A session of the class, open or finished.
    async fn session(&self, class: ClassId, id: SessionId) -> Result<Option<SessionInfo>, StoreError>;
    /// The session's log by revision; only entries about `student`, if given.
    async fn log(
        &self,
        id: SessionId,
        student: Option<UserId>,
        page: Page<Revision>,
    ) -> Result<Vec<LogEntry>, StoreError>;
    /// The marks of an open session; only `student`'s, if given. Ordered by student.
    async fn marks(&self, id: SessionId, student: Option<UserId>) -> Result<Vec<(UserId, Mark)>, StoreError>;
}

/// What stands after DONE.
#[async_trait]
pub trait Records {
    /// The records of a finished session, ordered by student; only `student`'s, if given.
    async fn records(&self, session: SessionId, student: Option<UserId>) -> Result<Vec<Record>, StoreError>;
    /// The student's record in the class's last finished session.
    async fn last_record(&self, class: ClassId, student: UserId) -> Result<Option<Record>, StoreError>;
}

/// A finished session whose absent students are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absences {
    /// The session.
    pub session_id: SessionId,
    /// Its class.
    pub class_id: ClassId,
}

/// Mails that wait to be sent. A session of a class with [`Class::absence_notices`] that is finished is noted for
/// [`absences`](Self::absences) in the same step.
#[async_trait]
pub trait Outbox {
    /// Queues mails, each unless one with its [key](crate::mail::Reason::key) stands in its way.
    async fn queue_mails(&self, mails: Vec<NewMail>) -> Result<(), StoreError>;
    /// Takes at most `limit` mails that are due at `now` and not expired: what somebody waits for before notices of absences,
    /// and of each those first that have been due the longest.
    /// Nobody else is given them until `until`.
    async fn take_mails(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Mail>, StoreError>;
    /// Says what becomes of a mail: that it is due again only if nobody else has taken it since.
    async fn settle_mail(&self, mail: &Mail, fate: Fate) -> Result<(), StoreError>;
    /// Whose token that is, in a mail of this kind, if it is good at `now`: neither used, nor replaced, nor expired.
    async fn token_owner(&self, token: TokenHash, kind: Kind, now: Timestamp) -> Result<Option<UserId>, StoreError>;
    /// Uses a token that is good at `now` up, and in the same step changes the account of its owner, who must not be
    /// disabled. Its mail is over.
    async fn use_token(
        &self,
        token: TokenHash,
        kind: Kind,
        now: Timestamp,
        change: AccountChange,
    ) -> Result<Option<Account>, StoreError>;
    /// How many mails of this kind were queued to somebody at `since` or later.
    async fn mails_since(&self, to: UserId, kind: Kind, since: Timestamp) -> Result<u64, StoreError>;
    /// Forgets the mails that are expired at `now`. Answers with how many of them were never sent.
    async fn forget_mails(&self, now: Timestamp) -> Result<u64, StoreError>;
    /// Sessions whose absent students are to be told, at most `limit`.
    async fn absences(&self, limit: u32) -> Result<Vec<Absences>, StoreError>;
    /// The mails to the absent students of this session are queued.
    async fn absences_queued(&self, session: SessionId) -> Result<(), StoreError>;
}

/// A place in the committed stream, meaningful to the store that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub Arc<str>);

/// One committed change. What it says beyond ids is only what cannot be read later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An account was made or changed.
    Account(UserId),
    /// A class was made, renamed or archived.
    Class {
        /// The class.
        class_id: ClassId,
        /// Its teacher.
        teacher_id: UserId,
    },
    /// A student joined or left a class.
    Enrolment {
        /// The class.
        class_id: ClassId,
        /// The student.
        student_id: UserId,
        /// Whether the student is in the class from now on.
        enrolled: bool,
    },
    /// Something happened in a session.
    Session(Arc<SessionChange>),
}

/// Changes that were committed together or right after each other, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
    /// The place after them.
    pub cursor: Cursor,
}

/// What a follower of the committed stream is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// What was committed.
    Batch(Arc<Batch>),
    /// Nothing has been committed up to now that was not given before. Comes at least every 250 ms.
    Alive,
    /// Changes were missed and cannot be given any more: reload what matters. What follows was committed after.
    Lost,
}

/// The committed stream. It ends when the store is closed.
pub type ChangeStream = Pin<Box<dyn Stream<Item = Followed> + Send>>;

/// The database.
#[async_trait]
pub trait Store: Users + Classes + Sessions + Records + Outbox + Send + Sync + 'static {
    /// Follows what is committed, by this process or another: all after `from`, or without it all that is committed
    /// after this call returned.
    async fn follow(&self, from: Option<Cursor>) -> Result<ChangeStream, StoreError>;

    /// Whether the database answers and can be written to.
    async fn ping(&self) -> Result<(), StoreError>;
}
