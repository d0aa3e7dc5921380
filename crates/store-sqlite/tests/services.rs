//! The services over the embedded store: what core decides across several calls of the store.
#![expect(clippy::unwrap_used, reason = "a step that fails where none may fails the test, as it should")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use rollcall_core::class::{ClassChange, ClassName};
use rollcall_core::mail::{Mail, MailTokens, Reason, TokenHash};
use rollcall_core::password::{HashError, PasswordHasher};
use rollcall_core::policy::{ClassAccess, Member, OwnClass, Participant, Student, Teacher};
use rollcall_core::service::{Committed, OpenView, Ports, Services, SignUp, Subject, TeacherSignup};
use rollcall_core::session::{
    Actor, Command, Counts, Door, Event, OperationId, Origin, Revision, SessionInfo, SessionState, Status,
};
use rollcall_core::store::{Change, ChangeStream, Followed, Page, SessionChange, Sessions, Store};
use rollcall_core::user::{AccountChange, NewPassword, PasswordHash, Role};
use rollcall_core::{ClassId, Clock, Error, Ids, MailId, SessionId, Timestamp, UserId};
use rollcall_store_sqlite::{OpenMode, SqliteStore};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;

/// Whatever should happen soon and has not after so long does not happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than there is.
const ALL: u32 = 10_000;

/// A clock that moves when it is told to.
struct Hands(AtomicU64);

