//! `rollcall doctor`: looks at everything that a server needs, changes nothing, and says what to do.

use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::service::TeacherSignup;
use rollcall_core::{Clock, Timestamp};
#[cfg(feature = "redis")]
use rollcall_limits_redis::{Address, RedisLimits};
#[cfg(feature = "mongodb")]
use rollcall_store_mongo::MongoStore;
use rollcall_store_sqlite::SqliteStore;
use rustix::process::{Resource, getrlimit};
#[cfg(feature = "mongodb")]
use secrecy::SecretString;

use crate::backups::Backups;
use crate::config::{Config, SECRET_MIN_BYTES};
use crate::database::Database;
use crate::settings::Settings;
use crate::system::{self, SystemClock};
#[cfg(feature = "acme")]
use crate::tls::acme::Order;
use crate::tls::files::Pair;
use crate::tls::{Certificate, Source, Standing};
use crate::{healthcheck, lifecycle, secret_file};

const MIB: u64 = 1 << 20;
/// Less free room than this is next to none: the log alone may grow to some 64 MiB.
const ROOM_NEEDED: u64 = 200 * MIB;
/// With less than this somebody should look soon.
const ROOM_WANTED: u64 = 1024 * MIB;
/// Writes to the disk that are timed.
const WRITES: usize = 16;
/// A disk slower than this is felt: each batch of marks waits for it.
const SLOW_DISK: Duration = Duration::from_millis(30);
/// The year 2026: no clock that is right shows an earlier one.
const PAST: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// The year 2106: where the seconds of ids end.
const FUTURE: Timestamp = Timestamp::from_millis(4_294_967_296_000);
/// By how much files may be newer than the clock: file servers have clocks too.
const CLOCK_SLACK: Duration = Duration::from_mins(5);
/// With fewer open files than this a school does not fit.
const FILES_WANTED: u64 = 4_096;

/// What a check found.
enum Finding {
    /// As it should be.
    Fine(String),
    /// It works, and somebody should know.
    Odd(String),
    /// It does not work; with what to do.
    Broken(String),
}

use Finding::{Broken, Fine, Odd};

/// Checks everything; `settings` are what could be read of them.
pub(crate) fn run(settings: anyhow::Result<Settings>) -> anyhow::Result<ExitCode> {
    let mut report = Report { broken: 0, odd: 0 };
    match settings {
        Ok(settings) => check(&settings, &mut report)?,
        Err(error) => report.line("configuration", Broken(format!("{error:#}")))?,
    }
    report.line("open files", open_files())?;
    report.end()
}

fn check(settings: &Settings, report: &mut Report) -> io::Result<()> {
    let clock = SystemClock::start();
    let config = Config::new(settings);
    match &config {
        Ok((config, _)) => {
            report.line("configuration", Fine("every setting can be used".to_owned()))?;
            for oddity in oddities(config) {
                report.line("configuration", Odd(oddity))?;
            }
        }
        Err(mistakes) => {
            for mistake in mistakes.iter() {
                report.line("configuration", Broken(mistake.to_string()))?;
            }
        }
    }
    // A mistake elsewhere must not hide the state of these.
    match Config::database(settings) {
        Ok(Database::File(path)) => check_file(settings, report, &clock, &path)?,
        #[cfg(feature = "mongodb")]
        Ok(Database::Mongo(url)) => {
            for finding in survey(&url) {
                report.line("database", finding)?;
            }
            report.line("clock", clock_against_itself(&clock))?;
        }
        // Told already.
        Err(_) => {}
    }
    if let Ok((config, _)) = &config
        && let Some(file) = config.database.file()
    {
        for finding in backups(config.backups.as_ref(), file, clock.now()) {
            report.line("backups", finding)?;
        }
    }
    #[cfg(feature = "redis")]
    if let Ok((config, _)) = &config
        && let Some(redis) = &config.redis
    {
        report.line("limits", shared_limits(redis, config.limits))?;
    }
    if let Ok((Config { mail: Some(mail), .. }, _)) = config {
        report.line("mail", mail_server(mail))?;
    }
    if let Ok((listen, tls)) = Config::listen(settings) {
        report.line("address", address(listen, tls))?;
    }
    if let Ok(Some(source)) = Config::tls(settings) {
        let findings = match source {
            Source::Files(pair) => certificate(&pair, clock.now()),
            #[cfg(feature = "acme")]
            Source::Acme(order) => vec![kept(&order, clock.now())],
        };
        for finding in findings {
            report.line("certificate", finding)?;
        }
    }
    Ok(())
}

