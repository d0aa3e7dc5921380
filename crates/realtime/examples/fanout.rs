//! How fast frames reach many sockets, and what an idle socket costs, beside a bare loop of tokio-tungstenite that
//! writes the same frames.
//!
//! `cargo run --release -p rollcall-realtime --example fanout -- 5000`
//!
//! The listeners are a process of their own that counts bytes and no more. It opens one file for each socket, as does
//! this process: 5,000 sockets need `ulimit -n` above that.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::cell::RefCell;
use std::error::Error;
use std::future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt};
use rollcall_realtime::{
    Connection, Frame, Handled, Handler, Hub, HubConfig, Incoming, SocketConfig, Tier, Upgrade, run,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const TOPIC: [u8; 12] = [7; 12];
const BURST: usize = 50;
const TEXT: &str = r#"{"event":"ATTENDANCE_MARKED","data":{"studentId":"665f1c2ab4d3e5f60718293a","status":"present","classId":"665f1c2ab4d3e5f607182930","revision":123}}"#;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, control, target, count] = &arguments[..]
        && role == "listen"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(listen(control.parse()?, target.parse()?, count.parse()?));
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        // Memory that was used before and is free would hide what sockets need: one count for each run.
        let count = arguments.get(1).map_or(Ok(5_000), |count| count.parse())?;
        tokio::spawn(compare(count)).await?
    })
}

async fn compare(count: usize) -> Result<()> {
    let wire = Frame::from(TEXT);
    let length = TEXT.len() + 4;
    println!("{count} sockets, frames of {length} bytes");

    let (bare, hub) = (Bare::new(count).await?, Hubbed::new(count).await?);
    let (mut bare, mut hub) = (bare, hub);
    // Alternating, so that what else the machine does falls on both.
    let rounds = 200_000 / count;
    let mut figures = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for part in 0..10 {
        for _ in 0..rounds / 10 {
            figures[0].push(bare.listeners.time(count * length, bare.sockets.one()).await?);
        }
        for _ in 0..rounds / 10 {
            figures[1].push(hub.listeners.time(count * length, hub.publisher.publish(&wire, 1)).await?);
        }
        if part % 2 == 0 {
            let burst = count * length * BURST;
            figures[2].push(bare.listeners.time(burst, bare.sockets.many()).await?);
            figures[3].push(hub.listeners.time(burst, hub.publisher.publish(&wire, BURST)).await?);
        }
    }
    let [bare_one, hub_one, bare_many, hub_many] = figures.map(|times| Figures::new(times, count));
    println!("  one by one   bare {bare_one}\n               hub  {hub_one}  ({:.0} %)", hub_one.percent_of(&bare_one));
    println!("  {BURST} at once   bare {}\n               hub  {}", bare_many.times(BURST), hub_many.times(BURST));
    println!("  idle         {} bytes a socket, of which the actor's future {}", hub.memory, hub.future);
    Ok(())
}

/// The times of rounds in which everybody is sent something once.
struct Figures {
    rate: f64,
    median: Duration,
    late: Duration,
}

impl Figures {
    fn new(mut times: Vec<Duration>, count: usize) -> Self {
        times.sort_unstable();
        let all: Duration = times.iter().sum();
        Self {
            rate: (times.len() * count) as f64 / all.as_secs_f64(),
            median: times[times.len() / 2],
            late: times[times.len() * 99 / 100],
        }
    }

    fn times(self, frames: usize) -> Self {
        Self { rate: self.rate * frames as f64, ..self }
    }

    fn percent_of(&self, other: &Self) -> f64 {
        100.0 * self.rate / other.rate
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>9.0} deliveries/s, until the last {:?}, 99th percentile {:?}", self.rate, self.median, self.late)
    }
}

/// Sockets of tokio-tungstenite and a loop over them.
struct Bare {
    listeners: Listeners,
    sockets: Sockets,
}

struct Sockets(Vec<WebSocketStream<TcpStream>>);

impl Bare {
    async fn new(count: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut sockets = Vec::new();
            while sockets.len() < count {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                sockets.push(tokio_tungstenite::accept_async(stream).await?);
            }
            Result::Ok(sockets)
        });
        let listeners = Listeners::new(address, count).await?;
        Ok(Self { listeners, sockets: Sockets(accepting.await??) })
    }
}

impl Sockets {
    async fn one(&mut self) {
        let message = Message::text(TEXT);
        for socket in &mut self.0 {
            socket.send(message.clone()).await.expect("the listener is there");
        }
    }

    async fn many(&mut self) {
        let message = Message::text(TEXT);
        for socket in &mut self.0 {
            for _ in 0..BURST {
                socket.feed(message.clone()).await.expect("the listener is there");
            }
            socket.flush().await.expect("the listener is there");
        }
    }
}

/// Sockets behind axum and the hub: a teacher's, and the rest.
struct Hubbed {
    listeners: Listeners,
    publisher: Publisher,
    memory: usize,
    future: u64,
}