impl Hands {
    fn advance(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + i64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// Keeps passwords in the clear: how they are hashed is another crate's matter, and slow.
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

impl MailTokens for Clear {
    fn of_mail(&self, mail: MailId) -> SecretString {
        mail.to_string().into()
    }

    fn hash(&self, token: &str) -> TokenHash {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(token.bytes()).for_each(|(to, from)| *to = from);
        TokenHash::from_bytes(bytes)
    }

    fn of_unsubscriber(&self, user: UserId) -> SecretString {
        user.to_string().into()
    }

    fn unsubscriber(&self, token: &str) -> Option<UserId> {
        UserId::parse(token)
    }
}

/// The services over a new database.
struct School {
    services: Services,
    store: Arc<SqliteStore>,
    clock: Arc<Hands>,
    people: AtomicU32,
    _folder: TempDir,
}

impl School {
    fn open() -> Self {
        Self::open_with(TeacherSignup::Open)
    }

    fn open_with(teacher_signup: TeacherSignup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hands(AtomicU64::new(0)));
        let path = folder.path().join("rollcall.db");
        let store = SqliteStore::open(&path, OpenMode::Serve, Arc::clone(&clock) as _).unwrap();
        let ports = Ports {
            store: Arc::clone(&store) as _,
            clock: Arc::clone(&clock) as _,
            hasher: Arc::new(Clear),
            ids: Ids::new([1, 2, 3, 4, 5], 0),
            mail_tokens: Some(Arc::new(Clear)),
        };
        let services = Services::new(ports, teacher_signup);
        Self { services, store, clock, people: AtomicU32::new(0), _folder: folder }
    }

    async fn person(&self, role: Role) -> Member {
        let number = self.people.fetch_add(1, Ordering::SeqCst);
        let email = format!("person{number}@example.org");
        let wanted = SignUp { name: "Somebody", email: &email, password: "secret", role, code: None };
        Member::admit(Arc::new(self.services.accounts.create(wanted).await.unwrap()), 0).unwrap()
    }

    async fn teacher(&self) -> Teacher {
        self.person(Role::Teacher).await.teacher().unwrap()
    }

    async fn student(&self) -> Student {
        self.person(Role::Student).await.student().unwrap()
    }

    async fn class(&self, teacher: Teacher, students: &[Student]) -> OwnClass {
        let id = self.services.classes.create(teacher, ClassName::parse("Algebra").unwrap()).await.unwrap().class.id;
        let class = self.services.classes.own(teacher, id).await.unwrap();
        for student in students {
            self.enrol(&class, student.id()).await;
        }
        class
    }

    fn origin(&self, by: UserId) -> Origin {
        self.services.attendance.origin(by, Door::Http, None, None)
    }

    async fn enrol(&self, class: &OwnClass, student: UserId) {
        self.services.classes.add_student(class, student, self.origin(class.class().teacher_id)).await.unwrap();
    }

    async fn start(&self, class: &OwnClass) -> SessionInfo {
        self.services.attendance.start(class, self.origin(class.class().teacher_id)).await.unwrap()
    }

    /// Gives a command as a client with its own request id would.
    async fn ask(
        &self,
        teacher: Teacher,
        class: Option<ClassId>,
        command: Command,
        request: Option<&str>,
    ) -> Result<Committed, Error> {
        let request = request.and_then(OperationId::from_client);
        let origin = self.services.attendance.origin(teacher.id(), Door::WebSocket, None, request);
        self.services.attendance.submit(teacher, class, command, origin).await?.await
    }

    async fn mark(&self, teacher: Teacher, class: &OwnClass, student: Student, status: Status) {
        self.ask(teacher, Some(class.id()), mark(student, status), None).await.unwrap();
    }

    async fn finish(&self, teacher: Teacher, class: &OwnClass) -> Counts {
        let done = self.ask(teacher, Some(class.id()), Command::Finish, None).await.unwrap();
        match done.change.entry.event {
            Event::Finished(counts) => counts,
            ref other => panic!("DONE did {other:?}"),
        }
    }

    /// Somebody who signs up, as others do.
    async fn newcomer(&self, email: &str) -> Member {
        let wanted = SignUp { name: "Somebody", email, password: "secret", role: Role::Student, code: None };
        Member::admit(Arc::new(self.services.accounts.sign_up(wanted, true).await.unwrap()), 0).unwrap()
    }

    /// Somebody asks for another password.
    async fn forgot(&self, email: &str) {
        if let Some(mail) = self.services.mails.forgot_password(email).await.unwrap() {
            self.services.mails.queue(mail).await.unwrap();
        }
    }

    /// Everything that is to be sent now.
    async fn due(&self) -> Vec<Mail> {
        self.services.mails.queue_absences().await.unwrap();
        self.services.mails.take(Duration::from_mins(1), ALL).await.unwrap()
    }

    async fn subject(&self, mail: &Mail) -> Option<Subject> {
        self.services.mails.letter(mail).await.unwrap().map(|letter| letter.subject)
    }

    async fn follow(&self) -> ChangeStream {
        self.store.follow(None).await.unwrap()
    }
}

fn mark(student: Student, status: Status) -> Command {
    Command::Mark { student_id: student.id(), status, reason: None }
}

fn page<K>() -> Page<K> {
    Page { after: None, limit: ALL }
}

/// The next item of the committed stream.
async fn next(stream: &mut ChangeStream) -> Followed {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("the stream goes on").expect("the store is open")
}

/// The class's next part of the committed stream, or nothing after a sign of life.
async fn heard(stream: &mut ChangeStream, class: ClassId) -> Option<Vec<Arc<SessionChange>>> {
    match next(stream).await {
        Followed::Batch(batch) => {
            let of_class = |change: &Change| match change {
                Change::Session(change) if change.class_id == class => Some(Arc::clone(change)),
                _ => None,
            };
            Some(batch.changes.iter().filter_map(of_class).collect())
        }
        Followed::Alive => None,
        Followed::Lost => panic!("nothing was lost"),
    }
}

/// What somebody missed who has heard everything up to `since`, told from everything that happened.
fn missed(all: &[Arc<SessionChange>], since: u64) -> Vec<Arc<SessionChange>> {
    let Some(last) = all.last() else { return Vec::new() };
    let after = |change: &&Arc<SessionChange>| change.entry.revision > Revision(since);
    let of = |session: SessionId| all.iter().filter(move |change| change.session_id == session);
    let fell_into = all.iter().find(|change| change.entry.revision == Revision(since)).map(|change| change.session_id);
    let end = fell_into.filter(|session| *session != last.session_id).and_then(|session| of(session).next_back());
    end.filter(after).into_iter().chain(of(last.session_id).filter(after)).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_the_rest_of_the_session_its_end_and_the_last_session() {
    let school = School::open();
    let mut stream = school.follow().await;
    let (teacher, ada, bob) = (school.teacher().await, school.student().await, school.student().await);
    let class = school.class(teacher, &[ada]).await;
    let other = school.class(teacher, &[ada]).await;
    let attendance = &school.services.attendance;
    assert_eq!(attendance.missed(class.id(), Revision(0)).await.unwrap(), []);
    assert_eq!(attendance.missed(class.id(), Revision(7)).await.unwrap(), []);
    assert_eq!(attendance.missed(ClassId::NOTHING, Revision(0)).await.unwrap(), []);

    let mut all = Vec::new();
    for round in 0..4 {
        school.start(&class).await;
        school.start(&other).await;
        if round != 2 {
            school.mark(teacher, &class, ada, Status::Late).await;
            school.mark(teacher, &other, ada, Status::Absent).await;
            school.ask(teacher, Some(class.id()), Command::Summarise, None).await.unwrap();
            school.mark(teacher, &class, ada, Status::Present).await;
        }
        if round == 1 {
            school.enrol(&class, bob.id()).await;
            school.mark(teacher, &class, bob, Status::Present).await;
        }
        for ended in [false, true] {
            if ended {
                school.finish(teacher, &class).await;
            }
            let last = school.store.sessions(class.id(), page()).await.unwrap()[0].revision.0;
            while all.last().is_none_or(|change: &Arc<SessionChange>| change.entry.revision.0 < last) {
                all.extend(heard(&mut stream, class.id()).await.into_iter().flatten());
            }
            assert_eq!(last, all.len() as u64, "a class's revisions have no gap, over all its sessions");
            for since in (0..=last + 2).chain([u64::from(u32::MAX), i64::MAX as u64, u64::MAX]) {
                let told = attendance.missed(class.id(), Revision(since)).await.unwrap();
                assert_eq!(told, missed(&all, since), "since {since} of {last}, round {round}, ended {ended}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_session_is_missed_whole_and_in_order() {
    let school = School::open();
    let (teacher, ada) = (school.teacher().await, school.student().await);
    let class = school.class(teacher, &[ada]).await;
    school.start(&class).await;
    let mut pending = Vec::new();
    for _ in 0..2_100 {
        let origin = school.origin(teacher.id());
        let command = mark(ada, Status::Present);
        pending.push(school.services.attendance.submit(teacher, Some(class.id()), command, origin).await.unwrap());
    }
    for receipt in pending {
        receipt.await.unwrap();
    }
    for since in [0, 1, 100, 1_100, 1_101, 2_100, 2_101] {
        let told = school.services.attendance.missed(class.id(), Revision(since)).await.unwrap();
        let revisions: Vec<_> = told.iter().map(|change| change.entry.revision.0).collect();
        assert_eq!(revisions, (since + 1..=2_101).collect::<Vec<_>>(), "since {since}");
    }
}

/// Somebody who comes back while marks are made hears first what was missed and then what comes, each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_missed_and_what_comes_join_without_a_gap() {
    const SESSIONS: u64 = 6;
    const MARKS: u64 = 60;
    let school = Arc::new(School::open());
    let (teacher, ada) = (school.teacher().await, school.student().await);
    let class = school.class(teacher, &[ada]).await;
    let end = Revision(SESSIONS * (MARKS + 2));

    let listeners: Vec<_> = (0..4)
        .map(|_| {
            let (school, class) = (Arc::clone(&school), class.id());
            tokio::spawn(async move {
                let mut last = Revision(0);
                while last < end {
                    let mut stream = school.follow().await;
                    if let Some(change) = school.services.attendance.missed(class, last).await.unwrap().last() {
                        last = change.entry.revision;
                    }
                    // As long as a connection holds: until nothing came for a moment.
                    while let Some(changes) = heard(&mut stream, class).await {
                        for change in changes {
                            assert!(change.entry.revision <= last.next(), "{} after {last}", change.entry.revision);
                            last = last.max(change.entry.revision);
                        }
                    }
                }
                last
            })
        })
        .collect();
    for _ in 0..SESSIONS {
        school.start(&class).await;
        for _ in 0..MARKS {
            school.mark(teacher, &class, ada, Status::Late).await;
        }
        school.finish(teacher, &class).await;
    }
    for listener in listeners {
        assert_eq!(tokio::time::timeout(PATIENCE, listener).await.unwrap().unwrap(), end);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_refused_in_the_order_of_the_contract() {
    let school = School::open();
    let (teacher, stranger) = (school.teacher().await, school.teacher().await);
    let (ada, bob) = (school.student().await, school.student().await);
    let class = school.class(teacher, &[ada]).await;
    let id = Some(class.id());

    let refused = school.ask(teacher, Some(ClassId::NOTHING), mark(bob, Status::Late), None).await;
    assert!(matches!(refused, Err(Error::ClassNotFound)), "{refused:?}");
    let refused = school.ask(stranger, id, mark(bob, Status::Late), None).await;
    assert!(matches!(refused, Err(Error::NotClassTeacher)), "{refused:?}");
    for target in [id, None] {
        for command in [mark(bob, Status::Late), Command::Summarise, Command::Finish] {
            let refused = school.ask(teacher, target, command, None).await;
            assert!(matches!(refused, Err(Error::NoActiveSession { .. })), "{refused:?}");
        }
    }
    let started = school.start(&class).await;
    for target in [id, None] {
        let refused = school.ask(teacher, target, mark(bob, Status::Late), None).await.unwrap_err();
        assert!(matches!(refused, Error::StudentNotEnrolled { .. }), "{refused:?}");
        let seen = refused.seen().unwrap();
        assert_eq!((seen.class_id, seen.revision), (class.id(), started.revision));
    }
    let refused = school.ask(stranger, None, Command::Finish, None).await;
    assert!(matches!(refused, Err(Error::NoActiveSession { .. })), "another's session is not theirs: {refused:?}");

    school.services.classes.archive(&class, school.origin(teacher.id())).await.unwrap();
    let refused = school.ask(teacher, id, Command::Finish, None).await;
    assert!(matches!(refused, Err(Error::ClassNotFound)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_a_class_concerns_the_session_opened_last_and_still_open() {
    let school = School::open();
    let (teacher, ada) = (school.teacher().await, school.student().await);
    let (first, second) = (school.class(teacher, &[ada]).await, school.class(teacher, &[ada]).await);
    let attendance = &school.services.attendance;
    school.start(&second).await;
    school.start(&first).await;
    // A start that finds its session open opens nothing.
    school.start(&second).await;

    let done = school.ask(teacher, None, mark(ada, Status::Present), None).await.unwrap();
    assert_eq!(done.change.class_id, first.id());
    let (seen, status) = attendance.own_mark(ada, None).await.unwrap();
    assert_eq!((seen.class_id, seen.revision, status), (first.id(), done.change.entry.revision, Some(Status::Present)));
    assert_eq!(attendance.own_mark(ada, Some(second.id())).await.unwrap().1, None);

    school.ask(teacher, None, Command::Finish, None).await.unwrap();
    let done = school.ask(teacher, None, mark(ada, Status::Late), None).await.unwrap();
    assert_eq!(done.change.class_id, second.id());
    assert_eq!(attendance.own_mark(ada, None).await.unwrap().1, Some(Status::Late));
    school.ask(teacher, None, Command::Finish, None).await.unwrap();
    for class in [None, Some(first.id())] {
        let refused = attendance.own_mark(ada, class).await;
        assert!(matches!(refused, Err(Error::NoActiveSession { .. })), "{refused:?}");
    }
    let refused = attendance.own_mark(ada, Some(ClassId::NOTHING)).await;
    assert!(matches!(refused, Err(Error::ClassNotFound)), "{refused:?}");
    school.start(&first).await;
    let refused = attendance.own_mark(school.student().await, Some(first.id())).await;
    assert!(matches!(refused, Err(Error::StudentNotEnrolled { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_sent_again_is_done_once() {
    let school = School::open();
    let (teacher, ada) = (school.teacher().await, school.student().await);
    let (class, other) = (school.class(teacher, &[ada]).await, school.class(teacher, &[ada]).await);
    let (here, there) = (Some(class.id()), Some(other.id()));
    school.start(&other).await;
    school.start(&class).await;

    let first = school.ask(teacher, here, mark(ada, Status::Late), Some("1")).await.unwrap();
    assert!(!first.repeated);
    for target in [here, None] {
        let again = school.ask(teacher, target, mark(ada, Status::Late), Some("1")).await.unwrap();
        assert_eq!(again, Committed { change: Arc::clone(&first.change), repeated: true });
    }
    let marked = school.ask(teacher, here, mark(ada, Status::Present), Some("1")).await.unwrap();
    assert!(!marked.repeated, "the same id with another mark is another command");
    let marked = school.ask(teacher, there, mark(ada, Status::Late), Some("1")).await.unwrap();
    assert!(!marked.repeated, "the same id in another class is another command");
    assert_eq!(marked.change.class_id, other.id());

    // DONE of the session opened last, whose answer got lost, does not end the next one.
    let done = school.ask(teacher, None, Command::Finish, Some("9")).await.unwrap();
    assert_eq!((done.change.class_id, done.repeated), (class.id(), false));
    let again = school.ask(teacher, None, Command::Finish, Some("9")).await.unwrap();
    assert_eq!(again, Committed { change: Arc::clone(&done.change), repeated: true });
    assert!(school.store.open_session(other.id()).await.unwrap().is_some());
    let again = school.ask(teacher, here, mark(ada, Status::Late), Some("1")).await.unwrap();
    assert_eq!(again.change, first.change, "a mark sent again after DONE is known too");

    // The next day the numbers begin again.
    school.clock.advance(rollcall_core::store::REPEAT_WINDOW);
    let next = school.ask(teacher, None, Command::Finish, Some("9")).await.unwrap();
    assert_eq!((next.change.class_id, next.repeated), (other.id(), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_stand_after_done_and_history_is_kept() {
    let school = School::open();
    let (teacher, ada, bob) = (school.teacher().await, school.student().await, school.student().await);
    let class = school.class(teacher, &[ada, bob]).await;
    let attendance = &school.services.attendance;
    let owner = ClassAccess::Owner(class.clone());
    let student = ClassAccess::Enrolled(ada, Arc::clone(class.class()));
    assert_eq!(attendance.last_record(ada, class.id()).await.unwrap(), None);

    let first = school.start(&class).await;
    school.mark(teacher, &class, ada, Status::Late).await;
    school.mark(teacher, &class, bob, Status::Excused).await;
    assert_eq!(attendance.last_record(ada, class.id()).await.unwrap(), None, "nothing stands before DONE");
    let open = attendance.history(&owner, first.id, page()).await.unwrap();
    assert_eq!((open.info.state, open.records.len(), open.log.len()), (SessionState::Open, 0, 3));
    match attendance.open(&student).await.unwrap() {
        Some(OpenView::Own { mark: Some(mark), .. }) => assert_eq!(mark.status, Status::Late),
        other => panic!("a student sees the own mark, not {other:?}"),
    }
    match attendance.open(&owner).await.unwrap() {
        Some(OpenView::Full { session, students }) => {
            assert_eq!((session.marks().len(), session.roster().len()), (2, 2));
            assert_eq!(students.iter().map(|student| student.id).collect::<Vec<_>>(), [ada.id(), bob.id()]);
        }
        other => panic!("a teacher sees all, not {other:?}"),
    }
    let counts = school.finish(teacher, &class).await;
    assert_eq!(counts, Counts { late: 1, excused: 1, ..Counts::default() });

    let second = school.start(&class).await;
    school.mark(teacher, &class, bob, Status::Present).await;
    assert_eq!(attendance.last_record(ada, class.id()).await.unwrap().unwrap().status, Status::Late);
    let counts = school.finish(teacher, &class).await;
    assert_eq!(counts, Counts { present: 1, absent: 1, ..Counts::default() });
    let last = attendance.last_record(ada, class.id()).await.unwrap().unwrap();
    assert_eq!((last.session_id, last.status, last.marked_at), (second.id, Status::Absent, None));
    assert!(attendance.open(&owner).await.unwrap().is_none());

    let sessions = attendance.sessions(&student, page()).await.unwrap();
    assert_eq!(sessions.iter().map(|session| session.id).collect::<Vec<_>>(), [second.id, first.id]);
    let whole = attendance.history(&owner, first.id, page()).await.unwrap();
    assert_eq!((whole.records.len(), whole.log.len()), (2, 4));
    let own = attendance.history(&student, first.id, page()).await.unwrap();
    assert_eq!(own.records.iter().map(|record| record.student_id).collect::<Vec<_>>(), [ada.id()]);
    assert!(own.log.iter().all(|entry| match &entry.event {
        Event::Marked { student_id, .. } | Event::Enrolled { student_id } | Event::Removed { student_id } =>
            *student_id == ada.id(),
        Event::Started | Event::Summarised(_) | Event::Finished(_) => true,
    }));
    let other = ClassAccess::Owner(school.class(teacher, &[]).await);
    let refused = attendance.history(&other, first.id, page()).await;
    assert!(matches!(refused, Err(Error::SessionNotFound)), "a session is found by its own class alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_is_seen_by_its_people_and_outlived_by_its_history() {
    let school = School::open();
    let (teacher, stranger) = (school.teacher().await, school.teacher().await);
    let (ada, bob) = (school.student().await, school.student().await);
    let class = school.class(teacher, &[ada]).await;
    let classes = &school.services.classes;
    let (id, by) = (class.id(), school.origin(teacher.id()));

    for (somebody, admitted) in [
        (Participant::Teacher(teacher), true),
        (Participant::Student(ada), true),
        (Participant::Teacher(stranger), false),
        (Participant::Student(bob), false),
    ] {
        let view = classes.view(somebody, id).await;
        assert!(if admitted { view.is_ok() } else { matches!(view, Err(Error::NotClassTeacher)) }, "{somebody:?}");
        let view = classes.view(somebody, ClassId::NOTHING).await;
        assert!(matches!(view, Err(Error::ClassNotFound)), "existence before ownership");
    }
    let refused = classes.add_student(&class, UserId::NOTHING, by.clone()).await;
    assert!(matches!(refused, Err(Error::StudentNotFound)), "{refused:?}");
    let refused = classes.add_student(&class, stranger.id(), by.clone()).await;
    assert!(matches!(refused, Err(Error::NotAStudent)), "{refused:?}");
    let twice = classes.add_student(&class, ada.id(), by.clone()).await.unwrap();
    assert_eq!(twice.student_ids, [ada.id()]);
    let refused = classes.remove_student(&class, bob.id(), by.clone()).await;
    assert!(matches!(refused, Err(Error::StudentNotFound)), "{refused:?}");
    let refused = classes.enrolled(bob, id).await;
    assert!(matches!(refused, Err(Error::NotEnrolled)), "{refused:?}");

    let session = school.start(&class).await;
    classes.archive(&class, by.clone()).await.unwrap();
    let renamed = ClassChange { name: ClassName::parse("Geometry").ok(), absence_notices: None };
    for refused in [
        classes.view(Participant::Teacher(teacher), id).await.map(drop),
        classes.active_access(Participant::Student(ada), id).await.map(drop),
        classes.own(teacher, id).await.map(drop),
        classes.change(&class, renamed).await.map(drop),
        classes.add_student(&class, bob.id(), by.clone()).await.map(drop),
        school.services.attendance.start(&class, by.clone()).await.map(drop),
        classes.archive(&class, by).await.map(drop),
    ] {
        assert!(matches!(refused, Err(Error::ClassNotFound)), "{refused:?}");
    }
    assert!(classes.enrolled(ada, id).await.is_ok());
    let access = classes.history_access(Participant::Student(ada), id).await.unwrap();
    let history = school.services.attendance.history(&access, session.id, page()).await.unwrap();
    assert_eq!(history.records.first().map(|record| record.status), Some(Status::Absent));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_sessions_are_ended_and_young_ones_are_not() {
    let school = School::open();
    let (teacher, ada) = (school.teacher().await, school.student().await);
    let (old, young) = (school.class(teacher, &[ada]).await, school.class(teacher, &[ada]).await);
    let day = Duration::from_hours(24);
    let session = school.start(&old).await;
    school.mark(teacher, &old, ada, Status::Present).await;
    school.clock.advance(day);
    school.start(&young).await;
    school.clock.advance(Duration::from_secs(1));

    assert_eq!(school.services.attendance.finish_older_than(day).await.unwrap(), 1);
    assert_eq!(school.services.attendance.finish_older_than(day).await.unwrap(), 0);
    assert!(school.store.open_session(young.id()).await.unwrap().is_some());
    let history = school.services.attendance.history(&ClassAccess::Owner(old), session.id, page()).await.unwrap();
    let SessionState::Finished { by, counts, .. } = history.info.state else { panic!("it is ended") };
    assert_eq!((by, counts), (Actor::System, Counts { present: 1, ..Counts::default() }));
    assert_eq!(history.log.last().map(|entry| entry.origin.door), Some(Door::System));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_made_and_admitted_by_the_rules() {
    let code = || SecretString::from("let me in");
    let school = School::open_with(TeacherSignup::Code(code()));
    let accounts = &school.services.accounts;
    let wanted = |email, role, code| SignUp { name: " Ada ", email, password: "secret", role, code };

    for wrong in [None, Some(SecretString::from("let me")), Some(SecretString::from(""))] {
        let refused = accounts.sign_up(wanted("ada@example.org", Role::Teacher, wrong), true).await;
        assert!(matches!(refused, Err(Error::SignupClosed)), "{refused:?}");
    }
    let refused = accounts.sign_up(SignUp { name: "", ..wanted("ada", Role::Teacher, None) }, true).await;
    let Err(Error::Invalid(fields)) = refused else { panic!("{refused:?}") };
    assert_eq!(fields.iter().map(|error| error.field).collect::<Vec<_>>(), ["name", "email"]);
    let refused = accounts.sign_up(wanted("ada@example.org", Role::Admin, Some(code())), true).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");

    let ada = accounts.sign_up(wanted("Ada@Example.org", Role::Teacher, Some(code())), true).await.unwrap();
    assert_eq!((ada.name.as_str(), ada.email.as_str()), ("Ada", "Ada@Example.org"));
    let taken = accounts.sign_up(wanted("aDA@example.ORG", Role::Student, None), true).await;
    assert!(matches!(taken, Err(Error::EmailExists)), "{taken:?}");

    let secret = || SecretString::from("secret");
    assert_eq!(accounts.log_in(" ada@EXAMPLE.org", secret()).await.unwrap(), ada);
    for (email, password) in [("ada@example.org", SecretString::from("Secret")), ("bob@example.org", secret())] {
        let refused = accounts.log_in(email, password).await;
        assert!(matches!(refused, Err(Error::InvalidCredentials)), "{refused:?}");
    }
    accounts.change("ada@example.org", AccountChange::Disable).await.unwrap().unwrap();
    let refused = accounts.log_in("ada@example.org", secret()).await;
    assert!(matches!(refused, Err(Error::InvalidCredentials)), "a disabled account looks like a wrong password");
    assert!(accounts.change("nobody@example.org", AccountChange::Disable).await.unwrap().is_none());
    assert_eq!(accounts.list(page()).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_sign_up_with_one_address_at_once_are_one_account() {
    let school = School::open();
    let sign_up = async |email: String| {
        let wanted = SignUp { name: "Ada", email: &email, password: "secret", role: Role::Student, code: None };
        school.services.accounts.sign_up(wanted, true).await
    };
    for round in 0..20 {
        let (lower, upper) = (format!("ada{round}@example.org"), format!("ADA{round}@example.org"));
        let (one, two) = tokio::join!(sign_up(lower), sign_up(upper));
        match (one, two) {
            (Ok(_), Err(Error::EmailExists)) | (Err(Error::EmailExists), Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The token of an account that is disabled ends when the stream says so, and at the latest when it is silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_with_its_account() {
    let school = School::open();
    let ada = school.student().await;
    let accounts = &school.services.accounts;
    let directory = &school.services.directory;
    let email = accounts.list(page()).await.unwrap()[0].email.clone();
    let refused = async |version| matches!(accounts.member(ada.id(), version).await, Err(Error::Unauthenticated));

    directory.alive();
    accounts.member(ada.id(), 0).await.unwrap();
    let disabled = accounts.change(email.as_str(), AccountChange::Disable).await.unwrap().unwrap();
    school.clock.advance(rollcall_core::directory::TRUST);
    assert!(refused(0).await, "the stream is silent");

    directory.alive();
    assert!(refused(disabled.token_version).await);
    let enabled = accounts.change(email.as_str(), AccountChange::Enable).await.unwrap().unwrap();
    accounts.member(ada.id(), enabled.token_version).await.expect("no refusal comes from what is remembered");
    assert!(refused(0).await, "tokens from before stay revoked");
    accounts.reset_password(email.as_str(), "another").await.unwrap().unwrap();
    directory.changed(&Change::Account(ada.id()));
    assert!(refused(enabled.token_version).await, "a new password revokes all tokens");
    assert!(matches!(accounts.member(UserId::NOTHING, 0).await, Err(Error::Unauthenticated)));
}

#[tokio::test]
async fn an_address_is_confirmed_by_the_mail_that_follows_a_sign_up() {
    let school = School::open();
    let mails = &school.services.mails;
    let sam = school.newcomer("sam@example.org").await;
    let due = school.due().await;
    let Some(Subject::ConfirmEmail { token, .. }) = school.subject(&due[0]).await else { panic!("another mail") };
    mails.over(&due[0]).await.unwrap();
    assert!(school.due().await.is_empty());
    // Asking at once sends nothing more; later it does, and the first link is no good any more.
    assert!(mails.ask_to_confirm(&sam).await.unwrap());
    assert!(school.due().await.is_empty());
    school.clock.advance(Duration::from_mins(2));
    assert!(mails.ask_to_confirm(&sam).await.unwrap());
    let second = school.due().await;
    assert!(matches!(mails.confirm(token.expose_secret()).await, Err(Error::InvalidLink)));
    let Some(Subject::ConfirmEmail { token, .. }) = school.subject(&second[0]).await else { panic!("another mail") };
    let account = mails.confirm(token.expose_secret()).await.unwrap();
    assert!(account.email_confirmed && account.token_version == 0, "{account:?}");
    assert!(school.subject(&second[0]).await.is_none(), "there is nothing left to ask for");
    assert!(!mails.ask_to_confirm(&sam).await.unwrap());
    assert!(matches!(mails.confirm(token.expose_secret()).await, Err(Error::InvalidLink)), "it is good once");
    // The operator's word needs no mail.
    let made = school.person(Role::Student).await;
    assert!(made.account().email_confirmed);
    assert!(school.due().await.is_empty());
}

#[tokio::test]
async fn a_password_is_reset_once_and_within_an_hour() {
    let school = School::open();
    let mails = &school.services.mails;
    let sam = school.newcomer("sam@example.org").await;
    mails.over(&school.due().await[0]).await.unwrap();
    school.forgot("nobody@example.org").await;
    assert!(school.due().await.is_empty());
    let token = async || {
        school.forgot(" SAM@example.org").await;
        let due = school.due().await;
        let Some(Subject::ResetPassword { token, .. }) = school.subject(&due[0]).await else { panic!("another mail") };
        mails.over(&due[0]).await.unwrap();
        token.expose_secret().to_owned()
    };
    let late = token().await;
    school.clock.advance(Duration::from_hours(1));
    assert!(matches!(mails.reset_password(&late, "another").await, Err(Error::InvalidLink)), "an hour later");
    let good = token().await;
    assert!(matches!(mails.reset_password(&good, "short").await, Err(Error::Invalid(_))));
    assert!(matches!(mails.reset_password("anything", "another").await, Err(Error::InvalidLink)));
    assert!(matches!(mails.confirm(&good).await, Err(Error::InvalidLink)), "it is for something else");
    assert_eq!(mails.reset_password(&good, "another").await.unwrap(), sam.id());
    assert!(matches!(mails.reset_password(&good, "a third").await, Err(Error::InvalidLink)));
    assert!(school.services.accounts.member(sam.id(), 0).await.is_err(), "logins from before have ended");
    let account = school.services.accounts.log_in("sam@example.org", "another".into()).await.unwrap();
    assert!(account.email_confirmed, "somebody who reads its mails has the address");
    // Nobody who is disabled gets in by a mail.
    school.clock.advance(Duration::from_mins(2));
    let before = token().await;
    school.services.accounts.change("sam@example.org", AccountChange::Disable).await.unwrap();
    assert!(matches!(mails.reset_password(&before, "a fourth").await, Err(Error::InvalidLink)));
    school.services.accounts.change("sam@example.org", AccountChange::Enable).await.unwrap();
    assert!(matches!(mails.reset_password(&before, "a fourth").await, Err(Error::InvalidLink)), "nor later");
    school.clock.advance(Duration::from_mins(2));
    let before = token().await;
    school.services.accounts.reset_password("sam@example.org", "by the operator").await.unwrap();
    assert!(matches!(mails.reset_password(&before, "a fourth").await, Err(Error::InvalidLink)));
    school.services.accounts.change("sam@example.org", AccountChange::Disable).await.unwrap();
    school.clock.advance(Duration::from_mins(2));
    school.forgot("sam@example.org").await;
    assert!(school.due().await.iter().all(|mail| mail.to != sam.id()));
}

#[tokio::test]
async fn absent_students_are_told_where_the_class_and_they_want_it() {
    let school = School::open();
    let (teacher, mails) = (school.teacher().await, &school.services.mails);
    let (absent, present, stopped) = (school.student().await, school.student().await, school.student().await);
    let unconfirmed = school.newcomer("stranger@example.org").await.student().unwrap();
    school.due().await;
    let class = school.class(teacher, &[absent, present, stopped, unconfirmed]).await;
    let hold = async || {
        school.start(&class).await;
        school.mark(teacher, &class, present, Status::Present).await;
        school.finish(teacher, &class).await;
        school.due().await
    };
    assert!(hold().await.is_empty(), "they are off until the teacher turns them on");
    let on = ClassChange { name: None, absence_notices: Some(true) };
    assert!(school.services.classes.change(&class, on).await.unwrap().class.absence_notices);
    mails.set_notices(&stopped.id().to_string(), false).await.unwrap();
    let due = hold().await;
    assert_eq!(due.iter().map(|mail| mail.to).collect::<Vec<_>>(), [absent.id()]);
    let Some(Subject::Absence { class: name, unsubscribe, .. }) = school.subject(&due[0]).await else {
        panic!("another mail")
    };
    assert_eq!(name.as_str(), "Algebra");
    // Who stops them after one was queued is not sent that one either.
    mails.set_notices(unsubscribe.expose_secret(), false).await.unwrap();
    assert!(school.subject(&due[0]).await.is_none());
    mails.set_notices(unsubscribe.expose_secret(), true).await.unwrap();
    assert!(school.subject(&due[0]).await.is_some());
    assert_eq!(hold().await.len(), 1, "each session is told of by itself");
    // Nobody fills a mailbox by sessions.
    let mut told = 2;
    for _ in 0..15 {
        told += hold().await.len();
    }
    assert_eq!(told, 12);
    school.clock.advance(Duration::from_hours(25));
    let again = hold().await;
    let again: Vec<_> = again.into_iter().filter(|mail| mail.attempt == 1).collect();
    assert_eq!(again.len(), 1, "another day");
    // What is turned off is off at once, also for what waits.
    let off = ClassChange { name: None, absence_notices: Some(false) };
    school.services.classes.change(&class, off).await.unwrap();
    assert!(school.subject(&again[0]).await.is_none());
    // Of a session that was forgotten nobody knows who was there.
    let on = ClassChange { name: None, absence_notices: Some(true) };
    school.services.classes.change(&class, on).await.unwrap();
    school.start(&class).await;
    school.clock.advance(Duration::from_hours(24));
    school.services.attendance.finish_older_than(Duration::from_hours(1)).await.unwrap();
    assert!(school.due().await.iter().all(|mail| mail.attempt > 1));
    // Mails may have been turned off for a while.
    school.start(&class).await;
    school.finish(teacher, &class).await;
    school.clock.advance(Duration::from_hours(3 * 24));
    let due = school.due().await;
    assert!(due.iter().all(|mail| mail.reason == Reason::ConfirmEmail), "what is long past is no news: {due:?}");
    assert!(matches!(mails.set_notices("nothing", false).await, Err(Error::InvalidLink)));
}

#[tokio::test]
async fn a_mail_waits_until_it_expires() {
    let school = School::open();
    let mails = &school.services.mails;
    school.newcomer("sam@example.org").await;
    let first = school.due().await;
    school.clock.advance(Duration::from_secs(61));
    let second = school.due().await;
    assert_eq!(
        (first[0].id, first[0].attempt + 1),
        (second[0].id, second[0].attempt),
        "whoever took it never came back"
    );
    mails.later(&first[0], Duration::ZERO).await.unwrap();
    mails.later(&second[0], Duration::from_mins(10)).await.unwrap();
    assert!(school.due().await.is_empty(), "the one who was late had nothing more to say");
    school.clock.advance(Duration::from_mins(10));
    assert_eq!(school.due().await[0].attempt, 3);
    assert_eq!(mails.forget_expired().await.unwrap(), 0);
    school.clock.advance(Duration::from_hours(7 * 24));
    assert!(school.due().await.is_empty());
    assert_eq!(mails.forget_expired().await.unwrap(), 1);
    assert_eq!(mails.forget_expired().await.unwrap(), 0);
}