/// All about an embedded database.
fn check_file(settings: &Settings, report: &mut Report, clock: &SystemClock, path: &Path) -> io::Result<()> {
    report.line("database", database(path))?;
    report.line("server", served(path))?;
    report.line("disk", room(path))?;
    report.line("disk", writes(path))?;
    report.line("clock", clock_against_files(clock, path))?;
    report.line("clock", clock_against_itself(clock))?;
    if settings.get("JWT_SECRET").is_none() {
        report.line("secret", secret(&secret_file::path_for(path)))?;
    }
    Ok(())
}

/// What can be used and is seldom meant.
fn oddities(config: &Config) -> Vec<String> {
    let mut odd = Vec::new();
    let public = !config.listen.ip().is_loopback();
    if public && matches!(config.teacher_signup, TeacherSignup::Open) {
        odd.push(
            "TEACHER_SIGNUP is open, and so is the network: whoever reaches the server can become a teacher. \
                  Set it to closed or code:SECRET"
                .to_owned(),
        );
    }
    #[cfg(feature = "otlp")]
    if config.collector.as_ref().is_some_and(|collector| collector.endpoint.port_u16() == Some(4317)) {
        odd.push(
            "OTEL_EXPORTER_OTLP_ENDPOINT has the port 4317, where collectors speak gRPC. What is spoken here is \
             http/protobuf, at port 4318"
                .to_owned(),
        );
    }
    if public && config.mail.is_some() && matches!(config.teacher_signup, TeacherSignup::Open) {
        odd.push(
            "SMTP_URL is set while TEACHER_SIGNUP is open: whoever becomes a teacher can have notices sent to students, in \
             a class's name of their choice. Set TEACHER_SIGNUP to closed or code:SECRET"
                .to_owned(),
        );
    }
    if !config.limits {
        odd.push("RATE_LIMIT is off: passwords can be guessed at full speed".to_owned());
    }
    if config.bcrypt_cost < 10 {
        odd.push(format!(
            "BCRYPT_COST is {}: password hashes that leak are cracked sooner. Use 10 or more",
            config.bcrypt_cost
        ));
    }
    #[cfg(feature = "acme")]
    if matches!(config.tls, Some(Source::Acme(_))) && config.listen.ip().is_loopback() {
        odd.push(format!(
            "LISTEN_ADDR is {}, which this machine alone reaches: the ACME server cannot look. Use 0.0.0.0:443, unless \
             port 443 of the names is passed on to it",
            config.listen
        ));
    }
    if config.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        odd.push(
            "TRUSTED_PROXIES names all addresses: any client can pretend to be another. Name your proxy".to_owned(),
        );
    }
    odd
}

/// Whether limits can be counted in Redis.
#[cfg(feature = "redis")]
fn shared_limits(redis: &Address, limits: bool) -> Finding {
    if !limits {
        return Fine(format!("RATE_LIMIT is off, and {redis} is not used"));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Odd(format!("{redis} cannot be looked at: {error}")),
    };
    match runtime.block_on(RedisLimits::examine(redis.clone())) {
        Ok(()) => Fine(format!("{redis} counts for all replicas")),
        Err(error) => Odd(format!(
            "{redis} does not count: {error}. Check REDIS_URL and that Redis runs; without it each replica counts alone"
        )),
    }
}

/// What is in a MongoDB, and what in it breaks the rules.
#[cfg(feature = "mongodb")]
fn survey(url: &SecretString) -> Vec<Finding> {
    let shown = Database::Mongo(url.clone());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Broken(format!("{shown} cannot be looked at: {error}"))],
    };
    let survey = match runtime.block_on(MongoStore::survey(url)) {
        Ok(survey) => survey,
        Err(error) => return vec![Broken(format!("{shown}: {:#}. Check DB_URL", anyhow::Error::new(error)))],
    };
    if survey.unfinished_copy {
        return vec![Broken(format!(
            "{shown} ({}) is an unfinished copy of another database. Run the same `rollcall copy` again to finish it, or drop it",
            survey.database
        ))];
    }
    let earlier = match survey.earlier_records {
        0 => String::new(),
        count => format!(", {count} records of an earlier server"),
    };
    let mut findings = vec![Fine(format!(
        "{shown} ({}) holds {} accounts, {} classes, {} sessions, {} records{earlier}",
        survey.database, survey.users, survey.classes, survey.sessions, survey.records
    ))];
    let told = |found: &rollcall_store_mongo::Finding| {
        // Data of other origin may hold what would command a terminal.
        let text = format!("{} {}: {}", found.collection, found.id, found.problem);
        Odd(text.replace(char::is_control, "\u{fffd}"))
    };
    findings.extend(survey.findings.iter().map(told));
    if survey.more > 0 {
        findings.push(Odd(format!("{} more documents break the rules", survey.more)));
    }
    findings
}

