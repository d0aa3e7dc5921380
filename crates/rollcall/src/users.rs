//! `rollcall user`: accounts, on the operator's word. It works on the database; a server that runs on the same
//! database hears of every change.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use rollcall_core::service::{Ports, Services, SignUp, TeacherSignup};
use rollcall_core::store::Page;
use rollcall_core::user::{Account, AccountChange};
use rollcall_core::{Clock, Error};
use rollcall_store_sqlite::OpenMode;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret, SecretString};

use crate::cli::{PasswordFrom, UserAction};
use crate::database::Database;
use crate::passwords::BcryptPool;
use crate::system::{self, SystemClock};

/// How many accounts are read at a time.
const PAGE: u32 = 1_000;
/// The longest password that is read: more than can be set, so that the core says what is wrong with it.
const LONGEST: u64 = 1_024;

/// Does `action` on the database; new passwords are hashed at `cost`.
pub(crate) async fn run(action: UserAction, database: &Database, cost: u32) -> anyhow::Result<()> {
    // Before the database is touched: somebody may have to be asked.
    let password = match &action {
        UserAction::Create { password, .. } | UserAction::ResetPassword { password, .. } => {
            Some(new_password(password)?)
        }
        UserAction::List | UserAction::Disable { .. } | UserAction::Enable { .. } | UserAction::ConfirmEmail { .. } => {
            None
        }
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let opened = database.open(OpenMode::Tool, Arc::clone(&clock)).await?;
    let ports = Ports {
        store: opened.store(),
        clock,
        hasher: Arc::new(BcryptPool::start(cost).context("no threads for hashing passwords")?),
        ids: system::ids()?,
        mail_tokens: None,
    };
    let services = Services::new(ports, TeacherSignup::Closed);
    let outcome = act(&services, action, password).await;
    opened.close().await;
    outcome
}

async fn act(services: &Services, action: UserAction, password: Option<Password>) -> anyhow::Result<()> {
    let accounts = &services.accounts;
    let password = password.as_ref();
    let text = password.map(|password| password.text.expose_secret()).unwrap_or_default();
    let done = match action {
        UserAction::List => return list(services).await,
        UserAction::Create { email, name, role, .. } => {
            let wanted = SignUp { name: &name, email: &email, password: text, role, code: None };
            let account = accounts.create(wanted).await.map_err(told)?;
            format!("{} {} can log in now (id {})", account.role, account.email.as_str(), account.id)
        }
        UserAction::ResetPassword { email, .. } => {
            let account = found(&email, accounts.reset_password(&email, text).await)?;
            format!("{} has another password; all its logins have ended", account.email.as_str())
        }
        UserAction::Disable { email } => {
            let account = found(&email, accounts.change(&email, AccountChange::Disable).await)?;
            format!("{} is disabled; all its logins have ended", account.email.as_str())
        }
        UserAction::Enable { email } => {
            let account = found(&email, accounts.change(&email, AccountChange::Enable).await)?;
            format!("{} is enabled", account.email.as_str())
        }
        UserAction::ConfirmEmail { email } => {
            let account = found(&email, accounts.change(&email, AccountChange::ConfirmEmail).await)?;
            format!("the address {} is confirmed", account.email.as_str())
        }
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{done}")?;
    if let Some(Password { text, made: true }) = password {
        writeln!(out, "password: {}", text.expose_secret())?;
    }
    Ok(())
}

async fn list(services: &Services) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(out, "{:24}  {:7}  {:8}  E-MAIL, NAME", "ID", "ROLE", "STATE")?;
    let mut page = Page { after: None, limit: PAGE };
    loop {
        let accounts = services.accounts.list(page).await.map_err(told)?;
        for account in &accounts {
            let state = if account.disabled { "disabled" } else { "enabled" };
            // Data of other origin may hold what would command a terminal.
            let who: String = format!("{}, {}", account.email.as_str(), account.name.as_str());
            let who = who.replace(char::is_control, "\u{fffd}");
            writeln!(out, "{}  {:7}  {state:8}  {who}", account.id, account.role.as_str())?;
        }
        match accounts.last() {
            Some(last) => page.after = Some(last.id),
            None => return Ok(out.flush()?),
        }
    }
}

fn found(email: &str, account: Result<Option<Account>, Error>) -> anyhow::Result<Account> {
    account
        .map_err(told)?
        .ok_or_else(|| anyhow!("no account has the address {email:?}; `rollcall user list` shows all"))
}

/// A core's error as a person at a terminal reads it.
fn told(error: Error) -> anyhow::Error {
    match error {
        Error::Invalid(fields) => {
            let fields = fields.iter().map(|field| format!("the {} {}", field.field, field.message));
            anyhow!(fields.collect::<Vec<_>>().join("; "))
        }
        Error::EmailExists => anyhow!("another account has this e-mail address"),
        error => anyhow::Error::new(error),
    }
}

/// A password to set.
struct Password {
    text: SecretString,
    /// Whether it was made here, so that somebody has to be told.
    made: bool,
}

fn new_password(from: &PasswordFrom) -> anyhow::Result<Password> {
    if from.generate {
        return Ok(Password { text: generate()?, made: true });
    }
    let text = if from.password_stdin { read_line(io::stdin().lock())? } else { ask()? };
    Ok(Password { text, made: false })
}

/// 20 characters of 32 that are told apart easily: 100 bits.
fn generate() -> anyhow::Result<SecretString> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let random: [u8; 20] = system::random()?;
    Ok(random.map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).iter().collect::<String>().into())
}

/// The first line, without its end.
fn read_line(from: impl BufRead) -> anyhow::Result<SecretString> {
    let mut line = String::new();
    from.take(LONGEST).read_line(&mut line).context("the password cannot be read")?;
    let line = SecretString::from(line);
    let text = line.expose_secret();
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    ensure!(!text.is_empty(), "no password was given");
    Ok(text.into())
}

/// Asks for a password twice on the terminal, without showing it.
fn ask() -> anyhow::Result<SecretString> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let terminal = terminal.context("there is no terminal to ask on; use --password-stdin or --generate")?;
    let silence = Silence::on(&terminal).context("the terminal cannot hide what is typed")?;
    let prompt = |text: &str| {
        write!(&terminal, "{text}: ")?;
        read_line(BufReader::new(&terminal))
    };
    let (first, second) = (prompt("Password")?, prompt("Once more")?);
    drop(silence);
    if first.expose_secret() != second.expose_secret() {
        bail!("the two passwords differ; nothing was changed");
    }
    Ok(first)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silence<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn on(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        // There is nobody left to tell if this fails.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use rollcall_core::user::NewPassword;

    use super::*;

    #[test]
    fn a_password_is_the_first_line() {
        let read = |bytes: &[u8]| read_line(bytes).map(|text| text.expose_secret().to_owned());
        assert_eq!(read(b"secret\nrest").unwrap(), "secret");
        assert_eq!(read(b" with space \r\n").unwrap(), " with space ");
        assert_eq!(read(b"no end").unwrap(), "no end");
        for bad in [&b""[..], b"\n", b"\r\n", b"\xff\n"] {
            assert!(read(bad).is_err());
        }
        assert!(NewPassword::parse(&read(&[b'x'; 5000]).unwrap()).is_err());
    }

    #[test]
    fn made_passwords_can_be_set_and_differ() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert!(NewPassword::parse(one.expose_secret()).is_ok());
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
