//! What an operator says about mails, as validated types.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use lettre::message::Mailbox;
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use secrecy::SecretString;

/// What it must be, where something is not. It holds nothing of what was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(&'static str);

/// How mails are sent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The mail server.
    pub server: SmtpUrl,
    /// A PEM file of whom to trust beside those whom browsers trust.
    pub ca: Option<PathBuf>,
    /// Who the mails are from.
    pub from: Originator,
    /// Where readers reach Rollcall.
    pub public_url: PublicUrl,
    /// A folder with templates that take the place of the built-in ones of the same names.
    pub templates: Option<PathBuf>,
    /// How long things may take.
    pub limits: Limits,
}

/// How long things may take, and what is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// To connect, TLS included, and for each command and its answer.
    pub command: Duration,
    /// For the answer to a message's end. Whoever does not wait sends the message twice (RFC 5321, section 4.5.3.2.6).
    pub acceptance: Duration,
    /// After the first failure; twice as long each time, up to `longest_retry`.
    pub first_retry: Duration,
    /// The longest wait after a failure.
    pub longest_retry: Duration,
    /// For what is under way when the sender is to end: mail servers look into a message before they accept it.
    pub end: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command: Duration::from_secs(30),
            acceptance: Duration::from_mins(10),
            first_retry: Duration::from_secs(10),
            longest_retry: Duration::from_mins(15),
            end: Duration::from_secs(9),
        }
    }
}

/// How the way to the mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// TLS from the first byte on (RFC 8314).
    Implicit,
    /// TLS by `STARTTLS`, without which nothing is sent.
    StartTls,
    /// None: within this machine.
    Plain,
}

/// A user of the mail server.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

/// Where the mail server is, and who Rollcall is there. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct SmtpUrl {
    /// How the way there is protected.
    pub security: Security,
    /// The host, which its certificate must name. An IPv6 address has no brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Who Rollcall is there, if the server asks.
    pub credentials: Option<Credentials>,
}

impl SmtpUrl {
    /// Reads `smtps://user:password@host[:465]`, `smtp://user:password@host[:587]` or `smtp://host[:25]?tls=none`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const FORM: Invalid = Invalid(
            "smtps://user:password@host (TLS, port 465) or smtp://user:password@host (STARTTLS, port 587); \
             characters of the user and the password other than letters, digits and -._~ are written as %40 is for @",
        );
        let uri: Uri = text.trim().parse().map_err(|_| FORM)?;
        let authority = uri.authority().ok_or(FORM)?;
        if uri.path() != "/" && !uri.path().is_empty() {
            return Err(Invalid("an address with nothing behind its host and port, or smtp:// with ?tls=none"));
        }
        let (security, port) = match (uri.scheme_str(), uri.query()) {
            (Some("smtps"), None) => (Security::Implicit, 465),
            (Some("smtp"), None) => (Security::StartTls, 587),
            (Some("smtp"), Some("tls=none")) => (Security::Plain, 25),
            (Some("smtps" | "smtp"), Some(_)) => {
                return Err(Invalid("an address with nothing behind its host and port, or smtp:// with ?tls=none"));
            }
            _ => return Err(FORM),
        };
        let host = host(authority).ok_or(FORM)?;
        if security == Security::Plain && !is_loopback(&host) {
            return Err(Invalid(
                "without ?tls=none, which is for a mail server on this machine (localhost, 127.0.0.1 or [::1]): then STARTTLS is \
                 used; or begin with smtps://",
            ));
        }
        let port = match port_of(authority) {
            Some(given) => given?,
            None => port,
        };
        let credentials = match authority.as_str().rsplit_once('@') {
            None => None,
            Some((given, _)) => Some(credentials(given).ok_or(FORM)?),
        };
        Ok(Self { security, host, port, credentials })
    }
}

/// The host, without brackets, if it can be the name on a certificate.
fn host(authority: &http::uri::Authority) -> Option<String> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    ServerName::try_from(host.as_str()).is_ok().then_some(host)
}

