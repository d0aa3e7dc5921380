//! Sends e-mails: takes what waits in the outbox, writes it as it is true then, and hands it to a mail server.
//!
//! * At least once: a mail leaves the outbox after the mail server accepted it. One that comes twice has the same
//!   `Message-ID`.
//! * A mail server that is away, or that refuses the password, is asked again after a while, by one mail and not by all.
//! * Nothing goes over a way that is not encrypted, except within this machine.
//!
//! [`Sender::run`] is all that a server needs. What mails say is in `letter.rs` and `templates`; how the mail server is
//! spoken to in `smtp.rs`; when what is sent in `sender.rs`.

mod config;
mod letter;
mod metric;
mod sender;
mod smtp;
mod tls;

pub use config::{Config, Credentials, Invalid, Limits, Originator, PublicUrl, Security, SmtpUrl};
pub use sender::Sender;
