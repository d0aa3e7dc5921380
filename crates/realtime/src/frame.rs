//! Text messages as they go over the wire.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// FIN and the opcode of a text message.
const TEXT: u8 = 0x81;

/// A text message with its WebSocket header in front: encoded once, cheap to clone, and written to any number of
/// sockets as it is (a server's frames are not masked).
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    wire: Bytes,
}

impl Frame {
    /// What the message says.
    pub fn as_str(&self) -> &str {
        let header = match self.wire[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        std::str::from_utf8(&self.wire[header..]).expect("a frame is made of text")
    }

    pub(crate) fn wire(&self) -> &Bytes {
        &self.wire
    }

    pub(crate) fn into_wire(self) -> Bytes {
        self.wire
    }
}

impl From<&str> for Frame {
    fn from(text: &str) -> Self {
        let mut wire = BytesMut::with_capacity(10 + text.len());
        wire.put_u8(TEXT);
        // RFC 6455, section 5.2: seven bits, or one of two escapes and a longer number.
        match (u8::try_from(text.len()), u16::try_from(text.len())) {
            (Ok(short), _) if short < 126 => wire.put_u8(short),
            (_, Ok(medium)) => {
                wire.put_u8(126);
                wire.put_u16(medium);
            }
            _ => {
                wire.put_u8(127);
                wire.put_u64(text.len() as u64);
            }
        }
        wire.put_slice(text.as_bytes());
        Self { wire: wire.freeze() }
    }
}

impl From<String> for Frame {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frame").field(&self.as_str()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Frame;

    #[test]
    fn the_header_grows_with_the_text() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let text = "x".repeat(length);
            let frame = Frame::from(text.as_str());
            assert_eq!(frame.wire().len(), header + length);
            assert_eq!(frame.as_str(), text);
        }
        assert_eq!(&Frame::from("hé").wire()[..], b"\x81\x03h\xc3\xa9");
    }
}