fn database(path: &Path) -> Finding {
    let shown = path.display();
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Fine(format!("{shown} does not exist yet; the first start makes it")),
        Err(error) => return Broken(format!("{shown} cannot be looked at: {error}. Check the folder's permissions")),
    }
    match SqliteStore::examine(path) {
        Err(error) => Broken(format!("{:#}. Check DB_URL and the file's permissions", anyhow::Error::new(error))),
        Ok(found) if !found.damage.is_empty() => Broken(format!(
            "{shown} is damaged ({}). Stop the server, and take your last backup back with `rollcall restore`, which keeps the file",
            found.damage.join("; ")
        )),
        Ok(found) if found.unfinished_copy => Broken(format!(
            "{shown} is an unfinished copy of another database. Run the same `rollcall copy` again to finish it, or remove it"
        )),
        Ok(found) if found.schema > found.known_schema => Broken(format!(
            "{shown} has schema {}, and this program knows {} at most. Start the newer version of Rollcall",
            found.schema, found.known_schema
        )),
        Ok(found) => {
            let size = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB as f64);
            let update = if found.schema < found.known_schema { "; the next start updates its schema" } else { "" };
            Fine(format!("{shown} is whole: {}, and {} of log{update}", size(found.file_bytes), size(found.log_bytes)))
        }
    }
}

/// Whether backups can be made, and what the newest is worth.
fn backups(backups: Option<&Backups>, database: &Path, now: Timestamp) -> Vec<Finding> {
    let Some(backups) = backups else {
        let text = "a server makes none by itself. Set BACKUP_DIR, or run `rollcall backup` regularly";
        return vec![Fine(text.to_owned())];
    };
    let shown = backups.folder.display();
    let found = match backups.found(database) {
        Ok(found) => found,
        Err(error) => {
            let advice = "Make the folder, or mount what it is on";
            return vec![Broken(format!("BACKUP_DIR {shown} cannot be read: {error}. {advice}"))];
        }
    };
    let mut findings = Vec::new();
    if let Err(error) = tempfile::Builder::new().prefix(".rollcall-doctor-").tempfile_in(&backups.folder) {
        findings.push(Broken(format!("{shown} cannot be written to: {error}. Let the server's user write there")));
    }
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    if device(&backups.folder) == device(&folder(database)) {
        findings.push(Odd(format!("{shown} is on the database's own disk, and is lost with it. Use another one")));
    }
    let Some(newest) = found.first() else {
        let text = format!("{shown} holds none yet; a server makes the first as it starts");
        findings.push(Fine(text));
        return findings;
    };
    let age = Duration::from_millis(u64::try_from(now.millis() - newest.at.millis()).unwrap_or(0));
    let name = newest.path.display();
    findings.push(match SqliteStore::examine(&newest.path) {
        Err(error) => Broken(format!("{:#}. Make another", anyhow::Error::new(error))),
        Ok(found) if !found.damage.is_empty() => {
            Broken(format!("{name} is damaged ({}). Check that disk, and make another", found.damage.join("; ")))
        }
        Ok(_) if age > 2 * backups.every => Odd(format!(
            "the newest, {name}, is of {}, and BACKUP_EVERY is {:?}. Read the server's log",
            newest.at, backups.every
        )),
        Ok(report) => Fine(format!(
            "{} in {shown}; the newest is whole: {}, {:.1} MiB",
            found.len(),
            newest.at,
            report.file_bytes as f64 / MIB as f64
        )),
    });
    findings
}

/// Whether the mail server takes mails. None is sent.
fn mail_server(config: rollcall_mail::Config) -> Finding {
    let (host, port) = (config.server.host.clone(), config.server.port);
    let check = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sender = lifecycle::mail_sender(config, Arc::new(SystemClock::start()))?;
        runtime.block_on(sender.check())
    };
    match check() {
        Ok(()) => Fine(format!("{host}:{port} takes mails")),
        Err(error) => Broken(format!("{host}:{port}: {error:#}. Check SMTP_URL; mails wait until it works")),
    }
}

