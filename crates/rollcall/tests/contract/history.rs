//! The sessions of the past, with their records and logs.

use serde_json::{Value, json};

use crate::{NO_IDS, NOT_UTF8, Room, assert_moment, column, list};

const NOT_OWN: &str = "Forbidden, not class teacher";

#[tokio::test]
async fn the_log_tells_every_event_with_its_reason() {
    let room = Room::open(2).await;
    let [ann, bob] = &room.students[..] else { unreachable!() };
    let mut socket = room.teacher.socket().await;
    let mark = |student: &str, status: &str, reason: Value, id: &str| json!({"studentId": student, "status": status, "reason": reason, "requestId": id});
    let reason = format!("  {}  ", "é".repeat(200));
    for (data, status) in [
        (mark(&ann.id, "absent", Value::Null, "op-1"), "absent"),
        (mark(&ann.id, "late", json!("bus <b>broke</b> down"), "op-2"), "late"),
        (mark(&ann.id, "excused", json!(reason), "op-3"), "excused"),
        (mark(&ann.id, "excused", json!(""), "op-4"), "excused"),
    ] {
        socket.send("ATTENDANCE_MARKED", &data).await;
        socket.expect_mark(&ann.id, status).await;
    }
    socket.send("TODAY_SUMMARY", &json!({})).await;
    socket.expect("TODAY_SUMMARY").await;
    let carl = room.client.student("Carl").await;
    room.teacher.enrol(&room.class, &carl).await;
    room.teacher.delete(&room.class.path(&format!("/students/{}", bob.id))).await.ok();
    socket.send("DONE", &json!({})).await;
    socket.expect("DONE").await;

    let session = room.newest().await;
    assert_eq!(session["state"], "finished");
    assert_eq!(session["finishedBy"], json!(room.teacher.id));
    assert_moment(&session["startedAt"]);
    assert_moment(&session["finishedAt"]);
    assert_eq!(session["summary"], json!({"present": 0, "absent": 1, "excused": 1, "total": 2}));
    let mut records: Vec<_> =
        column(&session["records"], "studentId").into_iter().zip(column(&session["records"], "status")).collect();
    records.sort_unstable();
    let mut expected = vec![(ann.id.as_str(), "excused"), (carl.id.as_str(), "absent")];
    expected.sort_unstable();
    assert_eq!(records, expected, "who left unmarked has no record");

    let log = list(&session["log"]);
    let events: Vec<_> = log.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let marked = "ATTENDANCE_MARKED";
    let expected = ["START", marked, marked, marked, marked, "TODAY_SUMMARY", "ENROLLED", "REMOVED", "DONE"];
    assert_eq!(events, expected);
    let first = session["firstRevision"].as_u64().unwrap();
    for (n, entry) in (first..).zip(&log) {
        assert_eq!(entry["revision"], json!(n), "without a gap: {entry}");
        assert_eq!(entry["by"], json!(room.teacher.id));
        assert_moment(&entry["at"]);
        assert_eq!(entry["address"], "127.0.0.1");
        let door = if matches!(entry["event"].as_str(), Some("START" | "ENROLLED" | "REMOVED")) {
            "http"
        } else {
            "websocket"
        };
        assert_eq!(entry["door"], door, "{entry}");
    }
    assert_eq!(session["revision"], log.last().unwrap()["revision"]);
    let corrections: Vec<_> =
        log[1..5].iter().map(|entry| (&entry["old"], &entry["new"], &entry["reason"], &entry["operationId"])).collect();
    let (absent, late, excused) = (json!("absent"), json!("late"), json!("excused"));
    let ids = [json!("op-1"), json!("op-2"), json!("op-3"), json!("op-4")];
    let (bus, accents) = (json!("bus <b>broke</b> down"), json!("é".repeat(200)));
    assert_eq!(
        corrections,
        [
            (&Value::Null, &absent, &Value::Null, &ids[0]),
            (&absent, &late, &bus, &ids[1]),
            (&late, &excused, &accents, &ids[2]),
            (&excused, &excused, &Value::Null, &ids[3]),
        ]
    );
    assert_eq!(log[6]["studentId"], json!(carl.id));
    assert_eq!(log[7]["studentId"], json!(bob.id));
    assert_eq!(log[5]["total"], 1);
    assert_eq!(log[8]["total"], 2);
}

