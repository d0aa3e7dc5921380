//! What every answer tells browsers to keep to, and the way from HTTP to HTTPS.

use reqwest::Method;
use rollcall_testkit::server::{Answer, Client};
use serde_json::json;

use crate::tls::{Secured, address_after};
use crate::{builder, server};

const EVERY: [(&str, &str); 5] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

#[track_caller]
fn assert_headers(answer: &Answer) {
    for (name, value) in EVERY {
        assert_eq!(answer.header(name), value, "{name} of {answer:?}");
    }
    let policy = answer.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}: {answer:?}");
    assert!(!answer.header("cache-control").is_empty(), "{answer:?}");
}

/// The same of an answer as it came over the wire.
#[track_caller]
fn assert_raw_headers(answer: &str) {
    for (name, value) in EVERY {
        assert!(answer.contains(&format!("\r\n{name}: {value}\r\n")), "no {name} in {answer}");
    }
    assert!(answer.contains("\r\ncontent-security-policy: default-src 'none'; frame-ancestors 'none'\r\n"), "{answer}");
    assert!(answer.contains("\r\ncache-control: no-store\r\n"), "{answer}");
}

#[tokio::test]
async fn every_answer_has_the_headers() {
    let server = builder()
        .env("ALLOWED_ORIGINS", "https://school.example")
        .env("METRICS_ADDR", "127.0.0.1:0")
        .start()
        .await
        .unwrap();
    let client = server.client();
    let student = client.student("Sam").await;
    let too_large = json!({"email": "x".repeat(70_000)});
    let preflight = client.call(Method::OPTIONS, "/me").header("origin", "https://school.example");
    let answers = [
        (200, student.get("/me").await),
        (200, client.get("/health/live").await),
        (200, client.get("/openapi.json").await),
        (200, preflight.header("access-control-request-method", "GET").send().await),
        (400, client.post("/login", &json!({})).await),
        (400, student.get("/ws").await),
        (401, client.get("/me").await),
        (403, student.post("/class", &json!({"className": "A"})).await),
        (404, client.get("/nowhere").await),
        (404, client.get("/docs/nothing.js").await),
        (404, client.get("/metrics").await),
        (405, client.call(Method::PUT, "/login").send().await),
        (413, client.post("/login", &too_large).await),
    ];
    for (status, answer) in answers {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_headers(&answer);
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(answer.header("strict-transport-security"), "", "{answer:?} came over plain HTTP");
    }
    for page in ["/docs", "/redoc", "/docs/swagger-ui.css"] {
        assert_headers(&client.get(page).await);
    }
    let metrics = Client::new(&format!("http://{}", address_after(&server, "metrics   http://")));
    for path in ["/metrics", "/nowhere"] {
        assert_headers(&metrics.get(path).await);
    }

    let upgrade = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        "no-token",
        server.address()
    );
    let answer = client.raw().await.exchange(upgrade).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert_raw_headers(&answer);

    // What is no HTTP is refused before there is anything to route. There is nothing in it to protect either.
    for malformed in
        ["GET / HTTP/1.1\r\nno header\r\n\r\n".to_owned(), format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000))]
    {
        let answer = client.raw().await.exchange(malformed).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 4") && body.is_empty(), "{answer}");
    }
}

#[tokio::test]
async fn strict_transport_security_comes_over_https_alone() {
    const NAME: &str = "strict-transport-security";
    let secured = Secured::new();
    let server = secured.builder().start().await.unwrap();
    for path in ["/health/live", "/nowhere", "/docs"] {
        assert_eq!(server.client().get(path).await.header(NAME), "max-age=31536000");
    }
    let local = server.client().call(Method::GET, "/me").header("host", "localhost:8000").send().await;
    assert_eq!(local.header(NAME), "", "it would hold for all that is developed on this machine");

    drop(server);
    let server = secured.builder().env("HSTS_MAX_AGE", "0s").start().await.unwrap();
    assert_eq!(server.client().get("/me").await.header(NAME), "max-age=0");

    let server = builder().env("TRUSTED_PROXIES", "127.0.0.0/8").start().await.unwrap();
    let said = |scheme| server.client().call(Method::GET, "/me").header("x-forwarded-proto", scheme).send();
    assert_eq!(said("https").await.header(NAME), "max-age=31536000");
    assert_eq!(said("http, HTTPS").await.header(NAME), "max-age=31536000");
    assert_eq!(said("http").await.header(NAME), "");
    let untrusting = crate::server().await;
    let said = untrusting.client().call(Method::GET, "/me").header("x-forwarded-proto", "https").send().await;
    assert_eq!(said.header(NAME), "");
}

#[tokio::test]
async fn plain_http_is_sent_to_https() {
    let secured = Secured::new();
    let server = secured.builder().env("HTTP_REDIRECT_ADDR", "127.0.0.1:0").start().await.unwrap();
    let plain = Client::new(&format!("http://{}", address_after(&server, "redirect  http://")));
    let ask = async |line: &str, host: &str| {
        plain.raw().await.exchange(format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    };
    let port = server.address().port();
    for (line, host, to) in [
        ("GET /class/1?limit=2", "school.example", format!("https://school.example:{port}/class/1?limit=2")),
        ("POST /login", "127.0.0.1:80", format!("https://127.0.0.1:{port}/login")),
        ("GET //evil.example/", "school.example", format!("https://school.example:{port}//evil.example/")),
        ("GET http://school.example/a", "evil.example", format!("https://school.example:{port}/a")),
    ] {
        let answer = ask(line, host).await;
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.contains(&format!("\r\nlocation: {to}\r\n")), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n") && !answer.contains("strict-transport"), "{answer}");
        assert_raw_headers(&answer);
    }
    for (line, host) in [
        ("GET /", "evil.example"),
        ("GET /", "school.example@evil.example"),
        ("GET /", "school.example\r\nHost: evil.example"),
        ("GET http://evil.example/", "school.example"),
    ] {
        let answer = ask(line, host).await;
        assert!(answer.starts_with("HTTP/1.1 421 ") && !answer.contains("\r\nlocation:"), "{answer}");
        assert_raw_headers(&answer);
    }

    // Followed to its end, by a client that trusts the certificate.
    let base = format!("http://{}", plain.authority());
    let answer = Client::trusting(&base, &secured.trust()).get("/health/ready").await;
    assert_eq!(answer.status, 200, "{answer:?}");

    drop(server);
    let mapped = secured.builder().env("HTTP_REDIRECT_ADDR", "127.0.0.1:0").env("HTTP_REDIRECT_PORT", "443");
    let mapped = mapped.start().await.unwrap();
    let plain = Client::new(&format!("http://{}", address_after(&mapped, "redirect  http://")));
    let answer = plain.raw().await.exchange("GET /docs HTTP/1.1\r\nHost: school.example:80\r\n\r\n").await;
    assert!(answer.contains("\r\nlocation: https://school.example/docs\r\n"), "{answer}");
}

#[tokio::test]
async fn a_page_over_plain_http_opens_no_socket_where_there_is_https() {
    let secured = Secured::new();
    let server = secured.builder().start().await.unwrap();
    let student = server.client().student("Sam").await;
    let own = |scheme: &str| format!("{scheme}://{}", server.address());
    student.dial().origin(&own("https")).open().await.expect_silence().await;
    student.dial().origin(&own("http")).open().await.expect_error("Origin not allowed").await;
    let plain = self::server().await;
    let student = plain.client().student("Sam").await;
    student.dial().origin(&plain.base()).open().await.expect_silence().await;
}
