//! `rollcall copy`: a whole database into another one, interrupted or not.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rollcall_core::class::{Class, ClassName, ClassWithStudents};
use rollcall_core::record::Record;
use rollcall_core::session::{
    Actor, Counts, Door, Event, LogEntry, Mark, OperationId, Origin, Reason, Revision, SessionInfo, SessionState,
    Status,
};
use rollcall_core::transfer::{EarlierRecord, Item, Marker, Part, Progress, State, Transfer as _, WholeSession};
use rollcall_core::user::{Account, Email, PasswordHash, PersonName, Role};
use rollcall_core::{ClassId, ObjectId, SessionId, Timestamp, UserId};
use rollcall_store_sqlite::SqliteTransfer;
use rollcall_testkit::server::until;
use rusqlite::Connection;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tempfile::TempDir;

use crate::{Room, builder};

/// A folder with databases.
struct Shelf(TempDir);

impl Shelf {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn rollcall(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.env_clear().current_dir(self.0.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.rollcall(arguments).output().unwrap().into()
    }

    fn copy(&self, from: &str, to: &str) -> Said {
        self.run(&["copy", &url(from), &url(to)])
    }

    /// Starts a copy and waits until it carries things over.
    fn start(&self, from: &str, to: &str) -> Child {
        let mut command = self.rollcall(&["copy", &url(from), &url(to)]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Byte by byte: what comes after is for others to read.
        let mut stderr = process.stderr.take().unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"copying\n") {
            let mut byte = [0];
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "it copies nothing: {}", String::from_utf8_lossy(&said));
            said.extend(byte);
        }
        process.stderr = Some(stderr);
        process
    }

    /// Starts a copy, ends it by `signal` when its target has grown to so many bytes, and answers with how far it came.
    async fn cut_short(&self, from: &str, to: &str, bytes: u64, signal: Signal) -> Progress {
        // A machine that has other things to do may let it come to its end before.
        for _ in 0..5 {
            let process = self.start(from, to);
            let size = |name: &str| self.file(name).metadata().map_or(0, |file| file.len());
            let log = format!("{to}-wal");
            until("the copy grows", || (size(to).max(size(&log)) >= bytes).then_some(())).await;
            // One that has ended already is not waited for yet, and so still has its number.
            rustix::process::kill_process(Pid::from_child(&process), signal).unwrap();
            let output = process.wait_with_output().unwrap();
            if let State::Unfinished(marker) = state(&self.file(to)).await {
                if signal == Signal::INT {
                    assert_eq!((output.status.code(), output.stdout.len()), (Some(130), 0));
                }
                return marker.progress;
            }
            std::fs::remove_file(self.file(to)).unwrap();
        }
        panic!("it was complete each time");
    }

    /// Whatever breaks, both sides hold the same: what a copy prints of its content.
    fn contents(&self, name: &str) -> String {
        let twin = format!("{name}.twin");
        let said = self.copy(name, &twin).succeeded();
        std::fs::remove_file(self.file(&twin)).unwrap();
        contents(&said)
    }
}

/// The address of a file in the folder, or of what has an address already.
fn url(name: &str) -> String {
    if name.contains("://") { name.to_owned() } else { format!("sqlite://{name}") }
}

/// The lines about what was copied.
fn contents(said: &str) -> String {
    let (first, rest) = said.split_once('\n').unwrap();
    assert!(first.contains("complete copy"), "{said}");
    rest.to_owned()
}

/// How a command ended, and what it said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Said {
    #[track_caller]
    fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    #[track_caller]
    fn failed(self, why: &str) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        assert!(self.err.contains(why) && !self.err.contains("panicked"), "{}", self.err);
        self.err
    }
}