/// The port that is given, if one is.
fn port_of(authority: &http::uri::Authority) -> Option<Result<u16, Invalid>> {
    let behind_user = authority.as_str().rsplit('@').next().unwrap_or_default();
    let behind_address = behind_user.rsplit(']').next().unwrap_or_default();
    let (_, port) = behind_address.rsplit_once(':')?;
    Some(
        port.parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(Invalid("an address with a port from 1 to 65535, or with none")),
    )
}

fn credentials(given: &str) -> Option<Credentials> {
    let (user, password) = given.split_once(':')?;
    let [user, password] = [user, password].map(|part| percent_decode_str(part).decode_utf8().ok());
    let (user, password) = (user?, password?);
    // NUL ends both where they are sent.
    let usable = |text: &str| !text.is_empty() && !text.contains('\0');
    (usable(&user) && usable(&password))
        .then(|| Credentials { user: user.into_owned(), password: password.into_owned().into() })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Where readers reach Rollcall: `https://school.example`, also with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    /// Without a slash at its end.
    text: String,
    host: String,
}

impl PublicUrl {
    /// Reads the address. It must be one under https, except on this machine.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        const FORM: Invalid = Invalid("an address such as https://school.example");
        let text = text.trim();
        if text.contains(['?', '#', '@']) {
            return Err(FORM);
        }
        let uri: Uri = text.parse().map_err(|_| FORM)?;
        let authority = uri.authority().ok_or(FORM)?;
        let host = host(authority).ok_or(FORM)?;
        port_of(authority).transpose()?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if is_loopback(&host) => {}
            Some("http") => {
                return Err(Invalid("an address under https://, as the links in mails let their readers act"));
            }
            _ => return Err(FORM),
        }
        Ok(Self { text: text.trim_end_matches('/').to_owned(), host })
    }

    /// The address, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host as mails name it: a name, or an address in brackets.
    pub(crate) fn mail_host(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V4(address)) => format!("[{address}]"),
            Ok(IpAddr::V6(address)) => format!("[IPv6:{address}]"),
            Err(_) => self.host.clone(),
        }
    }

    /// The address as people say it.
    pub(crate) fn shown(&self) -> &str {
        self.text.split_once("://").map_or(&self.text, |(_, rest)| rest)
    }
}

/// Who mails are from: `Rollcall <rollcall@school.example>`, or the address alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Originator(pub(crate) Mailbox);

impl Originator {
    /// Reads a name and an address, or an address alone.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mailbox: Option<Mailbox> = text.trim().parse().ok();
        // ASCII: there are servers that take nothing else.
        let mailbox = mailbox.filter(|mailbox| mailbox.email.to_string().is_ascii());
        mailbox.map(Self).ok_or(Invalid("an address such as Rollcall <rollcall@school.example>"))
    }
}

impl Originator {
    /// `rollcall` at the host of `public_url`, where nothing else is said. An address of a machine has none.
    pub fn at(public_url: &PublicUrl) -> Option<Self> {
        Self::parse(&format!("Rollcall <rollcall@{}>", public_url.host)).ok()
    }
}

