//! The configuration: validated types made of [`crate::settings`], in one place.
//!
//! All mistakes are collected and told together, each with the setting's name, its value (secrets masked) and what
//! would be right.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use rollcall_core::service::TeacherSignup;
use rollcall_mail::{Limits as MailLimits, Originator, PublicUrl, SmtpUrl};
use secrecy::{SecretSlice, SecretString};
use tracing_subscriber::EnvFilter;

use crate::backups::{Backups, Keep};
use crate::database::Database;
use crate::passwords;
use crate::settings::{Given, Settings, Source};
use crate::tls;
#[cfg(feature = "acme")]
use crate::tls::acme::{LETS_ENCRYPT, Order};
use crate::tls::files::Pair;

/// The fewest bytes of a token secret: as many as the signature has (RFC 7518, 3.2).
pub(crate) const SECRET_MIN_BYTES: usize = 32;
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = DAY.saturating_mul(365);
const LONGEST: Duration = DAY.saturating_mul(3650);
const LONGEST_DRAIN: Duration = Duration::from_mins(10);
/// What the name of the folder ends in that keeps certificates, in the place of the database's own ending.
#[cfg(feature = "acme")]
const CACHE_EXTENSION: &str = "acme";
const DURATION: &str = "a duration from 1s to 3650d, such as 90s, 30m, 24h or 7d";
const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:8000, 0.0.0.0:8000 or [::]:8000";

/// The configuration of a server.
#[derive(Debug)]
pub(crate) struct Config {
    /// The database.
    pub database: Database,
    /// Backups of the embedded database.
    pub backups: Option<Backups>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the certificate for TLS is from; `None` is plain HTTP.
    pub tls: Option<tls::Source>,
    /// Where plain HTTP is redirected from.
    pub redirect: Option<SocketAddr>,
    /// The port it is redirected to; `None` is the one that is listened on.
    pub redirect_port: Option<u16>,
    /// For how long browsers use nothing but HTTPS.
    pub hsts_max_age: Duration,
    /// What tokens are signed with; `None` is the secret beside the database.
    pub jwt_secret: Option<SecretSlice<u8>>,
    /// How long a token is valid.
    pub token_ttl: Duration,
    /// The cost of new password hashes, as a power of two.
    pub bcrypt_cost: u32,
    /// Who may sign up as a teacher.
    pub teacher_signup: TeacherSignup,
    /// Origins of web pages that may use the server; none is its own host.
    pub allowed_origins: Vec<String>,
    /// Proxies whose word for a client's address is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether logins, sign-ups and messages are limited.
    pub limits: bool,
    /// How long to serve on, not ready, after the order to end.
    pub drain_delay: Duration,
    /// Where metrics are served, if not on the main address.
    pub metrics: Option<SocketAddr>,
    /// How mails are sent; `None` is not at all.
    pub mail: Option<rollcall_mail::Config>,
    /// After what time a session is finished that nobody finished.
    pub session_max_age: Duration,
}

/// What is logged and how.
#[derive(Debug)]
pub(crate) struct Logs {
    /// Which events.
    pub filter: EnvFilter,
    /// How they look.
    pub format: LogFormat,
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting with a value that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    name: &'static str,
    /// As far as it may be shown.
    value: String,
    /// Where the value is from, if there is one.
    source: Option<Source>,
    /// What would be right, after "must be" or "must not be".
    wanted: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, source, wanted } = self;
        write!(f, "{name} is {value}")?;
        if let Some(source) = source {
            write!(f, " ({source})")?;
        }
        write!(f, ": it must be {wanted}")
    }
}

/// All settings that have a value that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Each mistake by itself.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        self.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))?;
        f.write_str("\nrollcall --help explains every setting")
    }
}

impl std::error::Error for Mistakes {}

