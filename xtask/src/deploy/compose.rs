//! `compose.yaml`: the one Rollcall, and the replicas, replaced one by one while attendance is taken.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rollcall_testkit::history::random::Random;
use rollcall_testkit::history::workload::{self, Scale};
use rollcall_testkit::server::Client;

use super::container::School;
use super::podman::Podman;
use super::tools::output;
use super::workflows::SCHEMAS;
use super::{Deploy, block_on, container, standin};
use crate::cargo;

/// What the containers of the test are called first.
const PROJECT: &str = "rollcall-test-deploy";
const REPLICAS: [&str; 3] = ["replica-1", "replica-2", "replica-3"];
/// How long all of them may take to start, or one of them to be replaced.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two replacements, and after the last: for a moment all are as they should be.
const BREATH: Duration = Duration::from_secs(2);

/// The file, as an operator would run it, on other ports and under other names.
struct Compose<'a> {
    podman: &'a Podman,
    program: PathBuf,
    image: &'a str,
    /// Where it serves on this machine.
    port: u16,
}

impl<'a> Compose<'a> {
    fn new(deploy: &'a Deploy) -> anyhow::Result<Self> {
        let image = &deploy.image()?.name;
        let program = deploy.tools.python("podman-compose", "podman-compose==1.6.0")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let compose = Self { podman: deploy.podman()?, program, image, port };
        compose.remove();
        Ok(compose)
    }

    /// Starts all of the profile `cluster`, and waits until the replicas are ready.
    fn start_cluster(&self, deploy: &Deploy) -> anyhow::Result<()> {
        for image in images()? {
            standin::image(deploy, &image)?;
        }
        // In the order in which they need each other: podman-compose's own waiting for that does not work with all
        // versions of podman.
        self.do_once("mongo-key")?;
        self.up("mongo")?;
        self.do_once("mongo-init")?;
        for replica in REPLICAS {
            self.up(replica)?;
        }
        self.up("proxy")?;
        REPLICAS.iter().try_for_each(|replica| self.wait(replica))
    }

    /// Waits until what it serves is ready; a client of that.
    fn client(&self, service: &str) -> anyhow::Result<Client> {
        let client = Client::new(&format!("http://127.0.0.1:{}", self.port));
        block_on(container::ready(&client)).with_context(|| self.podman.logs(&Self::container(service)))?;
        Ok(client)
    }

