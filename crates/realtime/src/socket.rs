//! The actor that owns one socket.
//!
//! One future does everything that happens on a socket, in this order whenever it is woken: it writes what waits,
//! answers commands, reads the next one, looks at the time. tungstenite speaks the protocol on what is read; what it
//! says by itself (pongs, closes) goes between two chunks of the outbox. Frames of the outbox are on the wire as they
//! are in memory, any number of them in one write.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message, Utf8Bytes};

use crate::outbox::{Amount, Chunk, Closing, Ticket};
use crate::upgrade::Socket;
use crate::{Close, Connection, Frame, Registration, close, metric};

/// How long commands that are being carried out may take when the connection ends gracefully.
const GRACE: Duration = Duration::from_secs(2);
/// How long the peer may take to answer a close.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Pings and pongs that a peer may send in a second.
const MAX_CONTROLS: u32 = 50;
/// Pongs that wait to be written stop the reading from this size.
const MAX_CONTROL_BYTES: usize = 2 * 1024;
/// Chunks that go into one system call.
const SLICES: usize = 32;
/// A queue that grew over so many chunks in a burst gives its memory back.
const KEPT_CHUNKS: usize = 4;

/// For the metric: the connection ended without a close, or with one that names no code.
const ABNORMAL: u16 = 1006;
const NO_STATUS: u16 = 1005;

/// Limits and times of a socket.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// The longest frame and message, in bytes, that is taken from the peer. Longer ones close with
    /// [`close::TOO_BIG`].
    pub max_frame: usize,
    /// Bytes that are kept for reading as long as the socket is open. Long messages take more while they come.
    pub read_buffer: usize,
    /// How long the peer may take to accept what waited for it at one time.
    pub write_timeout: Duration,
    /// A peer that was quiet for this long is pinged. More than zero.
    pub ping_every: Duration,
    /// A peer that was quiet for this long is gone. The time in which nothing is read from it does not count.
    pub idle_timeout: Duration,
    /// Commands that may wait for their answers. With more, reading waits.
    pub max_in_flight: usize,
    /// After this time the socket is closed with [`close::EXPIRED`].
    pub expires_in: Option<Duration>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            max_frame: 16 * 1024,
            read_buffer: 1024,
            write_timeout: Duration::from_secs(10),
            ping_every: Duration::from_secs(25),
            idle_timeout: Duration::from_mins(1),
            max_in_flight: 64,
            expires_in: None,
        }
    }
}

/// What a peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A text message, whole.
    Text(Utf8Bytes),
    /// A binary message; what it says is of no interest.
    Binary,
}

/// What came of a command.
pub enum Handled {
    /// The answer, if there will be one. Answers go out in the order of their commands; the futures run at the same
    /// time. Before it resolves, a future may wait for [`Hub::reached`](crate::Hub::reached).
    Reply(BoxFuture<'static, Option<Frame>>),
    /// Ends the connection. Answers that are not there yet are not waited for.
    Close(Close),
}

/// What is done with the commands of a socket.
pub trait Handler: Send + Sync + 'static {
    /// Takes a command. While this waits, nothing is read from the socket, and it is not called again; the socket
    /// goes on writing, and hears when it shall end. Dropped without being finished when the connection ends.
    fn handle(self: Arc<Self>, connection: Connection, incoming: Incoming) -> BoxFuture<'static, Handled>;
}

/// Owns a socket until it has ended, and its registration with it.
pub fn run<H: Handler>(
    socket: Socket,
    registration: Registration,
    handler: Arc<H>,
    config: SocketConfig,
) -> impl Future<Output = ()> + Send {
    Actor::new(socket, Owner::Registered(registration), Some(handler), config)
}

/// Sends one frame to a peer that may not stay, and closes the socket.
pub fn refuse(socket: Socket, frame: Frame, close: Close, config: SocketConfig) -> impl Future<Output = ()> + Send {
    let connection = Connection::unregistered();
    connection.send(frame);
    connection.close(close);
    Actor::<Nobody>::new(socket, Owner::Stranger(connection), None, config)
}

/// Handles nothing: the handler of a socket that is closed before anything is read.
enum Nobody {}

