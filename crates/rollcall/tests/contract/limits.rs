//! Limits, as they are by default: ordinary use never meets them.

use std::time::Duration;

use reqwest::Method;
use rollcall_testkit::server::{Answer, Client, PATIENCE, Server};
use serde_json::json;

use crate::{Room, builder};

async fn limited() -> Server {
    builder().without("RATE_LIMIT").start().await.unwrap()
}

#[track_caller]
pub(crate) fn assert_limited(answer: &Answer) {
    let refused = answer.refused(429, "Too many requests");
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=15 * 60).contains(&wait), "{wait} s");
}

/// The first answer of 429. A machine that took its time to use a limit up has earned a few more by then.
pub(crate) async fn first_limited(from: usize, call: impl AsyncFn(usize) -> Answer) -> Answer {
    for n in from..from + 50 {
        let answer = call(n).await;
        if answer.status == 429 {
            return answer;
        }
    }
    panic!("no limit");
}

#[tokio::test]
async fn failed_logins_are_counted_per_account() {
    let server = limited().await;
    let client = server.client();
    let (victim, other) = (client.student("V").await, client.student("O").await);
    let attempt =
        async |email: &str, password: &str| client.post("/login", &json!({"email": email, "password": password})).await;
    // Successes are free.
    for _ in 0..30 {
        attempt(&victim.email, &victim.password).await.json(200);
    }
    // In any form of the address, and by both paths.
    for n in 0..10 {
        let email = if n % 2 == 0 { victim.email.to_uppercase() } else { format!(" {} ", victim.email) };
        let path = if n % 3 == 0 { "/auth/login" } else { "/login" };
        let answer = client.post(path, &json!({"email": email, "password": "wrong"})).await;
        answer.refused(400, "Invalid email or password");
    }
    for password in ["wrong", &victim.password] {
        assert_limited(&attempt(&victim.email, password).await);
        assert_limited(&client.post("/auth/login", &json!({"email": victim.email, "password": password})).await);
    }
    // Nobody else is concerned, and who is signed in stays so.
    attempt(&other.email, &other.password).await.json(200);
    victim.get("/me").await.ok();
    // Of an address that nobody has, the same.
    for _ in 0..10 {
        attempt("nobody@example.org", "wrong").await.refused(400, "Invalid email or password");
    }
    assert_limited(&attempt("nobody@example.org", "wrong").await);
}

#[tokio::test]
async fn attempts_at_once_are_no_way_around_the_limit() {
    let server = limited().await;
    let client = server.client();
    let victim = client.student("V").await;
    let body = json!({"email": victim.email, "password": "wrong"});
    let answers = futures_util::future::join_all((0..40).map(|_| client.post("/login", &body))).await;
    let tried = answers.iter().filter(|answer| answer.status == 400).count();
    assert_eq!(tried, 10);
    answers.iter().filter(|answer| answer.status != 400).for_each(assert_limited);
}

#[tokio::test]
async fn failed_logins_are_counted_per_address() {
    let server = builder().without("RATE_LIMIT").env("TRUSTED_PROXIES", "127.0.0.0/8").start().await.unwrap();
    let client = server.client();
    let attempt = async |n: usize, from: &str| {
        let body = json!({"email": format!("nobody{n}@example.org"), "password": "x"});
        client.call(Method::POST, "/login").header("x-forwarded-for", from).json(&body).send().await
    };
    for n in 0..300 {
        attempt(n, "192.0.2.1").await.refused(400, "Invalid email or password");
    }
    assert_limited(&first_limited(300, async |n| attempt(n, "203.0.113.9, 192.0.2.1").await).await);
    attempt(1_000, "192.0.2.2").await.refused(400, "Invalid email or password");
}

