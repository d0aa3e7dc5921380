//! A real mail server for tests: aiosmtpd, obtained once, which insists on TLS and a password, says what it accepts, and
//! misbehaves when it is told to.
//!
//! Tests that use it are `#[ignore = "needs aiosmtpd: cargo xtask test"]`. To add a misbehaviour: its word, and what
//! `server.py` does then.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::python;
use crate::server::Pair;

/// aiosmtpd, and what it needs.
const PACKAGES: &str = "\
aiosmtpd==1.4.6 --hash=sha256:72c99179ba5aa9ae0abbda6994668239b64a5ce054471955fe75f581d2592475
atpublic==5.1 --hash=sha256:135783dbd887fbddb6ef032d104da70c124f2b44b9e2d79df07b9da5334825e3
attrs==26.1.0 --hash=sha256:c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309
";
const PROGRAM: &str = include_str!("server.py");

/// Whom the server lets in.
pub const USER: &str = "rollcall@school.example";
/// And with what. It has what an address needs encoded.
pub const PASSWORD: &str = "p@ss:w/rd";

/// How long something may take that is awaited: far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the server is spoken to.
#[derive(Clone, Debug)]
pub enum Security {
    /// Over TLS from the first byte on, with this certificate.
    Implicit(Pair),
    /// Over TLS after `STARTTLS`, without which nothing is taken, with this certificate.
    StartTls(Pair),
    /// Without TLS.
    Plain,
}

/// An accepted mail, or something else that happened: what `server.py` said of it.
pub type Event = Value;

/// A mail server on this machine. It goes when it is dropped, or when this process ends.
#[derive(Debug)]
pub struct MailServer {
    options: Value,
    /// The certificate and its key.
    _files: TempDir,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    orders: ChildStdin,
    events: UnboundedReceiver<Event>,
}

impl MailServer {
    /// Starts a server and waits until it listens.
    pub async fn start(security: &Security) -> anyhow::Result<Self> {
        Self::with(security, true).await
    }

    /// One that takes no addresses but those in ASCII.
    pub async fn ascii_only(security: &Security) -> anyhow::Result<Self> {
        Self::with(security, false).await
    }

    async fn with(security: &Security, utf8: bool) -> anyhow::Result<Self> {
        let files = TempDir::with_prefix("rollcall-smtp-")?;
        let (certificate, key) = (files.path().join("certificate.pem"), files.path().join("key.pem"));
        let tls = match security {
            Security::Implicit(pair) | Security::StartTls(pair) => {
                std::fs::write(&certificate, &pair.certificate)?;
                std::fs::write(&key, &pair.key)?;
                if matches!(security, Security::Implicit(_)) { "implicit" } else { "starttls" }
            }
            Security::Plain => "none",
        };
        let options = json!({
            "tls": tls, "certificate": certificate, "key": key, "port": 0, "utf8": utf8,
            "user": USER, "password": PASSWORD,
        });
        let mut server = Self { options, _files: files, running: None };
        server.run().await?;
        Ok(server)
    }

    /// The port on which it listens, on 127.0.0.1.
    pub fn port(&self) -> u64 {
        self.options["port"].as_u64().unwrap_or_default()
    }

    /// What `SMTP_URL` is for it.
    pub fn url(&self) -> String {
        let (scheme, ending) = match self.options["tls"].as_str() {
            Some("implicit") => ("smtps", ""),
            Some("starttls") => ("smtp", ""),
            _ => ("smtp", "?tls=none"),
        };
        format!("{scheme}://rollcall%40school.example:p%40ss%3Aw%2Frd@localhost:{}{ending}", self.port())
    }

    /// Kills it. What was not read of what happened is gone.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts it again, on the same port.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.stop();
        self.run().await
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let options = self.options.to_string();
        let running = tokio::task::spawn_blocking(move || Running::start(&options)).await??;
        self.running = Some(running);
        let listening = self.event("listening").await?;
        self.options["port"] = listening["port"].clone();
        Ok(())
    }

    fn running(&mut self) -> anyhow::Result<&mut Running> {
        self.running.as_mut().context("the mail server was stopped")
    }

    /// Has it do something wrong `times` times (or always), to those mails alone that are for `to` (an address, or `@` and
    /// a domain), if that is given: `refuse-sender`, `refuse-recipient` (550), `refuse-for-now` (451), `defer-recipient`
    /// (454), `shut-out-recipient` (421), `refuse-message` (554), `refuse-password`, `hang-at-greeting`,
    /// `hang-after-message`, `hang-after-acceptance`, `dawdle-after-message` (5 seconds), `drop-in-message` or
    /// `drop-after-acceptance`. Waits until it knows.
    pub async fn misbehave(&mut self, what: &str, to: Option<&str>, times: Option<u32>) -> anyhow::Result<()> {
        let order = json!({ "do": what, "to": to, "times": times });
        writeln!(self.running()?.orders, "{order}")?;
        self.event("obeyed").await.map(drop)
    }

    /// Has it do everything as it should.
    pub async fn behave(&mut self) -> anyhow::Result<()> {
        self.misbehave("nothing", None, None).await
    }

    /// The next mail that it accepts.
    pub async fn mail(&mut self) -> anyhow::Result<Event> {
        self.event("mail").await
    }

    /// Waits until this kind of thing happens. What else happens before is not kept.
    pub async fn event(&mut self, kind: &str) -> anyhow::Result<Event> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.running()?.events.recv()).await;
            let event = next.with_context(|| format!("no {kind} came from the mail server"))?;
            let event = event.context("the mail server ended")?;
            if event["event"] == kind {
                return Ok(event);
            }
        }
    }

    /// What happened up to now and was not read yet.
    pub async fn so_far(&mut self) -> anyhow::Result<Vec<Event>> {
        // What it says of an order comes behind all that it said before.
        let order = json!({ "do": "nothing", "to": null, "times": null });
        writeln!(self.running()?.orders, "{order}")?;
        let mut events = Vec::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, self.running()?.events.recv()).await?;
            let event = next.context("the mail server ended")?;
            if event["event"] == "obeyed" {
                return Ok(events);
            }
            events.push(event);
        }
    }
}

impl Running {
    fn start(options: &str) -> anyhow::Result<Self> {
        let packages = python::packages("aiosmtpd", PACKAGES, &[]).context("aiosmtpd cannot be obtained")?;
        let mut python = Command::new("python3");
        python.args(["-c", PROGRAM, options]).env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("python3")?;
        let orders = process.stdin.take().context("the mail server's input")?;
        let output = process.stdout.take().context("the mail server's output")?;
        let (told, events) = unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // It says nothing but events.
                let Ok(event) = serde_json::from_str(&line) else { break };
                if told.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, orders, events })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a header of a mail says, decoded.
pub fn header<'a>(mail: &'a Event, name: &str) -> anyhow::Result<&'a str> {
    let headers = mail["headers"].as_array().context("no headers")?;
    let mut found = headers.iter().filter(|header| header[0].as_str().is_some_and(|it| it.eq_ignore_ascii_case(name)));
    let (first, second) = (found.next(), found.next());
    ensure!(second.is_none(), "{name} stands there twice");
    match first.and_then(|header| header[1].as_str()) {
        Some(value) => Ok(value),
        None => bail!("there is no {name}"),
    }
}
