//! Traces, as a collector gets them.
//!
//! The collector is one of our own, so that the tests need nothing else: it speaks real HTTP, and reads what comes with the
//! messages that OpenTelemetry's makers generate.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::serve::Listener;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as Outcome;
use prost::Message as _;
use reqwest::Method;
use rollcall_testkit::server::{Authority, Builder, until};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::{Room, builder};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// How a collector answers.
#[derive(Clone, Copy)]
enum Mood {
    Takes,
    TakesAllButOne,
    /// With this status.
    Refuses(StatusCode),
    /// Not at all.
    Hangs,
}

/// What a collector got.
#[derive(Default)]
struct Got {
    bodies: Vec<Bytes>,
    headers: HeaderMap,
    /// Those that were refused and those without an answer among them.
    requests: usize,
}

struct Collector {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    got: Arc<Mutex<Got>>,
    serving: JoinHandle<()>,
}

impl Collector {
    async fn start(mood: Mood) -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), mood).await
    }

    async fn at(address: SocketAddr, mood: Mood) -> Self {
        Self::over(TcpListener::bind(address).await.unwrap(), mood)
    }

    fn over(listener: impl Listener<Addr = SocketAddr>, mood: Mood) -> Self {
        let (mood, got) = (Arc::new(Mutex::new(mood)), Arc::<Mutex<Got>>::default());
        let (moods, gets) = (Arc::clone(&mood), Arc::clone(&got));
        let take = async move |headers: HeaderMap, body: Bytes| {
            let mood = *moods.lock().unwrap();
            gets.lock().unwrap().requests += 1;
            let refused = match mood {
                Mood::Hangs => std::future::pending().await,
                Mood::Refuses(status) => return status.into_response(),
                Mood::Takes => 0,
                Mood::TakesAllButOne => 1,
            };
            let mut got = gets.lock().unwrap();
            got.headers = headers;
            got.bodies.push(body);
            let partial_success = Some(ExportTracePartialSuccess { rejected_spans: refused, ..Default::default() });
            ExportTraceServiceResponse { partial_success }.encode_to_vec().into_response()
        };
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/v1/traces", post(take));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, mood, got, serving }
    }

    /// A server that sends its spans here. It is one process, of which log and figures are looked at.
    fn builder(&self) -> Builder {
        builder()
            .env("DB_URL", "sqlite://rollcall.db")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.address))
    }

    fn requests(&self) -> usize {
        self.got.lock().unwrap().requests
    }

    fn spans(&self) -> Vec<Known> {
        self.got.lock().unwrap().bodies.iter().flat_map(spans).collect()
    }

    /// The first span that `fits`, once it is there.
    async fn span(&self, what: &str, fits: impl Fn(&Known) -> bool) -> Known {
        until(what, || self.spans().into_iter().find(&fits)).await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Takes connections over TLS.
struct Tls(TcpListener, TlsAcceptor);

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, peer) = self.0.accept().await.unwrap();
            // One that does not trust it goes away.
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A span, easier to look at.
#[derive(Clone, Debug)]
struct Known {
    span: Span,
    trace: String,
    id: String,
    parent: String,
    attributes: HashMap<String, Value>,
}

impl Known {
    fn is_part_of(&self, other: &Self) -> bool {
        let (span, whole) = (&self.span, &other.span);
        self.trace == other.trace && self.parent == other.id && span.start_time_unix_nano >= whole.start_time_unix_nano
    }
}

fn spans(body: &Bytes) -> Vec<Known> {
    let message = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let resources = message.resource_spans.into_iter();
    let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
    spans
        .map(|span| {
            let hex =
                |bytes: &[u8]| bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect::<String>();
            assert!(span.trace_id.len() == 16 && span.span_id.len() == 8, "{span:?}");
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
            let (trace, id, parent) = (hex(&span.trace_id), hex(&span.span_id), hex(&span.parent_span_id));
            Known { trace, id, parent, attributes: attributes(&span.attributes), span }
        })
        .collect()
}

fn digit(value: u8) -> char {
    char::from_digit(value.into(), 16).unwrap()
}

