//! A store that does not keep its promises, in front of one that does, and a server on it.
//!
//! The server is the real one, in this process: services, doors and hub, over a real listener. Only the store below
//! lies, as an adapter with a defect would.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex as Lock;
use rollcall_api::{Api, ApiConfig};
use rollcall_core::class::{Class, ClassChange, ClassWithStudents};
use rollcall_core::mail::{Fate, Kind, Mail, NewMail, TokenHash};
use rollcall_core::password::{HashError, PasswordHasher};
use rollcall_core::record::Record;
use rollcall_core::service::{Ports, Services, TeacherSignup};
use rollcall_core::session::{Command, LogEntry, Mark, OpenSession, Origin, Revision, SessionInfo};
use rollcall_core::store::{
    Absences, Batch, Change, ChangeStream, ClassChanged, Classes, Cursor, Followed, Inserted, Outbox, Outcome, OwnMark,
    Page, Receipt, Records, SessionChange, Sessions, Started, Store, StoreError, Target, Users,
};
use rollcall_core::user::{Account, AccountChange, EmailKey, NewPassword, PasswordHash, Person};
use rollcall_core::{ClassId, Ids, SessionId, Timestamp, UserId};
use rollcall_realtime::{Hub, HubConfig};
use rollcall_store_sqlite::{OpenMode, SqliteStore};
use rollcall_testkit::conformance::SetClock;
use rollcall_testkit::server::Client;
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, broadcast, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

/// In which way the store lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It does not.
    None,
    /// Marks are acknowledged, and told to everybody, before they are committed.
    EarlyAnswer,
    /// A student's mark is answered from a memory that nothing keeps true.
    OldMemory,
}

/// How long after the answer an early mark is committed.
const AHEAD: Duration = Duration::from_millis(20);
/// How long the memory that nothing keeps true is believed.
const BELIEVED: Duration = Duration::from_millis(200);

/// A server in this process on a lying store.
pub(crate) struct Server {
    pub(crate) client: Client,
    _stop: DropGuard,
    _folder: TempDir,
}

impl Server {
    pub(crate) async fn start(lie: Lie) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = SetClock::new();
        let path = folder.path().join("rollcall.db");
        let honest = SqliteStore::open(&path, OpenMode::Serve, Arc::<SetClock>::clone(&clock)).unwrap();
        let ports = Ports {
            store: Liar::start(honest, lie),
            clock,
            hasher: Arc::new(Clear),
            ids: Ids::new([7; 5], 1),
            mail_tokens: None,
        };
        let services = Arc::new(Services::new(ports, TeacherSignup::Open));
        let config = ApiConfig {
            jwt_secret: b"signed with this by a server that lives for a test".to_vec().into(),
            token_ttl: Duration::from_hours(1),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            limits: false,
            shared_limits: None,
            metrics: None,
            tls: false,
            traces: None,
        };
        let api = Api::new(services, Hub::new(HubConfig::default()), config);
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&api).follow(stop.clone()));
        api.following().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()));
        let service = api.router().into_make_service_with_connect_info::<SocketAddr>();
        let serving = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(serving.into_future());
        Self { client, _stop: stop.drop_guard(), _folder: folder }
    }
}

/// Keeps passwords in the clear: how they are hashed does not matter here.
struct Clear;

#[async_trait]
impl PasswordHasher for Clear {
    async fn hash(&self, password: NewPassword) -> Result<PasswordHash, HashError> {
        Ok(PasswordHash::stored(password.secret().expose_secret()))
    }

    async fn verify(&self, password: SecretString, hash: Option<PasswordHash>) -> Result<bool, HashError> {
        Ok(hash.is_some_and(|hash| hash.expose() == password.expose_secret()))
    }
}

/// What is done behind the answers.
enum Job {
    /// Not before this moment.
    Commit(Instant, Target, Command, Origin),
    /// Answered when all before is done.
    Rest(oneshot::Sender<()>),
}

/// A student's mark, and since when it is remembered.
type Remembered = (Instant, OwnMark);

