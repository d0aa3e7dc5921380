//! Opening a session, and looking at the open one.

use serde_json::{Value, json};

use crate::{NO_IDS, NOBODY, Room, assert_id, assert_members, assert_moment, column, list};

const NO_TOKEN: &str = "Unauthorized, token missing or invalid";
const NO_TEACHER: &str = "Forbidden, teacher access required";
const NOT_OWN: &str = "Forbidden, not class teacher";

#[tokio::test]
async fn a_teacher_starts_and_starting_again_resumes() {
    let room = Room::closed(1).await;
    let (teacher, class, student) = (&room.teacher, &room.class, &room.students[0]);
    let started = teacher.start(class).await;
    assert_members(&started, &["classId", "startedAt"]);
    assert_eq!(started["classId"], json!(class.id));
    assert_moment(&started["startedAt"]);

    let mut socket = teacher.socket().await;
    socket.mark(&student.id, "late").await;
    let revision = socket.expect_mark(&student.id, "late").await;
    let again = teacher.start(class).await;
    assert_eq!(again["startedAt"], started["startedAt"], "the same session");
    assert_eq!(again["sessionId"], started["sessionId"]);
    assert_eq!(again["revision"], json!(revision), "and the mark is still there");
    assert_eq!(room.sessions().await.len(), 1);

    socket.send("DONE", &json!({})).await;
    socket.expect("DONE").await;
    let next = teacher.start(class).await;
    assert_ne!(next["sessionId"], started["sessionId"], "after DONE it is a new one");
    assert_eq!(room.sessions().await.len(), 2);
}

#[tokio::test]
async fn starting_is_checked_in_order() {
    let room = Room::closed(1).await;
    let other = room.client.teacher("Other").await;
    let start = "/attendance/start";
    let good = json!({"classId": room.class.id});
    room.client.post(start, &json!({})).await.refused(401, NO_TOKEN);
    room.students[0].post(start, &json!({})).await.refused(403, NO_TEACHER);
    room.students[0].post(start, &good).await.refused(403, NO_TEACHER);
    for body in [json!({}), json!({"classId": null}), json!({"classId": 7}), json!([]), json!({"classid": "x"})] {
        room.teacher.post(start, &body).await.refused(400, "Invalid request schema");
    }
    for id in ["", "1", NOBODY, "\u{0}", "gggggggggggggggggggggggg", "€€€€€€€€"] {
        room.teacher.post(start, &json!({"classId": id})).await.refused(404, "Class not found");
    }
    other.post(start, &good).await.refused(403, NOT_OWN);
    assert_eq!(room.sessions().await, Vec::<Value>::new());
}

#[tokio::test]
async fn of_many_starts_at_once_there_is_one_session() {
    let room = Room::closed(0).await;
    let starts = (0..16).map(|_| room.teacher.start(&room.class));
    let started = futures_util::future::join_all(starts).await;
    for one in &started {
        assert_eq!(one["sessionId"], started[0]["sessionId"]);
        assert_eq!(one["startedAt"], started[0]["startedAt"]);
    }
    assert_eq!(room.sessions().await.len(), 1);
}

#[tokio::test]
async fn the_open_session_as_teacher_and_student_see_it() {
    let room = Room::closed(3).await;
    let [ann, bob, cid] = &room.students[..] else { unreachable!() };
    let path = room.class.path("/session");
    assert_eq!(room.teacher.get(&path).await.envelope(200)["data"], Value::Null, "nothing is open yet");
    assert_eq!(ann.get(&path).await.envelope(200)["data"], Value::Null);

    room.teacher.start(&room.class).await;
    let mut socket = room.teacher.socket().await;
    socket.mark(&ann.id, "present").await;
    socket.expect_mark(&ann.id, "present").await;
    socket.mark(&bob.id, "excused").await;
    let revision = socket.expect_mark(&bob.id, "excused").await;

    let seen = room.teacher.get(&path).await.ok();
    assert_id(&seen["sessionId"]);
    assert_eq!(seen["classId"], json!(room.class.id));
    assert_eq!(seen["state"], "open");
    assert_eq!(seen["revision"], json!(revision));
    assert_moment(&seen["startedAt"]);
    assert_eq!(column(&seen["roster"], "_id"), [&ann.id, &bob.id, &cid.id]);
    let mut marks: Vec<_> =
        column(&seen["marks"], "studentId").into_iter().zip(column(&seen["marks"], "status")).collect();
    marks.sort_unstable();
    let mut expected = vec![(ann.id.as_str(), "present"), (bob.id.as_str(), "excused")];
    expected.sort_unstable();
    assert_eq!(marks, expected);
    assert_eq!(seen["counts"], json!({"present": 1, "absent": 0, "excused": 1, "total": 2}));

    for (student, status) in [(ann, "present"), (bob, "excused"), (cid, "not yet updated")] {
        let own = student.get(&path).await.ok();
        assert_eq!(own["status"], status);
        assert_eq!(own["revision"], json!(revision));
        let text = own.to_string();
        for other in &room.students {
            assert!(other.id == student.id || !text.contains(&other.id), "a student sees only the own part: {text}");
        }
        assert!(own.get("roster").is_none() && own.get("marks").is_none() && own.get("counts").is_none(), "{own}");
    }

    let (outsider, other) = (room.client.student("O").await, room.client.teacher("Other").await);
    room.client.get(&path).await.refused(401, NO_TOKEN);
    other.get(&path).await.refused(403, NOT_OWN);
    outsider.get(&path).await.refused(403, NOT_OWN);
    for id in NO_IDS {
        room.teacher.get(&format!("/class/{id}/session")).await.refused(404, "Class not found");
    }

    socket.send("DONE", &json!({})).await;
    socket.expect("DONE").await;
    assert_eq!(room.teacher.get(&path).await.envelope(200)["data"], Value::Null);
    assert_eq!(list(&json!(room.sessions().await)).len(), 1);
}
