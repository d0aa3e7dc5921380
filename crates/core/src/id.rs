//! Identifiers: 24 hex digits outside, 12 bytes inside, on every store.
//!
//! The layout is MongoDB's ObjectId (seconds, process-unique randomness, counter), so that a database moves
//! between stores with its ids.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::time::Timestamp;

/// Twelve bytes that name something, shown as 24 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 12]);

impl ObjectId {
    /// The id in its stored form.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// The stored form of the id.
    pub const fn bytes(self) -> [u8; 12] {
        self.0
    }

    /// Reads 24 hex digits of either case; anything else names nothing and is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 24] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; 12];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(bytes))
    }

    /// When the id was made, in whole seconds, by the clock of the process that made it.
    pub fn made_at(self) -> Timestamp {
        let [a, b, c, d, ..] = self.0;
        Timestamp::from_millis(i64::from(u32::from_be_bytes([a, b, c, d])) * 1000)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 24];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub ObjectId);

        impl $name {
            /// An id that is never given to anything.
            pub const NOTHING: Self = Self(ObjectId([0; 12]));

            /// The id that a client's text names. Text that is no id names [`Self::NOTHING`], which no look-up finds.
            pub fn named(text: &str) -> Self {
                Self::parse(text).unwrap_or(Self::NOTHING)
            }

            /// Reads 24 hex digits of either case; anything else names nothing and is `None`.
            pub fn parse(text: &str) -> Option<Self> {
                ObjectId::parse(text).map(Self)
            }

            /// The id in its stored form.
            pub const fn from_bytes(bytes: [u8; 12]) -> Self {
                Self(ObjectId::from_bytes(bytes))
            }

            /// The stored form of the id.
            pub const fn bytes(self) -> [u8; 12] {
                self.0.bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    )+};
}

typed_ids! {
    /// Names an account, whatever its role.
    UserId,
    /// Names a class.
    ClassId,
    /// Names a session of a class.
    SessionId,
    /// Names an e-mail that is to be sent.
    MailId,
}

/// Makes ids that no other process makes, in the order of the clock.
#[derive(Debug)]
pub struct Ids {
    process: [u8; 5],
    counter: AtomicU32,
}

impl Ids {
    /// An id source. `process` and `first` must be random: they tell this process from all others.
    pub const fn new(process: [u8; 5], first: u32) -> Self {
        Self { process, counter: AtomicU32::new(first) }
    }

    /// The next id, made at `now`. Up to 2²⁴ ids a second are distinct.
    pub fn next(&self, now: Timestamp) -> ObjectId {
        // The layout has 32 bits for the seconds: they wrap in 2106, as MongoDB's do.
        let seconds = now.millis().div_euclid(1000).to_be_bytes();
        let counter = self.counter.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&seconds[4..]);
        bytes[4..9].copy_from_slice(&self.process);
        bytes[9..].copy_from_slice(&counter[1..]);
        ObjectId(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let ids = Ids::new([1, 2, 3, 4, 5], 0x00FF_FFFF);
        let now = Timestamp::from_millis(1_700_000_000_123);
        let (first, second) = (ids.next(now), ids.next(now));
        assert_ne!(first, second, "the counter wraps without repeating itself");
        assert_eq!(first.to_string(), "6553f1000102030405ffffff");
        assert_eq!(first.made_at(), Timestamp::from_millis(1_700_000_000_000));
        assert_eq!(ObjectId::parse(&first.to_string()), Some(first));
        assert_eq!(ObjectId::parse(&first.to_string().to_uppercase()), Some(first));
        for nothing in [
            "",
            "6553f1",
            "6553f1000102030405fffffg",
            "6553f1000102030405ffffff0",
            "éééééééééééé",
            "+553f1000102030405ffffff",
        ] {
            assert_eq!(ObjectId::parse(nothing), None, "{nothing:?} names nothing");
        }
    }
}
