//! Whatever comes in gets the contract's error: never a panic, never a 500, never silence.

use reqwest::Method;
use serde_json::json;

use crate::{Room, server};

#[tokio::test]
async fn bodies_that_are_none() {
    let room = Room::closed(1).await;
    let deep_list = "[".repeat(30_000);
    let deep_object = "{\"a\":".repeat(10_000);
    let bodies: [&[u8]; 20] = [
        b"",
        b" ",
        b"x",
        b"null",
        b"true",
        b"[]",
        b"\"className\"",
        b"5",
        b"{",
        b"}",
        b"{}}",
        br#"{"className":"x"} x"#,
        br#"{"className":"x",}"#,
        b"{'className':'x'}",
        b"{\"className\":\"\xff\xfe\"}",
        b"{\"className\":\"\x00\"}",
        b"\xef\xbb\xbf{\"className\":",
        br#"{"className":"\ud800"}"#,
        deep_list.as_bytes(),
        deep_object.as_bytes(),
    ];
    for body in bodies {
        let call = room.teacher.call(Method::POST, "/class").header("content-type", "application/json");
        let answer = call.body(body.to_vec()).send().await;
        assert_eq!(answer.status, 400, "{:?}: {answer:?}", String::from_utf8_lossy(&body[..body.len().min(40)]));
        answer.refused(400, "Invalid request schema");
    }
    for path in ["/signup", "/login", "/auth/signup", "/auth/login"] {
        let answer = room.client.call(Method::POST, path).body("{").send().await;
        answer.refused(400, "Invalid request schema");
    }
    // A missing or another media type is no reason to refuse what is plainly JSON.
    let made = room.teacher.call(Method::POST, "/class").body(r#"{"className":"Plain"}"#).send().await;
    made.data(201);
    let made = room.teacher.call(Method::POST, "/class").header("content-type", "application/json; charset=utf-8");
    made.body(r#" {"className" : "\u0041" , "className2": [1, {}], "x": null} "#).send().await.data(201);
    // What nobody knows is ignored, however deep it is.
    let deep = format!(r#"{{"className":"x","y":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    room.teacher.call(Method::POST, "/class").body(deep).send().await.data(201);
}

#[tokio::test]
async fn bodies_over_64_kib_are_too_large() {
    let room = Room::closed(1).await;
    let body = |length: usize| {
        let head = r#"{"className":"x","filler":""#;
        format!("{head}{}\"}}", "f".repeat(length - head.len() - 2))
    };
    room.teacher.call(Method::POST, "/class").body(body(64 * 1024)).send().await.data(201);
    for length in [64 * 1024 + 1, 100_000, 2_000_000] {
        for _ in 0..20 {
            let answer = room.teacher.call(Method::POST, "/class").body(body(length)).send().await;
            answer.refused(413, "Request too large");
        }
    }
    // Announced, and in chunks without an announcement.
    let host = room.server.address();
    let token = &room.teacher.token;
    let head =
        format!("POST /class HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n");
    let announced = room.client.raw().await.exchange(format!("{head}Content-Length: 99999999\r\n\r\n")).await;
    assert!(announced.starts_with("HTTP/1.1 413") && announced.contains("Request too large"), "{announced}");
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}1\r\nx\r\n0\r\n\r\n");
    let answer = room.client.raw().await.exchange(chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Who is not signed in is told that first.
    for length in [65 * 1024, 2_000_000] {
        let answer = room.client.call(Method::POST, "/class").body(body(length)).send().await;
        answer.refused(401, "Unauthorized, token missing or invalid");
        let answer = room.client.call(Method::POST, "/nowhere").body(body(length)).send().await;
        answer.refused(404, "Not found");
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_none() {
    let room = Room::closed(1).await;
    for path in [
        "/nowhere",
        "/class/",
        "/classes/",
        "/ME",
        "/me/",
        "/auth",
        "/auth/",
        "/auth/logout",
        "/attendance",
        "/attendance/stop",
        "//me",
        "/class/1/2/3/4/5",
        "/.env",
        "/\u{fffd}",
    ] {
        for answer in [room.client.get(path).await, room.teacher.get(path).await] {
            answer.refused(404, "Not found");
        }
    }
    let class = room.class.path("");
    let add = room.class.path("/add-student");
    for (path, wrong) in [
        ("/signup", &[Method::GET, Method::PUT, Method::DELETE, Method::PATCH][..]),
        ("/login", &[Method::GET, Method::PUT]),
        ("/auth/signup", &[Method::GET]),
        ("/auth/login", &[Method::GET]),
        ("/me", &[Method::POST, Method::PUT, Method::PATCH, Method::DELETE]),
        ("/auth/me", &[Method::POST]),
        ("/class", &[Method::GET, Method::PUT, Method::DELETE]),
        ("/classes", &[Method::POST]),
        (&class, &[Method::POST, Method::PUT]),
        (&add, &[Method::GET, Method::PATCH]),
        ("/students", &[Method::POST, Method::DELETE]),
        ("/attendance/start", &[Method::GET, Method::DELETE]),
        ("/health/live", &[Method::POST]),
        ("/", &[Method::POST]),
    ] {
        for method in wrong {
            // Signed in or not: there is nothing behind this method that could ask.
            room.client.call(method.clone(), path).send().await.refused(405, "Method not allowed");
            let answer = room.teacher.call(method.clone(), path).json(&json!({})).send().await;
            answer.refused(405, "Method not allowed");
            assert!(!answer.header("allow").is_empty(), "{answer:?} does not say what would be right");
        }
    }
}

#[tokio::test]
async fn requests_that_are_hardly_http() {
    let server = server().await;
    let client = server.client();
    let long = "x".repeat(100_000);
    let many = "X-Y: z\r\n".repeat(500);
    for (what, request) in [
        ("nonsense", "nonsense\r\n\r\n".to_owned()),
        ("an unknown version", "GET / HTTP/9.9\r\n\r\n".to_owned()),
        ("a head without an end", format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n")),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")),
        ("too many headers", format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{many}\r\n")),
        ("a bad length", "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n".to_owned()),
        (
            "two lengths",
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx".to_owned(),
        ),
        ("a bad chunk", "POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned()),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\r\n\r\n".to_owned()),
        ("a NUL in the path", "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
    ] {
        let mut connection = client.raw().await;
        // The server may have seen enough before all of it is sent.
        let _ = connection.send(request).await;
        let answer = connection.rest().await;
        let fine = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        assert!(fine, "{what}: {answer}");
    }
    client.get("/health/ready").await.ok();
    assert!(!server.logs().contains("panicked"), "{}", server.logs());
}

#[tokio::test]
async fn half_a_body_and_gone_is_nothing() {
    let room = Room::closed(1).await;
    let (host, token) = (room.server.address(), &room.teacher.token);
    for _ in 0..20 {
        let mut connection = room.client.raw().await;
        let request = format!(
            "POST /class HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: 30\r\n\r\n{{\"className\":"
        );
        connection.send(request).await.unwrap();
        drop(connection);
    }
    assert_eq!(room.teacher.get("/classes").await.ok().as_array().unwrap().len(), 1);
    assert!(!room.server.logs().contains("panicked"), "{}", room.server.logs());
}
