//! WebSocket clients that cost little: one thread, one system call a socket, and frames that are counted, not parsed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use mio::{Events, Interest, Poll, Token};

/// How long it may take until anything is heard.
const PATIENCE: Duration = Duration::from_secs(30);
/// How the text of a refusal begins.
const REFUSAL: &[u8] = br#"{"event":"ERROR""#;

const TEXT: u8 = 1;
const PING: u8 = 9;
const PONG: u8 = 10;
const CLOSE: u8 = 8;

/// A text frame as a client sends it. Its mask is zero, so that the text stays as it is.
pub(crate) fn text_frame(text: &[u8]) -> Vec<u8> {
    client_frame(TEXT, text)
}

fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => frame.push(0x80 | length),
        (_, Ok(length)) => {
            frame.push(0xfe);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frame.push(0xff);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Many open sockets.
pub(crate) struct Sockets {
    poll: Poll,
    events: Events,
    open: Vec<Socket>,
    buffer: Vec<u8>,
    /// What was heard since that was last told.
    heard: Vec<(usize, u64)>,
    told: Vec<(usize, u64)>,
}

struct Socket {
    stream: mio::net::TcpStream,
    /// When it was last read: until then pings were answered.
    read: Instant,
    frames: Frames,
    /// What could not be written yet.
    unsent: Vec<u8>,
}

impl Sockets {
    /// Opens a socket for each token, which may be followed by more of the address. The first `senders` of them will send much.
    pub(crate) fn open(
        address: SocketAddr,
        tokens: impl IntoIterator<Item = anyhow::Result<String>>,
        senders: usize,
    ) -> anyhow::Result<Self> {
        let mut sockets = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(4096),
            open: Vec::new(),
            buffer: vec![0; 64 * 1024],
            heard: Vec::new(),
            told: Vec::new(),
        };
        for (at, token) in tokens.into_iter().enumerate() {
            let (stream, frames) = upgrade(address, &token?, at < senders)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            let writes = if at < senders { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            sockets.poll.registry().register(&mut stream, Token(at), writes)?;
            if frames.texts > 0 {
                sockets.heard.push((at, frames.texts));
            }
            sockets.open.push(Socket { stream, read: Instant::now(), frames, unsent: Vec::new() });
            // Many may take longer to open than the server waits for the answer to a ping.
            sockets.listen(Duration::ZERO)?;
        }
        Ok(sockets)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.open.len() as u64
    }

    /// The last text that a sender heard.
    pub(crate) fn last_text(&self, sender: usize) -> &[u8] {
        &self.open[sender].frames.last
    }

    /// Sends bytes that are whole frames.
    pub(crate) fn send(&mut self, sender: usize, frames: &[u8]) -> anyhow::Result<()> {
        let socket = &mut self.open[sender];
        socket.unsent.extend_from_slice(frames);
        socket.flush()
    }

    /// Waits until something is heard; which sockets heard how many texts. A refusal is an error.
    pub(crate) fn hear(&mut self) -> anyhow::Result<&[(usize, u64)]> {
        while self.heard.is_empty() {
            self.listen(PATIENCE)?;
            ensure!(!self.events.is_empty(), "nothing was heard for {PATIENCE:?}");
        }
        self.told.clear();
        std::mem::swap(&mut self.heard, &mut self.told);
        Ok(&self.told)
    }

    /// Reads what there is, or what comes first within `patience`, and answers pings.
    fn listen(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.poll.poll(&mut self.events, Some(patience))?;
        for event in &self.events {
            let at = event.token().0;
            let socket = &mut self.open[at];
            if event.is_writable() {
                socket.flush()?;
            }
            let texts = socket.read(&mut self.buffer)?;
            if texts > 0 {
                self.heard.push((at, texts));
            }
        }
        Ok(())
    }

    /// Lets the first socket send these frames and waits until every socket heard as many; how long that took.
    pub(crate) fn round(&mut self, frames: &[u8], count: u64) -> anyhow::Result<Duration> {
        let started = Instant::now();
        self.send(0, frames)?;
        self.hear_all(count)?;
        Ok(started.elapsed())
    }

    /// Waits until every socket heard so many texts.
    pub(crate) fn hear_all(&mut self, count: u64) -> anyhow::Result<()> {
        let mut missing = self.len() * count;
        while missing > 0 {
            let heard: u64 = self.hear()?.iter().map(|(_, texts)| texts).sum();
            let Some(rest) = missing.checked_sub(heard) else { bail!("more was heard than was said") };
            missing = rest;
        }
        Ok(())
    }
}

/// Opens a socket, up to the answer to its upgrade.
fn upgrade(address: SocketAddr, token: &str, keep: bool) -> anyhow::Result<(TcpStream, Frames)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    let end = loop {
        let read = stream.read(&mut part)?;
        ensure!(read > 0, "no upgrade: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..read]);
        if let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break head + 4;
        }
    };
    ensure!(answer.starts_with(b"HTTP/1.1 101 "), "no upgrade: {}", String::from_utf8_lossy(&answer));
    stream.set_nonblocking(true)?;
    let mut frames = Frames { keep, ..Frames::default() };
    frames.take(&answer[end..])?;
    Ok((stream, frames))
}

