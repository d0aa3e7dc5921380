//! A server whose sockets obey a few words, and clients that await what they expect.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use http::StatusCode;
use rollcall_realtime::{
    Connection, Frame, Handled, Handler, Hub, HubConfig, Incoming, Key, SocketConfig, Tier, Upgrade, close, refuse, run,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Long enough for a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(LONG, future).await.expect("in time")
}

/// Names a user or a topic.
pub(crate) fn key(number: u8) -> Key {
    [number; 12]
}

/// What the sockets of a server have in common.
pub(crate) struct Shared {
    pub(crate) hub: Arc<Hub>,
    pub(crate) config: SocketConfig,
    /// Commands `gate` and `block` pass one permit each.
    pub(crate) gate: Semaphore,
    /// Commands that wait at the gate, and the most that ever did.
    pub(crate) waiting: AtomicUsize,
    pub(crate) most_waiting: AtomicUsize,
    /// Actors that panicked.
    pub(crate) panics: AtomicUsize,
}

impl Shared {
    async fn pass_gate(&self) {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_waiting.fetch_max(waiting, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn new() -> Self {
        Self::with(HubConfig::default(), SocketConfig::default()).await
    }

    pub(crate) async fn with(hub: HubConfig, config: SocketConfig) -> Self {
        let shared = Arc::new(Shared {
            hub: Hub::new(hub),
            config,
            gate: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            most_waiting: AtomicUsize::new(0),
            panics: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/ws", get(socket)).with_state(Arc::clone(&shared));
        // As a server of small frames has to: otherwise a second frame waits for the first one's acknowledgement.
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { shared, address }
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.shared.hub
    }

    /// Connects a user; `topics` such as `1f`, `2r`, `3rh`: number, tier, held.
    pub(crate) async fn connect(&self, user: u8, topics: &str) -> Client {
        let url = format!("ws://{}/ws?user={user}&topics={topics}", self.address);
        let (socket, response) = soon(connect_async(url)).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        Client { socket }
    }

    /// The user's only connection.
    pub(crate) fn connection(&self, user: u8) -> Connection {
        let [connection] = self.hub().connections(key(user)).try_into().unwrap();
        connection
    }

    pub(crate) fn publish(&self, topic: u8, version: u64, text: &str) {
        self.hub().publish(key(topic), version, Some(Frame::from(text).into()));
    }
}

async fn socket(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    mut upgrade: Upgrade,
) -> Response {
    let protocol = upgrade.requested_protocols().next().cloned();
    if let Some(protocol) = protocol {
        upgrade.set_selected_protocol(protocol);
    }
    let config = shared.config.clone();
    let Some(user) = query.get("user").map(|user| key(user.parse().unwrap())) else {
        return upgrade.on_upgrade(|socket| refuse(socket, Frame::from("who are you?"), close::POLICY, config));
    };
    let Ok(registration) = shared.hub.register(user, 0) else { return StatusCode::TOO_MANY_REQUESTS.into_response() };
    let topics = query["topics"].split(',').filter(|topic| !topic.is_empty()).map(|topic| {
        let number: String = topic.chars().take_while(char::is_ascii_digit).collect();
        let tier = if topic.contains('f') { Tier::First } else { Tier::Rest };
        (key(number.parse().unwrap()), tier, topic.contains('h'))
    });
    assert!(registration.join_all(registration.generation(), topics));
    upgrade.on_upgrade(async move |socket| {
        let actor = run(socket, registration, Arc::new(Obedient { shared: Arc::clone(&shared) }), config);
        if AssertUnwindSafe(actor).catch_unwind().await.is_err() {
            shared.panics.fetch_add(1, Ordering::SeqCst);
        }
    })
}

/// Does what it is told.
struct Obedient {
    shared: Arc<Shared>,
}

impl Handler for Obedient {
    fn handle(self: Arc<Self>, connection: Connection, incoming: Incoming) -> BoxFuture<'static, Handled> {
        let Incoming::Text(text) = incoming else { return reply("binary") };
        let (word, rest) = text.split_once(' ').unwrap_or((text.as_str(), ""));
        let rest = rest.to_owned();
        match word {
            "echo" => reply(rest),
            "silent" => async { Handled::Reply(async { None }.boxed()) }.boxed(),
            "gate" => async move {
                let answer = async move {
                    self.shared.pass_gate().await;
                    Some(Frame::from(rest))
                };
                Handled::Reply(answer.boxed())
            }
            .boxed(),
            "block" => async move {
                self.shared.pass_gate().await;
                Handled::Reply(async { Some(Frame::from(rest)) }.boxed())
            }
            .boxed(),
            "close" => async { Handled::Close(close::FLOODING) }.boxed(),
            // `reached topic version`
            "reached" => async move {
                let answer = async move {
                    let (topic, version) = rest.split_once(' ').unwrap();
                    let (topic, version) = (key(topic.parse().unwrap()), version.parse().unwrap());
                    self.shared.hub.reached(&connection, topic, version).await;
                    Some(Frame::from(format!("reached {version}")))
                };
                Handled::Reply(answer.boxed())
            }
            .boxed(),
            _ => reply("what?"),
        }
    }
}

fn reply(text: impl Into<String>) -> BoxFuture<'static, Handled> {
    let frame = Frame::from(text.into());
    async { Handled::Reply(async { Some(frame) }.boxed()) }.boxed()
}

pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    pub(crate) async fn send(&mut self, text: &str) {
        self.message(Message::text(text)).await;
    }

    pub(crate) async fn message(&mut self, message: Message) {
        soon(self.socket.send(message)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Message {
        soon(self.socket.next()).await.expect("the socket is open").unwrap()
    }

    /// The next text; pings pass.
    pub(crate) async fn text(&mut self) -> String {
        loop {
            match self.next().await {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) => {}
                other => panic!("a text was expected: {other:?}"),
            }
        }
    }

    pub(crate) async fn expect(&mut self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.text().await, *text);
        }
    }

    /// The code with which the server closes, after any number of other messages, and the clean end that follows.
    pub(crate) async fn closed(&mut self) -> u16 {
        let code = loop {
            if let Message::Close(frame) = self.next().await {
                break frame.expect("a reason").code.into();
            }
        };
        while let Some(message) = soon(self.socket.next()).await {
            message.expect("a clean end");
        }
        code
    }
}
