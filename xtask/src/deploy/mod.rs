//! `cargo xtask test-deploy`: what an operator takes from the repository, tried for real where this machine can, and
//! validated by the strictest tool at hand where it cannot.
//!
//! It is a list of steps. To add one, write a function beside its like ([`image`], [`manifests`]) and name it in
//! [`STEPS`]. A step answers with what it found, in one line for the table. It fails by an error, or by a panic, as the
//! test kit's clients do. What it needs it takes from [`tools`], which fetches it; where this machine cannot have it,
//! that ends the step with the [`Unavailable`] reason, and the table shows it as skipped.

mod acme;
mod compose;
mod container;
mod image;
mod manifests;
mod measure;
mod monitoring;
mod pod;
mod podman;
mod standin;
mod tools;
mod workflows;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::{bench, cargo};
use image::Image;
use podman::Podman;
use tools::Tools;

/// A step: its name, whether only `--full` runs it, and what it does.
struct Step {
    name: &'static str,
    full: bool,
    run: fn(&Deploy) -> anyhow::Result<String>,
}

const fn step(name: &'static str, run: fn(&Deploy) -> anyhow::Result<String>) -> Step {
    Step { name, full: false, run }
}

/// What runs, in this order.
const STEPS: [Step; 14] = [
    step("dockerfile", image::lint),
    step("manifests", manifests::check),
    Step { name: "manifests-versions", full: true, run: manifests::versions },
    step("manifests-policy", manifests::policy),
    step("workflows", workflows::check),
    step("monitoring", monitoring::monitoring),
    step("acme", acme::pebble),
    step("image", image::build),
    step("container", container::hardened),
    step("pod", pod::play),
    step("measure", measure::measure),
    step("compose", compose::single),
    step("rolling-update", compose::rolling),
    Step { name: "reproducible", full: true, run: image::reproducible },
];

/// Who records what was measured.
const RECORD: &str = "cargo xtask test-deploy --record";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these steps; may be given several times
    #[arg(long, value_parser = STEPS.map(|step| step.name))]
    only: Vec<String>,
    /// Also what takes long: the image built a second time, the full matrix of Kubernetes versions
    #[arg(long)]
    full: bool,
    /// Try this image instead of one that is built here
    #[arg(long)]
    image: Option<String>,
    /// Write what was measured into docs/benchmarks.md
    #[arg(long, conflicts_with = "only")]
    record: bool,
}

impl Options {
    fn wants(&self, step: &Step) -> bool {
        if self.only.is_empty() { self.full || !step.full } else { self.only.iter().any(|only| only == step.name) }
    }
}

/// What all steps share.
struct Deploy {
    /// Holds what the steps make and fetch, from one run to the next.
    folder: PathBuf,
    tools: Tools,
    podman: Shared<Podman>,
    image: Shared<Image>,
    /// The image that is to be tried instead of one that is built here.
    given: Option<String>,
    /// What was measured: what it is, and how much.
    figures: Mutex<Vec<(String, String)>>,
}

impl Deploy {
    fn new(folder: PathBuf, given: Option<String>) -> Self {
        let tools = Tools::new(&folder);
        Self { folder, tools, podman: Shared::default(), image: Shared::default(), given, figures: Mutex::default() }
    }

    /// What builds and runs containers.
    fn podman(&self) -> anyhow::Result<&Podman> {
        self.podman.get("podman", || Podman::new(&self.tools, self.folder.join("podman")))
    }

    /// The image that is tried: of this tree, built once, or the one that was named.
    fn image(&self) -> anyhow::Result<&Image> {
        self.image.get("the image", || Image::obtain(self, self.given.as_deref()))
    }

    /// A figure for the record.
    fn figure(&self, what: impl Into<String>, figure: impl Into<String>) {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).push((what.into(), figure.into()));
    }
}