impl Socket {
    fn flush(&mut self) -> anyhow::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there; how many texts it was.
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<u64> {
        let before = self.frames.texts;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => bail!("a socket ended without a close, {:.1?} after it was last read", self.read.elapsed()),
                Ok(read) => {
                    self.frames.take(&buffer[..read])?;
                    // Less than there was room for is all that there was.
                    if read < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.read = Instant::now();
        if let Some(payload) = self.frames.ping.take() {
            self.unsent.extend(client_frame(PONG, &payload));
            self.flush()?;
        }
        Ok(self.frames.texts - before)
    }
}

/// Counts the frames in a stream of bytes that may be cut anywhere.
#[derive(Default)]
struct Frames {
    /// Texts so far.
    texts: u64,
    /// A ping that is to be answered.
    ping: Option<Vec<u8>>,
    /// The last text, if it is kept.
    last: Vec<u8>,
    keep: bool,
    /// The head of the next frame as far as it came.
    head: Vec<u8>,
    opcode: u8,
    /// Bytes of the present frame that are still to come.
    rest: usize,
    /// The start of the present frame, or all of it if it is kept or is no text.
    payload: Vec<u8>,
}

impl Frames {
    fn take(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            if self.rest == 0 {
                let Some((opcode, length, used)) = self.read_head(bytes) else { return Ok(()) };
                (self.opcode, self.rest) = (opcode, length);
                self.payload.clear();
                bytes = &bytes[used..];
            }
            let part = &bytes[..self.rest.min(bytes.len())];
            let wanted = if self.keep || self.opcode != TEXT { usize::MAX } else { REFUSAL.len() };
            let room = wanted - self.payload.len();
            self.payload.extend_from_slice(&part[..part.len().min(room)]);
            self.rest -= part.len();
            bytes = &bytes[part.len()..];
            if self.rest == 0 {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    /// The opcode and length of the frame that begins with `bytes`, and how many of them its head took.
    fn read_head(&mut self, bytes: &[u8]) -> Option<(u8, usize, usize)> {
        let had = self.head.len();
        // A server's head has at most ten bytes.
        self.head.extend_from_slice(&bytes[..bytes.len().min(10 - had)]);
        let (&first, rest) = self.head.split_first()?;
        let (&second, rest) = rest.split_first()?;
        let extended = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let length = match extended {
            0 => usize::from(second),
            more => rest.get(..more)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        self.head.clear();
        Some((first & 15, length, 2 + extended - had))
    }

    fn end_frame(&mut self) -> anyhow::Result<()> {
        match self.opcode {
            TEXT => {
                ensure!(!self.payload.starts_with(REFUSAL), "a refusal: {}", String::from_utf8_lossy(&self.payload));
                self.texts += 1;
                if self.keep {
                    std::mem::swap(&mut self.last, &mut self.payload);
                }
            }
            PING => self.ping = Some(std::mem::take(&mut self.payload)),
            CLOSE => match self.payload.split_first_chunk() {
                Some((code, reason)) => {
                    bail!("a socket was closed: {} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
                }
                None => bail!("a socket was closed without a code"),
            },
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let mut stream = vec![0x81, 2, b'h', b'i', 0x89, 1, b'p', 0x81, 126, 1, 0];
        stream.extend([b'x'; 256]);
        stream.extend([0x81, 127, 0, 0, 0, 0, 0, 0, 0, 3, b'e', b'n', b'd']);
        for size in 1..=stream.len() {
            let mut frames = Frames { keep: true, ..Frames::default() };
            for part in stream.chunks(size) {
                frames.take(part).unwrap();
            }
            assert_eq!((frames.texts, frames.last.as_slice()), (3, b"end".as_slice()), "in parts of {size}");
            assert_eq!(frames.ping.as_deref(), Some(b"p".as_slice()));
        }
    }

    #[test]
    fn refusals_are_no_deliveries() {
        let mut frames = Frames::default();
        let mut stream = vec![0x81, u8::try_from(REFUSAL.len()).unwrap()];
        stream.extend(REFUSAL);
        assert!(frames.take(&stream).is_err());
    }

    #[test]
    fn a_close_tells_its_code_and_reason() {
        let mut stream = vec![0x88, 10, 0x0f, 0xa8];
        stream.extend(b"too slow");
        let error = Frames::default().take(&stream).unwrap_err();
        assert_eq!(error.to_string(), "a socket was closed: 4008 too slow");
        assert!(Frames::default().take(&[0x88, 0]).is_err());
    }

    #[test]
    fn what_is_sent_is_masked_with_zero() {
        assert_eq!(text_frame(b"hi"), [0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
        assert_eq!(text_frame(&[b'x'; 300])[..4], [0x81, 0xfe, 1, 44]);
    }
}