impl Config {
    /// The configuration that `settings` describe, and what is to be logged.
    pub(crate) fn new(settings: &Settings) -> Result<(Self, Logs), Mistakes> {
        let mut reader = Reader::new(settings);
        let database = reader.database();
        let listen = reader.listen();
        let metrics =
            reader.read("METRICS_ADDR", shown, |text| another_address(text, &[("LISTEN_ADDR", Some(listen))]));
        let tls = reader.tls(&database);
        let redirect = reader.read("HTTP_REDIRECT_ADDR", shown, |text| {
            if tls.is_none() {
                return Err("unset without TLS: there is nowhere to send to. Set TLS_CERT and TLS_KEY, or ACME_DOMAIN"
                    .to_owned());
            }
            another_address(text, &[("LISTEN_ADDR", Some(listen)), ("METRICS_ADDR", metrics)])
        });
        let backups = reader.backups(&database);
        let config = Self {
            database,
            backups,
            listen,
            metrics,
            tls,
            redirect,
            redirect_port: reader.read("HTTP_REDIRECT_PORT", shown, |text| {
                let port = text.parse().ok().filter(|port| *port != 0);
                port.ok_or_else(|| "a port from 1 to 65535".to_owned())
            }),
            hsts_max_age: reader.read("HSTS_MAX_AGE", shown, hsts_max_age).unwrap_or(YEAR),
            jwt_secret: reader.read("JWT_SECRET", masked, secret),
            token_ttl: reader.read("TOKEN_TTL", shown, duration).unwrap_or(DAY),
            bcrypt_cost: reader.bcrypt_cost(),
            teacher_signup: reader.read("TEACHER_SIGNUP", masked_code, teacher_signup).unwrap_or(TeacherSignup::Open),
            allowed_origins: reader.read("ALLOWED_ORIGINS", shown, origins).unwrap_or_default(),
            trusted_proxies: reader.read("TRUSTED_PROXIES", shown, networks).unwrap_or_default(),
            limits: reader
                .read("RATE_LIMIT", shown, |text| one_of(text, &[("on", true), ("off", false)]))
                .unwrap_or(true),
            drain_delay: reader.read("DRAIN_DELAY", shown, drain_delay).unwrap_or_default(),
            mail: reader.mail(),
            session_max_age: reader.read("SESSION_MAX_AGE", shown, duration).unwrap_or(DAY),
        };
        let logs = reader.logs();
        if config.database.file().is_none() {
            let wanted = "the same on every replica, for example what `openssl rand -hex 32` prints once: with MongoDB \
                          there is no file beside the database to keep one in";
            reader.missing("JWT_SECRET", wanted);
        }
        reader.finish((config, logs))
    }

    /// The database alone, for commands that need nothing else.
    pub(crate) fn database(settings: &Settings) -> Result<Database, Mistakes> {
        let mut reader = Reader::new(settings);
        let database = reader.database();
        reader.finish(database)
    }

    /// The database and the cost of new password hashes, for commands about accounts.
    pub(crate) fn accounts(settings: &Settings) -> Result<(Database, u32), Mistakes> {
        let mut reader = Reader::new(settings);
        let accounts = (reader.database(), reader.bcrypt_cost());
        reader.finish(accounts)
    }

    /// Where the server listens, and whether over TLS, for commands that call it.
    pub(crate) fn listen(settings: &Settings) -> Result<(SocketAddr, bool), Mistakes> {
        let mut reader = Reader::new(settings);
        let listen = reader.listen();
        let tls = ["TLS_CERT", "ACME_DOMAIN"].into_iter().any(|name| settings.get(name).is_some());
        reader.finish((listen, tls))
    }

    /// Where the certificate is from, for commands that look at it.
    pub(crate) fn tls(settings: &Settings) -> Result<Option<tls::Source>, Mistakes> {
        let mut reader = Reader::new(settings);
        let database = reader.database();
        let tls = reader.tls(&database);
        reader.finish(tls)
    }

    /// The port that clients use, where the server listens on `port`. An ACME server comes to 443 and to no other.
    pub(crate) fn public_port(&self, port: u16) -> u16 {
        let files = matches!(self.tls, None | Some(tls::Source::Files(_)));
        self.redirect_port.unwrap_or(if files { port } else { 443 })
    }
}

