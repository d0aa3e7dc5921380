//! An outbox on the embedded store, a mail server, and senders between them.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use metrics::LocalRecorderGuard;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rollcall_core::class::{Class, ClassName};
use rollcall_core::mail::{MailTokens, NewMail, Reason, TokenHash};
use rollcall_core::password::{HashError, PasswordHasher};
use rollcall_core::service::{Mails, Ports, Services, TeacherSignup};
use rollcall_core::session::{Actor, Command, Door, OperationId, Origin};
use rollcall_core::store::{Classes as _, Inserted, Outbox as _, Outcome, Sessions as _, Started, Target, Users as _};
use rollcall_core::user::{Account, AccountChange, Email, NewPassword, PasswordHash, PersonName, Role};
use rollcall_core::{ClassId, Clock, Ids, MailId, SessionId, Timestamp, UserId};
use rollcall_mail::{Config, Limits, Originator, PublicUrl, Sender, SmtpUrl};
use rollcall_store_sqlite::{OpenMode, SqliteStore};
use rollcall_testkit::server::{Authority, Pair};
use rollcall_testkit::smtp::{MailServer, Security};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A clock that goes, and can be put forward.
pub(crate) struct Hands {
    ahead: AtomicI64,
    started: Instant,
}

impl Hands {
    pub(crate) fn advance(&self, time: Duration) {
        self.ahead.fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + self.ahead.load(Ordering::SeqCst)).after(self.started.elapsed())
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Tokens that say what they are.
struct Tokens;

impl MailTokens for Tokens {
    fn of_mail(&self, mail: MailId) -> SecretString {
        format!("token-of-{mail}").into()
    }

    fn hash(&self, token: &str) -> TokenHash {
        let mut bytes = [0; 32];
        for (byte, letter) in bytes.iter_mut().zip(token.bytes().rev()) {
            *byte = letter;
        }
        TokenHash::from_bytes(bytes)
    }

    fn of_unsubscriber(&self, user: UserId) -> SecretString {
        format!("unsubscribe-{user}").into()
    }

    fn unsubscriber(&self, token: &str) -> Option<UserId> {
        UserId::parse(token.strip_prefix("unsubscribe-")?)
    }
}

/// Nobody has a password here.
struct NoHasher;

#[async_trait]
impl PasswordHasher for NoHasher {
    async fn hash(&self, _: NewPassword) -> Result<PasswordHash, HashError> {
        Err(HashError::Failed("nobody has a password here".to_owned()))
    }

    async fn verify(&self, _: SecretString, _: Option<PasswordHash>) -> Result<bool, HashError> {
        Ok(false)
    }
}

/// An outbox, and people to write to.
pub(crate) struct School {
    pub(crate) clock: Arc<Hands>,
    store: Arc<SqliteStore>,
    mails: Arc<Mails>,
    ids: Arc<Ids>,
    _folder: TempDir,
}

impl School {
    pub(crate) fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hands { ahead: AtomicI64::new(0), started: Instant::now() });
        let path = folder.path().join("rollcall.db");
        let store = SqliteStore::open(&path, OpenMode::Serve, Arc::clone(&clock) as _).unwrap();
        let ports = Ports {
            store: Arc::clone(&store) as _,
            clock: Arc::clone(&clock) as _,
            hasher: Arc::new(NoHasher),
            ids: Ids::new([1, 2, 3, 4, 5], 0),
            mail_tokens: Some(Arc::new(Tokens)),
        };
        let Services { mails, ids, .. } = Services::new(ports, TeacherSignup::Open);
        Self { clock, store, mails, ids, _folder: folder }
    }

    /// A student whose address is confirmed.
    pub(crate) async fn reader(&self, email: &str, name: &str) -> UserId {
        self.account(email, name, Role::Student, true).await
    }

    /// Somebody who signed up with an address that may be a stranger's.
    pub(crate) async fn stranger(&self, email: &str, name: &str) -> UserId {
        self.account(email, name, Role::Student, false).await
    }

    async fn account(&self, email: &str, name: &str, role: Role, email_confirmed: bool) -> UserId {
        let now = self.clock.now();
        let account = Account {
            id: UserId(self.ids.next(now)),
            name: PersonName::stored(name),
            email: Email::stored(email),
            role,
            password_hash: PasswordHash::stored("none"),
            token_version: 0,
            disabled: false,
            email_confirmed,
            absence_notices: true,
            created_at: now,
        };
        let id = account.id;
        assert_eq!(self.store.insert_user(account, None).await.unwrap(), Inserted::Created);
        id
    }

    /// So many readers, `reader0@school.example` and so on, each with a mail that waits.
    pub(crate) async fn readers(&self, count: usize) {
        for number in 0..count {
            let reader = self.reader(&format!("reader{number}@school.example"), "Reader").await;
            self.queue(reader, Reason::ResetPassword).await;
        }
    }

    pub(crate) async fn queue(&self, to: UserId, reason: Reason) -> MailId {
        let now = self.clock.now();
        let id = MailId(self.ids.next(now));
        let token = Some(Tokens.hash(Tokens.of_mail(id).expose_secret()));
        let mail = NewMail { id, to, reason, token, queued_at: now, replaces_before: now };
        self.store.queue_mails(vec![mail]).await.unwrap();
        id
    }

    /// A session of a class with this name, in which these were absent.
    pub(crate) async fn absences(&self, class: &str, absent: &[UserId]) {
        let now = self.clock.now();
        let teacher = self.account("teacher@school.example", "Teacher", Role::Teacher, true).await;
        let id = ClassId(self.ids.next(now));
        let class = Class {
            id,
            name: ClassName::stored(class),
            teacher_id: teacher,
            archived: false,
            absence_notices: true,
            created_at: now,
        };
        self.store.insert_class(class).await.unwrap();
        let origin = |operation: String| Origin {
            by: Actor::User(teacher),
            at: now,
            door: Door::Http,
            address: None,
            operation: OperationId::Door(operation.into()),
        };
        for student in absent {
            self.store.enrol(id, *student, origin(student.to_string())).await.unwrap();
        }
        let session = SessionId(self.ids.next(now));
        let started = self.store.start(session, id, teacher, origin("start".to_owned())).await.unwrap();
        assert!(matches!(started, Started::New(_)));
        let done = self.store.submit(Target::Class(id), Command::Finish, origin("done".to_owned())).await.unwrap();
        assert!(matches!(done.await.unwrap(), Outcome::Done(_)));
    }

    pub(crate) async fn disable(&self, user: UserId) {
        self.store.change_user(user, AccountChange::Disable).await.unwrap();
    }

    /// How many mails are in the outbox, after their leases. No sender may run.
    pub(crate) async fn waiting(&self) -> usize {
        let later = self.clock.now().after(Duration::from_mins(5));
        self.store.take_mails(later, later, 1_000).await.unwrap().len()
    }
}

