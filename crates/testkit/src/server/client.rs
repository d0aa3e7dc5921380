//! HTTP: calls, their answers, and people who make them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::Context as _;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::PATIENCE;
use super::socket::{Dial, Socket};
use super::tls::{Stream, Trust, Way};

/// The password of everybody whom [`Client::teacher`] and [`Client::student`] make.
const PASSWORD: &str = "correct horse";

/// Makes calls to one base address.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
    way: Way,
    /// All replicas of which people can be, and how many people there are.
    replicas: Arc<(Vec<Arc<str>>, AtomicUsize)>,
}

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8000`.
    pub fn new(base: &str) -> Self {
        Self::by(base, Way::default())
    }

    /// A client of the server at `base`, such as `https://127.0.0.1:8000`.
    pub fn trusting(base: &str, trust: &Trust) -> Self {
        Self::by(base, Way { trust: Some(trust.clone()), at: None })
    }

    /// The same for a name that is found nowhere: the server is at this address.
    pub fn trusting_at(base: &str, trust: &Trust, address: SocketAddr) -> Self {
        Self::by(base, Way { trust: Some(trust.clone()), at: Some(address) })
    }

    fn by(base: &str, way: Way) -> Self {
        let base: Arc<str> = base.trim_end_matches('/').into();
        let trust = way.trust.clone().unwrap_or_else(Trust::nobody);
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .timeout(PATIENCE)
            .tls_backend_preconfigured(trust.config());
        if let Some(address) = way.at {
            let authority = authority(&base);
            builder = builder.resolve(authority.rsplit_once(':').map_or(authority, |(host, _)| host), address);
        }
        let http = builder.build().expect("a client that finds its roots itself needs nothing that could fail");
        Self { http, way, replicas: Arc::new((vec![Arc::clone(&base)], AtomicUsize::new(0))), base }
    }

    /// The same client, whose people are at these replicas too, in turn.
    #[must_use]
    pub fn with_replicas(self, others: impl IntoIterator<Item = String>) -> Self {
        let bases = std::iter::once(Arc::clone(&self.base)).chain(others.into_iter().map(Arc::from)).collect();
        Self { replicas: Arc::new((bases, AtomicUsize::new(0))), ..self }
    }

    /// A client of the next replica.
    fn next(&self) -> Self {
        let (bases, people) = &*self.replicas;
        let base = &bases[people.fetch_add(1, Ordering::Relaxed) % bases.len()];
        Self { base: Arc::clone(base), ..self.clone() }
    }

    /// The base address, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The address and port.
    pub fn authority(&self) -> &str {
        authority(&self.base)
    }

    /// A call to be filled in.
    pub fn call(&self, method: Method, path: &str) -> Call {
        let what = format!("{method} {path}");
        Call { request: self.http.request(method, format!("{}{path}", self.base)), what }
    }

    /// `GET path`, without a token.
    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path).send().await
    }

    /// `POST path` with a JSON body, without a token.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path).json(body).send().await
    }

    /// Signs up a teacher of this name under an address that nobody else has, and logs in.
    pub async fn teacher(&self, name: &str) -> Person {
        self.person(name, "teacher").await
    }

    /// Signs up a student of this name under an address that nobody else has, and logs in.
    pub async fn student(&self, name: &str) -> Person {
        self.person(name, "student").await
    }

    async fn person(&self, name: &str, role: &str) -> Person {
        let email = unused_email();
        let body = json!({"name": name, "email": email, "password": PASSWORD, "role": role});
        let replica = self.next();
        let data = replica.post("/signup", &body).await.data(201);
        let person = replica.log_in(&email, PASSWORD).await;
        Person { id: text(&data, "_id"), name: name.to_owned(), ..person }
    }

    /// Logs somebody in who has an account. The answer does not tell the id and the name; they stay empty.
    pub async fn log_in(&self, email: &str, password: &str) -> Person {
        let body = self.post("/login", &json!({"email": email, "password": password})).await.json(200);
        Person {
            client: self.clone(),
            id: String::new(),
            name: String::new(),
            email: email.to_owned(),
            password: password.to_owned(),
            token: text(&body, "token"),
        }
    }

    /// Opens a socket for this token.
    pub fn dial(&self, token: &str) -> Dial {
        Dial::new(self.authority(), self.way.clone(), token)
    }

    /// A connection for bytes that no HTTP library would send.
    pub async fn raw(&self) -> RawHttp {
        let stream = self.way.connect(self.authority(), None).await;
        RawHttp { stream: stream.unwrap_or_else(|error| panic!("cannot connect to {}: {error}", self.base)) }
    }
}

/// The address and port of a base.
fn authority(base: &str) -> &str {
    base.split_once("://").map_or(base, |(_, authority)| authority)
}

/// An address that no other person of this test run has.
pub(super) fn unused_email() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("p{}-{}@example.org", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn text(object: &Value, member: &str) -> String {
    match object[member].as_str() {
        Some(text) => text.to_owned(),
        None => panic!("no text {member:?} in {object}"),
    }
}

/// A call that has not been made yet.
#[must_use]
#[derive(Debug)]
pub struct Call {
    request: reqwest::RequestBuilder,
    what: String,
}

impl Call {
    /// Sends a header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.request = self.request.header(name, value.as_ref());
        self
    }

    /// Sends the token in its usual form.
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// Sends a JSON body.
    pub fn json(mut self, body: &Value) -> Self {
        self.request = self.request.json(body);
        self
    }

    /// Sends a body of any kind.
    pub fn body(mut self, body: impl Into<reqwest::Body>) -> Self {
        self.request = self.request.body(body);
        self
    }

    /// Makes the call; fails when no answer came.
    pub async fn attempt(self) -> reqwest::Result<Answer> {
        let response = self.request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let path = response.url().path().to_owned();
        Ok(Answer { what: self.what, path, status, headers, body: response.bytes().await?.to_vec() })
    }

    /// Makes the call.
    pub async fn send(self) -> Answer {
        let what = self.what.clone();
        self.attempt().await.unwrap_or_else(|error| panic!("{what} got no answer: {error:?}"))
    }
}

