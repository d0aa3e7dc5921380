//! What stands after DONE, as each student reads it.

use serde_json::{Value, json};

use crate::{NO_IDS, Room, assert_members};

#[tokio::test]
async fn my_attendance_is_of_the_last_finished_session() {
    let room = Room::closed(2).await;
    let [ann, bob] = &room.students[..] else { unreachable!() };
    let path = room.class.path("/my-attendance");
    let before = ann.get(&path).await.ok();
    assert_members(&before, &["classId", "status"]);
    assert_eq!((&before["classId"], &before["status"]), (&json!(room.class.id), &Value::Null));

    let mut socket = room.teacher.socket().await;
    for (status, bobs) in [("present", None), ("late", Some("excused")), ("excused", Some("present"))] {
        let stood = ann.get(&path).await.ok();
        room.teacher.start(&room.class).await;
        socket.mark(&ann.id, status).await;
        socket.expect_mark(&ann.id, status).await;
        if let Some(status) = bobs {
            socket.mark(&bob.id, status).await;
            socket.expect_mark(&bob.id, status).await;
        }
        assert_eq!(ann.get(&path).await.ok(), stood, "an open session does not show yet");
        socket.send("DONE", &json!({})).await;
        socket.expect("DONE").await;
        assert_eq!(ann.get(&path).await.ok()["status"], status);
        assert_eq!(bob.get(&path).await.ok()["status"], bobs.unwrap_or("absent"));
    }
}

#[tokio::test]
async fn a_student_who_came_later_has_no_record_of_before() {
    let room = Room::open(1).await;
    let mut socket = room.teacher.socket().await;
    socket.send("DONE", &json!({})).await;
    socket.expect("DONE").await;
    let newcomer = room.client.student("New").await;
    room.teacher.enrol(&room.class, &newcomer).await;
    let path = room.class.path("/my-attendance");
    assert_eq!(newcomer.get(&path).await.ok()["status"], Value::Null);
    assert_eq!(room.students[0].get(&path).await.ok()["status"], "absent");
}

#[tokio::test]
async fn my_attendance_is_checked_in_order() {
    let room = Room::open(1).await;
    let outsider = room.client.student("O").await;
    let path = room.class.path("/my-attendance");
    room.client.get(&path).await.refused(401, "Unauthorized, token missing or invalid");
    room.teacher.get(&path).await.refused(403, "Forbidden, student access required");
    room.teacher.get("/class/1/my-attendance").await.refused(403, "Forbidden, student access required");
    outsider.get(&path).await.refused(403, "Forbidden, not enrolled in class");
    for id in NO_IDS {
        outsider.get(&format!("/class/{id}/my-attendance")).await.refused(404, "Class not found");
    }
}

#[tokio::test]
async fn of_two_dones_at_once_one_stands() {
    let room = Room::open(1).await;
    let (mut one, mut two) = (room.teacher.socket().await, room.teacher.socket().await);
    let done = json!({"classId": room.class.id});
    futures_util::future::join(one.send("DONE", &done), two.send("DONE", &done)).await;
    let mut refused = 0;
    for socket in [&mut one, &mut two] {
        socket.expect("DONE").await;
        // Who came second is told so; the fence comes right behind the first.
        socket.send("FENCE", &json!({})).await;
        let next = socket.expect("ERROR").await;
        if next["message"] == "No active attendance session" {
            refused += 1;
            socket.expect_error("Unknown event").await;
        }
    }
    assert_eq!(refused, 1);
    let newest = room.newest().await;
    assert_eq!(newest["records"].as_array().unwrap().len(), 1);
    assert_eq!(newest["log"].as_array().unwrap().len(), 2, "START and DONE: {newest}");
}