/// Reads settings and notes what is wrong with them.
struct Reader<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self { settings, mistakes: Vec::new() }
    }

    fn finish<T>(self, value: T) -> Result<T, Mistakes> {
        if self.mistakes.is_empty() { Ok(value) } else { Err(Mistakes(self.mistakes)) }
    }

    /// The setting's value, if it is set and right. `show` says how a wrong one is told.
    fn read<T>(
        &mut self,
        name: &'static str,
        show: fn(&str) -> String,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Given { text, source } = self.settings.get(name)?;
        let (value, wanted) = match text.to_str().map(str::trim) {
            None => ("not UTF-8".to_owned(), "text in UTF-8".to_owned()),
            Some(text) => match parse(text) {
                Ok(value) => return Some(value),
                Err(wanted) => (if text.is_empty() { "empty".to_owned() } else { show(text) }, wanted),
            },
        };
        self.mistakes.push(Mistake { name, value, source: Some(*source), wanted });
        None
    }

    fn database(&mut self) -> Database {
        self.read("DB_URL", shown_url, any_database).unwrap_or_else(|| Database::File("data/rollcall.db".into()))
    }

    fn backups(&mut self, database: &Database) -> Option<Backups> {
        let embedded = database.file().is_some();
        let folder = self.read("BACKUP_DIR", shown, |text| match text {
            _ if !embedded => Err("unset: MongoDB is backed up by its own means, see docs/backup.md".to_owned()),
            "" => Err("the path of a folder".to_owned()),
            text => Ok(PathBuf::from(text)),
        });
        // A mistake in the one is not another in these.
        let given = self.settings.get("BACKUP_DIR").is_some();
        let together = || "set together with BACKUP_DIR, or not at all".to_owned();
        let every = self.read("BACKUP_EVERY", shown, |text| if given { duration(text) } else { Err(together()) });
        let keep = self.read("BACKUP_KEEP", shown, |text| match Keep::parse(text) {
            Some(keep) if given => Ok(keep),
            Some(_) => Err(together()),
            None => Err(Keep::WANTED.to_owned()),
        });
        Some(Backups { folder: folder?, every: every.unwrap_or(DAY), keep: keep.unwrap_or(Keep::DEFAULT) })
    }

    fn listen(&mut self) -> SocketAddr {
        self.read("LISTEN_ADDR", shown, address).unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)))
    }

    fn tls(&mut self, database: &Database) -> Option<tls::Source> {
        let acme = self.acme(database);
        if self.settings.get("ACME_DOMAIN").is_none() {
            return self.pair().map(tls::Source::Files);
        }
        if let Some(name) = ["TLS_CERT", "TLS_KEY"].into_iter().find(|name| self.settings.get(name).is_some()) {
            let wanted = "unset with ACME_DOMAIN: the certificate is from files or from an ACME server";
            self.read(name, shown, |_| Err::<(), _>(wanted.to_owned()));
        }
        acme
    }

    /// The certificate that is wanted from an ACME server.
    #[cfg(feature = "acme")]
    fn acme(&mut self, database: &Database) -> Option<tls::Source> {
        let domains = self.read("ACME_DOMAIN", shown, domains);
        let email = self.read("ACME_EMAIL", shown, email);
        let directory = self.read("ACME_DIRECTORY", shown, directory).unwrap_or_else(|| LETS_ENCRYPT.to_owned());
        let ca = self.read("ACME_CA", shown, path);
        let beside = database.file().map(|file| file.with_extension(CACHE_EXTENSION));
        let cache = self.read("ACME_CACHE", shown, path).or(beside);
        let domains = domains?;
        if cache.is_none() {
            let wanted = "a folder to keep the certificate in: with MongoDB there is no file beside the database. \
                          Several replicas share a certificate by TLS_CERT, or have a proxy end TLS";
            self.missing("ACME_CACHE", wanted);
        }
        Some(tls::Source::Acme(Order { domains, email, directory, ca, cache: cache? }))
    }

    #[cfg(not(feature = "acme"))]
    fn acme(&mut self, _: &Database) -> Option<tls::Source> {
        self.read("ACME_DOMAIN", shown, |_| Err("unset: this program is built without ACME".to_owned()))
    }

    fn pair(&mut self) -> Option<Pair> {
        match (self.read("TLS_CERT", shown, path), self.read("TLS_KEY", shown, path)) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                self.missing("TLS_KEY", "the path of the PEM file with the key of TLS_CERT");
                None
            }
            (None, Some(_)) => {
                self.missing("TLS_CERT", "the path of the PEM file with the certificate that TLS_KEY belongs to");
                None
            }
        }
    }

    /// Notes that a setting is wanted which is not set. One that is set, and wrong, is noted already.
    fn missing(&mut self, name: &'static str, wanted: &str) {
        if self.settings.get(name).is_none() {
            let (value, wanted) = ("not set".to_owned(), wanted.to_owned());
            self.mistakes.push(Mistake { name, value, source: None, wanted });
        }
    }

    fn bcrypt_cost(&mut self) -> u32 {
        let (least, most) = (*passwords::COSTS.start(), *passwords::COSTS.end());
        self.read("BCRYPT_COST", shown, |text| {
            let cost = text.parse().ok().filter(|cost| passwords::COSTS.contains(cost));
            cost.ok_or_else(|| format!("a whole number from {least} to {most}"))
        })
        .unwrap_or(10)
    }

    fn mail(&mut self) -> Option<rollcall_mail::Config> {
        let server = self.read("SMTP_URL", shown_url, |text| SmtpUrl::parse(text).map_err(|wanted| wanted.to_string()));
        let public_url =
            self.read("PUBLIC_URL", shown, |text| PublicUrl::parse(text).map_err(|wanted| wanted.to_string()));
        // A mistake in the one is not another in these.
        let given = self.settings.get("SMTP_URL").is_some();
        let together = || "set together with SMTP_URL, or not at all".to_owned();
        let file = |text: &str| if given { path(text) } else { Err(together()) };
        let ca = self.read("SMTP_CA", shown, file);
        let templates = self.read("MAIL_TEMPLATES", shown, file);
        let from = self.read("MAIL_FROM", shown, |text| match Originator::parse(text) {
            Ok(from) if given => Ok(from),
            Ok(_) => Err(together()),
            Err(wanted) => Err(wanted.to_string()),
        });
        if given {
            self.missing("PUBLIC_URL", "where people reach this server, such as https://rollcall.school.example");
        }
        let (server, public_url) = (server?, public_url?);
        let from = from.or_else(|| Originator::at(&public_url));
        if from.is_none() {
            self.missing("MAIL_FROM", "who the mails are from, such as Rollcall <rollcall@school.example>");
        }
        Some(rollcall_mail::Config { server, ca, from: from?, public_url, templates, limits: MailLimits::default() })
    }

    fn logs(&mut self) -> Logs {
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Logs {
            filter: self.read("LOG_LEVEL", shown, filter).unwrap_or_else(|| EnvFilter::new("info")),
            format: self.read("LOG_FORMAT", shown, |text| one_of(text, &formats)).unwrap_or(LogFormat::Text),
        }
    }
}

