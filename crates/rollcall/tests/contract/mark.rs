//! The four events, what everybody hears of them, and every refusal in its order.

use rollcall_testkit::server::Socket;
use serde_json::{Value, json};

use crate::{NOBODY, Room, assert_members};

const BAD_FORMAT: &str = "Invalid message format";
const NO_SESSION: &str = "No active attendance session";

#[tokio::test]
async fn a_mark_is_heard_by_the_whole_class() {
    let room = Room::open(3).await;
    let mut sockets = vec![room.teacher.socket().await, room.teacher.socket().await];
    for student in &room.students {
        sockets.push(student.socket().await);
    }
    let mut last = 0;
    for status in ["present", "absent", "late", "excused", "present"] {
        sockets[0].mark(&room.students[1].id, status).await;
        let mut revisions = Vec::new();
        for socket in &mut sockets {
            let data = socket.expect("ATTENDANCE_MARKED").await;
            assert_members(&data, &["studentId", "status", "classId", "revision"]);
            assert_eq!(data["studentId"], json!(room.students[1].id));
            assert_eq!(data["status"], status);
            assert_eq!(data["classId"], json!(room.class.id));
            revisions.push(data["revision"].as_u64().unwrap());
        }
        assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?}");
        assert!(last == 0 || revisions[0] == last + 1, "one event, one revision: {last} then {revisions:?}");
        last = revisions[0];
    }
}

#[tokio::test]
async fn a_summary_counts_who_is_marked_so_far() {
    let room = Room::open(4).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    let steps = [
        (None, json!({"present": 0, "absent": 0, "total": 0})),
        (Some((0, "present")), json!({"present": 1, "absent": 0, "total": 1})),
        (Some((1, "absent")), json!({"present": 1, "absent": 1, "total": 2})),
        (Some((2, "present")), json!({"present": 2, "absent": 1, "total": 3})),
        (Some((2, "absent")), json!({"present": 1, "absent": 2, "total": 3})),
    ];
    for (mark, counts) in steps {
        if let Some((n, status)) = mark {
            teacher.mark(&room.students[n].id, status).await;
            teacher.expect_mark(&room.students[n].id, status).await;
            student.expect_mark(&room.students[n].id, status).await;
        }
        teacher.send("TODAY_SUMMARY", &json!({})).await;
        for socket in [&mut teacher, &mut student] {
            let data = socket.expect("TODAY_SUMMARY").await;
            assert_eq!(data["classId"], json!(room.class.id));
            assert!(data["revision"].is_u64(), "{data}");
            assert_eq!(counts_of(&data), counts);
        }
    }
}

/// The counts of a frame, without what else it carries.
fn counts_of(data: &Value) -> Value {
    let mut counts = data.clone();
    let other = ["classId", "revision", "message", "requestId", "sessionId"];
    counts.as_object_mut().unwrap().retain(|name, _| !other.contains(&name.as_str()));
    counts
}

#[tokio::test]
async fn late_and_excused_count_under_their_own_names_when_they_occur() {
    let room = Room::open(4).await;
    let mut socket = room.teacher.socket().await;
    let plain = async |socket: &mut Socket, event: &str| {
        socket.send(event, &json!({})).await;
        counts_of(&socket.expect(event).await)
    };
    socket.mark(&room.students[0].id, "late").await;
    socket.expect_mark(&room.students[0].id, "late").await;
    assert_eq!(plain(&mut socket, "TODAY_SUMMARY").await, json!({"present": 0, "absent": 0, "late": 1, "total": 1}));
    socket.mark(&room.students[1].id, "excused").await;
    socket.expect_mark(&room.students[1].id, "excused").await;
    let both = json!({"present": 0, "absent": 0, "late": 1, "excused": 1, "total": 2});
    assert_eq!(plain(&mut socket, "TODAY_SUMMARY").await, both);
    socket.mark(&room.students[0].id, "present").await;
    socket.expect_mark(&room.students[0].id, "present").await;
    let corrected = json!({"present": 1, "absent": 0, "excused": 1, "total": 2});
    assert_eq!(plain(&mut socket, "TODAY_SUMMARY").await, corrected);
    let done = json!({"present": 1, "absent": 2, "excused": 1, "total": 4});
    assert_eq!(plain(&mut socket, "DONE").await, done);
}