fn attributes(list: &[KeyValue]) -> HashMap<String, Value> {
    let value = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(json!(text)),
        any_value::Value::IntValue(number) => Some(json!(number)),
        other => panic!("{other:?}"),
    };
    list.iter().map(|pair| (pair.key.clone(), value(pair).unwrap())).collect()
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// The value of a figure that is a number alone.
async fn figure(room: &Room, name: &str) -> u64 {
    let text = room.client.get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

#[tokio::test]
async fn a_request_goes_on_with_the_trace_that_it_came_in() {
    let collector = Collector::start(Mood::Takes).await;
    let server = collector.builder().env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20it%27s%2Cus");
    let server = server.env("OTEL_SERVICE_NAME", "school").env("OTEL_RESOURCE_ATTRIBUTES", "a.b=c%3D, service.name=x");
    let room = Room::on(server.start().await.unwrap(), 1).await;
    let call = room.teacher.call(Method::GET, &room.class.path("/sessions")).header("traceparent", parent("01"));
    let answer = call.send().await;
    answer.ok();

    let request = collector.span("the request", |span| span.trace == TRACE && span.parent == PARENT).await;
    assert_eq!(request.span.name, "GET /class/{id}/sessions");
    assert_eq!(request.span.kind, SpanKind::Server as i32);
    let expected = json!({
        "http.request.method": "GET",
        "http.route": "/class/{id}/sessions",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "rollcall.request.id": answer.header("x-request-id"),
    });
    assert_eq!(json!(request.attributes), expected);
    let question =
        collector.span("its question", |span| span.trace == TRACE && span.span.name == "store sessions").await;
    assert!(question.is_part_of(&request), "{question:?} {request:?}");
    assert_eq!(question.attributes["db.operation.name"], "sessions");

    // A request without a trace begins one.
    let start =
        collector.span("a sign-up", |span| span.span.name == "POST /auth/signup" || span.span.name == "POST /signup");
    let start = start.await;
    assert!(start.parent.is_empty() && start.trace != TRACE && start.attributes["http.response.status_code"] == 201);

    let got = collector.got.lock().unwrap();
    assert_eq!(got.headers["authorization"], "Bearer it's,us");
    assert_eq!(got.headers["content-type"], "application/x-protobuf");
    let message = ExportTraceServiceRequest::decode(got.bodies[0].clone()).unwrap();
    let resource = attributes(&message.resource_spans[0].resource.as_ref().unwrap().attributes);
    assert_eq!((&resource["service.name"], &resource["a.b"]), (&json!("school"), &json!("c=")));
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_mark_is_followed_from_the_socket_to_the_disk_and_back() {
    let collector = Collector::start(Mood::Takes).await;
    let mut room = Room::on(collector.builder().start().await.unwrap(), 1).await;
    room.teacher.start(&room.class).await;
    let mut socket = room.teacher.dial().header("traceparent", parent("01")).open().await;
    let student = room.students[0].id.clone();
    socket.mark(&student, "present").await;
    let revision = socket.expect_mark(&student, "present").await;
    socket.mark("nobody-with-a-secret", "present").await;
    socket.expect_error("Student not enrolled in class").await;
    socket.send("made-up-by-a-client", &json!({})).await;
    socket.expect_error("Unknown event").await;
    socket.close().await;
    assert!(room.server.terminate().await.unwrap().success());

    let spans = collector.spans();
    let named = |name: &str| -> Vec<_> { spans.iter().filter(|span| span.span.name == name).collect() };
    let [opened] = named("GET /ws")[..] else { panic!("{spans:#?}") };
    assert_eq!((opened.trace.as_str(), opened.parent.as_str()), (TRACE, PARENT));
    assert_eq!(opened.attributes["http.response.status_code"], 101);

    let [done, refused] = named("ATTENDANCE_MARKED")[..] else { panic!("{spans:#?}") };
    for mark in [done, refused] {
        assert!(mark.parent.is_empty() && mark.trace != TRACE, "a trace of its own: {mark:?}");
        let [link] = &mark.span.links[..] else { panic!("{mark:?}") };
        assert_eq!((&link.trace_id, &link.span_id), (&opened.span.trace_id, &opened.span.span_id));
    }
    let class = &room.class.id;
    let expected = json!({"rollcall.class.id": class, "rollcall.revision": revision, "rollcall.outcome": "done"});
    assert_eq!(json!(done.attributes), expected);
    let refusal = json!({"rollcall.outcome": "refused", "rollcall.refusal": "Student not enrolled in class"});
    assert_eq!(json!(refused.attributes), refusal);
    assert_ne!(refused.span.status.as_ref().unwrap().code, Outcome::Error as i32, "that is the client's business");
    let [unknown] = named("message")[..] else { panic!("{spans:#?}") };
    assert_eq!(unknown.attributes["rollcall.refusal"], "Unknown event");

    let part = |name: &str, whole: &Known| -> Vec<_> {
        named(name).into_iter().filter(|span| span.is_part_of(whole)).collect()
    };
    let [commit] = part("store submit", done)[..] else { panic!("{spans:#?}") };
    assert_eq!(commit.span.kind, SpanKind::Client as i32);
    assert!(commit.span.end_time_unix_nano <= done.span.end_time_unix_nano);
    let [told] = part("fan out", done)[..] else { panic!("{spans:#?}") };
    assert_eq!(told.attributes["rollcall.revision"], revision);
    assert_eq!((part("store submit", refused).len(), part("fan out", refused).len()), (1, 0));
    // What is opened over HTTP is told as well.
    let [start] = named("POST /attendance/start")[..] else { panic!("{spans:#?}") };
    assert_eq!((part("store start", start).len(), part("fan out", start).len()), (1, 1));
}

#[tokio::test]
async fn what_is_not_sampled_is_not_sent() {
    let collector = Collector::start(Mood::Takes).await;
    let mut room = Room::on(collector.builder().start().await.unwrap(), 0).await;
    for (trace, counts) in [
        (parent("00"), false),
        (format!("00-{TRACE}-{PARENT}-01"), true),
        // Not a parent: the request begins a trace of its own.
        (format!("00-{}-{PARENT}-00", "0".repeat(32)), true),
        ("garbage".to_owned(), true),
    ] {
        let call = room.teacher.call(Method::GET, "/nowhere").header("traceparent", &trace);
        let id = call.send().await.header("x-request-id").to_owned();
        if counts {
            collector.span("it", |span| span.attributes.get("rollcall.request.id") == Some(&json!(id))).await;
        }
    }
    assert!(room.server.terminate().await.unwrap().success());
    let of_trace = collector.spans().into_iter().filter(|span| span.trace == TRACE).count();
    assert_eq!(of_trace, 1);

    for (sampler, argument, expected) in
        [("always_off", "1", 0), ("traceidratio", "0", 0), ("parentbased_always_off", "1", 1), ("always_on", "0", 2)]
    {
        let collector = Collector::start(Mood::Takes).await;
        let server = collector.builder().env("OTEL_TRACES_SAMPLER", sampler).env("OTEL_TRACES_SAMPLER_ARG", argument);
        let mut server = server.start().await.unwrap();
        let client = server.client();
        client.call(Method::GET, "/nowhere").header("traceparent", parent("01")).send().await;
        client.call(Method::GET, "/nowhere").header("traceparent", parent("00")).send().await;
        assert!(server.terminate().await.unwrap().success());
        assert_eq!(collector.spans().len(), expected, "{sampler}");
    }

    // Nobody chooses an id by which the ratio takes a request.
    let collector = Collector::start(Mood::Takes).await;
    let server =
        collector.builder().env("OTEL_TRACES_SAMPLER", "traceidratio").env("OTEL_TRACES_SAMPLER_ARG", "0.0001");
    let mut server = server.start().await.unwrap();
    let client = server.client();
    let chosen = "00-aaaaaaaaaaaaaaaa0000000000000001-00f067aa0ba902b7-01";
    for _ in 0..20 {
        client.call(Method::GET, "/nowhere").header("traceparent", chosen).send().await;
    }
    assert!(server.terminate().await.unwrap().success());
    assert!(collector.spans().len() < 3, "{}", collector.spans().len());
}

#[tokio::test]
async fn no_secret_and_no_person_is_in_a_span() {
    let collector = Collector::start(Mood::Takes).await;
    let mut room = Room::on(collector.builder().start().await.unwrap(), 1).await;
    let (teacher, student) = (room.teacher.clone(), room.students[0].clone());
    room.teacher.start(&room.class).await;
    let mut socket = teacher.socket().await;
    let mark = json!({"studentId": student.id, "status": "present", "reason": "had the flu", "requestId": "a name"});
    socket.send("ATTENDANCE_MARKED", &mark).await;
    socket.expect_mark(&student.id, "present").await;
    socket.send_text(format!(r#"{{"event": "{}", "data": {{"classId": "{}"}}}}"#, teacher.token, teacher.email)).await;
    socket.expect_error("Unknown event").await;
    socket.close().await;
    let wrong = json!({"email": teacher.email, "password": "a wrong secret"});
    room.client.post("/login", &wrong).await.refused(400, "Invalid email or password");
    room.client.log_in(&teacher.email, &teacher.password).await;
    room.client.get(&format!("/nowhere/{}?token={}", teacher.email, teacher.token)).await;
    let odd = room.client.call(Method::GET, &format!("/class/{}", teacher.token)).bearer(&teacher.token);
    odd.header("tracestate", format!("a={}", teacher.password)).header("user-agent", &teacher.email).send().await;
    assert!(room.server.terminate().await.unwrap().success());

    let bodies = collector.got.lock().unwrap().bodies.concat();
    assert!(bodies.len() > 1_000);
    let holds = |text: &str| bodies.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("/auth/login") || holds("/login"), "it can be found");
    for person in [&teacher, &student] {
        for part in person.token.split('.').chain([&*person.email, &*person.password, &*person.name]) {
            assert!(!holds(part), "{part:?} was sent");
        }
    }
    for text in ["wrong secret", "the flu", "a name", "Algebra", "127.0.0.1", "$2b$"] {
        assert!(!holds(text), "{text:?} was sent");
    }
}

#[tokio::test]
async fn logs_name_the_trace() {
    let collector = Collector::start(Mood::Takes).await;
    let server = collector.builder().env("LOG_FORMAT", "json").env("LOG_LEVEL", "debug");
    let mut server = server.start().await.unwrap();
    let call = server.client().call(Method::GET, "/nowhere").header("traceparent", parent("01"));
    let id = call.send().await.header("x-request-id").to_owned();
    assert!(server.terminate().await.unwrap().success());
    let lines: Vec<Value> = server.logs().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["span"]["id"] == id.as_str()).unwrap();
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(
        collector.spans().iter().find(|span| span.trace == TRACE).unwrap().id,
        line["span_id"].as_str().unwrap()
    );
    assert!(lines.iter().any(|line| line.get("trace_id").is_none()), "what is no request's has none");
}

#[tokio::test]
async fn a_collector_that_is_away_troubles_nobody_and_gets_all_when_it_returns() {
    let collector = Collector::start(Mood::Refuses(StatusCode::SERVICE_UNAVAILABLE)).await;
    let room = Room::on(collector.builder().start().await.unwrap(), 1).await;
    until("it was asked twice", || (collector.requests() > 1).then_some(())).await;
    room.server.logged("spans are not taken").await;
    // Gone altogether.
    let address = collector.address;
    collector.serving.abort();
    until("it is gone", || std::net::TcpStream::connect(address).is_err().then_some(())).await;
    room.teacher.get("/me").await.ok();

    let collector = Collector::at(address, Mood::Takes).await;
    collector.span("an early span", |span| span.span.name.ends_with("/signup")).await;
    collector.span("a late span", |span| span.span.name.ends_with("/me")).await;
    room.server.logged("takes spans again").await;
    assert_eq!(room.server.logs().matches("spans are not taken").count(), 1, "{}", room.server.logs());
    assert_eq!(figure(&room, "rollcall_spans_dropped_total").await, 0);
    assert!(figure(&room, "rollcall_spans_exported_total").await > 3);
}

#[tokio::test]
async fn a_collector_over_tls_has_to_be_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let authority = Authority::new().unwrap();
    std::fs::write(&ca, authority.pem()).unwrap();
    let pair = authority.issue(&["127.0.0.1"]).unwrap();
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let collector = Collector::over(Tls(listener, TlsAcceptor::from(Arc::new(config))), Mood::Takes);
    let builder = collector.builder().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://{}", collector.address));

    let trusting = builder.clone().env("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_string_lossy());
    let server = trusting.start().await.unwrap();
    server.client().get("/health/live").await.ok();
    collector.span("the request", |span| span.span.name == "GET /health/live").await;

    let doubting = builder.start().await.unwrap();
    doubting.client().get("/health/ready").await.ok();
    doubting.logged("spans are not taken").await;
    assert!(doubting.logs().contains("certificate"), "{}", doubting.logs());
    assert!(collector.spans().iter().all(|span| span.span.name != "GET /health/ready"));

    let nowhere = collector.builder().env("OTEL_EXPORTER_OTLP_CERTIFICATE", "nowhere.pem").start().await;
    assert!(nowhere.unwrap_err().to_string().contains("OTEL_EXPORTER_OTLP_CERTIFICATE nowhere.pem cannot be used"));
}

#[tokio::test]
async fn what_a_collector_refuses_is_counted() {
    let collector = Collector::start(Mood::Refuses(StatusCode::BAD_REQUEST)).await;
    let room = Room::on(collector.builder().start().await.unwrap(), 0).await;
    until("it was asked", || (collector.requests() > 0).then_some(())).await;
    room.server.logged("it answers 400").await;
    let refused = figure(&room, "rollcall_spans_dropped_total").await;
    assert!(refused > 0);
    *collector.mood.lock().unwrap() = Mood::TakesAllButOne;
    room.server.logged("takes spans again").await;
    assert_eq!(figure(&room, "rollcall_spans_dropped_total").await, refused + 1);
}

#[tokio::test]
async fn a_collector_that_hangs_keeps_the_server_from_nothing() {
    let collector = Collector::start(Mood::Hangs).await;
    let mut room = Room::on(collector.builder().start().await.unwrap(), 1).await;
    until("it was asked", || (collector.requests() > 0).then_some(())).await;
    // More than may wait.
    let mut raw = String::new();
    for _ in 0..9_000 {
        raw.push_str("GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    raw.push_str("GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answers = room.client.raw().await.exchange(raw).await;
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 9_001);
    assert!(figure(&room, "rollcall_spans_dropped_total").await > 0);
    let ordered = Instant::now();
    assert!(room.server.terminate().await.unwrap().success());
    assert!(ordered.elapsed() < Duration::from_secs(8), "{:?}", ordered.elapsed());
    assert!(room.server.logs().contains("did not take the last spans"), "{}", room.server.logs());
}
