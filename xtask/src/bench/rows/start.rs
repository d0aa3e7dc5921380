//! From the start of the process to its first answer.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::bench::http::{Client, request};
use crate::bench::process::Process;
use crate::bench::table::{Row, percentile, time};

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn start(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let million = bench.databases.copy(1_000_000)?;
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..=2 * bench.turns() {
        let started = Instant::now();
        let bare = Process::reference(&["http", "{}"])?;
        times[0].push(first_answer(started, &bare, "/me")?);
        let empty = bench.databases.none()?;
        times[1].push(start_server(bench, &empty.path())?);
        times[2].push(start_server(bench, &million.path())?);
    }
    let [bare, empty, million] = times.map(|times| percentile(&times, 0.5));
    let row = |what: &str, figure: Duration, reference: Duration| {
        let ratio = figure.as_secs_f64() / reference.as_secs_f64();
        Row::new(what).figure(time(figure)).reference(time(reference)).ratio(ratio)
    };
    Ok(vec![
        row("start to first answer on an empty folder, beside a bare server", empty, bare),
        row("… on a database of a million records, beside an empty folder", million, empty),
    ])
}

fn start_server(bench: &Bench, database: &Path) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let server = Process::server(bench, database)?;
    first_answer(started, &server, "/health/ready")
}

/// Asks until the answer is a success. A server that answers that it is not ready yet has not started.
pub(super) fn first_answer(started: Instant, process: &Process, path: &str) -> anyhow::Result<Duration> {
    let ask = request("GET", path, None, "");
    loop {
        match Client::connect(process.address())?.ask(&ask) {
            Ok(_) => return Ok(started.elapsed()),
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
