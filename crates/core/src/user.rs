//! Accounts and the rules for what they are made of.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use email_address::{EmailAddress, Options};
use secrecy::SecretString;

use crate::error::FieldError;
use crate::id::UserId;
use crate::time::Timestamp;

/// The most characters that a name of a person or of a class has.
pub const NAME_MAX_CHARS: usize = 100;
/// The fewest characters of a new password.
pub const PASSWORD_MIN_CHARS: usize = 6;
/// The most bytes of a new password: what bcrypt reads of it (Provos and Mazières, 1999).
pub const PASSWORD_MAX_BYTES: usize = 72;
/// The most characters of an e-mail address (RFC 3696, erratum 1690).
pub const EMAIL_MAX_CHARS: usize = 254;

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Owns classes and takes attendance.
    Teacher,
    /// Is enrolled and marked.
    Student,
    /// Administers; made on the command line only.
    Admin,
}

impl Role {
    /// The role's public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        [Self::Teacher, Self::Student, Self::Admin].into_iter().find(|role| role.as_str() == name).ok_or(UnknownName)
    }
}

/// The text is none of the names that this type has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name")]
pub struct UnknownName;

/// Trims `text` and holds it to the rule for names: 1 to [`NAME_MAX_CHARS`] characters, none of them a control.
pub(crate) fn name(field: &'static str, text: &str) -> Result<Arc<str>, FieldError> {
    let text = text.trim();
    let message = if text.is_empty() {
        "must not be empty".to_owned()
    } else if text.chars().count() > NAME_MAX_CHARS {
        format!("must have at most {NAME_MAX_CHARS} characters")
    } else if text.chars().any(char::is_control) {
        "must not contain control characters".to_owned()
    } else {
        return Ok(text.into());
    };
    Err(FieldError { field, message })
}

/// A person's name: trimmed, 1 to [`NAME_MAX_CHARS`] characters, no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonName(Arc<str>);

impl PersonName {
    /// Holds `text`, sent as `name`, to the rule.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        name("name", text).map(Self)
    }

    /// What a store kept: older data may break today's rule and is shown as it is.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An e-mail address as its owner wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(Arc<str>);

impl Email {
    /// Holds `text`, sent as `email`, to RFC 5321's form of an address with a dot in its domain.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let text = text.trim();
        let options = Options::default().with_required_tld().without_display_text().without_domain_literal();
        let valid = text.chars().count() <= EMAIL_MAX_CHARS
            && !text.chars().any(|c| c.is_control() || c.is_whitespace())
            && EmailAddress::parse_with_options(text, options).is_ok();
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(FieldError { field: "email", message: "must be an e-mail address such as name@example.org".to_owned() })
        }
    }

    /// What a store kept: older data may break today's rule and is shown as it is.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The mailbox behind an address of any form, as near as can be told: many mail servers take `name+anything` for
    /// `name`.
    pub fn mailbox(text: &str) -> String {
        let key = EmailKey::of(text);
        let (local, domain) = key.as_str().rsplit_once('@').unwrap_or((key.as_str(), ""));
        let local = local.trim_matches('"');
        format!("{}@{domain}", local.split_once('+').map_or(local, |(name, _)| name))
    }

    /// What makes the address unique.
    pub fn key(&self) -> EmailKey {
        EmailKey::of(&self.0)
    }
}

/// An e-mail address without regard to case and surrounding space: what must be unique, and what a login looks up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EmailKey(Box<str>);

