//! What the figures were measured on.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;

use super::table::{percentile, time};

/// Forced writes that are timed.
const SYNCS: usize = 300;

/// The machine in one line.
pub(crate) fn describe(folder: &Path) -> anyhow::Result<String> {
    let cores = std::thread::available_parallelism()?;
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let gib = kib.and_then(|kib| kib.parse::<f64>().ok()).map_or(0.0, |kib| kib / f64::from(1 << 20));
    let kernel = said("uname", &["-sr"]);
    let compiler = said("rustc", &["--version"]);
    let (median, p99) = sync_times(folder)?;
    Ok(format!(
        "{cores} cores ({model}), {gib:.0} GiB of memory, {kernel}, {compiler}; a forced write of 4 KiB takes {median} \
         (median) and {p99} (99th percentile)"
    ))
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// How long it takes until 4 KiB are on the disk, in a file that is long enough already and by the call that SQLite uses
/// for its log.
fn sync_times(folder: &Path) -> anyhow::Result<(String, String)> {
    let scratch = super::scratch(folder)?;
    let mut file = File::create(scratch.path().join("sync")).context("a file to write to")?;
    file.write_all(&vec![0; SYNCS * 4096])?;
    file.sync_all()?;
    file.rewind()?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
        times.push(started.elapsed());
    }
    Ok((time(percentile(&times, 0.5)), time(percentile(&times, 0.99))))
}
