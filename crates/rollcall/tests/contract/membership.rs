//! Enrolment and removal while people are connected.

use serde_json::json;

use crate::Room;

#[tokio::test]
async fn who_is_enrolled_while_connected_hears_from_then_on() {
    let room = Room::open(1).await;
    let newcomer = room.client.student("New").await;
    let (mut teacher, mut at_new) = (room.teacher.socket().await, newcomer.socket().await);
    let mut at_old = room.students[0].socket().await;
    let data = json!({"studentId": newcomer.id, "status": "present"});
    teacher.send("ATTENDANCE_MARKED", &data).await;
    teacher.expect_error("Student not enrolled in class").await;
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_mark(&room.students[0].id, "present").await;
    at_old.expect_mark(&room.students[0].id, "present").await;

    room.teacher.enrol(&room.class, &newcomer).await;
    teacher.mark(&newcomer.id, "late").await;
    for socket in [&mut teacher, &mut at_new, &mut at_old] {
        socket.expect_mark(&newcomer.id, "late").await;
    }
    at_new.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(at_new.expect("MY_ATTENDANCE").await["status"], "late");
    teacher.send("DONE", &json!({})).await;
    for socket in [&mut teacher, &mut at_new, &mut at_old] {
        assert_eq!(socket.expect("DONE").await["total"], 2);
    }
}

#[tokio::test]
async fn who_is_removed_while_connected_hears_no_more() {
    let room = Room::open(3).await;
    let [ann, bob, cid] = &room.students[..] else { unreachable!() };
    let (mut teacher, mut at_ann, mut at_bob) = (room.teacher.socket().await, ann.socket().await, bob.socket().await);
    teacher.mark(&ann.id, "present").await;
    for socket in [&mut teacher, &mut at_ann, &mut at_bob] {
        socket.expect_mark(&ann.id, "present").await;
    }
    room.teacher.delete(&room.class.path(&format!("/students/{}", ann.id))).await.ok();
    teacher.mark(&ann.id, "absent").await;
    teacher.expect_error("Student not enrolled in class").await;
    for status in ["late", "present"] {
        teacher.mark(&cid.id, status).await;
        teacher.expect_mark(&cid.id, status).await;
        at_bob.expect_mark(&cid.id, status).await;
    }
    at_ann.expect_silence().await;
    at_ann.send("MY_ATTENDANCE", &json!({})).await;
    at_ann.expect_error("No active attendance session").await;

    // Back again, the socket hears again; the mark of before stands.
    room.teacher.enrol(&room.class, ann).await;
    at_ann.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(at_ann.expect("MY_ATTENDANCE").await["status"], "present");
    teacher.send("DONE", &json!({})).await;
    for socket in [&mut teacher, &mut at_ann, &mut at_bob] {
        let done = socket.expect("DONE").await;
        assert_eq!((&done["present"], &done["absent"], &done["total"]), (&json!(2), &json!(1), &json!(3)));
    }
}

#[tokio::test]
async fn a_class_made_while_connected_is_heard() {
    let room = Room::closed(1).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    for n in 0..20 {
        let class = room.teacher.open_class(&format!("Class {n}"), &[&room.students[0]]).await;
        teacher.mark(&room.students[0].id, "present").await;
        let data = teacher.expect("ATTENDANCE_MARKED").await;
        assert_eq!(data["classId"], json!(class.id));
        assert_eq!(student.expect("ATTENDANCE_MARKED").await, data);
    }
}
