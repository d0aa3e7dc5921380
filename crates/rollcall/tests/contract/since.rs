//! `since`: who comes back is sent what was missed, and then hears on.

use std::collections::BTreeSet;

use rollcall_testkit::server::Socket;
use serde_json::json;

use crate::{NOBODY, Room};

/// Marks each of the students once; gives the revisions.
async fn mark(room: &Room, teacher: &mut Socket, status: &str) -> Vec<u64> {
    let mut revisions = Vec::new();
    for student in &room.students {
        teacher.mark(&student.id, status).await;
        revisions.push(teacher.expect_mark(&student.id, status).await);
    }
    revisions
}

async fn expect_revisions(socket: &mut Socket, revisions: &[u64]) {
    for revision in revisions {
        assert_eq!(socket.next().await.revision(), *revision);
    }
}

#[tokio::test]
async fn what_was_missed_comes_first_and_then_what_happens() {
    let room = Room::open(5).await;
    let mut teacher = room.teacher.socket().await;
    let mut revisions = mark(&room, &mut teacher, "present").await;
    for person in [&room.teacher, &room.students[0]] {
        for (seen, since) in [(0, 0), (1, revisions[0]), (4, revisions[3])] {
            let mut socket = person.dial().since(&room.class, since).open().await;
            expect_revisions(&mut socket, &revisions[seen..]).await;
            socket.expect_silence().await;
        }
        // Nothing was missed yet, but something is about to be.
        let mut socket = person.dial().since(&room.class, revisions[4]).open().await;
        socket.expect_silence().await;
        revisions = mark(&room, &mut teacher, "late").await;
        expect_revisions(&mut socket, &revisions).await;
        socket.expect_silence().await;
        // Revisions that have not been reached are no reason to fail, or to be silent for ever.
        for ahead in [revisions[4] + 1000, u64::MAX] {
            let mut socket = person.dial().since(&room.class, ahead).open().await;
            socket.expect_silence().await;
            revisions = mark(&room, &mut teacher, "absent").await;
            expect_revisions(&mut socket, &revisions).await;
        }
    }
}

#[tokio::test]
async fn what_was_missed_is_told_as_its_result() {
    let room = Room::open(5).await;
    let mut teacher = room.teacher.socket().await;
    let first = mark(&room, &mut teacher, "present").await;
    for event in ["TODAY_SUMMARY", "TODAY_SUMMARY"] {
        teacher.send(event, &json!({})).await;
        teacher.expect(event).await;
    }
    teacher.mark(&room.students[1].id, "late").await;
    let corrected = teacher.expect_mark(&room.students[1].id, "late").await;
    let mut socket = room.students[0].dial().since(&room.class, 0).open().await;
    expect_revisions(&mut socket, &[first[0], first[2], first[3], first[4], first[4] + 2, corrected]).await;
    socket.expect_silence().await;
}

