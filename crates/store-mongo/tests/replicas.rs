//! Several replicas on one database, and databases that go away: what is acknowledged stands, what is refused does
//! not, and everything heals by itself.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rollcall_core::class::{Class, ClassName};
use rollcall_core::id::MailId;
use rollcall_core::mail::{ASK_AGAIN, Fate, NewMail, Reason};
use rollcall_core::session::{Actor, Command, Door, Event, OperationId, Origin, Revision, SessionInfo, Status};
use rollcall_core::store::{
    Classes, Followed, Outbox, Outcome, Page, Sessions, Started, Store, StoreError, Target, Users,
};
use rollcall_core::user::{Account, AccountChange, Email, PasswordHash, PersonName, Role};
use rollcall_core::{ClassId, Clock, Ids, SessionId, Timestamp, UserId};
use rollcall_store_mongo::MongoStore;
use rollcall_testkit::conformance::{Listener, SetClock};
use rollcall_testkit::mongo::mongodb::bson::oid::ObjectId;
use rollcall_testkit::mongo::mongodb::bson::{Document, doc};
use rollcall_testkit::mongo::{ReplicaSet, shared};
use tokio::task::JoinSet;

/// Far more than a new primary takes.
const PATIENCE: Duration = Duration::from_mins(1);
/// For how long a mail is taken.
const LEASE: Duration = Duration::from_mins(5);
/// How soon a database that is away must be told.
const SOON: Duration = Duration::from_secs(5);

/// A class with an open session.
struct Course {
    ids: Ids,
    clock: Arc<SetClock>,
    teacher: UserId,
    class: ClassId,
    students: Vec<UserId>,
    session: SessionInfo,
    operations: AtomicU32,
}

async fn store(url: &str, clock: &Arc<SetClock>) -> Arc<MongoStore> {
    MongoStore::connect(&url.into(), Arc::<SetClock>::clone(clock)).await.unwrap()
}

impl Course {
    async fn new(store: &dyn Store, clock: Arc<SetClock>, students: usize) -> Self {
        let ids = Ids::new([9; 5], 1);
        let mut people = Vec::new();
        for number in 0..=students {
            let id = UserId(ids.next(clock.now()));
            let account = Account {
                id,
                name: PersonName::stored("Somebody"),
                email: Email::stored(format!("{id}@example.org")),
                role: if number == 0 { Role::Teacher } else { Role::Student },
                password_hash: PasswordHash::stored("$2b$10$none"),
                token_version: 0,
                disabled: false,
                email_confirmed: false,
                absence_notices: true,
                created_at: clock.now(),
            };
            store.insert_user(account, None).await.unwrap();
            people.push(id);
        }
        let teacher = people.remove(0);
        let class = ClassId(ids.next(clock.now()));
        let name = ClassName::stored("Chemistry");
        let created_at = clock.now();
        let made = Class { id: class, name, teacher_id: teacher, archived: false, absence_notices: false, created_at };
        store.insert_class(made).await.unwrap();
        let id = SessionId(ids.next(clock.now()));
        let operations = AtomicU32::new(0);
        let session = SessionInfo {
            id,
            class_id: class,
            teacher_id: teacher,
            started_at: created_at,
            first_revision: Revision(1),
            revision: Revision(1),
            state: rollcall_core::session::SessionState::Open,
        };
        let course = Self { ids, clock, teacher, class, students: people, session, operations };
        for student in &course.students {
            store.enrol(class, *student, course.origin()).await.unwrap();
        }
        let started = store.start(id, class, teacher, course.origin()).await.unwrap();
        assert_eq!(started, Started::New(course.session.clone()));
        course
    }

    fn origin(&self) -> Origin {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        Origin {
            by: Actor::User(self.teacher),
            at: self.clock.now(),
            door: Door::WebSocket,
            address: None,
            operation: OperationId::Door(format!("{number}").into()),
        }
    }

    fn mark(&self, number: usize) -> Command {
        let student_id = self.students[number % self.students.len()];
        Command::Mark { student_id, status: Status::ALL[number % 4], reason: None }
    }

