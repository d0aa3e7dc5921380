//! Sign-up, login and who somebody is.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::Mails;
use crate::directory::Directory;
use crate::error::{Error, FieldError};
use crate::id::{Ids, UserId};
use crate::mail::Reason;
use crate::password::PasswordHasher;
use crate::policy::Member;
use crate::store::{Inserted, Page, Store};
use crate::time::Clock;
use crate::user::{Account, AccountChange, Email, EmailKey, NewPassword, PersonName, Role};

/// Who may sign up as a teacher.
#[derive(Clone, Debug)]
pub enum TeacherSignup {
    /// Anybody.
    Open,
    /// Nobody; the operator makes teachers.
    Closed,
    /// Who knows this code.
    Code(SecretString),
}

impl TeacherSignup {
    fn admits(&self, code: Option<&SecretString>) -> bool {
        match self {
            Self::Open => true,
            Self::Closed => false,
            Self::Code(right) => code.is_some_and(|code| {
                bool::from(code.expose_secret().as_bytes().ct_eq(right.expose_secret().as_bytes()))
            }),
        }
    }
}

/// What somebody who signs up says. There is no `Debug`: the password must not reach a log.
pub struct SignUp<'a> {
    /// The person's name.
    pub name: &'a str,
    /// The address.
    pub email: &'a str,
    /// The password.
    pub password: &'a str,
    /// What the account is to be.
    pub role: Role,
    /// The code that lets teachers in, if one is needed.
    pub code: Option<SecretString>,
}

/// Accounts.
pub struct Accounts {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hasher: Arc<dyn PasswordHasher>,
    pub(super) ids: Arc<Ids>,
    pub(super) directory: Arc<Directory>,
    pub(super) mails: Arc<Mails>,
    pub(super) teacher_signup: TeacherSignup,
}

impl Accounts {
    /// Makes an account for somebody who signs up: a student, or a teacher where that is open. Where mails are sent,
    /// one asks to confirm the address, if `welcome`.
    pub async fn sign_up(&self, wanted: SignUp<'_>, welcome: bool) -> Result<Account, Error> {
        if wanted.role == Role::Admin {
            return Err(Error::invalid("role", "must be teacher or student"));
        }
        let closed = wanted.role == Role::Teacher && !self.teacher_signup.admits(wanted.code.as_ref());
        self.make(wanted, closed, false, welcome).await
    }

    /// Makes an account of any role, on the operator's word, which holds for its address too.
    pub async fn create(&self, wanted: SignUp<'_>) -> Result<Account, Error> {
        self.make(wanted, false, true, false).await
    }

    async fn make(
        &self,
        wanted: SignUp<'_>,
        closed: bool,
        email_confirmed: bool,
        welcome: bool,
    ) -> Result<Account, Error> {
        let mut errors = Vec::new();
        let name = note(&mut errors, PersonName::parse(wanted.name));
        let email = note(&mut errors, Email::parse(wanted.email));
        let password = note(&mut errors, NewPassword::parse(wanted.password));
        let (Some(name), Some(email), Some(password)) = (name, email, password) else {
            return Err(Error::Invalid(errors));
        };
        if closed {
            return Err(Error::SignupClosed);
        }
        // Spares the hashing; the store decides.
        if self.store.user_by_email(&email.key()).await?.is_some() {
            return Err(Error::EmailExists);
        }
        let password_hash = self.hasher.hash(password).await?;
        let now = self.clock.now();
        let account = Account {
            id: UserId(self.ids.next(now)),
            name,
            email,
            role: wanted.role,
            password_hash,
            token_version: 0,
            disabled: false,
            email_confirmed,
            absence_notices: true,
            created_at: now,
        };
        let welcome = self.mails.with_token(account.id, Reason::ConfirmEmail).filter(|_| welcome);
        match self.store.insert_user(account.clone(), welcome).await? {
            Inserted::Created => Ok(account),
            Inserted::EmailExists => Err(Error::EmailExists),
        }
    }

    /// The account behind an address and a password. It takes the same time whether or not the address is known.
    pub async fn log_in(&self, email: &str, password: SecretString) -> Result<Account, Error> {
        let account = self.store.user_by_email(&EmailKey::of(email)).await?;
        let hash = account.as_ref().map(|account| account.password_hash.clone());
        let right = self.hasher.verify(password, hash).await?;
        account.filter(|account| right && !account.disabled).ok_or(Error::InvalidCredentials)
    }

    /// Who holds a token of this account and version, as the account is now.
    pub async fn member(&self, id: UserId, token_version: u32) -> Result<Member, Error> {
        self.directory.account(id, |account| Member::admit(account.ok_or(Error::Unauthenticated)?, token_version)).await
    }

    /// Disables or enables an account, or sets its password, on the operator's word.
    pub async fn change(&self, email: &str, change: AccountChange) -> Result<Option<Account>, Error> {
        match self.store.user_by_email(&EmailKey::of(email)).await? {
            Some(account) => Ok(self.store.change_user(account.id, change).await?),
            None => Ok(None),
        }
    }

    /// Sets an account's password, on the operator's word; all its tokens end.
    pub async fn reset_password(&self, email: &str, password: &str) -> Result<Option<Account>, Error> {
        let password = NewPassword::parse(password).map_err(|error| Error::Invalid(vec![error]))?;
        let hash = self.hasher.hash(password).await?;
        self.change(email, AccountChange::SetPassword(hash)).await
    }

    /// All accounts by id, for the operator.
    pub async fn list(&self, page: Page<UserId>) -> Result<Vec<Account>, Error> {
        Ok(self.store.users(page).await?)
    }
}

fn note<T>(errors: &mut Vec<FieldError>, parsed: Result<T, FieldError>) -> Option<T> {
    parsed.map_err(|error| errors.push(error)).ok()
}
