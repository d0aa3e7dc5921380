//! Several replicas of the binary on one database, and what may happen to them.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::{BoxFuture, try_join, try_join_all};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, sleep_until};

use crate::history::random::Random;
use crate::server::{Builder, Client, Server};

/// Replicas of one Rollcall, each a process on a port that it keeps.
#[derive(Debug)]
pub struct Cluster {
    replicas: Vec<Server>,
}

impl Cluster {
    /// Starts `count` replicas, one after another. `settings` say by `DB_URL` on which database; the embedded one
    /// takes one replica.
    pub async fn start(settings: &Builder, count: usize) -> anyhow::Result<Self> {
        let mut replicas = Vec::new();
        for n in 1..=count {
            replicas.push(settings.clone().start().await.with_context(|| format!("replica {n}"))?);
        }
        Ok(Self { replicas })
    }

    /// A client of each replica. It stays good when the replica is started again.
    pub fn clients(&self) -> Vec<Client> {
        self.replicas.iter().map(Server::client).collect()
    }

    /// The replicas.
    pub fn replicas(&mut self) -> &mut [Server] {
        &mut self.replicas
    }

    /// Does what the script says, each at its time; `step_down` makes the database's primary give up its place.
    /// Afterwards all replicas run.
    pub async fn suffer(&mut self, script: &Script, step_down: Option<&StepDown>) -> anyhow::Result<()> {
        let began = Instant::now();
        let replicas = self.replicas.iter_mut().zip(&script.replicas).enumerate().map(|(n, (server, faults))| {
            let faults = suffer(server, began, faults);
            async move { faults.await.with_context(|| format!("replica {}", n + 1)) }
        });
        let database = async {
            for at in &script.step_downs {
                sleep_until(began + *at).await;
                if let Some(step_down) = step_down {
                    step_down().await.context("the primary does not step down")?;
                }
            }
            Ok(())
        };
        try_join(try_join_all(replicas), database).await?;
        sleep_until(began + script.length).await;
        Ok(())
    }
}

async fn suffer(server: &mut Server, began: Instant, faults: &[(Duration, Fault)]) -> anyhow::Result<()> {
    for (at, fault) in faults {
        sleep_until(began + *at).await;
        match *fault {
            Fault::Kill { down } => {
                server.kill();
                sleep(down).await;
                server.restart_in_place().await.context("it does not come back")?;
            }
            Fault::Stop { still } => {
                signal(server, Signal::STOP)?;
                sleep(still).await;
                signal(server, Signal::CONT)?;
            }
        }
    }
    Ok(())
}

fn signal(server: &Server, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).context("no process")?;
    kill_process(pid, signal).with_context(|| format!("{signal:?}"))
}

/// Makes the database's primary step down.
pub type StepDown = dyn Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync;

/// What may happen to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a new start on the same port.
    Kill {
        /// How long it is gone.
        down: Duration,
    },
    /// SIGSTOP, and SIGCONT.
    Stop {
        /// How long it stands still.
        still: Duration,
    },
}

/// What happens when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// For each replica, by the time at which it begins. One that would begin before the last is over follows it.
    replicas: Vec<Vec<(Duration, Fault)>>,
    /// When the database's primary steps down.
    step_downs: Vec<Duration>,
    length: Duration,
}

impl Script {
    /// Draws what happens within `length` to so many replicas, each for itself, and, if it `steps_down`, to the
    /// database's primary: about every ten seconds, once at least.
    pub fn draw(random: &mut Random, replicas: usize, length: Duration, steps_down: bool) -> Self {
        // Time for the clients to get going, and to feel the last fault.
        let margin = length / 10;
        let last = length.saturating_sub(margin);
        // However many there are, something happens about as often.
        let rest = Duration::from_secs(2) * u32::try_from(replicas).unwrap_or(u32::MAX);
        let replicas = (0..replicas).map(|_| {
            let mut faults = Vec::new();
            let mut at = random.time(margin, margin + rest);
            while at < last {
                let fault = if random.one_in(2) {
                    Fault::Kill { down: random.time(Duration::ZERO, Duration::from_millis(600)) }
                } else {
                    // At times longer than clients wait: they are elsewhere when it wakes.
                    let most = if random.one_in(3) { 5_000 } else { 1_500 };
                    Fault::Stop { still: random.time(Duration::from_millis(20), Duration::from_millis(most)) }
                };
                faults.push((at, fault));
                at += random.time(Duration::from_millis(100), rest);
            }
            faults
        });
        let replicas = replicas.collect();
        let mut step_downs = Vec::new();
        let mut at = random.time(margin, length / 2);
        while steps_down && at < last {
            step_downs.push(at);
            at += random.time(Duration::from_secs(6), Duration::from_secs(14));
        }
        Self { replicas, step_downs, length }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.replicas.iter().enumerate().flat_map(|(n, faults)| {
            faults.iter().map(move |(at, fault)| {
                let what = match fault {
                    Fault::Kill { down } => format!("killed, gone for {down:?}"),
                    Fault::Stop { still } => format!("stopped for {still:?}"),
                };
                (*at, format!("replica {} {what}", n + 1))
            })
        });
        let step_downs = self.step_downs.iter().map(|at| (*at, "the primary steps down".to_owned()));
        let mut lines: Vec<_> = faults.chain(step_downs).chain([(self.length, "the end".to_owned())]).collect();
        lines.sort();
        for (at, what) in lines {
            writeln!(f, "{:>7.3} s  {what}", at.as_secs_f64())?;
        }
        Ok(())
    }
}
