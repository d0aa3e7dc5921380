//! The parts of the table.

pub(crate) mod growth;
pub(crate) mod hall;
pub(crate) mod logins;
pub(crate) mod marks;
pub(crate) mod me;
pub(crate) mod memory;
pub(crate) mod mongo;
pub(crate) mod replicas;
pub(crate) mod start;

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::json;

use super::http::{Client, request};
use super::sockets::{Sockets, text_frame};
use super::world::{Class, Person};

/// Opens a session of the class.
fn start_session(address: SocketAddr, class: Class) -> anyhow::Result<()> {
    let body = json!({"classId": class.id.to_string()}).to_string();
    let token = class.teacher.token()?;
    Client::connect(address)?.ask(&request("POST", "/attendance/start", Some(&token), &body)).map(drop)
}

/// The frame with which a teacher marks a student.
fn mark_frame(class: Class, student: Person, status: &str) -> Vec<u8> {
    let data = json!({"classId": class.id.to_string(), "studentId": student.id.to_string(), "status": status});
    event_frame("ATTENDANCE_MARKED", &data)
}

fn event_frame(event: &str, data: &serde_json::Value) -> Vec<u8> {
    text_frame(json!({"event": event, "data": data}).to_string().as_bytes())
}

/// Marks of a class's students in turn, each unlike the student's mark before. No mark is made twice.
fn mark_frames(class: Class) -> impl Iterator<Item = Vec<u8>> {
    let marks = ["present", "absent"].into_iter().cycle();
    marks.flat_map(move |status| class.students().map(move |student| mark_frame(class, student, status)))
}

/// Ends the class's session over the socket of its teacher, the first and only one.
fn end_session(teacher: &mut Sockets) -> anyhow::Result<()> {
    teacher.round(&event_frame("DONE", &json!({})), 1)?;
    let last = String::from_utf8_lossy(teacher.last_text(0)).into_owned();
    ensure!(last.contains("Attendance persisted"), "{last} instead of DONE");
    Ok(())
}