    /// Marks until `stop`, and answers with the operation and the revision of what was acknowledged, and with how
    /// many were refused. Nothing may stay unknown.
    async fn mark_until(
        self: Arc<Self>,
        store: Arc<MongoStore>,
        stop: Arc<AtomicBool>,
    ) -> (HashMap<OperationId, Revision>, usize) {
        let (mut acknowledged, mut refused) = (HashMap::new(), 0);
        for number in 0_usize.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let origin = self.origin();
            let target = [Target::Class(self.class), Target::OpenedBy(self.teacher)][number % 2];
            let receipt = store.submit(target, self.mark(number), origin.clone()).await.unwrap();
            match tokio::time::timeout(PATIENCE, receipt).await.expect("an answer at last") {
                Ok(Outcome::Done(change)) => {
                    acknowledged.insert(origin.operation, change.entry.revision);
                }
                Ok(other) => panic!("a mark was to be done: {other:?}"),
                Err(StoreError::Unavailable(_)) => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        (acknowledged, refused)
    }

    /// The log holds exactly what was acknowledged, each once, without a gap.
    async fn check(&self, store: &dyn Store, acknowledged: &HashMap<OperationId, Revision>) {
        let log = store.log(self.session.id, None, Page { after: None, limit: 100_000 }).await.unwrap();
        let wanted: Vec<_> = (1..=log.len() as u64).map(Revision).collect();
        assert_eq!(log.iter().map(|entry| entry.revision).collect::<Vec<_>>(), wanted);
        let marked = log.iter().filter(|entry| matches!(entry.event, Event::Marked { .. }));
        let stands: Vec<_> = marked.map(|entry| (entry.origin.operation.clone(), entry.revision)).collect();
        assert_eq!(stands.len(), acknowledged.len(), "nothing is doubled, nothing refused stands");
        for (operation, revision) in stands {
            assert_eq!(acknowledged.get(&operation), Some(&revision));
        }
    }
}

/// Starts this many who mark at once, on these stores in turn.
fn mark_on(
    course: &Arc<Course>,
    stores: &[Arc<MongoStore>],
    count: usize,
    stop: &Arc<AtomicBool>,
) -> JoinSet<(HashMap<OperationId, Revision>, usize)> {
    let mut marking = JoinSet::new();
    for number in 0..count {
        let store = Arc::clone(&stores[number % stores.len()]);
        marking.spawn(Arc::clone(course).mark_until(store, Arc::clone(stop)));
    }
    marking
}

async fn finish(
    marking: JoinSet<(HashMap<OperationId, Revision>, usize)>,
    stop: &AtomicBool,
) -> (HashMap<OperationId, Revision>, usize) {
    stop.store(true, Ordering::SeqCst);
    let (mut acknowledged, mut refused) = (HashMap::new(), 0);
    for (some, no) in marking.join_all().await {
        acknowledged.extend(some);
        refused += no;
    }
    (acknowledged, refused)
}

/// A follower of one session.
struct Ear {
    listener: Listener,
    heard: Revision,
}

impl Ear {
    /// Listens from now on; nothing may have happened but the start.
    async fn new(store: &dyn Store) -> Self {
        Self { listener: Listener::new(store.follow(None).await.unwrap()), heard: Revision(1) }
    }

    /// Hears all up to `last`, in the order of revisions, none missing and none twice.
    async fn hear(&mut self, last: Revision) {
        while self.heard < last {
            let change = self.listener.session_change().await;
            assert_eq!(change.entry.revision, self.heard.next());
            self.heard = change.entry.revision;
        }
    }
}

async fn revision(store: &dyn Store, course: &Course) -> Revision {
    store.session(course.class, course.session.id).await.unwrap().unwrap().revision
}

/// A teacher on one replica and the same teacher on another, both at full speed: all marks land, once, in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn two_replicas_mark_in_one_session() {
    let clock = SetClock::new();
    let url = shared().await.url("two_replicas");
    let stores = [store(&url, &clock).await, store(&url, &clock).await];
    let course = Arc::new(Course::new(&*stores[0], clock, 7).await);
    let mut ears = [Ear::new(&*stores[0]).await, Ear::new(&*stores[1]).await];
    let stop = Arc::new(AtomicBool::new(false));
    let marking = mark_on(&course, &stores, 8, &stop);
    for ear in &mut ears {
        ear.hear(Revision(400)).await;
    }
    let (acknowledged, refused) = finish(marking, &stop).await;
    assert_eq!(refused, 0);
    course.check(&*stores[1], &acknowledged).await;
    assert_eq!(
        stores[0].open_session(course.class).await.unwrap(),
        stores[1].open_session(course.class).await.unwrap()
    );
}

