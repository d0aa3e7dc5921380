//! The server's process: started, watched, killed and started again on the same folder.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::Client;
use super::tls::Trust;
use super::until;

/// The `JWT_SECRET` of spawned servers, so that tests can sign tokens of their own.
pub const SECRET: &str = "the-testkit-signs-with-this-and-nobody-else-does";

/// Names the MongoDB on which servers are started, instead of a file in their folder: a URL with `{database}` where the
/// database's name belongs. Each folder gets a database of its own.
pub const MONGODB: &str = "ROLLCALL_TEST_MONGODB";

/// How many replicas are started for each server, where [`MONGODB`] is set; each new person is at another one.
pub const REPLICAS: &str = "ROLLCALL_TEST_REPLICAS";

/// What the line on standard output says before the address.
const LISTENS: &str = "listens on ";

/// How a server is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    binary: PathBuf,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    folder: Option<Arc<TempDir>>,
    trust: Option<Trust>,
}

impl Builder {
    /// Sets an environment variable. The process has no others than those set here and the defaults.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Takes a default environment variable away.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Adds an argument to the command line.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Works in this folder instead of a new one. The process starts there; its database is in it by default.
    #[must_use]
    pub fn folder(mut self, folder: Arc<TempDir>) -> Self {
        self.folder = Some(folder);
        self
    }

    /// Calls the server over HTTPS, with this trust.
    #[must_use]
    pub fn trusting(mut self, trust: Trust) -> Self {
        self.trust = Some(trust);
        self
    }

    /// Starts the server and waits until it listens. The error carries what a server that gave up has said.
    pub async fn start(self) -> anyhow::Result<Server> {
        let folder = match &self.folder {
            Some(folder) => Arc::clone(folder),
            None => Arc::new(tempfile::tempdir().context("a folder for the server")?),
        };
        let mut settings = Self { folder: Some(Arc::clone(&folder)), ..self };
        let mut replicas = 1;
        if let Ok(url) = std::env::var(MONGODB)
            && !settings.env.contains_key("DB_URL")
        {
            settings.env.insert("DB_URL".to_owned(), url.replace("{database}", &database_for(folder.path())));
            replicas = std::env::var(REPLICAS).ok().and_then(|count| count.parse().ok()).unwrap_or(1);
        }
        let (process, address) = settings.spawn(folder.path()).await?;
        let mut others = Vec::new();
        for _ in 1..replicas {
            others.push(settings.spawn(folder.path()).await?);
        }
        Ok(Server { settings, folder, process, address, others })
    }

    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command.env_clear().envs(&self.env).current_dir(folder).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn spawn(&self, folder: &Path) -> anyhow::Result<(Process, SocketAddr)> {
        let mut child = self
            .command(folder)
            .args(&self.arguments)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let (stdout, stderr) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        let (output, logs) = (Text::default(), Text::default());
        let readers = vec![output.collect(stdout), logs.collect(stderr)];
        let mut process = Process { child, output, logs, readers };
        let started = until("the server listens or gives up", || {
            // Asked before the output is read: whatever a process that ended had to say is then there.
            let ended = process.ended();
            if ended.is_some() {
                process.join_readers();
            }
            match process.output.find(listens_on) {
                Some(address) => Some(Ok(address)),
                None => ended.map(Err),
            }
        })
        .await;
        match started {
            Ok(address) => Ok((process, address)),
            Err(status) => {
                let said = format!("{}{}", process.output.get(), process.logs.get());
                bail!("the server gave up with {status}:\n{said}")
            }
        }
    }
}

/// A database's name for a server's folder: the same again when the server is started again.
fn database_for(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("t{}_{}", std::process::id(), name.replace(|c: char| !c.is_ascii_alphanumeric(), ""))
}

fn listens_on(output: &str) -> Option<SocketAddr> {
    let (_, rest) = output.split_once(LISTENS)?;
    // Only a whole line has the whole port.
    let (line, _) = rest.split_once('\n')?;
    let (_, address) = line.split_once("://")?;
    address.split([' ', '/', ',']).next()?.parse().ok()
}

