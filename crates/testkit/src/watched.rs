//! A server process of somebody else's, watched by a shell that ends it when whoever started it ends, however that is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// Tells the server's id, and waits for a word, for the end of the one who would say it, or for a signal to all.
const WATCH: &str = r#"
trap : HUP INT TERM
folder=$1; shift
"$@" >>"$folder/log" 2>&1 &
echo $!
read -r word
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// A running server with a folder of its own, which goes with it.
#[derive(Debug)]
pub(crate) struct Watched {
    command: Vec<OsString>,
    folder: PathBuf,
    watch: Child,
    server: Pid,
}

impl Watched {
    /// Starts `binary` with what `arguments` makes of its folder.
    pub(crate) fn start(binary: &Path, arguments: impl FnOnce(&Path) -> Vec<OsString>) -> anyhow::Result<Self> {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let folder = TempDir::with_prefix(format!("rollcall-{name}-")).context("a folder for a server")?.keep();
        let mut command = vec![binary.into()];
        command.extend(arguments(&folder));
        let (watch, server) = spawn(&command, &folder)?;
        Ok(Self { command, folder, watch, server })
    }

    /// The end of what the server wrote.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn is_alive(&self) -> bool {
        // One that has ended and was not waited for yet still has its id.
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.server.as_raw_nonzero()));
        test_kill_process(self.server).is_ok() && !state.is_ok_and(|state| state.contains(") Z "))
    }

    /// Sends the server a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.server, signal).with_context(|| format!("{signal:?}"))
    }

    /// Starts it again, killing it first if it still runs.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        let mut input = self.watch.stdin.take().context("the watch's input")?;
        input.write_all(b"keep\n")?;
        drop(input);
        self.watch.wait()?;
        (self.watch, self.server) = spawn(&self.command, &self.folder)?;
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.watch.stdin.take());
        // Without its watch nothing can be done any more.
        let _ = self.watch.wait();
    }
}

fn spawn(command: &[OsString], folder: &Path) -> anyhow::Result<(Child, Pid)> {
    File::options().create(true).append(true).open(folder.join("log"))?;
    let mut watch = Command::new("sh");
    watch.args(["-c", WATCH, "watch"]).arg(folder).args(command);
    watch.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut watch = watch.spawn().with_context(|| format!("starting {}", command[0].display()))?;
    let output = watch.stdout.take().context("the watch's output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(!line.is_empty(), "the watch over a server ended");
    let server = line.trim().parse().ok().and_then(Pid::from_raw).context("the server's process id")?;
    Ok((watch, server))
}
