//! Ends and beginnings: accounts that are disabled, tokens that expire, servers that stop and start again.

use std::time::{Duration, Instant};

use rollcall_testkit::server::{Algorithm, SECRET, claims, signed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{Room, builder, server};

const REFUSED: &str = "Unauthorized, token missing or invalid";

#[tokio::test]
async fn a_disabled_account_ends_within_a_second_on_both_doors() {
    let room = Room::open(2).await;
    let [ann, bob] = &room.students[..] else { unreachable!() };
    let (mut one, mut two, mut at_bob) = (ann.socket().await, ann.socket().await, bob.socket().await);
    ann.get("/me").await.ok();

    let email = ann.email.to_uppercase();
    let output = room.server.run(&["user", "disable", &email]).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let done = Instant::now();
    one.expect_close(4003).await;
    two.expect_close(4003).await;
    assert!(done.elapsed() < Duration::from_secs(1), "{:?}", done.elapsed());
    ann.get("/me").await.refused(401, REFUSED);
    let mut socket = ann.socket().await;
    socket.expect_error("Unauthorized or invalid token").await;
    socket.expect_close(1008).await;
    let login = json!({"email": ann.email, "password": ann.password});
    room.client.post("/login", &login).await.refused(400, "Invalid email or password");
    at_bob.expect_silence().await;

    let output = room.server.run(&["user", "enable", &ann.email]).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    ann.get("/me").await.refused(401, REFUSED);
    let again = room.client.log_in(&ann.email, &ann.password).await;
    again.get("/me").await.ok();
    again.socket().await.expect_silence().await;
}

#[tokio::test]
async fn http_alone_hears_of_a_disabled_account_too() {
    let server = server().await;
    let student = server.client().student("S").await;
    // Remembered by the server, so that forgetting is what is tested.
    for _ in 0..10 {
        student.get("/me").await.ok();
    }
    assert!(server.run(&["user", "disable", &student.email]).await.unwrap().status.success());
    let done = Instant::now();
    while student.get("/me").await.status == 200 {
        assert!(done.elapsed() < Duration::from_secs(1), "still served");
    }
    student.get("/me").await.refused(401, REFUSED);
}

#[tokio::test]
async fn another_password_ends_all_tokens() {
    let room = Room::open(1).await;
    let student = &room.students[0];
    let mut socket = student.socket().await;
    let output = room.server.run(&["user", "reset-password", &student.email, "--generate"]).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    socket.expect_close(4003).await;
    student.get("/me").await.refused(401, REFUSED);
    let login = json!({"email": student.email, "password": student.password});
    room.client.post("/login", &login).await.refused(400, "Invalid email or password");
    let said = String::from_utf8(output.stdout).unwrap();
    let mut worked = false;
    for word in said.split_whitespace() {
        let body = json!({"email": student.email, "password": word.trim_matches(['.', '"', '\''])});
        worked |= room.client.post("/login", &body).await.status == 200;
    }
    assert!(worked, "no word of {said:?} is the new password");
    assert!(!room.server.logs().contains(said.trim()));
}

#[tokio::test]
async fn a_tokens_end_is_its_sockets_end() {
    let room = Room::open(1).await;
    let student = &room.students[0];
    let mut claims = claims(&student.token);
    // Servers' clocks may be a minute apart; two seconds of that are left.
    claims["exp"] = json!(claims["iat"].as_i64().unwrap() - 57);
    let token = signed(&claims, SECRET, Algorithm::HS256);
    let (mut ends, mut stays) = (room.client.dial(&token).open().await, student.socket().await);
    ends.expect_close(4001).await;
    stays.expect_silence().await;
}

#[tokio::test]
async fn sigterm_tells_everybody_and_leaves() {
    let mut room = Room::open(2).await;
    let (mut teacher, mut student) = (room.teacher.socket().await, room.students[0].socket().await);
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_mark(&room.students[0].id, "present").await;
    student.expect_mark(&room.students[0].id, "present").await;
    room.server.ask_to_end().unwrap();
    teacher.expect_close(1012).await;
    student.expect_close(1012).await;
    let status = room.server.ended().await;
    assert_eq!(status.code(), Some(0));

    room.server.restart().await.unwrap();
    room.follow_server();
    let mut teacher = room.teacher.socket().await;
    let mut student = room.students[0].socket().await;
    student.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(student.expect("MY_ATTENDANCE").await["status"], "present", "the session is still open");
    teacher.mark(&room.students[1].id, "late").await;
    teacher.expect_mark(&room.students[1].id, "late").await;
    student.expect_mark(&room.students[1].id, "late").await;
    teacher.send("DONE", &json!({})).await;
    assert_eq!(teacher.expect("DONE").await["total"], 2);
}

#[tokio::test]
async fn a_server_that_delays_its_end_is_not_ready_and_serves_on() {
    // Longer than any test: a second order ends it.
    let mut room = Room::on(builder().env("DRAIN_DELAY", "10m").start().await.unwrap(), 1).await;
    let student = &room.students[0];
    let mut teacher = room.teacher.socket().await;
    assert_eq!(room.client.get("/health/live").await.headers.get("connection"), None);
    room.server.ask_to_end().unwrap();
    room.server.logged("ending").await;
    let answer = room.client.get("/health/ready").await;
    answer.refused(503, "Service unavailable");
    assert!(!room.server.logs().contains("WARN"), "an order that is followed is no failure");
    assert_eq!(answer.header("connection"), "close", "a proxy is told to let go of its connections");
    room.client.get("/health/live").await.ok();
    room.teacher.start(&room.class).await;
    let mut latecomer = student.socket().await;
    teacher.mark(&student.id, "present").await;
    teacher.expect_mark(&student.id, "present").await;
    latecomer.expect_mark(&student.id, "present").await;
    let pid = Pid::from_raw(room.server.pid().try_into().unwrap());
    let again = tokio::spawn(async move {
        loop {
            kill_process(pid.unwrap(), Signal::TERM).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert_eq!(room.server.ended().await.code(), Some(130), "who orders twice does not want to wait");
    again.abort();

    let mut room = Room::on(builder().env("DRAIN_DELAY", "1s").start().await.unwrap(), 1).await;
    let mut teacher = room.teacher.socket().await;
    let began = Instant::now();
    room.server.ask_to_end().unwrap();
    teacher.expect_close(1012).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(room.server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn commands_in_flight_at_the_end_are_durable_or_were_never_told() {
    let mut room = Room::open(1).await;
    let mut teacher = room.teacher.socket().await;
    for n in 0..500 {
        let status = ["present", "late"][n % 2];
        let data = json!({"studentId": room.students[0].id, "status": status});
        teacher.queue("ATTENDANCE_MARKED", &data).await;
    }
    teacher.flush().await;
    let first = teacher.next().await.revision();
    room.server.ask_to_end().unwrap();
    let (frames, ended) = teacher.drain().await;
    assert_eq!(ended.code, Some(1012));
    assert_eq!(room.server.ended().await.code(), Some(0));
    let told =
        frames.iter().filter(|frame| frame.event == "ATTENDANCE_MARKED").map(rollcall_testkit::server::Frame::revision);
    let last = told.max().unwrap_or(first);
    room.server.restart().await.unwrap();
    room.follow_server();
    let session = room.newest().await;
    assert!(session["revision"].as_u64().unwrap() >= last, "{last} was told, {session}");
}

#[tokio::test]
async fn a_restart_on_the_same_file_goes_on_where_the_class_was() {
    let mut room = Room::open(3).await;
    let mut teacher = room.teacher.socket().await;
    let mut last = 0;
    for (student, status) in room.students.iter().zip(["present", "absent"]) {
        teacher.mark(&student.id, status).await;
        last = teacher.expect_mark(&student.id, status).await;
    }
    let before = room.newest().await;
    room.server.kill();
    assert_eq!(teacher.expect_end().await.code, None);
    room.server.restart_in_place().await.unwrap();
    room.follow_server();
    assert_eq!(room.newest().await, before);
    let open = room.teacher.get(&room.class.path("/session")).await.ok();
    assert_eq!((&open["state"], &open["revision"]), (&json!("open"), &json!(last)));
    assert_eq!(room.teacher.start(&room.class).await["sessionId"], before["sessionId"]);
    let mut teacher = room.teacher.dial().since(&room.class, last - 1).open().await;
    teacher.expect_mark(&room.students[1].id, "absent").await;
    teacher.mark(&room.students[2].id, "late").await;
    assert_eq!(teacher.expect_mark(&room.students[2].id, "late").await, last + 1);
    teacher.send("DONE", &json!({})).await;
    let done = teacher.expect("DONE").await;
    assert_eq!(
        (&done["present"], &done["absent"], &done["late"], &done["total"]),
        (&json!(1), &json!(1), &json!(1), &json!(3))
    );
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_refused() {
    let first = server().await;
    let error = first.run(&["serve"]).await.unwrap();
    assert!(!error.status.success());
    let said = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(said.to_lowercase().contains("already") || said.contains("another"), "{said}");
    first.client().get("/health/ready").await.ok();
}

#[tokio::test]
async fn sessions_that_nobody_finishes_are_finished() {
    let server = builder().env("SESSION_MAX_AGE", "1s").start().await.unwrap();
    let room = Room::on(server, 1).await;
    let mut student = room.students[0].socket().await;
    room.teacher.start(&room.class).await;
    let done = student.expect("DONE").await;
    assert_eq!((&done["absent"], &done["total"]), (&json!(1), &json!(1)));
    let session = room.newest().await;
    assert_eq!(session["finishedBy"], "system");
    assert_eq!(session["log"][1]["door"], "system");
    assert_eq!(room.teacher.get(&room.class.path("/session")).await.envelope(200)["data"], Value::Null);
}

#[tokio::test]
async fn connections_that_say_nothing_or_too_little_end() {
    let server = server().await;
    let client = server.client();
    let host = server.address();
    let token = client.student("S").await.token;
    let half_head = format!("GET /me HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer ");
    let half_body = format!("POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{\"email\":");
    let upgrade = format!("GET /ws?token={token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgr");
    let ends = ["", "GET", &half_head, &half_body, &upgrade].map(|begin| {
        let client = &client;
        async move {
            let mut connection = client.raw().await;
            connection.send(begin).await.unwrap();
            connection.rest().await
        }
    });
    let slow = async {
        // A byte now and then is no head.
        let mut connection = client.raw().await;
        connection.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Slow: ")).await.unwrap();
        while connection.send("x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let begun = Instant::now();
    let (answers, slow) = futures_util::future::join(
        futures_util::future::join_all(ends),
        tokio::time::timeout(Duration::from_secs(25), slow),
    )
    .await;
    assert!(slow.is_ok(), "a slow head goes on for ever");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    for answer in answers {
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    client.get("/health/ready").await.ok();
}

#[tokio::test]
async fn an_order_to_end_that_comes_more_than_once_at_once_is_one() {
    let mut room = Room::open(3).await;
    let mut sockets = Vec::new();
    for student in &room.students {
        sockets.push(student.socket().await);
    }
    // As from those who tell a process and then its whole group.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(50) {
        room.server.ask_to_end().unwrap();
        tokio::task::yield_now().await;
    }
    for socket in &mut sockets {
        socket.expect_close(1012).await;
    }
    assert!(room.server.ended().await.success());
}

/// A limit on the size of files ends a process by a signal, unless it hears it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_limit_on_the_size_of_files_ends_nothing() {
    use rustix::process::{Resource, Rlimit, prlimit};

    let room = Room::open(1).await;
    let student = &room.students[0].id;
    let mut socket = room.teacher.socket().await;
    let pid = Pid::from_raw(room.server.pid().try_into().unwrap());
    let limit = |current| prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    let before = limit(Some(16 * 1024)).current;
    room.client.get("/health/ready").await.refused(503, "Service unavailable");
    limit(before);
    socket.mark(student, "late").await;
    socket.expect_mark(student, "late").await;
    room.client.get("/health/ready").await.ok();
}
