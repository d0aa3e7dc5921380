//! WebSocket: a client that says what it wants and what it does not want to hear.

use std::fmt;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::PATIENCE;
use super::client::Class;
use super::tls::{Stream, Way};

/// A socket that is to be opened.
#[must_use]
#[derive(Clone, Debug)]
pub struct Dial {
    authority: String,
    way: Way,
    query: String,
    headers: Vec<(&'static str, String)>,
    receive_buffer: Option<u32>,
}

impl Dial {
    pub(super) fn new(authority: &str, way: Way, token: &str) -> Self {
        Self {
            authority: authority.to_owned(),
            way,
            query: format!("?token={token}"),
            headers: Vec::new(),
            receive_buffer: None,
        }
    }

    /// Sends the token as a subprotocol instead of in the address.
    pub fn by_protocol(mut self) -> Self {
        let token = self.query.trim_start_matches("?token=").to_owned();
        self.query.clear();
        self.header("sec-websocket-protocol", format!("bearer, {token}"))
    }

    /// Asks for what happened in the class after this revision.
    pub fn since(self, class: &Class, revision: u64) -> Self {
        let separator = if self.query.is_empty() { '?' } else { '&' };
        let query = format!("{}{separator}since={}:{revision}", self.query, class.id);
        self.query(&query)
    }

    /// Says that a page of this origin opens the socket, as a browser would.
    pub fn origin(self, origin: &str) -> Self {
        self.header("origin", origin)
    }

    /// Replaces the whole query, which begins with `?` unless it is empty.
    pub fn query(mut self, query: &str) -> Self {
        query.clone_into(&mut self.query);
        self
    }

    /// Has the operating system keep little of what comes and is not read.
    pub fn small_buffers(mut self) -> Self {
        self.receive_buffer = Some(4096);
        self
    }

    /// Sends a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Opens the socket.
    pub async fn open(self) -> Socket {
        match self.attempt().await {
            Ok(socket) => socket,
            Err(error) => panic!("no socket: {error}"),
        }
    }

    /// Opens the socket; fails when the server does not take the upgrade or is not there.
    pub async fn attempt(self) -> tungstenite::Result<Socket> {
        let scheme = if self.way.trust.is_some() { "wss" } else { "ws" };
        let mut request = format!("{scheme}://{}/ws{}", self.authority, self.query).into_client_request()?;
        for (name, value) in self.headers {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(&value)?);
        }
        let connect = async {
            let stream = self.way.connect(&self.authority, self.receive_buffer).await?;
            // Thousands of these fit into one process.
            let config = WebSocketConfig::default().read_buffer_size(4096);
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await
        };
        let (stream, response) = timeout(PATIENCE, connect).await.expect("an answer to the upgrade in time")?;
        let protocol = response.headers().get("sec-websocket-protocol");
        let protocol = protocol.and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Socket { stream, protocol, fences: 0 })
    }
}

/// One frame from the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its event.
    pub event: String,
    /// Its data.
    pub data: Value,
}

impl Frame {
    fn parse(text: &str) -> Self {
        let mut frame: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("the frame {text:?} is no JSON: {error}"));
        match (frame["event"].as_str().map(str::to_owned), frame["data"].take()) {
            (Some(event), data @ Value::Object(_)) => Self { event, data },
            _ => panic!("the frame {text:?} has no event and data"),
        }
    }

    /// The class's revision that the frame carries.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        revision(&self.data)
    }
}

/// The revision that a frame's data carries.
#[track_caller]
fn revision(data: &Value) -> u64 {
    match data["revision"].as_u64() {
        Some(revision) => revision,
        None => panic!("no revision in {data}"),
    }
}

/// How a socket came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The close code; `None` when the connection broke or the close frame had none.
    pub code: Option<u16>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "closed with {code}"),
            None => f.write_str("the connection broke"),
        }
    }
}

/// An open socket.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<Stream>,
    /// The subprotocol that the server chose.
    pub protocol: Option<String>,
    fences: u32,
}

impl Socket {
    /// Sends an event.
    pub async fn send(&mut self, event: &str, data: &Value) {
        self.queue(event, data).await;
        self.flush().await;
    }

    /// Sends an event; fails when the connection is gone.
    pub async fn try_send(&mut self, event: &str, data: &Value) -> tungstenite::Result<()> {
        self.stream.send(command(event, data)).await
    }

