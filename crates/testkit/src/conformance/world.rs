//! The fixtures of the suite.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rollcall_core::class::{Class, ClassChange, ClassName, ClassWithStudents};
use rollcall_core::error::Seen;
use rollcall_core::session::{
    Actor, Command, Door, LogEntry, OperationId, Origin, Refusal, Revision, SessionInfo, Status,
};
use rollcall_core::store::{
    Batch, Change, ChangeStream, ClassChanged, Cursor, Followed, Inserted, Outcome, Page, Receipt, SessionChange,
    Started, Store, Target,
};
use rollcall_core::user::{Account, Email, PasswordHash, PersonName, Role};
use rollcall_core::{ClassId, Clock, Ids, SessionId, Timestamp, UserId};

/// How long anything may take before it counts as never: far more than a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Where an adapter's stores come from.
pub trait Stores: Sized + Send + Sync {
    /// The data of one world, with a store on it. It goes when this is dropped.
    type Data: Send + Sync;

    /// Empty data, and a store on it that tells the time by `clock`.
    fn fresh(&self, clock: Arc<dyn Clock>) -> impl Future<Output = Self::Data> + Send;
    /// The store on the data.
    fn store(data: &Self::Data) -> Arc<dyn Store>;
    /// One more store on the same data, as another process would have it.
    fn beside(data: &Self::Data) -> impl Future<Output = Arc<dyn Store>> + Send;
    /// Closes the store, as an orderly end of the process would.
    fn close(data: &Self::Data) -> impl Future<Output = ()> + Send;
    /// Opens the data again after [`Self::close`].
    fn reopen(data: &mut Self::Data) -> impl Future<Output = ()> + Send;
}

/// A clock that shows what it was set to.
#[derive(Debug)]
pub struct SetClock {
    now: AtomicI64,
    started: Instant,
}