/// Readers on one replica, who share what proves that they read the newest, see all that was acknowledged on another
/// before they asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn a_read_sees_what_was_acknowledged_before_it() {
    let clock = SetClock::new();
    let url = shared().await.url("reads_of_now");
    let [writer, reader] = [store(&url, &clock).await, store(&url, &clock).await];
    let course = Arc::new(Course::new(&*writer, clock, 5).await);
    let acknowledged = Arc::new(AtomicU64::new(course.session.revision.0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut reading = JoinSet::new();
    for _ in 0..16 {
        let (reader, course) = (Arc::clone(&reader), Arc::clone(&course));
        let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        reading.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let before = acknowledged.load(Ordering::SeqCst);
                let seen = revision(&*reader, &course).await;
                assert!(seen.0 >= before, "{seen:?} was seen after {before} had been acknowledged");
            }
        });
    }
    for number in 0..300 {
        let receipt = writer.submit(Target::Class(course.class), course.mark(number), course.origin()).await.unwrap();
        let Outcome::Done(change) = receipt.await.unwrap() else { panic!("a mark was to be done") };
        acknowledged.store(change.entry.revision.0, Ordering::SeqCst);
    }
    stop.store(true, Ordering::SeqCst);
    reading.join_all().await;
}

/// A set of one member writes its journal every 100 ms unless it is asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn reads_do_not_wait_for_the_journal_of_a_lone_member() {
    const READS: u32 = 50;
    let clock = SetClock::new();
    let store = store(&shared().await.url("lone_member"), &clock).await;
    let course = Course::new(&*store, clock, 1).await;
    let started = Instant::now();
    for _ in 0..READS {
        revision(&*store, &course).await;
    }
    let each = started.elapsed() / READS;
    assert!(each < Duration::from_millis(50), "a read took {each:?}");
}

/// A session that its teacher opens on another replica is the one that commands without a class concern, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn the_last_opened_session_is_known_on_every_replica() {
    let clock = SetClock::new();
    let url = shared().await.url("last_opened");
    let (here, there) = (store(&url, &clock).await, store(&url, &clock).await);
    let course = Course::new(&*here, clock, 1).await;
    let give = async |store: &MongoStore, command| {
        let receipt = store.submit(Target::OpenedBy(course.teacher), command, course.origin()).await.unwrap();
        match receipt.await.unwrap() {
            Outcome::Done(change) => change.session_id,
            other => panic!("it was to be done: {other:?}"),
        }
    };
    for _ in 0..10 {
        assert_eq!(give(&here, Command::Summarise).await, course.session.id);
        let class = ClassId(course.ids.next(course.clock.now()));
        let name = ClassName::stored("Physics");
        let created_at = course.clock.now();
        let class =
            Class { id: class, name, teacher_id: course.teacher, archived: false, absence_notices: false, created_at };
        there.insert_class(class.clone()).await.unwrap();
        let id = SessionId(course.ids.next(created_at));
        there.start(id, class.id, course.teacher, course.origin()).await.unwrap();
        assert_eq!(give(&here, Command::Summarise).await, id, "opened elsewhere, and last");
        assert_eq!(give(&there, Command::Finish).await, id);
    }
}

/// The only member is killed and comes back: calls are refused in time meanwhile, and afterwards all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn a_database_that_was_away_is_used_again() {
    let clock = SetClock::new();
    let mut set = ReplicaSet::start(1).await.unwrap();
    let store = store(&set.url("away"), &clock).await;
    let course = Arc::new(Course::new(&*store, clock, 5).await);
    let mut ear = Ear::new(&*store).await;
    let stop = Arc::new(AtomicBool::new(false));
    let marking = mark_on(&course, std::slice::from_ref(&store), 8, &stop);
    ear.hear(Revision(50)).await;
    set.kill(0).unwrap();
    for _ in 0..3 {
        let asked = Instant::now();
        assert!(matches!(store.user(course.teacher).await, Err(StoreError::Unavailable(_))));
        assert!(asked.elapsed() < SOON, "told after {:?}", asked.elapsed());
        let asked = Instant::now();
        let student = course.students[0];
        let removed = store.remove_student(course.class, student, course.origin()).await;
        assert!(matches!(removed, Err(StoreError::Unavailable(_))), "{removed:?}");
        assert!(asked.elapsed() < SOON, "told after {:?}", asked.elapsed());
        assert!(store.ping().await.is_err());
    }
    let asked = Instant::now();
    let receipt = store.submit(Target::Class(course.class), Command::Summarise, course.origin()).await.unwrap();
    let refused = tokio::time::timeout(2 * SOON, receipt).await.unwrap();
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "nothing of it was sent: {refused:?}");
    assert!(asked.elapsed() < SOON, "told after {:?}", asked.elapsed());
    set.restart(0).await.unwrap();
    set.primary().await.unwrap();
    let started = Instant::now();
    while store.ping().await.is_err() {
        assert!(started.elapsed() < PATIENCE);
    }
    let (acknowledged, refused) = finish(marking, &stop).await;
    assert!(refused > 0);
    course.check(&*store, &acknowledged).await;
    // The stream goes on where it broke off.
    ear.hear(revision(&*store, &course).await).await;
}

