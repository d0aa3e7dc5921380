//! One connection, whatever it came over: HTTP/1.1 with bounds on how long a peer may hold it.
//!
//! Listening is [`crate::listener`]'s; here a stream of bytes, plain or out of TLS, becomes requests to a router.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rollcall_api::Secure;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long the head of a request may take from its first byte, or a new connection's from the start.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may idle between requests: longer than reverse proxies keep theirs, so that these close first.
const IDLE: Duration = Duration::from_secs(75);
/// How long a peer may take nothing of what is sent to it.
const STALLED: Duration = Duration::from_secs(30);
/// How long, when the server stops, a connection may still take the end of an answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long, and how much, of a request that was answered before its end is still read and thrown away.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;
/// How large a request's head may be.
const MAX_HEAD: usize = 16 * 1024;

/// Serves one connection until it ends; a WebSocket lives on by itself. After `stop`, what is being answered is finished
/// and nothing more is taken. `permit` is held until the stream is closed.
pub(crate) async fn serve<S>(
    stream: S,
    peer: SocketAddr,
    router: Router,
    secure: Arc<Secure>,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A dual-stack listener shows IPv4 peers as IPv6; limits and logs go by the address itself.
    let peer = ConnectInfo(SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    let busy = Busy::default();
    let unread = Unread::default();
    let stream = Bounded::new(stream, busy.clone(), unread.clone(), permit);
    let answering = busy.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let guard = busy.begin();
        request.extensions_mut().insert(peer);
        let transport = secure.transport(peer.0.ip(), request.headers());
        let cut_short = unread.clone();
        let response = router.clone().oneshot(request.map(|body| Asked::new(body, unread.clone())));
        async move {
            let mut response: Response<Body> = response.await?;
            Secure::add(response.headers_mut(), transport);
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                guard.never_ends();
                return Ok(response.map(|body| Answer { body, _guard: None }));
            }
            // Said, so that the peer sends no other request behind the rest of this one.
            if cut_short.0.load(Ordering::Relaxed) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response.map(|body| Answer { body, _guard: Some(guard) }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut ended = stop.run_until_cancelled(connection.as_mut()).await;
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        // Who has sent half a request, or takes no answer, is not waited for.
        while ended.is_none() {
            ended = tokio::time::timeout(LAST_WORDS, connection.as_mut()).await.ok();
            if ended.is_none() && !answering.get() {
                return;
            }
        }
    }
    // What goes wrong with a peer is the peer's, and no news.
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Whether a request is being answered.
#[derive(Clone, Default)]
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn begin(&self) -> BusyGuard {
        self.0.store(true, Ordering::Relaxed);
        BusyGuard { busy: Some(self.clone()) }
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Dropped with the last byte of the answer.
struct BusyGuard {
    busy: Option<Busy>,
}

impl BusyGuard {
    /// The connection is no longer HTTP's: its new owner bounds it.
    fn never_ends(mut self) {
        self.busy = None;
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if let Some(busy) = &self.busy {
            busy.0.store(false, Ordering::Relaxed);
        }
    }
}

/// Whether a part of the last request's body has not been read.
#[derive(Clone, Default)]
struct Unread(Arc<AtomicBool>);

/// A request's body that tells whether it has been read to its end.
struct Asked {
    body: Incoming,
    unread: Unread,
}

impl Asked {
    fn new(body: Incoming, unread: Unread) -> Self {
        let asked = Self { body, unread };
        asked.note();
        asked
    }

    fn note(&self) {
        self.unread.0.store(!self.body.is_end_stream(), Ordering::Relaxed);
    }
}

impl hyper::body::Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.note();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body that tells when it has been sent.
struct Answer {
    body: Body,
    _guard: Option<BusyGuard>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that fails when its peer is too slow: with a request's head, or in taking what is sent.
struct Bounded<S> {
    stream: S,
    busy: Busy,
    head: Option<Pin<Box<Sleep>>>,
    stalled: Option<Pin<Box<Sleep>>>,
    unread: Unread,
    lingering: Option<Lingering>,
    _permit: OwnedSemaphorePermit,
}

/// The answer is sent, and the end of it told; the peer is still sending.
struct Lingering {
    until: Pin<Box<Sleep>>,
    read: usize,
}

impl<S> Bounded<S> {
    fn new(stream: S, busy: Busy, unread: Unread, permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("rollcall_connections").increment(1);
        let head = Some(Box::pin(tokio::time::sleep(HEAD)));
        Self { stream, busy, head, stalled: None, unread, lingering: None, _permit: permit }
    }

    /// The outcome of a write, or an error if the peer has taken nothing for too long.
    fn taken<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S> Drop for Bounded<S> {
    fn drop(&mut self) {
        metrics::gauge!("rollcall_connections").decrement(1);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.busy.get() {
            self.head = None;
            return read;
        }
        if read.is_ready() {
            if buf.filled().len() > before && self.head.is_none() {
                self.head = Some(Box::pin(tokio::time::sleep(HEAD)));
            }
            // Checked on the next read that has to wait.
            return read;
        }
        match &mut self.head {
            Some(head) => {
                ready!(head.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.taken(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.taken(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.taken(cx, flushed)
    }

    /// Who is answered before the end of the request, as when it is too large, is read from for a while: to close on
    /// bytes that nobody has read resets the connection, and that can take the answer back (RFC 9112, section 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.taken(cx, shut))?;
            if !this.unread.0.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let begin = || Lingering { until: Box::pin(tokio::time::sleep(LINGER)), read: 0 };
        let lingering = this.lingering.get_or_insert_with(begin);
        let mut bytes = [0; 4096];
        while lingering.read < LINGER_BYTES && lingering.until.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => lingering.read += buf.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    const REQUEST: &[u8] = b"GET /ok HTTP/1.1\r\nHost: here\r\n\r\n";

    /// A served connection, whose time is simulated: it stands still while there is something to do.
    struct Peer {
        stream: DuplexStream,
        served: JoinHandle<()>,
        stop: CancellationToken,
        room: Arc<Semaphore>,
        began: Instant,
    }

    impl Peer {
        fn connect() -> Self {
            let router = Router::new()
                .route("/ok", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()))
                .route("/large", get(async || vec![b'x'; 1 << 20]))
                .route("/slow", get(async || tokio::time::sleep(Duration::from_secs(20)).await));
            let (stream, other) = tokio::io::duplex(1024);
            let (stop, room) = (CancellationToken::new(), Arc::new(Semaphore::new(1)));
            let permit = Arc::clone(&room).try_acquire_owned().unwrap();
            let peer = "[::ffff:192.0.2.7]:9".parse().unwrap();
            let served = tokio::spawn(serve(other, peer, router, Arc::default(), stop.clone(), permit));
            Self { stream, served, stop, room, began: Instant::now() }
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.unwrap();
        }

        /// Reads an answer to its end, which is the peer's address.
        async fn answer(&mut self) -> String {
            let mut answer = String::new();
            while !answer.ends_with("\r\n\r\n192.0.2.7:9") {
                let byte = self.stream.read_u8().await.unwrap();
                answer.push(byte.into());
            }
            answer
        }

        /// Waits until the server has closed, and answers after how many seconds it has.
        async fn closed(mut self) -> u64 {
            self.stream.read_to_end(&mut Vec::new()).await.unwrap();
            self.served.await.unwrap();
            assert_eq!(self.room.available_permits(), 1, "a closed connection makes room");
            self.began.elapsed().as_secs()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_closed() {
        assert_eq!(Peer::connect().closed().await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_closed() {
        let mut peer = Peer::connect();
        for byte in &REQUEST[..9] {
            peer.send(&[*byte]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(peer.closed().await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_idles_for_longer_than_a_head_may_take() {
        let mut peer = Peer::connect();
        for _ in 0..3 {
            peer.send(REQUEST).await;
            assert!(peer.answer().await.starts_with("HTTP/1.1 200 OK\r\n"));
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        peer.send(&REQUEST[..9]).await;
        assert_eq!(peer.closed().await, 190, "from the first byte");

        let mut peer = Peer::connect();
        peer.send(REQUEST).await;
        peer.answer().await;
        assert_eq!(peer.closed().await, 75);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_may_take_long_and_come_together() {
        let mut peer = Peer::connect();
        peer.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n").await;
        peer.send(REQUEST).await;
        peer.answer().await;
        assert_eq!(peer.began.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_closed() {
        let mut peer = Peer::connect();
        peer.send(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n").await;
        (&mut peer.served).await.unwrap();
        assert_eq!(peer.began.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_before_the_end_of_the_request_still_gets_the_answer() {
        let begin = b"POST /ok HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000\r\n\r\n";
        let mut peer = Peer::connect();
        peer.send(begin).await;
        peer.send(&vec![b'x'; 1_000_000]).await;
        let mut answer = String::new();
        peer.stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("connection: close"), "{answer}");
        assert_eq!(peer.closed().await, 2);

        let mut endless = Peer::connect();
        endless.send(begin).await;
        let mut sent = 0;
        while endless.stream.write_all(&[b'x'; 1024]).await.is_ok() {
            sent += 1024;
        }
        assert!((LINGER_BYTES / 2..LINGER_BYTES * 2).contains(&sent), "{sent}");
        endless.closed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_at_once_what_idles_and_lets_finish_what_is_answered() {
        let mut idle = Peer::connect();
        idle.send(REQUEST).await;
        idle.answer().await;
        idle.stop.cancel();
        assert_eq!(idle.closed().await, 0);

        let mut busy = Peer::connect();
        busy.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        busy.stop.cancel();
        let mut answer = [0; 15];
        busy.stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        assert_eq!(busy.closed().await, 20);

        let mut half = Peer::connect();
        half.send(&REQUEST[..9]).await;
        half.stop.cancel();
        assert!(half.closed().await <= 1);
    }
}