struct Publisher {
    hub: Arc<Hub>,
    version: u64,
}

struct Served {
    hub: Arc<Hub>,
    future: AtomicU64,
}

impl Hubbed {
    async fn new(count: usize) -> Result<Self> {
        let hub = Hub::new(HubConfig { max_per_user: count, ..HubConfig::default() });
        let served = Arc::new(Served { hub: Arc::clone(&hub), future: AtomicU64::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/", get(socket)).with_state(Arc::clone(&served));
        tokio::spawn(async move {
            use axum::serve::ListenerExt;
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a TCP socket"));
            axum::serve(listener, router).await
        });
        let before = resident()?;
        let listeners = Listeners::new(address, count).await?;
        let memory = resident()?.saturating_sub(before) / count;
        let publisher = Publisher { hub, version: 0 };
        Ok(Self { listeners, publisher, memory, future: served.future.load(Ordering::Relaxed) })
    }
}

impl Publisher {
    fn publish(&mut self, frame: &Frame, times: usize) -> future::Ready<()> {
        let items = (0..times).map(|_| {
            self.version += 1;
            (TOPIC, self.version, Some(frame.clone().into()))
        });
        self.hub.publish_batch(items);
        future::ready(())
    }
}

async fn socket(State(served): State<Arc<Served>>, upgrade: Upgrade) -> Response {
    let registration = served.hub.register([0; 12], 0).expect("as many as are asked for");
    let tier = if served.hub.count() == 1 { Tier::First } else { Tier::Rest };
    assert!(registration.join_all(registration.generation(), [(TOPIC, tier, false)]));
    let hour = Duration::from_hours(1);
    let config = SocketConfig { ping_every: hour, idle_timeout: 2 * hour, ..SocketConfig::default() };
    upgrade.on_upgrade(move |socket| {
        let actor = run(socket, registration, Arc::new(Deaf), config);
        served.future.store(size_of_val(&actor) as u64, Ordering::Relaxed);
        actor
    })
}

struct Deaf;

impl Handler for Deaf {
    fn handle(self: Arc<Self>, _: Connection, _: Incoming) -> BoxFuture<'static, Handled> {
        async { Handled::Reply(async { None }.boxed()) }.boxed()
    }
}

/// Bytes of memory that this process has.
fn resident() -> Result<usize> {
    let pages: usize = std::fs::read_to_string("/proc/self/statm")?.split(' ').nth(1).ok_or("no statm")?.parse()?;
    Ok(pages * 4096)
}

/// The process that listens, as seen from here.
struct Listeners {
    process: Child,
    control: TcpStream,
}

impl Listeners {
    async fn new(target: SocketAddr, count: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let arguments =
            ["listen".to_owned(), listener.local_addr()?.to_string(), target.to_string(), count.to_string()];
        let process = Command::new(std::env::current_exe()?).args(arguments).spawn()?;
        let (mut control, _) = listener.accept().await?;
        control.set_nodelay(true)?;
        control.read_u8().await?;
        Ok(Self { process, control })
    }

    /// How long it takes from the beginning of `sending` until all these bytes were read.
    async fn time(&mut self, bytes: usize, sending: impl Future<Output = ()>) -> Result<Duration> {
        self.control.write_u64(bytes as u64).await?;
        self.control.read_u8().await?;
        let start = Instant::now();
        sending.await;
        tokio::time::timeout(Duration::from_mins(1), self.control.read_u8()).await??;
        Ok(start.elapsed())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

thread_local! {
    static BYTES: RefCell<[u8; 16 * 1024]> = const { RefCell::new([0; 16 * 1024]) };
}

/// The process that listens: opens the sockets, then says whenever the bytes of a round have come.
async fn listen(control: SocketAddr, target: SocketAddr, count: usize) -> Result<()> {
    let mut control = TcpStream::connect(control).await?;
    control.set_nodelay(true)?;
    let missing = Arc::new(AtomicU64::new(u64::MAX));
    let done = Arc::new(tokio::sync::Notify::new());
    for _ in 0..count {
        let mut stream = TcpStream::connect(target).await?;
        let request = "GET / HTTP/1.1\r\nHost: rollcall\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let (missing, done) = (Arc::clone(&missing), Arc::clone(&done));
        tokio::spawn(async move {
            let mut read = async || {
                future::poll_fn(|context| {
                    BYTES.with_borrow_mut(|bytes| {
                        let mut buffer = ReadBuf::new(bytes);
                        Pin::new(&mut stream).poll_read(context, &mut buffer).map_ok(|()| buffer.filled().len())
                    })
                })
                .await
            };
            while let Ok(count @ 1..) = read().await {
                if missing.fetch_sub(count as u64, Ordering::Relaxed) == count as u64 {
                    done.notify_one();
                }
            }
        });
    }
    control.write_u8(0).await?;
    loop {
        missing.store(control.read_u64().await?, Ordering::Relaxed);
        control.write_u8(0).await?;
        done.notified().await;
        control.write_u8(0).await?;
    }
}