fn shown(text: &str) -> String {
    // Settings are short; what is not was pasted by mistake and may be anything.
    if text.chars().count() > 200 { "too long to show".to_owned() } else { format!("{text:?}") }
}

fn masked(text: &str) -> String {
    format!("a secret of {} bytes", text.len())
}

/// The rule of `TEACHER_SIGNUP` is no secret, its code is; where it is not clear which part is which, all is masked.
fn masked_code(text: &str) -> String {
    match text.split_once(':') {
        Some((rule, _)) if rule.eq_ignore_ascii_case("code") => format!("\"{rule}:…\""),
        _ => masked(text),
    }
}

/// A database's URL without what stands before an `@`, which is a password.
pub(crate) fn shown_url(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
            shown(&format!("{scheme}…@{after}"))
        }
        None => shown(text),
    }
}

fn one_of<T: Copy>(text: &str, names: &[(&str, T)]) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or "))
}

fn is_mongodb(text: &str) -> bool {
    text.starts_with("mongodb://") || text.starts_with("mongodb+srv://")
}

/// The database that a URL names, or what would be right.
#[cfg(feature = "mongodb")]
pub(crate) fn any_database(text: &str) -> Result<Database, String> {
    if is_mongodb(text) {
        return Ok(Database::Mongo(text.into()));
    }
    let also = |wanted| format!("{wanted}; or mongodb:// or mongodb+srv:// and the address of a MongoDB replica set");
    database(text).map(Database::File).map_err(also)
}

/// The database that a URL names, or what would be right.
#[cfg(not(feature = "mongodb"))]
pub(crate) fn any_database(text: &str) -> Result<Database, String> {
    database(text).map(Database::File)
}

fn database(text: &str) -> Result<PathBuf, String> {
    if is_mongodb(text) {
        return Err("sqlite:// and a path: this is for the embedded database only, not MongoDB".to_owned());
    }
    let path = text.strip_prefix("sqlite://").unwrap_or_default();
    if path.is_empty() || path.starts_with(':') || path.contains(['?', '\0']) {
        return Err("sqlite:// and the path of a file, such as sqlite://data/rollcall.db or \
                    sqlite:///var/lib/rollcall/rollcall.db; options and :memory: are not supported"
            .to_owned());
    }
    if path.starts_with('~') {
        return Err("sqlite:// and a path in full: ~ means nothing here".to_owned());
    }
    let path = Path::new(path);
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir() {
        return Err("the path of a file, and this is a folder".to_owned());
    }
    if path.extension().is_some_and(|extension| extension == crate::secret_file::EXTENSION) {
        return Err(
            "a path with another ending: the token secret is kept beside it in a file that ends in .secret".to_owned()
        );
    }
    Ok(path.to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok());
    match local {
        Some(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().map_err(|_| ADDRESS.to_owned()),
    }
}

/// An address that is none of the others, each with the setting that it is from.
fn another_address(text: &str, others: &[(&str, Option<SocketAddr>)]) -> Result<SocketAddr, String> {
    let parsed = address(text)?;
    let same = others.iter().find(|(_, other)| parsed.port() != 0 && Some(parsed) == *other);
    same.map_or(Ok(parsed), |(setting, _)| Err(format!("another address than {setting}")))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path".to_owned()) } else { Ok(text.into()) }
}

#[cfg(feature = "acme")]
fn domains(text: &str) -> Result<Vec<String>, String> {
    let domain = |text: &str| {
        let name = text.to_ascii_lowercase();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(letter)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = name.len() <= 253 && name.contains('.') && name.split('.').all(label);
        // An address ends in a number, a name never does.
        let is_address = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        (is_name && !is_address).then_some(name)
    };
    let wanted = "names such as rollcall.school.example, without scheme, port and *, other letters than English ones as \
                  xn--";
    let mut domains = list(text, wanted, domain)?;
    domains.sort_unstable();
    domains.dedup();
    if domains.is_empty() { Err(wanted.to_owned()) } else { Ok(domains) }
}

#[cfg(feature = "acme")]
fn email(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '?' | '&' | '%');
    match text.split_once('@') {
        Some((name, host)) if !name.is_empty() && host.contains('.') && text.chars().all(plain) => Ok(text.to_owned()),
        _ => Err("one e-mail address such as office@school.example".to_owned()),
    }
}

