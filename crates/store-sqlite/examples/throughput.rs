//! How many marks a second become durable: `cargo run --release -p rollcall-store-sqlite --example throughput`.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::class::{Class, ClassName};
use rollcall_core::id::{ClassId, Ids, SessionId, UserId};
use rollcall_core::session::{Actor, Command, Door, OperationId, Origin, Status};
use rollcall_core::store::{Classes, Outcome, Sessions, Target, Users};
use rollcall_core::time::{Clock, Timestamp};
use rollcall_core::user::{Account, Email, PasswordHash, PersonName, Role};
use rollcall_store_sqlite::{OpenMode, SqliteStore};

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn account(id: UserId, role: Role) -> Account {
    Account {
        id,
        name: PersonName::stored("Somebody"),
        email: Email::stored(format!("{id}@example.org")),
        role,
        password_hash: PasswordHash::stored("$2b$10$"),
        token_version: 0,
        disabled: false,
        email_confirmed: false,
        absence_notices: true,
        created_at: Fixed.now(),
    }
}

fn origin(by: UserId, operation: OperationId) -> Origin {
    Origin { by: Actor::User(by), at: Fixed.now(), door: Door::WebSocket, address: None, operation }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    const TEACHERS: usize = 64;
    const STUDENTS: usize = 30;
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(&folder.path().join("rollcall.db"), OpenMode::Serve, Arc::new(Fixed))?;
    let ids = Ids::new([1; 5], 0);
    let mut classes = Vec::new();
    for _ in 0..TEACHERS {
        let teacher = UserId(ids.next(Fixed.now()));
        store.insert_user(account(teacher, Role::Teacher), None).await?;
        let class = ClassId(ids.next(Fixed.now()));
        let name = ClassName::stored("Class");
        store
            .insert_class(Class {
                id: class,
                name,
                teacher_id: teacher,
                archived: false,
                absence_notices: false,
                created_at: Fixed.now(),
            })
            .await?;
        let mut students = Vec::new();
        for _ in 0..STUDENTS {
            let student = UserId(ids.next(Fixed.now()));
            store.insert_user(account(student, Role::Student), None).await?;
            store.enrol(class, student, origin(teacher, OperationId::Door("e".into()))).await?;
            students.push(student);
        }
        let id = SessionId(ids.next(Fixed.now()));
        store.start(id, class, teacher, origin(teacher, OperationId::Door("s".into()))).await?;
        classes.push((teacher, class, students));
    }
    for (client_ids, in_flight) in [(false, 1), (false, 32), (true, 32)] {
        let started = Instant::now();
        let mut producers = Vec::new();
        for (number, (teacher, class, students)) in classes.iter().cloned().enumerate() {
            let store = Arc::clone(&store);
            producers.push(tokio::spawn(async move {
                let mut receipts = std::collections::VecDeque::new();
                let mut done = 0_u64;
                for (count, student) in students.iter().cycle().enumerate() {
                    if done >= 1_500 {
                        break;
                    }
                    let name = format!("{number}-{count}");
                    let operation =
                        if client_ids { OperationId::Client(name.into()) } else { OperationId::Door(name.into()) };
                    let status = Status::ALL[count / students.len() % 4];
                    let command = Command::Mark { student_id: *student, status, reason: None };
                    receipts.push_back(store.submit(Target::Class(class), command, origin(teacher, operation)).await?);
                    if receipts.len() >= in_flight
                        && let Some(receipt) = receipts.pop_front()
                    {
                        assert!(matches!(receipt.await?, Outcome::Done(_)));
                        done += 1;
                    }
                }
                Ok::<_, rollcall_core::store::StoreError>(done)
            }));
        }
        let mut marks = 0;
        for producer in producers {
            marks += producer.await??;
        }
        let seconds = started.elapsed().as_secs_f64();
        let names = if client_ids { "client" } else { "door" };
        println!(
            "{TEACHERS} teachers, {in_flight:2} in flight each, {names} ids: {:.0} marks/s",
            marks as f64 / seconds
        );
    }
    store.close().await;
    Ok(())
}