#[tokio::test]
async fn hanging_up_is_no_way_around_the_limits_and_locks_nobody_out() {
    let server = limited().await;
    let client = server.client();
    let victim = client.student("V").await;
    let hang_up = async |email: &str, password: &str| {
        let body = json!({"email": email, "password": password}).to_string();
        let mut raw = client.raw().await;
        let head = format!("POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        raw.send(format!("{head}{body}")).await.unwrap();
        // Long enough to be begun.
        client.get("/health/live").await.ok();
    };
    // By somebody who reloads the page again and again: in the end nothing of it counts.
    for _ in 0..10 {
        hang_up(&victim.email, &victim.password).await;
    }
    let right = json!({"email": victim.email, "password": victim.password});
    eventually(async || client.post("/login", &right).await.status == 200).await;
    // By somebody who guesses: a guess that was begun counts as the failure that it is.
    let guesses = std::cell::Cell::new(0);
    eventually(async || {
        guesses.set(guesses.get() + 1);
        hang_up(&format!("nobody{}@example.org", guesses.get()), "wrong").await;
        let figures = client.get("/metrics").await.text();
        let failed = r#"rollcall_logins_refused_total{why="credentials"} "#;
        let failed = figures.lines().find_map(|line| line.strip_prefix(failed)?.parse::<u32>().ok());
        failed.is_some_and(|failed| failed > 5)
    })
    .await;
}

async fn eventually(holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

async fn sign_up(client: &Client, n: usize, from: &str) -> Answer {
    let body = json!({"name": "S", "email": format!("s{n}@example.org"), "password": "123456", "role": "student"});
    client.call(Method::POST, "/signup").header("x-forwarded-for", from).json(&body).send().await
}

#[tokio::test]
async fn sign_ups_are_counted_per_address_which_nobody_can_make_up() {
    let server = limited().await;
    let client = server.client();
    let sign_up = async |n: usize| sign_up(&client, n, &format!("198.51.100.{}", n % 250)).await;
    for n in 0..300 {
        sign_up(n).await.data(201);
    }
    assert_limited(&first_limited(300, sign_up).await);
    // Those who are there already are served on.
    let body = json!({"email": "s0@example.org", "password": "123456"});
    client.post("/login", &body).await.json(200);
}

#[tokio::test]
async fn a_student_who_floods_is_told_and_then_closed() {
    let room = Room::on(limited().await, 2).await;
    room.teacher.start(&room.class).await;
    let mut socket = room.students[0].socket().await;
    // As much as the contract allows at once.
    for _ in 0..40 {
        socket.queue("MY_ATTENDANCE", &json!({})).await;
    }
    socket.flush().await;
    for _ in 0..40 {
        socket.expect("MY_ATTENDANCE").await;
    }
    let flood = json!({"event": "MY_ATTENDANCE", "data": {}}).to_string();
    for _ in 0..2_000 {
        socket.send_text(flood.clone()).await;
    }
    let (frames, ended) = socket.drain().await;
    assert_eq!(ended.code, Some(1008));
    let told = frames.iter().filter(|frame| frame.data["message"] == "Too many messages").count();
    assert!(told >= 1, "nothing was said before the close: {frames:?}");
    assert!(frames.len() < 2_000, "{} answers", frames.len());

    // Others are served meanwhile, and the flooder may come back.
    let mut other = room.students[1].socket().await;
    other.send("MY_ATTENDANCE", &json!({})).await;
    other.expect("MY_ATTENDANCE").await;
    room.students[0].socket().await.expect_silence().await;
}

#[tokio::test]
async fn a_teacher_may_send_a_lecture_hall_at_once() {
    const MARKS: usize = 1_500;
    let room = Room::on(limited().await, 1).await;
    room.teacher.start(&room.class).await;
    let mut socket = room.teacher.socket().await;
    let student = &room.students[0].id;
    let mut heard = 0;
    for n in 0..MARKS {
        let status = ["present", "late"][n % 2];
        socket.queue("ATTENDANCE_MARKED", &json!({"studentId": student, "status": status})).await;
        if n % 100 == 99 {
            socket.flush().await;
        }
    }
    while heard < MARKS {
        socket.expect_mark(student, ["present", "late"][heard % 2]).await;
        heard += 1;
    }
}

#[tokio::test]
async fn an_account_has_at_most_50_sockets() {
    let room = Room::on(limited().await, 2).await;
    room.teacher.start(&room.class).await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(room.students[0].socket().await);
    }
    for socket in &mut sockets {
        socket.expect_silence().await;
    }
    // However it is said, there is no 51st.
    match room.students[0].dial().attempt().await {
        Ok(mut socket) => {
            let (frames, ended) = socket.drain().await;
            assert_eq!(ended.code, Some(1008), "{frames:?}");
        }
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => assert_eq!(response.status(), 429),
        Err(error) => panic!("{error}"),
    }
    room.students[1].socket().await.expect_silence().await;
    sockets.pop().unwrap().close().await;
    let began = std::time::Instant::now();
    // The place is free again right after the goodbye was answered: asked until it is.
    let mut again = loop {
        match room.students[0].dial().attempt().await {
            Ok(socket) => break socket,
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => assert_eq!(response.status(), 429),
            Err(error) => panic!("{error}"),
        }
        assert!(began.elapsed() < PATIENCE, "the place was never free again");
    };
    again.expect_silence().await;
}

#[tokio::test]
async fn limits_can_be_turned_off() {
    let room = Room::open(1).await;
    for _ in 0..20 {
        let body = json!({"email": room.teacher.email, "password": "wrong"});
        room.client.post("/login", &body).await.refused(400, "Invalid email or password");
    }
    let mut socket = room.students[0].socket().await;
    for _ in 0..300 {
        socket.queue("MY_ATTENDANCE", &json!({})).await;
    }
    socket.flush().await;
    for _ in 0..300 {
        socket.expect("MY_ATTENDANCE").await;
    }
    let mut sockets = Vec::new();
    for _ in 0..60 {
        sockets.push(room.students[0].socket().await);
    }
    for socket in &mut sockets {
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn a_school_may_log_in_at_the_same_moment_behind_one_address() {
    // Slow enough that more logins are under way at once than an address may have failed.
    let server = builder().without("RATE_LIMIT").env("BCRYPT_COST", "7").start().await.unwrap();
    let client = server.client();
    let mut logins = Vec::new();
    for n in 0..40 {
        let student = client.student(&format!("S{n}")).await;
        logins.extend(std::iter::repeat_n(json!({"email": student.email, "password": student.password}), 8));
    }
    futures_util::future::join_all(logins.iter().map(async |login| {
        loop {
            let answer = client.post("/login", login).await;
            if answer.status != 503 {
                return answer.json(200);
            }
            // A machine with other things to do has more than ten seconds of hashing to come, and puts some off.
            let wait = answer.header("retry-after").parse().unwrap();
            tokio::time::sleep(Duration::from_secs(wait)).await;
        }
    }))
    .await;
}