struct Liar {
    honest: Arc<SqliteStore>,
    lie: Lie,
    /// The sessions as they will be once all that was acknowledged is committed.
    ahead: Mutex<HashMap<ClassId, OpenSession>>,
    behind: mpsc::UnboundedSender<Job>,
    told: broadcast::Sender<Arc<SessionChange>>,
    memory: Lock<HashMap<(UserId, Option<ClassId>), Remembered>>,
}

impl Liar {
    fn start(honest: Arc<SqliteStore>, lie: Lie) -> Arc<Self> {
        let (behind, jobs) = mpsc::unbounded_channel();
        tokio::spawn(commit_behind(Arc::clone(&honest), jobs));
        let told = broadcast::Sender::new(4096);
        Arc::new(Self { honest, lie, ahead: Mutex::default(), behind, told, memory: Lock::default() })
    }

    /// Answers a mark that will be committed later; `None` where it would be refused.
    async fn answer_early(
        &self,
        ahead: &mut HashMap<ClassId, OpenSession>,
        class_id: ClassId,
        command: &Command,
        origin: &Origin,
    ) -> Result<Option<Arc<SessionChange>>, StoreError> {
        let Command::Mark { student_id, status, reason } = command.clone() else { return Ok(None) };
        let session = match ahead.entry(class_id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let Some(session) = self.honest.open_session(class_id).await? else { return Ok(None) };
                unknown.insert(session)
            }
        };
        let Ok(entry) = session.mark(student_id, status, reason, origin.clone()) else { return Ok(None) };
        let change = Arc::new(SessionChange { session_id: session.info().id, class_id, entry });
        let _ = self.behind.send(Job::Commit(
            Instant::now() + AHEAD,
            Target::Class(class_id),
            command.clone(),
            origin.clone(),
        ));
        let _ = self.told.send(Arc::clone(&change));
        Ok(Some(change))
    }

    /// Waits until all that was acknowledged is committed.
    async fn come_clean(&self, ahead: &mut HashMap<ClassId, OpenSession>) {
        let (rest, rested) = oneshot::channel();
        let _ = self.behind.send(Job::Rest(rest));
        let _ = rested.await;
        ahead.clear();
    }
}

async fn commit_behind(honest: Arc<SqliteStore>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Commit(at, target, command, origin) => {
                tokio::time::sleep_until(at.into()).await;
                if let Ok(receipt) = honest.submit(target, command, origin).await {
                    let _ = receipt.await;
                }
            }
            Job::Rest(rest) => drop(rest.send(())),
        }
    }
}

/// What is passed on as it is.
macro_rules! honest {
    ($($port:ident { $(fn $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)+ $(@ $($own:tt)+)? })+) => {$(
        #[async_trait]
        impl $port for Liar {
            $(async fn $name(&self, $($argument: $kind),*) -> Result<$answer, StoreError> {
                self.honest.$name($($argument),*).await
            })+
            $($($own)+)?
        }
    )+};
}

