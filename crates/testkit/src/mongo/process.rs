//! One `mongod`, watched by a shell that ends it when whoever started it ends, however that is.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// Tells the server's id, and waits for a word, for the end of the one who would say it, or for a signal to all.
const WATCH: &str = r#"
trap : HUP INT TERM
folder=$1; shift
"$@" >/dev/null 2>&1 &
echo $!
read -r word
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
[ "$word" = keep ] || rm -rf "$folder"
"#;

#[derive(Debug)]
pub(super) struct Mongod {
    binary: PathBuf,
    port: u16,
    set: Option<String>,
    folder: PathBuf,
    watch: Child,
    server: Pid,
}

impl Mongod {
    pub(super) fn start(binary: &Path, port: u16, set: Option<&str>) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("rollcall-mongod-").context("a folder for MongoDB")?.keep();
        let set = set.map(str::to_owned);
        let (watch, server) = spawn(binary, port, set.as_deref(), &folder)?;
        Ok(Self { binary: binary.to_owned(), port, set, folder, watch, server })
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The end of what the server wrote.
    pub(super) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn is_alive(&self) -> bool {
        // One that has ended and was not waited for yet still has its id.
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.server.as_raw_nonzero()));
        test_kill_process(self.server).is_ok() && !state.is_ok_and(|state| state.contains(") Z "))
    }

    pub(super) fn kill(&self) -> anyhow::Result<()> {
        kill_process(self.server, Signal::KILL).context("killing MongoDB")
    }

    pub(super) fn pause(&self) -> anyhow::Result<()> {
        kill_process(self.server, Signal::STOP).context("stopping MongoDB")
    }

    pub(super) fn resume(&self) -> anyhow::Result<()> {
        kill_process(self.server, Signal::CONT).context("letting MongoDB go on")
    }

    /// Starts it again, killing it first if it still runs.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        let mut input = self.watch.stdin.take().context("the watch's input")?;
        input.write_all(b"keep\n")?;
        drop(input);
        self.watch.wait()?;
        (self.watch, self.server) = spawn(&self.binary, self.port, self.set.as_deref(), &self.folder)?;
        Ok(())
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        drop(self.watch.stdin.take());
        // Without its watch nothing can be done any more.
        let _ = self.watch.wait();
    }
}

fn spawn(binary: &Path, port: u16, set: Option<&str>, folder: &Path) -> anyhow::Result<(Child, Pid)> {
    let data = folder.join("data");
    std::fs::create_dir_all(&data)?;
    File::create(folder.join("log"))?;
    let mut watch = Command::new("sh");
    watch.args(["-c", WATCH, "watch"]).arg(folder).arg(binary);
    watch.args(["--bind_ip", "127.0.0.1", "--port", &port.to_string()]);
    watch.args(["--wiredTigerCacheSizeGB", "0.25", "--nounixsocket", "--quiet"]);
    watch.arg("--dbpath").arg(&data).arg("--logpath").arg(folder.join("log")).arg("--logappend");
    if let Some(set) = set {
        watch.args(["--replSet", set]);
    }
    let mut watch =
        watch.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("starting MongoDB")?;
    let output = watch.stdout.take().context("the watch's output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(!line.is_empty(), "the watch over MongoDB ended");
    let server = line.trim().parse().ok().and_then(Pid::from_raw).context("MongoDB's process id")?;
    Ok((watch, server))
}
