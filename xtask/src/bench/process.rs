//! The measured processes: the server and its references.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::Bench;
use super::world::SECRET;

/// What a process says on standard output before the address that it listens on.
const LISTENS: &str = "listens on http://";

/// A process that listens. It is killed when it goes out of scope.
pub(crate) struct Process {
    child: Child,
    address: SocketAddr,
    /// A reference ends when this closes, however its parent ended.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts the server on this database. Its log goes to a file beside it.
    pub(crate) fn server(bench: &Bench, database: &Path) -> anyhow::Result<Self> {
        let folder = database.parent().context("a database in a folder")?;
        Self::replica(bench, &format!("sqlite://{}", database.display()), folder)
    }

    /// Starts the server on the database of this address. It runs in `folder`, and its log goes there.
    pub(crate) fn replica(bench: &Bench, url: &str, folder: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(&bench.server);
        let settings = [("DB_URL", url), ("LISTEN_ADDR", "127.0.0.1:0"), ("JWT_SECRET", SECRET), ("RATE_LIMIT", "off")];
        let log = folder.join("rollcall.log");
        command.env_clear().envs(settings).current_dir(folder);
        command
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).context("the server's log")?);
        Self::start(command).with_context(|| std::fs::read_to_string(log).unwrap_or_default())
    }

    /// Starts a reference that listens, by the arguments of `bench-reference`.
    pub(crate) fn reference(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-reference").args(arguments).stdin(Stdio::piped()).stderr(Stdio::inherit());
        Self::start(command)
    }

    fn start(mut command: Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        let mut child =
            command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("standard output")?;
        let stdin = child.stdin.take();
        let mut process = Self { child, address: ([127, 0, 0, 1], 0).into(), _stdin: stdin };
        let mut lines = BufReader::new(stdout).lines();
        process.address = loop {
            let Some(line) = lines.next() else { bail!("{} gave up", program.display()) };
            let line = line?;
            if let Some((_, address)) = line.split_once(LISTENS) {
                let address = address.split([' ', '/', ',']).next().unwrap_or_default();
                break address.parse().with_context(|| format!("an address in {line:?}"))?;
            }
        };
        // Whatever else it says must not block it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(process)
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Processor time that it has used.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("{path}, which only Linux has"))?;
        // Behind the name, which may hold anything: the state, ten other fields, user time, system time.
        let (_, fields) = stat.rsplit_once(')').context("a process's name")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Bytes of memory that it holds, once that has settled.
    pub(crate) fn settled_memory(&self) -> anyhow::Result<u64> {
        settled_memory(self.child.id())
    }
}

/// Bytes of memory that a process holds.
fn memory(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("{path}, which only Linux has"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// The same, once it has settled.
pub(crate) fn settled_memory(pid: u32) -> anyhow::Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut last = memory(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = memory(pid)?;
        if now == last || Instant::now() > deadline {
            return Ok(now);
        }
        last = now;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a reference that ends by itself; the one number that it printed.
pub(crate) fn figure(arguments: &[&str]) -> anyhow::Result<f64> {
    match figures(arguments)?[..] {
        [figure] => Ok(figure),
        ref figures => bail!("{} numbers instead of one from {arguments:?}", figures.len()),
    }
}

/// The same; all numbers that it printed.
pub(crate) fn figures(arguments: &[&str]) -> anyhow::Result<Vec<f64>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("bench-reference")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // Open until it has ended: it ends early when this closes.
    let _stdin = child.stdin.take();
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the reference {arguments:?} failed with {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().map(|word| word.parse().with_context(|| format!("a number instead of {word:?}"))).collect()
}