#[tokio::test]
async fn a_student_sees_the_own_part() {
    let room = Room::open(2).await;
    let [ann, bob] = &room.students[..] else { unreachable!() };
    let mut socket = room.teacher.socket().await;
    for (student, status) in [(ann, "late"), (bob, "present"), (ann, "present")] {
        socket.mark(&student.id, status).await;
        socket.expect_mark(&student.id, status).await;
    }
    socket.send("DONE", &json!({})).await;
    socket.expect("DONE").await;
    let sessions = ann.get(&room.class.path("/sessions")).await.ok();
    assert_eq!(sessions.as_array().unwrap().len(), 1);
    let id = sessions[0]["sessionId"].as_str().unwrap();
    let seen = ann.get(&room.class.path(&format!("/sessions/{id}"))).await.ok();
    assert_eq!(column(&seen["records"], "studentId"), [&ann.id]);
    assert_eq!(column(&seen["records"], "status"), ["present"]);
    let marks: Vec<_> = list(&seen["log"]).into_iter().filter(|entry| entry["event"] == "ATTENDANCE_MARKED").collect();
    assert_eq!(marks.len(), 2, "{seen}");
    let text = format!("{sessions}{seen}");
    assert!(!text.contains(&bob.id), "another student shows: {text}");
    assert!(!text.contains("127.0.0.1"), "where the teacher was shows: {text}");
}

#[tokio::test]
async fn sessions_and_logs_come_in_pages() {
    let room = Room::closed(1).await;
    let student = &room.students[0];
    let mut socket = room.teacher.socket().await;
    let mut started = Vec::new();
    for _ in 0..5 {
        started.push(room.teacher.start(&room.class).await["sessionId"].as_str().unwrap().to_owned());
        for n in 0..6 {
            let status = ["present", "absent"][n % 2];
            socket.mark(&student.id, status).await;
            socket.expect_mark(&student.id, status).await;
        }
        socket.send("DONE", &json!({})).await;
        socket.expect("DONE").await;
    }
    started.reverse();
    let all = async |path: String, of: &str| {
        let mut items = Vec::new();
        let mut pages = 0;
        let mut cursor = String::new();
        loop {
            let page = room.teacher.get(&format!("{path}?limit=3{cursor}")).await.envelope(200);
            let part = if of.is_empty() { list(&page["data"]) } else { list(&page["data"][of]) };
            assert!((1..=3).contains(&part.len()), "{page}");
            items.extend(part);
            pages += 1;
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return (items, pages),
            }
        }
    };
    let (sessions, pages) = all(room.class.path("/sessions"), "").await;
    assert_eq!(column(&json!(sessions), "sessionId"), started, "newest first");
    assert_eq!(pages, 2);
    assert_eq!(column(&json!(room.sessions().await), "sessionId"), started, "whole without a limit");

    let path = room.class.path(&format!("/sessions/{}", started[0]));
    let (log, pages) = all(path.clone(), "log").await;
    assert_eq!(log, list(&room.teacher.get(&path).await.ok()["log"]));
    assert_eq!(log.len(), 8);
    assert_eq!(pages, 3);
    // Revisions go on over the sessions of a class.
    assert_eq!(log[0]["revision"], json!(4 * 8 + 1));
    for wrong in ["limit=0", "limit=x", "cursor=x", "cursor=-1"] {
        for path in [&room.class.path("/sessions"), &path] {
            room.teacher.get(&format!("{path}?{wrong}")).await.refused(400, "Invalid request schema");
        }
    }
}

#[tokio::test]
async fn history_is_for_the_classs_people_alone() {
    let room = Room::open(1).await;
    let other = room.client.teacher("Other").await;
    let others = other.open_class("Biology", &[]).await;
    let outsider = room.client.student("O").await;
    let sessions = room.class.path("/sessions");
    let id = room.sessions().await[0]["sessionId"].as_str().unwrap().to_owned();
    let one = format!("{sessions}/{id}");
    for path in [&sessions, &one] {
        room.client.get(path).await.refused(401, "Unauthorized, token missing or invalid");
        other.get(path).await.refused(403, NOT_OWN);
        outsider.get(path).await.refused(403, NOT_OWN);
        room.students[0].get(path).await.ok();
    }
    // A session is found in its own class only.
    other.get(&others.path(&format!("/sessions/{id}"))).await.refused(404, "Not found");
    for none in NO_IDS.iter().filter(|id| **id != NOT_UTF8) {
        room.teacher.get(&format!("{sessions}/{none}")).await.refused(404, "Not found");
        room.teacher.get(&format!("/class/{none}/sessions")).await.refused(404, "Class not found");
        room.teacher.get(&format!("/class/{none}/sessions/{id}")).await.refused(404, "Class not found");
    }
}
