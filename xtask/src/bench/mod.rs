//! How fast Rollcall is: one table in which every figure stands beside its own reference, measured in the same run.
//!
//! The server is the release binary, in a process of its own, on loopback, with limits off and otherwise as it comes.
//! So is each reference ([`reference`]). This process makes the load, as cheaply as can be ([`http`], [`sockets`]),
//! since it shares the machine with what it measures. Server and reference take turns, and medians of the turns are
//! compared: what troubles the machine troubles both.
//!
//! A row is a function of a module under [`rows`]; to add one, write it there and name it in [`NAMES`].

mod http;
pub(crate) mod machine;
mod mongo;
pub(crate) mod process;
pub(crate) mod reference;
mod rows;
pub(crate) mod sockets;
mod table;
pub(crate) mod world;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{cargo, record};
use mongo::Mongo;
use table::Row;
use world::Databases;

/// Measures a part of the table.
type Measure = fn(&Bench) -> anyhow::Result<Vec<Row>>;

/// The parts of the table, in its order.
const NAMES: [(&str, Measure); 17] = [
    ("me", rows::me::me),
    ("hall-1000", rows::hall::hall_1000),
    ("hall-5000", rows::hall::hall_5000),
    ("marks", rows::marks::marks),
    ("rush", rows::hall::rush),
    ("memory", rows::memory::memory),
    ("logins", rows::logins::logins),
    ("start", rows::start::start),
    ("growth", rows::growth::growth),
    ("mongo-marks", rows::mongo::marks),
    ("mongo-rush", rows::mongo::rush),
    ("mongo-me", rows::me::me_over_mongo),
    ("across", rows::replicas::across),
    ("loss", rows::replicas::loss),
    ("mongo-follow", rows::replicas::follow),
    ("mongo-log", rows::mongo::long_log),
    ("mongo-size", rows::mongo::size),
];

/// Who records the table.
const RECORD: &str = "cargo xtask bench --record";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these parts of the table; may be given several times
    #[arg(long, value_parser = NAMES.map(|(name, _)| name))]
    only: Vec<String>,
    /// Shorter and fewer turns: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
    /// Write the table into docs/benchmarks.md
    #[arg(long, conflicts_with_all = ["only", "quick"])]
    record: bool,
    /// The release build is there and this is part of it
    #[arg(long, hide = true)]
    built: bool,
}

/// What all parts of the table share.
pub(crate) struct Bench {
    /// The server's binary.
    server: PathBuf,
    databases: Databases,
    mongo: OnceCell<Mongo>,
    quick: bool,
}

impl Bench {
    /// The MongoDB, started when it is first wanted.
    fn mongo(&self) -> anyhow::Result<&Mongo> {
        if let Some(mongo) = self.mongo.get() {
            return Ok(mongo);
        }
        let started = Mongo::start(1)?;
        Ok(self.mongo.get_or_init(|| started))
    }

    /// How often server and reference take turns.
    fn turns(&self) -> u32 {
        if self.quick { 1 } else { 3 }
    }

    /// `full` of something, or a tenth of it if it shall go quickly.
    fn amount(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(10) } else { full }
    }

    /// `full` seconds, or one if it shall go quickly.
    fn seconds(&self, full: u64) -> std::time::Duration {
        std::time::Duration::from_secs(if self.quick { 1 } else { full })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !options.built {
        return build_and_run();
    }
    allow_open_files()?;
    let own = std::env::current_exe().context("the path of this program")?;
    let folder = own.with_file_name("bench");
    let server = own.with_file_name("rollcall");
    let bench = Bench { server, databases: Databases::new(&folder)?, mongo: OnceCell::new(), quick: options.quick };
    let started = Instant::now();
    let mut rows = Vec::new();
    for (name, measure) in NAMES {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            eprintln!("measuring {name}");
            rows.extend(measure(&bench).with_context(|| format!("{name} could not be measured"))?);
        }
    }
    let (machine, table) = (machine::describe(&folder)?, table::render(&rows));
    println!("{machine}\n\n{table}");
    println!("\nMeasured in {:.0?}{}.", started.elapsed(), if bench.quick { ", quickly: not for figures" } else { "" });
    if options.record {
        record::replace(RECORD, &format!("Measured on {machine}.\n\n{table}"))?;
    }
    Ok(())
}

/// Builds the server and this program in release mode and goes on there.
fn build_and_run() -> anyhow::Result<()> {
    // Apart from each other: the server shall be the one that `cargo build --release` makes.
    cargo::run(cargo::cargo().args(["build", "--release", "--package", "rollcall"]))?;
    let arguments = std::env::args_os().skip(1).chain(["--built".into()]);
    cargo::run(cargo::cargo().args(["run", "--release", "--quiet", "--package", "xtask", "--"]).args(arguments))
}

/// Thousands of sockets are thousands of open files; the processes started from here inherit the limit.
pub(crate) fn allow_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).context("more open files")
}

/// A fresh folder below `folder` that goes away with the value.
fn scratch(folder: &Path) -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in(folder).with_context(|| format!("a folder in {}", folder.display()))
}