impl fmt::Debug for Originator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn mail_servers_are_read() {
        let read = |text: &str| {
            let url = SmtpUrl::parse(text).unwrap();
            let credentials = url.credentials.map(|it| (it.user, it.password.expose_secret().to_owned()));
            (url.security, url.host, url.port, credentials)
        };
        let who = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (text, security, host, port, credentials) in [
            ("smtps://u:p@mail.example.org", Security::Implicit, "mail.example.org", 465, who("u", "p")),
            ("smtp://u:p@Mail.example.org/", Security::StartTls, "mail.example.org", 587, who("u", "p")),
            ("smtp://a%40b.c:p%3Aq%2F%25%C3%A9@m:2525", Security::StartTls, "m", 2525, who("a@b.c", "p:q/%é")),
            ("smtps://mail.example.org:1465", Security::Implicit, "mail.example.org", 1465, None),
            ("smtp://localhost?tls=none", Security::Plain, "localhost", 25, None),
            ("smtp://127.0.0.1:1025?tls=none", Security::Plain, "127.0.0.1", 1025, None),
            ("smtp://u:p@[::1]:1025/?tls=none", Security::Plain, "::1", 1025, who("u", "p")),
            ("smtps://[2001:db8::1]", Security::Implicit, "2001:db8::1", 465, None),
        ] {
            assert_eq!(read(text), (security, host.to_owned(), port, credentials), "{text}");
        }
    }

    #[test]
    fn what_is_no_mail_server_is_refused_without_showing_it() {
        for (text, expected) in [
            ("", "smtps://user:password@host"),
            ("mail.example.org", "smtps://user:password@host"),
            ("https://u:hidden@mail.example.org", "smtps://user:password@host"),
            ("smtp://hidden@mail.example.org", "smtps://user:password@host"),
            ("smtp://u:@mail.example.org", "smtps://user:password@host"),
            ("smtp://u:hidden@", "smtps://user:password@host"),
            ("smtp://u:hid den@mail.example.org", "smtps://user:password@host"),
            ("smtp://u:hidden%00@mail.example.org", "smtps://user:password@host"),
            ("smtp://u:hidden@mail_.example..org", "smtps://user:password@host"),
            ("smtp://u:hidden@mail.example.org:99999", ""),
            ("smtp://u:hidden@mail.example.org:0", "from 1 to 65535"),
            ("smtp://u:hidden@mail.example.org/path", "nothing behind"),
            ("smtp://u:hidden@mail.example.org?tls=none", "on this machine"),
            ("smtps://u:hidden@localhost?tls=none", "or smtp:// with ?tls=none"),
            ("smtp://u:hidden@mail.example.org?tls=opportunistic", "or smtp:// with ?tls=none"),
        ] {
            let error = SmtpUrl::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected) && !error.contains("hidden"), "{text}: {error}");
        }
        let url = SmtpUrl::parse("smtps://u:hidden@mail.example.org").unwrap();
        assert!(!format!("{url:?}").contains("hidden"), "{url:?}");
    }

    #[test]
    fn public_addresses_are_read() {
        for (text, as_str, mail_host, shown) in [
            ("https://school.example", "https://school.example", "school.example", "school.example"),
            (
                "https://School.example:8443/rollcall/",
                "https://School.example:8443/rollcall",
                "school.example",
                "School.example:8443/rollcall",
            ),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000", "[127.0.0.1]", "127.0.0.1:3000"),
            ("http://[::1]:3000/", "http://[::1]:3000", "[IPv6:::1]", "[::1]:3000"),
        ] {
            let url = PublicUrl::parse(text).unwrap();
            assert_eq!((url.as_str(), url.mail_host().as_str(), url.shown()), (as_str, mail_host, shown));
        }
        for bad in [
            "",
            "school.example",
            "https://",
            "ftp://a.b",
            "https://a.b/?c",
            "https://a.b/#c",
            "https://u@a.b",
            "https://a.b:0",
        ] {
            assert!(PublicUrl::parse(bad).is_err(), "{bad:?}");
        }
        let error = PublicUrl::parse("http://school.example").expect_err("links in the open").to_string();
        assert!(error.contains("https://"), "{error}");
    }

    #[test]
    fn originators_are_read() {
        for good in
            ["Rollcall <rollcall@school.example>", "rollcall@school.example", "\"Schule, Zürich\" <r@s.example>"]
        {
            assert!(Originator::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "Rollcall", "Rollcall <>", "a@b.c, d@e.f", "a@b.c\r\nBcc: d@e.f", "jürgen@schule.example"] {
            assert!(Originator::parse(bad).is_err(), "{bad:?}");
        }
    }
}
