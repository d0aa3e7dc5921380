//! E-mails that wait to be sent, and the tokens in them.
//!
//! A mail is queued in the store, in the same step as what it tells of, and sent from there: at least once, and for each
//! person and [`Reason`] once. What it says is made when it is sent, from what then holds.
//!
//! To add a kind of mail: a [`Reason`] with its [`Kind`], and its words where mails are written.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;

use crate::id::{ClassId, MailId, SessionId, UserId};
use crate::time::Timestamp;
use crate::user::UnknownName;

/// How soon somebody gets another mail for the same reason who asks for one. The new one's token is then the only one.
pub const ASK_AGAIN: Duration = Duration::from_mins(1);

/// What a mail is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its reader proves that the account's address is theirs.
    ConfirmEmail,
    /// Its reader may choose a new password.
    ResetPassword,
    /// Its reader was absent.
    Absence {
        /// The class.
        class_id: ClassId,
        /// The session, which is finished.
        session_id: SessionId,
    },
}

impl Reason {
    /// What kind of mail that is.
    pub const fn kind(self) -> Kind {
        match self {
            Self::ConfirmEmail => Kind::ConfirmEmail,
            Self::ResetPassword => Kind::ResetPassword,
            Self::Absence { .. } => Kind::Absence,
        }
    }

    /// What is queued only once at a time: the mail to this person for this reason.
    pub fn key(self, to: UserId) -> String {
        let kind = self.kind().as_str();
        match self {
            Self::ConfirmEmail | Self::ResetPassword => format!("{kind}:{to}"),
            Self::Absence { session_id, .. } => format!("{kind}:{to}:{session_id}"),
        }
    }
}

/// A kind of mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Reason::ConfirmEmail`].
    ConfirmEmail,
    /// [`Reason::ResetPassword`].
    ResetPassword,
    /// [`Reason::Absence`].
    Absence,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::ConfirmEmail, Self::ResetPassword, Self::Absence];

    /// The kind's name, as stores keep it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfirmEmail => "confirm-email",
            Self::ResetPassword => "reset-password",
            Self::Absence => "absence",
        }
    }

    /// Until when a mail of `queued_at` is worth sending, and its token good.
    pub fn expires_at(self, queued_at: Timestamp) -> Timestamp {
        queued_at.after(match self {
            Self::ConfirmEmail => Duration::from_hours(7 * 24),
            Self::ResetPassword => Duration::from_hours(1),
            Self::Absence => Duration::from_hours(3 * 24),
        })
    }
}

impl FromStr for Kind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(UnknownName)
    }
}

/// What a store keeps in the place of a token: its hash, which does not lead back to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash in its stored form.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The stored form of the hash.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// The port to whatever makes the tokens in mails: from the server's secret, so that no store has to keep one.
pub trait MailTokens: Send + Sync + 'static {
    /// The token of a mail: the same each time.
    fn of_mail(&self, mail: MailId) -> SecretString;

    /// What a store keeps in the place of any text that may be a token.
    fn hash(&self, token: &str) -> TokenHash;

    /// The token by which somebody stops notices of absences, without signing in and for good.
    fn of_unsubscriber(&self, user: UserId) -> SecretString;

    /// Whose token by [`of_unsubscriber`](Self::of_unsubscriber) the text is.
    fn unsubscriber(&self, token: &str) -> Option<UserId>;
}

/// A mail that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMail {
    /// Its id, of which its `Message-ID` and its token are made.
    pub id: MailId,
    /// Whom it is for.
    pub to: UserId,
    /// What it is about.
    pub reason: Reason,
    /// The hash of its token, if its reader shall be able to do something by it.
    pub token: Option<TokenHash>,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// It takes the place of a mail with the same [key](Reason::key) that was queued before this moment, or that a clock
    /// which has been set back dates well [after](NewMail::future) this one; any other stands in its way.
    pub replaces_before: Timestamp,
}

impl NewMail {
    /// A mail that was queued after this moment was not, by the present clock.
    pub fn future(&self) -> Timestamp {
        self.queued_at.after(ASK_AGAIN)
    }
}

/// A mail that is being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Its id.
    pub id: MailId,
    /// Whom it is for.
    pub to: UserId,
    /// What it is about.
    pub reason: Reason,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// The number of this attempt, from 1.
    pub attempt: u32,
}

/// A mail as it stands in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMail {
    /// Its id.
    pub id: MailId,
    /// Whom it is for.
    pub to: UserId,
    /// What it is about.
    pub reason: Reason,
    /// The hash of its token, if that was not used yet.
    pub token: Option<TokenHash>,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// When it is to be sent next; `None` if nothing more is sent.
    pub due_at: Option<Timestamp>,
    /// How many attempts were made to send it.
    pub attempts: u32,
}

/// What becomes of a mail after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing more is sent: it was accepted, or it never will be.
    Over,
    /// It is to be sent from this moment on.
    Due(Timestamp),
}
