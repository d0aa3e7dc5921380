//! Many classes at once: what one does is never heard by another.

use std::collections::BTreeMap;

use rollcall_testkit::server::{Class, Client, Person, Socket};
use serde_json::json;

use crate::{Room, server};

struct Group {
    teacher: Person,
    students: Vec<Person>,
    class: Class,
    sockets: Vec<Socket>,
}

async fn group(client: &Client, name: &str) -> Group {
    let teacher = client.teacher(name).await;
    let students = vec![client.student("One").await, client.student("Two").await, client.student("Three").await];
    let class = teacher.open_class(name, &students.iter().collect::<Vec<_>>()).await;
    let mut sockets = vec![teacher.socket().await];
    for student in &students {
        sockets.push(student.socket().await);
    }
    Group { teacher, students, class, sockets }
}

#[tokio::test]
async fn classes_hear_only_themselves() {
    const GROUPS: usize = 8;
    const ROUNDS: usize = 25;
    let server = server().await;
    let client = server.client();
    let outsider = client.student("Outsider").await;
    let mut at_outsider = outsider.socket().await;
    let mut groups = Vec::new();
    for n in 0..GROUPS {
        groups.push(group(&client, &format!("Teacher {n}")).await);
    }
    let tasks: Vec<_> = groups.into_iter().map(|group| tokio::spawn(whole_lesson(group, ROUNDS))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    at_outsider.expect_silence().await;
}

/// All sockets of the group hear every event of the own class, in order, and nothing else.
async fn whole_lesson(mut group: Group, rounds: usize) -> Group {
    let mut expected: BTreeMap<String, &str> = BTreeMap::new();
    let mut last = None;
    for round in 0..rounds {
        let student = &group.students[round % 3];
        let status = ["present", "absent", "late", "excused"][round % 4];
        expected.insert(student.id.clone(), status);
        group.sockets[0].mark(&student.id, status).await;
        for socket in &mut group.sockets {
            let frame = socket.next().await;
            assert_eq!(frame.event, "ATTENDANCE_MARKED");
            assert_eq!(frame.data["classId"], json!(group.class.id));
            assert_eq!((&frame.data["studentId"], &frame.data["status"]), (&json!(student.id), &json!(status)));
            assert!(last.is_none_or(|last| last <= frame.revision()));
            last = Some(frame.revision());
        }
    }
    group.sockets[0].send("DONE", &json!({})).await;
    for socket in &mut group.sockets {
        assert_eq!(socket.expect("DONE").await["classId"], json!(group.class.id));
        socket.expect_silence().await;
    }
    for (id, status) in expected {
        let student = group.students.iter().find(|student| student.id == id).unwrap();
        assert_eq!(student.get(&group.class.path("/my-attendance")).await.ok()["status"], status);
    }
    assert_eq!(group.teacher.get("/classes").await.ok().as_array().unwrap().len(), 1);
    group
}

#[tokio::test]
async fn a_teacher_of_several_classes_means_the_last_opened_unless_said() {
    let room = Room::open(1).await;
    let (teacher, ann) = (&room.teacher, &room.students[0]);
    let bob = room.client.student("Bob").await;
    let second = teacher.open_class("Biology", &[&bob]).await;
    let (mut at_teacher, mut at_ann, mut at_bob) = (teacher.socket().await, ann.socket().await, bob.socket().await);

    at_teacher.mark(&bob.id, "present").await;
    at_teacher.expect_mark(&bob.id, "present").await;
    at_bob.expect_mark(&bob.id, "present").await;
    at_teacher.mark(&ann.id, "present").await;
    at_teacher.expect_error("Student not enrolled in class").await;
    let first = json!({"classId": room.class.id, "studentId": ann.id, "status": "late"});
    at_teacher.send("ATTENDANCE_MARKED", &first).await;
    assert_eq!(at_teacher.expect("ATTENDANCE_MARKED").await["classId"], json!(room.class.id));
    at_ann.expect_mark(&ann.id, "late").await;
    at_bob.expect_silence().await;

    // Starting again what is open does not make it the last opened.
    teacher.start(&room.class).await;
    at_teacher.send("DONE", &json!({})).await;
    assert_eq!(at_teacher.expect("DONE").await["classId"], json!(second.id));
    at_bob.expect("DONE").await;
    at_teacher.send("DONE", &json!({})).await;
    assert_eq!(at_teacher.expect("DONE").await["classId"], json!(room.class.id), "then the one before");
    at_ann.expect("DONE").await;
    at_teacher.send("DONE", &json!({})).await;
    at_teacher.expect_error("No active attendance session").await;
    at_ann.expect_silence().await;
    at_bob.expect_silence().await;
}

#[tokio::test]
async fn a_student_of_several_classes_means_the_last_opened_unless_said() {
    let room = Room::open(1).await;
    let ann = &room.students[0];
    let other = room.client.teacher("Other").await;
    let second = other.open_class("Biology", &[ann]).await;
    let (mut at_other, mut at_teacher, mut at_ann) =
        (other.socket().await, room.teacher.socket().await, ann.socket().await);
    at_other.mark(&ann.id, "late").await;
    at_other.expect_mark(&ann.id, "late").await;
    at_ann.expect_mark(&ann.id, "late").await;
    at_teacher.mark(&ann.id, "present").await;
    at_teacher.expect_mark(&ann.id, "present").await;
    at_ann.expect_mark(&ann.id, "present").await;
    for (asked, class, status) in
        [(None, &second, "late"), (Some(&room.class), &room.class, "present"), (Some(&second), &second, "late")]
    {
        let data = asked.map_or_else(|| json!({}), |class| json!({"classId": class.id}));
        at_ann.send("MY_ATTENDANCE", &data).await;
        let answer = at_ann.expect("MY_ATTENDANCE").await;
        assert_eq!((&answer["classId"], &answer["status"]), (&json!(class.id), &json!(status)));
    }
    at_other.send("DONE", &json!({})).await;
    at_other.expect("DONE").await;
    at_ann.expect("DONE").await;
    at_ann.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(at_ann.expect("MY_ATTENDANCE").await["status"], "present");
    at_teacher.expect_silence().await;
}

#[tokio::test]
async fn one_teacher_never_acts_in_anothers_session() {
    let room = Room::open(1).await;
    let other = room.client.teacher("Other").await;
    let mut at_other = other.socket().await;
    let mut at_teacher = room.teacher.socket().await;
    at_other.mark(&room.students[0].id, "present").await;
    at_other.expect_error("No active attendance session").await;
    at_other.send("DONE", &json!({})).await;
    at_other.expect_error("No active attendance session").await;
    at_teacher.mark(&room.students[0].id, "late").await;
    at_teacher.expect_mark(&room.students[0].id, "late").await;
    at_teacher.mark(&room.students[0].id, "present").await;
    at_teacher.expect_mark(&room.students[0].id, "present").await;
    at_other.expect_silence().await;
}