    /// Has an event ready for the next [`Socket::flush`], so that many go out in one write.
    pub async fn queue(&mut self, event: &str, data: &Value) {
        let fed = self.stream.feed(command(event, data)).await;
        fed.unwrap_or_else(|error| panic!("{event} cannot be sent: {error}"));
    }

    /// Sends what is queued.
    pub async fn flush(&mut self) {
        self.stream.flush().await.unwrap_or_else(|error| panic!("nothing can be sent: {error}"));
    }

    /// Sends a text frame as it is.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.send_message(Message::text(text.into())).await;
    }

    /// Sends a message of any kind. A connection that the server has closed meanwhile takes it in silence.
    pub async fn send_message(&mut self, message: Message) {
        let _ = self.stream.send(message).await;
    }

    /// Marks a student.
    pub async fn mark(&mut self, student_id: &str, status: &str) {
        self.send("ATTENDANCE_MARKED", &json!({"studentId": student_id, "status": status})).await;
    }

    /// The next frame, or how the socket ended.
    pub async fn try_next(&mut self) -> Result<Frame, Ended> {
        let message = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    message => return message,
                }
            }
        };
        // Pings keep a socket alive, but are not what is waited for.
        match timeout(PATIENCE, message).await.expect("a frame in time") {
            Some(Ok(Message::Text(text))) => Ok(Frame::parse(&text)),
            Some(Ok(Message::Close(frame))) => Err(Ended { code: frame.map(|frame| frame.code.into()) }),
            Some(Ok(other)) => panic!("a frame of another kind: {other:?}"),
            Some(Err(_)) | None => Err(Ended { code: None }),
        }
    }

    /// The next frame.
    pub async fn next(&mut self) -> Frame {
        self.try_next().await.unwrap_or_else(|ended| panic!("no frame: {ended}"))
    }

    /// The data of the next frame, which must be this event.
    pub async fn expect(&mut self, event: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame.event, event, "{}", frame.data);
        frame.data
    }

    /// Asserts that the next frame tells the sender alone of this mistake; gives its data.
    pub async fn expect_error(&mut self, message: &str) -> Value {
        let data = self.expect("ERROR").await;
        assert_eq!(data["message"], message, "{data}");
        data
    }

    /// Asserts that the next frame marks this student so; gives the revision.
    pub async fn expect_mark(&mut self, student_id: &str, status: &str) -> u64 {
        let data = self.expect("ATTENDANCE_MARKED").await;
        assert_eq!((&data["studentId"], &data["status"]), (&json!(student_id), &json!(status)), "{data}");
        revision(&data)
    }

    /// Asserts that nothing waits for this socket: the next frame answers a question that is asked now.
    ///
    /// What the server sends behind its own answer is not seen; so first wait, on a socket that does hear, for an
    /// event later than the one that must not be heard here.
    pub async fn expect_silence(&mut self) {
        self.fences += 1;
        let fence = format!("FENCE_{}", self.fences);
        self.send(&fence, &json!({"requestId": fence})).await;
        let frame = self.next().await;
        let answered = frame.event == "ERROR" && frame.data["message"] == "Unknown event";
        assert!(answered, "heard {frame:?} where silence was expected");
    }

    /// How the socket ends, when nothing more is sent on it.
    pub async fn expect_end(&mut self) -> Ended {
        match self.try_next().await {
            Err(ended) => ended,
            Ok(frame) => panic!("{frame:?} instead of the end"),
        }
    }

    /// Asserts that the server closes with this code now.
    pub async fn expect_close(&mut self, code: u16) {
        assert_eq!(self.expect_end().await.code, Some(code));
    }

    /// Reads, whatever comes, until the socket ends; gives the frames and how it ended.
    pub async fn drain(&mut self) -> (Vec<Frame>, Ended) {
        let mut frames = Vec::new();
        loop {
            match self.try_next().await {
                Ok(frame) => frames.push(frame),
                Err(ended) => return (frames, ended),
            }
        }
    }

    /// Says goodbye and waits for the server's.
    pub async fn close(mut self) {
        let _ = self.stream.close(None).await;
        self.drain().await;
    }

    /// The bare connection below, for bytes that no WebSocket library would send.
    pub fn connection(&mut self) -> &mut Stream {
        self.stream.get_mut()
    }
}

fn command(event: &str, data: &Value) -> Message {
    Message::text(json!({"event": event, "data": data}).to_string())
}