#[tokio::test]
async fn several_classes_are_asked_for_at_once() {
    let room = Room::open(1).await;
    let student = &room.students[0];
    let mut teacher = room.teacher.socket().await;
    teacher.mark(&student.id, "present").await;
    let first = teacher.expect_mark(&student.id, "present").await;
    let second = room.teacher.open_class("Biology", &[student]).await;
    teacher.mark(&student.id, "late").await;
    teacher.expect_mark(&student.id, "late").await;
    let both = format!("{}:0,{}:0", room.class.id, second.id);
    for since in [format!("&since={both}"), format!("&since={}:0&since={}:{first}", second.id, room.class.id)] {
        let mut socket = student.dial().query(&format!("?token={}{since}", student.token)).open().await;
        let expected = if since.contains(',') { vec![&room.class.id, &second.id] } else { vec![&second.id] };
        let mut heard = Vec::new();
        for _ in &expected {
            heard.push(socket.expect("ATTENDANCE_MARKED").await["classId"].as_str().unwrap().to_owned());
        }
        heard.sort_unstable();
        let mut expected: Vec<_> = expected.into_iter().cloned().collect();
        expected.sort_unstable();
        assert_eq!(heard, expected);
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn the_end_of_a_session_and_the_next_are_told() {
    let room = Room::open(3).await;
    let student = &room.students[0];
    let mut teacher = room.teacher.socket().await;
    let first = mark(&room, &mut teacher, "late").await;
    teacher.send("DONE", &json!({})).await;
    let done = teacher.expect("DONE").await;
    let mut socket = student.dial().since(&room.class, first[1]).open().await;
    expect_revisions(&mut socket, &first[2..]).await;
    assert_eq!(socket.expect("DONE").await, done);
    socket.expect_silence().await;

    room.teacher.start(&room.class).await;
    let second = mark(&room, &mut teacher, "present").await;
    let mut socket = student.dial().since(&room.class, first[0]).open().await;
    assert_eq!(socket.expect("DONE").await["revision"], done["revision"], "of the session that was missed, the end");
    expect_revisions(&mut socket, &second).await;
    socket.expect_silence().await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_while_marks_go_on() {
    const MARKS: u64 = 300;
    let room = Room::open(1).await;
    let student = &room.students[0];
    let mut teacher = room.teacher.socket().await;
    let first = mark(&room, &mut teacher, "late").await[0];
    let marking = async {
        for n in 0..MARKS {
            let status = ["present", "absent"][usize::try_from(n % 2).unwrap()];
            teacher.mark(&student.id, status).await;
            teacher.expect_mark(&student.id, status).await;
        }
    };
    let last = first + MARKS;
    // A client with a bad line: it hears a few, loses the connection and comes back with what it saw last.
    let following = async {
        let mut seen = first;
        let mut connections = 0;
        while seen < last {
            let mut socket = student.dial().since(&room.class, seen).open().await;
            connections += 1;
            for n in 0..10 {
                if seen == last {
                    break;
                }
                let revision = socket.next().await.revision();
                // What was missed is one frame, the student's last mark; from then on there is no gap.
                assert!(if n == 0 { revision > seen } else { revision == seen + 1 }, "{revision} after {seen}");
                seen = revision;
            }
        }
        connections
    };
    let ((), connections) = futures_util::future::join(marking, following).await;
    assert!(connections > 1, "{connections}");
}

#[tokio::test]
async fn since_of_what_is_none_of_ones_business_tells_nothing() {
    let room = Room::open(1).await;
    let mut teacher = room.teacher.socket().await;
    mark(&room, &mut teacher, "late").await;
    let outsider = room.client.student("O").await;
    let other = room.client.teacher("T").await;
    for person in [&outsider, &other] {
        let mut socket = person.dial().since(&room.class, 0).open().await;
        socket.expect_silence().await;
        mark(&room, &mut teacher, "present").await;
        mark(&room, &mut teacher, "late").await;
        socket.expect_silence().await;
    }
    let student = &room.students[0];
    for since in [
        String::new(),
        "x".to_owned(),
        ":".to_owned(),
        ":1".to_owned(),
        room.class.id.clone(),
        format!("{}:", room.class.id),
        format!("{}:x", room.class.id),
        format!("{}:-1", room.class.id),
        format!("{}:99999999999999999999999", room.class.id),
        format!("{NOBODY}:0"),
        "1:0".to_owned(),
    ] {
        let mut socket = student.dial().query(&format!("?token={}&since={since}", student.token)).open().await;
        // What cannot be read is told; the socket stays and hears what happens next.
        if since.starts_with(NOBODY) {
            socket.expect_silence().await;
        } else {
            socket.expect_error("Invalid message format").await;
        }
        let mut at_teacher = room.teacher.socket().await;
        at_teacher.mark(&student.id, "excused").await;
        let revision = at_teacher.expect_mark(&student.id, "excused").await;
        assert_eq!(socket.next().await.revision(), revision, "{since:?}");
    }
}

/// Who comes back sends again what had no answer, and does not wait for what was missed.
#[tokio::test]
async fn commands_are_answered_by_their_names_while_what_was_missed_is_on_its_way() {
    let room = Room::open(3).await;
    for round in 0..150 {
        let mut teacher = room.teacher.dial().since(&room.class, 0).open().await;
        let mut open = BTreeSet::new();
        for n in 0..8 {
            let (student, status) = (&room.students[n % 2].id, ["present", "late"][n / 4]);
            let name = format!("{round}-{n}");
            let data = json!({"studentId": student, "status": status, "requestId": name});
            teacher.queue("ATTENDANCE_MARKED", &data).await;
            open.insert(name);
        }
        teacher.flush().await;
        let mut last = 0;
        while !open.is_empty() {
            let frame = teacher.next().await;
            assert!(frame.revision() > last, "{frame:?} after {last}");
            last = frame.revision();
            if let Some(name) = frame.data["requestId"].as_str() {
                assert!(open.remove(name), "{frame:?} is answered twice");
            }
        }
        teacher.close().await;
    }
}
