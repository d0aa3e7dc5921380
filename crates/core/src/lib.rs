//! What Rollcall is about, without a word about how it is reached or where it is kept.
//!
//! * [`user`], [`class`], [`session`], [`record`]: the nouns, as validated types. A value of such a type is valid.
//! * [`policy`]: who may do what. It alone makes a [`policy::Teacher`] or a [`policy::Student`] out of an account.
//! * [`store`]: the port to the database, and [`store::Change`], the stream of what it committed.
//! * [`mail`]: e-mails that wait to be sent, and the tokens in them.
//! * [`transfer`]: the port for a database taken as a whole, to be carried into another store.
//! * [`limit`]: how often something may happen, and the port to whatever counts it for all replicas together.
//! * [`service`]: the verbs. Both doors (HTTP and WebSocket) call these and nothing else.
//! * [`error`]: the one error that services answer with.
//!
//! There is no HTTP, SQL, BSON, JSON or socket in here. To add a verb, write its rule in [`policy`] or
//! [`session`], its atomic step in [`store`], and join them in [`service`].

pub mod class;
pub mod directory;
pub mod error;
pub mod id;
pub mod limit;
pub mod mail;
pub mod password;
pub mod policy;
pub mod record;
pub mod service;
pub mod session;
pub mod store;
pub mod time;
pub mod transfer;
pub mod user;

pub use error::{Error, FieldError};
pub use id::{ClassId, Ids, MailId, ObjectId, SessionId, UserId};
pub use time::{Clock, Timestamp};
