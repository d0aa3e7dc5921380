//! The file as a whole: read in pages, written in pages, the same on both sides.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollcall_core::class::{ClassChange, ClassName};
use rollcall_core::id::{ClassId, MailId, ObjectId, UserId};
use rollcall_core::mail::{Kind as MailKind, NewMail, Reason as MailReason, TokenHash};
use rollcall_core::session::{Command, Event, Reason, Status};
use rollcall_core::store::{Outcome, Records, Sessions, Store, StoreError, Target, Users};
use rollcall_core::transfer::{EarlierRecord, Item, Kind, Marker, Part, Progress, State, Transfer};
use rollcall_core::user::{AccountChange, Role};
use rollcall_core::{Clock, SessionId};
use rollcall_store_sqlite::{OpenError, OpenMode, SqliteStore, SqliteTransfer};
use rollcall_testkit::conformance::{SetClock, Stores, World};
use rusqlite::Connection;

const START: Progress = Progress { part: Part::Accounts, after: None };

struct Folder(PathBuf);

struct Data {
    store: Arc<SqliteStore>,
    file: PathBuf,
}

impl Stores for Folder {
    type Data = Data;

    async fn fresh(&self, clock: Arc<dyn Clock>) -> Data {
        let file = self.0.join("source.db");
        Data { store: SqliteStore::open(&file, OpenMode::Serve, clock).unwrap(), file }
    }

    fn store(data: &Data) -> Arc<dyn Store> {
        Arc::<SqliteStore>::clone(&data.store)
    }

    async fn beside(data: &Data) -> Arc<dyn Store> {
        tool(&data.file).unwrap()
    }

    async fn close(data: &Data) {
        data.store.close().await;
    }

    async fn reopen(data: &mut Data) {
        data.store = SqliteStore::open(&data.file, OpenMode::Serve, SetClock::new()).unwrap();
    }
}

fn tool(file: &Path) -> Result<Arc<SqliteStore>, OpenError> {
    SqliteStore::open(file, OpenMode::Tool, SetClock::new())
}

