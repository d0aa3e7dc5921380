//! Who is connected, by user and by topic, and the actor that owns one socket.
//!
//! This crate knows bytes, users and topics; what a frame says and who may hear it is decided by its caller.
//!
//! * [`Hub`]: the connections of this process. A caller publishes frames to topics, in order; the hub brings them to
//!   the members' outboxes, [`Tier::First`] before [`Tier::Rest`].
//! * [`Upgrade`]: takes the HTTP request that asks for a socket and answers it.
//! * [`run`]: owns one socket from the upgrade to its end. Nobody else reads from it or writes to it.
//! * [`Frame`]: a message in the form in which it goes over the wire, encoded once and shared by all who are sent it.
//!
//! Three rules keep one peer from troubling another. Whoever sends never waits: a peer whose outbox is full is closed
//! with [`close::TOO_SLOW`]. A peer that asks for more than the server can do at once is not read from meanwhile. Every
//! wait for a peer has a limit.
//!
//! The metrics `rollcall_sockets`, `rollcall_frames_sent_total` and `rollcall_sockets_closed_total` go to the recorder
//! that is installed when [`Hub::new`] is called.

mod frame;
mod hub;
mod metric;
mod outbox;
mod socket;
mod topic;
mod upgrade;

pub use frame::Frame;
pub use hub::{Connection, ConnectionId, Hub, HubConfig, Registration, TooManyConnections};
pub use socket::{Handled, Handler, Incoming, SocketConfig, refuse, run};
pub use topic::Message;
pub use tungstenite::Utf8Bytes;
pub use upgrade::{Socket, Upgrade, UpgradeRejection};

/// Names a user or a topic.
pub type Key = [u8; 12];

/// When a member of a topic gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Before the rest: the frame is written to these sockets, or [`HubConfig::first_tier_wait`] is over, before
    /// anybody else is given it.
    First,
    /// After the first.
    Rest,
}

/// Why the server closes a socket, as the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code of RFC 6455, section 7.4, or one of our own from 4000.
    pub code: u16,
    /// A few words, at most 123 bytes.
    pub reason: &'static str,
}

/// The reasons for which sockets are closed.
pub mod close {
    use super::Close;

    /// The peer broke the protocol.
    pub const PROTOCOL: Close = Close { code: 1002, reason: "protocol error" };
    /// A text message was not UTF-8.
    pub const NOT_UTF8: Close = Close { code: 1007, reason: "text is not UTF-8" };
    /// The peer may not be here: its token or origin.
    pub const POLICY: Close = Close { code: 1008, reason: "policy violation" };
    /// The peer goes on sending too much after it was told.
    pub const FLOODING: Close = Close { code: 1008, reason: "too many messages" };
    /// A frame or message was longer than [`max_frame`](super::SocketConfig::max_frame).
    pub const TOO_BIG: Close = Close { code: 1009, reason: "message too big" };
    /// The server restarts; connect again.
    pub const RESTART: Close = Close { code: 1012, reason: "restart" };
    /// The token's time is over.
    pub const EXPIRED: Close = Close { code: 4001, reason: "token expired" };
    /// The account was disabled, or its role changed.
    pub const ACCOUNT_CHANGED: Close = Close { code: 4003, reason: "account changed" };
    /// The peer did not take what was sent to it.
    pub const TOO_SLOW: Close = Close { code: 4008, reason: "too slow" };
}
