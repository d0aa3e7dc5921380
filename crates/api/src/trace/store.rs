//! The store with a span around each question of a request or command that is recorded.

use std::sync::Arc;

use async_trait::async_trait;
use rollcall_core::class::{Class, ClassChange, ClassWithStudents};
use rollcall_core::mail::{Fate, Kind as MailKind, Mail, NewMail, TokenHash};
use rollcall_core::record::Record;
use rollcall_core::session::{Command, LogEntry, Mark, OpenSession, Origin, Revision, SessionInfo};
use rollcall_core::store::{
    Absences, ChangeStream, ClassChanged, Classes, Cursor, Inserted, Outbox, Outcome, OwnMark, Page, Receipt, Records,
    Sessions, Started, Store, StoreError, Target, Users,
};
use rollcall_core::user::{Account, AccountChange, EmailKey, Person};
use rollcall_core::{ClassId, SessionId, Timestamp, UserId};

use super::{Kind, Span, Traces};
use crate::metric::Failure;

/// A store whose answers are timed as parts of the traces of who asks. What is written is durable when its span ends:
/// the span is the wait for the writer, and the commit.
pub struct TracedStore {
    store: Arc<dyn Store>,
    traces: Arc<Traces>,
    /// What kind of database it is, by OpenTelemetry's names.
    system: &'static str,
}

impl TracedStore {
    /// `store`, which is a database of the kind `system`: `sqlite` or `mongodb`.
    pub fn new(store: Arc<dyn Store>, traces: Arc<Traces>, system: &'static str) -> Self {
        Self { store, traces, system }
    }

    fn span(&self, name: &'static str, operation: &'static str) -> Option<Span> {
        let span = super::child(name, Kind::Client)?;
        span.note("db.system.name", self.system);
        span.note("db.operation.name", operation);
        Some(span)
    }

    /// As [`span`](Self::span), for what the feed will tell of.
    fn writing(&self, name: &'static str, operation: &'static str, origin: &Origin) -> Option<Span> {
        let span = self.span(name, operation)?;
        // Told of as a part of what was asked, beside the commit and not inside it.
        if let Some(asked) = super::current() {
            self.traces.remember(origin, asked);
        }
        Some(span)
    }
}

/// Ends the span with what came of it.
fn ended<T>(span: Option<Span>, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
    if let (Some(span), Err(error)) = (span, &outcome) {
        span.fail(Failure::of_store(error).as_str());
    }
    outcome
}

/// Asks the store for something, in a span of that name.
macro_rules! ask {
    ($self:ident . $method:ident ($($argument:ident),*)) => {{
        let span = $self.span(concat!("store ", stringify!($method)), stringify!($method));
        ended(span, $self.store.$method($($argument),*).await)
    }};
    ($self:ident . $method:ident ($($argument:ident),*) by $origin:ident) => {{
        let span = $self.writing(concat!("store ", stringify!($method)), stringify!($method), &$origin);
        ended(span, $self.store.$method($($argument),*).await)
    }};
}

#[async_trait]
impl Users for TracedStore {
    async fn insert_user(&self, account: Account, welcome: Option<NewMail>) -> Result<Inserted, StoreError> {
        ask!(self.insert_user(account, welcome))
    }

    async fn user(&self, id: UserId) -> Result<Option<Account>, StoreError> {
        ask!(self.user(id))
    }

    async fn user_by_email(&self, email: &EmailKey) -> Result<Option<Account>, StoreError> {
        ask!(self.user_by_email(email))
    }

    async fn change_user(&self, id: UserId, change: AccountChange) -> Result<Option<Account>, StoreError> {
        ask!(self.change_user(id, change))
    }

    async fn users(&self, page: Page<UserId>) -> Result<Vec<Account>, StoreError> {
        ask!(self.users(page))
    }

    async fn students(&self, page: Page<UserId>) -> Result<Vec<Person>, StoreError> {
        ask!(self.students(page))
    }
}

#[async_trait]
impl Classes for TracedStore {
    async fn insert_class(&self, class: Class) -> Result<(), StoreError> {
        ask!(self.insert_class(class))
    }

    async fn class(&self, id: ClassId) -> Result<Option<Class>, StoreError> {
        ask!(self.class(id))
    }

    async fn student_ids(&self, id: ClassId) -> Result<Vec<UserId>, StoreError> {
        ask!(self.student_ids(id))
    }

    async fn class_students(&self, id: ClassId) -> Result<Vec<Person>, StoreError> {
        ask!(self.class_students(id))
    }

    async fn is_enrolled(&self, class: ClassId, student: UserId) -> Result<bool, StoreError> {
        ask!(self.is_enrolled(class, student))
    }

    async fn classes_of_teacher(
        &self,
        teacher: UserId,
        archived: bool,
        page: Page<ClassId>,
    ) -> Result<Vec<ClassWithStudents>, StoreError> {
        ask!(self.classes_of_teacher(teacher, archived, page))
    }

    async fn classes_of_student(&self, student: UserId, page: Page<ClassId>) -> Result<Vec<Class>, StoreError> {
        ask!(self.classes_of_student(student, page))
    }

    async fn class_ids_of(&self, user: UserId) -> Result<Vec<ClassId>, StoreError> {
        ask!(self.class_ids_of(user))
    }

    async fn change_class(&self, id: ClassId, change: ClassChange) -> Result<ClassChanged, StoreError> {
        ask!(self.change_class(id, change))
    }

