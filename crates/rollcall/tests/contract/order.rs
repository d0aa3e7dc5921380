//! The teacher's sockets come first: clients exist that listen on a student's socket only after the teacher's frame.

use std::sync::{Arc, Mutex};

use rollcall_testkit::server::Socket;
use serde_json::json;

use crate::Room;

const ROUNDS: usize = 300;

#[tokio::test]
async fn a_student_read_only_after_the_teachers_frame_misses_nothing() {
    let room = Room::open(3).await;
    let mut teacher = room.teacher.socket().await;
    let mut sockets = Vec::new();
    for student in &room.students {
        sockets.push(student.socket().await);
    }
    for round in 0..ROUNDS {
        let (student, status) = (&room.students[round % 3], ["present", "absent", "late", "excused"][round % 4]);
        let last = round + 1 == ROUNDS;
        let event = match round % 10 {
            _ if last => "DONE",
            9 => "TODAY_SUMMARY",
            _ => "ATTENDANCE_MARKED",
        };
        teacher.send(event, &json!({"studentId": student.id, "status": status})).await;
        let heard = teacher.expect(event).await;
        for socket in &mut sockets {
            assert_eq!(socket.expect(event).await, heard, "round {round}");
        }
    }
}

/// Writes down, for every frame, who was handed it; on one thread, so that this is the order of arrival.
async fn listen(mut socket: Socket, who: &'static str, log: Arc<Mutex<Vec<&'static str>>>) {
    for _ in 0..ROUNDS {
        socket.expect("ATTENDANCE_MARKED").await;
        log.lock().unwrap().push(who);
    }
}

#[tokio::test]
async fn the_teachers_frame_arrives_first() {
    let room = Room::open(2).await;
    let log = Arc::new(Mutex::new(Vec::new()));
    // The students' sockets are older and are asked first: nothing but the server puts the teacher's before them.
    let mut listeners = Vec::new();
    for student in &room.students {
        listeners.push(tokio::spawn(listen(student.socket().await, "student", Arc::clone(&log))));
    }
    listeners.push(tokio::spawn(listen(room.teacher.socket().await, "teacher", Arc::clone(&log))));
    let mut marker = room.teacher.socket().await;
    for round in 0..ROUNDS {
        let status = ["present", "absent"][round % 2];
        marker.mark(&room.students[0].id, status).await;
        marker.expect_mark(&room.students[0].id, status).await;
        rollcall_testkit::server::until("everybody heard", || {
            (log.lock().unwrap().len() == 3 * (round + 1)).then_some(())
        })
        .await;
    }
    for listener in listeners {
        listener.await.unwrap();
    }
    let log = log.lock().unwrap();
    let wrong = log.chunks(3).filter(|round| round[0] != "teacher").count();
    // The server waits at most 5 ms for the teacher's socket; a machine busy with other tests may take longer.
    assert!(wrong <= ROUNDS / 50, "in {wrong} of {ROUNDS} rounds a student's frame came first");
}
