//! The permission matrix: who may do what, as a snapshot to review. Every operation of the OpenAPI document and every
//! WebSocket event has a row; an operation without one fails.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use reqwest::Method;
use rollcall_testkit::server::{Class, Person, Server};
use serde_json::{Value, json};

use crate::{builder, server};

/// Somebody who tries.
const ACTORS: [&str; 7] = ["owner", "other teacher", "enrolled", "other student", "admin", "disabled", "nobody"];

/// What is tried over HTTP: method, path as the document has it, and the body. `@class`, `@student`, `@newcomer` and
/// `@session` stand for the ids of a class in session, its student, a student who is not in it, and its last session.
fn operations() -> Vec<(&'static str, &'static str, Option<Value>)> {
    let signup = json!({"name": "Somebody", "email": "@email", "password": "secret1", "role": "student"});
    let login = json!({"email": "nobody@example.org", "password": "wrong"});
    vec![
        ("GET", "/", None),
        ("POST", "/signup", Some(signup.clone())),
        ("POST", "/auth/signup", Some(signup)),
        ("POST", "/login", Some(login.clone())),
        ("POST", "/auth/login", Some(login)),
        ("GET", "/me", None),
        ("GET", "/auth/me", None),
        ("GET", "/students", None),
        ("POST", "/class", Some(json!({"className": "New"}))),
        ("GET", "/classes", None),
        ("GET", "/class/{id}", None),
        ("PATCH", "/class/{id}", Some(json!({"className": "Renamed"}))),
        ("DELETE", "/class/{id}", None),
        ("POST", "/class/{id}/add-student", Some(json!({"studentId": "@newcomer"}))),
        ("DELETE", "/class/{id}/students/{studentId}", None),
        ("POST", "/attendance/start", Some(json!({"classId": "@class"}))),
        ("GET", "/class/{id}/my-attendance", None),
        ("GET", "/class/{id}/session", None),
        ("GET", "/class/{id}/sessions", None),
        ("GET", "/class/{id}/sessions/{sessionId}", None),
        ("POST", "/password/forgotten", Some(json!({"email": "@email"}))),
        ("GET", "/password/reset", None),
        ("POST", "/password/reset", Some(json!({"token": "wrong", "password": "secret1"}))),
        ("POST", "/me/confirm-email", None),
        ("GET", "/email/confirm", None),
        ("POST", "/email/confirm", Some(json!({"token": "wrong"}))),
        ("GET", "/unsubscribe/{token}", None),
        ("POST", "/unsubscribe/{token}", None),
        ("DELETE", "/unsubscribe/{token}", None),
        ("GET", "/ws", None),
        ("GET", "/health/live", None),
        ("GET", "/health/ready", None),
        ("GET", "/metrics", None),
        ("GET", "/docs", None),
        ("GET", "/redoc", None),
        ("GET", "/openapi.json", None),
        ("GET", "/asyncapi.json", None),
    ]
}

/// What is tried over a WebSocket, always naming the class.
fn events() -> Vec<(&'static str, Value)> {
    vec![
        ("ATTENDANCE_MARKED", json!({"classId": "@class", "studentId": "@student", "status": "late"})),
        ("TODAY_SUMMARY", json!({"classId": "@class"})),
        ("DONE", json!({"classId": "@class"})),
        ("MY_ATTENDANCE", json!({"classId": "@class"})),
    ]
}

/// The people of the matrix; the class is a new one for every cell, since some cells change it.
struct Cast {
    owner: Person,
    other_teacher: Person,
    enrolled: Person,
    other_student: Person,
    admin: Person,
    disabled: Person,
    newcomer: Person,
}

impl Cast {
    async fn new(server: &Server) -> Self {
        let client = server.client();
        let disabled = client.teacher("Disabled").await;
        let done = server.run(&["user", "disable", &disabled.email]).await.unwrap();
        assert!(done.status.success(), "{done:?}");
        let create = ["user", "create", "admin@example.org", "--name", "Admin", "--role", "admin", "--generate"];
        let made = server.run(&create).await.unwrap();
        assert!(made.status.success(), "{made:?}");
        let printed = String::from_utf8(made.stdout).unwrap();
        let password = printed.split_whitespace().last().unwrap();
        Self {
            owner: client.teacher("Owner").await,
            other_teacher: client.teacher("Other").await,
            enrolled: client.student("Enrolled").await,
            other_student: client.student("Stranger").await,
            admin: client.log_in("admin@example.org", password).await,
            disabled,
            newcomer: client.student("Newcomer").await,
        }
    }