/// What the first step that needs it makes. If that fails, the step fails, and the others that need it cannot run.
struct Shared<T>(OnceLock<Result<T, String>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> Shared<T> {
    fn get(&self, what: &str, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<&T> {
        let mut failed = None;
        let kept = self.0.get_or_init(|| make().map_err(|error| failed.insert(error).to_string()));
        match (kept, failed) {
            (Ok(kept), _) => Ok(kept),
            (Err(_), Some(error)) => Err(error),
            (Err(why), None) => Err(unavailable(format!("no {}: {why}", what.trim_start_matches("the ")))),
        }
    }
}

/// Runs what talks to servers.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// Why a step cannot run on this machine. It is no failure of what the step would have tried.
#[derive(Debug)]
struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Ends a step that cannot run here.
fn unavailable(why: impl Into<String>) -> anyhow::Error {
    Unavailable(why.into()).into()
}

/// How a step ended.
enum Outcome {
    Passed(String),
    Failed(String),
    Skipped(String),
}

struct Row {
    step: &'static str,
    outcome: Outcome,
    took: Duration,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let folder = cargo::root().join("target/deploy");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let deploy = Deploy::new(folder, options.image.clone());
    let mut rows = Vec::new();
    for step in STEPS.iter().filter(|step| options.wants(step)) {
        eprintln!("\n== {}", step.name);
        let started = Instant::now();
        let outcome = outcome(&deploy, step);
        rows.push(Row { step: step.name, outcome, took: started.elapsed() });
    }
    println!("\n{}", table(&rows));
    let count = |wanted: fn(&Outcome) -> bool| rows.iter().filter(|row| wanted(&row.outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let passed = count(|outcome| matches!(outcome, Outcome::Passed(_)));
    println!("{passed} passed, {failed} failed, {} skipped", rows.len() - passed - failed);
    if options.record {
        record(&deploy)?;
    }
    if failed > 0 {
        bail!("{failed} of {} steps failed", rows.len());
    }
    Ok(())
}

/// Puts what was measured into the place of the last record.
fn record(deploy: &Deploy) -> anyhow::Result<()> {
    let machine = bench::machine::describe(&deploy.folder)?;
    let figures = deploy.figures.lock().unwrap_or_else(PoisonError::into_inner);
    let rows: Vec<_> = figures.iter().map(|(what, figure)| format!("| {what} | {figure} |")).collect();
    let table = format!("Measured on {machine}.\n\n| | |\n| --- | ---: |\n{}", rows.join("\n"));
    crate::record::replace(RECORD, &table)
}

fn outcome(deploy: &Deploy, step: &Step) -> Outcome {
    // On a thread of its own: what panics there ends this step and no other.
    let result = std::thread::scope(|scope| scope.spawn(|| (step.run)(deploy)).join());
    match result {
        Ok(Ok(found)) => Outcome::Passed(found),
        Ok(Err(error)) => {
            eprintln!("{error:?}");
            let unavailable = error.downcast_ref::<Unavailable>();
            unavailable.map_or_else(|| Outcome::Failed(format!("{error:#}")), |why| Outcome::Skipped(why.to_string()))
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Outcome::Failed(text.unwrap_or("a panic").to_owned())
        }
    }
}

fn table(rows: &[Row]) -> String {
    use fmt::Write as _;
    let width = rows.iter().map(|row| row.step.len()).max().unwrap_or_default();
    let mut table = String::new();
    for Row { step, outcome, took } in rows {
        let (word, found) = match outcome {
            Outcome::Passed(found) => ("passed", found),
            Outcome::Failed(why) => ("FAILED", why),
            Outcome::Skipped(why) => ("skipped", why),
        };
        // One line each, however much a tool had to say: all of it was printed when it was said.
        let mut lines = found.lines();
        let first = lines.next().unwrap_or_default();
        let more = if lines.next().is_some() { " …" } else { "" };
        let _ = writeln!(table, "{step:width$}  {word:7}  {:>5.0} s  {first}{more}", took.as_secs_f64());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy() -> Deploy {
        Deploy::new("nowhere".into(), None)
    }

    #[test]
    fn a_step_passes_fails_or_is_skipped() {
        let run = |run| outcome(&deploy(), &step("x", run));
        assert!(matches!(run(|_| Ok("fine".into())), Outcome::Passed(found) if found == "fine"));
        let failed = run(|_| Err(anyhow::anyhow!("inner").context("outer")));
        assert!(matches!(failed, Outcome::Failed(why) if why == "outer: inner"));
        assert!(matches!(run(|_| panic!("number {}", 7)), Outcome::Failed(why) if why == "number 7"));
        let skipped = run(|_| Err(unavailable("no privileges").context("a container")));
        assert!(matches!(skipped, Outcome::Skipped(why) if why == "no privileges"));
    }

    #[test]
    fn what_failed_once_is_not_tried_again() {
        let shared = Shared::<u8>::default();
        let first = shared.get("the thing", || Err(anyhow::anyhow!("broken"))).unwrap_err();
        assert!(first.to_string() == "broken" && !first.is::<Unavailable>());
        let second = shared.get("the thing", || Ok(1)).unwrap_err();
        assert_eq!(second.downcast_ref::<Unavailable>().unwrap().to_string(), "no thing: broken");
    }

    #[test]
    fn each_step_is_one_line_of_the_table() {
        let row = |step, outcome| Row { step, outcome, took: Duration::from_secs(2) };
        let rows = [
            row("image", Outcome::Passed("17.2 MB".into())),
            row("k8s", Outcome::Failed("a finding\nand another".into())),
            row("acme", Outcome::Skipped("no pebble".into())),
        ];
        let table = table(&rows);
        assert_eq!(
            table.lines().collect::<Vec<_>>(),
            [
                "image  passed       2 s  17.2 MB",
                "k8s    FAILED       2 s  a finding …",
                "acme   skipped      2 s  no pebble",
            ]
        );
    }

    #[test]
    fn names_are_one_each() {
        let mut names = STEPS.map(|step| step.name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