impl Handler for Nobody {
    fn handle(self: Arc<Self>, _: Connection, _: Incoming) -> BoxFuture<'static, Handled> {
        match *self {}
    }
}

enum Owner {
    Registered(Registration),
    Stranger(Connection),
}

impl Owner {
    fn connection(&self) -> &Connection {
        match self {
            Self::Registered(registration) => registration.connection(),
            Self::Stranger(connection) => connection,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Everything is as it should be.
    Open,
    /// Commands are being carried out, no new ones are read; then the socket is closed.
    Finishing { close: Close, until: Instant },
    /// What waits is written, then the close.
    Closing { close: Close, until: Instant },
    /// The close is being written.
    Parting { until: Instant },
    /// The close is written; the peer's answer is waited for.
    Closed { until: Instant },
    /// The same, but what the peer sends is not understood any more. It is read all the same: a socket that is dropped
    /// with unread bytes takes back what was sent last.
    Deaf { until: Instant },
    /// The closing handshake is over but for what is still to be written.
    Leaving { until: Instant },
}

impl Phase {
    fn until(self) -> Option<Instant> {
        match self {
            Self::Open => None,
            Self::Finishing { until, .. }
            | Self::Closing { until, .. }
            | Self::Parting { until }
            | Self::Closed { until }
            | Self::Deaf { until }
            | Self::Leaving { until } => Some(until),
        }
    }
}

/// The socket is done with.
struct Ended;

struct Actor<H> {
    io: TokioIo<Upgraded>,
    codec: WebSocketContext,
    /// What the codec says by itself, not yet among the chunks.
    control: Vec<u8>,
    owner: Owner,
    handler: Option<Arc<H>>,
    config: SocketConfig,
    phase: Phase,
    /// Whether the codec still understands what comes.
    legible: bool,
    /// For the metric.
    code: u16,

    handling: Option<BoxFuture<'static, Handled>>,
    replies: Option<Box<FuturesOrdered<BoxFuture<'static, Option<Frame>>>>>,

    /// Taken from the outbox; `offset` bytes of the first are written.
    writing: VecDeque<Chunk>,
    offset: usize,
    /// Written since the outbox was told.
    written: Amount,
    /// Of chunks that are written and not flushed.
    tickets: Vec<Ticket>,
    sent: u64,
    unflushed: bool,
    blocked_since: Option<Instant>,

    timer: Pin<Box<Sleep>>,
    expires: Option<Instant>,
    last_heard: Instant,
    last_ping: Instant,
    /// The second in which pings and pongs are counted.
    controls_since: Instant,
    controls: u32,
    /// Whether the peer's bytes were left where they are: its silence means nothing.
    paused: bool,
}

impl<H: Handler> Actor<H> {
    fn new(socket: Socket, owner: Owner, handler: Option<Arc<H>>, config: SocketConfig) -> Self {
        let now = Instant::now();
        let protocol = WebSocketConfig::default()
            .read_buffer_size(config.read_buffer)
            .write_buffer_size(0)
            .max_message_size(Some(config.max_frame))
            .max_frame_size(Some(config.max_frame));
        Self {
            io: socket.io,
            codec: WebSocketContext::new(Role::Server, Some(protocol)),
            control: Vec::new(),
            owner,
            handler,
            phase: Phase::Open,
            legible: true,
            code: ABNORMAL,
            handling: None,
            replies: None,
            writing: VecDeque::new(),
            offset: 0,
            written: Amount::default(),
            tickets: Vec::new(),
            sent: 0,
            unflushed: false,
            blocked_since: None,
            timer: Box::pin(tokio::time::sleep_until(now + config.ping_every)),
            expires: config.expires_in.and_then(|time| now.checked_add(time)),
            last_heard: now,
            last_ping: now,
            controls_since: now,
            controls: 0,
            paused: false,
            config,
        }
    }

    fn connection(&self) -> &Connection {
        self.owner.connection()
    }

    /// Does what can be done now. Everything that is left undone wakes the task when its time has come.
    fn drive(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        loop {
            let writable = match self.poll_write(context) {
                Poll::Ready(Ok(())) => match self.written_all(context) {
                    Ok(true) => continue,
                    Ok(false) => true,
                    Err(ended) => return Poll::Ready(ended),
                },
                Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                Poll::Pending => false,
            };
            if self.poll_commands(context).is_ready() {
                continue;
            }
            match self.poll_read(context) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                // The codec answers a ping when it is asked for what follows.
                Poll::Pending if writable && !self.control.is_empty() => continue,
                Poll::Pending => {}
            }
            match self.poll_time(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Ready when everything that waits for the peer is written and flushed.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            let open = matches!(self.phase, Phase::Open | Phase::Finishing { .. } | Phase::Closing { .. });
            let into = (open && self.writing.is_empty()).then_some(&mut self.writing);
            let written = mem::take(&mut self.written);
            let closing = self.owner.connection().outbox().exchange(written, into, context);
            self.hear(closing);

            // Between two chunks, and one at a time: then the size of what follows is the size of `control`.
            if self.offset == 0 && !self.control.is_empty() && self.writing.front().is_none_or(|chunk| chunk.frames > 0)
            {
                let bytes = Bytes::from(mem::take(&mut self.control));
                self.writing.push_front(Chunk { bytes, frames: 0, ticket: None });
            }
            if self.writing.is_empty() && !self.unflushed {
                return Poll::Ready(Ok(()));
            }
            match self.poll_write_chunks(context) {
                Poll::Ready(Ok(())) => self.blocked_since = None,
                Poll::Ready(Err(error)) => {
                    tracing::trace!(%error, "writing to a socket");
                    return Poll::Ready(Err(Ended));
                }
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
            if self.writing.capacity() > KEPT_CHUNKS {
                self.writing = VecDeque::new();
            }
        }
    }

    /// Writes and flushes the chunks that were taken.
    fn poll_write_chunks(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.advance(0);
        while let Some(first) = self.writing.front() {
            let io = Pin::new(&mut self.io);
            let count = if self.writing.len() == 1 {
                ready!(io.poll_write(context, &first.bytes[self.offset..]))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                for (slice, chunk) in slices.iter_mut().zip(&self.writing) {
                    *slice = IoSlice::new(&chunk.bytes);
                }
                slices[0].advance(self.offset);
                let filled = self.writing.len().min(SLICES);
                ready!(io.poll_write_vectored(context, &slices[..filled]))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(count);
        }
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        self.unflushed = false;
        self.tickets.clear();
        if let Owner::Registered(registration) = &self.owner {
            registration.hub().metrics().frames_sent.increment(mem::take(&mut self.sent));
        }
        Poll::Ready(Ok(()))
    }

    /// Takes `count` written bytes off the chunks.
    fn advance(&mut self, count: usize) {
        self.offset += count;
        while let Some(first) = self.writing.front()
            && self.offset >= first.bytes.len()
        {
            self.offset -= first.bytes.len();
            // What the codec says by itself was never in the outbox.
            if first.frames > 0 {
                self.written.frames += first.frames;
                self.written.bytes += first.bytes.len();
                self.sent += first.frames as u64;
            }
            self.tickets.extend(self.writing.pop_front().and_then(|chunk| chunk.ticket));
        }
    }

    /// Goes on to the next phase when everything is written, and says whether there is more to do at once.
    fn written_all(&mut self, context: &mut Context<'_>) -> Result<bool, Ended> {
        match self.phase {
            Phase::Closing { close, until } => {
                let frame = CloseFrame { code: close.code.into(), reason: Utf8Bytes::from_static(close.reason) };
                let mut wire = Wire::writing(&mut self.control);
                // A pong that is still owed would otherwise come behind the close. Only a peer that closed meanwhile
                // makes these fail, and then the answer to its close is in `control`.
                let _ = self.codec.flush(&mut wire).and_then(|()| self.codec.close(&mut wire, Some(frame)));
                self.phase = Phase::Parting { until };
                Ok(true)
            }
            Phase::Parting { .. } => {
                let until = Instant::now() + CLOSE_WAIT;
                self.phase = if self.legible { Phase::Closed { until } } else { Phase::Deaf { until } };
                Ok(true)
            }
            Phase::Deaf { .. } => {
                // An error will be found by reading.
                let _ = Pin::new(&mut self.io).poll_shutdown(context);
                Ok(false)
            }
            Phase::Leaving { .. } => match Pin::new(&mut self.io).poll_shutdown(context) {
                Poll::Ready(_) => Err(Ended),
                Poll::Pending => Ok(false),
            },
            Phase::Open | Phase::Finishing { .. } | Phase::Closed { .. } => Ok(false),
        }
    }

    /// Hears that the connection shall end.
    fn hear(&mut self, closing: Option<Closing>) {
        let Some(Closing { close, graceful }) = closing else { return };
        match self.phase {
            Phase::Open if graceful => {
                self.phase = Phase::Finishing { close, until: Instant::now() + GRACE };
            }
            Phase::Open | Phase::Finishing { .. } if !graceful => {
                self.code = close.code;
                self.handling = None;
                self.replies = None;
                if close == close::TOO_SLOW {
                    self.abandon_frames();
                }
                self.phase = Phase::Closing { close, until: Instant::now() + self.config.write_timeout };
            }
            _ => {}
        }
    }

    /// Drops what was not begun to be written: half a frame would spoil those behind it.
    fn abandon_frames(&mut self) {
        let begun = self.offset > 0 || self.writing.front().is_some_and(|chunk| chunk.frames == 0);
        self.writing.truncate(usize::from(begun));
    }

    /// Goes on with commands; ready when something happened.
    fn poll_commands(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut progress = Poll::Pending;
        if let Some(handling) = &mut self.handling
            && let Poll::Ready(handled) = handling.as_mut().poll(context)
        {
            self.handling = None;
            progress = Poll::Ready(());
            match handled {
                Handled::Reply(reply) => self.replies.get_or_insert_default().push_back(reply),
                Handled::Close(close) => self.connection().close(close),
            }
        }
        while let Some(replies) = &mut self.replies {
            match Pin::new(&mut **replies).poll_next(context) {
                Poll::Ready(Some(reply)) => {
                    progress = Poll::Ready(());
                    if let Some(frame) = reply {
                        self.connection().send(frame);
                    }
                }
                Poll::Ready(None) => self.replies = None,
                Poll::Pending => break,
            }
        }
        if let Phase::Finishing { close, .. } = self.phase
            && self.handling.is_none()
            && self.replies.is_none()
        {
            self.connection().close(close);
            progress = Poll::Ready(());
        }
        progress
    }

    /// Reads on; ready when something came.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        match self.phase {
            Phase::Open => {
                let in_flight = self.replies.as_ref().map_or(0, |replies| replies.len());
                self.paused = self.handling.is_some()
                    || in_flight >= self.config.max_in_flight
                    || self.control.len() > MAX_CONTROL_BYTES;
                if self.paused {
                    return Poll::Pending;
                }
            }
            Phase::Closed { .. } => {}
            Phase::Deaf { .. } => return self.poll_discard(context),
            Phase::Finishing { .. } | Phase::Closing { .. } | Phase::Parting { .. } | Phase::Leaving { .. } => {
                return Poll::Pending;
            }
        }
        let mut wire = Wire { peer: Some((&mut self.io, context)), control: &mut self.control, heard: false };
        let read = self.codec.read(&mut wire);
        if wire.heard {
            self.last_heard = Instant::now();
        }
        match read {
            Ok(message) => self.take(message),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                self.handling = None;
                self.replies = None;
                self.abandon_frames();
                self.phase = Phase::Leaving { until: Instant::now() + CLOSE_WAIT };
            }
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => self.fail(close::TOO_BIG),
            Err(Error::Utf8(_)) => self.fail(close::NOT_UTF8),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return Poll::Ready(Err(Ended)),
            Err(Error::Protocol(_)) => self.fail(close::PROTOCOL),
            Err(_) => return Poll::Ready(Err(Ended)),
        }
        Poll::Ready(Ok(()))
    }

    /// What the peer sends is not understood any more.
    fn fail(&mut self, close: Close) {
        self.legible = false;
        match self.phase {
            Phase::Closed { until } => self.phase = Phase::Deaf { until },
            _ => self.connection().close(close),
        }
    }

    fn take(&mut self, message: Message) {
        let incoming = match message {
            Message::Text(text) => Incoming::Text(text),
            Message::Binary(_) => Incoming::Binary,
            Message::Ping(_) | Message::Pong(_) => {
                if self.last_heard - self.controls_since >= Duration::from_secs(1) {
                    self.controls_since = self.last_heard;
                    self.controls = 0;
                }
                self.controls += 1;
                if self.controls > MAX_CONTROLS {
                    self.connection().close(close::FLOODING);
                }
                return;
            }
            Message::Close(frame) => {
                // When it answers ours, ours counts. The codec tells what is to be done when it is asked again.
                if self.phase == Phase::Open {
                    self.code = frame.map_or(NO_STATUS, |frame| frame.code.into());
                }
                return;
            }
            // Never read, only written.
            Message::Frame(_) => return,
        };
        if let (Phase::Open, Some(handler)) = (self.phase, &self.handler) {
            self.handling = Some(Arc::clone(handler).handle(self.connection().clone(), incoming));
        }
    }

    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let mut bytes = [0; 4096];
        let mut buffer = ReadBuf::new(&mut bytes);
        match ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(Ended)),
        }
    }

    /// The next moment at which something is to be done though nothing happens.
    fn deadline(&self) -> Instant {
        let blocked = self.blocked_since.map(|since| since + self.config.write_timeout);
        let quiet = if self.phase == Phase::Open {
            let ping = self.last_heard.max(self.last_ping) + self.config.ping_every;
            Some(ping.min(self.last_heard + self.config.idle_timeout))
        } else {
            None
        };
        let times = [self.phase.until(), blocked, quiet, self.expires];
        times.into_iter().flatten().min().unwrap_or_else(|| self.last_heard + self.config.idle_timeout)
    }

    /// Looks at the time; ready when it brought something.
    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        // The timer may ring early, which is cheaper than to set it anew whenever something was heard.
        let deadline = self.deadline();
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(context));
        let now = Instant::now();
        if self.blocked_since.is_some_and(|since| since + self.config.write_timeout <= now) {
            // Not even the close would be taken.
            self.code = close::TOO_SLOW.code;
            return Poll::Ready(Err(Ended));
        }
        match self.phase {
            Phase::Finishing { close, until } if until <= now => self.connection().close(close),
            phase if phase.until().is_some_and(|until| until <= now) => return Poll::Ready(Err(Ended)),
            _ => {}
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            self.expires = None;
            self.connection().close(close::EXPIRED);
        }
        if self.phase == Phase::Open {
            if self.last_heard.max(self.last_ping) + self.config.ping_every <= now {
                self.last_ping = now;
                // Only a socket that is being closed refuses a ping.
                let _ = self.codec.write(&mut Wire::writing(&mut self.control), Message::Ping(Bytes::new()));
            }
            if self.paused {
                self.last_heard = now;
            }
            if self.last_heard + self.config.idle_timeout <= now {
                return Poll::Ready(Err(Ended));
            }
        }
        let deadline = self.deadline();
        self.timer.as_mut().reset(deadline);
        Poll::Ready(Ok(()))
    }
}

impl<H: Handler> Future for Actor<H> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().drive(context).map(|Ended| ())
    }
}

impl<H> Drop for Actor<H> {
    fn drop(&mut self) {
        metric::closed(self.code);
        tracing::debug!(connection = ?self.owner.connection(), code = self.code, "socket ended");
    }
}

/// The stream as the codec sees it. It reads from the peer; what it writes is kept until there is a place for it.
struct Wire<'a, 'b> {
    peer: Option<(&'a mut TokioIo<Upgraded>, &'a mut Context<'b>)>,
    control: &'a mut Vec<u8>,
    /// Whether bytes came.
    heard: bool,
}

impl<'a> Wire<'a, '_> {
    fn writing(control: &'a mut Vec<u8>) -> Self {
        Self { peer: None, control, heard: false }
    }
}

impl Read for Wire<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((io, context)) = &mut self.peer else { return Err(io::ErrorKind::WouldBlock.into()) };
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut **io).poll_read(context, &mut buffer) {
            Poll::Ready(result) => {
                let count = result.map(|()| buffer.filled().len())?;
                self.heard |= count > 0;
                Ok(count)
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Wire<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
