//! E-mails: what is asked for by those who read them, and what whoever sends them needs.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::class::ClassName;
use crate::directory::Directory;
use crate::error::Error;
use crate::id::{Ids, MailId, UserId};
use crate::mail::{ASK_AGAIN, Fate, Kind, Mail, MailTokens, NewMail, Reason, TokenHash};
use crate::password::PasswordHasher;
use crate::policy::Member;
use crate::session::{Actor, SessionState, Status};
use crate::store::{Absences, Change, Store};
use crate::time::{Clock, Timestamp};
use crate::user::{Account, AccountChange, Email, EmailKey, NewPassword, PersonName};

/// How many notices of absences somebody is sent in a day at most: no timetable has more lessons, and nobody can fill a
/// student's mailbox by sessions.
const NOTICES_A_DAY: u64 = 12;
const DAY: Duration = Duration::from_hours(24);
/// How many sessions' absent students are looked for at once.
const SESSIONS: u32 = 16;

/// What a mail says, made when it is sent. There is no `Debug`: it holds a token.
pub struct Letter {
    /// Whom it is for.
    pub name: PersonName,
    /// The address.
    pub email: Email,
    /// What it is about.
    pub subject: Subject,
}

/// What a letter is about, with the token that lets its reader act.
pub enum Subject {
    /// To confirm the address.
    ConfirmEmail {
        /// For [`Mails::confirm`].
        token: SecretString,
        /// Until when it is good.
        expires_at: Timestamp,
    },
    /// To choose a new password.
    ResetPassword {
        /// For [`Mails::reset`].
        token: SecretString,
        /// Until when it is good.
        expires_at: Timestamp,
    },
    /// Its reader was absent.
    Absence {
        /// The class's name.
        class: ClassName,
        /// When the session was opened.
        started_at: Timestamp,
        /// For [`Mails::set_notices`].
        unsubscribe: SecretString,
    },
}

/// E-mails.
pub struct Mails {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hasher: Arc<dyn PasswordHasher>,
    pub(super) ids: Arc<Ids>,
    pub(super) directory: Arc<Directory>,
    /// `None`: the operator has not said how mails are sent.
    pub(super) tokens: Option<Arc<dyn MailTokens>>,
}

impl Mails {
    /// Refuses what needs mails where none are sent.
    pub fn set_up(&self) -> Result<(), Error> {
        self.tokens().map(drop)
    }

    fn tokens(&self) -> Result<&dyn MailTokens, Error> {
        self.tokens.as_deref().ok_or(Error::MailNotSetUp)
    }

    /// A mail with a token to somebody who asks for it, or just signed up; `None` where no mails are sent.
    pub(super) fn with_token(&self, to: UserId, reason: Reason) -> Option<NewMail> {
        let tokens = self.tokens.as_deref()?;
        let now = self.clock.now();
        let id = MailId(self.ids.next(now));
        Some(NewMail {
            id,
            to,
            reason,
            token: Some(tokens.hash(tokens.of_mail(id).expose_secret())),
            queued_at: now,
            replaces_before: now.before(ASK_AGAIN),
        })
    }

    /// The mail by which to choose a new password, for [`queue`](Self::queue), if the address is that of an account.
    /// Whether it is, nobody must be told.
    pub async fn forgot_password(&self, email: &str) -> Result<Option<NewMail>, Error> {
        self.set_up()?;
        let account = self.store.user_by_email(&EmailKey::of(email)).await?;
        let account = account.filter(|account| !account.disabled);
        Ok(account.and_then(|account| self.with_token(account.id, Reason::ResetPassword)))
    }

    /// Queues a mail.
    pub async fn queue(&self, mail: NewMail) -> Result<(), Error> {
        Ok(self.store.queue_mails(vec![mail]).await?)
    }

    /// Sets the password of whoever was sent `token`, and ends all logins of the account. Answers with whose it is.
    pub async fn reset_password(&self, token: &str, password: &str) -> Result<UserId, Error> {
        let token = self.tokens()?.hash(token);
        let password = NewPassword::parse(password).map_err(|error| Error::Invalid(vec![error]))?;
        // Spares the hashing; the store decides.
        if self.store.token_owner(token, Kind::ResetPassword, self.clock.now()).await?.is_none() {
            return Err(Error::InvalidLink);
        }
        let change = AccountChange::ResetPassword(self.hasher.hash(password).await?);
        Ok(self.use_token(token, Kind::ResetPassword, change).await?.id)
    }

    /// Sends the member the mail by which to confirm the address, unless it is confirmed already: `false`.
    pub async fn ask_to_confirm(&self, member: &Member) -> Result<bool, Error> {
        self.set_up()?;
        // As it is now: somebody who just confirmed must not be asked again.
        let account = self.store.user(member.id()).await?.ok_or(Error::Unauthenticated)?;
        if account.email_confirmed {
            return Ok(false);
        }
        let mail = self.with_token(account.id, Reason::ConfirmEmail);
        self.store.queue_mails(mail.into_iter().collect()).await?;
        Ok(true)
    }

    /// Confirms the address of whoever was sent `token`. Answers with the account.
    pub async fn confirm(&self, token: &str) -> Result<Account, Error> {
        let token = self.tokens()?.hash(token);
        self.use_token(token, Kind::ConfirmEmail, AccountChange::ConfirmEmail).await
    }