/// All items of a database, and their rows.
async fn everything(database: &SqliteTransfer) -> (Vec<Item>, Vec<(Kind, Vec<u8>)>) {
    let (mut items, mut rows) = (Vec::new(), Vec::new());
    for part in Part::ALL {
        let mut after = None;
        loop {
            let page = database.read(part, after).await.unwrap();
            assert_eq!(page.problems, []);
            page.items.iter().for_each(|item| item.rows(|kind, bytes| rows.push((kind, bytes.to_vec()))));
            items.extend(page.items);
            match page.last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
    }
    (items, rows)
}

fn marker() -> Marker {
    Marker { fingerprint: "f".to_owned(), progress: START }
}

/// A mail that waits, and one whose token was used.
async fn two_mails(world: &World<Folder>, to: UserId) {
    let now = world.clock.now();
    let mail = |reason, token| NewMail {
        id: MailId(world.id()),
        to,
        reason,
        token: Some(TokenHash::from_bytes([token; 32])),
        queued_at: now,
        replaces_before: now,
    };
    world.store.queue_mails(vec![mail(MailReason::ResetPassword, 1), mail(MailReason::ConfirmEmail, 2)]).await.unwrap();
    let used = (TokenHash::from_bytes([2; 32]), MailKind::ConfirmEmail);
    world.store.use_token(used.0, used.1, now, AccountChange::ConfirmEmail).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_copied_is_the_same_in_every_detail() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(&Folder(folder.path().to_owned())).await;
    let (teacher, class, students) = world.course(3).await;
    // Two sessions are over, one of them by Rollcall itself; everything that can be said about a mark was said.
    world.start(class, teacher).await;
    let reason = Reason::parse("bus \u{1f68c} broke down").unwrap();
    let mark = Command::Mark { student_id: students[0], status: Status::Late, reason };
    let mut origin = world.named(teacher, "request 1");
    origin.address = Some("2001:db8::7".parse().unwrap());
    world.order(Target::Class(class), mark.clone(), origin.clone()).await;
    world.mark(class, teacher, students[0], Status::Excused).await;
    world.order(Target::Class(class), Command::Summarise, world.origin(teacher)).await;
    world.finish(class, teacher).await;
    let archived = world.class(teacher).await;
    world.enrol(archived, students[1]).await;
    world.start(archived, teacher).await;
    let told = ClassChange { name: None, absence_notices: Some(true) };
    world.store.change_class(archived, told).await.unwrap();
    world.store.archive_class(archived, world.origin(teacher)).await.unwrap();
    // The class that was made first is opened last: commands without a class go to it.
    let second = world.class(teacher).await;
    world.enrol(second, students[2]).await;
    world.enrol(second, students[0]).await;
    let early = SessionId(world.id());
    world.start(second, teacher).await;
    world.store.start(early, class, teacher, world.origin(teacher)).await.unwrap();
    world.store.remove_student(class, students[1], world.origin(teacher)).await.unwrap();
    world.mark(class, teacher, students[2], Status::Present).await;
    let odd = ClassChange { name: Some(ClassName::stored("\u{0}odd")), absence_notices: Some(true) };
    world.store.change_class(class, odd).await.unwrap();
    world.store.change_user(students[1], AccountChange::Disable).await.unwrap();
    world.user(Role::Admin).await;
    two_mails(&world, students[0]).await;
    world.store.change_user(students[2], AccountChange::AbsenceNotices(false)).await.unwrap();
    world.data.store.close().await;

    let source = SqliteTransfer::source(&world.data.file).unwrap();
    assert!(source.is_held());
    assert_eq!(source.state().await.unwrap(), State::Filled);
    let (mut items, _) = everything(&source).await;
    let earlier = |id: u8, status| {
        let id = ObjectId::from_bytes([id; 12]);
        Item::EarlierRecord(EarlierRecord { id, class_id: second, student_id: students[0], status })
    };
    let mails = items.split_off(5 + 3 + 4);
    assert_eq!(mails.len(), 2 + 1, "mails, and a session whose absent students are to be told");
    items.extend([earlier(1, Status::Absent), earlier(2, Status::Late)]);
    items.extend(mails);

    let copy = folder.path().join("folder/copy.db");
    let target = SqliteTransfer::target(&copy).unwrap();
    assert_eq!(target.state().await.unwrap(), State::Empty);
    let unmarked = target.write(items.clone(), START).await;
    assert!(matches!(unmarked, Err(StoreError::Internal(_))), "nothing is written without the marker");
    assert_eq!(target.state().await.unwrap(), State::Empty);
    target.begin(&marker()).await.unwrap();
    let progress = Progress { part: Part::EarlierRecords, after: Some(ObjectId::from_bytes([2; 12])) };
    target.write(items.clone(), progress).await.unwrap();
    let (copied, rows) = everything(&target).await;
    assert_eq!(copied, items);
    target.write(items.clone(), progress).await.unwrap();
    assert_eq!(everything(&target).await, (copied, rows.clone()), "the same page again changes nothing");
    let unfinished = State::Unfinished(Marker { progress, ..marker() });
    assert_eq!(target.state().await.unwrap(), unfinished);
    drop(target);

    // Nobody takes what is unfinished, the same process or another.
    assert!(matches!(tool(&copy), Err(OpenError::UnfinishedCopy { .. })));
    let serve = SqliteStore::open(&copy, OpenMode::Serve, SetClock::new());
    assert!(matches!(serve, Err(OpenError::UnfinishedCopy { .. })));
    assert!(matches!(SqliteTransfer::source(&copy), Err(OpenError::UnfinishedCopy { .. })));
    assert!(SqliteStore::examine(&copy).unwrap().unfinished_copy);
    let target = SqliteTransfer::target(&copy).unwrap();
    assert_eq!(target.state().await.unwrap(), unfinished);
    target.finish().await.unwrap();
    assert_eq!(target.state().await.unwrap(), State::Filled);
    drop(target);
    assert!(!SqliteStore::examine(&copy).unwrap().unfinished_copy);
    let raw = Connection::open(&copy).unwrap();
    assert!(!raw.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap());
    drop(raw);

    // The copy goes on where the source was.
    let store = SqliteStore::open(&copy, OpenMode::Serve, world.clock.clone()).unwrap();
    assert!(matches!(
        store.submit(Target::Class(class), mark, origin).await.unwrap().await.unwrap(),
        Outcome::Repeated(change) if matches!(change.entry.event, Event::Marked { new: Status::Late, .. })
    ));
    let summary = store.submit(Target::OpenedBy(teacher), Command::Summarise, world.origin(teacher)).await.unwrap();
    let Outcome::Done(change) = summary.await.unwrap() else { panic!("nothing was done") };
    assert_eq!((change.class_id, change.session_id), (class, early), "the one that was opened last");
    let record = async |class, student| store.last_record(class, student).await.unwrap().map(|record| record.status);
    assert_eq!(record(class, students[0]).await, Some(Status::Excused));
    assert_eq!(record(second, students[0]).await, Some(Status::Late), "the newest that an earlier backend left");
    store.submit(Target::Class(second), Command::Finish, world.origin(teacher)).await.unwrap().await.unwrap();
    assert_eq!(record(second, students[0]).await, Some(Status::Absent), "sessions count from the first on");
    assert_eq!(record(second, students[1]).await, None);
    store.close().await;
}

#[tokio::test]
async fn nobody_else_touches_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(&Folder(folder.path().to_owned())).await;
    let account = world.account(Role::Student);
    assert!(matches!(SqliteTransfer::source(&world.data.file), Err(OpenError::AlreadyServed { .. })));
    assert!(matches!(SqliteTransfer::target(&world.data.file), Err(OpenError::AlreadyServed { .. })));
    world.data.store.close().await;
    let source = SqliteTransfer::source(&world.data.file).unwrap();
    let serve = SqliteStore::open(&world.data.file, OpenMode::Serve, SetClock::new());
    assert!(matches!(serve, Err(OpenError::AlreadyServed { .. })));
    let beside = tool(&world.data.file).unwrap();
    assert!(matches!(beside.insert_user(account.clone(), None).await, Err(StoreError::Unavailable(_))));
    drop(source);
    beside.insert_user(account, None).await.unwrap();
    beside.close().await;

    let missing = folder.path().join("missing.db");
    assert!(matches!(SqliteTransfer::source(&missing), Err(OpenError::File { .. })));
    assert!(!missing.exists(), "looking makes nothing");
}

#[tokio::test]
async fn what_cannot_stand_in_the_target_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(&Folder(folder.path().to_owned())).await;
    let (one, mut other) = (world.account(Role::Student), world.account(Role::Student));
    other.email = one.email.clone();
    let target = SqliteTransfer::target(&folder.path().join("copy.db")).unwrap();
    target.begin(&marker()).await.unwrap();
    let after = Progress { part: Part::Accounts, after: Some(other.id.0) };
    let refused = target.write(vec![Item::Account(one), Item::Account(other.clone())], after).await;
    let Err(StoreError::Internal(cause)) = refused else { panic!("{refused:?}") };
    assert!(cause.to_string().contains(&other.id.to_string()), "{cause}");
    let orphan = EarlierRecord {
        id: ObjectId::from_bytes([1; 12]),
        class_id: ClassId::NOTHING,
        student_id: UserId::NOTHING,
        status: Status::Late,
    };
    let (items, _) = everything(&target).await;
    assert_eq!((items.len(), target.state().await.unwrap()), (0, State::Unfinished(marker())));
    target.write(vec![Item::EarlierRecord(orphan)], after).await.unwrap();
    assert_eq!(everything(&target).await.0.len(), 1, "these may name what is not there");
}