/// Whether a server holds the database. Asking takes the lock for an instant, shared, so that it troubles nobody
/// but a server that starts in that very instant.
fn served(path: &Path) -> Finding {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    match File::open(PathBuf::from(lock)).map(|file| file.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => Fine("one serves this database".to_owned()),
        _ => Fine("none serves this database".to_owned()),
    }
}

/// The folder that the database is or will be in, or the nearest that exists.
fn folder(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn room(path: &Path) -> Finding {
    let folder = folder(path);
    let shown = folder.display();
    if let Some(kind) = network_file_system(&folder) {
        return Odd(format!("{shown} is on {kind}: SQLite is not safe on most of these. Use a local disk"));
    }
    let free = match rustix::fs::statvfs(&folder) {
        Ok(system) => system.f_bavail.saturating_mul(system.f_frsize),
        Err(error) => return Odd(format!("how much room {shown} has is not known: {error}")),
    };
    let text = format!("{shown} has {} MiB free", free / MIB);
    match free {
        ..ROOM_NEEDED => Broken(format!("{text}. Make room: a full disk refuses marks")),
        ROOM_NEEDED..ROOM_WANTED => Odd(format!("{text}. Make room soon: a full disk refuses marks")),
        _ => Fine(text),
    }
}

#[cfg(target_os = "linux")]
fn network_file_system(folder: &Path) -> Option<&'static str> {
    // The numbers of Linux's magic.h.
    match rustix::fs::statfs(folder).ok()?.f_type {
        0x6969 => Some("NFS"),
        0xFF53_4D42 | 0xFE53_4D42 | 0x517B => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x00C3_6400 => Some("Ceph"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn network_file_system(_: &Path) -> Option<&'static str> {
    None
}

fn writes(path: &Path) -> Finding {
    let folder = folder(path);
    let shown = folder.display();
    match time_writes(&folder) {
        Err(error) => Broken(format!("{shown} cannot be written to: {error}. Let the server's user write there")),
        Ok(took) if took > SLOW_DISK => {
            Odd(format!("a write to {shown} is durable after {took:.1?}, and marks wait that long. Use a faster disk"))
        }
        Ok(took) => Fine(format!("a write to {shown} is durable after {took:.1?}")),
    }
}

/// The median time until 4 KiB are durable.
fn time_writes(folder: &Path) -> io::Result<Duration> {
    let mut file = tempfile::Builder::new().prefix(".rollcall-doctor-").tempfile_in(folder)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let started = Instant::now();
        file.write_all(&[0; 4096])?;
        file.as_file().sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[WRITES / 2])
}

fn clock_against_files(clock: &dyn Clock, path: &Path) -> Finding {
    let now = clock.now();
    if !(PAST..FUTURE).contains(&now) {
        return Broken(format!("it shows {now}, which cannot be. Set it; logins and sessions end by it"));
    }
    // Files that this program's user wrote at a time that was now once.
    let program = std::env::current_exe().ok();
    let newest = [program.as_deref(), Some(path)].into_iter().flatten().filter_map(|path| {
        let modified = path.metadata().ok()?.modified().ok()?;
        Some((system::timestamp(modified), path))
    });
    match newest.max() {
        Some((changed, file)) if changed.before(CLOCK_SLACK) > now => Odd(format!(
            "it shows {now}, but {} was changed at {changed}. Check that it is set by a time server",
            file.display()
        )),
        _ => Fine(format!("it shows {now}")),
    }
}

/// Whether the time of day goes as fast as time does.
fn clock_against_itself(clock: &dyn Clock) -> Finding {
    let (day, since) = (clock.now(), clock.monotonic());
    std::thread::sleep(Duration::from_millis(50));
    let passed = clock.monotonic().saturating_sub(since);
    let shown = clock.now().millis() - day.millis();
    let wrong = shown.abs_diff(i64::try_from(passed.as_millis()).unwrap_or(i64::MAX));
    if wrong > 100 {
        Odd(format!("it jumped by {wrong} ms while nobody looked. Check that one service alone sets it"))
    } else {
        Fine("it goes evenly".to_owned())
    }
}

fn secret(path: &Path) -> Finding {
    let shown = path.display();
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Fine(format!("{shown} does not exist yet; the first start makes it"))
        }
        Err(error) => Broken(format!("{shown} cannot be looked at: {error}")),
        Ok(file) if !file.is_file() || file.len() < SECRET_MIN_BYTES as u64 => {
            Broken(format!("{shown} holds no secret. Remove it; the next start makes another, which ends all logins"))
        }
        Ok(file) if secret_file::open_to_others(file.mode()) => {
            Odd(format!("{shown} is open to others (mode {:o}). Run: chmod 600 {shown}", file.mode() & 0o777))
        }
        Ok(_) => match File::open(path) {
            Ok(_) => Fine(format!("{shown} is its owner's alone")),
            Err(error) => Broken(format!("{shown} cannot be read: {error}. Run this as the server's user")),
        },
    }
}