#[tokio::test]
async fn done_makes_the_unmarked_absent_and_closes_the_session() {
    let room = Room::open(3).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[2].socket().await);
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_mark(&room.students[0].id, "present").await;
    student.expect_mark(&room.students[0].id, "present").await;
    teacher.send("DONE", &json!({})).await;
    for socket in [&mut teacher, &mut student] {
        let done = socket.expect("DONE").await;
        assert_members(&done, &["message", "present", "absent", "total", "classId", "revision"]);
        assert_eq!(done["message"], "Attendance persisted");
        assert_eq!((&done["present"], &done["absent"], &done["total"]), (&json!(1), &json!(2), &json!(3)));
    }
    for event in ["DONE", "TODAY_SUMMARY"] {
        teacher.send(event, &json!({})).await;
        teacher.expect_error(NO_SESSION).await;
    }
    teacher.mark(&room.students[0].id, "absent").await;
    teacher.expect_error(NO_SESSION).await;
    student.send("MY_ATTENDANCE", &json!({})).await;
    student.expect_error(NO_SESSION).await;
    student.expect_silence().await;
    for (student, status) in room.students.iter().zip(["present", "absent", "absent"]) {
        assert_eq!(student.get(&room.class.path("/my-attendance")).await.ok()["status"], status);
    }
}

#[tokio::test]
async fn done_of_an_empty_class_counts_nobody() {
    let room = Room::open(0).await;
    let mut teacher = room.teacher.socket().await;
    teacher.send("DONE", &json!({})).await;
    let done = teacher.expect("DONE").await;
    assert_eq!((&done["present"], &done["absent"], &done["total"]), (&json!(0), &json!(0), &json!(0)));
}

#[tokio::test]
async fn my_attendance_answers_the_sender_alone() {
    let room = Room::open(2).await;
    let (mut teacher, mut ann) = (room.teacher.socket().await, room.students[0].socket().await);
    let (mut anns_other, mut bob) = (room.students[0].socket().await, room.students[1].socket().await);
    ann.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(ann.expect("MY_ATTENDANCE").await["status"], "not yet updated");
    teacher.mark(&room.students[0].id, "present").await;
    for socket in [&mut teacher, &mut ann, &mut anns_other, &mut bob] {
        socket.expect_mark(&room.students[0].id, "present").await;
    }
    ann.send("MY_ATTENDANCE", &json!({"classId": room.class.id, "requestId": "q1"})).await;
    let answer = ann.expect("MY_ATTENDANCE").await;
    assert_eq!(answer["status"], "present");
    assert_eq!(answer["requestId"], "q1");
    assert_eq!(answer["classId"], json!(room.class.id));
    assert!(answer["revision"].is_u64());
    for socket in [&mut teacher, &mut anns_other, &mut bob] {
        socket.expect_silence().await;
    }
    bob.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(bob.expect("MY_ATTENDANCE").await["status"], "not yet updated", "each hears the own");
}

