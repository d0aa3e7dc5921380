//! `requestId`: whose answer a frame is, and commands that are sent again.

use serde_json::{Value, json};

use crate::Room;

#[tokio::test]
async fn the_request_id_comes_back_to_the_sender_alone() {
    let room = Room::open(1).await;
    let student = &room.students[0];
    let (mut one, mut two, mut at_student) =
        (room.teacher.socket().await, room.teacher.socket().await, student.socket().await);
    let mark = json!({"studentId": student.id, "status": "present", "requestId": "r-1"});
    let top_level = json!({"event": "TODAY_SUMMARY", "data": {}, "requestId": "r-2"}).to_string();
    one.send("ATTENDANCE_MARKED", &mark).await;
    one.send_text(top_level).await;
    one.send("DONE", &json!({"requestId": "r-3"})).await;
    for (event, id) in [("ATTENDANCE_MARKED", "r-1"), ("TODAY_SUMMARY", "r-2"), ("DONE", "r-3")] {
        let mine = one.expect(event).await;
        assert_eq!(mine["requestId"], id);
        for socket in [&mut two, &mut at_student] {
            let theirs = socket.expect(event).await;
            assert!(theirs.get("requestId").is_none(), "{theirs}");
            let mut same = mine.clone();
            same.as_object_mut().unwrap().remove("requestId");
            assert_eq!(theirs, same);
        }
    }
    one.send("DONE", &json!({"requestId": "r-4"})).await;
    assert_eq!(one.expect_error("No active attendance session").await["requestId"], "r-4");
    one.send("NONSENSE", &json!({"requestId": "r-5"})).await;
    assert_eq!(one.expect_error("Unknown event").await["requestId"], "r-5");
    at_student.send("MY_ATTENDANCE", &json!({"requestId": "r-6"})).await;
    assert_eq!(at_student.expect_error("No active attendance session").await["requestId"], "r-6");
    two.expect_silence().await;
}

#[tokio::test]
async fn a_command_sent_again_is_not_done_again() {
    let room = Room::open(2).await;
    let [ann, bob] = &room.students[..] else { unreachable!() };
    let (mut one, mut two, mut at_student) =
        (room.teacher.socket().await, room.teacher.socket().await, bob.socket().await);
    let mark = json!({"studentId": ann.id, "status": "late", "reason": "bus", "requestId": "again"});
    one.send("ATTENDANCE_MARKED", &mark).await;
    let first = one.expect("ATTENDANCE_MARKED").await;
    for socket in [&mut two, &mut at_student] {
        socket.expect_mark(&ann.id, "late").await;
    }
    // By the same socket, and by another one of the same teacher, as after a reconnection.
    one.send("ATTENDANCE_MARKED", &mark).await;
    assert_eq!(one.expect("ATTENDANCE_MARKED").await, first);
    two.send("ATTENDANCE_MARKED", &mark).await;
    assert_eq!(two.expect("ATTENDANCE_MARKED").await, first);

    // A correction comes between; the late repetition must not undo it.
    one.mark(&ann.id, "present").await;
    let corrected = one.expect_mark(&ann.id, "present").await;
    two.expect_mark(&ann.id, "present").await;
    at_student.expect_mark(&ann.id, "present").await;
    assert_eq!(corrected, first["revision"].as_u64().unwrap() + 1);
    one.send("ATTENDANCE_MARKED", &mark).await;
    assert_eq!(one.expect("ATTENDANCE_MARKED").await, first);

    for (event, id) in [("TODAY_SUMMARY", "sum"), ("DONE", "end")] {
        let data = json!({"requestId": id});
        one.send(event, &data).await;
        let answer = one.expect(event).await;
        two.expect(event).await;
        at_student.expect(event).await;
        one.send(event, &data).await;
        assert_eq!(one.expect(event).await, answer, "DONE, too, can be sent again");
    }
    for socket in [&mut one, &mut two, &mut at_student] {
        socket.expect_silence().await;
    }
    let log = room.newest().await["log"].as_array().unwrap().clone();
    let events: Vec<_> = log.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["START", "ATTENDANCE_MARKED", "ATTENDANCE_MARKED", "TODAY_SUMMARY", "DONE"]);
}

#[tokio::test]
async fn a_request_id_names_one_command_of_one_person() {
    let room = Room::open(2).await;
    let [ann, bob] = &room.students[..] else { unreachable!() };
    let mut socket = room.teacher.socket().await;
    // The same id with another command is another command: clients that count from 1 lose nothing.
    let mut last = 0;
    for (student, status, reason) in [
        (ann, "late", Value::Null),
        (bob, "late", Value::Null),
        (ann, "present", Value::Null),
        (ann, "present", json!("sorry")),
    ] {
        let data = json!({"studentId": student.id, "status": status, "reason": reason, "requestId": "1"});
        socket.send("ATTENDANCE_MARKED", &data).await;
        let revision = socket.expect_mark(&student.id, status).await;
        assert!(revision > last);
        last = revision;
    }
    // The same id of another teacher is none of the first one's business.
    let other = room.client.teacher("Other").await;
    other.open_class("Biology", &[ann]).await;
    let mut at_other = other.socket().await;
    let data = json!({"studentId": ann.id, "status": "late", "requestId": "1"});
    at_other.send("ATTENDANCE_MARKED", &data).await;
    assert_eq!(at_other.expect("ATTENDANCE_MARKED").await["requestId"], "1");
    assert_eq!(room.newest().await["log"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn without_a_request_id_the_same_mark_twice_is_two_marks() {
    let room = Room::open(1).await;
    let mut socket = room.teacher.socket().await;
    socket.mark(&room.students[0].id, "late").await;
    let first = socket.expect_mark(&room.students[0].id, "late").await;
    socket.mark(&room.students[0].id, "late").await;
    assert_eq!(socket.expect_mark(&room.students[0].id, "late").await, first + 1);
}

#[tokio::test]
async fn request_ids_that_are_none() {
    let room = Room::open(1).await;
    let mut socket = room.teacher.socket().await;
    let long = "r".repeat(65);
    for id in [json!(1.5), json!(true), json!(""), json!(long), json!("a\nb"), json!({}), json!([])] {
        let data = json!({"studentId": room.students[0].id, "status": "late", "requestId": id});
        socket.send("ATTENDANCE_MARKED", &data).await;
        socket.expect_error("Invalid message format").await;
    }
    let longest = "r".repeat(64);
    for id in [json!(longest), json!("ünï 🙂"), json!(5), json!(-7), Value::Null] {
        let data = json!({"studentId": room.students[0].id, "status": "late", "requestId": id});
        socket.send("ATTENDANCE_MARKED", &data).await;
        let answer = socket.expect("ATTENDANCE_MARKED").await;
        assert_eq!(answer.get("requestId").unwrap_or(&Value::Null), &id);
    }
}