/// How the mail server is spoken to, and who it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Implicit,
    StartTls,
    /// There is no TLS, though it is asked for.
    Plain,
    /// By a certificate of an authority that is not trusted.
    OfSomebodyElse,
    /// By a certificate for another host.
    UnderAnotherName,
}

/// A school, a mail server, and what is between them.
pub(crate) struct Mailing {
    pub(crate) school: School,
    pub(crate) server: MailServer,
    pub(crate) limits: Limits,
    way: Way,
    pair: Pair,
    ca: PathBuf,
    figures: PrometheusHandle,
    _recorder: LocalRecorderGuard<'static>,
    _folder: TempDir,
}

impl Mailing {
    pub(crate) async fn open(way: Way) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        let pair = match way {
            Way::OfSomebodyElse => Authority::new().unwrap().issue(&["localhost"]).unwrap(),
            Way::UnderAnotherName => authority.issue(&["other.example"]).unwrap(),
            Way::Implicit | Way::StartTls | Way::Plain => authority.issue(&["localhost"]).unwrap(),
        };
        let server = MailServer::start(&security(way, &pair)).await.unwrap();
        // For this test's thread alone, on which all of it runs.
        let recorder = PrometheusBuilder::new().build_recorder();
        let figures = recorder.handle();
        let recorder = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
        let limits = Limits {
            command: Duration::from_secs(1),
            acceptance: Duration::from_secs(1),
            first_retry: Duration::from_millis(100),
            longest_retry: Duration::from_millis(200),
            end: Duration::from_secs(5),
        };
        let school = School::open();
        Self { school, server, limits, way, pair, ca, figures, _recorder: recorder, _folder: folder }
    }

    pub(crate) fn security(&self) -> Security {
        security(self.way, &self.pair)
    }

    pub(crate) fn sender(&self) -> Sender {
        let scheme = if matches!(self.way, Way::Implicit) { "smtps" } else { "smtp" };
        let user = "rollcall%40school.example:p%40ss%3Aw%2Frd";
        let server = SmtpUrl::parse(&format!("{scheme}://{user}@localhost:{}", self.server.port())).unwrap();
        let config = Config {
            server,
            ca: Some(self.ca.clone()),
            from: Originator::parse("Rollcall <rollcall@school.example>").unwrap(),
            public_url: PublicUrl::parse("https://school.example").unwrap(),
            templates: None,
            limits: self.limits,
        };
        Sender::new(config, Arc::clone(&self.school.clock) as _, 1).unwrap()
    }

    /// Has a sender send.
    pub(crate) fn run(&self) -> Running {
        let stop = CancellationToken::new();
        let task = tokio::spawn(self.sender().run(Arc::clone(&self.school.mails), stop.clone()));
        Running { stop, task }
    }

    /// To whom the next mail goes.
    pub(crate) async fn next_to(&mut self) -> String {
        self.server.mail().await.unwrap()["envelope_to"][0].as_str().unwrap().to_owned()
    }

    /// To whom the next so many mails go.
    pub(crate) async fn next_tos(&mut self, count: usize) -> HashSet<String> {
        let mut tos = HashSet::new();
        for _ in 0..count {
            tos.insert(self.next_to().await);
        }
        tos
    }

    /// To whom more mails went up to now.
    pub(crate) async fn mails(&mut self) -> Vec<String> {
        let events = self.server.so_far().await.unwrap();
        let mails = events.iter().filter(|event| event["event"] == "mail");
        mails.map(|mail| mail["envelope_to"].to_string()).collect()
    }

    /// Waits until a figure is at least that.
    pub(crate) async fn until(&self, name: &str, least: u64) {
        let reached = async {
            while self.shown(name).is_none_or(|figure| figure < least) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reached).await.expect(name);
    }

    /// A figure, which is there.
    pub(crate) fn figure(&self, name: &str) -> u64 {
        self.shown(name).expect(name)
    }

    fn shown(&self, name: &str) -> Option<u64> {
        let text = self.figures.render();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(value.parse().expect(name))
    }
}

fn security(way: Way, pair: &Pair) -> Security {
    match way {
        Way::Implicit => Security::Implicit(pair.clone()),
        Way::Plain => Security::Plain,
        Way::StartTls | Way::OfSomebodyElse | Way::UnderAnotherName => Security::StartTls(pair.clone()),
    }
}

/// A sender that sends.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Has it end, and waits until it did.
    pub(crate) async fn finish(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("it ends soon").unwrap();
    }

    /// Ends it as a crash would.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }
}