impl EmailKey {
    /// The key of any text, valid address or not.
    pub fn of(text: &str) -> Self {
        Self(text.trim().to_lowercase().into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A password that may be set. Not the one that is tried at a login, which has no rules.
#[derive(Clone, Debug)]
pub struct NewPassword(SecretString);

impl NewPassword {
    /// Holds `text`, sent as `password`, to the rule: [`PASSWORD_MIN_CHARS`] characters to [`PASSWORD_MAX_BYTES`] bytes.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let message = if text.chars().count() < PASSWORD_MIN_CHARS {
            format!("must have at least {PASSWORD_MIN_CHARS} characters")
        } else if text.len() > PASSWORD_MAX_BYTES {
            format!("must have at most {PASSWORD_MAX_BYTES} bytes in UTF-8")
        } else if text.contains('\0') {
            // bcrypt's C implementations, which may read this hash one day, end a password here.
            "must not contain NUL".to_owned()
        } else {
            return Ok(Self(text.into()));
        };
        Err(FieldError { field: "password", message })
    }

    /// The password itself.
    pub fn secret(&self) -> &SecretString {
        &self.0
    }
}

/// A bcrypt hash in its usual text form. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Arc<str>);

impl PasswordHash {
    /// A hash as a store keeps it.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The hash's text, for a store or a hasher; never for a log or a client.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// An account as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: UserId,
    /// The person's name.
    pub name: PersonName,
    /// The address, which is also the login.
    pub email: Email,
    /// What the account may do.
    pub role: Role,
    /// The password's hash.
    pub password_hash: PasswordHash,
    /// Tokens carry this number; raising it revokes all that were issued before.
    pub token_version: u32,
    /// A disabled account cannot log in, and its tokens are refused.
    pub disabled: bool,
    /// Whether the address is known to be the person's.
    pub email_confirmed: bool,
    /// Whether the person wants notices of absences, where a class sends them.
    pub absence_notices: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Account {
    /// The account after `change`.
    #[must_use]
    pub fn changed(mut self, change: AccountChange) -> Self {
        let ends_tokens = change.ends_tokens();
        match change {
            AccountChange::Disable if self.disabled => return self,
            AccountChange::Enable if !self.disabled => return self,
            AccountChange::Disable => self.disabled = true,
            AccountChange::Enable => self.disabled = false,
            AccountChange::SetPassword(hash) => self.password_hash = hash,
            AccountChange::ResetPassword(hash) => {
                self.password_hash = hash;
                self.email_confirmed = true;
            }
            AccountChange::ConfirmEmail => self.email_confirmed = true,
            AccountChange::AbsenceNotices(wanted) => self.absence_notices = wanted,
        }
        self.token_version = self.token_version.wrapping_add(u32::from(ends_tokens));
        self
    }

    /// What others see of the account.
    pub fn person(&self) -> Person {
        Person { id: self.id, name: self.name.clone(), email: self.email.clone() }
    }
}

/// What a class list shows of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The account's id.
    pub id: UserId,
    /// The person's name.
    pub name: PersonName,
    /// The person's address.
    pub email: Email,
}

/// A change to an account. Each raises [`Account::token_version`] where it must end the tokens issued before.
#[derive(Clone, Debug)]
pub enum AccountChange {
    /// No login, no token.
    Disable,
    /// The end of `Disable`; tokens from before stay revoked.
    Enable,
    /// A new password, which revokes all tokens.
    SetPassword(PasswordHash),
    /// The same, chosen by somebody who could read what was sent to the address, which is confirmed by that.
    ResetPassword(PasswordHash),
    /// The address is the person's.
    ConfirmEmail,
    /// Whether notices of absences are wanted.
    AbsenceNotices(bool),
}

impl AccountChange {
    /// Whether it ends the tokens issued before, and with them a link to reset the password.
    pub const fn ends_tokens(&self) -> bool {
        match self {
            Self::Disable | Self::Enable | Self::SetPassword(_) | Self::ResetPassword(_) => true,
            Self::ConfirmEmail | Self::AbsenceNotices(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trimmed_and_bounded() {
        assert_eq!(PersonName::parse("  Ada Lovelace\n").map(|n| n.as_str().to_owned()).as_deref(), Ok("Ada Lovelace"));
        assert!(PersonName::parse(&"ß".repeat(100)).is_ok(), "characters count, not bytes");
        for bad in ["", " \t ", "a\u{0}b", "a\u{7f}b", "a\nb", &"x".repeat(101)] {
            assert!(PersonName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_checked_and_unique_without_case() {
        for good in ["a@b.co", "  First.Last+tag@Sub.Example.org ", "jürgen@schule.example"] {
            assert!(Email::parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "a",
            "a@",
            "@b.co",
            "a@b",
            "a b@c.de",
            "a@b.co\u{0}",
            "Ada <a@b.co>",
            "a@[127.0.0.1]",
            "a@b..co",
            "a@@b.co",
        ] {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(EmailKey::of(" A@B.Co "), EmailKey::of("a@b.co"));
        for same in ["a@b.co", " A+1@B.co", "\"a\"@b.co", "a+x+y@b.co"] {
            assert_eq!(Email::mailbox(same), "a@b.co");
        }
    }

    #[test]
    fn passwords_are_refused_not_cut() {
        assert!(NewPassword::parse("12345").is_err());
        assert!(NewPassword::parse("123456").is_ok());
        assert!(NewPassword::parse("ééé").is_err(), "characters count for the least length");
        assert!(NewPassword::parse(&"é".repeat(36)).is_ok());
        assert!(NewPassword::parse(&"é".repeat(37)).is_err(), "bytes count for the greatest");
        assert!(!format!("{:?}", NewPassword::parse("hunter22")).contains("hunter22"));
    }
}