#[cfg(feature = "acme")]
fn directory(text: &str) -> Result<String, String> {
    let uri = text.parse::<axum::http::Uri>().ok();
    let fits =
        uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty()));
    if fits { Ok(text.to_owned()) } else { Err(format!("an address under https://, such as {LETS_ENCRYPT}")) }
}

fn secret(text: &str) -> Result<SecretSlice<u8>, String> {
    if text.len() < SECRET_MIN_BYTES {
        return Err(format!(
            "at least {SECRET_MIN_BYTES} bytes long, for example what `openssl rand -hex 32` prints; \
             or unset, and one is made"
        ));
    }
    Ok(text.as_bytes().to_vec().into())
}

fn duration(text: &str) -> Result<Duration, String> {
    duration_in(text, Duration::from_secs(1)..=LONGEST).ok_or_else(|| DURATION.to_owned())
}

fn hsts_max_age(text: &str) -> Result<Duration, String> {
    duration_in(text, Duration::ZERO..=LONGEST).ok_or_else(|| "a duration from 0s to 3650d, such as 365d".to_owned())
}

fn drain_delay(text: &str) -> Result<Duration, String> {
    duration_in(text, Duration::ZERO..=LONGEST_DRAIN).ok_or_else(|| "a duration from 0s to 10m, such as 10s".to_owned())
}

fn duration_in(text: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
    let span = text.parse::<Span>().ok()?;
    let duration: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok().filter(|duration| range.contains(duration))
}

fn teacher_signup(text: &str) -> Result<TeacherSignup, String> {
    match text.split_once(':') {
        None if text.eq_ignore_ascii_case("open") => Ok(TeacherSignup::Open),
        None if text.eq_ignore_ascii_case("closed") => Ok(TeacherSignup::Closed),
        Some((rule, code)) if rule.eq_ignore_ascii_case("code") && !code.is_empty() => {
            Ok(TeacherSignup::Code(SecretString::from(code)))
        }
        _ => Err("open, closed, or code: and a secret, such as code:correct-horse".to_owned()),
    }
}

fn list<T>(text: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| parse(item).ok_or_else(|| format!("{wanted}, separated by commas; {} is none", shown(item))))
        .collect()
}

fn origins(text: &str) -> Result<Vec<String>, String> {
    if text == "*" {
        return Ok(vec![text.to_owned()]);
    }
    list(text, "origins such as https://school.example or http://localhost:5173, or * alone for any", origin)
}

/// An origin as browsers send it: in lower case, without the scheme's own port.
fn origin(text: &str) -> Option<String> {
    let uri: axum::http::Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let own_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // A path, a user, or a port that is no number would never match what a browser sends.
    let slash = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    let host = authority.host();
    let port = match authority.as_str().strip_prefix(host)? {
        "" => own_port,
        port => port.strip_prefix(':')?.parse::<u16>().ok()?,
    };
    let port = if port == own_port { String::new() } else { format!(":{port}") };
    (slash && !host.is_empty()).then(|| format!("{scheme}://{host}{port}").to_ascii_lowercase())
}

fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    list(text, "addresses and networks such as 192.0.2.7 or 10.0.0.0/8", |item| {
        let network = item.parse::<IpNet>().or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        network.ok().map(|network| network.trunc())
    })
}