impl SetClock {
    /// A clock at some moment of 2023.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { now: AtomicI64::new(1_700_000_000_000), started: Instant::now() })
    }

    /// Goes forward.
    pub fn advance(&self, time: Duration) {
        let millis = i64::try_from(time.as_millis()).expect("a test's times are short");
        self.now.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A store on data of its own, and short ways to say what a case wants of it.
pub struct World<S: Stores> {
    /// What the adapter made.
    pub data: S::Data,
    /// The store under test.
    pub store: Arc<dyn Store>,
    /// The store's clock, which is also the one of all origins made here.
    pub clock: Arc<SetClock>,
    ids: Ids,
    operations: AtomicU32,
}

impl<S: Stores> World<S> {
    /// A store on empty data.
    pub async fn new(stores: &S) -> Self {
        let clock = SetClock::new();
        let data = stores.fresh(Arc::<SetClock>::clone(&clock)).await;
        let store = S::store(&data);
        Self { data, store, clock, ids: Ids::new([7; 5], 1), operations: AtomicU32::new(0) }
    }

    /// Closes the store and opens another on the same data.
    pub async fn restart(&mut self) {
        S::close(&self.data).await;
        S::reopen(&mut self.data).await;
        self.store = S::store(&self.data);
    }

    /// A new id.
    pub fn id(&self) -> rollcall_core::ObjectId {
        self.ids.next(self.clock.now())
    }

    /// An account that is not in the store yet.
    pub fn account(&self, role: Role) -> Account {
        let id = UserId(self.id());
        Account {
            id,
            name: PersonName::stored(format!("Person {id}")),
            email: Email::stored(format!("P{id}@Example.org")),
            role,
            password_hash: PasswordHash::stored("$2b$10$not-a-hash"),
            token_version: 3,
            disabled: false,
            email_confirmed: false,
            absence_notices: true,
            created_at: self.clock.now(),
        }
    }

    /// An account of this role.
    pub async fn user(&self, role: Role) -> UserId {
        let account = self.account(role);
        assert_eq!(self.store.insert_user(account.clone(), None).await.unwrap(), Inserted::Created);
        account.id
    }

    /// A teacher.
    pub async fn teacher(&self) -> UserId {
        self.user(Role::Teacher).await
    }

    /// A student.
    pub async fn student(&self) -> UserId {
        self.user(Role::Student).await
    }

    /// Several students, in the order of their ids.
    pub async fn students(&self, count: usize) -> Vec<UserId> {
        let mut students = Vec::with_capacity(count);
        for _ in 0..count {
            students.push(self.student().await);
        }
        students
    }

    /// A class of this teacher.
    pub async fn class(&self, teacher: UserId) -> ClassId {
        let id = ClassId(self.id());
        let name = ClassName::stored(format!("Class {id}"));
        let class = Class {
            id,
            name,
            teacher_id: teacher,
            archived: false,
            absence_notices: false,
            created_at: self.clock.now(),
        };
        self.store.insert_class(class).await.unwrap();
        id
    }

    /// A teacher with a class of so many students.
    pub async fn course(&self, students: usize) -> (UserId, ClassId, Vec<UserId>) {
        let teacher = self.teacher().await;
        let class = self.class(teacher).await;
        let students = self.students(students).await;
        for student in &students {
            self.enrol(class, *student).await;
        }
        (teacher, class, students)
    }

    /// An origin that a door would make for this user now.
    pub fn origin(&self, by: UserId) -> Origin {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        Origin {
            by: Actor::User(by),
            at: self.clock.now(),
            door: Door::WebSocket,
            address: None,
            operation: OperationId::Door(format!("door-{number}").into()),
        }
    }

    /// An origin of a command that its client named.
    pub fn named(&self, by: UserId, request: &str) -> Origin {
        Origin { operation: OperationId::from_client(request).unwrap(), ..self.origin(by) }
    }

    /// Enrols a student and answers with the class as it is then.
    pub async fn enrol(&self, class: ClassId, student: UserId) -> ClassWithStudents {
        let origin = self.origin(UserId::NOTHING);
        changed(self.store.enrol(class, student, origin).await.unwrap())
    }

    /// Opens a session, which must be a new one.
    pub async fn start(&self, class: ClassId, teacher: UserId) -> SessionInfo {
        let id = SessionId(self.id());
        match self.store.start(id, class, teacher, self.origin(teacher)).await.unwrap() {
            Started::New(info) => info,
            other => panic!("a new session was expected: {other:?}"),
        }
    }

    /// Gives a command and waits for what came of it.
    pub async fn order(&self, target: Target, command: Command, origin: Origin) -> Outcome {
        self.submit(target, command, origin).await.await.unwrap()
    }

    /// Gives a command.
    pub async fn submit(&self, target: Target, command: Command, origin: Origin) -> Receipt<Outcome> {
        self.store.submit(target, command, origin).await.unwrap()
    }

    /// Marks a student, which must succeed.
    pub async fn mark(&self, class: ClassId, teacher: UserId, student: UserId, status: Status) -> Arc<SessionChange> {
        done(self.order(Target::Class(class), mark(student, status), self.origin(teacher)).await)
    }

    /// Finishes the class's session, which must succeed.
    pub async fn finish(&self, class: ClassId, teacher: UserId) -> Arc<SessionChange> {
        done(self.order(Target::Class(class), Command::Finish, self.origin(teacher)).await)
    }

    /// The whole log of a session.
    pub async fn log(&self, session: SessionId) -> Vec<LogEntry> {
        self.store.log(session, None, all()).await.unwrap()
    }

    /// Follows the stream of the store under test.
    pub async fn follow(&self, from: Option<Cursor>) -> Listener {
        Listener::new(self.store.follow(from).await.unwrap())
    }
}

/// Marks a student, without a reason.
pub(super) fn mark(student_id: UserId, status: Status) -> Command {
    Command::Mark { student_id, status, reason: None }
}

/// Another name for a class.
pub(super) fn named(name: &str) -> ClassChange {
    ClassChange { name: Some(ClassName::stored(name)), absence_notices: None }
}

/// Whether a class sends notices.
pub(super) fn notices(wanted: bool) -> ClassChange {
    ClassChange { name: None, absence_notices: Some(wanted) }
}

/// The whole of a list.
pub(super) fn all<K>() -> Page<K> {
    Page { after: None, limit: 100_000 }
}

/// What was done; anything else fails the case.
pub(super) fn done(outcome: Outcome) -> Arc<SessionChange> {
    match outcome {
        Outcome::Done(change) => change,
        other => panic!("it was to be done: {other:?}"),
    }
}

/// Why it was refused and what was seen; anything else fails the case.
pub(super) fn refused(outcome: Outcome) -> (Refusal, Option<(ClassId, Revision)>) {
    match outcome {
        Outcome::Refused { refusal, seen } => (refusal, seen.map(|Seen { class_id, revision }| (class_id, revision))),
        other => panic!("it was to be refused: {other:?}"),
    }
}

/// The class after a change; anything else fails the case.
pub(super) fn changed(outcome: ClassChanged) -> ClassWithStudents {
    match outcome {
        ClassChanged::Now(class) => class,
        ClassChanged::NoClass => panic!("the class was to be changed"),
    }
}

/// A change with the place after the batch that it came in.
pub type Committed = (Change, Cursor);

/// A follower that waits for what it expects.
pub struct Listener {
    stream: ChangeStream,
    heard: VecDeque<Committed>,
}

impl Listener {
    /// Listens to a stream.
    pub fn new(stream: ChangeStream) -> Self {
        Self { stream, heard: VecDeque::new() }
    }

    /// The next item, whatever it is; `None` at the stream's end.
    pub async fn item(&mut self) -> Option<Followed> {
        tokio::time::timeout(PATIENCE, self.stream.next())
            .await
            .expect("the stream gives nothing, not even a sign of life")
    }

    /// The next batch.
    pub async fn batch(&mut self) -> Arc<Batch> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.item().await.expect("the stream ended") {
                Followed::Batch(batch) => return batch,
                Followed::Alive => {}
                Followed::Lost => panic!("the stream lost changes"),
            }
        }
        panic!("nothing was committed");
    }

    /// The next change, and the place after its batch.
    pub async fn committed(&mut self) -> Committed {
        while self.heard.is_empty() {
            let batch = self.batch().await;
            self.heard.extend(batch.changes.iter().map(|change| (change.clone(), batch.cursor.clone())));
        }
        self.heard.pop_front().expect("not empty")
    }

    /// The next change.
    pub async fn change(&mut self) -> Change {
        self.committed().await.0
    }

    /// The next so many changes.
    pub async fn changes(&mut self, count: usize) -> Vec<Change> {
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            changes.push(self.change().await);
        }
        changes
    }

    /// The next change that happened in a session.
    pub async fn session_change(&mut self) -> Arc<SessionChange> {
        loop {
            if let Change::Session(change) = self.change().await {
                return change;
            }
        }
    }
}
