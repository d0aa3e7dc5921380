//! Listening: takes connections, as many as there is room for, and hands them to [`crate::connection`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use rollcall_api::{Secure, https_only_router};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection;
use crate::tls::{Accepted, Acceptor};

/// How many connections the system keeps until they are taken: a whole school may reconnect at once.
const BACKLOG: u32 = 4096;
/// How long to wait after connections could not be taken, which is when file descriptors or memory are short.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the log says at most that there is no room: while there is none, every connection finds it so.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// A bound address.
pub(crate) struct Listener {
    tcp: TcpListener,
    room: Arc<Semaphore>,
    secure: Arc<Secure>,
    tls: Option<Arc<Acceptor>>,
}

impl Listener {
    /// Binds `address`, for at most `most` connections at a time.
    pub(crate) fn bind(address: SocketAddr, most: usize) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for connections of the last run to be forgotten by the system.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let room = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Ok(Self { tcp: socket.listen(BACKLOG)?, room, secure: Arc::default(), tls: None })
    }

    /// Takes nothing but TLS, if there is an acceptor, and answers with these headers.
    pub(crate) fn secured(self, tls: Option<Arc<Acceptor>>, secure: Secure) -> Self {
        Self { tls, secure: Arc::new(secure), ..self }
    }

    /// The address, with the port that was chosen.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves connections until `stop`; each is a task of `connections`, and ends soon after `stop` too.
    pub(crate) async fn run(self, router: Router, stop: CancellationToken, connections: TaskTracker) {
        let accept = async {
            let mut told = None;
            loop {
                let permit = self.room(&mut told).await;
                let (stream, peer) = self.accept().await;
                // Without it small answers could wait for the peer's acknowledgement. A failure costs only time.
                let _ = stream.set_nodelay(true);
                let (router, secure, stop) = (router.clone(), Arc::clone(&self.secure), stop.clone());
                match self.tls.clone() {
                    None => connections.spawn(connection::serve(stream, peer, router, secure, stop, permit)),
                    Some(tls) => connections.spawn(over_tls(tls, stream, peer, router, secure, stop, permit)),
                };
            }
        };
        stop.run_until_cancelled(accept).await;
    }

    /// Waits for room. Who comes meanwhile waits in the system's queue. `told` is when the log last said so.
    async fn room(&self, told: &mut Option<Instant>) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
            return permit;
        }
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!("as many connections are open as the limit on open files allows; new ones wait");
        }
        Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.tcp.accept().await {
                Ok(accepted) => return accepted,
                Err(error) if of_one_peer(&error) => {}
                Err(error) => {
                    metrics::counter!("rollcall_accept_errors_total").increment(1);
                    tracing::error!(%error, "connections cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Serves a connection that is to be TLS. The handshake is the connection's own affair: the next one is taken meanwhile.
async fn over_tls(
    tls: Arc<Acceptor>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    secure: Arc<Secure>,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) {
    match stop.run_until_cancelled(Box::pin(tls.accept(stream))).await.flatten() {
        Some(Accepted::Tls(stream)) => connection::serve(stream, peer, router, secure, stop, permit).await,
        Some(Accepted::PlainHttp(stream)) => {
            connection::serve(stream, peer, https_only_router(), Arc::default(), stop, permit).await;
        }
        Some(Accepted::Challenge) | None => {}
    }
}

/// Whether the error says only that a peer left before it was taken.
fn of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