/// What came back.
pub struct Answer {
    what: String,
    /// The path that answered, after redirections.
    pub path: String,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Vec<u8>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.what, self.status, String::from_utf8_lossy(&self.body))
    }
}

/// What a refusal carried beside its status and text.
#[derive(Debug)]
pub struct Refused {
    /// The fields named in `details`, in their order; empty without details.
    pub fields: Vec<String>,
    /// The headers.
    pub headers: HeaderMap,
}

impl Answer {
    /// A header's text, empty if it did not come.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, of an answer with this status.
    #[track_caller]
    pub fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.header("content-type").starts_with("application/json"), "{self:?} is no JSON by its header");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{self:?} is no JSON: {error}"))
    }

    /// The whole envelope of a success with this status.
    #[track_caller]
    pub fn envelope(&self, status: u16) -> Value {
        let body = self.json(status);
        assert_eq!(body["success"], true, "{self:?}");
        assert!(body.get("data").is_some() && body.get("error").is_none(), "{self:?}");
        body
    }

    /// The data of a success with this status.
    #[track_caller]
    pub fn data(&self, status: u16) -> Value {
        self.envelope(status)["data"].take()
    }

    /// The data of a success with status 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        self.data(200)
    }

    /// Asserts a refusal with this status and exactly this text.
    #[track_caller]
    pub fn refused(&self, status: u16, error: &str) -> Refused {
        let body = self.json(status);
        assert_eq!(body["success"], false, "{self:?}");
        assert_eq!(body["error"], error, "{self:?}");
        assert!(body.get("data").is_none(), "{self:?}");
        let details = body["details"].as_array().cloned().unwrap_or_default();
        let fields = details.iter().map(|detail| {
            assert!(detail["message"].is_string(), "{self:?}");
            text(detail, "field")
        });
        Refused { fields: fields.collect(), headers: self.headers.clone() }
    }
}

/// Somebody with an account, signed in.
#[derive(Clone, Debug)]
pub struct Person {
    client: Client,
    /// The account's id.
    pub id: String,
    /// The person's name.
    pub name: String,
    /// The address.
    pub email: String,
    /// The password.
    pub password: String,
    /// The token of the last login.
    pub token: String,
}

impl Person {
    /// The same person at another server, such as the same one started again on another port.
    #[must_use]
    pub fn at(&self, client: &Client) -> Self {
        Self { client: client.clone(), ..self.clone() }
    }

    /// The client that the person's calls go through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A call with the person's token.
    pub fn call(&self, method: Method, path: &str) -> Call {
        self.client.call(method, path).bearer(&self.token)
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path).send().await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path).json(body).send().await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PATCH, path).json(body).send().await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path).send().await
    }

    /// Makes a class of this name and enrols the students in their order.
    pub async fn class(&self, name: &str, students: &[&Self]) -> Class {
        let data = self.post("/class", &json!({"className": name})).await.data(201);
        let class = Class { id: text(&data, "_id") };
        for student in students {
            self.enrol(&class, student).await;
        }
        class
    }

    /// Makes a class, enrols the students and starts a session.
    pub async fn open_class(&self, name: &str, students: &[&Self]) -> Class {
        let class = self.class(name, students).await;
        self.start(&class).await;
        class
    }

    /// Enrols a student; answers with the class.
    pub async fn enrol(&self, class: &Class, student: &Self) -> Value {
        self.post(&class.path("/add-student"), &json!({"studentId": student.id})).await.ok()
    }

    /// Starts a session of the class; answers with what the server says of it.
    pub async fn start(&self, class: &Class) -> Value {
        self.post("/attendance/start", &json!({"classId": class.id})).await.ok()
    }

    /// A socket that may still be given options.
    pub fn dial(&self) -> Dial {
        self.client.dial(&self.token)
    }

    /// An open socket.
    pub async fn socket(&self) -> Socket {
        self.dial().open().await
    }
}

/// A class, by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The id.
    pub id: String,
}

impl Class {
    /// The path of the class, with `rest` behind it.
    pub fn path(&self, rest: &str) -> String {
        format!("/class/{}{rest}", self.id)
    }
}

/// A bare connection.
#[derive(Debug)]
pub struct RawHttp {
    stream: Stream,
}

impl RawHttp {
    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let sent = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        sent.await.context("the connection took no more")
    }

    /// All that comes until the other side closes.
    pub async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A reset ends the connection as well as a close does.
        assert!(read.is_ok(), "still open, after {text:?}");
        text
    }

    /// All that comes until the other side closes as it should: over TLS, with a word of goodbye.
    pub async fn whole_rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(matches!(read, Ok(Ok(_))), "{read:?} after {text:?}");
        text
    }

    /// Sends a whole request with `Connection: close` in it, and gives what comes back.
    pub async fn exchange(mut self, request: impl AsRef<[u8]>) -> String {
        match self.send(request).await {
            Ok(()) => self.rest().await,
            Err(error) => panic!("{error}"),
        }
    }
}