fn open_files() -> Finding {
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < FILES_WANTED => Odd(format!(
            "at most {most}, and each connection is one. Raise the limit: LimitNOFILE= of systemd, or `ulimit -Hn`"
        )),
        Some(most) => Fine(format!("up to {most}")),
        None => Fine("without limit".to_owned()),
    }
}

/// The operator's own certificate and its key.
fn certificate(pair: &Pair, now: Timestamp) -> Vec<Finding> {
    let found = match pair.read().and_then(|content| pair.certificate(&content)) {
        Ok(found) => found,
        Err(error) => return vec![Broken(format!("{error:#}"))],
    };
    let mut findings = vec![standing(&found, now, "Renew it")];
    if !found.in_order() {
        findings.push(Odd(format!(
            "{}: a certificate is not followed by its issuer's, and some clients will not accept the chain. Put them \
             in order: the server's own first",
            pair.certificate.display()
        )));
    }
    if pair.key_is_open() {
        let key = pair.key.display();
        findings.push(Odd(format!("everybody on this machine can read {key}. Run: chmod o= {key}")));
    }
    findings
}

/// The certificate that an ACME server issued.
#[cfg(feature = "acme")]
fn kept(order: &Order, now: Timestamp) -> Finding {
    match order.kept() {
        Ok(Some(certificate)) => standing(&certificate, now, "See in the server's log why it is not renewed"),
        Ok(None) => Fine(format!("none for {} yet; the server gets one", order.domains.join(", "))),
        Err(error) => Odd(format!("{error:#}; the server gets another one")),
    }
}

/// How long a certificate still counts.
fn standing(certificate: &Certificate, now: Timestamp, advice: &str) -> Finding {
    let text = format!(
        "for {}, until {}: {} days left",
        certificate.names(),
        certificate.not_after(),
        certificate.days_left(now)
    );
    match certificate.standing(now) {
        Standing::Good => Fine(text),
        Standing::EndsSoon => Odd(format!("{text}. {advice}")),
        Standing::Ended => Broken(format!("{text}, and no client accepts it. {advice}")),
        Standing::NotYet => Broken(format!("{text}, and it does not count yet. Check the clock")),
    }
}

fn address(listen: SocketAddr, tls: bool) -> Finding {
    if listen.port() == 0 {
        return Fine(format!("{} and a free port", listen.ip()));
    }
    match TcpListener::bind(listen) {
        Ok(_) => Fine(format!("{listen} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match healthcheck::status(healthcheck::reachable(listen), tls) {
                Ok(Some(200)) => Fine(format!("a server on {listen} is ready")),
                Ok(Some(503)) => Odd(format!("a server on {listen} is not ready. Read its log")),
                _ => Broken(format!("another program uses {listen}. Stop that one, or change LISTEN_ADDR")),
            }
        }
        Err(error) => Broken(format!("nothing can listen on {listen}: {error}. Change LISTEN_ADDR")),
    }
}

/// Prints findings and counts them.
struct Report {
    broken: usize,
    odd: usize,
}

impl Report {
    fn line(&mut self, what: &str, finding: Finding) -> io::Result<()> {
        let (word, text) = match finding {
            Fine(text) => ("ok", text),
            Odd(text) => {
                self.odd += 1;
                ("warn", text)
            }
            Broken(text) => {
                self.broken += 1;
                ("FAIL", text)
            }
        };
        say(format_args!("{word:4}  {what:13}  {text}"))
    }

    fn end(self) -> anyhow::Result<ExitCode> {
        let code = match self {
            Self { broken: 0, odd: 0 } => {
                say("All is well.")?;
                ExitCode::SUCCESS
            }
            Self { broken: 0, odd } => {
                say(format_args!("It works; {odd} to look at."))?;
                ExitCode::SUCCESS
            }
            Self { broken, .. } => {
                say(format_args!("{broken} to put right before Rollcall can work."))?;
                ExitCode::FAILURE
            }
        };
        Ok(code)
    }
}

fn say(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}