    async fn use_token(&self, token: TokenHash, kind: Kind, change: AccountChange) -> Result<Account, Error> {
        let changed = self.store.use_token(token, kind, self.clock.now(), change).await?;
        let account = changed.ok_or(Error::InvalidLink)?;
        self.directory.changed(&Change::Account(account.id));
        Ok(account)
    }

    /// Stops the notices of absences to whoever has the token, or starts them again.
    pub async fn set_notices(&self, token: &str, wanted: bool) -> Result<(), Error> {
        let user = self.tokens()?.unsubscriber(token).ok_or(Error::InvalidLink)?;
        let changed = self.store.change_user(user, AccountChange::AbsenceNotices(wanted)).await?;
        changed.map(drop).ok_or(Error::InvalidLink)
    }

    /// Queues notices to the absent students of sessions that were finished. Answers with how many sessions those were.
    pub async fn queue_absences(&self) -> Result<usize, Error> {
        let finished = self.store.absences(SESSIONS).await?;
        for Absences { session_id, class_id } in &finished {
            let reason = Reason::Absence { class_id: *class_id, session_id: *session_id };
            let now = self.clock.now();
            let finished_at = match self.store.session(*class_id, *session_id).await?.map(|session| session.state) {
                // No mails may have been sent for long: what was then is no news any more. And of a session that was
                // forgotten nobody knows who was there.
                Some(SessionState::Finished { at, by: Actor::User(_), .. }) => {
                    Some(at).filter(|at| reason.kind().expires_at(*at) > now)
                }
                _ => None,
            };
            let class = self.store.class(*class_id).await?;
            if let Some(queued_at) = finished_at.filter(|_| class.is_some_and(|class| class.absence_notices)) {
                let mut mails = Vec::new();
                for record in self.store.records(*session_id, None).await? {
                    let to = record.student_id;
                    if record.status == Status::Absent && self.is_told(to, now).await? {
                        let id = MailId(self.ids.next(now));
                        // What is there already is the same notice: this was done before, and not to its end.
                        let replaces_before = Timestamp::from_millis(i64::MIN);
                        mails.push(NewMail { id, to, reason, token: None, queued_at, replaces_before });
                    }
                }
                self.store.queue_mails(mails).await?;
            }
            self.store.absences_queued(*session_id).await?;
        }
        Ok(finished.len())
    }

    /// Whether somebody is told of another absence.
    async fn is_told(&self, student: UserId, now: Timestamp) -> Result<bool, Error> {
        let wanted = self.store.user(student).await?.as_ref().is_some_and(wants_notices);
        Ok(wanted && self.store.mails_since(student, Kind::Absence, now.before(DAY)).await? < NOTICES_A_DAY)
    }

    /// Takes at most `limit` mails to send. Each is this caller's for as long as `lease`, and longer by
    /// [`keep`](Self::keep).
    pub async fn take(&self, lease: Duration, limit: u32) -> Result<Vec<Mail>, Error> {
        let now = self.clock.now();
        Ok(self.store.take_mails(now, now.after(lease), limit).await?)
    }

    /// What the mail says now; `None` if nobody is to be told any more.
    pub async fn letter(&self, mail: &Mail) -> Result<Option<Letter>, Error> {
        let tokens = self.tokens()?;
        let Some(account) = self.store.user(mail.to).await?.filter(|account| !account.disabled) else {
            return Ok(None);
        };
        let expires_at = mail.reason.kind().expires_at(mail.queued_at);
        let subject = match mail.reason {
            Reason::ConfirmEmail if account.email_confirmed => return Ok(None),
            Reason::ConfirmEmail => Subject::ConfirmEmail { token: tokens.of_mail(mail.id), expires_at },
            Reason::ResetPassword => Subject::ResetPassword { token: tokens.of_mail(mail.id), expires_at },
            Reason::Absence { class_id, session_id } => {
                let session = self.store.session(class_id, session_id).await?;
                let (Some(session), Some(class)) = (session, self.store.class(class_id).await?) else {
                    return Ok(None);
                };
                if !class.absence_notices || !wants_notices(&account) {
                    return Ok(None);
                }
                Subject::Absence {
                    class: class.name,
                    started_at: session.started_at,
                    unsubscribe: tokens.of_unsubscriber(account.id),
                }
            }
        };
        Ok(Some(Letter { name: account.name, email: account.email, subject }))
    }

    /// The mail is still being sent: it is the caller's for as long as `lease` from now.
    pub async fn keep(&self, mail: &Mail, lease: Duration) -> Result<(), Error> {
        self.later(mail, lease).await
    }

    /// The mail was not accepted: it is sent again after `wait`.
    pub async fn later(&self, mail: &Mail, wait: Duration) -> Result<(), Error> {
        Ok(self.store.settle_mail(mail, Fate::Due(self.clock.now().after(wait))).await?)
    }

    /// The mail was accepted, or nobody is to be told any more.
    pub async fn over(&self, mail: &Mail) -> Result<(), Error> {
        Ok(self.store.settle_mail(mail, Fate::Over).await?)
    }

    /// Forgets what is expired. Answers with how many mails were never sent.
    pub async fn forget_expired(&self) -> Result<u64, Error> {
        Ok(self.store.forget_mails(self.clock.now()).await?)
    }
}

/// Whether somebody is told of an absence. An address that nobody has confirmed may be a stranger's, whom attendance
/// is no business of.
fn wants_notices(account: &Account) -> bool {
    account.email_confirmed && account.absence_notices && !account.disabled
}