/// A running server with a folder of its own. It is killed when it goes out of scope.
#[derive(Debug)]
pub struct Server {
    settings: Builder,
    folder: Arc<TempDir>,
    process: Process,
    address: SocketAddr,
    /// Replicas beside this one, on the same database.
    others: Vec<(Process, SocketAddr)>,
}

impl Server {
    /// How a server of this binary is to be started: on a free port of the loopback address, in a new folder, with
    /// cheap password hashes, a known secret and no limits.
    pub fn builder(binary: impl Into<PathBuf>) -> Builder {
        let env = [("LISTEN_ADDR", "127.0.0.1:0"), ("BCRYPT_COST", "4"), ("RATE_LIMIT", "off"), ("JWT_SECRET", SECRET)];
        Builder {
            binary: binary.into(),
            arguments: Vec::new(),
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            folder: None,
            trust: None,
        }
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base of the server's addresses, without a slash at its end.
    pub fn base(&self) -> String {
        self.base_at(self.address)
    }

    fn base_at(&self, address: SocketAddr) -> String {
        let scheme = if self.settings.trust.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// A client of this server. Who signs up through it is at another replica each time, if there are several.
    pub fn client(&self) -> Client {
        let others = self.others.iter().map(|(_, address)| self.base_at(*address));
        let client = match &self.settings.trust {
            Some(trust) => Client::trusting(&self.base(), trust),
            None => Client::new(&self.base()),
        };
        client.with_replicas(others)
    }

    /// The folder that the server was started in. It outlives the process.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// What the process has written to standard output so far.
    pub fn output(&self) -> String {
        self.process.output.get()
    }

    /// What the process has logged so far.
    pub fn logs(&self) -> String {
        self.process.logs.get()
    }

    /// Waits until the log contains `text`.
    pub async fn logged(&self, text: &str) {
        until(&format!("{text:?} in the log"), || self.process.logs.find(|logs| logs.contains(text).then_some(())))
            .await;
    }

    /// Ends the process at once, as a crash would (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks the process to end (SIGTERM).
    pub fn ask_to_end(&self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Asks the process to look at its files again (SIGHUP).
    pub fn ask_to_reload(&self) -> anyhow::Result<()> {
        self.signal(Signal::HUP)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.process.child), signal).with_context(|| format!("{signal:?}"))
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = until("the server ends", || self.process.ended()).await;
        self.process.join_readers();
        status
    }

    /// Asks the process to end and waits until it has.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.ask_to_end()?;
        Ok(self.ended().await)
    }

    /// Starts the server again with the same settings on the same folder, after [`Server::kill`] or
    /// [`Server::terminate`]. It gets another port unless the settings name one.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        (self.process, self.address) = self.settings.spawn(self.folder.path()).await?;
        Ok(())
    }

    /// Starts the server again on the port that it had.
    pub async fn restart_in_place(&mut self) -> anyhow::Result<()> {
        self.settings.env.insert("LISTEN_ADDR".to_owned(), self.address.to_string());
        self.restart().await
    }

    /// Runs another command of the same binary beside the server, with its settings and in its folder.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.settings.command(self.folder.path());
        command.env("LISTEN_ADDR", self.address.to_string()).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output());
        tokio::time::timeout(super::PATIENCE, output)
            .await
            .with_context(|| format!("{arguments:?} does not end"))??
            .with_context(|| format!("cannot run {arguments:?}"))
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    output: Text,
    logs: Text,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn kill(&mut self) {
        // Fails only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join_readers();
    }

    /// Waits until all that the ended process wrote has been read.
    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "a failed test shows what its server logged")]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}--- end of the server's log ---", self.logs.get());
        }
    }
}

/// What one of the process's streams has said so far.
#[derive(Clone, Debug, Default)]
struct Text(Arc<Mutex<String>>);

impl Text {
    fn get(&self) -> String {
        self.find(|text| Some(text.to_owned())).unwrap_or_default()
    }

    fn find<T>(&self, search: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        search(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads `stream` to its end, on a thread of its own: a test that blocks must not block the server.
    fn collect(&self, stream: impl std::io::Read + Send + 'static) -> JoinHandle<()> {
        let text = self.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                text.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        })
    }
}