honest! {
    Users {
        fn insert_user(account: Account, welcome: Option<NewMail>) -> Inserted;
        fn user(id: UserId) -> Option<Account>;
        fn change_user(id: UserId, change: AccountChange) -> Option<Account>;
        fn users(page: Page<UserId>) -> Vec<Account>;
        fn students(page: Page<UserId>) -> Vec<Person>;
        @ async fn user_by_email(&self, email: &EmailKey) -> Result<Option<Account>, StoreError> {
            self.honest.user_by_email(email).await
        }
    }
    Classes {
        fn insert_class(class: Class) -> ();
        fn class(id: ClassId) -> Option<Class>;
        fn student_ids(id: ClassId) -> Vec<UserId>;
        fn class_students(id: ClassId) -> Vec<Person>;
        fn is_enrolled(class: ClassId, student: UserId) -> bool;
        fn classes_of_teacher(teacher: UserId, archived: bool, page: Page<ClassId>) -> Vec<ClassWithStudents>;
        fn classes_of_student(student: UserId, page: Page<ClassId>) -> Vec<Class>;
        fn class_ids_of(user: UserId) -> Vec<ClassId>;
        fn change_class(id: ClassId, change: ClassChange) -> ClassChanged;
        fn archive_class(id: ClassId, origin: Origin) -> ClassChanged;
        fn enrol(class: ClassId, student: UserId, origin: Origin) -> ClassChanged;
        fn remove_student(class: ClassId, student: UserId, origin: Origin) -> ClassChanged;
    }
    Sessions {
        fn open_session(class: ClassId) -> Option<OpenSession>;
        fn open_sessions() -> Vec<OpenSession>;
        fn count_open_sessions() -> u64;
        fn sessions_older_than(age: Duration) -> Vec<SessionId>;
        fn sessions(class: ClassId, page: Page<Revision>) -> Vec<SessionInfo>;
        fn session(class: ClassId, id: SessionId) -> Option<SessionInfo>;
        fn log(id: SessionId, student: Option<UserId>, page: Page<Revision>) -> Vec<LogEntry>;
        fn marks(id: SessionId, student: Option<UserId>) -> Vec<(UserId, Mark)>;
        @
        async fn start(
            &self,
            id: SessionId,
            class: ClassId,
            teacher: UserId,
            origin: Origin,
        ) -> Result<Started, StoreError> {
            self.come_clean(&mut *self.ahead.lock().await).await;
            self.honest.start(id, class, teacher, origin).await
        }

        async fn submit(
            &self,
            target: Target,
            command: Command,
            origin: Origin,
        ) -> Result<Receipt<Outcome>, StoreError> {
            if matches!(self.lie, Lie::None | Lie::OldMemory) {
                return self.honest.submit(target, command, origin).await;
            }
            let mut ahead = self.ahead.lock().await;
            if let Target::Class(class) = target
                && let Some(change) = self.answer_early(&mut ahead, class, &command, &origin).await?
            {
                return Ok(std::future::ready(Ok(Outcome::Done(change))).boxed());
            }
            self.come_clean(&mut ahead).await;
            let outcome = self.honest.submit(target, command, origin).await?.await;
            Ok(std::future::ready(outcome).boxed())
        }

        async fn own_mark(&self, student: UserId, class: Option<ClassId>) -> Result<OwnMark, StoreError> {
            let now = Instant::now();
            let known = self.memory.lock().get(&(student, class)).cloned();
            if let Some((_, mark)) = known.filter(|(since, _)| self.lie == Lie::OldMemory && now < *since + BELIEVED) {
                return Ok(mark);
            }
            let mark = self.honest.own_mark(student, class).await?;
            self.memory.lock().insert((student, class), (now, mark.clone()));
            Ok(mark)
        }
    }
    Records {
        fn records(session: SessionId, student: Option<UserId>) -> Vec<Record>;
        fn last_record(class: ClassId, student: UserId) -> Option<Record>;
    }
    Outbox {
        fn queue_mails(mails: Vec<NewMail>) -> ();
        fn take_mails(now: Timestamp, until: Timestamp, limit: u32) -> Vec<Mail>;
        fn token_owner(token: TokenHash, kind: Kind, now: Timestamp) -> Option<UserId>;
        fn use_token(token: TokenHash, kind: Kind, now: Timestamp, change: AccountChange) -> Option<Account>;
        fn mails_since(to: UserId, kind: Kind, since: Timestamp) -> u64;
        fn forget_mails(now: Timestamp) -> u64;
        fn absences(limit: u32) -> Vec<Absences>;
        fn absences_queued(session: SessionId) -> ();
        @ async fn settle_mail(&self, mail: &Mail, fate: Fate) -> Result<(), StoreError> {
            self.honest.settle_mail(mail, fate).await
        }
    }
    Store {
        fn ping() -> ();
        @
        async fn follow(&self, from: Option<Cursor>) -> Result<ChangeStream, StoreError> {
            let told = stream::unfold(self.told.subscribe(), async |mut told| {
                let change = told.recv().await.ok()?;
                let batch = Batch { changes: vec![Change::Session(change)], cursor: Cursor("early".into()) };
                Some((Followed::Batch(Arc::new(batch)), told))
            });
            Ok(stream::select(self.honest.follow(from).await?, told.boxed()).boxed())
        }
    }
}
