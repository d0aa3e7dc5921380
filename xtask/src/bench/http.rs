//! HTTP clients that cost little: bytes that are ready to be sent, and just enough reading of the answers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mio::{Events, Interest, Poll, Token};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The bytes of a request.
pub(crate) fn request(method: &str, path: &str, token: Option<&str>, body: &str) -> Vec<u8> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let content = match body {
        "" => String::new(),
        body => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}{content}\r\n{body}").into_bytes()
}

/// The length of the answer at the start of `bytes`, if it is whole; an error unless its status is 200.
fn whole_answer(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    ensure!(bytes.starts_with(b"HTTP/1.1 200 "), "a refusal: {}", String::from_utf8_lossy(bytes));
    let name = b"content-length: ";
    let head_bytes = &bytes[..head];
    let at = head_bytes.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name));
    let digits = head_bytes[at.context("no content-length")? + name.len()..].iter().take_while(|b| b.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    let end = head + 4 + length;
    Ok((bytes.len() >= end).then_some(end))
}

/// One connection that asks and waits.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Sends a request and waits for its answer, which must be a success; answers with its bytes.
    pub(crate) fn ask(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        self.stream.write_all(request)?;
        self.buffer.clear();
        let mut part = [0; 4096];
        loop {
            let read = self.stream.read(&mut part)?;
            ensure!(read > 0, "the connection was closed: {}", String::from_utf8_lossy(&self.buffer));
            self.buffer.extend_from_slice(&part[..read]);
            if whole_answer(&self.buffer)?.is_some() {
                return Ok(&self.buffer);
            }
        }
    }
}

/// Many connections, each with one request on its way at any time.
pub(crate) struct Load {
    poll: Poll,
    connections: Vec<Connection>,
    request: Vec<u8>,
}

struct Connection {
    stream: mio::net::TcpStream,
    /// What came of the answer so far.
    buffer: Vec<u8>,
    waiting: bool,
}

impl Load {
    /// Connects so many times, all to send this request.
    pub(crate) fn connect(address: SocketAddr, connections: usize, request: Vec<u8>) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let connect = |at| {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(at), Interest::READABLE)?;
            Ok(Connection { stream, buffer: Vec::with_capacity(2048), waiting: false })
        };
        let connections = (0..connections).map(connect).collect::<anyhow::Result<_>>()?;
        Ok(Self { poll, connections, request })
    }

    /// Keeps all connections busy for this long; answers a second.
    pub(crate) fn run(&mut self, length: Duration) -> anyhow::Result<f64> {
        let started = Instant::now();
        let end = started + length;
        let Self { poll, connections, request } = self;
        for connection in connections.iter_mut() {
            connection.send(request)?;
        }
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 16 * 1024];
        let mut answers = 0_u64;
        let mut answers_in_time = 0_u64;
        while connections.iter().any(|connection| connection.waiting) {
            poll.poll(&mut events, Some(PATIENCE))?;
            if events.is_empty() {
                bail!("no answer within {PATIENCE:?}");
            }
            let in_time = Instant::now() < end;
            for event in &events {
                let connection = &mut connections[event.token().0];
                if connection.read(&mut buffer)? {
                    answers += 1;
                    if in_time {
                        connection.send(request)?;
                    }
                }
            }
            if in_time {
                answers_in_time = answers;
            }
        }
        // Those that were on their way at the end are left out, as those that had just begun are left in.
        Ok(answers_in_time as f64 / length.as_secs_f64())
    }
}

impl Connection {
    fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        // A request is far smaller than what the system buffers.
        let written = self.stream.write(request)?;
        ensure!(written == request.len(), "half a request was taken");
        self.waiting = true;
        Ok(())
    }

    /// Reads what is there; whether the answer is whole now.
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<bool> {
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => bail!("the connection was closed"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            // Nearly always the whole answer comes at once and need not be kept.
            let whole = if self.buffer.is_empty() {
                let whole = whole_answer(&buffer[..read])?.is_some();
                if !whole {
                    self.buffer.extend_from_slice(&buffer[..read]);
                }
                whole
            } else {
                self.buffer.extend_from_slice(&buffer[..read]);
                whole_answer(&self.buffer)?.is_some()
            };
            if whole {
                self.buffer.clear();
                self.waiting = false;
                return Ok(true);
            }
        }
    }
}
