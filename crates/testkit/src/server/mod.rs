//! A spawned Rollcall server and clients that talk to it as the world does: over HTTP and WebSocket.
//!
//! [`Server`] owns a process and a folder of its own. [`Client`], [`Person`] and [`Socket`] know only a base address,
//! so they serve as well against one replica of several or against a server that somebody else started. Nothing here
//! sleeps for luck: every wait ends with what it waits for, or fails after [`PATIENCE`].
//!
//! What a test asks for and does not get is a panic that says what came instead; the server's log follows it.

mod client;
mod process;
mod socket;
mod tls;
mod token;

use std::time::Duration;

pub use client::{Answer, Call, Class, Client, Person, RawHttp, Refused};
pub use jsonwebtoken::Algorithm;
pub use process::{Builder, MONGODB, REPLICAS, SECRET, Server};
pub use socket::{Dial, Ended, Frame, Socket};
pub use tls::{Authority, Pair, Stream, Trust};
pub use token::{claims, signed, unsigned};

/// How long anything may take before it counts as never: far more than a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives something, asking again every few milliseconds.
///
/// For what can only be looked at, such as a log or a process that ends; what announces itself is awaited instead.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = condition() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, wait).await;
    found.unwrap_or_else(|elapsed| panic!("{what}: {elapsed}"))
}