fn id(kind: u8, number: u32) -> ObjectId {
    let mut bytes = [kind; 12];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

fn user(number: u32) -> UserId {
    UserId(id(1, number))
}

fn account(number: u32) -> Item {
    Item::Account(Account {
        id: user(number),
        name: PersonName::stored(format!("Person \u{1f393} {number}")),
        email: Email::stored(format!("P{number}@Example.org")),
        role: if number == 0 { Role::Teacher } else { Role::Student },
        password_hash: PasswordHash::stored(format!("$2b$04${number:053}")),
        token_version: number % 3,
        disabled: number % 7 == 3,
        email_confirmed: number.is_multiple_of(2),
        absence_notices: number % 3 != 1,
        created_at: Timestamp::from_millis(1_700_000_000_000 + i64::from(number)),
    })
}

fn class(number: u32, students: impl Iterator<Item = u32>) -> Item {
    let class = Class {
        id: ClassId(id(2, number)),
        name: ClassName::stored(format!("Class {number}")),
        teacher_id: user(0),
        archived: number % 5 == 4,
        absence_notices: number.is_multiple_of(2),
        created_at: Timestamp::from_millis(1_700_000_000_000),
    };
    Item::Class(ClassWithStudents { class, student_ids: students.map(user).collect() })
}

/// A session of its class, with every student marked. `number` makes its id, `first` its place among the revisions.
fn session(number: u32, class: u32, first: u64, students: &[u32], open: bool) -> Item {
    let (id, class_id) = (SessionId(id(3, number)), ClassId(id(2, class)));
    let at = Timestamp::from_millis(1_700_000_100_000 + i64::try_from(first).unwrap());
    let mut log = Vec::new();
    let mut add = |event| {
        let revision = Revision(first + log.len() as u64);
        let operation = if revision.0.is_multiple_of(2) { OperationId::Client } else { OperationId::Door };
        let origin = Origin {
            by: if revision.0.is_multiple_of(5) { Actor::System } else { Actor::User(user(0)) },
            at,
            door: if revision.0.is_multiple_of(3) { Door::Http } else { Door::WebSocket },
            address: (revision.0.is_multiple_of(4)).then(|| "2001:db8::1".parse().unwrap()),
            operation: operation(format!("{number}-{revision}").into()),
        };
        log.push(LogEntry { revision, event, origin });
        revision
    };
    add(Event::Started);
    let (mut marks, mut records) = (Vec::new(), Vec::new());
    for student in students {
        let (student_id, status) = (user(*student), Status::ALL[*student as usize % 4]);
        let (old, new, reason) = (None, status, Reason::parse(["", "bus"][*student as usize % 2]).unwrap());
        let revision = add(Event::Marked { student_id, old, new, reason });
        marks.push((student_id, Mark { status, at, revision }));
        let marked_at = (student % 9 != 0).then_some(at);
        records.push(Record { session_id: id, class_id, student_id, status, marked_at });
    }
    let counts: Counts = records.iter().map(|record| record.status).collect();
    add(Event::Summarised(counts));
    let state = if open {
        records.clear();
        SessionState::Open
    } else {
        marks.clear();
        add(Event::Finished(counts));
        SessionState::Finished { at, by: Actor::System, counts }
    };
    let (first_revision, revision) = (Revision(first), log.last().unwrap().revision);
    let info = SessionInfo { id, class_id, teacher_id: user(0), started_at: at, first_revision, revision, state };
    Item::Session(WholeSession { info, log, marks, records })
}

/// A school of everything that a database can hold, of so many people.
fn school(people: u32) -> Vec<Item> {
    let mut items: Vec<_> = (0..people).map(account).collect();
    let classes = people / 20;
    let students = |class: u32| (0..30.min(people - 1)).map(move |n| 1 + (class * 13 + n * 7) % (people - 1));
    items.extend((0..classes).map(|number| class(number, students(number))));
    let own = |class| {
        let mut own: Vec<_> = students(class).collect();
        own.sort_unstable();
        own.dedup();
        own
    };
    let length = |class| own(class).len() as u64 + 3;
    for round in 0..4 {
        for class in 0..classes {
            let first = 1 + u64::from(round) * length(class);
            items.push(session(round * classes + class, class, first, &own(class), false));
        }
    }
    // The ids of open sessions run against the order in which they were opened.
    for class in (0..classes).filter(|class| class % 5 != 4) {
        items.push(session(8 * classes - class, class, 1 + 4 * length(class), &own(class), true));
    }
    items.extend((0..people / 2).map(|number| {
        let (class_id, student_id) = (ClassId(id(2, number % 50)), user(number));
        Item::EarlierRecord(EarlierRecord { id: id(4, number), class_id, student_id, status: Status::Late })
    }));
    items
}

/// Makes a database of these items.
async fn fill(file: &Path, items: Vec<Item>) {
    let database = SqliteTransfer::target(file).unwrap();
    let progress = Progress { part: Part::Accounts, after: None };
    database.begin(&Marker { fingerprint: String::new(), progress }).await.unwrap();
    database.write(items, progress).await.unwrap();
    database.finish().await.unwrap();
}

async fn state(file: &Path) -> State {
    SqliteTransfer::target(file).unwrap().state().await.unwrap()
}

#[tokio::test]
async fn a_copy_goes_on_where_the_original_was() {
    let mut room = Room::open(3).await;
    let mut teacher = room.teacher.socket().await;
    teacher.mark(&room.students[0].id, "late").await;
    teacher.expect_mark(&room.students[0].id, "late").await;
    let running = room.server.run(&["copy", "sqlite://data/rollcall.db", "sqlite://copy.db"]).await.unwrap();
    Said::from(running).failed("stop it first");
    assert!(room.server.terminate().await.unwrap().success());
    let said = room.server.run(&["copy", "sqlite://data/rollcall.db", "sqlite://copy.db"]).await.unwrap();
    let said = Said::from(said).succeeded();
    for line in
        ["4  accounts", "1  classes", "3  enrolments", "1  sessions", "2  log entries", "1  open marks", "0  records"]
    {
        assert!(said.contains(&format!(" {line} ")), "{line} is not in\n{said}");
    }

    let copy = room.server.folder().join("copy.db");
    let server = builder().env("DB_URL", format!("sqlite://{}", copy.display())).start().await.unwrap();
    // It has the folder.
    let _former = std::mem::replace(&mut room.server, server);
    room.follow_server();
    let mut student = room.students[0].socket().await;
    student.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(student.expect("MY_ATTENDANCE").await["status"], "late");
    let mut teacher = room.teacher.socket().await;
    teacher.mark(&room.students[1].id, "present").await;
    assert_eq!(teacher.expect_mark(&room.students[1].id, "present").await, 3, "revisions go on");
    teacher.send("DONE", &json!({})).await;
    let done = teacher.expect("DONE").await;
    assert_eq!((&done["absent"], &done["total"]), (&json!(1), &json!(3)));
    let again = room.client.log_in(&room.teacher.email, &room.teacher.password).await;
    assert_eq!(again.get("/me").await.ok()["_id"], room.teacher.id);
}

#[tokio::test]
async fn a_copy_that_is_killed_again_and_again_becomes_complete() {
    let shelf = Shelf::new();
    fill(&shelf.file("source.db"), school(4_000)).await;
    let contents_of_source = shelf.contents("source.db");
    let size = shelf.file("source.db").metadata().unwrap().len();
    let mut progress = Vec::new();
    for part in 1..=5 {
        let signal = if part == 3 { Signal::INT } else { Signal::KILL };
        progress.push(shelf.cut_short("source.db", "copy.db", size * part / 8, signal).await);
        // Nobody takes it as it is.
        let database = url("copy.db");
        for command in [&["serve"][..], &["user", "list"], &["copy", &database, "sqlite://other.db"]] {
            let said = shelf.rollcall(command).env("DB_URL", &database).output().unwrap();
            Said::from(said).failed("unfinished copy");
        }
        let doctor = Said::from(shelf.rollcall(&["doctor"]).env("DB_URL", &database).output().unwrap());
        assert!(doctor.code == Some(1) && doctor.out.contains("unfinished copy"), "{}", doctor.out);
    }
    assert!(progress.is_sorted_by_key(|progress| progress.part) && progress.first() != progress.last(), "{progress:?}");
    let said = shelf.copy("source.db", "copy.db");
    assert!(said.err.contains("going on where an earlier copy stopped"), "{}", said.err);
    assert_eq!(contents(&said.succeeded()), contents_of_source);
    let again = shelf.copy("source.db", "copy.db").succeeded();
    assert!(again.contains("already"), "{again}");
    assert_eq!(shelf.contents("copy.db"), contents_of_source);
}

#[tokio::test]
async fn what_is_in_the_way_is_told_and_nothing_is_changed() {
    let shelf = Shelf::new();
    fill(&shelf.file("source.db"), school(100)).await;
    fill(&shelf.file("other.db"), school(60)).await;
    let other = shelf.contents("other.db");
    shelf.copy("source.db", "other.db").failed("holds something else already");
    assert_eq!(shelf.contents("other.db"), other);
    shelf.copy("source.db", "source.db").failed("are one database");
    shelf.copy("source.db", "./source.db").failed("are one database");
    shelf.copy("missing.db", "copy.db").failed("missing.db");
    assert!(!shelf.file("missing.db").exists() && !shelf.file("copy.db").exists());
    let bad = shelf.run(&["copy", "postgres://user:hunter2@host/x", "sqlite://copy.db"]).failed("FROM_URL");
    assert!(!bad.contains("hunter2"), "{bad}");
    std::fs::write(shelf.file("text.db"), "This is no database, and shall not become one by a mistake. ".repeat(20))
        .unwrap();
    shelf.copy("source.db", "text.db").failed("another program");

    // Addresses with passwords need not stand on the command line.
    let mut command = shelf.rollcall(&["copy"]);
    let said = command.env("FROM_URL", url("source.db")).env("TO_URL", url("copy.db")).output().unwrap();
    Said::from(said).succeeded();
}

#[tokio::test]
async fn a_copy_that_differs_is_found_by_its_hashes() {
    let shelf = Shelf::new();
    fill(&shelf.file("source.db"), school(4_000)).await;
    let size = shelf.file("source.db").metadata().unwrap().len();
    shelf.cut_short("source.db", "copy.db", size / 4, Signal::KILL).await;
    std::fs::copy(shelf.file("copy.db"), shelf.file("kept.db")).unwrap();

    // Somebody changes what was copied already.
    let raw = Connection::open(shelf.file("copy.db")).unwrap();
    assert_eq!(raw.execute("UPDATE users SET name = 'Mallory' WHERE email = 'P7@Example.org'", []).unwrap(), 1);
    drop(raw);
    let said = shelf.copy("source.db", "copy.db").failed("is not what the source holds");
    assert!(said.contains("other accounts") && !said.contains("other classes"), "{said}");
    assert!(matches!(state(&shelf.file("copy.db")).await, State::Unfinished(_)));
    shelf.copy("source.db", "copy.db").failed("other accounts");

    // Somebody changes the source between two runs.
    let raw = Connection::open(shelf.file("source.db")).unwrap();
    assert_eq!(raw.execute("UPDATE users SET disabled = 1 WHERE email = 'P1@Example.org'", []).unwrap(), 1);
    drop(raw);
    shelf.copy("source.db", "kept.db").failed("has changed since that copy began");
}

#[cfg(feature = "mongodb")]
mod mongodb {
    //! To MongoDB and back.

    use std::sync::Arc;

    use futures_util::TryStreamExt as _;
    use rollcall_core::session::Command;
    use rollcall_core::store::{Classes as _, Outcome, Page, Records as _, Sessions as _, Target, Users as _};
    use rollcall_store_mongo::{MongoStore, OpenError};
    use rollcall_testkit::conformance::SetClock;
    use rollcall_testkit::mongo::mongodb::bson::{Bson, Document, doc, oid};
    use rollcall_testkit::mongo::mongodb::{Collection, Database};
    use rollcall_testkit::mongo::{ReplicaSet, shared};

    use super::*;

    /// A database of the shared server, and its address.
    async fn database(name: &str) -> (Database, String) {
        let set = shared().await;
        (set.client().await.unwrap().database(name), set.url(name))
    }

    async fn connect(url: &str) -> Result<Arc<MongoStore>, OpenError> {
        MongoStore::connect(&url.into(), SetClock::new()).await
    }

    async fn count(database: &Database) -> u64 {
        let mut sum = 0;
        for name in ["users", "classes", "sessions", "attendance_records"] {
            sum += database.collection::<Document>(name).count_documents(doc! {}).await.unwrap();
        }
        sum
    }

    /// Starts a copy and kills it when its target holds so many documents. Answers whether it is unfinished then.
    async fn cut_short(shelf: &Shelf, from: &str, (there, address): (&Database, &str), documents: u64) -> bool {
        let mut process = shelf.start(from, address);
        while count(there).await < documents && process.try_wait().unwrap().is_none() {}
        process.kill().unwrap();
        process.wait().unwrap();
        matches!(connect(address).await, Err(OpenError::UnfinishedCopy))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn there_and_back_everything_is_the_same() {
        let shelf = Shelf::new();
        let (_, there) = database("there").await;
        fill(&shelf.file("source.db"), school(400)).await;
        let said = shelf.copy("source.db", &there).succeeded();
        assert!(!contents(&said).contains(" 0  "), "nothing of a kind shows nothing of it: {said}");
        let again = shelf.copy("source.db", &there).succeeded();
        assert!(again.contains("already") && contents(&again) == contents(&said), "{again}");
        let back = shelf.copy(&there, "back.db").succeeded();
        assert_eq!(contents(&back), contents(&said));
        let (_, twin) = database("twin").await;
        assert_eq!(contents(&shelf.copy(&there, &twin).succeeded()), contents(&said));

        // The copy is a database like any other, and goes on where the source was.
        let store = connect(&there).await.unwrap();
        let origin = |operation: &str| Origin {
            by: Actor::User(user(0)),
            at: Timestamp::from_millis(1_700_000_100_150),
            door: Door::WebSocket,
            address: None,
            operation: OperationId::Client(operation.into()),
        };
        let order = async |target, command, origin| store.submit(target, command, origin).await.unwrap().await.unwrap();
        let Outcome::Done(change) = order(Target::OpenedBy(user(0)), Command::Summarise, origin("new")).await else {
            panic!("nothing was done")
        };
        let last = ClassId(id(2, 18));
        assert_eq!(change.class_id, last, "the one that was opened last");
        let open = store.open_session(last).await.unwrap().unwrap();
        let students = store.student_ids(last).await.unwrap();
        assert_eq!(*open.roster(), students.iter().copied().collect());
        let entries = store.log(open.info().id, None, Page { after: None, limit: 100 }).await.unwrap();
        let old = entries.iter().find(|entry| {
            matches!((&entry.event, &entry.origin.operation), (Event::Marked { .. }, OperationId::Client(_)))
                && entry.origin.by == Actor::User(user(0))
        });
        let old = old.unwrap().clone();
        let Event::Marked { student_id, new, reason, .. } = old.event.clone() else { panic!("a mark") };
        let again = Command::Mark { student_id, status: new, reason };
        let outcome = order(Target::Class(last), again, origin(old.origin.operation.as_str())).await;
        assert!(matches!(&outcome, Outcome::Repeated(change) if change.entry == old), "{outcome:?} for {old:?}");
        assert!(matches!(order(Target::Class(last), Command::Finish, origin("end")).await, Outcome::Done(_)));
        assert!(store.last_record(last, student_id).await.unwrap().is_some());
        store.close().await;
        shelf.copy(&there, "back.db").failed("holds something else already");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn a_copy_that_is_killed_again_and_again_becomes_complete() {
        let shelf = Shelf::new();
        let (there, address) = database("killed").await;
        fill(&shelf.file("source.db"), school(2_000)).await;
        let all = 2_000 + 100 + 4 * 100 + 80 + 4 * 100 * 29 + 1_000;
        let mut kills = 0;
        for part in 1..=4 {
            if !cut_short(&shelf, "source.db", (&there, &address), part * all / 6).await {
                break;
            }
            kills += 1;
            // Nobody takes it as it is.
            for command in [&["serve"][..], &["user", "list"], &["copy", &address, "sqlite://other.db"]] {
                let mut command = shelf.rollcall(command);
                let said = command.env("DB_URL", &address).env("JWT_SECRET", "x".repeat(32)).output().unwrap();
                Said::from(said).failed("unfinished copy");
            }
            let doctor = shelf.rollcall(&["doctor"]).env("DB_URL", &address).output().unwrap();
            let doctor = Said::from(doctor);
            assert!(doctor.code == Some(1) && doctor.out.contains("unfinished copy"), "{}", doctor.out);
        }
        assert!(kills > 1, "the machine is too fast for this test");
        let said = shelf.copy("source.db", &address);
        assert!(said.err.contains("going on where an earlier copy stopped"), "{}", said.err);
        assert_eq!(contents(&said.succeeded()), shelf.contents("source.db"));
        connect(&address).await.unwrap().close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn what_is_in_the_way_is_told_and_nothing_is_changed() {
        let shelf = Shelf::new();
        fill(&shelf.file("source.db"), school(60)).await;
        let (another, address) = database("anothers").await;
        another.collection("recipes").insert_one(doc! { "_id": 1 }).await.unwrap();
        shelf.copy("source.db", &address).failed("holds something else already");
        assert_eq!(another.list_collection_names().await.unwrap(), ["recipes"], "not even an index was added");
        let (missing, address) = database("missing").await;
        shelf.copy(&address, "copy.db").failed("MongoDB holds no database `missing`");
        assert!(missing.list_collection_names().await.unwrap().is_empty());
        assert!(!shelf.file("copy.db").exists());
        for away in ["user:hunter2@127.0.0.1:1/x?replicaSet=rs0", "user:hunter2@[/x", "hunter2:p%@127.0.0.1/x"] {
            let away = format!("mongodb://{away}");
            for (from, to) in [(away.as_str(), "copy.db"), ("source.db", &away)] {
                let said = shelf.copy(from, to).failed("mongodb://…@");
                assert!(!said.contains("hunter2"), "{said}");
            }
        }

        // What another source half filled.
        fill(&shelf.file("large.db"), school(2_000)).await;
        let (half, address) = database("half").await;
        assert!(cut_short(&shelf, "large.db", (&half, &address), 1_000).await, "the machine is too fast for this test");
        let before = count(&half).await;
        shelf.copy("source.db", &address).failed("an unfinished copy of another database");
        assert_eq!(count(&half).await, before);

        // What was copied and then changed.
        let (changed, address) = database("changed").await;
        shelf.copy("source.db", &address).succeeded();
        let users: Collection<Document> = changed.collection("users");
        users.update_one(doc! {}, doc! { "$set": { "name": "Mallory" } }).await.unwrap();
        shelf.copy("source.db", &address).failed("holds something else already");
        connect(&address).await.unwrap().close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn a_new_primary_does_not_end_a_copy() {
        let shelf = Shelf::new();
        fill(&shelf.file("source.db"), school(2_000)).await;
        let set = ReplicaSet::start(1).await.unwrap();
        let there = set.client().await.unwrap().database("moved");
        let mut process = shelf.start("source.db", &set.url("moved"));
        while count(&there).await < 3_000 && process.try_wait().unwrap().is_none() {}
        set.step_down().await.unwrap();
        let said = Said::from(process.wait_with_output().unwrap()).succeeded();
        assert_eq!(contents(&said), shelf.contents("source.db"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn two_copies_at_once_do_not_mix() {
        let shelf = Shelf::new();
        for (name, people) in [("one.db", 300), ("twin.db", 300), ("other.db", 400)] {
            fill(&shelf.file(name), school(people)).await;
        }
        for (round, other) in ["other.db", "twin.db", "other.db", "twin.db"].into_iter().enumerate() {
            let (_, address) = database(&format!("contested{round}")).await;
            let both = ["one.db", other].map(|from| {
                let mut command = shelf.rollcall(&["copy", &url(from), &address]);
                (from, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
            });
            let said = both.map(|(from, process)| (from, Said::from(process.wait_with_output().unwrap())));
            let copied: Vec<_> = said.iter().filter(|(_, said)| said.code == Some(0)).collect();
            // Those of the same content help each other.
            assert!(copied.len() == 1 || copied.len() == 2 && other == "twin.db", "{}{}", said[0].1.err, said[1].1.err);
            let (from, said) = copied[0];
            let again = shelf.copy(from, &address).succeeded();
            assert!(again.contains("already") && contents(&again) == contents(&said.out), "{again}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn a_source_that_changes_meanwhile_is_told() {
        let shelf = Shelf::new();
        let (there, address) = database("moving").await;
        fill(&shelf.file("source.db"), school(2_000)).await;
        shelf.copy("source.db", &address).succeeded();
        let process = shelf.start(&address, "copy.db");
        let users: Collection<Document> = there.collection("users");
        users.update_one(doc! {}, doc! { "$set": { "disabled": true } }).await.unwrap();
        let said = Said::from(process.wait_with_output().unwrap());
        assert!(
            said.code == Some(1) && said.err.contains("was changed while it was copied (other accounts)"),
            "{}",
            said.err
        );
        assert!(matches!(state(&shelf.file("copy.db")).await, State::Unfinished(_)));
    }

    fn object(number: u8) -> oid::ObjectId {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&(1_577_836_800 + u32::from(number)).to_be_bytes());
        bytes[11] = number;
        oid::ObjectId::from_bytes(bytes)
    }

    fn person(number: u8, email: &str, role: &str) -> Document {
        let name = format!("Nr. {number}");
        doc! { "_id": object(number), "name": name, "email": email, "password": "$2b$12$x", "role": role }
    }

    fn earlier(number: u8, class: u8, student: u8, status: &str) -> Document {
        doc! { "_id": object(number), "classId": object(class), "studentId": object(student), "status": status }
    }

    /// A database of an earlier backend, with all that can be wrong in one.
    async fn earlier_backend(database: &Database) {
        let users = [
            person(1, "Teacher@Example.org", "teacher"),
            person(2, "ada@example.org", "student"),
            person(3, "ADA@example.org", "student"),
            person(4, "king@example.org", "king"),
            person(5, "grace@example.org", "student"),
            doc! { "_id": "a text", "name": "Text", "email": "t@example.org", "password": "x", "role": "student" },
        ];
        database.collection("users").insert_many(users).await.unwrap();
        let students = |ids: &[u8]| ids.iter().map(|id| object(*id)).collect::<Vec<_>>();
        let class = |number: u8, teacher: u8, list: Bson| {
            doc! { "_id": object(number), "className": "C", "teacherId": object(teacher), "studentIds": list }
        };
        let classes = [
            class(20, 1, students(&[5, 2, 5]).into()),
            class(21, 1, students(&[99, 3, 2]).into()),
            class(22, 98, students(&[2]).into()),
            class(23, 1, Bson::Array(vec![object(2).into(), "no id".into()])),
            doc! { "_id": object(24), "teacherId": object(1) },
        ];
        database.collection("classes").insert_many(classes).await.unwrap();
        let records = [
            earlier(40, 20, 2, "absent"),
            earlier(41, 20, 2, "present"),
            earlier(42, 20, 2, "asleep"),
            earlier(43, 97, 2, "late"),
            doc! { "_id": object(44), "sessionId": object(90), "classId": object(20), "studentId": object(2), "status": "late" },
        ];
        database.collection("attendance_records").insert_many(records).await.unwrap();
        let others = [earlier(39, 20, 5, "absent"), earlier(41, 20, 2, "present"), earlier(43, 97, 2, "absent")];
        database.collection("attendance").insert_many(others).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MongoDB: cargo xtask test"]
    async fn what_an_earlier_backend_left_is_carried_and_what_is_broken_is_named() {
        let shelf = Shelf::new();
        let (database, address) = database("left").await;
        earlier_backend(&database).await;
        let told = shelf.copy(&address, "copy.db").failed("11 things in the source break the rules");
        let users = ["a text", &object(3).to_hex(), &object(4).to_hex()].map(|id| format!("users {id}"));
        let classes = [21, 21, 22, 23, 24].map(|id| format!("classes {}", object(id).to_hex()));
        let records = [42, 44].map(|id| format!("attendance_records {}", object(id).to_hex()));
        let other = format!("attendance {}", object(43).to_hex());
        let told_of = |told: &str, place: &String| told.replace('"', "").matches(place.as_str()).count();
        for place in users.iter().chain(&classes).chain(&records).chain([&other]) {
            assert!(told_of(&told, place) > 0, "{place} is not in\n{told}");
        }
        assert!(matches!(state(&shelf.file("copy.db")).await, State::Empty), "nothing was copied");

        let (from, to) = (url(&address), url("copy.db"));
        let said = shelf.run(&["copy", "--leave-out-broken", &from, &to]).succeeded();
        for line in ["3  accounts", "3  classes", "4  enrolments", "0  sessions", "0  records", "4  earlier records"] {
            assert!(said.contains(&format!(" {line} ")), "{line} is not in\n{said}");
        }
        let store = rollcall_store_sqlite::SqliteStore::open(
            &shelf.file("copy.db"),
            rollcall_store_sqlite::OpenMode::Tool,
            SetClock::new(),
        );
        let (store, mongo) = (store.unwrap(), connect(&address).await.unwrap());
        let user = |number: u8| UserId::from_bytes(object(number).bytes());
        for (class, student) in [(20, 2), (20, 5), (21, 2), (97, 2)] {
            let class = ClassId::from_bytes(object(class).bytes());
            let (here, there) = (store.last_record(class, user(student)), mongo.last_record(class, user(student)));
            assert_eq!(here.await.unwrap(), there.await.unwrap(), "{class} {student}");
        }
        assert_eq!(store.user(user(2)).await.unwrap(), mongo.user(user(2)).await.unwrap());
        store.close().await;
        mongo.close().await;

        let (back, address) = super::mongodb::database("back").await;
        assert_eq!(contents(&shelf.copy("copy.db", &address).succeeded()), contents(&said));
        let found: Vec<Document> = back
            .collection("attendance_records")
            .find(doc! {})
            .sort(doc! { "_id": 1 })
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(found[0], earlier(39, 20, 5, "absent"));
    }
}