#[tokio::test]
async fn frames_that_are_none() {
    let room = Room::open(1).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    let deep = format!(r#"{{"event":"DONE","data":{}"#, "[".repeat(5_000));
    let no_frames = [
        "",
        " ",
        "x",
        "null",
        "true",
        "5",
        "\"DONE\"",
        "[]",
        r#"["DONE"]"#,
        "{}",
        r#"{"data":{}}"#,
        r#"{"event":null}"#,
        r#"{"event":5,"data":{}}"#,
        r#"{"event":["DONE"],"data":{}}"#,
        r#"{"event":"DONE","data":[]}"#,
        r#"{"event":"DONE","data":"{}"}"#,
        r#"{"event":"DONE","data":5}"#,
        r#"{"event":"DONE","data":false}"#,
        r#"{"event":"DONE","data":{}"#,
        r#"{"event":"DONE","data":{}}}"#,
        r#"{"event":"DONE","data":{}} {}"#,
        "{'event':'DONE'}",
        r#"{"event":"\ud800","data":{}}"#,
        "{\"event\":\"DO\u{0}NE\",\"data\":",
        &deep,
    ];
    for text in no_frames {
        for socket in [&mut teacher, &mut student] {
            socket.send_text(text).await;
            socket.expect_error(BAD_FORMAT).await;
        }
    }
    // None of them was DONE.
    teacher.send("TODAY_SUMMARY", &json!({})).await;
    teacher.expect("TODAY_SUMMARY").await;
    student.expect("TODAY_SUMMARY").await;
}

#[tokio::test]
async fn unknown_events_and_members() {
    let room = Room::open(1).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    for event in ["", "done", "Done", "DONE ", "ATTENDANCE-MARKED", "ERROR", "\u{0}", "__proto__", "🙂"] {
        for socket in [&mut teacher, &mut student] {
            socket.send(event, &json!({"status": 1})).await;
            socket.expect_error("Unknown event").await;
        }
    }
    // Missing and null data are {}, and what nobody knows is ignored.
    for text in [
        r#"{"event":"TODAY_SUMMARY"}"#,
        r#"{"event":"TODAY_SUMMARY","data":null}"#,
        r#"{"event":"TODAY_SUMMARY","data":{"x":1},"y":[{}]}"#,
        " {\n\"data\" : { } , \"event\" : \"TODAY_SUMMARY\" }\t",
    ] {
        teacher.send_text(text).await;
        teacher.expect("TODAY_SUMMARY").await;
        student.expect("TODAY_SUMMARY").await;
    }
}

#[tokio::test]
async fn the_order_of_a_teachers_checks() {
    let room = Room::open(1).await;
    let student = &room.students[0];
    let other = room.client.teacher("Other").await;
    let others = other.class("Biology", &[]).await;
    let quiet = room.teacher.class("Quiet", &[student]).await;
    let mut teacher = room.teacher.socket().await;
    let outsider = room.client.student("Outsider").await;
    let mut check = async |event: &str, data: Value, message: &str| {
        teacher.send(event, &data).await;
        let error = teacher.expect("ERROR").await;
        assert_eq!(error["message"], message, "{event} {data}");
    };

    // The role comes before the data, the data before what it names.
    check("MY_ATTENDANCE", json!({"classId": 5}), "Forbidden, student event only").await;
    check("MY_ATTENDANCE", json!({"classId": NOBODY}), "Forbidden, student event only").await;
    for status in [json!("Present"), json!(""), json!("here"), json!(1), json!(null), json!(["present"])] {
        let data = json!({"studentId": student.id, "status": status, "classId": NOBODY});
        check("ATTENDANCE_MARKED", data, "Invalid attendance status").await;
    }
    check("ATTENDANCE_MARKED", json!({"studentId": student.id, "classId": NOBODY}), "Invalid attendance status").await;
    for student_id in [json!(null), json!(5), json!([student.id]), json!({})] {
        let data = json!({"studentId": student_id, "status": "present", "classId": NOBODY});
        check("ATTENDANCE_MARKED", data, BAD_FORMAT).await;
    }
    check("ATTENDANCE_MARKED", json!({"status": "present", "classId": NOBODY}), BAD_FORMAT).await;
    for event in ["TODAY_SUMMARY", "DONE"] {
        check(event, json!({"classId": 5}), BAD_FORMAT).await;
        check(event, json!({"classId": ["x"]}), BAD_FORMAT).await;
    }
    let reason = "x".repeat(201);
    let data = json!({"studentId": student.id, "status": "present", "reason": reason});
    check("ATTENDANCE_MARKED", data, BAD_FORMAT).await;

    // The class, then whose it is, then its session, then the student.
    let mark = |class: &str, student: &str| json!({"classId": class, "studentId": student, "status": "present"});
    for id in [NOBODY, "", "1", "gggggggggggggggggggggggg"] {
        check("ATTENDANCE_MARKED", mark(id, NOBODY), "Class not found").await;
        check("TODAY_SUMMARY", json!({"classId": id}), "Class not found").await;
        check("DONE", json!({"classId": id}), "Class not found").await;
    }
    check("ATTENDANCE_MARKED", mark(&others.id, NOBODY), "Forbidden, not class teacher").await;
    check("TODAY_SUMMARY", json!({"classId": others.id}), "Forbidden, not class teacher").await;
    check("DONE", json!({"classId": others.id}), "Forbidden, not class teacher").await;
    check("ATTENDANCE_MARKED", mark(&quiet.id, NOBODY), NO_SESSION).await;
    check("TODAY_SUMMARY", json!({"classId": quiet.id}), NO_SESSION).await;
    check("DONE", json!({"classId": quiet.id}), NO_SESSION).await;
    for id in [NOBODY, "", "1", &outsider.id, &room.teacher.id] {
        check("ATTENDANCE_MARKED", mark(&room.class.id, id), "Student not enrolled in class").await;
        let data = json!({"studentId": id, "status": "present"});
        check("ATTENDANCE_MARKED", data, "Student not enrolled in class").await;
    }
    // All of that changed nothing.
    assert_eq!(room.newest().await["log"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_order_of_a_students_checks() {
    let room = Room::open(2).await;
    let student = &room.students[0];
    let other = room.client.teacher("Other").await;
    let others = other.open_class("Biology", &[]).await;
    let quiet = room.teacher.class("Quiet", &[student]).await;
    let mut socket = student.socket().await;
    let mut check = async |event: &str, data: Value, message: &str| {
        socket.send(event, &data).await;
        let error = socket.expect("ERROR").await;
        assert_eq!(error["message"], message, "{event} {data}");
    };
    for event in ["ATTENDANCE_MARKED", "TODAY_SUMMARY", "DONE"] {
        for data in [json!({}), json!({"status": "nonsense"}), json!({"classId": 5}), json!({"classId": room.class.id})]
        {
            check(event, data, "Forbidden, teacher event only").await;
        }
    }
    check("MY_ATTENDANCE", json!({"classId": 5}), BAD_FORMAT).await;
    check("MY_ATTENDANCE", json!({"classId": NOBODY}), "Class not found").await;
    check("MY_ATTENDANCE", json!({"classId": "x"}), "Class not found").await;
    check("MY_ATTENDANCE", json!({"classId": quiet.id}), NO_SESSION).await;
    check("MY_ATTENDANCE", json!({"classId": others.id}), "Student not enrolled in class").await;
    assert_eq!(room.newest().await["log"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn without_a_session_there_is_nothing_to_do() {
    let room = Room::closed(1).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_error(NO_SESSION).await;
    for event in ["TODAY_SUMMARY", "DONE"] {
        teacher.send(event, &json!({})).await;
        teacher.expect_error(NO_SESSION).await;
    }
    student.send("MY_ATTENDANCE", &json!({})).await;
    student.expect_error(NO_SESSION).await;
    // Bad data is told before that there is no session.
    teacher.mark(&room.students[0].id, "here").await;
    teacher.expect_error("Invalid attendance status").await;
    student.expect_silence().await;
}

#[tokio::test]
async fn mistakes_are_told_to_the_sender_alone_and_end_nothing() {
    let room = Room::open(1).await;
    let (mut one, mut two) = (room.teacher.socket().await, room.teacher.socket().await);
    let mut student = room.students[0].socket().await;
    one.mark(&room.students[0].id, "here").await;
    one.expect_error("Invalid attendance status").await;
    one.mark(NOBODY, "present").await;
    one.expect_error("Student not enrolled in class").await;
    one.send_text("nonsense").await;
    one.expect_error(BAD_FORMAT).await;
    one.mark(&room.students[0].id, "present").await;
    for socket in [&mut one, &mut two, &mut student] {
        socket.expect_mark(&room.students[0].id, "present").await;
    }
}

#[tokio::test]
async fn pipelined_commands_keep_their_order() {
    const MARKS: usize = 200;
    let room = Room::open(4).await;
    let (mut teacher, mut listener) = (room.teacher.socket().await, room.students[3].socket().await);
    let statuses = ["present", "absent", "late", "excused"];
    let plan: Vec<_> = (0..MARKS).map(|n| (&room.students[n % 3], statuses[(n / 3) % 4])).collect();
    for (n, (student, status)) in plan.iter().enumerate() {
        let data = json!({"studentId": student.id, "status": status, "requestId": format!("m{n}")});
        teacher.queue("ATTENDANCE_MARKED", &data).await;
    }
    teacher.queue("TODAY_SUMMARY", &json!({"requestId": "sum"})).await;
    teacher.queue("ATTENDANCE_MARKED", &json!({"studentId": NOBODY, "status": "late", "requestId": "no"})).await;
    teacher.queue("DONE", &json!({"requestId": "done"})).await;
    let late = json!({"studentId": room.students[0].id, "status": "late", "requestId": "late"});
    teacher.queue("ATTENDANCE_MARKED", &late).await;
    teacher.flush().await;

    let mut last = None;
    for (n, (student, status)) in plan.iter().enumerate() {
        let revision = listener.expect_mark(&student.id, status).await;
        let data = teacher.expect("ATTENDANCE_MARKED").await;
        assert_eq!(data["studentId"], json!(student.id));
        assert_eq!(data["status"], *status);
        assert_eq!(data["requestId"], json!(format!("m{n}")));
        assert_eq!(data["revision"], json!(revision));
        assert!(last.is_none_or(|last| revision == last + 1), "{last:?} then {revision}");
        last = Some(revision);
    }
    assert_eq!(teacher.expect("TODAY_SUMMARY").await["total"], 3);
    // A refusal follows what it saw; a later event of the class may overtake it, the next answer may not.
    let (first, second) = (teacher.next().await, teacher.next().await);
    let (refusal, done) = if first.event == "ERROR" { (first, second) } else { (second, first) };
    assert_eq!((done.event.as_str(), &done.data["total"]), ("DONE", &json!(4)));
    assert_eq!(refusal.data["message"], "Student not enrolled in class");
    assert_eq!(refusal.data["requestId"], "no");
    assert_eq!(teacher.expect_error(NO_SESSION).await["requestId"], "late");
    listener.expect("TODAY_SUMMARY").await;
    listener.expect("DONE").await;
    listener.expect_silence().await;
}

#[tokio::test]
async fn an_answer_follows_everything_that_it_saw() {
    let room = Room::open(2).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    for round in 0..50 {
        let status = ["present", "absent"][round % 2];
        teacher.mark(&room.students[0].id, status).await;
        student.send("MY_ATTENDANCE", &json!({})).await;
        // An answer that saw the mark comes after the mark's frame.
        let first = student.next().await;
        let second = student.next().await;
        let answer = if first.event == "MY_ATTENDANCE" { &first } else { &second };
        let mark = if first.event == "MY_ATTENDANCE" { &second } else { &first };
        assert_eq!((answer.event.as_str(), mark.event.as_str()), ("MY_ATTENDANCE", "ATTENDANCE_MARKED"));
        let saw_the_mark = answer.revision() >= mark.revision();
        assert!(first.event == "ATTENDANCE_MARKED" || !saw_the_mark, "{first:?} before {second:?}");
        assert!(!saw_the_mark || answer.data["status"] == status, "{answer:?} after {mark:?}");
        teacher.expect_mark(&room.students[0].id, status).await;
    }
}