fn filter(text: &str) -> Result<EnvFilter, String> {
    const WANTED: &str = "off, error, warn, info, debug or trace, or filters such as info,rollcall_api=debug";
    // A filter may be the bare name of a part, which turns a mistyped level into silence.
    let bare =
        |part: &str| !part.contains(['=', '[']) && part.parse::<tracing_subscriber::filter::LevelFilter>().is_err();
    if text.is_empty() || text.split(',').any(|part| bare(part.trim())) {
        return Err(WANTED.to_owned());
    }
    EnvFilter::builder().parse(text).map_err(|_| WANTED.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use secrecy::ExposeSecret;

    use super::*;
    use crate::settings::Flags;

    fn settings(values: &[(&str, &str)]) -> Settings {
        let values: BTreeMap<_, _> = values.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
        Settings::layered(Flags::default(), |name| values.get(name).cloned(), &BTreeMap::new())
    }

    fn config(values: &[(&str, &str)]) -> Config {
        Config::new(&settings(values)).unwrap().0
    }

    fn mistake(name: &str, value: &str) -> String {
        let mistakes = Config::new(&settings(&[(name, value)])).unwrap_err();
        assert_eq!(mistakes.iter().count(), 1);
        mistakes.to_string()
    }

    #[test]
    fn nothing_has_to_be_set() {
        let (config, logs) = Config::new(&settings(&[])).unwrap();
        assert_eq!(config.database.file().unwrap(), Path::new("data/rollcall.db"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
        assert!(config.jwt_secret.is_none() && config.metrics.is_none() && config.limits);
        assert_eq!((config.token_ttl, config.session_max_age, config.bcrypt_cost), (DAY, DAY, 10));
        assert_eq!(config.drain_delay, Duration::ZERO);
        assert!(config.tls.is_none() && config.redirect.is_none() && config.hsts_max_age == YEAR);
        assert!(config.backups.is_none() && config.mail.is_none());
        assert!(matches!(config.teacher_signup, TeacherSignup::Open));
        assert!(config.allowed_origins.is_empty() && config.trusted_proxies.is_empty());
        assert_eq!((logs.filter.to_string().as_str(), logs.format), ("info", LogFormat::Text));
    }

    #[test]
    fn everything_can_be_set() {
        let (config, logs) = Config::new(&settings(&[
            ("DB_URL", "sqlite:///var/lib/rollcall/school.db"),
            ("BACKUP_DIR", "/backups"),
            ("BACKUP_EVERY", "6h"),
            ("BACKUP_KEEP", "2 last, 1 weekly"),
            ("LISTEN_ADDR", "[::]:0"),
            ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
            ("TOKEN_TTL", " 1h 30m "),
            ("BCRYPT_COST", "4"),
            ("TEACHER_SIGNUP", "code:a:b"),
            ("ALLOWED_ORIGINS", "https://School.example:443/, http://localhost:5173,http://[::1]:80"),
            ("TRUSTED_PROXIES", "192.0.2.7,10.1.2.3/8, fd00::/8"),
            ("RATE_LIMIT", "OFF"),
            ("DRAIN_DELAY", "10s"),
            ("TLS_CERT", "tls/tls.crt"),
            ("TLS_KEY", "tls/tls.key"),
            ("HTTP_REDIRECT_ADDR", "0.0.0.0:80"),
            ("HTTP_REDIRECT_PORT", "443"),
            ("HSTS_MAX_AGE", "0s"),
            ("METRICS_ADDR", "localhost:9000"),
            ("SESSION_MAX_AGE", "7d"),
            ("SMTP_URL", "smtps://rollcall%40school.example:p%40ss@mail.school.example"),
            ("SMTP_CA", "ca.pem"),
            ("MAIL_FROM", "Office <office@school.example>"),
            ("PUBLIC_URL", "https://school.example/rollcall/"),
            ("MAIL_TEMPLATES", "mails"),
            ("LOG_LEVEL", "warn,rollcall_api=debug"),
            ("LOG_FORMAT", "json"),
        ]))
        .unwrap();
        assert_eq!(config.database.file().unwrap(), Path::new("/var/lib/rollcall/school.db"));
        let backups = config.backups.as_ref().unwrap();
        assert_eq!((backups.folder.as_path(), backups.every), (Path::new("/backups"), Duration::from_hours(6)));
        assert_eq!(backups.keep, Keep { last: 2, daily: 0, weekly: 1 });
        assert_eq!(config.listen.to_string(), "[::]:0");
        assert_eq!(config.jwt_secret.as_ref().unwrap().expose_secret(), b"0123456789abcdef0123456789abcdef");
        assert_eq!((config.token_ttl, config.session_max_age), (Duration::from_mins(90), 7 * DAY));
        assert_eq!(config.bcrypt_cost, 4);
        assert!(matches!(&config.teacher_signup, TeacherSignup::Code(code) if code.expose_secret() == "a:b"));
        assert_eq!(config.allowed_origins, ["https://school.example", "http://localhost:5173", "http://[::1]"]);
        let proxies: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(proxies, ["192.0.2.7/32", "10.0.0.0/8", "fd00::/8"]);
        assert!(!config.limits);
        assert_eq!(config.drain_delay, Duration::from_secs(10));
        let pair = Pair { certificate: "tls/tls.crt".into(), key: "tls/tls.key".into() };
        assert_eq!((config.public_port(8443), &config.tls), (443, &Some(tls::Source::Files(pair))));
        assert_eq!((config.redirect.unwrap().port(), config.redirect_port), (80, Some(443)));
        assert_eq!(config.hsts_max_age, Duration::ZERO);
        assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:9000");
        let mail = config.mail.as_ref().unwrap();
        assert_eq!((mail.server.host.as_str(), mail.server.port), ("mail.school.example", 465));
        assert_eq!(mail.public_url.as_str(), "https://school.example/rollcall");
        assert_eq!(
            (mail.ca.as_deref(), mail.templates.as_deref()),
            (Some(Path::new("ca.pem")), Some(Path::new("mails")))
        );
        assert!(!format!("{config:?}").contains("p@ss"), "no Debug shows a password");
        assert!(logs.filter.to_string().contains("rollcall_api=debug"));
        assert_eq!(logs.format, LogFormat::Json);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let wrong = [
            ("DB_URL", "postgres://rollcall:hunter2@db/rollcall"),
            ("BACKUP_EVERY", "6h"),
            ("BACKUP_KEEP", "all"),
            ("LISTEN_ADDR", "8000"),
            ("JWT_SECRET", "hunter2"),
            ("TOKEN_TTL", "24"),
            ("BCRYPT_COST", "ten"),
            ("TEACHER_SIGNUP", "hunter2"),
            ("ALLOWED_ORIGINS", "https://a.example/app"),
            ("TRUSTED_PROXIES", "10.0.0.0/8, proxy"),
            ("RATE_LIMIT", "no"),
            ("DRAIN_DELAY", "11m"),
            ("METRICS_ADDR", ":9000"),
            ("SESSION_MAX_AGE", "0s"),
            ("SMTP_URL", "smtp://rollcall:hunter2@mail.example?tls=off"),
            ("PUBLIC_URL", "school.example"),
            ("MAIL_FROM", "hunter"),
            ("LOG_LEVEL", "inof"),
            ("LOG_FORMAT", "xml"),
        ];
        let text = Config::new(&settings(&wrong)).unwrap_err().to_string();
        assert!(!text.contains("hunter2"), "{text}");
        insta::assert_snapshot!(text);
    }

    #[cfg(feature = "mongodb")]
    #[test]
    fn mongodb_wants_a_secret_and_shows_no_password() {
        for url in ["mongodb://user:hunter2@db/rollcall", "mongodb+srv://user:p@hunter2@db.example/x"] {
            let text = mistake("DB_URL", url);
            assert!(text.contains("JWT_SECRET is not set: it must be the same on every replica"), "{text}");
            let config = config(&[("DB_URL", url), ("JWT_SECRET", "0123456789abcdef0123456789abcdef")]);
            assert!(config.database.file().is_none());
            let with_backups = [("DB_URL", url), ("JWT_SECRET", &"x".repeat(32)), ("BACKUP_DIR", "/backups")];
            let refused = Config::new(&self::settings(&with_backups)).unwrap_err().to_string();
            assert!(refused.contains("BACKUP_DIR is \"/backups\"") && refused.contains("docs/backup.md"), "{refused}");
            assert!(!format!("{text} {config:?} {}", config.database).contains("hunter2"), "{text}");
        }
    }

    #[cfg(not(feature = "mongodb"))]
    #[test]
    fn mongodb_is_refused_without_showing_its_password() {
        for url in ["mongodb://user:hunter2@db/rollcall", "mongodb+srv://user:p@hunter2@db.example/x"] {
            let text = mistake("DB_URL", url);
            assert!(text.contains("embedded database only, not MongoDB"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn every_value_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = format!("sqlite://{}", folder.path().display());
        for (name, values) in [
            (
                "DB_URL",
                &[
                    "sqlite://",
                    "sqlite::memory:",
                    "sqlite://:memory:",
                    "sqlite://a.db?mode=ro",
                    "data/a.db",
                    "sqlite://a/",
                    "sqlite://~/a.db",
                    "sqlite://a.secret",
                    "sqlite://a\0b",
                    &folder,
                ][..],
            ),
            ("LISTEN_ADDR", &["localhost", "localhost:70000", "127.0.0.1", "example.org:80", "127.0.0.1:-1", "::1:80"]),
            ("JWT_SECRET", &["0123456789abcdef0123456789abcde"]),
            ("TOKEN_TTL", &["forever", "-1h", "0s", "999ms", "3651d", "1mo", "1y", "99999999999999999999h", "24 h 3"]),
            ("BCRYPT_COST", &["3", "17", "-4", "10.0", "4294967306"]),
            ("TEACHER_SIGNUP", &["code", "code:", "opened", "open:x"]),
            (
                "ALLOWED_ORIGINS",
                &[
                    "school.example",
                    "ftp://a.example",
                    "https://",
                    "null",
                    "https://a b",
                    "https://u@a.example",
                    "https://a.example:x",
                    "https://a.example?x",
                    "*,https://a.example",
                ],
            ),
            ("TRUSTED_PROXIES", &["10.0.0.0/33", "10.0.0", "all"]),
            ("RATE_LIMIT", &["true", "1"]),
            ("METRICS_ADDR", &["127.0.0.1:8000"]),
            ("HTTP_REDIRECT_PORT", &["0", "65536", "https", "-1"]),
            ("HSTS_MAX_AGE", &["0", "-1s", "4000d"]),
            ("LOG_LEVEL", &["verbose", "info,loud", "rollcall=loud", "[x"]),
            ("LOG_FORMAT", &["yaml", &"x".repeat(10_000)]),
        ] {
            for value in values {
                let text = mistake(name, value);
                assert!(text.contains(&format!("\n  {name} is ")) && text.len() < 1_000, "{text}");
            }
        }
    }

    #[test]
    fn a_certificate_needs_its_key() {
        assert!(mistake("TLS_CERT", "a.pem").contains("TLS_KEY is not set: it must be the path"));
        assert!(mistake("TLS_KEY", "a.pem").contains("TLS_CERT is not set: it must be the path"));
        assert!(mistake("HTTP_REDIRECT_ADDR", "0.0.0.0:80").contains("must be unset without TLS"));
        for (redirect, told) in [("127.0.0.1:8000", "LISTEN_ADDR"), ("127.0.0.1:9000", "METRICS_ADDR"), ("80", "an IP")]
        {
            let all = [
                ("TLS_CERT", "a"),
                ("TLS_KEY", "a"),
                ("METRICS_ADDR", "127.0.0.1:9000"),
                ("HTTP_REDIRECT_ADDR", redirect),
            ];
            let text = Config::new(&settings(&all)).unwrap_err().to_string();
            assert!(text.contains("HTTP_REDIRECT_ADDR is") && text.contains(told), "{text}");
        }
    }

    #[cfg(feature = "acme")]
    #[test]
    fn an_acme_server_needs_a_name_alone() {
        let acme = |values: &[(&str, &str)]| match config(values).tls {
            Some(tls::Source::Acme(order)) => order,
            other => panic!("{other:?}"),
        };
        let order = acme(&[("ACME_DOMAIN", "Rollcall.School.example"), ("DB_URL", "sqlite:///var/lib/r/school.db")]);
        assert_eq!(order.domains, ["rollcall.school.example"]);
        assert_eq!(order.cache, Path::new("/var/lib/r/school.acme"));
        assert_eq!((order.directory.as_str(), order.email, order.ca), (LETS_ENCRYPT, None, None));
        let all = [
            ("ACME_DOMAIN", "a.example, xn--cole-9oa.example,a.example"),
            ("ACME_EMAIL", "office@school.example"),
            ("ACME_DIRECTORY", "https://127.0.0.1:14000/dir"),
            ("ACME_CA", "ca.pem"),
            ("ACME_CACHE", "/var/cache/acme"),
            ("DB_URL", "sqlite://x.db"),
        ];
        let order = acme(&all);
        assert_eq!(order.domains, ["a.example", "xn--cole-9oa.example"]);
        assert_eq!((order.email.as_deref(), order.ca), (Some("office@school.example"), Some("ca.pem".into())));
        assert_eq!((order.directory.as_str(), order.cache), ("https://127.0.0.1:14000/dir", "/var/cache/acme".into()));
        assert_eq!(config(&all).public_port(8000), 443);

        let both = Config::new(&settings(&[("ACME_DOMAIN", "a.example"), ("TLS_CERT", "a.pem")])).unwrap_err();
        assert!(
            both.to_string()
                .contains("TLS_CERT is \"a.pem\" (from the environment): it must be unset with ACME_DOMAIN")
        );
        for (name, values) in [
            (
                "ACME_DOMAIN",
                &[
                    ",",
                    "localhost",
                    "https://a.example",
                    "a.example:443",
                    "*.a.example",
                    "192.0.2.7",
                    "a..b",
                    "-a.example",
                    "école.example",
                ][..],
            ),
            ("ACME_EMAIL", &["office", "a@b", "a@b.example,c@d.example", "a@b.example?cc=x"]),
            ("ACME_DIRECTORY", &["http://127.0.0.1/dir", "acme.example", "https://"]),
        ] {
            for value in values {
                let given = [(name, *value), ("ACME_DOMAIN", "a.example")];
                let text = Config::new(&settings(&given[..if name == "ACME_DOMAIN" { 1 } else { 2 }])).unwrap_err();
                assert!(text.to_string().contains(&format!("\n  {name} is ")), "{value}: {text}");
            }
        }
    }

    #[cfg(all(feature = "acme", feature = "mongodb"))]
    #[test]
    fn acme_with_mongodb_wants_a_folder() {
        let mut values = vec![
            ("DB_URL", "mongodb://db/rollcall"),
            ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
            ("ACME_DOMAIN", "a.example"),
        ];
        let text = Config::new(&settings(&values)).unwrap_err().to_string();
        assert!(text.contains("ACME_CACHE is not set: it must be a folder"), "{text}");
        values.push(("ACME_CACHE", "/var/lib/rollcall/acme"));
        assert!(config(&values).tls.is_some());
    }

    #[test]
    fn tools_mind_only_what_they_use() {
        let settings = settings(&[("TOKEN_TTL", "wrong"), ("BCRYPT_COST", "5"), ("DB_URL", "sqlite://x.db")]);
        let (database, cost) = Config::accounts(&settings).unwrap();
        assert_eq!((database.file().unwrap().as_path(), cost), (Path::new("x.db"), 5));
        assert_eq!(Config::database(&settings).unwrap().file().unwrap(), Path::new("x.db"));
        assert!(Config::listen(&settings).is_ok());
    }

    #[test]
    fn neither_secret_is_in_what_is_printed_for_debugging() {
        let config = config(&[("JWT_SECRET", &"hunter2".repeat(5)), ("TEACHER_SIGNUP", "code:hunter2")]);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
