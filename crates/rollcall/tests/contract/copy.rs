//! `rollcall copy`: a whole database into another one, interrupted or not.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

    /// Starts a copy, ends it by `signal` when its target has grown to so many bytes, and answers with how far it came.
    async fn cut_short(&self, from: &str, to: &str, bytes: u64, signal: Signal) -> Progress {
        // A machine that has other things to do may let it come to its end before.
        for _ in 0..5 {
            let mut command = self.rollcall(&["copy", &url(from), &url(to)]);
            let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "copying"), "it copies nothing");
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

fn url(name: &str) -> String {
    format!("sqlite://{name}")
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
        created_at: Timestamp::from_millis(1_700_000_000_000 + i64::from(number)),
    })
}

fn class(number: u32, students: impl Iterator<Item = u32>) -> Item {
    let class = Class {
        id: ClassId(id(2, number)),
        name: ClassName::stored(format!("Class {number}")),
        teacher_id: user(0),
        archived: number % 5 == 4,
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
    assert!(said.contains("other accounts") && !said.contains("classes"), "{said}");
    assert!(matches!(state(&shelf.file("copy.db")).await, State::Unfinished(_)));
    shelf.copy("source.db", "copy.db").failed("other accounts");

    // Somebody changes the source between two runs.
    let raw = Connection::open(shelf.file("source.db")).unwrap();
    assert_eq!(raw.execute("UPDATE users SET disabled = 1 WHERE email = 'P1@Example.org'", []).unwrap(), 1);
    drop(raw);
    shelf.copy("source.db", "kept.db").failed("has changed since that copy began");
}