/// The primary stands still for longer than anybody waits: what is unknown is found out, and said truly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn an_unknown_outcome_is_found_out() {
    let clock = SetClock::new();
    let set = ReplicaSet::start(1).await.unwrap();
    let store = store(&set.url("unknown"), &clock).await;
    let course = Arc::new(Course::new(&*store, clock, 5).await);
    let mut ear = Ear::new(&*store).await;
    let stop = Arc::new(AtomicBool::new(false));
    let marking = mark_on(&course, std::slice::from_ref(&store), 8, &stop);
    ear.hear(Revision(50)).await;
    set.pause(0).unwrap();
    let asked = Instant::now();
    assert!(matches!(store.class(course.class).await, Err(StoreError::Unavailable(_))));
    assert!(asked.elapsed() < SOON, "told after {:?}", asked.elapsed());
    assert!(store.ping().await.is_err());
    set.resume(0).unwrap();
    let (acknowledged, _) = finish(marking, &stop).await;
    course.check(&*store, &acknowledged).await;
    let receipt = store.submit(Target::Class(course.class), Command::Finish, course.origin()).await.unwrap();
    assert!(matches!(receipt.await, Ok(Outcome::Done(_))));
}

/// Every connection that requests have is taken, by writes that the database cannot make: the stream says all the same
/// that it is not behind, and it is proven what is new. Those who find no connection are told in time; as soon as there
/// is one they are answered, though others go on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn requests_do_not_silence_the_stream() {
    const CONNECTIONS: usize = 2;
    let clock = SetClock::new();
    let set = shared().await;
    let url = set.url("full");
    let store = store(&format!("{url}&maxPoolSize={CONNECTIONS}"), &clock).await;
    let course = Arc::new(Course::new(&*store, clock, 1).await);
    let mut listener = Listener::new(store.follow(None).await.unwrap());
    // Whoever writes to the account waits for the end of this transaction.
    let client = set.client().await.unwrap();
    let mut blocking = client.start_session().await.unwrap();
    blocking.start_transaction().await.unwrap();
    let users = client.database("full").collection::<Document>("users");
    let teacher = doc! { "_id": ObjectId::from_bytes(course.teacher.bytes()) };
    let touch = doc! { "$set": { "touched": true } };
    users.update_one(teacher, touch).session(&mut blocking).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut asking = JoinSet::new();
    for number in 0..8 * CONNECTIONS {
        let (store, course, stop) = (Arc::clone(&store), Arc::clone(&course), Arc::clone(&stop));
        asking.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let change = if number % 2 == 0 { AccountChange::Disable } else { AccountChange::Enable };
                let _ = store.change_user(course.teacher, change).await;
            }
        });
    }
    // They have them all now.
    let started = Instant::now();
    while store.user(course.students[0]).await.is_ok() {
        assert!(started.elapsed() < PATIENCE);
    }
    let started = Instant::now();
    for _ in 0..10 {
        while listener.item().await.expect("the stream ended") != Followed::Alive {
            assert!(started.elapsed() < PATIENCE, "the stream waits behind requests");
        }
        store.ping().await.unwrap();
    }
    let asked = Instant::now();
    let session = store.session(course.class, course.session.id).await;
    assert!(matches!(session, Ok(Some(_)) | Err(StoreError::Unavailable(_))), "{session:?}");
    assert!(asked.elapsed() < SOON, "told after {:?}", asked.elapsed());
    blocking.abort_transaction().await.unwrap();
    let started = Instant::now();
    while store.session(course.class, course.session.id).await.is_err() {
        assert!(started.elapsed() < PATIENCE);
    }
    stop.store(true, Ordering::SeqCst);
    asking.join_all().await;
}