    async fn archive_class(&self, id: ClassId, origin: Origin) -> Result<ClassChanged, StoreError> {
        ask!(self.archive_class(id, origin) by origin)
    }

    async fn enrol(&self, class: ClassId, student: UserId, origin: Origin) -> Result<ClassChanged, StoreError> {
        ask!(self.enrol(class, student, origin) by origin)
    }

    async fn remove_student(
        &self,
        class: ClassId,
        student: UserId,
        origin: Origin,
    ) -> Result<ClassChanged, StoreError> {
        ask!(self.remove_student(class, student, origin) by origin)
    }
}

#[async_trait]
impl Sessions for TracedStore {
    async fn start(
        &self,
        id: SessionId,
        class: ClassId,
        teacher: UserId,
        origin: Origin,
    ) -> Result<Started, StoreError> {
        ask!(self.start(id, class, teacher, origin) by origin)
    }

    async fn submit(&self, target: Target, command: Command, origin: Origin) -> Result<Receipt<Outcome>, StoreError> {
        let Some(span) = self.writing("store submit", "submit", &origin) else {
            return self.store.submit(target, command, origin).await;
        };
        match self.store.submit(target, command, origin.clone()).await {
            Ok(receipt) => {
                let traces = Arc::clone(&self.traces);
                Ok(Box::pin(async move {
                    let outcome = receipt.await;
                    // Nobody is told of what was not done; of what may have been, the feed knows.
                    if let Ok(Outcome::Refused { .. } | Outcome::Repeated(_)) | Err(StoreError::Unavailable(_)) =
                        outcome
                    {
                        traces.forget(&origin);
                    }
                    ended(Some(span), outcome)
                }))
            }
            failed => {
                self.traces.forget(&origin);
                ended(Some(span), failed)
            }
        }
    }

    async fn open_session(&self, class: ClassId) -> Result<Option<OpenSession>, StoreError> {
        ask!(self.open_session(class))
    }

    async fn open_sessions(&self) -> Result<Vec<OpenSession>, StoreError> {
        ask!(self.open_sessions())
    }

    async fn count_open_sessions(&self) -> Result<u64, StoreError> {
        ask!(self.count_open_sessions())
    }

    async fn sessions_older_than(&self, age: std::time::Duration) -> Result<Vec<SessionId>, StoreError> {
        ask!(self.sessions_older_than(age))
    }

    async fn own_mark(&self, student: UserId, class: Option<ClassId>) -> Result<OwnMark, StoreError> {
        ask!(self.own_mark(student, class))
    }

    async fn sessions(&self, class: ClassId, page: Page<Revision>) -> Result<Vec<SessionInfo>, StoreError> {
        ask!(self.sessions(class, page))
    }

    async fn session(&self, class: ClassId, id: SessionId) -> Result<Option<SessionInfo>, StoreError> {
        ask!(self.session(class, id))
    }

    async fn log(
        &self,
        id: SessionId,
        student: Option<UserId>,
        page: Page<Revision>,
    ) -> Result<Vec<LogEntry>, StoreError> {
        ask!(self.log(id, student, page))
    }

    async fn marks(&self, id: SessionId, student: Option<UserId>) -> Result<Vec<(UserId, Mark)>, StoreError> {
        ask!(self.marks(id, student))
    }
}

#[async_trait]
impl Records for TracedStore {
    async fn records(&self, session: SessionId, student: Option<UserId>) -> Result<Vec<Record>, StoreError> {
        ask!(self.records(session, student))
    }

    async fn last_record(&self, class: ClassId, student: UserId) -> Result<Option<Record>, StoreError> {
        ask!(self.last_record(class, student))
    }
}

#[async_trait]
impl Outbox for TracedStore {
    async fn queue_mails(&self, mails: Vec<NewMail>) -> Result<(), StoreError> {
        ask!(self.queue_mails(mails))
    }

    async fn take_mails(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Mail>, StoreError> {
        ask!(self.take_mails(now, until, limit))
    }

    async fn settle_mail(&self, mail: &Mail, fate: Fate) -> Result<(), StoreError> {
        ask!(self.settle_mail(mail, fate))
    }

    async fn token_owner(
        &self,
        token: TokenHash,
        kind: MailKind,
        now: Timestamp,
    ) -> Result<Option<UserId>, StoreError> {
        ask!(self.token_owner(token, kind, now))
    }

    async fn use_token(
        &self,
        token: TokenHash,
        kind: MailKind,
        now: Timestamp,
        change: AccountChange,
    ) -> Result<Option<Account>, StoreError> {
        ask!(self.use_token(token, kind, now, change))
    }

    async fn mails_since(&self, to: UserId, kind: MailKind, since: Timestamp) -> Result<u64, StoreError> {
        ask!(self.mails_since(to, kind, since))
    }

    async fn forget_mails(&self, now: Timestamp) -> Result<u64, StoreError> {
        ask!(self.forget_mails(now))
    }

    async fn absences(&self, limit: u32) -> Result<Vec<Absences>, StoreError> {
        ask!(self.absences(limit))
    }

    async fn absences_queued(&self, session: SessionId) -> Result<(), StoreError> {
        ask!(self.absences_queued(session))
    }
}

#[async_trait]
impl Store for TracedStore {
    async fn follow(&self, from: Option<Cursor>) -> Result<ChangeStream, StoreError> {
        self.store.follow(from).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        ask!(self.ping())
    }
}