    /// The command with these arguments behind those that say what it is about.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        self.podman.set_up(&mut command);
        command.current_dir(cargo::root());
        command.args(["--project-name", PROJECT, "--profile", "cluster"]).args(arguments);
        command.env("ROLLCALL_IMAGE", self.image);
        for publish in ["ROLLCALL_PUBLISH", "CLUSTER_PUBLISH"] {
            command.env(publish, format!("127.0.0.1:{}", self.port));
        }
        for secret in ["JWT_SECRET", "MONGO_PASSWORD", "MONGO_ROOT_PASSWORD"] {
            command.env(secret, format!("{secret}-of-a-test-that-is-over-soon"));
        }
        command
    }

    fn up(&self, service: &str) -> anyhow::Result<()> {
        let mut command = self.command(&["up", "--detach", "--no-build", "--no-deps", service]);
        eprintln!("$ {}", cargo::shown(&command));
        output(&mut command).map(drop)
    }

    /// Starts a service that ends when it has done its work, and waits for that.
    fn do_once(&self, service: &str) -> anyhow::Result<()> {
        self.up(service)?;
        let name = Self::container(service);
        self.podman.wait(&name).and_then(|code| {
            ensure!(code == 0, "{service} ended with exit code {code}:\n{}", self.podman.logs(&name));
            Ok(())
        })
    }

    fn container(service: &str) -> String {
        format!("{PROJECT}_{service}_1")
    }

    /// Waits until this replica is ready, by its own HEALTHCHECK.
    fn wait(&self, replica: &str) -> anyhow::Result<()> {
        let (name, started) = (Self::container(replica), Instant::now());
        loop {
            let Err(why) = self.podman.ask(&["healthcheck", "run", &name]) else { return Ok(()) };
            if started.elapsed() > PATIENCE {
                bail!("{replica} is not ready within {PATIENCE:?}: {why:#}\n{}", self.podman.logs(&name));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Stops a replica as an operator would, and starts a new one in its place.
    fn replace(&self, replica: &str) -> anyhow::Result<()> {
        eprintln!("replacing {replica}");
        let name = Self::container(replica);
        self.podman.ask(&["stop", "--time", "30", &name])?;
        let code = self.podman.wait(&name)?;
        ensure!(code == 0, "{replica} ended with exit code {code}:\n{}", self.podman.logs(&name));
        self.podman.ask(&["rm", &name])?;
        self.up(replica)?;
        self.wait(replica)
    }

    /// Removes what there is of this and of earlier runs.
    fn remove(&self) {
        let label = format!("label=io.podman.compose.project={PROJECT}");
        let remove = |kind: &str, list: &[&str], remove: &[&str]| {
            let there = self.podman.ask(&[&[kind], list, &["--quiet", "--filter", &label]].concat());
            for name in there.unwrap_or_default().lines() {
                if let Err(error) = self.podman.ask(&[&[kind, "rm", "--force"], remove, &[name]].concat()) {
                    eprintln!("{error:#}");
                }
            }
        };
        remove("container", &["ls", "--all"], &["--depend", "--time", "1"]);
        remove("volume", &["ls"], &[]);
        remove("network", &["ls"], &[]);
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The images from elsewhere that the file names.
fn images() -> anyhow::Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(cargo::root().join("compose.yaml")).context("compose.yaml")?;
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    Ok(names.filter(|name| !name.starts_with('$')).map(str::to_owned).collect())
}

/// The file says what its schema knows, and its one Rollcall takes attendance.
pub(super) fn single(deploy: &Deploy) -> anyhow::Result<String> {
    let schemas = deploy.tools.python("check-jsonschema", SCHEMAS)?;
    let file = cargo::root().join("compose.yaml");
    output(Command::new(schemas).args(["--builtin-schema", "vendor.compose-spec"]).arg(file))?;
    let compose = Compose::new(deploy)?;
    compose.up("rollcall")?;
    let client = compose.client("rollcall")?;
    block_on(async {
        School::new(&client).await.whole_session().await;
        Ok(())
    })?;
    Ok("valid by the schema of the compose specification; a session from start to records".to_owned())
}

/// All replicas are replaced, one after another, behind the proxy and under a live session: no acknowledged mark is
/// lost, and everybody ends on the right state.
pub(super) fn rolling(deploy: &Deploy) -> anyhow::Result<String> {
    let compose = Compose::new(deploy)?;
    compose.start_cluster(deploy)?;
    let client = compose.client("proxy")?;
    let mut replaced = Ok(());
    let history = block_on(async {
        let replace = async {
            for replica in REPLICAS {
                tokio::time::sleep(BREATH).await;
                let done = tokio::task::block_in_place(|| compose.replace(replica));
                if done.is_err() {
                    replaced = done;
                    return;
                }
            }
            tokio::time::sleep(BREATH).await;
        };
        // Within the limits of what a socket may say.
        let scale = Scale { pause: Duration::from_millis(300), ..Scale::default() };
        Ok(workload::run(&[client], scale, &Random::new(1), replace).await)
    })?;
    replaced?;
    let sum = history.check().map_err(|violations| {
        let shown: Vec<_> = violations.iter().take(10).map(ToString::to_string).collect();
        anyhow::anyhow!("{} promises are broken:\n{}", violations.len(), shown.join("\n"))
    })?;
    // Otherwise nothing was tried.
    ensure!(sum.acknowledged > 100 && sum.read > 100, "too little happened: {sum}");
    deploy.figure("rolling update: the longest that a client had no connection", format!("{:.0?}", sum.gap));
    Ok(format!("three replicas replaced, no mark lost, longest gap {:.0?}; {sum}", sum.gap))
}