/// The primary steps down, and is killed, while two replicas mark: no acknowledged mark is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn no_mark_is_lost_with_a_primary() {
    let clock = SetClock::new();
    let mut set = ReplicaSet::start(3).await.unwrap();
    let url = set.url("primaries");
    let stores = [store(&url, &clock).await, store(&url, &clock).await];
    let course = Arc::new(Course::new(&*stores[0], clock, 5).await);
    let mut ear = Ear::new(&*stores[1]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let marking = mark_on(&course, &stores, 6, &stop);
    for number in 1..=3 {
        let last = revision(&*stores[0], &course).await;
        ear.hear(Revision(last.0 + 20)).await;
        if number % 2 == 1 {
            set.step_down().await.unwrap();
        } else {
            let primary = set.primary().await.unwrap();
            set.kill(primary).unwrap();
            set.primary().await.unwrap();
            set.restart(primary).await.unwrap();
        }
        let started = Instant::now();
        while stores[0].ping().await.is_err() {
            assert!(started.elapsed() < PATIENCE);
        }
    }
    let (acknowledged, _) = finish(marking, &stop).await;
    course.check(&*stores[1], &acknowledged).await;
    ear.hear(revision(&*stores[1], &course).await).await;
}

/// What became of mails: those that are queued for certain, each attempt that was given out, and those that are over.
#[derive(Default)]
struct Post {
    queued: HashSet<MailId>,
    given: HashSet<(MailId, u32)>,
    over: HashSet<MailId>,
}

impl Post {
    /// Takes what is due until nothing is left or the database fails, and settles it.
    async fn deliver(post: &Mutex<Self>, store: &MongoStore, now: Timestamp) {
        while let Ok(taken) = store.take_mails(now, now.after(LEASE), 5).await {
            if taken.is_empty() {
                return;
            }
            for mail in taken {
                {
                    let mut post = post.lock().unwrap();
                    assert!(post.given.insert((mail.id, mail.attempt)), "an attempt is one sender's");
                    assert!(!post.over.contains(&mail.id), "what is over is not sent again");
                }
                if store.settle_mail(&mail, Fate::Over).await.is_ok() {
                    post.lock().unwrap().over.insert(mail.id);
                }
            }
        }
    }
}

/// The primary steps down, and is killed, while mails are queued and sent on two replicas: none that was queued is
/// lost, and none is given to two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn no_mail_is_lost_with_a_primary() {
    let clock = SetClock::new();
    let mut set = ReplicaSet::start(3).await.unwrap();
    let url = set.url("post");
    let stores = [store(&url, &clock).await, store(&url, &clock).await];
    let ids = Arc::new(Ids::new([9; 5], 1));
    let post = Arc::new(Mutex::new(Post::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = JoinSet::new();
    let now = clock.now();
    for store in &stores {
        let (store, ids, post, stop) = (Arc::clone(store), Arc::clone(&ids), Arc::clone(&post), Arc::clone(&stop));
        busy.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let mails: Vec<_> = (0..7)
                    .map(|_| NewMail {
                        id: MailId(ids.next(now)),
                        to: UserId(ids.next(now)),
                        reason: Reason::ConfirmEmail,
                        token: None,
                        queued_at: now,
                        replaces_before: now.before(ASK_AGAIN),
                    })
                    .collect();
                if store.queue_mails(mails.clone()).await.is_ok() {
                    post.lock().unwrap().queued.extend(mails.iter().map(|mail| mail.id));
                }
                Post::deliver(&post, &store, now).await;
            }
        });
    }
    let over = || post.lock().unwrap().over.len();
    for number in 1..=3 {
        if number % 2 == 1 {
            set.step_down().await.unwrap();
        } else {
            let primary = set.primary().await.unwrap();
            set.kill(primary).unwrap();
            set.primary().await.unwrap();
            set.restart(primary).await.unwrap();
        }
        let (started, before) = (Instant::now(), over());
        while over() < before + 50 {
            assert!(started.elapsed() < PATIENCE);
            let _ = stores[0].ping().await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    busy.join_all().await;
    // What was taken, and the taker not told so, is given once more when its time is over.
    Post::deliver(&post, &stores[0], now.after(LEASE)).await;
    let post = post.lock().unwrap();
    let given: HashSet<_> = post.given.iter().map(|(id, _)| *id).collect();
    assert_eq!(post.queued.difference(&given).count(), 0, "whatever was queued was sent");
}