    fn token(&self, actor: &str) -> Option<&str> {
        Some(
            &match actor {
                "owner" => &self.owner,
                "other teacher" => &self.other_teacher,
                "enrolled" => &self.enrolled,
                "other student" => &self.other_student,
                "admin" => &self.admin,
                "disabled" => &self.disabled,
                _ => return None,
            }
            .token,
        )
    }

    /// A class with one finished session and an open one.
    async fn scene(&self) -> (Class, String) {
        let class = self.owner.open_class("Scene", &[&self.enrolled]).await;
        let mut socket = self.owner.socket().await;
        socket.send("DONE", &json!({"classId": class.id})).await;
        socket.expect("DONE").await;
        socket.close().await;
        let sessions = self.owner.get(&class.path("/sessions")).await.ok();
        let session = sessions[0]["sessionId"].as_str().unwrap().to_owned();
        self.owner.start(&class).await;
        (class, session)
    }
}

fn filled(value: &Value, class: &Class, cast: &Cast, tried: usize) -> Value {
    let text = value.to_string();
    let text = text.replace("@class", &class.id).replace("@student", &cast.enrolled.id);
    let text = text.replace("@newcomer", &cast.newcomer.id).replace("@email", &format!("tried{tried}@example.org"));
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn who_may_do_what() {
    // Mails are queued, and never sent: nothing listens there.
    let mails = builder().env("SMTP_URL", "smtp://localhost:1?tls=none");
    let server = mails.env("PUBLIC_URL", "https://school.example").start().await.unwrap();
    let client = server.client();
    let cast = Cast::new(&server).await;
    let mut table = String::new();
    let mut tried = 0;

    for (method, path, body) in operations() {
        writeln!(table, "{method} {path}").unwrap();
        for actor in ACTORS {
            tried += 1;
            let (class, session) = cast.scene().await;
            let real = path.replace("{id}", &class.id).replace("{sessionId}", &session);
            let real = real.replace("{studentId}", &cast.enrolled.id);
            let mut call = client.call(method.parse::<Method>().unwrap(), &real);
            if let Some(token) = cast.token(actor) {
                call = call.bearer(token);
            }
            if let Some(body) = &body {
                call = call.json(&filled(body, &class, &cast, tried));
            }
            let answer = call.send().await;
            let refusal = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
            let refusal = refusal["error"].as_str().unwrap_or_default();
            writeln!(table, "  {actor:<13} {}", format!("{} {refusal}", answer.status).trim()).unwrap();
        }
    }

    for (event, data) in events() {
        writeln!(table, "WebSocket {event}").unwrap();
        for actor in ACTORS {
            let (class, _) = cast.scene().await;
            let mut socket = client.dial(cast.token(actor).unwrap_or_default()).open().await;
            // Who is not let in is told so without asking.
            if cast.token(actor).is_some_and(|_| actor != "disabled") {
                socket.send(event, &filled(&data, &class, &cast, tried)).await;
            }
            let frame = socket.next().await;
            let told = frame.data["message"].as_str().filter(|_| frame.event == "ERROR").unwrap_or_default();
            writeln!(table, "  {actor:<13} {}", format!("{} {told}", frame.event).trim()).unwrap();
            socket.close().await;
        }
    }

    insta::assert_snapshot!("permissions", table);
}

#[tokio::test]
async fn every_operation_is_in_the_matrix_and_in_the_document() {
    let server = server().await;
    let document = server.client().get("/openapi.json").await.json(200);
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            documented.insert((method.to_uppercase(), path.clone()));
        }
    }
    let named: BTreeSet<_> =
        operations().into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
    assert_eq!(documented, named, "left: the document, right: the matrix");
}

#[tokio::test]
async fn the_document_is_the_reviewed_one() {
    let server = server().await;
    let mut document = server.client().get("/openapi.json").await.json(200);
    document["info"]["version"] = json!("[version]");
    insta::assert_json_snapshot!("openapi", document);
}
