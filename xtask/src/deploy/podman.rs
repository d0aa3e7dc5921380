//! Podman, with a storage of its own below the target folder: what is built and run here stays apart from what else the
//! machine has, and goes with the folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::tools::{Tools, output};
use super::unavailable;
use crate::cargo;

/// What Debian needs to build and run containers without a daemon.
const PACKAGES: [&str; 8] =
    ["podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "catatonit", "ca-certificates"];

/// How long a container may take to end by itself once it was asked to.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Podman {
    program: PathBuf,
    folder: PathBuf,
}

impl Podman {
    pub(super) fn new(tools: &Tools, folder: PathBuf) -> anyhow::Result<Self> {
        let program = tools.installed("podman", &PACKAGES)?;
        let podman = Self { program, folder };
        podman.configure()?;
        output(podman.command().arg("info"))
            .map_err(|error| unavailable(format!("podman does not work here: {error:#}")))?;
        Ok(podman)
    }

    /// As root on a machine without systemd, which a container or a small virtual machine often is, the defaults do not
    /// work. These do on others too.
    fn configure(&self) -> anyhow::Result<()> {
        let folder = |name: &str| -> anyhow::Result<PathBuf> {
            let folder = self.folder.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            Ok(folder)
        };
        let mut containers = format!(
            "[containers]\ndefault_ulimits = []\n\n\
             [engine]\nevents_logger = \"file\"\n\n\
             [network]\nnetwork_config_dir = \"{}\"\n",
            folder("networks")?.display()
        );
        if rustix::process::geteuid().is_root() {
            let engine = "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n";
            containers = containers.replace("[engine]\n", engine);
        }
        fs::write(self.folder.join("containers.conf"), containers)?;
        // Sockets are in the run folder, and their paths may not be long.
        let run = std::env::temp_dir().join(format!("rollcall-deploy-{}", rustix::process::geteuid().as_raw()));
        let graph = folder("storage")?;
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            graph.display(),
            run.display()
        );
        fs::write(self.folder.join("storage.conf"), storage)?;
        Ok(())
    }

    /// Podman, to be given arguments.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        self.set_up(&mut command);
        command
    }

    /// Lets whatever this command starts use this podman.
    pub(super) fn set_up(&self, command: &mut Command) {
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.folder.join("storage.conf"));
    }

    /// Runs it, and says what is run.
    pub(super) fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        cargo::run(self.command().args(arguments))
    }

    /// Runs it in silence, for what it says.
    pub(super) fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(self.command().args(arguments))
    }

    /// Whether there is such an image.
    pub(super) fn has_image(&self, name: &str) -> bool {
        self.ask(&["image", "exists", name]).is_ok()
    }

    /// What it knows of an image or a container.
    pub(super) fn inspect(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let text = self.ask(&[kind, "inspect", name])?;
        let mut known: Value = serde_json::from_str(&text).with_context(|| format!("what podman knows of {name}"))?;
        Ok(known[0].take())
    }

    /// Starts a container, and removes one of that name first.
    pub(super) fn start(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Container<'_>> {
        self.remove(name);
        let container = Container { podman: self, name: name.to_owned() };
        self.run(&[&["run", "--detach", "--name", name, "--pull=never"], arguments].concat())?;
        Ok(container)
    }

    /// What a container's program wrote so far, to both streams.
    pub(super) fn logs(&self, container: &str) -> String {
        let output = self.command().args(["logs", container]).output();
        output.map_or_else(
            |error| error.to_string(),
            |output| format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    }

    /// Waits until a container has ended; its exit code.
    pub(super) fn wait(&self, container: &str) -> anyhow::Result<i64> {
        let started = Instant::now();
        loop {
            let state = self.inspect("container", container)?["State"].take();
            if state["Status"] == "exited" {
                return state["ExitCode"].as_i64().context("an exit code");
            }
            if started.elapsed() > PATIENCE {
                bail!("{container} has not ended within {PATIENCE:?}:\n{}", self.logs(container));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn remove(&self, name: &str) {
        // Fails only where there is none.
        let _ = self.ask(&["rm", "--force", "--ignore", "--time", "1", name]);
    }
}

/// A container. It is removed when this goes out of scope.
pub(super) struct Container<'a> {
    podman: &'a Podman,
    pub(super) name: String,
}

impl Container<'_> {
    /// What its program wrote so far, to both streams.
    pub(super) fn logs(&self) -> String {
        self.podman.logs(&self.name)
    }

    /// The id of its program's process, as this machine sees it.
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        let known = self.podman.inspect("container", &self.name)?;
        let pid = known["State"]["Pid"].as_u64().filter(|pid| *pid != 0).context("the container does not run")?;
        Ok(u32::try_from(pid)?)
    }

    /// Sends its program this signal.
    pub(super) fn signal(&self, signal: &str) -> anyhow::Result<()> {
        self.podman.ask(&["kill", "--signal", signal, &self.name]).map(drop)
    }

    /// Waits until it has ended; its exit code.
    pub(super) fn wait(&self) -> anyhow::Result<i64> {
        self.podman.wait(&self.name)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}--- end of {} ---", self.name, self.logs(), self.name);
        }
        self.podman.remove(&self.name);
    }
}
