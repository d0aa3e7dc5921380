//! What operators see: health, metrics, documentation, logs.

use std::collections::BTreeSet;
use std::io::Read as _;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{Room, builder, server};

#[tokio::test]
async fn health_and_the_front_page() {
    let server = server().await;
    let client = server.client();
    for path in ["/health/live", "/health/ready", "/"] {
        let answer = client.get(path).await;
        assert!(answer.ok().is_object(), "{answer:?}");
    }
    let said = server.output();
    assert!(said.contains(&format!("listens on {}", server.base())), "{said}");
}

#[tokio::test]
async fn metrics_tell_what_happens() {
    let room = Room::open(2).await;
    let mut teacher = room.teacher.socket().await;
    let mut student = room.students[0].socket().await;
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_mark(&room.students[0].id, "present").await;
    student.expect_mark(&room.students[0].id, "present").await;
    room.teacher.get(&room.class.path("")).await.ok();
    room.client.get("/nowhere").await.refused(404, "Not found");
    let body = json!({"email": "nobody@example.org", "password": "x"});
    room.client.post("/login", &body).await.refused(400, "Invalid email or password");

    let answer = room.client.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
    let text = answer.text();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!((value("rollcall_sockets") - 2.0).abs() < f64::EPSILON);
    for series in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            !series.contains(&room.class.id) && !series.contains("/nowhere"),
            "an endless number of series: {series}"
        );
    }
    assert!(text.contains(r#""/class/{id}""#), "by route, not by path:\n{text}");
    for what in [
        "sessions_open",
        "marks",
        "logins_refused",
        "commit_batch_size",
        "commit_seconds",
        "queue_depth",
        "http_request_seconds_bucket{",
    ] {
        assert!(text.contains(what), "nothing about {what:?} in\n{text}");
    }
}

/// Names in the list of `docs/operate.md` that a server shows only where there is something to tell.
const SHOWN_WHERE_CONFIGURED: [&str; 16] = [
    "rollcall_backup_bytes",
    "rollcall_backup_duration_seconds",
    "rollcall_backup_failures_total",
    "rollcall_backup_interval_seconds",
    "rollcall_backup_last_success_timestamp_seconds",
    "rollcall_backups",
    "rollcall_limits_redis_errors_total",
    "rollcall_limits_shared",
    "rollcall_mail_seconds",
    "rollcall_mail_server_up",
    "rollcall_mails_total",
    "rollcall_spans_dropped_total",
    "rollcall_spans_exported_total",
    "rollcall_tls_certificate_expiry_timestamp_seconds",
    "rollcall_tls_handshakes_total",
    "rollcall_tls_reloads_total",
];

#[tokio::test]
async fn every_figure_is_described_and_documented() {
    let operate = include_str!("../../../../docs/operate.md");
    let (_, table) = operate.split_once("| metric | kind | unit | labels |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let documented: BTreeSet<_> = rows
        .map(|row| {
            let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`'));
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .filter(|(name, _)| !SHOWN_WHERE_CONFIGURED.contains(name))
        .collect();

    let server = server().await;
    let client = server.client();
    // Nothing else has happened: what may never happen is there all the same, and can be watched.
    client.get("/health/live").await.ok();
    let text = client.get("/metrics").await.text();
    let shown: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert_eq!(shown, documented, "left: what a server shows; right: docs/operate.md");
    for (name, _) in shown {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} does not say what it is");
    }
    let ready = text.lines().find(|line| line.starts_with("rollcall_ready "));
    assert_eq!(ready, Some("rollcall_ready 1"));
}

#[tokio::test]
async fn metrics_are_not_shown_through_a_proxy_on_the_same_machine() {
    let server = server().await;
    let client = server.client();
    for header in ["x-forwarded-for", "forwarded", "via", "x-real-ip", "x-forwarded-host", "x-forwarded-proto"] {
        let answer = client.call(Method::GET, "/metrics").header(header, "x").send().await;
        answer.refused(404, "Not found");
    }
    assert_eq!(client.get("/metrics").await.status, 200);
}

#[tokio::test]
async fn metrics_can_have_an_address_of_their_own() {
    let server = builder().env("METRICS_ADDR", "127.0.0.1:0").start().await.unwrap();
    let own = server.client();
    own.get("/metrics").await.refused(404, "Not found");
    let said = rollcall_testkit::server::until("the address of the metrics", || {
        let said = format!("{}{}", server.output(), server.logs());
        let addresses = said.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).map(str::to_owned);
        let mut other =
            addresses.filter(|text| text.starts_with("127.0.0.1:") && *text != server.address().to_string());
        other.next_back().filter(|text| !text.ends_with(":0"))
    })
    .await;
    let metrics = rollcall_testkit::server::Client::new(&format!("http://{said}"));
    let answer = metrics.get("/metrics").await;
    assert!(answer.status == 200 && answer.text().contains("rollcall_"), "{answer:?}");
    assert_eq!(metrics.get("/me").await.status, 404);
}

#[tokio::test]
async fn documentation_needs_no_network() {
    let server = server().await;
    let client = server.client();
    let openapi = client.get("/openapi.json").await.json(200);
    assert!(openapi["openapi"].as_str().unwrap().starts_with("3."), "{openapi}");
    let paths = openapi["paths"].as_object().unwrap();
    for (path, methods) in [
        ("/signup", &["post"][..]),
        ("/login", &["post"]),
        ("/me", &["get"]),
        ("/auth/signup", &["post"]),
        ("/auth/login", &["post"]),
        ("/auth/me", &["get"]),
        ("/class", &["post"]),
        ("/classes", &["get"]),
        ("/class/{id}", &["get", "patch", "delete"]),
        ("/class/{id}/add-student", &["post"]),
        ("/class/{id}/students/{studentId}", &["delete"]),
        ("/class/{id}/my-attendance", &["get"]),
        ("/class/{id}/session", &["get"]),
        ("/class/{id}/sessions", &["get"]),
        ("/class/{id}/sessions/{sessionId}", &["get"]),
        ("/students", &["get"]),
        ("/attendance/start", &["post"]),
    ] {
        for method in methods {
            assert!(paths.get(path).and_then(|path| path.get(method)).is_some(), "{method} {path} is not described");
        }
    }
    for page in ["/docs", "/redoc"] {
        let (html, address) = follow(&client, page).await;
        let mut assets = 0;
        for link in links(&html) {
            assert!(!link.contains("//"), "{page} asks for {link}");
            if link.starts_with("data:") || link.starts_with('#') {
                continue;
            }
            let folder = address.rsplit_once('/').map_or("", |(folder, _)| folder);
            let path = if link.starts_with('/') {
                link.clone()
            } else {
                format!("{folder}/{}", link.trim_start_matches("./"))
            };
            let asset = client.get(&path).await;
            assert!(asset.status == 200 && !asset.body.is_empty(), "{path}: {asset:?}");
            assets += 1;
        }
        assert!(assets > 0 || html.len() > 100_000, "{page} has nothing to show: {html}");
    }
}

#[tokio::test]
async fn the_documentation_is_sent_packed_to_those_who_take_that() {
    let server = server().await;
    let client = server.client();
    for path in ["/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/redoc", "/openapi.json", "/asyncapi.json"] {
        let plain = client.get(path).await;
        assert_eq!((plain.status, plain.header("content-encoding")), (200, ""), "{path}");
        assert_eq!(plain.header("vary"), "accept-encoding", "{path}");
        let packed = client.call(Method::GET, path).header("accept-encoding", "br, gzip").send().await;
        assert_eq!((packed.status, packed.header("content-encoding")), (200, "gzip"), "{path}");
        assert_eq!(packed.header("content-type"), plain.header("content-type"), "{path}");
        assert!(packed.body.len() < plain.body.len() / 2, "{path}: {} of {}", packed.body.len(), plain.body.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*packed.body).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked == plain.body, "{path} unpacks to something else");
    }
}

/// The page that a browser ends on, and its path.
async fn follow(client: &rollcall_testkit::server::Client, path: &str) -> (String, String) {
    // The client follows redirections by itself, but does not tell where to: a page in a folder ends with a slash.
    let answer = client.get(path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.header("content-type").starts_with("text/html"), "{answer:?}");
    (answer.text(), answer.path)
}

/// What `src` and `href` of a page's tags name; what scripts make of text is theirs.
fn links(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = html;
    while let Some((_, tag)) = rest.split_once('<') {
        let (attributes, after) = tag.split_once('>').unwrap_or((tag, ""));
        rest = if attributes.starts_with("script") {
            after.split_once("</script").map_or("", |(_, rest)| rest)
        } else {
            after
        };
        for attribute in [" src=\"", " href=\""] {
            let value = attributes.split_once(attribute).and_then(|(_, value)| value.split('"').next());
            found.extend(value.map(str::to_owned));
        }
    }
    found
}

#[tokio::test]
async fn secrets_are_in_no_log() {
    let mut server = builder().env("LOG_LEVEL", "trace").start().await.unwrap();
    let client = server.client();
    let teacher = client.teacher("Thea").await;
    let student = client.student("Sam").await;
    let class = teacher.open_class("Algebra", &[&student]).await;
    let mut socket = teacher.socket().await;
    socket.mark(&student.id, "present").await;
    socket.expect_mark(&student.id, "present").await;
    let mut by_protocol = student.dial().by_protocol().since(&class, 0).open().await;
    by_protocol.expect_mark(&student.id, "present").await;
    // Mistakes are logged most carelessly.
    let forged = format!("{}x", teacher.token);
    client.call(Method::GET, "/me").bearer(&forged).send().await.refused(401, "Unauthorized, token missing or invalid");
    client.get(&format!("/nowhere?token={}", teacher.token)).await.refused(404, "Not found");
    client.dial(&forged).open().await.expect_error("Unauthorized or invalid token").await;
    client.dial(&forged).by_protocol().open().await.expect_error("Unauthorized or invalid token").await;
    let wrong = json!({"email": teacher.email, "password": "a wrong secret"});
    client.post("/login", &wrong).await.refused(400, "Invalid email or password");
    let body = json!({"email": teacher.email, "password": ["a malformed secret"]});
    client.post("/login", &body).await.refused(400, "Invalid request schema");
    client.get(&format!("/ws?token={}", student.token)).await;
    assert!(server.terminate().await.unwrap().success());

    let logs = format!("{}{}", server.logs(), server.output());
    assert!(logs.len() > 1_000, "hardly anything was logged: {logs}");
    for person in [&teacher, &student] {
        for part in person.token.split('.').skip(1) {
            assert!(!logs.contains(part), "a part of a token is in the log");
        }
        assert!(!logs.contains(&person.password), "a password is in the log");
    }
    for secret in ["a wrong secret", "a malformed secret", rollcall_testkit::server::SECRET, "$2b$"] {
        assert!(!logs.contains(secret), "{secret:?} is in the log");
    }
}

#[tokio::test]
async fn requests_have_ids_and_logs_can_be_json() {
    let mut server = builder().env("LOG_FORMAT", "json").env("LOG_LEVEL", "debug").start().await.unwrap();
    let client = server.client();
    let (one, two) = (client.get("/health/live").await, client.get("/nowhere").await);
    let (first, second) = (one.header("x-request-id").to_owned(), two.header("x-request-id").to_owned());
    assert!(!first.is_empty() && !second.is_empty() && first != second, "{first:?} {second:?}");
    assert!(server.terminate().await.unwrap().success());
    let logs = server.logs();
    for line in logs.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry.is_object());
    }
    assert!(logs.contains(&second), "the request id is not in the log:\n{logs}");
}
