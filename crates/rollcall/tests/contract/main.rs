//! The public contract, row by row, as clients see it: the real binary, real HTTP and real WebSockets.
//!
//! One module per noun or concern. To add a route: its answers in the module of its noun, its refusals and their
//! order there too.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than expected fails")]

mod account;
mod backup;
mod bad_input;
mod class;
mod command_line;
mod copy;
mod history;
mod isolation;
mod lifecycle;
mod limits;
mod mail;
mod mark;
mod matrix;
mod membership;
mod operation;
mod order;
mod record;
mod repeat;
mod secure;
mod session;
mod since;
mod socket;
mod student;
mod tls;
mod token;

use rollcall_testkit::server::{Builder, Class, Client, Person, Server};
use serde_json::Value;

/// Not an id of anything.
const NOBODY: &str = "ffffffffffffffffffffffff";

/// What clients send as ids without being ids: they name nothing. Ready for a path.
const NO_IDS: &[&str] = &[
    "1",
    "null",
    "undefined",
    "ffffffffffffffffffffffff",
    "fffffffffffffffffffffff",
    "fffffffffffffffffffffffff",
    "gggggggggggggggggggggggg",
    "%00",
    NOT_UTF8,
    "..%2f..%2fetc%2fpasswd",
    "%27%20OR%201=1--",
    "00000000-0000-0000-0000-000000000000",
    "%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC%E2%82%AC",
    "-1",
    "{}",
];

/// An id that is not even text. In a path with two ids the other one is not found either.
const NOT_UTF8: &str = "%ff%fe";

fn builder() -> Builder {
    Server::builder(env!("CARGO_BIN_EXE_rollcall"))
}

async fn server() -> Server {
    builder().start().await.unwrap()
}

/// A class in session on a server of its own.
struct Room {
    server: Server,
    client: Client,
    teacher: Person,
    students: Vec<Person>,
    class: Class,
}

impl Room {
    /// A class of so many students, in session.
    async fn open(students: usize) -> Self {
        let room = Self::closed(students).await;
        room.teacher.start(&room.class).await;
        room
    }

    /// A class of so many students without a session.
    async fn closed(students: usize) -> Self {
        Self::on(server().await, students).await
    }

    /// The same on a server that is there already.
    async fn on(server: Server, count: usize) -> Self {
        let client = server.client();
        let teacher = client.teacher("Thea Teacher").await;
        let mut students = Vec::new();
        for n in 1..=count {
            students.push(client.student(&format!("Student {n}")).await);
        }
        let class = teacher.class("Algebra I", &students.iter().collect::<Vec<_>>()).await;
        Self { server, client, teacher, students, class }
    }

    /// Goes on at the server's address of now, after it was started again.
    fn follow_server(&mut self) {
        self.client = self.server.client();
        self.teacher = self.teacher.at(&self.client);
        self.students = self.students.iter().map(|student| student.at(&self.client)).collect();
    }

    /// The class's sessions, newest first.
    async fn sessions(&self) -> Vec<Value> {
        list(&self.teacher.get(&self.class.path("/sessions")).await.ok())
    }

    /// The newest session with its records and log, as the teacher sees it.
    async fn newest(&self) -> Value {
        let sessions = self.sessions().await;
        let id = sessions[0]["sessionId"].as_str().unwrap();
        self.teacher.get(&self.class.path(&format!("/sessions/{id}"))).await.ok()
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).clone()
}

/// One member of each item.
fn column<'a>(items: &'a Value, member: &str) -> Vec<&'a str> {
    let items = items.as_array().unwrap_or_else(|| panic!("no list: {items}"));
    items.iter().map(|item| item[member].as_str().unwrap_or_else(|| panic!("no {member} in {item}"))).collect()
}

/// Asserts that the published members are there. More may be.
#[track_caller]
fn assert_members(value: &Value, members: &[&str]) {
    for member in members {
        assert!(value.get(member).is_some(), "no {member:?} in {value}");
    }
}

#[track_caller]
fn assert_id(value: &Value) {
    let id = value.as_str().unwrap_or_default();
    assert!(id.len() == 24 && id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()), "no id: {value}");
}

/// Asserts RFC 3339 in UTC with exactly milliseconds and `Z`.
#[track_caller]
fn assert_moment(value: &Value) {
    let text = value.as_str().unwrap_or_default();
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{value}");
}
